//! Calls do what their arguments ask for, on every front: the embedded sandbox, with slots that
//! keep their sandboxes and without, and a sandbox server behind a fleet.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tool_executor::backend::Backend;
use tool_executor::backend::fleet::FleetBackend;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{
    ExecutorConfig, FleetConfig, LocalConfig, OutputOrder, Policy, ServerConfig, UnknownArguments,
};
use tool_executor::server::SandboxServer;
use tool_executor::{Outcome, ToolCall, ToolExecutor, ToolResult};

use crate::caller::directory;
use crate::fakes::{bash, until};

/// An executor, and what it stands on.
struct Front {
    name: &'static str,
    executor: ToolExecutor,
    _server: Option<SandboxServer>,
    directory: tempfile::TempDir,
}

impl Front {
    fn run(&self, name: &str, arguments: Value) -> ToolResult {
        self.executor.execute("t", ToolCall::new(name, arguments))
    }

    fn output(&self, arguments: Value) -> String {
        let result = self.run("bash", arguments);
        assert_eq!(result.error, "", "{}: {result:?}", self.name);
        result.output
    }
}

fn start(backend: impl Backend + 'static, policy: Policy) -> ToolExecutor {
    let config = ExecutorConfig::default().with_policy(policy);
    ToolExecutor::builder().config(config).backend(backend).start().unwrap()
}

fn fronts(policy: Policy) -> [Front; 3] {
    ["warm", "cold", "fleet"].map(|name| {
        let directory = directory();
        let mut config = LocalConfig::new(1).with_warm_slots(name != "cold");
        config.data_dir = Some(directory.path().to_owned());
        let local = LocalBackend::start(config).unwrap();
        assert_eq!(local.not_isolated_because(), None, "these tests need bubblewrap");
        let (executor, server) = if name == "fleet" {
            let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
            config.no_auth = true;
            let server = SandboxServer::start(config, local).unwrap();
            let fleet = FleetConfig::new([format!("http://{}", server.addr())]);
            (start(FleetBackend::new(fleet).unwrap(), policy), Some(server))
        } else {
            (start(local, policy), None)
        };
        Front { name, executor, _server: server, directory }
    })
}

#[test]
fn a_command_gets_its_directory_variables_and_standard_input() {
    for front in fronts(Policy::default()) {
        assert_eq!(front.output(json!({"command": "mkdir -p 'a b'/c; cat"})), "");
        // As a command has it that asks for nothing.
        let plain = front.output(json!({"command": "echo $0 $SHLVL $LINENO"}));
        for (workdir, shown) in [
            ("a b", "/workspace/a b"),
            ("/workspace/a b/c", "/workspace/a b/c"),
            ("/workspace", "/workspace"),
            ("/usr", "/usr"),
        ] {
            let pwd = json!({"command": "pwd; echo $0 $SHLVL $LINENO", "workdir": workdir});
            assert_eq!(front.output(pwd), format!("{shown}\n{plain}"), "{}", front.name);
            let pwd = json!({"argv": ["pwd"], "workdir": workdir});
            assert_eq!(front.output(pwd), shown);
        }

        let arguments = json!({
            "command": "printf '%s|' \"$A\" \"$B\"; cat; cat", "stdin": "in'put\u{0}\n",
            "env": {"A": "it's \"$HOME\"", "B": ""},
        });
        assert_eq!(front.output(arguments), "it's \"$HOME\"||in'put\u{0}");
        // No one can change it, and the next call has none.
        let writes = json!({"command": "echo x 2>&1 1>/proc/self/fd/0 | wc -l", "stdin": "y"});
        assert_eq!(front.output(writes), "1", "{}", front.name);
        assert_eq!(front.output(json!({"command": "cat; echo ${A-gone}"})), "gone");

        let missing = front.run("bash", json!({"command": "touch ran", "workdir": "nowhere"}));
        assert_eq!(missing.outcome, Outcome::NonZeroExit);
        assert!(missing.output.contains("nowhere: No such file or directory"), "{missing:?}");
        assert_eq!(front.output(json!({"command": "ls"})), "a b");
    }
}

#[test]
fn a_program_gets_its_arguments_as_they_are() {
    for front in fronts(Policy::default()) {
        let words = ["printf", "%s|", "a b", "$HOME", "", "it's", "*", "-n", "\n"];
        assert_eq!(front.output(json!({"argv": words})), "a b|$HOME||it's|*|-n|\n|");
        let reads = json!({"argv": ["tr", "a-z", "A-Z"], "stdin": "loud", "env": {"LC_ALL": "C"}});
        assert_eq!(front.output(reads), "LOUD");
        let many: Vec<String> = (0..5_000).map(|number| format!("argument-{number}")).collect();
        let counts = ["sh", "-c", "echo $# ${5000}", "sh"].map(str::to_owned);
        let argv: Vec<String> = counts.into_iter().chain(many).collect();
        assert_eq!(front.output(json!({"argv": argv})), "5000 argument-4999");
        let missing = front.run("bash", json!({"argv": ["no-such-program"]}));
        assert_eq!((missing.outcome, &*missing.error), (Outcome::NonZeroExit, "Exit code: 127"));
        assert!(missing.output.contains("no-such-program: not found"), "{missing:?}");
    }
}

#[test]
fn long_commands_and_long_inputs_come_whole() {
    let long = format!("echo ok; : {}", "x".repeat(300_000));
    let input = "line\n".repeat(200_000);
    for front in fronts(Policy::default()) {
        let arguments = json!({"command": long, "workdir": "/tmp", "stdin": "x"});
        assert_eq!(front.output(arguments), "ok", "{}", front.name);
        let arguments = json!({"command": "wc -lc", "stdin": input});
        assert_eq!(
            front.output(arguments).split_whitespace().collect::<Vec<_>>(),
            ["200000", "1000000"]
        );
    }
}

#[test]
fn the_streams_come_as_they_were_written_where_that_is_asked_for() {
    const BOTH: &str = "echo o1; echo e1 >&2; echo o2; echo e2 >&2";
    const IN_ORDER: &str = "o1\ne1\no2\ne2";
    const APART: &str = "o1\no2\n\n[stderr]\ne1\ne2";
    let interleaved = Policy::default().with_output_order(OutputOrder::Interleaved);
    for (policy, usual, other, other_is) in [
        (Policy::default(), APART, "interleaved", IN_ORDER),
        (interleaved, IN_ORDER, "separate", APART),
    ] {
        for front in fronts(policy) {
            for tool in ["bash", "terminal", "terminal_stateful"] {
                let usually = front.run(tool, json!({"command": BOTH}));
                assert_eq!(usually.output, usual, "{} {tool}", front.name);
                let asked = json!({"command": BOTH, "output_order": other});
                let asked = front.run(tool, asked);
                assert_eq!(asked.output, other_is, "{} {tool}", front.name);
                for result in [usually, asked] {
                    let in_order = result.output == IN_ORDER;
                    let bytes = if in_order { (12, 0) } else { (6, 6) };
                    let [stdout, stderr] =
                        ["stdout_bytes", "stderr_bytes"].map(|key| result.metadata[key].clone());
                    assert_eq!((stdout, stderr), (json!(bytes.0), json!(bytes.1)));
                    let said = result.metadata.get("output_order");
                    assert_eq!(said, in_order.then(|| json!("interleaved")).as_ref());
                }
            }
        }
    }
}

#[test]
fn an_interleaved_output_that_is_too_long_is_kept_as_one_file() {
    let policy = Policy::default().with_output_order(OutputOrder::Interleaved);
    let command = "for n in $(seq 20000); do echo out; echo err >&2; done";
    for front in fronts(policy) {
        for tool in ["bash", "terminal_stateful"] {
            let result = front.run(tool, json!({"command": command}));
            assert_eq!(result.metadata["output_file_bytes"], 160_000, "{} {tool}", front.name);
            assert!(!result.metadata.contains_key("stderr_file"));
            let file = result.metadata["output_file"].as_str().unwrap();
            let order = format!("paste -sd ' \\n' {file} | sort | uniq -c");
            let counted = front.output(json!({"command": order}));
            assert_eq!(counted.trim(), "20000 out err");
        }
    }
}

#[test]
fn a_shell_that_is_kept_has_its_streams_apart_after_a_call_that_had_not() {
    let [front, ..] = fronts(Policy::default());
    let stateful = |arguments| front.run("terminal_stateful", arguments);
    let both = "X=1; false; echo out; echo err >&2; (exit 3)";
    let asked = json!({"command": both, "output_order": "interleaved"});
    let result = stateful(asked);
    assert_eq!((&*result.output, &*result.error), ("out\nerr", "Exit code: 3"));
    let result = stateful(json!({"command": "echo $? $X >&2; echo out"}));
    assert_eq!(result.output, "out\n\n[stderr]\n3 1");
    // What bash itself says of a line that it gives up is in order, too.
    let asked = json!({"command": "echo before; : ${x?missing}", "output_order": "interleaved"});
    let result = stateful(asked);
    assert!(
        result.output.starts_with("before\n") && result.output.ends_with("missing"),
        "{result:?}"
    );
    assert_eq!(stateful(json!({"command": "echo $X"})).output, "1");
}

#[test]
fn a_file_is_added_to() {
    for front in fronts(Policy::default()) {
        let write = |arguments| front.run("write_file", arguments);
        let first = write(json!({"path": "d/log", "content": "one\n", "append": true}));
        assert_eq!(first.output, "Successfully appended 4 bytes to d/log", "{first:?}");
        let second = write(json!({"path": "d/log", "content": "two\n", "append": true}));
        let facts = (&second.metadata["size"], &second.metadata["appended_bytes"]);
        assert_eq!(facts, (&json!(8), &json!(4)));
        assert_eq!(front.run("read_file", json!({"path": "d/log"})).output, "one\ntwo\n");
        let replaced = write(json!({"path": "d/log", "content": "x", "append": false}));
        assert_eq!(replaced.output, "Successfully wrote 1 bytes to d/log");
        assert_eq!(front.run("read_file", json!({"path": "d/log"})).output, "x");
    }
}

#[test]
fn a_limit_of_time_is_what_was_asked_for_or_the_result_says_both() {
    for front in fronts(Policy::default()) {
        // It would be the default of 30 s if the text did not count.
        let timed_out = front.run("bash", json!({"command": "sleep 1000", "timeout": "1"}));
        let facts = (timed_out.outcome, &*timed_out.error);
        assert_eq!(facts, (Outcome::Timeout, "Command timed out after 1.0s"), "{}", front.name);
        assert!(!timed_out.metadata.contains_key("timeout_s"), "{timed_out:?}");

        let clamped = front.run("bash", json!({"command": "true", "timeout": "3600"}));
        let facts = (&clamped.metadata["timeout_s"], &clamped.metadata["timeout_asked"]);
        assert_eq!(facts, (&json!(600.0), &json!(3600.0)));
        let call = ToolCall::bash("true").with_timeout(Duration::from_millis(1));
        let clamped = front.executor.execute("t", call);
        let facts = (&clamped.metadata["timeout_s"], &clamped.metadata["timeout_asked"]);
        assert_eq!(facts, (&json!(1.0), &json!(0.001)));
    }
}

#[test]
fn programs_get_a_moment_to_clean_up_when_their_time_is_up() {
    for front in fronts(Policy::default()) {
        let run = |command: &str| front.run("bash", json!({"command": command, "timeout": 1}));
        // Also those that are not the main process, and those that are stopped.
        let cleans = "clean() { echo $1 cleaned; exit; }
            (trap 'clean child' TERM; sleep 1000 & wait) &
            (trap 'clean stopped' TERM; kill -STOP $BASHPID; sleep 1000 & wait) &
            trap 'clean main' TERM; sleep 1000 & wait";
        let result = run(cleans);
        assert_eq!(result.outcome, Outcome::Timeout, "{result:?}");
        let mut lines: Vec<_> = result.output.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["child cleaned", "main cleaned", "stopped cleaned"], "{result:?}");

        // What does not want to end is ended, and nothing of it is left.
        let stays = run("trap '' TERM; sleep 1000 & while :; do sleep 0.01; done");
        assert_eq!((stays.outcome, stays.metadata.get("processes_left")), (Outcome::Timeout, None));
        assert!(stays.timing.exec < Duration::from_secs(5), "{stays:?}");
        assert_eq!(run("pgrep -c sleep").output, "0");

        let python = run("python3 -c 'import time; print(1); time.sleep(1000)'");
        assert_eq!((python.outcome, &*python.output), (Outcome::Timeout, "1"));
    }
}

#[test]
fn programs_get_a_moment_to_clean_up_when_their_call_is_cancelled() {
    for front in fronts(Policy::default()) {
        let command = "trap 'echo cleaned >late; exit' TERM; : >up; sleep 1000 & wait";
        let pending = front.executor.submit("t", bash(command)).unwrap();
        let is_up = || {
            // A slot that was reset has another workspace.
            let below = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
            let slots = below(front.directory.path()).map(|run| run.path().join("slot_0"));
            let mut workspaces = slots.flat_map(|slot| below(&slot).collect::<Vec<_>>());
            workspaces.any(|workspace| workspace.path().join("up").exists())
        };
        until(is_up);
        pending.cancel();
        let result = pending.wait();
        assert_eq!(result.outcome, Outcome::Cancelled, "{result:?}");
        assert_eq!(
            front.output(json!({"command": "cat late; pgrep -c sleep; true"})),
            "cleaned\n0"
        );
    }
}

#[test]
fn what_a_command_leaves_running_gets_a_shorter_moment() {
    for front in fronts(Policy::default()) {
        let run = |command: &str| front.run("bash", json!({"command": command}));
        let leaves = "(trap 'echo cleaned >late; exit' TERM; : >up; sleep 1000 & wait) &
            (trap '' TERM; : >up2; sleep 1000; :) & until [ -e up -a -e up2 ]; do :; done; echo main";
        let result = run(leaves);
        assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
        // The shells, and their sleeps so far as they have begun.
        assert!(result.output.starts_with("main\n["), "{result:?}");
        let told = &result.metadata["ended_processes"];
        assert!((2..=4).contains(&told["count"].as_u64().unwrap()), "{told}");
        assert_eq!(told["names"][0], "bash", "{told}");
        assert_eq!(run("cat late; pgrep -c sleep").output, "cleaned\n0");
    }
}

#[test]
fn an_argument_that_there_is_not_runs_nothing_unless_it_is_to_be_ignored() {
    let calls = [
        ("bash", json!({"command": "touch ran", "cwd": "sub"}), "'workdir'"),
        ("write_file", json!({"path": "ran", "content": "", "overwrite": false}), "append"),
        ("terminal_stateful", json!({"command": "touch ran", "cmd": "x"}), "'command'"),
    ];
    for front in fronts(Policy::default()) {
        for (tool, arguments, told) in &calls {
            let refused = front.run(tool, arguments.clone());
            let facts = (refused.outcome, refused.may_have_executed);
            assert_eq!(facts, (Outcome::InvalidCall, false), "{refused:?}");
            assert!(refused.error.contains(told), "{refused:?}");
        }
        assert_eq!(front.output(json!({"command": "ls"})), "");
    }
    for front in fronts(Policy::default().with_unknown_arguments(UnknownArguments::Ignore)) {
        for (tool, arguments, _) in &calls {
            let ran = front.run(tool, arguments.clone());
            assert_eq!(ran.outcome, Outcome::Ok, "{ran:?}");
            assert_eq!(front.output(json!({"command": "ls && rm ran"})), "ran");
        }
    }
}
