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
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Config(text) => write!(f, "invalid configuration: {text}"),
            StartError::Backend(_) => f.write_str("the sandbox backend did not start"),
            StartError::ToolServer(_) => f.write_str("the ToolServer cannot be used"),
            StartError::Thread(_) => f.write_str("could not start a thread"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            StartError::Config(_) => None,
            StartError::Backend(error) => Some(error),
            StartError::ToolServer(error) => Some(error),
            StartError::Thread(error) => Some(error),
        }
    }
}

/// What a [`Backend`](crate::backend::Backend) reports of its own failures: one line for people,
/// and the cause where there is one.
#[derive(Debug)]
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
