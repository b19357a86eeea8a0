//! The native protocol's side of a sandbox server: sessions, operations, the stream of results.
//! What is said is in `wire::native`.
//!
//! Any number of sessions share the slots; who has which is decided by the table of leases
//! ([`Leases`](super::leases)), which is owned here. A session lives while it is heard of: by
//! requests of its own, since the connection of a client that was stopped stays open. One that was
//! not heard of for the lease ([`ServerConfig::lease`](crate::config::ServerConfig::lease)) is
//! over: what runs of it is cancelled, and its slots are reset before others get them.
//!
//! Plain requests ask here too whether a slot is theirs to use ([`Native::use_plainly`]).
//!
//! # Locks
//! `entering` before `state`. What enters a slot – operations, readers, the reset after a lease –
//! enters under `entering`, after a look at the table: so nothing enters a slot after the reset
//! that ended its lease.
//!
//! # Bounds
//! [`MOST_SESSIONS`]. One operation and one result per session and slot; what a stream has still to
//! send is looked up there, so that a client that does not read costs nothing but its connection.

mod archive;
mod calls;
mod files;
mod results;
mod session;
mod snapshots;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use self::files::Puts;
use self::session::{Session, What};
use super::activity::Activity;
use super::leases::{Leases, Refused};
use super::slots::{FileWork, SlotJob, Slots};
use crate::backend::{ExecutionId, ImageKey};
use crate::server::http::{self, BodyError, HttpLimits, Request, Response, StatusCode};
use crate::spec::SnapshotId;
use crate::wire::native::files::{COPY, PUT, PUT_RESULT};
use crate::wire::native::{
    ARCHIVE, CALLS, FEATURE, ImagesTold, LeaseKey, OLDER, RESULTS, SESSION, SNAPSHOTS,
    SessionRequest, SessionResponse, pack_keys,
};

/// How many sessions there may be at once.
const MOST_SESSIONS: usize = 1_024;
/// How often leases are looked at, at most; more often where they are short.
const TICK: Duration = Duration::from_millis(500);
/// How late such a look may be before this process is taken to have been stopped itself.
const STOPPED: Duration = Duration::from_secs(2);
/// The answer to what is asked of a slot under a lease that is over.
const FENCED: &str = "the slot is not leased to this session under this epoch";

/// The native side of a server.
pub(super) struct Native {
    slots: Arc<Slots>,
    instance: String,
    max_body: usize,
    /// How long a client may leave unread what it is sent.
    patience: Duration,
    lease: Duration,
    /// A session is a use of the server.
    activity: Arc<Activity>,
    state: Mutex<State>,
    /// Held while operations are noted and enter their slots, so that they enter in the order in
    /// which they were noted, and none enters after its lease. Taken before `state`.
    entering: Mutex<()>,
    lease_watched: AtomicBool,
    puts: Puts,
    /// Streams of results end as soon as nothing runs.
    closing: AtomicBool,
}

/// The sessions, and what they hold.
struct State {
    leases: Leases,
    /// By their names.
    sessions: HashMap<String, Session>,
    /// What belonged to sessions that are over.
    left: Vec<SnapshotId>,
}

/// A plain request's use of a slot; dropped, it is over.
pub(super) struct PlainUse {
    native: Arc<Native>,
    slot: usize,
}

impl Drop for PlainUse {
    fn drop(&mut self) {
        let mut state = self.native.state.lock();
        state.leases.end_plain(self.slot, Instant::now());
        // It ends no lease, so there is nothing to reset.
        state.settle();
    }
}

impl State {
    /// The session, which was just heard of.
    fn heard(&mut self, id: &str) -> Option<&mut Session> {
        let session = self.sessions.get_mut(id)?;
        self.leases.heard(session.number, Instant::now());
        Some(session)
    }

    /// Tells the sessions whose leases have changed. Gives the slots to be reset now.
    fn settle(&mut self) -> Vec<usize> {
        for session in self.sessions.values_mut() {
            if session.lease_is(self.leases.view(session.number)) {
                session.news.notify_waiters();
            }
        }
        self.leases.take_resets()
    }

    /// Ends a session; gives what runs of it.
    fn end(&mut self, id: &str) -> Vec<ExecutionId> {
        let Some(mut session) = self.sessions.remove(id) else { return Vec::new() };
        self.left.append(&mut session.snapshots);
        self.leases.leave(session.number, Instant::now());
        session.news.notify_waiters();
        let running = session.ops.iter().filter_map(|ops| match ops.what {
            What::Running(id) => id,
            What::Nothing | What::Done(_) => None,
        });
        running.collect()
    }
}

/// An answer to be given at once.
type Refusal = Box<Response>;

impl Native {
    /// The native side of the server that is called `instance`.
    pub(super) fn new(
        slots: Arc<Slots>,
        instance: String,
        limits: HttpLimits,
        lease: Duration,
        activity: Arc<Activity>,
    ) -> Arc<Self> {
        Arc::new(Self {
            lease,
            state: Mutex::new(State {
                leases: Leases::new(slots.len(), lease, Instant::now()),
                sessions: HashMap::new(),
                left: Vec::new(),
            }),
            slots,
            instance,
            max_body: limits.max_body,
            patience: limits.write_timeout,
            activity,
            entering: Mutex::new(()),
            lease_watched: AtomicBool::new(false),
            puts: Puts::new(),
            closing: AtomicBool::new(false),
        })
    }

    /// Tells all sessions that the server is about to end, and takes no other: they give back their
    /// slots as they are free.
    pub(super) fn drain(&self) {
        let mut state = self.state.lock();
        state.leases.drain(Instant::now());
        // It ends no lease, so there is nothing to reset.
        state.settle();
    }

    /// Whether the server is about to end, and whether no session has a slot any more.
    pub(super) fn draining(&self) -> (bool, bool) {
        let state = self.state.lock();
        (state.leases.is_draining(), state.leases.are_back())
    }

    /// Ends the stream of results when nothing runs any more.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        let state = self.state.lock();
        state.sessions.values().for_each(|session| session.news.notify_waiters());
    }

    /// What lets a plain request use a slot.
    pub(super) fn use_plainly(self: &Arc<Self>, slot: usize) -> Result<PlainUse, &'static str> {
        match self.state.lock().leases.begin_plain(slot) {
            Ok(()) => Ok(PlainUse { native: self.clone(), slot }),
            Err(Refused::Resetting) => Err("the slot is being emptied after an executor used it"),
            Err(Refused::Leased | Refused::Fenced) => Err("an executor has the slot"),
        }
    }

    /// Runs a job in a slot for the session that has it under this epoch.
    pub(super) fn with_leased_slot(
        &self,
        session: &str,
        (slot, epoch): LeaseKey,
        work: FileWork,
        job: SlotJob,
    ) -> Result<(), Refused> {
        let _in_order = self.entering.lock();
        let mut state = self.state.lock();
        let number = state.heard(session).map(|session| session.number);
        state.leases.check(number.ok_or(Refused::Fenced)?, slot, epoch)?;
        drop(state);
        self.slots.with_slot(slot, work, job);
        Ok(())
    }

    /// Whether the session has the slot under this epoch.
    fn check_lease(&self, session: &str, (slot, epoch): LeaseKey) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let number = state.heard(session).map(|session| session.number);
        state.leases.check(number.ok_or(Refused::Fenced)?, slot, epoch)
    }

    /// Answers a request to one of the native routes; `None` if there is no such route.
    pub(super) async fn serve(self: &Arc<Self>, request: Request) -> Option<Response> {
        let path = request.path().to_owned();
        if let Some((older, _)) = OLDER.iter().find(|(_, routes)| path.starts_with(routes)) {
            let text = format!(
                "this sandbox server speaks {FEATURE}, and the client speaks {older}: use the \
                 same version of tool-executor on both sides"
            );
            // A status that its clients do not try again.
            return Some(detail(StatusCode::NOT_FOUND, &text));
        }
        let known = [SESSION, CALLS, RESULTS, ARCHIVE, SNAPSHOTS, PUT, PUT_RESULT, COPY];
        if !known.contains(&path.as_str()) {
            return None;
        }
        if request.method() != http::Method::POST {
            return Some(detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"));
        }
        if path == PUT {
            return Some(self.put(request).await.unwrap_or_else(|refusal| *refusal));
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
            SNAPSHOTS => parse(&body).and_then(|request| self.snapshots(request)),
            PUT_RESULT => match parse(&body) {
                Ok(request) => self.put_result(request).await,
                Err(refusal) => Err(refusal),
            },
            COPY => parse(&body).and_then(|request| self.copy(request)),
            _ => parse(&body).and_then(|request| self.archive(request)),
        };
        Some(answered.unwrap_or_else(|refusal| *refusal))
    }

    fn session(self: &Arc<Self>, request: SessionRequest) -> Result<Response, Refusal> {
        let SessionRequest { session: id, replaces, resume, end, want, elsewhere, images_seen } =
            request;
        let now = Instant::now();
        if want == Some(0) && !resume {
            let text = "a session of 0 slots is of no use; at least 1";
            return Err(Box::new(detail(StatusCode::BAD_REQUEST, text)));
        }
        let _in_order = self.entering.lock();
        let mut state = self.state.lock();
        let mut ended = Vec::new();
        let resumed = state.heard(&id).is_some();
        if resume && !resumed {
            return Err(unknown_session());
        }
        if let Some(replaced) = replaces.filter(|replaced| *replaced != id) {
            ended.extend(state.end(&replaced));
        }
        if end {
            ended.extend(state.end(&id));
        } else if !resumed {
            if state.leases.is_draining() {
                let text = "this sandbox server is about to end, and takes no executor any more";
                return Err(Box::new(detail(StatusCode::SERVICE_UNAVAILABLE, text)));
            }
            if state.sessions.len() >= MOST_SESSIONS {
                let text = format!("{MOST_SESSIONS} executors use this sandbox server already");
                return Err(Box::new(detail(StatusCode::SERVICE_UNAVAILABLE, &text)));
            }
            let number = state.leases.join(want.unwrap_or(usize::MAX), elsewhere, now);
            let in_use = Some(self.activity.begin());
            let session = Session::new(id.clone(), number, self.slots.len(), in_use);
            state.sessions.insert(id.clone(), session);
        } else if let Some(session) = state.sessions.get(&id) {
            let number = session.number;
            state.leases.wants(number, want.unwrap_or(usize::MAX), elsewhere, now);
        }
        let resets = state.settle();
        let lease = state.sessions.get(&id).map(|session| session.lease.clone());
        let left = std::mem::take(&mut state.left);
        drop(state);
        self.drop_snapshots(&left);
        ended.into_iter().for_each(|id| self.slots.cancel(id));
        self.begin_resets(resets);
        let Some(lease) = lease else { return Ok(json(&json!({"status": "ok"}))) };
        self.watch_leases();
        Ok(json(&SessionResponse {
            instance: self.instance.clone(),
            resumed,
            slots: (0..self.slots.len()).map(|slot| self.slots.name(slot).to_owned()).collect(),
            lease,
            lease_s: self.lease.as_secs_f64(),
            max_body: self.max_body,
            images: images_seen.and_then(|seen| self.images(seen)),
        }))
    }

    /// Which images the server has, for a client that knows them as of this version.
    fn images(&self, seen: u64) -> Option<ImagesTold> {
        let held = self.slots.images().filter(|held| held.version != seen)?;
        let keys = |names: &[String]| {
            let mut keys: Vec<_> = names.iter().filter_map(|name| ImageKey::of(name)).collect();
            keys.sort_unstable();
            keys.dedup();
            pack_keys(keys.into_iter())
        };
        Some(ImagesTold {
            version: held.version,
            has: keys(&held.names),
            pulling: keys(&held.pulling),
            free_bytes: held.free_bytes,
            is_full: held.is_full(),
        })
    }

    /// Resets slots after their leases. Under `entering`.
    fn begin_resets(self: &Arc<Self>, slots: Vec<usize>) {
        for slot in slots {
            let native = Arc::downgrade(self);
            let on_done = move |reset: Result<(), String>| {
                let Some(native) = native.upgrade() else { return };
                if let Err(why) = &reset {
                    let name = native.slots.name(slot);
                    log::warn!("slot {name} is kept back: its reset failed: {why}");
                }
                let mut state = native.state.lock();
                state.leases.reset_done(slot, reset.is_ok(), Instant::now());
                // It ends no lease, so there is nothing more to reset.
                state.settle();
            };
            self.slots.reset(slot, Box::new(on_done));
        }
    }

    /// Ends sessions that are not heard of any more, from now on.
    fn watch_leases(self: &Arc<Self>) {
        if self.lease_watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let pause = (self.lease / 10).min(TICK);
        let native = Arc::downgrade(self);
        // Ends with the server's runtime, or the server.
        tokio::spawn(async move {
            loop {
                let due = Instant::now() + pause;
                tokio::time::sleep_until(due.into()).await;
                let Some(native) = native.upgrade() else { return };
                let now = Instant::now();
                native.end_expired(now, now.saturating_duration_since(due) > STOPPED);
            }
        });
    }

    /// Ends the sessions that are over; none if this process `was_stopped` itself and could not
    /// hear of them.
    fn end_expired(self: &Arc<Self>, now: Instant, was_stopped: bool) {
        let _in_order = self.entering.lock();
        let mut state = self.state.lock();
        if was_stopped {
            let State { leases, sessions, .. } = &mut *state;
            sessions.values().for_each(|session| leases.heard(session.number, now));
        }
        let over = state.leases.expire(now);
        let over = state.sessions.values().filter(|session| over.contains(&session.number));
        let over: Vec<_> = over.map(|session| session.id.clone()).collect();
        let ended: Vec<_> = over.iter().flat_map(|id| state.end(id)).collect();
        let resets = state.settle();
        let left = std::mem::take(&mut state.left);
        drop(state);
        self.drop_snapshots(&left);
        if !over.is_empty() {
            log::warn!(
                "{} executor(s) were not heard of for {:?}; their calls are cancelled and their \
                 slots emptied",
                over.len(),
                self.lease
            );
        }
        ended.into_iter().for_each(|id| self.slots.cancel(id));
        self.begin_resets(resets);
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
