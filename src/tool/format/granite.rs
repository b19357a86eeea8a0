//! Granite 3: `<|tool_call|>[{"name": "f", "arguments": {…}}]`. (Granite 4 writes Hermes' form.)
//!
//! Sources: the chat template of Granite 3 (vLLM `examples/tool_chat_template_granite.jinja`),
//! `tool_parsers/granite_tool_parser.py`.

use super::Format;
use super::json::{self, Wrapping};
use super::reading::{Block, Reading};

pub(super) fn read(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let wrapping = Wrapping { format: Format::Granite, start, closes: &[], semicolons: false };
    json::read(reading, &wrapping, reading.scan.skip_space(after))
}
