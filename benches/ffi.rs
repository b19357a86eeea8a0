//! What the C ABI costs per call, over the Rust API: JSON in, a result out, the checks of handles.
//!
//! | group | case | what one iteration is |
//! |---|---|---|
//! | `door` | `floor` | `ToolExecutor::execute` of a tool that does not exist: no other thread takes part |
//! | | `ffi` | `te_execute` of the same: what the ABI itself costs, in time of the thread |
//! | `execute` | `floor` | `ToolExecutor::execute` of a tool in this process that answers at once |
//! | | `ffi` | `te_execute` of the same, its output looked at, `te_result_free` |
//! | `queue/N` | `floor` | one thread, N calls in flight: `submit_to`, `next_many` |
//! | | `ffi` | the same by `te_submit`, `te_queue_next_many`, `te_result_free` |
//! | | `ffi, by poll` | the same where the thread waits by `poll` on the queue's descriptor |
//!
//! The time is per call; `ffi / floor` is the ratio to read.

use std::ffi::{c_char, c_void};
use std::hint::black_box;
use std::ptr::null_mut;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustix::event::{PollFd, PollFlags, poll};
use tool_executor::ffi::te_status::TE_OK;
use tool_executor::ffi::*;
use tool_executor::{Completion, ToolCall, ToolExecutor, ToolRegistry, ToolSchema};

const CALL: &str = r#"{"name": "echo", "arguments": {"command": "true"}}"#;
const BATCH: usize = 64;

fn rust_executor() -> ToolExecutor {
    let mut registry = ToolRegistry::empty();
    let echo = ToolSchema::new("echo", "");
    registry.register_deferred(echo, |_, _, reply| reply.send(Ok("done".to_owned()))).unwrap();
    ToolExecutor::builder().registry(registry).start().unwrap()
}

unsafe extern "C" fn echo(
    _user: *mut c_void,
    _call: *const te_tool_call,
    reply: *mut te_tool_reply,
) -> i32 {
    // SAFETY: the reply is ours.
    unsafe {
        te_tool_reply_ok(reply, c"done".as_ptr(), 4);
        te_tool_reply_free(reply);
    }
    0
}

fn bytes(text: &str) -> (*const c_char, usize) {
    (text.as_ptr().cast(), text.len())
}

fn c_executor() -> *mut te_executor {
    let (mut tools, mut executor) = (null_mut(), null_mut());
    let (schema, len) = bytes(r#"{"name": "echo"}"#);
    let (config, config_len) = bytes(r#"{"tools": {"builtin": false}}"#);
    // SAFETY: all places and texts are valid.
    unsafe {
        assert_eq!(te_tools_new(&mut tools), TE_OK);
        assert_eq!(te_tools_add(tools, schema, len, Some(echo), null_mut(), None), TE_OK);
        assert_eq!(te_executor_new(config, config_len, tools, &mut executor), TE_OK);
        te_tools_free(tools);
    }
    executor
}

/// The processor time that this thread has had: what others do on the machine does not count.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn door(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("door");
    group.throughput(Throughput::Elements(1));
    let rust = rust_executor();
    group.bench_function("floor", |bencher| {
        bencher.iter_custom(|calls| {
            let began = thread_time();
            for _ in 0..calls {
                let call = ToolCall::new("nothing", serde_json::json!({"command": "true"}));
                black_box(rust.execute("trajectory", call).error.len());
            }
            thread_time() - began
        });
    });
    drop(rust);
    let executor = c_executor();
    let ((trajectory, len), (call, call_len)) =
        (bytes("trajectory"), bytes(r#"{"name": "nothing", "arguments": {"command": "true"}}"#));
    group.bench_function("ffi", |bencher| {
        bencher.iter_custom(|calls| {
            let began = thread_time();
            for _ in 0..calls {
                let mut result = null_mut();
                // SAFETY: the executor lives, and so do the texts.
                unsafe {
                    te_execute(executor, trajectory, len, call, call_len, &mut result);
                    black_box((*result).error_len);
                    te_result_free(result);
                }
            }
            thread_time() - began
        });
    });
    // SAFETY: ours.
    unsafe { te_executor_free(executor) };
    group.finish();
}

fn execute(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("execute");
    group.throughput(Throughput::Elements(1));
    let rust = rust_executor();
    group.bench_function("floor", |bencher| {
        bencher.iter(|| {
            let call = ToolCall::new("echo", serde_json::json!({"command": "true"}));
            black_box(rust.execute("trajectory", call).output.len())
        });
    });
    drop(rust);
    let executor = c_executor();
    let ((trajectory, len), (call, call_len)) = (bytes("trajectory"), bytes(CALL));
    group.bench_function("ffi", |bencher| {
        bencher.iter(|| {
            let mut result = null_mut();
            // SAFETY: the executor lives, and so do the texts.
            unsafe {
                te_execute(executor, trajectory, len, call, call_len, &mut result);
                black_box((*result).output_len);
                te_result_free(result);
            }
        });
    });
    // SAFETY: ours.
    unsafe { te_executor_free(executor) };
    group.finish();
}

/// One thread drives a C queue: `in_flight` calls at first, then one more for each that has ended.
fn drive(queue: *mut te_queue, names: &[String], calls: u64, by_poll: bool) {
    let (call, call_len) = bytes(CALL);
    let submit = |tag: u64| {
        let (name, len) = bytes(&names[tag as usize]);
        // SAFETY: the queue lives, and so do the texts.
        let status = unsafe { te_submit(queue, name, len, call, call_len, tag, null_mut()) };
        assert_eq!(status, TE_OK);
    };
    let mut fd = -1;
    // SAFETY: the queue lives.
    unsafe { te_queue_fd(queue, &mut fd) };
    let mut left = calls;
    for tag in 0..(names.len() as u64).min(calls) {
        submit(tag);
        left -= 1;
    }
    let (mut results, mut ended) = ([null_mut(); BATCH], 0);
    while ended < calls {
        if by_poll {
            // SAFETY: the queue's descriptor, which lives as long as it.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
        }
        let (mut count, timeout) = (0, if by_poll { 0.0 } else { 60.0 });
        // SAFETY: there is room for `BATCH` results.
        unsafe { te_queue_next_many(queue, BATCH, timeout, results.as_mut_ptr(), &mut count) };
        for &result in &results[..count] {
            // SAFETY: just given to us.
            let tag = unsafe { (*result).tag };
            // SAFETY: as above.
            unsafe { te_result_free(result) };
            if left > 0 {
                submit(tag);
                left -= 1;
            }
        }
        ended += count as u64;
    }
}

fn queue(criterion: &mut Criterion) {
    for in_flight in [1, 100, 1000] {
        let names: Vec<_> = (0..in_flight).map(|number| format!("trajectory-{number}")).collect();
        let mut group = criterion.benchmark_group(format!("queue/{in_flight}"));
        group.throughput(Throughput::Elements(1));
        let rust = rust_executor();
        group.bench_function("floor", |bencher| {
            bencher.iter_custom(|calls| {
                let queue = rust.completion_queue(in_flight);
                let submit = |tag: u64| {
                    let call = ToolCall::new("echo", serde_json::json!({"command": "true"}));
                    rust.submit_to(&names[tag as usize], call, queue.tagged(tag)).unwrap();
                };
                let began = std::time::Instant::now();
                let mut left = calls;
                for tag in 0..(in_flight as u64).min(calls) {
                    submit(tag);
                    left -= 1;
                }
                let (mut results, mut ended): (Vec<Completion>, u64) = (Vec::new(), 0);
                while ended < calls {
                    ended += queue.next_many(&mut results, BATCH, Duration::from_secs(60)) as u64;
                    for completion in results.drain(..) {
                        if left > 0 {
                            submit(completion.tag);
                            left -= 1;
                        }
                    }
                }
                began.elapsed()
            });
        });
        drop(rust);
        for (case, by_poll) in [("ffi", false), ("ffi, by poll", true)] {
            let (executor, mut queue) = (c_executor(), null_mut());
            // SAFETY: the executor lives.
            unsafe { te_queue_new(executor, in_flight, &mut queue) };
            group.bench_function(case, |bencher| {
                bencher.iter_custom(|calls| {
                    let began = std::time::Instant::now();
                    drive(queue, &names, calls, by_poll);
                    began.elapsed()
                });
            });
            // SAFETY: ours.
            unsafe {
                te_queue_free(queue);
                te_executor_free(executor);
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .sample_size(20);
    targets = door, execute, queue
}
criterion_main!(benches);
