//! The answer side of a call: who holds a [`Reply`] owes one result.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::BeginFailure;
use crate::tool::{Outcome, ToolResult};

/// Where a result goes. Implemented by what hands out [`Reply`]s; takes the first answer and
/// ignores later ones. Must not block.
pub trait Answer: Send + Sync {
    /// Takes the result.
    fn answer(&self, result: ToolResult);

    /// Whether the call's end was asked for. Defaults to no.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Owes its caller one result. Dropped without one, also while a panic unwinds, it answers with
/// [`Outcome::BackendFailed`] itself.
pub struct Reply(Option<Arc<dyn Answer>>);

impl Reply {
    /// A reply that hands its result to `target`.
    pub fn new(target: Arc<dyn Answer>) -> Self {
        Self(Some(target))
    }

    /// A reply that hands its result to a closure: for tests of a backend, and for backends made of
    /// others.
    pub fn from_fn(take: impl FnOnce(ToolResult) + Send + 'static) -> Self {
        struct Once<F>(Mutex<Option<F>>);
        impl<F: FnOnce(ToolResult) + Send> Answer for Once<F> {
            fn answer(&self, result: ToolResult) {
                let take = self.0.lock().take();
                if let Some(take) = take {
                    take(result);
                }
            }
        }
        Self::new(Arc::new(Once(Mutex::new(Some(take)))))
    }

    /// Whether the call's end was asked for. Always set before
    /// [`Backend::cancel`](super::Backend::cancel) is called, which may come while
    /// [`Backend::execute`](super::Backend::execute) has not got to this call yet: so a backend
    /// that first notes where the call runs, and then looks here, misses no cancellation.
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|target| target.is_cancelled())
    }

    /// What tells whether the call is cancelled, for use after the reply was passed on.
    pub fn cancellation(&self) -> Cancellation {
        Cancellation(self.0.clone())
    }

    /// Answers the call. Does not block.
    pub fn send(mut self, result: ToolResult) {
        if let Some(target) = self.0.take() {
            target.answer(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(target) = self.0.take() {
            let error = if std::thread::panicking() {
                "the sandbox backend panicked while it held this call"
            } else {
                "the sandbox backend gave no result for this call"
            };
            target.answer(ToolResult::failure(Outcome::BackendFailed, error));
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// Tells whether a call is cancelled, see [`Reply::is_cancelled`].
#[derive(Clone)]
pub struct Cancellation(Option<Arc<dyn Answer>>);

impl Cancellation {
    /// Whether the call's end was asked for.
    pub fn is_requested(&self) -> bool {
        self.0.as_ref().is_some_and(|target| target.is_cancelled())
    }
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancellation").field(&self.is_requested()).finish()
    }
}

type TakeReset = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Owes the executor one word: whether a slot was reset. Dropped without it, the reset has failed.
pub struct ResetReply(Option<TakeReset>);

impl ResetReply {
    /// A reply that hands the outcome to a closure, which must not block.
    pub fn from_fn(take: impl FnOnce(Result<(), String>) + Send + 'static) -> Self {
        Self(Some(Box::new(take)))
    }

    /// Says how the reset went. Does not block.
    pub fn send(mut self, outcome: Result<(), String>) {
        if let Some(take) = self.0.take() {
            take(outcome);
        }
    }
}

impl Drop for ResetReply {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            take(Err("the sandbox backend gave no answer to the reset".to_owned()));
        }
    }
}

impl fmt::Debug for ResetReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetReply")
    }
}

type TakeBegin = Box<dyn FnOnce(Result<(), BeginFailure>) + Send>;

/// Owes the executor one word: whether a slot is what a trajectory's spec asks for. Dropped without
/// it, it is not.
pub struct BeginReply(Option<TakeBegin>);

impl BeginReply {
    /// A reply that hands the outcome to a closure, which must not block.
    pub fn from_fn(take: impl FnOnce(Result<(), BeginFailure>) + Send + 'static) -> Self {
        Self(Some(Box::new(take)))
    }

    /// Says how it went. Does not block.
    pub fn send(mut self, outcome: Result<(), BeginFailure>) {
        if let Some(take) = self.0.take() {
            take(outcome);
        }
    }
}

impl Drop for BeginReply {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            let text = "the sandbox backend did not say whether the trajectory can begin";
            take(Err(BeginFailure::failed(text)));
        }
    }
}

impl fmt::Debug for BeginReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BeginReply")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;

    #[test]
    fn a_dropped_reply_answers_once_with_backend_failed() {
        let (tx, rx) = unbounded();
        drop(Reply::from_fn(move |result| tx.send(result).unwrap()));
        assert_eq!(rx.recv().unwrap().outcome, Outcome::BackendFailed);
        assert!(rx.recv().is_err(), "exactly one answer");
    }

    #[test]
    fn a_panic_that_unwinds_through_a_reply_answers_it() {
        let (tx, rx) = unbounded();
        let reply = Reply::from_fn(move |result| tx.send(result).unwrap());
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _reply = reply;
            panic!("expected by this test");
        }));
        assert!(caught.is_err());
        assert!(rx.recv().unwrap().error.contains("panicked"));
    }

    #[test]
    fn a_dropped_reset_reply_is_a_failed_reset() {
        let (tx, rx) = unbounded();
        drop(ResetReply::from_fn(move |outcome| tx.send(outcome).unwrap()));
        assert!(rx.recv().unwrap().is_err());
    }

    #[test]
    fn a_dropped_begin_reply_is_a_failure_of_the_backend() {
        let (tx, rx) = unbounded();
        drop(BeginReply::from_fn(move |outcome| tx.send(outcome).unwrap()));
        assert_eq!(rx.recv().unwrap().unwrap_err().outcome(), Outcome::BackendFailed);
        assert!(rx.recv().is_err(), "exactly one answer");
    }
}
