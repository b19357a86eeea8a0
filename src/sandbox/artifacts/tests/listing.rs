//! Listings.

use super::*;

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
    let dir = rustix::fs::open(fixture.at("d"), OFlags::PATH, Mode::empty()).unwrap();
    for n in 0..100_000 {
        let flags = OFlags::WRONLY | OFlags::CREATE;
        rustix::fs::openat(&dir, format!("{n:05}"), flags, Mode::RUSR).unwrap();
    }
    fixture.write("e", "");
    let first: Vec<_> = (0..10).map(|n| format!("d/{n:05}")).collect();
    for recursive in [false, true] {
        assert_eq!(fixture.list("d", recursive, 10), (first.join(" "), true));
    }
    assert_eq!(fixture.names("d", 11), (format!("d/ {}", first.join(" ")), true));
    let dir = Reach::from(fixture.workspace()).view().resolve("d").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut looked = 0;
    let first = first_entries(dir.dir(), 3, deadline, |_, _| {
        looked += 1;
        Some((false, ()))
    });
    let names: Vec<_> = first.unwrap().entries.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["00000", "00001", "00002"]);
    assert!(looked < 1_000, "{looked} of 100,000 were looked at");
    let first = first_entries(dir.dir(), 3, Instant::now(), |_, _| Some((false, ()))).unwrap();
    assert!(first.late && first.entries.is_empty());
}

#[test]
fn ten_thousand_levels_are_listed_and_archived_as_far_as_they_may_be() {
    let fixture = fixture_in_memory();
    let mut dir = rustix::fs::open(fixture.at(""), OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..10_000 {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "d", OFlags::PATH, Mode::empty()).unwrap();
    }
    let flags = OFlags::WRONLY | OFlags::CREATE;
    rustix::fs::openat(&dir, "file", flags, Mode::RUSR).unwrap();
    let (list, truncated) = fixture.list(".", true, 5_000);
    assert_eq!((list.split(' ').count(), truncated), (MAX_DEPTH + 1, true));
    assert!(fixture.names(".", 5_000).1);
    // As deep as a path can name, and deeper.
    let deepest = vec!["d"; 2_047].join("/");
    assert_eq!(fixture.list(&deepest, false, 10).0, format!("{deepest}/d/"));
    assert!(fixture.names(&deepest, 5_000).1);
    assert_error!(fixture.read(&deepest), ArtifactError::NotAFile(_));
    assert_error!(fixture.try_list(&format!("{deepest}/d/d")), ArtifactError::Io(..));
    // Back and forth through it, which is a way of thousands of steps, but not of any number.
    let there_and_back = |levels| format!("{}{}", "d/".repeat(levels), "../".repeat(levels));
    assert_eq!(fixture.list(&there_and_back(100), false, 10), ("d/".into(), false));
    assert_error!(fixture.try_list(&there_and_back(800)), ArtifactError::Outside);
    let save = fixture.outer.path().join("saved");
    assert!(fixture.workspace().save_to(&save).is_err(), "too deep to be saved as a whole");
    assert!(save.join("d/d/d").is_dir());
    fixture.workspace().clear().unwrap();
}

#[test]
fn names_that_are_not_unicode_are_shown_and_never_lost() {
    let fixture = fixture();
    let bad = OsStr::from_bytes(b"a\xff");
    fs::create_dir(fixture.workspace().path().join(bad)).unwrap();
    fs::write(fixture.workspace().path().join(bad).join("f"), "x").unwrap();
    symlink(bad, fixture.at("link")).unwrap();
    // Shown with U+FFFD, and reached by a symlink, or by an archive, which has the bytes.
    assert_eq!(fixture.list(".", true, 10), ("a\u{fffd}/ a\u{fffd}/ a\u{fffd}/f".into(), false));
    assert_eq!(fixture.read("link/f").unwrap().path, "a\u{fffd}/f");
    assert_error!(fixture.read("a\u{fffd}/f"), ArtifactError::NotFound(_));
    assert_eq!(fixture.names("link", 10), ("a\u{fffd}/ a\u{fffd}/f".into(), false));
    assert!(tar_lists(&fixture.archive(".", 10).0).contains("/f\n"));
    let save = fixture.outer.path().join("saved");
    fixture.workspace().save_to(&save).unwrap();
    assert_eq!(fs::read(save.join(bad).join("f")).unwrap(), b"x");
}
