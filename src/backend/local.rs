//! The embedded sandbox: slots on this machine, in this process, with nothing to start.
//!
//! One container, `local`, over the sandbox engine: workspaces in a data directory of its own,
//! `bash` in a jail, files beneath the workspace. A running command needs no thread of
//! ours; file calls are short and run on the I/O thread that brings them, after the batch's
//! commands were started. A reset may take minutes, where a trajectory has left a million files:
//! resets have threads of their own, `tool-reset-N`, so that they delay no calls.

mod begin;
mod calls;
mod held;
mod image;
mod network;
mod pulls;
mod resets;
mod snapshots;
mod start;

use std::collections::HashMap;
use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use calls::Running;
use image::{Images, can_have_images};
use pulls::ImageWait;
use resets::Resets;
use snapshots::{EndedBetween, KeptSnapshots};

use super::{
    Artifacts, Backend, BeginReply, Capabilities, Container, Execution, ExecutionId, HeldImages,
    Isolation, ResetReply, SlotRef, Snapshots,
};
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    PutFiles, PutSummary, ReadArtifact,
};
use crate::config::{LocalConfig, NetworkMode};
use crate::egress::Egress;
use crate::error::BackendError;
use crate::interrupt::Interrupt;
use crate::level::{ImageIds, IsolationLevel};
use crate::limits::EnforcedLimits;
use crate::sandbox::artifacts;
use crate::sandbox::etc::EtcCopy;
use crate::sandbox::image::StoredIds;
use crate::sandbox::isolation::{Isolation as Engine, NO_OTHER_OWNERS};
use crate::sandbox::limits::{Filter, Limits};
use crate::sandbox::provided::Provided;
use crate::sandbox::reach::Reach;
use crate::sandbox::shell;
use crate::sandbox::spool::Spool;
use crate::sandbox::supervisor::Supervisor;
use crate::sandbox::terminal::{self, Terminals, Tmux};
use crate::sandbox::user::CommandUser;
use crate::sandbox::workspace::{DataDir, ImageFiles, Workspace};
use crate::spec::{SnapshotId, TrajectorySpec};
use crate::tool::{Outcome, ToolResult};
use crate::workers::Workers;

/// The container's name: there is only one.
const ADDR: &str = "local";
/// The tools whose calls only have to be handed to the threads that run them.
const INLINE_TOOLS: &[&str] = &["bash", "bash_stateful", "tmux"];

/// The embedded sandbox. Clones share it.
///
/// Closed by the executor that uses it, or when the last clone is dropped: then no process and no
/// directory of it is left.
///
/// ```
/// use tool_executor::backend::local::LocalBackend;
/// use tool_executor::config::LocalConfig;
/// use tool_executor::{ToolCall, ToolExecutor};
///
/// let backend = LocalBackend::start(LocalConfig::new(4))?;
/// let executor = ToolExecutor::builder().backend(backend).start()?;
/// let result = executor.execute("trajectory-1", ToolCall::bash("echo hello"));
/// assert_eq!(result.output, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct LocalBackend(Arc<Inner>);

struct Inner {
    /// Why all slots are one user, if they are.
    one_user: Option<String>,
    /// The image whose files slots have that are given nothing else.
    image: Option<Arc<ImageFiles>>,
    /// Where images are from.
    images: Images,
    supervisor: Arc<Supervisor>,
    limits: Arc<Limits>,
    terminals: Terminals,
    slots: Vec<Slot>,
    running: Mutex<HashMap<ExecutionId, Running>>,
    /// What commands have that may use the network.
    network: NetworkMode,
    /// Serves the proxies of sandboxes, where they have one.
    egress: Option<Arc<Egress>>,
    max_output_chars: usize,
    max_output_file_bytes: u64,
    max_file_bytes: u64,
    /// Taken when closing.
    data_dir: Mutex<Option<DataDir>>,
    /// Taken when closing.
    resets: Mutex<Option<Resets>>,
    snapshots: KeptSnapshots,
    /// The threads on which trajectories begin: that may take long, as an image does that is
    /// unpacked. Taken when closing.
    begins: Mutex<Option<Workers>>,
}

struct Slot {
    /// The present one; each reset puts another in its place.
    workspace: Mutex<Arc<Workspace>>,
    /// Whether its latest command could use the network: that decides which machine it had.
    has_network: AtomicBool,
    /// The snapshot that it began from, or that was made of it last.
    began_from: Mutex<Option<SnapshotId>>,
    ended: EndedBetween,
    image_wait: ImageWait,
    /// A command could not be killed: what is left of it may touch the workspace for ever.
    haunted: Arc<AtomicBool>,
    /// A trajectory begins in it.
    begins: Arc<AtomicBool>,
    /// Who waits for the reset that is under way, or waits for its thread; empty if there is none.
    resets: Arc<Mutex<Vec<ResetReply>>>,
}

impl Slot {
    fn workspace(&self) -> Arc<Workspace> {
        self.workspace.lock().clone()
    }

    /// Does `work` with its files, and with what is around them in the machine that its latest
    /// command had.
    fn with_files<T>(&self, supervisor: &Supervisor, work: impl FnOnce(Reach<'_>) -> T) -> T {
        let workspace = self.workspace();
        let find_root = || supervisor.root(&workspace, self.has_network.load(Ordering::Acquire));
        work(Reach::new(&workspace, &find_root))
    }
}

impl LocalBackend {
    /// Removes what dead processes have left behind, makes the workspaces, tries a sandbox and
    /// starts the supervisor thread. Blocks for some milliseconds as a rule; for up to 15 s where
    /// that sandbox hangs, and for as long as it takes to remove what is left of the dead.
    ///
    /// # Errors
    /// - [`BackendErrorKind::NotIsolated`]: commands would run without isolation, or as a root that
    ///   cannot be another user, and [`LocalConfig::allow_unisolated`] is not set.
    /// - [`BackendErrorKind::Shortage`]: the machine lacks something, or a sandbox hangs, so that
    ///   nothing is known; or the slots need more descriptors than this process may have.
    /// - [`BackendErrorKind::Other`]: a configuration that makes no sense, a data directory that
    ///   cannot be made, belongs to another user or cannot be reached by the user that commands run
    ///   as.
    ///
    /// [`BackendErrorKind::NotIsolated`]: crate::BackendErrorKind::NotIsolated
    /// [`BackendErrorKind::Shortage`]: crate::BackendErrorKind::Shortage
    /// [`BackendErrorKind::Other`]: crate::BackendErrorKind::Other
    pub fn start(config: LocalConfig) -> Result<Self, BackendError> {
        Self::start_interruptible(config, &Interrupt::new())
    }

    /// As [`start`](Self::start), until `interrupt` is triggered.
    ///
    /// # Errors
    /// As of [`start`](Self::start); and [`BackendErrorKind::Interrupted`], when no process and no
    /// directory is left.
    ///
    /// [`BackendErrorKind::Interrupted`]: crate::BackendErrorKind::Interrupted
    pub fn start_interruptible(
        config: LocalConfig,
        interrupt: &Interrupt,
    ) -> Result<Self, BackendError> {
        start::start(&config, Tmux::detect(shell::PATH), Engine::find, interrupt)
    }

    /// Why commands run without isolation, as one line; `None` if they are isolated.
    pub fn not_isolated_because(&self) -> Option<&str> {
        match self.0.supervisor.isolation() {
            Engine::None { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Copies what is in a slot's workspace to the directory `dest`, which is made if it is
    /// missing. Symlinks are copied as symlinks; devices, sockets and FIFOs are left out. Blocks;
    /// to be called while no call of the slot runs, and before its trajectory is released.
    ///
    /// # Errors
    /// The first entry that could not be copied; the others are.
    pub fn save_workspace(&self, slot: &SlotRef, dest: &Path) -> std::io::Result<()> {
        match self.0.slots.get(slot.index) {
            Some(slot) => {
                let workspace = slot.workspace();
                if workspace.needs_machine() {
                    let network = slot.has_network.load(Ordering::Acquire);
                    let founded = self.0.supervisor.root(&workspace, network);
                    founded.map_err(std::io::Error::other)?;
                }
                workspace.save_to(dest)
            }
            None => Err(std::io::Error::other(format!("there is no slot {}", slot.name))),
        }
    }

    /// How far commands are isolated, and why not further.
    fn level(&self) -> (IsolationLevel, Vec<String>) {
        let jails = match self.0.supervisor.isolation() {
            Engine::Jailed(jails) => jails,
            Engine::None { reason, .. } => return (IsolationLevel::None, vec![reason.clone()]),
        };
        let images_are_one_user = self
            .0
            .images
            .shared
            .map(|_| format!("all machines from images are one user: {NO_OTHER_OWNERS}"));
        let slots_are_one_user = match &self.0.image {
            Some(_) => images_are_one_user.is_some() || self.0.one_user.is_some(),
            None => self.0.one_user.is_some(),
        };
        let level = match slots_are_one_user {
            _ if jails.shares_proc() => IsolationLevel::SharedProc,
            true => IsolationLevel::OneUser,
            false => IsolationLevel::Full,
        };
        let one_user = self.0.one_user.clone().into_iter().chain(images_are_one_user);
        (level, jails.weaknesses().into_iter().chain(one_user).collect())
    }

    /// Which user ids machines from images have, if there can be some.
    fn image_ids(&self) -> Option<ImageIds> {
        can_have_images(self.0.supervisor.isolation()).ok()?;
        Some(match self.0.images.ids() {
            StoredIds::Kept => ImageIds::OwnRange,
            StoredIds::Moved(_) => ImageIds::SharedRange,
            StoredIds::One => ImageIds::One,
        })
    }

    /// Does `work` with the files of a slot, as its latest command saw them.
    fn with_files<T>(
        &self,
        slot: &SlotRef,
        work: impl FnOnce(Reach<'_>) -> Result<T, ArtifactError>,
    ) -> Result<T, ArtifactError> {
        let Some(place) = self.0.slots.get(slot.index) else {
            let text = format!("there is no slot {}", slot.name);
            return Err(ArtifactError::Io(text.clone(), std::io::Error::other(text)));
        };
        place.with_files(&self.0.supervisor, work)
    }
}

impl Backend for LocalBackend {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        let slots = (0..self.0.slots.len()).map(|slot| format!("slot_{slot}")).collect();
        Ok(vec![Container { addr: ADDR.to_owned(), slots }])
    }

    fn capabilities(&self) -> Capabilities {
        let isolation = self.0.supervisor.isolation();
        let (isolated, not_filtered_because) = match isolation {
            Engine::Jailed(jails) => (None, jails.not_filtered_because()),
            Engine::None { reason, .. } => (Some(reason), Some("commands are not isolated")),
        };
        let limits = match isolated {
            // Without a sandbox none holds.
            Some(_) => EnforcedLimits::NOTHING,
            None => {
                EnforcedLimits { seccomp: not_filtered_because.is_none(), ..self.0.limits.held() }
            }
        };
        let (isolation_level, weakened_because) = self.level();
        Capabilities {
            isolation_level: Some(isolation_level),
            weakened_because,
            inline_tools: INLINE_TOOLS,
            isolation: match isolated {
                Some(reason) => Isolation::NotIsolated(reason.to_owned()),
                None => Isolation::Isolated,
            },
            limits: Some(limits),
            warm_slots: Some(isolation.is_warm()),
            retired_sandboxes: self.0.limits.retired().count(),
            network: Some(self.0.network),
            network_totals: self.0.egress.as_ref().map(|egress| egress.totals()),
            not_filtered_because: not_filtered_because.map(str::to_owned),
            spec: begin::given(self),
            no_images_because: image::no_images_because(isolation).map(str::to_owned),
            image_ids: self.image_ids(),
            ..Capabilities::default()
        }
    }

    fn images(&self) -> Option<Arc<HeldImages>> {
        let can_have_some = can_have_images(self.0.supervisor.isolation()).is_ok();
        can_have_some.then(|| self.0.images.held())
    }

    fn execute(&self, _addr: &str, batch: Vec<Execution>) {
        // They only have to be started, so no file keeps them waiting.
        let (commands, others): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|execution| INLINE_TOOLS.contains(&execution.tool));
        for execution in commands.into_iter().chain(others) {
            match execution.tool {
                "bash" => self.bash(execution),
                "bash_stateful" => self.bash_stateful(execution),
                "tmux" => self.tmux(execution),
                "read_file" | "write_file" => self.file(execution),
                other => {
                    let mut result = ToolResult::failure(
                        Outcome::UnknownTool,
                        format!("Unknown tool: {other} (the embedded sandbox does not have it)"),
                    );
                    result.may_have_executed = false;
                    execution.reply.send(result);
                }
            }
        }
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        let Some(place) = self.0.slots.get(slot.index) else { return };
        // Only after an answer that came too late: its command is still there.
        let left: Vec<_> = {
            let running = self.0.running.lock();
            let here = running.values().filter(|running| running.slot == slot.index);
            here.map(|running| running.command).collect()
        };
        if !left.is_empty() {
            for command in left {
                self.cancel_command(command);
            }
            return reply.send(Err("a command of an earlier call still runs in it".to_owned()));
        }
        if place.haunted.load(Ordering::Acquire) {
            return reply.send(Err("a process of an earlier call could not be killed".to_owned()));
        }
        if place.begins.load(Ordering::Acquire) {
            return reply.send(Err("a trajectory still begins in it".to_owned()));
        }
        resets::reset(&self.0, slot.index, place, reply);
    }

    fn begin(&self, slot: &SlotRef, spec: &Arc<TrajectorySpec>, reply: BeginReply) {
        begin::begin(self, slot, spec.clone(), reply);
    }

    fn cancel(&self, id: ExecutionId) {
        let command = self.0.running.lock().get(&id).map(|running| running.command);
        if let Some(command) = command {
            self.cancel_command(command);
        }
    }

    fn artifacts(&self) -> Option<&dyn Artifacts> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn close(&self, deadline: Instant) {
        self.0.images.close(deadline);
        let resets = self.0.resets.lock().take();
        if let Some(resets) = &resets {
            resets.stop();
        }
        let begins = self.0.begins.lock().take();
        if let Some(begins) = &begins {
            begins.stop();
        }
        // Bounded by itself: it kills, and does not wait long for what cannot be killed.
        self.0.supervisor.close();
        self.0.terminals.close();
        if let Some(egress) = &self.0.egress {
            egress.close();
        }
        self.0.images.pulls.close(deadline);
        if let Some(begins) = begins {
            begins.close(deadline);
        }
        if let Some(resets) = resets {
            resets.close(deadline);
        }
        self.0.snapshots.clear();
        self.0.limits.close();
        let data_dir = self.0.data_dir.lock().take();
        if let Some(data_dir) = data_dir
            && let Err(error) = data_dir.close(deadline)
        {
            log::warn!("the workspaces could not be removed entirely: {error}");
        }
    }
}

impl Artifacts for LocalBackend {
    fn read(&self, slot: &SlotRef, request: &ReadArtifact) -> Result<Artifact, ArtifactError> {
        self.with_files(slot, |files| artifacts::read(files, request))
    }

    fn list(&self, slot: &SlotRef, request: &ListArtifacts) -> Result<ArtifactList, ArtifactError> {
        self.with_files(slot, |files| artifacts::list(files, request))
    }

    fn archive(
        &self,
        slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        self.with_files(slot, |files| artifacts::archive(files, request, into))
    }

    fn copy(
        &self,
        slot: &SlotRef,
        path: &str,
        into: &mut (dyn Write + Send),
    ) -> Result<u64, ArtifactError> {
        self.with_files(slot, |files| artifacts::copy(files, path, into))
    }

    fn put(
        &self,
        slot: &SlotRef,
        request: &PutFiles,
        from: &mut (dyn Read + Send),
    ) -> Result<PutSummary, ArtifactError> {
        if let Some(place) = self.0.slots.get(slot.index)
            && !request.allow_network
        {
            place.has_network.store(false, Ordering::Release);
        }
        self.with_files(slot, |files| artifacts::put(files, &self.0.limits, request, from))
    }
}

impl fmt::Debug for LocalBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBackend")
            .field("slots", &self.0.slots.len())
            .field("not_isolated_because", &self.not_isolated_because())
            .finish()
    }
}

#[cfg(test)]
mod tests;
