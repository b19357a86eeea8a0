//! Ctrl-C and SIGTERM: what the first one means, what the second one means, and how long each waits.
//!
//! The handler only counts ([`Signals`](crate::signals::Signals)); [`Shutdown`] is a pure machine that the loop asks at every turn.

use std::time::{Duration, Instant};

/// How long running calls may go on after the first signal.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// How long the executor may take to end cancelled calls before the run ends without their answers.
pub(crate) const CANCEL_WAIT: Duration = Duration::from_secs(30);

/// How far the shutdown of a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shutdown {
    /// No signal came.
    No,
    /// No new call is started; those that run may end by themselves.
    Draining {
        /// Until then.
        until: Instant,
    },
    /// The running calls were told to end.
    Cancelling {
        /// Their answers are awaited until then.
        until: Instant,
    },
    /// The run ends, with or without the last answers.
    GivenUp,
}

impl Shutdown {
    /// Where the shutdown stands now, after so many signals. Each step is taken once and in order, so
    /// that the caller can act on every change.
    pub(crate) fn advance(self, signals: u32, now: Instant) -> Self {
        match self {
            Self::No if signals > 0 => Self::Draining { until: now + GRACE },
            Self::Draining { until } if signals > 1 || now >= until => {
                Self::Cancelling { until: now + CANCEL_WAIT }
            }
            Self::Cancelling { until } if now >= until => Self::GivenUp,
            same => same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_signal_drains_then_cancels_when_the_grace_is_over() {
        let start = Instant::now();
        assert_eq!(Shutdown::No.advance(0, start), Shutdown::No);
        let draining = Shutdown::No.advance(1, start);
        assert_eq!(draining, Shutdown::Draining { until: start + GRACE });
        assert_eq!(draining.advance(1, start + GRACE / 2), draining);
        let end = start + GRACE;
        assert_eq!(draining.advance(1, end), Shutdown::Cancelling { until: end + CANCEL_WAIT });
    }

    #[test]
    fn a_second_signal_cancels_at_once() {
        let start = Instant::now();
        let draining = Shutdown::No.advance(2, start);
        assert!(matches!(draining, Shutdown::Draining { .. }));
        assert!(matches!(draining.advance(2, start), Shutdown::Cancelling { .. }));
    }

    #[test]
    fn answers_to_a_cancellation_are_not_awaited_for_ever() {
        let start = Instant::now();
        let cancelling = Shutdown::Cancelling { until: start + CANCEL_WAIT };
        assert_eq!(cancelling.advance(9, start), cancelling);
        assert_eq!(cancelling.advance(9, start + CANCEL_WAIT), Shutdown::GivenUp);
    }
}
