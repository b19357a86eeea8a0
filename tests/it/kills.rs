//! Commands that do not want to end, or print without end: each call comes back in time, whatever
//! it was, leaves no process, and its slot goes on working.
//!
//! By every tool that runs commands, in each kind of sandbox. How the engine does it is tested
//! where it is done: beside `supervisor` and `terminal`.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::LocalConfig;
use tool_executor::{Outcome, ToolCall, ToolExecutor};

use crate::caller::{directory, image};
use crate::fakes::{until, until_within};
use crate::sandbox::{is_running, unique_sleep};

/// The time limit of each call: long enough for it to begin, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(2);
/// How much later than that the answer may come: an interrupt is waited for, and the kernel has to
/// end the processes. Far below the 5 s after which that is given up.
const MARGIN: Duration = Duration::from_secs(4);

/// Such a process is the parent in a `vfork`, whose number in the table is that of x86-64.
const UNINTERRUPTIBLE: &str = "a process in an uninterruptible wait";

/// What runs until it is killed. `SLEEP` is a sleep that no other test uses.
const ENDLESS: &[(&str, &str)] = &[
    ("one program", "SLEEP"),
    ("in the shell's place", "exec SLEEP"),
    ("a session of its own", "setsid SLEEP & wait"),
    ("a session of its own, in the foreground", "setsid --wait SLEEP"),
    ("signals ignored", "trap '' TERM INT HUP QUIT; SLEEP; SLEEP"),
    ("signals ignored by a child", "bash -c 'trap \"\" TERM INT HUP QUIT; SLEEP; SLEEP'; SLEEP"),
    ("a shell that goes on when it is interrupted", "trap : INT TERM; while :; do SLEEP; done"),
    ("a stopped child", "SLEEP & kill -STOP $!; wait"),
    ("a stopped shell", "SLEEP & kill -STOP $$; SLEEP"),
    ("a double fork", "(setsid bash -c 'SLEEP & disown; exec SLEEP' > /dev/null 2>&1 &); SLEEP"),
    (
        "daemons, and nothing else",
        "setsid nohup SLEEP > /dev/null 2>&1 < /dev/null & while :; do read -t 1 < <(SLEEP); done",
    ),
    ("both streams closed", "(exec >&- 2>&-; exec SLEEP)"),
    ("a stream held open by others", "SLEEP > /dev/null & setsid SLEEP & SLEEP"),
    (
        UNINTERRUPTIBLE,
        "SLEEP & perl -e '$SIG{INT} = q(IGNORE); syscall(58) or select(undef, undef, undef, 1e4)'",
    ),
    ("a busy loop", "SLEEP & while :; do :; done"),
    ("a flood", "SLEEP & yes"),
    ("a flood on both streams", "SLEEP & yes & yes >&2"),
    ("a flood without lines", "SLEEP & cat /dev/zero"),
    ("a flood that nobody interrupts", "trap '' INT; SLEEP & yes"),
    ("a storm of forks", "f() { [ $1 = 0 ] || { f $(($1 - 1)) & f $(($1 - 1)) & }; SLEEP; }; f 6"),
    ("a storm of sessions", "for i in {1..100}; do setsid SLEEP & done; wait"),
    ("a chain of forks", "f() { [ $1 = 0 ] && exec SLEEP; (f $(($1 - 1)) & wait); }; f 40"),
    ("forks that replace each other", "SLEEP & f() { (f &) ; }; while :; do (: &); done"),
];

/// How many of them run at a time: most of the time of each is spent waiting.
const AT_ONCE: usize = 3;

/// What runs a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// `bash`, in the slot's own sandbox.
    Warm,
    /// `bash`, in a sandbox of its own.
    PerCall,
    /// `bash_stateful`.
    Stateful,
}

fn executor(by: By) -> (tempfile::TempDir, ToolExecutor) {
    let dir = directory();
    let mut config = LocalConfig::new(AT_ONCE);
    config.image = image();
    config.data_dir = Some(dir.path().to_owned());
    config.warm_slots = by != By::PerCall;
    let backend = LocalBackend::start(config).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    (dir, ToolExecutor::builder().backend(backend).start().unwrap())
}

fn call(by: By, command: &str) -> ToolCall {
    let tool = if by == By::Stateful { "terminal_stateful" } else { "bash" };
    ToolCall::new(tool, json!({"command": command}))
}

/// Does this with each of them.
fn with_each_endless(run: impl Fn(&'static str, &'static str) + Sync) {
    let can_vfork = cfg!(target_arch = "x86_64");
    let cases = ENDLESS.iter().filter(|(name, _)| can_vfork || *name != UNINTERRUPTIBLE);
    let cases = Mutex::new(cases);
    let next = || cases.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((name, command)) = next() {
                    run(name, command);
                }
            });
        }
    });
}

/// As much of a flood as a message should have.
fn start(output: &str) -> String {
    output.chars().take(100).collect()
}

fn each_endless_command_ends_in_time(by: By) {
    let (_dir, executor) = executor(by);
    with_each_endless(|name, command| {
        let sleep = unique_sleep();
        let command = format!("echo begun; {}", command.replace("SLEEP", &sleep));
        let began = Instant::now();
        let result = executor.execute(name, call(by, &command).with_timeout(LIMIT));
        let took = began.elapsed();
        assert_eq!(result.outcome, Outcome::Timeout, "{name} ({by:?}): {}", result.error);
        let output = start(&result.output);
        assert!(output.starts_with("begun"), "{name} ({by:?}): {output}");
        assert!(LIMIT <= took && took < LIMIT + MARGIN, "{name} ({by:?}) took {took:?}");
        // Jobs of a shell that goes on are its own, until its trajectory ends.
        if by != By::Stateful || result.metadata["session"] == "ended" {
            assert!(!is_running(&sleep), "{name} ({by:?}) is still there");
        }
        // With what those jobs print until then, which may be a flood.
        let next = "kill -9 $(jobs -p) 2>/dev/null; wait; echo next";
        let next = executor.execute(name, call(by, next));
        let ok = next.outcome == Outcome::Ok && next.output.contains("next");
        assert!(ok, "after {name} ({by:?}): {:?}, {}", next.outcome, start(&next.output));
        executor.release(name).unwrap();
        assert!(!is_running(&sleep), "{name} ({by:?}) outlived its trajectory");
    });
}

#[test]
fn each_endless_command_ends_in_time_in_a_warm_sandbox() {
    each_endless_command_ends_in_time(By::Warm);
}

#[test]
fn each_endless_command_ends_in_time_in_a_sandbox_of_its_own() {
    each_endless_command_ends_in_time(By::PerCall);
}

#[test]
fn each_endless_command_ends_in_time_in_a_shell_that_is_kept() {
    each_endless_command_ends_in_time(By::Stateful);
}

#[test]
fn much_output_is_read_to_its_end_and_bounded() {
    let bytes = 200_000_000;
    for by in [By::Warm, By::PerCall, By::Stateful] {
        let (_dir, executor) = executor(by);
        let flood = format!("yes | head -c {bytes} & yes | head -c {bytes} >&2; wait");
        let result = executor.execute("t", call(by, &flood));
        assert_eq!(result.outcome, Outcome::Ok, "{by:?}: {}", result.error);
        assert_eq!(result.metadata["stdout_bytes"], bytes, "{by:?}");
        assert_eq!(result.metadata["stderr_bytes"], bytes, "{by:?}");
        assert!(result.output.len() < 250_000, "{by:?}: {}", result.output.len());
        assert_eq!(executor.execute("t", call(by, "echo next")).output, "next");
    }
}

/// A terminal has no time limit of its own for what is typed: it ends with its trajectory.
#[test]
fn nothing_of_a_terminal_outlives_its_trajectory() {
    let (_dir, executor) = executor(By::Warm);
    with_each_endless(|name, command| {
        let sleep = unique_sleep();
        let command = format!("touch begun; {}", command.replace("SLEEP", &sleep));
        let keys = json!({"action": "send_keys", "keys": [command, "Enter"]});
        let typed = executor.execute(name, ToolCall::new("tmux", keys));
        assert_eq!(typed.output, "ok", "{name}: {typed:?}");
        until(|| executor.execute(name, call(By::Warm, "ls begun")).success);
        let began = Instant::now();
        executor.release(name).unwrap();
        assert!(began.elapsed() < MARGIN, "{name}: {:?}", began.elapsed());
        assert!(!is_running(&sleep), "{name} outlived its trajectory");
    });
}

/// Takes locks of a file that every one of its processes has open very often: at its end the kernel
/// walks all of them for each of these, which takes a process seconds.
const SLOW_TO_DIE: &str = r#"
import fcntl, os, struct, time
file = os.open("locked", os.O_CREAT | os.O_RDWR, 0o600)
os.dup2(file, 4000)
os.close(file)
for place in range(20_000):
    lock = struct.pack("hhqqi", fcntl.F_RDLCK, 0, place * 2, 1, 0)
    fcntl.fcntl(4000, fcntl.F_OFD_SETLK, lock)
ready, done = os.pipe()
for process in range(10):
    if os.fork() == 0:
        for _ in range(3_900):
            os.open("locked", os.O_RDWR)
        os.write(done, b".")
        time.sleep(1000)
for process in range(10):
    os.read(ready, 1)
print("ready", flush=True)
os._exit(3)
"#;

#[test]
fn what_is_slow_to_die_costs_no_slot_and_the_call_ends_as_its_main_process_did() {
    let directory = directory();
    let mut config = LocalConfig::new(1);
    config.image = image();
    config.data_dir = Some(directory.path().to_owned());
    let backend = LocalBackend::start(config).unwrap();
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let call = ToolCall::new("write_file", json!({"path": "slow.py", "content": SLOW_TO_DIE}));
    assert!(executor.execute("t", call).success);
    // It takes long to be ready where the machine is busy.
    let slow = ToolCall::bash("exec python3 slow.py").with_timeout(Duration::from_secs(300));
    let result = executor.execute("t", slow);
    assert_eq!(result.outcome, Outcome::NonZeroExit, "{result:?}");
    assert!(result.output.starts_with("ready\n[10 background processes were"), "{result:?}");
    assert_eq!(result.metadata["exit_code"], 3);
    assert_eq!(executor.stats().retired_sandboxes, 1, "it died in time: {result:?}");
    // The same slot, with the same files and with none.
    let look = ToolCall::bash("ls -d locked slow.py 2>/dev/null; true");
    assert_eq!(executor.execute("t", look.clone()).output, "locked\nslow.py");
    executor.release("t").unwrap();
    assert_eq!(executor.execute("u", look).output, "");
    // The kernel has hundreds of thousands of descriptors to close, with a walk over the locks for
    // each.
    until_within(Duration::from_secs(300), || executor.stats().retired_sandboxes == 0);
    assert!(executor.close().all_threads_ended);
}
