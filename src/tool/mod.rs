//! What a model asks for and what it gets back: [`ToolCall`], [`ToolResult`], [`Outcome`], the
//! [`ToolSchema`] of a tool, the [`ToolRegistry`] of all of them, and the text formats they have in
//! a model's prompt and output.
//!
//! Knows nothing of slots, queues or HTTP. Everything here is pure data and pure functions.

mod call;
mod outcome;
mod result;

pub use call::ToolCall;
pub use outcome::Outcome;
pub use result::{Timing, ToolResult};

/// A JSON object whose keys keep the order in which they were written.
pub type JsonObject = serde_json::Map<String, serde_json::Value>;
