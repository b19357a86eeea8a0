//! Mistral: `[TOOL_CALLS][{"name": "f", "arguments": {…}, "id": "…"}]`, and since tokenizer
//! version 11 `[TOOL_CALLS]f[CALL_ID]id[ARGS]{…}`, of which later ones leave out the id and
//! servers that strip special tokens leave `[TOOL_CALLS]f{…}`.
//!
//! Sources: mistral-common `src/mistral_common/tokens/tokenizers/instruct.py` (versions 3, 7, 11,
//! 13), the chat templates of Mistral Small 3.2 and Devstral, vLLM
//! `tool_parsers/mistral_tool_parser.py`.

use serde_json::Value;

use super::Format;
use super::json::{self, Wrapping, arguments_of, read_value, repairs_of};
use super::reading::{Block, Found, Item, Reading};

const CALL_ID: &str = "[CALL_ID]";
const ARGUMENTS: &str = "[ARGS]";

pub(super) fn read(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let scan = &reading.scan;
    let format = Format::Mistral;
    let mut at = scan.skip_space(after);
    if matches!(scan.byte(at), Some(b'[' | b'{')) {
        let wrapping = Wrapping { format, start, closes: &[], semicolons: false };
        return json::read(reading, &wrapping, at);
    }
    let mut items = Vec::new();
    let mut from = start;
    loop {
        match read_named(reading, from, at) {
            Ok(call) => {
                let end = call.span.1;
                items.push(Item::Call(call));
                // Further calls repeat the mark; some models only write a comma.
                let comma = scan.skip_space(end);
                let next = scan.skip_space(comma + 1);
                if scan.byte(comma) != Some(b',') || head(reading, next).is_none() {
                    return Block { items, end };
                }
                (from, at) = (next, next);
            }
            Err((name, reason, place)) => {
                let broken = reading.broken((format, from), name, reason, place, &[]);
                return reading.broken_block(items, broken);
            }
        }
    }
}

/// Name, id and the place of the arguments of the call that begins at `at`.
fn head<'t>(reading: &Reading<'t>, at: usize) -> Option<(&'t str, Option<&'t str>, usize)> {
    let scan = &reading.scan;
    let word = |at: usize| {
        let rest = scan.rest(at);
        let ends = |c: char| c.is_whitespace() || matches!(c, '[' | '{' | '<' | '(' | '`' | '"');
        let length = rest.find(ends).unwrap_or(rest.len());
        scan.walked(length + 1);
        (&rest[..length], scan.skip_space(at + length))
    };
    let (name, mut at) = word(at);
    let mut id = None;
    if scan.is_at(at, CALL_ID) {
        let (found, after) = word(scan.skip_space(at + CALL_ID.len()));
        (id, at) = (Some(found).filter(|id| !id.is_empty()), after);
    }
    let marked = scan.is_at(at, ARGUMENTS);
    if marked {
        at = scan.skip_space(at + ARGUMENTS.len());
    }
    let begins = marked || scan.byte(at) == Some(b'{');
    (begins && !name.is_empty()).then_some((name, id, at))
}

fn read_named(
    reading: &Reading<'_>,
    start: usize,
    at: usize,
) -> Result<Found, (Option<String>, String, usize)> {
    let Some((name, id, arguments_at)) = head(reading, at) else {
        let reason =
            format!("expected a list of calls, or NAME{ARGUMENTS}{{…}}, {}", reading.at(at));
        return Err((None, reason, at));
    };
    let (value, end, mends) = match reading.scan.is_over(arguments_at) {
        true => {
            let reason = "the text ends before the arguments".to_owned();
            return Err((Some(name.to_owned()), reason, arguments_at));
        }
        false => read_value(reading, arguments_at, &[])
            .map_err(|(_, reason)| (Some(name.to_owned()), reason, arguments_at))?,
    };
    let value: Value = value;
    let (arguments, of_arguments) = arguments_of(value);
    let mut repairs = repairs_of(mends);
    repairs.extend(of_arguments);
    // A brace too many makes it unclear where the arguments end.
    if matches!(reading.scan.byte(end), Some(b'}' | b']')) {
        let reason = format!("something follows the arguments {}", reading.at(end));
        return Err((Some(name.to_owned()), reason, end));
    }
    Ok(Found {
        format: Format::Mistral,
        name: name.to_owned(),
        arguments,
        untyped: Vec::new(),
        id: id.map(str::to_owned),
        repairs,
        span: (start, end),
    })
}
