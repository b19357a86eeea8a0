//! The HTTP fronts: a sandbox behind a port, and an executor behind one.
//!
//! Only with the feature `server`. This is the one part of the crate that uses an async runtime: it
//! serves connections, and hands everything else to the synchronous library, which knows nothing of
//! it. `http` is the serving, `config` how, `auth` who may; the fronts are modules of their own.

mod auth;
mod config;
mod error;
mod executor;
mod http;
mod sandbox;
mod turnstile;

pub use config::ServerConfig;
pub use error::ServeError;
pub use executor::ExecutorServer;
pub use sandbox::{AbortHandle, SandboxServer};
