//! The host's processes, and the sandbox's own first one.

use super::*;

const ATTACKS: &[Attack] = &[
    Attack {
        name: "see host processes",
        script: "[ -d /proc/@PID@ ] && echo ESCAPED; ls -d /proc/[0-9]* | wc -l | grep -q '...' && echo ESCAPED",
        outside: Escapes,
    },
    Attack {
        name: "signal the host",
        script: "kill -0 @PID@ 2>/dev/null && echo ESCAPED",
        outside: Escapes,
    },
    Attack {
        name: "kill everything in reach",
        script: "kill -9 -1; echo killed; sleep 0.1; kill -9 1; echo done",
        outside: NotRun("kills the host"),
    },
    Attack {
        name: "read the environment of every process",
        script: "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep ^CARGO && echo ESCAPED",
        outside: Escapes,
    },
    Attack { name: "inherit the environment", script: "env | grep ^CARGO && echo ESCAPED", outside: Escapes },
    Attack {
        name: "use inherited file descriptors",
        // 3 is the directory that it reads.
        script: "exec perl -e 'opendir(D, \"/proc/self/fd\"); for (readdir(D)) { print \"ESCAPED $_\" if $_ > 3 }'",
        outside: NotRun("the test's own process has none that are inherited"),
    },
    Attack {
        name: "read the memory of every other process",
        script: "for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || [ $p = /proc/self ] ||
            head -c 0 $p/mem 2>/dev/null && [ \"$(cat $p/comm)\" = tool-init ] && echo ESCAPED $p; done; true",
        outside: NotRun("there is no such process"),
    },
    Attack {
        name: "look into the first process",
        script: "[ \"$(cat /proc/1/comm)\" = tool-init ] || echo ESCAPED
            tr '\\0' ' ' </proc/1/cmdline | grep -Ev '^tool-init /bin/(ba)?sh [0-9]+ $' && echo ESCAPED
            for f in environ maps mem fd/ root/ cwd/ exe syscall stack auxv io; do
            (ls /proc/1/$f/. || head -c 1 /proc/1/$f) >/dev/null 2>&1 && echo ESCAPED $f; done; true",
        outside: NotRun("works as root only"),
    },
    Attack {
        name: "trace the first process",
        // PTRACE_ATTACH, PTRACE_SEIZE
        script: "perl -e 'for (16, 0x4206) { print \"ESCAPED\" if syscall(101, $_, 1, 0, 0) == 0 }'",
        outside: NotRun("works as root only"),
    },
    Attack {
        name: "read the memory of the first process by process_vm_readv",
        script: r#"perl -e '$b = "x" x 64; $l = pack("PQ", $b, 64); $r = pack("QQ", 0x200000, 64);
            print "ESCAPED" if syscall(310, 1, $l, 1, $r, 1, 0) > 0'"#,
        outside: NotRun("works as root only"),
    },
    Attack {
        name: "take the first process's socket",
        // pidfd_open, pidfd_getfd
        script: "perl -e '$p = syscall(434, 1, 0); for (0..20) { print \"ESCAPED\" if syscall(438, $p, $_, 0) >= 0 }'",
        outside: NotRun("works as root only"),
    },
    Attack {
        name: "stop, interrupt and confuse the first process",
        script: "for s in $(seq 1 64); do kill -$s 1; done 2>/dev/null; kill -STOP 1; grep State /proc/1/status | grep -q T && echo ESCAPED; true",
        outside: NotRun("works as root only"),
    },
    Attack {
        name: "take limits from the first process",
        // prlimit64 of RLIMIT_NOFILE and RLIMIT_CPU to 0
        script: r#"perl -e '$l = pack("QQ", 0, 0); for (7, 0, 1, 2, 9) { print "ESCAPED" if syscall(302, 1, $_, $l, 0) == 0 }'"#,
        outside: NotRun("works as root only"),
    },
    Attack {
        name: "starve the first process",
        // setpriority(PROCESS, PGRP, USER), sched_setscheduler(SCHED_IDLE), ioprio_set
        script: r#"perl -e '$p = pack("i", 0);
            print "ESCAPED1" if syscall(141, 0, 1, 19) == 0;
            print "ESCAPED2" if syscall(144, 1, 5, $p) == 0;
            print "ESCAPED3" if syscall(251, 1, 1, (3 << 13)) == 0'"#,
        outside: NotRun("works as root only"),
    },
    Attack {
        name: "have or regain a capability of the jail's set-up",
        script: "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status /proc/1/status | grep -v 0000000000000000 && echo ESCAPED
            grep -q '^NoNewPrivs:.1' /proc/self/status || echo ESCAPED",
        outside: NotRun("an ordinary process has a bounding set"),
    },
    Attack {
        name: "find the root that the jail has left",
        script: "for d in / /.. /../.. /proc/self/root/.. /proc/1/cwd/..; do for e in boot lost+found var/backups; do
            [ -e $d/$e ] && echo ESCAPED $d/$e; done; done; true",
        outside: Escapes,
    },
    Attack {
        name: "speak the first process's protocol",
        // A message "done, exit code 0" to whatever takes it.
        script: r#"m='d\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0'; for f in /proc/[0-9]*/fd/*; do
            printf "$m" > $f; done 2>/dev/null; for f in $(seq 0 40); do printf "$m" >&$f; done 2>/dev/null
            exit 9"#,
        outside: NotRun("would write to the test's own files"),
    },
    Attack {
        name: "enter the host's namespaces",
        script: "for n in mnt pid net user ipc uts cgroup; do
            nsenter --$n=/proc/1/ns/$n true 2>/dev/null && echo ESCAPED $n; done; true",
        outside: NotRun("works as root only"),
    },
    Attack {
        name: "new user namespace",
        script: "unshare -Ur true && echo ESCAPED; unshare -Urm mount -t tmpfs none /tmp && echo ESCAPED;
            perl -e 'print \"ESCAPED\" if syscall(272, 0x10000000) == 0'",
        outside: NotRun("some hosts forbid it"),
    },
    Attack {
        name: "become root",
        script: "su -c true </dev/null && echo ESCAPED; sudo -n true && echo ESCAPED;
            perl -e '$< = $> = 0; print \"ESCAPED\" if $> == 0 || $< == 0'",
        outside: NotRun("the host may be root"),
    },
    Attack {
        name: "dump core where the host's handler runs",
        script: "ulimit -c unlimited; echo '|/bin/sh' > /proc/sys/kernel/core_pattern && echo ESCAPED; sh -c 'kill -SEGV $$'; true",
        outside: NotRun("changes the host"),
    },
];

#[test]
fn no_script_reaches_the_hosts_processes_or_its_sandboxes_first_one() {
    attack(ATTACKS, true);
}

#[test]
fn what_speaks_the_first_processs_protocol_changes_no_exit_code() {
    let (_dir, executor) = executor(Kind::Warm, 1, true);
    for attack in ATTACKS.iter().filter(|attack| attack.name.contains("protocol")) {
        let result = run(&executor, "t", attack.script);
        assert_eq!(result.metadata["exit_code"], 9, "{result:?}");
    }
}

#[test]
fn a_command_that_has_itself_traced_by_the_first_process_ends_no_sooner() {
    let (_dir, executor) = executor(Kind::Warm, 1, true);
    // PTRACE_TRACEME, then a stop that its tracer, the sandbox's first process, is told of.
    let script = "exec perl -e 'syscall(101, 0, 0, 0, 0); kill 19, $$; sleep 100'";
    let result =
        executor.execute("t", bash(script).with_timeout(std::time::Duration::from_secs(1)));
    assert_eq!(result.outcome, Outcome::Timeout, "{result:?}");
    assert_eq!(run(&executor, "t", "echo ok").output, "ok");
}
