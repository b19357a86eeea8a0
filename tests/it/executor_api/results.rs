//! How results say how a call ended, and the status who is idle.

use super::*;

/// How a body says that a call ended.
fn ending(body: &Value) -> (&str, bool, bool) {
    let is = |key: &str| body[key].as_bool().unwrap_or_else(|| panic!("no {key}: {body}"));
    let outcome = body["outcome"].as_str().unwrap_or_else(|| panic!("no outcome: {body}"));
    (outcome, is("may_have_executed"), is("model_attributable"))
}

#[test]
fn every_outcome_is_in_the_body_and_in_the_line_of_a_batch() {
    let (backend, told) = HandsOver::new(2);
    let served = Served::open(backend);
    for outcome in Outcome::ALL {
        let result = ToolResult::failure(outcome, "why");
        let expected = (outcome.as_str(), result.may_have_executed, outcome.model_attributable());
        let mut client = served.client();
        client.post("/execute", &call_of(outcome.as_str(), "c"));
        next(&told).execution().reply.send(result.clone());
        let answer = client.receive();
        let body = answer.json();
        assert_eq!(ending(&body), expected);
        assert_eq!(body["success"], outcome == Outcome::Ok);
        let model = if expected.2 { "true" } else { "false" };
        assert_eq!(answer.headers["x-tool-model-attributable"], model, "{outcome}");
        let names: Vec<_> = body.as_object().unwrap().keys().take(5).collect();
        assert_eq!(names, ["success", "output", "error", "metadata", "uniq_id"]);

        let mut batch = served.client();
        let batch_id = format!("{outcome} in a batch");
        batch.post("/execute_batch", &json!({"calls": [call_of(&batch_id, "c")]}));
        next(&told).execution().reply.send(result);
        batch.head();
        let line = batch.line().unwrap();
        assert_eq!((ending(&line), ending(&line["result"])), (expected, expected));
        for trajectory_id in [outcome.as_str(), &batch_id] {
            let release = thread::scope(|scope| {
                let released = scope.spawn(|| {
                    let body = json!({"trajectory_id": trajectory_id, "reset_workspace": true});
                    served.post("/release", &body)
                });
                // The slot of a call whose sandbox was lost is emptied later, for the next one.
                if outcome != Outcome::SandboxLost {
                    next(&told).reset().1.send(Ok(()));
                }
                released.join().unwrap()
            });
            assert_eq!(release.status, 200);
        }
        if outcome == Outcome::SandboxLost {
            return_slots(&served, &told);
        }
    }
}

/// Has the slots that were lost emptied, for a trajectory that wants one.
fn return_slots(served: &Served, told: &crossbeam_channel::Receiver<Told>) {
    for trajectory_id in ["one", "two"] {
        let mut client = served.client();
        client.post("/execute", &call_of(trajectory_id, "c"));
        next(told).reset().1.send(Ok(()));
        next(told).execution().reply.send(ToolResult::ok(""));
        client.receive();
    }
    for trajectory_id in ["one", "two"] {
        served.executor.submit_release(trajectory_id);
        next(told).reset().1.send(Ok(()));
    }
}

#[test]
fn calls_that_are_refused_at_the_door_say_how_they_ended_too() {
    let served = Served::open(Echoes(1));
    for (name, arguments, outcome, model) in [
        ("nope", json!({}), "unknown_tool", true),
        ("bash", json!({}), "invalid_call", true),
        ("bash", json!({"command": 7}), "invalid_call", true),
        ("terminal", json!({"command": "x", "background": true}), "invalid_call", true),
    ] {
        let tool = json!({"name": name, "arguments": arguments, "uniq_id": "u"});
        let call = json!({"trajectory_id": "t", "tool": tool});
        let body = served.post("/execute", &call).json();
        assert_eq!(ending(&body), (outcome, false, model), "{name} {arguments}");
        let mut batch = served.client();
        batch.post("/execute_batch", &json!({"calls": [call]}));
        batch.head();
        assert_eq!(ending(&batch.line().unwrap()), (outcome, false, model), "{name} {arguments}");
    }
    let long = json!({"trajectory_id": "x".repeat(600), "tool": {"name": "bash", "uniq_id": "u"}});
    assert_eq!(ending(&served.post("/execute", &long).json()), ("invalid_call", false, true));
    served.executor.close();
    let late = served.post("/execute", &call_of("t", "late")).json();
    assert_eq!(ending(&late), ("never_ran", false, false));
}

#[test]
fn idle_holders_are_in_the_status_and_their_names_are_for_those_with_the_token() {
    let served = Served::with_token(Echoes(2));
    let headers = [("Authorization", "Bearer s3cret")];
    let mut client = served.client();
    for trajectory_id in ["first", "second"] {
        let body = call_of(trajectory_id, "c").to_string();
        client.ask("POST", "/execute", &headers, body.as_bytes());
    }
    // A third one waits for a slot.
    let mut waiting = served.client();
    waiting.send("POST", "/execute", &headers, call_of("third", "c").to_string().as_bytes());
    served.until_status(|status| status["waiting_for_slot"] == 1);
    let status = client.ask("GET", "/status", &headers, b"").json();
    assert_eq!(status["idle_slots"], 2);
    assert_eq!(status["idle_holders"][0]["trajectory_id"], "first");
    assert_eq!(status["idle_holders"][1]["trajectory_id"], "second");
    assert!(
        status["idle_holders"][0]["idle_s"].as_f64()
            >= status["idle_holders"][1]["idle_s"].as_f64()
    );
    assert!(status["stalled_s"].is_f64(), "{status}");
    let stranger = served.get("/status").json();
    let holder = stranger["idle_holders"][0].as_object().unwrap();
    assert!(holder.keys().eq(["idle_s"]), "{stranger}");
    let metrics = client.ask("GET", "/metrics", &headers, b"");
    assert!(metrics.text().lines().any(|line| line == "tool_executor_idle_slots 2"));

    let release = json!({"trajectory_id": "first", "reset_workspace": true}).to_string();
    client.ask("POST", "/release", &headers, release.as_bytes());
    assert_eq!(waiting.receive().json()["output"], "c");
    let status = served.get("/status").json();
    assert_eq!((&status["waiting_for_slot"], &status["stalled_s"]), (&json!(0), &json!(null)));
}
