//! The executor over sandbox servers: ours, over real sockets and in real processes, and stock ones,
//! played by a server that answers as the reference does.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use serde_json::{Value, json};
use tool_executor::artifact::{ArchiveArtifacts, ArtifactError, ListArtifacts, ReadArtifact};
use tool_executor::backend::fleet::{FleetBackend, FleetConfig};
use tool_executor::backend::local::{LocalBackend, LocalConfig};
use tool_executor::server::{SandboxServer, ServerConfig};
use tool_executor::{Outcome, Policy, StartError, ToolCall, ToolExecutor};

use crate::fakes::{HandsOver, PATIENCE, Told, bash, result};
use crate::http::{Reply, Request, Server, ok};
use crate::proxy::{Cut, Proxy};

const TOKEN: &str = "s3cret-of-the-fleet";

/// A server of real slots in this process.
fn server(slots: usize) -> SandboxServer {
    let backend = LocalBackend::start(LocalConfig::with_slots(slots)).unwrap();
    SandboxServer::start(config(), backend).unwrap()
}

fn config() -> ServerConfig {
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
    config.token = Some(TOKEN.to_owned());
    config
}

fn url(server: &SandboxServer) -> String {
    format!("http://{}", server.addr())
}

fn fleet(urls: impl IntoIterator<Item = String>) -> FleetConfig {
    let mut config = FleetConfig::new(urls).with_token(TOKEN);
    config.unreachable_timeout = Duration::from_secs(3);
    config.start_timeout = Duration::from_secs(10);
    config
}

fn executor(config: FleetConfig) -> ToolExecutor {
    ToolExecutor::builder().backend(FleetBackend::new(config).unwrap()).start().unwrap()
}

#[test]
fn calls_run_on_all_servers_and_a_released_slot_is_empty() {
    let servers = [server(1), server(1)];
    let executor = executor(fleet(servers.iter().map(url)));
    let write = |id: &str| executor.execute(id, bash(&format!("echo {id} > f; cat f")), None);
    assert_eq!((write("a").output, write("b").output), ("a".to_owned(), "b".to_owned()));
    let addr = |id: &str| executor.slot_of(id).unwrap().addr;
    assert_ne!(addr("a"), addr("b"), "the least loaded container is taken");
    executor.release_trajectory("a", false).unwrap();
    let result = executor.execute("c", bash("ls"), None);
    assert_eq!((result.outcome, &*result.output), (Outcome::Ok, ""), "{}", result.error);
    let failed = executor.execute("b", bash("echo oops >&2; exit 3"), None);
    assert_eq!((failed.outcome, &*failed.output), (Outcome::NonZeroExit, "oops"));
    let late = executor.execute("b", bash("sleep 60"), Some(Duration::from_secs(1)));
    assert_eq!(late.outcome, Outcome::Timeout);
    let call = ToolCall::new("write_file", json!({"path": "g", "content": "\u{1f600}"}));
    assert!(executor.execute("b", call, None).success);
    assert_eq!(executor.execute("b", bash("cat g"), None).output, "\u{1f600}");
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_running_call_is_cancelled_down_to_its_last_process() {
    let server = server(1);
    let executor = executor(fleet([url(&server)]));
    let pending = executor.submit("t", bash("touch began; sleep 1000"), None).unwrap();
    while executor.stats().running == 0 {
        std::thread::yield_now();
    }
    pending.cancel();
    assert_eq!(pending.wait().outcome, Outcome::Cancelled);
    let left = executor.execute("t", bash("pgrep sleep | wc -l"), None);
    assert_eq!(left.output, "0", "{}", left.error);
}

/// Wherever a connection is cut, a command runs once and its caller gets its result.
fn once_whatever_is_cut(route: &'static str, cuts: impl Iterator<Item = Cut>) {
    let server = server(1);
    let proxy = Proxy::before(server.addr());
    let executor = executor(fleet([proxy.url.clone()]));
    let mut calls = 0;
    for cut in cuts {
        let before = proxy.cuts();
        proxy.cut_next(route, cut);
        // One for the request that is cut, at least.
        for _ in 0..2 {
            calls += 1;
            let result = executor.execute("t", bash("echo x >> count; wc -l < count"), None);
            assert_eq!(result.outcome, Outcome::Ok, "{cut:?}: {}", result.error);
            assert_eq!(result.output, calls.to_string(), "{cut:?}");
        }
        if route == "POST /v1/calls" {
            assert!(proxy.cuts() > before, "{cut:?} did not come to pass");
        }
    }
}

#[test]
fn a_request_that_is_cut_anywhere_runs_once() {
    let places = [0, 1, 15, 16, 17, 60, 120, 180, 200, 240, 260, 300];
    once_whatever_is_cut("POST /v1/calls", places.into_iter().map(Cut::Request));
}

#[test]
fn a_response_that_is_cut_anywhere_was_run_once() {
    let places = [0, 1, 9, 15, 17, 40, 80, 100, 110, 120];
    once_whatever_is_cut("POST /v1/calls", places.into_iter().map(Cut::Response));
}

#[test]
fn many_calls_at_once_survive_the_loss_of_requests_and_of_the_stream() {
    const TRAJECTORIES: u64 = 8;
    let server = server(TRAJECTORIES as usize);
    let proxy = Proxy::before(server.addr());
    proxy.cut_next("POST /v1/results", Cut::Response(700));
    let executor = executor(fleet([proxy.url.clone()]));
    let queue = executor.completion_queue(100);
    for round in 1..=12 {
        proxy.cut_next("POST /v1/calls", Cut::Request(round * 40));
        for tag in 0..TRAJECTORIES {
            let command = bash("sleep 0.05; echo x >> count; wc -l < count");
            executor.submit_to(&queue, tag, &format!("t{tag}"), command, None).unwrap();
        }
        for _ in 0..TRAJECTORIES {
            let done = queue.next_timeout(PATIENCE).expect("an answer");
            assert_eq!(done.result.output, round.to_string(), "{}", done.result.error);
        }
        if round % 4 == 0 {
            proxy.cut_all();
        }
    }
    assert!(proxy.cuts() > 10);
}

#[test]
fn a_stream_of_results_that_is_cut_anywhere_is_resumed() {
    let server = server(1);
    let proxy = Proxy::before(server.addr());
    // Each executor's stream is cut once, at another place.
    for place in [1, 20, 90, 110, 150, 160, 200, 300] {
        proxy.cut_next("POST /v1/results", Cut::Response(place));
        let executor = executor(fleet([proxy.url.clone()]));
        for number in 1..=3 {
            // Long enough that the result comes by the stream.
            let command = "sleep 0.02; echo x >> count; wc -l < count";
            let result = executor.execute("t", bash(command), None);
            assert_eq!(result.output, number.to_string(), "{place}: {}", result.error);
        }
        executor.release_trajectory("t", true).unwrap();
        assert!(executor.close().all_threads_ended);
    }
}

#[test]
fn a_slow_call_delays_no_other() {
    let server = server(4);
    let executor = executor(fleet([url(&server)]));
    let queue = executor.completion_queue(100);
    // Waits for the last of the fast ones, which shares nothing with it but its server.
    executor.submit_to(&queue, 0, "slow", bash("sleep 600"), Some(PATIENCE * 10)).unwrap();
    for tag in 1..=30 {
        let id = format!("t{}", tag % 3);
        executor.submit_to(&queue, tag, &id, bash("true"), None).unwrap();
    }
    for _ in 1..=30 {
        let done = queue.next_timeout(PATIENCE).expect("held up by the slow call");
        assert!(done.tag > 0 && done.result.success, "{}", done.result.error);
    }
    executor.cancel_trajectory("slow");
    assert_eq!(queue.next_timeout(PATIENCE).unwrap().result.outcome, Outcome::Cancelled);
}

/// A sandbox server in a process of its own.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(port: u16, slots: usize) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tool-executor"))
            .args(["sandbox", "--port", &port.to_string(), "--slots", &slots.to_string()])
            .env("TOOL_EXECUTOR_SANDBOX_TOKEN", TOKEN)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.contains(TOKEN), "{line}");
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        Self { url: url.unwrap_or_else(|| panic!("{line:?}")).to_owned(), child }
    }

    fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

#[test]
fn a_server_that_is_killed_and_comes_back_loses_its_own_workspaces_only() {
    let mut dies = Process::start(0, 1);
    let lives = Process::start(0, 1);
    let executor = executor(fleet([dies.url.clone(), lives.url.clone()]));
    let touch = bash("echo mine > mine");
    assert!(executor.execute("a", touch.clone(), None).success);
    assert!(executor.execute("b", touch, None).success);
    let on_dying = |id: &str| *executor.slot_of(id).unwrap().addr == *dies.url;
    let (lost, kept) = if on_dying("a") { ("a", "b") } else { ("b", "a") };
    let pending = executor.submit(lost, bash("sleep 1000"), Some(PATIENCE * 10)).unwrap();
    while executor.stats().running == 0 {
        std::thread::yield_now();
    }
    let port = dies.port();
    dies.kill();
    assert!(executor.execute(kept, bash("cat mine"), None).success, "the other notices nothing");
    let _back = Process::start(port, 1);
    let result = pending.wait();
    assert_eq!(result.outcome, Outcome::SandboxLost, "{}", result.error);
    assert!(result.may_have_executed);
    let next = executor.execute(lost, bash("cat mine"), None);
    assert_eq!((next.outcome, next.may_have_executed), (Outcome::SandboxLost, false));
    executor.release_trajectory(lost, true).unwrap();
    let anew = executor.execute(lost, bash("ls"), None);
    assert_eq!((anew.outcome, &*anew.output), (Outcome::Ok, ""), "{}", anew.error);
    assert_eq!(executor.execute(kept, bash("cat mine"), None).output, "mine");
}

#[test]
fn a_server_that_never_comes_back_is_given_up_within_the_bound() {
    let mut server = Process::start(0, 2);
    let executor = executor(fleet([server.url.clone()]));
    assert!(executor.execute("idle", bash("true"), None).success);
    let pending = executor.submit("busy", bash("sleep 1000"), Some(PATIENCE * 10)).unwrap();
    while executor.stats().running == 0 {
        std::thread::yield_now();
    }
    server.kill();
    let result = pending.wait_timeout(PATIENCE).expect("given up");
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::SandboxLost, true));
    let next = executor.execute("idle", bash("true"), None);
    assert_eq!((next.outcome, next.may_have_executed), (Outcome::SandboxLost, false));
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_server_that_hangs_is_given_up_and_used_again_when_it_goes_on() {
    use rustix::process::{Pid, Signal, kill_process};
    let hangs = Process::start(0, 1);
    let lives = Process::start(0, 1);
    let executor = executor(fleet([hangs.url.clone(), lives.url.clone()]));
    for id in ["a", "b"] {
        assert!(executor.execute(id, bash("echo mine > mine"), None).success);
    }
    let on_hanging = |id: &str| *executor.slot_of(id).unwrap().addr == *hangs.url;
    let (lost, kept) = if on_hanging("a") { ("a", "b") } else { ("b", "a") };
    let pid = Pid::from_child(&hangs.child);
    kill_process(pid, Signal::STOP).unwrap();
    let pending = executor.submit(lost, bash("cat mine"), Some(PATIENCE * 10)).unwrap();
    assert_eq!(executor.execute(kept, bash("cat mine"), None).output, "mine");
    let result = pending.wait_timeout(PATIENCE * 2).expect("given up");
    assert_eq!(result.outcome, Outcome::SandboxLost, "{}", result.error);
    kill_process(pid, Signal::CONT).unwrap();
    executor.release_trajectory(lost, true).unwrap();
    let anew = executor.execute(lost, bash("ls"), None);
    assert_eq!((anew.outcome, &*anew.output), (Outcome::Ok, ""), "{}", anew.error);
}

#[test]
fn sigterm_ends_a_server_with_all_that_runs_in_it() {
    let mut server = Process::start(0, 1);
    let executor = executor(fleet([server.url.clone()]));
    let pending = executor.submit("t", bash("sleep 4321"), Some(PATIENCE * 10)).unwrap();
    while executor.stats().running == 0 {
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&server.child);
    // The second one ends the grace.
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(server.child.wait().unwrap().success());
    assert!(!pending.wait_timeout(PATIENCE).expect("answered").success);
    let left = Command::new("pgrep").args(["-f", "sleep 4321"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[test]
fn artifacts_come_from_the_trajectorys_server() {
    let server = server(1);
    let executor = executor(fleet([url(&server)]));
    let make = "mkdir -p d/empty; printf 0123456789 > d/f.txt; ln -s f.txt d/l; seq 200000 > big";
    assert!(executor.execute("t", bash(make), None).success);
    let mut request = ReadArtifact::new("d/f.txt");
    (request.offset, request.max_bytes, request.sha256) = (3, 4, true);
    let part = executor.read_artifact("t", &request).unwrap();
    assert_eq!((&*part.content, part.file_size, part.truncated), (&b"3456"[..], 10, true));
    assert_eq!((&*part.path, &*part.mime), ("d/f.txt", "text/plain"));
    assert_eq!(part.sha256.unwrap().len(), 64);
    let list =
        executor.list_artifacts("t", &ListArtifacts { recursive: true, ..Default::default() });
    let names: Vec<_> = list.unwrap().entries.into_iter().map(|entry| entry.path).collect();
    assert_eq!(names, ["d", "big", "d/empty", "d/f.txt", "d/f.txt"]);
    let mut file = Vec::new();
    let bytes = executor.copy_artifact("t", "big", &mut file).unwrap();
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(bytes == file.len() as u64 && file == expected.as_bytes());
    let (archive, summary) = executor.archive_artifacts("t", &ArchiveArtifacts::default()).unwrap();
    assert_eq!((summary.bytes, summary.entry_count), (archive.len() as u64, 5));
    let tiny = ArchiveArtifacts { max_bytes: 10, ..Default::default() };
    let error = executor.archive_artifacts("t", &tiny).unwrap_err();
    assert!(matches!(error, ArtifactError::TooLarge { max: 10, .. }), "{error}");
    let refused = |path: &str| executor.read_artifact("t", &ReadArtifact::new(path)).unwrap_err();
    assert!(matches!(refused("../x"), ArtifactError::Outside));
    assert!(matches!(refused("nope"), ArtifactError::NotFound(path) if path == "nope"));
    assert!(matches!(refused("d"), ArtifactError::NotAFile(_)));
}

#[test]
fn a_command_cannot_use_the_servers_port_and_the_token_is_not_printed() {
    let server = server(2);
    let executor = executor(fleet([url(&server)]));
    let port = server.addr().port();
    let request =
        r#"{"slot_id":"slot_1","tool":"bash","args":{"command":"touch /workspace/was-here"}}"#;
    let attack = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'POST /execute HTTP/1.1\\r\\nHost: x\\r\\n\
         Content-Length: {}\\r\\nConnection: close\\r\\n\\r\\n%s' '{request}' >&3; head -1 <&3",
        request.len()
    );
    let result = executor.execute("t", bash(&attack), None);
    assert!(result.output.starts_with("HTTP/1.1 401"), "{} {}", result.output, result.error);
    let config = fleet([url(&server)]);
    assert!(!format!("{config:?}").contains(TOKEN));
    let error = ToolExecutor::builder()
        .backend(FleetBackend::new(FleetConfig::new([url(&server)]).with_token("wr0ng")).unwrap())
        .start()
        .unwrap_err();
    let StartError::Backend(error) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains("403") && !error.to_string().contains("wr0ng"), "{error}");
}

#[test]
fn a_server_belongs_to_one_executor_at_a_time() {
    let server = server(1);
    let first = executor(fleet([url(&server)]));
    let mut config = fleet([url(&server)]);
    config.start_timeout = Duration::from_millis(200);
    let backend = FleetBackend::new(config).unwrap();
    let error = ToolExecutor::builder().backend(backend).start().unwrap_err();
    let StartError::Backend(error) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains("another executor"), "{error}");
    first.close();
    executor(fleet([url(&server)]));
}

#[test]
fn a_thousand_sleeping_calls_on_32_servers_take_few_threads() {
    const SERVERS: usize = 32;
    const ALONE: &str = "TOOL_EXECUTOR_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        // In a process of its own: other tests have threads, too.
        let name = "fleet::a_thousand_sleeping_calls_on_32_servers_take_few_threads";
        let child = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
        assert!(child.status.success() && out.contains("1 passed"), "{out}{err}");
        return;
    }
    let mut servers = Vec::new();
    let mut told = Vec::new();
    for _ in 0..SERVERS {
        let (backend, receiver) = HandsOver::new(33);
        servers.push(SandboxServer::start(config(), backend).unwrap());
        told.push(receiver);
    }
    // Resets are answered, calls are kept; but for the last trajectory's.
    let kept: Vec<_> = told.into_iter().map(keep_calls).collect();
    let executor = executor(fleet(servers.iter().map(url)));
    let pending: Vec<_> = (0..1000)
        .map(|n| executor.submit(&format!("t{n}"), bash("sleep"), None).unwrap())
        .collect();
    for _ in 0..1000 {
        let mut select = crossbeam_channel::Select::new();
        for kept in &kept {
            select.recv(kept);
        }
        let ready = select.ready_timeout(PATIENCE).expect("all calls run at once");
        kept[ready].recv().unwrap();
    }
    // Those of the executor; the servers' have other names.
    let ours = ["tool-io", "tool-fn", "tool-fleet", "tool-batcher", "tool-callback", "tool-stock"];
    let threads = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let count = threads.filter(|name| ours.iter().any(|ours| name.starts_with(ours))).count();
    assert!((SERVERS..=100).contains(&count), "{count} threads");
    let fast = executor.execute("fast", bash("fast"), None);
    assert!(fast.success, "{}", fast.error);
    drop(kept);
    pending.into_iter().for_each(|pending| pending.cancel());
}

/// Answers resets and the command `fast`; keeps every other call, and tells of it.
fn keep_calls(told: Receiver<Told>) -> Receiver<()> {
    let (tell, kept) = bounded(2000);
    std::thread::spawn(move || {
        let mut calls = Vec::new();
        for told in told {
            match told {
                Told::Reset(_, reply) => reply.send(Ok(())),
                Told::Execute(execution) if crate::fakes::command(&execution) == "fast" => {
                    execution.reply.send(result(Outcome::Ok));
                }
                Told::Execute(execution) => {
                    calls.push(execution);
                    let _ = tell.send(());
                }
                Told::Cancel(id) => {
                    let place = calls.iter().position(|call| call.id == id);
                    if let Some(place) = place {
                        calls.swap_remove(place).reply.send(result(Outcome::Cancelled));
                    }
                }
            }
        }
    });
    kept
}

/// A stock server of two slots; `execute` answers calls.
fn stock(execute: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
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
    let server = stock(move |request| {
        if request.body.contains("slow") { Reply::Hang(hang.clone()) } else { answer(request) }
    });
    let executor = executor(fleet([server.url.clone()]));
    let slow = executor.submit("slow", bash("slow"), None).unwrap();
    for _ in 0..3 {
        assert_eq!(executor.execute("fast", bash("fast"), None).output, "fast");
    }
    assert!(!slow.is_done());
    drop(let_go);
    let result = slow.wait();
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::SandboxLost, true));
    let again = executor.execute("slow", bash("x"), None);
    assert_eq!((again.outcome, again.may_have_executed), (Outcome::SandboxLost, false));
}

#[test]
fn a_stock_servers_call_is_sent_once_and_what_it_says_is_typed() {
    let server = stock(|request| {
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
        let result = executor.execute(command, bash(command), None);
        assert_eq!(result.outcome, outcome, "{command}: {}", result.error);
        assert!(result.may_have_executed);
        executor.release_trajectory(command, true).unwrap();
    }
    executor.close();
    let sent: Vec<_> =
        server.requests.try_iter().filter(|request| request.path == "/execute").collect();
    assert_eq!(sent.len(), cases.len(), "none is sent twice");
}

#[test]
fn a_call_that_is_too_large_is_refused_by_itself() {
    let server = stock(answer);
    let executor = executor(fleet([server.url.clone()]));
    let large = executor.execute("t", bash(&"x".repeat(1024 * 1024)), None);
    assert_eq!((large.outcome, large.may_have_executed), (Outcome::InvalidCall, false));
    assert!(large.error.contains("1048576 at most"), "{}", large.error);
    assert!(executor.execute("t", bash("x"), None).success);
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
fn the_policy_reaches_the_server() {
    let server = server(1);
    let policy = Policy { allow_network: false, ..Policy::default() };
    let backend = FleetBackend::new(fleet([url(&server)])).unwrap();
    let executor = ToolExecutor::builder().backend(backend).policy(policy).start().unwrap();
    let result = executor.execute("t", bash("ls /sys/class/net"), None);
    assert_eq!(result.metadata["network_isolated"], true);
}
