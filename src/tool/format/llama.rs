//! Llama 3: `<|python_tag|>{"name": "f", "parameters": {…}}`, several joined by `;`;
//! `<function=f>{…}</function>`; `<|python_tag|>f.call(k="v")` for the built-in tools. Llama 4:
//! `<|python_start|>[f(k="v"), g()]<|python_end|>`. Without marks: [`super::unmarked`].
//!
//! Sources: llama-models `models/llama3_1/prompt_format.md` and `models/llama4/prompt_format.md`,
//! the templates vLLM `examples/tool_chat_template_llama3.1_json.jinja`,
//! `…_llama3.1_usr_def_tool_call.jinja` and `…_llama4_pythonic.jinja`, `tool_parsers/
//! llama_tool_parser.py` and `llama4_pythonic_tool_parser.py`.

use serde_json::Value;

use super::json::{self, Wrapping, arguments_of, read_value, repairs_of};
use super::python::{Problem, Python, PythonCall};
use super::reading::{Block, Closing, Found, Item, Reading};
use super::{Format, Repair};

const PYTHON_END: &str = "<|python_end|>";
const FUNCTION: (&str, &str) = ("<function=", "</function>");

pub(super) fn read_python_tag(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let at = reading.scan.skip_space(after);
    let json_list = reading.scan.byte(at) == Some(b'[')
        && reading.scan.byte(reading.scan.skip_space(at + 1)) == Some(b'{');
    if json_list || reading.scan.byte(at) == Some(b'{') {
        let format = Format::Llama3;
        let wrapping = Wrapping { format, start, closes: &[], semicolons: true };
        return json::read(reading, &wrapping, at);
    }
    let format = match reading.scan.byte(at) {
        Some(b'[') => Format::Llama4,
        _ => Format::Llama3,
    };
    let mut block = read_python(reading, format, start, at, &[]);
    for item in &mut block.items {
        if let Item::Call(call) = item
            && let Some(name) = call.name.strip_suffix(".call")
        {
            call.name = name.to_owned();
        }
    }
    block
}

pub(super) fn read_python_start(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    read_python(reading, Format::Llama4, start, reading.scan.skip_space(after), &[PYTHON_END])
}

/// Reads a call of Python's, or a list of them, that begins at `at`.
pub(super) fn read_python(
    reading: &Reading<'_>,
    format: Format,
    start: usize,
    at: usize,
    closes: &[&'static str],
) -> Block {
    let (calls, end) = match python_calls(reading.text(), at) {
        Ok(read) => read,
        Err((calls, problem)) => {
            reading.scan.walked(problem.reached.saturating_sub(at));
            let items = items_of(calls, format, start);
            let from = items.last().map_or(start, |item| match item {
                Item::Call(call) => call.span.1,
                Item::Broken(broken) => broken.span.1,
            });
            let reason = format!("{} {}", problem.message, reading.at(problem.offset));
            let name = reading.scan.rest(from.max(at)).trim_start_matches(['[', ',', ' ', '\n']);
            let length = name.find(|c: char| !(c.is_alphanumeric() || "_.-".contains(c)));
            let called = length.filter(|length| *length > 0 && name[*length..].starts_with('('));
            let name = called.map(|length| name[..length].to_owned());
            let broken = reading.broken((format, from), name, reason, from.max(at), closes);
            return reading.broken_block(items, broken);
        }
    };
    reading.scan.walked(end - at);
    let mut items = items_of(calls, format, start);
    let end = match reading.closing(end, closes) {
        Closing::Closed(end) => end,
        Closing::Missing(_) if closes.is_empty() => end,
        Closing::Missing(_) => {
            if let Some(Item::Call(call)) = items.last_mut() {
                call.repairs.push(Repair::MissingEndMark);
            }
            end
        }
        // What follows a complete list is text of the model's.
        Closing::Text(_) => end,
    };
    if let Some(Item::Call(call)) = items.last_mut() {
        call.span.1 = end;
    }
    Block { items, end }
}

/// `[f(), g()]`, `f()`, or several calls a line each; and the place behind them.
///
/// # Errors
/// The calls before the one that is wrong, and what is wrong with it.
pub(super) fn python_calls(
    text: &str,
    at: usize,
) -> Result<(Vec<PythonCall>, usize), (Vec<PythonCall>, Problem)> {
    let mut python = Python::new(text, at);
    let mut calls = Vec::new();
    if !python.skip(b'[') {
        return match python.call() {
            Ok(call) => Ok((vec![call], python.at)),
            Err(problem) => Err((calls, problem)),
        };
    }
    loop {
        python.skip_space();
        if !calls.is_empty() && python.skip(b']') {
            return Ok((calls, python.at));
        }
        match python.call() {
            Ok(call) => calls.push(call),
            Err(problem) => return Err((calls, problem)),
        }
        python.skip_space();
        if !python.skip(b',') && python.peek() != Some(b']') {
            let (offset, message) = (python.at, "expected ',' or ']' behind a call");
            return Err((calls, Problem { message, offset, reached: offset }));
        }
    }
}

/// Python's calls as items. The first begins with the mark at `start`.
pub(super) fn items_of(calls: Vec<PythonCall>, format: Format, start: usize) -> Vec<Item> {
    let items = calls.into_iter().enumerate().map(|(index, call)| {
        let raw = call.raw_control_character.then_some(Repair::RawControlCharacter);
        Item::Call(Found {
            format,
            name: call.name,
            arguments: Value::Object(call.arguments),
            untyped: Vec::new(),
            id: None,
            repairs: raw.into_iter().collect(),
            span: (if index == 0 { start } else { call.span.0 }, call.span.1),
        })
    });
    items.collect()
}

/// `<function=f>{…}</function>`, whose tag is at `at`; `None` where no JSON follows the tag, and
/// for Qwen3-Coder, to which the tag belongs as well.
pub(super) fn read_function(reading: &Reading<'_>, start: usize, at: usize) -> Option<Block> {
    let scan = &reading.scan;
    let (name, after) = super::marks::QWEN3_CODER.name_at(reading, at)?;
    let json_at = scan.skip_space(after);
    if scan.byte(json_at) != Some(b'{') {
        return None;
    }
    let format = Format::Llama3;
    let fail = |reason: String, from| {
        let name = Some(name.clone());
        let broken = reading.broken((format, start), name, reason, from, &[FUNCTION.1]);
        Some(reading.broken_block(Vec::new(), broken))
    };
    let (value, end, mends) = match read_value(reading, json_at, &[FUNCTION.1]) {
        Ok(read) => read,
        Err((_, reason)) => return fail(reason, json_at),
    };
    let (arguments, of_arguments) = arguments_of(value);
    let mut repairs = repairs_of(mends);
    repairs.extend(of_arguments);
    let end = match reading.closing(end, &[FUNCTION.1, "<function>"]) {
        Closing::Closed(end) => end,
        Closing::Missing(end) => {
            repairs.push(Repair::MissingEndMark);
            end
        }
        Closing::Text(at) => {
            return fail(format!("something follows the arguments {}", reading.at(at)), at);
        }
    };
    let mut end = end;
    if start != at && scan.is_at(scan.skip_space(end), "</tool_call>") {
        end = scan.skip_space(end) + "</tool_call>".len();
    }
    let (untyped, id) = (Vec::new(), None);
    let span = (start, end);
    Some(Block::of(Found { format, name, arguments, untyped, id, repairs, span }))
}
