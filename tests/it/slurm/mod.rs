//! A real Slurm of three nodes on this machine: sandbox servers in an allocation and in jobs, which
//! are killed, drained, cancelled and come back.
//!
//! Each test has a Slurm of its own, in a directory and on ports of its own, and runs in a process
//! whose environment names it. Needs root and the packages that `install-tools` installs.

mod faults;
mod reap;
mod requeue;
mod soak;
mod spill;

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tool_executor::backend::slurm::SlurmBackend;
use tool_executor::config::{SlurmConfig, SlurmJobs};
use tool_executor::{Outcome, StartError, ToolExecutor};

use crate::alone;
use crate::fakes::{PATIENCE, bash, until, until_within};
use crate::http_client::Client;
use crate::program::program;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_tool-executor");

/// The processes whose command lines have all of these words: those of a test's own Slurm.
fn processes(words: &[&str]) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        if words.iter().all(|word| line.iter().any(|part| part == word)) {
            found.push(pid);
        }
    }
    found
}

/// The daemons of a Slurm. Dropped, they end.
struct Slurm {
    directory: TempDir,
    controller: Child,
    nodes: Vec<Child>,
}

/// Ports that are free now.
fn ports<const COUNT: usize>() -> [u16; COUNT] {
    let listeners = [(); COUNT].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// The daemon that Slurm's programs show each other their tickets with: one for all tests.
fn start_munge() {
    let answers = || run("munge", &["-n"]).status.success();
    if answers() {
        return;
    }
    fs::create_dir_all("/run/munge").unwrap();
    let script = "chown munge /run/munge && su munge -s /bin/sh -c /usr/sbin/munged";
    // Another test may be faster: then there is one, too.
    run("sh", &["-c", script]);
    until(answers);
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What a program prints.
fn printed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Slurm {
    fn start() -> Self {
        start_munge();
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim();
        let [controller, first, second, third] = ports();
        let mut text = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nAuthType=auth/munge\n\
             MpiDefault=none\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
             SwitchType=switch/none\nSlurmUser=root\nReturnToService=2\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nSlurmctldPort={controller}\n\
             SlurmctldPidFile={at}/ctld.pid\nSlurmdPidFile={at}/d.%n.pid\n\
             SlurmdSpoolDir={at}/spool.%n\nStateSaveLocation={at}/state\nKillWait=5\n\
             SlurmdTimeout=10\nMessageTimeout=5\nPreemptType=preempt/partition_prio\nPreemptMode=CANCEL\n\
             PartitionName=main Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:8\n\
             PartitionName=low Nodes=ALL State=UP PriorityTier=1 GraceTime=60\n\
             PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF\n",
            at = at.display(),
        );
        for (node, port) in [("n1", first), ("n2", second), ("n3", third)] {
            text += &format!(
                "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN\n"
            );
        }
        let config = at.join("slurm.conf");
        fs::create_dir(at.join("state")).unwrap();
        fs::File::create(&config).unwrap().write_all(text.as_bytes()).unwrap();
        let controller = daemon("slurmctld", &config, &[]);
        let nodes = ["n1", "n2", "n3"].map(|node| daemon("slurmd", &config, &["-N", node]));
        Self { directory, controller, nodes: nodes.into() }
    }

    fn config(&self) -> String {
        self.directory.path().join("slurm.conf").display().to_string()
    }

    /// Runs a test in a process of its own, whose Slurm this is.
    fn run(&self, test: &str, allocation: bool) {
        alone::run(test, "slurm", &[], |command| {
            command.env("SLURM_CONF", self.config());
            // Some of the machine's own may be set.
            command.env_remove("SLURM_JOB_NODELIST");
            if allocation {
                command.env("SLURM_JOB_NODELIST", "n[1-3]");
            }
        });
    }
}

fn daemon(name: &str, config: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(name);
    command.arg("-D").arg("-f").arg(config).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().chain([&mut self.controller]) {
            let _ = (child.kill(), child.wait());
        }
        // What kept a step, and tells its end to a daemon that is gone, does so for a long time.
        let variable = format!("SLURM_CONF={}", self.config());
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            let is_ours = read("environ").split(|b| *b == 0).any(|v| v == variable.as_bytes());
            if is_ours && read("comm").starts_with(b"slurmstepd") {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// Whether this process is one whose Slurm is there. If not, the test was run in one that is.
fn has_slurm(test: &str) -> bool {
    if alone::case().is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        // Only root runs the daemons.
        return false;
    }
    let path = if test.contains("::") { test.to_owned() } else { format!("slurm::{test}") };
    Slurm::start().run(&path, false);
    false
}

fn config() -> SlurmConfig {
    let mut config = SlurmConfig::default()
        .with_program(PROGRAM.into())
        .with_slots_per_server(Some(2))
        .with_start_timeout(PATIENCE)
        .with_unreachable_timeout(Duration::from_secs(3));
    config.server_arguments = vec!["--lease-s".to_owned(), "2".to_owned()];
    config
}

fn jobs() -> SlurmJobs {
    SlurmJobs::default().with_partition("main")
}

fn start(config: SlurmConfig) -> Result<ToolExecutor, StartError> {
    ToolExecutor::builder().backend(SlurmBackend::new(config).unwrap()).start()
}

/// The steps or jobs of ours that Slurm has.
fn running() -> Vec<String> {
    let printed = printed("squeue", &["-h", "-o", "%i %T %j"]);
    let ours = printed.lines().filter(|line| line.contains(" tool-executor:"));
    ours.map(str::to_owned).collect()
}

/// Slurm may take a minute to see that a step has ended, where the machine is busy.
fn nodes_are_idle() {
    until_within(4 * PATIENCE, || printed("sinfo", &["-h", "-o", "%D %T"]) == "3 idle");
}

/// Whether a call's command was ended by the SIGTERM that Slurm sends to a step: without cgroups
/// (`proctrack/linuxproc`, as here) it reaches all processes beneath the server, too.
fn is_signalled(result: &tool_executor::ToolResult) -> bool {
    result.outcome == Outcome::NonZeroExit && result.error.contains("143")
}

#[test]
fn jobs_come_as_trajectories_need_them_and_go_when_they_do_not() {
    if !has_slurm("jobs_come_as_trajectories_need_them_and_go_when_they_do_not") {
        return;
    }
    nodes_are_idle();
    let idle = Duration::from_secs(3);
    let config = config().with_jobs(jobs()).with_min_servers(0).with_max_servers(Some(3));
    let executor = start(config.with_idle_timeout(idle)).unwrap();
    assert_eq!(executor.stats().slots.total, 0, "none before it is needed");
    // More than one server's slots: a second one is started for them.
    let ids = ["a", "b", "c"];
    let calls = ids.map(|id| executor.submit(id, bash("echo $SLURMD_NODENAME")).unwrap());
    for call in calls {
        let result = call.wait();
        assert_eq!(result.outcome, Outcome::Ok, "{}", result.error);
        // Nothing of the server's environment is the command's.
        assert_eq!(result.output, "");
        assert!(result.metadata["container"].as_str().unwrap().starts_with("http://"));
    }
    assert_eq!((executor.stats().slots.total, running().len()), (4, 2));
    for id in ids {
        executor.release(id).unwrap();
    }
    until(|| executor.stats().lanes.is_empty() && running().is_empty());
    let again = executor.execute("d", bash("echo back"));
    assert_eq!((again.outcome, &*again.output), (Outcome::Ok, "back"));
    assert!(executor.close().all_threads_ended);
    until(|| running().is_empty());
}

#[test]
fn five_hundred_trajectories_wait_while_the_first_three_servers_start_and_none_fails() {
    if !has_slurm(
        "five_hundred_trajectories_wait_while_the_first_three_servers_start_and_none_fails",
    ) {
        return;
    }
    nodes_are_idle();
    let config = config().with_jobs(jobs()).with_min_servers(0).with_max_servers(Some(3));
    let executor = start(config).unwrap();
    assert_eq!(executor.stats().slots.total, 0, "they all wait for the first server");
    let ids: Vec<_> = (0..500).map(|n| format!("t{n}")).collect();
    let calls: Vec<_> =
        ids.iter().map(|id| executor.submit(id, bash("echo here")).unwrap()).collect();
    let mut servers = std::collections::BTreeSet::new();
    for (id, call) in ids.iter().zip(calls) {
        let result = call.wait();
        assert_eq!((result.outcome, &*result.output), (Outcome::Ok, "here"), "{id}: {result:?}");
        servers.insert(result.metadata["container"].as_str().unwrap().to_owned());
        executor.release(id).unwrap();
    }
    assert_eq!(servers.len(), 3, "{servers:?}");
    assert!(executor.close().all_threads_ended);
    until(|| running().is_empty());
}

#[test]
fn what_slurm_refuses_is_told_and_nothing_is_left() {
    if !has_slurm("what_slurm_refuses_is_told_and_nothing_is_left") {
        return;
    }
    nodes_are_idle();
    let began = Instant::now();
    let error = start(config().with_jobs(jobs().with_partition("nowhere"))).unwrap_err();
    let StartError::Backend(error) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains("nvalid partition"), "{error}");
    assert!(began.elapsed() < PATIENCE, "it does not wait for what cannot be");
    let error = start(config()).unwrap_err().to_string();
    assert!(error.contains("did not start"), "{error}");
    let missing = config().with_jobs(jobs()).with_program("/nonexistent/program".into());
    let error = start(missing).unwrap_err();
    let StartError::Backend(error) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains("starts no sandbox server"), "{error}");
    until(|| running().is_empty());
}

#[test]
fn a_job_that_is_cancelled_costs_its_own_trajectories_only_and_is_replaced() {
    if !has_slurm("a_job_that_is_cancelled_costs_its_own_trajectories_only_and_is_replaced") {
        return;
    }
    nodes_are_idle();
    let config = config().with_jobs(jobs()).with_min_servers(2).with_max_servers(Some(2));
    let executor = start(config).unwrap();
    until(|| executor.stats().slots.total == 4);
    for id in ["a", "b"] {
        assert_eq!(executor.execute(id, bash("echo mine > f")).outcome, Outcome::Ok);
    }
    let addr = |id: &str| executor.slot_of(id).unwrap().addr;
    assert_ne!(addr("a"), addr("b"), "on two servers");
    let jobs = running();
    assert_eq!(jobs.len(), 2, "{jobs:?}");
    let first = jobs[0].split(' ').next().unwrap().to_owned();
    run("scancel", &[&first]);
    let survives = |id: &str| executor.execute(id, bash("cat f"));
    until(|| ["a", "b"].iter().any(|id| survives(id).outcome == Outcome::SandboxLost));
    let results = ["a", "b"].map(survives);
    let lost = results.iter().filter(|result| result.outcome == Outcome::SandboxLost).count();
    let kept = results.iter().filter(|result| result.output == "mine").count();
    assert_eq!((lost, kept), (1, 1), "{results:?}");
    // There is another one.
    until(|| {
        let stats = executor.stats();
        stats.containers.up == 2 && stats.slots.total == 4
    });
    assert!(running().iter().all(|job| !job.starts_with(&format!("{first} "))));
    assert!(executor.close().all_threads_ended);
    until(|| running().is_empty());
}

#[test]
fn a_job_that_ends_soon_is_drained_and_another_started_before_it_ends() {
    if !has_slurm("a_job_that_ends_soon_is_drained_and_another_started_before_it_ends") {
        return;
    }
    nodes_are_idle();
    // Each has a minute at most: it is looked at as one that ends soon from the first look on.
    let config = config().with_jobs(jobs().with_time("1")).with_max_servers(Some(2));
    let executor = start(config.with_drain_before(Duration::from_secs(120))).unwrap();
    assert_eq!(executor.execute("a", bash("echo mine > f")).outcome, Outcome::Ok);
    let before = executor.slot_of("a").unwrap().addr;
    let is_draining = || {
        let lanes = executor.stats().lanes;
        lanes.iter().any(|lane| lane.addr == *before && lane.state == "draining")
    };
    let deadline = Instant::now() + Duration::from_secs(40);
    while !is_draining() {
        assert!(Instant::now() < deadline, "{:?}", executor.stats().lanes);
        std::thread::yield_now();
    }
    assert_eq!(executor.execute("a", bash("cat f")).output, "mine", "it finishes there");
    let other = executor.execute("b", bash("echo b"));
    assert_eq!(other.outcome, Outcome::Ok, "{}", other.error);
    assert_ne!(executor.slot_of("b").unwrap().addr, before);
    executor.release("a").unwrap();
    until(|| executor.stats().lanes.iter().all(|lane| lane.addr != *before));
    assert!(executor.close().all_threads_ended);
    until(|| running().is_empty());
}

#[test]
fn nothing_runs_on_when_the_executor_is_killed() {
    if !has_slurm("nothing_runs_on_when_the_executor_is_killed") {
        return;
    }
    nodes_are_idle();
    let mut serve = program()
        .args(["serve", "--port", "0", "--no-auth", "--slurm-slots", "1"])
        .args(["--slurm-submit", "partition=main,nodes=1-2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = serve.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    assert!(line.contains("listening"), "{line}");
    assert_eq!(running().len(), 1);
    let at = |text: &str| {
        let words = text.split(['/', ' ', '"']);
        words.filter_map(|word| word.rsplit_once(':')).find_map(|(_, port)| port.parse().ok())
    };
    let listens = |port: u16| TcpStream::connect(("127.0.0.1", port));
    let own: u16 = at(&line).unwrap();
    let told = Client::connect(([127, 0, 0, 1], own).into()).ask("GET", "/sandboxes", &[], b"");
    let servers = told.json()["sandboxes"][0]["url"].as_str().unwrap().to_owned();
    let port: u16 = at(&servers).unwrap();
    assert!(listens(port).is_ok());
    serve.kill().unwrap();
    serve.wait().unwrap();
    until(|| running().is_empty());
    until(|| listens(port).is_err());
}

/// Inside an allocation of three nodes: each has a server; a node's daemon is killed, a controller
/// is away, and the allocation is used on.
#[test]
fn every_node_of_an_allocation_has_a_server() {
    if alone::case().is_none() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let slurm = Slurm::start();
        let name = "slurm::every_node_of_an_allocation_has_a_server";
        let ready = || {
            let sinfo = Command::new("sinfo")
                .args(["-h", "-o", "%D %T"])
                .env("SLURM_CONF", slurm.config())
                .output()
                .unwrap();
            String::from_utf8_lossy(&sinfo.stdout).trim() == "3 idle"
        };
        until(ready);
        // As a trainer has it: everything runs in what salloc has got.
        let salloc = ["salloc", "--nodes=3", "--quiet"];
        return alone::run(name, "slurm", &salloc, |command| {
            command.env("SLURM_CONF", slurm.config());
        });
    }
    assert!(std::env::var("SLURM_JOB_NODELIST").unwrap().contains("n[1-3]"));
    let executor = start(config()).unwrap();
    until(|| executor.stats().containers.up == 3);
    let ids = ["a", "b", "c"];
    for id in ids {
        assert_eq!(executor.execute(id, bash("echo 1 > f")).outcome, Outcome::Ok);
    }
    let addr = |id: &str| executor.slot_of(id).unwrap().addr;
    assert!(addr("a") != addr("b") && addr("b") != addr("c") && addr("a") != addr("c"));
    // The server of one node is killed.
    let url = addr("a");
    let port = url.rsplit(':').next().unwrap();
    let pid = printed(
        "sh",
        &[
            "-c",
            &format!("ss -Hltnp 'sport = :{port}' | grep -o 'pid=[0-9]*' | head -1 | cut -d= -f2"),
        ],
    );
    run("kill", &["-9", &pid]);
    let lost = executor.execute("a", bash("cat f"));
    assert_eq!(lost.outcome, Outcome::SandboxLost, "{}", lost.error);
    for id in ["b", "c"] {
        assert_eq!(executor.execute(id, bash("cat f")).output, "1");
    }
    until(|| executor.stats().containers.up == 3);
    executor.release("a").unwrap();
    assert_eq!(executor.execute("a", bash("ls")).output, "");
    assert!(executor.close().all_threads_ended);
    let step = std::env::var("SLURM_JOB_ID").unwrap();
    until(|| {
        printed("squeue", &["-h", "-s", "-j", &step, "-o", "%j"])
            .lines()
            .all(|name| !name.starts_with("tool-executor"))
    });
}
