//! Reading what models write: tool calls in text and in messages, of every family in use.
//!
//! # The design
//! [`CallParser`] reads a whole message and gives [`Parsed`]: its calls in their order. What is a
//! call by its marks and cannot be read is one of them: a [`ToolCall`] whose
//! [`CallOrigin::unreadable`] says why, which the executor answers as
//! [`Outcome::InvalidCall`](crate::Outcome::InvalidCall) in its turn. So every way into the
//! executor – the library, C, Python, HTTP, `replay` – answers such calls without a rule of its
//! own, and no half of a turn runs while the other half vanishes. [`UnreadableCalls`] can also
//! leave them out, or refuse the message.
//!
//! ```text
//! text ─► reading: one pass from mark to mark ─► a family's reader ─► Found | Broken ─► ToolCall
//!           marks, scan, think                    hermes, qwen, glm,      typing: the types of the
//!           unmarked: JSON, [f(x=1)]              llama, mistral, …       schema, where known
//! ```
//!
//! - **Which text is a call.** A marked form counts wherever it stands, but not in thinking
//!   (`think`) and not in backticks (`` `<tool_call>` ``). An unmarked one counts if it is the
//!   whole message and names a registered tool (`unmarked`). Fenced blocks count only if their
//!   format is asked for. A file may hold several forms; [`Format::Auto`] reads them all.
//! - **Where a call ends.** JSON ends where its value ends, so a closing mark inside a string is
//!   text. Raw values end by the rules in `tags`.
//! - **Damage.** What leaves only one reading is mended and noted ([`Repair`]): a line break in a
//!   string, a comma too many, a missing closing mark at the end of the text or before the next
//!   mark, arguments as JSON text in a string. All else is unreadable. JSON that breaks off is not
//!   completed, and a raw value that is not closed is not run: what is missing is not known.
//! - **Types.** Forms with raw values say only strings. Where the tool is known its schema decides
//!   (`typing`): here, if the parser has a registry, else at the executor's door.
//! - **Bounds.** The pass is linear in the text; readers are not recursive on what a model nests,
//!   but for JSON and Python values, whose depth is bounded
//!   ([`MAX_DEPTH`](crate::python_json::MAX_DEPTH)). See `pass`.
//!
//! Whole messages only: a message that is still being generated is not read, since half a call is
//! a call that cannot be read. Text responses of a family (DeepSeek's `<｜tool▁output▁begin｜>`,
//! Kimi's `## Return of …`, Llama's `ipython` turns) are written by its chat template from a
//! `tool` message, not here: [`ToolResult::to_message`](crate::ToolResult::to_message) gives that
//! message.
//!
//! [`ToolCall::parse_from_text`] is apart: it finds exactly what the reference finds.

mod deepseek;
mod fenced;
mod gemma;
mod glm;
mod granite;
mod harmony;
mod hermes;
mod invoke;
mod json;
mod kimi;
mod kind;
mod llama;
mod marks;
mod messages;
mod minimax;
mod mistral;
mod origin;
mod pass;
mod python;
mod qwen;
mod reading;
mod scan;
mod tags;
#[cfg(test)]
mod tests;
mod think;
mod typing;
mod unmarked;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use self::reading::{Broken, Found, Item, Reading};
use super::{ToolCall, ToolRegistry, builtin};

pub use self::kind::{Format, UnknownName};
pub use self::messages::{MessageError, MessageForm, is_model_message};
pub use self::origin::{CallForm, CallOrigin, Place, Repair, UnreadableCall};
pub(crate) use self::typing::give_types;

/// What becomes of a call that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum UnreadableCalls {
    /// It is a call like the others, and the executor answers it as invalid, with the reason.
    #[default]
    Answer,
    /// It is left out.
    Skip,
    /// It is an error, and no call of its message is given.
    Error,
}

impl UnreadableCalls {
    /// The policy's name: `"answer"`, `"skip"` or `"error"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            UnreadableCalls::Answer => "answer",
            UnreadableCalls::Skip => "skip",
            UnreadableCalls::Error => "error",
        }
    }
}

impl fmt::Display for UnreadableCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for UnreadableCalls {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let all = [Self::Answer, Self::Skip, Self::Error];
        let names = all.map(Self::as_str);
        let found = all.into_iter().find(|policy| policy.as_str() == name);
        found.ok_or_else(|| UnknownName::new("policy for unreadable calls", name, &names))
    }
}

/// Reads tool calls from what a model wrote, by a format, the tools there are and a policy.
///
/// ```
/// use tool_executor::ToolRegistry;
/// use tool_executor::format::{CallParser, Format};
///
/// let registry = ToolRegistry::builtin();
/// let text = "<tool_call>\n<function=bash>\n<parameter=command>\nls\n</parameter>\n\
///     <parameter=timeout>\n5\n</parameter>\n</function>\n</tool_call>";
/// let parsed = CallParser::new(Format::Auto).registry(&registry).parse(text)?;
/// assert_eq!(parsed.calls[0].arguments, serde_json::json!({"command": "ls", "timeout": 5}));
/// # Ok::<(), tool_executor::format::UnreadableCall>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct CallParser<'r> {
    format: Format,
    registry: Option<&'r ToolRegistry>,
    unreadable: UnreadableCalls,
    /// Unmarked forms count whatever they name.
    any_name: bool,
}

/// The calls of a message.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Parsed {
    /// The calls in their order, those that cannot be read among them
    /// ([`ToolCall::is_unreadable`]).
    pub calls: Vec<ToolCall>,
    /// The message ends while the model still thinks, so that what it thought last holds no call.
    pub unclosed_thinking: bool,
}

impl IntoIterator for Parsed {
    type Item = ToolCall;
    type IntoIter = std::vec::IntoIter<ToolCall>;

    fn into_iter(self) -> Self::IntoIter {
        self.calls.into_iter()
    }
}

impl<'r> CallParser<'r> {
    /// A parser of a format, that knows the built-in tools by name and answers what it cannot read.
    pub fn new(format: Format) -> Self {
        Self { format, ..Self::default() }
    }

    /// The tools there are. They decide which unmarked forms are calls, and which types the
    /// arguments of forms with raw text have. Defaults to the names of the built-in tools; then the
    /// executor gives arguments their types.
    #[must_use]
    pub fn registry(mut self, registry: &'r ToolRegistry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// What becomes of a call that cannot be read. Defaults to [`UnreadableCalls::Answer`].
    #[must_use]
    pub fn unreadable(mut self, policy: UnreadableCalls) -> Self {
        self.unreadable = policy;
        self
    }

    /// The calls in a model's text, in their order. Does not block; the time is linear in the
    /// length of the text.
    ///
    /// # Errors
    /// The first call that cannot be read, under [`UnreadableCalls::Error`]. Never under the
    /// others.
    pub fn parse(&self, text: &str) -> Result<Parsed, UnreadableCall> {
        let reading = Reading::new(self, text);
        let mut calls = Vec::new();
        for item in reading.items() {
            match item {
                Item::Call(found) => calls.push(self.call(&reading, found)),
                Item::Broken(broken) => calls.extend(self.broken(&reading, broken)?),
            }
        }
        Ok(Parsed { calls, unclosed_thinking: reading.unclosed_thinking.get() })
    }

    fn call(&self, reading: &Reading<'_>, found: Found) -> ToolCall {
        let Found { format, name, arguments, untyped, id, repairs, span } = found;
        let place = reading.scan.place(span.0, span.1);
        let mut call = ToolCall::new(name, arguments);
        if let Some(id) = id {
            call.uniq_id = id;
        }
        call.raw_text = reading.text()[span.0..span.1].trim().to_owned();
        let mut origin = CallOrigin::new(CallForm::Text(format), Some(place));
        origin.repairs = repairs;
        origin.untyped = untyped;
        call.origin = Some(Box::new(origin));
        if let Some(tool) = self.registry.and_then(|registry| registry.get(&call.name)) {
            give_types(&mut call, &tool.schema);
        }
        call
    }

    fn broken(
        &self,
        reading: &Reading<'_>,
        broken: Broken,
    ) -> Result<Option<ToolCall>, UnreadableCall> {
        let Broken { format, name, reason, span } = broken;
        let form = CallForm::Text(format);
        let place = Some(reading.scan.place(span.0, span.1));
        let raw_text = reading.text()[span.0..span.1].trim();
        self.unreadable_call(UnreadableCall { form, place, name, reason }, raw_text)
    }

    /// A call that cannot be read, as the policy wants it.
    fn unreadable_call(
        &self,
        unreadable: UnreadableCall,
        raw_text: &str,
    ) -> Result<Option<ToolCall>, UnreadableCall> {
        match self.unreadable {
            UnreadableCalls::Answer => {
                let UnreadableCall { form, place, name, reason } = unreadable;
                let arguments = super::JsonObject::new();
                let mut call = ToolCall::new(name.unwrap_or_default(), arguments);
                call.raw_text = raw_text.to_owned();
                let mut origin = CallOrigin::new(form, place);
                origin.unreadable = Some(reason);
                call.origin = Some(Box::new(origin));
                Ok(Some(call))
            }
            UnreadableCalls::Skip => Ok(None),
            UnreadableCalls::Error => Err(unreadable),
        }
    }

    /// Whether a tool has this name.
    fn is_tool(&self, name: &str) -> bool {
        self.any_name
            || match self.registry {
                Some(registry) => registry.get(name).is_some(),
                None => builtin::is_name(name),
            }
    }
}

impl Format {
    /// The format that a text looks like: that of its first call, read with any name and in any
    /// fence. `None` where nothing in it looks like a call.
    ///
    /// For messages to people; a text that only looks like a call has none.
    pub fn guess(text: &str) -> Option<Format> {
        [Format::Auto, Format::FencedBash, Format::Gemma].into_iter().find_map(|format| {
            let parser = CallParser { any_name: true, ..CallParser::new(format) };
            let parsed = parser.parse(text).ok()?;
            match parsed.calls.first()?.origin.as_ref()?.form {
                CallForm::Text(format) => Some(format),
                CallForm::Message(_) => None,
            }
        })
    }
}

impl ToolCall {
    /// The calls in a model's text, in their order, of a format or of any ([`Format::Auto`]).
    ///
    /// A call that cannot be read is among them ([`is_unreadable`](Self::is_unreadable)), for the
    /// executor to answer. [`CallParser`] has more to set: the registered tools, and another
    /// policy.
    ///
    /// ```
    /// use tool_executor::ToolCall;
    /// use tool_executor::format::Format;
    ///
    /// let text = r#"Let me look. [TOOL_CALLS]bash[ARGS]{"command": "ls"}"#;
    /// let parsed = ToolCall::parse(text, Format::Auto);
    /// assert_eq!(parsed.calls[0].arguments["command"], "ls");
    /// ```
    pub fn parse(text: &str, format: Format) -> Parsed {
        // The default policy makes no error of anything.
        CallParser::new(format).parse(text).unwrap_or_default()
    }

    /// Whether this is a call that cannot be read, which the executor answers as invalid.
    pub fn is_unreadable(&self) -> bool {
        self.origin.as_ref().is_some_and(|origin| origin.unreadable.is_some())
    }
}
