//! What the wire costs: the executor over sandbox servers that answer at once, beside direct
//! requests.
//!
//! Cases, each beside its floor in the same run:
//!
//! | group | case | what one iteration is |
//! |---|---|---|
//! | `lone` | `direct` | one `POST /execute` with ureq to the same kind of server |
//! | | `executor` | one `execute` through the executor, one server |
//! | `trajectories/N` | `direct` | N calls by 32 threads, a `POST /execute` each |
//! | | `executor` | N calls of N trajectories through a completion queue |
//!
//! | `stock/N` | `direct` | N calls by 32 threads to servers that know only the reference's routes, a connection each |
//! | | `executor` | N calls of N trajectories over such servers, of 1,000 slots together |
//!
//! Time is per call. Also printed once, not timed: the threads that were started during a thousand
//! calls, and those that the process has while a thousand stock slots are used.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tool_executor::backend::fleet::FleetBackend;
use tool_executor::config::{FleetConfig, ServerConfig};
use tool_executor::server::SandboxServer;
use tool_executor::{ToolCall, ToolExecutor};

use self::common::Null;

/// Servers that answer at once.
const SERVERS: usize = 4;
/// Threads that send direct requests.
const DIRECT: usize = 32;

fn server(slots: usize) -> SandboxServer {
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
    config.no_auth = true;
    SandboxServer::start(config, Null(slots)).unwrap()
}

fn executor(servers: &[SandboxServer]) -> ToolExecutor {
    let urls = servers.iter().map(|server| format!("http://{}", server.addr()));
    let backend = FleetBackend::new(FleetConfig::new(urls)).unwrap();
    ToolExecutor::builder().backend(backend).start().unwrap()
}

fn post(agent: &ureq::Agent, url: &str, slot: usize) {
    let body = format!(
        "{{\"slot_id\":\"slot_{slot}\",\"tool\":\"bash\",\"args\":{{\"command\":\"true\"}},\
         \"execution_id\":\"e\",\"timeout\":30.0}}"
    );
    let answer = agent
        .post(url)
        .content_type("application/json")
        .send(body)
        .unwrap()
        .body_mut()
        .read_to_string()
        .unwrap();
    assert!(answer.contains("true"));
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().max_idle_connections(DIRECT);
    config.max_idle_connections_per_host(DIRECT).build().into()
}

fn lone(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lone");
    let direct = server(1);
    let url = format!("http://{}/execute", direct.addr());
    let agent = agent();
    group.bench_function("direct", |bencher| bencher.iter(|| post(&agent, &url, 0)));
    let servers = [server(1)];
    let executor = executor(&servers);
    group.bench_function("executor", |bencher| {
        bencher.iter(|| assert!(executor.execute("t", ToolCall::bash("true")).success));
    });
    group.finish();
}

#[allow(clippy::print_stdout, reason = "a figure for the reader")]
fn trajectories(criterion: &mut Criterion) {
    for trajectories in [32, 1_000] {
        let mut group = criterion.benchmark_group(format!("trajectories/{trajectories}"));
        group.throughput(Throughput::Elements(1));
        let each = trajectories / SERVERS;
        let servers: Vec<_> = (0..SERVERS).map(|_| server(each)).collect();
        let urls: Vec<_> =
            servers.iter().map(|server| format!("http://{}/execute", server.addr())).collect();
        let agent = agent();
        group.bench_function("direct", |bencher| {
            bencher.iter_custom(|calls| {
                let next = AtomicUsize::new(0);
                let started = Instant::now();
                thread::scope(|scope| {
                    for _ in 0..DIRECT {
                        scope.spawn(|| {
                            loop {
                                let call = next.fetch_add(1, Ordering::Relaxed);
                                if call >= calls as usize {
                                    return;
                                }
                                post(&agent, &urls[call % SERVERS], call / SERVERS % each);
                            }
                        });
                    }
                });
                started.elapsed()
            });
        });
        let executor = executor(&servers);
        let ids: Vec<_> = (0..trajectories).map(|n| format!("t{n}")).collect();
        drive(&executor, &ids, trajectories as u64);
        let before = threads_started();
        drive(&executor, &ids, 1_000);
        println!("threads started in 1,000 calls: {}", threads_started() - before);
        group.bench_function("executor", |bencher| {
            bencher.iter_custom(|calls| drive(&executor, &ids, calls));
        });
        group.finish();
    }
}

/// A server that knows only the reference's routes and answers at once; its URL. Serves until the
/// process ends.
fn stock_server(slots: usize) -> String {
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
    let names: Vec<_> = (0..slots).map(|n| format!("{{\"slot_id\":\"slot_{n}\"}}")).collect();
    let slots = Arc::new(format!("{{\"slots\":[{}]}}", names.join(",")));
    let url = format!("http://{}", listener.local_addr().unwrap());
    for _ in 0..4 {
        let (listener, slots) = (listener.clone(), slots.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that left is no matter.
                let _ = answer(&stream.unwrap(), &slots);
            }
        });
    }
    url
}

/// Answers one request, and closes its connection.
fn answer(mut stream: &TcpStream, slots: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut first, mut length) = (String::new(), String::new(), 0);
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if first.is_empty() {
            first.clone_from(&line);
        }
        if let Some(given) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = given.trim().parse().unwrap();
        }
    }
    reader.read_exact(&mut vec![0; length])?;
    let body = match first.split(' ').nth(1) {
        Some("/slots") => slots,
        Some("/health") => "{\"status\":\"ok\"}",
        _ => "{\"success\":true,\"output\":\"\",\"error\":\"\"}",
    };
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all((head + body).as_bytes())
}

#[allow(clippy::print_stdout, reason = "a figure for the reader")]
fn stock(criterion: &mut Criterion) {
    let urls: Vec<_> = (0..SERVERS).map(|_| stock_server(1_000 / SERVERS)).collect();
    let config = ureq::Agent::config_builder().max_idle_connections(0);
    let agent: ureq::Agent = config.build().into();
    for trajectories in [10, 1_000] {
        let mut group = criterion.benchmark_group(format!("stock/{trajectories}"));
        group.throughput(Throughput::Elements(1));
        group.bench_function("direct", |bencher| {
            bencher.iter_custom(|calls| {
                let next = AtomicUsize::new(0);
                let started = Instant::now();
                thread::scope(|scope| {
                    for _ in 0..DIRECT.min(trajectories) {
                        scope.spawn(|| {
                            loop {
                                let call = next.fetch_add(1, Ordering::Relaxed);
                                if call >= calls as usize {
                                    return;
                                }
                                post(&agent, &format!("{}/execute", urls[call % SERVERS]), 0);
                            }
                        });
                    }
                });
                started.elapsed()
            });
        });
        let backend = FleetBackend::new(FleetConfig::new(&urls)).unwrap();
        let executor = ToolExecutor::builder().backend(backend).start().unwrap();
        let ids: Vec<_> = (0..trajectories).map(|n| format!("t{n}")).collect();
        drive(&executor, &ids, trajectories as u64);
        println!("threads of this process, 16 of them the servers': {}", threads_here());
        group.bench_function("executor", |bencher| {
            bencher.iter_custom(|calls| drive(&executor, &ids, calls));
        });
        group.finish();
    }
}

/// How many threads this process has.
fn threads_here() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Makes so many calls, one at a time for each trajectory.
fn drive(executor: &ToolExecutor, ids: &[String], calls: u64) -> Duration {
    let queue = executor.completion_queue(ids.len());
    let submit = |tag: u64| {
        let id = &ids[tag as usize % ids.len()];
        executor.submit_to(id, ToolCall::bash("true"), queue.tagged(tag)).unwrap();
    };
    let started = Instant::now();
    let at_once = calls.min(ids.len() as u64);
    (0..at_once).for_each(submit);
    let mut submitted = at_once;
    for _ in 0..calls {
        let done = queue.next_timeout(Duration::from_secs(60)).unwrap();
        assert!(done.result.success, "{}", done.result.error);
        if submitted < calls {
            submit(done.tag);
            submitted += 1;
        }
    }
    started.elapsed()
}

/// How many processes and threads the system has started so far.
fn threads_started() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("processes "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .sample_size(20);
    targets = lone, trajectories, stock
}
criterion_main!(benches);
