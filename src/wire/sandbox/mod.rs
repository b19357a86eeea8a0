//! What clients and a sandbox server say to each other: sections 1 and 2 of the reference
//! protocol, from the server's side.
//!
//! Pure functions: from the JSON of a request to what is wanted, and from what came of it to the
//! text of the answer. Where the reference's program fails with an exception of Python's, the
//! exception's text goes into the answer ([`Raised`]); clients know those texts.

mod artifacts;
mod python;

use std::time::Duration;

use serde_json::{Value, json};

pub(crate) use self::artifacts::{ArchiveRequest, ListRequest, ReadRequest, Refused};
pub(crate) use self::python::shown;

use self::python::{no_attribute, type_name};
use super::OutcomeFields;
use crate::config::NetworkMode;
use crate::level::{ImageIds, IsolationLevel};
use crate::limits::EnforcedLimits;
use crate::spec::SpecField;
use crate::tool::python_json::{self, NonAscii};
use crate::tool::{JsonObject, Outcome, ToolResult};

/// The time limit of a call that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit of a call that wants none.
const NO_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest time limit: beyond it sums of times could overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How the text of a time-out begins; the limit follows.
const TIMED_OUT: &str = "Command timed out after ";

/// An exception of the reference's program: its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raised(pub(crate) String);

/// Why a body is no JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It is text, but no JSON.
    NotJson,
    /// It is no text.
    Raised(Raised),
}

/// The JSON of a body, whatever its `Content-Type` says it is; but its `charset` counts.
///
/// # Errors
/// See [`Unreadable`].
pub(crate) fn body(bytes: &[u8], content_type: Option<&str>) -> Result<Value, Unreadable> {
    let charset = content_type.and_then(charset).unwrap_or_default();
    let latin;
    let text = if ["iso-8859-1", "latin-1", "latin1"].contains(&&*charset) {
        latin = bytes.iter().copied().map(char::from).collect::<String>();
        &latin
    } else {
        std::str::from_utf8(bytes)
            .map_err(|error| Unreadable::Raised(Raised(decode_error(bytes, error))))?
    };
    python_json::parse(text).map_err(|_| Unreadable::NotJson)
}

/// The `charset` of a `Content-Type`, in lower case.
fn charset(content_type: &str) -> Option<String> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let is_charset = name.trim().eq_ignore_ascii_case("charset");
        is_charset.then(|| value.trim().trim_matches('"').to_ascii_lowercase())
    })
}

/// What Python says of bytes that are not UTF-8.
fn decode_error(bytes: &[u8], error: std::str::Utf8Error) -> String {
    let start = error.valid_up_to();
    let length = error.error_len().unwrap_or(bytes.len() - start);
    let reason = match (error.error_len(), bytes[start]) {
        (None, _) => "unexpected end of data",
        (Some(_), 0x80..=0xc1 | 0xf5..) => "invalid start byte",
        (Some(_), _) => "invalid continuation byte",
    };
    let place = if length == 1 {
        format!("byte 0x{:02x} in position {start}", bytes[start])
    } else {
        format!("bytes in position {start}-{}", start + length - 1)
    };
    format!("'utf-8' codec can't decode {place}: {reason}")
}

/// A request of any route but `/batch`: an object.
///
/// # Errors
/// It is none.
pub(crate) fn object(body: Value) -> Result<JsonObject, Raised> {
    match body {
        Value::Object(object) => Ok(object),
        other => Err(no_attribute(&other, "get")),
    }
}

/// The slot that a request names: its name, and whether it can be one.
///
/// # Errors
/// It is nothing that can be looked for.
pub(crate) fn slot_id(request: &JsonObject) -> Result<String, Raised> {
    match request.get("slot_id") {
        None => Ok(String::new()),
        Some(value @ (Value::Array(_) | Value::Object(_))) => {
            Err(Raised(format!("unhashable type: '{}'", type_name(value))))
        }
        // No slot has such a name as the others have.
        Some(value) => Ok(shown(value)),
    }
}

/// The lease under which an executor of ours asks: its session, and the epoch of the slot's lease.
/// A plain client names none.
pub(crate) fn lease(request: &JsonObject) -> Option<(&str, u64)> {
    Some((request.get("session")?.as_str()?, request.get("epoch")?.as_u64()?))
}

/// A call: an execution object, but for its slot.
#[derive(Debug, PartialEq)]
pub(crate) struct CallRequest {
    pub(crate) tool: String,
    pub(crate) arguments: JsonObject,
    pub(crate) execution_id: Value,
    pub(crate) limit: Limit,
}

/// A call's time limit.
#[derive(Debug, PartialEq)]
pub(crate) struct Limit {
    pub(crate) timeout: Duration,
    /// The number of seconds, as Python prints it.
    text: String,
}

/// Why a call does not get to its tool.
#[derive(Debug, PartialEq)]
pub(crate) enum Unfit {
    /// The server's program raised an exception.
    Raised(Raised),
    /// The tool's did: what it says, and the call's id.
    InTool(String, Value),
}

/// What a call is to do. To be asked for once it is known that its slot exists.
///
/// # Errors
/// See [`Unfit`]. A call of a tool that there is not is none: that is told when its turn comes.
pub(crate) fn call(request: JsonObject, tools: &[&str]) -> Result<CallRequest, Unfit> {
    let mut request = request;
    let execution_id = request.get_mut("execution_id").map_or(Value::Null, Value::take);
    let tool = request.get("tool").map_or_else(String::new, shown);
    let known = tools.contains(&&*tool);
    let arguments = match request.get_mut("args").map(Value::take) {
        None => JsonObject::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(_) if !known => JsonObject::new(),
        Some(other) => return Err(Unfit::Raised(no_attribute(&other, "get"))),
    };
    let limit = match (Limit::of(request.get("timeout")), &*tool) {
        (Ok(limit), _) => limit,
        // They have no use for it.
        (Err(_), "read_file" | "write_file") => Limit::default(),
        (Err(_), _) if !known => Limit::default(),
        (Err(Raised(text)), _) => return Err(Unfit::InTool(text, execution_id)),
    };
    Ok(CallRequest { tool, arguments, execution_id, limit })
}

impl Default for Limit {
    fn default() -> Self {
        Self::seconds(DEFAULT_TIMEOUT.as_secs_f64(), "30.0".to_owned())
    }
}

impl Limit {
    fn of(value: Option<&Value>) -> Result<Self, Raised> {
        Ok(match value {
            None => Self::default(),
            // What is not a number of Python's, and no end at all, are read as null, too.
            Some(Value::Null) => Self { timeout: NO_TIMEOUT, text: "None".to_owned() },
            Some(Value::Bool(truth)) => {
                let number = i32::from(*truth);
                Self::seconds(f64::from(number), number.to_string())
            }
            Some(value @ Value::Number(number)) => {
                Self::seconds(number.as_f64().unwrap_or(f64::MAX), shown(value))
            }
            Some(other) => {
                let kind = type_name(other);
                return Err(Raised(format!(
                    "'<=' not supported between instances of '{kind}' and 'int'"
                )));
            }
        })
    }

    fn seconds(seconds: f64, text: String) -> Self {
        let seconds = seconds.clamp(0.0, MAX_TIMEOUT.as_secs_f64());
        Self { timeout: Duration::try_from_secs_f64(seconds).unwrap_or(MAX_TIMEOUT), text }
    }

    /// The result with the limit in its text as the client wrote it.
    pub(crate) fn told_in(&self, mut result: ToolResult) -> ToolResult {
        if result.outcome == Outcome::Timeout && result.error.starts_with(TIMED_OUT) {
            result.error = format!("{TIMED_OUT}{}s", self.text);
        }
        result
    }
}

/// The result of a command that could not be started.
pub(crate) fn not_started(why: &str, sandboxed: bool) -> ToolResult {
    let what = if sandboxed { "sandboxed command" } else { "command" };
    let error = format!("Failed to execute {what}: {why}");
    let mut result = ToolResult::failure(Outcome::InvalidCall, error);
    result.metadata.insert("sandboxed".to_owned(), sandboxed.into());
    result
}

/// The result object of a call.
pub(crate) fn result(result: ToolResult, execution_id: Value) -> Value {
    let outcome = outcome_fields(&result);
    let mut answer = reference_result(result, execution_id);
    answer.extend(outcome);
    Value::Object(answer)
}

/// The result object of a reset.
pub(crate) fn reset_result(result: ToolResult) -> Value {
    Value::Object(reference_result(result, Value::Null))
}

/// The result of an item of a batch for which the reference's program raised an exception.
pub(crate) fn raised_item(raised: &Raised) -> Value {
    let result = ToolResult::failure(Outcome::InvalidCall, "");
    let mut answer = JsonObject::new();
    answer.insert("success".to_owned(), Value::Bool(false));
    answer.insert("error".to_owned(), Value::String(raised.0.clone()));
    answer.extend(outcome_fields(&result));
    Value::Object(answer)
}

/// The five keys that the reference has.
fn reference_result(result: ToolResult, execution_id: Value) -> JsonObject {
    // Moved, where `json!` would copy what may be long.
    let fields = [
        ("success", Value::Bool(result.success)),
        ("output", Value::String(result.output)),
        ("error", Value::String(result.error)),
        ("execution_id", execution_id),
        ("metadata", Value::Object(result.metadata)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The keys that it does not have.
fn outcome_fields(result: &ToolResult) -> JsonObject {
    match json!(OutcomeFields::from(result)) {
        Value::Object(fields) => fields,
        // A struct is an object.
        _ => JsonObject::new(),
    }
}

/// The answer that something failed.
pub(crate) fn error(text: &str) -> Value {
    json!({"success": false, "error": text})
}

/// An answer's text, as Python writes it.
pub(crate) fn to_text(answer: &Value) -> String {
    python_json::to_string(answer, NonAscii::Escape)
}

/// What the server tells of itself.
pub(crate) struct Health<'a> {
    pub(crate) slots: usize,
    pub(crate) executing: usize,
    pub(crate) isolated: bool,
    /// The features besides the reference's.
    pub(crate) features: &'a [&'a str],
    /// Names this run of the server.
    pub(crate) instance: &'a str,
    /// How others reach the server.
    pub(crate) url: &'a str,
    /// How far commands are isolated, where that is known, and why not further.
    pub(crate) level: Option<IsolationLevel>,
    /// Why not further.
    pub(crate) weakened_because: &'a [String],
    /// Which limits hold for commands, where that is known.
    pub(crate) limits: Option<EnforcedLimits>,
    /// Whether slots keep their sandboxes from call to call, where that is known.
    pub(crate) warm_slots: Option<bool>,
    /// What network commands have whose calls may use one, where that is known.
    pub(crate) network: Option<NetworkMode>,
    /// Whether the server is about to end.
    pub(crate) draining: bool,
    /// What of a trajectory's spec the slots can be given.
    pub(crate) spec: &'a [SpecField],
    /// Which user ids machines from images have, where there can be some.
    pub(crate) image_ids: Option<ImageIds>,
    /// Why there can be none, where that is known.
    pub(crate) no_images_because: Option<&'a str>,
}

impl Health<'_> {
    /// The answer to `/health`. Where things are on the server is not told.
    pub(crate) fn answer(&self) -> Value {
        let mut answer = json!({
            "status": "ok",
            "slots": self.slots,
            "available": self.slots - self.executing,
            "executing": self.executing,
            "data_dir": "",
            "bwrap_available": self.isolated,
            "stateful_dir": "",
            "server": concat!("tool-executor/", env!("CARGO_PKG_VERSION")),
            "features": self.features,
            "instance": self.instance,
            "url": self.url,
        });
        answer["spec_fields"] = json!(self.spec);
        if let Some(level) = self.level {
            answer["isolation_level"] = json!(level);
            answer["weakened_because"] = json!(self.weakened_because);
        }
        if let Some(limits) = self.limits {
            answer["limits"] = json!(limits);
        }
        if let Some(warm) = self.warm_slots {
            answer["warm_slots"] = json!(warm);
        }
        if let Some(network) = self.network {
            answer["network"] = json!(network);
        }
        if let Some(ids) = self.image_ids {
            answer["image_ids"] = json!(ids);
        }
        if let Some(why) = self.no_images_because {
            answer["no_images_because"] = json!(why);
        }
        if self.draining {
            answer["draining"] = json!(true);
        }
        answer
    }
}

/// A slot in the answer to `/slots`; `current` is whose call runs in it.
pub(crate) fn slot(name: &str, current: Option<&str>) -> Value {
    json!({
        "slot_id": name,
        "state": if current.is_some() { "executing" } else { "available" },
        "workspace_dir": "/workspace",
        "current_execution_id": current.filter(|id| !id.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_told_as_python_tells_them() {
        for (bytes, what) in [
            (&b"ab\xff"[..], "byte 0xff in position 2: invalid start byte"),
            (b"\xe2x", "byte 0xe2 in position 0: invalid continuation byte"),
            (b"\xe2\x82x", "bytes in position 0-1: invalid continuation byte"),
            (b"a\xe2\x82", "bytes in position 1-2: unexpected end of data"),
            (b"a\xe2", "byte 0xe2 in position 1: unexpected end of data"),
        ] {
            let text = format!("'utf-8' codec can't decode {what}");
            assert_eq!(body(bytes, None), Err(Unreadable::Raised(Raised(text))));
        }
        assert_eq!(body(b"", None), Err(Unreadable::NotJson));
        assert_eq!(body(b"\"\xe9\"", Some("text/plain; Charset=\"Latin-1\"")), Ok(json!("é")));
    }

    #[test]
    fn a_timeout_is_whatever_python_compares_with_a_number() {
        let day = NO_TIMEOUT.as_secs_f64();
        for (value, seconds, text) in [
            (None, 30.0, "30.0"),
            (Some(json!(null)), day, "None"),
            (Some(json!(1)), 1.0, "1"),
            (Some(json!(1.0)), 1.0, "1.0"),
            (Some(json!(0.5)), 0.5, "0.5"),
            (Some(json!(-1)), 0.0, "-1"),
            (Some(json!(true)), 1.0, "1"),
            (Some(json!(1e300)), MAX_TIMEOUT.as_secs_f64(), "1e+300"),
        ] {
            let limit = Limit::of(value.as_ref()).unwrap();
            assert_eq!((limit.timeout.as_secs_f64(), &*limit.text), (seconds, text), "{value:?}");
        }
        let raised = Limit::of(Some(&json!("5"))).unwrap_err();
        assert_eq!(raised.0, "'<=' not supported between instances of 'str' and 'int'");
    }
}
