//! Limits of one trajectory, below the operator's: they hold for all its tools, for what is put
//! into its slot and for what is made of its files; they do not hold for its neighbours and its
//! slot's next trajectory.

use std::time::Duration;

use serde_json::{Value, json};
use tool_executor::artifact::{ArtifactError, PutFiles};
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{LocalConfig, SlotLimits};
use tool_executor::grade::GradeSpec;
use tool_executor::snapshot::{ForkOptions, SnapshotOptions};
use tool_executor::stats::Enforcement;
use tool_executor::{
    BeginError, Outcome, SpecField, ToolCall, ToolExecutor, ToolResult, TrajectoryLimits,
    TrajectorySpec,
};

use crate::caller::directory;
use crate::fakes::{PATIENCE, bash, until};
use crate::images::Image;

const MIB: u64 = 1 << 20;

struct Bench {
    executor: ToolExecutor,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// With so many slots under the default limits, as `set` changes them.
    fn new(slots: usize, set: impl FnOnce(SlotLimits) -> SlotLimits) -> Self {
        Self::of(LocalConfig::new(slots).with_limits(set(SlotLimits::default())))
    }

    fn of(config: LocalConfig) -> Self {
        let dir = directory();
        let backend = LocalBackend::start(config.with_data_dir(dir.path())).unwrap();
        assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
        let executor = ToolExecutor::builder().backend(backend).start().unwrap();
        Self { executor, _dir: dir }
    }

    fn begin(&self, trajectory: &str, spec: Value) {
        let spec: TrajectorySpec = serde_json::from_value(spec).unwrap();
        self.executor.begin(trajectory, spec).unwrap();
    }

    /// Why a trajectory with these limits does not begin.
    fn refusal(&self, limits: Value) -> String {
        let spec: TrajectorySpec = serde_json::from_value(json!({"limits": limits})).unwrap();
        let Err(BeginError::Failed(failure)) = self.executor.begin("refused", spec) else {
            panic!("it begins");
        };
        assert_eq!(failure.outcome(), Outcome::SpecUnsupported, "{failure}");
        self.executor.release("refused").unwrap();
        failure.to_string()
    }

    fn bash(&self, trajectory: &str, command: &str) -> ToolResult {
        self.executor.execute(trajectory, bash(command).with_timeout(Duration::from_secs(60)))
    }

    fn output(&self, trajectory: &str, command: &str) -> String {
        let result = self.bash(trajectory, command);
        assert_eq!(result.outcome, Outcome::Ok, "{command}: {result:?}");
        result.output
    }

    fn call(&self, trajectory: &str, tool: &str, arguments: Value) -> ToolResult {
        let call = ToolCall::new(tool, arguments).with_timeout(Duration::from_secs(60));
        self.executor.execute(trajectory, call)
    }

    /// The results of the same command of two trajectories, at the same time.
    fn both(&self, command: &str) -> [ToolResult; 2] {
        let submit = |trajectory| {
            let call = bash(command).with_timeout(Duration::from_secs(60));
            self.executor.submit(trajectory, call).unwrap()
        };
        ["narrow", "wide"].map(submit).map(|pending| pending.wait_timeout(PATIENCE * 2).unwrap())
    }
}

#[test]
fn what_one_trajectory_may_not_its_neighbour_may_and_the_next_in_its_slot() {
    let bench = Bench::new(2, |limits| limits);
    let limits = json!({"memory_bytes": 96 * MIB, "processes": 40, "open_files": 64,
        "file_bytes": 8 * MIB, "workspace_bytes": 32 * MIB, "files": 500});
    // Both slots are taken, so that the next trajectory has this one.
    bench.begin("narrow", json!({"limits": limits}));
    bench.output("wide", "true");

    let look = "ulimit -n; ulimit -f; df -k --output=size /dev/shm | tail -n 1 | tr -d ' '";
    let [narrow, wide] = bench.both(look);
    // The size of a file is in blocks of 1,024 bytes.
    assert_eq!(narrow.output, "64\n8192\n49152");
    assert_eq!(wide.output.lines().collect::<Vec<_>>()[1..], ["8388608", "2097152"]);

    let count = "perl -e 'while (@p < 100 && defined($p = fork())) { sleep 60 if !$p; push @p, $p } \
                 kill 9, @p; print scalar(@p)'";
    let [narrow, wide] = bench.both(count);
    let processes: u64 = narrow.output.lines().next().unwrap().parse().unwrap();
    assert!((20..40).contains(&processes), "{narrow:?}");
    assert_eq!(wide.output.lines().next(), Some("100"), "{wide:?}");

    for (command, outcome, limit) in [
        ("perl -e '$x = \"x\" x (150 << 20); sleep 4'", Outcome::OutOfMemory, "memory"),
        (
            "for i in {1..10}; do head -c 5M /dev/zero > f$i; done; sleep 4",
            Outcome::DiskFull,
            "workspace",
        ),
        ("mkdir d; for i in {1..700}; do : > d/$i; done; sleep 4", Outcome::DiskFull, "files"),
    ] {
        let [narrow, wide] = bench.both(command);
        assert_eq!((narrow.outcome, wide.outcome), (outcome, Outcome::Ok), "{narrow:?} {wide:?}");
        assert_eq!(narrow.metadata["limit"], limit);
        // Nothing is written before it was seen that there is room again.
        bench.output("narrow", "rm -rf f* d");
        until(|| bench.bash("narrow", "echo text > file").success);
        bench.output("wide", "rm -rf f* d");
    }

    bench.executor.release("narrow").unwrap();
    assert_eq!(bench.output("next", look), bench.output("wide", look));
    assert_eq!(bench.output("next", count).lines().next(), Some("100"));
    let hungry =
        "perl -e '$x = \"x\" x (150 << 20)'; for i in {1..10}; do head -c 5M /dev/zero > f$i; done;
        mkdir d; for i in {1..700}; do : > d/$i; done; sleep 4; echo fine";
    assert_eq!(bench.output("next", hungry), "fine");
}

#[test]
fn a_kept_shell_and_a_terminal_have_them_too() {
    let bench = Bench::new(1, |limits| limits);
    let limits = json!({"memory_bytes": 96 * MIB, "open_files": 64, "workspace_bytes": 16 * MIB});
    bench.begin("t", json!({"limits": limits}));
    let shell = |command: &str| bench.call("t", "terminal_stateful", json!({"command": command}));
    assert_eq!(shell("ulimit -n").output, "64");
    let result = shell("x=x; while :; do x=$x$x; done");
    assert_eq!(result.outcome, Outcome::OutOfMemory, "{result:?}");
    let result = shell("dd if=/dev/zero of=/tmp/big bs=64K");
    assert_eq!(result.outcome, Outcome::DiskFull, "{result:?}");
    assert_eq!(shell("rm -f /tmp/big; ulimit -n").output, "64");
    let keys = |keys: &str| {
        bench.call("t", "tmux", json!({"action": "send_keys", "keys": keys, "block": true}))
    };
    assert!(keys("echo =$(ulimit -n)=\n").success);
    let screen = || bench.call("t", "tmux", json!({"action": "capture"})).output;
    until(|| screen().contains("=64="));
    let result = keys("x=x; while :; do x=$x$x; done\n");
    assert_eq!(result.outcome, Outcome::OutOfMemory, "{result:?}");
    bench.executor.release("t").unwrap();
    assert_ne!(shell("ulimit -n").output, "64");
}

#[test]
fn where_cgroups_keep_them_the_tools_of_a_trajectory_have_them_together() {
    let bench = Bench::new(1, |limits| limits);
    let look = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null; true";
    if bench.executor.stats().limits.unwrap().memory != Enforcement::Cgroup {
        let refusal = bench.refusal(json!({"cpu": 0.5}));
        assert!(refusal.contains("the limit cpu cannot be kept without cgroups"), "{refusal}");
        return;
    }
    bench.begin("t", json!({"limits": {"memory_bytes": 96 * MIB, "cpu": 0.5}}));
    // Together too much, and the command has the most of it.
    let shell = "perl -e 'read(STDIN, $x, 30 << 20); $| = 1; print \"has it\\n\"; sleep 1000' < /dev/zero & sleep 2";
    let result = bench.call("t", "terminal_stateful", json!({"command": shell}));
    assert!(result.output.contains("has it"), "{result:?}");
    let result = bench.bash("t", "perl -e 'read(STDIN, $x, 80 << 20); sleep 60' < /dev/zero");
    assert_eq!(result.outcome, Outcome::OutOfMemory, "{result:?}");
    let quota = bench.output("t", look);
    assert!(["50000 100000", "50000"].contains(&&*quota), "{quota}");
    bench.executor.release("t").unwrap();
    let quota = bench.output("next", look);
    assert!(["max 100000", "-1"].contains(&&*quota), "{quota}");
    assert_eq!(bench.output("next", "perl -e '$x = \"x\" x (150 << 20); print \"fine\"'"), "fine");
}

#[test]
fn what_is_put_is_held_to_them() {
    let bench = Bench::new(1, |limits| limits);
    let limits = json!({"file_bytes": 4 * MIB, "workspace_bytes": 8 * MIB});
    bench.begin("t", json!({"limits": limits}));
    let put = |path: &str, bytes: u64| {
        let content = vec![1; bytes as usize];
        bench.executor.put("t", &PutFiles::file(path), &mut &*content).map(drop)
    };
    let error = put("d", 5 * MIB).unwrap_err();
    assert!(error.to_string().contains("4194304"), "{error}");
    put("a", 3 * MIB).unwrap();
    put("b", 3 * MIB).unwrap();
    let error = put("c", 3 * MIB).unwrap_err();
    assert!(matches!(error, ArtifactError::DiskFull { .. }), "{error:?}");
    bench.executor.release("t").unwrap();
    put("d", 5 * MIB).unwrap();
    put("e", 5 * MIB).unwrap();
}

#[test]
fn more_than_the_operator_gives_is_refused_with_the_operators_figure() {
    let bench = Bench::new(1, |limits| limits.with_memory_bytes(Some(512 * MIB)));
    let given = bench.executor.capabilities().spec;
    assert!(given.contains(&SpecField::Limits), "{given:?}");
    let refusal = bench.refusal(json!({"memory_bytes": 513 * MIB}));
    assert!(refusal.contains("memory_bytes is 537919488"), "{refusal}");
    assert!(refusal.contains("which is 536870912"), "{refusal}");
    // What the operator gives is no more.
    bench.begin("t", json!({"limits": {"memory_bytes": 512 * MIB}}));
    assert_eq!(bench.output("t", "echo fine"), "fine");
}

#[test]
fn where_the_operator_has_none_they_hold_for_the_one_trajectory() {
    let bench = Bench::new(2, |_| SlotLimits::none());
    bench.output("wide", "true");
    let limits = json!({"memory_bytes": 96 * MIB, "processes": 40, "workspace_bytes": 16 * MIB});
    bench.begin("narrow", json!({"limits": limits}));
    let [narrow, wide] = bench.both("perl -e '$x = \"x\" x (150 << 20); sleep 4'");
    assert_eq!((narrow.outcome, wide.outcome), (Outcome::OutOfMemory, Outcome::Ok), "{narrow:?}");
    let [narrow, wide] = bench.both("head -c 40M /dev/zero > big; sleep 4");
    assert_eq!((narrow.outcome, wide.outcome), (Outcome::DiskFull, Outcome::Ok), "{narrow:?}");
    bench.executor.release("narrow").unwrap();
    let hungry =
        "perl -e '$x = \"x\" x (150 << 20)'; head -c 40M /dev/zero > big; sleep 2; echo fine";
    assert_eq!(bench.output("next", hungry), "fine");
    assert_eq!(bench.executor.stats().limits.unwrap().memory, Enforcement::None);
}

#[test]
fn a_machine_from_an_image_has_them_from_its_beginning_on() {
    let image = Image::new();
    let bench = Bench::new(1, |limits| limits);
    let limits = json!({"memory_bytes": 64 * MIB, "open_files": 64});
    bench.begin("t", json!({"image": image.name(), "limits": limits}));
    assert_eq!(bench.output("t", "ulimit -n"), "64");
    let result = bench.bash("t", "dd if=/dev/zero of=/dev/shm/x bs=1M; wc -c < /dev/shm/x");
    assert!(result.output.contains("33554432"), "{result:?}");
}

#[test]
fn snapshots_forks_and_graders_keep_them() {
    let bench = Bench::new(3, |limits| limits);
    bench.begin("t", json!({"limits": {"open_files": 64, "processes": 40}}));
    let snapshot = bench.executor.snapshot("t", &SnapshotOptions::default()).unwrap();
    let look = "ulimit -n; ulimit -u";
    assert_eq!(bench.output("t", look), "64\n40");
    let grade = bench.executor.grade("t", &GradeSpec::new(look)).unwrap();
    assert_eq!(grade.stdout, "64\n40\n");
    let own = TrajectoryLimits::default().with_open_files(32_u64);
    let options = ForkOptions::default().with_spec(TrajectorySpec::default().with_limits(own));
    for fork in bench.executor.fork("t", &["narrower"], &options).unwrap() {
        fork.begun.unwrap();
    }
    assert_eq!(bench.output("narrower", look), "32\n40");
    bench.begin("again", json!({"snapshot": snapshot.id}));
    assert_eq!(bench.output("again", look), "64\n40");
    bench.executor.release("again").unwrap();
    assert_ne!(bench.output("other", look), "64\n40");
}
