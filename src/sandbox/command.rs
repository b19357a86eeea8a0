//! A command that the supervisor runs, in its slot's jail or without one.

use std::time::Instant;

use super::entered::Entered;
use super::running::{Ending, Reason, Running};
use super::stream::{Source, Watch};

/// One of the two.
pub(super) enum Command {
    /// Without a sandbox.
    Alone(Running),
    /// In its slot's jail.
    Entered(Entered),
}

impl Command {
    /// When [`on_deadline`](Self::on_deadline) is due.
    pub(super) fn deadline(&self) -> Instant {
        match self {
            Self::Alone(running) => running.deadline(),
            Self::Entered(entered) => entered.deadline(),
        }
    }

    /// Whether there is nothing left to wait for: [`finish`](Self::finish) is due.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Alone(running) => running.is_over(),
            Self::Entered(entered) => entered.is_over(),
        }
    }

    /// Deals with one event. `buffer` is scratch space.
    pub(super) fn on_event(
        &mut self,
        source: Source,
        watch: &Watch<'_>,
        buffer: &mut [u8],
        now: Instant,
    ) {
        match self {
            Self::Alone(running) => running.on_event(source, watch, buffer, now),
            Self::Entered(entered) => entered.on_event(source, watch, buffer),
        }
    }

    /// The time of the present phase is up.
    pub(super) fn on_deadline(&mut self, now: Instant) {
        match self {
            Self::Alone(running) => running.on_deadline(now),
            Self::Entered(entered) => entered.on_deadline(now),
        }
    }

    /// Kills everything, unless the command is ending anyway.
    pub(super) fn kill(&mut self, reason: Reason, now: Instant) {
        match self {
            Self::Alone(running) => running.kill(reason, now),
            Self::Entered(entered) => entered.kill(reason, now),
        }
    }

    /// To be called after each event and deadline: once the processes have ended, what they printed
    /// is read and written. Does not block.
    pub(super) fn settle(&mut self, watch: &Watch<'_>, buffer: &mut [u8], now: Instant) {
        match self {
            Self::Alone(running) => running.settle(watch, buffer, now),
            Self::Entered(entered) => entered.settle(watch, buffer, now),
        }
    }

    /// Tells how it ended. Does not block.
    pub(super) fn finish(self, watch: &Watch<'_>) -> Ending {
        match self {
            Self::Alone(running) => running.finish(watch),
            Self::Entered(entered) => entered.finish(watch),
        }
    }
}
