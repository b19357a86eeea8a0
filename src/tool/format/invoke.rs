//! `<invoke name="f"><parameter name="k">v</parameter></invoke>` in a wrapper: the text form of
//! Anthropic's models, MiniMax M2, and DeepSeek V3.2 and later, whose tags are spelled
//! `<｜DSML｜invoke …>` and whose parameters say by `string="true"` whether they are strings.
//!
//! An element without its wrapper is read too. Values are raw: no entity is decoded, and no white
//! space is taken away, since the templates write values right between the tags.
//!
//! Sources: Anthropic's documentation of its tool use system prompt; the chat template of MiniMax
//! M2 (llama.cpp `models/templates/unsloth-MiniMax-M2.jinja`), vLLM
//! `tool_parsers/minimax_m2_tool_parser.py`; DeepSeek's `encoding/encoding_dsv32.py` and llama.cpp
//! `models/templates/DeepSeek-V3.2.jinja`; SGLang `function_call/deepseekv32_detector.py` (an
//! element that holds JSON).

use serde_json::Value;

use super::Repair;
use super::json::{arguments_of, read_value, repairs_of};
use super::marks::Tags;
use super::reading::{Block, Found, Item, Reading};
use super::tags::Unread;

/// How DeepSeek V4 names the wrapper.
const DSML_V4_CLOSE: &str = "</｜DSML｜tool_calls>";

/// Reads the calls in the wrapper that begins at `start` and whose opening tag ends at `after`.
pub(super) fn read_block(
    reading: &Reading<'_>,
    tags: &'static Tags,
    start: usize,
    after: usize,
) -> Block {
    let scan = &reading.scan;
    let closes = [tags.block.1, DSML_V4_CLOSE];
    let mut items: Vec<Item> = Vec::new();
    let mut at = after;
    loop {
        at = scan.skip_space(at);
        let from = if items.is_empty() { start } else { at };
        if scan.is_at(at, tags.call.0) {
            match read_call(reading, tags, at) {
                Ok(mut call) => {
                    (call.span.0, at) = (from, call.span.1);
                    items.push(Item::Call(call));
                }
                Err(unread) => {
                    // The next element of this block is a mark itself.
                    let closes = [tags.call.1, tags.block.1];
                    let Unread { name, reason, from: place } = unread;
                    let broken = reading.broken((tags.format, from), name, reason, place, &closes);
                    at = broken.span.1;
                    items.push(Item::Broken(broken));
                    let ended = reading.text()[..at].ends_with(tags.block.1);
                    if ended || !scan.is_at(scan.skip_space(at), tags.call.0) {
                        return Block { items, end: at };
                    }
                }
            }
            continue;
        }
        if let Some(close) = closes.iter().find(|close| scan.is_at(at, close)) {
            if items.is_empty() {
                let reason = "there is no call in it";
                let broken = reading.broken((tags.format, start), None, reason, at, &closes);
                return reading.broken_block(items, broken);
            }
            return Block { items, end: at + close.len() };
        }
        let over = scan.is_over(at) || reading.mark_at(at).is_some();
        if let (true, Some(Item::Call(call))) = (over, items.last_mut()) {
            if !call.repairs.contains(&Repair::MissingEndMark) {
                call.repairs.push(Repair::MissingEndMark);
            }
            return Block { items, end: at };
        }
        let reason = format!("expected {}name=\"…\"> {}", tags.call.0, reading.at(at));
        let broken = reading.broken((tags.format, from), None, reason, at, &closes);
        return reading.broken_block(items, broken);
    }
}

/// Reads an element without a wrapper.
pub(super) fn read_bare(reading: &Reading<'_>, tags: &'static Tags, start: usize) -> Block {
    match read_call(reading, tags, start) {
        Ok(mut call) => {
            call.span.0 = start;
            Block::of(call)
        }
        Err(Unread { name, reason, from }) => {
            let what = (tags.format, start);
            let broken = reading.broken(what, name, reason, from, &[tags.call.1]);
            reading.broken_block(Vec::new(), broken)
        }
    }
}

fn read_call(reading: &Reading<'_>, tags: &Tags, at: usize) -> Result<Found, Unread> {
    if let Some(call) = read_with_json(reading, tags, at) {
        return Ok(call);
    }
    tags.read_call(reading, at)
}

/// An element that holds its arguments as one JSON object.
fn read_with_json(reading: &Reading<'_>, tags: &Tags, at: usize) -> Option<Found> {
    let (name, after) = tags.name_at(reading, at)?;
    let at = reading.scan.skip_space(after);
    if reading.scan.byte(at) != Some(b'{') {
        return None;
    }
    let (value, end, mends) = read_value(reading, at, &[tags.call.1]).ok()?;
    let close = reading.scan.skip_space(end);
    if !reading.scan.is_at(close, tags.call.1) || !value.is_object() {
        return None;
    }
    let (arguments, _): (Value, _) = arguments_of(value);
    let (format, repairs) = (tags.format, repairs_of(mends));
    let span = (0, close + tags.call.1.len());
    Some(Found { format, name, arguments, untyped: Vec::new(), id: None, repairs, span })
}
