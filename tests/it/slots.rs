//! Slots: no trajectory starves or deadlocks, and nothing of one reaches another.

use std::collections::HashMap;
use std::time::Duration;

use tool_executor::config::ExecutorConfig;
use tool_executor::{Outcome, ReleaseError, ToolExecutor, ToolResult};

use crate::fakes::{Echoes, HandsOver, PATIENCE, Panics, bash, command, next};

/// Drives `trajectories` of `calls` calls each over `slots` slots, from one thread.
fn all_finish(slots: usize, trajectories: usize, calls: usize) {
    let executor = ToolExecutor::builder().backend(Echoes(slots)).start().unwrap();
    let queue = executor.completion_queue(trajectories);
    let names: Vec<String> = (0..trajectories).map(|t| format!("t{t}")).collect();
    for (tag, name) in names.iter().enumerate() {
        executor.submit_to(name, bash("0"), queue.tagged(tag as u64)).unwrap();
    }
    let mut done = HashMap::new();
    while queue.outstanding() > 0 {
        let completion = queue.next_timeout(PATIENCE).expect("somebody starves");
        assert_eq!(completion.result.outcome, Outcome::Ok, "{:?}", completion.result);
        let ended = done.entry(completion.tag).or_insert(0);
        assert_eq!(completion.result.output, ended.to_string());
        *ended += 1;
        let name = &names[completion.tag as usize];
        if *ended < calls {
            let call = bash(&ended.to_string());
            executor.submit_to(name, call, queue.tagged(completion.tag)).unwrap();
        } else {
            executor.submit_release(name);
        }
    }
    assert_eq!(done.len(), trajectories);
    executor.close();
    let stats = executor.stats();
    assert_eq!(stats.total_requests, (trajectories * calls) as u64);
    assert_eq!(stats.total_errors, 0);
    assert_eq!((stats.slots.held, stats.waiting_for_slot), (0, 0));
}

#[test]
fn eleven_fifty_and_five_hundred_trajectories_finish_on_ten_slots() {
    for trajectories in [11, 50, 500] {
        all_finish(10, trajectories, 4);
    }
}

#[test]
fn a_trajectory_that_holds_a_slot_never_waits_for_one_that_does_not() {
    let (backend, told) = HandsOver::new(2);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    for holder in ["a", "b"] {
        let first = executor.submit(holder, bash("first")).unwrap();
        next(&told).execution().reply.send(ToolResult::ok(""));
        assert!(first.wait_timeout(PATIENCE).unwrap().success);
    }
    let third = executor.submit("c", bash("third")).unwrap();
    for _ in 0..5 {
        let again = executor.submit("a", bash("again")).unwrap();
        let execution = next(&told).execution();
        assert_eq!(&*execution.trajectory_id, "a");
        execution.reply.send(ToolResult::ok(""));
        assert!(again.wait_timeout(PATIENCE).unwrap().success);
    }
    let third = third.try_wait().expect_err("there is no slot for it");
    executor.submit_release("b");
    next(&told).reset().1.send(Ok(()));
    next(&told).execution().reply.send(ToolResult::ok("at last"));
    assert_eq!(third.wait_timeout(PATIENCE).unwrap().output, "at last");
}

#[test]
fn waiting_for_a_slot_is_bounded_and_the_error_says_who_holds_them() {
    let (backend, told) = HandsOver::new(2);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_acquire_timeout(Duration::from_millis(20)))
        .start()
        .unwrap();
    let _busy = executor.submit("busy", bash("x")).unwrap();
    let held = next(&told).execution();
    let idle = executor.submit("idle", bash("y")).unwrap();
    next(&told).execution().reply.send(ToolResult::ok(""));
    idle.wait_timeout(PATIENCE).unwrap();
    let result = executor.execute("third", bash("z"));
    assert_eq!(result.outcome, Outcome::NeverRan);
    assert!(!result.may_have_executed);
    assert!(result.timing.slot >= Duration::from_millis(20), "{:?}", result.timing);
    for part in ["Failed to acquire slot: ", "2 slots", "busy (running bash", "idle (idle"] {
        assert!(result.error.contains(part), "{part:?} is not in {:?}", result.error);
    }
    drop(held);
    let again = executor.stats();
    assert_eq!((again.waiting_for_slot, again.slots.held), (0, 2));
}

#[test]
fn a_slot_released_without_reset_is_reset_before_another_trajectory_gets_it() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let run = |trajectory: &str| {
        let pending = executor.submit(trajectory, bash("x")).unwrap();
        move || assert!(pending.wait_timeout(PATIENCE).unwrap().success)
    };
    let done = run("a");
    next(&told).execution().reply.send(ToolResult::ok(""));
    done();
    executor.release_keeping_files("a").unwrap();
    let done = run("a");
    next(&told).execution().reply.send(ToolResult::ok("")); // no reset: its own files
    done();
    executor.release_keeping_files("a").unwrap();
    let done = run("b");
    next(&told).reset().1.send(Ok(()));
    let execution = next(&told).execution();
    assert_eq!(&*execution.trajectory_id, "b");
    execution.reply.send(ToolResult::ok(""));
    done();
}

#[test]
fn a_slot_whose_reset_failed_is_not_given_out() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_acquire_timeout(Duration::from_millis(50)))
        .start()
        .unwrap();
    let first = executor.submit("a", bash("x")).unwrap();
    next(&told).execution().reply.send(ToolResult::ok(""));
    first.wait_timeout(PATIENCE).unwrap();
    let executor = &executor;
    std::thread::scope(|scope| {
        let release = scope.spawn(|| executor.release("a"));
        next(&told).reset().1.send(Err("disk on fire".to_owned()));
        let refused = release.join().unwrap();
        assert_eq!(refused, Err(ReleaseError::ResetFailed("disk on fire".to_owned())));
    });
    let result = executor.execute("b", bash("y"));
    assert_eq!(result.outcome, Outcome::NeverRan);
    assert!(result.error.contains("1 kept back because a reset failed"), "{}", result.error);
    assert_eq!(executor.stats().slots.broken, 1);
}

#[test]
fn a_backend_that_panics_in_a_reset_has_failed_to_reset() {
    let executor = ToolExecutor::builder().backend(Panics).start().unwrap();
    let result = executor.execute("a", bash("x"));
    assert_eq!(result.outcome, Outcome::BackendFailed);
    assert!(matches!(executor.release("a"), Err(ReleaseError::ResetFailed(_))));
}

#[test]
fn a_lost_sandbox_is_told_and_its_slot_is_reset_before_anybody_gets_it() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let first = executor.submit("a", bash("x")).unwrap();
    let queued = executor.submit("a", bash("queued")).unwrap();
    let lost = ToolResult::failure(Outcome::SandboxLost, "gone");
    next(&told).execution().reply.send(lost);
    assert_eq!(first.wait_timeout(PATIENCE).unwrap().outcome, Outcome::SandboxLost);
    let queued = queued.wait_timeout(PATIENCE).unwrap();
    assert_eq!((queued.outcome, queued.may_have_executed), (Outcome::SandboxLost, false));
    executor.release_keeping_files("a").unwrap();
    let anew = executor.submit("a", bash("anew")).unwrap();
    next(&told).reset().1.send(Ok(()));
    next(&told).execution().reply.send(ToolResult::ok("anew"));
    assert_eq!(anew.wait_timeout(PATIENCE).unwrap().output, "anew");
}

#[test]
fn a_backend_that_never_answers_loses_the_call_after_the_grace_time_and_the_late_answer_is_ignored()
{
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_answer_grace(Duration::from_millis(10)))
        .start()
        .unwrap();
    let pending = executor.submit("a", bash("x").with_timeout(Duration::from_secs(1))).unwrap();
    let silent = next(&told).execution();
    let result = pending.wait_timeout(PATIENCE).unwrap();
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::SandboxLost, true));
    silent.reply.send(ToolResult::ok("too late"));
    let stats = executor.stats();
    assert_eq!((stats.total_requests, stats.running), (1, 0));
    assert_eq!(stats.outcomes.get(Outcome::SandboxLost), 1);
}

#[test]
fn containers_are_filled_evenly_and_each_gets_its_own_batches() {
    let containers = (0..4)
        .map(|number| tool_executor::backend::Container::numbered(format!("c{number}"), 2))
        .collect();
    let (backend, told) = HandsOver::with_containers(containers);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let pending: Vec<_> =
        (0..8).map(|t| executor.submit(&format!("t{t}"), bash("x")).unwrap()).collect();
    let mut per_container = [0; 4];
    for _ in &pending {
        let execution = next(&told).execution();
        assert_eq!(command(&execution), "x");
        let number: usize = execution.slot.addr.trim_start_matches('c').parse().unwrap();
        per_container[number] += 1;
        execution.reply.send(ToolResult::ok(""));
    }
    assert_eq!(per_container, [2; 4]);
    for pending in pending {
        pending.wait_timeout(PATIENCE).unwrap();
    }
}
