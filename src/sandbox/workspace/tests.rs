//! Engines that live, die and meet. Other engines are other processes: this test program, running
//! one test that does nothing unless told to.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};

use super::data_dir::open_private_base;
use super::*;
use crate::sandbox::isolation::Isolation;
use crate::sandbox::limits::Limits;
use crate::sandbox::spool::Spool;
use crate::sandbox::supervisor::{CommandSpec, End, Supervisor};

/// Tells the test in the other process which base to use.
const BASE_VARIABLE: &str = "TOOL_EXECUTOR_TEST_BASE";

struct Engine {
    process: Child,
    path: PathBuf,
}

impl Engine {
    /// Starts an engine in another process, and returns when its data directory is there.
    fn start(base: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sandbox::workspace::tests::engine_in_another_process"])
            .args(["--nocapture"])
            .env(BASE_VARIABLE, base)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.as_mut().unwrap()).lines();
        let path = lines
            .map(|line| line.unwrap())
            .find_map(|line| Some(PathBuf::from(line.split_once("READY ")?.1)))
            .expect("the engine starts");
        Self { process, path }
    }

    /// Kills it: it has no chance to remove anything.
    fn die(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Lets it end by itself.
    fn end(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

#[test]
fn engine_in_another_process() {
    let Some(base) = std::env::var_os(BASE_VARIABLE) else {
        return;
    };
    let data = DataDir::create(Some(Path::new(&base)), 2, None).unwrap();
    writeln!(io::stdout(), "READY {}", data.path().display()).unwrap();
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    data.close(far()).unwrap();
}

fn far() -> Instant {
    Instant::now() + EMPTY_LIMIT
}

fn runs(base: &Path) -> usize {
    fs::read_dir(base).unwrap().count()
}

#[test]
fn workspaces_are_private_empty_and_numbered() {
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 3, None).unwrap();
    for (slot, workspace) in data.workspaces().iter().enumerate() {
        assert_eq!(workspace.path(), data.path().join(format!("slot_{slot}/workspace")));
        assert_eq!(fs::metadata(workspace.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(workspace.path()).unwrap().count(), 0);
    }
    assert_eq!(data.workspaces().len(), 3);
    assert_eq!(fs::metadata(data.path()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn close_and_drop_leave_nothing_behind() {
    let base = tempfile::tempdir().unwrap();
    for close in [true, false] {
        let data = DataDir::create(Some(base.path()), 2, None).unwrap();
        let kept = Arc::clone(&data.workspaces()[0]);
        fs::create_dir_all(kept.path().join("a/b")).unwrap();
        fs::set_permissions(kept.path(), fs::Permissions::from_mode(0o000)).unwrap();
        if close {
            data.close(far()).unwrap();
        } else {
            drop(data);
        }
        assert_eq!(runs(base.path()), 0);
        assert!(matches!(kept.renew_with(None), Err(WorkspaceError::Io { .. })));
    }
}

#[test]
fn what_there_was_no_time_to_remove_is_removed_by_the_next_engine() {
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 1, None).unwrap();
    let path = data.path().to_owned();
    fs::write(data.workspaces()[0].path().join("file"), "x").unwrap();
    let error = data.close(Instant::now()).unwrap_err();
    assert!(
        matches!(&error, WorkspaceError::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut)
    );
    assert!(path.join("lock").exists());
    let next = DataDir::create(Some(base.path()), 1, None).unwrap();
    assert!(!path.exists());
    next.close(far()).unwrap();
    assert_eq!(runs(base.path()), 0);
}

#[test]
fn a_missing_base_is_made_and_stays() {
    let outer = tempfile::tempdir().unwrap();
    let base = outer.path().join("x/y");
    DataDir::create(Some(&base), 1, None).unwrap().close(far()).unwrap();
    assert_eq!(fs::metadata(&base).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn what_a_dead_engine_left_is_removed_and_a_live_one_is_not_touched() {
    let base = tempfile::tempdir().unwrap();
    let (dead, live) = (Engine::start(base.path()), Engine::start(base.path()));
    let dead_path = dead.path.clone();
    fs::create_dir_all(dead_path.join("slot_1/workspace/a/b")).unwrap();
    fs::write(dead_path.join("slot_1/workspace/a/b/file"), "x").unwrap();
    symlink(live.path.join("slot_0/workspace"), dead_path.join("slot_1/workspace/a/link")).unwrap();
    fs::write(live.path.join("slot_0/workspace/file"), "kept").unwrap();
    let mut others = File::create(base.path().join("somebody's")).unwrap();
    others.write_all(b"kept").unwrap();
    fs::create_dir(base.path().join("run-empty")).unwrap();
    fs::create_dir_all(base.path().join("run-without-lock/x")).unwrap();
    dead.die();
    assert!(dead_path.exists(), "it left its directory behind");

    let data = DataDir::create(Some(base.path()), 1, None).unwrap();
    assert!(!dead_path.exists());
    assert!(!base.path().join("run-empty").exists());
    assert_eq!(fs::read(live.path.join("slot_0/workspace/file")).unwrap(), b"kept");
    data.close(far()).unwrap();
    assert_eq!(fs::read(live.path.join("slot_0/workspace/file")).unwrap(), b"kept");
    let live_path = live.path.clone();
    live.end();
    assert!(!live_path.exists());
    assert_eq!(runs(base.path()), 2, "what is no engine's is left alone");
}

#[test]
fn engines_that_start_at_once_never_take_each_others_directory() {
    let base = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let data = DataDir::create(Some(base.path()), 2, None).unwrap();
                    for workspace in data.workspaces() {
                        fs::write(workspace.path().join("file"), "x").unwrap();
                        workspace.renew_with(None).unwrap();
                        workspace.remains().remove().unwrap();
                    }
                    data.close(far()).unwrap();
                }
            });
        }
    });
    assert_eq!(runs(base.path()), 0);
}

#[test]
fn the_default_base_must_be_a_directory_of_ours_alone() {
    let outer = tempfile::tempdir().unwrap();
    let at = |name: &str| outer.path().join(name);
    let refused = |name: &str| match open_private_base(at(name), false) {
        Err(WorkspaceError::UntrustedBase { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    open_private_base(at("new"), false).unwrap();
    open_private_base(at("new"), false).unwrap();

    symlink("new", at("link")).unwrap();
    assert_eq!(refused("link"), "it is not a directory");
    fs::write(at("file"), "").unwrap();
    assert_eq!(refused("file"), "it is not a directory");
    fs::create_dir(at("open")).unwrap();
    fs::set_permissions(at("open"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(refused("open"), "other users may enter it");
    if rustix::process::geteuid().is_root() {
        fs::create_dir(at("others")).unwrap();
        std::os::unix::fs::chown(at("others"), Some(65_534), None).unwrap();
        assert_eq!(refused("others"), "it belongs to another user");
    }
}

#[test]
fn another_user_may_pass_through_what_is_above_its_workspaces_and_no_more() {
    let Some(user) = CommandUser::detect() else { return };
    let outer = tempfile::tempdir().unwrap();
    let mode_of = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    let base = outer.path().join("base");
    fs::create_dir(&base).unwrap();
    for fine in [0o700, 0o711] {
        fs::set_permissions(&base, fs::Permissions::from_mode(fine)).unwrap();
        open_private_base(base.clone(), true).unwrap();
        assert_eq!(mode_of(&base), 0o711);
    }
    for wrong in [0o755, 0o731, 0o713] {
        fs::set_permissions(&base, fs::Permissions::from_mode(wrong)).unwrap();
        assert!(open_private_base(base.clone(), true).is_err(), "{wrong:o}");
    }
    symlink("base", outer.path().join("link")).unwrap();
    assert!(open_private_base(outer.path().join("link"), true).is_err());

    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let given = outer.path().join("given/below");
    let data = DataDir::create(Some(&given), 1, Some(user)).unwrap();
    // Whatever the umask is.
    assert_eq!((mode_of(&outer.path().join("given")), mode_of(&given)), (0o711, 0o711));
    let workspace = data.workspaces()[0].path();
    let metadata = fs::metadata(workspace).unwrap();
    let owner = (metadata.uid(), metadata.gid());
    assert_eq!(owner, (user.uid().as_raw(), user.gid().as_raw()));
    assert_eq!((mode_of(workspace), mode_of(data.path())), (0o700, 0o711));
    // Only the user itself passes through what is its slot's.
    let of_slot = fs::metadata(data.path().join("slot_0")).unwrap();
    assert_eq!((of_slot.uid(), of_slot.gid()), (0, user.gid().as_raw()));
    assert_eq!(of_slot.mode() & 0o777, 0o710);
    assert_eq!(fs::metadata(data.path().join("lock")).unwrap().uid(), 0);
}

#[test]
fn a_new_workspace_has_nothing_of_the_old_one_which_is_removed() {
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 2, None).unwrap();
    let old = &data.workspaces()[0];
    fs::create_dir_all(old.path().join("a/b")).unwrap();
    fs::write(old.temporary().join("file"), "x").unwrap();
    fs::write(old.home().join("file"), "x").unwrap();
    fs::write(data.workspaces()[1].path().join("file"), "kept").unwrap();
    symlink(data.workspaces()[1].path(), old.path().join("neighbour")).unwrap();
    fs::set_permissions(old.path(), fs::Permissions::from_mode(0o000)).unwrap();
    let mut renewed = old.renew_with(None).unwrap();
    old.remains().remove().unwrap();
    assert!(old.directories().iter().all(|path| !path.exists()));
    assert!(data.workspaces()[1].path().join("file").exists());
    for life in 1..=3 {
        assert_eq!(renewed.path(), data.path().join(format!("slot_0/workspace-{life}")));
        for path in renewed.directories() {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o700);
            assert_eq!(fs::read_dir(path).unwrap().count(), 0);
        }
        assert!(renewed.is_there());
        assert_eq!((renewed.next_output(), renewed.next_output()), (1, 2), "counted anew");
        let next = renewed.renew_with(None).unwrap();
        renewed.remains().remove().unwrap();
        renewed = next;
    }
}

#[test]
fn what_took_the_place_of_a_workspace_is_left_alone() {
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 1, None).unwrap();
    let workspace = &data.workspaces()[0];
    let moved = data.path().join("slot_0/moved");
    fs::rename(workspace.path(), &moved).unwrap();
    fs::write(moved.join("file"), "kept").unwrap();
    symlink("moved", workspace.path()).unwrap();
    assert!(workspace.renew_with(None).unwrap().is_there());
    assert!(matches!(workspace.remains().remove(), Err(WorkspaceError::Io { .. })));
    assert!(moved.join("file").exists());
}

#[test]
fn a_reset_removes_whatever_the_user_of_commands_left() {
    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let user = CommandUser::detect();
    let data = DataDir::create(Some(outer.path()), 1, user).unwrap();
    let workspace = &data.workspaces()[0];
    let isolation = Isolation::probe(workspace);
    assert!(isolation.is_sandboxed(), "{isolation:?}");
    let supervisor =
        Supervisor::start(isolation, user, Arc::new(Limits::none()), Spool::start().unwrap())
            .unwrap();
    let command = "mkdir -p a/b/c x/y; echo f > a/b/c/f; ln -s /etc etc; ln -s a dir; ln -s . self; \
        mkfifo fifo; chmod 4755 a/b/c/f; chmod 0 a/b/c a/b a/b/c/f 2>/dev/null; chmod 555 a; \
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")' 2>/dev/null; \
        touch $'\\xff\\n' -- -rf; chmod 0 .; echo x > /tmp/f; chmod 555 /tmp; mkdir -p ~/a/b; chmod 0 ~/a ~; echo done";
    let (sender, receiver) = std::sync::mpsc::channel();
    let spec = CommandSpec {
        workspace: workspace.clone(),
        command: command.to_owned(),
        network: true,
        timeout: Duration::from_secs(60),
        output_limit_chars: 1_000,
        output_file_bytes: 0,
        stdin: String::new(),
        output_order: Default::default(),
        verdict: None,
        keeps_background: false,
    };
    supervisor.run(spec, Box::new(move |finished| sender.send(finished.stdout.text).unwrap()));
    assert_eq!(receiver.recv_timeout(Duration::from_secs(60)).unwrap(), "done\n");
    workspace.remains().remove().unwrap();
    assert!(workspace.directories().iter().all(|path| !path.exists()));
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn fifty_thousand_files_are_reset() {
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 1, None).unwrap();
    let workspace = &data.workspaces()[0];
    many_files(workspace.path(), 50_000);
    workspace.remains().remove().unwrap();
    assert!(!workspace.path().exists());
}

/// Measured by hand: `cargo test --release --lib -- --ignored --nocapture a_million_files`.
#[test]
#[ignore = "takes long; for measuring"]
fn a_million_files_are_reset() {
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 1, None).unwrap();
    let workspace = &data.workspaces()[0];
    many_files(workspace.path(), 1_000_000);
    let begin = Instant::now();
    workspace.remains().remove().unwrap();
    writeln!(io::stdout(), "a million files in {:?}", begin.elapsed()).unwrap();
}

/// Empty files, a thousand in each directory.
fn many_files(path: &Path, count: usize) {
    for n in 0..count {
        if n % 1_000 == 0 {
            fs::create_dir(path.join((n / 1_000).to_string())).unwrap();
        }
        File::create(path.join(format!("{}/{n}", n / 1_000))).unwrap();
    }
}

#[test]
fn a_command_in_a_workspace_that_was_replaced_does_not_run() {
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 1, None).unwrap();
    let workspace = &data.workspaces()[0];
    let isolation = Isolation::none("a test");
    let supervisor =
        Supervisor::start(isolation, None, Arc::new(Limits::none()), Spool::start().unwrap())
            .unwrap();
    let (moved, path) = (data.path().join("moved"), workspace.path());
    for replace in [false, true] {
        fs::rename(path, &moved).unwrap();
        if replace {
            fs::create_dir(path).unwrap();
        }
        let spec = CommandSpec {
            workspace: workspace.clone(),
            command: "touch ran".to_owned(),
            network: true,
            timeout: Duration::from_secs(60),
            output_limit_chars: 1_000,
            output_file_bytes: 0,
            stdin: String::new(),
            output_order: Default::default(),
            verdict: None,
            keeps_background: false,
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        supervisor.run(spec, Box::new(move |finished| sender.send(finished.end).unwrap()));
        let end = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(end, End::SetupFailed(GONE.to_owned()));
        assert_eq!(fs::read_dir(&moved).unwrap().count(), 0);
        let _ = fs::remove_dir(path);
        fs::rename(&moved, path).unwrap();
        assert!(workspace.is_there());
    }
}

#[test]
fn a_saved_workspace_outlives_it() {
    let base = tempfile::tempdir().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let dest = kept.path().join("trajectory/0");
    let data = DataDir::create(Some(base.path()), 1, None).unwrap();
    fs::create_dir(data.workspaces()[0].path().join("d")).unwrap();
    fs::write(data.workspaces()[0].path().join("d/file"), "kept").unwrap();
    data.workspaces()[0].save_to(&dest).unwrap();
    let again = data.workspaces()[0].save_to(&dest).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    data.close(far()).unwrap();
    assert_eq!(fs::read(dest.join("d/file")).unwrap(), b"kept");
}
