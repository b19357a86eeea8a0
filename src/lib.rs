//! `tool-executor`
pub mod backend;
pub mod error;
pub mod executor;
mod pool;
#[cfg(target_os = "linux")]
mod sandbox;
mod thread;
pub mod tool;

pub use error::{BackendError, ReleaseError, StartError, SubmitError};
pub use executor::{
    BatchPolicy, Builder, CloseReport, Completion, CompletionQueue, OutcomeCounts, Pending, Stats,
    Summary, ToolExecutor,
};
pub use pool::SlotCounts;
pub use tool::{
    Outcome, Policy, Timing, ToolCall, ToolContext, ToolRegistry, ToolResult, ToolSchema,
};
