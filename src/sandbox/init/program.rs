//! The first process of a warm sandbox: a program of its own, without a standard library.
//!
//! `build.rs` compiles it to a static executable of a few kilobytes, which `mod.rs` carries and
//! which bubblewrap puts inside the sandbox. It runs one command at a time, as it is told by the
//! socket that it has inherited; when the command's main process ends it ends every other process
//! of the sandbox – by SIGTERM, and by SIGKILL after a moment –, waits until the last of them is
//! gone, looks for what else was left behind, and says so.
//!
//! It runs as the same user as the commands, which are its children and try to get at it:
//! - It is the init of its pid namespace: the kernel keeps signals from inside away from it.
//! - It is not dumpable: no process of its user may trace it or look into its memory or
//!   descriptors.
//! - Its socket is closed in commands, and it believes nothing but what comes from there.
//! - Its limits and its priority are protected by the sandbox's seccomp filter.
//! - It allocates nothing, and its files are opened before the first command.
//! - It ends when the engine's end of the socket is closed, and the sandbox with it.
//!
//! A command is started as by `vfork`: the child borrows this process's memory, and a stack of its
//! own, until it executes the shell. x86-64 only, by raw system calls.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::mem::MaybeUninit;
use core::ptr::{addr_of_mut, null};

mod message;

use message::*;

const EINTR: isize = -4;
const EAGAIN: isize = -11;

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGCHLD: usize = 17;
const CHILD_SET: u64 = 1 << (SIGCHLD - 1);

const SYS_READ: usize = 0;
const SYS_CLOSE: usize = 3;
const SYS_FSTAT: usize = 5;
const SYS_POLL: usize = 7;
const SYS_LSEEK: usize = 8;
const SYS_RT_SIGPROCMASK: usize = 14;
const SYS_SHMCTL: usize = 31;
const SYS_DUP2: usize = 33;
const SYS_NANOSLEEP: usize = 35;
const SYS_SENDMSG: usize = 46;
const SYS_RECVMSG: usize = 47;
const SYS_EXECVE: usize = 59;
const SYS_EXIT: usize = 60;
const SYS_WAIT4: usize = 61;
const SYS_KILL: usize = 62;
const SYS_SEMCTL: usize = 66;
const SYS_MSGCTL: usize = 71;
const SYS_SETSID: usize = 112;
const SYS_PRCTL: usize = 157;
const SYS_SETRLIMIT: usize = 160;
const SYS_GETRLIMIT: usize = 97;
const SYS_GETDENTS64: usize = 217;
const SYS_CLOCK_GETTIME: usize = 228;
const SYS_EXIT_GROUP: usize = 231;
const SYS_OPENAT: usize = 257;
const SYS_SIGNALFD4: usize = 289;
const SYS_CLOSE_RANGE: usize = 436;

/// Makes a system call with up to five arguments.
unsafe fn call(number: usize, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the kernel's convention; whether the call itself is sound is for the caller to know.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        let mut arguments = [0usize; 5];
        let given: &[usize] = &[$($argument as usize),*];
        arguments[..given.len()].copy_from_slice(given);
        // SAFETY: every pointer that this program passes is to memory of its own that lives as long
        // as the call, and as long as the kernel is told.
        unsafe { call($number, arguments) }
    }};
}

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

// `clone` for a child that shares this memory: it gets the stack that is given, calls the function
// with its argument there, and must not return.
//   spawn(flags: rdi, stack: rsi, function: rdx, argument: rcx) -> pid
global_asm!(
    ".globl spawn_child",
    "spawn_child:",
    "mov r8, rdx",
    "mov r9, rcx",
    "xor edx, edx",
    "xor r10d, r10d",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "xor ebp, ebp",
    "mov rdi, r9",
    "call r8",
    "ud2",
    "2: ret",
);

unsafe extern "C" {
    fn spawn_child(
        flags: usize,
        stack: *mut u8,
        function: unsafe extern "C" fn(*mut Command) -> !,
        argument: *mut Command,
    ) -> isize;
}

const MOST_ARGUMENTS: usize = 16;
const NO_FD: i32 = -1;

/// What the child needs to become the shell. Its memory is shared until then.
#[repr(C)]
struct Command {
    shell: *const u8,
    arguments: [*const u8; MOST_ARGUMENTS + 1],
    environment: *const *const u8,
    stdio: [i32; 3],
    script: i32,
    /// Written by the child: why the shell could not be executed.
    errno: i32,
}

#[repr(C)]
struct IoVec {
    base: *mut u8,
    length: usize,
}

#[repr(C)]
struct MsgHdr {
    name: *mut u8,
    name_length: u32,
    iov: *mut IoVec,
    iov_length: usize,
    control: *mut u8,
    control_length: usize,
    flags: i32,
}

/// Room for a control message with four descriptors, aligned as one.
#[repr(C, align(8))]
struct Control {
    length: usize,
    level: i32,
    kind: i32,
    fds: [i32; 4],
}

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

const CHILD_STACK: usize = 16 * 1024;

#[repr(C, align(16))]
struct Stack([u8; CHILD_STACK]);

static mut MESSAGE: [u8; LONGEST] = [0; LONGEST];
static mut STACK: Stack = Stack([0; CHILD_STACK]);

/// The descriptors that are kept open, all close-on-exec.
struct Kept {
    /// `/dev/null`.
    null: i32,
    signals: i32,
    /// `/dev/shm` and `/dev/mqueue`.
    shared: [i32; 2],
    /// The directories of the sandbox's own root file system, and when each was changed last.
    own: [(i32, Time); 4],
}

/// Seconds and nanoseconds, as the kernel gives them.
type Time = [i64; 2];

const O_RDWR: usize = 2;
const O_DIRECTORY: usize = 0o200000;
const O_PATH: usize = 0o10000000;
const O_CLOEXEC: usize = 0o2000000;
const O_NONBLOCK: usize = 0o4000;
const AT_FDCWD: isize = -100;

fn open(path: &[u8], flags: usize) -> i32 {
    call!(SYS_OPENAT, AT_FDCWD, path.as_ptr(), flags | O_CLOEXEC) as i32
}

/// `stack` is as the kernel leaves it: the number of arguments, the arguments, NULL, the
/// environment. The arguments are `$0`, the shell and the soft limit of open files (0: leave it).
unsafe extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel has put these words there.
    let (count, arguments) = unsafe { (*stack, stack.add(1).cast::<*const u8>()) };
    if count != 3 {
        exit(2);
    }
    // SAFETY: as above; there are three arguments, a NULL and then the environment.
    let (shell, limit, environment) =
        unsafe { (*arguments.add(1), number(*arguments.add(2)), arguments.add(count + 1)) };

    // Before anything else runs here.
    call!(SYS_PRCTL, 4 /* PR_SET_DUMPABLE */, 0);
    call!(SYS_PRCTL, 15 /* PR_SET_NAME */, c"tool-init".as_ptr());
    call!(SYS_CLOSE_RANGE, 0, SOCKET_FD - 1, 0);
    call!(SYS_CLOSE_RANGE, SOCKET_FD + 1, u32::MAX, 0);
    let mask = CHILD_SET;
    call!(SYS_RT_SIGPROCMASK, 2 /* SIG_SETMASK */, &raw const mask, 0, 8);
    // The numbers that a shell's descriptors get are kept taken, so that none that is received is
    // one. The first is close-on-exec, which `dup2` to itself would not change: a shell gets the
    // second.
    let first = open(b"/dev/null\0", O_RDWR);
    for target in [1, 2, 3] {
        call!(SYS_DUP2, first, target);
    }
    let null = 1;
    let signals =
        call!(SYS_SIGNALFD4, -1isize, &raw const mask, 8, O_CLOEXEC | O_NONBLOCK) as i32;
    let shared = [b"/dev/shm\0".as_slice(), b"/dev/mqueue\0".as_slice()]
        .map(|path| open(path, O_DIRECTORY));
    if first != 0 || signals < 0 || shared[0] < 0 {
        exit(3);
    }
    if limit > 0 {
        let mut limits = [0usize; 2];
        call!(SYS_GETRLIMIT, 7 /* RLIMIT_NOFILE */, limits.as_mut_ptr());
        limits[0] = if limit < limits[1] { limit } else { limits[1] };
        call!(SYS_SETRLIMIT, 7, limits.as_ptr());
    }
    let own = [b"/\0".as_slice(), b"/run\0".as_slice(), b"/var\0".as_slice(), b"/etc\0".as_slice()]
        .map(|path| open(path, O_PATH | O_DIRECTORY))
        .map(|dir| (dir, changed(dir)));
    own.iter().for_each(|(_, since)| wait_until_after(since));
    let kept = Kept { null, signals, shared, own };
    say(READY, 0, 0, [0, 0]);
    loop {
        serve(&kept, shell, environment);
    }
}

/// Receives one order and carries it out.
fn serve(kept: &Kept, shell: *const u8, environment: *const *const u8) {
    let Some((length, fds)) = receive() else { exit(0) };
    // SAFETY: this process has one thread, and the child that shares its memory only reads the
    // message, while this one waits for it.
    let message = unsafe { &(&*addr_of_mut!(MESSAGE))[..length] };
    let close_all = || {
        for fd in fds {
            if fd != NO_FD {
                call!(SYS_CLOSE, fd);
            }
        }
    };
    // An order to kill that came too late.
    let Some(header) = Header::parse(message).filter(|header| header.kind == RUN) else {
        return close_all();
    };
    let [stdin, stdout, stderr, script] = match header.flag & STDIN {
        0 => [kept.null, fds[0], fds[1], fds[2]],
        _ => fds,
    };
    let mut command = Command {
        shell,
        arguments: [null(); MOST_ARGUMENTS + 1],
        environment,
        stdio: [stdin, stdout, stderr],
        script,
        errno: 0,
    };
    let strings = &message[HEADER..];
    let wanted = header.numbers[0] as usize;
    let whole = wanted > 0 && wanted <= MOST_ARGUMENTS && stderr != NO_FD;
    if !whole || !split(strings, &mut command.arguments[..wanted]) {
        close_all();
        return say(DONE, 0, header.run, [0, 22 /* EINVAL */]);
    }
    const FLAGS: usize = 0x100 /* CLONE_VM */ | 0x4000 /* CLONE_VFORK */ | SIGCHLD;
    // SAFETY: the stack is the child's alone while it lives in this memory: this process does not
    // go on before the child has executed the shell or is gone. The command outlives that.
    let main_process = unsafe {
        let stack = addr_of_mut!(STACK).cast::<u8>().add(CHILD_STACK - 16);
        spawn_child(FLAGS, stack, become_shell, &raw mut command)
    };
    close_all();
    if main_process < 0 {
        return say(DONE, 0, header.run, [0, -main_process as i32]);
    }
    let status = wait_for_end(kept, main_process as i32, header.run);
    if command.errno != 0 {
        return say(DONE, 0, header.run, [0, command.errno]);
    }
    let traces = if leaves_traces(kept) { TRACES } else { 0 };
    say(DONE, traces, header.run, [status, 0]);
}

/// The child's life until the shell.
unsafe extern "C" fn become_shell(command: *mut Command) -> ! {
    // SAFETY: lives in the parent, which waits.
    let command = unsafe { &mut *command };
    call!(SYS_SETSID);
    for (target, source) in command.stdio.iter().enumerate() {
        call!(SYS_DUP2, *source, target);
    }
    if command.script == NO_FD {
        call!(SYS_CLOSE_RANGE, 3, u32::MAX, 0);
    } else {
        call!(SYS_DUP2, command.script, 5);
        call!(SYS_CLOSE_RANGE, 3, 4, 0);
        call!(SYS_CLOSE_RANGE, 6, u32::MAX, 0);
    }
    let none = 0u64;
    call!(SYS_RT_SIGPROCMASK, 2, &raw const none, 0, 8);
    let failed =
        call!(SYS_EXECVE, command.shell, command.arguments.as_ptr(), command.environment);
    command.errno = -failed as i32;
    call!(SYS_EXIT, 127);
    exit(127)
}

/// How long processes may take to end after SIGTERM, in milliseconds: those of a run whose time is
/// up, and what a run leaves behind.
const PATIENCE: i64 = 500;
const PATIENCE_WITH_REST: i64 = 50;

/// Waits for the main process, and for every other one after ending them; gives the wait status.
fn wait_for_end(kept: &Kept, main_process: i32, run: u32) -> i32 {
    let mut status = None;
    // Once everything is to end: when it is killed, unless it was.
    let mut ending = false;
    let mut kill_at = None;
    let mut told = false;
    loop {
        // Orphans become children of this process: they are reaped as they end.
        let (last, ended) = reap(main_process);
        status = status.or(ended);
        if last {
            // Without a child there is no process left, since this one inherits them all.
            return status.unwrap_or(0);
        }
        if let (Some(status), false) = (status, told) {
            say(ENDED, 0, run, [status, 0]);
            told = true;
            if !ending {
                (ending, kill_at) = (true, Some(ask_all_to_end(PATIENCE_WITH_REST)));
            }
        }
        let left = kill_at.map_or(-1, |at| if at > now() { at - now() } else { 0 });
        if left == 0 {
            kill_all();
            kill_at = None;
            continue;
        }
        let poll = |fd| PollFd { fd, events: 1, revents: 0 };
        let mut fds = [poll(SOCKET_FD), poll(kept.signals)];
        call!(SYS_POLL, fds.as_mut_ptr(), 2, left);
        if fds[0].revents != 0 {
            let Some((length, received)) = receive() else { exit(0) };
            for fd in received {
                if fd != NO_FD {
                    call!(SYS_CLOSE, fd);
                }
            }
            // SAFETY: one thread, and no child shares this memory any more.
            let message = unsafe { &(&*addr_of_mut!(MESSAGE))[..length] };
            match Header::parse(message).filter(|header| header.kind == KILL && header.run == run) {
                Some(header) if header.flag & ASK_FIRST != 0 => {
                    if !ending {
                        (ending, kill_at) = (true, Some(ask_all_to_end(PATIENCE)));
                    }
                }
                Some(_) => {
                    kill_all();
                    (ending, kill_at) = (true, None);
                }
                None => {}
            }
        }
        if fds[1].revents != 0 {
            let mut info = MaybeUninit::<[u8; 1024]>::uninit();
            call!(SYS_READ, kept.signals, info.as_mut_ptr(), 1024);
        }
    }
}

/// Removes the zombies. Whether no child is left, and the main process's status if it was among
/// them.
fn reap(main_process: i32) -> (bool, Option<i32>) {
    let mut main_status = None;
    loop {
        match wait(1 /* WNOHANG */) {
            (0, _) => return (false, main_status),
            (EINTR, _) => {}
            (..0, _) => return (true, main_status),
            (pid, status) => {
                // A child that asks to be traced makes this process its tracer, which is told of
                // its stops.
                let stopped = status & 0xff == 0x7f;
                if pid == main_process as isize && !stopped {
                    main_status = Some(status);
                }
            }
        }
    }
}

/// SIGTERM to every process of the sandbox but this one, also to those that are stopped, and when
/// they are to be killed: after so many milliseconds.
fn ask_all_to_end(patience: i64) -> i64 {
    call!(SYS_KILL, -1isize, SIGTERM);
    call!(SYS_KILL, -1isize, SIGCONT);
    now() + patience
}

/// The time, in milliseconds.
fn now() -> i64 {
    let mut time: Time = [0, 0];
    call!(SYS_CLOCK_GETTIME, 1 /* CLOCK_MONOTONIC */, time.as_mut_ptr());
    time[0] * 1000 + time[1] / 1_000_000
}

fn wait(flags: usize) -> (isize, i32) {
    let mut status = 0i32;
    let pid = call!(SYS_WAIT4, -1isize, &raw mut status, flags);
    (pid, status)
}

/// SIGKILL to every process of the sandbox but this one, none of which can fork away from it.
fn kill_all() {
    call!(SYS_KILL, -1isize, SIGKILL);
}

/// Whether there is something that outlives processes: System V objects, shared memory, queues.
fn leaves_traces(kept: &Kept) -> bool {
    let mut info = [0i32; 32];
    call!(SYS_SHMCTL, 0, 14 /* SHM_INFO */, info.as_mut_ptr());
    let segments = info[0];
    info = [0; 32];
    call!(SYS_SEMCTL, 0, 0, 19 /* SEM_INFO */, info.as_mut_ptr());
    let sets = info[7];
    info = [0; 32];
    call!(SYS_MSGCTL, 0, 12 /* MSG_INFO */, info.as_mut_ptr());
    let queues = info[0];
    segments != 0
        || sets != 0
        || queues != 0
        || kept.shared.iter().any(|dir| !is_empty(*dir))
        || kept.own.iter().any(|(dir, since)| changed(*dir) != *since)
}

/// When a directory was changed last: its entries, its mode, its attributes. Nobody can set this
/// time. Always the same for one that could not be opened.
fn changed(dir: i32) -> Time {
    // `struct stat`, in which `st_ctim` is at byte 104.
    let mut status = [0i64; 18];
    if dir < 0 || call!(SYS_FSTAT, dir, status.as_mut_ptr()) != 0 {
        return [0, 0];
    }
    [status[13], status[14]]
}

/// The clock of the file systems moves on by some milliseconds at a time: a change before it does
/// so would not be seen.
fn wait_until_after(time: &Time) {
    loop {
        let mut now: Time = [0, 0];
        call!(SYS_CLOCK_GETTIME, 5 /* CLOCK_REALTIME_COARSE */, now.as_mut_ptr());
        if now > *time {
            return;
        }
        let millisecond: Time = [0, 1_000_000];
        call!(SYS_NANOSLEEP, millisecond.as_ptr(), 0);
    }
}

/// Whether a directory holds nothing. One that could not be opened does not count.
fn is_empty(dir: i32) -> bool {
    if dir < 0 {
        return true;
    }
    let mut entries = [0u8; 256];
    call!(SYS_LSEEK, dir, 0, 0);
    let length = call!(SYS_GETDENTS64, dir, entries.as_mut_ptr(), entries.len());
    if length < 0 {
        return false;
    }
    // Each: inode, offset, length (2 bytes at 16), type, name.
    let mut at = 0;
    while at + 19 < length as usize {
        let name = &entries[at + 19..];
        let dots = name[0] == b'.' && (name[1] == 0 || (name[1] == b'.' && name[2] == 0));
        if !dots {
            return false;
        }
        at += u16::from_ne_bytes([entries[at + 16], entries[at + 17]]) as usize;
    }
    true
}

/// The next message: its length, and its descriptors. `None` when the engine is gone.
fn receive() -> Option<(usize, [i32; 4])> {
    loop {
        let mut control = Control { length: 0, level: 0, kind: 0, fds: [NO_FD; 4] };
        let mut iov = IoVec { base: addr_of_mut!(MESSAGE).cast(), length: LONGEST };
        let mut header = MsgHdr {
            name: core::ptr::null_mut(),
            name_length: 0,
            iov: &raw mut iov,
            iov_length: 1,
            control: (&raw mut control).cast(),
            control_length: size_of::<Control>(),
            flags: 0,
        };
        let length = call!(
            SYS_RECVMSG, SOCKET_FD, &raw mut header, 0x4000_0000 /* MSG_CMSG_CLOEXEC */
        );
        match length {
            EINTR => continue,
            ..=0 => return None,
            _ => {}
        }
        let mut fds = [NO_FD; 4];
        if header.control_length >= 16 && control.level == 1 && control.kind == 1 {
            let count = (control.length - 16) / 4;
            for (fd, received) in fds.iter_mut().zip(&control.fds[..count.min(4)]) {
                *fd = *received;
            }
        }
        return Some((length as usize, fds));
    }
}

/// Sends one message.
fn say(kind: u8, flag: u8, run: u32, numbers: [i32; 2]) {
    let mut bytes = Header { kind, flag, run, numbers }.to_bytes();
    let mut iov = IoVec { base: bytes.as_mut_ptr(), length: HEADER };
    let header = MsgHdr {
        name: core::ptr::null_mut(),
        name_length: 0,
        iov: &raw mut iov,
        iov_length: 1,
        control: core::ptr::null_mut(),
        control_length: 0,
        flags: 0,
    };
    loop {
        match call!(SYS_SENDMSG, SOCKET_FD, &raw const header, 0x4000 /* MSG_NOSIGNAL */) {
            EINTR | EAGAIN => {}
            ..0 => exit(4),
            _ => return,
        }
    }
}

/// Points `arguments` at the strings of `bytes`. `false` if there are not as many, each with its
/// NUL.
fn split(bytes: &[u8], arguments: &mut [*const u8]) -> bool {
    let mut rest = bytes;
    for argument in arguments {
        let Some(end) = rest.iter().position(|byte| *byte == 0) else { return false };
        *argument = rest.as_ptr();
        rest = &rest[end + 1..];
    }
    rest.is_empty()
}

/// The number in a string of digits.
fn number(text: *const u8) -> usize {
    // SAFETY: the kernel's strings end with a NUL.
    let digits = unsafe { core::ffi::CStr::from_ptr(text.cast()) }.to_bytes();
    digits.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit & 15))
}

fn exit(code: i32) -> ! {
    loop {
        call!(SYS_EXIT_GROUP, code);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(5)
}

// What the compiler expects of a C library.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's regions, copied upwards byte by byte.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's region.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's string ends with a NUL.
    while unsafe { core::ptr::read_volatile(text.add(length)) } != 0 {
        length += 1;
    }
    length
}
