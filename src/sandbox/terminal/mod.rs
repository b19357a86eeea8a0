//! Programs that live on between a slot's calls: the shell of `bash_stateful`, and terminals.
//!
//! Each lives in a sandbox that is *kept*: a jail of its own in the slot's machine, which it shares
//! with ordinary commands. So each can be ended by itself, with everything in it, and that end is
//! confirmed; and yet all have one localhost and one set of files.
//!
//! - [`kept`] is such a sandbox: how it is taken hold of, how it ends.
//! - [`seat`] says which slot has which, starts and ends them, and hands events on; a [`Program`]
//!   is the state machine of what runs in one.
//! - [`watch`] is what the thread waits for; this module is the thread, `tool-terminals`: one for
//!   any number of sandboxes. It starts their processes itself, since the kernel ties "die with
//!   your parent" to the thread that made a process.
//! - [`shell`] is the program of `bash_stateful`, [`script`] what is said between it and bash,
//!   [`streams`] the reading of its output, [`result`] what the model sees.
//! - [`tmux`] is the terminals.
//!
//! # Bounds
//! A slot has one call at a time, which the executor sees to; a second one is refused. An idle
//! sandbox costs its processes, some file descriptors and what is shown of its output; no timer
//! and no thread. A slot with a sandbox whose end nobody has seen is never said to be free of
//! them.

mod kept;
pub(crate) mod result;
mod script;
mod seat;
mod shell;
mod streams;
pub(crate) mod tmux;
mod watch;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, epoll, eventfd};

pub(crate) use seat::Place;
use seat::{Common, Notice, Program, Seats};
use shell::ShellCall;
pub(crate) use shell::{ShellCommand, ShellEnded};
pub(crate) use tmux::Tmux;
use tmux::{Terminal, TmuxCall, TmuxEnded};
use watch::{Key, Kind, WAKE, decode};

use super::events::{self, EVENTS_PER_TURN};
use super::host::Host;
use super::isolation::Isolation;
use super::jail::Machine;
use super::limits::{Exceeded, Limits};
use super::spool::Spool;
use super::stream::READ_BUFFER;
use super::supervisor::{Supervisor, block_sigpipe, leave_session_keyring, leave_umask};
use super::user::CommandUser;
use crate::tool::DEFAULT_SESSION;

/// How many calls are begun before events and deadlines are looked at again.
const STARTS_PER_TURN: usize = 8;

/// Names one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TerminalCall {
    kind: Kind,
    slot: usize,
    number: u64,
}

/// What [`Terminals`] need.
pub(crate) struct Setup {
    /// How programs are isolated.
    pub(crate) isolation: Isolation,
    /// Whom they run as, if not as this process.
    pub(crate) user: Option<CommandUser>,
    /// Those of a sandbox.
    pub(crate) limits: Arc<Limits>,
    /// How many sessions slots may have beyond one each, all together.
    pub(crate) more_sessions: usize,
    /// Has the machines of slots, in which programs live.
    pub(crate) supervisor: Arc<Supervisor>,
    /// How many characters are shown of each output stream of a call.
    pub(crate) output_limit_chars: usize,
    /// How many bytes of a call's complete output are kept in files.
    pub(crate) output_file_bytes: u64,
    /// What writes these files.
    pub(crate) spool: Spool,
    /// What terminals need.
    pub(crate) tmux: Option<Tmux>,
}

/// The handle of the thread. Dropping it is [`close`](Self::close).
pub(crate) struct Terminals {
    shared: Arc<Shared>,
    has_tmux: bool,
    next_call: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Terminals {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where the system gives no thread or no file descriptors.
    pub(crate) fn start(setup: Setup) -> io::Result<Self> {
        let Setup { isolation, user, limits, spool, tmux, .. } = setup;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, &shared.wake, data, epoll::EventFlags::IN)?;
        let has_tmux = tmux.is_some();
        let (alarmed, served) = (shared.clone(), shared.clone());
        let mut turn = Turn {
            shells: Seats::new(),
            terminals: Seats::new(),
            waiting: VecDeque::new(),
            common: Common {
                epoll,
                host: Host::new(isolation, user, limits)?.with_spool(spool),
                // Refused after the close, which ends everything.
                exceeded: Arc::new(move |key, exceeded| {
                    let _ = alarmed.send(Request::Exceeded(key, exceeded));
                }),
                supervisor: setup.supervisor,
                machine: Arc::new(move |key, machine| {
                    let _ = served.send(Request::Machine(key, machine));
                }),
                tmux,
                output_limit_chars: setup.output_limit_chars,
                output_file_bytes: setup.output_file_bytes,
                buffer: vec![0; READ_BUFFER],
                deadlines: BTreeSet::new(),
                more_sessions: setup.more_sessions,
                leftovers: Vec::new(),
                next_serial: 0,
            },
        };
        let queue = CloseOnDrop(Arc::clone(&shared));
        #[expect(
            clippy::disallowed_methods,
            reason = "`close` joins it, however long the last process takes"
        )]
        let thread =
            std::thread::Builder::new().name("tool-terminals".to_owned()).spawn(move || {
                block_sigpipe();
                leave_umask();
                leave_session_keyring();
                turn.run(&queue.0);
                // First the sandboxes, then the queue.
                drop(turn);
                drop(queue);
            })?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { shared, has_tmux, next_call: AtomicU64::new(0), thread })
    }

    /// Runs a command in the slot's shell, which is started if there is none. Does not block.
    ///
    /// `on_end` is called exactly once, on the thread (on this one, before this returns, after
    /// [`close`](Self::close)). It holds all sessions up while it runs, so it should only hand the
    /// result on. A panic in it is caught and logged.
    pub(crate) fn bash(
        &self,
        place: Place,
        command: ShellCommand,
        timeout: Duration,
        on_end: Box<dyn FnOnce(ShellEnded) + Send>,
    ) -> TerminalCall {
        let number = self.next_call.fetch_add(1, Ordering::Relaxed);
        let name = TerminalCall { kind: Kind::Shell, slot: place.slot, number };
        let call = ShellCall::new(number, command, timeout, on_end);
        if let Err(Request::Shell(_, call)) = self.shared.send(Request::Shell(place, call)) {
            shell::Shell::refuse(call, CLOSED);
        }
        name
    }

    /// Whether there is a tmux.
    pub(crate) fn has_tmux(&self) -> bool {
        self.has_tmux
    }

    /// Does something with the slot's terminal, which is started if there is none. Does not block.
    /// For `on_end` see [`bash`](Self::bash).
    pub(crate) fn tmux(
        &self,
        place: Place,
        act: tmux::Act,
        timeout: Duration,
        on_end: Box<dyn FnOnce(TmuxEnded) + Send>,
    ) -> TerminalCall {
        let number = self.next_call.fetch_add(1, Ordering::Relaxed);
        let name = TerminalCall { kind: Kind::Tmux, slot: place.slot, number };
        let call = Box::new(TmuxCall::new(number, act, timeout, on_end));
        if let Err(Request::Tmux(_, call)) = self.shared.send(Request::Tmux(place, call)) {
            Terminal::refuse(*call, CLOSED);
        }
        name
    }

    /// Ends the slot's terminal, if it has one. Does not block. `on_end` is told, when nothing is
    /// left of it, whether the end of every process was seen; otherwise as of [`bash`](Self::bash).
    pub(crate) fn stop_tmux(&self, slot: usize, on_end: Box<dyn FnOnce(bool) + Send>) {
        // After the close the notice is dropped: everything is gone.
        drop(self.shared.send(Request::StopTmux(slot, Notice::new(on_end))));
    }

    /// Ends a call early: its program is interrupted, and if that does not help its sandbox is
    /// ended. One that has ended is left alone. Does not block.
    pub(crate) fn cancel(&self, call: TerminalCall) {
        // Refused after the close, which ended everything.
        let _ = self.shared.send(Request::Cancel(call));
    }

    /// What is kept for a slot, a name each, to be received once. Disconnected after the
    /// [`close`](Self::close). Does not block.
    pub(crate) fn kept(&self, slot: usize) -> Receiver<Vec<String>> {
        let (reply, names) = bounded(1);
        if !self.shared.queue.lock().used.contains(&slot) {
            // There is room for one.
            let _ = reply.send(Vec::new());
            return names;
        }
        drop(self.shared.send(Request::Kept(slot, reply)));
        names
    }

    /// Ends whatever is kept for a slot. Does not block.
    ///
    /// `on_gone` is called once, as `on_end` of [`bash`](Self::bash), when nothing of it is left;
    /// with `false` where waiting for that was given up, now or for an earlier sandbox of the slot.
    pub(crate) fn leave(&self, slot: usize, on_gone: Box<dyn FnOnce(bool) + Send>) {
        if !self.shared.queue.lock().used.remove(&slot) {
            return on_gone(true);
        }
        let shared = Arc::downgrade(&self.shared);
        let notice = Notice::new(Box::new(move |all_dead| {
            if !all_dead && let Some(shared) = shared.upgrade() {
                shared.queue.lock().used.insert(slot);
            }
            if catch_unwind(AssertUnwindSafe(|| on_gone(all_dead))).is_err() {
                log::error!("the receiver of a session's end has panicked");
            }
        }));
        // After the close the notice is dropped: everything is gone.
        drop(self.shared.send(Request::End(slot, notice)));
    }

    /// Ends everything and joins the thread. Every accepted call has been answered then.
    ///
    /// Blocks until the last process is gone and the last output is written, but no longer than 5 s
    /// or so for each; called by an `on_end` it
    /// does not wait. Calling it again does nothing.
    pub(crate) fn close(&self) {
        self.shared.queue.lock().closing = true;
        self.shared.wake();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            log::error!("the terminals' thread has panicked");
        }
    }
}

impl Drop for Terminals {
    fn drop(&mut self) {
        self.close();
    }
}

/// Why a call is refused after the close.
const CLOSED: &str = "the sandbox is closed";

/// What the handle and the thread share.
struct Shared {
    queue: Mutex<Queue>,
    wake: OwnedFd,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    /// The slots that may have something kept.
    used: HashSet<usize>,
    /// Nothing is accepted any more.
    closing: bool,
}

enum Request {
    Shell(Place, ShellCall),
    Tmux(Place, Box<TmuxCall>),
    StopTmux(usize, Arc<Notice>),
    Cancel(TerminalCall),
    Machine(Key, Result<Arc<Machine>, String>),
    Exceeded(Key, Exceeded),
    Kept(usize, Sender<Vec<String>>),
    End(usize, Arc<Notice>),
}

impl Shared {
    /// Gives the request back when the thread is closing.
    fn send(&self, request: Request) -> Result<(), Request> {
        let mut queue = self.queue.lock();
        if queue.closing {
            return Err(request);
        }
        if let Request::Shell(place, _) | Request::Tmux(place, _) = &request {
            queue.used.insert(place.slot);
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

/// Refuses every request once the thread is gone, however it went: calls answer themselves.
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

/// The thread's own state.
struct Turn {
    shells: Seats<shell::Shell>,
    terminals: Seats<Terminal>,
    /// Taken from the queue and not dealt with yet.
    waiting: VecDeque<Request>,
    common: Common,
}

impl Turn {
    /// Until the handle is closed and the last sandbox is gone.
    fn run(&mut self, shared: &Shared) {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        loop {
            let closing = self.take_requests(shared);
            if closing && self.shells.is_empty() && self.terminals.is_empty() {
                return;
            }
            self.wait(&mut events);
            self.deal_with(&mut events, shared);
            self.keep_deadlines(&mut events, shared);
            self.common.leftovers.retain(|leftover| !leftover.is_gone());
        }
    }

    fn deal_with(&mut self, events: &mut Vec<epoll::Event>, shared: &Shared) {
        for event in events.drain(..) {
            match decode(event.data.u64()) {
                Some((Key { kind: Kind::Shell, serial }, source)) => {
                    self.shells.on_event(serial, source, &mut self.common);
                }
                Some((Key { kind: Kind::Tmux, serial }, source)) => {
                    self.terminals.on_event(serial, source, &mut self.common);
                }
                None => {
                    let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
                }
            }
        }
    }

    /// Deals with the deadlines that are over, and before them with all that has happened by now.
    fn keep_deadlines(&mut self, events: &mut Vec<epoll::Event>, shared: &Shared) {
        let now = Instant::now();
        if self.common.deadlines.first().is_none_or(|&(due, _)| now < due) {
            return;
        }
        for _ in 0..events::most_rounds(self.shells.len() + self.terminals.len()) {
            let is_all = events::take_waiting(&self.common.epoll, events);
            self.deal_with(events, shared);
            if is_all {
                break;
            }
        }
        while let Some(&(due, key)) = self.common.deadlines.first()
            && due <= now
        {
            match key.kind {
                Kind::Shell => self.shells.on_deadline(key.serial, &mut self.common),
                Kind::Tmux => self.terminals.on_deadline(key.serial, &mut self.common),
            }
        }
    }

    /// Deals with requests, a few calls at a time. Tells whether the handle is closed.
    fn take_requests(&mut self, shared: &Shared) -> bool {
        let closing = {
            let mut queue = shared.queue.lock();
            self.waiting.append(&mut queue.requests);
            queue.closing
        };
        if closing {
            for request in std::mem::take(&mut self.waiting) {
                match request {
                    Request::Shell(_, call) => shell::Shell::refuse(call, CLOSED),
                    Request::Tmux(_, call) => Terminal::refuse(*call, CLOSED),
                    Request::StopTmux(slot, notice) => {
                        self.terminals.end_slot(slot, notice, &mut self.common);
                    }
                    Request::Cancel(_)
                    | Request::Machine(..)
                    | Request::Exceeded(..)
                    | Request::Kept(..) => {}
                    // Told when the slot's sandbox is gone.
                    Request::End(slot, notice) => self.end_slot(slot, notice),
                }
            }
            self.shells.end_all(&mut self.common);
            self.terminals.end_all(&mut self.common);
            return true;
        }
        let mut calls = 0;
        while calls < STARTS_PER_TURN {
            match self.waiting.pop_front() {
                Some(Request::Shell(place, call)) => {
                    calls += 1;
                    self.shells.call(place, call, &mut self.common);
                }
                Some(Request::Tmux(place, call)) => {
                    calls += 1;
                    self.terminals.call(place, *call, &mut self.common);
                }
                Some(Request::StopTmux(slot, notice)) => {
                    self.terminals.end_slot(slot, notice, &mut self.common);
                }
                Some(Request::Cancel(TerminalCall { kind, slot, number })) => match kind {
                    Kind::Shell => self.shells.cancel(slot, number, &mut self.common),
                    Kind::Tmux => self.terminals.cancel(slot, number, &mut self.common),
                },
                Some(Request::Machine(Key { kind, serial }, machine)) => {
                    calls += 1;
                    match kind {
                        Kind::Shell => self.shells.on_machine(serial, machine, &mut self.common),
                        Kind::Tmux => self.terminals.on_machine(serial, machine, &mut self.common),
                    }
                }
                Some(Request::Exceeded(Key { kind, serial }, exceeded)) => match kind {
                    Kind::Shell => self.shells.exceeded(serial, exceeded, &mut self.common),
                    Kind::Tmux => self.terminals.exceeded(serial, exceeded, &mut self.common),
                },
                Some(Request::Kept(slot, reply)) => {
                    let shells = self.shells.names(slot).into_iter().map(|name| match &*name {
                        DEFAULT_SESSION => "the shell of terminal_stateful".to_owned(),
                        name => format!("the session {name} of terminal_stateful"),
                    });
                    let tmux = self.terminals.names(slot).into_iter().map(|_| "tmux".to_owned());
                    // Refused only when the asker has given up.
                    let _ = reply.try_send(shells.chain(tmux).collect());
                }
                Some(Request::End(slot, notice)) => self.end_slot(slot, notice),
                None => break,
            }
        }
        false
    }

    /// Ends what the slot has, of every kind: the last copy of the notice tells.
    fn end_slot(&mut self, slot: usize, notice: Arc<Notice>) {
        self.shells.end_slot(slot, notice.clone(), &mut self.common);
        self.terminals.end_slot(slot, notice, &mut self.common);
    }

    /// Waits for events, until the next deadline at the latest.
    fn wait(&self, events: &mut Vec<epoll::Event>) {
        let longest = match (self.waiting.is_empty(), self.common.leftovers.is_empty()) {
            (false, _) => Some(Duration::ZERO),
            (true, false) => Some(Duration::from_secs(1)),
            (true, true) => None,
        };
        let next = self.common.deadlines.first().map(|(due, _)| *due);
        events::wait(&self.common.epoll, events, longest, next);
    }
}

#[cfg(test)]
mod tests;
