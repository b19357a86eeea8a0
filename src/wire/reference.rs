//! What an executor says to any sandbox server, and what it understands: sections 1 to 4 of the
//! reference protocol, from the client's side.
//!
//! The reference's answers have no outcome for programs, so it is inferred here from what the
//! protocol promises: metadata first, texts only where there is nothing else. Ours have one, which
//! is taken.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::null_as_default;
use crate::tool::{JsonObject, Outcome, ToolResult};

/// The body of `POST /execute`.
#[derive(Debug, Serialize)]
pub(crate) struct ExecuteRequest<'a> {
    pub(crate) slot_id: &'a str,
    pub(crate) tool: &'a str,
    pub(crate) args: &'a JsonObject,
    pub(crate) execution_id: &'a str,
    /// Seconds.
    pub(crate) timeout: f64,
}

/// The answer to `POST /execute` and `POST /reset`.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    /// The one field without a default: an answer that lacks it is no answer.
    pub(crate) success: bool,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) output: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) error: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) metadata: JsonObject,
    #[serde(default)]
    pub(crate) execution_id: Value,
    /// Not the reference's, as the next one.
    #[serde(default)]
    outcome: Value,
    #[serde(default)]
    may_have_executed: Value,
}

/// The answer to `GET /slots`.
#[derive(Debug, Deserialize)]
pub(crate) struct Slots {
    pub(crate) slots: Vec<Slot>,
}

/// A slot of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Slot {
    pub(crate) slot_id: String,
}

impl Answer {
    /// The result of a call.
    pub(crate) fn into_tool_result(self) -> ToolResult {
        let told: Option<Outcome> = self.outcome.as_str().and_then(|name| name.parse().ok());
        let told = told.filter(|outcome| (*outcome == Outcome::Ok) == self.success);
        let outcome = told.unwrap_or_else(|| self.inferred_outcome());
        let mut result = ToolResult {
            success: outcome == Outcome::Ok,
            output: self.output,
            metadata: self.metadata,
            ..ToolResult::failure(outcome, self.error)
        };
        if let (Some(_), Value::Bool(may_have)) = (told, self.may_have_executed) {
            result.may_have_executed = may_have;
        }
        result
    }

    fn inferred_outcome(&self) -> Outcome {
        let is_set = |key| self.metadata.get(key) == Some(&Value::Bool(true));
        let exit_code = self.metadata.get("exit_code").and_then(Value::as_i64);
        if self.success {
            Outcome::Ok
        } else if is_set("timeout") {
            Outcome::Timeout
        } else if is_set("requires_bwrap") {
            Outcome::IsolationUnavailable
        } else if exit_code.is_some() {
            Outcome::NonZeroExit
        } else if self.error.starts_with("Unknown tool: ") {
            Outcome::UnknownTool
        } else if self.error.starts_with("Unknown slot: ")
            || self.error.starts_with("Failed to execute")
            || self.error.starts_with("Failed to start")
        {
            Outcome::BackendFailed
        } else {
            Outcome::ToolError
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_outcome_is_inferred_from_what_the_protocol_promises() {
        let cases = [
            (json!({"success": true, "output": "x"}), Outcome::Ok),
            (
                json!({"success": false, "error": "Exit code: 3", "metadata": {"exit_code": 3}}),
                Outcome::NonZeroExit,
            ),
            (
                json!({"success": false, "error": "Command timed out after 1.0s",
                    "metadata": {"exit_code": -1, "timeout": true, "sandboxed": true}}),
                Outcome::Timeout,
            ),
            (
                json!({"success": false, "error": "Sandboxing required but …",
                    "metadata": {"sandboxed": false, "requires_bwrap": true}}),
                Outcome::IsolationUnavailable,
            ),
            (json!({"success": false, "error": "Unknown tool: x"}), Outcome::UnknownTool),
            (json!({"success": false, "error": "Unknown slot: x"}), Outcome::BackendFailed),
            (
                json!({"success": false, "error": "Failed to execute sandboxed command: x"}),
                Outcome::BackendFailed,
            ),
            (
                json!({"success": false, "error": "File not found: x", "metadata": null}),
                Outcome::ToolError,
            ),
        ];
        for (answer, outcome) in cases {
            let text = answer.to_string();
            let answer: Answer = serde_json::from_value(answer).unwrap();
            assert_eq!(answer.into_tool_result().outcome, outcome, "{text}");
        }
        assert!(serde_json::from_value::<Answer>(json!({"error": "x"})).is_err());
    }

    #[test]
    fn an_outcome_that_is_told_and_makes_sense_is_taken() {
        for (answer, outcome, may_have_executed) in [
            (
                json!({"success": false, "error": "Unknown slot: x", "outcome": "never_ran"}),
                Outcome::NeverRan,
                false,
            ),
            (
                json!({"success": false, "outcome": "cancelled", "may_have_executed": false}),
                Outcome::Cancelled,
                false,
            ),
            (json!({"success": true, "outcome": "timeout"}), Outcome::Ok, true),
            (json!({"success": false, "outcome": "ok"}), Outcome::ToolError, true),
            (json!({"success": false, "outcome": "brand_new"}), Outcome::ToolError, true),
            (json!({"success": false, "outcome": 7}), Outcome::ToolError, true),
        ] {
            let text = answer.to_string();
            let result = serde_json::from_value::<Answer>(answer).unwrap().into_tool_result();
            assert_eq!(
                (result.outcome, result.may_have_executed),
                (outcome, may_have_executed),
                "{text}"
            );
        }
    }
}
