//! Who has which slot: a pure data structure, without threads, clocks or I/O of its own.
//!
//! A trajectory that needs a slot joins the waiting room ([`Pool::wait`]); [`Pool::assign`] serves
//! the waiting room in order of arrival. A slot is given out clean, or reset first: one that was
//! released with another trajectory's files in it never reaches anybody unreset, and one whose
//! reset failed is kept back until a later reset succeeds. The trajectory that left files in a slot
//! gets that slot back as it was, if nobody took it meanwhile.
//!
//! The owner (the batcher's [`Dispatch`](crate::executor)) carries out the resets that
//! [`Pool::assign`] and [`Pool::release_with_reset`] ask for, and reports them by
//! [`Pool::reset_done`]; [`Pool::expire`] gives up those that are not answered in time. Such a slot
//! is kept back until the answer comes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::backend::{Container, SlotRef};

/// The index of a slot in its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SlotIx(usize);

/// What [`Pool::assign`] decided for the trajectory at the head of the waiting room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Assignment {
    /// It has this slot now.
    Slot(Arc<str>, SlotIx),
    /// It will have this slot once the reset that is to be started now has succeeded.
    Reset(SlotIx),
}

/// For whom a reset was made: what [`Pool::reset_done`] and [`Pool::expire`] give back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ResetFor {
    /// A trajectory that waits for the slot, and now has it.
    Granted(Arc<str>, SlotIx),
    /// A trajectory that is being released from the slot, and why the reset failed if it did.
    Released(Arc<str>, Result<(), String>),
}

/// How many slots are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SlotCounts {
    /// All slots.
    pub total: usize,
    /// Free and empty.
    pub clean: usize,
    /// Free, with the files of the trajectory that was released from it: reset before any other
    /// trajectory gets it.
    pub dirty: usize,
    /// Held by a trajectory.
    pub held: usize,
    /// Being reset.
    pub resetting: usize,
    /// Kept back because the last reset failed; it is tried again, less and less often.
    pub broken: usize,
}

/// How often a failed reset is tried again: after 1 s, then twice as long each time, up to a minute.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum State {
    Clean,
    /// Free, with files in it: those of the named trajectory, if that one may have them back.
    Dirty(Option<Arc<str>>),
    Held(Arc<str>),
    Resetting {
        purpose: Purpose,
        deadline: Instant,
    },
    /// Not to be touched before `retry_at`.
    Broken {
        retry_at: Instant,
    },
}

#[derive(Debug)]
enum Purpose {
    /// For the trajectory that was at the head of the waiting room, at this place, when the reset
    /// began.
    Grant(u64, Arc<str>),
    Release(Arc<str>),
    /// For nobody any more: its trajectory gave up waiting.
    Nobody,
}

#[derive(Debug)]
struct Slot {
    container: usize,
    index: usize,
    name: Arc<str>,
    generation: u64,
    state: State,
    failed_resets: u32,
    /// A reset that was given up is still to be answered, so it may still be at work in there.
    unanswered: bool,
}

#[derive(Debug)]
struct PoolContainer {
    addr: Arc<str>,
    clean: Vec<SlotIx>,
    /// In order of release: the one that was left longest ago is taken first.
    dirty: VecDeque<SlotIx>,
    /// Slots that are held or being reset for somebody.
    load: usize,
}

/// The slots of all containers and the trajectories that wait for one.
#[derive(Debug)]
pub(crate) struct Pool {
    containers: Vec<PoolContainer>,
    slots: Vec<Slot>,
    /// The waiting room, by order of arrival.
    waiting: BTreeMap<u64, Arc<str>>,
    /// Where in the waiting room a trajectory is.
    places: HashMap<Arc<str>, u64>,
    arrivals: u64,
    /// Free slots whose files a trajectory may have back.
    left_by: HashMap<Arc<str>, SlotIx>,
    /// When to look at slots that are being reset or broken.
    timers: BTreeSet<(Instant, SlotIx)>,
    counts: SlotCounts,
    reset_timeout: Duration,
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
                slots.extend(container.slots.iter().enumerate().map(|(index, name)| Slot {
                    container: number,
                    index,
                    name: name.as_str().into(),
                    generation: 0,
                    state: State::Clean,
                    failed_resets: 0,
                    unanswered: false,
                }));
                PoolContainer {
                    addr: container.addr.as_str().into(),
                    // Taken from the end, so that slot_0 comes first.
                    clean: (first..slots.len()).rev().map(SlotIx).collect(),
                    dirty: VecDeque::new(),
                    load: 0,
                }
            })
            .collect();
        let counts = SlotCounts { total: slots.len(), clean: slots.len(), ..SlotCounts::default() };
        Self {
            containers,
            slots,
            waiting: BTreeMap::new(),
            places: HashMap::new(),
            arrivals: 0,
            left_by: HashMap::new(),
            timers: BTreeSet::new(),
            counts,
            reset_timeout,
        }
    }

    /// Puts a trajectory at the end of the waiting room. It must hold no slot and not wait yet.
    pub(crate) fn wait(&mut self, trajectory: Arc<str>) {
        debug_assert!(!self.places.contains_key(&trajectory));
        let place = self.arrivals;
        self.arrivals += 1;
        self.wait_at(place, trajectory);
    }

    /// Takes a trajectory out of the waiting room: its call was cancelled or its time is up.
    pub(crate) fn stop_waiting(&mut self, trajectory: &Arc<str>) {
        if let Some(place) = self.places.remove(trajectory) {
            self.waiting.remove(&place);
            return;
        }
        for &(_, slot) in &self.timers {
            if let State::Resetting { purpose, .. } = &mut self.slots[slot.0].state
                && matches!(purpose, Purpose::Grant(_, waiting) if waiting == trajectory)
            {
                *purpose = Purpose::Nobody;
            }
        }
    }

    /// Serves the head of the waiting room, if a slot is free for it. To be called until it gives
    /// `None`, after every change.
    pub(crate) fn assign(&mut self, now: Instant) -> Option<Assignment> {
        let (&place, trajectory) = self.waiting.first_key_value()?;
        let trajectory = trajectory.clone();
        let slot = self
            .left_by
            .get(&trajectory)
            .copied()
            .or_else(|| self.clean_slot())
            .or_else(|| self.dirty_slot())?;
        self.waiting.remove(&place);
        self.places.remove(&trajectory);
        let needs_reset = match &self.slots[slot.0].state {
            State::Dirty(owner) => owner.as_ref() != Some(&trajectory),
            _ => false,
        };
        if needs_reset {
            self.begin_reset(slot, Purpose::Grant(place, trajectory), now);
            return Some(Assignment::Reset(slot));
        }
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

    /// Frees a slot of which nobody knows what is in it, nor whether something still runs there:
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

    /// Takes the outcome of the reset of `slot` that was started under `generation`. `None`: nobody
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
        if std::mem::take(&mut entry.unanswered) {
            // Given up meanwhile. Late, but it says that the slot is empty.
            if outcome.is_ok() {
                entry.failed_resets = 0;
                self.set(slot, State::Clean);
            }
            return None;
        }
        let State::Resetting { purpose, .. } = &mut entry.state else { return None };
        let purpose = std::mem::replace(purpose, Purpose::Nobody);
        if outcome.is_ok() {
            entry.failed_resets = 0;
        }
        let broken = |entry: &mut Slot| {
            let pause = RETRY_FIRST.saturating_mul(1 << entry.failed_resets.min(10));
            entry.failed_resets += 1;
            State::Broken { retry_at: now + pause.min(RETRY_MOST) }
        };
        match (purpose, outcome) {
            (Purpose::Grant(_, trajectory), Ok(())) => {
                self.set(slot, State::Held(trajectory.clone()));
                Some(ResetFor::Granted(trajectory, slot))
            }
            (Purpose::Grant(place, trajectory), Err(error)) => {
                log::warn!("slot {} is kept back: its reset failed: {error}", entry.name);
                let state = broken(entry);
                self.set(slot, state);
                // Back to where it was, before all who came later.
                self.wait_at(place, trajectory);
                None
            }
            (Purpose::Release(trajectory), outcome) => {
                let state = match &outcome {
                    Ok(()) => State::Clean,
                    Err(error) => {
                        log::warn!("slot {} is kept back: its reset failed: {error}", entry.name);
                        broken(entry)
                    }
                };
                self.set(slot, state);
                Some(ResetFor::Released(trajectory, outcome))
            }
            (Purpose::Nobody, outcome) => {
                let state = if outcome.is_ok() { State::Clean } else { broken(entry) };
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
                let generation = entry.generation;
                let ended = self.reset_done(slot, generation, Err(error), now);
                self.slots[slot.0].unanswered = true;
                ended
            }
            // Never two resets at once: the older one could go on emptying what the newer one has
            // long made somebody's workspace.
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

    /// The slot as backends know it.
    pub(crate) fn slot_ref(&self, slot: SlotIx) -> SlotRef {
        let entry = &self.slots[slot.0];
        SlotRef {
            container: entry.container,
            addr: self.containers[entry.container].addr.clone(),
            index: entry.index,
            name: entry.name.clone(),
            generation: entry.generation,
        }
    }

    /// The container of a slot.
    pub(crate) fn container(&self, slot: SlotIx) -> usize {
        self.slots[slot.0].container
    }

    /// How many slots are in which state.
    pub(crate) fn counts(&self) -> SlotCounts {
        self.counts
    }

    /// How many trajectories wait for a slot.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The trajectories that hold a slot.
    pub(crate) fn holders(&self) -> impl Iterator<Item = &Arc<str>> {
        self.slots.iter().filter_map(|slot| match &slot.state {
            State::Held(trajectory) => Some(trajectory),
            _ => None,
        })
    }

    fn wait_at(&mut self, place: u64, trajectory: Arc<str>) {
        self.waiting.insert(place, trajectory.clone());
        self.places.insert(trajectory, place);
    }

    fn clean_slot(&self) -> Option<SlotIx> {
        self.least_loaded(|container| container.clean.last())
    }

    fn dirty_slot(&self) -> Option<SlotIx> {
        self.least_loaded(|container| container.dirty.front())
    }

    fn least_loaded(&self, free: impl Fn(&PoolContainer) -> Option<&SlotIx>) -> Option<SlotIx> {
        self.containers
            .iter()
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn containers(sizes: &[usize]) -> Vec<Container> {
        sizes
            .iter()
            .enumerate()
            .map(|(number, size)| Container {
                addr: format!("container-{number}"),
                slots: (0..*size).map(|slot| format!("slot_{slot}")).collect(),
            })
            .collect()
    }

    fn pool(sizes: &[usize]) -> Pool {
        Pool::new(&containers(sizes), Duration::from_secs(60))
    }

    fn id(name: &str) -> Arc<str> {
        name.into()
    }

    fn granted(pool: &mut Pool, now: Instant) -> SlotIx {
        match pool.assign(now) {
            Some(Assignment::Slot(_, slot)) => slot,
            other => panic!("expected a slot, got {other:?}"),
        }
    }

    #[test]
    fn slots_are_spread_over_the_least_loaded_containers() {
        let mut pool = pool(&[2, 2, 2]);
        let mut order = Vec::new();
        for name in ["a", "b", "c", "d", "e", "f"] {
            pool.wait(id(name));
            let slot = granted(&mut pool, Instant::now());
            order.push(pool.slot_ref(slot).container);
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn the_waiting_room_is_served_in_order_of_arrival() {
        let mut pool = pool(&[1]);
        let now = Instant::now();
        for name in ["a", "b", "c"] {
            pool.wait(id(name));
        }
        let slot = granted(&mut pool, now);
        assert_eq!(pool.assign(now), None);
        pool.stop_waiting(&id("b"));
        pool.release_as_is(slot);
        assert_eq!(pool.assign(now), Some(Assignment::Reset(slot)));
        let generation = pool.slot_ref(slot).generation;
        assert_eq!(
            pool.reset_done(slot, generation, Ok(()), now),
            Some(ResetFor::Granted(id("c"), slot))
        );
    }

    #[test]
    fn whoever_left_files_in_a_slot_gets_them_back_and_nobody_else_does() {
        let mut pool = pool(&[2]);
        let now = Instant::now();
        pool.wait(id("a"));
        let left = granted(&mut pool, now);
        pool.release_as_is(left);
        pool.wait(id("b"));
        assert_ne!(granted(&mut pool, now), left, "a clean slot is preferred");
        pool.wait(id("a"));
        assert_eq!(pool.assign(now), Some(Assignment::Slot(id("a"), left)));
        pool.release_as_is(left);
        pool.wait(id("c"));
        assert_eq!(pool.assign(now), Some(Assignment::Reset(left)), "not without a reset");
    }

    #[test]
    fn a_slot_whose_reset_failed_is_kept_back_and_tried_again_after_a_pause() {
        let mut pool = pool(&[1]);
        let now = Instant::now();
        pool.wait(id("a"));
        let slot = granted(&mut pool, now);
        pool.release_with_reset(slot, now);
        let generation = pool.slot_ref(slot).generation;
        assert_eq!(
            pool.reset_done(slot, generation, Err("disk".into()), now),
            Some(ResetFor::Released(id("a"), Err("disk".into())))
        );
        pool.wait(id("b"));
        assert_eq!(pool.assign(now), None);
        assert_eq!(pool.counts().broken, 1);
        let retry = pool.next_deadline().unwrap();
        assert_eq!(retry, now + RETRY_FIRST);
        assert_eq!(pool.expire(retry), Some(None));
        assert_eq!(pool.assign(retry), Some(Assignment::Reset(slot)));
    }

    #[test]
    fn trajectories_whose_resets_failed_are_served_in_the_order_of_their_arrival() {
        let mut pool = pool(&[2]);
        let now = Instant::now();
        for name in ["x", "y"] {
            pool.wait(id(name));
        }
        let slots = [granted(&mut pool, now), granted(&mut pool, now)];
        for slot in slots {
            pool.release_as_is(slot);
        }
        for name in ["a", "b"] {
            pool.wait(id(name));
        }
        let [Some(Assignment::Reset(for_a)), Some(Assignment::Reset(for_b))] =
            [pool.assign(now), pool.assign(now)]
        else {
            panic!("expected two resets")
        };
        for slot in [for_a, for_b] {
            let generation = pool.slot_ref(slot).generation;
            pool.reset_done(slot, generation, Err("disk".into()), now);
        }
        let retry = pool.next_deadline().unwrap();
        while pool.expire(retry).is_some() {}
        let Some(Assignment::Reset(slot)) = pool.assign(retry) else { panic!("expected a reset") };
        let generation = pool.slot_ref(slot).generation;
        assert_eq!(
            pool.reset_done(slot, generation, Ok(()), retry),
            Some(ResetFor::Granted(id("a"), slot))
        );
    }

    #[test]
    fn a_reset_without_an_answer_fails_at_its_deadline_and_its_slot_waits_for_the_answer() {
        let mut pool = pool(&[1]);
        let now = Instant::now();
        pool.wait(id("a"));
        let slot = granted(&mut pool, now);
        pool.release_with_reset(slot, now);
        let generation = pool.slot_ref(slot).generation;
        let deadline = pool.next_deadline().unwrap();
        let Some(Some(ResetFor::Released(_, Err(_)))) = pool.expire(deadline) else {
            panic!("the release must end")
        };
        pool.wait(id("b"));
        for _ in 0..3 {
            let retry = pool.next_deadline().unwrap();
            pool.expire(retry);
            assert_eq!(pool.assign(retry), None, "a second reset beside the first");
        }
        assert_eq!(pool.reset_done(slot, generation, Ok(()), deadline), None);
        assert_eq!(pool.assign(deadline), Some(Assignment::Slot(id("b"), slot)));
        assert_eq!(pool.reset_done(slot, generation, Ok(()), deadline), None, "answered twice");
        assert_eq!(pool.counts().held, 1);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Wait(u8),
        StopWaiting(u8),
        Assign,
        ReleaseAsIs(u8),
        ReleaseUnknown(u8),
        ReleaseWithReset(u8),
        ResetDone(u8, bool),
        Pass(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12u8).prop_map(Step::Wait),
            (0..12u8).prop_map(Step::StopWaiting),
            Just(Step::Assign),
            (0..12u8).prop_map(Step::ReleaseAsIs),
            (0..12u8).prop_map(Step::ReleaseUnknown),
            (0..12u8).prop_map(Step::ReleaseWithReset),
            (0..6u8, any::<bool>()).prop_map(|(slot, ok)| Step::ResetDone(slot, ok)),
            (0..2000u16).prop_map(Step::Pass),
        ]
    }

    /// What a slot holds, as a naive observer sees it.
    #[derive(Debug, Clone, PartialEq)]
    enum Files {
        None,
        Of(u8),
        Unknown,
    }

    proptest! {
        #[test]
        fn no_slot_has_two_holders_and_no_files_reach_another_trajectory(
            steps in proptest::collection::vec(step(), 1..200)
        ) {
            let mut pool = pool(&[2, 1, 3]);
            let mut now = Instant::now();
            let mut held: HashMap<u8, SlotIx> = HashMap::new();
            let mut waiting: Vec<u8> = Vec::new();
            let mut files = vec![Files::None; 6];
            let number = |trajectory: &str| trajectory.parse::<u8>().unwrap();
            for step in steps {
                match step {
                    Step::Wait(t) => {
                        if !held.contains_key(&t) && !waiting.contains(&t) {
                            waiting.push(t);
                            pool.wait(t.to_string().into());
                        }
                    }
                    Step::StopWaiting(t) => {
                        waiting.retain(|other| *other != t);
                        pool.stop_waiting(&t.to_string().into());
                    }
                    Step::Assign => {
                        if let Some(Assignment::Slot(t, slot)) = pool.assign(now) {
                            let t = number(&t);
                            prop_assert!(!held.values().any(|other| *other == slot));
                            let left = &files[slot.0];
                            prop_assert!(*left == Files::None || *left == Files::Of(t));
                            waiting.retain(|other| *other != t);
                            held.insert(t, slot);
                            files[slot.0] = Files::Of(t);
                        }
                    }
                    Step::ReleaseAsIs(t) => {
                        if let Some(slot) = held.remove(&t) {
                            pool.release_as_is(slot);
                        }
                    }
                    Step::ReleaseUnknown(t) => {
                        if let Some(slot) = held.remove(&t) {
                            files[slot.0] = Files::Unknown;
                            pool.release_unknown(slot);
                        }
                    }
                    Step::ReleaseWithReset(t) => {
                        if let Some(slot) = held.remove(&t) {
                            pool.release_with_reset(slot, now);
                        }
                    }
                    Step::ResetDone(slot, ok) => {
                        let slot = SlotIx(slot as usize);
                        if matches!(pool.slots[slot.0].state, State::Resetting { .. }) {
                            let generation = pool.slot_ref(slot).generation;
                            let outcome = if ok { Ok(()) } else { Err("no".into()) };
                            files[slot.0] = if ok { Files::None } else { Files::Unknown };
                            if let Some(ResetFor::Granted(t, slot)) =
                                pool.reset_done(slot, generation, outcome, now)
                            {
                                let t = number(&t);
                                prop_assert!(ok);
                                prop_assert!(!held.values().any(|other| *other == slot));
                                waiting.retain(|other| *other != t);
                                held.insert(t, slot);
                                files[slot.0] = Files::Of(t);
                            }
                        }
                    }
                    Step::Pass(ms) => {
                        now += Duration::from_millis(ms.into());
                        while pool.expire(now).is_some() {}
                    }
                }
                let counts = pool.counts();
                prop_assert_eq!(
                    counts.clean + counts.dirty + counts.held + counts.resetting + counts.broken,
                    counts.total
                );
                prop_assert_eq!(counts.held, held.len());
                prop_assert_eq!(pool.holders().count(), held.len());
            }
        }
    }
}
