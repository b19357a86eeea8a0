//! Files that are put: whole or not at all, and never out of the slot.

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::artifact::{PutFiles, PutSummary};
use crate::config::SlotLimits;
use crate::sandbox::limits::Limits;
use crate::sandbox::testing::while_swapping;

/// An error is of this kind.
macro_rules! assert_is {
    ($error:expr, $($kind:tt)+) => {{
        let error = $error;
        assert!(matches!(&error, $($kind)+), "{error:?}");
    }};
}

impl Fixture {
    fn put(&self, request: &PutFiles, bytes: &[u8]) -> Result<PutSummary, ArtifactError> {
        put(self.workspace(), &Limits::none(), request, &mut &*bytes)
    }

    fn put_tar(&self, directory: &str, bytes: &[u8]) -> Result<PutSummary, ArtifactError> {
        self.put(&PutFiles::tar(directory), bytes)
    }

    /// All that is in the workspace, by the host's own means.
    fn names_of_all(&self) -> Vec<String> {
        fn walk(dir: &Path, prefix: &str, names: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if entry.file_type().unwrap().is_dir() {
                    names.push(format!("{name}/"));
                    walk(&entry.path(), &format!("{name}/"), names);
                } else {
                    names.push(name);
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.at(""), "", &mut names);
        names.sort();
        names
    }

    fn content(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn mode(&self, path: &str) -> u32 {
        fs::symlink_metadata(self.at(path)).unwrap().mode() & 0o7777
    }
}

fn header(kind: EntryType, size: usize, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header
}

/// An archive of these, in this order: a name that ends with `/` is a directory, `a -> b` a
/// symlink, `a = b` a hard link; all else a file with its name as content.
fn archive_of(names: &[&str]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for name in names {
        if let Some((name, target)) = name.split_once(" -> ") {
            let mut header = header(EntryType::Symlink, 0, 0o777);
            tar.append_link(&mut header, name, target).unwrap();
        } else if let Some((name, target)) = name.split_once(" = ") {
            let mut header = header(EntryType::Link, 0, 0o644);
            tar.append_link(&mut header, name, target).unwrap();
        } else if name.ends_with('/') {
            tar.append_data(&mut header(EntryType::Directory, 0, 0o750), name, io::empty())
                .unwrap();
        } else {
            let content = name.as_bytes();
            let mut header = header(EntryType::Regular, content.len(), 0o640);
            tar.append_data(&mut header, name, content).unwrap();
        }
    }
    tar.into_inner().unwrap()
}

/// An archive with an entry of this name as it is, which the writer of archives would refuse.
fn with_raw_name(name: &[u8], kind: EntryType, target: &[u8]) -> Vec<u8> {
    let mut header = header(kind, 0, 0o644);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend([0; 1024]);
    bytes
}

#[test]
fn a_file_is_put_with_its_mode_and_takes_the_place_of_another() {
    let fixture = fixture();
    let summary = fixture.put(&PutFiles::file("a/b/f").with_mode(Some(0o751)), b"new").unwrap();
    assert_eq!((&*summary.path, summary.bytes), ("/workspace/a/b/f", 3));
    assert_eq!((fixture.content("a/b/f"), fixture.mode("a/b/f")), ("new".to_owned(), 0o751));
    assert_eq!(fixture.mode("a/b"), 0o755);
    // Its mode stays, its other name too.
    fs::hard_link(fixture.at("a/b/f"), fixture.at("other")).unwrap();
    fixture.link("a/b/f", "link");
    fixture.put(&PutFiles::file("/workspace/link"), b"newer").unwrap();
    assert_eq!((fixture.content("a/b/f"), fixture.mode("a/b/f")), ("newer".to_owned(), 0o751));
    assert_eq!(fixture.content("other"), "new");
    fixture.put(&PutFiles::file("/tmp/t"), b"").unwrap();
    assert_eq!(fs::read(fixture.workspace().temporary().join("t")).unwrap(), b"");
    fixture.put(&PutFiles::file("empty"), b"").unwrap();
    assert_eq!(fixture.mode("empty"), 0o644);
    assert_eq!(fixture.names_of_all(), ["a/", "a/b/", "a/b/f", "empty", "link", "other"]);
}

#[test]
fn zeros_become_holes_and_read_as_zeros() {
    let fixture = fixture();
    let mut bytes = vec![0; 8 << 20];
    bytes[3 << 20] = 1;
    fixture.put(&PutFiles::file("holes"), &bytes).unwrap();
    assert!(fs::read(fixture.at("holes")).unwrap() == bytes);
    let blocks = fs::metadata(fixture.at("holes")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks}");
}

#[test]
fn what_cannot_be_put_leaves_nothing() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("the source is gone"));
            }
            self.0 -= 1;
            buffer.fill(1);
            Ok(buffer.len())
        }
    }
    let fixture = fixture();
    fixture.write("f", "old");
    fixture.dir("d");
    fixture.fifo("fifo");
    let refused = |request: &PutFiles| fixture.put(request, b"x").unwrap_err();
    assert_is!(refused(&PutFiles::file("d")), ArtifactError::Invalid(_));
    assert_is!(refused(&PutFiles::file("f/x")), ArtifactError::Invalid(_));
    assert_is!(refused(&PutFiles::file("fifo")), ArtifactError::NotAFile(_));
    assert_is!(refused(&PutFiles::file("/etc/passwd")), ArtifactError::Outside);
    assert_is!(refused(&PutFiles::tar("f")), ArtifactError::Invalid(_));
    let owned = PutFiles::file("new/n").with_owner("root");
    assert_is!(refused(&owned), ArtifactError::Invalid(text) if text.contains("one user id each"));
    let sized = PutFiles::file("new/n").with_size(Some(2));
    assert_is!(refused(&sized), ArtifactError::Invalid(text) if text.contains("2 bytes, and 1"));
    for path in ["f", "new/dir/n"] {
        let request = PutFiles::file(path);
        let failed =
            put(fixture.workspace(), &Limits::none(), &request, &mut Failing(3)).unwrap_err();
        assert_is!(failed, ArtifactError::Io(..));
    }
    let tree = PutFiles::tar("new/tree");
    let cut = &archive_of(&["a", "b/", "b/c"])[..2048 + 10];
    assert_is!(fixture.put(&tree, cut).unwrap_err(), ArtifactError::BadArchive(_));
    assert_is!(fixture.put(&tree, b"no tar").unwrap_err(), ArtifactError::BadArchive(_));
    assert_eq!(fixture.names_of_all(), ["d/", "f", "fifo"]);
    assert_eq!(fixture.content("f"), "old");
}

#[test]
fn a_slots_limits_hold_for_what_is_put() {
    let fixture = fixture();
    let limits = |limits: SlotLimits| Limits::detect(1, &limits, None, false, None).unwrap();
    let few_bytes = limits(SlotLimits::none().with_workspace_bytes(Some(4 << 20)));
    let few_files = limits(SlotLimits::none().with_files(Some(100)));
    let small_files = limits(SlotLimits::none().with_file_bytes(Some(1 << 20)));
    let put_within = |limits: &Limits, request: &PutFiles, bytes: &[u8]| {
        put(fixture.workspace(), limits, request, &mut &*bytes)
    };
    fixture.write("old", vec![1; 2 << 20]);
    let three = vec![1; 3 << 20];
    for request in [PutFiles::file("n"), PutFiles::file("n").with_size(Some(3 << 20))] {
        let error = put_within(&few_bytes, &request, &three).unwrap_err();
        assert_is!(error, ArtifactError::DiskFull { path, why }
            if path == "n" && why.contains("4194304 bytes"));
        let error = put_within(&small_files, &request, &three).unwrap_err();
        assert_is!(error, ArtifactError::DiskFull { why, .. } if why.contains("a file may"));
    }
    put_within(&few_bytes, &PutFiles::file("n"), &three[..1 << 20]).unwrap();
    let names: Vec<_> = (0..200).map(|n| format!("f{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let many = archive_of(&names);
    let error = put_within(&few_files, &PutFiles::tar("new"), &many).unwrap_err();
    assert_is!(error, ArtifactError::DiskFull { .. });
    assert_eq!(fixture.names_of_all(), ["n", "old"]);
    let error = put_within(&few_files, &PutFiles::tar("."), &many).unwrap_err();
    let ArtifactError::Partial { put, source } = error else { panic!("{error}") };
    assert_is!(*source, ArtifactError::DiskFull { .. });
    assert_eq!(fixture.names_of_all().len() as u64, 2 + put);
}

#[test]
fn an_archive_is_unpacked_into_a_directory_that_is_new_or_was_there() {
    let names = ["./d/", "d/f", "d/l -> ../d/f", "d/h = d/f", "x/without/directory"];
    // Its own directory comes first, and a name from the root.
    let mut bytes = with_raw_name(b"./", EntryType::Directory, b"")[..512].to_vec();
    bytes.extend(&with_raw_name(b"/abs", EntryType::Regular, b"")[..512]);
    bytes.extend(archive_of(&names));
    for (gzip, directory) in [(false, "new/dir"), (true, "there")] {
        let fixture = fixture();
        fixture.write("there/d/old", "old");
        fixture.write("there/d/f", "replaced");
        fixture.write("there/d/l", "replaced too");
        let bytes = match gzip {
            false => bytes.clone(),
            true => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                gzip.write_all(&bytes).unwrap();
                gzip.finish().unwrap()
            }
        };
        let summary = fixture.put_tar(directory, &bytes).unwrap();
        assert_eq!((summary.entry_count, summary.skipped), (6, 0));
        assert_eq!(summary.path, format!("/workspace/{directory}"));
        let at = |name: &str| format!("{directory}/{name}");
        assert_eq!((fixture.content(&at("d/f")), fixture.mode(&at("d/f"))), ("d/f".into(), 0o640));
        assert_eq!(fixture.mode(&at("d")), 0o750);
        assert_eq!(fs::read_link(fixture.at(&at("d/l"))).unwrap().to_str(), Some("../d/f"));
        let data = fs::metadata(fixture.at(&at("d/f"))).unwrap();
        assert_eq!((data.nlink(), data.mtime()), (2, 1_000_000_000));
        assert_eq!(fs::metadata(fixture.at(&at("d"))).unwrap().mtime(), 1_000_000_000);
        assert_eq!(fixture.content(&at("x/without/directory")), "x/without/directory");
        assert_eq!(fixture.content(&at("abs")), "");
        assert_eq!(fixture.content("there/d/old"), "old");
        assert!(fixture.names_of_all().iter().all(|name| !name.contains(".put-")));
    }
}

#[test]
fn directories_that_are_closed_or_out_of_order_are_filled_first() {
    let mut tar = Builder::new(Vec::new());
    let closed = |name| (header(EntryType::Directory, 0, 0o500), name);
    for (mut header, name) in [closed("a/"), closed("a/b/")] {
        tar.append_data(&mut header, name, io::empty()).unwrap();
    }
    for name in ["a-b", "a/b/f", "z", "a/late"] {
        let mut header = header(EntryType::Regular, 1, 0o600);
        tar.append_data(&mut header, name, &b"x"[..]).unwrap();
    }
    let bytes = tar.into_inner().unwrap();
    let fixture = fixture();
    fixture.put_tar("new", &bytes).unwrap();
    assert_eq!(
        fixture.names_of_all(),
        ["new/", "new/a-b", "new/a/", "new/a/b/", "new/a/b/f", "new/a/late", "new/z"]
    );
    assert_eq!((fixture.mode("new/a"), fixture.mode("new/a/b")), (0o500, 0o500));
}

#[test]
fn hostile_archives_are_refused_or_stay_inside() {
    // Its path is no path of a slot's.
    let fixture = fixture_in_memory();
    let outside = fixture.outer.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "secret").unwrap();
    symlink(&outside, fixture.at("by-host")).unwrap();
    let bad = |bytes: &[u8]| {
        let error = fixture.put_tar("new", bytes).unwrap_err();
        assert_is!(error, ArtifactError::BadArchive(_));
    };
    bad(&with_raw_name(b"../f", EntryType::Regular, b""));
    bad(&with_raw_name(b"a/../../f", EntryType::Regular, b""));
    bad(&with_raw_name(b"h", EntryType::Link, b"../by-host/f"));
    bad(&with_raw_name(b"h", EntryType::Link, b""));
    bad(&with_raw_name(b"h", EntryType::Symlink, b""));
    bad(&with_raw_name(b"h", EntryType::new(b'~'), b""));
    // A link out of the slot leads nowhere that is the host's.
    for names in [
        vec![format!("l -> {}", outside.display()), "l/f".to_owned(), "l/new".to_owned()],
        vec!["l -> ../by-host".to_owned(), "l/f".to_owned()],
        vec!["l -> ../by-host".to_owned(), "h = l/f".to_owned()],
        vec!["l -> /proc/self/root".to_owned(), "l/f".to_owned()],
        vec!["l -> l".to_owned(), "l/f".to_owned()],
    ] {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let error = fixture.put_tar("new", &archive_of(&names)).unwrap_err();
        assert_is!(error, ArtifactError::Outside);
    }
    assert_eq!(fixture.names_of_all(), ["by-host"]);
    // Devices are left out.
    let device = with_raw_name(b"null", EntryType::Char, b"");
    let summary = fixture.put_tar("new", &device).unwrap();
    assert_eq!((summary.entry_count, summary.skipped), (0, 1));
    // A link that was there is followed, one of the same name is replaced.
    fixture.link("d", "to-d");
    fixture.dir("d");
    let names = ["to-d/", "to-d/f", "over -> nowhere", "over"];
    fixture.put_tar(".", &archive_of(&names)).unwrap();
    assert_eq!((fixture.content("d/f"), fixture.content("over")), ("to-d/f".into(), "over".into()));
    let error = fixture.put_tar(".", &archive_of(&["d"])).unwrap_err();
    assert_is!(error, ArtifactError::Invalid(text) if text.contains("is a directory"));
    assert_eq!(fs::read_to_string(outside.join("f")).unwrap(), "secret");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn sparse_files_deep_trees_and_long_names_come_back_as_they_went() {
    let fixture = fixture_in_memory();
    let deep = "d/".repeat(95);
    fixture.write(&format!("from/{deep}f"), "deep");
    fixture.write(&format!("from/{}/{}", "n".repeat(200), "m".repeat(200)), "long");
    let sparse = fs::File::create(fixture.at("from/sparse")).unwrap();
    sparse.set_len(300 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 200 << 20).unwrap();
    let bad_name = fixture.at("from").join(OsStr::from_bytes(b"\xff\n\x01"));
    fs::write(&bad_name, "bytes").unwrap();
    let (bytes, summary) = fixture.archive("from", 1000);
    assert!(!summary.truncated);
    let put = fixture.put_tar("to", &bytes).unwrap();
    assert_eq!(put.entry_count, summary.entry_count);
    assert_eq!(fixture.content(&format!("to/from/{deep}f")), "deep");
    let data = fs::metadata(fixture.at("to/from/sparse")).unwrap();
    assert_eq!(data.len(), 300 << 20);
    assert!(data.blocks() * 512 < 1 << 20, "{}", data.blocks());
    let bad_name = fixture.at("to/from").join(OsStr::from_bytes(b"\xff\n\x01"));
    assert_eq!(fs::read_to_string(bad_name).unwrap(), "bytes");
    // Deeper than archives go.
    let names: Vec<_> = (1..=400).map(|n| "e/".repeat(n)).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    assert_eq!(fixture.put_tar("deep", &archive_of(&names)).unwrap().entry_count, 400);
}

#[test]
fn a_directory_swapped_for_a_symlink_takes_nothing_out() {
    let fixture = fixture();
    let outside = fixture.outer.path().join("outside");
    fs::create_dir_all(outside.join("d")).unwrap();
    fs::write(outside.join("d/f"), "the secret").unwrap();
    fixture.write("a/d/f", "inside");
    symlink(&outside, fixture.at("b")).unwrap();
    let bytes = archive_of(&["d/", "d/f", "d/l -> f", "d/new/g"]);
    let mut put = 0;
    while_swapping(&fixture.at("a"), &fixture.at("b"), 1_000, |_| {
        put += usize::from(fixture.put(&PutFiles::file("a/d/f"), b"put").is_ok());
        put += usize::from(fixture.put_tar("a", &bytes).is_ok());
        assert_eq!(fs::read_to_string(outside.join("d/f")).unwrap(), "the secret");
        assert_eq!(fs::read_dir(outside.join("d")).unwrap().count(), 1);
    });
    assert!(put > 0);
}

#[test]
fn a_put_acts_as_the_commands_user_and_reads_as_the_caller() {
    struct AsCaller(bool);
    impl Read for AsCaller {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            assert_eq!(rustix::process::geteuid().as_raw(), 0);
            if std::mem::replace(&mut self.0, true) {
                return Ok(0);
            }
            buffer[0] = b'x';
            Ok(1)
        }
    }
    impl Write for AsCaller {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            assert_eq!(rustix::process::geteuid().as_raw(), 0);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let Some(user) = CommandUser::detect() else { return };
    let fixture = fixture_of(Some(user));
    let request = PutFiles::file("d/f");
    put(fixture.workspace(), &Limits::none(), &request, &mut AsCaller(false)).unwrap();
    for path in ["d", "d/f"] {
        assert_eq!(fs::metadata(fixture.at(path)).unwrap().uid(), user.uid().as_raw(), "{path}");
    }
    assert_eq!(copy(fixture.workspace(), "d/f", &mut AsCaller(false)).unwrap(), 1);
    let all = ArchiveArtifacts::default();
    archive(fixture.workspace(), &all, &mut AsCaller(false)).unwrap();
    // What is root's is not the user's to change.
    fs::create_dir(fixture.at("roots")).unwrap();
    let error = fixture.put(&PutFiles::file("roots/f"), b"x").unwrap_err();
    assert_is!(error, ArtifactError::Io(..));
    assert_eq!(fixture.names_of_all(), ["d/", "d/f", "roots/"]);
}

#[test]
fn a_writer_that_fails_or_panics_ends_a_copy() {
    struct Refuses(bool);
    impl Write for Refuses {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            assert!(!self.0, "expected by this test");
            Err(io::Error::other("the disk is full"))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for user in [None, CommandUser::detect()] {
        let fixture = fixture_of(user);
        for size in [10, 10 << 20] {
            fixture.put(&PutFiles::file("f"), &vec![1; size]).unwrap();
            let error = copy(fixture.workspace(), "f", &mut Refuses(false)).unwrap_err();
            assert_is!(error, ArtifactError::Io(_, cause) if cause.to_string().contains("full"));
            let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                copy(fixture.workspace(), "f", &mut Refuses(true))
            }));
            assert!(panics.is_err());
        }
    }
}

/// Names that get in each other's way.
fn name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "up"]);
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

#[derive(Debug, Clone)]
enum Made {
    File(String),
    Directory(String),
    Link(String, &'static str),
}

fn made() -> impl Strategy<Value = Made> {
    let targets = vec!["..", ".", "a", "/workspace", "/tmp", "../../..", "/nowhere"];
    prop_oneof![
        name().prop_map(Made::File),
        name().prop_map(Made::Directory),
        (name(), prop::sample::select(targets)).prop_map(|(name, target)| Made::Link(name, target)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever an archive has, nothing gets out of the slot, no name of ours is left, and what is
    /// put into a new directory is whole or not there.
    #[test]
    fn whatever_is_unpacked_stays_inside(all in prop::collection::vec(made(), 0..12), is_new: bool) {
        let fixture = fixture_in_memory();
        let outside = fixture.outer.path().join("outside");
        fs::write(&outside, "secret").unwrap();
        let names: Vec<_> = all.iter().map(|made| match made {
            Made::File(name) => name.clone(),
            Made::Directory(name) => format!("{name}/"),
            Made::Link(name, target) => format!("{name} -> {target}"),
        }).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let put = fixture.put_tar(if is_new { "new" } else { "." }, &archive_of(&names));
        let left = fixture.names_of_all();
        prop_assert!(left.iter().all(|name| !name.contains(".put-")), "{left:?}");
        if is_new {
            // A link may have led out of it, into the rest of the slot.
            prop_assert_eq!(put.is_ok(), left.contains(&"new/".to_owned()));
        }
        let beside: Vec<_> = fs::read_dir(fixture.outer.path()).unwrap().collect();
        prop_assert_eq!(beside.len(), 2);
        prop_assert_eq!(fs::read_to_string(&outside).unwrap(), "secret");
    }
}
