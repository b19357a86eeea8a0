//! Trees as a model could make them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags};
use rustix::thread::CapabilitySet;

use super::*;
use crate::sandbox::testing::{self, SetOnDrop};

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OPEN_DIR, Mode::empty()).unwrap()
}

fn empty_all(path: &Path) -> Result<(), TreeError> {
    empty(open(path).as_fd(), None, Instant::now() + Duration::from_secs(60))
}

fn names(path: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(path).unwrap().map(name).collect();
    names.sort();
    names
}

fn mkfifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Makes `depth` directories in each other in `top`, with a file in the last one.
fn nest(top: &Path, depth: usize) {
    let mut dir = open(top);
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "d", OPEN_DIR, Mode::empty()).unwrap();
    }
    let flags = OFlags::WRONLY | OFlags::CREATE;
    rustix::fs::openat(&dir, "file", flags, Mode::RUSR).unwrap();
}

/// Makes this thread (and no other) subject to permissions, should the tests run as root.
fn obey_permissions() {
    let mut sets = rustix::thread::capabilities(None).unwrap();
    sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    rustix::thread::set_capabilities(None, sets).unwrap();
}

#[test]
fn emptying_removes_every_kind_of_entry_and_follows_no_symlink() {
    let outer = tempfile::tempdir().unwrap();
    let outside = outer.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let top = outer.path().join("top");
    fs::create_dir_all(top.join("a/b/c")).unwrap();
    fs::write(top.join("a/b/file"), "x").unwrap();
    fs::hard_link(outside.join("kept"), top.join("a/hard")).unwrap();
    symlink(&outside, top.join("to_dir")).unwrap();
    symlink(&outside, top.join("a/b/to_dir")).unwrap();
    symlink("nowhere", top.join("a/dangling")).unwrap();
    mkfifo(&top.join("a/fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();

    empty_all(&top).unwrap();
    assert_eq!(names(&top), [""; 0]);
    assert_eq!(names(&outside), ["kept"]);
}

#[test]
fn emptying_leaves_the_spared_entry_alone() {
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("lock"), "").unwrap();
    fs::create_dir_all(top.path().join("dir/lock")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    empty(open(top.path()).as_fd(), Some(c"lock"), deadline).unwrap();
    assert_eq!(names(top.path()), ["lock"]);
}

#[test]
fn directories_without_permissions_are_emptied() {
    obey_permissions();
    let top = tempfile::tempdir().unwrap();
    let path = top.path();
    for (dir, mode) in [("none", 0o000), ("read", 0o500), ("search", 0o100), ("write", 0o200)] {
        fs::create_dir_all(path.join(dir).join("in/deeper")).unwrap();
        fs::write(path.join(dir).join("in/deeper/file"), "x").unwrap();
        chmod(&path.join(dir).join("in/deeper"), mode);
        chmod(&path.join(dir).join("in"), mode);
        chmod(&path.join(dir), mode);
    }
    chmod(path, 0o000);
    let held = open(path);
    assert!(fs::read_dir(path).is_err(), "permissions are obeyed here");

    empty(held.as_fd(), None, Instant::now() + Duration::from_secs(60)).unwrap();
    assert_eq!(names(path), [""; 0]);
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn ten_thousand_nested_directories_are_removed() {
    // In memory, if there is such a place: some disks need a millisecond for each directory.
    let top = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    nest(top.path(), 10_000);
    empty_all(top.path()).unwrap();
    assert_eq!(names(top.path()), [""; 0]);
}

#[test]
fn a_wide_and_deep_tree_is_removed() {
    let top = tempfile::tempdir().unwrap();
    for a in 0..12 {
        for b in 0..12 {
            let dir = top.path().join(format!("{a}/{b}/c/d"));
            fs::create_dir_all(&dir).unwrap();
            for file in 0..10 {
                fs::write(dir.join(file.to_string()), "x").unwrap();
            }
        }
    }
    empty_all(top.path()).unwrap();
    assert_eq!(names(top.path()), [""; 0]);
}

#[test]
fn what_resists_is_named_and_the_rest_removed() {
    let outer = tempfile::tempdir().unwrap();
    // A directory that belongs to somebody else is one that even its own owner may not change.
    let top = outer.path().join("top");
    fs::create_dir_all(top.join("kept/x")).unwrap();
    fs::create_dir_all(top.join("gone/x")).unwrap();
    chmod(&top.join("kept"), 0o755);
    if rustix::fs::chownat(CWD, top.join("kept"), Some(other_user()), None, AtFlags::empty())
        .is_err()
    {
        return; // Only root can make such a directory.
    }
    // On a thread of its own: this one removes everything in the end.
    std::thread::scope(|scope| {
        let restricted = scope.spawn(|| {
            obey_permissions();
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective -= CapabilitySet::FOWNER;
            rustix::thread::set_capabilities(None, sets).unwrap();

            chmod_as_owner_is_impossible(&top.join("kept"));
            let error = empty_all(&top).unwrap_err();
            assert_eq!(error.entry, "kept");
            assert_eq!(error.source.kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(names(&top), ["kept"]);
        });
        restricted.join().unwrap();
    });
}

fn other_user() -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(65_533)
}

fn chmod_as_owner_is_impossible(path: &Path) {
    assert!(fs::set_permissions(path, fs::Permissions::from_mode(0o700)).is_err());
}

/// Tells the test in the other process where something is mounted.
const MOUNTS_VARIABLE: &str = "TOOL_EXECUTOR_TEST_MOUNTS";

#[test]
fn what_is_mounted_in_a_tree_is_not_entered() {
    let outer = tempfile::tempdir().unwrap();
    let (top, outside) = (outer.path().join("top"), outer.path().join("outside"));
    for mount in ["mount", "a/b/mount"] {
        fs::create_dir_all(top.join(mount)).unwrap();
    }
    fs::create_dir_all(top.join("c/d")).unwrap();
    fs::create_dir_all(outside.join("kept/d")).unwrap();
    fs::write(outside.join("kept/f"), "kept").unwrap();
    fs::write(outside.join("f"), "kept").unwrap();
    fs::write(top.join("file"), "").unwrap();
    // The same file system, so that device numbers tell nothing.
    let outside_of = |name: &str| outside.join(name).display().to_string();
    let script = format!(
        "mount --bind '{outside}' \"$0/mount\" && mount --bind '{outside}' \"$0/a/b/mount\" && \
         mount --bind '{}' \"$0/file\"",
        outside_of("f"),
        outside = outside.display(),
    );
    let test = "sandbox::tree::tests::with_mounts";
    assert!(testing::with_mounts(&script, &top, test, MOUNTS_VARIABLE).success());
    assert_eq!(names(&outside), ["f", "kept"]);
    assert_eq!(names(&outside.join("kept")), ["d", "f"]);
    assert_eq!(fs::read(outside.join("f")).unwrap(), b"kept");
    empty_all(&top).unwrap();
    assert_eq!(names(&top), [""; 0]);
}

#[test]
fn with_mounts() {
    let Some(top) = std::env::var_os(MOUNTS_VARIABLE) else { return };
    let top = Path::new(&top);
    let held = open(top);
    for opened in [open_own_dir(held.as_fd(), c"mount"), open_on_same_mount(held.as_fd(), c"mount")]
    {
        assert_eq!(opened.err(), Some(Errno::XDEV));
    }
    for opened in [open_own_dir(held.as_fd(), c"c"), open_on_same_mount(held.as_fd(), c"c")] {
        opened.unwrap();
    }
    let error = empty_all(top).unwrap_err();
    assert_eq!(Errno::from_io_error(&error.source), Some(Errno::BUSY));
    let left = names(top);
    assert!(left.contains(&"mount".to_owned()) && !left.contains(&"c".to_owned()), "{left:?}");
}

#[test]
fn what_may_not_be_changed_resists_and_is_named() {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir(top.path().join("d")).unwrap();
    fs::write(top.path().join("d/kept"), "").unwrap();
    fs::write(top.path().join("gone"), "").unwrap();
    let kept = File::open(top.path().join("d/kept")).unwrap();
    let flags = rustix::fs::ioctl_getflags(&kept).unwrap_or(rustix::fs::IFlags::empty());
    let immutable = flags | rustix::fs::IFlags::IMMUTABLE;
    if let Err(errno) = rustix::fs::ioctl_setflags(&kept, immutable) {
        // Only root can, and not on every file system.
        let text = format!("nothing can be made immutable here: {errno}\n");
        io::Write::write_all(&mut io::stdout(), text.as_bytes()).unwrap();
        return;
    }
    let error = empty_all(top.path());
    rustix::fs::ioctl_setflags(&kept, flags).unwrap();
    let error = error.unwrap_err();
    assert_eq!(
        (error.entry.to_str(), error.source.kind()),
        (Some("d"), io::ErrorKind::PermissionDenied)
    );
    assert_eq!(names(top.path()), ["d"]);
    empty_all(top.path()).unwrap();
}

#[test]
fn emptying_ends_at_its_deadline() {
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("file"), "x").unwrap();
    let error = empty(open(top.path()).as_fd(), None, Instant::now()).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn emptying_while_a_directory_is_swapped_for_a_symlink_touches_nothing_outside() {
    let outer = tempfile::tempdir().unwrap();
    let outside = outer.path().join("outside");
    fs::create_dir_all(outside.join("dir")).unwrap();
    fs::write(outside.join("dir/kept"), "kept").unwrap();
    chmod(&outside, 0o500);
    let (top, stage) = (outer.path().join("top"), outer.path().join("stage"));
    fs::create_dir(&top).unwrap();
    let over = AtomicBool::new(false);

    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Made elsewhere: by its path in `top` it could be made outside.
                let _ = fs::create_dir_all(stage.join("dir/deep"));
                let _ = fs::write(stage.join("dir/file"), "x");
                let _ = fs::rename(&stage, top.join("x"));
                let _ = symlink(&outside, top.join("y"));
                for _ in 0..8 {
                    let (x, y) = (top.join("x"), top.join("y"));
                    let _ = rustix::fs::renameat_with(CWD, x, CWD, y, RenameFlags::EXCHANGE);
                }
            }
        });
        let _end = SetOnDrop(&over);
        for _ in 0..1_000 {
            let _ = empty(open(&top).as_fd(), None, Instant::now() + Duration::from_millis(5));
        }
    });
    assert_eq!(names(&outside.join("dir")), ["kept"]);
    assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o777, 0o500);
    // So that an ordinary user can remove it.
    chmod(&outside, 0o700);
}

#[test]
fn a_copy_has_files_directories_symlinks_and_modes() {
    let outer = tempfile::tempdir().unwrap();
    let (from, to) = (outer.path().join("from"), outer.path().join("to"));
    fs::create_dir_all(from.join("a/empty")).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("a/script"), "#!/bin/sh\r\n").unwrap();
    chmod(&from.join("a/script"), 0o4755);
    fs::write(from.join("a/secret"), "s").unwrap();
    chmod(&from.join("a/secret"), 0o400);
    chmod(&from.join("a"), 0o555);
    symlink("/etc", from.join("link")).unwrap();
    mkfifo(&from.join("fifo"));

    copy(open(&from).as_fd(), open(&to).as_fd()).unwrap();
    assert_eq!(names(&to), ["a", "link"]);
    assert_eq!(names(&to.join("a")), ["empty", "script", "secret"]);
    assert_eq!(fs::read(to.join("a/script")).unwrap(), b"#!/bin/sh\r\n");
    let mode = |name: &str| fs::symlink_metadata(to.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("a"), mode("a/script"), mode("a/secret")), (0o555, 0o755, 0o400));
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc"));
    // So that an ordinary user can remove them.
    [from, to].iter().for_each(|tree| chmod(&tree.join("a"), 0o755));
}

#[test]
fn a_copy_keeps_holes_and_data_around_them() {
    let outer = tempfile::tempdir().unwrap();
    let (from, to) = (outer.path().join("from"), outer.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    let sparse = File::create(from.join("sparse")).unwrap();
    let size = 1 << 36;
    sparse.write_all_at(b"middle", 1 << 35).unwrap();
    sparse.set_len(size).unwrap();

    copy(open(&from).as_fd(), open(&to).as_fd()).unwrap();
    let copied = File::open(to.join("sparse")).unwrap();
    let metadata = copied.metadata().unwrap();
    assert_eq!(metadata.len(), size);
    assert!(metadata.blocks() < 10_000, "{} blocks", metadata.blocks());
    let mut middle = [0; 6];
    copied.read_exact_at(&mut middle, 1 << 35).unwrap();
    assert_eq!(&middle, b"middle");
}

#[test]
fn a_copy_overwrites_nothing_and_copies_the_rest() {
    let outer = tempfile::tempdir().unwrap();
    let (from, to) = (outer.path().join("from"), outer.path().join("to"));
    for dir in [&from, &to] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("both"), dir.file_name().unwrap().as_encoded_bytes()).unwrap();
    }
    fs::write(from.join("new"), "new").unwrap();
    let error = copy(open(&from).as_fd(), open(&to).as_fd()).unwrap_err();
    assert_eq!(error.entry, "both");
    assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(to.join("both")).unwrap(), b"to");
    assert_eq!(names(&to), ["both", "new"]);
}

#[test]
fn a_copy_of_a_deep_tree_ends_with_an_error() {
    let outer = tempfile::tempdir().unwrap();
    let (from, to) = (outer.path().join("from"), outer.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    nest(&from, 1_000);
    fs::write(from.join("file"), "x").unwrap();
    assert!(copy(open(&from).as_fd(), open(&to).as_fd()).is_err());
    assert_eq!(names(&to), ["d", "file"]);
    // TempDir removes by path, which is too long here.
    empty_all(&from).unwrap();
}

#[test]
fn a_fifo_in_the_place_of_a_file_does_not_hold_a_copy() {
    let outer = tempfile::tempdir().unwrap();
    let (from, to) = (outer.path().join("from"), outer.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("file"), "x").unwrap();
    mkfifo(&from.join("fifo"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let (file, fifo) = (from.join("file"), from.join("fifo"));
                let _ = rustix::fs::renameat_with(CWD, file, CWD, fifo, RenameFlags::EXCHANGE);
            }
        });
        let _end = SetOnDrop(&over);
        for _ in 0..500 {
            copy(open(&from).as_fd(), open(&to).as_fd()).unwrap();
            for name in names(&to) {
                let copied = fs::symlink_metadata(to.join(&name)).unwrap().file_type();
                assert!(copied.is_file() && !copied.is_fifo());
            }
            empty_all(&to).unwrap();
        }
    });
}
