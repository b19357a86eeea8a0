//! What is the 64-bit Arm's own: the numbers of system calls, how one is made, where the program
//! begins.

use core::arch::{asm, global_asm};

pub(crate) const DUP3: usize = 24;
pub(crate) const FCNTL: usize = 25;
pub(crate) const IOCTL: usize = 29;
pub(crate) const MKDIRAT: usize = 34;
pub(crate) const FCHOWNAT: usize = 54;
pub(crate) const UNLINKAT: usize = 35;
pub(crate) const SYMLINKAT: usize = 36;
pub(crate) const UMOUNT2: usize = 39;
pub(crate) const MOUNT: usize = 40;
pub(crate) const UNSHARE: usize = 97;
pub(crate) const PIVOT_ROOT: usize = 41;
pub(crate) const CHDIR: usize = 49;
pub(crate) const FCHDIR: usize = 50;
pub(crate) const OPENAT: usize = 56;
pub(crate) const CLOSE: usize = 57;
pub(crate) const GETDENTS64: usize = 61;
pub(crate) const LSEEK: usize = 62;
pub(crate) const READ: usize = 63;
pub(crate) const WRITE: usize = 64;
pub(crate) const PPOLL: usize = 73;
pub(crate) const SIGNALFD4: usize = 74;
pub(crate) const SETRESUID: usize = 147;
pub(crate) const SETRESGID: usize = 149;
pub(crate) const SETFSGID: usize = 152;
pub(crate) const SETGROUPS: usize = 159;
pub(crate) const CAPSET: usize = 91;
pub(crate) const EXIT: usize = 93;
pub(crate) const EXIT_GROUP: usize = 94;
pub(crate) const CLOCK_GETTIME: usize = 113;
pub(crate) const KILL: usize = 129;
pub(crate) const RT_SIGACTION: usize = 134;
pub(crate) const RT_SIGPROCMASK: usize = 135;
pub(crate) const SETSID: usize = 157;
pub(crate) const SETHOSTNAME: usize = 161;
pub(crate) const PRCTL: usize = 167;
pub(crate) const SOCKET: usize = 198;
pub(crate) const BIND: usize = 200;
pub(crate) const LISTEN: usize = 201;
pub(crate) const SENDMSG: usize = 211;
pub(crate) const RECVMSG: usize = 212;
pub(crate) const EXECVE: usize = 221;
pub(crate) const WAIT4: usize = 260;
pub(crate) const PRLIMIT64: usize = 261;

pub(crate) const O_DIRECTORY: usize = 0o40_000;

/// Makes a system call with up to five arguments.
///
/// # Safety
/// Whatever the call asks for.
pub(crate) unsafe fn call(number: usize, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the kernel's convention; whether the call itself is sound is for the caller to know.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack),
        );
    }
    result
}

global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, #0",
    "mov x30, #0",
    "mov x0, sp",
    "bl {main}",
    "brk #1",
    main = sym crate::main,
);

// `clone` for a child that shares this memory: it gets the stack that is given, calls the function
// with its argument there, and must not return.
//   spawn(flags: x0, stack: x1, function: x2, argument: x3) -> pid
global_asm!(
    ".globl spawn_child",
    "spawn_child:",
    "mov x9, x2",
    "mov x10, x3",
    "mov x2, #0",
    "mov x3, #0",
    "mov x4, #0",
    "mov x8, #220",
    "svc #0",
    "cbz x0, 2f",
    "ret",
    "2:",
    "mov x29, #0",
    "mov x30, #0",
    "mov x0, x10",
    "blr x9",
    "brk #1",
);

// What the compiler expects of a C library.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's regions, copied upwards byte by byte.
    unsafe {
        asm!(
            "cbz {count}, 3f",
            "2:",
            "ldrb {byte:w}, [{from}], #1",
            "strb {byte:w}, [{place}], #1",
            "subs {count}, {count}, #1",
            "b.ne 2b",
            "3:",
            count = inout(reg) count => _,
            from = inout(reg) from => _,
            place = inout(reg) to => _,
            byte = out(reg) _,
            options(nostack),
        );
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's region.
    unsafe {
        asm!(
            "cbz {count}, 3f",
            "2:",
            "strb {byte:w}, [{place}], #1",
            "subs {count}, {count}, #1",
            "b.ne 2b",
            "3:",
            count = inout(reg) count => _,
            place = inout(reg) to => _,
            byte = in(reg) byte,
            options(nostack),
        );
    }
    to
}
