//! Which session has which slot: a pure data structure, with the clock passed in.
//!
//! Owned by [`Native`](super::native), under its lock. It knows no operations, no HTTP and no
//! files. Its owner carries out the resets that [`Leases::take_resets`] gives and reports them by
//! [`Leases::reset_done`], and lets time pass by [`Leases::expire`].
//!
//! # A slot
//! It is *free*, *leased* to one session, *resetting* after a lease, or *kept back* because that
//! reset failed; it is tried again after a pause. A free slot may be used by plain requests; while
//! one is at work there ([`Leases::begin_plain`]) the slot is leased to no session.
//!
//! # Fencing
//! Each lease of a slot has an *epoch*, a number that only grows in its slot. What is done in a slot
//! names the epoch, and [`Leases::check`] refuses every other than the present one.
//!
//! # Fair shares
//! A session wants a number of slots. Each is *due* the smaller of that and the level at which the
//! usable slots would run out: the n-th part of them, rounded down, or more where others want less.
//! While a session has less than it is due, those that have more are asked by their
//! [`limit`](LeaseView::limit) to give slots back; which ones, and when, they decide: idle ones at
//! once, others at their release. What is free goes to the session that has the fewest and wants
//! more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a slot whose reset failed is kept back.
const RETRY: Duration = Duration::from_secs(1);

/// A session's number, never used again.
pub(super) type SessionNumber = u64;

/// Why something may not be done in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The slot is not leased to the session under this epoch, or not any more.
    Fenced,
    /// A session has the slot.
    Leased,
    /// The slot is being emptied after a session.
    Resetting,
}

/// What a session has and may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeaseView {
    /// Slots and their epochs.
    pub(super) held: Vec<(usize, u64)>,
    /// How many it may have: those beyond are to be given back.
    pub(super) limit: usize,
    /// How many sessions there are, this one too.
    pub(super) sessions: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Free { plain: usize },
    Leased(SessionNumber),
    Resetting { begun: bool },
    KeptBack { retry_at: Instant },
}

#[derive(Debug)]
struct Slot {
    epoch: u64,
    used: Use,
}

#[derive(Debug)]
struct Member {
    want: usize,
    limit: usize,
    heard: Instant,
}

/// The leases of a server's slots.
#[derive(Debug)]
pub(super) struct Leases {
    lease: Duration,
    slots: Vec<Slot>,
    sessions: BTreeMap<SessionNumber, Member>,
    next: SessionNumber,
}

impl Leases {
    /// All slots free. A session that is not heard of for `lease` is over.
    pub(super) fn new(slots: usize, lease: Duration) -> Self {
        let slot = |_| Slot { epoch: 0, used: Use::Free { plain: 0 } };
        Self { lease, slots: (0..slots).map(slot).collect(), sessions: BTreeMap::new(), next: 1 }
    }

    /// A new session, which wants so many slots.
    pub(super) fn join(&mut self, want: usize, now: Instant) -> SessionNumber {
        let number = self.next;
        self.next += 1;
        let want = want.min(self.slots.len());
        self.sessions.insert(number, Member { want, limit: want, heard: now });
        self.share();
        number
    }

    /// A session wants so many slots from now on.
    pub(super) fn wants(&mut self, session: SessionNumber, want: usize) {
        let want = want.min(self.slots.len());
        if let Some(member) = self.sessions.get_mut(&session)
            && member.want != want
        {
            member.want = want;
            self.share();
        }
    }

    /// A session was heard of.
    pub(super) fn heard(&mut self, session: SessionNumber, now: Instant) {
        if let Some(member) = self.sessions.get_mut(&session) {
            member.heard = member.heard.max(now);
        }
    }

    /// Ends a session; its slots are to be reset.
    pub(super) fn leave(&mut self, session: SessionNumber) {
        if self.sessions.remove(&session).is_none() {
            return;
        }
        for slot in &mut self.slots {
            if slot.used == Use::Leased(session) {
                slot.used = Use::Resetting { begun: false };
            }
        }
        self.share();
    }

    /// The sessions that were not heard of for too long. They are still to [`leave`](Self::leave).
    pub(super) fn expire(&mut self, now: Instant) -> Vec<SessionNumber> {
        for slot in &mut self.slots {
            if matches!(slot.used, Use::KeptBack { retry_at } if retry_at <= now) {
                slot.used = Use::Resetting { begun: false };
            }
        }
        let over = |member: &Member| now.saturating_duration_since(member.heard) > self.lease;
        self.sessions.iter().filter(|(_, member)| over(member)).map(|(number, _)| *number).collect()
    }

    /// Whether the session may do something in the slot under this epoch.
    pub(super) fn check(
        &self,
        session: SessionNumber,
        slot: usize,
        epoch: u64,
    ) -> Result<(), Refused> {
        let slot = self.slots.get(slot);
        let is_his = slot.is_some_and(|s| s.used == Use::Leased(session) && s.epoch == epoch);
        if is_his { Ok(()) } else { Err(Refused::Fenced) }
    }

    /// Takes a slot back from a session, which has given it up; it is to be reset.
    pub(super) fn give_back(
        &mut self,
        session: SessionNumber,
        slot: usize,
        epoch: u64,
    ) -> Result<(), Refused> {
        self.check(session, slot, epoch)?;
        self.slots[slot].used = Use::Resetting { begun: false };
        self.share();
        Ok(())
    }

    /// A plain request is about to do something in the slot.
    pub(super) fn begin_plain(&mut self, slot: usize) -> Result<(), Refused> {
        match &mut self.slots[slot].used {
            Use::Free { plain } => {
                *plain += 1;
                Ok(())
            }
            Use::Leased(_) => Err(Refused::Leased),
            Use::Resetting { .. } | Use::KeptBack { .. } => Err(Refused::Resetting),
        }
    }

    /// A plain request has done what it did in the slot.
    pub(super) fn end_plain(&mut self, slot: usize) {
        if let Use::Free { plain } = &mut self.slots[slot].used {
            *plain = plain.saturating_sub(1);
        }
        self.share();
    }

    /// The resets that are to be started now.
    pub(super) fn take_resets(&mut self) -> Vec<usize> {
        let mut due = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Use::Resetting { begun } = &mut slot.used
                && !std::mem::replace(begun, true)
            {
                due.push(index);
            }
        }
        due
    }

    /// What became of a slot's reset.
    pub(super) fn reset_done(&mut self, slot: usize, succeeded: bool, now: Instant) {
        let slot = &mut self.slots[slot];
        if slot.used == (Use::Resetting { begun: true }) {
            slot.used = match succeeded {
                true => Use::Free { plain: 0 },
                false => Use::KeptBack { retry_at: now + RETRY },
            };
        }
        self.share();
    }

    /// What a session has and may have.
    pub(super) fn view(&self, session: SessionNumber) -> LeaseView {
        let held = self.slots.iter().enumerate();
        let held = held.filter(|(_, slot)| slot.used == Use::Leased(session));
        LeaseView {
            held: held.map(|(index, slot)| (index, slot.epoch)).collect(),
            limit: self.sessions.get(&session).map_or(0, |member| member.limit),
            sessions: self.sessions.len(),
        }
    }

    fn held(&self, session: SessionNumber) -> usize {
        self.slots.iter().filter(|slot| slot.used == Use::Leased(session)).count()
    }

    /// What each session is due, at least.
    fn due(&self) -> BTreeMap<SessionNumber, usize> {
        let usable = |slot: &&Slot| match slot.used {
            Use::Free { plain } => plain == 0,
            Use::Leased(_) | Use::Resetting { .. } => true,
            Use::KeptBack { .. } => false,
        };
        let mut left = self.slots.iter().filter(usable).count();
        let mut wants: Vec<_> = self.sessions.values().map(|member| member.want).collect();
        wants.sort_unstable();
        let mut level = usize::MAX;
        for (place, want) in wants.iter().enumerate() {
            let share = left / (wants.len() - place);
            if *want > share {
                level = share;
                break;
            }
            left -= want;
        }
        self.sessions.iter().map(|(number, member)| (*number, member.want.min(level))).collect()
    }

    /// Gives out what is free, and decides who is to give back how much.
    fn share(&mut self) {
        if self.sessions.is_empty() {
            return;
        }
        let mut held: BTreeMap<_, _> =
            self.sessions.keys().map(|number| (*number, self.held(*number))).collect();
        for slot in &mut self.slots {
            if slot.used != (Use::Free { plain: 0 }) {
                continue;
            }
            let wanting = self.sessions.iter().filter(|(number, who)| held[number] < who.want);
            let Some(least) = wanting.map(|(number, _)| *number).min_by_key(|n| (held[n], *n))
            else {
                break;
            };
            slot.epoch += 1;
            slot.used = Use::Leased(least);
            held.entry(least).and_modify(|held| *held += 1);
        }
        let due = self.due();
        let missing: usize = due.iter().map(|(n, due)| due.saturating_sub(held[n])).sum();
        let coming = |slot: &&Slot| matches!(slot.used, Use::Resetting { .. });
        let coming = self.slots.iter().filter(coming).count();
        let mut limits = held.clone();
        for _ in coming..missing {
            let surplus = |number: &u64| limits[number].saturating_sub(due[number]);
            // Of equals the youngest: it has the least to lose.
            let Some(most) = limits.keys().copied().max_by_key(|n| (surplus(n), *n)) else { break };
            if surplus(&most) == 0 {
                break;
            }
            limits.entry(most).and_modify(|limit| *limit -= 1);
        }
        for (number, member) in &mut self.sessions {
            let asked_back = limits[number] < held[number];
            member.limit = if asked_back { limits[number] } else { member.want };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Duration = Duration::from_secs(15);

    /// Carries out all resets, and gives back what is asked back, until nothing moves.
    fn settle(leases: &mut Leases, now: Instant) {
        loop {
            let resets = leases.take_resets();
            resets.iter().for_each(|slot| leases.reset_done(*slot, true, now));
            let mut moved = !resets.is_empty();
            for session in leases.sessions.keys().copied().collect::<Vec<_>>() {
                let LeaseView { held, limit, .. } = leases.view(session);
                for (slot, epoch) in held.into_iter().skip(limit) {
                    leases.give_back(session, slot, epoch).unwrap();
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn counts(leases: &Leases) -> Vec<usize> {
        leases.sessions.keys().map(|session| leases.held(*session)).collect()
    }

    #[test]
    fn a_new_session_gets_its_share_and_the_rest_when_the_other_leaves() {
        let now = Instant::now();
        let mut leases = Leases::new(5, LEASE);
        let first = leases.join(100, now);
        assert_eq!(leases.view(first).limit, 5, "a million is as many as there are");
        let second = leases.join(100, now);
        assert_eq!((leases.view(first).limit, leases.view(second).held.len()), (3, 0));
        settle(&mut leases, now);
        assert_eq!(counts(&leases), [3, 2]);
        leases.leave(first);
        settle(&mut leases, now);
        assert_eq!(counts(&leases), [5]);
    }

    #[test]
    fn who_wants_less_leaves_more_to_the_others() {
        let now = Instant::now();
        let mut leases = Leases::new(8, LEASE);
        [8, 1, 8].into_iter().for_each(|want| drop(leases.join(want, now)));
        settle(&mut leases, now);
        let counts = counts(&leases);
        assert!(counts[1] == 1 && counts[0] >= 3 && counts[2] >= 3, "{counts:?}");
    }

    #[test]
    fn a_session_that_was_not_heard_of_is_over_and_its_epoch_is_refused() {
        let now = Instant::now();
        let mut leases = Leases::new(1, LEASE);
        let stopped = leases.join(1, now);
        let (slot, epoch) = leases.view(stopped).held[0];
        let waits = leases.join(1, now);
        leases.heard(waits, now + LEASE);
        assert!(leases.expire(now + LEASE).is_empty());
        let late = now + LEASE + Duration::from_nanos(1);
        assert_eq!(leases.expire(late), [stopped]);
        leases.leave(stopped);
        assert_eq!(leases.view(waits).held, [], "not before it was reset");
        assert_eq!(leases.take_resets(), [slot]);
        leases.reset_done(slot, false, late);
        assert_eq!(leases.view(waits).held, [], "its reset failed");
        assert!(leases.take_resets().is_empty() && leases.expire(late + RETRY).is_empty());
        assert_eq!(leases.take_resets(), [slot]);
        leases.reset_done(slot, true, late);
        assert_eq!(leases.view(waits).held, [(slot, epoch + 1)]);
        assert_eq!(leases.check(stopped, slot, epoch), Err(Refused::Fenced));
        assert_eq!(leases.check(waits, slot, epoch), Err(Refused::Fenced));
        assert_eq!(leases.check(waits, slot, epoch + 1), Ok(()));
    }

    #[test]
    fn plain_requests_and_sessions_exclude_each_other() {
        let now = Instant::now();
        let mut leases = Leases::new(1, LEASE);
        assert_eq!(leases.begin_plain(0), Ok(()));
        let session = leases.join(1, now);
        assert_eq!(leases.view(session).held, []);
        leases.end_plain(0);
        assert_eq!(leases.view(session).held, [(0, 1)]);
        assert_eq!(leases.begin_plain(0), Err(Refused::Leased));
        leases.leave(session);
        assert_eq!(leases.begin_plain(0), Err(Refused::Resetting));
        leases.take_resets();
        leases.reset_done(0, true, now);
        assert_eq!(leases.begin_plain(0), Ok(()));
    }

    proptest! {
        #[test]
        fn whatever_happens_no_slot_is_lost_and_each_session_gets_its_share(
            slots in 1..12usize,
            steps in prop::collection::vec((0..8u8, 0..12usize, any::<bool>()), 1..80),
        ) {
            let mut now = Instant::now();
            let mut leases = Leases::new(slots, LEASE);
            let mut live: Vec<SessionNumber> = Vec::new();
            let mut plain: Vec<usize> = Vec::new();
            let mut epochs = vec![0; slots];
            let mut resetting: Vec<usize> = Vec::new();
            for (step, n, flag) in steps {
                let before: Vec<_> = leases.slots.iter().map(|slot| slot.used).collect();
                match step {
                    0 | 1 => live.push(leases.join(n + 1, now)),
                    2 if !live.is_empty() => leases.leave(live.swap_remove(n % live.len())),
                    3 if !live.is_empty() => {
                        let session = live[n % live.len()];
                        if let Some((slot, epoch)) = leases.view(session).held.first().copied() {
                            prop_assert_eq!(
                                leases.give_back(session, slot, epoch - 1),
                                Err(Refused::Fenced)
                            );
                            leases.give_back(session, slot, epoch).unwrap();
                            prop_assert!(leases.give_back(session, slot, epoch).is_err());
                        }
                    }
                    4 => {
                        if leases.begin_plain(n % slots).is_ok() {
                            plain.push(n % slots);
                        }
                    }
                    5 if !plain.is_empty() => {
                        leases.end_plain(plain.swap_remove(n % plain.len()));
                    }
                    6 => {
                        if let Some(slot) = resetting.pop() {
                            leases.reset_done(slot, flag, now);
                        }
                    }
                    _ => {
                        now += Duration::from_secs(n as u64);
                        if flag && let Some(session) = live.first() {
                            leases.wants(*session, n);
                        }
                        if flag {
                            live.iter().for_each(|session| leases.heard(*session, now));
                        }
                        for session in leases.expire(now) {
                            live.retain(|other| *other != session);
                            leases.leave(session);
                        }
                    }
                }
                resetting.extend(leases.take_resets());
                for (index, slot) in leases.slots.iter().enumerate() {
                    prop_assert!(slot.epoch >= epochs[index]);
                    if let Use::Leased(session) = slot.used {
                        prop_assert!(live.contains(&session), "a holder that is gone");
                        prop_assert!(!plain.contains(&index), "two users");
                        if before[index] != slot.used {
                            prop_assert!(slot.epoch > epochs[index], "a lease without an epoch");
                            prop_assert!(
                                !matches!(before[index], Use::Leased(_)),
                                "a lease without a reset"
                            );
                        }
                    }
                    epochs[index] = slot.epoch;
                }
            }
            // When everything is idle each has what it is due, and nothing wanted lies idle.
            plain.into_iter().for_each(|slot| leases.end_plain(slot));
            resetting.into_iter().for_each(|slot| leases.reset_done(slot, true, now));
            now += RETRY;
            live.iter().for_each(|session| leases.heard(*session, now));
            prop_assert!(leases.expire(now).is_empty());
            settle(&mut leases, now);
            let wants: usize = leases.sessions.values().map(|member| member.want).sum();
            let held: usize = counts(&leases).iter().sum();
            prop_assert_eq!(held, wants.min(slots));
            for (session, due) in leases.due() {
                prop_assert!(leases.held(session) >= due);
                let fair = slots / leases.sessions.len();
                prop_assert!(leases.held(session) >= fair.min(leases.sessions[&session].want));
            }
        }
    }
}
