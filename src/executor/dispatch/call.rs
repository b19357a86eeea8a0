//! What dispatch knows of a call and of a trajectory.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use serde_json::json;

use super::ExternalLane;
use super::begin::Begun;
use super::expiry::Expiry;
use crate::artifact::ArtifactError;
use crate::backend::ExecutionId;
use crate::error::{BeginFailure, ReleaseError};
use crate::executor::external::External;
use crate::executor::lease::{LeaseId, LeaseReply};
use crate::executor::promise::Promise;
use crate::pool::{SlotIx, TierSet};
use crate::spec::TrajectorySpec;
use crate::tool::{Outcome, Timing, ToolResult, Work};
use crate::wait_queue::{Position, WaitQueue};

/// Where a call is.
pub(super) enum Stage {
    /// Behind earlier calls of its trajectory.
    Queued { position: Position },
    /// First of its trajectory, which waits for a slot.
    WaitingForSlot { since: Instant },
    /// Its trajectory's slot is being made what the trajectory's spec asks for.
    Binding { slot: SlotIx },
    /// In its container's lane.
    InLane { slot: SlotIx },
    /// Waiting for a free thread that runs external tools.
    WaitingForThread { kind: External, position: Position },
    /// Handed to the backend.
    InSlot { since: Instant, container: usize },
    /// Running on such a thread, or begun there and to be answered later.
    OnThread { kind: External, since: Instant, cancelled: Arc<AtomicBool> },
}

/// An accepted call that has not been answered, as far as dispatch knows.
pub(super) struct Call {
    pub(super) promise: Promise,
    /// The tool's name, as the model called it.
    pub(super) tool: String,
    /// Taken when it is sent. A begin has none.
    pub(super) work: Option<Work>,
    /// With what its trajectory is to begin, if that is what it is for.
    pub(super) begins: Option<Arc<TrajectorySpec>>,
    /// The container that it is to begin in, if that is not any.
    pub(super) near: Option<Arc<str>>,
    /// The tiers that can give what it is to begin with.
    pub(super) may: TierSet,
    /// How long it may run.
    pub(super) timeout: Duration,
    pub(super) accepted: Instant,
    /// How long it has waited for a slot, once it has one.
    pub(super) slot_wait: Duration,
    pub(super) stage: Stage,
    /// When its stay in this stage is over at the latest.
    pub(super) timer: Instant,
}

/// Where the word goes that a release is done: to each caller that waits for it.
pub(super) type ReleaseReplies = Vec<Sender<Result<(), ReleaseError>>>;

/// What a trajectory has still to do, in order.
pub(super) enum Item {
    Call(ExecutionId),
    /// The same for one that begins its trajectory. It stays here when it ends before its turn:
    /// what follows it is not to run without it.
    Begin(ExecutionId),
    Release {
        reset_workspace: bool,
        replies: ReleaseReplies,
    },
    /// A reader wants the use of the slot.
    Lease(LeaseId, LeaseReply),
}

/// What a trajectory has under way.
pub(super) enum Current {
    Nothing,
    Call(ExecutionId),
    Releasing(ReleaseReplies),
    /// Its slot is lent to a reader of artifacts, who learns here that it was lost meanwhile.
    Leased(Arc<AtomicBool>),
}

/// A trajectory that has something to do, under way, or to keep.
pub(super) struct Trajectory {
    pub(super) queue: WaitQueue<Item>,
    pub(super) current: Current,
    pub(super) slot: Option<SlotIx>,
    /// What it has begun with, if that was a spec.
    pub(super) begun: Option<Box<Begun>>,
    /// Why it has lost its workspace; it is told so until it is released.
    pub(super) lost: Option<Lost>,
    /// Its position among those that are kept only to be told so.
    pub(super) remembered: Option<Position>,
}

/// Why a trajectory has no workspace any more, or never had the one that it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lost {
    /// Its sandbox went down, or did not answer.
    WithSandbox,
    /// It was idle for so long that its slot was taken back.
    Idle(Duration),
    /// It did not begin as its spec asks.
    NotBegun(BeginFailure),
    /// The time that its spec gives it was up.
    Expired(Expiry),
}

impl Lost {
    /// Whether none of its calls is to run, whatever the policy and wherever they would run: it is
    /// not the trajectory that was asked for.
    pub(super) fn ends_every_call(&self) -> bool {
        matches!(self, Lost::NotBegun(_) | Lost::Expired(_))
    }

    /// What became of the workspace, as half a sentence.
    fn text(&self) -> String {
        match self {
            Lost::WithSandbox => {
                "the workspace of this trajectory was lost with its sandbox".to_owned()
            }
            Lost::Idle(lasted) => format!(
                "this trajectory made no call for {:.1} s, so its slot was taken back and its \
                 workspace is gone",
                lasted.as_secs_f64()
            ),
            Lost::NotBegun(failure) => format!("this trajectory did not begin: {failure}"),
            Lost::Expired(expiry) => expiry.text(),
        }
    }

    /// The result of a call that is not to run in another workspace.
    pub(super) fn refusal(&self) -> ToolResult {
        let text = self.text();
        let (outcome, remedy) = match self {
            Lost::WithSandbox | Lost::Idle(_) => {
                (Outcome::SandboxLost, "release the trajectory to begin anew in an empty one")
            }
            Lost::NotBegun(failure) => (failure.outcome(), "release it to begin anew"),
            Lost::Expired(_) => (Outcome::TrajectoryExpired, "release it to begin anew"),
        };
        let mut result = ToolResult::failure(outcome, format!("{text}; {remedy}"));
        result.may_have_executed = false;
        if let Lost::Idle(lasted) = self {
            result.metadata.insert("idle_s".to_owned(), json!(lasted.as_secs_f64()));
        }
        result
    }

    /// Why there are no artifacts.
    pub(super) fn artifact_error(&self) -> ArtifactError {
        ArtifactError::SandboxLost(self.text())
    }
}

impl Trajectory {
    /// One that has nothing.
    pub(super) fn new() -> Self {
        Self {
            queue: WaitQueue::new(),
            current: Current::Nothing,
            slot: None,
            begun: None,
            lost: None,
            remembered: None,
        }
    }
}

impl Call {
    /// Whether it needs its trajectory's slot.
    pub(super) fn needs_slot(&self) -> bool {
        self.begins.is_some() || matches!(self.work, Some(Work::Sandbox { .. }))
    }

    /// Joins those that wait for a thread of this kind.
    pub(super) fn wait_for_thread(&mut self, kind: External, lanes: &mut [ExternalLane; 2]) {
        let position = lanes[kind as usize].waiting.push(self.promise.call_state().id);
        self.stage = Stage::WaitingForThread { kind, position };
    }

    /// How long it has waited until now, before being sent.
    pub(super) fn waited(&self, now: Instant) -> Timing {
        let slot = match self.stage {
            Stage::WaitingForSlot { since } => self.slot_wait + (now - since),
            _ => self.slot_wait,
        };
        let queue = now.saturating_duration_since(self.accepted).saturating_sub(slot);
        Timing { queue, slot, exec: Duration::ZERO }
    }
}

/// Tells the callers that wait for a release how it went.
pub(super) fn answer(replies: ReleaseReplies, outcome: Result<(), ReleaseError>) {
    for reply in replies {
        // Refused only when the caller is gone.
        let _ = reply.send(outcome.clone());
    }
}

/// The result of a call that the executor's closing overtook.
pub(super) fn closed_before_start() -> ToolResult {
    let error = "the executor was closed before this call could start";
    ToolResult::failure(Outcome::NeverRan, error)
}
