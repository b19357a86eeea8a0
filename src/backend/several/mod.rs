//! Several backends as one: this machine's slots and those of sandbox servers, say, or two fleets.
//!
//! The first is preferred; each other one gets what those before it have no free slot for, or
//! cannot give. The executor's pool, which knows the backends as [tiers](super::Backend::tiers),
//! decides which trajectory is put where; here calls only find their way. Each backend's containers
//! are told apart by its name: `NAME/ADDRESS`. Within it they have the addresses that they always
//! have.
//!
//! It has no threads of its own but while it closes, and no state: what names a container or a slot
//! says whose it is. What names an execution or a snapshot only is asked of each.

mod files;
mod together;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Artifacts, Backend, BeginReply, Capabilities, Container, ContainerUse, Demand, Execution,
    ExecutionId, ResetReply, SlotRef, Snapshots, Tier, Watcher, tier,
};
use crate::config::{MOST_BACKENDS, check_backend_name};
use crate::error::{BackendError, BackendErrorKind, BeginFailure, ConfigError};
use crate::interrupt::Interrupt;
use crate::spec::TrajectorySpec;
use crate::thread::OwnedThread;
use crate::workers::guarded;

/// Several backends in order of preference. See [`Tier`] for what the executor makes of them.
///
/// ```no_run
/// use tool_executor::ToolExecutor;
/// use tool_executor::backend::Several;
/// use tool_executor::backend::fleet::FleetBackend;
/// use tool_executor::backend::local::LocalBackend;
/// use tool_executor::config::{FleetConfig, LocalConfig};
///
/// let here = LocalBackend::start(LocalConfig::new(8))?;
/// let there = FleetBackend::new(FleetConfig::new(["http://n1:8080", "http://n2:8080"]))?;
/// let both = Several::new().with("here", here)?.with("there", there)?;
/// let executor = ToolExecutor::builder().backend(both).start()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct Several {
    members: Vec<Member>,
}

struct Member {
    name: String,
    spill_after: Duration,
    backend: Arc<dyn Backend>,
}

impl Several {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more, after those that there are: used as soon as they have no free slot.
    ///
    /// # Errors
    /// The name is taken, or is none; or there are too many.
    pub fn with(self, name: &str, backend: impl Backend) -> Result<Self, ConfigError> {
        self.with_shared(name, Duration::ZERO, Arc::new(backend))
    }

    /// With one more, which a trajectory gets a slot of when it has waited for so long for the
    /// others.
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn with_shared(
        mut self,
        name: &str,
        spill_after: Duration,
        backend: Arc<dyn Backend>,
    ) -> Result<Self, ConfigError> {
        check_backend_name(name)?;
        if self.members.iter().any(|member| member.name == name) {
            let text = format!("two backends are called {name:?}: give one of them another name");
            return Err(ConfigError::new(text));
        }
        if self.members.len() == MOST_BACKENDS {
            return Err(ConfigError::new(format!("there are more than {MOST_BACKENDS} backends")));
        }
        self.members.push(Member { name: name.to_owned(), spill_after, backend });
        Ok(self)
    }

    /// The backend that an address is of, and what the address is there.
    fn at<'a>(&self, addr: &'a str) -> Option<(&Member, &'a str)> {
        let names = self.members.iter().map(|member| &*member.name);
        let (number, there) = tier::split(names, addr)?;
        Some((&self.members[number], there))
    }

    /// The backend that a slot is of, and what the slot is there.
    fn of(&self, slot: &SlotRef) -> Option<(&Member, SlotRef)> {
        let (member, there) = self.at(&slot.addr)?;
        Some((member, SlotRef { addr: there.into(), ..slot.clone() }))
    }
}

impl Member {
    /// The address that one of its containers has outside.
    fn outside(&self, addr: &str) -> String {
        format!("{}/{addr}", self.name)
    }

    fn tier(&self) -> Tier {
        let capabilities = guarded(|| self.backend.capabilities()).unwrap_or_default();
        Tier { name: self.name.clone(), spill_after: self.spill_after, capabilities }
    }
}

/// What names no container of a member's: nothing that the executor has from here does so.
fn unknown(slot: &SlotRef) -> String {
    format!("no backend has the container {:?}", slot.addr)
}

impl Backend for Several {
    fn start(&self, interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        let mut containers = Vec::new();
        for (number, member) in self.members.iter().enumerate() {
            match member.backend.start(interrupt) {
                Ok(more) => containers.extend(more.into_iter().map(|container| Container {
                    addr: member.outside(&container.addr),
                    ..container
                })),
                Err(error) => {
                    close(&self.members[..number], Instant::now() + START_MARGIN);
                    return Err(match error.kind() {
                        BackendErrorKind::Interrupted => error,
                        _ => BackendError::with_source(format!("in {:?}", member.name), error),
                    });
                }
            }
        }
        Ok(containers)
    }

    /// What holds wherever a call runs: of each the weakest, and nothing where one does not say.
    fn capabilities(&self) -> Capabilities {
        together::together(&self.tiers())
    }

    fn tiers(&self) -> Vec<Tier> {
        self.members.iter().map(Member::tier).collect()
    }

    fn demand(&self, demand: &Demand) {
        for (member, wanted) in self.members.iter().zip(&demand.tiers) {
            let inside = |used: &ContainerUse| {
                let there = used.addr.strip_prefix(&*member.name)?.strip_prefix('/')?;
                Some(ContainerUse { addr: there.into(), ..used.clone() })
            };
            let containers = wanted.containers.iter().filter_map(inside).collect();
            member.backend.demand(&Demand { containers, ..wanted.clone() });
        }
    }

    fn execute(&self, addr: &str, mut batch: Vec<Execution>) {
        // Dropped, each of them would say that the backend gave no result.
        let Some((member, there)) = self.at(addr) else { return };
        let shared: Arc<str> = there.into();
        for execution in &mut batch {
            execution.slot.addr = shared.clone();
        }
        member.backend.execute(there, batch);
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        match self.of(slot) {
            Some((member, slot)) => member.backend.reset(&slot, reply),
            None => reply.send(Err(unknown(slot))),
        }
    }

    fn begin(&self, slot: &SlotRef, spec: &Arc<TrajectorySpec>, reply: BeginReply) {
        match self.of(slot) {
            Some((member, slot)) => member.backend.begin(&slot, spec, reply),
            None => reply.send(Err(BeginFailure::failed(unknown(slot)))),
        }
    }

    /// Which of them has it only that one knows; for the others it is one that they do not know.
    fn cancel(&self, id: ExecutionId) {
        for member in &self.members {
            member.backend.cancel(id);
        }
    }

    fn give_back(&self, slot: &SlotRef, grant: u64) {
        if let Some((member, slot)) = self.of(slot) {
            member.backend.give_back(&slot, grant);
        }
    }

    fn artifacts(&self) -> Option<&dyn Artifacts> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn watch(&self, watcher: Watcher) {
        for member in &self.members {
            let (watcher, name) = (watcher.clone(), member.name.clone());
            member.backend.watch(Watcher::from_fn(move |addr, change| {
                watcher.notify(&format!("{name}/{addr}"), change);
            }));
        }
    }

    /// The containers of one backend, by its name: `NAME/ADDRESS`. Those of the others stay.
    fn use_containers(&self, addrs: &[String]) -> Result<(), BackendError> {
        let mut named: Option<&Member> = None;
        let mut inside = Vec::new();
        for addr in addrs {
            let Some((member, there)) = self.at(addr) else {
                let names: Vec<_> = self.members.iter().map(|member| &*member.name).collect();
                let names = names.join(", ");
                let text = format!(
                    "{addr:?} does not say whose it is: it must be NAME/ADDRESS, with one of {names}"
                );
                return Err(BackendError::new(text));
            };
            if let Some(other) = named.filter(|other| other.name != member.name) {
                let (one, other) = (&other.name, &member.name);
                let text = format!(
                    "containers of {one:?} and of {other:?}: name those of one backend at a time"
                );
                return Err(BackendError::new(text));
            }
            named = Some(member);
            inside.push(there.to_owned());
        }
        match named {
            Some(member) => member.backend.use_containers(&inside),
            None => Err(BackendError::new("no containers are named, and so no backend is")),
        }
    }

    fn close(&self, deadline: Instant) {
        close(&self.members, deadline);
    }
}

/// How long those that were started before one that fails may take to close.
const START_MARGIN: Duration = Duration::from_secs(15);

/// Closes all of them at the same time: each may need all of it.
fn close(members: &[Member], deadline: Instant) {
    let mut threads = Vec::new();
    for member in members.iter().skip(1) {
        let backend = member.backend.clone();
        match OwnedThread::spawn("tool-close", move || close_one(&*backend, deadline)) {
            Ok(thread) => threads.push(thread),
            Err(_) => close_one(&*member.backend, deadline),
        }
    }
    if let Some(first) = members.first() {
        close_one(&*first.backend, deadline);
    }
    for mut thread in threads {
        // It keeps the deadline itself; what it has begun it ends.
        if !thread.join_until(deadline + CLOSE_MARGIN) {
            log::error!("one of several backends did not close in time; it is left behind");
            thread.detach();
        }
    }
}

/// How much longer than its deadline a backend may take to notice it.
const CLOSE_MARGIN: Duration = Duration::from_secs(30);

fn close_one(backend: &dyn Backend, deadline: Instant) {
    if let Err(panic) = guarded(|| backend.close(deadline)) {
        log::error!("a sandbox backend panicked in close: {panic}");
    }
}

impl fmt::Debug for Several {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.members.iter().map(|member| &*member.name).collect();
        f.debug_tuple("Several").field(&names).finish()
    }
}
