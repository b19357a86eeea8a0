//! What a trajectory's spec means in the embedded sandbox: real commands.

use std::time::Duration;

use serde_json::{Value, json};
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{LocalConfig, NetworkMode};
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
    let machine = Machine::start(LocalConfig::new(1));
    let refusal = machine.refusal("t", json!({"snapshot": "s", "background": "keep"}));
    assert!(refusal.contains("background"), "{refusal}");
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
