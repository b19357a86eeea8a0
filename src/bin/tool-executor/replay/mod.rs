//! `tool-executor replay`: recorded trajectories through the executor and the embedded sandbox.
//!
//! ```text
//! input ─► trajectory, messages     a thread reads lines and makes trajectories of them
//!   │
//!   ▼
//! Replay (this file): one thread; cursor says which call is next, driver submits it
//!   │
//!   ▼
//! report ─► output, compare, summary, progress
//! ```
//!
//! A call is submitted when the trajectory's former one has its result; at most `--concurrency`
//! trajectories are on their way. Every call that was submitted gets exactly one line in the results,
//! also when the run is interrupted; so does every call that could not run because of its
//! trajectory's setup.

mod compare;
mod cursor;
mod driver;
mod input;
mod interrupt;
mod messages;
mod output;
mod progress;
mod report;
mod step;
mod summary;
mod trajectory;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use tool_executor::{Completion, Outcome, ToolCall, ToolResult};

use crate::args::ReplayArgs;
use crate::exit_code::{ExitCode, Verdict};
use crate::signals::Signals;

use cursor::{Next, TrajectoryCursor};
use driver::Driver;
use input::{Item, Selection};
use interrupt::{CANCEL_WAIT, GRACE, Shutdown};
use output::{Finished, ResultsFile};
use progress::{Progress, warn_line};
use report::Report;
use trajectory::Trajectory;

/// How long the loop waits for a completion before it looks at signals, input and display.
const TURN: Duration = Duration::from_millis(20);

/// Runs the command: from the arguments to the exit code. Blocks until the run has ended.
pub(crate) fn run(args: &ReplayArgs) -> ExitCode {
    let started = Instant::now();
    let progress = Progress::new(args.quiet, started);
    init_log(&progress);

    let (input, results) = match open_files(args) {
        Ok(files) => files,
        Err(problem) => return fail(ExitCode::Io, &problem),
    };
    // Before anything is made that a signal would leave behind; after the files, whose opening may
    // block for ever (a FIFO), so that a signal ends it.
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return fail(ExitCode::NotStarted, &format!("no signal handler: {error}")),
    };
    let driver = match Driver::start(args) {
        Ok(driver) => driver,
        Err(problem) => return fail(ExitCode::NotStarted, &problem),
    };
    if let Some(why) = driver.unisolated_because() {
        progress.say(&isolation_warning(why, refusing_flag(args)));
    }

    let total = progress.is_shown().then(|| input::count_lines(&args.file)).flatten();
    let report = Report::new(progress, results, args, total);
    let mut replay = Replay::new(args, &driver, signals, input, report);
    let io_result = replay.run();
    let interrupted = replay.shutdown != Shutdown::No;
    let ended = Instant::now();
    replay.cancel_all();
    let report = replay.report;
    if !driver.close() {
        warn_line("warning: some threads of the executor did not end in time");
    }
    let finished = report.finish(io_result, ended.saturating_duration_since(started), interrupted);
    Verdict { interrupted, ..finished }.exit_code()
}

fn fail(code: ExitCode, problem: &str) -> ExitCode {
    warn_line(&format!("error: {problem}"));
    code
}

/// What is logged unless `RUST_LOG` says otherwise. That nothing is isolated is told by this program
/// itself, and once is enough.
const LOG_FILTER: &str = "warn,tool_executor::sandbox::isolation=error";

fn init_log(progress: &Progress) {
    let environment = env_logger::Env::default().default_filter_or(LOG_FILTER);
    // Fails only where a logger is installed already, which is as good.
    let _ = env_logger::Builder::from_env(environment)
        .target(env_logger::Target::Pipe(Box::new(progress.writer())))
        .try_init();
}

/// The flag that lets no command run where nothing can be isolated.
fn refusing_flag(args: &ReplayArgs) -> Option<&'static str> {
    match (args.require_sandbox, args.no_network) {
        (true, _) => Some("--require-sandbox"),
        (false, true) => Some("--no-network"),
        (false, false) => None,
    }
}

/// One line, so that nobody has to read two to learn that nothing is isolated.
fn isolation_warning(why: &str, refusing_flag: Option<&str>) -> String {
    let consequence = match refusing_flag {
        Some(flag) => format!("commands are refused, as {flag} demands"),
        None => "commands run without a sandbox".to_owned(),
    };
    // Some reasons bring the advice themselves.
    let advice = match why.contains("apt-get install bubblewrap") {
        true => "",
        false => "; isolation needs a working bubblewrap (apt-get install bubblewrap)",
    };
    format!("warning: NOT ISOLATED: {consequence}: {why}{advice}")
}

type Files = (Receiver<Item>, Option<ResultsFile>);

fn open_files(args: &ReplayArgs) -> Result<Files, String> {
    let named = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let reader = input::open(&args.file).map_err(|error| named(&args.file, error))?;
    if let Some(directory) = &args.keep_workspaces {
        std::fs::create_dir_all(directory).map_err(|error| named(directory, error))?;
    }
    // Last of what may fail here: it empties the file.
    let results = match &args.out {
        None => None,
        Some(out) if is_same_file(&args.file, out) => {
            return Err(format!("{}: is the input; --out would overwrite it", out.display()));
        }
        Some(out) => Some(ResultsFile::create(out).map_err(|error| named(out, error))?),
    };
    let selection = Selection { limit: args.limit, repeat: args.repeat };
    let input = input::read_in_background(reader, selection)
        .map_err(|error| format!("could not start a thread: {error}"))?;
    Ok((input, results))
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b && a.is_file(),
        _ => false,
    }
}

/// A run under way.
struct Replay<'a> {
    args: &'a ReplayArgs,
    concurrency: usize,
    driver: &'a Driver,
    signals: Signals,
    shutdown: Shutdown,
    /// `None` once nothing more is to be taken from it.
    input: Option<Receiver<Item>>,
    /// The trajectories on their way, by the tag of their calls.
    running: HashMap<u64, TrajectoryCursor>,
    next_tag: u64,
    report: Report,
}

impl<'a> Replay<'a> {
    fn new(
        args: &'a ReplayArgs,
        driver: &'a Driver,
        signals: Signals,
        input: Receiver<Item>,
        report: Report,
    ) -> Self {
        Self {
            args,
            concurrency: driver.concurrency(),
            driver,
            signals,
            shutdown: Shutdown::No,
            input: Some(input),
            running: HashMap::new(),
            next_tag: 0,
            report,
        }
    }

    /// Runs until everything has ended.
    ///
    /// # Errors
    /// Reading the input or writing the results failed, in words for people. Calls may still run.
    fn run(&mut self) -> Result<(), String> {
        loop {
            let now = Instant::now();
            self.heed_signals(now)?;
            self.take_trajectories()?;
            if self.running.is_empty() && self.input.is_none() {
                return self.report.flush();
            }
            self.report.turn(now, self.running.len())?;
            if self.running.is_empty() {
                self.wait_for_input()?;
            } else if let Some(completion) = self.driver.next(TURN) {
                // One a turn: calls that are refused complete faster than they could be drained.
                self.completed(completion)?;
            }
        }
    }

    fn heed_signals(&mut self, now: Instant) -> Result<(), String> {
        let before = self.shutdown;
        self.shutdown = before.advance(self.signals.count(), now);
        if self.shutdown == before {
            return Ok(());
        }
        match self.shutdown {
            Shutdown::No => {}
            Shutdown::Draining { .. } => {
                self.input = None;
                self.report.say(&match (self.running.len(), GRACE.as_secs()) {
                    (0, _) => "interrupted: no call is running".to_owned(),
                    (running, grace) => format!(
                        "interrupted: no new calls; {running} running calls have {grace} s to finish (Ctrl-C cancels them)"
                    ),
                });
            }
            Shutdown::Cancelling { .. } => {
                if !self.running.is_empty() {
                    self.report.say(&format!("cancelling {} running calls", self.running.len()));
                }
                self.cancel_all();
            }
            Shutdown::GivenUp => self.give_up()?,
        }
        Ok(())
    }

    fn cancel_all(&self) {
        for cursor in self.running.values() {
            self.driver.cancel(&cursor.trajectory().id);
        }
    }

    /// Answers the calls whose cancellation brought no answer in time.
    fn give_up(&mut self) -> Result<(), String> {
        let error = format!("no answer within {} s of its cancellation", CANCEL_WAIT.as_secs());
        let result = ToolResult::failure(Outcome::Cancelled, error);
        for cursor in std::mem::take(&mut self.running).into_values() {
            if let Some(step) = cursor.current() {
                let id = &cursor.trajectory().id;
                let uniq_id = &step.call.uniq_id;
                let call =
                    Finished { trajectory_id: id, step, uniq_id, result: &result, submitted: true };
                self.report.call(&call)?;
            }
            self.report.cut_short();
        }
        Ok(())
    }

    /// Starts as many trajectories as there is room for and the input has at hand.
    fn take_trajectories(&mut self) -> Result<(), String> {
        while self.running.len() < self.concurrency {
            let Some(input) = &self.input else { return Ok(()) };
            match input.try_recv() {
                Ok(item) => self.take(item)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => self.input = None,
            }
        }
        Ok(())
    }

    fn wait_for_input(&mut self) -> Result<(), String> {
        let Some(input) = &self.input else { return Ok(()) };
        match input.recv_timeout(TURN) {
            Ok(item) => self.take(item)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.input = None,
        }
        Ok(())
    }

    fn take(&mut self, item: Item) -> Result<(), String> {
        match item {
            Item::Trajectory(trajectory) => self.start(trajectory),
            Item::Malformed { line, problem } => {
                self.report.malformed(line, &problem);
                Ok(())
            }
            Item::Failed(error) => Err(format!("{}: {error}", self.args.file.display())),
        }
    }

    fn start(&mut self, trajectory: Trajectory) -> Result<(), String> {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.go_on(tag, TrajectoryCursor::new(trajectory))
    }

    /// Submits the cursor's current call, or ends the cursor if it has none.
    fn go_on(&mut self, tag: u64, mut cursor: TrajectoryCursor) -> Result<(), String> {
        while let Some(step) = cursor.current() {
            let trajectory = cursor.trajectory();
            let mut call = step.call.clone();
            if trajectory.repetition > 1 {
                call.uniq_id = ToolCall::new("", ()).uniq_id;
            }
            match self.driver.submit(tag, &trajectory.id, call) {
                Ok(()) => {
                    self.running.insert(tag, cursor);
                    return Ok(());
                }
                // The executor refused it: that is its result, and the next one has its own chance.
                Err(result) => {
                    if self.record(&mut cursor, &result, false)? == Next::SetupFailed {
                        break;
                    }
                }
            }
        }
        self.end(cursor)
    }

    fn completed(&mut self, completion: Completion) -> Result<(), String> {
        let Some(mut cursor) = self.running.remove(&completion.tag) else {
            log::error!("a completion for no running trajectory: {}", completion.trajectory_id);
            return Ok(());
        };
        match self.record(&mut cursor, &completion.result, true)? {
            Next::NextCall if self.shutdown == Shutdown::No => self.go_on(completion.tag, cursor),
            Next::NextCall => {
                self.report.cut_short();
                self.leave(&cursor);
                Ok(())
            }
            Next::Done | Next::SetupFailed => self.end(cursor),
        }
    }

    /// Reports the current call's result. After a failed setup call, reports the calls that will
    /// never run as well.
    fn record(
        &mut self,
        cursor: &mut TrajectoryCursor,
        result: &ToolResult,
        submitted: bool,
    ) -> Result<Next, String> {
        let Some(step) = cursor.current() else { return Ok(Next::Done) };
        let id = cursor.trajectory().id.clone();
        let uniq_id = result.uniq_id.as_deref().unwrap_or(&step.call.uniq_id);
        let call = Finished { trajectory_id: &id, step, uniq_id, result, submitted };
        self.report.call(&call)?;
        let why = format!("setup call {} failed: {}", step.index, result.error);
        let after = cursor.advance(result);
        if after == Next::SetupFailed {
            self.report.setup_failed(&id, &why);
            let result = ToolResult::failure(Outcome::NeverRan, why);
            for step in cursor.remaining() {
                let uniq_id = &step.call.uniq_id;
                let call = Finished {
                    trajectory_id: &id,
                    step,
                    uniq_id,
                    result: &result,
                    submitted: false,
                };
                self.report.call(&call)?;
            }
        }
        Ok(after)
    }

    fn end(&mut self, cursor: TrajectoryCursor) -> Result<(), String> {
        self.report.trajectory_ended();
        self.leave(&cursor);
        Ok(())
    }

    /// Keeps the workspace if that was asked for, and gives the slot back.
    fn leave(&self, cursor: &TrajectoryCursor) {
        let id = &cursor.trajectory().id;
        if let Some(directory) = &self.args.keep_workspaces {
            let target = directory.join(driver::file_name_of(id));
            if let Err(error) = self.driver.keep_workspace(id, &target) {
                let target = target.display();
                self.report.say(&format!("warning: {id}: workspace not kept in {target}: {error}"));
            }
        }
        self.driver.release(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_isolation_warning_is_one_line_with_the_advice_once() {
        for why in ["it is not installed; apt-get install bubblewrap", "it does not work here"] {
            for flag in [None, Some("--no-network")] {
                let text = isolation_warning(why, flag);
                assert_eq!(text.matches("apt-get install bubblewrap").count(), 1, "{text}");
                assert_eq!(text.lines().count(), 1);
            }
        }
    }
}
