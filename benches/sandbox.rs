//! What a command in the embedded sandbox costs, beside what the same command costs without us.
//!
//! | group | case | what one iteration is |
//! |---|---|---|
//! | `true` | `floor` | spawn `bash -c true` and wait for it, nothing around it |
//! | | `bubblewrap` | the same in a plain bubblewrap with `/usr` bound, as a script would write it |
//! | | `per call` | `execute` of `bash` with `true`, where each call gets a sandbox |
//! | | `executor` | the same where the slot keeps its sandbox: queue, slot, sandbox, result |
//! | `read_file` | `executor` | `execute` of `read_file` of a small file: no process at all |
//! | `stateful` | `floor` | a line to a running bash, and a line back, over two pipes |
//! | | `executor` | `execute` of `terminal_stateful` with `echo hello`, in a session that runs |
//! | `beside a sleep` | `floor` | as `true`, `executor`, of a trajectory that is alone |
//! | | `executor` | while the command of another one sleeps |
//! | `heap` | `floor` | as `true`, `executor` |
//! | | `executor` | the same where this process has 1 GiB more of memory in use |
//! | `saturated/N` | `floor` | N threads, each spawning `bash -c true` and waiting |
//! | | `executor` | N trajectories through the completion queue |
//! | | `http` | the same over HTTP, to one sandbox server in this process |
//!
//! The time is per call in every case; all shells have the same small environment. Printed once,
//! not timed: the memory of an idle slot that keeps its sandbox. Needs bubblewrap.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use tool_executor::backend::Backend;
use tool_executor::backend::fleet::FleetBackend;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{FleetConfig, LocalConfig, ServerConfig};
use tool_executor::server::SandboxServer;
use tool_executor::{ToolCall, ToolExecutor};

const BUBBLEWRAP: &str = "--unshare-all --die-with-parent --new-session --ro-bind /usr /usr \
    --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc \
    --dev /dev --tmpfs /tmp bash -c true";

fn backend(slots: usize, warm: bool) -> LocalBackend {
    let mut config = LocalConfig::new(slots);
    config.warm_slots = warm;
    let backend = LocalBackend::start(config).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "this bench needs sandboxes");
    assert_eq!(backend.capabilities().warm_slots, Some(warm));
    backend
}

fn executor(slots: usize, warm: bool) -> ToolExecutor {
    ToolExecutor::builder().backend(backend(slots, warm)).start().unwrap()
}

fn wait_for(program: &str, arguments: &str) {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    // What commands in the sandbox have: with cargo's library path bash starts more slowly.
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8");
    assert!(command.status().unwrap().success());
}

fn single(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("true");
    group.bench_function("floor", |bencher| bencher.iter(|| wait_for("/bin/bash", "-c true")));
    group.bench_function("bubblewrap", |bencher| bencher.iter(|| wait_for("bwrap", BUBBLEWRAP)));
    let run = |executor: &ToolExecutor| {
        assert!(executor.execute("t", ToolCall::bash("true")).success);
    };
    let cold = executor(1, false);
    group.bench_function("per call", |bencher| bencher.iter(|| run(&cold)));
    drop(cold);
    let executor = executor(1, true);
    group.bench_function("executor", |bencher| bencher.iter(|| run(&executor)));
    group.finish();

    let mut group = criterion.benchmark_group("read_file");
    assert!(executor.execute("t", ToolCall::bash("echo hello > f")).success);
    group.bench_function("executor", |bencher| {
        bencher.iter(|| {
            let call = ToolCall::new("read_file", json!({"path": "f"}));
            assert!(executor.execute("t", call).success);
        });
    });
    group.finish();
}

fn stateful(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stateful");
    let mut bash = Command::new("bash")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash starts");
    let mut lines = bash.stdin.take().unwrap();
    let mut answers = BufReader::new(bash.stdout.take().unwrap());
    group.bench_function("floor", |bencher| {
        let mut answer = String::new();
        bencher.iter(|| {
            lines.write_all(b"echo hello\n").unwrap();
            answer.clear();
            answers.read_line(&mut answer).unwrap();
            assert_eq!(answer, "hello\n");
        });
    });
    drop(lines);
    assert!(bash.wait().unwrap().success());
    let executor = executor(1, true);
    group.bench_function("executor", |bencher| {
        bencher.iter(|| {
            let call = ToolCall::new("terminal_stateful", json!({"command": "echo hello"}));
            assert_eq!(executor.execute("t", call).output, "hello");
        });
    });
    group.finish();
}

/// What others do, or the machine, should not be felt by a call.
fn disturbed(criterion: &mut Criterion) {
    let run = |executor: &ToolExecutor| {
        assert!(executor.execute("t", ToolCall::bash("true")).success);
    };
    let executor = executor(2, true);
    let mut group = criterion.benchmark_group("beside a sleep");
    group.bench_function("floor", |bencher| bencher.iter(|| run(&executor)));
    let sleep = ToolCall::bash("sleep 600").with_timeout(Duration::from_secs(600));
    let sleep = executor.submit("sleeper", sleep).unwrap();
    group.bench_function("executor", |bencher| bencher.iter(|| run(&executor)));
    assert!(!sleep.is_done());
    sleep.cancel();
    group.finish();

    let mut group = criterion.benchmark_group("heap");
    group.bench_function("floor", |bencher| bencher.iter(|| run(&executor)));
    // Not zeros: each page must be there.
    let heap = vec![1_u8; 1 << 30];
    group.bench_function("executor", |bencher| bencher.iter(|| run(&executor)));
    assert!(std::hint::black_box(heap).iter().step_by(4096).all(|byte| *byte == 1));
    group.finish();
}

/// So many calls of so many trajectories that each make one after the other.
fn calls(executor: &ToolExecutor, trajectories: u64, count: u64) -> Duration {
    let queue = executor.completion_queue(trajectories as usize);
    let submit = |tag: u64| {
        let call = ToolCall::bash("true");
        executor.submit_to(&format!("t{tag}"), call, queue.tagged(tag)).unwrap();
    };
    let started = Instant::now();
    let mut unsent = count;
    for tag in 0..trajectories.min(count) {
        submit(tag);
        unsent -= 1;
    }
    for _ in 0..count {
        let done = queue.next_timeout(Duration::from_secs(60)).unwrap();
        assert!(done.result.success, "{:?}", done.result);
        if unsent > 0 {
            submit(done.tag);
            unsent -= 1;
        }
    }
    started.elapsed()
}

fn over_http(slots: usize) -> (SandboxServer, ToolExecutor) {
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
    config.no_auth = true;
    let server = SandboxServer::start(config, backend(slots, true)).unwrap();
    let urls = [format!("http://{}", server.addr())];
    let backend = FleetBackend::new(FleetConfig::new(urls)).unwrap();
    (server, ToolExecutor::builder().backend(backend).start().unwrap())
}

fn saturated(criterion: &mut Criterion) {
    for width in [2, 8, 32] {
        let mut group = criterion.benchmark_group(format!("saturated/{width}"));
        group.bench_function("floor", |bencher| {
            bencher.iter_custom(|iters| {
                let each = iters.div_ceil(width);
                let started = Instant::now();
                thread::scope(|scope| {
                    for _ in 0..width {
                        scope.spawn(|| (0..each).for_each(|_| wait_for("/bin/bash", "-c true")));
                    }
                });
                started.elapsed().mul_f64(iters as f64 / (each * width) as f64)
            });
        });
        let embedded = executor(width as usize, true);
        group.bench_function("executor", |bencher| {
            bencher.iter_custom(|iters| calls(&embedded, width, iters));
        });
        drop(embedded);
        let (_server, executor) = over_http(width as usize);
        group.bench_function("http", |bencher| {
            bencher.iter_custom(|iters| calls(&executor, width, iters));
        });
        group.finish();
    }
}

/// Prints what slots take that have a sandbox and nothing to do.
#[allow(clippy::print_stdout, reason = "a figure for the reader")]
fn idle_memory(_: &mut Criterion) {
    const SLOTS: u64 = 32;
    let executor = executor(SLOTS as usize, true);
    calls(&executor, SLOTS, SLOTS * 4);
    let of = |pid: u32| -> Option<u64> {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        pss.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let mut left = children(std::process::id());
    let (mut processes, mut unreadable, mut total) = (0, 0, 0);
    while let Some(pid) = left.pop() {
        left.extend(children(pid));
        processes += 1;
        match of(pid) {
            Some(kib) => total += kib,
            None => unreadable += 1,
        }
    }
    println!(
        "idle slot: {} KiB of memory (Pss) in {processes} processes of {SLOTS} slots, \
         {unreadable} of them not readable",
        total / SLOTS
    );
}

fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| std::fs::read_to_string(thread.path().join("children")));
    let pids = |list: String| list.split(' ').flat_map(str::parse).collect::<Vec<_>>();
    lists.flatten().flat_map(pids).collect()
}

criterion_group!(benches, single, stateful, disturbed, saturated, idle_memory);
criterion_main!(benches);
