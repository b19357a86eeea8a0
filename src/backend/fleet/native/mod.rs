//! One of our own sandbox servers, over the native protocol (`wire::native`).
//!
//! What is handed over waits in the *outbox*. The thread that hands over sends it too, together
//! with what others put there meanwhile, if it may: if this server's requests get through, and few
//! threads of other people are sending for the fleet ([`Direct`]). Else the server's own thread
//! `tool-send-N` does: so servers that hang hold up their own callers only. What could not be sent
//! that thread sends again, until the server takes it or is given up.
//!
//! The thread `tool-fleet-N` (`result_stream`) reads the results, notices that the server is gone,
//! and finds out what became of its operations when it is back. `state` is what is in flight.

mod result_stream;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use self::state::{Ended, InFlight, Phase, State, Waiter, lost};
use super::Connection;
use crate::backend::{Execution, ExecutionId, ResetReply, SlotRef, Watcher};
use crate::client::{self, Failure};
use crate::thread::OwnedThread;
use crate::tool::{Outcome, ToolResult};
use crate::wire::native::{
    CALLS, CallsResponse, MAX_LINE, Op, SESSION, SessionRequest, SessionResponse,
};

/// How many threads may send to one server at a time: one keeps it busy, one more hides the way.
const SENDERS: usize = 2;
/// What a request has around its operations, generously.
const ENVELOPE: usize = 4 * 1024;
/// How long the end of a session may take to tell, although there is no time left.
const LAST_WORD: Duration = Duration::from_millis(100);

/// How many of the threads that hand over are sending, in a whole fleet.
#[derive(Default)]
pub(super) struct Direct(AtomicUsize);

/// The right to send on the thread that hands over.
struct Permit<'a>(&'a Direct);

impl Direct {
    /// How many may: few enough that the executor has threads left when all of them hang.
    const MOST: usize = 2;

    fn permit(&self) -> Option<Permit<'_>> {
        let more = |sending| (sending < Self::MOST).then_some(sending + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Permit(self))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A native sandbox server.
pub(super) struct NativeServer {
    number: usize,
    connection: Connection,
    /// How long it may be out of reach.
    bound: Duration,
    direct: Arc<Direct>,
    state: Mutex<State>,
    /// Told when the thread that reads results has something to do besides waiting.
    wake: Condvar,
    /// Told when the thread that sends may have something to do.
    outgoing: Condvar,
    threads: Mutex<Vec<OwnedThread>>,
}

impl NativeServer {
    /// Begins a session; gives the names of the slots, too.
    pub(super) fn connect(
        number: usize,
        connection: Connection,
        bound: Duration,
        direct: Arc<Direct>,
        session: &str,
    ) -> Result<(Arc<Self>, Vec<String>), Failure> {
        let answer = begin(&connection, session, false, None)?;
        let slots = answer.slots.clone();
        let server = Self {
            number,
            connection,
            bound,
            direct,
            state: Mutex::new(State::new(session.to_owned(), answer)),
            wake: Condvar::new(),
            outgoing: Condvar::new(),
            threads: Mutex::default(),
        };
        Ok((Arc::new(server), slots))
    }

    /// Starts the server's threads, which tell `watcher` what becomes of the server.
    pub(super) fn watch(self: &Arc<Self>, watcher: Watcher) -> std::io::Result<()> {
        let mut threads = self.threads.lock();
        let server = self.clone();
        let sends = move || server.keep_sending();
        threads.push(OwnedThread::spawn(format!("tool-send-{}", self.number), sends)?);
        let server = self.clone();
        let reads = move || server.result_stream(&watcher);
        threads.push(OwnedThread::spawn(format!("tool-fleet-{}", self.number), reads)?);
        Ok(())
    }

    /// Hands calls over. May block while it sends.
    pub(super) fn execute(&self, batch: Vec<Execution>) {
        // Answered without the lock: a caller that waits for them may come here at once.
        let mut refused = Vec::new();
        let mut left = Vec::new();
        let mut state = self.state.lock();
        for execution in batch {
            let Execution { id, trajectory_id, slot, tool, arguments, timeout, reply } = execution;
            let reset = state.reset.get(slot.index).copied().flatten();
            let is_ready = reset.is_some_and(|reset| reset <= slot.generation);
            if state.phase == Phase::Down || state.closing || !is_ready {
                refused.push((reply, lost(false)));
                continue;
            }
            let seq = state.next(slot.index);
            let op = Op {
                slot: slot.index,
                seq,
                reset: false,
                trajectory_id: trajectory_id.as_ref().to_owned(),
                tool: tool.to_owned(),
                args: arguments,
                timeout: timeout.as_secs_f64(),
            };
            let most = state.max_body.saturating_sub(ENVELOPE);
            let op = match serde_json::to_string(&op) {
                Ok(op) if op.len() <= most => op,
                Ok(op) => {
                    let bytes = op.len();
                    let text = format!(
                        "the call takes {bytes} bytes on the wire; this sandbox server takes \
                         {most} at most"
                    );
                    refused.push((reply, never_ran(Outcome::InvalidCall, text)));
                    continue;
                }
                // Only a map with keys that are no strings could not be written.
                Err(error) => {
                    let text = format!("the call cannot be written: {error}");
                    refused.push((reply, never_ran(Outcome::BackendFailed, text)));
                    continue;
                }
            };
            // It may have been cancelled before it came here: then the cancel found nothing.
            if reply.is_cancelled() {
                state.cancel.push((slot.index, seq));
            }
            left.extend(state.enqueue((slot.index, seq), op, Waiter::Call(id, reply)));
        }
        self.have_sent(state);
        refused.into_iter().for_each(|(reply, result)| reply.send(result));
        left.into_iter().for_each(InFlight::lose);
    }

    /// Hands a reset over. May block while it sends.
    pub(super) fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        let mut state = self.state.lock();
        if state.phase == Phase::Down || state.closing {
            drop(state);
            return reply.send(Err("its sandbox server does not answer".to_owned()));
        }
        let seq = state.next(slot.index);
        let op = format!("{{\"slot\":{},\"seq\":{seq},\"reset\":true}}", slot.index);
        let left = state.enqueue((slot.index, seq), op, Waiter::Reset(slot.generation, reply));
        self.have_sent(state);
        left.into_iter().for_each(InFlight::lose);
    }

    /// Asks for a call's end, if it is here. May block while it sends.
    pub(super) fn cancel(&self, id: ExecutionId) -> bool {
        let mut state = self.state.lock();
        let Some(key) = state.calls.get(&id).copied() else { return false };
        state.cancel.push(key);
        self.have_sent(state);
        true
    }

    /// Ends the session and the threads, by `deadline`. What is in flight is answered.
    pub(super) fn close(&self, deadline: Instant) {
        let session = {
            let mut state = self.state.lock();
            state.closing = true;
            (state.phase == Phase::Up).then(|| state.session.clone())
        };
        self.wake.notify_all();
        self.outgoing.notify_all();
        if let Some(session) = session {
            let request = SessionRequest { session, replaces: None, resume: false, end: true };
            // The threads have to end, too.
            let time = deadline.saturating_duration_since(Instant::now()) / 2;
            let time = time.clamp(LAST_WORD, self.connection.prompt);
            // Refused or not: its lease ends by itself.
            if let Ok(body) = serde_json::to_vec(&request) {
                let _ = self.connection.post(&self.connection.pooled, SESSION, &body, Some(time));
            }
        }
        self.connection.interrupt();
        let threads = std::mem::take(&mut *self.threads.lock());
        threads.into_iter().for_each(|thread| thread.join_or_leave(deadline));
        let flights = std::mem::take(&mut self.state.lock().flights);
        flights.into_values().for_each(InFlight::lose);
    }

    /// Has the outbox sent: on this thread, if it may, or on the server's own.
    fn have_sent<'a>(&'a self, state: MutexGuard<'a, State>) {
        if state.senders >= SENDERS {
            // They take it along.
            return;
        }
        if state.trouble_since.is_none()
            && let Some(_permit) = self.direct.permit()
        {
            drop(self.send_outbox(state));
        } else {
            drop(state);
            self.outgoing.notify_one();
        }
    }

    /// The thread that sends: what no other thread sends, and what could not be sent, again.
    fn keep_sending(&self) {
        let mut state = self.state.lock();
        while !state.closing {
            let is_due = state.may_send() && state.senders < SENDERS && state.owes_server();
            let pause = state.retry_at.filter(|at| *at > Instant::now());
            match (is_due, pause) {
                (true, None) => state = self.send_outbox(state),
                (true, Some(at)) => drop(self.outgoing.wait_until(&mut state, at)),
                (false, _) => self.outgoing.wait(&mut state),
            }
        }
    }

    /// Sends what is in the outbox, until it is empty or a request fails.
    fn send_outbox<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.senders += 1;
        while state.may_send() {
            let Some((keys, cancel, body)) = state.next_request() else {
                if state.senders == 1 {
                    // Nothing is owed to the server.
                    state.no_trouble();
                }
                break;
            };
            drop(state);
            let sent = self.send(&body);
            state = self.state.lock();
            let ended = match sent {
                Ok(response) => {
                    state.arrived(&keys);
                    state.complete(response.results)
                }
                Err(failure) => {
                    log::debug!("{}: {}", self.connection.url, failure.text());
                    let refused = state.not_arrived(keys, cancel, failure, Instant::now());
                    // Goes on with them, after a pause.
                    self.outgoing.notify_one();
                    refused
                }
            };
            if !ended.is_empty() {
                drop(state);
                ended.into_iter().for_each(Ended::answer);
                state = self.state.lock();
            }
            if state.retry_at.is_some() {
                break;
            }
        }
        state.senders -= 1;
        state
    }

    /// Sends a request once.
    fn send(&self, body: &str) -> Result<CallsResponse, Failure> {
        // Short, but long enough for a large body on a slow line.
        let connection = &self.connection;
        let time = connection.prompt + Duration::from_secs(body.len() as u64 / 1_000_000);
        let agent = &connection.pooled;
        let response = connection.post(agent, CALLS, body.as_bytes(), Some(time))?;
        // The server sends what is longer by the stream.
        client::read_json_up_to(MAX_LINE as u64, response)
    }
}

/// The result of a call that was not sent.
fn never_ran(outcome: Outcome, error: String) -> ToolResult {
    let mut result = ToolResult::failure(outcome, error);
    result.may_have_executed = false;
    result
}

pub(super) fn new_session() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Begins a session, or with `resume` goes on with it.
fn begin(
    connection: &Connection,
    session: &str,
    resume: bool,
    replaces: Option<String>,
) -> Result<SessionResponse, Failure> {
    let request = SessionRequest { session: session.to_owned(), replaces, resume, end: false };
    let body = serde_json::to_vec(&request).map_err(|error| Failure::NotSent(error.to_string()))?;
    let time = Some(connection.prompt);
    client::read_json(connection.post(&connection.pooled, SESSION, &body, time)?)
}
