//! Trajectories that begin with a spec.
//!
//! A begin is a call without a tool: it waits in its trajectory's queue and for a slot as calls do,
//! and ends once, as they do. When it has a slot, the backend makes that what the spec asks for;
//! until then the trajectory's other calls wait behind it. A trajectory that loses its slot, and
//! may go on in another (`LostWorkspace::StartEmpty`), has that made so, too, for the call that got
//! it.
//!
//! A begin that fails leaves the trajectory [`Lost::NotBegun`]: none of its calls runs until it is
//! released.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::call::{Call, Current, Item, Lost, Stage, Trajectory, closed_before_start};
use super::{Action, Dispatch};
use crate::backend::{ExecutionId, ImageKey};
use crate::error::{BeginError, BeginFailure};
use crate::executor::promise::Promise;
use crate::pool::{SlotIx, TierSet, Wanted};
use crate::spec::TrajectorySpec;
use crate::tool::{Outcome, ToolResult};

/// Where a trajectory is to be.
#[derive(Debug, Clone)]
pub(super) struct WantedPlace {
    /// The container that it needs a slot of, if it needs one of a certain one.
    pub(super) near: Option<Arc<str>>,
    /// The tiers that can give what it asks for, as far as is known.
    pub(super) may: TierSet,
}

/// What a trajectory has begun with.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) spec: Arc<TrajectorySpec>,
    pub(super) place: WantedPlace,
    /// What the tiers have said that could not give it: none is asked twice.
    refusals: Vec<(Arc<str>, BeginFailure)>,
    /// The slot that is what the spec asks for, and its generation.
    bound: Option<(SlotIx, u64)>,
    /// When it had its slot for the first time.
    pub(super) since: Option<Instant>,
    /// When its time is up, as far as that is known now; so it is in the list of the dispatch.
    pub(super) expires: Option<Instant>,
}

impl Begun {
    fn new(spec: Arc<TrajectorySpec>, place: WantedPlace) -> Self {
        let refusals = Vec::new();
        Self { spec, place, refusals, bound: None, since: None, expires: None }
    }

    /// What it wants of its slot.
    pub(super) fn wanted(&self) -> Wanted<'_> {
        let image = self.spec.image.as_deref().and_then(ImageKey::of);
        Wanted { near: self.place.near.as_deref(), may: self.place.may, image }
    }
}

impl Dispatch {
    /// A trajectory is to begin as a spec asks.
    pub(super) fn submit_begin(
        &mut self,
        promise: Promise,
        spec: Arc<TrajectorySpec>,
        WantedPlace { near, may }: WantedPlace,
        at: Instant,
        accepted: &Sender<Result<(), BeginError>>,
        now: Instant,
    ) {
        let id = promise.call_state().id;
        let trajectory_id = promise.call_state().trajectory_id.clone();
        let may_begin = self.trajectories.get(&trajectory_id).is_none_or(is_new);
        let answer = if may_begin { Ok(()) } else { Err(BeginError::AlreadyBegun) };
        // Refused only when the caller is gone.
        let _ = accepted.send(answer);
        if !may_begin {
            let error = BeginError::AlreadyBegun.to_string();
            let result = ToolResult::failure(Outcome::InvalidCall, error);
            promise.call_state().answer_here(result, || {});
            self.gate.leave(1);
            return;
        }
        let timer = at + self.limits.queue_timeout;
        let trajectory =
            self.trajectories.entry(trajectory_id.clone()).or_insert_with(Trajectory::new);
        let position = trajectory.queue.push(Item::Begin(id));
        let call = Call {
            promise,
            tool: String::new(),
            work: None,
            begins: Some(spec),
            near,
            may,
            // That of its trajectory's slot is the dispatch's.
            timeout: Duration::ZERO,
            accepted: at,
            slot_wait: Duration::ZERO,
            stage: Stage::Queued { position },
            timer,
        };
        self.calls.insert(id, call);
        self.timers.insert((timer, id));
        if let Some(aborted) = &mut self.aborted {
            *aborted += 1;
            self.end(id, closed_before_start(), now);
        } else {
            self.advance(&trajectory_id, now);
        }
    }

    /// The turn of a begin has come.
    pub(super) fn take_up_begin(&mut self, trajectory_id: &Arc<str>, id: ExecutionId) {
        let Some(trajectory) = self.trajectories.get_mut(trajectory_id) else { return };
        let begins = |call: &Call| {
            Some((call.begins.clone()?, WantedPlace { near: call.near.clone(), may: call.may }))
        };
        match self.calls.get(&id).and_then(begins) {
            Some((spec, place)) => {
                trajectory.begun = Some(Box::new(Begun::new(spec, place)));
                // What it may have left behind was another trajectory's, under the same name.
                self.pool.forget_left(trajectory_id);
            }
            None => {
                let text = "its begin was cancelled, or its time was up, before its turn came";
                let failure = BeginFailure::of(Outcome::NeverRan, text);
                trajectory.lost = Some(Lost::NotBegun(failure));
            }
        }
    }

    /// Whether the trajectory's slot is still to be made what its spec asks for.
    pub(super) fn is_unbound(&self, trajectory: &Trajectory, slot: SlotIx) -> bool {
        let bound = (slot, self.pool.generation(slot));
        trajectory.begun.as_ref().is_some_and(|begun| begun.bound != Some(bound))
    }

    /// Has a call use its trajectory's slot: as soon as that is what the trajectory asks for.
    pub(super) fn use_slot(&mut self, id: ExecutionId, slot: SlotIx, now: Instant) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let trajectory = self.trajectories.get(&call.promise.call_state().trajectory_id);
        let Some(trajectory) = trajectory else { return };
        let Some(begun) = trajectory.begun.as_ref() else {
            return self.join_lane(id, slot, now);
        };
        let spec = begun.spec.clone();
        if !self.is_unbound(trajectory, slot) {
            return self.join_lane(id, slot, now);
        }
        if let Some(call) = self.calls.get_mut(&id) {
            call.stage = Stage::Binding { slot };
        }
        self.actions.push(Action::Begin { slot, slot_ref: self.pool.slot_ref(slot), spec });
        self.set_timer(id, now + self.limits.begin_timeout);
    }

    /// The backend has said whether a slot is what its trajectory asks for.
    pub(super) fn begin_done(
        &mut self,
        slot: SlotIx,
        generation: u64,
        outcome: Result<(), BeginFailure>,
        now: Instant,
    ) {
        // An answer that comes too late is of a slot that was given up.
        let Some(trajectory_id) = self.pool.holder(slot).cloned() else { return };
        if self.pool.generation(slot) != generation {
            return;
        }
        let Some(trajectory) = self.trajectories.get_mut(&trajectory_id) else { return };
        let Current::Call(id) = trajectory.current else { return };
        let Some(call) = self.calls.get(&id) else { return };
        if !matches!(call.stage, Stage::Binding { slot: binding } if binding == slot) {
            return;
        }
        let is_begin = call.begins.is_some();
        match outcome {
            Ok(()) => {
                self.pool.has_begun(slot, now);
                if let Some(begun) = &mut trajectory.begun {
                    begun.bound = Some((slot, generation));
                    begun.since.get_or_insert(now);
                }
                self.watch_expiry(&trajectory_id);
                if is_begin {
                    self.end(id, ToolResult::ok(""), now);
                } else {
                    self.set_timer(id, now + self.limits.queue_timeout);
                    self.join_lane(id, slot, now);
                }
            }
            Err(failure) => {
                trajectory.slot = None;
                if failure.outcome() == Outcome::ImageUnavailable
                    && self.pool.cannot_begin(slot, &failure.to_string(), now)
                {
                    return self.waits_elsewhere(id, slot, now);
                }
                let failure = self.refused_by_tier(&trajectory_id, slot, failure);
                self.pool.take_back(slot, now);
                self.start_reset(slot);
                match failure {
                    Some(failure) => {
                        if let Some(trajectory) = self.trajectories.get_mut(&trajectory_id) {
                            trajectory.lost = Some(Lost::NotBegun(failure.clone()));
                        }
                        self.end(id, failure.result(), now);
                    }
                    None => {
                        // Another tier may give it: it waits for a slot as at first.
                        if let Err(refusal) = self.route(id, now) {
                            self.end(id, *refusal, now);
                        }
                    }
                }
            }
        }
    }

    /// A call whose trajectory cannot have its image in this slot waits for another one.
    fn waits_elsewhere(&mut self, id: ExecutionId, slot: SlotIx, now: Instant) {
        self.start_reset(slot);
        if let Some(call) = self.calls.get_mut(&id) {
            call.stage = Stage::WaitingForSlot { since: now };
            self.waiting_for_slot += 1;
        }
        self.set_timer(id, now + self.limits.acquire_timeout);
    }

    /// The image that a trajectory is to begin with cannot be had, as others have found out.
    pub(super) fn refused(&mut self, trajectory_id: &Arc<str>, why: String, now: Instant) {
        let Some(trajectory) = self.trajectories.get(trajectory_id) else { return };
        let Current::Call(id) = trajectory.current else { return };
        self.end(id, BeginFailure::image_unavailable(why).result(), now);
    }

    /// The tier of this slot could not make it what its trajectory asks for. `None`: others may be
    /// able to; else what all of them have said.
    fn refused_by_tier(
        &mut self,
        trajectory_id: &Arc<str>,
        slot: SlotIx,
        failure: BeginFailure,
    ) -> Option<BeginFailure> {
        let is_refusal =
            matches!(failure.outcome(), Outcome::SpecUnsupported | Outcome::ImageUnavailable);
        let trajectory = self.trajectories.get_mut(trajectory_id);
        let Some(begun) = trajectory.and_then(|trajectory| trajectory.begun.as_mut()) else {
            return Some(failure);
        };
        // What a container has that it is to be near to, no other tier has.
        if !is_refusal || begun.place.near.is_some() {
            return Some(failure);
        }
        let (tier, name) = self.pool.tier_of(slot);
        let others = self.pool.other_tiers(begun.place.may, tier);
        begun.refusals.push((name, failure.clone()));
        if !others.is_empty() {
            begun.place.may = others;
            return None;
        }
        if begun.refusals.len() == 1 {
            return Some(failure);
        }
        let said = begun.refusals.iter().map(|(name, failure)| format!("{name}: {failure}"));
        let text = said.collect::<Vec<_>>().join("; ");
        Some(BeginFailure::of(failure.outcome(), text))
    }

    /// A begin, or a call that waited for its slot to be made what its trajectory asks for, has
    /// ended without that. No call is to run in what it leaves.
    pub(super) fn not_bound(&mut self, call: &Call, failure: BeginFailure) {
        let call_state = call.promise.call_state();
        let Some(trajectory) = self.trajectories.get_mut(&call_state.trajectory_id) else { return };
        if let Stage::Binding { slot } = call.stage
            && trajectory.slot == Some(slot)
        {
            trajectory.slot = None;
            // How far the backend is, is not known: it is reset before it is given out.
            self.pool.release_unknown(slot);
        }
        // A begin that has not had its turn leaves its item in the queue, which says so in time.
        let is_current = matches!(trajectory.current, Current::Call(id) if id == call_state.id);
        if is_current && trajectory.lost.is_none() {
            trajectory.lost = Some(match call.begins {
                Some(_) => Lost::NotBegun(failure),
                // It has begun; its next call may try again.
                None => Lost::WithSandbox,
            });
        }
    }
}

/// Whether a trajectory will be new when what is in its queue is done.
fn is_new(trajectory: &Trajectory) -> bool {
    for item in trajectory.queue.iter().rev() {
        match item {
            Item::Release { .. } => return true,
            Item::Call(_) | Item::Begin(_) => return false,
            // It changes nothing.
            Item::Lease(..) => {}
        }
    }
    match trajectory.current {
        Current::Releasing(_) => true,
        Current::Call(_) => false,
        Current::Nothing | Current::Leased(_) => {
            trajectory.slot.is_none() && trajectory.lost.is_none() && trajectory.begun.is_none()
        }
    }
}
