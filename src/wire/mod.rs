//! The HTTP protocols' JSON, as serde types. Nothing else knows their field names.
//!
//! What is read is read as a Python peer writes it: fields may be missing or `null`, unknown
//! ones are ignored, and the text may be Python's dialect of JSON. What is written is strict JSON.

pub(crate) mod native;
pub(crate) mod reference;
#[cfg(feature = "server")]
pub(crate) mod sandbox;
pub(crate) mod tool_server;

#[cfg(feature = "server")]
use serde::Serialize;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

#[cfg(feature = "server")]
use crate::tool::{Outcome, ToolResult};

/// How a call ended, for programs: what every body that carries a tool's result has besides, and
/// after, what the reference's has. Its clients ignore keys that they do not know.
#[cfg(feature = "server")]
#[derive(Debug, Serialize)]
pub(crate) struct OutcomeFields {
    outcome: Outcome,
    may_have_executed: bool,
    model_attributable: bool,
}

#[cfg(feature = "server")]
impl From<&ToolResult> for OutcomeFields {
    fn from(result: &ToolResult) -> Self {
        Self {
            outcome: result.outcome,
            may_have_executed: result.may_have_executed,
            model_attributable: result.model_attributable(),
        }
    }
}

/// For fields whose `null` means the same as their absence.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The text of an error answer: `{"detail": …}` or `{"error": …}`, else the body itself, cut to a
/// line.
pub(crate) fn error_text(body: &str) -> String {
    const LONGEST: usize = 300;
    let detail = serde_json::from_str::<Value>(body).ok().and_then(|mut value| {
        let text = ["detail", "error"].into_iter().find(|key| value.get(key).is_some())?;
        match value.get_mut(text).map(Value::take)? {
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        }
    });
    let text = detail.unwrap_or_else(|| body.trim().to_owned());
    text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_answer_is_told_in_one_short_line() {
        assert_eq!(error_text(r#"{"detail":"Invalid token"}"#), "Invalid token");
        assert_eq!(error_text("Internal\nServer Error\n"), "Internal Server Error");
        assert_eq!(error_text(&"x".repeat(10_000)).len(), 300);
    }
}
