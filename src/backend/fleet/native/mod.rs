//! One of our own sandbox servers, over the native protocol (`wire::native`).
//!
//! What is handed over waits in the *outbox*. The thread that hands over sends it too, together
//! with what others put there meanwhile, if it may: if this server's requests get through, and few
//! threads of other people are sending for the fleet ([`Direct`]). Else the server's own thread
//! `tool-send-N` does: so servers that hang hold up their own callers only. What could not be sent
//! that thread sends again, until the server takes it or is given up.
//!
//! The thread `tool-fleet-N` (`result_stream`) reads the results, notices that the server is gone,
//! and finds out what became of its operations when it is back. `state` is what is in flight,
//! `leased` which slots of the server are ours: others may use it, too. That the session lives
//! `tool-send-N` tells the server some times within the lease, from its beginning on.

mod leased;
mod result_stream;
mod state;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use ureq::Agent;

use self::state::{Ended, InFlight, LOST, Phase, State, Waiter, lost};
use super::Connection;
use super::reports::Reports;
use super::shares::{Asked, Shares};
use crate::backend::{
    BeginReply, ContainerChange, ContainerImages, Execution, ExecutionId, ResetReply, SlotRef,
    Watcher,
};
use crate::client::{self, AgentConfig, Failure, Names};
use crate::error::BeginFailure;
use crate::spec::TrajectorySpec;
use crate::thread::OwnedThread;
use crate::tool::{JsonObject, Outcome, ToolResult};
use crate::wire::native::{
    CALLS, CallsResponse, ImagesTold, Lease, MAX_LINE, Op, OpResult, SESSION, SessionRequest,
    SessionResponse, unpack_keys,
};

/// How many threads may send to one server at a time: one keeps it busy, one more hides the way.
const SENDERS: usize = 2;
/// What a request has around its operations, generously.
const ENVELOPE: usize = 4 * 1024;
/// How long the end of a session may take to tell, although there is no time left.
const LAST_WORD: Duration = Duration::from_millis(100);
/// The status that says that there is no such session.
const GONE: u16 = 410;
/// How soon after one that failed the server is told again that the session lives.
const BEAT_AGAIN: Duration = Duration::from_millis(500);

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
    shares: Arc<Shares>,
    reports: Arc<Reports>,
    /// The server's address, as it is told.
    addr: Arc<str>,
    /// Who is told what becomes of the server, as soon as there is one.
    watcher: OnceLock<Watcher>,
    state: Mutex<State>,
    /// Told when the thread that reads results has something to do besides waiting.
    wake: Condvar,
    /// Told when the thread that sends may have something to do.
    outgoing: Condvar,
    threads: Mutex<Vec<OwnedThread>>,
}

impl NativeServer {
    /// Begins a session, and keeps it alive from now on, until it is [closed](Self::close). Gives
    /// the names of the server's slots, too.
    pub(super) fn connect(
        number: usize,
        connection: Connection,
        bound: Duration,
        direct: Arc<Direct>,
        shares: Arc<Shares>,
        reports: Arc<Reports>,
        session: &str,
    ) -> Result<(Arc<Self>, Vec<String>), Failure> {
        let mut answer = begin(&connection, session, None, shares.asked(number))?;
        let (slots, images) = (answer.slots.clone(), answer.images.take());
        let server = Arc::new(Self {
            number,
            addr: connection.url.as_str().into(),
            connection,
            bound,
            direct,
            shares,
            reports,
            watcher: OnceLock::new(),
            state: Mutex::new(State::new(session.to_owned(), answer)),
            wake: Condvar::new(),
            outgoing: Condvar::new(),
            threads: Mutex::default(),
        });
        {
            let mut state = server.state.lock();
            server.note_share(&state);
            server.note_images(&mut state, images);
        }
        let sends = {
            let server = server.clone();
            move || server.keep_sending()
        };
        let thread = OwnedThread::spawn(format!("tool-send-{number}"), sends).map_err(|error| {
            server.close(Instant::now());
            Failure::NotSent(format!("cannot start a thread: {error}"))
        })?;
        server.threads.lock().push(thread);
        Ok((server, slots))
    }

    /// Tells `watcher` from now on what becomes of the server; which slots it gives, at once.
    pub(super) fn watch(self: &Arc<Self>, watcher: Watcher) -> std::io::Result<()> {
        {
            let state = self.state.lock();
            // Called once.
            let _ = self.watcher.set(watcher);
            self.notify(ContainerChange::Added(state.leased.slots()));
            if let Some(images) = &state.images {
                self.notify(ContainerChange::Images(images.clone()));
            }
        }
        let server = self.clone();
        let reads = move || server.result_stream();
        let thread = OwnedThread::spawn(format!("tool-fleet-{}", self.number), reads)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Tells which slots it gives, after some were given back.
    pub(super) fn tell_slots(&self) {
        self.notify(ContainerChange::Added(self.state.lock().leased.slots()));
    }

    /// Whether no slot of it is the executor's, or it is given up.
    pub(super) fn is_unused(&self) -> bool {
        let state = self.state.lock();
        state.leased.held() == 0 || state.phase == Phase::Down
    }

    /// Whether it has said that it is about to end.
    pub(super) fn is_ending(&self) -> bool {
        self.state.lock().leased.is_draining()
    }

    /// Under the lock of `state`, so that what is said comes in its order.
    fn notify(&self, change: ContainerChange) {
        if let Some(watcher) = self.watcher.get() {
            watcher.notify(&self.connection.url, change);
        }
    }

    /// Takes in what the server says of the session's slots.
    fn lease_is(&self, state: &mut State, lease: &Lease) {
        let was_draining = state.leased.is_draining();
        if state.apply_lease(lease) {
            self.note_share(state);
            self.notify(ContainerChange::Resized(state.leased.slots()));
            if state.leased.is_draining() != was_draining {
                self.reports.wake();
            }
        }
    }

    /// Takes in what became of operations; what ended is to be answered without the lock.
    fn complete(&self, state: &mut State, results: Vec<OpResult>) -> Vec<Ended> {
        let ended = state.complete(results);
        let held = state.leased.held();
        for (slot, trial) in state.trials.drain(..) {
            self.reports.tried(&self.addr, slot, held, trial);
        }
        ended
    }

    fn note_share(&self, state: &State) {
        self.shares.met(self.number, state.leased.of_server(), state.leased.held());
    }

    /// How many slots the server has, how many of them are ours, and how many other executors
    /// share it.
    pub(super) fn share(&self) -> (usize, usize, usize) {
        let state = self.state.lock();
        (state.leased.of_server(), state.leased.held(), state.leased.others())
    }

    /// Takes in what the server says of its images, if it does.
    fn note_images(&self, state: &mut State, told: Option<ImagesTold>) {
        let Some(told) = told else { return };
        state.images_seen = told.version;
        let images = ContainerImages::new(unpack_keys(&told.has))
            .with_pulling(unpack_keys(&told.pulling))
            .with_room(told.free_bytes, told.is_full);
        self.notify(ContainerChange::Images(images.clone()));
        state.images = Some(images);
    }

    /// The session that it has now.
    pub(super) fn session(&self) -> String {
        self.state.lock().session.clone()
    }

    /// The session, and the epoch of its lease of this slot, if it has it.
    pub(super) fn lease_of(&self, slot: usize) -> Option<(String, u64)> {
        let state = self.state.lock();
        Some((state.session.clone(), state.leased.epoch(slot)?))
    }

    /// Hands calls over. May block while it sends.
    pub(super) fn execute(&self, batch: Vec<Execution>) {
        // Answered without the lock: a caller that waits for them may come here at once.
        let mut refused = Vec::new();
        let mut left = Vec::new();
        let mut state = self.state.lock();
        for execution in batch {
            let Execution { id, trajectory_id, slot, tool, arguments, timeout, reply } = execution;
            let Some(epoch) = state.usable(&slot) else {
                refused.push((reply, lost(false)));
                continue;
            };
            let seq = state.next(slot.index);
            let op = Op {
                slot: slot.index,
                seq,
                epoch,
                reset: false,
                begin: None,
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
            let waiter = state.waiter(slot.index, tool, id, reply);
            left.extend(state.enqueue((slot.index, seq), op, waiter));
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
        let Some(epoch) = state.leased.epoch(slot.index) else {
            drop(state);
            return reply.send(Err("the slot is the executor's no more".to_owned()));
        };
        let seq = state.next(slot.index);
        let op =
            format!("{{\"slot\":{},\"seq\":{seq},\"epoch\":{epoch},\"reset\":true}}", slot.index);
        let left = state.enqueue((slot.index, seq), op, Waiter::Reset(slot.generation, reply));
        self.have_sent(state);
        left.into_iter().for_each(InFlight::lose);
    }

    /// Hands a begin over. May block while it sends.
    pub(super) fn begin(&self, slot: &SlotRef, spec: &Arc<TrajectorySpec>, reply: BeginReply) {
        let mut state = self.state.lock();
        let Some(epoch) = state.usable(slot) else {
            drop(state);
            return reply.send(Err(BeginFailure::lost(LOST)));
        };
        let seq = state.next(slot.index);
        let op = Op {
            slot: slot.index,
            seq,
            epoch,
            reset: false,
            begin: Some(spec.clone()),
            trajectory_id: String::new(),
            tool: String::new(),
            args: JsonObject::new(),
            timeout: 0.0,
        };
        let most = state.max_body.saturating_sub(ENVELOPE);
        let refusal = match serde_json::to_string(&op) {
            Ok(op) if op.len() <= most => {
                let left = state.enqueue((slot.index, seq), op, Waiter::Begin(reply));
                self.have_sent(state);
                return left.into_iter().for_each(InFlight::lose);
            }
            Ok(op) => BeginFailure::unsupported(format!(
                "the spec takes {} bytes on the wire; this sandbox server takes {most} at most",
                op.len()
            )),
            // Only a map with keys that are no strings could not be written.
            Err(error) => BeginFailure::failed(format!("the spec cannot be written: {error}")),
        };
        drop(state);
        reply.send(Err(refusal));
    }

    /// Gives a slot back that the session has under this grant. May block while it sends.
    pub(super) fn give_back(&self, slot: usize, grant: u64) {
        let mut state = self.state.lock();
        if state.give_back(slot, grant) {
            self.note_share(&state);
            self.have_sent(state);
        }
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
            // The threads have to end, too.
            let time = deadline.saturating_duration_since(Instant::now()) / 2;
            let time = time.clamp(LAST_WORD, self.connection.prompt);
            let pooled = &self.connection.pooled;
            if end_session(&self.connection, pooled, &session, time).is_err() {
                // It may have been interrupted while another server was still being connected to.
                end_session_anew(&self.connection, &session);
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

    /// The thread that sends: what no other thread sends, what could not be sent, again, and that
    /// the session lives.
    fn keep_sending(&self) {
        let mut state = self.state.lock();
        let mut beat_at = Instant::now() + state.leased.beat();
        while !state.closing {
            let now = Instant::now();
            // It may hold less than it did, and ask more often.
            beat_at = beat_at.min(now + state.leased.beat());
            if beat_at <= now {
                let told;
                (state, told) = self.beat(state);
                let pause = state.leased.beat();
                beat_at = Instant::now() + if told { pause } else { pause.min(BEAT_AGAIN) };
                continue;
            }
            let is_due = state.may_send() && state.senders < SENDERS && state.owes_server();
            let pause = state.retry_at.filter(|at| *at > now);
            match (is_due, pause) {
                (true, None) => state = self.send_outbox(state),
                (is_due, pause) => {
                    let until = pause.filter(|_| is_due).map_or(beat_at, |at| at.min(beat_at));
                    self.outgoing.wait_until(&mut state, until);
                }
            }
        }
    }

    /// Tells the server that the session lives, and how many slots it wants; takes in which it has.
    /// A server that is out of reach is looked for by the thread that reads. Says whether the
    /// server has answered.
    fn beat<'a>(&'a self, state: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, bool) {
        if state.phase != Phase::Up {
            return (state, true);
        }
        let (session, seen) = (state.session.clone(), state.images_seen);
        drop(state);
        let told = resume(&self.connection, &session, seen, self.shares.asked(self.number));
        let mut state = self.state.lock();
        match told {
            Ok(answer) => {
                if answer.instance == state.instance && session == state.session {
                    self.lease_is(&mut state, &answer.lease);
                    self.note_images(&mut state, answer.images);
                }
                (state, true)
            }
            Err(failure) => {
                log::debug!("{}: {}", self.connection.url, failure.text());
                let is_over = matches!(failure, Failure::Refused(GONE, _));
                if is_over && self.watcher.get().is_none() {
                    // No thread reads yet, which would find it out: this process was stopped, or
                    // the server began anew, while the start waits for others.
                    drop(state);
                    let begun = self.find_again(&mut new_session());
                    return (self.state.lock(), begun.is_ok());
                }
                (state, false)
            }
        }
    }

    /// Sends what is in the outbox, until it is empty or a request fails.
    fn send_outbox<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.senders += 1;
        while state.may_send() {
            let Some(request) = state.next_request() else {
                if state.senders == 1 {
                    // Nothing is owed to the server.
                    state.no_trouble();
                }
                break;
            };
            drop(state);
            let sent = self.send(&request.body);
            state = self.state.lock();
            let ended = match sent {
                Ok(response) => {
                    state.arrived(&request.keys);
                    self.complete(&mut state, response.results)
                }
                Err(failure) => {
                    log::debug!("{}: {}", self.connection.url, failure.text());
                    let refused = state.not_arrived(request, failure, Instant::now());
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

/// Begins a session, which asks for slots, perhaps in the place of another.
fn begin(
    connection: &Connection,
    session: &str,
    replaces: Option<String>,
    Asked { want, elsewhere }: Asked,
) -> Result<SessionResponse, Failure> {
    let session = session.to_owned();
    // One that wants nothing of a server begins with a slot of it, and gives it back.
    let want = want.map(|want| want.max(1));
    let (resume, end, images_seen) = (false, false, Some(0));
    let request = SessionRequest { session, replaces, resume, end, want, elsewhere, images_seen };
    ask(connection, &request)
}

/// Ends a session. Refused or not: its lease ends by itself.
fn end_session(
    connection: &Connection,
    agent: &Agent,
    session: &str,
    time: Duration,
) -> Result<(), Failure> {
    let request = SessionRequest {
        session: session.to_owned(),
        replaces: None,
        resume: false,
        end: true,
        want: None,
        elsewhere: 0,
        images_seen: None,
    };
    let body = serde_json::to_vec(&request).map_err(|error| Failure::NotSent(error.to_string()))?;
    connection.post(agent, SESSION, &body, Some(time)).map(drop)
}

/// The same, though requests on the connection were interrupted. Blocks for a moment.
pub(super) fn end_session_anew(connection: &Connection, session: &str) {
    let names = Names::new();
    let agent = client::agent(AgentConfig {
        idle_connections: 0,
        read_timeout: Some(LAST_WORD),
        ca_pem: connection.patient.ca_pem.as_deref(),
        names: &names,
    });
    if let Ok(agent) = agent {
        let _ = end_session(connection, &agent, session, LAST_WORD);
    }
}

/// Goes on with a session, which asks for slots, and has seen this version of the images.
fn resume(
    connection: &Connection,
    session: &str,
    images_seen: u64,
    Asked { want, elsewhere }: Asked,
) -> Result<SessionResponse, Failure> {
    let request = SessionRequest {
        session: session.to_owned(),
        replaces: None,
        resume: true,
        end: false,
        want,
        elsewhere,
        images_seen: Some(images_seen),
    };
    ask(connection, &request)
}

fn ask(connection: &Connection, request: &SessionRequest) -> Result<SessionResponse, Failure> {
    let body = serde_json::to_vec(request).map_err(|error| Failure::NotSent(error.to_string()))?;
    let time = Some(connection.prompt);
    client::read_json(connection.post(&connection.pooled, SESSION, &body, time)?)
}
