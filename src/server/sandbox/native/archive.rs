//! A workspace's archive, as lines.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::super::slots::FileWork;
use super::{FENCED, Native, Refusal, detail, write_line};
use crate::artifact::{ArchiveArtifacts, ArtifactError};
use crate::server::http::{self, Response, StatusCode};
use crate::wire::native::{ArchiveLine, ArchiveRequest};

/// The bytes of an archive in one line.
const PIECE: usize = 192 * 1024;

impl Native {
    pub(super) fn archive(self: &Arc<Self>, request: ArchiveRequest) -> Result<Response, Refusal> {
        let ArchiveRequest { session, epoch, slot, path, max_bytes, max_entries, format } = request;
        if slot >= self.slots.len() {
            return Err(Box::new(detail(StatusCode::NOT_FOUND, "there is no such slot")));
        }
        let (lines, pieces) = mpsc::channel(4);
        let entered = self.with_leased_slot(
            &session,
            (slot, epoch),
            FileWork::Archive,
            Box::new(move |backend, slot| {
                let request = ArchiveArtifacts::new(path)
                    .with_max_bytes(max_bytes)
                    .with_max_entries(max_entries)
                    .with_format(format);
                let mut writer = PieceWriter { buffer: Vec::with_capacity(PIECE), lines };
                let made = match backend.artifacts() {
                    Some(artifacts) => artifacts.archive(slot, &request, &mut writer),
                    None => Err(ArtifactError::Unsupported),
                };
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
        if entered.is_err() {
            return Err(Box::new(detail(StatusCode::CONFLICT, FENCED)));
        }
        let pieces = http::taken_within(self.patience, pieces);
        Ok(http::streaming(StatusCode::OK, "application/x-ndjson", pieces))
    }
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
