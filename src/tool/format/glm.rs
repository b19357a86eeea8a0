//! GLM-4.5 and later: `<tool_call>f`, then `<arg_key>k</arg_key><arg_value>v</arg_value>` for each
//! argument; and the older `<tool_call>f{…}</tool_call>`.
//!
//! Strings are written raw and all else as JSON, which nothing tells apart but the tool's schema.
//!
//! Sources: the chat templates of GLM-4.5 and GLM-4.6 (llama.cpp
//! `models/templates/GLM-4.6.jinja`), vLLM `tool_parsers/glm4_moe_tool_parser.py` and
//! `glm47_moe_tool_parser.py` (no line breaks).

use serde_json::Value;

use super::json::{arguments_of, read_value, repairs_of};
use super::reading::{Block, Closing, Found, Reading};
use super::tags::{Tag, value_end};
use super::{Format, Repair};
use crate::tool::JsonObject;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const KEY: (&str, &str) = ("<arg_key>", "</arg_key>");
const VALUE: (&str, &str) = ("<arg_value>", "</arg_value>");

/// Reads the call whose name begins at `at`.
pub(super) fn read(reading: &Reading<'_>, start: usize, at: usize) -> Block {
    match read_call(reading, at) {
        Ok(mut call) => {
            call.span.0 = start;
            Block::of(call)
        }
        Err((name, reason, from)) => {
            let asked = reading.options.format;
            let format = match (asked, &name) {
                (Format::Auto, Some(_)) => Format::Glm,
                (Format::Auto, None) => Format::Hermes,
                _ => asked,
            };
            let broken = reading.broken((format, start), name, reason, from, &[CLOSE]);
            reading.broken_block(Vec::new(), broken)
        }
    }
}

type Unread = (Option<String>, String, usize);

fn read_call(reading: &Reading<'_>, at: usize) -> Result<Found, Unread> {
    let scan = &reading.scan;
    let rest = scan.rest(at);
    let length = rest.find(|c: char| c.is_whitespace() || matches!(c, '<' | '{' | '"' | '\''));
    let length = length.unwrap_or(rest.len());
    scan.walked(length + 1);
    let name = rest[..length].to_owned();
    let mut at = scan.skip_space(at + length);
    let fail = |named: bool, reason: String, from| {
        Err(((named && !name.is_empty()).then(|| name.clone()), reason, from))
    };
    let begins = scan.is_at(at, KEY.0) || scan.is_at(at, CLOSE) || scan.byte(at) == Some(b'{');
    if name.is_empty() || !begins {
        let reason = match scan.is_over(at) {
            true => "the text ends behind the name".to_owned(),
            false => format!(
                "expected a JSON object, or a tool's name and its arguments, {}",
                reading.at(at)
            ),
        };
        return fail(false, reason, at);
    }
    let mut call = Found {
        format: Format::Glm,
        name: name.clone(),
        arguments: Value::Null,
        untyped: Vec::new(),
        id: None,
        repairs: Vec::new(),
        span: (0, 0),
    };
    if scan.byte(at) == Some(b'{') {
        let (value, end, mends) = read_value(reading, at, &[CLOSE])
            .map_err(|(_, reason)| (Some(name.clone()), reason, at))?;
        let (arguments, of_arguments) = arguments_of(value);
        call.arguments = arguments;
        call.repairs = repairs_of(mends);
        call.repairs.extend(of_arguments);
        at = end;
    } else {
        let mut arguments = JsonObject::new();
        while scan.is_at(at, KEY.0) {
            let (key, value, end) = match read_pair(reading, at) {
                Ok(pair) => pair,
                Err((reason, from)) => return fail(true, reason, from),
            };
            if arguments.contains_key(&key) {
                return fail(true, format!("the argument {key:?} is given twice"), end);
            }
            call.untyped.push(key.clone());
            arguments.insert(key, Value::String(value));
            at = scan.skip_space(end);
        }
        call.arguments = Value::Object(arguments);
    }
    match reading.closing(at, &[CLOSE]) {
        Closing::Closed(end) => call.span.1 = end,
        Closing::Missing(end) => {
            call.repairs.push(Repair::MissingEndMark);
            call.span.1 = end;
        }
        Closing::Text(at) => {
            return fail(true, format!("expected {} or {CLOSE} {}", KEY.0, reading.at(at)), at);
        }
    }
    Ok(call)
}

/// One key and its value, and the place behind them.
fn read_pair(reading: &Reading<'_>, at: usize) -> Result<(String, String, usize), (String, usize)> {
    let scan = &reading.scan;
    let key_from = at + KEY.0.len();
    // A value, or the end of its call, that comes first says that the key is not closed.
    let key_end = scan.find(KEY.1, key_from);
    let limit = [VALUE.0, CLOSE].into_iter().filter_map(|mark| scan.find(mark, key_from)).min();
    let Some(key_end) = key_end.filter(|end| limit.is_none_or(|limit| *end < limit)) else {
        return Err((format!("{} {} is not closed", KEY.0, reading.at(at)), key_from));
    };
    let key = reading.trimmed(key_from, key_end).to_owned();
    let value_at = scan.skip_space(key_end + KEY.1.len());
    if key.is_empty() || !scan.is_at(value_at, VALUE.0) {
        let reason = match key.is_empty() {
            true => format!("{} {} is empty", KEY.0, reading.at(at)),
            false => format!("the argument {key:?} has no {}", VALUE.0),
        };
        return Err((reason, value_at));
    }
    let from = value_at + VALUE.0.len();
    let (end, after) = value_end(reading, from, |at, outermost| tag_at(reading, at, outermost))
        .map_err(|at| {
            (format!("the argument {key:?} has no {} ({})", VALUE.1, reading.at(from)), at)
        })?;
    Ok((key, reading.text()[from..end].to_owned(), after))
}

/// What stands at a `<` in a value.
fn tag_at(reading: &Reading<'_>, at: usize, is_outermost: bool) -> Tag {
    let scan = &reading.scan;
    if scan.is_at(at, VALUE.1) {
        let after = at + VALUE.1.len();
        let next = scan.skip_space(after);
        let ends = next >= scan.end || scan.is_at(next, KEY.0) || scan.is_at(next, CLOSE);
        if is_outermost && ends { Tag::EndOfValue(after) } else { Tag::Other }
    } else if scan.is_at(at, CLOSE) {
        let next = scan.skip_space(at + CLOSE.len());
        let ends = is_outermost && (next >= scan.end || opens_a_call(reading, next));
        if ends { Tag::EndOfBlock } else { Tag::EndOfQuoted }
    } else if opens_a_call(reading, at) {
        Tag::BeginOfQuoted
    } else {
        Tag::Other
    }
}

/// Whether a call begins here: the mark, a name, an argument.
fn opens_a_call(reading: &Reading<'_>, at: usize) -> bool {
    const MAX_NAME: usize = 256;
    let scan = &reading.scan;
    if !scan.is_at(at, OPEN) {
        return false;
    }
    let rest = scan.rest(at + OPEN.len());
    let name = rest.bytes().take(MAX_NAME).position(|b| b == b'<');
    scan.walked(name.unwrap_or(MAX_NAME));
    name.is_some_and(|name| rest[name..].starts_with(KEY.0))
}
