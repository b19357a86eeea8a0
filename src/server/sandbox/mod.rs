//! A sandbox behind a port: [`SandboxServer`], for executors on other machines.
//!
//! One container: any [`Backend`] that has one. `slots` decides whose turn it is in each slot and
//! sees to it that everybody is answered; `plain` speaks the protocol of the reference's sandbox
//! server, whose clients need not change; `native` speaks the protocol of our own executors.

mod native;
mod plain;
mod slots;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{ALLOW, HeaderValue};

use self::native::Native;
use self::slots::Slots;
use super::auth::{self, Token};
use super::error::ServeError;
use super::http::{HttpLimits, HttpServer, Method, Request, Response, StatusCode, response};
use crate::backend::Backend;

/// How a [`SandboxServer`] serves. Made by [`default`](Self::default), then changed field by field.
#[derive(Clone)]
#[non_exhaustive]
pub struct SandboxServerConfig {
    /// Where to listen. Defaults to `127.0.0.1:8080`; port 0 is any that is free.
    pub addr: SocketAddr,
    /// What clients have to send as `Authorization: Bearer …`. Defaults to none: everybody may – and
    /// then commands have no network, unless [`no_auth`](Self::no_auth) is set: a command could use
    /// the server itself, to get into other slots.
    pub token: Option<String>,
    /// Whether to do without a token all the same: on an address that others can reach, and with
    /// network for commands. Whoever can connect can then run commands. Defaults to `false`.
    pub no_auth: bool,
    /// The largest body of a request, in bytes. Defaults to 64 MiB; at least 1 KiB.
    pub max_body: usize,
    /// How long a request may take to arrive: its head, and then its body. A connection that is idle
    /// for as long is closed. Defaults to 60 s; at least 1 ms, at most a year.
    pub read_timeout: Duration,
}

impl Default for SandboxServerConfig {
    fn default() -> Self {
        let HttpLimits { max_body, read_timeout, .. } = HttpLimits::default();
        Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            token: None,
            no_auth: false,
            max_body,
            read_timeout,
        }
    }
}

/// Without the token.
impl fmt::Debug for SandboxServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxServerConfig")
            .field("addr", &self.addr)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("no_auth", &self.no_auth)
            .field("max_body", &self.max_body)
            .field("read_timeout", &self.read_timeout)
            .finish()
    }
}

/// A time for whoever gives an endless grace, and the longest that a request may take to arrive.
const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl SandboxServerConfig {
    /// The token, if the configuration makes sense.
    fn check(&self) -> Result<Option<Token>, ServeError> {
        let wrong = |text: String| Err(ServeError::Config(text));
        if self.max_body < 1024 {
            return wrong(format!("max_body is {}; it must be at least 1024", self.max_body));
        }
        if !(Duration::from_millis(1)..=FAR).contains(&self.read_timeout) {
            return wrong(format!(
                "read_timeout is {:?}; it must be from 1 ms to a year",
                self.read_timeout
            ));
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

/// A running server, and the backend behind it. Dropped, both end at once.
pub struct SandboxServer {
    http: HttpServer,
    service: Arc<Service>,
}

/// What the server is made of, shared by all its requests.
struct Service {
    slots: Arc<Slots>,
    token: Option<Token>,
    max_body: usize,
    /// Names this run of the server.
    instance: String,
    plain: plain::Plain,
    native: Arc<Native>,
}

impl SandboxServer {
    /// Starts the backend, which must have one container, and serves it: it is the server's from now
    /// on. Blocks as long as the backend's start; when this returns, clients can connect.
    ///
    /// # Errors
    /// The configuration makes no sense – no token where others can reach the server, most likely –,
    /// the address cannot be listened on, or the backend does not start. The backend is closed then.
    pub fn start(config: SandboxServerConfig, backend: impl Backend) -> Result<Self, ServeError> {
        let token = config.check()?;
        let refused = |error| ServeError::Listen(config.addr, error);
        let listener = TcpListener::bind(config.addr).map_err(refused)?;
        let cut_network = token.is_none() && !config.no_auth;
        if cut_network {
            log::warn!(
                "without a token commands get no network, so that they cannot reach this server; \
                 give it a token, or no_auth"
            );
        }
        let slots = Slots::start(Arc::new(backend), cut_network).map_err(ServeError::Backend)?;
        let instance = uuid::Uuid::new_v4().to_string();
        let service = Arc::new(Service {
            native: Native::new(slots.clone(), instance.clone(), config.max_body),
            slots: slots.clone(),
            token,
            max_body: config.max_body,
            instance,
            plain: plain::Plain::default(),
        });
        let limits = HttpLimits {
            max_body: config.max_body,
            read_timeout: config.read_timeout,
            ..HttpLimits::default()
        };
        let serve = {
            let service = service.clone();
            move |request| service.clone().serve(request)
        };
        match HttpServer::start(listener, limits, serve) {
            Ok(http) => Ok(Self { http, service }),
            Err(error) => {
                slots.close(Instant::now());
                Err(ServeError::Thread(error))
            }
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.http.addr()
    }

    /// How many connections it has now, idle ones among them.
    pub fn connections(&self) -> usize {
        self.http.connections()
    }

    /// Stops accepting, lets what runs end for `grace` at most, ends the rest, and closes the
    /// backend. Blocks.
    pub fn close(mut self, grace: Duration) {
        let now = Instant::now();
        self.end(now.checked_add(grace).unwrap_or(now + FAR));
    }

    fn end(&mut self, deadline: Instant) {
        self.service.native.close();
        self.http.close(deadline);
        // Not all that runs has a request that waits for it.
        self.service.slots.close(deadline);
    }
}

impl Drop for SandboxServer {
    fn drop(&mut self) {
        self.end(Instant::now());
    }
}

impl fmt::Debug for SandboxServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxServer").field("addr", &self.addr()).finish_non_exhaustive()
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

impl Service {
    /// Answers a request.
    async fn serve(self: Arc<Self>, request: Request) -> Response {
        let is_health = request.path() == plain::HEALTH;
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        if !(is_health && is_read)
            && let Err(refusal) = auth::check(self.token.as_ref(), request.authorization())
        {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN);
            return plain::refused(status, refusal.detail);
        }
        if request.path().starts_with("/v1/") {
            return self.native.serve(request).await.unwrap_or_else(not_found);
        }
        plain::serve(&self, request).await
    }
}

fn not_found() -> Response {
    response(StatusCode::NOT_FOUND, TEXT, "404: Not Found")
}

/// The answer to a path that there is, but not with this method.
fn wrong_method(allowed: &'static str) -> Response {
    let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "405: Method Not Allowed");
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    refusal
}
