//! Why a call could not have a slot: how many there are, who has them, and what for.

use std::sync::Arc;
use std::time::Instant;

use super::Dispatch;
use super::call::{Call, Current, Stage};

impl Dispatch {
    /// Why no slot was to be had: how many there are and who has them.
    pub(super) fn explain_slots(&self, now: Instant) -> String {
        const SHOWN: usize = 8;
        let counts = self.pool.counts();
        let mut text = format!(
            "none of the {} slots became free within {:.1} s",
            counts.total,
            self.limits.acquire_timeout.as_secs_f64()
        );
        if counts.held > 0 {
            let shown: Vec<_> =
                self.pool.holders().take(SHOWN).map(|id| self.explain_holder(id, now)).collect();
            text.push_str(&format!("; {} held, by {}", counts.held, shown.join(", ")));
            if counts.held > SHOWN {
                text.push_str(&format!(" and {} more", counts.held - SHOWN));
            }
        }
        if counts.elsewhere > 0 {
            let (elsewhere, all) = (counts.elsewhere, counts.total + counts.elsewhere);
            text.push_str(&format!("; {elsewhere} of {all} are with other executors"));
        }
        if counts.broken > 0 {
            text.push_str(&format!("; {} kept back because a reset failed", counts.broken));
        }
        let containers = self.pool.container_counts();
        let silent = containers.unknown + containers.down;
        if silent > 0 {
            let all = silent + containers.up + containers.draining;
            text.push_str(&format!("; {silent} of {all} containers do not answer"));
        }
        if counts.resetting > 0 {
            text.push_str(&format!("; {} being reset", counts.resetting));
        }
        text
    }

    fn explain_holder(&self, trajectory_id: &Arc<str>, now: Instant) -> String {
        let Some(trajectory) = self.trajectories.get(trajectory_id) else {
            return trajectory_id.to_string();
        };
        let call = match trajectory.current {
            Current::Call(id) => self.calls.get(&id),
            _ => None,
        };
        let (what, since) = match call {
            Some(Call { tool, stage: Stage::InSlot { since, .. }, .. }) => {
                (format!("running {tool}"), *since)
            }
            Some(Call { tool, stage: Stage::OnThread { since, .. }, .. }) => {
                (format!("running {tool}"), *since)
            }
            Some(Call { stage: Stage::Binding { .. }, accepted, .. }) => {
                ("beginning".to_owned(), *accepted)
            }
            Some(Call { tool, accepted, .. }) => (format!("about to run {tool}"), *accepted),
            None => match trajectory.slot.and_then(|slot| self.idle.since(slot)) {
                Some(since) => ("idle".to_owned(), since),
                None => return format!("{trajectory_id} (its artifacts are being read)"),
            },
        };
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        format!("{trajectory_id} ({what} for {seconds:.1} s)")
    }
}
