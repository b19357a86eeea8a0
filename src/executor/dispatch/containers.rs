//! Containers that come and go, and what that means for the trajectories that were in them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Dispatch;
use super::call::{Call, Current, Lost, Stage};
use crate::backend::ContainerChange;
use crate::executor::lane::Lane;
use crate::pool::SlotIx;
use crate::tool::{Outcome, ToolResult};

impl Dispatch {
    /// Takes in what became of a container.
    pub(super) fn container_changed(
        &mut self,
        addr: &Arc<str>,
        change: ContainerChange,
        now: Instant,
    ) {
        let known = match &change {
            ContainerChange::Added(_) => Some(self.admit(addr)),
            _ => self.pool.container_at(addr),
        };
        let Some(container) = known else { return };
        let lost = self.pool.lost_by(container, &change);
        for (trajectory_id, slot) in &lost {
            self.lose_slot(trajectory_id, *slot);
        }
        self.pool.container_changed(container, &change);
        // Not before the pool knows: what follows may want a slot.
        for (trajectory_id, _) in &lost {
            self.end_in_lane(trajectory_id, now);
        }
    }

    /// The number of a container that is there from now on.
    fn admit(&mut self, addr: &Arc<str>) -> usize {
        // A number is not used again while something of the container that had it is on its way.
        let (lanes, sent_to) = (&self.lanes, &self.sent_to);
        let is_idle = |container: usize| {
            lanes[container].len() + lanes[container].unacknowledged() + sent_to[container] == 0
        };
        let container = self.pool.admit(addr, is_idle);
        if container == self.lanes.len() {
            self.lanes.push(Lane::new());
            self.sent_to.push(0);
        }
        container
    }

    /// A trajectory's workspace is gone. What runs there is its backend's to answer, or its timer's
    /// to end; the slot is no longer its own, so neither touches it.
    pub(super) fn lose_slot(&mut self, trajectory_id: &Arc<str>, slot: SlotIx) {
        if let Some(trajectory) = self.trajectories.get_mut(trajectory_id) {
            if !trajectory.lost.as_ref().is_some_and(Lost::ends_every_call) {
                trajectory.lost = Some(Lost::WithSandbox);
            }
            trajectory.slot = None;
            if let Current::Leased(lost) = &trajectory.current {
                // Before anybody else can have the slot: the reader throws away what it reads
                // there.
                lost.store(true, Ordering::Release);
            }
        }
        self.idle.remove(slot);
        self.pool.release_unknown(slot);
    }

    /// Goes on with a trajectory that has lost its slot: a call that was not sent ends at once.
    fn end_in_lane(&mut self, trajectory_id: &Arc<str>, now: Instant) {
        let Some(trajectory) = self.trajectories.get(trajectory_id) else { return };
        let Current::Call(id) = trajectory.current else {
            self.advance(trajectory_id, now);
            return;
        };
        let is_waiting =
            |call: &Call| matches!(call.stage, Stage::InLane { .. } | Stage::Binding { .. });
        if self.calls.get(&id).is_some_and(is_waiting) {
            // Not tried in another container: it may be what this one went down for.
            let error = "the sandbox was lost before this call could start in it";
            let mut result = ToolResult::failure(Outcome::SandboxLost, error);
            result.may_have_executed = false;
            self.end(id, result, now);
        }
    }
}
