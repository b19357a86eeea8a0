//! Closing: finishes what was accepted, bounded by a deadline, and joins every thread.

use std::time::Duration;

use tool_executor::config::ExecutorConfig;
use tool_executor::{Destination, Outcome, ReleaseError, SubmitError, ToolExecutor, ToolResult};

use crate::fakes::{Echoes, HandsOver, PATIENCE, Panics, Told, bash, next};

#[test]
fn closing_finishes_what_was_accepted_and_then_refuses_clearly() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let pending: Vec<_> =
        (0..3).map(|t| executor.submit(&format!("t{t}"), bash("x")).unwrap()).collect();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| executor.close());
        // One slot for three trajectories: no caller releases any more, so closing does.
        let mut calls = 0;
        while calls < 3 {
            match next(&told) {
                Told::Execute(execution) => {
                    calls += 1;
                    execution.reply.send(ToolResult::ok("done"));
                }
                Told::Reset(_, reply) => reply.send(Ok(())),
                Told::Cancel(_) => panic!("there is time enough"),
                Told::Begin(..) => panic!("no trajectory begins"),
            }
        }
        let report = closing.join().unwrap();
        assert_eq!((report.cancelled, report.all_threads_ended), (0, true));
    });
    for pending in pending {
        assert_eq!(pending.try_wait().unwrap().output, "done");
    }
    let refused = executor.submit("t", bash("late")).unwrap_err();
    assert!(matches!(refused, SubmitError::Closed(_)));
    let result = executor.execute("t", bash("late"));
    assert_eq!(result.outcome, Outcome::NeverRan);
    assert!(result.error.contains("closed"), "{}", result.error);
    assert_eq!(executor.release("t0"), Err(ReleaseError::Closed));
    assert_eq!(executor.stats().total_requests, 3, "the statistics stay readable");
    assert!(executor.close().all_threads_ended, "closing twice gives the same report");
}

#[test]
fn what_has_not_ended_at_the_deadline_is_cancelled_and_answered() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let running = executor.submit("a", bash("running")).unwrap();
    let queued = executor.submit("a", bash("queued")).unwrap();
    let waiting = executor.submit("b", bash("waiting")).unwrap();
    let execution = next(&told).execution();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| executor.close_within(Duration::from_millis(10)));
        let Told::Cancel(id) = next(&told) else { panic!("expected a cancel") };
        assert_eq!(id, execution.id);
        execution.reply.send(ToolResult::failure(Outcome::Cancelled, "killed"));
        let report = closing.join().unwrap();
        assert_eq!((report.cancelled, report.all_threads_ended), (3, true));
    });
    assert_eq!(running.try_wait().unwrap().outcome, Outcome::Cancelled);
    for never in [queued, waiting] {
        let result = never.try_wait().unwrap();
        assert_eq!((result.outcome, result.may_have_executed), (Outcome::NeverRan, false));
    }
}

#[test]
fn a_backend_that_does_not_answer_its_cancel_cannot_keep_the_executor_open() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let pending = executor.submit("a", bash("x")).unwrap();
    let held = next(&told).execution();
    let report = executor.close_within(Duration::ZERO);
    assert_eq!((report.cancelled, report.all_threads_ended), (1, true));
    assert_eq!(pending.try_wait().unwrap().outcome, Outcome::SandboxLost);
    drop(held);
}

#[test]
fn dropping_the_executor_closes_it() {
    let executor = ToolExecutor::builder().backend(Echoes(2)).start().unwrap();
    let pending = executor.submit("a", bash("x")).unwrap();
    drop(executor);
    assert_eq!(pending.try_wait().unwrap().output, "x");
}

#[test]
fn submitters_that_wait_for_room_are_sent_away_when_it_closes() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_queue_capacity(1))
        .start()
        .unwrap();
    let _running = executor.submit("a", bash("running")).unwrap();
    let execution = next(&told).execution();
    let _queued = executor.submit("a", bash("queued")).unwrap();
    std::thread::scope(|scope| {
        // Whether it waits already or comes later, it must not get in.
        let blocked = scope.spawn(|| executor.submit("b", bash("blocked")));
        let closing = scope.spawn(|| executor.close_within(Duration::from_millis(10)));
        let Told::Cancel(_) = next(&told) else { panic!("expected a cancel") };
        execution.reply.send(ToolResult::failure(Outcome::Cancelled, "killed"));
        closing.join().unwrap();
        // It may also have slipped in before the close, into the room that an abort made.
        match blocked.join().unwrap() {
            Err(SubmitError::Closed(_)) => {}
            Err(other) => panic!("{other}"),
            Ok(pending) => {
                assert_eq!(pending.wait_timeout(PATIENCE).unwrap().outcome, Outcome::NeverRan);
            }
        }
    });
}

#[test]
fn a_backend_that_panics_is_closed_like_any_other() {
    let executor = ToolExecutor::builder().backend(Panics).start().unwrap();
    let result = executor.execute("a", bash("x"));
    assert_eq!(result.outcome, Outcome::BackendFailed);
    assert!(result.error.contains("panicked"), "{}", result.error);
    assert_eq!(executor.execute("b", bash("x")).outcome, Outcome::BackendFailed);
    assert!(executor.close().all_threads_ended);
}

#[test]
fn closing_from_inside_a_callback_does_not_deadlock() {
    let executor = std::sync::Arc::new(ToolExecutor::builder().backend(Echoes(1)).start().unwrap());
    let (tx, rx) = crossbeam_channel::unbounded();
    let inner = executor.clone();
    executor
        .submit_to(
            "t",
            bash("x"),
            Destination::callback(move |_| {
                tx.send(inner.close()).unwrap();
            }),
        )
        .unwrap();
    let report = rx.recv_timeout(PATIENCE).unwrap();
    assert!(!report.all_threads_ended, "the callback's own thread still runs");
}

#[test]
fn a_close_in_a_hurry_shortens_one_that_is_under_way() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let pending = executor.submit("a", bash("x")).unwrap();
    let execution = next(&told).execution();
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| executor.close_within(Duration::MAX));
        while executor.try_submit("b", bash("late")).is_ok() {}
        let hurried = scope.spawn(|| executor.close_within(Duration::ZERO));
        let told = told.recv_timeout(PATIENCE);
        execution.reply.send(ToolResult::failure(Outcome::Cancelled, "killed"));
        assert!(matches!(told, Ok(Told::Cancel(_))), "the running call is cancelled at once");
        assert_eq!(patient.join().unwrap(), hurried.join().unwrap());
    });
    assert_eq!(pending.try_wait().unwrap().outcome, Outcome::Cancelled);
}

#[test]
fn a_close_with_an_absurd_time_limit_is_a_close_without_one() {
    let executor = ToolExecutor::builder().backend(Echoes(1)).start().unwrap();
    assert!(executor.close_within(Duration::MAX).all_threads_ended);
    // Just before the latest instant that there is: nothing can be added to it.
    let executor = ToolExecutor::builder().backend(Echoes(1)).start().unwrap();
    let mut latest = Duration::ZERO;
    for bit in (0..64).rev() {
        let later = latest + Duration::from_secs(1 << bit);
        if std::time::Instant::now().checked_add(later).is_some() {
            latest = later;
        }
    }
    assert!(executor.close_within(latest).all_threads_ended);
}
