//! Who a command is, and where: all ways to ask agree, and what tools keep at home is no part of
//! what the model made.

use serde_json::json;
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
