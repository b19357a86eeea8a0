//! Files in and out of a trajectory's machine: paths mean what they mean to its commands, wherever
//! they lead.

use std::fs;

use serde_json::json;
use tool_executor::artifact::{ArchiveArtifacts, ArtifactError, ListArtifacts, ReadArtifact};
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig, Policy};
use tool_executor::{Outcome, ToolCall, ToolExecutor, ToolResult};

use crate::caller::directory;
use crate::fakes::bash;

fn start(local: LocalConfig, network: bool) -> (tempfile::TempDir, ToolExecutor) {
    let dir = directory();
    let backend = LocalBackend::start(local.with_data_dir(dir.path())).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    let config =
        ExecutorConfig::default().with_policy(Policy::default().with_allow_network(network));
    (dir, ToolExecutor::builder().backend(backend).config(config).start().unwrap())
}

fn read(executor: &ToolExecutor, path: &str) -> ToolResult {
    executor.execute("t", ToolCall::new("read_file", json!({"path": path})))
}

fn write(executor: &ToolExecutor, path: &str, content: &str) -> ToolResult {
    executor.execute("t", ToolCall::new("write_file", json!({"path": path, "content": content})))
}

fn run(executor: &ToolExecutor, command: &str) -> String {
    let result = executor.execute("t", bash(command));
    assert!(result.success, "{command}: {result:?}");
    result.output
}

#[test]
fn file_tools_reach_what_commands_do() {
    for network in [false, true] {
        let (_dir, executor) = start(LocalConfig::new(1), network);
        // The machine's own, not the host's; also as the first call.
        let passwd = read(&executor, "/etc/passwd");
        assert_eq!(passwd.output, run(&executor, "cat /etc/passwd; echo .").trim_end_matches("."));
        let made = write(&executor, "/srv/a/b/f", "of the tool");
        assert!(made.success, "{made:?}");
        assert_eq!(made.metadata["path"], "/srv/a/b/f");
        assert_eq!(run(&executor, "cat /srv/a/b/f"), "of the tool");
        run(&executor, "echo of the command > /srv/a/g; ln -s /srv/a/g link; ln -s ../srv up");
        assert_eq!(read(&executor, "/srv/a/g").output, "of the command\n");
        assert_eq!(read(&executor, "link").metadata["path"], "/srv/a/g");
        assert_eq!(read(&executor, "up/a/g").output, "of the command\n");
        let refused = write(&executor, "/usr/new", "x");
        assert!(refused.error.contains("Read-only file system"), "{refused:?}");
        executor.release("t").unwrap();
        assert_eq!(read(&executor, "/srv/a/g").outcome, Outcome::ToolError);
    }
}

#[test]
fn what_the_kernel_makes_up_is_refused_however_it_is_named() {
    let (_dir, executor) = start(LocalConfig::new(1), false);
    run(&executor, "ln -s /proc/self/environ env; mkdir d; ln -s ../../../../proc d/p");
    for path in ["/proc/self/environ", "env", "d/p/1/mem", "/dev/null", "/dev/shm/x", "/sys/x"] {
        for result in [read(&executor, path), write(&executor, path, "x")] {
            assert_eq!(result.outcome, Outcome::ToolError, "{path}");
            let text = result.error;
            assert!(text.contains("only commands can use it"), "{path}: {text}");
        }
        let error = executor.read_artifact("t", &ReadArtifact::new(path)).unwrap_err();
        assert!(matches!(error, ArtifactError::Refused(_)), "{path}: {error}");
    }
}

#[test]
fn artifacts_are_read_listed_and_archived_from_anywhere() {
    let (_dir, executor) = start(LocalConfig::new(1), false);
    run(&executor, "mkdir -p /srv/tree/d; echo 1 > /srv/tree/d/f; ln -s d/f /srv/tree/l; cd /srv");
    let read = executor.read_artifact("t", &ReadArtifact::new("/srv/tree/l")).unwrap();
    assert_eq!((&*read.content, &*read.path), (&b"1\n"[..], "/srv/tree/d/f"));
    let list = ListArtifacts::new("/srv").with_recursive(true);
    let list = executor.list_artifacts("t", &list).unwrap();
    let paths: Vec<_> = list.entries.iter().map(|entry| &*entry.path).collect();
    assert_eq!(paths, ["/srv/tree", "/srv/tree/d", "/srv/tree/d/f", "/srv/tree/d/f"]);
    let request = ArchiveArtifacts::new("/srv/tree");
    let (archive, summary) = executor.archive_artifacts("t", &request).unwrap();
    assert_eq!(summary.entry_count, 4);
    let to = tempfile::tempdir().unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(&*archive)).unpack(to.path()).unwrap();
    assert_eq!(fs::read_to_string(to.path().join("srv/tree/l")).unwrap(), "1\n");
    // All of a machine, but not what the kernel makes up.
    let all = ListArtifacts::new("/").with_recursive(true);
    let all = executor.list_artifacts("t", &all).unwrap().entries;
    assert!(all.iter().any(|entry| entry.path == "/proc" && entry.is_dir));
    assert!(!all.iter().any(|entry| entry.path.starts_with("/proc/")));
}
