//! Trajectories that begin with a spec.

use super::*;

fn world(slots: usize) -> World {
    World::new(&[slots], limits(), false)
}

fn settle(world: &mut World) {
    world.deliver(usize::MAX);
    world.tick().unwrap();
    world.check().unwrap();
    world.times_are_kept().unwrap();
}

fn spec() -> TrajectorySpec {
    TrajectorySpec::default().with_env([("A".to_owned(), "b".to_owned())].into())
}

fn begin(world: &mut World, trajectory: u8, spec: TrajectorySpec) {
    world.begin(trajectory, spec);
    settle(world);
}

/// How the latest begin ended; `None` while it has not.
fn begun(world: &World) -> Option<(Outcome, String)> {
    let (pending, _) = world.begins.last().unwrap();
    pending.peek().map(|result| (result.outcome, result.error))
}

fn bound(world: &mut World, ok: bool) {
    world.step(Step::BeginEnds(0, ok));
    settle(world);
}

fn call(world: &mut World, trajectory: u8, sandbox: bool) -> usize {
    world.submit(trajectory, sandbox);
    settle(world);
    world.submitted.len() - 1
}

fn result(world: &World, call: usize) -> ToolResult {
    world.submitted[call].peek().expect("its call has ended")
}

fn finish(world: &mut World) {
    world.step(Step::Answer(0, Outcome::Ok));
    while !world.batches.is_empty() {
        world.step(Step::AcceptBatch(0));
    }
    settle(world);
}

fn release(world: &mut World, trajectory: u8) {
    world.step(Step::Release(trajectory, true));
    settle(world);
}

fn pass(world: &mut World, time: Duration) {
    world.now += time;
    settle(world);
}

#[test]
fn its_calls_wait_until_its_slot_is_what_it_asks_for() {
    let mut world = world(1);
    begin(&mut world, 0, spec());
    let first = call(&mut world, 0, true);
    assert_eq!(world.bindings.len(), 1);
    assert_eq!(*world.bindings[0].2, spec());
    assert!(world.running.is_empty() && begun(&world).is_none());
    bound(&mut world, true);
    assert_eq!(begun(&world).unwrap().0, Outcome::Ok);
    assert_eq!(world.running[0].id, ExecutionId(first as u64));
    finish(&mut world);
    // Its further calls just run.
    call(&mut world, 0, true);
    assert!(world.bindings.is_empty());
    assert_eq!(world.running.len(), 1);
    world.end().unwrap();
}

#[test]
fn one_that_cannot_begin_has_no_calls_until_it_is_released_and_its_slot_goes_on() {
    let mut world = world(1);
    begin(&mut world, 0, spec());
    let behind = call(&mut world, 0, true);
    let other = call(&mut world, 1, true);
    bound(&mut world, false);
    assert_eq!(begun(&world).unwrap(), (Outcome::SpecUnsupported, "no".to_owned()));
    let refused = result(&world, behind);
    assert_eq!((refused.outcome, refused.may_have_executed), (Outcome::SpecUnsupported, false));
    assert_eq!(refused.error, "this trajectory did not begin: no; release it to begin anew");
    // Those that need no slot neither.
    let closure = call(&mut world, 0, false);
    assert_eq!(result(&world, closure).outcome, Outcome::SpecUnsupported);
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    assert_eq!(world.running[0].id, ExecutionId(other as u64));

    world.begin(0, spec());
    settle(&mut world);
    let error = BeginError::AlreadyBegun.to_string();
    assert_eq!(begun(&world).unwrap(), (Outcome::InvalidCall, error));
    finish(&mut world);
    release(&mut world, 1);
    release(&mut world, 0);
    world.step(Step::ResetEnds(0, true));
    call(&mut world, 0, true);
    assert_eq!(world.running.len(), 1, "without a spec");
    world.end().unwrap();
}

#[test]
fn a_trajectory_begins_once_and_before_its_first_call() {
    let mut world = world(2);
    let accepts = |world: &mut World, trajectory: u8| {
        begin(world, trajectory, spec());
        begun(world).is_none_or(|(outcome, _)| outcome != Outcome::InvalidCall)
    };
    call(&mut world, 0, true);
    assert!(!accepts(&mut world, 0), "it makes a call");
    finish(&mut world);
    assert!(!accepts(&mut world, 0), "it has a slot");
    world.step(Step::Release(0, true));
    assert!(accepts(&mut world, 0), "in its turn, after the release");
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    assert!(!accepts(&mut world, 0), "it is beginning");
    bound(&mut world, true);
    assert!(!accepts(&mut world, 0), "it has begun");
    // What a call without a slot leaves is nothing.
    call(&mut world, 1, false);
    finish(&mut world);
    assert!(accepts(&mut world, 1));
    world.end().unwrap();
}

#[test]
fn one_that_is_cancelled_is_no_trajectory_whose_calls_run() {
    // While it waits for a slot, while that is made, and before its turn.
    for case in 0..3 {
        let mut world = world(1);
        match case {
            0 => drop(call(&mut world, 1, true)),
            2 => {
                begin(&mut world, 0, spec());
                bound(&mut world, true);
                call(&mut world, 0, true);
                world.step(Step::Release(0, true));
            }
            _ => {}
        }
        begin(&mut world, 0, spec());
        let behind = call(&mut world, 0, true);
        world.step(Step::CancelBegin(world.begins.len() as u8 - 1));
        settle(&mut world);
        assert_eq!(begun(&world).unwrap().0, Outcome::Cancelled, "{case}");
        if case == 2 {
            finish(&mut world);
            world.step(Step::ResetEnds(0, true));
            settle(&mut world);
        }
        let refused = result(&world, behind);
        let expected = if case == 2 { Outcome::NeverRan } else { Outcome::Cancelled };
        assert_eq!((refused.outcome, refused.may_have_executed), (expected, false), "{case}");
        if case == 1 {
            // A word that comes after the slot was given up is not believed.
            bound(&mut world, true);
            call(&mut world, 1, true);
            assert!(world.running.is_empty(), "the slot is reset first");
            world.step(Step::ResetEnds(0, true));
            settle(&mut world);
            assert_eq!(world.running.len(), 1);
        }
        world.end().unwrap();
    }
}

#[test]
fn one_whose_slot_is_not_made_in_time_or_that_gets_none_says_so() {
    let mut world = world(1);
    begin(&mut world, 0, spec());
    pass(&mut world, Duration::from_secs(5));
    let (outcome, error) = begun(&world).unwrap();
    assert_eq!(outcome, Outcome::BackendFailed);
    assert_eq!(error, "the sandbox was not made as was asked within 5.0 s");

    call(&mut world, 1, true);
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    assert_eq!(world.running.len(), 1);
    begin(&mut world, 2, spec());
    pass(&mut world, Duration::from_secs(7));
    let (outcome, error) = begun(&world).unwrap();
    assert_eq!(outcome, Outcome::NeverRan);
    assert!(error.starts_with("Failed to acquire slot"), "{error}");
    let later = call(&mut world, 2, true);
    assert_eq!(result(&world, later).outcome, Outcome::NeverRan);
    world.end().unwrap();
}

#[test]
fn a_container_that_goes_down_while_a_trajectory_begins_ends_the_begin() {
    let mut world = World::new(&[1, 1], limits(), false);
    begin(&mut world, 0, spec());
    let down = number(&world.bindings[0].1.addr);
    world.step(Step::Container(down as u8, ContainerChange::Lost));
    settle(&mut world);
    assert_eq!(begun(&world).unwrap().0, Outcome::SandboxLost);
    assert_eq!(world.bindings.len(), 1, "it is not tried elsewhere");
    bound(&mut world, true);
    let later = call(&mut world, 0, true);
    assert_eq!(result(&world, later).outcome, Outcome::SandboxLost);
    world.end().unwrap();
}

#[test]
fn where_a_lost_workspace_begins_anew_it_is_what_was_asked_for() {
    let on_lost = LostWorkspace::StartEmpty;
    let mut world = World::new(&[1, 1], Limits { on_lost, ..limits() }, false);
    begin(&mut world, 0, spec());
    let down = number(&world.bindings[0].1.addr);
    bound(&mut world, true);
    world.step(Step::Container(down as u8, ContainerChange::Lost));
    settle(&mut world);
    let next = call(&mut world, 0, true);
    assert_eq!(world.bindings.len(), 1);
    assert!(world.running.is_empty());
    // A call that gives up leaves it to the next one.
    world.submitted[next].cancel();
    settle(&mut world);
    assert_eq!(result(&world, next).outcome, Outcome::Cancelled);
    bound(&mut world, true);
    let next = call(&mut world, 0, true);
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    assert_eq!(*world.bindings[0].2, spec());
    bound(&mut world, true);
    assert_eq!(world.running[0].id, ExecutionId(next as u64));
    world.end().unwrap();
}

#[test]
fn when_its_time_is_up_what_runs_ends_so_and_its_slot_goes_on() {
    let mut world = world(1);
    let wall = Duration::from_secs(3);
    begin(&mut world, 0, TrajectorySpec::default().with_max_wall(wall));
    pass(&mut world, Duration::from_secs(2));
    bound(&mut world, true);
    pass(&mut world, Duration::from_secs(1));
    let running = call(&mut world, 0, true);
    let behind = call(&mut world, 0, false);
    pass(&mut world, Duration::from_secs(2) - Duration::from_nanos(1));
    assert!(
        !world.running[0].reply.as_ref().unwrap().is_cancelled(),
        "it has time from its slot on"
    );
    pass(&mut world, Duration::from_nanos(1));
    assert!(world.running[0].reply.as_ref().unwrap().is_cancelled());
    assert!(world.resets.is_empty(), "it has to end first");
    world.step(Step::Answer(0, Outcome::Cancelled));
    settle(&mut world);
    let ended = result(&world, running);
    assert_eq!((ended.outcome, ended.may_have_executed), (Outcome::TrajectoryExpired, true));
    assert!(ended.error.contains("max_wall_s, 3 s"), "{ended:?}");
    let ended = result(&world, behind);
    assert_eq!((ended.outcome, ended.may_have_executed), (Outcome::TrajectoryExpired, false));
    assert!(ended.error.ends_with("release it to begin anew"), "{ended:?}");
    world.step(Step::ResetEnds(0, true));
    call(&mut world, 1, true);
    assert_eq!(world.running.len(), 1, "another has the slot");
    world.step(Step::Lend(0));
    settle(&mut world);
    let refused = world.lends.pop().unwrap().try_recv().unwrap();
    assert!(matches!(refused, Err(ArtifactError::SandboxLost(_))));
    world.end().unwrap();
}

#[test]
fn one_that_is_faster_than_its_end_has_its_result_and_the_next_call_is_told() {
    let mut world = world(1);
    begin(&mut world, 0, TrajectorySpec::default().with_max_wall(Duration::from_secs(1)));
    bound(&mut world, true);
    let running = call(&mut world, 0, true);
    pass(&mut world, Duration::from_secs(1));
    world.step(Step::Answer(0, Outcome::Ok));
    settle(&mut world);
    assert_eq!(result(&world, running).outcome, Outcome::Ok);
    let later = call(&mut world, 0, true);
    assert_eq!(result(&world, later).outcome, Outcome::TrajectoryExpired);
    world.end().unwrap();
}

#[test]
fn a_tool_of_the_host_that_runs_when_its_time_is_up_ends_so() {
    let mut world = world(1);
    begin(&mut world, 0, TrajectorySpec::default().with_max_wall(Duration::from_secs(1)));
    bound(&mut world, true);
    let running = call(&mut world, 0, false);
    pass(&mut world, Duration::from_secs(1));
    assert_eq!(result(&world, running).outcome, Outcome::TrajectoryExpired);
    assert_eq!(world.resets.len(), 1);
    world.end().unwrap();
}

#[test]
fn one_that_is_idle_for_too_long_expires_and_calls_and_readers_are_use() {
    let limit = Duration::from_secs(3);
    let mut world = world(1);
    begin(&mut world, 0, TrajectorySpec::default().with_max_idle(limit));
    bound(&mut world, true);
    for reader in [false, true] {
        pass(&mut world, limit - Duration::from_nanos(1));
        if reader {
            world.step(Step::Lend(0));
            settle(&mut world);
            pass(&mut world, 2 * limit);
            world.step(Step::Return(0));
            settle(&mut world);
        } else {
            call(&mut world, 0, true);
            finish(&mut world);
        }
    }
    pass(&mut world, limit - Duration::from_nanos(1));
    assert!(world.resets.is_empty());
    pass(&mut world, Duration::from_nanos(1));
    assert_eq!(world.resets.len(), 1);
    let later = call(&mut world, 0, true);
    let ended = result(&world, later);
    assert_eq!(ended.outcome, Outcome::TrajectoryExpired);
    assert!(ended.error.contains("no call for max_idle_s, 3 s"), "{ended:?}");
    // Released, it begins like any other.
    world.step(Step::ResetEnds(0, true));
    release(&mut world, 0);
    begin(&mut world, 0, spec());
    bound(&mut world, true);
    assert_eq!(begun(&world).unwrap().0, Outcome::Ok);
    world.end().unwrap();
}

#[test]
fn what_a_trajectory_of_this_name_left_is_not_what_it_begins_with() {
    let mut world = world(1);
    call(&mut world, 0, true);
    finish(&mut world);
    world.step(Step::Release(0, false));
    begin(&mut world, 0, spec());
    assert_eq!((world.resets.len(), world.bindings.len()), (1, 0));
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    bound(&mut world, true);
    // And nothing of it is kept.
    world.step(Step::Release(0, false));
    call(&mut world, 0, true);
    assert_eq!((world.resets.len(), world.running.len()), (1, 0));
    world.end().unwrap();
}

fn with_image(image: &str) -> TrajectorySpec {
    TrajectorySpec::default().with_image(image.to_owned())
}

#[test]
fn an_image_that_one_container_cannot_have_is_tried_in_a_second_one_and_in_no_third() {
    let mut world = World::new(&[1, 1, 1], limits(), false);
    begin(&mut world, 0, with_image("no-such"));
    let behind = call(&mut world, 0, true);
    let first = world.bindings[0].1.addr.clone();
    bound(&mut world, false);
    assert!(begun(&world).is_none(), "there is another container");
    let second = world.bindings[0].1.addr.clone();
    assert_ne!(first, second);
    bound(&mut world, false);
    assert_eq!(begun(&world).unwrap(), (Outcome::ImageUnavailable, "no-such".to_owned()));
    assert_eq!(result(&world, behind).outcome, Outcome::ImageUnavailable);
    // Who asks for it next is told what was said.
    begin(&mut world, 1, with_image("docker://no-such:latest"));
    assert!(world.bindings.is_empty());
    assert_eq!(begun(&world).unwrap(), (Outcome::ImageUnavailable, "no-such".to_owned()));
    let stats = world.dispatch.stats(world.now);
    assert_eq!((stats.images.retries, stats.images.refusals), (1, 1));
    release(&mut world, 0);
    release(&mut world, 1);
    world.end().unwrap();
}

#[test]
fn trajectories_with_one_image_share_a_container_and_one_without_takes_another() {
    let mut world = World::new(&[2, 2], limits(), false);
    begin(&mut world, 0, with_image("python"));
    begin(&mut world, 1, with_image("python:latest"));
    call(&mut world, 2, true);
    let at: Vec<_> = world.bindings.iter().map(|(_, slot, _)| slot.addr.clone()).collect();
    assert_eq!(at[0], at[1]);
    assert_ne!(world.running[0].slot.unwrap().0, number(&at[0]));
    begin(&mut world, 3, with_image("python"));
    assert_eq!(world.bindings.len(), 2, "it waits for a moment");
    assert_eq!(world.dispatch.next_deadline(), Some(world.now + Duration::from_secs(2)));
    pass(&mut world, Duration::from_secs(2));
    assert_ne!(world.bindings[2].1.addr, at[0]);
    for _ in 0..3 {
        bound(&mut world, true);
    }
    let stats = world.dispatch.stats(world.now).images;
    assert_eq!((stats.hits, stats.joins, stats.pulls, stats.waits), (0, 1, 2, 1));
    world.end().unwrap();
}
