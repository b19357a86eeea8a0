//! Tool calls in the form of OpenAI's chat API, which many recorded conversations have.
//!
//! Reads one element of a message's `tool_calls`; messages, streams and results are the caller's.

use serde_json::Value;
use thiserror::Error;

use super::{JsonObject, ToolCall, python_json};

impl ToolCall {
    /// Reads one element of an assistant message's `tool_calls`:
    /// `{"id": "c1", "type": "function", "function": {"name": "bash", "arguments": "{…}"}}`.
    ///
    /// `arguments` is JSON text in [Python's dialect](python_json), or the object itself; missing,
    /// `null` and blank text mean no arguments. Text that is not JSON is kept as a string, so that
    /// the executor answers the call as invalid and the model learns why. `id` is kept, or is a new
    /// UUIDv4 where it is missing or empty. `type` may be missing.
    ///
    /// # Errors
    /// Where there is no function call to answer at all: see [`OpenAiCallError`].
    pub fn from_openai(value: &Value) -> Result<ToolCall, OpenAiCallError> {
        let call = value.as_object().ok_or(OpenAiCallError::NotAnObject)?;
        match call.get("type") {
            None | Some(Value::Null) => {}
            Some(Value::String(kind)) if kind == "function" => {}
            Some(kind) => return Err(OpenAiCallError::OtherType(kind.clone())),
        }
        let function = call.get("function").and_then(Value::as_object);
        let function = function.ok_or(OpenAiCallError::NoFunction)?;
        let name = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.ok_or(OpenAiCallError::NoName)?;
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => Value::Object(JsonObject::new()),
            Some(Value::String(text)) if text.trim().is_empty() => Value::Object(JsonObject::new()),
            Some(Value::String(text)) => {
                python_json::parse(text).unwrap_or_else(|_| Value::String(text.clone()))
            }
            Some(other) => other.clone(),
        };
        let id = call.get("id").and_then(super::text::id_text);
        let mut call = ToolCall::new(name, arguments);
        if let Some(id) = id {
            call.uniq_id = id;
        }
        Ok(call)
    }
}

/// Why a value is not a call of a function in OpenAI's form.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum OpenAiCallError {
    /// The call is not a JSON object.
    #[error("a tool call must be a JSON object")]
    NotAnObject,
    /// The call's `type` is not `"function"` but this.
    #[error("a tool call's `type` must be \"function\", got {0}")]
    OtherType(Value),
    /// `function` is missing or not an object.
    #[error("a tool call's `function` must be a JSON object")]
    NoFunction,
    /// `function.name` is missing, empty or not a string.
    #[error("a tool call's `function.name` must be a string that is not empty")]
    NoName,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments_of(arguments: Value) -> Value {
        let call = json!({"function": {"name": "f", "arguments": arguments}});
        ToolCall::from_openai(&call).unwrap().arguments
    }

    #[test]
    fn a_call_is_read_with_its_id() {
        let call = ToolCall::from_openai(&json!({
            "id": "call_1",
            "type": "function",
            "function": {"name": "bash", "arguments": "{\"command\": \"ls\"}"},
        }));
        let expected = ToolCall::new("bash", json!({"command": "ls"})).with_uniq_id("call_1");
        assert_eq!(call, Ok(expected));
    }

    #[test]
    fn a_call_without_an_id_gets_a_uuid() {
        for id in [json!(null), json!("")] {
            let call = json!({"id": id, "function": {"name": "f"}});
            let uniq_id = ToolCall::from_openai(&call).unwrap().uniq_id;
            assert_eq!(uuid::Uuid::parse_str(&uniq_id).unwrap().get_version_num(), 4);
        }
    }

    #[test]
    fn arguments_may_be_text_an_object_or_left_out() {
        assert_eq!(arguments_of(json!("{\"x\": NaN}")), json!({"x": null}));
        assert_eq!(arguments_of(json!({"x": 1})), json!({"x": 1}));
        assert_eq!(arguments_of(json!(null)), json!({}));
        assert_eq!(arguments_of(json!(" \n")), json!({}));
        let call = json!({"function": {"name": "f"}});
        assert_eq!(ToolCall::from_openai(&call).unwrap().arguments, json!({}));
    }

    #[test]
    fn arguments_that_are_no_object_are_kept_for_the_executor_to_answer() {
        assert_eq!(arguments_of(json!("{\"x\": ")), json!("{\"x\": "));
        assert_eq!(arguments_of(json!("[1]")), json!([1]));
        assert_eq!(arguments_of(json!(5)), json!(5));
    }

    #[test]
    fn what_is_no_function_call_is_an_error() {
        for (value, error) in [
            (json!([]), OpenAiCallError::NotAnObject),
            (json!({"type": "custom"}), OpenAiCallError::OtherType(json!("custom"))),
            (json!({"type": "function"}), OpenAiCallError::NoFunction),
            (json!({"function": "bash"}), OpenAiCallError::NoFunction),
            (json!({"function": {"arguments": "{}"}}), OpenAiCallError::NoName),
            (json!({"function": {"name": ""}}), OpenAiCallError::NoName),
            (json!({"function": {"name": 5}}), OpenAiCallError::NoName),
        ] {
            assert_eq!(ToolCall::from_openai(&value), Err(error));
        }
    }
}
