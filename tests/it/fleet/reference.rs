//! Reference servers, played by one that answers as the reference does – or should not.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use crossbeam_channel::bounded;
use serde_json::{Value, json};
use tool_executor::artifact::{ArchiveArtifacts, ArtifactError};
use tool_executor::backend::fleet::FleetBackend;
use tool_executor::config::FleetConfig;
use tool_executor::{Outcome, StartError, ToolCall, ToolExecutor};

use super::{executor, fleet};
use crate::fakes::bash;
use crate::http::{Reply, Request, Server, ok};
use crate::program::program;

/// A reference server of two slots; `execute` answers calls.
fn reference(execute: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request| match &*request.path {
        "/health" => ok(r#"{"status": "ok", "slots": 2}"#),
        "/slots" => ok(r#"{"slots": [{"slot_id": "slot_0"}, {"slot_id": "slot_1"}]}"#),
        "/reset" => ok(r#"{"success": true, "output": "", "error": "", "metadata": {}}"#),
        "/execute" => execute(request),
        other => panic!("{other}"),
    })
}

fn answer(request: &Request) -> Reply {
    let asked: Value = serde_json::from_str(&request.body).unwrap();
    ok(json!({"success": true, "output": asked["args"]["command"], "error": "",
        "execution_id": asked["execution_id"], "metadata": {"exit_code": 0}})
    .to_string())
}

#[test]
fn a_stock_servers_slow_call_delays_no_other() {
    let (let_go, hang) = bounded::<()>(0);
    let server = reference(move |request| {
        if request.body.contains("slow") { Reply::Hang(hang.clone()) } else { answer(request) }
    });
    let executor = executor(fleet([server.url.clone()]));
    let slow = executor.submit("slow", bash("slow")).unwrap();
    for _ in 0..3 {
        assert_eq!(executor.execute("fast", bash("fast")).output, "fast");
    }
    assert!(!slow.is_done());
    drop(let_go);
    let result = slow.wait();
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::SandboxLost, true));
    let again = executor.execute("slow", bash("x"));
    assert_eq!((again.outcome, again.may_have_executed), (Outcome::SandboxLost, false));
}

#[test]
fn an_argument_that_a_stock_server_would_leave_out_is_not_sent_to_it() {
    let server = reference(answer);
    let executor = executor(fleet([server.url.clone()]));
    for (tool, arguments, name) in [
        ("bash", json!({"command": "x", "workdir": "sub"}), "workdir"),
        ("bash", json!({"argv": ["x"]}), "argv"),
        ("terminal", json!({"command": "x", "output_order": "interleaved"}), "output_order"),
        ("write_file", json!({"path": "x", "content": "", "append": true}), "append"),
    ] {
        let result = executor.execute("t", ToolCall::new(tool, arguments));
        let facts = (result.outcome, result.may_have_executed);
        assert_eq!(facts, (Outcome::BackendFailed, false), "{result:?}");
        let said = format!("the sandbox server has no argument '{name}'");
        assert!(result.error.starts_with(&said), "{result:?}");
    }
    let fine = json!({"command": "x", "workdir": null, "output_order": null});
    assert_eq!(executor.execute("t", ToolCall::new("bash", fine)).output, "x");
}

#[test]
fn a_stock_servers_call_is_sent_once_and_what_it_says_is_typed() {
    let server = reference(|request| {
        let asked: Value = serde_json::from_str(&request.body).unwrap();
        match asked["args"]["command"].as_str().unwrap() {
            "half" => Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"s".to_vec()),
            "nothing" => Reply::Raw(Vec::new()),
            "garbage" => ok("<html>"),
            "array" => ok("[]"),
            "another" => ok(r#"{"success": true, "output": "", "execution_id": "e0"}"#),
            "500" => Reply::Answer(500, r#"{"success": false, "error": "boom"}"#.to_owned()),
            "exit" => ok(r#"{"success": false, "error": "Exit code: 1",
                "metadata": {"exit_code": 1}}"#),
            _ => answer(request),
        }
    });
    let executor = executor(fleet([server.url.clone()]));
    let cases = [
        ("half", Outcome::SandboxLost),
        ("nothing", Outcome::SandboxLost),
        ("garbage", Outcome::SandboxLost),
        ("array", Outcome::SandboxLost),
        ("another", Outcome::BackendFailed),
        ("500", Outcome::BackendFailed),
        ("exit", Outcome::NonZeroExit),
        ("fine", Outcome::Ok),
    ];
    for (command, outcome) in cases {
        let result = executor.execute(command, bash(command));
        assert_eq!(result.outcome, outcome, "{command}: {}", result.error);
        assert!(result.may_have_executed);
        executor.release(command).unwrap();
    }
    executor.close();
    let sent: Vec<_> =
        server.requests.try_iter().filter(|request| request.path == "/execute").collect();
    assert_eq!(sent.len(), cases.len(), "none is sent twice");
}

#[test]
fn a_call_that_is_too_large_is_refused_by_itself() {
    let server = reference(answer);
    let executor = executor(fleet([server.url.clone()]));
    let large = executor.execute("t", bash(&"x".repeat(1024 * 1024)));
    assert_eq!((large.outcome, large.may_have_executed), (Outcome::InvalidCall, false));
    assert!(large.error.contains("1048576 at most"), "{}", large.error);
    assert!(executor.execute("t", bash("x")).success);
}

#[test]
fn replay_runs_as_many_trajectories_at_a_time_as_the_servers_have_slots() {
    const SLOTS: usize = 40;
    let all_at_once = std::sync::Arc::new(std::sync::Barrier::new(2 * SLOTS));
    let [one, two] = [(); 2].map(|()| {
        let slots: Vec<_> = (0..SLOTS).map(|n| json!({"slot_id": format!("slot_{n}")})).collect();
        let all_at_once = all_at_once.clone();
        Server::start(move |request| match &*request.path {
            "/health" => ok(r#"{"status": "ok", "bwrap_available": true}"#),
            "/slots" => ok(json!({"slots": slots}).to_string()),
            "/reset" => ok(r#"{"success": true}"#),
            _ => {
                all_at_once.wait();
                answer(request)
            }
        })
    });
    let mut child = program()
        .args(["replay", "-", "--quiet", "--sandbox-url", &one.url, "--sandbox-url", &two.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for n in 0..2 * SLOTS {
        let call = json!({"name": "bash", "arguments": {"command": "x"}});
        writeln!(input, "{}", json!({"trajectory_id": n.to_string(), "calls": [call]})).unwrap();
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("ok 80"), "{out}{err}");
}

#[test]
fn a_stock_servers_refusals_of_artifacts_are_typed() {
    let server = Server::start(|request| match &*request.path {
        "/health" => ok(r#"{"status": "ok", "slots": 1}"#),
        "/slots" => ok(r#"{"slots": [{"slot_id": "slot_0"}]}"#),
        "/reset" => ok(r#"{"success": true}"#),
        "/execute" => answer(request),
        _ => {
            let asked: Value = serde_json::from_str(&request.body).unwrap();
            let refused = |status, error: &str| {
                let told = json!({"success": false, "error": error, "bytes": 734});
                Reply::Answer(status, told.to_string())
            };
            match asked["path"].as_str().unwrap() {
                "big" => refused(413, "Archive too large: 734 bytes (max 3)"),
                "huge" => refused(413, "Maximum request body size 1048576 exceeded."),
                "out" => refused(403, "Access denied: path outside workspace"),
                "fifo" => refused(400, "Unsupported path type: fifo"),
                _ => refused(404, "Not found: nope"),
            }
        }
    });
    let executor = executor(fleet([server.url.clone()]));
    assert!(executor.execute("t", bash("x")).success);
    let refused = |path: &str| {
        let request = ArchiveArtifacts::new(path).with_max_bytes(3).with_max_entries(5);
        executor.archive_artifacts("t", &request).unwrap_err()
    };
    assert!(matches!(refused("big"), ArtifactError::TooLarge { bytes: 734, max: 3 }));
    assert!(matches!(refused("huge"), ArtifactError::Io(text, _) if text.contains("1048576")));
    assert!(matches!(refused("out"), ArtifactError::Outside));
    assert!(matches!(refused("fifo"), ArtifactError::UnsupportedType(path) if path == "fifo"));
    assert!(matches!(refused("nope"), ArtifactError::NotFound(path) if path == "nope"));
}

#[test]
fn a_server_that_is_none_does_not_hold_up_the_start_for_ever() {
    let (_never, hang) = bounded::<()>(0);
    let hangs = Server::start(move |_| Reply::Hang(hang.clone()));
    let garbage = Server::start(|_| Reply::Raw(vec![0; 1000]));
    let sick = Server::start(|_| ok(r#"{"status": "sick"}"#));
    for url in [&*hangs.url, &*garbage.url, &*sick.url, "http://127.0.0.1:1"] {
        let mut config = fleet([url.to_owned()]);
        config.start_timeout = Duration::from_millis(100);
        let backend = FleetBackend::new(config).unwrap();
        let error = ToolExecutor::builder().backend(backend).start().unwrap_err();
        let StartError::Backend(error) = error else { panic!("{error:?}") };
        assert!(error.to_string().contains(url), "{error}");
    }
    for (urls, text) in [
        (vec![], "at least one"),
        (vec!["ftp://x"], "http://host:port would be"),
        (vec!["http://a:1", "http://a:1/"], "twice"),
    ] {
        let error = FleetBackend::new(FleetConfig::new(urls)).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_stock_server_that_closes_its_connections_whenever_it_likes_fails_no_call() {
    let server = reference(|request| match answer(request) {
        Reply::Answer(status, body) if request.body.contains("close") => {
            Reply::AnswerAndClose(status, body)
        }
        other => other,
    });
    let executor = executor(fleet([server.url.clone()]));
    for call in 0..200 {
        let command = if call % 2 == 0 { "close" } else { "keep" };
        let result = executor.execute("t", bash(command));
        assert_eq!(result.output, command, "{call}: {}", result.error);
    }
}

#[test]
fn no_time_limit_of_http_is_below_the_calls_own() {
    let (let_go, hang) = bounded::<()>(0);
    let server = reference(move |request| {
        if request.body.contains("slow") {
            // Longer than anything but a call may take there.
            let _ = hang.recv_timeout(Duration::from_secs(6));
        }
        answer(request)
    });
    let executor = executor(fleet([server.url.clone()]));
    let result = executor.execute("t", bash("slow").with_timeout(Duration::from_secs(120)));
    assert_eq!((result.outcome, &*result.output), (Outcome::Ok, "slow"), "{}", result.error);
    drop(let_go);
}
