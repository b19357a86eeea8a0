//! A sandbox server that knows only the plain routes: the reference's, or another's.
//!
//! It answers a request only when its call is done, and a batch only when its slowest call is. So
//! each call is a request of its own, on a thread of its own for as long as it runs: a slow call
//! delays no other. There are never more of them than slots.
//!
//! It has no way to tell a repeated request from a new one, so none is repeated that may have
//! arrived, and none is sent on a connection that was idle: the server may be just closing that.
//!
//! Nor does it say when it has begun anew. A connection that is refused is taken for that: its process
//! was gone, whatever its workspaces hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex};
use serde_json::json;

use super::{Connection, PAUSE_MOST};
use crate::backend::{ContainerChange, Execution, ResetReply, SlotRef, Watcher};
use crate::client::{self, Failure};
use crate::thread::OwnedThread;
use crate::tool::{Outcome, ToolResult};
use crate::wire::stock::{Answer, ExecuteRequest, Slots};
use crate::workers::guarded;

/// How much longer than its call a request may take.
const MARGIN: Duration = Duration::from_secs(10);
/// How long a reset may take.
const RESET_TIME: Duration = Duration::from_secs(60);
/// How often the server is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// The largest body that a stock server takes: 1 MiB.
const MAX_BODY: usize = 1024 * 1024;

/// A stock sandbox server.
pub(super) struct StockServer {
    number: usize,
    connection: Connection,
    bound: Duration,
    slots: usize,
    state: Mutex<State>,
    wake: Condvar,
    waiting: Receiver<Job>,
}

struct State {
    phase: Phase,
    /// Whether a connection was refused since it was up.
    refused: bool,
    /// How often its workspaces were lost: a call from before is not to run after.
    losses: u64,
    /// Where jobs are put in. Bounded by the slots, each of which has one at most. Taken when closing.
    jobs: Option<Sender<Job>>,
    /// How many jobs were handed over and have not ended.
    outstanding: usize,
    /// The threads that run jobs.
    workers: Vec<OwnedThread>,
    keeper: Option<OwnedThread>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Up,
    Unknown { since: Instant },
    Down,
}

enum Job {
    /// A call, and how often the workspaces had been lost when it came.
    Call(Execution, u64),
    Reset(SlotRef, ResetReply),
}

impl StockServer {
    /// Asks for its slots.
    pub(super) fn meet(
        number: usize,
        connection: Connection,
        bound: Duration,
    ) -> Result<(Arc<Self>, Vec<String>), Failure> {
        let slots: Slots = connection.get("/slots")?;
        let names: Vec<_> = slots.slots.into_iter().map(|slot| slot.slot_id).collect();
        let (jobs, waiting) = unbounded();
        let state = State {
            phase: Phase::Up,
            refused: false,
            losses: 0,
            jobs: Some(jobs),
            outstanding: 0,
            workers: Vec::new(),
            keeper: None,
        };
        let server = Self {
            number,
            connection,
            bound,
            slots: names.len(),
            state: Mutex::new(state),
            wake: Condvar::new(),
            waiting,
        };
        Ok((Arc::new(server), names))
    }

    /// Starts the server's thread, which tells `watcher` what becomes of the server.
    pub(super) fn watch(self: &Arc<Self>, watcher: Watcher) -> std::io::Result<()> {
        let server = self.clone();
        let name = format!("tool-fleet-{}", self.number);
        let thread = OwnedThread::spawn(name, move || server.keep_up(&watcher))?;
        self.state.lock().keeper = Some(thread);
        Ok(())
    }

    /// Hands calls over. Does not block.
    pub(super) fn execute(self: &Arc<Self>, batch: Vec<Execution>) {
        let losses = self.state.lock().losses;
        batch.into_iter().for_each(|execution| self.hand_over(Job::Call(execution, losses)));
    }

    /// Hands a reset over. Does not block.
    pub(super) fn reset(self: &Arc<Self>, slot: &SlotRef, reply: ResetReply) {
        self.hand_over(Job::Reset(slot.clone(), reply));
    }

    /// Ends the threads, by `deadline`. What is in flight is answered.
    pub(super) fn close(&self, deadline: Instant) {
        let (jobs, workers, keeper) = {
            let mut state = self.state.lock();
            (state.jobs.take(), std::mem::take(&mut state.workers), state.keeper.take())
        };
        // What nobody has begun is dropped unanswered, which says so.
        drop(jobs);
        drop(self.waiting.try_iter().collect::<Vec<_>>());
        self.wake.notify_all();
        self.connection.interrupt();
        workers.into_iter().chain(keeper).for_each(|thread| thread.join_or_leave(deadline));
    }

    fn hand_over(self: &Arc<Self>, job: Job) {
        let mut state = self.state.lock();
        // Refused only while closing; the job is dropped then.
        if state.jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err()) {
            return;
        }
        state.outstanding += 1;
        if state.outstanding > state.workers.len() && state.workers.len() < self.slots {
            let server = self.clone();
            let name = format!("tool-stock-{}", self.number);
            match OwnedThread::spawn(name, move || server.work()) {
                Ok(thread) => state.workers.push(thread),
                Err(error) => {
                    log::error!("no thread for a call, it waits for another's end: {error}");
                }
            }
        }
    }

    fn work(&self) {
        for job in self.waiting.iter() {
            let run = || match job {
                Job::Call(execution, losses) => self.call(execution, losses),
                Job::Reset(slot, reply) => self.run_reset(&slot, reply),
            };
            if let Err(panic) = guarded(run) {
                log::error!("a request to a sandbox server panicked: {panic}");
            }
            self.state.lock().outstanding -= 1;
        }
    }

    fn call(&self, execution: Execution, losses: u64) {
        let Execution { id, slot, tool, arguments, timeout, reply, .. } = execution;
        // Only its own name has to differ: an answer to another call must not pass for this one's.
        let name = format!("{id}-{}", slot.generation);
        let body = serde_json::to_vec(&ExecuteRequest {
            slot_id: &slot.name,
            tool,
            args: &arguments,
            execution_id: &name,
            timeout: timeout.as_secs_f64(),
        });
        let Ok(body) = body else { return };
        if body.len() > MAX_BODY {
            let error = format!(
                "the call takes {} bytes on the wire; this sandbox server takes {MAX_BODY} at most",
                body.len()
            );
            let mut result = ToolResult::failure(Outcome::InvalidCall, error);
            result.may_have_executed = false;
            return reply.send(result);
        }
        let post = || {
            self.connection.post(&self.connection.fresh, "/execute", &body, Some(timeout + MARGIN))
        };
        let answer = self.until_sent(Some(losses), || client::read_json::<Answer>(post()?));
        let result = match answer {
            Ok(answer) if answer.execution_id.as_str().is_some_and(|given| given != name) => {
                let error = "the sandbox server answered another call";
                ToolResult::failure(Outcome::BackendFailed, error)
            }
            Ok(answer) => answer.into_tool_result(),
            Err(Failure::Refused(status, text)) => {
                let error = format!("the sandbox server refused the call: HTTP {status}: {text}");
                let mut result = ToolResult::failure(Outcome::BackendFailed, error);
                result.may_have_executed = status >= 500;
                result
            }
            Err(failure) => {
                let may_have_executed = failure.may_have_executed();
                let error = format!("the sandbox server is lost: {}", failure.text());
                let mut result = ToolResult::failure(Outcome::SandboxLost, error);
                result.may_have_executed = may_have_executed;
                result
            }
        };
        reply.send(result);
    }

    fn run_reset(&self, slot: &SlotRef, reply: ResetReply) {
        let body = json!({"slot_id": &*slot.name}).to_string();
        let post = || {
            self.connection.post(
                &self.connection.fresh,
                "/reset",
                body.as_bytes(),
                Some(RESET_TIME),
            )
        };
        reply.send(match self.until_sent(None, || client::read_json::<Answer>(post()?)) {
            Ok(answer) if answer.success => Ok(()),
            Ok(answer) => Err(answer.error),
            Err(failure) => Err(failure.text()),
        });
    }

    /// Tries a request until it has reached the server, or the server is given up; not any more when
    /// the workspaces were lost since there were `losses`.
    fn until_sent<T>(
        &self,
        losses: Option<u64>,
        send: impl Fn() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + self.bound;
        loop {
            if losses.is_some_and(|losses| losses != self.state.lock().losses) {
                return Err(Failure::NotSent("it began anew".to_owned()));
            }
            match send() {
                Err(Failure::NotSent(text)) => {
                    let mut state = self.state.lock();
                    if state.phase == Phase::Down
                        || state.jobs.is_none()
                        || Instant::now() >= deadline
                    {
                        return Err(Failure::NotSent(text));
                    }
                    self.wake.wait_for(&mut state, PAUSE_MOST / 4);
                }
                reached => return reached,
            }
        }
    }

    /// The server's thread: asks it whether it is there.
    fn keep_up(&self, watcher: &Watcher) {
        loop {
            let asked = self.connection.health();
            let mut state = self.state.lock();
            match (asked, state.phase) {
                (Ok(_), Phase::Up) => {}
                (Ok(_), phase) => {
                    let anew = state.refused || phase == Phase::Down;
                    state.phase = Phase::Up;
                    state.refused = false;
                    state.losses += u64::from(anew);
                    let change =
                        if anew { ContainerChange::BeganAnew } else { ContainerChange::Back };
                    watcher.tell(self.number, change);
                    self.wake.notify_all();
                }
                (Err(failure), phase) => {
                    state.refused |= matches!(failure, Failure::NotSent(_));
                    match phase {
                        Phase::Up => {
                            state.phase = Phase::Unknown { since: Instant::now() };
                            watcher.tell(self.number, ContainerChange::Unknown);
                        }
                        Phase::Unknown { since } if since.elapsed() >= self.bound => {
                            state.phase = Phase::Down;
                            state.losses += 1;
                            watcher.tell(self.number, ContainerChange::Down);
                            self.wake.notify_all();
                        }
                        Phase::Unknown { .. } | Phase::Down => {}
                    }
                }
            }
            let pause = if state.phase == Phase::Up { ASK_EVERY } else { PAUSE_MOST / 4 };
            let until = Instant::now() + pause;
            while state.jobs.is_some() && !self.wake.wait_until(&mut state, until).timed_out() {}
            if state.jobs.is_none() {
                return;
            }
        }
    }
}
