//! Snapshots and grades of trajectories: each leases its trajectory's slot, as a reader of
//! artifacts does, and has the backend work on the caller's own thread.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::begin::begun;
use super::lease::Lease;
use super::promise::Pending;
use super::{ToolExecutor, guarded};
use crate::backend::Snapshots;
use crate::grade::{GradeResult, GradeSpec};
use crate::snapshot::{
    Fork, ForkOptions, SnapshotError, SnapshotId, SnapshotInfo, SnapshotOptions,
};
use crate::spec::TrajectorySpec;

/// The longest id of a snapshot, in bytes.
const MAX_SNAPSHOT_ID: usize = 128;

/// Which container each snapshot is in that this executor has made: what begins from one needs a
/// slot there. Bounded by what the backend keeps.
#[derive(Debug, Default)]
pub(super) struct SnapshotPlaces(Mutex<HashMap<SnapshotId, Arc<str>>>);

impl SnapshotPlaces {
    fn insert(&self, info: &SnapshotInfo) {
        self.0.lock().insert(info.id.clone(), info.container.clone());
    }

    fn remove(&self, id: &SnapshotId) {
        self.0.lock().remove(id);
    }

    /// The container that a snapshot is in, as far as this executor knows.
    pub(super) fn container(&self, id: &SnapshotId) -> Option<Arc<str>> {
        self.0.lock().get(id).cloned()
    }
}

/// # Snapshots
///
/// These take place after the trajectory's earlier calls and releases, and before its later ones.
/// They block the calling thread: for their turn, up to
/// [`ExecutorConfig::queue_timeout`](crate::config::ExecutorConfig::queue_timeout), and while the
/// backend works. An in-process tool must not ask for its own trajectory's: it would wait for
/// itself.
impl ToolExecutor {
    /// Keeps the files of a trajectory as they are now, for others to begin from. The trajectory
    /// goes on with them; nothing is copied, so it takes no longer where they are many.
    ///
    /// What is kept is the workspace, `/tmp` and the home directory, or all of the file system in a
    /// machine from an image; not what is in memory: `/dev/shm`, and beside these three the files
    /// of a machine on the host's. That is empty in the trajectory, too, from then on.
    ///
    /// It is kept until it is [dropped](Self::drop_snapshot), or the executor ends.
    ///
    /// # Errors
    /// See [`SnapshotError`]; [`KeepsProcesses`](SnapshotError::KeepsProcesses) where it has
    /// shells or terminals that would end, and `options` do not allow that.
    pub fn snapshot(
        &self,
        trajectory_id: &str,
        options: &SnapshotOptions,
    ) -> Result<SnapshotInfo, SnapshotError> {
        self.snapshot_leased(&self.lease(trajectory_id)?, options)
    }

    /// Begins trajectories with the files that another has now, and blocks until each of them has
    /// its slot, or cannot have one: they wait for slots of the same container as calls do. The
    /// trajectory itself goes on meanwhile.
    ///
    /// It is a [`snapshot`](Self::snapshot), a [`begin`](Self::begin) of each, and the end of the
    /// snapshot. Who has more to begin from the same files, or will not wait, does that step by
    /// step.
    ///
    /// ```no_run
    /// # use tool_executor::{ToolCall, ToolExecutor, snapshot::ForkOptions};
    /// # fn attempts(executor: &ToolExecutor) -> Result<(), Box<dyn std::error::Error>> {
    /// executor.execute("setup", ToolCall::bash("git clone … . && make"));
    /// for fork in executor.fork("setup", &["try-1", "try-2"], &ForkOptions::default())? {
    ///     fork.begun?; // its calls find the files of "setup"
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`SnapshotError`]: nothing has begun then. Whether each has is in its [`Fork`].
    pub fn fork(
        &self,
        from: &str,
        to: &[&str],
        options: &ForkOptions,
    ) -> Result<Vec<Fork>, SnapshotError> {
        check_fork(options)?;
        self.fork_leased(self.lease(from)?, to, options)
    }

    /// Runs a command that judges what a trajectory has left, and gives what it says.
    ///
    /// It runs in the trajectory's slot, in a machine of its own over the trajectory's files: what
    /// it writes is gone afterwards. All processes of the trajectory are ended first, those that it
    /// keeps between its calls too; of its environment and of what is in memory nothing is there.
    /// The trajectory goes on with its files as they were. See `docs/grading.md` for what a grader
    /// must not do with them.
    ///
    /// # Errors
    /// See [`SnapshotError`]. A command that fails is none: [`GradeResult::result`] says so.
    pub fn grade(
        &self,
        trajectory_id: &str,
        spec: &GradeSpec,
    ) -> Result<GradeResult, SnapshotError> {
        spec.check().map_err(SnapshotError::Invalid)?;
        self.grade_leased(&self.lease(trajectory_id)?, spec)
    }

    /// Gives a snapshot up. What began from it goes on; its files are removed when nothing uses
    /// them any more.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn drop_snapshot(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        check_id(id)?;
        self.snapshot_places.remove(id);
        self.with_snapshots(|snapshots| snapshots.drop_snapshot(id))
    }

    /// The snapshots that are kept, the oldest first.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        self.with_snapshots(|snapshots| snapshots.list())
    }

    /// What [`snapshot`](Self::snapshot) does in its turn.
    pub(crate) fn snapshot_leased(
        &self,
        lease: &Lease,
        options: &SnapshotOptions,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let made = self.with_slot(lease, |snapshots| snapshots.snapshot(lease.slot(), options))?;
        self.snapshot_places.insert(&made);
        Ok(made)
    }

    /// What [`fork`](Self::fork) does in its turn, with options that make sense.
    pub(crate) fn fork_leased(
        &self,
        lease: Lease,
        to: &[&str],
        options: &ForkOptions,
    ) -> Result<Vec<Fork>, SnapshotError> {
        let how = SnapshotOptions { end_processes: options.end_processes };
        let made = self.snapshot_leased(&lease, &how)?;
        // From here on it has its own calls again.
        drop(lease);
        let spec = TrajectorySpec { snapshot: Some(made.id.clone()), ..options.spec.clone() };
        // First all of them, so that they wait together.
        let begin = |id| self.admit_begin(id, spec.clone());
        let begins: Vec<_> = to.iter().map(|id| (*id, begin(id))).collect();
        let end = |(id, begin): (_, Result<Pending, _>)| {
            Fork::new(id, begin.map(Pending::wait).and_then(begun))
        };
        let forks = begins.into_iter().map(end).collect();
        if let Err(error) = self.drop_snapshot(&made.id) {
            log::warn!("the snapshot of a fork is left: {error}");
        }
        Ok(forks)
    }

    /// What [`grade`](Self::grade) does in its turn, with a spec that makes sense.
    pub(crate) fn grade_leased(
        &self,
        lease: &Lease,
        spec: &GradeSpec,
    ) -> Result<GradeResult, SnapshotError> {
        self.with_slot(lease, |snapshots| snapshots.grade(lease.slot(), spec))
    }

    /// Has the backend do something in the leased slot. What comes of it after the slot was lost
    /// is thrown away: it may be another trajectory's.
    fn with_slot<T>(
        &self,
        lease: &Lease,
        run: impl FnOnce(&dyn Snapshots) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        lease.check()?;
        let done = self.with_snapshots(run);
        lease.check()?;
        done
    }

    fn with_snapshots<T>(
        &self,
        run: impl FnOnce(&dyn Snapshots) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        // The backend is closed, too: nothing may be asked of it any more.
        if self.closed.lock().is_some() {
            return Err(SnapshotError::Closed);
        }
        let run = || run(self.backend.snapshots().ok_or_else(SnapshotError::unsupported)?);
        guarded(run).unwrap_or_else(|panic| {
            let text = format!("the sandbox backend panicked: {panic}");
            Err(SnapshotError::Io(text, io::Error::other(panic)))
        })
    }
}

/// Refuses forks that make no sense.
pub(crate) fn check_fork(options: &ForkOptions) -> Result<(), SnapshotError> {
    let ForkOptions { spec, .. } = options;
    if spec.image.is_some() || spec.snapshot.is_some() {
        let text = "a fork has the files of its trajectory: leave image and snapshot out";
        return Err(SnapshotError::Invalid(text.to_owned()));
    }
    spec.check().map_err(|error| SnapshotError::Invalid(error.to_string()))
}

/// Refuses what cannot be the id of a snapshot.
pub(crate) fn check_id(id: &SnapshotId) -> Result<(), SnapshotError> {
    let text = id.as_str();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || text.len() > MAX_SNAPSHOT_ID || !text.chars().all(is_plain) {
        let shown: String = text.chars().take(MAX_SNAPSHOT_ID).collect();
        return Err(SnapshotError::Invalid(format!("{shown:?} is not the id of a snapshot")));
    }
    Ok(())
}
