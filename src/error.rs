//! The error types. A tool that fails is not among them: that is a
//! [`ToolResult`](crate::ToolResult).

use std::error::Error;
use std::io;

use thiserror::Error;

use crate::tool::{Outcome, ToolCall, ToolResult};

/// A value of a configuration that makes no sense; the text names it and says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Why an executor did not start. Nothing of it is left running then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// A value of the configuration makes no sense.
    #[error("invalid configuration: {0}")]
    Config(#[from] ConfigError),
    /// The configuration asks for what this system, or this build of the library, does not have.
    #[error("{0}")]
    Unsupported(String),
    /// The backend did not start.
    #[error("the sandbox backend did not start")]
    Backend(#[source] BackendError),
    /// The ToolServer's configuration makes no sense, or it does not say what it offers.
    #[error("the ToolServer cannot be used")]
    ToolServer(#[source] ToolServerError),
    /// The operating system refused a thread.
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
    /// The start was [interrupted](crate::Interrupt).
    #[error("the start was interrupted")]
    Interrupted,
}

/// What a [`Backend`](crate::backend::Backend) reports of its own failures: what kind of failure
/// it is, one line for people, and the cause where there is one.
#[derive(Debug, Error)]
#[error("{message}")]
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
    /// Commands would run without isolation, and that was not allowed. The cause is an
    /// [`IsolationError`], which says why and what to do.
    NotIsolated,
    /// The machine lacks something – processes, descriptors, memory, space, time –, so that nothing
    /// could be found out. Later it may work.
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

/// Why commands would run without isolation, and what to do about it; the cause of a
/// [`BackendError`] of the kind [`NotIsolated`](BackendErrorKind::NotIsolated).
///
/// Its text is one line that also says how to allow it in the library. A program with a switch of
/// its own for that puts its line together from the parts: see [`line`](Self::line).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", self.line("allow_unisolated"))]
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

impl From<ConfigError> for BackendError {
    fn from(error: ConfigError) -> Self {
        Self::new(error.to_string())
    }
}

/// Why a call was not accepted. It gives the call back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The executor is closed, or closing.
    #[error("the executor is closed and takes no more calls")]
    Closed(Box<ToolCall>),
    /// As many calls as the queue's capacity were accepted and did not start yet. The blocking
    /// forms say so only after having waited for `queue_timeout`.
    #[error("the executor's queue is full")]
    QueueFull(Box<ToolCall>),
    /// The completion queue holds as many calls as its capacity, counting those under way and those
    /// finished and not fetched. Fetch some.
    #[error("the completion queue is full: fetch completions before submitting more")]
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

/// Why a trajectory did not begin as its spec asks. Nothing of it ran.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BeginError {
    /// A value of the spec makes no sense, or the trajectory's id cannot be one. Nothing has
    /// changed.
    #[error("invalid spec: {0}")]
    Invalid(#[from] ConfigError),
    /// The trajectory has begun, has failed to begin, or has made a call. Nothing has changed.
    #[error("the trajectory has begun already; release it first")]
    AlreadyBegun,
    /// The executor is closed, or closing.
    #[error("the executor is closed and begins no more trajectories")]
    Closed,
    /// As many calls as the queue's capacity were accepted and did not start yet. Nothing has
    /// changed.
    #[error("the executor's queue is full")]
    QueueFull,
    /// It cannot begin so. Its calls end like this, too, until it is released.
    #[error("{0}")]
    Failed(#[source] BeginFailure),
}

/// Why a slot could not be made what a trajectory's spec asks for: the outcome of the trajectory's
/// calls, and one line for people.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct BeginFailure {
    outcome: Outcome,
    message: String,
}

impl BeginFailure {
    /// The sandbox cannot give what was asked for, or its operator does not allow it.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::of(Outcome::SpecUnsupported, message)
    }

    /// The image cannot be had.
    pub fn image_unavailable(message: impl Into<String>) -> Self {
        Self::of(Outcome::ImageUnavailable, message)
    }

    /// The image is there, and commands cannot be run in it.
    pub fn image_unusable(message: impl Into<String>) -> Self {
        Self::of(Outcome::ImageUnusable, message)
    }

    /// The backend failed at what it could do otherwise.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::of(Outcome::BackendFailed, message)
    }

    /// The sandbox is gone, or did not answer.
    pub fn lost(message: impl Into<String>) -> Self {
        Self::of(Outcome::SandboxLost, message)
    }

    pub(crate) fn of(outcome: Outcome, message: impl Into<String>) -> Self {
        Self { outcome, message: message.into() }
    }

    /// How the trajectory's calls end.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// What a call of the trajectory ends with: nothing of it ran.
    pub(crate) fn result(&self) -> ToolResult {
        let mut result = ToolResult::failure(self.outcome, self.message.clone());
        result.may_have_executed = false;
        result
    }
}

/// Why a release did not go as asked. The trajectory has no slot any more all the same, unless the
/// executor was closed first – which releases everything anyway.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The executor is closed; its slots were released when it closed.
    #[error("the executor is closed")]
    Closed,
    /// The workspace could not be reset. No trajectory gets its slot until a reset succeeds.
    #[error("the workspace could not be reset: {0}")]
    ResetFailed(String),
}

/// Why a ToolServer cannot be used: one line for people, and the cause where there is one.
#[derive(Debug, Error)]
#[error("{message}")]
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "nothing makes one without a client"))]
pub struct ToolServerError {
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

#[cfg(feature = "http")]
impl ToolServerError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    pub(crate) fn with_source(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { message: message.into(), source: Some(source.into()) }
    }
}
