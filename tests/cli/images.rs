//! `image`: images come into the store, are shown, shared, killed on their way, and removed.

use sha2::{Digest, Sha256};

use super::*;

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tar_of<'a>(files: impl IntoIterator<Item = (String, &'a [u8])>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// What `docker save` writes of an image with these layers.
fn archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    archive_of(name, layers, "1000")
}

/// The same of an image whose commands are this user.
pub(super) fn archive_of(name: &str, layers: &[Vec<u8>], user: &str) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<_> = layers.iter().map(|tar| format!("sha256:{}", sha256(tar))).collect();
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Env": ["PATH=/bin"], "User": user},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let paths: Vec<_> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let list = json!([{"Config": "config.json", "RepoTags": [name], "Layers": paths}]);
    let list = list.to_string().into_bytes();
    let named = paths.into_iter().zip(layers.iter().map(Vec::as_slice));
    tar_of(named.chain([
        ("config.json".to_owned(), config.as_slice()),
        ("manifest.json".to_owned(), list.as_slice()),
    ]))
}

pub(super) fn layer(n: usize, files: usize) -> Vec<u8> {
    tar_of((0..files).map(|file| (format!("{n}/{file}"), &b"text"[..])))
}

/// A data directory, and an archive beside it.
pub(super) struct Images {
    directory: TempDir,
}

impl Images {
    pub(super) fn new(layers: &[Vec<u8>]) -> Self {
        let images = Self { directory: directory() };
        fs::write(images.path("task.tar"), archive("task:1", layers)).unwrap();
        images
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = program();
        command.arg("image").args(args).arg("--data-dir").arg(self.path("data"));
        command.current_dir(self.directory.path());
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    pub(super) fn json(&self, args: &[&str]) -> Value {
        let run = self.run(&[args, &["--json"]].concat());
        assert_eq!(run.code, Some(0), "{args:?}: {run:?}");
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// Begins with it, and what it says of its progress.
    fn begin(&self, args: &[&str]) -> (Child, BufReader<std::process::ChildStderr>) {
        let mut command = self.command(args);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        (child, stderr)
    }

    /// The entries of the store that are there, or are being made or removed.
    pub(super) fn entries(&self, kind: &str) -> Vec<PathBuf> {
        let uid = rustix::process::geteuid().as_raw();
        let store = self.path("data").join(format!("images-{uid}"));
        let ids = fs::read_dir(store).into_iter().flatten().flatten();
        let shelves = ids.filter_map(|ids| fs::read_dir(ids.path().join(kind)).ok());
        shelves.flatten().flatten().map(|entry| entry.path()).collect()
    }

    fn names(&self) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        self.entries("layers").iter().map(name).collect()
    }

    /// Nothing is left of what is neither there nor not.
    pub(super) fn assert_whole(&self) {
        let half: Vec<_> = self.names().into_iter().filter(|name| name.starts_with('.')).collect();
        assert_eq!(half, [""; 0]);
    }
}

#[test]
fn an_image_is_imported_listed_shown_and_removed() {
    let images = Images::new(&[layer(0, 3), layer(1, 2)]);
    let run = images.run(&["import", "task.tar"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.starts_with("sha256:") && run.stdout.ends_with(" task:1\n"), "{run:?}");
    assert!(run.stderr.contains("task.tar: layer 2 of 2, "), "{run:?}");
    let digest = run.stdout.split(' ').next().unwrap().to_owned();
    // Again, quietly, under another name, from the store itself.
    let run = images.run(&["import", "-q", "--name", "other", "task:1"]);
    assert_eq!((run.code, &run.stderr[..]), (Some(0), ""), "{run:?}");
    let list = images.run(&["list"]);
    assert!(list.stdout.starts_with("NAME "), "{list:?}");
    let short = &digest["sha256:".len()..][..12];
    for name in ["task:1", "other:latest"] {
        let line = list.stdout.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.contains(short) && line.contains("20 B"), "{line}");
    }
    let list = images.json(&["list"]);
    assert_eq!(list[0]["names"], json!(["other:latest", "task:1"]));
    assert_eq!((&list[0]["bytes"], &list[0]["in_use"]), (&json!(20), &json!(false)));
    let show = images.run(&["show", short]);
    for line in [&digest[..], "PATH=/bin", "user         1000", "directory    /", "2 entries /"] {
        assert!(show.stdout.contains(line), "{line}: {}", show.stdout);
    }
    let path = images.json(&["show", "other"])["layers"][1]["path"].as_str().unwrap().to_owned();
    assert_eq!(fs::read_to_string(Path::new(&path).join("1/0")).unwrap(), "text");
    // Nothing is removed that an image has.
    assert_eq!(
        images.json(&["prune"]),
        json!({"images": [], "layers": 0, "bytes": 0, "in_use": 0})
    );
    let removed = images.run(&["remove", "task:1"]);
    let expected = format!("removed {digest}\n2 layers removed, 20 B\n");
    assert_eq!((removed.code, removed.stdout), (Some(0), expected), "{}", removed.stderr);
    assert_eq!(images.json(&["list"]), json!([]));
    assert_eq!(images.names(), [""; 0]);
    assert_eq!(images.json(&["import", "task.tar"])[0]["digest"], json!(digest));
    assert_eq!(images.json(&["prune", "--unused-for", "0"])["images"], json!([digest]));
}

#[test]
fn what_fails_says_why_by_its_text_and_its_code() {
    let images = Images::new(&[layer(0, 1)]);
    fs::write(images.path("broken.tar"), "no tar at all".repeat(100)).unwrap();
    fs::write(images.path("evil.tar"), archive("evil:1", &[evil()])).unwrap();
    for (args, code, says) in [
        (&["import"][..], 2, "SOURCE"),
        (&["import", "--name", "x", "a", "b"], 2, "one SOURCE"),
        (&["prune", "--unused-for", "long"], 2, "unused-for"),
        (&["list", "--ids", "many"], 2, "kept"),
        (&["import", "python:3.12"], 4, "have it pulled (tool-executor image pull python:3.12)"),
        (&["import", "docker://"], 4, "as python:3.12 does"),
        (&["import", "/no/such.tar"], 4, "there is no /no/such.tar"),
        (&["import", "broken.tar"], 3, "no tar archive"),
        (&["import", "evil.tar"], 3, "\"../evil\\x1b[2J\" has a name that leads out"),
        (&["import", "."], 4, "used in place"),
        (&["show", "task:1"], 4, "no image \"task:1\""),
        (&["remove", "task:1"], 4, "no image \"task:1\""),
    ] {
        let run = images.run(args);
        assert_eq!(run.code, Some(code), "{args:?}: {run:?}");
        assert!(run.stderr.contains(says), "{args:?}: {run:?}");
        assert!(!run.stderr.contains('\u{1b}'), "{run:?}");
    }
    // One that fails does not keep the others out.
    let run = images.run(&["import", "broken.tar", "task.tar"]);
    assert_eq!((run.code, run.stdout.lines().count()), (Some(3), 1), "{run:?}");
    images.assert_whole();
}

/// A layer with a name that leads out, and to a terminal.
fn evil() -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..12].copy_from_slice(b"../evil\x1b[2J\0");
    header.set_size(0);
    header.set_cksum();
    [header.as_bytes().as_slice(), &[0; 1024]].concat()
}

#[test]
fn a_kill_at_any_moment_leaves_a_whole_store() {
    let layers = [layer(0, 300), layer(1, 3000), layer(2, 300)];
    let images = Images::new(&layers);
    // When it begins with a layer, and in the middle of the large one.
    for (moment, there) in [("layer 1 of 3", 1), ("layer 2 of 3", 2), ("layer 3 of 3", 3)] {
        let (mut child, stderr) = images.begin(&["import", "task.tar"]);
        let mut lines = stderr.lines().map(|line| line.unwrap());
        assert!(lines.any(|line| line.contains(moment)), "{moment}");
        child.kill().unwrap();
        child.wait().unwrap();
        // The next one removes what is left, and says that there is no image, or all of it.
        let list = images.json(&["list"]);
        assert!(list.as_array().unwrap().len() <= usize::from(there == 3), "{moment}: {list}");
        images.assert_whole();
    }
    images.json(&["prune", "--unused-for", "0"]);
    assert_eq!(images.names(), [""; 0]);
    let (mut child, _stderr) = images.begin(&["import", "task.tar"]);
    let large = format!(".new-{}", sha256(&layers[1]));
    let half = || {
        let layer = images.entries("layers").into_iter().find(|path| path.ends_with(&large));
        layer.is_some_and(|path| fs::read_dir(path.join("tree/1")).is_ok_and(|d| d.count() > 50))
    };
    wait_until(&mut child, half);
    child.kill().unwrap();
    child.wait().unwrap();
    // What was whole stays, and is not unpacked again.
    let run = images.run(&["import", "task.tar"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stderr.contains("layer 1 is in the store"), "{run:?}");
    let shown = images.json(&["show", "task:1"]);
    let count = |n: usize| {
        let path = Path::new(shown["layers"][n]["path"].as_str().unwrap()).join(n.to_string());
        fs::read_dir(path).unwrap().count()
    };
    assert_eq!([count(0), count(1), count(2)], [300, 3000, 300]);
    // In a removal.
    let (mut child, _stderr) = images.begin(&["remove", "task:1"]);
    wait_until_ended_or(&mut child, || images.names().iter().any(|name| name.starts_with(".old-")));
    let _ = child.kill();
    child.wait().unwrap();
    assert_eq!(images.json(&["list"]), json!([]));
    images.json(&["prune"]);
    assert_eq!(images.names(), [""; 0]);
}

/// Waits until it is so, or the program has ended.
fn wait_until_ended_or(child: &mut Child, is_so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() && child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < DEADLINE, "it did not come to it");
        std::thread::yield_now();
    }
}

#[test]
fn programs_that_want_an_image_at_once_unpack_it_once() {
    let images = Images::new(&[layer(0, 200), layer(1, 1500), layer(2, 200)]);
    let begun: Vec<_> = (0..4).map(|_| images.begin(&["import", "task.tar"])).collect();
    let mut unpacked = 0;
    for (mut child, stderr) in begun {
        let lines: Vec<_> = stderr.lines().map(|line| line.unwrap()).collect();
        assert!(child.wait().unwrap().success(), "{lines:?}");
        let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        unpacked += count(" of 3, ") - count("is in the store");
    }
    assert_eq!(unpacked, 3);
    assert_eq!(images.names().len(), 3);
}

#[test]
fn a_signal_ends_an_import_and_what_was_whole_stays() {
    let images = Images::new(&[layer(0, 10), layer(1, 4000)]);
    let (mut child, mut stderr) = images.begin(&["import", "task.tar"]);
    let mut line = String::new();
    while !line.contains("layer 2 of 2") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0);
    }
    signal(&child, Signal::TERM);
    wait_until_ended(&mut child);
    // It may just have been done.
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 130)), "{code:?}");
    images.json(&["list"]);
    images.assert_whole();
    assert!(!images.names().is_empty());
}

/// What these programs write is read, where they are installed.
#[test]
fn images_of_other_programs_are_read() {
    let has = |name: &str| Command::new(name).arg("--version").output().is_ok();
    if !(has("umoci") && has("skopeo")) {
        return;
    }
    let images = Images::new(&[layer(0, 1)]);
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program)
            .args(args)
            .current_dir(images.directory.path())
            .env("XDG_RUNTIME_DIR", images.directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
    };
    // An image with two layers: the second one removes and replaces.
    let rootless = if rustix::process::geteuid().is_root() { &[][..] } else { &["--rootless"] };
    let unpack = [&["unpack", "--image", "made:new"][..], rootless, &["bundle"]].concat();
    run("umoci", &["init", "--layout", "made"]);
    run("umoci", &["new", "--image", "made:new"]);
    run("umoci", &unpack);
    let rootfs = images.path("bundle/rootfs");
    fs::create_dir(rootfs.join("dir")).unwrap();
    fs::write(rootfs.join("dir/gone"), "1").unwrap();
    fs::write(rootfs.join("dir/stays"), "1").unwrap();
    std::os::unix::fs::symlink("dir/stays", rootfs.join("link")).unwrap();
    fs::hard_link(rootfs.join("dir/stays"), rootfs.join("same")).unwrap();
    run("umoci", &["repack", "--refresh-bundle", "--image", "made:new", "bundle"]);
    fs::remove_file(rootfs.join("dir/gone")).unwrap();
    fs::write(rootfs.join("new"), "2").unwrap();
    run("umoci", &["repack", "--image", "made:new", "bundle"]);
    run("umoci", &["config", "--image", "made:new", "--config.user", "7", "--config.env", "A=b"]);
    run("skopeo", &["copy", "-q", "oci:made:new", "docker-archive:docker.tar:task:2"]);
    run("skopeo", &["copy", "-q", "oci:made:new", "oci-archive:oci.tar:task"]);
    let zstd = ["--dest-compress", "--dest-compress-format", "zstd"];
    run("skopeo", &[&["copy", "-q"], &zstd[..], &["oci:made:new", "oci:zstd:new"]].concat());
    let imported = images.json(&["import", "made:new", "docker.tar", "oci.tar", "zstd"]);
    for image in imported.as_array().unwrap() {
        assert_eq!(image["config"]["user"], "7", "{image}");
        let layers = image["layers"].as_array().unwrap();
        let path = |n: usize| PathBuf::from(layers[n]["path"].as_str().unwrap());
        let filled: Vec<_> = (0..layers.len())
            .map(path)
            .filter(|path| fs::read_dir(path).unwrap().next().is_some())
            .collect();
        assert_eq!(filled.len(), 2, "{image}");
        assert_eq!(fs::read_to_string(filled[0].join("link")).unwrap(), "1");
        let gone = fs::symlink_metadata(filled[1].join("dir/gone")).unwrap();
        assert!(std::os::unix::fs::FileTypeExt::is_char_device(&gone.file_type()));
        assert_eq!(fs::read_to_string(filled[1].join("new")).unwrap(), "2");
    }
}
