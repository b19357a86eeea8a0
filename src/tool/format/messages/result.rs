//! A result as the message that answers its call.

use serde_json::{Value, json};

use super::MessageForm;
use crate::tool::ToolResult;

impl ToolResult {
    /// The result as a message of a form, with the id of its call:
    ///
    /// | form | message |
    /// |---|---|
    /// | `OpenAi` | `{"role": "tool", "tool_call_id": id, "content": text}` |
    /// | `OpenAiFunctionCall` | `{"role": "function", "content": text}`; `name` is the caller's to add, as there is no id |
    /// | `OpenAiResponses` | `{"type": "function_call_output", "call_id": id, "output": text}` |
    /// | `Anthropic` | `{"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": text}]}`, with `is_error` for a failure |
    /// | `ShareGpt` | `{"from": "tool", "value": "<tool_response>…</tool_response>"}` ([`to_xml`](Self::to_xml)) |
    ///
    /// The text is [`to_text`](Self::to_text). The results of one Anthropic turn belong into one
    /// message: put their blocks together.
    pub fn to_message(&self, form: MessageForm) -> Value {
        let id = self.uniq_id.as_deref().unwrap_or_default();
        match form {
            MessageForm::OpenAi => {
                json!({"role": "tool", "tool_call_id": id, "content": self.to_text()})
            }
            MessageForm::OpenAiFunctionCall => {
                json!({"role": "function", "content": self.to_text()})
            }
            MessageForm::OpenAiResponses => {
                json!({"type": "function_call_output", "call_id": id, "output": self.to_text()})
            }
            MessageForm::Anthropic => {
                let mut block =
                    json!({"type": "tool_result", "tool_use_id": id, "content": self.to_text()});
                if !self.success {
                    block["is_error"] = Value::Bool(true);
                }
                json!({"role": "user", "content": [block]})
            }
            MessageForm::ShareGpt => json!({"from": "tool", "value": self.to_xml()}),
        }
    }

    /// What a model is to read of the result: its output, and behind it, on a line of its own, what
    /// went wrong, as `Error: Exit code: 3`.
    pub fn to_text(&self) -> String {
        match (self.output.is_empty(), self.error.is_empty()) {
            (_, true) => self.output.clone(),
            (true, false) => format!("Error: {}", self.error),
            (false, false) => {
                let line_end = if self.output.ends_with('\n') { "" } else { "\n" };
                format!("{}{line_end}Error: {}", self.output, self.error)
            }
        }
    }
}
