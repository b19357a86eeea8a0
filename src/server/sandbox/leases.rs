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
//! Each lease of a slot has an *epoch*, a number that only grows in its slot. What is done in a
//! slot names the epoch, and [`Leases::check`] refuses every other than the present one.
//!
//! # Fair shares
//! A session wants a number of slots. Each is *due* the smaller of that and the level at which the
//! usable slots would run out: the n-th part of them, rounded down, or more where others want less.
//! While a session has less than it is due, those that have more are asked by their
//! [`limit`](LeaseView::limit) to give slots back; which ones, and when, they decide: idle ones at
//! once, others at their release.
//!
//! What is beyond that goes to the session that has the fewest of all, those on other servers
//! counted, and wants more; and a session that has at least two more than another is asked for one.
//! So several servers with a few slots each are shared fairly, too. Where there are fewer slots
//! than sessions they take turns: one that has had none for a [`TURN`] gets the next one that was
//! another's for as long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a slot whose reset failed is kept back.
const RETRY: Duration = Duration::from_secs(1);
/// How long a session keeps a slot, and another waits without any, before the slot moves.
const TURN: Duration = Duration::from_secs(5);

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
    /// Whether the server is about to end.
    pub(super) draining: bool,
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
    /// When it was leased last.
    leased_at: Instant,
}

#[derive(Debug)]
struct Member {
    want: usize,
    limit: usize,
    heard: Instant,
    /// How many slots it has on other servers.
    elsewhere: usize,
    /// Since when it wants slots and has none, here or elsewhere.
    waits_since: Option<Instant>,
}

/// The leases of a server's slots.
#[derive(Debug)]
pub(super) struct Leases {
    lease: Duration,
    slots: Vec<Slot>,
    sessions: BTreeMap<SessionNumber, Member>,
    next: SessionNumber,
    /// No slot is leased any more, and all are asked back.
    is_draining: bool,
}

impl Leases {
    /// All slots free. A session that is not heard of for `lease` is over.
    pub(super) fn new(slots: usize, lease: Duration, now: Instant) -> Self {
        let slot = |_| Slot { epoch: 0, used: Use::Free { plain: 0 }, leased_at: now };
        Self {
            lease,
            slots: (0..slots).map(slot).collect(),
            sessions: BTreeMap::new(),
            next: 1,
            is_draining: false,
        }
    }

    /// Leases no slot from now on, and asks all back.
    pub(super) fn drain(&mut self, now: Instant) {
        self.is_draining = true;
        self.share(now);
    }

    /// Whether no slot is leased from now on.
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Whether no slot is leased.
    pub(super) fn are_back(&self) -> bool {
        !self.slots.iter().any(|slot| matches!(slot.used, Use::Leased(_)))
    }

    /// A new session, which wants so many slots and has some on other servers.
    pub(super) fn join(&mut self, want: usize, elsewhere: usize, now: Instant) -> SessionNumber {
        let number = self.next;
        self.next += 1;
        let want = want.min(self.slots.len());
        let (limit, waits_since) = (want, None);
        let member = Member { want, limit, heard: now, elsewhere, waits_since };
        self.sessions.insert(number, member);
        self.share(now);
        number
    }

    /// A session wants so many slots from now on, and has so many on other servers.
    pub(super) fn wants(
        &mut self,
        session: SessionNumber,
        want: usize,
        elsewhere: usize,
        now: Instant,
    ) {
        let want = want.min(self.slots.len());
        if let Some(member) = self.sessions.get_mut(&session)
            && (member.want, member.elsewhere) != (want, elsewhere)
        {
            (member.want, member.elsewhere) = (want, elsewhere);
            self.share(now);
        }
    }

    /// A session was heard of.
    pub(super) fn heard(&mut self, session: SessionNumber, now: Instant) {
        if let Some(member) = self.sessions.get_mut(&session) {
            member.heard = member.heard.max(now);
        }
    }

    /// Ends a session; its slots are to be reset.
    pub(super) fn leave(&mut self, session: SessionNumber, now: Instant) {
        if self.sessions.remove(&session).is_none() {
            return;
        }
        for slot in &mut self.slots {
            if slot.used == Use::Leased(session) {
                slot.used = Use::Resetting { begun: false };
            }
        }
        self.share(now);
    }

    /// The sessions that were not heard of for too long. They are still to [`leave`](Self::leave).
    pub(super) fn expire(&mut self, now: Instant) -> Vec<SessionNumber> {
        for slot in &mut self.slots {
            if matches!(slot.used, Use::KeptBack { retry_at } if retry_at <= now) {
                slot.used = Use::Resetting { begun: false };
            }
        }
        // It may be somebody's turn.
        self.share(now);
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
        now: Instant,
    ) -> Result<(), Refused> {
        self.check(session, slot, epoch)?;
        self.slots[slot].used = Use::Resetting { begun: false };
        self.share(now);
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
    pub(super) fn end_plain(&mut self, slot: usize, now: Instant) {
        if let Use::Free { plain } = &mut self.slots[slot].used {
            *plain = plain.saturating_sub(1);
        }
        self.share(now);
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
        self.share(now);
    }

    /// What a session has and may have.
    pub(super) fn view(&self, session: SessionNumber) -> LeaseView {
        let held = self.slots.iter().enumerate();
        let held = held.filter(|(_, slot)| slot.used == Use::Leased(session));
        LeaseView {
            held: held.map(|(index, slot)| (index, slot.epoch)).collect(),
            limit: self.sessions.get(&session).map_or(0, |member| member.limit),
            sessions: self.sessions.len(),
            draining: self.is_draining,
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
    fn share(&mut self, now: Instant) {
        if self.is_draining {
            self.sessions.values_mut().for_each(|member| member.limit = 0);
            return;
        }
        if self.sessions.is_empty() {
            return;
        }
        let due = self.due();
        let mut held: BTreeMap<_, _> =
            self.sessions.keys().map(|number| (*number, self.held(*number))).collect();
        for slot in &mut self.slots {
            if slot.used != (Use::Free { plain: 0 }) {
                continue;
            }
            let wanting = self.sessions.iter().filter(|(number, who)| held[number] < who.want);
            let need = |&(number, who): &(&SessionNumber, &Member)| {
                let waits_since = who.waits_since.unwrap_or(now);
                let all = held[number] + who.elsewhere;
                (held[number] >= due[number], all, waits_since, *number)
            };
            let Some(least) = wanting.min_by_key(need).map(|(number, _)| *number) else { break };
            slot.epoch += 1;
            slot.used = Use::Leased(least);
            slot.leased_at = now;
            held.entry(least).and_modify(|held| *held += 1);
        }
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
            let waits = member.want > 0 && held[number] + member.elsewhere == 0;
            member.waits_since = waits.then(|| member.waits_since.unwrap_or(now));
        }
        if missing.max(coming) == 0
            && let Some(most) = self.has_too_many(&held, &due, now)
        {
            limits.entry(most).and_modify(|limit| *limit -= 1);
        }
        for (number, member) in &mut self.sessions {
            let asked_back = limits[number] < held[number];
            member.limit = if asked_back { limits[number].min(member.want) } else { member.want };
        }
    }

    /// The session that is asked for a slot beyond what it is due, for another that has fewer.
    fn has_too_many(
        &self,
        held: &BTreeMap<SessionNumber, usize>,
        due: &BTreeMap<SessionNumber, usize>,
        now: Instant,
    ) -> Option<SessionNumber> {
        let all = |number: &SessionNumber| held[number] + self.sessions[number].elsewhere;
        let sessions = || self.sessions.iter();
        let needy = sessions().filter(|(number, member)| held[number] < member.want);
        let needy =
            needy.map(|(number, who)| (all(number), who.waits_since.unwrap_or(now), number));
        let (_, waits_since, least) = needy.min()?;
        let has_more = sessions().map(|(number, _)| *number).filter(|n| held[n] > due[n]);
        let most = has_more.clone().filter(|n| all(n) >= all(least) + 2);
        if let Some(most) = most.max_by_key(|number| (all(number), *number)) {
            return Some(most);
        }
        let is_over = |since: Instant| now.saturating_duration_since(since) >= TURN;
        if all(least) > 0 || !is_over(waits_since) {
            return None;
        }
        let leased = self.slots.iter().filter(|slot| is_over(slot.leased_at));
        let longest = leased.filter_map(|slot| match slot.used {
            Use::Leased(session) if held[&session] > due[&session] => {
                Some((slot.leased_at, session))
            }
            _ => None,
        });
        longest.min().map(|(_, session)| session)
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
                    leases.give_back(session, slot, epoch, now).unwrap();
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
        let mut leases = Leases::new(5, LEASE, now);
        let first = leases.join(100, 0, now);
        assert_eq!(leases.view(first).limit, 5, "a million is as many as there are");
        let second = leases.join(100, 0, now);
        assert_eq!((leases.view(first).limit, leases.view(second).held.len()), (3, 0));
        settle(&mut leases, now);
        assert_eq!(counts(&leases), [3, 2]);
        leases.leave(first, now);
        settle(&mut leases, now);
        assert_eq!(counts(&leases), [5]);
    }

    #[test]
    fn a_server_that_is_about_to_end_asks_all_slots_back_and_leases_none() {
        let now = Instant::now();
        let mut leases = Leases::new(3, LEASE, now);
        let (first, second) = (leases.join(2, 0, now), leases.join(9, 0, now));
        assert!(!leases.are_back() && !leases.view(first).draining);
        leases.drain(now);
        let view = leases.view(second);
        assert!(view.draining && view.limit == 0 && view.held.len() == 1, "{view:?}");
        leases.wants(second, 3, 0, now);
        let (slot, epoch) = view.held[0];
        leases.check(second, slot, epoch).unwrap();
        assert!(!leases.are_back(), "who has one keeps it until its release");
        settle(&mut leases, now);
        assert_eq!(counts(&leases), [0, 0]);
        assert!(leases.are_back());
        leases.expire(now);
        assert_eq!(leases.view(first).held, []);
    }

    #[test]
    fn who_wants_less_leaves_more_to_the_others() {
        let now = Instant::now();
        let mut leases = Leases::new(8, LEASE, now);
        for want in [8, 1, 8] {
            leases.join(want, 0, now);
        }
        settle(&mut leases, now);
        let counts = counts(&leases);
        assert!(counts[1] == 1 && counts[0] >= 3 && counts[2] >= 3, "{counts:?}");
    }

    #[test]
    fn what_sessions_have_on_other_servers_counts() {
        let now = Instant::now();
        let mut leases = Leases::new(4, LEASE, now);
        // Each has its one of what is due to it; of the other two the second gets both.
        let rich = leases.join(4, 5, now);
        let poor = leases.join(4, 0, now);
        settle(&mut leases, now);
        assert_eq!(counts(&leases), [2, 2], "what is due is due");
        let third = leases.join(4, 0, now);
        settle(&mut leases, now);
        assert_eq!(counts(&leases), [1, 2, 1]);
        leases.wants(poor, 4, 9, now);
        settle(&mut leases, now);
        assert_eq!(counts(&leases), [1, 1, 2]);
        let _ = (rich, third);
    }

    #[test]
    fn where_there_are_fewer_slots_than_sessions_they_take_turns() {
        let start = Instant::now();
        let mut leases = Leases::new(1, LEASE, start);
        let sessions = [0; 3].map(|_| leases.join(1, 0, start));
        let mut had = Vec::new();
        for second in 0..18 {
            let now = start + Duration::from_secs(second);
            sessions.iter().for_each(|session| leases.heard(*session, now));
            assert!(leases.expire(now).is_empty());
            settle(&mut leases, now);
            had.push(counts(&leases).iter().position(|held| *held == 1).unwrap());
        }
        assert_eq!(
            had,
            [[0; 5], [1; 5], [2; 5]].concat().into_iter().chain([0; 3]).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_session_that_was_not_heard_of_is_over_and_its_epoch_is_refused() {
        let now = Instant::now();
        let mut leases = Leases::new(1, LEASE, now);
        let stopped = leases.join(1, 0, now);
        let (slot, epoch) = leases.view(stopped).held[0];
        let waits = leases.join(1, 0, now);
        leases.heard(waits, now + LEASE);
        assert!(leases.expire(now + LEASE).is_empty());
        let late = now + LEASE + Duration::from_nanos(1);
        assert_eq!(leases.expire(late), [stopped]);
        leases.leave(stopped, late);
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
        let mut leases = Leases::new(1, LEASE, now);
        assert_eq!(leases.begin_plain(0), Ok(()));
        let session = leases.join(1, 0, now);
        assert_eq!(leases.view(session).held, []);
        leases.end_plain(0, now);
        assert_eq!(leases.view(session).held, [(0, 1)]);
        assert_eq!(leases.begin_plain(0), Err(Refused::Leased));
        leases.leave(session, now);
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
            let mut leases = Leases::new(slots, LEASE, now);
            let mut live: Vec<SessionNumber> = Vec::new();
            let mut plain: Vec<usize> = Vec::new();
            let mut epochs = vec![0; slots];
            let mut resetting: Vec<usize> = Vec::new();
            for (step, n, flag) in steps {
                let before: Vec<_> = leases.slots.iter().map(|slot| slot.used).collect();
                match step {
                    0 | 1 => live.push(leases.join(n + 1, n % 3, now)),
                    2 if !live.is_empty() => leases.leave(live.swap_remove(n % live.len()), now),
                    3 if !live.is_empty() => {
                        let session = live[n % live.len()];
                        if let Some((slot, epoch)) = leases.view(session).held.first().copied() {
                            prop_assert_eq!(
                                leases.give_back(session, slot, epoch - 1, now),
                                Err(Refused::Fenced)
                            );
                            leases.give_back(session, slot, epoch, now).unwrap();
                            prop_assert!(leases.give_back(session, slot, epoch, now).is_err());
                        }
                    }
                    4 => {
                        if leases.begin_plain(n % slots).is_ok() {
                            plain.push(n % slots);
                        }
                    }
                    5 if !plain.is_empty() => {
                        leases.end_plain(plain.swap_remove(n % plain.len()), now);
                    }
                    6 => {
                        if let Some(slot) = resetting.pop() {
                            leases.reset_done(slot, flag, now);
                        }
                    }
                    _ => {
                        now += Duration::from_secs(n as u64);
                        if flag && let Some(session) = live.first() {
                            leases.wants(*session, n, n % 4, now);
                        }
                        if flag {
                            live.iter().for_each(|session| leases.heard(*session, now));
                        }
                        for session in leases.expire(now) {
                            live.retain(|other| *other != session);
                            leases.leave(session, now);
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
            plain.into_iter().for_each(|slot| leases.end_plain(slot, now));
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
