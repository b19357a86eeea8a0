//! Descriptors are counted at the start: what all slots can need, against the limit of this
//! process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig};
use tool_executor::{BackendErrorKind, Outcome, ToolCall, ToolExecutor};

use crate::alone::{case, is_alone, run};
use crate::fakes::{bash, until};

fn base() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o711)).unwrap();
    base
}

/// How many descriptors this process has open; the one that counts them is not.
fn open_now() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

#[test]
fn too_few_descriptors_are_refused_at_the_start_with_the_sum_and_as_many_as_advised_do() {
    let name = "descriptors::too_few_descriptors_are_refused_at_the_start_with_the_sum_and_as_many_as_\
                advised_do";
    const SAYS: &str = "TOOL_EXECUTOR_TEST_SAYS";
    let with = |limit: u64, case: &str, says: &Path| {
        let limit = format!("--nofile={limit}:{limit}");
        run(name, case, &["prlimit", &limit], |command| {
            command.env(SAYS, says);
        });
        fs::read_to_string(says).unwrap()
    };
    let Some(case) = case() else {
        let says = tempfile::NamedTempFile::new().unwrap();
        let text = with(40, "refused", says.path());
        for words in ["3 slots need 132 descriptors", "the limit is 40", "the reserve"] {
            assert!(text.contains(words), "{text}");
        }
        let (_, advice) = text.split_once("ulimit -n ").unwrap();
        let enough: u64 = advice.trim_end_matches(')').parse().unwrap();
        // One fewer is too few for three slots, and it is said how many there could be.
        let text = with(enough - 1, "refused", says.path());
        assert!(text.contains("give fewer slots (at most 2)"), "{text}");
        with(enough, "filled", says.path());
        return;
    };
    let base = base();
    let local = LocalConfig::new(3).with_data_dir(base.path());
    if case == "filled" {
        return fill(local);
    }
    let error = LocalBackend::start(local).unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Shortage, "{error}");
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    fs::write(std::env::var_os(SAYS).unwrap(), error.to_string()).unwrap();
}

/// The files with complete outputs, of all slots in this base.
fn files_of(base: &Path) -> Vec<PathBuf> {
    let entries = |directory: &Path| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let slots = entries(base).into_iter().flat_map(|run| entries(&run));
    let homes = slots.flat_map(|slot| entries(&slot));
    let files = homes.flat_map(|home| entries(&home.join(".tool-output")));
    files.filter(|file| file.extension().is_some_and(|end| end == "txt")).collect()
}

/// Has every slot do all that it can at a time.
fn fill(local: LocalConfig) {
    let base = local.data_dir.clone().unwrap();
    let base = &*base;
    let slots = local.slots;
    let executor = ToolExecutor::start(ExecutorConfig::default().with_local(local)).unwrap();
    let tool = |tool: &str, arguments| ToolCall::new(tool, arguments);
    for slot in 0..slots {
        let trajectory = slot.to_string();
        let shell = tool("terminal_stateful", json!({"command": "echo x"}));
        assert_eq!(executor.execute(&trajectory, shell).output, "x");
        let terminal = executor.execute(&trajectory, tool("tmux", json!({"action": "start"})));
        assert!(terminal.success, "{terminal:?}");
    }
    let long = "seq 100000; seq 100000 >&2; read x < go";
    let calls: Vec<_> = (0..slots)
        .map(|slot| {
            executor.submit(&slot.to_string(), bash(&format!("mkfifo go; {long}"))).unwrap()
        })
        .collect();
    // Each has its files, and waits.
    until(|| files_of(base).len() == 2 * slots);
    calls.iter().for_each(tool_executor::Pending::cancel);
    for call in calls {
        assert_eq!(call.wait().outcome, Outcome::Cancelled);
    }
    for slot in 0..slots {
        assert_eq!(executor.execute(&slot.to_string(), bash("echo fine")).output, "fine");
        executor.release(&slot.to_string()).unwrap();
    }
}

#[test]
fn a_slot_holds_no_more_descriptors_than_are_counted_for_it() {
    // As the message of a refused start says, which the other test reads.
    const PER_SLOT: usize = 44;
    if !is_alone("descriptors::a_slot_holds_no_more_descriptors_than_are_counted_for_it") {
        return;
    }
    for warm in [true, false] {
        let base = base();
        let local = LocalConfig::new(1).with_data_dir(base.path()).with_warm_slots(warm);
        let backend = LocalBackend::start(local).unwrap();
        let executor = ToolExecutor::builder().backend(backend).start().unwrap();
        let (jail, machine, output) = (3, 7, 7);
        let before = open_now();
        // It founds the machine, which has a proxy.
        assert_eq!(executor.execute("t", bash("echo x")).output, "x");
        until(|| open_now() - before == machine + if warm { jail } else { 0 });
        let before = before + machine;
        let of_commands = open_now() - before;
        let shell = ToolCall::new("terminal_stateful", json!({"command": "echo x"}));
        assert_eq!(executor.execute("t", shell).output, "x");
        let session = open_now() - before - of_commands;
        let terminal = executor.execute("t", ToolCall::new("tmux", json!({"action": "start"})));
        assert!(terminal.success, "{terminal:?}");
        let terminal = open_now() - before - of_commands - session;
        // Longer than what is shown of each: both have a file.
        let long = "seq 100000; seq 100000 >&2; sleep 1000";
        let call = executor.submit("t", bash(long)).unwrap();
        until(|| files_of(base.path()).len() == 2);
        let sum = session + terminal + jail + output;
        // Until the files are held again, after what was just written.
        until(|| open_now() - before == sum);
        call.cancel();
        assert_eq!(call.wait().outcome, Outcome::Cancelled);
        // Whether it is kept or not.
        let left = if warm { jail } else { 0 };
        until(|| open_now() - before == session + terminal + left);
        assert_eq!((session, terminal), (8, 7), "warm {warm}");
        // Three directories, a machine without a proxy beside the other, another jail that ends
        // meanwhile, and the socket of a proxy that does.
        let sum = sum + 3 + machine + (machine - 1) + 2 + 1;
        assert_eq!(sum, PER_SLOT, "warm {warm}");
    }
}
