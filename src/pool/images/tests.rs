//! The choice case by case, and its promises over random histories of a pool.

use proptest::prelude::*;

use super::choice::{
    Choice, HOLD_MOST, NeedsReset, OVERTAKEN_MOST, PROVEN_AFTER, TRIES, best_to_pull, choose,
};
use super::*;
use crate::backend::{Capabilities, Container, ContainerChange, Tier};
use crate::pool::slot::State;
use crate::pool::{Assignment, Pool, ResetFor, SlotIx, Wanted};

mod simulation;

fn near(container: usize, has: bool, free: Option<NeedsReset>) -> Candidate {
    Candidate { has, ..other(container, free) }
}

fn other(container: usize, free: Option<NeedsReset>) -> Candidate {
    Candidate {
        container,
        tier: 0,
        free,
        load: 0,
        has: false,
        pulls: 0,
        is_full: false,
        free_bytes: None,
        has_failed: false,
        is_suspect: false,
    }
}

fn wish(since: Instant, held_since: Option<Instant>) -> ImageWish {
    ImageWish { image: key(0), may: TierSet::ALL, since, tries: 0, held_since }
}

#[test]
fn a_container_that_has_the_image_comes_first_then_one_that_is_about_to_have_it() {
    let now = Instant::now();
    let near = [
        near(0, false, Some(false)),
        Candidate { load: 1, ..near(1, true, Some(false)) },
        near(2, true, Some(true)),
        near(3, true, None),
    ];
    let chosen = |near: &[Candidate]| choose(&wish(now, None), None, Facts::default(), near, now);
    assert_eq!(chosen(&near), Choice::Take(1, Source::Hit), "its slot is clean");
    assert_eq!(chosen(&near[2..]), Choice::Take(2, Source::Hit));
    assert_eq!(chosen(&near[..1]), Choice::Take(0, Source::Join));
    assert_eq!(chosen(&[]), Choice::Pull);
}

#[test]
fn a_busy_container_is_waited_for_for_a_moment_or_as_long_as_a_pull_takes() {
    let since = Instant::now();
    let busy = [near(0, true, None)];
    let facts = |pull_time| Facts { pull_time, ..Facts::default() };
    let at = |facts, now| choose(&wish(since, Some(since)), None, facts, &busy, now);
    let (quick, slow) = (Duration::from_millis(30), Duration::from_secs(300));
    for (pull_time, held) in [(None, HOLD_MOST), (Some(slow), HOLD_MOST), (Some(quick), quick)] {
        assert_eq!(at(facts(pull_time), since), Choice::HoldUntil(since + held));
        assert_eq!(at(facts(pull_time), since + held), Choice::PullLast);
        assert_eq!(at(facts(pull_time), since + OVERTAKEN_MOST), Choice::Pull);
    }
    let later = since + OVERTAKEN_MOST;
    let first = |idle_since| choose(&wish(since, None), idle_since, facts(None), &busy, later);
    assert_eq!(first(None), Choice::HoldUntil(later + HOLD_MOST), "a slot is free now only");
    assert_eq!(first(Some(later - HOLD_MOST)), Choice::PullLast, "the one before it was held back");
    let new = choose(&wish(later, None), Some(since), facts(None), &busy, later);
    assert_eq!(new, Choice::HoldUntil(later + HOLD_MOST), "it has just come");
}

#[test]
fn an_image_that_none_has_had_is_pulled_by_two_until_that_shows_that_it_is_there() {
    let since = Instant::now();
    let pulled = Facts { pulled_since: Some(since), ..Facts::default() };
    let two = [near(0, false, None), near(1, false, None)];
    let at = |near: &[Candidate], facts, seconds| {
        let now = since + Duration::from_secs(seconds);
        choose(&wish(since, Some(since)), None, facts, near, now)
    };
    let proven = since + PROVEN_AFTER;
    assert_eq!(at(&two, pulled, 4), Choice::HoldUntil(proven));
    assert_eq!(at(&two, pulled, 5), Choice::PullLast);
    assert_eq!(at(&two[..1], pulled, 2), Choice::PullLast, "the second one");
    let failed = Facts { failures: 1, ..pulled };
    assert_eq!(at(&two[..1], failed, 2), Choice::HoldUntil(proven), "it was tried twice");
    assert_eq!(at(&[], failed, 2), Choice::Pull);
    let failed = Facts { failures: 2, ..Facts::default() };
    assert_eq!(at(&[], failed, 2), Choice::Refuse);
    assert_eq!(at(&[near(0, true, None)], failed, 2), Choice::PullLast, "but one has it");
}

#[test]
fn pulls_are_spread_and_come_where_there_is_room_and_what_failed_comes_last() {
    let free = Some(false);
    let pulls = |others: &[Candidate]| best_to_pull(others.iter().copied());
    let busy = Candidate { pulls: 2, ..other(0, free) };
    let suspect = Candidate { is_suspect: true, ..other(1, free) };
    let full = |container, bytes| Candidate {
        is_full: true,
        free_bytes: Some(bytes),
        ..other(container, free)
    };
    let failed = Candidate { has_failed: true, ..other(4, free) };
    let loaded = Candidate { load: 3, pulls: 1, ..other(5, free) };
    let (fuller, full) = (full(2, 10), full(3, 20));
    assert_eq!(pulls(&[failed, full, fuller, suspect, busy, loaded]), Some(5));
    assert_eq!(pulls(&[failed, full, suspect, busy]), Some(0));
    assert_eq!(pulls(&[failed, full, suspect]), Some(1));
    assert_eq!(pulls(&[failed, full, other(0, None)]), None, "not while there is one with room");
    assert_eq!(pulls(&[failed, fuller, full]), Some(3), "the one with the most room");
    assert_eq!(pulls(&[failed]), Some(4), "there is no other");
    assert_eq!(pulls(&[failed, other(0, None)]), None);
}

#[test]
fn a_slot_goes_to_who_finds_its_image_there_until_others_were_overtaken_for_long_enough() {
    let mut pool = pool(&[1, 1]);
    let mut now = Instant::now();
    let mut had = Vec::new();
    for image in [1, 2] {
        waits(&mut pool, &format!("t{image}"), image, now);
        had.push(granted(&mut pool, now).unwrap().0);
        pool.has_begun(had[image as usize - 1], now);
    }
    waits(&mut pool, "old", 2, now);
    let next = |pool: &mut Pool, name: &str, now| {
        waits(pool, name, 1, now);
        pool.release_unknown(had[0]);
        let Some(Assignment::Reset(slot)) = pool.assign(now) else { panic!("a slot is free") };
        let generation = pool.generation(slot);
        pool.reset_done(slot, generation, Ok(()), now);
        pool.has_begun(slot, now);
        pool.holder(slot).unwrap().to_string()
    };
    assert_eq!(next(&mut pool, "a", now), "a", "its image is there");
    now += OVERTAKEN_MOST - Duration::from_secs(1);
    assert_eq!(next(&mut pool, "b", now), "b");
    now += Duration::from_secs(1);
    assert_eq!(next(&mut pool, "c", now), "old");
}

fn pool(slots: &[usize]) -> Pool {
    let slots_of = |size: &usize| (0..*size).map(|slot| format!("slot_{slot}")).collect();
    let named = slots.iter().enumerate();
    let containers: Vec<_> = named
        .map(|(number, size)| Container { addr: format!("c{number}"), slots: slots_of(size) })
        .collect();
    Pool::new(&containers, Duration::from_secs(60))
}

fn key(number: u64) -> ImageKey {
    number.into()
}

fn waits(pool: &mut Pool, trajectory: &str, image: u64, now: Instant) {
    pool.wait_in(trajectory.into(), Wanted { image: Some(key(image)), ..Wanted::default() }, now);
}

fn granted(pool: &mut Pool, now: Instant) -> Option<(SlotIx, usize)> {
    match pool.assign(now)? {
        Assignment::Slot(_, slot) => Some((slot, pool.container(slot))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_image_is_pulled_once_by_who_shares_a_container_and_found_there_later() {
    let mut pool = pool(&[2, 2]);
    let now = Instant::now();
    for trajectory in ["a", "b", "c"] {
        waits(&mut pool, trajectory, 7, now);
    }
    let (first, container) = granted(&mut pool, now).unwrap();
    let (second, beside) = granted(&mut pool, now).unwrap();
    assert_eq!(container, beside);
    assert_eq!(pool.assign(now), None, "the third is held back");
    assert_eq!(pool.held_until(), Some(now + HOLD_MOST));
    pool.has_begun(first, now + Duration::from_secs(1));
    pool.has_begun(second, now + Duration::from_secs(1));
    let later = now + HOLD_MOST;
    assert_eq!(pool.held_until(), Some(now + Duration::from_secs(2)));
    let (third, apart) = granted(&mut pool, later).unwrap();
    assert_ne!(apart, container);
    pool.has_begun(third, later);
    waits(&mut pool, "d", 7, later);
    assert_eq!(granted(&mut pool, later).unwrap().1, apart);
    let counts = pool.image_counts();
    assert_eq!((counts.hits, counts.joins, counts.pulls, counts.waits), (1, 1, 2, 1));
    assert_eq!(counts.waited_s, 2.0);
}

#[test]
fn who_is_held_back_holds_up_no_one_and_stays_before_those_of_its_image() {
    let mut pool = pool(&[1, 1]);
    let now = Instant::now();
    waits(&mut pool, "a", 7, now);
    let (slot, container) = granted(&mut pool, now).unwrap();
    waits(&mut pool, "b", 7, now);
    waits(&mut pool, "c", 7, now);
    pool.wait_in("d".into(), Wanted::default(), now);
    let Some(Assignment::Slot(who, elsewhere)) = pool.assign(now) else { panic!("for d") };
    assert_eq!((&*who, pool.container(elsewhere) == container), ("d", false));
    assert_eq!(pool.assign(now), None);
    pool.has_begun(slot, now);
    pool.release_unknown(slot);
    assert_eq!(pool.assign(now), Some(Assignment::Reset(slot)));
    let generation = pool.generation(slot);
    let granted = pool.reset_done(slot, generation, Ok(()), now);
    assert_eq!(granted, Some(ResetFor::Granted("b".into(), slot)));
}

#[test]
fn what_one_container_cannot_have_a_second_one_tries_and_no_third() {
    let mut pool = pool(&[1, 1, 1]);
    let mut now = Instant::now();
    waits(&mut pool, "a", 7, now);
    let (first, one) = granted(&mut pool, now).unwrap();
    waits(&mut pool, "b", 7, now);
    assert!(pool.cannot_begin(first, "no such image", now), "a is to try another");
    let (second, two) = granted(&mut pool, now).unwrap();
    assert_eq!(&**pool.holder(second).unwrap(), "a", "it is still before b");
    assert_ne!(one, two);
    assert!(!pool.cannot_begin(second, "no such image", now), "no third");
    pool.take_back(second, now);
    let refused = Assignment::Refused("b".into(), "no such image".to_owned());
    assert_eq!(pool.assign(now), Some(refused));
    waits(&mut pool, "c", 7, now);
    assert!(matches!(pool.assign(now), Some(Assignment::Refused(..))));
    let counts = pool.image_counts();
    assert_eq!((counts.pulls, counts.retries, counts.refusals), (2, 1, 2));
    // It is asked for anew after a while, or when someone has it.
    now += FAILED_FOR;
    waits(&mut pool, "d", 7, now);
    let (third, three) = granted(&mut pool, now).unwrap();
    assert!(![one, two].contains(&three), "the only one that is free");
    pool.has_begun(third, now);
    waits(&mut pool, "e", 7, now);
    pool.release_unknown(third);
    assert_eq!(pool.assign(now), Some(Assignment::Reset(third)));
}

#[test]
fn a_container_where_a_pull_failed_that_another_could_do_comes_last() {
    let mut pool = pool(&[3, 3, 3]);
    let mut now = Instant::now();
    waits(&mut pool, "a", 1, now);
    let (slot, bad) = granted(&mut pool, now).unwrap();
    assert!(pool.cannot_begin(slot, "no credentials", now));
    let (slot, good) = granted(&mut pool, now).unwrap();
    pool.has_begun(slot, now);
    for image in 2..6 {
        waits(&mut pool, &format!("t{image}"), image, now);
        assert_ne!(granted(&mut pool, now).unwrap().1, bad);
    }
    now += SUSPECT_FOR;
    waits(&mut pool, "b", 9, now);
    assert_eq!(granted(&mut pool, now).unwrap().1, bad, "it has the fewest pulls under way");
    assert_ne!(bad, good);
}

#[test]
fn one_container_that_cannot_have_an_image_is_asked_again_each_time() {
    let mut pool = pool(&[2]);
    let now = Instant::now();
    for trajectory in ["a", "b", "c"] {
        waits(&mut pool, trajectory, 7, now);
        let (slot, _) = granted(&mut pool, now).unwrap();
        assert!(!pool.cannot_begin(slot, "no such image", now));
        pool.take_back(slot, now);
        let generation = pool.generation(slot);
        pool.reset_done(slot, generation, Ok(()), now);
    }
}

#[test]
fn what_a_container_tells_counts_and_a_full_one_gets_no_image_that_it_lacks() {
    let mut pool = pool(&[2, 2]);
    let now = Instant::now();
    let told = |has: &[u64]| ContainerImages::new(has.iter().map(|image| key(*image)));
    let full = told(&[7]).with_room(Some(1), true);
    pool.container_changed(0, &ContainerChange::Images(full));
    waits(&mut pool, "a", 7, now);
    assert_eq!(granted(&mut pool, now).unwrap().1, 0, "it has that one");
    for trajectory in ["b", "c"] {
        waits(&mut pool, trajectory, 8, now);
        assert_eq!(granted(&mut pool, now).unwrap().1, 1);
    }
    waits(&mut pool, "d", 9, now);
    assert_eq!(pool.assign(now + PROVEN_AFTER), None, "the other one will be free");
    pool.container_changed(0, &ContainerChange::Images(told(&[]).with_pulling([key(9)])));
    assert_eq!(granted(&mut pool, now).unwrap().1, 0, "it is being pulled there");
    assert_eq!(pool.image_counts().joins, 2);
}

#[test]
fn the_preferred_tier_pulls_what_another_has_unless_it_is_full_or_cannot_have_it() {
    let container = |addr: &str| Container::numbered(addr, 1);
    let containers = ["a/x", "b/x"].map(container);
    let mut pool = Pool::new(&containers, Duration::from_secs(60));
    let tier = |name: &str| Tier::new(name, Capabilities::default());
    pool.use_tiers(&[tier("a"), tier("b")]);
    let now = Instant::now();
    let told = ContainerImages::new([key(7)]);
    pool.container_changed(1, &ContainerChange::Images(told));
    waits(&mut pool, "t", 7, now);
    let (slot, container) = granted(&mut pool, now).unwrap();
    assert_eq!(container, 0, "it is preferred");
    waits(&mut pool, "u", 7, now);
    let (there, container) = granted(&mut pool, now).unwrap();
    assert_eq!((container, pool.image_counts().hits), (1, 1));
    assert!(!pool.cannot_begin(there, "no", now), "there is no other that has it");
    pool.take_back(there, now);
    let generation = pool.generation(there);
    pool.reset_done(there, generation, Ok(()), now);
    pool.has_begun(slot, now);
    pool.take_back(slot, now);
    let generation = pool.generation(slot);
    pool.reset_done(slot, generation, Ok(()), now);
    waits(&mut pool, "v", 8, now);
    let (slot, container) = granted(&mut pool, now).unwrap();
    assert_eq!(container, 0);
    assert!(!pool.cannot_begin(slot, "no", now), "there is no other of this tier");
    pool.take_back(slot, now);
    // Who may use both is not put there again.
    waits(&mut pool, "w", 8, now);
    assert_eq!(granted(&mut pool, now).unwrap().1, 1);
}

#[derive(Debug, Clone)]
enum Step {
    Wait(Option<u64>),
    /// A begin ends: well, without the image, or otherwise.
    Begun(u8, u8),
    Release(u8),
    ResetEnds(u8, bool),
    StopWaiting(u8),
    Told(usize, u8, u8, bool),
    Change(usize, ContainerChange),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let changes = vec![
        ContainerChange::Unreachable,
        ContainerChange::Recovered,
        ContainerChange::Restarted,
        ContainerChange::Lost,
        ContainerChange::Draining,
    ];
    prop_oneof![
        8 => prop::option::weighted(0.8, 0..4u64).prop_map(Step::Wait),
        6 => (any::<u8>(), 0..6u8).prop_map(|(index, how)| Step::Begun(index, how)),
        4 => any::<u8>().prop_map(Step::Release),
        5 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(n, ok)| Step::ResetEnds(n, ok)),
        1 => any::<u8>().prop_map(Step::StopWaiting),
        2 => (0..4usize, 0..16u8, 0..16u8, prop::bool::weighted(0.3))
            .prop_map(|(container, has, pulling, full)| Step::Told(container, has, pulling, full)),
        1 => (0..4usize, proptest::sample::select(changes)).prop_map(|(c, to)| Step::Change(c, to)),
        5 => (0..4_000u64).prop_map(Step::Pass),
    ]
}

/// A pool and what its owner knows: the slots that begin, those that are used, and the resets.
struct World {
    pool: Pool,
    now: Instant,
    beginning: Vec<SlotIx>,
    used: Vec<SlotIx>,
    resets: Vec<SlotIx>,
    /// Who waits for what, in the order of their arrival.
    waiting: Vec<(String, Option<u64>)>,
    /// The containers that could not have an image, and when.
    failed: HashMap<u64, Vec<(usize, Instant)>>,
    arrivals: usize,
    /// Since when there has been a slot that a waiting trajectory could use.
    usable_since: HashMap<String, Instant>,
}

impl World {
    fn step(&mut self, step: Step) {
        let pick = |from: &Vec<SlotIx>, n: u8| {
            (!from.is_empty()).then(|| from[usize::from(n) % from.len()])
        };
        let now = self.now;
        match step {
            Step::Wait(image) => {
                self.arrivals += 1;
                let name = format!("t{}", self.arrivals);
                let wish = Wanted { image: image.map(key), ..Wanted::default() };
                self.pool.wait_in(name.as_str().into(), wish, now);
                self.waiting.push((name, image));
            }
            Step::Begun(n, how) => {
                let Some(slot) = pick(&self.beginning, n) else { return };
                self.beginning.retain(|other| *other != slot);
                let begin = self.pool.slots[slot.0].image;
                match how {
                    0..=3 => {
                        self.pool.has_begun(slot, now);
                        self.used.push(slot);
                        if let Some(begin) = begin {
                            self.failed.remove(&begin.wish.image.get());
                        }
                    }
                    4 => {
                        let who = self.pool.holder(slot).unwrap().to_string();
                        let Some(begin) = begin else { return self.used.push(slot) };
                        let image = begin.wish.image.get();
                        let container = self.pool.container(slot);
                        self.failed.entry(image).or_default().push((container, now));
                        if self.pool.cannot_begin(slot, "no", now) {
                            let number = |name: &str| name[1..].parse::<usize>().unwrap();
                            let at = self.waiting.iter().position(|o| number(&o.0) > number(&who));
                            let at = at.unwrap_or(self.waiting.len());
                            self.waiting.insert(at, (who, Some(image)));
                        } else {
                            self.pool.take_back(slot, now);
                        }
                        self.resets.push(slot);
                    }
                    _ => {
                        self.pool.take_back(slot, now);
                        self.resets.push(slot);
                    }
                }
            }
            Step::Release(n) => {
                let Some(slot) = pick(&self.used, n) else { return };
                self.used.retain(|other| *other != slot);
                self.pool.release_unknown(slot);
            }
            Step::ResetEnds(n, ok) => {
                let Some(slot) = pick(&self.resets, n) else { return };
                self.resets.retain(|other| *other != slot);
                let outcome = if ok { Ok(()) } else { Err("disk".to_owned()) };
                let generation = self.pool.generation(slot);
                if let Some(ResetFor::Granted(who, slot)) =
                    self.pool.reset_done(slot, generation, outcome, now)
                {
                    self.waiting.retain(|(name, _)| **name != *who);
                    self.beginning.push(slot);
                }
            }
            Step::StopWaiting(n) => {
                if self.waiting.is_empty() {
                    return;
                }
                let (who, _) = self.waiting.remove(usize::from(n) % self.waiting.len());
                self.pool.stop_waiting(&who.as_str().into(), now);
            }
            Step::Told(container, has, pulling, is_full) => {
                let bits = |bits: u8| (0..4).filter(move |bit| bits & 1 << bit != 0).map(key);
                for image in bits(has) {
                    self.failed.remove(&image.get());
                }
                let told = ContainerImages::new(bits(has))
                    .with_pulling(bits(pulling & !has))
                    .with_room(None, is_full);
                self.pool.container_changed(container, &ContainerChange::Images(told));
            }
            Step::Change(container, change) => {
                for (_, slot) in self.pool.lost_by(container, &change) {
                    self.pool.release_unknown(slot);
                    self.beginning.retain(|other| *other != slot);
                    self.used.retain(|other| *other != slot);
                }
                self.pool.container_changed(container, &change);
            }
            Step::Pass(ms) => self.now += Duration::from_millis(ms),
        }
    }

    fn open(&self) -> impl Iterator<Item = usize> + '_ {
        let containers = self.pool.containers.iter().enumerate();
        containers.filter(|(_, entry)| entry.is_open() && entry.total > 0).map(|(n, _)| n)
    }

    fn is_free(&self, container: usize) -> bool {
        let entry = &self.pool.containers[container];
        !entry.clean.is_empty() || !entry.dirty.is_empty()
    }

    fn failed(&self, image: u64) -> HashSet<usize> {
        let failed = self.failed.get(&image).into_iter().flatten();
        let last = failed.clone().map(|(_, at)| *at).max();
        let is_over = last.is_none_or(|last| self.now >= last + FAILED_FOR);
        failed.filter(|_| !is_over).map(|(container, _)| *container).collect()
    }

    fn settle(&mut self) -> Result<(), TestCaseError> {
        loop {
            // What the choice is about, before it is made.
            let had: Vec<_> =
                (0..4).map(|image| self.pool.images.near(key(image)).collect::<Vec<_>>()).collect();
            let free: Vec<_> = (0..4).map(|container| self.is_free(container)).collect();
            let Some(assignment) = self.pool.assign(self.now) else { break };
            let (who, slot) = match assignment {
                Assignment::Slot(who, slot) => {
                    self.beginning.push(slot);
                    (who.to_string(), slot)
                }
                Assignment::Reset(slot) => {
                    self.resets.push(slot);
                    let State::Resetting { purpose, .. } = &self.pool.slots[slot.0].state else {
                        panic!("no reset")
                    };
                    let crate::pool::slot::Purpose::Grant(_, who) = purpose else {
                        panic!("for no one")
                    };
                    (who.to_string(), slot)
                }
                Assignment::Refused(who, _) => {
                    let at = self.waiting.iter().position(|(name, _)| **name == *who).unwrap();
                    let (_, image) = self.waiting.remove(at);
                    let image = image.unwrap();
                    prop_assert!(self.failed(image).len() >= TRIES, "refused without a reason");
                    let mut near = had[image as usize].iter();
                    prop_assert!(!near.any(|near| self.open().any(|open| open == *near)));
                    continue;
                }
            };
            let at = self.waiting.iter().position(|(name, _)| *name == who).unwrap();
            let (_, image) = self.waiting.remove(at);
            // Those whose reset is under way are not in the room.
            let is_earlier = |(name, other): &&(String, Option<u64>)| {
                *other == image && self.pool.positions.contains_key(&**name)
            };
            prop_assert!(!self.waiting[..at].iter().any(|one| is_earlier(&one)), "not in order");
            if matches!(self.pool.slots[slot.0].state, State::Resetting { .. }) {
                // It is in the room again if that fails.
                self.waiting.insert(at, (who, image));
            }
            let Some(image) = image else { continue };
            let container = self.pool.container(slot);
            let near = &had[image as usize];
            if near.contains(&container) {
                continue;
            }
            prop_assert!(
                !near.iter().any(|near| free[*near] && self.open().any(|open| open == *near)),
                "another one had it"
            );
            let lacks = |other: &usize| !near.contains(other);
            let has_failed = |other: usize| self.failed(image).contains(&other);
            let is_full =
                |other: usize| self.pool.images.candidate(key(image), &[], other, self.now).is_full;
            let is_good = |other: usize| !has_failed(other) && !is_full(other);
            prop_assert!(
                is_good(container) || !self.open().filter(lacks).any(is_good),
                "full, or failed"
            );
        }
        self.check()
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let mut usable_since = HashMap::new();
        let pool = &self.pool;
        for (who, image) in &self.waiting {
            let Some(position) = pool.positions.get(&**who) else { continue };
            prop_assert!(pool.waiting.get(*position).is_some());
            let free: Vec<_> = self.open().filter(|open| self.is_free(*open)).collect();
            let Some(image) = *image else {
                prop_assert!(free.is_empty(), "{who} waits though there is a slot");
                continue;
            };
            let near: Vec<_> = pool.images.near(key(image)).collect();
            prop_assert!(!near.iter().any(|near| free.contains(near)), "{who} could have it");
            let failed = self.failed(image);
            let is_usable = |other: &usize| {
                let one = pool.images.candidate(key(image), &[], *other, self.now);
                !one.is_full && !failed.contains(other)
            };
            if !free.iter().any(is_usable) {
                continue;
            }
            let mut open_near = self.open().filter(|open| near.contains(open));
            let has = |other: usize| pool.images.places[other].has(key(image));
            let is_proven = open_near.any(has);
            let pulled = pool.images.facts(key(image), 0).pulled_since;
            let since = self.usable_since.get(who).copied().unwrap_or(self.now);
            usable_since.insert(who.clone(), since);
            let is_held = self.now < since + HOLD_MOST
                || !is_proven && pulled.is_some_and(|at| self.now < at + PROVEN_AFTER);
            prop_assert!(is_held, "{who} has waited for too long");
            prop_assert!(pool.held_until().is_some_and(|until| until > self.now));
        }
        for (container, place) in pool.images.places.iter().enumerate() {
            let slots = pool.slots.iter().filter(|slot| slot.container == container);
            let begins = slots.filter_map(|slot| slot.image);
            let counted = begins.filter(|begin| begin.source != Source::Hit).count();
            prop_assert_eq!(place.begins.values().sum::<usize>(), counted);
            for image in pool.images.records.keys() {
                let is_near = pool.images.is_near(*image, container);
                prop_assert_eq!(is_near, place.is_near(*image));
            }
        }
        prop_assert_eq!(pool.wishes.len(), pool.waiting.len());
        self.usable_since = usable_since;
        Ok(())
    }
}

proptest! {
    #[test]
    fn none_waits_for_longer_than_is_stated_while_a_slot_is_free_for_it(
        sizes in prop::collection::vec(1..4usize, 4),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World {
            pool: pool(&sizes),
            now: Instant::now(),
            beginning: Vec::new(),
            used: Vec::new(),
            resets: Vec::new(),
            waiting: Vec::new(),
            failed: HashMap::new(),
            arrivals: 0,
            usable_since: HashMap::new(),
        };
        for step in steps {
            world.step(step);
            while let Some(ended) = world.pool.expire(world.now) {
                if let Some(ResetFor::Granted(..)) = ended {
                    panic!("a reset that took too long has failed");
                }
            }
            world.settle()?;
        }
    }
}
