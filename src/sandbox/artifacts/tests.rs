//! Artifacts of a model that lies, races, and makes directories, files and symlinks without end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};

use super::*;
use crate::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactList, ListArtifacts, MAX_ARTIFACT_BYTES,
    ReadArtifact,
};
use crate::sandbox::user::CommandUser;
use crate::sandbox::workspace::DataDir;

struct Fixture {
    outer: tempfile::TempDir,
    data: DataDir,
}

/// A workspace of `user`.
fn fixture_of(user: Option<CommandUser>) -> Fixture {
    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let data = DataDir::create(Some(&outer.path().join("base")), 1, user).unwrap();
    Fixture { outer, data }
}

fn fixture() -> Fixture {
    fixture_of(None)
}

impl Fixture {
    fn workspace(&self) -> &Workspace {
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
        let request = ArchiveArtifacts { path: path.to_owned(), max_bytes, max_entries };
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

#[test]
fn a_file_is_read_in_parts() {
    let fixture = fixture();
    fixture.write("d/f.txt", "0123456789");
    let part = |offset, max| {
        let part = fixture.part("d/f.txt", offset, max);
        assert_eq!((part.offset, part.file_size, part.path.as_str()), (offset, 10, "d/f.txt"));
        (String::from_utf8(part.content).unwrap(), part.truncated)
    };
    assert_eq!(part(0, 4), ("0123".into(), true));
    assert_eq!(part(4, 4), ("4567".into(), true));
    assert_eq!(part(8, 4), ("89".into(), false));
    assert_eq!(part(0, 10), ("0123456789".into(), false), "an exact fit is not truncated");
    assert_eq!(part(6, 4), ("6789".into(), false));
    assert_eq!(part(0, 0), ("0".into(), true), "clamped");
    for beyond in [10, 11, u64::MAX] {
        assert_eq!(part(beyond, 4), (String::new(), false));
    }
    fixture.write("empty", "");
    assert!(!fixture.part("empty", 0, 1).truncated);
    fixture.write("large", vec![b'x'; MAX_ARTIFACT_BYTES as usize + 1]);
    let large = fixture.part("large", 0, u64::MAX);
    assert_eq!((large.content.len() as u64, large.truncated), (MAX_ARTIFACT_BYTES, true));
}

#[test]
fn a_huge_sparse_file_is_read_in_parts() {
    let fixture = fixture();
    fixture.write("f", "x");
    let size = 10 << 30;
    fs::File::options().write(true).open(fixture.at("f")).unwrap().set_len(size).unwrap();
    let part = fixture.part("f", 0, 4);
    assert_eq!((part.content.as_slice(), part.truncated), (&b"x\0\0\0"[..], true));
    assert_eq!(part.file_size, size);
    let part = fixture.part("f", size - 2, 4);
    assert_eq!((part.content.as_slice(), part.truncated), (&b"\0\0"[..], false));
}

#[test]
fn checksums_are_of_the_part_and_of_the_whole() {
    let fixture = fixture();
    fixture.write("f", "abcdef");
    let mut request = ReadArtifact { max_bytes: 3, ..ReadArtifact::new("f") };
    let artifact = read(fixture.workspace(), &request).unwrap();
    assert_eq!((artifact.sha256, artifact.file_sha256), (None, None));
    (request.sha256, request.file_sha256) = (true, true);
    let artifact = read(fixture.workspace(), &request).unwrap();
    let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(artifact.sha256.as_deref(), Some(of_abc));
    let of_all = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721";
    assert_eq!(artifact.file_sha256.as_deref(), Some(of_all));
}

#[test]
fn mime_types_go_by_the_name() {
    let fixture = fixture();
    for (name, mime) in [
        ("a.log", "text/plain"),
        ("a.MD", "text/markdown"),
        ("a.xml", "application/xml"),
        ("a.tgz", "application/gzip"),
        ("a.tar.gz", "application/gzip"),
        ("a.txt", "text/plain"),
        ("a.json", "application/json"),
        ("a.png", "image/png"),
        ("a.jpg", "image/jpeg"),
        ("a.html", "text/html"),
        ("a.webp", "image/webp"),
        ("a.unheard-of", "application/octet-stream"),
        ("a", "application/octet-stream"),
        (".log", "application/octet-stream"),
    ] {
        fixture.write(name, "");
        assert_eq!(fixture.read(name).unwrap().mime, mime, "{name}");
    }
}

#[test]
fn symlinks_are_read_under_the_name_of_their_target() {
    let fixture = fixture();
    fixture.write("d/f", "x");
    fixture.link("/workspace/d", "l");
    for given in ["l/f", "/workspace/l/f", "./d//f", "l/../d/f"] {
        let artifact = fixture.read(given).unwrap();
        assert_eq!((artifact.path.as_str(), artifact.content.as_slice()), ("d/f", &b"x"[..]));
    }
    fs::hard_link(fixture.at("d/f"), fixture.at("hard")).unwrap();
    assert_eq!(fixture.read("hard").unwrap().content, b"x");
}

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
fn a_directory_is_listed_by_name() {
    let fixture = fixture();
    fixture.write("b/x", "");
    fixture.write("a", "12345");
    fixture.write(".hidden", "");
    fixture.fifo("Z");
    let all = ".hidden Z a b/";
    for given in [".", "", "/workspace", "b/.."] {
        assert_eq!(fixture.list(given, false, 5_000), (all.into(), false));
    }
    assert_eq!(fixture.list(".", false, 4), (all.into(), false), "an exact fit");
    assert_eq!(fixture.list(".", false, 3), (".hidden Z a".into(), true));
    assert_eq!(fixture.list(".", false, 0), (".hidden".into(), true), "clamped");
    assert_eq!(fixture.list("b", false, 10), ("b/x".into(), false));
    assert_eq!(fixture.list("a", true, 1), ("a".into(), false));
    let list = fixture.try_list("a").unwrap();
    let meta = fs::metadata(fixture.at("a")).unwrap();
    assert_eq!(list.entries[0].size, 5);
    let mtime = meta.mtime() as f64 + meta.mtime_nsec() as f64 / 1e9;
    assert!((list.entries[0].mtime - mtime).abs() < 1e-5);
}

#[test]
fn a_recursive_listing_has_directories_first() {
    let fixture = fixture();
    for path in ["sub/b/1", "sub/a/2", "sub/0", "z", "a"] {
        fixture.write(path, "");
    }
    fixture.dir("empty");
    fixture.link("sub", "l");
    let all = "empty/ sub/ sub/ a z sub/a/ sub/b/ sub/0 sub/a/2 sub/b/1";
    assert_eq!(fixture.list(".", true, 10), (all.into(), false), "an exact fit, symlinks closed");
    let names: Vec<_> = all.split(' ').collect();
    for max in 1..10 {
        assert_eq!(fixture.list(".", true, max), (names[..max].join(" "), true));
    }
    assert_eq!(fixture.list("l", true, 5_000).0, "sub/a/ sub/b/ sub/0 sub/a/2 sub/b/1");
}

#[test]
fn a_listing_shows_what_symlinks_lead_to() {
    let fixture = fixture();
    fixture.write("d/f", "123");
    fixture.link("../d/f", "d/a");
    fixture.link("/workspace", "d/b");
    for (n, target) in ["/etc/passwd", "../..", "loop", "nothing"].iter().enumerate() {
        fixture.link(target, &format!("d/A{n}"));
    }
    fixture.link("loop", "d/loop");
    fixture.link("f", "d/z");
    assert_eq!(fixture.list("d", false, 10), ("d/f ./ d/f d/f".into(), false));
    assert_eq!(fixture.try_list("d").unwrap().entries[0].size, 3);
    // What is left out does not count.
    assert_eq!(fixture.list("d", false, 4), ("d/f ./ d/f d/f".into(), false));
    assert_eq!(fixture.list("d", false, 2), ("d/f ./".into(), true));
}

#[test]
fn a_huge_directory_costs_what_was_asked_for() {
    let fixture = fixture();
    fixture.dir("d");
    for n in 0..20_000 {
        fs::File::create(fixture.at(&format!("d/{n:05}"))).unwrap();
    }
    fixture.write("e", "");
    let first: Vec<_> = (0..10).map(|n| format!("d/{n:05}")).collect();
    for recursive in [false, true] {
        assert_eq!(fixture.list("d", recursive, 10), (first.join(" "), true));
    }
    assert_eq!(fixture.names("d", 11), (format!("d/ {}", first.join(" ")), true));
    let dir = fixture.workspace().root().resolve("d").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut looked = 0;
    let first = first_entries(dir.dir(), 3, deadline, |_, _| {
        looked += 1;
        Some((false, ()))
    });
    let names: Vec<_> = first.unwrap().entries.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["00000", "00001", "00002"]);
    assert!(looked < 1_000, "{looked} of 20,000 were looked at");
    let first = first_entries(dir.dir(), 3, Instant::now(), |_, _| Some((false, ()))).unwrap();
    assert!(first.late && first.entries.is_empty());
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
fn an_archive_keeps_files_directories_and_symlinks() {
    let fixture = fixture();
    fixture.write("sub/run.sh", "#!/bin/sh\n");
    let mode = fs::Permissions::from_mode(0o4751);
    fs::set_permissions(fixture.at("sub/run.sh"), mode).unwrap();
    let file = fs::File::options().write(true).open(fixture.at("sub/run.sh")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_234_567_890)).unwrap();
    fixture.dir("sub/empty");
    fixture.link("/etc//./passwd", "sub/out");
    fixture.link(&"t/".repeat(500), "sub/long");
    fixture.fifo("sub/fifo");
    fs::hard_link(fixture.at("sub/run.sh"), fixture.at("hard")).unwrap();
    let long = format!("{}/{}", "n".repeat(200), "m".repeat(200));
    fixture.write(&long, "long");

    let (bytes, summary) = fixture.archive(".", 5_000);
    let names = format!(
        "hard\n{}/\n{long}\nsub/\nsub/empty/\nsub/long\nsub/out\nsub/run.sh\n",
        "n".repeat(200)
    );
    assert_eq!(tar_lists(&bytes), names);
    assert_eq!((summary.entry_count, summary.truncated), (8, false));
    assert_eq!(&bytes[..10], b"\x1f\x8b\x08\0\0\0\0\0\0\xff", "no name, no time");

    let members: BTreeMap<_, _> =
        members(&bytes).into_iter().map(|member| (member.name.clone(), member)).collect();
    let run = &members["sub/run.sh"];
    assert_eq!((run.mode, run.mtime, run.kind), (0o751, 1_234_567_890, tar::EntryType::Regular));
    assert_eq!(run.content, b"#!/bin/sh\n");
    assert_eq!(members["hard"].content, b"#!/bin/sh\n");
    assert_eq!(members[&long].content, b"long");
    assert_eq!(members["sub/empty/"].kind, tar::EntryType::Directory);
    assert_eq!(members["sub/out"].kind, tar::EntryType::Symlink);
    assert_eq!(members["sub/out"].target.as_deref(), Some(&b"/etc//./passwd"[..]));
    assert!(members["sub/long"].target.as_ref().is_some_and(|target| target.len() >= 999));
    assert!(members.values().all(|member| member.ids == (0, 0)));
}

#[test]
fn a_part_of_a_workspace_is_archived_under_its_whole_path() {
    let fixture = fixture();
    fixture.write("a/b/f", "x");
    fixture.dir("a/c");
    fixture.link("a", "l");
    assert_eq!(fixture.names("a/b/f", 1), ("a/b/f".into(), false));
    assert_eq!(fixture.names("l/b", 2), ("a/b/ a/b/f".into(), false));
    assert_eq!(fixture.names("a/c", 2), ("a/c/".into(), false));
    assert_eq!(fixture.names("a/c", 0), (String::new(), true));
    fs::remove_dir_all(fixture.at("a")).unwrap();
    fs::remove_file(fixture.at("l")).unwrap();
    assert_eq!(fixture.names(".", 0), (String::new(), false));
}

#[test]
fn an_archive_is_cut_at_its_most_entries() {
    let fixture = fixture();
    for path in ["a/b/c/1", "a/b/c/2", "a/b/d", "a/z", "b", "c/1", "d"] {
        fixture.write(path, "");
    }
    let all = "a/ a/b/ a/b/c/ a/b/c/1 a/b/c/2 a/b/d a/z b c/ c/1 d";
    assert_eq!(fixture.names(".", 11), (all.into(), false));
    let names: Vec<_> = all.split(' ').collect();
    for max in 0..11 {
        assert_eq!(fixture.names(".", max), (names[..max].join(" "), true));
    }
}

#[test]
fn names_of_any_bytes_are_archived() {
    let fixture = fixture();
    let name = OsStr::from_bytes(b"\xff\\\n");
    fs::write(fixture.workspace().path().join(name), "x").unwrap();
    let (bytes, _) = fixture.archive(".", 10);
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(&*entry.path_bytes(), b"\xff\\\n");
    assert_eq!(fixture.list(".", false, 10).0, "\u{fffd}\\\n");
}

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    next.take(bytes).collect()
}

#[test]
fn an_archive_stops_at_its_largest_size() {
    let fixture = fixture();
    fixture.write("f", noise(1_000_000));
    let size = fixture.archive(".", 10).1.bytes;
    assert_eq!(fixture.try_archive(".", size, 10).unwrap().1.bytes, size, "an exact fit");
    for max in [0, 10, 500_000, size - 1] {
        let mut bytes = Vec::new();
        let request = ArchiveArtifacts { max_bytes: max, ..ArchiveArtifacts::default() };
        let result = archive(fixture.workspace(), &request, &mut bytes);
        assert_error!(result, ArtifactError::TooLarge { bytes, max: m } if *bytes > max && *m == max);
        assert!(bytes.len() as u64 <= max);
    }
    // 1 TiB of nothing.
    fs::File::options().write(true).open(fixture.at("f")).unwrap().set_len(1 << 40).unwrap();
    assert_error!(fixture.try_archive(".", size + 20_000, 10), ArtifactError::TooLarge { .. });
    let request = ArchiveArtifacts { max_bytes: u64::MAX, ..ArchiveArtifacts::default() };
    let time = Duration::from_millis(50);
    let result = archive::archive_within(fixture.workspace(), &request, &mut io::sink(), time);
    assert_error!(result, ArtifactError::Io(_, error) if error.kind() == io::ErrorKind::TimedOut);
}

/// Fails, or panics, from the second write on, and must then not be written to again.
struct Broken {
    writes: usize,
    panics: bool,
}

impl Write for Broken {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        match self.writes {
            1 => Ok(buffer.len()),
            2 if self.panics => panic!("a writer panics"),
            2 => Err(io::Error::other("the client is gone")),
            _ => std::process::abort(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_broken_writer_ends_the_archive() {
    let fixture = fixture();
    fixture.write("f", noise(200_000));
    let request = ArchiveArtifacts::default();
    let mut broken = Broken { writes: 0, panics: false };
    let result = archive(fixture.workspace(), &request, &mut broken);
    assert_error!(result, ArtifactError::Io(_, error) if error.to_string().contains("client"));
    let panicked = std::panic::catch_unwind(|| {
        let mut broken = Broken { writes: 0, panics: true };
        let _ = archive(fixture.workspace(), &request, &mut broken);
    });
    assert!(panicked.is_err());
}

#[test]
fn files_that_may_not_be_read_are_left_out_for_their_user() {
    let Some(user) = CommandUser::detect() else { return };
    let fixture = fixture_of(Some(user));
    fixture.write("mine", "root's");
    fs::set_permissions(fixture.at("mine"), fs::Permissions::from_mode(0o600)).unwrap();
    fixture.write("others", "x");
    fixture.dir("closed");
    fixture.write("closed/f", "x");
    fs::set_permissions(fixture.at("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_error!(fixture.read("mine"), ArtifactError::Io(..));
    assert_eq!(fixture.read("others").unwrap().content, b"x");
    assert_eq!(fixture.list(".", true, 10), ("closed/ mine others".into(), false));
    assert_eq!(fixture.names(".", 10), ("closed/ others".into(), false));
    assert_eq!(rustix::process::geteuid().as_raw(), 0, "this thread is as it was");
}

/// Ends the other thread also if this one panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` while another thread swaps the entries `a` and `b` of the workspace.
fn while_swapping(fixture: &Fixture, times: usize, mut work: impl FnMut()) {
    let over = AtomicBool::new(false);
    let (a, b) = (fixture.at("a"), fixture.at("b"));
    let swapped = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swapped = 0_u64;
            while !over.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                swapped += 1;
            }
            swapped
        });
        {
            let _end = SetOnDrop(&over);
            (0..times).for_each(|_| work());
        }
        swapper.join().unwrap()
    });
    assert!(swapped > 1_000, "only {swapped} swaps: nothing was raced");
}

#[test]
fn a_directory_swapped_for_a_symlink_never_leads_out() {
    let fixture = fixture();
    let outside = fixture.outer.path().join("outside");
    fs::create_dir_all(outside.join("d/secret")).unwrap();
    fs::write(outside.join("d/f"), "the secret").unwrap();
    fixture.write("a/d/f", "inside");
    symlink(&outside, fixture.at("b")).unwrap();
    let (mut inside, mut refused) = (0, 0);
    while_swapping(&fixture, 3_000, || {
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

#[test]
fn a_file_swapped_for_a_symlink_or_a_fifo_never_leads_out_and_never_blocks() {
    for fifo in [false, true] {
        let fixture = fixture();
        let secret = fixture.outer.path().join("secret");
        fs::write(&secret, "the secret").unwrap();
        fixture.write("a", "inside");
        if fifo {
            fixture.fifo("b");
            assert!(fs::metadata(fixture.at("b")).unwrap().file_type().is_fifo());
        } else {
            symlink(&secret, fixture.at("b")).unwrap();
        }
        while_swapping(&fixture, 3_000, || {
            if let Ok(artifact) = fixture.read("a") {
                assert_eq!(artifact.content, b"inside");
            }
            let list = fixture.try_list(".").unwrap();
            assert!(list.entries.iter().all(|entry| entry.size != 10));
            for member in members(&fixture.archive(".", 10).0) {
                assert!(member.content.is_empty() || member.content == b"inside");
            }
        });
    }
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

#[test]
fn the_backend_serves_the_slots_that_it_has() {
    use std::sync::Arc;

    use crate::backend::local::{LocalBackend, LocalConfig};
    use crate::backend::{Backend, SlotRef};

    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let data_dir = Some(outer.path().join("base"));
    let config = LocalConfig { data_dir, ..LocalConfig::with_slots(1) };
    let backend = Arc::new(LocalBackend::start(config).unwrap());
    let slot = |index: usize| SlotRef {
        container: 0,
        addr: "local".into(),
        index,
        name: format!("slot_{index}").into(),
        generation: 0,
    };
    let list = |index| backend.list_artifacts(&slot(index), &ListArtifacts::default());
    assert_eq!(list(0).unwrap(), ArtifactList::default());
    assert_error!(list(1), ArtifactError::Io(text, _) if text == "there is no slot slot_1");
    let read = |index| backend.read_artifact(&slot(index), &ReadArtifact::new("f"));
    assert_error!(read(0), ArtifactError::NotFound(_));
    assert_error!(read(1), ArtifactError::Io(..));
    let mut bytes = Vec::new();
    let request = ArchiveArtifacts::default();
    let summary = backend.archive_artifacts(&slot(0), &request, &mut bytes).unwrap();
    assert_eq!(summary.bytes, bytes.len() as u64);
    assert!(members(&bytes).is_empty());
    assert_error!(backend.archive_artifacts(&slot(1), &request, &mut bytes), ArtifactError::Io(..));
}
