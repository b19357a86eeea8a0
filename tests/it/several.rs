//! Several backends under one executor: this machine's slots and sandbox servers, and backends of
//! the test.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::Value;
use tool_executor::artifact::{PutFiles, ReadArtifact};
use tool_executor::backend::local::LocalBackend;
use tool_executor::backend::{
    Backend, BeginReply, Capabilities, Container, Demand, Execution, ResetReply, Several, SlotRef,
};
use tool_executor::config::{
    BackendConfig, ExecutorConfig, FleetConfig, LocalConfig, ServerConfig,
};
use tool_executor::server::{ExecutorServer, SandboxServer};
use tool_executor::snapshot::SnapshotOptions;
use tool_executor::{
    BackendError, BeginFailure, Interrupt, Outcome, SpecField, StartError, ToolExecutor,
    ToolResult, TrajectorySpec,
};

use crate::fakes::{HandsOver, PATIENCE, Told, bash, command, next, until};

const TOKEN: &str = "s3cret-of-the-fleet";

fn server(slots: usize) -> SandboxServer {
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
    config.token = Some(TOKEN.into());
    let backend = LocalBackend::start(LocalConfig::new(slots)).unwrap();
    SandboxServer::start(config, backend).unwrap()
}

fn url(server: &SandboxServer) -> String {
    format!("http://{}", server.addr())
}

fn fleet(servers: &[&SandboxServer]) -> FleetConfig {
    let mut config = FleetConfig::new(servers.iter().map(|server| url(server))).with_token(TOKEN);
    config.unreachable_timeout = Duration::from_secs(3);
    config.start_timeout = Duration::from_secs(10);
    config
}

/// One slot of this machine, and servers.
fn config(servers: &[&SandboxServer]) -> ExecutorConfig {
    ExecutorConfig::default().with_backends(vec![
        BackendConfig::default().with_local(LocalConfig::new(1)),
        BackendConfig::default().with_fleet(fleet(servers)),
    ])
}

fn container(result: &ToolResult) -> String {
    assert_eq!(result.outcome, Outcome::Ok, "{}", result.error);
    result.metadata["container"].as_str().unwrap().to_owned()
}

/// Counts in a file of the trajectory's how often it was called.
fn count() -> tool_executor::ToolCall {
    bash("echo >> n; wc -l < n")
}

#[test]
fn this_machine_is_preferred_and_servers_get_what_it_has_no_slot_for() {
    let servers = [server(1), server(1)];
    let executor = ToolExecutor::start(config(&[&servers[0], &servers[1]])).unwrap();
    until(|| executor.stats().containers.up == 3);
    let results = ["a", "b", "c"].map(|id| executor.execute(id, count()));
    assert_eq!(container(&results[0]), "local/local");
    let on_servers: BTreeSet<_> = results[1..].iter().map(container).collect();
    let expected: BTreeSet<_> =
        servers.iter().map(|server| format!("fleet/{}", url(server))).collect();
    assert_eq!(on_servers, expected);
    let stats = executor.stats();
    let told: Vec<_> = (stats.backends.iter())
        .map(|one| (&*one.name, one.containers, one.slots, one.free, one.waiting))
        .collect();
    assert_eq!(told, [("local", 1, 1, 0, 0), ("fleet", 2, 2, 0, 0)]);
    assert!(stats.backends.iter().all(|one| one.capabilities.isolation_level.is_some()));
    let lanes: BTreeSet<_> = stats.lanes.iter().map(|lane| lane.addr.clone()).collect();
    assert_eq!(lanes.len(), 3);
    // Where they are they stay, and one that waits gets the first that becomes free.
    let waits = executor.submit("d", count()).unwrap();
    assert_eq!(executor.execute("b", count()).output, "2");
    executor.release("b").unwrap();
    assert_eq!(container(&waits.wait()), container(&results[1]));
    executor.release("a").unwrap();
    assert_eq!(container(&executor.execute("e", count())), "local/local");
    assert!(executor.close().all_threads_ended);
}

#[test]
fn files_snapshots_and_forks_are_where_their_trajectory_is() {
    let far = server(3);
    let executor = ToolExecutor::start(config(&[&far])).unwrap();
    until(|| executor.stats().containers.up == 2);
    let addr = |id: &str| executor.slot_of(id).unwrap().addr.to_string();
    for id in ["here", "there"] {
        assert_eq!(executor.execute(id, bash("true")).outcome, Outcome::Ok);
        let put = PutFiles::file("f");
        executor.put(id, &put, &mut id.as_bytes()).unwrap();
        assert_eq!(executor.execute(id, bash("cat f")).output, id);
        let read = executor.read_artifact(id, &ReadArtifact::new("f")).unwrap();
        assert_eq!(read.content, id.as_bytes());
    }
    let there = format!("fleet/{}", url(&far));
    assert_eq!((addr("here"), addr("there")), ("local/local".to_owned(), there.clone()));
    let kept =
        ["here", "there"].map(|id| executor.snapshot(id, &SnapshotOptions::default()).unwrap());
    assert_eq!(kept.clone().map(|kept| kept.container.to_string()), ["local/local", &there]);
    let listed = executor.snapshots().unwrap();
    assert_eq!(listed.len(), 2);
    // What began here has its slot here, although there are free ones elsewhere.
    let begin = |id: &str, from: usize| {
        executor
            .submit_begin(id, TrajectorySpec::default().with_snapshot(kept[from].id.clone()))
            .unwrap();
        executor.submit(id, bash("cat f")).unwrap()
    };
    let (fork_here, fork_there) = (begin("fork-here", 0), begin("fork-there", 1));
    assert_eq!(fork_there.wait().output, "there");
    assert_eq!(addr("fork-there"), there);
    assert!(!fork_here.is_done(), "this machine's slot is taken");
    executor.release("here").unwrap();
    assert_eq!(fork_here.wait().output, "here");
    assert_eq!(addr("fork-here"), "local/local");
    for kept in &kept {
        executor.drop_snapshot(&kept.id).unwrap();
    }
    assert!(executor.snapshots().unwrap().is_empty());
    executor.drop_snapshot(&kept[0].id).unwrap_err();
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_server_that_dies_costs_its_own_trajectories_only_and_new_ones_go_elsewhere() {
    let servers = [server(1), server(1)];
    let executor = ToolExecutor::start(config(&[&servers[0], &servers[1]])).unwrap();
    until(|| executor.stats().containers.up == 3);
    let places = ["a", "b", "c"].map(|id| container(&executor.execute(id, count())));
    let (lost, stays) = ("b", "c");
    let [first, second] = servers;
    let dies = if places[1].ends_with(&url(&first)) { first } else { second };
    dies.close(Duration::ZERO);
    until(|| executor.execute(lost, count()).outcome == Outcome::SandboxLost);
    for id in ["a", stays] {
        let result = executor.execute(id, count());
        assert_eq!(result.outcome, Outcome::Ok, "{id}: {}", result.error);
    }
    executor.release("a").unwrap();
    executor.release(lost).unwrap();
    assert_eq!(container(&executor.execute(lost, count())), "local/local");
    assert!(executor.close().all_threads_ended);
}

/// Hands everything over, and says what it can do.
struct Says {
    inner: HandsOver,
    capabilities: Capabilities,
    demands: Sender<Demand>,
    closed: Sender<&'static str>,
    name: &'static str,
    fails: bool,
}

impl Backend for Says {
    fn start(&self, interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        if self.fails {
            return Err(BackendError::new("it does not start"));
        }
        self.inner.start(interrupt)
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn demand(&self, demand: &Demand) {
        let _ = self.demands.send(demand.clone());
    }

    fn execute(&self, addr: &str, batch: Vec<Execution>) {
        assert_eq!(addr, "fake", "it is called as it calls itself");
        assert!(batch.iter().all(|execution| &*execution.slot.addr == "fake"));
        self.inner.execute(addr, batch);
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        assert_eq!(&*slot.addr, "fake");
        self.inner.reset(slot, reply);
    }

    fn begin(&self, slot: &SlotRef, spec: &Arc<TrajectorySpec>, reply: BeginReply) {
        self.inner.begin(slot, spec, reply);
    }

    fn close(&self, _deadline: Instant) {
        let _ = self.closed.send(self.name);
    }
}

struct Fake {
    backend: Says,
    told: Receiver<Told>,
    demands: Receiver<Demand>,
    closed: Receiver<&'static str>,
}

fn fake(name: &'static str, slots: usize, capabilities: Capabilities) -> Fake {
    let (inner, told) = HandsOver::new(slots);
    let ((tell, demands), (close, closed)) = (unbounded(), unbounded());
    let (demand, closes, fails) = (tell, close, false);
    let backend = Says { inner, capabilities, demands: demand, closed: closes, name, fails };
    Fake { backend, told, demands, closed }
}

fn gives(field: SpecField) -> Capabilities {
    Capabilities::default().with_spec(vec![field])
}

#[test]
fn a_spec_goes_where_it_can_be_given_and_is_refused_only_where_none_can() {
    let (near, far) =
        (fake("near", 2, gives(SpecField::Env)), fake("far", 2, gives(SpecField::Image)));
    let both = Several::new().with("near", near.backend).unwrap();
    let both = both.with("far", far.backend).unwrap();
    let executor = ToolExecutor::builder().backend(both).start().unwrap();
    let image = TrajectorySpec::default().with_image("an-image");
    executor.submit_begin("a", image.clone()).unwrap();
    let call = executor.submit("a", bash("one")).unwrap();
    let (slot, _, reply) = next(&far.told).begin();
    assert_eq!(&*slot.addr, "fake");
    reply.send(Ok(()));
    next(&far.told).execution().reply.send(ToolResult::ok("there"));
    let result = call.wait();
    assert_eq!((&*result.output, &*container(&result)), ("there", "far/fake"));

    // One that cannot be had there is asked of no other: none else can give an image.
    executor.submit_begin("b", image).unwrap();
    let call = executor.submit("b", bash("one")).unwrap();
    next(&far.told).begin().2.send(Err(BeginFailure::image_unavailable("no such image")));
    let result = call.wait();
    assert_eq!(result.outcome, Outcome::ImageUnavailable);
    assert!(result.error.contains("no such image"), "{}", result.error);
    next(&far.told).reset().1.send(Ok(()));

    // What none says that it can give each is asked for, and each answer is told.
    let user = TrajectorySpec::default().with_user("root");
    executor.submit_begin("c", user).unwrap();
    let call = executor.submit("c", bash("one")).unwrap();
    next(&near.told).begin().2.send(Err(BeginFailure::unsupported("not here")));
    next(&far.told).begin().2.send(Err(BeginFailure::unsupported("nor here")));
    let result = call.wait();
    assert_eq!(result.outcome, Outcome::SpecUnsupported);
    assert!(result.error.contains("near: not here; far: nor here"), "{}", result.error);
    executor.close_within(Duration::ZERO);
}

#[test]
fn a_backend_that_grows_is_told_of_what_spills_and_no_more() {
    let near = fake("near", 1, Capabilities::default());
    let far = fake("far", 1, Capabilities::default().with_may_grow(true));
    let after = Duration::from_millis(300);
    let both = Several::new().with("near", near.backend).unwrap();
    let both = both.with_shared("far", after, Arc::new(far.backend)).unwrap();
    let executor = ToolExecutor::builder().backend(both).start().unwrap();
    let began = Instant::now();
    let calls = ["a", "b", "c"].map(|id| executor.submit(id, bash(id)).unwrap());
    let first = next(&near.told).execution();
    assert_eq!(command(&first), "a");
    let second = next(&far.told).execution();
    assert!(began.elapsed() >= after, "{:?}", began.elapsed());
    assert_eq!(command(&second), "b");
    let mut last = far.demands.recv_timeout(PATIENCE).unwrap();
    while last.waiting == 0 {
        last = far.demands.recv_timeout(PATIENCE).expect("it is told of the one that spills");
    }
    assert_eq!((last.waiting, last.free, last.containers.len()), (1, 0, 1));
    assert_eq!((&*last.containers[0].addr, last.containers[0].held), ("fake", 1));
    assert!(last.tiers.is_empty());
    first.reply.send(ToolResult::ok("done"));
    second.reply.send(ToolResult::ok("done"));
    executor.submit_release("a");
    next(&near.told).reset().1.send(Ok(()));
    let third = next(&near.told).execution();
    assert_eq!(command(&third), "c");
    third.reply.send(ToolResult::ok("done"));
    assert!(calls.into_iter().all(|call| call.wait().output == "done"));
    executor.close_within(Duration::ZERO);
    assert_eq!(near.closed.recv_timeout(PATIENCE), Ok("near"));
    assert_eq!(far.closed.recv_timeout(PATIENCE), Ok("far"));
}

#[test]
fn where_one_does_not_start_those_before_it_are_closed() {
    let (near, mut far) =
        (fake("near", 1, Capabilities::default()), fake("far", 1, Capabilities::default()));
    far.backend.fails = true;
    let both = Several::new().with("near", near.backend).unwrap();
    let both = both.with("far", far.backend).unwrap();
    let Err(StartError::Backend(error)) = ToolExecutor::builder().backend(both).start() else {
        panic!("one of them does not start")
    };
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        (error.to_string(), cause),
        ("in \"far\"".to_owned(), "it does not start".to_owned())
    );
    assert_eq!(near.closed.recv_timeout(PATIENCE), Ok("near"));
    for name in ["", "a/b", "near"] {
        let fake = || fake("x", 1, Capabilities::default()).backend;
        let one = Several::new().with("near", fake()).unwrap();
        one.with(name, fake()).unwrap_err();
    }
}

#[test]
fn the_servers_of_one_backend_are_changed_by_its_name_and_a_front_tells_of_each() {
    let servers = [server(1), server(1)];
    let executor = Arc::new(ToolExecutor::start(config(&[&servers[0]])).unwrap());
    let front = ServerConfig::new(([127, 0, 0, 1], 0));
    let front = ExecutorServer::start(front, executor.clone()).unwrap();
    let ask = |path: &str| {
        let answer = ureq::get(format!("http://{}{path}", front.addr())).call().unwrap();
        answer.into_body().read_to_string().unwrap()
    };
    let tell = |urls: &[String]| {
        let body = serde_json::json!({"urls": urls}).to_string();
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let sent = agent
            .post(format!("http://{}/sandboxes", front.addr()))
            .header("Content-Type", "application/json")
            .send(body);
        let mut answer = sent.unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let (status, why) = tell(&[url(&servers[1])]);
    assert!(status >= 400 && why.contains("NAME/ADDRESS"), "{status} {why}");
    let (status, why) = tell(&["local/local".to_owned()]);
    assert!(status >= 400 && why.contains("cannot be changed"), "{status} {why}");
    let named = format!("fleet/{}", url(&servers[1]));
    assert_eq!(tell(std::slice::from_ref(&named)).0, 200);
    until(|| {
        let lanes: Vec<_> = executor.stats().lanes.into_iter().map(|lane| lane.addr).collect();
        lanes.len() == 2 && lanes.contains(&named)
    });
    let status: Value = serde_json::from_str(&ask("/status")).unwrap();
    let backends = status["backends"].as_array().unwrap();
    let told: Vec<_> = backends
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["slots"].as_u64().unwrap()))
        .collect();
    assert_eq!(told, [("local", 1), ("fleet", 1)]);
    let metrics = ask("/metrics");
    assert!(metrics.contains("tool_executor_backend_free_slots{backend=\"fleet\"} 1"), "{metrics}");
    front.close(Duration::ZERO);
    executor.close_within(Duration::ZERO);
}
