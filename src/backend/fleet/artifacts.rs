//! Artifacts of a sandbox server: reading and listing by the plain routes, which every server has;
//! archives by the native stream where there is one. A native server is told under which lease.
//!
//! All of it only reads, so it may be asked for again.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::json;

use super::Connection;
use crate::artifact::{
    ArchiveArtifacts, ArchiveFormat, ArchiveSummary, Artifact, ArtifactEntry, ArtifactError,
    ArtifactList, ListArtifacts, MAX_ARTIFACT_BYTES, MAX_ARTIFACT_ENTRIES, ReadArtifact,
};
use crate::client::{self, Failure};
use crate::wire::native::{ARCHIVE, ArchiveLine, ArchiveRequest};
use crate::wire::null_as_default;

/// How long a request for artifacts may take, and how long an archive may say nothing on its way.
pub(super) const TIME: Duration = Duration::from_secs(120);
/// How often one that broke is repeated.
const TRIES: usize = 3;
/// The longest line of an archive that is read.
const MAX_LINE: u64 = 4 * 1024 * 1024;

/// The lease under which a native server's slot is read.
pub(super) struct SlotLease {
    pub(super) session: String,
    pub(super) epoch: u64,
}

#[derive(Deserialize)]
struct ReadAnswer {
    content: String,
    #[serde(default)]
    offset: u64,
    file_size: u64,
    path: String,
    #[serde(default, deserialize_with = "null_as_default")]
    mime: String,
    sha256: Option<String>,
    file_sha256: Option<String>,
}

#[derive(Deserialize)]
struct ListAnswer {
    entries: Vec<Entry>,
    #[serde(default)]
    truncated: bool,
}

#[derive(Deserialize)]
struct Entry {
    path: String,
    is_dir: bool,
    size: u64,
    mtime: f64,
}

#[derive(Deserialize)]
struct ArchiveAnswer {
    content: String,
    #[serde(default)]
    entry_count: u64,
}

impl Connection {
    /// Reads a part of a file.
    pub(super) fn read_artifact(
        &self,
        slot: &str,
        lease: Option<SlotLease>,
        request: &ReadArtifact,
    ) -> Result<Artifact, ArtifactError> {
        let max_bytes = request.max_bytes.clamp(1, MAX_ARTIFACT_BYTES);
        let body = json!({"slot_id": slot, "path": request.path, "encoding": "base64",
            "offset": request.offset, "max_bytes": max_bytes, "include_sha256": request.sha256,
            "include_file_sha256": request.file_sha256});
        let body = under(lease, body);
        let answer: ReadAnswer = self.ask("/artifacts/read", &body, &request.path)?;
        if answer.offset != request.offset {
            return Err(garbage("this sandbox server reads files from their beginning only"));
        }
        let content = decode(&answer.content)?;
        let end = request.offset.saturating_add(content.len() as u64);
        Ok(Artifact {
            content,
            offset: request.offset,
            file_size: answer.file_size,
            truncated: end < answer.file_size,
            path: answer.path,
            mime: answer.mime,
            sha256: answer.sha256,
            file_sha256: answer.file_sha256,
        })
    }

    /// Lists files.
    pub(super) fn list_artifacts(
        &self,
        slot: &str,
        lease: Option<SlotLease>,
        request: &ListArtifacts,
    ) -> Result<ArtifactList, ArtifactError> {
        let max_entries = request.max_entries.clamp(1, MAX_ARTIFACT_ENTRIES);
        let body = json!({"slot_id": slot, "path": request.path, "recursive": request.recursive,
            "max_entries": max_entries});
        let body = under(lease, body);
        let answer: ListAnswer = self.ask("/artifacts/list", &body, &request.path)?;
        let entry =
            |Entry { path, is_dir, size, mtime }| ArtifactEntry { path, is_dir, size, mtime };
        let entries = answer.entries.into_iter().map(entry).collect();
        Ok(ArtifactList { entries, truncated: answer.truncated })
    }

    /// Writes an archive of a reference server.
    pub(super) fn archive_artifacts(
        &self,
        slot: &str,
        request: &ArchiveArtifacts,
        into: &mut dyn Write,
    ) -> Result<ArchiveSummary, ArtifactError> {
        if request.format != ArchiveFormat::TarGz {
            return Err(ArtifactError::Unsupported);
        }
        let body = json!({"slot_id": slot, "path": request.path, "format": "tar.gz",
            "max_bytes": request.max_bytes.clamp(1, MAX_ARTIFACT_BYTES),
            "max_entries": request.max_entries.clamp(1, MAX_ARTIFACT_ENTRIES)});
        let answer: ArchiveAnswer = self.ask("/artifacts/archive", &body, &request.path)?;
        let content = decode(&answer.content)?;
        write(into, &content)?;
        let bytes = content.len() as u64;
        Ok(ArchiveSummary { bytes, entry_count: answer.entry_count, truncated: false })
    }

    /// Writes an archive of a native server, as it comes.
    pub(super) fn stream_archive(
        &self,
        slot: usize,
        lease: SlotLease,
        request: &ArchiveArtifacts,
        into: &mut dyn Write,
    ) -> Result<ArchiveSummary, ArtifactError> {
        let ArchiveArtifacts { path, max_bytes, max_entries, format } = request.clone();
        let SlotLease { session, epoch } = lease;
        let asked = ArchiveRequest { session, epoch, slot, path, max_bytes, max_entries, format };
        let body = serde_json::to_vec(&asked).map_err(|error| garbage(&error.to_string()))?;
        let response = self.post_patiently(ARCHIVE, &body, None).map_err(gone)?;
        if !response.status().is_success() {
            let refused = client::read_json::<serde_json::Value>(response);
            return Err(refused.map_or_else(gone, |_| garbage("an empty answer")));
        }
        let mut reader =
            BufReader::new(response.into_body().into_with_config().limit(u64::MAX).reader());
        let mut line = Vec::new();
        let mut received = 0;
        loop {
            line.clear();
            let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
            match read {
                Ok(_) if line.last() == Some(&b'\n') => {}
                Ok(_) => return Err(gone(Failure::Broken("the archive is cut off".to_owned()))),
                Err(error) => return Err(gone(Failure::Broken(error.to_string()))),
            }
            match serde_json::from_slice(&line).map_err(|error| garbage(&error.to_string()))? {
                ArchiveLine::Piece(piece) => {
                    let piece = decode(&piece)?;
                    received += piece.len() as u64;
                    write(into, &piece)?;
                }
                ArchiveLine::End { bytes, .. } if bytes != received => {
                    return Err(garbage("the archive lacks a piece"));
                }
                ArchiveLine::End { bytes, entry_count, truncated } => {
                    return Ok(ArchiveSummary { bytes, entry_count, truncated });
                }
                ArchiveLine::Failed { code, text, bytes } => {
                    return Err(error_of(&code, text, bytes, request.max_bytes, &request.path));
                }
            }
        }
    }

    /// Posts, for as long as the server is not given up.
    pub(super) fn post_patiently(
        &self,
        route: &str,
        body: &[u8],
        timeout: Option<Duration>,
    ) -> Result<ureq::http::Response<ureq::Body>, Failure> {
        self.post(&self.patient_agent()?, route, body, timeout)
    }

    /// What sends for as long as the server is not given up.
    pub(super) fn patient_agent(&self) -> Result<ureq::Agent, Failure> {
        let agent = self.patient.agent.lock().clone();
        let given_up = || Failure::NotSent("its sandbox server does not answer".to_owned());
        agent.ok_or_else(given_up)
    }

    /// Asks a plain route; its refusals become errors.
    fn ask<T: serde::de::DeserializeOwned>(
        &self,
        route: &str,
        body: &serde_json::Value,
        path: &str,
    ) -> Result<T, ArtifactError> {
        let body = body.to_string();
        let mut last = Failure::Timeout;
        for _ in 0..TRIES {
            let response = self.post_patiently(route, body.as_bytes(), Some(TIME));
            match response.and_then(client::read_json) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Refused(403, text)) if text.contains("outside workspace") => {
                    return Err(ArtifactError::Outside);
                }
                Err(Failure::Refused(403, text)) => return Err(ArtifactError::Refused(text)),
                Err(Failure::Refused(404, text)) if text.contains("Not found") => {
                    return Err(ArtifactError::NotFound(path.to_owned()));
                }
                Err(Failure::Refused(400, text)) if text.contains("Unsupported path type") => {
                    return Err(ArtifactError::UnsupportedType(path.to_owned()));
                }
                Err(Failure::Refused(400, text)) if text.contains("Not a file") => {
                    return Err(ArtifactError::NotAFile(path.to_owned()));
                }
                Err(Failure::Refused(413, text)) => {
                    return Err(too_large(&text).unwrap_or_else(|| garbage(&text)));
                }
                Err(refused @ Failure::Refused(..)) => return Err(gone(refused)),
                Err(failure) => last = failure,
            }
        }
        Err(gone(last))
    }
}

/// A request's body that says under which lease it asks.
fn under(lease: Option<SlotLease>, mut body: serde_json::Value) -> serde_json::Value {
    if let Some(SlotLease { session, epoch }) = lease {
        body["session"] = session.into();
        body["epoch"] = epoch.into();
    }
    body
}

/// The error that a code of [`ArchiveLine::Failed`] means.
fn error_of(code: &str, text: String, bytes: u64, max: u64, path: &str) -> ArtifactError {
    match code {
        "outside" => ArtifactError::Outside,
        "not_found" => ArtifactError::NotFound(path.to_owned()),
        "unsupported_type" => ArtifactError::UnsupportedType(path.to_owned()),
        "too_large" => ArtifactError::TooLarge { bytes, max },
        _ => garbage(&text),
    }
}

/// The error that a reference server's text for an archive means, if it is that.
fn too_large(text: &str) -> Option<ArtifactError> {
    let (bytes, max) = text.strip_prefix("Archive too large: ")?.split_once(" bytes (max ")?;
    let max = max.strip_suffix(')')?.parse().ok()?;
    Some(ArtifactError::TooLarge { bytes: bytes.parse().ok()?, max })
}

fn decode(base64: &str) -> Result<Vec<u8>, ArtifactError> {
    BASE64.decode(base64).map_err(|error| garbage(&error.to_string()))
}

fn write(into: &mut dyn Write, bytes: &[u8]) -> Result<(), ArtifactError> {
    let failed = |error| ArtifactError::Io("the artifact cannot be written".to_owned(), error);
    into.write_all(bytes).map_err(failed)
}

pub(super) fn gone(failure: Failure) -> ArtifactError {
    ArtifactError::SandboxLost(failure.text())
}

pub(super) fn garbage(text: &str) -> ArtifactError {
    let error = std::io::Error::other(text.to_owned());
    ArtifactError::Io(format!("the sandbox server's answer is of no use: {text}"), error)
}
