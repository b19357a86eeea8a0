//! Trajectories that begin with a spec, as a user of the library sees them.

use std::thread;
use std::time::Duration;

use tool_executor::config::ExecutorConfig;
use tool_executor::{BeginError, BeginFailure, Outcome, SpecField, ToolExecutor, TrajectorySpec};

use crate::fakes::{Echoes, HandsOver, Panics, bash, next};

fn executor(backend: impl tool_executor::backend::Backend) -> ToolExecutor {
    ToolExecutor::builder().backend(backend).start().unwrap()
}

fn spec() -> TrajectorySpec {
    TrajectorySpec::default().with_env([("A".to_owned(), "b".to_owned())].into())
}

fn failure(error: BeginError) -> BeginFailure {
    match error {
        BeginError::Failed(failure) => failure,
        other => panic!("expected that it failed: {other}"),
    }
}

#[test]
fn a_begin_blocks_until_its_slot_is_made_and_calls_wait_behind_it() {
    let (backend, told) = HandsOver::new(1);
    let executor = executor(backend);
    thread::scope(|scope| {
        let begin = scope.spawn(|| executor.begin("t", spec()));
        let (slot, asked, reply) = next(&told).begin();
        assert_eq!((&*slot.name, &*asked), ("slot_0", &spec()));
        let call = executor.submit("t", bash("first")).unwrap();
        assert!(!begin.is_finished() && !call.is_done());
        reply.send(Ok(()));
        begin.join().unwrap().unwrap();
        let execution = next(&told).execution();
        assert_eq!(execution.slot, slot);
        execution.reply.send(tool_executor::ToolResult::ok("done"));
        assert_eq!(call.wait().output, "done");
    });
    assert!(matches!(executor.begin("t", spec()), Err(BeginError::AlreadyBegun)));
    let stats = executor.stats();
    assert_eq!(stats.outcomes.total(), 1, "a begin is no call");
    assert_eq!((stats.begins.total(), stats.begins.get(Outcome::Ok)), (1, 1));
}

#[test]
fn a_refusal_is_the_begins_error_and_the_result_of_its_calls_until_the_release() {
    let (backend, told) = HandsOver::new(1);
    let executor = executor(backend);
    executor.submit_begin("t", spec()).unwrap();
    let call = executor.submit("t", bash("x")).unwrap();
    next(&told).begin().2.send(Err(BeginFailure::image_unavailable("no such image")));
    let result = call.wait();
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::ImageUnavailable, false));
    assert!(!result.model_attributable());
    assert!(result.error.contains("no such image"), "{result:?}");
    let stats = executor.stats();
    assert_eq!((stats.begins.total(), stats.begins.get(Outcome::ImageUnavailable)), (1, 1));
    assert_eq!(executor.execute("t", bash("x")).outcome, Outcome::ImageUnavailable);
    next(&told).reset().1.send(Ok(()));
    executor.release("t").unwrap();
    thread::scope(|scope| {
        let begin = scope.spawn(|| executor.begin("t", spec()));
        next(&told).begin().2.send(Err(BeginFailure::image_unusable("no shell")));
        let failure = failure(begin.join().unwrap().unwrap_err());
        assert_eq!(
            (failure.outcome(), failure.to_string().as_str()),
            (Outcome::ImageUnusable, "no shell")
        );
        next(&told).reset().1.send(Ok(()));
    });
}

#[test]
fn what_makes_no_sense_is_refused_at_the_door_and_changes_nothing() {
    let executor = executor(Echoes(1));
    let wrong = TrajectorySpec::default().with_workdir("app");
    let error = executor.begin("t", wrong.clone()).unwrap_err().to_string();
    assert!(error.starts_with("invalid spec: workdir is \"app\""), "{error}");
    assert!(matches!(executor.submit_begin("t", wrong), Err(BeginError::Invalid(_))));
    let error = executor.begin("", spec()).unwrap_err().to_string();
    assert!(error.contains("the trajectory id is empty"), "{error}");
    assert_eq!(executor.execute("t", bash("fine")).output, "fine");
    assert!(matches!(executor.begin("t", spec()), Err(BeginError::AlreadyBegun)));
    executor.close();
    assert!(matches!(executor.begin("u", spec()), Err(BeginError::Closed)));
}

#[test]
fn a_backend_that_knows_no_specs_refuses_those_that_ask_for_something_and_takes_the_others() {
    let executor = executor(Echoes(1));
    assert!(executor.capabilities().spec.is_empty());
    let failure = failure(executor.begin("t", spec()).unwrap_err());
    assert_eq!(failure.outcome(), Outcome::SpecUnsupported);
    let text = "this sandbox cannot give env; it has max_wall_s and max_idle_s only";
    assert_eq!(failure.to_string(), text);
    assert!(spec().asks_for().eq([SpecField::Env]));
    executor.release("t").unwrap();
    let wall = TrajectorySpec::default().with_max_wall(Duration::from_secs(100));
    executor.begin("t", wall).unwrap();
    assert_eq!(executor.execute("t", bash("fine")).output, "fine");
}

#[test]
fn a_backend_that_panics_or_answers_nothing_has_failed() {
    let panics = executor(Panics);
    let error = failure(panics.begin("t", spec()).unwrap_err());
    assert_eq!(error.outcome(), Outcome::BackendFailed);

    let (backend, told) = HandsOver::new(1);
    let config = ExecutorConfig::default().with_begin_timeout(Duration::from_millis(20));
    let executor = ToolExecutor::builder().config(config).backend(backend).start().unwrap();
    let error = failure(executor.begin("t", spec()).unwrap_err());
    assert_eq!(error.outcome(), Outcome::BackendFailed);
    let (_, _, reply) = next(&told).begin();
    // Its slot is not given out before a reset.
    let other = executor.submit("u", bash("x")).unwrap();
    let (_, reset) = next(&told).reset();
    reply.send(Ok(()));
    reset.send(Ok(()));
    next(&told).execution().reply.send(tool_executor::ToolResult::ok(""));
    assert!(other.wait().success);
}

#[test]
fn a_cancelled_trajectory_does_not_begin_and_a_closing_executor_ends_what_begins() {
    let (backend, told) = HandsOver::new(1);
    let executor = executor(backend);
    thread::scope(|scope| {
        let begin = scope.spawn(|| executor.begin("t", spec()));
        let (_, _, _reply) = next(&told).begin();
        executor.cancel_trajectory("t");
        let failure = failure(begin.join().unwrap().unwrap_err());
        assert_eq!(failure.outcome(), Outcome::Cancelled);
    });
    assert_eq!(executor.execute("t", bash("x")).outcome, Outcome::Cancelled);
    thread::scope(|scope| {
        let begin = scope.spawn(|| executor.begin("u", spec()));
        next(&told).reset().1.send(Ok(()));
        let (_, _, _reply) = next(&told).begin();
        executor.close_within(Duration::ZERO);
        let failure = failure(begin.join().unwrap().unwrap_err());
        assert_eq!(failure.outcome(), Outcome::NeverRan);
    });
}

#[test]
fn when_its_time_is_up_its_running_call_is_cancelled_and_says_so() {
    let (backend, told) = HandsOver::new(1);
    let executor = executor(backend);
    let wall = TrajectorySpec::default().with_max_wall(Duration::from_millis(50));
    executor.submit_begin("t", wall).unwrap();
    next(&told).begin().2.send(Ok(()));
    let call = executor.submit("t", bash("long")).unwrap();
    let execution = next(&told).execution();
    assert!(matches!(next(&told), crate::fakes::Told::Cancel(id) if id == execution.id));
    let mut result = crate::fakes::result(Outcome::Cancelled);
    result.output = "so far".to_owned();
    execution.reply.send(result);
    let result = call.wait();
    assert_eq!((result.outcome, &*result.output), (Outcome::TrajectoryExpired, "so far"));
    assert!(result.may_have_executed && !result.model_attributable());
    next(&told).reset().1.send(Ok(()));
    let later = executor.execute("t", bash("x"));
    assert_eq!((later.outcome, later.may_have_executed), (Outcome::TrajectoryExpired, false));
    executor.release("t").unwrap();
}
