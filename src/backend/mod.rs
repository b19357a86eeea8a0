//! Where tool calls run: the [`Backend`] trait, and the implementations of it.
//!
//! A backend owns *containers*, each with a fixed set of *slots*; a slot is one isolated
//! workspace. The executor decides which trajectory has which slot and when; a backend only runs
//! what it is given. It knows nothing of trajectories' order, queues or waiting.
//!
//! # Bringing your own
//! Implement [`Backend`] and hand it to the builder. The contract, in full:
//! - [`Backend::start`] is called once and says which containers and slots there are. A container
//!   is known by its address. More may come later, and each may go ([`Backend::watch`]).
//! - [`Backend::execute`] gets a batch of calls of one container. Each carries a [`Reply`], which
//!   must be given a result once – now, or later from any thread. Whatever happens to a reply, its
//!   caller gets an answer: a reply that is dropped (by a panic, too) says so.
//! - Per slot there is never more than one call under way, and never a call and a reset.
//! - The calls of a batch belong to different trajectories and must not wait for each other.
//! - The time limit of a call is the backend's to enforce. The executor only keeps watch: a call
//!   that has no answer a grace time after its limit ends as
//!   [`Outcome::SandboxLost`](crate::Outcome::SandboxLost).
//!
//! `examples/own_backend.rs` is a complete one. [`Several`] makes one of others.

mod capabilities;
#[cfg(feature = "http")]
pub mod fleet;
mod images;
#[cfg(target_os = "linux")]
pub mod local;
mod reply;
pub mod several;
#[cfg(all(feature = "http", target_os = "linux"))]
pub mod slurm;
pub(crate) mod tier;
mod watch;

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use capabilities::{BadContainer, Capabilities, DEFAULT_TIMEOUT, Isolation};
pub use images::{ContainerImages, HeldImages, ImageKey, MOST_IMAGE_NAMES};
pub use reply::{Answer, BeginReply, Cancellation, Reply, ResetReply};
pub use several::Several;
pub use tier::Tier;
pub use watch::{ContainerChange, LeasedSlots, Watcher};

use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    PutFiles, PutSummary, ReadArtifact,
};
use crate::error::{BackendError, BeginFailure};
use crate::grade::{GradeResult, GradeSpec};
use crate::interrupt::Interrupt;
use crate::snapshot::{SnapshotError, SnapshotInfo, SnapshotOptions};
use crate::spec::{SnapshotId, SpecField, TrajectorySpec};
use crate::tool::JsonObject;

/// Something that runs tool calls in slots. See the [module](self) for the contract.
pub trait Backend: Send + Sync + 'static {
    /// The containers and their slots, asked for once, when the executor starts. May block; one
    /// that may do so for longer than a moment looks at `interrupt` meanwhile, and gives up when
    /// that is triggered: with [`BackendError::interrupted`], and nothing left of it.
    ///
    /// # Errors
    /// Whatever keeps it from running calls; the executor does not start then.
    fn start(&self, interrupt: &Interrupt) -> Result<Vec<Container>, BackendError>;

    /// What it can do and what holds in its slots. Asked for after [`start`](Self::start), and
    /// again whenever [`stats`](crate::ToolExecutor::stats) are asked for; must not block. Defaults
    /// to [`Capabilities::default`].
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// The images that it has on this machine: what a sandbox server in front of it tells its
    /// executors, asked for again and again. Must not block. A backend over several containers
    /// tells by its watcher instead ([`ContainerChange::Images`]). Defaults to `None`: it does not
    /// say.
    fn images(&self) -> Option<Arc<HeldImages>> {
        None
    }

    /// The backends that this one is made of, in order of preference: the first is the preferred
    /// one. The addresses of each one's containers begin with its name and a `/`. Asked for after
    /// [`start`](Self::start), when names, number and order are heeded; again when a trajectory
    /// begins with a spec, so that it is put where that can be given; and for
    /// [`stats`](crate::ToolExecutor::stats). Must not block. Defaults to none: this is one.
    ///
    /// A trajectory whose begin one of them [refuses](BeginFailure::unsupported), or which has no
    /// such [image](BeginFailure::image_unavailable), waits for a slot of the others.
    fn tiers(&self) -> Vec<Tier> {
        Vec::new()
    }

    /// Gets how many slots are wanted, whenever that has changed, but no more than ten times a
    /// second; only where containers [may be added](Capabilities::may_grow). Called on the
    /// executor's own thread: it must not block. Defaults to doing nothing.
    fn demand(&self, demand: &Demand) {
        let _ = demand;
    }

    /// Runs a batch of calls, all in the container at `addr`.
    ///
    /// A call that was cancelled while its batch waited for an I/O thread is not among them.
    ///
    /// Called on one of a few I/O threads, but for [tools that it takes
    /// inline](Capabilities::inline_tools). It may block for as long as it takes to *hand over* the
    /// calls; while it waits for their *results* it holds up an I/O thread, so a backend with slow
    /// calls should return early and answer the replies later.
    fn execute(&self, addr: &str, batch: Vec<Execution>);

    /// Empties a slot: no file and no process of an earlier call is left in it when `reply` is
    /// given `Ok`. It may be that an earlier call of the slot still runs, if its answer came too
    /// late; then the reset ends it first. Called on an I/O thread.
    fn reset(&self, slot: &SlotRef, reply: ResetReply);

    /// Makes a slot what a trajectory's spec asks for: called once, on an I/O thread, for a slot
    /// that was given to a trajectory with a spec and is clean, before its first call; not for a
    /// trajectory without a spec. It must not block for longer than a moment: what takes longer –
    /// an image that is unpacked – happens behind, and the reply is given then. No call of the slot
    /// comes before `reply` was given `Ok`. After a failure nothing of the trajectory is in the
    /// slot that a [`reset`](Self::reset) does not remove.
    ///
    /// The executor may give up waiting for the reply: then a reset of the slot comes, which is not
    /// to succeed before what is under way has ended.
    ///
    /// What it can give is told by [`Capabilities::spec`]; a spec that asks for anything else is
    /// refused by [`BeginFailure::unsupported`], with the field's name and what would be right.
    /// Defaults to that for every spec that [asks for something](TrajectorySpec::asks_for).
    fn begin(&self, slot: &SlotRef, spec: &Arc<TrajectorySpec>, reply: BeginReply) {
        let _ = slot;
        reply.send(gives(spec, &[]));
    }

    /// Ends a running call early. Its reply is still to be answered, once the last of its processes
    /// is gone, with [`Outcome::Cancelled`](crate::Outcome::Cancelled) – or with its result, if it
    /// was faster. Called on an I/O thread, perhaps before `execute` has got to the call (see
    /// [`Reply::is_cancelled`]); for a call that is no longer known it does nothing.
    ///
    /// Defaults to doing nothing: the call runs to its end or its time limit.
    fn cancel(&self, id: ExecutionId) {
        let _ = id;
    }

    /// Takes a slot back that the executor has under this grant (0 for one that
    /// [`start`](Self::start) told of) and uses no more, because it has more than it may have
    /// ([`ContainerChange::Resized`]) or the container is [draining](ContainerChange::Draining).
    /// Called on an I/O thread. Defaults to doing nothing.
    fn give_back(&self, slot: &SlotRef, grant: u64) {
        let _ = (slot, grant);
    }

    /// What reads the files of its slots. Defaults to none: readers are answered
    /// [`ArtifactError::Unsupported`].
    fn artifacts(&self) -> Option<&dyn Artifacts> {
        None
    }

    /// What keeps snapshots of its slots, and grades them. Defaults to none: callers are answered
    /// [`SnapshotError::Unsupported`].
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Takes what tells the executor about containers that come and go. Called once, right after
    /// [`start`](Self::start). Defaults to ignoring it: the containers are always there.
    fn watch(&self, watcher: Watcher) {
        let _ = watcher;
    }

    /// Has it use these containers from now on, by their addresses: it adds those that it does not
    /// have, and drains those that are not named. Must not block for longer than a moment: what it
    /// takes to find a new one happens behind.
    ///
    /// # Errors
    /// An address makes no sense, or the backend has the containers that it has: nothing has
    /// changed then. That is the default.
    fn use_containers(&self, addrs: &[String]) -> Result<(), BackendError> {
        let _ = addrs;
        Err(BackendError::new("the containers of this backend cannot be changed while it runs"))
    }

    /// Ends everything that is left and cleans up; nothing is called after it. What was called
    /// before and has not returned – it took longer than its calls may – still runs. Blocks until
    /// `deadline` at most. Defaults to doing nothing.
    fn close(&self, deadline: Instant) {
        let _ = deadline;
    }
}

/// Whether a spec asks for nothing beyond these fields.
///
/// # Errors
/// It does; the failure names what, and what there is.
pub(crate) fn gives(spec: &TrajectorySpec, fields: &[SpecField]) -> Result<(), BeginFailure> {
    let lacks: Vec<_> = spec.asks_for().filter(|field| !fields.contains(field)).collect();
    if lacks.is_empty() {
        return Ok(());
    }
    let names = |fields: &[SpecField]| {
        fields.iter().map(|field| field.as_str()).collect::<Vec<_>>().join(", ")
    };
    let given = match fields {
        [] => "max_wall_s and max_idle_s only".to_owned(),
        some => format!("{}, max_wall_s and max_idle_s", names(some)),
    };
    let text = format!("this sandbox cannot give {}; it has {given}", names(&lacks));
    Err(BeginFailure::unsupported(text))
}

/// Reads the files that a slot's calls have left, and puts others there. All of it blocks; it is
/// called on the thread of the caller, while no call of the slot runs.
pub trait Artifacts: Send + Sync {
    /// Reads a part of a file.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    fn read(&self, slot: &SlotRef, request: &ReadArtifact) -> Result<Artifact, ArtifactError>;

    /// Lists files.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    fn list(&self, slot: &SlotRef, request: &ListArtifacts) -> Result<ArtifactList, ArtifactError>;

    /// Writes a `.tar.gz` of the workspace, or of a part of it, to `into`, without holding it in
    /// memory. `into` may be written to by another thread, which has ended when this returns. After
    /// an error `into` has some part of it.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    fn archive(
        &self,
        slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError>;

    /// Writes a whole file to `into`, as [`archive`](Self::archive) does, and gives its size.
    /// Defaults to reading part after part of it.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    fn copy(
        &self,
        slot: &SlotRef,
        path: &str,
        into: &mut (dyn Write + Send),
    ) -> Result<u64, ArtifactError> {
        copy_in_parts(path, into, |request| self.read(slot, request))
    }

    /// Puts what `from` has into the slot's files: a file, or what a tar stream has. `from` is read
    /// on this thread. What is left of one that fails, its error says. Defaults to
    /// [`ArtifactError::Unsupported`].
    ///
    /// # Errors
    /// See [`ArtifactError`].
    fn put(
        &self,
        slot: &SlotRef,
        request: &PutFiles,
        from: &mut (dyn Read + Send),
    ) -> Result<PutSummary, ArtifactError> {
        let _ = (slot, request, from);
        Err(ArtifactError::Unsupported)
    }
}

/// How much of a file is in memory at once while it is copied part by part.
const COPY_PART: u64 = 1024 * 1024;

/// Writes a whole file to `into`, which `read` reads part by part, and gives its size.
///
/// # Errors
/// Those of `read` and of `into`.
pub(crate) fn copy_in_parts(
    path: &str,
    into: &mut (dyn Write + Send),
    read: impl Fn(&ReadArtifact) -> Result<Artifact, ArtifactError>,
) -> Result<u64, ArtifactError> {
    let mut request = ReadArtifact::new(path).with_max_bytes(COPY_PART);
    loop {
        let part = read(&request)?;
        into.write_all(&part.content)
            .map_err(|error| ArtifactError::Io(format!("writing a copy of {path}"), error))?;
        request.offset += part.content.len() as u64;
        if !part.truncated {
            return Ok(request.offset);
        }
        if part.content.is_empty() {
            let error = std::io::ErrorKind::UnexpectedEof.into();
            return Err(ArtifactError::Io(format!("reading {path}"), error));
        }
    }
}

/// Keeps the files of slots as they are at one moment, and grades what is in a slot. All of it
/// blocks; it is called on the thread of the caller. What names a slot is called while no call of
/// the slot runs.
///
/// A snapshot is kept until it is dropped, or the backend is closed; there is a bound of how many
/// are.
pub trait Snapshots: Send + Sync {
    /// Keeps the files of a slot. The slot goes on with them.
    ///
    /// # Errors
    /// See [`SnapshotError`]; the slot is as it was then.
    fn snapshot(
        &self,
        slot: &SlotRef,
        options: &SnapshotOptions,
    ) -> Result<SnapshotInfo, SnapshotError>;

    /// Runs a command over the files of a slot, in which nothing of the slot's calls runs any more.
    /// Afterwards the slot has its files as they were.
    ///
    /// # Errors
    /// See [`SnapshotError`]; the slot has its files then, too.
    fn grade(&self, slot: &SlotRef, spec: &GradeSpec) -> Result<GradeResult, SnapshotError>;

    /// Gives a snapshot up.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], if there is none of this id.
    fn drop_snapshot(&self, id: &SnapshotId) -> Result<(), SnapshotError>;

    /// The snapshots that are kept, the oldest first.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    fn list(&self) -> Result<Vec<SnapshotInfo>, SnapshotError>;
}

/// A container: an address and the names of the slots in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Container {
    /// Where it is: a URL, or any name that tells it from the others.
    pub addr: String,
    /// The names of its slots, such as `slot_0`. Distinct.
    pub slots: Vec<String>,
}

impl Container {
    /// A container at `addr` with slots of these names.
    pub fn new(
        addr: impl Into<String>,
        slots: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self { addr: addr.into(), slots: slots.into_iter().map(Into::into).collect() }
    }

    /// A container at `addr` with so many slots: `slot_0`, `slot_1`, ….
    pub fn numbered(addr: impl Into<String>, slots: usize) -> Self {
        Self::new(addr, (0..slots).map(|slot| format!("slot_{slot}")))
    }
}

/// How many slots are wanted, and what of those that there are is in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Demand {
    /// How many trajectories wait for a slot.
    pub waiting: usize,
    /// How many slots are free, in containers that are up and not draining.
    pub free: usize,
    /// The containers that are up and not draining.
    pub containers: Vec<ContainerUse>,
    /// The same for each of the [tiers](Backend::tiers). A trajectory that may use several of them
    /// now counts as waiting in each; one that is to wait for others for a while does not.
    pub tiers: Vec<Demand>,
}

/// What of a container is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContainerUse {
    /// Its address.
    pub addr: Arc<str>,
    /// The slots of it that the executor may use.
    pub slots: usize,
    /// How many of them trajectories hold.
    pub held: usize,
}

/// A slot, for as long as one trajectory holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SlotRef {
    /// The container's address.
    pub addr: Arc<str>,
    /// The slot's index in its container's list.
    pub index: usize,
    /// The slot's name.
    pub name: Arc<str>,
    /// Counts how often the slot was given out: the same slot under a higher number belongs to
    /// another trajectory.
    pub generation: u64,
}

impl SlotRef {
    /// The slot at `index` of a container. The executor makes it; a test of a backend can, too.
    pub fn new(
        addr: impl Into<Arc<str>>,
        index: usize,
        name: impl Into<Arc<str>>,
        generation: u64,
    ) -> Self {
        Self { addr: addr.into(), index, name: name.into(), generation }
    }
}

/// Names one execution of one call, unique within its executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExecutionId(pub u64);

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

/// One call on its way into a slot.
#[derive(Debug)]
#[non_exhaustive]
pub struct Execution {
    /// Its id, for [`Backend::cancel`].
    pub id: ExecutionId,
    /// Whose call it is.
    pub trajectory_id: Arc<str>,
    /// Where it is to run.
    pub slot: SlotRef,
    /// The tool's name on the wire: `bash`, `bash_stateful`, `read_file`, `write_file`, `tmux`.
    pub tool: &'static str,
    /// Its arguments, valid by the tool's schema, with the policy's fields added: `allow_network`,
    /// `require_sandbox` or `require_stateful_sandbox`, and `output_order` where that is not the
    /// usual one.
    pub arguments: JsonObject,
    /// Its time limit.
    pub timeout: Duration,
    /// Where its result goes.
    pub reply: Reply,
}
