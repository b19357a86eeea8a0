//! How a command ended: by what was asked and by what the reaper reported. Pure.

use std::io;
use std::time::Duration;

use crate::sandbox::background::BackgroundReport;
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
    /// What it left running, and was ended with it.
    pub(in crate::sandbox) background: BackgroundReport,
    /// The limits of its slot that it has reached, by their names, and not been ended for.
    pub(in crate::sandbox) limits_reached: Vec<&'static str>,
    /// What is still to be reaped, where waiting was given up.
    pub(in crate::sandbox) leftover: Option<Child>,
}

impl Reason {
    /// Whether its processes are asked by SIGTERM first, and have half a second: a program that is
    /// wanted no more may want to clean up, as git its lock. What exceeds a limit goes on exceeding
    /// it meanwhile, and may do so for that: it is killed at once.
    pub(in crate::sandbox) fn asks_first(self) -> bool {
        matches!(self, Self::TimedOut | Self::Cancelled)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_under_a_reaper_ends_as_it_was_reported() {
        let report = |failed, ended| Report { failed, ended, all_dead: true };
        let end = |killed, report| reaper_end(killed, report, Reaped::Exited(0));
        assert_eq!(end(None, report(None, Some(256))), End::Exited(1));
        assert_eq!(end(None, report(None, Some(9))), End::Signaled(9));
        assert_eq!(end(Some(Reason::TimedOut), report(None, Some(9))), End::TimedOut);
        assert!(matches!(end(None, report(None, None)), End::Lost(_)));
        let failed = end(None, report(Some((Step::Execute, libc::ENOENT)), None));
        assert!(matches!(failed, End::SetupFailed(text) if text.contains("No such file")));
    }
}
