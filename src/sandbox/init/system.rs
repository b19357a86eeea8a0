//! System calls and the structures that they take. Everything here is the same on all
//! architectures with 64 bits; what is not is in `arch`.

use core::ptr::addr_of_mut;

use crate::arch;
use crate::message::{HEADER, Header, LONGEST, SOCKET_FD};

pub(crate) const EINTR: isize = -4;
pub(crate) const EAGAIN: isize = -11;
pub(crate) const NO_FD: i32 = -1;

pub(crate) const O_WRONLY: usize = 1;
pub(crate) const O_RDWR: usize = 2;
pub(crate) const O_CREAT: usize = 0o100;
pub(crate) const O_EXCL: usize = 0o200;
pub(crate) const O_NONBLOCK: usize = 0o4000;
pub(crate) const O_CLOEXEC: usize = 0o2_000_000;
pub(crate) const O_PATH: usize = 0o10_000_000;
pub(crate) const AT_FDCWD: isize = -100;

// The numbers that all architectures share.
pub(crate) const OPEN_TREE: usize = 428;
pub(crate) const MOVE_MOUNT: usize = 429;
pub(crate) const CLOSE_RANGE: usize = 436;
pub(crate) const OPENAT2: usize = 437;
pub(crate) const MOUNT_SETATTR: usize = 442;

macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        let mut arguments = [0usize; 5];
        let given: &[usize] = &[$($argument as usize),*];
        arguments[..given.len()].copy_from_slice(given);
        // SAFETY: every pointer that this program passes is to memory of its own that lives as long
        // as the call, and as long as the kernel is told.
        unsafe { $crate::arch::call($number, arguments) }
    }};
}
pub(crate) use call;

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

pub(crate) use crate::message::MOST_FDS;

/// Room for a control message with descriptors, aligned as one.
#[repr(C, align(8))]
struct Control {
    length: usize,
    level: i32,
    kind: i32,
    fds: [i32; MOST_FDS],
}

const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;

#[repr(C)]
pub(crate) struct PollFd {
    pub(crate) fd: i32,
    pub(crate) events: i16,
    pub(crate) revents: i16,
}

static mut MESSAGE: [u8; LONGEST] = [0; LONGEST];

pub(crate) fn open(path: &[u8], flags: usize) -> i32 {
    call!(arch::OPENAT, AT_FDCWD, path.as_ptr(), flags | O_CLOEXEC) as i32
}

/// Closes every descriptor from `first` to `last`.
pub(crate) fn close_range(first: i32, last: u32) {
    call!(CLOSE_RANGE, first, last, 0);
}

/// Waits until one of them can be read, or is at its end; for so many milliseconds at most, if they
/// are given.
pub(crate) fn poll(fds: &mut [PollFd], most: Option<i64>) {
    let time = most.map(|most| [most / 1000, most % 1000 * 1_000_000]);
    let time = time.as_ref().map_or(core::ptr::null(), |time| time.as_ptr());
    call!(arch::PPOLL, fds.as_mut_ptr(), fds.len(), time, 0, 8);
}

/// Whether the engine is gone, whatever it has said before.
pub(crate) fn is_alone() -> bool {
    const POLLHUP: i16 = 0x10;
    let mut socket = PollFd { fd: SOCKET_FD, events: 0, revents: 0 };
    let at_once = [0i64; 2];
    call!(arch::PPOLL, &raw mut socket, 1, at_once.as_ptr(), 0, 8);
    socket.revents & POLLHUP != 0
}

/// The next message, and its descriptors. `None` when the engine is gone.
pub(crate) fn receive() -> Option<(&'static [u8], [i32; MOST_FDS])> {
    loop {
        let mut control = Control { length: 0, level: 0, kind: 0, fds: [NO_FD; MOST_FDS] };
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
            arch::RECVMSG,
            SOCKET_FD,
            &raw mut header,
            0x4000_0000 /* MSG_CMSG_CLOEXEC */
        );
        match length {
            EINTR => continue,
            ..=0 => return None,
            _ => {}
        }
        let mut fds = [NO_FD; MOST_FDS];
        let has_fds = control.level == SOL_SOCKET && control.kind == SCM_RIGHTS;
        if header.control_length >= 16 && has_fds {
            let count = (control.length - 16) / 4;
            let received = &control.fds[..count.min(MOST_FDS)];
            fds[..received.len()].copy_from_slice(received);
        }
        // SAFETY: this process has one thread, a child that shares its memory only reads the
        // message, and this one is done with a message before it receives the next.
        let message = unsafe { &(&*addr_of_mut!(MESSAGE))[..length as usize] };
        return Some((message, fds));
    }
}

/// Closes what came with a message.
pub(crate) fn close_all(fds: [i32; MOST_FDS]) {
    for fd in fds {
        if fd != NO_FD {
            call!(arch::CLOSE, fd);
        }
    }
}

/// Sends one message, with what follows its header, and so many descriptors, if there are any.
pub(crate) fn say(header: Header, body: &[u8], fds: &[i32]) {
    let mut bytes = header.to_bytes();
    let mut iov = [
        IoVec { base: bytes.as_mut_ptr(), length: HEADER },
        IoVec { base: body.as_ptr().cast_mut(), length: body.len() },
    ];
    let length = 16 + fds.len() * 4;
    let mut control = Control { length, level: SOL_SOCKET, kind: SCM_RIGHTS, fds: [NO_FD; MOST_FDS] };
    for (place, fd) in control.fds.iter_mut().zip(fds) {
        *place = *fd;
    }
    let (control, control_length) = match fds {
        [] => (core::ptr::null_mut(), 0),
        _ => ((&raw mut control).cast(), length.next_multiple_of(8)),
    };
    let header = MsgHdr {
        name: core::ptr::null_mut(),
        name_length: 0,
        iov: iov.as_mut_ptr(),
        iov_length: iov.len(),
        control,
        control_length,
        flags: 0,
    };
    loop {
        match call!(arch::SENDMSG, SOCKET_FD, &raw const header, 0x4000 /* MSG_NOSIGNAL */) {
            EINTR | EAGAIN => {}
            ..0 => exit(4),
            _ => return,
        }
    }
}

/// Points `strings` at the strings of `bytes`. `false` if there are not as many, each with its
/// NUL.
pub(crate) fn split(bytes: &[u8], strings: &mut [*const u8]) -> bool {
    let mut rest = bytes;
    for string in strings {
        let Some(end) = rest.iter().position(|byte| *byte == 0) else { return false };
        *string = rest.as_ptr();
        rest = &rest[end + 1..];
    }
    rest.is_empty()
}

pub(crate) fn exit(code: i32) -> ! {
    loop {
        call!(arch::EXIT_GROUP, code);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(5)
}

// What the compiler expects of a C library, besides what is in `arch`.

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's string ends with a NUL.
    while unsafe { core::ptr::read_volatile(text.add(length)) } != 0 {
        length += 1;
    }
    length
}
