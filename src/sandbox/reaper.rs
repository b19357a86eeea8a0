//! Running a command without a sandbox, so that it can still be killed with every process it
//! started.
//!
//! Without a pid namespace a process escapes a kill of its group by `setsid` and a walk of the
//! process tree by a double fork. So a tiny intermediary process, the *reaper*, stands between the
//! host and the shell. It is a child subreaper: every orphan among the shell's descendants becomes
//! its child. When the shell ends, when it is told to, or when the host dies, it kills its
//! children until it has none, and only then reports that and exits. Where the time is up it asks
//! the shell's process group and its own children by SIGTERM first.
//!
//! # Cost
//! The reaper is a fork of the host: some 0.2 ms for a small process, tens of milliseconds for one
//! with gigabytes of heap, since the page tables are copied. This path is the fallback for
//! machines without sandboxes.
//!
//! # Limits
//! A command has the rights of the user that runs the host, or of an unprivileged one if that is
//! root (see [`user`](super::user)). It can kill the reaper (and a host that is not root's);
//! then the shell dies too, but what it left behind lives on, and the call ends as
//! [`End::Lost`](super::supervisor::End::Lost). A process that forks faster than the reaper kills
//! is not caught.

use std::ffi::{CStr, CString, c_int, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::Pid;

use super::shell::SCRIPT_FD;
use super::spawn::{self, CStringArray, Child};
use super::user::CommandUser;

/// The reaper's end of the control pipe. End of file means: kill everything; [`ASK_FIRST`]: ask it
/// to end, and kill what does not.
const CONTROL_FD: c_int = 3;
const ASK_FIRST: u8 = b't';
/// How long processes that were asked to end may take, in milliseconds: as in a sandbox.
const PATIENCE: i64 = 500;
/// The reaper's end of the report pipe.
const REPORT_FD: c_int = 4;

/// What the shell is started with.
pub(super) struct Command<'a> {
    /// Absolute path of the shell.
    pub(super) program: &'a CStr,
    /// Its arguments.
    pub(super) arguments: &'a CStringArray,
    /// Its environment.
    pub(super) environment: &'a CStringArray,
    /// Its working directory.
    pub(super) directory: &'a Path,
    /// Its standard input, output and error.
    pub(super) stdio: [BorrowedFd<'a>; 3],
    /// What it gets as [`SCRIPT_FD`].
    pub(super) script: Option<BorrowedFd<'a>>,
    /// Its soft limit of open files.
    pub(super) open_files: Option<u64>,
    /// Whom it and its reaper run as, if not as the host.
    pub(super) user: Option<CommandUser>,
}

/// A running reaper.
pub(super) struct Reaper {
    /// The reaper process itself.
    pub(super) child: Child,
    /// Where it reports to, see [`Report`]. Blocking.
    pub(super) report: OwnedFd,
    /// Closing it makes the reaper kill everything.
    pub(super) control: OwnedFd,
}

/// Has a reaper ask everything to end, by SIGTERM, and kill what is left after half a second.
///
/// # Errors
/// It is gone.
pub(super) fn terminate(control: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::write(control, &[ASK_FIRST])?;
    Ok(())
}

/// What a reaper has reported so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// The shell could not be started: the step that failed, and its `errno`.
    pub(super) failed: Option<(Step, i32)>,
    /// The shell ended, with this wait status.
    pub(super) ended: Option<i32>,
    /// No process is left.
    pub(super) all_dead: bool,
}

/// A step of starting the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Changing the user.
    ChangeUser,
    /// Making its process.
    Fork,
    /// Entering the workspace.
    ChangeDirectory,
    /// Executing it.
    Execute,
}

/// Messages are of this size, so that each is written and read in one piece: a kind, three zeros
/// and a number.
const MESSAGE_SIZE: usize = 8;

impl Report {
    /// Reads the messages in `bytes`. An unfinished last one is ignored.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut report = Self::default();
        for message in bytes.chunks_exact(MESSAGE_SIZE) {
            let number = i32::from_ne_bytes([message[4], message[5], message[6], message[7]]);
            match message[0] {
                b'u' => report.failed = Some((Step::ChangeUser, number)),
                b'f' => report.failed = Some((Step::Fork, number)),
                b'c' => report.failed = Some((Step::ChangeDirectory, number)),
                b'x' => report.failed = Some((Step::Execute, number)),
                b'e' => report.ended = Some(number),
                b'd' => report.all_dead = true,
                _ => {}
            }
        }
        report
    }
}

/// Starts a command under a reaper. Blocks for the fork (see the module's text on its cost).
///
/// # Errors
/// Of `fork`, `pipe` and `pidfd_open`. A shell that cannot be started is reported by the reaper.
pub(super) fn start(command: &Command<'_>) -> io::Result<Reaper> {
    let (control_reader, control) = spawn::pipe()?;
    let (report, report_writer) = spawn::pipe()?;
    let directory = CString::new(command.directory.as_os_str().as_bytes())
        .map_err(|_| spawn::embedded_nul())?;
    let [stdin, stdout, stderr] = command.stdio;
    let files = [
        Some(stdin),
        Some(stdout),
        Some(stderr),
        Some(control_reader.as_fd()),
        Some(report_writer.as_fd()),
        command.script,
    ];
    let files = files.map(|fd| fd.map(spawn::above_targets).transpose());
    let mut sources = [-1; 6];
    let mut keep_open = Vec::with_capacity(files.len());
    for (source, fd) in sources.iter_mut().zip(files) {
        if let Some(fd) = fd? {
            *source = fd.as_raw_fd();
            keep_open.push(fd);
        }
    }
    let plan = Plan {
        program: command.program,
        arguments: command.arguments,
        environment: command.environment,
        directory: &directory,
        sources,
        open_files: command.open_files,
        user: command.user,
    };
    // SAFETY: the child only runs `run_reaper`, which makes nothing but system calls and never
    // returns.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => run_reaper(&plan),
        pid => Pid::from_raw(pid).ok_or(io::ErrorKind::Other)?,
    };
    // The reaper waits for a byte: until it is held by a pidfd it cannot end. Where this fails the
    // control pipe is closed, and it ends without having started anything.
    let child = Child::open(pid)?;
    rustix::io::write(&control, b"g")?;
    Ok(Reaper { child, report, control })
}

/// Everything the reaper needs, made before the fork: after it nothing may allocate.
struct Plan<'a> {
    program: &'a CStr,
    arguments: &'a CStringArray,
    environment: &'a CStringArray,
    directory: &'a CStr,
    /// What becomes file descriptor 0, 1, …; -1 for none.
    sources: [c_int; 6],
    open_files: Option<u64>,
    user: Option<CommandUser>,
}

/// The reaper's life. Runs in a forked child of a process with many threads, whose locks may be
/// held for ever: system calls only, no allocation, no panic.
fn run_reaper(plan: &Plan<'_>) -> ! {
    // SAFETY: plain system calls on numbers and on memory that lives as long as this process;
    // `plan` and what it refers to are this process's own copy.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
        libc::setsid();
        for (target, source) in (0..).zip(plan.sources) {
            if source >= 0 {
                libc::dup2(source, target);
            } else {
                libc::close(target);
            }
        }
        close_from(SCRIPT_FD + 1);
        for fd in [CONTROL_FD, REPORT_FD] {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        // The host may ignore it, and then children would vanish with their status.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::prctl(libc::PR_SET_NAME, c"tool-reaper".as_ptr());
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1 as c_ulong);
        // Before what the kernel forgets when the user changes.
        if let Some(user) = plan.user
            && let Err(errno) = user.become_in_child()
        {
            report(b'u', errno.raw_os_error());
            libc::_exit(1);
        }
        // The control pipe tells that the host died, unless another child of the host holds a copy.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as c_ulong);

        let mut watched: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut watched);
        libc::sigaddset(&mut watched, libc::SIGCHLD);
        libc::sigaddset(&mut watched, libc::SIGTERM);
        let signals = libc::signalfd(-1, &watched, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);

        let mut go = 0u8;
        if signals < 0 || libc::read(CONTROL_FD, (&raw mut go).cast(), 1) != 1 {
            libc::_exit(1);
        }
        let shell = raw_fork();
        if shell == 0 {
            run_shell(plan);
        }
        if shell < 0 {
            report(b'f', errno());
            libc::_exit(1);
        }
        // The shell's alone from here on: a reader of its output sees the end of it.
        libc::close(1);
        libc::close(2);
        if plan.sources[SCRIPT_FD as usize] >= 0 {
            libc::close(SCRIPT_FD);
        }
        let mut shell_status = None;
        let mut order = Order::None;
        while shell_status.is_none() && order == Order::None {
            order = next_order(signals, -1);
            if order == Order::None {
                shell_status = reap_children(shell).shell_status;
            }
        }
        if let Some(status) = shell_status {
            report(b'e', status);
        }
        if order == Order::AskFirst {
            ask_all_children(shell, signals);
        }
        kill_all_children(shell);
        report(b'd', 0);
        libc::_exit(0)
    }
}

/// Turns this child of the reaper into the shell.
fn run_shell(plan: &Plan<'_>) -> ! {
    // SAFETY: as in `run_reaper`.
    unsafe {
        libc::setsid();
        // The one thing that still works when somebody kills the reaper.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong);
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        if let Some(soft) = plan.open_files {
            let mut limit: libc::rlimit = std::mem::zeroed();
            if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
                limit.rlim_cur = soft as libc::rlim_t;
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
            }
        }
        if libc::chdir(plan.directory.as_ptr()) != 0 {
            report(b'c', errno());
            libc::_exit(126);
        }
        libc::execve(
            plan.program.as_ptr(),
            plan.arguments.as_ptr().cast(),
            plan.environment.as_ptr().cast(),
        );
        report(b'x', errno());
        libc::_exit(127)
    }
}

/// What a reaper may be told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Nothing just now: a child has ended, or the time to wait is over.
    None,
    /// To ask everything to end, and kill what does not.
    AskFirst,
    /// To kill everything.
    Kill,
}

/// Waits for something to happen, for so many milliseconds at most, if that is not negative.
fn next_order(signals: c_int, most: c_int) -> Order {
    let poll_in = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut fds = [poll_in(CONTROL_FD), poll_in(signals)];
    // SAFETY: a valid array of two; `info` and `byte` are valid places of their own size for what
    // is read.
    unsafe {
        libc::poll(fds.as_mut_ptr(), 2, most);
        let mut info: libc::signalfd_siginfo = std::mem::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        while libc::read(signals, (&raw mut info).cast(), size) == size as isize {
            // The host's death, if it comes from the kernel or from the parent itself; any process
            // of this user may send it, which does no more harm than SIGKILL would.
            if info.ssi_signo == libc::SIGTERM as u32 {
                return Order::Kill;
            }
        }
        if fds[0].revents & libc::POLLIN != 0 {
            let mut byte = 0u8;
            let count = libc::read(CONTROL_FD, (&raw mut byte).cast(), 1);
            return if count == 1 && byte == ASK_FIRST { Order::AskFirst } else { Order::Kill };
        }
    }
    // A watch that fails must not become a busy loop.
    match fds[0].revents != 0 || fds[1].revents & !libc::POLLIN != 0 {
        true => Order::Kill,
        false => Order::None,
    }
}

/// What became of the children that have ended.
struct Ended {
    /// The shell's wait status, if it was among them.
    shell_status: Option<c_int>,
    /// Whether no child is left.
    is_all: bool,
}

/// Removes the zombies.
fn reap_children(shell: c_int) -> Ended {
    let mut shell_status = None;
    loop {
        let mut status = 0;
        // SAFETY: a valid place for the status.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid <= 0 {
            let is_all = pid < 0 && errno() == libc::ECHILD;
            return Ended { shell_status, is_all };
        }
        if pid == shell {
            shell_status = Some(status);
        }
    }
}

/// Asks the shell's group and all children to end, and waits until they have, or the time is up, or
/// the order to kill comes.
fn ask_all_children(shell: c_int, signals: c_int) {
    for signal in [libc::SIGTERM, libc::SIGCONT] {
        // SAFETY: signals the group of a child that was not reaped, and so has its number.
        unsafe { libc::kill(-shell, signal) };
        signal_children(signal);
    }
    let due = now_in_milliseconds() + PATIENCE;
    while !reap_children(shell).is_all {
        let left = due - now_in_milliseconds();
        if left <= 0 || next_order(signals, left as c_int) == Order::Kill {
            return;
        }
    }
}

fn now_in_milliseconds() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// Kills and reaps until no child is left; the orphans of each round are the children of the next.
fn kill_all_children(shell: c_int) {
    loop {
        let killed = signal_children(libc::SIGKILL);
        let mut status = 0;
        // SAFETY: a valid place for the status. The group is the shell's own as long as a process
        // of it lives. On a kernel that does not list children (one built without it) this is the
        // second best: it catches neither `setsid` nor, in theory, the reuse of a dead group's
        // number.
        let reaped = unsafe {
            if !killed {
                libc::kill(-shell, libc::SIGKILL);
            }
            libc::waitpid(-1, &mut status, 0)
        };
        if reaped < 0 && errno() == libc::ECHILD {
            return;
        }
    }
}

/// A signal to every child there is now. `false` where the kernel does not list children.
fn signal_children(signal: c_int) -> bool {
    // SAFETY: opens and reads into a buffer of the given size, and signals children of this
    // process, whose numbers cannot be reused before it reaps them.
    unsafe {
        let list =
            libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if list < 0 {
            return false;
        }
        let mut buffer = [0u8; 4096];
        let mut pid: c_int = 0;
        loop {
            let count = libc::read(list, buffer.as_mut_ptr().cast(), buffer.len());
            if count <= 0 {
                break;
            }
            for byte in buffer.iter().take(count as usize) {
                if byte.is_ascii_digit() {
                    pid = pid.wrapping_mul(10).wrapping_add(c_int::from(byte - b'0'));
                } else if pid > 0 {
                    libc::kill(pid, signal);
                    pid = 0;
                }
            }
        }
        libc::close(list);
        true
    }
}

/// Sends one message to the host.
fn report(kind: u8, number: c_int) {
    let [a, b, c, d] = number.to_ne_bytes();
    let message = [kind, 0, 0, 0, a, b, c, d];
    // SAFETY: a valid buffer of this size. A host that is gone is no matter, SIGPIPE is blocked or
    // about to end this process.
    unsafe { libc::write(REPORT_FD, message.as_ptr().cast(), message.len()) };
}

/// A fork without the C library's own handlers, which may wait for locks that nobody will release.
fn raw_fork() -> c_int {
    let flags = libc::SIGCHLD as c_ulong;
    #[cfg(not(target_arch = "s390x"))]
    let (first, second) = (flags, 0 as c_ulong);
    #[cfg(target_arch = "s390x")]
    let (first, second) = (0 as c_ulong, flags);
    let none = 0 as c_ulong;
    // SAFETY: with no flags but the signal this is fork: the child has a copy of the stack.
    unsafe { libc::syscall(libc::SYS_clone, first, second, none, none, none) as c_int }
}

/// Closes every file descriptor from `first` on.
fn close_from(first: c_int) {
    // SAFETY: closes numbers; nothing in this process uses them any more.
    unsafe {
        let last = c_ulong::from(u32::MAX);
        if libc::syscall(libc::SYS_close_range, first as c_ulong, last, 0 as c_ulong) != 0 {
            // Linux before 5.9.
            for fd in first..65_536 {
                libc::close(fd);
            }
        }
    }
}

fn errno() -> c_int {
    // SAFETY: the address of this thread's own errno.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_whole() {
        let bytes = |kind: u8, number: i32| [&[kind, 0, 0, 0], &number.to_ne_bytes()[..]].concat();
        let ended = bytes(b'e', 256);
        assert_eq!(Report::parse(&ended[..7]), Report::default());
        let both = [ended, bytes(b'd', 0)].concat();
        assert_eq!(Report::parse(&both), Report { failed: None, ended: Some(256), all_dead: true });
        let failed = Report::parse(&bytes(b'c', libc::ENOENT)).failed;
        assert_eq!(failed, Some((Step::ChangeDirectory, libc::ENOENT)));
    }
}
