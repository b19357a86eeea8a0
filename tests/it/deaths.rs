//! Hosts that die, or are stopped and continued, while their sandboxes are made: nothing of a dead
//! one is left a second later, nothing starts after its death, and a stopped one tells the truth.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, WaitOptions, kill_process};
use serde_json::json;
use tool_executor::config::{ExecutorConfig, LocalConfig};
use tool_executor::{ToolCall, ToolExecutor};

use crate::alone;
use crate::stopped::stop;

/// How long something of a dead host may be left.
const A_SECOND: Duration = Duration::from_secs(1);
/// Longer than anything else takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Tells a process what host it is to be, and where.
const KIND: &str = "TOOL_EXECUTOR_TEST_HOST_KIND";
const DIRECTORY: &str = "TOOL_EXECUTOR_TEST_HOST_DIRECTORY";
const SLOTS: &str = "TOOL_EXECUTOR_TEST_HOST_SLOTS";

/// What a host starts: a command in a sandbox that is kept, in one of its own, in a shell, and a
/// terminal; and the same in machines that are there already, which their jails join.
const KINDS: [&str; 7] =
    ["warm", "cold", "shell", "terminal", "joining cold", "joining shell", "joining terminal"];
const JOINING: &str = "joining ";
/// What has many short commands, each in a sandbox that is new: of `bash`, and of a shell.
const SHORT: [&str; 2] = ["short", "short in a shell"];

#[test]
fn a_host() {
    let (Ok(kind), Ok(directory)) = (std::env::var(KIND), std::env::var(DIRECTORY)) else {
        return;
    };
    let slots = std::env::var(SLOTS).unwrap().parse().unwrap();
    let local =
        LocalConfig::new(slots).with_data_dir(directory).with_warm_slots(!kind.ends_with("cold"));
    let executor = ToolExecutor::start(ExecutorConfig::default().with_local(local)).unwrap();
    if kind.starts_with(JOINING) {
        for slot in 0..slots {
            assert!(executor.execute(&slot.to_string(), ToolCall::bash("true")).success);
        }
        // Of those that are not kept nothing is left, which would be taken for what comes.
        let deadline = Instant::now() + DEADLINE;
        while kind.ends_with("cold") && !children_of(std::process::id()).is_empty() {
            assert!(Instant::now() < deadline, "a sandbox does not end");
            std::thread::yield_now();
        }
    }
    // Past the name of the test, which the harness has begun a line with.
    let mut stdout = std::io::stdout();
    stdout.write_all(b"\ngo\n").and_then(|()| stdout.flush()).unwrap();
    if SHORT.contains(&&*kind) {
        let tool = if kind == SHORT[0] { "bash" } else { "terminal_stateful" };
        for number in 0..20 {
            let call = ToolCall::new(tool, json!({"command": "sleep 0.03"}));
            let result = executor.execute("t", call.with_timeout(SHORT_LIMIT));
            assert!(result.success, "{number}: {result:?}");
            executor.release("t").unwrap();
        }
        return;
    }
    let command = json!({"command": "echo >> started; exec sleep 98765"});
    let calls: Vec<_> = (0..slots)
        .map(|slot| {
            let call = match kind.trim_start_matches(JOINING) {
                "shell" => ToolCall::new("terminal_stateful", command.clone()),
                "terminal" => ToolCall::new("tmux", json!({"action": "start"})),
                _ => ToolCall::new("bash", command.clone()),
            };
            executor.submit(&slot.to_string(), call).unwrap()
        })
        .collect();
    calls.into_iter().for_each(|call| drop(call.wait()));
    std::thread::park();
}

/// The time limit of a short command.
const SHORT_LIMIT: Duration = Duration::from_secs(1);

/// A host that is about to start something.
struct Host {
    process: Child,
    stdout: BufReader<ChildStdout>,
    directory: tempfile::TempDir,
}

impl Host {
    fn start(kind: &str, slots: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["deaths::a_host", "--exact", "--nocapture"])
            .env(KIND, kind)
            .env(SLOTS, slots.to_string())
            .env(DIRECTORY, directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        while line != "go\n" {
            line.clear();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "the {kind} host has failed");
        }
        Self { process, stdout, directory }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Lets it go on for a while: it says nothing.
    fn let_run(&self, time: Duration) {
        let mut fds = [PollFd::from_borrowed_fd(self.stdout.get_ref().as_fd(), PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&time.try_into().unwrap())).unwrap();
    }

    /// SIGKILL: it has no chance to do anything. It is gone then.
    fn die(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Whether a command has started.
    fn has_started(&self) -> bool {
        let entries = |path: &Path| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let mut slots = entries(self.directory.path()).into_iter().flat_map(|run| entries(&run));
        slots.any(|slot| slot.join("workspace/started").exists())
    }
}

/// This process's children, each with what it is.
fn children_of(pid: u32) -> Vec<(u32, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children = lists
        .flat_map(|list| list.split_ascii_whitespace().flat_map(str::parse).collect::<Vec<u32>>());
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    children.map(|pid| (pid, name(pid).trim_end().to_owned())).collect()
}

/// Waits until this process, which inherits all orphans, has no children any more.
fn await_no_children(what: &str) {
    let deadline = Instant::now() + A_SECOND;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) if Instant::now() < deadline => std::thread::yield_now(),
            Ok(None) => panic!("{what}: left are {:?}", children_of(std::process::id())),
            Err(_) => return,
        }
    }
}

fn inherit_orphans() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// Kills so many hosts of each kind, 1 to 50 ms after they have begun to start something; earlier
/// where only a jail has to join a machine.
fn kill_hosts(rounds: u64) {
    inherit_orphans();
    for kind in KINDS {
        for round in 0..rounds {
            // Of each moment the same number, in an odd order.
            let (first, span) = match kind.starts_with(JOINING) {
                false => (1_000, 49_000),
                true => (0, 8_000),
            };
            let micros = first + (round * 7919 % rounds) * span / rounds;
            let mut host = Host::start(kind, 4);
            host.let_run(Duration::from_micros(micros));
            host.die();
            await_no_children(&format!("{kind}, killed after {micros} us"));
        }
    }
}

#[test]
fn nothing_of_a_host_that_was_killed_is_left() {
    if alone::is_alone("deaths::nothing_of_a_host_that_was_killed_is_left") {
        kill_hosts(15);
    }
}

#[test]
#[ignore = "takes minutes"]
fn nothing_of_two_thousand_hosts_that_were_killed_is_left() {
    if alone::case().is_some() {
        return kill_hosts(500);
    }
    let name = "deaths::nothing_of_two_thousand_hosts_that_were_killed_is_left";
    alone::run(name, "long", &[], |command| {
        command.arg("--ignored");
    });
}

#[test]
fn nothing_starts_after_the_death_of_its_host() {
    if !alone::is_alone("deaths::nothing_starts_after_the_death_of_its_host") {
        return;
    }
    inherit_orphans();
    for kind in ["warm", "cold", "shell", "joining cold", "joining shell"] {
        let began = Instant::now();
        let mut stopped = 0;
        while stopped < 3 {
            assert!(
                began.elapsed() < DEADLINE,
                "{kind}: no first process could be stopped in time"
            );
            let mut host = Host::start(kind, 1);
            // The first one to be seen is stopped: somewhere in the making of its sandbox. A
            // shell's is the second: it joins the machine that the one for commands has founded.
            let earlier = usize::from(kind.ends_with("shell"));
            let first = loop {
                let children = children_of(host.process.id()).into_iter();
                let mut inits = children.filter(|(_, name)| name == "tool-init");
                if let Some((first, _)) = inits.nth(earlier) {
                    break first;
                }
                assert!(began.elapsed() < DEADLINE);
                std::thread::yield_now();
            };
            let pid = Pid::from_raw(first as i32).unwrap();
            // Its number is its own while its host does not run.
            stop(host.pid());
            let is_ours = children_of(host.process.id()).iter().any(|(pid, _)| *pid == first);
            if is_ours {
                let _ = kill_process(pid, Signal::STOP);
            }
            let was_early = is_ours && children_of(first).is_empty() && !host.has_started();
            kill_process(host.pid(), Signal::CONT).unwrap();
            if was_early {
                // Its host may tell it to start the command, or not.
                host.let_run(Duration::from_millis(20 * stopped));
            }
            host.die();
            if is_ours {
                let _ = kill_process(pid, Signal::CONT);
            }
            await_no_children(kind);
            if was_early {
                assert!(!host.has_started(), "{kind}: it has started");
                stopped += 1;
            }
        }
    }
}

#[test]
fn a_host_that_was_stopped_reports_what_ended_in_time_as_it_ended() {
    for round in 0..4u64 {
        let mut host = Host::start(SHORT[round as usize % 2], 1);
        for pause in 0..2u64 {
            host.let_run(Duration::from_millis(3 + 17 * (round + 3 * pause)));
            stop(host.pid());
            // Longer than a command may take.
            host.let_run(SHORT_LIMIT + SHORT_LIMIT / 10);
            kill_process(host.pid(), Signal::CONT).unwrap();
        }
        let mut said = String::new();
        std::io::Read::read_to_string(&mut host.stdout, &mut said).unwrap();
        assert!(host.process.wait().unwrap().success(), "round {round}: {said}");
    }
}
