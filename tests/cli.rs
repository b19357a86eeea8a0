//! The program from outside: its exit codes, its files, its signals.
//!
//! Runs real commands in the embedded sandbox.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::caller::directory;
use crate::kernel::{Answer, Filter};
use crate::program::{
    DEADLINE, make_directory, program, signal, started, wait_until, wait_until_ended,
};

#[path = "it/caller.rs"]
mod caller;
#[path = "cli/flags.rs"]
mod flags;
#[path = "cli/formats.rs"]
mod formats;
#[path = "it/http.rs"]
#[allow(dead_code, reason = "what the other tests need of it")]
mod http;
#[path = "cli/image_owners.rs"]
mod image_owners;
#[path = "cli/images.rs"]
mod images;
#[path = "cli/inputs.rs"]
mod inputs;
#[path = "it/kernel.rs"]
#[allow(dead_code, reason = "what the other tests need of it")]
mod kernel;
#[path = "cli/outputs.rs"]
mod outputs;
mod program;
#[path = "cli/pulls.rs"]
mod pulls;
#[path = "it/registry.rs"]
#[allow(dead_code, reason = "what the other tests need of it")]
mod registry;
#[path = "cli/signals.rs"]
mod signals;
#[path = "cli/specs.rs"]
mod specs;
#[path = "cli/user_range.rs"]
mod user_range;

/// A directory with an input file in it.
struct Setup {
    directory: TempDir,
}

impl Setup {
    fn new(lines: &[String]) -> Self {
        let setup = Self { directory: directory() };
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(setup.path("in.jsonl"), text).unwrap();
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `replay in.jsonl --out out.jsonl` with further flags.
    fn command(&self, flags: &[&str]) -> Command {
        let mut command = program();
        command
            .arg("replay")
            .arg(self.path("in.jsonl"))
            .arg("--out")
            .arg(self.path("out.jsonl"))
            .args(flags);
        command
    }

    fn replay(&self, flags: &[&str]) -> Run {
        Run::of(self.command(flags).output().unwrap())
    }

    fn results(&self) -> Vec<Value> {
        results_in(&self.path("out.jsonl"))
    }
}

fn results_in(path: &Path) -> Vec<Value> {
    let lines = BufReader::new(File::open(path).unwrap()).lines();
    lines.map(|line| serde_json::from_str(&line.unwrap()).expect("a whole line of JSON")).collect()
}

#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn bash(command: &str) -> Value {
    json!({"name": "bash", "arguments": {"command": command}})
}

fn trajectory(id: &str, commands: &[&str]) -> String {
    let calls: Vec<_> = commands.iter().map(|command| bash(command)).collect();
    json!({"trajectory_id": id, "calls": calls}).to_string()
}

#[test]
fn the_examples_agree_with_their_recordings_in_every_repetition() {
    let input = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/rollouts.jsonl");
    let mut command = program();
    command.args(["replay", input, "--compare", "--repeat", "3"]);
    command.args(["--slots", "4", "--concurrency", "20", "--no-network"]);
    let run = Run::of(command.output().unwrap());
    assert_eq!(run.code, Some(0), "{run:?}");
    let line = |start| run.stdout.lines().find(|line| line.starts_with(start)).unwrap();
    for start in ["outputs ", "exit codes "] {
        assert!(line(start).contains(" differ 0 "), "{}", run.stdout);
    }
    assert!(!line("exit codes ").contains("agree 0"));
    assert!(line("outcomes ").contains("timeout 3"), "{}", run.stdout);
}

#[test]
fn every_call_has_one_line_and_a_trajectorys_lines_are_in_order() {
    let lines: Vec<_> = (0..50)
        .map(|n| {
            trajectory(&format!("t{n}"), &["echo 0 > n", "cat n; echo 1 > n", "cat n; exit 3"])
        })
        .collect();
    let setup = Setup::new(&lines);
    let run = setup.replay(&["--slots", "2", "--concurrency", "25"]);
    assert_eq!(run.code, Some(0), "a tool that fails is a result: {run:?}");
    let mut by_trajectory = BTreeMap::<String, Vec<(u64, String, String)>>::new();
    for result in setup.results() {
        let id = result["trajectory_id"].as_str().unwrap().to_owned();
        let text = |key: &str| result[key].as_str().unwrap().to_owned();
        let call = (result["index"].as_u64().unwrap(), text("output"), text("outcome"));
        by_trajectory.entry(id).or_default().push(call);
    }
    assert_eq!(by_trajectory.len(), 50);
    let call = |index, output: &str, outcome: &str| (index, output.to_owned(), outcome.to_owned());
    let expected = [call(0, "", "ok"), call(1, "0", "ok"), call(2, "1", "non_zero_exit")];
    for (id, calls) in by_trajectory {
        assert_eq!(calls, expected, "{id}");
    }
    assert!(run.stdout.contains("outcomes      ok 100 · non_zero_exit 50\n"), "{}", run.stdout);
}

#[test]
fn malformed_lines_are_told_with_their_numbers_and_the_others_run() {
    let lines = [
        trajectory("good", &["echo hi"]),
        "nonsense".to_owned(),
        json!({"trajectory_id": "no calls"}).to_string(),
        trajectory("good", &["echo hi again"]),
    ];
    let setup = Setup::new(&lines);
    let run = setup.replay(&[]);
    assert_eq!(run.code, Some(3));
    assert!(run.stderr.contains("error: line 2: not JSON: "), "{}", run.stderr);
    assert!(
        run.stderr
            .contains("error: line 3: none of \"calls\", \"messages\" and \"conversations\"\n")
    );
    assert!(run.stdout.contains("2 malformed lines"));
    let mut ids: Vec<_> = setup.results().iter().map(|r| r["trajectory_id"].to_string()).collect();
    ids.sort();
    assert_eq!(ids, ["\"good\"", "\"good~2\""]);
}

#[test]
fn after_a_failed_setup_call_the_calls_do_not_run_and_each_says_so() {
    let line = json!({
        "trajectory_id": "t",
        "setup": [bash("true"), bash("exit 7"), bash("true")],
        "calls": [bash("echo never"), bash("echo never")],
    });
    let setup = Setup::new(&[line.to_string()]);
    let run = setup.replay(&[]);
    assert_eq!(run.code, Some(1));
    let outcomes: Vec<_> = setup
        .results()
        .iter()
        .map(|r| (r["setup"] == true, r["index"].as_u64().unwrap(), r["outcome"].to_string()))
        .collect();
    let outcome = |setup, index, name: &str| (setup, index, format!("\"{name}\""));
    assert_eq!(
        outcomes,
        [
            outcome(true, 0, "ok"),
            outcome(true, 1, "non_zero_exit"),
            outcome(true, 2, "never_ran"),
            outcome(false, 0, "never_ran"),
            outcome(false, 1, "never_ran"),
        ]
    );
    assert_eq!(setup.results()[3]["error"], "setup call 1 failed: Exit code: 7");
    assert!(run.stdout.contains("1 with a failed setup"));
}

#[test]
fn chats_are_replayed_and_a_call_with_broken_arguments_is_a_result() {
    let hermes = json!({"messages": [
        {"role": "assistant", "content": format!("<tool_call>{}</tool_call>", bash("echo hermes"))},
        {"role": "tool", "content": "hermes"},
    ]});
    let call = |arguments: &str| json!({"function": {"name": "bash", "arguments": arguments}});
    let openai = json!({"id": "openai", "messages": [
        {"role": "assistant", "tool_calls": [call("{\"command\": \"echo"), call("{\"command\": \"echo ok\"}")]},
    ]});
    let setup = Setup::new(&[hermes.to_string(), openai.to_string()]);
    let run = setup.replay(&["--compare", "--concurrency", "1"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let found: Vec<_> = setup
        .results()
        .iter()
        .map(|r| format!("{} {} {}", r["trajectory_id"], r["outcome"], r["output"]))
        .collect();
    assert_eq!(
        found,
        [
            "\"line-1\" \"ok\" \"hermes\"",
            "\"openai\" \"invalid_call\" \"\"",
            "\"openai\" \"ok\" \"ok\""
        ]
    );
    assert!(run.stdout.contains("outputs       exact 1 "), "{}", run.stdout);
}

#[test]
fn limit_and_repeat_choose_the_trajectories() {
    let lines: Vec<_> = ["a", "b", "c"].map(|id| trajectory(id, &["true"])).into();
    let setup = Setup::new(&lines);
    assert_eq!(setup.replay(&["--limit", "2", "--repeat", "2"]).code, Some(0));
    let results = setup.results();
    let mut ids: Vec<_> = results.iter().map(|r| r["trajectory_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["a", "a#2", "b", "b#2"]);
    let mut uniq_ids: Vec<_> = results.iter().map(|r| r["uniq_id"].as_str().unwrap()).collect();
    uniq_ids.sort_unstable();
    uniq_ids.dedup();
    assert_eq!(uniq_ids.len(), 4);
}

#[test]
fn a_timeout_of_the_calls_own_is_kept_and_the_flag_is_for_the_others() {
    let own = json!({"name": "bash", "arguments": {"command": "sleep 2.5", "timeout": 30}});
    let line = json!({"id": "t", "calls": [own, bash("sleep 30")]});
    let setup = Setup::new(&[line.to_string()]);
    assert_eq!(setup.replay(&["--timeout-s", "1.5"]).code, Some(0));
    let results = setup.results();
    assert_eq!(results[0]["outcome"], "ok");
    assert_eq!(results[1]["outcome"], "timeout");
}

#[test]
fn standard_input_is_read_as_it_comes() {
    let directory = directory();
    let out = directory.path().join("out.jsonl");
    let mut child = program()
        .args(["replay", "-", "--quiet", "--out"])
        .arg(&out)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", trajectory("first", &["echo 1"])).unwrap();
    // The second line is written only after the first one's result is in the file.
    wait_for_lines(&mut child, &out, 1);
    writeln!(stdin, "{}", trajectory("second", &["echo 2"])).unwrap();
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(results_in(&out)[1]["trajectory_id"], "second");
}

#[test]
fn workspaces_are_kept_under_the_trajectorys_name() {
    let setup = Setup::new(&[trajectory("a/b", &["mkdir d; echo hi > d/f"]), trajectory("c", &[])]);
    let kept = setup.path("kept");
    let run = setup.replay(&["--repeat", "2", "--keep-workspaces", kept.to_str().unwrap()]);
    assert_eq!(run.code, Some(0), "{run:?}");
    for name in ["a%2Fb", "a%2Fb%232"] {
        assert_eq!(fs::read_to_string(kept.join(name).join("d/f")).unwrap(), "hi\n");
    }
    fs::write(kept.join("a%2Fb/old"), "").unwrap();
    fs::remove_dir_all(kept.join("a%2Fb/d")).unwrap();
    let run = setup.replay(&["--keep-workspaces", kept.to_str().unwrap()]);
    assert!(run.stderr.contains("warning: a/b: workspace not kept in "), "{}", run.stderr);
    assert!(!kept.join("a%2Fb/d").exists(), "two runs are mixed");
}

#[test]
fn files_that_cannot_be_read_or_written_have_their_own_exit_code() {
    let setup = Setup::new(&[trajectory("t", &["echo hi"])]);
    let input = setup.path("in.jsonl");
    let replay =
        |arguments: &[&Path]| Run::of(program().arg("replay").args(arguments).output().unwrap());
    let missing = setup.path("missing.jsonl");
    let run = replay(&[&missing]);
    assert_eq!(run.code, Some(4));
    assert!(run.stderr.contains("missing.jsonl: No such file"), "{}", run.stderr);
    assert_eq!(replay(&[setup.directory.path()]).code, Some(4));

    let run = replay(&[&input, Path::new("--out"), Path::new("/dev/full")]);
    assert_eq!(run.code, Some(4));
    assert!(run.stderr.contains("/dev/full: No space left"), "{}", run.stderr);

    let before = fs::read(&input).unwrap();
    let run = replay(&[&input, Path::new("--out"), &input]);
    assert_eq!(run.code, Some(4));
    assert_eq!(fs::read(&input).unwrap(), before);
}

#[test]
fn a_wrong_command_line_is_told_and_help_names_the_exit_codes() {
    let run = Run::of(program().args(["replay", "x", "--slots", "0"]).output().unwrap());
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("--slots"), "{}", run.stderr);
    let run = Run::of(program().args(["replay", "--help"]).output().unwrap());
    assert_eq!(run.code, Some(0));
    assert!(run.stdout.contains("Exit codes:") && run.stdout.contains("130"));
}

#[test]
fn progress_is_plain_text_where_there_is_no_terminal_and_nothing_when_quiet() {
    let setup = Setup::new(&[trajectory("t", &["sleep 6"])]);
    let run = setup.replay(&[]);
    assert!(
        run.stderr.contains("0/1 trajectories, 0 calls, 0/s, 1 running, 0 failed"),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains('\x1b') && !run.stderr.contains('\r'));

    let setup = Setup::new(&[trajectory("t", &["true"])]);
    let run = setup.replay(&["--quiet"]);
    assert_eq!(run.stderr, "");
    assert!(run.stdout.contains("throughput"));
}

#[test]
fn without_isolation_nothing_starts_unless_that_is_allowed() {
    let setup = Setup::new(&[trajectory("t", &["echo hi"])]);
    let without = |mut command: Command| {
        let forbid = || Filter::of_namespaces(Answer::Error(libc::EPERM)).load().map(drop);
        // SAFETY: between fork and exec it only makes system calls.
        unsafe { command.pre_exec(forbid) };
        Run::of(command.output().unwrap())
    };

    let mut serve = program();
    serve.args(["serve", "--port", "0"]);
    let mut sandbox = program();
    sandbox.args(["sandbox", "--port", "0"]);
    let mut required = setup.command(&["--require-sandbox"]);
    required.env("TOOL_EXECUTOR_ALLOW_UNISOLATED", "1");
    for command in [setup.command(&[]), required, serve, sandbox] {
        let run = without(command);
        assert_eq!((run.code, &*run.stdout), (Some(5), ""), "{run:?}");
        let said: Vec<_> = run.stderr.lines().filter(|line| line.contains("error: ")).collect();
        assert_eq!(said.len(), 1, "{run:?}");
        assert!(said[0].ends_with("--allow-unisolated"), "{run:?}");
    }

    let run = without(setup.command(&["--quiet", "--allow-unisolated"]));
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains("commands run without isolation, as was allowed"));
    assert_eq!(setup.results()[0]["output"], "hi");

    // Without isolation there is no way to take the network away.
    let run = without(setup.command(&["--allow-unisolated", "--no-network"]));
    assert_eq!(run.code, Some(5), "{run:?}");
    assert!(run.stderr.contains("commands cannot be kept from the network"), "{run:?}");
}

/// The directories of runs, in the directory for temporary files `tmp`.
fn runs_in(tmp: &Path) -> Vec<PathBuf> {
    let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    let mine = entries(tmp.to_owned()).flat_map(|data_dir| entries(data_dir.path()));
    mine.map(|run| run.path()).collect()
}

#[test]
fn a_fifo_is_read_to_its_end() {
    let setup = Setup::new(&[]);
    let fifo = setup.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut command = program();
    command.arg("replay").arg(&fifo).arg("--out").arg(setup.path("out.jsonl"));
    let mut child = spawn(command);
    // Opens once the program has opened it; then the only writer is gone.
    fs::write(&fifo, trajectory("t", &["echo hi"])).unwrap();
    wait_until_ended(&mut child);
    assert_eq!(Run::of(child.wait_with_output().unwrap()).code, Some(0));
    assert_eq!(setup.results()[0]["output"], "hi");
}

#[test]
fn control_characters_of_the_input_do_not_reach_the_terminal() {
    let id = "red\u{1b}[31m\nnewline";
    let failing = json!({"id": id, "setup": [bash("false")], "calls": []});
    let mut differing = bash("echo 1");
    differing["recorded_output"] = json!("2");
    let differing = json!({"id": id, "calls": [differing]});
    let setup = Setup::new(&[failing.to_string(), differing.to_string()]);
    let run = setup.replay(&["--compare"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stderr.contains("warning: red\\u{1b}[31m\\nnewline: setup"), "{}", run.stderr);
    assert!(run.stdout.contains("differs     red\\u{1b}[31m\\nnewline~2 call 0"), "{}", run.stdout);
}

fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the program has written so many results, or fails the test.
fn wait_for_lines(child: &mut Child, path: &Path, count: usize) {
    let lines = || fs::read_to_string(path).unwrap_or_default().matches('\n').count();
    wait_until(child, || lines() >= count);
}

#[test]
fn external_tools_go_to_the_tool_server_and_the_token_stays_secret() {
    let server = http::Server::start(|request| match &*request.path {
        "/tools" => http::ok(r#"{"tools":[{"function":{"name":"search"}}]}"#),
        _ => http::ok(r#"{"success":true,"output":"found"}"#),
    });
    let calls = json!([{"name": "search", "arguments": {"q": "x"}}]);
    let setup = Setup::new(&[json!({"trajectory_id": "t", "calls": calls}).to_string()]);
    let mut command = setup.command(&["--tool-server-url", &server.url, "--slots", "1"]);
    command.env("TOOL_EXECUTOR_TOOL_SERVER_TOKEN", "s3cret");
    let run = Run::of(command.output().unwrap());
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(setup.results()[0]["output"], "found");
    let requests: Vec<_> = server.requests.try_iter().collect();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|r| r.authorization.as_deref() == Some("Bearer s3cret")));
    let help = Run::of(
        program()
            .args(["replay", "--help"])
            .env("TOOL_EXECUTOR_TOOL_SERVER_TOKEN", "s3cret")
            .output()
            .unwrap(),
    );
    assert!(help.stdout.contains("--tool-server-url") && !help.stdout.contains("s3cret"));

    // No server: the run does not start, and says why.
    let run = setup.replay(&["--tool-server-url", "http://127.0.0.1:1"]);
    assert_eq!(run.code, Some(5), "{run:?}");
    assert!(run.stderr.contains("the ToolServer does not say what it offers"), "{}", run.stderr);
}
