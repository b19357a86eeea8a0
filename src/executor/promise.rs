//! One call's promise: the oneshot through which its result reaches its caller, exactly once.
//!
//! A promise has one shared state, held by its caller (a [`Pending`]), the dispatch state and,
//! once the call is under way, its backend's [`Reply`](crate::backend::Reply). The first
//! answer wins; later ones are ignored. The result goes straight from the thread that has it to
//! the caller; the batcher hears of it by an event that is sent *before* the caller can see the
//! result, so that whatever the caller does next finds the batcher up to date.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use super::callback::{Callback, CallbackJob};
use super::completion::{Completion, Place, QueueSender};
use crate::backend::{Answer, ExecutionId};
use crate::tool::{JsonObject, Outcome, Timing, ToolResult};

/// Hears of what becomes of calls: the batcher. Does not block.
pub(crate) trait Notify: Send + Sync {
    /// A running call was answered; its caller is about to see the result.
    fn finished(&self, id: ExecutionId, outcome: Outcome, timing: Timing);

    /// A caller wants this call to end.
    fn cancel(&self, id: ExecutionId);
}

/// Where a call's result goes.
pub(crate) enum ReplyTo {
    /// It stays in the call state, for a [`Pending`] to take.
    Pending,
    /// A completion queue.
    Queue { queue: QueueSender, place: Place, tag: u64 },
    /// The callback thread.
    Callback { thread: Sender<CallbackJob>, place: Place, callback: Callback },
}

enum State {
    Open(ReplyTo),
    /// Answered, the result not fetched yet. Boxed so that an open state stays small.
    Done(Box<ToolResult>),
    /// Answered, and the result handed on.
    Gone,
}

struct Progress {
    state: State,
    /// Set when the call is handed to its backend: when, and how long it had waited.
    sent: Option<(Instant, Timing)>,
    /// The container that it was sent to, where results tell of it.
    container: Option<Arc<str>>,
}

/// The shared part of a promise.
pub(crate) struct CallState {
    pub(crate) id: ExecutionId,
    pub(crate) trajectory_id: Arc<str>,
    uniq_id: String,
    /// What the result's metadata say of the call itself.
    notes: Option<Box<JsonObject>>,
    progress: Mutex<Progress>,
    done: Condvar,
    cancelled: AtomicBool,
    /// Why its end was asked for, where that was no caller's wish: its result says so.
    ended_because: OnceLock<(Outcome, String)>,
    /// Whether the batcher was asked for the call's end: once is enough.
    cancel_requested: AtomicBool,
    batcher: Arc<dyn Notify>,
}

impl CallState {
    /// The caller's id of the call.
    pub(crate) fn uniq_id(&self) -> &str {
        &self.uniq_id
    }

    /// Marks the call as handed to its backend now, after having waited as told.
    pub(crate) fn sent(&self, now: Instant, waited: Timing) {
        self.progress.lock().sent = Some((now, waited));
    }

    /// Has the result's metadata say in which container it ran.
    pub(crate) fn tell_container(&self, addr: Arc<str>) {
        self.progress.lock().container = Some(addr);
    }

    /// Notes that the call's end is wanted, for its backend to see.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Has a result that says that the call was cancelled say this instead.
    pub(crate) fn end_because(&self, outcome: Outcome, error: String) {
        // The first reason is the one for which it ends.
        let _ = self.ended_because.set((outcome, error));
    }

    /// Asks the batcher for the call's end.
    fn request_cancel(&self) {
        if !self.cancel_requested.swap(true, Ordering::Relaxed) {
            self.batcher.cancel(self.id);
        }
    }

    /// Answers the call for the batcher itself: gives the result's timing if this answer was the
    /// first, `None` if the call was answered before. `announce` runs between winning the race and
    /// the caller's seeing the result.
    pub(crate) fn answer_here(
        &self,
        result: ToolResult,
        announce: impl FnOnce(),
    ) -> Option<Timing> {
        self.complete(result, |_, _| announce())
    }

    /// The one way to answer. `announce` runs between winning the race and the caller's seeing the
    /// result.
    fn complete(
        &self,
        mut result: ToolResult,
        announce: impl FnOnce(Outcome, Timing),
    ) -> Option<Timing> {
        if result.outcome == Outcome::Cancelled
            && let Some((outcome, error)) = self.ended_because.get()
        {
            (result.outcome, result.error) = (*outcome, error.clone());
        }
        result.success = result.outcome == Outcome::Ok;
        let mut progress = self.progress.lock();
        if !matches!(progress.state, State::Open(_)) {
            return None;
        }
        if let Some((sent, waited)) = progress.sent {
            result.timing = Timing { exec: sent.elapsed(), ..waited };
        }
        let (outcome, timing) = (result.outcome, result.timing);
        let State::Open(destination) = std::mem::replace(&mut progress.state, State::Gone) else {
            return None;
        };
        result.uniq_id = Some(self.uniq_id.clone());
        if let Some(notes) = &self.notes {
            result.metadata.extend((**notes).clone());
        }
        if let Some(container) = &progress.container {
            result.metadata.insert("container".to_owned(), Value::from(&**container));
        }
        announce(outcome, timing);
        match destination {
            ReplyTo::Pending => {
                progress.state = State::Done(Box::new(result));
                drop(progress);
                self.done.notify_all();
            }
            ReplyTo::Queue { queue, place, tag } => {
                drop(progress);
                queue.send(place, self.completion(tag, result));
            }
            ReplyTo::Callback { thread, place, callback } => {
                drop(progress);
                let completion = self.completion(0, result);
                if let Err(refused) = thread.send(CallbackJob { completion, callback, place }) {
                    // The callback thread is gone: the executor is closed. Still exactly once.
                    refused.into_inner().run();
                }
            }
        }
        Some(timing)
    }

    fn completion(&self, tag: u64, result: ToolResult) -> Completion {
        Completion { tag, trajectory_id: self.trajectory_id.clone(), result }
    }
}

impl Answer for CallState {
    fn answer(&self, result: ToolResult) {
        self.complete(result, |outcome, timing| {
            self.batcher.finished(self.id, outcome, timing);
        });
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// The accepted call's side of a promise: answers on drop, so that no way out of the executor
/// forgets the caller.
pub(crate) struct Promise(Arc<CallState>);

impl Promise {
    /// A promise and, for its caller, its shared state.
    pub(crate) fn new(
        id: ExecutionId,
        trajectory_id: Arc<str>,
        uniq_id: String,
        destination: ReplyTo,
        batcher: Arc<dyn Notify>,
    ) -> Self {
        Self(Arc::new(CallState {
            id,
            trajectory_id,
            uniq_id,
            notes: None,
            progress: Mutex::new(Progress {
                state: State::Open(destination),
                sent: None,
                container: None,
            }),
            done: Condvar::new(),
            cancelled: AtomicBool::new(false),
            ended_because: OnceLock::new(),
            cancel_requested: AtomicBool::new(false),
            batcher,
        }))
    }

    /// The same promise, whose result's metadata say this, too.
    pub(crate) fn with_notes(mut self, notes: Option<Box<JsonObject>>) -> Self {
        // No one else has a clone yet.
        if let Some(call_state) = Arc::get_mut(&mut self.0) {
            call_state.notes = notes;
        }
        self
    }

    /// The shared state.
    pub(crate) fn call_state(&self) -> &Arc<CallState> {
        &self.0
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let lost = matches!(self.0.progress.lock().state, State::Open(_));
        if lost {
            let mut result =
                ToolResult::failure(Outcome::NeverRan, "the executor ended before this call did");
            result.may_have_executed = self.0.progress.lock().sent.is_some();
            self.0.answer_here(result, || {});
        }
    }
}

/// A call that was accepted: its result, when it is there.
///
/// Dropping it cancels nothing: the call runs on and its result is thrown away. Every accepted
/// call ends – by its tool, by one of its time limits, or when the executor closes – so none of
/// the waits is for ever.
pub struct Pending {
    call_state: Arc<CallState>,
}

impl Pending {
    pub(crate) fn new(call_state: Arc<CallState>) -> Self {
        Self { call_state }
    }

    /// Blocks until the result is there.
    pub fn wait(self) -> ToolResult {
        let mut progress = self.call_state.progress.lock();
        loop {
            match std::mem::replace(&mut progress.state, State::Gone) {
                State::Done(result) => return *result,
                state => progress.state = state,
            }
            self.call_state.done.wait(&mut progress);
        }
    }

    /// Blocks until the result is there, for `timeout` at most.
    ///
    /// # Errors
    /// Gives itself back when the result is not there by then. The call goes on.
    pub fn wait_timeout(self, timeout: Duration) -> Result<ToolResult, Pending> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    /// Blocks until the result is there, or until `deadline`.
    ///
    /// # Errors
    /// Gives itself back when the result is not there by then. The call goes on.
    pub fn wait_deadline(self, deadline: Instant) -> Result<ToolResult, Pending> {
        self.wait_until(Some(deadline))
    }

    fn wait_until(self, deadline: Option<Instant>) -> Result<ToolResult, Pending> {
        let mut progress = self.call_state.progress.lock();
        loop {
            match std::mem::replace(&mut progress.state, State::Gone) {
                State::Done(result) => return Ok(*result),
                state => progress.state = state,
            }
            let timed_out = match deadline {
                Some(deadline) => {
                    self.call_state.done.wait_until(&mut progress, deadline).timed_out()
                }
                None => {
                    self.call_state.done.wait(&mut progress);
                    false
                }
            };
            if timed_out && matches!(progress.state, State::Open(_)) {
                drop(progress);
                return Err(self);
            }
        }
    }

    /// The result, if it is there. Does not block.
    ///
    /// # Errors
    /// Gives itself back when it is not.
    pub fn try_wait(self) -> Result<ToolResult, Pending> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Asks for the call's end; does not block. A call that has not started ends as
    /// [`Outcome::Cancelled`] at once. A running one is killed, and its result – `Cancelled`, or
    /// what it gave if it was faster – comes when the last of its processes is gone.
    pub fn cancel(&self) {
        self.call_state.request_cancel();
    }

    /// Whether the result is there.
    pub fn is_done(&self) -> bool {
        matches!(self.call_state.progress.lock().state, State::Done(_))
    }

    /// A copy of the result, if it is there.
    #[cfg(test)]
    pub(crate) fn peek(&self) -> Option<ToolResult> {
        match &self.call_state.progress.lock().state {
            State::Done(result) => Some((**result).clone()),
            State::Open(_) | State::Gone => None,
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("id", &self.call_state.id)
            .field("trajectory_id", &self.call_state.trajectory_id)
            .field("is_done", &self.is_done())
            .finish()
    }
}

/// A call whose result goes to a completion queue or a callback: to cancel it, and to see whether
/// it has ended. Dropping it does neither. Clones are of the same call.
#[derive(Clone)]
pub struct CallHandle {
    call_state: Arc<CallState>,
}

impl CallHandle {
    pub(crate) fn new(call_state: Arc<CallState>) -> Self {
        Self { call_state }
    }

    /// Asks for the call's end, see [`Pending::cancel`]. Does not block; its result goes where it
    /// would have gone.
    pub fn cancel(&self) {
        self.call_state.request_cancel();
    }

    /// Whether the call has its result, which may still be on its way to where it goes.
    pub fn is_done(&self) -> bool {
        !matches!(self.call_state.progress.lock().state, State::Open(_))
    }
}

impl fmt::Debug for CallHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallHandle")
            .field("id", &self.call_state.id)
            .field("trajectory_id", &self.call_state.trajectory_id)
            .field("is_done", &self.is_done())
            .finish()
    }
}
