//! A sandbox server that knows only the plain routes: the reference's, or another's.
//!
//! It answers a request only when its call is done, and a batch only when its slowest call is. So
//! each call is a request of its own, on a thread of its own for as long as it runs: a slow call
//! delays no other. There are never more of them than slots.
//!
//! It has no way to tell a repeated request from a new one, so none is repeated that may have
//! arrived, and none is sent on a connection that was idle: the server may be just closing that.
//!
//! Nor does it say when it has begun anew. A connection that is refused, to a call or to the
//! thread that asks whether it is there, is taken for that: its process was gone, whatever its
//! workspaces hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex};
use serde_json::json;

use super::{Connection, PAUSE_MOST, warn_given_up};
use crate::backend::{ContainerChange, Execution, ResetReply, SlotRef, Watcher};
use crate::client::{self, Failure};
use crate::thread::OwnedThread;
use crate::tool::{Outcome, ToolResult};
use crate::wire::reference::{Answer, ExecuteRequest, Slots};
use crate::workers::guarded;

/// How much longer than its call a request may take.
const MARGIN: Duration = Duration::from_secs(10);
/// How long a reset may take.
const RESET_TIME: Duration = Duration::from_secs(60);
/// How often the server is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// The largest body that a reference server takes: 1 MiB.
const MAX_BODY: usize = 1024 * 1024;

/// A sandbox server that speaks the reference's plain routes.
pub(super) struct ReferenceServer {
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
    /// Whether a connection was refused since it was last known to be up.
    refused: bool,
    /// How often its workspaces were lost: a call from before is not to run after.
    losses: u64,
    /// Where jobs are put in. Bounded by the slots, each of which has one at most. Taken when
    /// closing.
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

impl ReferenceServer {
    /// Asks for its slots.
    pub(super) fn connect(
        number: usize,
        connection: Connection,
        bound: Duration,
    ) -> Result<(Arc<Self>, Vec<String>), Failure> {
        let slots: Slots = connection.get("/slots")?;
        let names: Vec<_> = slots.slots.into_iter().map(|slot| slot.slot_id).collect();
        #[expect(clippy::disallowed_methods, reason = "one job for a slot at most")]
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
        let thread = OwnedThread::spawn(name, move || server.result_stream(&watcher))?;
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
        // A call that no thread has begun is dropped unanswered, which says so.
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
            let name = format!("tool-ref-{}", self.number);
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

    /// Tries a request until it has reached the server, or the server is given up; not any more
    /// when the workspaces were lost since there were `losses`.
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
                Err(failure @ (Failure::NotSent(_) | Failure::NoListener)) => {
                    let mut state = self.state.lock();
                    let mut until = (Instant::now() + PAUSE_MOST / 4).min(deadline);
                    if matches!(failure, Failure::NoListener) {
                        // Not again before it is known what became of the workspaces: it may be
                        // back already.
                        (state.refused, until) = (true, deadline);
                        self.wake.notify_all();
                    }
                    loop {
                        if state.phase == Phase::Down
                            || state.jobs.is_none()
                            || Instant::now() >= deadline
                        {
                            return Err(failure);
                        }
                        let is_over = self.wake.wait_until(&mut state, until).timed_out();
                        if (is_over && until < deadline) || !state.refused {
                            break;
                        }
                    }
                }
                reached => return reached,
            }
        }
    }

    /// The server's thread: asks it whether it is there.
    fn result_stream(&self, watcher: &Watcher) {
        loop {
            let asked = self.connection.health();
            let why = asked.as_ref().err().map(Failure::text).unwrap_or_default();
            let mut state = self.state.lock();
            let was_down = state.phase == Phase::Down;
            match (asked, state.phase) {
                (Ok(_), Phase::Up) if !state.refused => {}
                (Ok(_), phase) => {
                    let anew = state.refused || phase == Phase::Down;
                    self.connection.patient.take_back();
                    state.phase = Phase::Up;
                    state.refused = false;
                    state.losses += u64::from(anew);
                    let change =
                        if anew { ContainerChange::Restarted } else { ContainerChange::Recovered };
                    watcher.notify(self.number, change);
                    self.wake.notify_all();
                }
                (Err(failure), phase) => {
                    state.refused |= matches!(failure, Failure::NoListener);
                    match phase {
                        Phase::Up => {
                            state.phase = Phase::Unknown { since: Instant::now() };
                            watcher.notify(self.number, ContainerChange::Unreachable);
                        }
                        Phase::Unknown { since } if since.elapsed() >= self.bound => {
                            state.phase = Phase::Down;
                            state.losses += 1;
                            watcher.notify(self.number, ContainerChange::Lost);
                            self.wake.notify_all();
                            // What reads there holds up its trajectory.
                            self.connection.patient.give_up();
                        }
                        Phase::Unknown { .. } | Phase::Down => {}
                    }
                }
            }
            let is_up = state.phase == Phase::Up;
            let is_down = state.phase == Phase::Down;
            if is_down != was_down {
                // Not under the lock: the log may block.
                drop(state);
                let url = &self.connection.url;
                if is_down {
                    warn_given_up(url, &why);
                } else {
                    log::warn!("the sandbox server {url} is there again");
                }
                state = self.state.lock();
            }
            let until = Instant::now() + if is_up { ASK_EVERY } else { PAUSE_MOST / 4 };
            // A call that was refused has it asked at once.
            while state.jobs.is_some()
                && !(is_up && state.refused)
                && !self.wake.wait_until(&mut state, until).timed_out()
            {}
            if state.jobs.is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread;

    use crossbeam_channel::Receiver;

    use super::*;
    use crate::backend::fleet::FleetConfig;
    use crate::client::Names;

    /// A server that is there whenever it is asked, and what is told of it.
    fn met() -> (Arc<ReferenceServer>, Receiver<ContainerChange>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let body = r#"{"status": "ok", "slots": [{"slot_id": "slot_0"}]}"#;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", body.len());
                write!(stream, "{head}Connection: close\r\n\r\n{body}").unwrap();
            }
        });
        let bound = Duration::from_secs(60);
        let config = FleetConfig::new([&url]);
        let connection = Connection::new(&url, None, &config, &Names::new()).unwrap();
        let (server, _) = ReferenceServer::connect(0, connection, bound).unwrap();
        let (tell, told) = unbounded();
        server.watch(Watcher::from_fn(move |_, change| tell.send(change).unwrap())).unwrap();
        (server, told)
    }

    #[test]
    fn a_call_that_was_refused_is_not_sent_to_the_server_that_came_after() {
        let (server, told) = met();
        // It was gone for as short as can be, and answers again.
        let sent = Mutex::new(0);
        let answer = server.until_sent(Some(0), || {
            *sent.lock() += 1;
            Err::<(), _>(Failure::NoListener)
        });
        assert!(
            matches!(&answer, Err(Failure::NotSent(text)) if text.contains("anew")),
            "{answer:?}"
        );
        assert_eq!(*sent.lock(), 1);
        assert_eq!(told.recv().unwrap(), ContainerChange::Restarted);
        // A reset has no workspace to lose: it is sent again.
        let tries = Mutex::new(0);
        let reset = server.until_sent(None, || {
            *tries.lock() += 1;
            if *tries.lock() == 1 { Err(Failure::NoListener) } else { Ok(()) }
        });
        assert!(reset.is_ok());
        // One whose server could not be reached at all is sent again: nothing is known to be lost.
        let tries = Mutex::new(0);
        let call = server.until_sent(Some(2), || {
            *tries.lock() += 1;
            if *tries.lock() == 1 { Err(Failure::NotSent("no route".to_owned())) } else { Ok(()) }
        });
        assert!(call.is_ok());
        server.close(Instant::now() + Duration::from_secs(10));
    }
}
