//! What clients and a sandbox server say to each other: sections 1 and 2 of the reference protocol,
//! from the server's side.
//!
//! Pure functions: from the JSON of a request to what is wanted, and from what came of it to the text
//! of the answer. Where the reference's program fails with an exception of Python's, the exception's
//! text goes into the answer ([`Raised`]); clients know those texts.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    MAX_ARTIFACT_BYTES, MAX_ARTIFACT_ENTRIES, ReadArtifact,
};
use crate::limits::LimitsHeld;
use crate::tool::python_json::{self, NonAscii, float_text, is_truthy};
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

/// A result object.
pub(crate) fn result(result: ToolResult, execution_id: Value) -> Value {
    // Moved, where `json!` would copy what may be long.
    let fields = [
        ("success", Value::Bool(result.success)),
        ("output", Value::String(result.output)),
        ("error", Value::String(result.error)),
        ("execution_id", execution_id),
        ("metadata", Value::Object(result.metadata)),
    ];
    Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
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
    /// Which limits hold for commands, where that is known.
    pub(crate) limits: Option<LimitsHeld>,
}

impl Health<'_> {
    /// The answer to `/health`. Where things are on the server is nobody's business.
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
        });
        if let Some(limits) = self.limits {
            answer["limits"] = json!(limits);
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

/// Why there is no artifact: a status and an answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) answer: Value,
}

impl Refused {
    fn new(status: u16, text: &str) -> Self {
        Self { status, answer: error(text) }
    }

    /// There is no such slot.
    pub(crate) fn unknown_slot(name: &str) -> Self {
        Self::new(404, &format!("Unknown slot: {name}"))
    }

    /// Nothing was done, since too many wait already or the server closes.
    pub(crate) fn not_done() -> Self {
        Self::new(503, "too many wait for this slot, or the server closes")
    }
}

impl From<ArtifactError> for Refused {
    fn from(error: ArtifactError) -> Self {
        let status = match error {
            ArtifactError::Outside => 403,
            ArtifactError::NotFound(_) | ArtifactError::NoSlot => 404,
            ArtifactError::NotAFile(_) | ArtifactError::UnsupportedType(_) => 400,
            ArtifactError::TooLarge { .. } => 413,
            ArtifactError::Unsupported => 501,
            ArtifactError::SandboxLost(_) | ArtifactError::Closed => 503,
            ArtifactError::Io(..) => 500,
        };
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        let mut refused = Self::new(status, &text);
        if let ArtifactError::TooLarge { bytes, .. } = error {
            refused.answer["bytes"] = bytes.into();
        }
        refused
    }
}

/// The body of `/artifacts/read`.
#[derive(Debug, PartialEq)]
pub(crate) struct ReadRequest {
    what: Result<ReadArtifact, Outside>,
    encoding: String,
}

/// A path that is no string.
#[derive(Debug, PartialEq)]
struct Outside;

impl ReadRequest {
    /// What is to be read.
    ///
    /// # Errors
    /// The reference's program would fail.
    pub(crate) fn of(request: &JsonObject) -> Result<Self, Raised> {
        let encoding = word(request, "encoding", "text")?;
        let what = path(request, "").map(|path| {
            let is_set = |name| request.get(name).is_some_and(is_truthy);
            ReadArtifact {
                path,
                offset: integer(request, "offset").unwrap_or(0).max(0).unsigned_abs(),
                max_bytes: limit(request, "max_bytes", MAX_ARTIFACT_BYTES),
                sha256: is_set("include_sha256"),
                file_sha256: is_set("include_file_sha256"),
            }
        });
        Ok(Self { what, encoding })
    }

    /// Reads with `read`, and gives the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn answer(
        &self,
        read: impl FnOnce(&ReadArtifact) -> Result<Artifact, ArtifactError>,
    ) -> Result<Value, Refused> {
        let what = self.what.as_ref().map_err(|Outside| ArtifactError::Outside)?;
        let is_known = ["text", "base64"].contains(&&*self.encoding);
        if !is_known {
            // What is wrong with the path is told first.
            let path = what.path.clone();
            read(&ReadArtifact { max_bytes: 1, ..ReadArtifact::new(path) })?;
            return Err(Refused::new(400, &format!("Unsupported encoding: {}", self.encoding)));
        }
        let artifact = read(what)?;
        let bytes = artifact.content.len();
        let content = if self.encoding == "base64" {
            STANDARD.encode(&artifact.content)
        } else {
            String::from_utf8_lossy(&artifact.content).into_owned()
        };
        let mut answer = json!({
            "success": true,
            "content": null,
            "encoding": self.encoding,
            "truncated": artifact.truncated,
            "bytes": bytes,
            "file_size": artifact.file_size,
            "path": artifact.path,
            "mime": artifact.mime,
            "sha256": artifact.sha256,
            "offset": artifact.offset,
            "file_sha256": artifact.file_sha256,
        });
        // Moved, where `json!` would copy.
        answer["content"] = content.into();
        Ok(answer)
    }
}

/// The body of `/artifacts/list`.
#[derive(Debug, PartialEq)]
pub(crate) struct ListRequest(Result<ListArtifacts, Outside>);

impl ListRequest {
    /// What is to be listed.
    pub(crate) fn of(request: &JsonObject) -> Self {
        Self(path(request, ".").map(|path| ListArtifacts {
            path,
            recursive: request.get("recursive").is_some_and(is_truthy),
            max_entries: max_entries(request),
        }))
    }

    /// Lists with `list`, and gives the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn answer(
        &self,
        list: impl FnOnce(&ListArtifacts) -> Result<ArtifactList, ArtifactError>,
    ) -> Result<Value, Refused> {
        let what = self.0.as_ref().map_err(|Outside| ArtifactError::Outside)?;
        let ArtifactList { entries, truncated } = list(what)?;
        let entries = entries.into_iter().map(|entry| {
            json!({
                "path": entry.path,
                "is_dir": entry.is_dir,
                "size": entry.size,
                "mtime": entry.mtime,
            })
        });
        let entries: Vec<Value> = entries.collect();
        Ok(json!({"success": true, "entries": entries, "truncated": truncated}))
    }
}

/// The body of `/artifacts/archive`.
#[derive(Debug, PartialEq)]
pub(crate) struct ArchiveRequest {
    what: Result<ArchiveArtifacts, Outside>,
    format: String,
}

impl ArchiveRequest {
    /// What is to be archived.
    ///
    /// # Errors
    /// The reference's program would fail.
    pub(crate) fn of(request: &JsonObject) -> Result<Self, Raised> {
        let format = word(request, "format", "tar.gz")?;
        let what = path(request, ".").map(|path| ArchiveArtifacts {
            path,
            max_bytes: limit(request, "max_bytes", MAX_ARTIFACT_BYTES),
            max_entries: max_entries(request),
        });
        Ok(Self { what, format })
    }

    /// Archives with `archive`, which writes to the buffer, and gives the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn answer(
        &self,
        archive: impl FnOnce(&ArchiveArtifacts, &mut Vec<u8>) -> Result<ArchiveSummary, ArtifactError>,
    ) -> Result<Value, Refused> {
        if !["tar.gz", "tgz"].contains(&&*self.format) {
            let text = format!("Unsupported archive format: {}", self.format);
            return Err(Refused::new(400, &text));
        }
        let what = self.what.as_ref().map_err(|Outside| ArtifactError::Outside)?;
        let mut bytes = Vec::new();
        let summary = archive(what, &mut bytes)?;
        let mut answer = json!({
            "success": true,
            "content": null,
            "encoding": "base64",
            "format": "tar.gz",
            "bytes": bytes.len(),
            "entry_count": summary.entry_count,
        });
        answer["content"] = STANDARD.encode(&bytes).into();
        Ok(answer)
    }
}

fn path(request: &JsonObject, default: &str) -> Result<String, Outside> {
    match request.get("path") {
        None => Ok(default.to_owned()),
        Some(Value::String(path)) => Ok(path.clone()),
        Some(_) => Err(Outside),
    }
}

/// A word, trimmed and in lower case; whatever is false is the default.
fn word(request: &JsonObject, name: &str, default: &str) -> Result<String, Raised> {
    match request.get(name) {
        Some(Value::String(word)) if !word.is_empty() => Ok(word.trim().to_lowercase()),
        Some(other) if is_truthy(other) => Err(no_attribute(other, "strip")),
        _ => Ok(default.to_owned()),
    }
}

/// What Python's `int` makes of a field.
fn integer(request: &JsonObject, name: &str) -> Option<i64> {
    match request.get(name)? {
        Value::Bool(truth) => Some(i64::from(*truth)),
        Value::String(digits) => digits.trim().parse().ok(),
        // A float that is too large becomes the largest.
        Value::Number(number) => number.as_i64().or_else(|| Some(number.as_f64()? as i64)),
        _ => None,
    }
}

fn limit(request: &JsonObject, name: &str, max: u64) -> u64 {
    integer(request, name).map_or(max, |limit| limit.max(1).unsigned_abs().min(max))
}

fn max_entries(request: &JsonObject) -> usize {
    let most = limit(request, "max_entries", MAX_ARTIFACT_ENTRIES as u64);
    usize::try_from(most).unwrap_or(MAX_ARTIFACT_ENTRIES)
}

fn no_attribute(value: &Value, attribute: &str) -> Raised {
    Raised(format!("'{}' object has no attribute '{attribute}'", type_name(value)))
}

/// The type that Python reads a value as.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

/// A value as Python's `str` shows it.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

/// A value as Python's `repr` shows it; of characters that cannot be printed it escapes only the
/// usual ones.
fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => float_text(float),
            _ => number.to_string(),
        },
        Value::String(text) => {
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            let mut shown = String::from(quote);
            for character in text.chars() {
                match character {
                    '\n' => shown.push_str("\\n"),
                    '\r' => shown.push_str("\\r"),
                    '\t' => shown.push_str("\\t"),
                    _ if character == quote || character == '\\' => shown.extend(['\\', character]),
                    _ => shown.push(character),
                }
            }
            shown.push(quote);
            shown
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(repr).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(object) => {
            let key = |key: &String| repr(&Value::String(key.clone()));
            let items: Vec<String> = object
                .iter()
                .map(|(name, value)| format!("{}: {}", key(name), repr(value)))
                .collect();
            format!("{{{}}}", items.join(", "))
        }
    }
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
    fn values_are_shown_as_python_shows_them() {
        for (value, text) in [
            (json!(null), "None"),
            (json!(true), "True"),
            (json!(1), "1"),
            (json!(1.0), "1.0"),
            (json!("a'b"), "a'b"),
            (json!(["a'b", "c\n", {"k": null}]), r#"["a'b", 'c\n', {'k': None}]"#),
        ] {
            assert_eq!(shown(&value), text);
        }
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

    #[test]
    fn limits_are_integer_like_and_clamped() {
        for (value, most) in [
            (json!(null), 5000),
            (json!("many"), 5000),
            (json!("4.5"), 5000),
            (json!(" 4 "), 4),
            (json!(4.7), 4),
            (json!(true), 1),
            (json!(0), 1),
            (json!(-7), 1),
            (json!(1e300), 5000),
            (json!([1]), 5000),
        ] {
            let request = JsonObject::from_iter([("max_entries".to_owned(), value.clone())]);
            assert_eq!(max_entries(&request), most, "{value}");
        }
    }
}
