//! What root has to do for another user, tried at the start: to become it, to signal its
//! processes, to give directories away, and to empty directories that it has locked.
//!
//! Root without some capabilities – in a container, or under a service manager – may do some of
//! it. Found out late, each slot would be kept back because its reset failed.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::{CommandUser, Purpose, on_own_thread};
use crate::sandbox::isolation::{self, is_shortage};
use crate::sandbox::shell::Shell;
use crate::sandbox::spawn::{self, CStringArray};
use crate::sandbox::tree;

/// How long a process that does nothing may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How long two entries may take to be removed.
const EMPTY_LIMIT: Duration = Duration::from_secs(10);

/// The capabilities that it takes, and their names.
const NEEDED: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::CHOWN, "CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "DAC_OVERRIDE"),
    (CapabilitySet::FOWNER, "FOWNER"),
    (CapabilitySet::KILL, "KILL"),
    (CapabilitySet::SETGID, "SETGID"),
    (CapabilitySet::SETUID, "SETUID"),
];

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// To become the user.
    ChangeUser,
    /// To start a process of the user.
    Start,
    /// To signal a process of the user.
    Signal,
    /// To give a directory to the user.
    GiveAway,
    /// To empty a directory of the user that it has locked.
    Empty,
}

impl Step {
    fn text(self) -> &'static str {
        match self {
            Self::ChangeUser => "become another user",
            Self::Start => "start a process as another user",
            Self::Signal => "end a process of another user",
            Self::GiveAway => "give a directory to another user",
            Self::Empty => "empty a directory of another user",
        }
    }
}

/// This process is root, and may not do what root has to for commands of another user.
#[derive(Debug)]
pub(crate) struct WeakRoot {
    /// What it may not.
    pub(crate) step: Step,
    /// What the system said.
    pub(crate) source: io::Error,
    /// The needed capabilities that it lacks.
    missing: Vec<&'static str>,
    /// Whether it is the machine's own root, or shares its number.
    of_machine: bool,
}

impl WeakRoot {
    fn new(step: Step, source: io::Error) -> Self {
        let effective = rustix::thread::capabilities(None).map(|sets| sets.effective);
        let missing = missing(effective.unwrap_or(CapabilitySet::all()));
        Self { step, source, missing, of_machine: is_machines_root() }
    }

    /// Whether it is for want of something that may be there again later.
    pub(crate) fn is_shortage(&self) -> bool {
        Errno::from_io_error(&self.source).is_some_and(is_shortage)
    }

    /// Whether it lacks a capability that it needs.
    pub(crate) fn lacks_capabilities(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Whether commands may run as this root all the same: outside of its user namespace it is
    /// another user, who owns nothing of the machine's.
    pub(crate) fn is_harmless(&self) -> bool {
        !self.of_machine && !self.is_shortage()
    }
}

impl fmt::Display for WeakRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this process is root, but cannot {}: {}", self.step.text(), self.source)?;
        if !self.missing.is_empty() {
            write!(f, " (it lacks the capabilities {})", self.missing.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for WeakRoot {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // Its text is in this one's.
        None
    }
}

/// The names of the needed capabilities that are not among these.
fn missing(effective: CapabilitySet) -> Vec<&'static str> {
    let lacks = |(capability, _): &&(CapabilitySet, _)| !effective.contains(*capability);
    NEEDED.iter().filter(lacks).map(|(_, name)| *name).collect()
}

/// Whether this process's user 0 is 0 in the namespace around its own, too.
pub(in crate::sandbox) fn is_machines_root() -> bool {
    is_root_of_machine(&std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
}

/// Whether the user 0 of the namespace with this `/proc/self/uid_map` is 0 in the one around it,
/// too. Where that is not known it is taken to be.
fn is_root_of_machine(uid_map: &str) -> bool {
    let root = uid_map.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (inside, outside) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (inside == 0).then_some(outside)
    });
    root.is_none_or(|outside| outside == 0)
}

/// Becomes the user on a thread, and tries to signal a process of the user. Blocks for their
/// lives.
///
/// # Errors
/// What is not allowed.
pub(super) fn change_and_kill(user: CommandUser) -> Result<(), WeakRoot> {
    on_own_thread(|| {
        // Which step it is must be told apart: both give EPERM.
        let changed = user.enter(Purpose::Exec).map(drop);
        Ok(changed.map_err(|error| (Step::ChangeUser, error)).and_then(|()| signal_process(user)))
    })
    .unwrap_or_else(|error| Err((Step::Start, error)))
    .map_err(|(step, error)| WeakRoot::new(step, error))
}

/// Starts a process of the user and sees whether it may be signalled.
fn signal_process(user: CommandUser) -> Result<(), (Step, io::Error)> {
    // It lives until the pipe is closed: a host that ignores SIGCHLD, or reaps every child, would
    // have one that ends at once gone before it was looked at.
    let start = || -> io::Result<_> {
        let shell = Shell::detect();
        let null = isolation::open_null()?;
        let (reads, writes) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let words = |words: &[&str]| CStringArray::new(words.iter().map(|&word| word.into()));
        let child = spawn::spawn(
            &CString::new(shell.path())?,
            &words(&["sh", "-c", "read line"])?,
            &words(&[])?,
            &[reads.as_fd(), null.as_fd(), null.as_fd()],
            Some(user),
        )?;
        Ok((child, writes))
    };
    let (child, lives) = match start() {
        Ok(started) => started,
        // Without a shell nothing will run, and that will be said.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err((Step::Start, error)),
    };
    let allowed = rustix::process::kill_process(child.pid(), rustix::process::Signal::CONT);
    drop(lives);
    child.await_end(END_LIMIT);
    allowed.map_err(|errno| (Step::Signal, errno.into()))
}

/// Gives a directory in `parent` to the user, has the user lock something in it, and removes it
/// all. Blocks on a few file system calls.
///
/// # Errors
/// What is not allowed, or does not work there.
pub(in crate::sandbox) fn of_files(
    user: CommandUser,
    parent: BorrowedFd<'_>,
) -> Result<(), WeakRoot> {
    const NAME: &str = "trial";
    let failed = |step| move |errno: Errno| WeakRoot::new(step, errno.into());
    let give = failed(Step::GiveAway);
    rustix::fs::mkdirat(parent, NAME, Mode::RWXU).map_err(give)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, NAME, flags, Mode::empty()).map_err(give)?;
    let (uid, gid) = (Some(user.uid()), Some(user.gid()));
    let given = rustix::fs::fchown(&dir, uid, gid);
    let locked = given.map_err(give).and_then(|()| {
        on_own_thread(|| {
            let _entered = user.enter(Purpose::Files)?;
            rustix::fs::mkdirat(&dir, "locked", Mode::RWXU)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            drop(rustix::fs::openat(&dir, "locked/file", flags, Mode::empty())?);
            Ok(rustix::fs::chmodat(&dir, "locked", Mode::empty(), AtFlags::empty())?)
        })
        .map_err(|error| WeakRoot::new(Step::GiveAway, error))
    });
    let emptied = locked.and_then(|()| {
        tree::empty(dir.as_fd(), None, Instant::now() + EMPTY_LIMIT)
            .map_err(|error| WeakRoot::new(Step::Empty, error.source))
    });
    if emptied.is_err() {
        // As its owner, so that nothing is left of it.
        let _ = on_own_thread(|| {
            let _entered = user.enter(Purpose::Files)?;
            let _ = tree::empty(dir.as_fd(), None, Instant::now() + EMPTY_LIMIT);
            Ok(())
        });
    }
    let removed = rustix::fs::unlinkat(parent, NAME, AtFlags::REMOVEDIR);
    emptied.and(removed.map_err(failed(Step::Empty)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing(CapabilitySet::all()), Vec::<&str>::new());
        let some = CapabilitySet::all() - CapabilitySet::KILL - CapabilitySet::FOWNER;
        assert_eq!(missing(some), ["FOWNER", "KILL"]);
        assert_eq!(missing(CapabilitySet::empty()).len(), NEEDED.len());
    }

    #[test]
    fn the_root_of_a_user_namespace_is_told_from_the_machines() {
        for (map, of_machine) in [
            ("         0          0 4294967295\n", true),
            ("0 0 1\n", true),
            ("0 1000 1\n1 100000 65536\n", false),
            ("1 100000 65536\n0 1000 1\n", false),
            ("0 100000 65536\n", false),
            ("", true),
        ] {
            assert_eq!(is_root_of_machine(map), of_machine, "{map}");
        }
    }

    #[test]
    fn what_root_may_do_works_and_leaves_nothing() {
        let Some(user) = CommandUser::detect() else { return };
        let outer = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(outer.path()).unwrap();
        of_files(user, dir.as_fd()).unwrap();
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 0);
    }

    /// What a thread without a capability finds out.
    fn without(capability: CapabilitySet) -> (Option<WeakRoot>, Option<WeakRoot>, usize) {
        let user = CommandUser::detect().unwrap();
        let outer = tempfile::tempdir().unwrap();
        let found = on_own_thread(|| {
            let mut sets = rustix::thread::capabilities(None)?;
            sets.effective -= capability;
            sets.permitted -= capability;
            rustix::thread::set_capabilities(None, sets)?;
            // The threads that it starts have no more.
            let dir = std::fs::File::open(outer.path())?;
            Ok((change_and_kill(user).err(), of_files(user, dir.as_fd()).err()))
        })
        .unwrap();
        (found.0, found.1, std::fs::read_dir(outer.path()).unwrap().count())
    }

    #[test]
    fn what_a_weak_root_may_not_do_is_named_and_nothing_is_left() {
        if !rustix::process::geteuid().is_root() {
            return; // Only root can lack something of root's.
        }
        let step = |weak: &Option<WeakRoot>| weak.as_ref().map(|weak| weak.step);
        for (capability, name, processes, files) in [
            (CapabilitySet::SETUID, "SETUID", Some(Step::ChangeUser), Some(Step::GiveAway)),
            (CapabilitySet::SETGID, "SETGID", Some(Step::ChangeUser), Some(Step::GiveAway)),
            (CapabilitySet::KILL, "KILL", Some(Step::Signal), None),
            (CapabilitySet::CHOWN, "CHOWN", None, Some(Step::GiveAway)),
            (CapabilitySet::FOWNER, "FOWNER", None, Some(Step::Empty)),
            (CapabilitySet::DAC_OVERRIDE, "DAC_OVERRIDE", None, Some(Step::Empty)),
        ] {
            let (of_processes, of_files, left) = without(capability);
            let found = (step(&of_processes), step(&of_files), left);
            assert_eq!(found, (processes, files, 0), "{name}");
            for weak in of_processes.into_iter().chain(of_files) {
                assert!(weak.to_string().contains(name), "{weak}");
                assert!(weak.lacks_capabilities() && !weak.is_shortage(), "{weak}");
            }
        }
    }
}
