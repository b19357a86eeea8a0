//! Kimi K2: `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`,
//! wrapped in a section.
//!
//! What stands before the arguments is the call's id, and the tool's name is a part of it.
//!
//! Sources: the tool call guidance and chat template of Kimi-K2 (llama.cpp
//! `models/templates/moonshotai-Kimi-K2-Thinking.jinja`), vLLM
//! `tool_parsers/kimi_k2_tool_parser.py`.

use super::json::{arguments_of, read_value, repairs_of};
use super::reading::{Block, Closing, Found, Reading};
use super::{Format, Repair};
use serde_json::Value;

const SECTION_END: &str = "<|tool_calls_section_end|>";
const BEGIN: &str = "<|tool_call_begin|>";
const ARGUMENTS: &str = "<|tool_call_argument_begin|>";
const END: &str = "<|tool_call_end|>";

/// The wrapper: its calls have marks of their own.
pub(super) fn read_section(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let at = reading.scan.skip_space(after);
    if reading.scan.is_at(at, BEGIN) {
        return Block::empty(at);
    }
    let reason = format!("expected {BEGIN} {}", reading.at(at));
    let broken = reading.broken((Format::KimiK2, start), None, reason, at, &[SECTION_END]);
    reading.broken_block(Vec::new(), broken)
}

pub(super) fn read(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let scan = &reading.scan;
    let fail = |name: Option<String>, reason: String, from| {
        let broken = reading.broken((Format::KimiK2, start), name, reason, from, &[END]);
        reading.broken_block(Vec::new(), broken)
    };
    let limit = [END, BEGIN].into_iter().filter_map(|mark| scan.find(mark, after)).min();
    let arguments = scan.find(ARGUMENTS, after);
    let Some(arguments) = arguments.filter(|at| limit.is_none_or(|limit| *at < limit)) else {
        return fail(None, format!("{ARGUMENTS} is missing"), after);
    };
    let id = reading.trimmed(after, arguments);
    let name = name_of(id);
    if name.is_empty() || id.contains('\n') {
        return fail(None, format!("expected functions.NAME:INDEX before {ARGUMENTS}"), arguments);
    }
    let at = scan.skip_space(arguments + ARGUMENTS.len());
    let (value, end, mut repairs) = if scan.is_at(at, END) {
        (Value::Null, at, Vec::new())
    } else {
        match read_value(reading, at, &[END]) {
            Ok((value, end, mends)) => (value, end, repairs_of(mends)),
            Err((_, reason)) => return fail(Some(name.to_owned()), reason, at),
        }
    };
    let (arguments, of_arguments) = arguments_of(value);
    repairs.extend(of_arguments);
    let end = match reading.closing(end, &[END]) {
        Closing::Closed(end) => end,
        Closing::Text(at) if !scan.is_at(at, SECTION_END) => {
            let reason = format!("something follows the arguments {}", reading.at(at));
            return fail(Some(name.to_owned()), reason, at);
        }
        Closing::Missing(end) | Closing::Text(end) => {
            repairs.push(Repair::MissingEndMark);
            end
        }
    };
    Block::of(Found {
        format: Format::KimiK2,
        name: name.to_owned(),
        arguments,
        untyped: Vec::new(),
        id: Some(id.to_owned()),
        repairs,
        span: (start, end),
    })
}

/// The `f` in `functions.f:0`.
fn name_of(id: &str) -> &str {
    let name = id.strip_prefix("functions.").unwrap_or(id);
    match name.rsplit_once(':') {
        Some((name, index)) if index.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => name,
    }
}
