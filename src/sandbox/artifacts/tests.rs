//! Artifacts of a model that lies, races, and makes directories, files and symlinks without end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};

use super::*;
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactList, ListArtifacts, MAX_ARTIFACT_BYTES,
    ReadArtifact,
};
use crate::sandbox::user::CommandUser;
use crate::sandbox::workspace::{DataDir, Workspace};

struct Fixture {
    outer: tempfile::TempDir,
    data: DataDir,
}

/// A workspace of `user`.
fn fixture_of(user: Option<CommandUser>) -> Fixture {
    fixture_at(tempfile::tempdir().unwrap(), user)
}

/// In memory, if there is such a place: some disks need a millisecond for each directory.
fn fixture_in_memory() -> Fixture {
    fixture_at(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(), None)
}

fn fixture_at(outer: tempfile::TempDir, user: Option<CommandUser>) -> Fixture {
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let data = DataDir::create(Some(&outer.path().join("base")), 1, user).unwrap();
    Fixture { outer, data }
}

fn fixture() -> Fixture {
    fixture_of(None)
}

impl Fixture {
    fn workspace(&self) -> &Arc<Workspace> {
        &self.data.workspaces()[0]
    }

    fn at(&self, path: &str) -> PathBuf {
        self.workspace().path().join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn dir(&self, path: &str) {
        fs::create_dir_all(self.at(path)).unwrap();
    }

    fn link(&self, target: &str, path: &str) {
        symlink(target, self.at(path)).unwrap();
    }

    fn fifo(&self, path: &str) {
        rustix::fs::mknodat(CWD, self.at(path), FileType::Fifo, Mode::RWXU, 0).unwrap();
    }

    fn read(&self, path: &str) -> Result<Artifact, ArtifactError> {
        read(self.workspace(), &ReadArtifact::new(path))
    }

    fn part(&self, path: &str, offset: u64, max_bytes: u64) -> Artifact {
        let request = ReadArtifact { offset, max_bytes, ..ReadArtifact::new(path) };
        read(self.workspace(), &request).unwrap()
    }

    fn try_list(&self, path: &str) -> Result<ArtifactList, ArtifactError> {
        let path = path.to_owned();
        list(self.workspace(), &ListArtifacts { path, ..ListArtifacts::default() })
    }

    fn list(&self, path: &str, recursive: bool, max_entries: usize) -> (String, bool) {
        let request = ListArtifacts { path: path.to_owned(), recursive, max_entries };
        let list = list(self.workspace(), &request).unwrap();
        let slash = |is_dir| if is_dir { "/" } else { "" };
        let names: Vec<_> =
            list.entries.iter().map(|e| format!("{}{}", e.path, slash(e.is_dir))).collect();
        (names.join(" "), list.truncated)
    }

    fn try_archive(
        &self,
        path: &str,
        max_bytes: u64,
        max_entries: usize,
    ) -> Result<(Vec<u8>, ArchiveSummary), ArtifactError> {
        let mut bytes = Vec::new();
        let request =
            ArchiveArtifacts::new(path).with_max_bytes(max_bytes).with_max_entries(max_entries);
        let summary = archive(self.workspace(), &request, &mut bytes)?;
        assert_eq!(summary.bytes, bytes.len() as u64);
        Ok((bytes, summary))
    }

    fn archive(&self, path: &str, max_entries: usize) -> (Vec<u8>, ArchiveSummary) {
        self.try_archive(path, MAX_ARTIFACT_BYTES, max_entries).unwrap()
    }

    /// The names in an archive, joined, and whether it was cut.
    fn names(&self, path: &str, max_entries: usize) -> (String, bool) {
        let (bytes, summary) = self.archive(path, max_entries);
        let names: Vec<_> = members(&bytes).into_iter().map(|member| member.name).collect();
        assert_eq!(summary.entry_count, names.len() as u64);
        (names.join(" "), summary.truncated)
    }
}

struct Member {
    name: String,
    kind: tar::EntryType,
    mode: u32,
    mtime: u64,
    ids: (u64, u64),
    target: Option<Vec<u8>>,
    content: Vec<u8>,
}

fn members(bytes: &[u8]) -> Vec<Member> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    let member = |entry: io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().username_bytes(), Some(&b""[..]));
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        Member {
            name: String::from_utf8_lossy(&entry.path_bytes()).into_owned(),
            kind: entry.header().entry_type(),
            mode: entry.header().mode().unwrap(),
            mtime: entry.header().mtime().unwrap(),
            ids: (entry.header().uid().unwrap(), entry.header().gid().unwrap()),
            target: entry.link_name_bytes().map(|name| name.into_owned()),
            content,
        }
    };
    archive.entries().unwrap().map(member).collect()
}

/// What `tar -tzf` says of an archive.
fn tar_lists(bytes: &[u8]) -> String {
    let mut tar = Command::new("tar")
        .args(["--quoting-style=literal", "-tzf", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = tar.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

macro_rules! assert_error {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {{
        let result = $result;
        let error = result.as_ref().map(drop);
        assert!(matches!(error, Err($pattern) $(if $guard)?), "{error:?}");
    }};
}

mod archiving;
mod listing;
mod putting;
mod races;
mod reading;

#[test]
fn what_is_no_file_here_is_not_read_listed_or_archived() {
    let fixture = fixture();
    fixture.dir("d");
    fixture.write("f", "");
    fixture.fifo("fifo");
    let _socket = std::os::unix::net::UnixListener::bind(fixture.at("socket")).unwrap();
    fixture.link("loop", "loop");
    fixture.link("/etc/passwd", "out");
    fixture.link("..", "up");
    fixture.link("nothing", "dangling");
    let archive = |given| fixture.try_archive(given, 1_000, 10);
    for given in ["loop", "out", "up/x", "../x", "/etc/passwd", "a\0b", "/workspace/.."] {
        assert_error!(fixture.read(given), ArtifactError::Outside);
        assert_error!(fixture.try_list(given), ArtifactError::Outside);
        assert_error!(archive(given), ArtifactError::Outside);
    }
    for given in ["nothing", "dangling", "d/x/y", "f/x"] {
        assert_error!(fixture.read(given), ArtifactError::NotFound(path) if path == given);
        assert_error!(fixture.try_list(given), ArtifactError::NotFound(path) if path == given);
        assert_error!(archive(given), ArtifactError::NotFound(path) if path == given);
    }
    for given in ["", ".", "d", "/workspace", "fifo", "socket"] {
        assert_error!(fixture.read(given), ArtifactError::NotAFile(path) if path == given);
    }
    for given in ["fifo", "socket"] {
        let error = fixture.try_list(given);
        assert_error!(error, ArtifactError::UnsupportedType(path) if path == given);
        assert_eq!(fixture.names(given, 10), (String::new(), false));
    }
    assert_error!(fixture.read(&"x".repeat(256)), ArtifactError::Io(..));
}

#[test]
fn what_is_too_deep_is_left_out() {
    let fixture = fixture();
    let deep = |levels: usize| vec!["d"; levels].join("/");
    fixture.dir(&deep(MAX_DEPTH + 1));
    let entries = |fixture: &Fixture| {
        let (names, truncated) = fixture.list(".", true, 5_000);
        let (in_archive, cut) = fixture.names(".", 5_000);
        assert_eq!(truncated, cut);
        assert_eq!(names, in_archive);
        (names.split(' ').count(), truncated)
    };
    assert_eq!(entries(&fixture), (MAX_DEPTH + 1, false), "nothing is left out");
    fixture.dir(&deep(MAX_DEPTH + 2));
    assert_eq!(entries(&fixture), (MAX_DEPTH + 1, true));
    // A path from the workspace that no system call would take, and a symlink there.
    let mut dir = rustix::fs::open(fixture.at(""), OFlags::PATH, Mode::empty()).unwrap();
    let name = "x".repeat(250);
    for _ in 0..20 {
        rustix::fs::mkdirat(&dir, &name, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, &name, OFlags::PATH, Mode::empty()).unwrap();
    }
    rustix::fs::symlinkat("/workspace/d", &dir, "l").unwrap();
    assert!(fixture.list(".", true, 5_000).0.ends_with(" d/"));
    assert!(fixture.names(".", 5_000).0.ends_with("/l"));
}

#[test]
fn files_that_may_not_be_read_are_left_out_for_their_user() {
    let Some(user) = CommandUser::detect() else { return };
    let fixture = fixture_of(Some(user));
    fixture.write("mine", "root's");
    fs::set_permissions(fixture.at("mine"), fs::Permissions::from_mode(0o600)).unwrap();
    fixture.write("others", "x");
    fs::set_permissions(fixture.at("others"), fs::Permissions::from_mode(0o644)).unwrap();
    fixture.dir("closed");
    fixture.write("closed/f", "x");
    fs::set_permissions(fixture.at("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_error!(fixture.read("mine"), ArtifactError::Io(..));
    assert_eq!(fixture.read("others").unwrap().content, b"x");
    assert_eq!(fixture.list(".", true, 10), ("closed/ mine others".into(), false));
    assert_eq!(fixture.names(".", 10), ("closed/ others".into(), false));
    assert_eq!(rustix::process::geteuid().as_raw(), 0, "this thread is as it was");
}

#[test]
fn a_workspace_that_was_removed_or_replaced_has_no_artifacts() {
    for replace in [false, true] {
        let fixture = fixture();
        fixture.write("f", "x");
        let moved = fixture.outer.path().join("moved");
        fs::rename(fixture.at(""), &moved).unwrap();
        if replace {
            fs::create_dir(fixture.at("")).unwrap();
            fixture.write("f", "another");
        }
        let lost = |text: &str| text == "the workspace was removed or replaced from outside";
        assert_error!(fixture.read("f"), ArtifactError::SandboxLost(text) if lost(text));
        assert_error!(fixture.try_list("."), ArtifactError::SandboxLost(text) if lost(text));
        let archive = fixture.try_archive(".", 1_000, 10);
        assert_error!(archive, ArtifactError::SandboxLost(text) if lost(text));
        assert_eq!(fs::read(moved.join("f")).unwrap(), b"x");
    }
}

#[test]
fn the_backend_serves_the_slots_that_it_has() {
    use std::sync::Arc;

    use crate::backend::local::LocalBackend;
    use crate::backend::{Artifacts, SlotRef};
    use crate::config::LocalConfig;

    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let config = LocalConfig::new(1).with_data_dir(outer.path().join("base"));
    let backend = Arc::new(LocalBackend::start(config).unwrap());
    let slot = |index: usize| SlotRef {
        addr: "local".into(),
        index,
        name: format!("slot_{index}").into(),
        generation: 0,
    };
    let list = |index| backend.list(&slot(index), &ListArtifacts::default());
    assert_eq!(list(0).unwrap(), ArtifactList::default());
    assert_error!(list(1), ArtifactError::Io(text, _) if text == "there is no slot slot_1");
    let read = |index| backend.read(&slot(index), &ReadArtifact::new("f"));
    assert_error!(read(0), ArtifactError::NotFound(_));
    assert_error!(read(1), ArtifactError::Io(..));
    let mut bytes = Vec::new();
    let request = ArchiveArtifacts::default();
    let summary = backend.archive(&slot(0), &request, &mut bytes).unwrap();
    assert_eq!(summary.bytes, bytes.len() as u64);
    assert!(members(&bytes).is_empty());
    assert_error!(backend.archive(&slot(1), &request, &mut bytes), ArtifactError::Io(..));
}
