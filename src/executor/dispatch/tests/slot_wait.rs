//! What waits behind a call that gets no slot.

use super::*;

/// The wait for a slot is over sooner than the call that holds it.
fn short() -> Limits {
    Limits { acquire_timeout: Duration::from_secs(3), ..limits() }
}

fn settle(world: &mut World) {
    world.deliver(usize::MAX);
    world.tick().unwrap();
    world.check().unwrap();
}

fn is_done(world: &World) -> Vec<bool> {
    world.submitted.iter().map(Pending::is_done).collect()
}

#[test]
fn calls_behind_one_that_got_no_slot_in_time_end_with_it_and_the_others_take_their_turn() {
    let mut world = World::new(&[1], short(), false);
    world.submit(0, true);
    settle(&mut world);
    // Of another trajectory: two that need a slot, a tool of the host, a reader, a release, and one
    // more that needs a slot.
    world.submit(1, true);
    world.submit(1, true);
    world.submit(1, false);
    world.step(Step::Lend(1));
    world.step(Step::Release(1, true));
    world.submit(1, true);
    settle(&mut world);
    world.now += short().acquire_timeout - Duration::from_nanos(1);
    settle(&mut world);
    assert_eq!(is_done(&world), [false; 5]);
    world.now += Duration::from_nanos(1);
    settle(&mut world);
    assert_eq!(is_done(&world), [false, true, true, false, true]);
    assert_eq!(world.gate.inside(), 0, "the tool of the host runs, as does the holder's call");
    assert_eq!(world.running.len(), 2);

    // The tool of the host ends; then the reader and the release have their turn.
    world.step(Step::Answer(1, Outcome::Ok));
    settle(&mut world);
    let reader = world.lends[0].try_recv().unwrap();
    assert!(matches!(reader, Err(ArtifactError::NoSlot)));
    assert_eq!(world.releases[0].try_recv(), Ok(Ok(())));

    let results = [1, 2, 4].map(|index| world.submitted[index].peek().unwrap());
    for result in &results {
        assert_eq!((result.outcome, result.may_have_executed), (Outcome::NeverRan, false));
        assert_eq!(result.error, results[0].error);
        assert_eq!(result.timing.slot + result.timing.queue, short().acquire_timeout);
    }
    let text = "Failed to acquire slot: none of the 1 slots became free within 3.0 s; 1 held, by t0 \
                (running bash for 3.0 s)";
    assert_eq!(results[0].error, text);
}

#[test]
fn a_later_call_waits_anew() {
    let mut world = World::new(&[1], short(), false);
    world.submit(0, true);
    world.submit(1, true);
    settle(&mut world);
    world.now += short().acquire_timeout;
    settle(&mut world);
    assert_eq!(is_done(&world), [false, true]);
    world.submit(1, true);
    settle(&mut world);
    assert_eq!((is_done(&world)[2], world.dispatch.waiting_for_slot), (false, 1));
    world.step(Step::Answer(0, Outcome::Ok));
    world.step(Step::Release(0, false));
    settle(&mut world);
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    assert_eq!(world.running.len(), 1);
    world.end().unwrap();
}

#[test]
fn a_call_that_is_cancelled_while_it_waits_takes_nothing_along() {
    let mut world = World::new(&[1], short(), false);
    world.submit(0, true);
    world.submit(1, true);
    world.submit(1, true);
    settle(&mut world);
    world.submitted[1].cancel();
    settle(&mut world);
    assert_eq!(is_done(&world), [false, true, false]);
    world.end().unwrap();
}

#[test]
fn releases_that_follow_each_other_are_one() {
    let mut world = World::new(&[1], short(), false);
    world.submit(0, true);
    settle(&mut world);
    for _ in 0..1000 {
        world.step(Step::Release(0, true));
        settle(&mut world);
    }
    assert_eq!(world.dispatch.trajectories[&name(0)].queue.len(), 1);
    // A call between them makes them two.
    world.submit(0, false);
    world.step(Step::Release(0, true));
    settle(&mut world);
    assert_eq!(world.dispatch.trajectories[&name(0)].queue.len(), 3);
    world.step(Step::Answer(0, Outcome::Ok));
    settle(&mut world);
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    assert!(world.releases[..1000].iter().all(|release| release.try_recv() == Ok(Ok(()))));
}

#[test]
fn a_reader_that_gives_up_is_out_of_line() {
    let mut world = World::new(&[1], short(), false);
    world.submit(0, true);
    settle(&mut world);
    for index in 0..100 {
        world.step(Step::Lend(0));
        world.step(Step::Abandon(index));
        settle(&mut world);
    }
    assert_eq!(world.dispatch.trajectories[&name(0)].queue.len(), 0);
}
