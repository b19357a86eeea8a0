//! Completion queues: one thread drives thousands of trajectories.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::tool::ToolResult;

/// A call that has ended, as a [`CompletionQueue`] or a completion callback gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// What the caller passed when submitting; 0 for a callback.
    pub tag: u64,
    /// Whose call it was.
    pub trajectory_id: Arc<str>,
    /// What it gave.
    pub result: ToolResult,
}

/// A number of places, each taken by a call from its submission until its completion was fetched,
/// or its callback has returned.
#[derive(Debug)]
pub(crate) struct Places {
    taken: AtomicUsize,
    capacity: usize,
}

/// One taken place; free again on drop.
#[derive(Debug)]
pub(crate) struct Place(Arc<Places>);

impl Places {
    /// This many places, at least one, all free.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), capacity: capacity.max(1) })
    }

    /// Takes a place, unless all are taken.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Place> {
        let taken = self.taken.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |taken| {
            (taken < self.capacity).then_some(taken + 1)
        });
        taken.is_ok().then(|| Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Collects the results of the calls that were submitted to it, in order of completion. Made by
/// [`ToolExecutor::completion_queue`](crate::ToolExecutor::completion_queue). Clones share the same
/// queue; each completion goes to one of them.
///
/// Its capacity bounds the calls that were submitted to it and not fetched from it, finished or
/// not: a submit beyond it is refused, so whoever has a result never waits for room here.
#[derive(Debug, Clone)]
pub struct CompletionQueue {
    completions: Receiver<Placed>,
    // Unbounded as a channel; bounded by the places.
    sender: Sender<Placed>,
    places: Arc<Places>,
}

/// A completion and the place it takes until it is fetched.
pub(crate) type Placed = (Place, Completion);

impl CompletionQueue {
    /// An empty queue with `capacity` places; at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        let (sender, completions) = unbounded();
        Self { completions, sender, places: Places::new(capacity) }
    }

    /// Where results are put in. Never blocks.
    pub(crate) fn sender(&self) -> &Sender<Placed> {
        &self.sender
    }

    /// Takes a place for a call that is about to be submitted, unless all are taken.
    pub(crate) fn take_place(&self) -> Option<Place> {
        self.places.take()
    }

    /// The next completion, if one is there. Does not block.
    pub fn try_next(&self) -> Option<Completion> {
        self.completions.try_recv().ok().map(fetched)
    }

    /// The next completion; blocks for `timeout` at most.
    pub fn next_timeout(&self, timeout: Duration) -> Option<Completion> {
        self.completions.recv_timeout(timeout).ok().map(fetched)
    }

    /// The next completion; blocks until `deadline` at most.
    pub fn next_deadline(&self, deadline: Instant) -> Option<Completion> {
        self.completions.recv_deadline(deadline).ok().map(fetched)
    }

    /// Appends up to `max` completions to `into` and says how many: blocks for `timeout` at most
    /// for the first, and takes what else is there.
    pub fn next_many(&self, into: &mut Vec<Completion>, max: usize, timeout: Duration) -> usize {
        let before = into.len();
        if max > 0 {
            into.extend(self.next_timeout(timeout));
        }
        while into.len() > before && into.len() - before < max {
            match self.try_next() {
                Some(completion) => into.push(completion),
                None => break,
            }
        }
        into.len() - before
    }

    /// How many calls were submitted to this queue and not fetched from it. At 0 nothing will come.
    pub fn outstanding(&self) -> usize {
        self.places.taken.load(Ordering::Acquire)
    }

    /// How many calls may be outstanding.
    pub fn capacity(&self) -> usize {
        self.places.capacity
    }
}

fn fetched((_place, completion): Placed) -> Completion {
    completion
}
