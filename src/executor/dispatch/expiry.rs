//! Trajectories whose time is up: `max_wall` and `max_idle` of their specs.
//!
//! What runs of such a trajectory is ended, its slot is taken back, and its calls are told so until
//! it is released. A reader of its files is not interrupted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Dispatch;
use super::begin::Begun;
use super::call::{Current, Lost, Stage, Trajectory};
use crate::pool::SlotIx;
use crate::tool::{Outcome, ToolResult};

/// Which time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// It held its slot for this long.
    Wall(Duration),
    /// It made no call for this long.
    Idle(Duration),
}

impl Expiry {
    /// What has happened, as half a sentence.
    pub(super) fn text(self) -> String {
        match self {
            Self::Wall(limit) => format!(
                "the time of this trajectory was up (max_wall_s, {} s), so its slot was taken back \
                 and its workspace is gone",
                limit.as_secs_f64()
            ),
            Self::Idle(limit) => format!(
                "this trajectory made no call for max_idle_s, {} s, so its slot was taken back and \
                 its workspace is gone",
                limit.as_secs_f64()
            ),
        }
    }
}

impl Dispatch {
    /// When the time of a trajectory is up, as it is now, and which. Of one that does something
    /// `max_idle` does not count.
    fn expiry_of(&self, trajectory: &Trajectory) -> Option<(Instant, Expiry)> {
        let begun = trajectory.begun.as_ref().filter(|_| trajectory.lost.is_none())?;
        let wall =
            begun.spec.max_wall.and_then(|limit| Some((begun.since? + limit, Expiry::Wall(limit))));
        let idle = begun.spec.max_idle.and_then(|limit| {
            let end = self.idle.since(trajectory.slot?)? + limit;
            Some((
                self.no_idle_end_before.map_or(end, |earliest| end.max(earliest)),
                Expiry::Idle(limit),
            ))
        });
        wall.into_iter().chain(idle).min_by_key(|(when, _)| *when)
    }

    /// Puts a trajectory where it belongs in the list of those whose time is limited. To be called
    /// whenever it has become idle or busy, or has got or lost what it began with.
    pub(super) fn watch_expiry(&mut self, trajectory_id: &Arc<str>) {
        let Some(trajectory) = self.trajectories.get(trajectory_id) else { return };
        if trajectory.begun.is_none() {
            return;
        }
        let expires = self.expiry_of(trajectory).map(|(when, _)| when);
        let Some(begun) = self.trajectories.get_mut(trajectory_id).and_then(|t| t.begun.as_mut())
        else {
            return;
        };
        let before = std::mem::replace(&mut begun.expires, expires);
        if before == expires {
            return;
        }
        if let Some(before) = before {
            self.expiries.remove(&(before, trajectory_id.clone()));
        }
        if let Some(expires) = expires {
            self.expiries.insert((expires, trajectory_id.clone()));
        }
    }

    /// A trajectory is no longer what it began as: no time of it is watched any more.
    pub(super) fn forget_begun(&mut self, trajectory_id: &Arc<str>, begun: Option<Box<Begun>>) {
        if let Some(expires) = begun.and_then(|begun| begun.expires) {
            self.expiries.remove(&(expires, trajectory_id.clone()));
        }
    }

    /// Ends the trajectories whose time is up.
    pub(super) fn end_expired(&mut self, now: Instant) {
        while let Some((when, trajectory_id)) = self.expiries.first().cloned()
            && when <= now
        {
            let expiry = self.trajectories.get(&trajectory_id).and_then(|t| self.expiry_of(t));
            match expiry {
                Some((when, expiry)) if when <= now => self.expire(&trajectory_id, expiry, now),
                // It was put off meanwhile, or there is nothing left to be ended.
                _ => self.watch_expiry(&trajectory_id),
            }
        }
    }

    /// When [`end_expired`](Self::end_expired) has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|(when, _)| *when)
    }

    fn expire(&mut self, trajectory_id: &Arc<str>, expiry: Expiry, now: Instant) {
        let Some(trajectory) = self.trajectories.get_mut(trajectory_id) else { return };
        trajectory.lost = Some(Lost::Expired(expiry));
        let current = match trajectory.current {
            Current::Call(id) => Some(id),
            _ => None,
        };
        self.watch_expiry(trajectory_id);
        let Some(id) = current else { return self.advance(trajectory_id, now) };
        let Some(call) = self.calls.get(&id) else { return };
        let mut result = ToolResult::failure(Outcome::TrajectoryExpired, expiry.text());
        match call.stage {
            Stage::InSlot { .. } => {
                call.promise.call_state().end_because(result.outcome, result.error);
                self.cancel_in_slot(id, self.limits.answer_grace, now);
            }
            Stage::OnThread { .. } => self.end(id, result, now),
            _ => {
                result.may_have_executed = false;
                self.end(id, result, now);
            }
        }
    }

    /// Takes back the slot of a trajectory whose time is up and of which nothing is under way.
    pub(super) fn take_back_expired(&mut self, slot: SlotIx, now: Instant) {
        self.idle.remove(slot);
        self.pool.take_back(slot, now);
        self.start_reset(slot);
    }
}
