//! The first process of a jail: a program of its own, without a standard library.
//!
//! `build.rs` compiles it to a static executable of a few kilobytes, which `mod.rs` carries and
//! which the engine starts in new namespaces. It sets the jail up (`setup`), as it is told by the
//! socket that it has inherited. Then it runs one command at a time; when the command's main
//! process ends the others have a moment to end by themselves; it says which ones do not (`rest`),
//! and ends every other process of the jail – by SIGTERM, and by SIGKILL after a moment –, waits
//! until the last of them is gone, and says so. Where a run may leave something running, that is
//! spared from then on (`background`), as far as the end of later runs stays certain: what cannot
//! be ended apart from it, since it forks faster than it is found, is ended with it.
//!
//! It runs as the same user as the commands, which are its children and try to get at it:
//! - It is the init of its pid namespace: the kernel keeps signals from inside away from it.
//! - It is not dumpable, and its file cannot be read by its user: no process of the jail may trace
//!   it or look into its memory, environment or descriptors.
//! - Its socket is closed in commands, and it believes nothing but what comes from there.
//! - Its limits and its priority are protected by the jail's seccomp filter.
//! - It allocates nothing, and its files are opened before the first command.
//! - It ends when the engine's end of the socket is closed, and the jail with it. It is never
//!   in a wait that does not see that. So that a host that was forked, whose child holds a copy of
//!   that end, is no exception, it also asks the kernel to be killed with the thread that made it.
//!
//! A command is started as by `vfork`: the child borrows this process's memory, and a stack of its
//! own, until it executes the shell. All of this is by raw system calls; what differs between
//! processors is in `arch`.

#![no_std]
#![no_main]

#[cfg_attr(target_arch = "aarch64", path = "arch/aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "arch/x86_64.rs")]
mod arch;
mod background;
mod message;
mod processes;
mod rest;
mod setup;
mod system;

use core::mem::MaybeUninit;
use core::ptr::{addr_of_mut, null};

use background::{Background, MOST_PIPES};
use message::*;
use rest::Rest;
use system::*;

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGCHLD: usize = 17;
const CHILD_SET: u64 = 1 << (SIGCHLD - 1);

const PR_SET_PDEATHSIG: usize = 1;
const PR_SET_DUMPABLE: usize = 4;
const PR_SET_NAME: usize = 15;

const RLIMIT_NOFILE: usize = 7;

unsafe extern "C" {
    fn spawn_child(
        flags: usize,
        stack: *mut u8,
        function: unsafe extern "C" fn(*mut Command) -> !,
        argument: *mut Command,
    ) -> isize;
}

const MOST_ARGUMENTS: usize = 128;

/// What the child needs to become the program that is run. Its memory is shared until then.
#[repr(C)]
struct Command {
    program: *const u8,
    arguments: [*const u8; MOST_ARGUMENTS + 1],
    environment: *const *const u8,
    stdio: [i32; 3],
    script: i32,
    verdict: i32,
    user: *const setup::User,
    /// Written by the child: why the program could not be executed.
    errno: i32,
}

const CHILD_STACK: usize = 16 * 1024;

#[repr(C, align(16))]
struct Stack([u8; CHILD_STACK]);

static mut STACK: Stack = Stack([0; CHILD_STACK]);

/// The descriptors that are always open, all close-on-exec.
struct Descriptors {
    /// `/dev/null`.
    null: i32,
    signals: i32,
    /// The jail's own `/proc`, if it has one.
    proc: i32,
}

/// `stack` is as the kernel leaves it: the number of arguments, the arguments, NULL, the
/// environment. The arguments are `$0`, the program to run and the soft limit of open files (0:
/// leave it).
unsafe extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel has put these words there.
    let (count, arguments) = unsafe { (*stack, stack.add(1).cast::<*const u8>()) };
    if count != 3 {
        exit(2);
    }
    // SAFETY: as above; there are three arguments, a NULL and then the environment.
    let (program, limit, environment) =
        unsafe { (*arguments.add(1), number(*arguments.add(2)), arguments.add(count + 1)) };

    call!(arch::PRCTL, PR_SET_PDEATHSIG, SIGKILL);
    call!(arch::PRCTL, PR_SET_NAME, c"tool-init".as_ptr());
    call!(arch::SETSID);
    close_range(3, SOCKET_FD as u32 - 1);
    close_range(SOCKET_FD + 1, u32::MAX);
    // The host may ignore some, which a program inherits.
    let default = [0u64; 4];
    for signal in 1..=64 {
        call!(arch::RT_SIGACTION, signal, default.as_ptr(), 0, 8);
    }
    let mask = CHILD_SET;
    call!(arch::RT_SIGPROCMASK, 2 /* SIG_SETMASK */, &raw const mask, 0, 8);

    // Until it is, its own entries of /proc belong to the host's root. Nobody is here to look.
    call!(arch::PRCTL, PR_SET_DUMPABLE, 1);
    let Some((plan, fds)) = receive() else { exit(0) };
    let Some(header) = Header::parse(plan).filter(|header| header.kind == SET_UP) else { exit(2) };
    let made = match setup::set_up(&plan[HEADER..], header.numbers[0] as usize, &fds) {
        Ok(made) => made,
        Err((step, errno)) => {
            say(Header { kind: FAILED, flag: 0, run: step, numbers: [errno, 0] }, &[], &[]);
            exit(1);
        }
    };
    call!(arch::PRCTL, PR_SET_DUMPABLE, 0);

    // The numbers that a program's descriptors get are kept taken, so that none that is received is
    // one. The first is close-on-exec: a program gets the second.
    close_range(0, SOCKET_FD as u32 - 1);
    let first = open(b"/dev/null\0", O_RDWR);
    for target in [1, 2, 3] {
        call!(arch::DUP3, first, target, 0);
    }
    let null = 1;
    let signals =
        call!(arch::SIGNALFD4, -1isize, &raw const mask, 8, O_CLOEXEC | O_NONBLOCK) as i32;
    // Another's has other processes, under other numbers.
    let proc = if owns_proc() { open(b"/proc\0", arch::O_DIRECTORY) } else { NO_FD };
    if first != 0 || signals < 0 {
        exit(3);
    }
    if limit > 0 {
        let mut limits = [0usize; 2];
        call!(arch::PRLIMIT64, 0, RLIMIT_NOFILE, 0, limits.as_mut_ptr());
        limits[0] = if limit < limits[1] { limit } else { limits[1] };
        call!(arch::PRLIMIT64, 0, RLIMIT_NOFILE, limits.as_ptr(), 0);
    }
    hand_over(header.numbers[1], made.proxy);
    let descriptors = Descriptors { null, signals, proc };
    let mut background = Background::new();
    loop {
        if wait(&descriptors, &mut background, None) {
            serve(&descriptors, &mut background, program, environment, made.user.as_ref());
        } else if background.is_some() && reap(0).0 {
            background.forget();
        }
    }
}

/// What can be handed over and is opened for that, in the order of the handles.
const HANDLES: [(i32, &[u8]); 6] = [
    (handle::ROOT, b"/\0"),
    (handle::USER, b"/proc/self/ns/user\0"),
    (handle::NETWORK, b"/proc/self/ns/net\0"),
    (handle::IPC, b"/proc/self/ns/ipc\0"),
    (handle::HOST_NAME, b"/proc/self/ns/uts\0"),
    (handle::MOUNTS, b"/proc/self/ns/mnt\0"),
];

/// Says that the jail is ready, with what is wanted of it. Only this process can open its
/// namespaces: no other may look into it.
fn hand_over(wanted: i32, proxy: i32) {
    let mut fds = [NO_FD; MOST_FDS];
    let mut count = 0;
    for (handle, path) in HANDLES {
        if wanted & handle == 0 {
            continue;
        }
        let flags = if handle == handle::ROOT { O_PATH | arch::O_DIRECTORY } else { 0 };
        fds[count] = open(path, flags);
        if fds[count] < 0 {
            // No step has this number.
            let numbers = [-fds[count], 0];
            say(Header { kind: FAILED, flag: 0, run: u32::MAX, numbers }, &[], &[]);
            exit(1);
        }
        count += 1;
    }
    if wanted & handle::PROXY != 0 {
        // It is the engine's alone from now on: nothing in here has a hold of it.
        fds[count] = proxy;
        count += 1;
    }
    say(Header { kind: READY, flag: 0, run: 0, numbers: [wanted, 0] }, &[], &fds[..count]);
    close_all(fds);
}

fn tell(kind: u8, run: u32, numbers: [i32; 2]) {
    say(Header { kind, flag: 0, run, numbers }, &[], &[]);
}

/// Waits until there is an order, a child has ended or changed, or so many milliseconds have
/// passed; whether there is an order. What the background writes meanwhile is read.
fn wait(descriptors: &Descriptors, background: &mut Background, most: Option<i64>) -> bool {
    let watch = |fd| PollFd { fd, events: 1, revents: 0 };
    let mut fds = [const { PollFd { fd: NO_FD, events: 1, revents: 0 } }; 2 + MOST_PIPES];
    (fds[0], fds[1]) = (watch(SOCKET_FD), watch(descriptors.signals));
    for (place, pipe) in fds[2..].iter_mut().zip(background.pipes()) {
        place.fd = *pipe;
    }
    // No more than there may be open files: the kernel refuses the rest, used or not.
    let used = background.pipes().iter().rposition(|pipe| *pipe != NO_FD).map_or(0, |last| last + 1);
    poll(&mut fds[..2 + used], most);
    if fds[1].revents != 0 {
        let mut info = MaybeUninit::<[u8; 1024]>::uninit();
        call!(arch::READ, descriptors.signals, info.as_mut_ptr(), 1024);
    }
    for (place, _) in fds[2..].iter().enumerate().filter(|(_, pipe)| pipe.revents != 0) {
        background.read(place);
    }
    fds[0].revents != 0
}

/// Receives one order and carries it out.
fn serve(
    descriptors: &Descriptors,
    background: &mut Background,
    program: *const u8,
    environment: *const *const u8,
    user: Option<&setup::User>,
) {
    let Some((message, fds)) = receive() else { exit(0) };
    let header = match Header::parse(message) {
        Some(header) if header.kind == RUN => header,
        Some(Header { kind: DRAIN, .. }) => return background.drain(fds),
        // An order to kill that came too late.
        _ => return close_all(fds),
    };
    let with = |flag| usize::from(header.flag & flag != 0);
    let (input, script, verdict) = (with(WITH_INPUT), with(WITH_SCRIPT), with(WITH_VERDICT));
    let mut command = Command {
        program,
        arguments: [null(); MOST_ARGUMENTS + 1],
        environment,
        stdio: [if input == 1 { fds[0] } else { descriptors.null }, fds[input], fds[input + 1]],
        script: if script == 1 { fds[input + 2] } else { NO_FD },
        verdict: if verdict == 1 { fds[input + 2 + script] } else { NO_FD },
        user: user.map_or(null(), |user| user as *const setup::User),
        errno: 0,
    };
    let strings = &message[HEADER..];
    let wanted = header.numbers[0] as usize;
    let given = fds.iter().filter(|fd| **fd != NO_FD).count();
    let whole = wanted > 0 && wanted <= MOST_ARGUMENTS && given == input + 2 + script + verdict;
    if !whole || !split(strings, &mut command.arguments[..wanted]) {
        close_all(fds);
        return tell(DONE, header.run, [0, 22 /* EINVAL */]);
    }
    // Nothing starts any more, even if it was ordered.
    if is_alone() {
        exit(0);
    }
    if background.is_some() {
        background.refresh(descriptors.proc);
    }
    const FLAGS: usize = 0x100 /* CLONE_VM */ | 0x4000 /* CLONE_VFORK */ | SIGCHLD;
    // SAFETY: the stack is the child's alone while it lives in this memory: this process does not
    // go on before the child has executed the program or is gone. The command outlives that.
    let main_process = unsafe {
        let stack = addr_of_mut!(STACK).cast::<u8>().add(CHILD_STACK - 16);
        spawn_child(FLAGS, stack, become_program, &raw mut command)
    };
    close_all(fds);
    if main_process < 0 {
        return tell(DONE, header.run, [0, -main_process as i32]);
    }
    // Without a view of the processes nothing can be told apart.
    let may_keep = header.flag & MAY_KEEP != 0 && descriptors.proc >= 0;
    let mut running =
        Running { main_process: main_process as i32, run: header.run, may_keep, earlier_ended: false };
    let status = running.wait_for_end(descriptors, background);
    let numbers = if command.errno != 0 { [0, command.errno] } else { [status, 0] };
    let flag = if running.earlier_ended { EARLIER_ENDED } else { 0 };
    say(Header { kind: DONE, flag, run: header.run, numbers }, &[], &[]);
}

/// The child's life until the program.
unsafe extern "C" fn become_program(command: *mut Command) -> ! {
    // SAFETY: lives in the parent, which waits.
    let command = unsafe { &mut *command };
    call!(arch::SETSID);
    for (target, source) in command.stdio.iter().enumerate() {
        call!(arch::DUP3, *source, target, 0);
    }
    // Each has a number of its own, which the other's descriptor may have now.
    let verdict = match command.verdict {
        NO_FD => NO_FD,
        fd => call!(arch::FCNTL, fd, 0 /* F_DUPFD */, VERDICT_FD + 1) as i32,
    };
    if command.script == NO_FD {
        close_range(3, VERDICT_FD as u32 - 1);
    } else {
        // It may be that number already.
        if command.script == 5 {
            call!(arch::FCNTL, 5, 2 /* F_SETFD */, 0);
        } else {
            call!(arch::DUP3, command.script, 5, 0);
        }
        close_range(3, 4);
    }
    if verdict == NO_FD {
        close_range(VERDICT_FD, u32::MAX);
    } else {
        call!(arch::DUP3, verdict, VERDICT_FD, 0);
        close_range(VERDICT_FD + 1, u32::MAX);
    }
    let none = 0u64;
    call!(arch::RT_SIGPROCMASK, 2, &raw const none, 0, 8);
    // SAFETY: as above.
    if let Some(user) = unsafe { command.user.as_ref() } {
        let (uid, gid) = (user.uid, user.gid);
        let changed = [
            call!(arch::SETGROUPS, user.count, user.groups.as_ptr()),
            call!(arch::SETRESGID, gid, gid, gid),
            call!(arch::SETRESUID, uid, uid, uid),
        ];
        if let Some(failed) = changed.into_iter().find(|result| *result < 0) {
            command.errno = -failed as i32;
            call!(arch::EXIT, 127);
        }
    }
    let failed =
        call!(arch::EXECVE, command.program, command.arguments.as_ptr(), command.environment);
    command.errno = -failed as i32;
    call!(arch::EXIT, 127);
    exit(127)
}

/// How long what a run leaves behind has to end by itself, in milliseconds. What only finishes its
/// work needs a few: the reader of a process substitution, a `git gc --auto` that finds nothing to
/// do. It is neither stopped in the middle nor reported. The end of a call with a server that stays
/// comes so much later. Where one of them is about to run, as on a machine that is busy, all have
/// as long again, up to so many times: what sleeps waits for something that will not come.
const PATIENCE_WITH_STRAGGLERS: i64 = 20;
const MOST_LOOKS: u8 = 5;
/// How long processes may take to end after SIGTERM, in milliseconds: those of a run whose time is
/// up, and what a run leaves behind.
const PATIENCE: i64 = 500;
const PATIENCE_WITH_REST: i64 = 50;
/// How often the processes of a run are sought among those that earlier ones have left, with which
/// pause in milliseconds, and for how long at most: on a busy machine what was killed needs a while
/// to go. What is there then goes with all the others.
const MOST_SWEEPS: u8 = 40;
const SWEEP_PAUSE: i64 = 5;
const LONGEST_SWEEP: i64 = 2000;

/// How far a run is. It only moves downwards. Times are those of [`now`].
enum Stage {
    /// Its main process runs.
    Running,
    /// That has ended; until then the others may end by themselves. How often was looked at them.
    Lingering(i64, u8),
    /// All were asked to end; what is left then is killed.
    Asked(i64),
    /// They are killed as they are found, until then at most. How often they were sought.
    Sweeping(i64, u8),
    /// All were killed.
    Killed,
}

/// What runs.
struct Running {
    main_process: i32,
    run: u32,
    /// Whether what it leaves is to go on running.
    may_keep: bool,
    /// Whether what earlier ones had left was ended with it.
    earlier_ended: bool,
}

impl Running {
    /// Waits for the main process, and for every other one after ending them, but for those that
    /// are left in the background; gives the wait status. The engine's end of the socket is watched
    /// all the time.
    fn wait_for_end(&mut self, descriptors: &Descriptors, background: &mut Background) -> i32 {
        let proc = descriptors.proc;
        let mut status = None;
        let mut stage = Stage::Running;
        loop {
            // Orphans become children of this process: they are reaped as they end.
            let (last, ended) = reap(self.main_process);
            if let (None, Some(ended)) = (status, ended) {
                status = Some(ended);
                if !last {
                    tell(ENDED, self.run, [ended, 0]);
                }
                if let Stage::Running = stage {
                    stage = Stage::Lingering(now() + PATIENCE_WITH_STRAGGLERS, 0);
                }
            }
            if last {
                background.forget();
            }
            // Without a child there is no process left, since this one inherits them all.
            if let Some(status) = status
                && (last || background.is_some() && background.is_alone(proc))
            {
                return status;
            }
            let due = match stage {
                Stage::Lingering(until, _) | Stage::Asked(until) => Some(until - now()),
                Stage::Sweeping(..) => Some(SWEEP_PAUSE),
                Stage::Running | Stage::Killed => None,
            };
            if due.is_some_and(|left| left <= 0) {
                stage = match stage {
                    Stage::Lingering(_, looks) => {
                        let rest = Rest::of(proc, background);
                        if rest.is_busy && looks + 1 < MOST_LOOKS {
                            Stage::Lingering(now() + PATIENCE_WITH_STRAGGLERS, looks + 1)
                        } else if self.keeps(proc, background) {
                            self.tell_rest(KEPT, &rest);
                            return status.unwrap_or_default();
                        } else {
                            self.tell_rest(REST, &rest);
                            ask_to_end(proc, background, PATIENCE_WITH_REST)
                        }
                    }
                    _ => self.kill(proc, background),
                };
                continue;
            }
            if wait(descriptors, background, due) {
                let Some((message, received)) = receive() else { exit(0) };
                close_all(received);
                match Header::parse(message).filter(|header| header.run == self.run) {
                    Some(Header { kind: KILL, flag, .. }) if flag & ASK_FIRST != 0 => {
                        if let Stage::Running | Stage::Lingering(..) = stage {
                            stage = ask_to_end(proc, background, PATIENCE);
                        }
                    }
                    Some(Header { kind: KILL, .. }) => stage = self.kill_all(background),
                    Some(Header { kind: SIGNAL, numbers: [signal, _], .. }) if status.is_none() => {
                        call!(arch::KILL, -(self.main_process as isize), signal);
                    }
                    _ => {}
                }
            }
            if let Stage::Sweeping(until, sweeps) = stage {
                stage = match now() < until && sweeps < MOST_SWEEPS {
                    true => self.sweep(proc, background, until, sweeps + 1),
                    false => self.kill_all(background),
                };
            }
        }
    }

    /// Leaves what still runs in the background, if it may.
    fn keeps(&self, proc: i32, background: &mut Background) -> bool {
        self.may_keep && background.has_room() && background.adopt(proc)
    }

    /// Says what it has left running.
    fn tell_rest(&self, kind: u8, rest: &Rest) {
        if rest.count > 0 {
            let numbers = [rest.count as i32, 0];
            say(Header { kind, flag: 0, run: self.run, numbers }, rest.names(), &[]);
        }
    }

    /// SIGKILL to every process of the run.
    fn kill(&mut self, proc: i32, background: &mut Background) -> Stage {
        match background.is_some() {
            true => self.sweep(proc, background, now() + LONGEST_SWEEP, 1),
            false => self.kill_all(background),
        }
    }

    fn sweep(&self, proc: i32, background: &Background, until: i64, sweeps: u8) -> Stage {
        background.signal_others(proc, SIGKILL);
        Stage::Sweeping(until, sweeps)
    }

    /// SIGKILL to every process of the jail but this one, none of which can fork away from it.
    fn kill_all(&mut self, background: &mut Background) -> Stage {
        self.earlier_ended |= background.is_some();
        background.forget();
        call!(arch::KILL, -1isize, SIGKILL);
        Stage::Killed
    }
}

/// SIGTERM to every process of the jail but this one and the background, also to those that are
/// stopped, and when they are to be killed: after so many milliseconds.
fn ask_to_end(proc: i32, background: &Background, patience: i64) -> Stage {
    for signal in [SIGTERM, SIGCONT] {
        match background.is_some() {
            true => background.signal_others(proc, signal),
            false => {
                call!(arch::KILL, -1isize, signal);
            }
        }
    }
    Stage::Asked(now() + patience)
}

/// The time, in milliseconds.
fn now() -> i64 {
    // Seconds and nanoseconds.
    let mut time = [0i64; 2];
    call!(arch::CLOCK_GETTIME, 1 /* CLOCK_MONOTONIC */, time.as_mut_ptr());
    time[0] * 1000 + time[1] / 1_000_000
}

/// Removes the zombies. Whether no child is left, and the main process's status if it was among
/// them.
fn reap(main_process: i32) -> (bool, Option<i32>) {
    let mut main_status = None;
    loop {
        let mut status = 0i32;
        match call!(arch::WAIT4, -1isize, &raw mut status, 1 /* WNOHANG */) {
            EINTR => {}
            0 => return (false, main_status),
            ..0 => return (true, main_status),
            pid => {
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

/// Whether `/proc` shows this process under the number that it has here.
fn owns_proc() -> bool {
    let stat = open(b"/proc/self/stat\0", 0);
    let mut text = [0u8; 3];
    let length = call!(arch::READ, stat, text.as_mut_ptr(), text.len());
    call!(arch::CLOSE, stat);
    length == 3 && text == *b"1 ("
}

/// The number in a string of digits.
fn number(text: *const u8) -> usize {
    // SAFETY: the kernel's strings end with a NUL.
    let digits = unsafe { core::ffi::CStr::from_ptr(text.cast()) }.to_bytes();
    digits.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit & 15))
}
