//! Slots have users of their own where this process is root: what the kernel counts by user is no
//! one else's, and no other user of the machine gets at a slot's files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;
use tool_executor::artifact::ReadArtifact;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{LocalConfig, UserIds};
use tool_executor::{Outcome, Pending, ToolCall, ToolExecutor};

use crate::caller::directory;
use crate::fakes::{PATIENCE, bash};
use crate::sandbox::is_root;

/// An executor over slots with such users, and its run directory.
struct Bench {
    executor: ToolExecutor,
    run: PathBuf,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(slots: usize, user_ids: UserIds) -> Self {
        Self::with(LocalConfig::new(slots).with_user_ids(user_ids))
    }

    fn with(config: LocalConfig) -> Self {
        let dir = directory();
        let backend = LocalBackend::start(config.with_data_dir(dir.path())).unwrap();
        assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
        let run = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let executor = ToolExecutor::builder().backend(backend).start().unwrap();
        Self { executor, run, _dir: dir }
    }

    fn output(&self, trajectory: &str, command: &str) -> String {
        let result = self.executor.execute(trajectory, bash(command));
        assert_eq!(result.outcome, Outcome::Ok, "{command}: {result:?}");
        result.output
    }

    /// The host paths of what has this name in the slots' directories.
    fn find(&self, name: &str) -> Vec<PathBuf> {
        let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
        let directories = entries(&self.run).flat_map(|slot| entries(&slot.path()));
        directories.map(|entry| entry.path().join(name)).filter(|path| path.exists()).collect()
    }

    /// A command that has filled something up, and holds it until it is cancelled.
    fn hold(&self, script: &str) -> Pending {
        let command = format!("{PYTHON}\n{script}\nEOF");
        let ticket = self.executor.submit("hog", bash(&command).with_timeout(PATIENCE)).unwrap();
        let begun = Instant::now();
        let ready = loop {
            if let Some(path) = self.find("ready").pop() {
                break path;
            }
            assert!(!ticket.is_done(), "{script}: {:?}", ticket.wait());
            assert!(begun.elapsed() < PATIENCE, "{script}");
            std::thread::yield_now();
        };
        fs::remove_file(ready).unwrap();
        ticket
    }

    /// What a neighbour says of the same thing.
    fn try_out(&self, script: &str) -> String {
        let command = format!("{PYTHON}\n{script}\nEOF");
        let result = self.executor.execute("neighbour", bash(&command).with_timeout(PATIENCE));
        // Without the line about processes that were ended with it.
        let first = result.output.lines().next().unwrap_or_default();
        format!("{first}{}", result.error)
    }
}

/// `full(make)` makes things until that is refused, which it must be.
const PYTHON: &str = r#"cat > /tmp/.tool.py <<'TOOL'
import array, ctypes, errno, fcntl, os, resource, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def raise_files():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
def full(make, most):
    for _ in range(most):
        try:
            kept.append(make())
        except OSError as error:
            return errno.errorcode[error.errno]
    sys.exit("never full")
def ready():
    open("/workspace/ready", "w").close()
    time.sleep(600)
def instance():
    return check(libc.inotify_init1(0))
def pipe_size():
    pair = os.pipe()
    kept.append(pair)
    return fcntl.fcntl(pair[0], 1032)
def in_flight():
    pair = socket.socketpair()
    kept.append(pair)
    with open("/dev/null") as null:
        for _ in range(16):
            socket.send_fds(pair[0], [b"x"], [null.fileno()] * 16)
def terminal():
    return os.openpty()
TOOL
PYTHONPATH=/tmp PYTHONDONTWRITEBYTECODE=1 python3 - <<'EOF'
exec(open("/tmp/.tool.py").read())"#;

/// The start of the user ids of each of these trajectories' slots.
fn ids(bench: &Bench, trajectory: &str) -> Vec<u32> {
    let map = bench.output(trajectory, "cat /proc/self/uid_map /proc/self/gid_map");
    map.split_ascii_whitespace().map(|number| number.parse().unwrap()).collect()
}

#[test]
fn each_slot_has_ids_of_its_own_that_look_alike_inside() {
    if !is_root() {
        return; // An ordinary user has one id.
    }
    let bench = Bench::new(2, UserIds::Auto);
    let maps = ["a", "b"].map(|trajectory| ids(&bench, trajectory));
    let firsts = maps.clone().map(|map| {
        assert_eq!((map[0], map[2], map[3], map[5]), (0, 65_536, 0, 65_536), "{map:?}");
        assert_eq!(map[1], map[4], "{map:?}");
        map[1]
    });
    assert!(firsts[0].abs_diff(firsts[1]) >= 65_536, "{firsts:?}");
    for (trajectory, first) in ["a", "b"].into_iter().zip(firsts) {
        let call = json!({"path": "written", "content": "by a file tool"});
        let written = bench.executor.execute(trajectory, ToolCall::new("write_file", call));
        assert_eq!(written.outcome, Outcome::Ok, "{written:?}");
        let command = "id -u; whoami; stat -c %u . ~ /tmp written; mkdir locked; \
            echo inside > locked/file; chmod 0 locked; chmod 600 written; cat written";
        let output = bench.output(trajectory, command);
        assert_eq!(
            output.lines().collect::<Vec<_>>(),
            ["65534", "nobody", "65534", "65534", "65534", "65534", "by a file tool"],
        );
        let kept = bench.executor.execute(trajectory, stateful("id -u; stat -c %u written"));
        assert_eq!(kept.output, "65534\n65534", "{kept:?}");
        let request = ReadArtifact::new("written");
        let artifact = bench.executor.read_artifact(trajectory, &request).unwrap();
        assert_eq!(artifact.content, b"by a file tool");
        let owner = first + 65_534;
        let on_host = bench.find("written").into_iter().map(|path| fs::metadata(path).unwrap());
        assert_eq!(on_host.filter(|file| (file.uid(), file.gid()) == (owner, owner)).count(), 1);
    }
    for slot in [0, 1] {
        let of_slot = bench.run.join(format!("slot_{slot}"));
        let guard = fs::metadata(&of_slot).unwrap();
        let workspace = fs::metadata(of_slot.join("workspace")).unwrap();
        assert_eq!((guard.uid(), guard.mode() & 0o7777), (0, 0o710));
        assert_eq!((guard.gid(), workspace.mode() & 0o7777), (workspace.uid(), 0o700));
    }
    // What a command has locked is removed, and the next one has the same slot's user.
    bench.executor.release("a").unwrap();
    assert_eq!(bench.output("c", "ls -A . ~ /tmp"), ".:\n\n/home/nobody:\n\n/tmp:");
    assert_eq!(ids(&bench, "c"), maps[0]);
    bench.executor.close();
    assert!(!bench.run.exists());
}

fn stateful(command: &str) -> ToolCall {
    ToolCall::new("terminal_stateful", json!({"command": command}))
}

#[test]
fn ids_that_are_given_are_the_slots_and_too_few_are_refused() {
    if !is_root() {
        let config = LocalConfig::new(1).with_user_ids("7:7".parse().unwrap());
        let error = LocalBackend::start(config).unwrap_err().to_string();
        assert!(error.contains("only root"), "{error}");
        return;
    }
    let of = |text: &str| text.parse::<UserIds>().unwrap();
    let bench = Bench::new(2, of("1900000000:131072"));
    let mut firsts = ["a", "b"].map(|trajectory| ids(&bench, trajectory)[1]);
    firsts.sort_unstable();
    assert_eq!(firsts, [1_900_000_000, 1_900_065_536]);
    let dir = directory();
    let config = |ids| LocalConfig::new(2).with_data_dir(dir.path()).with_user_ids(ids);
    let error = LocalBackend::start(config(of("1900000000:131072"))).unwrap_err();
    let causes = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(causes.contains("other engines use the user ids 1900000000:131072"), "{causes}");
    bench.executor.close();
    drop(bench);

    // One id each is enough to be apart.
    let bench = Bench::new(2, of("1900000000:2"));
    let mut maps = ["a", "b"].map(|trajectory| ids(&bench, trajectory));
    maps.sort_unstable();
    for (map, id) in maps.iter().zip([1_900_000_000, 1_900_000_001]) {
        assert_eq!(map[..], [65_534, id, 1, 65_534, id, 1]);
    }
    assert_eq!(bench.output("a", "id -u; touch x; stat -c %u x"), "65534\n65534");
    let error = LocalBackend::start(config(of("1900000000:1"))).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("fewer than the 2 slots"), "{cause}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left of those starts");
}

/// A script as another user of this machine, who has nothing to do with any of it.
fn as_another_user(script: &str) -> String {
    let output = Command::new("bash")
        .args(["-c", script])
        .uid(23_002)
        .gid(23_002)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn another_user_of_the_machine_gets_at_nothing_of_a_slot() {
    if !is_root() {
        return; // Only root can be another user.
    }
    for user_ids in [UserIds::Auto, UserIds::Shared] {
        let bench = Bench::new(1, user_ids);
        let accomplice = "echo secret > secret; cp /bin/bash b; chmod 4755 b; \
            chmod 777 . /tmp ~; chmod 666 secret; cp secret b /tmp; cp secret b ~";
        bench.output("t", accomplice);
        let shell = bench.executor.execute("t", stateful("export TOKEN=hunter2; echo $((6 * 7))"));
        assert_eq!(shell.output, "42");
        let run = bench.run.display();
        let reachable = format!(
            "cd {run} && for place in workspace tmp home; do \
             cat slot_0/$place/secret; ls slot_0/$place; slot_0/$place/b -p -c 'echo ran'; done; \
             for n in 0 1 2 3; do cat terminals/shell_$n/*; cat terminals/shell_$n/command; \
             echo > terminals/shell_$n/status && echo wrote; done; ls . slot_0 terminals"
        );
        assert_eq!(as_another_user(&reachable), "", "{user_ids}");
        // The way so far is open to that user, and the same is had by root.
        assert_eq!(as_another_user(&format!("cd {run} && pwd")), format!("{run}\n"));
        assert!(Path::new(&bench.run).join("slot_0/workspace/secret").exists());
    }
}

/// What fills up something that the kernel counts by user; and what a neighbour must still be able
/// to do, and then prints `fine`.
const COUNTED: [(&str, &str, &str); 9] = [
    (
        "pipes",
        "raise_files()\nwhile pipe_size() == 65536: pass\nready()",
        "assert pipe_size() == 65536\nprint('fine')",
    ),
    (
        "inotify instances",
        "raise_files()\nassert full(instance, 4000) == 'EMFILE'\nready()",
        "for _ in range(64): kept.append(instance())\nprint('fine')",
    ),
    (
        "descriptors in flight",
        "raise_files()\nassert full(in_flight, 4000) == 'ETOOMANYREFS'\nready()",
        "in_flight()\nprint('fine')",
    ),
    (
        "processes",
        "def child():\n  pid = os.fork()\n  if pid == 0: time.sleep(600)\n  return pid\n\
         assert full(child, 4000) == 'EAGAIN'\nready()",
        "for _ in range(32):\n  if os.fork() == 0: time.sleep(600)\nprint('fine')",
    ),
    (
        "pending signals",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [40])\n\
         assert full(lambda: check(libc.sigqueue(os.getpid(), 40, 0)), 1 << 20) == 'EAGAIN'\nready()",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [40])\n\
         for _ in range(1000): check(libc.sigqueue(os.getpid(), 40, 0))\nprint('fine')",
    ),
    (
        "locked memory",
        "import mmap\ndef locked():\n  area = mmap.mmap(-1, 65536)\n  kept.append(area)\n  \
         address = ctypes.addressof(ctypes.c_char.from_buffer(area))\n  \
         return check(libc.mlock(ctypes.c_void_p(address), 65536))\n\
         assert full(locked, 4000) == 'ENOMEM'\nready()",
        "import mmap\narea = mmap.mmap(-1, 1 << 20)\n\
         address = ctypes.addressof(ctypes.c_char.from_buffer(area))\n\
         check(libc.mlock(ctypes.c_void_p(address), 1 << 20))\nprint('fine')",
    ),
    (
        "message queues",
        "rt = ctypes.CDLL('librt.so.1', use_errno=True)\nnumber = iter(range(4000))\n\
         def queue(): return check(rt.mq_open(b'/q%d' % next(number), os.O_CREAT | os.O_RDWR, 0o600, None))\n\
         assert full(queue, 4000) in ('EMFILE', 'ENOSPC')\nready()",
        "rt = ctypes.CDLL('librt.so.1', use_errno=True)\n\
         check(rt.mq_open(b'/q', os.O_CREAT | os.O_RDWR, 0o600, None))\nprint('fine')",
    ),
    (
        "terminals",
        "raise_files()\nassert full(terminal, 8000) == 'ENOSPC'\nready()",
        "for _ in range(8): kept.append(terminal())\nprint('fine')",
    ),
    (
        "watches of epoll",
        // The limit is a share of the machine's memory: as many as take seconds.
        "import select\nraise_files()\nends = [os.pipe()[0] for _ in range(1000)]\n\
         for _ in range(500):\n  poll = select.epoll()\n  kept.append(poll)\n  \
         for end in ends: poll.register(end)\nready()",
        "import select\npoll = select.epoll()\npoll.register(os.pipe()[0])\nprint('fine')",
    ),
];

#[test]
fn what_the_kernel_counts_by_user_is_not_used_up_for_a_neighbour_nor_the_engine() {
    if !is_root() {
        return; // An ordinary user has one id for all.
    }
    let mut config = LocalConfig::new(2);
    config.limits.processes = Some(128);
    let bench = Bench::with(config);
    for (name, fill, try_out) in COUNTED {
        let hog = bench.hold(fill);
        assert_eq!(bench.try_out(try_out), "fine", "{name}");
        // The engine: all that it needs for a call, and for a shell and a terminal.
        let fresh = bench.executor.execute("neighbour", stateful("seq 30000 | tail -n 1"));
        assert_eq!(fresh.output, "30000", "{name}: {fresh:?}");
        hog.cancel();
        let ended = hog.wait_timeout(PATIENCE).unwrap();
        assert_eq!(ended.outcome, Outcome::Cancelled, "{name}: {ended:?}");
        bench.executor.release("hog").unwrap();
    }
    bench.executor.close();
}

#[test]
fn slots_that_share_a_user_do_starve_each_other() {
    if !is_root() {
        return;
    }
    // So the test above would fail if its users were not apart.
    let bench = Bench::new(2, UserIds::Shared);
    for (name, fill, try_out) in COUNTED.iter().take(3) {
        let hog = bench.hold(fill);
        assert_ne!(bench.try_out(try_out), "fine", "{name}");
        hog.cancel();
        hog.wait_timeout(PATIENCE).unwrap();
        bench.executor.release("hog").unwrap();
    }
}

#[test]
fn a_file_that_slots_share_cannot_be_leased() {
    if !is_root() {
        return; // An ordinary user owns the copy of /etc; the filter of system calls is what denies.
    }
    let bench = Bench::new(1, UserIds::Auto);
    let script = "for path in ['/etc/passwd', '/etc/hosts', '/usr/bin/env']:\n\
         \x20 with open(path) as file:\n\
         \x20   try: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK); print('leased', end=' ')\n\
         \x20   except OSError as error: print(errno.errorcode[error.errno], end=' ')";
    let denied = bench.try_out(script).trim_end().to_owned();
    assert!(matches!(&*denied, "EACCES EACCES EACCES" | "EPERM EPERM EPERM"), "{denied}");
}
