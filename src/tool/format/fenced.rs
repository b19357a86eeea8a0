//! Text agents: exactly one fenced `bash` block a message, whose content is the command.
//!
//! More than one is one call that cannot be read, and none of them runs; none is a message without
//! a call. The block ends at the first line that begins with the fence. The command is what is
//! between without the white space around it.
//!
//! Source: mini-swe-agent `src/minisweagent/models/utils/actions_text.py`, the configurations
//! `swebench.yaml` (`bash`) and `swebench_backticks.yaml` (`mswea_bash_command`).

use serde_json::Value;

use super::Format;
use super::reading::{Block, Broken, Found, Item, Reading};
use crate::tool::JsonObject;

const CLOSE: &str = "\n```";

pub(super) fn read(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let scan = &reading.scan;
    let rest = scan.rest(after);
    let blank = rest.bytes().take_while(|b| matches!(b, b' ' | b'\t' | b'\r')).count();
    scan.walked(blank + 1);
    // `bash` is the whole of the fence's name.
    if rest.as_bytes().get(blank) != Some(&b'\n') {
        return Block::empty(after);
    }
    let content = after + blank;
    let Some(close) = scan.find(CLOSE, content) else {
        let reason = "the block is not closed: its command may be cut off";
        let span = (start, scan.end.max(after));
        let (format, name) = (Format::FencedBash, Some("bash".to_owned()));
        let broken = Broken { format, name, reason: reason.to_owned(), span };
        return reading.broken_block(Vec::new(), broken);
    };
    let command = reading.text()[content..close].trim();
    let mut arguments = JsonObject::new();
    arguments.insert("command".to_owned(), Value::String(command.to_owned()));
    Block::of(Found {
        format: Format::FencedBash,
        name: "bash".to_owned(),
        arguments: Value::Object(arguments),
        untyped: Vec::new(),
        id: None,
        repairs: Vec::new(),
        span: (start, close + CLOSE.len()),
    })
}

/// Adds a block to those of a message: a second one makes one call of both that cannot be read.
pub(super) fn push(items: &mut Vec<Item>, item: Item) {
    let (start, end) = match &item {
        Item::Call(call) => call.span,
        Item::Broken(broken) => broken.span,
    };
    match items.last_mut() {
        None => items.push(item),
        Some(Item::Broken(both)) => both.span.1 = end,
        Some(first @ Item::Call(_)) => {
            let start = match first {
                Item::Call(call) => call.span.0,
                Item::Broken(_) => start,
            };
            *first = Item::Broken(Broken {
                format: Format::FencedBash,
                name: Some("bash".to_owned()),
                reason: "there is more than one fenced bash block, and none was run".to_owned(),
                span: (start, end),
            });
        }
    }
}
