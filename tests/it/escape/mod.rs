//! What a model may try, as small scripts, run as a model would run them. None may reach the host,
//! another slot, the policy, the network when that is off, or the next trajectory.
//!
//! A script prints `ESCAPED` when it has got what it was after. Where possible it is also run
//! *outside*, on the host itself, where it must succeed: an attack that can never succeed proves
//! nothing. What has no such control says why.
//!
//! - `files`: the host's files and those of other slots;
//! - `processes`: the host's processes, and the sandbox's own first one;
//! - `kernel`: system calls and kernel interfaces;
//! - `network`: the network when it is off;
//! - `traces`: what one call leaves to the next, and one trajectory to another;
//! - `terminals`: a terminal that was poisoned for the next trajectory.

mod files;
mod kernel;
mod network;
mod processes;
mod terminals;
mod traces;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tool_executor::backend::Backend;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig, Policy};
use tool_executor::{Outcome, ToolCall, ToolExecutor, ToolResult};

use crate::caller::image;
use crate::fakes::bash;

/// One attack.
struct Attack {
    name: &'static str,
    /// For bash. `@SECRET@` and the like are put in by [`Host::fill_in`].
    script: &'static str,
    outside: Outside,
}

/// What the same script does on the host.
enum Outside {
    /// It succeeds.
    Escapes,
    /// It is not run there, for this reason.
    NotRun(#[expect(dead_code, reason = "for whoever reads the table")] &'static str),
}
use Outside::{Escapes, NotRun};

/// A sandbox's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A slot's sandbox is kept.
    Warm,
    /// Each call gets a sandbox.
    PerCall,
    /// A shell is kept, in a sandbox of its own.
    Stateful,
}

const KINDS: [Kind; 3] = [Kind::Warm, Kind::PerCall, Kind::Stateful];

/// Those in which a call leaves nothing but files to the next.
const FORGETFUL: [Kind; 2] = [Kind::Warm, Kind::PerCall];

impl Kind {
    fn call(self, script: &str) -> ToolCall {
        let tool = if self == Self::Stateful { "terminal_stateful" } else { "bash" };
        call(tool, serde_json::json!({"command": script}))
    }
}

/// What is to be reached on the host.
struct Host {
    dir: tempfile::TempDir,
    secret: String,
    tcp: TcpListener,
    udp: UdpSocket,
    abstract_name: String,
    _abstract: UnixListener,
    _socket: UnixListener,
}

impl Host {
    fn new() -> Self {
        // Where its path has no character that a shell would mind: the scripts are not to quote it.
        let dir = tempfile::tempdir_in("/tmp").or_else(|_| tempfile::tempdir()).unwrap();
        // A program that gets here may read and write everything in it.
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let secret = format!("secret-{}", uuid::Uuid::new_v4().simple());
        let file = dir.path().join("secret");
        fs::write(&file, &secret).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
        let abstract_name = format!("tool-executor-{}", uuid::Uuid::new_v4().simple());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, PermissionsExt::from_mode(0o777)).unwrap();
        Self {
            secret,
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            udp: UdpSocket::bind("127.0.0.1:0").unwrap(),
            abstract_name,
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            _socket: listener,
            dir,
        }
    }

    fn secret_file(&self) -> PathBuf {
        self.dir.path().join("secret")
    }

    fn fill_in(&self, script: &str) -> String {
        script
            .replace("@SECRET@", self.secret_file().to_str().unwrap())
            .replace("@DIR@", self.dir.path().to_str().unwrap())
            .replace("@CONTENT@", &self.secret)
            .replace("@TCP@", &self.tcp.local_addr().unwrap().port().to_string())
            .replace("@UDP@", &self.udp.local_addr().unwrap().port().to_string())
            .replace("@ABSTRACT@", &self.abstract_name)
            .replace("@PID@", &std::process::id().to_string())
    }

    /// Runs a script as an ordinary process of the host.
    fn run(&self, script: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new("bash")
            .args(["-c", script])
            .current_dir(&directory)
            .env("HOME", directory.path())
            // What scripts look for that is not there: here it is, whichever user runs the tests.
            .env("CARGO_ESCAPED", "1")
            .env_remove("SHELLOPTS")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Nothing of it was changed.
    fn is_untouched(&self) -> bool {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names == ["secret", "socket"]
            && fs::read_to_string(self.secret_file()).is_ok_and(|content| content == self.secret)
    }
}

/// An executor over `slots` slots, the network on or off.
fn executor(kind: Kind, slots: usize, network: bool) -> (tempfile::TempDir, ToolExecutor) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let mut config = LocalConfig::new(slots);
    config.data_dir = Some(dir.path().to_owned());
    config.warm_slots = kind != Kind::PerCall;
    config.image = image();
    let backend = LocalBackend::start(config).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    assert_eq!(backend.capabilities().warm_slots, Some(kind != Kind::PerCall));
    let policy = Policy::default().with_allow_network(network).with_require_sandbox(true);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_policy(policy))
        .start()
        .unwrap();
    (dir, executor)
}

/// What is no escape where commands are root among the files of an image, which are theirs.
const OWN_IN_IMAGES: [&str; 8] = [
    "a file that runs as its owner",
    "a set-user-id program",
    "become root",
    "find the root that the jail has left",
    "have or regain a capability of the jail's set-up",
    "raw and odd sockets",
    "read password hashes",
    "write to the system's programs",
];

/// Runs attacks, each in a trajectory of its own, in every kind of sandbox, and their controls.
fn attack(attacks: &[Attack], network: bool) {
    let host = Host::new();
    let mut escaped = Vec::new();
    for kind in KINDS {
        let (_dir, executor) = executor(kind, 1, network);
        let is_one = |attack: &&Attack| image().is_none() || !OWN_IN_IMAGES.contains(&attack.name);
        for attack in attacks.iter().filter(is_one) {
            let result = run_in(kind, &executor, attack.name, &host.fill_in(attack.script));
            if result.output.contains("ESCAPED") || result.output.contains(&host.secret) {
                escaped.push(format!("{} ({kind:?}): {}", attack.name, result.output));
            }
            assert_ne!(result.outcome, Outcome::BackendFailed, "{}: {result:?}", attack.name);
            assert!(host.is_untouched(), "{} changed the host's files", attack.name);
            // The slot goes on working.
            let next = run_in(kind, &executor, attack.name, "echo still here");
            assert_eq!(next.output, "still here", "after {}: {next:?}", attack.name);
            executor.release(attack.name).unwrap();
        }
    }
    assert!(escaped.is_empty(), "escaped: {escaped:#?}");
    for attack in attacks.iter().filter(|attack| matches!(attack.outside, Escapes)) {
        let output = host.run(&host.fill_in(attack.script));
        assert!(output.contains("ESCAPED"), "{} proves nothing: {output}", attack.name);
        restore(&host);
    }
}

/// Undoes what a control has done.
fn restore(host: &Host) {
    for entry in fs::read_dir(host.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if !["secret", "socket"].iter().any(|name| path.ends_with(name)) {
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
    fs::write(host.secret_file(), &host.secret).unwrap();
}

fn run_in(kind: Kind, executor: &ToolExecutor, trajectory: &str, script: &str) -> ToolResult {
    executor.execute(trajectory, kind.call(script))
}

fn run(executor: &ToolExecutor, trajectory: &str, script: &str) -> ToolResult {
    executor.execute(trajectory, bash(script))
}

fn call(name: &str, arguments: serde_json::Value) -> ToolCall {
    ToolCall::new(name, arguments)
}
