use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tar::{EntryType, Header};

use super::*;

mod property;

/// A tar that says whatever it is told to.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn add(mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Self {
        self.push(kind, name.as_bytes(), link.as_bytes(), data, |_| {});
        self
    }

    fn push(
        &mut self,
        kind: EntryType,
        name: &[u8],
        link: &[u8],
        data: &[u8],
        change: fn(&mut Header),
    ) {
        for (kind, long) in [(EntryType::GNULongName, name), (EntryType::GNULongLink, link)] {
            if long.len() > 100 {
                self.push(kind, b"././@LongLink", b"", &[long, b"\0"].concat(), |_| {});
            }
        }
        let mut header = Header::new_gnu();
        let field = header.as_old_mut();
        let cut = |field: &mut [u8; 100], text: &[u8]| {
            field[..text.len().min(100)].copy_from_slice(&text[..text.len().min(100)]);
        };
        cut(&mut field.name, name);
        cut(&mut field.linkname, link);
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.raw(header.as_bytes());
        self.raw(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn with(mut self, kind: EntryType, name: &str, data: &[u8], change: fn(&mut Header)) -> Self {
        self.push(kind, name.as_bytes(), b"", data, change);
        self
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.push(EntryType::XHeader, b"PaxHeaders/x", b"", &data, |_| {});
        self
    }

    fn dir(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, "", b"")
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.add(EntryType::Regular, name, "", data.as_bytes())
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, name, target, b"")
    }

    fn hard(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Link, name, target, b"")
    }
}

/// Layers that are unpacked above each other, beside a secret that nothing may reach.
struct Fixture {
    outer: tempfile::TempDir,
    limits: ImageLimits,
    layers: usize,
}

impl Fixture {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("secret")).unwrap();
        fs::write(outer.path().join("secret/f"), "secret").unwrap();
        Self { outer, limits: ImageLimits::default(), layers: 0 }
    }

    fn path(&self, layer: usize) -> PathBuf {
        self.outer.path().join(format!("layer{layer}"))
    }

    fn unpack(&mut self, tar: &Tar) -> Result<Unpacked, LayerError> {
        let path = self.path(self.layers);
        fs::create_dir(&path).unwrap();
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).unwrap()
        };
        let below: Vec<_> = (0..self.layers).map(|layer| self.path(layer)).collect();
        self.layers += 1;
        let ids = match rustix::process::geteuid().is_root() {
            true => StoredIds::Kept,
            false => StoredIds::One,
        };
        let root = open(&path);
        let (limits, interrupt) = (&self.limits, &Interrupt::new());
        let place = Place { root: root.as_fd(), below: &below, ids, limits, interrupt };
        unpack(&tar.0[..], &place)
    }

    /// What is in the last layer.
    fn listing(&self) -> String {
        listing(&self.path(self.layers - 1))
    }
}

/// All that is below a directory, a line each.
fn listing(root: &Path) -> String {
    fn walk(dir: &Path, root: &Path, lines: &mut String) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let about = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().as_os_str().as_encoded_bytes().to_vec();
            let (name, kind) = (name.escape_ascii(), about.file_type());
            if kind.is_dir() {
                let mut value = [0; 8];
                let opaque = rustix::fs::getxattr(&path, "user.overlay.opaque", &mut value).is_ok();
                writeln!(lines, "{name}/{}", if opaque { " opaque" } else { "" }).unwrap();
                walk(&path, root, lines);
            } else if kind.is_symlink() {
                writeln!(lines, "{name} -> {}", fs::read_link(&path).unwrap().display()).unwrap();
            } else if kind.is_char_device() && about.rdev() == 0 {
                writeln!(lines, "{name} whiteout").unwrap();
            } else if kind.is_fifo() {
                writeln!(lines, "{name} fifo").unwrap();
            } else {
                writeln!(lines, "{name} {}", fs::read(&path).unwrap().escape_ascii()).unwrap();
            }
        }
    }
    let mut lines = String::new();
    walk(root, root, &mut lines);
    lines
}

fn said(result: Result<Unpacked, LayerError>) -> String {
    result.map_or_else(|error| error.to_string(), |unpacked| format!("{unpacked:?}"))
}

#[test]
fn what_a_layer_has_is_in_its_directory() {
    let mut fixture = Fixture::new();
    let long = "n".repeat(120);
    let tar = Tar::default()
        .dir("./")
        .dir("etc/")
        .with(EntryType::Regular, "etc/passwd", b"root", |header| header.set_mode(0o600))
        .with(EntryType::Regular, "bin", b"x", |header| {
            header.set_mode(0o4755);
            header.set_uid(7);
        })
        .link("sh", "/bin")
        .hard("bin2", "bin")
        .hard("sh2", "./sh")
        .file(&long, "long name")
        .add(EntryType::Symlink, "longlink", &long, b"")
        .add(EntryType::Fifo, "pipe", "", b"")
        .file("old/", "")
        .pax(&[("path", b"pax/\xff\n\x1b"), ("SCHILY.xattr.user.a", b"v\0w")])
        .file("x", "pax")
        .add(EntryType::XGlobalHeader, "g", "", b"9 path=a\n")
        .file("etc/passwd", "again");
    let unpacked = fixture.unpack(&tar).unwrap();
    assert_eq!((unpacked.entries, unpacked.left_out.len()), (13, 0), "{unpacked:?}");
    let listing = fixture.listing();
    let expected = format!(
        "bin x\nbin2 x\netc/\netc/passwd again\nlonglink -> {long}\n{long} long name\nold/\n\
         pax/\npax/\\xff\\n\\x1b pax\npipe fifo\nsh -> /bin\nsh2 -> /bin\n"
    );
    assert_eq!(listing, expected);
    let about = |name: &str| fixture.path(0).join(name).symlink_metadata().unwrap();
    let bin = about("bin");
    assert_eq!((bin.nlink(), bin.mode() & 0o7777, bin.mtime()), (2, 0o4755, 1_000_000_000));
    assert_eq!(about("sh").mtime(), 1_000_000_000);
    assert_eq!((about("etc").mode() & 0o7777, about("etc").mtime()), (0o755, 1_000_000_000));
    if rustix::process::geteuid().is_root() {
        assert_eq!((bin.uid(), about("sh").uid()), (7, 0));
    }
}

#[test]
fn nothing_gets_out_of_a_layers_directory() {
    let cases: [(&str, Tar, &str); 22] = [
        ("an absolute name", Tar::default().file("/secret/f", "evil"), "secret/\nsecret/f evil\n"),
        ("..", Tar::default().file("../secret/f", "evil"), "!leads out"),
        (".. in the middle", Tar::default().file("a/../../secret/f", "evil"), "!leads out"),
        (".. at the end", Tar::default().dir("a/.."), "!leads out"),
        (
            "through a link",
            Tar::default().link("l", "../secret").file("l/f", "evil"),
            "l -> ../secret\nsecret/\nsecret/f evil\n",
        ),
        (
            "through an absolute link",
            Tar::default().link("l", "/etc").dir("l/x"),
            "etc/\netc/x/\nl -> /etc\n",
        ),
        ("over a link", Tar::default().link("f", "../secret/f").file("f", "mine"), "f mine\n"),
        (
            "a directory over a link",
            Tar::default().link("d", "../secret").dir("d").file("d/f", "mine"),
            "d/ opaque\nd/f mine\n",
        ),
        ("a link in a circle", Tar::default().link("l", "l").file("l/f", "x"), "!no end"),
        (
            "links in a circle",
            Tar::default().link("a", "b/c").link("b", "a").file("a/f", "x"),
            "!no end",
        ),
        ("a hard link out", Tar::default().hard("h", "../secret/f"), "!leads out"),
        (
            "a hard link through a link",
            Tar::default().link("l", "../secret").hard("h", "l/f"),
            "!does not have before it",
        ),
        ("an absolute hard link", Tar::default().hard("h", "/secret/f"), "!does not have"),
        (
            "a hard link to a link, written through",
            Tar::default().link("l", "../secret/f").hard("h", "l").file("h", "mine"),
            "h mine\nl -> ../secret/f\n",
        ),
        ("a hard link to a directory", Tar::default().dir("d").hard("h", "d"), "!to a directory"),
        ("a hard link to itself", Tar::default().file("h", "x").hard("h", "h"), "h x\n"),
        ("a hard link of the root", Tar::default().hard("h", "."), "!the root"),
        ("below a file", Tar::default().file("f", "x").file("f/g", "x"), "!no directory"),
        ("the root is a file", Tar::default().file(".", "x"), "!no directory"),
        ("the root is a link", Tar::default().link("./", "/"), "!no directory"),
        ("whiteouts lead nowhere", Tar::default().file(".wh...", ""), "!whiteout of nothing"),
        (
            "a whiteout through a link",
            Tar::default().link("l", "../secret").file("l/.wh.f", ""),
            "l -> ../secret\n",
        ),
    ];
    for (name, tar, expected) in cases {
        let mut fixture = Fixture::new();
        let result = fixture.unpack(&tar);
        match expected.strip_prefix('!') {
            Some(why) => assert!(said(result).contains(why), "{name}"),
            None => {
                assert!(result.is_ok(), "{name}: {}", said(result));
                assert_eq!(fixture.listing(), expected, "{name}");
            }
        }
        let secret = listing(&fixture.outer.path().join("secret"));
        assert_eq!(secret, "f secret\n", "{name}");
    }
}

#[test]
fn what_no_machine_may_have_is_left_out_and_said() {
    let mut fixture = Fixture::new();
    let tar = Tar::default()
        .add(EntryType::Block, "dev/sda", "", b"")
        .add(EntryType::Char, "whiteout", "", b"")
        .pax(&[
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.security.selinux", b"x"),
        ])
        .dir("d")
        .with(EntryType::Regular, "f", b"", |header| header.set_uid(1_000_000));
    let unpacked = fixture.unpack(&tar).unwrap();
    assert_eq!(fixture.listing(), "d/\nf \n");
    let lines = unpacked.left_out.join("\n");
    for part in [
        "the device \"dev/sda\"",
        "\"whiteout\"",
        "user.overlay.opaque",
        "trusted.overlay",
        "security.selinux",
        "the id 1000000 of \"f\", which is 65534 now",
    ] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
}

#[test]
fn capabilities_are_kept_where_they_can_be() {
    let mut fixture = Fixture::new();
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar =
        Tar::default().pax(&[("SCHILY.xattr.security.capability", capability)]).file("ping", "x");
    let unpacked = fixture.unpack(&tar).unwrap();
    let mut value = [0; 64];
    let got = rustix::fs::getxattr(fixture.path(0).join("ping"), "security.capability", &mut value);
    match rustix::process::geteuid().is_root() {
        true => assert_eq!(&value[..got.unwrap()], capability),
        false => assert!(unpacked.left_out[0].contains("security.capability")),
    }
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_of_their_own_layer() {
    let mut fixture = Fixture::new();
    let base = Tar::default()
        .dir("d")
        .file("d/a", "1")
        .file("d/b", "1")
        .file("f", "1")
        .dir("e")
        .file("e/x", "1")
        .link("l", "d");
    assert!(!fixture.unpack(&base).unwrap().depends_on_below);
    let tar = Tar::default()
        .dir("d")
        .file("d/.wh.a", "")
        .file("d/.wh.nothing", "")
        .file(".wh.f", "")
        // Of its own: before and after.
        .file("d/b", "2")
        .file("d/.wh.b", "")
        .file(".wh.e", "")
        .dir("e")
        .file("e/y", "2")
        .file(".wh..wh.aufs", "")
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", "")
        .hard(".wh.l", ".wh..wh.aufs");
    assert!(fixture.unpack(&tar).unwrap().depends_on_below);
    let expected = "d/\nd/a whiteout\nd/b 2\ne/ opaque\ne/y 2\nf whiteout\nl whiteout\n";
    assert_eq!(fixture.listing(), expected);
    // A whiteout is replaced, and hides on.
    let tar = Tar::default().file(".wh.d", "").file("d/z", "3").file("d/.wh..wh..opq", "");
    fixture.unpack(&tar).unwrap();
    assert_eq!(fixture.listing(), "d/ opaque\nd/z 3\n");
    let unpacked = fixture.unpack(&Tar::default().file(".wh..wh..opq", "")).unwrap();
    assert!(unpacked.hides_all_below);
}

#[test]
fn directories_that_a_layer_leaves_out_are_those_below() {
    let mut fixture = Fixture::new();
    let base = Tar::default()
        .with(EntryType::Directory, "tmp", b"", |header| header.set_mode(0o1777))
        .dir("usr")
        .with(EntryType::Directory, "usr/lib", b"", |header| header.set_mode(0o750))
        .link("lib", "usr/lib");
    fixture.unpack(&base).unwrap();
    let tar = Tar::default().file("tmp/a", "1").file("lib/b/c", "2").file("new/d", "3");
    assert!(fixture.unpack(&tar).unwrap().depends_on_below);
    let expected = "new/\nnew/d 3\ntmp/\ntmp/a 1\nusr/\nusr/lib/\nusr/lib/b/\nusr/lib/b/c 2\n";
    assert_eq!(fixture.listing(), expected);
    let mode =
        |name: &str| fixture.path(1).join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("tmp"), mode("usr/lib"), mode("new")), (0o1777, 0o750, 0o755));
    // Where it is hidden, nothing is taken over.
    fixture.unpack(&Tar::default().file(".wh.lib", "").file("lib/x", "4")).unwrap();
    assert_eq!(fixture.listing(), "lib/ opaque\nlib/x 4\n");
    // Nor are links followed, or whiteouts made, for what is below a root that hides all of it.
    let tar = Tar::default().file(".wh..wh..opq", "").file("lib/y", "5").file("tmp/a", "5");
    let unpacked = fixture.unpack(&tar.file(".wh.usr", "").file("b/.wh..wh..opq", "")).unwrap();
    assert!(unpacked.hides_all_below);
    assert_eq!(fixture.listing(), "lib/\nlib/y 5\ntmp/\ntmp/a 5\n");
}

#[test]
fn sparse_files_have_holes() {
    let mut fixture = Fixture::new();
    let old = |header: &mut Header| {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.sparse[0].offset.copy_from_slice(b"00000010000\0");
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000003\0");
        gnu.realsize.copy_from_slice(b"00000100000\0");
    };
    let mut map = b"1\n4096\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"xyz");
    let version = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"new"),
        ("GNU.sparse.realsize", b"32768"),
    ];
    let tar = Tar::default()
        .with(EntryType::GNUSparse, "old", b"xyz", old)
        .pax(&version)
        .add(EntryType::Regular, "GNUSparseFile.1/new", "", &map)
        .pax(&[
            ("GNU.sparse.map", b"4096,3"),
            ("GNU.sparse.size", b"32768"),
            ("GNU.sparse.name", b"middle"),
        ])
        .file("x", "xyz");
    fixture.unpack(&tar).unwrap();
    let mut expected = vec![0; 32_768];
    expected[4096..4099].copy_from_slice(b"xyz");
    for name in ["old", "new", "middle"] {
        let path = fixture.path(0).join(name);
        assert!(fs::read(&path).unwrap() == expected, "{name}");
        assert!(path.metadata().unwrap().blocks() * 512 < 32_768, "{name}");
    }
    let lying = Tar::default().pax(&[("GNU.sparse.map", b"0,3,1,3")]).file("x", "xyzxyz");
    assert!(said(fixture.unpack(&lying)).contains("map of a sparse file"));
}

#[test]
fn damaged_archives_are_refused() {
    let tar = Tar::default().file("a", &"x".repeat(1000));
    for (cut, why) in [(200, "in the middle"), (600, "in the middle"), (1500, "in the middle")] {
        let cut = Tar(tar.0[..cut].to_vec());
        assert!(said(Fixture::new().unpack(&cut)).contains(why));
    }
    // Without its last padding, and without the blocks that end it.
    assert!(Fixture::new().unpack(&Tar(tar.0[..1512].to_vec())).is_ok());
    let mut damaged = tar.0.clone();
    damaged[0] ^= 1;
    assert!(said(Fixture::new().unpack(&Tar(damaged))).contains("no tar archive"));
    for (tar, why) in [
        (Tar(b"PK\x03\x04".repeat(1000)), "no tar archive"),
        (Tar::default().with(EntryType::Regular, "f", b"", |h| h.set_size(u64::MAX)), "size"),
        (Tar::default().with(EntryType::Regular, "f", b"", |h| h.set_size(1 << 50)), "are allowed"),
        (Tar::default().with(EntryType::new(b'M'), "f", b"", |_| {}), "of a kind"),
        (Tar::default().with(EntryType::XHeader, "f", b"", |h| h.set_size(1 << 40)), "extension"),
        (Tar::default().pax(&[("path", b"a")]), "in the middle"),
        (Tar::default().pax(&[("size", b"-1")]).file("f", ""), "pax"),
        (Tar::default().file(&"n/".repeat(2500), ""), "too long"),
        (Tar::default().file(&"n".repeat(300), ""), "too long"),
        (Tar::default().link("l", ""), "target"),
        (Tar::default().link("l", &"x".repeat(5000)), "target"),
        (Tar::default().dir(".wh.x"), "no file"),
        (Tar::default().file(".wh.x/y", ""), "has the name of a whiteout"),
    ] {
        let said = said(Fixture::new().unpack(&tar));
        assert!(said.contains(why), "{why}: {said}");
    }
}

#[test]
fn control_bytes_are_names_and_escaped_in_messages() {
    let mut fixture = Fixture::new();
    fixture.unpack(&Tar::default().file("a\n\u{1b}[2J", "x")).unwrap();
    assert_eq!(fixture.listing(), "a\\n\\x1b[2J x\n");
    let said = said(fixture.unpack(&Tar::default().file("../\n\u{1b}[2J", "x")));
    assert_eq!(said, "\"../\\n\\x1b[2J\" has a name that leads out of the image");
}

#[test]
fn what_a_layer_may_have_has_limits() {
    let many = (0..20).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), ""));
    let deep = (0..20).fold(Tar::default(), |tar, n| tar.dir(&format!("d{n}")));
    for (limits, tar, why) in [
        (ImageLimits { entries: 10, ..ImageLimits::default() }, many, "more than 10 entries"),
        (ImageLimits { directory_names: 1000, ..ImageLimits::default() }, deep, "names"),
        (
            ImageLimits { file_bytes: 3, ..ImageLimits::default() },
            Tar::default().file("f", "1234"),
            "has 4 bytes",
        ),
    ] {
        let mut fixture = Fixture { limits, ..Fixture::new() };
        let result = fixture.unpack(&tar);
        assert!(matches!(result, Err(LayerError::TooLarge { .. })), "{}", said(result));
        let said = said(Fixture { limits: fixture.limits, ..Fixture::new() }.unpack(&tar));
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn what_a_later_entry_replaces_takes_its_links_along_and_no_more() {
    let mut fixture = Fixture::new();
    let tar = Tar::default()
        .file("a", "1")
        .hard("b", "a")
        .file("a", "2")
        .dir("d")
        .file("d/x", "3")
        .hard("e", "d/x")
        .file("d", "now a file")
        .file("g", "x")
        .dir("g")
        .file("g/h", "4")
        .hard("g", "g/h");
    let result = fixture.unpack(&tar);
    assert!(said(result).contains("does not have before it"));
    let tar = Tar(tar.0[..tar.0.len() - 512].to_vec());
    fixture.unpack(&tar).unwrap();
    assert_eq!(fixture.listing(), "a 2\nb 1\nd now a file\ne 3\ng/ opaque\ng/h 4\n");
}

#[test]
fn an_interrupt_ends_it() {
    let outer = tempfile::tempdir().unwrap();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(outer.path(), flags, Mode::empty()).unwrap();
    let (limits, interrupt) = (&ImageLimits::default(), &Interrupt::new());
    interrupt.interrupt();
    let ids = StoredIds::One;
    let place = Place { root: root.as_fd(), below: &[], ids, limits, interrupt };
    let tar = Tar::default().file("a", "");
    assert!(matches!(unpack(&tar.0[..], &place), Err(LayerError::Interrupted)));
}
