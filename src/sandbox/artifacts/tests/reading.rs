//! Parts of files.

use super::*;

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
fn a_terabyte_of_nothing_is_read_in_parts_listed_and_hashed_no_longer_than_there_is_time() {
    let fixture = fixture();
    fixture.write("f", "x");
    let size = 1 << 40;
    fs::File::options().write(true).open(fixture.at("f")).unwrap().set_len(size).unwrap();
    let part = fixture.part("f", 0, 4);
    assert_eq!((part.content.as_slice(), part.truncated), (&b"x\0\0\0"[..], true));
    assert_eq!(part.file_size, size);
    let part = fixture.part("f", size - 2, 4);
    assert_eq!((part.content.as_slice(), part.truncated), (&b"\0\0"[..], false));
    let part = fixture.part("f", size / 2, u64::MAX);
    assert_eq!((part.content.len() as u64, part.truncated), (MAX_ARTIFACT_BYTES, true));
    assert_eq!(fixture.try_list(".").unwrap().entries[0].size, size);

    let all =
        ReadArtifact { max_bytes: 1, sha256: true, file_sha256: true, ..ReadArtifact::new("f") };
    let artifact =
        read::read_within(fixture.workspace().into(), &all, Duration::from_millis(20)).unwrap();
    assert!(artifact.sha256.is_some() && artifact.file_sha256.is_none());
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
