//! Operations: noted, begun, ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::session::{Results, Tell, TellResult, What};
use super::{Native, Refusal, State, detail, json, unknown_session};
use crate::server::http::{self, Response, StatusCode};
use crate::server::sandbox::slots::SlotCall;
use crate::wire::native::{CallsRequest, Key, LeaseKey, MAX_LINE, NativeResult, Op};

/// How long the answer to calls waits for their hand-over, which should be immediate.
const HAND_OVER: Duration = Duration::from_secs(1);
/// How long results that are there at once wait for that answer, which carries them. What takes
/// longer to hand over has slow calls among it, which hold up nothing.
const AT_ONCE: Duration = Duration::from_millis(5);
/// The longest time that a call may be given.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The results of operations whose answer is to carry them. Dropped, it leaves them to the stream.
struct Answering<'a> {
    native: &'a Native,
    session: &'a str,
    keys: &'a [Key],
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let mut state = self.native.state.lock();
        if let Some(session) = state.sessions.get_mut(self.session)
            && session.leave_to_stream(self.keys)
        {
            session.news.notify_waiters();
        }
    }
}

impl Native {
    pub(super) async fn calls(
        self: &Arc<Self>,
        request: CallsRequest,
    ) -> Result<Response, Refusal> {
        let CallsRequest { session: id, ops, cancel, give_back } = request;
        let asked: Vec<Key> = ops.iter().map(|op| (op.slot, op.seq)).collect();
        // Before the operations are: the client may go away at any await.
        let answering = Answering { native: self, session: &id, keys: &asked };
        let (mut handed_over, fenced) = self.take_in(&id, ops, &cancel, &give_back)?;
        if tokio::time::timeout(AT_ONCE, &mut handed_over).await.is_err() {
            drop(answering);
            // Late, it still happens; the results come by the stream.
            let _ = tokio::time::timeout(HAND_OVER, handed_over).await;
        }
        let mut state = self.state.lock();
        let Some(session) = state.sessions.get_mut(&id) else { return Err(unknown_session()) };
        session.leave_to_stream(&asked);
        session.untold.retain(|key| !asked.contains(key));
        let results = asked.iter().filter(|key| !fenced.contains(key));
        let results = results.filter_map(|&key| session.look_up(key));
        let fenced = fenced.iter().map(|&(slot, seq)| {
            let what = Tell::Fenced(true);
            TellResult { slot, seq, what }
        });
        let results: Vec<_> = results.chain(fenced).collect();
        drop(state);
        let answer = serde_json::to_vec(&Results { results }).unwrap_or_default();
        if (1..=MAX_LINE).contains(&answer.len()) {
            return Ok(http::response(StatusCode::OK, "application/json", answer));
        }
        // By the stream, one by one.
        if let Some(session) = self.state.lock().sessions.get_mut(&id) {
            session.untold.extend(asked.iter().copied());
            session.news.notify_waiters();
        }
        Ok(json(&Results { results: Vec::new() }))
    }

    /// Notes operations and begins the new ones. Tells when those that could begin have begun, and
    /// which were refused because their slots are not the session's under their epochs.
    fn take_in(
        self: &Arc<Self>,
        id: &str,
        ops: Vec<Op>,
        cancel: &[Key],
        give_back: &[LeaseKey],
    ) -> Result<(oneshot::Receiver<()>, Vec<Key>), Refusal> {
        let (tell, handed_over) = oneshot::channel();
        let _in_order = self.entering.lock();
        let mut state = self.state.lock();
        if state.heard(id).is_none() {
            return Err(unknown_session());
        }
        if ops.iter().any(|op| op.slot >= self.slots.len() || op.seq == 0) {
            return Err(Box::new(detail(StatusCode::BAD_REQUEST, "there is no such slot")));
        }
        let (mut ended, mut fenced) = (Vec::new(), Vec::new());
        let State { leases, sessions, .. } = &mut *state;
        let Some(session) = sessions.get_mut(id) else { return Err(unknown_session()) };
        let (mut calls, mut names, mut resets) = (Vec::new(), Vec::new(), Vec::new());
        let mut begins = Vec::new();
        for op in ops {
            let key = (op.slot, op.seq);
            let slot = &mut session.ops[op.slot];
            if op.seq <= slot.seq {
                // Known, or stale.
                continue;
            }
            if leases.check(session.number, op.slot, op.epoch).is_err() {
                fenced.push(key);
                continue;
            }
            if let What::Running(Some(earlier)) = slot.what {
                // Its client has given it up.
                ended.push(earlier);
            }
            slot.seq = op.seq;
            slot.what = What::Running(None);
            slot.answering = true;
            if op.reset {
                resets.push(key);
                continue;
            }
            if let Some(spec) = op.begin {
                begins.push((key, spec));
                continue;
            }
            let on_done = {
                let (native, id) = (Arc::downgrade(self), id.to_owned());
                move |result: crate::tool::ToolResult| {
                    if let Some(native) = native.upgrade() {
                        native.done(&id, key, result.into());
                    }
                }
            };
            names.push((key, slot.cancelled == op.seq));
            calls.push(SlotCall {
                slot: op.slot,
                trajectory_id: op.trajectory_id.into(),
                tool: op.tool,
                arguments: op.args,
                timeout: Duration::try_from_secs_f64(op.timeout.max(0.0))
                    .unwrap_or(LONGEST)
                    .min(LONGEST),
                on_done: Box::new(on_done),
            });
        }
        for &(slot, seq) in cancel {
            let Some(slot) = session.ops.get_mut(slot) else { continue };
            match slot.what {
                What::Running(Some(id)) if slot.seq == seq => ended.push(id),
                _ => slot.cancelled = slot.cancelled.max(seq),
            }
        }
        for &(slot, epoch) in give_back {
            // One that is the session's no more was given back before.
            if leases.give_back(session.number, slot, epoch, Instant::now()).is_ok() {
                ended.extend(session.forget_slot(slot));
            }
        }
        let resets_between = state.settle();
        drop(state);
        // Before anything new enters their slots.
        ended.into_iter().for_each(|id| self.slots.cancel(id));
        self.begin_resets(resets_between);
        let tell_handed_over = move || {
            // Refused only when the client has gone.
            let _ = tell.send(());
        };
        let ids = self.slots.execute(calls, Box::new(tell_handed_over));
        for (slot, seq) in resets {
            let (native, id) = (Arc::downgrade(self), id.to_owned());
            let on_done = move |outcome: Result<(), String>| {
                if let Some(native) = native.upgrade() {
                    native.done(&id, (slot, seq), outcome.into());
                }
            };
            self.slots.reset(slot, Box::new(on_done));
        }
        for ((slot, seq), spec) in begins {
            let (native, id) = (Arc::downgrade(self), id.to_owned());
            let on_done = move |result: crate::tool::ToolResult| {
                if let Some(native) = native.upgrade() {
                    native.done(&id, (slot, seq), result.into());
                }
            };
            self.slots.begin(slot, spec, Box::new(on_done));
        }
        let mut ended = Vec::new();
        if let Some(session) = self.state.lock().sessions.get_mut(id) {
            for ((key, cancelled), id) in names.into_iter().zip(ids) {
                let slot = &mut session.ops[key.0];
                // It may be over already.
                if let What::Running(running) = &mut slot.what
                    && slot.seq == key.1
                {
                    *running = Some(id);
                    if cancelled || slot.cancelled == key.1 {
                        ended.push(id);
                    }
                }
            }
        }
        ended.into_iter().for_each(|id| self.slots.cancel(id));
        Ok((handed_over, fenced))
    }

    fn done(&self, id: &str, (slot, seq): Key, result: NativeResult) {
        let mut state = self.state.lock();
        let Some(session) = state.sessions.get_mut(id) else { return };
        let ops = &mut session.ops[slot];
        if ops.seq == seq && matches!(ops.what, What::Running(_)) {
            ops.what = What::Done(Arc::new(result));
            if ops.answering {
                return;
            }
            session.owe((slot, seq));
            session.news.notify_waiters();
        }
    }
}
