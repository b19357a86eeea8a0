//! Eight executors in processes of their own share four servers; any of them is killed, or stopped
//! for a while, at any time. The others notice nothing but capacity: every call of theirs is
//! answered once, and no slot has two holders.

#![expect(clippy::print_stderr, reason = "the one who started it reads what it says")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::loss::Process;
use super::sharing::count;
use super::*;
use crate::alone;
use crate::stopped::stop;

const NAME: &str = "fleet::soak::whoever_is_killed_or_stopped_the_others_get_on";
const RANKS: usize = 8;
const SERVERS: usize = 4;
/// For how long, in seconds, if not for ten minutes.
const VARIABLE: &str = "SOAK_SECONDS";

/// Makes calls for ever, and prints a line for each; ends with an error if one is not as it should
/// be.
fn rank(urls: &str) {
    let mut config = fleet(urls.split(',').map(str::to_owned)).with_slots(Some(4));
    config.start_timeout = Duration::from_secs(3600);
    let executor = executor(config);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let id = next.fetch_add(1, Ordering::Relaxed).to_string();
                    for ran in 1..=4 {
                        let result = executor.execute(&id, count());
                        match result.outcome {
                            Outcome::Ok if result.output == ran.to_string() => {}
                            Outcome::SandboxLost => break,
                            outcome => {
                                let ToolResult { output, error, .. } = result;
                                eprintln!("{id}: call {ran}: {outcome:?} {output:?} {error}");
                                std::process::exit(1);
                            }
                        }
                        let mut out = std::io::stdout().lock();
                        if writeln!(out, "ran").is_err() {
                            std::process::exit(2);
                        }
                    }
                    let _ = executor.release(&id);
                }
            });
        }
    });
}

/// An executor's process, and how many of its calls were answered.
struct Rank {
    child: Child,
    calls: Arc<AtomicUsize>,
}

impl Rank {
    fn start(urls: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--ignored", "--nocapture"])
            .env("TOOL_EXECUTOR_TEST_ALONE", urls)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let counts = calls.clone();
        thread::spawn(move || {
            for _ in lines.map_while(Result::ok).filter(|line| line == "ran") {
                counts.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { child, calls }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }
}

#[test]
#[ignore = "takes ten minutes; the other tests of this room are its short form"]
fn whoever_is_killed_or_stopped_the_others_get_on() {
    if let Some(urls) = alone::case() {
        return rank(&urls);
    }
    let seconds = std::env::var(VARIABLE).map_or(600, |text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut servers: Vec<_> = (0..SERVERS).map(|_| Process::start_leasing(0, 4, "2")).collect();
    let urls: Vec<_> = servers.iter().map(|server| server.url.clone()).collect();
    let urls = urls.join(",");
    let mut ranks: Vec<_> = (0..RANKS).map(|_| Rank::start(&urls)).collect();
    let mut numbers = Numbers(seconds);
    let (mut answered, mut rounds, mut quiet) = (0, 0, Instant::now());
    while Instant::now() < end {
        let (is_server, which) = (numbers.below(3) == 0, numbers.below(RANKS));
        let pause = Duration::from_millis(50 + numbers.below(4_000) as u64);
        let kill = numbers.below(2) == 0;
        if is_server {
            let server = &mut servers[which % SERVERS];
            if kill {
                let port = server.port();
                server.kill();
                thread::sleep(pause / 4);
                *server = Process::start_leasing(port, 1 + numbers.below(5), "2");
            } else {
                stop_for(&server.child, pause);
            }
        } else if kill {
            answered += ranks[which].calls.load(Ordering::Relaxed);
            ranks[which] = Rank::start(&urls);
        } else {
            stop_for(&ranks[which].child, pause);
        }
        rounds += 1;
        for (number, rank) in ranks.iter_mut().enumerate() {
            let ended = rank.child.try_wait().unwrap();
            assert!(ended.is_none(), "rank {number} ended: {ended:?}, in round {rounds}");
        }
        // Some rounds apart, left alone, all of them get on.
        if quiet.elapsed() > Duration::from_secs(30) {
            let before: Vec<_> =
                ranks.iter().map(|rank| rank.calls.load(Ordering::Relaxed)).collect();
            let deadline = Instant::now() + PATIENCE;
            for (number, (rank, before)) in ranks.iter().zip(before).enumerate() {
                while rank.calls.load(Ordering::Relaxed) < before + 4 {
                    assert!(Instant::now() < deadline, "rank {number} does not get on");
                    thread::sleep(Duration::from_millis(20));
                }
            }
            quiet = Instant::now();
        }
    }
    answered += ranks.iter().map(|rank| rank.calls.load(Ordering::Relaxed)).sum::<usize>();
    eprintln!("{rounds} rounds, {answered} calls");
}

fn stop_for(child: &Child, pause: Duration) {
    stop(Pid::from_child(child));
    thread::sleep(pause);
    kill_process(Pid::from_child(child), Signal::CONT).unwrap();
}
