//! A fleet: the executor over any number of sandbox servers, each a container behind a URL.
//!
//! What a server is it says itself, in `/health`: one of ours is spoken to in the native protocol
//! (`native`), any other in the reference's plain one (`stock`).
//!
//! # Threads
//! While the fleet starts one per server, `tool-meet-N`, which asks what it is.
//! One per server, `tool-fleet-N`, which keeps up the connection: for a native server it reads the
//! stream of results, and another, `tool-send-N`, sends what the threads that hand over do not. A
//! stock server answers a request only when its call is done, so each of its running calls takes a
//! thread, `tool-stock-N`; never more than the server has slots.
//!
//! # When a server does not answer
//! It is *unknown*: its calls wait, no trajectory is newly put there, and the connection is tried
//! again. If it is back within [`FleetConfig::unreachable_timeout`] nothing was lost, unless it has
//! begun anew. Else it is *down*: its calls end as
//! [`Outcome::SandboxLost`](crate::Outcome::SandboxLost), so do requests for its artifacts, and it is
//! tried on and on.
//!
//! # What holds there
//! Limits, warm slots and isolation are told as the servers tell them in `/health`, at the start and
//! whenever one begins anew: of each the weakest, nothing where one of them does not say.

mod artifacts;
mod native;
mod stock;

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{select, unbounded};
use parking_lot::Mutex;
use serde::Deserialize;
use ureq::Agent;
use ureq::http::Uri;

use self::native::{Direct, NativeServer};
use self::stock::StockServer;
use super::{
    Artifacts, Backend, Capabilities, Container, Execution, ExecutionId, Isolation, ResetReply,
    SlotRef, Watcher,
};
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    ReadArtifact,
};
use crate::client::{self, AgentConfig, Authorization, Failure};
use crate::config::FleetConfig;
use crate::error::{BackendError, BackendErrorKind, IsolationError};
use crate::interrupt::Interrupt;
use crate::limits::EnforcedLimits;
use crate::thread::OwnedThread;
use crate::wire::native::FEATURE;
use crate::wire::null_as_default;
use crate::workers::guarded;

/// How long a short request may take, one that its server answers at once: at most, and if servers
/// are given up so soon that there would be no time for another try.
const PROMPT: Duration = Duration::from_secs(5);
const PROMPT_LEAST: Duration = Duration::from_secs(1);
/// How long a native server may say nothing: some of its beats; one of them at least.
const SILENCE: Duration = Duration::from_secs(8);
const SILENCE_LEAST: Duration = Duration::from_secs(3);
/// How long a server is left alone after it did not answer: at first, and at most.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(1);
/// How long what is under way may take to end when a start is given up.
const GIVE_UP: Duration = Duration::from_millis(400);
/// How many servers are asked at a time when the fleet starts.
const ASKED_AT_ONCE: usize = 32;

/// The executor's side of a fleet of sandbox servers. Closed by the executor that uses it.
///
/// ```no_run
/// use tool_executor::ToolExecutor;
/// use tool_executor::backend::fleet::FleetBackend;
/// use tool_executor::config::FleetConfig;
///
/// let fleet = FleetConfig::new(["http://10.0.0.1:8080", "http://10.0.0.2:8080"]).with_token("…");
/// let executor = ToolExecutor::builder().backend(FleetBackend::new(fleet)?).start()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FleetBackend {
    config: FleetConfig,
    connections: Vec<Connection>,
    direct: Arc<Direct>,
    servers: Mutex<Vec<Server>>,
}

#[derive(Clone)]
enum Server {
    Native(Arc<NativeServer>),
    Stock(Arc<StockServer>),
}

impl FleetBackend {
    /// A fleet; connects to nothing yet.
    ///
    /// # Errors
    /// A URL, the token or a certificate makes no sense, or a URL is there twice.
    pub fn new(config: FleetConfig) -> Result<Self, BackendError> {
        config.check()?;
        let authorization =
            config.token.as_ref().map(|token| Authorization::bearer(token.expose())).transpose();
        let authorization = authorization.map_err(BackendError::new)?;
        let connect = |url: &String| Connection::new(url, authorization.clone(), &config);
        let connections = config.urls.iter().map(connect).collect::<Result<_, _>>();
        let connections = connections.map_err(BackendError::new)?;
        Ok(Self { config, connections, direct: Arc::default(), servers: Mutex::default() })
    }

    fn server(&self, container: usize) -> Option<Server> {
        self.servers.lock().get(container).cloned()
    }
}

/// What it takes to ask a server what it is, on a thread of its own.
struct Meeting {
    number: usize,
    connection: Connection,
    direct: Arc<Direct>,
    /// See [`FleetConfig::unreachable_timeout`].
    bound: Duration,
    deadline: Instant,
    /// Of this start: when it is interrupted, or another server cannot be used.
    interrupt: Interrupt,
}

impl Meeting {
    /// Asks until the server answers, the deadline, or the interrupt.
    fn meet(&self) -> Result<(Server, Container), BackendError> {
        let Self { number, connection, bound, deadline, .. } = self;
        let url = &connection.url;
        let unusable = |why: String| {
            BackendError::new(format!("the sandbox server {url} cannot be used: {why}"))
        };
        let mut pause = PAUSE_FIRST;
        // One name for all tries: an answer that was lost began it all the same.
        let session = native::new_session();
        loop {
            let met = connection.health().and_then(|features| {
                if features.iter().any(|feature| feature == FEATURE) {
                    let (connection, direct) = (connection.clone(), self.direct.clone());
                    let (server, slots) =
                        NativeServer::meet(*number, connection, *bound, direct, &session)?;
                    Ok((Server::Native(server), slots))
                } else {
                    let (server, slots) = StockServer::meet(*number, connection.clone(), *bound)?;
                    Ok((Server::Stock(server), slots))
                }
            });
            match met {
                Ok((server, slots)) => {
                    return Ok((server, Container { addr: url.clone(), slots }));
                }
                // What failed may have failed because of it.
                Err(_) if self.interrupt.is_interrupted() => {
                    return Err(BackendError::interrupted());
                }
                Err(_) if connection.is_barred() => {
                    let reason =
                        format!("the sandbox server {url} runs commands without isolation");
                    let remedy = "make bubblewrap work there (apt-get install bubblewrap) and start it \
                                  again";
                    return Err(BackendError::not_isolated(IsolationError::new(reason, remedy)));
                }
                Err(failure) if Instant::now() + pause >= *deadline => {
                    return Err(unusable(failure.text()));
                }
                // Waiting does not make a wrong token right.
                Err(Failure::Refused(status, text)) if matches!(status, 401 | 403 | 404) => {
                    return Err(unusable(format!("HTTP {status}: {text}")));
                }
                Err(_) => {
                    self.interrupt.wait_timeout(pause);
                }
            }
            pause = (pause * 2).min(PAUSE_MOST);
        }
    }
}

/// Meets these servers side by side, in their order. The first that cannot be used ends it for all, and so
/// does `interrupt`; the sessions that were begun are ended then.
fn meet_all(
    meetings: Vec<Meeting>,
    stop: &Interrupt,
    interrupt: &Interrupt,
) -> Result<Vec<(Server, Container)>, BackendError> {
    let (tell, told) = unbounded();
    let mut met: Vec<Option<(Server, Container)>> = Vec::new();
    let mut connections = Vec::new();
    let mut threads = Vec::new();
    let mut failure = None;
    for (place, meeting) in meetings.into_iter().enumerate() {
        met.push(None);
        connections.push(meeting.connection.clone());
        let tell = tell.clone();
        // Refused only after the start was given up.
        let ask = move || drop(tell.send((place, guarded(|| meeting.meet()))));
        match OwnedThread::spawn(format!("tool-meet-{place}"), ask) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                let error = BackendError::with_source("cannot start a thread", error);
                failure = Some(error.with_kind(BackendErrorKind::Shortage));
                break;
            }
        }
    }
    drop(tell);
    while failure.is_none() {
        select! {
            recv(told) -> told => match told {
                Ok((place, Ok(Ok(server)))) => met[place] = Some(server),
                Ok((_, Ok(Err(error)))) => failure = Some(error),
                Ok((_, Err(panic))) => {
                    failure = Some(BackendError::new(format!("asking a server panicked: {panic}")));
                }
                // All have told.
                Err(_) => break,
            },
            recv(interrupt.fired()) -> _ => failure = Some(BackendError::interrupted()),
        }
    }
    let deadline = Instant::now() + GIVE_UP;
    if failure.is_some() {
        stop.interrupt();
        // But for those that are to be told that their session is over.
        let unmet = connections.iter().zip(&met).filter(|(_, met)| met.is_none());
        unmet.for_each(|(connection, _)| connection.interrupt());
    }
    // One that looks a name up cannot be stopped, and is left behind.
    threads.into_iter().for_each(|thread| thread.join_or_leave(deadline));
    let Some(failure) = failure else { return Ok(met.into_iter().flatten().collect()) };
    for (place, server) in told.try_iter() {
        met[place] = server.ok().and_then(Result::ok);
    }
    let servers: Vec<_> = met.into_iter().flatten().map(|(server, _)| server).collect();
    close_all(&servers, Instant::now() + GIVE_UP);
    Err(failure)
}

impl Backend for FleetBackend {
    fn start(&self, interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        let deadline = Instant::now() + self.config.start_timeout;
        let stop = Interrupt::new();
        let mut meetings: Vec<_> = self
            .connections
            .iter()
            .enumerate()
            .map(|(number, connection)| Meeting {
                number,
                connection: connection.clone(),
                direct: self.direct.clone(),
                bound: self.config.unreachable_timeout,
                deadline,
                interrupt: stop.clone(),
            })
            .collect();
        let mut servers = Vec::new();
        let mut containers = Vec::new();
        while !meetings.is_empty() {
            let some = meetings.drain(..meetings.len().min(ASKED_AT_ONCE)).collect();
            match meet_all(some, &stop, interrupt) {
                Ok(met) => {
                    let (met, of_them): (Vec<_>, Vec<_>) = met.into_iter().unzip();
                    servers.extend(met);
                    containers.extend(of_them);
                }
                Err(error) => {
                    close_all(&servers, Instant::now() + GIVE_UP);
                    return Err(error);
                }
            }
        }
        for connection in &self.connections {
            if connection.told.lock().isolates.is_none() {
                let url = &connection.url;
                log::warn!(
                    "the sandbox server {url} does not say whether commands are isolated there"
                );
            }
        }
        *self.servers.lock() = servers;
        Ok(containers)
    }

    fn capabilities(&self) -> Capabilities {
        // Of each the weakest; nothing where one of them does not say.
        let told: Vec<_> =
            self.connections.iter().map(|connection| connection.told.lock().clone()).collect();
        let mut with_told = self.connections.iter().zip(&told);
        let unisolated = with_told.find(|(_, told)| told.isolates == Some(false));
        let all_isolate = told.iter().all(|told| told.isolates == Some(true));
        let limits = told.iter().map(|told| told.limits);
        let warm_slots = told.iter().map(|told| told.warm_slots);
        Capabilities {
            starts_dirty: true,
            isolation: match unisolated {
                Some((connection, _)) => Isolation::NotIsolated(format!(
                    "the sandbox server {} says that it has no bubblewrap",
                    connection.url
                )),
                None if all_isolate => Isolation::Isolated,
                None => Isolation::Unknown,
            },
            limits: limits.reduce(|a, b| Some(a?.weaker(b?))).flatten(),
            warm_slots: warm_slots.reduce(|a, b| Some(a? && b?)).flatten(),
            ..Capabilities::default()
        }
    }

    fn artifacts(&self) -> Option<&dyn Artifacts> {
        Some(self)
    }

    fn watch(&self, watcher: Watcher) {
        for server in self.servers.lock().iter() {
            let started = match server {
                Server::Native(server) => server.watch(watcher.clone()),
                Server::Stock(server) => server.watch(watcher.clone()),
            };
            if let Err(error) = started {
                log::error!("no thread for a sandbox server, its calls will be lost: {error}");
            }
        }
    }

    fn execute(&self, container: usize, batch: Vec<Execution>) {
        // A batch that is dropped answers that it has no result.
        match self.server(container) {
            Some(Server::Native(server)) => server.execute(batch),
            Some(Server::Stock(server)) => server.execute(batch),
            None => {}
        }
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        match self.server(slot.container) {
            Some(Server::Native(server)) => server.reset(slot, reply),
            Some(Server::Stock(server)) => server.reset(slot, reply),
            None => {}
        }
    }

    fn cancel(&self, id: ExecutionId) {
        // Which server has it, only that one knows.
        // Not under the lock: it sends.
        let servers = self.servers.lock().clone();
        for server in &servers {
            if let Server::Native(server) = server
                && server.cancel(id)
            {
                return;
            }
        }
    }

    fn close(&self, deadline: Instant) {
        let servers = std::mem::take(&mut *self.servers.lock());
        close_all(&servers, deadline);
    }
}

impl Artifacts for FleetBackend {
    fn read(&self, slot: &SlotRef, request: &ReadArtifact) -> Result<Artifact, ArtifactError> {
        self.connection(slot)?.read_artifact(&slot.name, request)
    }

    fn list(&self, slot: &SlotRef, request: &ListArtifacts) -> Result<ArtifactList, ArtifactError> {
        self.connection(slot)?.list_artifacts(&slot.name, request)
    }

    fn archive(
        &self,
        slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        let is_native = matches!(self.server(slot.container), Some(Server::Native(_)));
        let index = is_native.then_some(slot.index);
        self.connection(slot)?.archive_artifacts(&slot.name, index, request, into)
    }
}

/// Closes them side by side: one that hangs holds up no other.
fn close_all(servers: &[Server], deadline: Instant) {
    thread::scope(|scope| {
        let close = |server| move || Server::close(server, deadline);
        let start = |server| {
            let thread = thread::Builder::new().name("tool-close".to_owned());
            thread.spawn_scoped(scope, close(server))
        };
        let started: Vec<_> = servers.iter().map(|server| (server, start(server))).collect();
        for (server, thread) in started {
            let panicked = match thread {
                Ok(thread) => thread.join().is_err(),
                // Without a thread of its own: one after the other.
                Err(_) => guarded(close(server)).is_err(),
            };
            if panicked {
                log::error!("closing a sandbox server panicked");
            }
        }
    });
}

impl FleetBackend {
    fn connection(&self, slot: &SlotRef) -> Result<&Connection, ArtifactError> {
        let missing = || ArtifactError::SandboxLost("there is no such server".to_owned());
        self.connections.get(slot.container).ok_or_else(missing)
    }
}

impl Server {
    fn close(&self, deadline: Instant) {
        match self {
            Server::Native(server) => server.close(deadline),
            Server::Stock(server) => server.close(deadline),
        }
    }
}

impl fmt::Debug for FleetBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetBackend").field("config", &self.config).finish_non_exhaustive()
    }
}

/// How requests reach one server.
#[derive(Clone)]
struct Connection {
    url: String,
    authorization: Option<Authorization>,
    /// How long a request may take that is answered at once.
    prompt: Duration,
    /// How long the stream of results may say nothing.
    silence: Duration,
    /// For requests that may be repeated; keeps idle connections.
    pooled: Agent,
    /// For those that may not: a connection that the server is just closing would lose them.
    fresh: Agent,
    /// For artifacts, which may take their time.
    patient: Arc<Patient>,
    /// What the server last said of itself.
    told: Arc<Mutex<Told>>,
    /// See [`FleetConfig::allow_unisolated`].
    allow_unisolated: bool,
}

/// An agent for requests that end when the server is given up.
struct Patient {
    ca_pem: Option<String>,
    /// None while it is given up.
    agent: Mutex<Option<Agent>>,
}

/// What `/health` says, as far as it matters.
#[derive(Debug, Deserialize)]
struct Health {
    status: String,
    #[serde(default, deserialize_with = "null_as_default")]
    features: Vec<String>,
    #[serde(default)]
    bwrap_available: Option<bool>,
    /// Anybody's, in whatever form.
    #[serde(default)]
    limits: serde_json::Value,
    #[serde(default)]
    warm_slots: Option<bool>,
}

/// What a server says of its slots.
#[derive(Clone)]
struct Told {
    /// `None` where it does not say.
    isolates: Option<bool>,
    limits: Option<EnforcedLimits>,
    warm_slots: Option<bool>,
}

impl Patient {
    fn agent(ca_pem: Option<&str>) -> Result<Agent, String> {
        let read_timeout = Some(artifacts::TIME);
        client::agent(AgentConfig { idle_connections: 4, read_timeout, ca_pem })
    }

    /// Ends what is under way; nothing begins until it is taken back.
    fn give_up(&self) {
        let agent = self.agent.lock().take();
        if let Some(agent) = agent {
            agent.shutdown();
        }
    }

    fn take_back(&self) {
        let mut agent = self.agent.lock();
        if agent.is_none() {
            // The certificates were read before.
            *agent = Self::agent(self.ca_pem.as_deref()).ok();
        }
    }
}

impl Connection {
    fn new(
        url: &str,
        authorization: Option<Authorization>,
        config: &FleetConfig,
    ) -> Result<Self, String> {
        let url = url.trim_end_matches('/').to_owned();
        client::endpoint("sandbox server", &url, "/health")?;
        let agent = |idle_connections, read_timeout| {
            let ca_pem = config.ca_pem.as_deref();
            client::agent(AgentConfig { idle_connections, read_timeout, ca_pem })
        };
        let silence = (config.unreachable_timeout / 2).clamp(SILENCE_LEAST, SILENCE);
        Ok(Self {
            url,
            authorization,
            prompt: (config.unreachable_timeout / 4).clamp(PROMPT_LEAST, PROMPT),
            silence,
            pooled: agent(4, Some(silence))?,
            fresh: agent(0, None)?,
            patient: Arc::new(Patient {
                agent: Mutex::new(Some(Patient::agent(config.ca_pem.as_deref())?)),
                ca_pem: config.ca_pem.clone(),
            }),
            told: Arc::new(Mutex::new(Told { isolates: None, limits: None, warm_slots: None })),
            allow_unisolated: config.allow_unisolated,
        })
    }

    fn uri(&self, path: &str) -> Result<Uri, Failure> {
        client::endpoint("sandbox server", &self.url, path).map_err(Failure::NotSent)
    }

    /// Posts JSON, and gives the response as soon as its head is there.
    fn post(
        &self,
        agent: &Agent,
        path: &str,
        body: &[u8],
        timeout: Option<Duration>,
    ) -> Result<ureq::http::Response<ureq::Body>, Failure> {
        let request = agent.post(self.uri(path)?).header("Content-Type", "application/json");
        let request = client::authorize(request, self.authorization.as_ref());
        let request = request.config().timeout_connect(Some(self.prompt)).timeout_global(timeout);
        Ok(request.build().send(body)?)
    }

    /// Asks how it is, and notes what it says; gives its features.
    fn health(&self) -> Result<Vec<String>, Failure> {
        let health: Health = self.get("/health")?;
        if health.status != "ok" {
            return Err(Failure::Broken(format!("its status is {:?}", health.status)));
        }
        *self.told.lock() = Told {
            isolates: health.bwrap_available,
            limits: serde_json::from_value(health.limits).ok(),
            warm_slots: health.warm_slots,
        };
        if self.is_barred() {
            return Err(Failure::Broken("it runs commands without isolation".to_owned()));
        }
        Ok(health.features)
    }

    /// Whether the server says that it does not isolate commands, and may not be used therefore.
    fn is_barred(&self) -> bool {
        !self.allow_unisolated && self.told.lock().isolates == Some(false)
    }

    fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self.fresh.get(self.uri(path)?);
        let request = client::authorize(request, self.authorization.as_ref());
        client::read_json(request.config().timeout_global(Some(self.prompt)).build().call()?)
    }

    /// Ends what is under way.
    fn interrupt(&self) {
        self.pooled.clone().shutdown();
        self.fresh.clone().shutdown();
        self.patient.give_up();
    }
}
