//! What a command may see and do.

use super::*;

#[test]
fn what_a_command_prints_is_never_taken_for_a_failure_of_the_sandbox() {
    in_sandboxes(|bench| {
        let lie = "echo 'bwrap: No permissions to create new namespace' >&2; exit 1";
        for _ in 0..2 {
            let finished = bench.run(lie);
            assert_eq!(finished.end, End::Exited(1));
            assert!(finished.sandboxed);
        }
        assert_eq!(bench.output("echo $PWD"), "/workspace\n");
    });
}

#[test]
fn a_sandbox_shows_no_secrets_and_gives_no_privileges() {
    in_sandboxes(|bench| {
        for path in ["/etc/shadow", "/etc/gshadow", "/boot"] {
            assert_ne!(bench.run(&format!("ls -d {path}")).end, End::Exited(0), "{path}");
        }
        assert_eq!(bench.output("ls -A /etc/ssl/private 2>/dev/null; true"), "");
        // A home there is, the slot's own.
        assert_eq!(
            bench.output("ls -A ~; ls -d /home/* /root 2>/dev/null; true"),
            bench.output("echo ~")
        );
        assert_eq!(bench.output("hostname"), "sandbox\n");
        assert_eq!(bench.output("grep CapEff /proc/self/status"), "CapEff:\t0000000000000000\n");
        assert_ne!(bench.run("touch /usr/x").end, End::Exited(0));
        assert_ne!(bench.run("mount -t tmpfs none /tmp").end, End::Exited(0));
        // No process of the host is visible: the first one, the shell, `ls` and `grep`.
        let visible = bench.output("ls /proc | grep -c '^[0-9]'");
        assert!(visible.trim().parse::<u32>().unwrap() <= 6, "{visible}");
        // What one call may leave to the next: files of the slot's and of its machine's.
        bench.output(
            "touch /tmp/left /var/tmp/left /dev/shm/left; touch /left /dev/left /etc/left; true",
        );
        assert_eq!(
            bench.output("ls /tmp /dev/shm; ls -d /left /dev/left /etc/left; true"),
            "/dev/shm:\nleft\n\n/tmp:\nleft\n/left\n"
        );
        assert_ne!(bench.run("unshare -U true").end, End::Exited(0));
    });
}

#[test]
fn a_sandbox_of_root_cannot_change_what_the_kernel_shares_in_proc() {
    in_sandboxes(|bench| {
        // Opens without writing: as root, without the protection, this is the host's own.
        let opened = "find /proc/sys -type f | while read f; do (exec 9<>$f) && echo $f; done 2>/dev/null | head -3";
        assert_eq!(bench.output(opened), "");
        let mode = bench.output("stat -c %a /proc/version");
        assert_ne!(bench.run(&format!("chmod {mode} /proc/version")).end, End::Exited(0));
    });
}

/// The test's own thread gets a keyring; a command that could use it would find a key of the
/// host's there, and what another command has left.
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
        let errno = io::Error::last_os_error().raw_os_error();
        assert!(matches!(errno, Some(libc::ENOSYS | libc::EPERM)), "{errno:?}");
        return;
    }
    let search = format!("syscall({}, 10, -3, $type, $name, 0)", libc::SYS_keyctl);
    let add = format!("syscall({}, $type, $name, $name, 5, -3)", libc::SYS_add_key);
    let perl = |what: &str, key: &str| {
        format!("perl -e '($type, $name) = @ARGV; print {what}, \"\\n\"' user {key}")
    };
    in_sandboxes(|bench| {
        assert_eq!(bench.output(&perl(&search, "tool-host")), "-1\n");
        bench.output(&perl(&add, "tool-command"));
        assert_eq!(bench.output(&perl(&search, "tool-command")), "-1\n");
    });
}

#[test]
fn without_network_there_is_none_and_where_that_is_impossible_nothing_runs() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{}", address.port());
    in_sandboxes(|bench| {
        assert_eq!(bench.run(&connect).end, End::Exited(0));
        let offline =
            |bench: &Bench| bench.run_spec(CommandSpec { network: false, ..bench.spec(&connect) });
        let finished = offline(bench);
        assert_eq!(finished.end, End::Exited(1));
        assert!(finished.network_isolated);
        assert!(finished.stderr.text.contains("Connection refused"), "{}", finished.stderr.text);
        assert!(matches!(offline(&Bench::bare()).end, End::SetupFailed(_)));
    });
}

#[test]
fn when_a_warm_sandbox_is_destroyed_its_command_is_lost_and_the_next_one_gets_another() {
    let (bench, marker) = (Bench::warm(), marker());
    let (_, ended) = bench.start(bench.spec(&format!("echo before; exec sleep {marker}")));
    // The parent of the command is the sandbox's first process.
    let parent_of_sleep = || {
        let name = format!("sleep\0{marker}\0");
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let directory = entry.ok()?.path();
            let line = std::fs::read(directory.join("cmdline")).ok()?;
            (line == name.as_bytes()).then(|| std::fs::read_to_string(directory.join("stat")).ok())
        });
        let stat = processes.flatten().next()?;
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse::<i32>().ok()
    };
    let mut first = None;
    wait_until(|| {
        first = parent_of_sleep();
        first.is_some()
    });
    let first = rustix::process::Pid::from_raw(first.unwrap()).unwrap();
    rustix::process::kill_process(first, rustix::process::Signal::KILL).unwrap();
    let finished = ended.recv_timeout(LONG).unwrap();
    assert!(matches!(finished.end, End::Lost(_)), "{:?}", finished.end);
    assert_eq!((finished.stdout.text.as_str(), finished.all_dead), ("before\n", true));
    assert!(processes_with(&marker).is_empty());
    assert_eq!(bench.output("echo next"), "next\n");
}

#[test]
fn where_there_is_no_bash_sh_runs_the_commands() {
    let mut isolation = probe();
    let Isolation::Jailed(jails) = &mut isolation else { panic!("{isolation:?}") };
    jails.layout.shell = crate::sandbox::shell::Shell::Sh;
    let bench = Bench::new(isolation);
    assert_eq!(
        bench.output("echo $0 $# $SHELL; ls /proc/self/fd | tr '\\n' ' '"),
        "sh 0 /bin/sh\n0 1 2 3 "
    );
    assert_eq!(bench.run("cat; exit 3").end, End::Exited(3));
    assert_eq!(bench.run("if").end, End::Exited(2));
}

#[test]
fn no_command_is_root_to_the_kernel_nor_may_become_it() {
    in_all_modes(|bench| {
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
    assert_eq!(bench.run(&format!("cat '{}'", secret.display())).end, End::Exited(1));
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
    in_all_modes(|bench| {
        assert_eq!(bench.output("echo x > /dev/stdout; echo y > /dev/stderr"), "x\n");
    });
}
