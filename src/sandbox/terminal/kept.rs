//! A sandbox that is kept: one program that lives on between calls, with a jail of its own in its
//! slot's machine.
//!
//! What holds the program's processes together, and nothing else: it is taken hold of before
//! anything in it runs, and killing it kills exactly what is in it and is confirmed. What the
//! program says, and what is said to it, is the business of a [`Program`](super::seat::Program).
//!
//! It is a [`Jail`], in which the program is the one thing that is run; where there is none, the
//! program runs under a [`reaper`]. Before there is a jail the supervisor is asked for the slot's
//! machine, and has it made if need be.

use std::ffi::{CString, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::seat::Common;
use super::watch::{Source, Watch};
use crate::sandbox::entered::exit_code;
use crate::sandbox::host::Host;
use crate::sandbox::init::{Run, RunEvent};
use crate::sandbox::isolation::{Contents, Isolation, Jails};
pub(super) use crate::sandbox::jail::Phase;
use crate::sandbox::jail::{
    self, Bounds, Jail, KILL_MARGIN, Machine, News, RunHandle, SETUP_LIMIT, TOO_SLOW,
};
use crate::sandbox::limits::{Alarm, Exceeded, Leftover};
use crate::sandbox::reaper::{self, Report, Step};
use crate::sandbox::running::open_child_of;
use crate::sandbox::shell::Places;
use crate::sandbox::spawn::{self, CStringArray, Child, Reaped};
use crate::sandbox::workspace::{GONE, Workspace};

/// No more than this is kept of what the reaper reports: some 30 bytes are usual.
const REPORTS_LIMIT: usize = 16 * 1024;

/// What to run, and what it sees.
pub(super) struct Plan<'a> {
    /// The slot's files.
    pub(super) workspace: &'a Arc<Workspace>,
    /// Whether it has the host's network. Ignored without a sandbox.
    pub(super) network: bool,
    /// The program's absolute path.
    pub(super) program: &'a Path,
    /// Its `$0` and its arguments.
    pub(super) argv: &'a [OsString],
    /// What is set in its environment besides what every command finds there.
    pub(super) variables: &'a [(&'a str, &'a str)],
    /// Its standard input, output and error.
    pub(super) stdio: [BorrowedFd<'a>; 3],
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
    hold: Hold,
    killed: bool,
    exceeded: Option<Exceeded>,
}

/// What holds the processes together.
enum Hold {
    Jailed(Jailed),
    Reaped(UnderReaper),
}

/// A jail in which the program is run.
struct Jailed {
    stage: Stage,
    /// Taken when it runs.
    entry: Option<Entry>,
    run: Option<RunHandle>,
    /// How the program has ended: its wait status, or why there never was one.
    end: Option<Result<i32, i32>>,
    /// Why it could not be run.
    failed: Option<String>,
}

/// How far the jail is.
enum Stage {
    /// It is to be made when there is a machine for it.
    Waiting(Box<Waiting>),
    /// It is there, or was.
    Made(Box<Jail>),
    /// It was never made.
    Never,
}

/// What a jail is made of, and until when its machine is waited for.
struct Waiting {
    plan: jail::Plan,
    workspace: Arc<Workspace>,
    deadline: Instant,
}

/// What is needed to run the program.
struct Entry {
    argv: Vec<OsString>,
    stdio: [OwnedFd; 3],
    alarm: Alarm,
}

/// A reaper, under which the program runs.
struct UnderReaper {
    phase: Phase,
    deadline: Option<Instant>,
    child: Child,
    /// Set when `child` has ended.
    child_end: Option<Reaped>,
    reports: Option<OwnedFd>,
    reported: Vec<u8>,
    report: Report,
    /// Closing it is the order to kill.
    control: Option<OwnedFd>,
    /// The program's process, once it was looked for.
    main: Option<(Pid, OwnedFd)>,
}

impl Kept {
    /// Starts the sandbox, or asks for the machine in which it is to be made. Blocks for the start
    /// of one process at most.
    ///
    /// # Errors
    /// Whatever the system refuses. Nothing runs then.
    pub(super) fn start(plan: &Plan<'_>, common: &Common, watch: &Watch<'_>) -> io::Result<Self> {
        let host = &common.host;
        let hold = match &host.isolation {
            Isolation::Jailed(jails) => {
                let jailed = Jailed::prepare(plan, host, jails, common.alarm(watch.key))?;
                common.ask_for_machine(plan.workspace, plan.network, watch.key);
                Hold::Jailed(jailed)
            }
            Isolation::None { .. } => Hold::Reaped(UnderReaper::start(plan, host, watch)?),
        };
        Ok(Self { hold, killed: false, exceeded: None })
    }

    /// Where it is in its life. While it is being set up nothing of the program runs.
    pub(super) fn phase(&self) -> Phase {
        match &self.hold {
            Hold::Jailed(jailed) => jailed.phase(),
            Hold::Reaped(reaped) => reaped.phase,
        }
    }

    /// When [`on_deadline`](Self::on_deadline) is due: never while the program runs.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.hold {
            Hold::Jailed(jailed) => jailed.deadline(),
            Hold::Reaped(reaped) => reaped.deadline,
        }
    }

    /// Whether nothing of it can run any more: the end of every process was seen, or its jail is
    /// retired. Only of use in [`Phase::Gone`].
    pub(super) fn all_dead(&self) -> bool {
        match &self.hold {
            Hold::Jailed(_) => true,
            Hold::Reaped(reaped) => reaped.report.all_dead,
        }
    }

    /// Whether the kernel has killed something in it for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        match &self.hold {
            Hold::Jailed(jailed) => jailed.jail().is_some_and(Jail::ran_out_of_memory),
            Hold::Reaped(_) => false,
        }
    }

    /// How it ended. Only of use in [`Phase::Gone`].
    pub(super) fn end(&self) -> KeptEnd {
        match (self.exceeded, self.killed) {
            (Some(exceeded), _) => KeptEnd::Exceeded(exceeded),
            (None, true) => KeptEnd::Killed,
            (None, false) if self.ran_out_of_memory() => KeptEnd::Exceeded(Exceeded::Memory),
            (None, false) => match &self.hold {
                Hold::Jailed(jailed) => jailed.end(),
                Hold::Reaped(reaped) => reaper_end(reaped.report),
            },
        }
    }

    /// What is still to be reaped, where waiting was given up.
    pub(super) fn into_leftover(self, watch: &Watch<'_>) -> Option<Leftover> {
        match self.hold {
            Hold::Jailed(Jailed { stage: Stage::Made(jail), .. }) => jail.finish(watch),
            Hold::Jailed(_) => None,
            Hold::Reaped(reaped) if reaped.child_end.is_some() => None,
            Hold::Reaped(reaped) => {
                watch.remove(reaped.child.as_fd());
                Some(Leftover::of(reaped.child))
            }
        }
    }

    /// The machine is there in which its jail is to be made, or cannot be had. Blocks for the start
    /// of one process.
    pub(super) fn on_machine(
        &mut self,
        machine: Result<Arc<Machine>, String>,
        host: &Host,
        watch: &Watch<'_>,
    ) {
        if let Hold::Jailed(jailed) = &mut self.hold {
            jailed.on_machine(machine, host, watch);
        }
    }

    /// Deals with one event of its own.
    pub(super) fn on_event(&mut self, source: Source, watch: &Watch<'_>, now: Instant) {
        match (&mut self.hold, source) {
            (Hold::Jailed(jailed), Source::JailSocket) => {
                jailed.on_event(jail::Source::Socket, watch, now);
            }
            (Hold::Jailed(jailed), Source::JailEnd) => {
                jailed.on_event(jail::Source::End, watch, now);
            }
            (Hold::Reaped(reaped), Source::Reports | Source::Child) => {
                reaped.on_event(source, watch, now);
            }
            _ => {}
        }
    }

    /// The time for setting up, or for dying, is over.
    pub(super) fn on_deadline(&mut self, watch: &Watch<'_>, now: Instant) {
        match &mut self.hold {
            Hold::Jailed(jailed) => jailed.on_deadline(watch, now),
            Hold::Reaped(reaped) => reaped.on_deadline(watch),
        }
    }

    /// Kills everything in it, unless it is ending anyway.
    pub(super) fn kill(&mut self, watch: &Watch<'_>, now: Instant) {
        if self.phase() < Phase::Ending {
            self.killed = true;
            match &mut self.hold {
                Hold::Jailed(jailed) => jailed.end_jail(watch, now),
                Hold::Reaped(reaped) => reaped.begin_end(now),
            }
        }
    }

    /// It has exceeded a limit of its slot: everything in it is killed, unless it is ending anyway.
    pub(super) fn exceed(&mut self, exceeded: Exceeded, watch: &Watch<'_>, now: Instant) {
        if self.phase() < Phase::Ending {
            self.exceeded = Some(exceeded);
            self.kill(watch, now);
        }
    }

    /// The root directory that the program sees, only to look beneath.
    ///
    /// # Errors
    /// It is not there yet, or cannot be had.
    pub(super) fn root(&self) -> io::Result<OwnedFd> {
        use rustix::fs::{Mode, OFlags};
        match &self.hold {
            Hold::Jailed(jailed) => {
                let root = jailed.jail().and_then(Jail::root).ok_or(io::ErrorKind::NotFound)?;
                root.try_clone_to_owned()
            }
            Hold::Reaped(_) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                Ok(rustix::fs::open("/", flags, Mode::empty())?)
            }
        }
    }

    /// To be called as soon as the program has given a sign of life. Where there is no sandbox,
    /// [`interrupt`](Self::interrupt) needs to know the program's own process, which may have
    /// brothers later.
    pub(super) fn find_main(&mut self) {
        if let Hold::Reaped(reaped) = &mut self.hold
            && reaped.phase == Phase::Running
        {
            let parent = reaped.child.pid();
            reaped.main = first_child(parent)
                .and_then(|raw| Some((Pid::from_raw(raw)?, open_child_of(parent, raw).ok()?)));
        }
    }

    /// SIGINT to the program's process group, as a terminal's Ctrl-C, and SIGCONT in case it is
    /// stopped. `false` where that is not possible.
    ///
    /// The group is the one that the program was started in: it does not reach what has left it.
    pub(super) fn interrupt(&self) -> bool {
        if self.phase() != Phase::Running {
            return false;
        }
        [Signal::INT, Signal::CONT].into_iter().all(|signal| match &self.hold {
            Hold::Jailed(jailed) => {
                let run = jailed.run.as_ref().filter(|_| jailed.end.is_none());
                run.is_some_and(|run| run.signal(signal.as_raw()).is_ok())
            }
            Hold::Reaped(reaped) => {
                let main = reaped.main.as_ref();
                main.is_some_and(|(pid, pidfd)| signal_group(*pid, pidfd.as_fd(), signal))
            }
        })
    }
}

impl Jailed {
    /// Prepares what is to be made when there is a machine.
    fn prepare(plan: &Plan<'_>, host: &Host, jails: &Jails, alarm: Alarm) -> io::Result<Self> {
        if !plan.workspace.is_there() {
            return Err(io::Error::new(io::ErrorKind::NotFound, GONE));
        }
        let contents = Contents {
            workspace: plan.workspace,
            network: plan.network,
            program: plan.program,
            environment: variables(plan, &plan.workspace.inside(), host),
            open_files: None,
            // It sees what its machine does.
            cgroups: Vec::new(),
        };
        let [stdin, stdout, stderr] = plan.stdio;
        let entry = Entry {
            argv: plan.argv.to_vec(),
            stdio: [
                stdin.try_clone_to_owned()?,
                stdout.try_clone_to_owned()?,
                stderr.try_clone_to_owned()?,
            ],
            alarm,
        };
        let waiting = Waiting {
            plan: jails.plan(contents),
            workspace: plan.workspace.clone(),
            // The founding of a machine has a deadline of its own; this is for the unforeseen.
            deadline: Instant::now() + SETUP_LIMIT + KILL_MARGIN,
        };
        let stage = Stage::Waiting(Box::new(waiting));
        Ok(Self { stage, entry: Some(entry), run: None, end: None, failed: None })
    }

    fn phase(&self) -> Phase {
        match &self.stage {
            Stage::Waiting(_) => Phase::SettingUp,
            Stage::Made(jail) => jail.phase(),
            Stage::Never => Phase::Gone,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting(waiting) => Some(waiting.deadline),
            Stage::Made(jail) => jail.deadline(),
            Stage::Never => None,
        }
    }

    fn jail(&self) -> Option<&Jail> {
        match &self.stage {
            Stage::Made(jail) => Some(jail),
            Stage::Waiting(_) | Stage::Never => None,
        }
    }

    fn on_machine(
        &mut self,
        machine: Result<Arc<Machine>, String>,
        host: &Host,
        watch: &Watch<'_>,
    ) {
        let waiting = match std::mem::replace(&mut self.stage, Stage::Never) {
            Stage::Waiting(waiting) => waiting,
            // It was ended meanwhile.
            stage => return self.stage = stage,
        };
        let made = machine.and_then(|machine| {
            let Isolation::Jailed(jails) = &host.isolation else {
                return Err("commands are not isolated".to_owned());
            };
            let Waiting { plan, workspace, .. } = *waiting;
            let origin = jails.origin(&host.null, &workspace);
            let bounds = Bounds {
                limits: host.limits.clone(),
                workspace: workspace.clone(),
                is_session: true,
            };
            Jail::start(&plan, Some(machine), &origin, bounds, watch)
                .map_err(|error| error.to_string())
        });
        match made {
            Ok(jail) => self.stage = Stage::Made(Box::new(jail)),
            Err(why) => self.never(&why),
        }
    }

    /// Nothing of it will ever run.
    fn never(&mut self, why: &dyn fmt::Display) {
        self.failed.get_or_insert(why.to_string());
        (self.stage, self.entry) = (Stage::Never, None);
    }

    fn on_deadline(&mut self, watch: &Watch<'_>, now: Instant) {
        match &mut self.stage {
            Stage::Waiting(_) => self.never(&TOO_SLOW),
            Stage::Made(jail) => jail.on_deadline(watch, now),
            Stage::Never => {}
        }
    }

    fn end_jail(&mut self, watch: &Watch<'_>, now: Instant) {
        match &mut self.stage {
            Stage::Waiting(_) => self.never(&"it was ended before it began"),
            Stage::Made(jail) => jail.end(watch, now),
            Stage::Never => {}
        }
    }

    fn on_event(&mut self, source: jail::Source, watch: &Watch<'_>, now: Instant) {
        let Stage::Made(jail) = &mut self.stage else { return };
        for news in jail.on_event(source, watch, now) {
            match news {
                News::Opened => self.run(watch, now),
                News::Run(RunEvent::Ended { status, .. }) => {
                    self.end.get_or_insert(Ok(status));
                    self.end_jail(watch, now);
                }
                News::Run(RunEvent::Rest { .. }) => {}
                News::Run(RunEvent::Done { end, .. }) => {
                    self.end.get_or_insert(end);
                    self.end_jail(watch, now);
                }
            }
        }
    }

    /// The jail is open: the program is let go.
    fn run(&mut self, watch: &Watch<'_>, now: Instant) {
        let Stage::Made(jail) = &mut self.stage else { return };
        let Some(Entry { argv, stdio: [stdin, stdout, stderr], alarm }) = self.entry.take() else {
            return;
        };
        let run = Run {
            argv: &argv,
            stdin: Some(stdin.as_fd()),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            script: None,
            verdict: None,
            may_keep: false,
        };
        match jail.run(&run, alarm) {
            Ok(run) => self.run = Some(run),
            Err(error) => {
                self.failed = Some(error.to_string());
                jail.end(watch, now);
            }
        }
    }

    fn end(&self) -> KeptEnd {
        match (self.end, &self.failed) {
            (Some(Ok(status)), _) => KeptEnd::Exited(exit_code(status)),
            (Some(Err(errno)), _) => {
                let error = io::Error::from_raw_os_error(errno);
                KeptEnd::SetupFailed(format!("cannot execute the program: {error}"))
            }
            (None, Some(failed)) => KeptEnd::SetupFailed(failed.clone()),
            (None, None) if self.run.is_some() => {
                KeptEnd::Lost("its sandbox was destroyed".to_owned())
            }
            (None, None) => KeptEnd::SetupFailed(match self.jail() {
                Some(jail) => jail.failure().to_string(),
                None => "its sandbox was never made".to_owned(),
            }),
        }
    }
}

impl UnderReaper {
    fn start(plan: &Plan<'_>, host: &Host, watch: &Watch<'_>) -> io::Result<Self> {
        let reaper = reaper::start(&reaper::Command {
            program: &CString::new(plan.program.as_os_str().as_bytes())?,
            arguments: &CStringArray::new(plan.argv.iter().cloned())?,
            environment: &CStringArray::new(variables(plan, &plan.workspace.on_host(), host))?,
            directory: plan.workspace.path(),
            stdio: plan.stdio,
            script: None,
            open_files: host.open_files,
            user: plan.workspace.owner(),
        })?;
        let mut reaped = Self {
            phase: Phase::Running,
            deadline: None,
            child: reaper.child,
            child_end: None,
            reports: Some(reaper.report),
            reported: Vec::new(),
            report: Report::default(),
            control: Some(reaper.control),
            main: None,
        };
        if let Err(error) = reaped.watch_all(watch) {
            // Without its control pipe it ends by itself.
            reaped.control = None;
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(reaped.child.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            return Err(error);
        }
        Ok(reaped)
    }

    fn watch_all(&self, watch: &Watch<'_>) -> io::Result<()> {
        if let Some(reports) = &self.reports {
            rustix::io::ioctl_fionbio(reports, true)?;
            watch.add(reports.as_fd(), Source::Reports)?;
        }
        watch.add(self.child.as_fd(), Source::Child)
    }

    fn on_event(&mut self, source: Source, watch: &Watch<'_>, now: Instant) {
        // What it reported last tells how it ended.
        self.read_reports(watch, now);
        if source == Source::Child {
            self.child_end = match self.child.reap() {
                Reaped::Running => return,
                end => Some(end),
            };
            watch.remove(self.child.as_fd());
            self.begin_end(now);
            self.gone(watch);
        }
    }

    fn on_deadline(&mut self, watch: &Watch<'_>) {
        self.deadline = None;
        if self.phase == Phase::Ending {
            log::error!(
                "a kept program's processes did not end within {} s; giving up on them",
                KILL_MARGIN.as_secs()
            );
            self.child.kill();
            self.gone(watch);
        }
    }

    fn gone(&mut self, watch: &Watch<'_>) {
        (self.phase, self.deadline) = (Phase::Gone, None);
        watch.remove_and_close(&mut self.reports);
    }

    /// The program has ended, or is to: nothing of it may be left.
    fn begin_end(&mut self, now: Instant) {
        if self.phase < Phase::Ending {
            (self.phase, self.deadline) = (Phase::Ending, Some(now + KILL_MARGIN));
            self.main = None;
            self.control = None;
            // It kills nothing while it is stopped, and the program has the right to stop it.
            self.child.resume();
        }
    }

    /// Reads what the reaper has to say, and acts on it.
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
        self.report = Report::parse(&self.reported);
        if self.report.ended.is_some() || self.report.failed.is_some() {
            self.begin_end(now);
        }
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

/// How a program under a reaper ended.
fn reaper_end(report: Report) -> KeptEnd {
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

/// The program's environment: that of every command, and the plan's own variables.
fn variables(plan: &Plan<'_>, places: &Places<'_>, host: &Host) -> Vec<OsString> {
    let common = host.environment(plan.workspace, places);
    let named = |entry: &OsString, name: &str| {
        entry.as_bytes().strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
    };
    let common = common
        .into_iter()
        .filter(|entry| !plan.variables.iter().any(|(name, _)| named(entry, name)));
    let own = plan.variables.iter().map(|(name, value)| OsString::from(format!("{name}={value}")));
    common.chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_under_a_reaper_ends_as_it_was_reported() {
        let report = |failed, ended| Report { failed, ended, all_dead: true };
        assert_eq!(reaper_end(report(None, Some(256))), KeptEnd::Exited(1));
        assert_eq!(reaper_end(report(None, Some(9))), KeptEnd::Signaled(9));
        assert!(matches!(reaper_end(report(None, None)), KeptEnd::Lost(_)));
        let failed = reaper_end(report(Some((Step::Execute, libc::ENOENT)), None));
        assert!(matches!(failed, KeptEnd::SetupFailed(text) if text.contains("No such file")));
    }
}
