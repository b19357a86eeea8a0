//! Artifacts: reading what trajectories leave in their machines, and putting files there, from
//! outside.
//!
//! A reader *leases* the trajectory's slot: it gets in line behind the calls and releases that
//! were submitted before, and nothing of the trajectory runs until it has given the slot back.
//! What blocks – the backend's reading – happens on the caller's own thread.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(feature = "server")]
use std::time::Duration;
use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::event::Event;
use super::lease::{Lease, LeaseId, LeaseReply, LeaseRequest};
use super::{ToolExecutor, guarded};
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    MAX_ARTIFACT_BYTES, MAX_ARTIFACT_ENTRIES, PutFiles, PutSummary, ReadArtifact,
};
use crate::backend::Artifacts;
use crate::error::BeginError;
use crate::spec::TrajectorySpec;

/// How often a trajectory that others release meanwhile is begun.
const BEGIN_TRIES: usize = 8;

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

    /// An archive of a trajectory's workspace, or of any directory, in memory. Its limits are
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

    /// Copies a whole file of a trajectory's machine to `into`, and says how many bytes that were.
    /// After an error `into` has some part of it.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    pub fn copy_artifact(
        &self,
        trajectory_id: &str,
        path: &str,
        into: &mut (dyn Write + Send),
    ) -> Result<u64, ArtifactError> {
        self.copy_leased(&self.lease(trajectory_id)?, path, into)
    }

    /// What [`copy_artifact`](Self::copy_artifact) does in its turn.
    pub(crate) fn copy_leased(
        &self,
        lease: &Lease,
        path: &str,
        into: &mut (dyn Write + Send),
    ) -> Result<u64, ArtifactError> {
        let mut into = WhileHeld { lease, into };
        self.with(lease, |artifacts| artifacts.copy(lease.slot(), path, &mut into))
    }

    /// Copies a whole file of a trajectory's machine to a file of this host, which is replaced; and
    /// says how many bytes that were. It is there when it is whole, or not at all.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    pub fn copy_artifact_to(
        &self,
        trajectory_id: &str,
        path: &str,
        to: &Path,
    ) -> Result<u64, ArtifactError> {
        let failed = |error| ArtifactError::Io(format!("cannot write {}", to.display()), error);
        let mut file = NewHostFile::create(to).map_err(failed)?;
        let bytes = self.copy_artifact(trajectory_id, path, &mut file.file)?;
        file.finish().map_err(failed)?;
        Ok(bytes)
    }

    /// Puts files into a trajectory's machine, whose bytes `from` gives: a file, or a tar stream
    /// that goes into a directory. In order with its calls, as the reading of artifacts is. A
    /// trajectory that has no slot yet begins with this, and waits for one as
    /// [`begin`](Self::begin) with an empty spec does.
    ///
    /// What is put is bounded by the slot's limits; memory is not a matter of its size. It is done
    /// once: one that broke is not tried again, since `from` has been read by then.
    ///
    /// ```
    /// # use tool_executor::ToolExecutor;
    /// # use tool_executor::artifact::{ArtifactError, PutFiles};
    /// # fn example(executor: &ToolExecutor) -> Result<(), Box<dyn std::error::Error>> {
    /// let task = PutFiles::file("/srv/task/run.sh").with_mode(Some(0o755));
    /// executor.put("agent-1", &task, &mut b"#!/bin/sh\n".as_slice())?;
    /// let archive = std::fs::File::open("repository.tar.gz")?;
    /// match executor.put("agent-1", &PutFiles::tar("/srv/task"), &mut &archive) {
    ///     Err(ArtifactError::DiskFull { path, why }) => println!("no room for {path}: {why}"),
    ///     other => println!("{} entries", other?.entry_count),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`ArtifactError`]. Nothing half is left, and of a tree that goes into a directory that
    /// was there [`ArtifactError::Partial`] says what is.
    pub fn put(
        &self,
        trajectory_id: &str,
        request: &PutFiles,
        from: &mut (dyn Read + Send),
    ) -> Result<PutSummary, ArtifactError> {
        if let Some(problem) = request.problem() {
            return Err(ArtifactError::Invalid(problem));
        }
        self.put_leased(&self.lease_or_begin(trajectory_id)?, request, from)
    }

    /// Puts a file of this host into a trajectory's machine, with its permissions. See
    /// [`put`](Self::put).
    ///
    /// # Errors
    /// See [`put`](Self::put).
    #[cfg(unix)]
    pub fn put_file(
        &self,
        trajectory_id: &str,
        from: &Path,
        path: &str,
    ) -> Result<PutSummary, ArtifactError> {
        use std::os::unix::fs::MetadataExt;
        let failed = |error| ArtifactError::Io(format!("cannot read {}", from.display()), error);
        let data = fs::metadata(from).map_err(failed)?;
        if !data.is_file() {
            return Err(ArtifactError::NotAFile(from.display().to_string()));
        }
        let mut file = File::open(from).map_err(failed)?;
        let request = PutFiles::file(path).with_mode(Some(data.mode() & 0o777));
        self.put(trajectory_id, &request, &mut file)
    }

    /// Puts what is in a directory of this host into a directory of a trajectory's machine: files,
    /// directories and symlinks. What is something else is left out and counted. See
    /// [`put`](Self::put).
    ///
    /// # Errors
    /// See [`put`](Self::put).
    #[cfg(target_os = "linux")]
    pub fn put_tree(
        &self,
        trajectory_id: &str,
        from: &Path,
        directory: &str,
    ) -> Result<PutSummary, ArtifactError> {
        let failed = |error| ArtifactError::Io(format!("cannot read {}", from.display()), error);
        let mut tree = super::host_tree::HostTree::open(from).map_err(failed)?;
        let mut summary = self.put(trajectory_id, &PutFiles::tar(directory), &mut tree)?;
        summary.skipped += tree.skipped();
        Ok(summary)
    }

    /// What [`put`](Self::put) does in its turn.
    pub(crate) fn put_leased(
        &self,
        lease: &Lease,
        request: &PutFiles,
        from: &mut (dyn Read + Send),
    ) -> Result<PutSummary, ArtifactError> {
        let allow_network = request.allow_network && self.policy.allow_network;
        let request = &PutFiles { allow_network, ..request.clone() };
        let mut from = WhileHeld { lease, into: from };
        self.with(lease, |artifacts| artifacts.put(lease.slot(), request, &mut from))
    }

    /// Writes an archive of a trajectory's workspace, or of any directory, to `into`, within the
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

    /// The same for what may be a trajectory's first: it begins with it then.
    fn lease_or_begin(&self, trajectory_id: &str) -> Result<Lease, ArtifactError> {
        let mut last = ArtifactError::NoSlot;
        // Another thread may release it in between.
        for _ in 0..BEGIN_TRIES {
            match self.lease(trajectory_id) {
                Err(ArtifactError::NoSlot) => {}
                other => return other,
            }
            last = match self.begin(trajectory_id, TrajectorySpec::default()) {
                Ok(()) | Err(BeginError::AlreadyBegun) => continue,
                Err(error) => not_begun(error),
            };
            break;
        }
        Err(last)
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
            format: request.format,
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

/// A writer that takes nothing after the slot was lost, or a reader that gives nothing then. What
/// of the user's panics there is an error.
struct WhileHeld<'a, T: ?Sized> {
    lease: &'a Lease,
    into: &'a mut T,
}

impl Read for WhileHeld<'_, dyn Read + Send + '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.lease.check().map_err(io::Error::other)?;
        guarded(|| self.into.read(buffer)).unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }
}

impl Write for WhileHeld<'_, dyn Write + Send + '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lease.check().map_err(io::Error::other)?;
        guarded(|| self.into.write(bytes)).unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

/// A file of this host that gets its name when it is whole, and is removed otherwise.
struct NewHostFile<'a> {
    name: &'a Path,
    temporary: PathBuf,
    file: File,
    is_kept: bool,
}

impl<'a> NewHostFile<'a> {
    fn create(name: &'a Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(last) = name.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it names no file"));
        };
        if name.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut temporary = last.to_owned();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        temporary.push(format!(".part-{}-{number}", std::process::id()));
        let temporary = name.with_file_name(temporary);
        let file = File::options().write(true).create_new(true).open(&temporary)?;
        Ok(Self { name, temporary, file, is_kept: false })
    }

    fn finish(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, self.name)?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for NewHostFile<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Why a trajectory that has no slot gets none.
fn not_begun(error: BeginError) -> ArtifactError {
    match error {
        BeginError::Closed => ArtifactError::Closed,
        BeginError::Failed(failure) => ArtifactError::SandboxLost(failure.to_string()),
        error @ BeginError::QueueFull => {
            let cause = io::Error::new(io::ErrorKind::WouldBlock, error.to_string());
            ArtifactError::Io("the trajectory cannot begin now".to_owned(), cause)
        }
        error => ArtifactError::Invalid(error.to_string()),
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
