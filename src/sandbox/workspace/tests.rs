//! Engines that live, die and meet. Other engines are other processes: this test program, running
//! one test that does nothing unless told to.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};

use super::*;

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
    writeln!(std::io::stdout(), "READY {}", data.path().display()).unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    data.close().unwrap();
}

fn runs(base: &Path) -> usize {
    fs::read_dir(base).unwrap().count()
}

#[test]
fn workspaces_are_private_empty_and_numbered() {
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 3, None).unwrap();
    for (slot, workspace) in data.workspaces().iter().enumerate() {
        assert_eq!(workspace.path(), data.path().join(format!("slot_{slot}")));
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
            data.close().unwrap();
        } else {
            drop(data);
        }
        assert_eq!(runs(base.path()), 0);
        assert!(matches!(kept.reset(), Err(WorkspaceError::Gone { .. })));
    }
}

#[test]
fn a_missing_base_is_made_and_stays() {
    let outer = tempfile::tempdir().unwrap();
    let base = outer.path().join("x/y");
    DataDir::create(Some(&base), 1, None).unwrap().close().unwrap();
    assert_eq!(fs::metadata(&base).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn what_a_dead_engine_left_is_removed_and_a_live_one_is_not_touched() {
    let base = tempfile::tempdir().unwrap();
    let (dead, live) = (Engine::start(base.path()), Engine::start(base.path()));
    let dead_path = dead.path.clone();
    fs::create_dir_all(dead_path.join("slot_1/a/b")).unwrap();
    fs::write(dead_path.join("slot_1/a/b/file"), "x").unwrap();
    symlink(live.path.join("slot_0"), dead_path.join("slot_1/a/link")).unwrap();
    fs::write(live.path.join("slot_0/file"), "kept").unwrap();
    let mut others = fs::File::create(base.path().join("somebody's")).unwrap();
    others.write_all(b"kept").unwrap();
    fs::create_dir(base.path().join("run-empty")).unwrap();
    fs::create_dir_all(base.path().join("run-without-lock/x")).unwrap();
    dead.die();
    assert!(dead_path.exists(), "it left its directory behind");

    let data = DataDir::create(Some(base.path()), 1, None).unwrap();
    assert!(!dead_path.exists());
    assert!(!base.path().join("run-empty").exists());
    assert_eq!(fs::read(live.path.join("slot_0/file")).unwrap(), b"kept");
    data.close().unwrap();
    assert_eq!(fs::read(live.path.join("slot_0/file")).unwrap(), b"kept");
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
                        workspace.reset().unwrap();
                    }
                    data.close().unwrap();
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
    let refused = |name: &str| match open_private_base(at(name), None) {
        Err(WorkspaceError::UntrustedBase { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    open_private_base(at("new"), None).unwrap();
    open_private_base(at("new"), None).unwrap();

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
        open_private_base(base.clone(), Some(user)).unwrap();
        assert_eq!(mode_of(&base), 0o711);
    }
    for wrong in [0o755, 0o731, 0o713] {
        fs::set_permissions(&base, fs::Permissions::from_mode(wrong)).unwrap();
        assert!(open_private_base(base.clone(), Some(user)).is_err(), "{wrong:o}");
    }
    symlink("base", outer.path().join("link")).unwrap();
    assert!(open_private_base(outer.path().join("link"), Some(user)).is_err());

    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let data = DataDir::create(Some(&outer.path().join("given")), 1, Some(user)).unwrap();
    let workspace = data.workspaces()[0].path();
    let metadata = fs::metadata(workspace).unwrap();
    let owner = (metadata.uid(), metadata.gid());
    assert_eq!(owner, (user.uid().as_raw(), user.gid().as_raw()));
    assert_eq!((mode_of(workspace), mode_of(data.path())), (0o700, 0o711));
    assert_eq!(fs::metadata(data.path().join("lock")).unwrap().uid(), 0);
}

#[test]
fn reset_empties_the_same_directory() {
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 2, None).unwrap();
    let workspace = &data.workspaces()[0];
    let before = fs::metadata(workspace.path()).unwrap().ino();
    fs::create_dir_all(workspace.path().join("a/b")).unwrap();
    fs::write(data.workspaces()[1].path().join("file"), "kept").unwrap();
    symlink(data.workspaces()[1].path(), workspace.path().join("neighbour")).unwrap();
    fs::set_permissions(workspace.path(), fs::Permissions::from_mode(0o000)).unwrap();

    workspace.reset().unwrap();
    let after = fs::metadata(workspace.path()).unwrap();
    assert_eq!((after.ino(), after.mode() & 0o777), (before, 0o700));
    assert_eq!(fs::read_dir(workspace.path()).unwrap().count(), 0);
    assert!(data.workspaces()[1].path().join("file").exists());

    fs::set_permissions(workspace.path(), fs::Permissions::from_mode(0o777)).unwrap();
    workspace.reset().unwrap();
    assert_eq!(fs::metadata(workspace.path()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_workspace_that_was_replaced_is_gone() {
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 1, None).unwrap();
    let workspace = &data.workspaces()[0];
    fs::rename(workspace.path(), data.path().join("moved")).unwrap();
    symlink("moved", workspace.path()).unwrap();
    assert!(matches!(workspace.reset(), Err(WorkspaceError::Gone { .. })));
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
    data.close().unwrap();
    assert_eq!(fs::read(dest.join("d/file")).unwrap(), b"kept");
}
