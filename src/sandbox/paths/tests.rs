//! Paths that lead in, out and around.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

struct Fixture {
    outer: tempfile::TempDir,
    roots: [Root; 3],
}

/// A workspace `ws`, and its `tmp` and `home`, beside a directory `secret` that nothing in them
/// may reach.
fn fixture() -> Fixture {
    let outer = tempfile::tempdir().unwrap();
    fs::create_dir_all(outer.path().join("ws/a/b")).unwrap();
    fs::write(outer.path().join("ws/a/f"), "inside").unwrap();
    fs::create_dir(outer.path().join("secret")).unwrap();
    fs::write(outer.path().join("secret/f"), "secret").unwrap();
    for name in ["tmp", "home"] {
        fs::create_dir(outer.path().join(name)).unwrap();
        fs::write(outer.path().join(name).join("f"), name).unwrap();
    }
    let roots = ["ws", "tmp", "home"].map(|name| Root::open(&outer.path().join(name)).unwrap());
    Fixture { outer, roots }
}

impl Fixture {
    fn link(&self, target: impl AsRef<Path>, name: &str) {
        symlink(target, self.outer.path().join("ws").join(name)).unwrap();
    }

    /// Where `given` leads, and whether something is there.
    fn path(&self, given: &str) -> Result<(String, bool), PathError> {
        self.path_in(given, &|| Ok(None))
    }

    /// The same in a machine.
    fn path_in(&self, given: &str, find_root: FindRoot<'_>) -> Result<(String, bool), PathError> {
        let [workspace, temporary, home] = &self.roots;
        let alias = self.outer.path().join("home");
        let mount = |place, root| Mount { place: Path::new(place), alias: None, root };
        let home = Mount { alias: Some(&alias), ..mount("/home/me", home) };
        let view = View::new(
            vec![mount(MOUNT_POINT, workspace), mount(TEMPORARY, temporary), home],
            Path::new(MOUNT_POINT),
            find_root,
        );
        let place = view.resolve(given)?;
        let there = place.rest().is_empty() || place.rest().len() == 1 && place.found.is_some();
        Ok((place.sandbox_path(), there))
    }
}

#[test]
fn a_path_means_what_it_means_in_the_sandbox() {
    let fixture = fixture();
    for given in [
        "a/f",
        "/workspace/a/f",
        "//workspace//a/./f",
        "./a/f",
        "a/b/../f",
        "a/f/",
        "nope/../a/f",
        "a/f/x/../../f",
    ] {
        assert_eq!(fixture.path(given), Ok(("/workspace/a/f".into(), true)), "{given}");
    }
    for given in ["", ".", "/workspace", "/workspace/", "a/..", "a/b/../.."] {
        assert_eq!(fixture.path(given), Ok(("/workspace".into(), true)), "{given}");
    }
    assert_eq!(fixture.path("x/y"), Ok(("/workspace/x/y".into(), false)));
    assert_eq!(fixture.path("a/f/x"), Ok(("/workspace/a/f/x".into(), false)));
}

#[test]
fn a_slots_other_directories_are_where_the_sandbox_has_them() {
    let fixture = fixture();
    fixture.link("/tmp", "link");
    fixture.link("/", "slash");
    symlink("/workspace/a", fixture.outer.path().join("tmp/back")).unwrap();
    for (given, leads, there) in [
        ("/tmp/f", "/tmp/f", true),
        ("/tmp/new/f", "/tmp/new/f", false),
        ("../tmp/f", "/tmp/f", true),
        ("a/../../tmp/./f", "/tmp/f", true),
        ("/../../tmp/f", "/tmp/f", true),
        ("link/f", "/tmp/f", true),
        ("link/back/f", "/workspace/a/f", true),
        ("link/back/../../tmp/f", "/tmp/f", true),
        ("slash/workspace/a/f", "/workspace/a/f", true),
        ("/home/me", "/home/me", true),
        ("/home/me/f", "/home/me/f", true),
        ("/home/../tmp/../home/me/f", "/home/me/f", true),
    ] {
        assert_eq!(fixture.path(given), Ok((leads.into(), there)), "{given}");
    }
    // As commands find it that are not in a sandbox.
    let host = fixture.outer.path().join("home/f");
    let found = fixture.path(host.to_str().unwrap());
    assert_eq!(found, Ok(("/home/me/f".into(), true)));
}

#[test]
fn paths_that_lead_out_are_refused() {
    let fixture = fixture();
    for given in [
        "..",
        "../secret/f",
        "a/../../secret/f",
        "/",
        "/etc/passwd",
        "/workspace/../secret/f",
        "/workspaces/a",
        "/home",
        "/home/you/f",
        "/home/me/../you",
        "/tmp/..",
        "/workspace\0",
        "a\0b",
        "nope/../../secret/f",
        "/..",
        "a/f/../../../x",
    ] {
        assert_eq!(fixture.path(given), Err(PathError::Outside), "{given}");
    }
}

#[test]
fn symlinks_are_followed_inside_and_refused_outside() {
    let fixture = fixture();
    fixture.link("a/f", "relative");
    fixture.link("/workspace/a/f", "absolute");
    fixture.link("../b/../f", "a/b/up");
    fixture.link("/workspace/a", "dir");
    fixture.link("new/file", "dangling");
    for given in ["relative", "absolute", "a/b/up", "dir/f", "dir/b/../f", "dir/../relative"] {
        assert_eq!(fixture.path(given), Ok(("/workspace/a/f".into(), true)), "{given}");
    }
    assert_eq!(fixture.path("dangling"), Ok(("/workspace/new/file".into(), false)));

    fixture.link("/etc/passwd", "etc");
    fixture.link("../secret", "up");
    fixture.link("../../secret/f", "a/up");
    fixture.link("loop", "loop");
    fixture.link("/", "slash");
    fixture.link("../home/you", "home");
    for given in ["etc", "up/f", "a/up", "loop", "loop/x", "slash", "slash/etc", "home/f"] {
        assert_eq!(fixture.path(given), Err(PathError::Outside), "{given}");
    }
}

#[test]
fn forty_symlinks_are_followed_and_not_one_more() {
    let fixture = fixture();
    fixture.link("a/f", "l1");
    for n in 2..=41 {
        fixture.link(format!("l{}", n - 1), &format!("l{n}"));
    }
    assert_eq!(fixture.path("l40"), Ok(("/workspace/a/f".into(), true)));
    assert_eq!(fixture.path("l41"), Err(PathError::Outside));
}

#[test]
fn paths_that_are_too_long_end() {
    let fixture = fixture();
    let too_long = "a".repeat(256);
    assert_eq!(fixture.path(&too_long), Err(PathError::Os(Errno::NAMETOOLONG)));
    assert_eq!(fixture.path(&"a/".repeat(3_000)), Err(PathError::Os(Errno::NAMETOOLONG)));
    // Each of forty links doubles the work that the next one makes.
    for n in 0..40 {
        fixture.link(format!("x{}/../", n + 1).repeat(400) + "a", &format!("x{n}"));
    }
    fixture.link("a", "x40");
    assert_eq!(fixture.path("x0"), Err(PathError::Outside));
}

#[test]
fn a_root_that_is_a_symlink_is_refused() {
    let fixture = fixture();
    fixture.link("a", "dir");
    assert!(Root::open(&fixture.outer.path().join("ws/dir")).is_err());
}

/// A root directory with what is around the slot's directories: `usr/lib/f`, links to it and to the
/// slot's `/tmp`, and what the kernel has.
fn machine() -> tempfile::TempDir {
    let machine = tempfile::tempdir().unwrap();
    let at = |name: &str| machine.path().join(name);
    for dir in ["usr/lib", "proc/self", "dev", "sys", "home", "var", "workspace", "tmp"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for file in ["usr/lib/f", "proc/self/environ", "home/f", "workspace/hidden"] {
        fs::write(at(file), "of the machine").unwrap();
    }
    symlink("usr/lib", at("lib")).unwrap();
    symlink("../tmp", at("var/tmp")).unwrap();
    symlink("/proc/self", at("var/self")).unwrap();
    symlink("../../../../../..", at("var/up")).unwrap();
    machine
}

#[test]
fn what_is_in_none_of_a_slots_directories_is_looked_for_in_its_machine() {
    let (fixture, machine) = (fixture(), machine());
    fixture.link("/usr/lib", "out");
    fixture.link("../lib/f", "relative");
    symlink(fixture.outer.path(), machine.path().join("host")).unwrap();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let find_root = || {
        asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Some(Root::open(machine.path()).unwrap()))
    };
    let path = |given: &str| fixture.path_in(given, &find_root);
    for (given, leads, there) in [
        ("/usr/lib/f", "/usr/lib/f", true),
        ("/lib/f", "/usr/lib/f", true),
        ("out/f", "/usr/lib/f", true),
        ("relative", "/usr/lib/f", true),
        ("../../usr/lib/../lib/f", "/usr/lib/f", true),
        ("/usr/new/f", "/usr/new/f", false),
        ("/home", "/home", true),
        ("/home/f", "/home/f", true),
        ("/", "/", true),
        ("..", "/", true),
        // A slot's own directories are what its commands see, however the way goes.
        ("/var/tmp/f", "/tmp/f", true),
        ("/var/up/workspace/a/f", "/workspace/a/f", true),
        ("/home/f/../me/f", "/home/me/f", false),
        ("/usr/../home/me/f", "/home/me/f", true),
        ("/workspace/hidden", "/workspace/hidden", false),
        // What leads to a path of the host is a path of the machine.
        ("/host/secret/f", &*fixture.outer.path().join("secret/f").to_string_lossy(), false),
    ] {
        assert_eq!(path(given), Ok((leads.into(), there)), "{given}");
    }
    for (given, kernels) in [
        ("/proc/self/environ", "proc"),
        ("/var/self/environ", "proc"),
        ("/dev/null", "dev"),
        ("/sys", "sys"),
        ("../usr/../sys/x", "sys"),
    ] {
        assert_eq!(path(given), Err(PathError::Kernel(kernels)), "{given}");
    }
    // Only where it is needed.
    let before = asked.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(path("a/f"), Ok(("/workspace/a/f".into(), true)));
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), before);
    let failing = || Err("why".to_owned());
    assert_eq!(fixture.path_in("/usr", &failing), Err(PathError::NoMachine("why".into())));
}

#[test]
fn a_machine_may_have_no_directories_of_the_slots_and_another_to_begin_in() {
    let machine = machine();
    let find_root = || Ok(Some(Root::open(machine.path()).unwrap()));
    let view = View::new(Vec::new(), Path::new("/usr"), &find_root);
    for (given, path, absolute) in [
        ("lib/f", "lib/f", "/usr/lib/f"),
        (".", "", "/usr"),
        ("../home/f", "/home/f", "/home/f"),
        ("/tmp", "/tmp", "/tmp"),
    ] {
        let place = view.resolve(given).unwrap();
        assert_eq!((&*place.path(), &*place.absolute()), (Path::new(path), Path::new(absolute)));
    }
}
