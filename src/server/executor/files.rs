//! Files in and out of trajectories' machines, of any size.
//!
//! A put's body is a line of JSON, which says what and where, and then the bytes. A copy's answer
//! is the bytes, as many as its `Content-Length` says: one that breaks off has fewer.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::answer::{Lent, to_json, told};
use super::service::{Service, blocking, detail, json_response, unreadable};
use crate::artifact::{ArtifactError, PutFiles, PutSummary, ReadArtifact};
use crate::server::http::{Response, StatusCode, streaming, taken_within};
use crate::server::upload::{Upload, upload_to_thread};
use crate::spec::TrajectorySpec;

/// The longest first line of a put.
const MAX_LINE: usize = 64 * 1024;
/// How long the rest of a body is thrown away when its put has failed: its client reads the answer
/// when it has sent all.
const DRAIN: Duration = Duration::from_secs(10);
/// The bytes of a copy that are sent at once.
const PIECE: usize = 64 * 1024;
/// How many of them are on their way.
const ON_THE_WAY: usize = 4;

/// The body of `/artifacts/copy`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    trajectory_id: String,
    path: String,
}

/// The first line of `/artifacts/put`.
fn put_of(line: &[u8]) -> Result<(String, PutFiles), String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let Value::Object(mut fields) = value else {
        return Err("it is no JSON object".to_owned());
    };
    let trajectory_id = match fields.shift_remove("trajectory_id") {
        Some(Value::String(id)) => id,
        _ => return Err("trajectory_id must be a string".to_owned()),
    };
    let put = serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
    Ok((trajectory_id, put))
}

impl Service {
    /// Puts what the body has after its first line.
    pub(super) async fn put_files(&self, mut upload: Upload) -> Result<Response, Response> {
        let line = upload.line(MAX_LINE).await.map_err(unreadable)?;
        let (trajectory_id, put) = match put_of(&line) {
            Ok(put) => put,
            Err(why) => {
                upload.drain(DRAIN).await;
                let text = format!("the body's first line must say what is put: {why}");
                return Err(detail(StatusCode::UNPROCESSABLE_ENTITY, &text));
            }
        };
        let lent = self.lease_or_begin(&trajectory_id).await;
        let lease = match lent {
            Ok(lease) => lease,
            Err(error) => {
                upload.drain(DRAIN).await;
                return Ok(json_response(put_answer(&Err(error))));
            }
        };
        let (pieces, mut reader) = upload_to_thread();
        let executor = self.executor.clone();
        let putting =
            blocking(&self.artifacts, move || executor.put_leased(&lease, &put, &mut reader));
        let (fed, done) = tokio::join!(upload.feed(pieces), putting);
        let done = done?;
        if done.is_err() {
            fed.map_err(unreadable)?;
            upload.drain(DRAIN).await;
        }
        Ok(json_response(put_answer(&done)))
    }

    /// The lease of a trajectory, which begins where it has no slot yet.
    async fn lease_or_begin(&self, trajectory_id: &str) -> Lent {
        match self.lease(trajectory_id).await {
            Err(ArtifactError::NoSlot) => {}
            other => return other,
        }
        let (executor, id) = (self.executor.clone(), trajectory_id.to_owned());
        // It waits for room at the gate. One that has begun meanwhile is as good.
        let begin = move || drop(executor.submit_begin(&id, TrajectorySpec::default()));
        if blocking(&self.releases, begin).await.is_err() {
            return Err(ArtifactError::Closed);
        }
        self.lease(trajectory_id).await
    }

    /// Sends a whole file.
    pub(super) async fn copy_file(&self, body: &[u8]) -> Result<Response, Response> {
        let Copy { trajectory_id, path } = serde_json::from_slice(body)
            .map_err(|error| detail(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()))?;
        let lease = match self.lease(&trajectory_id).await {
            Ok(lease) => lease,
            Err(error) => return Ok(json_response(failed(&error))),
        };
        let executor = self.executor.clone();
        let asked = ReadArtifact::new(path.as_str()).with_max_bytes(1);
        let sized = blocking(&self.artifacts, move || {
            let size = executor.read_leased(&lease, &asked).map(|artifact| artifact.file_size);
            (lease, size)
        });
        let (lease, size) = match sized.await? {
            (lease, Ok(size)) => (lease, size),
            (_, Err(error)) => return Ok(json_response(failed(&error))),
        };
        let (pieces, taken) = mpsc::channel(ON_THE_WAY);
        let (executor, places) = (self.executor.clone(), self.artifacts.clone());
        tokio::spawn(async move {
            let copying = blocking(&places, move || {
                let mut sink = Sink { pieces, left: size, buffer: Vec::with_capacity(PIECE) };
                let copied = executor.copy_leased(&lease, &path, &mut sink);
                // What is not whole breaks off: its client sees that by the length.
                if let Err(error) = copied.and_then(|_| sink.send().map_err(gone)) {
                    log::debug!("a copy was not sent: {}", told(&error));
                }
            });
            // An error is a panic, which was reported.
            let _ = copying.await;
        });
        let taken = taken_within(self.patience, taken);
        let mut answer = streaming(StatusCode::OK, "application/octet-stream", taken);
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
        Ok(answer)
    }
}

fn gone(error: io::Error) -> ArtifactError {
    ArtifactError::Io("the client is gone".to_owned(), error)
}

/// Sends as many bytes as were announced.
struct Sink {
    pieces: mpsc::Sender<Bytes>,
    left: u64,
    buffer: Vec<u8>,
}

impl Sink {
    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.pieces.blocking_send(piece.into()).map_err(gone)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What has grown since its length was told is left out.
        if self.left == 0 {
            return Ok(bytes.len());
        }
        if self.buffer.len() >= PIECE {
            self.send()?;
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let taken = bytes.len().min(PIECE - self.buffer.len()).min(left);
        self.buffer.extend_from_slice(&bytes[..taken]);
        self.left -= taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn put_answer(done: &Result<PutSummary, ArtifactError>) -> Vec<u8> {
    match done {
        Ok(PutSummary { path, bytes, entry_count, skipped }) => to_json(&json!({
            "success": true, "path": path, "bytes": bytes, "entry_count": entry_count,
            "skipped": skipped, "error": "",
        })),
        Err(error) => failed(error),
    }
}

fn failed(error: &ArtifactError) -> Vec<u8> {
    to_json(&json!({"success": false, "error": told(error)}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_says_whose_and_what_and_nothing_else() {
        let line = br#"{"trajectory_id": "t", "path": "a", "mode": 493}"#;
        let (id, put) = put_of(line).unwrap();
        assert_eq!((&*id, put), ("t", PutFiles::file("a").with_mode(Some(0o755))));
        for (line, words) in [
            (&b"[]"[..], "no JSON object"),
            (b"{}", "trajectory_id"),
            (br#"{"trajectory_id": "t", "mood": 1}"#, "mood"),
            (b"x", "expected value"),
        ] {
            let why = put_of(line).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }
}
