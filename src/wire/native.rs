//! The native protocol between our executor and our sandbox server, version 3.
//!
//! A *session* is one executor's use of one server. Any number of them share its slots: each wants
//! a number, and has a [`Lease`] of those that it was given. What it wants done in a slot is a row
//! of numbered *operations* – calls, resets, begins – with numbers that only grow.
//!
//! | route | what |
//! |---|---|
//! | `POST /v3/session` | begins, resumes or ends a session; resuming is the client's heartbeat |
//! | `POST /v3/calls` | hands operations over; answered at once, with the results that are there already |
//! | `POST /v3/results` | an endless stream of lines: a result as soon as it is there, a beat every few seconds |
//! | `POST /v3/archive` | a workspace's archive, as lines |
//! | `POST /v3/put`, `/v3/put_result`, `/v3/copy` | files in and out, byte by byte; see `files` |
//! | `POST /v3/snapshots` | keeps the files of a slot, grades them, gives a snapshot up: one line, behind beats |
//!
//! **Exactly once**: an operation is named by slot and number. One that is sent again joins the
//! first one or gets its result; a number below the slot's latest is *stale* and runs nothing. The
//! latest result of each slot is kept until the slot's next operation, which a client sends only
//! after it has that result. A result may be told in an answer that never arrives: so each beat of
//! the stream names those that were told. So a request may be repeated, and a stream resumed,
//! after any loss: with the list of what the client still waits for, the server repeats the
//! results it has, and says which operations it never got. A put is no operation: one that broke is
//! not sent again, unless nothing of it was.
//!
//! **Fencing**: each lease of a slot has an epoch that only grows, and an operation names it. One
//! under another epoch than the slot's present one is *fenced*: it runs nothing. So a client that
//! was stopped, and wakes when its slots belong to others, harms none of them.
//!
//! **The lease** is told whole whenever it changes, under a version that grows: in the answer to
//! [`SESSION`] and by a line of the stream. It names the slots that the session holds, and how many
//! it may hold: a client gives back what is more, idle slots at once, others at their release. One
//! of a server that is about to end says so, and that it may hold none.
//!
//! **Images**: the same answer says which images the server has, whenever that has changed since
//! the version that its client names.
//!
//! **Older versions**: version 1 knew one session a server, version 2 no specs of trajectories. A
//! client of one is refused by name on its routes, which is why its feature is still advertised:
//! without it that client would take the server for one that knows only the plain routes, and drive
//! it by them.

pub(crate) mod files;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::null_as_default;
use crate::artifact::ArchiveFormat;
use crate::grade::{GradeResult, GradeSpec};
use crate::image_key::ImageKey;
use crate::snapshot::{SnapshotError, SnapshotInfo, SnapshotOptions};
use crate::spec::{SnapshotId, TrajectorySpec};
use crate::tool::{JsonObject, Outcome, ToolResult};

/// The feature's name in `/health`.
pub(crate) const FEATURE: &str = "native-3";
/// How the features of all versions begin.
pub(crate) const FEATURES: &str = "native-";
/// The features of clients that are refused, and how their routes begin.
#[cfg(feature = "server")]
pub(crate) const OLDER: [(&str, &str); 2] = [("native-2", "/v2/"), ("native-1", "/v1/")];

/// The routes.
pub(crate) const SESSION: &str = "/v3/session";
/// See [`SESSION`].
pub(crate) const CALLS: &str = "/v3/calls";
/// See [`SESSION`].
pub(crate) const RESULTS: &str = "/v3/results";
/// See [`SESSION`].
pub(crate) const ARCHIVE: &str = "/v3/archive";

/// See [`SESSION`].
pub(crate) const SNAPSHOTS: &str = "/v3/snapshots";

/// The longest line of results, in bytes. A result that takes more is told as a failure.
pub(crate) const MAX_LINE: usize = 16 * 1024 * 1024;

/// An operation's name: the slot's index, and the operation's number there.
pub(crate) type Key = (usize, u64);

/// A lease's name: the slot's index, and the epoch.
pub(crate) type LeaseKey = (usize, u64);

/// What a session has and may have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// Grows with each change.
    pub(crate) version: u64,
    /// The slots that it holds.
    pub(crate) held: Vec<LeaseKey>,
    /// How many it may hold.
    pub(crate) limit: usize,
    /// How many sessions share the server, this one too.
    pub(crate) sessions: usize,
    /// Whether the server is about to end: it leases no slot any more, and what is given back stays
    /// with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) draining: bool,
}

/// What is asked of snapshots. It is done once: no such request is repeated.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotsRequest {
    /// The client's session, which snapshots belong to, and go with.
    pub(crate) session: String,
    /// What.
    pub(crate) ask: SnapshotsAsk,
}

/// See [`SnapshotsRequest`]. What names a slot runs in its turn, under the lease of this epoch.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SnapshotsAsk {
    /// Answered by [`SnapshotsLine::Made`].
    Snapshot { slot: usize, epoch: u64, options: SnapshotOptions },
    /// Answered by [`SnapshotsLine::Graded`].
    Grade { slot: usize, epoch: u64, spec: Box<GradeSpec> },
    /// Answered by [`SnapshotsLine::Dropped`].
    Drop { id: SnapshotId },
}

/// The answer to [`SnapshotsRequest`]: a line, before which there may be empty ones.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SnapshotsLine {
    /// It is kept.
    Made(SnapshotInfo),
    /// What the grader gave.
    Graded(Box<GradeResult>),
    /// It is given up.
    Dropped,
    /// Why not: a [`SnapshotError`] by its code, its text, and what else it has.
    Failed { code: String, text: String, names: Vec<String>, number: usize },
}

impl SnapshotsLine {
    /// An error as a line.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
    pub(crate) fn failed(error: SnapshotError) -> Self {
        let (mut names, mut number) = (Vec::new(), 0);
        let mut text = error.to_string();
        let code = match error {
            SnapshotError::NoSlot => "no_slot",
            SnapshotError::KeepsProcesses(kept) => {
                names = kept;
                "keeps_processes"
            }
            SnapshotError::TooMany(most) => {
                number = most;
                "too_many"
            }
            SnapshotError::TooDeep(most) => {
                number = most;
                "too_deep"
            }
            SnapshotError::NotFound(id) => {
                text = id.as_str().to_owned();
                "not_found"
            }
            SnapshotError::Invalid(why) => {
                text = why;
                "invalid"
            }
            SnapshotError::SandboxLost(why) => {
                text = why;
                "sandbox_lost"
            }
            SnapshotError::Closed => "closed",
            SnapshotError::Unsupported(why) => {
                text = why;
                "unsupported"
            }
            SnapshotError::Io(..) => "failed",
        };
        Self::Failed { code: code.to_owned(), text, names, number }
    }

    /// The error of a line that is not the one that was waited for.
    pub(crate) fn into_error(self) -> SnapshotError {
        let Self::Failed { code, text, names, number } = self else {
            let text = "the sandbox server answers something else";
            return SnapshotError::Io(text.to_owned(), std::io::ErrorKind::InvalidData.into());
        };
        match &*code {
            "no_slot" => SnapshotError::NoSlot,
            "keeps_processes" => SnapshotError::KeepsProcesses(names),
            "too_many" => SnapshotError::TooMany(number),
            "too_deep" => SnapshotError::TooDeep(number),
            "not_found" => SnapshotError::NotFound(SnapshotId::new(text)),
            "invalid" => SnapshotError::Invalid(text),
            // A server that closes is gone for its clients.
            "sandbox_lost" | "closed" => SnapshotError::SandboxLost(text),
            "unsupported" => SnapshotError::Unsupported(text),
            _ => {
                let error = std::io::Error::other(text.clone());
                SnapshotError::Io(text, error)
            }
        }
    }
}

/// Begins, resumes or ends a session.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SessionRequest {
    /// The client's name for it, never used before for another.
    pub(crate) session: String,
    /// A session of the same client that ends with this one's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<String>,
    /// Whether it must be there already.
    #[serde(default)]
    pub(crate) resume: bool,
    /// Whether it is to end: everything that runs is cancelled.
    #[serde(default)]
    pub(crate) end: bool,
    /// How many slots it wants; without a number, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) want: Option<usize>,
    /// How many slots it has on other servers.
    #[serde(default)]
    pub(crate) elsewhere: usize,
    /// The version of [`ImagesTold`] that the client knows, 0 for none. Without it the client does
    /// not want to know: it is of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) images_seen: Option<u64>,
}

/// Which images a server has, and how much room for more. Names stand in it by their keys, eight
/// bytes each, as base64: of 2,000 images it has some 40 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImagesTold {
    /// Grows with each change, while the server runs.
    pub(crate) version: u64,
    pub(crate) has: String,
    /// Those that it is pulling or unpacking.
    #[serde(default)]
    pub(crate) pulling: String,
    #[serde(default)]
    pub(crate) free_bytes: Option<u64>,
    /// Whether its disk is too full for an image that it lacks.
    #[serde(default)]
    pub(crate) is_full: bool,
}

/// Keys as they are told.
#[cfg_attr(not(any(feature = "server", test)), allow(dead_code, reason = "a server's"))]
pub(crate) fn pack_keys(keys: impl Iterator<Item = ImageKey>) -> String {
    let bytes: Vec<u8> = keys.flat_map(|key| key.get().to_le_bytes()).collect();
    BASE64.encode(bytes)
}

/// Keys that were told; none where it makes no sense.
pub(crate) fn unpack_keys(text: &str) -> Vec<ImageKey> {
    let bytes = BASE64.decode(text).unwrap_or_default();
    let (keys, rest) = bytes.as_chunks::<8>();
    match rest {
        [] => keys.iter().map(|key| u64::from_le_bytes(*key).into()).collect(),
        _ => Vec::new(),
    }
}

/// The answer to [`SessionRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SessionResponse {
    /// Names this run of the server: another one has lost all that was before.
    pub(crate) instance: String,
    /// Whether the session was there already.
    pub(crate) resumed: bool,
    /// The names of all slots of the server.
    pub(crate) slots: Vec<String>,
    /// Which of them are the session's.
    pub(crate) lease: Lease,
    /// How long the session lives without being heard of, in seconds.
    pub(crate) lease_s: f64,
    /// The largest body of a request, in bytes.
    pub(crate) max_body: usize,
    /// Which images the server has, if that is not what the client knows already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) images: Option<ImagesTold>,
}

/// Hands operations over. Written by [`calls_body`], which takes them ready-made.
#[cfg(any(feature = "server", test))]
#[derive(Debug, Deserialize)]
pub(crate) struct CallsRequest {
    pub(crate) session: String,
    #[serde(default)]
    pub(crate) ops: Vec<Op>,
    /// Operations whose end is wanted.
    #[serde(default)]
    pub(crate) cancel: Vec<Key>,
    /// Slots that the session gives back.
    #[serde(default)]
    pub(crate) give_back: Vec<LeaseKey>,
}

/// One operation: a call, with `reset` a reset, with `begin` a trajectory's begin.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Op {
    pub(crate) slot: usize,
    pub(crate) seq: u64,
    /// Of the slot's lease.
    pub(crate) epoch: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) reset: bool,
    /// What the slot is to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) begin: Option<Arc<TrajectorySpec>>,
    /// For people who look into the server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) trajectory_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) tool: String,
    #[serde(default, skip_serializing_if = "JsonObject::is_empty")]
    pub(crate) args: JsonObject,
    /// Seconds.
    #[serde(default)]
    pub(crate) timeout: f64,
}

/// The answer to [`CallsRequest`]: all operations were taken, and some are done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CallsResponse {
    pub(crate) results: Vec<OpResult>,
}

/// Opens the stream of results.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ResultsRequest {
    pub(crate) session: String,
    /// What the client has sent and has no result of.
    #[serde(default)]
    pub(crate) waiting: Vec<Key>,
}

/// A line of the stream of results.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum ResultLine {
    /// Something became of an operation.
    Op(OpResult),
    /// The lease has changed, or the stream begins.
    Lease { lease: Lease },
    /// The server is there. By `told` it names the operations whose results it has told already, in
    /// this stream or in an answer: a client that has none of one asks again, by another stream.
    Beat {
        beat: u64,
        #[serde(default)]
        told: Vec<Key>,
    },
}

/// What became of an operation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OpResult {
    pub(crate) slot: usize,
    pub(crate) seq: u64,
    #[serde(flatten)]
    pub(crate) what: OpOutcome,
}

/// See [`OpResult`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OpOutcome {
    /// It ended.
    Done(NativeResult),
    /// The server has never got it.
    Unknown(bool),
    /// A later operation of the slot came first; this one runs no more.
    Stale(bool),
    /// The slot is not the session's under the operation's epoch; it never ran.
    Fenced(bool),
}

/// A call's result, with all that programs want to know. For a reset, `error` says why it failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NativeResult {
    pub(crate) outcome: String,
    pub(crate) may_have_executed: bool,
    /// For people who look into the traffic: a client asks the outcome.
    #[serde(default)]
    pub(crate) model_attributable: bool,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) output: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) error: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) metadata: JsonObject,
}

impl From<ToolResult> for NativeResult {
    fn from(result: ToolResult) -> Self {
        Self {
            outcome: result.outcome.as_str().to_owned(),
            may_have_executed: result.may_have_executed,
            model_attributable: result.model_attributable(),
            output: result.output,
            error: result.error,
            metadata: result.metadata,
        }
    }
}

impl From<Result<(), String>> for NativeResult {
    /// A reset's result.
    fn from(reset: Result<(), String>) -> Self {
        match reset {
            Ok(()) => ToolResult::ok("").into(),
            Err(error) => ToolResult::failure(Outcome::BackendFailed, error).into(),
        }
    }
}

impl NativeResult {
    /// The result for its caller. An outcome of a later version is a failure of the backend: what
    /// it says is in the text.
    pub(crate) fn into_tool_result(self) -> ToolResult {
        let outcome = self.outcome.parse().unwrap_or(Outcome::BackendFailed);
        ToolResult {
            success: outcome == Outcome::Ok,
            output: self.output,
            metadata: self.metadata,
            may_have_executed: self.may_have_executed,
            ..ToolResult::failure(outcome, self.error)
        }
    }
}

/// The body of a [`CallsRequest`] of operations that were serialised before.
pub(crate) fn calls_body<'a>(
    session: &str,
    ops: impl Iterator<Item = &'a str>,
    cancel: &[Key],
    give_back: &[LeaseKey],
) -> String {
    let mut body = format!("{{\"session\":\"{session}\",\"ops\":[");
    for (number, op) in ops.enumerate() {
        if number > 0 {
            body.push(',');
        }
        body.push_str(op);
    }
    for (name, pairs) in [("cancel", cancel), ("give_back", give_back)] {
        body.push_str(&format!("],\"{name}\":["));
        for (number, (slot, other)) in pairs.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            body.push_str(&format!("{comma}[{slot},{other}]"));
        }
    }
    body.push_str("]}");
    body
}

/// What to archive.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ArchiveRequest {
    pub(crate) session: String,
    pub(crate) epoch: u64,
    pub(crate) slot: usize,
    pub(crate) path: String,
    pub(crate) max_bytes: u64,
    pub(crate) max_entries: usize,
    #[serde(default)]
    pub(crate) format: ArchiveFormat,
}

/// A line of an archive: pieces, then its end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ArchiveLine {
    /// The next bytes, as base64.
    Piece(String),
    /// All is there.
    End { bytes: u64, entry_count: u64, truncated: bool },
    /// It failed: the code of the artifact error, and what it needs.
    Failed { code: String, text: String, bytes: u64 },
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_body_of_ready_made_operations_is_read_back() {
        let op = Op {
            slot: 3,
            seq: 7,
            epoch: 4,
            reset: false,
            begin: None,
            trajectory_id: "t".to_owned(),
            tool: "bash".to_owned(),
            args: JsonObject::from_iter([("command".to_owned(), json!("x"))]),
            timeout: 1.5,
        };
        let op = serde_json::to_string(&op).unwrap();
        let body = calls_body(
            "s",
            [&*op, r#"{"slot":0,"seq":1,"epoch":1,"reset":true}"#].into_iter(),
            &[(3, 7), (0, 1)],
            &[(2, 9)],
        );
        let read: CallsRequest = serde_json::from_str(&body).unwrap();
        assert_eq!((read.session.as_str(), read.ops.len()), ("s", 2));
        assert_eq!((&*read.cancel, &*read.give_back), (&[(3, 7), (0, 1)][..], &[(2, 9)][..]));
        assert!(read.ops[1].reset && read.ops[0].args["command"] == "x");
    }

    #[test]
    fn lines_say_what_they_are() {
        let line = OpResult { slot: 1, seq: 2, what: OpOutcome::Done(ToolResult::ok("o").into()) };
        let text = serde_json::to_string(&ResultLine::Op(line)).unwrap();
        assert_eq!(
            text,
            r#"{"slot":1,"seq":2,"done":{"outcome":"ok","may_have_executed":true,"model_attributable":true,"output":"o","error":"","metadata":{}}}"#
        );
        assert!(matches!(serde_json::from_str(&text).unwrap(), ResultLine::Op(_)));
        assert!(matches!(
            serde_json::from_str(r#"{"beat":1}"#).unwrap(),
            ResultLine::Beat { beat: 1, told } if told.is_empty()
        ));
        for garbage in ["{}", "[]", "1", r#"{"slot":1}"#, r#"{"slot":1,"seq":2}"#] {
            assert!(serde_json::from_str::<ResultLine>(garbage).is_err(), "{garbage}");
        }
    }

    #[test]
    fn keys_of_images_are_packed_and_what_makes_no_sense_is_none() {
        let keys = || ["python", "/images/a"].map(|name| ImageKey::of(name).unwrap());
        let text = pack_keys(keys().into_iter());
        assert_eq!(unpack_keys(&text), keys());
        for garbage in ["", "?", "AAAA", &text[..12]] {
            assert_eq!(unpack_keys(garbage), []);
        }
        // What a client of an older version asks, and a server of one answers.
        let asked: SessionRequest = serde_json::from_str(r#"{"session":"s"}"#).unwrap();
        assert_eq!(asked.images_seen, None);
        let answer = json!({"instance": "i", "resumed": false, "slots": [], "lease_s": 1.0,
            "max_body": 1, "lease": {"version": 1, "held": [], "limit": 0, "sessions": 1}});
        let answer: SessionResponse = serde_json::from_value(answer).unwrap();
        assert_eq!(answer.images, None);
    }

    #[test]
    fn an_outcome_of_a_later_version_is_a_failure_of_the_backend() {
        let mut result = NativeResult::from(ToolResult::ok("o"));
        result.outcome = "brand_new".to_owned();
        let result = result.into_tool_result();
        assert_eq!((result.outcome, result.success), (Outcome::BackendFailed, false));
    }
}
