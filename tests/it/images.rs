//! Machines with the files of an image: whatever is in it, commands run as in a container, and
//! nothing of the host is seen or harmed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{Bind, ExecutorConfig, LocalConfig, Policy, UserIds};
use tool_executor::{
    BackendError, BeginError, Outcome, SpecField, ToolCall, ToolExecutor, ToolResult,
    TrajectorySpec,
};

use crate::caller::directory;
use crate::fakes::bash;
use crate::sandbox::is_root;

/// An image of busybox alone, in a directory.
pub(crate) struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    pub(crate) fn new() -> Self {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let busybox = busybox.into_iter().find(|path| path.exists());
        let busybox = busybox.expect("these tests need the package busybox-static");
        let image = Self { dir: directory() };
        for name in ["bin", "etc", "tmp", "root", "home/agent", "app"] {
            fs::create_dir_all(image.at(name)).unwrap();
        }
        fs::set_permissions(image.at("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy(busybox, image.at("bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "ls", "id", "chown", "chmod", "touch", "rm", "mkdir", "stat", "su", "env",
            "pwd", "ln", "mv", "sleep", "find", "grep", "hostname", "nc", "mknod", "echo", "test",
            "wc", "head", "ps", "tar", "cp", "readlink", "ip", "true", "seq", "dd", "setsid",
        ] {
            symlink("busybox", image.at("bin").join(name)).unwrap();
        }
        image.write(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nagent:x:1000:100::/home/agent:/bin/sh\n",
        );
        image.write("etc/group", "root:x:0:\nagents:x:100:\nextra:x:7:agent\n");
        image.write("app/file", "of the image\n");
        image
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.at(path), text).unwrap();
    }

    pub(crate) fn name(&self) -> String {
        format!("dir:{}", self.dir.path().display())
    }

    /// All its files: mode, owner, size.
    fn files(&self) -> BTreeMap<PathBuf, (u32, u32, u64)> {
        let mut all = BTreeMap::new();
        let mut todo = vec![self.dir.path().to_owned()];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let about = path.symlink_metadata().unwrap();
                if about.is_dir() {
                    todo.push(path.clone());
                }
                let size = if about.is_file() { about.len() } else { 0 };
                all.insert(path, (about.mode(), about.uid(), size));
            }
        }
        all
    }
}

struct Bench {
    executor: ToolExecutor,
    data: tempfile::TempDir,
}

impl Bench {
    fn try_new(image: &Image, config: LocalConfig) -> Result<Self, BackendError> {
        let data = directory();
        let config = config.with_data_dir(data.path()).with_image(image.name());
        let backend = LocalBackend::start(config)?;
        let policy = Policy::default().with_allow_network(true);
        let config = ExecutorConfig::default().with_policy(policy);
        let executor = ToolExecutor::builder().backend(backend).config(config).start().unwrap();
        Ok(Self { executor, data })
    }

    fn new(image: &Image) -> Self {
        Self::try_new(image, LocalConfig::new(2)).unwrap()
    }

    fn call(&self, trajectory: &str, call: ToolCall) -> ToolResult {
        self.executor.execute(trajectory, call)
    }

    /// What a command prints.
    fn output(&self, command: &str) -> String {
        let result = self.call("t", bash(command));
        assert_eq!(result.outcome, Outcome::Ok, "{command}: {result:?}");
        assert_eq!(result.error, "", "{command}");
        result.output.trim_end().to_owned()
    }
}

#[test]
fn commands_see_the_image_and_what_they_change_is_gone_with_the_trajectory() {
    let image = Image::new();
    let before = image.files();
    let bench = Bench::new(&image);
    assert_eq!(
        bench.output("cat /app/file; pwd; ls / | grep -c workspace || true"),
        "of the image\n/\n0"
    );
    bench.output(
        "echo changed > /app/file; echo new > /etc/new; rm -r /home; mkdir /home; rm /bin/head; \
         chmod 700 /root; mv /app /moved; ln -s x /link",
    );
    let seen = "cat /moved/file /etc/new; ls /home /bin | grep -c head || true; readlink /link";
    assert_eq!(bench.output(seen), "changed\nnew\n0\nx");
    // The other slot has its own.
    let other = bench.call("other", bash("cat /app/file; ls /etc/new"));
    assert!(other.output.starts_with("of the image\n"), "{other:?}");
    bench.executor.release("t").unwrap();
    assert_eq!(
        bench.output("cat /app/file; ls /home; test -e /etc/new || echo gone"),
        "of the image\nagent\ngone"
    );
    assert_eq!(image.files(), before, "the image is as it was");
    // Nothing of it is in the host's mounts, and nothing is left behind.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&image.dir.path().display().to_string()), "{mounts}");
    let Bench { executor, data } = bench;
    drop(executor);
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
}

#[test]
fn commands_are_root_in_the_image_with_all_its_users() {
    let image = Image::new();
    let bench = Bench::new(&image);
    assert_eq!(bench.output("id -u; echo $HOME $USER $SHELL"), "0\n/root root /bin/sh");
    // What installs packages does all of this.
    bench.output("touch /f; chown 1000:100 /f; chmod 4755 /f; mkdir -p /usr/bin; chown -R 7 /usr");
    if is_root() {
        assert_eq!(bench.output("stat -c '%u %g %a' /f"), "1000 100 4755");
        let su = "su agent -c 'id -u; id -g; id -G; touch /tmp/mine; cat /root/x /etc/shadow; \
                  touch /bin/no || echo denied'; stat -c %u /tmp/mine";
        let result = bench.call("t", bash(su));
        assert!(result.output.starts_with("1000\n100\n100 7\ndenied\n1000\n"), "{result:?}");
    } else {
        // One id stands for all: what would give files to others has no effect.
        assert_eq!(bench.output("stat -c '%u %g %a' /f"), "0 0 4755");
        assert_eq!(bench.output("su agent -c 'id -u'"), "0");
    }
    // In its own namespaces only.
    for denied in ["echo x > /proc/sys/kernel/hostname", "hostname other", "ip link add type dummy"]
    {
        let result = bench.call("t", bash(denied));
        assert_ne!(result.outcome, Outcome::Ok, "{denied}: {result:?}");
    }
    bench.call("t", bash("mknod /sda b 8 0; mknod /null c 1 3"));
    assert_eq!(bench.output("find / -xdev -type b; find / -xdev -type c"), "");
    assert_eq!(bench.output("hostname"), "sandbox");
}

#[test]
fn files_sessions_and_outputs_work_in_an_image() {
    let image = Image::new();
    let bench = Bench::new(&image);
    let write = ToolCall::new("write_file", json!({"path": "/app/new", "content": "text"}));
    assert_eq!(bench.call("t", write).outcome, Outcome::Ok);
    assert_eq!(bench.output("cat /app/new; stat -c %u /app/new"), "text0");
    let read = ToolCall::new("read_file", json!({"path": "/app/file"}));
    assert_eq!(bench.call("t", read).output, "of the image\n");
    let result = bench.call("t", bash("seq 100000"));
    let path = result.metadata["output_file"].as_str().expect("a complete output").to_owned();
    assert!(path.starts_with("/root/.tool-output/"), "{path}");
    assert_eq!(bench.output(&format!("wc -l < {path}; head -n 1 {path}")), "100000\n1");
    // It has no bash and no tmux, which is not the model's doing.
    let shell = bench.call("t", ToolCall::new("terminal_stateful", json!({"command": "true"})));
    assert!(shell.error.contains("the image has no bash"), "{shell:?}");
    assert!(!shell.outcome.model_attributable(), "{shell:?}");
    let tmux = ToolCall::new("tmux", json!({"action": "send_keys", "keys": ["x"]}));
    let tmux = bench.call("t", tmux);
    assert!(tmux.error.contains("tmux") && !tmux.outcome.model_attributable(), "{tmux:?}");
}

#[test]
fn a_machine_with_another_network_has_the_same_files() {
    let image = Image::new();
    let bench = Bench::new(&image);
    bench.output("echo one > /shared; touch /dev/shm/one");
    let without = ToolCall::new(
        "bash",
        json!({"command": "cat /shared; ls /dev/shm; echo two >> /shared; ip link | grep -c mtu",
               "allow_network": false}),
    );
    let result = bench.call("t", without);
    assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
    assert!(result.output.starts_with("one\none\n"), "{result:?}");
    assert_eq!(bench.output("cat /shared"), "one\ntwo");
}

#[test]
fn what_the_operator_gives_is_in_an_image_too() {
    let image = Image::new();
    let given = directory();
    fs::write(given.path().join("tool"), "#!/bin/sh\necho tool\n").unwrap();
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(given.path().join("tool"), mode.clone()).unwrap();
    fs::set_permissions(given.path(), mode).unwrap();
    let mut config = LocalConfig::new(1);
    config.binds = vec![
        Bind::read_only(given.path()).with_place("/extra/given"),
        Bind::read_only(given.path().join("tool")).with_place("/etc/given/tool"),
    ];
    config.path_prepend = vec!["/extra/given".into()];
    config.env.insert("GIVEN".to_owned(), Some("yes".to_owned()));
    let bench = Bench::try_new(&image, config).unwrap();
    let command = "tool; /etc/given/tool; echo $GIVEN; touch /extra/given/x || echo read-only";
    let result = bench.call("t", bash(command));
    assert_eq!(
        result.output.lines().collect::<Vec<_>>()[..4],
        ["tool", "tool", "yes", "read-only"]
    );
}

#[test]
fn nothing_in_an_image_leads_out_of_it() {
    let image = Image::new();
    let outside = directory();
    fs::write(outside.path().join("secret"), "the host's\n").unwrap();
    let out = outside.path().display().to_string();
    // Whatever is in the place of what the machine mounts.
    fs::write(image.at("etc/hosts"), "the image's").unwrap();
    symlink(format!("{out}/secret"), image.at("etc/resolv.conf")).unwrap();
    symlink(format!("{out}/made"), image.at("etc/hostname")).unwrap();
    symlink(&out, image.at("run")).unwrap();
    fs::remove_dir(image.at("root")).unwrap();
    symlink(&out, image.at("root")).unwrap();
    image.write("etc/ld.so.preload", "/tmp/evil.so\n");
    let bench = Bench::try_new(&image, LocalConfig::new(1));
    // It may be refused, or run; the host is as it was.
    if let Ok(bench) = bench {
        let result = bench.call("t", bash(&format!("cat {out}/secret /etc/resolv.conf; ls /run")));
        assert!(!result.output.contains("the host's"), "{result:?}");
    }
    let names: Vec<_> =
        fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["secret"]);
}

#[test]
fn an_image_whose_mount_points_are_links_is_refused() {
    for name in ["proc", "dev"] {
        let image = Image::new();
        symlink("/tmp", image.at(name)).unwrap();
        let bench = Bench::new(&image);
        let result = bench.call("t", bash("true"));
        assert_ne!(result.outcome, Outcome::Ok, "{name}");
        assert!(!result.outcome.model_attributable(), "{result:?}");
        assert!(result.error.contains(&format!("/{name}")), "{result:?}");
    }
}

#[test]
fn an_image_that_cannot_be_used_is_refused_at_the_start() {
    let without_shell = Image::new();
    fs::remove_file(without_shell.at("bin/sh")).unwrap();
    let error = Bench::try_new(&without_shell, LocalConfig::new(1)).err().unwrap();
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(text.contains("neither bash nor /bin/sh"), "{text}");
    let missing = LocalConfig::new(1).with_image("dir:/no/such/image");
    let error = LocalBackend::start(missing).unwrap_err();
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(text.contains("/no/such/image"), "{text}");
}

#[test]
fn slots_with_one_id_have_an_image_too() {
    let image = Image::new();
    let config = LocalConfig::new(2).with_user_ids(UserIds::Shared);
    let bench = Bench::try_new(&image, config).unwrap();
    assert_eq!(
        bench.output("id -u; touch /x; chown 7 /x; stat -c %u /x; cat /app/file"),
        "0\n0\nof the image"
    );
    bench.output("rm -r /app /etc; mkdir /etc; echo x > /etc/passwd");
}

#[test]
fn a_trajectory_may_ask_for_an_image_and_its_neighbour_has_the_hosts_files() {
    let image = Image::new();
    let data = directory();
    let backend = LocalBackend::start(LocalConfig::new(2).with_data_dir(data.path())).unwrap();
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    assert!(executor.capabilities().spec.contains(&SpecField::Image));
    let spec = |json: serde_json::Value| serde_json::from_value::<TrajectorySpec>(json).unwrap();
    let asked = json!({
        "image": image.name(), "user": "agent", "workdir": "/home/agent/work",
        "env": {"A": "b", "PATH": "/bin:/opt/bin"},
        "files": [{"path": "/tmp/given", "content": "x"}],
    });
    executor.begin("t", spec(asked)).unwrap();
    let run = |id: &str, command: &str| executor.execute(id, bash(command));
    let shown = run("t", "pwd; echo $A $PATH; cat /tmp/given; echo; id -un; cat /app/file");
    let expected = "/home/agent/work\nb /bin:/opt/bin\nx\nagent\nof the image";
    assert_eq!(shown.output.trim_end(), expected, "{shown:?}");
    assert!(run("u", "python3 -c 'print(1)'; cat /app/file").output.starts_with('1'));
    executor.release("t").unwrap();
    assert!(!run("t", "cat /app/file").success, "the host's files again");
    executor.release("t").unwrap();

    let failed = |json| match executor.begin("t", spec(json)) {
        Err(BeginError::Failed(failure)) => {
            executor.release("t").unwrap();
            (failure.outcome(), failure.to_string())
        }
        other => panic!("{other:?}"),
    };
    let missing = failed(json!({"image": "dir:/nonexistent"}));
    assert_eq!(missing.0, Outcome::ImageUnavailable, "{missing:?}");
    let nobody = failed(json!({"image": image.name(), "user": "nobody-there"}));
    assert_eq!(nobody.0, Outcome::SpecUnsupported, "{nobody:?}");
    let without = failed(json!({"user": "agent"}));
    assert_eq!(without.0, Outcome::SpecUnsupported, "{without:?}");
    fs::remove_file(image.at("bin/sh")).unwrap();
    let no_shell = failed(json!({"image": image.name()}));
    assert_eq!(no_shell.0, Outcome::ImageUnusable, "{no_shell:?}");
    assert_eq!(run("t", "echo fine").output, "fine");
}
