//! Where the result of a submitted call goes, as its caller says it.

use std::fmt;

use super::callback::Callback;
use super::completion::{Completion, CompletionQueue};

/// Where the result of a call that is submitted by
/// [`submit_to`](crate::ToolExecutor::submit_to) goes.
pub struct Destination<'a>(pub(super) Kind<'a>);

pub(super) enum Kind<'a> {
    Queue { queue: &'a CompletionQueue, tag: u64 },
    Callback(Callback),
}

impl<'a> Destination<'a> {
    /// A completion queue, with a tag that tells the call from others. The same as
    /// [`CompletionQueue::tagged`].
    pub fn queue(queue: &'a CompletionQueue, tag: u64) -> Self {
        Self(Kind::Queue { queue, tag })
    }
}

impl Destination<'static> {
    /// A closure. It is called with the result (whose `tag` is 0), on the one thread that runs all
    /// callbacks: one that takes long delays the other callbacks, and nothing else. A panic in it
    /// is logged and ends there.
    pub fn callback(on_done: impl FnOnce(Completion) + Send + 'static) -> Self {
        Self(Kind::Callback(Box::new(on_done)))
    }
}

impl CompletionQueue {
    /// This queue as the [`Destination`] of a call's result, under `tag`.
    pub fn tagged(&self, tag: u64) -> Destination<'_> {
        Destination::queue(self, tag)
    }
}

impl fmt::Debug for Destination<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Queue { tag, .. } => f.debug_struct("Queue").field("tag", tag).finish(),
            Kind::Callback(_) => f.write_str("Callback"),
        }
    }
}
