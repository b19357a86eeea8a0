//! DeepSeek V3 and R1: `<｜tool▁call▁begin｜>function<｜tool▁sep｜>f`, the arguments as fenced JSON,
//! `<｜tool▁call▁end｜>`. V3.1: `<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`. Both in a
//! section. (V3.2: [`super::invoke`].)
//!
//! Sources: the chat templates of DeepSeek R1 and V3 (vLLM
//! `examples/tool_chat_template_deepseekr1.jinja`) and of V3.1 (llama.cpp
//! `models/templates/deepseek-ai-DeepSeek-V3.1.jinja`), vLLM
//! `tool_parsers/deepseekv3_tool_parser.py` and `deepseekv31_tool_parser.py`.

use serde_json::Value;

use super::json::{arguments_of, read_value, repairs_of};
use super::reading::{Block, Closing, Found, Reading};
use super::{Format, Repair};

const SECTION_END: &str = "<｜tool▁calls▁end｜>";
const BEGIN: &str = "<｜tool▁call▁begin｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";
const END: &str = "<｜tool▁call▁end｜>";
const FENCE: &str = "```";

/// The wrapper: its calls have marks of their own.
pub(super) fn read_section(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let at = reading.scan.skip_space(after);
    if reading.scan.is_at(at, BEGIN) {
        return Block::empty(at);
    }
    let reason = format!("expected {BEGIN} {}", reading.at(at));
    let broken = reading.broken((asked(reading), start), None, reason, at, &[SECTION_END]);
    reading.broken_block(Vec::new(), broken)
}

fn asked(reading: &Reading<'_>) -> Format {
    match reading.options.format {
        Format::DeepSeekV3 => Format::DeepSeekV3,
        _ => Format::DeepSeekV31,
    }
}

pub(super) fn read(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let scan = &reading.scan;
    let fail = |format, name: Option<&str>, reason: String, from| {
        let name = name.map(str::to_owned);
        let broken = reading.broken((format, start), name, reason, from, &[END]);
        reading.broken_block(Vec::new(), broken)
    };
    let limit = [END, BEGIN].into_iter().filter_map(|mark| scan.find(mark, after)).min();
    let separator = scan.find(SEPARATOR, after);
    let Some(separator) = separator.filter(|at| limit.is_none_or(|limit| *at < limit)) else {
        return fail(asked(reading), None, format!("{SEPARATOR} is missing"), after);
    };
    let before = reading.trimmed(after, separator);
    let mut at = scan.skip_space(separator + SEPARATOR.len());
    let mut format = Format::DeepSeekV31;
    let mut name = before;
    if scan.byte(at) != Some(b'{') && !scan.is_at(at, FENCE) && !scan.is_at(at, END) {
        // A name stands here: V3, and before the separator its kind, `function`.
        let rest = scan.rest(at);
        let length = rest.find(['\n', '{', '`', '<']).unwrap_or(rest.len());
        scan.walked(length + 1);
        format = Format::DeepSeekV3;
        name = rest[..length].trim();
        at = scan.skip_space(at + length);
    }
    if name.is_empty() || name.contains('\n') {
        return fail(format, None, "the tool's name is missing".to_owned(), at);
    }
    let fenced = scan.is_at(at, FENCE);
    if fenced {
        let rest = scan.rest(at + FENCE.len());
        let language = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
        scan.walked(language + 1);
        at = scan.skip_space(at + FENCE.len() + language);
    }
    let (value, mut end, mut repairs) = if scan.is_at(at, END) {
        (Value::Null, at, Vec::new())
    } else {
        match read_value(reading, at, &[END]) {
            Ok((value, end, mends)) => (value, end, repairs_of(mends)),
            Err((_, reason)) => return fail(format, Some(name), reason, at),
        }
    };
    if fenced {
        let fence = scan.skip_space(end);
        if scan.is_at(fence, FENCE) {
            end = fence + FENCE.len();
        }
    }
    let (arguments, of_arguments) = arguments_of(value);
    repairs.extend(of_arguments);
    let end = match reading.closing(end, &[END]) {
        Closing::Closed(end) => end,
        Closing::Text(at) if !scan.is_at(at, SECTION_END) => {
            let reason = format!("something follows the arguments {}", reading.at(at));
            return fail(format, Some(name), reason, at);
        }
        Closing::Missing(end) | Closing::Text(end) => {
            repairs.push(Repair::MissingEndMark);
            end
        }
    };
    Block::of(Found {
        format,
        name: name.to_owned(),
        arguments,
        untyped: Vec::new(),
        id: None,
        repairs,
        span: (start, end),
    })
}
