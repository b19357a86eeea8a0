//! Completion queues: one thread drives thousands of trajectories.

#[cfg(target_os = "linux")]
mod signal;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::Serialize;

#[cfg(target_os = "linux")]
use self::signal::Signal;
use crate::tool::ToolResult;

/// A call that has ended, as a [`CompletionQueue`] or a completion callback gets it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
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
/// [`ToolExecutor::completion_queue`](crate::ToolExecutor::completion_queue). Clones share the
/// same queue; each completion goes to one of them.
///
/// Its capacity bounds the calls that were submitted to it and not fetched from it, finished or
/// not: a submit beyond it is refused, so a result never waits for room here.
#[derive(Debug, Clone)]
pub struct CompletionQueue {
    completions: Receiver<Placed>,
    sender: QueueSender,
    places: Arc<Places>,
}

/// A completion and the place it takes until it is fetched.
type Placed = (Place, Completion);

/// Where completions are put in. Never blocks.
#[derive(Debug, Clone)]
pub(crate) struct QueueSender {
    // Unbounded as a channel; bounded by the places.
    channel: Sender<Placed>,
    #[cfg(target_os = "linux")]
    signal: Option<Arc<Signal>>,
}

impl QueueSender {
    /// Puts one in.
    pub(crate) fn send(&self, place: Place, completion: Completion) {
        // Refused only when every CompletionQueue is gone: then the result has no reader.
        let sent = self.channel.send((place, completion));
        #[cfg(target_os = "linux")]
        if let (Ok(()), Some(signal)) = (sent, &self.signal) {
            signal.put();
        }
        #[cfg(not(target_os = "linux"))]
        let _ = sent;
    }
}

impl CompletionQueue {
    /// An empty queue with `capacity` places; at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "every completion holds a place of the queue"
        )]
        let (channel, completions) = unbounded();
        let sender = QueueSender {
            channel,
            #[cfg(target_os = "linux")]
            signal: None,
        };
        Self { completions, sender, places: Places::new(capacity) }
    }

    /// The same, with a file descriptor that tells whether completions wait.
    #[cfg(target_os = "linux")]
    pub(crate) fn pollable(capacity: usize) -> std::io::Result<Self> {
        let mut queue = Self::new(capacity);
        queue.sender.signal = Some(Arc::new(Signal::new()?));
        Ok(queue)
    }

    /// Where results are put in. Never blocks.
    pub(crate) fn sender(&self) -> &QueueSender {
        &self.sender
    }

    /// Takes a place for a call that is about to be submitted, unless all are taken.
    pub(crate) fn take_place(&self) -> Option<Place> {
        self.places.take()
    }

    /// A file descriptor that is readable as long as completions wait to be fetched: for `poll` and
    /// its kin, in a loop that waits for other things too. Level-triggered; not to be read from,
    /// written to or closed, and valid as long as this queue or a clone of it. `None` unless the
    /// queue was made by
    /// [`pollable_completion_queue`](crate::ToolExecutor::pollable_completion_queue).
    ///
    /// It never misses a completion. Where several threads fetch, one may find that another was
    /// faster.
    #[cfg(target_os = "linux")]
    pub fn poll_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.sender.signal.as_ref().map(|signal| signal.fd())
    }

    /// What came out of the channel, now that it is out.
    fn fetched(&self, (_place, completion): Placed) -> Completion {
        #[cfg(target_os = "linux")]
        if let Some(signal) = &self.sender.signal {
            signal.take();
        }
        completion
    }

    /// The next completion, if one is there. Does not block.
    pub fn try_next(&self) -> Option<Completion> {
        self.completions.try_recv().ok().map(|placed| self.fetched(placed))
    }

    /// The next completion; blocks for `timeout` at most.
    pub fn next_timeout(&self, timeout: Duration) -> Option<Completion> {
        self.completions.recv_timeout(timeout).ok().map(|placed| self.fetched(placed))
    }

    /// The next completion; blocks until `deadline` at most.
    pub fn next_deadline(&self, deadline: Instant) -> Option<Completion> {
        self.completions.recv_deadline(deadline).ok().map(|placed| self.fetched(placed))
    }

    /// The next completion; blocks until `deadline`, or until `stop` is disconnected, at most.
    #[cfg(feature = "capi")]
    pub(crate) fn next_unless(
        &self,
        stop: &Receiver<std::convert::Infallible>,
        deadline: Instant,
    ) -> Option<Completion> {
        if let Some(completion) = self.try_next() {
            return Some(completion);
        }
        crossbeam_channel::select! {
            recv(self.completions) -> placed => placed.ok().map(|placed| self.fetched(placed)),
            recv(stop) -> _ => self.try_next(),
            default(deadline.saturating_duration_since(Instant::now())) => None,
        }
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
