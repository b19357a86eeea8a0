//! Clients that are slow, or do not read, or are idle, before both servers: they are cut off in
//! time, and nothing else is delayed.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tool_executor::backend::fleet::FleetBackend;
use tool_executor::backend::local::LocalBackend;
use tool_executor::backend::{Backend, Container, Execution, ResetReply, SlotRef};
use tool_executor::config::{FleetConfig, LocalConfig, ServerConfig};
use tool_executor::server::{ExecutorServer, SandboxServer};
use tool_executor::{BackendError, Interrupt, Outcome, ToolExecutor, ToolResult};

use crate::fakes::{PATIENCE, bash, one_container, until};
use crate::http_client::Client;

/// Far below what the calls here take, and what their clients leave unread; but enough for a
/// request to arrive on a busy machine.
const SHORT: Duration = Duration::from_secs(1);

/// Answers every call at once, at such length.
struct Lengthy(usize, usize);

impl Backend for Lengthy {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(one_container(self.0))
    }

    fn execute(&self, _addr: &str, batch: Vec<Execution>) {
        for execution in batch {
            execution.reply.send(ToolResult::ok("x".repeat(self.1)));
        }
    }

    fn reset(&self, _slot: &SlotRef, reply: ResetReply) {
        reply.send(Ok(()));
    }
}

fn impatient() -> ServerConfig {
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
    (config.read_timeout, config.write_timeout, config.no_auth) = (SHORT, SHORT, true);
    config
}

fn executor(backend: impl Backend) -> Arc<ToolExecutor> {
    Arc::new(ToolExecutor::builder().backend(backend).start().unwrap())
}

fn call(trajectory_id: usize) -> Value {
    json!({"trajectory_id": trajectory_id.to_string(),
        "tool": {"name": "bash", "arguments": {"command": "x"}, "uniq_id": "u"}})
}

#[test]
fn a_client_that_does_not_read_its_batch_is_cut_off() {
    const SLOTS: usize = 16;
    let executor = executor(Lengthy(SLOTS, 200_000));
    let server = ExecutorServer::start(impatient(), executor.clone()).unwrap();
    let mut client = Client::connect(server.addr());
    // More than all buffers between here and there hold.
    let calls: Vec<_> = (0..1000).map(|number| call(number % (SLOTS - 1))).collect();
    client.post("/execute_batch", &json!({"calls": calls}));
    until(|| executor.stats().total_requests > 0);
    // Another one's call is not delayed by it.
    let mut another = Client::connect(server.addr());
    another.post("/execute", &call(SLOTS - 1));
    assert_eq!(another.receive().json()["success"], true);
    drop(another);
    until(|| server.connections() == 0);
    // Nor is any of its trajectories, afterwards.
    for number in 0..SLOTS {
        assert!(executor.execute(&number.to_string(), bash("x")).success);
    }
    drop(client);
}

#[test]
fn a_client_that_does_not_read_its_results_is_cut_off_and_gets_them_later() {
    const SLOTS: usize = 300;
    let server = SandboxServer::start(impatient(), Lengthy(SLOTS, 100_000)).unwrap();
    let session = json!({"session": "s"});
    let op =
        |slot: usize| json!({"slot": slot, "seq": 1, "epoch": 1, "tool": "bash", "timeout": 1.0});
    let mut client = Client::connect(server.addr());
    client.post("/v3/session", &session);
    assert_eq!(client.receive().status, 200);
    let ops: Vec<_> = (0..SLOTS).map(op).collect();
    client.post("/v3/calls", &json!({"session": "s", "ops": ops}));
    // They are too many for one answer.
    assert_eq!(client.receive().json(), json!({"results": []}));
    let waiting: Vec<_> = (0..SLOTS).map(|slot| json!([slot, 1])).collect();
    let results = json!({"session": "s", "waiting": waiting});
    let mut deaf = Client::connect(server.addr());
    deaf.post("/v3/results", &results);
    // The plain routes are served meanwhile.
    let mut another = Client::connect(server.addr());
    another.post("/execute", &json!({"slot_id": "slot_0", "tool": "bash", "args": {}}));
    assert_eq!(another.receive().status, 409, "a session has all slots");
    drop((client, another));
    until(|| server.connections() == 0);
    let mut client = Client::connect(server.addr());
    client.post("/v3/results", &results);
    assert_eq!(client.head().status, 200);
    let mut told = 0;
    while told < SLOTS {
        let chunk = client.chunk().expect("the stream goes on");
        let lines = String::from_utf8(chunk).unwrap();
        told += lines.lines().filter(|line| line.contains("\"done\"")).count();
    }
    drop(deaf);
}

#[test]
fn a_beat_names_the_results_that_were_told_in_an_answer() {
    let server = SandboxServer::start(impatient(), Lengthy(2, 1)).unwrap();
    let mut client = Client::connect(server.addr());
    client.post("/v3/session", &json!({"session": "s"}));
    client.receive();
    let op = json!({"slot": 1, "seq": 7, "epoch": 1, "tool": "bash", "timeout": 1.0});
    client.post("/v3/calls", &json!({"session": "s", "ops": [op]}));
    assert_eq!(client.receive().json()["results"][0]["done"]["output"], "x");
    client.post("/v3/results", &json!({"session": "s"}));
    client.head();
    let first = String::from_utf8(client.chunk().unwrap()).unwrap();
    let lines: Vec<Value> = first.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["lease"]["held"], json!([[0, 1], [1, 1]]));
    assert_eq!(lines[1..], [json!({"beat": 0, "told": [[1, 7]]})]);
}

#[test]
fn a_client_that_sends_a_byte_at_a_time_is_cut_off() {
    let executor = executor(Lengthy(1, 1));
    let executor_server = ExecutorServer::start(impatient(), executor).unwrap();
    let sandbox_server = SandboxServer::start(impatient(), Lengthy(1, 1)).unwrap();
    for (addr, path) in [
        (executor_server.addr(), "/execute"),
        (executor_server.addr(), "/execute_batch"),
        (sandbox_server.addr(), "/execute"),
        (sandbox_server.addr(), "/v3/calls"),
    ] {
        // A head that never ends, and a body that does not.
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
        );
        let answer = dribble(addr, &head);
        assert!(!answer.contains(" 200 "), "{path}: {answer}");
        let answer = dribble(addr, &format!("{head}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 408"), "{path}: {answer}");
        // Others are served.
        assert_eq!(Client::connect(addr).ask("GET", "/health", &[], b"").status, 200);
    }
    until(|| executor_server.connections() + sandbox_server.connections() == 0);
}

/// Sends this at once and then a byte at a time, each after a look for an answer; gives that, or
/// how the connection ended.
fn dribble(addr: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(SHORT / 10)).unwrap();
    let began = Instant::now();
    let mut buffer = [0; 1024];
    loop {
        assert!(began.elapsed() < PATIENCE, "it is never cut off");
        // Refused when it is cut off, which reading tells.
        let _ = stream.write_all(b"x");
        match stream.read(&mut buffer) {
            Ok(read) => return String::from_utf8_lossy(&buffer[..read]).into_owned(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return error.to_string(),
        }
    }
}

#[test]
fn a_thousand_idle_connections_do_not_disturb_a_sandbox_server() {
    let mut config = impatient();
    config.read_timeout = PATIENCE;
    let server = SandboxServer::start(config, Lengthy(1, 1)).unwrap();
    let idle: Vec<_> = (0..1000).map(|_| TcpStream::connect(server.addr()).unwrap()).collect();
    until(|| server.connections() == idle.len());
    let fleet = FleetConfig::new([format!("http://{}", server.addr())]);
    let executor = executor(FleetBackend::new(fleet).unwrap());
    assert!(executor.execute("t", bash("x")).success);
    executor.close();
    drop(idle);
    until(|| server.connections() == 0);
}

#[test]
fn the_time_limits_add_up() {
    // Client, executor server, fleet, sandbox server: none of their own limits ends a call,
    // although each is far below it, as the default ones are below the longest calls.
    let local = LocalBackend::start(LocalConfig::new(1)).unwrap();
    let sandbox = SandboxServer::start(impatient(), local).unwrap();
    let mut fleet = FleetConfig::new([format!("http://{}", sandbox.addr())]);
    fleet.unreachable_timeout = Duration::from_secs(1);
    let executor = executor(FleetBackend::new(fleet).unwrap());
    let server = ExecutorServer::start(impatient(), executor.clone()).unwrap();
    let mut client = Client::connect(server.addr());
    let mut body = call(0);
    body["tool"]["arguments"]["command"] = json!("sleep 6; echo done");
    body["timeout_s"] = json!(120);
    client.post("/execute", &body);
    let answer = client.receive();
    assert_eq!(answer.json()["output"], "done", "{}", answer.text());
    let mut batch = Client::connect(server.addr());
    batch.post("/execute_batch", &json!({"calls": [body]}));
    batch.head();
    assert_eq!(batch.line().unwrap()["result"]["output"], "done");
}

#[test]
fn a_server_that_closes_idle_connections_fails_no_call() {
    let mut config = impatient();
    // So short that connections are closed whenever nothing is said on them.
    config.read_timeout = Duration::from_millis(1);
    let server = SandboxServer::start(config, Lengthy(1, 1)).unwrap();
    let fleet = FleetConfig::new([format!("http://{}", server.addr())]);
    let executor = executor(FleetBackend::new(fleet).unwrap());
    for call in 0..200 {
        let result = executor.execute("t", bash("x"));
        assert_eq!(result.outcome, Outcome::Ok, "{call}: {}", result.error);
        if call % 10 == 0 {
            // But for the stream of results.
            until(|| server.connections() <= 1);
        }
    }
}
