//! Snapshots, forks and graders with real processes, in the embedded sandbox.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig, Policy};
use tool_executor::grade::{GradeResult, GradeSpec};
use tool_executor::snapshot::{
    ForkOptions, SnapshotError, SnapshotId, SnapshotInfo, SnapshotOptions,
};
use tool_executor::{BeginError, Outcome, SpecFile, ToolCall, ToolExecutor, TrajectorySpec};

use crate::caller::directory;
use crate::fakes::{bash, until};

mod attacks;
mod grading;
mod images;
mod property;

/// What is in a data directory: one of an engine.
fn data_of(dir: &Path) -> std::path::PathBuf {
    let run = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    run.into_iter().find(|path| path.join("slot_0").is_dir()).unwrap()
}

fn start(slots: usize) -> (tempfile::TempDir, ToolExecutor) {
    start_with(LocalConfig::new(slots))
}

fn start_with(local: LocalConfig) -> (tempfile::TempDir, ToolExecutor) {
    let dir = directory();
    let backend = LocalBackend::start(local.with_data_dir(dir.path())).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    let config = ExecutorConfig::default().with_policy(Policy::default().with_allow_network(false));
    (dir, ToolExecutor::builder().backend(backend).config(config).start().unwrap())
}

fn run(executor: &ToolExecutor, id: &str, command: &str) -> String {
    let result = executor.execute(id, bash(command));
    assert!(result.success, "{command}: {result:?}");
    result.output
}

fn snapshot(executor: &ToolExecutor, id: &str) -> SnapshotInfo {
    executor.snapshot(id, &SnapshotOptions::default()).unwrap()
}

fn grade(executor: &ToolExecutor, id: &str, spec: &GradeSpec) -> GradeResult {
    executor.grade(id, spec).unwrap()
}

/// How many entries there are in a slot's directory on the host, once what is removed behind is
/// gone.
fn settled(dir: &Path, slot: usize, entries: usize) {
    let slot = data_of(dir).join(format!("slot_{slot}"));
    until(|| fs::read_dir(&slot).unwrap().count() == entries);
}

#[test]
fn a_trajectory_goes_on_with_its_files_above_a_snapshot() {
    let (dir, executor) = start(1);
    run(
        &executor,
        "t",
        "mkdir -p a/b; echo one > a/b/f; echo gone > g; ln -s a/b/f l; chmod 600 g",
    );
    run(&executor, "t", "echo tmp > /tmp/t; echo home > ~/h; echo shm > /dev/shm/s");
    run(&executor, "t", "head -c 3M /dev/urandom > /tmp/large");
    let first = snapshot(&executor, "t");
    assert_eq!((first.layers, &first.parent, &*first.container), (3, &None, "local"));
    let seen = run(&executor, "t", "cat l /tmp/t ~/h; ls /dev/shm; stat -c '%a' g; test -O g; pwd");
    assert_eq!(seen, "one\ntmp\nhome\n600\n/workspace");
    run(&executor, "t", "head -c 1M /dev/urandom > ~/large");
    // Changed, removed, renamed, and made anew.
    run(&executor, "t", "echo two >> a/b/f; rm g; mv a c; mkdir a; echo new > a/f");
    assert_eq!(
        run(&executor, "t", "cat c/b/f; find . | sort"),
        "one\ntwo\n.\n./a\n./a/f\n./c\n./c/b\n./c/b/f\n./l"
    );
    // File tools see the whole.
    let read = |path: &str| {
        executor.execute("t", ToolCall::new("read_file", json!({"path": path}))).output
    };
    assert_eq!((read("c/b/f"), read("/tmp/t")), ("one\ntwo\n".to_owned(), "tmp\n".to_owned()));
    let written = ToolCall::new("write_file", json!({"path": "c/w", "content": "tool"}));
    assert!(executor.execute("t", written).success);
    assert_eq!(run(&executor, "t", "cat c/w"), "tool");
    // Above another one, and what is kept of output is there, too.
    let second = snapshot(&executor, "t");
    assert_eq!(second.parent, Some(first.id.clone()));
    let long = executor.execute("t", bash("seq 1 100000"));
    let file = long.metadata["output_file"].as_str().unwrap().to_owned();
    assert_eq!(run(&executor, "t", &format!("wc -l < {file}")), "100000");
    assert_eq!(run(&executor, "t", "cat c/b/f c/w"), "one\ntwo\ntool");
    let listed = executor.snapshots().unwrap();
    assert_eq!(listed.iter().map(|info| &info.id).collect::<Vec<_>>(), [&first.id, &second.id]);
    // Counted when that is asked for: what each has that the one before it has not.
    assert_eq!((first.bytes, second.bytes), (None, None));
    let [of_first, of_second] = [0, 1].map(|index: usize| listed[index].bytes.unwrap());
    assert!((3 << 20..4 << 20).contains(&of_first), "{of_first}");
    assert!((1 << 20..2 << 20).contains(&of_second), "{of_second}");
    assert_eq!(executor.snapshots().unwrap()[0].bytes, Some(of_first));
    // Nothing of it is left when all is given up.
    executor.release("t").unwrap();
    assert_eq!(run(&executor, "t", "ls -A . /tmp; ls -A ~"), ".:\n\n/tmp:");
    executor.drop_snapshot(&first.id).unwrap();
    executor.drop_snapshot(&second.id).unwrap();
    settled(dir.path(), 0, 4);
}

#[test]
fn forks_begin_with_the_files_of_their_trajectory_and_each_has_its_own() {
    let (dir, executor) = start(4);
    run(&executor, "from", "echo base > f; mkdir d; echo x > d/x; echo t > /tmp/t; chmod 700 .");
    let forks = executor.fork("from", &["a", "b", "c"], &ForkOptions::default()).unwrap();
    for fork in &forks {
        assert!(fork.begun.is_ok(), "{fork:?}");
    }
    // Ids of their own, and the same owner inside.
    for id in ["a", "b", "c"] {
        let seen = run(
            &executor,
            id,
            &format!("cat f /tmp/t; test -O d/x; rm -r d; echo {id} >> f; cat f"),
        );
        assert_eq!(seen, format!("base\nt\nbase\n{id}"));
    }
    assert_eq!(run(&executor, "from", "cat f; ls d"), "base\nx");
    assert_eq!(executor.snapshots().unwrap(), []);
    // A fork of a fork, when its trajectory is gone.
    executor.release("from").unwrap();
    let again = executor.fork("b", &["e"], &ForkOptions::default()).unwrap();
    assert!(again[0].begun.is_ok(), "{again:?}");
    executor.release("b").unwrap();
    assert_eq!(run(&executor, "e", "cat f /tmp/t; ls"), "base\nb\nt\nf");
    // Files are removed when nothing is above them any more.
    for id in ["a", "c", "e"] {
        executor.release(id).unwrap();
    }
    for slot in 0..4 {
        settled(dir.path(), slot, 4);
    }
}

#[test]
fn a_fork_waits_for_a_slot_and_one_that_gets_none_says_so() {
    let dir = directory();
    let local = LocalConfig::new(2).with_data_dir(dir.path());
    let config = ExecutorConfig::default()
        .with_local(local)
        .with_policy(Policy::default().with_allow_network(false))
        .with_acquire_timeout(Duration::from_secs(2));
    let executor = ToolExecutor::start(config).unwrap();
    run(&executor, "from", "echo base > f");
    let forks = executor.fork("from", &["a", "b", "a"], &ForkOptions::default()).unwrap();
    let [a, b, again] = &forks[..] else { panic!("{forks:?}") };
    assert!(a.begun.is_ok(), "{a:?}");
    assert!(matches!(&b.begun, Err(BeginError::Failed(why)) if why.outcome() == Outcome::NeverRan));
    assert!(matches!(again.begun, Err(BeginError::AlreadyBegun)), "{again:?}");
    assert_eq!(run(&executor, "a", "cat f"), "base");
    let none = executor.fork("unknown", &["x"], &ForkOptions::default()).unwrap_err();
    assert!(matches!(none, SnapshotError::NoSlot), "{none}");
    let spec = TrajectorySpec::default().with_snapshot(SnapshotId::new("snapshot-of-none"));
    let options = ForkOptions::default().with_spec(spec.clone());
    let refused = executor.fork("from", &["x"], &options).unwrap_err();
    assert!(matches!(refused, SnapshotError::Invalid(_)), "{refused}");
    // What is not there is told, and the slot is another's then.
    executor.release("a").unwrap();
    let gone = executor.begin("x", spec).unwrap_err();
    assert!(
        matches!(&gone, BeginError::Failed(why) if why.outcome() == Outcome::ImageUnavailable),
        "{gone:?}"
    );
    assert_eq!(executor.execute("x", bash("ls")).outcome, Outcome::ImageUnavailable);
    executor.release("x").unwrap();
    assert_eq!(run(&executor, "x", "ls"), "");
}

#[test]
fn what_a_trajectory_keeps_running_ends_with_a_snapshot_only_if_that_is_allowed() {
    let (_dir, executor) = start(1);
    let in_shell = |command: &str| {
        executor.execute("t", ToolCall::new("terminal_stateful", json!({"command": command})))
    };
    assert!(in_shell("cd /tmp; V=kept").success);
    let refused = executor.snapshot("t", &SnapshotOptions::default()).unwrap_err();
    assert!(matches!(&refused, SnapshotError::KeepsProcesses(names) if names.len() == 1));
    assert_eq!(in_shell("echo $V $PWD").output, "kept /tmp");
    let ends = SnapshotOptions::default().with_end_processes(true);
    let made = executor.snapshot("t", &ends).unwrap();
    assert_eq!(made.ended_processes, ["the shell of terminal_stateful"]);
    let next = executor.execute("t", bash("echo next"));
    assert!(next.output.starts_with("next\n[the shell of terminal_stateful ended"), "{next:?}");
    assert_eq!(next.metadata["ended_between_calls"], json!(["the shell of terminal_stateful"]));
    assert_eq!(executor.execute("t", bash("echo then")).output, "then");
    assert_eq!(in_shell("echo $V$PWD").output, "/workspace");
}

#[test]
fn a_trajectory_has_what_its_spec_gave_it_after_a_snapshot_too() {
    let (_dir, executor) = start(2);
    let env = [("COLOUR".to_owned(), "green".to_owned())];
    let spec = TrajectorySpec::default().with_env(env.into()).with_workdir("/srv/task".to_owned());
    executor.begin("t", spec).unwrap();
    assert_eq!(run(&executor, "t", "echo $COLOUR; pwd; echo x > ~/f"), "green\n/srv/task");
    let made = snapshot(&executor, "t");
    assert_eq!(run(&executor, "t", "echo $COLOUR; pwd; cat ~/f"), "green\n/srv/task\nx");
    // A grader has nothing of it; a fork what its own spec says.
    assert_eq!(grade(&executor, "t", &GradeSpec::new("echo .$COLOUR; pwd")).stdout, ".\n/grade\n");
    assert_eq!(run(&executor, "t", "echo $COLOUR; pwd"), "green\n/srv/task");
    let env = [("COLOUR".to_owned(), "blue".to_owned())];
    let spec = TrajectorySpec::default().with_snapshot(made.id).with_env(env.into());
    executor.begin("u", spec).unwrap();
    assert_eq!(run(&executor, "u", "echo $COLOUR; pwd; cat ~/f"), "blue\n/workspace\nx");
    let spec = TrajectorySpec::default().with_user("root".to_owned());
    let options = ForkOptions::default().with_spec(spec);
    executor.release("u").unwrap();
    let forks = executor.fork("t", &["v"], &options).unwrap();
    let Err(BeginError::Failed(why)) = &forks[0].begun else { panic!("{forks:?}") };
    assert_eq!(why.outcome(), Outcome::SpecUnsupported, "{why}");
}
