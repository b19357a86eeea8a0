//! What is sent: batches of lanes, and calls to threads of their own.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::call::Stage;
use super::{Action, Dispatch, TOOL_SERVER_MARGIN, earliest};
use crate::backend::{Execution, ExecutionId, Reply};
use crate::executor::external::{External, HandlerCall, ToolServerCall};
use crate::tool::{ToolContext, Work};

impl Dispatch {
    pub(super) fn send_batches(&mut self, now: Instant) {
        self.lanes_due = None;
        for container in 0..self.lanes.len() {
            loop {
                let lane = &mut self.lanes[container];
                let ids: Vec<_> = match lane.take(self.limits.batch, self.closing.is_some(), now) {
                    Ok(ids) => ids.collect(),
                    Err(due) => {
                        self.lanes_due = earliest(self.lanes_due, due);
                        break;
                    }
                };
                self.recorder.batch(ids.len());
                self.gate.leave(ids.len());
                self.running += ids.len();
                let batch = ids.into_iter().filter_map(|id| self.execution(id, now)).collect();
                let addr = self.pool.addr(container);
                self.actions.push(Action::Send { container, addr, batch });
            }
        }
    }

    /// Marks a call of a lane as sent and makes what is sent of it.
    pub(super) fn execution(&mut self, id: ExecutionId, now: Instant) -> Option<Execution> {
        let grace = self.limits.answer_grace;
        let call = self.calls.get_mut(&id)?;
        let Stage::InLane { slot } = call.stage else { return None };
        let Some(Work::Sandbox { tool, arguments }) = call.work.take() else { return None };
        let container = self.pool.container(slot);
        call.stage = Stage::InSlot { since: now, container };
        self.sent_to[container] += 1;
        let timeout = call.timeout;
        let call_state = call.promise.call_state().clone();
        call_state.sent(now, call.waited(now));
        let slot = self.pool.slot_ref(slot);
        if self.limits.may_grow || self.pool.has_tiers() {
            call_state.tell_container(slot.addr.clone());
        }
        self.set_timer(id, now + timeout + grace);
        Some(Execution {
            id,
            trajectory_id: call_state.trajectory_id.clone(),
            slot,
            tool,
            arguments,
            timeout,
            reply: Reply::new(call_state),
        })
    }

    pub(super) fn send_external(&mut self, kind: External, now: Instant) {
        while self.external[kind as usize].busy < self.limits.external[kind as usize]
            && self.external[kind as usize].unanswered < self.limits.unanswered
            && let Some(id) = self.external[kind as usize].waiting.pop()
        {
            let Some(call) = self.calls.get_mut(&id) else { continue };
            let Some(work) = call.work.take() else { continue };
            let cancelled = Arc::new(AtomicBool::new(false));
            call.stage = Stage::OnThread { kind, since: now, cancelled: cancelled.clone() };
            let timeout = call.timeout;
            let deadline = now + timeout;
            let call_state = call.promise.call_state().clone();
            call_state.sent(now, call.waited(now));
            let context = ToolContext::new(
                call_state.trajectory_id.clone(),
                call_state.uniq_id(),
                deadline,
                cancelled,
            );
            let slot = self.trajectories.get(&call_state.trajectory_id).and_then(|t| t.slot);
            let (action, timer) = match work {
                Work::InProcess { handler, arguments } => {
                    let reply = Reply::new(call_state);
                    let call = HandlerCall { handler, context, arguments, reply };
                    (Action::Handle(call), deadline)
                }
                Work::ToolServer { arguments } => {
                    let (name, slot) = (call.tool.clone(), slot.map(|s| self.pool.slot_ref(s)));
                    let reply = Reply::new(call_state);
                    let call = ToolServerCall { name, context, arguments, timeout, slot, reply };
                    (Action::AskToolServer(call), deadline + TOOL_SERVER_MARGIN)
                }
                // It waits in its container's lane.
                Work::Sandbox { .. } => continue,
            };
            self.actions.push(action);
            self.gate.leave(1);
            self.running += 1;
            self.external[kind as usize].busy += 1;
            self.external[kind as usize].unanswered += 1;
            self.set_timer(id, timer);
        }
    }
}
