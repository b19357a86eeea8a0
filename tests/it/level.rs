//! How far commands are isolated is found out at the start, and said: in the line of the start, in
//! `/health`, by the library. What a container's defaults take away is done without, not failed at.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tool_executor::backend::Backend;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{LocalConfig, UserIds};
use tool_executor::stats::IsolationLevel;
use tool_executor::{Outcome, ToolCall, ToolExecutor};

use crate::alone;
use crate::caller::directory;
use crate::fakes::bash;
use crate::kernel::{self, Answer, Filter};
use crate::sandbox::is_root;

fn executor(dir: &tempfile::TempDir, slots: usize) -> ToolExecutor {
    let config = LocalConfig::new(slots).with_data_dir(dir.path());
    let backend = LocalBackend::start(config).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    ToolExecutor::builder().backend(backend).start().unwrap()
}

fn output(executor: &ToolExecutor, command: &str) -> String {
    let result = executor.execute("t", bash(command));
    assert_eq!(result.outcome, Outcome::Ok, "{command}: {result:?}");
    result.output
}

/// The best that this user can have.
fn best() -> IsolationLevel {
    if is_root() { IsolationLevel::Full } else { IsolationLevel::OneUser }
}

#[test]
fn the_level_is_told_with_what_would_be_better() {
    let dir = directory();
    let stats = executor(&dir, 1).stats();
    assert_eq!(stats.isolation_level, Some(best()));
    assert_eq!(stats.weakened_because.is_empty(), is_root(), "{:?}", stats.weakened_because);
    let config = LocalConfig::new(1).with_data_dir(dir.path()).with_user_ids(UserIds::Shared);
    let capabilities = LocalBackend::start(config).unwrap().capabilities();
    assert_eq!(capabilities.isolation_level, Some(IsolationLevel::OneUser));
    assert!(capabilities.weakened_because[0].starts_with("all slots are one user"));

    let config = LocalConfig::new(1).with_data_dir(dir.path()).with_allow_unisolated(true);
    kernel::with(Filter::of_namespaces(Answer::Error(libc::EPERM)), || {
        let capabilities = LocalBackend::start(config).unwrap().capabilities();
        assert_eq!(capabilities.isolation_level, Some(IsolationLevel::None));
        assert!(capabilities.weakened_because[0].contains("cannot make namespaces"));
    });
}

#[test]
fn a_host_name_that_cannot_be_set_is_the_machines_and_resolves() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        kernel::with(Filter::of(libc::SYS_sethostname, Answer::Error(errno)), || {
            let dir = directory();
            let executor = executor(&dir, 1);
            assert_eq!(executor.stats().isolation_level, Some(best()));
            let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let script = "hostname; getent ahostsv4 $(hostname) | head -n 1 | cut -d' ' -f1; \
                getent ahostsv4 localhost | head -n 1 | cut -d' ' -f1";
            let expected = format!("{machine}\n127.0.0.1\n127.0.0.1");
            assert_eq!(output(&executor, script), expected);
        });
    }
}

#[test]
fn a_masked_proc_is_shown_as_it_is_and_that_is_said() {
    if !is_root() {
        return; // Only root can mount something over /proc.
    }
    let Some(_) = alone::case() else {
        let name = "level::a_masked_proc_is_shown_as_it_is_and_that_is_said";
        // As container engines do it.
        let mask = "mount -t tmpfs none /proc/driver && mount --bind /dev/null /proc/interrupts && \
            exec \"$@\"";
        return alone::run(
            name,
            "masked",
            &["unshare", "--mount", "sh", "-c", mask, "sh"],
            |run| {
                run.env("OF_THE_ENGINE", "a secret of the engine");
            },
        );
    };
    let dir = directory();
    let executor = executor(&dir, 2);
    let stats = executor.stats();
    assert_eq!(stats.isolation_level, Some(IsolationLevel::SharedProc));
    assert!(stats.weakened_because[0].contains("unmask=ALL"), "{:?}", stats.weakened_because);
    let seen = "cat /proc/*/comm 2>/dev/null | grep -c .; echo $((6 * 7)) > /dev/stderr; \
        cat < <(echo a pipe); [ /proc/self/exe -ef /usr/bin/test ] || ls /dev/fd/ | head -n 1";
    let seen = output(&executor, seen);
    let lines: Vec<_> = seen.lines().collect();
    let processes: u32 = lines[0].parse().unwrap();
    assert!(processes > 4, "the machine's are seen, which the level says: {seen}");
    assert!(lines.contains(&"a pipe"), "{seen}");
    // Seen, and no more than that.
    let pid = std::process::id();
    let attacks = format!(
        "cat /proc/{pid}/environ /proc/{pid}/task/*/environ /proc/{pid}/maps && echo ESCAPED; \
         cat /proc/*/environ 2>/dev/null | grep -qa 'secret of the engin[e]' && echo ESCAPED; \
         ls /proc/{pid}/root/ /proc/{pid}/cwd/ /proc/{pid}/fd/ && echo ESCAPED; \
         ls /proc/1/root/ && echo ESCAPED; \
         kill -0 {pid} && echo ESCAPED; unshare --user true && echo ESCAPED; \
         echo x > /proc/sys/kernel/hostname && echo ESCAPED; \
         echo 1 > /proc/{pid}/oom_score_adj && echo ESCAPED; \
         chmod 777 /proc/1 && echo ESCAPED; umount /proc/driver && echo ESCAPED; \
         mount -t proc proc /tmp && echo ESCAPED; cat /proc/interrupts | grep . && echo ESCAPED; true"
    );
    for kind in ["bash", "terminal_stateful"] {
        let result = executor.execute("t", ToolCall::new(kind, json!({"command": attacks})));
        assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
        assert!(!result.output.contains("ESCAPED"), "{kind}: {result:?}");
    }
    // What a call leaves running is ended all the same; what it was is not known.
    let left = format!("sleep 4217.{pid} & setsid sleep 4217.{pid} & echo left");
    assert_eq!(output(&executor, &left), "left");
    let look = format!("grep -la '421[7].{pid}' /proc/*/cmdline; true");
    assert_eq!(output(&executor, &look), "");
    let start = executor.execute("t", ToolCall::new("tmux", json!({"action": "start"})));
    assert!(start.success, "{start:?}");
    executor.release("t").unwrap();
    executor.close();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The program, where every user can reach it.
struct Ordinary {
    directory: tempfile::TempDir,
    program: PathBuf,
}

impl Ordinary {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let open = fs::Permissions::from_mode(0o777);
        fs::set_permissions(directory.path(), open.clone()).unwrap();
        let program = directory.path().join("tool-executor");
        fs::copy(env!("CARGO_BIN_EXE_tool-executor"), &program).unwrap();
        fs::set_permissions(&program, open).unwrap();
        Self { directory, program }
    }

    /// The program as an ordinary user who has no other processes, under this limit of them.
    fn command(&self, processes: u32) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "61235", "--regid", "61235", "--clear-groups", "prlimit"])
            .arg(format!("--nproc={processes}:{processes}"))
            .arg(&self.program)
            .env("TMPDIR", self.directory.path())
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }
}

/// Killed at the end of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn slots_that_are_one_user_get_their_shares_and_too_few_are_refused() {
    if !is_root() {
        return; // It takes another user, whose processes are this test's only.
    }
    let ordinary = Ordinary::new();
    let mut command = ordinary.command(496);
    command.args(["sandbox", "--port", "0", "--slots", "4"]).stdout(Stdio::piped());
    let mut server = Killed(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("(4 slots, isolation one_user)"), "{line}");
    let addr = line.split("http://").nth(1).unwrap().split(' ').next().unwrap();
    let mut client = crate::http_client::Client::connect(addr.parse().unwrap());
    let health = client.ask("GET", "/health", &[], b"").json();
    assert_eq!(health["isolation_level"], "one_user");
    let why = health["weakened_because"][0].as_str().unwrap();
    let missing = "/etc/subuid gives 61235 no user ids; add the line 61235:";
    assert!(why.contains(missing), "{why}");
    let command = "ulimit -u; ulimit -i; cat /proc/sys/user/max_inotify_instances; \
        python3 -c 'import ctypes; c = ctypes.CDLL(None); print(sum(c.inotify_init1(0) >= 0 for _ in range(200)))'";
    let call = json!({"slot_id": "slot_0", "tool": "bash", "args": {"command": command}});
    let type_json = [("Content-Type", "application/json")];
    let answer = client.ask("POST", "/execute", &type_json, call.to_string().as_bytes()).json();
    let numbers: Vec<u64> =
        answer["output"].as_str().unwrap().lines().map(|line| line.parse().unwrap()).collect();
    let [processes, signals, instances, made] = numbers[..] else { panic!("{answer}") };
    // 496 without what this program needs, which begins with one process.
    assert!((80..=100).contains(&processes), "{answer}");
    assert!(
        signals * 4
            <= rustix::process::getrlimit(rustix::process::Resource::Sigpending)
                .maximum
                .unwrap_or(u64::MAX)
    );
    let all: u64 = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(instances * 4 <= all && instances > 0, "{answer}");
    assert_eq!(made, instances.min(200), "{answer}");

    let mut command = ordinary.command(110);
    let refused = command.args(["sandbox", "--port", "0", "--slots", "4"]).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{text}");
    assert!(
        text.contains("4 slots need 32 processes (8 each)") && text.contains("ulimit -u"),
        "{text}"
    );
    let left = fs::read_dir(ordinary.directory.path().join("tool-executor-61235")).unwrap();
    assert_eq!(left.flatten().filter(|entry| entry.path().is_dir()).count(), 1, "the live one's");
}
