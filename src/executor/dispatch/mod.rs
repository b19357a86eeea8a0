//! The dispatch state: which call is where, whose turn it is, and what is to be done next.
//!
//! Owned by the batcher thread, hence without locks. It is told of [`Event`]s and of the time,
//! does no I/O and waits for nothing: what has to be done in the world it returns as [`Action`]s.
//! So it can be driven by a test with a clock of its own.
//!
//! The invariants, each of which a test holds it to:
//! - A trajectory has at most one call beyond its queue (`Trajectory::current`); its calls and
//!   releases take place in the order in which they were submitted.
//! - A call waits in exactly one place, its [`Stage`], and has exactly one timer there.
//! - A call leaves the gate once: when it is sent, or when it ends without having been.
//! - A call that is removed from `calls` was answered: its promise sees to it even on a panic.

mod begin;
mod call;
mod containers;
mod counts;
mod demand;
mod ending;
mod expiry;
mod explain;
mod idle;
mod sending;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use self::begin::{Begun, WantedPlace};
use self::call::{
    Call, Current, Item, Lost, ReleaseReplies, Stage, Trajectory, answer, closed_before_start,
};
use self::demand::DemandWatch;
use self::idle::{EndReport, IdleHolders, StallWatch};
use super::event::{Accepted, Event};
use super::external::{External, HandlerCall, ToolServerCall};
use super::gate::Gate;
use super::lane::{BatchLimits, Lane};
use super::lease::{LeaseId, LeaseReply};
use super::stats::{Recorder, Rejections};
use crate::artifact::ArtifactError;
use crate::backend::{Container, Demand, Execution, ExecutionId, SlotRef, Tier};
use crate::config::LostWorkspace;
use crate::pool::{Pool, SlotIx, TierSet};
use crate::spec::TrajectorySpec;
use crate::tool::{Outcome, ToolResult, Work};
use crate::wait_queue::{Position, WaitQueue};

/// The limits that dispatch keeps to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) batch: BatchLimits,
    /// How long a call may wait behind others.
    pub(crate) queue_timeout: Duration,
    /// How long a call may wait for a slot.
    pub(crate) acquire_timeout: Duration,
    /// How long after a call's time limit its backend may take to say so.
    pub(crate) answer_grace: Duration,
    /// How long a reset may take.
    pub(crate) reset_timeout: Duration,
    /// How long it may take to make a slot what its trajectory asks for.
    pub(crate) begin_timeout: Duration,
    /// How many external tools of each kind may run at once, by [`External`].
    pub(crate) external: [usize; 2],
    /// How many of each kind may be without an answer, whether or not they have a thread.
    pub(crate) unanswered: usize,
    /// What becomes of a trajectory whose workspace was lost.
    pub(crate) on_lost: LostWorkspace,
    /// How long a trajectory may hold a slot without a call.
    pub(crate) idle_limit: Option<Duration>,
    /// Whether there may be slots later where there are none.
    pub(crate) may_grow: bool,
}

/// The longest that its owner leaves a dispatch without a tick.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(60);

/// How long nothing is ended for having taken too long, after the process was stopped.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Something to be done in the world.
pub(crate) enum Action {
    /// Hand a batch to the backend, then report [`Event::BatchAccepted`].
    Send { container: usize, addr: Arc<str>, batch: Vec<Execution> },
    /// Run an in-process tool, then report [`Event::ExternalReturned`].
    Handle(HandlerCall),
    /// Have the ToolServer run a tool, then report [`Event::ExternalReturned`].
    AskToolServer(ToolServerCall),
    /// Reset a slot, then report [`Event::ResetDone`].
    Reset { slot: SlotIx, slot_ref: SlotRef },
    /// Make a slot what its trajectory's spec asks for, then report [`Event::BeginDone`].
    Begin { slot: SlotIx, slot_ref: SlotRef, spec: Arc<TrajectorySpec> },
    /// Give a slot back to its container, which other executors use too.
    GiveBack { slot: SlotRef, grant: u64 },
    /// Hand over the use of a slot, then report [`Event::LeaseReturned`] when it is given back, or
    /// was wanted no more.
    GrantLease { slot: SlotRef, trajectory_id: Arc<str>, lost: Arc<AtomicBool>, reply: LeaseReply },
    /// Ask the backend to end a running call.
    Cancel(ExecutionId),
    /// Tell the backend how many slots are wanted.
    TellDemand(Demand),
    /// Tell the user, by the log.
    Warn(String),
}

/// The calls of one kind of external tools: those that wait for a thread, and how many have one.
struct ExternalLane {
    waiting: WaitQueue<ExecutionId>,
    busy: usize,
    /// How many were sent and have no answer; more than `busy` where tools answer later.
    unanswered: usize,
}

/// How much longer than a call's time limit its request to the ToolServer may take before dispatch
/// ends it: the request keeps the limit itself, and knows better how it ended.
const TOOL_SERVER_MARGIN: Duration = Duration::from_secs(2);

/// The dispatch state.
pub(crate) struct Dispatch {
    limits: Limits,
    pool: Pool,
    lanes: Vec<Lane<ExecutionId>>,
    external: [ExternalLane; 2],
    trajectories: HashMap<Arc<str>, Trajectory>,
    /// Where the requests for a lease are that wait for their turn.
    lease_requests: HashMap<LeaseId, (Arc<str>, Position)>,
    calls: HashMap<ExecutionId, Call>,
    running: usize,
    /// How many of them in each container.
    sent_to: Vec<usize>,
    /// How many calls wait for a slot, for its reset too.
    waiting_for_slot: usize,
    /// The slots whose holders have nothing to do.
    idle: IdleHolders,
    stall: StallWatch,
    /// Whose slots were taken back, and not told yet.
    ended: EndReport,
    /// Trajectories that are kept only to be told that they lost their workspace.
    remembered: WaitQueue<Arc<str>>,
    most_remembered: usize,
    last_tick: Option<Instant>,
    /// After a pause of the whole process: when slots may be taken back again.
    no_idle_end_before: Option<Instant>,
    timers: BTreeSet<(Instant, ExecutionId)>,
    /// When the time of trajectories is up whose specs limit it.
    expiries: BTreeSet<(Instant, Arc<str>)>,
    /// After a pause of the whole process: nothing is ended before for having taken too long.
    spared_until: Option<Instant>,
    /// When a lane is due, as of the last tick.
    lanes_due: Option<Instant>,
    closing: Option<Instant>,
    /// Set when the closing time was up, and everything that was left has been ended or cancelled:
    /// how many calls that were.
    aborted: Option<usize>,
    demand: DemandWatch,
    recorder: Recorder,
    gate: Arc<Gate>,
    rejections: Arc<Rejections>,
    actions: Vec<Action>,
}

impl Dispatch {
    /// Everything idle, all slots of these containers free; `starts_dirty` if others may have
    /// used them before.
    pub(crate) fn new(
        containers: &[Container],
        limits: Limits,
        gate: Arc<Gate>,
        rejections: Arc<Rejections>,
        starts_dirty: bool,
    ) -> Self {
        let mut pool = Pool::new(containers, limits.reset_timeout);
        if starts_dirty {
            pool.begin_dirty();
        }
        Self {
            limits,
            pool,
            lanes: containers.iter().map(|_| Lane::new()).collect(),
            external: [(); 2].map(|()| ExternalLane {
                waiting: WaitQueue::new(),
                busy: 0,
                unanswered: 0,
            }),
            trajectories: HashMap::new(),
            lease_requests: HashMap::new(),
            calls: HashMap::new(),
            running: 0,
            sent_to: vec![0; containers.len()],
            waiting_for_slot: 0,
            idle: IdleHolders::new(),
            stall: StallWatch::new(),
            ended: EndReport::default(),
            remembered: WaitQueue::new(),
            most_remembered: idle::MOST_REMEMBERED,
            last_tick: None,
            no_idle_end_before: None,
            timers: BTreeSet::new(),
            expiries: BTreeSet::new(),
            spared_until: None,
            lanes_due: None,
            closing: None,
            aborted: None,
            demand: DemandWatch::new(Instant::now()),
            recorder: Recorder::new(limits.batch.max_size),
            gate,
            rejections,
            actions: Vec::new(),
        }
    }

    /// Has the containers be of these tiers, if there are any; before anything has happened.
    pub(crate) fn use_tiers(&mut self, tiers: &[Tier]) {
        self.pool.use_tiers(tiers);
    }

    /// Takes in one event. What follows from it is seen to by the next [`Dispatch::tick`].
    pub(crate) fn handle(&mut self, event: Event, now: Instant) {
        self.demand.note();
        match event {
            Event::Submit(accepted) => self.submit(*accepted, now),
            Event::Begin { promise, spec, near, may, at, accepted } => {
                let place = WantedPlace { near, may };
                self.submit_begin(promise, spec, place, at, &accepted, now);
            }
            Event::BeginDone { slot, generation, outcome } => {
                self.begin_done(slot, generation, outcome, now);
            }
            Event::Finished { id, outcome, timing } => self.on_finished(id, outcome, timing, now),
            Event::BatchAccepted { container } => {
                if let Some(lane) = self.lanes.get_mut(container) {
                    lane.acknowledged();
                }
            }
            Event::ExternalReturned(kind) => {
                let lane = &mut self.external[kind as usize];
                lane.busy = lane.busy.saturating_sub(1);
            }
            Event::ResetDone { slot, generation, outcome } => {
                if let Some(whose) = self.pool.reset_done(slot, generation, outcome, now) {
                    self.reset_ended(whose, now);
                }
            }
            Event::Container { addr, change } => self.container_changed(&addr, change, now),
            Event::Cancel(id) => self.cancel(id, now),
            Event::CancelTrajectory { trajectory_id, place } => {
                drop(place);
                for id in self.calls_of(&trajectory_id) {
                    self.cancel(id, now);
                }
            }
            Event::Release { trajectory_id, reset_workspace, reply, place } => {
                drop(place);
                self.release(&trajectory_id, reset_workspace, reply.into_iter().collect(), now);
            }
            Event::AcquireLease { id, trajectory_id, reply, place } => {
                drop(place);
                self.acquire_lease(id, &trajectory_id, reply, now);
            }
            Event::AbandonLease(id) => self.abandon_lease(id),
            Event::LeaseReturned { trajectory_id } => {
                if let Some(trajectory) = self.trajectories.get_mut(&trajectory_id)
                    && matches!(trajectory.current, Current::Leased(_))
                {
                    trajectory.current = Current::Nothing;
                    self.advance(&trajectory_id, now);
                }
            }
            Event::SlotOf { trajectory_id, reply } => {
                let slot = self.trajectories.get(&trajectory_id).and_then(|t| t.slot);
                // Refused only when the asker is gone.
                let _ = reply.send(slot.map(|slot| self.pool.slot_ref(slot)));
            }
            Event::Stats(reply) => {
                let _ = reply.send(self.stats(now));
            }
            // The next tick looks whether everything has ended.
            Event::GateLeft => {}
            Event::Close { deadline } => {
                self.closing = Some(self.closing.map_or(deadline, |old| old.min(deadline)));
                let all: Vec<_> = self.trajectories.keys().cloned().collect();
                for trajectory_id in all {
                    self.advance(&trajectory_id, now);
                }
            }
        }
    }

    /// Lets time pass up to `now` and gives what is to be done.
    pub(crate) fn tick(&mut self, now: Instant) -> std::vec::Drain<'_, Action> {
        if self.spared_until.is_none_or(|until| until <= now) {
            self.end_overdue(now);
        }
        self.end_idle(now);
        if self.closing.is_some_and(|deadline| deadline <= now) && self.aborted.is_none() {
            self.abort(now);
        }
        if self.pool.has_spilled(now) {
            self.demand.note();
        }
        self.assign_slots(now);
        self.send_external(External::InProcess, now);
        self.send_external(External::ToolServer, now);
        self.send_batches(now);
        self.watch_idle(now);
        self.tell_demand(now);
        self.actions.drain(..)
    }

    /// Ends what has taken too long.
    fn end_overdue(&mut self, now: Instant) {
        while let Some(&(when, id)) = self.timers.first()
            && when <= now
        {
            self.timers.pop_first();
            self.time_is_up(id, now);
        }
        while let Some(ended) = self.pool.expire(now) {
            if let Some(whose) = ended {
                self.reset_ended(whose, now);
            }
        }
        self.end_expired(now);
    }

    /// The process was stopped until `now`, or its machine was: so were the threads that know how
    /// calls have ended, and they get a moment to say so.
    pub(crate) fn was_stopped(&mut self, now: Instant) {
        self.spared_until = Some(now + CATCH_UP);
    }

    /// When [`Dispatch::tick`] has something to do next even if nothing happens.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|&(when, _)| when);
        let overdue = [timer, self.pool.next_deadline(), self.next_expiry()].into_iter().flatten();
        [
            overdue.min().map(|when| self.spared_until.map_or(when, |until| when.max(until))),
            self.lanes_due,
            self.pool.held_until(),
            self.idle_end(),
            self.idle_say_due(),
            self.demand_due(),
            self.pool.next_spill(),
            self.closing.filter(|_| self.aborted.is_none()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether the executor is closing and everything accepted has ended.
    pub(crate) fn is_done(&self) -> bool {
        self.closing.is_some()
            && self.calls.is_empty()
            && self.gate.inside() == 0
            && (self.aborted.is_some()
                || !self.trajectories.values().any(|trajectory| {
                    matches!(trajectory.current, Current::Releasing(_) | Current::Leased(_))
                }))
    }

    /// How many calls had not ended when the closing time was up.
    pub(crate) fn aborted_calls(&self) -> usize {
        self.aborted.unwrap_or(0)
    }

    fn submit(&mut self, accepted: Accepted, now: Instant) {
        let Accepted { promise, prepared, at } = accepted;
        let id = promise.call_state().id;
        let trajectory_id = promise.call_state().trajectory_id.clone();
        let timer = at + self.limits.queue_timeout;
        let trajectory =
            self.trajectories.entry(trajectory_id.clone()).or_insert_with(Trajectory::new);
        let position = trajectory.queue.push(Item::Call(id));
        let call = Call {
            promise,
            tool: prepared.name,
            work: Some(prepared.work),
            begins: None,
            near: None,
            may: TierSet::ALL,
            timeout: prepared.timeout,
            accepted: at,
            slot_wait: Duration::ZERO,
            stage: Stage::Queued { position },
            timer,
        };
        self.calls.insert(id, call);
        self.timers.insert((timer, id));
        if let Some(aborted) = &mut self.aborted {
            *aborted += 1;
            // It slipped through the gate just before it closed.
            self.end(id, closed_before_start(), now);
        } else {
            self.advance(&trajectory_id, now);
        }
    }

    /// A trajectory is to give up its slot.
    fn release(
        &mut self,
        trajectory_id: &Arc<str>,
        reset_workspace: bool,
        replies: ReleaseReplies,
        now: Instant,
    ) {
        let Some(trajectory) = self.trajectories.get_mut(trajectory_id) else {
            return answer(replies, Ok(()));
        };
        // Of begins that have ended before their turn nothing is left to be said.
        while let Some(Item::Begin(id)) = trajectory.queue.last_mut()
            && !self.calls.contains_key(id)
        {
            trajectory.queue.pop_last();
        }
        match trajectory.queue.last_mut() {
            // There would be nothing left for the second: however many come, one is kept.
            Some(Item::Release { replies: earlier, .. }) => earlier.extend(replies),
            _ => {
                trajectory.queue.push(Item::Release { reset_workspace, replies });
                self.advance(trajectory_id, now);
            }
        }
    }

    /// A reader wants the use of a trajectory's slot.
    fn acquire_lease(
        &mut self,
        id: LeaseId,
        trajectory_id: &Arc<str>,
        reply: LeaseReply,
        now: Instant,
    ) {
        let refusal = match self.trajectories.get_mut(trajectory_id) {
            _ if self.closing.is_some() => ArtifactError::Closed,
            Some(trajectory) => {
                let position = trajectory.queue.push(Item::Lease(id, reply));
                self.lease_requests.insert(id, (trajectory_id.clone(), position));
                self.advance(trajectory_id, now);
                return;
            }
            None => ArtifactError::NoSlot,
        };
        reply(Err(refusal));
    }

    /// A reader has given up. If its turn has come already, it gives back what it gets.
    fn abandon_lease(&mut self, id: LeaseId) {
        if let Some((trajectory_id, position)) = self.lease_requests.remove(&id)
            && let Some(trajectory) = self.trajectories.get_mut(&trajectory_id)
        {
            trajectory.queue.remove(position);
        }
    }

    /// Begins what is next for a trajectory that has nothing under way.
    fn advance(&mut self, trajectory_id: &Arc<str>, now: Instant) {
        loop {
            let Some(trajectory) = self.trajectories.get_mut(trajectory_id) else { return };
            if !matches!(trajectory.current, Current::Nothing) {
                return;
            }
            if matches!(trajectory.lost, Some(Lost::Expired(_)))
                && let Some(slot) = trajectory.slot.take()
            {
                self.take_back_expired(slot, now);
                continue;
            }
            let next = trajectory.queue.pop();
            if next.is_some() {
                if let Some(slot) = trajectory.slot {
                    self.idle.remove(slot);
                }
                if let Some(position) = trajectory.remembered.take() {
                    self.remembered.remove(position);
                }
            }
            let is_begin = matches!(next, Some(Item::Begin(_)));
            match next {
                Some(Item::Begin(id)) if !self.calls.contains_key(&id) => {
                    self.take_up_begin(trajectory_id, id);
                }
                Some(Item::Call(id) | Item::Begin(id)) => {
                    trajectory.current = Current::Call(id);
                    if is_begin {
                        self.take_up_begin(trajectory_id, id);
                    }
                    let routed = self.route(id, now);
                    self.watch_expiry(trajectory_id);
                    if let Err(refusal) = routed {
                        self.finish_with(id, *refusal, now);
                    }
                }
                Some(Item::Release { reset_workspace, replies }) => {
                    trajectory.lost = None;
                    let slot = trajectory.slot.take();
                    let begun = trajectory.begun.take();
                    match slot {
                        Some(slot) if reset_workspace => {
                            trajectory.current = Current::Releasing(replies);
                            self.pool.release_with_reset(slot, now);
                            self.start_reset(slot);
                        }
                        slot => {
                            match slot {
                                // Its files without what it began with would be another's.
                                Some(slot) if begun.is_some() => self.pool.release_unknown(slot),
                                Some(slot) => self.pool.release_as_is(slot),
                                None => {}
                            }
                            answer(replies, Ok(()));
                        }
                    }
                    self.forget_begun(trajectory_id, begun);
                }
                Some(Item::Lease(id, reply)) => {
                    self.lease_requests.remove(&id);
                    let refusal = match trajectory.slot {
                        // The backend is about to be closed.
                        _ if self.aborted.is_some() => ArtifactError::Closed,
                        Some(slot) => {
                            let lost = Arc::new(AtomicBool::new(false));
                            trajectory.current = Current::Leased(lost.clone());
                            self.watch_expiry(trajectory_id);
                            let slot = self.pool.slot_ref(slot);
                            let trajectory_id = trajectory_id.clone();
                            self.actions.push(Action::GrantLease {
                                slot,
                                trajectory_id,
                                lost,
                                reply,
                            });
                            continue;
                        }
                        None => {
                            let lost = trajectory.lost.as_ref();
                            lost.map_or(ArtifactError::NoSlot, Lost::artifact_error)
                        }
                    };
                    reply(Err(refusal));
                }
                None => {
                    // While closing, no caller will release it.
                    if self.closing.is_some()
                        && let Some(slot) = trajectory.slot.take()
                    {
                        self.idle.remove(slot);
                        self.pool.release_as_is(slot);
                    }
                    match trajectory.slot {
                        Some(slot) => {
                            self.idle.insert(slot, now);
                            self.watch_expiry(trajectory_id);
                        }
                        None if trajectory.lost.is_some() && self.closing.is_none() => {
                            self.remember(trajectory_id);
                        }
                        None => self.forget(trajectory_id),
                    }
                    return;
                }
            }
        }
    }

    /// Brings the call whose turn it is to where it waits next.
    ///
    /// # Errors
    /// The result to end it with, if it cannot run.
    fn route(&mut self, id: ExecutionId, now: Instant) -> Result<(), Box<ToolResult>> {
        let Some(call) = self.calls.get_mut(&id) else { return Ok(()) };
        let Some(trajectory) = self.trajectories.get_mut(&call.promise.call_state().trajectory_id)
        else {
            return Ok(());
        };
        if let Some(lost) = &trajectory.lost
            && (call.needs_slot() || lost.ends_every_call())
        {
            match self.limits.on_lost {
                LostWorkspace::StartEmpty if !lost.ends_every_call() => trajectory.lost = None,
                _ => return Err(Box::new(lost.refusal())),
            }
        }
        match call.work {
            _ if call.needs_slot() => match trajectory.slot {
                Some(slot) => {
                    self.use_slot(id, slot, now);
                    Ok(())
                }
                None if self.pool.has_no_slots() && !self.limits.may_grow => {
                    let error = "Failed to acquire slot: this executor has no sandbox backend";
                    Err(Box::new(ToolResult::failure(Outcome::NeverRan, error)))
                }
                None => {
                    self.waiting_for_slot += 1;
                    call.stage = Stage::WaitingForSlot { since: now };
                    let begun = trajectory.begun.as_deref();
                    let wanted = begun.map(Begun::wanted).unwrap_or_default();
                    let trajectory_id = call.promise.call_state().trajectory_id.clone();
                    self.pool.wait_in(trajectory_id, wanted, now);
                    self.set_timer(id, now + self.limits.acquire_timeout);
                    Ok(())
                }
            },
            Some(Work::InProcess { .. }) => {
                call.wait_for_thread(External::InProcess, &mut self.external);
                Ok(())
            }
            Some(Work::ToolServer { .. }) => {
                call.wait_for_thread(External::ToolServer, &mut self.external);
                Ok(())
            }
            // Taken only when it is sent, and what needs a slot was dealt with.
            Some(Work::Sandbox { .. }) | None => Ok(()),
        }
    }

    fn join_lane(&mut self, id: ExecutionId, slot: SlotIx, now: Instant) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.stage = Stage::InLane { slot };
        self.lanes[self.pool.container(slot)].push(id, now);
    }

    fn set_timer(&mut self, id: ExecutionId, timer: Instant) {
        if let Some(call) = self.calls.get_mut(&id) {
            self.timers.remove(&(call.timer, id));
            call.timer = timer;
            self.timers.insert((timer, id));
        }
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
