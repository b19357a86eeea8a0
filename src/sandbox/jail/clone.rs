//! The clone of a child with a stack of its own, born in a cgroup of version 2 where one is given.
//!
//! The C library's `clone` knows no cgroups, and the newer system call behind this no stacks that a
//! function is called on; that takes a few instructions of each processor.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a child does. It ends without returning.
pub(super) type Life = extern "C" fn(*mut c_void) -> c_int;

/// What a child that calls this process's memory its own needs: a few system calls and what the C
/// library does around them.
const STACK: usize = 64 * 1024;

/// A stack for a child that shares this process's memory.
pub(super) struct Stack(Vec<u128>);

impl Stack {
    pub(super) fn new() -> Self {
        Self(vec![0u128; STACK / size_of::<u128>()])
    }

    /// Where it begins: it grows downwards.
    pub(super) fn top(&mut self) -> *mut c_void {
        self.0.as_mut_ptr_range().end.cast()
    }
}

/// Clones a child with these flags, [`libc::CLONE_PIDFD`] among them, whose pidfd is written to
/// `pidfd`. `cgroup` is the directory of the one that it is born in, if it is not to be this
/// thread's.
///
/// # Errors
/// Those of the system call. [`io::ErrorKind::Unsupported`] with a cgroup, where the kernel or this
/// program has no such call.
///
/// # Safety
/// `life` must make system calls only, and never return, where the child shares this process's
/// memory; the stack, `argument` and what that points to must outlive the child's use of them.
pub(super) unsafe fn clone(
    life: Life,
    stack: &mut Stack,
    flags: c_int,
    argument: *mut c_void,
    pidfd: &mut c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<c_int> {
    let Some(cgroup) = cgroup else {
        // SAFETY: as the caller has promised; `pidfd` is a valid place.
        let pid = unsafe { libc::clone(life, stack.top(), flags, argument, &raw mut *pidfd) };
        return if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    };
    const SIGNAL: c_int = 0xff;
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let arguments = CloneArguments {
        flags: u64::from((flags & !SIGNAL) as u32) | INTO_CGROUP,
        pidfd: std::ptr::from_mut(pidfd) as u64,
        exit_signal: (flags & SIGNAL) as u64,
        stack: stack.0.as_mut_ptr() as u64,
        stack_size: STACK as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArguments::default()
    };
    // SAFETY: as the caller has promised.
    let result = unsafe { clone3(&arguments, life, argument) };
    match c_int::try_from(result) {
        Ok(pid) if pid > 0 => Ok(pid),
        Ok(errno) => Err(io::Error::from_raw_os_error(-errno)),
        Err(_) => Err(io::ErrorKind::Other.into()),
    }
}

/// The kernel's `struct clone_args`.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// The child's process number, or the negative number of an error.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(arguments: &CloneArguments, life: Life, argument: *mut c_void) -> i64 {
    let result: i64;
    // SAFETY: the child begins behind the call, on its own stack, whose end is a multiple of 16,
    // and never leaves `life`: what it does to registers is not seen here.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {life}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            life = in(reg) life,
            inout("rax") libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_ref(arguments),
            in("rsi") size_of::<CloneArguments>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(arguments: &CloneArguments, life: Life, argument: *mut c_void) -> i64 {
    let result: i64;
    // SAFETY: as on x86-64.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {life}",
            "brk 1",
            "2:",
            argument = in(reg) argument,
            life = in(reg) life,
            in("x8") libc::SYS_clone3,
            inout("x0") std::ptr::from_ref(arguments) as i64 => result,
            in("x1") size_of::<CloneArguments>(),
        );
    }
    result
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone3(_: &CloneArguments, _: Life, _: *mut c_void) -> i64 {
    -i64::from(libc::ENOSYS)
}
