//! A recorded trajectory, and how one line of input becomes one.
//!
//! Owns the `calls` form; the `messages` form is read by [`super::messages`]. Pure: knows no files
//! and no line numbers, and says what is wrong with a line as one phrase for people.

use std::sync::Arc;

use serde_json::{Map, Value};
use tool_executor::python_json::{self, ParseError};
use tool_executor::{MAX_TRAJECTORY_ID, ToolCall, TrajectorySpec};

use super::messages;
use super::put::Put;
use super::reading::{CallReading, Seen};
use super::step::{Recorded, Step, kind};

/// The longest id in the input, in bytes: what the executor takes, less room for the suffixes that
/// tell repetitions and namesakes apart.
const MAX_ID: usize = MAX_TRAJECTORY_ID - 64;

/// A trajectory to be run.
#[derive(Debug, Clone)]
pub(crate) struct Trajectory {
    /// Its id, unlike that of every other trajectory of the run.
    pub(crate) id: Arc<str>,
    /// The id in the input, or the name that stands for a missing one.
    pub(crate) task_id: Arc<str>,
    /// The line of the input that it comes from, counted from 1.
    pub(crate) line: u64,
    /// Whether another trajectory had its id already.
    pub(crate) renamed: bool,
    /// 1, or which repetition of the recording this is.
    pub(crate) repetition: u32,
    /// Its calls in order, those that set up the workspace first. Shared by all repetitions.
    pub(crate) steps: Arc<[Step]>,
    /// What its models wrote beside its calls. Shared by all repetitions.
    pub(crate) seen: Arc<Seen>,
    /// What it begins with, if that is anything. Shared by all repetitions.
    pub(crate) spec: Option<Arc<TrajectorySpec>>,
}

#[cfg(test)]
impl Trajectory {
    /// One without calls.
    pub(crate) fn for_test(id: &str) -> Self {
        let id: Arc<str> = id.into();
        Self {
            task_id: id.clone(),
            id,
            line: 1,
            renamed: false,
            repetition: 1,
            steps: Arc::new([]),
            seen: Arc::default(),
            spec: None,
        }
    }
}

/// What a line of input holds.
#[derive(Debug, PartialEq)]
pub(crate) struct Recording {
    /// The id, where it has one.
    pub(crate) id: Option<String>,
    /// All steps in order, setup first.
    pub(crate) steps: Vec<Step>,
    /// What models wrote beside calls.
    pub(crate) seen: Seen,
    /// What it begins with, if that is anything.
    pub(crate) spec: Option<TrajectorySpec>,
}

/// Reads one line.
///
/// # Errors
/// One phrase that says what is wrong with the line.
pub(crate) fn parse_line(line: &str, reading: &CallReading) -> Result<Recording, String> {
    // Recordings are written by Python as a rule, in its dialect.
    let not_json =
        |error: ParseError| format!("not JSON: {} (byte {})", error.message(), error.offset() + 1);
    let mut object = match python_json::parse(line).map_err(not_json)? {
        Value::Object(object) => object,
        other => return Err(format!("expected an object, found {}", kind(&other))),
    };
    let id = take_id(&mut object)?;
    let spec = take_spec(&mut object, &reading.spec)?;
    let mut steps = match object.shift_remove("setup") {
        None | Some(Value::Null) => Vec::new(),
        Some(setup) => parse_calls(setup, "setup", true)?,
    };
    // Datasets with a fixed set of columns have null in those that a line does not use.
    let mut take = |key| object.shift_remove(key).filter(|value| !value.is_null());
    let mut seen = Seen::default();
    if let Some(calls) = take("calls") {
        steps.extend(parse_calls(calls, "calls", false)?);
        return Ok(Recording { id, steps, seen, spec });
    }
    let chat = ["messages", "conversations"].into_iter().find_map(|key| Some((key, take(key)?)));
    let Some((key, chat)) = chat else {
        return Err("none of \"calls\", \"messages\" and \"conversations\"".to_owned());
    };
    steps.extend(messages::parse(chat, key, reading, &mut seen)?);
    Ok(Recording { id, steps, seen, spec })
}

/// What a trajectory begins with: what its line says, and for the rest the run's default.
fn take_spec(
    object: &mut Map<String, Value>,
    default: &Map<String, Value>,
) -> Result<Option<TrajectorySpec>, String> {
    let own = match object.shift_remove("spec") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(own)) => own,
        Some(other) => return Err(format!("\"spec\" is {}, not an object", kind(&other))),
    };
    if own.is_empty() && default.is_empty() {
        return Ok(None);
    }
    let mut whole = default.clone();
    whole.extend(own);
    read_spec(whole).map(Some).map_err(|error| format!("spec: {error}"))
}

/// A spec that makes sense by itself.
///
/// # Errors
/// What is wrong with it, in words for people.
pub(crate) fn read_spec(spec: Map<String, Value>) -> Result<TrajectorySpec, String> {
    let spec: TrajectorySpec =
        serde_json::from_value(spec.into()).map_err(|error| error.to_string())?;
    spec.check().map_err(|error| error.to_string())?;
    Ok(spec)
}

fn take_id(object: &mut Map<String, Value>) -> Result<Option<String>, String> {
    for key in ["trajectory_id", "id"] {
        match object.shift_remove(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(id)) if id.is_empty() => {}
            Some(Value::String(id)) if id.len() > MAX_ID => {
                return Err(format!("\"{key}\" is longer than {MAX_ID} bytes"));
            }
            Some(Value::String(id)) => return Ok(Some(id)),
            Some(Value::Number(id)) => return Ok(Some(id.to_string())),
            Some(other) => return Err(format!("\"{key}\" is {}, not a string", kind(&other))),
        }
    }
    Ok(None)
}

fn parse_calls(value: Value, key: &str, setup: bool) -> Result<Vec<Step>, String> {
    let Value::Array(calls) = value else {
        return Err(format!("\"{key}\" is {}, not an array", kind(&value)));
    };
    calls
        .into_iter()
        .enumerate()
        .map(|(index, call)| {
            let at = |problem| format!("{key}[{index}]: {problem}");
            if let Some((call, put)) = parse_put(&call).map_err(at)? {
                let recorded = Recorded::default();
                return Ok(Step { call, put: Some(put), index, setup, recorded });
            }
            let (call, recorded) = parse_call(call).map_err(at)?;
            Ok(Step { call, put: None, index, setup, recorded })
        })
        .collect()
}

/// What is put, where a step is no call, and how it is told.
fn parse_put(value: &Value) -> Result<Option<(ToolCall, Put)>, String> {
    let Some(object) = value.as_object() else { return Ok(None) };
    let given = |key: &str| object.get(key).filter(|value| !value.is_null());
    let Some(put) = given("put").filter(|_| given("name").is_none()) else { return Ok(None) };
    if object.keys().filter(|key| given(key).is_some()).count() > 1 {
        return Err("\"put\" stands alone: a step is a call, or puts something".to_owned());
    }
    let read = Put::parse(put).map_err(|problem| format!("put: {problem}"))?;
    Ok(Some((ToolCall::new("put", put.clone()), read)))
}

fn parse_call(value: Value) -> Result<(ToolCall, Recorded), String> {
    let Value::Object(mut call) = value else {
        return Err(format!("expected an object, found {}", kind(&value)));
    };
    let name = match call.shift_remove("name") {
        Some(Value::String(name)) => name,
        Some(other) => return Err(format!("\"name\" is {}, not a string", kind(&other))),
        None => return Err("\"name\" is missing".to_owned()),
    };
    // Arguments that are not an object are the model's fault, not the file's: the executor answers.
    let arguments = call.shift_remove("arguments").ok_or("\"arguments\" is missing")?;
    let output = match call.shift_remove("recorded_output") {
        None | Some(Value::Null) => None,
        Some(Value::String(output)) => Some(output),
        Some(other) => {
            return Err(format!("\"recorded_output\" is {}, not a string", kind(&other)));
        }
    };
    let exit_code = match call.shift_remove("recorded_exit_code") {
        None | Some(Value::Null) => None,
        Some(other) => Some(
            other
                .as_i64()
                .ok_or_else(|| format!("\"recorded_exit_code\" is {other}, not a whole number"))?,
        ),
    };
    let truncated = call.get("recorded_output_truncated_at").is_some_and(|at| !at.is_null());
    Ok((ToolCall::new(name, arguments), Recorded { output, exit_code, truncated }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Recording, String> {
        super::parse_line(line, &CallReading::default())
    }

    #[test]
    fn a_line_with_setup_and_calls() {
        let recording = parse_line(
            r#"{"trajectory_id": "t", "source": "x",
                "setup": [{"name": "write_file", "arguments": {"path": "a"}}],
                "calls": [{"name": "bash", "arguments": {"command": "ls"}, "recorded_output": "a",
                           "recorded_exit_code": 0, "recorded_output_truncated_at": 1},
                          {"name": "bash", "arguments": "ls", "recorded_exit_code": null}]}"#,
        )
        .unwrap();
        assert_eq!(recording.id.as_deref(), Some("t"));
        let places: Vec<_> = recording.steps.iter().map(|step| (step.setup, step.index)).collect();
        assert_eq!(places, [(true, 0), (false, 0), (false, 1)]);
        assert_eq!(
            recording.steps[1].recorded,
            Recorded { output: Some("a".to_owned()), exit_code: Some(0), truncated: true }
        );
        assert_eq!(recording.steps[2].recorded, Recorded::default());
        assert_eq!(recording.steps[2].call.arguments, "ls");
    }

    #[test]
    fn a_line_has_its_own_spec_and_for_the_rest_the_runs() {
        let default = serde_json::json!({"network": "none", "max_wall_s": 60});
        let reading =
            CallReading { spec: default.as_object().unwrap().clone(), ..CallReading::default() };
        let spec = |line: &str| super::parse_line(line, &reading).unwrap().spec.unwrap();
        let whole = spec(r#"{"calls": [], "spec": {"env": {"A": "b"}, "max_wall_s": 5}}"#);
        assert_eq!(
            serde_json::to_value(whole).unwrap(),
            serde_json::json!({"env": {"A": "b"}, "network": "none", "max_wall_s": 5.0})
        );
        assert_eq!(spec(r#"{"calls": []}"#).max_wall, Some(std::time::Duration::from_secs(60)));
        assert_eq!(parse_line(r#"{"calls": [], "spec": null}"#).unwrap().spec, None);
        let error = parse_line(r#"{"calls": [], "spec": {"imgae": ""}}"#).unwrap_err();
        assert!(error.starts_with("spec: unknown field `imgae`, expected one of"), "{error}");
    }

    #[test]
    fn an_id_may_be_named_id_or_be_a_number_or_be_missing() {
        for (line, id) in [
            (r#"{"id": "a", "calls": []}"#, Some("a")),
            (r#"{"id": 7, "calls": []}"#, Some("7")),
            (r#"{"trajectory_id": "t", "id": "a", "calls": []}"#, Some("t")),
            (r#"{"trajectory_id": "", "calls": []}"#, None),
            (r#"{"calls": []}"#, None),
        ] {
            assert_eq!(parse_line(line).unwrap().id.as_deref(), id, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        for (line, problem) in [
            ("{\"calls\": [}", "not JSON: Expecting value (byte 12)"),
            ("[]", "expected an object, found an array"),
            ("{}", "none of \"calls\", \"messages\" and \"conversations\""),
            (
                r#"{"calls": null, "messages": null}"#,
                "none of \"calls\", \"messages\" and \"conversations\"",
            ),
            (r#"{"calls": null, "messages": 1}"#, "\"messages\" is a number, not an array"),
            (r#"{"id": [], "calls": []}"#, "\"id\" is an array, not a string"),
            (r#"{"calls": {}}"#, "\"calls\" is an object, not an array"),
            (r#"{"calls": [], "setup": 1}"#, "\"setup\" is a number, not an array"),
            (r#"{"calls": [1]}"#, "calls[0]: expected an object, found a number"),
            (r#"{"calls": [{"arguments": {}}]}"#, "calls[0]: \"name\" is missing"),
            (r#"{"calls": [{"name": "bash"}]}"#, "calls[0]: \"arguments\" is missing"),
            (
                r#"{"calls": [{"name": "b", "arguments": {}, "recorded_output": 1}]}"#,
                "calls[0]: \"recorded_output\" is a number, not a string",
            ),
            (
                r#"{"calls": [{"name": "b", "arguments": {}, "recorded_exit_code": 1.5}]}"#,
                "calls[0]: \"recorded_exit_code\" is 1.5, not a whole number",
            ),
            (
                r#"{"calls": [{"put": {"from": "../x", "to": "a"}}]}"#,
                "calls[0]: put: \"from\" is \"../x\"; it must be a path beneath the recording's \
                 directory, relative to it and without \"..\"",
            ),
            (
                r#"{"calls": [], "setup": [{"put": {}, "uniq": 1}]}"#,
                "setup[0]: \"put\" stands alone: a step is a call, or puts something",
            ),
            (r#"{"messages": 1}"#, "\"messages\" is a number, not an array"),
            (r#"{"calls": [], "spec": 1}"#, "\"spec\" is a number, not an object"),
            (
                r#"{"calls": [], "spec": {"workdir": "a"}}"#,
                "spec: workdir is \"a\"; it must be an absolute path without `..`",
            ),
        ] {
            assert_eq!(parse_line(line).unwrap_err(), problem, "{line}");
        }
    }

    #[test]
    fn what_python_writes_is_read() {
        let line = r#"{"calls": [{"name": "bash", "arguments": {"command": "\ud800", "n": NaN}}]}"#;
        let recording = parse_line(line).unwrap();
        assert_eq!(recording.steps[0].call.arguments["command"], "\u{fffd}");
    }

    #[test]
    fn an_id_that_leaves_no_room_for_a_suffix_is_refused() {
        let line = |length| format!("{{\"id\": \"{}\", \"calls\": []}}", "x".repeat(length));
        assert!(parse_line(&line(MAX_ID)).is_ok());
        assert_eq!(parse_line(&line(MAX_ID + 1)).unwrap_err(), "\"id\" is longer than 448 bytes");
    }

    #[test]
    fn json_nested_without_end_is_a_malformed_line_and_no_stack_overflow() {
        let line = "[".repeat(100_000);
        assert!(parse_line(&line).unwrap_err().starts_with("not JSON: "));
    }
}
