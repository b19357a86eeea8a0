//! Slots: given to trajectories, and reset.

use std::sync::Arc;
use std::time::Instant;

use super::call::{Current, Stage, answer};
use super::{Action, Dispatch};
use crate::error::ReleaseError;
use crate::pool::{Assignment, ResetFor, SlotIx};

impl Dispatch {
    /// Gives back what is more than other executors leave to this one, and gives out the rest.
    pub(super) fn assign_slots(&mut self, now: Instant) {
        while let Some((slot, grant)) = self.pool.take_excess() {
            self.actions.push(Action::GiveBack { slot: self.pool.slot_ref(slot), grant });
        }
        while let Some(assignment) = self.pool.assign(now) {
            match assignment {
                Assignment::Slot(trajectory_id, slot) => self.granted(&trajectory_id, slot, now),
                Assignment::Reset(slot) => self.start_reset(slot),
                Assignment::Refused(trajectory_id, why) => self.refused(&trajectory_id, why, now),
            }
        }
    }

    /// A trajectory that waited for a slot has one.
    pub(super) fn granted(&mut self, trajectory_id: &Arc<str>, slot: SlotIx, now: Instant) {
        let waiting = self.trajectories.get_mut(trajectory_id).and_then(|trajectory| {
            let Current::Call(id) = trajectory.current else { return None };
            trajectory.slot = Some(slot);
            Some(id)
        });
        let Some(id) = waiting else {
            // A trajectory that stops waiting leaves the queue, so this cannot be; but a slot that
            // is held by no trajectory would be lost for good.
            debug_assert!(false, "slot granted to {trajectory_id}, which does not wait");
            self.pool.release_unknown(slot);
            return;
        };
        if let Some(call) = self.calls.get_mut(&id)
            && let Stage::WaitingForSlot { since } = call.stage
        {
            call.slot_wait += now - since;
            self.waiting_for_slot -= 1;
        }
        self.set_timer(id, now + self.limits.queue_timeout);
        self.use_slot(id, slot, now);
    }

    pub(super) fn start_reset(&mut self, slot: SlotIx) {
        let slot_ref = self.pool.slot_ref(slot);
        self.actions.push(Action::Reset { slot, slot_ref });
    }

    pub(super) fn reset_ended(&mut self, whose: ResetFor, now: Instant) {
        match whose {
            ResetFor::Granted(trajectory_id, slot) => self.granted(&trajectory_id, slot, now),
            ResetFor::Released(trajectory_id, outcome) => {
                let Some(trajectory) = self.trajectories.get_mut(&trajectory_id) else { return };
                if let Current::Releasing(replies) =
                    std::mem::replace(&mut trajectory.current, Current::Nothing)
                {
                    answer(replies, outcome.map_err(ReleaseError::ResetFailed));
                }
                self.advance(&trajectory_id, now);
            }
        }
    }
}
