//! Whatever is asked, in whatever order: each trajectory has the files that a naive model has, and
//! nothing is left in the end. And a host that is killed in the midst of it leaves nothing that the
//! next one does not remove.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::alone::is_alone;

const IDS: [&str; 3] = ["a", "b", "c"];
const SLOTS: usize = 3;
const HOST: &str = "TOOL_EXECUTOR_TEST_FORKING_HOST";

#[derive(Debug, Clone)]
enum Step {
    /// Appends to a file of a trajectory, and removes another.
    Change(usize),
    Snapshot(usize),
    Fork(usize, usize),
    /// Begins from the snapshot of this number, if there are so many.
    Begin(usize, usize),
    Grade(usize),
    Drop(usize),
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 0..IDS.len();
    prop_oneof![
        4 => id().prop_map(Step::Change),
        3 => id().prop_map(Step::Snapshot),
        2 => (id(), id()).prop_map(|(from, to)| Step::Fork(from, to)),
        2 => (id(), 0..4usize).prop_map(|(to, snapshot)| Step::Begin(to, snapshot)),
        2 => id().prop_map(Step::Grade),
        2 => (0..4usize).prop_map(Step::Drop),
        2 => id().prop_map(Step::Release),
    ]
}

/// What this process and the machine have that may be left.
fn held(dir: &Path) -> BTreeMap<&'static str, usize> {
    let entries = |path: &Path| fs::read_dir(path).map_or(0, |all| all.count());
    let data = data_of(dir);
    let of_slots = (0..SLOTS).map(|slot| entries(&data.join(format!("slot_{slot}")))).sum();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let children = fs::read_dir("/proc/self/task").unwrap().map(|task| {
        let children = task.unwrap().path().join("children");
        fs::read_to_string(children).unwrap_or_default().split_whitespace().count()
    });
    BTreeMap::from([
        ("directories of slots", of_slots),
        ("descriptors", entries(Path::new("/proc/self/fd"))),
        ("mounts", mounts),
        ("processes", children.sum()),
    ])
}

/// What a naive model knows of a trajectory's files: how often each was appended to.
type Files = BTreeMap<usize, usize>;

fn check(executor: &ToolExecutor, id: &str, files: &Files) -> Result<(), TestCaseError> {
    let expected: String = files.iter().map(|(name, lines)| format!("{lines} {name}\n")).collect();
    let count = "cd d && for f in *; do [ -e $f ] && echo $(wc -l < $f) $f; done; true";
    prop_assert_eq!(run(executor, id, count), expected.trim_end());
    Ok(())
}

fn follow(executor: &ToolExecutor, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut files: HashMap<usize, Files> = HashMap::new();
    let mut kept: Vec<(SnapshotId, Files)> = Vec::new();
    let begin = |to: usize, snapshot: &SnapshotId| {
        let spec = TrajectorySpec::default().with_snapshot(snapshot.clone());
        executor.begin(IDS[to], spec).unwrap();
    };
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Step::Change(t) => {
                let (removed, name) = (number / 3 % 4, number % 4);
                let command = format!(
                    "mkdir -p d /tmp/d; echo x >> d/{name}; rm -f d/gone; touch d/gone; \
                             [ {removed} = {name} ] || rm -f d/{removed}; rm d/gone; echo t > /tmp/d/{number}"
                );
                run(executor, IDS[t], &command);
                let files = files.entry(t).or_default();
                *files.entry(name).or_default() += 1;
                if removed != name {
                    files.remove(&removed);
                }
            }
            Step::Snapshot(t) if files.contains_key(&t) => {
                let made = executor.snapshot(IDS[t], &SnapshotOptions::default()).unwrap();
                kept.push((made.id, files[&t].clone()));
            }
            Step::Fork(from, to) if files.contains_key(&from) && !files.contains_key(&to) => {
                let forks = executor.fork(IDS[from], &[IDS[to]], &ForkOptions::default()).unwrap();
                prop_assert!(forks[0].begun.is_ok(), "{:?}", forks);
                files.insert(to, files[&from].clone());
            }
            Step::Begin(to, snapshot) if !files.contains_key(&to) && snapshot < kept.len() => {
                begin(to, &kept[snapshot].0);
                files.insert(to, kept[snapshot].1.clone());
            }
            Step::Grade(t) if files.contains_key(&t) => {
                let spec =
                    GradeSpec::new("rm -r /workspace/d /tmp/d; echo g > /workspace/g; echo ok >&6");
                let graded = executor.grade(IDS[t], &spec).unwrap();
                prop_assert_eq!(graded.verdict.as_deref(), Some("ok\n"), "{:?}", graded);
            }
            Step::Drop(snapshot) if snapshot < kept.len() => {
                executor.drop_snapshot(&kept.remove(snapshot).0).unwrap();
            }
            Step::Release(t) => {
                executor.release(IDS[t]).unwrap();
                files.remove(&t);
            }
            _ => {}
        }
        for (t, files) in &files {
            check(executor, IDS[*t], files)?;
        }
    }
    for (id, _) in kept {
        executor.drop_snapshot(&id).unwrap();
    }
    for id in IDS {
        executor.release(id).unwrap();
    }
    Ok(())
}

#[test]
fn whatever_is_forked_has_the_files_that_it_should_and_nothing_is_left() {
    if !is_alone(
        "forks::property::whatever_is_forked_has_the_files_that_it_should_and_nothing_is_left",
    ) {
        return;
    }
    let (dir, executor) = start(SLOTS);
    // Threads and caches that come with the first.
    let warm =
        [Step::Change(0), Step::Snapshot(0), Step::Fork(0, 1), Step::Fork(0, 2), Step::Grade(1)];
    follow(&executor, &warm).unwrap();
    let clean = || held(dir.path())["directories of slots"] == SLOTS * 4;
    until(clean);
    // The namespaces that map the ids of one slot to another's are kept.
    let pairs = SLOTS * (SLOTS - 1);
    let before = held(dir.path());
    let mut runner =
        TestRunner::new(Config { cases: 6, failure_persistence: None, ..Config::default() });
    let run = |steps: Vec<Step>| {
        follow(&executor, &steps)?;
        // Removals and the reaping of what has ended are behind the release.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut after = held(dir.path());
            let more = after["descriptors"].saturating_sub(before["descriptors"]);
            if more <= pairs {
                after.insert("descriptors", before["descriptors"]);
            }
            if after == before {
                return Ok(());
            }
            prop_assert!(Instant::now() < deadline, "{:?}, and before {:?}", after, before);
            std::thread::yield_now();
        }
    };
    runner.run(&proptest::collection::vec(step(), 5..25), run).unwrap();
}

/// A host that forks and grades until it is killed, and says each time that it is about to.
#[test]
fn a_host_that_forks() {
    let Ok(directory) = std::env::var(HOST) else { return };
    let local = LocalConfig::new(2).with_data_dir(&directory);
    let config = ExecutorConfig::default()
        .with_local(local)
        .with_policy(Policy::default().with_allow_network(false));
    let executor = ToolExecutor::start(config).unwrap();
    run(&executor, "a", "mkdir d; for i in $(seq 200); do echo $i > d/$i; done");
    for round in 0.. {
        executor.fork("a", &["b"], &ForkOptions::default()).unwrap();
        run(&executor, "b", "rm -r d; echo x > f");
        grade(&executor, "b", &GradeSpec::new("rm -r /workspace; true"));
        executor.release("b").unwrap();
        if round % 20 == 19 {
            // As deep as it may become otherwise.
            executor.release("a").unwrap();
            run(&executor, "a", "mkdir d; echo 1 > d/1");
        }
    }
}

#[test]
fn a_host_that_is_killed_leaves_nothing_that_the_next_one_does_not_remove() {
    let dir = directory();
    for round in 1..6 {
        let mut host = Command::new(std::env::current_exe().unwrap())
            .args(["forks::property::a_host_that_forks", "--exact", "--nocapture"])
            .env(HOST, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(host.stdout.take().unwrap()).lines();
        let wanted = format!("round {round}");
        lines
            .find(|line| line.as_ref().is_ok_and(|line| line.ends_with(&wanted)))
            .unwrap()
            .unwrap();
        host.kill().unwrap();
        host.wait().unwrap();
        // What it ran ends with it; a removal may meet the last of that.
        until(|| {
            drop(LocalBackend::start(LocalConfig::new(1).with_data_dir(dir.path())).unwrap());
            let runs = fs::read_dir(dir.path()).unwrap();
            let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
            !runs.map(|entry| name(entry.unwrap())).any(|name| name.starts_with("run-"))
        });
    }
}
