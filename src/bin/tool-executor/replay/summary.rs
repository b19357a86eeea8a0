//! The numbers of a run and how they are shown at its end. Knows no clock and no files.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Map, Value};
use tool_executor::stats::OutcomeCounts;
use tool_executor::{Outcome, Timing};

use super::compare::Agreement;
use super::output::Finished;
use super::reading::Seen;
use super::shared_setup::Saved;
use super::trajectory::Trajectory;

/// What has happened so far.
#[derive(Debug)]
pub(crate) struct Summary {
    /// Trajectories that ended, whole or not.
    pub(crate) trajectories: u64,
    /// Trajectories whose setup failed, so that their calls did not run.
    pub(crate) setup_failed: u64,
    /// Trajectories that were cut short by an interruption.
    pub(crate) cut_short: u64,
    /// Lines whose id was taken, so that they ran under another one.
    pub(crate) renamed: u64,
    /// Lines of the input that are no trajectory.
    pub(crate) malformed_lines: u64,
    /// Calls that the executor answered, setup included.
    pub(crate) answered: u64,
    /// How many calls were read from each form.
    forms: BTreeMap<&'static str, u64>,
    /// Calls in which something was mended when they were read.
    repaired: u64,
    /// Calls that could not be read.
    unreadable: u64,
    /// Calls that could not be read and were left out.
    skipped: u64,
    /// Lines of the input with a chat in which no call was found.
    pub(crate) without_call: u64,
    /// What models wrote in those.
    pub(crate) seen: Seen,
    setup_calls: u64,
    outcomes: [u64; Outcome::ALL.len()],
    latencies: Latencies,
    /// The agreement with the recording, where it was asked for.
    pub(crate) agreement: Option<Agreement>,
    /// What sharing setups has saved, where it was asked for.
    pub(crate) shared: Option<Saved>,
    /// Trajectories that were to begin with a spec, by how that ended.
    pub(crate) begins: OutcomeCounts,
}

impl Summary {
    /// Nothing has happened yet.
    pub(crate) fn new(compare: bool) -> Self {
        Self {
            trajectories: 0,
            setup_failed: 0,
            cut_short: 0,
            renamed: 0,
            malformed_lines: 0,
            answered: 0,
            forms: BTreeMap::new(),
            repaired: 0,
            unreadable: 0,
            skipped: 0,
            without_call: 0,
            seen: Seen::default(),
            setup_calls: 0,
            outcomes: [0; Outcome::ALL.len()],
            latencies: Latencies::new(),
            agreement: compare.then(Agreement::default),
            shared: None,
            begins: OutcomeCounts::default(),
        }
    }

    /// Counts what was read of a trajectory that comes from the input.
    pub(crate) fn taken(&mut self, trajectory: &Trajectory) {
        let Trajectory { seen, steps, repetition, .. } = trajectory;
        self.skipped += seen.skipped;
        let has_call = steps.iter().any(|step| !step.setup);
        if *repetition == 1 && !has_call && seen.model_messages > 0 {
            self.without_call += 1;
            self.seen.add(seen);
        }
    }

    /// Counts one call.
    pub(crate) fn add(&mut self, call: &Finished<'_>) {
        self.outcomes[call.result.outcome as usize] += 1;
        self.setup_calls += u64::from(call.step.setup);
        if let Some(origin) = &call.step.call.origin {
            *self.forms.entry(origin.form.as_str()).or_default() += 1;
            self.repaired += u64::from(!origin.repairs.is_empty());
            self.unreadable += u64::from(origin.unreadable.is_some());
        }
        if call.submitted {
            self.answered += 1;
            self.latencies.add(call.result.timing);
        }
    }

    /// Calls that have a result or never ran, setup included.
    pub(crate) fn calls(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Calls whose tool did not do what it was asked to do, for whatever reason.
    pub(crate) fn failed(&self) -> u64 {
        self.calls() - self.outcomes[Outcome::Ok as usize]
    }

    /// Calls that got no result of their tool.
    pub(crate) fn without_result(&self) -> u64 {
        let outcomes = Outcome::ALL.iter().zip(self.outcomes);
        outcomes.filter(|(outcome, _)| !outcome.model_attributable()).map(|(_, count)| count).sum()
    }

    /// The summary as `docs/results.md` describes it.
    pub(crate) fn described<'a>(&'a self, run: &'a Run<'a>) -> Described<'a> {
        let outcomes = Outcome::ALL.iter().zip(self.outcomes);
        let outcomes = outcomes.map(|(outcome, count)| (outcome.to_string(), count.into()));
        Described {
            input: run.input,
            exit_code: run.exit_code,
            interrupted: run.interrupted,
            problem: run.problem,
            wall_s: run.wall.as_secs_f64(),
            calls_per_s: self.calls_per_s(run.wall),
            trajectories: Trajectories {
                ended: self.trajectories,
                setup_failed: self.setup_failed,
                cut_short: self.cut_short,
                renamed: self.renamed,
            },
            malformed_lines: self.malformed_lines,
            calls: Calls {
                total: self.calls(),
                setup: self.setup_calls,
                answered: self.answered,
                failed: self.failed(),
                model_attributable: self.calls() - self.without_result(),
                without_result: self.without_result(),
                repaired: self.repaired,
                unreadable: self.unreadable,
                skipped: self.skipped,
            },
            forms: &self.forms,
            outcomes: outcomes.collect(),
            begins: self.begins,
            latency_ms: LatencyMs {
                queue: QuantilesMs::of(&self.latencies.queue),
                slot: QuantilesMs::of(&self.latencies.slot),
                exec: QuantilesMs::of(&self.latencies.exec),
                total: QuantilesMs::of(&self.latencies.total),
            },
            agreement: self.agreement.as_ref(),
            shared_setup: self.shared.map(|saved| SharedSetup {
                setups: saved.setups,
                trajectories: saved.trajectories,
                calls: saved.calls,
                saved_s: saved.time.as_secs_f64(),
            }),
        }
    }

    fn calls_per_s(&self, wall: Duration) -> f64 {
        let seconds = wall.as_secs_f64();
        if seconds > 0.0 { self.answered as f64 / seconds } else { 0.0 }
    }

    /// The summary as shown at the end of a run that took `wall`.
    pub(crate) fn text(&self, wall: Duration, interrupted: bool) -> String {
        use fmt::Write;

        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, wall, interrupted);
        if interrupted {
            let _ = writeln!(text, "interrupted   the numbers are those of a part of the input");
        }
        text
    }

    fn write(&self, f: &mut String, wall: Duration, interrupted: bool) -> fmt::Result {
        use fmt::Write;

        write!(f, "trajectories  {}", self.trajectories)?;
        if self.setup_failed > 0 {
            write!(f, ", {} with a failed setup", self.setup_failed)?;
        }
        if interrupted {
            write!(f, ", {} cut short", self.cut_short)?;
        }
        if self.renamed > 0 {
            write!(f, "; {} lines with an id that was taken", self.renamed)?;
        }
        if self.malformed_lines > 0 {
            write!(f, "; {} malformed lines", self.malformed_lines)?;
        }
        write!(f, "\ncalls         {}", self.calls())?;
        if self.setup_calls > 0 {
            write!(f, " ({} of them setup)", self.setup_calls)?;
        }
        let outcomes = Outcome::ALL.iter().zip(self.outcomes).filter(|(_, count)| *count > 0);
        let outcomes: Vec<_> = outcomes.map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(f)?;
        if !self.forms.is_empty() || self.skipped > 0 {
            let forms: Vec<_> =
                self.forms.iter().map(|(form, count)| format!("{form} {count}")).collect();
            let forms = if forms.is_empty() { "none".to_owned() } else { forms.join(" · ") };
            write!(f, "read from     {forms}")?;
            for (count, what) in [
                (self.repaired, "repaired"),
                (self.unreadable, "not readable, answered as invalid"),
                (self.skipped, "not readable, skipped"),
            ] {
                if count > 0 {
                    write!(f, "; {count} {what}")?;
                }
            }
            writeln!(f)?;
        }
        if !outcomes.is_empty() {
            writeln!(f, "outcomes      {}", outcomes.join(" · "))?;
        }
        if self.begins.total() > 0 {
            let begins: Vec<_> =
                self.begins.iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(f, "begins        {}", begins.join(" · "))?;
        }
        if self.answered > 0 {
            write!(f, "{}", self.latencies)?;
        }
        if let Some(Saved { setups, trajectories, calls, time }) = self.shared {
            let seconds = time.as_secs_f64();
            writeln!(
                f,
                "shared setup  {setups} made for {trajectories} more trajectories, which saved {calls} \
                 calls and {seconds:.1} s of them"
            )?;
        }
        let (rate, seconds) = (self.calls_per_s(wall), wall.as_secs_f64());
        writeln!(f, "throughput    {rate:.1} calls/s over {seconds:.2} s")?;
        if let Some(agreement) = &self.agreement {
            write!(f, "{agreement}")?;
        }
        Ok(())
    }
}

/// What a run has to say of itself beside its numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    /// Where the input came from.
    pub(crate) input: &'a str,
    /// How the program ends.
    pub(crate) exit_code: u8,
    /// Whether a signal ended it before its end.
    pub(crate) interrupted: bool,
    /// What kept the input from being read, or the results from being written.
    pub(crate) problem: Option<&'a str>,
    /// How long it took.
    pub(crate) wall: Duration,
}

/// The summary as `docs/results.md` describes it.
#[derive(Debug, Serialize)]
pub(crate) struct Described<'a> {
    input: &'a str,
    exit_code: u8,
    interrupted: bool,
    problem: Option<&'a str>,
    wall_s: f64,
    calls_per_s: f64,
    trajectories: Trajectories,
    malformed_lines: u64,
    calls: Calls,
    forms: &'a BTreeMap<&'static str, u64>,
    outcomes: Map<String, Value>,
    begins: OutcomeCounts,
    latency_ms: LatencyMs,
    shared_setup: Option<SharedSetup>,
    agreement: Option<&'a Agreement>,
}

#[derive(Debug, Serialize)]
struct SharedSetup {
    setups: u64,
    trajectories: u64,
    calls: u64,
    saved_s: f64,
}

#[derive(Debug, Serialize)]
struct Trajectories {
    ended: u64,
    setup_failed: u64,
    cut_short: u64,
    renamed: u64,
}

#[derive(Debug, Serialize)]
struct Calls {
    total: u64,
    setup: u64,
    answered: u64,
    failed: u64,
    model_attributable: u64,
    without_result: u64,
    repaired: u64,
    unreadable: u64,
    skipped: u64,
}

#[derive(Debug, Serialize)]
struct LatencyMs {
    queue: QuantilesMs,
    slot: QuantilesMs,
    exec: QuantilesMs,
    total: QuantilesMs,
}

#[derive(Debug, Serialize)]
struct QuantilesMs {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl QuantilesMs {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: histogram.max() as f64 / 1000.0 }
    }
}

/// Where the calls' time went: bounded memory, three significant digits, up to an hour.
#[derive(Debug)]
struct Latencies {
    queue: Histogram<u64>,
    slot: Histogram<u64>,
    exec: Histogram<u64>,
    total: Histogram<u64>,
}

impl Latencies {
    fn new() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, 3_600_000_000, 3)
                .expect("constant bounds that the histogram accepts")
        };
        Self { queue: histogram(), slot: histogram(), exec: histogram(), total: histogram() }
    }

    fn add(&mut self, timing: Timing) {
        for (histogram, time) in [
            (&mut self.queue, timing.queue),
            (&mut self.slot, timing.slot),
            (&mut self.exec, timing.exec),
            (&mut self.total, timing.total()),
        ] {
            histogram.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "latency, ms {:>11} {:>11} {:>11} {:>11}", "p50", "p90", "p99", "max")?;
        for (name, histogram) in [
            ("queue", &self.queue),
            ("slot", &self.slot),
            ("execution", &self.exec),
            ("total", &self.total),
        ] {
            let QuantilesMs { p50, p90, p99, max } = QuantilesMs::of(histogram);
            writeln!(f, "  {name:<10}{p50:>11.2} {p90:>11.2} {p99:>11.2} {max:>11.2}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tool_executor::format::Format;
    use tool_executor::{ToolCall, ToolResult};

    use super::*;
    use crate::replay::compare::{ExitMatch, Match, OutputMatch};
    use crate::replay::documented;
    use crate::replay::step::{Recorded, Step};

    fn add(summary: &mut Summary, setup: bool, submitted: bool, result: &ToolResult) {
        let call = ToolCall::bash("true");
        let step = Step { call, put: None, index: 0, setup, recorded: Recorded::default() };
        let trajectory = &Trajectory::for_test("t");
        let call = Finished { trajectory, step: &step, uniq_id: "u", result, submitted };
        summary.add(&call);
    }

    #[test]
    fn the_summary_tells_the_whole_run() {
        let mut summary = Summary::new(true);
        let mut ok = ToolResult::ok("");
        for ms in 1..=100 {
            ok.timing.exec = Duration::from_millis(ms);
            ok.timing.slot = Duration::from_secs(1);
            add(&mut summary, ms == 1, true, &ok);
        }
        add(&mut summary, false, true, &ToolResult::failure(Outcome::NonZeroExit, ""));
        add(&mut summary, false, false, &ToolResult::failure(Outcome::NeverRan, ""));
        summary.trajectories = 2;
        summary.setup_failed = 1;
        summary.malformed_lines = 3;
        summary.renamed = 4;
        assert_eq!((summary.calls(), summary.failed(), summary.without_result()), (102, 2, 1));

        let text = summary.text(Duration::from_secs(2), false);
        assert!(text.contains(
            "trajectories  2, 1 with a failed setup; 4 lines with an id that was taken; "
        ));
        assert!(text.contains("; 3 malformed lines\n"));
        assert!(text.contains("calls         102 (1 of them setup)\n"));
        assert!(text.contains("outcomes      ok 100 · non_zero_exit 1 · never_ran 1\n"));
        assert!(text.contains("throughput    50.5 calls/s over 2.00 s\n"), "{text}");
        let exec = text.lines().find(|line| line.starts_with("  execution")).unwrap();
        let numbers: Vec<f64> =
            exec.split_whitespace().skip(1).map(|number| number.parse().unwrap()).collect();
        for (number, expected) in numbers.iter().zip([50.0, 90.0, 99.0, 100.0]) {
            assert!((number - expected).abs() <= 1.0, "{exec}");
        }
        assert!(text.contains("exit codes    agree 0"));
        assert!(!text.contains("interrupted"));
    }

    #[test]
    fn the_summary_for_programs_has_the_documented_fields_in_their_order() {
        let mut summary = Summary::new(true);
        add(&mut summary, true, true, &ToolResult::ok(""));
        add(&mut summary, false, false, &ToolResult::failure(Outcome::NeverRan, ""));
        if let Some(agreement) = &mut summary.agreement {
            let found = Match { output: OutputMatch::Differ, exit_code: ExitMatch::Agree };
            agreement.add("t", 0, found);
        }
        summary.shared = Some(Saved::default());
        let wall = Duration::from_secs(2);
        let run = Run { input: "-", exit_code: 1, interrupted: false, problem: None, wall };
        let described = serde_json::to_value(summary.described(&run)).unwrap();
        documented::check("The object of `--summary-json`", &described);
        assert_eq!(described["calls"]["model_attributable"], 1);
        assert_eq!(
            (&described["outcomes"]["never_ran"], &described["calls_per_s"]),
            (&1.into(), &0.5.into())
        );
        let expected = serde_json::json!([{"trajectory_id": "t", "index": 0, "what": "output"}]);
        assert_eq!(described["agreement"]["differing"], expected);
    }

    #[test]
    fn the_summary_says_what_was_read_from_which_form() {
        let mut summary = Summary::new(false);
        let text = "<tool_call>{\"name\": \"bash\", \"arguments\": {\"command\": \"ls\",}}</tool_call>\
            <tool_call>{bash}</tool_call>[TOOL_CALLS]bash[ARGS]{}";
        for call in ToolCall::parse(text, Format::Auto) {
            let step =
                Step { call, put: None, index: 0, setup: false, recorded: Recorded::default() };
            let (trajectory, result) = (Trajectory::for_test("t"), ToolResult::ok(""));
            summary.add(&Finished {
                trajectory: &trajectory,
                step: &step,
                uniq_id: "u",
                result: &result,
                submitted: true,
            });
        }
        let text = summary.text(Duration::from_secs(1), false);
        let told =
            "read from     hermes 2 · mistral 1; 1 repaired; 1 not readable, answered as invalid\n";
        assert!(text.contains(told), "{text}");
    }

    #[test]
    fn a_run_without_a_call_has_no_latencies_and_divides_by_nothing() {
        let text = Summary::new(false).text(Duration::ZERO, true);
        assert!(!text.contains("p50"));
        assert!(text.contains("0.0 calls/s"));
        assert!(text.contains("interrupted"));
    }

    #[test]
    fn a_latency_beyond_the_histogram_is_kept_at_its_end() {
        let mut summary = Summary::new(false);
        let mut result = ToolResult::ok("");
        result.timing.queue = Duration::MAX / 4;
        add(&mut summary, false, true, &result);
        assert!(summary.text(Duration::from_secs(1), false).contains("queue"));
    }
}
