//! Servers in processes of their own, which are killed, hang, come back, or do not.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tool_executor::Outcome;
use tool_executor::artifact::{ArtifactError, ReadArtifact};

use super::{TOKEN, executor, fleet};
use crate::fakes::{PATIENCE, bash, until};
use crate::program::program;
use crate::sandbox::{is_running, unique_sleep};
use crate::stopped::stop;

/// A sandbox server in a process of its own.
pub(super) struct Process {
    pub(super) child: Child,
    pub(super) url: String,
}

impl Process {
    pub(super) fn start(port: u16, slots: usize) -> Self {
        Self::start_with(port, slots, &[])
    }

    /// With a lease of so many seconds.
    pub(super) fn start_leasing(port: u16, slots: usize, lease: &str) -> Self {
        Self::start_with(port, slots, &["--lease-s", lease])
    }

    /// With these flags.
    pub(super) fn start_with(port: u16, slots: usize, flags: &[&str]) -> Self {
        let mut child = program()
            .args(["sandbox", "--port", &port.to_string(), "--slots", &slots.to_string()])
            .args(flags)
            .env("TOOL_EXECUTOR_SANDBOX_TOKEN", TOKEN)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.contains(TOKEN), "{line}");
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        Self { url: url.unwrap_or_else(|| panic!("{line:?}")).to_owned(), child }
    }

    pub(super) fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

#[test]
fn a_server_that_is_killed_and_comes_back_loses_its_own_workspaces_only() {
    let mut dies = Process::start(0, 1);
    let lives = Process::start(0, 1);
    let executor = executor(fleet([dies.url.clone(), lives.url.clone()]));
    let touch = bash("echo mine > mine");
    assert!(executor.execute("a", touch.clone()).success);
    assert!(executor.execute("b", touch).success);
    let on_dying = |id: &str| *executor.slot_of(id).unwrap().addr == *dies.url;
    let (lost, kept) = if on_dying("a") { ("a", "b") } else { ("b", "a") };
    let pending = executor.submit(lost, bash("sleep 1000").with_timeout(PATIENCE * 10)).unwrap();
    while executor.stats().running == 0 {
        std::thread::yield_now();
    }
    let port = dies.port();
    dies.kill();
    assert!(executor.execute(kept, bash("cat mine")).success, "the other notices nothing");
    let _back = Process::start(port, 1);
    let result = pending.wait();
    assert_eq!(result.outcome, Outcome::SandboxLost, "{}", result.error);
    assert!(result.may_have_executed);
    let next = executor.execute(lost, bash("cat mine"));
    assert_eq!((next.outcome, next.may_have_executed), (Outcome::SandboxLost, false));
    executor.release(lost).unwrap();
    let anew = executor.execute(lost, bash("ls"));
    assert_eq!((anew.outcome, &*anew.output), (Outcome::Ok, ""), "{}", anew.error);
    assert_eq!(executor.execute(kept, bash("cat mine")).output, "mine");
}

#[test]
fn a_server_that_never_comes_back_is_given_up_within_the_bound() {
    let mut server = Process::start(0, 2);
    let executor = executor(fleet([server.url.clone()]));
    assert!(executor.execute("idle", bash("true")).success);
    let pending = executor.submit("busy", bash("sleep 1000").with_timeout(PATIENCE * 10)).unwrap();
    while executor.stats().running == 0 {
        std::thread::yield_now();
    }
    server.kill();
    let result = pending.wait_timeout(PATIENCE).expect("given up");
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::SandboxLost, true));
    let next = executor.execute("idle", bash("true"));
    assert_eq!((next.outcome, next.may_have_executed), (Outcome::SandboxLost, false));
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_server_that_hangs_is_given_up_and_used_again_when_it_goes_on() {
    let hangs = Process::start(0, 1);
    let lives = Process::start(0, 1);
    let executor = executor(fleet([hangs.url.clone(), lives.url.clone()]));
    for id in ["a", "b"] {
        assert!(executor.execute(id, bash("echo mine > mine")).success);
    }
    let on_hanging = |id: &str| *executor.slot_of(id).unwrap().addr == *hangs.url;
    let (lost, kept) = if on_hanging("a") { ("a", "b") } else { ("b", "a") };
    let pid = Pid::from_child(&hangs.child);
    stop(pid);
    let pending = executor.submit(lost, bash("cat mine").with_timeout(PATIENCE * 10)).unwrap();
    assert_eq!(executor.execute(kept, bash("cat mine")).output, "mine");
    let result = pending.wait_timeout(PATIENCE * 2).expect("given up");
    assert_eq!(result.outcome, Outcome::SandboxLost, "{}", result.error);
    kill_process(pid, Signal::CONT).unwrap();
    executor.release(lost).unwrap();
    let anew = executor.execute(lost, bash("ls"));
    assert_eq!((anew.outcome, &*anew.output), (Outcome::Ok, ""), "{}", anew.error);
}

#[test]
fn who_reads_files_of_a_server_that_hangs_waits_no_longer_than_its_calls() {
    let hangs = Process::start(0, 2);
    let executor = executor(fleet([hangs.url.clone()]));
    for id in ["a", "b"] {
        assert!(executor.execute(id, bash("echo mine > mine")).success);
    }
    stop(Pid::from_child(&hangs.child));
    std::thread::scope(|scope| {
        let read = scope.spawn(|| executor.read_artifact("a", &ReadArtifact::new("mine")).err());
        let archive = scope.spawn(|| executor.archive_artifacts("b", &Default::default()).err());
        // Within the fleet's bound: a request may take two minutes, and is tried again.
        until(|| read.is_finished() && archive.is_finished());
        for refused in [read.join().unwrap(), archive.join().unwrap()] {
            assert!(matches!(refused, Some(ArtifactError::SandboxLost(_))), "{refused:?}");
        }
    });
    kill_process(Pid::from_child(&hangs.child), Signal::CONT).unwrap();
    executor.release("a").unwrap();
    let anew = executor.execute("a", bash("echo new > mine"));
    assert!(anew.success, "{}", anew.error);
    let read = executor.read_artifact("a", &ReadArtifact::new("mine")).unwrap();
    assert_eq!(&*read.content, b"new\n");
}

#[test]
fn sigterm_ends_a_server_with_all_that_runs_in_it() {
    let mut server = Process::start(0, 1);
    let executor = executor(fleet([server.url.clone()]));
    let sleep = unique_sleep();
    let pending = executor.submit("t", bash(&sleep).with_timeout(PATIENCE * 10)).unwrap();
    while executor.stats().running == 0 {
        std::thread::yield_now();
    }
    let pid = Pid::from_child(&server.child);
    let terminate = || kill_process(pid, Signal::TERM).unwrap();
    terminate();
    // It has taken the first one in when its executor knows of it. The second one ends the wait.
    until(|| executor.stats().containers.draining == 1);
    terminate();
    assert!(server.child.wait().unwrap().success());
    assert!(!pending.wait_timeout(PATIENCE).expect("answered").success);
    assert!(!is_running(&sleep));
}
