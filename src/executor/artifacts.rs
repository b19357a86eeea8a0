//! Artifacts: reading what trajectories leave in their workspaces, from outside.
//!
//! A reader *leases* the trajectory's slot: it gets in line behind the calls and releases that
//! were submitted before, and nothing of the trajectory runs until it has given the slot back.
//! What blocks – the backend's reading – happens on the caller's own thread.

use std::io::{self, Write};
use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::event::Event;
use super::lease::Lease;
use super::{ToolExecutor, guarded};
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    MAX_ARTIFACT_BYTES, MAX_ARTIFACT_ENTRIES, ReadArtifact,
};
use crate::backend::Artifacts;

/// How much of a file is in memory at once while it is copied.
const COPY_PART: u64 = 1024 * 1024;

/// # Artifacts
///
/// These take place after the trajectory's earlier calls and releases, and before its later ones.
/// They block the calling thread: for their turn, up to
/// [`ExecutorConfig::queue_timeout`](crate::config::ExecutorConfig::queue_timeout), and while the
/// backend reads. An in-process tool must not ask for its own trajectory's artifacts: it would
/// wait for itself.
impl ToolExecutor {
    /// Reads a part of a file of a trajectory's workspace.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    pub fn read_artifact(
        &self,
        trajectory_id: &str,
        request: &ReadArtifact,
    ) -> Result<Artifact, ArtifactError> {
        let max_bytes = request.max_bytes.clamp(1, MAX_ARTIFACT_BYTES);
        let request = ReadArtifact { max_bytes, ..request.clone() };
        let lease = self.lease(trajectory_id)?;
        self.with(&lease, |artifacts| artifacts.read(lease.slot(), &request))
    }

    /// Lists files of a trajectory's workspace.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    pub fn list_artifacts(
        &self,
        trajectory_id: &str,
        request: &ListArtifacts,
    ) -> Result<ArtifactList, ArtifactError> {
        let max_entries = request.max_entries.clamp(1, MAX_ARTIFACT_ENTRIES);
        let request = ListArtifacts { max_entries, ..request.clone() };
        let lease = self.lease(trajectory_id)?;
        self.with(&lease, |artifacts| artifacts.list(lease.slot(), &request))
    }

    /// A `.tar.gz` of a trajectory's workspace, or of a part of it, in memory. Its limits are
    /// clamped to 1…[`MAX_ARTIFACT_BYTES`] and 1…[`MAX_ARTIFACT_ENTRIES`]; larger ones go through
    /// [`copy_archive`](Self::copy_archive).
    ///
    /// # Errors
    /// See [`ArtifactError`].
    pub fn archive_artifacts(
        &self,
        trajectory_id: &str,
        request: &ArchiveArtifacts,
    ) -> Result<(Vec<u8>, ArchiveSummary), ArtifactError> {
        let request = ArchiveArtifacts {
            path: request.path.clone(),
            max_bytes: request.max_bytes.clamp(1, MAX_ARTIFACT_BYTES),
            max_entries: request.max_entries.clamp(1, MAX_ARTIFACT_ENTRIES),
        };
        let mut archive = Vec::new();
        let summary = self.copy_archive(trajectory_id, &request, &mut archive)?;
        Ok((archive, summary))
    }

    /// Copies a whole file of a trajectory's workspace to `into`, part by part, and says how many
    /// bytes that were. After an error `into` has some part of it.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    pub fn copy_artifact(
        &self,
        trajectory_id: &str,
        path: &str,
        into: &mut (dyn Write + Send),
    ) -> Result<u64, ArtifactError> {
        let lease = self.lease(trajectory_id)?;
        let mut request = ReadArtifact { max_bytes: COPY_PART, ..ReadArtifact::new(path) };
        loop {
            let part = self.with(&lease, |artifacts| artifacts.read(lease.slot(), &request))?;
            // Guarded: the writer is not ours.
            guarded(|| into.write_all(&part.content))
                .map_err(|panic| failed("the writer of an artifact panicked", panic))?
                .map_err(|error| ArtifactError::Io(format!("writing a copy of {path}"), error))?;
            request.offset += part.content.len() as u64;
            if !part.truncated {
                return Ok(request.offset);
            }
            if part.content.is_empty() {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(ArtifactError::Io(format!("reading {path}"), error));
            }
        }
    }

    /// Writes a `.tar.gz` of a trajectory's workspace, or of a part of it, to `into`, within the
    /// limits of `request` whatever they are. After an error `into` has some part of it.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    pub fn copy_archive(
        &self,
        trajectory_id: &str,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        let lease = self.lease(trajectory_id)?;
        let mut into = WhileHeld { lease: &lease, into };
        self.with(&lease, |artifacts| artifacts.archive(lease.slot(), request, &mut into))
    }

    /// Waits for the trajectory's turn and its slot.
    fn lease(&self, trajectory_id: &str) -> Result<Lease, ArtifactError> {
        let until = Instant::now() + self.queue_timeout;
        let (reply, answer) = bounded(1);
        let trajectory_id = trajectory_id.into();
        self.events
            .send(Event::AcquireLease { trajectory_id, reply })
            .map_err(|_| ArtifactError::Closed)?;
        match answer.recv_deadline(until) {
            Ok(lent) => lent,
            Err(RecvTimeoutError::Disconnected) => Err(ArtifactError::Closed),
            // The lease that comes after all is refused by the channel, and thereby given back.
            Err(RecvTimeoutError::Timeout) => Err(ArtifactError::Io(
                "waiting for the trajectory's calls".to_owned(),
                io::ErrorKind::TimedOut.into(),
            )),
        }
    }

    /// Has the backend do something in the leased slot. Nothing that it read after the slot was
    /// lost gets out: it may be another trajectory's.
    fn with<T>(
        &self,
        lease: &Lease,
        run: impl FnOnce(&dyn Artifacts) -> Result<T, ArtifactError>,
    ) -> Result<T, ArtifactError> {
        lease.check()?;
        let read = || run(self.backend.artifacts().ok_or(ArtifactError::Unsupported)?);
        let done = guarded(read)
            .unwrap_or_else(|panic| Err(failed("the sandbox backend panicked", panic)));
        lease.check()?;
        done
    }
}

/// A writer that takes nothing after the slot was lost.
struct WhileHeld<'a> {
    lease: &'a Lease,
    into: &'a mut (dyn Write + Send),
}

impl Write for WhileHeld<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lease.check().map_err(io::Error::other)?;
        self.into.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

fn failed(what: &str, panic: String) -> ArtifactError {
    ArtifactError::Io(format!("{what}: {panic}"), io::Error::other(panic))
}
