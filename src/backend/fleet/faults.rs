//! Which servers of a fleet are bad: a pure data structure, with the clock passed in.
//!
//! A server is *tried* whenever a slot of it begins with nothing in it: by the reset, and by the
//! first call after it, or by a trajectory's begin. A trial fails where the reset fails, or where
//! the call could not even be started. No model can choose that: nothing of it has run in the slot
//! yet. A trial succeeds where the call has run, however it ended. What happens in a slot later
//! says nothing here: a model that breaks its own sandbox would be taken for a server that is
//! broken.
//!
//! After [`FAILURES`] failures without a success between them the server is *bad*, if they come
//! from as many slots, or from all that the executor has there: one slot that cannot be emptied
//! costs no others. It is left alone for a pause that doubles each time; after it one more failure
//! is enough, and a success makes the server as good as any.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::BadContainer;

/// How many failures in a row make a server bad.
const FAILURES: usize = 3;
/// How much longer than the first pause the longest one is.
const PAUSE_MOST: u32 = 60;
/// The longest reason that is kept.
const LONGEST_REASON: usize = 300;

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trial {
    /// A command ran in the slot.
    Succeeded,
    /// None could, for this reason.
    Failed(String),
}

/// What is known of the servers that have failed.
#[derive(Debug)]
pub(super) struct Faults {
    /// How long a bad server is left alone at first.
    pause: Duration,
    servers: BTreeMap<Arc<str>, Record>,
    /// How many servers became bad.
    found: u64,
}

#[derive(Debug, Default)]
struct Record {
    /// Failures since the last success.
    failures: usize,
    /// The slots that they come from.
    slots: BTreeSet<usize>,
    /// Why the last trial failed.
    why: String,
    /// How often the server became bad since the last success.
    times: u32,
    /// Until when it is left alone.
    until: Option<Instant>,
}

impl Record {
    fn is_bad(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

impl Faults {
    /// None has failed yet. A bad server is left alone for `pause` at first.
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, servers: BTreeMap::new(), found: 0 }
    }

    /// A slot of a server was tried; the executor has `held` slots there. For how long the server
    /// is left alone, if it is bad from now on.
    pub(super) fn tried(
        &mut self,
        addr: &Arc<str>,
        slot: usize,
        held: usize,
        trial: Trial,
        now: Instant,
    ) -> Option<Duration> {
        let why = match trial {
            Trial::Succeeded => {
                // A success in a bad server was begun before it was known to be bad.
                if self.servers.get(addr).is_some_and(|record| !record.is_bad(now)) {
                    self.servers.remove(addr);
                }
                return None;
            }
            Trial::Failed(why) => why,
        };
        let record = self.servers.entry(addr.clone()).or_default();
        if record.is_bad(now) {
            return None;
        }
        record.failures += 1;
        record.slots.insert(slot);
        record.why = why.chars().filter(|c| !c.is_control()).take(LONGEST_REASON).collect();
        let is_enough =
            record.failures >= FAILURES && record.slots.len() >= FAILURES.min(held.max(1));
        if record.times == 0 && !is_enough {
            return None;
        }
        let pause = self.pause.saturating_mul(PAUSE_MOST.min(1 << record.times.min(16)));
        record.times += 1;
        record.until = Some(now + pause);
        record.slots.clear();
        self.found += 1;
        Some(pause)
    }

    /// Whether a server is bad.
    pub(super) fn is_bad(&self, addr: &str, now: Instant) -> bool {
        self.servers.get(addr).is_some_and(|record| record.is_bad(now))
    }

    /// When the next server may be tried again.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.servers.values().filter_map(|record| record.until).filter(|until| now < *until).min()
    }

    /// The servers that are bad.
    pub(super) fn bad(&self, now: Instant) -> Vec<BadContainer> {
        let bad = self.servers.iter().filter(|(_, record)| record.is_bad(now));
        let told = bad.map(|(addr, record)| BadContainer {
            addr: addr.to_string(),
            why: record.why.clone(),
            failures: record.failures,
            again_in: record.until.map_or(Duration::ZERO, |until| until.duration_since(now)),
        });
        told.collect()
    }

    /// How many servers became bad so far.
    pub(super) fn found(&self) -> u64 {
        self.found
    }

    /// Forgets all servers but those that are known elsewhere.
    pub(super) fn keep_only(&mut self, is_known: impl Fn(&str) -> bool) {
        self.servers.retain(|addr, _| is_known(addr));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAUSE_FIRST: Duration = Duration::from_secs(30);

    fn failed() -> Trial {
        Trial::Failed("no\nroom".to_owned())
    }

    #[test]
    fn three_failures_of_three_slots_make_a_server_bad_for_longer_each_time() {
        let mut now = Instant::now();
        let mut faults = Faults::new(PAUSE_FIRST);
        let addr: Arc<str> = "http://a".into();
        assert_eq!(faults.tried(&addr, 0, 9, failed(), now), None);
        assert_eq!(faults.tried(&addr, 0, 9, failed(), now), None);
        assert_eq!(faults.tried(&addr, 0, 9, failed(), now), None, "one slot only");
        assert_eq!(faults.tried(&addr, 1, 9, failed(), now), None);
        assert_eq!(faults.tried(&addr, 2, 9, failed(), now), Some(PAUSE_FIRST));
        assert!(faults.is_bad(&addr, now) && !faults.is_bad("http://b", now));
        let told = faults.bad(now);
        assert_eq!((&*told[0].addr, &*told[0].why, told[0].failures), ("http://a", "noroom", 5));
        assert_eq!(told[0].again_in, PAUSE_FIRST);
        // What was begun there before says nothing more.
        assert_eq!(faults.tried(&addr, 3, 9, failed(), now), None);
        assert_eq!(faults.tried(&addr, 4, 9, Trial::Succeeded, now), None);
        assert!(faults.is_bad(&addr, now));
        now = faults.due(now).unwrap();
        assert!(!faults.is_bad(&addr, now) && faults.bad(now).is_empty());
        assert_eq!(faults.tried(&addr, 0, 9, failed(), now), Some(PAUSE_FIRST * 2), "one more");
        now = faults.due(now).unwrap();
        assert_eq!(faults.tried(&addr, 0, 9, Trial::Succeeded, now), None);
        assert_eq!(faults.tried(&addr, 0, 9, failed(), now), None, "as good as any");
        assert_eq!((faults.due(now), faults.found()), (None, 2));
        faults.keep_only(|_| false);
        assert!(faults.servers.is_empty());
    }

    #[test]
    fn where_the_executor_has_fewer_slots_all_of_them_are_enough() {
        let now = Instant::now();
        let mut faults = Faults::new(PAUSE_FIRST);
        let addr: Arc<str> = "http://a".into();
        for _ in 0..2 {
            assert_eq!(faults.tried(&addr, 4, 1, failed(), now), None);
        }
        assert_eq!(faults.tried(&addr, 4, 1, failed(), now), Some(PAUSE_FIRST));
    }

    proptest! {
        /// Against the list of all trials of the server since its last success.
        #[test]
        fn a_server_is_bad_only_after_failures_in_a_row_of_enough_slots(
            held in 1..5usize,
            trials in prop::collection::vec((0..5usize, prop::bool::weighted(0.7), 0..90u64), 1..60),
        ) {
            let mut now = Instant::now();
            let mut faults = Faults::new(PAUSE_FIRST);
            let addr: Arc<str> = "http://a".into();
            let (mut row, mut probation) = (Vec::new(), false);
            for (slot, fails, seconds) in trials {
                now += Duration::from_secs(seconds);
                let was_bad = faults.is_bad(&addr, now);
                let trial = if fails { failed() } else { Trial::Succeeded };
                let found = faults.tried(&addr, slot, held, trial, now);
                if was_bad {
                    prop_assert!(found.is_none() && faults.is_bad(&addr, now));
                    continue;
                }
                if !fails {
                    row.clear();
                    probation = false;
                } else {
                    row.push(slot);
                }
                let slots: BTreeSet<_> = row.iter().collect();
                let expected = fails
                    && (probation || row.len() >= FAILURES && slots.len() >= FAILURES.min(held));
                prop_assert_eq!(found.is_some(), expected);
                prop_assert_eq!(faults.is_bad(&addr, now), expected);
                if let Some(pause) = found {
                    prop_assert!((PAUSE_FIRST..=PAUSE_FIRST * PAUSE_MOST).contains(&pause));
                    prop_assert_eq!(faults.due(now), Some(now + pause));
                    prop_assert!(!faults.is_bad(&addr, now + pause));
                    row.clear();
                    probation = true;
                }
            }
        }
    }
}
