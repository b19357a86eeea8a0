//! The embedded sandbox: slots on this machine, in this process, with nothing to start.
//!
//! One container, `local`, over the sandbox engine: workspaces in a data directory of its own, `bash`
//! under bubblewrap, files beneath the workspace. A running command needs no thread of ours; file
//! calls are short and run on the I/O thread that brings them, after the batch's commands were started.
//! A reset may take minutes, where a trajectory has left a million files: resets have threads of their
//! own, `tool-reset-N`, so that they delay nobody's calls.

mod calls;
mod resets;

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use calls::Running;

use super::{
    Artifacts, Backend, Capabilities, Container, Execution, ExecutionId, Isolation, ResetReply,
    SlotRef,
};
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    ReadArtifact,
};
use crate::config::LocalConfig;
use crate::error::BackendError;
use crate::limits::EnforcedLimits;
use crate::sandbox::artifacts;
use crate::sandbox::etc;
use crate::sandbox::isolation::Isolation as Engine;
use crate::sandbox::limits::{Filter, Limits};
use crate::sandbox::shell;
use crate::sandbox::spool::Spool;
use crate::sandbox::supervisor::{Supervisor, raise_open_files_limit};
use crate::sandbox::terminal::{self, Terminals, Tmux};
use crate::sandbox::user::CommandUser;
use crate::sandbox::workspace::{DataDir, Workspace};
use crate::tool::{Outcome, ToolResult};
use crate::workers::Workers;

/// The container's name: there is only one.
const ADDR: &str = "local";
/// The tools whose calls only have to be handed to the threads that run them.
const INLINE_TOOLS: &[&str] = &["bash", "bash_stateful", "tmux"];
/// How many slots are emptied at a time.
const RESET_THREADS: usize = 4;

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
    supervisor: Supervisor,
    limits: Arc<Limits>,
    terminals: Terminals,
    slots: Vec<Slot>,
    running: Mutex<HashMap<ExecutionId, Running>>,
    max_output_chars: usize,
    max_output_file_bytes: u64,
    max_file_bytes: u64,
    /// Taken when closing.
    data_dir: Mutex<Option<DataDir>>,
    /// Taken when closing.
    resets: Mutex<Option<Workers>>,
}

/// Finds out how commands of a user are isolated.
type Probe = fn(Option<CommandUser>, &Workspace) -> Engine;

struct Slot {
    workspace: Arc<Workspace>,
    /// A command could not be killed: what is left of it may touch the workspace for ever.
    haunted: Arc<AtomicBool>,
    /// Who waits for the reset that is under way, or waits for its thread; nobody if there is none.
    resets: Arc<Mutex<Vec<ResetReply>>>,
}

impl LocalBackend {
    /// Looks for bubblewrap, removes what dead processes have left behind, makes the workspaces and
    /// starts the supervisor thread. Blocks for some milliseconds.
    ///
    /// Without bubblewrap it starts all the same, and says so in one logged warning; see
    /// [`not_isolated_because`](Self::not_isolated_because) and
    /// [`Policy::require_sandbox`](crate::Policy::require_sandbox).
    ///
    /// # Errors
    /// A configuration that makes no sense, a data directory that cannot be made, belongs to somebody
    /// else or cannot be reached by the user that commands run as, or no thread to be had.
    pub fn start(config: LocalConfig) -> Result<Self, BackendError> {
        Self::start_with(config, Tmux::detect(shell::PATH), Engine::probe)
    }

    fn start_with(
        config: LocalConfig,
        tmux: Option<Tmux>,
        probe: Probe,
    ) -> Result<Self, BackendError> {
        config.check()?;
        // A workspace is a file descriptor, and 1,024 are a usual limit.
        let open_files = raise_open_files_limit();
        if config.adopt_orphans {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
                .map_err(|error| BackendError::with_source("cannot adopt orphans", error))?;
        }
        let mut user = CommandUser::detect();
        let (mut data_dir, mut isolation) = prepare(&config, user, probe)?;
        if user.is_some() && !isolation.is_sandboxed() {
            // Some systems let only root make sandboxes, and one of root's is better than none.
            let of_root = prepare(&config, None, probe)?;
            if of_root.1.is_sandboxed() {
                log::warn!("only root can make sandboxes here: commands run in them as root");
                user = None;
                (data_dir, isolation) = of_root;
            }
        }
        let limits = Limits::detect(&config.limits, user, open_files)
            .map(Arc::new)
            .map_err(|error| BackendError::with_source("cannot watch the limits", error))?;
        let spool = Spool::start()
            .map_err(|error| BackendError::with_source("cannot start threads", error))?;
        let terminals = data_dir
            .make_passable_dir("terminals")
            .and_then(|directory| {
                Terminals::start(terminal::Setup {
                    isolation: isolation.clone(),
                    user,
                    limits: limits.clone(),
                    directory,
                    output_limit_chars: config.max_output_chars,
                    output_file_bytes: config.max_output_file_bytes,
                    spool: spool.clone(),
                    tmux,
                })
            })
            .map_err(|error| BackendError::with_source("cannot start the terminals", error))?;
        let supervisor = Supervisor::start(isolation, user, limits.clone(), spool)
            .map_err(|error| BackendError::with_source("cannot start the supervisor", error))?;
        let resets = Workers::start("tool-reset", RESET_THREADS)
            .map_err(|error| BackendError::with_source("cannot start threads", error))?;
        let slots = data_dir
            .workspaces()
            .iter()
            .map(|workspace| Slot {
                workspace: workspace.clone(),
                haunted: Arc::new(AtomicBool::new(false)),
                resets: Arc::default(),
            })
            .collect();
        Ok(Self(Arc::new(Inner {
            supervisor,
            limits,
            terminals,
            slots,
            running: Mutex::new(HashMap::new()),
            max_output_chars: config.max_output_chars,
            max_output_file_bytes: config.max_output_file_bytes,
            max_file_bytes: config.max_file_bytes,
            data_dir: Mutex::new(Some(data_dir)),
            resets: Mutex::new(Some(resets)),
        })))
    }

    /// Why commands run without isolation, as one line; `None` if they are isolated.
    pub fn not_isolated_because(&self) -> Option<&str> {
        match self.0.supervisor.isolation() {
            Engine::None { reason } => Some(reason),
            _ => None,
        }
    }

    /// Copies what is in a slot's workspace to the directory `dest`, which is made if it is missing.
    /// Symlinks are copied as symlinks; devices, sockets and FIFOs are left out. Blocks; to be
    /// called while no call of the slot runs, and before its trajectory is released.
    ///
    /// # Errors
    /// The first entry that could not be copied; the others are.
    pub fn save_workspace(&self, slot: &SlotRef, dest: &Path) -> std::io::Result<()> {
        match self.0.slots.get(slot.index) {
            Some(slot) => slot.workspace.save_to(dest),
            None => Err(std::io::Error::other(format!("there is no slot {}", slot.name))),
        }
    }

    fn workspace(&self, slot: &SlotRef) -> Result<&Workspace, ArtifactError> {
        match self.0.slots.get(slot.index) {
            Some(slot) => Ok(&slot.workspace),
            None => {
                let text = format!("there is no slot {}", slot.name);
                Err(ArtifactError::Io(text.clone(), std::io::Error::other(text)))
            }
        }
    }
}

impl Backend for LocalBackend {
    fn start(&self) -> Result<Vec<Container>, BackendError> {
        let slots = (0..self.0.slots.len()).map(|slot| format!("slot_{slot}")).collect();
        Ok(vec![Container { addr: ADDR.to_owned(), slots }])
    }

    fn capabilities(&self) -> Capabilities {
        let isolation = self.0.supervisor.isolation();
        let (isolated, not_filtered_because) = match isolation {
            Engine::Bubblewrap(bubblewrap) => (None, bubblewrap.not_filtered_because()),
            Engine::None { reason } => (Some(reason), Some("commands are not isolated")),
        };
        let limits = match isolated {
            // Without a sandbox none holds.
            Some(_) => EnforcedLimits::NOTHING,
            None => {
                EnforcedLimits { seccomp: not_filtered_because.is_none(), ..self.0.limits.held() }
            }
        };
        Capabilities {
            inline_tools: INLINE_TOOLS,
            isolation: match isolated {
                Some(reason) => Isolation::NotIsolated(reason.to_owned()),
                None => Isolation::Isolated,
            },
            limits: Some(limits),
            warm_slots: Some(isolation.is_warm()),
            not_filtered_because: not_filtered_because.map(str::to_owned),
            ..Capabilities::default()
        }
    }

    fn execute(&self, _container: usize, batch: Vec<Execution>) {
        // They only have to be started, so nobody's file keeps them waiting.
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
        resets::reset(&self.0, slot.index, place, reply);
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

    fn close(&self, deadline: Instant) {
        let resets = self.0.resets.lock().take();
        if let Some(resets) = &resets {
            resets.stop();
        }
        // Bounded by itself: it kills, and does not wait long for what cannot be killed.
        self.0.supervisor.close();
        self.0.terminals.close();
        if let Some(resets) = resets {
            resets.close(deadline);
        }
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
        artifacts::read(self.workspace(slot)?, request)
    }

    fn list(&self, slot: &SlotRef, request: &ListArtifacts) -> Result<ArtifactList, ArtifactError> {
        artifacts::list(self.workspace(slot)?, request)
    }

    fn archive(
        &self,
        slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        artifacts::archive(self.workspace(slot)?, request, into)
    }
}

/// The workspaces for commands that run as `user`, and how those are isolated.
fn prepare(
    config: &LocalConfig,
    user: Option<CommandUser>,
    probe: Probe,
) -> Result<(DataDir, Engine), BackendError> {
    let data_dir = DataDir::create(config.data_dir.as_deref(), config.slots, user)
        .map_err(|error| BackendError::with_source("cannot make the workspaces", error))?;
    let etc = data_dir
        .make_dir("etc")
        .and_then(|path| etc::copy_to(&path).map(|()| path))
        .map_err(|error| BackendError::with_source("cannot copy /etc for sandboxes", error))?;
    let workspace = &data_dir.workspaces()[0];
    let mut isolation = probe(user, workspace).with_etc(etc);
    if config.seccomp {
        isolation = isolation.with_filter(Filter::new(), user, workspace);
    }
    if let Some(bytes) = config.limits.memory_bytes {
        isolation = isolation.with_shared_memory(bytes / 2, user, workspace);
    }
    if config.warm_slots {
        isolation = isolation.try_warm(user, workspace);
    }
    Ok((data_dir, isolation))
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
