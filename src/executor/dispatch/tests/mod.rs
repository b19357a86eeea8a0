//! Random histories under a clock of the test's own, and after each event the invariants that the
//! module states. Reports from the backend stay on their way for as long as the history likes, so
//! timers, cancellations and answers cross each other in every order.

mod begin;
mod containers;
mod idle;
mod invariants;
mod slot_wait;
mod stopped;
mod tiers;

use std::collections::HashSet;

use crossbeam_channel::{Receiver, Sender, unbounded};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::backend::{Capabilities, ContainerChange, LeasedSlots, Reply};
use crate::config::BatchPolicy;
use crate::error::{BeginError, BeginFailure, ReleaseError};
use crate::executor::lease::{Lease, LeaseId};
use crate::executor::orders::OrderPlace;
use crate::executor::promise::{Pending, Promise, ReplyTo};
use crate::tool::{CallTimes, Policy, Prepared, ToolCall, ToolRegistry, ToolSchema, prepare};

const HANDLERS: usize = 2;
const MAX_BATCH: usize = 3;
const TRAJECTORIES: u8 = 6;
/// The ids of calls are below it.
const FIRST_BEGIN: u64 = 1 << 32;

fn limits() -> Limits {
    Limits {
        batch: BatchLimits {
            policy: BatchPolicy::Adaptive,
            window: Duration::from_millis(20),
            max_size: MAX_BATCH,
        },
        queue_timeout: Duration::from_secs(20),
        acquire_timeout: Duration::from_secs(7),
        answer_grace: Duration::from_secs(3),
        reset_timeout: Duration::from_secs(2),
        begin_timeout: Duration::from_secs(5),
        external: [HANDLERS, 0],
        unanswered: 1000,
        on_lost: LostWorkspace::Refuse,
        idle_limit: None,
        may_grow: false,
    }
}

fn containers(sizes: &[usize]) -> Vec<Container> {
    let slots = |size: usize| (0..size).map(|slot| format!("slot_{slot}")).collect();
    let container =
        |(number, &size)| Container { addr: addr(number).to_string(), slots: slots(size) };
    sizes.iter().enumerate().map(container).collect()
}

/// The address of a container in these tests.
fn addr(number: usize) -> Arc<str> {
    format!("container-{number}").into()
}

/// The number of the container at this address.
fn number(addr: &str) -> usize {
    addr.trim_start_matches("container-").parse().unwrap()
}

fn registry() -> ToolRegistry {
    let mut registry = ToolRegistry::builtin();
    registry.register_fn(ToolSchema::new("closure", ""), |_, _| Ok(String::new())).unwrap();
    registry
}

/// A running call as its backend sees it.
struct Running {
    id: ExecutionId,
    slot: Option<(usize, usize)>,
    reply: Option<Reply>,
}

/// A dispatch state and everything around it.
struct World {
    dispatch: Dispatch,
    now: Instant,
    /// The tiers that begins may use.
    may: TierSet,
    gate: Arc<Gate>,
    registry: ToolRegistry,
    sender: Sender<Event>,
    /// What is on its way to the batcher.
    events: Receiver<Event>,
    submitted: Vec<Pending>,
    /// The begins, and whether the dispatch has taken them in and may do so.
    begins: Vec<(Pending, Receiver<Result<(), BeginError>>)>,
    /// The slots that are being made what their trajectories ask for.
    bindings: Vec<(SlotIx, SlotRef, Arc<TrajectorySpec>)>,
    /// In order of submission: the calls of each trajectory that are still to start.
    to_start: HashMap<Arc<str>, Vec<ExecutionId>>,
    running: Vec<Running>,
    resets: Vec<(SlotIx, SlotRef)>,
    /// Batches that their container has not accepted.
    batches: Vec<usize>,
    /// In-process tools that have not returned.
    handlers: usize,
    releases: Vec<Receiver<Result<(), ReleaseError>>>,
    /// Requests for leases.
    lends: Vec<Receiver<Result<Lease, ArtifactError>>>,
    /// Leases that are out: of which slot, and whether it was lost.
    lent: Vec<((usize, usize), Arc<AtomicBool>, Lease)>,
    /// The containers that are down or gone, as far as the dispatch was told.
    down: HashSet<usize>,
    /// Those where no trajectory is to be put newly, likewise.
    closed_to_new: HashSet<usize>,
    /// The slots that the executor was told it has, and their grants, where containers are shared.
    granted: HashMap<(usize, usize), u64>,
    next_grant: u64,
    /// What the user was told.
    warned: Vec<String>,
    closed: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Submit(u8, bool),
    /// With a `max_wall` and a `max_idle` of so many milliseconds, where they are not 0.
    Begin(u8, u16, u16),
    BeginEnds(u8, bool),
    CancelBegin(u8),
    Cancel(u8),
    CancelTrajectory(u8),
    Release(u8, bool),
    Answer(u8, Outcome),
    ForgetReply(u8),
    HandlerReturns,
    AcceptBatch(u8),
    ResetEnds(u8, bool),
    Lend(u8),
    /// A reader gives up.
    Abandon(u8),
    Return(u8),
    Container(u8, ContainerChange),
    /// A container comes, perhaps one that was there before: each bit is a slot that the executor
    /// has there.
    Add(u8, u8),
    /// The container has other slots for the executor: each bit is one that it has, each of the
    /// second number one that is granted anew; and so many it may have.
    Resize(u8, u8, u8, u8),
    Deliver(u8),
    Pass(u16),
    Close(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let outcomes = vec![Outcome::Ok, Outcome::NonZeroExit, Outcome::SandboxLost];
    let changes = vec![
        ContainerChange::Unreachable,
        ContainerChange::Recovered,
        ContainerChange::Restarted,
        ContainerChange::Lost,
        ContainerChange::Draining,
        ContainerChange::Gone,
    ];
    prop_oneof![
        8 => (0..TRAJECTORIES, any::<bool>()).prop_map(|(t, sandbox)| Step::Submit(t, sandbox)),
        4 => (0..TRAJECTORIES, 0..9_000u16, 0..5_000u16)
            .prop_map(|(t, wall, idle)| Step::Begin(t, wall, idle)),
        6 => (any::<u8>(), prop::bool::weighted(0.8))
            .prop_map(|(index, ok)| Step::BeginEnds(index, ok)),
        1 => any::<u8>().prop_map(Step::CancelBegin),
        3 => any::<u8>().prop_map(Step::Cancel),
        1 => (0..TRAJECTORIES).prop_map(Step::CancelTrajectory),
        3 => (0..TRAJECTORIES, any::<bool>()).prop_map(|(t, reset)| Step::Release(t, reset)),
        6 => (any::<u8>(), proptest::sample::select(outcomes))
            .prop_map(|(index, outcome)| Step::Answer(index, outcome)),
        1 => any::<u8>().prop_map(Step::ForgetReply),
        3 => Just(Step::HandlerReturns),
        4 => any::<u8>().prop_map(Step::AcceptBatch),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(index, ok)| Step::ResetEnds(index, ok)),
        3 => (0..TRAJECTORIES).prop_map(Step::Lend),
        1 => any::<u8>().prop_map(Step::Abandon),
        3 => any::<u8>().prop_map(Step::Return),
        2 => (any::<u8>(), proptest::sample::select(changes))
            .prop_map(|(index, change)| Step::Container(index, change)),
        2 => (any::<u8>(), 0..16u8, any::<u8>(), 0..5u8)
            .prop_map(|(index, has, anew, limit)| Step::Resize(index, has, anew, limit)),
        2 => (0..4u8, 0..16u8).prop_map(|(number, has)| Step::Add(number, has)),
        12 => (1..6u8).prop_map(Step::Deliver),
        6 => (0..4000u16).prop_map(Step::Pass),
        1 => (0..20_000u16).prop_map(Step::Close),
    ]
}

fn name(trajectory: u8) -> Arc<str> {
    format!("t{trajectory}").into()
}

/// The element that a random number means.
fn pick<T>(from: &[T], index: u8) -> Option<usize> {
    (!from.is_empty()).then(|| usize::from(index) % from.len())
}

impl World {
    fn new(sizes: &[usize], limits: Limits, starts_dirty: bool) -> Self {
        let gate = Arc::new(Gate::new(1000));
        let (sender, events) = unbounded();
        let rejections = Arc::new(Rejections::default());
        Self {
            dispatch: Dispatch::new(
                &containers(sizes),
                limits,
                gate.clone(),
                rejections,
                starts_dirty,
            ),
            now: Instant::now(),
            may: TierSet::ALL,
            gate,
            registry: registry(),
            sender,
            events,
            submitted: Vec::new(),
            begins: Vec::new(),
            bindings: Vec::new(),
            to_start: HashMap::new(),
            running: Vec::new(),
            resets: Vec::new(),
            batches: Vec::new(),
            handlers: 0,
            releases: Vec::new(),
            lends: Vec::new(),
            lent: Vec::new(),
            down: HashSet::new(),
            closed_to_new: HashSet::new(),
            granted: HashMap::new(),
            next_grant: 1,
            warned: Vec::new(),
            closed: false,
        }
    }

    fn prepared(&self, tool: &str) -> Prepared {
        let call = ToolCall::new(tool, json!({"command": "x"}));
        let times = CallTimes { default: Duration::from_secs(4), most: Duration::from_secs(600) };
        prepare(&self.registry, &Policy::default(), false, call, times).unwrap()
    }

    fn submit(&mut self, trajectory: u8, sandbox: bool) {
        if self.gate.enter(None).is_err() {
            return;
        }
        let prepared = self.prepared(if sandbox { "bash" } else { "closure" });
        let id = ExecutionId(self.submitted.len() as u64);
        let (events, uniq_id) = (self.sender.clone(), id.to_string());
        let promise =
            Promise::new(id, name(trajectory), uniq_id, ReplyTo::Pending, Arc::new(events));
        self.submitted.push(Pending::new(promise.call_state().clone()));
        self.to_start.entry(name(trajectory)).or_default().push(id);
        self.send(Event::Submit(Box::new(Accepted { promise, prepared, at: self.now })));
    }

    fn begin(&mut self, trajectory: u8, spec: TrajectorySpec) {
        if self.gate.enter(None).is_err() {
            return;
        }
        let id = ExecutionId(FIRST_BEGIN + self.begins.len() as u64);
        let (events, destination) = (Arc::new(self.sender.clone()), ReplyTo::Pending);
        let promise = Promise::new(id, name(trajectory), String::new(), destination, events);
        let (accepted, answer) = unbounded();
        self.begins.push((Pending::new(promise.call_state().clone()), answer));
        let near = spec.snapshot.as_ref().map(|id| id.as_str().into());
        let (spec, may) = (Arc::new(spec), self.may);
        self.send(Event::Begin { promise, spec, near, may, at: self.now, accepted });
    }

    /// Whether the caller of this call, or begin, has its answer.
    fn is_answered(&self, id: ExecutionId) -> bool {
        match id.0.checked_sub(FIRST_BEGIN) {
            Some(index) => self.begins[index as usize].0.is_done(),
            None => self.submitted[id.0 as usize].is_done(),
        }
    }

    fn send(&self, event: Event) {
        self.sender.send(event).unwrap();
    }

    fn deliver(&mut self, count: usize) {
        for event in self.events.clone().try_iter().take(count) {
            if let Event::Container { addr, change } = &event {
                self.told_of(number(addr), change.clone());
            }
            let before = self.held();
            self.dispatch.handle(event, self.now);
            self.only_open_containers_since(&before).unwrap();
        }
    }

    fn told_of(&mut self, container: usize, change: ContainerChange) {
        let is_there = self.dispatch.pool.container_at(&addr(container)).is_some();
        match &change {
            ContainerChange::Added(slots) => {
                if !is_there {
                    self.down.remove(&container);
                }
                self.closed_to_new.remove(&container);
                return self.resized(container, slots);
            }
            _ if !is_there => return,
            ContainerChange::Resized(slots) => return self.resized(container, slots),
            ContainerChange::Draining => drop(self.closed_to_new.insert(container)),
            ContainerChange::Gone => self.resized(container, &LeasedSlots::default()),
            _ => {}
        }
        if matches!(change, ContainerChange::Lost | ContainerChange::Gone) {
            self.down.insert(container);
        } else if matches!(change, ContainerChange::Recovered | ContainerChange::Restarted) {
            self.down.remove(&container);
        }
        if matches!(
            change,
            ContainerChange::Lost | ContainerChange::Restarted | ContainerChange::Gone
        ) {
            // What ran there runs no more, whether or not it was answered.
            for running in &mut self.running {
                running.slot = running.slot.filter(|slot| slot.0 != container);
            }
        }
    }

    /// What runs in a slot that is the executor's no more runs no more, and a reset of it has
    /// failed.
    fn resized(&mut self, container: usize, slots: &LeasedSlots) {
        let now: HashMap<_, _> = slots.held.iter().copied().collect();
        let before = self.granted.clone();
        let is_lost = |slot: (usize, usize)| {
            let now = now.get(&slot.1);
            slot.0 == container && (now.is_none() || before.get(&slot) != now)
        };
        for running in &mut self.running {
            running.slot = running.slot.filter(|slot| !is_lost(*slot));
        }
        let (lost, resets) = std::mem::take(&mut self.resets)
            .into_iter()
            .partition(|(_, reset)| is_lost((number(&reset.addr), reset.index)));
        self.resets = resets;
        let lost: Vec<(SlotIx, SlotRef)> = lost;
        for (slot, SlotRef { generation, .. }) in lost {
            let outcome = Err("the slot is gone".to_owned());
            self.send(Event::ResetDone { slot, generation, outcome });
        }
        self.granted.retain(|slot, _| slot.0 != container);
        self.granted.extend(now.into_iter().map(|(index, grant)| ((container, index), grant)));
    }

    /// The next grants of a container's slots.
    fn resize(&mut self, container: usize, has: u8, anew: u8, limit: u8) {
        let slots = self.grants(container, has, anew, limit);
        let (addr, change) = (addr(container), ContainerChange::Resized(slots));
        self.send(Event::Container { addr, change });
    }

    fn grants(&mut self, container: usize, has: u8, anew: u8, limit: u8) -> LeasedSlots {
        let names = (0..4).map(|slot| format!("slot_{slot}")).collect();
        let is_set = |bits: u8, slot: &usize| bits & (1 << slot) != 0;
        let mut held = Vec::new();
        for slot in (0..4).filter(|slot| is_set(has, slot)) {
            let kept = self.granted.get(&(container, slot)).copied();
            let grant = kept.filter(|_| !is_set(anew, &slot)).unwrap_or_else(|| {
                self.next_grant += 1;
                self.next_grant
            });
            held.push((slot, grant));
        }
        LeasedSlots::new(names, held, limit.into())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit(trajectory, sandbox) => self.submit(trajectory, sandbox),
            Step::Begin(trajectory, wall, idle) => {
                let limit = |ms: u16| Duration::from_millis(ms.into());
                let spec = TrajectorySpec {
                    max_wall: Some(limit(wall)).filter(|limit| !limit.is_zero()),
                    max_idle: Some(limit(idle)).filter(|limit| !limit.is_zero()),
                    image: (wall % 2 == 1).then(|| format!("image-{}", wall % 3)),
                    ..TrajectorySpec::default()
                };
                self.begin(trajectory, spec);
            }
            Step::BeginEnds(index, ok) => {
                if let Some(index) = pick(&self.bindings, index) {
                    let (slot, slot_ref, spec) = self.bindings.swap_remove(index);
                    let outcome = match (ok, &spec.image) {
                        (true, _) => Ok(()),
                        (false, None) => Err(BeginFailure::unsupported("no")),
                        (false, Some(image)) => Err(BeginFailure::image_unavailable(image)),
                    };
                    let generation = slot_ref.generation;
                    self.send(Event::BeginDone { slot, generation, outcome });
                }
            }
            Step::CancelBegin(index) => {
                if let Some(index) = pick(&self.begins, index) {
                    self.begins[index].0.cancel();
                }
            }
            Step::Cancel(index) => {
                if let Some(index) = pick(&self.submitted, index) {
                    self.submitted[index].cancel();
                }
            }
            Step::CancelTrajectory(trajectory) => {
                let (trajectory_id, place) = (name(trajectory), OrderPlace::none());
                self.send(Event::CancelTrajectory { trajectory_id, place });
            }
            Step::Release(trajectory, reset_workspace) => {
                let (reply, answer) = unbounded();
                self.releases.push(answer);
                let trajectory_id = name(trajectory);
                let (reply, place) = (Some(reply), OrderPlace::none());
                self.send(Event::Release { trajectory_id, reset_workspace, reply, place });
            }
            Step::Answer(index, outcome) => {
                if let Some(index) = pick(&self.running, index) {
                    let reply = self.running.swap_remove(index).reply.unwrap();
                    reply.send(ToolResult::failure(outcome, outcome.as_str()));
                }
            }
            Step::ForgetReply(index) => {
                if let Some(index) = pick(&self.running, index) {
                    self.running.swap_remove(index);
                }
            }
            Step::HandlerReturns => {
                if self.handlers > 0 {
                    self.handlers -= 1;
                    self.send(Event::ExternalReturned(External::InProcess));
                }
            }
            Step::AcceptBatch(index) => {
                if let Some(index) = pick(&self.batches, index) {
                    let container = self.batches.swap_remove(index);
                    self.send(Event::BatchAccepted { container });
                }
            }
            Step::ResetEnds(index, ok) => {
                if let Some(index) = pick(&self.resets, index) {
                    let (slot, slot_ref) = self.resets.swap_remove(index);
                    let outcome = if ok { Ok(()) } else { Err("no".to_owned()) };
                    let generation = slot_ref.generation;
                    self.send(Event::ResetDone { slot, generation, outcome });
                }
            }
            Step::Lend(trajectory) => {
                let (give, answer) = crossbeam_channel::bounded(1);
                let reply = Box::new(move |lent| drop(give.try_send(lent)));
                let id = LeaseId(self.lends.len() as u64);
                self.lends.push(answer);
                let (trajectory_id, place) = (name(trajectory), OrderPlace::none());
                self.send(Event::AcquireLease { id, trajectory_id, reply, place });
            }
            Step::Abandon(index) => {
                if let Some(index) = pick(&self.lends, index) {
                    self.send(Event::AbandonLease(LeaseId(index as u64)));
                }
            }
            Step::Return(index) => {
                if let Some(index) = pick(&self.lent, index) {
                    self.lent.swap_remove(index);
                }
            }
            Step::Container(index, change) => {
                if let Some(container) = pick(&self.dispatch.lanes, index) {
                    self.send(Event::Container { addr: addr(container), change });
                }
            }
            Step::Add(container, has) => {
                let container = container.into();
                let slots = self.grants(container, has, 0, 4);
                let (addr, change) = (addr(container), ContainerChange::Added(slots));
                self.send(Event::Container { addr, change });
            }
            Step::Resize(index, has, anew, limit) => {
                if let Some(container) = pick(&self.dispatch.lanes, index) {
                    self.resize(container, has, anew, limit);
                }
            }
            Step::Deliver(count) => self.deliver(count.into()),
            Step::Pass(ms) => self.now += Duration::from_millis(ms.into()),
            Step::Close(ms) => {
                self.gate.close();
                self.closed = true;
                let deadline = self.now + Duration::from_millis(ms.into());
                self.send(Event::Close { deadline });
            }
        }
    }

    /// Lets the dispatch act, and checks what it asks for against what was asked before.
    fn tick(&mut self) -> Result<(), TestCaseError> {
        let before = self.held();
        let actions: Vec<_> = self.dispatch.tick(self.now).collect();
        self.only_open_containers_since(&before)?;
        for action in actions {
            match action {
                Action::Warn(text) => self.warned.push(text),
                Action::TellDemand(demand) => {
                    prop_assert_eq!(demand.waiting, self.dispatch.waiting_for_slot);
                }
                Action::Send { container: lane, addr, batch } => {
                    prop_assert!((1..=MAX_BATCH).contains(&batch.len()));
                    let container = number(&addr);
                    self.batches.push(lane);
                    for execution in batch {
                        prop_assert_eq!(&execution.slot.addr, &addr);
                        let id = execution.id;
                        let trajectory = &self.dispatch.trajectories[&execution.trajectory_id];
                        let is_lost = trajectory.lost.is_some();
                        prop_assert!(!is_lost, "{} runs in another workspace", id);
                        let unbound =
                            self.dispatch.is_unbound(trajectory, trajectory.slot.unwrap());
                        prop_assert!(!unbound, "{} runs where it was not to", id);
                        self.started(&execution.trajectory_id, id)?;
                        let slot = (container, execution.slot.index);
                        self.nothing_runs_in(slot)?;
                        let of_slot = |reset: &SlotRef| (number(&reset.addr), reset.index) == slot;
                        let emptied = self.resets.iter().any(|(_, reset)| of_slot(reset));
                        prop_assert!(!emptied, "{} begins in a slot that is being reset", id);
                        let Execution { reply, .. } = execution;
                        self.running.push(Running { id, slot: Some(slot), reply: Some(reply) });
                    }
                }
                Action::Handle(call) => {
                    let trajectory_id: Arc<str> = call.context.trajectory_id().into();
                    let id = call.context.uniq_id().trim_start_matches('e').parse().unwrap();
                    self.started(&trajectory_id, ExecutionId(id))?;
                    self.handlers += 1;
                    let (id, reply) = (ExecutionId(id), Some(call.reply));
                    self.running.push(Running { id, slot: None, reply });
                }
                Action::AskToolServer(call) => {
                    prop_assert!(false, "there is no ToolServer for {}", call.name);
                }
                Action::Reset { slot, slot_ref } => {
                    self.nothing_runs_in((number(&slot_ref.addr), slot_ref.index))?;
                    let at_work = self.resets.iter().any(|(other, _)| *other == slot);
                    prop_assert!(!at_work, "two resets at once of {:?}", slot);
                    self.resets.push((slot, slot_ref));
                }
                Action::Begin { slot, slot_ref, spec } => {
                    let key = (number(&slot_ref.addr), slot_ref.index);
                    self.nothing_runs_in(key)?;
                    let of_slot = |reset: &SlotRef| (number(&reset.addr), reset.index) == key;
                    let resetting = self.resets.iter().any(|(_, reset)| of_slot(reset));
                    prop_assert!(!resetting, "a trajectory begins in a slot that is being reset");
                    self.bindings.push((slot, slot_ref, spec));
                }
                Action::GiveBack { slot, grant } => {
                    let key = (number(&slot.addr), slot.index);
                    self.nothing_runs_in(key)?;
                    let of_slot = |reset: &SlotRef| (number(&reset.addr), reset.index) == key;
                    let resetting = self.resets.iter().any(|(_, reset)| of_slot(reset));
                    prop_assert!(!resetting, "a slot is given back while it is being reset");
                    // One that it has from the start has no grant.
                    prop_assert_eq!(self.granted.remove(&key).unwrap_or(0), grant);
                }
                Action::GrantLease { slot, trajectory_id, lost, reply: _ } => {
                    let key = (number(&slot.addr), slot.index);
                    self.nothing_runs_in(key)?;
                    let sender = self.sender.clone();
                    let lease = Lease::new(slot, lost.clone(), move || {
                        let _ = sender.send(Event::LeaseReturned { trajectory_id });
                    });
                    self.lent.push((key, lost, lease));
                }
                Action::Cancel(id) => {
                    let runs = self.running.iter().find(|running| running.id == id);
                    // It may have been answered meanwhile; what runs was told before.
                    if let Some(running) = runs {
                        prop_assert!(running.reply.as_ref().unwrap().is_cancelled());
                    }
                }
            }
        }
        Ok(())
    }

    /// Closes, lets time pass from deadline to deadline, and sees to it that everything ends –
    /// although no backend answers anything any more.
    fn end(mut self) -> Result<(), TestCaseError> {
        if !self.closed {
            self.step(Step::Close(10_000));
        }
        let mut turns = 0;
        loop {
            self.deliver(usize::MAX);
            self.tick()?;
            self.check()?;
            if self.dispatch.is_done() {
                break;
            }
            let next = self.dispatch.next_deadline();
            prop_assert!(next.is_some(), "waits for ever");
            self.now = self.now.max(next.unwrap());
            turns += 1;
            prop_assert!(turns < 10_000, "does not end");
        }
        let stats = self.dispatch.stats(self.now);
        let mut outcomes = crate::executor::OutcomeCounts::default();
        for pending in self.submitted {
            let result = pending.try_wait();
            prop_assert!(result.is_ok(), "a call without an answer");
            outcomes.add(result.unwrap().outcome);
        }
        for (pending, accepted) in self.begins {
            let accepted = accepted.try_recv();
            prop_assert!(accepted.is_ok(), "a begin that was neither accepted nor refused");
            let result = pending.try_wait();
            prop_assert!(result.is_ok(), "a begin without an answer");
            let refused = result.unwrap().outcome == Outcome::InvalidCall;
            prop_assert_eq!(refused, accepted.unwrap().is_err());
        }
        prop_assert_eq!(stats.outcomes, outcomes, "what was counted is what callers got");
        prop_assert_eq!((stats.queue_size, stats.running), (0, 0));
        prop_assert_eq!((stats.waiting_for_slot, stats.slots.held), (0, 0));
        prop_assert!(self.dispatch.timers.is_empty());
        drop(self.dispatch);
        for release in self.releases {
            // An answer, or the disconnection that says that the executor is closed.
            let none = release.try_recv() == Err(crossbeam_channel::TryRecvError::Empty);
            prop_assert!(!none, "a release without an answer");
        }
        for lend in self.lends {
            let none = matches!(lend.try_recv(), Err(crossbeam_channel::TryRecvError::Empty));
            prop_assert!(!none, "a request for a lease without an answer");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_invariants_hold_and_everything_ends(
        steps in proptest::collection::vec(step(), 1..150),
        sizes in proptest::collection::vec(0..3usize, 1..3),
        empty in any::<bool>(),
        dirty in any::<bool>(),
        idle_ms in proptest::option::of(1..8_000u64),
        spill_ms in proptest::option::of(0..4_000u64),
    ) {
        let on_lost = if empty { LostWorkspace::StartEmpty } else { LostWorkspace::Refuse };
        let idle_limit = idle_ms.map(Duration::from_millis);
        let mut world = World::new(&sizes, Limits { on_lost, idle_limit, ..limits() }, dirty);
        if let Some(after) = spill_ms.map(Duration::from_millis) {
            // Two backends, of which the second is for what the first has no slot for.
            let names = [addr(0), addr(1)];
            let tiers = names.map(|name| Tier::new(&*name, Capabilities::default()));
            world.dispatch.use_tiers(&tiers.map(|tier| tier.with_spill_after(after)));
        }
        for step in steps {
            world.step(step);
            world.tick()?;
            world.check()?;
            world.idle_ends_are_in_time()?;
            world.times_are_kept()?;
        }
        world.end()?;
    }
}
