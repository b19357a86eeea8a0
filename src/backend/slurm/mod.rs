//! Sandbox servers that Slurm starts: a fleet that grows and shrinks.
//!
//! Inside an allocation a server runs on each of its nodes; else each is a job of its own, as many
//! as trajectories need. Either way it is an `srun` of ours, a child of this process, that starts
//! one: it forwards the line in which the server says where it listens, so that no disk is shared
//! and no port is fixed, and Slurm ends the server when it ends. From that line on the server is
//! one of a [fleet](super::fleet), which speaks with it as with any other.
//!
//! - `commands` is what Slurm is asked and what it prints; `servers` is what there is and what is
//!   to be done; `scaling` is how many there should be: all pure.
//! - `keeper` is the thread, `tool-slurm`, that starts and ends the programs and reads what they
//!   say; `program` is one of them.
//! - `runs` is what runs have started, and which of them are over.
//!
//! # What becomes of a server
//! - One whose node fails, whose job is cancelled or preempted, or which dies: its calls end as the
//!   fleet says, and another is started, after a pause that grows with each failure in a row.
//! - One that runs and in whose slots nothing can be run is drained and replaced likewise.
//! - One that is told to end – at its job's time limit, by a preemption – says so before it does,
//!   and is drained as long as it lasts.
//! - One whose job ends soon ([`SlurmConfig::drain_before`]) is drained – its trajectories finish –
//!   and another is started at once.
//! - A controller that does not answer: what runs runs on; what is to be started waits, and is
//!   tried again.
//! - Where this process dies the servers end by themselves after two minutes at most.
//!
//! # What servers are given
//! Their token, by the environment, never as an argument: other users of a node can read those.

mod commands;
mod keeper;
mod program;
mod runs;
mod scaling;
mod servers;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::keeper::{Keeper, Way};
pub use self::runs::{RunState, StartedServer, remove_servers, started_servers};
use self::scaling::Bounds;
use super::fleet::FleetBackend;
use super::{
    Artifacts, Backend, BeginReply, Capabilities, Container, Demand, Execution, ExecutionId,
    ResetReply, SlotRef, Snapshots, Watcher,
};
use crate::config::{FleetConfig, Secret, SlurmConfig};
use crate::error::BackendError;
use crate::interrupt::Interrupt;
use crate::spec::TrajectorySpec;

/// How many jobs there are at most, where the configuration does not say.
const MOST_JOBS: usize = 8;
/// How often the start looks whether there is a server.
const LOOK: Duration = Duration::from_millis(50);

/// A fleet of sandbox servers that Slurm starts. Closed by the executor that uses it, which ends
/// the servers. Linux only.
///
/// ```no_run
/// use tool_executor::ToolExecutor;
/// use tool_executor::backend::slurm::SlurmBackend;
/// use tool_executor::config::{SlurmConfig, SlurmJobs};
///
/// let jobs = SlurmJobs::default().with_partition("cpu").with_time("4:00:00");
/// let slurm = SlurmConfig::default().with_jobs(jobs).with_max_servers(Some(32));
/// let executor = ToolExecutor::builder().backend(SlurmBackend::new(slurm)?).start()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SlurmBackend {
    config: SlurmConfig,
    fleet: Arc<FleetBackend>,
    keeper: Keeper,
}

impl SlurmBackend {
    /// Starts nothing yet.
    ///
    /// # Errors
    /// The configuration makes no sense.
    pub fn new(mut config: SlurmConfig) -> Result<Self, BackendError> {
        config.check()?;
        let token = config
            .token
            .get_or_insert_with(|| Secret::from(format!("{}{}", new_word(), new_word())));
        let mut fleet = FleetConfig::new([""; 0]).with_token(token.clone());
        fleet.unreachable_timeout = config.unreachable_timeout;
        fleet.start_timeout = config.start_timeout;
        fleet.allow_unisolated = config.allow_unisolated;
        let fleet = Arc::new(FleetBackend::growing(fleet)?);
        let keeper = Keeper::new(config.clone(), fleet.clone());
        let keeper =
            keeper.map_err(|error| BackendError::with_source("cannot make a descriptor", error))?;
        Ok(Self { config, fleet, keeper })
    }

    /// Where the servers are to run.
    ///
    /// # Errors
    /// There is no allocation, or no Slurm.
    fn way(&self, interrupt: &Interrupt) -> Result<Way, BackendError> {
        if self.config.jobs.is_some() {
            return Ok(Way::Jobs(Bounds {
                least: self.config.min_servers,
                most: self.config.max_servers.unwrap_or(MOST_JOBS.max(self.config.min_servers)),
                idle: self.config.idle_timeout,
            }));
        }
        let list = std::env::var_os("SLURM_JOB_NODELIST").filter(|list| !list.is_empty());
        let Some(list) = list else {
            let text = "there is no allocation of Slurm here (SLURM_JOB_NODELIST is not set): start \
                        this inside one, by salloc or sbatch, or have it submit jobs of its own";
            return Err(BackendError::new(text));
        };
        let nodes = keeper::nodes_of(&list, interrupt)?;
        let most = self.config.max_servers.unwrap_or(nodes.len());
        Ok(Way::Nodes(nodes, most))
    }
}

/// A word that nobody can guess.
fn new_word() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

impl Backend for SlurmBackend {
    fn start(&self, interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        let way = self.way(interrupt)?;
        // Where none has to be there, none is waited for.
        let waits = !matches!(&way, Way::Jobs(bounds) if bounds.least == 0);
        let deadline = Instant::now() + self.config.start_timeout;
        self.keeper.start(way)?;
        while waits && !self.fleet.has_servers() {
            let failure = self.keeper.failure();
            if failure.is_some() || Instant::now() >= deadline || interrupt.is_interrupted() {
                self.close(Instant::now() + servers::STOP_LIMIT);
                return Err(match failure {
                    _ if interrupt.is_interrupted() => BackendError::interrupted(),
                    Some(why) => {
                        BackendError::new(format!("Slurm starts no sandbox server: {why}"))
                    }
                    None => BackendError::new(format!(
                        "no sandbox server that Slurm was to start listens after {:?}{}",
                        self.config.start_timeout,
                        self.keeper.waits_for(),
                    )),
                });
            }
            interrupt.wait_timeout(LOOK);
        }
        Ok(Vec::new())
    }

    fn capabilities(&self) -> Capabilities {
        self.fleet.capabilities()
    }

    fn demand(&self, demand: &Demand) {
        self.keeper.demand(demand);
    }

    fn execute(&self, addr: &str, batch: Vec<Execution>) {
        self.fleet.execute(addr, batch);
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        self.fleet.reset(slot, reply);
    }

    fn begin(&self, slot: &SlotRef, spec: &Arc<TrajectorySpec>, reply: BeginReply) {
        self.fleet.begin(slot, spec, reply);
    }

    fn cancel(&self, id: ExecutionId) {
        self.fleet.cancel(id);
    }

    fn give_back(&self, slot: &SlotRef, grant: u64) {
        self.fleet.give_back(slot, grant);
    }

    fn artifacts(&self) -> Option<&dyn Artifacts> {
        self.fleet.artifacts()
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        self.fleet.snapshots()
    }

    fn watch(&self, watcher: Watcher) {
        self.fleet.watch(watcher);
    }

    /// The sessions first, so that what runs is told to end by those who know it; then the servers.
    fn close(&self, deadline: Instant) {
        self.fleet.close(deadline);
        self.keeper.stop();
        self.keeper.join(deadline);
    }
}

impl fmt::Debug for SlurmBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlurmBackend").field("config", &self.config).finish_non_exhaustive()
    }
}
