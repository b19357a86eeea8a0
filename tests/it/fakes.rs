//! Backends that do what a test needs, named by what they do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use tool_executor::backend::{
    Backend, BeginReply, Container, Execution, ExecutionId, ResetReply, SlotRef,
};
use tool_executor::{BackendError, Interrupt, Outcome, ToolCall, ToolResult, TrajectorySpec};

/// Long enough for anything that should happen, on a busy machine; a test that waits for it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Comes back when this is so: what is waited for cannot be told by a channel.
pub(crate) fn until(so: impl FnMut() -> bool) {
    until_within(PATIENCE, so);
}

/// The same of what takes long where the machine is busy.
pub(crate) fn until_within(most: Duration, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + most;
    while !so() {
        assert!(Instant::now() < deadline, "it never came to be");
        // Between two looks, not in the hope that it is so afterwards.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One container of so many slots.
pub(crate) fn one_container(slots: usize) -> Vec<Container> {
    vec![Container::numbered("fake", slots)]
}

/// The command of a `bash` execution.
pub(crate) fn command(execution: &Execution) -> &str {
    execution.arguments.get("command").and_then(|command| command.as_str()).unwrap_or("")
}

/// A call of `bash` whose command tells the fake what to do.
pub(crate) fn bash(command: &str) -> ToolCall {
    ToolCall::bash(command)
}

/// Answers every call at once with its own command as the output; resets succeed.
pub(crate) struct Echoes(pub(crate) usize);

impl Backend for Echoes {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(one_container(self.0))
    }

    fn execute(&self, _addr: &str, batch: Vec<Execution>) {
        for execution in batch {
            let output = command(&execution).to_owned();
            execution.reply.send(ToolResult::ok(output));
        }
    }

    fn reset(&self, _slot: &SlotRef, reply: ResetReply) {
        reply.send(Ok(()));
    }
}

/// Answers every call at once with how many there were in its slot.
#[derive(Default)]
pub(crate) struct Counts(Mutex<HashMap<usize, usize>>);

impl Backend for Counts {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(one_container(1))
    }

    fn execute(&self, _addr: &str, batch: Vec<Execution>) {
        for execution in batch {
            let count = {
                let mut counts = self.0.lock();
                let count = counts.entry(execution.slot.index).or_default();
                *count += 1;
                *count
            };
            execution.reply.send(ToolResult::ok(count.to_string()));
        }
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        self.0.lock().remove(&slot.index);
        reply.send(Ok(()));
    }
}

/// What a [`HandsOver`] backend was told to do.
pub(crate) enum Told {
    Execute(Execution),
    Begin(SlotRef, Arc<TrajectorySpec>, BeginReply),
    Reset(SlotRef, ResetReply),
    Cancel(ExecutionId),
}

impl Told {
    pub(crate) fn execution(self) -> Execution {
        match self {
            Told::Execute(execution) => execution,
            Told::Reset(slot, _) => panic!("expected a call, got a reset of {}", slot.name),
            Told::Cancel(id) => panic!("expected a call, got a cancel of {id}"),
            Told::Begin(slot, ..) => panic!("expected a call, got a begin in {}", slot.name),
        }
    }

    pub(crate) fn begin(self) -> (SlotRef, Arc<TrajectorySpec>, BeginReply) {
        match self {
            Told::Begin(slot, spec, reply) => (slot, spec, reply),
            Told::Execute(execution) => panic!("expected a begin, got {}", command(&execution)),
            Told::Reset(slot, _) => panic!("expected a begin, got a reset of {}", slot.name),
            Told::Cancel(id) => panic!("expected a begin, got a cancel of {id}"),
        }
    }

    pub(crate) fn reset(self) -> (SlotRef, ResetReply) {
        match self {
            Told::Reset(slot, reply) => (slot, reply),
            Told::Execute(execution) => panic!("expected a reset, got {}", command(&execution)),
            Told::Cancel(id) => panic!("expected a reset, got a cancel of {id}"),
            Told::Begin(slot, ..) => panic!("expected a reset, got a begin in {}", slot.name),
        }
    }
}

/// Hands everything to the test, which answers when it likes.
pub(crate) struct HandsOver {
    containers: Vec<Container>,
    told: Sender<Told>,
}

impl HandsOver {
    pub(crate) fn new(slots: usize) -> (Self, Receiver<Told>) {
        Self::with_containers(one_container(slots))
    }

    pub(crate) fn with_containers(containers: Vec<Container>) -> (Self, Receiver<Told>) {
        let (told, receiver) = unbounded();
        (Self { containers, told }, receiver)
    }
}

impl Backend for HandsOver {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(self.containers.clone())
    }

    fn execute(&self, _addr: &str, batch: Vec<Execution>) {
        for execution in batch {
            let _ = self.told.send(Told::Execute(execution));
        }
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        let _ = self.told.send(Told::Reset(slot.clone(), reply));
    }

    fn begin(&self, slot: &SlotRef, spec: &Arc<TrajectorySpec>, reply: BeginReply) {
        let _ = self.told.send(Told::Begin(slot.clone(), spec.clone(), reply));
    }

    fn cancel(&self, id: ExecutionId) {
        let _ = self.told.send(Told::Cancel(id));
    }
}

/// The next thing a [`HandsOver`] backend was told, within the test's patience.
pub(crate) fn next(told: &Receiver<Told>) -> Told {
    told.recv_timeout(PATIENCE).expect("the backend was told nothing")
}

/// Panics in whatever it is asked to do.
pub(crate) struct Panics;

impl Backend for Panics {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(one_container(2))
    }

    fn execute(&self, _addr: &str, _batch: Vec<Execution>) {
        panic!("expected by this test");
    }

    fn reset(&self, _slot: &SlotRef, _reply: ResetReply) {
        panic!("expected by this test");
    }

    fn begin(&self, _slot: &SlotRef, _spec: &Arc<TrajectorySpec>, _reply: BeginReply) {
        panic!("expected by this test");
    }
}

/// Refuses to start.
pub(crate) struct FailsToStart;

impl Backend for FailsToStart {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Err(BackendError::with_source("no containers", std::io::Error::other("the cause")))
    }

    fn execute(&self, _addr: &str, _batch: Vec<Execution>) {}

    fn reset(&self, _slot: &SlotRef, _reply: ResetReply) {}
}

/// A result with this outcome.
pub(crate) fn result(outcome: Outcome) -> ToolResult {
    match outcome {
        Outcome::Ok => ToolResult::ok("ok"),
        other => ToolResult::failure(other, other.as_str()),
    }
}
