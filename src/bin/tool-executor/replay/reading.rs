//! How lines are read: the format of calls, the tools, the policy, the default spec. And what was
//! seen beside calls, to be said of a chat that has none.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;
use tool_executor::format::{CallParser, Format, MessageError, UnreadableCalls};
use tool_executor::{JsonObject, ToolCall, ToolRegistry};

/// How lines are read.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallReading {
    /// The format of calls in text.
    pub(crate) format: Format,
    /// What becomes of a call that cannot be read.
    pub(crate) unreadable: UnreadableCalls,
    /// The tools that the executor has.
    pub(crate) registry: ToolRegistry,
    /// What a trajectory begins with, where its line says nothing else.
    pub(crate) spec: JsonObject,
}

impl CallReading {
    /// The calls of a message that a model wrote, whose text is `text`. `seen` is told of the
    /// message.
    ///
    /// # Errors
    /// The message is not one, or a call cannot be read and the policy is to refuse it.
    pub(super) fn calls(
        &self,
        message: &Value,
        text: &str,
        seen: &mut Seen,
    ) -> Result<Vec<ToolCall>, MessageError> {
        // What is skipped is counted, so it is read first.
        let policy = match self.unreadable {
            UnreadableCalls::Error => UnreadableCalls::Error,
            _ => UnreadableCalls::Answer,
        };
        let parser = CallParser::new(self.format).registry(&self.registry).unreadable(policy);
        let parsed = parser.parse_message(message)?;
        let mut calls = parsed.calls;
        seen.model_messages += 1;
        seen.unclosed_thinking += u64::from(parsed.unclosed_thinking);
        if calls.is_empty()
            && let Some(format) = Format::guess(text)
        {
            *seen.looks_like.entry(format).or_default() += 1;
        }
        if self.unreadable == UnreadableCalls::Skip {
            let before = calls.len();
            calls.retain(|call| !call.is_unreadable());
            seen.skipped += (before - calls.len()) as u64;
        }
        Ok(calls)
    }
}

/// What models wrote that gave no call. `Display` says it in a phrase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The messages that a model wrote.
    pub(crate) model_messages: u64,
    /// Of those without a call, how many look like each format.
    pub(crate) looks_like: BTreeMap<Format, u64>,
    /// The messages that end while the model still thinks.
    pub(crate) unclosed_thinking: u64,
    /// The calls that could not be read and were left out.
    pub(crate) skipped: u64,
}

impl Seen {
    /// Adds what was seen elsewhere.
    pub(crate) fn add(&mut self, other: &Seen) {
        self.model_messages += other.model_messages;
        self.unclosed_thinking += other.unclosed_thinking;
        self.skipped += other.skipped;
        for (format, count) in &other.looks_like {
            *self.looks_like.entry(*format).or_default() += count;
        }
    }

    /// Whether what was seen may have been meant as calls.
    pub(crate) fn is_suspicious(&self) -> bool {
        !self.looks_like.is_empty() || self.unclosed_thinking > 0 || self.skipped > 0
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model_messages, looks_like, unclosed_thinking, skipped } = self;
        let of = |count: u64, one: &str, more: &str| match count {
            1 => format!("1 {one}"),
            _ => format!("{count} {more}"),
        };
        write!(f, "{}", of(*model_messages, "message of a model", "messages of a model"))?;
        let mut separator = ": ";
        for (format, count) in looks_like {
            let look = of(*count, "looks", "look");
            write!(f, "{separator}{look} like {format}, which --format {format} reads")?;
            separator = "; ";
        }
        if *unclosed_thinking > 0 {
            let end = of(*unclosed_thinking, "ends", "end");
            write!(f, "{separator}{end} while the model still thinks")?;
            separator = "; ";
        }
        if *skipped > 0 {
            let calls = of(*skipped, "call", "calls");
            write!(f, "{separator}{calls} could not be read and were skipped")?;
        }
        if !self.is_suspicious() {
            f.write_str(", and nothing in them looks like one")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_messages_look_like_is_told_with_the_flag_that_reads_it() {
        let mut seen = Seen { model_messages: 40, ..Seen::default() };
        let told = "40 messages of a model, and nothing in them looks like one";
        assert_eq!(seen.to_string(), told);
        seen.looks_like = [(Format::FencedBash, 31), (Format::Gemma, 1)].into();
        seen.unclosed_thinking = 2;
        seen.skipped = 3;
        assert_eq!(
            seen.to_string(),
            "40 messages of a model: 1 looks like gemma, which --format gemma reads; 31 look like \
             fenced-bash, which --format fenced-bash reads; 2 end while the model still thinks; 3 \
             calls could not be read and were skipped"
        );
        let mut twice = seen.clone();
        twice.add(&seen);
        assert!(twice.to_string().starts_with("80 messages of a model: 2 look like gemma"));
        assert_eq!((twice.looks_like[&Format::FencedBash], twice.skipped), (62, 6));
    }

    #[test]
    fn what_is_skipped_is_counted_and_what_is_refused_is_an_error() {
        let text = "<tool_call>{bash}</tool_call><tool_call>{\"name\": \"bash\"}</tool_call>";
        let message = json!({"role": "assistant", "content": text});
        for (unreadable, expected) in [
            (UnreadableCalls::Answer, Some((2, 0))),
            (UnreadableCalls::Skip, Some((1, 1))),
            (UnreadableCalls::Error, None),
        ] {
            let reading = CallReading { unreadable, ..CallReading::default() };
            let mut seen = Seen::default();
            let calls = reading.calls(&message, text, &mut seen);
            let found = calls.ok().map(|calls| (calls.len(), seen.skipped));
            assert_eq!(found, expected, "{unreadable}");
        }
    }
}
