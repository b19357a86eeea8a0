//! Archives.

use super::*;

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
