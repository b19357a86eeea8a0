//! Several backends under one executor, in order of preference: the *tiers* of a pool, and which of
//! them a trajectory that waits may use now. Pure.
//!
//! The first tier that can serve a trajectory does so at once; each later one when the trajectory
//! has waited for so long as that tier says, or when no earlier one has a container to wait for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::slot::{ContainerState, PoolContainer, Purpose, Slot, SlotIx, State};
use crate::backend::Tier;

/// The most tiers: a set of them is a number.
pub(crate) const MOST_TIERS: usize = 16;

/// A set of tiers, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TierSet(u16);

impl TierSet {
    /// Whichever there are.
    pub(crate) const ALL: Self = Self(u16::MAX);
    /// None.
    pub(crate) const NONE: Self = Self(0);

    /// Those of these numbers.
    pub(crate) fn of(tiers: impl IntoIterator<Item = usize>) -> Self {
        tiers.into_iter().fold(Self::NONE, Self::with)
    }

    /// With one more.
    pub(crate) fn with(self, tier: usize) -> Self {
        Self(self.0 | Self::bit(tier))
    }

    /// Whether this one is among them.
    pub(crate) fn has(self, tier: usize) -> bool {
        self.0 & Self::bit(tier) != 0
    }

    /// Whether there is none.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn bit(tier: usize) -> u16 {
        1u16.checked_shl(u32::try_from(tier).unwrap_or(u32::MAX)).unwrap_or(0)
    }
}

/// What the pool knows of a tier.
#[derive(Debug)]
pub(super) struct TierRules {
    pub(super) name: Arc<str>,
    /// How long a trajectory waits for the tiers before it.
    pub(super) spill_after: Duration,
    /// Whether containers may be added to it.
    pub(super) may_grow: bool,
}

impl TierRules {
    pub(super) fn new(tier: &Tier) -> Self {
        Self {
            name: tier.name.as_str().into(),
            spill_after: tier.spill_after,
            may_grow: tier.capabilities.may_grow,
        }
    }
}

/// The tier of the container at this address: the part before the first `/` names it. Where there
/// are no names all are the first.
pub(super) fn tier_at(tiers: &[TierRules], addr: &str) -> usize {
    let name = addr.split_once('/').map_or(addr, |(name, _)| name);
    tiers.iter().position(|tier| *tier.name == *name).unwrap_or(0)
}

/// What of a tier decides who may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TierView {
    pub(super) spill_after: Duration,
    /// Whether waiting for it makes sense: it has a container that takes trajectories, or will.
    pub(super) is_worth_waiting: bool,
}

/// Which of the tiers that it `may` use a trajectory may use now that it has waited for so long.
pub(super) fn open_to(may: TierSet, waited: Duration, tiers: &[TierView]) -> TierSet {
    let mut open = TierSet::NONE;
    let mut waits = false;
    for (tier, view) in tiers.iter().enumerate().filter(|(tier, _)| may.has(*tier)) {
        if !waits || waited >= view.spill_after {
            open = open.with(tier);
        }
        waits |= view.is_worth_waiting;
    }
    open
}

impl Pool {
    /// The tiers as they are now; none where there is one only.
    pub(super) fn tier_views(&self) -> Vec<TierView> {
        let view = |(tier, rules): (usize, &TierRules)| {
            let mut here = self.containers.iter().filter(|container| container.tier == tier);
            let is_out = |container: &PoolContainer| {
                matches!(container.state, ContainerState::Unknown | ContainerState::Down)
            };
            // One that has lost what it had is not known to come back.
            let is_worth_waiting =
                here.clone().any(PoolContainer::is_open) || (rules.may_grow && !here.any(is_out));
            TierView { spill_after: rules.spill_after, is_worth_waiting }
        };
        self.tiers.iter().enumerate().map(view).collect()
    }

    /// Whether there are several tiers.
    pub(crate) fn has_tiers(&self) -> bool {
        !self.tiers.is_empty()
    }

    /// The number of the tier that a slot is of, and its name.
    pub(crate) fn tier_of(&self, slot: SlotIx) -> (usize, Arc<str>) {
        let tier = self.containers[self.container(slot)].tier;
        (tier, self.tiers.get(tier).map_or_else(|| "".into(), |rules| rules.name.clone()))
    }

    /// These tiers without one; none where there is one only.
    pub(crate) fn other_tiers(&self, may: TierSet, without: usize) -> TierSet {
        TierSet::of((0..self.tiers.len()).filter(|tier| *tier != without && may.has(*tier)))
    }

    /// The names of these tiers, unless they are all.
    pub(crate) fn names_of(&self, may: TierSet) -> Option<String> {
        let named: Vec<_> = (self.tiers.iter().enumerate())
            .filter_map(|(tier, rules)| may.has(tier).then_some(&*rules.name))
            .collect();
        (named.len() < self.tiers.len()).then(|| named.join(", "))
    }

    /// For each tier, how many trajectories wait that may use it now, or have a slot of it reset
    /// for them; nothing where there is one tier only. One that may use several counts in each.
    pub(crate) fn waiting_by_tier(&self, now: Instant) -> Vec<usize> {
        let views = self.tier_views();
        let mut waiting = vec![0; views.len()];
        if views.is_empty() {
            return waiting;
        }
        let open = |may, since| open_to(may, now.saturating_duration_since(since), &views);
        for (may, line) in self.wishes.anywhere().chain(self.wishes.with_images()) {
            for (tier, waiting) in waiting.iter_mut().enumerate().filter(|(tier, _)| may.has(*tier))
            {
                // Who has come later has waited for less long.
                *waiting += line.values().take_while(|since| open(may, **since).has(tier)).count();
            }
        }
        for (container, line) in self.wishes.there() {
            waiting[self.containers[container].tier] += line.len();
        }
        for &(_, slot) in &self.timers {
            let Slot { state, container, .. } = &self.slots[slot.0];
            if matches!(state, State::Resetting { purpose: Purpose::Grant(..), .. }) {
                waiting[self.containers[*container].tier] += 1;
            }
        }
        waiting
    }

    /// Lets time pass. Whether a trajectory that waits may use one more tier now.
    pub(crate) fn has_spilled(&mut self, now: Instant) -> bool {
        self.wishes.has_spilled(now)
    }

    /// When the next one may.
    pub(crate) fn next_spill(&self) -> Option<Instant> {
        self.wishes.next_spill()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn views(tiers: &[(u64, bool)]) -> Vec<TierView> {
        let view = |&(after, is_worth_waiting): &(u64, bool)| TierView {
            spill_after: Duration::from_secs(after),
            is_worth_waiting,
        };
        tiers.iter().map(view).collect()
    }

    fn open(may: TierSet, waited: u64, tiers: &[(u64, bool)]) -> Vec<usize> {
        let open = open_to(may, Duration::from_secs(waited), &views(tiers));
        (0..tiers.len()).filter(|tier| open.has(*tier)).collect()
    }

    #[test]
    fn the_first_is_for_all_at_once_and_the_others_in_their_time() {
        let tiers = [(0, true), (0, true), (10, true)];
        assert_eq!(open(TierSet::ALL, 0, &tiers), [0, 1]);
        assert_eq!(open(TierSet::ALL, 9, &tiers), [0, 1]);
        assert_eq!(open(TierSet::ALL, 10, &tiers), [0, 1, 2]);
        // What only the last can give does not wait for the others.
        assert_eq!(open(TierSet::of([2]), 0, &tiers), [2]);
        assert_eq!(open(TierSet::of([1, 2]), 0, &tiers), [1]);
        assert_eq!(open(TierSet::NONE, 99, &tiers), [0; 0]);
    }

    #[test]
    fn a_tier_that_is_lost_is_not_waited_for() {
        assert_eq!(open(TierSet::ALL, 0, &[(0, false), (10, true), (10, true)]), [0, 1]);
        assert_eq!(open(TierSet::ALL, 0, &[(0, false), (10, false), (10, true)]), [0, 1, 2]);
    }

    #[test]
    fn an_address_tells_its_tier() {
        let tier = |name: &str| TierRules {
            name: name.into(),
            spill_after: Duration::ZERO,
            may_grow: false,
        };
        let tiers = [tier("local"), tier("far")];
        assert_eq!(tier_at(&tiers, "local/local"), 0);
        assert_eq!(tier_at(&tiers, "far/http://far:80/x"), 1);
        assert_eq!(tier_at(&[], "http://far:80"), 0);
    }

    proptest! {
        #[test]
        fn no_one_is_without_a_tier_and_time_only_adds_to_them(
            may in 1..=u16::MAX,
            tiers in proptest::collection::vec((0..30u64, any::<bool>()), 1..6),
            waited in 0..40u64,
            more in 0..40u64,
        ) {
            let may = TierSet(may);
            let now = open(may, waited, &tiers);
            let later = open(may, waited + more, &tiers);
            let all: Vec<_> = (0..tiers.len()).filter(|tier| may.has(*tier)).collect();
            prop_assert!(now.iter().all(|tier| may.has(*tier) && later.contains(tier)));
            prop_assert_eq!(now.first(), all.first());
            // The first that is worth waiting for is open from the beginning.
            let worth = all.iter().find(|tier| tiers[**tier].1);
            prop_assert!(worth.is_none_or(|tier| now.contains(tier)));
            prop_assert_eq!(open(may, 30, &tiers), all, "at last each is");
        }
    }
}
