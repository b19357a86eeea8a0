//! The processes that a dead engine left behind.
//!
//! What runs in a sandbox dies with its engine, whatever ends that. All that may stay is
//! bubblewrap itself, asleep for ever, when the engine is killed within some microseconds of its
//! start (see [`supervisor`](crate::sandbox::supervisor)). It is found by its arguments, which
//! name the data directory of the engine: nobody else's has that name.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::interrupt::Interrupt;

/// How long the killed ones are waited for, all together.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How long a wait may last before the interrupt is looked at again.
const SLICE: Duration = Duration::from_millis(50);

/// Kills every bubblewrap of ours that was started for a data directory at `path`, whose engine is
/// dead, and waits for their end. How many there were. Blocks, for some seconds at most, and not
/// after an interrupt.
pub(super) fn end(path: &Path, interrupt: &Interrupt) -> usize {
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let mut killed = Vec::new();
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if !is_left(pid, path) {
            continue;
        }
        let Some(handle) = hold(pid) else { continue };
        // It was looked at by its number, which may have passed on before it was held.
        if is_left(pid, path) && pidfd_send_signal(&handle, Signal::KILL).is_ok() {
            killed.push(handle);
        }
    }
    let deadline = Instant::now() + END_LIMIT;
    killed.iter().for_each(|handle| wait(handle, deadline, interrupt));
    killed.len()
}

fn hold(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Whether the process is a bubblewrap with `path` among its arguments. One that we may not look
/// at is none of ours.
fn is_left(pid: i32, path: &Path) -> bool {
    let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    read("comm") == b"bwrap\n" && names(&read("cmdline"), path)
}

/// Whether an argument is something beneath `path`.
fn names(command_line: &[u8], path: &Path) -> bool {
    let arguments = command_line.split(|&byte| byte == 0);
    arguments
        .map(|argument| Path::new(std::ffi::OsStr::from_bytes(argument)))
        .any(|argument| argument.starts_with(path))
}

fn wait(handle: &OwnedFd, deadline: Instant, interrupt: &Interrupt) {
    // Whoever did not end by the deadline is left to its parent.
    while !interrupt.is_interrupted() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.min(SLICE).try_into().ok();
        let mut ends = [PollFd::from_borrowed_fd(handle.as_fd(), PollFlags::IN)];
        if left.is_zero() || matches!(poll(&mut ends, timeout.as_ref()), Ok(1..)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn end(path: &Path) -> usize {
        super::end(path, &Interrupt::new())
    }

    #[test]
    fn only_arguments_beneath_the_directory_name_it() {
        let names = |line: &[u8]| names(line, Path::new("/d/run-1"));
        assert!(names(b"bwrap\0--bind\0/d/run-1/slot_0\0/workspace\0"));
        assert!(names(b"bwrap\0/d/run-1\0"));
        assert!(!names(b"bwrap\0/d/run-10/slot_0\0"));
        assert!(!names(b"bwrap\0/x/d/run-1\0echo /d/run-1\0"));
        assert!(!names(b""));
    }

    #[test]
    fn a_sleeping_bubblewrap_is_ended_and_what_only_looks_like_one_is_not() {
        let outer = tempfile::tempdir().unwrap();
        let (dead, live) = (outer.path().join("run-dead"), outer.path().join("run-live"));
        let sleeper = |program: &str, arguments: &[&str], path: &Path| {
            std::fs::create_dir_all(path).unwrap();
            Command::new(program)
                .args(arguments)
                .arg(path)
                .args(["/mnt", "sleep", "1000"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let sandbox = ["--dev-bind", "/", "/", "--unshare-pid", "--die-with-parent", "--bind"];
        let mut left = sleeper("bwrap", &sandbox, &dead);
        let mut lives = sleeper("bwrap", &sandbox, &live);
        let mut shell = sleeper("bash", &["-c", "read"], &dead);
        let comm = |child: &std::process::Child| {
            std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap()
        };
        // Started is not executed yet.
        while [&left, &lives].map(comm) != ["bwrap\n"; 2] {
            std::thread::yield_now();
        }
        assert!(end(&dead) >= 1);
        assert!(!left.wait().unwrap().success());
        // Its first process may still be dying.
        let patience = Instant::now() + Duration::from_secs(30);
        while end(&dead) > 0 {
            assert!(Instant::now() < patience, "it does not end");
            std::thread::yield_now();
        }
        assert!(lives.try_wait().unwrap().is_none());
        assert!(shell.try_wait().unwrap().is_none());
        end(&live);
        for child in [&mut lives, &mut shell] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
