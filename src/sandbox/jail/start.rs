//! The birth of a jail's first process: a clone into namespaces, new ones or those of a machine
//! (`join`), that executes its program at once.
//!
//! As `posix_spawn` does it, the child borrows this process's memory until it executes, and this
//! thread waits for that: a host with gigabytes of heap pays nothing for them. There is no process
//! between the two, so that the first process is this one's own child, held by a pidfd from its
//! first moment.
//!
//! An ordinary user gets all capabilities in a new user namespace and loses them when it executes a
//! program. Those that set-up needs are kept over that as ambient ones; the first process gives
//! them up.

use std::ffi::{CStr, CString, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::super::init::SOCKET_FD;
use super::super::spawn::{self, CStringArray, Child, HighFd};
use super::super::user::{CommandUser, Purpose};
use super::clone::{Stack, clone};
use super::join;
use super::machine::Machine;

/// What the first process is born with.
pub(super) struct Birth<'a> {
    /// Its program.
    pub(super) program: BorrowedFd<'a>,
    /// Its `$0` and its arguments.
    pub(super) arguments: &'a CStringArray,
    /// Its environment.
    pub(super) environment: &'a CStringArray,
    /// Its end of the socket.
    pub(super) socket: BorrowedFd<'a>,
    /// `/dev/null`.
    pub(super) null: BorrowedFd<'a>,
    /// The machine that it joins. Without one it founds one.
    pub(super) machine: Option<&'a Machine>,
    /// Whether it has a network of its own that is not that of `machine`.
    pub(super) beside: bool,
    /// Whether its network is the host's.
    pub(super) is_in_hosts_network: bool,
    /// Whom it runs as, if not as the host.
    pub(super) user: Option<CommandUser>,
    /// The directory of the cgroup of version 2 that it is to be born in, if there is one.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
    /// The capabilities that it is to have beside those that every set-up needs.
    pub(super) capabilities: u32,
}

/// A first process that was born.
pub(super) struct Born {
    /// The process.
    pub(super) child: Child,
    /// Whether it is in the cgroup that it was to be born in. Some kernels do not do that.
    pub(super) is_in_cgroup: bool,
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// To prepare it.
    Prepare,
    /// To become the user of commands.
    ChangeUser,
    /// To make the namespaces with the first process in them.
    Namespaces,
    /// To enter the namespaces of a machine.
    Join,
    /// To keep its capabilities.
    Capabilities,
    /// To execute its program.
    Execute,
}

const NAMESPACES: c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// A child that shares this process's memory, while the thread that makes it waits until it has
/// executed its program or is gone; held by a pidfd.
pub(super) const BORROWS_MEMORY: c_int =
    libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;

// The capabilities that set-up needs, by their numbers.
const SETPCAP: u32 = 8;
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;
const NEEDED: u32 = 1 << SETPCAP | 1 << NET_ADMIN | 1 << SYS_ADMIN | 1 << SYS_RESOURCE;
/// What it takes to make any change to any file: CHOWN, DAC_OVERRIDE, FOWNER, FSETID and SETFCAP.
/// An overlay changes its layers by the rights of the process that mounts it.
pub(super) const OVER_FILES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 31;

const PR_CAP_AMBIENT: c_int = 47;
const PR_CAP_AMBIENT_RAISE: c_long = 2;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// What the child works with, in this process's memory.
pub(super) struct Shared {
    program: c_int,
    /// The same by name, for where a descriptor cannot be executed.
    program_path: CString,
    arguments: *const *mut libc::c_char,
    environment: *const *mut libc::c_char,
    socket: c_int,
    null: c_int,
    /// The capabilities that it keeps, a bit each.
    capabilities: u32,
    /// Written by the child.
    pub(super) failed: Option<(Stage, c_int)>,
}

/// Starts it. Blocks until it executes its program, well below a millisecond. Then it waits for
/// what the socket says.
///
/// # Errors
/// What failed, and why. Nothing of it is left then.
pub(super) fn start(birth: &Birth<'_>) -> Result<Born, (Stage, io::Error)> {
    let prepare = |error| (Stage::Prepare, error);
    let high = |fd| spawn::above_targets(fd).map_err(prepare);
    let (program, socket, null): (HighFd<'_>, HighFd<'_>, HighFd<'_>) =
        (high(birth.program)?, high(birth.socket)?, high(birth.null)?);
    let program_path = CString::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .map_err(|_| prepare(spawn::embedded_nul()))?;
    let mut shared = Shared {
        program: program.as_raw_fd(),
        program_path,
        arguments: birth.arguments.as_ptr(),
        environment: birth.environment.as_ptr(),
        socket: socket.as_raw_fd(),
        null: null.as_raw_fd(),
        capabilities: NEEDED | birth.capabilities,
        failed: None,
    };
    let entered = birth.user.map(|user| user.enter(Purpose::Exec)).transpose();
    let entered = entered.map_err(|error| (Stage::ChangeUser, error))?;
    // A handler of the host's must not run in the child, on this process's memory.
    let blocked = BlockedSignals::new();
    let mut bear = |cgroup| match birth.machine {
        None => found(&mut shared, birth.is_in_hosts_network, cgroup)
            .map_err(|error| (Stage::Namespaces, error)),
        Some(machine) => {
            let network = match (birth.beside, birth.is_in_hosts_network) {
                (false, _) => join::Network::Of,
                (true, true) => join::Network::Hosts,
                (true, false) => join::Network::New,
            };
            join::join(&mut shared, machine, network, cgroup)
        }
    };
    let in_cgroup = birth.cgroup.and_then(|cgroup| {
        // Cgroups are root's. What is executed has the user's file rights again.
        let as_root = birth.user.map(FileRights::of_root);
        let born = bear(Some(cgroup));
        drop(as_root);
        born.inspect_err(|(_, error)| log::debug!("nothing can be born in a cgroup: {error}")).ok()
    });
    let is_in_cgroup = in_cgroup.is_some();
    let born = match in_cgroup {
        Some(born) => Ok(born),
        None => bear(None),
    };
    drop(blocked);
    drop(entered);
    let (pid, pidfd) = born?;
    if let Some((stage, errno)) = shared.failed {
        // It has ended, or is about to.
        await_end(&pidfd);
        return Err((stage, io::Error::from_raw_os_error(errno)));
    }
    let pid = Pid::from_raw(pid).ok_or_else(|| prepare(io::ErrorKind::Other.into()))?;
    Ok(Born { child: Child::held(pid, pidfd), is_in_cgroup })
}

/// This thread, which has entered a user, does with files what root may, until this is dropped.
struct FileRights(CommandUser);

impl FileRights {
    fn of_root(user: CommandUser) -> Self {
        set_file_user(0);
        Self(user)
    }
}

impl Drop for FileRights {
    fn drop(&mut self) {
        set_file_user(self.0.uid().as_raw());
    }
}

/// Where it is refused, what it is for fails.
fn set_file_user(uid: u32) {
    // SAFETY: changes a number of this thread's credentials; it tells which it was.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
}

/// Clones it into new namespaces.
fn found(
    shared: &mut Shared,
    host_network: bool,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(c_int, OwnedFd)> {
    let mut stack = Stack::new();
    let network = if host_network { 0 } else { libc::CLONE_NEWNET };
    let mut pidfd: c_int = -1;
    // SAFETY: the child runs `become_first_process` on a stack of its own, while this thread waits;
    // `shared`, the stack and what they point to outlive that. It makes system calls only, and
    // never returns. `pidfd` is a valid place.
    let pid = unsafe {
        let flags = NAMESPACES | network | BORROWS_MEMORY;
        let argument = std::ptr::from_mut(shared).cast();
        clone(become_first_process, &mut stack, flags, argument, &mut pidfd, cgroup)?
    };
    // SAFETY: the kernel has made this descriptor for us.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Waits for the end of a child that ends, and reaps it.
pub(super) fn await_end(pidfd: &OwnedFd) {
    use std::os::fd::AsFd;
    let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// The child's life until its program.
pub(super) extern "C" fn become_first_process(shared: *mut c_void) -> c_int {
    // SAFETY: lives in the parent's thread, which waits. What follows are system calls on numbers
    // and on that memory.
    unsafe {
        let shared = &mut *shared.cast::<Shared>();
        if let Err(errno) = keep_capabilities(shared.capabilities) {
            shared.failed = Some((Stage::Capabilities, errno));
            libc::_exit(1);
        }
        for target in 0..3 {
            libc::dup2(shared.null, target);
        }
        libc::dup2(shared.socket, SOCKET_FD);
        let nothing: &CStr = c"";
        libc::syscall(
            libc::SYS_execveat,
            shared.program,
            nothing.as_ptr(),
            shared.arguments,
            shared.environment,
            libc::AT_EMPTY_PATH,
        );
        let errno = *libc::__errno_location();
        if matches!(errno, libc::ENOENT | libc::ENOSYS) {
            libc::execve(
                shared.program_path.as_ptr(),
                shared.arguments.cast(),
                shared.environment.cast(),
            );
        }
        shared.failed = Some((Stage::Execute, errno));
        libc::_exit(1)
    }
}

/// Makes the needed capabilities ambient.
///
/// # Errors
/// The number of the error.
fn keep_capabilities(needed: u32) -> Result<(), c_int> {
    let header = [CAPABILITY_VERSION_3, 0];
    // Effective, permitted, inheritable: the lower halves, then the upper ones.
    let sets = [needed, needed, needed, 0, 0, 0];
    // SAFETY: the kernel reads these two arrays of the sizes that the version has; the others are
    // numbers.
    unsafe {
        if libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) != 0 {
            return Err(*libc::__errno_location());
        }
        for capability in (0..u32::BITS).filter(|bit| needed & 1 << bit != 0) {
            let (capability, none) = (c_long::from(capability), 0 as c_long);
            let raise = PR_CAP_AMBIENT_RAISE;
            if libc::prctl(PR_CAP_AMBIENT, raise, capability, none, none) != 0 {
                return Err(*libc::__errno_location());
            }
        }
    }
    Ok(())
}

/// All signals of this thread are blocked until it is dropped.
pub(super) struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    pub(super) fn new() -> Self {
        // SAFETY: initialises two signal sets, and changes the mask of this thread.
        unsafe {
            let mut all = std::mem::zeroed();
            let mut before = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            Self(before)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: gives this thread the mask back that it had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sandbox::init::{self, InitSocket};
    use crate::sandbox::isolation::open_null;

    /// A cgroup of version 2, if this process can make one. Removed on drop.
    struct Cgroup(PathBuf);

    impl Cgroup {
        fn new() -> Option<Self> {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
            let own = fs::read_to_string("/proc/self/cgroup").unwrap();
            let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
            let above = Path::new(mount.split(' ').nth(4)?).join(own);
            let path = above.join(format!("birth-{}", std::process::id()));
            fs::create_dir(&path).ok().map(|()| Self(path))
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    /// A first process that was to be born in the cgroup at `path`: whether it was, its file of
    /// `/proc/<pid>/cgroup` and its users.
    fn born_in(path: &Path, user: Option<CommandUser>) -> (bool, String, Vec<String>) {
        let (program, null) = (init::program().unwrap(), open_null().unwrap());
        let strings = |all: &[&str]| CStringArray::new(all.iter().map(Into::into)).unwrap();
        let (arguments, environment) = (strings(&["tool-init", "/bin/sh", "0"]), strings(&[]));
        let (ours, its) = InitSocket::pair().unwrap();
        let cgroup = fs::File::open(path).unwrap();
        let birth = Birth {
            program: program.as_fd(),
            arguments: &arguments,
            environment: &environment,
            socket: its.as_fd(),
            null: null.as_fd(),
            machine: None,
            beside: false,
            is_in_hosts_network: false,
            user,
            cgroup: Some(cgroup.as_fd()),
            capabilities: 0,
        };
        let Born { child, is_in_cgroup } = start(&birth).unwrap_or_else(|(stage, error)| {
            panic!("{stage:?}: {error}");
        });
        let about = |file: &str| {
            let pid = child.pid().as_raw_nonzero();
            fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
        };
        let cgroup = about("cgroup");
        let users = || -> Vec<String> {
            let status = about("status");
            let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
            users.split_whitespace().map(str::to_owned).collect()
        };
        // An exec lets go of its parent before it has changed what is root's still.
        let deadline = Instant::now() + Duration::from_secs(30);
        while users().iter().any(|user| *user != users()[0]) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let users = users();
        drop((ours, its));
        let _ = rustix::process::waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED);
        (is_in_cgroup, cgroup, users)
    }

    #[test]
    fn a_first_process_is_born_in_its_cgroup_and_has_no_rights_of_root() {
        let user = CommandUser::find().unwrap_or_default();
        let uid = user.map_or(rustix::process::geteuid(), |user| user.uid());
        let users = vec![uid.as_raw().to_string(); 4];
        let Some(cgroup) = Cgroup::new() else {
            // The harness shows it with --nocapture.
            return log::warn!("could not run: there is no cgroup of version 2");
        };
        let (is_there, seen, of) = born_in(&cgroup.0, user);
        let name = cgroup.0.file_name().unwrap().to_str().unwrap();
        assert!(is_there && seen.lines().any(|line| line.ends_with(name)), "{seen}");
        assert_eq!(of, users);
        // This thread is who it was, and can go on.
        assert!(fs::create_dir(cgroup.0.join("below")).is_ok());
        fs::remove_dir(cgroup.0.join("below")).unwrap();
    }

    #[test]
    fn where_nothing_can_be_born_in_a_cgroup_it_is_born_all_the_same() {
        let user = CommandUser::find().unwrap_or_default();
        let directory = tempfile::tempdir().unwrap();
        let (is_there, seen, _) = born_in(directory.path(), user);
        assert!(!is_there && !seen.is_empty());
    }
}
