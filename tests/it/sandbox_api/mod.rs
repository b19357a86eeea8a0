//! The sandbox server over real sockets: each line of the reference's protocol, over the embedded
//! sandbox; artifacts over a backend that has some.

mod artifacts;
mod serving;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};
use tool_executor::backend::local::LocalBackend;
use tool_executor::backend::{
    Backend, Capabilities, Container, Execution, Isolation, ResetReply, SlotRef,
};
use tool_executor::config::{LocalConfig, ServerConfig};
use tool_executor::server::SandboxServer;
use tool_executor::{BackendError, Interrupt, ToolResult};

use crate::caller::directory;
use crate::fakes::{PATIENCE, one_container, until};
use crate::http_client::Client;

fn config() -> ServerConfig {
    ServerConfig::new(([127, 0, 0, 1], 0))
}

/// The embedded sandbox behind a port, open to everybody.
fn server(slots: usize) -> (tempfile::TempDir, SandboxServer) {
    let dir = directory();
    let mut local = LocalConfig::new(slots);
    local.data_dir = Some(dir.path().to_owned());
    let backend = LocalBackend::start(local).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    let mut config = config();
    config.no_auth = true;
    (dir, SandboxServer::start(config, backend).unwrap())
}

/// Whether `actual` has all that `expected` has; of objects it may have more.
fn has(actual: &Value, expected: &Value) -> bool {
    match (actual, expected) {
        (Value::Object(actual), Value::Object(expected)) => {
            expected.iter().all(|(key, value)| actual.get(key).is_some_and(|own| has(own, value)))
        }
        (Value::Array(actual), Value::Array(expected)) => {
            actual.len() == expected.len()
                && actual.iter().zip(expected).all(|(actual, expected)| has(actual, expected))
        }
        _ => actual == expected,
    }
}

#[test]
fn each_line_of_the_protocol() {
    let unreadable = r#"{"success": false, "error": "Invalid JSON"}"#;
    let raised = |text: &str| format!(r#"{{"success": false, "error": "{text}"}}"#);
    let no_get = |kind: &str| raised(&format!("'{kind}' object has no attribute 'get'"));
    // Exact texts.
    let texts: Vec<(&str, &[u8], u16, String)> = vec![
        ("/execute", b"", 400, unreadable.into()),
        ("/execute", b"{", 400, unreadable.into()),
        ("/batch", b"nope", 400, unreadable.into()),
        ("/reset", b"", 400, unreadable.into()),
        ("/artifacts/read", b"", 400, unreadable.into()),
        ("/artifacts/list", b"{'a': 1}", 400, unreadable.into()),
        ("/artifacts/archive", b"[1,]", 400, unreadable.into()),
        ("/execute", b"[]", 500, no_get("list")),
        ("/execute", b"\"x\"", 500, no_get("str")),
        ("/execute", b"null", 500, no_get("NoneType")),
        ("/execute", b"1.5", 500, no_get("float")),
        ("/reset", b"true", 500, no_get("bool")),
        ("/execute", b"{\"a\": \"\xff\"}", 500, raised(
            "'utf-8' codec can't decode byte 0xff in position 7: invalid start byte",
        )),
        ("/execute", br#"{"slot_id": ["slot_0"]}"#, 500, raised("unhashable type: 'list'")),
        ("/reset", br#"{"slot_id": {}}"#, 500, raised("unhashable type: 'dict'")),
        ("/execute", br#"{"slot_id": "slot_0", "tool": "bash", "args": null}"#, 500, no_get("NoneType")),
        ("/execute", br#"{"slot_id": "slot_0", "tool": "bash", "args": "x"}"#, 500, no_get("str")),
        ("/batch", b"{}", 400, raised("Expected array of requests")),
        ("/batch", b"null", 400, raised("Expected array of requests")),
        ("/batch", b"[]", 200, "[]".into()),
        ("/batch", br#"[{"slot_id": "slot_0", "tool": "bash", "args": {"command": "touch f"}}, "x"]"#, 500, no_get("str")),
        ("/artifacts/read", b"[]", 500, "500 Internal Server Error\n\nServer got itself in trouble".into()),
        ("/artifacts/read", br#"{"slot_id": "slot_0", "encoding": 7}"#, 500, "500 Internal Server Error\n\nServer got itself in trouble".into()),
        ("/artifacts/read", br#"{"slot_id": "zz"}"#, 404, raised("Unknown slot: zz")),
        ("/artifacts/list", b"{}", 404, raised("Unknown slot: ")),
        ("/artifacts/archive", br#"{"slot_id": null}"#, 404, raised("Unknown slot: None")),
        ("/reset", br#"{"slot_id": "zz"}"#, 200, r#"{"success": false, "output": "", "error": "Unknown slot: zz", "execution_id": null, "metadata": {}}"#.into()),
        ("/reset", br#"{"slot_id": "slot_0"}"#, 200, r#"{"success": true, "output": "Reset workspace for slot_0", "error": "", "execution_id": null, "metadata": {}}"#.into()),
        ("/execute", br#"{"slot_id": "zz", "args": null, "execution_id": [1, {"a": "\u00e9"}]}"#, 200, r#"{"success": false, "output": "", "error": "Unknown slot: zz", "execution_id": [1, {"a": "\u00e9"}], "metadata": {}, "outcome": "backend_failed", "may_have_executed": false, "model_attributable": false}"#.into()),
        ("/execute", br#"{"slot_id": "slot_0", "tool": "nope", "args": null, "timeout": "x"}"#, 200, r#"{"success": false, "output": "", "error": "Unknown tool: nope", "execution_id": null, "metadata": {}, "outcome": "unknown_tool", "may_have_executed": false, "model_attributable": true}"#.into()),
    ];
    let (_dir, server) = server(2);
    // All on one connection: none of these ends it.
    let mut client = Client::connect(server.addr());
    for (path, body, status, text) in texts {
        let answer = client.ask("POST", path, &[], body);
        let what = format!("{path} {}", String::from_utf8_lossy(body));
        assert_eq!((answer.status, answer.text()), (status, &*text), "{what}");
        let kind = if text.starts_with('{') || text.starts_with('[') {
            "application/json; charset=utf-8"
        } else {
            "text/plain; charset=utf-8"
        };
        assert_eq!(answer.headers["content-type"], kind, "{what}");
    }

    let bash = |command: &str| json!({"tool": "bash", "args": {"command": command}});
    let with = |mut request: Value, name: &str, value: Value| {
        request[name] = value;
        request
    };
    let fails = |error: &str| json!({"success": false, "output": "", "error": error});
    let times_out = |text: &str| {
        let metadata = json!({"exit_code": -1, "timeout": true, "sandboxed": true});
        json!({"success": false, "error": format!("Command timed out after {text}s"), "metadata": metadata})
    };
    let le = |kind: &str| {
        let error = format!(
            "Failed to execute sandboxed command: '<=' not supported between instances of '{kind}' and 'int'"
        );
        json!({"success": false, "error": error, "metadata": {"sandboxed": true}})
    };
    let not_a_string = json!({
        "success": false,
        "error": "Failed to execute sandboxed command: 'command' must be a string without NULs",
        "metadata": {"sandboxed": true},
    });
    // What at least is in the answer; slot 0 unless said otherwise.
    let calls = vec![
        (
            bash("echo hi"),
            json!({
                "success": true, "output": "hi", "error": "", "execution_id": null,
                "metadata": {"exit_code": 0, "sandboxed": true, "network_isolated": false},
            }),
        ),
        (
            with(bash("echo -n h\u{e9}\u{1f600}"), "execution_id", json!("e1")),
            json!({"output": "h\u{e9}\u{1f600}", "execution_id": "e1"}),
        ),
        (with(bash("true"), "execution_id", json!(1.0)), json!({"execution_id": 1.0})),
        (
            bash("echo out; echo err >&2; exit 3"),
            json!({
                "success": false, "output": "out\n\n[stderr]\nerr", "error": "Exit code: 3", "metadata": {"exit_code": 3},
            }),
        ),
        (json!({"tool": "bash"}), json!({"success": true, "output": "", "error": ""})),
        (json!({"tool": "bash", "args": {}, "unknown": 1}), json!({"success": true, "output": ""})),
        (bash(""), json!({"success": true, "output": ""})),
        (json!({"tool": "bash", "args": {"command": null}}), not_a_string.clone()),
        (json!({"tool": "bash", "args": {"command": ["ls"]}}), not_a_string.clone()),
        (bash("a\0b"), not_a_string),
        (with(bash("test ! -e f; echo $?"), "timeout", json!(null)), json!({"output": "0"})),
        (with(bash("echo 1"), "timeout", json!(true)), json!({"output": "1"})),
        (with(bash("echo 1"), "timeout", json!(1e300)), json!({"output": "1"})),
        (with(bash("sleep 100"), "timeout", json!(0.25)), times_out("0.25")),
        (with(bash("sleep 100"), "timeout", json!(0)), times_out("0")),
        (with(bash("sleep 100"), "timeout", json!(-1)), times_out("-1")),
        (with(bash("sleep 100"), "timeout", json!(-1.5)), times_out("-1.5")),
        (with(bash("sleep 100"), "timeout", json!("30")), le("str")),
        (with(bash("sleep 100"), "timeout", json!([])), le("list")),
        (json!({}), fails("Unknown tool: ")),
        (json!({"tool": null}), fails("Unknown tool: None")),
        (json!({"tool": ["bash"]}), fails("Unknown tool: ['bash']")),
        (json!({"slot_id": null, "tool": "bash"}), fails("Unknown slot: None")),
        (json!({"slot_id": true, "tool": "bash"}), fails("Unknown slot: True")),
        (json!({"slot_id": "", "tool": "bash"}), fails("Unknown slot: ")),
        (
            json!({"tool": "write_file", "args": {"path": "d/e.txt", "content": "h\u{e9}"}, "timeout": "x"}),
            json!({
                "success": true, "output": "Successfully wrote 3 bytes to d/e.txt",
            }),
        ),
        (
            json!({"tool": "read_file", "args": {"path": "d/e.txt"}}),
            json!({"success": true, "output": "h\u{e9}"}),
        ),
        (
            json!({"tool": "read_file", "args": {"path": "nope"}}),
            json!({
                "success": false, "error": "File not found: nope", "metadata": {},
            }),
        ),
        (
            json!({"tool": "read_file", "args": {"path": "../slot_1"}}),
            fails("File not found: ../slot_1"),
        ),
    ];
    for (mut request, expected) in calls {
        if request.get("slot_id").is_none() {
            request["slot_id"] = json!("slot_0");
        }
        let answer = client.ask("POST", "/execute", &[], request.to_string().as_bytes());
        let result = answer.json();
        assert_eq!(answer.status, 200, "{request}");
        assert!(has(&result, &expected), "{request}\n{result}\n{expected}");
        let keys: Vec<&String> = result.as_object().unwrap().keys().collect();
        assert_eq!(keys[..5], ["success", "output", "error", "execution_id", "metadata"]);
        assert_eq!(keys[5..], ["outcome", "may_have_executed", "model_attributable"]);
    }
    // Python's own numbers, which JSON does not have.
    for number in ["NaN", "Infinity"] {
        let body = format!(
            r#"{{"slot_id": "slot_0", "tool": "bash", "args": {{"command": "echo 1"}}, "timeout": {number}}}"#
        );
        assert_eq!(client.ask("POST", "/execute", &[], body.as_bytes()).json()["output"], "1");
    }
}

#[test]
fn a_batch_runs_at_once_in_its_order_and_each_item_fails_alone() {
    let (_dir, server) = server(3);
    let mut client = Client::connect(server.addr());
    let meet = |mine: &str| json!({"tool": "bash", "args": {"command": format!("echo {mine} >> log; cat log | wc -l")}});
    let mut items = vec![
        meet("a"),
        meet("b"),
        json!({"tool": "bash", "args": null, "execution_id": "x"}),
        json!({"slot_id": [], "tool": "bash"}),
        json!({"slot_id": "zz"}),
        json!({"tool": "nope", "execution_id": 7}),
        meet("c"),
    ];
    for item in &mut items {
        if item.get("slot_id").is_none() {
            item["slot_id"] = json!("slot_1");
        }
    }
    let answer = client.ask("POST", "/batch", &[], Value::Array(items).to_string().as_bytes());
    assert_eq!(answer.status, 200);
    let results = answer.json();
    let expected = json!([
        {"output": "1", "outcome": "ok", "may_have_executed": true, "model_attributable": true},
        {"output": "2"},
        {"success": false, "error": "'NoneType' object has no attribute 'get'",
            "outcome": "invalid_call", "may_have_executed": false, "model_attributable": true},
        {"success": false, "error": "unhashable type: 'list'"},
        {"error": "Unknown slot: zz", "execution_id": null, "outcome": "backend_failed",
            "may_have_executed": false, "model_attributable": false},
        {"error": "Unknown tool: nope", "execution_id": 7, "outcome": "unknown_tool",
            "may_have_executed": false, "model_attributable": true},
        {"output": "3"},
    ]);
    assert!(has(&results, &expected), "{results}");
    let keys = |index: usize| results[index].as_object().unwrap().len();
    assert_eq!((keys(0), keys(2), keys(3), keys(4)), (8, 5, 5, 8));

    // Longer than what is written where it comes along.
    let long = |slot: usize| json!({"slot_id": format!("slot_{slot}"), "tool": "bash", "args": {"command": "yes | head -c 40000"}});
    let body = Value::Array((0..3).map(long).collect()).to_string();
    let results = client.ask("POST", "/batch", &[], body.as_bytes()).json();
    assert!((0..3).all(|slot| results[slot]["output"].as_str().unwrap().len() == 39_999));
}

#[test]
fn what_a_call_leaves_running_is_told_after_the_metadata_of_the_protocol() {
    let (_dir, server) = server(1);
    let mut client = Client::connect(server.addr());
    let command = "sleep 99 & until grep -qx sleep /proc/$!/comm; do :; done; echo begun";
    let call = json!({"slot_id": "slot_0", "tool": "bash", "args": {"command": command}});
    let answer = client.ask("POST", "/execute", &[], call.to_string().as_bytes()).json();
    let output = answer["output"].as_str().unwrap();
    assert!(output.starts_with("begun\n[1 background process was ended with"), "{answer}");
    let metadata = answer["metadata"].as_object().unwrap();
    let expected = json!({"count": 1, "names": ["sleep"]});
    assert_eq!(metadata.iter().next_back().unwrap(), (&"ended_processes".to_owned(), &expected));
}

/// Calls that run until the test lets them end.
struct Waits(usize, Sender<Execution>);

impl Backend for Waits {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(one_container(self.0))
    }

    fn execute(&self, _addr: &str, batch: Vec<Execution>) {
        for execution in batch {
            self.1.send(execution).unwrap();
        }
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        reply.send(Err(format!("no reset of {}", slot.name)));
    }

    fn capabilities(&self) -> Capabilities {
        let isolation = Isolation::NotIsolated("a test".to_owned());
        Capabilities::default().with_isolation(isolation)
    }
}

fn waits(slots: usize) -> (SandboxServer, Receiver<Execution>) {
    let (tell, told) = unbounded();
    (SandboxServer::start(config(), Waits(slots, tell)).unwrap(), told)
}

fn one_call(slot: usize, id: &str) -> Value {
    let args = json!({"command": "x", "allow_network": true});
    json!({"slot_id": format!("slot_{slot}"), "tool": "bash", "args": args, "execution_id": id})
}

#[test]
fn what_the_server_tells_of_itself() {
    let (server, told) = waits(2);
    let mut client = Client::connect(server.addr());
    let health = client.ask("GET", "/health", &[], b"");
    let idle = health.json();
    let version = concat!("tool-executor/", env!("CARGO_PKG_VERSION"));
    let expected = json!({
        "status": "ok", "slots": 2, "available": 2, "executing": 0, "data_dir": "",
        "bwrap_available": false, "stateful_dir": "", "server": version, "features": ["native-3", "native-2", "native-1"],
        "spec_fields": [],
        "instance": idle["instance"], "url": format!("http://{}", server.addr()),
    });
    assert_eq!(idle, expected);
    assert!(health.text().starts_with(r#"{"status": "ok", "slots": 2, "#));
    assert!(uuid::Uuid::parse_str(idle["instance"].as_str().unwrap()).is_ok());

    let mut runs = Client::connect(server.addr());
    runs.post("/execute", &one_call(1, "e1"));
    let execution = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(execution.arguments["allow_network"], false, "there is no token");
    assert_eq!(execution.timeout, Duration::from_secs(30));
    let busy = client.ask("GET", "/health?x=1", &[], b"").json();
    assert!(has(&busy, &json!({"slots": 2, "available": 1, "executing": 1})), "{busy}");
    let slots = client.ask("GET", "/slots", &[], b"").json();
    let slot = |name: &str, state: &str, id: Value| json!({"slot_id": name, "state": state, "workspace_dir": "/workspace", "current_execution_id": id});
    let expected =
        [slot("slot_0", "available", json!(null)), slot("slot_1", "executing", json!("e1"))];
    assert_eq!(slots, json!({"slots": expected}));

    execution.reply.send(ToolResult::ok("done"));
    assert_eq!(runs.receive().json()["output"], "done");
    assert_eq!(client.ask("GET", "/health", &[], b"").json(), idle);
    let reset = client.ask("POST", "/reset", &[], br#"{"slot_id": "slot_1"}"#).json();
    let error = "Failed to reset workspace: no reset of slot_1";
    assert!(has(&reset, &json!({"success": false, "error": error})), "{reset}");
}

#[test]
fn a_client_that_goes_away_cancels_nothing_and_closing_lets_calls_end() {
    let (server, told) = waits(2);
    let mut leaves = Client::connect(server.addr());
    leaves.post("/execute", &one_call(0, "e1"));
    let abandoned = told.recv_timeout(PATIENCE).unwrap();
    drop(leaves);
    let mut stays = Client::connect(server.addr());
    stays.post("/execute", &one_call(1, "e2"));
    let awaited = told.recv_timeout(PATIENCE).unwrap();
    let closing = std::thread::spawn(move || server.close(PATIENCE));
    awaited.reply.send(ToolResult::ok("second"));
    assert_eq!(stays.receive().json()["output"], "second");
    assert!(!abandoned.reply.is_cancelled() && !closing.is_finished());
    abandoned.reply.send(ToolResult::ok(""));
    closing.join().unwrap();
}

#[test]
fn dropped_a_server_ends_at_once() {
    let (server, told) = waits(1);
    let addr = server.addr();
    let _idle = Client::connect(addr);
    let mut runs = Client::connect(addr);
    runs.post("/execute", &one_call(0, "e1"));
    let kept = told.recv_timeout(PATIENCE).unwrap();
    let begun = Instant::now();
    drop(server);
    assert!(begun.elapsed() < PATIENCE);
    // A process that another test is just starting has all descriptors until it is another program.
    until(|| TcpStream::connect(addr).is_err());
    kept.reply.send(ToolResult::ok("nobody wants it"));
}
