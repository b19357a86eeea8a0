//! The embedded sandbox: slots on this machine, in this process, with nothing to start.
//!
//! One container, `local`, over the sandbox engine: workspaces in a data directory of its own, `bash`
//! under bubblewrap, files beneath the workspace. A running command needs no thread of ours; file
//! calls are short and run on the I/O thread that brings them, after the batch's commands were started.
//! A reset may take minutes, where a trajectory has left a million files: resets have threads of their
//! own, `tool-reset-N`, so that they delay nobody's calls.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Backend, Cancellation, Container, Execution, ExecutionId, ResetReply, SlotRef};
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    ReadArtifact,
};
use crate::error::BackendError;
use crate::limits::{LimitsHeld, SlotLimits};
use crate::sandbox::artifacts;
use crate::sandbox::bash::{IsolationPolicy, bash_result, not_started};
use crate::sandbox::etc;
use crate::sandbox::files::{self, DEFAULT_MAX_FILE_BYTES};
use crate::sandbox::isolation::Isolation;
use crate::sandbox::limits::{Filter, Limits};
use crate::sandbox::shell;
use crate::sandbox::spool::Spool;
use crate::sandbox::supervisor::{CommandId, CommandSpec, Supervisor, raise_open_files_limit};
use crate::sandbox::terminal::result::{self as stateful, stateful_result};
use crate::sandbox::terminal::{self, Place, ShellEnded, TerminalCall, Terminals, Tmux, tmux};
use crate::sandbox::user::CommandUser;
use crate::sandbox::workspace::{DataDir, Workspace};
use crate::tool::{Outcome, ToolResult};
use crate::workers::Workers;

/// The container's name: there is only one.
const ADDR: &str = "local";
/// How many slots are emptied at a time.
const RESET_THREADS: usize = 4;
/// How long they may take to end where nobody closed the backend.
const RESETS_END: Duration = Duration::from_secs(5);
/// More slots than this in one process are a mistake.
const MOST_SLOTS: usize = 65_536;

/// How a [`LocalBackend`] is set up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LocalConfig {
    /// How many slots; 1 to 65,536. Defaults to 10.
    pub slots: usize,
    /// Where the workspaces are made, in a directory of their own. Defaults to
    /// `tool-executor-<uid>` in the system's directory for temporary files. Where this process is
    /// root, commands run as the user 65534, who must be able to pass through every directory on the
    /// way there.
    pub data_dir: Option<PathBuf>,
    /// How many characters are kept of each of a command's two output streams. Defaults to 50,000.
    pub max_output_chars: usize,
    /// How many bytes of a call's output, of `bash` or `bash_stateful`, are kept in files in its
    /// workspace, where the result does not show all of it: `.tool-output/<n>-stdout.txt` and
    /// `…-stderr.txt`, named by the metadata `output_file` and `stderr_file`. Of both streams together; the
    /// rest is left out. 0 for no such files. Defaults to 16 MiB.
    pub max_output_file_bytes: u64,
    /// Makes this process a child subreaper (`prctl(2)`), so that ended sandboxes leave no zombies
    /// where the system's first process removes none, as in many containers. Not needed where this
    /// process is itself the first. It concerns the whole process: every orphan among its
    /// descendants becomes its child, and those that are not ours are for it to wait for. Defaults
    /// to `false`.
    pub adopt_orphans: bool,
    /// The size in bytes up to which files are read and written. Defaults to 100,000.
    pub max_file_bytes: u64,
    /// Whether a slot keeps its sandbox from call to call, which saves each command some
    /// milliseconds. What a command leaves behind is found and removed all the same: of one call the
    /// next finds the files in `/workspace` and `/tmp`, and nothing else. Defaults to `true`; where
    /// it is not possible each command gets a sandbox of its own, see
    /// [`LocalBackend::keeps_sandboxes`].
    pub warm_slots: bool,
    /// Whether sandboxes get a filter of system calls (seccomp), which takes away what no tool needs:
    /// nested namespaces, mounts, keys, bpf, io_uring, …; 32-bit programs do not run.
    /// Defaults to `true`; see [`LocalBackend::not_filtered_because`].
    pub seccomp: bool,
    /// What each slot may use of the machine; see [`LocalBackend::limits`].
    pub limits: SlotLimits,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            slots: 10,
            data_dir: None,
            max_output_chars: 50_000,
            max_output_file_bytes: 16 << 20,
            adopt_orphans: false,
            max_file_bytes: DEFAULT_MAX_FILE_BYTES,
            warm_slots: true,
            seccomp: true,
            limits: SlotLimits::default(),
        }
    }
}

impl LocalConfig {
    /// The defaults, but for the number of slots.
    pub fn with_slots(slots: usize) -> Self {
        Self { slots, ..Self::default() }
    }
}

/// The embedded sandbox. Clones share it.
///
/// Closed by the executor that uses it, or when the last clone is dropped: then no process and no
/// directory of it is left.
///
/// ```
/// use tool_executor::backend::local::{LocalBackend, LocalConfig};
/// use tool_executor::{ToolCall, ToolExecutor};
///
/// let backend = LocalBackend::start(LocalConfig::with_slots(4))?;
/// let executor = ToolExecutor::builder().backend(backend).start()?;
/// let result = executor.execute("trajectory-1", ToolCall::bash("echo hello"), None);
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
type Probe = fn(Option<CommandUser>, &Workspace) -> Isolation;

struct Slot {
    workspace: Arc<Workspace>,
    /// A command could not be killed: what is left of it may touch the workspace for ever.
    haunted: Arc<AtomicBool>,
    /// Who waits for the reset that is under way, or waits for its thread; nobody if there is none.
    resets: Arc<Mutex<Vec<ResetReply>>>,
}

/// The obligation to answer everybody who waits for a slot's reset. Dropped, because of a panic or because
/// the threads have ended, it drops their replies, which say so.
struct AnswerAll(Option<Arc<Mutex<Vec<ResetReply>>>>);

impl AnswerAll {
    fn give(mut self, outcome: Result<(), String>) {
        for reply in self.take() {
            reply.send(outcome.clone());
        }
    }

    /// Those who wait, once: whoever comes later waits for another reset.
    fn take(&mut self) -> Vec<ResetReply> {
        self.0.take().map(|waiting| std::mem::take(&mut *waiting.lock())).unwrap_or_default()
    }
}

impl Drop for AnswerAll {
    fn drop(&mut self) {
        drop(self.take());
    }
}

struct Running {
    command: Command,
    slot: usize,
}

/// What runs, and who knows it.
#[derive(Clone, Copy)]
enum Command {
    Plain(CommandId),
    Terminal(TerminalCall),
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
        Self::start_with(config, Tmux::detect(shell::PATH), Isolation::probe)
    }

    fn start_with(
        config: LocalConfig,
        tmux: Option<Tmux>,
        probe: Probe,
    ) -> Result<Self, BackendError> {
        if !(1..=MOST_SLOTS).contains(&config.slots) {
            return Err(BackendError::new(format!(
                "slots is {}; it must be from 1 to {MOST_SLOTS}",
                config.slots
            )));
        }
        if let Some(problem) = config.limits.problem() {
            return Err(BackendError::new(problem));
        }
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
            Isolation::None { reason } => Some(reason),
            _ => None,
        }
    }

    /// Whether slots keep their sandboxes, or each command gets a new one.
    pub fn keeps_sandboxes(&self) -> bool {
        self.0.supervisor.isolation().is_warm()
    }

    /// Why commands run without a filter of system calls, as one line; `None` if they have one. See
    /// [`LocalConfig::seccomp`].
    pub fn not_filtered_because(&self) -> Option<&str> {
        match self.0.supervisor.isolation() {
            Isolation::Bubblewrap(bubblewrap) => bubblewrap.not_filtered_because(),
            Isolation::None { .. } => Some("commands are not isolated"),
        }
    }

    /// Which of the [limits](LocalConfig::limits) hold here, and by what. Without bubblewrap none does.
    pub fn limits(&self) -> LimitsHeld {
        if !self.0.supervisor.isolation().is_sandboxed() {
            return LimitsHeld::NOTHING;
        }
        LimitsHeld { seccomp: self.not_filtered_because().is_none(), ..self.0.limits.held() }
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

    fn bash(&self, execution: Execution) {
        let Execution { id, slot, arguments, timeout, reply, .. } = execution;
        let policy = IsolationPolicy::from_arguments(&arguments);
        let isolation = self.0.supervisor.isolation();
        let (sandboxed, can_cut_network) = (isolation.is_sandboxed(), isolation.can_cut_network());
        if let Some(refusal) = policy.refusal(sandboxed, can_cut_network) {
            return reply.send(refusal);
        }
        let Some(place) = self.0.slots.get(slot.index) else { return };
        let command = match arguments.get("command") {
            None => String::new(),
            Some(serde_json::Value::String(command)) if !command.contains('\0') => command.clone(),
            Some(_) => {
                // The model's doing, unlike what the engine itself may fail at.
                return reply
                    .send(not_started("'command' must be a string without NULs", sandboxed));
            }
        };
        let spec = CommandSpec {
            workspace: place.workspace.clone(),
            command,
            network: policy.allow_network,
            timeout,
            output_limit_chars: self.0.max_output_chars,
            output_file_bytes: self.0.max_output_file_bytes,
        };
        let cancellation = reply.cancellation();
        let (note_end, ended) = self.note_end(id, place);
        let on_end = move |finished: crate::sandbox::supervisor::Finished| {
            note_end(finished.all_dead);
            reply.send(bash_result(finished, timeout.as_secs_f64()));
        };
        let command = Command::Plain(self.0.supervisor.run(spec, Box::new(on_end)));
        self.note_start(id, Running { command, slot: slot.index }, &ended, &cancellation);
    }

    fn bash_stateful(&self, execution: Execution) {
        let Execution { id, slot, arguments, timeout, reply, .. } = execution;
        let policy = stateful::policy(&arguments);
        let isolation = self.0.supervisor.isolation();
        let (sandboxed, can_cut_network) = (isolation.is_sandboxed(), isolation.can_cut_network());
        if let Some(refusal) = stateful::refusal(policy, sandboxed, can_cut_network) {
            return reply.send(refusal);
        }
        let Some(place) = self.0.slots.get(slot.index) else { return };
        let command = match stateful::command(&arguments, sandboxed) {
            Ok(command) => command.to_owned(),
            Err(refusal) => return reply.send(*refusal),
        };
        let cancellation = reply.cancellation();
        let (note_end, ended) = self.note_end(id, place);
        let on_end = move |ended: ShellEnded| {
            note_end(ended.finished.all_dead);
            reply.send(stateful_result(ended, timeout.as_secs_f64()));
        };
        let place = Place {
            slot: slot.index,
            workspace: place.workspace.clone(),
            network: policy.allow_network,
        };
        let call = self.0.terminals.bash(place, command, timeout, Box::new(on_end));
        let running = Running { command: Command::Terminal(call), slot: slot.index };
        self.note_start(id, running, &ended, &cancellation);
    }

    fn tmux(&self, execution: Execution) {
        let Execution { id, slot, arguments, timeout, reply, .. } = execution;
        let Some(place) = self.0.slots.get(slot.index) else { return };
        let act = match tmux::Request::parse(&arguments, timeout) {
            Ok(tmux::Request::Act(act)) => act,
            Ok(tmux::Request::Stop) => {
                let haunted = place.haunted.clone();
                let on_end = move |all_dead: bool| {
                    if !all_dead {
                        haunted.store(true, Ordering::Release);
                    }
                    reply.send(tmux::stop_result());
                };
                return self.0.terminals.stop_tmux(slot.index, Box::new(on_end));
            }
            Err(refusal) => return reply.send(*refusal),
        };
        let policy = stateful::policy(&arguments);
        let isolation = self.0.supervisor.isolation();
        let (sandboxed, can_cut_network) = (isolation.is_sandboxed(), isolation.can_cut_network());
        if let Some(why) = stateful::lacking(policy, sandboxed, can_cut_network) {
            let refusal = tmux::not_ensured(Outcome::IsolationUnavailable, &why, true);
            return reply.send(refusal);
        }
        if !self.0.terminals.has_tmux() {
            let requires_bwrap = policy.require_sandbox || !policy.allow_network;
            let why = "tmux is not installed";
            let refusal = tmux::not_ensured(Outcome::BackendFailed, why, requires_bwrap);
            return reply.send(refusal);
        }
        let cancellation = reply.cancellation();
        let (note_end, ended) = self.note_end(id, place);
        let on_end = move |ended: tmux::TmuxEnded| {
            note_end(ended.all_dead);
            reply.send(ended.result);
        };
        let place = Place {
            slot: slot.index,
            workspace: place.workspace.clone(),
            network: policy.allow_network,
        };
        let call = self.0.terminals.tmux(place, act, timeout, Box::new(on_end));
        let running = Running { command: Command::Terminal(call), slot: slot.index };
        self.note_start(id, running, &ended, &cancellation);
    }

    /// What is to be called when a command has ended, before its reply is given, and what tells
    /// [`note_start`](Self::note_start) that it was.
    fn note_end(
        &self,
        id: ExecutionId,
        place: &Slot,
    ) -> (impl FnOnce(bool) + Send + use<>, Arc<AtomicBool>) {
        let ended = Arc::new(AtomicBool::new(false));
        let (inner, noted) = (Arc::downgrade(&self.0), ended.clone());
        let haunted = place.haunted.clone();
        let note = move |all_dead: bool| {
            // Before the slot counts as idle: a reset that comes now must see it.
            if !all_dead {
                haunted.store(true, Ordering::Release);
            }
            if let Some(inner) = inner.upgrade() {
                let mut running = inner.running.lock();
                noted.store(true, Ordering::Release);
                running.remove(&id);
            }
        };
        (note, ended)
    }

    /// Notes where a call runs, unless it has ended, and cancels it if that was asked for before.
    fn note_start(
        &self,
        id: ExecutionId,
        running: Running,
        ended: &AtomicBool,
        cancellation: &Cancellation,
    ) {
        let command = running.command;
        {
            let mut all = self.0.running.lock();
            if !ended.load(Ordering::Acquire) {
                all.insert(id, running);
            }
        }
        if cancellation.is_requested() {
            self.cancel_command(command);
        }
    }

    fn cancel_command(&self, command: Command) {
        match command {
            Command::Plain(command) => self.0.supervisor.cancel(command),
            Command::Terminal(call) => self.0.terminals.cancel(call),
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

    fn file(&self, execution: Execution) {
        let Some(slot) = self.0.slots.get(execution.slot.index) else { return };
        let run = if execution.tool == "read_file" { files::read_file } else { files::write_file };
        let result = run(&slot.workspace, &execution.arguments, self.0.max_file_bytes);
        execution.reply.send(result);
    }
}

impl Backend for LocalBackend {
    fn start(&self) -> Result<Vec<Container>, BackendError> {
        let slots = (0..self.0.slots.len()).map(|slot| format!("slot_{slot}")).collect();
        Ok(vec![Container { addr: ADDR.to_owned(), slots }])
    }

    fn execute(&self, _container: usize, batch: Vec<Execution>) {
        // They only have to be started, so nobody's file keeps them waiting.
        let (commands, others): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|execution| self.is_prompt(execution.tool));
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

    /// Commands go to the threads that run them.
    fn is_prompt(&self, tool: &str) -> bool {
        matches!(tool, "bash" | "bash_stateful" | "tmux")
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
        // Whoever lost patience with a long reset and asks again gets the answer of that one.
        {
            let mut waiting = place.resets.lock();
            waiting.push(reply);
            if waiting.len() > 1 {
                return;
            }
        }
        let answer = AnswerAll(Some(place.resets.clone()));
        let workspace = place.workspace.clone();
        let inner = Arc::downgrade(&self.0);
        let on_gone = move |all_dead: bool| {
            if !all_dead {
                return answer.give(Err("its sandbox could not be ended".to_owned()));
            }
            // Without them the backend is closing, and the answer says so.
            if let Some(inner) = inner.upgrade()
                && let Some(resets) = &*inner.resets.lock()
            {
                let limits = inner.limits.clone();
                resets.spawn(move || {
                    let reset = workspace.reset().map_err(|error| error.to_string());
                    limits.emptied(workspace.path());
                    answer.give(reset);
                });
            }
        };
        // Before its files are emptied, nobody may be left who makes new ones.
        let (inner, index) = (Arc::downgrade(&self.0), slot.index);
        let terminals_gone = move |all_dead: bool| match inner.upgrade() {
            Some(inner) if all_dead => inner.supervisor.leave(index, Box::new(on_gone)),
            _ => on_gone(all_dead),
        };
        self.0.terminals.leave(slot.index, Box::new(terminals_gone));
    }

    fn cancel(&self, id: ExecutionId) {
        let command = self.0.running.lock().get(&id).map(|running| running.command);
        if let Some(command) = command {
            self.cancel_command(command);
        }
    }

    fn isolates(&self) -> bool {
        self.not_isolated_because().is_none()
    }

    fn limits(&self) -> Option<LimitsHeld> {
        Some(self.limits())
    }

    fn warm_slots(&self) -> Option<bool> {
        Some(self.keeps_sandboxes())
    }

    fn read_artifact(
        &self,
        slot: &SlotRef,
        request: &ReadArtifact,
    ) -> Result<Artifact, ArtifactError> {
        artifacts::read(self.workspace(slot)?, request)
    }

    fn list_artifacts(
        &self,
        slot: &SlotRef,
        request: &ListArtifacts,
    ) -> Result<ArtifactList, ArtifactError> {
        artifacts::list(self.workspace(slot)?, request)
    }

    fn archive_artifacts(
        &self,
        slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        artifacts::archive(self.workspace(slot)?, request, into)
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

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(resets) = self.resets.get_mut().take() {
            resets.stop();
            resets.close(Instant::now() + RESETS_END);
        }
    }
}

/// The workspaces for commands that run as `user`, and how those are isolated.
fn prepare(
    config: &LocalConfig,
    user: Option<CommandUser>,
    probe: Probe,
) -> Result<(DataDir, Isolation), BackendError> {
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
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{ToolCall, ToolExecutor};

    #[test]
    fn without_tmux_its_calls_say_so_and_ran_nothing() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::chmod(dir.path(), 0o711.into()).unwrap();
        let mut config = LocalConfig::with_slots(1);
        config.data_dir = Some(dir.path().to_owned());
        let nowhere = Tmux::detect("/nonexistent:/etc");
        let backend = LocalBackend::start_with(config, nowhere, Isolation::probe).unwrap();
        let executor = ToolExecutor::builder().backend(backend).start().unwrap();
        for action in ["start", "send_keys", "capture", "stream"] {
            let arguments = json!({"action": action, "keys": "x"});
            let result = executor.execute("t", ToolCall::new("tmux", arguments), None);
            assert_eq!(result.error, "Failed to ensure tmux session: tmux is not installed");
            assert_eq!((result.outcome, result.may_have_executed), (Outcome::BackendFailed, false));
            assert_eq!(result.metadata["requires_bwrap"], false);
        }
        let stop = ToolCall::new("tmux", json!({"action": "stop"}));
        assert_eq!(executor.execute("t", stop, None).output, "stopped");
        assert_eq!(executor.execute("t", ToolCall::bash("echo fine"), None).output, "fine");
    }

    /// Nobody had to be told: it had no call, and the slot has had another session since, which ended as it
    /// should.
    #[test]
    fn a_slot_with_a_session_whose_end_nobody_saw_is_not_given_out() {
        // A call that runs just when its session ends is told, which is another case.
        assert!((0..50).any(|_| has_lost_a_session_without_a_call()));
    }

    fn has_lost_a_session_without_a_call() -> bool {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::chmod(dir.path(), 0o711.into()).unwrap();
        let mut config = LocalConfig::with_slots(2);
        config.data_dir = Some(dir.path().to_owned());
        // In a sandbox no end is missed.
        let bare: Probe = |_, _| Isolation::None { reason: "a test".to_owned() };
        let backend = LocalBackend::start_with(config, None, bare).unwrap();
        let executor = ToolExecutor::builder().backend(backend.clone()).start().unwrap();
        let run = |trajectory: &str, command: &str| {
            let call = ToolCall::new("terminal_stateful", json!({"command": command}));
            executor.execute(trajectory, call, None)
        };
        let escape = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! $PPID; \
                      mkfifo go; (read x <go; kill -9 $PPID) &";
        let begun = run("t", escape);
        let pids: Vec<i32> = begun.output.split(' ').flat_map(str::parse).collect();
        let &[escaped, reaper] = &*pids else { panic!("{begun:?}") };
        let slot = executor.slot_of("t").expect("a slot");
        let workspace = backend.0.slots[slot.index].workspace.path().to_owned();
        std::fs::write(workspace.join("go"), "now\n").unwrap();
        let give_up = Instant::now() + Duration::from_secs(60);
        // Until it is reaped, which is when its end is known.
        while Path::new(&format!("/proc/{reaper}")).exists() {
            assert!(Instant::now() < give_up);
            std::thread::yield_now();
        }
        assert_eq!(run("t", "true").metadata["session"], "started");
        let kill = || {
            let escaped = rustix::process::Pid::from_raw(escaped).unwrap();
            rustix::process::kill_process(escaped, rustix::process::Signal::KILL).unwrap();
        };
        if backend.0.slots[slot.index].haunted.load(Ordering::Acquire) {
            kill();
            return false;
        }
        for _ in 0..2 {
            let (tell, told) = std::sync::mpsc::channel();
            backend.reset(&slot, ResetReply::from_fn(move |outcome| tell.send(outcome).unwrap()));
            let outcome = told.recv_timeout(Duration::from_secs(60)).unwrap();
            assert_eq!(outcome, Err("its sandbox could not be ended".to_owned()));
        }
        assert!(workspace.join("go").exists(), "it was emptied while somebody may use it");
        let error = executor.release_trajectory("t", true).unwrap_err();
        assert!(error.to_string().contains("could not be ended"), "{error}");
        for other in ["u", "v", "w"] {
            assert_eq!(run(other, "echo fine").output, "fine");
            assert_ne!(executor.slot_of(other).map(|slot| slot.index), Some(slot.index), "{other}");
            executor.release_trajectory(other, true).unwrap();
        }
        kill();
        true
    }
}
