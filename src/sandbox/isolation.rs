//! How commands are isolated: found out once, at start, and never revisited because of what a
//! command printed.
//!
//! [`Isolation::find`] runs the real bubblewrap with the flags of production ([`probe`]). Why that
//! brought no sandbox is a [`Failure`], and what to do about it in [`remedy`]. Which arguments
//! bubblewrap gets is in [`argv`], what it reports in [`report`], what of the host it shows in
//! [`layout`]. `shell` knows how the command reaches its shell; the supervisor starts the
//! processes.
//!
//! What a command sees under bubblewrap: a read-only `/usr`, of `/etc` what the module `etc` has
//! copied, its workspace as `/workspace` and its slot's `/tmp` (the only host directories that it
//! can write to), a private `/dev`, a read-only `/proc` of its own processes, its own user, pid,
//! ipc, uts and cgroup namespaces, a network only where it is allowed, no capabilities and no
//! further user namespaces; and no system calls but those that `limits::seccomp` leaves it.

mod argv;
mod failure;
mod layout;
mod probe;
mod remedy;
mod report;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

pub(super) use argv::{
    BLOCK_FD, Handshake, PROGRAM_FD, SECCOMP_FD, STATUS_FD, Sandbox, bwrap_argv,
};
pub(crate) use failure::{Failure, is_shortage};
pub(super) use layout::HostLayout;
pub(crate) use probe::Budget;
pub(super) use probe::{await_end, end};
pub(crate) use remedy::{Facts, advice};
pub(super) use report::{StatusReport, one_line};

use super::host::Host;
use super::limits::{Filter, Limits};
use super::room;
use super::shell;
use super::user::{self, CommandUser};
use super::workspace::Workspace;

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
    /// How large `/dev/shm` may become. `None` leaves it to the kernel, which gives half of the
    /// memory.
    shared_memory: Option<u64>,
    /// The filter of system calls; or why there is none, as one line.
    seccomp: Result<Arc<Filter>, String>,
}

impl Isolation {
    /// Finds out what works here for commands of `user`, or of this process if there is none, in
    /// `workspace`. Blocks: some milliseconds as a rule, as long as `budget` allows at most.
    ///
    /// # Errors
    /// There is no sandbox to be had, or it could not be found out; see
    /// [`Failure::is_inconclusive`].
    pub(crate) fn find(
        user: Option<CommandUser>,
        workspace: &Workspace,
        budget: &Budget,
    ) -> Result<Self, Failure> {
        let found = user::as_on_own_thread(user, || Bubblewrap::find(user, workspace, budget));
        found.unwrap_or_else(|error| Err(Failure::of_error(&error))).map(Self::Bubblewrap)
    }

    /// As [`find`](Self::find), with all the time that it may take; without a sandbox if there is
    /// none.
    #[cfg(test)]
    pub(crate) fn probe(user: Option<CommandUser>, workspace: &Workspace) -> Self {
        Self::find(user, workspace, &Budget::default()).unwrap_or_else(|failure| {
            assert!(!failure.is_inconclusive(), "{failure}");
            Self::None { reason: failure.to_string() }
        })
    }

    /// Shows commands this directory as `/etc`; without one it is empty.
    pub(crate) fn with_etc(mut self, etc: PathBuf) -> Self {
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.etc = Some(etc);
        }
        self
    }

    /// Finds out whether sandboxes can be kept, for commands of `user` in `workspace`, and has them
    /// kept then. Blocks: some milliseconds as a rule, as long as `budget` allows at most. Without
    /// a sandbox there is none to keep.
    ///
    /// Logs a warning where it does not work.
    ///
    /// # Errors
    /// It could not be found out.
    pub(crate) fn try_warm(
        mut self,
        user: Option<CommandUser>,
        workspace: &Arc<Workspace>,
        budget: &Budget,
    ) -> Result<Self, Failure> {
        let tried = match &self {
            Self::None { .. } => return Ok(self),
            Self::Bubblewrap(bubblewrap) => user::on_own_thread(|| {
                let host = Host::new(self.clone(), user, Arc::new(Limits::none()))?;
                Ok(room::try_out(bubblewrap, workspace, &host, budget))
            }),
        };
        let tried = tried.unwrap_or_else(|error| Err(Failure::of_error(&error)));
        let warm = conclusive(tried)?;
        if let Err(reason) = &warm {
            log::warn!("each command gets a sandbox of its own, which is slower: {reason}");
        }
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.warm = warm;
        }
        Ok(self)
    }

    /// Loads this filter of system calls into every sandbox, if that works here for commands of
    /// `user` in `workspace`. Blocks for one run of bubblewrap.
    ///
    /// Logs a warning where it does not work.
    ///
    /// # Errors
    /// It could not be found out.
    pub(crate) fn with_filter(
        mut self,
        filter: Result<Filter, String>,
        user: Option<CommandUser>,
        workspace: &Workspace,
        budget: &Budget,
    ) -> Result<Self, Failure> {
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.seccomp = filter.map(Arc::new);
            let tried = match &bubblewrap.seccomp {
                Err(reason) => Err(reason.clone()),
                Ok(_) => conclusive(bubblewrap.try_out_as(workspace, user, budget))?,
            };
            if let Err(reason) = tried {
                log::warn!("commands run without a filter of system calls: {reason}");
                bubblewrap.seccomp = Err(reason);
            }
        }
        Ok(self)
    }

    /// Whether slots keep their sandboxes.
    pub(crate) fn is_warm(&self) -> bool {
        matches!(self, Self::Bubblewrap(bubblewrap) if bubblewrap.warm.is_ok())
    }

    /// Gives sandboxes a `/dev/shm` of at most this size, if bubblewrap can do that (since 0.7).
    /// Blocks for one run of bubblewrap.
    ///
    /// Logs a warning where it does not work.
    ///
    /// # Errors
    /// It could not be found out.
    pub(crate) fn with_shared_memory(
        mut self,
        bytes: u64,
        user: Option<CommandUser>,
        workspace: &Workspace,
        budget: &Budget,
    ) -> Result<Self, Failure> {
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.shared_memory = Some(bytes);
            if let Err(reason) = conclusive(bubblewrap.try_out_as(workspace, user, budget))? {
                log::warn!("the size of /dev/shm is not limited: {reason}");
                bubblewrap.shared_memory = None;
            }
        }
        Ok(self)
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

/// Whether something works, and why not, as one line; unless that could not be found out.
fn conclusive(tried: Result<(), Failure>) -> Result<Result<(), String>, Failure> {
    match tried {
        Err(failure) if failure.is_inconclusive() => Err(failure),
        tried => Ok(tried.map_err(|failure| failure.to_string())),
    }
}

impl Bubblewrap {
    /// Tries the production flags from the strictest to the most lenient that is acceptable. What
    /// is not conclusive ends it: a laxer sandbox is only for machines that refuse the stricter
    /// one.
    fn find(
        user: Option<CommandUser>,
        workspace: &Workspace,
        budget: &Budget,
    ) -> Result<Self, Failure> {
        let program = find_program("bwrap").ok_or(Failure::Missing)?;
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
            match candidate.try_out(workspace, user, budget) {
                Ok(()) => return Ok(candidate),
                Err(failure) if failure.is_inconclusive() => return Err(failure),
                Err(failure) => first_failure.get_or_insert(failure),
            };
        }
        Err(first_failure.unwrap_or(Failure::Missing))
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
}

/// `/dev/null`, for reading and writing.
pub(super) fn open_null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// The absolute path of a program, from the host's `PATH`; from the usual directories where there
/// is none.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").filter(|path| !path.is_empty());
    std::env::split_paths(&path.unwrap_or_else(|| shell::PATH.into()))
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
}
