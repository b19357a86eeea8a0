//! MiniMax M1: `<tool_calls>`, a JSON object a line, `</tool_calls>`. (M2: [`super::invoke`].)
//!
//! Sources: the chat template of MiniMax M1 (vLLM `examples/tool_chat_template_minimax_m1.jinja`),
//! `tool_parsers/minimax_tool_parser.py`. Jamba writes a list in the same tags, which is read too.

use super::Format;
use super::json::{self, Wrapping};
use super::reading::{Block, Reading};

const CLOSE: &str = "</tool_calls>";

pub(super) fn read_m1(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let format = Format::MiniMaxM1;
    let wrapping = Wrapping { format, start, closes: &[CLOSE], semicolons: false };
    json::read(reading, &wrapping, reading.scan.skip_space(after))
}
