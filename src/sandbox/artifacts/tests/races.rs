//! Workspaces that change while they are read.

use super::*;
use crate::sandbox::testing::{SetOnDrop, while_swapping};

#[test]
fn a_directory_swapped_for_a_symlink_never_leads_out() {
    let fixture = fixture();
    let outside = fixture.outer.path().join("outside");
    fs::create_dir_all(outside.join("d/secret")).unwrap();
    fs::write(outside.join("d/f"), "the secret").unwrap();
    fixture.write("a/d/f", "inside");
    symlink(&outside, fixture.at("b")).unwrap();
    let (mut inside, mut refused) = (0, 0);
    while_swapping(&fixture.at("a"), &fixture.at("b"), 3_000, |_| {
        match fixture.read("a/d/f") {
            Ok(artifact) => {
                assert_eq!((artifact.content.as_slice(), artifact.file_size), (&b"inside"[..], 6));
                inside += 1;
            }
            Err(_) => refused += 1,
        }
        for path in [".", "a", "a/d"] {
            let path = path.to_owned();
            let request = ListArtifacts { path, recursive: true, max_entries: 100 };
            let list = list(fixture.workspace(), &request).unwrap_or_default();
            for entry in list.entries {
                assert!(!entry.path.contains("secret") && entry.size != 10, "{entry:?}");
            }
        }
        for path in [".", "a", "a/d"] {
            let Ok((bytes, _)) = fixture.try_archive(path, 100_000, 100) else { continue };
            for member in members(&bytes) {
                assert!(!member.name.contains("secret"), "{}", member.name);
                assert!(member.content.is_empty() || member.content == b"inside");
            }
        }
    });
    assert!(inside > 0 && refused > 0, "{inside} read, {refused} refused");
}

/// What may be swapped in for a file.
#[derive(Debug, Clone, Copy)]
enum Trap {
    Symlink,
    Fifo,
    Socket,
    Device,
    Directory,
}

#[test]
fn a_file_swapped_for_something_else_never_leads_out_and_never_blocks() {
    for trap in [Trap::Symlink, Trap::Fifo, Trap::Socket, Trap::Device, Trap::Directory] {
        let fixture = fixture();
        let secret = fixture.outer.path().join("secret");
        fs::write(&secret, "the secret").unwrap();
        fixture.write("a", "inside");
        let mut _socket = None;
        match trap {
            Trap::Symlink => symlink(&secret, fixture.at("b")).unwrap(),
            Trap::Fifo => {
                fixture.fifo("b");
                assert!(fs::metadata(fixture.at("b")).unwrap().file_type().is_fifo());
            }
            Trap::Socket => {
                _socket = Some(std::os::unix::net::UnixListener::bind(fixture.at("b")).unwrap());
            }
            Trap::Device => {
                // Without end, if it were read. Only root can make one.
                let zero = rustix::fs::makedev(1, 5);
                let kind = FileType::CharacterDevice;
                if rustix::fs::mknodat(CWD, fixture.at("b"), kind, Mode::RWXU, zero).is_err() {
                    continue;
                }
            }
            Trap::Directory => fixture.write("b/the secret", "the secret"),
        }
        let mut read = 0;
        while_swapping(&fixture.at("a"), &fixture.at("b"), 2_000, |_| {
            if let Ok(artifact) = fixture.read("a") {
                assert_eq!(artifact.content, b"inside", "{trap:?}");
                read += 1;
            }
            let list = fixture.try_list(".").unwrap();
            assert!(list.entries.iter().all(|entry| entry.size != 10));
            let Ok((bytes, _)) = fixture.try_archive("a", 10_000, 1) else { return };
            for member in members(&bytes) {
                assert!(member.content.is_empty() || member.content == b"inside", "{trap:?}");
            }
        });
        assert!(read > 0, "{trap:?}");
    }
}

#[test]
fn a_workspace_is_saved_while_directories_and_files_are_swapped_for_symlinks() {
    let fixture = fixture();
    let outside = fixture.outer.path().join("outside");
    fs::create_dir_all(outside.join("d")).unwrap();
    fs::write(outside.join("d/secret"), "the secret").unwrap();
    fs::write(outside.join("d/f"), "the secret").unwrap();
    fixture.write("a/d/f", "inside");
    symlink(&outside, fixture.at("b")).unwrap();
    let save = fixture.outer.path().join("saved");
    let mut whole = 0;
    while_swapping(&fixture.at("a"), &fixture.at("b"), 1_000, |_| {
        // A symlink is copied as one; what is behind it never.
        let _ = fixture.workspace().save_to(&save);
        for name in ["a", "b"] {
            let copy = save.join(name);
            let Ok(kind) = fs::symlink_metadata(&copy) else { continue };
            if kind.is_dir() {
                assert!(!copy.join("d/secret").exists());
                if let Ok(content) = fs::read(copy.join("d/f")) {
                    assert_eq!(content, b"inside");
                    whole += 1;
                }
            }
        }
        fs::remove_dir_all(&save).unwrap();
    });
    assert!(whole > 0);
}

#[test]
fn a_workspace_is_reset_while_it_is_raced_and_nothing_outside_is_touched() {
    let fixture = fixture();
    let outside = fixture.outer.path().join("outside");
    fs::create_dir_all(outside.join("d")).unwrap();
    fs::write(outside.join("d/f"), "kept").unwrap();
    let (stage, a, b) = (fixture.outer.path().join("stage"), fixture.at("a"), fixture.at("b"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Made elsewhere: by its path here it could be made outside.
                let _ = fs::create_dir_all(stage.join("d/deep"));
                let _ = fs::write(stage.join("d/f"), "x");
                let _ = fs::rename(&stage, &a);
                let _ = symlink(&outside, &b);
                for _ in 0..8 {
                    let _ = rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE);
                }
            }
        });
        let _end = SetOnDrop(&over);
        for _ in 0..2_000 {
            let _ = fixture.workspace().clear();
        }
    });
    assert_eq!(fs::read(outside.join("d/f")).unwrap(), b"kept");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    fixture.workspace().clear().unwrap();
    assert_eq!(fs::read_dir(fixture.at("")).unwrap().count(), 0);
}

#[test]
fn a_file_that_grows_or_shrinks_meanwhile_leaves_a_sound_archive() {
    let fixture = fixture();
    fixture.write("f", vec![1; 300_000]);
    fixture.write("g", "after");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::File::options().write(true).open(fixture.at("f")).unwrap();
            while !over.load(Ordering::Relaxed) {
                file.set_len(1_000).unwrap();
                file.set_len(300_000).unwrap();
            }
        });
        let _end = SetOnDrop(&over);
        for _ in 0..300 {
            let members = members(&fixture.archive(".", 10).0);
            assert!([1_000, 300_000].contains(&members[0].content.len()));
            assert_eq!(members[1].content, b"after");
        }
    });
}
