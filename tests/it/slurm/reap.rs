//! What runs have left in Slurm, and its removal.

use serde_json::Value;
use tool_executor::Interrupt;
use tool_executor::backend::slurm::{RunState, started_servers};

use super::*;

/// What `reap` says.
fn reap(flags: &[&str]) -> (Option<i32>, String, String) {
    let output = program().args(["reap", "--slurm"]).args(flags).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A job as a run of this label has it, left by its `srun`'s death.
fn leave(label: &str) -> Child {
    let mut command = Command::new("srun");
    command.args(["--nodes=1", "--ntasks=1", &format!("--job-name={label}"), "sleep", "600"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn what_runs_that_are_over_have_left_is_listed_and_removed_and_nothing_else() {
    let name =
        "slurm::reap::what_runs_that_are_over_have_left_is_listed_and_removed_and_nothing_else";
    if !has_slurm(name) {
        return;
    }
    nodes_are_idle();
    let (code, text, _) = reap(&[]);
    assert_eq!((code, &*text), (Some(0), "Slurm has no sandbox server of yours\n"));
    let executor = start(config().with_jobs(jobs())).unwrap();
    let own = started_servers(&Interrupt::new()).unwrap();
    assert_eq!(own.len(), 1, "a job, and not its step too: {own:?}");
    assert_eq!((own[0].run_state, own[0].pid), (RunState::Running, std::process::id()));
    let run = own[0].run.clone();
    // The same process id, of another process; and another host's run.
    let (rest, _) = run.rsplit_once(':').unwrap();
    let over = format!("{rest}:1");
    let elsewhere = format!("tool-executor:elsewhere:{}", run.splitn(3, ':').nth(2).unwrap());
    let mut left = [leave(&over), leave(&elsewhere)];
    until(|| started_servers(&Interrupt::new()).unwrap().len() == 3);
    let state = |run: &str| {
        let servers = started_servers(&Interrupt::new()).unwrap();
        servers.iter().find(|server| server.run == run).map(|server| server.run_state)
    };
    assert_eq!((state(&over), state(&elsewhere)), (Some(RunState::Over), Some(RunState::Unknown)));
    let (_, text, _) = reap(&[]);
    assert!(text.contains("--remove removes") && text.contains(&over), "{text}");
    let (code, text, error) = reap(&["--remove", "--json"]);
    assert_eq!(code, Some(0), "{error}");
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["servers"].as_array().unwrap().len(), 3, "{told}");
    assert_eq!(told["removed"].as_array().unwrap().len(), 1, "{told}");
    until(|| state(&over).is_none());
    assert_eq!(state(&elsewhere), Some(RunState::Unknown));
    // What is named is removed, unless it goes on.
    let (code, _, error) = reap(&["--remove", "--run", &run]);
    assert!(code == Some(5) && error.contains("goes on"), "{error}");
    let (code, text, _) = reap(&["--remove", "--run", &elsewhere]);
    assert!(code == Some(0) && text.contains("removed"), "{text}");
    until(|| state(&elsewhere).is_none());
    let (code, _, error) = reap(&["--run", "tool-executor:nowhere"]);
    assert!(code == Some(5) && error.contains("no server is of the run"), "{error}");
    assert_eq!(executor.execute("a", bash("echo on")).output, "on");
    assert!(executor.close().all_threads_ended);
    until(|| running().is_empty());
    for child in &mut left {
        let _ = (child.kill(), child.wait());
    }
}
