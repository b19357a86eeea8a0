//! How the HTTP servers listen, whom they serve, and what they put up with: the same for both.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Secret;
use super::advertise::Advertise;
use crate::error::ConfigError;
use crate::seconds::{self, LONGEST};

/// How a `SandboxServer` or an `ExecutorServer` serves. Needs the feature `server`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Where to listen; port 0 is any that is free.
    pub addr: SocketAddr,
    /// What clients have to send as `Authorization: Bearer …`. Defaults to none: every program that
    /// can connect may use the server – pages in a browser may not –, and the commands of a sandbox
    /// server do not have the host's network, unless [`no_auth`](Self::no_auth) is set: a command
    /// could use the server itself, to get into other slots. Of an executor server's commands the
    /// executor's policy decides: let it forbid the network where that is the host's. Never logged
    /// or serialised.
    #[serde(default, skip_serializing)]
    pub token: Option<Secret>,
    /// Whether to do without a token all the same: on an address that others can reach, and with
    /// the host's network for commands, if that is what they have. Every client that can connect
    /// can then run commands. Defaults to `false`.
    #[serde(default)]
    pub no_auth: bool,
    /// The largest body of a request, in bytes. Defaults to 64 MiB; at least 1 KiB.
    #[serde(default = "max_body")]
    pub max_body: usize,
    /// How many connections at once; further ones wait to be accepted. Defaults to 16,384; at
    /// least 1.
    #[serde(default = "max_connections")]
    pub max_connections: usize,
    /// How long a request may take to arrive: its head, and then its body. A connection that is
    /// idle for as long is closed. Defaults to 60 s; at least 1 ms, at most a year.
    #[serde(rename = "read_timeout_s", with = "seconds", default = "read_timeout")]
    pub read_timeout: Duration,
    /// How long a client may leave unread what it is sent, and its machine may not answer at all;
    /// then its connection is closed. Says nothing of how long a call may run. Defaults to 30 s; at
    /// least 1 ms, at most a year.
    #[serde(rename = "write_timeout_s", with = "seconds", default = "write_timeout")]
    pub write_timeout: Duration,
    /// The server's certificate, and those that lead from it to an authority, as PEM: with it the
    /// server speaks `https` only. Needs [`tls_key_pem`](Self::tls_key_pem). Defaults to none: it
    /// speaks `http`.
    #[serde(default)]
    pub tls_cert_pem: Option<String>,
    /// The private key of [`tls_cert_pem`](Self::tls_cert_pem), as PEM, without a password. Never
    /// logged or serialised.
    #[serde(default, skip_serializing)]
    pub tls_key_pem: Option<Secret>,
    /// How others reach the server: `host` or `host:port`. It is what the server calls itself, and
    /// without a token a name that it answers under. Defaults to the address that it listens on,
    /// and to the host's name where that is every address.
    #[serde(default)]
    pub advertise: Option<String>,
    /// How long a `SandboxServer` keeps the slots of an executor that it does not hear of: one that
    /// was killed, or stopped. Then they are emptied and go to others. Defaults to 15 s; at least 1
    /// s, at most an hour. Means nothing to an `ExecutorServer`.
    #[serde(rename = "lease_s", with = "seconds", default = "lease")]
    pub lease: Duration,
}

/// The bounds of a lease: an executor has to be heard of some times within it, and the slots of one
/// that was killed should come back soon.
const LEASES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

fn lease() -> Duration {
    Duration::from_secs(15)
}

fn max_body() -> usize {
    64 << 20
}

fn max_connections() -> usize {
    16_384
}

fn read_timeout() -> Duration {
    Duration::from_secs(60)
}

fn write_timeout() -> Duration {
    Duration::from_secs(30)
}

setters! {
    ServerConfig {
        with_token: token = some Secret,
        with_no_auth: no_auth = bool,
        with_max_body: max_body = usize,
        with_max_connections: max_connections = usize,
        with_read_timeout: read_timeout = Duration,
        with_write_timeout: write_timeout = Duration,
        with_tls_cert_pem: tls_cert_pem = some String,
        with_tls_key_pem: tls_key_pem = some Secret,
        with_advertise: advertise = some String,
        with_lease: lease = Duration,
    }
}

impl ServerConfig {
    /// Listens there, with every other setting at its default.
    pub fn new(addr: impl Into<SocketAddr>) -> Self {
        Self {
            addr: addr.into(),
            token: None,
            no_auth: false,
            max_body: max_body(),
            max_connections: max_connections(),
            read_timeout: read_timeout(),
            write_timeout: write_timeout(),
            tls_cert_pem: None,
            tls_key_pem: None,
            advertise: None,
            lease: lease(),
        }
    }

    /// Whether the values make sense, together too: an address that others can reach needs a token,
    /// or [`no_auth`](Self::no_auth).
    ///
    /// # Errors
    /// What is wrong, with what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |text: String| Err(ConfigError::new(text));
        if self.max_body < 1024 {
            return wrong(format!("max_body is {}; it must be at least 1024", self.max_body));
        }
        if self.max_connections == 0 {
            return wrong("max_connections is 0; it must be at least 1".to_owned());
        }
        for (name, time) in
            [("read_timeout", self.read_timeout), ("write_timeout", self.write_timeout)]
        {
            if !(Duration::from_millis(1)..=LONGEST).contains(&time) {
                return wrong(format!("{name} is {time:?}; it must be from 1 ms to a year"));
            }
        }
        match (&self.tls_cert_pem, &self.tls_key_pem) {
            (Some(_), None) => return wrong("tls_cert_pem needs tls_key_pem, its key".to_owned()),
            (None, Some(_)) => {
                return wrong("tls_key_pem needs tls_cert_pem, its certificate".to_owned());
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if let Some(advertise) = &self.advertise {
            advertise.parse::<Advertise>().map_err(ConfigError::new)?;
        }
        if !LEASES.contains(&self.lease) {
            return wrong(format!("lease is {:?}; it must be from 1 s to an hour", self.lease));
        }
        let ip = self.addr.ip();
        if self.token.is_none() && !self.no_auth && !ip.is_loopback() {
            return wrong(format!(
                "others can reach {ip}: it needs a token, or no_auth to let everybody run commands; \
                 or listen on 127.0.0.1"
            ));
        }
        Ok(())
    }
}
