//! An executor behind a port: [`ExecutorServer`], for clients in other processes and languages.
//!
//! It speaks the protocol of the reference's ToolExecutor server; a client of that one need not
//! change. `service` has the routes, `validate` what is wrong with a body, `answer` the answers,
//! `calls` what is under way, `batch` the streaming route, `metrics` the text for Prometheus. The
//! rules of the calls themselves are the executor's: nothing here decides about one.
//!
//! # Routes
//! | route | token | |
//! |---|---|---|
//! | `GET /`, `/health`, `/status` | no | that it is there, that it is well, its queue and slots |
//! | `POST /execute` | yes | `{"trajectory_id", "tool": {"name", "arguments", "uniq_id"}, "timeout_s"}`, answered with the tool's result |
//! | `POST /release` | yes | `{"trajectory_id", "reset_workspace"}` |
//! | `POST /artifacts/read`, `/list`, `/archive` | yes | the files of a trajectory's workspace |
//! | `POST /execute_batch` | yes | `{"calls": […]}`, at most 1,024, each as for `/execute`; answered with NDJSON, a line for each call the moment it ends |
//! | `POST /cancel` | yes | `{"trajectory_id", "uniq_id"}`; `null` is all of the trajectory |
//! | `GET /metrics` | yes | Prometheus text |
//!
//! The last three are not the reference's. Neither are the headers of an answer to `/execute` that
//! say how the call ended, for programs: `x-tool-outcome` is the
//! [`Outcome`](crate::Outcome)'s name, `x-tool-may-have-executed` is `true` or `false`.
//!
//! # A client that goes away
//! cancels its calls, whether they wait or run. A release takes place all the same.

mod answer;
mod batch;
mod calls;
mod metrics;
mod service;
mod validate;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::service::Service;
use super::auth::Token;
use super::error::ServeError;
use super::http::{HttpLimits, HttpServer};
use crate::executor::ToolExecutor;

/// How an [`ExecutorServer`] serves. Made by [`default`](Self::default), then changed field by field.
#[derive(Clone)]
#[non_exhaustive]
pub struct ExecutorServerConfig {
    /// Where to listen. Defaults to `127.0.0.1:9001`; port 0 is any that is free.
    pub addr: SocketAddr,
    /// What clients have to send as `Authorization: Bearer …`. Defaults to none: everybody may.
    pub token: Option<String>,
    /// Whether to do without a token on an address that others can reach. Whoever can connect can
    /// then run commands. Defaults to `false`.
    pub no_auth: bool,
    /// The largest body of a request, in bytes. Defaults to 64 MiB; at least 1 KiB.
    pub max_body: usize,
    /// How many connections at once; further ones wait to be accepted. Defaults to 16,384; at
    /// least 1.
    pub max_connections: usize,
}

impl Default for ExecutorServerConfig {
    fn default() -> Self {
        let HttpLimits { max_body, max_connections, .. } = HttpLimits::default();
        Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 9001)),
            token: None,
            no_auth: false,
            max_body,
            max_connections,
        }
    }
}

/// Without the token.
impl fmt::Debug for ExecutorServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutorServerConfig")
            .field("addr", &self.addr)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("no_auth", &self.no_auth)
            .field("max_body", &self.max_body)
            .field("max_connections", &self.max_connections)
            .finish()
    }
}

impl ExecutorServerConfig {
    /// The token, if the configuration makes sense.
    fn check(&self) -> Result<Option<Token>, ServeError> {
        let wrong = |text: String| Err(ServeError::Config(text));
        if self.max_body < 1024 {
            return wrong(format!("max_body is {}; it must be at least 1024", self.max_body));
        }
        if self.max_connections == 0 {
            return wrong("max_connections is 0; it must be at least 1".to_owned());
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
}

/// A running server. Dropped, it ends at once, and cancels the calls that it has under way.
pub struct ExecutorServer {
    http: HttpServer,
}

impl ExecutorServer {
    /// Serves `executor`, which stays the caller's: to be closed after the server. Does not block;
    /// when it returns, clients can connect.
    ///
    /// # Errors
    /// The configuration makes no sense – no token where others can reach the server, most likely –
    /// or the address cannot be listened on.
    pub fn start(
        config: ExecutorServerConfig,
        executor: Arc<ToolExecutor>,
    ) -> Result<Self, ServeError> {
        let token = config.check()?;
        let refused = |error| ServeError::Listen(config.addr, error);
        let listener = TcpListener::bind(config.addr).map_err(refused)?;
        let limits = HttpLimits {
            max_body: config.max_body,
            max_connections: config.max_connections,
            ..HttpLimits::default()
        };
        let service = Arc::new(Service::new(executor, token, config.max_body));
        let serve = move |request| service.clone().serve(request);
        let http = HttpServer::start(listener, limits, serve).map_err(ServeError::Thread)?;
        Ok(Self { http })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.http.addr()
    }

    /// How many connections it has now, idle ones among them.
    pub fn connections(&self) -> usize {
        self.http.connections()
    }

    /// Stops accepting, lets the requests under way end for `grace` at most, and ends the rest,
    /// which cancels their calls. Blocks. The executor is not closed.
    pub fn close(mut self, grace: Duration) {
        let now = Instant::now();
        self.http.close(now.checked_add(grace).unwrap_or(now + FAR));
    }
}

/// A deadline for whoever gives an endless grace.
const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl fmt::Debug for ExecutorServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutorServer").field("addr", &self.addr()).finish_non_exhaustive()
    }
}
