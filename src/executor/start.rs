//! The start of an executor: its backend, its threads.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use crossbeam_channel::{bounded, unbounded};
use parking_lot::{Mutex, RwLock};

use super::batcher::{Batcher, Crew};
use super::callback;
use super::completion::Places;
use super::config::{Builder, LONGEST};
use super::dispatch::Dispatch;
use super::event::Event;
use super::external::External;
use super::gate::Gate;
use super::stats::Refusals;
use super::{CLOSE_MARGIN, Threads, ToolExecutor};
use crate::backend::Watcher;
use crate::error::{StartError, ToolServerError};
use crate::thread::OwnedThread;
use crate::tool::ToolRegistry;
use crate::toolserver::{ToolServer, ToolServerConfig};
use crate::workers::{Workers, guarded};

impl ToolExecutor {
    pub(super) fn start(mut config: Builder) -> Result<Self, StartError> {
        let limits = config.limits();
        // Before the backend, which may be slow to start: whether it is there is soon known.
        let tool_server =
            config.tool_server.take().map(|server| connect(&server, &mut config.registry));
        let tool_server = tool_server.transpose().map_err(StartError::ToolServer)?;
        let has_tool_server = tool_server.is_some();
        // A backend without a limit of its own may well say `Duration::MAX`.
        let default_timeout = config.backend.default_timeout().min(LONGEST);
        let containers = config.backend.start().map_err(StartError::Backend)?;
        let gate = Arc::new(Gate::new(config.queue_capacity));
        let refusals = Arc::new(Refusals::default());
        let (events, receiver) = unbounded();
        let told = events.clone();
        config.backend.watch(Watcher::from_fn(move |container, change| {
            // Refused only when the batcher has ended.
            let _ = told.send(Event::Container { container, change });
        }));
        let starts_dirty = config.backend.starts_dirty();
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
            let batcher = Batcher {
                dispatch: Dispatch::new(
                    &containers,
                    limits,
                    gate.clone(),
                    refusals.clone(),
                    starts_dirty,
                ),
                events: receiver,
                report: events.clone(),
                backend: config.backend.clone(),
                crew: Crew { io, handlers, tool_server },
                notices: Arc::default(),
            };
            let (leave, ended) = bounded(1);
            let batcher_gate = gate.clone();
            let batcher = OwnedThread::spawn("tool-batcher", move || {
                match guarded(|| batcher.run()) {
                    // Refused only when nobody closes the executor any more.
                    Ok(end) => drop(leave.send(end)),
                    // Its state is gone, and with it every ticket: all callers are answered.
                    Err(panic) => {
                        batcher_gate.close();
                        log::error!("the batcher panicked, the executor is closed: {panic}");
                    }
                }
            })?;
            Ok((callbacks, Threads { batcher, ended, callback }))
        };
        let (callbacks, threads) = match launch() {
            Ok(launched) => launched,
            Err(error) => {
                config.backend.close(Instant::now() + CLOSE_MARGIN);
                return Err(StartError::Thread(error));
            }
        };
        Ok(Self {
            events,
            gate,
            refusals,
            registry: config.registry,
            policy: config.policy,
            has_tool_server,
            default_timeout,
            queue_timeout: config.queue_timeout,
            close_timeout: config.close_timeout,
            next_id: AtomicU64::new(1),
            callbacks: RwLock::new(Some(callbacks)),
            callback_places: Places::new(config.queue_capacity),
            backend: config.backend,
            threads: Mutex::new(Some(threads)),
            closed: Mutex::new(None),
        })
    }
}

/// A client of the ToolServer, with its tools added to the registry.
fn connect(
    config: &ToolServerConfig,
    registry: &mut ToolRegistry,
) -> Result<ToolServer, ToolServerError> {
    let server = ToolServer::new(config)?;
    for schema in server.tools()? {
        let name = schema.name.clone();
        if let Err(error) = registry.register_external(schema) {
            log::info!("the ToolServer's tool {name:?} is not added: {error}");
        }
    }
    Ok(server)
}
