//! ToolServers: services of the user's that run external tools.
//!
//! `client` speaks to one; without the feature `http` there is none to speak with, and `absent`
//! has its place.

#[cfg(not(feature = "http"))]
mod absent;
#[cfg(feature = "http")]
mod client;

#[cfg(not(feature = "http"))]
pub(crate) use absent::ToolServer;
#[cfg(feature = "http")]
pub(crate) use client::ToolServer;

use std::time::Duration;

use crate::tool::JsonObject;

/// An external tool's call on its way.
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "read by the client alone"))]
pub(crate) struct ExternalCall<'a> {
    pub(crate) trajectory_id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) arguments: &'a JsonObject,
    pub(crate) uniq_id: &'a str,
    pub(crate) timeout: Duration,
    pub(crate) slot_id: Option<&'a str>,
    pub(crate) container_addr: Option<&'a str>,
}
