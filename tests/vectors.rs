//! The text formats against input and output pairs that were recorded from the reference.
//!
//! Where we deviate on purpose, the test names the vector and says what we give instead. The files
//! hold `NaN` and lone surrogates, so they are themselves read in Python's dialect.

use serde_json::{Value, json};
use tool_executor::{JsonObject, Outcome, ToolCall, ToolResult, ToolSchema, python_json};

/// Each vector file is a list of objects.
fn vectors(text: &str) -> Vec<Value> {
    match python_json::parse(text).expect("a vector file is JSON in Python's dialect") {
        Value::Array(vectors) => vectors,
        other => panic!("a vector file is a list, not {other}"),
    }
}

fn string(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn object(value: &Value) -> JsonObject {
    value.as_object().expect("an object").clone()
}

/// The value's text, in which the order of an object's keys counts.
fn text(value: impl Into<Value>) -> String {
    value.into().to_string()
}

#[test]
fn parse_from_text_finds_the_calls_that_the_reference_finds() {
    let vectors = vectors(include_str!("vectors/parse_from_text.json"));
    assert_eq!(vectors.len(), 55);
    for vector in vectors {
        let input = string(&vector["text"]);
        assert_eq!(ToolCall::has_tool_call(&input), vector["has_tool_call"], "{input}");

        let calls = ToolCall::parse_from_text(&input);
        let expected = vector["calls"].as_array().expect("a list");
        assert_eq!(calls.len(), expected.len(), "{input}");
        for (call, expected) in calls.iter().zip(expected) {
            assert_eq!(call.name, expected["name"], "{input}");
            assert_eq!(call.raw_text, expected["raw_text"], "{input}");
            assert_eq!(text(call.arguments.clone()), text(expected["arguments"].clone()));
            match &expected["uniq_id"] {
                Value::String(id) if id == "<uuid4>" => {
                    let id = uuid::Uuid::parse_str(&call.uniq_id).expect("a UUID");
                    assert_eq!(id.get_version_num(), 4);
                }
                Value::String(id) => assert_eq!(&call.uniq_id, id),
                // Deviation: our ids are strings, so an id that is none becomes its JSON text.
                id => assert_eq!(call.uniq_id, id.to_string()),
            }
        }
    }
}

/// Reading the vectors in the same dialect hides these from the test above.
#[test]
fn what_a_json_value_cannot_hold_is_read_as_what_comes_nearest() {
    for (arguments, ours) in [
        (r#"{"x":NaN,"y":Infinity}"#, json!({"x": null, "y": null})),
        (r#"{"s":"\ud83d"}"#, json!({"s": "\u{fffd}"})),
        (
            r#"{"n":1e999,"big":123456789012345678901234567890,"f":1.0}"#,
            json!({"n": null, "big": 123456789012345678901234567890.0, "f": 1.0}),
        ),
    ] {
        let input = format!("<tool_call>{{\"name\":\"a\",\"arguments\":{arguments}}}</tool_call>");
        let recorded = include_str!("vectors/parse_from_text.json");
        assert!(recorded.contains(text(input.as_str()).as_str()), "no vector {input}");
        assert_eq!(ToolCall::parse_from_text(&input)[0].arguments, ours);
    }
}

#[test]
fn to_xml_writes_what_the_reference_writes() {
    let vectors = vectors(include_str!("vectors/to_xml.json"));
    assert_eq!(vectors.len(), 7);
    for vector in vectors {
        let input = &vector["in"];
        let mut result = match input["success"] == true {
            true => ToolResult::ok(string(&input["output"])),
            false => ToolResult::failure(Outcome::ToolError, string(&input["error"])),
        };
        result.output = string(&input["output"]);
        result.metadata = object(&input["metadata"]);
        result.uniq_id = input["uniq_id"].as_str().map(str::to_owned);

        // Deviation: a string of ours cannot hold a lone surrogate.
        let expected = string(&vector["xml"]).replace("\\ud800", "\\ufffd");
        assert_eq!(result.to_xml(), expected);
        assert_eq!(text(result.to_dict()), text(input.clone()));
    }
}

#[test]
fn schemas_are_told_as_the_reference_tells_them() {
    let vectors = vectors(include_str!("vectors/schema.json"));
    assert_eq!(vectors.len(), 3);
    for vector in vectors {
        let required = vector["required"].as_array().expect("a list");
        let mut schema = ToolSchema::new(string(&vector["name"]), string(&vector["description"]));
        schema.parameters = object(&vector["parameters"]);
        schema.required = required.iter().map(string).collect();
        schema.external = vector["external"] == true;
        assert_eq!(text(schema.to_dict()), text(vector["to_dict"].clone()));
        assert_eq!(schema.to_prompt_description(), vector["prompt"]);
    }
}
