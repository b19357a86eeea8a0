//! Snapshots: the files of a trajectory's machine at one moment, kept to begin others from.
//!
//! What is asked and what is answered, as plain types. Users call
//! [`ToolExecutor::snapshot`](crate::ToolExecutor::snapshot) and its kin; a backend that has
//! snapshots implements [`Snapshots`](crate::backend::Snapshots).

use std::sync::Arc;
use std::time::Duration;

use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::artifact::ArtifactError;
use crate::error::BeginError;
pub use crate::spec::SnapshotId;
use crate::spec::TrajectorySpec;

/// How a snapshot is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SnapshotOptions {
    /// Whether the processes that the trajectory keeps between its calls – shells, terminals – are
    /// ended for it. The trajectory's next call says so. Otherwise a trajectory that keeps some is
    /// refused, with [`SnapshotError::KeepsProcesses`]. Defaults to `false`.
    pub end_processes: bool,
}

setters! {
    SnapshotOptions {
        with_end_processes: end_processes = bool,
    }
}

/// How a trajectory is forked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ForkOptions {
    /// Whether the processes that the trajectory keeps between its calls are ended for it, as
    /// [`SnapshotOptions::end_processes`]. Defaults to `false`.
    pub end_processes: bool,
    /// What else each fork begins with; without an image or a snapshot. Defaults to nothing.
    pub spec: TrajectorySpec,
}

setters! {
    ForkOptions {
        with_end_processes: end_processes = bool,
        with_spec: spec = TrajectorySpec,
    }
}

/// What is asked of a fork by those who write it as JSON.
#[cfg_attr(
    not(any(feature = "capi", feature = "server")),
    allow(dead_code, reason = "only their fronts read it from text")
)]
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForkRequest {
    /// The trajectories that are to begin.
    pub(crate) to: Vec<String>,
    /// As [`ForkOptions::end_processes`].
    #[serde(default)]
    pub(crate) end_processes: bool,
    /// As [`ForkOptions::spec`].
    #[serde(default)]
    pub(crate) spec: TrajectorySpec,
}

/// What became of one fork.
///
/// In JSON `begun` is whether it has begun, `error` says why not, and `outcome` how its calls end
/// then, if they do.
#[derive(Debug)]
#[non_exhaustive]
pub struct Fork {
    /// The trajectory that was to begin.
    pub trajectory_id: String,
    /// Whether it has begun; else why not.
    pub begun: Result<(), BeginError>,
}

impl Serialize for Fork {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let error = self.begun.as_ref().err();
        let outcome = error.and_then(|error| match error {
            BeginError::Failed(failure) => Some(failure.outcome()),
            _ => None,
        });
        let mut fork = serializer.serialize_struct("Fork", 4)?;
        fork.serialize_field("trajectory_id", &self.trajectory_id)?;
        fork.serialize_field("begun", &error.is_none())?;
        fork.serialize_field("outcome", &outcome)?;
        fork.serialize_field("error", &error.map(BeginError::to_string))?;
        fork.end()
    }
}

impl Fork {
    /// The fork of this name.
    pub(crate) fn new(trajectory_id: &str, begun: Result<(), BeginError>) -> Self {
        Self { trajectory_id: trajectory_id.to_owned(), begun }
    }
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// The container that it is in: what begins from it gets a slot there.
    pub container: Arc<str>,
    /// The snapshot that its trajectory began from, or was made of last.
    pub parent: Option<SnapshotId>,
    /// How long ago it was made.
    #[serde(rename = "age_s", with = "crate::seconds")]
    pub age: Duration,
    /// How many layers of files are beneath what begins from it.
    pub layers: usize,
    /// How many bytes its own layers take on the disk, without those of its parent and its image.
    /// They are counted by [`snapshots`](crate::ToolExecutor::snapshots), once for each: `None` in
    /// the answer of [`snapshot`](crate::ToolExecutor::snapshot), which does not depend on how much
    /// there is; where a list would take more than some seconds, until the next one; and where not
    /// all can be counted (millions of files).
    pub bytes: Option<u64>,
    /// What was ended for it, by name: only in the answer of
    /// [`snapshot`](crate::ToolExecutor::snapshot).
    #[serde(default)]
    pub ended_processes: Vec<String>,
}

impl SnapshotInfo {
    /// A snapshot that was made just now, without a parent, of one layer.
    pub fn new(id: SnapshotId, container: impl Into<Arc<str>>) -> Self {
        Self {
            id,
            container: container.into(),
            parent: None,
            age: Duration::ZERO,
            layers: 1,
            bytes: None,
            ended_processes: Vec::new(),
        }
    }
}

setters! {
    SnapshotInfo {
        with_parent: parent = some SnapshotId,
        with_age: age = Duration,
        with_layers: layers = usize,
        with_bytes: bytes = some u64,
        with_ended_processes: ended_processes = Vec<String>,
    }
}

/// Why there is no snapshot, no fork, or no grade. The trajectory goes on as before, unless the
/// text says otherwise.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The trajectory holds no slot: it has run nothing in a sandbox, or was released.
    #[error("the trajectory has no slot: it has run nothing in a sandbox, or was released")]
    NoSlot,
    /// The trajectory keeps processes between its calls, which would end with the snapshot: their
    /// names.
    #[error(
        "the trajectory keeps processes that would end with a snapshot ({}); end them first, or ask for \
         it with end_processes",
        .0.join(", ")
    )]
    KeepsProcesses(Vec<String>),
    /// The backend keeps as many snapshots as it may: how many.
    #[error("{0} snapshots are kept, and that is the most; drop some")]
    TooMany(usize),
    /// The files of the trajectory are in as many layers as they may be, one for each snapshot
    /// since it began: how many.
    #[error(
        "its files are in {0} layers, one for each snapshot of it and those of its image, and that is \
         the most; make fewer snapshots, or begin anew with what is put into the machine"
    )]
    TooDeep(usize),
    /// There is no such snapshot: it was dropped, or went down with its container.
    #[error("there is no snapshot {0}: it was dropped, or was lost with its container")]
    NotFound(SnapshotId),
    /// What is asked for makes no sense: why.
    #[error("{0}")]
    Invalid(String),
    /// The sandbox that held the workspace is gone, or does not answer.
    #[error("the sandbox was lost: {0}")]
    SandboxLost(String),
    /// The executor is closed.
    #[error("the executor is closed")]
    Closed,
    /// The backend cannot do this: why.
    #[error("{0}")]
    Unsupported(String),
    /// It failed: what was tried, and the cause.
    #[error("{0}")]
    Io(String, #[source] std::io::Error),
}

impl SnapshotError {
    /// What a backend without snapshots says.
    pub(crate) fn unsupported() -> Self {
        Self::Unsupported("this sandbox backend has no snapshots".to_owned())
    }
}

/// Why a trajectory's slot could not be had for it.
impl From<ArtifactError> for SnapshotError {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::NoSlot => Self::NoSlot,
            ArtifactError::SandboxLost(text) => Self::SandboxLost(text),
            ArtifactError::Closed => Self::Closed,
            ArtifactError::Unsupported => Self::unsupported(),
            ArtifactError::Io(text, source) => Self::Io(text, source),
            other => Self::Io(other.to_string(), std::io::Error::other(other)),
        }
    }
}
