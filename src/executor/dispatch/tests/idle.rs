//! Trajectories that hold a slot and do nothing with it.

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

fn world(slots: usize, on_lost: LostWorkspace) -> World {
    World::new(&[slots], Limits { on_lost, idle_limit: Some(LIMIT), ..limits() }, false)
}

fn settle(world: &mut World) {
    world.deliver(usize::MAX);
    world.tick().unwrap();
    world.check().unwrap();
}

/// Runs a call of this trajectory to its end.
fn run(world: &mut World, trajectory: u8) {
    world.submit(trajectory, true);
    settle(world);
    finish(world);
}

fn finish(world: &mut World) {
    assert_eq!(world.running.len(), 1, "the call runs");
    world.step(Step::Answer(0, Outcome::Ok));
    while !world.batches.is_empty() {
        world.step(Step::AcceptBatch(0));
    }
    settle(world);
}

fn pass(world: &mut World, time: Duration) {
    world.now += time;
    settle(world);
}

/// The result of the latest call.
fn last_result(world: &World) -> ToolResult {
    world.submitted.last().unwrap().peek().unwrap()
}

fn holds(world: &World, trajectory: u8) -> bool {
    let trajectory = world.dispatch.trajectories.get(&name(trajectory));
    trajectory.is_some_and(|trajectory| trajectory.slot.is_some())
}

#[test]
fn an_idle_holder_loses_its_slot_at_the_limit_and_is_told_until_it_is_released() {
    let mut world = world(1, LostWorkspace::Refuse);
    run(&mut world, 0);
    assert_eq!(world.dispatch.next_deadline(), Some(world.now + LIMIT));
    pass(&mut world, LIMIT - Duration::from_nanos(1));
    assert!(holds(&world, 0) && world.resets.is_empty());
    pass(&mut world, Duration::from_nanos(1));
    assert!(!holds(&world, 0));
    assert_eq!(world.resets.len(), 1, "emptied at once, like a released one");
    assert_eq!(world.warned, ["the idle_limit of 30.0 s is over, slots are taken back: t0"]);

    for _ in 0..2 {
        world.submit(0, true);
        settle(&mut world);
        let result = last_result(&world);
        assert_eq!((result.outcome, result.may_have_executed), (Outcome::SandboxLost, false));
        assert!(!result.model_attributable());
        assert_eq!(
            result.error,
            "this trajectory made no call for 30.0 s, so its slot was taken back and its workspace \
             is gone; release the trajectory to begin anew in an empty one"
        );
        assert_eq!(result.metadata["idle_s"], 30.0);
    }
    world.step(Step::Lend(0));
    settle(&mut world);
    let refused = world.lends.pop().unwrap().try_recv().unwrap();
    assert!(matches!(refused, Err(ArtifactError::SandboxLost(_))));

    world.step(Step::Release(0, true));
    world.submit(0, true);
    settle(&mut world);
    assert!(world.running.is_empty(), "the slot is not empty yet");
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    finish(&mut world);
    assert!(holds(&world, 0));
}

#[test]
fn with_start_empty_its_next_call_runs_in_an_emptied_slot() {
    let mut world = world(1, LostWorkspace::StartEmpty);
    run(&mut world, 0);
    pass(&mut world, LIMIT);
    world.submit(0, true);
    settle(&mut world);
    assert!(world.running.is_empty());
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    finish(&mut world);
    assert!(holds(&world, 0));
}

#[test]
fn a_waiting_trajectory_gets_the_slot_that_was_taken_back_whether_or_not_the_reset_failed_first() {
    for first_reset in [true, false] {
        let mut world = world(1, LostWorkspace::Refuse);
        run(&mut world, 0);
        pass(&mut world, LIMIT - Duration::from_secs(1));
        world.submit(1, true);
        settle(&mut world);
        pass(&mut world, Duration::from_secs(1));
        world.step(Step::ResetEnds(0, first_reset));
        settle(&mut world);
        if !first_reset {
            assert!(world.running.is_empty(), "who knows what is in there");
            pass(&mut world, Duration::from_secs(1));
            world.step(Step::ResetEnds(0, true));
            settle(&mut world);
        }
        assert_eq!(world.running.len(), 1);
        assert!(holds(&world, 1) && !holds(&world, 0));
        world.end().unwrap();
    }
}

#[test]
fn calls_tools_of_the_host_and_readers_are_use_and_the_time_begins_when_they_end() {
    for kind in 0..3 {
        let mut world = world(1, LostWorkspace::Refuse);
        run(&mut world, 0);
        pass(&mut world, LIMIT / 2);
        match kind {
            0 => world.submit(0, true),
            1 => world.submit(0, false),
            _ => world.step(Step::Lend(0)),
        }
        settle(&mut world);
        // Not longer than a call may take.
        for _ in 0..2 {
            pass(&mut world, Duration::from_secs(2));
        }
        match kind {
            2 => world.step(Step::Return(0)),
            _ => world.step(Step::Answer(0, Outcome::Ok)),
        }
        settle(&mut world);
        let ended = world.now;
        pass(&mut world, LIMIT - Duration::from_nanos(1));
        assert!(holds(&world, 0), "{kind}");
        pass(&mut world, Duration::from_nanos(1));
        assert!(!holds(&world, 0), "{kind}");
        assert_eq!(world.now, ended + LIMIT);
    }
}

#[test]
fn many_that_end_at_the_same_time_are_one_warning() {
    let mut world = world(12, LostWorkspace::Refuse);
    for trajectory in 0..12 {
        run(&mut world, trajectory);
    }
    pass(&mut world, LIMIT);
    assert_eq!(world.resets.len(), 12);
    let names = "t0, t1, t2, t3, t4, t5, t6, t7 and 4 more";
    let text = format!("the idle_limit of 30.0 s is over, slots are taken back: {names}");
    assert_eq!(world.warned, [text]);
}

#[test]
fn after_a_pause_of_the_whole_process_what_is_on_its_way_has_a_minute() {
    let mut world = world(1, LostWorkspace::Refuse);
    run(&mut world, 0);
    let stopped = HEARTBEAT * 10;
    pass(&mut world, stopped);
    assert!(holds(&world, 0), "its call may be on its way");
    let minute = Duration::from_secs(60);
    assert_eq!(world.dispatch.next_deadline(), Some(world.now + minute));
    pass(&mut world, minute);
    assert!(!holds(&world, 0));
}

#[test]
fn how_many_are_remembered_is_bounded_and_the_one_that_is_silent_for_longest_is_forgotten() {
    let mut world = world(1, LostWorkspace::Refuse);
    world.dispatch.most_remembered = 3;
    for trajectory in 0..5 {
        run(&mut world, trajectory);
        pass(&mut world, LIMIT);
        world.step(Step::ResetEnds(0, true));
        settle(&mut world);
        // It says something: so it is not the one.
        world.submit(0, true);
        settle(&mut world);
    }
    let mut kept: Vec<_> = world.dispatch.trajectories.keys().map(|id| id.to_string()).collect();
    kept.sort();
    assert_eq!(kept, ["t0", "t3", "t4"]);
    assert_eq!(world.dispatch.remembered.len(), 3);
    world.end().unwrap();
}

#[test]
fn trajectories_that_wait_while_all_holders_are_idle_are_said_after_10_s_and_the_end_once() {
    let mut world = World::new(&[10], Limits { acquire_timeout: 10 * LIMIT, ..limits() }, false);
    for trajectory in 0..10 {
        run(&mut world, trajectory);
        pass(&mut world, Duration::from_secs(1));
    }
    let stats = world.dispatch.stats(world.now);
    assert_eq!((stats.idle_slots, stats.idle_holders.len(), stats.stalled_s), (10, 8, None));
    world.submit(10, true);
    world.submit(11, true);
    settle(&mut world);
    pass(&mut world, Duration::from_secs(10) - Duration::from_nanos(1));
    assert_eq!(world.warned, [""; 0]);
    let due = world.now + Duration::from_nanos(1);
    assert_eq!(world.dispatch.next_deadline(), Some(due));
    pass(&mut world, Duration::from_nanos(1));
    assert_eq!(
        world.warned,
        ["2 trajectories wait for a slot while all that hold one are idle: t0 (20.0 s), \
          t1 (19.0 s), t2 (18.0 s), t3 (17.0 s), t4 (16.0 s), t5 (15.0 s), t6 (14.0 s), \
          t7 (13.0 s) and 2 more; release them, or set an idle_limit"]
    );
    let stats = world.dispatch.stats(world.now);
    assert_eq!((stats.waiting_for_slot, stats.stalled_s), (2, Some(10.0)));
    assert_eq!(
        (stats.idle_holders[0].trajectory_id.as_str(), stats.idle_holders[0].idle_s),
        ("t0", 20.0)
    );
    pass(&mut world, Duration::from_secs(5));
    assert_eq!(world.warned.len(), 1);
    pass(&mut world, Duration::from_secs(5));
    assert_eq!(world.warned.len(), 2, "again while it lasts");

    // One of them does something.
    world.submit(3, true);
    settle(&mut world);
    let over = "trajectories no longer wait for idle slots; they did for 20.0 s";
    assert_eq!(world.warned[2..], [over]);
    assert_eq!(world.dispatch.stats(world.now).stalled_s, None);
    pass(&mut world, Duration::from_secs(3));
    assert_eq!(world.warned.len(), 3, "once");
    world.end().unwrap();
}

#[test]
fn nothing_is_said_while_a_holder_works_or_nobody_waits() {
    let mut world = World::new(&[2], limits(), false);
    run(&mut world, 0);
    pass(&mut world, Duration::from_secs(100));
    world.submit(1, true);
    world.submit(2, true);
    settle(&mut world);
    for _ in 0..6 {
        pass(&mut world, Duration::from_secs(1));
    }
    assert_eq!(world.dispatch.waiting_for_slot, 1);
    assert_eq!(world.warned, [""; 0]);
}
