//! What is x86-64's own: the numbers of system calls, how one is made, where the program begins.

use core::arch::{asm, global_asm};

pub(crate) const READ: usize = 0;
pub(crate) const WRITE: usize = 1;
pub(crate) const CLOSE: usize = 3;
pub(crate) const LSEEK: usize = 8;
pub(crate) const RT_SIGACTION: usize = 13;
pub(crate) const RT_SIGPROCMASK: usize = 14;
pub(crate) const IOCTL: usize = 16;
pub(crate) const SOCKET: usize = 41;
pub(crate) const SENDMSG: usize = 46;
pub(crate) const RECVMSG: usize = 47;
pub(crate) const BIND: usize = 49;
pub(crate) const LISTEN: usize = 50;
pub(crate) const EXECVE: usize = 59;
pub(crate) const EXIT: usize = 60;
pub(crate) const WAIT4: usize = 61;
pub(crate) const KILL: usize = 62;
pub(crate) const FCNTL: usize = 72;
pub(crate) const CHDIR: usize = 80;
pub(crate) const FCHDIR: usize = 81;
pub(crate) const SETSID: usize = 112;
pub(crate) const SETGROUPS: usize = 116;
pub(crate) const SETRESUID: usize = 117;
pub(crate) const SETRESGID: usize = 119;
pub(crate) const SETFSGID: usize = 123;
pub(crate) const CAPSET: usize = 126;
pub(crate) const UNSHARE: usize = 272;
pub(crate) const PIVOT_ROOT: usize = 155;
pub(crate) const PRCTL: usize = 157;
pub(crate) const MOUNT: usize = 165;
pub(crate) const UMOUNT2: usize = 166;
pub(crate) const SETHOSTNAME: usize = 170;
pub(crate) const GETDENTS64: usize = 217;
pub(crate) const CLOCK_GETTIME: usize = 228;
pub(crate) const EXIT_GROUP: usize = 231;
pub(crate) const OPENAT: usize = 257;
pub(crate) const MKDIRAT: usize = 258;
pub(crate) const FCHOWNAT: usize = 260;
pub(crate) const UNLINKAT: usize = 263;
pub(crate) const SYMLINKAT: usize = 266;
pub(crate) const PPOLL: usize = 271;
pub(crate) const SIGNALFD4: usize = 289;
pub(crate) const DUP3: usize = 292;
pub(crate) const PRLIMIT64: usize = 302;

pub(crate) const O_DIRECTORY: usize = 0o200_000;

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
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym crate::main,
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
