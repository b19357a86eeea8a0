//! The filter of system calls, from inside a sandbox: what it denies, and that tools go on
//! working.

#![allow(clippy::print_stdout, reason = "what could not run says so")]

use std::path::Path;

use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::LocalConfig;
use tool_executor::{Outcome, ToolCall, ToolExecutor};

use crate::caller::directory;
use crate::fakes::bash;

fn executor(seccomp: bool) -> (tempfile::TempDir, ToolExecutor) {
    let dir = directory();
    let mut config = LocalConfig::new(1);
    config.data_dir = Some(dir.path().to_owned());
    config.seccomp = seccomp;
    let backend = LocalBackend::start(config).unwrap();
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    let why_not = executor.capabilities().not_filtered_because;
    assert_eq!(why_not.is_none(), seccomp, "{why_not:?}");
    (dir, executor)
}

/// The error numbers of system calls made in a sandbox, 0 for none. Each is an expression for
/// perl, which every system has and which can make any call.
fn errors(executor: &ToolExecutor, calls: &[String]) -> Vec<i32> {
    let command = format!("{}; perl probe.pl", write_probe(calls));
    let result = executor.execute("prober", bash(&command));
    assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
    numbers(&result.output)
}

/// A command that writes the script `probe.pl`, which makes these calls.
fn write_probe(calls: &[String]) -> String {
    assert!(Path::new("/usr/bin/perl").exists(), "this test needs perl: apt-get install perl-base");
    let mut script = String::from("$| = 1; $me = $$;\n");
    for call in calls {
        script
            .push_str(&format!("$! = 0; $r = {call}; print(($r == -1 ? $! + 0 : 0), \"\\n\");\n"));
    }
    format!("{{ cat > probe.pl <<'END'\n{script}END\n}}")
}

fn numbers(output: &str) -> Vec<i32> {
    // Without the line about a child that was ended with its call.
    let lines = output.lines().filter(|line| !line.starts_with('['));
    lines.map(|line| line.parse().expect(line)).collect()
}

/// A new file's name.
fn new_file(number: u32) -> String {
    format!("do {{ open(F, '>', 'suid-{number}'); $f = 'suid-{number}' }}")
}

/// Calls that the kernel itself would let through, or refuse in another way:
/// `(what it is, with the filter)`.
fn probes() -> Vec<(String, i32)> {
    let call = |number: libc::c_long, arguments: &str| format!("syscall({number}, {arguments})");
    vec![
        (call(libc::SYS_keyctl, "0, -3, 0"), libc::ENOSYS),
        (call(libc::SYS_add_key, "0, 0, 0, 0, 0"), libc::ENOSYS),
        (call(libc::SYS_clone3, "0, 0"), libc::ENOSYS),
        (call(libc::SYS_userfaultfd, "1"), libc::ENOSYS),
        (call(libc::SYS_process_vm_readv, "$me, 0, 0, 0, 0, 0"), libc::ENOSYS),
        (call(libc::SYS_pidfd_getfd, "-1, 0, 0"), libc::EPERM),
        (call(libc::SYS_name_to_handle_at, "-100, 0, 0, 0, 0"), libc::EPERM),
        (call(libc::SYS_unshare, "0x10000000"), libc::EPERM),
        (call(libc::SYS_clone, "0x10000000 | 17, 0, 0, 0, 0"), libc::EPERM),
        (call(libc::SYS_setns, "-1, 0"), libc::EPERM),
        (call(libc::SYS_shmget, "0, 2 << 20, 0600 | 01000"), libc::EINVAL),
        (call(libc::SYS_semget, "0, 1000, 0600 | 01000"), libc::EINVAL),
        (call(libc::SYS_personality, "0x0400000"), libc::EPERM),
        (call(libc::SYS_ioctl, "0, 0x5412, 0"), libc::EPERM),
        (call(libc::SYS_ioctl, "0, 0x10000541c, 0"), libc::EPERM),
        (call(libc::SYS_socket, "17, 3, 0"), libc::EAFNOSUPPORT),
        (call(libc::SYS_socket, "16, 3, 9"), libc::EAFNOSUPPORT),
        (call(libc::SYS_prlimit64, "1, 7, ($b = pack('QQ', 64, 64)), 0"), libc::EPERM),
        (call(libc::SYS_sched_setaffinity, "1, 8, ($b = pack('Q', 1))"), libc::EPERM),
        (call(libc::SYS_sched_setscheduler, "1, 5, ($b = pack('l', 0))"), libc::EPERM),
        (call(libc::SYS_setpriority, "0, 1, 5"), libc::EPERM),
        (call(libc::SYS_setpriority, "2, 0, 5"), libc::EPERM),
        (call(libc::SYS_ioprio_set, "1, 1, 0x6000"), libc::EPERM),
        (call(libc::SYS_seccomp, "1, 0, 0"), libc::EINVAL),
        (call(libc::SYS_prctl, "22, 2, 0"), libc::EINVAL),
        (call(libc::SYS_fcntl, "fileno(STDIN), 1024, 1"), libc::EPERM),
        (call(447, "0"), libc::ENOSYS),
        (call(libc::SYS_openat2, "-100, 0, 0, 24"), libc::ENOSYS),
        (call(libc::SYS_fchmodat, &format!("-100, {}, 04755", new_file(1))), libc::EPERM),
        (call(libc::SYS_openat, "-100, ($b = 'suid-2'), 0101, 04755"), libc::EPERM),
    ]
}

#[test]
fn denied_calls_are_denied_and_without_the_filter_the_kernel_decides() {
    let (probes, expected): (Vec<_>, Vec<_>) = probes().into_iter().unzip();
    let (_dir, filtered) = executor(true);
    let with_filter = errors(&filtered, &probes);
    assert_eq!(with_filter, expected, "{probes:#?}");
    // The kernel itself may refuse these, too.
    let first = ["16, 1, 0, 0", "0x4206, 1, 0, 0"]
        .map(|arguments| format!("syscall({}, {arguments})", libc::SYS_ptrace));
    assert_eq!(errors(&filtered, &first), [libc::EPERM; 2]);
    let (_dir, open) = executor(false);
    let without = errors(&open, &probes);
    for ((probe, with), without) in probes.iter().zip(&with_filter).zip(&without) {
        // These are not in every kernel.
        let may_be_missing = *without == libc::ENOSYS;
        assert!(with != without || may_be_missing, "{probe}: {with} in any case");
    }
}

#[test]
fn sandboxes_that_are_kept_have_the_filter_too() {
    let (probes, expected): (Vec<_>, Vec<_>) = probes().into_iter().unzip();
    let (_dir, executor) = executor(true);
    let run = |tool, arguments| executor.execute("t", ToolCall::new(tool, arguments));
    let stateful = |command: &str| run("terminal_stateful", json!({"command": command}));
    assert!(stateful(&write_probe(&probes)).success);
    assert_eq!(numbers(&stateful("perl probe.pl").output), expected, "{probes:#?}");
    assert!(!stateful("unshare -r true").success);
    let keys = json!(["perl probe.pl > probed < /dev/null", "Enter"]);
    let typed = run("tmux", json!({"action": "send_keys", "keys": keys, "block": true}));
    assert_eq!(typed.output, "ok", "{typed:?}");
    assert_eq!(numbers(&run("bash", json!({"command": "cat probed"})).output), expected);
}

#[test]
fn calls_that_tools_need_are_allowed() {
    let call = |number: libc::c_long, arguments: &str| format!("syscall({number}, {arguments})");
    let child = "(do { pipe(R, W); $p = fork(); if (!$p) { close(W); <R>; exit } $p })";
    let allowed = [
        call(libc::SYS_ptrace, &format!("16, {child}, 0, 0")),
        call(libc::SYS_ptrace, &format!("0x4206, {child}, 0, 0")),
        call(libc::SYS_shmget, "0, 65536, 0600 | 01000"),
        call(libc::SYS_socket, "1, 1, 0"),
        call(libc::SYS_socket, "2, 1, 0"),
        call(libc::SYS_socket, "16, 3, 0"),
        call(libc::SYS_prlimit64, "1, 7, 0, ($b = pack('QQ', 0, 0))"),
        call(libc::SYS_prlimit64, "$me, 7, ($b = pack('QQ', 64, 64)), 0"),
        call(libc::SYS_sched_setaffinity, "$me, 8, ($b = pack('Q', 0xffffffff))"),
        call(libc::SYS_setpriority, "0, 0, 19"),
        call(libc::SYS_personality, "0xffffffff"),
        call(libc::SYS_personality, "0x0040000"),
        call(libc::SYS_memfd_create, "($b = 'x'), 0"),
        call(libc::SYS_pidfd_open, "$me, 0"),
    ];
    let (_dir, executor) = executor(true);
    assert_eq!(errors(&executor, &allowed), [0; 14], "{allowed:#?}");
}

/// A program that makes the calls of the 32-bit table that it is given as arguments: a number and
/// up to three arguments each, with a `,` between. Prints the error, or 0.
const INT80: &str = r#"cat > int80.c <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int count, char **given) {
    for (int i = 1; i < count; i++) {
        long a[4] = {0};
        char *rest = given[i];
        for (int n = 0; n < 4 && rest; n++) {
            a[n] = strtoul(rest, &rest, 0);
            rest = *rest == ',' ? rest + 1 : NULL;
        }
        long result;
        __asm__ volatile("int $0x80" : "=a"(result)
            : "a"(a[0]), "b"(a[1]), "c"(a[2]), "d"(a[3]), "S"(0), "D"(0) : "memory");
        printf("%ld\n", result < 0 && result > -4096 ? -result : 0);
    }
}
END
gcc -o int80 int80.c"#;

#[cfg(target_arch = "x86_64")]
#[test]
fn programs_of_32_bits_run_and_get_no_more_than_others() {
    if !Path::new("/usr/bin/gcc").exists() || !Path::new("/usr/bin/as").exists() {
        println!("no programs of 32 bits were made: there is no compiler");
        return;
    }
    let (_dir, executor) = executor(true);
    let assembled = "cat > a.s <<'END'
        .globl _start
        _start: mov $4,%eax; mov $1,%ebx; mov $m,%ecx; mov $3,%edx; int $0x80
        mov $1,%eax; xor %ebx,%ebx; int $0x80
        .data
        m: .ascii \"hi\\n\"
END
        as --32 a.s -o a.o && ld -m elf_i386 a.o -o a && ./a";
    let result = executor.execute("t", bash(assembled));
    let kernel_has_them = !result.output.contains("Exec format error");
    if !kernel_has_them {
        println!("no programs of 32 bits were run: the kernel does not have them");
        return;
    }
    assert_eq!(result.output, "hi", "{result:?}");
    let built = executor.execute("t", bash(INT80));
    assert!(built.success, "{built:?}");
    let probes = [
        // What every program does: getpid, access, fcntl with F_GETFD.
        ("20", 0),
        ("55,0,1", 0),
        // unshare and clone with a new user namespace, mount, umount, chroot.
        ("310,0x10000000", libc::EPERM),
        ("120,0x10000011", libc::EPERM),
        ("21,0,0,0", libc::EPERM),
        ("22,0", libc::EPERM),
        ("52,0,0", libc::EPERM),
        ("61,0", libc::EPERM),
        // The calls whose arguments are hidden.
        ("102,1,0", libc::ENOSYS),
        ("117,23,0,0x1000000", libc::ENOSYS),
        // What the others have as well: clone3, keyctl, memfd_secret, bpf.
        ("435,0,0", libc::ENOSYS),
        ("288,0", libc::ENOSYS),
        ("447,0", libc::ENOSYS),
        ("357,0", libc::EPERM),
        // Arguments: packet sockets, filters, leases of both kinds, modes, the first process.
        ("359,17,3,0", libc::EAFNOSUPPORT),
        ("354,1,0,0", libc::EINVAL),
        ("172,22,2,0", libc::EINVAL),
        ("55,0,1024,1", libc::EPERM),
        ("221,0,1024,1", libc::EPERM),
        ("15,0,04755", libc::EPERM),
        ("340,1,7,4096", libc::EPERM),
        ("97,0,1,5", libc::EPERM),
        ("54,0,0x5412,0", libc::EPERM),
    ];
    let calls: Vec<_> = probes.iter().map(|(call, _)| *call).collect();
    let result = executor.execute("t", bash(&format!("./int80 {}", calls.join(" "))));
    let expected: Vec<_> = probes.iter().map(|(_, errno)| *errno).collect();
    assert_eq!(numbers(&result.output), expected, "{calls:?}");
}

#[test]
fn files_get_no_set_user_id_bit_and_directories_are_still_shared_by_groups() {
    let (_dir, executor) = executor(true);
    let command = "cp /bin/true t; for c in 'chmod u+s t' 'chmod 4755 t' 'install -m 4755 t u' \
        'cp -p t v' 'chmod 6755 t'; do $c 2>/dev/null && echo $c; done; \
        find . -perm /4000; mkdir d && chmod g+s d && stat -c %a d; \
        tar cf x.tar t && tar xf x.tar && echo extracted";
    let result = executor.execute("t", bash(command));
    assert_eq!(result.output, "cp -p t v\n2755\nextracted", "{result:?}");
}

/// Programs and what they print. Those that are not installed are left out.
#[test]
fn ordinary_tools_go_on_working() {
    let (_dir, executor) = executor(true);
    let run = |command: &str| executor.execute("t", bash(command));
    for (tool, command, output) in [
        ("bash", "f() { echo $1; }; for i in 1 2 3; do f $i & done | sort; wait", "1\n2\n3"),
        // 19 is the most, and the tests may run at it.
        (
            "nice",
            "n=$(nice); [ $(nice -n 5 nice) = $((n < 14 ? n + 5 : 19)) ] && echo nicer",
            "nicer",
        ),
        ("ulimit", "ulimit -n 64; ulimit -n", "64"),
        ("taskset", "taskset -c 0 bash -c 'taskset -cp $$' | sed 's/.*: //'", "0"),
        ("setsid", "setsid --wait echo session", "session"),
        ("timeout", "timeout 5 echo in time", "in time"),
        ("perl", "perl -e 'print join \",\", map { $_ * 2 } 1..3'", "2,4,6"),
        (
            "python3",
            "python3 -c 'import subprocess, threading, multiprocessing as m\n\
             t = threading.Thread(target=print, args=(\"thread\",), kwargs=dict(flush=True))\n\
             t.start(); t.join()\n\
             print(subprocess.run([\"echo\", \"child\"], capture_output=True).stdout.decode(), end=\"\", flush=True)\n\
             with m.get_context(\"fork\").Pool(2) as p: print(p.map(abs, [-1, -2]))'",
            "thread\nchild\n[1, 2]",
        ),
        (
            "git",
            "git init -q r && cd r && git -c user.name=n -c user.email=e commit -q --allow-empty -m m \
             && git log --format=%s",
            "m",
        ),
        (
            "gcc",
            "echo 'int main(void) { return 42; }' > m.c && gcc -g m.c -o m; ./m; echo $?",
            "42",
        ),
        (
            "gdb",
            "gdb -nx -q -batch -ex 'break main' -ex run ./m 2>&1 | grep -c 'Breakpoint 1, main'",
            "1",
        ),
        (
            "strace",
            "strace -f -o trace sh -c 'echo a | cat'; grep -c '+++ exited with 0 +++' trace",
            "a\n3",
        ),
        (
            "strace",
            "strace -e trace=openat -o trace cat /dev/null; grep -c '\"/dev/null\"' trace",
            "1",
        ),
        (
            "node",
            "node -e 'require(\"child_process\").exec(\"echo child\", (e, out) => { \
             require(\"fs\").writeFileSync(\"f\", out); console.log(require(\"fs\").readFileSync(\"f\", \"utf8\").trim()) })'",
            "child",
        ),
    ] {
        if run(&format!("command -v {tool}")).outcome != Outcome::Ok {
            assert!(!["bash", "nice", "ulimit"].contains(&tool), "{tool}");
            println!("not installed: {tool}");
            continue;
        }
        let result = run(command);
        assert_eq!((result.outcome, &*result.output), (Outcome::Ok, output), "{tool}: {result:?}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_x32_abi_is_no_way_around() {
    let (_dir, executor) = executor(true);
    let program = r#"
        #include <errno.h>
        #include <stdio.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int main(void) {
            int x32 = syscall(0x40000000 + SYS_getpid) == -1 ? errno : 0;
            printf("x32: %d\n", x32);
        }"#;
    let command =
        format!("command -v cc || exit 77; cat > m.c <<'END'\n{program}\nEND\ncc m.c && ./a.out");
    let result = executor.execute("t", bash(&command));
    if result.error == "Exit code: 77" {
        return println!("could not run: no C compiler");
    }
    assert!(result.output.contains("x32: 38"), "{result:?}");
}
