//! The error types. A tool that fails is not among them: that is a
//! [`ToolResult`](crate::ToolResult).

use std::error::Error;
use std::io;

use thiserror::Error;

use crate::tool::ToolCall;

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
}

/// What a [`Backend`](crate::backend::Backend) reports of its own failures: one line for people,
/// and the cause where there is one.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct BackendError {
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl BackendError {
    /// An error without a further cause.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// An error with its cause.
    pub fn with_source(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { message: message.into(), source: Some(source.into()) }
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
#[cfg_attr(not(feature = "http"), allow(dead_code))]
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
