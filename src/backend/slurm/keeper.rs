//! The thread that starts and ends Slurm's programs and reads what they say: `tool-slurm`.
//!
//! It waits in one `poll` for the pipes of all of them, for a wake-up, and for the next deadline of
//! `servers`, which says what is to be done. No program holds it up: what is not answered in time
//! is killed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::process::{Pid, Signal, kill_process};

use super::commands::{self, Line, TOKEN_VARIABLE, last_words};
use super::program::{self, ANSWER_LIMIT, Program, new_command};
use super::runs::RunLabel;
use super::scaling::Bounds;
use super::servers::{STOP_LIMIT, Servers, Step};
use crate::backend::fleet::FleetBackend;
use crate::backend::{Backend, Demand};
use crate::config::SlurmConfig;
use crate::error::BackendError;
use crate::interrupt::Interrupt;
use crate::thread::OwnedThread;

/// Variables of `tool-executor` that are meant for this process, and would be wrong for servers
/// elsewhere.
const OF_THIS_PROCESS: [&str; 8] = [
    "TOOL_EXECUTOR_ADVERTISE",
    "TOOL_EXECUTOR_DATA_DIR",
    "TOOL_EXECUTOR_NO_AUTH",
    "TOOL_EXECUTOR_SLURM",
    "TOOL_EXECUTOR_SLURM_SUBMIT",
    "TOOL_EXECUTOR_TLS_CERT",
    "TOOL_EXECUTOR_TLS_KEY",
    "TOOL_EXECUTOR_TOKEN",
];
/// How often Slurm is asked about the jobs.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// The longest wait: how often it is looked whether a drained server may go.
const LOOK: Duration = Duration::from_millis(500);

/// Where servers run.
#[derive(Debug)]
pub(super) enum Way {
    /// On these nodes, so many of them.
    Nodes(Vec<String>, usize),
    /// As jobs of their own.
    Jobs(Bounds),
}

/// The handle of the thread.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<OwnedThread>>,
}

struct Shared {
    config: SlurmConfig,
    fleet: Arc<FleetBackend>,
    wake: OwnedFd,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    demand: Demand,
    is_stopping: bool,
    /// Why every start has failed.
    failure: Option<String>,
    /// What is waited for.
    waits_for: Option<String>,
}

impl Keeper {
    /// No thread yet.
    ///
    /// # Errors
    /// There is no descriptor to be had.
    pub(super) fn new(config: SlurmConfig, fleet: Arc<FleetBackend>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared { config, fleet, wake, told: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), thread: Mutex::default() })
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(&self, way: Way) -> Result<(), BackendError> {
        let config = &self.shared.config;
        let servers = match way {
            Way::Nodes(nodes, most) => Servers::on_nodes(nodes, most, config.start_timeout),
            Way::Jobs(bounds) => {
                Servers::of_jobs(bounds, config.start_timeout, config.slots_per_server)
            }
        };
        let run = Run {
            shared: self.shared.clone(),
            servers,
            programs: BTreeMap::new(),
            asks: Vec::new(),
            ask_at: Instant::now() + ASK_EVERY,
            used: Vec::new(),
            away_since: None,
            label: RunLabel::own().to_string(),
        };
        let thread = OwnedThread::spawn("tool-slurm", move || run.keep());
        let thread =
            thread.map_err(|error| BackendError::with_source("cannot start a thread", error))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// So many slots are wanted.
    pub(super) fn demand(&self, demand: &Demand) {
        self.shared.told.lock().demand = demand.clone();
        self.shared.wake();
    }

    /// Why no server is there or coming, if so.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.told.lock().failure.clone()
    }

    /// What is waited for, as the end of a sentence.
    pub(super) fn waits_for(&self) -> String {
        let waits_for = self.shared.told.lock().waits_for.clone();
        waits_for.map(|what| format!(" ({what})")).unwrap_or_default()
    }

    /// All servers are to end. Does not block.
    pub(super) fn stop(&self) {
        self.shared.told.lock().is_stopping = true;
        self.shared.wake();
    }

    /// Waits until they have ended.
    pub(super) fn join(&self, deadline: Instant) {
        if let Some(thread) = self.thread.lock().take() {
            // The thread gives up what does not end by then, and has a moment to notice.
            thread.join_or_leave(deadline.max(Instant::now() + STOP_LIMIT * 2 + LOOK * 4));
        }
    }
}

impl Shared {
    fn wake(&self) {
        // Fails only where the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// A short question, to be answered in time.
struct Ask {
    program: Program,
    deadline: Instant,
    is_squeue: bool,
}

/// The thread's own state.
struct Run {
    shared: Arc<Shared>,
    servers: Servers,
    programs: BTreeMap<u64, Program>,
    asks: Vec<Ask>,
    ask_at: Instant,
    /// What the fleet was told to use.
    used: Vec<String>,
    /// Since when the controller does not answer, as far as a program has told.
    away_since: Option<Instant>,
    label: String,
}

impl Run {
    /// Until everything was told to end, and has.
    fn keep(mut self) {
        let mut stops_since = None;
        loop {
            let (demand, is_stopping) = {
                let told = self.shared.told.lock();
                (told.demand.clone(), told.is_stopping)
            };
            let now = Instant::now();
            let steps = if is_stopping {
                stops_since.get_or_insert(now);
                let mut steps = self.servers.stop_all(now);
                steps.extend(self.servers.late(now));
                steps
            } else {
                let fleet = &self.shared.fleet;
                self.servers.steps(&demand, |url| fleet.has_server(url), now)
            };
            for step in steps {
                self.carry_out(step, now);
            }
            if is_stopping && self.servers.is_empty() && self.asks.is_empty() {
                return;
            }
            if stops_since.is_some_and(|since| now > since + STOP_LIMIT * 2) {
                log::error!("some of Slurm's programs do not end; they are left behind");
                return;
            }
            if !is_stopping {
                self.leave_servers(now);
                self.tell_fleet();
                self.ask_about_jobs(now);
            }
            self.wait();
            self.read_all();
        }
    }

    fn carry_out(&mut self, step: Step, now: Instant) {
        match step {
            Step::Start(number, node) => {
                let argv = commands::srun(&self.shared.config, node.as_deref(), &self.label);
                match self.start("srun", &argv) {
                    Ok(program) => drop(self.programs.insert(number, program)),
                    Err(error) => self.end(number, format!("srun cannot be started: {error}"), now),
                }
            }
            Step::Stop(number) => match self.servers.step(number).map(str::to_owned) {
                // The server ends as it should, and its srun with it.
                Some(step) => self.ask("scancel", &["--signal=TERM".into(), step.into()], false),
                // It does not run yet, or has not said so: its srun is enough.
                None => self.signal(number, Signal::TERM),
            },
            Step::Cancel(id) => self.ask("scancel", &[id.into()], false),
            Step::Kill(number) => {
                // srun takes its step along.
                self.signal(number, Signal::TERM);
                self.signal(number, Signal::INT);
            }
        }
    }

    fn signal(&self, number: u64, signal: Signal) {
        let program = self.programs.get(&number);
        if let Some(pid) = program.and_then(|program| Pid::from_raw(program.child.id() as i32)) {
            // It was not waited for, so the number is its own.
            let _ = kill_process(pid, signal);
        }
    }

    /// Starts one of Slurm's programs, whose output is read and which dies with this thread.
    fn start(&self, name: &str, argv: &[OsString]) -> io::Result<Program> {
        let mut command = new_command(name);
        command.args(argv);
        // The others say what the servers' slots are to be.
        for name in OF_THIS_PROCESS {
            command.env_remove(name);
        }
        if let Some(token) = &self.shared.config.token {
            command.env(TOKEN_VARIABLE, token.expose());
        }
        Program::start(command)
    }

    /// Has a short program run, which is killed where it takes too long.
    fn ask(&mut self, name: &str, argv: &[OsString], is_squeue: bool) {
        let mut command = new_command(name);
        command.args(argv);
        match Program::start(command) {
            Ok(program) => {
                let deadline = Instant::now() + ANSWER_LIMIT;
                self.asks.push(Ask { program, deadline, is_squeue });
            }
            Err(error) => log::warn!("{name} cannot be started: {error}"),
        }
    }

    /// Has servers go that are about to end, or that the fleet has found to be of no use.
    fn leave_servers(&mut self, now: Instant) {
        for addr in self.shared.fleet.ending() {
            if self.servers.ends(&addr) {
                log::warn!("the sandbox server {addr} of Slurm's is about to end: it is drained");
            }
        }
        for bad in self.shared.fleet.bad() {
            if self.servers.is_bad(&bad.addr, now) {
                let (addr, why) = (bad.addr, bad.why);
                log::warn!(
                    "the sandbox server {addr} of Slurm's is bad ({why}): another replaces it"
                );
            }
        }
    }

    /// Has the fleet use the servers that are up.
    fn tell_fleet(&mut self) {
        let urls = self.servers.urls();
        let waits = self.servers.numbers().len().saturating_sub(urls.len());
        {
            let mut told = self.shared.told.lock();
            let failed = self.servers.has_failed();
            told.failure = self.servers.last_failure().filter(|_| failed).map(str::to_owned);
            if told.waits_for.is_none() && waits > 0 {
                told.waits_for = Some(format!("{waits} are asked for"));
            }
        }
        if urls != self.used {
            match self.shared.fleet.use_containers(&urls) {
                Ok(()) => self.used = urls,
                Err(error) => log::error!("a sandbox server of Slurm's cannot be used: {error}"),
            }
        }
    }

    /// Asks how long the jobs still run, where they are our own.
    fn ask_about_jobs(&mut self, now: Instant) {
        if self.shared.config.jobs.is_none() || now < self.ask_at {
            return;
        }
        self.ask_at = now + ASK_EVERY;
        let jobs: Vec<&str> = self.servers.jobs().map(|(_, job)| job).collect();
        if !jobs.is_empty() && !self.asks.iter().any(|ask| ask.is_squeue) {
            let argv = commands::squeue(&jobs);
            self.ask("squeue", &argv, true);
        }
    }

    /// Waits for something to read, a wake-up, or the next deadline.
    fn wait(&self) {
        let now = Instant::now();
        let asks = self.asks.iter().map(|ask| ask.deadline);
        let due = self.servers.due().into_iter().chain(asks).min();
        let longest = due.map_or(LOOK, |due| due.saturating_duration_since(now).min(LOOK));
        // Not a busy loop, whatever is due and cannot be done.
        let longest = longest.max(Duration::from_millis(5));
        let programs = self.programs.values().chain(self.asks.iter().map(|ask| &ask.program));
        let pipes = programs.flat_map(|program| [&program.out, &program.err]).flatten();
        let mut fds: Vec<_> = pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        fds.push(PollFd::new(&self.shared.wake, PollFlags::IN));
        let timeout = Timespec::try_from(longest).ok();
        // A signal is no matter: it is looked at everything anyway.
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
    }

    /// Takes in what all programs have said, and which have ended.
    fn read_all(&mut self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        let mut is_there = false;
        for (number, program) in &mut self.programs {
            for line in program.read_lines() {
                match commands::line(&line) {
                    Line::Step(step) => {
                        is_there = true;
                        self.servers.runs(*number, step, now);
                    }
                    Line::Listens(url, slots) => {
                        log::info!("Slurm has started the sandbox server {url} ({slots} slots)");
                        self.servers.listens(*number, url, slots, now);
                    }
                    Line::Other => log::debug!("srun: {line}"),
                }
            }
            if program.has_ended() {
                let why = last_words(&String::from_utf8_lossy(&program.words));
                ended.push((*number, why, program.was_killed));
            }
        }
        for (number, why, was_killed) in ended {
            self.programs.remove(&number);
            match was_killed {
                true => self.srun_killed(number, now),
                false => self.end(number, why, now),
            }
        }
        let mut asks = std::mem::take(&mut self.asks);
        asks.retain_mut(|ask| {
            ask.program.fill();
            if ask.program.has_ended() {
                let words = last_words(&String::from_utf8_lossy(&ask.program.words));
                match commands::is_controller_away(&words) {
                    true => self.is_away(&words, now),
                    false if ask.is_squeue => {
                        is_there = true;
                        self.take_in_jobs(&String::from_utf8_lossy(&ask.program.line));
                    }
                    false => {}
                }
                return false;
            }
            if now >= ask.deadline {
                self.is_away("one of Slurm's programs does not answer", now);
                let _ = (ask.program.child.kill(), ask.program.child.wait());
                return false;
            }
            true
        });
        asks.append(&mut self.asks);
        self.asks = asks;
        if is_there && let Some(since) = self.away_since.take() {
            let lasted = now.saturating_duration_since(since).as_secs();
            log::warn!("Slurm's controller answers again, after {lasted} s");
        }
    }

    /// The controller does not answer: that is said once.
    fn is_away(&mut self, why: &str, now: Instant) {
        if self.away_since.is_none() {
            self.away_since = Some(now);
            log::warn!(
                "Slurm's controller does not answer ({why}): what runs runs on, what is to be \
                 started is tried again"
            );
        }
    }

    fn srun_killed(&mut self, number: u64, now: Instant) {
        log::warn!("the srun of a sandbox server of Slurm's was killed: another replaces it");
        let steps = self.servers.srun_killed(number, "its srun was killed".to_owned(), now);
        for step in steps {
            self.carry_out(step, now);
        }
    }

    fn end(&mut self, number: u64, why: String, now: Instant) {
        let replaced = self.servers.ended(number, why.clone(), now);
        if commands::is_controller_away(&why) {
            self.is_away(&why, now);
        } else if replaced {
            log::warn!("a sandbox server of Slurm's has ended: {why}; there will be another");
        }
    }

    /// What `squeue` said.
    fn take_in_jobs(&mut self, printed: &str) {
        let jobs = commands::jobs(printed);
        let soon = |left: Duration| left <= self.shared.config.drain_before;
        let ours: Vec<(u64, String)> =
            self.servers.jobs().map(|(number, job)| (number, job.to_owned())).collect();
        for (number, job) in ours {
            let told = jobs.iter().find(|told| told.id == job);
            if let Some(left) = told.and_then(|told| told.left).filter(|left| soon(*left))
                && self.servers.drain(number)
            {
                let left = left.as_secs();
                log::warn!("the job {job} ends in {left} s: its sandbox server is drained");
            }
        }
        let pending: Vec<_> = jobs.iter().filter(|job| job.state == "PENDING").collect();
        if let Some(job) = pending.first() {
            let text = format!("job {} waits: {}", job.id, job.reason);
            self.shared.told.lock().waits_for = Some(text);
        }
    }
}

/// The nodes of a list such as `n[1-3]`. Blocks for a moment, for as long as one of Slurm's
/// programs may take at most.
///
/// # Errors
/// There is no Slurm, the list makes no sense, or it was interrupted.
pub(super) fn nodes_of(list: &OsStr, interrupt: &Interrupt) -> Result<Vec<String>, BackendError> {
    let argv = [OsString::from("show"), "hostnames".into(), list.to_owned()];
    let printed = program::ask("scontrol", &argv, interrupt)?;
    let nodes = commands::nodes(&printed);
    if nodes.is_empty() {
        return Err(BackendError::new("Slurm's scontrol names no nodes"));
    }
    Ok(nodes)
}
