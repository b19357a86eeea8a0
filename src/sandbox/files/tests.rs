//! The file tools against a model that lies, races and fills the disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use serde_json::json;

use super::*;

/// The default of the configuration.
const MAX_FILE_BYTES: u64 = 100_000;
use crate::sandbox::testing::{small_file_system, while_swapping, with_small_file_system};
use crate::sandbox::workspace::DataDir;

struct Fixture {
    outer: tempfile::TempDir,
    data: DataDir,
}

fn fixture() -> Fixture {
    // Not beneath /tmp, which is the slot's own to the tools.
    let outer = tempfile::tempdir_in("/var/tmp").unwrap();
    let data = DataDir::create(Some(&outer.path().join("base")), 1, None).unwrap();
    Fixture { outer, data }
}

fn arguments(value: Value) -> JsonObject {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

impl Fixture {
    fn at(&self, path: &str) -> PathBuf {
        self.data.workspaces()[0].path().join(path)
    }

    fn read_with(&self, value: Value, max: u64) -> ToolResult {
        read_file(&self.data.workspaces()[0], &arguments(value), max)
    }

    fn read(&self, path: &str) -> ToolResult {
        self.read_with(json!({"path": path}), MAX_FILE_BYTES)
    }

    fn write_with(&self, value: Value, max: u64) -> ToolResult {
        write_file(&self.data.workspaces()[0], &arguments(value), max)
    }

    fn write(&self, path: &str, content: &str) -> ToolResult {
        self.write_with(json!({"path": path, "content": content}), MAX_FILE_BYTES)
    }
}

#[test]
fn a_file_that_is_added_to_keeps_what_it_had_whatever_happens() {
    let fixture = fixture();
    let add = |path: &str, content: &str| {
        fixture.write_with(json!({"path": path, "content": content, "append": true}), 10)
    };
    fs::write(fixture.at("f"), "0123456789").unwrap();
    fs::set_permissions(fixture.at("f"), PermissionsExt::from_mode(0o754)).unwrap();
    // The limit is of what one call writes.
    let added = add("f", "abc");
    assert_eq!((added.outcome, &added.metadata["size"]), (Outcome::Ok, &json!(13)));
    assert_eq!(fs::read(fixture.at("f")).unwrap(), b"0123456789abc");
    assert_eq!(fs::metadata(fixture.at("f")).unwrap().permissions().mode() & 0o777, 0o754);
    assert_fails(&add("f", "01234567890"), "Content too large: 11 bytes (max 10)");
    assert_eq!(add("f", "").metadata["size"], 13);
    for (path, target) in [("inside", "f"), ("outside", "/etc/hostname")] {
        symlink(target, fixture.at(path)).unwrap();
    }
    assert_eq!(add("inside", "d").metadata["path"], "/workspace/f");
    assert_fails(&add("outside", "d"), "Access denied: path outside workspace");
    assert_eq!(add("new/g", "x").metadata["size"], 1);
    let wrong = fixture.write_with(json!({"path": "f", "content": "", "append": "yes"}), 10);
    let error = "'append' must be a boolean, got a string";
    assert_eq!((wrong.outcome, &*wrong.error), (Outcome::InvalidCall, error));
    assert_eq!(fs::read(fixture.at("f")).unwrap(), b"0123456789abcd");
}

#[track_caller]
fn assert_fails(result: &ToolResult, error: &str) {
    assert_eq!(result.error, error);
    assert_eq!(result.outcome, Outcome::ToolError);
    assert!(!result.success && result.output.is_empty() && result.metadata.is_empty());
}

#[test]
fn what_was_written_is_read_under_every_name_of_the_path() {
    let fixture = fixture();
    let written = fixture.write("/workspace/d/e/f.txt", "a\r\nb\rc\n\0é");
    assert_eq!(written.output, "Successfully wrote 10 bytes to /workspace/d/e/f.txt");
    let metadata = arguments(json!({"path": "/workspace/d/e/f.txt", "size": 10}));
    assert_eq!(written.metadata, metadata);
    for path in ["d/e/f.txt", "/workspace/d/e/f.txt", "./d//e/../e/f.txt"] {
        let read = fixture.read(path);
        assert_eq!((read.output.as_str(), read.success), ("a\r\nb\rc\n\0é", true), "{path}");
        assert_eq!(read.metadata, metadata, "{path}");
    }
    assert_eq!(fs::metadata(fixture.at("d/e/f.txt")).unwrap().mode() & 0o777 & !0o644, 0);
}

#[test]
fn invalid_utf8_is_replaced() {
    let fixture = fixture();
    fs::write(fixture.at("f"), b"a\xff\xe2\x82b").unwrap();
    let read = fixture.read("f");
    assert_eq!((read.output.as_str(), &read.metadata["size"]), ("a\u{fffd}\u{fffd}b", &json!(5)));
}

#[test]
fn the_limits_are_bytes_and_inclusive() {
    let fixture = fixture();
    let write = |content: &str| fixture.write_with(json!({"path": "f", "content": content}), 10);
    assert!(write("ééééé").success);
    assert_fails(&write("éééééx"), "Content too large: 11 bytes (max 10)");
    // It is checked before the path.
    let both_wrong = json!({"path": "../f", "content": "éééééx"});
    assert_fails(&fixture.write_with(both_wrong, 10), "Content too large: 11 bytes (max 10)");

    assert_eq!(fixture.read_with(json!({"path": "f"}), 10).output, "ééééé");
    assert_fails(&fixture.read_with(json!({"path": "f"}), 9), "File too large: 10 bytes (max 9)");
    File::create(fixture.at("sparse")).unwrap().set_len(1 << 40).unwrap();
    let sparse = fixture.read("sparse");
    assert_fails(&sparse, "File too large: 1099511627776 bytes (max 100000)");
}

#[test]
fn a_file_without_end_is_read_no_further_than_the_limit() {
    assert_eq!(read_bounded(io::repeat(b'x'), 1_000).unwrap().len(), 1_001);
    assert_eq!(read_bounded(&b"abc"[..], u64::MAX).unwrap(), b"abc");
}

#[test]
fn failures_have_the_texts_of_the_protocol_and_no_host_path() {
    let fixture = fixture();
    fs::write(fixture.at("f.txt"), "kept").unwrap();
    fs::create_dir(fixture.at("d")).unwrap();
    let denied = "Access denied: path outside workspace";
    for path in ["../x", "/etc/passwd", "a\0b", "/", "d/../../x", "/workspace/../x"] {
        assert_fails(&fixture.read(path), denied);
        assert_fails(&fixture.write(path, "x"), denied);
    }
    assert_fails(&fixture.read("nope/x"), "File not found: nope/x");
    assert_fails(&fixture.read("f.txt/x"), "File not found: f.txt/x");
    assert_fails(&fixture.read("/workspace/d"), "Not a file: /workspace/d");
    assert_fails(&fixture.read_with(json!({}), 10), "Not a file: ");
    let long = "a".repeat(256);
    let too_long = format!("[Errno 36] File name too long: '/workspace/{long}'");
    assert_fails(&fixture.read(&long), &format!("Failed to read file: {too_long}"));
    assert_fails(&fixture.write(&long, ""), &format!("Failed to write file: {too_long}"));
    assert_fails(
        &fixture.write("d", "x"),
        "Failed to write file: [Errno 21] Is a directory: '/workspace/d'",
    );
    assert_fails(
        &fixture.write("f.txt/x", "x"),
        "Failed to write file: [Errno 17] File exists: '/workspace/f.txt/x'",
    );
    assert_eq!(fs::read(fixture.at("f.txt")).unwrap(), b"kept");
}

#[test]
fn arguments_that_are_no_strings_are_invalid() {
    let fixture = fixture();
    for (arguments, error) in [
        (json!({"path": 1, "content": "x"}), "path must be a string"),
        (json!({"path": "f", "content": ["x"]}), "content must be a string"),
        (json!({"path": "f", "content": null}), "content must be a string"),
    ] {
        let result = fixture.write_with(arguments, 10);
        assert_eq!((result.error.as_str(), result.outcome), (error, Outcome::InvalidCall));
        assert!(!result.may_have_executed);
    }
    assert_eq!(fixture.read_with(json!({"path": null}), 10).outcome, Outcome::InvalidCall);
    assert!(!fixture.at("f").exists());
}

#[test]
fn symlinks_inside_are_followed_and_outside_refused() {
    let fixture = fixture();
    let secret = fixture.outer.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    symlink("/workspace/d/target", fixture.at("link")).unwrap();
    symlink(&secret, fixture.at("out")).unwrap();
    symlink("../../..", fixture.at("up")).unwrap();

    let written = fixture.write("link", "x");
    assert_eq!(written.output, "Successfully wrote 1 bytes to link");
    assert_eq!(written.metadata["path"], "/workspace/d/target");
    assert_eq!(fs::read(fixture.at("d/target")).unwrap(), b"x");
    assert_eq!(fixture.read("link").output, "x");
    for path in ["out", "up/secret"] {
        assert_fails(&fixture.read(path), "Access denied: path outside workspace");
        assert_fails(&fixture.write(path, "x"), "Access denied: path outside workspace");
    }
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
}

#[test]
fn a_file_keeps_its_mode_and_its_other_names() {
    let fixture = fixture();
    fs::write(fixture.at("f"), "a longer text").unwrap();
    fs::set_permissions(fixture.at("f"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::hard_link(fixture.at("f"), fixture.at("other")).unwrap();
    assert!(fixture.write("f", "new").success);
    assert_eq!(fs::read(fixture.at("other")).unwrap(), b"new");
    assert_eq!(fs::metadata(fixture.at("f")).unwrap().mode() & 0o777, 0o750);
    assert!(fixture.write("f", "").success);
    assert_eq!(fixture.read("f").output, "");
}

#[test]
fn fifos_sockets_and_devices_are_refused_at_once() {
    let fixture = fixture();
    let mkfifo = |name: &str| {
        rustix::fs::mknodat(CWD, fixture.at(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
    };
    mkfifo("fifo").unwrap();
    mkfifo("open").unwrap();
    let _reader = fs::OpenOptions::new().read(true).write(true).open(fixture.at("open")).unwrap();
    let _socket = UnixListener::bind(fixture.at("socket")).unwrap();
    let mut special = vec!["fifo", "open", "socket"];
    let device = rustix::fs::makedev(1, 5);
    let mode = Mode::RUSR | Mode::WUSR;
    let path = fixture.at("device");
    // Only root can make one.
    if rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, mode, device).is_ok() {
        special.push("device");
    }
    for name in special {
        assert_fails(&fixture.read(name), &format!("Not a file: {name}"));
        let error = format!("Failed to write file: not a regular file: '/workspace/{name}'");
        assert_fails(&fixture.write(name, "x"), &error);
    }
}

#[test]
fn a_directory_swapped_for_a_symlink_never_leads_out() {
    let fixture = fixture();
    let outside = fixture.outer.path().join("outside");
    fs::create_dir_all(outside.join("d")).unwrap();
    fs::write(outside.join("d/f"), "secret").unwrap();
    fs::create_dir_all(fixture.at("a/d")).unwrap();
    fs::write(fixture.at("a/d/f"), "inside").unwrap();
    symlink(&outside, fixture.at("b")).unwrap();

    let (mut inside, mut refused) = (0, 0);
    while_swapping(&fixture.at("a"), &fixture.at("b"), 5_000, |n| {
        let read = fixture.read("a/d/f");
        if read.success {
            assert_eq!(read.output, "inside");
            inside += 1;
        } else {
            refused += 1;
        }
        fixture.write("a/d/f", "inside");
        fixture.write(&format!("a/new{}/x/f", n % 7), "x");
        fixture.write("a/d/../d/g", "x");
    });
    assert!(inside > 0 && refused > 0, "{inside} read, {refused} refused");
    assert_eq!(fs::read(outside.join("d/f")).unwrap(), b"secret");
    let names = |path: &Path| fs::read_dir(path).unwrap().count();
    assert_eq!((names(&outside), names(&outside.join("d"))), (1, 1));
}

#[test]
fn a_file_swapped_for_something_else_never_leads_out_and_never_blocks() {
    let fixture = fixture();
    let secret = fixture.outer.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    for trap in ["symlink", "fifo", "socket", "device", "directory"] {
        fs::write(fixture.at("a"), "inside").unwrap();
        let mut _socket = None;
        match trap {
            "symlink" => symlink(&secret, fixture.at("b")).unwrap(),
            "fifo" => {
                rustix::fs::mknodat(CWD, fixture.at("b"), FileType::Fifo, Mode::RWXU, 0).unwrap();
            }
            "socket" => _socket = Some(UnixListener::bind(fixture.at("b")).unwrap()),
            "device" => {
                // Without end, if it were read. Only root can make one.
                let (kind, zero) = (FileType::CharacterDevice, rustix::fs::makedev(1, 5));
                if rustix::fs::mknodat(CWD, fixture.at("b"), kind, Mode::RWXU, zero).is_err() {
                    continue;
                }
            }
            _ => fs::create_dir_all(fixture.at("b/x")).unwrap(),
        }
        while_swapping(&fixture.at("a"), &fixture.at("b"), 5_000, |_| {
            let read = fixture.read("a");
            // Its writer cuts a file last, so that it is never seen empty.
            assert!(!read.success || read.output == "inside", "{trap}: {read:?}");
            fixture.write("a", "inside");
        });
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        fixture.data.workspaces()[0].clear().unwrap();
    }
}

#[test]
fn a_workspace_that_was_removed_or_replaced_is_nobodys_fault() {
    for replace in [false, true] {
        let fixture = fixture();
        let moved = fixture.outer.path().join("moved");
        fs::rename(fixture.at(""), &moved).unwrap();
        if replace {
            fs::create_dir(fixture.at("")).unwrap();
        }
        for result in [fixture.read("f"), fixture.write("f", "x")] {
            assert_eq!(result.outcome, Outcome::BackendFailed);
            assert_eq!(result.error, "the workspace was removed or replaced from outside");
            assert!(!result.may_have_executed);
        }
        assert_eq!(fs::read_dir(&moved).unwrap().count(), 0);
    }
}

#[test]
fn a_full_disk_is_an_error_and_costs_no_file() {
    with_small_file_system(262_144, "sandbox::files::tests::on_a_small_file_system");
}

#[test]
fn on_a_small_file_system() {
    let Some(small) = small_file_system() else { return };
    let data = DataDir::create(Some(&small), 1, None).unwrap();
    let workspace = &data.workspaces()[0];
    let write = |path: &str, size: usize| {
        let content = "x".repeat(size);
        write_file(workspace, &arguments(json!({"path": path, "content": content})), 1 << 20)
    };
    assert!(write("old", 1_000).success);
    assert!(write("full", 200_000).success);
    let full = "Failed to write file: [Errno 28] No space left on device: '/workspace/old'";
    assert_fails(&write("old", 100_000), full);
    assert_eq!(fs::read(workspace.path().join("old")).unwrap(), "x".repeat(1_000).as_bytes());
    assert!(write("new", 100_000).error.starts_with("Failed to write file: [Errno 28]"));
}
