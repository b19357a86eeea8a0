//! The embedded sandbox behind the executor: real processes, real files, real namespaces.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tool_executor::artifact::ReadArtifact;
use tool_executor::backend::local::LocalBackend;
use tool_executor::backend::{Backend, ResetReply, SlotRef};
use tool_executor::config::{ExecutorConfig, LocalConfig, Policy};
use tool_executor::{Outcome, ToolCall, ToolExecutor};

use crate::caller::directory;
use crate::fakes::{PATIENCE, bash, until};

/// An executor over so many slots in a directory of the test's own.
fn executor_in(data_dir: &Path, slots: usize) -> (ToolExecutor, LocalBackend) {
    let mut config = LocalConfig::new(slots);
    config.data_dir = Some(data_dir.to_owned());
    let backend = LocalBackend::start(config).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    (ToolExecutor::builder().backend(backend.clone()).start().unwrap(), backend)
}

fn executor(slots: usize) -> (tempfile::TempDir, ToolExecutor) {
    let dir = directory();
    let (executor, _) = executor_in(dir.path(), slots);
    (dir, executor)
}

fn call(name: &str, arguments: Value) -> ToolCall {
    ToolCall::new(name, arguments)
}

/// Whether any process of this machine has this text in its command line.
pub(crate) fn is_running(marker: &str) -> bool {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok()).any(|command| {
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        command.contains(marker) && !command.contains("cargo")
    })
}

/// A sleep that no other test uses.
pub(crate) fn unique_sleep() -> String {
    let unique = uuid::Uuid::new_v4().as_u128() % 1_000_000_000;
    format!("sleep 4321.{unique:09}")
}

pub(crate) fn wait_until_running(marker: &str) {
    let patience = Instant::now() + PATIENCE;
    while !is_running(marker) {
        assert!(Instant::now() < patience, "{marker} never started");
        std::thread::yield_now();
    }
}

#[test]
fn the_three_tools_share_a_workspace_that_a_trajectory_keeps() {
    let (_dir, executor) = executor(2);
    let run = |name, arguments| executor.execute("t", call(name, arguments));
    let written = run("write_file", json!({"path": "a/b.txt", "content": "one\r\ntwo\n"}));
    assert_eq!(written.output, "Successfully wrote 9 bytes to a/b.txt");
    let listed = run("terminal", json!({"command": "cat /workspace/a/b.txt; pwd; echo no >&2"}));
    assert_eq!(listed.output, "one\r\ntwo\n/workspace\n\n[stderr]\nno");
    assert_eq!(listed.metadata["exit_code"], 0);
    assert_eq!(listed.metadata["sandboxed"], true);
    let read = run("read_file", json!({"path": "/workspace/a/b.txt"}));
    assert_eq!(read.output, "one\r\ntwo\n");
    assert_eq!(read.metadata["path"], "/workspace/a/b.txt");
    let failed = run("bash", json!({"command": "exit 3"}));
    assert_eq!((failed.outcome, &*failed.error), (Outcome::NonZeroExit, "Exit code: 3"));
    let other = executor.execute("other", bash("ls -A"));
    assert_eq!(other.output, "", "another trajectory has a workspace of its own");
}

#[test]
fn a_sleeping_command_delays_no_other_trajectory() {
    let (_dir, executor) = executor(32);
    let marker = unique_sleep();
    // It sleeps for ever, as far as this test is concerned, one such call behind the other.
    let sleeping: Vec<_> =
        (0..3).map(|_| executor.submit("sleeper", bash(&marker)).unwrap()).collect();
    wait_until_running(&marker);
    let queue = executor.completion_queue(31);
    for round in 0..3 {
        for t in 0..31 {
            let call = bash(&format!("echo {round}"));
            executor.submit_to(&format!("t{t}"), call, queue.tagged(t)).unwrap();
        }
        for _ in 0..31 {
            let completion = queue.next_timeout(PATIENCE).expect("delayed by a sleeper");
            assert_eq!(completion.result.output, round.to_string());
        }
    }
    assert!(is_running(&marker), "it slept through all of it");
    executor.cancel_trajectory("sleeper");
    for (index, sleeping) in sleeping.into_iter().enumerate() {
        let result = sleeping.wait_timeout(PATIENCE).unwrap();
        assert_eq!((result.outcome, result.may_have_executed), (Outcome::Cancelled, index == 0));
    }
    assert!(!is_running(&marker), "a cancelled call is answered when its last process is gone");
}

#[test]
fn fifty_trajectories_share_ten_slots_and_never_each_others_files() {
    let (_dir, executor) = executor(10);
    let queue = executor.completion_queue(50);
    let name = |t: u64| format!("t{t}");
    for t in 0..50 {
        let call = bash("ls -A; echo mine > mine; echo secret > .hidden");
        executor.submit_to(&name(t), call, queue.tagged(t)).unwrap();
    }
    let mut calls = [0; 50];
    while queue.outstanding() > 0 {
        let completion = queue.next_timeout(PATIENCE).expect("somebody starves");
        let (t, result) = (completion.tag, completion.result);
        assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
        calls[t as usize] += 1;
        if calls[t as usize] == 1 {
            assert_eq!(result.output, "", "files of another trajectory");
            let call = call("read_file", json!({"path": "mine"}));
            executor.submit_to(&name(t), call, queue.tagged(t)).unwrap();
        } else {
            assert_eq!(result.output, "mine\n");
            // Every other one without a reset: the next user's is forced.
            match t % 2 {
                0 => executor.submit_release(&name(t)),
                _ => executor.submit_release_keeping_files(&name(t)),
            }
        }
    }
    assert_eq!(calls, [2; 50]);
}

#[test]
fn nothing_is_left_when_the_executor_is_gone() {
    let dir = directory();
    let (executor, backend) = executor_in(dir.path(), 3);
    let marker = unique_sleep();
    let stubborn = format!("trap '' TERM; (setsid {marker} &) ; {marker}");
    let pending: Vec<_> =
        (0..3).map(|t| executor.submit(&format!("t{t}"), bash(&stubborn)).unwrap()).collect();
    wait_until_running(&marker);
    let report = executor.close_within(Duration::ZERO);
    assert!(report.all_threads_ended);
    for pending in pending {
        let result = pending.try_wait().unwrap();
        assert!(!result.success, "{result:?}");
    }
    assert!(!is_running(&marker));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a directory is left");
    drop((executor, backend));
}

#[test]
fn a_timeout_keeps_what_was_printed_and_leaves_the_slot_usable() {
    let (_dir, executor) = executor(1);
    let marker = unique_sleep();
    let command = format!("echo before; (setsid {marker} &); trap '' TERM; {marker}");
    let result = executor.execute("t", bash(&command).with_timeout(Duration::from_secs(1)));
    assert_eq!(
        (result.outcome, &*result.error),
        (Outcome::Timeout, "Command timed out after 1.0s")
    );
    assert_eq!(result.output, "before");
    assert_eq!(result.metadata["timeout"], true);
    assert!(!is_running(&marker));
    assert_eq!(executor.execute("t", bash("echo after")).output, "after");
}

#[test]
fn a_background_child_does_not_hold_the_call_up() {
    let (_dir, executor) = executor(1);
    let marker = unique_sleep();
    let wait = "until grep -qx sleep /proc/$!/comm; do :; done";
    let result = executor.execute("t", bash(&format!("{marker} & {wait}; echo done")));
    let told = "done\n[1 background process was ended with this call: sleep; use \
        terminal_stateful to keep a process running between calls]";
    assert_eq!((result.outcome, &*result.output), (Outcome::Ok, told));
    let expected = json!({"count": 1, "names": ["sleep"]});
    assert_eq!(result.metadata["ended_processes"], expected);
    assert_eq!(result.metadata.keys().next_back().unwrap(), "ended_processes");
    assert!(!is_running(&marker), "and does not outlive it");
}

#[test]
fn without_network_there_is_none_whatever_the_model_says() {
    let dir = directory();
    let mut config = LocalConfig::new(1);
    config.data_dir = Some(dir.path().to_owned());
    let executor = ToolExecutor::builder()
        .backend(LocalBackend::start(config).unwrap())
        .config(ExecutorConfig::default().with_policy(Policy::default().with_allow_network(false)))
        .start()
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let command = format!("echo > /dev/tcp/127.0.0.1/{port}");
    let arguments = json!({"command": command, "allow_network": true});
    let result = executor.execute("t", call("bash", arguments));
    assert_eq!(result.outcome, Outcome::NonZeroExit);
    assert_eq!(result.metadata["network_isolated"], true);
}

#[test]
fn printing_a_bubblewrap_error_switches_nothing_off() {
    let (_dir, executor) = executor(2);
    let lie = "echo ran >> count; echo 'bwrap: no permissions to create new namespace' >&2; false";
    let result = executor.execute("t", bash(lie));
    assert_eq!(result.outcome, Outcome::NonZeroExit);
    let result = executor.execute("t", bash("cat count; ls /root /home"));
    assert_eq!(result.metadata["sandboxed"], true);
    assert!(result.output.starts_with("ran\n"), "executed once: {}", result.output);
    assert!(!result.output.starts_with("ran\nran"));
}

#[test]
fn output_of_any_size_and_kind_is_bounded_and_counted() {
    let (_dir, executor) = executor(1);
    let run = |command: &str| executor.execute("t", bash(command));
    let flood = run("head -c 200000000 /dev/zero | tr '\\0' x; echo; echo end");
    assert_eq!(flood.outcome, Outcome::Ok, "{}", flood.error);
    assert_eq!(flood.metadata["stdout_bytes"], 200_000_005);
    assert!(flood.output.chars().count() < 51_000);
    assert!(flood.output.contains("\n... (output truncated)\n"));
    assert!(flood.output.ends_with("x\nend"), "the tail is kept");
    let binary = run(r"printf 'a\0b\xff\xfe\xc3\xa9'");
    assert_eq!(binary.output, "a\0b\u{fffd}\u{fffd}é");
    assert_eq!(binary.metadata["stdout_bytes"], 7);
}

#[test]
fn a_command_with_a_nul_is_the_models_mistake() {
    let (_dir, executor) = executor(1);
    let result = executor.execute("t", bash("echo a\0b"));
    assert_eq!((result.outcome, result.may_have_executed), (Outcome::InvalidCall, false));
    assert!(result.error.contains("without NULs"), "{}", result.error);
}

#[test]
fn a_workspace_can_be_saved_before_its_release() {
    let dir = directory();
    let (executor, backend) = executor_in(dir.path(), 1);
    assert_eq!(executor.slot_of("t"), None);
    executor.execute("t", bash("mkdir d; echo x > d/f; ln -s d/f link; mkfifo pipe"));
    let slot = executor.slot_of("t").expect("it holds one");
    let saved = tempfile::tempdir().unwrap();
    let dest = saved.path().join("t");
    backend.save_workspace(&slot, &dest).unwrap();
    assert_eq!(fs::read_to_string(dest.join("d/f")).unwrap(), "x\n");
    assert!(dest.join("link").is_symlink());
    assert!(!dest.join("pipe").exists(), "a FIFO is left out");
    executor.release("t").unwrap();
    assert_eq!(executor.slot_of("t"), None);
}

#[test]
fn every_file_attack_through_the_tools_stays_in_the_slots_machine() {
    // Not beneath /tmp, which is the slot's own to the tools.
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let (_dir, executor) = executor(1);
    let run = |name, arguments| executor.execute("t", call(name, arguments));
    let secret = secret.to_str().unwrap();
    run("bash", json!({"command": format!("ln -s '{secret}' out; ln -s / root; mkfifo fifo")}));
    let through_root = format!("root{secret}");
    for path in [secret, "out", &*through_root, "../slot_0/x", "/etc/shadow", "a/../../x"] {
        let read = run("read_file", json!({"path": path}));
        assert_eq!(read.outcome, Outcome::ToolError, "{path}: {read:?}");
    }
    // In the machine some of these may be made.
    for path in [secret, "out", &*through_root, "../slot_0/x", "a/../../x"] {
        run("write_file", json!({"path": path, "content": "overwritten"}));
    }
    // What commands see is what the tools see.
    let passwd = run("read_file", json!({"path": "/etc/passwd"}));
    assert_eq!(passwd.output.trim_end(), run("bash", json!({"command": "cat /etc/passwd"})).output);
    let refused = run("write_file", json!({"path": "/etc/passwd", "content": "overwritten"}));
    assert_eq!(refused.outcome, Outcome::ToolError, "{refused:?}");
    assert!(!fs::read_to_string("/etc/passwd").unwrap().contains("overwritten"));
    assert!(!Path::new("/x").exists() && !Path::new("/slot_0").exists());
    assert_eq!(fs::read_to_string(secret).unwrap(), "secret");
    let fifo = run("read_file", json!({"path": "fifo"}));
    assert_eq!(fifo.error, "Not a file: fifo");
    let fifo = run("write_file", json!({"path": "fifo", "content": "x"}));
    assert!(fifo.error.starts_with("Failed to write file: "), "{}", fifo.error);
}

#[test]
fn a_terminal_is_kept_between_calls_and_ends_with_its_trajectory() {
    let (_dir, executor) = executor(1);
    let tmux = |arguments| executor.execute("t", call("tmux", arguments));
    let started = tmux(json!({"action": "start", "pane_width": 90, "pane_height": 10}));
    assert_eq!((started.output.as_str(), &started.metadata["pane_width"]), ("started", &json!(90)));
    let sleep = unique_sleep();
    let keys = json!(["echo $((6 * 7))", "Enter", format!("{sleep} &"), "Enter"]);
    let typed = tmux(json!({"action": "send_keys", "keys": keys, "block": true}));
    assert_eq!((typed.output.as_str(), typed.error.as_str()), ("ok", ""));
    let screen = tmux(json!({"action": "CAPTURE"}));
    assert!(screen.output.lines().any(|line| line == "42"), "{}", screen.output);
    assert_eq!(screen.output.matches('\n').count(), 10);
    assert!(tmux(json!({"action": "stream"})).output.starts_with("{\"version\":2,"));
    let bogus = tmux(json!({"action": "send_keys"}));
    assert_eq!(bogus.error, "tmux send_keys requires 'keys' as string or list[string]");
    assert_eq!((bogus.outcome, bogus.may_have_executed), (Outcome::InvalidCall, false));
    wait_until_running(&sleep);
    executor.release("t").unwrap();
    let fresh = executor.execute("u", call("tmux", json!({})));
    assert_eq!(fresh.metadata["session_started"], true, "{}", fresh.error);
    assert!(!is_running(&sleep));
    let stopped = executor.execute("u", call("tmux", json!({"action": "stop"})));
    assert_eq!(stopped.output, "stopped");
}

#[test]
fn an_action_that_tmux_does_not_have_begins_no_terminal() {
    let (_dir, executor) = executor(1);
    let bogus = executor.execute("t", call("tmux", json!({"action": "Bogus"})));
    assert!(bogus.error.contains("bogus") || bogus.error.contains("Bogus"), "{}", bogus.error);
    assert_eq!((bogus.outcome, bogus.may_have_executed), (Outcome::InvalidCall, false));
}

#[test]
fn the_usual_limit_of_open_files_does_not_limit_the_slots() {
    const ALONE: &str = "TOOL_EXECUTOR_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        let (_dir, executor) = executor(100);
        assert_eq!(executor.execute("t", bash("ulimit -n")).output, "128");
        return;
    }
    // A process of its own, since the limit is the whole process's.
    let output = std::process::Command::new("bash")
        .args(["-c", "ulimit -Sn 128; exec \"$0\" --exact --nocapture \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg("sandbox::the_usual_limit_of_open_files_does_not_limit_the_slots")
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Whether this test runs as root, and so commands as another user.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn a_command_does_not_own_the_hosts_devices() {
    // Not the one that everything needs, should this fail.
    let mode = || fs::metadata("/dev/full").unwrap().mode();
    let before = mode();
    let (_dir, executor) = executor(1);
    let result = executor.execute("t", bash("chmod 000 /dev/full"));
    let after = mode();
    if after != before {
        fs::set_permissions("/dev/full", fs::Permissions::from_mode(before)).unwrap();
    }
    assert_eq!((result.outcome, after), (Outcome::NonZeroExit, before), "{result:?}");
}

#[test]
fn commands_and_file_tools_work_on_each_others_files() {
    let (_dir, executor) = executor(1);
    let run = |name, arguments| {
        let result = executor.execute("t", call(name, arguments));
        assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
        result.output
    };
    run("write_file", json!({"path": "new/deep/file", "content": "one\n"}));
    let append = "cd new/deep; echo two >> file; mv file moved; rmdir x 2> /dev/null; touch beside";
    run("bash", json!({"command": append}));
    assert_eq!(run("read_file", json!({"path": "new/deep/moved"})), "one\ntwo\n");
    run("bash", json!({"command": "umask 077; mkdir own; echo x > own/file"}));
    run("write_file", json!({"path": "own/file", "content": "replaced"}));
    run("write_file", json!({"path": "own/other", "content": "y"}));
    assert_eq!(run("bash", json!({"command": "cat own/*; rm -r own new; ls -A"})), "replacedy");
}

#[test]
fn what_a_command_has_made_inaccessible_is_gone_after_the_release() {
    let (_dir, executor) = executor(1);
    let hide = "mkdir -p a/b; echo x > a/b/c; chmod 000 a/b/c a/b a; chmod 500 .";
    assert_eq!(executor.execute("t", bash(hide)).outcome, Outcome::Ok);
    executor.release("t").unwrap();
    let next = executor.execute("next", bash("ls -A; touch mine; ls"));
    assert_eq!(next.output, "mine");
}

#[test]
fn a_command_knows_who_it_is() {
    let (_dir, executor) = executor(1);
    let output = |command: &str| {
        let result = executor.execute("t", bash(command));
        assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
        result.output
    };
    assert_eq!(output("[ \"$(id -un)\" = \"$USER\" ] && [ -O . ] && [ -w ~ ] && echo so"), "so");
    assert_eq!(output("echo x > /dev/stdout; echo y > /dev/stderr"), "x\n\n[stderr]\ny");
    // It refuses a repository of another user.
    let git = "command -v git > /dev/null || exit 0; git init -q && \
               git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git status -s";
    assert_eq!(output(git), "");
}

#[test]
fn a_data_directory_that_commands_cannot_reach_is_refused_by_name() {
    if !is_root() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut config = LocalConfig::new(1);
    config.data_dir = Some(outer.path().join("data"));
    let error = LocalBackend::start(config.clone()).unwrap_err();
    let cause = std::error::Error::source(&error).expect("the directory").to_string();
    let barred = format!("who may not pass through {};", outer.path().display());
    assert!(cause.contains(&barred), "{cause}");
    assert_eq!(fs::read_dir(outer.path().join("data")).unwrap().count(), 0, "nothing stays");
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).unwrap();
    LocalBackend::start(config).unwrap();
}

#[test]
fn the_complete_output_is_an_artifact_of_the_trajectory() {
    let (dir, executor) = executor(1);
    let result = executor.execute("t", bash("seq 1 100000; seq 1 30000 >&2"));
    assert!(result.output.contains("... (output truncated)"));
    for (key, last) in [("output_file", 100_000), ("stderr_file", 30_000)] {
        let expected: String = (1..=last).map(|n| format!("{n}\n")).collect();
        let path = result.metadata[key].as_str().unwrap();
        assert_eq!(result.metadata[&format!("{key}_bytes")], expected.len());
        assert!(!result.metadata.contains_key(&format!("{key}_truncated")));
        let artifact = executor.read_artifact("t", &ReadArtifact::new(path)).unwrap();
        assert!(artifact.content == expected.as_bytes());
        let read = executor.execute("t", bash(&format!("tail -n 1 {path}")));
        assert_eq!(read.output, last.to_string());
    }
    // The next trajectory has nothing of it.
    executor.release("t").unwrap();
    assert_eq!(executor.execute("next", bash("ls -A")).output, "");
    drop(executor);
    let mut config = LocalConfig::new(1);
    config.data_dir = Some(dir.path().to_owned());
    config.max_output_file_bytes = 0;
    let backend = LocalBackend::start(config).unwrap();
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let result = executor.execute("t", bash("seq 1 100000; ls -A >&2"));
    assert!(result.output.contains("... (output truncated)"), "{}", result.output.len());
    assert!(!result.metadata.keys().any(|key| key.contains("file")), "{:?}", result.metadata);
    assert_eq!(executor.execute("t", bash("ls -A")).output, "");
}

#[test]
fn a_slot_whose_files_cannot_be_removed_is_given_out_without_them() {
    let dir = directory();
    let (executor, _) = executor_in(dir.path(), 1);
    assert!(executor.execute("t", bash("mkdir d; echo mine > d/secret")).success);
    let run = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let secret = fs::File::open(run.join("slot_0/workspace/d/secret")).unwrap();
    let Ok(flags) = rustix::fs::ioctl_getflags(&secret) else { return };
    let immutable = flags | rustix::fs::IFlags::IMMUTABLE;
    if rustix::fs::ioctl_setflags(&secret, immutable).is_err() {
        // Only root can, and not on every file system.
        return;
    }
    let released = executor.release("t");
    let next = executor.execute("next", bash("ls -A; echo next > mine"));
    rustix::fs::ioctl_setflags(&secret, flags).unwrap();
    released.unwrap();
    assert_eq!((next.success, &*next.output), (true, ""), "{next:?}");
    // The end of the sandbox removes what could not be removed before.
    executor.close();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn resets_have_threads_of_their_own_and_all_who_ask_are_answered() {
    let dir = directory();
    let mut config = LocalConfig::new(2);
    config.data_dir = Some(dir.path().to_owned());
    let backend = LocalBackend::start(config).unwrap();
    let slot = |index: usize| SlotRef::new("local", index, format!("slot_{index}"), 1);
    let run = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let workspace = run.join("slot_0/workspace");
    for n in 0..2_000 {
        fs::write(workspace.join(n.to_string()), "").unwrap();
    }
    let (tell, told) = crossbeam_channel::unbounded();
    for _ in 0..3 {
        let tell = tell.clone();
        let reply = ResetReply::from_fn(move |outcome| {
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            tell.send((outcome, thread)).unwrap();
        });
        backend.reset(&slot(0), reply);
    }
    for _ in 0..3 {
        let (outcome, thread) = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(outcome, Ok(()));
        assert!(thread.starts_with("tool-reset-"), "{thread}");
    }
    until(|| !workspace.exists());
    backend.close(Instant::now() + PATIENCE);
    // Afterwards no process is left that could.
    let reply = ResetReply::from_fn(move |outcome| tell.send((outcome, String::new())).unwrap());
    backend.reset(&slot(1), reply);
    assert!(told.recv_timeout(PATIENCE).unwrap().0.is_err());
}

fn stateful(command: &str) -> ToolCall {
    call("terminal_stateful", json!({"command": command}))
}

#[test]
fn a_stateful_terminal_keeps_its_state_and_says_what_became_of_it() {
    let (_dir, executor) = executor(1);
    let run = |command: &str| executor.execute("t", stateful(command));
    let first = run("cd /tmp; x=1; f() { echo \"f$x\"; }; echo ready");
    assert_eq!((first.outcome, &*first.output), (Outcome::Ok, "ready"));
    for (key, value) in [
        ("exit_code", json!(0)),
        ("sandboxed", json!(true)),
        ("network_isolated", json!(false)),
        ("stateful", json!(true)),
        ("session", json!("started")),
        ("stdout_bytes", json!(6)),
    ] {
        assert_eq!(first.metadata[key], value, "{key}");
    }
    let second = run("pwd; f; echo err >&2; false");
    assert_eq!(second.output, "/tmp\nf1\n\n[stderr]\nerr");
    assert_eq!((second.outcome, &*second.error), (Outcome::NonZeroExit, "Exit code: 1"));
    assert_eq!(second.metadata["session"], "kept");
    // The other tools see the same files.
    assert_eq!(executor.execute("t", bash("echo b >/tmp/b; pwd")).output, "/workspace");
    assert_eq!(run("cat b").output, "b");

    let late = run("(while [ ! -e go ]; do sleep 0.01; done; echo late; touch said) &");
    assert_eq!(late.output, "");
    let waits = "touch /tmp/go; while [ ! -e /tmp/said ]; do sleep 0.01; done";
    assert!(executor.execute("t", bash(waits)).success);
    let next = run("echo next");
    assert_eq!((&*next.output, &next.metadata["background_output"]), ("next", &json!("late")));

    let slow = executor
        .execute("t", stateful("echo begun; sleep 100").with_timeout(Duration::from_secs(1)));
    assert_eq!((slow.outcome, &*slow.output), (Outcome::Timeout, "begun"));
    assert_eq!(slow.error, "Command timed out after 1.0s");
    assert_eq!(
        (&slow.metadata["session"], &slow.metadata["timeout"]),
        (&json!("kept"), &json!(true))
    );
    assert_eq!(run("f").output, "f1");

    let ended = run("echo bye; exit 7");
    assert_eq!(ended.error, "Exit code: 7");
    let said = "bye\n[The shell of this session has exited with code 7, as by exit, ";
    assert!(ended.output.starts_with(said), "{ended:?}");
    assert_eq!(ended.metadata["session"], "ended");
    let again = run("echo \"[$x]\"; pwd");
    assert_eq!((&*again.output, &again.metadata["session"]), ("[]\n/workspace", &json!("started")));
}

#[test]
fn a_strict_shell_that_a_failing_command_ends_says_what_is_lost() {
    let (_dir, executor) = executor(1);
    let run = |command: &str| executor.execute("t", stateful(command));
    assert_eq!(run("set -euo pipefail; export X=1; cd /tmp").output, "");
    assert_eq!(run("echo $X; pwd").output, "1\n/tmp");
    let failed = run("echo before; grep no-such-text /etc/passwd; echo after");
    assert_eq!((failed.outcome, &failed.metadata["exit_code"]), (Outcome::NonZeroExit, &json!(1)));
    assert!(
        failed.output.starts_with("before\n[The shell of this session has exited"),
        "{failed:?}"
    );
    assert!(failed.output.contains("a command that fails while set -e is on"), "{failed:?}");
    assert!(failed.output.contains("working directory, variables"), "{failed:?}");
    assert_eq!(run("echo ${X-gone}; pwd").output, "gone\n/workspace");
}

#[test]
fn the_tools_of_a_slot_share_its_tmp_and_the_next_trajectory_gets_an_empty_one() {
    let (_dir, executor) = executor(1);
    let type_in = |trajectory: &str, keys: &str| {
        let arguments = json!({"action": "send_keys", "keys": [keys, "Enter"], "block": true});
        assert_eq!(executor.execute(trajectory, call("tmux", arguments)).output, "ok");
    };
    assert!(executor.execute("t", bash("echo of bash > /tmp/1")).success);
    assert!(executor.execute("t", stateful("echo of the shell > /var/tmp/2")).success);
    type_in("t", "echo of the terminal > /tmp/3; cat /tmp/[12] > /tmp/4");
    let all = "of bash\nof the shell\nof the terminal\nof bash\nof the shell";
    assert_eq!(executor.execute("t", bash("cat /tmp/?")).output, all);
    assert_eq!(executor.execute("t", stateful("cat /tmp/?")).output, all);
    executor.release("t").unwrap();
    assert_eq!(executor.execute("next", stateful("ls -A /tmp")).output, "");
    type_in("next", "ls -A /tmp > found");
    assert_eq!(executor.execute("next", bash("ls -A /tmp; cat found")).output, "");
}

#[test]
fn a_stateful_call_that_cannot_be_is_refused_before_anything_runs() {
    let (_dir, executor) = executor(1);
    for (command, error) in [
        ("", "Missing command"),
        (" \n\t ", "Missing command"),
        ("echo \0", "Failed to execute sandboxed command: 'command' must be a string without NULs"),
    ] {
        let result = executor.execute("t", stateful(command));
        assert_eq!((result.outcome, &*result.error), (Outcome::InvalidCall, error), "{command:?}");
        assert!(!result.may_have_executed);
    }
}

#[test]
fn a_stateful_terminal_ends_with_its_trajectory() {
    let (_dir, executor) = executor(1);
    let marker = unique_sleep();
    let run = |trajectory: &str, command: &str| executor.execute(trajectory, stateful(command));
    run(
        "first",
        &format!("x=secret; export x; alias ls='echo poisoned'; {marker} & setsid -f {marker}"),
    );
    wait_until_running(&marker);
    executor.release("first").unwrap();
    let second = run("second", "echo \"[$x]\"; jobs; ls -A");
    assert_eq!((&*second.output, &second.metadata["session"]), ("[]", &json!("started")));
    assert!(!is_running(&marker));
    // A release without a reset leaves files to the same trajectory, and processes to no other.
    run("second", &format!("{marker} & echo kept >file"));
    executor.release_keeping_files("second").unwrap();
    assert_eq!(run("third", "ls -A; jobs; cat file 2>/dev/null").output, "");
    assert!(!is_running(&marker));
    run("third", &format!("{marker} &"));
    executor.close();
    assert!(!is_running(&marker));
}

#[test]
fn a_cancelled_stateful_call_is_interrupted() {
    let (_dir, executor) = executor(1);
    let marker = unique_sleep();
    assert!(executor.execute("t", stateful("x=1")).success);
    let pending = executor.submit("t", stateful(&format!("echo begun; {marker}"))).unwrap();
    wait_until_running(&marker);
    pending.cancel();
    let result = pending.wait();
    assert_eq!((result.outcome, &*result.output), (Outcome::Cancelled, "begun"));
    assert!(!is_running(&marker));
    assert_eq!(executor.execute("t", stateful("echo $x")).output, "1");
}

#[test]
fn a_stateful_terminal_without_network_has_none() {
    let dir = directory();
    let mut config = LocalConfig::new(1);
    config.data_dir = Some(dir.path().to_owned());
    let backend = LocalBackend::start(config).unwrap();
    let policy = Policy::default().with_allow_network(false);
    let executor = ToolExecutor::builder()
        .backend(backend)
        .config(ExecutorConfig::default().with_policy(policy))
        .start()
        .unwrap();
    let asks = json!({"command": "grep -c : /proc/net/dev", "allow_network": true});
    let result = executor.execute("t", call("terminal_stateful", asks));
    assert_eq!((&*result.output, &result.metadata["network_isolated"]), ("1", &json!(true)));
}
