//! A sandbox behind a port: the counterpart of [`backend::fleet`](crate::backend::fleet), and of the
//! reference's clients.
//!
//! `plain` are the reference's routes, `native` ours, `slots` what both run on: any [`Backend`] of
//! one container.

mod native;
mod slots;

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::native::Native;
use self::slots::Slots;
use super::auth::{self, Token};
use super::error::ServeError;
use super::http::{self, HttpLimits, HttpServer, Request, Response, StatusCode};
use crate::backend::Backend;

/// How a [`SandboxServer`] is set up.
#[derive(Clone)]
#[non_exhaustive]
pub struct SandboxServerConfig {
    /// Where it listens. Defaults to 127.0.0.1:8080; port 0 takes a free one.
    pub addr: SocketAddr,
    /// The bearer token that every request but `GET /health` must have. Never logged, and not in
    /// `Debug`. Defaults to none: commands get no network then, since they could reach the server's
    /// port and with it other slots.
    pub token: Option<String>,
    /// Whether everybody who can reach the port may use it, commands among them. Defaults to `false`.
    pub no_auth: bool,
    /// The largest body of a request, in bytes. Defaults to 64 MiB.
    pub max_body: usize,
    /// How long a request may take to arrive. Defaults to 60 s.
    pub read_timeout: Duration,
}

impl Default for SandboxServerConfig {
    fn default() -> Self {
        let HttpLimits { max_body, read_timeout, .. } = HttpLimits::default();
        let addr = SocketAddr::from(([127, 0, 0, 1], 8080));
        Self { addr, token: None, no_auth: false, max_body, read_timeout }
    }
}

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

/// A running sandbox server. Dropped, it ends at once, with everything that runs in it.
pub struct SandboxServer {
    http: Mutex<Option<HttpServer>>,
    addr: SocketAddr,
    slots: Arc<Slots>,
}

impl SandboxServer {
    /// Serves a backend of one container. Does not block once the backend has started.
    ///
    /// # Errors
    /// The configuration makes no sense, the address cannot be listened on, or the backend does not
    /// start.
    pub fn start(config: SandboxServerConfig, backend: impl Backend) -> Result<Self, ServeError> {
        let token = config.token.as_deref().map(Token::new).transpose();
        let token = token.map_err(|problem| ServeError::Config(problem.to_owned()))?;
        if token.is_none() && !config.no_auth && !config.addr.ip().is_loopback() {
            return Err(ServeError::Config(format!(
                "other machines can reach {}: give a token, or say no_auth if everybody may use it",
                config.addr
            )));
        }
        let listener = TcpListener::bind(config.addr)
            .map_err(|error| ServeError::Listen(config.addr, error))?;
        let cut_network = token.is_none() && !config.no_auth;
        if cut_network {
            log::warn!(
                "commands get no network: without a token they could reach this server, and with \
                 it other slots"
            );
        }
        let slots = Slots::start(Arc::new(backend), cut_network).map_err(ServeError::Backend)?;
        let instance = uuid::Uuid::new_v4().simple().to_string();
        let native = Native::new(slots.clone(), instance, config.max_body);
        let limits = HttpLimits {
            max_body: config.max_body,
            read_timeout: config.read_timeout,
            ..HttpLimits::default()
        };
        let front = Arc::new(Front { token, native });
        let http = HttpServer::start(listener, limits, move |request| {
            let front = front.clone();
            async move { front.serve(request).await }
        });
        let http = http.map_err(ServeError::Thread)?;
        let addr = http.addr();
        Ok(Self { http: Mutex::new(Some(http)), addr, slots })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it: takes no more requests, lets what runs go on for `grace`, then kills it. Blocks. A
    /// second call does nothing.
    pub fn close(&self, grace: Duration) {
        let Some(mut http) = self.http.lock().take() else { return };
        let deadline = Instant::now() + grace;
        // A stream of results is never at its end: it is not waited for.
        while self.slots.executing() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.slots.close(Instant::now() + CLOSE_TIME);
        http.close(Instant::now() + ANSWER_TIME);
    }
}

/// How long killing what runs may take.
const CLOSE_TIME: Duration = Duration::from_secs(15);
/// How long the last answers may take.
const ANSWER_TIME: Duration = Duration::from_millis(500);

impl Drop for SandboxServer {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl fmt::Debug for SandboxServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxServer").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Who answers requests.
struct Front {
    token: Option<Token>,
    native: Arc<Native>,
}

impl Front {
    async fn serve(&self, request: Request) -> Response {
        if request.path() != "/health"
            && let Err(refusal) = auth::check(self.token.as_ref(), request.authorization())
        {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN);
            let body = serde_json::json!({"detail": refusal.detail}).to_string();
            return http::response(status, "application/json", body);
        }
        if request.path() == "/health" {
            return self.health();
        }
        match self.native.serve(request).await {
            Some(response) => response,
            None => {
                http::response(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404: Not Found")
            }
        }
    }

    fn health(&self) -> Response {
        let body = serde_json::json!({"status": "ok", "features": [crate::wire::native::FEATURE]});
        http::response(StatusCode::OK, "application/json", body.to_string())
    }
}
