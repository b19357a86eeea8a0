//! A sandbox behind a port: [`SandboxServer`], for executors on other machines.
//!
//! One container: any [`Backend`] that has one. `slots` decides whose turn it is in each slot and
//! sees to it that everybody is answered; `plain` speaks the protocol of the reference's sandbox
//! server, whose clients need not change: its results have `outcome`, `may_have_executed` and
//! `model_attributable` after the reference's keys; `native` speaks the protocol of our own
//! executors, and `leases` decides which of them has which slot.

mod activity;
mod leases;
mod native;
mod plain;
mod slots;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{ALLOW, HeaderValue};

use self::activity::Activity;
use self::native::Native;
use self::slots::Slots;
use super::error::ServeError;
use super::front::Front;
use super::http::{self, HttpServer, Method, Request, Response, StatusCode, response};
use crate::backend::Backend;
use crate::config::{NetworkMode, ServerConfig};

/// A running server, and the backend behind it. Dropped, both end at once.
pub struct SandboxServer {
    http: HttpServer,
    service: Arc<Service>,
}

/// Ends what runs in a [`SandboxServer`], without the grace that its close was given.
#[derive(Clone)]
pub struct AbortHandle(Arc<Slots>);

impl AbortHandle {
    /// Ends what runs, and closes the backend: no call runs afterwards. Blocks for some seconds at
    /// most. A close that is under way returns soon.
    pub fn abort(&self) {
        self.0.close(Instant::now());
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AbortHandle")
    }
}

/// What the server is made of, shared by all its requests.
struct Service {
    slots: Arc<Slots>,
    max_body: usize,
    /// Names this run of the server.
    instance: String,
    /// How others reach it.
    url: String,
    activity: Arc<Activity>,
    plain: plain::Plain,
    native: Arc<Native>,
}

impl SandboxServer {
    /// Starts the backend, which must have one container, and serves it: it is the server's from
    /// now on. Blocks as long as the backend's start; when this returns, clients can connect.
    ///
    /// # Errors
    /// The configuration makes no sense – no token where others can reach the server, most likely
    /// –, the address cannot be listened on, or the backend does not start. The backend is closed
    /// then.
    pub fn start(config: ServerConfig, backend: impl Backend) -> Result<Self, ServeError> {
        let Front { listener, serving, url } = Front::open(&config)?;
        // Through a proxy they do not reach it.
        let is_reached =
            !matches!(backend.capabilities().network, Some(NetworkMode::None | NetworkMode::Proxy));
        let cut_network = config.token.is_none() && !config.no_auth && is_reached;
        if cut_network {
            log::warn!(
                "without a token commands get no network, so that they cannot reach this server; \
                 give it a token, or no_auth"
            );
        }
        let slots = Slots::start(Arc::new(backend), cut_network).map_err(ServeError::Backend)?;
        // From now on it looks which there are.
        let _ = slots.images();
        let instance = uuid::Uuid::new_v4().to_string();
        let activity = Activity::new(Instant::now());
        let service = Arc::new(Service {
            native: Native::new(
                slots.clone(),
                instance.clone(),
                serving.limits,
                config.lease,
                activity.clone(),
            ),
            activity,
            slots: slots.clone(),
            max_body: config.max_body,
            instance,
            url,
            plain: plain::Plain::default(),
        });
        let serve = {
            let service = service.clone();
            move |request| service.clone().serve(request)
        };
        match HttpServer::start(listener, serving, serve) {
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

    /// How others reach it: `http` or `https`, and what it advertises
    /// ([`ServerConfig::advertise`]).
    pub fn url(&self) -> &str {
        &self.service.url
    }

    /// How many connections it has now, idle ones among them.
    pub fn connections(&self) -> usize {
        self.http.connections()
    }

    /// Since when no executor has a session with it and no call, reset or request for files is
    /// under way; `None` while one is. A server that has not been used yet is unused since its
    /// start. Questions about its health and its slots are no use.
    pub fn unused_since(&self) -> Option<Instant> {
        let slots = &self.service.slots;
        // A client that went away leaves its call behind, without a request.
        let executes = (0..slots.len()).any(|slot| slots.is_executing(slot));
        self.service.activity.unused_since().filter(|_| !executes)
    }

    /// Tells the executors that use it that the server is about to end: they put no other
    /// trajectory here, and those that are here finish. It takes no other executor; requests by the
    /// plain routes are served as before. Does not block.
    pub fn drain(&self) {
        self.service.native.drain();
    }

    /// Whether no executor has a slot of it any more.
    pub fn is_drained(&self) -> bool {
        self.service.native.draining().1
    }

    /// What ends a [`close`](Self::close) that is under way on another thread.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle(self.service.slots.clone())
    }

    /// Stops accepting, lets what runs end for `grace` at most, ends the rest, and closes the
    /// backend. Blocks.
    pub fn close(mut self, grace: Duration) {
        self.end(http::deadline(grace));
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
        let verdict = request.verdict();
        let admitted = match is_health && is_read {
            true => verdict.admitted_without_token(),
            false => verdict.admitted(),
        };
        if let Err(refusal) = admitted {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN);
            return plain::refused(status, refusal.detail);
        }
        let _in_use = (!is_read).then(|| self.activity.begin());
        if ["/v1/", "/v2/", "/v3/"].iter().any(|routes| request.path().starts_with(routes)) {
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
