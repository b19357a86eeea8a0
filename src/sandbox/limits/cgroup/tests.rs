use super::*;

fn limits() -> SlotLimits {
    SlotLimits { memory_bytes: Some(64 << 20), processes: Some(8), ..SlotLimits::none() }
}

#[test]
fn numbers_are_read_from_what_the_kernel_counts() {
    assert_eq!(number("low 0\noom 3\noom_kill 2\noom_group_kill 1\n", "oom_kill"), 2);
    assert_eq!(number("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", "oom_kill"), 7);
    assert_eq!(number("max 4\n", "max"), 4);
    assert_eq!(number("", "max"), 0);
}

/// A directory in place of the kernel's: nothing appears in a new one by itself.
#[test]
fn in_a_group_without_controllers_there_are_none_and_nothing_is_left() {
    let mount = tempfile::tempdir().unwrap();
    let own = mount.path().join("a/b");
    fs::create_dir_all(&own).unwrap();
    let dead = own.join("tool-executor-4194304-7-0123");
    fs::create_dir_all(dead.join("slot-0/sandbox-0")).unwrap();
    let alive = Engine::this();
    let neighbour = own.join(alive.unique_name());
    fs::create_dir(&neighbour).unwrap();
    let engine = Engine { pid: alive.pid, started: alive.started + 1 };
    let place = mount.path().display().to_string().replace('\\', "\\134").replace(' ', "\\040");
    let mountinfo = format!("1 2 0:1 / {place} rw - cgroup2 cgroup2 rw\n");
    let failure = Cgroups::start(&mountinfo, "0::/a/b\n", engine, &limits()).unwrap_err();
    assert!(failure.starts_with("cannot limit a cgroup"), "{failure}");
    let left: Vec<_> = fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [neighbour], "of the dead and of the failed nothing is left");
    let failure = Cgroups::start("", "1:cpu:/\n", engine, &limits()).unwrap_err();
    let expected = "there is no cgroup of version 2; there is no cgroup of version 1 for memory";
    assert_eq!(failure, expected);
}

/// Those of this machine, if it lets this process have some.
fn of_this_machine() -> Option<Cgroups> {
    let text = |file: &str| fs::read_to_string(file).unwrap();
    let (mounts, own) = (text("/proc/self/mountinfo"), text("/proc/self/cgroup"));
    // The harness shows it with --nocapture.
    let started = Cgroups::start(&mounts, &own, Engine::this(), &limits());
    started.inspect_err(|why| log::warn!("could not run: {why}")).ok()
}

#[test]
fn a_slots_limits_hold_what_is_refused_is_counted_and_nothing_is_left() {
    let Some(groups) = of_this_machine() else { return };
    let group = groups.sandbox(3, &limits()).unwrap();
    let run = |script: &str| {
        let shell = ["-c", "read -r go; eval \"$0\"", script];
        let mut child = std::process::Command::new("/bin/bash")
            .args(shell)
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        group.enter(child.id() as i32).unwrap();
        let inside = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        assert!(inside.contains("/slot-3"), "{inside}");
        use std::io::Write;
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        child.wait().unwrap()
    };
    let before = group.refusals();
    assert!(run("true").success());
    assert_eq!(group.refusals(), before);
    // More processes than there may be, beside those that the engine has.
    run("for i in {1..40}; do sleep 0.1 & done; wait");
    let after = group.refusals();
    assert!(after.processes > before.processes && after.kills == before.kills, "{after:?}");
    // More memory.
    assert!(!run("head -c 200M /dev/zero | tail -c 200M > /dev/null").success());
    assert!(group.refusals().kills > after.kills);
    assert_eq!(group.kill_count().read(), group.refusals().kills);
    assert!(group.slot.shown().iter().all(|shown| shown.host.is_dir()));
    let trees: Vec<_> = groups.inner.trees.iter().map(|tree| tree.path.clone()).collect();
    assert!(trees.iter().all(|tree| tree.is_dir()));
    drop((group, groups));
    assert!(!trees.iter().any(|tree| tree.exists()));
}
