//! Executes the tool calls of many concurrent LLM agents – reinforcement-learning rollouts,
//! evaluations – fast and without losing one. Synchronous and thread-based: no async runtime.
//!
//! A *trajectory* is one agent's run. It makes *tool calls* (`bash`, `read_file`, `write_file`,
//! your own), each of which gives a *tool result*. A trajectory's calls run one after the other in
//! its *slot*, an isolated *workspace* in a sandbox, which it keeps until it is released.
//! Different trajectories never wait for each other, except for a free slot.
//!
#![cfg_attr(target_os = "linux", doc = "```")]
#![cfg_attr(not(target_os = "linux"), doc = "```ignore")]
//! use std::time::Duration;
//! use tool_executor::config::{ExecutorConfig, LocalConfig, Policy};
//! use tool_executor::format::Format;
//! use tool_executor::{ToolCall, ToolExecutor};
//!
//! // Ten slots in this process: nothing to install, nothing to start.
//! let executor = ToolExecutor::start(
//!     ExecutorConfig::default()
//!         .with_local(LocalConfig::new(10))
//!         .with_policy(Policy::default().with_allow_network(false)),
//! )?;
//!
//! // One call, as a function.
//! let result = executor.execute("agent-1", ToolCall::bash("echo hello > f; cat f"));
//! assert_eq!(result.output, "hello");
//!
//! // What a model wrote, and what the model gets back.
//! let text = r#"<tool_call>{"name": "bash", "arguments": {"command": "ls"}}</tool_call>"#;
//! for call in ToolCall::parse(text, Format::Auto) {
//!     let result = executor.execute("agent-1", call.with_timeout(Duration::from_secs(5)));
//!     println!("{}", result.to_xml());
//! }
//!
//! // One thread, many trajectories.
//! let queue = executor.completion_queue(1000);
//! for agent in 2..50 {
//!     let call = ToolCall::bash("pwd");
//!     executor.submit_to(&format!("agent-{agent}"), call, queue.tagged(agent))?;
//! }
//! while queue.outstanding() > 0 {
//!     let Some(done) = queue.next_timeout(Duration::from_secs(60)) else { break };
//!     if !done.result.model_attributable() {
//!         println!("leave {} out of the training: {}", done.trajectory_id, done.result.error);
//!     }
//!     executor.submit_release(&done.trajectory_id);
//! }
//! executor.close();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What to rely on
//! - **Every accepted call ends exactly once**, whatever panics, dies, is cancelled or closed.
//! - **A failing tool is a result**, never an `Err`. [`Outcome`] says how it ended, for programs;
//!   `may_have_executed` whether it can have had an effect. `Err` is for a queue that is full and
//!   an executor that is closed, and gives the call back.
//! - **Order**: calls and releases of one trajectory take place in the order of their submission.
//! - **Three deadlines**: waiting in the queue
//!   ([`queue_timeout`](config::ExecutorConfig::queue_timeout)), waiting for a slot
//!   ([`acquire_timeout`](config::ExecutorConfig::acquire_timeout)), running (the call's own,
//!   1…600 s).
//! - **It talks while it waits**, by the log at level `warn`: servers that are not there yet,
//!   trajectories that wait while idle ones hold all slots. Where callers may forget to release,
//!   [`idle_limit`](config::ExecutorConfig::idle_limit) takes slots back.
//! - **Bounds**: the queue has a capacity, memory does not grow with the number of calls made.
//! - **The model is the attacker**: it cannot change the [`Policy`](config::Policy), and what it
//!   prints, names or leaves running reaches neither the host nor another slot. Where commands
//!   cannot be isolated nothing starts, unless
//!   [`allow_unisolated`](config::LocalConfig::allow_unisolated) says so.
//!
//! # Where to go on
//! [`ToolExecutor`] for calls, [`config`] for settings, [`ToolRegistry`] for tools of your own (a
//! closure is enough), [`backend::Backend`] for sandboxes of your own.
//!
//! # Features
//! - `http` (default): what speaks HTTP to others – the fleet of sandbox servers, the ToolServer –
//!   and TLS. Without it an embedded-only user builds neither.
//! - `capi` (default): the C ABI, `ffi`.
//! - `server`: the module of that name, a sandbox or an executor behind a port.
//! - `cli` (default): the `tool-executor` program and what it needs. A library user turns default
//!   features off.

#![cfg_attr(
    not(test),
    warn(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)
)]

#[macro_use]
mod setters;

pub mod artifact;
pub mod backend;
#[cfg(feature = "http")]
mod client;
pub mod config;
mod egress;
mod error;
mod executor;
#[cfg(feature = "capi")]
pub mod ffi;
pub mod grade;
mod image_key;
mod interrupt;
mod level;
mod limits;
mod pool;
#[cfg(target_os = "linux")]
mod sandbox;
mod seconds;
#[cfg(feature = "server")]
pub mod server;
pub mod snapshot;
mod spec;
mod thread;
mod tool;
mod toolserver;
mod wait_queue;
#[cfg(feature = "http")]
mod wire;
mod workers;

pub use error::{
    BackendError, BackendErrorKind, BeginError, BeginFailure, ConfigError, IsolationError,
    ReleaseError, StartError, SubmitError, ToolServerError,
};
pub use executor::{
    Builder, CallHandle, CloseReport, Completion, CompletionQueue, Destination, MAX_TRAJECTORY_ID,
    Pending, ToolExecutor,
};
pub use interrupt::Interrupt;
pub use spec::{
    MAX_SPEC_FILES, MAX_SPEC_FILES_BYTES, SnapshotId, SpecField, SpecFile, SpecFileContent,
    TrajectoryLimits, TrajectorySpec,
};
pub use tool::{
    Handler, JsonObject, MAX_TIMEOUT, MIN_TIMEOUT, OpenAiCallError, Outcome, RegisterError,
    RegisteredTool, Timing, ToolCall, ToolContext, ToolKind, ToolRegistry, ToolReply, ToolResult,
    ToolSchema, UnknownOutcome, python_json,
};

pub use tool::format;

/// Images on this machine: what may be named as one, and the store that keeps what was unpacked.
#[cfg(target_os = "linux")]
pub mod image {
    pub use crate::sandbox::image::{
        Digest, ImageConfig, ImageError, ImageErrorKind, ImageLimits, ImageSource, ImageStore,
        ImportStep, Pruned, PullFailure, StoredIds, StoredImage, StoredLayer,
    };
}

/// User ids for a process of an ordinary user, so that each slot has its own.
#[cfg(target_os = "linux")]
pub mod user_range {
    pub use crate::sandbox::user::namespace::{NoUserRange, enter};
}

/// What an executor counts and measures, and what holds in its slots.
pub mod stats {
    pub use crate::backend::BadContainer;
    pub use crate::egress::NetworkTotals;
    pub use crate::executor::{
        BackendStats, Bucket, IdleHolder, LaneStats, OutcomeCounts, Stats, Summary,
    };
    pub use crate::level::{ImageIds, IsolationLevel};
    pub use crate::limits::{EnforcedLimits, Enforcement};
    pub use crate::pool::{ContainerCounts, ImageCounts, SlotCounts};
}

/// The README's examples are compiled and run.
#[cfg(all(doctest, target_os = "linux"))]
#[doc = include_str!("../README.md")]
struct Readme;
