//! The native protocol's side of a sandbox server: sessions, operations, the stream of results.
//! What is said is in `wire::native`.
//!
//! A server has one session at a time. It lives while its stream of results is open, and for
//! [`LEASE`] after it was last heard of; then what runs of it is cancelled. Meanwhile no other
//! client gets one.
//!
//! # Bounds
//! One operation and one result per slot; what a stream has still to send is looked up there, so
//! that a client that does not read costs nothing but its connection.

mod archive;
mod calls;
mod results;
mod session;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Notify;

use self::session::{Session, SlotOps, What};
use super::activity::Activity;
use super::slots::Slots;
use crate::server::http::{self, BodyError, HttpLimits, Request, Response, StatusCode};
use crate::wire::native::{ARCHIVE, CALLS, RESULTS, SESSION, SessionRequest, SessionResponse};

/// How long a session lives without being heard of: longer than its client tries to find the
/// server again, shorter than the next client waits at its start.
const LEASE: Duration = Duration::from_secs(45);

/// The native side of a server.
pub(super) struct Native {
    slots: Arc<Slots>,
    instance: String,
    max_body: usize,
    /// How long a client may leave unread what it is sent.
    patience: Duration,
    /// A session is a use of the server.
    activity: Arc<Activity>,
    session: Mutex<Option<Session>>,
    /// Held while operations are noted and enter their slots, so that they enter in the order in
    /// which they were noted, and none enters after its session. Taken before `session`.
    entering: Mutex<()>,
    /// Told when a result is there, and when a session ends.
    news: Notify,
    lease_watched: AtomicBool,
    /// Streams of results end as soon as nothing runs.
    closing: AtomicBool,
}

/// An answer to be given at once.
type Refusal = Box<Response>;

impl Native {
    /// The native side of the server that is called `instance`.
    pub(super) fn new(
        slots: Arc<Slots>,
        instance: String,
        limits: HttpLimits,
        activity: Arc<Activity>,
    ) -> Arc<Self> {
        Arc::new(Self {
            slots,
            instance,
            max_body: limits.max_body,
            patience: limits.write_timeout,
            activity,
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
            _in_use: Some(self.activity.begin()),
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
