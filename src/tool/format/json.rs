//! Calls that are JSON objects: `{"name": "f", "arguments": {…}}`, one or many, in a list or not.

use serde_json::Value;

use super::reading::{Block, Broken, Closing, Found, Item, Reading};
use super::{Format, Repair};
use crate::tool::python_json::{self, Mends};
use crate::tool::text::id_text;
use crate::tool::{JsonObject, schema};

/// How calls in JSON are wrapped.
pub(super) struct Wrapping<'a> {
    pub(super) format: Format,
    /// The place of the opening mark.
    pub(super) start: usize,
    /// The marks that close it, if it has any.
    pub(super) closes: &'a [&'static str],
    /// Whether several objects may be joined by `;`.
    pub(super) semicolons: bool,
}

/// Reads the objects, or the list of them, that begin at `at`.
pub(super) fn read(reading: &Reading<'_>, wrapping: &Wrapping<'_>, at: usize) -> Block {
    match reading.scan.byte(at) {
        Some(b'[') => read_list(reading, wrapping, at),
        _ => read_objects(reading, wrapping, at),
    }
}

fn read_objects(reading: &Reading<'_>, wrapping: &Wrapping<'_>, mut at: usize) -> Block {
    let Wrapping { format, start, closes, semicolons } = *wrapping;
    let mut items: Vec<Item> = Vec::new();
    loop {
        // The first call begins with the mark, others with their JSON.
        let from = if items.is_empty() { start } else { at };
        let (item, end) = match read_value(reading, at, closes) {
            Ok((value, end, mends)) => (item_of(value, mends, format, (from, end)), end),
            Err((name, reason)) => {
                let broken = reading.broken((format, from), name, reason, at, closes);
                return reading.broken_block(items, broken);
            }
        };
        items.push(item);
        let next = reading.scan.skip_space(end);
        match reading.closing(end, closes) {
            Closing::Closed(end) => return finish(items, end, false),
            Closing::Missing(end) => return finish(items, end, !closes.is_empty()),
            Closing::Text(_) if reading.scan.byte(next) == Some(b'{') => at = next,
            Closing::Text(_) if semicolons && reading.scan.byte(next) == Some(b';') => {
                at = reading.scan.skip_space(next + 1);
                if reading.scan.is_over(at) || reading.mark_at(at).is_some() {
                    return finish(items, at, false);
                }
            }
            // Without a mark that closes it, a call ends where its JSON does.
            Closing::Text(_) if closes.is_empty() && next > end => {
                return finish(items, end, false);
            }
            Closing::Text(next) => {
                let name = match items.pop() {
                    Some(Item::Call(call)) => Some(call.name),
                    Some(Item::Broken(broken)) => broken.name,
                    None => None,
                };
                let reason = format!("something follows the JSON object {}", reading.at(next));
                let broken = reading.broken((format, from), name, reason, next, closes);
                return reading.broken_block(items, broken);
            }
        }
    }
}

fn read_list(reading: &Reading<'_>, wrapping: &Wrapping<'_>, at: usize) -> Block {
    let Wrapping { format, start, closes, .. } = *wrapping;
    let scan = &reading.scan;
    let mut items: Vec<Item> = Vec::new();
    let mut at = scan.skip_space(at + 1);
    let mut trailing_comma = false;
    loop {
        let from = if items.is_empty() { start } else { at };
        let fail = |items, name, reason: String| {
            let broken = reading.broken((format, from), name, reason, at, closes);
            reading.broken_block(items, broken)
        };
        if scan.byte(at) == Some(b']') {
            if items.is_empty() {
                return fail(items, None, "the list of calls is empty".to_owned());
            }
            if trailing_comma && let Some(Item::Call(call)) = items.last_mut() {
                call.repairs.push(Repair::TrailingComma);
            }
            return match reading.closing(at + 1, closes) {
                Closing::Closed(end) => finish(items, end, false),
                Closing::Missing(_) => finish(items, at + 1, !closes.is_empty()),
                // What follows a list that is complete is text of the model's.
                Closing::Text(_) => finish(items, at + 1, false),
            };
        }
        if !items.is_empty() && !trailing_comma && scan.is_over(at) {
            return finish(items, at, true);
        }
        let (value, end, mends) = match read_value(reading, at, closes) {
            Ok(read) => read,
            Err((name, reason)) => return fail(items, name, reason),
        };
        items.push(item_of(value, mends, format, (from, end)));
        at = scan.skip_space(end);
        trailing_comma = scan.byte(at) == Some(b',');
        match scan.byte(at) {
            Some(b',') => at = scan.skip_space(at + 1),
            Some(b']') | None => {}
            Some(_) => {
                let reason =
                    format!("the list of calls goes on with something else {}", reading.at(at));
                let broken = reading.broken((format, at), None, reason, at, closes);
                return reading.broken_block(items, broken);
            }
        }
    }
}

/// Ends a block: its last call reaches to `end`, where a closing mark may be missing.
fn finish(mut items: Vec<Item>, end: usize, missing: bool) -> Block {
    match items.last_mut() {
        Some(Item::Call(call)) => {
            call.span.1 = end;
            if missing {
                call.repairs.push(Repair::MissingEndMark);
            }
        }
        Some(Item::Broken(broken)) => broken.span.1 = end,
        None => {}
    }
    Block { items, end }
}

/// The JSON value at `at`, the place behind it, and what was mended.
///
/// # Errors
/// The name of the tool, where it can be made out, and what is wrong.
pub(super) fn read_value(
    reading: &Reading<'_>,
    at: usize,
    closes: &[&'static str],
) -> Result<(Value, usize, Mends), (Option<String>, String)> {
    let text = reading.text();
    match python_json::parse_prefix(text, at) {
        Ok((value, end, mends)) => {
            reading.scan.walked(end - at);
            // A string whose closing quote is missing may end at a quote of the next call.
            let runs_over = mends.raw_control_character
                && closes.iter().any(|close| text[at..end].contains(close));
            if runs_over {
                let reason = "a string holds both a line break and the mark that closes the call";
                return Err((name_of(text, at), reason.to_owned()));
            }
            Ok((value, end, mends))
        }
        Err(error) => {
            let whole = error.message().starts_with("Unterminated");
            let reached = if whole { text.len() } else { error.offset() };
            reading.scan.walked(reached.saturating_sub(at));
            // Some of Python's messages end with this word, and so begins the place.
            let message = error.message().trim_end_matches(" at");
            let reason = format!("{message} {}", reading.at(error.offset()));
            Err((name_of(text, at), reason))
        }
    }
}

/// A call, or what is wrong with the value that should be one.
fn item_of(value: Value, mends: Mends, format: Format, span: (usize, usize)) -> Item {
    match parts_of(value) {
        Ok((parts, of_arguments)) => {
            let mut repairs = repairs_of(mends);
            repairs.extend(of_arguments);
            let Parts { name, arguments, id } = parts;
            Item::Call(Found { format, name, arguments, untyped: Vec::new(), id, repairs, span })
        }
        Err((name, reason)) => Item::Broken(Broken { format, name, reason, span }),
    }
}

/// Those repairs that reading the JSON made.
pub(super) fn repairs_of(mends: Mends) -> Vec<Repair> {
    let raw = mends.raw_control_character.then_some(Repair::RawControlCharacter);
    let comma = mends.trailing_comma.then_some(Repair::TrailingComma);
    raw.into_iter().chain(comma).collect()
}

pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) arguments: Value,
    pub(crate) id: Option<String>,
}

type NamedReason = (Option<String>, String);

/// Name, arguments and id of a call that is a JSON object, and what was mended in the arguments.
///
/// The object is `{"name", "arguments" or "parameters" or "input", "id"}`, or has these in a
/// `function`, as OpenAI's. Arguments that are missing or `null` are none.
///
/// # Errors
/// The name, where there is one, and what is wrong.
pub(crate) fn parts_of(value: Value) -> Result<(Parts, Vec<Repair>), NamedReason> {
    let Value::Object(mut call) = value else {
        return Err((
            None,
            format!("a call must be a JSON object, got {}", schema::kind_of(&value)),
        ));
    };
    let id = ["uniq_id", "call_id", "id"].into_iter().find_map(|key| id_text(call.get(key)?));
    if let Some(Value::Object(function)) = call.get_mut("function")
        && !function.is_empty()
    {
        call = std::mem::take(function);
    }
    let name = match call.get_mut("name").map(Value::take) {
        Some(Value::String(name)) if !name.trim().is_empty() => name,
        Some(Value::String(_)) => return Err((None, "its \"name\" is empty".to_owned())),
        Some(other) => {
            let kind = schema::kind_of(&other);
            return Err((None, format!("its \"name\" must be a string, got {kind}")));
        }
        None => return Err((None, "it has no \"name\"".to_owned())),
    };
    let mut given = ["arguments", "parameters", "input"]
        .into_iter()
        .filter_map(|key| call.get_mut(key).map(|value| (key, value.take())))
        .filter(|(_, value)| !value.is_null());
    let arguments = given.next();
    if let (Some((first, _)), Some((second, _))) = (&arguments, given.next()) {
        return Err((Some(name), format!("it has both {first:?} and {second:?}")));
    }
    let arguments = arguments.map_or(Value::Null, |(_, value)| value);
    let (arguments, repairs) = arguments_of(arguments);
    Ok((Parts { name, arguments, id }, repairs))
}

/// Arguments as they should be: an object, or what the executor answers as none. Text may have the
/// same damage as a call itself.
pub(crate) fn arguments_of(arguments: Value) -> (Value, Vec<Repair>) {
    match arguments {
        Value::Null => (Value::Object(JsonObject::new()), Vec::new()),
        Value::String(text) if text.trim().is_empty() => {
            (Value::Object(JsonObject::new()), vec![Repair::ArgumentsAsText])
        }
        Value::String(text) => {
            let begin = text.len() - text.trim_start().len();
            match python_json::parse_prefix(&text, begin) {
                Ok((object @ Value::Object(_), end, mends)) if text[end..].trim().is_empty() => {
                    let mut repairs = vec![Repair::ArgumentsAsText];
                    repairs.extend(repairs_of(mends));
                    (object, repairs)
                }
                // The executor says what is wrong with it.
                _ => (Value::String(text), Vec::new()),
            }
        }
        other => (other, Vec::new()),
    }
}

/// The name in a call's JSON that cannot be read as a whole, if it stands near the beginning.
fn name_of(text: &str, at: usize) -> Option<String> {
    const NEAR: usize = 4_096;
    let bytes = &text.as_bytes()[at..text.len().min(at + NEAR)];
    let near = String::from_utf8_lossy(bytes);
    let (_, rest) = near.split_once("\"name\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let end = rest.strip_prefix('"')?.find('"')? + 2;
    match python_json::parse(&rest[..end]) {
        Ok(Value::String(name)) if !name.is_empty() => Some(name),
        _ => None,
    }
}
