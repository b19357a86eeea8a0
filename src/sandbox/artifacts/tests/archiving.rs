//! Archives.

use std::panic::AssertUnwindSafe;

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
fn holes_are_neither_read_nor_written_and_the_file_is_the_same() {
    let fixture = fixture();
    let long = format!("{}/sparse", "n".repeat(120));
    fixture.write(&long, "");
    // In more pieces than a header has room for, with a hole at the end.
    let (piece, distance, count) = (8192_u64, 1 << 20, 30);
    let size = 6 << 30;
    let file = fs::File::options().write(true).open(fixture.at(&long)).unwrap();
    for number in 0..count {
        let data = vec![number as u8 + 1; piece as usize];
        std::os::unix::fs::FileExt::write_all_at(&file, &data, (number + 1) * distance).unwrap();
    }
    file.set_len(size).unwrap();
    fixture.write("all holes", "");
    let holes = fs::File::options().write(true).open(fixture.at("all holes")).unwrap();
    holes.set_len(1 << 40).unwrap();
    let (bytes, summary) = fixture.archive(".", 100);
    assert!(summary.bytes < 100_000 && summary.entry_count == 3, "{summary:?}");

    let unpacked = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar")
        .args(["-xzf", "-", "-C"])
        .arg(unpacked.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    Write::write_all(&mut tar.stdin.take().unwrap(), &bytes).unwrap();
    assert!(tar.wait().unwrap().success());
    let got = fs::File::open(unpacked.path().join(&long)).unwrap();
    assert_eq!(got.metadata().unwrap().len(), size);
    let mut read = vec![0; 40 << 20];
    std::os::unix::fs::FileExt::read_exact_at(&got, &mut read, 0).unwrap();
    for (at, byte) in read.iter().enumerate() {
        let (at, byte) = (at as u64, u64::from(*byte));
        let number = at / distance;
        let is_data = (1..=count).contains(&number) && at % distance < piece;
        assert_eq!(byte, if is_data { number } else { 0 }, "{at}");
    }
    let holes = fs::metadata(unpacked.path().join("all holes")).unwrap();
    assert_eq!((holes.len(), holes.blocks()), (1 << 40, 0));
}

#[test]
fn an_archive_of_too_much_data_is_refused_however_small_it_would_be() {
    let fixture = fixture();
    // Zeros that are written, and as many that would be too many.
    let block = vec![0; 1 << 20];
    let mut file = fs::File::create(fixture.at("zeros")).unwrap();
    for _ in 0..64 {
        Write::write_all(&mut file, &block).unwrap();
    }
    for number in 0..16 {
        fs::hard_link(fixture.at("zeros"), fixture.at(&format!("zeros-{number}"))).unwrap();
    }
    let result = fixture.try_archive(".", MAX_ARTIFACT_BYTES, 100);
    assert!(
        matches!(result, Err(ArtifactError::TooLarge { bytes, max })
            if max == 1 << 30 && bytes == 17 << 26),
        "{result:?}"
    );
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
    // No time at all.
    let request = ArchiveArtifacts { max_bytes: u64::MAX, ..ArchiveArtifacts::default() };
    let time = Duration::ZERO;
    let result =
        archive::archive_within(fixture.workspace().into(), &request, &mut io::sink(), time);
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
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut broken = Broken { writes: 0, panics: true };
        let _ = archive(fixture.workspace(), &request, &mut broken);
    }));
    assert!(panicked.is_err());
}
