//! What the executor counts and measures. Memory is bounded for ever: counters and histograms
//! only.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Serialize, Serializer};

use crate::backend::{BadContainer, Capabilities};
use crate::config::NetworkMode;
use crate::egress::NetworkTotals;
use crate::level::{ImageIds, IsolationLevel};
use crate::limits::EnforcedLimits;
use crate::pool::{ContainerCounts, ImageCounts, SlotCounts};
use crate::tool::{Outcome, Timing};

/// A snapshot of an executor's counters, for programs; serialises to JSON under the same
/// names. All counts are since its start unless they say "now".
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Calls that got their result, those refused at the door among them.
    pub total_requests: u64,
    /// Those of them whose result is not a success.
    pub total_errors: u64,
    /// Results by outcome.
    pub outcomes: OutcomeCounts,
    /// Trajectories that were to begin with a spec, by how that ended: `ok` are those whose slot is
    /// what they asked for. Forks are among them, and those that begin because files are put into
    /// them; no other count has them.
    pub begins: OutcomeCounts,
    /// Calls that are accepted and do not run yet, now.
    pub queue_size: usize,
    /// Calls that run, now.
    pub running: usize,
    /// Trajectories that have a slot, a call or a release under way, now.
    pub trajectories: usize,
    /// Trajectories that wait for a slot, or for its reset, now.
    pub waiting_for_slot: usize,
    /// Slots whose holders have no call, release or reader of artifacts under way or queued, now.
    pub idle_slots: usize,
    /// Their holders, those that have been idle longest first: eight at most.
    pub idle_holders: Vec<IdleHolder>,
    /// For how many seconds trajectories have waited for slots while every holder of one was idle:
    /// probably a release was forgotten. `None` while that is not so.
    pub stalled_s: Option<f64>,
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
    /// Results by the tool that was called. A name that no tool has counts as `unknown`.
    pub tools: BTreeMap<String, OutcomeCounts>,
    /// Containers by whether they answer, now.
    pub containers: ContainerCounts,
    /// What is on its way to each container that is there, now.
    pub lanes: Vec<LaneStats>,
    /// The backends by themselves, in order of preference, where there are several.
    pub backends: Vec<BackendStats>,
    /// How far commands are isolated in the backend's slots, where it tells.
    pub isolation_level: Option<IsolationLevel>,
    /// Which user ids machines from images have, where there can be some and the backend tells.
    pub image_ids: Option<ImageIds>,
    /// Why they are not isolated further, a line each.
    pub weakened_because: Vec<String>,
    /// Which limits hold for the commands of the backend's slots, where it tells.
    pub limits: Option<EnforcedLimits>,
    /// Whether the backend's slots keep their sandboxes from call to call, where it tells. Where
    /// they do not each command pays for a sandbox of its own.
    pub warm_slots: Option<bool>,
    /// Containers that answer and in whose slots nothing can be run, now: they get no trajectory
    /// until they are tried again.
    pub bad_containers: Vec<BadContainer>,
    /// How many times a container was found to be so.
    pub containers_found_bad: u64,
    /// How many sandboxes of the backend were killed and have not ended in time, where it tells.
    pub retired_sandboxes: usize,
    /// What network commands have whose calls may use one, where the backend tells.
    pub network: Option<NetworkMode>,
    /// What commands have asked of the network so far, where the backend counts it.
    pub network_totals: Option<NetworkTotals>,
    /// Where trajectories that begin with an image were put.
    pub images: ImageCounts,
}

/// One of several backends.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BackendStats {
    /// Its name, with which the addresses of its containers begin.
    pub name: String,
    /// Its containers that answer and take trajectories, now.
    pub containers: usize,
    /// Their slots.
    pub slots: usize,
    /// Those of them that are not held.
    pub free: usize,
    /// Trajectories that wait and may have a slot of it, now: those that are still to wait for the
    /// backends before it are not counted.
    pub waiting: usize,
    /// What it can do, and what holds in its slots.
    pub capabilities: Capabilities,
}

/// A trajectory that holds a slot and does nothing with it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct IdleHolder {
    /// Whose slot it is.
    pub trajectory_id: String,
    /// For how many seconds nothing of it has been under way.
    pub idle_s: f64,
}

/// One container, and the calls on their way to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LaneStats {
    /// Where the container is.
    pub addr: String,
    /// `up`, `draining` (no trajectory is newly put there), `unknown` (it does not answer) or
    /// `down` (it is given up until it answers again).
    pub state: &'static str,
    /// Calls that have a slot there and were not sent yet.
    pub waiting: usize,
    /// Batches that were sent and not yet accepted.
    pub unacknowledged: usize,
    /// Calls that were sent and have not ended.
    pub running: usize,
    /// Its slots.
    pub slots: usize,
    /// Those of them that a trajectory holds.
    pub held: usize,
    /// The names by which it has images, as far as is known.
    pub images: usize,
    /// The images that it is pulling or unpacking.
    pub image_pulls: usize,
    /// The bytes that are free for images there, where it says so.
    pub image_bytes_free: Option<u64>,
    /// Whether its disk is too full for an image that it lacks.
    pub image_disk_full: bool,
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

    /// Counts those of another one, too.
    fn add_all(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count += more;
        }
    }
}

/// As a map from the names of the outcomes that occurred to their counts.
impl Serialize for OutcomeCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// The name under which calls of tools that do not exist are counted: a model that invents names
/// must not grow the statistics.
const UNKNOWN_TOOL: &str = "unknown";

/// Counts the calls that were refused at the door, on the callers' threads.
#[derive(Debug, Default)]
pub(crate) struct Rejections(Mutex<BTreeMap<String, OutcomeCounts>>);

impl Rejections {
    /// Counts one more, of this registered tool, or of one that does not exist.
    pub(crate) fn add(&self, tool: Option<&str>, outcome: Outcome) {
        count(&mut self.0.lock(), tool.unwrap_or(UNKNOWN_TOOL), outcome);
    }

    /// Adds them to what the batcher counted.
    pub(crate) fn add_to(
        &self,
        outcomes: &mut OutcomeCounts,
        tools: &mut BTreeMap<String, OutcomeCounts>,
    ) {
        for (tool, refused) in self.0.lock().iter() {
            outcomes.add_all(refused);
            tools.entry(tool.clone()).or_default().add_all(refused);
        }
    }
}

/// Counts a result of a tool. Its name is only copied the first time.
fn count(tools: &mut BTreeMap<String, OutcomeCounts>, tool: &str, outcome: Outcome) {
    match tools.get_mut(tool) {
        Some(counts) => counts.add(outcome),
        None => tools.entry(tool.to_owned()).or_default().add(outcome),
    }
}

/// A distribution, in the unit that its name in [`Stats`] says. All zero while it is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many values.
    pub count: u64,
    /// All of them together.
    pub sum: f64,
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
    /// How many values were at most so large, for fixed bounds: exact, and for metrics that are
    /// added up elsewhere. Not serialised.
    #[serde(skip)]
    pub buckets: Vec<Bucket>,
}

/// How many values of a [`Summary`] were at most so large.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Bucket {
    /// The bound, in the summary's unit; a value that equals it counts.
    pub le: f64,
    /// How many values, those of the smaller bounds among them.
    pub count: u64,
}

/// Two significant digits: a percentile is within 1 % of the true one, for 26 KiB a histogram.
const DIGITS: u8 = 2;
/// The longest duration told apart, in microseconds: a day.
const LONGEST_US: u64 = 24 * 60 * 60 * 1_000_000;

/// The bounds of the buckets of durations, in milliseconds: from 1 ms to 10 min, the longest that
/// a call may run.
const MS_BOUNDS: &[u64] = &[
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000,
    300_000, 600_000,
];
/// The bounds of the buckets of batch sizes.
const SIZE_BOUNDS: &[u64] = &[1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000];

/// Values of one kind: percentiles by a histogram, sum and buckets exactly.
struct Distribution {
    histogram: Histogram<u64>,
    sum: u64,
    /// How many recorded units make one of the summary's.
    unit: u64,
    /// In the summary's unit, rising.
    bounds: &'static [u64],
    /// How many values lie at or below each bound and above the one before.
    counts: Vec<u64>,
}

impl Distribution {
    /// Nothing recorded; values above `largest` count as `largest`.
    fn new(largest: u64, unit: u64, bounds: &'static [u64]) -> Self {
        // The bounds are this file's constants and valid; should they ever not be, an auto-resizing
        // histogram is a working answer, and `new` fails only for more than five digits.
        let histogram = Histogram::new_with_max(largest, DIGITS)
            .or_else(|_| Histogram::new(DIGITS))
            .expect("two digits are valid");
        Self { histogram, sum: 0, unit, bounds, counts: vec![0; bounds.len()] }
    }

    fn record(&mut self, value: u64) {
        let value = value.min(self.histogram.high());
        self.histogram.saturating_record(value);
        self.sum = self.sum.saturating_add(value);
        let bucket = self.bounds.partition_point(|bound| bound * self.unit < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
    }

    fn record_duration(&mut self, duration: Duration) {
        self.record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    fn summary(&self) -> Summary {
        let (histogram, unit) = (&self.histogram, self.unit as f64);
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / unit;
        let mut below = 0;
        let buckets = self.bounds.iter().zip(&self.counts).map(|(bound, count)| {
            below += count;
            Bucket { le: *bound as f64, count: below }
        });
        let buckets = buckets.collect();
        if histogram.is_empty() {
            return Summary { buckets, ..Summary::default() };
        }
        Summary {
            count: histogram.len(),
            sum: self.sum as f64 / unit,
            mean: self.sum as f64 / unit / histogram.len() as f64,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: histogram.max() as f64 / unit,
            buckets,
        }
    }
}

/// Counts and measures; owned by the batcher.
pub(crate) struct Recorder {
    pub(crate) outcomes: OutcomeCounts,
    /// By tool; only registered ones get this far.
    pub(crate) tools: BTreeMap<String, OutcomeCounts>,
    /// Those of begins, which are no calls.
    pub(crate) begins: OutcomeCounts,
    batch_size: Distribution,
    queue: Distribution,
    slot: Distribution,
    exec: Distribution,
    total: Distribution,
}

impl Recorder {
    /// Nothing counted yet. `max_batch_size` is the largest batch there can be.
    pub(crate) fn new(max_batch_size: usize) -> Self {
        let sizes = (max_batch_size as u64).max(2);
        let durations = || Distribution::new(LONGEST_US, 1_000, MS_BOUNDS);
        Self {
            outcomes: OutcomeCounts::default(),
            tools: BTreeMap::new(),
            begins: OutcomeCounts::default(),
            batch_size: Distribution::new(sizes, 1, SIZE_BOUNDS),
            queue: durations(),
            slot: durations(),
            exec: durations(),
            total: durations(),
        }
    }

    /// A call of this tool got its result. `ran` says whether it got as far as its backend.
    pub(crate) fn finished(&mut self, tool: &str, outcome: Outcome, timing: Timing, ran: bool) {
        self.outcomes.add(outcome);
        count(&mut self.tools, tool, outcome);
        self.queue.record_duration(timing.queue);
        self.slot.record_duration(timing.slot);
        self.total.record_duration(timing.total());
        if ran {
            self.exec.record_duration(timing.exec);
        }
    }

    /// A batch was sent.
    pub(crate) fn batch(&mut self, calls: usize) {
        self.batch_size.record(calls as u64);
    }

    /// The distributions, in the units of [`Stats`]: batch size, queue, slot, execution, total.
    pub(crate) fn summaries(&self) -> [Summary; 5] {
        [&self.batch_size, &self.queue, &self.slot, &self.exec, &self.total]
            .map(Distribution::summary)
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
            recorder.finished("bash", Outcome::Ok, timing, true);
        }
        let [_, _, _, exec, total] = recorder.summaries();
        assert_eq!(exec.count, 1000);
        assert!((exec.p50 - 500.0).abs() <= 5.0, "{exec:?}");
        assert!((exec.p99 - 990.0).abs() <= 9.9, "{exec:?}");
        assert_eq!(exec, total);
        let timing = Timing { queue: Duration::MAX / 4, ..Timing::default() };
        recorder.finished("bash", Outcome::NeverRan, timing, false);
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
    fn an_empty_distribution_is_all_zero_and_has_its_bounds() {
        for summary in Recorder::new(1).summaries() {
            assert!(summary.buckets.len() >= 10);
            assert!(summary.buckets.iter().all(|bucket| bucket.count == 0));
            assert_eq!(Summary { buckets: Vec::new(), ..summary }, Summary::default());
        }
    }

    #[test]
    fn buckets_are_cumulative_and_a_value_at_a_bound_is_below_it() {
        let mut recorder = Recorder::new(200);
        for us in [0, 1_000, 1_001, 2_000, 700_000_000] {
            let timing = Timing { exec: Duration::from_micros(us), ..Timing::default() };
            recorder.finished("bash", Outcome::Ok, timing, true);
        }
        let [_, _, _, exec, _] = recorder.summaries();
        let count = |le| exec.buckets.iter().find(|bucket| bucket.le == le).unwrap().count;
        assert_eq!((count(1.0), count(2.0), count(600_000.0)), (2, 4, 4));
        assert_eq!((exec.count, exec.sum), (5, 700_004.001));
    }

    #[test]
    fn calls_are_counted_by_tool_and_names_that_no_tool_has_as_one() {
        let (mut recorder, rejections) = (Recorder::new(1), Rejections::default());
        recorder.finished("bash", Outcome::Ok, Timing::default(), true);
        rejections.add(Some("bash"), Outcome::InvalidCall);
        rejections.add(None, Outcome::UnknownTool);
        rejections.add_to(&mut recorder.outcomes, &mut recorder.tools);
        assert_eq!(recorder.outcomes.total(), 3);
        let tools: Vec<_> = recorder.tools.iter().map(|(t, n)| (t.as_str(), n.total())).collect();
        assert_eq!(tools, [("bash", 2), ("unknown", 1)]);
    }
}
