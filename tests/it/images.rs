//! Machines with the files of an image: whatever is in it, commands run as in a container, and
//! nothing of the host is seen or harmed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;
use tool_executor::artifact::{ArtifactError, PutFiles};
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
    // What was made for what the machine shows is root's, wholly.
    assert_eq!(bench.output("stat -c '%u %g' /run"), "0 0");
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
}

#[test]
fn an_image_without_bash_and_tmux_has_those_of_the_host() {
    let image = Image::new();
    let bench = Bench::new(&image);
    let stateful = |command: &str| {
        let call = ToolCall::new("terminal_stateful", json!({"command": command}));
        let result = bench.call("t", call);
        assert_eq!(result.outcome, Outcome::Ok, "{command}: {result:?}");
        result.output
    };
    assert_eq!(stateful("cd /app; v=(1 2 3); echo ${#v[@]} $0"), "3 bash");
    assert_eq!(
        stateful("cat file; echo ${v[2]}; pwd; echo $BASHPID > /tmp/pid"),
        "of the image\n3\n/app"
    );
    // Nothing of it is in the way of the image's own programs.
    assert_eq!(stateful("env | grep -c toolbox; test -e /bin/bash || echo none"), "0\nnone");
    assert_eq!(stateful("cat /proc/$$/comm"), "bash");
    let refused =
        stateful("echo x > /run/toolbox/bin/bash || rm -r /run/toolbox || ls /run/toolbox");
    assert!(refused.ends_with("bin\nlib\nprogram") || refused.contains("Read-only"), "{refused}");
    let keys = |keys: serde_json::Value| {
        let call =
            ToolCall::new("tmux", json!({"action": "send_keys", "keys": keys, "block": true}));
        bench.call("t", call)
    };
    let typed = keys(json!(["cat /app/file > /tmp/seen; tty", "Enter"]));
    assert_eq!(typed.outcome, Outcome::Ok, "{typed:?}");
    let screen = bench.call("t", ToolCall::new("tmux", json!({"action": "capture"})));
    assert!(screen.output.contains("/dev/pts/"), "{screen:?}");
    assert_eq!(bench.output("cat /tmp/seen"), "of the image");
    // The tool `bash` has the image's own shell.
    assert_eq!(bench.output("test -z \"$BASH_VERSION\" && echo sh"), "sh");
}

#[test]
fn files_are_put_into_an_image_and_copied_out_of_it_wherever_they_are() {
    let image = Image::new();
    let before = image.files();
    for users in [UserIds::Auto, UserIds::Shared] {
        let bench = Bench::try_new(&image, LocalConfig::new(1).with_user_ids(users)).unwrap();
        let executor = &bench.executor;
        let put = |request: &PutFiles, bytes: &[u8]| executor.put("t", request, &mut &*bytes);
        let tool = PutFiles::file("/usr/local/bin/tool").with_mode(Some(0o755));
        put(&tool, b"#!/bin/sh\necho ran\n").unwrap();
        assert_eq!(bench.output("tool; stat -c %u:%g /usr/local/bin/tool"), "ran\n0:0");
        // What is the image's is replaced, also where it is what its commands are found by.
        put(&PutFiles::file("/app/file"), b"put\n").unwrap();
        put(&PutFiles::tar("/"), &tar_of("etc/motd", b"hello", 0)).unwrap();
        assert_eq!(bench.output("cat /app/file /etc/motd"), "put\nhello");
        let mut copy = Vec::new();
        executor.copy_artifact("t", "/etc/passwd", &mut copy).unwrap();
        assert!(copy.starts_with(b"root:x:0:0"));
        let refused = put(&PutFiles::file("/proc/self/comm"), b"x").unwrap_err();
        assert!(matches!(refused, ArtifactError::Refused(_)), "{refused}");
        executor.release("t").unwrap();
        assert_eq!(bench.output("cat /app/file; test ! -e /usr"), "of the image");
    }
    assert_eq!(image.files(), before);
    if !is_root() {
        return;
    }
    let bench = Bench::new(&image);
    let executor = &bench.executor;
    let of_agent = PutFiles::file("/srv/d/f").with_owner("agent");
    executor.put("t", &of_agent, &mut &b"x"[..]).unwrap();
    assert_eq!(bench.output("stat -c %U:%G /srv/d/f /srv/d"), "agent:agents\nagent:agents");
    // Root in there is who the caller is: what is another's is no obstacle, also where it is
    // closed.
    bench.output("chmod 700 /srv/d");
    executor.put("t", &PutFiles::file("/srv/d/g"), &mut &b"y"[..]).unwrap();
    executor.put("t", &PutFiles::file("/srv/d/f"), &mut &b"z"[..]).unwrap();
    let kept = PutFiles::tar("/srv/d/tree").with_keep_owners(true);
    executor.put("t", &kept, &mut &*tar_of("sub/h", b"h", 1000)).unwrap();
    assert_eq!(bench.output("cat /srv/d/f /srv/d/g; stat -c %u /srv/d/tree/sub/h"), "zy1000");
    let mut copy = Vec::new();
    executor.copy_artifact("t", "/srv/d/g", &mut copy).unwrap();
    assert_eq!(copy, b"y");
    // What is the operator's is nobody's in there.
    let closed = image.dir.path().join("closed");
    fs::create_dir_all(closed.join("inner")).unwrap();
    fs::write(closed.join("inner/secret"), "secret").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(closed.join("inner"), fs::Permissions::from_mode(0o700)).unwrap();
    let given = LocalConfig::new(1).with_binds(vec![Bind::writable(&closed).with_place("/given")]);
    let other = Image::new();
    let bench = Bench::try_new(&other, given).unwrap();
    let executor = &bench.executor;
    bench.output("mkdir /srv; ln -s /given/inner /srv/link");
    for path in ["/given/inner/secret", "/srv/link/secret", "/given/inner/new"] {
        let error = executor.put("t", &PutFiles::file(path), &mut &b"x"[..]).unwrap_err();
        assert!(matches!(error, ArtifactError::Io(..)), "{path}: {error}");
        let error = executor.copy_artifact("t", path, &mut copy).unwrap_err();
        assert!(!matches!(error, ArtifactError::Outside), "{path}: {error}");
    }
    assert_eq!(
        (fs::read_to_string(closed.join("inner/secret")).unwrap(), &*copy),
        ("secret".into(), &b"y"[..])
    );
}

/// An archive of one file.
fn tar_of(name: &str, content: &[u8], owner: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(owner);
    header.set_gid(owner);
    tar.append_data(&mut header, name, content).unwrap();
    tar.into_inner().unwrap()
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
fn each_jail_of_a_machine_sees_the_image_and_nothing_of_how_it_was_made() {
    let image = Image::new();
    let bench = Bench::try_new(&image, LocalConfig::new(1).with_warm_slots(false)).unwrap();
    let all = "app\nbin\ndev\netc\nhome\nproc\nroot\nrun\nsys\ntmp";
    for round in 0..3 {
        assert_eq!(bench.output("ls /; ls /dev/null"), format!("{all}\n/dev/null"), "{round}");
        assert_eq!(bench.output("ls /..; ls /proc/self/root/.."), format!("{all}\n{all}"));
        let mounts = bench.output("cat /proc/self/mountinfo");
        let roots = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/"));
        assert_eq!(roots.count(), 1, "{mounts}");
        assert!(!mounts.contains("/.layers ") && !mounts.contains("/.root "), "{mounts}");
    }
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

/// A directory of an image that is a link out of it, in the way of what is mounted there.
#[test]
fn directories_that_are_links_lead_nowhere_else() {
    let outside = directory();
    fs::create_dir(outside.path().join("empty")).unwrap();
    let out = outside.path().display().to_string();
    for (name, target) in [
        ("etc", out.as_str()),
        ("etc", "../../../../../../../../../../../../proc/self/root/etc"),
        ("etc", "/proc/1/root"),
        ("tmp", out.as_str()),
        ("run", "/tmp"),
        ("run", "/run"),
        ("sys", out.as_str()),
        ("root", "../.."),
    ] {
        let image = Image::new();
        let _ = fs::remove_dir_all(image.at(name));
        symlink(target, image.at(name)).unwrap();
        // It may be refused, or run; the host is as it was.
        if let Ok(bench) = Bench::try_new(&image, LocalConfig::new(1)) {
            let seen = format!("ls {out}; touch {out}/made /run/made /tmp/made /root/made; ls /");
            let result = bench.call("t", bash(&seen));
            assert!(!result.output.contains("empty"), "{name} -> {target}: {result:?}");
            let refused = result.outcome == Outcome::BackendFailed;
            assert!(refused || result.output.contains("busybox") || result.output.contains("bin"));
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{name} -> {target}");
        assert!(!Path::new("/run/made").exists() && !Path::new("/root/made").exists());
    }
}

/// What fills a slot's limit of bytes is counted wherever it is written in an image.
#[test]
fn what_is_written_in_an_image_counts_towards_the_slots_limits() {
    let image = Image::new();
    let mut config = LocalConfig::new(1);
    config.limits.workspace_bytes = Some(4 << 20);
    let bench = Bench::try_new(&image, config).unwrap();
    let result =
        bench.call("t", bash("while true; do dd if=/dev/zero bs=64k count=1 >> /opt; done"));
    assert_eq!(result.outcome, Outcome::DiskFull, "{result:?}");
    let size = bench.call("t", bash("stat -c %s /opt; rm /opt; echo removed"));
    assert!(size.output.ends_with("removed"), "{size:?}");
}
