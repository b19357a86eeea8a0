//! Snapshots, forks and grades on sandbox servers: forks are put where their files are.

use tool_executor::grade::GradeSpec;
use tool_executor::snapshot::{ForkOptions, SnapshotError, SnapshotOptions};

use super::*;

#[test]
fn forks_run_on_the_server_of_their_files_and_snapshots_go_with_their_executor() {
    let backends = [4, 4].map(|slots| LocalBackend::start(LocalConfig::new(slots)).unwrap());
    let servers = backends.clone().map(|backend| SandboxServer::start(config(), backend).unwrap());
    let executor = executor(fleet(servers.iter().map(url)));
    let run = |id: &str, command: &str| {
        let result = executor.execute(id, bash(command));
        assert!(result.success, "{id}, {command}: {result:?}");
        result.output
    };
    run("from", "echo base > f");
    let addr = |id: &str| executor.slot_of(id).unwrap().addr;
    // Three on one server, though the other has more room.
    let forks = executor.fork("from", &["a", "b", "c"], &ForkOptions::default()).unwrap();
    for fork in &forks {
        assert!(fork.begun.is_ok(), "{fork:?}");
        assert_eq!(addr(&fork.trajectory_id), addr("from"));
        let id = &*fork.trajectory_id;
        assert_eq!(run(id, &format!("echo {id} >> f; cat f")), format!("base\n{id}"));
    }
    let grader = GradeSpec::new("cat /workspace/f >&6; exit 3");
    let graded = executor.grade("b", &grader).unwrap();
    assert_eq!((graded.verdict.as_deref(), graded.exit_code()), (Some("base\nb\n"), Some(3)));
    assert_eq!(run("b", "cat f"), "base\nb");

    let in_shell = ToolCall::new("terminal_stateful", json!({"command": "true"}));
    assert!(executor.execute("a", in_shell).success);
    let refused = executor.snapshot("a", &SnapshotOptions::default()).unwrap_err();
    assert!(matches!(&refused, SnapshotError::KeepsProcesses(names) if names.len() == 1));
    let ends = SnapshotOptions::default().with_end_processes(true);
    let made = executor.snapshot("a", &ends).unwrap();
    assert_eq!((&made.container, made.ended_processes.len()), (&addr("a"), 1));
    let again = executor.snapshot("c", &ends).unwrap();
    let listed: Vec<_> = executor.snapshots().unwrap().into_iter().map(|info| info.id).collect();
    assert_eq!(listed, [made.id.clone(), again.id.clone()]);
    executor.drop_snapshot(&made.id).unwrap();
    let gone = executor.drop_snapshot(&made.id).unwrap_err();
    assert!(matches!(gone, SnapshotError::NotFound(_)), "{gone}");
    let kept = || {
        let kept = |backend: &LocalBackend| {
            tool_executor::backend::Snapshots::list(backend).unwrap().len()
        };
        backends.iter().map(kept).sum::<usize>()
    };
    assert_eq!(kept(), 1);
    // With the session goes what it has left.
    executor.close();
    assert_eq!(kept(), 0);
}

#[test]
fn a_server_that_dies_is_told() {
    let server = server(1);
    let executor = executor(fleet([url(&server)]));
    assert!(executor.execute("t", bash("true")).success);
    server.close(Duration::ZERO);
    let lost = executor.snapshot("t", &SnapshotOptions::default()).unwrap_err();
    assert!(matches!(lost, SnapshotError::SandboxLost(_) | SnapshotError::Io(..)), "{lost:?}");
}
