//! The slots of one container behind a server: who may enter which when, and what runs there now.
//!
//! Each slot has a queue, first come, first served, that calls, resets and artifacts pass. Whatever
//! the backend may block on is done on threads of two pools: `tool-io` hands calls over, `tool-files`
//! reads and archives, so that a large archive holds up no call.
//!
//! Knows no HTTP and no sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backend::{Answer, Backend, Execution, ExecutionId, Reply, ResetReply, SlotRef};
use crate::error::BackendError;
use crate::server::turnstile::{Inside, Turnstile};
use crate::tool::{JsonObject, Outcome, ToolResult};
use crate::workers::{Workers, guarded};

/// The tools that a sandbox may have.
const TOOLS: [&str; 5] = ["bash", "bash_stateful", "read_file", "write_file", "tmux"];
/// How many threads hand calls over.
const IO_THREADS: usize = 8;
/// How many threads read and archive files.
const FILE_THREADS: usize = 4;

/// A call for a slot.
pub(crate) struct SlotCall {
    /// The slot's index.
    pub(crate) slot: usize,
    /// Whose call it is, where that is known.
    pub(crate) trajectory_id: Arc<str>,
    /// The tool, as the sandbox calls it.
    pub(crate) tool: String,
    /// Its arguments.
    pub(crate) arguments: JsonObject,
    /// Its time limit.
    pub(crate) timeout: Duration,
    /// Gets the result, exactly once, on any thread; must not block.
    pub(crate) on_done: Box<dyn FnOnce(ToolResult) + Send>,
}

/// See the module.
pub(crate) struct Slots {
    backend: Arc<dyn Backend>,
    slots: Vec<Slot>,
    next_id: AtomicU64,
    /// Commands get no network, whatever their calls say.
    cut_network: bool,
    /// Taken when closing.
    workers: Mutex<Option<Pools>>,
}

struct Pools {
    io: Workers,
    files: Workers,
}

struct Slot {
    slot_ref: SlotRef,
    turnstile: Turnstile,
    /// The calls that wait for this slot or run in it.
    calls: Mutex<Vec<Arc<Call>>>,
}

/// A call from its acceptance to its answer.
struct Call {
    id: ExecutionId,
    slots: std::sync::Weak<Slots>,
    slot: usize,
    cancelled: AtomicBool,
    handed_over: AtomicBool,
    owed: Mutex<Owed>,
}

struct Owed {
    on_done: Option<Box<dyn FnOnce(ToolResult) + Send>>,
    inside: Option<Inside>,
}

/// What is to be handed to the backend.
struct Ready {
    call: Arc<Call>,
    execution: Execution,
}

impl Slots {
    /// The slots of this backend, which has one container.
    ///
    /// # Errors
    /// The backend does not start, has another number of containers, or there are no threads.
    pub(crate) fn start(
        backend: Arc<dyn Backend>,
        cut_network: bool,
    ) -> Result<Arc<Self>, BackendError> {
        let mut containers = backend.start()?;
        let (Some(container), true) = (containers.pop(), containers.is_empty()) else {
            return Err(BackendError::new("a sandbox server serves exactly one container"));
        };
        let no_threads = |error| BackendError::with_source("no threads to be had", error);
        let pools = Pools {
            io: Workers::start("tool-io", IO_THREADS).map_err(no_threads)?,
            files: Workers::start("tool-files", FILE_THREADS).map_err(no_threads)?,
        };
        let addr: Arc<str> = container.addr.into();
        let slot = |(index, name): (usize, String)| Slot {
            slot_ref: SlotRef {
                container: 0,
                addr: addr.clone(),
                index,
                name: name.into(),
                generation: 1,
            },
            turnstile: Turnstile::default(),
            calls: Mutex::default(),
        };
        Ok(Arc::new(Self {
            backend,
            slots: container.slots.into_iter().enumerate().map(slot).collect(),
            next_id: AtomicU64::new(1),
            cut_network,
            workers: Mutex::new(Some(pools)),
        }))
    }

    /// How many slots there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// A slot's name. The index must be one of a slot.
    pub(crate) fn name(&self, slot: usize) -> &str {
        &self.slots[slot].slot_ref.name
    }

    /// The slot of this name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|slot| *slot.slot_ref.name == *name)
    }

    /// Whether a call, a reset or the like is in the slot.
    pub(crate) fn is_executing(&self, slot: usize) -> bool {
        self.slots[slot].turnstile.is_occupied()
    }

    /// Takes calls in, each into its slot's queue. Does not block. Those whose slots are free go to
    /// the backend as one batch, and `handed_over` is called when that has been done; the others take
    /// their turn later. Gives their ids.
    pub(crate) fn execute(
        self: &Arc<Self>,
        calls: Vec<SlotCall>,
        handed_over: Box<dyn FnOnce() + Send>,
    ) -> Vec<ExecutionId> {
        // Open while the calls enter: what may go at once is collected.
        let collecting = Arc::new(Mutex::new(Some(Vec::new())));
        let ids = calls
            .into_iter()
            .map(|asked| {
                let id = ExecutionId(self.next_id.fetch_add(1, Ordering::Relaxed));
                self.enter(id, asked, &collecting);
                id
            })
            .collect();
        let batch = collecting.lock().take().unwrap_or_default();
        self.hand_over(batch, handed_over);
        ids
    }

    fn enter(
        self: &Arc<Self>,
        id: ExecutionId,
        asked: SlotCall,
        collecting: &Arc<Mutex<Option<Vec<Ready>>>>,
    ) {
        let SlotCall { slot, trajectory_id, tool, mut arguments, timeout, on_done } = asked;
        let call = Arc::new(Call {
            id,
            slots: Arc::downgrade(self),
            slot,
            cancelled: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            owed: Mutex::new(Owed { on_done: Some(on_done), inside: None }),
        });
        if self.cut_network {
            arguments.insert("allow_network".to_owned(), false.into());
        }
        let place = &self.slots[slot];
        place.calls.lock().push(call.clone());
        let (slots, collecting) = (self.clone(), collecting.clone());
        let its_call = call.clone();
        let slot_ref = place.slot_ref.clone();
        let entered = place.turnstile.enter(move |inside| {
            let call = its_call;
            call.owed.lock().inside = Some(inside);
            if call.cancelled.load(Ordering::Acquire) {
                let error = "Tool call was cancelled before it started";
                return call.answer(unstarted(Outcome::Cancelled, error));
            }
            let Some(tool) = TOOLS.into_iter().find(|known| *known == tool) else {
                let error = format!("Unknown tool: {tool}");
                return call.answer(unstarted(Outcome::UnknownTool, error));
            };
            let reply = Reply::new(call.clone());
            let execution =
                Execution { id, trajectory_id, slot: slot_ref, tool, arguments, timeout, reply };
            let ready = Ready { call, execution };
            let mut collecting = collecting.lock();
            match collecting.as_mut() {
                Some(batch) => batch.push(ready),
                None => {
                    drop(collecting);
                    slots.hand_over(vec![ready], Box::new(|| {}));
                }
            }
        });
        if entered.is_err() {
            let error = "too many calls wait for this slot";
            call.answer(unstarted(Outcome::NeverRan, error));
        }
    }

    fn hand_over(self: &Arc<Self>, batch: Vec<Ready>, handed_over: Box<dyn FnOnce() + Send>) {
        if batch.is_empty() {
            return handed_over();
        }
        let slots = self.clone();
        let job = move || {
            let mut executions = Vec::with_capacity(batch.len());
            for Ready { call, execution } in batch {
                call.handed_over.store(true, Ordering::Release);
                executions.push(execution);
            }
            // A panic drops the replies, which answers them.
            if let Err(panic) = guarded(|| slots.backend.execute(0, executions)) {
                log::error!("the sandbox backend panicked in execute: {panic}");
            }
            handed_over();
        };
        self.spawn_on(|pools| &pools.io, job);
    }

    /// Asks for a call's end. One that waits for its slot ends when its turn comes, without having
    /// run. Does not block.
    pub(crate) fn cancel(self: &Arc<Self>, id: ExecutionId) {
        let found = self.slots.iter().find_map(|slot| {
            let calls = slot.calls.lock();
            calls.iter().find(|call| call.id == id).cloned()
        });
        let Some(call) = found else { return };
        // Before the look: a hand-over that comes in between sees it.
        call.cancelled.store(true, Ordering::Release);
        if call.handed_over.load(Ordering::Acquire) {
            let backend = self.backend.clone();
            self.spawn(move || backend.cancel(id));
        }
    }

    /// Empties a slot when its turn comes. Does not block.
    pub(crate) fn reset(
        self: &Arc<Self>,
        slot: usize,
        on_done: Box<dyn FnOnce(Result<(), String>) + Send>,
    ) {
        // Dropped unanswered, it says that it failed.
        let reply = ResetReply::from_fn(on_done);
        let slots = self.clone();
        let place = &self.slots[slot];
        let slot_ref = place.slot_ref.clone();
        // Too many wait: the reply is dropped.
        let _ = place.turnstile.enter(move |inside| {
            let backend = slots.backend.clone();
            slots.spawn(move || {
                let reply = ResetReply::from_fn(move |outcome| {
                    drop(inside);
                    reply.send(outcome);
                });
                backend.reset(&slot_ref, reply);
            });
        });
    }

    /// Does something with a slot's files when its turn comes, on a thread that may block.
    pub(crate) fn with_slot(
        self: &Arc<Self>,
        slot: usize,
        job: Box<dyn FnOnce(&dyn Backend, &SlotRef) + Send>,
    ) {
        let slots = self.clone();
        let place = &self.slots[slot];
        let slot_ref = place.slot_ref.clone();
        // Too many wait: the job is dropped, and with it whatever it owes.
        let _ = place.turnstile.enter(move |inside| {
            let backend = slots.backend.clone();
            let job = move || {
                if let Err(panic) = guarded(|| job(&*backend, &slot_ref)) {
                    log::error!("reading a slot's files panicked: {panic}");
                }
                drop(inside);
            };
            slots.spawn_on(|pools| &pools.files, job);
        });
    }

    /// How many slots somebody is in.
    pub(crate) fn executing(&self) -> usize {
        self.slots.iter().filter(|slot| slot.turnstile.is_occupied()).count()
    }

    /// Ends everything: what runs is killed, what waits is answered. Blocks until `deadline` at most.
    pub(crate) fn close(&self, deadline: Instant) {
        if let Err(panic) = guarded(|| self.backend.close(deadline)) {
            log::error!("the sandbox backend panicked in close: {panic}");
        }
        let pools = self.workers.lock().take();
        if let Some(Pools { io, files }) = pools {
            io.stop();
            files.stop();
            io.close(deadline);
            files.close(deadline);
        }
    }

    /// Does something that may block, on a thread that hands calls over.
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.spawn_on(
            |pools| &pools.io,
            move || {
                if let Err(panic) = guarded(job) {
                    log::error!("the sandbox backend panicked: {panic}");
                }
            },
        );
    }

    /// Queues a job, unless everything ends: then it is dropped, and what it owes says so.
    fn spawn_on(&self, pool: fn(&Pools) -> &Workers, job: impl FnOnce() + Send + 'static) {
        let pools = self.workers.lock();
        if let Some(pools) = pools.as_ref() {
            return pool(pools).spawn(job);
        }
        // Not under the lock: its end may begin another's turn.
        drop(pools);
        drop(job);
    }
}

impl Answer for Call {
    fn answer(&self, result: ToolResult) {
        let (on_done, inside) = {
            let mut owed = self.owed.lock();
            (owed.on_done.take(), owed.inside.take())
        };
        if let Some(slots) = self.slots.upgrade() {
            slots.slots[self.slot].calls.lock().retain(|call| call.id != self.id);
        }
        // Whoever hears of the result finds the slot free.
        drop(inside);
        if let Some(on_done) = on_done {
            on_done(result);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

fn unstarted(outcome: Outcome, error: impl Into<String>) -> ToolResult {
    let mut result = ToolResult::failure(outcome, error);
    result.may_have_executed = false;
    result
}
