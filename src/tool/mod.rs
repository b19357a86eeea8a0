//! What a model asks for and what it gets back: [`ToolCall`], [`ToolResult`], [`Outcome`], the
//! [`ToolSchema`] of a tool, the [`ToolRegistry`] of all of them, and the text formats they have
//! in a model's prompt and output.
//!
//! Knows nothing of slots, queues or HTTP. Everything here is pure data and pure functions.

mod arguments;
mod builtin;
mod call;
pub mod format;
mod handler;
mod openai;
mod outcome;
mod policy;
mod prepare;
pub mod python_json;
mod registry;
mod result;
mod schema;
mod suggest;
mod text;

#[cfg(feature = "http")]
pub(crate) use arguments::not_of_the_reference;
pub(crate) use arguments::{
    BashArguments, DEFAULT_SESSION, OUTPUT_ORDER, Run, appends, output_order, session,
};
pub use call::ToolCall;
pub use handler::{Handler, ToolContext, ToolReply};
pub use openai::OpenAiCallError;
pub use outcome::{Outcome, UnknownOutcome};
pub use policy::{BackgroundProcesses, OutputOrder, Policy, UnknownArguments, UnknownSetting};
pub(crate) use prepare::{CallTimes, LONGEST_TIMEOUT, Prepared, Work, prepare};
pub use prepare::{MAX_TIMEOUT, MIN_TIMEOUT};
pub use registry::{RegisterError, RegisteredTool, ToolKind, ToolRegistry};
pub use result::{Timing, ToolResult};
pub use schema::ToolSchema;

/// A JSON object whose keys keep the order in which they were written.
pub type JsonObject = serde_json::Map<String, serde_json::Value>;
