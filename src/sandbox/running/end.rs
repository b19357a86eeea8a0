//! How a command ended: by what was asked and by what bubblewrap or the reaper reported. Pure.

use std::io;
use std::time::Duration;

use crate::sandbox::isolation;
use crate::sandbox::limits::Exceeded;
use crate::sandbox::output::Captured;
use crate::sandbox::reaper::{Report, Step};
use crate::sandbox::spawn::{Child, Reaped};
use crate::sandbox::supervisor::End;

/// Why a command was killed before its main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Reason {
    /// Its time was up.
    TimedOut,
    /// It was asked for.
    Cancelled,
    /// A limit of its slot was exceeded.
    Exceeded(Exceeded),
    /// It was not let go: why, as one line.
    NotStarted(&'static str),
}

/// How a command ended, with what it printed.
pub(in crate::sandbox) struct Ending {
    /// The end.
    pub(in crate::sandbox) end: End,
    /// Its standard output.
    pub(in crate::sandbox) stdout: Captured,
    /// Its standard error.
    pub(in crate::sandbox) stderr: Captured,
    /// From when it was let go until its main process ended or was killed. Zero if it never ran.
    pub(in crate::sandbox) wall: Duration,
    /// Whether the end of every process was seen.
    pub(in crate::sandbox) all_dead: bool,
    /// What is still to be reaped, where waiting was given up.
    pub(in crate::sandbox) leftover: Option<Child>,
}

impl Reason {
    /// How a command ends that was killed for it.
    pub(in crate::sandbox) fn end(self) -> End {
        match self {
            Self::TimedOut => End::TimedOut,
            Self::Cancelled => End::Cancelled,
            Self::Exceeded(exceeded) => End::Exceeded(exceeded),
            Self::NotStarted(why) => End::SetupFailed(why.to_owned()),
        }
    }
}

/// How a command in a sandbox ended. Decided by what was asked and by what bubblewrap reported,
/// never by what the command printed: `stderr` is bubblewrap's own where the command did not
/// start.
pub(super) fn namespace_end(
    killed: Option<Reason>,
    exit_code: Option<i32>,
    released: bool,
    bubblewrap: Reaped,
    stderr: &str,
) -> End {
    match (killed, exit_code, bubblewrap) {
        (Some(reason), ..) => reason.end(),
        (None, Some(code), _) if released => End::Exited(code),
        (None, Some(_), _) => End::SetupFailed("the sandbox could not be taken hold of".to_owned()),
        // It exits by itself without a report only if the command was never executed.
        (None, None, Reaped::Exited(_)) => End::SetupFailed(isolation::one_line(stderr)),
        (None, None, Reaped::Signaled(signal)) => {
            lost(released, format!("bubblewrap was killed by signal {signal}"))
        }
        (None, None, Reaped::Unknown | Reaped::Running) => {
            lost(released, "bubblewrap ended without a report".to_owned())
        }
    }
}

/// How a command under a reaper ended.
pub(super) fn reaper_end(killed: Option<Reason>, report: Report, reaper: Reaped) -> End {
    if let Some((step, errno)) = report.failed {
        let error = io::Error::from_raw_os_error(errno);
        return End::SetupFailed(match step {
            Step::ChangeUser => format!("cannot become an unprivileged user: {error}"),
            Step::Fork => format!("cannot make a process: {error}"),
            Step::ChangeDirectory => format!("cannot enter the workspace: {error}"),
            Step::Execute => format!("cannot execute the shell: {error}"),
        });
    }
    match (killed, report.ended) {
        (Some(reason), _) => reason.end(),
        (None, Some(status)) if libc::WIFSIGNALED(status) => End::Signaled(libc::WTERMSIG(status)),
        (None, Some(status)) => End::Exited(libc::WEXITSTATUS(status)),
        (None, None) => End::Lost(format!("the command's reaper ended early ({reaper:?})")),
    }
}

fn lost(released: bool, text: String) -> End {
    if released { End::Lost(text) } else { End::SetupFailed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_report_of_bubblewrap_makes_an_exit_code() {
        let end = |killed, code, released, child| {
            namespace_end(killed, code, released, child, "bwrap: no permissions\nreally\n")
        };
        assert_eq!(end(None, Some(1), true, Reaped::Exited(1)), End::Exited(1));
        assert_eq!(end(None, Some(137), true, Reaped::Unknown), End::Exited(137));
        assert_eq!(
            end(None, None, true, Reaped::Exited(1)),
            End::SetupFailed("bwrap: no permissions; really".to_owned())
        );
        assert!(matches!(end(None, Some(125), false, Reaped::Exited(125)), End::SetupFailed(_)));
        assert!(matches!(end(None, None, true, Reaped::Signaled(9)), End::Lost(_)));
        assert!(matches!(end(None, None, false, Reaped::Signaled(9)), End::SetupFailed(_)));
        assert!(matches!(end(None, None, true, Reaped::Unknown), End::Lost(_)));
        let timed_out = end(Some(Reason::TimedOut), Some(137), true, Reaped::Signaled(9));
        assert_eq!(timed_out, End::TimedOut);
        let not_started = end(Some(Reason::NotStarted("why")), None, false, Reaped::Signaled(9));
        assert_eq!(not_started, End::SetupFailed("why".to_owned()));
    }
}
