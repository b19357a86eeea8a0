//! The start of an executor: its backend, its threads. The one place that names concrete backends.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use crossbeam_channel::{bounded, unbounded};
use parking_lot::{Mutex, RwLock};

use super::batcher::{Batcher, InlineTools, Performer, WorkerPools};
use super::builder::{Builder, NoBackend};
use super::callback;
use super::completion::Places;
use super::dispatch::{Dispatch, Limits};
use super::event::Event;
use super::external::External;
use super::gate::Gate;
use super::lane::BatchLimits;
use super::orders::Orders;
use super::snapshots::SnapshotPlaces;
use super::stats::Rejections;
use super::{CLOSE_MARGIN, Threads, ToolExecutor};
use crate::backend::{Backend, Container, Several, Watcher};
use crate::config::{
    BackendConfig, ExecutorConfig, FleetConfig, LocalConfig, MOST_THREADS, SlurmConfig,
    ToolServerConfig,
};
use crate::error::{BackendError, BackendErrorKind, ConfigError, StartError};
use crate::interrupt::Interrupt;
use crate::seconds::LONGEST;
use crate::thread::OwnedThread;
use crate::tool::{CallTimes, ToolRegistry};
use crate::toolserver::ToolServer;
use crate::workers::{Workers, guarded};

impl ToolExecutor {
    /// An executor of this configuration, with its `local` or `fleet` sandbox; see
    /// [`Builder::start`].
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start(config: ExecutorConfig) -> Result<Self, StartError> {
        Builder::new().config(config).start()
    }

    pub(super) fn launch(builder: Builder) -> Result<Self, StartError> {
        let Builder { config, backend, registry, interrupt } = builder;
        config.check()?;
        let is_configured = config.local.is_some()
            || config.fleet.is_some()
            || config.slurm.is_some()
            || !config.backends.is_empty();
        if backend.is_some() && is_configured {
            let text = "the builder has a backend, and the configuration \"local\", \"fleet\", \
                        \"slurm\" or \"backends\": give one of them";
            return Err(ConfigError::new(text).into());
        }
        let mut registry = match registry {
            Some(registry) => registry,
            None => config.tools.registry()?,
        };
        let mut limits = limits(&config);
        // Before the backend, which may be slow to start: whether it is there is soon known.
        let tool_server = match &config.tool_server {
            Some(server) => Some(connect(server, &mut registry, &interrupt)?),
            None => None,
        };
        let has_tool_server = tool_server.is_some();
        let backend = match (backend, config.local, config.fleet, config.slurm) {
            (Some(backend), ..) => backend,
            (None, Some(local), ..) => start_local(local, &interrupt)?,
            (None, None, Some(fleet), _) => new_fleet(fleet)?,
            (None, None, None, Some(slurm)) => new_slurm(slurm)?,
            (None, None, None, None) if config.backends.is_empty() => Arc::new(NoBackend),
            (None, None, None, None) => new_several(config.backends, &interrupt)?,
        };
        let containers = backend.start(&interrupt).map_err(backend_failed)?;
        if let Some(addr) = told_twice(&containers) {
            backend.close(Instant::now() + CLOSE_MARGIN);
            let text = format!("the backend has two containers at the address {addr:?}");
            return Err(StartError::Backend(BackendError::new(text)));
        }
        let tiers = backend.tiers();
        let capabilities = backend.capabilities();
        limits.may_grow = capabilities.may_grow;
        // A backend without a limit of its own may well say `Duration::MAX`.
        let default_timeout =
            config.default_timeout.unwrap_or(capabilities.default_timeout).min(LONGEST);
        let gate = Arc::new(Gate::new(config.queue_capacity));
        let rejections = Arc::new(Rejections::default());
        #[expect(
            clippy::disallowed_methods,
            reason = "whoever has a result must not wait; see ARCHITECTURE.md for what bounds it"
        )]
        let (events, receiver) = unbounded();
        let told = events.clone();
        backend.watch(Watcher::from_fn(move |addr, change| {
            // Refused only when the batcher has ended.
            let _ = told.send(Event::Container { addr: addr.into(), change });
        }));
        let launch = || -> std::io::Result<_> {
            let io = Workers::start("tool-io", config.io_threads)?;
            let handlers =
                Workers::start("tool-fn", limits.external[External::InProcess as usize])?;
            let tool_server = match tool_server {
                Some(server) => {
                    let threads = Workers::start("tool-server", server.concurrency())?;
                    Some((Arc::new(server), threads))
                }
                None => None,
            };
            let (callbacks, callback) = callback::start()?;
            let mut dispatch = Dispatch::new(
                &containers,
                limits,
                gate.clone(),
                rejections.clone(),
                capabilities.starts_dirty,
            );
            dispatch.use_tiers(&tiers);
            let batcher = Batcher {
                dispatch,
                events: receiver,
                performer: Performer {
                    report: events.clone(),
                    backend: backend.clone(),
                    inline_tools: InlineTools::new(capabilities.inline_tools, &tiers),
                    pools: WorkerPools { io, handlers, tool_server },
                    notices: Arc::default(),
                },
            };
            let (leave, ended) = bounded(1);
            let batcher_gate = gate.clone();
            let batcher = OwnedThread::spawn("tool-batcher", move || {
                match guarded(|| batcher.run()) {
                    // Refused only when the executor's owner is gone.
                    Ok(end) => drop(leave.send(end)),
                    // Its state is gone, and with it every promise: all callers are answered.
                    Err(panic) => {
                        batcher_gate.close();
                        log::error!("the batcher panicked, the executor is closed: {panic}");
                    }
                }
            })?;
            Ok((callbacks, Threads { batcher, ended, callback }))
        };
        if interrupt.is_interrupted() {
            backend.close(Instant::now() + CLOSE_MARGIN);
            return Err(StartError::Interrupted);
        }
        let (callbacks, threads) = match launch() {
            Ok(launched) => launched,
            Err(error) => {
                backend.close(Instant::now() + CLOSE_MARGIN);
                return Err(StartError::Thread(error));
            }
        };
        Ok(Self {
            notify: Arc::new(events.clone()),
            events,
            gate,
            orders: Orders::new(),
            rejections,
            registry: registry.with_longest_timeout(config.max_timeout),
            policy: config.policy,
            has_tool_server,
            times: CallTimes { default: default_timeout, most: config.max_timeout },
            queue_timeout: config.queue_timeout,
            close_timeout: config.close_timeout,
            next_id: AtomicU64::new(1),
            callbacks: RwLock::new(Some(callbacks)),
            callback_places: Places::new(config.queue_capacity),
            backend,
            has_tiers: !tiers.is_empty(),
            snapshot_places: SnapshotPlaces::default(),
            threads: Mutex::new(Some(threads)),
            closed: Mutex::new(None),
        })
    }
}

/// Several backends as one. The embedded sandboxes among them start here.
fn new_several(
    configs: Vec<BackendConfig>,
    interrupt: &Interrupt,
) -> Result<Arc<dyn Backend>, StartError> {
    let mut several = Several::new();
    for config in configs {
        let (name, after) = (config.name().to_owned(), config.spill_after);
        let backend = match (config.local, config.fleet, config.slurm) {
            (Some(local), ..) => start_local(local, interrupt)?,
            (None, Some(fleet), _) => new_fleet(fleet)?,
            (None, None, slurm) => new_slurm(slurm.unwrap_or_default())?,
        };
        several = several.with_shared(&name, after, backend)?;
    }
    Ok(Arc::new(several))
}

/// The address of two of the containers.
fn told_twice(containers: &[Container]) -> Option<&str> {
    let mut seen = HashSet::new();
    containers.iter().map(|container| &*container.addr).find(|addr| !seen.insert(*addr))
}

/// The backend did not start, or was told not to.
fn backend_failed(error: BackendError) -> StartError {
    match error.kind() {
        BackendErrorKind::Interrupted => StartError::Interrupted,
        _ => StartError::Backend(error),
    }
}

/// What dispatch keeps to.
fn limits(config: &ExecutorConfig) -> Limits {
    Limits {
        batch: BatchLimits {
            policy: config.batch_policy,
            window: config.batch_window,
            max_size: config.max_batch_size,
        },
        queue_timeout: config.queue_timeout,
        acquire_timeout: config.acquire_timeout,
        answer_grace: config.answer_grace,
        reset_timeout: config.reset_timeout,
        begin_timeout: config.begin_timeout,
        on_lost: config.on_lost_workspace,
        idle_limit: config.idle_limit.filter(|limit| !limit.is_zero()),
        may_grow: false,
        unanswered: config.queue_capacity.max(MOST_THREADS),
        external: [
            config.handler_threads,
            config.tool_server.as_ref().map_or(0, |server| server.concurrency),
        ],
    }
}

#[cfg(target_os = "linux")]
fn start_local(config: LocalConfig, interrupt: &Interrupt) -> Result<Arc<dyn Backend>, StartError> {
    let backend = crate::backend::local::LocalBackend::start_interruptible(config, interrupt);
    Ok(Arc::new(backend.map_err(backend_failed)?))
}

#[cfg(not(target_os = "linux"))]
fn start_local(
    _config: LocalConfig,
    _interrupt: &Interrupt,
) -> Result<Arc<dyn Backend>, StartError> {
    Err(StartError::Unsupported("the embedded sandbox, \"local\", needs Linux".to_owned()))
}

#[cfg(feature = "http")]
fn new_fleet(config: FleetConfig) -> Result<Arc<dyn Backend>, StartError> {
    let fleet = crate::backend::fleet::FleetBackend::new(config);
    Ok(Arc::new(fleet.map_err(|error| ConfigError::new(format!("in \"fleet\": {error}")))?))
}

#[cfg(not(feature = "http"))]
fn new_fleet(_config: FleetConfig) -> Result<Arc<dyn Backend>, StartError> {
    let text = "\"fleet\" needs the feature `http`, which this build of the library lacks";
    Err(StartError::Unsupported(text.to_owned()))
}

#[cfg(all(feature = "http", target_os = "linux"))]
fn new_slurm(config: SlurmConfig) -> Result<Arc<dyn Backend>, StartError> {
    let slurm = crate::backend::slurm::SlurmBackend::new(config);
    Ok(Arc::new(slurm.map_err(|error| ConfigError::new(format!("in \"slurm\": {error}")))?))
}

#[cfg(not(all(feature = "http", target_os = "linux")))]
fn new_slurm(_config: SlurmConfig) -> Result<Arc<dyn Backend>, StartError> {
    let text = "\"slurm\" needs Linux and the feature `http`, one of which is not there";
    Err(StartError::Unsupported(text.to_owned()))
}

/// A client of the ToolServer, with its tools added to the registry.
#[cfg(feature = "http")]
fn connect(
    config: &ToolServerConfig,
    registry: &mut ToolRegistry,
    interrupt: &Interrupt,
) -> Result<ToolServer, StartError> {
    let server = ToolServer::new(config).map_err(StartError::ToolServer)?;
    let tools = server.tools(interrupt).map_err(StartError::ToolServer)?;
    for schema in tools.ok_or(StartError::Interrupted)? {
        let name = schema.name.clone();
        if let Err(error) = registry.register_external(schema) {
            log::info!("the ToolServer's tool {name:?} is not added: {error}");
        }
    }
    Ok(server)
}

#[cfg(not(feature = "http"))]
fn connect(
    _config: &ToolServerConfig,
    _registry: &mut ToolRegistry,
    _interrupt: &Interrupt,
) -> Result<ToolServer, StartError> {
    let text = "\"tool_server\" needs the feature `http`, which this build of the library lacks";
    Err(StartError::Unsupported(text.to_owned()))
}
