//! Where tool calls run: the [`Backend`] trait, and the implementations of it.
//!
//! A backend owns *containers*, each with a fixed set of *slots*; a slot is one isolated workspace.
//! The executor decides which trajectory has which slot and when; a backend only runs what it is
//! given. It knows nothing of trajectories' order, queues or waiting.
//!
//! # Bringing your own
//! Implement [`Backend`] and hand it to the builder. The contract, in full:
//! - [`Backend::start`] is called once and says which containers and slots there are.
//! - [`Backend::execute`] gets a batch of calls of one container. Each carries a [`Reply`], which
//!   must be given a result once – now, or later from any thread. Whatever happens to a reply, its
//!   caller gets an answer: a reply that is dropped (by a panic, too) says so.
//! - Per slot there is never more than one call under way, and never a call and a reset.
//! - The calls of a batch belong to different trajectories and must not wait for each other.
//! - The time limit of a call is the backend's to enforce. The executor only keeps watch: a call
//!   that has no answer a grace time after its limit ends as
//!   [`Outcome::SandboxLost`](crate::Outcome::SandboxLost).
//!
//! `examples/own_backend.rs` is a complete one.

pub mod fleet;
#[cfg(target_os = "linux")]
pub mod local;
mod reply;
mod watch;

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use reply::{Answer, Cancellation, Reply, ResetReply};
pub use watch::{ContainerChange, Watcher};

use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    ReadArtifact,
};
use crate::error::BackendError;
use crate::interrupt::Interrupt;
use crate::limits::LimitsHeld;
use crate::tool::JsonObject;

/// The time limit of a call that names none, unless a backend has its own: 30 s.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Something that runs tool calls in slots. See the [module](self) for the contract.
pub trait Backend: Send + Sync + 'static {
    /// The containers and their slots, asked for once, when the executor starts. May block; one that may
    /// do so for longer than a moment looks at `interrupt` meanwhile, and gives up when that is triggered:
    /// with [`BackendError::interrupted`], and nothing left of it.
    ///
    /// # Errors
    /// Whatever keeps it from running calls; the executor does not start then.
    fn start(&self, interrupt: &Interrupt) -> Result<Vec<Container>, BackendError>;

    /// The time limit of a call that names none. Defaults to [`DEFAULT_TIMEOUT`].
    fn default_timeout(&self) -> Duration {
        DEFAULT_TIMEOUT
    }

    /// Runs a batch of calls, all in the container at index `container` of what
    /// [`start`](Self::start) returned.
    ///
    /// A call that was cancelled while its batch waited for an I/O thread is not among them.
    ///
    /// Called on one of a few I/O threads, unless it [is prompt](Self::is_prompt). It may block for as long as it takes to *hand over* the
    /// calls; while it waits for their *results* it holds up an I/O thread, so a backend with slow
    /// calls should return early and answer the replies later.
    fn execute(&self, container: usize, batch: Vec<Execution>);

    /// Whether [`execute`](Self::execute) takes calls of this tool without blocking – no I/O, no lock
    /// that others hold for long – and answers them later. Then it is called on the executor's own
    /// thread, which saves a change of threads; whatever holds it up there holds up all calls. Defaults
    /// to `false`.
    fn is_prompt(&self, tool: &str) -> bool {
        let _ = tool;
        false
    }

    /// Empties a slot: no file and no process of an earlier call is left in it when `reply` is
    /// given `Ok`. It may be that an earlier call of the slot still runs, if its answer came too
    /// late; then the reset ends it first. Called on an I/O thread.
    fn reset(&self, slot: &SlotRef, reply: ResetReply);

    /// Ends a running call early. Its reply is still to be answered, once the last of its processes
    /// is gone, with [`Outcome::Cancelled`](crate::Outcome::Cancelled) – or with its result, if it
    /// was faster. Called on an I/O thread, perhaps before `execute` has got to the call (see
    /// [`Reply::is_cancelled`]); for a call that is no longer known it does nothing.
    ///
    /// Defaults to doing nothing: the call runs to its end or its time limit.
    fn cancel(&self, id: ExecutionId) {
        let _ = id;
    }

    /// Reads a part of a file of the slot's workspace. Blocks; called on the thread of whoever asks,
    /// while no call of the slot runs. Defaults to [`ArtifactError::Unsupported`].
    ///
    /// # Errors
    /// See [`ArtifactError`].
    fn read_artifact(
        &self,
        slot: &SlotRef,
        request: &ReadArtifact,
    ) -> Result<Artifact, ArtifactError> {
        let _ = (slot, request);
        Err(ArtifactError::Unsupported)
    }

    /// Lists files of the slot's workspace; as [`read_artifact`](Self::read_artifact).
    ///
    /// # Errors
    /// See [`ArtifactError`].
    fn list_artifacts(
        &self,
        slot: &SlotRef,
        request: &ListArtifacts,
    ) -> Result<ArtifactList, ArtifactError> {
        let _ = (slot, request);
        Err(ArtifactError::Unsupported)
    }

    /// Writes a `.tar.gz` of the slot's workspace, or of a part of it, to `into`, without holding it
    /// in memory; as [`read_artifact`](Self::read_artifact), but `into` may be written to by another
    /// thread, which has ended when this returns. After an error `into` has some part of it.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    fn archive_artifacts(
        &self,
        slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        let _ = (slot, request, into);
        Err(ArtifactError::Unsupported)
    }

    /// Takes what tells the executor about containers that come and go. Called once, right after
    /// [`start`](Self::start). Defaults to ignoring it: the containers are always there.
    fn watch(&self, watcher: Watcher) {
        let _ = watcher;
    }

    /// Whether slots may hold files or processes of somebody else when the executor starts, so that
    /// each is reset before it is given out for the first time. Defaults to `false`.
    fn starts_dirty(&self) -> bool {
        false
    }

    /// Whether commands run isolated from the machine and from other slots, as far as is known.
    /// Defaults to `true`.
    fn isolates(&self) -> bool {
        true
    }

    /// Which limits hold for the commands of a slot, and by what; `None` where that is not known.
    /// Defaults to that.
    fn limits(&self) -> Option<LimitsHeld> {
        None
    }

    /// Whether a slot keeps its sandbox from call to call; `None` where that is not known. Defaults to
    /// that.
    fn warm_slots(&self) -> Option<bool> {
        None
    }

    /// Ends everything that is left and cleans up; nothing is called after it. What was called before
    /// and has not returned – it took longer than its calls may – still runs. Blocks until
    /// `deadline` at most. Defaults to doing nothing.
    fn close(&self, deadline: Instant) {
        let _ = deadline;
    }
}

impl<B: Backend + ?Sized> Backend for Arc<B> {
    fn start(&self, interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        (**self).start(interrupt)
    }

    fn default_timeout(&self) -> Duration {
        (**self).default_timeout()
    }

    fn execute(&self, container: usize, batch: Vec<Execution>) {
        (**self).execute(container, batch);
    }

    fn is_prompt(&self, tool: &str) -> bool {
        (**self).is_prompt(tool)
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        (**self).reset(slot, reply);
    }

    fn cancel(&self, id: ExecutionId) {
        (**self).cancel(id);
    }

    fn read_artifact(
        &self,
        slot: &SlotRef,
        request: &ReadArtifact,
    ) -> Result<Artifact, ArtifactError> {
        (**self).read_artifact(slot, request)
    }

    fn list_artifacts(
        &self,
        slot: &SlotRef,
        request: &ListArtifacts,
    ) -> Result<ArtifactList, ArtifactError> {
        (**self).list_artifacts(slot, request)
    }

    fn archive_artifacts(
        &self,
        slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        (**self).archive_artifacts(slot, request, into)
    }

    fn watch(&self, watcher: Watcher) {
        (**self).watch(watcher);
    }

    fn starts_dirty(&self) -> bool {
        (**self).starts_dirty()
    }

    fn isolates(&self) -> bool {
        (**self).isolates()
    }

    fn limits(&self) -> Option<LimitsHeld> {
        (**self).limits()
    }

    fn warm_slots(&self) -> Option<bool> {
        (**self).warm_slots()
    }

    fn close(&self, deadline: Instant) {
        (**self).close(deadline);
    }
}

/// A container: an address and the names of the slots in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Where it is: a URL, or any name that tells it from the others.
    pub addr: String,
    /// The names of its slots, such as `slot_0`. Distinct.
    pub slots: Vec<String>,
}

/// A slot, for as long as one trajectory holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRef {
    /// The container's index in what [`Backend::start`] returned.
    pub container: usize,
    /// The container's address.
    pub addr: Arc<str>,
    /// The slot's index in its container's list.
    pub index: usize,
    /// The slot's name.
    pub name: Arc<str>,
    /// Counts how often the slot was given out: the same slot under a higher number belongs to
    /// somebody else.
    pub generation: u64,
}

/// Names one execution of one call, unique within its executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExecutionId(pub u64);

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

/// One call on its way into a slot.
#[derive(Debug)]
pub struct Execution {
    /// Its id, for [`Backend::cancel`].
    pub id: ExecutionId,
    /// Whose call it is.
    pub trajectory_id: Arc<str>,
    /// Where it is to run.
    pub slot: SlotRef,
    /// The tool's name on the wire: `bash`, `bash_stateful`, `read_file`, `write_file`, `tmux`.
    pub tool: &'static str,
    /// Its arguments, valid by the tool's schema, with the policy's fields added.
    pub arguments: JsonObject,
    /// Its time limit.
    pub timeout: Duration,
    /// Where its result goes.
    pub reply: Reply,
}
