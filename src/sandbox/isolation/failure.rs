//! Why there is no sandbox: what the probe found, told apart by what follows from it. Pure.
//!
//! A *refusal* is an answer: this machine gives this user no sandbox, today and tomorrow. A
//! *shortage*, a probe that takes too long and an interrupt are none: nothing is known then, so
//! nothing weaker may be used in place of a sandbox, and the start fails.

use std::fmt;
use std::io;
use std::time::Duration;

use rustix::io::Errno;

/// Why a probe brought no sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no bubblewrap.
    Missing,
    /// The kernel or a security policy does not allow it to this user: what was said, as one line.
    Refused(String),
    /// Bubblewrap does not work here, and says nothing of permissions: what it said, as one line.
    Broken(String),
    /// The machine lacks something just now: what was said, as one line.
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
            // EACCES is of the program's file, which says nothing of sandboxes.
            Some(Errno::PERM | Errno::NOSYS) => Self::Refused(text),
            _ => Self::Broken(text),
        }
    }

    /// What the text means that bubblewrap, or what it started, wrote to its standard error.
    /// Programs get an environment in which the C library speaks English.
    pub(in crate::sandbox) fn of_text(text: &str) -> Self {
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let line = super::one_line(text);
        // ENOSPC for a namespace is a limit that an administrator has set, mostly to 0.
        if says(&["namespace"]) && says(&["ENOSPC", "No space left", "Too many users"]) {
            Self::Refused(line)
        } else if says(&SHORTAGES) {
            Self::Shortage(line)
        } else if says(&REFUSALS) {
            Self::Refused(line)
        } else {
            Self::Broken(line)
        }
    }

    /// What it means that a signal ended bubblewrap.
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

/// The C library's words for the errors of [`is_shortage`], and bubblewrap's own.
const SHORTAGES: [&str; 7] = [
    "Resource temporarily unavailable",
    "Too many open files",
    "Cannot allocate memory",
    "Out of memory",
    "No buffer space available",
    "No space left on device",
    "Disk quota exceeded",
];

/// What bubblewrap says where something is not allowed.
const REFUSALS: [&str; 6] = [
    "Operation not permitted",
    "Permission denied",
    "No permissions",
    "Function not implemented",
    "does not support user namespaces",
    "max_*_namespaces",
];

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no bubblewrap (bwrap) in PATH"),
            Self::Refused(text) => write!(f, "bubblewrap may not make sandboxes here: {text}"),
            Self::Broken(text) => write!(f, "bubblewrap does not work here: {text}"),
            Self::Shortage(text) => {
                write!(f, "bubblewrap could not be tried, for want of something: {text}")
            }
            Self::TimedOut(limit) => {
                write!(f, "bubblewrap did not end within {} s", limit.as_secs_f64())
            }
            Self::Interrupted => f.write_str("the start was interrupted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bubblewrap_says_is_told_apart() {
        let refused = [
            // Of bubblewrap 0.8, and what older ones and kernels say.
            "bwrap: No permissions to create new namespace, likely because the kernel does not allow \
             non-privileged user namespaces. On e.g. debian this can be enabled with 'sysctl \
             kernel.unprivileged_userns_clone=1'.",
            "bwrap: Creating new namespace failed, likely because the kernel does not support user \
             namespaces.  bwrap must be installed setuid on such systems.",
            "bwrap: Creating new namespace failed: nesting depth or \
             /proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
            "bwrap: Creating new namespace failed: No space left on device",
            "bwrap: Creating new namespace failed: Operation not permitted",
            "bwrap: setting up uid map: Permission denied",
            "bwrap: Can't mount proc on /newroot/proc: Operation not permitted",
            "bwrap: pivot_root: Operation not permitted",
        ];
        for text in refused {
            assert_eq!(Failure::of_text(text), Failure::Refused(text.to_owned()));
        }
        let shortage = [
            "bwrap: Creating new namespace failed: Resource temporarily unavailable",
            "bwrap: Creating new namespace failed: Cannot allocate memory",
            "bwrap: Can't open /proc/self/ns: Too many open files",
            "bwrap: Can't fork for child: Resource temporarily unavailable",
            "bwrap: Can't mkdir /tmp/x: No space left on device",
            "bwrap: Out of memory",
            "bash: fork: retry: Resource temporarily unavailable",
        ];
        for text in shortage {
            assert_eq!(Failure::of_text(text), Failure::Shortage(text.to_owned()));
        }
        for text in ["bwrap: Unknown option --disable-userns", "bwrap: execvp bash: No such file"] {
            assert_eq!(Failure::of_text(text), Failure::Broken(text.to_owned()));
        }
        assert_eq!(Failure::of_text(" \n"), Failure::Broken("no reason given".to_owned()));
    }

    #[test]
    fn only_an_answer_is_conclusive() {
        let text = || "x".to_owned();
        for failure in [Failure::Missing, Failure::Refused(text()), Failure::Broken(text())] {
            assert!(!failure.is_inconclusive(), "{failure:?}");
        }
        let errors =
            [libc::EAGAIN, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOSPC, libc::EDQUOT];
        for error in errors.map(io::Error::from_raw_os_error) {
            let failure = Failure::of_error(&error);
            assert!(matches!(failure, Failure::Shortage(_)), "{failure:?}");
            assert!(failure.is_inconclusive());
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
