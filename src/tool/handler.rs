//! Tools that run in the user's own process: what a user's closure is given, and the shape that
//! the executor keeps it in.
//!
//! The registry wraps closures into [`Handler`]s; the executor calls them on threads of their own
//! and catches what they panic with.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::{JsonObject, Outcome, ToolResult};

/// What a tool in the user's own process knows of the call that it answers.
#[derive(Debug, Clone)]
pub struct ToolContext {
    trajectory_id: Arc<str>,
    uniq_id: Arc<str>,
    deadline: Instant,
    cancelled: Arc<AtomicBool>,
}

impl ToolContext {
    /// The context of one call. The executor makes it; a test of a tool can, too.
    ///
    /// `cancelled` is shared: setting it cancels the call.
    pub fn new(
        trajectory_id: impl Into<Arc<str>>,
        uniq_id: impl Into<Arc<str>>,
        deadline: Instant,
        cancelled: Arc<AtomicBool>,
    ) -> Self {
        Self { trajectory_id: trajectory_id.into(), uniq_id: uniq_id.into(), deadline, cancelled }
    }

    /// The trajectory that makes the call.
    pub fn trajectory_id(&self) -> &str {
        &self.trajectory_id
    }

    /// The call's id.
    pub fn uniq_id(&self) -> &str {
        &self.uniq_id
    }

    /// When the call's time is up. The executor cannot end a closure: one that may take long looks
    /// at this and at [`is_cancelled`](Self::is_cancelled) now and then, and returns.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The time that is left until the deadline; zero after it.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether the call was cancelled. It says nothing of the deadline.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// Owes a call its result: what a tool that answers later is given, see
/// [`ToolRegistry::register_deferred`](super::ToolRegistry::register_deferred).
///
/// Dropped without an answer, also while a panic unwinds, it ends the call as
/// [`Outcome::ExternalFailed`]. An answer to a call that has ended already – cancelled, out of
/// time – is thrown away.
pub struct ToolReply(Option<Box<dyn FnOnce(ToolResult) + Send>>);

impl ToolReply {
    /// A reply that hands the result to a closure, which must not block. The executor makes it; a
    /// test of a tool can, too.
    pub fn from_fn(take: impl FnOnce(ToolResult) + Send + 'static) -> Self {
        Self(Some(Box::new(take)))
    }

    /// Answers the call, from any thread: `Ok` is the output of a success, `Err` the error of an
    /// [`Outcome::ToolError`]. Does not block.
    pub fn send(self, answer: Result<String, String>) {
        self.send_result(result_of(answer));
    }

    /// Answers the call with a whole result. Does not block.
    pub fn send_result(mut self, result: ToolResult) {
        if let Some(take) = self.0.take() {
            take(result);
        }
    }
}

impl Drop for ToolReply {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            let error = if std::thread::panicking() {
                "Tool execution error: the tool panicked while it held this call"
            } else {
                "Tool execution error: the tool gave no result for this call"
            };
            take(ToolResult::failure(Outcome::ExternalFailed, error));
        }
    }
}

impl fmt::Debug for ToolReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ToolReply")
    }
}

/// A tool that runs in the user's own process, as the registry keeps it. Cloning shares it.
#[derive(Clone)]
pub struct Handler(Kind);

#[derive(Clone)]
enum Kind {
    Now(Arc<Function>),
    Later(Arc<Deferred>),
}

type Function = dyn Fn(&ToolContext, &JsonObject) -> Result<String, String> + Send + Sync;
type Deferred = dyn Fn(&ToolContext, &JsonObject, ToolReply) + Send + Sync;

fn result_of(answer: Result<String, String>) -> ToolResult {
    match answer {
        Ok(output) => ToolResult::ok(output),
        Err(error) => ToolResult::failure(Outcome::ToolError, error),
    }
}

impl Handler {
    pub(super) fn new(
        function: impl Fn(&ToolContext, &JsonObject) -> Result<String, String> + Send + Sync + 'static,
    ) -> Self {
        Self(Kind::Now(Arc::new(function)))
    }

    pub(super) fn deferred(
        function: impl Fn(&ToolContext, &JsonObject, ToolReply) + Send + Sync + 'static,
    ) -> Self {
        Self(Kind::Later(Arc::new(function)))
    }

    /// Runs the tool, for as long as it takes, and makes a result of what it gives: `Ok` is the
    /// output of a success, `Err` the error of an [`Outcome::ToolError`]. The result carries the
    /// call's id. A tool that answers later is waited for, until the call's deadline.
    ///
    /// # Panics
    /// Where the user's closure does.
    pub fn run(&self, context: &ToolContext, arguments: &JsonObject) -> ToolResult {
        let mut result = match &self.0 {
            Kind::Now(function) => result_of(function(context, arguments)),
            Kind::Later(function) => {
                let (tell, answer) = bounded(1);
                // There is room; refused when the caller has given up.
                let reply = ToolReply::from_fn(move |result| drop(tell.try_send(result)));
                function(context, arguments, reply);
                answer.recv_deadline(context.deadline()).unwrap_or_else(|_| {
                    ToolResult::failure(Outcome::Timeout, "Tool timed out; it was told to stop")
                })
            }
        };
        result.uniq_id = Some(context.uniq_id().to_owned());
        result
    }

    /// Runs the tool and has it answer `reply`: before this returns, unless it is one that answers
    /// later.
    ///
    /// # Panics
    /// Where the user's closure does; the reply is answered then all the same.
    pub(crate) fn start(&self, context: &ToolContext, arguments: &JsonObject, reply: ToolReply) {
        match &self.0 {
            Kind::Now(_) => reply.send_result(self.run(context, arguments)),
            Kind::Later(function) => function(context, arguments, reply),
        }
    }

    /// Whether it may answer after it has returned.
    pub(crate) fn is_deferred(&self) -> bool {
        matches!(self.0, Kind::Later(_))
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(deadline: Instant) -> (ToolContext, Arc<AtomicBool>) {
        let cancelled = Arc::new(AtomicBool::new(false));
        (ToolContext::new("t1", "c1", deadline, Arc::clone(&cancelled)), cancelled)
    }

    #[test]
    fn what_a_closure_returns_becomes_a_result_under_the_calls_id() {
        let echo = Handler::new(|context, arguments| match arguments.get("fail") {
            None => Ok(format!("{} says hi", context.trajectory_id())),
            Some(_) => Err("no".to_owned()),
        });
        let (context, _) = context(Instant::now());

        let result = echo.run(&context, &JsonObject::new());
        assert_eq!((result.outcome, result.output.as_str()), (Outcome::Ok, "t1 says hi"));
        assert_eq!(result.uniq_id.as_deref(), Some("c1"));

        let fail = JsonObject::from_iter([("fail".to_owned(), true.into())]);
        let result = echo.run(&context, &fail);
        assert_eq!((result.outcome, result.error.as_str()), (Outcome::ToolError, "no"));
        assert!(!result.success && result.may_have_executed);
        assert_eq!(result.uniq_id.as_deref(), Some("c1"));
    }

    #[test]
    fn a_context_sees_its_cancellation_and_its_deadline() {
        let (past, cancelled) = context(Instant::now());
        assert_eq!(past.remaining(), Duration::ZERO);
        assert!(!past.is_cancelled());
        cancelled.store(true, Ordering::Release);
        assert!(past.is_cancelled());

        let (future, _) = context(Instant::now() + Duration::from_secs(3600));
        assert!(future.remaining() > Duration::from_secs(3000));
    }
}
