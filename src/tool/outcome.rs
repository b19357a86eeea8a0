//! How a call ended, for programs.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

/// How a call ended. A trainer masks by it and parses no error texts.
///
/// Its text, in JSON too, is its snake-case name: [`Outcome::as_str`], `Display` and `FromStr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Outcome {
    /// The tool did what it was asked to do.
    Ok,
    /// The command ran to its end and its exit code is not 0, or a signal ended it.
    NonZeroExit,
    /// The tool ran and refused or failed: file not found, access denied, content too large, ….
    ToolError,
    /// The call's time was up. What it had printed by then is in the output; all its processes are
    /// dead.
    Timeout,
    /// The slot's memory limit ended it.
    OutOfMemory,
    /// The limit of the slot's workspace ended it, so that it does not fill the disk.
    DiskFull,
    /// It was cancelled.
    Cancelled,
    /// The call itself is wrong: its arguments are not an object, lack what the tool's schema
    /// requires, or are others than a built-in tool has. It was never queued.
    InvalidCall,
    /// No tool has this name. It was never queued.
    UnknownTool,
    /// The policy demands an isolation that this sandbox cannot give. Nothing ran.
    IsolationUnavailable,
    /// The sandbox that held the trajectory's workspace is gone, or did not answer in time.
    SandboxLost,
    /// The backend failed: it panicked, dropped the call unanswered, or could not start the
    /// command.
    BackendFailed,
    /// An external tool could not be run: there is no ToolServer, it gave no usable answer, or an
    /// in-process tool panicked. (One that ran and failed is a [`ToolError`](Self::ToolError).)
    ExternalFailed,
    /// The call was accepted and never started: no slot became free in time, its queue time was up,
    /// or the executor was closed.
    NeverRan,
    /// The image that the trajectory asked for cannot be had: it is not there, its archive is
    /// damaged, there is no room for it. Nothing ran.
    ImageUnavailable,
    /// The image that the trajectory asked for is there, and commands cannot be run in it: it has
    /// no shell, or no such user. Nothing ran.
    ImageUnusable,
    /// The trajectory asked for what this sandbox cannot give, or what its operator does not allow.
    /// Nothing ran.
    SpecUnsupported,
    /// The time that the trajectory may hold its slot was up, while the call ran or before it:
    /// [`max_wall`](crate::TrajectorySpec::max_wall) or
    /// [`max_idle`](crate::TrajectorySpec::max_idle) of its spec. Time spent outside of calls counts
    /// as well, so that it says nothing of the model.
    TrajectoryExpired,
}

impl Outcome {
    /// Every outcome, in declaration order: `ALL[outcome as usize] == outcome`.
    pub const ALL: [Outcome; 18] = [
        Outcome::Ok,
        Outcome::NonZeroExit,
        Outcome::ToolError,
        Outcome::Timeout,
        Outcome::OutOfMemory,
        Outcome::DiskFull,
        Outcome::Cancelled,
        Outcome::InvalidCall,
        Outcome::UnknownTool,
        Outcome::IsolationUnavailable,
        Outcome::SandboxLost,
        Outcome::BackendFailed,
        Outcome::ExternalFailed,
        Outcome::NeverRan,
        Outcome::ImageUnavailable,
        Outcome::ImageUnusable,
        Outcome::SpecUnsupported,
        Outcome::TrajectoryExpired,
    ];

    /// The outcome's snake-case name: `"ok"`, `"non_zero_exit"`, ….
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::NonZeroExit => "non_zero_exit",
            Outcome::ToolError => "tool_error",
            Outcome::Timeout => "timeout",
            Outcome::OutOfMemory => "out_of_memory",
            Outcome::DiskFull => "disk_full",
            Outcome::Cancelled => "cancelled",
            Outcome::InvalidCall => "invalid_call",
            Outcome::UnknownTool => "unknown_tool",
            Outcome::IsolationUnavailable => "isolation_unavailable",
            Outcome::SandboxLost => "sandbox_lost",
            Outcome::BackendFailed => "backend_failed",
            Outcome::ExternalFailed => "external_failed",
            Outcome::NeverRan => "never_ran",
            Outcome::ImageUnavailable => "image_unavailable",
            Outcome::ImageUnusable => "image_unusable",
            Outcome::SpecUnsupported => "spec_unsupported",
            Outcome::TrajectoryExpired => "trajectory_expired",
        }
    }

    /// Whether the call ended this way by the model's own doing, as opposed to the infrastructure:
    /// the training mask. A trainer leaves out what is not.
    pub const fn model_attributable(self) -> bool {
        matches!(
            self,
            Outcome::Ok
                | Outcome::NonZeroExit
                | Outcome::ToolError
                | Outcome::Timeout
                | Outcome::OutOfMemory
                | Outcome::DiskFull
                | Outcome::InvalidCall
                | Outcome::UnknownTool
        )
    }
}

/// No outcome has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no outcome")]
pub struct UnknownOutcome(String);

impl FromStr for Outcome {
    type Err = UnknownOutcome;

    fn from_str(name: &str) -> Result<Self, UnknownOutcome> {
        let found = Self::ALL.into_iter().find(|outcome| outcome.as_str() == name);
        found.ok_or_else(|| UnknownOutcome(name.to_owned()))
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Outcome {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(deserializer)?;
        name.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_indexed_by_the_outcome_itself_and_names_are_distinct() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
        let names: std::collections::HashSet<_> = Outcome::ALL.map(Outcome::as_str).into();
        assert_eq!(names.len(), Outcome::ALL.len());
    }

    #[test]
    fn an_outcome_is_read_as_it_is_written() {
        for outcome in Outcome::ALL {
            assert_eq!(outcome.to_string().parse(), Ok(outcome));
            let json = serde_json::to_string(&outcome).unwrap();
            assert_eq!(serde_json::from_str::<Outcome>(&json).unwrap(), outcome);
        }
        let error = serde_json::from_str::<Outcome>("\"fine\"").unwrap_err();
        assert!(error.to_string().starts_with("\"fine\" is no outcome"));
    }
}
