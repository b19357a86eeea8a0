//! gpt-oss (harmony):
//! `<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>`.
//!
//! A text is a sequence of messages: a header from `<|start|>` or `<|channel|>` to `<|message|>`,
//! and content to `<|end|>`, `<|call|>`, `<|return|>` or the next header. A recipient in the
//! header, in its role or its channel part, makes a call of it; the namespace `functions.` is
//! taken off. `<|call|>` is a stop token that servers do not keep, so it is never missed. A
//! message of the analysis channel without a recipient is thinking and is skipped; so is one of
//! another author, such as a tool's. The content of others is text like any.
//!
//! Sources: openai/harmony `docs/format.md` ("Receiving tool calls") and `src/tests.rs`; SGLang
//! `function_call/gpt_oss_detector.py`.

use serde_json::Value;

use super::Format;
use super::json::{arguments_of, read_value, repairs_of};
use super::reading::{Block, Found, Reading};

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const ENDS: [&str; 3] = ["<|call|>", "<|end|>", "<|return|>"];

/// The longest header, in bytes.
const MAX_HEADER: usize = 256;

pub(super) fn read(reading: &Reading<'_>, start: usize, after: usize) -> Block {
    let scan = &reading.scan;
    let message = scan.find(MESSAGE, after);
    let next = next_message(reading, after, false);
    let message = message.filter(|at| *at < next && at - start <= MAX_HEADER);
    let Some(message) = message else {
        let header = &reading.text()[start..next.min(floor(reading.text(), start + MAX_HEADER))];
        scan.walked(header.len());
        return match recipient_of(header) {
            Some(recipient) => {
                let (what, name) = ((Format::Harmony, start), Some(recipient.to_owned()));
                let reason = format!("{MESSAGE} is missing");
                let broken = reading.broken(what, name, reason, after, &ENDS);
                reading.broken_block(Vec::new(), broken)
            }
            None => Block::empty(after),
        };
    };
    let header = &reading.text()[start..message];
    scan.walked(header.len());
    let content = message + MESSAGE.len();
    let end = next_message(reading, content, true);
    if !is_models(header) {
        return Block::empty(end);
    }
    match recipient_of(header) {
        Some(recipient) => read_call(reading, start, content, recipient),
        None if channel_of(header) == Some("analysis") => {
            // Cut off, or ended by the stop token of a whole answer.
            let unclosed = end >= scan.end && !ENDS.iter().any(|m| reading.text().ends_with(m));
            reading.unclosed_thinking.set(reading.unclosed_thinking.get() || unclosed);
            Block::empty(end)
        }
        None => Block::empty(content),
    }
}

fn read_call(reading: &Reading<'_>, start: usize, content: usize, recipient: &str) -> Block {
    let scan = &reading.scan;
    let name = recipient.to_owned();
    let at = scan.skip_space(content);
    let ended = |at| ENDS.into_iter().chain([START, CHANNEL]).find(|mark| scan.is_at(at, mark));
    let fail = |reason: String, from| {
        let broken =
            reading.broken((Format::Harmony, start), Some(name.clone()), reason, from, &ENDS);
        reading.broken_block(Vec::new(), broken)
    };
    let (value, end, mut repairs) = match ended(at) {
        Some(_) => (Value::Null, at, Vec::new()),
        None if scan.is_over(at) => {
            return fail(format!("the text ends behind {MESSAGE}"), content);
        }
        None => match read_value(reading, at, &ENDS) {
            Ok((value, end, mends)) => (value, end, repairs_of(mends)),
            Err((_, reason)) => return fail(reason, at),
        },
    };
    let (arguments, of_arguments) = arguments_of(value);
    repairs.extend(of_arguments);
    let after = scan.skip_space(end);
    let end = match ended(after) {
        Some(mark) if ENDS.contains(&mark) => after + mark.len(),
        Some(_) => after,
        None if scan.is_over(after) => end,
        None => {
            return fail(format!("something follows the arguments {}", reading.at(after)), after);
        }
    };
    Block::of(Found {
        format: Format::Harmony,
        name,
        arguments,
        untyped: Vec::new(),
        id: None,
        repairs,
        span: (start, end),
    })
}

/// Where the message that `from` is in ends: behind its end mark, at the next header, or with the
/// text. In a header, a channel is no new message.
fn next_message(reading: &Reading<'_>, from: usize, in_content: bool) -> usize {
    let scan = &reading.scan;
    let ends = ENDS.iter().filter_map(|mark| scan.find(mark, from).map(|at| at + mark.len()));
    let starts = [START, CHANNEL].into_iter().filter(|mark| in_content || *mark == START);
    let starts = starts.filter_map(|mark| scan.find(mark, from));
    ends.chain(starts).min().unwrap_or(reading.text().len())
}

/// Whether a header is of the model itself: it names no author, or the assistant.
fn is_models(header: &str) -> bool {
    match header.strip_prefix(START) {
        None => true,
        Some(role) => role.starts_with("assistant") || role.starts_with('<'),
    }
}

/// The `f` of `to=functions.f` in a header, unless it names a participant of the conversation.
fn recipient_of(header: &str) -> Option<&str> {
    let (_, to) = header.split_once("to=")?;
    let end = to.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(to.len());
    let recipient = to[..end].strip_prefix("functions.").unwrap_or(&to[..end]);
    (!matches!(recipient, "" | "assistant" | "user" | "all" | "system")).then_some(recipient)
}

fn channel_of(header: &str) -> Option<&str> {
    let (_, channel) = header.split_once(CHANNEL)?;
    let end = channel.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(channel.len());
    Some(&channel[..end])
}

/// `at`, or the boundary of a character before it.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
