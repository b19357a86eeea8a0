//! The HTTP fronts: a sandbox behind a port, and an executor behind one.
//!
//! Only with the feature `server`. This is the one part of the crate that uses an async runtime:
//! it serves connections, and hands everything else to the synchronous library, which knows
//! nothing of it. `http` and `connection` are the serving, `tls` the handshakes, `door` and `auth`
//! say who is let in, `strangers` what the others get; the fronts are modules of their own. How
//! they serve is [`ServerConfig`](crate::config::ServerConfig).

mod auth;
mod connection;
mod door;
mod error;
mod executor;
mod fifo_lock;
mod front;
mod http;
mod sandbox;
mod strangers;
mod tls;
mod upload;
mod validity;

pub use error::ServeError;
pub use executor::ExecutorServer;
pub use sandbox::{AbortHandle, SandboxServer};
