//! Who a command is, and where: all ways to ask agree, and what tools keep at home is no part of
//! what the model made.

use serde_json::json;
use tool_executor::artifact::{ArchiveArtifacts, ListArtifacts, ReadArtifact};
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::LocalConfig;
use tool_executor::{ToolCall, ToolExecutor};

use crate::caller::directory;
use crate::fakes::bash;

/// An executor over one slot without network.
fn executor() -> (tempfile::TempDir, ToolExecutor) {
    let dir = directory();
    let backend = LocalBackend::start(LocalConfig::new(1).with_data_dir(dir.path())).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    (dir, ToolExecutor::builder().backend(backend).start().unwrap())
}

/// A call of each tool that runs commands.
fn of_each_tool(command: &str) -> [ToolCall; 2] {
    let arguments = json!({"command": command, "allow_network": false});
    ["bash", "terminal_stateful"].map(|tool| ToolCall::new(tool, arguments.clone()))
}

#[test]
fn every_way_to_ask_for_the_user_and_its_home_has_one_answer() {
    let (_dir, executor) = executor();
    let command = "whoami; getent passwd $(id -u) | cut -d: -f1; echo $USER; \
        python3 -c 'import os,pwd; print(pwd.getpwuid(os.getuid()).pw_name)'; echo --; \
        echo $HOME; getent passwd $(id -u) | cut -d: -f6; (unset HOME; eval echo ~$(whoami)); \
        python3 -c 'import os,pwd; print(pwd.getpwuid(os.getuid()).pw_dir)'; echo --; \
        id -gn; getent group $(id -g) | cut -d: -f1";
    for call in of_each_tool(command) {
        let result = executor.execute("t", call);
        let parts: Vec<Vec<&str>> =
            result.output.split("\n--\n").map(|part| part.lines().collect()).collect();
        let sizes: Vec<_> = parts.iter().map(Vec::len).collect();
        assert_eq!(sizes, [4, 4, 2], "{result:?}");
        for part in &parts {
            assert!(part.iter().all(|line| *line == part[0]), "{result:?}");
        }
        let home = parts[1][0];
        assert!(home.starts_with("/home/") || home == "/root", "{home}");
    }
}

#[test]
fn the_machines_own_name_is_that_of_its_loopback_interface() {
    let (_dir, executor) = executor();
    let command = "hostname; hostname -f; getent hosts $(hostname); \
        python3 -c 'import socket; print(socket.gethostbyname(socket.gethostname()))'; \
        getent ahostsv4 localhost | head -n1 | cut -d' ' -f1";
    for call in of_each_tool(command) {
        let result = executor.execute("t", call);
        let words: Vec<_> = result.output.split_ascii_whitespace().collect();
        let expected = ["sandbox", "sandbox", "127.0.0.1", "sandbox", "127.0.0.1", "127.0.0.1"];
        assert_eq!(words, expected, "{result:?}");
    }
}

#[test]
fn what_tools_keep_at_home_lasts_as_long_as_the_trajectory_and_is_not_in_the_workspace() {
    let (_dir, executor) = executor();
    let result = executor.execute(
        "t",
        bash("git init -q . && git config --global user.name n && echo kept > ~/file && ls -A"),
    );
    assert_eq!(result.output, ".git", "{result:?}");
    let shell = ToolCall::new("terminal_stateful", json!({"command": "cat ~/file; ls -A ~"}));
    assert_eq!(executor.execute("t", shell).output, "kept\n.gitconfig\nfile");
    executor.release("t").unwrap();
    assert_eq!(executor.execute("u", bash("find ~ -mindepth 1")).output, "");
}

#[test]
fn the_complete_output_is_where_every_tool_reaches_it_and_not_in_the_workspace() {
    let (_dir, executor) = executor();
    let whole: String = (1..=15_000).map(|n| format!("{n}\n")).collect();
    let commands = [
        bash("git init -q --bare /tmp/b.git; seq 15000"),
        ToolCall::new("terminal_stateful", json!({"command": "seq 15000"})),
    ];
    for call in commands {
        let result = executor.execute("t", call);
        let path = result.metadata["output_file"].as_str().unwrap();
        assert!(path.starts_with('/') && !path.starts_with("/workspace"), "{path}");
        assert_eq!(executor.execute("t", bash(&format!("tail -n1 {path}"))).output, "15000");
        let read = executor.execute("t", ToolCall::new("read_file", json!({"path": path})));
        assert!(read.output == whole && read.metadata["path"] == path, "{:?}", read.metadata);
        let artifact = executor.read_artifact("t", &ReadArtifact::new(path)).unwrap();
        assert!(artifact.content == whole.as_bytes() && artifact.path == path, "{}", artifact.path);
        assert_eq!(executor.execute("t", bash("ls -A; grep -r 15000 .; true")).output, "");
    }
    let clone = "git clone -q /tmp/b.git . 2>/dev/null; echo $?; git add -A; git status -s";
    assert_eq!(executor.execute("t", bash(clone)).output, "0");
}

#[test]
fn file_tools_and_artifacts_reach_tmp_and_the_home() {
    let (_dir, executor) = executor();
    let home = executor.execute("t", bash("echo report > /tmp/report; echo ~")).output;
    let call = |tool: &str, arguments| executor.execute("t", ToolCall::new(tool, arguments));
    let read = call("read_file", json!({"path": "/tmp/report"}));
    assert_eq!((&*read.output, &read.metadata["path"]), ("report\n", &json!("/tmp/report")));
    let file = format!("{home}/new/file");
    let written = call("write_file", json!({"path": file, "content": "x"}));
    assert_eq!(written.metadata["path"], file, "{written:?}");
    assert!(call("write_file", json!({"path": "../tmp/in", "content": "y"})).success);
    assert_eq!(executor.execute("t", bash("cat ~/new/file /tmp/in")).output, "xy");
    // Elsewhere they may what commands may.
    for (path, why) in [
        ("/etc/passwd", "Permission denied: '/etc/passwd'"),
        ("/root/../etc/passwd", "Permission denied: '/etc/passwd'"),
        ("/usr/x", "Read-only file system: '/usr/x'"),
        ("/", "Is a directory: '/'"),
        ("/proc/self/comm", "only commands can use it"),
    ] {
        let refused = call("write_file", json!({"path": path, "content": "x"}));
        assert!(refused.error.ends_with(why), "{path}: {}", refused.error);
    }
    let list = ListArtifacts::new("/tmp");
    let list = executor.list_artifacts("t", &list).unwrap();
    let paths: Vec<_> = list.entries.iter().map(|entry| &*entry.path).collect();
    assert_eq!(paths, ["/tmp/in", "/tmp/report"]);
    let archive = ArchiveArtifacts::new("/tmp");
    let (_, summary) = executor.archive_artifacts("t", &archive).unwrap();
    assert_eq!(summary.entry_count, 3, "the directory and two files");
}

#[test]
fn the_text_of_a_command_is_in_no_processs_arguments() {
    let (_dir, executor) = executor();
    // The pattern does not match itself.
    let command =
        "grep -al 'sought[-]text' /proc/[0-9]*/cmdline; pkill -f 'sought[-]text'; : sought-text
        echo went on";
    let calls = of_each_tool(command).into_iter().chain([ToolCall::new(
        "bash",
        json!({"command": command, "workdir": "/tmp", "env": {"A": "sought-text"}, "stdin": "x"}),
    )]);
    for call in calls {
        assert_eq!(executor.execute("t", call).output, "went on");
    }
}

#[test]
fn core_files_are_to_be_had_where_the_host_hands_them_to_no_program() {
    let (_dir, executor) = executor();
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let expected = match pattern.starts_with(['|', '@']) {
        true => "1 1 1",
        false => "0 unlimited unlimited",
    };
    let command = "echo $(ulimit -Sc) $(ulimit -Hc) $(ulimit -c unlimited; ulimit -c)";
    for call in of_each_tool(command) {
        let result = executor.execute("t", call);
        assert_eq!(result.output.lines().next(), Some(expected), "{result:?}");
    }
    // A relative name is a file in the working directory.
    if expected.starts_with('0') && !pattern.contains('/') {
        let crash = "ulimit -c unlimited; { sh -c 'kill -SEGV $$'; } 2>/dev/null; ls | wc -l";
        assert_eq!(executor.execute("t", bash(crash)).output, "1");
    }
}
