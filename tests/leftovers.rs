//! What a killed server leaves behind, and what the next one makes of it.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

#[path = "it/caller.rs"]
mod caller;
#[allow(dead_code, reason = "what the other tests need of it")]
mod program;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// `tool-executor sandbox`, killed at the end of the test.
struct Server {
    process: Child,
    addr: String,
}

impl Server {
    fn start(data_dir: &Path) -> Self {
        let mut process = program::program()
            .args(["sandbox", "--port", "0", "--slots", "2", "--data-dir"])
            .arg(data_dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next());
        let addr = addr.unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Self { process, addr }
    }

    /// Starts a command in a slot; its answer is not read.
    fn run(&self, slot: &str, command: &str) -> TcpStream {
        let call = json!({
            "slot_id": slot, "tool": "bash", "args": {"command": command}, "timeout": 600.0,
        });
        let body = call.to_string();
        let mut stream = TcpStream::connect(&self.addr).unwrap();
        let length = body.len();
        write!(
            stream,
            "POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    /// SIGKILL: it has no chance to do anything.
    fn die(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The run directories in a data directory.
fn runs(data_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data_dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// How many processes have this text among their arguments.
fn processes_with(text: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(text)).count()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "it did not come to it: {what}");
        // Between two looks, not in the hope that it is so afterwards.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes of all kinds that do not want to end, and files that do not want to go.
fn stubborn(marker: &str) -> String {
    format!(
        "mkdir -p a/b; echo x > a/b/f; ln -s /etc a/etc; chmod 555 a/b a; \
         setsid sleep {marker} & \
         (trap '' HUP INT TERM; sleep {marker}; sleep {marker}) & \
         (setsid bash -c 'sleep {marker} & kill -STOP $!; wait' &) ; \
         until [ $(pgrep -fc '^sleep {marker}') -ge 2 ]; do :; done; \
         touch started; sleep {marker}"
    )
}

#[test]
fn what_a_killed_server_left_is_gone_with_the_next_one_and_a_live_ones_is_not() {
    let outer = caller::directory();
    let data_dir = outer.path().join("data");
    let unique = |n: u32| format!("76{n}.{}", std::process::id());
    let (of_dead, of_live) = (unique(1), unique(2));

    let dead = Server::start(&data_dir);
    let [dead_run] = runs(&data_dir).try_into().unwrap();
    let live = Server::start(&data_dir);
    assert!(dead_run.exists(), "the second one leaves the first one alone");
    let live_run = runs(&data_dir).into_iter().find(|run| *run != dead_run).unwrap();
    let _calls = [
        dead.run("slot_0", &stubborn(&of_dead)),
        dead.run("slot_1", &format!("touch started; while :; do date +%N-{of_dead} > f; done")),
        live.run("slot_0", &stubborn(&of_live)),
    ];
    for started in [
        dead_run.join("slot_0/workspace"),
        dead_run.join("slot_1/workspace"),
        live_run.join("slot_0/workspace"),
    ] {
        wait_until("the commands run", || started.join("started").exists());
    }
    assert!(processes_with(&of_dead) >= 4 && processes_with(&of_live) >= 4);

    dead.die();
    let next = Server::start(&data_dir);
    assert!(!dead_run.exists(), "removed by the next one's start");
    wait_until("the processes of the dead one end", || {
        processes_with(&of_dead) == 0 && processes_with(dead_run.to_str().unwrap()) == 0
    });
    assert!(processes_with(&of_live) >= 4);
    assert!(live_run.join("slot_0/workspace/a/b/f").exists());
    assert_eq!(runs(&data_dir).len(), 2);

    // Many of them, killed at any moment of their start and of their commands' start.
    next.die();
    for n in 0..12 {
        let server = Server::start(&data_dir);
        let _calls = ["slot_0", "slot_1"].map(|slot| server.run(slot, &stubborn(&of_dead)));
        // Some before a command was started, some after.
        let run = runs(&data_dir).into_iter().find(|run| *run != live_run).unwrap();
        if n % 3 == 0 {
            wait_until("a command runs", || run.join("slot_1/workspace/a").exists());
        }
        server.die();
    }
    let last = Server::start(&data_dir);
    assert_eq!(runs(&data_dir).len(), 2);
    wait_until("the processes of the dead ones end", || processes_with(&of_dead) == 0);
    drop((last, live));
    wait_until("all ends", || processes_with(&of_live) == 0);
    // So that an ordinary user can remove what the last ones have left.
    let status = Command::new("chmod").args(["-R", "u+rwX"]).arg(outer.path()).status();
    assert!(status.unwrap().success());
}
