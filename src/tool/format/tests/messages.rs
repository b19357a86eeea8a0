//! Messages, and the calls and results that are parts of them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::tool::format::{
    CallForm, CallParser, Format, MessageError, MessageForm, Repair, UnreadableCalls,
    is_model_message,
};
use crate::tool::{Outcome, ToolCall, ToolRegistry, ToolResult};

/// Name, arguments, form and id of each call of a message.
fn calls(message: &Value) -> Vec<(String, Value, String, String)> {
    let parsed = CallParser::new(Format::Auto).parse_message(message).unwrap();
    let calls = parsed.calls.into_iter().map(|call| {
        let form = call.origin.map_or("own", |origin| origin.form.as_str());
        (call.name, call.arguments, form.to_owned(), call.uniq_id)
    });
    calls.collect()
}

fn bash(form: &str, id: &str) -> (String, Value, String, String) {
    ("bash".to_owned(), json!({"command": "ls"}), form.to_owned(), id.to_owned())
}

const ARGUMENTS: &str = "{\"command\": \"ls\"}";

/// One call in every form, each with the id that it gives.
fn forms() -> [(MessageForm, Value); 4] {
    [
        (
            MessageForm::OpenAi,
            json!({"id": "c1", "type": "function",
                "function": {"name": "bash", "arguments": ARGUMENTS}}),
        ),
        (
            MessageForm::OpenAiResponses,
            json!({"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "bash",
                "arguments": ARGUMENTS, "status": "completed"}),
        ),
        (
            MessageForm::Anthropic,
            json!({"type": "tool_use", "id": "c1", "name": "bash", "input": {"command": "ls"}}),
        ),
        (MessageForm::OpenAiFunctionCall, json!({"name": "bash", "arguments": ARGUMENTS})),
    ]
}

#[test]
fn the_messages_of_every_form_give_their_calls_with_their_ids() {
    let [(_, openai), (_, responses), (_, anthropic), (_, legacy)] = forms();
    let text = "<tool_call>{\"name\": \"bash\", \"arguments\": {\"command\": \"pwd\"}}</tool_call>";
    for (message, expected) in [
        (
            json!({"role": "assistant", "content": text, "tool_calls": [openai, openai]}),
            vec![bash("openai", "c1"), bash("openai", "c1")],
        ),
        (responses.clone(), vec![bash("openai-responses", "c1")]),
        (
            json!({"role": "assistant", "content": [
                {"type": "thinking", "thinking": text},
                {"type": "text", "text": "I look."},
                anthropic,
                {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
            ]}),
            vec![bash("anthropic", "c1")],
        ),
    ] {
        assert_eq!(calls(&message), expected, "{message}");
    }
    let message = json!({"role": "assistant", "content": null, "function_call": legacy});
    let found = calls(&message);
    assert_eq!((&*found[0].0, &*found[0].2, found.len()), ("bash", "openai-function-call", 1));
    for value in [
        json!("{\"name\": \"bash\", \"arguments\": {\"command\": \"ls\"}}"),
        json!({"name": "bash", "arguments": {"command": "ls"}}),
        json!([{"name": "bash", "arguments": {"command": "ls"}}]),
    ] {
        let found = calls(&json!({"from": "function_call", "value": value}));
        assert_eq!((&found[0].1, &*found[0].2), (&json!({"command": "ls"}), "sharegpt"), "{value}");
    }
    for message in [
        json!({"role": "assistant", "content": text}),
        json!({"role": "assistant", "content": [{"type": "text", "text": text}], "tool_calls": []}),
        json!({"type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": text}]}),
        json!({"from": "gpt", "value": text}),
    ] {
        let found = calls(&message);
        assert_eq!((&found[0].1["command"], &*found[0].2), (&json!("pwd"), "hermes"), "{message}");
    }
}

#[test]
fn what_no_model_wrote_has_no_call() {
    let text = "<tool_call>{\"name\": \"bash\"}</tool_call>";
    for message in [
        json!({"role": "user", "content": text}),
        json!({"role": "tool", "tool_call_id": "c1", "content": text}),
        json!({"from": "observation", "value": text}),
        json!({"type": "function_call_output", "call_id": "c1", "output": text}),
        json!({"type": "reasoning", "summary": []}),
    ] {
        assert!(!is_model_message(&message), "{message}");
        assert_eq!(calls(&message), [], "{message}");
    }
    let error = CallParser::new(Format::Auto).parse_message(&json!("hi")).unwrap_err();
    assert_eq!(error.to_string(), "the message is a string, not an object");
    let wrong = json!({"role": "assistant", "tool_calls": {}});
    let error = CallParser::new(Format::Auto).parse_message(&wrong).unwrap_err();
    assert_eq!(error.to_string(), "\"tool_calls\" is an object, not an array");
}

#[test]
fn a_call_of_a_message_that_cannot_be_read_is_dealt_with_by_the_policy() {
    let [(_, good), ..] = forms();
    let message =
        json!({"role": "assistant", "tool_calls": [{"id": "c0", "function": {"x": 1}}, good]});
    let parser = |policy| CallParser::new(Format::Auto).unreadable(policy);
    let parsed = parser(UnreadableCalls::Answer).parse_message(&message).unwrap();
    let unreadable: Vec<_> = parsed.calls.iter().map(ToolCall::is_unreadable).collect();
    assert_eq!(unreadable, [true, false]);
    assert_eq!(parser(UnreadableCalls::Skip).parse_message(&message).unwrap().calls.len(), 1);
    let error = parser(UnreadableCalls::Error).parse_message(&message).unwrap_err();
    let MessageError::Unreadable(call) = &error else { panic!("{error}") };
    assert_eq!(call.form, CallForm::Message(MessageForm::OpenAi));
    assert!(error.to_string().contains("it has no \"name\""), "{error}");
}

#[test]
fn a_call_in_json_is_told_by_its_keys_and_keeps_its_id() {
    for (form, call) in forms() {
        assert_eq!(MessageForm::of_call(&call), Some(form), "{call}");
        let read = ToolCall::from_json(&call).unwrap();
        assert_eq!((&*read.name, &read.arguments), ("bash", &json!({"command": "ls"})));
        assert_eq!(read.origin.unwrap().form, CallForm::Message(form));
        let uuid = uuid::Uuid::parse_str(&read.uniq_id).is_ok();
        assert_eq!(uuid, form == MessageForm::OpenAiFunctionCall, "{call}");
        assert!(uuid || read.uniq_id == "c1", "{call}");
    }
    let mut call = ToolCall::bash("ls").with_uniq_id("u").with_timeout(Duration::from_secs(3));
    call.raw_text = "x".to_owned();
    assert_eq!(ToolCall::from_json(&serde_json::to_value(&call).unwrap()), Ok(call));
    let with_timeout = json!({"type": "tool_use", "name": "bash", "input": {}, "timeout_s": 1.5});
    let timeout = ToolCall::from_json(&with_timeout).unwrap().timeout;
    assert_eq!(timeout, Some(Duration::from_millis(1500)));
    for (wrong, words) in [
        (json!([]), "a call must be a JSON object, got an array"),
        (json!({"type": "custom", "name": "f"}), "its \"type\" is \"custom\"; it must be"),
        (json!({"type": "tool_use", "input": {}}), "it has no \"name\""),
        (json!({"name": "f", "timeout_s": -1}), "a number of seconds from 0"),
        (json!({"name": "f", "arguments": "{}", "input": {}}), "both \"arguments\" and \"input\""),
    ] {
        let error = ToolCall::from_json(&wrong).unwrap_err().to_string();
        assert!(error.contains(words), "{wrong}: {error}");
    }
}

#[test]
fn what_was_read_is_written_and_read_again_as_it_was() {
    let text = "<tool_call>{\"name\": \"bash\", \"arguments\": {\"command\": \"ls\",}}</tool_call>\
        <tool_call>{nonsense}</tool_call>\
        <tool_call><function=bash><parameter=timeout>5</parameter></function></tool_call>";
    let calls = ToolCall::parse(text, Format::Auto).calls;
    assert_eq!(calls.len(), 3);
    assert_eq!(calls[0].origin.as_ref().unwrap().repairs, [Repair::TrailingComma]);
    assert!(calls[1].is_unreadable());
    assert_eq!(calls[2].origin.as_ref().unwrap().untyped, ["timeout"]);
    for call in calls {
        assert_eq!(ToolCall::from_json(&serde_json::to_value(&call).unwrap()), Ok(call));
    }
}

#[test]
fn arguments_as_text_are_a_repair_only_where_the_form_has_an_object() {
    for (call, expected) in [
        (forms()[0].1.clone(), vec![]),
        (
            json!({"type": "tool_use", "id": "c1", "name": "bash", "input": ARGUMENTS}),
            vec![Repair::ArgumentsAsText],
        ),
    ] {
        let call = ToolCall::from_json(&call).unwrap();
        assert_eq!(call.arguments, json!({"command": "ls"}));
        assert_eq!(call.origin.unwrap().repairs, expected);
    }
}

#[test]
fn types_that_the_schema_has_are_given_to_the_calls_of_a_message() {
    let text = "<tool_call><function=bash><parameter=command>7</parameter>\
        <parameter=timeout>5</parameter></function></tool_call>";
    let registry = ToolRegistry::builtin();
    let parser = CallParser::new(Format::Auto).registry(&registry);
    let parsed = parser.parse_message(&json!({"role": "assistant", "content": text})).unwrap();
    assert_eq!(parsed.calls[0].arguments, json!({"command": "7", "timeout": 5}));
}

#[test]
fn a_result_is_answered_in_every_form_with_the_id_of_its_call() {
    let mut result = ToolResult::failure(Outcome::NonZeroExit, "Exit code: 3");
    result.output = "out".to_owned();
    result.uniq_id = Some("c1".to_owned());
    let text = "out\nError: Exit code: 3";
    for (form, message) in [
        (MessageForm::OpenAi, json!({"role": "tool", "tool_call_id": "c1", "content": text})),
        (MessageForm::OpenAiFunctionCall, json!({"role": "function", "content": text})),
        (
            MessageForm::OpenAiResponses,
            json!({"type": "function_call_output", "call_id": "c1", "output": text}),
        ),
        (
            MessageForm::Anthropic,
            json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1",
                "content": text, "is_error": true}]}),
        ),
        (MessageForm::ShareGpt, json!({"from": "tool", "value": result.to_xml()})),
    ] {
        assert_eq!(result.to_message(form), message, "{form}");
        assert_eq!(form.as_str().parse(), Ok(form));
    }
    let mut fine = ToolResult::ok("");
    fine.uniq_id = Some("c2".to_owned());
    let message = fine.to_message(MessageForm::Anthropic);
    assert_eq!(message["content"][0].get("is_error"), None, "{message}");
    assert_eq!(fine.to_text(), "");
    assert_eq!(ToolResult::failure(Outcome::ToolError, "no").to_text(), "Error: no");
}

#[test]
fn arguments_as_text_have_small_damage_repaired_as_calls_have() {
    let call = |arguments: &str| {
        let call = json!({"id": "c1", "type": "function",
            "function": {"name": "bash", "arguments": arguments}});
        let call = ToolCall::from_json(&call).unwrap();
        (call.arguments, call.origin.unwrap().repairs)
    };
    let ls = json!({"command": "ls"});
    assert_eq!(call(" {\"command\": \"ls\",}\n"), (ls, vec![Repair::TrailingComma]));
    let two_lines = json!({"command": "ls\npwd"});
    assert_eq!(call("{\"command\": \"ls\npwd\"}"), (two_lines, vec![Repair::RawControlCharacter]));
    // What is no object, and what goes on behind it, is the executor's to refuse.
    for text in ["{\"command\": \"ls\"} and more", "{\"command\"", "[1]"] {
        assert_eq!(call(text), (json!(text), vec![]));
    }
    // In a block of text the string itself is unusual, and said, too.
    let text = "<tool_call>{\"name\": \"bash\", \"arguments\": \"{\\\"command\\\": \\\"ls\\\",}\"}</tool_call>";
    let call = ToolCall::parse(text, Format::Hermes).calls.pop().unwrap();
    assert_eq!(call.arguments, json!({"command": "ls"}));
    assert_eq!(call.origin.unwrap().repairs, [Repair::ArgumentsAsText, Repair::TrailingComma]);
}
