//! Bodies of any size that come in piece by piece, for threads that read them.

use std::io::{self, Read};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::http::{BodyError, Request};

/// How many pieces are on their way to the thread.
const ON_THE_WAY: usize = 4;

/// A request's body that is read piece by piece, and may be of any size.
pub(crate) struct Upload {
    body: Incoming,
    /// What was read and is not given yet.
    rest: Bytes,
    /// How long the client may send nothing.
    patience: Duration,
}

impl Request {
    /// Its body, piece by piece.
    pub(crate) fn into_upload(self) -> Upload {
        Upload { body: self.body, rest: Bytes::new(), patience: self.limits.read_timeout }
    }
}

impl Upload {
    /// The next piece; `None` at the end.
    async fn piece(&mut self) -> Result<Option<Bytes>, BodyError> {
        if !self.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        loop {
            match tokio::time::timeout(self.patience, self.body.frame()).await {
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(piece) if !piece.is_empty() => return Ok(Some(piece)),
                    // Trailers, which say nothing here.
                    Ok(_) | Err(_) => {}
                },
                Ok(Some(Err(_))) => return Err(BodyError::Broken),
                Ok(None) => return Ok(None),
                Err(_) => return Err(BodyError::TooSlow),
            }
        }
    }

    /// The bytes up to the next line's end, without it, or up to the body's.
    ///
    /// # Errors
    /// The client broke off or was too slow; the line has more than `max` bytes.
    pub(crate) async fn line(&mut self, max: usize) -> Result<Vec<u8>, BodyError> {
        let mut line = Vec::new();
        while let Some(mut piece) = self.piece().await? {
            let end = piece.iter().position(|byte| *byte == b'\n');
            line.extend_from_slice(&piece.split_to(end.unwrap_or(piece.len())));
            if line.len() > max {
                return Err(BodyError::TooLarge(max));
            }
            if end.is_some() {
                self.rest = piece.split_off(1);
                break;
            }
        }
        Ok(line)
    }

    /// Gives all that comes to `pieces`, and its end; less where that wants no more.
    ///
    /// # Errors
    /// It broke off, or came too slowly; nothing is given as its end then.
    pub(crate) async fn feed(&mut self, pieces: UploadPieces) -> Result<(), BodyError> {
        loop {
            let piece = self.piece().await?;
            let is_last = piece.is_none();
            if pieces.0.send(piece).await.is_err() || is_last {
                return Ok(());
            }
        }
    }

    /// Reads the rest and throws it away, for so long at most.
    pub(crate) async fn drain(&mut self, time: Duration) {
        // An error is that of a client that does not read the answer either.
        let _ = tokio::time::timeout(time, async { while let Ok(Some(_)) = self.piece().await {} })
            .await;
    }
}

/// Takes the pieces of a body. Dropped before the end was given, the body is broken off.
pub(crate) struct UploadPieces(mpsc::Sender<Option<Bytes>>);

/// A body as a thread reads it, which waits for the pieces.
pub(crate) struct UploadReader {
    taken: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    ended: bool,
}

/// The two ends of a body's way to a thread.
pub(crate) fn upload_to_thread() -> (UploadPieces, UploadReader) {
    let (pieces, taken) = mpsc::channel(ON_THE_WAY);
    (UploadPieces(pieces), UploadReader { taken, piece: Bytes::new(), ended: false })
}

impl Read for UploadReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.taken.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.ended = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}
