//! Completion queues and callbacks.

use std::time::Duration;

use crossbeam_channel::unbounded;
use tool_executor::config::ExecutorConfig;
use tool_executor::{Destination, Outcome, SubmitError, ToolExecutor, ToolResult};

use crate::fakes::{Echoes, HandsOver, PATIENCE, bash, next};

#[test]
fn one_thread_drives_a_thousand_trajectories() {
    let executor = ToolExecutor::builder().backend(Echoes(1000)).start().unwrap();
    let queue = executor.completion_queue(1000);
    for tag in 0..1000 {
        executor.submit_to(&format!("t{tag}"), bash(&tag.to_string()), queue.tagged(tag)).unwrap();
    }
    let mut seen = vec![false; 1000];
    let mut batch = Vec::new();
    while queue.outstanding() > 0 {
        assert!(queue.next_many(&mut batch, 64, PATIENCE) > 0);
        for completion in batch.drain(..) {
            assert_eq!(completion.result.output, completion.tag.to_string());
            assert_eq!(&*completion.trajectory_id, format!("t{}", completion.tag));
            assert!(!std::mem::replace(&mut seen[completion.tag as usize], true), "twice");
        }
    }
    assert!(seen.into_iter().all(|seen| seen));
    assert!(queue.next_timeout(Duration::ZERO).is_none());
}

#[test]
fn a_full_completion_queue_refuses_until_something_is_fetched() {
    let executor = ToolExecutor::builder().backend(Echoes(2)).start().unwrap();
    let queue = executor.completion_queue(1);
    executor.submit_to("t", bash("one"), queue.tagged(1)).unwrap();
    let refused = executor.submit_to("t", bash("two"), queue.tagged(2)).unwrap_err();
    assert!(matches!(refused, SubmitError::CompletionQueueFull(_)));
    assert_eq!(queue.next_timeout(PATIENCE).unwrap().tag, 1);
    executor.submit_to("t", refused.into_call(), queue.tagged(2)).unwrap();
    assert_eq!(queue.next_timeout(PATIENCE).unwrap().result.output, "two");
}

#[test]
fn a_refused_submission_takes_no_place() {
    let executor = ToolExecutor::builder().backend(Echoes(1)).start().unwrap();
    let queue = executor.completion_queue(4);
    executor.close();
    let refused = executor.submit_to("t", bash("x"), queue.tagged(0)).unwrap_err();
    assert!(matches!(refused, SubmitError::Closed(_)));
    assert_eq!(queue.outstanding(), 0);
}

#[test]
fn results_for_a_dropped_queue_are_thrown_away_and_nothing_else_happens() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let queue = executor.completion_queue(4);
    executor.submit_to("t", bash("x"), queue.tagged(0)).unwrap();
    drop(queue);
    next(&told).execution().reply.send(ToolResult::ok(""));
    let after = executor.submit("t", bash("y")).unwrap();
    next(&told).execution().reply.send(ToolResult::ok("fine"));
    assert_eq!(after.wait_timeout(PATIENCE).unwrap().output, "fine");
}

#[test]
fn a_callback_gets_the_result_and_a_panic_in_one_ends_there() {
    let executor = ToolExecutor::builder().backend(Echoes(1)).start().unwrap();
    let (tx, rx) = unbounded();
    executor
        .submit_to("t", bash("bad"), Destination::callback(|_| panic!("expected by this test")))
        .unwrap();
    executor
        .submit_to(
            "t",
            bash("good"),
            Destination::callback(move |completion| tx.send(completion).unwrap()),
        )
        .unwrap();
    let completion = rx.recv_timeout(PATIENCE).unwrap();
    assert_eq!(completion.result.output, "good");
    assert_eq!(&*completion.trajectory_id, "t");
    assert_eq!(executor.stats().outcomes.get(Outcome::Ok), 2);
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_callback_that_blocks_delays_no_result_and_the_number_of_waiting_callbacks_is_bounded() {
    let executor = ToolExecutor::builder()
        .backend(Echoes(1))
        .config(ExecutorConfig::default().with_queue_capacity(2))
        .start()
        .unwrap();
    let (release, wait) = unbounded::<()>();
    executor
        .submit_to(
            "t",
            bash("blocks"),
            Destination::callback(move |_| {
                let _ = wait.recv();
            }),
        )
        .unwrap();
    assert_eq!(executor.execute("t", bash("x")).output, "x");
    executor.submit_to("t", bash("waits"), Destination::callback(|_| {})).unwrap();
    let refused =
        executor.submit_to("t", bash("no room"), Destination::callback(|_| {})).unwrap_err();
    assert!(matches!(refused, SubmitError::CompletionQueueFull(_)));
    drop(release);
    assert!(executor.close().all_threads_ended);
}
