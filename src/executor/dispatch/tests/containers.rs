//! Containers that come and go.

use super::*;

/// A world of two containers with a slot each, whose lanes send at once.
fn two_containers(on_lost: LostWorkspace) -> World {
    World::new(&[1, 1], Limits { on_lost, ..limits() }, false)
}

/// Delivers everything and lets the dispatch act.
fn settle(world: &mut World) {
    world.deliver(usize::MAX);
    world.tick().unwrap();
    world.check().unwrap();
}

fn container_of(world: &World, index: usize) -> usize {
    world.running[index].slot.unwrap().0
}

fn tell(world: &mut World, container: usize, change: ContainerChange) {
    world.send(Event::Container { addr: addr(container), change });
    settle(world);
}

#[test]
fn whoever_was_in_a_container_that_goes_down_is_told_until_it_is_released() {
    let mut world = two_containers(LostWorkspace::Refuse);
    world.submit(0, true);
    settle(&mut world);
    let dead = container_of(&world, 0);
    tell(&mut world, dead, ContainerChange::Lost);
    assert!(!world.submitted[0].is_done(), "its backend still owes the answer");
    world.step(Step::Answer(0, Outcome::SandboxLost));
    world.submit(0, true);
    settle(&mut world);
    assert!(world.submitted[1].is_done(), "not in another workspace without its knowing");
    world.step(Step::Release(0, false));
    world.submit(0, true);
    settle(&mut world);
    assert_ne!(container_of(&world, 0), dead);
    assert_eq!(world.dispatch.stats(world.now).containers.down, 1);
    world.end().unwrap();
}

#[test]
fn with_start_empty_the_next_call_runs_in_a_fresh_slot() {
    let mut world = two_containers(LostWorkspace::StartEmpty);
    world.submit(0, true);
    settle(&mut world);
    let dead = container_of(&world, 0);
    world.submit(0, true);
    tell(&mut world, dead, ContainerChange::Lost);
    assert_eq!(world.running.len(), 1, "one at a time, even so");
    world.step(Step::Answer(0, Outcome::SandboxLost));
    settle(&mut world);
    assert_ne!(container_of(&world, 0), dead);
    world.end().unwrap();
}

#[test]
fn a_call_that_was_not_sent_when_its_container_went_down_ends_at_once_and_had_no_effect() {
    let mut world = two_containers(LostWorkspace::Refuse);
    let window = BatchLimits { policy: BatchPolicy::Window, ..limits().batch };
    world.dispatch.limits.batch = window;
    world.submit(0, true);
    settle(&mut world);
    assert!(world.running.is_empty(), "it waits for company");
    let (_, slot) =
        (0..2).flat_map(|c| world.dispatch.pool.lost_by(c, &ContainerChange::Lost)).next().unwrap();
    let dead = world.dispatch.pool.container(slot);
    tell(&mut world, dead, ContainerChange::Restarted);
    let result = world.submitted.remove(0).try_wait().unwrap();
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::SandboxLost, false));
    assert_eq!(world.dispatch.pool.counts().held, 0);
}

#[test]
fn the_slot_of_a_call_that_still_runs_in_a_lost_workspace_is_not_freed_by_its_end() {
    let mut world = World::new(&[1], Limits { ..limits() }, false);
    world.submit(0, true);
    settle(&mut world);
    tell(&mut world, 0, ContainerChange::Restarted);
    world.submit(1, true);
    settle(&mut world);
    world.step(Step::ResetEnds(0, true));
    settle(&mut world);
    assert_eq!(world.running.len(), 2, "the slot is another one's now");
    world.step(Step::Answer(0, Outcome::Ok));
    settle(&mut world);
    assert_eq!(world.dispatch.pool.counts().held, 1);
    world.end().unwrap();
}

#[test]
fn an_unknown_container_gets_nobody_new_and_keeps_who_it_has() {
    let mut world = two_containers(LostWorkspace::Refuse);
    world.submit(0, true);
    settle(&mut world);
    let silent = container_of(&world, 0);
    tell(&mut world, silent, ContainerChange::Unreachable);
    world.submit(1, true);
    world.submit(2, true);
    settle(&mut world);
    assert_eq!(world.dispatch.waiting_for_slot, 1);
    let text = world.dispatch.explain_slots(world.now);
    assert!(text.contains("1 of 2 containers do not answer"), "{text}");
    world.step(Step::Answer(0, Outcome::Ok));
    world.submit(0, true);
    settle(&mut world);
    let again = world.running.iter().filter(|running| running.slot == Some((silent, 0)));
    assert_eq!(again.count(), 1);
    world.end().unwrap();
}

#[test]
fn a_reader_whose_slot_is_lost_learns_of_it_and_the_trajectory_goes_on_when_it_is_done() {
    let mut world = two_containers(LostWorkspace::Refuse);
    world.submit(0, true);
    settle(&mut world);
    let dead = container_of(&world, 0);
    world.step(Step::Answer(0, Outcome::Ok));
    world.step(Step::Lend(0));
    world.submit(0, true);
    settle(&mut world);
    assert_eq!((world.lent.len(), world.running.len()), (1, 0), "the call waits for the reader");
    tell(&mut world, dead, ContainerChange::Lost);
    assert!(world.lent[0].1.load(std::sync::atomic::Ordering::Acquire));
    assert!(!world.submitted[1].is_done());
    world.step(Step::Return(0));
    settle(&mut world);
    assert!(world.submitted[1].is_done(), "refused: its workspace was lost");
    world.end().unwrap();
}
