//! The lease of a trajectory's slot: how artifacts are read while nothing else of the trajectory
//! runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;

use super::event::Event;
use crate::artifact::ArtifactError;
use crate::backend::SlotRef;

/// Takes a lease, or why there is none. Called on the batcher's thread: it only hands over. One
/// that is dropped uncalled says that the executor is closed.
pub(crate) type LeaseReply = Box<dyn FnOnce(Result<Lease, ArtifactError>) + Send>;

/// Names one request for a lease, unique within its executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LeaseId(pub(crate) u64);

/// A request for a lease, in line behind the trajectory's calls. Dropped, it leaves the line.
pub(crate) struct LeaseRequest {
    id: LeaseId,
    events: Sender<Event>,
    is_answered: bool,
}

impl LeaseRequest {
    /// A request of this name that was sent.
    pub(super) fn new(id: LeaseId, events: Sender<Event>) -> Self {
        Self { id, events, is_answered: false }
    }

    /// It was answered, and is in no line any more.
    pub(crate) fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for LeaseRequest {
    fn drop(&mut self) {
        if !self.is_answered {
            // Refused only when the batcher has ended.
            let _ = self.events.send(Event::AbandonLease(self.id));
        }
    }
}

/// The use of a trajectory's slot while nothing else of the trajectory runs; given back on drop.
pub(crate) struct Lease {
    slot: SlotRef,
    lost: Arc<AtomicBool>,
    /// Taken on drop.
    give_back: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Lease {
    /// `lost` is set when the slot is taken away meanwhile: what is in it may be another
    /// trajectory's then. `give_back` is called once, when the lease is dropped.
    pub(crate) fn new(
        slot: SlotRef,
        lost: Arc<AtomicBool>,
        give_back: impl FnOnce() + Send + Sync + 'static,
    ) -> Self {
        Self { slot, lost, give_back: Some(Box::new(give_back)) }
    }

    /// The slot.
    pub(crate) fn slot(&self) -> &SlotRef {
        &self.slot
    }

    /// Fails once the slot was lost.
    ///
    /// # Errors
    /// See [`lost`].
    pub(crate) fn check(&self) -> Result<(), ArtifactError> {
        if self.lost.load(Ordering::Acquire) {
            return Err(lost());
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(give_back) = self.give_back.take() {
            give_back();
        }
    }
}

/// Why a trajectory whose workspace was lost with its sandbox has no artifacts.
pub(crate) fn lost() -> ArtifactError {
    let text = "the workspace of this trajectory went down with it";
    ArtifactError::SandboxLost(text.to_owned())
}
