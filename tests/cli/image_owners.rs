//! Machines from images where the program is root and may not show files with other owners, as in
//! a container: their files have their owners all the same.

use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::*;

/// What `docker save` writes of an image with busybox and a user.
fn archive() -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|at| fs::read(at).ok());
    let busybox = busybox.expect("these tests need the package busybox-static");
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: EntryType, (mode, id): (u32, u64), bytes: &[u8]| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(id);
        header.set_gid(id);
        header.set_size(bytes.len() as u64);
        layer.append_data(&mut header, name, bytes).unwrap();
    };
    add("bin/busybox", EntryType::Regular, (0o755, 0), &busybox);
    for name in ["sh", "cat", "stat", "chown", "id", "rm", "ls", "echo", "test"] {
        let text = format!("#!/bin/busybox sh\nexec /bin/busybox {name} \"$@\"\n");
        add(&format!("bin/{name}"), EntryType::Regular, (0o755, 0), text.as_bytes());
    }
    add("bin/sh", EntryType::Regular, (0o755, 0), &busybox);
    let users = b"root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n";
    add("etc/passwd", EntryType::Regular, (0o644, 0), users);
    add("home/agent", EntryType::Directory, (0o700, 1000), b"");
    add("home/agent/file", EntryType::Regular, (0o600, 1000), b"the agent's\n");
    let layer = layer.into_inner().unwrap();
    let digest: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let list = json!([{"Config": "c.json", "RepoTags": ["task:1"], "Layers": ["layer.tar"]}]);
    let (config, list) = (config.to_string(), list.to_string());
    let mut tar = tar::Builder::new(Vec::new());
    let files = [
        ("layer.tar", &layer[..]),
        ("c.json", config.as_bytes()),
        ("manifest.json", list.as_bytes()),
    ];
    for (name, bytes) in files {
        let mut header = Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn line(id: &str, user: &str, commands: &[&str]) -> String {
    let call = |command: &&str| json!({"name": "bash", "arguments": {"command": command}});
    let calls: Vec<_> = commands.iter().map(call).collect();
    json!({"trajectory_id": id, "spec": {"user": user}, "calls": calls}).to_string()
}

#[test]
fn files_have_their_owners_where_root_may_not_show_them_with_others() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let setup = Setup::new(&[
        line(
            "root",
            "root",
            &[
                "id -u; stat -c '%u %n' /bin/cat /home/agent /home/agent/file; cat /home/agent/file",
                "echo new > /etc/new; chown 7:8 /etc/new /bin/cat; stat -c %u:%g /etc/new /bin/cat",
                "rm -r /home/agent; ls /home",
            ],
        ),
        line("agent", "agent", &["id -u; cat /home/agent/file; echo x > /etc/new", "cat /etc/new"]),
    ]);
    fs::write(setup.path("task.tar"), archive()).unwrap();
    let (task, data) = (setup.path("task.tar"), setup.path("data"));
    let image = format!("docker-archive:{}", task.display());
    let data = data.to_str().unwrap();
    let flags = ["--image", &*image, "--data-dir", data, "--slots", "1", "--concurrency", "1"];
    let whole = setup.command(&flags);
    // All that root has in a container of default settings, but for one that counts here.
    let mut weak = Command::new("setpriv");
    weak.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]);
    weak.arg(whole.get_program()).args(whole.get_args()).args(["--log", "info"]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOOL_EXECUTOR_") {
            weak.env_remove(name);
        }
    }
    let run = Run::of(weak.output().unwrap());
    let printed = |id: &str| -> Vec<(String, String)> {
        let of = setup.results().into_iter().filter(|result| result["trajectory_id"] == id);
        let text = |result: &Value, key: &str| result[key].as_str().unwrap().trim_end().to_owned();
        of.map(|result| (text(&result, "output"), text(&result, "error"))).collect()
    };
    let root = printed("root");
    let first = "0\n0 /bin/cat\n1000 /home/agent\n1000 /home/agent/file\nthe agent's";
    assert_eq!(root[0].0, first, "{run:?}");
    assert_eq!((&*root[1].0, &*root[2].0), ("7:8\n7:8", ""), "{root:?}");
    let agent = printed("agent");
    assert!(agent[0].0.starts_with("1000\nthe agent's"), "{agent:?}");
    assert!(agent[0].0.contains("Permission denied"), "{agent:?}");
    assert!(agent[1].0.contains("No such file"), "the other one's is gone: {agent:?}");
    assert!(run.stderr.contains("all machines from images are one user"), "{run:?}");
}
