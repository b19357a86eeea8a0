//! Slots whose holders do nothing with them: who they are, when that is said, and when their slots
//! are taken back.
//!
//! A holder is *idle* while nothing of it is under way or queued: no call, no release, no reader
//! of its artifacts. With an idle limit its slot is taken back then, and reset like a released
//! one; the trajectory learns of it by its next call. Where trajectories wait for slots and all
//! holders are idle, that is a *stall*: it is probably a caller that forgot to release.

mod holders;
mod watch;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use self::holders::IdleHolders;
pub(super) use self::watch::{EndReport, StallWatch};

use self::watch::{NAMES, Say};
use super::call::Lost;
use super::{Action, Dispatch, HEARTBEAT};
use crate::executor::stats::IdleHolder;

/// A pause between two ticks that is longer than this was none of the owner's: the process was
/// stopped. What its callers wanted meanwhile is still on its way to it.
const STOPPED: Duration = Duration::from_secs(2 * HEARTBEAT.as_secs());
/// How long no slot is taken back after such a pause.
const AFTER_STOP: Duration = Duration::from_secs(60);
/// The longest name that is shown whole, in characters.
const NAME: usize = 64;
/// How many trajectories without a slot are remembered because they are to be told that they have
/// lost their workspace. Beyond it the one that has said nothing for longest is forgotten.
pub(super) const MOST_REMEMBERED: usize = 65_536;

impl Dispatch {
    /// Takes back the slots of holders that were idle for too long.
    pub(super) fn end_idle(&mut self, now: Instant) {
        if self.last_tick.is_some_and(|last| now.saturating_duration_since(last) > STOPPED) {
            self.no_idle_end_before = Some(now + AFTER_STOP);
        }
        self.last_tick = Some(now);
        while let Some((slot, since)) = self.idle.first()
            && self.idle_end().is_some_and(|end| end <= now)
        {
            self.idle.remove(slot);
            let Some(trajectory_id) = self.pool.holder(slot).cloned() else { continue };
            if let Some(trajectory) = self.trajectories.get_mut(&trajectory_id) {
                trajectory.slot = None;
                trajectory.lost = Some(Lost::Idle(now - since));
            }
            self.pool.take_back(slot, now);
            self.start_reset(slot);
            self.ended.add(now, &shown(&trajectory_id));
            // Nothing is left to be done for it; but it is to be told.
            self.advance(&trajectory_id, now);
        }
    }

    /// When the next idle holder's slot is taken back.
    pub(super) fn idle_end(&self) -> Option<Instant> {
        let limit = self.limits.idle_limit.filter(|_| self.closing.is_none())?;
        let end = self.idle.first()?.1 + limit;
        Some(self.no_idle_end_before.map_or(end, |earliest| end.max(earliest)))
    }

    /// Says what is to be said of idle slots.
    pub(super) fn watch_idle(&mut self, now: Instant) {
        let held = self.pool.counts().held;
        let stalled = self.closing.is_none()
            && self.waiting_for_slot > 0
            && held > 0
            && self.idle.len() == held;
        match self.stall.observe(stalled, now) {
            Some(Say::Stalled(_)) => {
                let text = self.explain_stall(now);
                self.actions.push(Action::Warn(text));
            }
            Some(Say::Over(lasted)) if self.closing.is_none() => {
                let text = format!(
                    "trajectories no longer wait for idle slots; they did for {}",
                    seconds(lasted)
                );
                self.actions.push(Action::Warn(text));
            }
            Some(Say::Over(_)) | None => {}
        }
        if let Some((names, count)) = self.ended.take(now) {
            let limit = seconds(self.limits.idle_limit.unwrap_or_default());
            let names_of_some = names.join(", ");
            let mut text =
                format!("the idle_limit of {limit} is over, slots are taken back: {names_of_some}");
            and_more(&mut text, count, names.len());
            self.actions.push(Action::Warn(text));
        }
    }

    /// When [`Dispatch::watch_idle`] has something to say next.
    pub(super) fn idle_say_due(&self) -> Option<Instant> {
        let stall = self.stall.due().filter(|_| self.closing.is_none());
        [stall, self.ended.due()].into_iter().flatten().min()
    }

    /// The holders that have been idle longest.
    pub(super) fn idle_holders(&self, now: Instant) -> Vec<IdleHolder> {
        let idle = self.idle.iter().take(NAMES);
        idle.filter_map(|(slot, since)| {
            let trajectory_id = self.pool.holder(slot)?.to_string();
            let idle_s = now.saturating_duration_since(since).as_secs_f64();
            Some(IdleHolder { trajectory_id, idle_s })
        })
        .collect()
    }

    /// Who waits, who holds the slots, and what helps.
    fn explain_stall(&self, now: Instant) -> String {
        let (waiting, held) = (self.waiting_for_slot, self.idle.len());
        let waits = if waiting == 1 { "trajectory waits" } else { "trajectories wait" };
        let mut text = format!("{waiting} {waits} for a slot while all that hold one are idle: ");
        for (index, (slot, since)) in self.idle.iter().take(NAMES).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            let name = self.pool.holder(slot).map_or_else(String::new, |holder| shown(holder));
            // Writing to a string does not fail.
            let _ =
                write!(text, "{comma}{name} ({})", seconds(now.saturating_duration_since(since)));
        }
        and_more(&mut text, held, held.min(NAMES));
        match self.limits.idle_limit {
            Some(limit) => {
                let limit = seconds(limit);
                let _ = write!(text, "; release them, or wait for the idle_limit of {limit}");
            }
            None => text.push_str("; release them, or set an idle_limit"),
        }
        text
    }

    /// Nothing is known of a trajectory any more.
    pub(super) fn forget(&mut self, trajectory_id: &Arc<str>) {
        let Some(forgotten) = self.trajectories.remove(trajectory_id) else { return };
        if let Some(position) = forgotten.remembered {
            self.remembered.remove(position);
        }
        self.forget_begun(trajectory_id, forgotten.begun);
    }

    /// A trajectory without a slot and without work has to be told that it lost its workspace.
    pub(super) fn remember(&mut self, trajectory_id: &Arc<str>) {
        let Some(trajectory) = self.trajectories.get_mut(trajectory_id) else { return };
        if trajectory.remembered.is_some() {
            return;
        }
        trajectory.remembered = Some(self.remembered.push(trajectory_id.clone()));
        if self.remembered.len() > self.most_remembered
            && let Some(oldest) = self.remembered.pop()
        {
            self.forget(&oldest);
        }
    }
}

/// A trajectory's name for the log: one line, and not too long.
fn shown(trajectory_id: &str) -> String {
    let mut name: String = trajectory_id.chars().take(NAME).flat_map(char::escape_debug).collect();
    if trajectory_id.chars().nth(NAME).is_some() {
        name.push('…');
    }
    name
}

fn and_more(text: &mut String, all: usize, named: usize) {
    if all > named {
        let _ = write!(text, " and {} more", all - named);
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_on_one_line_and_not_too_long() {
        assert_eq!(shown("task-1#2 é"), "task-1#2 é");
        assert_eq!(shown("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(shown(&"é".repeat(NAME)), "é".repeat(NAME));
        assert_eq!(shown(&"é".repeat(NAME + 1)), format!("{}…", "é".repeat(NAME)));
    }
}
