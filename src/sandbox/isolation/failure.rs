//! Why there is no sandbox: what the probe found, told apart by what follows from it. Pure.
//!
//! A *refusal* is an answer: this machine gives this user no sandbox, today and tomorrow. A
//! *shortage*, a probe that takes too long and an interrupt are none: nothing is known then, so
//! nothing weaker may be used in place of a sandbox, and the start fails.

use std::fmt;
use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::sandbox::jail::{SETUP_LIMIT, SetupError};

/// Why a probe brought no sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// This library has no program for the first process of a sandbox.
    Missing,
    /// The kernel or a security policy does not allow it to this user: what, as one line.
    Refused(String),
    /// Sandboxes do not work here, for another reason than permissions: which, as one line.
    Broken(String),
    /// The machine lacks something just now: what, as one line.
    Shortage(String),
    /// The probes together took longer than they may.
    TimedOut(Duration),
    /// The start was interrupted.
    Interrupted,
}

impl Failure {
    /// Whether it says nothing of what this machine allows, so that the start must fail.
    pub(crate) fn is_inconclusive(&self) -> bool {
        match self {
            Self::Missing | Self::Refused(_) | Self::Broken(_) => false,
            Self::Shortage(_) | Self::TimedOut(_) | Self::Interrupted => true,
        }
    }

    /// What a system call's error means.
    pub(in crate::sandbox) fn of_error(error: &io::Error) -> Self {
        let text = error.to_string();
        match Errno::from_io_error(error) {
            Some(errno) if is_shortage(errno) => Self::Shortage(text),
            Some(Errno::PERM | Errno::NOSYS) => Self::Refused(text),
            _ => Self::Broken(text),
        }
    }

    /// What it means that a jail could not be made. `are_forbidden` says whether this machine's
    /// limit of some kind of namespace is 0.
    pub(in crate::sandbox) fn of_setup(error: &SetupError, are_forbidden: bool) -> Self {
        if let Some(signal) = error.signal {
            return Self::of_signal(signal);
        }
        let text = error.to_string();
        if error.source.kind() == io::ErrorKind::TimedOut {
            return Self::TimedOut(SETUP_LIMIT);
        }
        match Errno::from_io_error(&error.source) {
            // The limit of namespaces is used up, or an administrator has set it to 0.
            Some(Errno::NOSPC) if error.of_namespaces && are_forbidden => Self::Refused(text),
            Some(errno) if is_shortage(errno) => Self::Shortage(text),
            Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS) => Self::Refused(text),
            // The kernel has no such namespaces, or not in one more.
            Some(Errno::INVAL | Errno::USERS) if error.of_namespaces => Self::Refused(text),
            _ => Self::Broken(text),
        }
    }

    /// What it means that a signal ended what was tried.
    pub(in crate::sandbox) fn of_signal(signal: i32) -> Self {
        let text = format!("signal {signal} ended it");
        match signal {
            libc::SIGSYS => Self::Refused(format!("{text}: a filter of system calls")),
            // Who kills a program that does nothing is out of memory, or is told to stop it.
            libc::SIGKILL | libc::SIGTERM | libc::SIGXCPU => Self::Shortage(text),
            _ => Self::Broken(text),
        }
    }
}

/// Whether the error says that there is too little of something that may be there again later.
pub(crate) fn is_shortage(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::AGAIN
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOMEM
            | Errno::NOBUFS
            | Errno::NOSPC
            | Errno::DQUOT
    )
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("this program was built without support for sandboxes"),
            Self::Refused(text) => write!(f, "this machine allows no sandboxes: {text}"),
            Self::Broken(text) => write!(f, "sandboxes do not work here: {text}"),
            Self::Shortage(text) => {
                write!(f, "no sandbox could be tried, for want of something: {text}")
            }
            Self::TimedOut(limit) => {
                write!(f, "a sandbox was not ready within {} s", limit.as_secs_f64())
            }
            Self::Interrupted => f.write_str("the start was interrupted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_setup(errno: i32, of_namespaces: bool, are_forbidden: bool) -> Failure {
        let error = SetupError::of_test(io::Error::from_raw_os_error(errno), of_namespaces);
        let failure = Failure::of_setup(&error, are_forbidden);
        let text = failure.to_string();
        assert!(text.contains(&error.to_string()), "{text}");
        failure
    }

    #[test]
    fn a_shortage_is_never_taken_for_a_refusal() {
        let shortages =
            [libc::EAGAIN, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOSPC, libc::EDQUOT];
        for errno in shortages {
            for of_namespaces in [false, true] {
                let failure = of_setup(errno, of_namespaces, false);
                assert!(matches!(failure, Failure::Shortage(_)), "{failure:?}");
                assert!(failure.is_inconclusive());
            }
            let failure = Failure::of_error(&io::Error::from_raw_os_error(errno));
            assert!(matches!(failure, Failure::Shortage(_)), "{failure:?}");
        }
        // An administrator who allows none of them means it.
        assert!(matches!(of_setup(libc::ENOSPC, true, true), Failure::Refused(_)));
        assert!(matches!(of_setup(libc::ENOSPC, false, true), Failure::Shortage(_)));
        assert!(matches!(of_setup(libc::EAGAIN, true, true), Failure::Shortage(_)));
    }

    #[test]
    fn what_is_refused_is_told_from_what_is_broken() {
        for errno in [libc::EPERM, libc::EACCES, libc::ENOSYS] {
            for of_namespaces in [false, true] {
                let failure = of_setup(errno, of_namespaces, false);
                assert!(matches!(failure, Failure::Refused(_)), "{failure:?}");
                assert!(!failure.is_inconclusive());
            }
        }
        assert!(matches!(of_setup(libc::EINVAL, true, false), Failure::Refused(_)));
        for errno in [libc::EINVAL, libc::ENOENT, libc::ENOTDIR] {
            assert!(matches!(of_setup(errno, false, false), Failure::Broken(_)));
        }
    }

    #[test]
    fn only_an_answer_is_conclusive() {
        let text = || "x".to_owned();
        for failure in [Failure::Missing, Failure::Refused(text()), Failure::Broken(text())] {
            assert!(!failure.is_inconclusive(), "{failure:?}");
        }
        for signal in [libc::SIGKILL, libc::SIGTERM] {
            assert!(Failure::of_signal(signal).is_inconclusive());
        }
        assert!(Failure::TimedOut(Duration::from_secs(1)).is_inconclusive());
        assert!(Failure::Interrupted.is_inconclusive());
        for error in [libc::EPERM, libc::ENOSYS].map(io::Error::from_raw_os_error) {
            assert!(matches!(Failure::of_error(&error), Failure::Refused(_)));
        }
        for error in [libc::ENOENT, libc::EACCES, libc::ENOEXEC].map(io::Error::from_raw_os_error) {
            assert!(matches!(Failure::of_error(&error), Failure::Broken(_)));
        }
        assert!(matches!(Failure::of_signal(libc::SIGSYS), Failure::Refused(_)));
        assert!(matches!(Failure::of_signal(libc::SIGSEGV), Failure::Broken(_)));
    }
}
