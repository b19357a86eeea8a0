//! Servers that several executors share: each has its slots, they move as they are needed, and no
//! one harms another.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::loss::Process;
use super::*;
use crate::fakes::until;
use crate::http_client::Client;
use crate::program::program;
use crate::stopped::stop;

/// A server of real slots, which gives up an executor that it does not hear of for a second.
fn impatient_server(slots: usize) -> SandboxServer {
    let backend = LocalBackend::start(LocalConfig::new(slots)).unwrap();
    SandboxServer::start(config().with_lease(Duration::from_secs(1)), backend).unwrap()
}

/// How many slots it has, and how many others have.
fn slots(executor: &ToolExecutor) -> (usize, usize) {
    let slots = executor.stats().slots;
    (slots.total, slots.elsewhere)
}

/// Appends a line and counts them: so it says how often it and its like ran in this workspace.
pub(super) fn count() -> ToolCall {
    bash("echo x >> count; wc -l < count")
}

#[test]
fn idle_slots_move_to_an_executor_that_comes_and_back_when_it_goes() {
    let server = server(5);
    let first = executor(fleet([url(&server)]));
    until(|| slots(&first) == (5, 0));
    let began = Instant::now();
    let second = executor(fleet([url(&server)]));
    until(|| slots(&first) == (3, 2) && slots(&second) == (2, 3));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let third = executor(fleet([url(&server)]).with_slots(Some(1)));
    until(|| slots(&first) == (2, 3) && slots(&second) == (2, 3) && slots(&third) == (1, 4));
    for executor in [&first, &second, &third] {
        assert_eq!(executor.execute("t", count()).output, "1");
        assert_eq!(executor.execute("t", count()).output, "2");
    }
    let read = second.read_artifact("t", &ReadArtifact::new("count")).unwrap();
    assert_eq!(read.content, b"x\nx\n");
    let listed = second.list_artifacts("t", &ListArtifacts::new("")).unwrap();
    assert!(listed.entries.iter().any(|entry| entry.path == "count"), "{listed:?}");
    assert!(!second.archive_artifacts("t", &ArchiveArtifacts::new("")).unwrap().0.is_empty());
    assert!(second.close().all_threads_ended && third.close().all_threads_ended);
    until(|| slots(&first) == (5, 0));
    assert_eq!(first.execute("t", count()).output, "3", "what it had it kept");
}

#[test]
fn busy_slots_move_at_their_release_emptied_and_a_start_waits_for_one() {
    let server = server(2);
    let first = executor(fleet([url(&server)]));
    for id in ["a", "b"] {
        assert_eq!(first.execute(id, count()).output, "1");
    }
    let late = fleet([url(&server)]).with_start_timeout(Duration::from_millis(300));
    let late = ToolExecutor::builder().backend(FleetBackend::new(late).unwrap()).start();
    let Err(StartError::Backend(error)) = late else { panic!("there is no slot") };
    assert!(error.to_string().contains("all 2 slots are with 1 other executors"), "{error}");
    let (told, starts) = bounded(1);
    let fleet = fleet([url(&server)]);
    let waits = thread::spawn(move || {
        told.send(()).unwrap();
        executor(fleet)
    });
    starts.recv_timeout(PATIENCE).unwrap();
    first.release("a").unwrap();
    let second = waits.join().unwrap();
    assert_eq!(second.execute("c", bash("ls; echo c > c")).output, "");
    assert_eq!(first.execute("b", count()).output, "2");
    assert_eq!(slots(&first), (1, 1));
    // It waits for a slot, and gets the one that the other gives up.
    let pending = first.submit("a", count()).unwrap();
    second.close();
    assert_eq!(pending.wait_timeout(PATIENCE).unwrap().output, "1");
}

#[test]
fn many_executors_share_many_servers_and_all_get_on() {
    let servers: Vec<_> = (0..4).map(|_| server(4)).collect();
    let urls: Vec<_> = servers.iter().map(url).collect();
    let ranks: Vec<_> = (0..8)
        .map(|rank| {
            // They begin at different servers.
            let mut urls = urls.clone();
            urls.rotate_left(rank % 4);
            thread::spawn(move || {
                let executor = Arc::new(executor(fleet(urls).with_slots(Some(3))));
                let workers: Vec<_> = (0..4)
                    .map(|worker| {
                        let executor = executor.clone();
                        thread::spawn(move || {
                            for round in 0..3 {
                                let id = format!("{rank}-{worker}-{round}");
                                for ran in 1..=3 {
                                    let result = executor.execute(&id, count());
                                    let ran = ran.to_string();
                                    assert_eq!(result.output, ran, "{id}: {}", result.error);
                                }
                                executor.release(&id).unwrap();
                            }
                        })
                    })
                    .collect();
                workers.into_iter().for_each(|worker| worker.join().unwrap());
                executor.close();
            })
        })
        .collect();
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
}

#[test]
fn a_server_that_returns_with_other_slots_is_used() {
    let mut server = Process::start(0, 2);
    let executor = executor(fleet([server.url.clone()]));
    until(|| slots(&executor) == (2, 0));
    assert_eq!(executor.execute("t", count()).output, "1");
    for now in [3, 1] {
        let port = server.port();
        server.kill();
        server = Process::start(port, now);
        until(|| executor.stats().slots.total == now);
        assert_eq!(executor.execute("t", count()).outcome, Outcome::SandboxLost);
        executor.release("t").unwrap();
        for id in 0..now {
            let result = executor.execute(&id.to_string(), count());
            assert_eq!(result.output, "1", "{}", result.error);
        }
        (0..now).for_each(|id| executor.release(&id.to_string()).unwrap());
        assert_eq!(executor.execute("t", count()).output, "1");
    }
}

/// An executor in a process of its own, behind HTTP.
struct Rank {
    child: Child,
    /// What it prints: where it listens, once it has started.
    lines: BufReader<ChildStdout>,
}

impl Rank {
    fn start(urls: &[String]) -> Self {
        let mut child = program()
            .args(["serve", "--port", "0", "--token", TOKEN])
            .args(["--sandbox-url", &urls.join(",")])
            .env("TOOL_EXECUTOR_SANDBOX_TOKEN", TOKEN)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Waits until it has started.
    fn addr(&mut self) -> SocketAddr {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let url = line.split_whitespace().find_map(|word| word.strip_prefix("http://"));
        url.unwrap_or_else(|| panic!("{line:?}")).parse().unwrap()
    }

    fn submit(addr: SocketAddr, id: &str, command: &str) -> Client {
        let mut client = Client::connect(addr);
        let body = json!({"trajectory_id": id,
            "call": {"type": "function_call", "call_id": "c", "name": "bash",
                "arguments": json!({"command": command}).to_string()}});
        let token = format!("Bearer {TOKEN}");
        let headers = [("Authorization", &*token), ("Content-Type", "application/json")];
        client.send("POST", "/execute", &headers, body.to_string().as_bytes());
        client
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

#[test]
fn an_executor_that_was_killed_gives_its_slots_back_after_the_lease() {
    let server = impatient_server(1);
    let mut rank = Rank::start(&[url(&server)]);
    let addr = rank.addr();
    assert_eq!(Rank::submit(addr, "t", "touch mine").receive().json()["success"], true);
    let _running = Rank::submit(addr, "t", "sleep 1000");
    rank.child.kill().unwrap();
    rank.child.wait().unwrap();
    let next = executor(fleet([url(&server)]));
    assert_eq!(next.execute("u", bash("ls; pgrep sleep")).output, "");
}

#[test]
fn an_executor_that_was_stopped_for_longer_than_its_lease_harms_no_one_when_it_goes_on() {
    let server = impatient_server(1);
    let mut rank = Rank::start(&[url(&server)]);
    let addr = rank.addr();
    assert_eq!(Rank::submit(addr, "t", "touch mine").receive().json()["success"], true);
    let mut running = Rank::submit(addr, "t", "sleep 1000");
    stop(Pid::from_child(&rank.child));
    let next = executor(fleet([url(&server)]).with_slots(Some(1)));
    assert_eq!(next.execute("u", count()).output, "1");
    // It wakes with a call at hand for the slot that is another's now.
    let mut late = Rank::submit(addr, "t", "rm -rf * ; echo harm > count");
    rank.signal(Signal::CONT);
    let lost = running.receive().json();
    assert_eq!(lost["outcome"], "sandbox_lost", "{lost}");
    let refused = late.receive().json();
    assert_eq!(refused["outcome"], "sandbox_lost", "{refused}");
    assert_eq!(refused["may_have_executed"], false, "{refused}");
    assert_eq!(next.execute("u", count()).output, "2");
}

#[test]
fn an_executor_that_is_stopped_in_its_start_begins_its_sessions_anew() {
    let first = impatient_server(1);
    let second = Process::start(0, 1);
    let (port, second_url) = (second.port(), second.url.clone());
    drop(second);
    let mut rank = Rank::start(&[url(&first), second_url]);
    until(|| first.unused_since().is_none());
    stop(Pid::from_child(&rank.child));
    // The one slot goes to another when the lease is over.
    executor(fleet([url(&first)])).close();
    rank.signal(Signal::CONT);
    let _second = Process::start(port, 1);
    let addr = rank.addr();
    let mut calls = ["a", "b"].map(|id| Rank::submit(addr, id, "echo hello; sleep 1"));
    let outputs = calls.each_mut().map(|call| call.receive().json()["output"].clone());
    assert_eq!(outputs, [json!("hello"), json!("hello")]);
}

#[test]
fn plain_clients_and_executors_do_not_touch_each_others_slots() {
    let server = server(3);
    let executor = executor(fleet([url(&server)]).with_slots(Some(2)));
    until(|| slots(&executor) == (2, 1));
    for id in ["a", "b"] {
        assert_eq!(executor.execute(id, count()).output, "1");
    }
    let leased = |id: &str| executor.slot_of(id).unwrap().name.to_string();
    let (leased, free) = (leased("a"), {
        let taken = [leased("a"), leased("b")];
        let all = (0..3).map(|slot| format!("slot_{slot}"));
        all.into_iter().find(|slot| !taken.contains(slot)).unwrap()
    });
    let ask = |path: &str, body: Value| {
        let token = format!("Bearer {TOKEN}");
        let headers = [("Authorization", &*token), ("Content-Type", "application/json")];
        let answer =
            Client::connect(server.addr()).ask("POST", path, &headers, body.to_string().as_bytes());
        (answer.status, answer.json())
    };
    let bash = |slot: &str| json!({"slot_id": slot, "tool": "bash", "args": {"command": "ls"}});
    for (path, body) in [
        ("/execute", bash(&leased)),
        ("/reset", json!({"slot_id": leased})),
        ("/artifacts/read", json!({"slot_id": leased, "path": "count"})),
        ("/artifacts/list", json!({"slot_id": leased})),
        ("/artifacts/archive", json!({"slot_id": leased})),
        (
            "/artifacts/read",
            json!({"slot_id": leased, "path": "count", "session": "x", "epoch": 1}),
        ),
    ] {
        assert_eq!(ask(path, body).0, 409, "{path}");
    }
    let (status, batch) = ask("/batch", json!([bash(&leased), bash(&free)]));
    assert_eq!(
        (status, &batch[0]["success"], &batch[1]["success"]),
        (200, &json!(false), &json!(true))
    );
    assert_eq!(batch[0]["may_have_executed"], false, "{batch}");
    assert_eq!(ask("/reset", json!({"slot_id": free})).1["success"], true);
    for id in ["a", "b"] {
        assert_eq!(executor.execute(id, count()).output, "2");
    }
    executor.close();
    until(|| ask("/execute", bash(&leased)).0 == 200);
    assert_eq!(ask("/execute", bash(&leased)).1["output"], "", "it was emptied");
}

#[test]
fn older_versions_of_the_protocol_are_refused_by_name_on_both_sides() {
    let server = server(1);
    let token = format!("Bearer {TOKEN}");
    let headers = [("Authorization", &*token), ("Content-Type", "application/json")];
    for (version, routes) in [("native-1", "/v1"), ("native-2", "/v2")] {
        for route in ["session", "calls", "results"] {
            let mut client = Client::connect(server.addr());
            let path = format!("{routes}/{route}");
            let answer = client.ask("POST", &path, &headers, br#"{"session": "s"}"#);
            assert_eq!(answer.status, 404);
            assert!(answer.text().contains(version) && answer.text().contains("native-3"));
        }
        let old = Server::start(move |request: &Request| match &*request.path {
            "/health" => ok(json!({"status": "ok", "features": [version]}).to_string()),
            other => panic!("it is driven by {other}"),
        });
        let text = starts::refused(fleet([old.url.clone()]));
        assert!(text.contains(version) && text.contains("native-3"), "{text}");
    }
}

#[test]
fn a_lease_of_nothing_or_of_more_than_there_is() {
    let error = FleetBackend::new(fleet(["http://127.0.0.1:1".to_owned()]).with_slots(Some(0)));
    assert!(error.unwrap_err().to_string().contains("at least 1"));
    let server = server(2);
    let greedy = executor(fleet([url(&server)]).with_slots(Some(1_000_000)));
    until(|| slots(&greedy) == (2, 0));
    assert!(greedy.execute("t", count()).success);
    for lease in [Duration::ZERO, Duration::from_secs(3601)] {
        let backend = LocalBackend::start(LocalConfig::new(1)).unwrap();
        let error = SandboxServer::start(config().with_lease(lease), backend).unwrap_err();
        assert!(error.to_string().contains("from 1 s to an hour"), "{error}");
    }
}
