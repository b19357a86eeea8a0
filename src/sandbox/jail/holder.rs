//! A process that does nothing but be in new namespaces, for as long as they are being prepared.
//!
//! It lives on a stack of its own in this process's memory, makes system calls only, and ends with
//! the thread that has made it.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::pipe::PipeFlags;

use super::super::spawn;
use super::clone::{Stack, clone};
use super::start::{BlockedSignals, await_end};

/// The process. Dropping it ends it.
pub(in crate::sandbox) struct Holder {
    pid: c_int,
    pidfd: OwnedFd,
    // It uses these, and is gone before they are.
    _gates: Box<[c_int; 2]>,
    _ends: [OwnedFd; 2],
    _stack: Stack,
}

impl Holder {
    /// Makes it, in new namespaces of these kinds. Blocks for a moment.
    ///
    /// # Errors
    /// Those of `clone`.
    pub(in crate::sandbox) fn new(namespaces: c_int) -> io::Result<Self> {
        let (gate, its_gate) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let mut gates = Box::new([its_gate.as_raw_fd(), gate.as_raw_fd()]);
        let (mut stack, blocked) = (Stack::new(), BlockedSignals::new());
        let mut pidfd: c_int = -1;
        // SAFETY: the child runs `wait_for_end` on a stack of its own, and reads `gates`; both live
        // as long as this, whose drop awaits its end. It makes system calls only, and never
        // returns. `pidfd` is a valid place.
        let pid = unsafe {
            let flags = namespaces | libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
            let argument = (&raw mut *gates).cast();
            clone(wait_for_end, &mut stack, flags, argument, &mut pidfd, None)?
        };
        drop(blocked);
        // SAFETY: the kernel has made this descriptor for us.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self { pid, pidfd, _gates: gates, _ends: [gate, its_gate], _stack: stack })
    }

    /// Its number.
    pub(in crate::sandbox) fn pid(&self) -> c_int {
        self.pid
    }
}

impl AsFd for Holder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        spawn::kill(self.pidfd.as_fd());
        await_end(&self.pidfd);
    }
}

/// Its life.
extern "C" fn wait_for_end(gates: *mut c_void) -> c_int {
    // SAFETY: the two numbers outlive this process. What follows are system calls, none of which
    // fails: nothing is written to memory that is the parent's, too.
    unsafe {
        let [its_gate, gate] = *gates.cast::<[c_int; 2]>();
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Where the parent has died before that, nothing holds the other end.
        libc::syscall(libc::SYS_close, its_gate);
        let mut byte = 0u8;
        libc::syscall(libc::SYS_read, gate, &raw mut byte, 1);
        libc::_exit(0)
    }
}
