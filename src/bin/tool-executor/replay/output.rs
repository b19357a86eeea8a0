//! A line of the results file of `--out`: one call. `docs/results.md` describes it for its
//! readers.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tool_executor::{JsonObject, Timing, ToolResult};

use super::compare::Match;
use super::step::Step;
use super::trajectory::Trajectory;

/// One call that ended, as all observers of a run see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished<'a> {
    /// Whose call.
    pub(crate) trajectory: &'a Trajectory,
    /// The recorded call.
    pub(crate) step: &'a Step,
    /// The id under which it was submitted.
    pub(crate) uniq_id: &'a str,
    /// What it gave.
    pub(crate) result: &'a ToolResult,
    /// Whether the executor ran it, or it was never handed over.
    pub(crate) submitted: bool,
}

/// A line.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    trajectory_id: &'a str,
    task_id: &'a str,
    repetition: u32,
    setup: bool,
    index: usize,
    name: &'a str,
    arguments: &'a Value,
    uniq_id: &'a str,
    form: Option<&'static str>,
    repairs: Vec<&'static str>,
    success: bool,
    outcome: &'static str,
    model_attributable: bool,
    may_have_executed: bool,
    output: &'a str,
    error: &'a str,
    metadata: &'a JsonObject,
    latency_ms: f64,
    timing_ms: TimingMs,
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

impl<'a> Line<'a> {
    /// The line of a call.
    pub(super) fn new(call: &Finished<'a>, compared: Option<Match>) -> Self {
        let Finished { trajectory, step, uniq_id, result, .. } = *call;
        let origin = step.call.origin.as_deref();
        let repairs = origin.map_or(&[][..], |origin| &origin.repairs);
        Self {
            trajectory_id: &trajectory.id,
            task_id: &trajectory.task_id,
            repetition: trajectory.repetition,
            setup: step.setup,
            index: step.index,
            name: &step.call.name,
            arguments: &step.call.arguments,
            uniq_id,
            form: origin.map(|origin| origin.form.as_str()),
            repairs: repairs.iter().map(|repair| repair.as_str()).collect(),
            success: result.success,
            outcome: result.outcome.as_str(),
            model_attributable: result.model_attributable(),
            may_have_executed: result.may_have_executed,
            output: &result.output,
            error: &result.error,
            metadata: &result.metadata,
            latency_ms: ms(result.timing.total()),
            timing_ms: result.timing.into(),
            compared: compared.map(|found| Compared {
                output: found.output.as_str(),
                exit_code: found.exit_code.as_str(),
            }),
        }
    }
}

/// Milliseconds, to the microsecond.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tool_executor::{Outcome, ToolCall};

    use super::*;
    use crate::replay::compare::{ExitMatch, OutputMatch};
    use crate::replay::documented;
    use crate::replay::step::Recorded;

    fn line(setup: bool, result: &ToolResult, compared: Option<Match>) -> Value {
        let call = ToolCall::bash("true").with_uniq_id("u");
        let step = Step { call, put: None, index: 3, setup, recorded: Recorded::default() };
        let trajectory = Trajectory { repetition: 2, ..Trajectory::for_test("t") };
        let call = Finished {
            trajectory: &trajectory,
            step: &step,
            uniq_id: "u2",
            result,
            submitted: true,
        };
        serde_json::to_value(Line::new(&call, compared)).unwrap()
    }

    #[test]
    fn a_line_has_the_documented_fields_in_their_order() {
        let mut result = ToolResult::ok("h\u{e9}\n");
        result.timing.queue = Duration::from_micros(1500);
        result.timing.exec = Duration::from_millis(2);
        let compared = Match { output: OutputMatch::Exact, exit_code: ExitMatch::Na };
        let line = line(false, &result, Some(compared));
        documented::check("A line of `--out`", &line);
        assert_eq!(line["latency_ms"], 3.5);
        assert_eq!((&line["uniq_id"], &line["repetition"]), (&json!("u2"), &json!(2)));
        assert_eq!(line["arguments"], json!({"command": "true"}));
        assert_eq!(line["compared"], json!({"output": "exact", "exit_code": "na"}));
    }

    #[test]
    fn what_was_not_compared_has_no_comparison() {
        let line = line(true, &ToolResult::ok(""), None);
        assert_eq!((&line["setup"], line.get("compared")), (&json!(true), None));
    }

    #[test]
    fn what_the_infrastructure_did_is_not_the_models() {
        for (outcome, is_models) in
            [(Outcome::Timeout, true), (Outcome::SandboxLost, false), (Outcome::NeverRan, false)]
        {
            let line = line(false, &ToolResult::failure(outcome, ""), None);
            assert_eq!(line["model_attributable"], is_models, "{outcome}");
        }
    }
}
