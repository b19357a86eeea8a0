//! One running command: its processes, its pipes, its deadline, and how it ends.
//!
//! A state machine without a thread. The supervisor feeds it what epoll and the clock say; nothing
//! here blocks, except for starting the process itself. Its phases:
//!
//! 1. *Set-up* (only with bubblewrap). bubblewrap makes the namespaces and reports the number of
//!    the sandbox's first process, *init*, which waits. Init is taken hold of by a pidfd, the gate
//!    is opened, and the call's clock starts.
//! 2. *Running*, until the main process ends, the time is up, or it is cancelled.
//! 3. *Ending*. Everything is killed, whatever the reason, and the end of the last process is
//!    awaited: the pidfd of a pid namespace's init becomes readable only when no process of the
//!    namespace is left; without bubblewrap the reaper says so.
//!
//! 4. *Settling*. What is in the pipes is drained – one that somebody still holds open delays
//!    nothing – and what of it goes to a file (`spool`) is written.
//!
//! No phase is without a deadline.

mod end;
mod start;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags};

pub(super) use end::{Ending, Reason};
use end::{namespace_end, reaper_end};
use start::{start_bare, start_sandboxed};

use super::host::Host;
use super::isolation::{Isolation, StatusReport};
use super::limits::{Alarm, Confined, Exceeded, Limits};
use super::outputs::{Outputs, stdin_of};
use super::reaper::Report;
use super::reports::Reports;
use super::spawn::{self, Child, Reaped};
use super::stream::{Source, Watch};
use super::supervisor::CommandSpec;
use super::workspace::Workspace;

/// How long bubblewrap may take to set a sandbox up. Milliseconds are usual; a thousand at once on
/// a small machine take seconds.
pub(super) const SETUP_LIMIT: Duration = Duration::from_secs(30);
/// How long the end of killed processes is awaited before that is given up.
pub(super) const KILL_MARGIN: Duration = Duration::from_secs(5);

/// Why a command was not started whose sandbox took longer than [`SETUP_LIMIT`].
pub(super) const TOO_SLOW: &str = "the sandbox was not ready in time";

/// Longer timeouts are taken for this, so that no deadline overflows the clock.
pub(super) const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// A command that was started and has not been answered yet.
pub(super) struct Running {
    outputs: Outputs,
    child: Child,
    /// Set when `child` has ended.
    child_end: Option<Reaped>,
    reports: Reports,
    container: Container,
    timeout: Duration,
    deadline: Instant,
    /// When the command was let go.
    released: Option<Instant>,
    /// When its main process ended, or was killed.
    ended: Option<Instant>,
    killed: Option<Reason>,
    given_up: bool,
    /// Its slot's files.
    workspace: Arc<Workspace>,
    limits: Arc<Limits>,
    /// Taken when its sandbox is confined.
    alarm: Option<Alarm>,
    /// The sandbox under its slot's limits.
    confined: Option<Confined>,
}

/// What holds the command's processes together.
enum Container {
    /// A pid namespace, made by bubblewrap.
    Namespace { gate: Option<Gate>, init: Option<OwnedFd>, init_gone: bool, report: StatusReport },
    /// A reaper.
    Reaper {
        /// Closing it is the order to kill.
        control: Option<OwnedFd>,
        report: Report,
    },
}

impl Container {
    /// Gives up what keeps the command from ending: the gate, unopened, or the control pipe.
    fn let_go(&mut self) {
        match self {
            Self::Namespace { gate, .. } => drop(gate.take()),
            Self::Reaper { control, .. } => drop(control.take()),
        }
    }
}

/// Holds the command back until its sandbox's init is held by a pidfd.
struct Gate {
    script: OwnedFd,
    content: Vec<u8>,
    /// bubblewrap waits for the end of this pipe.
    _block: OwnedFd,
}

impl Running {
    /// Starts a command. Blocks for the start of one process. `alarm` is called when it exceeds a
    /// limit of its slot.
    ///
    /// # Errors
    /// A NUL in the command or in the workspace's path; a workspace that is gone; whatever
    /// the system refuses. Nothing runs then.
    pub(super) fn start(
        spec: &CommandSpec,
        host: &Host,
        watch: &Watch<'_>,
        alarm: Alarm,
    ) -> io::Result<Self> {
        let (outputs, writers) = Outputs::new(spec, host, watch)?;
        let stdin = stdin_of(spec)?;
        let stdin = stdin.as_ref().unwrap_or(&host.null);
        let stdio = [stdin.as_fd(), writers[0].as_fd(), writers[1].as_fd()];
        let timeout = spec.timeout.min(LONGEST_TIMEOUT);
        let now = Instant::now();
        let (child, reports, container) = match &host.isolation {
            Isolation::Bubblewrap(bubblewrap) => start_sandboxed(spec, host, bubblewrap, stdio)?,
            Isolation::None { .. } => start_bare(spec, host, stdio)?,
        };
        let bare = matches!(container, Container::Reaper { .. });
        let mut running = Self {
            outputs,
            child,
            child_end: None,
            reports: Reports::new(reports),
            container,
            timeout,
            deadline: now + if bare { timeout } else { SETUP_LIMIT },
            released: bare.then_some(now),
            ended: None,
            killed: None,
            given_up: false,
            workspace: spec.workspace.clone(),
            limits: host.limits.clone(),
            alarm: Some(alarm),
            confined: None,
        };
        if let Err(error) = running.watch_all(watch) {
            // Without its gate or its control pipe it ends by itself.
            running.container.let_go();
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

    /// Whether there are no processes left to wait for.
    fn is_dead(&self) -> bool {
        let container_gone = match &self.container {
            Container::Namespace { init, init_gone, .. } => init.is_none() || *init_gone,
            Container::Reaper { .. } => true,
        };
        self.given_up || (self.child_end.is_some() && container_gone)
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
            Source::Init => {
                if let Container::Namespace { init: Some(init), init_gone, .. } =
                    &mut self.container
                {
                    watch.remove(init.as_fd());
                    *init_gone = true;
                }
            }
            // Only warm sandboxes have one.
            Source::Link => {}
        }
    }

    /// To be called after each event and deadline: once the processes have ended, what they printed
    /// is read and written. Does not block.
    pub(super) fn settle(&mut self, watch: &Watch<'_>, buffer: &mut [u8], now: Instant) {
        if self.is_dead()
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
            self.kill(
                match self.released {
                    Some(_) => Reason::TimedOut,
                    None => Reason::NotStarted(TOO_SLOW),
                },
                now,
            );
        } else {
            log::error!(
                "a killed command's processes did not end within {} s; giving up on them",
                KILL_MARGIN.as_secs()
            );
            self.child.kill();
            self.given_up = true;
        }
    }

    /// Kills everything, unless the command is ending anyway.
    pub(super) fn kill(&mut self, reason: Reason, now: Instant) {
        if self.ended.is_some() || self.killed.is_some() {
            return;
        }
        self.killed = Some(reason);
        self.deadline = now + KILL_MARGIN;
        self.ended = self.released.map(|_| now);
        self.kill_processes();
    }

    /// Kills what the container holds, as far as that is possible in this phase.
    fn kill_processes(&mut self) {
        match &mut self.container {
            Container::Namespace { init: Some(init), .. } => {
                spawn::kill(init.as_fd());
                // Once the command has ended by itself, bubblewrap still has to report how.
                if self.killed.is_some() {
                    self.child.kill();
                }
            }
            // While init is not known bubblewrap must live: init would wait for it for ever. Its
            // report comes soon; then this is called again.
            Container::Namespace { init: None, .. } => {}
            Container::Reaper { control, .. } => {
                drop(control.take());
                // It kills nothing while it is stopped, and the command has the right to stop it.
                self.child.resume();
            }
        }
    }

    /// The main process ended by itself: what it left behind is killed.
    fn main_ended(&mut self, now: Instant) {
        if self.ended.is_none() && self.killed.is_none() {
            self.ended = Some(now);
            self.deadline = now + KILL_MARGIN;
            self.kill_processes();
        }
    }

    /// Reads what bubblewrap or the reaper has to say, and acts on it.
    fn read_reports(&mut self, watch: &Watch<'_>, now: Instant) {
        let text = self.reports.read(watch);
        match &mut self.container {
            Container::Namespace { init, report, .. } => {
                *report = StatusReport::parse(text);
                let (pid, exit_code) = (report.child_pid, report.exit_code);
                if let (None, Some(pid)) = (init.as_ref(), pid) {
                    self.hold_init(pid, watch, now);
                }
                if exit_code.is_some() {
                    self.main_ended(now);
                }
            }
            Container::Reaper { report, .. } => {
                *report = Report::parse(text);
                if report.ended.is_some() {
                    self.main_ended(now);
                }
            }
        }
    }

    /// Takes hold of the sandbox's init, and lets the command go (or kills it, if that was wanted
    /// meanwhile).
    fn hold_init(&mut self, pid: i32, watch: &Watch<'_>, now: Instant) {
        let Container::Namespace { gate, init, .. } = &mut self.container else {
            return;
        };
        let Some(gate) = gate.take() else { return };
        let held = open_child_of(self.child.pid(), pid).and_then(|pidfd| {
            watch.add(pidfd.as_fd(), Source::Init)?;
            Ok(pidfd)
        });
        match held {
            Ok(pidfd) => *init = Some(pidfd),
            Err(error) => {
                // It failed already, and bubblewrap says why. If not, dropping the gate unopened
                // ends it.
                log::debug!("cannot take hold of a sandbox's first process: {error}");
                return;
            }
        }
        if self.killed.is_some() {
            self.kill_processes();
        } else if let Err(error) = self.confine(pid) {
            log::error!("cannot put a sandbox under its limits: {error}");
            self.kill(Reason::NotStarted("the sandbox could not be put under its limits"), now);
        } else if let Err(error) = spawn::write_at_start(gate.script.as_fd(), &gate.content) {
            log::error!("cannot open a command's gate: {error}");
            self.kill(Reason::NotStarted("the command could not be handed over"), now);
        } else {
            self.released = Some(now);
            self.deadline = now + self.timeout;
        }
    }

    /// Puts the sandbox under its slot's limits. Its first process is held.
    fn confine(&mut self, init: i32) -> io::Result<()> {
        let (Some(init), Some(alarm)) = (Pid::from_raw(init), self.alarm.take()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let confined = self.limits.confine(init, &self.workspace)?;
        confined.occupied(alarm);
        self.confined = Some(confined);
        Ok(())
    }

    /// Tells how it ended. Does not block.
    pub(super) fn finish(mut self, watch: &Watch<'_>) -> Ending {
        self.reports.close(watch);
        let [stdout, stderr] = self.outputs.finish(watch);
        let child_end = self.child_end.unwrap_or(Reaped::Running);
        if self.confined.as_ref().is_some_and(Confined::ran_out_of_memory) {
            // What else was reported is only what the kernel's killing looked like.
            self.killed.get_or_insert(Reason::Exceeded(Exceeded::Memory));
        }
        let released = self.released.is_some();
        let (end, all_dead) = match &self.container {
            Container::Namespace { init, init_gone, report, .. } => {
                match init {
                    // Its parent, bubblewrap, ends before it or without waiting for it.
                    Some(init) if *init_gone => spawn::reap_if_ours(init.as_fd()),
                    Some(init) => watch.remove(init.as_fd()),
                    None => {}
                }
                // Where nothing of the command ran, one of them has bubblewrap's message.
                let said = [stdout.text.as_str(), &stderr.text].concat();
                let end = namespace_end(self.killed, report.exit_code, released, child_end, &said);
                (end, *init_gone || (!released && self.child_end.is_some()))
            }
            Container::Reaper { report, .. } => {
                (reaper_end(self.killed, *report, child_end), report.all_dead)
            }
        };
        let wall = match (self.released, self.ended) {
            (Some(released), Some(ended)) => ended.saturating_duration_since(released),
            _ => Duration::ZERO,
        };
        let leftover = if self.child_end.is_none() {
            watch.remove(self.child.as_fd());
            Some(self.child)
        } else {
            None
        };
        Ending { end, stdout, stderr, wall, all_dead, leftover }
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
