//! What is answered at the door, and what a full queue does.

use std::error::Error;
use std::time::Duration;

use serde_json::json;
use tool_executor::backend::{Backend, Capabilities, Container, Execution, ResetReply, SlotRef};
use tool_executor::config::{ExecutorConfig, Policy};
use tool_executor::format::{Format, MessageForm};
use tool_executor::{
    BackendError, Interrupt, Outcome, StartError, SubmitError, ToolCall, ToolExecutor, ToolResult,
};

use crate::fakes::{Echoes, FailsToStart, HandsOver, PATIENCE, bash, next, one_container};

#[test]
fn a_call_that_is_wrong_in_itself_is_answered_at_once_and_never_takes_a_slot() {
    let executor = ToolExecutor::builder().backend(Echoes(1)).start().unwrap();
    let cases = [
        (ToolCall::new("nope", json!({})), Outcome::UnknownTool, "Unknown tool: nope"),
        (
            ToolCall::new("bash", json!([1])),
            Outcome::InvalidCall,
            "arguments must be a JSON object",
        ),
        (ToolCall::new("bash", json!({})), Outcome::InvalidCall, "'command'"),
        (
            ToolCall::new("terminal", json!({"command": "x", "background": true})),
            Outcome::InvalidCall,
            "terminal background execution is not supported in sandbox",
        ),
    ];
    let count = cases.len() as u64;
    for (call, outcome, text) in cases {
        let uniq_id = call.uniq_id.clone();
        let pending = executor.submit("t", call).unwrap();
        assert!(pending.is_done(), "answered before submit returns");
        let result = pending.wait();
        assert_eq!(result.outcome, outcome);
        assert!(result.error.contains(text), "{:?}", result.error);
        assert_eq!(result.uniq_id, Some(uniq_id));
        assert!(!result.success && !result.may_have_executed);
    }
    let stats = executor.stats();
    assert_eq!((stats.total_requests, stats.total_errors), (count, count));
    assert_eq!((stats.slots.held, stats.trajectories), (0, 0));
}

#[test]
fn an_empty_or_endless_trajectory_id_is_refused() {
    let executor = ToolExecutor::builder().backend(Echoes(1)).start().unwrap();
    for id in ["", &"x".repeat(513)] {
        let result = executor.execute(id, bash("x"));
        assert_eq!(result.outcome, Outcome::InvalidCall);
        assert!(result.error.contains("trajectory id"), "{}", result.error);
        assert!(result.uniq_id.is_some());
    }
}

#[test]
fn the_model_cannot_change_the_policy_and_aliases_arrive_under_their_wire_names() {
    let (backend, told) = HandsOver::new(1);
    let policy = Policy::default().with_allow_network(false);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_policy(policy))
        .start()
        .unwrap();
    let arguments = json!({"command": "x", "allow_network": true, "require_sandbox": false,
        "timeout": 7.5, "workdir": "kept"});
    let pending = executor.submit("t", ToolCall::new("terminal", arguments)).unwrap();
    let execution = next(&told).execution();
    assert_eq!(execution.tool, "bash");
    assert_eq!(execution.timeout, Duration::from_millis(7500));
    assert_eq!(
        serde_json::Value::Object(execution.arguments.clone()),
        json!({"command": "x", "workdir": "kept", "allow_network": false, "require_sandbox": false})
    );
    execution.reply.send(ToolResult::ok(""));
    pending.wait_timeout(PATIENCE).unwrap();
}

#[test]
fn a_full_queue_gives_the_call_back_and_a_blocking_submit_waits_for_room() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(
            ExecutorConfig::default()
                .with_queue_capacity(1)
                .with_queue_timeout(Duration::from_secs(60)),
        )
        .start()
        .unwrap();
    let running = executor.submit("t", bash("running")).unwrap();
    let execution = next(&told).execution(); // started: no longer in the queue
    let queued = executor.try_submit("t", bash("queued")).unwrap();
    let call = bash("refused").with_uniq_id("mine");
    let refused = executor.try_submit("t", call).unwrap_err();
    assert!(matches!(refused, SubmitError::QueueFull(_)));
    assert_eq!(refused.into_call().uniq_id, "mine", "the call is given back");
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| executor.submit("u", bash("blocked")).unwrap());
        execution.reply.send(ToolResult::ok("")); // `queued` starts, which makes room
        next(&told).execution().reply.send(ToolResult::ok(""));
        let blocked = blocked.join().unwrap();
        // One slot, which `t` holds: release it.
        executor.submit_release("t");
        next(&told).reset().1.send(Ok(()));
        next(&told).execution().reply.send(ToolResult::ok(""));
        assert!(blocked.wait_timeout(PATIENCE).unwrap().success);
    });
    assert!(running.wait_timeout(PATIENCE).unwrap().success);
    assert!(queued.wait_timeout(PATIENCE).unwrap().success);
}

#[test]
fn a_call_that_waits_in_the_queue_beyond_its_limit_ends_as_never_ran() {
    let (backend, told) = HandsOver::new(1);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_queue_timeout(Duration::from_millis(20)))
        .start()
        .unwrap();
    let running = executor.submit("t", bash("running")).unwrap();
    let execution = next(&told).execution();
    let queued = executor.submit("t", bash("queued")).unwrap();
    let result = queued.wait_timeout(PATIENCE).unwrap();
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::NeverRan, false));
    assert!(result.error.contains("queue time"), "{}", result.error);
    execution.reply.send(ToolResult::ok(""));
    assert!(running.wait_timeout(PATIENCE).unwrap().success, "the limit is for waiting only");
}

#[test]
fn settings_that_make_no_sense_and_backends_that_fail_are_errors_of_start() {
    let error = ToolExecutor::builder()
        .config(ExecutorConfig::default().with_max_batch_size(0))
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("max_batch_size is 0"), "{error}");
    let error = ToolExecutor::builder()
        .config(ExecutorConfig::default().with_io_threads(1000))
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("from 1 to 256"), "{error}");
    let error = ToolExecutor::builder().backend(FailsToStart).start().unwrap_err();
    assert!(matches!(error, StartError::Backend(_)));
    let backend = error.source().unwrap();
    assert_eq!(backend.to_string(), "no containers");
    assert_eq!(backend.source().unwrap().to_string(), "the cause");
}

#[test]
fn without_a_backend_sandbox_tools_say_so() {
    let executor = ToolExecutor::builder().start().unwrap();
    let result = executor.execute("t", bash("x"));
    assert_eq!(result.outcome, Outcome::NeverRan);
    assert!(result.error.contains("no sandbox backend"), "{}", result.error);
    assert_eq!(executor.stats().trajectories, 0);
}

#[test]
fn a_backend_without_a_time_limit_of_its_own_may_say_for_ever() {
    struct TakesForEver;
    impl Backend for TakesForEver {
        fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
            Ok(one_container(1))
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities::default().with_default_timeout(Duration::MAX)
        }
        fn execute(&self, addr: &str, batch: Vec<Execution>) {
            Echoes(1).execute(addr, batch);
        }
        fn reset(&self, slot: &SlotRef, reply: ResetReply) {
            Echoes(1).reset(slot, reply);
        }
    }
    let executor = ToolExecutor::builder().backend(TakesForEver).start().unwrap();
    assert_eq!(executor.execute("t", bash("x")).output, "x");
}

#[test]
fn what_a_model_wrote_runs_in_its_order_and_what_cannot_be_read_is_answered_in_its_turn() {
    let executor = ToolExecutor::builder().backend(Echoes(1)).start().unwrap();
    let text = "<tool_call>{\"name\": \"bash\", \"arguments\": {\"command\": \"a\",}}</tool_call>\
        <tool_call>{nonsense}</tool_call>\
        <tool_call><function=bash><parameter=command>7</parameter><parameter=timeout>5</parameter>\
        </function></tool_call>[TOOL_CALLS]bash[CALL_ID]abc123def[ARGS]{\"command\": \"d\"}";
    let calls = ToolCall::parse(text, Format::Auto).calls;
    let results: Vec<_> = calls.into_iter().map(|call| executor.execute("t", call)).collect();
    let outcomes: Vec<_> = results.iter().map(|result| result.outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok, Outcome::InvalidCall, Outcome::Ok, Outcome::Ok]);
    let outputs: Vec<_> = results.iter().map(|result| result.output.as_str()).collect();
    assert_eq!(outputs, ["a", "", "7", "d"]);

    assert_eq!(results[0].metadata["call_repairs"], json!(["trailing_comma"]));
    assert!(results[2..].iter().all(|result| !result.metadata.contains_key("call_repairs")));
    let unreadable = &results[1];
    assert!(unreadable.model_attributable() && !unreadable.may_have_executed);
    assert!(unreadable.error.starts_with("The tool call at line 1, column 72 could not be read: "));
    let facts = &unreadable.metadata["unreadable_call"];
    assert_eq!((&facts["form"], &facts["start"]), (&json!("hermes"), &json!(71)), "{facts}");

    let message = results[3].to_message(MessageForm::OpenAi);
    assert_eq!(message, json!({"role": "tool", "tool_call_id": "abc123def", "content": "d"}));
}
