//! What the benches share.

use tool_executor::backend::{Backend, Container, Execution, ResetReply, SlotRef};
use tool_executor::{BackendError, Interrupt, ToolResult};

/// Answers every call at once with nothing.
pub(crate) struct Null(
    /// Its slots.
    pub(crate) usize,
);

impl Backend for Null {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(vec![Container::numbered("null", self.0)])
    }

    fn execute(&self, _addr: &str, batch: Vec<Execution>) {
        for execution in batch {
            execution.reply.send(ToolResult::ok(""));
        }
    }

    fn reset(&self, _slot: &SlotRef, reply: ResetReply) {
        reply.send(Ok(()));
    }
}
