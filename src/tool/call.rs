//! A tool call as a model asks for it.

use serde_json::Value;

use super::JsonObject;
use super::format::CallOrigin;

/// One call of one tool, as a model asked for it.
///
/// `arguments` may be any JSON value, since a model may write any; a call whose arguments are not
/// an object is answered [`Outcome::InvalidCall`](super::Outcome::InvalidCall) by the executor and
/// goes no further.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// The tool's name, as the model wrote it.
    pub name: String,
    /// The arguments. An object, unless the model erred.
    pub arguments: Value,
    /// The caller's id of this call; the result carries the same. UUIDv4 unless given.
    pub uniq_id: String,
    /// The text that the call was parsed from, without surrounding white space. Empty for a call
    /// that was not parsed from text.
    pub raw_text: String,
    /// How the call was read, where [`parse`](Self::parse) or a
    /// [`CallParser`](super::format::CallParser) read it from a text or a message.
    pub origin: Option<Box<CallOrigin>>,
}

impl ToolCall {
    /// A call with a fresh UUIDv4 as its `uniq_id`.
    pub fn new(name: impl Into<String>, arguments: impl Into<Value>) -> Self {
        Self {
            name: name.into(),
            arguments: arguments.into(),
            uniq_id: uuid::Uuid::new_v4().to_string(),
            raw_text: String::new(),
            origin: None,
        }
    }

    /// A call of `bash` that runs `command`.
    pub fn bash(command: impl Into<String>) -> Self {
        let mut arguments = JsonObject::new();
        arguments.insert("command".to_owned(), Value::String(command.into()));
        Self::new("bash", arguments)
    }

    /// The same call under the caller's own id.
    #[must_use]
    pub fn with_uniq_id(mut self, uniq_id: impl Into<String>) -> Self {
        self.uniq_id = uniq_id.into();
        self
    }
}
