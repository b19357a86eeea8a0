//! The executor over sandbox servers: ours, over real sockets and in real processes, and reference
//! ones.

mod bad;
mod cuts;
mod ending;
mod files;
mod growing;
mod images;
mod loss;
mod misbehaving;
mod partition;
mod reference;
mod sharing;
mod snapshots;
mod soak;
mod specs;
mod starts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use serde_json::json;
use tool_executor::artifact::{ArchiveArtifacts, ArtifactError, ListArtifacts, ReadArtifact};
use tool_executor::backend::Backend;
use tool_executor::backend::fleet::FleetBackend;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{
    ExecutorConfig, FleetConfig, LocalConfig, Policy, ServerConfig, ToolServerConfig,
};
use tool_executor::server::{ExecutorServer, SandboxServer};
use tool_executor::stats::{Enforcement, IsolationLevel};
use tool_executor::{Interrupt, Outcome, StartError, ToolCall, ToolExecutor, ToolResult};

use crate::alone::is_alone;
use crate::fakes::{HandsOver, PATIENCE, Told, bash, result};
use crate::http::{Request, Server, ok};

const TOKEN: &str = "s3cret-of-the-fleet";

/// A server of real slots in this process.
fn server(slots: usize) -> SandboxServer {
    let backend = LocalBackend::start(LocalConfig::new(slots)).unwrap();
    SandboxServer::start(config(), backend).unwrap()
}

fn config() -> ServerConfig {
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
    config.token = Some(TOKEN.into());
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
    let write = |id: &str| executor.execute(id, bash(&format!("echo {id} > f; cat f")));
    assert_eq!((write("a").output, write("b").output), ("a".to_owned(), "b".to_owned()));
    let addr = |id: &str| executor.slot_of(id).unwrap().addr;
    assert_ne!(addr("a"), addr("b"), "the least loaded container is taken");
    executor.release_keeping_files("a").unwrap();
    let result = executor.execute("c", bash("ls"));
    assert_eq!((result.outcome, &*result.output), (Outcome::Ok, ""), "{}", result.error);
    let failed = executor.execute("b", bash("echo oops >&2; exit 3"));
    assert_eq!((failed.outcome, &*failed.output), (Outcome::NonZeroExit, "oops"));
    let late = executor.execute("b", bash("sleep 60").with_timeout(Duration::from_secs(1)));
    assert_eq!(late.outcome, Outcome::Timeout);
    let call = ToolCall::new("write_file", json!({"path": "g", "content": "\u{1f600}"}));
    assert!(executor.execute("b", call).success);
    assert_eq!(executor.execute("b", bash("cat g")).output, "\u{1f600}");
    assert!(executor.close().all_threads_ended);
}

#[test]
fn what_a_call_leaves_running_is_told_across_the_fleet() {
    let server = server(1);
    let executor = executor(fleet([url(&server)]));
    let command = "sleep 99 & until grep -qx sleep /proc/$!/comm; do :; done";
    let result = executor.execute("t", bash(command));
    assert_eq!(result.outcome, Outcome::Ok, "{}", result.error);
    assert!(result.output.starts_with("[1 background process was ended with this call: sleep;"));
    let expected = json!({"count": 1, "names": ["sleep"]});
    assert_eq!(result.metadata["ended_processes"], expected);
}

#[test]
fn a_running_call_is_cancelled_down_to_its_last_process() {
    let server = server(1);
    let executor = executor(fleet([url(&server)]));
    let pending = executor.submit("t", bash("touch began; sleep 1000")).unwrap();
    while executor.stats().running == 0 {
        std::thread::yield_now();
    }
    pending.cancel();
    assert_eq!(pending.wait().outcome, Outcome::Cancelled);
    let left = executor.execute("t", bash("pgrep sleep | wc -l"));
    assert_eq!(left.output, "0", "{}", left.error);
}

#[test]
fn a_slow_call_delays_no_other() {
    let server = server(4);
    let executor = executor(fleet([url(&server)]));
    let queue = executor.completion_queue(100);
    // Waits for the last of the fast ones, which shares nothing with it but its server.
    executor
        .submit_to("slow", bash("sleep 600").with_timeout(PATIENCE * 10), queue.tagged(0))
        .unwrap();
    for tag in 1..=30 {
        let id = format!("t{}", tag % 3);
        executor.submit_to(&id, bash("true"), queue.tagged(tag)).unwrap();
    }
    for _ in 1..=30 {
        let done = queue.next_timeout(PATIENCE).expect("held up by the slow call");
        assert!(done.tag > 0 && done.result.success, "{}", done.result.error);
    }
    executor.cancel_trajectory("slow");
    assert_eq!(queue.next_timeout(PATIENCE).unwrap().result.outcome, Outcome::Cancelled);
}

#[test]
#[ignore = "takes 45 s; `no_time_limit_of_http_is_below_the_calls_own` is the same, shorter"]
fn a_call_that_runs_45_s_of_its_120_s_succeeds() {
    let long = Duration::from_secs(45);
    let server = server(2);
    let tools = Server::start(move |request: &Request| match &*request.path {
        "/tools" => ok(r#"{"tools": [{"function": {"name": "search"}}]}"#),
        _ => {
            std::thread::sleep(long);
            ok(r#"{"success": true, "output": "found"}"#)
        }
    });
    let builder = ToolExecutor::builder()
        .backend(FleetBackend::new(fleet([url(&server)])).unwrap())
        .config(ExecutorConfig::default().with_tool_server(ToolServerConfig::new(&tools.url)));
    let executor = Arc::new(builder.start().unwrap());
    let front = ServerConfig::new(([127, 0, 0, 1], 0));
    let front = ExecutorServer::start(front, executor.clone()).unwrap();
    let limit = Duration::from_secs(120);
    let command = "sleep 45; echo woke";
    let began = Instant::now();
    let woke = executor.submit("a", bash(command).with_timeout(limit)).unwrap();
    let found =
        executor.submit("b", ToolCall::new("search", json!({})).with_timeout(limit)).unwrap();
    let body = json!({"trajectory_id": "c", "timeout_s": 120,
        "tool": {"name": "bash", "arguments": {"command": command}, "uniq_id": "u"}});
    let answer = ureq::post(format!("http://{}/execute", front.addr()))
        .header("Content-Type", "application/json")
        .send(body.to_string())
        .unwrap();
    assert_eq!(answer.headers()["x-tool-outcome"], "ok");
    for (pending, output) in [(woke, "woke"), (found, "found")] {
        let result = pending.wait();
        assert_eq!((result.outcome, &*result.output), (Outcome::Ok, output), "{}", result.error);
    }
    assert!((long..Duration::from_secs(120)).contains(&began.elapsed()));
}

#[test]
fn artifacts_come_from_the_trajectorys_server() {
    let server = server(1);
    let executor = executor(fleet([url(&server)]));
    let make = "mkdir -p d/empty; printf 0123456789 > d/f.txt; ln -s f.txt d/l; seq 200000 > big";
    assert!(executor.execute("t", bash(make)).success);
    let mut request = ReadArtifact::new("d/f.txt");
    (request.offset, request.max_bytes, request.sha256) = (3, 4, true);
    let part = executor.read_artifact("t", &request).unwrap();
    assert_eq!((&*part.content, part.file_size, part.truncated), (&b"3456"[..], 10, true));
    assert_eq!((&*part.path, &*part.mime), ("d/f.txt", "text/plain"));
    assert_eq!(part.sha256.unwrap().len(), 64);
    let list = executor.list_artifacts("t", &ListArtifacts::default().with_recursive(true));
    let names: Vec<_> = list.unwrap().entries.into_iter().map(|entry| entry.path).collect();
    assert_eq!(names, ["d", "big", "d/empty", "d/f.txt", "d/f.txt"]);
    let mut file = Vec::new();
    let bytes = executor.copy_artifact("t", "big", &mut file).unwrap();
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(bytes == file.len() as u64 && file == expected.as_bytes());
    let (archive, summary) = executor.archive_artifacts("t", &ArchiveArtifacts::default()).unwrap();
    assert_eq!((summary.bytes, summary.entry_count), (archive.len() as u64, 5));
    let tiny = ArchiveArtifacts::default().with_max_bytes(10);
    let error = executor.archive_artifacts("t", &tiny).unwrap_err();
    assert!(matches!(error, ArtifactError::TooLarge { max: 10, .. }), "{error}");
    let refused = |path: &str| executor.read_artifact("t", &ReadArtifact::new(path)).unwrap_err();
    assert!(matches!(refused("../proc/1/x"), ArtifactError::Refused(_)));
    let passwd = executor.read_artifact("t", &ReadArtifact::new("/etc/passwd")).unwrap();
    assert_eq!(passwd.path, "/etc/passwd");
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
    let result = executor.execute("t", bash(&attack));
    // Its own loopback interface is not the server's.
    assert_eq!(result.outcome, Outcome::NonZeroExit, "{}", result.output);
    assert!(result.output.contains("Connection refused"), "{result:?}");
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
fn of_what_the_servers_say_of_their_limits_the_weakest_is_told() {
    let says = |health: serde_json::Value| {
        Server::start(move |request: &Request| match &*request.path {
            "/health" => ok(health.to_string()),
            _ => ok(r#"{"slots": [{"slot_id": "slot_0"}]}"#),
        })
    };
    let limits = json!({"processes": "cgroup", "memory": "cgroup", "cpu": "cgroup",
        "open_files": "rlimit", "file_bytes": "rlimit", "workspace": "watch",
        "files": "none", "seccomp": true, "advisory": false});
    let strong = says(json!({"status": "ok", "bwrap_available": true, "limits": limits,
        "warm_slots": true, "isolation_level": "full", "weakened_because": []}));
    let mut limits = limits.clone();
    (limits["memory"], limits["seccomp"]) = (json!("watch"), json!(false));
    let weak = says(json!({"status": "ok", "bwrap_available": false, "limits": limits,
        "warm_slots": false, "isolation_level": "one_user",
        "weakened_because": ["a reason", "a\nforged line"]}));
    let silent = says(json!({"status": "ok", "limits": "none of your business",
        "weakened_because": 7}));
    let levels = std::cell::RefCell::new(Vec::new());
    let told = |servers: &[&Server]| {
        let urls: Vec<_> = servers.iter().map(|server| server.url.clone()).collect();
        let mut config = fleet(urls);
        config.allow_unisolated = true;
        let backend = FleetBackend::new(config).unwrap();
        backend.start(&Interrupt::new()).unwrap();
        backend.close(Instant::now());
        let held = backend.capabilities();
        levels.borrow_mut().push((held.isolation_level, held.weakened_because));
        (held.limits, held.warm_slots, held.isolation.not_isolated_because().is_none())
    };
    let (limits, warm, isolates) = told(&[&strong]);
    assert_eq!((limits.unwrap().memory, warm, isolates), (Enforcement::Cgroup, Some(true), true));
    let (limits, warm, isolates) = told(&[&strong, &weak]);
    let limits = limits.unwrap();
    assert_eq!((limits.processes, limits.memory), (Enforcement::Cgroup, Enforcement::Watch));
    assert_eq!((limits.seccomp, warm, isolates), (false, Some(false), false));
    assert_eq!(told(&[&strong, &silent]), (None, None, true));
    let weak = (Some(IsolationLevel::OneUser), vec!["a reason".to_owned()]);
    let strong = (Some(IsolationLevel::Full), Vec::new());
    assert_eq!(levels.into_inner(), [strong, weak, (None, Vec::new())]);
}

#[test]
fn an_executor_tells_the_limits_of_its_servers_as_they_do_themselves() {
    let backend = LocalBackend::start(LocalConfig::new(1)).unwrap();
    let expected = backend.capabilities();
    let server = SandboxServer::start(config(), backend).unwrap();
    let config = ExecutorConfig::default().with_fleet(fleet([url(&server)]));
    let executor = ToolExecutor::start(config).unwrap();
    let (stats, told) = (executor.stats(), executor.capabilities());
    assert_eq!((stats.limits, stats.warm_slots), (expected.limits, expected.warm_slots));
    assert_eq!((told.limits, told.isolation), (expected.limits, expected.isolation));
    assert!(told.isolation_level.is_some());
    assert_eq!(told.isolation_level, expected.isolation_level);
    assert_eq!(told.weakened_because, expected.weakened_because);
}

/// How many threads this process has whose names begin so.
fn threads(names: &[&str]) -> usize {
    let threads = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    threads.filter(|thread| names.iter().any(|name| thread.starts_with(name))).count()
}

#[test]
fn a_thousand_sleeping_calls_on_32_servers_take_few_threads() {
    const SERVERS: usize = 32;
    if !is_alone("fleet::a_thousand_sleeping_calls_on_32_servers_take_few_threads") {
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
    let pending: Vec<_> =
        (0..1000).map(|n| executor.submit(&format!("t{n}"), bash("sleep")).unwrap()).collect();
    for _ in 0..1000 {
        let mut select = crossbeam_channel::Select::new();
        for kept in &kept {
            select.recv(kept);
        }
        let ready = select.ready_timeout(PATIENCE).expect("all calls run at once");
        kept[ready].recv().unwrap();
    }
    // Those of the executor; the servers' have other names.
    let ours = ["tool-io", "tool-fn", "tool-fleet", "tool-send", "tool-batcher", "tool-callback"];
    let count = threads(&ours);
    assert!((SERVERS..=100).contains(&count), "{count} threads");
    let fast = executor.execute("fast", bash("fast"));
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
                Told::Begin(_, _, reply) => reply.send(Ok(())),
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

#[test]
fn the_policy_reaches_the_server() {
    let server = server(1);
    let policy = Policy::default().with_allow_network(false);
    let backend = FleetBackend::new(fleet([url(&server)])).unwrap();
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_policy(policy))
        .start()
        .unwrap();
    let result = executor.execute("t", bash("ls /sys/class/net"));
    assert_eq!(result.metadata["network_isolated"], true);
}
