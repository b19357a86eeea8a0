//! What is in flight to a server, and what becomes of it: a pure data structure.
//!
//! Every operation in flight is in [`State::flights`] until its result is there; removing it and
//! answering it are one step, so that it is answered once, and what is said of an unknown or an
//! earlier operation is ignored.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::ENVELOPE;
use crate::backend::{ExecutionId, Reply, ResetReply};
use crate::tool::{Outcome, ToolResult};
use crate::wire::native::{Key, OpOutcome, OpResult, SessionResponse, calls_body};

/// How many operations go into one request.
const MOST_OPS: usize = 1_000;

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) session: String,
    pub(super) instance: String,
    pub(super) max_body: usize,
    /// The latest operation's number, by slot.
    pub(super) latest: Vec<u64>,
    /// Under which generation each slot was last reset in this session. A call of an older one, or
    /// for a slot that was not reset, was meant for a workspace that is lost: whoever sent it had not
    /// heard of that yet.
    pub(super) reset: Vec<Option<u64>>,
    pub(super) flights: HashMap<Key, Flight>,
    pub(super) calls: HashMap<ExecutionId, Key>,
    pub(super) outbox: VecDeque<Key>,
    /// Operations whose end is wanted, to be told with the next request.
    pub(super) cancel: Vec<Key>,
    pub(super) senders: usize,
    /// Since when requests fail although the stream of results lives.
    pub(super) trouble_since: Option<Instant>,
    pub(super) closing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Up,
    Unknown { since: Instant },
    Down,
}

/// An operation that has no result yet.
pub(super) struct Flight {
    /// As JSON, to be sent again if need be. Empty once the server has said that it has it.
    pub(super) op: String,
    /// Whether it may have reached the server.
    pub(super) sent: bool,
    /// Whether a request with it is on its way now.
    pub(super) sending: bool,
    /// Whether the server was asked what became of it, and it was not sent since.
    pub(super) asked: bool,
    pub(super) owed: Owed,
}

/// Who waits for it.
pub(super) enum Owed {
    Call(ExecutionId, Reply),
    /// A reset, with the slot's generation.
    Reset(u64, ResetReply),
}

impl State {
    /// The number of a slot's next operation.
    pub(super) fn next(&mut self, slot: usize) -> u64 {
        if slot >= self.latest.len() {
            self.latest.resize(slot + 1, 0);
            self.reset.resize(slot + 1, None);
        }
        self.latest[slot] += 1;
        self.latest[slot]
    }

    pub(super) fn take_off(&mut self, key: Key, op: String, owed: Owed) {
        self.flights.insert(key, Flight { op, sent: false, sending: false, asked: false, owed });
        self.outbox.push_back(key);
    }

    /// Takes as much out of the outbox as fits into one request.
    pub(super) fn next_request(&mut self) -> Option<(Vec<Key>, Vec<Key>, String)> {
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
    pub(super) fn land(&mut self, results: Vec<OpResult>) -> Vec<Ended> {
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
    pub(super) fn clear(&mut self) -> Vec<Flight> {
        self.outbox.clear();
        self.cancel.clear();
        self.calls.clear();
        self.trouble_since = None;
        self.flights.drain().map(|(_, flight)| flight).collect()
    }

    pub(super) fn begin_anew(&mut self, session: String, answer: SessionResponse) -> Vec<Flight> {
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
pub(super) struct Ended {
    pub(super) owed: Owed,
    pub(super) result: ToolResult,
}

impl Ended {
    pub(super) fn answer(self) {
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
    pub(super) fn lose(self) {
        let result = lost(self.sent);
        Ended { owed: self.owed, result }.answer();
    }
}

pub(super) fn lost(may_have_executed: bool) -> ToolResult {
    let error = "the sandbox server is gone, or does not answer";
    let mut result = ToolResult::failure(Outcome::SandboxLost, error);
    result.may_have_executed = may_have_executed;
    result
}
