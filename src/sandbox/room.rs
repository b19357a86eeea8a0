//! A warm sandbox: a bubblewrap that a slot keeps, with our own first process inside (`init`),
//! which starts one command at a time in a few dozen microseconds.
//!
//! As `running`, a state machine without a thread, fed by the supervisor:
//!
//! 1. *Setting up*. bubblewrap makes the namespaces, reports the number of the first process,
//!    which is taken hold of by a pidfd, and that process says that it is ready.
//! 2. *Open*. Commands enter, see `entered`. What they leave behind is killed after each of them
//!    by the first process; the namespaces and mounts stay.
//! 3. *Ending*, for good: at a reset, when the network policy changes, when a command left traces
//!    that are no processes, when something is wrong with it. The first process is killed, the
//!    kernel kills the others, and the end of the last of them is awaited.
//!
//! Only phases 1 and 3 have deadlines: an open sandbox costs nothing while it waits.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::process::Pid;

use super::host::{Host, environment};
use super::init::{self, Link, Said, Stdio};
use super::isolation::{
    self, Bubblewrap, Budget, Failure, Handshake, PROGRAM_FD, SECCOMP_FD, Sandbox, StatusReport,
};
use super::limits::{Alarm, Confined, Limits};
use super::reports::Reports;
use super::running::{KILL_MARGIN, SETUP_LIMIT, TOO_SLOW, open_child_of};
use super::spawn::{self, CStringArray, Child, Reaped};
use super::stream::{Source, Watch};
use super::workspace::Workspace;

/// How long a sandbox that was tried may take to end, where there is no time left.
const TRIAL_END: Duration = Duration::from_millis(300);

/// One warm sandbox.
pub(super) struct Room {
    network: bool,
    phase: Phase,
    deadline: Option<Instant>,
    /// bubblewrap, which waits for the first process.
    child: Child,
    child_end: Option<Reaped>,
    reports: Reports,
    /// What bubblewrap says when it fails.
    errors: OwnedFd,
    link: Option<Arc<Link>>,
    /// The first process has said that it is ready.
    ready: bool,
    init: Option<OwnedFd>,
    init_pid: Option<Pid>,
    init_gone: bool,
    /// Its slot's files.
    workspace: Arc<Workspace>,
    limits: Arc<Limits>,
    /// It, under its slot's limits.
    confined: Option<Confined>,
    runs: u32,
    /// Why nothing ever entered it, if bubblewrap does not say it.
    failed: Option<String>,
    given_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    SettingUp,
    Open,
    Ending,
}

/// What an event means to others.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Commands may enter.
    Opened,
    /// The first process says something of a command.
    Said(Said),
}

impl Room {
    /// Starts to make a sandbox for a slot's files. Blocks for the start of one process.
    ///
    /// # Errors
    /// Whatever the system refuses. Nothing runs then.
    pub(super) fn start(
        workspace: &Arc<Workspace>,
        network: bool,
        bubblewrap: &Bubblewrap,
        host: &Host,
        watch: &Watch<'_>,
    ) -> io::Result<Self> {
        let shell = bubblewrap.layout.shell;
        let argv = [
            OsString::from(init::PROGRAM_PATH),
            shell.path().into(),
            host.open_files.unwrap_or(0).to_string().into(),
        ];
        let filter = bubblewrap.open_filter()?;
        let sandbox = Sandbox {
            workspace: workspace.path(),
            temporary: workspace.temporary(),
            shown: &[],
            network,
            handshake: Handshake::Init,
            seccomp: filter.as_ref().map(|_| SECCOMP_FD),
            argv: &argv,
        };
        let arguments = CStringArray::new(isolation::bwrap_argv(bubblewrap, &sandbox))?;
        let environment =
            environment(Path::new("/workspace"), Path::new("/tmp"), shell, host, None)?;
        let program = init::program()?;
        let (errors, errors_writer) = spawn::pipe()?;
        let (reports, reports_writer) = spawn::pipe()?;
        rustix::io::ioctl_fionbio(&errors, true)?;
        let (link, its_end) = Link::pair()?;
        let null = host.null.as_fd();
        let (errors_fd, reports_fd) = (errors_writer.as_fd(), reports_writer.as_fd());
        const { assert!(init::SOCKET_FD == 4 && PROGRAM_FD == 5 && SECCOMP_FD == 6) };
        let mut fds = vec![null, null, errors_fd, reports_fd, its_end.as_fd(), program.as_fd()];
        fds.extend(filter.as_ref().map(AsFd::as_fd));
        let child = spawn::spawn(
            &CString::new(bubblewrap.program.as_os_str().as_bytes())?,
            &arguments,
            &environment,
            &fds,
            host.command_user,
        )?;
        let room = Self {
            network,
            phase: Phase::SettingUp,
            deadline: Some(Instant::now() + SETUP_LIMIT),
            child,
            child_end: None,
            reports: Reports::new(reports),
            errors,
            link: Some(Arc::new(link)),
            ready: false,
            init: None,
            init_pid: None,
            init_gone: false,
            workspace: workspace.clone(),
            limits: host.limits.clone(),
            confined: None,
            runs: 0,
            failed: None,
            given_up: false,
        };
        if let Err(error) = room.watch_all(watch) {
            // Without the engine's end of the socket it ends by itself.
            let Self { link, child, .. } = room;
            drop(link);
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(child.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            return Err(error);
        }
        Ok(room)
    }

    fn watch_all(&self, watch: &Watch<'_>) -> io::Result<()> {
        self.reports.watch(watch)?;
        if let Some(link) = &self.link {
            watch.add(link.as_fd(), Source::Link)?;
        }
        watch.add(self.child.as_fd(), Source::Child)
    }

    /// Whether a command with this network policy may enter, now or when it is open. `is_full` says
    /// whether the slot has used up its bytes: then nothing may be written in its sandbox.
    pub(super) fn takes(&self, network: bool, is_full: bool) -> bool {
        let confined = self.confined.as_ref();
        self.phase != Phase::Ending
            && self.network == network
            && confined.is_none_or(|confined| confined.was_full() == is_full)
    }

    /// Whether commands may enter now.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// When [`on_deadline`](Self::on_deadline) is due, if ever.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether no process of it is left, or waiting for that was given up.
    pub(super) fn is_gone(&self) -> bool {
        self.given_up || (self.child_end.is_some() && (self.init.is_none() || self.init_gone))
    }

    /// Whether the end of its last process was seen.
    pub(super) fn all_dead(&self) -> bool {
        !self.given_up
    }

    /// Has a command run: the number of the run, and the link that takes the order to kill it.
    /// `alarm` is called when it exceeds a limit, until it has [left](Self::left).
    ///
    /// # Errors
    /// As [`Link::run`].
    pub(super) fn enter(
        &mut self,
        argv: &[OsString],
        stdio: Stdio<'_>,
        script: Option<BorrowedFd<'_>>,
        alarm: Alarm,
    ) -> io::Result<(u32, Arc<Link>)> {
        let link = self.link.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        if let Some(confined) = &self.confined {
            confined.occupied(alarm);
        }
        self.runs = self.runs.wrapping_add(1);
        link.run(self.runs, argv, stdio, script)?;
        Ok((self.runs, Arc::clone(link)))
    }

    /// The command that was in it is over.
    pub(super) fn left(&self) {
        if let Some(confined) = &self.confined {
            confined.vacated();
        }
    }

    /// Whether the kernel has ended it for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.confined.as_ref().is_some_and(Confined::ran_out_of_memory)
    }

    /// Deals with one event.
    pub(super) fn on_event(
        &mut self,
        source: Source,
        watch: &Watch<'_>,
        now: Instant,
    ) -> Vec<News> {
        let mut news = Vec::new();
        match source {
            Source::Link => self.listen(watch, now, &mut news),
            Source::Reports => self.read_reports(watch, now),
            Source::Init => {
                if let Some(init) = &self.init {
                    watch.remove(init.as_fd());
                    self.init_gone = true;
                    self.end(watch, now);
                }
            }
            Source::Child => {
                self.read_reports(watch, now);
                if let end @ (Reaped::Exited(_) | Reaped::Signaled(_) | Reaped::Unknown) =
                    self.child.reap()
                {
                    self.child_end = Some(end);
                    watch.remove(self.child.as_fd());
                    self.end(watch, now);
                }
            }
            Source::Stdout | Source::Stderr | Source::Written => {}
        }
        if let (Phase::SettingUp, true, Some(init)) = (self.phase, self.ready, self.init_pid) {
            self.open(init, watch, now, &mut news);
        }
        news
    }

    fn listen(&mut self, watch: &Watch<'_>, now: Instant, news: &mut Vec<News>) {
        while let Some(link) = &self.link {
            match link.receive() {
                Ok(None) => return,
                Ok(Some(Said::Ready)) => self.ready = true,
                Ok(Some(said)) => news.push(News::Said(said)),
                Err(_) => {
                    self.close_link(watch);
                    self.end(watch, now);
                }
            }
        }
    }

    /// A command that runs may hold the link a little longer; nobody listens to it any more.
    fn close_link(&mut self, watch: &Watch<'_>) {
        if let Some(link) = self.link.take() {
            watch.remove(link.as_fd());
        }
    }

    fn read_reports(&mut self, watch: &Watch<'_>, now: Instant) {
        let report = StatusReport::parse(self.reports.read(watch));
        let (None, Some(pid)) = (&self.init, report.child_pid) else { return };
        let held = open_child_of(self.child.pid(), pid).and_then(|pidfd| {
            watch.add(pidfd.as_fd(), Source::Init)?;
            Ok(pidfd)
        });
        match held {
            Ok(pidfd) => {
                if self.phase == Phase::Ending {
                    spawn::kill(pidfd.as_fd());
                }
                self.init = Some(pidfd);
                self.init_pid = Pid::from_raw(pid);
            }
            // It failed already, and bubblewrap says why.
            Err(error) => {
                log::debug!("cannot take hold of a sandbox's first process: {error}");
                self.end(watch, now);
            }
        }
    }

    /// Puts it under its slot's limits, now that bubblewrap has made its files and before anything
    /// runs in it, and lets commands enter. Its first process is held.
    fn open(&mut self, init: Pid, watch: &Watch<'_>, now: Instant, news: &mut Vec<News>) {
        match self.limits.confine(init, &self.workspace) {
            Ok(confined) => {
                self.confined = Some(confined);
                self.phase = Phase::Open;
                self.deadline = None;
                news.push(News::Opened);
            }
            Err(error) => {
                let text = format!("the sandbox could not be put under its limits: {error}");
                log::error!("{text}");
                self.failed = Some(text);
                self.end(watch, now);
            }
        }
    }

    /// The time of the present phase is up.
    pub(super) fn on_deadline(&mut self, watch: &Watch<'_>, now: Instant) {
        match self.phase {
            Phase::SettingUp => {
                self.failed = Some(TOO_SLOW.to_owned());
                self.end(watch, now);
            }
            Phase::Open => {}
            Phase::Ending => {
                log::error!(
                    "a sandbox did not end within {} s; giving up on it",
                    KILL_MARGIN.as_secs()
                );
                self.child.kill();
                self.given_up = true;
                self.deadline = None;
            }
        }
    }

    /// Begins to end it. Doing so again does nothing.
    pub(super) fn end(&mut self, watch: &Watch<'_>, now: Instant) {
        if self.phase == Phase::Ending {
            return;
        }
        self.phase = Phase::Ending;
        self.deadline = Some(now + KILL_MARGIN);
        // bubblewrap waits for its first process and ends after it. While that process is not known
        // bubblewrap must live, or the process might wait for it for ever; but without the link it
        // ends by itself.
        self.close_link(watch);
        if let Some(init) = &self.init {
            spawn::kill(init.as_fd());
        }
    }

    /// Why nothing ever entered it, as one line.
    pub(super) fn failure(&self) -> String {
        if let Some(failed) = &self.failed {
            return failed.clone();
        }
        let mut text = vec![0; 4096];
        let length = rustix::io::read(&self.errors, &mut text).unwrap_or(0);
        isolation::one_line(&String::from_utf8_lossy(&text[..length]))
    }

    /// Stops watching it. Gives what is still to be reaped, where waiting was given up.
    pub(super) fn finish(self, watch: &Watch<'_>) -> Option<Child> {
        let Self { mut reports, init, init_gone, child, child_end, .. } = self;
        reports.close(watch);
        match init {
            // Its parent, bubblewrap, has waited for it, unless somebody killed that.
            Some(init) if init_gone => spawn::reap_if_ours(init.as_fd()),
            Some(init) => watch.remove(init.as_fd()),
            None => {}
        }
        if child_end.is_some() {
            return None;
        }
        watch.remove(child.as_fd());
        Some(child)
    }
}

/// Makes a warm sandbox, has `true` run in it and ends it again. Blocks until that is done, or
/// `budget` is used up, or the start is interrupted.
///
/// # Errors
/// What failed.
pub(super) fn try_out(
    bubblewrap: &Bubblewrap,
    workspace: &Arc<Workspace>,
    host: &Host,
    budget: &Budget,
) -> Result<(), Failure> {
    budget.check()?;
    let failed = |error: io::Error| Failure::of_error(&error);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let watch = Watch { epoll: &epoll, id: 0 };
    let network = !bubblewrap.can_cut_network;
    let mut room = Room::start(workspace, network, bubblewrap, host, &watch).map_err(failed)?;
    let mut tried = None;
    // When it is killed, because it should have ended by then.
    let mut end_by = None;
    while !room.is_gone() {
        let now = Instant::now();
        if end_by.is_none()
            && let Err(failure) = budget.check()
        {
            tried.get_or_insert(Err(failure));
            end_by = Some(now + TRIAL_END);
            room.end(&watch, now);
        }
        if end_by.is_some_and(|end_by| now >= end_by) {
            break;
        }
        if room.deadline().is_some_and(|due| now >= due) {
            room.on_deadline(&watch, now);
        }
        let mut events = Vec::with_capacity(8);
        let longest = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        // An interrupted wait is taken up again.
        let _ = epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&longest));
        for event in events {
            let Some((_, source)) = Watch::decode(event.data.u64()) else { continue };
            for news in room.on_event(source, &watch, Instant::now()) {
                let done = match news {
                    News::Opened => {
                        let null = host.null.as_fd();
                        let stdio = Stdio { stdin: None, stdout: null, stderr: null };
                        let argv = ["sh", "-c", "true"].map(OsString::from);
                        let alarm = Arc::new(|_| {});
                        let entered = room.enter(&argv, stdio, None, alarm);
                        entered.err().map(|error| Err(failed(error)))
                    }
                    News::Said(Said::Done { end: Ok(0), traces: false, .. }) => Some(Ok(())),
                    News::Said(Said::Done { end: Err(errno), .. }) => {
                        Some(Err(failed(io::Error::from_raw_os_error(errno))))
                    }
                    News::Said(Said::Done { end: Ok(status), .. }) if libc::WIFSIGNALED(status) => {
                        Some(Err(Failure::of_signal(libc::WTERMSIG(status))))
                    }
                    News::Said(Said::Done { end, traces, .. }) => {
                        let text = format!("`true` gave {end:?}, and traces: {traces}");
                        Some(Err(Failure::Broken(text)))
                    }
                    News::Said(_) => None,
                };
                if let Some(done) = done {
                    tried.get_or_insert(done);
                    room.end(&watch, Instant::now());
                }
            }
        }
    }
    let tried = tried.unwrap_or_else(|| Err(Failure::of_text(&room.failure())));
    if let Some(child) = room.finish(&watch) {
        isolation::end(&child);
    }
    tried
}
