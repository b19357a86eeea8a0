//! Everything that is told about a run, in one place: each call goes to the results file, the
//! comparison and the summary; now and then the numbers go to the display.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tool_executor::stats::OutcomeCounts;

use super::compare::compare;
use super::line_file::LineFile;
use super::output::{Finished, Line};
use super::progress::{Counts, Progress, printable};
use super::shared_setup::Saved;
use super::summary::{Run, Summary};
use super::trajectory::Trajectory;
use crate::args::ReplayArgs;
use crate::console::{is_lost, print, warn_line};
use crate::exit_code::{ExitCode, Verdict};

/// How long a line of the results may stay in memory while the run goes on.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// Malformed lines and failed setups that are told one by one, each.
const TOLD_ONE_BY_ONE: u64 = 20;

/// A file of results, with its name.
pub(crate) type Named = (PathBuf, LineFile);

/// The files that a run writes.
#[derive(Default)]
pub(crate) struct Files {
    /// A line for each call.
    pub(crate) results: Option<Named>,
    /// The summary.
    pub(crate) summary: Option<Named>,
}

/// The observers of a run.
pub(crate) struct Report {
    progress: Progress,
    input: String,
    files: Files,
    summary: Summary,
    /// What kept the input from being read to its end.
    input_problem: Option<String>,
    /// The first trajectory whose id was taken: the line, the id in the input, the one that it got.
    first_renamed: Option<(u64, String, String)>,
    /// Non-blank lines of the input, where they could be counted.
    lines: Option<u64>,
    limit: Option<u64>,
    repeat: u64,
    flush_due: Option<Instant>,
}

impl Report {
    /// Nothing has happened yet. `lines` is how many non-blank lines the input has, if known.
    pub(crate) fn new(
        progress: Progress,
        files: Files,
        args: &ReplayArgs,
        lines: Option<u64>,
    ) -> Self {
        Self {
            progress,
            input: args.file.display().to_string(),
            files,
            summary: Summary::new(args.compare),
            input_problem: None,
            first_renamed: None,
            lines,
            limit: args.limit,
            repeat: u64::from(args.repeat),
            flush_due: None,
        }
    }

    /// Tells of a call that ended.
    ///
    /// # Errors
    /// The results could not be written, in words for people.
    pub(crate) fn call(&mut self, call: &Finished<'_>) -> Result<(), String> {
        self.summary.add(call);
        let mut compared = None;
        if let Some(agreement) = self.summary.agreement.as_mut().filter(|_| !call.step.setup) {
            let found = compare(&call.step.call.name, &call.step.recorded, call.result);
            agreement.add(&call.trajectory.id, call.step.index, found);
            compared = Some(found);
        }
        if let Some((path, file)) = &mut self.files.results {
            let line = Line::new(call, compared);
            file.add(&line).map_err(|error| write_problem("results", path, &error))?;
        }
        Ok(())
    }

    /// Tells of a trajectory that comes from the input.
    pub(crate) fn taken(&mut self, trajectory: &Trajectory) {
        self.summary.taken(trajectory);
        if trajectory.renamed && trajectory.repetition == 1 {
            self.summary.renamed += 1;
            self.first_renamed.get_or_insert_with(|| {
                let Trajectory { line, task_id, id, .. } = trajectory;
                (*line, task_id.to_string(), id.to_string())
            });
        }
    }

    /// Tells that the input could not be read to its end.
    pub(crate) fn input_failed(&mut self, error: &io::Error) {
        let problem = format!("{}: {error}", self.input);
        self.say(&format!("error: {problem}"));
        self.input_problem = Some(problem);
    }

    /// Tells that no trajectory comes any more.
    pub(crate) fn input_ended(&mut self) {
        if let Some((line, task_id, id)) = self.first_renamed.take() {
            let lines = self.summary.renamed;
            self.say(&format!(
                "warning: {lines} lines have an id that was taken and run under another one: the \
                 first is line {line}, where {task_id:?} runs as {id:?}"
            ));
        }
    }

    /// Tells what sharing setups has saved so far.
    pub(crate) fn shared(&mut self, saved: Saved) {
        self.summary.shared = Some(saved);
    }

    /// Tells how many trajectories have begun with a spec, or were to.
    pub(crate) fn begins(&mut self, begins: OutcomeCounts) {
        self.summary.begins = begins;
    }

    /// Tells of a trajectory all of whose calls have ended.
    pub(crate) fn trajectory_ended(&mut self) {
        self.summary.trajectories += 1;
    }

    /// Tells of a trajectory that an interruption ended.
    pub(crate) fn cut_short(&mut self) {
        self.summary.trajectories += 1;
        self.summary.cut_short += 1;
    }

    /// Tells of a trajectory whose calls will not run.
    pub(crate) fn setup_failed(&mut self, trajectory_id: &str, why: &str) {
        self.summary.setup_failed += 1;
        let count = self.summary.setup_failed;
        self.say_some(count, &format!("warning: {trajectory_id}: {why}; its calls do not run"));
    }

    /// Tells of a line that is no trajectory.
    pub(crate) fn malformed(&mut self, line: u64, problem: &str) {
        self.summary.malformed_lines += 1;
        let count = self.summary.malformed_lines;
        self.say_some(count, &format!("error: line {line}: {problem}"));
    }

    /// A file of a million broken lines is told by its first ones and the count in the summary.
    fn say_some(&self, count: u64, text: &str) {
        if count <= TOLD_ONE_BY_ONE {
            self.say(text);
        } else if count == TOLD_ONE_BY_ONE + 1 {
            self.say("(further ones are only counted)");
        }
    }

    /// Writes a line for people to standard error.
    pub(crate) fn say(&self, text: &str) {
        self.progress.say(text);
    }

    /// To be called at every turn of the loop: shows the numbers and flushes the results when that
    /// is due.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub(crate) fn turn(&mut self, now: Instant, running: usize) -> Result<(), String> {
        if self.progress.is_due(now) {
            let counts = self.counts(running);
            self.progress.show(&counts, now);
        }
        if *self.flush_due.get_or_insert(now + FLUSH_INTERVAL) <= now {
            self.flush_due = Some(now + FLUSH_INTERVAL);
            self.flush()?;
        }
        Ok(())
    }

    /// Makes sure that all results so far are in the file.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub(crate) fn flush(&mut self) -> Result<(), String> {
        match &mut self.files.results {
            Some((path, file)) => {
                file.flush().map_err(|error| write_problem("results", path, &error))
            }
            None => Ok(()),
        }
    }

    fn counts(&self, running: usize) -> Counts {
        let lines = self.lines.map(|lines| lines.saturating_sub(self.summary.malformed_lines));
        let lines = lines.map(|lines| self.limit.map_or(lines, |limit| lines.min(limit)));
        Counts {
            trajectories: self.summary.trajectories,
            total: lines.map(|lines| lines * self.repeat),
            calls: self.summary.calls(),
            running,
            failed: self.summary.failed(),
            without_result: self.summary.without_result(),
        }
    }

    /// Tells the summary of a run that took `wall` and ended with `result`, and gives the exit
    /// code.
    pub(crate) fn finish(
        mut self,
        result: Result<(), String>,
        wall: Duration,
        interrupted: bool,
    ) -> ExitCode {
        self.progress.finish();
        self.input_ended();
        // A run that ended early has results that are not flushed yet.
        let flushed = self.flush();
        let not_written = result.and(flushed).err();
        if let Some(problem) = &not_written {
            warn_line(&format!("error: {}", printable(problem)));
        }
        let problem = self.input_problem.take().or(not_written);
        let no_call = problem.is_none() && !interrupted && self.summary.calls() == 0;
        if no_call {
            warn_line(&format!("error: {}", printable(&self.no_call())));
        } else if self.summary.seen.is_suspicious() {
            let Summary { without_call, seen, .. } = &self.summary;
            let have = match without_call {
                1 => "1 trajectory has".to_owned(),
                _ => format!("{without_call} trajectories have"),
            };
            let told = format!("warning: {have} no call in {seen}");
            warn_line(&printable(&told));
        }
        let printed = print(&self.summary.text(wall, interrupted));
        let mut verdict = Verdict {
            io_failed: problem.is_some() || is_lost(printed),
            interrupted,
            malformed_input: self.summary.malformed_lines > 0 || no_call,
            calls_without_result: self.summary.without_result() > 0,
        };
        if let Some((path, file)) = &mut self.files.summary {
            let run = Run {
                input: &self.input,
                exit_code: verdict.exit_code() as u8,
                interrupted,
                problem: problem.as_deref(),
                wall,
            };
            let written = file.add(&self.summary.described(&run)).and_then(|()| file.flush());
            if let Err(error) = written {
                warn_line(&format!("error: {}", write_problem("summary", path, &error)));
                verdict.io_failed = true;
            }
        }
        verdict.exit_code()
    }

    /// What is said of an input without any call.
    fn no_call(&self) -> String {
        let Summary { trajectories, malformed_lines, .. } = self.summary;
        match (trajectories, malformed_lines) {
            (0, 0) => format!("{}: no trajectory is in it: it is empty", self.input),
            (0, _) => format!("{}: no line of it is a trajectory", self.input),
            _ if self.summary.seen.model_messages > 0 => {
                format!("{}: no call is in its {}", self.input, self.summary.seen)
            }
            (trajectories, _) => {
                format!("{}: no call is in its {trajectories} trajectories", self.input)
            }
        }
    }
}

fn write_problem(what: &str, path: &Path, error: &io::Error) -> String {
    format!("the {what} could not be written: {}: {error}", path.display())
}
