//! The HTTP fronts: a sandbox behind a port, and an executor behind one.
//!
//! Only with the feature `server`. This is the one part of the crate that uses an async runtime:
//! it serves connections, and hands everything else to the synchronous library, which knows
//! nothing of it. `http` is the serving, `auth` who may; the fronts are modules of their own. How
//! they serve is [`ServerConfig`](crate::config::ServerConfig).

mod auth;
mod error;
mod executor;
mod fifo_lock;
mod http;
mod sandbox;

pub use error::ServeError;
pub use executor::ExecutorServer;
pub use sandbox::{AbortHandle, SandboxServer};
