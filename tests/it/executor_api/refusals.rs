//! What is not let in: bodies that are wrong or too large, and strangers.

use serde_json::{Value, json};

use super::{Served, call_of};
use crate::fakes::Echoes;

/// The entry of a 422.
fn problem(kind: &str, place: Value, message: &str, input: Value) -> Value {
    json!({"type": kind, "loc": place, "msg": message, "input": input})
}

#[test]
fn all_that_is_wrong_with_a_body_is_told() {
    let served = Served::open(Echoes(1));
    let tool = json!({"name": "n", "arguments": {}, "uniq_id": "u"});
    let read = |field: &str, value: Value| {
        let mut body = json!({"trajectory_id": "t", "path": "p"});
        body[field] = value;
        body
    };
    let model = "Input should be a valid dictionary or object to extract fields from";
    let text = "Input should be a valid string";
    let cases: Vec<(&str, Value, Vec<Value>)> = vec![
        (
            "/execute",
            json!({"trajectory_id": "t"}),
            vec![problem(
                "missing",
                json!(["body", "tool"]),
                "Field required",
                json!({"trajectory_id": "t"}),
            )],
        ),
        (
            "/execute",
            json!({"trajectory_id": 7, "tool": {"name": "n"}, "timeout_s": "x"}),
            vec![
                problem("string_type", json!(["body", "trajectory_id"]), text, json!(7)),
                problem(
                    "missing",
                    json!(["body", "tool", "uniq_id"]),
                    "Field required",
                    json!({"name": "n"}),
                ),
                problem(
                    "float_parsing",
                    json!(["body", "timeout_s"]),
                    "Input should be a valid number, unable to parse string as a number",
                    json!("x"),
                ),
            ],
        ),
        (
            "/execute",
            json!({"trajectory_id": null, "tool": [1]}),
            vec![
                problem("string_type", json!(["body", "trajectory_id"]), text, json!(null)),
                problem("model_attributes_type", json!(["body", "tool"]), model, json!([1])),
            ],
        ),
        (
            "/execute",
            json!({"trajectory_id": "t", "tool": {"name": "n", "arguments": null, "uniq_id": "u"}}),
            vec![problem(
                "dict_type",
                json!(["body", "tool", "arguments"]),
                "Input should be a valid dictionary",
                json!(null),
            )],
        ),
        (
            "/execute",
            json!([tool]),
            vec![problem("model_attributes_type", json!(["body"]), model, json!([tool]))],
        ),
        (
            "/execute",
            json!("x"),
            vec![problem("model_attributes_type", json!(["body"]), model, json!("x"))],
        ),
        (
            "/execute?status_code=x",
            json!({"trajectory_id": "t", "tool": tool}),
            vec![problem(
                "int_parsing",
                json!(["query", "status_code"]),
                "Input should be a valid integer, unable to parse string as an integer",
                json!("x"),
            )],
        ),
        (
            "/release",
            json!({"reset_workspace": "maybe"}),
            vec![
                problem(
                    "missing",
                    json!(["body", "trajectory_id"]),
                    "Field required",
                    json!({"reset_workspace": "maybe"}),
                ),
                problem(
                    "bool_parsing",
                    json!(["body", "reset_workspace"]),
                    "Input should be a valid boolean, unable to interpret input",
                    json!("maybe"),
                ),
            ],
        ),
        (
            "/artifacts/read",
            read("max_bytes", json!("x")),
            vec![problem(
                "int_parsing",
                json!(["body", "max_bytes"]),
                "Input should be a valid integer, unable to parse string as an integer",
                json!("x"),
            )],
        ),
        (
            "/artifacts/archive",
            read("max_entries", json!(1.5)),
            vec![problem(
                "int_from_float",
                json!(["body", "max_entries"]),
                "Input should be a valid integer, got a number with a fractional part",
                json!(1.5),
            )],
        ),
        (
            "/artifacts/read",
            read("encoding", json!("hex")),
            vec![json!({"type": "literal_error", "loc": ["body", "encoding"],
                "msg": "Input should be 'text' or 'base64'", "input": "hex",
                "ctx": {"expected": "'text' or 'base64'"}})],
        ),
        (
            "/artifacts/archive",
            read("format", json!(null)),
            vec![json!({"type": "literal_error", "loc": ["body", "format"],
                "msg": "Input should be 'tar.gz' or 'tgz'", "input": null,
                "ctx": {"expected": "'tar.gz' or 'tgz'"}})],
        ),
        (
            "/artifacts/list",
            read("recursive", json!("maybe")),
            vec![problem(
                "bool_parsing",
                json!(["body", "recursive"]),
                "Input should be a valid boolean, unable to interpret input",
                json!("maybe"),
            )],
        ),
        (
            "/artifacts/read",
            json!({"trajectory_id": "t"}),
            vec![problem(
                "missing",
                json!(["body", "path"]),
                "Field required",
                json!({"trajectory_id": "t"}),
            )],
        ),
        (
            "/execute_batch",
            json!({"calls": [{"trajectory_id": "t", "tool": tool}, 7]}),
            vec![problem("model_attributes_type", json!(["body", "calls", 1]), model, json!(7))],
        ),
        (
            "/cancel",
            json!({"trajectory_id": "t", "uniq_id": 7}),
            vec![problem("string_type", json!(["body", "uniq_id"]), text, json!(7))],
        ),
    ];
    for (path, body, detail) in cases {
        let answer = served.post(path, &body);
        assert_eq!(answer.status, 422, "{path} {body}");
        assert_eq!(answer.json(), json!({"detail": detail}), "{path} {body}");
    }
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [u8], u16, Value);
    let bytes: [Case<'_>; 4] = [
        (
            &[],
            b"",
            422,
            json!([problem("missing", json!(["body"]), "Field required", json!(null))]),
        ),
        (
            &[],
            b"{x",
            422,
            json!([{"type": "json_invalid", "loc": ["body", 1], "msg": "JSON decode error",
                "input": {}, "ctx": {"error": "Expecting property name enclosed in double quotes"}}]),
        ),
        (
            &[("Content-Type", "text/plain")],
            b"{}",
            422,
            json!([problem("model_attributes_type", json!(["body"]), model, json!("{}"))]),
        ),
        (&[], b"\xff", 400, json!("There was an error parsing the body")),
    ];
    // With a token, a body need not be declared JSON to be read.
    let served = Served::with_token(Echoes(1));
    for (headers, body, status, detail) in bytes {
        let headers = [&[("Authorization", "Bearer s3cret")], headers].concat();
        let answer = served.client().ask("POST", "/execute", &headers, body);
        assert_eq!((answer.status, answer.json()), (status, json!({"detail": detail})));
    }
}

#[test]
fn who_may_and_in_which_order_that_is_found_out() {
    let served = Served::with_token(Echoes(1));
    let body = call_of("t", "c").to_string();
    for (header, status, detail) in [
        (None, 401, "Missing Authorization header"),
        (Some("Basic s3cret"), 401, "Invalid Authorization header"),
        (Some("Bearer"), 401, "Invalid Authorization header"),
        (Some("Bearer wrong"), 403, "Invalid token"),
    ] {
        let headers: Vec<_> = header.map(|value| ("Authorization", value)).into_iter().collect();
        for (method, path) in [("POST", "/execute"), ("GET", "/metrics")] {
            let body = if method == "GET" { "" } else { &body };
            let answer = served.client().ask(method, path, &headers, body.as_bytes());
            assert_eq!((answer.status, answer.json()), (status, json!({"detail": detail})));
        }
        // Nothing is read of a stranger's body, whatever is wrong with it and however long it is.
        assert_eq!(served.client().ask("POST", "/execute", &headers, b"{}").status, status);
        let much = vec![b' '; 200 * 1024];
        let answer = served.client().ask("POST", "/execute", &headers, &much);
        assert_eq!((answer.status, answer.json()), (status, json!({"detail": detail})));
    }
    for header in ["Bearer s3cret", "bEARER  s3cret "] {
        let headers = [("Authorization", header)];
        let answer = served.client().ask("POST", "/execute", &headers, body.as_bytes());
        assert_eq!((answer.status, &answer.json()["output"]), (200, &json!("c")));
    }
}

#[test]
fn large_bodies_are_fine_up_to_the_limit() {
    let served = Served::with(Echoes(1), |config| config.max_body = 3 * 1024 * 1024);
    let large = "x".repeat(1_400_000); // twice in the body
    let answer = served.post("/execute", &call_of("t", &large));
    assert_eq!(answer.json()["output"].as_str().map(str::len), Some(large.len()));
    let answer = served.client().ask("POST", "/execute", &[], &vec![b' '; 3 * 1024 * 1024 + 1]);
    assert_eq!(answer.status, 413);
}
