//! Everything the batcher thread can be told, as one closed type.
//!
//! The channel of events has no bound of its own, so that no thread that has a result ever blocks
//! on it. What is in it is bounded all the same: a submission holds one of the gate's places, a
//! result belongs to a running call, a reset, a begin or a lease to a slot; a call is cancelled
//! once, a release, the cancel of a trajectory and a request for a lease hold one of the orders'
//! places, and a caller that asks or closes waits for the answer.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::external::External;
use super::lease::{LeaseId, LeaseReply};
use super::orders::OrderPlace;
use super::promise::{Notify, Promise};
use super::stats::Stats;
use crate::backend::{ContainerChange, ExecutionId, SlotRef};
use crate::error::{BeginError, BeginFailure, ReleaseError};
use crate::pool::{SlotIx, TierSet};
use crate::spec::TrajectorySpec;
use crate::tool::{Outcome, Prepared, Timing};

/// A call that was let in at the gate.
pub(crate) struct Accepted {
    pub(crate) promise: Promise,
    pub(crate) prepared: Prepared,
    pub(crate) at: Instant,
}

/// What the batcher reacts to.
pub(crate) enum Event {
    /// A call was accepted.
    Submit(Box<Accepted>),
    /// A trajectory is to begin as a spec asks; `accepted` is told at once whether it may.
    Begin {
        promise: Promise,
        spec: Arc<TrajectorySpec>,
        /// The container that it needs a slot of, if it needs one of a certain one.
        near: Option<Arc<str>>,
        /// The tiers that can give what it asks for.
        may: TierSet,
        at: Instant,
        accepted: Sender<Result<(), BeginError>>,
    },
    /// A slot is what the spec of its trajectory asks for, or cannot be.
    BeginDone { slot: SlotIx, generation: u64, outcome: Result<(), BeginFailure> },
    /// A call was answered by its backend or handler; its caller has the result.
    Finished { id: ExecutionId, outcome: Outcome, timing: Timing },
    /// A batch was accepted by the container with this index.
    BatchAccepted { container: usize },
    /// A thread that ran an external tool is free again, whether or not anybody still waited for
    /// it.
    ExternalReturned(External),
    /// A reset has ended.
    ResetDone { slot: SlotIx, generation: u64, outcome: Result<(), String> },
    /// Something became of the container with this index.
    Container { addr: Arc<str>, change: ContainerChange },
    /// A caller wants this call to end.
    Cancel(ExecutionId),
    /// A caller wants all calls of this trajectory to end.
    CancelTrajectory { trajectory_id: Arc<str>, place: OrderPlace },
    /// A trajectory is to give up its slot, after its earlier calls.
    Release {
        trajectory_id: Arc<str>,
        reset_workspace: bool,
        reply: Option<Sender<Result<(), ReleaseError>>>,
        place: OrderPlace,
    },
    /// A reader wants the use of a trajectory's slot, after its earlier calls.
    AcquireLease { id: LeaseId, trajectory_id: Arc<str>, reply: LeaseReply, place: OrderPlace },
    /// A reader does not want it any more.
    AbandonLease(LeaseId),
    /// A trajectory's slot was given back by who had it.
    LeaseReturned { trajectory_id: Arc<str> },
    /// A caller asks which slot a trajectory holds.
    SlotOf { trajectory_id: Arc<str>, reply: Sender<Option<SlotRef>> },
    /// A caller asks for the statistics.
    Stats(Sender<Stats>),
    /// A call that was refused at the door has left the gate after it was closed: perhaps it was
    /// the last one.
    GateLeft,
    /// Nothing more is accepted; what was is to be finished until the deadline.
    Close { deadline: Instant },
}

impl Notify for Sender<Event> {
    fn finished(&self, id: ExecutionId, outcome: Outcome, timing: Timing) {
        // Refused only when the batcher is gone, and then nothing counts it.
        let _ = self.send(Event::Finished { id, outcome, timing });
    }

    fn cancel(&self, id: ExecutionId) {
        // Refused only when the batcher is gone, and then the call has ended.
        let _ = self.send(Event::Cancel(id));
    }
}
