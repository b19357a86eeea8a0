//! Over a backend that does what a test tells it to do.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use serde_json::json;

use super::*;
use crate::backend::Container;
use crate::interrupt::Interrupt;
use crate::server::fifo_lock::MOST_WAITING;

const PATIENCE: Duration = Duration::from_secs(30);

enum Told {
    Execute(Vec<Execution>),
    Reset(SlotRef, ResetReply),
    Cancel(ExecutionId),
    Close,
}

/// Hands what it is told to the test.
struct HandsOver {
    containers: Vec<usize>,
    dirty: bool,
    tell: Sender<Told>,
}

impl Backend for HandsOver {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        let container = |slots: &usize| Container {
            addr: "fake".to_owned(),
            slots: (0..*slots).map(|slot| format!("slot_{slot}")).collect(),
        };
        Ok(self.containers.iter().map(container).collect())
    }

    fn execute(&self, addr: &str, batch: Vec<Execution>) {
        assert!(batch.iter().all(|execution| &*execution.slot.addr == addr));
        if batch.iter().any(|execution| execution.arguments.contains_key("panic")) {
            panic!("expected by this test");
        }
        let _ = self.tell.send(Told::Execute(batch));
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        if self.dirty {
            return reply.send(Ok(()));
        }
        let _ = self.tell.send(Told::Reset(slot.clone(), reply));
    }

    fn cancel(&self, id: ExecutionId) {
        let _ = self.tell.send(Told::Cancel(id));
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_starts_dirty(self.dirty)
    }

    fn close(&self, _deadline: Instant) {
        let _ = self.tell.send(Told::Close);
    }
}

fn backend(containers: &[usize]) -> (Arc<dyn Backend>, Receiver<Told>) {
    let (tell, told) = unbounded();
    (Arc::new(HandsOver { containers: containers.to_owned(), dirty: false, tell }), told)
}

fn started(count: usize) -> (Arc<Slots>, Receiver<Told>) {
    let (backend, told) = backend(&[count]);
    (Slots::start(backend, false).unwrap(), told)
}

/// The results, each under its call's name, in the order of their coming.
struct Results(Sender<(String, ToolResult)>, Receiver<(String, ToolResult)>);

impl Results {
    fn new() -> Self {
        let (tell, told) = unbounded();
        Self(tell, told)
    }

    /// A call that is named by its trajectory.
    fn call(&self, slot: usize, name: &str) -> SlotCall {
        let (tell, key) = (self.0.clone(), name.to_owned());
        SlotCall {
            slot,
            trajectory_id: name.into(),
            tool: "bash".to_owned(),
            arguments: JsonObject::new(),
            timeout: Duration::from_secs(1),
            on_done: Box::new(move |result| tell.send((key, result)).unwrap()),
        }
    }

    fn next(&self) -> (String, ToolResult) {
        self.1.recv_timeout(PATIENCE).unwrap()
    }

    fn none(&self) -> bool {
        self.1.is_empty()
    }
}

fn nothing() -> Box<dyn FnOnce() + Send> {
    Box::new(|| {})
}

fn batch(told: &Receiver<Told>) -> Vec<Execution> {
    match told.recv_timeout(PATIENCE).unwrap() {
        Told::Execute(batch) => batch,
        _ => panic!("told something else"),
    }
}

fn one(told: &Receiver<Told>) -> Execution {
    let mut batch = batch(told);
    assert_eq!(batch.len(), 1);
    batch.remove(0)
}

fn names(batch: &[Execution]) -> Vec<&str> {
    batch.iter().map(|execution| &*execution.trajectory_id).collect()
}

fn end(slots: &Slots) {
    slots.close(Instant::now());
}

#[test]
fn the_calls_of_free_slots_are_one_batch_and_the_others_take_their_turn() {
    let (slots, told) = started(3);
    let results = Results::new();
    let (tell, handed_over) = bounded(1);
    let calls = [(0, "a"), (1, "b"), (0, "c"), (2, "d"), (0, "e")];
    let ids = slots.execute(
        calls.iter().map(|(slot, name)| results.call(*slot, name)).collect(),
        Box::new(move || tell.send(()).unwrap()),
    );
    let first = batch(&told);
    assert_eq!(names(&first), ["a", "b", "d"]);
    let first_ids: Vec<_> = first.iter().map(|execution| execution.id).collect();
    assert_eq!(first_ids, [ids[0], ids[1], ids[3]]);
    handed_over.recv_timeout(PATIENCE).unwrap();
    assert!(told.is_empty() && results.none());
    assert!((0..3).all(|slot| slots.is_executing(slot)));
    assert_eq!(slots.current(1).as_deref(), Some("b"));

    for execution in first {
        execution.reply.send(ToolResult::ok(""));
    }
    for name in ["c", "e"] {
        let next = one(&told);
        assert_eq!((&*next.trajectory_id, next.slot.index), (name, 0));
        next.reply.send(ToolResult::ok(""));
    }
    let mut order: Vec<String> = (0..5).map(|_| results.next().0).collect();
    order.retain(|name| !["b", "d"].contains(&name.as_str()));
    assert_eq!(order, ["a", "c", "e"]);
    assert!(!slots.is_executing(0));
    end(&slots);
}

#[test]
fn without_a_free_slot_the_hand_over_is_at_once() {
    let (slots, told) = started(1);
    let results = Results::new();
    slots.execute(vec![results.call(0, "a")], nothing());
    let running = one(&told);
    let (tell, handed_over) = bounded(1);
    slots.execute(vec![results.call(0, "b")], Box::new(move || tell.send(()).unwrap()));
    handed_over.try_recv().unwrap();
    running.reply.send(ToolResult::ok(""));
    drop(one(&told));
    assert_eq!(results.next().0, "a");
    let (name, lost) = results.next();
    assert_eq!((name.as_str(), lost.outcome), ("b", Outcome::BackendFailed));
    end(&slots);
}

#[test]
fn a_slot_does_one_thing_at_a_time_in_order_of_arrival() {
    let (slots, told) = started(1);
    let results = Results::new();
    slots.execute(vec![results.call(0, "a")], nothing());
    let (tell, resets) = unbounded();
    slots.reset(0, Box::new(move |reset| tell.send(reset).unwrap()));
    let (tell, files) = unbounded();
    let (go_on, wait) = bounded::<()>(0);
    slots.with_slot(
        0,
        FileWork::Read,
        Box::new(move |_, slot| {
            tell.send(slot.clone()).unwrap();
            let _ = wait.recv();
        }),
    );
    slots.execute(vec![results.call(0, "b")], nothing());

    let first = one(&told);
    assert!(told.is_empty() && files.is_empty());
    assert_eq!(first.slot.generation, 0);
    first.reply.send(ToolResult::ok(""));
    let Told::Reset(slot, reply) = told.recv_timeout(PATIENCE).unwrap() else { panic!() };
    assert!(!slots.is_executing(0), "a reset is no call");
    assert!(files.is_empty());
    reply.send(Err("why".to_owned()));
    assert_eq!(resets.recv_timeout(PATIENCE).unwrap(), Err("why".to_owned()));
    assert_eq!(files.recv_timeout(PATIENCE).unwrap(), slot);
    assert!(told.is_empty());
    drop(go_on);
    let second = one(&told);
    assert_eq!(second.slot.generation, 1);
    second.reply.send(ToolResult::ok(""));
    assert_eq!(results.next().0, "a");
    assert_eq!(results.next().0, "b");
    end(&slots);
}

#[test]
fn whoever_hears_of_a_result_finds_the_slot_free() {
    let (slots, told) = started(1);
    let (tell, seen) = bounded(1);
    let looks = slots.clone();
    let mut call = Results::new().call(0, "a");
    call.on_done = Box::new(move |_| {
        let free = !looks.is_executing(0) && !looks.slots[0].fifo_lock.is_occupied();
        tell.send(free).unwrap();
        panic!("expected by this test");
    });
    slots.execute(vec![call], nothing());
    one(&told).reply.send(ToolResult::ok(""));
    assert!(seen.recv_timeout(PATIENCE).unwrap());
    end(&slots);
}

#[test]
fn a_panic_of_the_backend_answers_its_batch_and_nothing_else() {
    let (slots, told) = started(2);
    let results = Results::new();
    let mut panics = results.call(0, "a");
    panics.arguments.insert("panic".to_owned(), true.into());
    let (tell, handed_over) = bounded(1);
    slots.execute(
        vec![panics, results.call(1, "b"), results.call(0, "c")],
        Box::new(move || tell.send(()).unwrap()),
    );
    handed_over.recv_timeout(PATIENCE).unwrap();
    for _ in 0..2 {
        assert_eq!(results.next().1.outcome, Outcome::BackendFailed);
    }
    one(&told).reply.send(ToolResult::ok("well"));
    assert_eq!(results.next().1.output, "well");
    assert!(results.none());
    end(&slots);
}

#[test]
fn a_cancelled_call_that_waits_never_runs_and_one_that_runs_is_told_of() {
    let (slots, told) = started(1);
    let results = Results::new();
    let calls = ["a", "b", "c"].map(|name| results.call(0, name));
    let ids = slots.execute(calls.into(), nothing());
    let first = one(&told);
    slots.cancel(ids[1]);
    assert!(told.is_empty() && results.none() && !first.reply.is_cancelled());

    slots.cancel(ids[0]);
    assert!(first.reply.is_cancelled(), "the flag is first");
    assert!(matches!(told.recv_timeout(PATIENCE).unwrap(), Told::Cancel(id) if id == ids[0]));
    first.reply.send(ToolResult::failure(Outcome::Cancelled, "killed"));
    assert!(results.next().1.may_have_executed);
    let (name, result) = results.next();
    assert_eq!((name.as_str(), result.outcome), ("b", Outcome::Cancelled));
    assert!(!result.may_have_executed);

    let third = one(&told);
    assert_eq!(third.id, ids[2]);
    slots.cancel(ids[0]);
    third.reply.send(ToolResult::ok(""));
    assert_eq!(results.next().0, "c");
    assert!(told.is_empty(), "what is over cannot be cancelled");
    end(&slots);
}

#[test]
fn an_unknown_tool_is_told_when_its_turn_comes_and_holds_nobody_up() {
    let (slots, told) = started(1);
    let results = Results::new();
    let mut unknown = results.call(0, "a");
    unknown.tool = "nope".to_owned();
    slots.execute(vec![unknown, results.call(0, "b")], nothing());
    let (_, result) = results.next();
    assert_eq!((result.outcome, &*result.error), (Outcome::UnknownTool, "Unknown tool: nope"));
    one(&told).reply.send(ToolResult::ok(""));
    assert_eq!(results.next().0, "b");
    end(&slots);
}

#[test]
fn a_crowd_is_turned_away_and_the_others_end_when_the_server_closes() {
    let (slots, told) = started(1);
    let results = Results::new();
    let crowd = (0..MOST_WAITING + 2).map(|number| results.call(0, &number.to_string()));
    slots.execute(crowd.collect(), nothing());
    let (name, result) = results.next();
    assert_eq!((name, result.outcome), ((MOST_WAITING + 1).to_string(), Outcome::NeverRan));
    let kept = one(&told);
    assert!(results.none());

    end(&slots);
    assert!(matches!(told.recv_timeout(PATIENCE).unwrap(), Told::Close));
    let outcomes = (0..=MOST_WAITING).map(|_| results.next().1);
    let (may, not): (Vec<_>, Vec<_>) = outcomes.partition(|result| result.may_have_executed);
    assert_eq!((may.len(), not.len()), (1, MOST_WAITING));
    assert_eq!(may[0].outcome, Outcome::SandboxLost);
    assert!(not.iter().all(|result| result.outcome == Outcome::NeverRan));

    // What comes too late is answered at once, and what was answered is not answered again.
    kept.reply.send(ToolResult::ok(""));
    slots.execute(vec![results.call(0, "late")], nothing());
    assert_eq!(results.next().1.outcome, Outcome::NeverRan);
    let (tell, resets) = bounded(1);
    slots.reset(0, Box::new(move |reset| tell.send(reset).unwrap()));
    assert!(resets.try_recv().unwrap().is_err());
    let (tell, dropped) = bounded::<()>(0);
    slots.with_slot(0, FileWork::Read, Box::new(move |_, _| drop(tell)));
    assert!(dropped.recv_timeout(PATIENCE).is_err());
    assert!(results.none() && told.is_empty());
}

#[test]
fn closing_waits_for_what_runs_until_the_deadline() {
    let (slots, told) = started(1);
    let results = Results::new();
    slots.execute(vec![results.call(0, "a"), results.call(0, "b")], nothing());
    let first = one(&told);
    let closes = slots.clone();
    let closing = std::thread::spawn(move || closes.close(Instant::now() + PATIENCE));
    first.reply.send(ToolResult::ok(""));
    one(&told).reply.send(ToolResult::ok(""));
    closing.join().unwrap();
    assert!(results.next().1.success && results.next().1.success);
}

#[test]
fn without_network_no_call_has_it() {
    let (backend, told) = backend(&[1]);
    let slots = Slots::start(backend, true).unwrap();
    let results = Results::new();
    let mut call = results.call(0, "a");
    call.arguments.insert("allow_network".to_owned(), true.into());
    slots.execute(vec![call], nothing());
    assert_eq!(one(&told).arguments["allow_network"], json!(false));
    end(&slots);
}

#[test]
fn a_backend_has_one_container_and_what_is_dirty_is_emptied_first() {
    for containers in [&[][..], &[0], &[1, 1]] {
        assert!(Slots::start(backend(containers).0, false).is_err(), "{containers:?}");
    }
    let (tell, _told) = unbounded();
    let backend = HandsOver { containers: vec![3], dirty: true, tell };
    let slots = Slots::start(Arc::new(backend), false).unwrap();
    assert!((0..3).all(|slot| slots.slot_ref(slot).generation == 1));
    assert_eq!((slots.len(), slots.find("slot_2"), slots.find("x")), (3, Some(2), None));
    end(&slots);
}
