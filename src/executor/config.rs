//! The configuration of an executor: [`Builder`] and its checks.

use std::sync::Arc;
use std::time::Duration;

use super::ToolExecutor;
use super::dispatch::{Limits, LostWorkspace};
use super::lane::{BatchLimits, BatchPolicy};
use crate::backend::{Backend, Container, Execution, ResetReply, SlotRef};
use crate::error::{BackendError, StartError};
use crate::tool::{Policy, ToolRegistry};
use crate::toolserver::ToolServerConfig;

/// Configures and starts a [`ToolExecutor`]. Made by [`ToolExecutor::builder`].
///
/// Every setting has a default; only a [`backend`](Self::backend) has to be given, unless the
/// executor is for in-process tools alone.
#[must_use = "a builder does nothing until `start` is called"]
pub struct Builder {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) registry: ToolRegistry,
    pub(crate) policy: Policy,
    batch_policy: BatchPolicy,
    batch_window: Duration,
    max_batch_size: usize,
    pub(crate) queue_capacity: usize,
    pub(crate) queue_timeout: Duration,
    acquire_timeout: Duration,
    answer_grace: Duration,
    reset_timeout: Duration,
    pub(crate) close_timeout: Duration,
    on_lost: LostWorkspace,
    idle_limit: Option<Duration>,
    pub(crate) io_threads: usize,
    handler_threads: usize,
    pub(crate) tool_server: Option<ToolServerConfig>,
}

/// The longest duration that a setting may have: a year. Beyond it sums of times could overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// More threads than this are a mistake: jobs do not wait for commands.
const MOST_THREADS: usize = 256;

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            backend: Arc::new(NoBackend),
            registry: ToolRegistry::builtin(),
            policy: Policy::default(),
            batch_policy: BatchPolicy::default(),
            batch_window: Duration::from_millis(20),
            max_batch_size: 200,
            queue_capacity: 65_536,
            queue_timeout: Duration::from_secs(3600),
            acquire_timeout: Duration::from_secs(600),
            answer_grace: Duration::from_secs(60),
            reset_timeout: Duration::from_secs(60),
            close_timeout: Duration::from_secs(30),
            on_lost: LostWorkspace::default(),
            idle_limit: None,
            io_threads: 8,
            handler_threads: 16,
            tool_server: None,
        }
    }

    /// Where sandbox tools run. Defaults to nowhere: they are then answered
    /// [`Outcome::NeverRan`](crate::Outcome::NeverRan).
    pub fn backend(mut self, backend: impl Backend) -> Self {
        self.backend = Arc::new(backend);
        self
    }

    /// The tools there are. Defaults to [`ToolRegistry::builtin`].
    pub fn registry(mut self, registry: ToolRegistry) -> Self {
        self.registry = registry;
        self
    }

    /// What sandboxed commands may do; a model cannot change it. Defaults to [`Policy::default`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// When a lane sends its batch. Defaults to [`BatchPolicy::Adaptive`].
    pub fn batch_policy(mut self, policy: BatchPolicy) -> Self {
        self.batch_policy = policy;
        self
    }

    /// How long a call waits at most for company in its batch. Defaults to 20 ms.
    pub fn batch_window(mut self, window: Duration) -> Self {
        self.batch_window = window;
        self
    }

    /// How many calls a batch holds at most. Defaults to 200; at least 1.
    pub fn max_batch_size(mut self, calls: usize) -> Self {
        self.max_batch_size = calls;
        self
    }

    /// How many accepted calls may be waiting to run, wherever they wait. Defaults to 65,536; at
    /// least 1. When so many wait, `try_submit` gives the call back and `submit` blocks.
    pub fn queue_capacity(mut self, calls: usize) -> Self {
        self.queue_capacity = calls;
        self
    }

    /// How long a call may wait behind others, and a blocking submit for room in the queue.
    /// Defaults to 3,600 s.
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.queue_timeout = timeout;
        self
    }

    /// How long a trajectory's call may wait for a slot. Defaults to 600 s.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// How long after a call's own time limit its backend may take to answer. After that, the call
    /// ends as [`Outcome::SandboxLost`](crate::Outcome::SandboxLost) and its slot is reset before
    /// anybody gets it. Defaults to 60 s.
    pub fn answer_grace(mut self, grace: Duration) -> Self {
        self.answer_grace = grace;
        self
    }

    /// How long a slot's reset may take before it counts as failed. Defaults to 60 s.
    pub fn reset_timeout(mut self, timeout: Duration) -> Self {
        self.reset_timeout = timeout;
        self
    }

    /// How long [`ToolExecutor::close`] and dropping wait for accepted calls before they are
    /// cancelled. Defaults to 30 s.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }

    /// What becomes of a trajectory whose workspace was lost with its sandbox. Defaults to
    /// [`LostWorkspace::Refuse`].
    pub fn on_lost_workspace(mut self, what: LostWorkspace) -> Self {
        self.on_lost = what;
        self
    }

    /// How long a trajectory may hold a slot without a call, a release or a reader of artifacts. After
    /// that its slot is taken back and reset, a warning names it, and it has lost its workspace: what
    /// that means for its next call [`on_lost_workspace`](Self::on_lost_workspace) says. `None` and
    /// zero, the default: for ever.
    ///
    /// For callers that may forget to release, or die: a server. A model that thinks for long makes
    /// no call meanwhile, so be generous.
    pub fn idle_limit(mut self, limit: Option<Duration>) -> Self {
        self.idle_limit = limit.filter(|limit| !limit.is_zero());
        self
    }

    /// How many threads hand batches to the backend. Defaults to 8; 1 to 256.
    pub fn io_threads(mut self, threads: usize) -> Self {
        self.io_threads = threads;
        self
    }

    /// How many in-process tools may run at once, each on a thread of its own. Defaults to 16;
    /// 1 to 256.
    pub fn handler_threads(mut self, threads: usize) -> Self {
        self.handler_threads = threads;
        self
    }

    /// The ToolServer that runs external tools. What it offers is asked for at the start and added to
    /// the registry, except for names that are taken. Defaults to none: external tools are then
    /// answered [`Outcome::ExternalFailed`](crate::Outcome::ExternalFailed).
    pub fn tool_server(mut self, config: ToolServerConfig) -> Self {
        self.tool_server = Some(config);
        self
    }

    /// Starts the backend, the batcher thread and the pools. Blocks for as long as the backend
    /// takes to start.
    ///
    /// # Errors
    /// A setting makes no sense, the backend does not start, the ToolServer does not say what it
    /// offers, or the operating system refuses a
    /// thread. Nothing is left running then.
    pub fn start(self) -> Result<ToolExecutor, StartError> {
        self.check()?;
        ToolExecutor::start(self)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            batch: BatchLimits {
                policy: self.batch_policy,
                window: self.batch_window,
                max_size: self.max_batch_size,
            },
            queue_timeout: self.queue_timeout,
            acquire_timeout: self.acquire_timeout,
            answer_grace: self.answer_grace,
            reset_timeout: self.reset_timeout,
            on_lost: self.on_lost,
            idle_limit: self.idle_limit,
            unanswered: self.queue_capacity.max(MOST_THREADS),
            external: [
                self.handler_threads,
                self.tool_server.as_ref().map_or(0, |config| config.concurrency),
            ],
        }
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        let at_least_one =
            [("max_batch_size", self.max_batch_size), ("queue_capacity", self.queue_capacity)];
        for (name, value) in at_least_one {
            if value == 0 {
                return Err(StartError::Config(format!("{name} is 0; it must be at least 1")));
            }
        }
        let threads = [("io_threads", self.io_threads), ("handler_threads", self.handler_threads)];
        for (name, value) in threads {
            if !(1..=MOST_THREADS).contains(&value) {
                return Err(StartError::Config(format!(
                    "{name} is {value}; it must be from 1 to {MOST_THREADS}"
                )));
            }
        }
        let durations = [
            ("batch_window", self.batch_window),
            ("queue_timeout", self.queue_timeout),
            ("acquire_timeout", self.acquire_timeout),
            ("answer_grace", self.answer_grace),
            ("reset_timeout", self.reset_timeout),
            ("close_timeout", self.close_timeout),
            ("idle_limit", self.idle_limit.unwrap_or_default()),
        ];
        for (name, value) in durations {
            if value > LONGEST {
                return Err(StartError::Config(format!("{name} is {value:?}; at most a year")));
            }
        }
        Ok(())
    }
}

/// A backend without any slot.
struct NoBackend;

impl Backend for NoBackend {
    fn start(&self) -> Result<Vec<Container>, BackendError> {
        Ok(Vec::new())
    }

    fn execute(&self, _container: usize, _batch: Vec<Execution>) {}

    fn reset(&self, _slot: &SlotRef, _reply: ResetReply) {}
}
