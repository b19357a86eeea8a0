//! A jail: our own first process (`init`) and all that it starts, one program at a time in a few
//! dozen microseconds, in the namespaces of a [`Machine`].
//!
//! The first jail of a slot founds its machine, further ones join it: they differ in nothing but
//! how they are made.
//!
//! Made from a [`Plan`], which is data, by the supervisor for a slot's commands and by the
//! terminals for their sessions. A state machine without a thread, fed by its owner with the events
//! of two descriptors ([`Source`]):
//!
//! 1. *Setting up*. The first process is born into the namespaces, held by a pidfd, and makes the
//!    rest as it is told: all of a machine, or what is a jail's own. Nothing else runs.
//! 2. *Running*. It is complete, and under its slot's limits: programs [run](Jail::run) in it. What
//!    they leave behind is killed after each of them by the first process; namespaces and mounts
//!    stay.
//! 3. *Ending*, for good. The first process is killed, the kernel kills the others, and the end of
//!    the last of them is awaited: that is when the pidfd tells of the end.
//! 4. *Gone*: nothing is left; or the jail is *retired*, since its end takes too long: then what is
//!    left of it, which runs nothing more, is watched by its owner as a [`Leftover`].
//!
//! One socket to the first process is gate, order channel and death signal: while it is not told to
//! run something, nothing runs; when the engine's end is closed, which no death of this process can
//! prevent, the first process ends, and with it everything in the jail.
//!
//! # Limits
//! Only setting up and ending have deadlines: a jail costs nothing while it waits. It holds three
//! descriptors, its machine up to seven. It never blocks, but for the clone and the executing of
//! the first process.

mod clone;
mod holder;
mod join;
mod layers;
mod machine;
mod plan;
mod start;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use holder::Holder;
pub(super) use layers::{IdMaps, can_map_owners, hands_over};
pub(super) use machine::Machine;
pub(super) use plan::{
    Access, Entry, Hold, MOST_TREES, Network, Overlay, Plan, Proc, Rights, Tree, UPPER, User,
    has_device,
};

use self::plan::{Step, encode};
use self::start::{Birth, Born, Stage};
use super::init::message::handle;
use super::init::{Handles, InitEvent, InitSocket, Run, RunEvent};
use super::limits::{Alarm, Confined, Entrance, Group, Leftover, Limits, Refusals};
use super::spawn::{CStringArray, Child, Reaped, has_ended};
use super::user::CommandUser;
use super::workspace::Workspace;
use crate::egress::Egress;

/// How long a jail may take to be ready. A few milliseconds are usual; a thousand at once on a
/// small machine take seconds.
pub(super) const SETUP_LIMIT: Duration = Duration::from_secs(30);
/// How long the end of killed processes is awaited before a jail is retired.
pub(super) const KILL_MARGIN: Duration = Duration::from_secs(5);
/// Why a command was not started whose jail took longer than [`SETUP_LIMIT`].
pub(super) const TOO_SLOW: &str = "the sandbox was not ready in time";

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The socket to the first process.
    Socket,
    /// The end of the last process.
    End,
}

/// Where the owner of a jail has its descriptors watched.
pub(super) trait Events {
    /// Has it watched.
    ///
    /// # Errors
    /// Those of `epoll_ctl`.
    fn add(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()>;
    /// Has it watched no longer.
    fn remove(&self, fd: BorrowedFd<'_>);
}

/// Where a jail is in its life. It only moves downwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It is being made; nothing of a command runs.
    SettingUp,
    /// Programs may run in it.
    Running,
    /// It is being ended, or has ended by itself; not everything is known to be dead.
    Ending,
    /// Nothing is left, or it is retired.
    Gone,
}

/// What every jail of an engine is born with.
pub(super) struct Origin<'a> {
    /// The first process's program.
    pub(super) program: BorrowedFd<'a>,
    /// `/dev/null`.
    pub(super) null: BorrowedFd<'a>,
    /// Whom it runs as, if not as the host.
    pub(super) user: Option<CommandUser>,
    /// What serves the proxies of machines that have one.
    pub(super) egress: Option<&'a Arc<Egress>>,
    /// What maps the ids of layers.
    pub(super) id_maps: &'a IdMaps,
}

/// What a jail is put under before anything runs in it.
pub(super) struct Bounds {
    /// The limits of slots.
    pub(super) limits: Arc<Limits>,
    /// Its slot's files.
    pub(super) workspace: Arc<Workspace>,
    /// Whether it is a session's, which is not replaced when its slot has room again.
    pub(super) is_session: bool,
}

/// Why a jail could not be made.
#[derive(Debug)]
pub(super) struct SetupError {
    /// What could not be done, as a verb and its object.
    what: String,
    /// Whether it was the making of the namespaces themselves.
    pub(super) of_namespaces: bool,
    /// The signal that ended the first process, if one did.
    pub(super) signal: Option<i32>,
    /// Why not.
    pub(super) source: io::Error,
}

/// One jail.
pub(super) struct Jail {
    phase: Phase,
    deadline: Option<Instant>,
    /// The first process.
    child: Child,
    /// How that has ended.
    child_end: Option<Reaped>,
    socket: Option<Arc<InitSocket>>,
    steps: Vec<Step>,
    root: Option<OwnedFd>,
    /// Its machine; none while one that founds one is set up.
    machine: Option<Arc<Machine>>,
    /// The network of the machine that it founds, if it does.
    founds: Option<Network>,
    /// The machine that it founds one beside.
    beside: Option<Arc<Machine>>,
    /// Whether another machine would have the same files: then there is no use in another one where
    /// nothing can be run in this one any more.
    keeps_machine: bool,
    /// What serves the proxy of that, where it has one.
    egress: Option<Arc<Egress>>,
    bounds: Bounds,
    /// Its cgroup, until it is confined.
    group: Option<Group>,
    confined: Option<Confined>,
    runs: u32,
    failed: Option<SetupError>,
    is_retired: bool,
}

/// Who may be told to kill a run, or to signal it.
#[derive(Clone)]
pub(super) struct RunHandle {
    number: u32,
    socket: Arc<InitSocket>,
}

/// What an event means to the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// It is running: programs may be run.
    Opened,
    /// The first process says something of a run.
    Run(RunEvent),
}

impl Jail {
    /// Begins to make a jail, in this machine, or in one that it founds. Blocks for the start of
    /// one process.
    ///
    /// # Errors
    /// Whatever the system refuses. Nothing runs then.
    pub(super) fn start(
        plan: &Plan,
        machine: Option<Arc<Machine>>,
        origin: &Origin<'_>,
        bounds: Bounds,
        events: &impl Events,
    ) -> Result<Self, SetupError> {
        let prepare = |source| SetupError::new("prepare a sandbox", source);
        let retired = bounds.limits.retired();
        if retired.is_full() {
            let text = format!("{} that were killed have not ended yet", retired.count());
            return Err(SetupError::new("make another sandbox", io::Error::other(text)));
        }
        // In a machine with another network it founds one beside that.
        let beside = machine.as_ref().filter(|machine| machine.network() != plan.network).cloned();
        let (is_first, is_beside) = (machine.is_none(), beside.is_some());
        let founds = (is_first || is_beside).then_some(plan.network);
        let limited = |error| SetupError::new("put a sandbox under its limits", error);
        let group = bounds.limits.place(&bounds.workspace).map_err(limited)?;
        let entrance = group.as_ref().map(Group::entrance).transpose().map_err(limited)?;
        let (born_in, joins) = match entrance {
            Some(Entrance::Born(group)) => (Some(group), Vec::new()),
            Some(Entrance::Joins(groups)) => (None, groups),
            None => (None, Vec::new()),
        };
        let steps = match is_first {
            true => plan.steps_of_founder(joins.len()).map_err(prepare)?,
            false => plan.steps_of_joiner(is_beside, joins.len()),
        };
        let encoded = encode(&steps).map_err(prepare)?;
        let mut given = match is_first {
            true => layers::detached(plan.handed_over(), origin.id_maps)?,
            false => Vec::new(),
        };
        given.extend(joins);
        let has_layers = plan.overlays().next().is_some();
        let over_files = if is_first && has_layers { start::OVER_FILES } else { 0 };
        let open_files = plan.open_files.unwrap_or(0).to_string();
        let arguments: [OsString; 3] =
            ["tool-init".into(), plan.program.clone().into(), open_files.into()];
        let arguments = CStringArray::new(arguments).map_err(prepare)?;
        let environment = CStringArray::new(plan.environment.iter().cloned()).map_err(prepare)?;
        let (socket, its_end) = InitSocket::pair().map_err(prepare)?;
        let birth = Birth {
            program: origin.program,
            arguments: &arguments,
            environment: &environment,
            socket: its_end.as_fd(),
            null: origin.null,
            machine: machine.as_deref(),
            is_in_hosts_network: plan.network == Network::Host,
            user: origin.user,
            beside: is_beside,
            cgroup: born_in.as_ref().map(AsFd::as_fd),
            capabilities: plan.rights.capabilities | over_files,
        };
        let Born { child, is_in_cgroup } =
            start::start(&birth).map_err(|(stage, source)| SetupError {
                what: stage.what().to_owned(),
                of_namespaces: stage == Stage::Namespaces,
                signal: None,
                source,
            })?;
        // Before it does anything: what it sees of cgroups begins with its own.
        if let (Some(group), Some(_)) = (&group, &born_in)
            && !is_in_cgroup
            && let Err(error) = group.enter(child.pid().as_raw_nonzero().get())
        {
            abandon(&child);
            return Err(limited(error));
        }
        // It waits for its orders, and ends where it is left alone. Its end of the socket is open
        // here, too, so that what is sent to one that has ended is not refused.
        let maps = origin.user.filter(|user| is_first && !user.map().is_single());
        let of_machine = if is_beside { Machine::wanted_beside } else { Machine::wanted };
        let wanted = handle::ROOT | founds.map_or(0, of_machine);
        let ordered = match maps {
            Some(user) => map_ids(user, &child),
            None => Ok(()),
        }
        .and_then(|()| socket.set_up(&encoded, steps.len(), wanted, &given).map_err(prepare));
        drop((its_end, given));
        if let Err(error) = ordered {
            abandon(&child);
            return Err(error);
        }
        let mut jail = Self {
            phase: Phase::SettingUp,
            deadline: Some(Instant::now() + SETUP_LIMIT),
            child,
            child_end: None,
            socket: Some(Arc::new(socket)),
            steps,
            root: None,
            machine: machine.filter(|_| !is_beside),
            founds,
            beside,
            keeps_machine: has_layers,
            egress: origin.egress.filter(|_| founds.is_some()).cloned(),
            bounds,
            group,
            confined: None,
            runs: 0,
            failed: None,
            is_retired: false,
        };
        if let Err(error) = jail.watch(events) {
            jail.socket = None;
            abandon(&jail.child);
            return Err(prepare(error));
        }
        Ok(jail)
    }

    fn watch(&self, events: &impl Events) -> io::Result<()> {
        if let Some(socket) = &self.socket {
            events.add(socket.as_fd(), Source::Socket)?;
        }
        events.add(self.child.as_fd(), Source::End)
    }

    /// Where it is in its life.
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// When [`on_deadline`](Self::on_deadline) is due: only while it is set up or ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the end of its last process was seen, and it is not retired. Only of use in
    /// [`Phase::Gone`].
    pub(super) fn all_dead(&self) -> bool {
        !self.is_retired
    }

    /// Whether its slot was full when it was put under its limits, so that nothing can be written
    /// in it; `None` before.
    pub(super) fn was_full(&self) -> Option<bool> {
        self.confined.as_ref().map(Confined::was_full)
    }

    /// What the kernel has refused its slot since the latest run began.
    pub(super) fn refusals(&self) -> Refusals {
        self.confined.as_ref().map(Confined::refusals).unwrap_or_default()
    }

    /// Whether the kernel has ended it for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.confined.as_ref().is_some_and(Confined::ran_out_of_memory)
    }

    /// The root directory that programs in it see, only to look beneath. `None` while it is set up.
    pub(super) fn root(&self) -> Option<BorrowedFd<'_>> {
        self.root.as_ref().map(AsFd::as_fd)
    }

    /// The files of its slot.
    pub(super) fn workspace(&self) -> &Workspace {
        &self.bounds.workspace
    }

    /// Its machine. `None` while a founder is set up.
    pub(super) fn machine(&self) -> Option<&Arc<Machine>> {
        self.machine.as_ref()
    }

    /// Has a program run. `alarm` is called when the jail exceeds a limit, until the run has
    /// [left](Self::left).
    ///
    /// # Errors
    /// As [`InitSocket::run`].
    pub(super) fn run(&mut self, run: &Run<'_>, alarm: Alarm) -> io::Result<RunHandle> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        if let Some(confined) = &self.confined {
            confined.occupied(alarm);
        }
        self.runs = self.runs.wrapping_add(1);
        socket.run(self.runs, run)?;
        Ok(RunHandle { number: self.runs, socket: Arc::clone(socket) })
    }

    /// What was run in it is over, and has left something running: `alarm` is called when that
    /// exceeds a limit.
    pub(super) fn left_running(&self, alarm: Alarm) {
        if let Some(confined) = &self.confined {
            confined.occupied(alarm);
        }
    }

    /// What was run in it is over.
    pub(super) fn left(&self) {
        if let Some(confined) = &self.confined {
            confined.vacated();
        }
    }

    /// Deals with one event.
    pub(super) fn on_event(
        &mut self,
        source: Source,
        events: &impl Events,
        now: Instant,
    ) -> Vec<News> {
        let mut news = Vec::new();
        // What was said before the end is heard before it.
        self.listen(events, now, &mut news);
        if source == Source::End && self.child_end.is_none() {
            let end = self.child.reap();
            if end != Reaped::Running {
                self.child_end = Some(end);
                events.remove(self.child.as_fd());
                self.end(events, now);
                (self.phase, self.deadline) = (Phase::Gone, None);
            }
        }
        news
    }

    fn listen(&mut self, events: &impl Events, now: Instant, news: &mut Vec<News>) {
        while let Some(socket) = &self.socket {
            match socket.receive() {
                Ok(None) => return,
                Ok(Some(InitEvent::Ready(handles))) => self.ready(handles, events, now, news),
                Ok(Some(InitEvent::Failed(step, errno))) => {
                    self.cannot_be_used();
                    let what = self.steps.get(step).map_or("set the sandbox up", |step| &step.what);
                    self.failed = Some(SetupError::new(what, errno.into()));
                    self.end(events, now);
                }
                Ok(Some(InitEvent::Run(event))) => {
                    if let RunEvent::Done { end: Err(_), .. } = &event {
                        self.cannot_be_used();
                    }
                    news.push(News::Run(event));
                }
                Err(_) => self.end(events, now),
            }
        }
    }

    /// Something that does not fail in a machine that is whole has failed in it.
    fn cannot_be_used(&self) {
        if let Some(machine) = self.machine.as_ref().filter(|_| !self.keeps_machine) {
            machine.is_found_broken();
        }
    }

    /// The first process has made it, and hands over what was asked for.
    fn ready(
        &mut self,
        mut handles: Handles,
        events: &impl Events,
        now: Instant,
        news: &mut Vec<News>,
    ) {
        self.root = handles.take(handle::ROOT);
        if let Some(network) = self.founds {
            let (egress, slot) = (self.egress.take(), self.bounds.workspace.slot());
            let attach = |listener| egress.map(|egress| egress.attach(slot, listener));
            let root = self.root.as_ref().and_then(|root| root.try_clone().ok());
            let machine = root.and_then(|root| match &self.beside {
                None => Machine::new(&mut handles, root, network, attach),
                Some(other) => Machine::beside(other, &mut handles, root, network, attach),
            });
            self.machine = machine.map(Arc::new);
        }
        if self.machine.is_none() {
            // As where there are too few descriptors for them: the kernel leaves out the rest.
            let error = io::Error::from(rustix::io::Errno::MFILE);
            self.failed = Some(SetupError::new("take hold of the namespaces", error));
            return self.end(events, now);
        }
        self.open(news);
    }

    /// Puts it under its slot's limits, now that its files are made and before anything runs in
    /// it, and lets programs run.
    fn open(&mut self, news: &mut Vec<News>) {
        if self.phase != Phase::SettingUp {
            return;
        }
        let Bounds { limits, workspace, is_session } = &self.bounds;
        let (init, group) = (self.child.pid(), self.group.take());
        self.confined = Some(match is_session {
            true => limits.confine_session(init, workspace, group),
            false => limits.confine(init, workspace, group),
        });
        (self.phase, self.deadline) = (Phase::Running, None);
        self.steps = Vec::new();
        news.push(News::Opened);
    }

    /// The time of the present phase is up.
    pub(super) fn on_deadline(&mut self, events: &impl Events, now: Instant) {
        match self.phase {
            Phase::SettingUp => {
                let error = io::Error::new(io::ErrorKind::TimedOut, TOO_SLOW);
                self.failed = Some(SetupError::new("set a sandbox up", error));
                self.end(events, now);
            }
            Phase::Running | Phase::Gone => self.deadline = None,
            Phase::Ending => {
                log::warn!(
                    "a sandbox that was killed did not end within {} s; its slot gets another one",
                    KILL_MARGIN.as_secs()
                );
                self.is_retired = true;
                (self.phase, self.deadline) = (Phase::Gone, None);
            }
        }
    }

    /// Begins to end it. Doing so again does nothing.
    pub(super) fn end(&mut self, events: &impl Events, now: Instant) {
        if self.phase >= Phase::Ending {
            return;
        }
        (self.phase, self.deadline) = (Phase::Ending, Some(now + KILL_MARGIN));
        // One that runs a command may hold a handle a little longer; nobody listens to it any more.
        if let Some(socket) = self.socket.take() {
            events.remove(socket.as_fd());
        }
        self.child.kill();
    }

    /// Why nothing ever ran in it.
    pub(super) fn failure(&self) -> SetupError {
        let what = "set a sandbox up";
        match (&self.failed, self.child_end) {
            (Some(failed), _) => failed.duplicate(),
            (None, Some(Reaped::Signaled(signal))) => {
                let text = format!("signal {signal} ended its first process");
                let error = SetupError::new(what, io::Error::other(text));
                SetupError { signal: Some(signal), ..error }
            }
            (None, end) => {
                let text = format!("its first process ended early ({end:?})");
                SetupError::new(what, io::Error::other(text))
            }
        }
    }

    /// Stops watching it. Gives what is left of one that is retired.
    pub(super) fn finish(self, events: &impl Events) -> Option<Leftover> {
        if let Some(socket) = &self.socket {
            events.remove(socket.as_fd());
        }
        if self.child_end.is_some() {
            return None;
        }
        events.remove(self.child.as_fd());
        Some(Leftover::retire(self.child, self.bounds.limits.retired()))
    }
}

/// Maps the ids of a user in the namespace of a first process. One that has ended already is no
/// failure of this.
fn map_ids(user: CommandUser, child: &Child) -> Result<(), SetupError> {
    match user.map_ids(child.pid()) {
        Err(error) if !has_ended(child.as_fd()) => {
            Err(SetupError::new("map users and groups", error))
        }
        _ => Ok(()),
    }
}

/// Ends a first process that has done nothing that lasts, and so dies at once.
fn abandon(child: &Child) {
    child.kill();
    let end = rustix::process::WaitIdOptions::EXITED;
    let _ = rustix::process::waitid(rustix::process::WaitId::PidFd(child.as_fd()), end);
}

impl RunHandle {
    /// Its number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Has everything of it killed. Nothing happens if it has ended.
    ///
    /// # Errors
    /// The first process is gone, or takes no orders.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.socket.kill(self.number, false)
    }

    /// Has everything of it asked to end, by SIGTERM, and what is left after half a second killed.
    /// Nothing happens if it has ended.
    ///
    /// # Errors
    /// As of [`kill`](Self::kill).
    pub(super) fn terminate(&self) -> io::Result<()> {
        self.socket.kill(self.number, true)
    }

    /// Has these pipes read to their ends, and what comes forgotten: they are those of a run that
    /// has left something running.
    ///
    /// # Errors
    /// As of [`kill`](Self::kill).
    pub(super) fn drain(&self, pipes: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket.drain(pipes)
    }

    /// Sends a signal to the process group of its main process. Nothing happens if that has ended.
    ///
    /// # Errors
    /// As of [`kill`](Self::kill).
    pub(super) fn signal(&self, signal: i32) -> io::Result<()> {
        self.socket.signal(self.number, signal)
    }
}

impl Stage {
    fn what(self) -> &'static str {
        match self {
            Self::Prepare => "prepare a sandbox",
            Self::ChangeUser => "become the user of commands",
            Self::Namespaces => "make namespaces",
            Self::Join => "enter the namespaces of a sandbox",
            Self::Capabilities => "use the capabilities of a user namespace",
            Self::Execute => "execute the first process of a sandbox",
        }
    }
}

impl SetupError {
    fn new(what: &str, source: io::Error) -> Self {
        Self { what: what.to_owned(), of_namespaces: false, signal: None, source }
    }

    /// As a first process may report it.
    #[cfg(test)]
    pub(super) fn of_test(source: io::Error, of_namespaces: bool) -> Self {
        Self { of_namespaces, ..Self::new("do something", source) }
    }

    fn duplicate(&self) -> Self {
        let source = match self.source.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(self.source.kind(), self.source.to_string()),
        };
        Self { what: self.what.clone(), source, ..*self }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.source)
    }
}

impl std::error::Error for SetupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // Its text is in this one's.
        None
    }
}
