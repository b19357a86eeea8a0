//! What needs a look at the backend from inside.

use std::time::Duration;

use serde_json::json;

use super::start::Probe;
use super::*;
use crate::sandbox::isolation::Failure;
use crate::{ToolCall, ToolExecutor};

#[test]
fn without_tmux_its_calls_say_so_and_ran_nothing() {
    let dir = tempfile::tempdir().unwrap();
    rustix::fs::chmod(dir.path(), 0o711.into()).unwrap();
    let mut config = LocalConfig::new(1);
    config.data_dir = Some(dir.path().to_owned());
    let nowhere = Tmux::detect("/nonexistent:/etc");
    let backend = start::start(&config, nowhere, Engine::find, &Interrupt::new()).unwrap();
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    for action in ["start", "send_keys", "capture", "stream"] {
        let arguments = json!({"action": action, "keys": "x"});
        let result = executor.execute("t", ToolCall::new("tmux", arguments));
        assert_eq!(result.error, "Failed to ensure tmux session: tmux is not installed");
        assert_eq!((result.outcome, result.may_have_executed), (Outcome::BackendFailed, false));
        assert_eq!(result.metadata["requires_bwrap"], false);
    }
    let stop = ToolCall::new("tmux", json!({"action": "stop"}));
    assert_eq!(executor.execute("t", stop).output, "stopped");
    assert_eq!(executor.execute("t", ToolCall::bash("echo fine")).output, "fine");
}

#[test]
fn where_only_root_can_make_sandboxes_root_makes_them() {
    if !rustix::process::geteuid().is_root() {
        return; // The case is root's.
    }
    let dir = tempfile::tempdir().unwrap();
    rustix::fs::chmod(dir.path(), 0o711.into()).unwrap();
    let mut config = LocalConfig::new(1);
    config.data_dir = Some(dir.path().to_owned());
    let refused: Probe = |workspace, budget| match workspace.owner() {
        Some(_) => Err(Failure::Refused("not you".to_owned())),
        None => Engine::find(workspace, budget),
    };
    let backend = start::start(&config, None, refused, &Interrupt::new()).unwrap();
    assert_eq!(backend.capabilities().isolation, Isolation::Isolated);
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let result = executor.execute("t", ToolCall::bash("id -u; touch mine; ls -A /root"));
    assert_eq!(result.metadata["sandboxed"], true);
    // Not the host's home, but the slot's.
    assert_eq!(result.output, "0");
    executor.close();

    // A shortage says nothing of whom the machine trusts.
    let short: Probe = |workspace, budget| match workspace.owner() {
        Some(_) => Err(Failure::Shortage("not now".to_owned())),
        None => Engine::find(workspace, budget),
    };
    let error = start::start(&config, None, short, &Interrupt::new()).unwrap_err();
    assert_eq!(error.kind(), crate::BackendErrorKind::Shortage, "{error}");
}

#[test]
fn a_slot_that_is_reset_has_nothing_of_its_former_trajectory() {
    let dir = tempfile::tempdir().unwrap();
    rustix::fs::chmod(dir.path(), 0o711.into()).unwrap();
    let mut config = LocalConfig::new(1);
    config.data_dir = Some(dir.path().to_owned());
    let backend = start::start(&config, None, Engine::find, &Interrupt::new()).unwrap();
    let executor = ToolExecutor::builder().backend(backend.clone()).start().unwrap();
    let place = || {
        let workspace = backend.0.slots[0].workspace();
        workspace.directories().map(Path::to_owned)
    };
    let attributes = |path: &Path| {
        let mut names = [0_u8; 256];
        rustix::fs::listxattr(path, &mut names).unwrap_or_default()
    };
    let before = place();
    let left = executor.execute(
        "t",
        ToolCall::bash("mkdir deep; touch deep/file; chmod 000 deep; chmod 1777 . /tmp; umask"),
    );
    assert!(left.success, "{left:?}");
    for path in &before {
        // As a default access list is one, which a file system may lack.
        let flags = rustix::fs::XattrFlags::empty();
        let _ = rustix::fs::setxattr(path, c"user.left", b"behind", flags);
    }
    executor.release("t").unwrap();
    let after = place();
    for (before, after) in before.iter().zip(&after) {
        assert_ne!(before, after);
        assert_eq!(attributes(after), 0);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(after).unwrap().permissions(),
        );
        assert_eq!(mode & 0o7777, 0o700);
        let deadline = Instant::now() + Duration::from_secs(60);
        while before.exists() {
            assert!(Instant::now() < deadline, "{} is never removed", before.display());
            std::thread::yield_now();
        }
    }
    let next = executor.execute("u", ToolCall::bash("ls -A . /tmp; mkdir deep; touch deep/file"));
    assert_eq!((next.success, &*next.output), (true, ".:\n\n/tmp:"), "{next:?}");
}

/// No caller had to be told: the session had no call, and the slot has had another session since,
/// which ended as it should.
#[test]
fn a_slot_with_a_session_whose_end_nobody_saw_is_not_given_out() {
    // A call that runs just when its session ends is told, which is another case.
    assert!((0..50).any(|_| has_lost_a_session_without_a_call()));
}

fn has_lost_a_session_without_a_call() -> bool {
    let dir = tempfile::tempdir().unwrap();
    rustix::fs::chmod(dir.path(), 0o711.into()).unwrap();
    let mut config = LocalConfig::new(2);
    config.data_dir = Some(dir.path().to_owned());
    // In a sandbox no end is missed.
    config.allow_unisolated = true;
    let bare: Probe = |_, _| Err(Failure::Missing);
    let backend = start::start(&config, None, bare, &Interrupt::new()).unwrap();
    let executor = ToolExecutor::builder().backend(backend.clone()).start().unwrap();
    let run = |trajectory: &str, command: &str| {
        let call = ToolCall::new("terminal_stateful", json!({"command": command}));
        executor.execute(trajectory, call)
    };
    let escape = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! $PPID; \
                  mkfifo go; (read x <go; kill -9 $PPID) &";
    let begun = run("t", escape);
    let pids: Vec<i32> = begun.output.split(' ').flat_map(str::parse).collect();
    let &[escaped, reaper] = &*pids else { panic!("{begun:?}") };
    let slot = executor.slot_of("t").expect("a slot");
    let workspace = backend.0.slots[slot.index].workspace().path().to_owned();
    std::fs::write(workspace.join("go"), "now\n").unwrap();
    let give_up = Instant::now() + Duration::from_secs(60);
    // Until it is reaped, which is when its end is known.
    while Path::new(&format!("/proc/{reaper}")).exists() {
        assert!(Instant::now() < give_up);
        std::thread::yield_now();
    }
    assert_eq!(run("t", "true").metadata["session"], "started");
    let kill = || {
        let escaped = rustix::process::Pid::from_raw(escaped).unwrap();
        rustix::process::kill_process(escaped, rustix::process::Signal::KILL).unwrap();
    };
    if backend.0.slots[slot.index].haunted.load(Ordering::Acquire) {
        kill();
        return false;
    }
    for _ in 0..2 {
        let (tell, told) = std::sync::mpsc::channel();
        backend.reset(&slot, ResetReply::from_fn(move |outcome| tell.send(outcome).unwrap()));
        let outcome = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(outcome, Err("its sandbox could not be ended".to_owned()));
    }
    assert!(workspace.join("go").exists(), "it was emptied while somebody may use it");
    let error = executor.release("t").unwrap_err();
    assert!(error.to_string().contains("could not be ended"), "{error}");
    for other in ["u", "v", "w"] {
        assert_eq!(run(other, "echo fine").output, "fine");
        assert_ne!(executor.slot_of(other).map(|slot| slot.index), Some(slot.index), "{other}");
        executor.release(other).unwrap();
    }
    kill();
    true
}
