//! Agreement of a run with its recording. Pure.
//!
//! A recording was made on another machine by another harness, so exact equality is not all there
//! is to say: the categories tell how far an output agrees.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};
use tool_executor::{Outcome, ToolResult};

use super::progress::printable;
use super::step::Recorded;

/// Differences that are kept to be shown.
const SHOWN: usize = 10;

/// How an output compares with the recorded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputMatch {
    /// Byte for byte the same; for a recording that was cut, up to the cut.
    Exact,
    /// The same without the white space at both ends.
    Trimmed,
    /// The same lines in another order, as directory listings have.
    Sorted,
    /// The same lines apart from order, blank lines, the marker between standard output and
    /// standard error, and the style of quotation marks.
    Near,
    /// Something else.
    Differ,
    /// Nothing to compare: no output was recorded, the call gave no result of its tool, or the
    /// output is a confirmation whose wording is the recorder's own (`write_file`).
    Na,
}

impl OutputMatch {
    const ALL: [OutputMatch; 6] =
        [Self::Exact, Self::Trimmed, Self::Sorted, Self::Near, Self::Differ, Self::Na];

    /// The category's name in the results.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Trimmed => "trimmed",
            Self::Sorted => "sorted",
            Self::Near => "near",
            Self::Differ => "differ",
            Self::Na => "na",
        }
    }
}

/// How an exit code compares with the recorded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitMatch {
    /// The same.
    Agree,
    /// Another one, or none (the command was killed).
    Differ,
    /// None was recorded, or the call gave no result of its tool.
    Na,
}

impl ExitMatch {
    const ALL: [ExitMatch; 3] = [Self::Agree, Self::Differ, Self::Na];

    /// The category's name in the results.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Agree => "agree",
            Self::Differ => "differ",
            Self::Na => "na",
        }
    }
}

/// How a call's result compares with its recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) output: OutputMatch,
    pub(crate) exit_code: ExitMatch,
}

/// Compares one result of the tool `name` with its recording.
pub(crate) fn compare(name: &str, recorded: &Recorded, result: &ToolResult) -> Match {
    if !result.outcome.model_attributable() {
        return Match { output: OutputMatch::Na, exit_code: ExitMatch::Na };
    }
    let output = match &recorded.output {
        None => OutputMatch::Na,
        Some(text) => match compare_result(text, recorded.truncated, result) {
            OutputMatch::Exact => OutputMatch::Exact,
            _ if name == "write_file" && result.success => OutputMatch::Na,
            other => other,
        },
    };
    Match { output, exit_code: compare_exit(recorded.exit_code, result) }
}

fn compare_exit(recorded: Option<i64>, result: &ToolResult) -> ExitMatch {
    let Some(recorded) = recorded else { return ExitMatch::Na };
    let ours = result.metadata.get("exit_code").and_then(Value::as_i64);
    let agree = match ours {
        // A killed command has no exit code of its own, whatever stands in its metadata.
        Some(code) => code == recorded && result.outcome != Outcome::Timeout,
        // Tools that are no commands have none; recorders write 0 for their successes.
        None => (recorded == 0) == result.success,
    };
    if agree { ExitMatch::Agree } else { ExitMatch::Differ }
}

/// What an output may end with a line about, in the metadata.
const TOLD_AT_THE_END: [&str; 3] = ["ended_processes", "kept_processes", "earlier_processes_ended"];

/// A recording by another harness has no lines about processes in the background.
fn compare_result(recorded: &str, truncated: bool, result: &ToolResult) -> OutputMatch {
    let whole = compare_output(recorded, truncated, &result.output);
    let told = TOLD_AT_THE_END.into_iter().filter(|key| result.metadata.contains_key(*key)).count();
    if whole == OutputMatch::Exact || told == 0 {
        return whole;
    }
    let without_last = |text| str::rsplit_once(text, '\n').map_or("", |(printed, _note)| printed);
    let printed = (0..told).fold(&*result.output, |text, _| without_last(text));
    match compare_output(recorded, truncated, printed) {
        OutputMatch::Differ => whole,
        found => found,
    }
}

fn compare_output(recorded: &str, truncated: bool, ours: &str) -> OutputMatch {
    if truncated {
        return match ours {
            _ if ours.starts_with(recorded) => OutputMatch::Exact,
            _ if ours.trim_start().starts_with(recorded.trim()) => OutputMatch::Trimmed,
            _ => OutputMatch::Differ,
        };
    }
    if recorded == ours {
        return OutputMatch::Exact;
    }
    let (recorded, ours) = (recorded.trim(), ours.trim());
    if recorded == ours {
        return OutputMatch::Trimmed;
    }
    if sorted_lines(recorded.lines().map(str::to_owned))
        == sorted_lines(ours.lines().map(str::to_owned))
    {
        return OutputMatch::Sorted;
    }
    if sorted_lines(plain_lines(recorded)) == sorted_lines(plain_lines(ours)) {
        return OutputMatch::Near;
    }
    OutputMatch::Differ
}

fn sorted_lines(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<_> = lines.collect();
    lines.sort_unstable();
    lines
}

fn plain_lines(text: &str) -> impl Iterator<Item = String> {
    text.lines()
        .map(|line| {
            line.trim()
                .replace(['\u{2018}', '\u{2019}', '`'], "'")
                .replace(['\u{201c}', '\u{201d}'], "\"")
        })
        .filter(|line| !matches!(line.as_str(), "" | "[stderr]" | "--- stderr ---"))
}

/// The agreement of a whole run.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    outputs: [u64; OutputMatch::ALL.len()],
    exit_codes: [u64; ExitMatch::ALL.len()],
    differing: Vec<Difference>,
    not_shown: u64,
}

#[derive(Debug, Serialize)]
struct Difference {
    trajectory_id: String,
    index: usize,
    what: &'static str,
}

impl Agreement {
    /// Counts one call.
    pub(crate) fn add(&mut self, trajectory_id: &str, index: usize, found: Match) {
        self.outputs[found.output as usize] += 1;
        self.exit_codes[found.exit_code as usize] += 1;
        let what = match (found.output, found.exit_code) {
            (OutputMatch::Differ, ExitMatch::Differ) => "output and exit code",
            (OutputMatch::Differ, _) => "output",
            (_, ExitMatch::Differ) => "exit code",
            _ => return,
        };
        if self.differing.len() < SHOWN {
            self.differing.push(Difference {
                trajectory_id: trajectory_id.to_owned(),
                index,
                what,
            });
        } else {
            self.not_shown += 1;
        }
    }
}

/// As `docs/results.md` describes it.
impl Serialize for Agreement {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Described<'a> {
            outputs: Map<String, Value>,
            exit_codes: Map<String, Value>,
            differing: &'a [Difference],
            differing_not_listed: u64,
        }
        fn counts<'a>(names: impl Iterator<Item = &'a str>, counts: &[u64]) -> Map<String, Value> {
            names.zip(counts).map(|(name, count)| (name.to_owned(), (*count).into())).collect()
        }
        Described {
            outputs: counts(OutputMatch::ALL.iter().map(|found| found.as_str()), &self.outputs),
            exit_codes: counts(ExitMatch::ALL.iter().map(|found| found.as_str()), &self.exit_codes),
            differing: &self.differing,
            differing_not_listed: self.not_shown,
        }
        .serialize(serializer)
    }
}

impl fmt::Display for Agreement {
    /// Whole lines, each with its line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outputs = self.outputs.iter().zip(OutputMatch::ALL.map(OutputMatch::as_str));
        let outputs: Vec<_> = outputs.map(|(count, name)| format!("{name} {count}")).collect();
        writeln!(f, "outputs       {}", outputs.join(" · "))?;
        let exits = self.exit_codes.iter().zip(ExitMatch::ALL.map(ExitMatch::as_str));
        let exits: Vec<_> = exits.map(|(count, name)| format!("{name} {count}")).collect();
        writeln!(f, "exit codes    {}", exits.join(" · "))?;
        for difference in &self.differing {
            let Difference { trajectory_id, index, what } = difference;
            let trajectory_id = printable(trajectory_id);
            writeln!(f, "  differs     {trajectory_id} call {index}: {what}")?;
        }
        if self.not_shown > 0 {
            writeln!(f, "  differs     … and {} more", self.not_shown)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(output: &str) -> Recorded {
        Recorded { output: Some(output.to_owned()), ..Recorded::default() }
    }

    fn exited(code: i64) -> ToolResult {
        let mut result = match code {
            0 => ToolResult::ok(""),
            _ => ToolResult::failure(Outcome::NonZeroExit, ""),
        };
        result.metadata.insert("exit_code".to_owned(), code.into());
        result
    }

    #[test]
    fn outputs_fall_into_the_closest_category() {
        for (theirs, ours, category) in [
            ("a\nb", "a\nb", OutputMatch::Exact),
            ("a\nb\n", "a\nb", OutputMatch::Trimmed),
            ("", " \n", OutputMatch::Trimmed),
            ("b\na\n", "a\nb", OutputMatch::Sorted),
            ("out\nerr\n", "out\n\n[stderr]\nerr", OutputMatch::Near),
            ("rm: \u{2018}x\u{2019}: no", "rm: 'x': no", OutputMatch::Near),
            ("a\na", "a", OutputMatch::Differ),
            ("1", "2", OutputMatch::Differ),
        ] {
            let found = compare("bash", &recorded(theirs), &ToolResult::ok(ours));
            assert_eq!(found.output, category, "{theirs:?} {ours:?}");
        }
    }

    #[test]
    fn the_line_about_ended_processes_is_no_difference() {
        let note = "[1 background process was ended with this call: sleep]";
        let result = |output: &str| {
            let mut result = ToolResult::ok(output);
            let ended = serde_json::json!({"count": 1, "names": ["sleep"]});
            result.metadata.insert("ended_processes".to_owned(), ended);
            result
        };
        let with_note = format!("a\nb\n{note}");
        for (theirs, ours, category) in [
            ("a\nb", &*with_note, OutputMatch::Exact),
            (&*with_note, &*with_note, OutputMatch::Exact),
            ("a\nb\n", &*with_note, OutputMatch::Trimmed),
            ("", note, OutputMatch::Exact),
            ("a", &*with_note, OutputMatch::Differ),
        ] {
            let found = compare("bash", &recorded(theirs), &result(ours)).output;
            assert_eq!(found, category, "{theirs:?} {ours:?}");
        }
        let mut both =
            result(&format!("a\nb\n[2 background processes go on running: x, y]\n{note}"));
        both.metadata.insert("kept_processes".to_owned(), serde_json::json!({"count": 2}));
        assert_eq!(compare("bash", &recorded("a\nb"), &both).output, OutputMatch::Exact);
        let printed = ToolResult::ok(&*with_note);
        assert_eq!(compare("bash", &recorded("a\nb"), &printed).output, OutputMatch::Differ);
    }

    #[test]
    fn a_recording_that_was_cut_is_compared_up_to_the_cut() {
        let cut = |text: &str| Recorded { truncated: true, ..recorded(text) };
        let ours = ToolResult::ok("h\u{e9}llo world");
        assert_eq!(compare("bash", &cut("h\u{e9}llo w"), &ours).output, OutputMatch::Exact);
        assert_eq!(compare("bash", &cut("\nh\u{e9}llo \n"), &ours).output, OutputMatch::Trimmed);
        assert_eq!(compare("bash", &cut("hallo"), &ours).output, OutputMatch::Differ);
    }

    #[test]
    fn nothing_is_compared_where_nothing_was_recorded_or_the_tool_gave_nothing() {
        let nothing = Match { output: OutputMatch::Na, exit_code: ExitMatch::Na };
        assert_eq!(compare("bash", &Recorded::default(), &ToolResult::ok("a")), nothing);
        let recorded = Recorded { exit_code: Some(0), ..recorded("a") };
        let lost = ToolResult::failure(Outcome::SandboxLost, "gone");
        assert_eq!(compare("bash", &recorded, &lost), nothing);
    }

    #[test]
    fn the_wording_of_a_confirmation_is_the_recorders() {
        let ours = ToolResult::ok("Successfully wrote 2 bytes to a");
        let found = |text| compare("write_file", &recorded(text), &ours).output;
        assert_eq!(found("File written."), OutputMatch::Na);
        assert_eq!(found("Successfully wrote 2 bytes to a"), OutputMatch::Exact);
    }

    #[test]
    fn exit_codes_agree_or_differ() {
        let exit = |code| Recorded { exit_code: Some(code), ..Recorded::default() };
        assert_eq!(compare("bash", &exit(1), &exited(1)).exit_code, ExitMatch::Agree);
        assert_eq!(compare("bash", &exit(1), &exited(0)).exit_code, ExitMatch::Differ);
        assert_eq!(compare("read_file", &exit(0), &ToolResult::ok("")).exit_code, ExitMatch::Agree);
        let refused = ToolResult::failure(Outcome::ToolError, "File not found: x");
        assert_eq!(compare("read_file", &exit(0), &refused).exit_code, ExitMatch::Differ);
        let mut killed = exited(-1);
        killed.outcome = Outcome::Timeout;
        assert_eq!(compare("bash", &exit(-1), &killed).exit_code, ExitMatch::Differ);
    }

    #[test]
    fn a_report_shows_the_first_differences_and_counts_the_others() {
        let mut agreement = Agreement::default();
        agreement.add("t", 0, Match { output: OutputMatch::Exact, exit_code: ExitMatch::Agree });
        for index in 1..=12 {
            let found = Match { output: OutputMatch::Differ, exit_code: ExitMatch::Differ };
            agreement.add("t", index, found);
        }
        let text = agreement.to_string();
        assert!(text.contains("exact 1 · trimmed 0 · sorted 0 · near 0 · differ 12 · na 0\n"));
        assert!(text.contains("agree 1 · differ 12 · na 0\n"));
        assert!(text.contains("t call 10: output and exit code\n"));
        assert!(!text.contains("call 11"));
        assert!(text.contains("… and 2 more"));
    }

    #[test]
    fn categories_are_indexed_by_themselves() {
        assert!(OutputMatch::ALL.iter().enumerate().all(|(i, m)| *m as usize == i));
        assert!(ExitMatch::ALL.iter().enumerate().all(|(i, m)| *m as usize == i));
    }
}
