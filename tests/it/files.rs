//! Files in and out of a trajectory's machine: paths mean what they mean to its commands, wherever
//! they lead.

use std::fs;

use serde_json::json;
use tool_executor::artifact::{
    ArchiveArtifacts, ArchiveFormat, ArtifactError, ListArtifacts, PutFiles, ReadArtifact,
};
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig, Policy, SlotLimits};
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
        // As the first call.
        assert!(write(&executor, "/srv/first", "x").success);
        assert_eq!(run(&executor, "cat /srv/first"), "x");
        // The machine's own, not the host's.
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

/// The bytes of an archive with these files, each with its name as content.
fn archive_of(names: &[&str]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for name in names {
        let mut header = tar::Header::new_gnu();
        header.set_size(name.len() as u64);
        header.set_mode(0o644);
        header.set_uid(1234);
        header.set_gid(4321);
        tar.append_data(&mut header, name, name.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn what_is_put_is_there_for_the_first_command_wherever_it_is() {
    let (_dir, executor) = start(LocalConfig::new(1), true);
    let script = PutFiles::file("/srv/task/run").with_mode(Some(0o755));
    let put = executor.put("t", &script, &mut &b"#!/bin/sh\necho ran\n"[..]).unwrap();
    assert_eq!((&*put.path, put.bytes), ("/srv/task/run", 19));
    let archive = archive_of(&["a", "d/b"]);
    executor.put("t", &PutFiles::tar("/srv/task/tree"), &mut &*archive).unwrap();
    executor.put("t", &PutFiles::tar("."), &mut &*archive).unwrap();
    let command = "/srv/task/run; cat /srv/task/tree/d/b d/b; echo x >> /srv/task/tree/d/b";
    assert_eq!(run(&executor, command), "ran\nd/bd/b");
    let mut copy = Vec::new();
    assert_eq!(executor.copy_artifact("t", "/srv/task/tree/d/b", &mut copy).unwrap(), 5);
    assert_eq!(copy, b"d/bx\n");
    let refused = |path: &str| {
        executor.put("t", &PutFiles::file(path), &mut &b"x"[..]).unwrap_err().to_string()
    };
    assert!(refused("/proc/self/comm").contains("only commands"), "{}", refused("/proc/self/comm"));
    assert!(refused("/usr/new").contains("'/usr/new'"), "{}", refused("/usr/new"));
    // A trajectory that has begun waits behind its calls, and a slot is had once.
    let sleep = executor.submit("t", bash("sleep 0.3; echo slept > order")).unwrap();
    executor.put("t", &PutFiles::file("order"), &mut &b"put"[..]).unwrap();
    assert!(sleep.wait().success);
    assert_eq!(run(&executor, "cat order"), "put");
    executor.release("t").unwrap();
    assert!(matches!(executor.copy_artifact("t", "order", &mut copy), Err(ArtifactError::NoSlot)));
}

#[test]
fn files_and_trees_of_the_host_go_in_and_files_come_out() {
    let (dir, executor) = start(LocalConfig::new(1), false);
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("sub/f"), "content").unwrap();
    std::os::unix::fs::symlink("sub/f", from.join("link")).unwrap();
    let big: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(from.join("big"), &big).unwrap();
    let put = executor.put_tree("t", &from, "/srv/tree").unwrap();
    assert_eq!((put.entry_count, put.bytes, put.skipped), (4, 5_000_007, 0));
    assert_eq!(run(&executor, "cat /srv/tree/link; readlink /srv/tree/link"), "contentsub/f");
    executor.put_file("t", &from.join("big"), "/tmp/big").unwrap();
    run(&executor, "cmp /tmp/big /srv/tree/big");
    let out = dir.path().join("out");
    fs::write(&out, "old").unwrap();
    assert_eq!(executor.copy_artifact_to("t", "/srv/tree/big", &out).unwrap(), 5_000_000);
    assert!(fs::read(&out).unwrap() == big);
    executor.copy_artifact_to("t", "/srv/nope", &out).unwrap_err();
    assert!(fs::read(&out).unwrap() == big, "what was there stays");
    executor.put_file("t", &from, "x").unwrap_err();
    executor.put_tree("t", &from.join("nope"), "x").unwrap_err();
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains(".part-")), "{names:?}");
}

#[test]
fn a_put_that_fills_the_slot_is_a_typed_error_and_leaves_nothing() {
    let limits = SlotLimits::default().with_workspace_bytes(Some(8 << 20));
    let (_dir, executor) = start(LocalConfig::new(1).with_limits(limits), false);
    let endless = &mut std::io::repeat(1);
    let error = executor.put("t", &PutFiles::file("endless"), endless).unwrap_err();
    assert!(matches!(&error, ArtifactError::DiskFull { path, .. } if path == "endless"), "{error}");
    assert_eq!(run(&executor, "ls -A"), "");
    // Nothing of it keeps commands from writing.
    run(&executor, "echo x > f");
    // Half of the memory limit is for what is in no directory of the slot's.
    let error = executor.put("t", &PutFiles::file("/srv/endless"), &mut std::io::repeat(1));
    assert!(matches!(error, Err(ArtifactError::DiskFull { .. })), "{error:?}");
    assert_eq!(run(&executor, "ls -A /srv"), "");
}

#[test]
fn owners_are_those_of_the_machine_where_a_slot_has_several_ids() {
    let (_dir, executor) = start(LocalConfig::new(1), false);
    let archive = archive_of(&["a", "d/b"]);
    let of_root = PutFiles::file("n/f").with_owner("root");
    let put = executor.put("t", &of_root, &mut &b"x"[..]);
    if !rustix::process::geteuid().is_root() {
        let error = put.unwrap_err().to_string();
        assert!(error.contains("one user id each"), "{error}");
        return;
    }
    put.unwrap();
    assert_eq!(run(&executor, "stat -c %u:%g n/f n"), "0:0\n0:0");
    let numbers = PutFiles::tar("numbers").with_owner("7:8");
    executor.put("t", &numbers, &mut &*archive).unwrap();
    assert_eq!(run(&executor, "stat -c %u:%g numbers/d/b"), "7:8");
    let kept = PutFiles::tar("kept").with_keep_owners(true);
    executor.put("t", &kept, &mut &*archive).unwrap();
    assert_eq!(run(&executor, "stat -c %u:%g kept/a"), "1234:4321");
    for (owner, words) in [
        ("no-such-user", "no user 'no-such-user'"),
        ("root:no-such-group", "no group 'no-such-group'"),
        ("70000", "0 to 65535"),
    ] {
        let request = PutFiles::file("f").with_owner(owner);
        let error = executor.put("t", &request, &mut &b"x"[..]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn an_archive_may_be_a_plain_tar_stream_and_goes_in_again() {
    let (_dir, executor) = start(LocalConfig::new(1), false);
    run(&executor, "mkdir -p /srv/d; seq 10000 > /srv/d/f; ln -s f /srv/d/l");
    let mut archives = Vec::new();
    for format in [ArchiveFormat::Tar, ArchiveFormat::TarGz] {
        let request = ArchiveArtifacts::new("/srv/d").with_format(format);
        let mut archive = Vec::new();
        let summary = executor.copy_archive("t", &request, &mut archive).unwrap();
        assert_eq!((summary.entry_count, summary.bytes), (3, archive.len() as u64));
        let put = executor.put("t", &PutFiles::tar("again"), &mut &*archive).unwrap();
        assert_eq!(put.entry_count, 3);
        run(&executor, "cmp /srv/d/f again/srv/d/l; rm -r again");
        archives.push(archive);
    }
    assert_eq!(&archives[0][257..262], b"ustar");
    assert!(archives[0].len() > 48_894 && archives[1].len() < 48_894);
}
