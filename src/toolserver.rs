//! The client of a ToolServer: a service of the user's that runs external tools.
//!
//! Blocking; the executor calls it from threads of its own (`tool-server-N`), as many as the
//! ToolServer may have calls at once, so that one that hangs delays nobody but its own callers.
//! What is said on the wire is in `wire::tool_server`.
//!
//! A request is never sent twice: an external tool may have effects, and the protocol has no way to
//! ask whether the first one arrived.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::error::ToolServerError;
use crate::tool::python_json::{self, float_text};
use crate::tool::{JsonObject, Outcome, ToolResult, ToolSchema};
use crate::wire::tool_server::{ExecuteRequest, ExecuteResponse, Tool, ToolsResponse, error_text};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long `GET /tools` may take.
const TOOLS_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer that is read: 64 MiB.
const MAX_RESPONSE: u64 = 64 * 1024 * 1024;
/// Idle connections are dropped after this. Servers close theirs after 5 s and more; a request on a
/// connection that its server is just closing would fail without anybody's fault.
const MAX_IDLE: Duration = Duration::from_secs(4);
/// How long the server's address is remembered.
const ADDRESS_LIFETIME: Duration = Duration::from_secs(60);
/// More calls at once than this are a mistake: each takes a thread.
const MOST_CONCURRENCY: usize = 256;

/// Where a ToolServer is and how to speak with it.
#[derive(Clone)]
#[non_exhaustive]
pub struct ToolServerConfig {
    /// Its base URL: `http://host:port` or `https://…`, with or without a path.
    pub url: String,
    /// The bearer token, if it wants one. Never logged, and not in `Debug`.
    pub token: Option<String>,
    /// How many calls it may have at once, 1 to 256. Defaults to 16.
    pub concurrency: usize,
}

impl ToolServerConfig {
    /// A ToolServer at this URL, without a token.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), token: None, concurrency: 16 }
    }

    /// The same with a bearer token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }
}

impl fmt::Debug for ToolServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolServerConfig")
            .field("url", &self.url)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("concurrency", &self.concurrency)
            .finish()
    }
}

/// A client of one ToolServer.
pub(crate) struct ToolServer {
    agent: Agent,
    execute: Uri,
    tools: Uri,
    authorization: Option<String>,
    concurrency: usize,
}

/// An external tool's call on its way.
pub(crate) struct ExternalCall<'a> {
    pub(crate) trajectory_id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) arguments: &'a JsonObject,
    pub(crate) uniq_id: &'a str,
    pub(crate) timeout: Duration,
    pub(crate) slot_id: Option<&'a str>,
    pub(crate) container_addr: Option<&'a str>,
}

impl ToolServer {
    /// A client; connects to nothing yet.
    ///
    /// # Errors
    /// The URL, token or concurrency makes no sense.
    pub(crate) fn new(config: &ToolServerConfig) -> Result<Self, ToolServerError> {
        let invalid = |text: String| ToolServerError::new(text);
        let base = config.url.trim_end_matches('/');
        let endpoint = |path: &str| -> Result<Uri, ToolServerError> {
            let uri: Uri = format!("{base}{path}").parse().map_err(|error| {
                ToolServerError::with_source(format!("{base:?} is not a URL"), error)
            })?;
            let scheme_is_http = matches!(uri.scheme_str(), Some("http" | "https"));
            match uri.authority() {
                Some(authority) if scheme_is_http && !authority.as_str().contains('@') => Ok(uri),
                _ => Err(invalid(format!(
                    "{base:?} is not the URL of a ToolServer; http://host:port would be"
                ))),
            }
        };
        if !(1..=MOST_CONCURRENCY).contains(&config.concurrency) {
            return Err(invalid(format!(
                "concurrency is {}; it must be from 1 to {MOST_CONCURRENCY}",
                config.concurrency
            )));
        }
        if let Some(token) = &config.token
            && (token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(invalid("the token is empty or has a character that no header may".into()));
        }
        let http = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .max_idle_connections(config.concurrency)
            .max_idle_connections_per_host(config.concurrency)
            .max_idle_age(MAX_IDLE)
            .build();
        let agent =
            Agent::with_parts(http, DefaultConnector::default(), RememberingResolver::default());
        Ok(Self {
            agent,
            execute: endpoint("/execute")?,
            tools: endpoint("/tools")?,
            authorization: config.token.as_ref().map(|token| format!("Bearer {token}")),
            concurrency: config.concurrency,
        })
    }

    /// How many calls it may have at once.
    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Ends the requests that are under way: their callers need no answer any more.
    pub(crate) fn interrupt(&self) {
        self.agent.clone().shutdown();
    }

    /// The tools it offers. Blocks for up to 30 s.
    ///
    /// # Errors
    /// It does not answer, or not with a list of tools.
    pub(crate) fn tools(&self) -> Result<Vec<ToolSchema>, ToolServerError> {
        let failed = |error: String| {
            ToolServerError::new(format!("the ToolServer does not say what it offers: {error}"))
        };
        let mut request = self.agent.get(self.tools.clone());
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let request = request.config().timeout_global(Some(TOOLS_TIMEOUT)).build();
        let response = request.call().map_err(|error| failed(error.to_string()))?;
        let tools: ToolsResponse = read(response).map_err(|error| failed(error.text()))?;
        Ok(tools.into_schemas().collect())
    }

    /// Runs a call and gives its result; blocks for the call's timeout at most.
    pub(crate) fn execute(&self, call: &ExternalCall<'_>) -> ToolResult {
        let timeout = call.timeout;
        match self.post(call) {
            Ok(response) => {
                let mut result = if response.success {
                    ToolResult::ok("")
                } else {
                    ToolResult::failure(Outcome::ToolError, response.error)
                };
                result.output = response.output;
                result.metadata = response.metadata;
                result
            }
            Err(Failure::Timeout) => ToolResult::failure(
                Outcome::Timeout,
                format!("External tool timed out after {}s", float_text(timeout.as_secs_f64())),
            ),
            Err(failure) => {
                let may_have_executed = failure.may_have_executed();
                let error = format!("External tool failed: {}", failure.text());
                let mut result = ToolResult::failure(Outcome::ExternalFailed, error);
                result.may_have_executed = may_have_executed;
                result
            }
        }
    }

    fn post(&self, call: &ExternalCall<'_>) -> Result<ExecuteResponse, Failure> {
        let body = serde_json::to_vec(&ExecuteRequest {
            trajectory_id: call.trajectory_id,
            tool: Tool { name: call.name, arguments: call.arguments, uniq_id: call.uniq_id },
            timeout_s: call.timeout.as_secs_f64(),
            slot_id: call.slot_id,
            container_addr: call.container_addr,
        })
        .map_err(|error| Failure::NotSent(error.to_string()))?;
        let mut request =
            self.agent.post(self.execute.clone()).header("Content-Type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let request = request.config().timeout_global(Some(call.timeout)).build();
        read(request.send(&body[..])?)
    }
}

/// Why a request brought no answer that can be used.
enum Failure {
    /// Its time was up.
    Timeout,
    /// It did not reach the server.
    NotSent(String),
    /// The server refused it.
    Refused(u16, String),
    /// It may have reached the server.
    Broken(String),
}

impl Failure {
    fn text(self) -> String {
        match self {
            Failure::Timeout => "no answer in time".to_owned(),
            Failure::Refused(status, text) => format!("HTTP {status}: {text}"),
            Failure::NotSent(text) | Failure::Broken(text) => text,
        }
    }

    fn may_have_executed(&self) -> bool {
        match self {
            Failure::NotSent(_) => false,
            // 4xx: refused before anything ran. 5xx: nobody knows.
            Failure::Refused(status, _) => *status >= 500,
            Failure::Timeout | Failure::Broken(_) => true,
        }
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        let text = error.to_string();
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                Failure::NotSent(format!("cannot connect: {text}"))
            }
            ureq::Error::Timeout(_) => Failure::Timeout,
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Failure::NotSent(text),
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Failure::NotSent(text)
            }
            _ => Failure::Broken(text),
        }
    }
}

/// Reads an answer: a bounded body of Python's JSON under a status of success.
fn read<T: DeserializeOwned>(mut response: ureq::http::Response<ureq::Body>) -> Result<T, Failure> {
    let status = response.status();
    let body = response.body_mut().with_config().limit(MAX_RESPONSE).read_to_vec()?;
    let text = String::from_utf8_lossy(&body);
    if !status.is_success() {
        return Err(Failure::Refused(status.as_u16(), error_text(&text)));
    }
    let value = python_json::parse(&text)
        .map_err(|error| Failure::Broken(format!("the answer is not JSON: {error}")))?;
    serde_json::from_value(value)
        .map_err(|error| Failure::Broken(format!("the answer is not of the protocol: {error}")))
}

/// Looks the server's address up once and remembers it for a while.
///
/// The default resolver starts a thread for every request that has a time limit.
#[derive(Debug, Default)]
struct RememberingResolver {
    known: Mutex<Option<(Instant, String, Vec<SocketAddr>)>>,
}

impl Resolver for RememberingResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(ureq::Error::HostNotFound);
        };
        let host =
            DefaultResolver::host_and_port(scheme, authority).ok_or(ureq::Error::HostNotFound)?;
        let now = Instant::now();
        let remembered = self.known.lock().as_ref().and_then(|(since, known, addresses)| {
            let fresh = *known == host && now.duration_since(*since) < ADDRESS_LIFETIME;
            fresh.then(|| addresses.clone())
        });
        let addresses = match remembered {
            Some(addresses) => addresses,
            None => {
                let addresses: Vec<_> = host.to_socket_addrs()?.take(8).collect();
                *self.known.lock() = Some((now, host, addresses.clone()));
                addresses
            }
        };
        let mut result = self.empty();
        addresses.into_iter().for_each(|address| result.push(address));
        if result.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(result) }
    }
}
