//! The pool's rules one by one, and its invariants over random histories.

use super::*;
use crate::backend::{ContainerChange, LeasedSlots};
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

impl Pool {
    fn wait(&mut self, trajectory: Arc<str>) {
        self.wait_near(trajectory, None);
    }

    fn wait_near(&mut self, trajectory: Arc<str>, near: Option<&str>) {
        self.wait_in(trajectory, Wanted { near, ..Wanted::default() }, Instant::now());
    }
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
        order.push(pool.container(slot));
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
    pool.stop_waiting(&id("b"), now);
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

#[test]
fn slots_of_a_container_that_does_not_answer_are_not_given_out() {
    let mut pool = pool(&[1, 1]);
    let now = Instant::now();
    pool.wait(id("a"));
    let left = granted(&mut pool, now);
    pool.release_as_is(left);
    pool.container_changed(pool.container(left), &ContainerChange::Unreachable);
    pool.wait(id("a"));
    let other = granted(&mut pool, now);
    assert_ne!(other, left);
    pool.wait(id("b"));
    assert_eq!(pool.assign(now), None);
    pool.container_changed(pool.container(left), &ContainerChange::Recovered);
    assert_eq!(pool.assign(now), Some(Assignment::Reset(left)), "a's files are in there");
    assert_eq!(pool.container_counts().up, 2);
}

#[test]
fn a_reset_from_before_its_container_began_anew_says_nothing_of_what_is_in_the_slot_now() {
    for given_up in [false, true] {
        let mut pool = pool(&[1]);
        let now = Instant::now();
        pool.wait(id("a"));
        let slot = granted(&mut pool, now);
        pool.release_with_reset(slot, now);
        let generation = pool.slot_ref(slot).generation;
        pool.container_changed(0, &ContainerChange::Restarted);
        if given_up {
            pool.expire(now + Duration::from_secs(60)).unwrap().unwrap();
        }
        let released = pool.reset_done(slot, generation, Ok(()), now);
        assert_eq!(released.is_some(), !given_up);
        assert_eq!((pool.counts().clean, pool.counts().dirty), (0, 1));
    }
}

#[test]
fn whoever_waits_for_a_reset_in_a_container_that_stops_answering_looks_elsewhere() {
    let mut pool = pool(&[1, 1]);
    pool.begin_dirty();
    let now = Instant::now();
    pool.wait(id("a"));
    let Some(Assignment::Reset(slot)) = pool.assign(now) else { panic!("nothing is clean") };
    let generation = pool.slot_ref(slot).generation;
    pool.container_changed(pool.container(slot), &ContainerChange::Unreachable);
    let Some(Assignment::Reset(other)) = pool.assign(now) else { panic!("the other one is free") };
    assert_ne!(other, slot);
    assert_eq!(pool.reset_done(slot, generation, Ok(()), now), None);
    assert_eq!((pool.counts().clean, pool.counts().resetting), (1, 1));
}

fn leased(held: &[(usize, u64)], limit: usize) -> ContainerChange {
    let names = (0..3).map(|slot| format!("slot_{slot}")).collect();
    ContainerChange::Resized(LeasedSlots::new(names, held.to_vec(), limit))
}

#[test]
fn slots_are_used_while_they_are_granted_and_what_is_too_many_is_given_back() {
    let mut pool = pool(&[2]);
    pool.begin_dirty();
    let now = Instant::now();
    pool.container_changed(0, &leased(&[(0, 1), (2, 2)], 3));
    assert_eq!((pool.counts().total, pool.counts().elsewhere), (2, 1));
    let mut slots = Vec::new();
    for name in ["a", "b"] {
        pool.wait(id(name));
        let Some(Assignment::Reset(slot)) = pool.assign(now) else { panic!("not without a reset") };
        let generation = pool.slot_ref(slot).generation;
        pool.reset_done(slot, generation, Ok(()), now);
        slots.push(slot);
    }
    pool.wait(id("c"));
    assert_eq!(pool.assign(now), None);
    // Others miss one: the one that is held is kept until its release.
    pool.container_changed(0, &leased(&[(0, 1), (2, 2)], 1));
    assert_eq!(pool.take_excess(), None);
    pool.release_as_is(slots[0]);
    let grant = pool.slots[slots[0].0].grant;
    assert_eq!(pool.take_excess(), Some((slots[0], grant)));
    assert_eq!((pool.take_excess(), pool.assign(now)), (None, None));
    // The server had not heard of that yet; then it grants the slot again.
    pool.container_changed(0, &leased(&[(0, 1), (2, 2)], 3));
    assert_eq!(pool.assign(now), None);
    let index = pool.slot_ref(slots[0]).index;
    let (kept, other) = if index == 0 { ((2, 2), (0, 3)) } else { ((0, 1), (2, 3)) };
    pool.container_changed(0, &leased(&[kept, other], 3));
    assert_eq!(pool.assign(now), Some(Assignment::Reset(slots[0])));
}

fn added(names: &[&str], grant: u64) -> ContainerChange {
    ContainerChange::Added(LeasedSlots::all(names.iter().copied(), grant))
}

#[test]
fn a_container_that_drains_takes_no_trajectory_and_gives_its_slots_back() {
    let mut pool = pool(&[2]);
    let now = Instant::now();
    pool.wait(id("a"));
    let slot = granted(&mut pool, now);
    pool.container_changed(0, &ContainerChange::Draining);
    assert_eq!((pool.container_counts().up, pool.container_counts().draining), (0, 1));
    pool.wait(id("b"));
    let (other, grant) = pool.take_excess().unwrap();
    assert_ne!((other, grant), (slot, 1));
    assert_eq!((pool.take_excess(), pool.assign(now)), (None, None));
    assert_eq!((pool.counts().total, pool.counts().elsewhere), (1, 0));
    // Not even who left files there comes back to it.
    pool.release_as_is(slot);
    assert_eq!(pool.take_excess(), Some((slot, 0)));
    pool.wait(id("a"));
    assert_eq!(pool.assign(now), None);
    // It is used on.
    pool.container_changed(0, &added(&["slot_0", "slot_1"], 1));
    let Some(Assignment::Reset(slot)) = pool.assign(now) else { panic!("not without a reset") };
    assert_eq!(pool.slot_ref(slot).index, 0);
    // A trajectory that waits for a reset there waits for any slot.
    pool.container_changed(0, &ContainerChange::Draining);
    let generation = pool.slot_ref(slot).generation;
    assert_eq!(pool.reset_done(slot, generation, Ok(()), now), None);
    assert_eq!(pool.assign(now), None);
}

#[test]
fn the_number_of_a_container_is_used_again_only_when_nothing_is_left_of_it() {
    let mut pool = pool(&[1, 1]);
    let now = Instant::now();
    pool.wait(id("a"));
    let slot = granted(&mut pool, now);
    pool.release_with_reset(slot, now);
    pool.container_changed(0, &ContainerChange::Gone);
    assert_eq!(pool.container_at("container-0"), None);
    assert_eq!(pool.container_counts(), ContainerCounts { up: 1, ..ContainerCounts::default() });
    let new: Arc<str> = "new".into();
    assert_eq!(pool.admit(&new, |_| true), 2, "a reset is still to be answered");
    assert_eq!(pool.admit(&new, |_| true), 2);
    pool.container_changed(2, &added(&["x"], 1));
    pool.container_changed(2, &ContainerChange::Gone);
    let generation = pool.slot_ref(slot).generation;
    let released = pool.reset_done(slot, generation, Err("gone".to_owned()), now);
    assert_eq!(released, Some(ResetFor::Released(id("a"), Err("gone".to_owned()))));
    let is_idle = |number| number != 0;
    assert_eq!(pool.admit(&"third".into(), is_idle), 2, "a call is on its way to the first");
    pool.container_changed(2, &added(&["x"], 1));
    assert_eq!(pool.admit(&"fourth".into(), |_| true), 0);
    pool.container_changed(0, &added(&["y", "z"], 1));
    assert_eq!((&*pool.addr(0), pool.counts().total, pool.counts().clean), ("fourth", 4, 1));
    let occupancy: Vec<_> = pool.occupancy().map(|one| (&**one.addr, one.state)).collect();
    assert_eq!(occupancy, [("fourth", "up"), ("container-1", "up"), ("third", "up")]);
}

#[test]
fn a_slot_that_goes_while_it_is_reset_is_not_given_out_and_ends_the_release() {
    let mut pool = pool(&[1]);
    let now = Instant::now();
    pool.container_changed(0, &leased(&[(0, 1)], 3));
    pool.wait(id("a"));
    let Some(Assignment::Reset(slot)) = pool.assign(now) else { panic!("not without a reset") };
    pool.container_changed(0, &leased(&[], 3));
    let generation = pool.slot_ref(slot).generation;
    assert_eq!(pool.reset_done(slot, generation, Ok(()), now), None);
    assert_eq!((pool.counts().total, pool.assign(now)), (0, None), "a waits on");
    pool.container_changed(0, &leased(&[(0, 2)], 3));
    let Some(Assignment::Reset(slot)) = pool.assign(now) else { panic!("it is granted again") };
    let generation = pool.slot_ref(slot).generation;
    assert!(pool.reset_done(slot, generation, Ok(()), now).is_some());
    pool.release_with_reset(slot, now);
    pool.container_changed(0, &leased(&[], 3));
    let generation = pool.slot_ref(slot).generation;
    let released = pool.reset_done(slot, generation, Err("lost".to_owned()), now);
    assert_eq!(released, Some(ResetFor::Released(id("a"), Err("lost".to_owned()))));
    assert_eq!((pool.counts().total, pool.next_deadline()), (0, None));
}

#[test]
fn who_wishes_for_a_container_gets_a_slot_there_and_holds_up_no_one_else() {
    let mut pool = pool(&[1, 1]);
    let now = Instant::now();
    pool.wait(id("first"));
    let first = granted(&mut pool, now);
    let addr = pool.slot_ref(first).addr;
    for (name, wish) in [("a", Some(&*addr)), ("b", Some(&*addr)), ("c", None), ("d", None)] {
        pool.wait_near(id(name), wish);
    }
    // The other container's slot is for who does not care.
    let other = 1 - pool.container(first);
    assert!(matches!(
        pool.assign(now),
        Some(Assignment::Slot(c, slot)) if *c == *"c" && pool.container(slot) == other
    ));
    assert_eq!(pool.assign(now), None);
    // In order of arrival, whatever they wait for.
    for name in ["a", "b", "d"] {
        pool.release_with_reset(first, now);
        let generation = pool.slot_ref(first).generation;
        pool.reset_done(first, generation, Ok(()), now);
        assert_eq!(pool.assign(now), Some(Assignment::Slot(id(name), first)));
    }
    assert_eq!(pool.wishes.len(), 0);
}

#[test]
fn who_wishes_for_a_container_that_loses_its_workspaces_gets_any_slot() {
    let (mut pool, now) = (pool(&[1, 1]), Instant::now());
    pool.wait_near(id("a"), Some("container-0"));
    let held = granted(&mut pool, now);
    assert_eq!(pool.container(held), 0);
    pool.wait_near(id("b"), Some("container-0"));
    assert_eq!(pool.assign(now), None);
    pool.container_changed(0, &ContainerChange::Unreachable);
    assert_eq!(pool.assign(now), None, "it may come back with all that is there");
    pool.release_unknown(held);
    pool.container_changed(0, &ContainerChange::Lost);
    assert!(matches!(
        pool.assign(now),
        Some(Assignment::Slot(b, slot)) if *b == *"b" && pool.container(slot) == 1
    ));
    pool.wait_near(id("c"), Some("container-0"));
    pool.wait_near(id("d"), Some("no-such"));
    assert_eq!(pool.assign(now), None);
    assert_eq!(pool.wishes.container_of("c"), None, "a container that is down is not wished for");
}

#[test]
fn who_wishes_for_a_container_begins_anew_there() {
    let (mut pool, now) = (pool(&[1]), Instant::now());
    pool.wait(id("a"));
    let slot = granted(&mut pool, now);
    pool.release_as_is(slot);
    pool.wait_near(id("a"), Some("container-0"));
    assert_eq!(pool.assign(now), Some(Assignment::Reset(slot)), "not with its old files");
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u8, Option<u8>),
    StopWaiting(u8),
    Assign,
    ReleaseAsIs(u8),
    ReleaseUnknown(u8),
    ReleaseWithReset(u8),
    ResetDone(u8, bool),
    Pass(u16),
    Container(u8, ContainerChange),
    /// Each bit is a slot that the executor has, each of the second number one that is granted
    /// anew; and so many it may have.
    Resize(u8, u8, u8, u8),
    GiveBack,
}

fn step() -> impl Strategy<Value = Step> {
    let changes = vec![
        ContainerChange::Unreachable,
        ContainerChange::Recovered,
        ContainerChange::Restarted,
        ContainerChange::Lost,
        ContainerChange::Draining,
        ContainerChange::Gone,
    ];
    prop_oneof![
        (0..12u8, proptest::option::of(0..3u8)).prop_map(|(t, wish)| Step::Wait(t, wish)),
        (0..12u8).prop_map(Step::StopWaiting),
        Just(Step::Assign),
        (0..12u8).prop_map(Step::ReleaseAsIs),
        (0..12u8).prop_map(Step::ReleaseUnknown),
        (0..12u8).prop_map(Step::ReleaseWithReset),
        (0..6u8, any::<bool>()).prop_map(|(slot, ok)| Step::ResetDone(slot, ok)),
        (0..2000u16).prop_map(Step::Pass),
        (0..3u8, proptest::sample::select(changes)).prop_map(|(c, how)| Step::Container(c, how)),
        (0..3u8, 0..16u8, 0..16u8, 0..5u8)
            .prop_map(|(c, has, anew, most)| Step::Resize(c, has, anew, most)),
        Just(Step::GiveBack),
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
        let mut up = [true; 3];
        let mut draining = [false; 3];
        let mut gone = [false; 3];
        let mut grants = [[0; 4]; 3];
        let mut last_grant = 0;
        let number = |trajectory: &str| trajectory.parse::<u8>().unwrap();
        for step in steps {
            match step {
                Step::Wait(t, wish) => {
                    if !held.contains_key(&t) && !waiting.contains(&t) {
                        waiting.push(t);
                        let addr = wish.map(|container| format!("container-{container}"));
                        pool.wait_near(t.to_string().into(), addr.as_deref());
                    }
                }
                Step::StopWaiting(t) => {
                    waiting.retain(|other| *other != t);
                    pool.stop_waiting(&t.to_string().into(), now);
                }
                Step::Assign => {
                    let wishes: Vec<_> =
                        (0..12u8).map(|t| pool.wishes.container_of(&t.to_string())).collect();
                    if let Some(Assignment::Slot(t, slot)) = pool.assign(now) {
                        let t = number(&t);
                        if let Some(wish) = wishes[usize::from(t)] {
                            prop_assert_eq!(pool.container(slot), wish);
                            prop_assert_eq!(&files[slot.0], &Files::None);
                        }
                        prop_assert!(!held.values().any(|other| *other == slot));
                        let left = &files[slot.0];
                        prop_assert!(*left == Files::None || *left == Files::Of(t));
                        let (container, index) =
                            (pool.container(slot), pool.slot_ref(slot).index);
                        prop_assert!(up[container] && !draining[container]);
                        prop_assert_eq!(
                            grants[container][index],
                            pool.slots[slot.0].grant,
                            "not the executor's"
                        );
                        waiting.retain(|other| *other != t);
                        held.insert(t, slot);
                        files[slot.0] = Files::Of(t);
                    }
                }
                Step::GiveBack => {
                    while let Some((slot, grant)) = pool.take_excess() {
                        prop_assert!(!held.values().any(|other| *other == slot));
                        let (container, index) =
                            (pool.container(slot), pool.slot_ref(slot).index);
                        prop_assert_eq!(std::mem::take(&mut grants[container][index]), grant);
                    }
                    let is_up = |c: &&PoolContainer| c.state == ContainerState::Up;
                    for container in pool.containers.iter().filter(is_up) {
                        let free = container.clean.len() + container.dirty.len();
                        let limit = if container.is_draining { 0 } else { container.limit };
                        prop_assert!(free == 0 || container.total <= limit);
                    }
                }
                Step::Resize(container, has, anew, most) => {
                    let container = usize::from(container);
                    let mut now_held = Vec::new();
                    for (index, grant) in grants[container].iter_mut().enumerate() {
                        let is_set = |bits: u8| bits & (1 << index) != 0;
                        if !is_set(has) {
                            *grant = 0;
                        } else if *grant == 0 || is_set(anew) {
                            last_grant += 1;
                            *grant = last_grant;
                        }
                        if *grant > 0 {
                            now_held.push((index, *grant));
                        }
                    }
                    let names = (0..4).map(|slot| format!("slot_{slot}")).collect();
                    let leased = LeasedSlots::new(names, now_held, most.into());
                    let is_added = gone[container] || (draining[container] && most == 4);
                    let change = if is_added {
                        draining[container] = false;
                        up[container] |= std::mem::take(&mut gone[container]);
                        let addr = format!("container-{container}").into();
                        let number = pool.admit(&addr, |_| unreachable!("it is known"));
                        prop_assert_eq!(number, container);
                        ContainerChange::Added(leased)
                    } else {
                        ContainerChange::Resized(leased)
                    };
                    for (t, slot) in pool.lost_by(container, &change) {
                        prop_assert_eq!(held.remove(&number(&t)), Some(slot));
                        pool.release_unknown(slot);
                    }
                    let before: Vec<_> = pool.slots.iter().map(|slot| slot.grant).collect();
                    pool.container_changed(container, &change);
                    files.resize(pool.slots.len(), Files::Unknown);
                    for (index, before) in before.into_iter().enumerate() {
                        if pool.slots[index].grant != before {
                            files[index] = Files::Unknown;
                        }
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
                        let emptied = ok && !pool.slots[slot.0].stale;
                        files[slot.0] = if emptied { Files::None } else { Files::Unknown };
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
                Step::Container(container, change) => {
                    let container = usize::from(container);
                    // Who is gone has nothing more to say.
                    let known = pool.container_at(&format!("container-{container}"));
                    prop_assert_eq!(known.is_none(), gone[container]);
                    if gone[container] {
                        continue;
                    }
                    match change {
                        ContainerChange::Draining => draining[container] = true,
                        ContainerChange::Recovered | ContainerChange::Restarted => {
                            up[container] = true;
                        }
                        _ => up[container] = false,
                    }
                    if change == ContainerChange::Gone {
                        gone[container] = true;
                        grants[container] = [0; 4];
                    }
                    if matches!(
                        change,
                        ContainerChange::Restarted | ContainerChange::Lost | ContainerChange::Gone
                    ) {
                        for (t, slot) in pool.lost_by(container, &change) {
                            prop_assert_eq!(held.remove(&number(&t)), Some(slot));
                            pool.release_unknown(slot);
                        }
                        for (index, files) in files.iter_mut().enumerate() {
                            if pool.container(SlotIx(index)) == container {
                                *files = Files::Unknown;
                            }
                        }
                    }
                    pool.container_changed(container, &change);
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
            let absent = |slot: &&Slot| matches!(slot.state, State::Absent);
            let absent = pool.slots.iter().filter(absent).count();
            prop_assert_eq!(counts.total + absent, pool.slots.len());
            prop_assert!(counts.elsewhere <= absent);
            prop_assert_eq!(counts.held, held.len());
            prop_assert_eq!(pool.holders().count(), held.len());
            prop_assert_eq!(pool.wishes.len(), pool.waiting.len());
            let wishes = (0..12u8).filter(|t| pool.wishes.container_of(&t.to_string()).is_some());
            for t in wishes {
                prop_assert!(waiting.contains(&t), "{} waits no more and has a wish", t);
            }
        }
    }
}
