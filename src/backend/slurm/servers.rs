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
                State::Draining { url } if !is_used(url) => {
                    stop(*number, &mut server.state, now, &mut steps);
                }
                _ => {}
            }
        }
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
            if !matches!(server.state, State::Stopping { .. }) {
                stop(*number, &mut server.state, now, &mut steps);
            }
        }
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
        Self { state: State::Starting, node, step: None, deadline: None }
    }
}

fn stop(number: u64, state: &mut State, now: Instant, steps: &mut Vec<Step>) {
    *state = State::Stopping { until: now + STOP_LIMIT, is_killed: false };
    steps.push(Step::Stop(number));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ContainerUse;
    use proptest::prelude::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn nodes(most: usize) -> Servers {
        Servers::on_nodes(vec!["n1".into(), "n2".into(), "n3".into()], most, TIMEOUT)
    }

    fn demand(waiting: usize, free: usize) -> Demand {
        Demand { waiting, free, ..Demand::default() }
    }

    fn starts(steps: &[Step]) -> Vec<(u64, Option<&str>)> {
        let starts = steps.iter().filter_map(|step| match step {
            Step::Start(number, node) => Some((*number, node.as_deref())),
            _ => None,
        });
        starts.collect()
    }

    #[test]
    fn while_the_controller_is_away_it_is_asked_as_often_however_long_that_lasts() {
        let mut now = Instant::now();
        let bounds = Bounds { least: 1, most: 1, idle: TIMEOUT };
        let mut servers = Servers::of_jobs(bounds, TIMEOUT, None);
        let away = "srun: error: Unable to contact slurm controller (connect failure)";
        for number in 1..50 {
            let steps = servers.steps(&demand(0, 0), |_| true, now);
            assert_eq!(starts(&steps), [(number, None)]);
            assert!(servers.ended(number, away.to_owned(), now));
            assert_eq!(servers.due(), Some(now + PAUSE_AWAY));
            assert_eq!(servers.steps(&demand(0, 0), |_| true, now), []);
            now += PAUSE_AWAY;
        }
        // What fails by itself is left alone for a second first: nothing has failed before.
        servers.steps(&demand(0, 0), |_| true, now);
        assert!(servers.ended(50, "srun: error: Invalid account".to_owned(), now));
        assert_eq!(servers.due(), Some(now + PAUSE_FIRST));
    }

    #[test]
    fn each_node_of_an_allocation_has_a_server_which_is_replaced_when_it_ends() {
        let mut now = Instant::now();
        let mut servers = nodes(2);
        let none = demand(0, 0);
        let steps = servers.steps(&none, |_| true, now);
        assert_eq!(starts(&steps), [(1, Some("n1")), (2, Some("n2"))], "no more than may be");
        servers.runs(1, "7.0".into(), now);
        servers.listens(1, "http://a".into(), 4, now);
        assert_eq!(servers.urls(), ["http://a"]);
        // A node that fails is left alone for a while, and another is taken.
        assert!(servers.ended(2, "node failure".into(), now));
        assert_eq!(servers.last_failure(), Some("node failure"));
        assert!(!servers.has_failed());
        assert_eq!(starts(&servers.steps(&none, |_| true, now)), [(3, Some("n3"))]);
        assert!(servers.ended(3, "no".into(), now));
        assert!(servers.steps(&none, |_| true, now).is_empty());
        now = servers.due().unwrap();
        assert_eq!(starts(&servers.steps(&none, |_| true, now)), [(4, Some("n2"))]);
        // One that never says where it listens is ended.
        servers.runs(4, "8.0".into(), now);
        now += TIMEOUT;
        let steps = servers.steps(&none, |_| true, now);
        assert_eq!(steps, [Step::Stop(4)]);
        assert_eq!(starts(&servers.steps(&none, |_| true, now)), [(5, Some("n3"))]);
        now += STOP_LIMIT;
        assert_eq!(servers.steps(&none, |_| true, now), [Step::Kill(4)]);
        assert!(!servers.ended(4, String::new(), now), "as it was told");
    }

    #[test]
    fn a_server_of_no_use_is_drained_and_replaced_after_a_pause_that_grows() {
        let mut now = Instant::now();
        let none = demand(0, 0);
        let bounds = Bounds { least: 1, most: 4, idle: TIMEOUT };
        let mut servers = Servers::of_jobs(bounds, TIMEOUT, None);
        let mut pauses = Vec::new();
        for number in 1..=3 {
            assert_eq!(starts(&servers.steps(&none, |_| true, now)), [(number, None)]);
            let url = format!("http://{number}");
            servers.listens(number, url.clone(), 10, now);
            // Longer than what it takes to be proven: it ran, and was of no use.
            now += PROVEN * 2;
            assert!(servers.is_bad(&url, now) && !servers.is_bad(&url, now));
            assert!(servers.urls().is_empty());
            let steps = servers.steps(&none, |_| false, now);
            assert_eq!(steps, [Step::Stop(number)], "nothing is left on it");
            assert!(!servers.ended(number, String::new(), now));
            let due = servers.due().unwrap();
            pauses.push(due - now);
            now = due;
        }
        assert_eq!(pauses, [PAUSE_FIRST, PAUSE_FIRST * 2, PAUSE_FIRST * 4]);
        assert!(!servers.is_bad("http://elsewhere", now));
        // On nodes: another one is taken at once.
        let mut servers = nodes(2);
        servers.steps(&none, |_| true, now);
        servers.listens(1, "http://a".into(), 4, now);
        assert!(servers.is_bad("http://a", now));
        assert_eq!(starts(&servers.steps(&none, |_| true, now)), [(3, Some("n3"))]);
    }

    #[test]
    fn jobs_come_as_they_are_needed_and_the_least_used_go() {
        let mut now = Instant::now();
        let idle = Duration::from_secs(300);
        let bounds = Bounds { least: 1, most: 4, idle };
        let mut servers = Servers::of_jobs(bounds, TIMEOUT, Some(10));
        assert_eq!(starts(&servers.steps(&demand(0, 0), |_| true, now)), [(1, None)]);
        assert_eq!(starts(&servers.steps(&demand(25, 0), |_| true, now)), [(2, None), (3, None)]);
        for number in 1..=3 {
            servers.listens(number, format!("http://{number}"), 10, now);
        }
        let mut used = demand(0, 22);
        let container = |(number, held)| ContainerUse {
            addr: format!("http://{number}").into(),
            slots: 10,
            held,
        };
        used.containers = [(1, 1), (2, 5), (3, 2)].map(container).into();
        assert!(servers.steps(&used, |_| true, now).is_empty());
        now += idle;
        // 22 were never needed: two servers go, those that have least.
        assert!(servers.steps(&used, |_| true, now).is_empty());
        assert_eq!(servers.urls(), ["http://2"]);
        let steps = servers.steps(&used, |url| url != "http://3", now);
        assert_eq!(steps, [Step::Stop(3)], "it has no trajectory any more");
        // One that is about to end is replaced at once.
        assert!(servers.ends("http://2") && !servers.ends("http://2") && !servers.drain(2));
        assert_eq!(starts(&servers.steps(&demand(0, 0), |_| true, now)), [(4, None)]);
        let stopped = servers.stop_all(now);
        assert_eq!(stopped, [Step::Stop(1), Step::Stop(2), Step::Stop(4)]);
    }

    #[test]
    fn where_every_start_fails_that_is_known() {
        let now = Instant::now();
        let bounds = Bounds { least: 1, most: 4, idle: TIMEOUT };
        let mut servers = Servers::of_jobs(bounds, TIMEOUT, None);
        servers.steps(&demand(0, 0), |_| true, now);
        assert!(!servers.has_failed());
        servers.ended(1, "Invalid partition".into(), now);
        assert!(servers.has_failed() && servers.is_empty());
    }

    proptest! {
        #[test]
        fn there_are_never_more_than_may_be_and_each_start_has_one_end(
            jobs in any::<bool>(),
            events in proptest::collection::vec((0..6u8, 0..8u64, 0..60usize, 0..400u64), 1..80),
        ) {
            let mut now = Instant::now();
            let bounds = Bounds { least: 1, most: 4, idle: TIMEOUT };
            let mut servers = match jobs {
                true => Servers::of_jobs(bounds, TIMEOUT, Some(10)),
                false => nodes(2),
            };
            let most = if jobs { 4 } else { 2 };
            let mut alive = std::collections::BTreeSet::new();
            for (what, number, count, seconds) in events {
                now += Duration::from_secs(seconds);
                match what {
                    0 => servers.runs(number, "1.0".into(), now),
                    1 => servers.listens(number, format!("http://{number}"), 10, now),
                    2 if alive.remove(&number) => {
                        servers.ended(number, "x".into(), now);
                    }
                    3 => drop(servers.drain(number)),
                    4 => drop(servers.is_bad(&format!("http://{number}"), now)),
                    _ => {}
                }
                let used = |url: &str| url.len().is_multiple_of(2);
                for step in servers.steps(&demand(count, 60 - count), used, now) {
                    match step {
                        Step::Start(number, node) => {
                            prop_assert!(alive.insert(number));
                            prop_assert_eq!(node.is_none(), jobs);
                        }
                        Step::Stop(number) | Step::Kill(number) => {
                            prop_assert!(alive.contains(&number));
                        }
                    }
                }
                prop_assert!(servers.lasting().count() <= most);
                let known = servers.numbers().into_iter().collect();
                prop_assert_eq!(&alive, &known);
                prop_assert!(servers.due().is_none_or(|due| due + PAUSE_MOST + TIMEOUT > now));
            }
            for number in alive {
                servers.stop_all(now);
                servers.ended(number, String::new(), now);
            }
            prop_assert!(servers.is_empty());
        }
    }
}
