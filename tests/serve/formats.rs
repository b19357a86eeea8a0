//! What models write, over HTTP: `/parse`, and calls as the APIs of models give them.

use super::*;

#[test]
fn what_a_model_wrote_is_read_run_and_answered_in_its_form() {
    let program = Program::serve(&["--slots", "2"], &[]);
    let text = "<tool_call>{\"name\": \"bash\", \"arguments\": {\"command\": \"echo a\",}}</tool_call>\
        <tool_call>{nonsense}</tool_call>[TOOL_CALLS]bash[ARGS]{\"command\": \"echo b\"}";
    let parsed = program.post("/parse", &json!({"text": text}));
    let calls = parsed["calls"].as_array().unwrap();
    let ids: Vec<&Value> = calls.iter().map(|call| &call["uniq_id"]).collect();
    assert_eq!(ids.len(), 3, "{parsed}");
    let repairs = json!([{"index": 0, "uniq_id": ids[0], "repairs": ["trailing_comma"]}]);
    assert_eq!(parsed["repairs"], repairs);
    let problem = &parsed["problems"][0];
    assert_eq!((&problem["index"], &problem["uniq_id"]), (&json!(1), ids[1]));
    let error = problem["error"].as_str().unwrap();
    assert!(error.starts_with("The tool call at line 1, column "), "{error}");
    // Both ways of giving a call keep what was read: the damage that was mended, and the problem.
    for key in ["tool", "call"] {
        let answers: Vec<_> = calls
            .iter()
            .map(|call| program.post("/execute", &json!({"trajectory_id": "t", key: call})))
            .collect();
        assert_eq!(answers[0]["metadata"]["call_repairs"], json!(["trailing_comma"]), "{key}");
        let outcomes: Vec<_> = answers.iter().map(|answer| &answer["outcome"]).collect();
        assert_eq!(outcomes, ["ok", "invalid_call", "ok"], "{key}");
        assert_eq!((&answers[1]["error"], &answers[2]["output"]), (&json!(error), &json!("b")));
        assert!(answers.iter().all(|answer| answer.get("message").is_none()), "{answers:?}");
    }

    // Calls of the APIs, as they are, are answered in their form, and in the reference's.
    let arguments = "{\"command\": \"echo hi\"}";
    let openai = json!({"id": "c1", "type": "function",
        "function": {"name": "bash", "arguments": arguments}});
    let responses = json!({"type": "function_call", "call_id": "c2", "name": "bash",
        "arguments": arguments});
    let anthropic = json!({"type": "tool_use", "id": "c3", "name": "bash",
        "input": {"command": "echo hi"}});
    let legacy = json!({"name": "bash", "arguments": arguments});
    let expected = [
        (openai.clone(), json!({"role": "tool", "tool_call_id": "c1", "content": "hi"})),
        (responses, json!({"type": "function_call_output", "call_id": "c2", "output": "hi"})),
        (
            anthropic,
            json!({"role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c3", "content": "hi"}]}),
        ),
        (legacy, json!({"role": "function", "name": "bash", "content": "hi"})),
    ];
    for (call, message) in &expected {
        let answer = program.post("/execute", &json!({"trajectory_id": "t", "call": call}));
        assert_eq!((&answer["output"], &answer["message"]), (&json!("hi"), message), "{answer}");
    }
    let batch: Vec<_> =
        expected.iter().map(|(call, _)| json!({"trajectory_id": "t", "call": call})).collect();
    let answer = program.ask("POST", "/execute_batch", &json!({"calls": batch}));
    for line in answer.text().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let index = line["index"].as_u64().unwrap() as usize;
        assert_eq!(line["result"]["message"], expected[index].1);
    }
    let message = json!({"role": "assistant", "content": null, "tool_calls": [openai]});
    let parsed = program.post("/parse", &json!({"message": message, "format": "hermes"}));
    assert_eq!((&parsed["calls"][0]["uniq_id"], &parsed["problems"]), (&json!("c1"), &json!([])));
    // What was read of a message remembers its form.
    let request = json!({"trajectory_id": "t", "call": parsed["calls"][0]});
    assert_eq!(program.post("/execute", &request)["message"], expected[0].1);

    for (path, body, words) in [
        ("/parse", json!({}), "Field required"),
        ("/parse", json!({"text": "x", "format": "yaml"}), "no format is named"),
        ("/parse", json!({"text": "x", "message": {}}), "give one of the two"),
        ("/parse", json!({"message": {"role": "assistant", "tool_calls": 7}}), "not an array"),
        ("/execute", json!({"trajectory_id": "t", "call": {"type": "custom"}}), "it must be"),
        ("/execute", json!({"trajectory_id": "t", "call": {}, "tool": {}}), "give one of the two"),
    ] {
        let answer = program.ask("POST", path, &body);
        assert_eq!(
            (answer.status, answer.text().contains(words)),
            (422, true),
            "{}",
            answer.text()
        );
    }
    let mut stranger = Client::connect(program.addr);
    stranger.send("POST", "/parse", &[], br#"{"text": "x"}"#);
    assert!(matches!(stranger.receive().status, 401 | 403));
}
