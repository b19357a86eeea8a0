//! The slots of one container behind a server: whose turn it is in each, and who gets the answer.
//!
//! Knows nothing of HTTP. Both protocols of the sandbox server hand it what is to happen in a slot
//! – calls, resets, work with files – and each slot does one thing at a time, in order of arrival
//! ([`FifoLock`]). Calls that find their slots free go to the backend as one batch.
//!
//! # Threads
//! Nothing here blocks its caller. What talks to the backend runs on the threads `tool-slots-N`,
//! what reads workspaces on `tool-files-N`, what makes archives of them on `tool-archives-N`. A
//! turn itself only queues a job: however many wait before a slot, none of them works on top of
//! another's stack.
//!
//! # Exactly one answer
//! A [`Call`] answers once: by the backend, or when the last that could have run it – a turn, a
//! job, the backend's reply – is dropped, or when the server closes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::backend::{
    Answer, Backend, BeginReply, Capabilities, Execution, ExecutionId, HeldImages, Reply,
    ResetReply, SlotRef, Snapshots,
};
use crate::error::{BackendError, BeginFailure};
use crate::interrupt::Interrupt;
use crate::server::fifo_lock::{FifoLock, Inside};
use crate::snapshot::SnapshotError;
use crate::spec::{SnapshotId, TrajectorySpec};
use crate::tool::{JsonObject, Outcome, ToolResult};
use crate::workers::{Workers, guarded};

/// The threads that talk to the backend. They do not wait for commands, but file tools run on
/// them.
const IO_THREADS: usize = 8;
/// The threads that read workspaces.
const FILE_THREADS: usize = 4;
/// The threads that make archives, and bring files in and out: that takes long and waits for the
/// client.
const ARCHIVE_THREADS: usize = 4;
/// The threads that keep files and grade them, which wait for the grader.
const GRADE_THREADS: usize = 16;
/// How long the backend may take to empty a slot at the start.
const FIRST_RESET: Duration = Duration::from_secs(60);
/// How long the backend may take to end what is left, after the grace.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// The tools there are on the wire.
pub(crate) const TOOLS: [&str; 5] = ["bash", "bash_stateful", "read_file", "write_file", "tmux"];

/// What is called with a call's result. Must not block.
pub(crate) type OnDone = Box<dyn FnOnce(ToolResult) + Send>;
/// Work with a slot's workspace. May block.
pub(crate) type SlotJob = Box<dyn FnOnce(&dyn Backend, &SlotRef) + Send>;
type Job = Box<dyn FnOnce() + Send>;

/// What is done with a slot's workspace, by which threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileWork {
    /// A file is read, or files are listed.
    Read,
    /// An archive is made, or files come in or go out.
    Archive,
    /// Files are kept or graded.
    Grade,
}

/// A call for a slot.
pub(crate) struct SlotCall {
    /// The slot's index, below [`Slots::len`].
    pub(crate) slot: usize,
    /// Whose call it is, for people who look into the server.
    pub(crate) trajectory_id: Arc<str>,
    /// The tool's name, which may be unknown.
    pub(crate) tool: String,
    /// Its arguments.
    pub(crate) arguments: JsonObject,
    /// Its time limit.
    pub(crate) timeout: Duration,
    /// Called once, whatever happens, when the slot is free again. Must not block.
    pub(crate) on_done: OnDone,
}

/// The slots of one container.
pub(crate) struct Slots {
    backend: Arc<dyn Backend>,
    /// The tools whose calls the backend takes at once.
    inline_tools: &'static [&'static str],
    addr: Arc<str>,
    slots: Vec<Slot>,
    cut_network: bool,
    next_id: AtomicU64,
    /// What has no answer yet.
    open: Mutex<HashMap<ExecutionId, Arc<Call>>>,
    /// Told when `open` becomes empty.
    idle: Condvar,
    closing: AtomicBool,
    /// Taken when closing.
    io: Mutex<Option<Workers>>,
    files: Mutex<Option<Workers>>,
    archives: Mutex<Option<Workers>>,
    grades: Mutex<Option<Workers>>,
    refused: Mutex<Refused>,
}

struct Slot {
    name: Arc<str>,
    fifo_lock: FifoLock,
    /// Whose call runs in it.
    current: Mutex<Option<Arc<str>>>,
    /// How often it was reset.
    generation: AtomicU64,
}

/// Jobs that no thread took, on their way to be dropped.
#[derive(Default)]
struct Refused {
    jobs: VecDeque<Job>,
    somebody_drops: bool,
}

/// A call, or a reset, from its arrival to its answer.
struct Call {
    id: ExecutionId,
    slot: usize,
    slots: Arc<Slots>,
    cancelled: AtomicBool,
    handed_over: AtomicBool,
    /// Taken by the answer.
    owed: Mutex<Option<Owed>>,
}

struct Owed {
    on_done: OnDone,
    /// From its turn on.
    inside: Option<Inside>,
}

/// A call whose turn has not come, or whose job has not run: dropped, it never ran.
struct Unstarted {
    call: Arc<Call>,
    /// It has another answerer: its job has run.
    started: bool,
}

/// A call's way to the backend, kept until it is there.
struct Ready {
    unstarted: Unstarted,
    trajectory_id: Arc<str>,
    tool: String,
    arguments: JsonObject,
    timeout: Duration,
}

/// Calls its function when it is dropped.
struct OnDrop(Option<Job>);

impl Slots {
    /// Starts the backend's container and the threads that talk to it. Blocks while the backend
    /// does. With `cut_network` no call has the network, whatever it says.
    ///
    /// # Errors
    /// The backend's, or it has not exactly one container with slots, or there are no threads.
    pub(crate) fn start(
        backend: Arc<dyn Backend>,
        cut_network: bool,
    ) -> Result<Arc<Self>, BackendError> {
        let mut containers = backend.start(&Interrupt::new())?;
        let container = match (containers.pop(), containers.len()) {
            (Some(container), 0) if !container.slots.is_empty() => container,
            _ => return Err(BackendError::new("the backend must have one container, with slots")),
        };
        let workers = |name, threads| {
            Workers::start(name, threads)
                .map(|workers| Mutex::new(Some(workers)))
                .map_err(|error| BackendError::with_source("cannot start threads", error))
        };
        let slot = |name: String| Slot {
            name: name.into(),
            fifo_lock: FifoLock::default(),
            current: Mutex::new(None),
            generation: AtomicU64::new(0),
        };
        let capabilities = backend.capabilities();
        let slots = Arc::new(Self {
            addr: container.addr.into(),
            slots: container.slots.into_iter().map(slot).collect(),
            cut_network,
            next_id: AtomicU64::new(1),
            open: Mutex::default(),
            idle: Condvar::new(),
            closing: AtomicBool::new(false),
            io: workers("tool-slots", IO_THREADS)?,
            files: workers("tool-files", FILE_THREADS)?,
            archives: workers("tool-archives", ARCHIVE_THREADS)?,
            grades: workers("tool-grades", GRADE_THREADS)?,
            refused: Mutex::default(),
            inline_tools: capabilities.inline_tools,
            backend,
        });
        if capabilities.starts_dirty {
            slots.reset_all()?;
        }
        Ok(slots)
    }

    /// Empties every slot, and waits for that.
    fn reset_all(self: &Arc<Self>) -> Result<(), BackendError> {
        let (tell, told) = crossbeam_channel::bounded(self.len());
        for slot in 0..self.len() {
            let tell = tell.clone();
            // Refused only after the time is up.
            self.reset(slot, Box::new(move |reset| drop(tell.send((slot, reset)))));
        }
        let deadline = Instant::now() + FIRST_RESET;
        for _ in 0..self.len() {
            let (slot, why) = match told.recv_deadline(deadline) {
                Ok((_, Ok(()))) => continue,
                Ok((slot, Err(why))) => (self.name(slot), why),
                Err(_) => ("a slot", "it takes too long".to_owned()),
            };
            self.close(Instant::now());
            return Err(BackendError::new(format!("cannot empty {slot}: {why}")));
        }
        Ok(())
    }

    /// How many slots there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// What holds in the slots.
    pub(crate) fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    /// The images that it has, where it says so.
    pub(crate) fn images(&self) -> Option<Arc<HeldImages>> {
        self.backend.images()
    }

    /// Whether commands run isolated from the machine, as far as is known.
    pub(crate) fn isolates(&self) -> bool {
        self.capabilities().isolation.not_isolated_because().is_none()
    }

    /// A slot's name.
    pub(crate) fn name(&self, slot: usize) -> &str {
        &self.slots[slot].name
    }

    /// The index of the slot of this name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|slot| &*slot.name == name)
    }

    /// Whether a call runs in the slot now.
    pub(crate) fn is_executing(&self, slot: usize) -> bool {
        self.slots[slot].current.lock().is_some()
    }

    /// Whose call runs in the slot now.
    pub(crate) fn current(&self, slot: usize) -> Option<Arc<str>> {
        self.slots[slot].current.lock().clone()
    }

    /// Runs calls, each when its slot's turn comes. Does not block.
    ///
    /// Those whose slots are free go to the backend as one batch, in one job unless it takes them
    /// at once ([`Capabilities::inline_tools`]); `handed_over` is called after that job, or at once
    /// if there is none. Gives the ids in the order of the calls.
    pub(crate) fn execute(
        self: &Arc<Self>,
        calls: Vec<SlotCall>,
        handed_over: Box<dyn FnOnce() + Send>,
    ) -> Vec<ExecutionId> {
        let handed_over = OnDrop(Some(handed_over));
        let batch = Arc::new(Mutex::new(Some(Vec::new())));
        let mut ids = Vec::with_capacity(calls.len());
        for call in calls {
            let SlotCall { slot, trajectory_id, tool, arguments, timeout, on_done } = call;
            let unstarted = self.open(slot, on_done);
            ids.push(unstarted.call.id);
            let ready = Ready { unstarted, trajectory_id, tool, arguments, timeout };
            let batch = batch.clone();
            self.enter(slot, move |slots, inside| {
                if let Some(inside) = ready.unstarted.call.keep(inside) {
                    return slots.spawn(&slots.io, move || drop(inside));
                }
                let mut batch = batch.lock();
                if let Some(batch) = &mut *batch {
                    batch.push(ready);
                    return;
                }
                drop(batch);
                let job = slots.clone();
                slots.spawn(&slots.io, move || job.hand_over(vec![ready]));
            });
        }
        let ready = batch.lock().take().unwrap_or_default();
        if ready.iter().all(|ready| self.inline_tools.contains(&&*ready.tool)) {
            // A change of threads would cost more.
            if let Err(panic) = guarded(|| self.hand_over(ready)) {
                log::error!("the sandbox backend panicked in execute: {panic}");
            }
        } else {
            let slots = self.clone();
            self.spawn(&self.io, move || {
                let _handed_over = handed_over;
                slots.hand_over(ready);
            });
        }
        ids
    }

    /// Gives calls whose turn it is to the backend, on one of its threads.
    fn hand_over(&self, ready: Vec<Ready>) {
        let executions = ready.into_iter().filter_map(|ready| self.execution(ready));
        let batch: Vec<Execution> = executions.collect();
        if !batch.is_empty() {
            self.backend.execute(&self.addr, batch);
        }
    }

    /// What the backend gets of a call; nothing if the call is answered here.
    fn execution(&self, ready: Ready) -> Option<Execution> {
        let Ready { unstarted, trajectory_id, tool, mut arguments, timeout } = ready;
        let call = unstarted.call.clone();
        let Some(tool) = TOOLS.into_iter().find(|name| *name == tool) else {
            call.answer(ToolResult::failure(Outcome::UnknownTool, format!("Unknown tool: {tool}")));
            return None;
        };
        // First this, then the look at the flag; a cancel does it the other way round.
        call.handed_over.store(true, Ordering::SeqCst);
        if call.cancelled.load(Ordering::SeqCst) {
            let mut result = ToolResult::failure(Outcome::Cancelled, "Command was cancelled");
            result.may_have_executed = false;
            call.answer(result);
            return None;
        }
        if self.cut_network {
            arguments.insert("allow_network".to_owned(), false.into());
        }
        *self.slots[call.slot].current.lock() = Some(trajectory_id.clone());
        Some(Execution {
            id: call.id,
            trajectory_id,
            slot: self.slot_ref(call.slot),
            tool,
            arguments,
            timeout,
            reply: Reply::new(unstarted.into_started()),
        })
    }

    /// Asks for a call's end; does not block. One that waits for its turn is answered
    /// [`Outcome::Cancelled`] when that comes; one that is answered already stays so.
    pub(crate) fn cancel(&self, id: ExecutionId) {
        let Some(call) = self.open.lock().get(&id).cloned() else { return };
        call.cancelled.store(true, Ordering::SeqCst);
        if call.handed_over.load(Ordering::SeqCst) {
            let backend = self.backend.clone();
            self.spawn(&self.io, move || backend.cancel(id));
        }
    }

    /// Empties a slot when its turn comes; does not block. `on_done` is called once, whatever
    /// happens, when the slot is free again.
    pub(crate) fn reset(
        self: &Arc<Self>,
        slot: usize,
        on_done: Box<dyn FnOnce(Result<(), String>) + Send>,
    ) {
        let on_done: OnDone = Box::new(move |result| {
            on_done(if result.success { Ok(()) } else { Err(result.error) });
        });
        let unstarted = self.open(slot, on_done);
        self.enter(slot, move |slots, inside| {
            if let Some(inside) = unstarted.call.keep(inside) {
                return slots.spawn(&slots.io, move || drop(inside));
            }
            let job = slots.clone();
            slots.spawn(&slots.io, move || {
                let call = unstarted.into_started();
                let generation = &job.slots[slot].generation;
                generation.fetch_add(1, Ordering::Relaxed);
                let reply = ResetReply::from_fn(move |reset| {
                    call.answer(match reset {
                        Ok(()) => ToolResult::ok(""),
                        Err(why) => ToolResult::failure(Outcome::BackendFailed, why),
                    });
                });
                job.backend.reset(&job.slot_ref(slot), reply);
            });
        });
    }

    /// Makes a slot what a trajectory's spec asks for, when its turn comes; does not block.
    /// `on_done` is called once, whatever happens, when the slot is free again.
    pub(crate) fn begin(self: &Arc<Self>, slot: usize, spec: Arc<TrajectorySpec>, on_done: OnDone) {
        let unstarted = self.open(slot, on_done);
        self.enter(slot, move |slots, inside| {
            if let Some(inside) = unstarted.call.keep(inside) {
                return slots.spawn(&slots.io, move || drop(inside));
            }
            let job = slots.clone();
            slots.spawn(&slots.io, move || {
                let call = unstarted.into_started();
                // Its client may not look, or be of another version.
                let checked = spec.check().and_then(|()| match job.cut_network {
                    true => Arc::unwrap_or_clone(spec).without_network().map(Arc::new),
                    false => Ok(spec),
                });
                let spec = match checked {
                    Ok(spec) => spec,
                    Err(problem) => {
                        return call
                            .answer(BeginFailure::unsupported(problem.to_string()).result());
                    }
                };
                let reply = BeginReply::from_fn(move |begun| {
                    call.answer(match begun {
                        Ok(()) => ToolResult::ok(""),
                        Err(failure) => failure.result(),
                    });
                });
                job.backend.begin(&job.slot_ref(slot), &spec, reply);
            });
        });
    }

    /// Runs a job that may block, when the slot's turn comes, while nothing else happens in the
    /// slot. Does not block. When the server closes first, or too many wait already, the job is
    /// dropped.
    pub(crate) fn with_slot(self: &Arc<Self>, slot: usize, work: FileWork, job: SlotJob) {
        self.enter(slot, move |slots, inside| {
            let this = slots.clone();
            let workers = match work {
                FileWork::Read => &slots.files,
                FileWork::Archive => &slots.archives,
                FileWork::Grade => &slots.grades,
            };
            slots.spawn(workers, move || {
                let _inside = inside;
                job(&*this.backend, &this.slot_ref(slot));
            });
        });
    }

    /// Gives up a snapshot that was made in one of its slots.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub(crate) fn drop_snapshot(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        with_snapshots(&*self.backend, |snapshots| snapshots.drop_snapshot(id))
    }

    /// Lets what there is end until `deadline`, then ends everything: the backend is closed, and
    /// what has no answer gets one. Blocks, for some seconds beyond the deadline at most. What
    /// comes afterwards never runs.
    pub(crate) fn close(&self, deadline: Instant) {
        self.closing.store(true, Ordering::SeqCst);
        {
            let mut open = self.open.lock();
            while !open.is_empty() {
                if self.idle.wait_until(&mut open, deadline).timed_out() {
                    break;
                }
            }
        }
        let workers: Vec<Workers> = [&self.io, &self.files, &self.archives, &self.grades]
            .into_iter()
            .filter_map(|workers| workers.lock().take())
            .collect();
        if workers.is_empty() {
            return;
        }
        workers.iter().for_each(Workers::stop);
        let deadline = Instant::now() + CLEAN_UP;
        self.backend.close(deadline);
        for workers in workers {
            workers.close(deadline);
        }
        // Whatever the backend has kept for itself.
        let left: Vec<Arc<Call>> = self.open.lock().values().cloned().collect();
        for call in left {
            call.answer(closed(call.handed_over.load(Ordering::SeqCst)));
        }
    }

    /// Notes a call that is owed an answer.
    fn open(self: &Arc<Self>, slot: usize, on_done: OnDone) -> Unstarted {
        let id = ExecutionId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let call = Arc::new(Call {
            id,
            slot,
            slots: self.clone(),
            cancelled: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            owed: Mutex::new(Some(Owed { on_done, inside: None })),
        });
        self.open.lock().insert(id, call.clone());
        Unstarted { call, started: false }
    }

    /// Has `turn` called when the slot is free. Dropped otherwise, which answers its call.
    fn enter(
        self: &Arc<Self>,
        slot: usize,
        turn: impl FnOnce(&Arc<Self>, Inside) + Send + 'static,
    ) {
        if self.closing.load(Ordering::SeqCst) {
            return;
        }
        let slots = self.clone();
        // A crowd is told so by what `turn` holds.
        let _ = self.slots[slot].fifo_lock.enter(move |inside| turn(&slots, inside));
    }

    /// Queues a job; without threads it is dropped.
    fn spawn(&self, workers: &Mutex<Option<Workers>>, job: impl FnOnce() + Send + 'static) {
        let job: Job = Box::new(job);
        {
            let workers = workers.lock();
            if let Some(workers) = &*workers {
                return workers.spawn(job);
            }
        }
        // Dropping it lets the next one into its slot, whose job comes here too, and so on. One
        // after the other, not each on top of the one before.
        let mut refused = self.refused.lock();
        refused.jobs.push_back(job);
        if std::mem::replace(&mut refused.somebody_drops, true) {
            return;
        }
        while let Some(job) = refused.jobs.pop_front() {
            drop(refused);
            drop(job);
            refused = self.refused.lock();
        }
        refused.somebody_drops = false;
    }

    fn slot_ref(&self, index: usize) -> SlotRef {
        let slot = &self.slots[index];
        SlotRef {
            addr: self.addr.clone(),
            index,
            name: slot.name.clone(),
            generation: slot.generation.load(Ordering::Relaxed),
        }
    }
}

impl Call {
    /// Keeps the slot until the answer; gives it back if that was given before.
    fn keep(&self, inside: Inside) -> Option<Inside> {
        match &mut *self.owed.lock() {
            Some(owed) => owed.inside.replace(inside),
            None => Some(inside),
        }
    }
}

impl Answer for Call {
    fn answer(&self, result: ToolResult) {
        let Some(Owed { on_done, inside }) = self.owed.lock().take() else { return };
        if inside.is_some() {
            *self.slots.slots[self.slot].current.lock() = None;
        }
        {
            let mut open = self.slots.open.lock();
            open.remove(&self.id);
            if open.is_empty() {
                self.slots.idle.notify_all();
            }
        }
        // The next one's turn first: who hears of this result finds the slot free.
        drop(inside);
        // A panic must not go on into the backend that answered.
        if let Err(panic) = guarded(move || on_done(result)) {
            log::error!("the taker of a result panicked: {panic}");
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

impl Unstarted {
    /// The call, for who answers it from now on.
    fn into_started(mut self) -> Arc<Call> {
        self.started = true;
        self.call.clone()
    }
}

impl Drop for Unstarted {
    fn drop(&mut self) {
        if !self.started {
            let closing = self.call.slots.closing.load(Ordering::SeqCst);
            self.call.answer(if closing { closed(false) } else { crowded() });
        }
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(run) = self.0.take()
            && let Err(panic) = guarded(run)
        {
            log::error!("what was to follow a hand-over panicked: {panic}");
        }
    }
}

fn closed(may_have_executed: bool) -> ToolResult {
    if may_have_executed {
        return ToolResult::failure(
            Outcome::SandboxLost,
            "the server closed before this call ended",
        );
    }
    ToolResult::failure(Outcome::NeverRan, "the server closed before this call ran")
}

fn crowded() -> ToolResult {
    ToolResult::failure(Outcome::NeverRan, "too many calls wait for this slot")
}

/// Has a backend do something.
pub(super) fn with_snapshots<T>(
    backend: &dyn Backend,
    run: impl FnOnce(&dyn Snapshots) -> Result<T, SnapshotError>,
) -> Result<T, SnapshotError> {
    let run = || run(backend.snapshots().ok_or_else(SnapshotError::unsupported)?);
    guarded(run).unwrap_or_else(|panic| {
        let text = format!("the sandbox backend panicked: {panic}");
        Err(SnapshotError::Io(text, std::io::Error::other(panic)))
    })
}

#[cfg(test)]
mod tests;
