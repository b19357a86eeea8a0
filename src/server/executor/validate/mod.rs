//! What is wrong with a request's body, in the words of the reference (pydantic 2, lax mode).
//!
//! Pure functions from JSON to what a route needs, or to the list of problems that goes into
//! `{"detail": […]}`: one entry for each, in the order of the fields. Unknown fields are ignored.
//! Nothing here knows of HTTP but for the `Content-Type`. `fields` has the checks, `calls` and
//! this file the requests that are made of them.
//!
//! # Lax mode
//! Strings are strict. A number may be a boolean or text (`"2"`), an integer also a number without
//! a fraction (`4.0`), a boolean also 0, 1 and the usual words (`"yes"`, `"off"`, …).

mod calls;
mod fields;

use serde_json::{Value, json};

pub(super) use self::calls::{CallRequest, ParseRequest, ReplyForm, Written, call, calls, parse};
use self::fields::{
    Fields, Flaw, boolean, integer, literal, missing, not_a_model, nullable, string, strings,
};
use crate::artifact::{
    ArchiveArtifacts, ListArtifacts, MAX_ARTIFACT_BYTES, MAX_ARTIFACT_ENTRIES, ReadArtifact,
};
use crate::spec::TrajectorySpec;
use crate::tool::python_json;

/// The entries of a 422's `detail`.
pub(super) type Problems = Vec<Value>;

/// Why there is no JSON to look at.
#[derive(Debug, PartialEq)]
pub(super) enum Rejection {
    /// Answered with 422.
    Problems(Problems),
    /// It is not UTF-8: answered with 400, as by the reference.
    NotText,
}

/// The body of `/release`.
#[derive(Debug, PartialEq)]
pub(super) struct ReleaseRequest {
    pub(super) trajectory_id: String,
    pub(super) reset_workspace: bool,
}

/// The body of `/begin`.
#[derive(Debug, PartialEq)]
pub(super) struct BeginRequest {
    pub(super) trajectory_id: String,
    pub(super) spec: TrajectorySpec,
}

/// The body of `/cancel`.
#[derive(Debug, PartialEq)]
pub(super) struct CancelRequest {
    pub(super) trajectory_id: String,
    /// `None` is all of the trajectory.
    pub(super) uniq_id: Option<String>,
}

/// The body of `/artifacts/read`.
#[derive(Debug, PartialEq)]
pub(super) struct ReadRequest {
    pub(super) trajectory_id: String,
    pub(super) what: ReadArtifact,
    pub(super) base64: bool,
}

/// The body of `/artifacts/list`.
#[derive(Debug, PartialEq)]
pub(super) struct ListRequest {
    pub(super) trajectory_id: String,
    pub(super) what: ListArtifacts,
}

/// The body of `/artifacts/archive`.
#[derive(Debug, PartialEq)]
pub(super) struct ArchiveRequest {
    pub(super) trajectory_id: String,
    pub(super) what: ArchiveArtifacts,
}

/// The JSON of a body.
///
/// A missing `Content-Type` counts as JSON; with any other than JSON the body is no object,
/// whatever it holds.
///
/// # Errors
/// See [`Rejection`].
pub(super) fn body(bytes: &[u8], content_type: Option<&str>) -> Result<Value, Rejection> {
    if bytes.is_empty() {
        return Err(Rejection::Problems(vec![missing_body()]));
    }
    if !content_type.is_none_or(is_json) {
        let input = Value::String(String::from_utf8_lossy(bytes).into_owned());
        return Err(Rejection::Problems(vec![not_a_model().at(&[json!("body")], &input)]));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Rejection::NotText)?;
    match python_json::parse(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        Ok(Value::Null) => Err(Rejection::Problems(vec![missing_body()])),
        Ok(value) => Ok(value),
        Err(error) => {
            // The reference counts characters.
            let before = text.char_indices().take_while(|(at, _)| *at < error.offset()).count();
            Err(Rejection::Problems(vec![json!({
                "type": "json_invalid",
                "loc": ["body", before],
                "msg": "JSON decode error",
                "input": {},
                "ctx": {"error": error.message()},
            })]))
        }
    }
}

/// What is wrong with the query of `/execute`: a `status_code`, of no use, has to be an integer.
pub(super) fn query(query: Option<&str>) -> Option<Value> {
    let pairs = query.unwrap_or("").split('&');
    let mut named = pairs.filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // An empty piece is no parameter.
        (!pair.is_empty() && decoded(name) == "status_code").then(|| decoded(value))
    });
    let value = Value::String(named.next_back()?);
    let flaw = integer(&value).err()?;
    Some(flaw.at(&[json!("query"), json!("status_code")], &value))
}

/// The body of `/release`.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn release(body: Value) -> Result<ReleaseRequest, Problems> {
    read(&body, |fields| {
        let trajectory_id = fields.required("trajectory_id", string);
        let reset_workspace = fields.or("reset_workspace", false, boolean);
        Some(ReleaseRequest { trajectory_id: trajectory_id?, reset_workspace })
    })
}

/// The body of `/begin`. The spec is read strictly: what is no field of it is refused by name, with
/// those that there are.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn begin(body: Value) -> Result<BeginRequest, Problems> {
    read(&body, |fields| {
        let trajectory_id = fields.required("trajectory_id", string);
        let spec = fields.required("spec", spec);
        Some(BeginRequest { trajectory_id: trajectory_id?, spec: spec? })
    })
}

fn spec(value: &Value) -> Result<TrajectorySpec, Flaw> {
    fields::dictionary(value)?;
    let spec: TrajectorySpec = serde_json::from_value(value.clone())
        .map_err(|error| Flaw::new(WRONG_SPEC, error.to_string()))?;
    spec.check().map_err(|error| Flaw::new(WRONG_SPEC, error.to_string()))?;
    Ok(spec)
}

/// The kind of what is wrong with a spec.
const WRONG_SPEC: &str = "value_error";

/// What is said of a begin whose values make no sense to the executor.
pub(super) fn wrong_spec(text: &str) -> Value {
    Flaw::new(WRONG_SPEC, text).at(&[json!("body")], &json!({}))
}

/// The body of `/sandboxes`: the URLs of all servers that are to be used.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn sandboxes(body: Value) -> Result<Vec<String>, Problems> {
    read(&body, |fields| fields.required("urls", strings))
}

/// The body of `/cancel`.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn cancel(body: Value) -> Result<CancelRequest, Problems> {
    read(&body, |fields| {
        let trajectory_id = fields.required("trajectory_id", string);
        let uniq_id = fields.or("uniq_id", None, nullable(string));
        Some(CancelRequest { trajectory_id: trajectory_id?, uniq_id })
    })
}

/// The body of `/artifacts/read`.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn read_artifact(body: Value) -> Result<ReadRequest, Problems> {
    read(&body, |fields| {
        let trajectory_id = fields.required("trajectory_id", string);
        let path = fields.required("path", string);
        let encoding = fields.or("encoding", 0, literal(["text", "base64"]));
        let max_bytes = fields.or("max_bytes", None, nullable(integer));
        let sha256 = fields.or("include_sha256", false, boolean);
        let mut what = ReadArtifact::new(path?);
        what.max_bytes = max_bytes.map_or(MAX_ARTIFACT_BYTES, clamped_bytes);
        what.sha256 = sha256;
        Some(ReadRequest { trajectory_id: trajectory_id?, what, base64: encoding == 1 })
    })
}

/// The body of `/artifacts/list`.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn list_artifacts(body: Value) -> Result<ListRequest, Problems> {
    read(&body, |fields| {
        let trajectory_id = fields.required("trajectory_id", string);
        let what = ListArtifacts {
            path: fields.or("path", ".".to_owned(), string),
            recursive: fields.or("recursive", false, boolean),
            max_entries: fields
                .or("max_entries", None, nullable(integer))
                .map_or(MAX_ARTIFACT_ENTRIES, clamped_entries),
        };
        Some(ListRequest { trajectory_id: trajectory_id?, what })
    })
}

/// The body of `/artifacts/archive`.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn archive_artifacts(body: Value) -> Result<ArchiveRequest, Problems> {
    read(&body, |fields| {
        let trajectory_id = fields.required("trajectory_id", string);
        let path = fields.or("path", ".".to_owned(), string);
        // Both names are of the one format there is.
        fields.or("format", 0, literal(["tar.gz", "tgz"]));
        let max_bytes = fields.or("max_bytes", None, nullable(integer));
        let max_entries = fields.or("max_entries", None, nullable(integer));
        let what = ArchiveArtifacts {
            path,
            max_bytes: max_bytes.map_or(MAX_ARTIFACT_BYTES, clamped_bytes),
            max_entries: max_entries.map_or(MAX_ARTIFACT_ENTRIES, clamped_entries),
            ..ArchiveArtifacts::default()
        };
        Some(ArchiveRequest { trajectory_id: trajectory_id?, what })
    })
}

fn clamped_bytes(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0).clamp(1, MAX_ARTIFACT_BYTES)
}

fn clamped_entries(entries: i64) -> usize {
    usize::try_from(entries.max(0)).unwrap_or(usize::MAX).clamp(1, MAX_ARTIFACT_ENTRIES)
}

/// Reads a flat body.
fn read<T>(
    body: &Value,
    fields: impl FnOnce(&mut Fields<'_, '_>) -> Option<T>,
) -> Result<T, Problems> {
    let mut problems = Vec::new();
    let read =
        Fields::of(body, vec![json!("body")], &mut problems).and_then(|mut f| fields(&mut f));
    match (read, problems.is_empty()) {
        (Some(read), true) => Ok(read),
        _ => Err(problems),
    }
}

fn missing_body() -> Value {
    missing().at(&[json!("body")], &Value::Null)
}

/// Whether a `Content-Type` says JSON: `application/json` or `application/…+json`.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    essence
        .strip_prefix("application/")
        .is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

/// A piece of a query, decoded.
fn decoded(piece: &str) -> String {
    let mut bytes = Vec::with_capacity(piece.len());
    let mut rest = piece.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let escaped = match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                digit(high).zip(digit(low)).map(|(high, low)| (high * 16 + low, after))
            }
            _ => None,
        };
        match escaped {
            // Two hexadecimal digits: below 256.
            Some((byte, after)) => {
                bytes.push(byte as u8);
                rest = after;
            }
            None if *first == b'+' => bytes.push(b' '),
            None => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::calls::MAX_BATCH_CALLS;
    use super::*;

    fn kinds(problems: &Problems) -> Vec<(String, Value)> {
        let kind = |problem: &Value| problem["type"].as_str().unwrap_or("").to_owned();
        problems.iter().map(|problem| (kind(problem), problem["loc"].clone())).collect()
    }

    #[test]
    fn every_problem_is_told_in_the_order_of_the_fields() {
        let body = json!({"trajectory_id": 1, "tool": {"arguments": null, "uniq_id": null},
            "timeout_s": "x"});
        assert_eq!(
            kinds(&call(body).unwrap_err()),
            [
                ("string_type".to_owned(), json!(["body", "trajectory_id"])),
                ("missing".to_owned(), json!(["body", "tool", "name"])),
                ("dict_type".to_owned(), json!(["body", "tool", "arguments"])),
                ("string_type".to_owned(), json!(["body", "tool", "uniq_id"])),
                ("float_parsing".to_owned(), json!(["body", "timeout_s"])),
            ]
        );
    }

    #[test]
    fn a_call_is_read_with_its_defaults_and_its_time_as_it_was_given() {
        let body = |timeout: Value| {
            json!({"trajectory_id": "t", "tool": {"name": "n", "uniq_id": "u", "x": 1},
                "timeout_s": timeout, "unknown": []})
        };
        let read = call(body(Value::Null)).unwrap();
        assert_eq!((read.call.timeout, &read.call.arguments), (None, &json!({})));
        for (given, seconds) in [
            (json!("2"), 2.0),
            (json!(" 2.5 "), 2.5),
            (json!(true), 1.0),
            (json!(3600), 3600.0),
            (json!(-7), 0.0),
            (json!("nan"), 0.0),
        ] {
            let timeout = call(body(given.clone())).unwrap().call.timeout;
            assert_eq!(timeout, Some(Duration::from_secs_f64(seconds)), "{given}");
        }
        for endless in [json!("inf"), json!(1e300)] {
            assert_eq!(call(body(endless)).unwrap().call.timeout, Some(Duration::MAX));
        }
    }

    #[test]
    fn limits_are_clamped() {
        let with = |max: Value| {
            let body = json!({"trajectory_id": "t", "path": "p", "max_bytes": max});
            read_artifact(body).unwrap().what.max_bytes
        };
        assert_eq!(with(json!(null)), MAX_ARTIFACT_BYTES);
        assert_eq!((with(json!(-3)), with(json!("4"))), (1, 4));
        assert_eq!(with(json!(1e30)), MAX_ARTIFACT_BYTES);
    }

    #[test]
    fn a_body_is_json_if_its_type_says_so_or_nothing() {
        let invalid = |bytes: &[u8], content_type| match body(bytes, content_type) {
            Err(Rejection::Problems(problems)) => problems[0].clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(body(b"\xef\xbb\xbf{}", None), Ok(json!({})));
        assert_eq!(body(b"{}", Some("Application/Json; charset=utf-8")), Ok(json!({})));
        assert_eq!(body(b"{}", Some("application/problem+json")), Ok(json!({})));
        assert_eq!(body(b"\xff", None), Err(Rejection::NotText));
        assert_eq!(invalid(b"{}", Some("text/plain"))["input"], "{}");
        assert_eq!(invalid(b"", Some("text/plain"))["type"], "missing");
        assert_eq!(invalid(b"null", None)["type"], "missing");
        let broken = invalid("{\"é\": 1,}".as_bytes(), None);
        assert_eq!(broken["loc"], json!(["body", 8]));
        assert_eq!(broken["ctx"]["error"], "Expecting property name enclosed in double quotes");
    }

    #[test]
    fn a_status_code_in_the_query_is_an_integer_the_last_one_counting() {
        for fine in [None, Some(""), Some("x=y"), Some("status_code=2%300"), Some("status_code=+7")]
        {
            assert_eq!(query(fine), None, "{fine:?}");
        }
        for wrong in ["status_code", "status_code=x", "status_code=1&status_code=%zz"] {
            let problem = query(Some(wrong)).unwrap();
            assert_eq!(problem["type"], "int_parsing");
            assert_eq!(problem["loc"], json!(["query", "status_code"]));
        }
    }

    #[test]
    fn a_batch_is_as_strict_with_each_of_its_calls() {
        let good = json!({"trajectory_id": "t", "tool": {"name": "n", "uniq_id": "u",
            "arguments": {"a": 1}}});
        let read = calls(json!({"calls": [good, good]})).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[1].call.arguments, json!({"a": 1}));
        assert_eq!(
            kinds(&calls(json!({"calls": [good, 7, {"trajectory_id": "t"}]})).unwrap_err()),
            [
                ("model_attributes_type".to_owned(), json!(["body", "calls", 1])),
                ("missing".to_owned(), json!(["body", "calls", 2, "tool"])),
            ]
        );
        for (body, kind) in [
            (json!({}), "missing"),
            (json!({"calls": null}), "list_type"),
            (json!({"calls": vec![7; MAX_BATCH_CALLS + 1]}), "too_long"),
        ] {
            assert_eq!(calls(body).unwrap_err()[0]["type"], kind);
        }
    }
}
