//! A sandbox server that knows only the plain routes: the reference's, or another's.
//!
//! It answers a request only when its call is done, and a batch only when its slowest call is. So
//! each call is a request of its own, and a slow call delays no other. The requests of all such
//! servers share one thread ([`StockRequests`]); there are never more of them than slots.
//!
//! It has no way to tell a repeated request from a new one, so none is repeated that may have
//! arrived, and none is sent on a connection that was idle: the server may be just closing that.
//! One that has not arrived waits here for its next try, which the server's thread begins.
//!
//! Nor does it say when it has begun anew. A connection that is refused, to a call or to the
//! thread that asks whether it is there, is taken for that: its process was gone, whatever its
//! workspaces hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustls::ClientConfig;
use serde_json::json;

use super::faults::Trial;
use super::reports::Reports;
use super::{Connection, PAUSE_MOST, warn_given_up};
use crate::backend::{ContainerChange, Execution, LeasedSlots, ResetReply, SlotRef, Watcher};
use crate::client::{self, Exchanges, Failure, Names, Post};
use crate::thread::OwnedThread;
use crate::tool::{Outcome, ToolResult, not_of_the_reference};
use crate::wire::reference::{Answer, ExecuteRequest, Slots};

/// How much longer than its call a request may take.
const MARGIN: Duration = Duration::from_secs(10);
/// How long a reset may take.
const RESET_TIME: Duration = Duration::from_secs(60);
/// How often the server is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long after a request did not arrive it is tried again.
const TRY_AGAIN: Duration = PAUSE_MOST.checked_div(4).unwrap();
/// The largest body that a reference server takes: 1 MiB.
const MAX_BODY: usize = 1024 * 1024;

/// The requests to all servers of this kind in a fleet. Their thread starts with the first server.
pub(super) struct StockRequests {
    names: Names,
    tls: Arc<ClientConfig>,
    started: Mutex<Option<Arc<Exchanges>>>,
}

impl StockRequests {
    /// No thread yet.
    pub(super) fn new(names: Names, tls: Arc<ClientConfig>) -> Self {
        Self { names, tls, started: Mutex::default() }
    }

    fn started(&self) -> std::io::Result<Arc<Exchanges>> {
        let mut started = self.started.lock();
        if let Some(requests) = &*started {
            return Ok(requests.clone());
        }
        let requests = Arc::new(Exchanges::start(self.names.clone(), self.tls.clone())?);
        *started = Some(requests.clone());
        Ok(requests)
    }

    /// Ends all requests and the thread, by `deadline`.
    pub(super) fn close(&self, deadline: Instant) {
        if let Some(requests) = self.started.lock().take() {
            requests.close(deadline);
        }
    }
}

/// A sandbox server that speaks the reference's plain routes.
pub(super) struct ReferenceServer {
    number: usize,
    connection: Connection,
    /// The names of its slots.
    slots: Vec<String>,
    requests: Arc<Exchanges>,
    reports: Arc<Reports>,
    bound: Duration,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    /// Who is told what becomes of the server, as soon as there is one.
    watcher: Option<Watcher>,
    /// By slot: under which grant the executor has it, and whether it gave it back. Nobody else
    /// uses the server: they count only that.
    grants: Vec<(u64, bool)>,
    phase: Phase,
    /// Whether a connection was refused since it was last known to be up.
    refused: bool,
    /// How often its workspaces were lost: a call from before is not to run after.
    losses: u64,
    /// What did not arrive. Bounded by the slots, each of which has one at most.
    waiting: Vec<Waiting>,
    is_closed: bool,
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

/// A job that did not arrive.
struct Waiting {
    job: Job,
    /// Why.
    failure: Failure,
    /// When it is tried again; at news of the server only, if it was refused.
    again: Option<Instant>,
    /// When it is given up.
    deadline: Instant,
}

/// What is to become of what waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Wait,
    TryAgain,
    GiveUp,
}

impl Waiting {
    fn turn(&self, phase: Phase, refused: bool, now: Instant) -> Turn {
        let is_time = match self.again {
            Some(again) => again <= now,
            None => !refused,
        };
        match phase {
            Phase::Down => Turn::GiveUp,
            _ if self.deadline <= now => Turn::GiveUp,
            _ if is_time => Turn::TryAgain,
            _ => Turn::Wait,
        }
    }

    /// When its turn comes, if there is no news of the server.
    fn next(&self) -> Instant {
        self.again.map_or(self.deadline, |again| again.min(self.deadline))
    }
}

impl State {
    /// Takes what waits no longer.
    fn take_due(&mut self, now: Instant) -> Vec<(Waiting, Turn)> {
        let mut due = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting.turn(self.phase, self.refused, now) {
                Turn::Wait => self.waiting.push(waiting),
                turn => due.push((waiting, turn)),
            }
        }
        due
    }
}

impl ReferenceServer {
    /// Asks for its slots.
    pub(super) fn connect(
        number: usize,
        connection: Connection,
        bound: Duration,
        requests: &StockRequests,
        reports: Arc<Reports>,
    ) -> Result<(Arc<Self>, Vec<String>), Failure> {
        let slots: Slots = connection.get("/slots")?;
        let names: Vec<_> = slots.slots.into_iter().map(|slot| slot.slot_id).collect();
        let requests = requests.started();
        let requests = requests.map_err(|error| {
            Failure::NotSent(format!("no thread for requests to it can be started: {error}"))
        })?;
        let state = State {
            watcher: None,
            grants: vec![(0, false); names.len()],
            phase: Phase::Up,
            refused: false,
            losses: 0,
            waiting: Vec::new(),
            is_closed: false,
            keeper: None,
        };
        let (state, wake) = (Mutex::new(state), Condvar::new());
        let slots = names.clone();
        let server = Self { number, connection, slots, requests, reports, bound, state, wake };
        Ok((Arc::new(server), names))
    }

    /// Starts the server's thread, which tells `watcher` what becomes of the server.
    pub(super) fn watch(self: &Arc<Self>, watcher: Watcher) -> std::io::Result<()> {
        self.state.lock().watcher = Some(watcher.clone());
        self.tell_slots();
        let server = self.clone();
        let name = format!("tool-fleet-{}", self.number);
        let thread = OwnedThread::spawn(name, move || server.keep_up(&watcher))?;
        self.state.lock().keeper = Some(thread);
        Ok(())
    }

    /// Tells which slots it gives: all, under grants that are new where one was given back.
    pub(super) fn tell_slots(&self) {
        let mut state = self.state.lock();
        for (grant, is_back) in &mut state.grants {
            if std::mem::take(is_back) || *grant == 0 {
                *grant += 1;
            }
        }
        let held = state.grants.iter().map(|(grant, _)| *grant).enumerate().collect();
        let slots = LeasedSlots::new(self.slots.clone(), held, usize::MAX);
        if let Some(watcher) = &state.watcher {
            watcher.notify(&self.connection.url, ContainerChange::Added(slots));
        }
    }

    /// Takes a slot back that the executor has under this grant, and uses no more.
    pub(super) fn give_back(&self, slot: usize, grant: u64) {
        if let Some((given, is_back)) = self.state.lock().grants.get_mut(slot)
            && *given == grant
        {
            *is_back = true;
        }
    }

    /// Whether all slots of it were given back, or it is given up.
    pub(super) fn is_unused(&self) -> bool {
        let state = self.state.lock();
        state.grants.iter().all(|(_, is_back)| *is_back) || state.phase == Phase::Down
    }

    /// Hands calls over. Does not block.
    pub(super) fn execute(self: &Arc<Self>, batch: Vec<Execution>) {
        let losses = self.state.lock().losses;
        let deadline = Instant::now() + self.bound;
        batch.into_iter().for_each(|execution| self.send(Job::Call(execution, losses), deadline));
    }

    /// Hands a reset over. Does not block.
    pub(super) fn reset(self: &Arc<Self>, slot: &SlotRef, reply: ResetReply) {
        self.send(Job::Reset(slot.clone(), reply), Instant::now() + self.bound);
    }

    /// Ends the thread, by `deadline`. What waits is dropped unanswered, which says so.
    pub(super) fn close(&self, deadline: Instant) {
        let (waiting, keeper) = {
            let mut state = self.state.lock();
            state.is_closed = true;
            (std::mem::take(&mut state.waiting), state.keeper.take())
        };
        drop(waiting);
        self.wake.notify_all();
        self.connection.interrupt();
        if let Some(thread) = keeper {
            thread.join_or_leave(deadline);
        }
    }

    /// Sends a job's request.
    fn send(self: &Arc<Self>, job: Job, deadline: Instant) {
        let (path, body, timeout) = match &job {
            Job::Call(execution, losses) => {
                if *losses != self.state.lock().losses {
                    return answer(job, Err(Failure::NotSent("it began anew".to_owned())));
                }
                if let Some(name) = not_of_the_reference(&execution.arguments) {
                    return not_known_there(job, name);
                }
                let body = serde_json::to_vec(&ExecuteRequest {
                    slot_id: &execution.slot.name,
                    tool: execution.tool,
                    args: &execution.arguments,
                    execution_id: &name(execution),
                    timeout: execution.timeout.as_secs_f64(),
                });
                // Its keys are strings; a job that is dropped says that it has no result.
                let Ok(body) = body else { return };
                ("/execute", body, execution.timeout + MARGIN)
            }
            Job::Reset(slot, _) => {
                let body = json!({"slot_id": &*slot.name}).to_string();
                ("/reset", body.into_bytes(), RESET_TIME)
            }
        };
        if body.len() > MAX_BODY {
            return too_large(job, body.len());
        }
        let uri = match self.connection.uri(path) {
            Ok(uri) => uri,
            Err(failure) => return answer(job, Err(failure)),
        };
        let post = Post {
            uri: &uri,
            authorization: self.connection.authorization.as_ref(),
            body: &body,
            connect_timeout: self.connection.prompt,
            timeout,
        };
        let server = self.clone();
        let done = move |answered: Result<_, _>| {
            let answered = answered.and_then(|answered| client::json_answer::<Answer>(&answered));
            match answered {
                Err(failure @ (Failure::NotSent(_) | Failure::NoListener)) => {
                    server.not_arrived(job, failure, deadline);
                }
                answered => {
                    server.note(&job, answered.as_ref());
                    answer(job, answered);
                }
            }
        };
        self.requests.post(&post, Box::new(done));
    }

    /// Notes what the answer to a reset says of the server.
    fn note(&self, job: &Job, answered: Result<&Answer, &Failure>) {
        let (Job::Reset(slot, _), Ok(answer)) = (job, answered) else { return };
        let trial = match answer.success {
            true => Trial::Succeeded,
            false => Trial::Failed(answer.error.clone()),
        };
        let addr = self.connection.url.as_str().into();
        self.reports.tried(&addr, slot.index, self.slots.len(), trial);
    }

    /// Has a job wait that did not reach the server, unless the server is given up.
    fn not_arrived(&self, job: Job, failure: Failure, deadline: Instant) {
        let now = Instant::now();
        let mut state = self.state.lock();
        // Not again before it is known what became of the workspaces: it may be back already.
        let is_refused = matches!(failure, Failure::NoListener);
        state.refused |= is_refused;
        let again = (!is_refused).then(|| now + TRY_AGAIN);
        let waiting = Waiting { job, failure, again, deadline };
        let is_over = matches!(waiting.turn(state.phase, state.refused, now), Turn::GiveUp);
        if is_over || state.is_closed {
            drop(state);
            return answer(waiting.job, Err(waiting.failure));
        }
        state.waiting.push(waiting);
        self.wake.notify_all();
    }

    /// The server's thread: asks it whether it is there, and sends again what did not arrive.
    fn keep_up(self: &Arc<Self>, watcher: &Watcher) {
        loop {
            let asked = self.connection.health();
            let why = asked.as_ref().err().map(Failure::text).unwrap_or_default();
            let (was_down, is_down) = self.take_note(asked, watcher);
            if is_down != was_down {
                // Not under the lock: the log may block.
                let url = &self.connection.url;
                if is_down {
                    warn_given_up(url, &why);
                } else {
                    log::warn!("the sandbox server {url} is there again");
                }
            }
            let asked_at = Instant::now();
            loop {
                let mut state = self.state.lock();
                if state.is_closed {
                    return;
                }
                let now = Instant::now();
                let due = state.take_due(now);
                if !due.is_empty() {
                    drop(state);
                    due.into_iter().for_each(|(waiting, turn)| self.go_on(waiting, turn));
                    continue;
                }
                let is_up = state.phase == Phase::Up;
                let ask = asked_at + if is_up { ASK_EVERY } else { TRY_AGAIN };
                // A call that was refused has it asked at once.
                if (is_up && state.refused) || ask <= now {
                    break;
                }
                let next = state.waiting.iter().map(Waiting::next).min();
                self.wake.wait_until(&mut state, next.map_or(ask, |next| next.min(ask)));
            }
        }
    }

    fn go_on(self: &Arc<Self>, waiting: Waiting, turn: Turn) {
        match turn {
            Turn::TryAgain => self.send(waiting.job, waiting.deadline),
            Turn::GiveUp | Turn::Wait => answer(waiting.job, Err(waiting.failure)),
        }
    }

    /// Takes note of what the server said, or that it said nothing; whether it was given up, and is
    /// so now.
    fn take_note(&self, asked: Result<Vec<String>, Failure>, watcher: &Watcher) -> (bool, bool) {
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
                watcher.notify(&self.connection.url, change);
            }
            (Err(failure), phase) => {
                state.refused |= matches!(failure, Failure::NoListener);
                match phase {
                    Phase::Up => {
                        state.phase = Phase::Unknown { since: Instant::now() };
                        watcher.notify(&self.connection.url, ContainerChange::Unreachable);
                    }
                    Phase::Unknown { since } if since.elapsed() >= self.bound => {
                        state.phase = Phase::Down;
                        state.losses += 1;
                        watcher.notify(&self.connection.url, ContainerChange::Lost);
                        // What reads there holds up its trajectory.
                        self.connection.patient.give_up();
                    }
                    Phase::Unknown { .. } | Phase::Down => {}
                }
            }
        }
        (was_down, state.phase == Phase::Down)
    }
}

/// The name that a call has on the wire. Only its own name has to differ: an answer to another call
/// must not pass for this one's.
fn name(execution: &Execution) -> String {
    format!("{}-{}", execution.id, execution.slot.generation)
}

/// Refuses a job that the server would refuse.
fn too_large(job: Job, bytes: usize) {
    let error = format!(
        "the call takes {bytes} bytes on the wire; this sandbox server takes {MAX_BODY} at most"
    );
    match job {
        Job::Call(execution, _) => {
            let mut result = ToolResult::failure(Outcome::InvalidCall, error);
            result.may_have_executed = false;
            execution.reply.send(result);
        }
        Job::Reset(_, reply) => reply.send(Err(error)),
    }
}

/// Refuses a call of which the server would leave out an argument.
fn not_known_there(job: Job, argument: &str) {
    if let Job::Call(execution, _) = job {
        let error = format!(
            "the sandbox server has no argument '{argument}' of {}: it has the reference's only",
            execution.tool
        );
        let mut result = ToolResult::failure(Outcome::BackendFailed, error);
        result.may_have_executed = false;
        execution.reply.send(result);
    }
}

/// Tells a job's caller how it went.
fn answer(job: Job, answered: Result<Answer, Failure>) {
    match job {
        Job::Call(execution, _) => {
            let result = result_of(&execution, answered);
            execution.reply.send(result);
        }
        Job::Reset(_, reply) => reply.send(match answered {
            Ok(answer) if answer.success => Ok(()),
            Ok(answer) => Err(answer.error),
            Err(failure) => Err(failure.text()),
        }),
    }
}

fn result_of(execution: &Execution, answered: Result<Answer, Failure>) -> ToolResult {
    match answered {
        Ok(answer)
            if answer.execution_id.as_str().is_some_and(|given| given != name(execution)) =>
        {
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
    }
}

#[cfg(test)]
mod tests;
