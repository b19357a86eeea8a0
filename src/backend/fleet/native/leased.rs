//! Which slots of a server are the session's: a pure data structure.
//!
//! The server's *epochs* begin anew when the server does; the rest of the executor knows a lease of
//! a slot by its *grant*, a number of our own that only grows.

use std::time::Duration;

use crate::backend::LeasedSlots;
use crate::wire::native::{Lease, LeaseKey, SessionResponse};

/// How many times within the lease a session says that it is there.
const BEATS: u32 = 5;
/// The pause between two questions of a session that holds nothing yet.
const BEAT_WITHOUT_SLOTS: Duration = Duration::from_millis(500);
/// The same where others share the server: it is to know soon how many slots it has elsewhere.
const BEAT_AMONG_OTHERS: Duration = Duration::from_secs(1);
/// A beat is no more frequent than this, whatever lease the server names.
const BEAT_LEAST: Duration = Duration::from_millis(100);

/// A session's slots.
pub(super) struct Leased {
    names: Vec<String>,
    lease: Lease,
    /// How long the session lives without being heard of.
    lives: Duration,
    slots: Vec<Slot>,
    next_grant: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The epoch of its lease, and the grant.
    held: Option<(u64, u64)>,
    /// The latest epoch under which it was given back: the server may not have heard of that yet.
    returned: u64,
}

impl Leased {
    /// As the answer to the session's beginning says it.
    pub(super) fn new(answer: SessionResponse) -> Self {
        let mut leased = Self {
            names: Vec::new(),
            lease: Lease::default(),
            lives: Duration::ZERO,
            slots: Vec::new(),
            next_grant: 1,
        };
        leased.begin_anew(answer);
        leased
    }

    /// Another session has begun: nothing of the one before is held any more.
    pub(super) fn begin_anew(&mut self, answer: SessionResponse) {
        self.names = answer.slots;
        self.lives = Duration::try_from_secs_f64(answer.lease_s).unwrap_or_default();
        self.lease = Lease::default();
        self.slots.clear();
        self.slots.resize(self.names.len(), Slot::default());
        self.take_in(&answer.lease);
    }

    /// Takes in what the server says. `false` if it is old: nothing has changed then.
    pub(super) fn apply(&mut self, lease: &Lease) -> bool {
        let is_new = lease.version > self.lease.version;
        if is_new {
            self.take_in(lease);
        }
        is_new
    }

    fn take_in(&mut self, lease: &Lease) {
        let mut epochs = vec![None; self.slots.len()];
        for &(slot, epoch) in &lease.held {
            if let Some(told) = epochs.get_mut(slot) {
                *told = Some(epoch);
            }
        }
        for (slot, epoch) in self.slots.iter_mut().zip(epochs) {
            let epoch = epoch.filter(|epoch| *epoch > slot.returned);
            if epoch != slot.held.map(|(epoch, _)| epoch) {
                slot.held = epoch.map(|epoch| (epoch, self.next_grant));
                self.next_grant += u64::from(epoch.is_some());
            }
        }
        self.lease = lease.clone();
    }

    /// The epoch of the slot's lease, if the session has it.
    pub(super) fn epoch(&self, slot: usize) -> Option<u64> {
        self.slots.get(slot)?.held.map(|(epoch, _)| epoch)
    }

    /// Gives a slot up that the session has under this grant: what the server is to be told.
    pub(super) fn give_back(&mut self, index: usize, grant: u64) -> Option<LeaseKey> {
        let slot = self.slots.get_mut(index)?;
        let (epoch, _) = slot.held.take_if(|(_, held)| *held == grant)?;
        slot.returned = epoch;
        Some((index, epoch))
    }

    /// As the executor is told of it.
    pub(super) fn slots(&self) -> LeasedSlots {
        let held = self.slots.iter().enumerate();
        let held = held.filter_map(|(index, slot)| Some((index, slot.held?.1))).collect();
        LeasedSlots::new(self.names.clone(), held, self.lease.limit)
    }

    /// How many slots the server has.
    pub(super) fn of_server(&self) -> usize {
        self.names.len()
    }

    /// How many of them the session has.
    pub(super) fn held(&self) -> usize {
        self.slots.iter().filter(|slot| slot.held.is_some()).count()
    }

    /// How many other executors share the server.
    pub(super) fn others(&self) -> usize {
        self.lease.sessions.saturating_sub(1)
    }

    /// Whether the server has said that it is about to end.
    pub(super) fn is_draining(&self) -> bool {
        self.lease.draining
    }

    /// The pause between two beats.
    pub(super) fn beat(&self) -> Duration {
        let most = match (self.held(), self.others()) {
            (0, _) => BEAT_WITHOUT_SLOTS,
            (_, 0) => Duration::MAX,
            _ => BEAT_AMONG_OTHERS,
        };
        (self.lives / BEATS).min(most).max(BEAT_LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(version: u64, held: &[LeaseKey]) -> SessionResponse {
        SessionResponse {
            instance: "i".to_owned(),
            resumed: false,
            slots: (0..3).map(|slot| format!("slot_{slot}")).collect(),
            lease: lease(version, held),
            lease_s: 15.0,
            max_body: 1 << 20,
            images: None,
        }
    }

    fn lease(version: u64, held: &[LeaseKey]) -> Lease {
        Lease {
            version,
            held: held.to_vec(),
            limit: 3,
            sessions: version as usize,
            draining: false,
        }
    }

    #[test]
    fn a_lease_that_changes_is_another_grant_and_one_that_stays_is_not() {
        let mut leased = Leased::new(answer(1, &[(0, 7), (2, 1)]));
        assert_eq!(leased.slots().held, [(0, 1), (2, 2)]);
        assert!(leased.apply(&lease(2, &[(0, 7), (1, 4), (9, 1)])));
        assert_eq!(leased.slots().held, [(0, 1), (1, 3)], "and no slot that there is not");
        assert!(!leased.apply(&lease(2, &[])), "told twice");
        assert_eq!((leased.epoch(1), leased.epoch(2), leased.epoch(9)), (Some(4), None, None));
        // The server is another one now, and its epochs begin anew.
        leased.begin_anew(answer(1, &[(0, 7), (1, 1)]));
        assert_eq!(leased.slots().held, [(0, 4), (1, 5)]);
    }

    #[test]
    fn what_was_given_back_is_not_held_until_it_is_leased_again() {
        let mut leased = Leased::new(answer(1, &[(0, 7)]));
        assert_eq!(leased.give_back(0, 2), None, "another grant");
        assert_eq!(leased.give_back(0, 1), Some((0, 7)));
        assert_eq!(leased.give_back(0, 1), None);
        // It had not heard of it when it said this.
        assert!(leased.apply(&lease(2, &[(0, 7), (1, 1)])));
        assert_eq!(leased.slots().held, [(1, 2)]);
        assert!(leased.apply(&lease(4, &[(0, 8)])));
        assert_eq!(leased.slots().held, [(0, 3)]);
    }

    #[test]
    fn a_session_is_heard_of_several_times_within_its_lease() {
        let mut leased = Leased::new(answer(1, &[(0, 1)]));
        assert_eq!(leased.beat(), Duration::from_secs(3));
        assert!(leased.apply(&lease(2, &[(0, 1)])));
        assert_eq!(leased.beat(), BEAT_AMONG_OTHERS);
        assert!(leased.apply(&lease(3, &[])));
        assert_eq!(leased.beat(), BEAT_WITHOUT_SLOTS);
        for lease_s in [f64::NAN, -1.0, 0.0, 1e-9] {
            let nonsense = SessionResponse { lease_s, ..answer(1, &[(0, 1)]) };
            assert_eq!(Leased::new(nonsense).beat(), BEAT_LEAST);
        }
    }
}
