//! Calls and results as parts of structured messages.
//!
//! | form | a call | its result |
//! |---|---|---|
//! | OpenAI chat | `tool_calls` of an assistant message | `role: tool` with `tool_call_id` |
//! | the same, legacy | `function_call` of an assistant message | `role: function` |
//! | OpenAI Responses | an item `function_call` | an item `function_call_output` |
//! | Anthropic | a content block `tool_use` | a content block `tool_result` |
//! | ShareGPT | a turn `function_call`, or text of a turn `gpt` | a turn `tool`, `<tool_response>` |
//!
//! [`CallParser::parse_message`] reads one message, item or turn; a message without structured
//! calls may have calls in its text. What servers run themselves (`server_tool_use`,
//! `web_search_call`, `computer_call`, …) is not a call of ours, nor is a `custom_tool_call`,
//! whose input is no JSON.
//!
//! Sources: OpenAI's API reference (Chat Completions, Responses), Anthropic's Messages API
//! reference, LLaMA-Factory `data/README.md` (ShareGPT) and Nous Research's
//! hermes-function-calling-v1.

mod call;
mod result;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

use super::json::{self, Wrapping};
use super::reading::{Item, Reading};
use super::{
    CallForm, CallOrigin, CallParser, Format, Parsed, UnknownName, UnreadableCall, give_types,
};
use crate::tool::{ToolCall, schema};

/// A form of structured messages that hold calls and results.
///
/// `Display`, `FromStr` and serde use the kebab-case name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum MessageForm {
    /// OpenAI's chat messages: `tool_calls`, `role: tool`.
    OpenAi,
    /// OpenAI's chat messages before `tool_calls`: `function_call`, `role: function`.
    OpenAiFunctionCall,
    /// The items of OpenAI's Responses: `function_call`, `function_call_output`.
    OpenAiResponses,
    /// Anthropic's content blocks: `tool_use`, `tool_result`.
    Anthropic,
    /// The turns of ShareGPT: `from` and `value`.
    ShareGpt,
}

impl MessageForm {
    /// Every form.
    pub const ALL: [MessageForm; 5] = [
        MessageForm::OpenAi,
        MessageForm::OpenAiFunctionCall,
        MessageForm::OpenAiResponses,
        MessageForm::Anthropic,
        MessageForm::ShareGpt,
    ];

    /// The form's kebab-case name: `"openai"`, ….
    pub const fn as_str(self) -> &'static str {
        match self {
            MessageForm::OpenAi => "openai",
            MessageForm::OpenAiFunctionCall => "openai-function-call",
            MessageForm::OpenAiResponses => "openai-responses",
            MessageForm::Anthropic => "anthropic",
            MessageForm::ShareGpt => "sharegpt",
        }
    }
}

impl fmt::Display for MessageForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for MessageForm {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|form| form.as_str() == name);
        found
            .ok_or_else(|| UnknownName::new("form of messages", name, &Self::ALL.map(Self::as_str)))
    }
}

impl Serialize for MessageForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for MessageForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(de::Error::custom)
    }
}

/// Why the calls of a message are not given.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// A message, or what it should hold, is of the wrong kind.
    #[error("{what} is {found}, not {expected}")]
    Kind {
        /// The name of the part: `the message`, `"tool_calls"`.
        what: &'static str,
        /// What it must be, with its article.
        expected: &'static str,
        /// What it is, with its article.
        found: &'static str,
    },
    /// A call cannot be read, and the policy is to refuse its message.
    #[error(transparent)]
    Unreadable(#[from] UnreadableCall),
}

/// Whether a model wrote a message: an assistant's message, a model's item or turn.
///
/// [`CallParser::parse_message`] finds calls in such messages only.
pub fn is_model_message(message: &Value) -> bool {
    let says = |key| message.get(key).and_then(Value::as_str);
    if let Some(role) = says("role").or_else(|| says("from")) {
        return matches!(role, "assistant" | "model" | "gpt" | "chatgpt" | "function_call");
    }
    matches!(says("type"), Some("function_call" | "custom_tool_call"))
}

impl CallParser<'_> {
    /// The calls of one message: a chat message, an item of OpenAI's Responses, a turn of ShareGPT.
    ///
    /// Structured calls are read as such, and then the text beside them is not: it is the same
    /// calls once more, or none. Without structured calls the text is read, by the parser's format.
    /// A message that no model wrote has none.
    ///
    /// # Errors
    /// The message is not one, or a call cannot be read and the policy is to refuse it.
    pub fn parse_message(&self, message: &Value) -> Result<Parsed, MessageError> {
        let is_models = is_model_message(message);
        let Value::Object(message) = message else {
            return Err(wrong_kind("the message", "an object", message));
        };
        if !is_models {
            return Ok(Parsed::default());
        }
        let mut parsed = Parsed::default();
        if let Some(Value::String(kind)) = message.get("type")
            && matches!(kind.as_str(), "function_call" | "custom_tool_call")
        {
            self.push_call(&mut parsed, &Value::Object(message.clone()))?;
            return Ok(parsed);
        }
        match message.get("tool_calls") {
            None | Some(Value::Null) => {}
            Some(Value::Array(calls)) => {
                for call in calls {
                    self.push_call(&mut parsed, call)?;
                }
            }
            Some(other) => return Err(wrong_kind("\"tool_calls\"", "an array", other)),
        }
        if let Some(call @ Value::Object(_)) = message.get("function_call")
            && parsed.calls.is_empty()
        {
            let form = MessageForm::OpenAiFunctionCall;
            self.push(&mut parsed, call::of_form(call.clone(), form))?;
        }
        for block in content(message).and_then(Value::as_array).into_iter().flatten() {
            if block.get("type").and_then(Value::as_str) == Some("tool_use") {
                self.push_call(&mut parsed, block)?;
            }
        }
        if !parsed.calls.is_empty() {
            return Ok(parsed);
        }
        if message.get("from").and_then(Value::as_str) == Some("function_call") {
            self.push_turn(&mut parsed, content(message).unwrap_or(&Value::Null))?;
            return Ok(parsed);
        }
        Ok(self.parse(&text_of(message))?)
    }

    fn push_call(&self, parsed: &mut Parsed, call: &Value) -> Result<(), MessageError> {
        self.push(parsed, ToolCall::from_json(call))
    }

    fn push(
        &self,
        parsed: &mut Parsed,
        call: Result<ToolCall, UnreadableCall>,
    ) -> Result<(), MessageError> {
        match call {
            Ok(mut call) => {
                if let Some(tool) = self.registry.and_then(|registry| registry.get(&call.name)) {
                    give_types(&mut call, &tool.schema);
                }
                parsed.calls.push(call);
            }
            Err(unreadable) => parsed.calls.extend(self.unreadable_call(unreadable, "")?),
        }
        Ok(())
    }

    /// The calls in the value of a ShareGPT turn `function_call`: JSON text, or JSON itself.
    fn push_turn(&self, parsed: &mut Parsed, value: &Value) -> Result<(), MessageError> {
        let form = MessageForm::ShareGpt;
        let text = match value {
            Value::String(text) => text,
            Value::Array(calls) => {
                for call in calls {
                    self.push(parsed, call::of_form(call.clone(), form))?;
                }
                return Ok(());
            }
            other => return self.push(parsed, call::of_form(other.clone(), form)),
        };
        let options = CallParser { format: Format::Hermes, ..self.clone() };
        let reading = Reading::new(&options, text);
        let start = reading.scan.skip_space(0);
        let wrapping = Wrapping { format: Format::Hermes, start, closes: &[], semicolons: false };
        for item in json::read(&reading, &wrapping, start).items {
            let call = match item {
                Item::Call(found) => Ok(self.call(&reading, found)),
                Item::Broken(broken) => Err(UnreadableCall {
                    form: CallForm::Message(form),
                    place: Some(reading.scan.place(broken.span.0, broken.span.1)),
                    name: broken.name,
                    reason: broken.reason,
                }),
            };
            self.push(parsed, call.map(|call| in_form(call, form)))?;
        }
        Ok(())
    }
}

/// The call as one of a message form.
fn in_form(mut call: ToolCall, form: MessageForm) -> ToolCall {
    let repairs = call.origin.take().map(|origin| origin.repairs).unwrap_or_default();
    let mut origin = CallOrigin::new(CallForm::Message(form), None);
    origin.repairs = repairs;
    call.origin = Some(Box::new(origin));
    call
}

fn wrong_kind(what: &'static str, expected: &'static str, found: &Value) -> MessageError {
    MessageError::Kind { what, expected, found: schema::kind_of(found) }
}

/// A message's `content`, or a turn's `value`.
fn content(message: &Map<String, Value>) -> Option<&Value> {
    message.get("content").or_else(|| message.get("value"))
}

/// The text of a message: its content, or that of its text blocks. Not what was thought.
fn text_of(message: &Map<String, Value>) -> String {
    match content(message) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(blocks)) => {
            let text = blocks.iter().filter_map(|block| {
                let kind = block.get("type").and_then(Value::as_str).unwrap_or("text");
                let is_text = matches!(kind, "text" | "output_text" | "input_text");
                is_text.then(|| block.get("text").and_then(Value::as_str))?
            });
            text.collect()
        }
        _ => String::new(),
    }
}
