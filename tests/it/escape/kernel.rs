//! System calls and kernel interfaces that no tool needs.

use super::*;

const ATTACKS: &[Attack] = &[
    Attack {
        name: "write kernel settings",
        script: "for f in kernel/core_pattern kernel/modprobe vm/overcommit_memory kernel/hostname \
            kernel/sysrq net/ipv4/ip_forward fs/suid_dumpable; do
            [ -w /proc/sys/$f ] && { echo x > /proc/sys/$f; } 2>/dev/null && echo ESCAPED $f; done; true",
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "press magic keys",
        script: "{ echo h > /proc/sysrq-trigger; } 2>/dev/null && echo ESCAPED; true",
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "write to /sys",
        script: "find /sys -type f -writable 2>/dev/null | head -3 | grep . && echo ESCAPED;
            find /sys/fs/cgroup -name 'slot-*' -o -name '*.slice' | grep . && echo ESCAPED; true",
        outside: Escapes,
    },
    Attack {
        name: "leave by a control group's release agent",
        script: "mount -t cgroup -o memory c /tmp && echo ESCAPED; mount -t cgroup2 c /tmp && echo ESCAPED; true",
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "read the kernel's log",
        script: "dmesg 2>/dev/null | grep . && echo ESCAPED; head -c 1 /proc/kmsg && echo ESCAPED; \
            head -c 64 /proc/kcore && echo ESCAPED; true",
        outside: NotRun("needs root"),
    },
    Attack {
        name: "change what all sandboxes share of /proc",
        script: "chmod 777 /proc/version /proc/kcore /proc/sys && echo ESCAPED; true",
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "change shared devices",
        script: "chmod 666 /dev/null && echo ESCAPED; chown 65534 /dev/zero && echo ESCAPED; rm -f /dev/null && echo ESCAPED; true",
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "type into a terminal",
        script: r#"perl -e 'for ("/dev/tty", "/dev/console", "/dev/ptmx") { open(T, "+<", $_) or next; $c = "x";
            print "ESCAPED $_" if ioctl(T, 0x5412, $c) }'"#,
        outside: NotRun("there is no terminal in CI"),
    },
    Attack {
        name: "load a kernel module",
        script: "perl -e 'print \"ESCAPED\" if syscall(175, \"x\", 1, \"\") == 0 || syscall(313, 0, \"\", 0) == 0'",
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "system calls that no tool needs",
        script: r#"perl -e 'use Errno; my $b = "\0" x 256;
            my %calls = (keyctl => [250, 0, -3, 1], add_key => [248, "user", "a", "b", 1, -3],
                bpf => [321, 0, $b, 48], perf_event_open => [298, $b, 0, -1, -1, 0],
                userfaultfd => [323, 1], io_uring_setup => [425, 8, $b], kcmp => [312, 1, 1, 0, 0, 0],
                swapon => [167, "x", 0], acct => [163, "x"], reboot => [169, 0, 0, 0, 0],
                settimeofday => [164, $b, 0], sethostname => [170, "x", 1], iopl => [172, 3],
                kexec_load => [246, 0, 0, 0, 0], quotactl => [179, 0, 0, 0, 0], fsopen => [430, "tmpfs", 0],
                mount => [165, "none", "/tmp", "tmpfs", 0, 0], pivot_root => [155, ".", "."],
                open_tree => [428, -100, "/usr", 1], unshare_net => [272, 0x40000000]);
            for (sort keys %calls) { my ($n, @a) = @{$calls{$_}};
                my $r = syscall($n, @a); print "ESCAPED $_ $r\n" if $r >= 0 }'"#,
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "the 32-bit and x32 doors",
        // x32: the number of getpid with the bit that marks the ABI; mount in it.
        script: r#"perl -e 'print "ESCAPED" if syscall(0x40000000 | 165, "none", "/tmp", "tmpfs", 0, 0) == 0'"#,
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "a file that runs as its owner",
        script: "cp /bin/true /tmp/t && chmod 4755 /tmp/t; perl -e 'syscall(257, -100, \"/tmp/u\", 0101, 04755)'; \
            find /tmp -perm /4000 2>/dev/null | grep -q . && echo ESCAPED; rm -f /tmp/t /tmp/u; true",
        outside: Escapes,
    },
    Attack {
        name: "System V memory of the host",
        script: "ipcs -m | grep -q 0x70010001 && echo ESCAPED; ipcmk -M 100 >/dev/null; ipcs -m | grep -c 0x | grep -qvx 1 && echo ESCAPED; true",
        outside: NotRun("leaves an object on the host"),
    },
];

#[test]
fn no_script_gets_anything_from_the_kernel_that_no_tool_needs() {
    attack(ATTACKS, true);
}
