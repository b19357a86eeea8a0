//! External tools: those that run in no sandbox but on threads of their own.

use std::time::Duration;

use crate::backend::{Reply, SlotRef};
use crate::tool::{Handler, JsonObject, ToolContext};

/// The two kinds of external tools. Each has threads of its own, so that none delays the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum External {
    /// Closures of the user's.
    InProcess,
    /// What the ToolServer runs.
    ToolServer,
}

/// An in-process tool on its way to its thread.
pub(crate) struct HandlerCall {
    pub(crate) handler: Handler,
    pub(crate) context: ToolContext,
    pub(crate) arguments: JsonObject,
    pub(crate) reply: Reply,
}

/// A call on its way to the ToolServer.
pub(crate) struct ToolServerCall {
    pub(crate) name: String,
    pub(crate) context: ToolContext,
    pub(crate) arguments: JsonObject,
    pub(crate) timeout: Duration,
    /// The slot that its trajectory holds.
    pub(crate) slot: Option<SlotRef>,
    pub(crate) reply: Reply,
}
