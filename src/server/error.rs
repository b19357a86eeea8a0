//! Why a server did not start.

use std::error::Error;
use std::net::SocketAddr;
use std::{fmt, io};

use crate::error::BackendError;

/// Why a server did not start. Nothing of it is left running then.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
    /// A value of the configuration makes no sense; the text names it and what would be right.
    Config(String),
    /// The address cannot be listened on.
    Listen(SocketAddr, io::Error),
    /// The sandboxes behind it did not start.
    Backend(BackendError),
    /// The operating system refused a thread.
    Thread(io::Error),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(text) => write!(f, "invalid configuration: {text}"),
            Self::Listen(addr, _) => write!(f, "cannot listen on {addr}"),
            Self::Backend(_) => f.write_str("the sandbox backend did not start"),
            Self::Thread(_) => f.write_str("could not start a thread"),
        }
    }
}

impl Error for ServeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Config(_) => None,
            Self::Listen(_, error) | Self::Thread(error) => Some(error),
            Self::Backend(error) => Some(error),
        }
    }
}
