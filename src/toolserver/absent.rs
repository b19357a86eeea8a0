//! The client of a ToolServer where the library is built without HTTP: there is never one.

use super::ExternalCall;
use crate::tool::ToolResult;

/// A client that cannot be made.
pub(crate) enum ToolServer {}

impl ToolServer {
    /// How many calls it may have at once.
    pub(crate) fn concurrency(&self) -> usize {
        match *self {}
    }

    /// Ends the requests that are under way.
    pub(crate) fn interrupt(&self) {
        match *self {}
    }

    /// Runs a call and gives its result.
    pub(crate) fn execute(&self, _call: &ExternalCall<'_>) -> ToolResult {
        match *self {}
    }
}
