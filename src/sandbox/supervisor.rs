//! Runs any number of commands with one thread.
//!
//! The thread `tool-supervisor` waits in one epoll for the pipes and the process ends of all
//! running commands, for their deadlines, and for requests. It starts the processes itself, too:
//! the kernel ties "die with your parent" to the thread that made a process, which is the second
//! thing that keeps a command from outliving its supervisor.
//!
//! The engine's `bash` tool calls [`Supervisor::run`] and is called back with [`Finished`]. What a
//! command may see is decided in `isolation`, what happens to one command is in `running`; which
//! command may run, and when, is decided by the executor's slots. Nothing here knows trajectories,
//! results or truncation texts.
//!
//! # Bounds
//! Requests queue up without a limit of their own. Each slot runs one command at a time, so that
//! there are never more of them than slots. A turn of the thread starts at most a few commands and
//! reads a bounded part of each pipe, so that neither a burst of starts nor a flood of output
//! keeps the others waiting.
//!
//! # When the host process is killed
//! Whatever is just under way, a jail and all that runs in it die with the host, and nothing that
//! had not started starts: see `jail`.
//!
//! # The host process
//! Nothing is asked of the host's signal handling: it may ignore SIGCHLD, wait for any child, have
//! no handler for SIGPIPE. Its soft limit of open files is raised for what all slots may need
//! (`descriptors`); commands get the old limit.

mod turn;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::Mode;

use super::background::BackgroundReport;
use super::host::Host;
use super::isolation::Isolation;
use super::jail::Machine;
use super::jails::OnGone;
use super::limits::{Exceeded, Limits};
use super::machines::{MachineReply, MachineRequest, TakeMachine};
use super::output::{Capture, Captured};
use super::paths::Root;
use super::spool::Spool;
use super::user::CommandUser;
use super::workspace::Workspace;
use crate::tool::OutputOrder;
use turn::Turn;

/// The event data of the wake-up, which no command's event has.
const WAKE: u64 = u64::MAX;

/// How long a machine is waited for. Its founding has a deadline of its own; this is for the
/// unforeseen.
const FOUNDING_LIMIT: Duration = Duration::from_secs(60);

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
    /// How many bytes of output are kept in files in the workspace, where the texts do not show all
    /// of it; 0 for no such files. See [`spool`](super::spool).
    pub(crate) output_file_bytes: u64,
    /// What the command reads from its standard input; nothing if it is empty.
    pub(crate) stdin: String,
    /// Whether the two output streams are one pipe, of which all is the standard output.
    pub(crate) output_order: OutputOrder,
    /// What the command has as [`VERDICT_FD`](super::init::VERDICT_FD). Only in a sandbox.
    pub(crate) verdict: Option<Arc<OwnedFd>>,
    /// Whether what it leaves running goes on, until the slot is left: only in a sandbox, and where
    /// that has a `/proc` of its own.
    pub(crate) keeps_background: bool,
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
    /// It exceeded a limit of its slot.
    Exceeded(Exceeded),
    /// Nothing of the command ran: why, as one line.
    SetupFailed(String),
    /// Nothing of the command ran, since its call asks for what it cannot have: why, as one line.
    Refused(String),
    /// The command may have run, to whatever extent: what held it was destroyed from outside. Why,
    /// as one line.
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
    /// From when the command was let go until its main process ended or was killed. Zero if it
    /// never ran.
    pub(crate) wall: Duration,
    /// Whether it ran in a sandbox.
    pub(crate) sandboxed: bool,
    /// Whether it ran without network.
    pub(crate) network_isolated: bool,
    /// Whether the end of every process of the command was seen. `false` where that took longer
    /// than the margin of 5 s (a process that hangs in the kernel), or where nobody can tell.
    pub(crate) all_dead: bool,
    /// What became of processes in the background.
    pub(crate) background: BackgroundReport,
    /// The limits of its slot at which the kernel has refused it something, by their names. Not
    /// known without cgroups.
    pub(crate) limits_reached: Vec<&'static str>,
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
    /// Starts the thread. Commands run as `user`, or as this process if there is none; those in a
    /// sandbox under these limits. Complete outputs are written by `spool`.
    ///
    /// # Errors
    /// Where the system gives no thread or no file descriptors.
    pub(crate) fn start(
        isolation: Isolation,
        user: Option<CommandUser>,
        limits: Arc<Limits>,
        spool: Spool,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, &shared.wake, data, epoll::EventFlags::IN)?;
        let host = Host::new(isolation.clone(), user, limits)?.with_spool(spool);
        let mut turn = Turn::new(epoll, host, shared.clone());
        let queue = CloseOnDrop(Arc::clone(&shared));
        #[expect(
            clippy::disallowed_methods,
            reason = "`close` joins it, however long the last process takes"
        )]
        let thread =
            std::thread::Builder::new().name("tool-supervisor".to_owned()).spawn(move || {
                block_sigpipe();
                leave_umask();
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
    /// `on_end` is called exactly once, on the supervisor's thread (on this one, before `run`
    /// returns, after [`close`](Self::close)). It holds all commands up while it runs, so it should
    /// only hand the result on. A panic in it is caught and logged.
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
        if let Err(Request::Run(_, _, answer)) =
            self.shared.send(Request::Run(id, Box::new(spec), answer))
        {
            answer.without_running(closed());
        }
        CommandId(id)
    }

    /// Kills a command with all its processes; it ends as [`End::Cancelled`] when the last of them
    /// is gone. One that has ended, or is just ending, is left alone. Does not block.
    pub(crate) fn cancel(&self, id: CommandId) {
        // Refused after the close, which cancelled everything.
        let _ = self.shared.send(Request::Cancel(id.0));
    }

    /// Gives `take` the machine of the workspace's slot, with the host's network or without it. The
    /// jail of the slot's commands founds it, if there is none. Does not block.
    ///
    /// `take` is called as `on_end` of [`run`](Self::run): when the machine is ready, or cannot be
    /// had.
    pub(super) fn machine(&self, workspace: Arc<Workspace>, network: bool, take: TakeMachine) {
        let request = MachineRequest { workspace, network, reply: MachineReply::new(take) };
        // After the close it is dropped, and says so.
        drop(self.shared.send(Request::Machine(request)));
    }

    /// The root directory of the machine of the workspace's slot, with the host's network or
    /// without it; `None` where commands are in no sandbox. Blocks while the machine has to be
    /// founded.
    ///
    /// # Errors
    /// Why it cannot be had, as one line.
    pub(crate) fn root(
        &self,
        workspace: &Arc<Workspace>,
        network: bool,
    ) -> Result<Option<Root>, String> {
        if !self.isolation.is_sandboxed() {
            return Ok(None);
        }
        let (give, machine) = bounded(1);
        // There is room. What comes when it is not waited for any more is dropped.
        let take = Box::new(move |machine| drop(give.try_send(machine)));
        self.machine(workspace.clone(), network, take);
        let machine: Arc<Machine> = match machine.recv_timeout(FOUNDING_LIMIT) {
            Ok(machine) => machine?,
            Err(_) => return Err("the sandbox was not ready in time".to_owned()),
        };
        let root = machine.root().try_clone_to_owned();
        root.map(|root| Some(Root::held(root))).map_err(|error| error.to_string())
    }

    /// Whether earlier commands have left something running in a slot's jail, to be received once.
    /// Disconnected after [`close`](Self::close). Does not block.
    pub(crate) fn has_background(&self, slot: usize) -> Receiver<bool> {
        let (reply, answer) = bounded(1);
        drop(self.shared.send(Request::HasBackground(slot, reply)));
        answer
    }

    /// Ends a slot's jail, with whatever runs in it, and gives up its machines. Does not block.
    ///
    /// `on_gone` is called once, as `on_end` of [`run`](Self::run), when no process of it is left;
    /// with `false` where waiting for that was given up, now or for an earlier sandbox of the slot.
    /// After [`close`](Self::close) there is none.
    pub(crate) fn leave(&self, slot: usize, on_gone: OnGone) {
        if let Err(Request::Leave(_, on_gone)) = self.shared.send(Request::Leave(slot, on_gone)) {
            call_back(on_gone, true);
        }
    }

    /// Kills everything and joins the thread. Every accepted command has been answered then:
    /// running ones as [`End::Cancelled`], those that were not started yet as [`End::SetupFailed`].
    ///
    /// Blocks until the last process is gone and its output written, usually at once, but no longer
    /// than 5 s or so for each of the two; called by an `on_end` it
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
    Run(u64, Box<CommandSpec>, Answer),
    Cancel(u64),
    Machine(MachineRequest),
    HasBackground(usize, Sender<bool>),
    Leave(usize, OnGone),
    Exceeded(u64, Exceeded),
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

/// The obligation to call `on_end`. Dropped unanswered (which only a panic of this module's own
/// can bring about) it answers [`End::Lost`].
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
            background: BackgroundReport::default(),
            limits_reached: Vec::new(),
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

/// A panic of the receiver is its own.
fn call_back(on_gone: OnGone, gone: bool) {
    if catch_unwind(AssertUnwindSafe(|| on_gone(gone))).is_err() {
        log::error!("the receiver of a sandbox's end has panicked");
    }
}

fn closed() -> End {
    End::SetupFailed("the supervisor is closed".to_owned())
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

/// Gives this thread, and so every command, the usual umask. What the host has set is for its own
/// files: that of a service may be 077, and modes that a command's files get must not depend on
/// the machine.
pub(super) fn leave_umask() {
    // SAFETY: from here on this thread, which is our own, has a working directory and an umask
    // apart from those of the process; nothing else changes.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        // Setting the umask would set the host's.
        let error = io::Error::last_os_error();
        return log::debug!("commands have the umask of this process: {error}");
    }
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
}

/// Gives this thread, and so every command, a session keyring that nobody may use. The kernel's
/// keys know no sandbox: with the host's own keyring (a login has one) commands could read its
/// keys, and leave some for the commands of other trajectories.
pub(super) fn leave_session_keyring() {
    const SESSION: libc::c_long = -3;
    let no_name = std::ptr::null::<libc::c_char>();
    let no_permission: libc::c_long = 0;
    // SAFETY: both change the credentials and a keyring of this thread, which is our own; the name
    // may be NULL.
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

#[cfg(test)]
mod tests;
