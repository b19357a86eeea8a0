//! `<tool_call>`: Hermes and Qwen 2.5 and 3, and those that share its mark.
//!
//! What begins behind the mark tells the form: `{` is a Hermes call (several objects in one block
//! are several calls), `[` a list of them (Granite 3.1 writes it), `<function=` Qwen3-Coder's, a
//! name GLM's.
//!
//! Sources: the function-calling prompt of Nous Research's Hermes-Function-Calling, the chat
//! templates of Qwen2.5 and Qwen3, vLLM `tool_parsers/hermes_tool_parser.py` and
//! `granite_tool_parser.py`.

use super::json::{self, Wrapping};
use super::marks::QWEN3_CODER;
use super::reading::{Block, Reading};
use super::{Format, glm, qwen};

const CLOSE: &str = "</tool_call>";

pub(super) fn read(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let asked = reading.options.format;
    let at = reading.scan.skip_space(after);
    match reading.scan.byte(at) {
        Some(b'{' | b'[') => {
            let format = if asked == Format::Granite { asked } else { Format::Hermes };
            let wrapping = Wrapping { format, start, closes: &[CLOSE], semicolons: false };
            json::read(reading, &wrapping, at)
        }
        Some(b'<') if reading.scan.is_at(at, QWEN3_CODER.call.0) => {
            qwen::read_function(reading, start, at)
        }
        _ if reading.scan.is_at(at, CLOSE) || reading.scan.is_over(at) => {
            let format = if asked == Format::Auto { Format::Hermes } else { asked };
            let reason = match reading.scan.is_over(at) {
                true => "the text ends behind the mark that opens it",
                false => "there is nothing in it",
            };
            let broken = reading.broken((format, start), None, reason, at, &[CLOSE]);
            reading.broken_block(Vec::new(), broken)
        }
        _ => glm::read(reading, start, at),
    }
}
