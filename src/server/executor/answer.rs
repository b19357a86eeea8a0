//! What the routes answer, as JSON: compact, UTF-8 kept, every field always there.

use std::error::Error;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::validate::{ArchiveRequest, ListRequest, ParseRequest, ReadRequest, ReplyForm, Written};
use crate::artifact::{ArchiveSummary, Artifact, ArtifactError, ArtifactList};
use crate::executor::{Lease, Stats, ToolExecutor};
use crate::tool::format::{CallParser, MessageForm};
use crate::tool::{JsonObject, ToolRegistry, ToolResult};
use crate::wire::OutcomeFields;

/// The JSON text of an answer.
pub(super) fn to_json(answer: &impl Serialize) -> Vec<u8> {
    // Nothing here has keys that are no strings, which is all that can go wrong.
    serde_json::to_vec(answer).unwrap_or_else(|_| b"{}".to_vec())
}

/// A tool's result: five keys as the reference has them, then how the call ended.
#[derive(Serialize)]
pub(super) struct ResultAnswer<'a> {
    success: bool,
    output: &'a str,
    error: &'a str,
    metadata: &'a JsonObject,
    uniq_id: Option<&'a str>,
    #[serde(flatten)]
    outcome: OutcomeFields,
    /// The same in the form of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Value>,
}

impl<'a> ResultAnswer<'a> {
    /// The answer for this result, with a message of the form that its call had.
    pub(super) fn of(result: &'a ToolResult, reply: Option<&ReplyForm>) -> Self {
        let ToolResult { success, output, error, metadata, uniq_id, .. } = result;
        let (success, uniq_id, outcome) = (*success, uniq_id.as_deref(), result.into());
        let message = reply.map(|ReplyForm { form, name }| {
            let mut message = result.to_message(*form);
            if *form == MessageForm::OpenAiFunctionCall {
                message["name"] = name.as_str().into();
            }
            message
        });
        Self { success, output, error, metadata, uniq_id, outcome, message }
    }
}

/// Reads what a model wrote and gives the answer to `/parse`: all calls in their order, which
/// `/execute` takes as they are, and which of them cannot be read or were mended.
///
/// # Errors
/// What is wrong with the message, as one that `/parse` refuses.
pub(super) fn parse(registry: &ToolRegistry, request: &ParseRequest) -> Result<Vec<u8>, String> {
    let parser = CallParser::new(request.format).registry(registry);
    let parsed = match &request.what {
        Written::Text(text) => parser.parse(text).map_err(|error| error.to_string())?,
        Written::Message(message) => {
            parser.parse_message(message).map_err(|error| error.to_string())?
        }
    };
    let (mut problems, mut repairs) = (Vec::new(), Vec::new());
    for (index, call) in parsed.calls.iter().enumerate() {
        let Some(origin) = &call.origin else { continue };
        if let Some(error) = origin.error() {
            problems.push(json!({"index": index, "uniq_id": call.uniq_id, "error": error}));
        }
        if !origin.repairs.is_empty() {
            let names = &origin.repairs;
            repairs.push(json!({"index": index, "uniq_id": call.uniq_id, "repairs": names}));
        }
    }
    Ok(to_json(&json!({
        "calls": parsed.calls,
        "problems": problems,
        "repairs": repairs,
        "unclosed_thinking": parsed.unclosed_thinking,
    })))
}

/// The answer to `/status`. The names of trajectories are for those who may use the server.
pub(super) fn status(stats: &Stats, names: bool) -> Vec<u8> {
    let slots = &stats.slots;
    let available = slots.clean + slots.dirty;
    let mut by_state = Map::new();
    by_state.insert("acquired".to_owned(), json!(slots.held));
    by_state.insert("available".to_owned(), json!(available));
    // The states that the reference knows are told above; the others have the names they have here.
    if let Ok(Value::Object(all)) = serde_json::to_value(slots) {
        let known = ["total", "clean", "dirty", "held"];
        let others = all.into_iter().filter(|(state, slots)| {
            !known.contains(&state.as_str()) && slots.as_u64().is_some_and(|slots| slots > 0)
        });
        by_state.extend(others);
    }
    let idle_holders = stats.idle_holders.iter().map(|holder| match names {
        true => json!(holder),
        false => json!({"idle_s": holder.idle_s}),
    });
    let bad = stats.bad_containers.iter().map(|bad| match names {
        true => json!(bad),
        false => json!({"again_in_s": bad.again_in.as_secs_f64()}),
    });
    // What commands may do where is for those who may use the server.
    let backends = stats.backends.iter().map(|backend| {
        let mut told = json!({
            "name": backend.name,
            "containers": backend.containers,
            "slots": backend.slots,
            "free": backend.free,
            "waiting": backend.waiting,
        });
        if names {
            told["capabilities"] = json!(backend.capabilities);
        }
        told
    });
    let mut told = json!({
        "queue_size": stats.queue_size,
        "total_requests": stats.total_requests,
        "total_errors": stats.total_errors,
        "pool": {
            "total_slots": slots.total,
            "available_slots": available,
            "acquired_slots": slots.held,
            "containers": stats.containers.up + stats.containers.draining + stats.containers.unknown,
            "slots_by_state": by_state,
            "started": true,
        },
        "waiting_for_slot": stats.waiting_for_slot,
        "idle_slots": stats.idle_slots,
        "idle_holders": idle_holders.collect::<Vec<_>>(),
        "stalled_s": stats.stalled_s,
        "bad_containers": bad.collect::<Vec<_>>(),
        "images": stats.images,
    });
    if !stats.backends.is_empty() {
        told["backends"] = backends.collect::<Vec<_>>().into();
    }
    to_json(&told)
}

/// The answer to `GET /sandboxes`.
pub(super) fn sandboxes(stats: &Stats) -> Vec<u8> {
    let sandboxes = stats.lanes.iter().map(|lane| {
        json!({
            "url": lane.addr,
            "state": lane.state,
            "slots": lane.slots,
            "slots_held": lane.held,
            "running": lane.running,
            "images": lane.images,
            "image_pulls": lane.image_pulls,
            "image_bytes_free": lane.image_bytes_free,
            "image_disk_full": lane.image_disk_full,
        })
    });
    let bad = &stats.bad_containers;
    to_json(&json!({"sandboxes": sandboxes.collect::<Vec<_>>(), "bad_sandboxes": bad}))
}

#[derive(Serialize)]
struct ReadAnswer<'a> {
    success: bool,
    content: &'a str,
    error: &'a str,
    encoding: &'a str,
    truncated: bool,
    bytes: usize,
    file_size: Option<u64>,
    path: &'a str,
    mime: Option<&'a str>,
    sha256: Option<&'a str>,
}

/// The use of a slot whose artifacts are asked for, or why there is none.
pub(super) type Lent = Result<Lease, ArtifactError>;

/// Reads an artifact and gives the answer to `/artifacts/read`. Blocks.
pub(super) fn read(executor: &ToolExecutor, lent: Lent, request: &ReadRequest) -> Vec<u8> {
    let artifact = lent.and_then(|lease| executor.read_leased(&lease, &request.what));
    read_answer(artifact, request.base64)
}

fn read_answer(artifact: Result<Artifact, ArtifactError>, base64: bool) -> Vec<u8> {
    let artifact = match artifact {
        Ok(artifact) => artifact,
        Err(error) => {
            return to_json(&ReadAnswer {
                success: false,
                content: "",
                error: &told(&error),
                encoding: "text",
                truncated: false,
                bytes: 0,
                file_size: None,
                path: "",
                mime: None,
                sha256: None,
            });
        }
    };
    let (encoding, content) = if base64 {
        ("base64", STANDARD.encode(&artifact.content).into())
    } else {
        ("text", String::from_utf8_lossy(&artifact.content))
    };
    to_json(&ReadAnswer {
        success: true,
        content: &content,
        error: "",
        encoding,
        truncated: artifact.truncated,
        bytes: artifact.content.len(),
        file_size: Some(artifact.file_size),
        path: &artifact.path,
        mime: Some(&artifact.mime),
        sha256: artifact.sha256.as_deref(),
    })
}

#[derive(Serialize)]
struct ListAnswer<'a> {
    success: bool,
    entries: Vec<Entry<'a>>,
    truncated: bool,
    error: &'a str,
}

#[derive(Serialize)]
struct Entry<'a> {
    path: &'a str,
    is_dir: bool,
    size: u64,
    mtime: f64,
}

/// Lists artifacts and gives the answer to `/artifacts/list`. Blocks.
pub(super) fn list(executor: &ToolExecutor, lent: Lent, request: &ListRequest) -> Vec<u8> {
    list_answer(lent.and_then(|lease| executor.list_leased(&lease, &request.what)))
}

fn list_answer(list: Result<ArtifactList, ArtifactError>) -> Vec<u8> {
    match list {
        Ok(list) => {
            let entries = list.entries.iter().map(|entry| Entry {
                path: &entry.path,
                is_dir: entry.is_dir,
                size: entry.size,
                mtime: entry.mtime,
            });
            to_json(&ListAnswer {
                success: true,
                entries: entries.collect(),
                truncated: list.truncated,
                error: "",
            })
        }
        Err(error) => to_json(&ListAnswer {
            success: false,
            entries: Vec::new(),
            truncated: false,
            error: &told(&error),
        }),
    }
}

#[derive(Serialize)]
struct ArchiveAnswer<'a> {
    success: bool,
    content: &'a str,
    error: &'a str,
    encoding: &'a str,
    format: &'a str,
    bytes: u64,
    entry_count: u64,
}

/// Archives artifacts and gives the answer to `/artifacts/archive`. Blocks.
pub(super) fn archive(executor: &ToolExecutor, lent: Lent, request: &ArchiveRequest) -> Vec<u8> {
    archive_answer(lent.and_then(|lease| executor.archive_leased(&lease, &request.what)))
}

fn archive_answer(archive: Result<(Vec<u8>, ArchiveSummary), ArtifactError>) -> Vec<u8> {
    let (success, content, error, bytes, entry_count) = match archive {
        Ok((archive, summary)) => {
            let content = STANDARD.encode(&archive);
            (true, content, String::new(), archive.len() as u64, summary.entry_count)
        }
        Err(error) => {
            let bytes = match error {
                ArtifactError::TooLarge { bytes, .. } => bytes,
                _ => 0,
            };
            (false, String::new(), told(&error), bytes, 0)
        }
    };
    to_json(&ArchiveAnswer {
        success,
        content: &content,
        error: &error,
        encoding: "base64",
        format: "tar.gz",
        bytes,
        entry_count,
    })
}

/// An error and its causes, in one line: a client has no other way to see them.
pub(super) fn told(error: &ArtifactError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::ArtifactEntry;

    fn text(answer: Vec<u8>) -> String {
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn artifacts_are_told_with_every_field() {
        let artifact = || Artifact {
            content: b"h\xc3\xa9\xff".to_vec(),
            offset: 0,
            file_size: 9,
            truncated: true,
            path: "a.txt".to_owned(),
            mime: "text/plain".to_owned(),
            sha256: Some("00".to_owned()),
            file_sha256: None,
        };
        assert_eq!(
            text(read_answer(Ok(artifact()), false)),
            r#"{"success":true,"content":"hé�","error":"","encoding":"text","truncated":true,"bytes":4,"file_size":9,"path":"a.txt","mime":"text/plain","sha256":"00"}"#
        );
        let base64 = text(read_answer(Ok(artifact()), true));
        assert!(base64.contains(r#""content":"aMOp/w==","error":"","encoding":"base64""#));

        let entry =
            ArtifactEntry { path: "a".to_owned(), is_dir: false, size: 2, mtime: 1795330292.8 };
        let list = ArtifactList { entries: vec![entry], truncated: false };
        assert_eq!(
            text(list_answer(Ok(list))),
            r#"{"success":true,"entries":[{"path":"a","is_dir":false,"size":2,"mtime":1795330292.8}],"truncated":false,"error":""}"#
        );

        let summary = ArchiveSummary { bytes: 2, entry_count: 3, truncated: false };
        assert_eq!(
            text(archive_answer(Ok((b"hi".to_vec(), summary)))),
            r#"{"success":true,"content":"aGk=","error":"","encoding":"base64","format":"tar.gz","bytes":2,"entry_count":3}"#
        );
        assert_eq!(
            text(archive_answer(Err(ArtifactError::TooLarge { bytes: 734, max: 3 }))),
            r#"{"success":false,"content":"","error":"Archive too large: 734 bytes (max 3)","encoding":"base64","format":"tar.gz","bytes":734,"entry_count":0}"#
        );
        let error = ArtifactError::Io("cannot read a".to_owned(), std::io::Error::other("why"));
        assert!(text(list_answer(Err(error))).contains("cannot read a: why"));
    }
}
