//! Parts of Slurm that die while trajectories run: each call is answered, and none runs twice.

use rustix::process::{Pid, Signal, kill_process};
use tool_executor::ToolResult;

use super::*;

/// Counts in a file of the trajectory's how often it was called.
fn count() -> tool_executor::ToolCall {
    bash("echo >> n; wc -l < n")
}

/// For how many seconds the controller is away, if not for 8: `TOOL_EXECUTOR_AWAY_SECONDS=240 cargo
/// test --test it a_controller_that_is_away`.
const AWAY: &str = "TOOL_EXECUTOR_AWAY_SECONDS";

/// Calls that count, each of which must say one more than the one before, until `enough`, which
/// must be within `most`.
fn count_until(
    executor: &ToolExecutor,
    id: &str,
    from: u32,
    most: Duration,
    mut enough: impl FnMut() -> bool,
) -> u32 {
    let deadline = Instant::now() + most;
    let mut expected = from;
    while !enough() {
        assert!(Instant::now() < deadline, "it never came to be");
        expected += 1;
        let result = executor.execute(id, count());
        if is_signalled(&result) {
            // It may have counted before.
            let counted = executor.execute(id, bash("wc -l < n")).output.parse().unwrap();
            assert!((expected - 1..=expected).contains(&counted), "{counted}");
            expected = counted;
            continue;
        }
        assert_eq!(result.output, expected.to_string(), "{result:?}");
    }
    expected
}

fn config_file() -> String {
    std::env::var("SLURM_CONF").unwrap()
}

fn kill(words: &[&str]) {
    let pids = processes(words);
    assert!(!pids.is_empty(), "{words:?}");
    for pid in pids {
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
}

/// A process that ends with the test, also where that fails.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

fn is_lost(result: &ToolResult) -> bool {
    result.outcome == Outcome::SandboxLost
}

#[test]
fn a_controller_that_is_away_holds_up_new_servers_only() {
    if !has_slurm("slurm::faults::a_controller_that_is_away_holds_up_new_servers_only") {
        return;
    }
    nodes_are_idle();
    let executor = start(config().with_jobs(jobs()).with_max_servers(Some(2))).unwrap();
    assert_eq!(executor.execute("a", count()).output, "1");
    assert_eq!(executor.execute("b", count()).output, "1");
    let file = config_file();
    kill(&["slurmctld", &file]);
    // One more than the server has slots: it waits for a server that cannot be started now.
    let waits = executor.submit("c", count()).unwrap();
    let away = std::env::var(AWAY).map_or(8, |seconds| seconds.parse().unwrap());
    let (began, away) = (Instant::now(), Duration::from_secs(away));
    let reached = count_until(&executor, "a", 1, away + PATIENCE, || began.elapsed() > away);
    assert!(!waits.is_done(), "there is no slot for it");
    let _controller = Ends(daemon("slurmctld", Path::new(&file), &[]));
    let result = waits.wait_timeout(PATIENCE * 2).expect("it is started when there is one again");
    assert_eq!(result.output, "1", "{result:?}");
    assert_eq!(executor.execute("a", count()).output, (reached + 1).to_string());
    assert_eq!(executor.execute("b", count()).output, "2");
    // Programs of Slurm's that had lost their controller may not end when they are told to: they
    // are given up, and what they ran ends by itself when it is unused.
    let began = Instant::now();
    drop(executor);
    assert!(began.elapsed() < PATIENCE * 2, "{:?}", began.elapsed());
    until_within(Duration::from_secs(180), || running().is_empty());
}

#[test]
fn a_job_that_is_preempted_is_drained_and_its_trajectory_finishes() {
    if !has_slurm("slurm::faults::a_job_that_is_preempted_is_drained_and_its_trajectory_finishes") {
        return;
    }
    nodes_are_idle();
    let jobs = jobs().with_partition("low").with_arguments(vec!["--exclusive".to_owned()]);
    let config = config().with_jobs(jobs).with_max_servers(Some(1));
    let executor = start(config).unwrap();
    assert_eq!(executor.execute("a", count()).output, "1");
    let addr = executor.slot_of("a").unwrap().addr;
    let mut wants = Command::new("srun");
    wants.args(["-p", "high", "--exclusive", "-N3", "sleep", "600"]);
    // Nothing of it may hold this process's pipes.
    wants.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let wants = Ends(wants.spawn().unwrap());
    let is_draining = || {
        let lanes = executor.stats().lanes;
        lanes.iter().any(|lane| lane.addr == *addr && lane.state == "draining")
    };
    // Its grace has begun: the trajectory goes on.
    let reached = count_until(&executor, "a", 1, PATIENCE * 2, is_draining);
    assert_eq!(executor.execute("a", count()).output, (reached + 1).to_string());
    executor.release("a").unwrap();
    until(|| executor.stats().lanes.iter().all(|lane| lane.addr != *addr));
    // There is room again when the other job has ended.
    let waits = executor.submit("b", count()).unwrap();
    run("scancel", &["-p", "high"]);
    drop(wants);
    let result = waits.wait_timeout(PATIENCE * 3).expect("there is a server again");
    assert_eq!(result.output, "1", "{result:?}");
    assert!(executor.close().all_threads_ended);
    until(|| running().is_empty());
}

#[test]
fn a_nodes_daemon_that_is_killed_costs_no_call_twice_and_another_node_is_used() {
    let name =
        "slurm::faults::a_nodes_daemon_that_is_killed_costs_no_call_twice_and_another_node_is_used";
    if !has_slurm(name) {
        return;
    }
    nodes_are_idle();
    let executor = start(config().with_jobs(jobs()).with_max_servers(Some(1))).unwrap();
    assert_eq!(executor.execute("a", count()).output, "1");
    let before = executor.slot_of("a").unwrap().addr;
    let node = printed("squeue", &["-h", "-o", "%N"]);
    let file = config_file();
    kill(&["slurmd", "-N", &node, &file]);
    // Its server runs on until Slurm gives the node up; then there is another server.
    let deadline = Instant::now() + PATIENCE * 3;
    let mut expected = 1;
    let mut was_lost = false;
    let is_replaced = || {
        let lanes = executor.stats().lanes;
        lanes.iter().any(|lane| lane.addr != *before && lane.state == "up")
    };
    while !is_replaced() {
        assert!(Instant::now() < deadline, "{:?}", executor.stats().lanes);
        let result = executor.execute("a", count());
        expected += 1;
        was_lost |= is_lost(&result);
        assert!(was_lost || result.output == expected.to_string(), "{result:?}");
        if was_lost {
            assert!(is_lost(&result), "{result:?}");
        }
    }
    let other = executor.execute("b", count());
    assert_eq!(other.output, "1", "{other:?}");
    assert_ne!(executor.slot_of("b").unwrap().addr, before);
    let _back = Ends(daemon("slurmd", Path::new(&file), &["-N", &node]));
    assert!(executor.close().all_threads_ended);
    until(|| running().is_empty());
}

#[test]
fn a_job_that_is_cancelled_while_it_starts_leaves_nothing() {
    if !has_slurm("slurm::faults::a_job_that_is_cancelled_while_it_starts_leaves_nothing") {
        return;
    }
    nodes_are_idle();
    let began = Instant::now();
    let started = std::thread::scope(|scope| {
        let starts = scope.spawn(|| start(config().with_jobs(jobs())));
        until(|| !running().is_empty());
        let jobs = running();
        let job = jobs[0].split(' ').next().unwrap();
        run("scancel", &[job]);
        starts.join().unwrap()
    });
    // It has come too late, or the start says what has become of it.
    match started {
        Ok(executor) => {
            until(|| executor.execute("a", bash("echo on")).output == "on");
            assert!(executor.close().all_threads_ended);
        }
        Err(StartError::Backend(error)) => {
            assert!(error.to_string().contains("Slurm starts no sandbox server"), "{error}");
        }
        Err(error) => panic!("{error:?}"),
    }
    assert!(began.elapsed() < PATIENCE * 2);
    until(|| running().is_empty());
}
