//! What an executor is made of: [`Builder`].

use std::sync::Arc;

use super::ToolExecutor;
use crate::backend::{Backend, Container, Execution, ResetReply, SlotRef};
use crate::config::ExecutorConfig;
use crate::error::{BackendError, StartError};
use crate::interrupt::Interrupt;
use crate::tool::ToolRegistry;

/// Starts a [`ToolExecutor`] from a configuration and what no configuration can hold: tools in
/// this process, a backend of the user's. Made by [`ToolExecutor::builder`].
#[must_use = "a builder does nothing until `start` is called"]
pub struct Builder {
    pub(super) config: ExecutorConfig,
    pub(super) backend: Option<Arc<dyn Backend>>,
    pub(super) registry: Option<ToolRegistry>,
    pub(super) interrupt: Interrupt,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            config: ExecutorConfig::default(),
            backend: None,
            registry: None,
            interrupt: Interrupt::new(),
        }
    }

    /// Every setting. Defaults to [`ExecutorConfig::default`].
    pub fn config(mut self, config: ExecutorConfig) -> Self {
        self.config = config;
        self
    }

    /// Where sandbox tools run, in place of what the configuration says. Defaults to that.
    pub fn backend(self, backend: impl Backend) -> Self {
        self.shared_backend(Arc::new(backend))
    }

    /// The same for a backend that the caller goes on using. It is closed with the executor.
    pub fn shared_backend(mut self, backend: Arc<dyn Backend>) -> Self {
        self.backend = Some(backend);
        self
    }

    /// The tools there are, in place of what [`ExecutorConfig::tools`] says. Defaults to that.
    pub fn registry(mut self, registry: ToolRegistry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// What ends the start early, from another thread. Defaults to nothing.
    pub fn interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Starts the backend, the batcher thread and the pools. Blocks for as long as the backend
    /// takes to start, or until it is [interrupted](Self::interrupt).
    ///
    /// # Errors
    /// A setting makes no sense, or asks for what is not there; the backend does not start; the
    /// ToolServer does not say what it offers; the operating system refuses a thread; or it was
    /// interrupted. Nothing is left running then, but a [`backend`](Self::backend) that was running
    /// when it was given, until it is dropped.
    pub fn start(self) -> Result<ToolExecutor, StartError> {
        ToolExecutor::launch(self)
    }
}

/// A backend without any slot.
pub(super) struct NoBackend;

impl Backend for NoBackend {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(Vec::new())
    }

    fn execute(&self, _addr: &str, _batch: Vec<Execution>) {}

    fn reset(&self, _slot: &SlotRef, _reply: ResetReply) {}
}
