//! `tool-executor serve` and `tool-executor sandbox` as the built program, over real sockets.
//!
//! Runs real commands in the embedded sandbox.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::http_client::{Answer, Client};
use crate::program::{program, program_ignoring, signal, wait_until};

mod fakes {
    /// Longer than anything here takes on a busy machine.
    pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
}

#[path = "it/caller.rs"]
mod caller;
#[path = "serve/door.rs"]
mod door;
#[path = "serve/formats.rs"]
mod formats;
#[path = "it/http.rs"]
#[allow(dead_code, reason = "what the other tests need of it")]
mod http;
#[path = "it/http_client.rs"]
#[allow(dead_code, reason = "what the other tests need of it")]
mod http_client;
#[allow(dead_code, reason = "shared with the tests of the other commands")]
mod program;
#[path = "serve/readers.rs"]
mod readers;

/// The program that serves, with a directory of its own for temporary files.
struct Program {
    child: Child,
    addr: SocketAddr,
    headers: Vec<(&'static str, String)>,
    tmp: tempfile::TempDir,
    /// The line that it printed.
    line: String,
}

impl Program {
    /// On a free port, with this token in the environment variable.
    fn start(arguments: &[&str], token: (&str, &str), env: &[(&str, &str)]) -> Self {
        Self::start_as(program(), arguments, token, env)
    }

    fn start_as(
        mut command: Command,
        arguments: &[&str],
        token: (&str, &str),
        env: &[(&str, &str)],
    ) -> Self {
        let tmp = caller::directory();
        let mut child = command
            .args(arguments)
            .args(["--port", "0"])
            .env("TMPDIR", tmp.path())
            .env(token.0, token.1)
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http"));
        let url = url.unwrap_or_else(|| panic!("{line:?}"));
        // Not where it says that others reach it, but where it listens.
        let port = url.rsplit(':').next().unwrap().parse().unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let headers = vec![("Authorization", format!("Bearer {}", token.1))];
        Self { child, addr, headers, tmp, line }
    }

    fn serve(arguments: &[&str], env: &[(&str, &str)]) -> Self {
        let arguments = [&["serve"], arguments].concat();
        Self::start(&arguments, ("TOOL_EXECUTOR_TOKEN", "s3cret-of-serve"), env)
    }

    fn sandbox(arguments: &[&str]) -> Self {
        let arguments = [&["sandbox"], arguments].concat();
        Self::start(&arguments, ("TOOL_EXECUTOR_SANDBOX_TOKEN", "s3cret-of-sandbox"), &[])
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Sends a request on a connection of its own, which is given back.
    fn send(&self, method: &str, path: &str, body: &Value) -> Client {
        let mut client = Client::connect(self.addr);
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (*name, &**value)).collect();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        client.send(method, path, &headers, body.as_bytes());
        client
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send(method, path, body).receive()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self.ask("POST", path, body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    fn bash(&self, trajectory_id: &str, command: &str) -> Value {
        self.post("/execute", &call(trajectory_id, command))
    }

    /// Comes back when a command has made a file of this name.
    fn until_there_is(&self, name: &str) {
        let began = Instant::now();
        while find(self.tmp.path(), name).is_none() {
            assert!(began.elapsed() < fakes::PATIENCE, "there never is {name}");
            // Between two looks, not in the hope that it is so afterwards.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn terminate(&self) {
        signal(&self.child, Signal::TERM);
    }

    /// Waits for the end, which must be a good one.
    fn ends(&mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Errors: it has ended already.
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// A file of this name somewhere in a directory.
fn find(directory: &Path, name: &str) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    entries.map(|entry| entry.path()).find_map(|path| {
        if path.file_name().is_some_and(|own| own == name) {
            return Some(path);
        }
        path.is_dir().then(|| find(&path, name)).flatten()
    })
}

/// All directories in a directory, two levels down: the runs of embedded sandboxes.
fn runs_in(tmp: &Path) -> Vec<std::path::PathBuf> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let mine = entries(tmp).flat_map(|data_dir| entries(&data_dir.path()).collect::<Vec<_>>());
    mine.map(|run| run.path()).filter(|path| path.is_dir()).collect()
}

fn call(trajectory_id: &str, command: &str) -> Value {
    json!({"trajectory_id": trajectory_id,
        "tool": {"name": "terminal", "arguments": {"command": command}, "uniq_id": "u1"}})
}

/// Whether a process runs whose command line has this in it.
fn runs(text: &str) -> bool {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let mut lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).replace('\0', " ").contains(text))
}

/// The files of an archive, by name.
fn unpack(archive: &Value) -> BTreeMap<String, String> {
    let base64 = base64::engine::general_purpose::STANDARD;
    let bytes = base64.decode(archive["content"].as_str().unwrap()).unwrap();
    assert_eq!(archive["bytes"], bytes.len());
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    });
    files.collect()
}

/// Reads, lists and archives what a command has made; `whose` names the workspace on the wire.
fn artifacts(program: &Program, whose: &Value) {
    let with = |mut request: Value| {
        request.as_object_mut().unwrap().extend(whose.as_object().unwrap().clone());
        request
    };
    let read = program.post("/artifacts/read", &with(json!({"path": "d/f.txt"})));
    assert_eq!((&read["content"], &read["file_size"]), (&json!("h\u{e9}"), &json!(3)), "{read}");
    assert_eq!((&read["mime"], &read["truncated"]), (&json!("text/plain"), &json!(false)));
    let request = json!({"path": "d/f.txt", "encoding": "base64", "max_bytes": 1,
        "include_sha256": true});
    let read = program.post("/artifacts/read", &with(request));
    assert_eq!((&read["content"], &read["truncated"]), (&json!("aA=="), &json!(true)), "{read}");
    let sha256 = "aaa9402664f1a41f40ebbc52c9993eb66aeb366602958fdfaa283b71e64db123";
    assert_eq!(read["sha256"], sha256);
    let list = program.post("/artifacts/list", &with(json!({"recursive": true})));
    let entries = list["entries"].as_array().unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(names, ["d", "g", "d/f.txt"]);
    assert!(entries[1]["mtime"].as_f64().unwrap() > 1e9 && entries[1]["size"] == 2);
    let archive = program.post("/artifacts/archive", &with(json!({})));
    let files = [("d/", ""), ("d/f.txt", "h\u{e9}"), ("g", "g\n")];
    let files = files.map(|(name, content)| (name.to_owned(), content.to_owned()));
    assert_eq!(unpack(&archive), files.into());
}

const MAKE: &str = "mkdir d; printf 'h\u{e9}' > d/f.txt; echo g > g";

#[test]
fn a_served_executor_runs_calls_and_gives_their_files() {
    let program = Program::serve(&["--slots", "2"], &[]);
    assert!(program.line.contains("(2 slots, isolation ") && !program.line.contains("s3cret"));
    let made = program.bash("t", MAKE);
    assert_eq!((&made["success"], &made["uniq_id"]), (&json!(true), &json!("u1")), "{made}");
    artifacts(&program, &json!({"trajectory_id": "t"}));
    // Another trajectory finds nothing of it, and neither does the same one after a release.
    assert_eq!(program.bash("u", "ls")["output"], "");
    program.post("/release", &json!({"trajectory_id": "t", "reset_workspace": true}));
    assert_eq!(program.bash("t", "ls")["output"], "");
    let status = program.ask("GET", "/status", &Value::Null).json();
    assert_eq!((&status["total_requests"], &status["total_errors"]), (&json!(3), &json!(0)));
    let metrics = program.ask("GET", "/metrics", &Value::Null);
    let line = "tool_executor_calls_total{tool=\"terminal\",outcome=\"ok\"} 3";
    assert!(metrics.text().lines().any(|found| found == line), "{}", metrics.text());
    assert!(!metrics.text().contains("s3cret"));
}

#[test]
fn a_served_executor_over_sandbox_servers_gives_their_files() {
    let sandbox = Program::sandbox(&["--slots", "1"]);
    let token = [("TOOL_EXECUTOR_SANDBOX_TOKEN", "s3cret-of-sandbox")];
    let program = Program::serve(&["--sandbox-url", &sandbox.url()], &token);
    assert_eq!(program.bash("t", MAKE)["success"], true);
    artifacts(&program, &json!({"trajectory_id": "t"}));
}

#[test]
fn this_machine_is_preferred_where_it_is_beside_sandbox_servers() {
    let sandbox = Program::sandbox(&["--slots", "1"]);
    let token = [("TOOL_EXECUTOR_SANDBOX_TOKEN", "s3cret-of-sandbox")];
    let flags = ["--local-slots", "1", "--limit-memory", "1G", "--sandbox-url", &sandbox.url()];
    let program = Program::serve(&flags, &token);
    assert!(
        program.line.contains("(1 slots and 1 sandbox servers, isolation "),
        "{}",
        program.line
    );
    let at = |trajectory| {
        let answer = program.bash(trajectory, "true");
        answer["metadata"]["container"].as_str().unwrap().to_owned()
    };
    let there = format!("fleet/{}", sandbox.url());
    assert_eq!((at("a"), at("b"), at("a")), ("local/local".into(), there, "local/local".into()));
    let status = program.ask("GET", "/status", &Value::Null).json();
    let of = |number: usize, key: &str| status["backends"][number][key].clone();
    assert_eq!((of(0, "name"), of(0, "free")), (json!("local"), json!(0)));
    assert_eq!((of(1, "name"), of(1, "slots")), (json!("fleet"), json!(1)));
}

#[test]
fn a_sandbox_server_runs_calls_and_gives_their_files() {
    let program = Program::sandbox(&["--slots", "2"]);
    assert!(program.line.contains("(2 slots, isolation ") && !program.line.contains("s3cret"));
    let execute = json!({"slot_id": "slot_1", "tool": "bash", "args": {"command": MAKE}});
    assert_eq!(program.post("/execute", &execute)["success"], true);
    artifacts(&program, &json!({"slot_id": "slot_1"}));
    let list = program.post("/artifacts/list", &json!({"slot_id": "slot_0"}));
    assert_eq!(list["entries"], json!([]));
    program.post("/reset", &json!({"slot_id": "slot_1"}));
    let list = program.post("/artifacts/list", &json!({"slot_id": "slot_1"}));
    assert_eq!(list["entries"], json!([]));
}

#[test]
fn without_the_token_nobody_may() {
    for mut program in [Program::serve(&[], &[]), Program::sandbox(&[])] {
        let body = call("t", "true");
        for (header, status, detail) in [
            (None, 401, "Missing Authorization header"),
            (Some("Basic x"), 401, "Invalid Authorization header"),
            (Some("Bearer wrong"), 403, "Invalid token"),
        ] {
            program.headers =
                header.map(|header| ("Authorization", header.to_owned())).into_iter().collect();
            let answer = program.ask("POST", "/execute", &body);
            assert_eq!(answer.status, status, "{}", answer.text());
            assert!(answer.text().contains(detail), "{}", answer.text());
        }
        assert_eq!(program.ask("GET", "/health", &Value::Null).json()["status"], "ok");
    }
}

#[test]
fn the_environment_variables_of_the_reference_are_honoured() {
    let tools = http::Server::start(|request| match &*request.path {
        "/tools" => http::ok(r#"{"tools":[{"function":{"name":"search"}}]}"#),
        _ => http::ok(r#"{"success":true,"output":"found"}"#),
    });
    let program = Program::serve(
        &[],
        &[
            ("TOOL_EXECUTOR_SLOTS", "3"),
            ("TOOL_EXECUTOR_ALLOW_NETWORK", "0"),
            ("TOOL_EXECUTOR_ACQUIRE_TIMEOUT_S", "0.5"),
            ("TOOL_EXECUTOR_BATCH_WINDOW_MS", "1"),
            ("TOOL_EXECUTOR_MAX_BATCH_SIZE", "7"),
            ("TOOL_EXECUTOR_TIMEOUT_S", "1.5"),
            ("TOOL_EXECUTOR_TOOL_SERVER_URL", &tools.url),
            ("TOOL_EXECUTOR_TOOL_SERVER_TOKEN", "s3cret-of-tools"),
        ],
    );
    assert!(program.line.contains("(3 slots, isolation "), "{}", program.line);
    let result = program.bash("t0", "true");
    assert_eq!(result["metadata"]["network_isolated"], true, "{result}");
    let mut search = call("t0", "x");
    search["tool"]["name"] = json!("search");
    assert_eq!(program.post("/execute", &search)["output"], "found");
    let mut requests = tools.requests.try_iter();
    assert!(requests.all(|r| r.authorization.as_deref() == Some("Bearer s3cret-of-tools")));
    assert_eq!(program.bash("t0", "sleep 60")["metadata"]["timeout"], true);
    // A slot is waited for as long as was said.
    for id in ["t1", "t2"] {
        assert_eq!(program.bash(id, "true")["success"], true);
    }
    let none = program.bash("t3", "true");
    assert!(none["error"].as_str().unwrap().starts_with("Failed to acquire slot"), "{none}");
}

#[test]
fn a_client_that_disconnects_cancels_its_call() {
    let program = Program::serve(&["--slots", "1"], &[]);
    // Another run of this test may be under way on the machine.
    let sleep = format!("sleep 7531.{}", std::process::id());
    let mut body = call("t", &format!("touch began; {sleep}; touch ended"));
    body["timeout_s"] = json!(600);
    let client = program.send("POST", "/execute", &body);
    program.until_there_is("began");
    drop(client);
    // Runs as soon as that one has ended.
    assert_eq!(program.bash("t", "ls")["output"], "began");
    assert!(!runs(&sleep));
}

#[test]
fn a_call_is_cancelled_by_its_name() {
    let program = Program::serve(&["--slots", "1"], &[]);
    let mut body = call("t", "touch began; sleep 7532; touch ended");
    body["timeout_s"] = json!(600);
    let mut client = program.send("POST", "/execute", &body);
    program.until_there_is("began");
    let cancelled = program.post("/cancel", &json!({"trajectory_id": "t", "uniq_id": "u1"}));
    assert_eq!(cancelled, json!({"status": "ok", "cancelled": 1}));
    let answer = client.receive();
    assert_eq!(answer.headers["x-tool-outcome"], "cancelled", "{}", answer.text());
    assert_eq!(program.bash("t", "ls")["output"], "began");
}

#[test]
fn a_signal_leaves_no_process_and_no_directory() {
    for (sleep, mut program, timeout, mut body) in [
        (
            "sleep 7533",
            Program::serve(&["--slots", "2", "--grace-s", "3600"], &[]),
            "timeout_s",
            call("t", "touch began; sleep 7533"),
        ),
        (
            "sleep 7534",
            Program::sandbox(&["--slots", "2", "--grace-s", "3600"]),
            "timeout",
            json!({"slot_id": "slot_0", "tool": "bash", "args": {"command": "touch began; sleep 7534"}}),
        ),
    ] {
        body[timeout] = json!(600);
        let _client = program.send("POST", "/execute", &body);
        wait_until(&mut program.child, || runs(sleep));
        assert!(!runs_in(program.tmp.path()).is_empty());
        program.terminate();
        // It has taken the first one in when it listens no more. The second one ends the grace.
        while std::net::TcpStream::connect(program.addr).is_ok() {
            std::thread::yield_now();
        }
        program.terminate();
        program.ends();
        assert!(!runs(sleep), "{sleep} is left");
        let left = runs_in(program.tmp.path());
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_signal_lets_what_runs_end() {
    let mut program = Program::serve(&["--slots", "1"], &[]);
    let mut client =
        program.send("POST", "/execute", &call("t", "touch began; sleep 1; echo done"));
    program.until_there_is("began");
    program.terminate();
    program.ends();
    assert_eq!(client.receive().json()["output"], "done");
}

#[test]
fn one_signal_ends_a_server_before_a_container_engine_would_kill_it() {
    let mut program = Program::sandbox(&["--slots", "1"]);
    let command = "trap '' TERM; touch began; sleep 7535; sleep 7535";
    let mut body = json!({"slot_id": "slot_0", "tool": "bash", "args": {"command": command}});
    body["timeout"] = json!(600);
    let _client = program.send("POST", "/execute", &body);
    wait_until(&mut program.child, || runs("sleep 7535"));
    let begun = Instant::now();
    program.terminate();
    program.ends();
    assert!(begun.elapsed().as_secs_f64() <= 8.0, "{:?}", begun.elapsed());
    assert!(!runs("sleep 7535"));
}

#[test]
fn a_server_that_was_started_by_nohup_goes_on_when_its_terminal_goes() {
    let token = ("TOOL_EXECUTOR_TOKEN", "s3cret-of-serve");
    let command = program_ignoring(&[Signal::HUP]);
    let mut program = Program::start_as(command, &["serve", "--slots", "1"], token, &[]);
    signal(&program.child, Signal::HUP);
    assert_eq!(program.bash("t", "echo on")["output"], "on");
    program.terminate();
    program.ends();
}

#[test]
fn a_server_whose_standard_output_nobody_reads_serves_and_leaves_nothing() {
    for (arguments, token) in [
        (["serve", "--port", "0"], "TOOL_EXECUTOR_TOKEN"),
        (["sandbox", "--port", "0"], "TOOL_EXECUTOR_SANDBOX_TOKEN"),
    ] {
        let tmp = caller::directory();
        let (reader, gone) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = program();
        command.args(arguments).env("TMPDIR", tmp.path()).env(token, "s3cret");
        let mut child = command.stdout(gone).stderr(Stdio::piped()).spawn().unwrap();
        // The line is in the log instead.
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on http://") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it has ended");
        }
        let url = line.split_whitespace().find_map(|word| word.strip_prefix("http://"));
        let mut client = Client::connect(url.unwrap().parse().unwrap());
        client.send("GET", "/health", &[], b"");
        assert_eq!(client.receive().status, 200);
        assert!(!runs_in(tmp.path()).is_empty());
        signal(&child, Signal::TERM);
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
        assert_eq!(runs_in(tmp.path()), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn a_replay_over_a_sandbox_server_keeps_workspaces_and_takes_its_flags_from_variables() {
    let sandbox = Program::sandbox(&["--slots", "1"]);
    let directory = caller::directory();
    let kept = directory.path().join("kept");
    let input = directory.path().join("in.jsonl");
    let calls = json!([{"name": "bash", "arguments": {"command": MAKE}}]);
    fs::write(&input, json!({"id": "t", "calls": calls}).to_string()).unwrap();
    let output = program()
        .arg("replay")
        .arg(&input)
        .arg("--keep-workspaces")
        .arg(&kept)
        .env("TOOL_EXECUTOR_SANDBOX_URL", sandbox.url())
        .env("TOOL_EXECUTOR_SANDBOX_TOKEN", "s3cret-of-sandbox")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(kept.join("t/d/f.txt")).unwrap(), "h\u{e9}");
}

/// The lines that a program writes to its standard error.
fn errors_of(child: &mut Child) -> crossbeam_channel::Receiver<String> {
    let (tell, lines) = crossbeam_channel::unbounded();
    let errors = BufReader::new(child.stderr.take().unwrap());
    std::thread::spawn(move || {
        // Refused when the test has seen what it wanted.
        errors.lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
    });
    lines
}

/// The next of these lines that has this in it.
fn line_with(lines: &crossbeam_channel::Receiver<String>, text: &str) -> String {
    let deadline = Instant::now() + fakes::PATIENCE;
    loop {
        let line = lines.recv_deadline(deadline);
        let line = line.unwrap_or_else(|error| panic!("no line with {text:?}: {error}"));
        if line.contains(text) {
            return line;
        }
    }
}

#[test]
fn what_the_start_waits_for_is_said_soon_and_a_wrong_scheme_ends_it() {
    // A port that no other program gets, and at which none listens.
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    rustix::net::bind(&socket, &any).unwrap();
    let addr = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    let url = format!("http://{addr}");
    let mut child = program()
        .args(["serve", "--port", "0", "--sandbox-url", &url])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = errors_of(&mut child);
    let line = line_with(&lines, "waiting for");
    assert!(
        line.ends_with(&format!("waiting for {url} (connection refused), up to 60 s")),
        "{line}"
    );
    signal(&child, Signal::TERM);
    program::wait_until_ended(&mut child);

    let sandbox = Program::sandbox(&["--slots", "1"]);
    let wrong = sandbox.url().replace("http:", "https:");
    let mut child = program()
        .args(["serve", "--port", "0", "--sandbox-url", &wrong])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = errors_of(&mut child);
    let line = line_with(&lines, "it speaks http, not https");
    assert!(line.ends_with(&sandbox.url()), "{line}");
    program::wait_until_ended(&mut child);
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn an_idle_trajectory_loses_its_slot_is_named_and_is_told_at_its_next_call() {
    let mut command = program();
    command.stderr(Stdio::piped());
    let arguments = ["serve", "--slots", "1", "--idle-limit-s", "0.2"];
    let mut program =
        Program::start_as(command, &arguments, ("TOOL_EXECUTOR_TOKEN", "s3cret-of-serve"), &[]);
    let lines = errors_of(&mut program.child);
    assert_eq!(program.bash("forgotten", "touch f")["outcome"], "ok");
    // The only slot, without a release.
    let result = program.bash("other", "ls");
    assert_eq!((&result["outcome"], &result["output"]), (&json!("ok"), &json!("")));
    let line = line_with(&lines, "idle_limit");
    let text = "the idle_limit of 0.2 s is over, slots are taken back: forgotten";
    assert!(line.ends_with(text), "{line}");
    let result = program.bash("forgotten", "ls");
    assert_eq!(result["outcome"], "sandbox_lost", "{result}");
    assert_eq!(
        (&result["may_have_executed"], &result["model_attributable"]),
        (&json!(false), &json!(false))
    );
    assert!(result["metadata"]["idle_s"].as_f64().unwrap() >= 0.2);
    program.post("/release", &json!({"trajectory_id": "forgotten", "reset_workspace": true}));
    assert_eq!(program.bash("forgotten", "ls")["outcome"], "ok");
}
