//! One call as the object that it is in a structured message.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::MessageForm;
use crate::tool::format::json::parts_of;
use crate::tool::format::{CallForm, CallOrigin, Repair, UnreadableCall};
use crate::tool::{ToolCall, schema};

impl MessageForm {
    /// The form of a call that is a JSON object, by its keys; `None` for one of our own, or for
    /// what is no call.
    pub fn of_call(call: &Value) -> Option<MessageForm> {
        let is = |key: &str| call.get(key).is_some_and(|value| !value.is_null());
        Some(match call.get("type").and_then(Value::as_str) {
            Some("tool_use") => MessageForm::Anthropic,
            Some("function_call") => MessageForm::OpenAiResponses,
            Some(_) => MessageForm::OpenAi,
            None if is("function") => MessageForm::OpenAi,
            None if is("input") => MessageForm::Anthropic,
            None if is("call_id") => MessageForm::OpenAiResponses,
            None if call.get("arguments").is_some_and(Value::is_string) => {
                MessageForm::OpenAiFunctionCall
            }
            None => return None,
        })
    }
}

/// What our own calls have besides, which is kept in every form.
#[derive(Deserialize)]
struct Extras {
    #[serde(default, rename = "timeout_s", with = "crate::seconds::option")]
    timeout: Option<Duration>,
    #[serde(default)]
    raw_text: String,
}

impl ToolCall {
    /// A call in JSON, of any of these forms, which its keys tell apart
    /// ([`MessageForm::of_call`]):
    ///
    /// ```text
    /// {"name": "bash", "arguments": {…}, "uniq_id": "c1"}
    /// {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": "{…}"}}
    /// {"type": "function_call", "call_id": "c1", "name": "bash", "arguments": "{…}"}
    /// {"type": "tool_use", "id": "c1", "name": "bash", "input": {…}}
    /// {"name": "bash", "arguments": "{…}"}
    /// ```
    ///
    /// Arguments may be JSON text; text that is no JSON object is kept, so that the executor
    /// answers the call as invalid and the model learns why. The id is kept, or is a new UUIDv4.
    /// `timeout_s` and `raw_text` are kept in each form. What serde wrote of a call that was read
    /// ([`ToolCall::origin`]) is that call again, one that cannot be read too.
    ///
    /// # Errors
    /// There is no call to answer: it is no object, of another type, or without a name.
    pub fn from_json(call: &Value) -> Result<ToolCall, UnreadableCall> {
        let form = MessageForm::of_call(call);
        let unreadable = |reason: String| {
            let name = call.get("name").and_then(Value::as_str).map(str::to_owned);
            let form = CallForm::Message(form.unwrap_or(MessageForm::OpenAi));
            UnreadableCall { form, place: None, name, reason }
        };
        if call.get("origin").is_some_and(|origin| !origin.is_null()) {
            return ToolCall::deserialize(call).map_err(|error| unreadable(error.to_string()));
        }
        if let Some(kind) = call.get("type").filter(|kind| !kind.is_null())
            && !matches!(kind.as_str(), Some("tool_use" | "function_call" | "function"))
        {
            return Err(unreadable(format!(
                "its \"type\" is {kind}; it must be \"function\", \"function_call\" or \"tool_use\""
            )));
        }
        let mut read = of_form(call.clone(), form.unwrap_or(MessageForm::OpenAi))?;
        let extras = Extras::deserialize(call).map_err(|error| unreadable(error.to_string()))?;
        (read.timeout, read.raw_text) = (extras.timeout, extras.raw_text);
        // A call of our own is of no message form.
        if form.is_none() {
            read.origin = None;
        }
        Ok(read)
    }
}

/// The call that is an object of a known form.
pub(super) fn of_form(call: Value, form: MessageForm) -> Result<ToolCall, UnreadableCall> {
    let text_is_usual = !matches!(form, MessageForm::Anthropic | MessageForm::ShareGpt);
    let unreadable =
        |name, reason| UnreadableCall { form: CallForm::Message(form), place: None, name, reason };
    if !call.is_object() {
        let reason = format!("a call must be a JSON object, got {}", schema::kind_of(&call));
        return Err(unreadable(None, reason));
    }
    let (parts, repairs) = parts_of(call).map_err(|(name, reason)| unreadable(name, reason))?;
    let mut call = ToolCall::new(parts.name, parts.arguments);
    if let Some(id) = parts.id {
        call.uniq_id = id;
    }
    let mut origin = CallOrigin::new(CallForm::Message(form), None);
    let is_usual = |repair: &Repair| text_is_usual && *repair == Repair::ArgumentsAsText;
    origin.repairs = repairs.into_iter().filter(|repair| !is_usual(repair)).collect();
    call.origin = Some(Box::new(origin));
    Ok(call)
}
