//! A host that is stopped and continued – Ctrl-Z, a frozen container, a paused machine – takes what
//! has ended meanwhile for ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig};
use tool_executor::{Outcome, ToolCall, ToolExecutor};

use crate::alone;
use crate::caller::directory;
use crate::fakes::PATIENCE;

const TOOLS: [&str; 2] = ["bash", "terminal_stateful"];
/// The commands have no trouble to start and to end within this.
const LIMIT: Duration = Duration::from_secs(8);

/// Looks now and then, until it is so.
fn until<T>(look: impl Fn() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    let (_nobody, never) = channel::<()>();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < give_up, "it did not come to it");
        let _ = never.recv_timeout(Duration::from_millis(2));
    }
}

/// The file of this name, wherever it is beneath a directory.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<_> = fs::read_dir(directory).ok()?.flatten().collect();
    let here = entries.iter().find(|entry| entry.file_name() == name).map(fs::DirEntry::path);
    here.or_else(|| entries.iter().find_map(|entry| find(&entry.path(), name)))
}

/// Whether every thread of a process is stopped.
/// Stops a process. It does not run any more when this comes back: the signal alone does not say
/// so, on a busy machine.
pub(crate) fn stop(pid: Pid) {
    kill_process(pid, Signal::STOP).unwrap();
    crate::fakes::until(|| is_stopped(pid));
}

fn is_stopped(pid: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
    })
}

/// The host: runs a call of each tool, and a release, and says what came of them.
fn host(directory: &Path) {
    let config = LocalConfig::new(TOOLS.len()).with_data_dir(directory);
    let backend = LocalBackend::start(config).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need user namespaces");
    // As good as none: what is not heard in time is lost.
    let config = ExecutorConfig::default().with_answer_grace(Duration::from_millis(100));
    let executor = ToolExecutor::builder().config(config).backend(backend).start().unwrap();
    let calls: Vec<_> = TOOLS
        .iter()
        .map(|tool| {
            let command = format!(
                "mkfifo go-{tool}; : >up-{tool}; read x <go-{tool}; echo done; : >down-{tool}"
            );
            let call = ToolCall::new(*tool, json!({"command": command})).with_timeout(LIMIT);
            executor.submit(tool, call).unwrap()
        })
        .collect();
    for (tool, call) in TOOLS.iter().zip(calls) {
        let result = call.wait_timeout(PATIENCE).unwrap();
        assert_eq!((result.outcome, &*result.output), (Outcome::Ok, "done"), "{tool}: {result:?}");
        let again = executor.execute(tool, ToolCall::new(*tool, json!({"command": "echo on"})));
        assert_eq!(again.output, "on", "{tool}: {again:?}");
        executor.release(tool).unwrap();
    }
}

#[test]
fn a_host_that_was_stopped_takes_what_has_ended_in_time_for_ended() {
    const TEST: &str = "stopped::a_host_that_was_stopped_takes_what_has_ended_in_time_for_ended";
    if let Some(directory) = alone::case() {
        return host(Path::new(&directory));
    }
    let directory = directory();
    let path = directory.path();
    let (tell, told) = channel();
    let case = path.to_str().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            alone::run_with(TEST, case, |child| tell.send(Pid::from_child(child)).unwrap());
        });
        let host = told.recv_timeout(PATIENCE).unwrap();
        let all_up: Vec<_> =
            TOOLS.iter().map(|tool| until(|| find(path, &format!("up-{tool}")))).collect();
        let began = Instant::now();
        stop(host);
        for (tool, up) in TOOLS.iter().zip(&all_up) {
            fs::write(up.with_file_name(format!("go-{tool}")), "\n").unwrap();
            until(|| find(path, &format!("down-{tool}")));
        }
        assert!(began.elapsed() < LIMIT / 2, "this machine is too slow for this test");
        until(|| (began.elapsed() > LIMIT + Duration::from_secs(1)).then_some(()));
        assert!(is_stopped(host));
        kill_process(host, Signal::CONT).unwrap();
    });
}
