//! What the executor itself costs per call: submit, batch, a backend that answers at once, reply.
//!
//! Cases, each beside its floor in the same run:
//!
//! | group | case | what one iteration is |
//! |---|---|---|
//! | `threads/N` | `floor` | N threads, one echo thread: channel there, oneshot back |
//! | | `executor` | N threads, N trajectories: `execute` |
//! | `queue/N` | `floor` | one thread, N requests in flight: channel there, channel back |
//! | | `executor` | one thread, N trajectories: `submit_to` and the completion queue |
//!
//! The time is per call in every case, so `executor / floor` is the ratio to read. The floor is
//! the least that any executor with a thread of its own must pay: one hand-over there and one
//! back. Ours pays a third, from the batcher to the thread that calls the backend.

mod common;

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_channel::{Sender, bounded, unbounded};
use tool_executor::{ToolCall, ToolExecutor, ToolResult};

use self::common::Null;

/// The floor: a thread that sends back what it is sent, each through its own way back.
fn echo_thread() -> Sender<(ToolCall, Sender<ToolResult>)> {
    let (sender, requests) = unbounded::<(ToolCall, Sender<ToolResult>)>();
    thread::spawn(move || {
        for (call, reply) in requests {
            black_box(call);
            let _ = reply.send(ToolResult::ok(""));
        }
    });
    sender
}

/// The time per `iters` calls when `callers` threads call at once, threads' start not counted.
fn timed_threads(callers: usize, iters: u64, call: impl Fn(usize) + Sync) -> Duration {
    // Enough each that the threads really run at once.
    let each = iters.div_ceil(callers as u64).max(20);
    let start = Barrier::new(callers + 1);
    let (started, ended) = thread::scope(|scope| {
        let workers: Vec<_> = (0..callers)
            .map(|caller| {
                let (start, call) = (&start, &call);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..each {
                        call(caller);
                    }
                    Instant::now()
                })
            })
            .collect();
        start.wait();
        let started = Instant::now();
        let ended = workers.into_iter().map(|worker| worker.join().unwrap()).max();
        (started, ended.unwrap_or(started))
    });
    let calls = each * callers as u64;
    (ended - started).mul_f64(iters as f64 / calls as f64)
}

fn names(trajectories: usize) -> Vec<String> {
    (0..trajectories).map(|number| format!("trajectory-{number}")).collect()
}

fn call() -> ToolCall {
    ToolCall::bash("true")
}

fn threads(criterion: &mut Criterion) {
    for callers in [1, 100, 1000] {
        let mut group = criterion.benchmark_group(format!("threads/{callers}"));
        group.throughput(Throughput::Elements(1));
        let echo = echo_thread();
        group.bench_function("floor", |bencher| {
            bencher.iter_custom(|iters| {
                timed_threads(callers, iters, |_| {
                    let (reply, answer) = bounded(1);
                    echo.send((call(), reply)).unwrap();
                    black_box(answer.recv().unwrap());
                })
            });
        });
        let executor = ToolExecutor::builder().backend(Null(callers)).start().unwrap();
        let names = names(callers);
        group.bench_function("executor", |bencher| {
            bencher.iter_custom(|iters| {
                timed_threads(callers, iters, |caller| {
                    let result = executor.execute(&names[caller], call());
                    assert!(result.success);
                })
            });
        });
        group.finish();
    }
}

fn queue(criterion: &mut Criterion) {
    for in_flight in [1, 100, 1000] {
        let mut group = criterion.benchmark_group(format!("queue/{in_flight}"));
        group.throughput(Throughput::Elements(1));
        let echo = echo_thread();
        group.bench_function("floor", |bencher| {
            let (reply, answers) = unbounded();
            bencher.iter_custom(|iters| {
                timed_in_flight(
                    in_flight,
                    iters,
                    |_| echo.send((call(), reply.clone())).unwrap(),
                    || {
                        black_box(answers.recv().unwrap());
                        0
                    },
                )
            });
        });
        let executor = ToolExecutor::builder().backend(Null(in_flight)).start().unwrap();
        let queue = executor.completion_queue(in_flight);
        let names = names(in_flight);
        group.bench_function("executor", |bencher| {
            bencher.iter_custom(|iters| {
                timed_in_flight(
                    in_flight,
                    iters,
                    |tag| {
                        let name = &names[tag];
                        executor.submit_to(name, call(), queue.tagged(tag as u64)).unwrap();
                    },
                    || queue.next_timeout(Duration::from_secs(60)).unwrap().tag as usize,
                )
            });
        });
        group.finish();
    }
}

/// The time of `iters` calls from one thread that keeps `in_flight` of them under way: `send` gets
/// the number of a free place, `receive` gives that of a finished call.
fn timed_in_flight(
    in_flight: usize,
    iters: u64,
    send: impl Fn(usize),
    receive: impl Fn() -> usize,
) -> Duration {
    let started = Instant::now();
    let mut unsent = iters;
    for place in 0..in_flight.min(iters as usize) {
        send(place);
        unsent -= 1;
    }
    for _ in 0..iters {
        let place = receive();
        if unsent > 0 {
            send(place);
            unsent -= 1;
        }
    }
    started.elapsed()
}

criterion_group!(benches, threads, queue);
criterion_main!(benches);
