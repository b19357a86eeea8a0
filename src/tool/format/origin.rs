//! What a call remembers of the text or message that it was read from.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Format, MessageForm};

/// The form that a call was in. `Display` and serde use the name of the format or message form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallForm {
    /// It stood in the model's text.
    Text(Format),
    /// It was a part of a structured message.
    Message(MessageForm),
}

impl CallForm {
    /// The kebab-case name of the format or the message form.
    pub const fn as_str(self) -> &'static str {
        match self {
            CallForm::Text(format) => format.as_str(),
            CallForm::Message(form) => form.as_str(),
        }
    }
}

impl Serialize for CallForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for CallForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let message = MessageForm::ALL.into_iter().find(|form| form.as_str() == name);
        let text = || Format::ALL.into_iter().find(|format| format.as_str() == name);
        message.map(CallForm::Message).or_else(|| text().map(CallForm::Text)).ok_or_else(|| {
            de::Error::custom(format_args!("no form of a tool call is named {name:?}"))
        })
    }
}

impl fmt::Display for CallForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A small damage that left only one reading, and was mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Repair {
    /// A string held a line break, or another control character, that should have been escaped.
    RawControlCharacter,
    /// A comma stood before a closing bracket.
    TrailingComma,
    /// The call was complete, and the mark that closes it was missing.
    MissingEndMark,
    /// The arguments were JSON text in a string where an object belongs.
    ArgumentsAsText,
}

impl Repair {
    /// The repair's snake-case name, as in the metadata `call_repairs` of a result.
    pub const fn as_str(self) -> &'static str {
        match self {
            Repair::RawControlCharacter => "raw_control_character",
            Repair::TrailingComma => "trailing_comma",
            Repair::MissingEndMark => "missing_end_mark",
            Repair::ArgumentsAsText => "arguments_as_text",
        }
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where in a text a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Place {
    /// The first byte, counted from 0.
    pub start: usize,
    /// The byte after the last one.
    pub end: usize,
    /// The line of the first byte, counted from 1.
    pub line: usize,
    /// The character of that line, counted from 1.
    pub column: usize,
}

/// How a call was read. A call that was not read from a text or a message has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CallOrigin {
    /// The form that it was in.
    pub form: CallForm,
    /// Where it stood in the text. `None` for a part of a structured message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What was mended in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repairs: Vec<Repair>,
    /// The arguments whose form has only text, so that they are strings here. The executor gives
    /// them the types of the tool's schema, unless the parser knew the tool and did so already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untyped: Vec<String>,
    /// Why it cannot be read, in one line; `None` for a call. The executor answers one that cannot
    /// be read as [`Outcome::InvalidCall`](crate::Outcome::InvalidCall), in its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

impl CallOrigin {
    /// The origin of a call that was read without damage.
    pub(super) fn new(form: CallForm, place: Option<Place>) -> Self {
        Self { form, place, repairs: Vec::new(), untyped: Vec::new(), unreadable: None }
    }

    /// What the executor answers to a call that cannot be read: where it is, what is wrong, and
    /// what would be right. `None` for a call that was read.
    pub fn error(&self) -> Option<String> {
        let reason = self.unreadable.as_ref()?;
        Some(unreadable_error(self.form, self.place, reason))
    }
}

/// A call that cannot be read, where the policy is to refuse the whole text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", unreadable_error(*form, *place, reason))]
#[non_exhaustive]
pub struct UnreadableCall {
    /// The form that its marks belong to.
    pub form: CallForm,
    /// Where it stands in the text. `None` for a part of a structured message.
    pub place: Option<Place>,
    /// The tool's name, where it could be read.
    pub name: Option<String>,
    /// Why it cannot be read, in one line.
    pub reason: String,
}

/// The answer to a call that cannot be read: where it is, what is wrong, what would be right.
fn unreadable_error(form: CallForm, place: Option<Place>, reason: &str) -> String {
    let place = place.map(|Place { line, column, .. }| format!("at line {line}, column {column} "));
    let right = match form {
        CallForm::Text(format) => format!(". A call looks like this: {}", format.example()),
        CallForm::Message(_) => String::new(),
    };
    format!("The tool call {}could not be read: {reason}{right}", place.unwrap_or_default())
}
