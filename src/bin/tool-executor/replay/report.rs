//! Everything that is told about a run, in one place: each call goes to the results file, the
//! comparison and the summary; now and then the numbers go to the display.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::compare::compare;
use super::output::{Finished, ResultsFile};
use super::progress::{Counts, Progress, warn_line};
use super::summary::Summary;
use crate::args::ReplayArgs;
use crate::exit_code::Verdict;

/// How long a line of the results may stay in memory while the run goes on.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// Malformed lines and failed setups that are told one by one, each.
const TOLD_ONE_BY_ONE: u64 = 20;

/// The observers of a run.
pub(crate) struct Report {
    progress: Progress,
    results: Option<(PathBuf, ResultsFile)>,
    summary: Summary,
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
        results: Option<ResultsFile>,
        args: &ReplayArgs,
        lines: Option<u64>,
    ) -> Self {
        Self {
            progress,
            results: args.out.clone().zip(results),
            summary: Summary::new(args.compare),
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
            agreement.add(call.trajectory_id, call.step.index, found);
            compared = Some(found);
        }
        if let Some((path, file)) = &mut self.results {
            file.write(call, compared).map_err(|error| write_problem(path, &error))?;
        }
        Ok(())
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

    /// To be called at every turn of the loop: shows the numbers and flushes the results when that is
    /// due.
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
        match &mut self.results {
            Some((path, file)) => file.flush().map_err(|error| write_problem(path, &error)),
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

    /// Prints the summary of a run that took `wall` and ended with `result`, and says what the exit
    /// code has to tell.
    pub(crate) fn finish(
        mut self,
        result: Result<(), String>,
        wall: Duration,
        interrupted: bool,
    ) -> Verdict {
        self.progress.finish();
        // A run that ended early has results that are not flushed yet.
        let result = result.and_then(|()| self.flush());
        let mut io_failed = result.is_err();
        if let Err(problem) = result {
            let _ = self.flush();
            warn_line(&format!("error: {problem}"));
        }
        let text = self.summary.text(wall, interrupted);
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // A reader that has seen enough, such as `head`, is no failure.
            if error.kind() != io::ErrorKind::BrokenPipe {
                warn_line(&format!("error: standard output: {error}"));
                io_failed = true;
            }
        }
        Verdict {
            io_failed,
            interrupted,
            malformed_input: self.summary.malformed_lines > 0,
            calls_without_result: self.summary.without_result() > 0,
        }
    }
}

fn write_problem(path: &std::path::Path, error: &io::Error) -> String {
    format!("the results could not be written: {}: {error}", path.display())
}
