//! One command in its slot's jail: its pipes, its deadline, and how it ends.
//!
//! A state machine without a thread, as `running` is for a command without a jail. Its phases:
//! *waiting* for the jail to open; *running*; and *ending*, until the jail's first process says
//! that no process of the command is left. If it does not say so in time the whole jail is ended,
//! which the supervisor does when it [is asked to](Entered::wants_jail_ended).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::background::{BackgroundReport, Processes};
use super::host::Host;
use super::init::{Run, RunEvent};
use super::jail::{Jail, KILL_MARGIN, RunHandle, SETUP_LIMIT, TOO_SLOW};
use super::limits::{Alarm, Exceeded, Refusals};
use super::outputs::{Outputs, stdin_of};
use super::running::{Ending, LONGEST_TIMEOUT, Reason};
use super::shell::{self, ShellCall};
use super::spawn;
use super::stream::{Source, Watch};
use super::supervisor::{CommandSpec, End};

/// A command that waits for its warm sandbox, or runs in it.
pub(super) struct Entered {
    outputs: Outputs,
    /// The jail's number.
    jail: u64,
    /// Taken when it enters.
    entry: Option<Entry>,
    timeout: Duration,
    deadline: Instant,
    /// Who takes the order to kill it.
    run: Option<RunHandle>,
    released: Option<Instant>,
    /// When its main process ended, or was killed.
    ended: Option<Instant>,
    /// The exit code of a main process that ended by itself.
    exit_code: Option<i32>,
    killed: Option<Reason>,
    background: BackgroundReport,
    /// What the kernel has refused it.
    refusals: Refusals,
    keeps_background: bool,
    wants_jail_ended: bool,
    /// How it ended, and whether the end of every process was seen. Then it is over.
    end: Option<(End, bool)>,
}

/// What is needed to enter.
struct Entry {
    argv: Vec<OsString>,
    stdin: Option<OwnedFd>,
    writers: [OwnedFd; 2],
    script: OwnedFd,
    verdict: Option<Arc<OwnedFd>>,
    /// Called when it exceeds a limit of its slot.
    alarm: Alarm,
}

impl Entered {
    /// Prepares a command. Does not block. `alarm` is called when it exceeds a limit of its slot.
    ///
    /// # Errors
    /// As [`Outputs::new`].
    pub(super) fn new(
        spec: &CommandSpec,
        host: &Host,
        watch: &Watch<'_>,
        alarm: Alarm,
    ) -> io::Result<Self> {
        let (outputs, writers) = Outputs::new(spec, host, watch)?;
        let ShellCall { argv, script } =
            shell::shell_call(host.shell_of(&spec.workspace).0, &spec.command);
        let script = spawn::memory_file(c"tool-command", &script)?;
        Ok(Self {
            outputs,
            jail: 0,
            entry: Some(Entry {
                argv,
                stdin: stdin_of(spec)?,
                writers,
                script,
                verdict: spec.verdict.clone(),
                alarm,
            }),
            timeout: spec.timeout.min(LONGEST_TIMEOUT),
            // The sandbox has a deadline of its own; this is for the unforeseen.
            deadline: Instant::now() + SETUP_LIMIT + KILL_MARGIN,
            run: None,
            released: None,
            ended: None,
            exit_code: None,
            killed: None,
            background: BackgroundReport::default(),
            refusals: Refusals::default(),
            keeps_background: spec.keeps_background,
            wants_jail_ended: false,
            end: None,
        })
    }

    /// It is to enter the sandbox with this number.
    pub(super) fn wait_for(&mut self, jail: u64) {
        self.jail = jail;
    }

    /// The number of its sandbox.
    pub(super) fn jail(&self) -> u64 {
        self.jail
    }

    /// When [`on_deadline`](Self::on_deadline) is due.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether [`finish`](Self::finish) is due.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some() && self.outputs.are_settled()
    }

    /// Whether it cannot be ended but with its sandbox.
    pub(super) fn wants_jail_ended(&self) -> bool {
        self.wants_jail_ended
    }

    /// The jail is open: the command is let go. Its time begins when that is done: this process
    /// may be stopped at any moment, and what has not begun must not be late.
    pub(super) fn enter(&mut self, jail: &mut Jail) {
        let Some(entry) = self.entry.take() else { return };
        let Entry { argv, stdin, writers: [stdout, stderr], script, verdict, alarm } = entry;
        let run = Run {
            argv: &argv,
            stdin: stdin.as_ref().map(AsFd::as_fd),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            script: Some(script.as_fd()),
            verdict: verdict.as_ref().map(|fd| fd.as_fd()),
            may_keep: self.keeps_background,
        };
        match jail.run(&run, alarm) {
            Ok(run) => {
                let now = Instant::now();
                self.run = Some(run);
                self.released = Some(now);
                self.deadline = now + self.timeout;
            }
            Err(error) => self.end = Some((End::SetupFailed(error.to_string()), true)),
        }
    }

    /// The jail's first process says something.
    pub(super) fn on_run_event(&mut self, event: RunEvent, now: Instant) {
        let own = self.run.as_ref().map(RunHandle::number);
        match event {
            RunEvent::Ended { run, status } if own == Some(run) => {
                self.main_ended(exit_code(status), now);
            }
            RunEvent::Done { run, end, earlier_ended } if own == Some(run) => {
                self.ended.get_or_insert(now);
                if earlier_ended {
                    self.earlier_ended(match self.killed {
                        Some(Reason::Exceeded(exceeded)) => exceeded.why(),
                        _ => "they could not be told from those of this call",
                    });
                }
                let end = match (self.killed, end) {
                    (Some(reason), Ok(_)) => reason.end(),
                    // The kernel has killed one of its processes, and it has not got over that.
                    (None, Ok(status)) if self.refusals.kills > 0 && exit_code(status) != 0 => {
                        End::Exceeded(Exceeded::Memory)
                    }
                    (_, Ok(status)) => End::Exited(exit_code(status)),
                    (_, Err(errno)) => {
                        let error = io::Error::from_raw_os_error(errno);
                        End::SetupFailed(format!("cannot execute the shell: {error}"))
                    }
                };
                self.end = Some((end, true));
            }
            RunEvent::Rest { run, count, names, is_kept } if own == Some(run) => {
                let BackgroundReport { ended, kept, .. } = &mut self.background;
                let told = if is_kept { kept } else { ended };
                *told = Some(Processes::new(count, &names));
            }
            RunEvent::Ended { .. } | RunEvent::Rest { .. } | RunEvent::Done { .. } => {}
        }
    }

    /// What the kernel has refused it, to keep its slot within its limits.
    pub(super) fn was_refused(&mut self, refusals: Refusals) {
        self.refusals = refusals;
    }

    /// What earlier commands of its slot had left running was ended.
    pub(super) fn earlier_ended(&mut self, why: &'static str) {
        self.background.earlier_ended.get_or_insert(why);
    }

    /// Whether it has left something running that goes on.
    fn has_kept_some(&self) -> bool {
        self.background.kept.is_some()
    }

    /// The kernel has ended it, and its sandbox with it, for want of memory.
    pub(super) fn ran_out_of_memory(&mut self, now: Instant) {
        if self.released.is_some() && self.end.is_none() {
            self.killed.get_or_insert(Reason::Exceeded(Exceeded::Memory));
            self.ended.get_or_insert(now);
        }
    }

    /// The sandbox is gone, or retired. `failure` says why if it never was open.
    pub(super) fn on_jail_gone(&mut self, all_dead: bool, failure: &str, now: Instant) {
        let end = match (self.killed, self.released, self.exit_code) {
            (Some(reason), ..) => reason.end(),
            // What it left behind has destroyed the sandbox, or is slow to die.
            (None, Some(_), Some(code)) => End::Exited(code),
            (None, Some(_), None) => End::Lost("the slot's sandbox was destroyed".to_owned()),
            (None, None, _) => End::SetupFailed(failure.to_owned()),
        };
        self.ended = self.ended.or(self.released.map(|_| now));
        self.end.get_or_insert((end, all_dead));
    }

    /// Deals with one event of its outputs. `buffer` is scratch space.
    pub(super) fn on_event(&mut self, source: Source, watch: &Watch<'_>, buffer: &mut [u8]) {
        self.outputs.on_event(source, watch, buffer);
    }

    /// To be called after each event and deadline: once the processes have ended, what they printed
    /// is read and written. Does not block.
    pub(super) fn settle(&mut self, watch: &Watch<'_>, buffer: &mut [u8], now: Instant) {
        if self.end.is_some()
            && let Some(deadline) = self.outputs.settle(watch, buffer, now)
        {
            self.deadline = deadline;
        }
    }

    /// The time of the present phase is up.
    pub(super) fn on_deadline(&mut self, now: Instant) {
        if self.outputs.gives_up() {
            return;
        }
        if self.released.is_none() {
            self.kill(Reason::NotStarted(TOO_SLOW), now);
        } else if self.killed.is_none() && self.ended.is_none() {
            self.kill(Reason::TimedOut, now);
        } else if !self.wants_jail_ended {
            log::warn!("a killed command's processes do not end; ending their sandbox");
            self.wants_jail_ended = true;
            // The sandbox has the same margin, and tells.
            self.deadline = now + KILL_MARGIN * 2;
        } else {
            self.on_jail_gone(false, "", now);
        }
    }

    /// Kills everything, unless the command is ending anyway.
    pub(super) fn kill(&mut self, reason: Reason, now: Instant) {
        if self.ended.is_some() || self.killed.is_some() || self.end.is_some() {
            return;
        }
        self.killed = Some(reason);
        self.deadline = now + KILL_MARGIN;
        let Some(run) = &self.run else {
            self.end = Some((reason.end(), true));
            return;
        };
        self.ended = Some(now);
        let killed = if reason.asks_first() { run.terminate() } else { run.kill() };
        if killed.is_err() {
            self.wants_jail_ended = true;
        }
    }

    /// The main process ended by itself; what it left behind is being killed.
    fn main_ended(&mut self, exit_code: i32, now: Instant) {
        if self.ended.is_none() {
            self.ended = Some(now);
            self.exit_code = Some(exit_code);
            self.deadline = now + KILL_MARGIN;
        }
    }

    /// Tells how it ended. Does not block.
    pub(super) fn finish(self, watch: &Watch<'_>) -> Ending {
        let kept_some = self.has_kept_some();
        let (end, all_dead) =
            self.end.unwrap_or((End::Lost("the supervisor has failed".to_owned()), false));
        let wall = match (self.released, self.ended) {
            (Some(released), Some(ended)) => ended.saturating_duration_since(released),
            _ => Duration::ZERO,
        };
        if let (Some(run), true) = (&self.run, kept_some) {
            let pipes = self.outputs.left();
            // One that is gone has ended everything.
            if !pipes.is_empty() && run.drain(&pipes).is_err() {
                log::debug!("what processes in the background print is not read any more");
            }
        }
        let [stdout, stderr] = self.outputs.finish(watch);
        let (background, limits_reached) = (self.background, self.refusals.names());
        Ending { end, stdout, stderr, wall, all_dead, background, limits_reached, leftover: None }
    }
}

/// The exit code that a shell would give for this wait status: 128 + n for signal n.
pub(super) fn exit_code(status: i32) -> i32 {
    match libc::WIFSIGNALED(status) {
        true => 128 + libc::WTERMSIG(status),
        false => libc::WEXITSTATUS(status),
    }
}
