//! Runs any number of commands with one thread.
//!
//! The thread `tool-supervisor` waits in one epoll for the pipes and the process ends of all running
//! commands, for their deadlines, and for requests. It starts the processes itself, too: the kernel
//! ties "die with your parent" to the thread that made a process, so that a command never outlives its
//! supervisor, not even when the host process is killed.
//!
//! The engine's `bash` tool calls [`Supervisor::run`] and is called back with [`Finished`]. What a
//! command may see is decided in `isolation`, what happens to one command is in `running`; which
//! command may run, and when, is decided by the executor's slots. Nothing here knows trajectories,
//! results or truncation texts.
//!
//! # Bounds
//! Requests queue up without a limit of their own. Each slot runs one command at a time, so that there
//! are never more of them than slots. A turn of the thread starts at most a few commands and reads a
//! bounded part of each pipe, so that neither a burst of starts nor a flood of output keeps the others
//! waiting.
//!
//! # When the host process is killed
//! A running command dies with it, and one whose sandbox is still being set up never starts. bubblewrap
//! has one moment of some microseconds, between arming its own death signal and letting its first
//! process go on, in which that process then stays behind: asleep for ever, with nothing of the command
//! in it. [`Supervisor::close`] and cancelling wait for this moment to pass; SIGKILL does not.
//!
//! # The host process
//! Nothing is asked of the host's signal handling: it may ignore SIGCHLD, wait for any child, have no
//! handler for SIGPIPE. Its soft limit of open files is raised to at most 65,536, since each running
//! command needs five; commands get the old limit.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::process::{Resource, Rlimit};

use super::isolation::{self, HostLayout, Isolation};
use super::output::{Capture, Captured};
use super::running::{Host, Reason, Running};
use super::spawn::{Child, Reaped};
use super::stream::{READ_BUFFER, Watch};
use super::user::CommandUser;
use super::workspace::Workspace;

/// How many commands are started before events and deadlines are looked at again.
const STARTS_PER_TURN: usize = 8;
/// How many events are taken at a time.
const EVENTS_PER_TURN: usize = 128;
/// The event data of the wake-up, which no command's event has.
const WAKE: u64 = u64::MAX;

/// What to run, and where.
#[derive(Debug, Clone)]
pub(crate) struct CommandSpec {
    /// The slot's files: the command works in them, and sees no others that it could write to.
    pub(crate) workspace: Arc<Workspace>,
    /// A script for bash, of any length.
    pub(crate) command: String,
    /// Whether the command may use the network. Forbidding it needs
    /// [`Isolation::can_cut_network`], else the command ends as [`End::SetupFailed`].
    pub(crate) network: bool,
    /// From when the command itself starts, the making of its sandbox not counted.
    pub(crate) timeout: Duration,
    /// How much is kept of each of the two output streams, in characters.
    pub(crate) output_limit_chars: usize,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Its main process ended with this code; in a sandbox 128 + n for signal n.
    Exited(i32),
    /// A signal ended its main process. Only without a sandbox.
    Signaled(i32),
    /// Its time was up.
    TimedOut,
    /// [`Supervisor::cancel`] or [`Supervisor::close`] ended it.
    Cancelled,
    /// Nothing of the command ran: why, as one line.
    SetupFailed(String),
    /// The command may have run, to whatever extent: what held it was destroyed from outside. Why, as
    /// one line.
    Lost(String),
}

/// What is known of a command after its end.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) end: End,
    /// What it wrote to its standard output.
    pub(crate) stdout: Captured,
    /// What it wrote to its standard error.
    pub(crate) stderr: Captured,
    /// From when the command was let go until its main process ended or was killed. Zero if it never
    /// ran.
    pub(crate) wall: Duration,
    /// Whether it ran in a sandbox.
    pub(crate) sandboxed: bool,
    /// Whether it ran without network.
    pub(crate) network_isolated: bool,
    /// Whether the end of every process of the command was seen. `false` where that took longer than
    /// the margin of 5 s (a process that hangs in the kernel), or where nobody can tell.
    pub(crate) all_dead: bool,
}

/// Names one run of one supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CommandId(u64);

/// The handle of the supervisor's thread. Dropping it is [`close`](Self::close).
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    isolation: Isolation,
    next_id: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Supervisor {
    /// Starts the thread. Commands run as `user`, or as this process if there is none.
    ///
    /// # Errors
    /// Where the system gives no thread or no file descriptors.
    pub(crate) fn start(isolation: Isolation, user: Option<CommandUser>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, &shared.wake, data, epoll::EventFlags::IN)?;
        let layout = HostLayout::detect(user);
        let mut turn = Turn {
            running: HashMap::new(),
            deadlines: BTreeSet::new(),
            waiting: VecDeque::new(),
            leftovers: Vec::new(),
            buffer: vec![0; READ_BUFFER],
            epoll,
            host: Host {
                isolation: isolation.clone(),
                null: isolation::open_null()?,
                open_files: raise_open_files_limit(),
                shell: layout.shell,
                user: layout.user,
                command_user: user,
            },
        };
        let queue = CloseOnDrop(Arc::clone(&shared));
        let thread =
            std::thread::Builder::new().name("tool-supervisor".to_owned()).spawn(move || {
                block_sigpipe();
                leave_session_keyring();
                turn.run(&queue.0);
                // First the commands, then the queue.
                drop(turn);
                drop(queue);
            })?;
        Ok(Self { shared, isolation, next_id: AtomicU64::new(0), thread: Mutex::new(Some(thread)) })
    }

    /// How commands are isolated.
    pub(crate) fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// Runs a command. Does not block.
    ///
    /// `on_end` is called exactly once, on the supervisor's thread (on this one, before `run` returns,
    /// after [`close`](Self::close)). It holds all commands up while it runs, so it should only hand
    /// the result on. A panic in it is caught and logged.
    pub(crate) fn run(
        &self,
        spec: CommandSpec,
        on_end: Box<dyn FnOnce(Finished) + Send>,
    ) -> CommandId {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let answer = Answer {
            on_end: Some(on_end),
            sandboxed: self.isolation.is_sandboxed(),
            network_isolated: self.isolation.is_sandboxed() && !spec.network,
        };
        if let Err(Request::Run(_, _, answer)) = self.shared.send(Request::Run(id, spec, answer)) {
            answer.without_running(closed());
        }
        CommandId(id)
    }

    /// Kills a command with all its processes; it ends as [`End::Cancelled`] when the last of them is
    /// gone. One that has ended, or is just ending, is left alone. Does not block.
    pub(crate) fn cancel(&self, id: CommandId) {
        // Refused after the close, which cancelled everything.
        let _ = self.shared.send(Request::Cancel(id.0));
    }

    /// Kills everything and joins the thread. Every accepted command has been answered then: running
    /// ones as [`End::Cancelled`], those that were not started yet as [`End::SetupFailed`].
    ///
    /// Blocks until the last process is gone, but no longer than 5 s or so; called by an `on_end` it
    /// does not wait. Calling it again does nothing.
    pub(crate) fn close(&self) {
        self.shared.queue.lock().closing = true;
        self.shared.wake();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            log::error!("the supervisor's thread has panicked");
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the handle and the thread share.
struct Shared {
    queue: Mutex<Queue>,
    wake: OwnedFd,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    /// Nothing is accepted any more.
    closing: bool,
}

enum Request {
    Run(u64, CommandSpec, Answer),
    Cancel(u64),
}

impl Shared {
    /// Gives the request back when the supervisor is closing.
    fn send(&self, request: Request) -> Result<(), Request> {
        let mut queue = self.queue.lock();
        if queue.closing {
            return Err(request);
        }
        queue.requests.push_back(request);
        drop(queue);
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        // Fails only where the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Refuses and answers every request once the thread is gone, however it went.
struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.closing = true;
        let requests = std::mem::take(&mut queue.requests);
        drop(queue);
        drop(requests);
    }
}

/// The obligation to call `on_end`. Dropped unanswered (which only a panic of this module's own can
/// bring about) it answers [`End::Lost`].
struct Answer {
    on_end: Option<Box<dyn FnOnce(Finished) + Send>>,
    sandboxed: bool,
    network_isolated: bool,
}

impl Answer {
    fn give(mut self, finished: Finished) {
        self.call(finished);
    }

    fn without_running(mut self, end: End) {
        let finished = self.nothing(end);
        self.call(finished);
    }

    fn nothing(&self, end: End) -> Finished {
        Finished {
            end,
            stdout: Capture::new(0).finish(),
            stderr: Capture::new(0).finish(),
            wall: Duration::ZERO,
            sandboxed: self.sandboxed,
            network_isolated: self.network_isolated,
            all_dead: true,
        }
    }

    fn call(&mut self, finished: Finished) {
        if let Some(on_end) = self.on_end.take()
            && catch_unwind(AssertUnwindSafe(|| on_end(finished))).is_err()
        {
            log::error!("the receiver of a command's end has panicked");
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut finished = self.nothing(End::Lost("the supervisor has failed".to_owned()));
        finished.all_dead = false;
        self.call(finished);
    }
}

fn closed() -> End {
    End::SetupFailed("the supervisor is closed".to_owned())
}

/// The thread's own state.
struct Turn {
    running: HashMap<u64, (Running, Answer)>,
    /// One entry for each running command.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Taken from the queue and not dealt with yet.
    waiting: VecDeque<Request>,
    /// Processes that were given up on and may become zombies.
    leftovers: Vec<Child>,
    buffer: Vec<u8>,
    epoll: OwnedFd,
    host: Host,
}

impl Turn {
    /// Until the supervisor is closed and the last command has ended.
    fn run(&mut self, shared: &Shared) {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        loop {
            let closing = self.take_requests(shared);
            if closing && self.running.is_empty() {
                return;
            }
            self.wait(&mut events);
            for event in events.drain(..) {
                match Watch::decode(event.data.u64()) {
                    Some((id, source)) => self.change(id, |running, watch, buffer, now| {
                        running.on_event(source, watch, buffer, now);
                    }),
                    None => {
                        let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
                    }
                }
            }
            let now = Instant::now();
            while let Some(&(due, id)) = self.deadlines.first()
                && due <= now
            {
                self.change(id, |running, _, _, now| running.on_deadline(now));
            }
            self.leftovers.retain(|child| child.reap() == Reaped::Running);
        }
    }

    /// Deals with requests, a few starts at a time. Tells whether the supervisor is closing.
    fn take_requests(&mut self, shared: &Shared) -> bool {
        let closing = {
            let mut queue = shared.queue.lock();
            self.waiting.append(&mut queue.requests);
            queue.closing
        };
        if closing {
            for request in std::mem::take(&mut self.waiting) {
                if let Request::Run(_, _, answer) = request {
                    answer.without_running(closed());
                }
            }
            let ids: Vec<u64> = self.running.keys().copied().collect();
            for id in ids {
                self.cancel(id);
            }
            return true;
        }
        let mut starts = 0;
        while starts < STARTS_PER_TURN {
            match self.waiting.pop_front() {
                Some(Request::Run(id, spec, answer)) => {
                    starts += 1;
                    self.start(id, &spec, answer);
                }
                Some(Request::Cancel(id)) => self.cancel(id),
                None => break,
            }
        }
        false
    }

    fn start(&mut self, id: u64, spec: &CommandSpec, answer: Answer) {
        if !spec.network && self.host.isolation.is_sandboxed() {
            if !self.host.isolation.can_cut_network() {
                let text = "bubblewrap cannot take the network away on this machine";
                return answer.without_running(End::SetupFailed(text.to_owned()));
            }
        } else if !spec.network {
            let text = "without bubblewrap the network cannot be taken away";
            return answer.without_running(End::SetupFailed(text.to_owned()));
        }
        let watch = Watch { epoll: &self.epoll, id };
        match Running::start(spec, &self.host, &watch) {
            Ok(running) => {
                self.deadlines.insert((running.deadline(), id));
                self.running.insert(id, (running, answer));
            }
            Err(error) => answer.without_running(End::SetupFailed(error.to_string())),
        }
    }

    fn cancel(&mut self, id: u64) {
        self.change(id, |running, _, _, now| running.kill(Reason::Cancelled, now));
    }

    /// Lets something happen to a command, if it is still there, and sees whether that ended it.
    fn change(
        &mut self,
        id: u64,
        action: impl FnOnce(&mut Running, &Watch<'_>, &mut [u8], Instant),
    ) {
        let Some((running, _)) = self.running.get_mut(&id) else {
            return;
        };
        let watch = Watch { epoll: &self.epoll, id };
        let before = running.deadline();
        action(running, &watch, &mut self.buffer, Instant::now());
        let after = running.deadline();
        let over = running.is_over();
        if over || after != before {
            self.deadlines.remove(&(before, id));
        }
        if !over {
            if after != before {
                self.deadlines.insert((after, id));
            }
            return;
        }
        if let Some((running, answer)) = self.running.remove(&id) {
            let ending = running.finish(&watch, &mut self.buffer);
            self.leftovers.extend(ending.leftover);
            let (sandboxed, network_isolated) = (answer.sandboxed, answer.network_isolated);
            answer.give(Finished {
                end: ending.end,
                stdout: ending.stdout,
                stderr: ending.stderr,
                wall: ending.wall,
                sandboxed,
                network_isolated,
                all_dead: ending.all_dead,
            });
        }
    }

    /// Waits for events, until the next deadline at the latest.
    fn wait(&self, events: &mut Vec<epoll::Event>) {
        let now = Instant::now();
        let longest = match (self.waiting.is_empty(), self.leftovers.is_empty()) {
            (false, _) => Some(Duration::ZERO),
            (true, false) => Some(Duration::from_secs(1)),
            (true, true) => None,
        };
        let next = self.deadlines.first().map(|(due, _)| {
            // Up to the next whole millisecond: epoll counts in those, and waking up before the
            // deadline is of no use.
            let left = due.saturating_duration_since(now);
            Duration::from_millis((left.as_nanos().div_ceil(1_000_000)) as u64)
        });
        let timeout = longest.into_iter().chain(next).min();
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // Not possible with valid arguments; if it happens, deadlines must still be kept.
                log::error!("cannot wait for events: {error}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// A host written in C may have left SIGPIPE at its default; a write to a reaper that somebody has
/// killed must not end it. The signal goes to the thread that writes.
pub(super) fn block_sigpipe() {
    // SAFETY: initialises a signal set and changes the mask of this thread, which is our own.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        libc::sigaddset(&mut signals, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
    }
}

/// Gives this thread, and so every command, a session keyring that nobody may use. The kernel's keys
/// know no sandbox: with the host's own keyring (a login has one) commands could read its keys, and
/// leave some for the commands of other trajectories.
pub(super) fn leave_session_keyring() {
    const SESSION: libc::c_long = -3;
    let no_name = std::ptr::null::<libc::c_char>();
    let no_permission: libc::c_long = 0;
    // SAFETY: both change the credentials and a keyring of this thread, which is our own; the name may
    // be NULL.
    let done = unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING as libc::c_long, no_name)
            >= 0
            && libc::syscall(
                libc::SYS_keyctl,
                libc::KEYCTL_SETPERM as libc::c_long,
                SESSION,
                no_permission,
            ) == 0
    };
    if !done {
        // Without the system call commands do not have it either.
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM) => log::debug!("no kernel keyrings here: {error}"),
            _ => log::warn!("commands share the kernel's session keyring of this process: {error}"),
        }
    }
}

/// Raises this process's soft limit of open files, once; gives the limit it had where it was raised.
/// Starting a supervisor does so too, but workspaces that are made before it need open files as well.
pub(crate) fn raise_open_files_limit() -> Option<u64> {
    const WANTED: u64 = 65_536;
    static BEFORE: OnceLock<Option<u64>> = OnceLock::new();
    *BEFORE.get_or_init(|| {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let before = limit.current?;
        let raised = limit.maximum.map_or(WANTED, |maximum| maximum.min(WANTED));
        if raised <= before {
            return None;
        }
        let new = Rlimit { current: Some(raised), maximum: limit.maximum };
        rustix::process::setrlimit(Resource::Nofile, new).ok()?;
        Some(before)
    })
}

#[cfg(test)]
mod tests;
