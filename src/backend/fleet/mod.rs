//! A fleet: the executor over any number of sandbox servers, each a container behind a URL.
//!
//! What a server is it says itself, in `/health`: one of ours is spoken to in the native protocol
//! (`native`), any other in the reference's plain one (`reference`). One that speaks another
//! version of the native protocol is refused by name.
//!
//! # Sharing
//! Any number of executors share a server of ours: each has those of its slots that were leased to
//! it, and gives some back when others miss theirs. `shares` decides how many are asked of which
//! server where the executor wants a number of them ([`FleetConfig::slots`]). A reference server
//! belongs to one executor.
//!
//! # Threads
//! While the fleet starts one per server, `tool-connect-N`, which asks what it is.
//! One per server, `tool-fleet-N`, which keeps up the connection: for a native server it reads the
//! stream of results, and another, `tool-send-N`, sends what the threads that hand over do not, and
//! from the beginning of the session on that the executor is there. A reference server answers a
//! request only when its call is done; the requests to all of them share one thread,
//! `tool-requests`, which waits for their sockets.
//!
//! # While the fleet starts
//! Servers that are not there yet are waited for, and warnings say which and why. What waiting
//! cannot mend ends the start at once: a wrong token, `http` to a server that speaks `https` or
//! the other way round, a certificate that is not right.
//!
//! # Servers that come and go
//! The servers may be others later: [`Backend::use_containers`] says which, or a list that is read
//! again and again ([`FleetConfig::servers_file`], [`FleetConfig::servers_name`]). `members` brings
//! the fleet to it.
//!
//! # When a server does not answer
//! It is *unknown*: its calls wait, no trajectory is newly put there, and the connection is tried
//! again. If it is back within [`FleetConfig::unreachable_timeout`] nothing was lost, unless it
//! has begun anew. Else it is *down*: its calls end as
//! [`Outcome::SandboxLost`](crate::Outcome::SandboxLost), so do requests for its artifacts, and it
//! is tried on and on.
//!
//! # What holds there
//! Limits, warm slots and isolation are told as the servers tell them in `/health`, at the start
//! and whenever one begins anew: of each the weakest, nothing where one of them does not say.

mod artifacts;
mod list;
mod members;
mod native;
mod reference;
mod shares;
mod start;
mod waiting;

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::ClientConfig;
use serde::Deserialize;
use ureq::Agent;
use ureq::http::Uri;

use self::artifacts::SlotLease;
use self::list::ServerList;
use self::members::{Member, Members};
use self::native::{Direct, NativeServer};
use self::reference::{ReferenceServer, StockRequests};
use self::shares::Shares;
use self::start::GIVE_UP;
use super::{
    Artifacts, Backend, Capabilities, Container, Execution, ExecutionId, Isolation, ResetReply,
    SlotRef, Watcher,
};
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    ReadArtifact,
};
use crate::client::{self, AgentConfig, Authorization, Failure, Names};
use crate::config::{FleetConfig, NetworkMode};
use crate::error::BackendError;
use crate::interrupt::Interrupt;
use crate::level::IsolationLevel;
use crate::limits::EnforcedLimits;
use crate::wire::null_as_default;
use crate::workers::guarded;

/// How long a short request may take, one that its server answers at once: at most, and if servers
/// are given up so soon that there would be no time for another try.
const PROMPT: Duration = Duration::from_secs(5);
const PROMPT_LEAST: Duration = Duration::from_secs(1);
/// How long a native server may say nothing: some of its beats; one of them at least.
const STALL_TIMEOUT: Duration = Duration::from_secs(8);
const STALL_TIMEOUT_LEAST: Duration = Duration::from_secs(3);
/// How long a server is left alone after it did not answer: at first, and at most.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(1);

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
    making: Arc<Making>,
    /// To the servers that it is started with.
    connections: Vec<Connection>,
    list: Option<ServerList>,
    members: Members,
}

/// What it takes to make a server of the fleet.
struct Making {
    config: FleetConfig,
    authorization: Option<Authorization>,
    names: Names,
    direct: Arc<Direct>,
    shares: Arc<Shares>,
    requests: Arc<StockRequests>,
}

#[derive(Clone)]
enum Server {
    Native(Arc<NativeServer>),
    Reference(Arc<ReferenceServer>),
}

impl FleetBackend {
    /// A fleet; connects to nothing yet.
    ///
    /// # Errors
    /// A URL, the token or a certificate makes no sense, or a URL is there twice.
    pub fn new(config: FleetConfig) -> Result<Self, BackendError> {
        config.check()?;
        Self::growing(config)
    }

    /// A fleet that may begin without servers.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(super) fn growing(config: FleetConfig) -> Result<Self, BackendError> {
        let authorization =
            config.token.as_ref().map(|token| Authorization::bearer(token.expose())).transpose();
        let authorization = authorization.map_err(BackendError::new)?;
        let tls = client::tls_config(config.ca_pem.as_deref()).map_err(BackendError::new)?;
        let making = Arc::new(Making::new(config, authorization, tls));
        let connect = |url: &String| making.connection(url);
        let connections = making.config.urls.iter().map(connect).collect::<Result<_, _>>();
        let connections = connections.map_err(BackendError::new)?;
        let (file, name) = (&making.config.servers_file, &making.config.servers_name);
        let list = file.clone().map(ServerList::File);
        let list = list.or_else(|| name.clone().map(ServerList::Name));
        let members = Members::new(making.clone());
        Ok(Self { making, connections, list, members })
    }

    /// Whether there is a server that was met.
    pub(super) fn has_servers(&self) -> bool {
        !self.members.all().is_empty()
    }

    /// Whether there is one at this address, perhaps one that is to go and still in use.
    pub(super) fn has_server(&self, addr: &str) -> bool {
        self.members.get(addr).is_some()
    }

    fn server(&self, addr: &str) -> Option<Server> {
        self.members.get(addr).map(|member| member.server)
    }
}

impl Making {
    fn new(
        config: FleetConfig,
        authorization: Option<Authorization>,
        tls: Arc<ClientConfig>,
    ) -> Self {
        let names = Names::new();
        let offset = uuid::Uuid::new_v4().as_u128() as usize;
        Self {
            direct: Arc::default(),
            shares: Arc::new(Shares::new(config.slots, config.urls.len(), offset)),
            requests: Arc::new(StockRequests::new(names.clone(), tls)),
            config,
            authorization,
            names,
        }
    }

    /// How the server at this URL is reached; it is not connected to yet.
    ///
    /// # Errors
    /// The URL makes no sense, as one line that names it.
    fn connection(&self, url: &str) -> Result<Connection, String> {
        Connection::new(url, self.authorization.clone(), &self.config, &self.names)
    }
}

impl Backend for FleetBackend {
    fn start(&self, interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        match &self.list {
            None => self.meet_servers(interrupt),
            Some(list) => {
                let deadline = Instant::now() + self.making.config.start_timeout;
                let met = self.members.await_first(list, deadline, interrupt);
                // The others are added as they come.
                met.map(|()| Vec::new()).inspect_err(|_| self.close(Instant::now() + GIVE_UP))
            }
        }
    }

    fn capabilities(&self) -> Capabilities {
        // Of each the weakest; nothing where one of them does not say.
        let members = self.members.all();
        let told: Vec<_> =
            members.iter().map(|member| member.connection.advertised.lock().clone()).collect();
        let mut with_told = members.iter().zip(&told);
        let unisolated = with_told.find(|(_, told)| told.isolates == Some(false));
        let all_isolate = !told.is_empty() && told.iter().all(|told| told.isolates == Some(true));
        let limits = told.iter().map(|told| told.limits);
        let warm_slots = told.iter().map(|told| told.warm_slots);
        let levels = told.iter().map(|told| told.level);
        let mut weakened_because: Vec<String> = Vec::new();
        for reason in told.iter().flat_map(|told| &told.weakened_because) {
            if weakened_because.len() < MOST_REASONS && !weakened_because.contains(reason) {
                weakened_because.push(reason.clone());
            }
        }
        Capabilities {
            starts_dirty: true,
            may_grow: true,
            isolation: match unisolated {
                Some((member, _)) => Isolation::NotIsolated(format!(
                    "the sandbox server {} says that it does not isolate commands",
                    member.connection.url
                )),
                None if all_isolate => Isolation::Isolated,
                None => Isolation::Unknown,
            },
            isolation_level: levels.reduce(|a, b| Some(a?.max(b?))).flatten(),
            weakened_because,
            limits: limits.reduce(|a, b| Some(a?.weaker(b?))).flatten(),
            warm_slots: warm_slots.reduce(|a, b| Some(a? && b?)).flatten(),
            network: told
                .iter()
                .map(|told| told.network)
                .reduce(|a, b| Some(a?.wider(b?)))
                .flatten(),
            ..Capabilities::default()
        }
    }

    fn artifacts(&self) -> Option<&dyn Artifacts> {
        Some(self)
    }

    fn watch(&self, watcher: Watcher) {
        self.members.watch(watcher);
    }

    fn use_containers(&self, addrs: &[String]) -> Result<(), BackendError> {
        if let Some(list) = &self.list {
            let text = format!("the sandbox servers are those of {}: change that", list.what());
            return Err(BackendError::new(text));
        }
        self.members.want(addrs)
    }

    fn execute(&self, addr: &str, batch: Vec<Execution>) {
        // A batch that is dropped answers that it has no result.
        match self.server(addr) {
            Some(Server::Native(server)) => server.execute(batch),
            Some(Server::Reference(server)) => server.execute(batch),
            None => {}
        }
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        match self.server(&slot.addr) {
            Some(Server::Native(server)) => server.reset(slot, reply),
            Some(Server::Reference(server)) => server.reset(slot, reply),
            None => {}
        }
    }

    fn give_back(&self, slot: &SlotRef, grant: u64) {
        match self.server(&slot.addr) {
            Some(Server::Native(server)) => server.give_back(slot.index, grant),
            Some(Server::Reference(server)) => server.give_back(slot.index, grant),
            None => {}
        }
        self.members.given_back();
    }

    fn cancel(&self, id: ExecutionId) {
        // Which server has it, only that one knows.
        for member in self.members.all() {
            if let Server::Native(server) = member.server
                && server.cancel(id)
            {
                return;
            }
        }
    }

    fn close(&self, deadline: Instant) {
        let servers = self.members.close(deadline);
        self.making.requests.close(deadline);
        close_all(&servers, deadline);
    }
}

impl Artifacts for FleetBackend {
    fn read(&self, slot: &SlotRef, request: &ReadArtifact) -> Result<Artifact, ArtifactError> {
        self.member(slot)?.connection.read_artifact(&slot.name, self.lease_of(slot)?, request)
    }

    fn list(&self, slot: &SlotRef, request: &ListArtifacts) -> Result<ArtifactList, ArtifactError> {
        self.member(slot)?.connection.list_artifacts(&slot.name, self.lease_of(slot)?, request)
    }

    fn archive(
        &self,
        slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        let connection = self.member(slot)?.connection;
        match self.lease_of(slot)? {
            Some(lease) => connection.stream_archive(slot.index, lease, request, into),
            None => connection.archive_artifacts(&slot.name, request, into),
        }
    }
}

/// Says that a server is used no more.
fn warn_given_up(url: &str, why: &str) {
    log::warn!(
        "the sandbox server {url} is given up and its calls are lost: {why}; it is asked again until it answers"
    );
}

/// Closes them side by side: one that hangs holds up no other.
fn close_all(servers: &[Server], deadline: Instant) {
    thread::scope(|scope| {
        let close = |server| move || Server::close(server, deadline);
        let start = |server| {
            #[expect(
                clippy::disallowed_methods,
                reason = "named, and the scope is its owner and its end"
            )]
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
    fn member(&self, slot: &SlotRef) -> Result<Member, ArtifactError> {
        let missing = || ArtifactError::SandboxLost("there is no such server".to_owned());
        self.members.get(&slot.addr).ok_or_else(missing)
    }

    /// Under which lease the slot is read, where it is a native server's.
    fn lease_of(&self, slot: &SlotRef) -> Result<Option<SlotLease>, ArtifactError> {
        let Some(Server::Native(server)) = self.server(&slot.addr) else { return Ok(None) };
        let lost = || ArtifactError::SandboxLost("the slot is the executor's no more".to_owned());
        let (session, epoch) = server.lease_of(slot.index).ok_or_else(lost)?;
        Ok(Some(SlotLease { session, epoch }))
    }
}

impl Server {
    /// Tells `watcher` from now on what becomes of it, and now which slots it gives.
    fn watch(&self, watcher: Watcher) -> std::io::Result<()> {
        match self {
            Self::Native(server) => server.watch(watcher),
            Self::Reference(server) => server.watch(watcher),
        }
    }

    /// Tells which slots it gives, after some were given back.
    fn tell_slots(&self) {
        match self {
            Self::Native(server) => server.tell_slots(),
            Self::Reference(server) => server.tell_slots(),
        }
    }

    /// Whether no slot of it is in use, or it is given up.
    fn is_unused(&self) -> bool {
        match self {
            Self::Native(server) => server.is_unused(),
            Self::Reference(server) => server.is_unused(),
        }
    }

    fn close(&self, deadline: Instant) {
        match self {
            Server::Native(server) => server.close(deadline),
            Server::Reference(server) => server.close(deadline),
        }
    }
}

impl fmt::Debug for FleetBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetBackend").field("config", &self.making.config).finish_non_exhaustive()
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
    stall_timeout: Duration,
    /// For requests that may be repeated; keeps idle connections.
    pooled: Agent,
    /// For those that may not: a connection that the server is just closing would lose them.
    fresh: Agent,
    /// For artifacts, which may take their time.
    patient: Arc<Patient>,
    /// What the server last said of itself.
    advertised: Arc<Mutex<Advertised>>,
    /// See [`FleetConfig::allow_unisolated`].
    allow_unisolated: bool,
}

/// An agent for requests that end when the server is given up.
struct Patient {
    ca_pem: Option<String>,
    names: Names,
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
    /// Of a later version it may be one that is not known here.
    #[serde(default)]
    network: serde_json::Value,
    #[serde(default)]
    isolation_level: Option<IsolationLevel>,
    /// Anybody's, in whatever form.
    #[serde(default)]
    weakened_because: serde_json::Value,
}

/// The most reasons why slots are not isolated further, and their longest.
const MOST_REASONS: usize = 8;
const LONGEST_REASON: usize = 300;

/// Why a server's slots are not isolated further, as far as it says so in words that one can show.
fn reasons(told: serde_json::Value) -> Vec<String> {
    let told: Vec<String> = serde_json::from_value(told).unwrap_or_default();
    let is_plain =
        |text: &String| text.len() <= LONGEST_REASON && !text.chars().any(char::is_control);
    told.into_iter().filter(is_plain).take(MOST_REASONS).collect()
}

/// What a server says of its slots.
#[derive(Clone)]
struct Advertised {
    /// `None` where it does not say.
    isolates: Option<bool>,
    limits: Option<EnforcedLimits>,
    warm_slots: Option<bool>,
    network: Option<NetworkMode>,
    level: Option<IsolationLevel>,
    /// Of a length that a server's words may have.
    weakened_because: Vec<String>,
}

impl Patient {
    fn agent(ca_pem: Option<&str>, names: &Names) -> Result<Agent, String> {
        let read_timeout = Some(artifacts::TIME);
        client::agent(AgentConfig { idle_connections: 4, read_timeout, ca_pem, names })
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
            *agent = Self::agent(self.ca_pem.as_deref(), &self.names).ok();
        }
    }
}

impl Connection {
    fn new(
        url: &str,
        authorization: Option<Authorization>,
        config: &FleetConfig,
        names: &Names,
    ) -> Result<Self, String> {
        let url = url.trim_end_matches('/').to_owned();
        client::endpoint("sandbox server", &url, "/health")?;
        let agent = |idle_connections, read_timeout| {
            let ca_pem = config.ca_pem.as_deref();
            client::agent(AgentConfig { idle_connections, read_timeout, ca_pem, names })
        };
        let stall_timeout =
            (config.unreachable_timeout / 2).clamp(STALL_TIMEOUT_LEAST, STALL_TIMEOUT);
        Ok(Self {
            url,
            authorization,
            prompt: (config.unreachable_timeout / 4).clamp(PROMPT_LEAST, PROMPT),
            stall_timeout,
            pooled: agent(4, Some(stall_timeout))?,
            fresh: agent(0, None)?,
            patient: Arc::new(Patient {
                agent: Mutex::new(Some(Patient::agent(config.ca_pem.as_deref(), names)?)),
                ca_pem: config.ca_pem.clone(),
                names: names.clone(),
            }),
            advertised: Arc::new(Mutex::new(Advertised {
                isolates: None,
                limits: None,
                warm_slots: None,
                network: None,
                level: None,
                weakened_because: Vec::new(),
            })),
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
        *self.advertised.lock() = Advertised {
            isolates: health.bwrap_available,
            limits: serde_json::from_value(health.limits).ok(),
            warm_slots: health.warm_slots,
            network: serde_json::from_value(health.network).ok(),
            level: health.isolation_level,
            weakened_because: reasons(health.weakened_because),
        };
        if self.is_barred() {
            return Err(Failure::Broken("it runs commands without isolation".to_owned()));
        }
        Ok(health.features)
    }

    /// Whether the server says that it does not isolate commands, and may not be used therefore.
    fn is_barred(&self) -> bool {
        !self.allow_unisolated && self.advertised.lock().isolates == Some(false)
    }

    /// Whether the server speaks the other one of `http` and `https`: then how its URL begins.
    fn other_scheme(&self) -> Option<String> {
        client::other_scheme(&self.fresh, &self.uri("/health").ok()?, self.prompt)
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
        self.patient.names.give_up();
        self.patient.give_up();
    }
}
