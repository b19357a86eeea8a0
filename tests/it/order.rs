//! One trajectory's calls run in order; different trajectories never wait for each other.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tool_executor::backend::{Backend, Capabilities, Container, Execution, ResetReply, SlotRef};
use tool_executor::config::{ExecutorConfig, Policy, UnknownArguments};
use tool_executor::{BackendError, Interrupt, Outcome, ToolCall, ToolExecutor, ToolResult};

use crate::fakes::{Echoes, HandsOver, PATIENCE, bash, command, next, one_container};

#[test]
fn calls_of_one_trajectory_run_one_after_the_other_whatever_their_timeouts() {
    let (backend, told) = HandsOver::new(4);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let timeouts = [300, 1, 60, 2, 600];
    let pending: Vec<_> = timeouts
        .iter()
        .enumerate()
        .map(|(index, seconds)| {
            let call = bash(&index.to_string());
            executor.submit("t", call.with_timeout(Duration::from_secs(*seconds))).unwrap()
        })
        .collect();
    let mut slot = None;
    for (index, seconds) in timeouts.into_iter().enumerate() {
        let execution = next(&told).execution();
        assert_eq!(command(&execution), index.to_string());
        assert_eq!(execution.timeout, Duration::from_secs(seconds));
        assert!(told.try_recv().is_err(), "the next call must wait for this one's end");
        let slot = slot.get_or_insert_with(|| execution.slot.clone());
        assert_eq!(*slot, execution.slot, "a trajectory keeps its slot");
        execution.reply.send(ToolResult::ok("done"));
    }
    for pending in pending {
        assert_eq!(pending.wait_timeout(PATIENCE).unwrap().output, "done");
    }
}

#[test]
fn a_call_that_takes_for_ever_delays_nobody_else() {
    let (backend, told) = HandsOver::new(32);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let stuck = executor.submit("stuck", bash("stuck")).unwrap();
    let held = next(&told).execution();
    for round in 0..20 {
        let others: Vec<_> = (0..31)
            .map(|t| executor.submit(&format!("t{t}"), bash(&round.to_string())).unwrap())
            .collect();
        for _ in &others {
            let execution = next(&told).execution();
            assert_ne!(command(&execution), "stuck");
            execution.reply.send(ToolResult::ok("quick"));
        }
        for other in others {
            assert_eq!(other.wait_timeout(PATIENCE).unwrap().output, "quick");
        }
    }
    let stuck = stuck.try_wait().expect_err("it must still run");
    held.reply.send(ToolResult::ok("late"));
    assert_eq!(stuck.wait_timeout(PATIENCE).unwrap().output, "late");
}

#[test]
fn a_release_takes_place_after_the_calls_before_it_and_before_those_after_it() {
    let (backend, told) = HandsOver::new(2);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let before = executor.submit("t", bash("before")).unwrap();
    executor.submit_release("t");
    let after = executor.submit("t", bash("after")).unwrap();
    let execution = next(&told).execution();
    assert_eq!(command(&execution), "before");
    let first_slot = execution.slot.clone();
    assert!(told.try_recv().is_err(), "a release waits for the running call");
    execution.reply.send(ToolResult::ok(""));
    let (slot, reply) = next(&told).reset();
    assert_eq!((&slot.addr, slot.index), (&first_slot.addr, first_slot.index));
    assert!(told.try_recv().is_err(), "what follows a release waits for the reset");
    reply.send(Ok(()));
    let execution = next(&told).execution();
    assert_eq!(command(&execution), "after");
    assert!(
        execution.slot.index != first_slot.index
            || execution.slot.generation > first_slot.generation,
        "a call after release gets a fresh slot"
    );
    execution.reply.send(ToolResult::ok(""));
    assert!(before.wait_timeout(PATIENCE).unwrap().success);
    assert!(after.wait_timeout(PATIENCE).unwrap().success);
}

#[test]
fn a_cancelled_call_that_waits_ends_at_once_and_one_that_runs_when_its_backend_says_so() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let running = executor.submit("t", bash("running")).unwrap();
    let waiting = executor.submit("t", bash("waiting")).unwrap();
    let execution = next(&told).execution();
    waiting.cancel();
    let waiting = waiting.wait_timeout(PATIENCE).unwrap();
    assert_eq!(waiting.outcome, Outcome::Cancelled);
    assert!(!waiting.may_have_executed);
    running.cancel();
    let crate::fakes::Told::Cancel(id) = next(&told) else { panic!("expected a cancel") };
    assert_eq!(id, execution.id);
    let running = running.try_wait().expect_err("not before its last process is gone");
    execution.reply.send(ToolResult::failure(Outcome::Cancelled, "killed"));
    let running = running.wait_timeout(PATIENCE).unwrap();
    assert_eq!((running.outcome, running.may_have_executed), (Outcome::Cancelled, true));
    assert_eq!(executor.stats().outcomes.get(Outcome::Cancelled), 2);
}

#[test]
fn dropping_a_pending_cancels_nothing_and_leaks_nothing() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    drop(executor.submit("t", bash("one")).unwrap());
    let next_call = executor.submit("t", bash("two")).unwrap();
    let execution = next(&told).execution();
    assert_eq!(command(&execution), "one", "it runs although nobody waits for it");
    execution.reply.send(ToolResult::ok(""));
    next(&told).execution().reply.send(ToolResult::ok(""));
    assert!(next_call.wait_timeout(PATIENCE).unwrap().success);
    executor.release_keeping_files("t").unwrap();
    let stats = executor.stats();
    assert_eq!((stats.total_requests, stats.running, stats.queue_size), (2, 0, 0));
    assert_eq!((stats.trajectories, stats.slots.held), (0, 0));
}

#[test]
fn a_call_that_is_cancelled_while_its_batch_waits_for_a_thread_never_reaches_the_backend() {
    /// Tells of each call, then waits until it may go on.
    struct BlocksInExecute(Sender<String>, Receiver<()>);
    impl Backend for BlocksInExecute {
        fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
            Ok(one_container(2))
        }
        fn execute(&self, addr: &str, batch: Vec<Execution>) {
            for execution in &batch {
                self.0.send(command(execution).to_owned()).unwrap();
            }
            let _ = self.1.recv();
            Echoes(2).execute(addr, batch);
        }
        fn reset(&self, slot: &SlotRef, reply: ResetReply) {
            Echoes(2).reset(slot, reply);
        }
    }
    let (told, has_been_told) = unbounded();
    let (go_on, wait) = unbounded();
    let backend = BlocksInExecute(told, wait);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_io_threads(1))
        .start()
        .unwrap();
    let first = executor.submit("a", bash("first")).unwrap();
    assert_eq!(has_been_told.recv_timeout(PATIENCE).unwrap(), "first");
    let second = executor.submit("b", bash("second")).unwrap();
    while executor.stats().running < 2 {
        std::thread::yield_now();
    }
    second.cancel();
    executor.stats(); // answered after the cancel was seen to
    drop(go_on);
    let result = second.wait_timeout(PATIENCE).unwrap();
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::Cancelled, false));
    assert!(first.wait_timeout(PATIENCE).unwrap().success);
    assert!(executor.close().all_threads_ended);
    assert!(has_been_told.try_recv().is_err());
}

#[test]
fn calls_that_a_backend_takes_at_once_are_handed_over_by_the_batcher_itself() {
    /// Answers with the name of the thread that it is called on, and panics at "panic".
    struct TellsItsThread;
    impl Backend for TellsItsThread {
        fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
            Ok(one_container(2))
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities::default().with_inline_tools(&["bash"])
        }
        fn execute(&self, _addr: &str, batch: Vec<Execution>) {
            for execution in batch {
                assert_ne!(command(&execution), "panic", "expected by this test");
                let thread = std::thread::current().name().unwrap_or_default().to_owned();
                execution.reply.send(ToolResult::ok(thread));
            }
        }
        fn reset(&self, slot: &SlotRef, reply: ResetReply) {
            Echoes(2).reset(slot, reply);
        }
    }
    // `read_file` has no argument `command`; the test's backend has.
    let policy = Policy::default().with_unknown_arguments(UnknownArguments::Ignore);
    let config = ExecutorConfig::default().with_policy(policy);
    let executor = ToolExecutor::builder().config(config).backend(TellsItsThread).start().unwrap();
    let read = ToolCall::new("read_file", serde_json::json!({"path": "x", "command": ""}));
    for _ in 0..3 {
        assert_eq!(executor.execute("t", bash("")).output, "tool-batcher");
        assert!(executor.execute("t", read.clone()).output.starts_with("tool-io-"));
        let panicked = executor.execute("t", bash("panic"));
        assert_eq!(panicked.outcome, Outcome::BackendFailed, "{panicked:?}");
    }
    assert!(executor.close().all_threads_ended);
}
