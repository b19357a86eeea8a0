//! One call as the object that it is in a structured message.

use serde_json::Value;

use super::MessageForm;
use crate::tool::format::json::parts_of;
use crate::tool::format::{CallForm, CallOrigin, UnreadableCall};
use crate::tool::{ToolCall, schema};

impl ToolCall {
    /// A call in JSON, of any of these forms, which its keys tell apart:
    ///
    /// ```text
    /// {"name": "bash", "arguments": {…}, "uniq_id": "c1"}
    /// {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": "{…}"}}
    /// {"type": "function_call", "call_id": "c1", "name": "bash", "arguments": "{…}"}
    /// {"type": "tool_use", "id": "c1", "name": "bash", "input": {…}}
    /// ```
    ///
    /// Arguments may be JSON text; text that is no JSON object is kept, so that the executor
    /// answers the call as invalid and the model learns why. The id is kept, or is a new UUIDv4.
    ///
    /// # Errors
    /// There is no call to answer: it is no object, of another type, or without a name.
    pub fn from_json(call: &Value) -> Result<ToolCall, UnreadableCall> {
        let is = |key: &str| call.get(key).is_some_and(|value| !value.is_null());
        let kind = call.get("type").and_then(Value::as_str);
        let form = match kind {
            Some("tool_use") => MessageForm::Anthropic,
            Some("function_call") => MessageForm::OpenAiResponses,
            _ if is("function") => MessageForm::OpenAi,
            _ if is("input") => MessageForm::Anthropic,
            _ if is("call_id") => MessageForm::OpenAiResponses,
            _ if call.get("arguments").is_some_and(Value::is_string) => {
                MessageForm::OpenAiFunctionCall
            }
            _ => MessageForm::OpenAi,
        };
        if let Some(kind) = call.get("type").filter(|kind| !kind.is_null())
            && !matches!(kind.as_str(), Some("tool_use" | "function_call" | "function"))
        {
            let reason = format!(
                "its \"type\" is {kind}; it must be \"function\", \"function_call\" or \"tool_use\""
            );
            let name = call.get("name").and_then(Value::as_str).map(str::to_owned);
            let form = CallForm::Message(form);
            return Err(UnreadableCall { form, place: None, name, reason });
        }
        // A call of our own is of no message form.
        let is_ours = kind.is_none() && form == MessageForm::OpenAi && !is("function");
        let mut call = of_form(call.clone(), form)?;
        if is_ours {
            call.origin = None;
        }
        Ok(call)
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
    let (parts, repair) = parts_of(call).map_err(|(name, reason)| unreadable(name, reason))?;
    let mut call = ToolCall::new(parts.name, parts.arguments);
    if let Some(id) = parts.id {
        call.uniq_id = id;
    }
    let mut origin = CallOrigin::new(CallForm::Message(form), None);
    origin.repairs = repair.filter(|_| !text_is_usual).into_iter().collect();
    call.origin = Some(Box::new(origin));
    Ok(call)
}
