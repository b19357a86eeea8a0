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
