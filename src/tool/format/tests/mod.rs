//! Properties of the readers: what is written is read again, nothing is read that was not written,
//! and no text takes more than its share of work.
//!
//! The vectors after the makers' templates are in `tests/formats.rs`.

mod hostile;
mod messages;
mod round_trip;
mod write;

use super::{CallParser, Format, Reading};
use crate::tool::ToolCall;

/// The formats that a text can be of.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| *format != Format::Auto)
}

/// The calls of a text, and the steps that reading it took.
fn read(format: Format, text: &str) -> (Vec<ToolCall>, usize) {
    let parser = CallParser::new(format);
    let reading = Reading::new(&parser, text);
    reading.items();
    (parser.parse(text).unwrap().calls, reading.scan.steps())
}

/// What reading a text may cost at most: the budget, and one reader's pass behind it.
fn most_steps(text: &str) -> usize {
    70 * text.len() + 10_000
}
