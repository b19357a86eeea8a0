//! Artifacts: reading what trajectories leave in their workspaces, from outside.
//!
//! A reader *leases* the trajectory's slot: it gets in line behind the calls and releases that
//! were submitted before, and nothing of the trajectory runs until it has given the slot back.
//! What blocks – the backend's reading – happens on the caller's own thread.

use std::io::{self, Write};
use std::sync::atomic::Ordering;
#[cfg(feature = "server")]
use std::time::Duration;
use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::event::Event;
use super::lease::{Lease, LeaseId, LeaseReply, LeaseRequest};
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
        self.read_leased(&self.lease(trajectory_id)?, request)
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
        self.list_leased(&self.lease(trajectory_id)?, request)
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
        self.archive_leased(&self.lease(trajectory_id)?, request)
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
        self.copy_archive_leased(&self.lease(trajectory_id)?, request, into)
    }

    /// Waits for the trajectory's turn and its slot.
    pub(super) fn lease(&self, trajectory_id: &str) -> Result<Lease, ArtifactError> {
        let until = Instant::now() + self.queue_timeout;
        let (give, answer) = bounded(1);
        // There is room. What comes after all, when nothing waits for it, is dropped, and thereby
        // given back.
        let reply = move |lent| drop(give.try_send(lent));
        let request = self.request_lease(trajectory_id, Box::new(reply));
        match answer.recv_deadline(until) {
            Ok(lent) => {
                request.answered();
                lent
            }
            Err(RecvTimeoutError::Disconnected) => Err(ArtifactError::Closed),
            Err(RecvTimeoutError::Timeout) => Err(no_turn()),
        }
    }

    /// Asks for the use of a trajectory's slot, which `reply` is given in its turn. The request is
    /// in line for as long as what this returns is kept. Blocks for no longer than
    /// [`submit_release`](Self::submit_release).
    pub(crate) fn request_lease(&self, trajectory_id: &str, reply: LeaseReply) -> LeaseRequest {
        let id = LeaseId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (trajectory_id, place) = (trajectory_id.into(), self.orders.enter());
        // Refused only when the batcher has ended; the reply is dropped then, which says so.
        let _ = self.events.send(Event::AcquireLease { id, trajectory_id, reply, place });
        LeaseRequest::new(id, self.events.clone())
    }

    /// How long a reader waits for its turn.
    #[cfg(feature = "server")]
    pub(crate) fn queue_timeout(&self) -> Duration {
        self.queue_timeout
    }

    /// What [`read_artifact`](Self::read_artifact) does in its turn.
    pub(crate) fn read_leased(
        &self,
        lease: &Lease,
        request: &ReadArtifact,
    ) -> Result<Artifact, ArtifactError> {
        let max_bytes = request.max_bytes.clamp(1, MAX_ARTIFACT_BYTES);
        let request = ReadArtifact { max_bytes, ..request.clone() };
        self.with(lease, |artifacts| artifacts.read(lease.slot(), &request))
    }

    /// What [`list_artifacts`](Self::list_artifacts) does in its turn.
    pub(crate) fn list_leased(
        &self,
        lease: &Lease,
        request: &ListArtifacts,
    ) -> Result<ArtifactList, ArtifactError> {
        let max_entries = request.max_entries.clamp(1, MAX_ARTIFACT_ENTRIES);
        let request = ListArtifacts { max_entries, ..request.clone() };
        self.with(lease, |artifacts| artifacts.list(lease.slot(), &request))
    }

    /// What [`archive_artifacts`](Self::archive_artifacts) does in its turn.
    pub(crate) fn archive_leased(
        &self,
        lease: &Lease,
        request: &ArchiveArtifacts,
    ) -> Result<(Vec<u8>, ArchiveSummary), ArtifactError> {
        let request = ArchiveArtifacts {
            path: request.path.clone(),
            max_bytes: request.max_bytes.clamp(1, MAX_ARTIFACT_BYTES),
            max_entries: request.max_entries.clamp(1, MAX_ARTIFACT_ENTRIES),
        };
        let mut archive = Vec::new();
        let summary = self.copy_archive_leased(lease, &request, &mut archive)?;
        Ok((archive, summary))
    }

    fn copy_archive_leased(
        &self,
        lease: &Lease,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        let mut into = WhileHeld { lease, into };
        self.with(lease, |artifacts| artifacts.archive(lease.slot(), request, &mut into))
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

/// Why a reader whose turn did not come in time gets nothing.
pub(crate) fn no_turn() -> ArtifactError {
    let timed_out = io::ErrorKind::TimedOut.into();
    ArtifactError::Io("waiting for the trajectory's calls".to_owned(), timed_out)
}

fn failed(what: &str, panic: String) -> ArtifactError {
    ArtifactError::Io(format!("{what}: {panic}"), io::Error::other(panic))
}
