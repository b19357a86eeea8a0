//! The executor: [`ToolExecutor`], from the door to the answer.
//!
//! ```text
//! callers ─► gate (bounded) ─► events ─► tool-batcher ─► tool-io-N ─► backend
//!    ▲                                   owns Dispatch   tool-fn-N ─► in-process tools
//!    └──────────── promise: Pending, completion queue or callback ◄────────┘
//! ```
//!
//! [`ToolExecutor`] is what callers hold; it checks calls at the door and owns the threads.
//! `batcher` is the thread, `dispatch` the state it owns, `lane` the decision when to send,
//! `promise` the way back. Nothing in here names a concrete backend, and nothing but the workers'
//! threads ever blocks on one.

mod artifacts;
mod batcher;
mod begin;
mod builder;
mod callback;
mod closing;
mod completion;
mod destination;
mod dispatch;
mod event;
mod external;
mod gate;
#[cfg(target_os = "linux")]
mod host_tree;
mod lane;
mod lease;
mod notices;
mod orders;
mod promise;
mod snapshots;
mod start;
mod stats;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;

#[cfg(feature = "server")]
pub(crate) use self::artifacts::no_turn;
pub use self::builder::Builder;
pub use self::closing::CloseReport;
pub use self::completion::{Completion, CompletionQueue};
pub use self::destination::Destination;
#[cfg(feature = "server")]
pub(crate) use self::lease::Lease;
pub use self::promise::{CallHandle, Pending};
#[cfg(feature = "server")]
pub(crate) use self::snapshots::check_fork;
pub use self::stats::{BackendStats, Bucket, IdleHolder, LaneStats, OutcomeCounts, Stats, Summary};

use self::batcher::Ended;
use self::callback::CallbackJob;
use self::completion::Places;
use self::event::{Accepted, Event};
use self::gate::{Gate, Refused};
use self::orders::Orders;
use self::promise::{CallState, Notify, Promise, ReplyTo};
use self::snapshots::SnapshotPlaces;
use self::stats::Rejections;
use crate::backend::{Backend, Capabilities, ExecutionId, SlotRef};
#[cfg(doc)]
use crate::config::ExecutorConfig;
#[cfg(feature = "server")]
use crate::config::NetworkMode;
use crate::error::{BackendError, ReleaseError, SubmitError};
use crate::thread::OwnedThread;
use crate::tool::format::Repair;
use crate::tool::{
    CallTimes, JsonObject, Outcome, Policy, Prepared, ToolCall, ToolRegistry, ToolResult, prepare,
};
use crate::workers::guarded;

/// The longest trajectory id, in bytes.
pub const MAX_TRAJECTORY_ID: usize = 512;

/// How long closing waits for what should be immediate: the batcher's end after its last call, the
/// backend's clean-up, the threads.
const CLOSE_MARGIN: Duration = Duration::from_secs(15);

/// Executes the tool calls of many trajectories. Shared by reference between any number of
/// threads; every method takes `&self`.
///
/// Dropping it closes it, like [`close`](Self::close).
///
/// ```
/// use tool_executor::{ToolCall, ToolExecutor, ToolRegistry, ToolSchema};
///
/// let mut registry = ToolRegistry::builtin();
/// registry.register_fn(ToolSchema::new("shout", "Says it louder."), |_context, arguments| {
///     Ok(arguments.get("text").and_then(|text| text.as_str()).unwrap_or("").to_uppercase())
/// })?;
/// let executor = ToolExecutor::builder().registry(registry).start()?;
/// let call = ToolCall::new("shout", serde_json::json!({"text": "hello"}));
/// let result = executor.execute("trajectory-1", call);
/// assert_eq!(result.output, "HELLO");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ToolExecutor {
    events: Sender<Event>,
    /// The same, for the calls themselves.
    notify: Arc<dyn Notify>,
    gate: Arc<Gate>,
    orders: Orders,
    rejections: Arc<Rejections>,
    registry: ToolRegistry,
    policy: Policy,
    has_tool_server: bool,
    times: CallTimes,
    queue_timeout: Duration,
    close_timeout: Duration,
    next_id: AtomicU64,
    /// Taken when closing, so that the callback thread ends.
    callbacks: RwLock<Option<Sender<CallbackJob>>>,
    callback_places: Arc<Places>,
    backend: Arc<dyn Backend>,
    /// Whether the backend is made of others.
    has_tiers: bool,
    snapshot_places: SnapshotPlaces,
    threads: Mutex<Option<Threads>>,
    /// What [`close`](Self::close) found, and the last statistics.
    closed: Mutex<Option<(CloseReport, Stats)>>,
}

struct Threads {
    batcher: OwnedThread,
    /// What the batcher leaves behind when it ends.
    ended: Receiver<Ended>,
    callback: OwnedThread,
}

impl ToolExecutor {
    /// A builder with every setting at its default.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Runs a call and blocks until its result is there.
    ///
    /// The call's time limit is its [`timeout`](ToolCall::timeout), else its own numeric
    /// `arguments.timeout`, either clamped to 1…600 s, or to what
    /// [`ExecutorConfig::max_timeout`] allows, else the backend's default. It covers the
    /// execution; the waits before it have limits of their own ([`ExecutorConfig::queue_timeout`],
    /// [`ExecutorConfig::acquire_timeout`]).
    ///
    /// A trajectory's calls run one after the other, in the order in which they were submitted, in
    /// one slot, which it keeps until its [`release`](Self::release).
    ///
    /// Whatever goes wrong is a result too; with the executor closed or its queue full for
    /// `queue_timeout` it is [`Outcome::NeverRan`].
    pub fn execute(&self, trajectory_id: &str, call: ToolCall) -> ToolResult {
        match self.submit(trajectory_id, call) {
            Ok(pending) => pending.wait(),
            Err(error) => {
                let mut result = ToolResult::failure(Outcome::NeverRan, error.to_string());
                result.uniq_id = Some(error.into_call().uniq_id);
                result
            }
        }
    }

    /// Accepts a call and returns at once with a [`Pending`] – unless the queue is full: then it
    /// blocks until there is room, for `queue_timeout` at most. For the call's time limit and its
    /// place in the order see [`execute`](Self::execute).
    ///
    /// A call that is wrong in itself – unknown tool, bad arguments – is answered at once: its
    /// `Pending` is done when it is returned.
    ///
    /// # Errors
    /// The executor is closed, or its queue stayed full. The error gives the call back.
    pub fn submit(&self, trajectory_id: &str, call: ToolCall) -> Result<Pending, SubmitError> {
        self.admit(trajectory_id, call, self.room_by(), ReplyTo::Pending).map(Pending::new)
    }

    /// Like [`submit`](Self::submit), but never blocks.
    ///
    /// # Errors
    /// The executor is closed, or its queue is full. The error gives the call back.
    pub fn try_submit(&self, trajectory_id: &str, call: ToolCall) -> Result<Pending, SubmitError> {
        self.admit(trajectory_id, call, None, ReplyTo::Pending).map(Pending::new)
    }

    /// Like [`submit`](Self::submit), but the result goes to `destination`: a
    /// [completion queue](CompletionQueue::tagged) or a [closure](Destination::callback).
    ///
    /// # Errors
    /// As `submit`; or the destination has no place: all places of the completion queue are taken,
    /// or as many callbacks as the executor's queue has places have not returned yet.
    pub fn submit_to(
        &self,
        trajectory_id: &str,
        call: ToolCall,
        destination: Destination<'_>,
    ) -> Result<CallHandle, SubmitError> {
        self.admit_to(trajectory_id, call, destination, self.room_by())
    }

    /// Like [`submit_to`](Self::submit_to), but never blocks.
    ///
    /// # Errors
    /// As `submit_to`; also when the executor's queue is full now.
    pub fn try_submit_to(
        &self,
        trajectory_id: &str,
        call: ToolCall,
        destination: Destination<'_>,
    ) -> Result<CallHandle, SubmitError> {
        self.admit_to(trajectory_id, call, destination, None)
    }

    /// A queue that collects results, for a thread that drives many trajectories. `capacity`, at
    /// least 1, bounds the calls submitted to it and not yet fetched from it.
    pub fn completion_queue(&self, capacity: usize) -> CompletionQueue {
        CompletionQueue::new(capacity)
    }

    /// Like [`completion_queue`](Self::completion_queue), with a file descriptor for `poll` and its
    /// kin, see [`CompletionQueue::poll_fd`].
    ///
    /// # Errors
    /// The operating system gives no file descriptor.
    #[cfg(target_os = "linux")]
    pub fn pollable_completion_queue(&self, capacity: usize) -> std::io::Result<CompletionQueue> {
        CompletionQueue::pollable(capacity)
    }

    /// Ends a trajectory's use of its slot: after its earlier calls have ended, the slot is emptied
    /// and freed. Blocks until that is done; [`submit_release`](Self::submit_release) does not.
    ///
    /// A trajectory without a slot, or unknown, is released already. To release without waiting for
    /// what it runs, call [`cancel_trajectory`](Self::cancel_trajectory) first.
    ///
    /// # Errors
    /// The executor is closed, or the workspace could not be emptied.
    pub fn release(&self, trajectory_id: &str) -> Result<(), ReleaseError> {
        self.await_release(trajectory_id, true)
    }

    /// Like [`release`](Self::release), but does not empty the slot: the files stay until another
    /// trajectory needs the slot, and are removed then; the same trajectory, coming back before,
    /// finds them. Of one that has [begun](Self::begin) with a spec nothing is kept.
    ///
    /// # Errors
    /// The executor is closed.
    pub fn release_keeping_files(&self, trajectory_id: &str) -> Result<(), ReleaseError> {
        self.await_release(trajectory_id, false)
    }

    /// Like [`release`](Self::release), but does not wait for it to be done. Blocks only while
    /// thousands of such orders are on their way to the executor's thread.
    pub fn submit_release(&self, trajectory_id: &str) {
        self.send_release(trajectory_id, true, None);
    }

    /// Like [`release_keeping_files`](Self::release_keeping_files), but does not wait for it to be
    /// done.
    pub fn submit_release_keeping_files(&self, trajectory_id: &str) {
        self.send_release(trajectory_id, false, None);
    }

    /// Cancels everything of a trajectory that has not ended, see [`Pending::cancel`]. Every call
    /// still gets its result. Blocks only while thousands of such orders are on their way to the
    /// executor's thread.
    pub fn cancel_trajectory(&self, trajectory_id: &str) {
        let (trajectory_id, place) = (trajectory_id.into(), self.orders.enter());
        // Refused only when the batcher has ended, and then nothing runs.
        let _ = self.events.send(Event::CancelTrajectory { trajectory_id, place });
    }

    /// The slot that a trajectory holds now, if any. Blocks for a moment.
    pub fn slot_of(&self, trajectory_id: &str) -> Option<SlotRef> {
        let (reply, answer) = bounded(1);
        let trajectory_id = trajectory_id.into();
        self.events.send(Event::SlotOf { trajectory_id, reply }).ok()?;
        answer.recv().ok().flatten()
    }

    /// The counters and measurements up to now; after [`close`](Self::close), up to the end. Blocks
    /// for a moment.
    pub fn stats(&self) -> Stats {
        let (reply, answer) = bounded(1);
        let asked = self.events.send(Event::Stats(reply));
        let mut stats = match asked.ok().and_then(|()| answer.recv().ok()) {
            Some(stats) => stats,
            None => self.closed.lock().as_ref().map(|(_, stats)| stats.clone()).unwrap_or_default(),
        };
        if self.has_tiers {
            let tiers = guarded(|| self.backend.tiers()).unwrap_or_default();
            // Once it is closed there are none but these.
            stats.backends.resize_with(tiers.len(), BackendStats::default);
            for (told, tier) in stats.backends.iter_mut().zip(tiers) {
                (told.name, told.capabilities) = (tier.name, tier.capabilities);
            }
        }
        let capabilities = self.capabilities();
        stats.isolation_level = capabilities.isolation_level;
        stats.image_ids = capabilities.image_ids;
        stats.weakened_because = capabilities.weakened_because;
        stats.limits = capabilities.limits;
        stats.warm_slots = capabilities.warm_slots;
        stats.bad_containers = capabilities.bad_containers;
        stats.containers_found_bad = capabilities.containers_found_bad;
        stats.retired_sandboxes = capabilities.retired_sandboxes;
        stats.network = capabilities.network;
        stats.network_totals = capabilities.network_totals;
        stats
    }

    /// What the backend can do and what holds in its slots, as far as is known now.
    pub fn capabilities(&self) -> Capabilities {
        guarded(|| self.backend.capabilities()).unwrap_or_default()
    }

    /// Whether commands may have the network of a machine, so that they reach what listens there.
    #[cfg(feature = "server")]
    pub(crate) fn shares_network(&self) -> bool {
        let own = [Some(NetworkMode::None), Some(NetworkMode::Proxy)];
        self.policy.allow_network && !own.contains(&self.capabilities().network)
    }

    /// Has the backend use these containers from now on, by their addresses: for a fleet, the URLs
    /// of its sandbox servers; of several backends one, each with its name, as `fleet/http://…`.
    /// New ones are used as soon as they answer; where one is not named any more the trajectories
    /// that are there finish, and no other is put there. Blocks for a moment at most.
    /// [`Stats::lanes`] tells what has come of it.
    ///
    /// # Errors
    /// An address makes no sense, or the backend has the containers that it has (as the embedded
    /// sandbox, or a fleet whose servers are listed in a file): nothing has changed then.
    pub fn use_containers(&self, addrs: &[String]) -> Result<(), BackendError> {
        let used = guarded(|| self.backend.use_containers(addrs));
        used.unwrap_or_else(|panic| {
            Err(BackendError::new(format!("the backend panicked: {panic}")))
        })
    }

    /// The tools there are.
    pub fn registry(&self) -> &ToolRegistry {
        &self.registry
    }

    /// The longest time limit that a call may name.
    #[cfg(feature = "capi")]
    pub(crate) fn max_timeout(&self) -> Duration {
        self.times.most
    }

    /// Until when a blocking submit waits for room in the queue.
    fn room_by(&self) -> Option<Instant> {
        Some(Instant::now() + self.queue_timeout)
    }

    fn admit_to(
        &self,
        trajectory_id: &str,
        call: ToolCall,
        destination: Destination<'_>,
        room_by: Option<Instant>,
    ) -> Result<CallHandle, SubmitError> {
        let full = |call| SubmitError::CompletionQueueFull(Box::new(call));
        let reply_to = match destination.0 {
            destination::Kind::Queue { queue, tag } => {
                let Some(place) = queue.take_place() else { return Err(full(call)) };
                ReplyTo::Queue { queue: queue.sender().clone(), place, tag }
            }
            destination::Kind::Callback(callback) => {
                let Some(thread) = self.callbacks.read().clone() else {
                    return Err(SubmitError::Closed(Box::new(call)));
                };
                let Some(place) = self.callback_places.take() else { return Err(full(call)) };
                ReplyTo::Callback { thread, place, callback }
            }
        };
        self.admit(trajectory_id, call, room_by, reply_to).map(CallHandle::new)
    }

    /// The door: lets a call in, checks it, and queues it – or answers it here and now.
    fn admit(
        &self,
        trajectory_id: &str,
        call: ToolCall,
        room_by: Option<Instant>,
        destination: ReplyTo,
    ) -> Result<Arc<CallState>, SubmitError> {
        match self.gate.enter(room_by) {
            Ok(()) => {}
            Err(Refused::Full) => return Err(SubmitError::QueueFull(Box::new(call))),
            Err(Refused::Closed) => return Err(SubmitError::Closed(Box::new(call))),
        }
        let at = Instant::now();
        let mut call = call;
        let repairs = call.origin.as_mut().map(|origin| std::mem::take(&mut origin.repairs));
        let tool = self.registry.get(&call.name).map(|_| call.name.clone());
        let (uniq_id, notes, prepared) = match self.check(trajectory_id, call) {
            Ok(mut prepared) => {
                (std::mem::take(&mut prepared.uniq_id), prepared.notes.take(), Ok(prepared))
            }
            Err(mut refusal) => (refusal.uniq_id.take().unwrap_or_default(), None, Err(refusal)),
        };
        let notes = with_repairs(notes, &repairs.unwrap_or_default());
        let id = ExecutionId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let promise =
            Promise::new(id, trajectory_id.into(), uniq_id, destination, self.notify.clone())
                .with_notes(notes);
        let call_state = promise.call_state().clone();
        match prepared {
            Ok(prepared) => {
                let accepted = Box::new(Accepted { promise, prepared, at });
                if self.events.send(Event::Submit(accepted)).is_err() {
                    // The batcher has died; the promise that came back with the error has answered.
                    self.gate.leave(1);
                }
            }
            Err(refusal) => {
                // Before it leaves: once the gate is empty, closing takes the last statistics.
                self.rejections.add(tool.as_deref(), refusal.outcome);
                call_state.answer_here(*refusal, || {});
                self.leave_at_the_door();
            }
        }
        Ok(call_state)
    }

    /// Leaves the gate with a call that goes no further.
    fn leave_at_the_door(&self) {
        if self.gate.leave(1) {
            // Refused only when the batcher has ended.
            let _ = self.events.send(Event::GateLeft);
        }
    }

    /// What is to run for a call, or the result of one that goes no further.
    fn check(&self, trajectory_id: &str, call: ToolCall) -> Result<Prepared, Box<ToolResult>> {
        let Some(problem) = begin::id_problem(trajectory_id) else {
            let (registry, policy) = (&self.registry, &self.policy);
            let (server, times) = (self.has_tool_server, self.times);
            return prepare(registry, policy, server, call, times);
        };
        let mut refusal = ToolResult::failure(Outcome::InvalidCall, problem);
        refusal.uniq_id = Some(call.uniq_id);
        Err(Box::new(refusal))
    }

    fn await_release(
        &self,
        trajectory_id: &str,
        reset_workspace: bool,
    ) -> Result<(), ReleaseError> {
        let (reply, answer) = bounded(1);
        self.send_release(trajectory_id, reset_workspace, Some(reply));
        // The batcher answers when everything before it has ended, which all have their limits;
        // when it ends it drops what it has not answered.
        answer.recv().unwrap_or(Err(ReleaseError::Closed))
    }

    fn send_release(
        &self,
        trajectory_id: &str,
        reset_workspace: bool,
        reply: Option<Sender<Result<(), ReleaseError>>>,
    ) {
        let (trajectory_id, place) = (trajectory_id.into(), self.orders.enter());
        // Refused only when the batcher has ended: closing releases everything.
        let _ = self.events.send(Event::Release { trajectory_id, reset_workspace, reply, place });
    }
}

/// A call's notes, with what was mended in it when it was read.
fn with_repairs(notes: Option<Box<JsonObject>>, repairs: &[Repair]) -> Option<Box<JsonObject>> {
    if repairs.is_empty() {
        return notes;
    }
    let mut notes = notes.unwrap_or_default();
    let repairs = repairs.iter().map(|repair| repair.as_str().into()).collect();
    notes.insert("call_repairs".to_owned(), Value::Array(repairs));
    Some(notes)
}

impl fmt::Debug for ToolExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolExecutor")
            .field("policy", &self.policy)
            .field("queue_size", &self.gate.inside())
            .finish_non_exhaustive()
    }
}
