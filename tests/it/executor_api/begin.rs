//! Trajectories that begin with a spec, over HTTP.

use serde_json::json;
use tool_executor::{BeginFailure, ToolResult};

use super::{Served, call_of};
use crate::fakes::{Echoes, HandsOver, next, until};

#[test]
fn a_begin_is_answered_when_its_slot_is_made_and_a_refusal_is_a_result() {
    let (backend, told) = HandsOver::new(1);
    let served = Served::open(backend);
    let asked = json!({"trajectory_id": "t", "spec": {"env": {"A": "b"}}});
    let mut client = served.client();
    client.post("/begin", &asked);
    let (_, spec, reply) = next(&told).begin();
    assert_eq!(spec.env["A"], "b");
    reply.send(Ok(()));
    let head = client.head();
    assert_eq!((head.status, &*head.headers["x-tool-outcome"]), (200, "ok"));
    let again = served.post("/begin", &asked);
    assert_eq!(again.status, 409);
    assert!(again.text().contains("release it first"), "{}", again.text());
    let mut client = served.client();
    client.post("/execute", &call_of("t", "x"));
    next(&told).execution().reply.send(ToolResult::ok("done"));
    assert_eq!(client.head().status, 200);

    served.executor.submit_release("t");
    next(&told).reset().1.send(Ok(()));
    std::thread::scope(|scope| {
        let begin = scope.spawn(|| served.post("/begin", &asked));
        next(&told).begin().2.send(Err(BeginFailure::image_unavailable("no such image")));
        next(&told).reset().1.send(Ok(()));
        let answer = begin.join().unwrap();
        let expected = json!({"success": false, "output": "", "error": "no such image",
            "metadata": {}, "uniq_id": null, "outcome": "image_unavailable",
            "may_have_executed": false, "model_attributable": false});
        assert_eq!((answer.status, answer.json()), (200, expected));
    });
    let refused = served.post("/execute", &call_of("t", "x"));
    assert_eq!(refused.json()["outcome"], "image_unavailable");
}

#[test]
fn what_is_wrong_with_a_spec_is_told_by_name_and_nothing_begins() {
    let served = Served::open(Echoes(1));
    for (body, words) in [
        (json!({"trajectory_id": "t"}), "Field required"),
        (json!({"spec": {}}), "Field required"),
        (json!({"trajectory_id": "t", "spec": []}), "valid dictionary"),
        (json!({"trajectory_id": "t", "spec": {"imgae": "x"}}), "expected one of `image`"),
        (json!({"trajectory_id": "t", "spec": {"max_wall_s": 0}}), "must be above 0"),
        (json!({"trajectory_id": "", "spec": {}}), "the trajectory id is empty"),
    ] {
        let answer = served.post("/begin", &body);
        assert_eq!(answer.status, 422, "{body}");
        assert!(answer.text().contains(words), "{body}: {}", answer.text());
    }
    assert_eq!(served.post("/execute", &call_of("t", "fine")).json()["output"], "fine");
    let with_token = Served::with_token(Echoes(1));
    assert_eq!(with_token.post("/begin", &json!({"trajectory_id": "t", "spec": {}})).status, 401);
}

#[test]
fn a_client_that_goes_away_cancels_its_begin() {
    let (backend, told) = HandsOver::new(1);
    let served = Served::open(backend);
    let mut client = served.client();
    client.post("/begin", &json!({"trajectory_id": "t", "spec": {"env": {"A": "b"}}}));
    let (_, _, reply) = next(&told).begin();
    drop(client);
    let refused = || served.executor.execute("t", crate::fakes::bash("x")).outcome;
    until(|| served.executor.slot_of("t").is_none());
    assert_eq!(refused(), tool_executor::Outcome::Cancelled);
    drop(reply);
}
