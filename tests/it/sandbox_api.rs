//! The sandbox server over real sockets: each line of the reference's protocol, over the embedded
//! sandbox; artifacts over a backend that has some.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};
use tool_executor::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactEntry, ArtifactError, ArtifactList,
    ListArtifacts, ReadArtifact,
};
use tool_executor::backend::local::{LocalBackend, LocalConfig};
use tool_executor::backend::{Backend, Container, Execution, ResetReply, SlotRef};
use tool_executor::server::{SandboxServer, ServeError, ServerConfig};
use tool_executor::{BackendError, ToolResult};

use crate::fakes::{Echoes, PATIENCE, one_container};
use crate::http_client::Client;

fn config() -> ServerConfig {
    ServerConfig::new(([127, 0, 0, 1], 0))
}

/// The embedded sandbox behind a port, open to everybody.
fn server(slots: usize) -> (tempfile::TempDir, SandboxServer) {
    let dir = tempfile::tempdir().unwrap();
    let mut local = LocalConfig::with_slots(slots);
    local.data_dir = Some(dir.path().to_owned());
    let backend = LocalBackend::start(local).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need bubblewrap");
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
        ("/execute", br#"{"slot_id": "zz", "args": null, "execution_id": [1, {"a": "\u00e9"}]}"#, 200, r#"{"success": false, "output": "", "error": "Unknown slot: zz", "execution_id": [1, {"a": "\u00e9"}], "metadata": {}}"#.into()),
        ("/execute", br#"{"slot_id": "slot_0", "tool": "nope", "args": null, "timeout": "x"}"#, 200, r#"{"success": false, "output": "", "error": "Unknown tool: nope", "execution_id": null, "metadata": {}}"#.into()),
    ];
    let (_dir, server) = server(2);
    // All on one connection: none of these ends it.
    let mut client = Client::connect(server.addr());
    for (path, body, status, text) in texts {
        let answer = client.ask("POST", path, &[("Content-Type", "text/html")], body);
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
            fails("Access denied: path outside workspace"),
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
        assert_eq!(keys, ["success", "output", "error", "execution_id", "metadata"]);
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
        {"output": "1"},
        {"output": "2"},
        {"success": false, "error": "'NoneType' object has no attribute 'get'"},
        {"success": false, "error": "unhashable type: 'list'"},
        {"error": "Unknown slot: zz", "execution_id": null},
        {"error": "Unknown tool: nope", "execution_id": 7},
        {"output": "3"},
    ]);
    assert!(has(&results, &expected), "{results}");
    let keys = |index: usize| results[index].as_object().unwrap().len();
    assert_eq!((keys(0), keys(2), keys(3), keys(4)), (5, 2, 2, 5));

    // Longer than what is written where it comes along.
    let long = |slot: usize| json!({"slot_id": format!("slot_{slot}"), "tool": "bash", "args": {"command": "yes | head -c 40000"}});
    let body = Value::Array((0..3).map(long).collect()).to_string();
    let results = client.ask("POST", "/batch", &[], body.as_bytes()).json();
    assert!((0..3).all(|slot| results[slot]["output"].as_str().unwrap().len() == 39_999));
}

/// Calls that run until the test lets them end.
struct Waits(usize, Sender<Execution>);

impl Backend for Waits {
    fn start(&self) -> Result<Vec<Container>, BackendError> {
        Ok(one_container(self.0))
    }

    fn execute(&self, _container: usize, batch: Vec<Execution>) {
        for execution in batch {
            self.1.send(execution).unwrap();
        }
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        reply.send(Err(format!("no reset of {}", slot.name)));
    }

    fn isolates(&self) -> bool {
        false
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
        "bwrap_available": false, "stateful_dir": "", "server": version, "features": ["native-1"],
        "instance": idle["instance"],
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
    assert!(begun.elapsed() < PATIENCE && TcpStream::connect(addr).is_err());
    kept.reply.send(ToolResult::ok("nobody wants it"));
}

/// A few files, the same in each slot.
struct Shelf;

impl Backend for Shelf {
    fn start(&self) -> Result<Vec<Container>, BackendError> {
        Ok(one_container(1))
    }

    fn execute(&self, _container: usize, _batch: Vec<Execution>) {}

    fn reset(&self, _slot: &SlotRef, reply: ResetReply) {
        reply.send(Ok(()));
    }

    fn read_artifact(
        &self,
        slot: &SlotRef,
        request: &ReadArtifact,
    ) -> Result<Artifact, ArtifactError> {
        assert_eq!(&*slot.name, "slot_0");
        let path = request.path.clone();
        match &*path {
            "f.txt" => Ok(Artifact {
                // What was asked for, to be seen by the test.
                content: format!("\u{e9} {} ", request.max_bytes).into_bytes(),
                offset: request.offset,
                file_size: 10,
                truncated: true,
                path,
                mime: "text/plain".to_owned(),
                sha256: request.sha256.then(|| "part".to_owned()),
                file_sha256: request.file_sha256.then(|| "whole".to_owned()),
            }),
            "bytes" => Ok(Artifact {
                content: b"a\xff".to_vec(),
                offset: 0,
                file_size: 2,
                truncated: false,
                path,
                mime: "application/octet-stream".to_owned(),
                sha256: None,
                file_sha256: None,
            }),
            "" | "d" => Err(ArtifactError::NotAFile(path)),
            "/etc/passwd" => Err(ArtifactError::Outside),
            "lost" => Err(ArtifactError::SandboxLost("why".to_owned())),
            "broken" => Err(ArtifactError::Io(
                "cannot read it".to_owned(),
                std::io::Error::other("a broken disk"),
            )),
            "panic" => panic!("expected by this test"),
            _ => Err(ArtifactError::NotFound(path)),
        }
    }

    fn list_artifacts(
        &self,
        _slot: &SlotRef,
        request: &ListArtifacts,
    ) -> Result<ArtifactList, ArtifactError> {
        if request.path == "fifo" {
            return Err(ArtifactError::UnsupportedType("fifo".to_owned()));
        }
        let entry = ArtifactEntry {
            path: format!("{}/{}", request.path, request.recursive),
            is_dir: true,
            size: request.max_entries as u64,
            mtime: 1795330170.547766,
        };
        Ok(ArtifactList { entries: vec![entry], truncated: true })
    }

    fn archive_artifacts(
        &self,
        _slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        if request.max_bytes < 100 {
            return Err(ArtifactError::TooLarge { bytes: 265, max: request.max_bytes });
        }
        into.write_all(request.path.as_bytes()).unwrap();
        let entry_count = request.max_entries as u64;
        Ok(ArchiveSummary { bytes: request.path.len() as u64, entry_count, truncated: false })
    }
}

#[test]
fn artifacts() {
    let server = SandboxServer::start(config(), Shelf).unwrap();
    let mut client = Client::connect(server.addr());
    let error = |text: &str| json!({"success": false, "error": text});
    let denied = || error("Access denied: path outside workspace");
    let text = |content: &str| json!({"success": true, "content": content, "encoding": "text"});
    let listed = |path: &str, size: u64| json!({"success": true, "entries": [{"path": path, "is_dir": true, "size": size, "mtime": 1795330170.547766}], "truncated": true});
    let rows = vec![
        (
            "read",
            json!({"path": "f.txt"}),
            200,
            json!({
                "success": true, "content": "\u{e9} 5000000 ", "encoding": "text", "truncated": true, "bytes": 11, "file_size": 10,
                "path": "f.txt", "mime": "text/plain", "sha256": null, "offset": 0, "file_sha256": null,
            }),
        ),
        (
            "read",
            json!({"path": "f.txt", "max_bytes": "4", "encoding": " TEXT "}),
            200,
            text("\u{e9} 4 "),
        ),
        (
            "read",
            json!({"path": "f.txt", "max_bytes": 0, "encoding": null}),
            200,
            text("\u{e9} 1 "),
        ),
        (
            "read",
            json!({"path": "f.txt", "max_bytes": 9_000_000, "encoding": ""}),
            200,
            text("\u{e9} 5000000 "),
        ),
        ("read", json!({"path": "f.txt", "max_bytes": "x"}), 200, text("\u{e9} 5000000 ")),
        (
            "read",
            json!({"path": "f.txt", "include_sha256": 1, "offset": 7, "include_file_sha256": true}),
            200,
            json!({"sha256": "part", "offset": 7, "file_sha256": "whole"}),
        ),
        (
            "read",
            json!({"path": "f.txt", "include_sha256": "", "offset": -7}),
            200,
            json!({"sha256": null, "offset": 0}),
        ),
        ("read", json!({"path": "bytes"}), 200, text("a\u{fffd}")),
        (
            "read",
            json!({"path": "bytes", "encoding": "Base64"}),
            200,
            json!({"content": "Yf8=", "encoding": "base64", "bytes": 2}),
        ),
        ("read", json!({}), 400, error("Not a file: ")),
        ("read", json!({"path": "d"}), 400, error("Not a file: d")),
        ("read", json!({"path": "nope"}), 404, error("Not found: nope")),
        ("read", json!({"path": "/etc/passwd"}), 403, denied()),
        ("read", json!({"path": 7}), 403, denied()),
        ("read", json!({"path": null, "encoding": "hex"}), 403, denied()),
        ("read", json!({"path": "nope", "encoding": "hex"}), 404, error("Not found: nope")),
        (
            "read",
            json!({"path": "f.txt", "encoding": "HEX"}),
            400,
            error("Unsupported encoding: hex"),
        ),
        ("read", json!({"path": "lost"}), 503, error("the sandbox was lost: why")),
        ("read", json!({"path": "broken"}), 500, error("cannot read it: a broken disk")),
        ("read", json!({"path": "panic"}), 503, json!({"success": false})),
        ("list", json!({}), 200, listed("./false", 5000)),
        ("list", json!({"path": "d", "recursive": 1, "max_entries": 7}), 200, listed("d/true", 7)),
        ("list", json!({"path": "fifo"}), 400, error("Unsupported path type: fifo")),
        ("list", json!({"path": []}), 403, denied()),
        (
            "archive",
            json!({}),
            200,
            json!({
                "success": true, "content": "Lg==", "encoding": "base64", "format": "tar.gz", "bytes": 1, "entry_count": 5000,
            }),
        ),
        (
            "archive",
            json!({"format": " TGZ", "path": "d", "max_entries": 3}),
            200,
            json!({"content": "ZA==", "format": "tar.gz", "entry_count": 3}),
        ),
        ("archive", json!({"format": null}), 200, json!({"success": true})),
        (
            "archive",
            json!({"format": "zip", "path": 7}),
            400,
            error("Unsupported archive format: zip"),
        ),
        ("archive", json!({"path": 7}), 403, denied()),
        (
            "archive",
            json!({"max_bytes": 10}),
            413,
            json!({"success": false, "error": "Archive too large: 265 bytes (max 10)", "bytes": 265}),
        ),
    ];
    for (route, mut request, status, expected) in rows {
        request["slot_id"] = json!("slot_0");
        let path = format!("/artifacts/{route}");
        let answer = client.ask("POST", &path, &[], request.to_string().as_bytes());
        assert_eq!(answer.status, status, "{route} {request}: {}", answer.text());
        assert!(has(&answer.json(), &expected), "{route} {request}: {}", answer.text());
    }
}

#[test]
fn a_backend_without_artifacts_says_so() {
    let server = SandboxServer::start(config(), Echoes(1)).unwrap();
    let mut client = Client::connect(server.addr());
    let answer = client.ask("POST", "/artifacts/list", &[], br#"{"slot_id": "slot_0"}"#);
    let text = r#"{"success": false, "error": "this sandbox backend has no artifacts"}"#;
    assert_eq!((answer.status, answer.text()), (501, text));
}

#[test]
fn paths_and_methods_that_there_are_not() {
    let server = SandboxServer::start(config(), Echoes(1)).unwrap();
    let mut client = Client::connect(server.addr());
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/health/", 404),
        ("POST", "/v1/nope", 404),
        ("GET", "/execute", 405),
        ("HEAD", "/execute", 405),
        ("PUT", "/execute", 405),
        ("DELETE", "/slots", 405),
        ("POST", "/health", 405),
        ("OPTIONS", "/batch", 405),
        ("GET", "/artifacts/read", 405),
    ] {
        client.send(method, path, &[], b"");
        let answer = if method == "HEAD" { client.head() } else { client.receive() };
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
        let text = if status == 404 { "404: Not Found" } else { "405: Method Not Allowed" };
        assert!(method == "HEAD" || answer.text() == text, "{method} {path}");
        assert_eq!(answer.headers.contains_key("allow"), status == 405);
    }
    // The head of what GET gives, and nothing after it: the connection goes on.
    for path in ["/health", "/slots"] {
        client.send("HEAD", path, &[], b"");
        let head = client.head();
        let get = client.ask("GET", path, &[], b"");
        assert_eq!((head.status, get.status), (200, 200));
        assert_eq!(head.headers["content-length"], get.body.len().to_string());
    }
}

#[test]
fn with_a_token_everything_but_the_health_needs_it() {
    let mut config = config();
    config.token = Some("secret".to_owned());
    assert!(!format!("{config:?}").contains("secret"));
    let server = SandboxServer::start(config, Echoes(1)).unwrap();
    let mut client = Client::connect(server.addr());
    let routes = [
        ("GET", "/health", 200),
        ("GET", "/slots", 200),
        ("POST", "/execute", 400),
        ("POST", "/batch", 400),
        ("POST", "/reset", 400),
        ("POST", "/artifacts/read", 400),
        ("POST", "/artifacts/list", 400),
        ("POST", "/artifacts/archive", 400),
        ("POST", "/v1/nope", 404),
        ("GET", "/nope", 404),
        ("POST", "/health", 405),
    ];
    let credentials = [
        (None, Some((401, "Missing Authorization header"))),
        (Some("Basic secret"), Some((401, "Invalid Authorization header"))),
        (Some("Bearer nope"), Some((403, "Invalid token"))),
        (Some("Bearer secret"), None),
    ];
    for (method, path, status) in routes {
        for (authorization, refusal) in credentials {
            let headers: Vec<_> =
                authorization.into_iter().map(|value| ("Authorization", value)).collect();
            let answer = client.ask(method, path, &headers, b"");
            match refusal.filter(|_| (method, path) != ("GET", "/health")) {
                Some((status, text)) => {
                    assert_eq!(answer.status, status, "{method} {path} {authorization:?}");
                    assert_eq!(answer.json(), json!({"success": false, "error": text}));
                }
                None => assert_eq!(answer.status, status, "{method} {path} {authorization:?}"),
            }
        }
    }
}

#[test]
fn whether_commands_have_the_network() {
    for (token, no_auth, network) in
        [(None, false, Some(false)), (None, true, None), (Some("t"), false, None)]
    {
        let (tell, told) = unbounded();
        let mut config = config();
        (config.token, config.no_auth) = (token.map(str::to_owned), no_auth);
        let server = SandboxServer::start(config, Waits(1, tell)).unwrap();
        let mut client = Client::connect(server.addr());
        let body = br#"{"slot_id": "slot_0", "tool": "bash"}"#;
        client.send("POST", "/execute", &[("Authorization", "Bearer t")], body);
        let execution = told.recv_timeout(PATIENCE).unwrap();
        let allowed = execution.arguments.get("allow_network").and_then(Value::as_bool);
        assert_eq!(allowed, network, "{token:?} {no_auth}");
        execution.reply.send(ToolResult::ok(""));
        client.receive();
    }
}

#[test]
fn configurations_that_make_no_sense() {
    type Change<'a> = &'a dyn Fn(&mut ServerConfig);
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let started = |change: Change<'_>| {
        let mut config = config();
        change(&mut config);
        SandboxServer::start(config, Echoes(1))
    };
    let wrong: [(Change<'_>, &str); 5] = [
        (&|config| config.addr = everywhere, "needs a token, or no_auth"),
        (&|config| config.token = Some(String::new()), "token"),
        (&|config| config.token = Some("a b".to_owned()), "token"),
        (&|config| config.max_body = 7, "max_body is 7"),
        (&|config| config.read_timeout = Duration::ZERO, "read_timeout is 0ns"),
    ];
    for (change, text) in wrong {
        match started(change) {
            Err(ServeError::Config(told)) => assert!(told.contains(text), "{told}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert!(started(&|config| (config.addr, config.no_auth) = (everywhere, true)).is_ok());
    let token = Some("t".to_owned());
    assert!(started(&|config| (config.addr, config.token) = (everywhere, token.clone())).is_ok());
    let listens = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listens.local_addr().unwrap();
    assert!(matches!(started(&|config| config.addr = addr), Err(ServeError::Listen(..))));
    assert!(matches!(SandboxServer::start(config(), Echoes(0)), Err(ServeError::Backend(_))));
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let mut config = config();
    config.max_body = 1024;
    let server = SandboxServer::start(config, Echoes(1)).unwrap();
    let body = vec![b' '; 1025];
    for path in ["/execute", "/batch", "/reset"] {
        let answer = Client::connect(server.addr()).ask("POST", path, &[], &body);
        let text = r#"{"success": false, "error": "Request Entity Too Large"}"#;
        assert_eq!((answer.status, answer.text()), (413, text), "{path}");
    }
    for path in ["/artifacts/read", "/artifacts/list", "/artifacts/archive"] {
        let answer = Client::connect(server.addr()).ask("POST", path, &[], &body);
        let text = "Maximum request body size 1024 exceeded.";
        assert_eq!((answer.status, answer.text()), (413, text), "{path}");
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    }
    let answer = Client::connect(server.addr()).ask("POST", "/execute", &[], &body[..1024]);
    assert_eq!(answer.status, 400);
}

#[test]
fn a_large_body_is_read() {
    let server = SandboxServer::start(config(), Echoes(1)).unwrap();
    let command = "x".repeat(3_000_000);
    let request =
        json!({"slot_id": "slot_0", "tool": "bash", "args": {"command": command.as_str()}});
    let answer = Client::connect(server.addr()).ask(
        "POST",
        "/batch",
        &[],
        json!([request]).to_string().as_bytes(),
    );
    assert_eq!(answer.json()[0]["output"], command);
}

#[test]
fn whoever_writes_slowly_is_cut_off() {
    let mut config = config();
    config.read_timeout = Duration::from_millis(100);
    let server = SandboxServer::start(config, Echoes(1)).unwrap();
    // In the middle of the head, and in the middle of the body.
    for (text, status) in [
        ("POST /execute HTTP/1.1\r\nHost:", None),
        ("POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{", Some("408")),
    ] {
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.split(' ').nth(1).filter(|_| status.is_some()), status, "{answer}");
    }
}

#[test]
fn many_clients_share_the_slots() {
    let server = Arc::new(SandboxServer::start(config(), Echoes(4)).unwrap());
    let clients: Vec<_> = (0..16)
        .map(|client: usize| {
            let addr = server.addr();
            std::thread::spawn(move || {
                let mut connection = Client::connect(addr);
                for number in 0..50 {
                    let command = format!("{client}.{number}");
                    let slot = format!("slot_{}", (client + number) % 4);
                    let call =
                        json!({"slot_id": slot, "tool": "bash", "args": {"command": command}});
                    connection.post("/execute", &call);
                    assert_eq!(connection.receive().json()["output"], command);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}
