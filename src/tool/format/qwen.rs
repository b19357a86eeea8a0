//! Qwen3-Coder: `<tool_call><function=f><parameter=k>v</parameter></function></tool_call>`.
//!
//! The template writes a line break behind an argument's opening tag and one before its closing
//! tag; these belong to the tags. Models leave out the wrapper at times, so `<function=` alone is
//! a mark too; Llama 3.1 uses the same mark for a call in JSON.
//!
//! Sources: the chat template of Qwen3-Coder (llama.cpp `models/templates/Qwen3-Coder.jinja`),
//! vLLM `vllm/tool_parsers/qwen3coder_tool_parser.py`.

use super::marks::QWEN3_CODER;
use super::reading::{Block, Closing, Reading};
use super::{Format, Repair, llama};

/// Reads the call whose tag `<function=` is at `at`, in a block that begins at `start`; without a
/// block the two are the same.
pub(super) fn read_function(reading: &Reading<'_>, start: usize, at: usize) -> Block {
    let (block_close, call_close) = (QWEN3_CODER.block.1, QWEN3_CODER.call.1);
    let wrapped = start != at;
    if let Some(block) = llama::read_function(reading, start, at) {
        return block;
    }
    let closes = [if wrapped { block_close } else { call_close }];
    match QWEN3_CODER.read_call(reading, at) {
        Ok(mut call) => {
            call.span.0 = start;
            match reading.closing(call.span.1, &[block_close]) {
                Closing::Closed(end) => call.span.1 = end,
                Closing::Missing(_) if wrapped => {
                    if !call.repairs.contains(&Repair::MissingEndMark) {
                        call.repairs.push(Repair::MissingEndMark);
                    }
                }
                Closing::Text(next) if wrapped => {
                    let reason =
                        format!("expected {block_close} behind {call_close} {}", reading.at(next));
                    let (what, name) = ((call.format, start), Some(call.name));
                    let broken = reading.broken(what, name, reason, next, &closes);
                    return reading.broken_block(Vec::new(), broken);
                }
                Closing::Missing(_) | Closing::Text(_) => {}
            }
            Block::of(call)
        }
        Err(unread) => {
            let what = (Format::Qwen3Coder, start);
            let broken = reading.broken(what, unread.name, unread.reason, unread.from, &closes);
            reading.broken_block(Vec::new(), broken)
        }
    }
}
