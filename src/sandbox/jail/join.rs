//! The birth of a first process into the namespaces of a machine.
//!
//! A process cannot be born into namespaces that exist, but for those of its parent; and a thread
//! of this process, which has others, can enter none. So there is a process between the two for a
//! moment, the *usher*: it enters the machine's namespaces and clones the first process there, as
//! its sibling: a child of this process's thread, with whose death it dies. Both borrow this
//! process's memory, each with a stack of its own; the usher also its table of descriptors, so that
//! the pidfd of the first process is made here.
//!
//! Whatever happens to one of the three, nothing is left: the first process does nothing before it
//! is told to by its socket, and ends where that is closed.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use super::super::spawn;
use super::clone::{Stack, clone};
use super::machine::{MOST_NAMESPACES, Machine};
use super::start::{BORROWS_MEMORY, Shared, Stage, await_end, become_first_process};

/// What is not the machine's: its processes, and its view of the mounts, among which is that of its
/// processes.
const OWN: c_int = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_PARENT;

/// What network a first process is born into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// That of the machine.
    Of,
    /// One of its own.
    New,
    /// The host's.
    Hosts,
}

/// What the usher works with, in this process's memory.
struct Usher {
    namespaces: [(c_int, c_int); MOST_NAMESPACES],
    count: usize,
    /// What the first process gets for itself.
    own: c_int,
    stack: *mut c_void,
    shared: *mut Shared,
    /// The first process, written by the usher, and its pidfd, written by the kernel before it
    /// runs.
    pid: c_int,
    pidfd: c_int,
    /// Written by the usher when there is none.
    failed: Option<(Stage, c_int)>,
}

/// Has it born, and the usher before it, in this cgroup if there is one. The caller has blocked all
/// signals.
///
/// # Errors
/// What failed, and why. Nothing of it is left then.
pub(super) fn join(
    shared: &mut Shared,
    machine: &Machine,
    network: Network,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(c_int, OwnedFd), (Stage, io::Error)> {
    let (mut stack, mut usher_stack) = (Stack::new(), Stack::new());
    let mut namespaces = [(-1, 0); MOST_NAMESPACES];
    let mut count = 0;
    let is_joined =
        |(_, kind): &(c_int, c_int)| network == Network::Of || *kind != libc::CLONE_NEWNET;
    for (place, namespace) in namespaces.iter_mut().zip(machine.namespaces().filter(is_joined)) {
        *place = namespace;
        count += 1;
    }
    let own = if network == Network::New { OWN | libc::CLONE_NEWNET } else { OWN };
    let stack = stack.top();
    let (pid, pidfd, failed) = (-1, -1, None);
    let mut usher = Usher { namespaces, count, own, stack, shared, pid, pidfd, failed };
    let mut usher_pidfd: c_int = -1;
    // SAFETY: the usher runs `bring_in` on a stack of its own, while this thread waits; `usher`,
    // the stacks and what they point to outlive that, and the first process's time in this memory:
    // see below. It makes system calls only, and never returns. `usher_pidfd` is a valid place.
    unsafe {
        let (flags, argument) = (libc::CLONE_FILES | BORROWS_MEMORY, (&raw mut usher).cast());
        clone(bring_in, &mut usher_stack, flags, argument, &mut usher_pidfd, cgroup)
    }
    .map_err(|error| (Stage::Join, error))?;
    // SAFETY: the kernel has made this descriptor for us.
    let usher_pidfd = unsafe { OwnedFd::from_raw_fd(usher_pidfd) };
    await_end(&usher_pidfd);
    if let Some((stage, errno)) = usher.failed {
        return Err((stage, io::Error::from_raw_os_error(errno)));
    }
    // SAFETY: as above, if there is one.
    let pidfd = (usher.pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(usher.pidfd) });
    match pidfd {
        Some(pidfd) if usher.pid > 0 => Ok((usher.pid, pidfd)),
        pidfd => {
            // The usher was killed, by whomever. What it has made borrows this memory still.
            if let Some(pidfd) = pidfd {
                spawn::kill(std::os::fd::AsFd::as_fd(&pidfd));
                await_end(&pidfd);
            }
            let text = "the process was killed that should enter its namespaces";
            Err((Stage::Join, io::Error::new(io::ErrorKind::Interrupted, text)))
        }
    }
}

/// The usher's life.
extern "C" fn bring_in(usher: *mut c_void) -> c_int {
    // SAFETY: lives in the parent's thread, which waits. What follows are system calls on numbers
    // and on that memory.
    unsafe {
        let usher = &mut *usher.cast::<Usher>();
        for (fd, kind) in &usher.namespaces[..usher.count] {
            if libc::setns(*fd, *kind) != 0 {
                usher.failed = Some((Stage::Join, *libc::__errno_location()));
                libc::_exit(1);
            }
        }
        let pid = libc::clone(
            become_first_process,
            usher.stack,
            usher.own | BORROWS_MEMORY,
            usher.shared.cast::<c_void>(),
            &raw mut usher.pidfd,
        );
        match pid {
            ..0 => usher.failed = Some((Stage::Namespaces, *libc::__errno_location())),
            _ => usher.pid = pid,
        }
        libc::_exit(0)
    }
}
