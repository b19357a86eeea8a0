//! Ctrl-C and SIGTERM: what the first one means, what the second one means, and how long each
//! waits.
//!
//! The signals are only counted ([`Signals`](crate::signals::Signals)); [`Shutdown`] is a pure
//! machine that the loop asks at every turn.

use std::time::{Duration, Instant};

/// How long the executor may take to end cancelled calls before the run ends without their
/// answers.
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
    /// Where the shutdown stands now, after so many signals, the running calls being given `grace`
    /// after the first one. Each step is taken once and in order, so that the caller can act on
    /// every change.
    pub(crate) fn advance(self, signals: u32, grace: Duration, now: Instant) -> Self {
        match self {
            Self::No if signals > 0 => Self::Draining { until: now + grace },
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

    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn one_signal_drains_then_cancels_when_the_grace_is_over() {
        let start = Instant::now();
        assert_eq!(Shutdown::No.advance(0, GRACE, start), Shutdown::No);
        let draining = Shutdown::No.advance(1, GRACE, start);
        assert_eq!(draining, Shutdown::Draining { until: start + GRACE });
        assert_eq!(draining.advance(1, GRACE, start + GRACE / 2), draining);
        let end = start + GRACE;
        assert_eq!(
            draining.advance(1, GRACE, end),
            Shutdown::Cancelling { until: end + CANCEL_WAIT }
        );
    }

    #[test]
    fn a_second_signal_cancels_at_once() {
        let start = Instant::now();
        let draining = Shutdown::No.advance(2, GRACE, start);
        assert!(matches!(draining, Shutdown::Draining { .. }));
        assert!(matches!(draining.advance(2, GRACE, start), Shutdown::Cancelling { .. }));
    }

    #[test]
    fn answers_to_a_cancellation_are_not_awaited_for_ever() {
        let start = Instant::now();
        let cancelling = Shutdown::Cancelling { until: start + CANCEL_WAIT };
        assert_eq!(cancelling.advance(9, GRACE, start), cancelling);
        assert_eq!(cancelling.advance(9, GRACE, start + CANCEL_WAIT), Shutdown::GivenUp);
    }
}
