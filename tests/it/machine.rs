//! One machine a trajectory: what one tool does there, all others see; and each of its programs can
//! be ended alone.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig, Policy};
use tool_executor::{Outcome, ToolCall, ToolExecutor, ToolResult};

use crate::alone::is_alone;
use crate::caller::{directory, image};
use crate::fakes::{bash, until};

/// Serves the text that is its first argument on the port that is its second.
const SERVER: &str = r#"
use IO::Socket::INET;
my $socket = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ARGV[1], Listen => 5)
    or die "cannot listen: $!";
open(my $ready, ">", "ready$ARGV[1]");
while (my $client = $socket->accept) { print $client "$ARGV[0]\n"; close $client }
"#;

fn start(slots: usize, network: bool, warm: bool) -> (tempfile::TempDir, ToolExecutor) {
    let dir = directory();
    let mut local = LocalConfig::new(slots).with_data_dir(dir.path()).with_warm_slots(warm);
    local.image = image();
    let backend = LocalBackend::start(local).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    let config =
        ExecutorConfig::default().with_policy(Policy::default().with_allow_network(network));
    (dir, ToolExecutor::builder().backend(backend).config(config).start().unwrap())
}

fn in_shell(command: &str) -> ToolCall {
    ToolCall::new("terminal_stateful", json!({"command": command}))
}

/// Types a command and waits for its end.
fn in_terminal(command: &str) -> ToolCall {
    ToolCall::new("tmux", json!({"action": "send_keys", "keys": [command, "Enter"], "block": true}))
}

/// Runs a command by this tool; what it prints.
fn run(executor: &ToolExecutor, tool: &str, command: &str) -> String {
    let ok = |result: ToolResult| {
        assert!(result.success, "{tool}, {command}: {result:?}");
        result.output
    };
    match tool {
        "bash" => ok(executor.execute("t", bash(command))),
        "shell" => ok(executor.execute("t", in_shell(command))),
        _ => {
            ok(executor
                .execute("t", in_terminal(&format!("{{ {command}; }} > /tmp/printed 2>&1"))));
            ok(executor.execute("t", bash("cat /tmp/printed")))
        }
    }
}

const TOOLS: [&str; 3] = ["bash", "shell", "terminal"];

#[test]
fn a_server_of_any_tool_is_reached_by_every_tool() {
    for (network, warm) in [(false, true), (true, true), (false, false)] {
        let (_dir, executor) = start(1, network, warm);
        let write = format!("cat > /tmp/server.pl <<'EOF'\n{SERVER}\nEOF");
        run(&executor, "bash", &write);
        // With the host's network other programs have ports, too: these are no ephemeral ones.
        let port = |tool: usize| 20_000 + std::process::id() % 1_000 * 8 + tool as u32;
        let serve = |tool, number| {
            let port = port(number);
            let command = format!("perl /tmp/server.pl {tool} {port} >/dev/null 2>/tmp/why &");
            let started = match tool {
                "shell" => executor.execute("t", in_shell(&command)),
                _ => executor.execute("t", in_terminal(&command)),
            };
            assert!(started.success, "{started:?}");
            until(|| executor.execute("t", bash(&format!("ls ready{port}"))).success);
        };
        serve("shell", 0);
        serve("terminal", 1);
        for (number, server) in ["shell", "terminal"].into_iter().enumerate() {
            let ask = format!("cat < /dev/tcp/127.0.0.1/{}", port(number));
            for tool in TOOLS {
                assert_eq!(run(&executor, tool, &ask).trim(), server, "asked by {tool}");
            }
        }
        // The other trajectory has another machine.
        if !network {
            let ask = format!("cat < /dev/tcp/127.0.0.1/{}", port(0));
            executor.release("t").unwrap();
            assert!(!executor.execute("u", bash(&ask)).success);
        }
    }
}

#[test]
fn files_memory_and_names_are_the_same_for_every_tool() {
    let (_dir, executor) = start(1, false, true);
    for maker in TOOLS {
        let make = format!(
            "echo {maker} | tee /dev/shm/{maker} /{maker} /run/{maker}.txt /tmp/{maker} >/dev/null; \
             ipcmk -S 2 >/dev/null"
        );
        run(&executor, maker, &make);
        for tool in TOOLS {
            let files =
                format!("cat /dev/shm/{maker} /{maker} /run/{maker}.txt /tmp/{maker} | uniq -c");
            let found = run(&executor, tool, &files);
            assert_eq!(found.split_whitespace().collect::<Vec<_>>(), ["4", maker], "by {tool}");
        }
    }
    for tool in TOOLS {
        assert_eq!(run(&executor, tool, "ipcs -s | grep -c 0x").trim(), "3", "by {tool}");
        let namespaces = "for n in user net ipc uts; do readlink /proc/self/ns/$n; done";
        assert_eq!(run(&executor, tool, namespaces), run(&executor, "bash", namespaces));
    }
    // An abstract socket's name is found by all of them.
    let listen = r#"perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack("Sa*", AF_UNIX, "\0abstract")) && listen(S, 10); open(R, ">", "listens"); sleep 100' &"#;
    run(&executor, "shell", listen);
    until(|| executor.execute("t", bash("ls listens")).success);
    let connect = r#"perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); print "found" if connect(S, pack("Sa*", AF_UNIX, "\0abstract"))'"#;
    for tool in TOOLS {
        assert_eq!(run(&executor, tool, connect).trim(), "found", "by {tool}");
    }
    executor.release("t").unwrap();
    assert_eq!(
        run(&executor, "bash", "ls -A /dev/shm /tmp; ipcs -s | grep -c 0x; ls / | wc -l")
            .lines()
            .count(),
        5
    );
}

/// Each tool sees its own processes: that is what makes its end exact.
#[test]
fn whatever_ends_one_program_the_others_go_on() {
    let (_dir, executor) = start(1, false, true);
    run(&executor, "shell", "x=kept; sleep 1000 &");
    run(&executor, "terminal", "y=kept");
    let shell_lives = || assert_eq!(run(&executor, "shell", "jobs -r | wc -l; echo $x"), "1\nkept");
    let terminal_lives = || assert_eq!(run(&executor, "terminal", "echo $y").trim(), "kept");
    // A command that kills all that it can see, one whose time is up, and one that is cancelled.
    executor.execute("t", bash("kill -9 -1"));
    let slow = bash("sleep 1000").with_timeout(Duration::from_millis(200));
    assert_eq!(executor.execute("t", slow).outcome, Outcome::Timeout);
    let call = executor.submit("t", bash("touch begun; sleep 1000")).unwrap();
    call.cancel();
    assert_eq!(call.wait().outcome, Outcome::Cancelled);
    shell_lives();
    terminal_lives();
    // The terminal.
    assert!(executor.execute("t", ToolCall::new("tmux", json!({"action": "stop"}))).success);
    shell_lives();
    let again = run(&executor, "terminal", "echo new$y");
    assert_eq!(again.trim(), "new");
    // The shell.
    run(&executor, "terminal", "y=kept");
    executor.execute("t", in_shell("kill -9 -1; kill -9 $$"));
    terminal_lives();
    assert_eq!(run(&executor, "shell", "echo new$x"), "new");
}

#[test]
fn a_call_names_its_shell() {
    let (_dir, executor) = start(1, false, true);
    let call = |session: &str, command: &str| {
        let arguments = json!({"command": command, "session": session});
        executor.execute("t", ToolCall::new("terminal_stateful", arguments))
    };
    assert!(call("build", "x=built").success);
    let built = call("build", "echo $x");
    assert_eq!((&*built.output, &built.metadata["session_name"]), ("built", &json!("build")));
    let default = executor.execute("t", in_shell("echo ${x:-none}"));
    assert_eq!((&*default.output, default.metadata.get("session_name")), ("none", None));
    for number in 0..6 {
        assert!(call(&number.to_string(), "true").success);
    }
    let refused = call("more", "true");
    assert_eq!((refused.outcome, refused.may_have_executed), (Outcome::InvalidCall, false));
    assert!(refused.error.contains("there are 8 sessions"), "{refused:?}");
    assert_eq!(call("a b", "true").outcome, Outcome::InvalidCall);
    executor.release("t").unwrap();
    assert_eq!(call("build", "echo new$x").output, "new");
}

/// What a call needs of the machine is the trajectory's to destroy; it costs that call, and not the
/// slot.
#[test]
fn a_machine_in_which_nothing_can_be_run_is_replaced() {
    if image().is_some() {
        // All that it has changed is the trajectory's: another one would have the same files.
        return;
    }
    for warm in [true, false] {
        let (_dir, executor) = start(1, false, warm);
        run(&executor, "bash", "echo file > kept; rm /bin");
        let failed = executor.execute("t", bash("echo never"));
        assert!(!failed.success && !failed.output.contains("never"), "{failed:?}");
        assert_eq!(run(&executor, "bash", "cat kept; ls -d /bin"), "file\n/bin");
        // By way of a shell, too.
        run(&executor, "bash", "chmod 0 /");
        let failed = executor.execute("t", in_shell("echo never"));
        assert!(!failed.success && !failed.output.contains("never"), "{failed:?}");
        assert_eq!(run(&executor, "shell", "cat kept"), "file");
        executor.release("t").unwrap();
    }
}

/// What this process has: by what it is, how many.
fn held(base: &std::path::Path) -> BTreeMap<&'static str, usize> {
    let count = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
    let children = fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        list.split_ascii_whitespace().count()
    });
    let entries = |path: &std::path::Path| -> Vec<_> {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let runs = entries(base);
    let slots: Vec<_> = runs.iter().flat_map(|run| entries(run)).collect();
    let is_slot = |path: &&std::path::PathBuf| path.to_string_lossy().contains("/slot_");
    let of_slots: Vec<_> = slots.iter().filter(is_slot).flat_map(|slot| entries(slot)).collect();
    let sessions = of_slots.iter().filter(|path| path.ends_with("sessions"));
    BTreeMap::from([
        ("children", children.sum()),
        // The one that reads the directory is not there any more.
        ("descriptors", count("/proc/self/fd") - 1),
        ("mounts", fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count()),
        ("threads", count("/proc/self/task")),
        ("directories of slots", of_slots.len()),
        ("directories of sessions", sessions.map(|path| entries(path).len()).sum()),
    ])
}

#[derive(Debug, Clone)]
enum Step {
    Bash(&'static str),
    Shell(&'static str),
    Named(u8, &'static str),
    Terminal(&'static str),
    StopTerminal,
    TimedOut(bool),
    Cancelled(bool),
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    let bash = prop::sample::select(vec![
        "true",
        "setsid sleep 1000 & disown",
        "echo x > /dev/shm/x; ipcmk -S 1; echo x > /x",
        "kill -9 -1",
        "for i in {1..30}; do (setsid sleep 1000 &); done",
        "kill -9 $PPID; kill -9 $$",
    ]);
    let shell =
        prop::sample::select(vec!["x=1", "sleep 1000 & ", "exit 3", "kill -9 $$", "exec true"]);
    let terminal = prop::sample::select(vec!["true", "sleep 1000 &", "exit", "kill -9 $PPID"]);
    prop_oneof![
        3 => bash.prop_map(Step::Bash),
        2 => shell.clone().prop_map(Step::Shell),
        1 => (0..3u8, shell).prop_map(|(name, command)| Step::Named(name, command)),
        2 => terminal.prop_map(Step::Terminal),
        1 => Just(Step::StopTerminal),
        1 => any::<bool>().prop_map(Step::TimedOut),
        1 => any::<bool>().prop_map(Step::Cancelled),
        1 => Just(Step::Release),
    ]
}

fn take(executor: &ToolExecutor, trajectory: &str, step: &Step) {
    let sleep = |in_a_shell| match in_a_shell {
        true => in_shell("sleep 1000"),
        false => bash("sleep 1000"),
    };
    let result = match step {
        Step::Bash(command) => executor.execute(trajectory, bash(command)),
        Step::Shell(command) => executor.execute(trajectory, in_shell(command)),
        Step::Named(name, command) => {
            let arguments = json!({"command": command, "session": name.to_string()});
            executor.execute(trajectory, ToolCall::new("terminal_stateful", arguments))
        }
        Step::Terminal(command) => {
            let keys = json!({"action": "send_keys", "keys": [command, "Enter"], "block": false});
            executor.execute(trajectory, ToolCall::new("tmux", keys))
        }
        Step::StopTerminal => {
            executor.execute(trajectory, ToolCall::new("tmux", json!({"action": "stop"})))
        }
        Step::TimedOut(in_a_shell) => {
            let call = sleep(*in_a_shell).with_timeout(Duration::from_millis(30));
            executor.execute(trajectory, call)
        }
        Step::Cancelled(in_a_shell) => {
            let call = executor.submit(trajectory, sleep(*in_a_shell)).unwrap();
            call.cancel();
            call.wait()
        }
        Step::Release => return executor.release(trajectory).unwrap(),
    };
    assert_ne!(result.outcome, Outcome::BackendFailed, "{step:?}: {result:?}");
}

#[test]
fn whatever_two_trajectories_do_nothing_is_left_after_their_release() {
    if !is_alone("machine::whatever_two_trajectories_do_nothing_is_left_after_their_release") {
        return;
    }
    for warm in [true, false] {
        let (dir, executor) = start(2, false, warm);
        // Threads that start with the first call, and files that are made once.
        for tool in TOOLS {
            run(&executor, tool, "true");
        }
        // The other slot may have something of its own that is kept, as the ids of an image.
        assert!(executor.execute("u", bash("true")).success);
        executor.release("u").unwrap();
        executor.release("t").unwrap();
        // Four of each slot: what was removed is gone then.
        until(|| held(dir.path())["directories of slots"] == 2 * 4);
        let before = held(dir.path());
        let steps = prop::collection::vec((any::<bool>(), step()), 1..12);
        let config = Config {
            cases: 8,
            max_shrink_iters: 20,
            failure_persistence: None,
            ..Config::default()
        };
        let mut runner = TestRunner::new(config);
        let nothing_is_left = |steps: Vec<(bool, Step)>| {
            for (which, step) in &steps {
                take(&executor, if *which { "a" } else { "b" }, step);
            }
            executor.release("a").unwrap();
            executor.release("b").unwrap();
            let mut now = BTreeMap::new();
            // Removals and the reaping of what has ended are behind the release.
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while std::time::Instant::now() < deadline {
                now = held(dir.path());
                if now == before {
                    return Ok(());
                }
                std::thread::yield_now();
            }
            prop_assert_eq!(now, before.clone(), "warm: {}", warm);
            Ok(())
        };
        runner.run(&steps, nothing_is_left).unwrap();
    }
}
