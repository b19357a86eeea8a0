//! Who has which slot: a pure data structure, without threads, clocks or I/O of its own.
//!
//! A trajectory that needs a slot joins the waiting room ([`Pool::wait`]); [`Pool::assign`] serves
//! the waiting room in order of arrival; who wishes for a container ([`Pool::wait_in`]) waits for
//! one of its slots, and holds up no one who does not. A slot is given out clean, or reset first:
//! one that was released with another trajectory's files in it never reaches anybody unreset, and
//! one whose reset failed is kept back until a later reset succeeds. The trajectory that left files
//! in a slot gets that slot back as it was, if no other took it meanwhile.
//!
//! The owner (the batcher's [`Dispatch`](crate::executor)) carries out the resets that
//! [`Pool::assign`] and [`Pool::release_with_reset`] ask for, and reports them by
//! [`Pool::reset_done`]; [`Pool::expire`] gives up those that are not answered in time. Such a
//! slot is kept back until the answer comes.
//!
//! Containers come and go ([`Pool::container_changed`]). No slot of one that does not answer is
//! given out; who holds one keeps it, unless the workspaces there were lost.
//!
//! Containers may be of several *tiers*, the backends of an executor in order of preference: then a
//! slot of the first that has one is given out, among those that who waits may use (`tiers`).
//!
//! A container may be shared with other executors. Then the pool has those of its slots that were
//! granted ([`Pool::resized`]); the others are *absent*. [`Pool::take_excess`] gives back what is
//! more than it may have.

mod containers;
mod images;
mod placing;
mod slot;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tier_tests;
mod tiers;
mod wishes;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::images::ImageCounts;
pub(crate) use self::images::PlaceImages;
pub(crate) use self::placing::Wanted;
pub use self::slot::{ContainerCounts, SlotCounts};
pub(crate) use self::slot::{Occupancy, SlotIx};
pub(crate) use self::tiers::{MOST_TIERS, TierSet};

use self::images::Images;
use self::slot::{ContainerState, PoolContainer, Purpose, Slot, State};
use self::tiers::{TierRules, TierView};
use self::wishes::{Turn, Wishes};
use crate::backend::{Container, SlotRef, Tier};
use crate::wait_queue::{Position, WaitQueue};

/// What [`Pool::assign`] decided for the trajectory at the head of the waiting room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Assignment {
    /// It has this slot now.
    Slot(Arc<str>, SlotIx),
    /// It will have this slot once the reset that is to be started now has succeeded.
    Reset(SlotIx),
    /// It is in the waiting room no more: its image cannot be had, for this reason.
    Refused(Arc<str>, String),
}

/// For whom a reset was made: what [`Pool::reset_done`] and [`Pool::expire`] give back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ResetFor {
    /// A trajectory that waits for the slot, and now has it.
    Granted(Arc<str>, SlotIx),
    /// A trajectory that is being released from the slot, and why the reset failed if it did.
    Released(Arc<str>, Result<(), String>),
}

/// How often a failed reset is tried again: after 1 s, then twice as long each time, up to a
/// minute.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// The slots of all containers and the trajectories that wait for one.
#[derive(Debug)]
pub(crate) struct Pool {
    containers: Vec<PoolContainer>,
    /// The number of each container that is there, and of some that are gone.
    by_addr: HashMap<Arc<str>, usize>,
    slots: Vec<Slot>,
    /// The waiting room, by order of arrival.
    waiting: WaitQueue<Arc<str>>,
    /// Where in the waiting room a trajectory is.
    positions: HashMap<Arc<str>, Position>,
    /// The same places, by what is waited for.
    wishes: Wishes,
    /// Free slots whose files a trajectory may have back.
    left_by: HashMap<Arc<str>, SlotIx>,
    /// Which container has which image.
    images: Images,
    /// Since when there has been a free slot without a break, which none was given.
    idle_since: Option<Instant>,
    /// When someone has been held back for long enough, as of the last look.
    held_until: Option<Instant>,
    /// When to look at slots that are being reset or broken.
    timers: BTreeSet<(Instant, SlotIx)>,
    counts: SlotCounts,
    reset_timeout: Duration,
    /// The tiers, the preferred one first; none where there is one only.
    tiers: Vec<TierRules>,
}

impl Pool {
    /// A pool of these containers, all slots clean. A reset that takes longer than `reset_timeout`
    /// counts as failed.
    pub(crate) fn new(containers: &[Container], reset_timeout: Duration) -> Self {
        let mut slots = Vec::new();
        let containers = containers
            .iter()
            .enumerate()
            .map(|(number, container)| {
                let first = slots.len();
                let named = container.slots.iter().enumerate();
                slots.extend(
                    named.map(|(index, name)| Slot::new(number, index, name, State::Clean)),
                );
                let here = first..slots.len();
                PoolContainer {
                    // Taken from the end, so that slot_0 comes first.
                    clean: here.clone().rev().map(SlotIx).collect(),
                    total: here.len(),
                    slots: here.map(SlotIx).collect(),
                    ..PoolContainer::new(container.addr.as_str().into())
                }
            })
            .collect::<Vec<_>>();
        let by_addr = containers.iter().enumerate();
        let by_addr = by_addr.map(|(number, container)| (container.addr.clone(), number)).collect();
        let counts = SlotCounts { total: slots.len(), clean: slots.len(), ..SlotCounts::default() };
        Self {
            containers,
            by_addr,
            slots,
            waiting: WaitQueue::new(),
            positions: HashMap::new(),
            wishes: Wishes::default(),
            left_by: HashMap::new(),
            images: Images::default(),
            idle_since: None,
            held_until: None,
            timers: BTreeSet::new(),
            counts,
            reset_timeout,
            tiers: Vec::new(),
        }
    }

    /// Has the containers be of these tiers, the preferred one first, by the names that their
    /// addresses begin with; while no trajectory is here yet. Of the slots of those that start
    /// dirty it is not known what is in them.
    pub(crate) fn use_tiers(&mut self, tiers: &[Tier]) {
        self.tiers = tiers.iter().map(TierRules::new).collect();
        self.wishes.spill_after(self.tiers.iter().map(|tier| tier.spill_after));
        for entry in &mut self.containers {
            entry.tier = tiers::tier_at(&self.tiers, &entry.addr);
        }
        let is_dirty = |container: &PoolContainer| {
            tiers.get(container.tier).is_some_and(|tier| tier.capabilities.starts_dirty)
        };
        let dirty = self.containers.iter().filter(|container| is_dirty(container));
        for slot in dirty.flat_map(|container| container.slots.clone()).collect::<Vec<_>>() {
            self.set(slot, State::Dirty(None));
        }
    }

    /// A trajectory does not want the files back that it has left in a slot.
    pub(crate) fn forget_left(&mut self, trajectory: &Arc<str>) {
        if let Some(slot) = self.left_by.get(trajectory).copied() {
            self.set(slot, State::Dirty(None));
        }
    }

    /// Takes a trajectory out of the waiting room: its call was cancelled or its time is up.
    pub(crate) fn stop_waiting(&mut self, trajectory: &Arc<str>, now: Instant) {
        let position = self.positions.remove(trajectory);
        if let Some(wish) = self.wishes.image_of(trajectory) {
            let wish = *wish;
            self.images.let_go(&wish, now);
        }
        self.wishes.forget(trajectory, position);
        if let Some(position) = position {
            self.waiting.remove(position);
            return;
        }
        let is_for = |slot: &SlotIx| {
            matches!(&self.slots[slot.0].state, State::Resetting {
                purpose: Purpose::Grant(_, waiting), ..
            } if waiting == trajectory)
        };
        let slots = self.timers.iter().map(|(_, slot)| *slot).filter(is_for).collect::<Vec<_>>();
        for slot in slots {
            if let State::Resetting { purpose, .. } = &mut self.slots[slot.0].state {
                *purpose = Purpose::Nobody;
            }
            self.image_is_over(slot);
        }
    }

    /// Serves the first in the waiting room for whom a slot is free. To be called until it gives
    /// `None`, after every change.
    pub(crate) fn assign(&mut self, now: Instant) -> Option<Assignment> {
        let assignment = self.serve_first(now);
        if assignment.is_none() {
            self.idle_since = self.has_free().then(|| self.idle_since.unwrap_or(now));
        }
        assignment
    }

    fn serve_first(&mut self, now: Instant) -> Option<Assignment> {
        // Whom of a line the first cannot be served, none of it can: they have waited for less
        // long.
        let views = self.tier_views();
        let anywhere = self.wishes.anywhere().filter_map(|(may, line)| {
            let (&position, &since) = line.first_key_value()?;
            let left = self.left_by.get(self.waiting.get(position)?).copied();
            let slot = left
                .filter(|slot| self.containers[self.slots[slot.0].container].is_open())
                .or_else(|| self.free_slot(may, now.saturating_duration_since(since), &views))?;
            Some((position, slot))
        });
        let there = self.wishes.there().filter_map(|(container, line)| {
            let entry = self.containers.get(container).filter(|entry| entry.is_open())?;
            let slot = entry.clean.last().or_else(|| entry.dirty.front())?;
            Some((*line.first_key_value()?.0, *slot))
        });
        let first = there.chain(anywhere).min_by_key(|(position, _)| *position);
        let before = first.map(|(position, _)| position);
        if let Some(assignment) = self.assign_image(before, &views, now) {
            return Some(assignment);
        }
        let (position, slot) = first?;
        self.give(position, slot, now)
    }

    /// Gives a free slot to the trajectory at this position.
    fn give(&mut self, position: Position, slot: SlotIx, now: Instant) -> Option<Assignment> {
        let trajectory = self.waiting.remove(position)?;
        let left = self.left_by.get(&trajectory).copied();
        self.positions.remove(&trajectory);
        let turn = self.wishes.leave(&trajectory, position)?;
        let begins_anew = self.wishes.has_one(&trajectory);
        if let Some(left) = left.filter(|left| *left != slot) {
            // Its container does not answer, or is draining, or another is wished for; what it left
            // there it will not have back, since from now on its files are elsewhere.
            self.set(left, State::Dirty(None));
        }
        let needs_reset = match &self.slots[slot.0].state {
            State::Dirty(owner) => begins_anew || owner.as_ref() != Some(&trajectory),
            _ => false,
        };
        if needs_reset {
            self.begin_reset(slot, Purpose::Grant(turn, trajectory), now);
            return Some(Assignment::Reset(slot));
        }
        self.wishes.forget(&trajectory, None);
        self.set(slot, State::Held(trajectory.clone()));
        Some(Assignment::Slot(trajectory, slot))
    }

    /// Frees a slot with its files in it. The same trajectory may have it back as it is.
    pub(crate) fn release_as_is(&mut self, slot: SlotIx) {
        if let State::Held(trajectory) = &self.slots[slot.0].state {
            let trajectory = trajectory.clone();
            self.set(slot, State::Dirty(Some(trajectory)));
        }
    }

    /// Frees a slot of which it is not known what is in it, nor whether something still runs there:
    /// its container did not answer. It is reset before anybody gets it.
    pub(crate) fn release_unknown(&mut self, slot: SlotIx) {
        self.set(slot, State::Dirty(None));
    }

    /// Begins to free a slot by way of a reset, which the caller has to start now.
    pub(crate) fn release_with_reset(&mut self, slot: SlotIx, now: Instant) {
        if let State::Held(trajectory) = &self.slots[slot.0].state {
            let trajectory = trajectory.clone();
            self.begin_reset(slot, Purpose::Release(trajectory), now);
        }
    }

    /// Takes a slot away from its holder by way of a reset, which the caller has to start now.
    /// No trajectory waits for it.
    pub(crate) fn take_back(&mut self, slot: SlotIx, now: Instant) {
        self.begin_reset(slot, Purpose::Nobody, now);
    }

    /// Takes the outcome of the reset of `slot` that was started under `generation`. `None`: none
    /// waits for it (any more).
    pub(crate) fn reset_done(
        &mut self,
        slot: SlotIx,
        generation: u64,
        outcome: Result<(), String>,
        now: Instant,
    ) -> Option<ResetFor> {
        let entry = &mut self.slots[slot.0];
        if entry.generation != generation {
            return None;
        }
        // What is in a slot that was emptied, as far as that is still true.
        let emptied =
            if std::mem::take(&mut entry.stale) { State::Dirty(None) } else { State::Clean };
        if std::mem::take(&mut entry.unanswered) {
            // Given up meanwhile. Late, but it says that the slot is empty.
            if outcome.is_ok() && !matches!(entry.state, State::Absent) {
                entry.failed_resets = 0;
                self.set(slot, emptied);
            }
            return None;
        }
        let State::Resetting { purpose, .. } = &mut entry.state else { return None };
        let purpose = std::mem::replace(purpose, Purpose::Nobody);
        if outcome.is_ok() {
            entry.failed_resets = 0;
        }
        let is_leaving = std::mem::take(&mut entry.is_leaving);
        let emptied = if is_leaving { State::Absent } else { emptied };
        let broken = |entry: &mut Slot, error: &str| {
            if is_leaving {
                return State::Absent;
            }
            log::warn!("slot {} is kept back: its reset failed: {error}", entry.name);
            let pause = RETRY_FIRST.saturating_mul(1 << entry.failed_resets.min(10));
            entry.failed_resets += 1;
            State::Broken { retry_at: now + pause.min(RETRY_MOST) }
        };
        match (purpose, outcome) {
            // No reset of a slot that leaves is for a trajectory.
            (Purpose::Grant(_, trajectory), Ok(())) => {
                self.wishes.forget(&trajectory, None);
                self.set(slot, State::Held(trajectory.clone()));
                Some(ResetFor::Granted(trajectory, slot))
            }
            (Purpose::Grant(turn, trajectory), Err(error)) => {
                let state = broken(entry, &error);
                self.set(slot, state);
                // Back to where it was, before all who came later.
                self.wait_again(turn, trajectory);
                None
            }
            (Purpose::Release(trajectory), outcome) => {
                let state = match &outcome {
                    Ok(()) => emptied,
                    Err(error) => broken(entry, error),
                };
                self.set(slot, state);
                Some(ResetFor::Released(trajectory, outcome))
            }
            (Purpose::Nobody, outcome) => {
                let state = match outcome {
                    Ok(()) => emptied,
                    Err(error) => broken(entry, &error),
                };
                self.set(slot, state);
                None
            }
        }
    }

    /// Lets time pass: resets that were not answered in time have failed, broken slots whose pause
    /// is over may be tried again. To be called until it gives `None`.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Option<ResetFor>> {
        let &(when, slot) = self.timers.first()?;
        if when > now {
            return None;
        }
        let entry = &mut self.slots[slot.0];
        Some(match entry.state {
            State::Resetting { .. } => {
                let error = format!("no answer within {:?}", self.reset_timeout);
                let (generation, stale) = (entry.generation, entry.stale);
                let ended = self.reset_done(slot, generation, Err(error), now);
                let entry = &mut self.slots[slot.0];
                (entry.unanswered, entry.stale) = (true, stale);
                ended
            }
            // Never two resets at once: the older one could go on emptying what the newer one has
            // long made a trajectory's workspace.
            _ if entry.unanswered => {
                self.set(slot, State::Broken { retry_at: now + RETRY_MOST });
                None
            }
            _ => {
                self.set(slot, State::Dirty(None));
                None
            }
        })
    }

    /// When [`Pool::expire`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.first().map(|&(when, _)| when)
    }

    /// Marks every slot as holding who knows what. For a pool whose slots were used before; while
    /// none of them is held yet.
    pub(crate) fn begin_dirty(&mut self) {
        for slot in (0..self.slots.len()).map(SlotIx) {
            self.set(slot, State::Dirty(None));
        }
    }

    /// Whether no container has a slot, not even one that others use.
    pub(crate) fn has_no_slots(&self) -> bool {
        self.slots.is_empty()
    }

    /// The slot as backends know it.
    pub(crate) fn slot_ref(&self, slot: SlotIx) -> SlotRef {
        let entry = &self.slots[slot.0];
        SlotRef {
            addr: self.containers[entry.container].addr.clone(),
            index: entry.index,
            name: entry.name.clone(),
            generation: entry.generation,
        }
    }

    /// How often a slot was given out.
    pub(crate) fn generation(&self, slot: SlotIx) -> u64 {
        self.slots[slot.0].generation
    }

    /// The container of a slot.
    pub(crate) fn container(&self, slot: SlotIx) -> usize {
        self.slots[slot.0].container
    }

    /// How many slots are in which state.
    pub(crate) fn counts(&self) -> SlotCounts {
        let elsewhere = self.containers.iter().map(PoolContainer::elsewhere).sum();
        SlotCounts { elsewhere, ..self.counts }
    }

    /// How many containers answer.
    pub(crate) fn container_counts(&self) -> ContainerCounts {
        let mut counts = ContainerCounts::default();
        for container in &self.containers {
            match container.state {
                ContainerState::Up if container.is_draining => counts.draining += 1,
                ContainerState::Up => counts.up += 1,
                ContainerState::Unknown => counts.unknown += 1,
                ContainerState::Down => counts.down += 1,
                ContainerState::Gone => {}
            }
        }
        counts
    }

    /// What is to be told of each container, by its number.
    pub(crate) fn occupancy(&self) -> impl Iterator<Item = Occupancy<'_>> {
        self.containers.iter().enumerate().map(|(number, container)| Occupancy {
            addr: &container.addr,
            tier: container.tier,
            state: match container.state {
                ContainerState::Up if container.is_draining => "draining",
                ContainerState::Up => "up",
                ContainerState::Unknown => "unknown",
                ContainerState::Down => "down",
                ContainerState::Gone => "gone",
            },
            slots: container.total,
            held: container.held,
            images: self.images.of_place(number),
        })
    }

    /// The address of a container.
    pub(crate) fn addr(&self, container: usize) -> Arc<str> {
        self.containers[container].addr.clone()
    }

    /// The trajectory that holds this slot.
    pub(crate) fn holder(&self, slot: SlotIx) -> Option<&Arc<str>> {
        match &self.slots[slot.0].state {
            State::Held(trajectory) => Some(trajectory),
            _ => None,
        }
    }

    /// The trajectories that hold a slot.
    pub(crate) fn holders(&self) -> impl Iterator<Item = &Arc<str>> {
        self.slots.iter().filter_map(|slot| match &slot.state {
            State::Held(trajectory) => Some(trajectory),
            _ => None,
        })
    }

    /// Puts a trajectory back to where it was in the waiting room.
    fn wait_again(&mut self, turn: Turn, trajectory: Arc<str>) {
        self.waiting.put_back(turn.position, trajectory.clone());
        self.wishes.return_to(&trajectory, turn);
        self.positions.insert(trajectory, turn.position);
    }

    /// A free slot for a trajectory that may use these tiers and has waited for so long.
    fn free_slot(&self, may: TierSet, waited: Duration, views: &[TierView]) -> Option<SlotIx> {
        let of_tier = |tier| self.clean_slot(tier).or_else(|| self.dirty_slot(tier));
        if views.is_empty() {
            return of_tier(0);
        }
        let open = tiers::open_to(may, waited, views);
        (0..views.len()).filter(|tier| open.has(*tier)).find_map(of_tier)
    }

    fn clean_slot(&self, tier: usize) -> Option<SlotIx> {
        self.least_loaded(tier, |container| container.clean.last())
    }

    fn dirty_slot(&self, tier: usize) -> Option<SlotIx> {
        self.least_loaded(tier, |container| container.dirty.front())
    }

    fn least_loaded(
        &self,
        tier: usize,
        free: impl Fn(&PoolContainer) -> Option<&SlotIx>,
    ) -> Option<SlotIx> {
        self.containers
            .iter()
            .filter(|container| container.tier == tier && container.is_open())
            .filter_map(|container| free(container).map(|slot| (container.load, *slot)))
            .min()
            .map(|(_, slot)| slot)
    }

    fn begin_reset(&mut self, slot: SlotIx, purpose: Purpose, now: Instant) {
        let deadline = now + self.reset_timeout;
        self.set(slot, State::Resetting { purpose, deadline });
    }

    /// The one place where a slot changes its state, so that lists, counts and timers agree.
    fn set(&mut self, slot: SlotIx, state: State) {
        let goes_on = match &state {
            State::Held(_) => true,
            State::Resetting { purpose, .. } => matches!(purpose, Purpose::Grant(..)),
            _ => false,
        };
        if !goes_on {
            self.image_is_over(slot);
        }
        let entry = &mut self.slots[slot.0];
        let container = &mut self.containers[entry.container];
        match std::mem::replace(&mut entry.state, state) {
            State::Clean => {
                // Nearly always the last one: that is the one that gets taken.
                if container.clean.last() == Some(&slot) {
                    container.clean.pop();
                } else {
                    container.clean.retain(|other| *other != slot);
                }
                self.counts.clean -= 1;
            }
            State::Dirty(owner) => {
                if container.dirty.front() == Some(&slot) {
                    container.dirty.pop_front();
                } else {
                    container.dirty.retain(|other| *other != slot);
                }
                if let Some(owner) = owner {
                    self.left_by.remove(&owner);
                }
                self.counts.dirty -= 1;
            }
            State::Held(_) => {
                container.load -= 1;
                container.held -= 1;
                self.counts.held -= 1;
            }
            State::Resetting { deadline, .. } => {
                self.timers.remove(&(deadline, slot));
                container.load -= 1;
                self.counts.resetting -= 1;
            }
            State::Broken { retry_at } => {
                self.timers.remove(&(retry_at, slot));
                self.counts.broken -= 1;
            }
            State::Absent => {
                container.total += 1;
                self.counts.total += 1;
            }
        }
        match &entry.state {
            State::Clean => {
                container.clean.push(slot);
                self.counts.clean += 1;
            }
            State::Dirty(owner) => {
                container.dirty.push_back(slot);
                if let Some(owner) = owner {
                    self.left_by.insert(owner.clone(), slot);
                }
                self.counts.dirty += 1;
            }
            State::Held(_) => {
                container.load += 1;
                container.held += 1;
                self.counts.held += 1;
                entry.generation += 1;
            }
            State::Resetting { deadline, .. } => {
                self.timers.insert((*deadline, slot));
                container.load += 1;
                self.counts.resetting += 1;
                entry.generation += 1;
            }
            State::Broken { retry_at } => {
                self.timers.insert((*retry_at, slot));
                self.counts.broken += 1;
            }
            State::Absent => {
                container.total -= 1;
                self.counts.total -= 1;
            }
        }
    }
}
