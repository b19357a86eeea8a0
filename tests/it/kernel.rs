//! A kernel that refuses a system call, or never answers it: a seccomp filter for one thread and
//! all that it starts.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// What the kernel makes of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// It fails with this error.
    Error(i32),
    /// It ends the process, with SIGSYS.
    Kills,
    /// It never comes, as long as the descriptor is open that [`Filter::load`] gives.
    Never,
}

/// A filter of system calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filter {
    call: libc::c_long,
    /// Only with one of these bits in the first argument.
    flags: u32,
    answer: Answer,
}

impl Filter {
    /// That of a call.
    pub(crate) const fn of(call: libc::c_long, answer: Answer) -> Self {
        Self { call, flags: 0, answer }
    }

    /// That of the making of user namespaces.
    pub(crate) const fn of_namespaces(answer: Answer) -> Self {
        Self { call: libc::SYS_clone, flags: libc::CLONE_NEWUSER as u32, answer }
    }

    /// Loads it for this thread and all that it starts. May be called between fork and exec. What
    /// it gives is closed by an exec, but for its duplicates.
    pub(crate) fn load(self) -> io::Result<Option<OwnedFd>> {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let answer = match self.answer {
            Answer::Error(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
            Answer::Kills => libc::SECCOMP_RET_KILL_PROCESS,
            Answer::Never => libc::SECCOMP_RET_USER_NOTIF,
        };
        // `struct seccomp_data`: the number, the architecture, the instruction, the arguments.
        let first_argument = if cfg!(target_endian = "little") { 16 } else { 20 };
        let mut program = [
            step(LOAD, 0, 0, 0),
            step(EQUAL, 0, 3, self.call as u32),
            step(LOAD, 0, 0, first_argument),
            step(ANY_BIT, 0, if self.flags == 0 { 0 } else { 1 }, self.flags),
            step(RETURN, 0, 0, answer),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        let flags = match self.answer {
            Answer::Never => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            _ => 0,
        };
        // SAFETY: the kernel reads the program, which lives here; the rest are numbers.
        let loaded = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER as libc::c_long,
                flags,
                &raw const program,
            )
        };
        match (loaded, self.answer) {
            (..0, _) => Err(io::Error::last_os_error()),
            // SAFETY: a descriptor that the kernel has just made for us.
            (listener, Answer::Never) => Ok(Some(unsafe { OwnedFd::from_raw_fd(listener as i32) })),
            _ => Ok(None),
        }
    }
}

/// Does something on a thread of its own with this kernel.
pub(crate) fn with<T: Send>(filter: Filter, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let work = || {
            let _listener = filter.load().unwrap();
            work()
        };
        scope.spawn(work).join().unwrap()
    })
}
