//! A run: one thread that takes trajectories from the input, submits their calls one after the
//! other, and reports each result.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use tool_executor::{Outcome, SnapshotId, ToolCall, ToolResult, TrajectorySpec};

use super::cursor::{Next, TrajectoryCursor};
use super::driver::{self, Driver};
use super::input::Item;
use super::interrupt::{CANCEL_WAIT, Shutdown};
use super::output::Finished;
use super::report::Report;
use super::shared_setup::{Begin, SharedSetups};
use super::trajectory::Trajectory;
use super::transfers::Transfers;
use crate::args::ReplayArgs;
use crate::signals::Signals;

/// How long the loop waits for a completion before it looks at signals, input and display.
const TURN: Duration = Duration::from_millis(20);
/// The same while files are put, whose end wakes nothing.
const SHORT_TURN: Duration = Duration::from_millis(2);

/// A run under way.
pub(super) struct Run<'a> {
    args: &'a ReplayArgs,
    concurrency: usize,
    driver: &'a Driver,
    signals: &'a Signals,
    shutdown: Shutdown,
    /// `None` once nothing more is to be taken from it.
    input: Option<Receiver<Item>>,
    /// The trajectories on their way, by the tag of their calls.
    running: HashMap<u64, TrajectoryCursor>,
    next_tag: u64,
    /// Setups that are made once for all repetitions, if they are to be.
    shared: Option<SharedSetups>,
    /// The steps that put files.
    transfers: Transfers,
    report: Report,
}

impl<'a> Run<'a> {
    /// A run at its start.
    pub(super) fn new(
        args: &'a ReplayArgs,
        driver: &'a Driver,
        signals: &'a Signals,
        input: Receiver<Item>,
        report: Report,
        transfers: Transfers,
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
            shared: args.share_setup.then(|| SharedSetups::new(args.repeat)),
            transfers,
            report,
        }
    }

    /// Runs until everything has ended.
    ///
    /// # Errors
    /// Writing the results failed, in words for people. Calls may still run.
    pub(super) fn run(&mut self) -> Result<(), String> {
        loop {
            let now = Instant::now();
            self.heed_signals(now)?;
            self.take_trajectories()?;
            if self.running.is_empty() && self.input.is_none() {
                return self.report.flush();
            }
            self.report.turn(now, self.running.len())?;
            if let Some((tag, result)) = self.transfers.next() {
                self.completed(tag, &result)?;
                continue;
            }
            let turn = if self.transfers.are_some() { SHORT_TURN } else { TURN };
            if self.running.is_empty() {
                self.wait_for_input()?;
            } else if let Some(completion) = self.driver.next(turn) {
                // One a turn: calls that are refused complete faster than they could be drained.
                self.completed(completion.tag, &completion.result)?;
            }
        }
    }

    fn heed_signals(&mut self, now: Instant) -> Result<(), String> {
        let before = self.shutdown;
        self.shutdown = before.advance(self.signals.count(), self.args.run.grace_s, now);
        if self.shutdown == before {
            return Ok(());
        }
        match self.shutdown {
            Shutdown::No => {}
            Shutdown::Draining { .. } => {
                self.end_of_input();
                self.report.say(&match (self.running.len(), self.args.run.grace_s.as_secs()) {
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

    /// Whether a signal ended the run before its end.
    pub(super) fn was_interrupted(&self) -> bool {
        self.shutdown != Shutdown::No
    }

    /// Gives up what there is to tell.
    pub(super) fn into_report(self) -> Report {
        self.report
    }

    /// Ends all running calls early.
    pub(super) fn cancel_all(&self) {
        for cursor in self.running.values() {
            self.driver.cancel(&cursor.trajectory().id);
        }
    }

    /// Answers the calls whose cancellation brought no answer in time.
    fn give_up(&mut self) -> Result<(), String> {
        self.transfers.give_up();
        let error = format!("no answer within {} s of its cancellation", CANCEL_WAIT.as_secs());
        let result = ToolResult::failure(Outcome::Cancelled, error);
        for cursor in std::mem::take(&mut self.running).into_values() {
            if let Some(step) = cursor.current() {
                let trajectory = cursor.trajectory();
                let uniq_id = &step.call.uniq_id;
                let call = Finished { trajectory, step, uniq_id, result: &result, submitted: true };
                self.report.call(&call)?;
            }
            self.report.cut_short();
        }
        Ok(())
    }

    /// Starts as many trajectories as there is room for and the input has at hand.
    fn take_trajectories(&mut self) -> Result<(), String> {
        while self.running.len() < self.concurrency {
            if self.shutdown == Shutdown::No
                && let Some((trajectory, snapshot)) =
                    self.shared.as_mut().and_then(SharedSetups::next_ready)
            {
                self.start(trajectory, snapshot)?;
                continue;
            }
            let Some(input) = &self.input else { return Ok(()) };
            match input.try_recv() {
                Ok(item) => self.take(item)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => self.end_of_input(),
            }
        }
        Ok(())
    }

    fn wait_for_input(&mut self) -> Result<(), String> {
        let Some(input) = &self.input else { return Ok(()) };
        match input.recv_timeout(TURN) {
            Ok(item) => self.take(item)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.end_of_input(),
        }
        Ok(())
    }

    fn end_of_input(&mut self) {
        self.input = None;
        self.report.input_ended();
    }

    fn take(&mut self, item: Item) -> Result<(), String> {
        match item {
            Item::Trajectory(trajectory) => {
                self.report.taken(&trajectory);
                let begin = match &mut self.shared {
                    Some(shared) => shared.enter(trajectory),
                    None => Begin::Alone(trajectory),
                };
                match begin {
                    Begin::Alone(trajectory) => self.start(trajectory, None),
                    Begin::From(trajectory, snapshot) => self.start(trajectory, Some(snapshot)),
                    Begin::Wait => Ok(()),
                }
            }
            Item::Malformed { line, problem } => {
                self.report.malformed(line, &problem);
                Ok(())
            }
            Item::Failed(error) => {
                // What came before it is as good as ever, and runs to its end.
                self.report.input_failed(&error);
                self.end_of_input();
                Ok(())
            }
        }
    }

    /// Starts a trajectory, with the files of a snapshot of its setup if there is one.
    fn start(
        &mut self,
        trajectory: Trajectory,
        snapshot: Option<SnapshotId>,
    ) -> Result<(), String> {
        let tag = self.next_tag;
        self.next_tag += 1;
        let own = trajectory.spec.as_deref();
        let spec = match &snapshot {
            None => own.cloned(),
            Some(snapshot) => Some(after_setup(own.cloned().unwrap_or_default(), snapshot)),
        };
        let begun = match &spec {
            Some(spec) => self.driver.begin(&trajectory.id, spec),
            None => Ok(()),
        };
        let mut cursor = match snapshot {
            None => TrajectoryCursor::new(trajectory),
            Some(_) => TrajectoryCursor::after_setup(trajectory),
        };
        if let Err(error) = begun {
            let result = ToolResult::failure(Outcome::NeverRan, error);
            while cursor.current().is_some() {
                if self.record(&mut cursor, &result, false)? == Next::SetupFailed {
                    break;
                }
            }
            return self.end(cursor);
        }
        self.submit_current(tag, cursor)
    }

    /// Submits the trajectory's current call, or ends the trajectory if it has none.
    fn submit_current(&mut self, tag: u64, mut cursor: TrajectoryCursor) -> Result<(), String> {
        while let Some(step) = cursor.current() {
            let trajectory = cursor.trajectory();
            let mut call = step.call.clone();
            if trajectory.repetition > 1 {
                call.uniq_id = ToolCall::new("", ()).uniq_id;
            }
            if let Some(put) = &step.put {
                self.transfers.submit(tag, trajectory.id.clone(), put.clone(), call.uniq_id);
                self.running.insert(tag, cursor);
                return Ok(());
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

    /// A step has ended.
    fn completed(&mut self, tag: u64, result: &ToolResult) -> Result<(), String> {
        let Some(mut cursor) = self.running.remove(&tag) else {
            log::error!("a completion for no running trajectory: {tag}");
            return Ok(());
        };
        let was_setup = cursor.current().is_some_and(|step| step.setup);
        let next = self.record(&mut cursor, result, true)?;
        if was_setup {
            self.share_setup(&cursor, result, &next);
        }
        match next {
            Next::Call if self.shutdown == Shutdown::No => self.submit_current(tag, cursor),
            Next::Call => {
                self.report.cut_short();
                self.leave(&cursor);
                Ok(())
            }
            Next::End | Next::SetupFailed => self.end(cursor),
        }
    }

    /// A call of a setup has ended: if that was the last one, others may begin with what it made.
    fn share_setup(&mut self, cursor: &TrajectoryCursor, result: &ToolResult, next: &Next) {
        let trajectory = cursor.trajectory();
        let Some(shared) = self.shared.as_mut().filter(|shared| shared.is_made_by(trajectory))
        else {
            return;
        };
        shared.took(trajectory.line, result.timing.exec);
        match next {
            Next::SetupFailed => shared.cannot_be_shared(trajectory.line),
            _ if cursor.current().is_some_and(|step| step.setup) => {}
            _ => match self.driver.snapshot(&trajectory.id) {
                Ok(snapshot) => shared.made(trajectory.line, snapshot),
                Err(why) => {
                    shared.cannot_be_shared(trajectory.line);
                    let id = &trajectory.id;
                    self.report.say(&format!("warning: {id}: its setup cannot be shared: {why}"));
                }
            },
        }
        self.report.shared(shared.saved());
    }

    /// Reports the current call's result. After a failed setup call, reports the calls that will
    /// never run as well.
    fn record(
        &mut self,
        cursor: &mut TrajectoryCursor,
        result: &ToolResult,
        submitted: bool,
    ) -> Result<Next, String> {
        let Some(step) = cursor.current() else { return Ok(Next::End) };
        let trajectory = cursor.trajectory();
        let uniq_id = result.uniq_id.as_deref().unwrap_or(&step.call.uniq_id);
        let call = Finished { trajectory, step, uniq_id, result, submitted };
        self.report.call(&call)?;
        let why = format!("setup call {} failed: {}", step.index, result.error);
        let after = cursor.advance(result);
        if after == Next::SetupFailed {
            let trajectory = cursor.trajectory();
            self.report.setup_failed(&trajectory.id, &why);
            let result = ToolResult::failure(Outcome::NeverRan, why);
            for step in cursor.remaining() {
                let uniq_id = &step.call.uniq_id;
                let call =
                    Finished { trajectory, step, uniq_id, result: &result, submitted: false };
                self.report.call(&call)?;
            }
        }
        Ok(after)
    }

    fn end(&mut self, cursor: TrajectoryCursor) -> Result<(), String> {
        self.report.trajectory_ended();
        self.leave(&cursor);
        let trajectory = cursor.trajectory();
        if let Some(shared) = &mut self.shared {
            // One that ends before its setup is made has none to share.
            if shared.is_made_by(trajectory) {
                shared.cannot_be_shared(trajectory.line);
            }
            if cursor.began_after_setup()
                && let Some(snapshot) = shared.ended(trajectory.line)
            {
                self.driver.drop_snapshot(&snapshot);
            }
            self.report.shared(shared.saved());
        }
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

/// The spec of a trajectory that begins with what its setup has made in another: the image and the
/// files are in that.
fn after_setup(spec: TrajectorySpec, snapshot: &SnapshotId) -> TrajectorySpec {
    let mut spec = spec.with_files(Vec::new()).with_snapshot(snapshot.clone());
    spec.image = None;
    spec
}
