//! Tiers in the pool: who is put where, and when, over random histories.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::backend::{Capabilities, ContainerChange};

fn pool(sizes: &[(&str, usize)]) -> Pool {
    let container = |(addr, slots): &(&str, usize)| Container::numbered(*addr, *slots);
    let containers: Vec<_> = sizes.iter().map(container).collect();
    Pool::new(&containers, Duration::from_secs(60))
}

fn tier(name: &str, after: u64, may_grow: bool) -> Tier {
    Tier::new(name, Capabilities::default().with_may_grow(may_grow))
        .with_spill_after(Duration::from_secs(after))
}

/// The addresses of the slots that are given out now, in their order.
fn given(pool: &mut Pool, now: Instant) -> Vec<(String, String)> {
    let mut given = Vec::new();
    while let Some(assignment) = pool.assign(now) {
        let (trajectory, slot) = match assignment {
            Assignment::Slot(trajectory, slot) => (trajectory, slot),
            Assignment::Reset(slot) => {
                let generation = pool.generation(slot);
                match pool.reset_done(slot, generation, Ok(()), now) {
                    Some(ResetFor::Granted(trajectory, slot)) => (trajectory, slot),
                    other => panic!("{other:?}"),
                }
            }
            Assignment::Refused(..) => panic!("no image is asked for"),
        };
        given.push((trajectory.to_string(), pool.slot_ref(slot).addr.to_string()));
    }
    given
}

fn wait(pool: &mut Pool, name: &str, may: TierSet, now: Instant) {
    pool.wait_in(name.into(), Wanted { may, ..Wanted::default() }, now);
}

fn words(given: &[(String, String)]) -> Vec<String> {
    given.iter().map(|(trajectory, addr)| format!("{trajectory} {addr}")).collect()
}

#[test]
fn the_preferred_tier_is_filled_first_and_a_later_one_in_its_time() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut pool = pool(&[("b/x", 1), ("a/x", 1), ("a/y", 1), ("c/x", 9)]);
    pool.use_tiers(&[tier("a", 0, false), tier("b", 0, false), tier("c", 10, true)]);
    for name in ["1", "2", "3", "4"] {
        wait(&mut pool, name, TierSet::ALL, now);
    }
    assert_eq!(words(&given(&mut pool, now)), ["1 a/x", "2 a/y", "3 b/x"]);
    assert_eq!(pool.waiting_by_tier(now), [1, 1, 0], "it does not spill yet");
    assert_eq!(pool.next_spill(), Some(at(10)));
    assert!(!pool.has_spilled(at(9)));
    assert_eq!(given(&mut pool, at(9)), []);
    wait(&mut pool, "5", TierSet::ALL, at(9));
    assert!(pool.has_spilled(at(10)));
    assert_eq!(pool.waiting_by_tier(at(10)), [2, 2, 1]);
    assert_eq!(words(&given(&mut pool, at(10))), ["4 c/x"]);
    assert_eq!(pool.next_spill(), Some(at(19)));
    pool.stop_waiting(&"5".into(), now);
    assert_eq!(pool.next_spill(), None);
}

#[test]
fn what_only_one_tier_can_give_waits_for_that_one_and_holds_up_no_one() {
    let now = Instant::now();
    let mut pool = pool(&[("a/x", 1), ("b/x", 1)]);
    pool.use_tiers(&[tier("a", 0, false), tier("b", 60, false)]);
    wait(&mut pool, "1", TierSet::of([1]), now);
    wait(&mut pool, "2", TierSet::of([1]), now);
    wait(&mut pool, "3", TierSet::ALL, now);
    assert_eq!(words(&given(&mut pool, now)), ["1 b/x", "3 a/x"]);
    assert_eq!(pool.waiting_by_tier(now), [0, 1]);
    assert_eq!(pool.names_of(TierSet::of([1])).as_deref(), Some("b"));
    assert_eq!(pool.names_of(TierSet::ALL), None);
    assert!(pool.other_tiers(TierSet::of([1]), 1).is_empty());
    assert_eq!(pool.other_tiers(TierSet::ALL, 1), TierSet::of([0]));
}

#[test]
fn a_tier_that_is_lost_is_not_waited_for_and_one_that_starts_is() {
    let now = Instant::now();
    let mut pool = pool(&[("a/x", 1), ("b/x", 2)]);
    pool.use_tiers(&[tier("a", 0, true), tier("b", 60, false)]);
    wait(&mut pool, "1", TierSet::ALL, now);
    wait(&mut pool, "2", TierSet::ALL, now);
    assert_eq!(words(&given(&mut pool, now)), ["1 a/x"]);
    let container = pool.container_at("a/x").unwrap();
    pool.container_changed(container, &ContainerChange::Unreachable);
    assert_eq!(words(&given(&mut pool, now)), ["2 b/x"]);
    // What it lets go it can have again.
    for (_, slot) in pool.lost_by(container, &ContainerChange::Gone) {
        pool.release_unknown(slot);
    }
    pool.container_changed(container, &ContainerChange::Gone);
    wait(&mut pool, "3", TierSet::ALL, now);
    assert_eq!(given(&mut pool, now), []);
    assert_eq!(pool.waiting_by_tier(now), [1, 0], "it is to start one");
}

#[test]
fn only_the_slots_of_a_tier_that_starts_dirty_are_reset_first() {
    let mut pool = pool(&[("a/x", 1), ("b/x", 1)]);
    let dirty = Tier::new("b", Capabilities::default().with_starts_dirty(true));
    pool.use_tiers(&[tier("a", 0, false), dirty]);
    assert_eq!((pool.counts().clean, pool.counts().dirty), (1, 1));
}

#[derive(Debug, Clone)]
enum Step {
    /// With the tiers that it may use, by their bits; and for a container, perhaps.
    Wait(u8, Option<usize>),
    StopWaiting(u8),
    Release(u8, bool),
    Container(usize, ContainerChange),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let changes = vec![
        ContainerChange::Unreachable,
        ContainerChange::Recovered,
        ContainerChange::Lost,
        ContainerChange::Restarted,
    ];
    prop_oneof![
        8 => (1..8u8, prop::option::weighted(0.1, 0..5usize))
            .prop_map(|(may, there)| Step::Wait(may, there)),
        1 => any::<u8>().prop_map(Step::StopWaiting),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(index, keep)| Step::Release(index, keep)),
        2 => (0..5usize, proptest::sample::select(changes))
            .prop_map(|(container, change)| Step::Container(container, change)),
        3 => (0..15u64).prop_map(Step::Pass),
    ]
}

const ADDRS: [&str; 5] = ["a/x", "b/x", "b/y", "c/x", "c/y"];
const TIERS: [usize; 5] = [0, 1, 1, 2, 2];

/// A trajectory that waits, as the naive model knows it.
#[derive(Debug, Clone)]
struct Waits {
    name: String,
    since: Instant,
    may: u8,
    there: Option<usize>,
}

proptest! {
    /// After each step: no one waits who could have a slot; each got one of its first tier that had
    /// one; the order is that of arrival; and what is to be done by time alone is told.
    #[test]
    fn each_is_put_into_the_first_tier_that_it_may_use(
        after in (0..10u64, 0..10u64, any::<bool>()),
        sizes in proptest::collection::vec(0..3usize, 5),
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let all: Vec<_> = ADDRS.into_iter().zip(sizes).collect();
        let mut pool = pool(&all);
        let seconds = [0, after.0, after.1];
        let rules =
            [tier("a", 0, false), tier("b", seconds[1], after.2), tier("c", seconds[2], false)];
        pool.use_tiers(&rules);
        let mut now = Instant::now();
        let mut waiting: Vec<Waits> = Vec::new();
        let mut held: Vec<(String, SlotIx)> = Vec::new();
        let mut up = [true; 5];
        let mut count = 0;
        for step in steps {
            match step {
                Step::Wait(may, there) => {
                    count += 1;
                    let name = count.to_string();
                    let tiers = TierSet::of((0..3).filter(|tier| may & (1 << tier) != 0));
                    let addr = there.map(|there| ADDRS[there]);
                    let wanted = Wanted { near: addr, may: tiers, image: None };
                    pool.wait_in(name.as_str().into(), wanted, now);
                    let there = there.filter(|there| {
                        pool.wishes.container_of(&name) == Some(*there)
                    });
                    let may = if addr.is_some() { 7 } else { may };
                    waiting.push(Waits { name, since: now, may, there });
                }
                Step::StopWaiting(index) if !waiting.is_empty() => {
                    let who = waiting.remove(usize::from(index) % waiting.len());
                    pool.stop_waiting(&who.name.as_str().into(), now);
                }
                Step::Release(index, keep) if !held.is_empty() => {
                    let (_, slot) = held.swap_remove(usize::from(index) % held.len());
                    if keep { pool.release_as_is(slot) } else { pool.release_unknown(slot) }
                }
                Step::Container(container, change) => {
                    up[container] = matches!(
                        change,
                        ContainerChange::Recovered | ContainerChange::Restarted
                    );
                    if !matches!(change, ContainerChange::Unreachable | ContainerChange::Recovered) {
                        for waits in &mut waiting {
                            waits.there = waits.there.filter(|there| *there != container);
                        }
                    }
                    for (_, slot) in pool.lost_by(container, &change) {
                        held.retain(|(_, other)| *other != slot);
                        pool.release_unknown(slot);
                    }
                    pool.container_changed(container, &change);
                }
                Step::Pass(seconds) => now += Duration::from_secs(seconds),
                Step::StopWaiting(_) | Step::Release(..) => {}
            }
            let spilled = pool.has_spilled(now);
            // Which tiers each may use now, said anew and without the pool's own function.
            let free = |pool: &Pool, container: usize| {
                let entry = &pool.containers[container];
                up[container] && !(entry.clean.is_empty() && entry.dirty.is_empty())
            };
            let may_use = |waits: &Waits| -> BTreeSet<usize> {
                if let Some(there) = waits.there {
                    return [there].into();
                }
                let waited = (now - waits.since).as_secs();
                let is_hopeful = |tier: usize| {
                    let of = || (0..5).filter(move |container| TIERS[*container] == tier);
                    of().any(|container| up[container])
                };
                let may = |tier: &usize| waits.may & (1 << tier) != 0;
                let open = (0..3).filter(may).filter(|tier| {
                    waited >= seconds[*tier] || !(0..*tier).filter(may).any(is_hopeful)
                });
                open.flat_map(|tier| (0..5).filter(move |one| TIERS[*one] == tier)).collect()
            };
            loop {
                let first = waiting.iter().position(|waits| {
                    may_use(waits).into_iter().any(|container| free(&pool, container))
                });
                let expected = first.map(|first| {
                    let could = may_use(&waiting[first]);
                    let could = could.into_iter().filter(|container| free(&pool, *container));
                    (waiting[first].name.clone(), could.map(|one| TIERS[one]).min())
                });
                let one = match pool.assign(now) {
                    None => None,
                    Some(Assignment::Slot(trajectory, slot)) => Some((trajectory, slot)),
                    Some(Assignment::Reset(slot)) => {
                        let generation = pool.generation(slot);
                        match pool.reset_done(slot, generation, Ok(()), now) {
                            Some(ResetFor::Granted(trajectory, slot)) => Some((trajectory, slot)),
                            other => panic!("{other:?}"),
                        }
                    }
                    Some(Assignment::Refused(..)) => panic!("no image is asked for"),
                };
                let got = one.as_ref().map(|(trajectory, slot)| {
                    (trajectory.to_string(), Some(pool.tier_of(*slot).0))
                });
                prop_assert_eq!(&got, &expected, "spilled: {}", spilled);
                let Some((trajectory, slot)) = one else { break };
                waiting.retain(|waits| waits.name != *trajectory);
                held.push((trajectory.to_string(), slot));
            }
            prop_assert_eq!(pool.wishes.len(), waiting.len());
            let next = waiting.iter().flat_map(|waits| {
                let steps = seconds.iter().filter(|after| **after > 0);
                steps.map(|after| waits.since + Duration::from_secs(*after))
            });
            prop_assert_eq!(pool.next_spill(), next.filter(|when| *when > now).min());
            let told = pool.waiting_by_tier(now);
            for (tier, told) in told.into_iter().enumerate() {
                let of_it = |waits: &&Waits| match waits.there {
                    Some(there) => TIERS[there] == tier,
                    None => may_use(waits).iter().any(|container| TIERS[*container] == tier),
                };
                prop_assert_eq!(told, waiting.iter().filter(of_it).count(), "of tier {}", tier);
            }
        }
    }
}
