//! The servers that Slurm runs for us, and what is to be done next: a pure data structure, with the
//! clock passed in.
//!
//! A server is *starting* from its `srun` on, then *up* when it has said where it listens. It is
//! *draining* when it is to go: its trajectories finish. It is *stopping* when it was told to end,
//! and forgotten when its `srun` has ended. One that ends by itself is replaced, after a pause that
//! grows with each failure in a row: inside an allocation on its node, else by a job of its own. So
//! is one that runs and is of no use. What could not be started because Slurm's controller does not
//! answer has not failed: it is tried again after a pause that stays the same, however long the
//! controller is away.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::commands;
use super::scaling::{Bounds, Scaler, View};
use crate::backend::Demand;

/// The pause after a failure, and the longest one.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MOST: Duration = Duration::from_secs(300);
/// The pause where the controller does not answer.
const PAUSE_AWAY: Duration = Duration::from_secs(5);
/// A place that has not failed for so long is as good as any.
const FORGIVEN: Duration = Duration::from_secs(600);
/// A server that was up for so long has not failed when it ends.
const PROVEN: Duration = Duration::from_secs(60);
/// How many servers are started at a time.
const STARTS: usize = 64;
/// How long a server may take to end after it was told to.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How many slots a server is expected to have before one has said so.
const SLOTS_EXPECTED: usize = 10;

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Start a server under this number: on this node, or as a job.
    Start(u64, Option<String>),
    /// Tell it to end.
    Stop(u64),
    /// End its `srun`, which had its time.
    Kill(u64),
    /// Cancel this job, or step, whose `srun` was killed: Slurm may not see that by itself.
    Cancel(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Starting,
    Up { url: String, since: Instant },
    Draining { url: String },
    Stopping { until: Instant, is_killed: bool },
}

#[derive(Debug)]
struct Server {
    state: State,
    node: Option<String>,
    /// Its job and step, once it runs.
    step: Option<String>,
    /// When it has to listen, once it runs.
    deadline: Option<Instant>,
    /// Its `srun` was killed, and it runs on.
    is_orphan: bool,
}

/// A place where servers are started: a node of the allocation, or Slurm's queue.
#[derive(Debug, Default)]
struct Place {
    failures: u32,
    failed_at: Option<Instant>,
    retry_at: Option<Instant>,
}

impl Place {
    /// A server of it has failed: it is left alone, for longer each time.
    fn fail(&mut self, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= FORGIVEN;
        if self.failed_at.is_some_and(is_old) {
            self.failures = 0;
        }
        let pause = PAUSE_FIRST.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MOST);
        self.failures += 1;
        self.failed_at = Some(now);
        self.retry_at = Some(now + pause);
    }
}

/// All of them.
pub(super) struct Servers {
    list: BTreeMap<u64, Server>,
    /// By node; one without a name for jobs.
    places: BTreeMap<Option<String>, Place>,
    scaler: Option<Scaler>,
    most: usize,
    start_timeout: Duration,
    slots_each: usize,
    next_number: u64,
    /// Why the last server that failed did.
    last_failure: Option<String>,
}

impl Servers {
    /// None yet: on these nodes, `most` of them at most.
    pub(super) fn on_nodes(nodes: Vec<String>, most: usize, start_timeout: Duration) -> Self {
        let places = nodes.into_iter().map(|node| (Some(node), Place::default())).collect();
        Self::new(places, None, most, start_timeout, None)
    }

    /// None yet: jobs of their own, as many as `bounds` allow and the demand asks for.
    pub(super) fn of_jobs(
        bounds: Bounds,
        start_timeout: Duration,
        slots_each: Option<usize>,
    ) -> Self {
        let places = [(None, Place::default())].into();
        Self::new(places, Some(Scaler::new(bounds)), bounds.most, start_timeout, slots_each)
    }

    fn new(
        places: BTreeMap<Option<String>, Place>,
        scaler: Option<Scaler>,
        most: usize,
        start_timeout: Duration,
        slots_each: Option<usize>,
    ) -> Self {
        Self {
            list: BTreeMap::new(),
            places,
            scaler,
            most,
            start_timeout,
            slots_each: slots_each.unwrap_or(SLOTS_EXPECTED),
            next_number: 1,
            last_failure: None,
        }
    }

    /// Whether there is none, not even one that ends.
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether none is up or can be soon: each was tried and has failed.
    pub(super) fn has_failed(&self) -> bool {
        let is_hopeful =
            |server: &Server| matches!(server.state, State::Starting | State::Up { .. });
        self.last_failure.is_some() && !self.list.values().any(is_hopeful)
    }

    /// Why the last server that failed did.
    pub(super) fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    /// The servers that are to be used.
    pub(super) fn urls(&self) -> Vec<String> {
        let urls = self.list.values().filter_map(|server| match &server.state {
            State::Up { url, .. } => Some(url.clone()),
            _ => None,
        });
        urls.collect()
    }

    /// The numbers of all servers.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.list.keys().copied().collect()
    }

    /// The job and step of a server, once it runs.
    pub(super) fn step(&self, number: u64) -> Option<&str> {
        self.list.get(&number)?.step.as_deref()
    }

    /// Each server that runs, with its job.
    pub(super) fn jobs(&self) -> impl Iterator<Item = (u64, &str)> {
        self.list.iter().filter_map(|(number, server)| {
            let (job, _) = server.step.as_deref()?.split_once('.')?;
            Some((*number, job))
        })
    }

    /// A server runs: from now on it has so long to listen.
    pub(super) fn runs(&mut self, number: u64, step: String, now: Instant) {
        if let Some(server) = self.list.get_mut(&number) {
            server.step = Some(step);
            server.deadline = Some(now + self.start_timeout);
        }
    }

    /// A server listens, with so many slots.
    pub(super) fn listens(&mut self, number: u64, url: String, slots: usize, now: Instant) {
        let Some(server) = self.list.get_mut(&number) else { return };
        if server.state == State::Starting {
            server.state = State::Up { url, since: now };
            server.deadline = None;
            self.slots_each = slots.max(1);
        }
    }

    /// A server's `srun` has ended; `why` is the last that it said. Whether that is a failure, or
    /// the server is to be replaced.
    pub(super) fn ended(&mut self, number: u64, why: String, now: Instant) -> bool {
        let Some(server) = self.list.remove(&number) else { return false };
        let Some(place) = self.places.get_mut(&server.node) else { return false };
        match server.state {
            State::Stopping { .. } | State::Draining { .. } => return false,
            State::Starting if server.step.is_none() && commands::is_controller_away(&why) => {
                place.retry_at = Some(now + PAUSE_AWAY);
                self.last_failure = Some(why);
                return true;
            }
            State::Up { since, .. } if now.saturating_duration_since(since) >= PROVEN => {
                place.failures = 0;
            }
            State::Starting | State::Up { .. } => {}
        }
        place.fail(now);
        self.last_failure = Some(why);
        true
    }

    /// A server's `srun` was killed: what it has started may run on, and the job of a server stays
    /// though nothing is in it. A server that is used is drained, and then cancelled.
    pub(super) fn srun_killed(&mut self, number: u64, why: String, now: Instant) -> Vec<Step> {
        let Some(server) = self.list.get_mut(&number) else { return Vec::new() };
        match &server.state {
            State::Up { url, .. } | State::Draining { url } => {
                server.state = State::Draining { url: url.clone() };
                server.is_orphan = true;
                // That is no fault of where it runs.
                if let Some(place) = self.places.get_mut(&server.node) {
                    place.retry_at = place.retry_at.max(Some(now + PAUSE_FIRST));
                }
                self.last_failure = Some(why);
                Vec::new()
            }
            State::Starting | State::Stopping { .. } => {
                let cancel = server.cancel();
                self.ended(number, why, now);
                cancel.into_iter().collect()
            }
        }
    }

    /// The server at this address runs, and nothing can be run on it: it is drained, and another is
    /// started after a pause. Whether that is news.
    pub(super) fn is_bad(&mut self, url: &str, now: Instant) -> bool {
        let Some(number) = self.number_at(url) else { return false };
        let place = self.list.get(&number).and_then(|server| self.places.get_mut(&server.node));
        if let Some(place) = place {
            place.fail(now);
        }
        self.drain(number)
    }

    /// The server at this address says that it is about to end: it is drained, and another is
    /// started at once. Whether that is news.
    pub(super) fn ends(&mut self, url: &str) -> bool {
        self.number_at(url).is_some_and(|number| self.drain(number))
    }

    /// The number of the server that is up at this address.
    fn number_at(&self, url: &str) -> Option<u64> {
        let is_there =
            |server: &Server| matches!(&server.state, State::Up { url: at, .. } if at == url);
        self.list.iter().find(|(_, server)| is_there(server)).map(|(number, _)| *number)
    }

    /// A server's job ends soon, or the server is to go for another reason. Whether that is news.
    pub(super) fn drain(&mut self, number: u64) -> bool {
        let Some(server) = self.list.get_mut(&number) else { return false };
        let State::Up { url, .. } = &server.state else { return false };
        server.state = State::Draining { url: url.clone() };
        true
    }

    /// What is to be done now. `is_used` says of a URL whether the fleet still has it.
    pub(super) fn steps(
        &mut self,
        demand: &Demand,
        is_used: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        for place in self.places.values_mut() {
            place.retry_at = place.retry_at.filter(|retry| *retry > now);
        }
        if self.scaler.is_some() {
            self.scale(demand, now, &mut steps);
        } else {
            self.fill_nodes(&mut steps);
        }
        for (number, server) in &mut self.list {
            let is_late = server.deadline.is_some_and(|deadline| deadline <= now);
            match &mut server.state {
                State::Starting if is_late => {
                    let text = "it did not listen in time";
                    self.last_failure = Some(text.to_owned());
                    if let Some(place) = self.places.get_mut(&server.node) {
                        place.fail(now);
                    }
                    stop(*number, &mut server.state, now, &mut steps);
                }
                State::Draining { url } if !is_used(url) => match server.is_orphan {
                    true => steps.extend(server.cancel()),
                    false => stop(*number, &mut server.state, now, &mut steps),
                },
                _ => {}
            }
        }
        let is_over = |server: &Server| match &server.state {
            State::Draining { url } => server.is_orphan && !is_used(url),
            _ => false,
        };
        self.list.retain(|_, server| !is_over(server));
        steps.extend(self.late(now));
        steps
    }

    /// Servers that were told to end and have had their time.
    pub(super) fn late(&mut self, now: Instant) -> Vec<Step> {
        let late = self.list.iter_mut().filter_map(|(number, server)| match &mut server.state {
            State::Stopping { until, is_killed: is_killed @ false } if *until <= now => {
                *is_killed = true;
                Some(Step::Kill(*number))
            }
            _ => None,
        });
        late.collect()
    }

    /// Tells every server to end.
    pub(super) fn stop_all(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        for (number, server) in &mut self.list {
            if server.is_orphan {
                steps.extend(server.cancel());
            } else if !matches!(server.state, State::Stopping { .. }) {
                stop(*number, &mut server.state, now, &mut steps);
            }
        }
        self.list.retain(|_, server| !server.is_orphan);
        steps
    }

    /// When there is something to do though nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        let retries = self.places.values().filter_map(|place| place.retry_at);
        let servers = self.list.values().filter_map(|server| match server.state {
            State::Stopping { until, is_killed: false } => Some(until),
            State::Starting => server.deadline,
            _ => None,
        });
        let scaling = self.scaler.as_ref().and_then(Scaler::due);
        retries.chain(servers).chain(scaling).min()
    }

    /// Inside an allocation: a server on each node, as many as there may be.
    fn fill_nodes(&mut self, steps: &mut Vec<Step>) {
        let mut room = self.most.saturating_sub(self.lasting().count());
        for (node, place) in &self.places {
            let is_here = |server: &Server| {
                server.node == *node && !matches!(server.state, State::Stopping { .. })
            };
            if room == 0 || steps.len() >= STARTS || self.list.values().any(is_here) {
                continue;
            }
            if place.retry_at.is_some() {
                continue;
            }
            room -= 1;
            steps.push(Step::Start(self.next_number, node.clone()));
            self.next_number += 1;
        }
        for step in &*steps {
            if let Step::Start(number, node) = step {
                self.list.insert(*number, Server::starting(node.clone()));
            }
        }
    }

    /// As many jobs as the demand asks for.
    fn scale(&mut self, demand: &Demand, now: Instant, steps: &mut Vec<Step>) {
        let held = |url: &str| {
            let told = demand.containers.iter().find(|container| &*container.addr == url);
            told.filter(|container| container.slots > 0).map(|container| container.held)
        };
        let mut starting = Vec::new();
        let mut ups = Vec::new();
        let mut coming = 0;
        for (number, server) in &self.list {
            match &server.state {
                State::Starting => starting.push(*number),
                State::Up { url, .. } => {
                    // One of which the executor has no slots yet is counted as coming.
                    coming += usize::from(held(url).is_none());
                    ups.push((*number, held(url).unwrap_or(0)));
                }
                State::Draining { .. } | State::Stopping { .. } => {}
            }
        }
        let view = View {
            waiting: demand.waiting,
            free: demand.free,
            up: ups.len() - coming,
            starting: starting.len() + coming,
            slots_each: self.slots_each,
        };
        let Some(scaler) = &mut self.scaler else { return };
        let target = scaler.target(&view, now);
        let have = ups.len() + starting.len();
        let may_start = self.places.get(&None).is_some_and(|place| place.retry_at.is_none());
        if target > have && may_start {
            for _ in 0..(target - have).min(STARTS) {
                steps.push(Step::Start(self.next_number, None));
                self.list.insert(self.next_number, Server::starting(None));
                self.next_number += 1;
            }
        }
        let mut over = have.saturating_sub(target);
        // First those that have nothing, the newest, then those that have least.
        for number in starting.into_iter().rev().take(over) {
            over -= 1;
            if let Some(server) = self.list.get_mut(&number) {
                stop(number, &mut server.state, now, steps);
            }
        }
        ups.sort_by_key(|(number, held)| (*held, std::cmp::Reverse(*number)));
        for (number, _) in ups.into_iter().take(over) {
            self.drain(number);
        }
    }

    /// The servers that are there or coming, and stay.
    fn lasting(&self) -> impl Iterator<Item = &Server> {
        self.list
            .values()
            .filter(|server| matches!(server.state, State::Starting | State::Up { .. }))
    }
}

impl Server {
    fn starting(node: Option<String>) -> Self {
        Self { state: State::Starting, node, step: None, deadline: None, is_orphan: false }
    }
}

impl Server {
    /// What cancels its job, or its step of an allocation; nothing where it does not run yet.
    fn cancel(&self) -> Option<Step> {
        let step = self.step.as_deref()?;
        let job = step.split_once('.').map_or(step, |(job, _)| job);
        // An allocation is not ours.
        let id = if self.node.is_some() { step } else { job };
        Some(Step::Cancel(id.to_owned()))
    }
}

fn stop(number: u64, state: &mut State, now: Instant, steps: &mut Vec<Step>) {
    *state = State::Stopping { until: now + STOP_LIMIT, is_killed: false };
    steps.push(Step::Stop(number));
}

#[cfg(test)]
mod tests;
