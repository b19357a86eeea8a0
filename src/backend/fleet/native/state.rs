//! What is in flight to a server, and what becomes of it: a pure data structure.
//!
//! Every operation in flight is in [`State::flights`] until its result is there; removing it and
//! answering it are one step, so that it is answered once, and what is said of an unknown or an
//! earlier operation is ignored. There is one per slot at most: a client that sends another has
//! given the one before up.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::leased::Leased;
use super::{ENVELOPE, GONE, never_ran};
use crate::backend::fleet::faults::Trial;
use crate::backend::fleet::{PAUSE_FIRST, PAUSE_MOST};
use crate::backend::{BeginReply, ContainerImages, ExecutionId, Reply, ResetReply, SlotRef};
use crate::client::Failure;
use crate::error::BeginFailure;
use crate::tool::{Outcome, ToolResult};
use crate::wire::native::{Key, Lease, LeaseKey, OpOutcome, OpResult, SessionResponse, calls_body};

/// How many operations, cancellations, and slots that are given back, go into one request.
const MOST_OPS: usize = 1_000;
/// The tools, by their names on the wire, whose first call in a slot is a trial of the server:
/// those that need nothing but a sandbox. Others may be missing there, and a model can choose them.
const TRIED_BY: [&str; 2] = ["bash", "bash_stateful"];
/// The bytes that a cancellation, or a slot that is given back, takes at most.
const PAIR_BYTES: usize = 44;

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) session: String,
    pub(super) instance: String,
    pub(super) max_body: usize,
    /// Which slots are the session's.
    pub(super) leased: Leased,
    /// The latest operation's number, by slot.
    pub(super) latest: Vec<u64>,
    /// Under which generation each slot was last reset in this session. A call of an older one, or
    /// for a slot that was not reset, was meant for a workspace that is lost: its sender had not
    /// heard of that yet.
    pub(super) reset: Vec<Option<u64>>,
    /// Which slots were emptied in this session and had no call since: the next one is a trial.
    fresh: Vec<bool>,
    /// What came of trials, by slot, to be reported.
    pub(super) trials: Vec<(usize, Trial)>,
    pub(super) flights: HashMap<Key, InFlight>,
    pub(super) calls: HashMap<ExecutionId, Key>,
    outbox: VecDeque<Key>,
    /// How many operations at the outbox's front go alone: one of them was refused, and which one
    /// is to be found out.
    alone: usize,
    /// Operations whose end is wanted, to be told with the next request.
    pub(super) cancel: Vec<Key>,
    /// Slots that are given back, likewise.
    pub(super) give_back: Vec<LeaseKey>,
    pub(super) senders: usize,
    /// Since when requests fail although the stream of results lives.
    pub(super) trouble_since: Option<Instant>,
    /// When to send again after a request that failed, and the pause before the next time.
    pub(super) retry_at: Option<Instant>,
    retry_pause: Duration,
    /// When the stream of results last said something.
    pub(super) heard: Instant,
    pub(super) closing: bool,
    /// What the server has said of its images last, and the version of that.
    pub(super) images: Option<ContainerImages>,
    pub(super) images_seen: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Up,
    Unknown { since: Instant },
    Down,
}

/// An operation that has no result yet.
pub(super) struct InFlight {
    /// As JSON, to be sent again if need be. Empty once the server has said that it has it.
    op: String,
    /// Whether it may have reached the server.
    sent: bool,
    /// How many requests had it.
    attempts: u32,
    /// Whether a request with it is on its way now.
    sending: bool,
    /// Whether the server was asked what became of it, and it was not sent since.
    asked: bool,
    owed: Waiter,
}

/// Who waits for it.
pub(super) enum Waiter {
    /// A call; `is_trial` if its start says whether the server can be used.
    Call { id: ExecutionId, reply: Reply, is_trial: bool },
    /// A reset, with the slot's generation.
    Reset(u64, ResetReply),
    /// A begin.
    Begin(BeginReply),
}

/// What goes into a request, and the body that has it.
pub(super) struct Request {
    pub(super) keys: Vec<Key>,
    cancel: Vec<Key>,
    give_back: Vec<LeaseKey>,
    pub(super) body: String,
}

impl State {
    /// The state of a session that has just begun.
    pub(super) fn new(session: String, answer: SessionResponse) -> Self {
        let (instance, max_body, slots) =
            (answer.instance.clone(), answer.max_body, answer.slots.len());
        Self {
            phase: Phase::Up,
            session,
            instance,
            max_body,
            leased: Leased::new(answer),
            latest: vec![0; slots],
            reset: vec![None; slots],
            fresh: vec![false; slots],
            trials: Vec::new(),
            flights: HashMap::new(),
            calls: HashMap::new(),
            outbox: VecDeque::new(),
            alone: 0,
            cancel: Vec::new(),
            give_back: Vec::new(),
            senders: 0,
            trouble_since: None,
            retry_at: None,
            retry_pause: PAUSE_FIRST,
            heard: Instant::now(),
            closing: false,
            images: None,
            images_seen: 0,
        }
    }

    /// Takes in what the server says of the session's slots. `false` if nothing has changed.
    pub(super) fn apply_lease(&mut self, lease: &Lease) -> bool {
        let slots = self.reset.len();
        let epochs =
            |leased: &Leased| (0..slots).map(|slot| leased.epoch(slot)).collect::<Vec<_>>();
        let before = epochs(&self.leased);
        if !self.leased.apply(lease) {
            return false;
        }
        for (slot, (before, now)) in before.iter().zip(epochs(&self.leased)).enumerate() {
            if *before != now {
                self.reset[slot] = None;
            }
        }
        true
    }

    /// Gives a slot up that the session has under this grant. `false` if it has not.
    pub(super) fn give_back(&mut self, slot: usize, grant: u64) -> bool {
        let Some(returned) = self.leased.give_back(slot, grant) else { return false };
        if let Some(reset) = self.reset.get_mut(slot) {
            *reset = None;
        }
        self.give_back.push(returned);
        true
    }

    /// Under which lease calls may be sent to a slot that was reset for its present holder.
    pub(super) fn usable(&self, slot: &SlotRef) -> Option<u64> {
        let reset = self.reset.get(slot.index).copied().flatten();
        let is_ready = reset.is_some_and(|reset| reset <= slot.generation);
        let epoch = self.leased.epoch(slot.index);
        epoch.filter(|_| is_ready && self.phase != Phase::Down && !self.closing)
    }

    /// The number of a slot's next operation.
    pub(super) fn next(&mut self, slot: usize) -> u64 {
        if slot >= self.latest.len() {
            self.latest.resize(slot + 1, 0);
            self.reset.resize(slot + 1, None);
            self.fresh.resize(slot + 1, false);
        }
        self.latest[slot] += 1;
        self.latest[slot]
    }

    /// Puts an operation into the outbox. Gives the one before in its slot, if that has no result:
    /// it is to be answered without the lock.
    pub(super) fn enqueue(&mut self, key: Key, op: String, owed: Waiter) -> Option<InFlight> {
        let (slot, seq) = key;
        let before = self.remove((slot, seq - 1));
        if let Waiter::Call { id, .. } = &owed {
            self.calls.insert(*id, key);
        }
        self.flights.insert(
            key,
            InFlight { op, sent: false, attempts: 0, sending: false, asked: false, owed },
        );
        self.outbox.push_back(key);
        before
    }

    fn remove(&mut self, key: Key) -> Option<InFlight> {
        let flight = self.flights.remove(&key)?;
        if let Waiter::Call { id, .. } = &flight.owed {
            self.calls.remove(id);
        }
        Some(flight)
    }

    /// Whether requests may be sent.
    pub(super) fn may_send(&self) -> bool {
        self.phase == Phase::Up && !self.closing
    }

    /// Whether something is to be sent.
    pub(super) fn owes_server(&self) -> bool {
        !self.outbox.is_empty() || !self.cancel.is_empty() || !self.give_back.is_empty()
    }

    /// Takes as much out of the outbox as fits into one request.
    pub(super) fn next_request(&mut self) -> Option<Request> {
        let most = self.cancel.len().min(MOST_OPS);
        let cancel: Vec<Key> = self.cancel.drain(..most).collect();
        let most = self.give_back.len().min(MOST_OPS);
        let give_back: Vec<LeaseKey> = self.give_back.drain(..most).collect();
        let mut bytes = ENVELOPE + (cancel.len() + give_back.len()) * PAIR_BYTES;
        let most = if self.alone > 0 { 1 } else { MOST_OPS };
        let mut keys = Vec::new();
        while keys.len() < most
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
                    flight.attempts += 1;
                    keys.push(*key);
                    self.outbox.pop_front();
                }
            }
            self.alone = self.alone.saturating_sub(1);
        }
        if keys.is_empty() && cancel.is_empty() && give_back.is_empty() {
            return None;
        }
        let ops = keys.iter().filter_map(|key| self.flights.get(key)).map(|flight| &*flight.op);
        let body = calls_body(&self.session, ops, &cancel, &give_back);
        Some(Request { keys, cancel, give_back, body })
    }

    /// A request got through: the server has these.
    pub(super) fn arrived(&mut self, keys: &[Key]) {
        self.no_trouble();
        for key in keys {
            if let Some(flight) = self.flights.get_mut(key) {
                flight.sending = false;
                flight.op = String::new();
            }
        }
    }

    /// A request failed. What it had is sent again, unless the server will not have it.
    pub(super) fn not_arrived(
        &mut self,
        request: Request,
        failure: Failure,
        now: Instant,
    ) -> Vec<Ended> {
        let Request { keys, cancel, give_back, .. } = request;
        for key in &keys {
            if let Some(flight) = self.flights.get_mut(key) {
                flight.sending = false;
                // A server that does not know the session has done nothing of the request.
                if matches!(failure, Failure::Refused(GONE, _)) && flight.attempts == 1 {
                    (flight.sent, flight.attempts) = (false, 0);
                }
            }
        }
        self.cancel.extend(cancel);
        self.give_back.extend(give_back);
        let mut refused = Vec::new();
        match failure {
            // It understood the request, and did nothing of it.
            Failure::Refused(400 | 413, text) if !keys.is_empty() => {
                if let [key] = *keys {
                    let flight = self.remove(key);
                    let is_begin = matches!(&flight, Some(InFlight { owed: Waiter::Begin(_), .. }));
                    let result = if is_begin {
                        // It knows less of specs than this executor.
                        let error = format!("the sandbox server refused the spec: {text}");
                        BeginFailure::unsupported(error).result()
                    } else {
                        let error = format!("the sandbox server refused the call: {text}");
                        never_ran(Outcome::BackendFailed, error)
                    };
                    refused.extend(flight.map(|flight| Ended { owed: flight.owed, result }));
                } else {
                    self.alone = keys.len();
                    self.send_again(keys);
                }
            }
            _ => {
                self.send_again(keys);
                self.trouble_since.get_or_insert(now);
                self.retry_at = Some(now + self.retry_pause);
                self.retry_pause = (self.retry_pause * 2).min(PAUSE_MOST);
            }
        }
        refused
    }

    /// In front, in their order.
    fn send_again(&mut self, keys: Vec<Key>) {
        keys.into_iter().rev().for_each(|key| self.outbox.push_front(key));
    }

    /// Requests get through.
    pub(super) fn no_trouble(&mut self) {
        self.trouble_since = None;
        self.retry_at = None;
        self.retry_pause = PAUSE_FIRST;
    }

    /// What the server is to be asked about: what may have reached it and has no result.
    pub(super) fn ask(&mut self) -> Vec<Key> {
        let sent = self.flights.iter_mut().filter(|(_, flight)| flight.sent);
        let asked = sent.map(|(key, flight)| {
            // One that is just being sent may arrive after the answer.
            flight.asked = !flight.sending;
            *key
        });
        asked.collect()
    }

    /// Whether one of these, which the server has told the results of, still waits for it here:
    /// then the answer that had it was lost.
    pub(super) fn misses_any(&self, told: &[Key]) -> bool {
        told.iter().any(|key| {
            let waits = self.flights.get(key).is_some_and(|flight| flight.sent && !flight.sending);
            // One that is sent again gets it by that.
            waits && !self.outbox.contains(key)
        })
    }

    /// Takes in what became of operations; what ended is to be answered without the lock.
    pub(super) fn complete(&mut self, results: Vec<OpResult>) -> Vec<Ended> {
        let mut ended = Vec::new();
        for OpResult { slot, seq, what } in results {
            let key = (slot, seq);
            // What has not been sent has no result, whatever the server says.
            let Some(flight) = self.flights.get(&key).filter(|flight| flight.sent) else {
                continue;
            };
            let is_told = matches!(what, OpOutcome::Done(_));
            let result = match what {
                OpOutcome::Done(result) => result.into_tool_result(),
                // It was sent since the question.
                OpOutcome::Unknown(_) if !flight.asked => continue,
                // It never arrived: once more, if it can be.
                OpOutcome::Unknown(_) if !flight.op.is_empty() => {
                    if !self.outbox.contains(&key) {
                        self.outbox.push_back(key);
                    }
                    continue;
                }
                OpOutcome::Unknown(_) | OpOutcome::Stale(_) => lost(true),
                OpOutcome::Fenced(_) => lost(false),
            };
            let Some(flight) = self.remove(key) else { continue };
            // What was fenced or never arrived says nothing of the slot.
            if is_told {
                self.note(slot, &flight.owed, &result);
            }
            ended.push(Ended { owed: flight.owed, result });
        }
        ended
    }

    /// Notes what a result that the server has given says of the slot and of the server.
    fn note(&mut self, slot: usize, owed: &Waiter, result: &ToolResult) {
        let trial = match owed {
            Waiter::Reset(generation, _) if result.success => {
                if let (Some(reset), Some(fresh)) =
                    (self.reset.get_mut(slot), self.fresh.get_mut(slot))
                {
                    (*reset, *fresh) = (Some(*generation), true);
                }
                None
            }
            Waiter::Reset(..) => Some(Trial::Failed(result.error.clone())),
            // Its user chooses what it asks for: the first call after it is no trial. Nor is what
            // fails for that reason.
            Waiter::Begin(_) => {
                if let Some(fresh) = self.fresh.get_mut(slot) {
                    *fresh = false;
                }
                match result.outcome {
                    Outcome::Ok => Some(Trial::Succeeded),
                    Outcome::BackendFailed => Some(Trial::Failed(result.error.clone())),
                    _ => None,
                }
            }
            Waiter::Call { is_trial: true, .. } => trial_of(result),
            Waiter::Call { .. } => None,
        };
        self.trials.extend(trial.map(|trial| (slot, trial)));
    }

    /// Who waits for a call that is about to be sent.
    pub(super) fn waiter(
        &mut self,
        slot: usize,
        tool: &str,
        id: ExecutionId,
        reply: Reply,
    ) -> Waiter {
        let was_fresh = self.fresh.get_mut(slot).is_some_and(std::mem::take);
        Waiter::Call { id, reply, is_trial: was_fresh && TRIED_BY.contains(&tool) }
    }

    /// Everything in flight is lost.
    pub(super) fn clear(&mut self) -> Vec<InFlight> {
        self.outbox.clear();
        self.alone = 0;
        self.cancel.clear();
        self.give_back.clear();
        self.calls.clear();
        self.no_trouble();
        self.flights.drain().map(|(_, flight)| flight).collect()
    }

    /// Another session has begun; gives what was in flight in the one before.
    pub(super) fn begin_anew(&mut self, session: String, answer: SessionResponse) -> Vec<InFlight> {
        self.session = session;
        self.instance.clone_from(&answer.instance);
        // Its versions begin anew, too.
        self.images_seen = 0;
        self.max_body = answer.max_body;
        // The numbers only grow: nothing that was said of the old ones means a new one.
        self.reset.fill(None);
        self.fresh.fill(false);
        self.leased.begin_anew(answer);
        self.phase = Phase::Up;
        self.heard = Instant::now();
        self.clear()
    }
}

/// An operation and its result.
pub(super) struct Ended {
    owed: Waiter,
    result: ToolResult,
}

impl Ended {
    pub(super) fn answer(self) {
        match self.owed {
            Waiter::Call { reply, .. } => reply.send(self.result),
            Waiter::Reset(_, reply) => {
                reply.send(if self.result.success { Ok(()) } else { Err(self.result.error) });
            }
            Waiter::Begin(reply) => {
                let ToolResult { outcome, error, .. } = self.result;
                reply.send(match outcome {
                    Outcome::Ok => Ok(()),
                    outcome => Err(BeginFailure::of(outcome, error)),
                });
            }
        }
    }
}

impl InFlight {
    /// Answers it: its server is gone.
    pub(super) fn lose(self) {
        let result = lost(self.sent);
        Ended { owed: self.owed, result }.answer();
    }
}

/// What the first call in an empty slot says of its server.
fn trial_of(result: &ToolResult) -> Option<Trial> {
    match (result.outcome, result.may_have_executed) {
        (Outcome::BackendFailed | Outcome::SandboxLost, false) => {
            Some(Trial::Failed(result.error.clone()))
        }
        // It may have been the command's doing.
        (Outcome::BackendFailed | Outcome::SandboxLost, true) => None,
        // It ran; or it was refused, or cancelled, before the server could show what it can.
        (_, ran) => ran.then_some(Trial::Succeeded),
    }
}

/// What became of what was in flight.
pub(super) const LOST: &str = "the sandbox server is gone, or does not answer";

pub(super) fn lost(may_have_executed: bool) -> ToolResult {
    let mut result = ToolResult::failure(Outcome::SandboxLost, LOST);
    result.may_have_executed = may_have_executed;
    result
}
