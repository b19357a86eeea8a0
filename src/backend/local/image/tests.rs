//! Machines from images, one slot at a time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::json;

use super::*;
use crate::backend::Backend;
use crate::config::LocalConfig;
use crate::tool::Outcome;
use crate::{ToolCall, ToolExecutor};

/// The applets that the tests use.
const APPLETS: [&str; 13] = [
    "sh", "cat", "chown", "echo", "id", "ls", "mkdir", "pwd", "rm", "sleep", "stat", "touch", "env",
];

struct Bench {
    image: tempfile::TempDir,
    _data: tempfile::TempDir,
    backend: LocalBackend,
    executor: ToolExecutor,
}

impl Bench {
    fn new(slots: usize) -> Self {
        let image = tempfile::tempdir().unwrap();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let busybox = busybox.into_iter().find(|path| path.exists());
        let busybox = busybox.expect("these tests need the package busybox-static");
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for name in ["bin", "etc", "home", "home/agent"] {
            fs::create_dir_all(image.path().join(name)).unwrap();
            open(&image.path().join(name), 0o755);
        }
        fs::copy(busybox, image.path().join("bin/busybox")).unwrap();
        for name in APPLETS {
            symlink("busybox", image.path().join("bin").join(name)).unwrap();
        }
        let passwd = "root:x:0:0::/root:\nagent:x:1000:100::/home/agent:\nfar:x:70000:0:::\n";
        fs::write(image.path().join("etc/passwd"), passwd).unwrap();
        open(&image.path().join("etc/passwd"), 0o644);
        let data = tempfile::tempdir().unwrap();
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let config = LocalConfig::new(slots).with_data_dir(data.path());
        let backend = LocalBackend::start(config).unwrap();
        let executor = ToolExecutor::builder().backend(backend.clone()).start().unwrap();
        Self { image, _data: data, backend, executor }
    }

    fn slot(&self, index: usize) -> SlotRef {
        let containers = Backend::start(&self.backend, &Interrupt::new()).unwrap();
        let container = &containers[0];
        SlotRef::new(container.addr.as_str(), index, container.slots[index].as_str(), 1)
    }

    fn spec(&self) -> MachineSpec {
        let image = Arc::new(Image::directory(self.image.path()).unwrap());
        let env = BTreeMap::new();
        MachineSpec { image, frozen: Vec::new(), user: None, workdir: None, env }
    }

    fn output(&self, trajectory: &str, command: &str) -> String {
        let result = self.executor.execute(trajectory, ToolCall::bash(command));
        assert_eq!((result.outcome, &*result.error), (Outcome::Ok, ""), "{command}: {result:?}");
        result.output
    }
}

#[test]
fn commands_are_whom_and_where_a_trajectory_asks_for() {
    let bench = Bench::new(1);
    let env = [("ASKED", "yes"), ("PATH", "/bin:/mine")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let (user, workdir) = (Some("agent".to_owned()), Some("/srv/here".to_owned()));
    let spec = MachineSpec { user, workdir, env, ..bench.spec() };
    bench.backend.bind_image(&bench.slot(0), spec, Settings::default()).unwrap();
    let said = bench.output("t", "id -u; id -g; pwd; echo $HOME $USER $ASKED $PATH");
    assert_eq!(said, "1000\n100\n/srv/here\n/home/agent agent yes /bin:/mine");
    // The directory that was made is theirs; the image's are root's.
    assert_eq!(bench.output("t", "echo x > mine; stat -c '%u %g' . mine"), "1000 100\n1000 100");
    let write = |path: &str| {
        let arguments = json!({"path": path, "content": "x"});
        bench.executor.execute("t", ToolCall::new("write_file", arguments)).outcome
    };
    assert_eq!(write("by-tool"), Outcome::Ok);
    assert_eq!(bench.output("t", "stat -c '%u %g' by-tool"), "1000 100");
    if bench.backend.0.one_user.is_none() && rustix::process::geteuid().is_root() {
        assert_eq!(write("/etc/no"), Outcome::ToolError);
        assert_ne!(
            bench.executor.execute("t", ToolCall::bash("touch /etc/no")).outcome,
            Outcome::Ok
        );
    }
    // Another trajectory has the host's files again.
    bench.executor.release("t").unwrap();
    assert_eq!(bench.output("other", "pwd"), "/workspace");
}

#[test]
fn what_cannot_be_had_is_said_and_the_slot_is_as_it_was() {
    let bench = Bench::new(1);
    let refused = |spec: MachineSpec| {
        let failure =
            bench.backend.bind_image(&bench.slot(0), spec, Settings::default()).unwrap_err();
        assert_eq!(bench.output("t", "pwd"), "/workspace", "{failure}");
        bench.executor.release("t").unwrap();
        (failure.outcome(), failure.to_string())
    };
    let of_user = |user: &str| MachineSpec { user: Some(user.to_owned()), ..bench.spec() };
    for (user, why) in [("nobody", "no user"), ("far", "70000"), ("agent:x", "no group")] {
        let (outcome, text) = refused(of_user(user));
        assert_eq!(outcome, Outcome::SpecUnsupported, "{text}");
        assert!(text.contains(why), "{text}");
    }
    let (outcome, text) = refused(MachineSpec { workdir: Some("/a/../b".into()), ..bench.spec() });
    assert_eq!(outcome, Outcome::SpecUnsupported, "{text}");
    // A shell that is none.
    let shell = bench.image.path().join("bin/sh");
    let put = |content: &[u8]| {
        fs::remove_file(&shell).unwrap();
        fs::write(&shell, content).unwrap();
        fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    };
    put(b"\x7fELF of another machine");
    let (outcome, text) = refused(bench.spec());
    assert_eq!(outcome, Outcome::ImageUnusable, "{text}");
    assert!(text.contains("cannot execute the shell"), "{text}");
    put(b"#!/bin/busybox sh\necho broken; exit 3\n");
    let (outcome, text) = refused(bench.spec());
    assert_eq!(outcome, Outcome::ImageUnusable, "{text}");
    assert!(text.contains("its shell ended with 3: broken"), "{text}");
    fs::remove_file(&shell).unwrap();
    let (outcome, text) = refused(bench.spec());
    assert_eq!(outcome, Outcome::ImageUnusable, "{text}");
}

#[test]
fn a_shell_that_has_run_is_not_tried_again_unless_it_has_changed() {
    let bench = Bench::new(1);
    // A mark for each start of it in the latest machine, which ends.
    let starts = || {
        let (give, finished) = bounded(1);
        let on_end = Box::new(move |_| give.send(()).unwrap());
        bench.backend.0.supervisor.leave(0, on_end);
        finished.recv().unwrap();
        let changed = bench.backend.0.slots[0].workspace().path().join("upper/mark");
        fs::read_to_string(changed).unwrap_or_default()
    };
    let shell = bench.image.path().join("bin/sh");
    fs::remove_file(&shell).unwrap();
    let put = |content: &str| {
        fs::write(&shell, content).unwrap();
        fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    };
    put("#!/bin/busybox sh\necho x >> /mark\nexec /bin/busybox sh \"$@\"\n");
    bench.backend.bind_image(&bench.slot(0), bench.spec(), Settings::default()).unwrap();
    assert_eq!(starts(), "x\n", "it is tried");
    bench.backend.bind_image(&bench.slot(0), bench.spec(), Settings::default()).unwrap();
    assert_eq!(starts(), "", "it has run");
    let agent = MachineSpec { user: Some("agent".to_owned()), ..bench.spec() };
    fs::write(bench.image.path().join("mark"), "").unwrap();
    let open = fs::Permissions::from_mode(0o666);
    fs::set_permissions(bench.image.path().join("mark"), open).unwrap();
    bench.backend.bind_image(&bench.slot(0), agent, Settings::default()).unwrap();
    assert_eq!(starts(), "x\n", "another user may not be able to");
    put("#!/bin/busybox sh\nexit 4\n");
    let failure =
        bench.backend.bind_image(&bench.slot(0), bench.spec(), Settings::default()).unwrap_err();
    assert_eq!(failure.outcome(), Outcome::ImageUnusable, "{failure}");
    bench.executor.release("t").unwrap();
}

#[test]
fn what_a_machine_has_changed_can_be_beneath_another_one() {
    let bench = Bench::new(2);
    bench.backend.bind_image(&bench.slot(0), bench.spec(), Settings::default()).unwrap();
    bench.output("a", "echo one > /one; rm -r /home; mkdir /home; touch /theirs; chown 7 /theirs");
    let inner = &bench.backend.0;
    let old = inner.slots[0].workspace();
    let (base, _) = old.as_base(&mut |_| None).unwrap();
    let above = Arc::new(inner.slots[1].workspace().renew_from(&base).unwrap());
    *inner.slots[1].workspace.lock() = above;
    let seen =
        bench.output("b", "cat /one; ls /home; stat -c %u /one /theirs /bin; echo two > /one");
    let theirs =
        if inner.one_user.is_none() && rustix::process::geteuid().is_root() { 7 } else { 0 };
    assert_eq!(seen, format!("one\n0\n{theirs}\n0"));
    assert_eq!(fs::read_to_string(old.path().join("upper/one")).unwrap(), "one\n");
}
