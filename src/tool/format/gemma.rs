//! Gemma 3, which has no marks of its own: a Python call, or JSON, in a fenced `tool_code` block
//! (a fenced `json` block counts if it holds a call), or as the whole message
//! ([`super::unmarked`]).
//!
//! `print(f(…))` is `f(…)`, and the module `default_api` is taken off, since Gemini's kin write
//! them.
//!
//! Sources: Google's guide "Function calling with Gemma" and the Gemma cookbook (`tool_code`),
//! vLLM `examples/tool_chat_template_gemma3_pythonic.jinja`.

use super::Format;
use super::json::{self, Wrapping};
use super::llama::{items_of, python_calls};
use super::reading::{Block, Item, Reading};

const FENCE: &str = "```";

pub(super) fn read(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let scan = &reading.scan;
    let is_code = reading.text()[start..after].ends_with("tool_code");
    let at = scan.skip_space(after);
    let format = Format::Gemma;
    let mut block = match scan.byte(at) {
        Some(b'{') => read_json(reading, start, at),
        Some(b'[') if scan.byte(scan.skip_space(at + 1)) == Some(b'{') => {
            read_json(reading, start, at)
        }
        _ if is_code => read_code(reading, start, at),
        _ => Block::empty(after),
    };
    if !is_code && block.items.iter().any(|item| matches!(item, Item::Broken(_))) {
        return Block::empty(after);
    }
    for item in &mut block.items {
        if let Item::Call(call) = item {
            call.format = format;
            if let Some(name) = call.name.strip_prefix("default_api.") {
                call.name = name.to_owned();
            }
        }
    }
    block
}

fn read_json(reading: &Reading<'_>, start: usize, at: usize) -> Block {
    let format = Format::Gemma;
    let wrapping = Wrapping { format, start, closes: &[FENCE], semicolons: false };
    json::read(reading, &wrapping, at)
}

/// Calls, one behind the other, up to the fence.
fn read_code(reading: &Reading<'_>, start: usize, mut at: usize) -> Block {
    const PRINT: &str = "print(";
    let scan = &reading.scan;
    let format = Format::Gemma;
    let mut items: Vec<Item> = Vec::new();
    loop {
        let from = if items.is_empty() { start } else { at };
        let fail = |items: Vec<Item>, reason: String, place| {
            let broken = reading.broken((format, from), None, reason, place, &[FENCE]);
            reading.broken_block(items, broken)
        };
        let printed = scan.is_at(at, PRINT);
        let begin = if printed { scan.skip_space(at + PRINT.len()) } else { at };
        let (calls, mut end) = match python_calls(reading.text(), begin) {
            Ok(read) => read,
            Err((calls, problem)) => {
                scan.walked(problem.reached.saturating_sub(at));
                items.extend(items_of(calls, format, from));
                let reason = format!("{} {}", problem.message, reading.at(problem.offset));
                return fail(items, reason, begin);
            }
        };
        scan.walked(end - at);
        if printed {
            end = scan.skip_space(end);
            if scan.byte(end) != Some(b')') {
                return fail(items, format!("print( {} is not closed", reading.at(at)), end);
            }
            end += 1;
        }
        items.extend(items_of(calls, format, from));
        at = scan.skip_space(end);
        if scan.is_at(at, FENCE) {
            return Block { items, end: at + FENCE.len() };
        }
        if scan.is_over(at) {
            if let Some(Item::Call(call)) = items.last_mut() {
                call.repairs.push(super::Repair::MissingEndMark);
            }
            return Block { items, end: at };
        }
    }
}
