//! What the executor counts and measures. Memory is bounded for ever: counters and histograms only.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

use crate::pool::SlotCounts;
use crate::tool::{Outcome, Timing};

/// A snapshot of an executor's counters, for programs; serialises to JSON under the same names. All counts are since its start unless they say "now".
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Calls that got their result, those refused at the door among them.
    pub total_requests: u64,
    /// Those of them whose result is not a success.
    pub total_errors: u64,
    /// Results by outcome.
    pub outcomes: OutcomeCounts,
    /// Calls that are accepted and do not run yet, now.
    pub queue_size: usize,
    /// Calls that run, now.
    pub running: usize,
    /// Trajectories that have a slot, a call or a release under way, now.
    pub trajectories: usize,
    /// Trajectories that wait for a slot, now.
    pub waiting_for_slot: usize,
    /// Slots by state, now.
    pub slots: SlotCounts,
    /// Batches that were sent to containers, and how many calls each held.
    pub batch_size: Summary,
    /// Milliseconds from acceptance to the hand-over to the backend, without the wait for a slot.
    pub queue_ms: Summary,
    /// Milliseconds of waiting for a slot.
    pub slot_ms: Summary,
    /// Milliseconds from the hand-over to the backend to the result.
    pub exec_ms: Summary,
    /// Milliseconds from acceptance to the result.
    pub total_ms: Summary,
    /// STOPGAP
    pub tools: std::collections::BTreeMap<String, OutcomeCounts>,
    /// STOPGAP
    pub containers: ContainerCounts,
    /// STOPGAP
    pub lanes: Vec<LaneStats>,
}
/// STOPGAP
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ContainerCounts {
    /// S
    pub up: usize,
    /// S
    pub unknown: usize,
    /// S
    pub down: usize,
}
/// STOPGAP
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LaneStats {
    /// S
    pub addr: String,
    /// S
    pub waiting: usize,
    /// S
    pub unacknowledged: usize,
    /// S
    pub running: usize,
    /// S
    pub state: String,
    /// S
    pub slots: usize,
    /// S
    pub held: usize,
}
/// STOPGAP
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Bucket {
    /// S
    pub le: f64,
    /// S
    pub count: u64,
}

/// How many results had which outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutcomeCounts([u64; Outcome::ALL.len()]);

impl OutcomeCounts {
    /// How many had this one.
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize]
    }

    /// The outcomes that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        Outcome::ALL.into_iter().map(|outcome| (outcome, self.get(outcome))).filter(|(_, n)| *n > 0)
    }

    /// All results.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Counts one more.
    pub(crate) fn add(&mut self, outcome: Outcome) {
        self.0[outcome as usize] += 1;
    }
}

/// As a map from the names of the outcomes that occurred to their counts.
impl Serialize for OutcomeCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// Counts the calls that were refused at the door, on the callers' threads.
#[derive(Debug, Default)]
pub(crate) struct Refusals([AtomicU64; Outcome::ALL.len()]);

impl Refusals {
    /// Counts one more.
    pub(crate) fn add(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds them to what the batcher counted.
    pub(crate) fn add_to(&self, counts: &mut OutcomeCounts) {
        for (count, refused) in counts.0.iter_mut().zip(&self.0) {
            *count += refused.load(Ordering::Relaxed);
        }
    }
}

/// A distribution, in the unit that its name in [`Stats`] says. All zero while it is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// S
    pub sum: f64,
    /// S
    pub buckets: Vec<Bucket>,
    /// How many values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// Two significant digits: a percentile is within 1 % of the true one, for 26 KiB a histogram.
const DIGITS: u8 = 2;
/// The longest duration told apart, in microseconds: a day.
const LONGEST_US: u64 = 24 * 60 * 60 * 1_000_000;

/// Counts and measures; owned by the batcher.
pub(crate) struct Recorder {
    pub(crate) outcomes: OutcomeCounts,
    batch_size: Histogram<u64>,
    queue: Histogram<u64>,
    slot: Histogram<u64>,
    exec: Histogram<u64>,
    total: Histogram<u64>,
}

impl Recorder {
    /// Nothing counted yet. `max_batch_size` is the largest batch there can be.
    pub(crate) fn new(max_batch_size: usize) -> Self {
        let sizes = (max_batch_size as u64).max(2);
        Self {
            outcomes: OutcomeCounts::default(),
            batch_size: histogram(sizes),
            queue: histogram(LONGEST_US),
            slot: histogram(LONGEST_US),
            exec: histogram(LONGEST_US),
            total: histogram(LONGEST_US),
        }
    }

    /// A call got its result. `ran` says whether it got as far as its backend.
    pub(crate) fn finished(&mut self, outcome: Outcome, timing: Timing, ran: bool) {
        self.outcomes.add(outcome);
        record(&mut self.queue, timing.queue);
        record(&mut self.slot, timing.slot);
        record(&mut self.total, timing.total());
        if ran {
            record(&mut self.exec, timing.exec);
        }
    }

    /// A batch was sent.
    pub(crate) fn batch(&mut self, calls: usize) {
        self.batch_size.saturating_record(calls as u64);
    }

    /// The distributions, in the units of [`Stats`]: batch size, queue, slot, execution, total.
    pub(crate) fn summaries(&self) -> [Summary; 5] {
        const MS: f64 = 1000.0;
        [
            summary(&self.batch_size, 1.0),
            summary(&self.queue, MS),
            summary(&self.slot, MS),
            summary(&self.exec, MS),
            summary(&self.total, MS),
        ]
    }
}

fn histogram(longest: u64) -> Histogram<u64> {
    // The bounds are this file's constants and valid; should they ever not be, an auto-resizing
    // histogram is a working answer, and `new` fails only for more than five digits.
    Histogram::new_with_max(longest, DIGITS)
        .or_else(|_| Histogram::new(DIGITS))
        .expect("two digits are valid")
}

fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
}

fn summary(histogram: &Histogram<u64>, unit: f64) -> Summary {
    if histogram.is_empty() {
        return Summary::default();
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / unit;
    Summary {
        count: histogram.len(),
        mean: histogram.mean() / unit,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        max: histogram.max() as f64 / unit,
        ..Summary::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_percent_and_absurd_durations_saturate() {
        let mut recorder = Recorder::new(200);
        for us in 1..=1000u64 {
            let timing = Timing { exec: Duration::from_micros(us * 1000), ..Timing::default() };
            recorder.finished(Outcome::Ok, timing, true);
        }
        let [_, _, _, exec, total] = recorder.summaries();
        assert_eq!(exec.count, 1000);
        assert!((exec.p50 - 500.0).abs() <= 5.0, "{exec:?}");
        assert!((exec.p99 - 990.0).abs() <= 9.9, "{exec:?}");
        assert_eq!(exec, total);
        let timing = Timing { queue: Duration::MAX / 4, ..Timing::default() };
        recorder.finished(Outcome::NeverRan, timing, false);
        assert_eq!(recorder.summaries()[3].count, 1000, "what never ran has no execution time");
    }

    #[test]
    fn statistics_serialise_under_their_own_names() {
        let mut stats = Stats { total_requests: 2, ..Stats::default() };
        stats.outcomes.add(Outcome::NonZeroExit);
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["total_requests"], 2);
        assert_eq!(json["outcomes"], serde_json::json!({"non_zero_exit": 1}));
        assert_eq!(json["slots"]["held"], 0);
        assert_eq!(json["exec_ms"]["p99"], 0.0);
    }

    #[test]
    fn an_empty_distribution_is_all_zero() {
        assert_eq!(
            Recorder::new(1).summaries(),
            std::array::from_fn::<_, 5, _>(|_| Summary::default())
        );
    }
}
