//! Servers that are asked to end while trajectories are there.

use rustix::process::{Pid, Signal, kill_process};

use super::loss::Process;
use super::*;
use crate::fakes::until;
use crate::http_client::Client;

/// The state of a server, where it is still there.
fn state_of(executor: &ToolExecutor, url: &str) -> Option<&'static str> {
    let lanes = executor.stats().lanes;
    lanes.into_iter().find(|lane| lane.addr == url).map(|lane| lane.state)
}

fn terminate(process: &Process) {
    kill_process(Pid::from_child(&process.child), Signal::TERM).unwrap();
}

/// Which one of these trajectories is on this server, and which is not.
fn on<'a>(executor: &ToolExecutor, url: &str, ids: [&'a str; 2]) -> (&'a str, &'a str) {
    match *executor.slot_of(ids[0]).unwrap().addr == *url {
        true => (ids[0], ids[1]),
        false => (ids[1], ids[0]),
    }
}

#[test]
fn a_server_that_is_about_to_end_gets_no_trajectory_and_its_own_finish() {
    let (ends, stays) = (server(2), server(2));
    let executor = executor(fleet([url(&ends), url(&stays)]));
    for id in ["a", "b"] {
        assert_eq!(executor.execute(id, bash("echo mine > f")).outcome, Outcome::Ok);
    }
    let (there, _) = on(&executor, &url(&ends), ["a", "b"]);
    ends.drain();
    until(|| state_of(&executor, &url(&ends)) == Some("draining"));
    assert!(!ends.is_drained(), "a trajectory is there");
    assert_eq!(executor.execute(there, bash("cat f")).output, "mine");
    // There is one slot for whoever comes.
    for id in ["c", "d"] {
        assert_eq!(executor.execute(id, bash("true")).outcome, Outcome::Ok);
        assert_eq!(*executor.slot_of(id).unwrap().addr, *url(&stays));
        executor.release(id).unwrap();
    }
    let mut client = Client::connect(ends.addr());
    assert_eq!(client.ask("GET", "/health", &[], b"").json()["draining"], true);
    let mut other = fleet([url(&ends)]);
    other.start_timeout = Duration::from_secs(1);
    let refused = FleetBackend::new(other).unwrap().start(&Interrupt::new()).unwrap_err();
    assert!(refused.to_string().contains("about to end"), "{refused}");
    executor.release(there).unwrap();
    until(|| ends.is_drained());
    until(|| state_of(&executor, &url(&ends)).is_none());
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_terminated_server_ends_with_its_last_trajectory_and_the_next_one_there_is_used() {
    let mut ends = Process::start(0, 1);
    let stays = Process::start(0, 1);
    let executor = executor(fleet([ends.url.clone(), stays.url.clone()]));
    for id in ["a", "b"] {
        assert_eq!(executor.execute(id, bash("echo mine > f")).outcome, Outcome::Ok);
    }
    let (there, elsewhere) = on(&executor, &ends.url, ["a", "b"]);
    let running = executor.submit(there, bash("until [ -e go ]; do :; done; cat f")).unwrap();
    terminate(&ends);
    until(|| state_of(&executor, &ends.url) == Some("draining"));
    assert!(ends.child.try_wait().unwrap().is_none(), "it goes on");
    running.cancel();
    running.wait();
    assert_eq!(executor.execute(there, bash("cat f")).output, "mine");
    executor.release(there).unwrap();
    assert!(ends.child.wait().unwrap().success());
    assert_eq!(executor.execute(elsewhere, bash("cat f")).output, "mine");
    let waits = executor.submit("c", bash("echo there")).unwrap();
    let _next = Process::start(ends.port(), 1);
    assert_eq!(waits.wait().output, "there");
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_server_that_ends_before_its_trajectories_have_is_lost_at_once() {
    let mut ends = Process::start_with(0, 1, &["--drain-grace-s", "0.3"]);
    let mut config = fleet([ends.url.clone()]);
    config.unreachable_timeout = Duration::from_secs(600);
    let executor = executor(config);
    assert_eq!(executor.execute("a", bash("echo mine > f")).outcome, Outcome::Ok);
    terminate(&ends);
    assert!(ends.child.wait().unwrap().success());
    // Nothing listens there, and it had said why: that takes no ten minutes.
    let lost = executor.submit("a", bash("cat f")).unwrap();
    let lost = lost.wait_timeout(PATIENCE).expect("answered");
    assert_eq!(lost.outcome, Outcome::SandboxLost, "{}", lost.error);
    executor.release("a").unwrap();
    let _next = Process::start(ends.port(), 1);
    assert_eq!(executor.execute("a", bash("echo anew")).output, "anew");
    assert!(executor.close().all_threads_ended);
}
