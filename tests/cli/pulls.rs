//! `image pull`: from a registry of the tests' own, by `skopeo`, whatever the registry does.

use crossbeam_channel::bounded;

use super::images::Images;
use super::registry::{Act, Kind, Packing, Registry, Request, architecture, noise, sha256, tar_of};
use super::*;

/// A registry, and a data directory that images are pulled into; none where there is no `skopeo`.
struct Setting {
    registry: Registry,
    images: Images,
}

impl Setting {
    fn new() -> Option<Self> {
        Command::new("skopeo").arg("--version").output().ok()?;
        Some(Self { registry: Registry::start(), images: Images::new(&[]) })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.images.command(args);
        command.env("HOME", self.images.path("")).env("XDG_RUNTIME_DIR", "/nonexistent");
        command.env_remove("REGISTRY_AUTH_FILE");
        command
    }

    fn pull_command(&self, args: &[&str]) -> Command {
        let plain = ["pull", "--registry-plain-http", &self.registry.host];
        self.command(&[&plain[..], args].concat())
    }

    fn pull(&self, args: &[&str]) -> Run {
        Run::of(self.pull_command(args).output().unwrap())
    }

    #[track_caller]
    fn pulled(&self, args: &[&str]) -> Run {
        let run = self.pull(args);
        assert_eq!(run.code, Some(0), "{args:?}: {run:?}");
        run
    }

    /// What it says of an image that cannot be pulled.
    #[track_caller]
    fn refused(&self, args: &[&str], code: i32) -> String {
        let run = self.pull(args);
        assert_eq!(run.code, Some(code), "{args:?}: {run:?}");
        assert_eq!(self.images.entries("pulls"), [""; 0].map(PathBuf::from), "{run:?}");
        self.images.assert_whole();
        run.stderr
    }

    /// The text of a file of an image.
    fn file(&self, image: &str, layer: usize, name: &str) -> Vec<u8> {
        let shown = self.images.json(&["show", image]);
        let path = shown["layers"][layer]["path"].as_str().unwrap();
        fs::read(Path::new(path).join(name)).unwrap()
    }

    fn fetched(&self) -> usize {
        self.registry.seen().iter().filter(|request| is_layer(request)).count()
    }
}

/// The layers of these tests are the blobs that are asked for by GET; configurations are, too.
fn is_layer(request: &Request) -> bool {
    request.is_blob()
}

#[test]
fn an_image_is_pulled_as_its_registry_has_it_and_its_layers_once() {
    let Some(setting) = Setting::new() else { return };
    let registry = &setting.registry;
    let base = tar_of(&[("base", b"text")]);
    let (middle, top) = (tar_of(&[("middle", b"1")]), tar_of(&[("top", b"2")]));
    let layers =
        [(base.clone(), Packing::Gzip), (middle, Packing::Plain), (top.clone(), Packing::Zstd)];
    // Docker's format, which skopeo would write anew with another digest.
    let (manifest, config) = registry.image("task", "1", &layers[..2], Kind::Docker);
    let name = registry.name("task:1");
    let run = setting.pulled(&[&name]);
    assert!(run.stdout.starts_with(&format!("{config} {name}\n")), "{run:?}");
    for says in ["pulling", "fetching 2 of 2 layers, ", "fetched ", "layer 2 of 2"] {
        assert!(run.stderr.contains(&format!("{name}: {says}")), "{says}: {run:?}");
    }
    let shown = setting.images.json(&["show", &name]);
    assert_eq!(shown["manifest"], manifest);
    assert_eq!(shown["source"], format!("docker://{name}"));
    assert_eq!(
        (setting.file(&name, 0, "base"), setting.file(&name, 1, "middle")),
        (b"text".into(), b"1".into())
    );
    registry.seen();
    // The same manifest: it is asked for, and nothing else.
    let again = setting.pulled(&[&name]);
    assert_eq!(again.stdout, run.stdout);
    let seen: Vec<_> = registry.seen().into_iter().filter(|it| it.path != "/v2/").collect();
    assert!(matches!(&seen[..], [one] if one.is_manifest()), "{seen:?}");
    // Another image with two of its layers: one layer is fetched, and the configuration.
    let (_, other) = registry.image("other", "1", &layers, Kind::Oci);
    let run = setting.pulled(&[&registry.name("other:1")]);
    assert!(run.stdout.starts_with(&other), "{run:?}");
    assert!(run.stderr.contains("fetching 1 of 3 layers"), "{run:?}");
    let blobs: Vec<_> = registry.seen().into_iter().filter(Request::is_blob).collect();
    let packed = format!("/v2/other/blobs/sha256:{}", sha256(&registry::zstd(&top)));
    let mut paths: Vec<_> = blobs.iter().map(|request| request.path.clone()).collect();
    paths.sort_unstable();
    let mut expected = vec![packed, format!("/v2/other/blobs/{other}")];
    expected.sort_unstable();
    assert_eq!(paths, expected);
    // By its digest it is asked for by that, and by a wrong one not found.
    let pinned = registry.name(&format!("task:1@{manifest}"));
    setting.pulled(&[&pinned]);
    let wrong = registry.name(&format!("task@sha256:{}", "0".repeat(64)));
    assert!(setting.refused(&[&wrong], 4).contains("manifest unknown"));
    // Without its layers everything is fetched again.
    setting.images.json(&["remove", &name, &registry.name("other:1")]);
    assert!(setting.pulled(&[&name]).stderr.contains("fetching 2 of 2"));
}

#[test]
fn of_a_list_the_image_for_this_machine_is_pulled_or_the_one_that_is_asked_for() {
    let Some(setting) = Setting::new() else { return };
    let registry = &setting.registry;
    let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
    let image = |text: &[u8], architecture: &str| {
        let layers = [(tar_of(&[("file", text)]), Packing::Gzip)];
        registry.image_for("task", "each", &layers, Kind::Oci, architecture).0
    };
    let (own, foreign) = (image(b"own", architecture()), image(b"foreign", other));
    registry.list("task", "all", &[(&foreign, other), (&own, architecture())]);
    registry.list("task", "others", &[(&foreign, other), (&foreign, "s390x")]);
    let name = registry.name("task:all");
    setting.pulled(&[&name]);
    assert_eq!(setting.file(&name, 0, "file"), b"own");
    let said = setting.refused(&[&registry.name("task:others")], 3);
    assert!(said.contains(&format!("is for linux/{other}, linux/s390x; this machine")), "{said}");
    let run = setting.pulled(&["--image-platform", other, &name]);
    let digest = run.stdout.split(' ').next().unwrap();
    assert_eq!(setting.file(digest, 0, "file"), b"foreign");
    // The name is this machine's all the same.
    assert_eq!(setting.file(&name, 0, "file"), b"own");
    let said = setting.refused(&["--image-platform", "mips", &name], 2);
    assert!(said.contains("amd64 or arm64"), "{said}");
}

#[test]
fn credentials_are_sent_to_their_registry_only() {
    let Some(setting) = Setting::new() else { return };
    let (registry, elsewhere) = (&setting.registry, Registry::start());
    let tar = tar_of(&[("file", b"secret")]);
    registry.image("task", "1", &[(tar.clone(), Packing::Gzip)], Kind::Oci);
    registry.want("me:password");
    let name = registry.name("task:1");
    let said = setting.refused(&[&name], 4);
    assert!(said.contains("skopeo login") && said.contains("--registry-auth-file"), "{said}");
    let auth = |login: &str| {
        use base64::Engine as _;
        let login = base64::engine::general_purpose::STANDARD.encode(login);
        let path = setting.images.path("auth.json");
        let text = json!({"auths": {&registry.host: {"auth": login}}}).to_string();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let path = auth("me:wrong");
    let said = setting.refused(&["--registry-auth-file", &path, &name], 4);
    assert!(said.contains("log in") && !said.contains("wrong"), "{said}");
    // Layers are elsewhere, as those of large registries are.
    let packed = registry::gzip(&tar);
    elsewhere.blob(&packed);
    let location = format!("http://{}/v2/task/blobs/", elsewhere.host);
    registry.rule(move |request| {
        let digest = request.path.strip_prefix("/v2/task/blobs/")?;
        let to = format!("Location: {location}{digest}\r\n");
        (digest == format!("sha256:{}", sha256(&packed)))
            .then(|| Act::Answer(307, to, String::new()))
    });
    let path = auth("me:password");
    setting.pulled(&["--registry-auth-file", &path, &name]);
    assert_eq!(setting.file(&name, 0, "file"), b"secret");
    let seen = elsewhere.seen();
    assert!(seen.iter().any(Request::is_blob), "{seen:?}");
    assert!(seen.iter().all(|request| request.authorization.is_none()), "{seen:?}");
}

#[test]
fn a_pull_goes_on_where_it_was_cut_off() {
    let Some(setting) = Setting::new() else { return };
    let registry = &setting.registry;
    let files = [noise(50_000, 1), noise(200_000, 2)];
    let layers = files.each_ref().map(|bytes| (tar_of(&[("file", bytes)]), Packing::Plain));
    registry.image("task", "1", &layers, Kind::Oci);
    // The first layer arrives, the second one is cut off twice.
    let cut = std::sync::atomic::AtomicUsize::new(0);
    registry.rule(move |request| {
        let is_large = request.path.ends_with(&sha256(&layers[1].0));
        let is_cut = || cut.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
        (is_large && is_cut()).then_some(Act::CutAfter(64 << 10))
    });
    let name = registry.name("task:1");
    let run = setting.pulled(&[&name]);
    assert_eq!(
        (setting.file(&name, 0, "file"), setting.file(&name, 1, "file")),
        files.clone().into()
    );
    let small = format!("sha256:{}", sha256(&tar_of(&[("file", &files[0])])));
    let of_small =
        registry.seen().iter().filter(|it| it.is_blob() && it.path.ends_with(&small)).count();
    assert_eq!(of_small, 1, "{run:?}");
    assert!(run.stderr.contains("unexpected EOF; trying again in 1 s"), "{run:?}");
}

#[test]
fn what_a_registry_says_is_told_and_what_may_pass_is_tried_again() {
    let Some(setting) = Setting::new() else { return };
    let registry = &setting.registry;
    let tar = tar_of(&[("file", b"text")]);
    registry.image("task", "1", &[(tar.clone(), Packing::Plain)], Kind::Oci);
    let name = registry.name("task:1");
    let said = setting.refused(&[&registry.name("task:2")], 4);
    assert!(said.contains("manifest unknown"), "{said}");
    // It is not well: tried again as often as was said.
    let answer = |status: u16, headers: &str, code: &str| {
        let body = json!({"errors": [{"code": code, "message": "so it says"}]}).to_string();
        Act::Answer(status, headers.to_owned(), body)
    };
    registry.rule(move |it| it.is_manifest().then(|| answer(503, "", "UNAVAILABLE")));
    registry.seen();
    let said = setting.refused(&["--image-pull-retries", "1", &name], 4);
    assert_eq!(said.matches("trying again in 1 s").count(), 1, "{said}");
    assert_eq!(registry.seen().iter().filter(|it| it.is_manifest()).count(), 2, "{said}");
    // It was asked too often, and says when to come again; then that it is enough.
    let often = std::sync::atomic::AtomicUsize::new(0);
    let after = "Retry-After: 1\r\nContent-Type: application/json\r\n";
    registry.rule(move |it| {
        let is_first = || often.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        (it.is_manifest() && is_first()).then(|| answer(429, after, "TOOMANYREQUESTS"))
    });
    setting.pulled(&[&name]);
    registry.rule(move |it| it.is_manifest().then(|| answer(429, after, "TOOMANYREQUESTS")));
    let said = setting.refused(&[&name], 4);
    assert!(said.contains("registries.conf"), "{said}");
    // Another layer than the manifest says: never the image, and not tried again.
    registry.image("bad", "1", &[(tar_of(&[("other", b"x")]), Packing::Plain)], Kind::Oci);
    registry.rule(|it| it.is_blob().then_some(Act::Spoil));
    let said = setting.refused(&[&registry.name("bad:1")], 4);
    assert!(!said.contains("trying again"), "{said}");
    registry.behave();
    // A manifest that is not the one that was asked for.
    let (manifest, _) = registry.image("task", "3", &[(tar, Packing::Plain)], Kind::Oci);
    registry.rule(|it| it.is_manifest().then_some(Act::Spoil));
    setting.refused(&[&registry.name(&format!("task@{manifest}"))], 4);
    registry.behave();
    let said = setting.refused(&["--image-pull-retries", "0", "localhost:1/task:1"], 4);
    assert!(said.contains("connection refused"), "{said}");
    for (bad, says) in [
        ("Task", "upper-case"),
        ("a b", "no name"),
        ("x:", "the tag"),
        ("https://r/x", "without https"),
    ] {
        let said = setting.refused(&[bad], 4);
        assert!(said.contains(says), "{said}");
    }
    let mut without = setting.pull_command(&[&name]);
    let without = Run::of(without.env("PATH", "/nonexistent").output().unwrap());
    assert_eq!(without.code, Some(4));
    assert!(without.stderr.contains("skopeo is not installed"), "{without:?}");
    let plain =
        Run::of(setting.command(&["pull", "--image-pull-retries", "0", &name]).output().unwrap());
    assert!(plain.stderr.contains("--registry-plain-http HOST"), "{plain:?}");
}

#[test]
fn what_is_no_image_is_refused_before_a_layer_is_fetched() {
    let Some(setting) = Setting::new() else { return };
    let registry = &setting.registry;
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let digest = registry.blob(b"{}");
    let foreign = json!({"schemaVersion": 2, "mediaType": kind,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": digest, "size": 2},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": digest, "size": 2}]});
    registry.manifest("foreign", "1", kind, &foreign);
    assert!(setting.refused(&[&registry.name("foreign:1")], 3).contains("but elsewhere"));
    let kind = "application/vnd.docker.distribution.manifest.v1+json";
    registry.manifest("old", "1", kind, &json!({"schemaVersion": 1, "fsLayers": []}));
    assert!(setting.refused(&[&registry.name("old:1")], 3).contains("of the first version"));
    assert_eq!(setting.fetched(), 0);
}

#[test]
fn a_pull_that_is_killed_or_takes_too_long_leaves_a_whole_store() {
    let Some(setting) = Setting::new() else { return };
    let registry = &setting.registry;
    let tar = tar_of(&[("file", &noise(100_000, 3))]);
    registry.image("task", "1", &[(tar, Packing::Plain)], Kind::Oci);
    let name = registry.name("task:1");
    let (begun, arrived) = bounded(16);
    let (_hold, until) = bounded::<()>(0);
    let held = until.clone();
    registry.rule(move |it| it.is_blob().then(|| Act::Begin(begun.clone(), held.clone())));
    let said = setting.refused(&["--image-pull-timeout-s", "1", &name], 4);
    assert!(said.contains("it took longer than 1s"), "{said}");
    while arrived.try_recv().is_ok() {}
    for kill in [Signal::KILL, Signal::TERM] {
        let mut child = setting
            .pull_command(&[&name])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        arrived.recv_timeout(DEADLINE).unwrap();
        signal(&child, kill);
        wait_until_ended(&mut child);
        assert_eq!(setting.images.json(&["list"]), json!([]));
        // The next one has removed what was left.
        assert_eq!(setting.images.entries("pulls"), [""; 0].map(PathBuf::from), "{kill:?}");
        setting.images.assert_whole();
    }
    registry.behave();
    setting.pulled(&[&name]);
}

#[test]
fn programs_that_want_an_image_at_once_fetch_it_once_and_several_are_fetched_at_a_time() {
    let Some(setting) = Setting::new() else { return };
    let registry = &setting.registry;
    let tar = |n: u64| tar_of(&[("file", &noise(1000, n))]);
    let names: Vec<_> = (0..3)
        .map(|n| {
            registry.image(&format!("task{n}"), "1", &[(tar(n), Packing::Plain)], Kind::Oci);
            registry.name(&format!("task{n}:1"))
        })
        .collect();
    // No layer is sent before one of each image is wanted.
    let (begun, arrived) = bounded(16);
    let (hold, until) = bounded::<()>(0);
    let layers: Vec<_> = (0..3).map(|n| sha256(&tar(n))).collect();
    registry.rule(move |it| {
        let is_layer = layers.iter().any(|layer| it.path.ends_with(layer));
        (it.is_blob() && is_layer).then(|| Act::Begin(begun.clone(), until.clone()))
    });
    fs::write(
        setting.images.path("list"),
        format!("# all\n\n{}\n{{\"spec\": {{\"image\": \"{}\"}}}}\n", names[1], names[2]),
    )
    .unwrap();
    let begin = || {
        setting
            .pull_command(&["-q", &names[0], "--image-list", "list", "--image-pull-parallel", "3"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children = [begin(), begin()];
    for _ in 0..3 {
        arrived.recv_timeout(DEADLINE).unwrap();
    }
    drop(hold);
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 3);
    }
    assert_eq!(
        arrived.try_recv(),
        Err(crossbeam_channel::TryRecvError::Disconnected)
            .or(Err(crossbeam_channel::TryRecvError::Empty))
    );
    let mut listed: Vec<_> = setting
        .images
        .json(&["list"])
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["names"][0].as_str().unwrap().to_owned())
        .collect();
    listed.sort();
    assert_eq!(listed, names);
}

#[test]
fn beyond_a_size_the_images_go_that_were_not_used_for_longest() {
    let Some(setting) = Setting::new() else { return };
    let registry = &setting.registry;
    let base = (tar_of(&[("base", &noise(50_000, 9))]), Packing::Plain);
    let names: Vec<_> = (0..4)
        .map(|n| {
            let own = (tar_of(&[("file", &noise(100_000, n))]), Packing::Plain);
            registry.image(&format!("task{n}"), "1", &[base.clone(), own], Kind::Oci);
            registry.name(&format!("task{n}:1"))
        })
        .collect();
    for name in &names[..3] {
        setting.pulled(&[name]);
    }
    let here = || -> Vec<usize> {
        let list = setting.images.json(&["list"]);
        let has =
            |n: &usize| list.as_array().unwrap().iter().any(|image| image["names"][0] == names[*n]);
        (0..4).filter(has).collect()
    };
    assert_eq!(here(), [0, 1, 2]);
    // The first was used last, and one comes: two have to go of 450,000 bytes.
    setting.pulled(&[&names[0]]);
    setting.pulled(&["--image-store-size", "300000", &names[3]]);
    assert_eq!(here(), [0, 3]);
    assert_eq!(setting.images.json(&["prune", "--to-size", "250000"])["images"], json!([]));
    let pruned = setting.images.json(&["prune", "--to-size", "249999"]);
    assert_eq!((&pruned["layers"], &pruned["bytes"]), (&json!(1), &json!(100_000)));
    assert_eq!(here(), [3]);
    setting.images.assert_whole();
}

#[test]
fn programs_that_pull_and_prune_at_once_leave_a_whole_store() {
    let Some(setting) = Setting::new() else { return };
    let registry = &setting.registry;
    let base = (tar_of(&[("base", &noise(20_000, 9))]), Packing::Gzip);
    let names: Vec<_> = (0..3)
        .map(|n| {
            let own = (tar_of(&[("file", &noise(20_000, n))]), Packing::Plain);
            registry.image(&format!("task{n}"), "1", &[base.clone(), own], Kind::Docker);
            registry.name(&format!("task{n}:1"))
        })
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    for _ in 0..3 {
        let begin = |mut command: Command| {
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children = [
            begin(setting.pull_command(&names)),
            begin(setting.command(&["prune", "--unused-for", "0"])),
            begin(setting.pull_command(&[&["--image-store-size", "30000"], &names[..]].concat())),
            begin(setting.command(&["prune", "--to-size", "1"])),
        ];
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    }
    setting.pulled(&names);
    for (n, name) in names.iter().enumerate() {
        assert_eq!(setting.file(name, 1, "file"), noise(20_000, n as u64));
        assert_eq!(setting.file(name, 0, "base"), noise(20_000, 9));
    }
    setting.images.assert_whole();
}

#[test]
fn a_disk_that_fills_while_an_image_is_pulled_is_said_and_has_room_again() {
    let Some(setting) = Setting::new() else { return };
    // Only root can mount one.
    let disk = setting.images.path("disk");
    fs::create_dir(&disk).unwrap();
    let size = ["-t", "tmpfs", "-o", "size=2m,mode=755", "none"];
    let mounted = Command::new("mount").args(size).arg(&disk).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(disk.clone());
    let registry = &setting.registry;
    for (name, length) in [("large", 3_000_000), ("small", 100_000)] {
        let layer = (tar_of(&[("file", &noise(length, 1))]), Packing::Plain);
        registry.image(name, "1", &[layer], Kind::Oci);
    }
    let pull = |name: &str| {
        let mut command = program();
        command.args(["image", "pull", "--registry-plain-http", &registry.host]);
        command.arg(registry.name(name)).arg("--data-dir").arg(disk.join("data"));
        Run::of(command.output().unwrap())
    };
    let run = pull("large:1");
    assert_eq!(run.code, Some(4), "{run:?}");
    assert!(run.stderr.contains("no room for") && run.stderr.contains("bytes more"), "{run:?}");
    let run = pull("small:1");
    assert_eq!(run.code, Some(0), "{run:?}");
}

/// A registry that others use, filled by skopeo, where it is installed.
#[test]
fn an_image_is_pulled_from_a_registry_as_others_run_it() {
    let Some(setting) = Setting::new() else { return };
    if Command::new("docker-registry").arg("--version").output().is_err() {
        return;
    }
    let place = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{place}\"}}\n",
        setting.images.path("kept").display()
    );
    fs::write(setting.images.path("registry.yml"), config).unwrap();
    struct Ended(Child);
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = (self.0.kill(), self.0.wait());
        }
    }
    let mut server = Command::new("docker-registry");
    server.arg("serve").arg(setting.images.path("registry.yml"));
    let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut server = Ended(server);
    wait_until(&mut server.0, || std::net::TcpStream::connect(place).is_ok());
    let layers = [images::layer(0, 3), images::layer(1, 2)];
    let brought = Images::new(&layers);
    let archive = format!("docker-archive:{}", brought.path("task.tar").display());
    for (name, format) in [("docker", "v2s2"), ("oci", "oci")] {
        let to = format!("docker://{place}/task:{name}");
        let output = Command::new("skopeo")
            .args(["copy", "-q", "--dest-tls-verify=false", "--format", format, &archive, &to])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let name = format!("{place}/task:{name}");
        let plain = ["pull", "--registry-plain-http", &place.to_string(), &name].map(str::to_owned);
        let plain: Vec<_> = plain.iter().map(String::as_str).collect();
        let run = Run::of(setting.command(&plain).output().unwrap());
        assert_eq!(run.code, Some(0), "{run:?}");
        assert_eq!(setting.file(&name, 0, "0/2"), b"text");
        // What was pushed in Docker's format has the digest of the archive's image.
        if format == "v2s2" {
            let imported = brought.json(&["import", "task.tar"]);
            assert_eq!(run.stdout.split(' ').next(), imported[0]["digest"].as_str());
        } else {
            assert!(run.stderr.contains("fetching 0 of 2 layers"), "{run:?}");
        }
    }
}
