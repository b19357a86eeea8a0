//! Files that come in and go out, byte by byte.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::super::slots::FileWork;
use super::{FENCED, Native, Refusal, detail, json, parse, unreadable, write_line};
use crate::artifact::ArtifactError;
use crate::backend::{Backend, SlotRef};
use crate::server::http::{self, Request, Response, StatusCode};
use crate::server::upload::upload_to_thread;
use crate::wire::native::files::{
    CopyEnd, CopyRequest, Failed, MAX_PUT_LINE, PIECE, PutAnswer, PutRequest, PutResultRequest,
};

/// How long a body is read and thrown away after its put has failed, so that its client, which
/// sends first and reads then, learns why. One that has more to send asks afterwards.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a request for a put's result waits for it.
const RESULT_WAIT: Duration = Duration::from_secs(10);
/// How many pieces are on their way between the client and the slot.
const ON_THE_WAY: usize = 4;

impl Native {
    /// Puts what the rest of the body has. One that breaks off puts nothing.
    pub(super) async fn put(self: &Arc<Self>, request: Request) -> Result<Response, Refusal> {
        let mut upload = request.into_upload();
        let line = upload.line(MAX_PUT_LINE).await.map_err(|error| Box::new(unreadable(error)))?;
        let PutRequest { session, epoch, slot, id, put } = parse(&line)?;
        if slot >= self.slots.len() {
            return Err(Box::new(detail(StatusCode::NOT_FOUND, "there is no such slot")));
        }
        let (pieces, mut source) = upload_to_thread();
        // Answers also where the job is dropped.
        let result = PutResult(watch::Sender::new(PutAnswer::Running));
        let mut told = result.0.subscribe();
        let job = Box::new(move |backend: &dyn Backend, slot: &SlotRef| {
            let done = match backend.artifacts() {
                Some(artifacts) => artifacts.put(slot, &put, &mut source),
                None => Err(ArtifactError::Unsupported),
            };
            result.0.send_replace(match done {
                Ok(summary) => PutAnswer::Done(summary),
                Err(error) => PutAnswer::Failed(Failed::from(&error)),
            });
        });
        let latest = (id, told.clone());
        let lease = (session.as_str(), (slot, epoch));
        let enter = || self.with_leased_slot(lease.0, lease.1, FileWork::Archive, job);
        if self.puts.enter(slot, latest, enter).is_err() {
            upload.drain(DRAIN).await;
            return Err(Box::new(detail(StatusCode::CONFLICT, FENCED)));
        }
        // Dropped without an end, as when the client goes away, it is broken off.
        let broken = upload.feed(pieces).await.err();
        let answer = settled(&mut told).await;
        match (answer, broken) {
            (PutAnswer::Failed(_), Some(broken)) => Err(Box::new(unreadable(broken))),
            (answer, _) => {
                // The client reads only when it has sent all.
                upload.drain(DRAIN).await;
                Ok(json(&answer))
            }
        }
    }

    /// What came of a put whose client has not learnt it.
    pub(super) async fn put_result(&self, request: PutResultRequest) -> Result<Response, Refusal> {
        let PutResultRequest { session, epoch, slot, id } = request;
        if self.check_lease(&session, (slot, epoch)).is_err() {
            return Err(Box::new(detail(StatusCode::CONFLICT, FENCED)));
        }
        let Some(mut told) = self.puts.of(slot, &id) else {
            return Ok(json(&PutAnswer::Unknown));
        };
        let answer = tokio::time::timeout(RESULT_WAIT, settled(&mut told)).await;
        Ok(json(&answer.unwrap_or(PutAnswer::Running)))
    }

    /// Sends a whole file.
    pub(super) fn copy(self: &Arc<Self>, request: CopyRequest) -> Result<Response, Refusal> {
        let CopyRequest { session, epoch, slot, path } = request;
        if slot >= self.slots.len() {
            return Err(Box::new(detail(StatusCode::NOT_FOUND, "there is no such slot")));
        }
        let (pieces, taken) = mpsc::channel(ON_THE_WAY);
        let entered = self.with_leased_slot(
            &session,
            (slot, epoch),
            FileWork::Archive,
            Box::new(move |backend, slot| {
                let mut sink = Sink { buffer: Vec::with_capacity(4 + PIECE), pieces };
                let done = match backend.artifacts() {
                    Some(artifacts) => artifacts.copy(slot, &path, &mut sink),
                    None => Err(ArtifactError::Unsupported),
                };
                let end = match done.map(|bytes| (bytes, sink.send_piece())) {
                    Ok((bytes, Ok(()))) => CopyEnd::Done { bytes },
                    // The client is gone.
                    Ok((_, Err(_))) => return,
                    Err(error) => CopyEnd::Failed(Failed::from(&error)),
                };
                let mut text = vec![0; 4];
                write_line(&mut text, &end);
                // Refused only when the client is gone.
                let _ = sink.pieces.blocking_send(text.into());
            }),
        );
        if entered.is_err() {
            return Err(Box::new(detail(StatusCode::CONFLICT, FENCED)));
        }
        let pieces = http::taken_within(self.patience, taken);
        Ok(http::streaming(StatusCode::OK, "application/octet-stream", pieces))
    }
}

/// The latest put of each slot: its name, and what came of it.
pub(super) struct Puts(Mutex<HashMap<usize, LatestPut>>);

type LatestPut = (String, watch::Receiver<PutAnswer>);

impl Puts {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Notes a slot's latest put, if it may enter.
    fn enter<E>(
        &self,
        slot: usize,
        latest: LatestPut,
        enter: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        // Noted first: its client may ask as soon as it is there.
        let mut puts = self.0.lock();
        let before = puts.insert(slot, latest);
        let entered = enter();
        if entered.is_err() {
            match before {
                Some(before) => puts.insert(slot, before),
                None => puts.remove(&slot),
            };
        }
        entered
    }

    fn of(&self, slot: usize, id: &str) -> Option<watch::Receiver<PutAnswer>> {
        let puts = self.0.lock();
        puts.get(&slot).filter(|(latest, _)| latest == id).map(|(_, told)| told.clone())
    }
}

/// The obligation to say what came of a put. Dropped before, it never ran.
struct PutResult(watch::Sender<PutAnswer>);

impl Drop for PutResult {
    fn drop(&mut self) {
        self.0.send_if_modified(|answer| {
            let is_open = matches!(answer, PutAnswer::Running);
            if is_open {
                let text = "too many wait for this slot, or the sandbox server closes".to_owned();
                *answer = PutAnswer::Failed(Failed::from(&ArtifactError::SandboxLost(text)));
            }
            is_open
        });
    }
}

/// What came of a put, when that is known.
async fn settled(told: &mut watch::Receiver<PutAnswer>) -> PutAnswer {
    match told.wait_for(|answer| !matches!(answer, PutAnswer::Running)).await {
        Ok(answer) => answer.clone(),
        // It says something before it goes.
        Err(_) => PutAnswer::Unknown,
    }
}

/// Cuts what is written to it into pieces with their lengths. Blocks while the client reads slowly.
struct Sink {
    buffer: Vec<u8>,
    pieces: mpsc::Sender<Bytes>,
}

impl Sink {
    fn send_piece(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let mut piece = Vec::with_capacity(4 + self.buffer.len());
        piece.extend_from_slice(&length.to_be_bytes());
        piece.append(&mut self.buffer);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.pieces.blocking_send(piece.into()).map_err(gone)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= PIECE {
            self.send_piece()?;
        }
        let taken = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
