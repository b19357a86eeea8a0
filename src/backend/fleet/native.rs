//! One of our own sandbox servers, over the native protocol (`wire::native`).
//!
//! What is handed over waits in the *outbox*; whoever hands over sends it too, together with what
//! others put there meanwhile, unless two threads are sending already: so a server that hangs holds
//! up two I/O threads at most, until the request's time is up. Everything else is done by the thread
//! `tool-fleet-N`: it reads the results, notices that the server is gone, and finds out what became of
//! its operations when it is back.
//!
//! Every operation in flight is in [`State::flights`] until its result is there; removing it and
//! answering it are one step, so that it is answered once, and what is said of an unknown or an
//! earlier operation is ignored.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Connection, PAUSE_FIRST, PAUSE_MOST, PROMPT};
use crate::backend::{
    ContainerChange, Execution, ExecutionId, Reply, ResetReply, SlotRef, Watcher,
};
use crate::client::{self, Failure};
use crate::thread::OwnedThread;
use crate::tool::{Outcome, ToolResult};
use crate::wire::native::{
    CALLS, CallsResponse, Key, Op, OpOutcome, OpResult, RESULTS, ResultLine, ResultsRequest,
    SESSION, SessionRequest, SessionResponse, calls_body,
};

/// How long the stream of results may say nothing: some beats of the server.
pub(super) const SILENCE: Duration = Duration::from_secs(8);
/// How many threads may send to one server at a time: one keeps it busy, one more hides the way.
const SENDERS: usize = 2;
/// How often a sender repeats a request that broke before it leaves it to the server's thread.
const SEND_TRIES: usize = 3;
/// How many operations go into one request.
const MOST_OPS: usize = 1_000;
/// The longest line of results that is read.
const MAX_LINE: u64 = 64 * 1024 * 1024;
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

struct State {
    phase: Phase,
    session: String,
    instance: String,
    max_body: usize,
    /// The latest operation's number, by slot.
    latest: Vec<u64>,
    /// Under which generation each slot was last reset in this session. A call of an older one, or
    /// for a slot that was not reset, was meant for a workspace that is lost: whoever sent it had not
    /// heard of that yet.
    reset: Vec<Option<u64>>,
    flights: HashMap<Key, Flight>,
    calls: HashMap<ExecutionId, Key>,
    outbox: VecDeque<Key>,
    /// Operations whose end is wanted, to be told with the next request.
    cancel: Vec<Key>,
    senders: usize,
    /// Since when requests fail although the stream of results lives.
    trouble_since: Option<Instant>,
    closing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Up,
    Unknown { since: Instant },
    Down,
}

/// An operation that has no result yet.
struct Flight {
    /// As JSON, to be sent again if need be. Empty once the server has said that it has it.
    op: String,
    /// Whether it may have reached the server.
    sent: bool,
    /// Whether a request with it is on its way now.
    sending: bool,
    /// Whether the server was asked what became of it, and it was not sent since.
    asked: bool,
    owed: Owed,
}

/// Who waits for it.
enum Owed {
    Call(ExecutionId, Reply),
    /// A reset, with the slot's generation.
    Reset(u64, ResetReply),
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

    /// The server's thread: reads results for as long as the server is there, and finds it again.
    fn keep_up(&self, watcher: &Watcher) {
        let mut pause = PAUSE_FIRST;
        loop {
            let began = Instant::now();
            let ended = self.read_results(watcher);
            if self.is_closing() {
                return;
            }
            log::debug!("{}: results end: {}", self.connection.url, ended.text());
            if began.elapsed() > PAUSE_MOST {
                pause = PAUSE_FIRST;
            }
            self.now_unknown(watcher);
            // At once, if it was of no use for long enough.
            self.give_up_in_time(watcher);
            loop {
                {
                    let mut state = self.state.lock();
                    if !state.closing {
                        self.wake.wait_for(&mut state, pause);
                    }
                    if state.closing {
                        return;
                    }
                }
                pause = (pause * 2).min(PAUSE_MOST);
                if self.find_again(watcher) {
                    break;
                }
                self.give_up_in_time(watcher);
            }
        }
    }

    /// Reads the stream of results until it ends.
    fn read_results(&self, watcher: &Watcher) -> Failure {
        let request = {
            let mut state = self.state.lock();
            // Those that are still to be sent are no business of the server's yet.
            let waiting = state.flights.iter_mut().filter(|(_, flight)| flight.sent);
            let waiting = waiting.map(|(key, flight)| {
                // One that is just being sent may arrive after the answer.
                flight.asked = !flight.sending;
                *key
            });
            let waiting = waiting.collect();
            ResultsRequest { session: state.session.clone(), waiting }
        };
        let Ok(body) = serde_json::to_vec(&request) else {
            return Failure::Broken("the request cannot be written".to_owned());
        };
        let connection = &self.connection;
        let response = match connection.post(&connection.pooled, RESULTS, &body, None) {
            Ok(response) if response.status().is_success() => response,
            Ok(response) => {
                return client::read_json::<serde_json::Value>(response)
                    .err()
                    .unwrap_or(Failure::Timeout);
            }
            Err(failure) => return failure,
        };
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => return Failure::Broken("the stream ended".to_owned()),
                Ok(_) if line.last() != Some(&b'\n') => {
                    return Failure::Broken("a line is cut off or too long".to_owned());
                }
                Ok(_) => {}
                Err(error) => return Failure::Broken(error.to_string()),
            }
            let result = match serde_json::from_slice(&line) {
                Ok(ResultLine::Op(result)) => Some(result),
                Ok(ResultLine::Beat { .. }) => None,
                Err(error) => return Failure::Broken(format!("a line makes no sense: {error}")),
            };
            let mut state = self.state.lock();
            if state.closing {
                return Failure::Timeout;
            }
            if state.phase != Phase::Up {
                state.phase = Phase::Up;
                watcher.tell(self.number, ContainerChange::Back);
            }
            if state.trouble_since.is_some_and(|since| since.elapsed() > self.bound) {
                // It answers, and takes nothing: of no use.
                return Failure::Broken("it takes no calls".to_owned());
            }
            let ended = state.land(result.into_iter().collect());
            drop(state);
            ended.into_iter().for_each(Ended::answer);
            let state = self.state.lock();
            if !state.outbox.is_empty() || !state.cancel.is_empty() {
                self.send_outbox(state);
            }
        }
    }

    fn now_unknown(&self, watcher: &Watcher) {
        let mut state = self.state.lock();
        if state.phase == Phase::Up {
            let since = state.trouble_since.unwrap_or_else(Instant::now);
            state.phase = Phase::Unknown { since };
            watcher.tell(self.number, ContainerChange::Unknown);
        }
    }

    /// Resumes the session, or begins a new one where the server has begun anew or was given up.
    /// Whether the server is there.
    fn find_again(&self, watcher: &Watcher) -> bool {
        let (session, instance, was_down) = {
            let state = self.state.lock();
            (state.session.clone(), state.instance.clone(), state.phase == Phase::Down)
        };
        let resumed = if was_down {
            Err(Failure::Refused(GONE, String::new()))
        } else {
            begin(&self.connection, &session, true, None)
        };
        let mut new = session.clone();
        let answer = match resumed {
            // It knows the session no more: it began anew, or it gave us up.
            Err(Failure::Refused(GONE, _)) => {
                new = new_session();
                begin(&self.connection, &new, false, Some(session))
            }
            resumed => resumed,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                log::debug!("{}: {}", self.connection.url, failure.text());
                return false;
            }
        };
        let mut state = self.state.lock();
        if answer.slots.len() != state.latest.len() {
            log::error!("{} has another number of slots now", self.connection.url);
            return false;
        }
        if answer.resumed && answer.instance == instance {
            // Up as soon as the stream of results says something.
            return true;
        }
        let lost = state.begin_anew(new, answer);
        watcher.tell(self.number, ContainerChange::BeganAnew);
        drop(state);
        lost.into_iter().for_each(Flight::lose);
        true
    }

    /// Gives the server up if it has been out of reach for too long.
    fn give_up_in_time(&self, watcher: &Watcher) {
        let mut state = self.state.lock();
        let Phase::Unknown { since } = state.phase else { return };
        if since.elapsed() < self.bound {
            return;
        }
        log::warn!("the sandbox server {} is given up: it does not answer", self.connection.url);
        state.phase = Phase::Down;
        let lost = state.clear();
        watcher.tell(self.number, ContainerChange::Down);
        drop(state);
        lost.into_iter().for_each(Flight::lose);
    }

    fn is_closing(&self) -> bool {
        self.state.lock().closing
    }
}

impl State {
    /// The number of a slot's next operation.
    fn next(&mut self, slot: usize) -> u64 {
        if slot >= self.latest.len() {
            self.latest.resize(slot + 1, 0);
            self.reset.resize(slot + 1, None);
        }
        self.latest[slot] += 1;
        self.latest[slot]
    }

    fn take_off(&mut self, key: Key, op: String, owed: Owed) {
        self.flights.insert(key, Flight { op, sent: false, sending: false, asked: false, owed });
        self.outbox.push_back(key);
    }

    /// Takes as much out of the outbox as fits into one request.
    fn next_request(&mut self) -> Option<(Vec<Key>, Vec<Key>, String)> {
        let cancel = std::mem::take(&mut self.cancel);
        let mut bytes = ENVELOPE + cancel.len() * 44;
        let mut keys = Vec::new();
        while keys.len() < MOST_OPS
            && let Some(key) = self.outbox.front()
        {
            match self.flights.get_mut(key) {
                // It ended meanwhile.
                None => drop(self.outbox.pop_front()),
                Some(flight) => {
                    bytes += flight.op.len() + 1;
                    if bytes > self.max_body && !keys.is_empty() {
                        break;
                    }
                    (flight.sent, flight.sending, flight.asked) = (true, true, false);
                    keys.push(*key);
                    self.outbox.pop_front();
                }
            }
        }
        if keys.is_empty() && cancel.is_empty() {
            return None;
        }
        let ops = keys.iter().filter_map(|key| self.flights.get(key)).map(|flight| &*flight.op);
        let body = calls_body(&self.session, ops, &cancel);
        Some((keys, cancel, body))
    }

    /// Takes in what became of operations; what ended is to be answered without the lock.
    fn land(&mut self, results: Vec<OpResult>) -> Vec<Ended> {
        let mut ended = Vec::new();
        for OpResult { slot, seq, what } in results {
            let key = (slot, seq);
            let result = match what {
                OpOutcome::Done(result) => result.into_tool_result(),
                OpOutcome::Unknown(_) => {
                    // It never arrived: once more, if it can be.
                    match self.flights.get(&key) {
                        // It was sent since the question.
                        Some(flight) if !flight.asked => continue,
                        Some(flight) if flight.op.is_empty() => lost(true),
                        Some(_) => {
                            if !self.outbox.contains(&key) {
                                self.outbox.push_back(key);
                            }
                            continue;
                        }
                        None => continue,
                    }
                }
                OpOutcome::Stale(_) => lost(true),
            };
            if let Some(flight) = self.flights.remove(&key) {
                match &flight.owed {
                    Owed::Call(id, _) => drop(self.calls.remove(id)),
                    Owed::Reset(generation, _) => {
                        if let Some(reset) = self.reset.get_mut(slot)
                            && result.success
                        {
                            *reset = Some(*generation);
                        }
                    }
                }
                ended.push(Ended { owed: flight.owed, result });
            }
        }
        ended
    }

    /// Everything in flight is lost.
    fn clear(&mut self) -> Vec<Flight> {
        self.outbox.clear();
        self.cancel.clear();
        self.calls.clear();
        self.trouble_since = None;
        self.flights.drain().map(|(_, flight)| flight).collect()
    }

    fn begin_anew(&mut self, session: String, answer: SessionResponse) -> Vec<Flight> {
        self.session = session;
        self.instance = answer.instance;
        self.max_body = answer.max_body;
        // The numbers only grow: nothing that was said of the old ones means a new one.
        self.reset.fill(None);
        self.phase = Phase::Up;
        self.clear()
    }
}

/// An operation and its result.
struct Ended {
    owed: Owed,
    result: ToolResult,
}

impl Ended {
    fn answer(self) {
        match self.owed {
            Owed::Call(_, reply) => reply.send(self.result),
            Owed::Reset(_, reply) => {
                reply.send(if self.result.success { Ok(()) } else { Err(self.result.error) });
            }
        }
    }
}

impl Flight {
    /// Answers it: its server is gone.
    fn lose(self) {
        let result = lost(self.sent);
        Ended { owed: self.owed, result }.answer();
    }
}

fn lost(may_have_executed: bool) -> ToolResult {
    let error = "the sandbox server is gone, or does not answer";
    let mut result = ToolResult::failure(Outcome::SandboxLost, error);
    result.may_have_executed = may_have_executed;
    result
}

pub(super) fn new_session() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// The status that says that there is no such session.
const GONE: u16 = 410;

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
