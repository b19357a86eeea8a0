//! Batches whose answer is streamed, and clients that go away.

use crossbeam_channel::Receiver;
use serde_json::json;
use tool_executor::backend::Execution;
use tool_executor::{Outcome, ToolResult};

use super::{Served, call_of};
use crate::fakes::{Echoes, HandsOver, Told, command, next};

fn commands(told: &Receiver<Told>, calls: usize) -> Vec<Execution> {
    let mut executions: Vec<_> = (0..calls).map(|_| next(told).execution()).collect();
    executions.sort_by(|a, b| command(a).cmp(command(b)));
    executions
}

#[test]
fn a_batch_tells_of_each_call_the_moment_it_ends() {
    let (backend, told) = HandsOver::new(2);
    let served = Served::open(backend);
    let mut client = served.client();
    let nope = json!({"trajectory_id": "c", "tool": {"name": "nope", "uniq_id": "u"}});
    client
        .post("/execute_batch", &json!({"calls": [call_of("a", "slow"), call_of("b", "é"), nope]}));
    let head = client.head();
    assert_eq!((head.status, &*head.headers["content-type"]), (200, "application/x-ndjson"));
    let refused = client.line().unwrap();
    assert_eq!((&refused["index"], &refused["outcome"]), (&json!(2), &json!("unknown_tool")));
    assert_eq!(refused["may_have_executed"], false);
    let [fast, slow]: [_; 2] = {
        let mut executions = commands(&told, 2);
        executions.sort_by_key(|execution| command(execution) == "slow");
        executions.try_into().ok().unwrap()
    };
    fast.reply.send(ToolResult::ok("é"));
    let line = client.line().unwrap();
    assert_eq!(
        line["result"],
        json!({"success": true, "output": "é", "error": "", "metadata": {}, "uniq_id": "é",
            "outcome": "ok", "may_have_executed": true, "model_attributable": true})
    );
    assert_eq!((&line["index"], &line["trajectory_id"]), (&json!(1), &json!("b")));
    assert_eq!((&line["outcome"], &line["may_have_executed"]), (&json!("ok"), &json!(true)));
    for part in ["queue", "slot", "exec"] {
        assert!(line["timing_ms"][part].as_f64().is_some_and(|ms| ms >= 0.0), "{line}");
    }
    slow.reply.send(ToolResult::failure(Outcome::Timeout, "late"));
    let line = client.line().unwrap();
    assert_eq!((&line["index"], &line["outcome"]), (&json!(0), &json!("timeout")));
    assert!(client.line().is_none(), "the end");
    // The connection is good for more.
    assert_eq!(client.ask("GET", "/health", &[], b"").status, 200);
}

#[test]
fn an_empty_batch_ends_at_once_and_a_large_one_is_complete() {
    let served = Served::open(Echoes(8));
    let mut client = served.client();
    client.post("/execute_batch", &json!({"calls": []}));
    assert_eq!(client.head().status, 200);
    assert!(client.line().is_none());
    let calls: Vec<_> =
        (0..1000).map(|n| call_of(&format!("t{}", n % 8), &n.to_string())).collect();
    client.post("/execute_batch", &json!({"calls": calls}));
    client.head();
    let mut seen: Vec<_> = std::iter::from_fn(|| client.line())
        .map(|line| {
            assert_eq!(line["result"]["output"], line["index"].to_string());
            line["index"].as_u64().unwrap()
        })
        .collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..1000));
}

#[test]
fn a_client_that_goes_away_cancels_its_running_call() {
    let (backend, told) = HandsOver::new(1);
    let served = Served::open(backend);
    let mut client = served.client();
    client.post("/execute", &call_of("t", "c"));
    let execution = next(&told).execution();
    drop(client);
    match next(&told) {
        Told::Cancel(id) => assert_eq!(id, execution.id),
        other => panic!("expected a cancel, got {}", command(&other.execution())),
    }
    assert!(execution.reply.is_cancelled());
}

#[test]
fn a_client_that_goes_away_cancels_its_waiting_call() {
    let (backend, told) = HandsOver::new(1);
    let served = Served::open(backend);
    let (mut client, mut leaves) = (served.client(), served.client());
    client.post("/execute", &call_of("t", "runs"));
    let execution = next(&told).execution();
    leaves.post("/execute", &call_of("t", "waits"));
    served.until_status(|status| status["queue_size"] == 1);
    drop(leaves);
    served.until_status(|status| status["queue_size"] == 0);
    execution.reply.send(ToolResult::ok("ran"));
    assert_eq!(client.receive().json()["output"], "ran");
    assert_eq!(served.executor.stats().outcomes.get(Outcome::Cancelled), 1);
    assert!(told.is_empty(), "nothing of it was sent");
}

#[test]
fn a_client_that_goes_away_cancels_what_is_left_of_its_batch() {
    let (backend, told) = HandsOver::new(3);
    let served = Served::open(backend);
    let mut client = served.client();
    let calls = ["a", "b", "c"].map(|name| call_of(name, name));
    client.post("/execute_batch", &json!({"calls": calls}));
    assert_eq!(client.head().status, 200, "before anything has ended");
    let mut executions = commands(&told, 3);
    executions.remove(0).reply.send(ToolResult::ok(""));
    assert_eq!(client.line().unwrap()["index"], 0);
    drop(client);
    let mut cancelled: Vec<_> = (0..2)
        .map(|_| match next(&told) {
            Told::Cancel(id) => id.0,
            other => panic!("expected a cancel, got {}", command(&other.execution())),
        })
        .collect();
    cancelled.sort_unstable();
    let mut left: Vec<_> = executions.iter().map(|execution| execution.id.0).collect();
    left.sort_unstable();
    assert_eq!(cancelled, left);
}
