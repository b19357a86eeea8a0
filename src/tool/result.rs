//! What a tool call gave.

use std::time::Duration;

use super::{JsonObject, Outcome};

/// What a tool call gave. A tool that fails is a result too: `success` is `false`, `error` says why.
#[derive(Debug, Clone, PartialEq)]
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
    pub timing: Timing,
}

/// Where a call's time went. All zero for a call that was refused at the door.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// From its acceptance until it was handed to the backend, without the wait for a slot: behind
    /// earlier calls of its trajectory, and in its lane.
    pub queue: Duration,
    /// Waiting for a slot to become free (and to be reset, where it was used before).
    pub slot: Duration,
    /// From the hand-over to the backend until the result was there.
    pub exec: Duration,
}

impl Timing {
    /// The sum of the three.
    pub fn total(&self) -> Duration {
        self.queue + self.slot + self.exec
    }
}

impl ToolResult {
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
    /// [`Outcome::NeverRan`]), else `true`; the field is there to be set where more is known.
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
            ),
            timing: Timing::default(),
        }
    }
}
