//! Executes the tool calls of many concurrent LLM agents – reinforcement-learning rollouts,
//! evaluations – fast and without losing one. Synchronous and thread-based: no async runtime.
//!
//! A *trajectory* is one agent's run. It makes *tool calls* (`bash`, `read_file`, `write_file`, your
//! own), each of which gives a *tool result*. A trajectory's calls run one after the other in its
//! *slot*, an isolated *workspace* in a sandbox, which it keeps until it is released. Different
//! trajectories never wait for each other, except for a free slot.
//!
#![cfg_attr(target_os = "linux", doc = "```")]
#![cfg_attr(not(target_os = "linux"), doc = "```ignore")]
//! use std::time::Duration;
//! use tool_executor::backend::local::{LocalBackend, LocalConfig};
//! use tool_executor::{Outcome, Policy, ToolCall, ToolExecutor};
//!
//! // Ten slots in this process: nothing to install but bubblewrap, nothing to start.
//! let executor = ToolExecutor::builder()
//!     .backend(LocalBackend::start(LocalConfig::with_slots(10))?)
//!     .policy(Policy { allow_network: false, ..Policy::default() })
//!     .start()?;
//!
//! // One call, as a function.
//! let result = executor.execute("agent-1", ToolCall::bash("echo hello > f; cat f"), None);
//! # if result.outcome != Outcome::IsolationUnavailable {
//! assert_eq!(result.output, "hello");
//! # }
//!
//! // What a model wrote, and what the model gets back.
//! let text = r#"<tool_call>{"name": "bash", "arguments": {"command": "ls"}}</tool_call>"#;
//! for call in ToolCall::parse_from_text(text) {
//!     let result = executor.execute("agent-1", call, Some(Duration::from_secs(5)));
//!     println!("{}", result.to_xml());
//! }
//!
//! // One thread, many trajectories.
//! let queue = executor.completion_queue(1000);
//! for agent in 2..50 {
//!     executor.submit_to(&queue, agent, &format!("agent-{agent}"), ToolCall::bash("pwd"), None)?;
//! }
//! while queue.outstanding() > 0 {
//!     let Some(done) = queue.next_timeout(Duration::from_secs(60)) else { break };
//!     if !done.result.outcome.is_models_doing() {
//!         println!("leave {} out of the training: {}", done.trajectory_id, done.result.error);
//!     }
//!     executor.submit_release(&done.trajectory_id, true);
//! }
//! executor.close();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What to rely on
//! - **Every accepted call ends exactly once**, whatever panics, dies, is cancelled or closed.
//! - **A failing tool is a result**, never an `Err`. [`Outcome`] says how it ended, for programs;
//!   `may_have_executed` whether it can have had an effect. `Err` is for a queue that is full and an
//!   executor that is closed, and gives the call back.
//! - **Order**: calls and releases of one trajectory take place in the order of their submission.
//! - **Three deadlines**: waiting in the queue ([`Builder::queue_timeout`]), waiting for a slot
//!   ([`Builder::acquire_timeout`]), running (the call's own, 1…600 s).
//! - **Bounds**: the queue has a capacity, memory does not grow with the number of calls made.
//! - **The model is the attacker**: it cannot change the [`Policy`], and what it prints, names or
//!   leaves running reaches neither the host nor another slot. Without bubblewrap commands are not
//!   isolated; that is said loudly, and [`Policy::require_sandbox`] forbids it.
//!
//! # Where to go on
//! [`ToolExecutor`] for calls, [`Builder`] for settings, [`ToolRegistry`] for tools of your own (a
//! closure is enough), [`backend::Backend`] for sandboxes of your own.
//!
//! # Features
//! `cli` (default): the `tool-executor` program and what it needs. A library user turns default
//! features off. `server` (part of `cli`): the module of that name, an executor
//! behind a port. `capi` (default): the C ABI, `ffi`.

pub mod artifact;
pub mod backend;
mod client;
pub mod error;
pub mod executor;
#[cfg(feature = "capi")]
pub mod ffi;
mod limits;
mod pool;
#[cfg(target_os = "linux")]
mod sandbox;
#[cfg(feature = "server")]
pub mod server;
mod thread;
pub mod tool;
pub mod toolserver;
mod wait_queue;
mod wire;
mod workers;

pub use error::{BackendError, ReleaseError, StartError, SubmitError};
pub use executor::{
    BatchPolicy, Bucket, Builder, CallHandle, CloseReport, Completion, CompletionQueue,
    ContainerCounts, IdleHolder, LaneStats, LostWorkspace, OutcomeCounts, Pending, Stats, Summary,
    ToolExecutor,
};
pub use limits::{HeldBy, LimitsHeld, SlotLimits};
pub use pool::SlotCounts;
pub use tool::{
    Outcome, Policy, RegisterError, Timing, ToolCall, ToolContext, ToolRegistry, ToolReply,
    ToolResult, ToolSchema,
};

/// The README's examples are compiled and run.
#[cfg(all(doctest, target_os = "linux"))]
#[doc = include_str!("../README.md")]
struct Readme;
