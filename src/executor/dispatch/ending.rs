//! How calls end: answered, cancelled, out of time, or because the executor closes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::call::{Call, Current, Item, Lost, Stage, Trajectory, closed_before_start};
use super::{Action, Dispatch};
use crate::backend::ExecutionId;
use crate::error::BeginFailure;
use crate::tool::python_json::float_text;
use crate::tool::{Outcome, Timing, ToolResult};

/// How long a running call may take to end after it was cancelled because the executor's closing
/// time was up.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

impl Dispatch {
    /// A running call was answered by what ran it.
    pub(super) fn on_finished(
        &mut self,
        id: ExecutionId,
        outcome: Outcome,
        timing: Timing,
        now: Instant,
    ) {
        let Some(call) = self.calls.remove(&id) else { return };
        self.timers.remove(&(call.timer, id));
        self.running -= 1;
        self.recorder.finished(&call.tool, outcome, timing, true);
        let mut lost = false;
        if let Stage::InSlot { container, .. } = call.stage {
            self.sent_to[container] -= 1;
            lost = outcome == Outcome::SandboxLost;
        }
        if let Stage::OnThread { kind, .. } = call.stage {
            self.external[kind as usize].unanswered -= 1;
        }
        let trajectory_id = call.promise.call_state().trajectory_id.clone();
        self.no_longer_current(&trajectory_id, id, lost);
        self.advance(&trajectory_id, now);
    }

    /// Ends a call with a result of our own, wherever it is, and goes on with its trajectory.
    pub(super) fn end(&mut self, id: ExecutionId, result: ToolResult, now: Instant) {
        if let Some(trajectory_id) = self.finish_with(id, result, now) {
            self.advance(&trajectory_id, now);
        }
    }

    /// Ends a call with a result of our own, wherever it is, and gives its trajectory – unless it
    /// was answered already, which an event on its way will tell.
    pub(super) fn finish_with(
        &mut self,
        id: ExecutionId,
        mut result: ToolResult,
        now: Instant,
    ) -> Option<Arc<str>> {
        let call = self.calls.get(&id)?;
        let call_state = call.promise.call_state().clone();
        let outcome = result.outcome;
        let is_binding = call.begins.is_some() || matches!(call.stage, Stage::Binding { .. });
        let error = (is_binding && outcome != Outcome::Ok).then(|| result.error.clone());
        let (ran, lost) = match call.stage {
            // It is not known whether it still runs in its slot.
            Stage::InSlot { .. } => (true, true),
            Stage::OnThread { .. } => (true, false),
            _ => {
                result.timing = call.waited(now);
                (false, false)
            }
        };
        // What runs is told that the call is not wanted any more before its caller sees the result,
        // and when this result is sure to be the first: it may answer at once.
        let timing = call_state.answer_here(result, || {
            if let Stage::OnThread { cancelled, .. } = &call.stage {
                cancelled.store(true, Ordering::Release);
            }
        })?;
        let call = self.calls.remove(&id)?;
        self.timers.remove(&(call.timer, id));
        match call.begins {
            None => self.recorder.finished(&call.tool, outcome, timing, ran),
            Some(_) => self.recorder.begins.add(outcome),
        }
        if ran {
            self.running -= 1;
        } else {
            self.gate.leave(1);
        }
        let trajectory_id = &call_state.trajectory_id;
        if let Some(error) = error {
            self.not_bound(&call, BeginFailure::of(outcome, error));
        }
        match call.stage {
            Stage::Queued { .. } if call.begins.is_some() => {}
            Stage::Queued { position } => {
                if let Some(trajectory) = self.trajectories.get_mut(trajectory_id) {
                    trajectory.queue.remove(position);
                }
            }
            Stage::Binding { .. } => {}
            Stage::WaitingForSlot { .. } => {
                self.waiting_for_slot -= 1;
                self.pool.stop_waiting(trajectory_id, now);
            }
            Stage::InLane { slot } => self.lanes[self.pool.container(slot)].remove(id),
            Stage::WaitingForThread { kind, position } => {
                self.external[kind as usize].waiting.remove(position);
            }
            // Its batch may not even have reached the backend: it is not to start now.
            Stage::InSlot { container, .. } => {
                self.sent_to[container] -= 1;
                call_state.cancel();
            }
            Stage::OnThread { kind, .. } => self.external[kind as usize].unanswered -= 1,
        }
        self.no_longer_current(trajectory_id, id, lost);
        Some(trajectory_id.clone())
    }

    /// If this call was its trajectory's current one, nothing is under way there now.
    pub(super) fn no_longer_current(
        &mut self,
        trajectory_id: &Arc<str>,
        id: ExecutionId,
        lost: bool,
    ) {
        let Some(trajectory) = self.trajectories.get_mut(trajectory_id) else { return };
        if !matches!(trajectory.current, Current::Call(current) if current == id) {
            return;
        }
        trajectory.current = Current::Nothing;
        if lost {
            if !trajectory.lost.as_ref().is_some_and(Lost::ends_every_call) {
                trajectory.lost = Some(Lost::WithSandbox);
            }
            if let Some(slot) = trajectory.slot.take() {
                self.pool.release_unknown(slot);
            }
        }
    }

    pub(super) fn cancel(&mut self, id: ExecutionId, now: Instant) {
        let Some(call) = self.calls.get(&id) else { return };
        match call.stage {
            Stage::InSlot { .. } => self.cancel_in_slot(id, self.limits.answer_grace, now),
            Stage::OnThread { .. } => {
                let error = "Tool call was cancelled while it ran; it was told to stop";
                self.end(id, ToolResult::failure(Outcome::Cancelled, error), now);
            }
            _ => {
                let error = match call.begins {
                    Some(_) => "the begin of this trajectory was cancelled",
                    None => "Tool call was cancelled before it started",
                };
                let mut result = ToolResult::failure(Outcome::Cancelled, error);
                result.may_have_executed = false;
                self.end(id, result, now);
            }
        }
    }

    /// Has the backend end a running call, which has `grace` to do so.
    pub(super) fn cancel_in_slot(&mut self, id: ExecutionId, grace: Duration, now: Instant) {
        let Some(call) = self.calls.get(&id) else { return };
        call.promise.call_state().cancel();
        let timer = call.timer.min(now + grace);
        self.actions.push(Action::Cancel(id));
        self.set_timer(id, timer);
    }

    pub(super) fn time_is_up(&mut self, id: ExecutionId, now: Instant) {
        let Some(call) = self.calls.get(&id) else { return };
        let result = match call.stage {
            Stage::Queued { .. } | Stage::InLane { .. } | Stage::WaitingForThread { .. } => {
                ToolResult::failure(
                    Outcome::NeverRan,
                    format!(
                        "the call did not start within its queue time of {:.1} s",
                        self.limits.queue_timeout.as_secs_f64()
                    ),
                )
            }
            Stage::WaitingForSlot { .. } => return self.slot_wait_failed(id, now),
            Stage::Binding { .. } => {
                let text = format!(
                    "the sandbox was not made as was asked within {:.1} s",
                    self.limits.begin_timeout.as_secs_f64()
                );
                BeginFailure::failed(text).result()
            }
            Stage::InSlot { since, .. } => ToolResult::failure(
                Outcome::SandboxLost,
                format!(
                    "the sandbox did not answer within {:.1} s (the call's limit was {:.1} s)",
                    (now - since).as_secs_f64(),
                    call.timeout.as_secs_f64()
                ),
            ),
            Stage::OnThread { .. } => ToolResult::failure(
                Outcome::Timeout,
                format!(
                    "Tool timed out after {}s; it was told to stop",
                    float_text(call.timeout.as_secs_f64())
                ),
            ),
        };
        self.end(id, result, now);
    }

    /// No slot became free in time for this call, and so neither for those that wait behind it: the
    /// trajectory's queued calls that need a slot end with the same result, in their order. Its
    /// releases, readers of artifacts and other calls take their turn as ever.
    fn slot_wait_failed(&mut self, id: ExecutionId, now: Instant) {
        let Some(call) = self.calls.get(&id) else { return };
        let trajectory_id = call.promise.call_state().trajectory_id.clone();
        let begun = self.trajectories.get(&trajectory_id).and_then(|t| t.begun.as_ref());
        let only = begun.and_then(|begun| self.pool.names_of(begun.place.may));
        let only = only.map(|names| format!("; only {names} can give what it begins with"));
        let only = only.unwrap_or_default();
        let error = format!("Failed to acquire slot: {}{only}", self.explain_slots(now));
        let queued = self.trajectories.get(&trajectory_id).into_iter().flat_map(|t| t.queue.iter());
        let behind: Vec<_> = queued
            .filter_map(|item| match item {
                Item::Call(id) => {
                    Some(*id).filter(|id| self.calls.get(id).is_some_and(Call::needs_slot))
                }
                Item::Begin(_) | Item::Release { .. } | Item::Lease(..) => None,
            })
            .collect();
        for id in std::iter::once(id).chain(behind) {
            self.finish_with(id, ToolResult::failure(Outcome::NeverRan, error.clone()), now);
        }
        self.advance(&trajectory_id, now);
    }

    /// The closing time is up: what has not started ends now, what runs is cancelled.
    pub(super) fn abort(&mut self, now: Instant) {
        let all: Vec<_> = self.calls.keys().copied().collect();
        self.aborted = Some(all.len());
        for id in all {
            let Some(call) = self.calls.get(&id) else { continue };
            match call.stage {
                Stage::InSlot { .. } => self.cancel_in_slot(id, CLOSE_GRACE, now),
                Stage::OnThread { .. } => self.cancel(id, now),
                _ => self.end(id, closed_before_start(), now),
            }
        }
        // A reader of files throws away what it reads from now on.
        let lent = |(id, trajectory): (&Arc<str>, &Trajectory)| match trajectory.current {
            Current::Leased(_) => trajectory.slot.map(|slot| (id.clone(), slot)),
            _ => None,
        };
        let lent: Vec<_> = self.trajectories.iter().filter_map(lent).collect();
        for (trajectory_id, slot) in lent {
            self.lose_slot(&trajectory_id, slot);
        }
    }

    pub(super) fn calls_of(&self, trajectory_id: &Arc<str>) -> Vec<ExecutionId> {
        let Some(trajectory) = self.trajectories.get(trajectory_id) else { return Vec::new() };
        // The last first: otherwise each end would start the next call just to cancel it.
        let mut ids: Vec<_> = trajectory
            .queue
            .iter()
            .rev()
            .filter_map(|item| match item {
                Item::Call(id) | Item::Begin(id) => Some(*id),
                Item::Release { .. } | Item::Lease(..) => None,
            })
            .collect();
        if let Current::Call(id) = trajectory.current {
            ids.push(id);
        }
        ids
    }
}
