//! In-process tools: closures of the user's, on threads of their own.

use std::time::Duration;

use crossbeam_channel::{bounded, unbounded};
use serde_json::json;
use tool_executor::config::ExecutorConfig;
use tool_executor::{Outcome, ToolCall, ToolExecutor, ToolRegistry, ToolSchema};

use crate::fakes::{Echoes, PATIENCE, bash};

fn schema(name: &str) -> ToolSchema {
    ToolSchema::new(name, "A tool of a test.")
}

#[test]
fn a_closure_is_a_tool_and_its_error_and_its_panic_are_results() {
    let mut registry = ToolRegistry::builtin();
    registry
        .register_fn(schema("divide").with_required("by", "integer", ""), |context, arguments| {
            let by = arguments["by"].as_i64().unwrap();
            if by == 0 {
                return Err(format!("{} divides by zero", context.trajectory_id()));
            }
            assert!(by > 0, "expected by this test");
            Ok((100 / by).to_string())
        })
        .unwrap();
    let executor = ToolExecutor::builder().backend(Echoes(1)).registry(registry).start().unwrap();
    let divide = |by: i64| executor.execute("t", ToolCall::new("divide", json!({"by": by})));
    assert_eq!(divide(5).output, "20");
    let failed = divide(0);
    assert_eq!((failed.outcome, &*failed.error), (Outcome::ToolError, "t divides by zero"));
    let panicked = divide(-1);
    assert_eq!(panicked.outcome, Outcome::ExternalFailed);
    assert!(panicked.error.contains("expected by this test"), "{}", panicked.error);
    assert_eq!(divide(4).output, "25", "the thread lives on");
    assert_eq!(executor.stats().slots.held, 0, "no slot was needed");
}

#[test]
fn closures_that_hang_delay_neither_sandbox_calls_nor_each_others_answers() {
    let mut registry = ToolRegistry::builtin();
    let (release, wait) = bounded::<()>(0);
    registry
        .register_fn(schema("hang"), move |_, _| {
            let _ = wait.recv();
            Ok(String::new())
        })
        .unwrap();
    let executor = ToolExecutor::builder()
        .backend(Echoes(4))
        .registry(registry)
        .config(ExecutorConfig::default().with_handler_threads(2))
        .start()
        .unwrap();
    let hang = || ToolCall::new("hang", json!({}));
    let second = Duration::from_secs(1);
    let hanging: Vec<_> = (0..2)
        .map(|t| executor.submit(&format!("h{t}"), hang().with_timeout(second)).unwrap())
        .collect();
    let starved = executor.submit("h2", hang().with_timeout(second)).unwrap();
    for round in 0..50 {
        assert_eq!(executor.execute("t", bash(&round.to_string())).output, round.to_string());
    }
    for hanging in hanging {
        let result = hanging.wait_timeout(PATIENCE).unwrap();
        assert_eq!((result.outcome, result.may_have_executed), (Outcome::Timeout, true));
        assert!(result.error.contains("timed out after 1.0s"), "{}", result.error);
    }
    // Both threads are still taken: the third call waits, and starts when one returns.
    let starved = starved.try_wait().expect_err("no thread is free for it");
    drop(release);
    assert_eq!(starved.wait_timeout(PATIENCE).unwrap().outcome, Outcome::Ok);
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_cancelled_closure_is_told_and_its_caller_answered_at_once() {
    let mut registry = ToolRegistry::builtin();
    let (started, has_started) = unbounded();
    let (seen, has_seen) = unbounded();
    registry
        .register_fn(schema("patient"), move |context, _| {
            started.send(()).unwrap();
            while !context.is_cancelled() {
                std::thread::yield_now();
            }
            seen.send(()).unwrap();
            Ok("ignored".to_owned())
        })
        .unwrap();
    let executor = ToolExecutor::builder().registry(registry).start().unwrap();
    let pending = executor.submit("t", ToolCall::new("patient", json!({}))).unwrap();
    has_started.recv_timeout(PATIENCE).unwrap();
    pending.cancel();
    assert_eq!(pending.wait_timeout(PATIENCE).unwrap().outcome, Outcome::Cancelled);
    has_seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!(executor.stats().total_requests, 1);
}

#[test]
fn a_deferred_tool_takes_no_thread_while_it_is_waited_for() {
    let mut registry = ToolRegistry::empty();
    let (keep, kept) = unbounded();
    registry
        .register_deferred(schema("later"), move |context, _, reply| {
            keep.send((context.trajectory_id().to_owned(), reply)).unwrap();
        })
        .unwrap();
    let executor = ToolExecutor::builder()
        .registry(registry)
        .config(ExecutorConfig::default().with_handler_threads(1))
        .start()
        .unwrap();
    let queue = executor.completion_queue(500);
    let later = || ToolCall::new("later", json!({}));
    for tag in 0..500 {
        executor.submit_to(&format!("t{tag}"), later(), queue.tagged(tag)).unwrap();
    }
    // All of them are begun by the one thread before any is answered.
    let replies: Vec<_> = (0..500).map(|_| kept.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(executor.stats().running, 500);
    for (trajectory_id, reply) in replies {
        reply.send(Ok(format!("for {trajectory_id}")));
    }
    for _ in 0..500 {
        let done = queue.next_timeout(PATIENCE).unwrap();
        assert_eq!(done.result.output, format!("for t{}", done.tag));
    }
    let dropped = executor.submit("t", later()).unwrap();
    drop(kept.recv_timeout(PATIENCE).unwrap());
    assert_eq!(dropped.wait_timeout(PATIENCE).unwrap().outcome, Outcome::ExternalFailed);
    assert!(executor.close().all_threads_ended);
}

#[test]
fn deferred_calls_without_an_answer_are_bounded_by_the_capacity() {
    let mut registry = ToolRegistry::empty();
    let (keep, kept) = unbounded();
    registry
        .register_deferred(schema("later"), move |_, _, reply| keep.send(reply).unwrap())
        .unwrap();
    // 256 is the least.
    let executor = ToolExecutor::builder()
        .registry(registry)
        .config(ExecutorConfig::default().with_queue_capacity(300))
        .start()
        .unwrap();
    let pending: Vec<_> = (0..500)
        .map(|t| executor.submit(&format!("t{t}"), ToolCall::new("later", json!({}))).unwrap())
        .collect();
    let mut held: Vec<_> = (0..300).map(|_| kept.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(executor.stats().running, 300);
    assert!(kept.is_empty(), "the others wait");
    for _ in 0..200 {
        held.pop().unwrap().send(Ok(String::new()));
        held.push(kept.recv_timeout(PATIENCE).unwrap());
    }
    drop(held);
    for pending in pending {
        pending.wait_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn a_deferred_tool_that_panics_or_is_cancelled_or_late_has_an_outcome() {
    let mut registry = ToolRegistry::empty();
    let (keep, kept) = unbounded();
    registry
        .register_deferred(schema("later"), move |_, arguments, reply| {
            assert!(arguments.get("panic").is_none(), "expected by this test");
            keep.send(reply).unwrap();
        })
        .unwrap();
    let executor = ToolExecutor::builder().registry(registry).start().unwrap();
    let later = |arguments| ToolCall::new("later", arguments);
    let panicked = executor.execute("t", later(json!({"panic": 1})));
    assert_eq!(panicked.outcome, Outcome::ExternalFailed);
    assert!(panicked.error.contains("panicked"), "{}", panicked.error);
    let cancelled = executor.submit("t", later(json!({}))).unwrap();
    let reply = kept.recv_timeout(PATIENCE).unwrap();
    cancelled.cancel();
    assert_eq!(cancelled.wait_timeout(PATIENCE).unwrap().outcome, Outcome::Cancelled);
    reply.send(Ok("too late".to_owned()));
    let late = executor.execute("t", later(json!({})).with_timeout(Duration::from_secs(1)));
    assert_eq!(late.outcome, Outcome::Timeout);
    drop(kept.recv_timeout(PATIENCE).unwrap());
    assert_eq!(executor.execute("t", later(json!({"panic": 1}))).error, panicked.error);
}
