//! A process that was stopped for longer than its calls may take.

use super::*;

fn settle(world: &mut World) {
    world.deliver(usize::MAX);
    world.tick().unwrap();
    world.check().unwrap();
}

#[test]
fn what_has_ended_while_the_process_was_stopped_is_not_ended_for_its_silence() {
    let mut world = World::new(&[2], limits(), false);
    world.submit(0, true);
    world.submit(1, true);
    settle(&mut world);
    assert_eq!(world.running.len(), 2);
    world.now += Duration::from_secs(3600);
    world.dispatch.was_stopped(world.now);
    // There is nothing to be done at once: it would spin.
    assert_eq!(world.dispatch.next_deadline(), Some(world.now + CATCH_UP));
    settle(&mut world);
    world.now += CATCH_UP - Duration::from_nanos(1);
    settle(&mut world);
    // The one is answered late; another trajectory goes on meanwhile.
    world.step(Step::Answer(0, Outcome::Ok));
    world.submit(2, false);
    settle(&mut world);
    let outcome = |world: &World, index: usize| {
        world.submitted[index].peek().map(|result: ToolResult| result.outcome)
    };
    assert_eq!([0, 1].map(|index| outcome(&world, index)), [Some(Outcome::Ok), None]);
    assert_eq!(world.handlers, 1);
    // The other never is.
    world.now += Duration::from_nanos(1);
    settle(&mut world);
    assert_eq!(outcome(&world, 1), Some(Outcome::SandboxLost));
}
