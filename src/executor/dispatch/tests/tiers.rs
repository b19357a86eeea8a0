//! Several backends: where trajectories are put, and what each backend is told.

use super::*;

/// Each container is a tier.
fn world(sizes: &[usize], after: &[u64]) -> World {
    let grows = Limits { may_grow: true, ..limits() };
    let mut world = World::new(sizes, grows, false);
    let tier = |(number, after): (usize, &u64)| {
        let capabilities = Capabilities::default().with_may_grow(number > 0);
        Tier::new(&*addr(number), capabilities).with_spill_after(Duration::from_secs(*after))
    };
    world.dispatch.use_tiers(&after.iter().enumerate().map(tier).collect::<Vec<_>>());
    world
}

fn settle(world: &mut World) {
    world.deliver(usize::MAX);
    world.tick().unwrap();
    world.check().unwrap();
}

/// The containers that the calls which run are in.
fn places(world: &World) -> Vec<usize> {
    world.running.iter().filter_map(|running| running.slot).map(|(number, _)| number).collect()
}

/// How many wait for each tier, as they are told.
fn wanted(world: &World) -> Vec<usize> {
    world.dispatch.wanted(world.now).tiers.iter().map(|demand| demand.waiting).collect()
}

#[test]
fn what_the_first_has_no_slot_for_goes_to_the_second_in_its_time_and_wakes_for_it() {
    let mut world = world(&[1, 1], &[0, 3]);
    for trajectory in 0..3 {
        world.submit(trajectory, true);
    }
    settle(&mut world);
    assert_eq!(places(&world), [0]);
    assert_eq!(wanted(&world), [2, 0], "what does not spill is not asked of the second");
    let due = world.dispatch.next_deadline().unwrap();
    assert!(due <= world.now + Duration::from_secs(3));
    world.now += Duration::from_secs(3);
    settle(&mut world);
    assert_eq!(places(&world), [0, 1]);
    assert_eq!(wanted(&world), [1, 1]);
    let stats = world.dispatch.stats(world.now);
    let told: Vec<_> =
        stats.backends.iter().map(|one| (one.containers, one.slots, one.free)).collect();
    assert_eq!(told, [(1, 1, 0), (1, 1, 0)]);
    world.end().unwrap();
}

#[test]
fn what_one_backend_cannot_give_the_next_is_asked_for_and_all_that_was_said_is_told() {
    let mut world = world(&[1, 1], &[0, 3]);
    let spec = TrajectorySpec::default().with_image("an-image");
    world.begin(0, spec.clone());
    settle(&mut world);
    assert_eq!(&*world.bindings[0].1.addr, "container-0");
    world.step(Step::BeginEnds(0, false));
    settle(&mut world);
    assert!(!world.begins[0].0.is_done(), "the other is still to be asked");
    // It does not wait for the one that has refused it, and that one's slot is not kept.
    assert_eq!(&*world.bindings[0].1.addr, "container-1");
    world.step(Step::ResetEnds(0, true));
    world.submit(1, true);
    settle(&mut world);
    assert_eq!(places(&world), [0]);
    world.step(Step::BeginEnds(0, true));
    settle(&mut world);
    assert_eq!(world.begins[0].0.peek().unwrap().outcome, Outcome::Ok);
    world.submit(0, true);
    settle(&mut world);
    assert_eq!(places(&world), [0, 1]);

    // One that none can give ends with what each has said.
    world.step(Step::Answer(0, Outcome::Ok));
    world.step(Step::Answer(0, Outcome::Ok));
    world.step(Step::Release(0, true));
    world.step(Step::Release(1, true));
    settle(&mut world);
    world.step(Step::ResetEnds(0, true));
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    world.begin(2, spec);
    settle(&mut world);
    for _ in 0..2 {
        assert!(!world.begins[1].0.is_done());
        world.step(Step::BeginEnds(0, false));
        settle(&mut world);
    }
    let ended = world.begins[1].0.peek().unwrap();
    assert_eq!(ended.outcome, Outcome::ImageUnavailable);
    assert_eq!(ended.error, "container-0: an-image; container-1: an-image");
    world.end().unwrap();
}

#[test]
fn what_only_one_can_give_waits_for_that_one_and_the_refusal_says_so() {
    let mut world = world(&[1, 1], &[0, 3]);
    world.may = TierSet::of([1]);
    for trajectory in 0..2 {
        world.begin(trajectory, TrajectorySpec::default().with_image("an-image"));
    }
    settle(&mut world);
    assert_eq!(world.bindings.len(), 1);
    assert_eq!(&*world.bindings[0].1.addr, "container-1");
    world.step(Step::BeginEnds(0, true));
    settle(&mut world);
    assert_eq!(wanted(&world), [0, 1]);
    world.now += limits().acquire_timeout;
    settle(&mut world);
    let ended = world.begins[1].0.peek().unwrap();
    assert_eq!(ended.outcome, Outcome::NeverRan);
    let text = "; only container-1 can give what it begins with";
    assert!(ended.error.ends_with(text), "{}", ended.error);
    world.end().unwrap();
}
