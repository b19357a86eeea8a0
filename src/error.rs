//! The error types. A tool that fails is not among them: that is a
//! [`ToolResult`](crate::ToolResult).

use std::error::Error;
use std::{fmt, io};

use crate::tool::ToolCall;

/// Why an executor did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// A value of the configuration makes no sense; the text names it and what would be right.
    Config(String),
    /// The backend did not start.
    Backend(BackendError),
    /// The ToolServer's configuration makes no sense, or it does not say what it offers.
    ToolServer(ToolServerError),
    /// The operating system refused a thread.
    Thread(io::Error),
    /// The start was [interrupted](crate::Interrupt). Nothing of it is left.
    Interrupted,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Config(text) => write!(f, "invalid configuration: {text}"),
            StartError::Backend(_) => f.write_str("the sandbox backend did not start"),
            StartError::ToolServer(_) => f.write_str("the ToolServer cannot be used"),
            StartError::Thread(_) => f.write_str("could not start a thread"),
            StartError::Interrupted => f.write_str("the start was interrupted"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            StartError::Config(_) | StartError::Interrupted => None,
            StartError::Backend(error) => Some(error),
            StartError::ToolServer(error) => Some(error),
            StartError::Thread(error) => Some(error),
        }
    }
}

/// What a [`Backend`](crate::backend::Backend) reports of its own failures: what kind of failure it is, one
/// line for people, and the cause where there is one.
#[derive(Debug)]
pub struct BackendError {
    kind: BackendErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The kinds of a [`BackendError`] that programs may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendErrorKind {
    /// None of the others.
    Other,
    /// Commands would run without isolation, and that was not allowed. The cause is an [`IsolationError`],
    /// which says why and what to do.
    NotIsolated,
    /// The machine lacks something – processes, descriptors, memory, space, time –, so that nothing could
    /// be found out. Later it may work.
    Shortage,
    /// The start was [interrupted](crate::Interrupt).
    Interrupted,
}

impl BackendError {
    /// An error without a further cause, of the kind [`Other`](BackendErrorKind::Other).
    pub fn new(message: impl Into<String>) -> Self {
        Self { kind: BackendErrorKind::Other, message: message.into(), source: None }
    }

    /// An error with its cause, of the kind [`Other`](BackendErrorKind::Other).
    pub fn with_source(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { source: Some(source.into()), ..Self::new(message) }
    }

    /// The error of a start that gave up because its [`Interrupt`](crate::Interrupt) was triggered.
    pub fn interrupted() -> Self {
        Self::new("the start was interrupted").with_kind(BackendErrorKind::Interrupted)
    }

    /// The error of a start that would have left commands without isolation.
    pub fn not_isolated(cause: IsolationError) -> Self {
        Self::with_source("commands would not be isolated", cause)
            .with_kind(BackendErrorKind::NotIsolated)
    }

    /// The same, of this kind.
    #[must_use]
    pub fn with_kind(self, kind: BackendErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> BackendErrorKind {
        self.kind
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for BackendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Why commands would run without isolation, and what to do about it; the cause of a [`BackendError`] of the
/// kind [`NotIsolated`](BackendErrorKind::NotIsolated).
///
/// Its text is one line that also says how to allow it in the library. A program with a switch of its own
/// for that puts its line together from the parts: see [`line`](Self::line).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolationError {
    reason: String,
    remedy: String,
}

impl IsolationError {
    /// `reason` says why, `remedy` what to do, in the imperative; both as a clause.
    pub fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into() }
    }

    /// Why, as a clause.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What to do, as a clause in the imperative.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// All of it in one line, where unisolated commands are allowed by `switch`.
    pub fn line(&self, switch: &str) -> String {
        let Self { reason, remedy } = self;
        format!("{reason}; {remedy}; or allow commands without isolation: {switch}")
    }
}

impl fmt::Display for IsolationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line("allow_unisolated"))
    }
}

impl Error for IsolationError {}

/// Why a call was not accepted. It gives the call back.
#[derive(Debug)]
#[non_exhaustive]
pub enum SubmitError {
    /// The executor is closed, or closing.
    Closed(Box<ToolCall>),
    /// As many calls as the queue's capacity were accepted and did not start yet. The blocking
    /// forms say so only after having waited for `queue_timeout`.
    QueueFull(Box<ToolCall>),
    /// The completion queue holds as many calls as its capacity, counting those under way and those
    /// finished and not fetched. Fetch some.
    CompletionQueueFull(Box<ToolCall>),
}

impl SubmitError {
    /// The call that was not accepted.
    pub fn into_call(self) -> ToolCall {
        match self {
            SubmitError::Closed(call)
            | SubmitError::QueueFull(call)
            | SubmitError::CompletionQueueFull(call) => *call,
        }
    }
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SubmitError::Closed(_) => "the executor is closed and takes no more calls",
            SubmitError::QueueFull(_) => "the executor's queue is full",
            SubmitError::CompletionQueueFull(_) => {
                "the completion queue is full: fetch completions before submitting more"
            }
        })
    }
}

impl Error for SubmitError {}

/// Why a release did not go as asked. The trajectory has no slot any more all the same, unless the
/// executor was closed first – which releases everything anyway.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The executor is closed; its slots were released when it closed.
    Closed,
    /// The workspace could not be reset. Its slot is not given to anybody until a reset succeeds.
    ResetFailed(String),
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReleaseError::Closed => f.write_str("the executor is closed"),
            ReleaseError::ResetFailed(text) => {
                write!(f, "the workspace could not be reset: {text}")
            }
        }
    }
}

impl Error for ReleaseError {}

/// Why a ToolServer cannot be used: one line for people.
#[derive(Debug)]
pub struct ToolServerError(String);

impl ToolServerError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for ToolServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for ToolServerError {}
