//! Snapshots of slots, and graders in them.
//!
//! A snapshot is the directories of a slot, which become layers: they do not change any more, and
//! the slot goes on in new ones above them. Nothing is copied. What runs in the slot ends first,
//! since a machine cannot exchange its files; the next one is made at once, so that it is known to
//! work before the snapshot counts.
//!
//! A grader runs in the slot of the trajectory that it judges, in a machine of its own above the
//! slot's files. So it needs no slot, and waits for none. The slot's files are as they were
//! afterwards: nothing but the grader's own directories has changed.
//!
//! Both are called while no call of the slot runs. Layers are removed when nothing uses them any
//! more, on a thread of `tool-remove-N`.

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use uuid::Uuid;

use super::{ADDR, Engine, Inner, LocalBackend, Slot, begin};
use crate::backend::{SlotRef, Snapshots};
use crate::error::BeginFailure;
use crate::grade::{GradeResult, GradeSpec, MAX_VERDICT};
use crate::sandbox::bash::bash_result;
use crate::sandbox::grader;
use crate::sandbox::isolation::Layers;
use crate::sandbox::limits::bytes_on_disk;
use crate::sandbox::settings::Settings;
use crate::sandbox::supervisor::{CommandSpec, Finished};
use crate::sandbox::workspace::{
    Base, NoGrading, NoMachine, Remains, ToGrade, Workspace, WorkspaceError,
};
use crate::snapshot::{SnapshotError, SnapshotId, SnapshotInfo, SnapshotOptions};
use crate::spec::TrajectoryLimits;
use crate::tool::{OutputOrder, ToolResult};

/// How many snapshots are kept at most.
const MOST_SNAPSHOTS: usize = 4096;
/// How many layers may be beneath a slot's files, those of its image too: all of a machine's have
/// to go with one message, and each makes the looking up of files slower.
const MOST_LAYERS: usize = 100;
/// The size of no other snapshot is counted for a list that has taken so long.
const COUNTING: Duration = Duration::from_secs(1);
/// How long the end of what runs in a slot is awaited. The supervisor and the terminals give up
/// before.
const END_LIMIT: Duration = Duration::from_secs(30);
/// How much longer than its time limit a grader may take to be over.
const GRADE_MARGIN: Duration = Duration::from_secs(60);

/// The snapshots that are kept.
#[derive(Default)]
pub(super) struct KeptSnapshots(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    by_id: HashMap<SnapshotId, Snapshot>,
    made: u64,
}

struct Snapshot {
    base: Arc<Base>,
    own: Arc<OwnLayers>,
    parent: Option<SnapshotId>,
    made: Instant,
    /// In the order in which they were made.
    serial: u64,
    /// Whether its trajectory's commands could use the network: which machine is made of it first.
    network: bool,
    /// The limits of its trajectory, below the operator's: what begins from it has them, too.
    limits: TrajectoryLimits,
}

/// The directories of the layers that a snapshot has not from its parent. They do not change.
#[derive(Debug, Default)]
struct OwnLayers {
    directories: Vec<PathBuf>,
    /// How many bytes they take, once they were counted; nothing where that is not possible.
    bytes: OnceLock<Option<u64>>,
}

impl OwnLayers {
    /// How many bytes they take, which is counted once, and not any more when the time is up.
    fn bytes(&self, until: Instant) -> Option<u64> {
        match self.bytes.get() {
            Some(known) => *known,
            None if Instant::now() < until => {
                *self.bytes.get_or_init(|| bytes_on_disk(&self.directories))
            }
            None => None,
        }
    }
}

impl KeptSnapshots {
    /// Forgets them all: their files go.
    pub(super) fn clear(&self) {
        let kept = std::mem::take(&mut self.0.lock().by_id);
        drop(kept);
    }
}

/// Has a layer's directory removed when the layer is dropped, once the layer counts.
struct Removal {
    path: PathBuf,
    counts: Arc<AtomicBool>,
    owner: Weak<Inner>,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        // Without the backend all of its data directory goes.
        if self.counts.load(Ordering::Acquire)
            && let Some(inner) = self.owner.upgrade()
        {
            inner.remove_behind(Remains::of(vec![path]));
        }
    }
}

impl Inner {
    /// Has an old directory removed, unless the backend is closing: then all of them go.
    fn remove_behind(&self, remains: Remains) {
        if let Some(resets) = &*self.resets.lock() {
            resets.remove_later(remains);
        }
    }
}

/// What was ended in a slot between two calls: the next result says so.
#[derive(Clone, Default)]
pub(super) struct EndedBetween(Arc<Mutex<Vec<String>>>);

impl EndedBetween {
    fn note(&self, names: &[String]) {
        self.0.lock().extend_from_slice(names);
    }

    /// There is another trajectory.
    pub(super) fn forget(&self) {
        self.0.lock().clear();
    }

    /// Says it in a result, once.
    pub(super) fn tell(&self, result: &mut ToolResult) {
        let names = std::mem::take(&mut *self.0.lock());
        if names.is_empty() {
            return;
        }
        let text = format!(
            "[{} ended between the last call and this one: the files were kept or graded]",
            names.join(", ")
        );
        result.output.push_str(if result.output.is_empty() { "" } else { "\n" });
        result.output.push_str(&text);
        result.metadata.insert("ended_between_calls".to_owned(), names.into());
    }
}

impl LocalBackend {
    /// What a machine from a snapshot is made of, and whether it has the network at first.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::Unsupported`].
    pub(super) fn base_of(&self, id: &SnapshotId) -> Result<(Arc<Base>, bool), SnapshotError> {
        let kept = self.0.snapshots.0.lock();
        match kept.by_id.get(id) {
            Some(snapshot) => Ok((snapshot.base.clone(), snapshot.network)),
            None => {
                self.can_have_layers()?;
                Err(SnapshotError::NotFound(id.clone()))
            }
        }
    }

    /// The limits of the trajectory that a snapshot is of.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub(super) fn limits_of(&self, id: &SnapshotId) -> Result<TrajectoryLimits, SnapshotError> {
        let kept = self.0.snapshots.0.lock();
        let snapshot = kept.by_id.get(id).ok_or_else(|| SnapshotError::NotFound(id.clone()))?;
        Ok(snapshot.limits.clone())
    }

    /// Has a slot begin with the files of a snapshot. It is clean, and nothing runs in it. Blocks
    /// for the making of its machine.
    ///
    /// # Errors
    /// See [`SnapshotError`]; the slot is clean then.
    pub(super) fn begin_from(
        &self,
        slot: &SlotRef,
        id: &SnapshotId,
        user: Option<&str>,
        settings: Settings,
    ) -> Result<(), SnapshotError> {
        let place = self.place(slot)?;
        let (base, network) = self.base_of(id)?;
        let before = place.workspace();
        let base = base.for_trajectory(user, before.user_of_slot()).map_err(unsupported)?;
        let base = match self.0.supervisor.isolation() {
            Engine::Jailed(jails) if jails.layers() == Ok(Layers::Own) => base,
            _ => base.of_any_slot(),
        };
        let made = Arc::new(before.renew_from(&base).map_err(failed)?);
        place.has_network.store(network && !settings.cuts_network, Ordering::Release);
        made.set(settings);
        self.replace(slot.index, place, &before, &made)?;
        self.0.remove_behind(before.remains());
        *place.began_from.lock() = Some(id.clone());
        Ok(())
    }

    fn place(&self, slot: &SlotRef) -> Result<&Slot, SnapshotError> {
        self.0
            .slots
            .get(slot.index)
            .ok_or_else(|| SnapshotError::SandboxLost(format!("there is no slot {}", slot.name)))
    }

    /// Fails where machines cannot have layers.
    fn can_have_layers(&self) -> Result<(), SnapshotError> {
        let why = match self.0.supervisor.isolation() {
            Engine::Jailed(jails) => jails.layers().err(),
            Engine::None { .. } => Some("commands are not isolated"),
        };
        let unsupported = |why| SnapshotError::Unsupported(format!("no snapshots here: {why}"));
        why.map_or(Ok(()), |why| Err(unsupported(why)))
    }

    /// Ends all that runs in a slot. Gives the names of what was kept between calls.
    fn end_processes(
        &self,
        index: usize,
        place: &Slot,
        is_allowed: bool,
    ) -> Result<Vec<String>, SnapshotError> {
        if place.haunted.load(Ordering::Acquire) {
            return Err(not_ended());
        }
        if self.0.running.lock().values().any(|running| running.slot == index) {
            return Err(not_ended());
        }
        let mut names = self
            .0
            .terminals
            .kept(index)
            .recv_timeout(END_LIMIT)
            .map_err(|_| SnapshotError::Closed)?;
        let has_background = self.0.supervisor.has_background(index);
        if has_background.recv_timeout(END_LIMIT).map_err(|_| SnapshotError::Closed)? {
            names.push("the background processes of earlier calls".to_owned());
        }
        if !names.is_empty() && !is_allowed {
            return Err(SnapshotError::KeepsProcesses(names));
        }
        self.leave(index)?;
        place.ended.note(&names);
        Ok(names)
    }

    /// Ends what runs in a slot, and waits for it.
    fn leave(&self, index: usize) -> Result<(), SnapshotError> {
        let (gone, is_gone) = bounded(1);
        let weak = Arc::downgrade(&self.0);
        self.0.terminals.leave(
            index,
            Box::new(move |all_dead| match weak.upgrade() {
                Some(inner) if all_dead => inner.supervisor.leave(
                    index,
                    Box::new(move |all_dead| {
                        // There is room for one.
                        let _ = gone.try_send(all_dead);
                    }),
                ),
                _ => {
                    let _ = gone.try_send(all_dead);
                }
            }),
        );
        match is_gone.recv_timeout(END_LIMIT) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(not_ended()),
        }
    }

    /// Gives a slot other files, in which its machine is made at once. If that fails it has those
    /// that it had.
    fn replace(
        &self,
        index: usize,
        place: &Slot,
        before: &Arc<Workspace>,
        made: &Arc<Workspace>,
    ) -> Result<(), SnapshotError> {
        *place.workspace.lock() = made.clone();
        self.0.limits.emptied(before.path());
        let network = place.has_network.load(Ordering::Acquire);
        let Err(why) = self.0.supervisor.root(made, network) else { return Ok(()) };
        *place.workspace.lock() = before.clone();
        let left = self.leave(index);
        before.take_outputs(made);
        self.0.remove_behind(made.remains());
        left?;
        let text = format!("cannot make a sandbox above the files that were kept: {why}");
        Err(SnapshotError::Io(text, io::Error::other(why)))
    }

    /// Runs a grader over files, and waits for its end.
    fn run_grader(
        &self,
        workspace: Arc<Workspace>,
        spec: &GradeSpec,
    ) -> Result<(Finished, Option<String>), SnapshotError> {
        let (verdict, write) =
            verdict_channel().map_err(|error| io_error("make a socket for the verdict", error))?;
        let (done, is_done) = bounded(1);
        let command = CommandSpec {
            workspace,
            command: grader::script(spec),
            network: false,
            timeout: spec.time_limit(),
            output_limit_chars: self.0.max_output_chars,
            output_file_bytes: 0,
            stdin: spec.stdin.clone(),
            output_order: OutputOrder::default(),
            keeps_background: false,
            verdict: Some(Arc::new(write)),
        };
        // There is room for one.
        let on_end = Box::new(move |finished| drop(done.try_send(finished)));
        let id = self.0.supervisor.run(command, on_end);
        let finished = match is_done.recv_timeout(spec.time_limit() + GRADE_MARGIN) {
            Ok(finished) => finished,
            Err(_) => {
                self.0.supervisor.cancel(id);
                is_done.recv_timeout(END_LIMIT).map_err(|_| not_ended())?
            }
        };
        // What is written by one whose end was not seen may be anything.
        let read = finished.all_dead.then(|| read_verdict(&verdict)).flatten();
        Ok((finished, read))
    }
}

impl Snapshots for LocalBackend {
    fn snapshot(
        &self,
        slot: &SlotRef,
        options: &SnapshotOptions,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let place = self.place(slot)?;
        self.can_have_layers()?;
        if self.0.snapshots.0.lock().by_id.len() >= MOST_SNAPSHOTS {
            return Err(SnapshotError::TooMany(MOST_SNAPSHOTS));
        }
        let before = place.workspace();
        if before.depth() >= MOST_LAYERS {
            return Err(SnapshotError::TooDeep(MOST_LAYERS));
        }
        let ended_processes = self.end_processes(slot.index, place, options.end_processes)?;
        let (counts, owner) = (Arc::new(AtomicBool::new(false)), Arc::downgrade(&self.0));
        let mut own = OwnLayers::default();
        let mut keeper = |path: &Path| {
            own.directories.push(path.to_owned());
            let (path, counts, owner) = (path.to_owned(), counts.clone(), owner.clone());
            let removal: Box<dyn Any + Send + Sync> = Box::new(Removal { path, counts, owner });
            Some(removal)
        };
        let (base, unused) = before.as_base(&mut keeper).map_err(failed)?;
        let made = Arc::new(before.renew_from(&base).map_err(failed)?);
        made.set_as(&before);
        // Before its machine shows them.
        made.take_outputs(&before);
        self.replace(slot.index, place, &before, &made)?;
        counts.store(true, Ordering::Release);
        self.0.remove_behind(unused);
        if let Some(directory) = before.begins_in().and_then(Path::to_str)
            && let Err(error) = begin::make_directory(self, slot, place, directory)
        {
            // Its commands say that it is missing.
            log::warn!("after a snapshot: {error}");
        }
        // Not before its machine is there: what has become of the directory was not known.
        made.begin_as(&before);
        let id = SnapshotId::new(format!("snapshot-{}", Uuid::new_v4().simple()));
        let parent = place.began_from.lock().replace(id.clone());
        let layers = base.layers();
        let mut kept = self.0.snapshots.0.lock();
        kept.made += 1;
        let (serial, network) = (kept.made, place.has_network.load(Ordering::Acquire));
        let limits = before.limits().clone();
        let (base, made) = (Arc::new(base), Instant::now());
        let own = Arc::new(own);
        let snapshot =
            Snapshot { base, own, parent: parent.clone(), made, serial, network, limits };
        kept.by_id.insert(id.clone(), snapshot);
        drop(kept);
        let info = SnapshotInfo::new(id, ADDR).with_layers(layers);
        Ok(SnapshotInfo { parent, ended_processes, ..info })
    }

    fn grade(&self, slot: &SlotRef, spec: &GradeSpec) -> Result<GradeResult, SnapshotError> {
        let place = self.place(slot)?;
        self.can_have_layers()?;
        if !self.0.supervisor.isolation().can_cut_network() {
            let text = "no grader here: the network cannot be taken away from it";
            return Err(SnapshotError::Unsupported(text.to_owned()));
        }
        let before = place.workspace();
        if let (Some(user), None) = (&spec.user, before.image()) {
            let text = format!(
                "user is {user:?}; a machine on the host's files has one user: leave it out"
            );
            return Err(SnapshotError::Unsupported(text));
        }
        let ended_processes = self.end_processes(slot.index, place, true)?;
        let to_grade = ToGrade {
            files: &spec.files,
            files_at: Path::new(&spec.files_at),
            user: spec.user.as_deref(),
            paths: spec.judged_paths.as_deref(),
        };
        let (made, remains) = before.for_grading(&to_grade).map_err(|error| match error {
            NoGrading::Workspace(error) => failed(error),
            NoGrading::Refused(error) => unsupported(error),
        })?;
        let ran = self.run_grader(Arc::new(made), spec);
        // Before its files go, and before anything else runs above the same.
        let left = self.leave(slot.index);
        if left.is_err() {
            place.haunted.store(true, Ordering::Release);
        }
        self.0.remove_behind(remains);
        left?;
        let (mut finished, verdict) = ran?;
        let [stdout, stderr] = [&mut finished.stdout, &mut finished.stderr]
            .map(|stream| std::mem::take(&mut stream.text));
        let result = bash_result(finished, spec.time_limit().as_secs_f64());
        let result = GradeResult::new(result).with_stdout(stdout).with_stderr(stderr);
        Ok(GradeResult { verdict, ended_processes, ..result })
    }

    fn drop_snapshot(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let dropped = self.0.snapshots.0.lock().by_id.remove(id);
        dropped.map(drop).ok_or_else(|| SnapshotError::NotFound(id.clone()))
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        let mut all: Vec<_> = {
            let kept = self.0.snapshots.0.lock();
            let info = |(id, snapshot): (&SnapshotId, &Snapshot)| SnapshotInfo {
                parent: snapshot.parent.clone(),
                ..SnapshotInfo::new(id.clone(), ADDR)
                    .with_age(snapshot.made.elapsed())
                    .with_layers(snapshot.base.layers())
            };
            // With its files, which may be dropped meanwhile.
            let with_files = |kept: (&SnapshotId, &Snapshot)| {
                let files = (kept.1.own.clone(), kept.1.base.clone());
                (kept.1.serial, info(kept), files)
            };
            kept.by_id.iter().map(with_files).collect()
        };
        all.sort_by_key(|(serial, ..)| *serial);
        let until = Instant::now() + COUNTING;
        let counted =
            |(_, info, (own, _base)): (u64, SnapshotInfo, (Arc<OwnLayers>, Arc<Base>))| {
                SnapshotInfo { bytes: own.bytes(until), ..info }
            };
        Ok(all.into_iter().map(counted).collect())
    }
}

/// Where a grader's verdict comes out, and where it goes in. Sockets, since a pipe of a process can
/// be opened by its path in `/proc`, by all processes of its user. Nothing is written to the
/// grader, and more than fits is refused: it cannot be held up.
fn verdict_channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Each write takes more of it than its bytes. The kernel gives what it allows.
    sockopt::set_socket_send_buffer_size(&pair.1, 16 * MAX_VERDICT)?;
    Ok(pair)
}

/// What a grader has written to its socket, of which nothing holds the other end any more.
fn read_verdict(socket: &OwnedFd) -> Option<String> {
    let mut bytes = vec![0; MAX_VERDICT];
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(socket, rest) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
            Ok(count) => length += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    bytes.truncate(length);
    (length > 0).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

fn unsupported(error: NoMachine) -> SnapshotError {
    SnapshotError::Unsupported(error.to_string())
}

fn failed(error: WorkspaceError) -> SnapshotError {
    SnapshotError::Io(error.to_string(), io::Error::other(error))
}

fn io_error(doing: &str, source: io::Error) -> SnapshotError {
    SnapshotError::Io(format!("cannot {doing}: {source}"), source)
}

fn not_ended() -> SnapshotError {
    let text = "what runs in the slot could not be ended";
    SnapshotError::Io(text.to_owned(), io::ErrorKind::TimedOut.into())
}

/// Why a trajectory did not begin from a snapshot.
pub(super) fn begin_failure(error: SnapshotError) -> BeginFailure {
    match error {
        SnapshotError::NotFound(_) => BeginFailure::image_unavailable(error.to_string()),
        SnapshotError::Unsupported(why) => BeginFailure::unsupported(why),
        SnapshotError::SandboxLost(why) => BeginFailure::lost(why),
        other => BeginFailure::failed(other.to_string()),
    }
}
