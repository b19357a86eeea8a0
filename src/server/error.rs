//! Why a server did not start.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use crate::error::{BackendError, ConfigError};

/// Why a server did not start. Nothing of it is left running then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A value of the configuration makes no sense.
    #[error("invalid configuration: {0}")]
    Config(#[from] ConfigError),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The sandboxes behind it did not start.
    #[error("the sandbox backend did not start")]
    Backend(#[source] BackendError),
    /// The operating system refused a thread.
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
}
