//! A lane: the calls on their way to one destination, and the decision when to send them.
//!
//! The decision is a pure function of the lane and the time ([`decide`]). Why *adaptive* is the
//! default: a fixed window makes a lone call wait for company that does not come, and under load
//! the batches form by themselves while earlier ones are being accepted. So the window is only a
//! cap on the waiting, and a lane sends at once while fewer than [`UNACKNOWLEDGED`] of its batches
//! are on their way – counted until the destination has *accepted* them, not until they are done.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::BatchPolicy;

/// Up to how many batches of a lane may be on their way to be accepted before an adaptive lane
/// starts to collect. One keeps the destination busy, one more hides the hand-over.
const UNACKNOWLEDGED: usize = 2;

/// The limits of a lane's batches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    pub(crate) policy: BatchPolicy,
    pub(crate) window: Duration,
    /// At least 1.
    pub(crate) max_size: usize,
}

/// What [`decide`] looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LaneView {
    /// How many calls the lane holds.
    pub(crate) held: usize,
    /// When the oldest of them joined the lane.
    pub(crate) oldest: Option<Instant>,
    /// How many batches were sent and not yet accepted.
    pub(crate) unacknowledged: usize,
    /// Whether the executor is closing: nothing more will come, so there is nothing to wait for.
    pub(crate) closing: bool,
}

/// What a lane does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Send this many of its oldest calls.
    Now(usize),
    /// Look again at this time, or when something changes.
    At(Instant),
    /// It is empty.
    Idle,
}

/// Whether a lane sends now, and how much.
pub(crate) fn decide(lane: LaneView, limits: BatchLimits, now: Instant) -> Flush {
    let Some(oldest) = lane.oldest else { return Flush::Idle };
    let due = oldest + limits.window;
    let free = limits.policy == BatchPolicy::Adaptive && lane.unacknowledged < UNACKNOWLEDGED;
    if lane.held >= limits.max_size || free || lane.closing || due <= now {
        Flush::Now(lane.held.min(limits.max_size))
    } else {
        Flush::At(due)
    }
}

/// The calls of one destination, oldest first.
#[derive(Debug)]
pub(crate) struct Lane<Id> {
    calls: VecDeque<(Instant, Id)>,
    unacknowledged: usize,
}

impl<Id: Copy + PartialEq> Lane<Id> {
    /// An empty lane.
    pub(crate) fn new() -> Self {
        Self { calls: VecDeque::new(), unacknowledged: 0 }
    }

    /// How many calls it holds.
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// How many batches were sent and not yet accepted.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    /// Adds a call.
    pub(crate) fn push(&mut self, id: Id, now: Instant) {
        self.calls.push_back((now, id));
    }

    /// Takes a call out that shall not be sent any more.
    pub(crate) fn remove(&mut self, id: Id) {
        self.calls.retain(|(_, other)| *other != id);
    }

    /// The calls to send now, if any; counts them as one unacknowledged batch.
    pub(crate) fn take(
        &mut self,
        limits: BatchLimits,
        closing: bool,
        now: Instant,
    ) -> Result<impl Iterator<Item = Id> + '_, Option<Instant>> {
        let view = LaneView {
            held: self.calls.len(),
            oldest: self.calls.front().map(|(joined, _)| *joined),
            unacknowledged: self.unacknowledged,
            closing,
        };
        match decide(view, limits, now) {
            Flush::Now(count) => {
                self.unacknowledged += 1;
                Ok(self.calls.drain(..count).map(|(_, id)| id))
            }
            Flush::At(due) => Err(Some(due)),
            Flush::Idle => Err(None),
        }
    }

    /// A batch was accepted by its destination.
    pub(crate) fn acknowledged(&mut self) {
        self.unacknowledged = self.unacknowledged.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Duration = Duration::from_millis(20);

    fn limits(policy: BatchPolicy) -> BatchLimits {
        BatchLimits { policy, window: WINDOW, max_size: 4 }
    }

    fn view(held: usize, oldest: Instant, unacknowledged: usize) -> LaneView {
        let oldest = (held > 0).then_some(oldest);
        LaneView { held, oldest, unacknowledged, closing: false }
    }

    #[test]
    fn a_plain_window_waits_until_the_oldest_call_has_waited_for_it() {
        let t0 = Instant::now();
        let limits = limits(BatchPolicy::Window);
        assert_eq!(decide(view(1, t0, 0), limits, t0), Flush::At(t0 + WINDOW));
        let just_before = t0 + WINDOW - Duration::from_nanos(1);
        assert_eq!(decide(view(3, t0, 0), limits, just_before), Flush::At(t0 + WINDOW));
        assert_eq!(decide(view(3, t0, 0), limits, t0 + WINDOW), Flush::Now(3));
    }

    #[test]
    fn a_full_batch_goes_at_once_and_is_never_larger_than_the_limit() {
        let t0 = Instant::now();
        assert_eq!(decide(view(4, t0, 9), limits(BatchPolicy::Window), t0), Flush::Now(4));
        assert_eq!(decide(view(9, t0, 9), limits(BatchPolicy::Adaptive), t0), Flush::Now(4));
    }

    #[test]
    fn an_adaptive_lane_sends_at_once_until_two_batches_are_unacknowledged() {
        let t0 = Instant::now();
        let limits = limits(BatchPolicy::Adaptive);
        assert_eq!(decide(view(1, t0, 0), limits, t0), Flush::Now(1));
        assert_eq!(decide(view(1, t0, 1), limits, t0), Flush::Now(1));
        assert_eq!(decide(view(1, t0, 2), limits, t0), Flush::At(t0 + WINDOW));
        assert_eq!(decide(view(1, t0, 2), limits, t0 + WINDOW), Flush::Now(1));
    }

    #[test]
    fn a_deadline_in_the_past_and_a_window_of_zero_send_at_once() {
        let t0 = Instant::now();
        let late = t0 + Duration::from_secs(60);
        assert_eq!(decide(view(2, t0, 5), limits(BatchPolicy::Window), late), Flush::Now(2));
        let zero = BatchLimits { window: Duration::ZERO, ..limits(BatchPolicy::Window) };
        assert_eq!(decide(view(2, t0, 5), zero, t0), Flush::Now(2));
    }

    #[test]
    fn a_closing_lane_waits_for_nothing_and_an_empty_one_does_nothing() {
        let t0 = Instant::now();
        let closing = LaneView { closing: true, ..view(1, t0, 5) };
        assert_eq!(decide(closing, limits(BatchPolicy::Window), t0), Flush::Now(1));
        let empty = LaneView { closing: true, ..view(0, t0, 0) };
        assert_eq!(decide(empty, limits(BatchPolicy::Window), t0), Flush::Idle);
    }

    proptest! {
        /// Under a fake clock, with batches accepted at random times: every call is sent once, in
        /// order, in batches within the limit, and waits no longer than the window.
        #[test]
        fn every_call_is_sent_once_in_order_within_the_window(
            steps in proptest::collection::vec((0..30u64, 0..6usize, any::<bool>()), 1..100),
            adaptive in any::<bool>(),
        ) {
            let policy = if adaptive { BatchPolicy::Adaptive } else { BatchPolicy::Window };
            let limits = limits(policy);
            let mut lane = Lane::new();
            let mut now = Instant::now();
            let mut next = 0u32;
            let mut sent = Vec::new();
            let mut joined = Vec::new();
            let mut wake: Option<Instant> = None;
            for (ms, arrivals, accept) in steps {
                let target = now + Duration::from_millis(ms);
                // The batcher wakes at the lane's own time, or at the next event.
                let mut stops: Vec<Instant> = wake.into_iter().filter(|at| *at < target).collect();
                stops.push(target);
                for stop in stops {
                    now = now.max(stop);
                    if stop == target {
                        for _ in 0..arrivals {
                            lane.push(next, now);
                            joined.push(now);
                            next += 1;
                        }
                        if accept {
                            lane.acknowledged();
                        }
                    }
                    wake = loop {
                        match lane.take(limits, false, now) {
                            Ok(batch) => {
                                let batch: Vec<u32> = batch.collect();
                                prop_assert!((1..=limits.max_size).contains(&batch.len()));
                                for call in &batch {
                                    prop_assert!(now - joined[*call as usize] <= WINDOW);
                                }
                                sent.extend(batch);
                            }
                            Err(at) => break at,
                        }
                    };
                }
            }
            now += WINDOW;
            while let Ok(batch) = lane.take(limits, false, now) {
                sent.extend(batch);
            }
            prop_assert_eq!(sent, (0..next).collect::<Vec<_>>());
        }
    }
}
