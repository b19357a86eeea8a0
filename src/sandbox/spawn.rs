//! A small safe wrapper over `posix_spawn`: a new process with exactly the arguments, environment
//! and file descriptors that are given, and a pidfd to hold it by.
//!
//! Used for what is tried at the start.
//! `std::process::Command` is not used because it has no file descriptor map, and because what it
//! lacks can only be added by its `pre_exec`, which makes it fork: a host with gigabytes of heap
//! would pay tens of milliseconds of page table copying for each command. `posix_spawn` shares the
//! memory until the exec.
//!
//! Knows nothing of shells, sandboxes or output.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_short};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::user::{CommandUser, Purpose};

/// No target of a file descriptor map is as high as this, so that no `dup2` of the map can
/// overwrite a source that a later one needs.
const FIRST_FREE_FD: c_int = 16;

/// A `NULL`-terminated array of C strings, as `execve` wants its arguments and environment.
pub(super) struct CStringArray {
    /// Points into `_strings`, whose heap buffers never move.
    pointers: Vec<*mut c_char>,
    _strings: Vec<CString>,
}

impl CStringArray {
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] where a string contains a NUL.
    pub(super) fn new(strings: impl IntoIterator<Item = OsString>) -> io::Result<Self> {
        let strings = strings
            .into_iter()
            .map(|string| CString::new(string.into_vec()).map_err(|_| embedded_nul()))
            .collect::<io::Result<Vec<_>>>()?;
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr().cast_mut())
            .chain([ptr::null_mut()])
            .collect();
        Ok(Self { pointers, _strings: strings })
    }

    /// The array, valid as long as `self` is.
    pub(super) fn as_ptr(&self) -> *const *mut c_char {
        self.pointers.as_ptr()
    }
}

/// The error for a string that cannot be passed to a process.
pub(super) fn embedded_nul() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "embedded null byte")
}

/// A process that this one started, held by its pidfd: signals and waits can never hit a stranger
/// that got the same number.
///
/// Dropping it neither kills nor reaps.
pub(super) struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

/// What [`Child::reap`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaped {
    /// It has not ended yet.
    Running,
    /// It ended with this exit code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// It ended, and somebody else took its status: the host ignores SIGCHLD, or waits for any
    /// child.
    Unknown,
}

impl Child {
    /// Takes hold of `pid`, a child that nobody has reaped yet.
    ///
    /// # Errors
    /// `ESRCH` where the host's own SIGCHLD handling was faster, `EMFILE`, ….
    pub(super) fn open(pid: Pid) -> io::Result<Self> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }

    /// A child that this pidfd holds already.
    pub(super) fn held(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// Waits until it has ended, for `time` at most, and reaps it; `false` if it still runs.
    pub(super) fn await_end(&self, time: Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let deadline = Instant::now() + time;
        while self.reap() == Reaped::Running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // An interrupted wait is taken up again.
            let _ = poll(&mut [PollFd::new(self, PollFlags::IN)], left.try_into().ok().as_ref());
        }
        true
    }

    /// Its process id.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// SIGKILL. A process that is gone already is no error.
    pub(super) fn kill(&self) {
        kill(self.pidfd.as_fd());
    }

    /// SIGCONT, in case somebody has stopped it. A process that is gone already is no error.
    pub(super) fn resume(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::CONT);
    }

    /// Its status if it has ended, which also removes the zombie. Does not block.
    pub(super) fn reap(&self) -> Reaped {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        loop {
            return match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(None) => Reaped::Running,
                Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Reaped::Exited(code),
                    (None, Some(signal)) => Reaped::Signaled(signal),
                    (None, None) => Reaped::Unknown,
                },
                Err(Errno::INTR) => continue,
                // ECHILD says "not yours to wait for" of a running child too, where SIGCHLD is
                // ignored: only the pidfd tells.
                Err(_) if !has_ended(self.pidfd.as_fd()) => Reaped::Running,
                Err(_) => Reaped::Unknown,
            };
        }
    }
}

impl AsFd for Child {
    /// The pidfd; readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// SIGKILL by pidfd. A process that is gone already is no error.
pub(super) fn kill(pidfd: BorrowedFd<'_>) {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => log::error!("cannot kill a command's process: {error}"),
    }
}

/// Whether the process of this pidfd has ended. For the first process of a pid namespace that
/// means that no process of the namespace is left.
pub(super) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&now)), Ok(1..))
}

/// A pipe `(read end, write end)`, both close-on-exec and blocking.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

/// `fd`, or a duplicate of it where its number could be a target of a file descriptor map.
pub(super) fn above_targets(fd: BorrowedFd<'_>) -> io::Result<HighFd<'_>> {
    if fd.as_raw_fd() >= FIRST_FREE_FD {
        return Ok(HighFd::Same(fd));
    }
    Ok(HighFd::Duplicate(rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE_FD)?))
}

/// A file descriptor whose number is no target of any map.
pub(super) enum HighFd<'a> {
    /// It was one already.
    Same(BorrowedFd<'a>),
    /// A close-on-exec duplicate.
    Duplicate(OwnedFd),
}

impl AsRawFd for HighFd<'_> {
    fn as_raw_fd(&self) -> c_int {
        match self {
            Self::Same(fd) => fd.as_raw_fd(),
            Self::Duplicate(fd) => fd.as_raw_fd(),
        }
    }
}

/// Starts `program` in a new session, with default signal dispositions and nothing blocked, and
/// with exactly `fds`: `fds[n]` becomes its file descriptor `n`, and it has no others, whatever
/// the host process forgot to mark close-on-exec. It runs as `user`, if there is one.
///
/// Blocks until the exec has succeeded or failed (well below a millisecond). The host's memory is
/// not copied.
///
/// # Errors
/// Those of `execve` (not found, argument list too long), of `fork` (no more processes) and of
/// `pidfd_open`, where the process was killed or has ended; of changing the user.
pub(super) fn spawn(
    program: &CStr,
    arguments: &CStringArray,
    environment: &CStringArray,
    fds: &[BorrowedFd<'_>],
    user: Option<CommandUser>,
) -> io::Result<Child> {
    if fds.len() > FIRST_FREE_FD as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sources = fds.iter().map(|fd| above_targets(*fd)).collect::<io::Result<Vec<_>>>()?;
    let mut actions = FileActions::new()?;
    for (target, source) in (0..).zip(&sources) {
        actions.dup2(source.as_raw_fd(), target)?;
    }
    actions.close_from(fds.len() as c_int)?;
    let attributes = Attributes::new()?;
    // A place for the pidfd: a process that cannot be held must be killed.
    let place = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;

    let entered = user.map(|user| user.enter(Purpose::Exec)).transpose()?;
    let mut pid = 0;
    // SAFETY: the program, both arrays, the actions and the attributes are initialised and outlive
    // the call, which keeps none of them; `pid` is a valid place for the result.
    let spawned = check(unsafe {
        libc::posix_spawn(
            &mut pid,
            program.as_ptr(),
            &actions.0,
            &attributes.0,
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    });
    drop(entered);
    spawned?;
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::Other)?;
    drop(place);
    Child::open(pid).inspect_err(|_| {
        // Only where another thread of the host was given the last place, or the host reaped it
        // already: nothing that cannot be held may run.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    })
}

/// `posix_spawn` functions return the error number instead of setting `errno`.
fn check(error: c_int) -> io::Result<()> {
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// An initialised `posix_spawn_file_actions_t`.
struct FileActions(libc::posix_spawn_file_actions_t);

/// `posix_spawn_file_actions_addclosefrom_np`, in glibc since 2.34.
type AddCloseFrom = unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, c_int) -> c_int;

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: a valid place; on success it is initialised.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above, which succeeded.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn dup2(&mut self, source: c_int, target: c_int) -> io::Result<()> {
        // SAFETY: `self.0` is initialised; the numbers are checked by the callee.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, source, target) })
    }

    /// Closes every file descriptor from `first` on.
    fn close_from(&mut self, first: c_int) -> io::Result<()> {
        static ADD_CLOSE_FROM: OnceLock<Option<AddCloseFrom>> = OnceLock::new();
        let add_close_from = ADD_CLOSE_FROM.get_or_init(|| {
            // SAFETY: looks up a name, which is NUL-terminated.
            let symbol = unsafe {
                libc::dlsym(
                    libc::RTLD_DEFAULT,
                    c"posix_spawn_file_actions_addclosefrom_np".as_ptr(),
                )
            };
            // SAFETY: where a C library has a function of this name it has this type; NULL is
            // `None`.
            unsafe { std::mem::transmute::<*mut libc::c_void, Option<AddCloseFrom>>(symbol) }
        });
        match add_close_from {
            // SAFETY: `self.0` is initialised.
            Some(add_close_from) => check(unsafe { add_close_from(&mut self.0, first) }),
            None => self.close_inheritable(first),
        }
    }

    /// The second best where the C library is too old (or musl): closes what is inheritable just
    /// now.
    fn close_inheritable(&mut self, first: c_int) -> io::Result<()> {
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // SAFETY: asks for the flags of a number; one that is not open gives -1.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
            if fd >= first && flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
                // SAFETY: `self.0` is initialised.
                check(unsafe { libc::posix_spawn_file_actions_addclose(&mut self.0, fd) })?;
            }
        }
        Ok(())
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised, and not used after this.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

/// An initialised `posix_spawnattr_t`: new session, all signals unblocked and at their defaults.
struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        const FLAGS: c_int = libc::POSIX_SPAWN_SETSID as c_int
            | libc::POSIX_SPAWN_SETSIGDEF as c_int
            | libc::POSIX_SPAWN_SETSIGMASK as c_int;
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: a valid place; on success it is initialised.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above, which succeeded.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let mut all = MaybeUninit::uninit();
        let mut none = MaybeUninit::uninit();
        // SAFETY: both are valid places that the first two calls initialise; SIGKILL and SIGSTOP,
        // whose disposition cannot be set, are valid signals. The attributes are initialised, and
        // the setters copy what they are given.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigdelset(all.as_mut_ptr(), libc::SIGKILL);
            libc::sigdelset(all.as_mut_ptr(), libc::SIGSTOP);
            check(libc::posix_spawnattr_setsigdefault(&mut attributes.0, all.as_ptr()))?;
            check(libc::posix_spawnattr_setsigmask(&mut attributes.0, none.as_ptr()))?;
            check(libc::posix_spawnattr_setflags(&mut attributes.0, FLAGS as c_short))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised, and not used after this.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

/// An anonymous file that holds `content`, for a child to read at its own offset 0.
pub(super) fn memory_file(name: &CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    write_at_start(file.as_fd(), content)?;
    Ok(file)
}

/// A file in memory whose content no one can change any more, to be read from its beginning.
pub(super) fn sealed_memory_file(name: &CStr, content: &[u8]) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(name, flags)?;
    write_at_start(file.as_fd(), content)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

/// Writes `content` to the beginning of `file`, without moving its offset.
pub(super) fn write_at_start(file: BorrowedFd<'_>, content: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < content.len() {
        written += rustix::io::pwrite(file, &content[written..], written as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(strings: &[&str]) -> CStringArray {
        CStringArray::new(strings.iter().map(OsString::from)).unwrap()
    }

    fn end_of(child: &Child) -> Reaped {
        loop {
            match child.reap() {
                Reaped::Running => std::thread::yield_now(),
                end => return end,
            }
        }
    }

    /// Runs a shell whose file descriptors 1 and 3 are one pipe; gives its end and what it printed.
    fn run_sh(script: &str) -> (Reaped, String) {
        let null = std::fs::File::open("/dev/null").unwrap();
        let (reader, writer) = pipe().unwrap();
        let fds = [null.as_fd(), writer.as_fd(), null.as_fd(), writer.as_fd()];
        let arguments = strings(&["sh", "-c", script]);
        let child = spawn(c"/bin/sh", &arguments, &strings(&["A=b"]), &fds, None).unwrap();
        drop(writer);
        let printed = io::read_to_string(std::fs::File::from(reader)).unwrap();
        let end = end_of(&child);
        // A second look finds nothing to reap, which is no error.
        assert_eq!(child.reap(), Reaped::Unknown);
        (end, printed)
    }

    #[test]
    fn a_child_is_started_with_what_is_given_and_its_end_is_seen() {
        assert_eq!(run_sh("echo $A $HOME; echo 3 >&3").1, "b\n3\n");
        assert_eq!(run_sh("exit 7").0, Reaped::Exited(7));
        assert_eq!(run_sh("kill -15 $$").0, Reaped::Signaled(15));
    }

    #[test]
    fn what_cannot_be_started_is_an_error_of_its_own_kind() {
        let error = |program: &CStr, arguments: &[&str]| {
            spawn(program, &strings(arguments), &strings(&[]), &[], None).err().unwrap()
        };
        assert_eq!(error(c"/nonexistent", &["x"]).kind(), io::ErrorKind::NotFound);
        let huge = "x".repeat(200_000);
        let too_long = error(c"/bin/true", &["true", &huge]);
        assert_eq!(too_long.kind(), io::ErrorKind::ArgumentListTooLong);
        assert!(CStringArray::new(["a\0b".into()]).is_err());
    }
}
