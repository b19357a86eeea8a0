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
//! # Bad servers
//! One that answers and whose slots cannot be used – three in a row that cannot be emptied, or in
//! which no command can be started – is drained, left alone for a while, and tried again. `faults`
//! says when, and why no model can choose it; `reports` carries it to `members`.
//!
//! # Servers that are about to end
//! One of ours says so when it is asked to end: it is drained, and found again where another one
//! listens at its address.
//!
//! # What holds there
//! Limits, warm slots and isolation are told as the servers tell them in `/health`, at the start
//! and whenever one begins anew: of each the weakest, nothing where one of them does not say.

mod artifacts;
mod connection;
mod faults;
mod files;
mod list;
mod members;
mod native;
mod reference;
mod reports;
mod shares;
mod snapshots;
mod start;
mod waiting;

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use self::artifacts::SlotLease;
use self::connection::{Connection, MOST_REASONS};
use self::list::ServerList;
use self::members::{Member, Members};
use self::native::{Direct, NativeServer};
use self::reference::{ReferenceServer, StockRequests};
use self::reports::Reports;
use self::shares::Shares;
use self::snapshots::FleetSnapshots;
use self::start::GIVE_UP;
use super::{
    Artifacts, Backend, BadContainer, BeginReply, Capabilities, Container, Execution, ExecutionId,
    Isolation, ResetReply, SlotRef, Snapshots, Watcher, copy_in_parts, gives,
};
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactError, ArtifactList, ListArtifacts,
    PutFiles, PutSummary, ReadArtifact,
};
use crate::client::{self, Authorization, Names};
use crate::config::FleetConfig;
use crate::error::{BackendError, BeginFailure};
use crate::interrupt::Interrupt;
use crate::spec::TrajectorySpec;
use crate::workers::guarded;

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
    snapshots: FleetSnapshots,
}

/// What it takes to make a server of the fleet.
struct Making {
    config: FleetConfig,
    authorization: Option<Authorization>,
    names: Names,
    direct: Arc<Direct>,
    shares: Arc<Shares>,
    requests: Arc<StockRequests>,
    reports: Arc<Reports>,
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
        Ok(Self { making, connections, list, members, snapshots: FleetSnapshots::default() })
    }

    /// Whether there is a server that was met.
    pub(super) fn has_servers(&self) -> bool {
        !self.members.all().is_empty()
    }

    /// Whether there is one at this address, perhaps one that is to go and still in use.
    pub(super) fn has_server(&self, addr: &str) -> bool {
        self.members.get(addr).is_some()
    }

    /// The servers that have said that they are about to end.
    pub(super) fn ending(&self) -> Vec<String> {
        let members = self.members.all().into_iter();
        let ending = members.filter(|member| member.server.is_ending());
        ending.map(|member| member.connection.url).collect()
    }

    /// The servers that are bad: where, and why.
    pub(super) fn bad(&self) -> Vec<BadContainer> {
        self.making.reports.bad().0
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
            reports: Arc::new(Reports::new(config.bad_server_pause)),
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
        let image_ids = told.iter().map(|told| told.image_ids);
        let mut weakened_because: Vec<String> = Vec::new();
        for reason in told.iter().flat_map(|told| &told.weakened_because) {
            if weakened_because.len() < MOST_REASONS && !weakened_because.contains(reason) {
                weakened_because.push(reason.clone());
            }
        }
        let (bad_containers, containers_found_bad) = self.making.reports.bad();
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
            image_ids: image_ids.reduce(|a, b| Some(a?.max(b?))).flatten(),
            weakened_because,
            limits: limits.reduce(|a, b| Some(a?.weaker(b?))).flatten(),
            warm_slots: warm_slots.reduce(|a, b| Some(a? && b?)).flatten(),
            network: told
                .iter()
                .map(|told| told.network)
                .reduce(|a, b| Some(a?.wider(b?)))
                .flatten(),
            bad_containers,
            containers_found_bad,
            spec: told
                .iter()
                .map(|told| told.spec.clone())
                .reduce(|a, b| a.into_iter().filter(|field| b.contains(field)).collect())
                .unwrap_or_default(),
            ..Capabilities::default()
        }
    }

    fn artifacts(&self) -> Option<&dyn Artifacts> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
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

    fn begin(&self, slot: &SlotRef, spec: &Arc<TrajectorySpec>, reply: BeginReply) {
        match self.server(&slot.addr) {
            Some(Server::Native(server)) => server.begin(slot, spec, reply),
            // Its protocol knows no specs.
            Some(Server::Reference(_)) => reply.send(gives(spec, &[])),
            None => reply.send(Err(BeginFailure::lost("there is no such server"))),
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

    fn copy(
        &self,
        slot: &SlotRef,
        path: &str,
        into: &mut (dyn Write + Send),
    ) -> Result<u64, ArtifactError> {
        let connection = self.member(slot)?.connection;
        match self.lease_of(slot)? {
            Some(lease) => connection.copy_file(slot.index, lease, path, into),
            None => {
                let read = |request: &_| connection.read_artifact(&slot.name, None, request);
                copy_in_parts(path, into, read)
            }
        }
    }

    /// A server with the reference's routes takes no files.
    fn put(
        &self,
        slot: &SlotRef,
        request: &PutFiles,
        from: &mut (dyn Read + Send),
    ) -> Result<PutSummary, ArtifactError> {
        let connection = self.member(slot)?.connection;
        let lease = self.lease_of(slot)?.ok_or(ArtifactError::Unsupported)?;
        connection.put_files(slot.index, lease, request, from)
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

    /// Whether it has said that it is about to end.
    fn is_ending(&self) -> bool {
        match self {
            Self::Native(server) => server.is_ending(),
            Self::Reference(_) => false,
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
