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
//! | `saturated/8` | `floor` | 8 threads, each spawning `bash -c true` and waiting |
//! | | `executor` | 8 trajectories through the completion queue |
//!
//! The time is per call in every case; all shells have the same small environment. Needs bubblewrap.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use tool_executor::backend::local::{LocalBackend, LocalConfig};
use tool_executor::{ToolCall, ToolExecutor};

const BUBBLEWRAP: &str = "--unshare-all --die-with-parent --new-session --ro-bind /usr /usr \
    --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc \
    --dev /dev --tmpfs /tmp bash -c true";

fn executor(slots: usize, warm: bool) -> ToolExecutor {
    let mut config = LocalConfig::with_slots(slots);
    config.warm_slots = warm;
    let backend = LocalBackend::start(config).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "this bench needs bubblewrap");
    assert_eq!(backend.keeps_sandboxes(), warm);
    ToolExecutor::builder().backend(backend).start().unwrap()
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
        assert!(executor.execute("t", ToolCall::bash("true"), None).success);
    };
    let cold = executor(1, false);
    group.bench_function("per call", |bencher| bencher.iter(|| run(&cold)));
    drop(cold);
    let executor = executor(1, true);
    group.bench_function("executor", |bencher| bencher.iter(|| run(&executor)));
    group.finish();

    let mut group = criterion.benchmark_group("read_file");
    assert!(executor.execute("t", ToolCall::bash("echo hello > f"), None).success);
    group.bench_function("executor", |bencher| {
        bencher.iter(|| {
            let call = ToolCall::new("read_file", json!({"path": "f"}));
            assert!(executor.execute("t", call, None).success);
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
            assert_eq!(executor.execute("t", call, None).output, "hello");
        });
    });
    group.finish();
}

fn saturated(criterion: &mut Criterion) {
    const WIDTH: u64 = 8;
    let mut group = criterion.benchmark_group("saturated/8");
    group.bench_function("floor", |bencher| {
        bencher.iter_custom(|iters| {
            let each = iters.div_ceil(WIDTH);
            let started = Instant::now();
            thread::scope(|scope| {
                for _ in 0..WIDTH {
                    scope.spawn(|| (0..each).for_each(|_| wait_for("/bin/bash", "-c true")));
                }
            });
            started.elapsed().mul_f64(iters as f64 / (each * WIDTH) as f64)
        });
    });
    let executor = executor(WIDTH as usize, true);
    let queue = executor.completion_queue(WIDTH as usize);
    let submit = |tag: u64| {
        let call = ToolCall::bash("true");
        executor.submit_to(&queue, tag, &format!("t{tag}"), call, None).unwrap();
    };
    group.bench_function("executor", |bencher| {
        bencher.iter_custom(|iters| {
            let started = Instant::now();
            let mut unsent = iters;
            for tag in 0..WIDTH.min(iters) {
                submit(tag);
                unsent -= 1;
            }
            for _ in 0..iters {
                let done = queue.next_timeout(Duration::from_secs(60)).unwrap();
                assert!(done.result.success, "{:?}", done.result);
                if unsent > 0 {
                    submit(done.tag);
                    unsent -= 1;
                }
            }
            started.elapsed()
        });
    });
    group.finish();
}

criterion_group!(benches, single, stateful, saturated);
criterion_main!(benches);
