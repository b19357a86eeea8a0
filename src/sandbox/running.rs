//! A command without a sandbox: its processes, its pipes, its deadline, and how it ends.
//!
//! A state machine without a thread. The supervisor feeds it what epoll and the clock say; nothing
//! here blocks, except for starting the process itself. Its phases:
//!
//! 1. *Running*, until the main process ends, the time is up, or it is cancelled.
//! 2. *Ending*. Everything is killed, whatever the reason, and the reaper says when the last
//!    process is gone.
//! 3. *Settling*. What is in the pipes is drained – one that somebody still holds open delays
//!    nothing – and what of it goes to a file (`spool`) is written.
//!
//! No phase is without a deadline.

mod end;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags};

use end::reaper_end;
pub(super) use end::{Ending, Reason};

use super::host::Host;
use super::jail::KILL_MARGIN;
use super::outputs::{Outputs, stdin_of};
use super::reaper::{self, Report};
use super::reports::Reports;
use super::shell;
use super::spawn::{self, CStringArray, Child, Reaped};
use super::stream::{Source, Watch};
use super::supervisor::CommandSpec;

/// Longer timeouts are taken for this, so that no deadline overflows the clock.
pub(super) const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// A command that was started and has not been answered yet.
pub(super) struct Running {
    outputs: Outputs,
    /// The reaper.
    child: Child,
    /// Set when `child` has ended.
    child_end: Option<Reaped>,
    reports: Reports,
    report: Report,
    /// Closing it is the order to kill.
    control: Option<OwnedFd>,
    deadline: Instant,
    started: Instant,
    /// When its main process ended, or was killed.
    ended: Option<Instant>,
    killed: Option<Reason>,
    given_up: bool,
}

impl Running {
    /// Starts a command. Blocks for the start of one process. There are no limits that it could
    /// exceed.
    ///
    /// # Errors
    /// A NUL in the command or in the workspace's path; a workspace that is gone; whatever
    /// the system refuses. Nothing runs then.
    pub(super) fn start(spec: &CommandSpec, host: &Host, watch: &Watch<'_>) -> io::Result<Self> {
        let (outputs, [stdout, stderr]) = Outputs::new(spec, host, watch)?;
        let stdin = stdin_of(spec)?;
        let timeout = spec.timeout.min(LONGEST_TIMEOUT);
        let now = Instant::now();
        let call = shell::shell_call(host.shell, &spec.command);
        let script = spawn::memory_file(c"tool-command", &call.script)?;
        let reaper = reaper::start(&reaper::Command {
            program: &CString::new(host.shell.path())?,
            environment: &CStringArray::new(
                host.environment(&spec.workspace, &spec.workspace.on_host()),
            )?,
            arguments: &CStringArray::new(call.argv)?,
            directory: spec.workspace.path(),
            stdio: [stdin.as_ref().unwrap_or(&host.null).as_fd(), stdout.as_fd(), stderr.as_fd()],
            script: Some(script.as_fd()),
            open_files: host.open_files,
            user: spec.workspace.owner(),
        })?;
        let mut running = Self {
            outputs,
            child: reaper.child,
            child_end: None,
            reports: Reports::new(reaper.report),
            report: Report::default(),
            control: Some(reaper.control),
            // Its time begins now: until here this process may have been stopped.
            deadline: Instant::now() + timeout,
            started: now,
            ended: None,
            killed: None,
            given_up: false,
        };
        if let Err(error) = running.watch_all(watch) {
            // Without its control pipe it ends by itself.
            running.control = None;
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(running.child.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            return Err(error);
        }
        Ok(running)
    }

    fn watch_all(&self, watch: &Watch<'_>) -> io::Result<()> {
        self.reports.watch(watch)?;
        watch.add(self.child.as_fd(), Source::Child)
    }

    /// When [`on_deadline`](Self::on_deadline) is due.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether there is nothing left to wait for: [`finish`](Self::finish) is due.
    pub(super) fn is_over(&self) -> bool {
        self.outputs.are_settled()
    }

    /// Deals with one event. `buffer` is scratch space.
    pub(super) fn on_event(
        &mut self,
        source: Source,
        watch: &Watch<'_>,
        buffer: &mut [u8],
        now: Instant,
    ) {
        match source {
            Source::Stdout | Source::Stderr | Source::Written => {
                self.outputs.on_event(source, watch, buffer);
            }
            Source::Reports => self.read_reports(watch, now),
            Source::Child => {
                // What it reported last tells how it ended.
                self.read_reports(watch, now);
                self.child_end = match self.child.reap() {
                    Reaped::Running => return,
                    end => Some(end),
                };
                watch.remove(self.child.as_fd());
                self.main_ended(now);
            }
            // Only jails have them.
            Source::JailEnd | Source::JailSocket => {}
        }
    }

    /// To be called after each event and deadline: once the processes have ended, what they printed
    /// is read and written. Does not block.
    pub(super) fn settle(&mut self, watch: &Watch<'_>, buffer: &mut [u8], now: Instant) {
        if (self.given_up || self.child_end.is_some())
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
        if self.ended.is_none() && self.killed.is_none() {
            self.kill(Reason::TimedOut, now);
        } else {
            log::error!(
                "a killed command's processes did not end within {} s; giving up on them",
                KILL_MARGIN.as_secs()
            );
            self.child.kill();
            self.given_up = true;
        }
    }

    /// Ends everything, unless the command is ending anyway.
    pub(super) fn kill(&mut self, reason: Reason, now: Instant) {
        if self.killed.is_none() && self.ended.is_none() {
            self.killed = Some(reason);
            let control = self.control.take();
            self.main_ended(now);
            // Until its end is seen: a reaper whose control is closed asks no longer.
            self.control = control.filter(|control| {
                reason.asks_first() && reaper::terminate(control.as_fd()).is_ok()
            });
        }
    }

    /// The main process ended by itself or is to: what is left of the command is killed.
    fn main_ended(&mut self, now: Instant) {
        if self.ended.is_none() {
            self.ended = Some(now);
            self.deadline = now + KILL_MARGIN;
            self.control = None;
            // It kills nothing while it is stopped, and the command has the right to stop it.
            self.child.resume();
        }
    }

    /// Reads what the reaper has to say, and acts on it.
    fn read_reports(&mut self, watch: &Watch<'_>, now: Instant) {
        self.report = Report::parse(self.reports.read(watch));
        if self.report.ended.is_some() {
            self.main_ended(now);
        }
    }

    /// Tells how it ended. Does not block.
    pub(super) fn finish(mut self, watch: &Watch<'_>) -> Ending {
        self.reports.close(watch);
        let [stdout, stderr] = self.outputs.finish(watch);
        let end = reaper_end(self.killed, self.report, self.child_end.unwrap_or(Reaped::Running));
        let ended = self.ended.unwrap_or(self.started);
        let leftover = if self.child_end.is_none() {
            watch.remove(self.child.as_fd());
            Some(self.child)
        } else {
            None
        };
        let wall = ended.saturating_duration_since(self.started);
        let all_dead = self.report.all_dead;
        Ending {
            end,
            stdout,
            stderr,
            wall,
            all_dead,
            background: Default::default(),
            limits_reached: Vec::new(),
            leftover,
        }
    }
}

/// A pidfd of `pid`, if that is a child of `parent`. `parent` is not reaped yet, so that its
/// number is its own; if `pid` is its child *after* the pidfd was opened, then the pidfd is not a
/// stranger's.
pub(super) fn open_child_of(parent: Pid, pid: i32) -> io::Result<OwnedFd> {
    let not_found = || io::Error::from(io::ErrorKind::NotFound);
    let pidfd = rustix::process::pidfd_open(
        // `from_raw` panics at a negative number.
        Pid::from_raw(pid.max(0)).ok_or_else(not_found)?,
        PidfdFlags::empty(),
    )?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let its_parent = stat
        .rsplit_once(')')
        .and_then(|(_, fields)| fields.split_ascii_whitespace().nth(1)?.parse().ok());
    if its_parent == Some(parent.as_raw_nonzero().get()) { Ok(pidfd) } else { Err(not_found()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_the_parents_child_is_not_taken_hold_of() {
        let me = rustix::process::getpid();
        let parent = rustix::process::getppid().unwrap();
        assert!(open_child_of(parent, me.as_raw_nonzero().get()).is_ok());
        assert!(open_child_of(me, me.as_raw_nonzero().get()).is_err());
        assert!(open_child_of(me, i32::MAX).is_err());
        assert!(open_child_of(me, -1).is_err());
    }
}
