//! Trajectories that begin with images on sandbox servers: each is put where its image is.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::LocalConfig;
use tool_executor::server::SandboxServer;
use tool_executor::{BeginError, Outcome, ToolExecutor, TrajectorySpec};

use super::{TOKEN, config, executor, fleet, url};
use crate::caller::directory;
use crate::fakes::{bash, until};
use crate::http_client::Client;
use crate::sandbox::is_root;

/// OCI layouts with images of busybox.
struct Layouts(tempfile::TempDir);

impl Layouts {
    fn new() -> Self {
        let layouts = Self(directory());
        fs::create_dir(layouts.0.path().join("files")).unwrap();
        layouts
    }

    /// An image that has its name in `/name`. Gives the name that it is asked for by.
    fn image(&self, name: &str) -> String {
        let layout = self.0.path().join(name);
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let blob = |bytes: &[u8], kind: &str| {
            let digest: String =
                Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            fs::write(blobs.join(&digest), bytes).unwrap();
            json!({"mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": format!("sha256:{digest}"), "size": bytes.len()})
        };
        let layer = self.layer(name);
        let layer = blob(&layer, "layer.v1.tar");
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let configuration = json!({"architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
        let configuration = blob(configuration.to_string().as_bytes(), "config.v1+json");
        let manifest = json!({"schemaVersion": 2, "config": configuration, "layers": [layer]});
        let manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(layout.join("index.json"), index.to_string()).unwrap();
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        format!("oci:{}", layout.display())
    }

    fn layer(&self, name: &str) -> Vec<u8> {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let busybox = busybox.into_iter().find(|path| path.exists());
        let busybox = busybox.expect("these tests need the package busybox-static");
        let files = self.0.path().join("files").join(name);
        fs::create_dir_all(files.join("bin")).unwrap();
        fs::copy(busybox, files.join("bin/busybox")).unwrap();
        for program in ["sh", "cat"] {
            symlink("busybox", files.join("bin").join(program)).unwrap();
        }
        fs::write(files.join("name"), name).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        tar.follow_symlinks(false);
        tar.append_dir_all(".", files).unwrap();
        tar.into_inner().unwrap()
    }
}

/// Servers, each with a data directory of its own.
struct Servers {
    servers: Vec<SandboxServer>,
    data: Vec<PathBuf>,
}

impl Servers {
    fn new(data: &[&Path], slots: usize) -> Self {
        let start = |data: &&Path| {
            let config_of_slots = LocalConfig::new(slots).with_data_dir(*data);
            SandboxServer::start(config(), LocalBackend::start(config_of_slots).unwrap()).unwrap()
        };
        let data_dirs = data.iter().map(|data| data.to_path_buf()).collect();
        Self { servers: data.iter().map(start).collect(), data: data_dirs }
    }

    fn executor(&self) -> ToolExecutor {
        executor(fleet(self.servers.iter().map(url)))
    }

    /// How many images each server has unpacked.
    fn unpacked(&self) -> Vec<usize> {
        let uid = rustix::process::geteuid().as_raw();
        let of_server = |data: &PathBuf| {
            // None was made where there was no image.
            let store = fs::read_dir(data.join(format!("images-{uid}"))).into_iter().flatten();
            let images = store.map(|ids| fs::read_dir(ids.unwrap().path().join("images")).unwrap());
            images
                .flatten()
                .filter(|entry| {
                    let name = entry.as_ref().unwrap().file_name();
                    !name.to_str().unwrap().starts_with('.')
                })
                .count()
        };
        self.data.iter().map(of_server).collect()
    }

    fn told(&self, server: usize) -> Value {
        let token = format!("Bearer {TOKEN}");
        let headers = [("Authorization", token.as_str())];
        let mut client = Client::connect(self.servers[server].addr());
        client.ask("GET", "/images", &headers, b"").json()
    }
}

fn with(image: &str) -> TrajectorySpec {
    TrajectorySpec::default().with_image(image)
}

fn addr(executor: &ToolExecutor, trajectory: &str) -> String {
    executor.slot_of(trajectory).unwrap().addr.to_string()
}

#[test]
fn an_image_is_unpacked_where_it_is_used_again_and_on_no_other_server() {
    let layouts = Layouts::new();
    let images = ["a", "b", "c"].map(|name| layouts.image(name));
    let data = [directory(), directory(), directory()];
    let servers = Servers::new(&data.each_ref().map(|data| data.path()), 2);
    let run = |executor: &ToolExecutor, round: usize| {
        std::thread::scope(|scope| {
            for (image, name) in images.iter().zip(["a", "b", "c"]) {
                for number in 0..2 {
                    scope.spawn(move || {
                        let id = format!("{round}-{name}-{number}");
                        executor.begin(&id, with(image)).unwrap();
                        assert_eq!(executor.execute(&id, bash("cat /name")).output, name);
                    });
                }
            }
        });
        for name in ["a", "b", "c"] {
            let [one, other] = [0, 1].map(|number| format!("{round}-{name}-{number}"));
            assert_eq!(addr(executor, &one), addr(executor, &other));
            executor.release(&one).unwrap();
            executor.release(&other).unwrap();
        }
    };
    let executor = servers.executor();
    run(&executor, 0);
    assert_eq!(servers.unpacked(), [1, 1, 1]);
    let counts = executor.stats().images;
    assert_eq!((counts.pulls, counts.hits + counts.joins), (3, 3), "{counts:?}");
    run(&executor, 1);
    let counts = executor.stats().images;
    assert_eq!((counts.pulls, counts.hits), (3, 6 + 3 - counts.joins), "{counts:?}");
    executor.close();

    // Another executor is told by the servers.
    let mut told = BTreeSet::new();
    for server in 0..3 {
        until(|| servers.told(server)["images"].as_array().unwrap().len() == 2);
        let said = servers.told(server);
        let names = said["images"].as_array().unwrap();
        told.extend(names.iter().map(|name| name.as_str().unwrap().to_owned()));
        assert_eq!((&said["pulling"], &said["disk_full"]), (&json!([]), &json!(false)));
        assert!(said["free_bytes"].as_u64() > said["reserve_bytes"].as_u64(), "{said}");
    }
    assert!(images.iter().all(|image| told.contains(image)), "{told:?}");
    let executor = servers.executor();
    until(|| executor.stats().lanes.iter().all(|lane| lane.images > 0));
    run(&executor, 2);
    let counts = executor.stats().images;
    assert_eq!((counts.hits, counts.joins, counts.pulls), (6, 0, 0));
    assert_eq!(servers.unpacked(), [1, 1, 1]);
    executor.close();
}

#[test]
fn a_name_that_two_servers_do_not_have_is_asked_of_no_third() {
    let data = [directory(), directory(), directory()];
    let servers = Servers::new(&data.each_ref().map(|data| data.path()), 1);
    let executor = servers.executor();
    for trajectory in ["a", "b"] {
        let error = executor.begin(trajectory, with("oci:/no/such/layout")).unwrap_err();
        let BeginError::Failed(failure) = error else { panic!("{error}") };
        assert_eq!(failure.outcome(), Outcome::ImageUnavailable);
        assert!(failure.to_string().contains("there is no /no/such/layout"), "{failure}");
        let result = executor.execute(trajectory, bash("true"));
        assert_eq!(result.outcome, Outcome::ImageUnavailable);
    }
    let counts = executor.stats().images;
    assert_eq!((counts.pulls, counts.retries, counts.refusals), (2, 1, 1), "{counts:?}");
    executor.close();
}

/// A file system that is gone with it.
struct Small(tempfile::TempDir);

impl Small {
    /// `None` where none may be mounted.
    fn new() -> Option<Self> {
        let small = directory();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64m,mode=711", "none"]).arg(small.path());
        let mounted = mount.stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(small))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What still uses it keeps it.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn a_server_whose_disk_is_full_gets_no_image_that_it_lacks() {
    let Some(small) = Small::new() else {
        assert!(!is_root() || std::env::var_os("CI").is_none(), "root may mount a file system");
        // This user may mount none.
        return;
    };
    let (layouts, large) = (Layouts::new(), directory());
    let image = layouts.image("a");
    let servers = Servers::new(&[small.0.path(), large.path()], 1);
    let executor = servers.executor();
    until(|| executor.stats().lanes.iter().filter(|lane| lane.image_disk_full).count() == 1);
    let [full, good] = [0, 1].map(|server| url(&servers.servers[server]));
    executor.begin("a", with(&image)).unwrap();
    assert_eq!(addr(&executor, "a"), good);
    executor.submit_begin("b", with(&image)).unwrap();
    until(|| executor.stats().waiting_for_slot == 1);
    // The other slot is free, for those that need no image.
    assert!(executor.execute("c", bash("true")).success);
    assert_eq!(addr(&executor, "c"), full);
    executor.release("c").unwrap();
    assert_eq!(executor.stats().waiting_for_slot, 1);
    executor.release("a").unwrap();
    assert_eq!(executor.execute("b", bash("cat /name")).output, "a");
    assert_eq!(addr(&executor, "b"), good);
    assert_eq!(servers.unpacked(), [0, 1]);
    assert_eq!(servers.told(0)["disk_full"], json!(true));
    executor.close();
}
