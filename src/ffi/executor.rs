//! The executor: made, described, closed.

use std::convert::Infallible;
use std::ffi::c_char;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::config;
use super::handle::{Opaque, forked, free, hold, into_handle};
use super::signals;
use super::status::te_status::TE_INVALID_JSON;
use super::status::{Fault, guard, te_status};
use super::text::{Out, seconds, te_buffer, text};
use super::tool::{add_to, te_tools};
use crate::executor::{CloseReport, ToolExecutor};

/// An executor. Made by te_executor_new(), freed by te_executor_free(). Any number of threads may
/// use it at the same time.
pub struct te_executor {
    _opaque: (),
}

impl Opaque for te_executor {
    type Value = std::sync::Arc<Executor>;
    const KIND: u64 = 0x7465_2d65_7865_6375;
    const NAME: &'static str = "te_executor";
}

/// What an executor's handle, and those that were made with it, share.
pub(super) struct Executor {
    pub(super) executor: ToolExecutor,
    /// The backend's kind; `None` without one.
    backend: Option<&'static str>,
    /// Dropped when it is closed, for those who wait for completions.
    running: Mutex<Option<Sender<Infallible>>>,
    /// Disconnects when it is closed: nothing that was not under way then will come.
    pub(super) stopped: Receiver<Infallible>,
}

impl Executor {
    fn close(&self, run: impl FnOnce(&ToolExecutor) -> CloseReport) -> CloseReport {
        let report = run(&self.executor);
        self.running.lock().take();
        report
    }

    /// Whether it is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.running.lock().is_none()
    }
}

/// The process that made the first executor; 0 before that.
static MADE_IN: AtomicU32 = AtomicU32::new(0);

/// A process that was forked from one with executors may not make any: the locks of the library
/// may have been held by threads that are not there.
fn not_after_a_fork() -> Result<(), Fault> {
    let pid = std::process::id();
    let first = MADE_IN.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire);
    match first {
        Err(other) if other != pid => Err(forked()),
        _ => Ok(()),
    }
}

/// Whether this process was forked from one with executors.
pub(super) fn is_forked_process() -> bool {
    let first = MADE_IN.load(Ordering::Acquire);
    first != 0 && first != std::process::id()
}

/// Starts an executor. Blocks for as long as its sandboxes take to start: some milliseconds for
/// the embedded one.
///
/// `config` is a JSON object. All keys may be left out, or be null; one that is not known is
/// refused, and te_last_error() names it. `{"local": {}}` is the embedded sandbox with all its
/// defaults; with none of "local", "fleet", "slurm" and "backends" there are in-process tools and
/// the ToolServer's only. Times are in seconds.
///
/// ```text
///     "local":  {"slots": 10, "data_dir": "...", "image": null, "user_ids": "auto",
///                "images": {"pull": true, "platform": null or "amd64" or "arm64",
///                           "auth_file": null, "cert_dir": null, "plain_http": ["host:port", ...],
///                           "retries": 4, "timeout_s": 3600, "parallel": 4, "refresh_s": null,
///                           "store_bytes": null},
///                "max_output_chars": 50000, "max_output_file_bytes": 16777216,
///                "max_file_bytes": 100000, "warm_slots": true, "seccomp": true,
///                "adopt_orphans": false, "allow_unisolated": false,
///                "limits": {"processes": 1024, "memory_bytes": 4294967296, "cpu": null,
///                           "open_files": 4096, "file_bytes": 8589934592,
///                           "workspace_bytes": 8589934592, "files": 1048576}, (null: no limit)
///                "binds": [{"source": "/srv/data", "place": "/data", "writable": false}, ...],
///                "env": {"NAME": "value", "LICENSE_KEY": null},  (null: this process's value)
///                "path_prepend": ["/data/bin"], "devices": ["/dev/kvm"],
///                "network": "none", "proxy" or "host", "allow_hosts": ["*.packages.example:443", ...],
///                "ca_pem": "-----BEGIN CERTIFICATE-----...", "log_egress": false}
///     "fleet":  {"urls": ["http://host:8080", ...], "token": "...", "unreachable_timeout_s": 30,
///                "start_timeout_s": 60, "bad_server_pause_s": 30, "allow_unisolated": false,
///                "slots": null,                              (null: all there are)
///                "servers_file": "...", "servers_name": "name:port",   (in place of urls)
///                "ca_pem": "-----BEGIN CERTIFICATE-----..."}
///     "slurm":  {"program": "tool-executor", "min_servers": 1, "max_servers": null,
///                "jobs": {"partition": "...", "account": "...", "time": "4:00:00",
///                         "arguments": []},                 (null: inside an allocation)
///                "slots_per_server": null, "server_arguments": [], "allow_unisolated": false,
///                "start_timeout_s": 60, "idle_timeout_s": 300, "drain_before_s": 180,
///                "unreachable_timeout_s": 30, "token": null}
///     "backends": [{"name": "...", "local", "fleet" or "slurm": {...}, "spill_after_s": 0}, ...]
///                (in place of these three: the first is preferred; each other one gets the
///                trajectories for which those before it have no free slot for so long)
///     "tool_server": {"url": "http://host:port", "token": "...", "concurrency": 16,
///                     "ca_pem": "..."}
///     "policy": {"allow_network": true, "require_sandbox": false,
///                "require_stateful_sandbox": false,
///                "unknown_arguments": "refuse", "output_order": "separate",
///                "background": "end"}
///     "tools":  {"builtin": true, "external": [SCHEMA, ...]}     (see te_tools_add)
///     "batch_policy": "adaptive" or "window", "batch_window_s": 0.02, "max_batch_size": 200,
///     "queue_capacity": 65536, "queue_timeout_s": 3600, "acquire_timeout_s": 600,
///     "max_timeout_s": 600, "default_timeout_s": null, "answer_grace_s": 60, "reset_timeout_s": 60, "begin_timeout_s": 600,
///     "close_timeout_s": 30,
///     "on_lost_workspace": "refuse" or "start_empty", "io_threads": 8, "handler_threads": 16,
///     "idle_limit_s": 0     (0: a trajectory may hold a slot without a call for ever)
/// ```
///
/// What they mean is in the Rust documentation, under the same names: module `config`,
/// `ExecutorConfig` and its parts. Where this process is root, commands run as other users, who
/// must be able to pass through every directory on the way to "data_dir".
///
/// Where commands would run without isolation – this machine makes no sandboxes, or sandbox servers
/// say so – it is TE_START_FAILED unless "allow_unisolated" is true; te_last_error() says what to
/// do.
///
/// `tools` are tools of the host's own; NULL for none. They stay the caller's, who may free them
/// at once, or start further executors with them.
///
/// On success `*executor` is the caller's, to be freed by te_executor_free(); after an error it is
/// NULL. A process that was forked from one which had made an executor is given TE_FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_executor_new(
    config: *const c_char,
    config_len: usize,
    tools: *const te_tools,
    executor: *mut *mut te_executor,
) -> te_status {
    guard(|| {
        let out = Out::new(executor, "executor", std::ptr::null_mut())?;
        let config = text(config, config_len, "config")?;
        not_after_a_fork()?;
        // The threads that are started here, and those that they start, take no signals.
        let (executor, backend) = signals::blocked(|| {
            let (builder, backend) = config::builder(config, |registry| add_to(registry, tools))?;
            Ok::<_, Fault>((builder.start()?, backend))
        })?;
        let (running, stopped) = bounded(0);
        let running = Mutex::new(Some(running));
        let executor = Executor { executor, backend, running, stopped };
        out.put(into_handle::<te_executor>(std::sync::Arc::new(executor)));
        Ok(())
    })
}

/// What the executor is: a JSON object with "version", "backend" ("local", "fleet", "slurm",
/// "several" or null), facts about the embedded sandbox ("isolated", "not_isolated_because", ...)
/// or the same in "backends", with the "name" of each of several, "tools", the list of its tools as
/// OpenAI's chat API takes it, "prompt", the same as prose for a model's prompt, and "definitions",
/// the same as Hermes models expect it.
///
/// On success `*description` is the caller's, to be freed by te_buffer_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_describe(
    executor: *const te_executor,
    description: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(description, "description")?;
        let executor = hold(executor)?;
        let registry = executor.executor.registry();
        let tools: Vec<_> = registry.schemas().map(|schema| schema.to_dict()).collect();
        let mut all = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "backend": executor.backend,
            "tools": tools,
            "prompt": registry.prompt_description(),
            "definitions": registry.prompt_tool_definitions_json(),
        });
        if let (Value::Object(all), Some("local")) = (&mut all, executor.backend) {
            all.extend(config::facts(&executor.executor.capabilities()));
        }
        if executor.backend == Some("several") {
            let backends = executor.executor.stats().backends.into_iter().map(|one| {
                let mut facts = config::facts(&one.capabilities);
                facts.insert("name".to_owned(), one.name.into());
                facts
            });
            all["backends"] = backends.collect::<Vec<_>>().into();
        }
        out.json(&all);
        Ok(())
    })
}

/// The executor's counters and measurements up to now, or up to its end: a JSON object, documented
/// as `Stats` in the Rust documentation.
///
/// On success `*stats` is the caller's, to be freed by te_buffer_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_stats(
    executor: *const te_executor,
    stats: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(stats, "stats")?;
        let executor = hold(executor)?;
        let stats = serde_json::to_value(executor.executor.stats())
            .map_err(|error| Fault::of(TE_INVALID_JSON, &error))?;
        out.json(&stats);
        Ok(())
    })
}

/// Stops taking calls, waits for those that were accepted, for `timeout_s` seconds at most,
/// cancels what is left then, releases every slot and ends every thread. A negative `timeout_s` is
/// the configuration's "close_timeout_s". What is cancelled gets another 5 seconds to end, and the
/// cleaning-up 15.
///
/// All functions may still be called: those that need a running executor give TE_CLOSED,
/// te_queue_next() gives the completions that are left, te_stats() the last statistics. A second
/// close waits for the first, and says the same.
///
/// `*cancelled` is how many calls were cancelled, `*all_ended` 1, or 0 if code of the host's (a
/// tool) still blocks a thread of the library, which then ends when that returns. Either may be
/// NULL.
///
/// Not to be called by a tool: it would wait for itself, until the time is up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_executor_close(
    executor: *const te_executor,
    timeout_s: f64,
    cancelled: *mut u64,
    all_ended: *mut i32,
) -> te_status {
    guard(|| {
        let (cancelled, all_ended) = (Out::optional(cancelled, 0), Out::optional(all_ended, 0));
        let executor = hold(executor)?;
        let report = if timeout_s < 0.0 {
            executor.close(ToolExecutor::close)
        } else {
            let timeout = seconds(timeout_s, "timeout_s")?;
            executor.close(|executor| executor.close_within(timeout))
        };
        cancelled.inspect(|out| out.put(report.cancelled as u64));
        all_ended.inspect(|out| out.put(report.all_threads_ended.into()));
        Ok(())
    })
}

/// Closes an executor that is not closed, as te_executor_close() with a negative timeout, and
/// frees the handle. NULL does nothing. Queues, calls and replies that were made with it stay
/// valid until they are freed themselves; threads that are inside a function with it leave it
/// unharmed.
///
/// In a process that was forked from the one that made it, it returns at once and leaves alone
/// what the other process has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_executor_free(executor: *mut te_executor) {
    free(executor, |executor| {
        executor.close(ToolExecutor::close);
    });
}
