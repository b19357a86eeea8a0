//! The way out of sandboxes: an HTTP proxy for machines that have no network but this one.
//!
//! A machine – a jail with a network namespace of its own – has a listening socket on its loopback
//! interface, whose descriptor its first process has handed to the engine. The engine
//! [attaches](Egress::attach) it here, and a thread of this process accepts on it: no process
//! carries bytes inside, and nothing inside has a hold of the socket.
//!
//! | module | what it decides or does |
//! |---|---|
//! | `address`, `rules` | which addresses are public, whom a machine may reach: pure |
//! | `request`, `body`, `response` | what of HTTP is passed on: pure |
//! | `turns` | whose connection is accepted, whose name is looked up next: pure |
//! | `names` | looks names up, each on a thread of its own, so many at a time |
//! | `relay` | the one thread that accepts, connects and carries bytes |
//!
//! # What holds
//! - A connection is made to the very address that was checked, after the look-up, for each request
//!   anew: neither a name that changes its address nor a redirect leads anywhere else.
//! - A connection of a client carries one request; what follows it is not read.
//! - Connections are bounded by machine and in all, as are their buffers, the look-ups and every
//!   wait. A machine that uses up its own share leaves the others theirs.

use std::fmt;

use serde::Serialize;

#[cfg(target_os = "linux")]
mod account;
#[cfg(target_os = "linux")]
mod address;
#[cfg(target_os = "linux")]
mod body;
#[cfg(target_os = "linux")]
mod names;
#[cfg(target_os = "linux")]
mod relay;
#[cfg(target_os = "linux")]
mod request;
#[cfg(target_os = "linux")]
mod response;
#[cfg(target_os = "linux")]
mod rules;
#[cfg(target_os = "linux")]
mod turns;

#[cfg(target_os = "linux")]
pub(crate) use self::account::Usage;
#[cfg(target_os = "linux")]
pub(crate) use self::relay::{Attachment, Egress, Setup};
#[cfg(target_os = "linux")]
pub(crate) use self::turns::descriptors;

/// What the commands of a backend's slots have asked of the network, through the sandbox's proxy,
/// since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct NetworkTotals {
    /// Requests: tunnels, and plain HTTP requests.
    pub requests: u64,
    /// Those of them that were refused, because of their host.
    pub refused: u64,
    /// Those of them that failed: no such host, no connection, no answer.
    pub failed: u64,
    /// Bytes that commands sent.
    pub bytes_sent: u64,
    /// Bytes that commands received.
    pub bytes_received: u64,
    /// Connections of commands, now.
    pub connections: usize,
}

impl fmt::Display for NetworkTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, refused, failed, bytes_sent, bytes_received, connections } = self;
        write!(
            f,
            "{requests} requests, {refused} refused, {failed} failed, {bytes_sent} bytes sent, \
             {bytes_received} received, {connections} connections"
        )
    }
}
