//! The executor behind its port, over real sockets.

mod begin;
mod leaving;
mod refusals;
mod results;
#[cfg(target_os = "linux")]
mod snapshots;

use std::error::Error;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tool_executor::backend::Backend;
use tool_executor::config::{ExecutorConfig, ServerConfig};
use tool_executor::server::{ExecutorServer, ServeError};
use tool_executor::{Outcome, ToolExecutor, ToolRegistry, ToolResult, ToolSchema};

use crate::fakes::{Echoes, HandsOver, PATIENCE, Told, bash, next, until};
use crate::http_client::{Answer, Client};

/// A server, and the executor behind it.
struct Served {
    server: ExecutorServer,
    executor: Arc<ToolExecutor>,
}

impl Served {
    fn with(backend: impl Backend, configure: impl FnOnce(&mut ServerConfig)) -> Self {
        Self::of(ToolExecutor::builder().backend(backend).start().unwrap(), configure)
    }

    fn of(executor: ToolExecutor, configure: impl FnOnce(&mut ServerConfig)) -> Self {
        let executor = Arc::new(executor);
        let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
        configure(&mut config);
        let server = ExecutorServer::start(config, executor.clone()).unwrap();
        Self { server, executor }
    }

    fn open(backend: impl Backend) -> Self {
        Self::with(backend, |_| {})
    }

    fn with_token(backend: impl Backend) -> Self {
        Self::with(backend, |config| config.token = Some("s3cret".into()))
    }

    fn client(&self) -> Client {
        Client::connect(self.server.addr())
    }

    fn get(&self, path: &str) -> Answer {
        self.client().ask("GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.client().ask("POST", path, &[], body.to_string().as_bytes())
    }

    /// Comes back when `/status` is as wanted.
    fn until_status(&self, wanted: impl Fn(&Value) -> bool) {
        let mut client = self.client();
        until(|| wanted(&client.ask("GET", "/status", &[], b"").json()));
    }
}

fn call_of(trajectory_id: &str, command: &str) -> Value {
    json!({"trajectory_id": trajectory_id,
        "tool": {"name": "bash", "arguments": {"command": command}, "uniq_id": command}})
}

#[test]
fn what_needs_no_token_and_what_there_is_not() {
    let served = Served::with_token(Echoes(3));
    for (path, body) in [
        ("/", r#"{"message":"Atropos-Agent Tool Executor"}"#),
        ("/health", r#"{"status":"ok"}"#),
        ("/health?x=y", r#"{"status":"ok"}"#),
        (
            "/status",
            r#"{"queue_size":0,"total_requests":0,"total_errors":0,"pool":{"total_slots":3,"available_slots":3,"acquired_slots":0,"containers":1,"slots_by_state":{"acquired":0,"available":3},"started":true},"waiting_for_slot":0,"idle_slots":0,"idle_holders":[],"stalled_s":null,"bad_containers":[],"images":{"hits":0,"joins":0,"pulls":0,"waits":0,"waited_s":0.0,"retries":0,"refusals":0}}"#,
        ),
    ] {
        let answer = served.get(path);
        assert_eq!((answer.status, answer.text()), (200, body), "{path}");
        assert_eq!(answer.headers["content-type"], "application/json");
    }
    for (method, path, status, body, header) in [
        ("GET", "/nope", 404, r#"{"detail":"Not Found"}"#, None),
        ("GET", "//evil.example/", 404, r#"{"detail":"Not Found"}"#, None),
        ("GET", "/docs", 404, r#"{"detail":"Not Found"}"#, None),
        ("GET", "/execute", 405, r#"{"detail":"Method Not Allowed"}"#, Some(("allow", "POST"))),
        ("POST", "/health", 405, r#"{"detail":"Method Not Allowed"}"#, Some(("allow", "GET"))),
        ("PUT", "/release", 405, r#"{"detail":"Method Not Allowed"}"#, Some(("allow", "POST"))),
        ("GET", "/health/", 307, "", Some(("location", "/health"))),
        ("POST", "/artifacts/read/?a=b", 307, "", Some(("location", "/artifacts/read?a=b"))),
    ] {
        let answer = served.client().ask(method, path, &[], b"");
        assert_eq!((answer.status, answer.text()), (status, body), "{method} {path}");
        if let Some((name, value)) = header {
            assert_eq!(answer.headers[name], value, "{method} {path}");
        }
    }
}

#[test]
fn a_result_has_the_references_keys_and_says_how_the_call_ended() {
    let served = Served::open(Echoes(2));
    let mut client = served.client();
    let named = |name: &str, arguments: Value| {
        json!({"trajectory_id": "T1", "unknown": [], "timeout_s": null,
            "tool": {"name": name, "arguments": arguments, "uniq_id": "u1", "raw_text": 7}})
    };
    for (body, answer, outcome, executed) in [
        (
            named("bash", json!({"command": "é\u{1f600}"})),
            "{\"success\":true,\"output\":\"é\u{1f600}\",\"error\":\"\",\"metadata\":{},\"uniq_id\":\"u1\",\"outcome\":\"ok\",\"may_have_executed\":true,\"model_attributable\":true}",
            "ok",
            "true",
        ),
        (
            named("nope", json!({})),
            r#"{"success":false,"output":"","error":"Unknown tool: nope","metadata":{},"uniq_id":"u1","outcome":"unknown_tool","may_have_executed":false,"model_attributable":true}"#,
            "unknown_tool",
            "false",
        ),
        (
            named("terminal", json!({"command": "x", "background": "no"})),
            r#"{"success":false,"output":"","error":"terminal background execution is not supported in sandbox","metadata":{},"uniq_id":"u1","outcome":"invalid_call","may_have_executed":false,"model_attributable":true}"#,
            "invalid_call",
            "false",
        ),
        (
            named("execute_bash", json!({"command": "x"})),
            r#"{"success":false,"output":"","error":"Unknown tool: execute_bash","metadata":{"did_you_mean":["bash","terminal"]},"uniq_id":"u1","outcome":"unknown_tool","may_have_executed":false,"model_attributable":true}"#,
            "unknown_tool",
            "false",
        ),
    ] {
        client.send("POST", "/execute?status_code=200", &[], body.to_string().as_bytes());
        let got = client.receive();
        assert_eq!((got.status, got.text()), (200, answer));
        assert_eq!(got.headers["content-type"], "application/json");
        assert_eq!(got.headers["x-tool-outcome"], outcome);
        assert_eq!(got.headers["x-tool-may-have-executed"], executed);
        assert_eq!(got.headers["x-tool-model-attributable"], "true");
    }
    let status = served.get("/status").json();
    assert_eq!((&status["total_requests"], &status["total_errors"]), (&json!(4), &json!(3)));
    assert_eq!(status["pool"]["slots_by_state"], json!({"acquired": 1, "available": 1}));
}

#[test]
fn the_metadata_is_as_the_sandbox_gave_it() {
    let (backend, told) = HandsOver::new(1);
    let served = Served::open(backend);
    let mut client = served.client();
    client.post("/execute", &call_of("t", "c"));
    let mut result = ToolResult::failure(Outcome::NonZeroExit, "Exit code: 3");
    result.output = "out".to_owned();
    result.metadata.insert("exit_code".to_owned(), json!(3));
    result.metadata.insert("sandboxed".to_owned(), json!(true));
    next(&told).execution().reply.send(result);
    let answer = client.receive();
    assert_eq!(
        answer.text(),
        r#"{"success":false,"output":"out","error":"Exit code: 3","metadata":{"exit_code":3,"sandboxed":true},"uniq_id":"c","outcome":"non_zero_exit","may_have_executed":true,"model_attributable":true}"#
    );
    assert_eq!(answer.headers["x-tool-outcome"], "non_zero_exit");
}

#[test]
fn aliases_policy_and_time_limits_as_the_sandbox_sees_them() {
    let (backend, told) = HandsOver::new(1);
    let served = Served::open(backend);
    let policy = json!({"command": "x", "allow_network": true, "require_sandbox": false});
    for (name, arguments, timeout, tool, sent, seconds) in [
        (
            "terminal",
            json!({"command": "x", "require_sandbox": 7}),
            json!(null),
            "bash",
            &policy,
            30.0,
        ),
        ("bash", json!({"command": "x", "timeout": 7.5}), json!(null), "bash", &policy, 7.5),
        ("bash", json!({"command": "x", "timeout": 7.5}), json!("2"), "bash", &policy, 2.0),
        ("bash", json!({"command": "x", "timeout": "9"}), json!(null), "bash", &policy, 9.0),
        ("bash", json!({"command": "x"}), json!(true), "bash", &policy, 1.0),
        ("bash", json!({"command": "x"}), json!(0.1), "bash", &policy, 1.0),
        ("bash", json!({"command": "x"}), json!(1e9), "bash", &policy, 600.0),
        ("bash", json!({"command": "x"}), json!("nan"), "bash", &policy, 1.0),
        (
            "terminal_stateful",
            json!({"command": "x", "allow_network": false, "require_stateful_sandbox": true}),
            json!(null),
            "bash_stateful",
            &json!({"command": "x", "allow_network": true, "require_stateful_sandbox": false}),
            30.0,
        ),
        (
            "read_file",
            json!({"path": "p", "timeout": 5, "extra": null}),
            json!(null),
            "read_file",
            &json!({"path": "p", "timeout": 5, "extra": null}),
            5.0,
        ),
    ] {
        let mut client = served.client();
        client.post(
            "/execute",
            &json!({"trajectory_id": "t", "timeout_s": timeout,
                "tool": {"name": name, "arguments": arguments, "uniq_id": "u"}}),
        );
        let execution = next(&told).execution();
        assert_eq!(execution.tool, tool);
        assert_eq!(&Value::Object(execution.arguments.clone()), sent, "{name}");
        assert_eq!(execution.timeout, Duration::from_secs_f64(seconds), "{name} {timeout}");
        execution.reply.send(ToolResult::ok(""));
        assert_eq!(client.receive().status, 200);
    }
}

#[test]
fn a_release_is_answered_when_it_is_done_and_takes_place_also_for_a_client_that_left() {
    let (backend, told) = HandsOver::new(1);
    let served = Served::open(backend);
    assert_eq!(
        served.post("/release", &json!({"trajectory_id": "nobody"})).text(),
        r#"{"status":"ok"}"#
    );
    for stays in [false, true] {
        let mut client = served.client();
        client.post("/execute", &call_of("t", "c"));
        let execution = next(&told).execution();
        let mut releasing = served.client();
        releasing.post("/release", &json!({"trajectory_id": "t", "reset_workspace": "yes"}));
        // It waits for the call.
        execution.reply.send(ToolResult::ok(""));
        assert_eq!(client.receive().status, 200);
        let (_, reply) = next(&told).reset();
        if stays {
            reply.send(Err("expected by this test".to_owned()));
            assert_eq!(releasing.receive().text(), r#"{"status":"ok"}"#);
            let slots = &served.get("/status").json()["pool"]["slots_by_state"];
            assert_eq!(slots, &json!({"acquired": 0, "available": 0, "broken": 1}));
        } else {
            drop(releasing);
            reply.send(Ok(()));
            served.until_status(|status| status["pool"]["available_slots"] == 1);
        }
    }
}

#[test]
fn without_a_slot_there_are_no_artifacts_but_every_field() {
    let served = Served::open(Echoes(1));
    let error = "No active slot for trajectory (run a sandbox tool first)";
    for (path, answer) in [
        (
            "/artifacts/read",
            format!(
                r#"{{"success":false,"content":"","error":"{error}","encoding":"text","truncated":false,"bytes":0,"file_size":null,"path":"","mime":null,"sha256":null}}"#
            ),
        ),
        (
            "/artifacts/list",
            format!(r#"{{"success":false,"entries":[],"truncated":false,"error":"{error}"}}"#),
        ),
        (
            "/artifacts/archive",
            format!(
                r#"{{"success":false,"content":"","error":"{error}","encoding":"base64","format":"tar.gz","bytes":0,"entry_count":0}}"#
            ),
        ),
    ] {
        let got = served.post(path, &json!({"trajectory_id": "t", "path": "p"}));
        assert_eq!((got.status, got.text()), (200, &*answer));
    }
}

#[test]
fn calls_are_cancelled_by_id_and_by_trajectory() {
    let (backend, told) = HandsOver::new(2);
    let served = Served::open(backend);
    let start = |trajectory_id: &str, command: &str| {
        let mut client = served.client();
        client.post("/execute", &call_of(trajectory_id, command));
        client
    };
    let cancel = |trajectory_id: &str, uniq_id: Value| {
        served.post("/cancel", &json!({"trajectory_id": trajectory_id, "uniq_id": uniq_id})).json()
    };
    let mut one = start("t", "one");
    let running = next(&told).execution();
    let mut other = start("u", "other");
    let others = next(&told).execution();
    let mut two = start("t", "two");
    let mut three = start("t", "three");
    served.until_status(|status| status["queue_size"] == 2);

    assert_eq!(cancel("nobody", json!(null)), json!({"status": "ok", "cancelled": 0}));
    assert_eq!(cancel("t", json!("other")), json!({"status": "ok", "cancelled": 0}));
    assert_eq!(cancel("t", json!("two")), json!({"status": "ok", "cancelled": 1}));
    assert_eq!(two.receive().headers["x-tool-outcome"], "cancelled");
    assert_eq!(cancel("t", json!(null)), json!({"status": "ok", "cancelled": 2}));
    assert_eq!(three.receive().headers["x-tool-outcome"], "cancelled");
    assert!(matches!(next(&told), Told::Cancel(id) if id == running.id));
    running.reply.send(ToolResult::failure(Outcome::Cancelled, "killed"));
    assert_eq!(one.receive().json()["error"], "killed");
    assert!(!others.reply.is_cancelled());
    others.reply.send(ToolResult::ok(""));
    assert_eq!(other.receive().headers["x-tool-outcome"], "ok");
    assert_eq!(cancel("t", json!(null)), json!({"status": "ok", "cancelled": 0}));
}

#[test]
fn a_call_that_is_not_accepted_is_a_result_too() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_queue_capacity(1))
        .start()
        .unwrap();
    let served = Served::of(executor, |_| {});
    let running = served.executor.submit("t", bash("runs")).unwrap();
    let execution = next(&told).execution();
    let waiting = served.executor.submit("t", bash("waits")).unwrap();
    let refused = served.post("/execute", &call_of("t", "refused"));
    assert_eq!(refused.status, 200);
    assert_eq!(refused.json()["success"], false);
    assert_eq!(refused.json()["uniq_id"], "refused");
    assert_eq!(refused.headers["x-tool-outcome"], "never_ran");
    assert_eq!(refused.headers["x-tool-may-have-executed"], "false");
    let mut batch = served.client();
    batch.post("/execute_batch", &json!({"calls": [call_of("t", "x"), call_of("u", "y")]}));
    batch.head();
    assert_eq!(batch.line().unwrap()["outcome"], "never_ran");
    assert_eq!(batch.line().unwrap()["outcome"], "never_ran");
    assert!(batch.line().is_none());

    execution.reply.send(ToolResult::ok(""));
    next(&told).execution().reply.send(ToolResult::ok(""));
    assert!(running.wait_timeout(PATIENCE).unwrap().success);
    assert!(waiting.wait_timeout(PATIENCE).unwrap().success);
    served.executor.close();
    let refused = served.post("/execute", &call_of("t", "late"));
    assert_eq!((refused.status, &refused.json()["success"]), (200, &json!(false)));
    assert!(refused.json()["error"].as_str().unwrap().contains("closed"));
    assert_eq!(served.get("/status").json()["total_requests"], 2);
    assert_eq!(served.post("/release", &json!({"trajectory_id": "t"})).status, 200);
}

#[test]
fn in_process_tools_are_served_too() {
    let mut registry = ToolRegistry::empty();
    let schema = ToolSchema::new("who", "Says whose call it is.");
    registry.register_fn(schema, |context, _| Ok(context.trajectory_id().to_owned())).unwrap();
    let executor = ToolExecutor::builder().registry(registry).start().unwrap();
    let served = Served::of(executor, |_| {});
    let body = json!({"trajectory_id": "t", "tool": {"name": "who", "uniq_id": ""}});
    let answer = served.post("/execute", &body).json();
    assert_eq!((&answer["output"], &answer["uniq_id"]), (&json!("t"), &json!("")));
}

#[test]
fn metrics_need_the_token_and_tell_of_the_calls() {
    let served = Served::with_token(Echoes(1));
    let headers = [("Authorization", "Bearer s3cret")];
    let mut client = served.client();
    for command in ["a", "b"] {
        let body = call_of("t", command).to_string();
        client.ask("POST", "/execute", &headers, body.as_bytes());
    }
    let answer = client.ask("GET", "/metrics", &headers, b"");
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    for line in [
        "tool_executor_calls_total{tool=\"bash\",outcome=\"ok\"} 2",
        "tool_executor_slots{state=\"held\"} 1",
        "tool_executor_queue_size 0",
        "tool_executor_http_connections 1",
        "tool_executor_total_seconds_bucket{le=\"+Inf\"} 2",
        "tool_executor_total_seconds_count 2",
    ] {
        assert!(answer.text().lines().any(|found| found == line), "{line}\n{}", answer.text());
    }
}

#[test]
fn a_thousand_idle_connections_do_not_disturb() {
    let served = Served::open(Echoes(1));
    let idle: Vec<_> =
        (0..1000).map(|_| TcpStream::connect(served.server.addr()).unwrap()).collect();
    until(|| served.server.connections() == idle.len());
    assert_eq!(served.post("/execute", &call_of("t", "c")).json()["output"], "c");
    drop(idle);
    until(|| served.server.connections() == 0);
}

#[test]
fn closing_lets_requests_end_and_cancels_those_that_do_not() {
    let (backend, told) = HandsOver::new(1);
    let Served { server, executor } = Served::open(backend);
    let addr = server.addr();
    let mut client = Client::connect(addr);
    client.post("/execute", &call_of("t", "c"));
    let execution = next(&told).execution();
    thread::scope(|scope| {
        scope.spawn(|| server.close(PATIENCE));
        // It listens no more, and still answers what it was asked.
        until(|| TcpStream::connect(addr).is_err());
        execution.reply.send(ToolResult::ok("in time"));
        assert_eq!(client.receive().json()["output"], "in time");
    });

    let server =
        ExecutorServer::start(ServerConfig::new(([127, 0, 0, 1], 0)), executor.clone()).unwrap();
    let mut client = Client::connect(server.addr());
    client.post("/execute", &call_of("t", "c"));
    let execution = next(&told).execution();
    server.close(Duration::ZERO);
    assert!(matches!(next(&told), Told::Cancel(id) if id == execution.id));
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_with_what_would_be_right() {
    let executor = Arc::new(ToolExecutor::builder().start().unwrap());
    let start = |configure: &dyn Fn(&mut ServerConfig)| {
        let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
        configure(&mut config);
        ExecutorServer::start(config, executor.clone())
    };
    let everywhere = |config: &mut ServerConfig| config.addr.set_ip([0, 0, 0, 0].into());
    let error = start(&everywhere).unwrap_err();
    assert!(
        matches!(&error, ServeError::Config(text) if text.to_string().contains("token")),
        "{error}"
    );
    let open = start(&|config| {
        everywhere(config);
        config.no_auth = true;
    });
    assert!(open.is_ok());
    let secret = |config: &mut ServerConfig| config.token = Some("s3cret".into());
    let guarded = start(&|config| {
        everywhere(config);
        secret(config);
    });
    assert!(guarded.is_ok());
    for wrong in [
        &(|config: &mut ServerConfig| config.token = Some("a b".into()))
            as &dyn Fn(&mut ServerConfig),
        &|config| config.max_body = 0,
        &|config| config.max_connections = 0,
    ] {
        assert!(matches!(start(wrong), Err(ServeError::Config(_))));
    }
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
    secret(&mut config);
    assert!(!format!("{config:?}").contains("s3cret"));

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = start(&|config| config.addr = taken.local_addr().unwrap()).unwrap_err();
    assert!(matches!(error, ServeError::Listen(..)) && error.source().is_some());
}

#[test]
fn the_sandbox_servers_are_told_and_changed_by_those_with_the_token() {
    use tool_executor::backend::fleet::FleetBackend;
    use tool_executor::backend::local::LocalBackend;
    use tool_executor::config::{FleetConfig, LocalConfig};
    use tool_executor::server::SandboxServer;

    let sandbox = || {
        let local = LocalBackend::start(LocalConfig::new(1)).unwrap();
        SandboxServer::start(ServerConfig::new(([127, 0, 0, 1], 0)), local).unwrap()
    };
    let (first, second) = (sandbox(), sandbox());
    let url = |server: &SandboxServer| format!("http://{}", server.addr());
    let served = Served::with_token(FleetBackend::new(FleetConfig::new([url(&first)])).unwrap());
    let token = [("Authorization", "Bearer s3cret")];
    let get = || served.client().ask("GET", "/sandboxes", &token, b"");
    let post = |body: Value| {
        let body = body.to_string();
        served.client().ask("POST", "/sandboxes", &token, body.as_bytes())
    };
    assert_eq!(served.get("/sandboxes").status, 401);
    assert_eq!(served.post("/sandboxes", &json!({"urls": []})).status, 401);
    let mut told = get().json();
    // It is what the disk has.
    told["sandboxes"][0]["image_bytes_free"] = Value::Null;
    let expected = json!({"sandboxes": [{"url": url(&first), "state": "up", "slots": 1,
        "slots_held": 0, "running": 0, "images": 0, "image_pulls": 0, "image_bytes_free": null,
        "image_disk_full": false}], "bad_sandboxes": []});
    assert_eq!(told, expected);
    assert_eq!(post(json!({"urls": [url(&first), url(&second)]})).json(), json!({"status": "ok"}));
    until(|| get().json()["sandboxes"].as_array().unwrap().len() == 2);
    assert_eq!(post(json!({"urls": "x"})).status, 422);
    assert_eq!(post(json!({"urls": [7]})).status, 422);
    let refused = post(json!({"urls": ["nonsense"]}));
    assert_eq!(refused.status, 409);
    assert!(refused.json()["detail"].as_str().unwrap().contains("nonsense"));
    assert_eq!(post(json!({"urls": [url(&second)]})).status, 200);
    until(|| {
        let told = get().json();
        told["sandboxes"].as_array().unwrap().len() == 1
            && told["sandboxes"][0]["url"] == url(&second)
    });
    let status = served.get("/status").json();
    assert_eq!(status["pool"]["containers"], 1);
}

#[test]
#[cfg(target_os = "linux")]
fn files_go_in_and_out_over_http_byte_by_byte() {
    use std::io::Read;

    use tool_executor::backend::local::LocalBackend;
    use tool_executor::config::LocalConfig;

    let backend = LocalBackend::start(LocalConfig::new(1)).unwrap();
    let executor = Arc::new(ToolExecutor::builder().backend(backend).start().unwrap());
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
    // Less than what is put.
    config.max_body = 1 << 20;
    let server = ExecutorServer::start(config, executor.clone()).unwrap();
    let url = |route: &str| format!("http://{}/artifacts/{route}", server.addr());
    let bytes: Vec<u8> = (0..9_000_000u32).map(|n| (n % 253) as u8).collect();
    let put = |line: &str, bytes: &[u8]| {
        let mut body = line.as_bytes().chain(&b"\n"[..]).chain(bytes);
        let answer = ureq::post(url("put"))
            .header("Content-Type", "application/octet-stream")
            .config()
            .http_status_as_error(false)
            .build()
            .send(ureq::SendBody::from_reader(&mut body))
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        let status = answer.status().as_u16();
        (status, answer.into_body().read_to_string().unwrap())
    };
    let (status, answer) =
        put(r#"{"trajectory_id": "t", "path": "/srv/big", "mode": 448}"#, &bytes);
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&answer["path"], &answer["bytes"]), (&json!("/srv/big"), &json!(9_000_000)));
    let copy = |path: &str| {
        let body = json!({"trajectory_id": "t", "path": path}).to_string();
        ureq::post(url("copy")).header("Content-Type", "application/json").send(body).unwrap()
    };
    let whole = copy("/srv/big");
    assert_eq!(whole.headers()["content-length"], "9000000");
    let mut copied = Vec::new();
    whole.into_body().into_reader().read_to_end(&mut copied).unwrap();
    assert!(copied == bytes);
    let missing = copy("nope").into_body().read_to_string().unwrap();
    assert_eq!(missing, r#"{"success":false,"error":"Not found: nope"}"#);
    let (status, answer) = put(r#"{"trajectory_id": "t", "path": "/proc/x"}"#, &bytes);
    assert!(status == 200 && answer.contains("only commands can use it"), "{answer}");
    let (status, answer) = put(r#"{"trajectory_id": "t", "path": "x", "mood": 1}"#, b"");
    assert!(status == 422 && answer.contains("mood"), "{answer}");
    let (status, answer) = put("no JSON", b"");
    assert!(status == 422 && answer.contains("first line"), "{answer}");
}
