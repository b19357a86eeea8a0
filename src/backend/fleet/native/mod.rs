//! One of our own sandbox servers, over the native protocol (`wire::native`).
//!
//! What is handed over waits in the *outbox*; whoever hands over sends it too, together with what
//! others put there meanwhile, unless two threads are sending already: so a server that hangs holds
//! up two I/O threads at most, until the request's time is up. Everything else is done by the thread
//! `tool-fleet-N`: it reads the results, notices that the server is gone, and finds out what became of
//! its operations when it is back.

mod keep_up;
mod state;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use self::state::{Ended, Flight, Owed, Phase, State, lost};
use super::{Connection, PAUSE_FIRST, PROMPT};
use crate::backend::{Execution, ExecutionId, ResetReply, SlotRef, Watcher};
use crate::client::{self, Failure};
use crate::thread::OwnedThread;
use crate::tool::{Outcome, ToolResult};
use crate::wire::native::{CALLS, CallsResponse, Op, SESSION, SessionRequest, SessionResponse};

/// How long the stream of results may say nothing: some beats of the server.
pub(super) const SILENCE: Duration = Duration::from_secs(8);
/// How many threads may send to one server at a time: one keeps it busy, one more hides the way.
const SENDERS: usize = 2;
/// How often a sender repeats a request that broke before it leaves it to the server's thread.
const SEND_TRIES: usize = 3;
/// What a request has around its operations, generously.
const ENVELOPE: usize = 4 * 1024;

/// A native sandbox server.
pub(super) struct NativeServer {
    number: usize,
    connection: Connection,
    /// How long it may be out of reach.
    bound: Duration,
    state: Mutex<State>,
    /// Told when the server's thread has something to do besides waiting.
    wake: Condvar,
    thread: Mutex<Option<OwnedThread>>,
}

impl NativeServer {
    /// Begins a session; gives the names of the slots, too.
    pub(super) fn meet(
        number: usize,
        connection: Connection,
        bound: Duration,
        session: &str,
    ) -> Result<(Arc<Self>, Vec<String>), Failure> {
        let answer = begin(&connection, session, false, None)?;
        let state = State {
            phase: Phase::Up,
            session: session.to_owned(),
            instance: answer.instance,
            max_body: answer.max_body,
            latest: vec![0; answer.slots.len()],
            reset: vec![None; answer.slots.len()],
            flights: HashMap::new(),
            calls: HashMap::new(),
            outbox: VecDeque::new(),
            cancel: Vec::new(),
            senders: 0,
            trouble_since: None,
            closing: false,
        };
        let server = Self {
            number,
            connection,
            bound,
            state: Mutex::new(state),
            wake: Condvar::new(),
            thread: Mutex::new(None),
        };
        Ok((Arc::new(server), answer.slots))
    }

    /// Starts the server's thread, which tells `watcher` what becomes of the server.
    pub(super) fn watch(self: &Arc<Self>, watcher: Watcher) -> std::io::Result<()> {
        let server = self.clone();
        let name = format!("tool-fleet-{}", self.number);
        let thread = OwnedThread::spawn(name, move || server.keep_up(&watcher))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Hands calls over. Blocks while it sends.
    pub(super) fn execute(&self, batch: Vec<Execution>) {
        let mut state = self.state.lock();
        for execution in batch {
            let Execution { id, trajectory_id, slot, tool, arguments, timeout, reply } = execution;
            let reset = state.reset.get(slot.index).copied().flatten();
            let is_ready = reset.is_some_and(|reset| reset <= slot.generation);
            if state.phase == Phase::Down || state.closing || !is_ready {
                reply.send(lost(false));
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
            // Only a map with keys that are no strings could not be written.
            let Ok(op) = serde_json::to_string(&op) else { continue };
            let most = state.max_body.saturating_sub(ENVELOPE);
            if op.len() > most {
                let error = format!(
                    "the call takes {} bytes on the wire; this sandbox server takes {most} at most",
                    op.len()
                );
                let mut result = ToolResult::failure(Outcome::InvalidCall, error);
                result.may_have_executed = false;
                reply.send(result);
                continue;
            }
            // It may have been cancelled before it came here: then the cancel found nothing.
            if reply.is_cancelled() {
                state.cancel.push((slot.index, seq));
            }
            state.calls.insert(id, (slot.index, seq));
            state.take_off((slot.index, seq), op, Owed::Call(id, reply));
        }
        self.send_outbox(state);
    }

    /// Hands a reset over. Blocks while it sends.
    pub(super) fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        let mut state = self.state.lock();
        if state.phase == Phase::Down || state.closing {
            drop(state);
            return reply.send(Err("its sandbox server does not answer".to_owned()));
        }
        let seq = state.next(slot.index);
        let op = format!("{{\"slot\":{},\"seq\":{seq},\"reset\":true}}", slot.index);
        state.take_off((slot.index, seq), op, Owed::Reset(slot.generation, reply));
        self.send_outbox(state);
    }

    /// Asks for a call's end, if it is here. Blocks while it sends.
    pub(super) fn cancel(&self, id: ExecutionId) -> bool {
        let mut state = self.state.lock();
        let Some(key) = state.calls.get(&id).copied() else { return false };
        state.cancel.push(key);
        self.send_outbox(state);
        true
    }

    /// Ends the session and the thread. What is in flight is answered.
    pub(super) fn close(&self) {
        let session = {
            let mut state = self.state.lock();
            state.closing = true;
            (state.phase == Phase::Up).then(|| state.session.clone())
        };
        self.wake.notify_all();
        if let Some(session) = session {
            let request = SessionRequest { session, replaces: None, resume: false, end: true };
            // Refused or not: its lease ends by itself.
            if let Ok(body) = serde_json::to_vec(&request) {
                let _ = self.connection.post(&self.connection.pooled, SESSION, &body, Some(PROMPT));
            }
        }
        self.connection.interrupt();
        if let Some(thread) = self.thread.lock().take() {
            drop(thread);
        }
        let flights = std::mem::take(&mut self.state.lock().flights);
        flights.into_values().for_each(Flight::lose);
    }

    /// Sends what is in the outbox, unless enough threads do so already.
    fn send_outbox<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        if state.senders >= SENDERS {
            return;
        }
        state.senders += 1;
        while state.phase == Phase::Up && !state.closing {
            let Some((keys, cancel, body)) = state.next_request() else {
                if state.senders == 1 {
                    // Nothing is owed to the server.
                    state.trouble_since = None;
                }
                break;
            };
            drop(state);
            let sent = self.send(&body);
            state = self.state.lock();
            for key in &keys {
                if let Some(flight) = state.flights.get_mut(key) {
                    flight.sending = false;
                }
            }
            match sent {
                Ok(response) => {
                    state.trouble_since = None;
                    for key in &keys {
                        if let Some(flight) = state.flights.get_mut(key) {
                            flight.op = String::new();
                        }
                    }
                    let ended = state.land(response.results);
                    if !ended.is_empty() {
                        drop(state);
                        ended.into_iter().for_each(Ended::answer);
                        state = self.state.lock();
                    }
                }
                Err(failure) => {
                    log::debug!("{}: {}", self.connection.url, failure.text());
                    // In front, in their order: the server's thread goes on with them.
                    keys.into_iter().rev().for_each(|key| state.outbox.push_front(key));
                    state.cancel.extend(cancel);
                    state.trouble_since.get_or_insert_with(Instant::now);
                    break;
                }
            }
        }
        state.senders -= 1;
    }

    /// Sends a request, which may be repeated.
    fn send(&self, body: &str) -> Result<CallsResponse, Failure> {
        // Short, but long enough for a large body on a slow line.
        let time = PROMPT + Duration::from_secs(body.len() as u64 / 1_000_000);
        let mut pause = PAUSE_FIRST;
        for _ in 1..SEND_TRIES {
            match self.send_once(body, time) {
                Err(Failure::Broken(_) | Failure::NotSent(_)) => {}
                answered => return answered,
            }
            let mut state = self.state.lock();
            if state.closing {
                break;
            }
            self.wake.wait_for(&mut state, pause);
            pause *= 2;
        }
        self.send_once(body, time)
    }

    fn send_once(&self, body: &str, time: Duration) -> Result<CallsResponse, Failure> {
        let connection = &self.connection;
        client::read_json(connection.post(
            &connection.pooled,
            CALLS,
            body.as_bytes(),
            Some(time),
        )?)
    }
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
    client::read_json(connection.post(&connection.pooled, SESSION, &body, Some(PROMPT))?)
}
