//! Limits of slots: runaways end in their own slot, as what they are, while a neighbour's calls go
//! on.

use std::time::{Duration, Instant};

use serde_json::json;
use tool_executor::backend::Backend;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{LocalConfig, ServerConfig, SlotLimits};
use tool_executor::stats::Enforcement;
use tool_executor::{Outcome, ToolCall, ToolExecutor, ToolResult};

use crate::caller::directory;
use crate::fakes::{PATIENCE, bash, until};
use crate::sandbox::is_root;

const MIB: u64 = 1 << 20;

/// An executor with two slots, which keep their sandboxes, under such limits and no others.
fn executor(set: impl FnOnce(&mut SlotLimits)) -> (tempfile::TempDir, ToolExecutor) {
    executor_of(true, set)
}

fn executor_of(warm: bool, set: impl FnOnce(&mut SlotLimits)) -> (tempfile::TempDir, ToolExecutor) {
    let dir = directory();
    let mut config = LocalConfig::new(2);
    config.data_dir = Some(dir.path().to_owned());
    config.limits = SlotLimits::none();
    config.warm_slots = warm;
    set(&mut config.limits);
    let backend = LocalBackend::start(config).unwrap();
    assert_eq!(
        (backend.not_isolated_because(), backend.capabilities().warm_slots),
        (None, Some(warm))
    );
    (dir, ToolExecutor::builder().backend(backend).start().unwrap())
}

/// Runs a command as the runaway, while a neighbour makes call after call that must succeed.
fn beside_a_neighbour(executor: &ToolExecutor, command: &str, timeout_s: u64) -> ToolResult {
    let timeout = Duration::from_secs(timeout_s);
    let begun = Instant::now();
    let runaway = executor.submit("runaway", bash(command).with_timeout(timeout)).unwrap();
    loop {
        let echo = executor.execute("neighbour", bash("echo $((6 * 7)) | cat"));
        assert_eq!((echo.outcome, &*echo.output), (Outcome::Ok, "42"), "{command}: {echo:?}");
        if runaway.is_done() {
            break;
        }
        assert!(begun.elapsed() < timeout + PATIENCE, "{command}");
    }
    let result = runaway.wait_timeout(PATIENCE).unwrap();
    assert!(!result.metadata.contains_key("processes_left"), "{result:?}");
    result
}

fn run(executor: &ToolExecutor, command: &str) -> ToolResult {
    executor.execute("runaway", bash(command))
}

fn output(executor: &ToolExecutor, command: &str) -> String {
    let result = run(executor, command);
    assert_eq!(result.outcome, Outcome::Ok, "{command}: {result:?}");
    result.output
}

#[test]
fn a_fork_bomb_ends_in_its_own_slot() {
    for warm in [true, false] {
        let (_dir, executor) = executor_of(warm, |limits| limits.processes = Some(64));
        let by = executor.stats().limits.unwrap().processes;
        assert!(matches!(by, Enforcement::Rlimit | Enforcement::Cgroup), "needs Linux 5.14");
        let count =
            "perl -e '$n = 0; while (defined($p = fork())) { sleep 60 if !$p; $n++ } print $n'";
        // Before the line about those that were ended with it.
        let started = || output(&executor, count).lines().next().unwrap().parse::<u64>().unwrap();
        let before = started();
        assert!((32..64).contains(&before), "{before}");
        let bomb = beside_a_neighbour(&executor, ":(){ :|:& };:; sleep 60", 3);
        assert_eq!(bomb.outcome, Outcome::Timeout, "{bomb:?}");
        // What is still being reaped counts until it is gone.
        until(|| started() == before);
    }
}

#[test]
fn a_memory_hog_is_out_of_memory() {
    for warm in [true, false] {
        let (_dir, executor) = executor_of(warm, |limits| limits.memory_bytes = Some(128 * MIB));
        assert_ne!(executor.stats().limits.unwrap().memory, Enforcement::None);
        for hog in [
            "perl -e '$x = \"x\" x 65536; $x .= $x while 1'",
            "x=x; while :; do x=$x$x; done",
            "for i in $(seq 60); do perl -e '$x = \"x\" x (4 << 20); sleep 60' & done; wait",
            // No process has mapped it.
            &format!(
                "perl -e 'open(F, \">&=\", syscall({}, $n = \"m\", 0)); $x = \"x\" x 65536; \
                 syswrite(F, $x) while 1'",
                libc::SYS_memfd_create
            ),
        ] {
            let result = beside_a_neighbour(&executor, hog, 60);
            assert_eq!(result.outcome, Outcome::OutOfMemory, "{hog}: {result:?}");
            assert!(!result.success && result.may_have_executed);
            assert_eq!(result.metadata["limit"], "memory");
            assert_eq!(output(&executor, "echo next"), "next");
        }
        assert!(executor.stats().outcomes.get(Outcome::OutOfMemory) == 4);
    }
}

#[test]
fn memory_that_processes_share_counts_once() {
    let (_dir, executor) = executor(|limits| limits.memory_bytes = Some(128 * MIB));
    let forked = "perl -e '$x = \"x\" x (60 << 20); for (1..4) { fork() or do { sleep 2; exit } } \
                  1 while wait() > 0; print \"done\"'";
    assert_eq!(output(&executor, forked), "done");
    // Half of the limit.
    let shared = run(&executor, "head -c 80M /dev/zero > /dev/shm/x; stat -c %s /dev/shm/x");
    assert!(shared.output.contains("No space left"), "{shared:?}");
    assert!(shared.output.contains(&(64 * MIB).to_string()), "{shared:?}");
}

#[test]
fn a_disk_filler_ends_and_the_slot_has_to_be_cleaned_up() {
    for warm in [true, false] {
        let (_dir, executor) = executor_of(warm, |limits| limits.workspace_bytes = Some(32 * MIB));
        assert_eq!(executor.stats().limits.unwrap().workspace, Enforcement::Watch);
        for filler in [
            "dd if=/dev/zero of=big bs=64K",
            "dd if=/dev/zero of=/tmp/big bs=64K",
            "i=0; while :; do i=$((i + 1)); mkdir d$i; head -c 200000 /dev/zero > d$i/f; done",
            "perl -e 'open(F, \">\", \"f\"); unlink(\"f\"); $x = \"x\" x 65536; syswrite(F, $x) while 1'",
        ] {
            let result = beside_a_neighbour(&executor, filler, 120);
            assert_eq!(result.outcome, Outcome::DiskFull, "{filler}: {result:?}");
            assert_eq!(result.metadata["limit"], "workspace");
            assert_eq!(output(&executor, "rm -rf /workspace/* /tmp/*; echo clean"), "clean");
            // Until that was seen the slot cannot write.
            let patience = Instant::now() + PATIENCE;
            while run(&executor, "echo text > file").outcome != Outcome::Ok {
                assert!(Instant::now() < patience, "it never may write again: {filler}");
            }
        }
    }
}

#[test]
fn what_makes_files_without_end_is_ended_and_its_slot_has_to_be_cleaned_up() {
    let (_dir, executor) = executor(|limits| limits.files = Some(2000));
    let held = executor.stats().limits.unwrap();
    assert_eq!((held.files, held.workspace), (Enforcement::Watch, Enforcement::None));
    for place in ["/workspace", "/tmp", "~"] {
        let fill = r#"perl -e 'for ($i = 0; ; $i++) { mkdir "d$i"; symlink("x", "d$i/l") }'"#;
        let filler = format!("cd {place}; {fill}");
        let result = beside_a_neighbour(&executor, &filler, 120);
        assert_eq!(result.outcome, Outcome::DiskFull, "{place}: {result:?}");
        assert_eq!(result.metadata["limit"], "files");
        assert_eq!(output(&executor, &format!("rm -rf {place}/d*; echo clean")), "clean");
        let patience = Instant::now() + PATIENCE;
        while run(&executor, "echo text > file").outcome != Outcome::Ok {
            assert!(Instant::now() < patience, "it never may write again: {place}");
        }
    }
}

#[test]
fn what_is_in_memory_without_a_process_counts_as_memory() {
    let (_dir, executor) = executor(|limits| limits.memory_bytes = Some(128 * MIB));
    if executor.stats().limits.unwrap().memory != Enforcement::Watch || !is_root() {
        return;
    }
    // Each below the limit, both together above it.
    let hog = "head -c 60M /dev/zero > /dev/shm/x; \
               perl -e '$x = \"x\" x (90 << 20); sleep 30; print \"done\"'";
    let result = run(&executor, hog);
    assert_eq!(result.outcome, Outcome::OutOfMemory, "{result:?}");
}

#[test]
fn a_full_slot_can_remove_files_and_is_as_new_after_a_reset() {
    for warm in [true, false] {
        let (_dir, executor) = executor_of(warm, |limits| limits.workspace_bytes = Some(8 * MIB));
        // So short that no watch looks while it runs, unless the machine is slow.
        let filled = run(&executor, "head -c 12M /dev/zero > big");
        assert!([Outcome::Ok, Outcome::DiskFull].contains(&filled.outcome), "{filled:?}");
        let patience = Instant::now() + PATIENCE;
        let refused = loop {
            let result = run(&executor, "echo text > file");
            // On a slow machine it may be running just when that is seen.
            if ![Outcome::Ok, Outcome::DiskFull].contains(&result.outcome) {
                break result;
            }
            assert!(Instant::now() < patience, "nobody saw that the slot is full");
        };
        assert_eq!(refused.outcome, Outcome::NonZeroExit, "{refused:?}");
        // Reading, and whatever does not write to files, goes on: also slowly.
        let size: u64 = output(&executor, "sleep 0.3; wc -c < big | cat").parse().unwrap();
        assert!(size > 8 * MIB, "{size}");
        executor.release("runaway").unwrap();
        assert_eq!(output(&executor, "ls; echo text > file; cat file"), "text");
    }
}

#[test]
fn open_files_and_the_size_of_files_are_bounded_and_no_limit_can_be_raised() {
    for warm in [true, false] {
        let (_dir, executor) = executor_of(warm, |limits| {
            limits.open_files = Some(64);
            limits.file_bytes = Some(16 * MIB);
            limits.processes = Some(200);
        });
        let hog =
            "perl -e 'while (open(my $f, \"<\", \"/dev/null\")) { push @f, $f } print scalar(@f)'";
        let opened: u64 = output(&executor, hog).parse().unwrap();
        assert!((32..64).contains(&opened), "{opened}");
        assert_eq!(output(&executor, "truncate -s 16M sparse; stat -c %s sparse"), "16777216");
        let beyond = run(&executor, "truncate -s 1G huge");
        assert_eq!(beyond.outcome, Outcome::NonZeroExit, "{beyond:?}");
        let written = run(&executor, "head -c 1G /dev/zero > file; stat -c %s file");
        assert!(written.output.contains("16777216"), "{written:?}");
        for trick in [
            "ulimit -n 65",
            "ulimit -u unlimited",
            "ulimit -f unlimited",
            "prlimit --pid $$ --nproc=unlimited:unlimited",
            "prlimit --pid 1 --nofile=16:16",
            "echo 0 > /proc/self/oom_score_adj",
        ] {
            let result = run(&executor, trick);
            assert_eq!(result.outcome, Outcome::NonZeroExit, "{trick}: {result:?}");
        }
        assert_eq!(output(&executor, "ulimit -n; ulimit -u"), "64\n200");
        // An ordinary user's engine may not set it for a sandbox's first process.
        if is_root() {
            assert_eq!(output(&executor, "cat /proc/self/oom_score_adj"), "1000");
        }
    }
}

fn call(executor: &ToolExecutor, tool: &str, arguments: serde_json::Value) -> ToolResult {
    executor
        .execute("runaway", ToolCall::new(tool, arguments).with_timeout(Duration::from_secs(60)))
}

#[test]
fn sessions_have_limits_of_their_own_also_between_calls() {
    let (_dir, executor) = executor(|limits| {
        limits.memory_bytes = Some(128 * MIB);
        limits.workspace_bytes = Some(32 * MIB);
        limits.processes = Some(64);
    });
    let stateful =
        |command: &str| call(&executor, "terminal_stateful", json!({"command": command}));
    for (runaway, outcome, limit) in [
        ("x=x; while :; do x=$x$x; done", Outcome::OutOfMemory, "memory"),
        ("dd if=/dev/zero of=/tmp/big bs=64K", Outcome::DiskFull, "workspace"),
    ] {
        assert_eq!(stateful("v=kept; ulimit -u").output, "64");
        let result = stateful(runaway);
        assert_eq!(result.outcome, outcome, "{runaway}: {result:?}");
        assert_eq!(
            (&result.metadata["limit"], &result.metadata["session"]),
            (&json!(limit), &json!("ended"))
        );
        assert_eq!(stateful("echo new $v; rm -f /tmp/big").output, "new");
    }
    // While no call of it runs.
    let started = stateful("(sleep 0.2; x=x; while :; do x=$x$x; done) & echo $!");
    assert_eq!(started.outcome, Outcome::Ok, "{started:?}");
    let patience = Instant::now() + PATIENCE;
    while stateful("true").metadata["session"] != "started" {
        assert!(Instant::now() < patience, "the session with the hog lives on");
    }

    let keys = |keys: &str| {
        call(&executor, "tmux", json!({"action": "send_keys", "keys": keys, "block": true}))
    };
    let result = keys("x=x; while :; do x=$x$x; done\n");
    assert_eq!(result.outcome, Outcome::OutOfMemory, "{result:?}");
    assert_eq!(result.metadata["session_ended"], true);
    assert_eq!(keys("clear\n").outcome, Outcome::Ok);
    assert_eq!(run(&executor, "echo as before").output, "as before");
}

#[test]
fn limits_without_sense_are_refused_and_what_holds_is_told() {
    let mut config = LocalConfig::new(1);
    config.limits.processes = Some(1);
    let error = LocalBackend::start(config).unwrap_err();
    assert!(error.to_string().contains("processes is 1"), "{error}");
    let (_dir, executor) = executor(|limits| *limits = SlotLimits::default());
    let held = executor.stats().limits.unwrap();
    assert!(held.seccomp);
    let all =
        [held.processes, held.memory, held.open_files, held.file_bytes, held.workspace, held.files];
    assert_eq!(held.advisory, held.memory != Enforcement::Cgroup, "{held:?}");
    for by in all {
        assert_ne!(by, Enforcement::None, "{held:?}");
    }
    assert_eq!(held.cpu, Enforcement::None, "no limit");
}

#[test]
fn commands_run_under_the_least_limits_that_are_allowed() {
    let (_dir, executor) = executor(|limits| {
        *limits = SlotLimits::none()
            .with_processes(Some(8))
            .with_memory_bytes(Some(16 * MIB))
            .with_open_files(Some(16))
            .with_file_bytes(Some(4096))
            .with_workspace_bytes(Some(64 << 10))
            .with_files(Some(64));
    });
    for _ in 0..3 {
        // With a wait between the commands, in which a limit is met that needs one.
        assert_eq!(output(&executor, "echo fine; sleep 0.1; ulimit -n"), "fine\n16");
        let shell = call(&executor, "terminal_stateful", json!({"command": "ulimit -n"}));
        assert_eq!((shell.outcome, &*shell.output), (Outcome::Ok, "16"), "{shell:?}");
    }
}

#[cfg(feature = "server")]
#[test]
fn a_sandbox_server_tells_which_limits_hold() {
    use tool_executor::server::SandboxServer;

    let dir = directory();
    let mut config = LocalConfig::new(1);
    config.data_dir = Some(dir.path().to_owned());
    config.limits.cpu = None;
    config.limits.workspace_bytes = None;
    let backend = LocalBackend::start(config).unwrap();
    let held = backend.capabilities().limits;
    let config = ServerConfig::new(([127, 0, 0, 1], 0));
    let server = SandboxServer::start(config, backend).unwrap();
    let mut client = crate::http_client::Client::connect(server.addr());
    let health = client.ask("GET", "/health", &[], b"").json();
    assert_eq!(health["limits"], serde_json::json!(held));
    assert_eq!(health["limits"]["workspace"], "none");
    assert_eq!(health["limits"]["open_files"], "rlimit");
    assert_eq!(health["limits"]["seccomp"], true);
    assert_eq!(health["warm_slots"], true);
}

#[test]
fn commands_see_the_limits_of_their_slot_where_runtimes_look_for_them() {
    let (_dir, executor) = executor(|limits| {
        limits.memory_bytes = Some(96 * MIB);
        limits.processes = Some(40);
    });
    if executor.stats().limits.unwrap().memory != Enforcement::Cgroup {
        // This process may make no cgroups: there is nothing to be seen.
        assert_eq!(
            output(&executor, "cat /sys/fs/cgroup/*/memory.limit_in_bytes 2>/dev/null; :"),
            ""
        );
        return;
    }
    let look = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes 2>/dev/null; :";
    let limit = (96 * MIB).to_string();
    assert_eq!(output(&executor, look), limit);
    // Version 1 has a line for each tree, version 2 one: in each it is at the root.
    let own = output(&executor, "grep -e :memory: -e :pids: -e ^0:: /proc/self/cgroup");
    let is_root = |line: &str| line.ends_with(":/") || line.contains(":/sandbox-");
    assert!(own.lines().all(|line| is_root(line) || line.starts_with("0::")), "{own}");
    let write = "cd /sys/fs/cgroup; for f in memory.max memory/memory.limit_in_bytes memory/cgroup.procs; do
        [ -e $f ] && echo 1 > $f; done 2>&1 | grep -c 'Read-only\\|denied'; mkdir x memory/x 2>/dev/null && echo made; :";
    let refused: usize = output(&executor, write).parse().unwrap();
    assert!(refused >= 1);
    // As in the shell that is kept.
    let kept = call(&executor, "terminal_stateful", json!({"command": look}));
    assert_eq!(kept.output, limit, "{kept:?}");
}

#[test]
fn a_command_that_may_make_no_more_processes_says_so() {
    let (_dir, executor) = executor(|limits| limits.processes = Some(16));
    let fork = "for i in {1..60}; do sleep 0.3 & done 2>/dev/null; wait";
    let result = run(&executor, fork);
    match executor.stats().limits.unwrap().processes {
        Enforcement::Cgroup => assert_eq!(result.metadata["limits_reached"], json!(["processes"])),
        _ => assert_eq!(result.metadata.get("limits_reached"), None),
    }
    // Of that command alone.
    assert_eq!(run(&executor, "true").metadata.get("limits_reached"), None);
}
