//! Snapshots, forks and grades of a session: each answered by one line, behind beats that say that
//! it is still worked at.
//!
//! A snapshot belongs to the session that has made it, and goes with that.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::super::slots::{FileWork, with_snapshots};
use super::{FENCED, Native, Refusal, detail, unknown_session, write_line};
use crate::backend::Backend;
use crate::server::http::{self, Response, StatusCode};
use crate::snapshot::{SnapshotError, SnapshotId};
use crate::wire::native::{SnapshotsAsk, SnapshotsLine, SnapshotsRequest};

/// How often an answer that takes long says that it will come.
const BEAT: Duration = Duration::from_secs(10);

impl Native {
    pub(super) fn snapshots(
        self: &Arc<Self>,
        request: SnapshotsRequest,
    ) -> Result<Response, Refusal> {
        let SnapshotsRequest { session, ask } = request;
        let (give, line) = oneshot::channel();
        // Refused only when the client is gone.
        let tell = move |line: SnapshotsLine| drop(give.send(line));
        match ask {
            SnapshotsAsk::Snapshot { slot, epoch, options } => {
                self.has_slot(slot)?;
                let (native, owner) = (Arc::downgrade(self), session.clone());
                let job = Box::new(move |backend: &dyn Backend, slot: &_| {
                    let made =
                        with_snapshots(backend, |snapshots| snapshots.snapshot(slot, &options));
                    if let Ok(info) = &made
                        && !native.upgrade().is_some_and(|native| native.keep(&owner, &info.id))
                    {
                        // Its session is over.
                        drop_all(backend, std::slice::from_ref(&info.id));
                    }
                    tell(made.map_or_else(SnapshotsLine::failed, SnapshotsLine::Made));
                });
                let entered = self.with_leased_slot(&session, (slot, epoch), FileWork::Grade, job);
                entered.map_err(|_| Box::new(detail(StatusCode::CONFLICT, FENCED)))?;
            }
            SnapshotsAsk::Grade { slot, epoch, spec } => {
                self.has_slot(slot)?;
                let job = Box::new(move |backend: &dyn Backend, slot: &_| {
                    let graded = match spec.check() {
                        Ok(()) => with_snapshots(backend, |snapshots| snapshots.grade(slot, &spec)),
                        Err(why) => Err(SnapshotError::Invalid(why)),
                    };
                    let graded = graded.map(Box::new);
                    tell(graded.map_or_else(SnapshotsLine::failed, SnapshotsLine::Graded));
                });
                let entered = self.with_leased_slot(&session, (slot, epoch), FileWork::Grade, job);
                entered.map_err(|_| Box::new(detail(StatusCode::CONFLICT, FENCED)))?;
            }
            SnapshotsAsk::Drop { id } => {
                let mut state = self.state.lock();
                let session = state.heard(&session).ok_or_else(unknown_session)?;
                let place = session.snapshots.iter().position(|kept| *kept == id);
                let is_its = place.map(|place| session.snapshots.swap_remove(place)).is_some();
                drop(state);
                let dropped = match is_its {
                    true => self.slots.drop_snapshot(&id),
                    false => Err(SnapshotError::NotFound(id)),
                };
                tell(dropped.map_or_else(SnapshotsLine::failed, |()| SnapshotsLine::Dropped));
            }
        }
        let (lines, text) = mpsc::channel(4);
        tokio::spawn(answer(line, lines));
        let text = http::taken_within(self.patience, text);
        Ok(http::streaming(StatusCode::OK, "application/x-ndjson", text))
    }

    fn has_slot(&self, slot: usize) -> Result<(), Refusal> {
        let is_there = slot < self.slots.len();
        let missing = || Box::new(detail(StatusCode::NOT_FOUND, "there is no such slot"));
        is_there.then_some(()).ok_or_else(missing)
    }

    /// Notes a session's snapshot, if the session is there.
    fn keep(&self, session: &str, id: &SnapshotId) -> bool {
        let mut state = self.state.lock();
        let session = state.sessions.get_mut(session);
        session.map(|session| session.snapshots.push(id.clone())).is_some()
    }

    /// Gives up what belonged to sessions that are over.
    pub(super) fn drop_snapshots(&self, ids: &[SnapshotId]) {
        for id in ids {
            if let Err(error) = self.slots.drop_snapshot(id) {
                log::debug!("a snapshot of a session that is over: {error}");
            }
        }
    }
}

/// Sends the line when it is there, and beats until then.
async fn answer(line: oneshot::Receiver<SnapshotsLine>, lines: mpsc::Sender<Bytes>) {
    let mut line = std::pin::pin!(line);
    loop {
        let text = match tokio::time::timeout(BEAT, line.as_mut()).await {
            Err(_) => Bytes::from_static(b"\n"),
            Ok(done) => {
                let closed = |_| SnapshotsLine::failed(SnapshotError::Closed);
                let mut text = Vec::new();
                write_line(&mut text, &done.unwrap_or_else(closed));
                // Refused only when the client is gone.
                let _ = lines.send(text.into()).await;
                return;
            }
        };
        if lines.send(text).await.is_err() {
            return;
        }
    }
}

fn drop_all(backend: &dyn Backend, ids: &[SnapshotId]) {
    for id in ids {
        // It was made just now.
        let _ = with_snapshots(backend, |snapshots| snapshots.drop_snapshot(id));
    }
}
