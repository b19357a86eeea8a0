//! How the servers listen, whom they serve, and what they put up with: the same for both.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::auth::Token;
use super::error::ServeError;
use super::http::HttpLimits;

/// How a [`SandboxServer`](super::SandboxServer) or an [`ExecutorServer`](super::ExecutorServer)
/// serves. Made by [`new`](Self::new), then changed field by field.
#[derive(Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Where to listen; port 0 is any that is free.
    pub addr: SocketAddr,
    /// What clients have to send as `Authorization: Bearer …`. Defaults to none: everybody may – and
    /// then the commands of a sandbox server have no network, unless [`no_auth`](Self::no_auth) is
    /// set: a command could use the server itself, to get into other slots.
    pub token: Option<String>,
    /// Whether to do without a token all the same: on an address that others can reach, and with
    /// network for commands. Whoever can connect can then run commands. Defaults to `false`.
    pub no_auth: bool,
    /// The largest body of a request, in bytes. Defaults to 64 MiB; at least 1 KiB.
    pub max_body: usize,
    /// How many connections at once; further ones wait to be accepted. Defaults to 16,384; at
    /// least 1.
    pub max_connections: usize,
    /// How long a request may take to arrive: its head, and then its body. A connection that is idle
    /// for as long is closed. Defaults to 60 s; at least 1 ms, at most a year.
    pub read_timeout: Duration,
    /// How long a client may leave unread what it is sent, and its machine may not answer at all; then
    /// its connection is closed. Says nothing of how long a call may run. Defaults to 30 s; at least
    /// 1 ms, at most a year.
    pub write_timeout: Duration,
}

/// A time for whoever gives an endless one.
const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl ServerConfig {
    /// Listens there, with every other setting at its default.
    pub fn new(addr: impl Into<SocketAddr>) -> Self {
        let HttpLimits { max_body, max_connections, read_timeout, write_timeout } =
            HttpLimits::default();
        Self {
            addr: addr.into(),
            token: None,
            no_auth: false,
            max_body,
            max_connections,
            read_timeout,
            write_timeout,
        }
    }

    /// The token, if the configuration makes sense.
    pub(super) fn check(&self) -> Result<Option<Token>, ServeError> {
        let wrong = |text: String| Err(ServeError::Config(text));
        if self.max_body < 1024 {
            return wrong(format!("max_body is {}; it must be at least 1024", self.max_body));
        }
        if self.max_connections == 0 {
            return wrong("max_connections is 0; it must be at least 1".to_owned());
        }
        for (name, time) in
            [("read_timeout", self.read_timeout), ("write_timeout", self.write_timeout)]
        {
            if !(Duration::from_millis(1)..=FAR).contains(&time) {
                return wrong(format!("{name} is {time:?}; it must be from 1 ms to a year"));
            }
        }
        match &self.token {
            Some(token) => {
                Token::new(token).map(Some).map_err(|why| ServeError::Config(why.to_owned()))
            }
            None if self.no_auth || self.addr.ip().is_loopback() => Ok(None),
            None => wrong(format!(
                "others can reach {}: it needs a token, or no_auth to let everybody run commands; \
                 or listen on 127.0.0.1",
                self.addr.ip()
            )),
        }
    }

    pub(super) fn limits(&self) -> HttpLimits {
        HttpLimits {
            max_body: self.max_body,
            read_timeout: self.read_timeout,
            write_timeout: self.write_timeout,
            max_connections: self.max_connections,
        }
    }
}

/// The deadline of a grace, which may be endless.
pub(super) fn deadline(grace: Duration) -> Instant {
    Instant::now() + grace.min(FAR)
}

/// Without the token.
impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("addr", &self.addr)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("no_auth", &self.no_auth)
            .field("max_body", &self.max_body)
            .field("max_connections", &self.max_connections)
            .field("read_timeout", &self.read_timeout)
            .field("write_timeout", &self.write_timeout)
            .finish()
    }
}
