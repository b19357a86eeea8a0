//! A tool call as a model asks for it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::JsonObject;
use super::format::CallOrigin;

/// One call of one tool, as a model asked for it.
///
/// `arguments` may be any JSON value, since a model may write any; a call whose arguments are not
/// an object is answered [`Outcome::InvalidCall`](super::Outcome::InvalidCall) by the executor and
/// goes no further.
///
/// In JSON only `name` has to be given: `{"name": "bash", "arguments": {"command": "ls"},
/// "timeout_s": 30}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ToolCall {
    /// The tool's name, as the model wrote it.
    pub name: String,
    /// The arguments. An object, unless the model erred. In JSON `{}` unless given.
    #[serde(default = "no_arguments")]
    pub arguments: Value,
    /// The caller's id of this call; the result carries the same. UUIDv4 unless given.
    #[serde(default = "new_uniq_id")]
    pub uniq_id: String,
    /// The text that the call was parsed from, without surrounding white space. Empty for a call
    /// that was not parsed from text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub raw_text: String,
    /// How long it may run, in place of what its argument `timeout` says. Clamped to
    /// [`MIN_TIMEOUT`](super::MIN_TIMEOUT)…[`MAX_TIMEOUT`](super::MAX_TIMEOUT), 1…600 s; the
    /// result's metadata have `timeout_s` and `timeout_asked` where another limit was in force than
    /// the call asked for. Defaults to none. In JSON `timeout_s`, in seconds.
    #[serde(rename = "timeout_s", with = "crate::seconds::option", default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// How the call was read, where [`parse`](Self::parse) or a
    /// [`CallParser`](crate::format::CallParser) read it from a text or a message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<CallOrigin>>,
}

fn no_arguments() -> Value {
    Value::Object(JsonObject::new())
}

fn new_uniq_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl ToolCall {
    /// A call with a fresh UUIDv4 as its `uniq_id`.
    pub fn new(name: impl Into<String>, arguments: impl Into<Value>) -> Self {
        Self {
            name: name.into(),
            arguments: arguments.into(),
            uniq_id: new_uniq_id(),
            raw_text: String::new(),
            timeout: None,
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

    /// The same call with another [`timeout`](Self::timeout).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_enough_and_what_was_written_is_read_again() {
        let call: ToolCall = serde_json::from_str(r#"{"name": "ls"}"#).unwrap();
        assert_eq!(call.arguments, serde_json::json!({}));
        assert_eq!((call.uniq_id.len(), call.timeout), (36, None));
        let call = ToolCall::bash("ls").with_uniq_id("u").with_timeout(Duration::from_millis(1500));
        let json = serde_json::to_string(&call).unwrap();
        assert_eq!(
            json,
            r#"{"name":"bash","arguments":{"command":"ls"},"uniq_id":"u","timeout_s":1.5}"#
        );
        assert_eq!(serde_json::from_str::<ToolCall>(&json).unwrap(), call);
    }

    #[test]
    fn what_no_call_has_is_refused_by_name() {
        for (json, words) in [
            (r#"{"name": "ls", "timeout": 5}"#, "unknown field `timeout`"),
            (r#"{"arguments": {}}"#, "missing field `name`"),
            (r#"{"name": "ls", "timeout_s": -1}"#, "a number of seconds from 0"),
        ] {
            let error = serde_json::from_str::<ToolCall>(json).unwrap_err().to_string();
            assert!(error.contains(words), "{json}: {error}");
        }
    }
}
