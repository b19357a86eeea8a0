//! Trajectories whose image has to be pulled: they wait for it, and no one else does.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crossbeam_channel::bounded;
use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, ImagesConfig, LocalConfig};
use tool_executor::snapshot::SnapshotOptions;
use tool_executor::{BeginError, Outcome, ToolExecutor, TrajectorySpec};

use crate::caller::directory;
use crate::fakes::bash;
use crate::images::Image;
use crate::registry::{Act, Kind, Packing, Registry, Request, tar_of};

const DEADLINE: Duration = Duration::from_secs(60);

/// The layer of an image of busybox alone.
fn busybox() -> Vec<u8> {
    let path = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let path = path.into_iter().find(|path| path.exists()).expect("busybox-static is needed");
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_path_with_name(path, "bin/busybox").unwrap();
    for name in ["sh", "cat", "echo"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(6);
    tar.append_data(&mut header, "file", &b"pulled"[..]).unwrap();
    tar.into_inner().unwrap()
}

fn spec(image: &str) -> TrajectorySpec {
    serde_json::from_value(json!({"image": image})).unwrap()
}

struct Setting {
    registry: Registry,
    executor: ToolExecutor,
    data: tempfile::TempDir,
}

impl Setting {
    fn new(slots: usize) -> Option<Self> {
        Self::with(slots, ImagesConfig::default())
    }

    fn with(slots: usize, images: ImagesConfig) -> Option<Self> {
        Command::new("skopeo").arg("--version").output().ok()?;
        let (registry, data) = (Registry::start(), directory());
        let images = images.with_plain_http(vec![registry.host.clone()]).with_retries(0);
        let config = LocalConfig::new(slots).with_data_dir(data.path()).with_images(images);
        let backend = LocalBackend::start(config).unwrap();
        // A close waits so long for what still begins.
        let mut settings = ExecutorConfig::default();
        settings.close_timeout = Duration::from_secs(1);
        let executor = ToolExecutor::builder().backend(backend).config(settings).start().unwrap();
        Some(Self { registry, executor, data })
    }

    /// Has an image of busybox with a file of this text: its name.
    fn image(&self, tag: &str, text: &str) -> String {
        let own = tar_of(&[("own", text.as_bytes())]);
        let layers = [(busybox(), Packing::Plain), (own, Packing::Plain)];
        self.registry.image("task", tag, &layers, Kind::Oci);
        self.registry.name(&format!("task:{tag}"))
    }

    /// What a new trajectory finds in its image's file.
    fn begin(&self, id: &str, image: &str) -> String {
        self.executor.begin(id, spec(image)).unwrap();
        self.executor.execute(id, bash("cat /own")).output
    }

    /// How many images the store has.
    fn images(&self) -> usize {
        let uid = rustix::process::geteuid().as_raw();
        let stores = fs::read_dir(self.data.path().join(format!("images-{uid}"))).unwrap();
        let images =
            stores.filter_map(|store| fs::read_dir(store.unwrap().path().join("images")).ok());
        images
            .flatten()
            .filter(|entry| {
                !entry.as_ref().unwrap().file_name().as_encoded_bytes().starts_with(b".")
            })
            .count()
    }

    fn layers_fetched(&self, layer: &str) -> usize {
        let seen = self.registry.seen();
        seen.iter().filter(|request| request.is_blob() && request.path.ends_with(layer)).count()
    }
}

#[test]
fn an_image_is_pulled_once_for_all_who_wait_and_others_do_not_wait() {
    // More than there are threads on which trajectories begin.
    const WAITING: usize = 8;
    let Some(setting) = Setting::new(WAITING + 1) else { return };
    let (registry, executor) = (&setting.registry, &setting.executor);
    let tar = busybox();
    let layer = crate::registry::sha256(&tar);
    registry.image("task", "1", &[(tar, Packing::Plain)], Kind::Docker);
    let (begun, arrived) = bounded(16);
    let (hold, until) = bounded::<()>(0);
    let held = layer.clone();
    registry.rule(move |request| {
        let is_layer = request.is_blob() && request.path.ends_with(&held);
        is_layer.then(|| Act::Begin(begun.clone(), until.clone()))
    });
    let name = registry.name("task:1");
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..WAITING)
            .map(|n| {
                let name = &name;
                scope.spawn(move || {
                    let id = format!("waits-{n}");
                    executor.begin(&id, spec(name)).unwrap();
                    let first = executor.execute(&id, bash("cat /file"));
                    (first, executor.execute(&id, bash("cat /file")))
                })
            })
            .collect();
        arrived.recv_timeout(DEADLINE).unwrap();
        let image = Image::new();
        executor.begin("another", spec(&image.name())).unwrap();
        let result = executor.execute("another", bash("cat /app/file"));
        assert_eq!(result.output.trim_end(), "of the image", "{result:?}");
        assert!(!result.metadata.contains_key("image_ms"), "{result:?}");
        drop(hold);
        for waited in waiting {
            let (first, next) = waited.join().unwrap();
            assert_eq!((&*first.output, &*next.output), ("pulled", "pulled"), "{first:?}");
            assert!(first.metadata["image_ms"].as_u64().unwrap() > 0, "{first:?}");
            assert!(!next.metadata.contains_key("image_ms"), "{next:?}");
        }
    });
    assert_eq!(setting.layers_fetched(&layer), 1);
    // It is here now, and its registry is asked no more.
    executor.release("waits-0").unwrap();
    executor.begin("waits-0", spec(&format!("docker://{name}"))).unwrap();
    let again = executor.execute("waits-0", bash("cat /file"));
    assert!(again.output == "pulled" && !again.metadata.contains_key("image_ms"), "{again:?}");
    assert_eq!(registry.seen(), []);
}

#[test]
fn what_cannot_be_pulled_is_said_with_the_registrys_words_and_not_asked_for_again_at_once() {
    let Some(setting) = Setting::new(2) else { return };
    let (registry, executor) = (&setting.registry, &setting.executor);
    let begin = |id: &str, name: &str| match executor.begin(id, spec(name)) {
        Err(BeginError::Failed(failure)) => (failure.outcome(), failure.to_string()),
        other => panic!("{other:?}"),
    };
    let name = registry.name("task:none");
    let (outcome, said) = begin("a", &name);
    assert_eq!(outcome, Outcome::ImageUnavailable);
    assert!(said.contains("manifest unknown"), "{said}");
    let asked = registry.seen().iter().filter(|request| Request::is_manifest(request)).count();
    assert_eq!(asked, 1);
    assert_eq!(begin("b", &name), (outcome, said));
    assert_eq!(registry.seen(), []);
    let call = executor.execute("a", bash("true"));
    assert_eq!((call.outcome, call.may_have_executed), (Outcome::ImageUnavailable, false));
    executor.release("a").unwrap();
    let (outcome, said) = begin("a", "Not A Name");
    assert_eq!(outcome, Outcome::ImageUnavailable);
    assert!(said.contains("python:3.12"), "{said}");
}

#[test]
fn a_pull_ends_with_its_executor() {
    let Some(setting) = Setting::new(1) else { return };
    let (registry, executor) = (&setting.registry, &setting.executor);
    registry.image("task", "1", &[(busybox(), Packing::Plain)], Kind::Oci);
    let (begun, arrived) = bounded(16);
    let (_hold, until) = bounded::<()>(0);
    registry.rule(move |it| it.is_blob().then(|| Act::Begin(begun.clone(), until.clone())));
    let name = registry.name("task:1");
    std::thread::scope(|scope| {
        let begins = scope.spawn(|| executor.begin("a", spec(&name)));
        arrived.recv_timeout(DEADLINE).unwrap();
        executor.close();
        assert!(begins.join().unwrap().is_err());
    });
}

#[test]
fn a_tag_is_asked_for_again_when_its_answer_is_too_old_and_kept_where_there_is_no_other() {
    let refreshed = ImagesConfig::default().with_refresh(Duration::ZERO);
    let Some(setting) = Setting::with(3, refreshed) else { return };
    let name = setting.image("1", "old");
    assert_eq!(setting.begin("a", &name), "old");
    assert_eq!(setting.image("1", "new"), name);
    assert_eq!(setting.begin("b", &name), "new");
    setting.registry.seen();
    setting.registry.rule(|_| Some(Act::Answer(503, String::new(), "{}".to_owned())));
    assert_eq!(setting.begin("c", &name), "new");
    assert!(!setting.registry.seen().is_empty());
    // The trajectory that began with the old one has it.
    assert_eq!(setting.executor.execute("a", bash("cat /own")).output, "old");
}

#[test]
fn a_store_that_is_full_keeps_what_trajectories_and_snapshots_use() {
    let small = ImagesConfig::default().with_store_bytes(1_u64);
    let Some(setting) = Setting::with(2, small) else { return };
    let names: Vec<_> = (0..4).map(|n| setting.image(&n.to_string(), &format!("of {n}"))).collect();
    assert_eq!((setting.begin("a", &names[0]), setting.images()), ("of 0".to_owned(), 1));
    // Both are in use.
    assert_eq!((setting.begin("b", &names[1]), setting.images()), ("of 1".to_owned(), 2));
    let executor = &setting.executor;
    let snapshot = executor.snapshot("a", &SnapshotOptions::default()).unwrap().id;
    for id in ["a", "b"] {
        executor.release(id).unwrap();
    }
    // The snapshot still uses the first one.
    assert_eq!((setting.begin("b", &names[2]), setting.images()), ("of 2".to_owned(), 2));
    let from: TrajectorySpec = serde_json::from_value(json!({"snapshot": snapshot})).unwrap();
    executor.begin("fork", from).unwrap();
    assert_eq!(executor.execute("fork", bash("cat /own")).output, "of 0");
    executor.release("b").unwrap();
    assert_eq!(setting.begin("b", &names[3]), "of 3");
}
