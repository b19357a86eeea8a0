//! Exactly one answer: random schedules of submit, cancel, release and close over a backend that
//! fails in every way it can.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::json;
use tool_executor::backend::{Backend, Container, Execution, ExecutionId, ResetReply, SlotRef};
use tool_executor::config::ExecutorConfig;
use tool_executor::{
    BackendError, Interrupt, Outcome, ToolCall, ToolExecutor, ToolRegistry, ToolResult, ToolSchema,
};

use crate::fakes::{PATIENCE, bash, command, one_container, result};

/// Does what each command says: `ok`, `fail`, `lost`, `panic`, `forget` (drops the reply), `hold`
/// (answers when cancelled, or later from another thread). Watches that no slot is used twice.
struct Misbehaves {
    slots: usize,
    resets_fail: AtomicBool,
    busy: Arc<Mutex<HashSet<usize>>>,
    overlaps: Arc<AtomicBool>,
    held: Mutex<HashMap<ExecutionId, Execution>>,
    later: Sender<Execution>,
}

impl Misbehaves {
    fn finish(&self, execution: Execution, outcome: Outcome) {
        self.busy.lock().remove(&execution.slot.index);
        execution.reply.send(result(outcome));
    }
}

impl Backend for Misbehaves {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(one_container(self.slots))
    }

    fn execute(&self, _addr: &str, batch: Vec<Execution>) {
        let must_panic = batch.iter().any(|execution| command(execution) == "panic");
        for execution in &batch {
            if !self.busy.lock().insert(execution.slot.index) {
                self.overlaps.store(true, Ordering::SeqCst);
            }
        }
        if must_panic {
            for execution in &batch {
                self.busy.lock().remove(&execution.slot.index);
            }
            panic!("expected by this test");
        }
        for execution in batch {
            match command(&execution) {
                "fail" => self.finish(execution, Outcome::NonZeroExit),
                "lost" => self.finish(execution, Outcome::SandboxLost),
                "forget" => {
                    self.busy.lock().remove(&execution.slot.index);
                    drop(execution);
                }
                "hold" => {
                    let (id, cancellation) = (execution.id, execution.reply.cancellation());
                    self.held.lock().insert(id, execution);
                    if cancellation.is_requested() {
                        self.cancel(id);
                    }
                }
                "later" => {
                    self.busy.lock().remove(&execution.slot.index);
                    let _ = self.later.send(execution);
                }
                _ => self.finish(execution, Outcome::Ok),
            }
        }
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        if self.busy.lock().contains(&slot.index) {
            self.overlaps.store(true, Ordering::SeqCst);
        }
        match self.resets_fail.fetch_xor(true, Ordering::SeqCst) {
            true => reply.send(Err("odd reset".to_owned())),
            false => reply.send(Ok(())),
        }
    }

    fn cancel(&self, id: ExecutionId) {
        let held = self.held.lock().remove(&id);
        if let Some(execution) = held {
            self.finish(execution, Outcome::Cancelled);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Submit(u8, &'static str),
    Handler(u8, u8),
    Cancel(u8),
    CancelTrajectory(u8),
    Release(u8, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = ["ok", "ok", "ok", "fail", "lost", "panic", "forget", "hold", "later"];
    prop_oneof![
        6 => (0..8u8, proptest::sample::select(kinds.to_vec()))
            .prop_map(|(t, kind)| Step::Submit(t, kind)),
        2 => (0..8u8, 0..3u8).prop_map(|(t, kind)| Step::Handler(t, kind)),
        2 => any::<u8>().prop_map(Step::Cancel),
        1 => (0..8u8).prop_map(Step::CancelTrajectory),
        2 => (0..8u8, any::<bool>()).prop_map(|(t, reset)| Step::Release(t, reset)),
    ]
}

fn registry() -> ToolRegistry {
    let mut registry = ToolRegistry::builtin();
    registry
        .register_fn(ToolSchema::new("closure", ""), |_, arguments| {
            match arguments["kind"].as_u64() {
                Some(0) => Ok("ok".to_owned()),
                Some(1) => Err("no".to_owned()),
                _ => panic!("expected by this test"),
            }
        })
        .unwrap();
    registry
}

fn run(steps: &[Step], slots: usize, close_ms: u64) -> Result<(), TestCaseError> {
    let (later, to_answer) = unbounded::<Execution>();
    let answers_later = std::thread::spawn(move || {
        for execution in to_answer {
            execution.reply.send(ToolResult::ok("later"));
        }
    });
    let overlaps = Arc::new(AtomicBool::new(false));
    let busy = Arc::new(Mutex::new(HashSet::new()));
    let executor = ToolExecutor::builder()
        .backend(Misbehaves {
            slots,
            resets_fail: AtomicBool::new(false),
            busy: busy.clone(),
            overlaps: overlaps.clone(),
            held: Mutex::new(HashMap::new()),
            later,
        })
        .registry(registry())
        .config(
            ExecutorConfig::default()
                .with_io_threads(2)
                .with_handler_threads(2)
                .with_acquire_timeout(Duration::from_millis(40)),
        )
        .start()
        .unwrap();
    let mut pending = Vec::new();
    let mut ids = Vec::new();
    for step in steps {
        match step {
            Step::Submit(t, kind) => {
                let call = bash(kind);
                ids.push(call.uniq_id.clone());
                pending.push(executor.submit(&format!("t{t}"), call).unwrap());
            }
            Step::Handler(t, kind) => {
                let call = ToolCall::new("closure", json!({"kind": kind}));
                ids.push(call.uniq_id.clone());
                pending.push(executor.submit(&format!("t{t}"), call).unwrap());
            }
            Step::Cancel(index) => {
                if !pending.is_empty() {
                    pending[*index as usize % pending.len()].cancel();
                }
            }
            Step::CancelTrajectory(t) => executor.cancel_trajectory(&format!("t{t}")),
            Step::Release(t, true) => executor.submit_release(&format!("t{t}")),
            Step::Release(t, false) => executor.submit_release_keeping_files(&format!("t{t}")),
        }
    }
    let report = executor.close_within(Duration::from_millis(close_ms));
    prop_assert!(report.all_threads_ended);
    let stats = executor.stats();
    let mut errors = 0;
    let count = pending.len() as u64;
    for (pending, id) in pending.into_iter().zip(ids) {
        let result = pending.try_wait();
        prop_assert!(result.is_ok(), "a call without an answer after close");
        let result = result.unwrap();
        prop_assert_eq!(result.uniq_id, Some(id));
        prop_assert_eq!(result.success, result.outcome == Outcome::Ok);
        errors += u64::from(!result.success);
    }
    prop_assert_eq!(stats.total_requests, count, "each call is counted once");
    prop_assert_eq!(stats.total_errors, errors);
    prop_assert_eq!(stats.outcomes.total(), count);
    prop_assert_eq!((stats.queue_size, stats.running, stats.waiting_for_slot), (0, 0, 0));
    prop_assert_eq!(stats.slots.held, 0, "no slot leaks");
    prop_assert!(!overlaps.load(Ordering::SeqCst), "two users of one slot");
    drop(executor);
    answers_later.join().unwrap();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_accepted_call_ends_once_and_the_counters_add_up(
        steps in proptest::collection::vec(step(), 1..60),
        slots in 1..5usize,
        close_ms in 0..60u64,
    ) {
        // What runs is bounded by the grace times; a deadlock must not hang the test run.
        let (done, wait) = unbounded();
        std::thread::spawn(move || done.send(run(&steps, slots, close_ms)));
        match wait.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome?,
            Err(_) => prop_assert!(false, "the executor hangs, or panicked"),
        }
    }
}
