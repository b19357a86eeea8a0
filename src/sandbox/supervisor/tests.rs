//! Real commands, in a sandbox and without one.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::sandbox::workspace::DataDir;

/// Long enough for anything that is expected to happen at all.
const LONG: Duration = Duration::from_secs(60);

/// A supervisor with a slot's files, in one of the two modes.
struct Bench {
    supervisor: Supervisor,
    workspace: Arc<Workspace>,
    // Dropped in this order.
    _data: DataDir,
    _base: tempfile::TempDir,
    /// Lives as long as the sandboxes that show it.
    _etc: Option<tempfile::TempDir>,
}

/// The files of one slot, for the user that commands run as.
fn slot_files() -> (DataDir, tempfile::TempDir) {
    let base = tempfile::tempdir().unwrap();
    std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let data = DataDir::create(Some(base.path()), 1, CommandUser::detect()).unwrap();
    (data, base)
}

fn probe() -> Isolation {
    let (data, _base) = slot_files();
    Isolation::probe(CommandUser::detect(), &data.workspaces()[0])
}

impl Bench {
    fn new(isolation: Isolation) -> Self {
        let supervisor =
            Supervisor::start(isolation, CommandUser::detect(), Arc::new(Limits::none())).unwrap();
        let (data, base) = slot_files();
        let workspace = data.workspaces()[0].clone();
        Self { supervisor, workspace, _data: data, _base: base, _etc: None }
    }

    fn bare() -> Self {
        Self::new(Isolation::None { reason: "a test".to_owned() })
    }

    fn sandboxed() -> Self {
        let etc = tempfile::tempdir().unwrap();
        crate::sandbox::etc::copy_to(etc.path()).unwrap();
        let isolation = probe().with_etc(etc.path().to_owned());
        assert!(isolation.is_sandboxed(), "install bubblewrap: {isolation:?}");
        Self { _etc: Some(etc), ..Self::new(isolation) }
    }

    fn spec(&self, command: &str) -> CommandSpec {
        CommandSpec {
            workspace: self.workspace.clone(),
            command: command.to_owned(),
            network: true,
            timeout: LONG,
            output_limit_chars: 50_000,
        }
    }

    fn start(&self, spec: CommandSpec) -> (CommandId, Receiver<Finished>) {
        let (sender, receiver) = channel();
        let on_end = Box::new(move |finished| sender.send(finished).unwrap());
        (self.supervisor.run(spec, on_end), receiver)
    }

    fn run_spec(&self, spec: CommandSpec) -> Finished {
        self.start(spec).1.recv_timeout(LONG).expect("an answer")
    }

    fn run(&self, command: &str) -> Finished {
        self.run_spec(self.spec(command))
    }

    /// What a command that succeeds prints.
    fn output(&self, command: &str) -> String {
        let finished = self.run(command);
        assert_eq!(finished.end, End::Exited(0), "{command}: {}", finished.stderr.text);
        finished.stdout.text
    }

    fn run_for(&self, milliseconds: u64, command: &str) -> Finished {
        self.run_spec(CommandSpec {
            timeout: Duration::from_millis(milliseconds),
            ..self.spec(command)
        })
    }

    /// Waits until commands have made this file in the workspace.
    fn wait_for_file(&self, name: &str) {
        self.wait_for_size(name, 0);
    }

    /// Waits until commands have written this much to a file in the workspace.
    fn wait_for_size(&self, name: &str, size: u64) {
        let path = self.workspace.path().join(name);
        wait_until(|| path.metadata().is_ok_and(|metadata| metadata.len() >= size));
    }
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < give_up, "it never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a test in both modes.
fn in_both_modes(test: impl Fn(&Bench)) {
    test(&Bench::bare());
    test(&Bench::sandboxed());
}

/// A duration for `sleep`, by which a process is known among all of the machine.
fn marker() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("98761.{}{next:04}", std::process::id())
}

/// The command lines of all living processes that contain this text.
fn processes_with(text: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let directory = entry.ok()?.path();
            // A zombie has none.
            let line = std::fs::read(directory.join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(text).then_some(line)
        })
        .collect()
}

fn children_of_this_process() -> HashSet<String> {
    let mut children = HashSet::new();
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        let list = std::fs::read_to_string(thread.unwrap().path().join("children"));
        children.extend(list.unwrap_or_default().split_whitespace().map(str::to_owned));
    }
    children
}

#[test]
fn exit_codes_signals_and_both_streams_are_told_apart() {
    in_both_modes(|bench| {
        let finished = bench.run("echo out; echo err >&2; exit 3");
        assert_eq!(finished.end, End::Exited(3));
        assert_eq!(finished.stdout.text, "out\n");
        assert_eq!(finished.stderr.text, "err\n");
        assert_eq!(finished.stdout.bytes, 4);
        assert!(finished.all_dead);
        assert_eq!(finished.sandboxed, bench.supervisor.isolation().is_sandboxed());
        assert_eq!(bench.run("").end, End::Exited(0));
        assert_eq!(bench.run("foo-bar").end, End::Exited(127));
        assert_eq!(bench.run("foo-bar").stderr.text, "bash: line 1: foo-bar: command not found\n");
        assert_eq!(bench.run("-x foo").end, End::Exited(127));
        assert_eq!(bench.run("-x foo").stderr.text, "bash: line 1: -x: command not found\n");
        assert_eq!(bench.run("if").end, End::Exited(2));
        let killed = match finished.sandboxed {
            true => End::Exited(137),
            false => End::Signaled(9),
        };
        assert_eq!(bench.run("kill -9 $$").end, killed);
    });
}

#[test]
fn a_command_has_bash_its_workspace_and_an_empty_input() {
    in_both_modes(|bench| {
        let home = match bench.supervisor.isolation().is_sandboxed() {
            true => Path::new("/workspace"),
            false => bench.workspace.path(),
        };
        assert_eq!(bench.output("[[ a == a ]] && pwd"), format!("{}\n", home.display()));
        assert_eq!(bench.output("cat; read x || echo $0 $# $-"), "bash 0 hBc\n");
        bench.output("echo kept > file");
        let file = bench.workspace.path().join("file");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "kept\n");
    });
}

#[test]
fn the_environment_is_fixed_and_nothing_of_the_hosts() {
    in_both_modes(|bench| {
        let printed = bench.output("env -0 | tr '\\0' '\\n' | cut -d= -f1 | sort | tr '\\n' ' '");
        let expected = "HOME LANG LOGNAME PATH PWD SHELL SHLVL TERM TMPDIR USER _ ";
        assert_eq!(printed, expected);
        let printed =
            bench.output("echo $SHELL $LANG $TERM $PATH; [ $HOME = $PWD ] && [ -w $TMPDIR ]");
        assert_eq!(
            printed,
            "/bin/bash C.UTF-8 dumb \
             /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        );
        assert_eq!(bench.output("echo $USER"), bench.output("id -un"));
    });
}

#[test]
fn a_command_gets_no_file_descriptors_but_the_three() {
    // One that the host forgot to mark close-on-exec.
    let leak = rustix::io::dup(isolation::open_null().unwrap()).unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    in_both_modes(|bench| {
        // 3 is the listing's own.
        assert_eq!(bench.output("ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3 ");
        let long = format!("ls /proc/self/fd | tr '\\n' ' ' #{}", "x".repeat(200_000));
        assert_eq!(bench.output(&long), "0 1 2 3 ");
        assert_eq!(bench.output("ulimit -S -n"), bench.output("sh -c 'ulimit -S -n'"));
    });
}

#[test]
fn raising_the_limit_of_open_files_does_not_reach_commands() {
    in_both_modes(|bench| {
        if let Some(before) = raise_open_files_limit() {
            assert_eq!(bench.output("ulimit -S -n"), format!("{before}\n"));
        }
    });
}

#[test]
fn signals_have_their_default_meaning_in_a_command() {
    in_both_modes(|bench| {
        // The test harness ignores SIGPIPE, as Rust programs do.
        let status = bench.output("grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f2");
        for set in status.lines() {
            // 32 and 33 belong to the C library, which keeps everybody's hands off them.
            let set = u64::from_str_radix(set, 16).unwrap() & !(0b11 << 31);
            assert_eq!(set, 0, "{status}");
        }
        assert_eq!(status.lines().count(), 2);
    });
}

#[test]
fn a_background_child_does_not_delay_the_end_and_is_killed() {
    in_both_modes(|bench| {
        let marker = marker();
        let started = Instant::now();
        let finished = bench.run(&format!("sleep {marker} & setsid sleep {marker} & echo done"));
        assert!(started.elapsed() < LONG);
        assert_eq!(finished.end, End::Exited(0));
        assert_eq!(finished.stdout.text, "done\n");
        assert!(finished.all_dead);
        assert_eq!(processes_with(&marker), Vec::<String>::new());
    });
}

#[test]
fn at_the_timeout_every_process_is_dead_and_partial_output_is_kept() {
    let stubborn = [
        "sleep MARK",
        "setsid sleep MARK & wait",
        "(setsid bash -c 'sleep MARK & sleep MARK' &) ; sleep MARK",
        "trap '' TERM INT HUP; sleep MARK; sleep MARK",
        "sleep MARK & kill -STOP $!; kill -STOP $$",
        "(trap '' TERM; setsid setsid sleep MARK > /dev/null 2>&1 < /dev/null &) ; sleep MARK",
        "python3 -c 'import os,time\nif os.fork()==0:\n os.setsid()\n if os.fork()==0: os.execlp(\"sleep\",\"sleep\",\"MARK\")\n os._exit(0)\ntime.sleep(99)'",
    ];
    // Time enough for a shell to start on a machine that is busy.
    let timeout = Duration::from_secs(4);
    in_both_modes(|bench| {
        let ends = stubborn.map(|command| {
            let marker = marker();
            let command = format!("echo begun; {}", command.replace("MARK", &marker));
            let spec = CommandSpec { timeout, ..bench.spec(&command) };
            (command, marker, bench.start(spec).1)
        });
        for (command, marker, end) in ends {
            let finished = end.recv_timeout(LONG).unwrap();
            assert_eq!(finished.end, End::TimedOut, "{command}");
            assert_eq!(finished.stdout.text, "begun\n", "{command}");
            assert!(finished.all_dead, "{command}");
            assert!(finished.wall >= timeout, "{command}");
            assert_eq!(processes_with(&marker), Vec::<String>::new(), "{command}");
        }
    });
}

#[test]
fn without_a_sandbox_a_command_that_stops_its_reaper_is_killed_all_the_same() {
    let (bench, marker) = (Bench::bare(), marker());
    let command = format!("kill -STOP $PPID; (setsid sleep {marker} &); sleep {marker}");
    let finished = bench.run_for(500, &command);
    assert_eq!(finished.end, End::TimedOut);
    assert!(finished.all_dead);
    assert_eq!(processes_with(&marker), Vec::<String>::new());
}

#[test]
fn the_wall_time_is_that_of_the_command() {
    in_both_modes(|bench| {
        let finished = bench.run("sleep 0.1");
        assert_eq!(finished.end, End::Exited(0));
        assert!(finished.wall >= Duration::from_millis(100));
        assert_eq!(bench.run("a\0b").wall, Duration::ZERO);
    });
}

#[test]
fn much_output_is_counted_exactly_in_bounded_memory() {
    in_both_modes(|bench| {
        let before = resident_mib();
        let finished = bench.run("head -c 200000000 /dev/zero; echo end >&2");
        assert_eq!(finished.end, End::Exited(0));
        assert_eq!(finished.stdout.bytes, 200_000_000);
        assert_eq!(finished.stderr.bytes, 4);
        assert!(finished.stdout.text.len() < 400_000);
        // Other tests run meanwhile; whoever keeps the output exceeds this by far.
        assert!(resident_mib() < before + 100);
    });
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

#[test]
fn a_flood_on_both_streams_ends_at_the_timeout_and_does_not_hold_others_up() {
    in_both_modes(|bench| {
        let flood = CommandSpec {
            timeout: Duration::from_millis(1500),
            ..bench.spec("touch flooding; yes & yes >&2")
        };
        let (_, end) = bench.start(flood);
        bench.wait_for_file("flooding");
        assert_eq!(bench.output("echo hello"), "hello\n");
        let finished = end.recv_timeout(LONG).unwrap();
        assert_eq!(finished.end, End::TimedOut);
        assert!(finished.stdout.bytes > 1 << 20 && finished.stderr.bytes > 1 << 20);
        assert!(finished.stdout.text.starts_with("y\ny\n"));
    });
}

#[test]
fn binary_output_is_no_failure() {
    in_both_modes(|bench| {
        let finished = bench.run("printf 'a\\0b\\377c'");
        assert_eq!(finished.end, End::Exited(0));
        assert_eq!(finished.stdout.text, "a\0b\u{fffd}c");
        assert_eq!(finished.stdout.bytes, 5);
    });
}

#[test]
fn a_command_of_more_than_a_megabyte_runs_like_any_other() {
    in_both_modes(|bench| {
        let padding = "x".repeat(1 << 20);
        let command = format!("a={padding}\necho ${{#a}} $0 $#; cat\nexit 7");
        let finished = bench.run(&command);
        assert_eq!(finished.end, End::Exited(7), "{}", finished.stderr.text);
        assert_eq!(finished.stdout.text, format!("{} bash 0\n", 1 << 20));
        // Around the limit of one argument.
        for length in [127 * 1024 - 1, 127 * 1024, 128 * 1024 - 1, 128 * 1024] {
            let command = format!("echo ok{}", " ".repeat(length - "echo ok".len()));
            assert_eq!(bench.output(&command), "ok\n");
        }
    });
}

#[test]
fn a_command_that_cannot_start_says_why() {
    in_both_modes(|bench| {
        let end = bench.run("echo a\0b").end;
        assert_eq!(end, End::SetupFailed("embedded null byte".to_owned()));
        let (data, _base) = slot_files();
        let gone = data.workspaces()[0].clone();
        drop(data);
        let finished = bench.run_spec(CommandSpec { workspace: gone, ..bench.spec("echo ran") });
        let End::SetupFailed(text) = finished.end else {
            panic!("{:?}", finished.end);
        };
        assert!(text.contains("No such file or directory"), "{text}");
        assert_eq!(finished.stdout.bytes, 0);
        assert_eq!(bench.output("echo next"), "next\n");
    });
}

#[test]
fn what_a_command_prints_is_never_taken_for_a_failure_of_the_sandbox() {
    let bench = Bench::sandboxed();
    let lie = "echo 'bwrap: No permissions to create new namespace' >&2; exit 1";
    for _ in 0..2 {
        let finished = bench.run(lie);
        assert_eq!(finished.end, End::Exited(1));
        assert!(finished.sandboxed);
    }
    assert_eq!(bench.output("echo $PWD"), "/workspace\n");
}

#[test]
fn a_sandbox_shows_no_secrets_and_gives_no_privileges() {
    let bench = Bench::sandboxed();
    for path in
        ["/etc/shadow", "/root", "/home", "/etc/ssh", "/etc/ssl/private", "/var/lib", "/boot"]
    {
        assert_ne!(bench.run(&format!("ls -d {path}")).end, End::Exited(0), "{path}");
    }
    assert_eq!(bench.output("hostname"), "sandbox\n");
    assert_eq!(bench.output("grep CapEff /proc/self/status"), "CapEff:\t0000000000000000\n");
    assert_ne!(bench.run("touch /usr/x").end, End::Exited(0));
    assert_ne!(bench.run("mount -t tmpfs none /tmp").end, End::Exited(0));
    // No process of the host is visible: bubblewrap's init, the shell, `ls` and `grep`.
    let visible = bench.output("ls /proc | grep -c '^[0-9]'");
    assert!(visible.trim().parse::<u32>().unwrap() <= 6, "{visible}");
    // What one call may leave to the next: the workspace and /tmp.
    bench.output(
        "touch /tmp/left /var/tmp/left /dev/shm/left; touch /left /dev/left /etc/left; true",
    );
    assert_eq!(
        bench.output("ls /tmp /dev/shm; ls -d /left /dev/left /etc/left; true"),
        "/dev/shm:\n\n/tmp:\nleft\n"
    );
    if let Isolation::Bubblewrap(bubblewrap) = bench.supervisor.isolation()
        && bubblewrap.disable_userns
    {
        assert_ne!(bench.run("unshare -U true").end, End::Exited(0));
    }
}

#[test]
fn a_sandbox_of_root_cannot_change_what_the_kernel_shares_in_proc() {
    let bench = Bench::sandboxed();
    // Opens without writing: as root, without the protection, this is the host's own.
    let opened = "find /proc/sys -type f | while read f; do (exec 9<>$f) && echo $f; done 2>/dev/null | head -3";
    assert_eq!(bench.output(opened), "");
    let mode = bench.output("stat -c %a /proc/version");
    assert_ne!(bench.run(&format!("chmod {mode} /proc/version")).end, End::Exited(0));
}

/// The test's own thread gets a keyring; a command that could use it would find a key of the host's
/// there, and what another command has left.
#[test]
fn kernel_keyrings_connect_commands_neither_with_the_host_nor_with_each_other() {
    let (join, session) = (libc::KEYCTL_JOIN_SESSION_KEYRING as libc::c_long, -3 as libc::c_long);
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: changes this thread's credentials only, and adds a key of five bytes to its keyring.
    let added = unsafe {
        libc::syscall(libc::SYS_keyctl, join, none) >= 0
            && libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                c"tool-host".as_ptr(),
                c"value".as_ptr(),
                5 as libc::c_long,
                session,
            ) >= 0
    };
    if !added {
        let errno = std::io::Error::last_os_error().raw_os_error();
        assert!(matches!(errno, Some(libc::ENOSYS | libc::EPERM)), "{errno:?}");
        return;
    }
    let search = format!("syscall({}, 10, -3, $type, $name, 0)", libc::SYS_keyctl);
    let add = format!("syscall({}, $type, $name, $name, 5, -3)", libc::SYS_add_key);
    let perl = |what: &str, key: &str| {
        format!("perl -e '($type, $name) = @ARGV; print {what}, \"\\n\"' user {key}")
    };
    let bench = Bench::sandboxed();
    assert_eq!(bench.output(&perl(&search, "tool-host")), "-1\n");
    bench.output(&perl(&add, "tool-command"));
    assert_eq!(bench.output(&perl(&search, "tool-command")), "-1\n");
}

#[test]
fn without_network_there_is_none_and_where_that_is_impossible_nothing_runs() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{}", address.port());
    let bench = Bench::sandboxed();
    assert_eq!(bench.run(&connect).end, End::Exited(0));
    let offline =
        |bench: &Bench| bench.run_spec(CommandSpec { network: false, ..bench.spec(&connect) });
    let finished = offline(&bench);
    assert_eq!(finished.end, End::Exited(1));
    assert!(finished.network_isolated);
    assert!(finished.stderr.text.contains("Connection refused"), "{}", finished.stderr.text);
    assert!(matches!(offline(&Bench::bare()).end, End::SetupFailed(_)));
}

#[test]
fn where_there_is_no_bash_sh_runs_the_commands() {
    let mut isolation = probe();
    let Isolation::Bubblewrap(bubblewrap) = &mut isolation else {
        panic!("install bubblewrap: {isolation:?}");
    };
    bubblewrap.layout.shell = crate::sandbox::shell::Shell::Sh;
    let bench = Bench::new(isolation);
    assert_eq!(
        bench.output("echo $0 $# $SHELL; ls /proc/self/fd | tr '\\n' ' '"),
        "sh 0 /bin/sh\n0 1 2 3 "
    );
    assert_eq!(bench.run("cat; exit 3").end, End::Exited(3));
    assert_eq!(bench.run("if").end, End::Exited(2));
}

#[test]
fn a_cancelled_command_is_dead_with_all_its_processes() {
    in_both_modes(|bench| {
        let marker = marker();
        let command = format!("setsid sleep {marker} & echo begun; touch begun; sleep {marker}");
        let (id, end) = bench.start(bench.spec(&command));
        bench.wait_for_file("begun");
        bench.supervisor.cancel(id);
        let finished = end.recv_timeout(LONG).unwrap();
        assert_eq!(finished.end, End::Cancelled);
        assert_eq!(finished.stdout.text, "begun\n");
        assert!(finished.all_dead);
        assert_eq!(processes_with(&marker), Vec::<String>::new());
        bench.supervisor.cancel(id);
        std::fs::remove_file(bench.workspace.path().join("begun")).unwrap();
    });
}

#[test]
fn commands_cancelled_at_any_moment_of_their_start_leave_nothing() {
    in_both_modes(|bench| {
        let marker = marker();
        for step in 0..40 {
            let (id, end) = bench.start(bench.spec(&format!("sleep {marker}")));
            let moment = Instant::now() + Duration::from_micros(200 * step);
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            bench.supervisor.cancel(id);
            let finished = end.recv_timeout(LONG).unwrap();
            assert_eq!(finished.end, End::Cancelled);
            assert!(finished.all_dead);
        }
        assert_eq!(processes_with(&marker), Vec::<String>::new());
    });
}

#[test]
fn closing_ends_every_command_once_and_leaves_no_process() {
    in_both_modes(|bench| {
        let marker = marker();
        let ends: Vec<_> = (0..20)
            .map(|_| bench.start(bench.spec(&format!("echo >> ready; sleep {marker}"))).1)
            .collect();
        bench.wait_for_size("ready", 5);
        bench.supervisor.close();
        for end in ends {
            // The answer was there before `close` returned.
            let finished = end.try_recv().unwrap();
            assert!(matches!(finished.end, End::Cancelled | End::SetupFailed(_)));
            assert!(end.try_recv().is_err());
        }
        assert_eq!(processes_with(&marker), Vec::<String>::new());
        assert!(matches!(bench.run("true").end, End::SetupFailed(_)));
        bench.supervisor.close();
    });
}

#[test]
fn a_panic_of_the_receiver_ends_nothing_else() {
    in_both_modes(|bench| {
        let (sender, receiver) = channel();
        bench.supervisor.run(
            bench.spec("true"),
            Box::new(move |_| {
                sender.send(()).unwrap();
                panic!("a test's own panic");
            }),
        );
        receiver.recv_timeout(LONG).unwrap();
        assert_eq!(bench.output("echo alive"), "alive\n");
    });
}

#[test]
fn dropping_the_supervisor_from_its_own_thread_does_not_hang() {
    let bench = Bench::bare();
    let spec = bench.spec("true");
    let Bench { supervisor, workspace, _data, _base, _etc } = bench;
    let supervisor = Arc::new(supervisor);
    let (sender, receiver) = channel();
    let own = Arc::clone(&supervisor);
    supervisor.run(
        spec,
        Box::new(move |_| {
            own.close();
            drop(own);
            sender.send(()).unwrap();
        }),
    );
    receiver.recv_timeout(LONG).unwrap();
    drop(workspace);
}

/// Runs a test's body in a process of its own, where no other test's processes, threads and files are.
fn alone(test: &str, body: impl FnOnce()) {
    const VARIABLE: &str = "TOOL_EXECUTOR_TEST_ALONE";
    if std::env::var_os(VARIABLE).is_some() {
        return body();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("sandbox::supervisor::tests::{test}"))
        .env(VARIABLE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
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
        in_both_modes(|bench| {
            let (files, before) = (count("/proc/self/fd"), threads());
            run_many(bench, 200);
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
        in_both_modes(|bench| {
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
            let workspace = bench.workspace.path().to_str().unwrap();
            wait_until(|| processes_with(workspace).is_empty());
        });
    });
}

#[test]
fn two_hundred_sleeping_commands_need_one_thread() {
    alone("two_hundred_sleeping_commands_need_one_thread", || {
        in_both_modes(|bench| {
            let before = threads();
            let release = bench.workspace.path().join("release");
            rustix::fs::mkfifoat(rustix::fs::CWD, &release, rustix::fs::Mode::RWXU).unwrap();
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
        in_both_modes(|bench| {
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
        in_both_modes(|bench| {
            run_many(bench, 50);
            assert_eq!(bench.run_for(200, "sleep 99").end, End::TimedOut);
        });
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
        in_both_modes(|bench| run_many(bench, 50));
    });
}

#[test]
fn a_host_that_adopts_orphans_keeps_no_zombies() {
    alone("a_host_that_adopts_orphans_keeps_no_zombies", || {
        use rustix::process::{WaitId, WaitIdOptions, getpid, set_child_subreaper, waitid};
        set_child_subreaper(Some(getpid())).unwrap();
        in_both_modes(|bench| {
            // What tried bubblewrap out is not a command.
            let is_zombie = WaitIdOptions::EXITED;
            while let Ok(Some(_)) = waitid(WaitId::All, is_zombie) {}
            run_many(bench, 50);
            assert_eq!(bench.run("sleep 99 & sleep 99 & true").end, End::Exited(0));
            assert_eq!(bench.run_for(200, "sleep 99").end, End::TimedOut);
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
        Ok(_) => return host(&Bench::sandboxed()),
        Err(_) => {}
    }
    for mode in ["bare", "sandboxed"] {
        let marker = marker();
        // The killed host cannot remove its workspace: it goes with this.
        let directory = tempfile::tempdir().unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "sandbox::supervisor::tests::when_the_host_is_killed_its_commands_die",
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

#[test]
fn no_command_is_root_to_the_kernel_nor_may_become_it() {
    in_both_modes(|bench| {
        let command = format!("exec sleep 4321.{}", uuid::Uuid::new_v4().as_u128());
        let marker = command.strip_prefix("exec ").unwrap();
        let (id, finished) = bench.start(bench.spec(&command));
        let status = loop {
            assert!(finished.try_recv().is_err(), "it sleeps");
            let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
            let found = processes.map(|process| process.path()).find(|process| {
                std::fs::read(process.join("cmdline"))
                    .is_ok_and(|line| line == format!("{marker}\0").replace(' ', "\0").as_bytes())
            });
            match found {
                Some(process) => break std::fs::read_to_string(process.join("status")).unwrap(),
                None => std::thread::yield_now(),
            }
        };
        let has = |line: &str| status.contains(&format!("\n{line}\n"));
        if rustix::process::geteuid().is_root() {
            assert!(has("Uid:\t65534\t65534\t65534\t65534"), "{status}");
            assert!(has("Gid:\t65534\t65534\t65534\t65534"), "{status}");
            assert!(has("NoNewPrivs:\t1"), "{status}");
            assert!(has("CapPrm:\t0000000000000000"), "{status}");
        }
        bench.supervisor.cancel(id);
        assert_eq!(finished.recv_timeout(LONG).unwrap().end, End::Cancelled);
    });
}

#[test]
fn without_a_sandbox_too_roots_own_files_and_devices_are_out_of_reach() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let bench = Bench::bare();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let mode = std::fs::Permissions::from_mode;
    std::fs::set_permissions(outside.path(), mode(0o711)).unwrap();
    std::fs::set_permissions(&secret, mode(0o600)).unwrap();
    assert_eq!(bench.run(&format!("cat {}", secret.display())).end, End::Exited(1));
    // Its host and its reaper can neither be looked into nor signalled.
    let host = std::process::id();
    for process in [host.to_string(), "$PPID".to_owned()] {
        assert_eq!(bench.run(&format!("cat /proc/{process}/environ")).end, End::Exited(1));
    }
    assert_eq!(bench.run(&format!("kill -0 {host}")).end, End::Exited(1));
    let before = std::fs::metadata("/dev/full").unwrap().mode();
    let finished = bench.run("chmod 000 /dev/full");
    let after = std::fs::metadata("/dev/full").unwrap().mode();
    if after != before {
        std::fs::set_permissions("/dev/full", mode(before)).unwrap();
    }
    assert_eq!((finished.end, after), (End::Exited(1), before));
}

#[test]
fn its_output_can_be_opened_by_name() {
    in_both_modes(|bench| {
        assert_eq!(bench.output("echo x > /dev/stdout; echo y > /dev/stderr"), "x\n");
    });
}
