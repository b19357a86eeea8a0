//! The native protocol's side of a sandbox server: sessions, operations, the stream of results. What
//! is said is in `wire::native`.
//!
//! A server has one session at a time. It lives while its stream of results is open, and for
//! [`LEASE`] after it was last heard of; then what runs of it is cancelled. Meanwhile no other client
//! gets one.
//!
//! # Bounds
//! One operation and one result per slot; what a stream has still to send is looked up there, so that
//! a client that does not read costs nothing but its connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{Notify, mpsc, oneshot};

use super::slots::{SlotCall, Slots};
use crate::artifact::{ArchiveArtifacts, ArtifactError};
use crate::backend::ExecutionId;
use crate::server::http::{self, BodyError, Request, Response, StatusCode};
use crate::wire::native::{
    ARCHIVE, ArchiveLine, ArchiveRequest, CALLS, CallsRequest, CallsResponse, Key, NativeResult,
    Op, OpOutcome, OpResult, RESULTS, ResultLine, ResultsRequest, SESSION, SessionRequest,
    SessionResponse,
};

/// How long a session lives without being heard of: longer than its client tries to find the server
/// again, shorter than the next client waits at its start.
const LEASE: Duration = Duration::from_secs(45);
/// How often a stream says that the server is there.
const BEAT: Duration = Duration::from_secs(2);
/// How long the answer to calls waits for their hand-over, which should be immediate.
const HAND_OVER: Duration = Duration::from_secs(1);
/// The bytes of an archive in one line.
const PIECE: usize = 192 * 1024;
/// The longest time that a call may be given.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The native side of a server.
pub(super) struct Native {
    slots: Arc<Slots>,
    instance: String,
    max_body: usize,
    session: Mutex<Option<Session>>,
    /// Held while operations are noted and enter their slots, so that they enter in the order in which
    /// they were noted, and none enters after its session. Taken before `session`.
    entering: Mutex<()>,
    /// Told when a result is there, and when a session ends.
    news: Notify,
    lease_watched: AtomicBool,
    /// Streams of results end as soon as nothing runs.
    closing: AtomicBool,
}

struct Session {
    id: String,
    /// By slot.
    ops: Vec<SlotOps>,
    /// The results that no answer has carried yet.
    untold: VecDeque<Key>,
    heard: Instant,
    /// Counts the streams of results; only the latest one lives.
    stream: u64,
    streaming: bool,
}

/// What a session has done in a slot: its latest operation.
#[derive(Default)]
struct SlotOps {
    seq: u64,
    what: What,
    /// An operation whose end was asked for before it came.
    cancelled: u64,
}

#[derive(Default)]
enum What {
    #[default]
    Nothing,
    Running(Option<ExecutionId>),
    Done(Arc<NativeResult>),
}

/// An answer to be given at once.
type Refusal = Box<Response>;

impl Native {
    /// The native side of the server that is called `instance`.
    pub(super) fn new(slots: Arc<Slots>, instance: String, max_body: usize) -> Arc<Self> {
        Arc::new(Self {
            slots,
            instance,
            max_body,
            session: Mutex::new(None),
            entering: Mutex::new(()),
            news: Notify::new(),
            lease_watched: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        })
    }

    /// Ends the stream of results when nothing runs any more.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.news.notify_waiters();
    }

    /// Answers a request to one of the native routes; `None` if there is no such route.
    pub(super) async fn serve(self: &Arc<Self>, request: Request) -> Option<Response> {
        let path = request.path().to_owned();
        if ![SESSION, CALLS, RESULTS, ARCHIVE].contains(&path.as_str()) {
            return None;
        }
        if request.method() != http::Method::POST {
            return Some(detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"));
        }
        let body = match request.read_body(self.max_body).await {
            Ok(body) => body,
            Err(error) => return Some(unreadable(error)),
        };
        let answered = match path.as_str() {
            SESSION => parse(&body).and_then(|request| self.session(request)),
            CALLS => match parse(&body) {
                Ok(request) => self.calls(request).await,
                Err(refusal) => Err(refusal),
            },
            RESULTS => parse(&body).and_then(|request| self.results(request)),
            _ => parse(&body).and_then(|request| self.archive(request)),
        };
        Some(answered.unwrap_or_else(|refusal| *refusal))
    }

    fn session(self: &Arc<Self>, request: SessionRequest) -> Result<Response, Refusal> {
        let _in_order = self.entering.lock();
        let mut current = self.session.lock();
        let now = Instant::now();
        if request.resume && current.as_ref().is_none_or(|session| session.id != request.session) {
            return Err(unknown_session());
        }
        if let Some(session) = current.as_mut() {
            let is_his = session.id == request.session;
            let replaced = request.replaces.as_ref() == Some(&session.id);
            if is_his && !request.end {
                session.heard = now;
            } else if is_his || replaced || session.is_over(now) {
                let ended = current.take();
                self.end(ended);
            } else {
                return Err(Box::new(detail(
                    StatusCode::CONFLICT,
                    "another executor uses this sandbox server",
                )));
            }
        }
        if request.end {
            return Ok(json(&json!({"status": "ok"})));
        }
        let resumed = current.is_some();
        current.get_or_insert_with(|| Session {
            id: request.session,
            ops: (0..self.slots.len()).map(|_| SlotOps::default()).collect(),
            untold: VecDeque::new(),
            heard: now,
            stream: 0,
            streaming: false,
        });
        drop(current);
        self.watch_lease();
        Ok(json(&SessionResponse {
            instance: self.instance.clone(),
            resumed,
            slots: (0..self.slots.len()).map(|slot| self.slots.name(slot).to_owned()).collect(),
            max_body: self.max_body,
        }))
    }

    /// Ends sessions that are not heard of any more.
    fn watch_lease(self: &Arc<Self>) {
        if self.lease_watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let native = Arc::downgrade(self);
        // Ends with the server's runtime, or the server.
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LEASE / 10).await;
                let Some(native) = native.upgrade() else { return };
                let _in_order = native.entering.lock();
                let mut current = native.session.lock();
                if current.as_ref().is_some_and(|session| session.is_over(Instant::now())) {
                    log::warn!("an executor is not heard of any more; its calls are cancelled");
                    let ended = current.take();
                    native.end(ended);
                }
            }
        });
    }

    fn end(&self, session: Option<Session>) {
        for ops in session.into_iter().flat_map(|session| session.ops) {
            if let What::Running(Some(id)) = ops.what {
                self.slots.cancel(id);
            }
        }
        self.news.notify_waiters();
    }

    async fn calls(self: &Arc<Self>, request: CallsRequest) -> Result<Response, Refusal> {
        let CallsRequest { session: id, ops, cancel } = request;
        let asked: Vec<Key> = ops.iter().map(|op| (op.slot, op.seq)).collect();
        let handed_over = self.take_in(&id, ops, &cancel)?;
        // Late, it still happens; the results come by the stream.
        let _ = tokio::time::timeout(HAND_OVER, handed_over).await;
        let mut current = self.session.lock();
        let session = current.as_mut().filter(|session| session.id == id);
        let Some(session) = session else { return Err(unknown_session()) };
        session.untold.retain(|key| !asked.contains(key));
        let results = asked.into_iter().filter_map(|key| session.look_up(key)).collect();
        drop(current);
        Ok(json(&Results { results }))
    }

    /// Notes operations and begins the new ones. Tells when those that could begin have begun.
    fn take_in(
        self: &Arc<Self>,
        id: &str,
        ops: Vec<Op>,
        cancel: &[Key],
    ) -> Result<oneshot::Receiver<()>, Refusal> {
        let (tell, handed_over) = oneshot::channel();
        let _in_order = self.entering.lock();
        let mut current = self.session.lock();
        let Some(session) = current.as_mut().filter(|session| session.id == id) else {
            return Err(unknown_session());
        };
        session.heard = Instant::now();
        if ops.iter().any(|op| op.slot >= self.slots.len() || op.seq == 0) {
            return Err(Box::new(detail(StatusCode::BAD_REQUEST, "there is no such slot")));
        }
        let mut ended = Vec::new();
        let (mut calls, mut names, mut resets) = (Vec::new(), Vec::new(), Vec::new());
        for op in ops {
            let key = (op.slot, op.seq);
            let slot = &mut session.ops[op.slot];
            if op.seq <= slot.seq {
                // Known, or stale.
                continue;
            }
            if let What::Running(Some(earlier)) = slot.what {
                // Its client has given it up.
                ended.push(earlier);
            }
            slot.seq = op.seq;
            slot.what = What::Running(None);
            if op.reset {
                resets.push(key);
                continue;
            }
            let on_done = {
                let (native, id) = (Arc::downgrade(self), id.to_owned());
                move |result: crate::tool::ToolResult| {
                    if let Some(native) = native.upgrade() {
                        native.done(&id, key, result.into());
                    }
                }
            };
            names.push((key, slot.cancelled == op.seq));
            calls.push(SlotCall {
                slot: op.slot,
                trajectory_id: op.trajectory_id.into(),
                tool: op.tool,
                arguments: op.args,
                timeout: Duration::try_from_secs_f64(op.timeout.max(0.0))
                    .unwrap_or(LONGEST)
                    .min(LONGEST),
                on_done: Box::new(on_done),
            });
        }
        for &(slot, seq) in cancel {
            let Some(slot) = session.ops.get_mut(slot) else { continue };
            match slot.what {
                What::Running(Some(id)) if slot.seq == seq => ended.push(id),
                _ => slot.cancelled = slot.cancelled.max(seq),
            }
        }
        drop(current);
        // Before anything new enters their slots.
        ended.into_iter().for_each(|id| self.slots.cancel(id));
        let tell_handed_over = move || {
            // Refused only when the client has gone.
            let _ = tell.send(());
        };
        let ids = self.slots.execute(calls, Box::new(tell_handed_over));
        for (slot, seq) in resets {
            let (native, id) = (Arc::downgrade(self), id.to_owned());
            let on_done = move |outcome: Result<(), String>| {
                if let Some(native) = native.upgrade() {
                    native.done(&id, (slot, seq), outcome.into());
                }
            };
            self.slots.reset(slot, Box::new(on_done));
        }
        let mut ended = Vec::new();
        if let Some(session) = self.session.lock().as_mut().filter(|session| session.id == id) {
            for ((key, cancelled), id) in names.into_iter().zip(ids) {
                let slot = &mut session.ops[key.0];
                // It may be over already.
                if let What::Running(running) = &mut slot.what
                    && slot.seq == key.1
                {
                    *running = Some(id);
                    if cancelled || slot.cancelled == key.1 {
                        ended.push(id);
                    }
                }
            }
        }
        ended.into_iter().for_each(|id| self.slots.cancel(id));
        Ok(handed_over)
    }

    fn done(&self, id: &str, (slot, seq): Key, result: NativeResult) {
        let mut current = self.session.lock();
        let Some(session) = current.as_mut().filter(|session| session.id == id) else { return };
        let ops = &mut session.ops[slot];
        if ops.seq == seq {
            ops.what = What::Done(Arc::new(result));
            session.untold.push_back((slot, seq));
            drop(current);
            self.news.notify_waiters();
        }
    }

    fn results(self: &Arc<Self>, request: ResultsRequest) -> Result<Response, Refusal> {
        let ResultsRequest { session: id, waiting } = request;
        let (lines, pieces) = mpsc::channel(16);
        let (number, first) = {
            let mut current = self.session.lock();
            let Some(session) = current.as_mut().filter(|session| session.id == id) else {
                return Err(unknown_session());
            };
            session.stream += 1;
            session.streaming = true;
            session.heard = Instant::now();
            let told = waiting.iter().filter_map(|&key| match session.look_up(key) {
                None if session.is_running(key) => None,
                None => {
                    let (slot, seq) = key;
                    Some(TellResult { slot, seq, what: Tell::Unknown(true) })
                }
                known => known,
            });
            let told: Vec<_> = told.collect();
            session.untold.retain(|key| !waiting.contains(key));
            (session.stream, told)
        };
        // The stream before this one ends.
        self.news.notify_waiters();
        let native = self.clone();
        tokio::spawn(async move {
            native.tell_results(&id, number, first, &lines).await;
            if let Some(session) = native.session.lock().as_mut()
                && session.id == id
                && session.stream == number
            {
                session.streaming = false;
                session.heard = Instant::now();
            }
        });
        Ok(http::streaming(StatusCode::OK, "application/x-ndjson", pieces))
    }

    /// Sends results as they come, until the client is gone or another stream has taken over.
    async fn tell_results(
        &self,
        id: &str,
        number: u64,
        first: Vec<TellResult>,
        lines: &mpsc::Sender<Bytes>,
    ) {
        let mut beat = 0;
        let mut results = first;
        loop {
            // Registered before the look: what comes in between wakes it.
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            {
                let mut current = self.session.lock();
                let session = current.as_mut().filter(|session| session.id == id);
                let Some(session) = session.filter(|session| session.stream == number) else {
                    return;
                };
                while let Some(key) = session.untold.pop_front() {
                    results.extend(session.look_up(key));
                }
            }
            let mut text = Vec::new();
            for result in results.drain(..) {
                write_line(&mut text, &result);
            }
            if text.is_empty() && self.closing.load(Ordering::Acquire) && self.is_idle() {
                return;
            }
            if text.is_empty() {
                write_line(&mut text, &ResultLine::Beat { beat });
                beat += 1;
            }
            // Waits for a client that reads slowly; one that does not read is cut off.
            if lines.send(text.into()).await.is_err() {
                return;
            }
            tokio::select! {
                () = news => {}
                () = lines.closed() => return,
                () = tokio::time::sleep(BEAT) => {}
            }
        }
    }

    /// Whether nothing of the session runs.
    fn is_idle(&self) -> bool {
        let current = self.session.lock();
        let mut ops = current.iter().flat_map(|session| &session.ops);
        !ops.any(|ops| matches!(ops.what, What::Running(_)))
    }

    fn archive(self: &Arc<Self>, request: ArchiveRequest) -> Result<Response, Refusal> {
        let ArchiveRequest { slot, path, max_bytes, max_entries } = request;
        if slot >= self.slots.len() {
            return Err(Box::new(detail(StatusCode::NOT_FOUND, "there is no such slot")));
        }
        let (lines, pieces) = mpsc::channel(4);
        self.slots.with_slot(
            slot,
            Box::new(move |backend, slot| {
                let request = ArchiveArtifacts { path, max_bytes, max_entries };
                let mut writer = PieceWriter { buffer: Vec::with_capacity(PIECE), lines };
                let made = backend.archive_artifacts(slot, &request, &mut writer);
                let last = match made {
                    Ok(made) => match writer.send_piece() {
                        Ok(()) => ArchiveLine::End {
                            bytes: made.bytes,
                            entry_count: made.entry_count,
                            truncated: made.truncated,
                        },
                        // The client is gone.
                        Err(_) => return,
                    },
                    Err(error) => failed(&error),
                };
                let mut text = Vec::new();
                write_line(&mut text, &last);
                // Refused only when the client is gone.
                let _ = writer.lines.blocking_send(text.into());
            }),
        );
        Ok(http::streaming(StatusCode::OK, "application/x-ndjson", pieces))
    }
}

impl Session {
    /// Whether it is not heard of any more.
    fn is_over(&self, now: Instant) -> bool {
        !self.streaming && now.duration_since(self.heard) > LEASE
    }

    fn is_running(&self, (slot, seq): Key) -> bool {
        let ops = self.ops.get(slot);
        ops.is_some_and(|ops| ops.seq == seq && matches!(ops.what, What::Running(_)))
    }

    /// What became of an operation, if it is over or never will be.
    fn look_up(&self, (slot, seq): Key) -> Option<TellResult> {
        let ops = self.ops.get(slot)?;
        let what = match &ops.what {
            What::Done(result) if ops.seq == seq => Tell::Done(result.clone()),
            _ if seq < ops.seq => Tell::Stale(true),
            _ => return None,
        };
        Some(TellResult { slot, seq, what })
    }
}

/// [`OpResult`], with a result that is shared.
#[derive(Serialize)]
struct TellResult {
    slot: usize,
    seq: u64,
    #[serde(flatten)]
    what: Tell,
}

/// [`OpOutcome`], with a result that is shared.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Tell {
    #[serde(serialize_with = "shared")]
    Done(Arc<NativeResult>),
    Unknown(bool),
    Stale(bool),
}

fn shared<S: serde::Serializer>(result: &NativeResult, serializer: S) -> Result<S::Ok, S::Error> {
    result.serialize(serializer)
}

/// [`CallsResponse`], with results that are shared.
#[derive(Serialize)]
struct Results {
    results: Vec<TellResult>,
}

/// Cuts what is written to it into lines. Blocks while the client reads slowly.
struct PieceWriter {
    buffer: Vec<u8>,
    lines: mpsc::Sender<Bytes>,
}

impl PieceWriter {
    fn send_piece(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        write_line(&mut text, &ArchiveLine::Piece(BASE64.encode(&self.buffer)));
        self.buffer.clear();
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.lines.blocking_send(text.into()).map_err(gone)
    }
}

impl std::io::Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.buffer.len() >= PIECE {
            self.send_piece()?;
        }
        let taken = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn failed(error: &ArtifactError) -> ArchiveLine {
    let (code, bytes) = match error {
        ArtifactError::Outside => ("outside", 0),
        ArtifactError::NotFound(_) => ("not_found", 0),
        ArtifactError::UnsupportedType(_) => ("unsupported_type", 0),
        ArtifactError::TooLarge { bytes, .. } => ("too_large", *bytes),
        _ => ("failed", 0),
    };
    ArchiveLine::Failed { code: code.to_owned(), text: error.to_string(), bytes }
}

fn write_line(text: &mut Vec<u8>, line: &impl Serialize) {
    let before = text.len();
    match serde_json::to_writer(&mut *text, line) {
        Ok(()) => text.push(b'\n'),
        // Only a map with keys that are no strings could not be written.
        Err(error) => {
            log::error!("a line cannot be written: {error}");
            text.truncate(before);
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Box::new(detail(StatusCode::BAD_REQUEST, &error.to_string())))
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => http::response(StatusCode::OK, "application/json", body),
        Err(error) => detail(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn detail(status: StatusCode, text: &str) -> Response {
    http::response(status, "application/json", json!({"detail": text}).to_string())
}

fn unknown_session() -> Refusal {
    Box::new(detail(StatusCode::GONE, "there is no such session"))
}

fn unreadable(error: BodyError) -> Response {
    match error {
        BodyError::TooLarge(most) => detail(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the request has more than {most} bytes"),
        ),
        BodyError::TooSlow => detail(StatusCode::REQUEST_TIMEOUT, "the request came too slowly"),
        BodyError::Broken => detail(StatusCode::BAD_REQUEST, "the request broke off"),
    }
}

// The shared forms above are written as these are read.
const _: fn(OpResult, OpOutcome, CallsResponse) = |_, _, _| {};
