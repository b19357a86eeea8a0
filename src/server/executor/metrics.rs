//! The executor's statistics in the text format of Prometheus, version 0.0.4.
//!
//! A pure function from [`Stats`] to text. Durations are in seconds, as is the custom there.

use std::fmt::Write as _;

use serde_json::Value;

use crate::egress::NetworkTotals;
use crate::executor::{BackendStats, Stats, Summary};
use crate::pool::ImageCounts;

/// The `Content-Type` of the text.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics. `connections` is how many the server has now.
pub(super) fn text(stats: &Stats, connections: usize) -> String {
    let mut text = Text(String::with_capacity(16 * 1024));

    text.family("calls_total", "counter", "Calls that got their result.");
    for (tool, outcomes) in &stats.tools {
        for (outcome, calls) in outcomes.iter() {
            let labels = [("tool", tool.as_str()), ("outcome", outcome.as_str())];
            text.sample("calls_total", &labels, calls as f64);
        }
    }
    text.family("begins_total", "counter", "Trajectories that were to begin with a spec.");
    for (outcome, begins) in stats.begins.iter() {
        text.sample("begins_total", &[("outcome", outcome.as_str())], begins as f64);
    }
    text.gauge("queue_size", "Calls that are accepted and do not run yet.", stats.queue_size);
    text.gauge("running", "Calls that run.", stats.running);
    text.gauge(
        "trajectories",
        "Trajectories that have a slot or work under way.",
        stats.trajectories,
    );
    text.gauge("waiting_for_slot", "Trajectories that wait for a slot.", stats.waiting_for_slot);
    text.gauge("idle_slots", "Slots whose holders have nothing under way.", stats.idle_slots);
    let longest = stats.idle_holders.first().map_or(0.0, |holder| holder.idle_s);
    let help = "How long the holder of a slot has had nothing under way, at most.";
    text.seconds("idle_longest_seconds", help, longest);
    let help = "How long trajectories have waited for slots while all holders were idle.";
    text.seconds("stalled_seconds", help, stats.stalled_s.unwrap_or(0.0));
    text.gauge("http_connections", "Connections to this server.", connections);

    if let Some(totals) = &stats.network_totals {
        text.network(totals);
    }

    text.by_state("slots", "Slots by state.", serde_json::to_value(stats.slots));
    text.by_state("containers", "Containers by state.", serde_json::to_value(stats.containers));

    let help = "Containers in whose slots nothing can be run: they get no trajectory for a while.";
    text.gauge("bad_containers", help, stats.bad_containers.len());
    let name = "containers_found_bad_total";
    text.family(name, "counter", "How many times a container was found to be bad.");
    text.sample(name, &[], stats.containers_found_bad as f64);

    text.images(&stats.images);
    if !stats.backends.is_empty() {
        text.backends(&stats.backends);
    }

    type Reading = fn(&crate::executor::LaneStats) -> usize;
    let readings: [(&str, &str, Reading); 7] = [
        ("lane_waiting", "Calls that wait to be sent to a container.", |lane| lane.waiting),
        ("lane_unacknowledged", "Batches sent to a container and not acknowledged.", |lane| {
            lane.unacknowledged
        }),
        ("lane_running", "Calls that run in a container.", |lane| lane.running),
        ("lane_slots", "Slots of a container.", |lane| lane.slots),
        ("lane_slots_held", "Slots of a container that a trajectory holds.", |lane| lane.held),
        ("lane_image_pulls", "Images that a container is pulling.", |lane| lane.image_pulls),
        ("lane_disk_full", "Whether a container has no room for more images.", |lane| {
            usize::from(lane.image_disk_full)
        }),
    ];
    for (name, help, reading) in readings {
        text.family(name, "gauge", help);
        for (index, lane) in stats.lanes.iter().enumerate() {
            // The index tells apart two containers that call themselves the same.
            let labels = [("lane", &*index.to_string()), ("container", &*lane.addr)];
            text.sample(name, &labels, reading(lane) as f64);
        }
    }

    const MS: f64 = 1000.0;
    let queue =
        "Time from acceptance to the hand-over to the backend, without the wait for a slot.";
    text.histogram("queue_seconds", queue, &stats.queue_ms, MS);
    text.histogram("slot_wait_seconds", "Time of waiting for a slot.", &stats.slot_ms, MS);
    let execution = "Time from the hand-over to the backend to the result.";
    text.histogram("execution_seconds", execution, &stats.exec_ms, MS);
    text.histogram("total_seconds", "Time from acceptance to the result.", &stats.total_ms, MS);
    text.histogram("batch_size", "Calls in a batch sent to a container.", &stats.batch_size, 1.0);
    text.0
}

const PREFIX: &str = "tool_executor_";

struct Text(String);

// Writing to a string does not fail.
impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.0, "{PREFIX}{name}");
        for (index, (label, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"");
            self.escaped(value);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn images(&mut self, images: &ImageCounts) {
        let name = "image_begins_total";
        let help = "Trajectories that began with an image, by how their container had it.";
        self.family(name, "counter", help);
        let placed = [("hit", images.hits), ("join", images.joins), ("pull", images.pulls)];
        for (placed, count) in placed {
            self.sample(name, &[("placed", placed)], count as f64);
        }
        let waits = "Trajectories that were held back or overtaken for the sake of an image.";
        let seconds = "How long they were so, altogether.";
        let retries = "Begins that were tried in a second container, for want of the image.";
        let refusals = "Begins that were refused: two containers could not have the image.";
        for (name, help, value) in [
            ("image_waits_total", waits, images.waits as f64),
            ("image_wait_seconds_total", seconds, images.waited_s),
            ("image_retries_total", retries, images.retries as f64),
            ("image_refusals_total", refusals, images.refusals as f64),
        ] {
            self.family(name, "counter", help);
            self.sample(name, &[], value);
        }
    }

    fn escaped(&mut self, value: &str) {
        for c in value.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
    }

    /// What commands have asked of the network.
    /// Several backends, in order of preference.
    fn backends(&mut self, backends: &[BackendStats]) {
        type Reading = fn(&BackendStats) -> usize;
        let readings: [(&str, &str, Reading); 4] = [
            ("backend_containers", "Containers of a backend that take trajectories.", |one| {
                one.containers
            }),
            ("backend_slots", "Slots of these containers.", |one| one.slots),
            ("backend_free_slots", "Those of them that no trajectory holds.", |one| one.free),
            ("backend_waiting", "Trajectories that wait and may have a slot of it now.", |one| {
                one.waiting
            }),
        ];
        for (name, help, reading) in readings {
            self.family(name, "gauge", help);
            for backend in backends {
                self.sample(name, &[("backend", &*backend.name)], reading(backend) as f64);
            }
        }
    }

    fn network(&mut self, totals: &NetworkTotals) {
        let name = "network_requests_total";
        self.family(
            name,
            "counter",
            "Requests of commands through the proxy, by what became of them.",
        );
        let passed = totals.requests.saturating_sub(totals.refused + totals.failed);
        for (end, requests) in
            [("passed", passed), ("refused", totals.refused), ("failed", totals.failed)]
        {
            self.sample(name, &[("end", end)], requests as f64);
        }
        let name = "network_bytes_total";
        self.family(name, "counter", "Bytes of commands through the proxy.");
        for (way, bytes) in [("sent", totals.bytes_sent), ("received", totals.bytes_received)] {
            self.sample(name, &[("way", way)], bytes as f64);
        }
        let help = "Connections of commands to the proxy.";
        self.gauge("network_connections", help, totals.connections);
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value as f64);
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// One sample for each field of a struct of counts, but for their sum.
    fn by_state(&mut self, name: &str, help: &str, counts: serde_json::Result<Value>) {
        self.family(name, "gauge", help);
        let Ok(Value::Object(counts)) = counts else { return };
        for (state, count) in counts.iter().filter(|(state, _)| *state != "total") {
            self.sample(name, &[("state", state)], count.as_f64().unwrap_or(0.0));
        }
    }

    /// A distribution, its values divided by `unit`.
    fn histogram(&mut self, name: &str, help: &str, summary: &Summary, unit: f64) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for at in summary.buckets.iter().filter(|bucket| bucket.le.is_finite()) {
            self.sample(&bucket, &[("le", &(at.le / unit).to_string())], at.count as f64);
        }
        self.sample(&bucket, &[("le", "+Inf")], summary.count as f64);
        self.sample(&format!("{name}_sum"), &[], summary.sum / unit);
        self.sample(&format!("{name}_count"), &[], summary.count as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::executor::{Bucket, IdleHolder, LaneStats};
    use crate::tool::Outcome;

    /// One line of samples: its name, its labels, its value.
    type Sample = (String, BTreeMap<String, String>, f64);

    fn is_name(name: &str) -> bool {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name.chars().all(fits) && name.starts_with(|c: char| !c.is_ascii_digit())
    }

    /// Reads `name{label="value",…} 1.5`, and nothing but that.
    fn sample(line: &str) -> Sample {
        let end = line.find(['{', ' ']).unwrap();
        let (name, mut rest) = line.split_at(end);
        assert!(is_name(name), "{line}");
        let mut labels = BTreeMap::new();
        while let Some(after) = rest.strip_prefix(['{', ',']) {
            let (label, after) = after.split_once("=\"").unwrap();
            assert!(is_name(label), "{line}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap() {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c @ ('"' | '\\') => c,
                        c => panic!("an escape of {c:?}: {line}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = &after[end + 1..];
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
        }
        let value = rest.strip_prefix(' ').unwrap();
        (name.to_owned(), labels, value.parse().unwrap())
    }

    /// Reads the whole text by the rules of the format: families with help and type, in one piece
    /// and once; no series twice; histograms that add up.
    fn strictly(text: &str) -> Vec<Sample> {
        assert!(text.ends_with('\n'));
        let mut lines = text.lines().peekable();
        let (mut families, mut series, mut samples) = (BTreeSet::new(), BTreeSet::new(), vec![]);
        while let Some(line) = lines.next() {
            let (name, help) = line.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty() && families.insert(name.to_owned()));
            let kind = lines.next().unwrap().strip_prefix("# TYPE ").unwrap();
            let kind = kind.strip_prefix(name).unwrap().trim_start();
            let mut of_family = vec![];
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (sample_name, labels, value) = sample(line);
                let suffix = sample_name.strip_prefix(name).unwrap();
                assert!(series.insert((sample_name.clone(), labels.clone())), "twice: {line}");
                assert!(value.is_finite() && value >= 0.0, "{line}");
                let suffixes: &[&str] = match kind {
                    "histogram" => &["_bucket", "_sum", "_count"],
                    "counter" | "gauge" => &[""],
                    other => panic!("{other}"),
                };
                assert!(suffixes.contains(&suffix), "{line}");
                of_family.push((suffix.to_owned(), labels, value));
                samples.push(sample(line));
            }
            if kind == "histogram" {
                let buckets: Vec<(f64, f64)> = of_family
                    .iter()
                    .filter(|(suffix, ..)| suffix == "_bucket")
                    .map(|(_, labels, value)| {
                        (labels["le"].replace("+Inf", "inf").parse().unwrap(), *value)
                    })
                    .collect();
                assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name}");
                let (last, all) = *buckets.last().unwrap();
                let count = of_family.iter().find(|(suffix, ..)| suffix == "_count").unwrap().2;
                assert!(last.is_infinite() && all == count, "{name}");
                assert!(of_family.iter().any(|(suffix, ..)| suffix == "_sum"), "{name}");
            }
        }
        samples
    }

    #[test]
    fn the_text_is_what_prometheus_reads_whatever_tools_are_called() {
        let mut stats = Stats { queue_size: 7, ..Stats::default() };
        let odd = "a \"b\"\\n\n{é}=,";
        stats.tools.entry(odd.into()).or_default().add(Outcome::Timeout);
        stats.tools.entry("bash".into()).or_default().add(Outcome::Ok);
        stats.begins.add(Outcome::SpecUnsupported);
        stats.idle_slots = 2;
        let holder = |trajectory_id: &str, idle_s| {
            let trajectory_id = trajectory_id.to_owned();
            IdleHolder { trajectory_id, idle_s }
        };
        stats.idle_holders = vec![holder("a", 12.5), holder("b", 3.0)];
        stats.stalled_s = Some(2.25);
        let lane = |held| LaneStats { addr: "http://[::1]:8080".into(), held, ..lane() };
        stats.lanes = vec![lane(1), lane(2)];
        (stats.images.hits, stats.images.waited_s) = (5, 1.5);
        stats.exec_ms = Summary {
            count: 3,
            sum: 4500.0,
            buckets: [(5.0, 1), (2500.0, 2), (f64::INFINITY, 3)]
                .map(|(le, count)| Bucket { le, count })
                .into(),
            ..Summary::default()
        };
        let samples = strictly(&text(&stats, 3));
        let value = |name: &str, labels: &[(&str, &str)]| {
            let labels: BTreeMap<String, String> =
                labels.iter().map(|(label, value)| ((*label).into(), (*value).into())).collect();
            let name = format!("tool_executor_{name}");
            let found = samples.iter().find(|sample| sample.0 == name && sample.1 == labels);
            found.map(|sample| sample.2)
        };
        assert_eq!(value("queue_size", &[]), Some(7.0));
        assert_eq!(value("begins_total", &[("outcome", "spec_unsupported")]), Some(1.0));
        assert_eq!(value("http_connections", &[]), Some(3.0));
        assert_eq!(value("idle_slots", &[]), Some(2.0));
        assert_eq!(value("idle_longest_seconds", &[]), Some(12.5));
        assert_eq!(value("stalled_seconds", &[]), Some(2.25));
        assert_eq!(value("calls_total", &[("tool", odd), ("outcome", "timeout")]), Some(1.0));
        let second = [("lane", "1"), ("container", "http://[::1]:8080")];
        assert_eq!(value("lane_slots_held", &second), Some(2.0));
        assert_eq!(value("lane_disk_full", &second), Some(0.0));
        assert_eq!(value("image_begins_total", &[("placed", "hit")]), Some(5.0));
        assert_eq!(value("image_wait_seconds_total", &[]), Some(1.5));
        assert_eq!(value("slots", &[("state", "held")]), Some(0.0));
        assert_eq!(value("execution_seconds_bucket", &[("le", "0.005")]), Some(1.0));
        assert_eq!(value("execution_seconds_bucket", &[("le", "2.5")]), Some(2.0));
        assert_eq!(value("execution_seconds_bucket", &[("le", "+Inf")]), Some(3.0));
        assert_eq!(value("execution_seconds_sum", &[]), Some(4.5));
    }

    fn lane() -> LaneStats {
        LaneStats::default()
    }
}
