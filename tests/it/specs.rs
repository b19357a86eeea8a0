//! What a trajectory's spec means in the embedded sandbox: real commands.

use std::time::Duration;

use serde_json::{Value, json};
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig, NetworkMode, Policy};
use tool_executor::{BeginError, Outcome, ToolCall, ToolExecutor, ToolResult, TrajectorySpec};

use crate::caller::directory;
use crate::fakes::{bash, until};
use crate::network::servers::Files;

struct Machine {
    executor: ToolExecutor,
    _dir: tempfile::TempDir,
}

impl Machine {
    fn start(config: LocalConfig) -> Self {
        let dir = directory();
        let backend = LocalBackend::start(config.with_data_dir(dir.path())).unwrap();
        assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
        let executor = ToolExecutor::builder().backend(backend).start().unwrap();
        Self { executor, _dir: dir }
    }

    fn begin(&self, trajectory: &str, spec: Value) -> Result<(), BeginError> {
        let spec: TrajectorySpec = serde_json::from_value(spec).unwrap();
        self.executor.begin(trajectory, spec)
    }

    /// Why it does not begin.
    fn refusal(&self, trajectory: &str, spec: Value) -> String {
        let Err(BeginError::Failed(failure)) = self.begin(trajectory, spec) else {
            panic!("{trajectory} begins");
        };
        assert_eq!(failure.outcome(), Outcome::SpecUnsupported, "{failure}");
        self.executor.release(trajectory).unwrap();
        failure.to_string()
    }

    fn bash(&self, trajectory: &str, command: &str) -> ToolResult {
        self.executor.execute(trajectory, bash(command))
    }

    fn call(&self, trajectory: &str, tool: &str, arguments: Value) -> ToolResult {
        self.executor.execute(trajectory, ToolCall::new(tool, arguments))
    }
}

#[test]
fn its_variables_are_in_every_tool_and_gone_with_the_release() {
    let config = LocalConfig::new(1).with_env(
        [("SHARED", "operators"), ("OTHER", "operators")]
            .map(|(name, value)| (name.to_owned(), Some(value.to_owned())))
            .into(),
    );
    let machine = Machine::start(config);
    let spec = json!({"env": {"SHARED": "its own", "QUOTED": "a'b \"c\"\n$d", "LANG": "C"}});
    machine.begin("t", spec).unwrap();
    let echo = "echo \"$SHARED-$OTHER-$LANG\"";
    let expected = "its own-operators-C";
    assert_eq!(machine.bash("t", echo).output, expected);
    assert_eq!(machine.bash("t", "printf %s \"$QUOTED\"").output, "a'b \"c\"\n$d");
    let stateful = machine.call("t", "terminal_stateful", json!({"command": echo}));
    assert_eq!(stateful.output, expected, "{stateful:?}");
    machine.call("t", "tmux", json!({"action": "start"}));
    let keys = format!("{echo}\n");
    machine.call("t", "tmux", json!({"action": "send_keys", "keys": keys}));
    let screen = || machine.call("t", "tmux", json!({"action": "capture"})).output;
    until(|| screen().contains(expected));
    machine.executor.release("t").unwrap();
    assert_eq!(machine.bash("t", echo).output, "operators-operators-C.UTF-8");
}

#[test]
fn one_without_network_has_none_whatever_the_operator_gives_and_its_neighbour_has() {
    let server = Files::start("127.0.0.2", &[("/x", "hello")]);
    let allowed = vec![server.pattern().parse().unwrap()];
    let machine = Machine::start(LocalConfig::new(3).with_allow_hosts(allowed));
    machine.begin("cut", json!({"network": "none"})).unwrap();
    let fetch = format!("curl -sS {}", server.url("/x"));
    let cut = machine.bash("cut", &fetch);
    assert!(!cut.success && !cut.output.contains("hello"), "{cut:?}");
    assert_eq!(cut.metadata["network_isolated"], true);
    let shell = machine.call("cut", "terminal_stateful", json!({"command": fetch}));
    assert!(!shell.output.contains("hello"), "{shell:?}");
    assert_eq!(machine.bash("other", &fetch).output, "hello");
    let refusal = machine.refusal("more", json!({"network": "host"}));
    assert!(refusal.contains("its operator gives proxy"), "{refusal}");
    machine.begin("more", json!({"network": "proxy"})).unwrap();
}

#[test]
fn its_list_of_hosts_narrows_the_operators() {
    let [a, b] =
        ["127.0.0.2", "127.0.0.3"].map(|address| Files::start(address, &[("/x", "hello")]));
    let allowed = [&a, &b].map(|server| server.pattern().parse().unwrap()).to_vec();
    let machine = Machine::start(LocalConfig::new(1).with_allow_hosts(allowed));
    machine.begin("t", json!({"allow_hosts": [a.pattern()]})).unwrap();
    let fetch = |server: &Files| format!("curl -sS {}", server.url("/x"));
    assert_eq!(machine.bash("t", &fetch(&a)).output, "hello");
    let refused = machine.bash("t", &fetch(&b));
    assert!(refused.output.contains("not among the hosts that this trajectory"), "{refused:?}");
    assert_eq!(refused.metadata["network"]["refused_hosts"], json!(["127.0.0.3"]));
    machine.executor.release("t").unwrap();
    // The slot's next trajectory has the operator's again.
    assert_eq!(machine.bash("u", &fetch(&b)).output, "hello");
    machine.executor.release("u").unwrap();
    let cut = Machine::start(LocalConfig::new(1).with_network(NetworkMode::None));
    let refusal = cut.refusal("t", json!({"allow_hosts": ["a.example"]}));
    assert!(refusal.contains("cannot give allow_hosts"), "{refusal}");
}

#[test]
fn what_this_engine_cannot_give_is_refused_by_name_and_the_slot_goes_on() {
    let machine = Machine::start(LocalConfig::new(1).with_network(NetworkMode::None));
    let refusal = machine.refusal("t", json!({"allow_hosts": ["a.example"]}));
    assert!(refusal.contains("cannot give allow_hosts; it has image,"), "{refusal}");
    let refusal = machine.refusal("t", json!({"env": {"PATH": "/x"}}));
    assert!(refusal.contains("--path-prepend"), "{refusal}");
    assert_eq!(machine.bash("t", "echo fine").output, "fine");
}

#[test]
fn when_its_time_is_up_nothing_of_it_is_left() {
    let machine = Machine::start(LocalConfig::new(1));
    machine.begin("t", json!({"max_wall_s": 0.3})).unwrap();
    let began = std::time::Instant::now();
    let result = machine.bash("t", "echo begun; echo x > file; sleep 1000");
    assert_eq!(result.outcome, Outcome::TrajectoryExpired, "{result:?}");
    assert_eq!((&*result.output, result.may_have_executed), ("begun", true));
    assert!(began.elapsed() < Duration::from_secs(30), "{result:?}");
    assert_eq!(machine.bash("t", "true").outcome, Outcome::TrajectoryExpired);
    // The slot has another holder before this one is released, and nothing of it is there.
    assert_eq!(machine.bash("u", "ls").output, "");
    machine.executor.release("t").unwrap();
}

#[test]
fn its_commands_begin_in_its_directory_whatever_tool_runs_them() {
    let machine = Machine::start(LocalConfig::new(2));
    for workdir in ["/workspace/a/b", "/app/c", "/tmp/x y", "/usr/lib"] {
        machine.begin("t", json!({"workdir": workdir})).unwrap();
        assert_eq!(machine.bash("t", "pwd").output, workdir);
        let shell = machine.call("t", "terminal_stateful", json!({"command": "pwd"}));
        assert_eq!(shell.output, workdir, "{shell:?}");
        let relative = machine.call("t", "bash", json!({"command": "pwd", "workdir": ".."}));
        let parent = std::path::Path::new(workdir).parent().unwrap().to_str().unwrap();
        assert_eq!(relative.output, parent, "{relative:?}");
        machine.call("t", "tmux", json!({"action": "start"}));
        machine.call("t", "tmux", json!({"action": "send_keys", "keys": "echo =$PWD=\n"}));
        let screen = || machine.call("t", "tmux", json!({"action": "capture"})).output;
        let expected = format!("={workdir}=");
        until(|| screen().contains(&expected));
        if workdir != "/usr/lib" {
            let write = json!({"path": "f", "content": "text"});
            let written = machine.call("t", "write_file", write);
            assert!(written.success, "{written:?}");
            assert_eq!(machine.bash("t", "cat f").output, "text");
        }
        machine.executor.release("t").unwrap();
        assert_eq!(
            machine.bash("t", "pwd; ls -A /app 2>&1").output.lines().next(),
            Some("/workspace")
        );
        machine.executor.release("t").unwrap();
    }
    let refusal = machine.refusal("t", json!({"workdir": "/proc/self"}));
    assert!(refusal.contains("workdir \"/proc/self\" cannot be made"), "{refusal}");
    let refusal = machine.refusal("t", json!({"workdir": "/etc/passwd"}));
    assert!(refusal.contains("/etc/passwd"), "{refusal}");
}

#[test]
fn its_files_are_there_with_their_modes_before_its_first_call() {
    let machine = Machine::start(LocalConfig::new(1));
    let spec = json!({"workdir": "/app", "files": [
        {"path": "/workspace/deep/run", "content": "#!/bin/sh\necho ran\n", "mode": "0755"},
        {"path": "relative", "content": "é"},
        {"path": "/elsewhere/bytes", "base64": "AP8="},
        {"path": "relative", "content": "later wins"},
    ]});
    machine.begin("t", spec).unwrap();
    let shown =
        machine.bash("t", "/workspace/deep/run; cat relative; od -An -tx1 /elsewhere/bytes");
    assert_eq!(shown.output, "ran\nlater wins 00 ff", "{shown:?}");
    let mode =
        machine.bash("t", "stat -c '%a %U' relative; id -un; touch relative /elsewhere/bytes");
    let lines: Vec<_> = mode.output.lines().collect();
    assert!(mode.success && lines[0] == format!("644 {}", lines[1]), "{mode:?}");
    machine.executor.release("t").unwrap();
    assert_eq!(machine.bash("u", "ls -A . /app 2>/dev/null").output, ".:");
    machine.executor.release("u").unwrap();
    let refusal = machine.refusal("t", json!({"files": [{"path": "/usr/x", "content": ""}]}));
    assert!(refusal.contains("the file \"/usr/x\" cannot be made"), "{refusal}");
    let small = Machine::start(LocalConfig::new(1).with_limits(
        tool_executor::config::SlotLimits::default().with_workspace_bytes(Some(1 << 20)),
    ));
    let large = json!({"files": [{"path": "f", "content": "x".repeat(2 << 20)}]});
    let refusal = small.refusal("t", large);
    assert!(refusal.contains("\"f\" cannot be made"), "{refusal}");
}

#[test]
fn without_a_network_by_policy_what_it_begins_with_is_where_its_calls_are() {
    let dir = directory();
    let backend = LocalBackend::start(LocalConfig::new(1).with_data_dir(dir.path())).unwrap();
    let policy = Policy::default().with_allow_network(false);
    let config = ExecutorConfig::default().with_policy(policy);
    let executor = ToolExecutor::builder().config(config).backend(backend).start().unwrap();
    let machine = Machine { executor, _dir: dir };
    machine
        .begin("t", json!({"workdir": "/app", "files": [{"path": "f", "content": "x"}]}))
        .unwrap();
    let result = machine.bash("t", "pwd; cat f");
    assert_eq!(result.output, "/app\nx", "{result:?}");
    assert_eq!(result.metadata["network_isolated"], true);
    machine.executor.release("t").unwrap();
    let Err(BeginError::Invalid(error)) = machine.begin("t", json!({"network": "proxy"})) else {
        panic!("the policy allows no network");
    };
    assert!(error.to_string().contains("leave it out"), "{error}");
}

#[test]
fn processes_that_its_commands_leave_are_kept_where_it_says_so() {
    let machine = Machine::start(LocalConfig::new(2));
    machine.begin("keeps", json!({"background": "keep"})).unwrap();
    machine.begin("ends", json!({"background": "end"})).unwrap();
    for (trajectory, expected) in [("keeps", "there"), ("ends", "gone")] {
        machine.bash(trajectory, "sleep 1000 >/dev/null 2>&1 & echo $! > pid");
        let look = "kill -0 $(cat pid) 2>/dev/null && echo there || echo gone";
        assert_eq!(machine.bash(trajectory, look).output, expected, "{trajectory}");
    }
}
