//! How commands are isolated: found out once, at start, and never revisited because of what a command
//! printed.
//!
//! [`Isolation::probe`] runs the real bubblewrap with the flags of production. Which arguments it gets is
//! in [`argv`], what it reports in [`report`], what of the host it shows in [`layout`]. `shell` knows how
//! the command reaches its shell; the supervisor starts the processes.
//!
//! What a command sees under bubblewrap: a read-only `/usr`, of `/etc` what the module `etc` has
//! copied, its workspace as `/workspace` and its slot's `/tmp` (the only host directories that it can
//! write to), a private `/dev`, a read-only `/proc` of its own processes, its own user, pid, ipc, uts
//! and cgroup namespaces, a network only where it is allowed, no capabilities and no further user
//! namespaces; and no system calls but those that `limits::seccomp` leaves it.

mod argv;
mod layout;
mod report;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use argv::{
    BLOCK_FD, Handshake, PROGRAM_FD, SECCOMP_FD, STATUS_FD, Sandbox, bwrap_argv,
};
pub(super) use layout::HostLayout;
pub(super) use report::{StatusReport, one_line};

use super::host::Host;
use super::limits::{Filter, Limits};
use super::room;
use super::shell;
use super::spawn::{self, CStringArray, Child, Reaped};
use super::user::{self, CommandUser};
use super::workspace::Workspace;

/// How long one run of bubblewrap may take while probing.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How the commands of this process are isolated.
#[derive(Debug, Clone)]
pub(crate) enum Isolation {
    /// Each command runs in namespaces of its own.
    Bubblewrap(Bubblewrap),
    /// Commands run as ordinary processes, in their workspace and with a clean environment; nothing
    /// keeps them from anything that their user may do.
    None {
        /// Why, as one line for people.
        reason: String,
    },
}

/// A bubblewrap that was seen to work here.
#[derive(Debug, Clone)]
pub(crate) struct Bubblewrap {
    /// Absolute path of the program.
    pub(crate) program: PathBuf,
    /// Whether it can forbid further user namespaces inside (`--disable-userns`, since 0.8 and not
    /// where it is installed setuid).
    pub(crate) disable_userns: bool,
    /// Whether it can take the network away; some containers do not allow it.
    pub(crate) can_cut_network: bool,
    /// What of the host is shared.
    pub(super) layout: HostLayout,
    /// The directory that is shown as `/etc`.
    etc: Option<PathBuf>,
    /// Whether slots keep their sandboxes; else why not, as one line.
    warm: Result<(), String>,
    /// How large `/dev/shm` may become. `None` leaves it to the kernel, which gives half of the memory.
    shared_memory: Option<u64>,
    /// The filter of system calls; or why there is none, as one line.
    seccomp: Result<Arc<Filter>, String>,
}

impl Isolation {
    /// Finds out what works here for commands of `user`, or of this process if there is none, in
    /// `workspace`. Blocks: some milliseconds as a rule, at most 40 seconds.
    ///
    /// Logs a warning where commands will not be isolated.
    pub(crate) fn probe(user: Option<CommandUser>, workspace: &Workspace) -> Self {
        let probed = match user {
            Some(_) => user::on_own_thread(|| Ok(Bubblewrap::probe(user, workspace)))
                .unwrap_or_else(|error| Err(error.to_string())),
            None => Bubblewrap::probe(None, workspace),
        };
        match probed {
            Ok(bubblewrap) => Self::Bubblewrap(bubblewrap),
            Err(reason) => {
                log::warn!("commands will run without isolation: {reason}");
                Self::None { reason }
            }
        }
    }

    /// Shows commands this directory as `/etc`; without one it is empty.
    pub(crate) fn with_etc(mut self, etc: PathBuf) -> Self {
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.etc = Some(etc);
        }
        self
    }

    /// Finds out whether sandboxes can be kept, for commands of `user` in `workspace`, and has them kept
    /// then. Blocks: some milliseconds as a rule, at most 10 seconds.
    pub(crate) fn try_warm(
        mut self,
        user: Option<CommandUser>,
        workspace: &Arc<Workspace>,
    ) -> Self {
        let tried = match &self {
            Self::None { .. } => return self,
            Self::Bubblewrap(bubblewrap) => user::on_own_thread(|| {
                let host = Host::new(self.clone(), user, Arc::new(Limits::none()))?;
                Ok(room::try_out(bubblewrap, workspace, &host, PROBE_TIMEOUT))
            }),
        };
        let tried = tried.unwrap_or_else(|error| Err(error.to_string()));
        if let Err(reason) = &tried {
            log::warn!("each command gets a sandbox of its own, which is slower: {reason}");
        }
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.warm = tried;
        }
        self
    }

    /// Loads this filter of system calls into every sandbox, if that works here for commands of `user`
    /// in `workspace`. Blocks for one run of bubblewrap.
    ///
    /// Logs a warning where it does not work.
    pub(crate) fn with_filter(
        mut self,
        filter: Result<Filter, String>,
        user: Option<CommandUser>,
        workspace: &Workspace,
    ) -> Self {
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.seccomp = filter.map(Arc::new);
            let tried = match &bubblewrap.seccomp {
                Err(reason) => Err(reason.clone()),
                Ok(_) => bubblewrap.try_out_as(workspace, user),
            };
            if let Err(reason) = tried {
                log::warn!("commands run without a filter of system calls: {reason}");
                bubblewrap.seccomp = Err(reason);
            }
        }
        self
    }

    /// Whether slots keep their sandboxes.
    pub(crate) fn is_warm(&self) -> bool {
        matches!(self, Self::Bubblewrap(bubblewrap) if bubblewrap.warm.is_ok())
    }

    /// Gives sandboxes a `/dev/shm` of at most this size, if bubblewrap can do that (since 0.7).
    /// Blocks for one run of bubblewrap.
    pub(crate) fn with_shared_memory(
        mut self,
        bytes: u64,
        user: Option<CommandUser>,
        workspace: &Workspace,
    ) -> Self {
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.shared_memory = Some(bytes);
            if let Err(reason) = bubblewrap.try_out_as(workspace, user) {
                log::warn!("the size of /dev/shm is not limited: {reason}");
                bubblewrap.shared_memory = None;
            }
        }
        self
    }

    /// Whether commands run in a sandbox.
    pub(crate) fn is_sandboxed(&self) -> bool {
        matches!(self, Self::Bubblewrap(_))
    }

    /// Whether a command can be run without network.
    pub(crate) fn can_cut_network(&self) -> bool {
        matches!(self, Self::Bubblewrap(bubblewrap) if bubblewrap.can_cut_network)
    }
}

impl Bubblewrap {
    /// Tries the production flags from the strictest to the most lenient that is acceptable.
    fn probe(user: Option<CommandUser>, workspace: &Workspace) -> Result<Self, String> {
        let program = find_program("bwrap").ok_or(
            "bubblewrap (bwrap) is not installed; on Debian and Ubuntu: apt-get install bubblewrap",
        )?;
        let layout = HostLayout::detect(user);
        let mut first_failure = None;
        for (can_cut_network, disable_userns) in
            [(true, true), (true, false), (false, true), (false, false)]
        {
            let candidate = Self {
                program: program.clone(),
                disable_userns,
                can_cut_network,
                layout: layout.clone(),
                etc: None,
                warm: Err("not wanted".to_owned()),
                shared_memory: None,
                seccomp: Err("switched off".to_owned()),
            };
            match candidate.try_out(workspace, user) {
                Ok(()) => return Ok(candidate),
                Err(failure) => first_failure.get_or_insert(failure),
            };
        }
        let failure = first_failure.unwrap_or_default();
        let whom = user.map_or_else(String::new, |user| format!(" for user {}", user.uid()));
        Err(format!("{} does not work here{whom}: {failure}", program.display()))
    }

    /// The filter of system calls for one start of bubblewrap, which is then given its number as
    /// [`Sandbox::seccomp`].
    ///
    /// # Errors
    /// Those of opening a file. No command may start without the filter then.
    pub(super) fn open_filter(&self) -> io::Result<Option<OwnedFd>> {
        self.seccomp.as_ref().ok().map(|filter| filter.open()).transpose()
    }

    /// Why there is no filter of system calls, as one line; `None` where there is one.
    pub(crate) fn not_filtered_because(&self) -> Option<&str> {
        self.seccomp.as_ref().err().map(String::as_str)
    }

    /// As [`try_out`](Self::try_out), on a thread that may become the user.
    fn try_out_as(&self, workspace: &Workspace, user: Option<CommandUser>) -> Result<(), String> {
        if user.is_none() {
            return self.try_out(workspace, None);
        }
        user::on_own_thread(|| Ok(self.try_out(workspace, user)))
            .unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Runs `true` in a sandbox.
    fn try_out(&self, workspace: &Workspace, user: Option<CommandUser>) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let call = shell::shell_call(self.layout.shell, "true", false, None, usize::MAX);
        let filter = self.open_filter().map_err(text)?;
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
        let arguments = CStringArray::new(bwrap_argv(self, &sandbox)).map_err(text)?;
        let environment = CStringArray::new(shell::environment(
            Path::new("/workspace"),
            Path::new("/tmp"),
            self.layout.shell,
            &self.layout.user,
            Some(&call),
        ))
        .map_err(text)?;
        let program = CString::new(self.program.as_os_str().as_bytes())
            .map_err(|_| spawn::embedded_nul().to_string())?;
        let null = open_null().map_err(text)?;
        let (errors, errors_writer) = spawn::pipe().map_err(text)?;
        let (status, status_writer) = spawn::pipe().map_err(text)?;
        let mut fds =
            vec![null.as_fd(), null.as_fd(), errors_writer.as_fd(), status_writer.as_fd()];
        fds.extend(filter.as_ref().map(AsFd::as_fd));
        let child = spawn::spawn(&program, &arguments, &environment, &fds, user).map_err(text)?;
        drop((errors_writer, status_writer));
        wait_or_kill(&child, PROBE_TIMEOUT)?;
        let report = StatusReport::parse(&read_available(status.as_fd()));
        match report.exit_code {
            Some(0) => Ok(()),
            Some(code) => Err(format!("`true` ended with exit code {code}")),
            None => Err(one_line(&String::from_utf8_lossy(&read_available(errors.as_fd())))),
        }
    }
}

/// Waits until the child has ended, and reaps it.
fn wait_or_kill(child: &Child, timeout: Duration) -> Result<(), String> {
    use rustix::event::{PollFd, PollFlags, poll};
    let deadline = Instant::now() + timeout;
    while child.reap() == Reaped::Running {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            child.kill();
            return Err(format!("no end after {} s", timeout.as_secs()));
        }
        let mut fds = [PollFd::new(child, PollFlags::IN)];
        // An interrupted wait is looked at again above.
        let _ = poll(&mut fds, left.try_into().ok().as_ref());
    }
    Ok(())
}

/// What is in the pipe just now, up to 16 KiB.
fn read_available(pipe: std::os::fd::BorrowedFd<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 16 * 1024];
    let count = rustix::io::ioctl_fionbio(pipe, true)
        .and_then(|()| rustix::io::read(pipe, &mut buffer))
        .unwrap_or(0);
    buffer.truncate(count);
    buffer
}

/// `/dev/null`, for reading and writing.
pub(super) fn open_null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// The absolute path of a program, from the host's `PATH` and the usual directories.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(std::env::split_paths(shell::PATH))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|candidate| {
            rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok()
                && candidate.is_file()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::shell::Shell;
    use crate::sandbox::workspace::DataDir;

    pub(super) fn bubblewrap() -> Bubblewrap {
        Bubblewrap {
            program: "/usr/bin/bwrap".into(),
            disable_userns: true,
            can_cut_network: true,
            layout: HostLayout {
                root: vec![("/bin".into(), Some("usr/bin".into())), ("/lib".into(), None)],
                shell: Shell::Bash,
                user: "someone".to_owned(),
            },
            etc: Some("/run/etc".into()),
            warm: Ok(()),
            shared_memory: Some(4096),
            seccomp: Err("a test".to_owned()),
        }
    }

    #[test]
    fn a_bubblewrap_that_fails_is_reported_with_its_own_words() {
        let mut broken = bubblewrap();
        broken.program = "/bin/false".into();
        let base = tempfile::tempdir().unwrap();
        let data = DataDir::create(Some(base.path()), 1, None).unwrap();
        let workspace = &data.workspaces()[0];
        assert_eq!(broken.try_out(workspace, None), Err("no reason given".to_owned()));
        // A success that bubblewrap does not report is none.
        broken.program = "/bin/true".into();
        assert!(broken.try_out(workspace, None).is_err());
        broken.program = "/nonexistent/bwrap".into();
        let error = broken.try_out(workspace, None).unwrap_err();
        assert!(error.contains("No such file"), "{error}");
    }
}
