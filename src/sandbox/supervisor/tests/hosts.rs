//! What commands cost the host process, and what hosts do that make it hard.

use rustix::process::{Resource, Rlimit};

use super::*;
use crate::sandbox::testing;

/// Runs a test's body in a process of its own.
fn alone(test: &str, body: impl FnOnce()) {
    testing::alone(&format!("{}::{test}", module_path!()), body);
}

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// How many threads this process has, but for those that tried things out at the start: they were
/// joined, and the kernel may list them for a moment longer.
fn threads() -> usize {
    let name = |thread: &std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm"));
    let listed = std::fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap);
    listed.filter(|thread| name(thread).is_ok_and(|name| name.trim() != "tool-user")).count()
}

/// Runs this many commands at once and sees that each did what it should.
fn run_many(bench: &Bench, count: usize) {
    let ends: Vec<_> = (0..count).map(|_| bench.start(bench.spec("echo x; exit 3")).1).collect();
    for end in ends {
        let finished = end.recv_timeout(LONG).unwrap();
        assert_eq!(finished.end, End::Exited(3), "{}", finished.stderr.text);
        assert_eq!(finished.stdout.text, "x\n");
        assert!(finished.all_dead);
    }
}

#[test]
fn many_commands_leave_no_zombie_no_open_file_and_no_thread() {
    alone("many_commands_leave_no_zombie_no_open_file_and_no_thread", || {
        in_all_modes(|bench| {
            let (files, before) = (count("/proc/self/fd"), threads());
            run_many(bench, 200);
            bench.settle();
            assert_eq!(children_of_this_process(), HashSet::new());
            assert_eq!(count("/proc/self/fd"), files);
            assert_eq!(threads(), before);
        });
        // The handle of the test harness's own thread aside, a closed supervisor leaves nothing.
        let files = count("/proc/self/fd");
        drop(Bench::bare());
        assert_eq!(count("/proc/self/fd"), files);
    });
}

#[test]
fn where_open_files_are_short_commands_fail_to_start_and_leave_nothing() {
    alone("where_open_files_are_short_commands_fail_to_start_and_leave_nothing", || {
        in_all_modes(|bench| {
            let before = rustix::process::getrlimit(Resource::Nofile);
            for room in 9..25 {
                let few = Some(count("/proc/self/fd") as u64 + room);
                let limit = Rlimit { current: few, maximum: before.maximum };
                rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
                let ends: Vec<_> = (0..24).map(|_| bench.start(bench.spec("true")).1).collect();
                for end in ends {
                    let end = end.recv_timeout(LONG).unwrap().end;
                    assert!(matches!(end, End::Exited(0) | End::SetupFailed(_)), "{end:?}");
                }
                rustix::process::setrlimit(Resource::Nofile, before).unwrap();
            }
            assert_eq!(bench.run("true").end, End::Exited(0));
            bench.settle();
            let workspace = bench.workspace.path().to_str().unwrap();
            wait_until(|| processes_with(workspace).is_empty());
        });
    });
}

#[test]
fn two_hundred_sleeping_commands_need_one_thread() {
    alone("two_hundred_sleeping_commands_need_one_thread", || {
        in_all_modes(|bench| {
            let before = threads();
            let release = bench.workspace.path().join("release");
            rustix::fs::mkfifoat(rustix::fs::CWD, &release, Mode::RWXU).unwrap();
            // Each sleeps until it gets a line.
            let command = "echo >> ready; read x <> release; exit 4";
            let ends: Vec<_> = (0..200).map(|_| bench.start(bench.spec(command)).1).collect();
            bench.wait_for_size("ready", 200);
            assert_eq!(threads(), before);
            let lines = "go\n".repeat(200);
            let mut fifo =
                std::fs::OpenOptions::new().read(true).write(true).open(release).unwrap();
            io::Write::write_all(&mut fifo, lines.as_bytes()).unwrap();
            for end in ends {
                assert_eq!(end.recv_timeout(LONG).unwrap().end, End::Exited(4));
            }
        });
    });
}

#[test]
fn waiting_for_sleeping_commands_takes_no_processor_time() {
    alone("waiting_for_sleeping_commands_takes_no_processor_time", || {
        in_all_modes(|bench| {
            let before = processor_time();
            let ends: Vec<_> = (0..10).map(|_| bench.start(bench.spec("sleep 3")).1).collect();
            for end in ends {
                assert_eq!(end.recv_timeout(LONG).unwrap().end, End::Exited(0));
            }
            // Starting ten takes some 0.1 s; one process that polls takes 3 s.
            assert!(processor_time() - before < Duration::from_secs(2));
        });
    });
}

/// Of this process and of all its children that have ended.
fn processor_time() -> Duration {
    [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN]
        .into_iter()
        .flat_map(|who| {
            // SAFETY: a valid place, filled by the call.
            let usage = unsafe {
                let mut usage: libc::rusage = std::mem::zeroed();
                libc::getrusage(who, &mut usage);
                usage
            };
            [usage.ru_utime, usage.ru_stime]
        })
        .map(|time| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000))
        .sum()
}

#[test]
fn a_host_that_ignores_sigchld_gets_every_exit_code() {
    alone("a_host_that_ignores_sigchld_gets_every_exit_code", || {
        // SAFETY: sets a disposition; this process is this test's own.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        in_all_modes(|bench| {
            run_many(bench, 50);
            assert_eq!(bench.run_for(200, "sleep 99").end, End::TimedOut);
        });
    });
}

#[test]
fn a_hosts_signals_and_umask_do_not_reach_its_commands() {
    alone("a_hosts_signals_and_umask_do_not_reach_its_commands", || {
        testing::be_a_hostile_host();
        in_all_modes(|bench| {
            testing::assert_nothing_inherited(&bench.output(testing::INHERITED));
            assert_eq!(bench.run("kill -INT $$").end, bench.run("kill -INT $BASHPID").end);
            assert_eq!(bench.output("trap"), "");
        });
        // What the host has set stays as it is for the host.
        let umask = rustix::process::umask(Mode::empty());
        assert_eq!(umask.as_raw_mode(), 0o077);
    });
}

#[test]
fn a_host_that_reaps_any_child_gets_every_exit_code() {
    alone("a_host_that_reaps_any_child_gets_every_exit_code", || {
        std::thread::spawn(|| {
            loop {
                let any = rustix::process::wait(rustix::process::WaitOptions::empty());
                if any.is_err() {
                    std::thread::yield_now();
                }
            }
        });
        in_all_modes(|bench| run_many(bench, 50));
    });
}

#[test]
fn a_host_that_adopts_orphans_keeps_no_zombies() {
    alone("a_host_that_adopts_orphans_keeps_no_zombies", || {
        use rustix::process::{WaitId, WaitIdOptions, getpid, set_child_subreaper, waitid};
        set_child_subreaper(Some(getpid())).unwrap();
        in_all_modes(|bench| {
            // What tried a sandbox out is not a command.
            let is_zombie = WaitIdOptions::EXITED;
            while let Ok(Some(_)) = waitid(WaitId::All, is_zombie) {}
            run_many(bench, 50);
            assert_eq!(bench.run("sleep 99 & sleep 99 & true").end, End::Exited(0));
            assert_eq!(bench.run_for(200, "sleep 99").end, End::TimedOut);
            bench.settle();
            let left = waitid(WaitId::All, is_zombie | WaitIdOptions::NOHANG);
            assert_eq!(left.map(|_| ()), Err(rustix::io::Errno::CHILD), "a child is left");
        });
    });
}

#[test]
fn when_the_host_is_killed_its_commands_die() {
    const MARKER: &str = "TOOL_EXECUTOR_TEST_MARKER";
    let host = |bench: &Bench| {
        let marker = std::env::var(MARKER).unwrap();
        let command = format!("setsid sleep {marker} & echo >> ready; sleep {marker}");
        let _ends: Vec<_> = (0..10).map(|_| bench.start(bench.spec(&command)).1).collect();
        bench.wait_for_size("ready", 10);
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .unwrap();
    };
    match std::env::var("TOOL_EXECUTOR_TEST_HOST").as_deref() {
        Ok("bare") => return host(&Bench::bare()),
        Ok("warm") => return host(&Bench::warm()),
        Ok(_) => return host(&Bench::sandboxed()),
        Err(_) => {}
    }
    for mode in ["bare", "sandboxed", "warm"] {
        let marker = marker();
        // The killed host cannot remove its workspace: it goes with this.
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "sandbox::supervisor::tests::hosts::when_the_host_is_killed_its_commands_die",
            ])
            .env("TOOL_EXECUTOR_TEST_HOST", mode)
            .env(MARKER, &marker)
            .env("TMPDIR", directory.path())
            .status()
            .unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        wait_until(|| processes_with(&marker).is_empty());
    }
}
