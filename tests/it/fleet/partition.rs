//! Servers behind a network that is cut, both ways or one, for less than the lease: every call runs
//! once. Needs root and `ip`; in network namespaces of its own.

use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::sharing::count;
use super::*;
use crate::alone;
use crate::fakes::until;
use crate::program::program;

/// An address that no card has.
const NOWHERE: &str = "02:00:00:00:00:99";

fn ip(arguments: &str) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
}

/// A sandbox server in a network of its own, at the other end of a cable.
struct Remote {
    number: usize,
    child: Child,
    url: String,
}

impl Remote {
    fn start(number: usize) -> Self {
        let server = program();
        let mut child = Command::new("unshare")
            .args(["--net", "--"])
            .arg(server.get_program())
            .args(["sandbox", "--host", "0.0.0.0", "--port", "8080", "--slots", "2"])
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("TOOL_EXECUTOR_SANDBOX_TOKEN", TOKEN)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        assert!(line.contains("http://"), "{line:?}");
        let remote = Self { number, child, url: format!("http://10.77.{number}.2:8080") };
        let pid = remote.child.id();
        ip(&format!("link add cable{number} type veth peer name far netns {pid}"));
        ip(&format!("addr add 10.77.{number}.1/24 dev cable{number}"));
        ip(&format!("link set cable{number} up"));
        remote.inside(&format!("addr add 10.77.{number}.2/24 dev far"));
        remote.inside("link set far up");
        remote
    }

    fn inside(&self, arguments: &str) {
        run("nsenter", &format!("--net --target {} ip {arguments}", self.child.id()));
    }

    fn do_cut(&self, cut: Cut) {
        let number = self.number;
        match cut {
            Cut::Both => ip(&format!("link set cable{number} down")),
            Cut::ToServer => ip(&format!(
                "neigh replace 10.77.{number}.2 lladdr {NOWHERE} nud permanent dev cable{number}"
            )),
            Cut::ToClient => self.inside(&format!(
                "neigh replace 10.77.{number}.1 lladdr {NOWHERE} nud permanent dev far"
            )),
        }
    }

    fn mend(&self, cut: Cut) {
        let number = self.number;
        match cut {
            Cut::Both => ip(&format!("link set cable{number} up")),
            Cut::ToServer => ip(&format!("neigh del 10.77.{number}.2 dev cable{number}")),
            Cut::ToClient => self.inside(&format!("neigh del 10.77.{number}.1 dev far")),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cut {
    Both,
    ToServer,
    ToClient,
}

#[test]
fn a_network_that_is_cut_for_less_than_the_lease_costs_no_call() {
    const NAME: &str =
        "fleet::partition::a_network_that_is_cut_for_less_than_the_lease_costs_no_call";
    if !rustix::process::geteuid().is_root() {
        // Only root makes network namespaces.
        return;
    }
    if alone::case().is_none() {
        return alone::run(NAME, "alone", &["unshare", "--net", "--"], |_| {});
    }
    ip("link set lo up");
    let remotes = [Remote::start(0), Remote::start(1)];
    let mut config = fleet(remotes.iter().map(|remote| remote.url.clone()));
    // It is noticed after a third of that, and a request is tried anew after a quarter.
    config.unreachable_timeout = Duration::from_secs(12);
    let executor = executor(config);
    let ids = ["a", "b", "c", "d"];
    let (ended, ran) = (AtomicBool::new(false), [0, 1, 2, 3].map(|_| AtomicUsize::new(0)));
    thread::scope(|scope| {
        let workers = ids.iter().zip(&ran).map(|(id, ran)| {
            let (executor, ended) = (&executor, &ended);
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let result = executor.execute(id, count().with_timeout(PATIENCE));
                    let count = ran.fetch_add(1, Ordering::Relaxed) + 1;
                    assert_eq!(result.output, count.to_string(), "{id}: {}", result.error);
                }
            })
        });
        let workers: Vec<_> = workers.collect();
        let all_get_on = |by: usize| {
            let goals = ran.each_ref().map(|ran| ran.load(Ordering::Relaxed) + by);
            let reached =
                |(ran, goal): (&AtomicUsize, &usize)| ran.load(Ordering::Relaxed) >= *goal;
            until(|| {
                ran.iter().zip(&goals).all(reached) || workers.iter().any(|it| it.is_finished())
            });
        };
        all_get_on(10);
        let behind = |number: usize| {
            let addr = &remotes[number].url;
            let in_it = |id: &&str| *executor.slot_of(id).unwrap().addr == **addr;
            ids.iter().position(in_it).unwrap()
        };
        let (cut_off, other) = (behind(0), behind(1));
        for cut in [Cut::Both, Cut::ToServer, Cut::ToClient] {
            remotes[0].do_cut(cut);
            if cut == Cut::ToServer {
                // What comes from the server comes; nothing reaches it. The others get on.
                let goal = ran[other].load(Ordering::Relaxed) + 300;
                until(|| {
                    ran[other].load(Ordering::Relaxed) >= goal || workers[other].is_finished()
                });
            } else {
                until(|| executor.stats().containers.unknown == 1);
            }
            let before = ran[cut_off].load(Ordering::Relaxed);
            remotes[0].mend(cut);
            all_get_on(10);
            assert!(ran[cut_off].load(Ordering::Relaxed) > before, "after {cut:?}");
        }
        ended.store(true, Ordering::Relaxed);
    });
    let stats = executor.stats();
    let answered: u64 = ran.iter().map(|ran| ran.load(Ordering::Relaxed) as u64).sum();
    assert_eq!(stats.outcomes.get(Outcome::Ok), answered);
    assert!(executor.close().all_threads_ended);
}
