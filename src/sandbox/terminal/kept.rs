//! A sandbox that is kept: one program that lives on between calls, in a sandbox of its own.
//!
//! What holds the program's processes together, and nothing else: it is taken hold of before
//! anything in it runs, and killing it kills exactly what is in it and is confirmed. What the
//! program says, and what is said to it, is the business of a [`Program`](super::seat::Program).
//!
//! The handshake is that of [`running`](super::super::running): bubblewrap reports the sandbox's
//! first process, *init*, and waits; init is held by a pidfd; then the program is let go. Where
//! there is no bubblewrap the program runs under a [`reaper`].
//!
//! # If this process dies
//! Then the program dies with it, whenever that is, except in one phase: a sandbox that waits for
//! its start is let go by that death. So a program must do nothing before it has read something
//! from one of its pipes: an end of file there means that nobody has let it go.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::watch::{Source, Watch};
use crate::sandbox::host::Host;
use crate::sandbox::isolation::{self, Bubblewrap, Handshake, Isolation, Sandbox, StatusReport};
use crate::sandbox::limits::{Alarm, Confined, Exceeded, Limits};
use crate::sandbox::reaper::{self, Report, Step};
use crate::sandbox::running::{KILL_MARGIN, SETUP_LIMIT, open_child_of};
use crate::sandbox::shell;
use crate::sandbox::spawn::{self, CStringArray, Child, Reaped};
use crate::sandbox::user::Purpose;
use crate::sandbox::workspace::{GONE, Workspace};

/// No more than this is kept of what bubblewrap or the reaper reports: some 300 bytes are usual.
const REPORTS_LIMIT: usize = 16 * 1024;
/// The number under which bubblewrap gets the filter of system calls.
const FILTER_FD: i32 = isolation::BLOCK_FD + 1;

/// What to run, and what it sees.
pub(super) struct Plan<'a> {
    /// The slot's files.
    pub(super) workspace: &'a Arc<Workspace>,
    /// More host directories, shown read-only: `(host, inside)`. Without a sandbox there is no
    /// inside.
    pub(super) shown: &'a [(&'a Path, &'a Path)],
    /// Whether it has the host's network. Ignored without a sandbox.
    pub(super) network: bool,
    /// The program's absolute path, for where there is no sandbox.
    pub(super) program: &'a Path,
    /// The program, or its `$0`, and its arguments.
    pub(super) argv: &'a [OsString],
    /// What is set in its environment besides what every command finds there.
    pub(super) variables: &'a [(&'a str, &'a str)],
    /// Its standard input, output and error. The last gets bubblewrap's own complaints, too.
    pub(super) stdio: [BorrowedFd<'a>; 3],
}

/// Where a kept sandbox is in its life. It only moves downwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It is being set up; nothing of the program runs.
    SettingUp,
    /// The program was let go.
    Running,
    /// The program has ended or is being killed; not everything is known to be dead.
    Ending,
    /// It is over: nothing is left, or that was given up on.
    Gone,
}

/// How a kept sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeptEnd {
    /// It was killed by us.
    Killed,
    /// It exceeded a limit of its slot.
    Exceeded(Exceeded),
    /// The program ended with this code; in a sandbox 128 + n for signal n.
    Exited(i32),
    /// A signal ended the program. Only without a sandbox.
    Signaled(i32),
    /// The program never ran: why, as one line.
    SetupFailed(String),
    /// What held it was destroyed from outside: why, as one line.
    Lost(String),
}

/// A sandbox with one program in it.
pub(super) struct Kept {
    phase: Phase,
    deadline: Option<Instant>,
    child: Child,
    /// Set when `child` has ended.
    child_end: Option<Reaped>,
    reports: Option<OwnedFd>,
    reported: Vec<u8>,
    hold: Hold,
    released: bool,
    killed: bool,
    exceeded: Option<Exceeded>,
    /// Why it was not let go.
    failed: Option<String>,
    given_up: bool,
    /// Taken when it is confined.
    limits: Option<Unconfined>,
    /// It, under its slot's limits.
    confined: Option<Confined>,
    /// The program's process, once it was looked for. Not in a namespace.
    main: Option<(Pid, OwnedFd)>,
}

/// What is needed to put a sandbox under its slot's limits.
struct Unconfined {
    limits: Arc<Limits>,
    workspace: Arc<Workspace>,
    alarm: Alarm,
}

/// What holds the processes together.
enum Hold {
    /// A pid namespace, made by bubblewrap.
    Namespace {
        /// bubblewrap waits for the end of this pipe.
        gate: Option<OwnedFd>,
        init: Option<OwnedFd>,
        init_gone: bool,
        report: StatusReport,
    },
    /// A reaper.
    Reaper {
        /// Closing it is the order to kill.
        control: Option<OwnedFd>,
        report: Report,
    },
}

impl Kept {
    /// Starts the sandbox. Blocks for the start of one process. `alarm` is called when it exceeds a
    /// limit of its slot.
    ///
    /// # Errors
    /// Whatever the system refuses. Nothing runs then.
    pub(super) fn start(
        plan: &Plan<'_>,
        host: &Host,
        watch: &Watch<'_>,
        alarm: Alarm,
    ) -> io::Result<Self> {
        let (child, reports, hold) = match &host.isolation {
            Isolation::Bubblewrap(bubblewrap) => start_sandboxed(plan, host, bubblewrap)?,
            Isolation::None { .. } => start_bare(plan, host)?,
        };
        let released = matches!(hold, Hold::Reaper { .. });
        let mut kept = Self {
            phase: if released { Phase::Running } else { Phase::SettingUp },
            deadline: (!released).then(|| Instant::now() + SETUP_LIMIT),
            child,
            child_end: None,
            reports: Some(reports),
            reported: Vec::new(),
            hold,
            released,
            killed: false,
            exceeded: None,
            failed: None,
            given_up: false,
            limits: Some(Unconfined {
                limits: host.limits.clone(),
                workspace: plan.workspace.clone(),
                alarm,
            }),
            confined: None,
            main: None,
        };
        if let Err(error) = kept.watch_all(watch) {
            // Without its gate or its control pipe it ends by itself.
            kept.let_go();
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(kept.child.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            return Err(error);
        }
        Ok(kept)
    }

    fn watch_all(&self, watch: &Watch<'_>) -> io::Result<()> {
        if let Some(reports) = &self.reports {
            rustix::io::ioctl_fionbio(reports, true)?;
            watch.add(reports.as_fd(), Source::Reports)?;
        }
        watch.add(self.child.as_fd(), Source::Child)
    }

    /// Gives up what keeps everything from ending by itself.
    fn let_go(&mut self) {
        match &mut self.hold {
            Hold::Namespace { gate, .. } => drop(gate.take()),
            Hold::Reaper { control, .. } => drop(control.take()),
        }
    }

    /// Where it is in its life.
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// When [`on_deadline`](Self::on_deadline) is due: never while the program runs.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the end of every process was seen. Only of use in [`Phase::Gone`].
    pub(super) fn all_dead(&self) -> bool {
        match &self.hold {
            Hold::Namespace { init_gone, .. } => {
                *init_gone || (!self.released && self.child_end.is_some())
            }
            Hold::Reaper { report, .. } => report.all_dead,
        }
    }

    /// How it ended. Only of use in [`Phase::Gone`]. `errors` is what was written to its standard
    /// error, where bubblewrap says why it could not start.
    pub(super) fn end(&self, errors: &str) -> KeptEnd {
        let out_of_memory = self.confined.as_ref().is_some_and(Confined::ran_out_of_memory);
        match (self.exceeded, &self.failed) {
            (Some(exceeded), _) => return KeptEnd::Exceeded(exceeded),
            (None, _) if out_of_memory && !self.killed => {
                return KeptEnd::Exceeded(Exceeded::Memory);
            }
            (None, Some(failed)) if !self.killed => return KeptEnd::SetupFailed(failed.clone()),
            _ => {}
        }
        match &self.hold {
            Hold::Namespace { report, .. } => namespace_end(
                self.killed,
                report.exit_code,
                self.released,
                self.child_end.unwrap_or(Reaped::Running),
                errors,
            ),
            Hold::Reaper { report, .. } => reaper_end(self.killed, *report),
        }
    }

    /// What is still to be reaped, where waiting was given up.
    pub(super) fn into_leftover(self, watch: &Watch<'_>) -> Option<Child> {
        if self.child_end.is_some() {
            return None;
        }
        watch.remove(self.child.as_fd());
        Some(self.child)
    }

    /// Deals with one event of its own.
    pub(super) fn on_event(&mut self, source: Source, watch: &Watch<'_>, now: Instant) {
        match source {
            Source::File(_) => {}
            Source::Reports => self.read_reports(watch, now),
            Source::Child => {
                // What it reported last tells how it ended.
                self.read_reports(watch, now);
                self.child_end = match self.child.reap() {
                    Reaped::Running => return,
                    end => Some(end),
                };
                watch.remove(self.child.as_fd());
                self.begin_end(now);
            }
            Source::Init => {
                if let Hold::Namespace { init: Some(init), init_gone, .. } = &mut self.hold {
                    watch.remove(init.as_fd());
                    *init_gone = true;
                    // Its parent, bubblewrap, ends before it or without waiting for it.
                    spawn::reap_if_ours(init.as_fd());
                }
                self.begin_end(now);
            }
        }
        self.see_whether_gone(watch);
    }

    /// The time for setting up, or for dying, is over.
    pub(super) fn on_deadline(&mut self, watch: &Watch<'_>, now: Instant) {
        match self.phase {
            Phase::SettingUp => {
                self.failed = Some("the sandbox was not ready in time".to_owned());
                self.begin_end(now);
            }
            Phase::Running | Phase::Gone => self.deadline = None,
            Phase::Ending => {
                log::error!(
                    "a kept sandbox's processes did not end within {} s; giving up on them",
                    KILL_MARGIN.as_secs()
                );
                self.child.kill();
                self.given_up = true;
            }
        }
        self.see_whether_gone(watch);
    }

    /// Kills everything in it, unless it is ending anyway.
    pub(super) fn kill(&mut self, now: Instant) {
        if self.phase < Phase::Ending {
            self.killed = true;
            self.begin_end(now);
        }
    }

    /// It has exceeded a limit of its slot: everything in it is killed, unless it is ending anyway.
    pub(super) fn exceed(&mut self, exceeded: Exceeded, now: Instant) {
        if self.phase < Phase::Ending {
            self.exceeded = Some(exceeded);
            self.kill(now);
        }
    }

    /// The program has ended, or is to: nothing of it may be left.
    fn begin_end(&mut self, now: Instant) {
        if self.phase < Phase::Ending {
            self.phase = Phase::Ending;
            self.deadline = Some(now + KILL_MARGIN);
            self.main = None;
        }
        self.kill_processes();
    }

    /// Kills what is held, as far as that is possible in this phase.
    fn kill_processes(&mut self) {
        let by_itself = !self.killed && self.failed.is_none();
        match &mut self.hold {
            Hold::Namespace { init: Some(init), .. } => {
                spawn::kill(init.as_fd());
                // Once the program has ended by itself, bubblewrap still has to report how.
                if !by_itself {
                    self.child.kill();
                }
            }
            // While init is not known bubblewrap must live: init would wait for it for ever. Its
            // report comes soon; then this is called again.
            Hold::Namespace { init: None, .. } => {}
            Hold::Reaper { control, .. } => {
                drop(control.take());
                // It kills nothing while it is stopped, and the program has the right to stop it.
                self.child.resume();
            }
        }
    }

    fn see_whether_gone(&mut self, watch: &Watch<'_>) {
        let held_is_gone = match &self.hold {
            Hold::Namespace { init, init_gone, .. } => init.is_none() || *init_gone,
            Hold::Reaper { .. } => true,
        };
        if self.given_up || (self.child_end.is_some() && held_is_gone) {
            self.phase = Phase::Gone;
            self.deadline = None;
            watch.remove_and_close(&mut self.reports);
            if let Hold::Namespace { init: Some(init), init_gone: false, .. } = &self.hold {
                watch.remove(init.as_fd());
            }
        }
    }

    /// Reads what bubblewrap or the reaper has to say, and acts on it.
    fn read_reports(&mut self, watch: &Watch<'_>, now: Instant) {
        let mut buffer = [0; 1024];
        while let Some(pipe) = &self.reports {
            match rustix::io::read(pipe, &mut buffer) {
                Ok(count) if count > 0 && self.reported.len() < REPORTS_LIMIT => {
                    self.reported.extend_from_slice(&buffer[..count]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                _ => watch.remove_and_close(&mut self.reports),
            }
        }
        let ended = match &mut self.hold {
            Hold::Namespace { init, report, .. } => {
                *report = StatusReport::parse(&self.reported);
                let (pid, ended) = (report.child_pid, report.exit_code.is_some());
                if let (None, Some(pid)) = (init.as_ref(), pid) {
                    self.hold_init(pid, watch, now);
                }
                ended
            }
            Hold::Reaper { report, .. } => {
                *report = Report::parse(&self.reported);
                report.ended.is_some() || report.failed.is_some()
            }
        };
        if ended {
            self.begin_end(now);
        }
    }

    /// Takes hold of the sandbox's init, and lets the program go (or kills it, if that was wanted
    /// meanwhile).
    fn hold_init(&mut self, pid: i32, watch: &Watch<'_>, now: Instant) {
        let Hold::Namespace { gate, init, .. } = &mut self.hold else { return };
        let Some(gate) = gate.take() else { return };
        let held = open_child_of(self.child.pid(), pid).and_then(|pidfd| {
            watch.add(pidfd.as_fd(), Source::Init)?;
            Ok(pidfd)
        });
        match held {
            Ok(pidfd) => *init = Some(pidfd),
            // It failed already, and bubblewrap says why. If not, nobody writes to the program's
            // pipes and that ends it.
            Err(error) => {
                log::debug!("cannot take hold of a sandbox's first process: {error}");
                return;
            }
        }
        if self.phase == Phase::SettingUp {
            if let Err(error) = self.confine(pid) {
                log::error!("cannot put a sandbox under its limits: {error}");
                self.failed = Some(format!("the sandbox could not be limited: {error}"));
                return self.begin_end(now);
            }
            self.phase = Phase::Running;
            self.released = true;
            self.deadline = None;
            drop(gate);
        } else {
            self.kill_processes();
        }
    }

    /// Puts it under its slot's limits. Its first process is held, and nothing of the program runs.
    fn confine(&mut self, init: i32) -> io::Result<()> {
        let (Some(init), Some(Unconfined { limits, workspace, alarm })) =
            (Pid::from_raw(init), self.limits.take())
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let confined = limits.confine_session(init, &workspace)?;
        // It may do something at any time, also between calls.
        confined.occupied(alarm);
        self.confined = Some(confined);
        Ok(())
    }

    /// The root directory that the program sees, only to look beneath. Of use once the program has
    /// given a sign of life: before, the sandbox is not complete.
    ///
    /// # Errors
    /// It is gone, or this process may not look.
    pub(super) fn root(&self, host: &Host) -> io::Result<OwnedFd> {
        use rustix::fs::{Mode, OFlags};
        let open = |path: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
        };
        let Hold::Namespace { init: Some(init), report, .. } = &self.hold else {
            return Ok(open("/")?);
        };
        let path = format!("/proc/{}/root", report.child_pid.unwrap_or_default());
        let root = match (open(&path), host.command_user) {
            // A root without all capabilities: whom the processes belong to may.
            (Err(Errno::ACCESS | Errno::PERM), Some(user)) => {
                let _entered = user.enter(Purpose::Files)?;
                open(&path)?
            }
            (root, _) => root?,
        };
        let identity = |root: &OwnedFd| rustix::fs::fstat(root).map(|s| (s.st_dev, s.st_ino));
        // If it has ended, then the number may have been somebody else's.
        if spawn::has_ended(init.as_fd()) || identity(&root)? == identity(&open("/")?)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(root)
    }

    /// To be called as soon as the program has given a sign of life. Where there is no sandbox,
    /// [`interrupt`](Self::interrupt) needs to know the program's own process, which may have
    /// brothers later.
    pub(super) fn find_main(&mut self) {
        if self.phase == Phase::Running && matches!(self.hold, Hold::Reaper { .. }) {
            let parent = self.child.pid();
            self.main = first_child(parent)
                .and_then(|raw| Some((Pid::from_raw(raw)?, open_child_of(parent, raw).ok()?)));
        }
    }

    /// SIGINT to the program's process group, as a terminal's Ctrl-C, and SIGCONT in case it is
    /// stopped. `false` where that is not possible.
    ///
    /// The group is the one that the program was started in: it does not reach what has left it.
    pub(super) fn interrupt(&self) -> bool {
        // Init is the group's leader, and minds no such signal itself.
        let leader = match &self.hold {
            Hold::Namespace { init: Some(init), report, .. } => {
                report.child_pid.and_then(Pid::from_raw).map(|pid| (pid, init))
            }
            Hold::Namespace { init: None, .. } => None,
            Hold::Reaper { .. } => self.main.as_ref().map(|(pid, pidfd)| (*pid, pidfd)),
        };
        let Some((pid, pidfd)) = leader.filter(|_| self.phase == Phase::Running) else {
            return false;
        };
        signal_group(pid, pidfd.as_fd(), Signal::INT)
            && signal_group(pid, pidfd.as_fd(), Signal::CONT)
    }
}

/// The first child of this process, by the kernel's list.
fn first_child(parent: Pid) -> Option<i32> {
    let pid = parent.as_raw_nonzero();
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    list.split_ascii_whitespace().next()?.parse().ok()
}

/// Sends a signal to the process group that is led by a process that is held by its pidfd. `false`
/// if that is not possible.
fn signal_group(leader: Pid, pidfd: BorrowedFd<'_>, signal: Signal) -> bool {
    use std::os::fd::AsRawFd;
    // SAFETY: plain numbers and no memory: the signal's details may be NULL.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal.as_raw(),
            std::ptr::null::<libc::siginfo_t>(),
            libc::PIDFD_SIGNAL_PROCESS_GROUP,
        )
    };
    if sent == 0 {
        return true;
    }
    if io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
        return false;
    }
    // Before Linux 6.9. The number is the leader's own while it lives, which is looked at last.
    !spawn::has_ended(pidfd) && rustix::process::kill_process_group(leader, signal).is_ok()
}

/// How a program in a sandbox ended; see `namespace_end` of `running`.
fn namespace_end(
    killed: bool,
    exit_code: Option<i32>,
    released: bool,
    bubblewrap: Reaped,
    errors: &str,
) -> KeptEnd {
    if killed {
        return KeptEnd::Killed;
    }
    let lost = |text: String| {
        if released { KeptEnd::Lost(text) } else { KeptEnd::SetupFailed(text) }
    };
    match (exit_code, bubblewrap) {
        (Some(code), _) if released => KeptEnd::Exited(code),
        (Some(_), _) => KeptEnd::SetupFailed("the sandbox could not be taken hold of".to_owned()),
        (None, Reaped::Exited(_)) if !released => KeptEnd::SetupFailed(isolation::one_line(errors)),
        (None, Reaped::Exited(code)) => lost(format!("bubblewrap ended with code {code}")),
        (None, Reaped::Signaled(signal)) => {
            lost(format!("bubblewrap was killed by signal {signal}"))
        }
        (None, Reaped::Unknown | Reaped::Running) => {
            lost("bubblewrap ended without a report".to_owned())
        }
    }
}

/// How a program under a reaper ended.
fn reaper_end(killed: bool, report: Report) -> KeptEnd {
    if killed {
        return KeptEnd::Killed;
    }
    if let Some((step, errno)) = report.failed {
        let error = io::Error::from_raw_os_error(errno);
        return KeptEnd::SetupFailed(match step {
            Step::ChangeUser => format!("cannot become an unprivileged user: {error}"),
            Step::Fork => format!("cannot make a process: {error}"),
            Step::ChangeDirectory => format!("cannot enter the workspace: {error}"),
            Step::Execute => format!("cannot execute the program: {error}"),
        });
    }
    match report.ended {
        Some(status) if libc::WIFSIGNALED(status) => KeptEnd::Signaled(libc::WTERMSIG(status)),
        Some(status) => KeptEnd::Exited(libc::WEXITSTATUS(status)),
        None => KeptEnd::Lost("the program's reaper ended early".to_owned()),
    }
}

/// Starts bubblewrap, which waits with the program for the gate.
fn start_sandboxed(
    plan: &Plan<'_>,
    host: &Host,
    bubblewrap: &Bubblewrap,
) -> io::Result<(Child, OwnedFd, Hold)> {
    if !plan.workspace.is_there() {
        return Err(io::Error::new(io::ErrorKind::NotFound, GONE));
    }
    let filter = bubblewrap.open_filter()?;
    let sandbox = Sandbox {
        workspace: plan.workspace.path(),
        temporary: plan.workspace.temporary(),
        shown: plan.shown,
        network: plan.network,
        handshake: Handshake::Block,
        seccomp: filter.is_some().then_some(FILTER_FD),
        argv: plan.argv,
    };
    let arguments = CStringArray::new(isolation::bwrap_argv(bubblewrap, &sandbox))?;
    let environment = environment(plan, Path::new("/workspace"), Path::new("/tmp"), host)?;
    let (reports, reports_writer) = spawn::pipe()?;
    let (block_reader, gate) = spawn::pipe()?;
    let [stdin, stdout, stderr] = plan.stdio;
    const { assert!(isolation::STATUS_FD == 3 && isolation::BLOCK_FD == 4 && FILTER_FD == 5) };
    let mut fds = vec![stdin, stdout, stderr, reports_writer.as_fd(), block_reader.as_fd()];
    fds.extend(filter.as_ref().map(AsFd::as_fd));
    let child = spawn::spawn(
        &CString::new(bubblewrap.program.as_os_str().as_bytes())?,
        &arguments,
        &environment,
        &fds,
        host.command_user,
    )?;
    let report = StatusReport::default();
    Ok((child, reports, Hold::Namespace { gate: Some(gate), init: None, init_gone: false, report }))
}

/// Starts the program under a reaper.
fn start_bare(plan: &Plan<'_>, host: &Host) -> io::Result<(Child, OwnedFd, Hold)> {
    let reaper = reaper::start(&reaper::Command {
        program: &CString::new(plan.program.as_os_str().as_bytes())?,
        arguments: &CStringArray::new(plan.argv.iter().cloned())?,
        environment: &environment(plan, plan.workspace.path(), plan.workspace.temporary(), host)?,
        directory: plan.workspace.path(),
        stdio: plan.stdio,
        script: None,
        open_files: host.open_files,
        user: host.command_user,
    })?;
    let hold = Hold::Reaper { control: Some(reaper.control), report: Report::default() };
    Ok((reaper.child, reaper.report, hold))
}

/// The program's environment: that of every command, and the plan's own variables.
fn environment(
    plan: &Plan<'_>,
    home: &Path,
    temporary: &Path,
    host: &Host,
) -> io::Result<CStringArray> {
    let common = shell::environment(home, temporary, host.shell, &host.user, None);
    let named = |entry: &OsString, name: &str| {
        entry.as_bytes().strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
    };
    let common = common
        .into_iter()
        .filter(|entry| !plan.variables.iter().any(|(name, _)| named(entry, name)));
    let own = plan.variables.iter().map(|(name, value)| OsString::from(format!("{name}={value}")));
    CStringArray::new(common.chain(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_report_of_bubblewrap_makes_an_exit_code() {
        let end = |killed, code, released, child| {
            namespace_end(killed, code, released, child, "bwrap: no\nreally\n")
        };
        assert_eq!(end(false, Some(1), true, Reaped::Exited(1)), KeptEnd::Exited(1));
        assert_eq!(end(true, Some(1), true, Reaped::Exited(1)), KeptEnd::Killed);
        assert_eq!(
            end(false, None, false, Reaped::Exited(1)),
            KeptEnd::SetupFailed("bwrap: no; really".to_owned())
        );
        // What the program printed is no reason for anything.
        assert!(
            matches!(end(false, None, true, Reaped::Exited(1)), KeptEnd::Lost(text) if !text.contains("really"))
        );
        assert!(matches!(end(false, None, true, Reaped::Signaled(9)), KeptEnd::Lost(_)));
        assert!(matches!(end(false, Some(1), false, Reaped::Exited(1)), KeptEnd::SetupFailed(_)));
    }

    #[test]
    fn a_program_under_a_reaper_ends_as_it_was_reported() {
        let report = |failed, ended| Report { failed, ended, all_dead: true };
        assert_eq!(reaper_end(false, report(None, Some(256))), KeptEnd::Exited(1));
        assert_eq!(reaper_end(false, report(None, Some(9))), KeptEnd::Signaled(9));
        assert_eq!(reaper_end(true, report(None, Some(9))), KeptEnd::Killed);
        assert!(matches!(reaper_end(false, report(None, None)), KeptEnd::Lost(_)));
        let failed = reaper_end(false, report(Some((Step::Execute, libc::ENOENT)), None));
        assert!(matches!(failed, KeptEnd::SetupFailed(text) if text.contains("No such file")));
    }
}
