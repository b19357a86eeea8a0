use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::ImageErrorKind;
use super::super::testing::{Layout, configuration, gzip, layer, plain, saved, zstd};
use super::*;

struct Fixture {
    outer: tempfile::TempDir,
    store: ImageStore,
    interrupt: Interrupt,
}

impl Fixture {
    fn new() -> Self {
        Self::with(ImageLimits::default())
    }

    fn with(limits: ImageLimits) -> Self {
        let (outer, interrupt) = (tempfile::tempdir().unwrap(), Interrupt::new());
        let base = outer.path().join("data");
        let ids = StoredIds::for_data_dir(Some(&base));
        let store = ImageStore::open_with(Some(&base), ids, limits, &interrupt).unwrap();
        // No test asks a registry of the world.
        let store = store.with_config(ImagesConfig::default().with_pull(false));
        Self { outer, store, interrupt }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.outer.path().join(name)
    }

    /// The store as another process has it.
    fn other(&self) -> ImageStore {
        let base = self.path("data");
        let store = ImageStore::open(Some(&base), self.store.ids(), &self.interrupt).unwrap();
        store.with_config(ImagesConfig::default().with_pull(false))
    }

    fn parse(&self, text: &str) -> ImageSource {
        ImageSource::parse_in(text, self.outer.path()).unwrap()
    }

    fn get(&self, text: &str) -> Result<Arc<Image>, ImageError> {
        self.store.get(&self.parse(text), &self.interrupt, &mut |_| {})
    }

    /// Imports, and says of each layer whether it was there.
    fn import(&self, text: &str) -> (Result<StoredImage, ImageError>, Vec<bool>) {
        let mut there = Vec::new();
        let mut step = |step: &ImportStep| {
            if let ImportStep::Unpacked { was_there, .. } = step {
                there.push(*was_there);
            }
        };
        let image = self.store.import(&self.parse(text), &[], &self.interrupt, &mut step);
        (image, there)
    }

    /// All that is on the disk of entries and of what is left behind.
    fn entries(&self, shelf: &str) -> Vec<String> {
        let entries = fs::read_dir(self.store.path().join(shelf)).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn assert_empty(&self, of: &str) {
        assert_eq!(self.entries("layers"), [""; 0], "{of}");
        assert_eq!(self.entries("images"), [""; 0], "{of}");
    }
}

/// The files of an image's layers, the lowest first.
fn files(image: &Image) -> Vec<Vec<String>> {
    let of = |layer: &Arc<Layer>| {
        let mut names: Vec<_> = fs::read_dir(layer.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    image.layers().iter().map(of).collect()
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![layer(&[("a", "1"), ("d/", ""), ("d/x", "1")]), layer(&[("b", "2")])]
}

#[test]
fn an_image_is_the_same_wherever_it_comes_from() {
    let fixture = Fixture::new();
    let layers = two_layers();
    let archive = saved(&[("task:1", &layers)]);
    fs::write(fixture.path("plain.tar"), &archive).unwrap();
    fs::write(fixture.path("gzip.tar.gz"), gzip(&archive)).unwrap();
    fs::write(fixture.path("zstd.tar.zst"), zstd(&archive)).unwrap();
    for (name, pack) in [("oci", plain as fn(&[u8]) -> Vec<u8>), ("ogz", gzip), ("ozst", zstd)] {
        Layout::new(&fixture.path(name)).image(Some("latest"), &layers, pack, |_, _| {}).write();
    }
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", fixture.path("ogz")).unwrap();
    fs::write(fixture.path("oci.tar"), tar.into_inner().unwrap()).unwrap();
    let first = fixture.get("plain.tar").unwrap();
    assert_eq!(files(&first), [vec!["a", "d"], vec!["b"]]);
    assert_eq!(fs::read_to_string(first.layers()[0].path().join("d/x")).unwrap(), "1");
    let config = first.config();
    assert_eq!((&config.env[0][..], &config.user[..]), ("PATH=/image/bin", "me"));
    let digest = Digest::of(configuration(&layers).to_string().as_bytes());
    assert_eq!(first.digest(), Some(&digest));
    for name in [
        "gzip.tar.gz",
        "zstd.tar.zst",
        "oci",
        "ogz:latest",
        "oci:./ozst",
        "oci.tar",
        "task:1",
        "hub.example/library/task:1",
        &digest.to_string(),
        &digest.hex()[..12],
    ] {
        let image = fixture.get(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(Arc::ptr_eq(&image, &first), "{name}");
    }
    // Another process has them, too.
    let other =
        fixture.other().get(&fixture.parse("task:1"), &fixture.interrupt, &mut |_| {}).unwrap();
    assert_eq!(other.layers()[1].path(), first.layers()[1].path());
    assert_eq!(fixture.entries("images"), [digest.hex()]);
}

#[test]
fn the_store_is_for_its_user_alone() {
    let fixture = Fixture::new();
    fs::write(fixture.path("a.tar"), saved(&[("a:1", &two_layers())])).unwrap();
    let image = fixture.get("a.tar").unwrap();
    let owner = image.layers()[0].owner();
    assert_eq!(owner, rustix::process::geteuid().as_raw());
    for path in [fixture.store.path(), fixture.store.path().parent().unwrap()] {
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o700, "{}", path.display());
    }
    fs::set_permissions(fixture.store.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let base = fixture.path("data");
    let refused = ImageStore::open(Some(&base), fixture.store.ids(), &fixture.interrupt);
    assert!(refused.unwrap_err().to_string().contains("other users"));
}

#[test]
fn layers_are_shared_and_unpacked_once() {
    let fixture = Fixture::new();
    let base = two_layers();
    let more = [base.clone(), vec![layer(&[("c", "3")])]].concat();
    fs::write(fixture.path("a.tar"), saved(&[("a:1", &base)])).unwrap();
    fs::write(fixture.path("b.tar"), saved(&[("b:1", &more)])).unwrap();
    assert_eq!(fixture.import("a.tar").1, [false, false]);
    let (image, there) = fixture.import("b.tar");
    assert_eq!(there, [true, true, false]);
    assert_eq!(image.unwrap().names, ["b:1"]);
    // What is here is known without bringing anything.
    for (text, here) in [
        ("a:1", true),
        ("docker://b:1", true),
        ("b.tar", true),
        ("docker-archive:b.tar:b:1", false),
        ("c:1", false),
        ("docker://c:1", false),
        ("dir:/", true),
        ("dir:no", false),
    ] {
        assert_eq!(fixture.store.has(&fixture.parse(text)), here, "{text}");
    }
    // The same again reads nothing, and another file with the same image unpacks nothing.
    assert_eq!(fixture.import("b.tar").1, [false; 0]);
    fs::write(fixture.path("c.tar"), gzip(&saved(&[("c:1", &more)]))).unwrap();
    let (image, there) = fixture.import("c.tar");
    assert_eq!((there, &image.unwrap().names[..]), (vec![], &["b:1".into(), "c:1".into()][..]));
    // What the removal of one leaves to the other.
    let removed = fixture.store.remove("b:1", &fixture.interrupt).unwrap();
    assert_eq!((removed.images.len(), removed.layers), (1, 1));
    assert_eq!(fixture.entries("layers").len(), 2);
    assert!(fixture.get("a:1").is_ok());
    let error = fixture.get("c:1").unwrap_err();
    assert!(error.to_string().contains("skopeo copy docker://c:1 oci:DIR"), "{error}");
    assert_eq!(error.kind(), ImageErrorKind::Unavailable);
}

#[test]
fn a_layer_that_depends_on_those_below_has_its_own_place_above_others() {
    let fixture = Fixture::new();
    let upper = layer(&[("d/new", "x"), (".wh.a", "")]);
    let base = |mode: u32| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        tar.append_data(&mut header, "d/", &b""[..]).unwrap();
        tar.into_inner().unwrap()
    };
    for (name, mode) in [("one", 0o700), ("two", 0o1777)] {
        let layers = [base(mode), upper.clone()];
        Layout::new(&fixture.path(name)).image(None, &layers, gzip, |_, _| {}).write();
        let image = fixture.get(name).unwrap();
        let top = image.layers()[1].path();
        assert_eq!(top.join("d").metadata().unwrap().mode() & 0o7777, mode);
        // Nothing is below it there, so it would be listed.
        assert_eq!(files(&image)[1], ["d"]);
    }
    assert_eq!(fixture.entries("layers").len(), 4);
}

#[test]
fn layers_that_add_nothing_are_left_out_and_none_is_there_twice() {
    let fixture = Fixture::new();
    let (base, empty) = (two_layers(), layer(&[]));
    let root = layer(&[("./", "")]);
    let layers = [&base[0], &empty, &base[1], &base[0], &root, &empty].map(Clone::clone);
    Layout::new(&fixture.path("oci")).image(None, &layers, gzip, |_, _| {}).write();
    assert_eq!(files(&fixture.get("oci").unwrap()), [vec!["b"], vec!["a", "d"]]);
    // Of nothing but such ones, one stays.
    let layers = [empty.clone(), empty];
    Layout::new(&fixture.path("none")).image(None, &layers, gzip, |_, _| {}).write();
    assert_eq!(files(&fixture.get("none").unwrap()), [[""; 0]]);
    // One that hides all, of which an overlay could not be told.
    let layers = [base[0].clone(), layer(&[(".wh..wh..opq", ""), ("z", "")])];
    Layout::new(&fixture.path("opaque")).image(None, &layers, gzip, |_, _| {}).write();
    assert_eq!(files(&fixture.get("opaque").unwrap()), [["z"]]);
}

#[test]
fn an_image_may_have_127_layers_and_not_one_more() {
    let fixture = Fixture::new();
    let many: Vec<_> = (0..128).map(|n| layer(&[(&format!("f{n}"), "x")])).collect();
    Layout::new(&fixture.path("most")).image(None, &many[..127], plain, |_, _| {}).write();
    assert_eq!(fixture.get("most").unwrap().layers().len(), 127);
    Layout::new(&fixture.path("more")).image(None, &many, plain, |_, _| {}).write();
    let error = fixture.get("more").unwrap_err();
    assert!(error.to_string().contains("128 layers, and 127 are allowed"), "{error}");
    assert_eq!(error.kind(), ImageErrorKind::Unusable);
}

#[test]
fn what_lies_about_itself_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let layers = two_layers();
    type Change = fn(&mut Value, &mut Value);
    let cases: [(&str, Change, &str); 14] = [
        (
            "diff id",
            |c, _| c["rootfs"]["diff_ids"][1] = json!(format!("sha256:{:064}", 0)),
            "unpacked digest is",
        ),
        (
            "fewer layers",
            |c, _| drop(c["rootfs"]["diff_ids"].as_array_mut().unwrap().pop()),
            "configuration has 1 layers, and its manifest 2",
        ),
        ("size", |_, m| m["layers"][0]["size"] = json!(7), "and the manifest says 7"),
        (
            "a missing layer",
            |_, m| m["layers"][0]["digest"] = json!(format!("sha256:{:064}", 0)),
            "is not there",
        ),
        ("an algorithm", |_, m| m["layers"][0]["digest"] = json!("md5:00"), "sha256:… is"),
        (
            "a path",
            |_, m| m["layers"][0]["digest"] = json!("sha256:../../../etc/passwd"),
            "no digest",
        ),
        ("platform", |c, _| c["architecture"] = json!("s390x"), "is for linux/s390x"),
        ("windows", |c, _| c["os"] = json!("windows"), "is for windows/"),
        (
            "a foreign layer",
            |_, m| {
                m["layers"][0]["mediaType"] =
                    json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
            },
            "elsewhere",
        ),
        ("an artifact", |_, m| m["layers"][0]["mediaType"] = json!("text/plain"), "no files"),
        (
            "no layers",
            |c, m| {
                m["layers"] = json!([]);
                c["rootfs"]["diff_ids"] = json!([]);
            },
            "no layers",
        ),
        ("types", |c, _| c["rootfs"] = json!(3), "configuration cannot be read"),
        ("size below zero", |_, m| m["layers"][0]["size"] = json!(-1), "manifest cannot be read"),
        ("a manifest of nothing", |_, m| m["config"] = json!(false), "cannot be read"),
    ];
    for (name, change, why) in cases {
        let dir = fixture.path(&name.replace(' ', "-"));
        Layout::new(&dir).image(None, &layers, gzip, change).write();
        let error = fixture.get(dir.to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains(why), "{name}: {error}");
        assert_eq!(error.kind(), ImageErrorKind::Unusable, "{name}");
        assert_eq!(fixture.entries("images"), [""; 0], "{name}");
        fixture.store.prune(None, &fixture.interrupt).unwrap();
        fixture.assert_empty(name);
    }
    // Files that are changed behind the manifest's back.
    type Spoil = fn(&Path, &Value);
    let spoils: [(&str, Spoil, &str); 5] = [
        (
            "a layer is another",
            |dir, m| {
                let path = blob_path(dir, &m["layers"][1]);
                let mut bytes = fs::read(&path).unwrap();
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
                fs::write(&path, bytes).unwrap();
            },
            "in the layer sha256:",
        ),
        (
            "a layer is cut",
            |dir, m| {
                let path = blob_path(dir, &m["layers"][1]);
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
            },
            "and the manifest says",
        ),
        (
            "a config is another",
            |dir, m| {
                let path = blob_path(dir, &m["config"]);
                let text = fs::read_to_string(&path).unwrap().replace("\"me\"", "\"ro\"");
                fs::write(&path, text).unwrap();
            },
            "configuration is not sha256:",
        ),
        (
            "a layer is a fifo",
            |dir, m| {
                let path = blob_path(dir, &m["layers"][1]);
                fs::remove_file(&path).unwrap();
                let mode = rustix::fs::Mode::RUSR;
                rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
                    .unwrap();
            },
            "no regular file",
        ),
        (
            "the index is nothing",
            |dir, _| fs::write(dir.join("index.json"), "{").unwrap(),
            "index.json cannot be read",
        ),
    ];
    for (name, spoil, why) in spoils {
        let dir = fixture.path(&name.replace(' ', "-"));
        let layout = Layout::new(&dir).image(None, &layers, gzip, |_, _| {});
        let digest = layout.manifests()[0]["digest"].as_str().unwrap().to_owned();
        layout.write();
        let manifest = dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        let manifest = fs::read(manifest).unwrap();
        spoil(&dir, &serde_json::from_slice(&manifest).unwrap());
        let error = fixture.get(&format!("oci:{}", dir.display())).unwrap_err();
        assert!(error.to_string().contains(why), "{name}: {error}");
        fixture.store.prune(None, &fixture.interrupt).unwrap();
        fixture.assert_empty(name);
    }
}

fn blob_path(dir: &Path, described: &Value) -> PathBuf {
    let digest = described["digest"].as_str().unwrap();
    dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
}

#[test]
fn of_several_images_one_is_named() {
    let fixture = Fixture::new();
    let (one, two) = (two_layers(), vec![layer(&[("z", "9")])]);
    fs::write(fixture.path("a.tar"), saved(&[("one:1", &one), ("two:2", &two)])).unwrap();
    Layout::new(&fixture.path("oci"))
        .image(Some("one"), &one, gzip, |_, _| {})
        .image(Some("two"), &two, gzip, |_, _| {})
        .write();
    for source in ["a.tar", "oci"] {
        let error = fixture.get(source).unwrap_err();
        assert!(error.to_string().contains("several images; add one of one"), "{error}");
        let error = fixture.get(&format!("./{source}:three")).unwrap_err();
        assert!(error.to_string().contains("no image \"three\""), "{error}");
    }
    for source in ["a.tar:two:2", "oci:two"] {
        assert_eq!(files(&fixture.get(&format!("./{source}")).unwrap()), [["z"]]);
    }
    // A list of machines in the index, as registries have it.
    let dir = fixture.path("list");
    let layout = Layout::new(&dir).image(None, &two, gzip, |_, _| {});
    let mut ours = layout.manifests()[0].clone();
    let host = Platform::host();
    ours["platform"] = json!({"os": host.os, "architecture": host.architecture});
    let other = json!({"digest": format!("sha256:{:064}", 0), "size": 1,
        "platform": {"os": "linux", "architecture": "s390x"}});
    let list = json!({"schemaVersion": 2, "manifests": [other, ours]});
    let kind = "application/vnd.oci.image.index.v1+json";
    let list = layout.blob(kind, list.to_string().as_bytes());
    Layout::new(&dir).manifest(list).write();
    assert_eq!(files(&fixture.get("list").unwrap()), [["z"]]);
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    let fixture = Fixture::new();
    fs::write(fixture.path("text.tar"), "hello, this is no tar at all".repeat(100)).unwrap();
    fs::write(fixture.path("files.tar"), layer(&[("a", "b")])).unwrap();
    fs::write(fixture.path("empty.tar"), "").unwrap();
    fs::write(fixture.path("x.tar.bz2"), "BZh91AY&SY").unwrap();
    let archive = saved(&[("a:1", &two_layers())]);
    fs::write(fixture.path("cut.tar"), &archive[..archive.len() / 2]).unwrap();
    fs::write(fixture.path("cut.tar.gz"), &gzip(&archive)[..200]).unwrap();
    for (name, why) in [
        ("text.tar", "no tar archive"),
        ("files.tar", "neither index.json nor manifest.json"),
        ("empty.tar", "neither index.json nor manifest.json"),
        ("x.tar.bz2", "bzip2"),
        ("cut.tar", "in the middle"),
        ("cut.tar.gz", "in the middle"),
        ("docker-archive:/no/where.tar", "there is no /no/where.tar"),
        ("oci:/no/where", "there is no /no/where"),
        ("dir:/no/where", "there is no /no/where"),
        ("dir:/", "the host's own root"),
        ("dir:/etc/passwd", "no directory"),
    ] {
        let error = fixture.get(name).unwrap_err().to_string();
        assert!(error.contains(why) && error.lines().count() == 1, "{name}: {error}");
    }
    fixture.assert_empty("refused ones");
    let directory = fixture.get(&format!("dir:{}", fixture.outer.path().display())).unwrap();
    assert_eq!((directory.layers().len(), directory.digest()), (1, None));
}

#[test]
fn many_that_want_an_image_at_once_unpack_it_once() {
    let fixture = Fixture::new();
    let big = "x".repeat(300_000);
    let layers = [vec![layer(&[("big", &big)])], two_layers()].concat();
    fs::write(fixture.path("a.tar.gz"), gzip(&saved(&[("a:1", &layers)]))).unwrap();
    // As of processes of their own: they share nothing but the disk.
    let stores: Vec<_> = (0..8).map(|_| fixture.other()).collect();
    let (source, start) = (fixture.parse("a.tar.gz"), Barrier::new(stores.len()));
    let import = |store: &ImageStore| {
        let mut unpacked = 0;
        start.wait();
        let image = store.imported(&source, "a", &[], &fixture.interrupt, &mut |step| {
            unpacked += usize::from(matches!(step, ImportStep::Unpacked { was_there: false, .. }));
        });
        (image.unwrap(), unpacked)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = stores.iter().map(|store| scope.spawn(|| import(store))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results.iter().map(|(_, unpacked)| unpacked).sum::<usize>(), 3);
    assert!(results.iter().all(|(image, _)| files(image) == files(&results[0].0)));
    assert_eq!(fixture.entries("layers").len(), 3);
}

#[test]
fn what_is_in_use_stays_whoever_removes() {
    let fixture = Fixture::new();
    let base = two_layers();
    fs::write(fixture.path("a.tar"), saved(&[("a:1", &base)])).unwrap();
    fs::write(fixture.path("b.tar"), saved(&[("b:1", &[layer(&[("z", "")])])])).unwrap();
    let image = fixture.get("a.tar").unwrap();
    fixture.get("b.tar").unwrap();
    let other = fixture.other();
    let error = other.remove("a:1", &fixture.interrupt).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::InUse);
    let in_use = |store: &ImageStore| {
        let list = store.list(&fixture.interrupt).unwrap();
        list.iter().map(|image| (image.names[0].clone(), image.in_use)).collect::<Vec<_>>()
    };
    // A program that is being started has a copy of each lock for a moment.
    let deadline = Instant::now() + Duration::from_secs(30);
    while in_use(&other) != [("a:1".to_owned(), true), ("b:1".to_owned(), false)] {
        assert!(Instant::now() < deadline, "{:?}", in_use(&other));
        std::thread::yield_now();
    }
    // What was used just now is not old.
    let hour = Some(Duration::from_secs(3600));
    assert_eq!(other.prune(hour, &fixture.interrupt).unwrap(), Pruned::default());
    let pruned = other.prune(Some(Duration::ZERO), &fixture.interrupt).unwrap();
    assert_eq!((pruned.images.len(), pruned.layers, pruned.in_use), (1, 1, 1));
    // A layer alone keeps its image.
    let layer = image.layers()[0].clone();
    drop(image);
    assert!(other.remove("a:1", &fixture.interrupt).is_err());
    assert!(layer.path().join("a").is_file());
    drop(layer);
    let removed = other.remove("a:1", &fixture.interrupt).unwrap();
    assert_eq!((removed.layers, removed.bytes), (2, 3));
    fixture.assert_empty("removed");
    assert_eq!(fixture.entries("names"), [""; 0]);
}

#[test]
fn a_name_is_the_latest_images() {
    let fixture = Fixture::new();
    fs::write(fixture.path("a.tar"), saved(&[("x:1", &two_layers())])).unwrap();
    let first = *fixture.get("a.tar").unwrap().digest().unwrap();
    fs::write(fixture.path("a.tar"), saved(&[("x:1", &[layer(&[("z", "")])])])).unwrap();
    // Another file under the same path is read.
    let second = *fixture.get("a.tar").unwrap().digest().unwrap();
    assert_ne!(first, second);
    assert_eq!(fixture.get("x:1").unwrap().digest(), Some(&second));
    let source = ImageSource::Stored(first.to_string());
    let names = ["mine".to_owned()];
    let import = fixture.store.import(&source, &names, &fixture.interrupt, &mut |_| {});
    assert_eq!((import.unwrap().names, first), (vec!["mine:latest".to_owned()], first));
    assert_eq!(fixture.get("mine").unwrap().digest(), Some(&first));
}

#[test]
fn a_name_of_the_store_with_other_ids_is_said_to_be_there() {
    let fixture = Fixture::new();
    fs::write(fixture.path("a.tar"), saved(&[("a:1", &two_layers())])).unwrap();
    fixture.get("a.tar").unwrap();
    let (other, says) = match fixture.store.ids() {
        StoredIds::One => (StoredIds::Kept, "import --ids kept"),
        StoredIds::Kept | StoredIds::Moved(_) => (StoredIds::One, "import --ids one"),
    };
    let other = ImageStore::open(Some(&fixture.path("data")), other, &fixture.interrupt).unwrap();
    let other = other.with_config(ImagesConfig::default().with_pull(false));
    let error = other.get(&fixture.parse("a:1"), &fixture.interrupt, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains(says), "{error}");
    assert_eq!(error.kind(), ImageErrorKind::Unavailable);
}

#[test]
fn what_a_dead_process_left_is_removed_and_what_a_living_one_makes_is_not() {
    let fixture = Fixture::new();
    let layers = fixture.store.path().join("layers");
    for name in [".new-dead", ".old-dead"] {
        fs::create_dir_all(layers.join(name).join("tree/d")).unwrap();
        fs::write(layers.join(name).join("lock"), "").unwrap();
    }
    let Ok(shelf::Wish::Making(making)) = fixture.store.0.layers.wish("alive", &fixture.interrupt)
    else {
        panic!("somebody else makes it");
    };
    fs::write(layers.join(".new-alive/x"), "").unwrap();
    let _other = fixture.other();
    assert_eq!(fixture.entries("layers"), [".new-alive"]);
    assert!(layers.join(".new-alive/x").is_file());
    drop(making);
    fixture.assert_empty("given up");
}

#[test]
fn an_image_whose_layer_was_cleaned_away_is_unpacked_again() {
    let fixture = Fixture::new();
    fs::write(fixture.path("a.tar"), saved(&[("a:1", &two_layers())])).unwrap();
    let path = fixture.get("a.tar").unwrap().layers()[1].path().to_owned();
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    assert!(matches!(fixture.get("a:1"), Err(ImageError::NotStored { .. })));
    assert_eq!(fixture.import("a.tar").1, [true, false]);
    assert!(fixture.get("a:1").is_ok());
    let record = fixture.store.path().join("images").join(fixture.entries("images")[0].clone());
    fs::write(record.join("image.json"), "{").unwrap();
    assert!(matches!(fixture.get("a:1"), Err(ImageError::NotStored { .. })));
    assert_eq!(fixture.import("a.tar").1, [true, true]);
}

#[test]
fn limits_are_said_and_leave_nothing() {
    let limits = ImageLimits { entries: 2, layer_bytes: 20_000, ..ImageLimits::default() };
    let fixture = Fixture::with(limits);
    let many = [layer(&[("a", ""), ("b", ""), ("c", "")])];
    let large = [layer(&[("a", &"x".repeat(30_000))])];
    for (name, layers, why) in [("many", many, "2 entries"), ("large", large, "bytes")] {
        let dir = fixture.path(name);
        Layout::new(&dir).image(None, &layers, gzip, |_, _| {}).write();
        let error = fixture.get(name).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(error.kind(), ImageErrorKind::Unusable);
        fixture.assert_empty(name);
    }
}

#[test]
fn an_interrupt_ends_an_import_and_leaves_nothing() {
    let fixture = Fixture::new();
    fs::write(fixture.path("a.tar"), saved(&[("a:1", &two_layers())])).unwrap();
    let source = fixture.parse("a.tar");
    let import = fixture.store.import(&source, &[], &fixture.interrupt, &mut |step| {
        if matches!(step, ImportStep::Layer { number: 2, .. }) {
            fixture.interrupt.interrupt();
        }
    });
    assert!(matches!(import, Err(ImageError::Interrupted)));
    assert_eq!(fixture.entries("images"), [""; 0]);
    assert_eq!(fixture.entries("layers").len(), 1);
}

/// A file system of its own, that is full soon.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=256k,mode=700", "none"]).arg(path);
        let mounted = mounted.stderr(std::process::Stdio::null());
        mounted.status().is_ok_and(|status| status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_with_what_is_needed_and_leaves_nothing() {
    let mut fixture = Fixture::new();
    // Only root can mount one.
    let Some(disk) = SmallDisk::mount(&fixture.path("small")) else { return };
    let ids = fixture.store.ids();
    fixture.store = ImageStore::open(Some(&disk.0), ids, &fixture.interrupt).unwrap();
    let noise: String = (0..100_000_u64).map(|n| format!("{}", n * n % 999_983)).collect();
    let layers = [layer(&[("small", "x")]), layer(&[("large", &noise)])];
    let archive = saved(&[("a:1", &layers)]);
    fs::write(fixture.path("plain.tar"), &archive).unwrap();
    fs::write(fixture.path("packed.tar.gz"), gzip(&archive)).unwrap();
    Layout::new(&fixture.path("oci")).image(None, &layers, gzip, |_, _| {}).write();
    for name in ["plain.tar", "packed.tar.gz", "oci"] {
        match fixture.get(name).unwrap_err() {
            ImageError::Full { needed, free, .. } => {
                assert!(needed > free && free <= 256 << 10, "{name}: {needed} {free}");
            }
            other => panic!("{name}: {other}"),
        }
        fixture.store.prune(None, &fixture.interrupt).unwrap();
        fixture.assert_empty(name);
    }
}
