//! One recorded call, and what it gave when it was recorded: what both input forms are read into.
//! A step may put files into the trajectory's machine instead.

use serde_json::Value;
use tool_executor::ToolCall;

use super::put::Put;

/// One recorded call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    /// What to run; of what is put, how it is told: `put` with what it says.
    pub(crate) call: ToolCall,
    /// What is put in the place of a call.
    pub(crate) put: Option<Put>,
    /// Its place, from 0, among the calls, or among the setup calls if it is one.
    pub(crate) index: usize,
    /// Whether it prepares the workspace. Such a call must succeed, or the trajectory ends.
    pub(crate) setup: bool,
    /// What it gave when it was recorded.
    pub(crate) recorded: Recorded,
}

/// What a call gave when it was recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// What was shown to the model.
    pub(crate) output: Option<String>,
    /// The exit code.
    pub(crate) exit_code: Option<i64>,
    /// `output` holds only the first characters of a longer output.
    pub(crate) truncated: bool,
}

/// What `value` is, with its article, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
