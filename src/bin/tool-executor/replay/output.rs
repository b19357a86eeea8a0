//! The results file of `--out`: one JSON line per call, in the order of completion.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tool_executor::JsonObject;
use tool_executor::{Timing, ToolResult};

use super::compare::Match;
use super::trajectory::Step;

/// One call that ended, as all observers of a run see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished<'a> {
    /// Whose call.
    pub(crate) trajectory_id: &'a str,
    /// The recorded call.
    pub(crate) step: &'a Step,
    /// The id under which it was submitted.
    pub(crate) uniq_id: &'a str,
    /// What it gave.
    pub(crate) result: &'a ToolResult,
    /// Whether the executor ran it, or it was never handed over.
    pub(crate) submitted: bool,
}

/// A line. The first ten fields are what a reader may rely on.
#[derive(Serialize)]
struct Line<'a> {
    trajectory_id: &'a str,
    index: usize,
    name: &'a str,
    uniq_id: &'a str,
    success: bool,
    outcome: &'static str,
    output: &'a str,
    error: &'a str,
    metadata: &'a JsonObject,
    latency_ms: f64,
    timing_ms: TimingMs,
    may_have_executed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    setup: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    compared: Option<Compared>,
}

/// Where `latency_ms` went.
#[derive(Serialize)]
struct TimingMs {
    queue: f64,
    slot: f64,
    exec: f64,
}

impl From<Timing> for TimingMs {
    fn from(timing: Timing) -> Self {
        Self { queue: ms(timing.queue), slot: ms(timing.slot), exec: ms(timing.exec) }
    }
}

#[derive(Serialize)]
struct Compared {
    output: &'static str,
    exit_code: &'static str,
}

/// The file.
pub(crate) struct ResultsFile {
    file: BufWriter<Box<dyn Write>>,
}

impl ResultsFile {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// Those of creating a file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self::over(Box::new(File::create(path)?)))
    }

    fn over(file: Box<dyn Write>) -> Self {
        Self { file: BufWriter::with_capacity(1 << 16, file) }
    }

    /// Writes a call's line. It may stay in memory until [`flush`](Self::flush).
    ///
    /// # Errors
    /// Those of writing: the disk is full, the reader is gone, ….
    pub(crate) fn write(&mut self, call: &Finished<'_>, compared: Option<Match>) -> io::Result<()> {
        let line = Line {
            trajectory_id: call.trajectory_id,
            index: call.step.index,
            name: &call.step.call.name,
            uniq_id: call.uniq_id,
            success: call.result.success,
            outcome: call.result.outcome.as_str(),
            output: &call.result.output,
            error: &call.result.error,
            metadata: &call.result.metadata,
            latency_ms: ms(call.result.timing.total()),
            timing_ms: call.result.timing.into(),
            may_have_executed: call.result.may_have_executed,
            setup: call.step.setup,
            compared: compared.map(|found| Compared {
                output: found.output.as_str(),
                exit_code: found.exit_code.as_str(),
            }),
        };
        serde_json::to_writer(&mut self.file, &line)?;
        self.file.write_all(b"\n")
    }

    /// Hands everything written to the operating system.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Milliseconds, to the microsecond.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tool_executor::ToolCall;

    use super::*;
    use crate::replay::compare::{ExitMatch, OutputMatch};
    use crate::replay::trajectory::Recorded;

    fn step(setup: bool) -> Step {
        let call = ToolCall::bash("true").with_uniq_id("u");
        Step { call, index: 3, setup, recorded: Recorded::default() }
    }

    #[test]
    fn a_line_has_the_promised_fields_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.jsonl");
        let mut result = ToolResult::ok("h\u{e9}\n");
        result.timing.queue = Duration::from_micros(1500);
        result.timing.exec = Duration::from_millis(2);
        let mut results = ResultsFile::create(&path).unwrap();
        for setup in [false, true] {
            let step = step(setup);
            let call = Finished {
                trajectory_id: "t",
                step: &step,
                uniq_id: "u2",
                result: &result,
                submitted: true,
            };
            let compared = Match { output: OutputMatch::Exact, exit_code: ExitMatch::Na };
            results.write(&call, (!setup).then_some(compared)).unwrap();
        }
        results.flush().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let keys: Vec<_> = lines[0].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "trajectory_id",
                "index",
                "name",
                "uniq_id",
                "success",
                "outcome",
                "output",
                "error",
                "metadata",
                "latency_ms",
                "timing_ms",
                "may_have_executed",
                "compared"
            ]
        );
        assert_eq!(lines[0]["latency_ms"], 3.5);
        assert_eq!(lines[0]["uniq_id"], "u2");
        assert_eq!(lines[0]["compared"], json!({"output": "exact", "exit_code": "na"}));
        assert_eq!(lines[1]["setup"], true);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut results = ResultsFile::create(Path::new("/dev/full")).unwrap();
        let (step, result) = (step(false), ToolResult::ok(""));
        let call = Finished {
            trajectory_id: "t",
            step: &step,
            uniq_id: "u",
            result: &result,
            submitted: true,
        };
        let error = results.write(&call, None).and_then(|()| results.flush()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
