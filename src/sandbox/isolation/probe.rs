//! Running bubblewrap once, to see whether it works here: bounded in time, interruptible, and
//! leaving no process behind, whatever bubblewrap does.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::{
    Bubblewrap, Failure, Handshake, STATUS_FD, Sandbox, StatusReport, bwrap_argv, open_null,
};
use crate::interrupt::Interrupt;
use crate::sandbox::running::open_child_of;
use crate::sandbox::shell;
use crate::sandbox::spawn::{self, CStringArray, Child, Reaped};
use crate::sandbox::user::{self, CommandUser};
use crate::sandbox::workspace::Workspace;

/// How long all probes of one start may take together: the usual ones take some 50 milliseconds.
const LIMIT: Duration = Duration::from_secs(15);
/// How long a wait may last before the interrupt is looked at again.
const SLICE: Duration = Duration::from_millis(20);
/// How long the end of a killed bubblewrap is awaited.
const KILL_LIMIT: Duration = Duration::from_millis(500);

/// The time that the probes of one start have, all together.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    limit: Duration,
    deadline: Instant,
    interrupt: Interrupt,
}

impl Budget {
    /// The usual time, from now on; `interrupt` ends it at once.
    pub(crate) fn new(interrupt: &Interrupt) -> Self {
        Self::of(LIMIT, interrupt)
    }

    /// So much time, from now on.
    pub(crate) fn of(limit: Duration, interrupt: &Interrupt) -> Self {
        Self { limit, deadline: Instant::now() + limit, interrupt: interrupt.clone() }
    }

    /// Whether there is time left.
    ///
    /// # Errors
    /// There is not, or the start was interrupted.
    pub(in crate::sandbox) fn check(&self) -> Result<(), Failure> {
        if self.interrupt.is_interrupted() {
            return Err(Failure::Interrupted);
        }
        if Instant::now() >= self.deadline {
            return Err(Failure::TimedOut(self.limit));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Default for Budget {
    fn default() -> Self {
        Self::new(&Interrupt::new())
    }
}

impl Bubblewrap {
    /// As [`try_out`](Self::try_out), on a thread that may become the user.
    pub(super) fn try_out_as(
        &self,
        workspace: &Workspace,
        user: Option<CommandUser>,
        budget: &Budget,
    ) -> Result<(), Failure> {
        user::as_on_own_thread(user, || self.try_out(workspace, user, budget))
            .unwrap_or_else(|error| Err(Failure::of_error(&error)))
    }

    /// Runs `true` in a sandbox.
    pub(super) fn try_out(
        &self,
        workspace: &Workspace,
        user: Option<CommandUser>,
        budget: &Budget,
    ) -> Result<(), Failure> {
        budget.check()?;
        let failed = |error: io::Error| Failure::of_error(&error);
        let call = shell::shell_call(self.layout.shell, "true", false, None, usize::MAX);
        let filter = self.open_filter().map_err(failed)?;
        let filter_fd = STATUS_FD + 1;
        let sandbox = Sandbox {
            workspace: workspace.path(),
            temporary: workspace.temporary(),
            shown: &[],
            network: !self.can_cut_network,
            handshake: Handshake::None,
            seccomp: filter.is_some().then_some(filter_fd),
            argv: &call.argv,
        };
        let arguments = CStringArray::new(bwrap_argv(self, &sandbox)).map_err(failed)?;
        let environment = CStringArray::new(shell::environment(
            Path::new("/workspace"),
            Path::new("/tmp"),
            self.layout.shell,
            &self.layout.user,
            Some(&call),
        ))
        .map_err(failed)?;
        let program = CString::new(self.program.as_os_str().as_bytes())
            .map_err(|_| failed(spawn::embedded_nul()))?;
        let null = open_null().map_err(failed)?;
        let (errors, errors_writer) = spawn::pipe().map_err(failed)?;
        let (status, status_writer) = spawn::pipe().map_err(failed)?;
        let mut fds =
            vec![null.as_fd(), null.as_fd(), errors_writer.as_fd(), status_writer.as_fd()];
        fds.extend(filter.as_ref().map(AsFd::as_fd));
        let child = spawn::spawn(&program, &arguments, &environment, &fds, user).map_err(failed)?;
        drop((errors_writer, status_writer));
        let end = wait(&child, budget).inspect_err(|_| end_sandbox(&child, status.as_fd()))?;
        let report = StatusReport::parse(&read_available(status.as_fd()));
        let errors = String::from_utf8_lossy(&read_available(errors.as_fd())).into_owned();
        match (report.exit_code, end) {
            (Some(0), _) => Ok(()),
            (None, Reaped::Signaled(signal)) => Err(Failure::of_signal(signal)),
            // 128 + n stands for signal n, which ended the shell.
            (Some(code @ 129..=192), _) => Err(Failure::of_signal(code - 128)),
            (Some(code), _) if errors.trim().is_empty() => {
                Err(Failure::Broken(format!("`true` ended with exit code {code}")))
            }
            _ => Err(Failure::of_text(&errors)),
        }
    }
}

/// Waits until the child has ended, and reaps it.
///
/// # Errors
/// There is no time left, or the start was interrupted. It still runs.
fn wait(child: &Child, budget: &Budget) -> Result<Reaped, Failure> {
    loop {
        match child.reap() {
            Reaped::Running => budget.check()?,
            end => return Ok(end),
        }
        wait_for_end(child, SLICE);
    }
}

/// Waits for the end of the child, for `time` at most.
fn wait_for_end(child: &Child, time: Duration) {
    // An interrupted wait is looked at again by whoever waits.
    let _ = poll(&mut [PollFd::new(child, PollFlags::IN)], time.try_into().ok().as_ref());
}

/// Ends a bubblewrap that is not waited for any longer, with what it has started, and reaps it.
/// `status` is the pipe that it reports to.
fn end_sandbox(child: &Child, status: BorrowedFd<'_>) {
    // Its first process may not be tied to its life yet.
    let report = StatusReport::parse(&read_available(status));
    if let Some(init) = report.child_pid.and_then(|pid| open_child_of(child.pid(), pid).ok()) {
        spawn::kill(init.as_fd());
    }
    end(child);
}

/// Kills a child that leads a session of its own, with all of its process group, and reaps it.
/// Blocks for half a second at most.
pub(in crate::sandbox) fn end(child: &Child) {
    // While it has not ended the number is its own, and that of its group.
    if !spawn::has_ended(child.as_fd()) {
        let _ = rustix::process::kill_process_group(child.pid(), rustix::process::Signal::KILL);
    }
    child.kill();
    if !await_end(child, KILL_LIMIT) {
        log::warn!("a bubblewrap that was killed while it was tried does not end");
    }
}

/// Waits until the child has ended, for `time` at most, and reaps it; `false` if it still runs.
pub(in crate::sandbox) fn await_end(child: &Child, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    while child.reap() == Reaped::Running {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        wait_for_end(child, left);
    }
    true
}

/// What is in the pipe just now, up to 16 KiB.
fn read_available(pipe: BorrowedFd<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 16 * 1024];
    let count = rustix::io::ioctl_fionbio(pipe, true)
        .and_then(|()| rustix::io::read(pipe, &mut buffer))
        .unwrap_or(0);
    buffer.truncate(count);
    buffer
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::bubblewrap;
    use super::*;
    use crate::sandbox::workspace::DataDir;

    struct Fake {
        base: tempfile::TempDir,
        data: DataDir,
        bubblewrap: Bubblewrap,
    }

    /// A bubblewrap that is this shell script.
    fn fake(script: &str) -> Fake {
        let base = tempfile::tempdir().unwrap();
        let data = DataDir::create(Some(&base.path().join("data")), 1, None).unwrap();
        let program = base.path().join("bwrap");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let bubblewrap = Bubblewrap { program, ..bubblewrap() };
        Fake { base, data, bubblewrap }
    }

    impl Fake {
        fn try_out(&self, budget: &Budget) -> Result<(), Failure> {
            loop {
                match self.bubblewrap.try_out(&self.data.workspaces()[0], None, budget) {
                    // Another test's fork held the script open for writing.
                    Err(Failure::Broken(text)) if text.contains("Text file busy") => {}
                    tried => return tried,
                }
            }
        }
    }

    #[test]
    fn a_bubblewrap_that_fails_is_reported_with_its_own_words() {
        let tried = |script: &str| fake(script).try_out(&Budget::default());
        assert_eq!(tried("echo '{ \"exit-code\": 0 }' >&3"), Ok(()));
        let broken = |text: &str| Err(Failure::Broken(text.to_owned()));
        assert_eq!(tried("exit 1"), broken("no reason given"));
        // A success that bubblewrap does not report is none.
        assert_eq!(tried("exit 0"), broken("no reason given"));
        assert_eq!(
            tried("echo '{ \"exit-code\": 3 }' >&3"),
            broken("`true` ended with exit code 3")
        );
        let says = |text: &str| tried(&format!("echo '{text}' >&2; exit 1"));
        assert_eq!(says("bwrap: what?"), broken("bwrap: what?"));
        let text = "bwrap: No permissions to create new namespace";
        assert_eq!(says(text), Err(Failure::Refused(text.to_owned())));
        let text = "bwrap: Creating new namespace failed: Resource temporarily unavailable";
        assert_eq!(says(text), Err(Failure::Shortage(text.to_owned())));
        assert!(matches!(tried("kill -9 $$"), Err(Failure::Shortage(_))));
        assert!(matches!(tried("echo '{ \"exit-code\": 137 }' >&3"), Err(Failure::Shortage(_))));
        let mut missing = fake("");
        missing.bubblewrap.program = "/nonexistent/bwrap".into();
        let failure = missing.try_out(&Budget::default()).unwrap_err();
        assert!(matches!(&failure, Failure::Broken(text) if text.contains("No such file")));
    }

    /// Who has this path among its arguments.
    fn processes_of(path: &Path) -> usize {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let lines =
            processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        let needle = path.as_os_str().as_bytes();
        lines.filter(|line| line.windows(needle.len()).any(|part| part == needle)).count()
    }

    #[test]
    fn a_bubblewrap_that_hangs_is_ended_with_what_it_started_when_its_time_is_up() {
        // Another process of it hangs, too.
        let hangs = fake("sh -c 'sleep 1000; :' \"$0\" & sleep 1000; :");
        let budget = Budget::of(Duration::from_millis(300), &Interrupt::new());
        let failure = hangs.try_out(&budget).unwrap_err();
        assert_eq!(failure, Failure::TimedOut(Duration::from_millis(300)));
        let program = hangs.base.path().join("bwrap");
        let deadline = Instant::now() + Duration::from_secs(30);
        // Killed, the second one still has to be reaped by whoever adopts it.
        while processes_of(&program) > 0 {
            assert!(Instant::now() < deadline, "something of it is left");
            std::thread::yield_now();
        }
        // The time is that of all probes.
        assert_eq!(hangs.try_out(&budget), Err(failure));
    }

    #[test]
    fn an_interrupt_ends_a_probe_that_hangs() {
        let hangs = fake("echo > \"$0.started\"; exec sleep 1000");
        let started = hangs.base.path().join("bwrap.started");
        let interrupt = Interrupt::new();
        let budget = Budget::of(Duration::from_secs(600), &interrupt);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let deadline = Instant::now() + Duration::from_secs(60);
                while !started.exists() && Instant::now() < deadline {
                    std::thread::yield_now();
                }
                interrupt.interrupt();
            });
            let began = Instant::now();
            assert_eq!(hangs.try_out(&budget), Err(Failure::Interrupted));
            assert!(began.elapsed() < Duration::from_secs(300));
        });
    }
}
