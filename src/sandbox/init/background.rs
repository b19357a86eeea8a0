//! What runs have left running on purpose, and the pipes that it writes to.
//!
//! It is known by its *sessions*: each run begins in one of its own, and a process leaves its
//! session only for a new one. What is in none of those that were there when the latest run began
//! belongs to that run. (A kept process that makes a new session while a run is ended is ended with
//! that run: it cannot be told from what the run itself has started.)
//!
//! Pipes are read to the end by this process, and what comes is forgotten: a server that writes
//! lines to its standard output must neither block nor be ended by SIGPIPE.

use core::mem::MaybeUninit;

use crate::arch;
use crate::processes;
use crate::system::*;

/// The most sessions that may be left.
const MOST_SESSIONS: usize = 64;
/// The most pipes that are read. A run has two.
pub(crate) const MOST_PIPES: usize = 32;

/// The processes that were left, and their pipes.
pub(crate) struct Background {
    sessions: [i32; MOST_SESSIONS],
    count: usize,
    pipes: [i32; MOST_PIPES],
}

impl Background {
    /// None.
    pub(crate) const fn new() -> Self {
        Self { sessions: [0; MOST_SESSIONS], count: 0, pipes: [NO_FD; MOST_PIPES] }
    }

    /// Whether there may be some.
    pub(crate) fn is_some(&self) -> bool {
        self.count > 0
    }

    /// Whether a session is one of them.
    pub(crate) fn has(&self, session: i32) -> bool {
        self.sessions[..self.count].contains(&session)
    }

    /// Whether one more run may leave something.
    pub(crate) fn has_room(&self) -> bool {
        self.pipes.iter().filter(|pipe| **pipe == NO_FD).count() >= 2
    }

    /// Forgets the sessions that have ended, so that a new one under the number of such a one is
    /// not taken for it.
    pub(crate) fn refresh(&mut self, proc: i32) {
        let mut alive = Self::new();
        processes::each(proc, |process| {
            if self.has(process.session) {
                alive.insert(process.session);
            }
            true
        });
        (self.sessions, self.count) = (alive.sessions, alive.count);
    }

    /// Takes everything that runs in the jail for it. `false` where that is too much: then nothing
    /// has changed.
    pub(crate) fn adopt(&mut self, proc: i32) -> bool {
        let (mut all, mut fits) = (Self::new(), true);
        processes::each(proc, |process| {
            fits = all.insert(process.session);
            fits
        });
        if fits {
            (self.sessions, self.count) = (all.sessions, all.count);
        }
        fits
    }

    fn insert(&mut self, session: i32) -> bool {
        if self.has(session) {
            return true;
        }
        let Some(place) = self.sessions.get_mut(self.count) else { return false };
        *place = session;
        self.count += 1;
        true
    }

    /// All of it is ended.
    pub(crate) fn forget(&mut self) {
        self.count = 0;
    }

    /// Signals every process of the jail that is none of it.
    pub(crate) fn signal_others(&self, proc: i32, signal: i32) {
        processes::each(proc, |process| {
            if !self.has(process.session) {
                call!(arch::KILL, process.pid, signal);
            }
            true
        });
    }

    /// Whether nothing else runs.
    pub(crate) fn is_alone(&self, proc: i32) -> bool {
        let mut alone = true;
        processes::each(proc, |process| {
            alone = self.has(process.session);
            alone
        });
        alone
    }

    /// Reads these pipes from now on. One too many is closed.
    pub(crate) fn drain(&mut self, fds: [i32; MOST_FDS]) {
        for fd in fds.into_iter().filter(|fd| *fd != NO_FD) {
            match self.pipes.iter_mut().find(|place| **place == NO_FD) {
                Some(place) => *place = fd,
                None => {
                    call!(arch::CLOSE, fd);
                }
            }
        }
    }

    /// The pipes, to be watched; those that there are not are passed over.
    pub(crate) fn pipes(&self) -> &[i32; MOST_PIPES] {
        &self.pipes
    }

    /// Reads once from a pipe that has something, or has ended.
    pub(crate) fn read(&mut self, place: usize) {
        let mut forgotten = MaybeUninit::<[u8; 16 * 1024]>::uninit();
        let length = size_of_val(&forgotten);
        let pipe = &mut self.pipes[place];
        match call!(arch::READ, *pipe, forgotten.as_mut_ptr(), length) {
            1.. | EINTR | EAGAIN => {}
            _ => {
                call!(arch::CLOSE, *pipe);
                *pipe = NO_FD;
            }
        }
    }
}
