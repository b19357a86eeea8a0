//! A session: what was done in each slot, and what its client has not been told of yet. A pure
//! data structure.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::Notify;

use super::super::activity::InUse;
use crate::backend::ExecutionId;
use crate::server::sandbox::leases::{LeaseView, SessionNumber};
use crate::spec::SnapshotId;
use crate::wire::native::{CallsResponse, Key, Lease, NativeResult, OpOutcome, OpResult};

pub(super) struct Session {
    pub(super) id: String,
    /// By slot.
    pub(super) ops: Vec<SlotOps>,
    /// The results that neither the stream nor an answer has carried yet.
    pub(super) untold: VecDeque<Key>,
    /// Counts the streams of results; only the latest one lives.
    pub(super) stream: u64,
    /// What it is called in the table of leases.
    pub(super) number: SessionNumber,
    pub(super) lease: Lease,
    /// The snapshots that it has made.
    pub(super) snapshots: Vec<SnapshotId>,
    /// Told when a result is there, when the lease has changed, and when the session ends.
    pub(super) news: Arc<Notify>,
    /// Says that the server is used while the session lives.
    pub(super) _in_use: Option<InUse>,
}

/// What a session has done in a slot: its latest operation.
#[derive(Default)]
pub(super) struct SlotOps {
    pub(super) seq: u64,
    pub(super) what: What,
    /// An operation whose end was asked for before it came.
    pub(super) cancelled: u64,
    /// Whether the answer to the latest operation's request is about to carry its result. The
    /// stream leaves it alone then: a second way would wake threads on both sides for nothing.
    pub(super) answering: bool,
}

#[derive(Default)]
pub(super) enum What {
    #[default]
    Nothing,
    Running(Option<ExecutionId>),
    Done(Arc<NativeResult>),
}

impl SlotOps {
    fn is_done(&self) -> bool {
        matches!(self.what, What::Done(_))
    }
}

impl Session {
    /// A new session over so many slots.
    pub(super) fn new(
        id: String,
        number: SessionNumber,
        slots: usize,
        in_use: Option<InUse>,
    ) -> Self {
        Self {
            id,
            ops: (0..slots).map(|_| SlotOps::default()).collect(),
            untold: VecDeque::new(),
            stream: 0,
            number,
            lease: Lease::default(),
            snapshots: Vec::new(),
            news: Arc::default(),
            _in_use: in_use,
        }
    }

    /// Takes in what the table of leases says of the session. Tells whether it has changed.
    pub(super) fn lease_is(&mut self, view: LeaseView) -> bool {
        let LeaseView { held, limit, sessions } = view;
        let version = self.lease.version;
        let lease = Lease { version, held, limit, sessions };
        let changed = lease != self.lease;
        if changed {
            self.lease = Lease { version: version + 1, ..lease };
        }
        changed
    }

    /// The slot is the session's no more; gives what runs in it.
    pub(super) fn forget_slot(&mut self, slot: usize) -> Option<ExecutionId> {
        let ops = self.ops.get_mut(slot)?;
        self.untold.retain(|key| key.0 != slot);
        match std::mem::take(&mut ops.what) {
            What::Running(id) => id,
            What::Nothing | What::Done(_) => None,
        }
    }

    /// Notes that an operation is done, to be told.
    pub(super) fn owe(&mut self, key: Key) {
        // Without a stream nothing is taken out: what a later operation has come after goes.
        if self.untold.len() >= 2 * self.ops.len() {
            let mut latest: Vec<_> = self.ops.iter().map(|ops| Some(ops.seq)).collect();
            self.untold
                .retain(|&(slot, seq)| latest[slot].take_if(|latest| *latest == seq).is_some());
        }
        self.untold.push_back(key);
    }

    pub(super) fn is_running(&self, (slot, seq): Key) -> bool {
        let ops = self.ops.get(slot);
        ops.is_some_and(|ops| ops.seq == seq && matches!(ops.what, What::Running(_)))
    }

    /// The answer that was to carry the results of these operations does not, or not any more:
    /// those that are done are owed. Tells whether there are any.
    pub(super) fn leave_to_stream(&mut self, keys: &[Key]) -> bool {
        let mut any = false;
        for &(slot, seq) in keys {
            let Some(ops) = self.ops.get_mut(slot) else { continue };
            if ops.seq == seq && std::mem::take(&mut ops.answering) && ops.is_done() {
                self.owe((slot, seq));
                any = true;
            }
        }
        any
    }

    /// The operations whose results have been told, or lie in `untold`.
    pub(super) fn done(&self) -> Vec<Key> {
        let done = |ops: &SlotOps| ops.is_done() && !ops.answering;
        let slots = self.ops.iter().enumerate();
        slots.filter(|(_, ops)| done(ops)).map(|(slot, ops)| (slot, ops.seq)).collect()
    }

    /// What became of an operation, if it is over or never will be.
    pub(super) fn look_up(&self, (slot, seq): Key) -> Option<TellResult> {
        let ops = self.ops.get(slot)?;
        let what = match &ops.what {
            What::Done(result) if ops.seq == seq => Tell::Done(result.clone()),
            _ if seq < ops.seq => Tell::Stale(true),
            _ => return None,
        };
        Some(TellResult { slot, seq, what })
    }
}

/// [`OpResult`], with a result that is shared.
#[derive(Serialize)]
pub(super) struct TellResult {
    pub(super) slot: usize,
    pub(super) seq: u64,
    #[serde(flatten)]
    pub(super) what: Tell,
}

impl TellResult {
    /// The bytes of its texts; what else there is, is small.
    pub(super) fn size(&self) -> usize {
        match &self.what {
            Tell::Done(result) => result.output.len() + result.error.len(),
            Tell::Unknown(_) | Tell::Stale(_) | Tell::Fenced(_) => 0,
        }
    }
}

/// [`OpOutcome`], with a result that is shared.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tell {
    #[serde(serialize_with = "shared")]
    Done(Arc<NativeResult>),
    Unknown(bool),
    Stale(bool),
    Fenced(bool),
}

fn shared<S: serde::Serializer>(result: &NativeResult, serializer: S) -> Result<S::Ok, S::Error> {
    result.serialize(serializer)
}

/// [`CallsResponse`], with results that are shared.
#[derive(Serialize)]
pub(super) struct Results {
    pub(super) results: Vec<TellResult>,
}

// The shared forms above are written as these are read.
const _: fn(OpResult, OpOutcome, CallsResponse) = |_, _, _| {};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::ToolResult;

    #[test]
    fn what_is_to_be_told_is_bounded_by_the_slots() {
        let mut session = Session::new("s".to_owned(), 1, 3, None);
        for seq in 1..=100 {
            for slot in 0..3 {
                let what = What::Done(Arc::new(ToolResult::ok("").into()));
                session.ops[slot] = SlotOps { seq, what, ..SlotOps::default() };
                session.owe((slot, seq));
                assert!(session.untold.len() <= 7);
            }
        }
        let told = |key| session.untold.contains(&key);
        assert!([0, 1, 2].into_iter().all(|slot| told((slot, 100))), "{:?}", session.untold);
    }

    #[test]
    fn a_result_that_an_answer_was_to_carry_is_owed_once_when_it_does_not() {
        let done = What::Done(Arc::new(ToolResult::ok("").into()));
        let mut session = Session {
            ops: vec![
                SlotOps { seq: 1, what: done, answering: true, ..SlotOps::default() },
                SlotOps {
                    seq: 2,
                    what: What::Running(None),
                    answering: true,
                    ..SlotOps::default()
                },
            ],
            ..Session::new("s".to_owned(), 1, 0, None)
        };
        assert!(session.done().is_empty(), "a beat does not name what is not told yet");
        // One that is done, one that runs, one that a later operation has come after, and no slot.
        assert!(session.leave_to_stream(&[(0, 1), (1, 2), (1, 1), (9, 1)]));
        assert_eq!(session.untold, [(0, 1)]);
        assert!(!session.leave_to_stream(&[(0, 1), (1, 2)]), "only once");
        assert_eq!((session.done(), session.ops[1].answering), (vec![(0, 1)], false));
    }
}
