//! A soak: an executor of this machine's slots and of Slurm's jobs on three nodes, to which faults
//! happen at random. No answer is lost or double, whatever is killed, and nothing is left.
//!
//! ```sh
//! TOOL_EXECUTOR_SOAK_SECONDS=900 cargo test --test it slurm::soak -- --ignored --nocapture
//! ```

#![expect(clippy::print_stderr, reason = "the one who started it reads what it says")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tool_executor::backend::Several;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig};

use super::*;

const NAME: &str = "slurm::soak::whatever_fails_no_answer_is_lost_or_double";
/// For how long, in seconds, if not for fifteen minutes.
const VARIABLE: &str = "TOOL_EXECUTOR_SOAK_SECONDS";
const WORKERS: usize = 10;

/// Numbers that are the same in every run of the same length.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }
}

/// What has come of the calls.
#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    lost: AtomicUsize,
    never_ran: AtomicUsize,
    signalled: AtomicUsize,
    trajectories: AtomicUsize,
    by_container: Mutex<BTreeMap<String, usize>>,
    wrong: Mutex<Vec<String>>,
}

/// Runs trajectories one after the other, each of whose calls counts how often it ran: an answer
/// that is not one more than the last is a call that ran twice, or in another's files.
fn work(executor: &ToolExecutor, next: &AtomicUsize, is_over: &AtomicBool, tally: &Tally) {
    while !is_over.load(Ordering::Relaxed) {
        let id = format!("t{}", next.fetch_add(1, Ordering::Relaxed));
        tally.trajectories.fetch_add(1, Ordering::Relaxed);
        for ran in 1..=8 {
            let call = bash("echo >> n; wc -l < n; sleep 0.2");
            let Ok(pending) = executor.submit(&id, call) else {
                tally.wrong.lock().push(format!("{id}: call {ran} was refused"));
                return;
            };
            let Ok(result) = pending.wait_timeout(Duration::from_secs(240)) else {
                tally.wrong.lock().push(format!("{id}: call {ran} has no answer"));
                return;
            };
            match result.outcome {
                Outcome::Ok if result.output == ran.to_string() => {
                    tally.answered.fetch_add(1, Ordering::Relaxed);
                    let container = result.metadata["container"].as_str().unwrap_or_default();
                    let kind = container.split_once('/').map_or(container, |(name, _)| name);
                    *tally.by_container.lock().entry(kind.to_owned()).or_default() += 1;
                }
                Outcome::SandboxLost => {
                    tally.lost.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                _ if is_signalled(&result) => {
                    tally.signalled.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                // There was no slot in time.
                Outcome::NeverRan if ran == 1 => {
                    tally.never_ran.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                outcome => {
                    let at = &result.metadata["container"];
                    let what = format!("{outcome:?} {:?} {} {at}", result.output, result.error);
                    tally.wrong.lock().push(format!("{id}: call {ran}: {what}"));
                    return;
                }
            }
        }
        if let Err(error) = executor.release(&id) {
            eprintln!("{id}: {error}");
        }
    }
}

/// The processes of the test's own Slurm, and of its servers, that have this name.
fn ours(name: &str) -> Vec<i32> {
    let variable = format!("SLURM_CONF={}", std::env::var("SLURM_CONF").unwrap());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let is_ours = read("environ").split(|b| *b == 0).any(|one| one == variable.as_bytes());
        let line = read("cmdline");
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        if is_ours && words.first().is_some_and(|word| word.rsplit('/').next() == Some(name)) {
            // A server, and not the sandbox's first processes or this one's program.
            if name != "tool-executor" || words.get(1).is_some_and(|word| word == "sandbox") {
                found.push(pid);
            }
        }
    }
    found
}

fn signal(pid: i32, signal: Signal) {
    // It may have ended meanwhile.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// The daemons, of which some are killed and started again.
struct Daemons {
    file: String,
    running: BTreeMap<&'static str, Child>,
}

impl Daemons {
    fn kill(&mut self, node: Option<&'static str>) {
        let name = node.unwrap_or("controller");
        match self.running.remove(name) {
            Some(mut child) => drop((child.kill(), child.wait())),
            // The first one is the outer process's.
            None => {
                let words = match node {
                    Some(node) => vec!["slurmd", "-N", node, &self.file],
                    None => vec!["slurmctld", &self.file],
                };
                processes(&words).into_iter().for_each(|pid| signal(pid, Signal::KILL));
            }
        }
    }

    fn start(&mut self, node: Option<&'static str>) {
        let file = Path::new(&self.file);
        let child = match node {
            Some(node) => daemon("slurmd", file, &["-N", node]),
            None => daemon("slurmctld", file, &[]),
        };
        self.running.insert(node.unwrap_or("controller"), child);
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = (child.kill(), child.wait());
        }
    }
}

/// One fault, by a random number; gives its name.
fn break_something(numbers: &mut Numbers, daemons: &mut Daemons) -> &'static str {
    let pause = Duration::from_millis(500 + numbers.below(6_000) as u64);
    let node = ["n1", "n2", "n3"][numbers.below(3)];
    let jobs = running();
    let job = jobs.get(numbers.below(jobs.len().max(1))).and_then(|job| job.split(' ').next());
    let servers = ours("tool-executor");
    let server = servers.get(numbers.below(servers.len().max(1))).copied();
    match (numbers.below(8), job, server) {
        (0, Some(job), _) => {
            run("scancel", &[job]);
            "a job cancelled"
        }
        (1, Some(job), _) => {
            run("scancel", &["--signal=TERM", job]);
            "a job told to end"
        }
        (2, _, Some(server)) => {
            signal(server, Signal::KILL);
            "a server killed"
        }
        (3, _, Some(server)) => {
            signal(server, Signal::STOP);
            thread::sleep(pause);
            signal(server, Signal::CONT);
            "a server stopped"
        }
        (4, ..) => {
            daemons.kill(Some(node));
            thread::sleep(pause * 3);
            daemons.start(Some(node));
            "a node's daemon killed"
        }
        (5, ..) => {
            daemons.kill(None);
            thread::sleep(pause * 3);
            daemons.start(None);
            "the controller killed"
        }
        (6, ..) => {
            let name = format!("NodeName={node}");
            run("scontrol", &["update", &name, "State=DRAIN", "Reason=soak"]);
            thread::sleep(pause);
            run("scontrol", &["update", &name, "State=RESUME"]);
            "a node drained"
        }
        _ => {
            let srun = ours("srun");
            if let Some(pid) = srun.get(numbers.below(srun.len().max(1))) {
                signal(*pid, Signal::KILL);
            }
            "an srun killed"
        }
    }
}

#[test]
#[ignore = "takes fifteen minutes; the tests of `faults` are its short form"]
fn whatever_fails_no_answer_is_lost_or_double() {
    if alone::case().is_none() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let slurm = Slurm::start();
        return alone::run_ignored(NAME, "slurm", |command| {
            command.env("SLURM_CONF", slurm.config());
            command.env_remove("SLURM_JOB_NODELIST");
        });
    }
    nodes_are_idle();
    let seconds = std::env::var(VARIABLE).map_or(900, |text| text.parse().unwrap());
    let config = config().with_jobs(jobs()).with_min_servers(1).with_max_servers(Some(3));
    let slurm = SlurmBackend::new(config.with_idle_timeout(Duration::from_secs(20))).unwrap();
    let local = LocalBackend::start(LocalConfig::new(2)).unwrap();
    let both = Several::new().with("local", local).unwrap();
    let both = both.with_shared("slurm", Duration::from_millis(300), Arc::new(slurm)).unwrap();
    let acquire = Duration::from_secs(120);
    let settings = ExecutorConfig::default().with_acquire_timeout(acquire);
    let executor = ToolExecutor::builder().config(settings).backend(both).start().unwrap();

    let (next, is_over, tally) = (AtomicUsize::new(0), AtomicBool::new(false), Tally::default());
    let mut daemons =
        Daemons { file: std::env::var("SLURM_CONF").unwrap(), running: BTreeMap::new() };
    let mut numbers = Numbers(seconds);
    let mut faults: BTreeMap<&str, usize> = BTreeMap::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| work(&executor, &next, &is_over, &tally));
        }
        while Instant::now() < end && tally.wrong.lock().is_empty() {
            *faults.entry(break_something(&mut numbers, &mut daemons)).or_default() += 1;
            thread::sleep(Duration::from_millis(1_000 + numbers.below(6_000) as u64));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let stats = executor.stats();
    let read = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    eprintln!(
        "{} trajectories, {} calls answered, {} lost, {} without a slot, {} signalled, by {:?}, after {faults:?}",
        read(&tally.trajectories),
        read(&tally.answered),
        read(&tally.lost),
        read(&tally.never_ran),
        read(&tally.signalled),
        tally.by_container.lock(),
    );
    assert!(tally.wrong.lock().is_empty(), "{:?}", tally.wrong.lock());
    assert_eq!((stats.running, stats.queue_size, stats.waiting_for_slot), (0, 0, 0));
    assert!(read(&tally.answered) > seconds as usize, "it got on");
    assert!(tally.by_container.lock().len() == 2, "on both");
    // Left alone it is whole again, when what has failed often is tried again: after five minutes
    // at most.
    for id in ["a", "b", "c", "d"] {
        until_within(Duration::from_secs(400), || {
            executor.execute(id, bash("echo whole")).output == "whole"
        });
    }
    assert!(executor.close().all_threads_ended);
    // What had lost its `srun` or the controller ends by itself when it is unused.
    until_within(Duration::from_secs(240), || {
        running().is_empty() && ours("tool-executor").is_empty() && ours("srun").is_empty()
    });
}
