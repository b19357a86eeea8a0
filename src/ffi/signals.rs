//! Signals. The library installs no handlers, and none of its threads takes a signal that is meant
//! for the host: they inherit the mask of the thread that starts them, and that thread blocks all.

#[cfg(target_os = "linux")]
pub(super) use self::linux::{blocked, without_sigpipe};

/// Elsewhere nothing is known of signals.
#[cfg(not(target_os = "linux"))]
pub(super) fn blocked<T>(start: impl FnOnce() -> T) -> T {
    start()
}

/// Elsewhere nothing is known of signals.
#[cfg(not(target_os = "linux"))]
pub(super) fn without_sigpipe<T>(write: impl FnOnce() -> T) -> T {
    write()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::mem::MaybeUninit;

    /// Runs `start` with all signals blocked on this thread, so that the threads it starts are born
    /// with them blocked. Signals of the thread's own faults are delivered all the same.
    pub(in crate::ffi) fn blocked<T>(start: impl FnOnce() -> T) -> T {
        struct Restore(libc::sigset_t);
        impl Drop for Restore {
            fn drop(&mut self) {
                // SAFETY: the mask that the thread had before.
                unsafe {
                    libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut());
                }
            }
        }
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: both are valid places; the first is initialised before it is read, and so is the
        // second unless the call fails, which it does for an invalid first argument only.
        let before = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
                libc::sigdelset(all.as_mut_ptr(), fault);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            before.assume_init()
        };
        let _restore = Restore(before);
        start()
    }

    /// Runs `write` without its bringing a SIGPIPE: a pipe without a reader is an error, and no
    /// reason to kill the host.
    pub(in crate::ffi) fn without_sigpipe<T>(write: impl FnOnce() -> T) -> T {
        let mut pipe = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::uninit();
        let mut pending = MaybeUninit::uninit();
        // SAFETY: valid places, each initialised before it is read.
        let (pipe, before, was_pending) = unsafe {
            libc::sigemptyset(pipe.as_mut_ptr());
            libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE);
            libc::sigemptyset(pending.as_mut_ptr());
            libc::sigpending(pending.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_BLOCK, pipe.as_ptr(), before.as_mut_ptr());
            let was_pending = libc::sigismember(pending.as_ptr(), libc::SIGPIPE) == 1;
            (pipe.assume_init(), before.assume_init(), was_pending)
        };
        struct Restore {
            pipe: libc::sigset_t,
            before: libc::sigset_t,
            was_pending: bool,
        }
        impl Drop for Restore {
            fn drop(&mut self) {
                let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                // SAFETY: initialised sets; takes back what our own writing has brought, if
                // anything.
                unsafe {
                    if !self.was_pending {
                        libc::sigtimedwait(&self.pipe, std::ptr::null_mut(), &at_once);
                    }
                    libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut());
                }
            }
        }
        let _restore = Restore { pipe, before, was_pending };
        write()
    }
}
