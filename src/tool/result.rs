//! What a tool call gave.

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::{JsonObject, Outcome};

/// What a tool call gave. A tool that fails is a result too: `success` is `false`, `error` says
/// why.
///
/// In JSON it has all of these fields, `model_attributable` after `may_have_executed`, and the
/// times in milliseconds.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct ToolResult {
    /// Whether the tool did what it was asked to do; the same as `outcome == Outcome::Ok`.
    pub success: bool,
    /// What the tool printed or read. Kept for failures too, as far as it came.
    pub output: String,
    /// Empty on success, else one line that says what went wrong.
    pub error: String,
    /// Facts about the run: `exit_code`, `signal`, `sandboxed`, `network_isolated`, byte counts, ….
    pub metadata: JsonObject,
    /// The `uniq_id` of the call.
    pub uniq_id: Option<String>,
    /// How the call ended, for programs.
    pub outcome: Outcome,
    /// Whether any part of the call may have had an effect. `false` only where it is certain that
    /// nothing of it ran.
    pub may_have_executed: bool,
    /// Where the call's time went.
    #[serde(default)]
    pub timing: Timing,
}

impl Serialize for ToolResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Whole<'a> {
            success: bool,
            output: &'a str,
            error: &'a str,
            metadata: &'a JsonObject,
            uniq_id: Option<&'a str>,
            outcome: Outcome,
            may_have_executed: bool,
            model_attributable: bool,
            timing: Timing,
        }
        let whole = Whole {
            success: self.success,
            output: &self.output,
            error: &self.error,
            metadata: &self.metadata,
            uniq_id: self.uniq_id.as_deref(),
            outcome: self.outcome,
            may_have_executed: self.may_have_executed,
            model_attributable: self.model_attributable(),
            timing: self.timing,
        };
        whole.serialize(serializer)
    }
}

/// Where a call's time went. All zero for a call that was refused at the door.
///
/// In JSON the times are milliseconds, to the microsecond: `queue_ms`, `slot_ms`, `exec_ms`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Timing {
    /// From its acceptance until it was handed to the backend, without the wait for a slot: behind
    /// earlier calls of its trajectory, and in its lane.
    #[serde(rename = "queue_ms", with = "crate::seconds::milliseconds")]
    pub queue: Duration,
    /// Waiting for a slot to become free (and to be reset, where it was used before).
    #[serde(rename = "slot_ms", with = "crate::seconds::milliseconds")]
    pub slot: Duration,
    /// From the hand-over to the backend until the result was there.
    #[serde(rename = "exec_ms", with = "crate::seconds::milliseconds")]
    pub exec: Duration,
}

impl Timing {
    /// The sum of the three.
    pub fn total(&self) -> Duration {
        self.queue + self.slot + self.exec
    }
}

impl ToolResult {
    /// Whether the call ended as it did by the model's own doing: [`Outcome::model_attributable`].
    pub fn model_attributable(&self) -> bool {
        self.outcome.model_attributable()
    }

    /// A success with this output.
    pub fn ok(output: impl Into<String>) -> Self {
        Self {
            success: true,
            output: output.into(),
            error: String::new(),
            metadata: JsonObject::new(),
            uniq_id: None,
            outcome: Outcome::Ok,
            may_have_executed: true,
            timing: Timing::default(),
        }
    }

    /// A failure: `error` is one line for people, `outcome` is for programs.
    ///
    /// `may_have_executed` is `false` for the outcomes that say that nothing ran
    /// ([`Outcome::InvalidCall`], [`Outcome::UnknownTool`], [`Outcome::IsolationUnavailable`],
    /// [`Outcome::NeverRan`], [`Outcome::ImageUnavailable`], [`Outcome::ImageUnusable`],
    /// [`Outcome::SpecUnsupported`]), else `true`; the field is there to be set where more is known.
    pub fn failure(outcome: Outcome, error: impl Into<String>) -> Self {
        Self {
            success: outcome == Outcome::Ok,
            output: String::new(),
            error: error.into(),
            metadata: JsonObject::new(),
            uniq_id: None,
            outcome,
            may_have_executed: !matches!(
                outcome,
                Outcome::InvalidCall
                    | Outcome::UnknownTool
                    | Outcome::IsolationUnavailable
                    | Outcome::NeverRan
                    | Outcome::ImageUnavailable
                    | Outcome::ImageUnusable
                    | Outcome::SpecUnsupported
            ),
            timing: Timing::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_as_it_is_written() {
        let mut result = ToolResult::failure(Outcome::NonZeroExit, "Exit code: 3");
        result.output = "out".to_owned();
        result.metadata.insert("exit_code".to_owned(), 3.into());
        result.uniq_id = Some("u".to_owned());
        result.timing.exec = Duration::from_micros(1500);
        let json = serde_json::to_string(&result).unwrap();
        assert_eq!(
            json,
            r#"{"success":false,"output":"out","error":"Exit code: 3","metadata":{"exit_code":3},"uniq_id":"u","outcome":"non_zero_exit","may_have_executed":true,"model_attributable":true,"timing":{"queue_ms":0.0,"slot_ms":0.0,"exec_ms":1.5}}"#
        );
        assert_eq!(serde_json::from_str::<ToolResult>(&json).unwrap(), result);
    }
}
