//! External tools, over a real socket to a ToolServer that behaves, and to ones that do not.

use std::collections::HashSet;
use std::time::Duration;

use crossbeam_channel::bounded;
use serde_json::{Value, json};
use tool_executor::config::{ExecutorConfig, ToolServerConfig};
use tool_executor::{Outcome, StartError, ToolCall, ToolExecutor};

use crate::fakes::{Echoes, PATIENCE, bash};
use crate::http::{Reply, Request, Server, ok};

const TOOLS: &str = r#"{"tools":[
    {"type":"function","function":{"name":"search","description":"Finds.","parameters":
        {"type":"object","properties":{"q":{"type":"string"}},"required":["q"]}}},
    {"type":"function","function":{"name":"bash","description":"Not yours.","parameters":{}}}]}"#;

/// A ToolServer that offers [`TOOLS`] and answers calls as told.
fn server(execute: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request| match (&*request.method, &*request.path) {
        ("GET", "/tools") => ok(TOOLS),
        ("POST", "/execute") => execute(request),
        _ => Reply::Answer(404, r#"{"detail":"Not Found"}"#.to_owned()),
    })
}

fn executor(config: ToolServerConfig) -> ToolExecutor {
    ToolExecutor::builder()
        .backend(Echoes(4))
        .config(ExecutorConfig::default().with_tool_server(config))
        .start()
        .unwrap()
}

fn search(q: &str) -> ToolCall {
    ToolCall::new("search", json!({"q": q})).with_uniq_id("u1")
}

fn success(output: &str) -> Reply {
    ok(json!({"success": true, "output": output, "error": "", "metadata": {"n": 1}}).to_string())
}

#[test]
fn a_tool_server_offers_its_tools_and_gets_the_calls_context() {
    let server = server(|_| success("found"));
    let executor = executor(ToolServerConfig::new(&server.url).with_token("s3cret"));
    assert_eq!(server.requests.recv().unwrap().path, "/tools");
    let result = executor.execute("t", search("x").with_timeout(Duration::from_secs(7)));
    assert_eq!((result.outcome, &*result.output), (Outcome::Ok, "found"));
    assert_eq!((&result.metadata["n"], result.uniq_id.as_deref()), (&json!(1), Some("u1")));
    let request = server.requests.recv().unwrap();
    assert_eq!(request.authorization.as_deref(), Some("Bearer s3cret"));
    let body: Value = serde_json::from_str(&request.body).unwrap();
    let mut expected = json!({"trajectory_id": "t", "timeout_s": 7.0, "slot_id": null,
        "tool": {"name": "search", "arguments": {"q": "x"}, "uniq_id": "u1"},
        "container_addr": null});
    assert_eq!(body, expected);
    // With a slot, the tool is told which.
    assert!(executor.execute("t", bash("x")).success);
    executor.execute("t", search("x").with_timeout(Duration::from_secs(7)));
    let body: Value = serde_json::from_str(&server.requests.recv().unwrap().body).unwrap();
    expected["slot_id"] = json!("slot_0");
    expected["container_addr"] = json!("fake");
    assert_eq!(body, expected);
    assert!(!format!("{executor:?}").contains("s3cret"));
}

#[test]
fn a_built_in_tool_is_not_taken_over_and_arguments_are_checked_at_the_door() {
    let server = server(|_| success("found"));
    let executor = executor(ToolServerConfig::new(&server.url));
    assert_eq!(server.requests.recv().unwrap().path, "/tools");
    assert_eq!(executor.execute("t", bash("mine")).output, "mine");
    let result = executor.execute("t", ToolCall::new("search", json!({})));
    assert_eq!(result.outcome, Outcome::InvalidCall);
    assert!(server.requests.try_recv().is_err(), "neither reached the ToolServer");
}

#[test]
fn every_way_to_fail_is_a_typed_result() {
    let server = server(|request| {
        let body: Value = serde_json::from_str(&request.body).unwrap();
        match body["tool"]["arguments"]["q"].as_str().unwrap() {
            "refuses" => ok(r#"{"success":false,"output":"part","error":"no such page"}"#),
            "403" => Reply::Answer(403, r#"{"detail":"Invalid token"}"#.to_owned()),
            "500" => Reply::Answer(500, "Internal Server Error".to_owned()),
            "not json" => ok("<html>"),
            "not a result" => ok("[1, 2]"),
            "half a line" => {
                Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"succ".to_vec())
            }
            "nothing" => Reply::Raw(Vec::new()),
            "not http" => Reply::Raw(b"\x00\xff garbage\r\n\r\n".to_vec()),
            "python" => ok(r#"{"success": true, "output": "\ud83d", "metadata": {"x": NaN}}"#),
            other => panic!("{other}"),
        }
    });
    let executor = executor(ToolServerConfig::new(&server.url));
    let cases = [
        ("refuses", Outcome::ToolError, "no such page", true),
        ("403", Outcome::ExternalFailed, "External tool failed: HTTP 403: Invalid token", false),
        ("500", Outcome::ExternalFailed, "HTTP 500: Internal Server Error", true),
        ("not json", Outcome::ExternalFailed, "the answer is not JSON", true),
        ("not a result", Outcome::ExternalFailed, "not of the protocol", true),
        ("half a line", Outcome::ExternalFailed, "External tool failed: ", true),
        ("nothing", Outcome::ExternalFailed, "External tool failed: ", true),
        ("not http", Outcome::ExternalFailed, "External tool failed: ", true),
    ];
    for (q, outcome, text, may_have_executed) in cases {
        let result = executor.execute("t", search(q));
        assert_eq!(result.outcome, outcome, "{q}: {}", result.error);
        assert!(result.error.contains(text), "{q}: {}", result.error);
        assert_eq!(result.may_have_executed, may_have_executed, "{q}");
    }
    assert_eq!(executor.execute("t", search("refuses")).output, "part");
    assert_eq!(executor.execute("t", search("python")).output, "\u{fffd}");
}

#[test]
fn a_tool_server_that_hangs_delays_nobody_but_its_own_callers() {
    let (release, until) = bounded::<()>(0);
    let server = server(move |_| Reply::Hang(until.clone()));
    let mut config = ToolServerConfig::new(&server.url);
    config.concurrency = 2;
    let executor = executor(config);
    let second = Duration::from_secs(1);
    let hanging: Vec<_> = (0..3)
        .map(|t| executor.submit(&format!("h{t}"), search("x").with_timeout(second)).unwrap())
        .collect();
    for round in 0..50 {
        let call = bash(&round.to_string());
        assert_eq!(executor.execute("t", call).output, round.to_string());
    }
    for hanging in hanging {
        let result = hanging.wait_timeout(PATIENCE).unwrap();
        assert_eq!(result.outcome, Outcome::Timeout, "{}", result.error);
        assert!(result.error.contains("timed out after 1.0s"), "{}", result.error);
        assert!(result.may_have_executed);
    }
    drop(release);
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_cancelled_external_call_is_answered_at_once() {
    let (release, until) = bounded::<()>(0);
    let server = server(move |_| Reply::Hang(until.clone()));
    let executor = executor(ToolServerConfig::new(&server.url));
    assert_eq!(server.requests.recv_timeout(PATIENCE).unwrap().path, "/tools");
    let pending = executor.submit("t", search("x").with_timeout(Duration::from_secs(20))).unwrap();
    assert_eq!(server.requests.recv_timeout(PATIENCE).unwrap().path, "/execute");
    pending.cancel();
    let result = pending.wait_timeout(PATIENCE).unwrap();
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::Cancelled, true));
    assert!(executor.close().all_threads_ended, "although the server still hangs");
    drop(release);
}

#[test]
fn a_call_is_sent_once_even_if_its_connection_breaks() {
    let server = server(|_| Reply::Raw(Vec::new()));
    let executor = executor(ToolServerConfig::new(&server.url));
    for _ in 0..10 {
        let result = executor.execute("t", search("x"));
        assert_eq!(result.outcome, Outcome::ExternalFailed);
    }
    executor.close();
    let executed = server.requests.try_iter().filter(|r| r.path == "/execute").count();
    assert_eq!(executed, 10);
}

#[test]
fn a_server_that_closes_its_connections_whenever_it_likes_fails_no_call() {
    let server = server(|request| match success("found") {
        // Neither at once after the answer, nor without a word, nor when it pleases.
        Reply::Answer(status, body) if request.body.contains("close") => {
            Reply::AnswerAndClose(status, body)
        }
        other => other,
    });
    let executor = executor(ToolServerConfig::new(&server.url));
    for call in 0..200 {
        let q = if call % 2 == 0 { "close" } else { "keep" };
        let result = executor.execute("t", search(q));
        assert_eq!(result.output, "found", "{call}: {}", result.error);
    }
    let calls: Vec<_> = server.requests.try_iter().map(|request| request.connection).collect();
    let connections: HashSet<_> = calls.iter().collect();
    assert_eq!(connections.len(), calls.len(), "none is on a connection that was idle");
}

#[test]
fn what_makes_no_sense_or_is_not_there_is_an_error_of_start() {
    let start = |config| {
        ToolExecutor::builder()
            .config(ExecutorConfig::default().with_tool_server(config))
            .start()
            .unwrap_err()
    };
    for url in ["", "localhost:9000", "ftp://x", "http://", "http://user:pass@host"] {
        let error = start(ToolServerConfig::new(url));
        assert!(matches!(error, StartError::ToolServer(_)), "{url}: {error:?}");
    }
    let mut config = ToolServerConfig::new("http://127.0.0.1:1");
    config.concurrency = 0;
    assert!(format!("{:?}", start(config)).contains("from 1 to 256"));
    let token = ToolServerConfig::new("http://127.0.0.1:1").with_token("two\r\nlines");
    let error = format!("{:?}", start(token));
    assert!(error.contains("the token is empty or") && !error.contains("lines"), "{error}");
    // No server listens there.
    let error = start(ToolServerConfig::new("http://127.0.0.1:1"));
    assert!(format!("{error:?}").contains("does not say what it offers"), "{error:?}");
}
