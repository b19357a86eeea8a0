//! What the filter denies, and why. Pure.
//!
//! Everything is allowed but what is listed here: tools are many, and what is dangerous is known.
//! A denied call fails with
//! - `ENOSYS` where programs are prepared for a kernel that does not have it, and do without,
//! - `EAFNOSUPPORT` where it asks for an address family that is not offered,
//! - `EINVAL` where it asks for more System V memory or semaphores than there may be at once,
//! - `EPERM` otherwise.
//!
//! # Other ways to make a system call
//! A 32-bit program (on x86-64 also `int 0x80`) has other numbers. It is killed, with SIGSYS: its
//! author gets "Bad system call" instead of a program whose every call fails in ways that nobody
//! ever tested. The x32 ABI has this architecture's name and marked numbers: each of them is
//! `ENOSYS`, as on nearly every kernel.
//!
//! # The first process
//! The sandbox's first process has the user of the commands. What could slow it down, change its
//! limits or look into it is denied for the number 1, which it has inside. Not for all others:
//! threads pin themselves to a processor under their own numbers. Its `/proc/1/mem` is a file,
//! which a filter cannot tell from others: a first process that has something to hide must not be
//! dumpable.
//!
//! # What it costs
//! The kernel works out which calls are always allowed, and does not run the program for those.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::SeccompCmpOp::{Eq, Gt, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// The largest System V memory segment. Databases have one of some bytes, for its side effects.
const LARGEST_SEGMENT: u64 = 1 << 20;
/// The most semaphores in one System V set.
const MOST_SEMAPHORES: u64 = 256;
/// The number of the sandbox's first process inside.
const FIRST_PROCESS: u64 = 1;

// The architectures' own, where the C library's bindings lack them.
const SYS_OPEN_TREE_ATTR: c_long = 467;
const SYS_QUOTACTL_FD: c_long = 443;
const PTRACE_ATTACH: u64 = 16;
const PTRACE_SEIZE: u64 = 0x4206;
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;
const TIOCSETD: u64 = 0x5423;
const CLONE_NEWTIME: u64 = 0x80;
const PR_SCHED_CORE: u64 = 62;
const IOPRIO_WHO_PROCESS: u64 = 1;
const ADDR_NO_RANDOMIZE: u64 = 0x0004_0000;
const PER_LINUX32: u64 = 8;
const PERSONALITY_QUERY: u64 = 0xffff_ffff;

/// What kernels lack, or once lacked: programs do without.
const MISSING: &[c_long] = &[
    // Its flags are in memory, where a filter cannot see them.
    libc::SYS_clone3,
    // Everything that it does passes by a filter.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Holds the kernel up in the middle of things: the tool of choice for winning its races.
    libc::SYS_userfaultfd,
    // The kernel's keys know no sandbox.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // The memory of others. Debuggers have /proc and PTRACE_PEEKDATA.
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
];

/// What nobody in a sandbox may do.
const FORBIDDEN: &[c_long] = &[
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    // Mounts, roots and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    SYS_OPEN_TREE_ATTR,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    // Opens files without a path, and so past what a mount shows.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    // The machine's.
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    #[cfg(not(target_arch = "riscv64"))]
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_acct,
    libc::SYS_quotactl,
    SYS_QUOTACTL_FD,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// Whether an argument, by its lower 32 bits: the kernel looks at no others where these are used.
type Argument = (u8, SeccompCmpOp, u64);

/// What is forbidden with some arguments: all of a line's conditions must hold.
fn forbidden_arguments() -> Vec<(c_long, Vec<Argument>)> {
    let mut lines: Vec<(c_long, Vec<Argument>)> = Vec::new();
    let mut add = |call: c_long, arguments: &[Argument]| lines.push((call, arguments.to_vec()));

    // Namespaces. In the lowest byte `clone` has the signal.
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    for flag in namespaces.map(|flag| u64::from(flag as u32)) {
        add(libc::SYS_clone, &[(0, MaskedEq(flag), flag)]);
        add(libc::SYS_unshare, &[(0, MaskedEq(flag), flag)]);
    }
    add(libc::SYS_unshare, &[(0, MaskedEq(CLONE_NEWTIME), CLONE_NEWTIME)]);

    // Not of all: LeakSanitizer attaches to its own program, and a debugger to one that hangs.
    for request in [PTRACE_ATTACH, PTRACE_SEIZE] {
        add(libc::SYS_ptrace, &[(0, Eq, request), (1, Eq, FIRST_PROCESS)]);
    }

    // Typing into a terminal as if its user had, and drivers that nothing needs.
    add(libc::SYS_ioctl, &[(1, Eq, TIOCSTI)]);
    add(libc::SYS_ioctl, &[(1, Eq, TIOCLINUX)]);
    add(libc::SYS_ioctl, &[(1, Eq, TIOCSETD)]);

    // Memory that is executable by itself, a page at address 0, …: for exploits only.
    let personalities =
        [0, PERSONALITY_QUERY, ADDR_NO_RANDOMIZE, PER_LINUX32, PER_LINUX32 | ADDR_NO_RANDOMIZE];
    add(libc::SYS_personality, &personalities.map(|allowed| (0, Ne, allowed)));

    // What could starve the first process.
    for call in [
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setattr,
        libc::SYS_migrate_pages,
        libc::SYS_move_pages,
    ] {
        add(call, &[(0, Eq, FIRST_PROCESS)]);
    }
    let process = u64::from(libc::PRIO_PROCESS);
    add(libc::SYS_setpriority, &[(0, Eq, process), (1, Eq, FIRST_PROCESS)]);
    // Of groups and users it may be a member.
    add(libc::SYS_setpriority, &[(0, Ne, process)]);
    add(libc::SYS_ioprio_set, &[(0, Eq, IOPRIO_WHO_PROCESS), (1, Eq, FIRST_PROCESS)]);
    add(libc::SYS_ioprio_set, &[(0, Ne, IOPRIO_WHO_PROCESS)]);
    add(libc::SYS_prctl, &[(0, Eq, PR_SCHED_CORE)]);
    lines
}

/// The address families that there are.
fn other_families() -> Vec<(c_long, Vec<Argument>)> {
    let (unix, netlink) = (libc::AF_UNIX as u64, libc::AF_NETLINK as u64);
    let families = [unix, libc::AF_INET as u64, libc::AF_INET6 as u64, netlink];
    vec![
        (libc::SYS_socket, families.map(|allowed| (0, Ne, allowed)).to_vec()),
        // Of netlink what tells the addresses of interfaces; the rest is for administrators.
        (libc::SYS_socket, vec![(0, Eq, netlink), (2, Ne, libc::NETLINK_ROUTE as u64)]),
        (libc::SYS_socketpair, vec![(0, Ne, unix)]),
    ]
}

/// What is too large (`SHMMAX`, `SEMMSL`): such memory belongs to no process, so that nothing but
/// a cgroup could count it. The kernel allows 4,096 segments and 32,000 sets in a sandbox.
fn too_large() -> Result<Rules, BackendError> {
    let larger_than = |limit| {
        let condition = SeccompCondition::new(1, SeccompCmpArgLen::Qword, Gt, limit)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    Ok(Rules::from([
        (libc::SYS_shmget, larger_than(LARGEST_SEGMENT)?),
        (libc::SYS_semget, larger_than(MOST_SEMAPHORES)?),
    ]))
}

/// The finished program.
///
/// # Errors
/// Where the compiler refuses, which only a mistake here can bring about.
pub(super) fn program() -> Result<BpfProgram, BackendError> {
    let whole = |calls: &[c_long]| calls.iter().map(|&call| (call, Vec::new())).collect();
    let mut parts = vec![
        part(libc::ENOSYS, whole(MISSING))?,
        part(libc::EPERM, whole(FORBIDDEN))?,
        part(libc::EPERM, chains(forbidden_arguments())?)?,
        part(libc::EPERM, limits_of_first_process()?)?,
        part(libc::EAFNOSUPPORT, chains(other_families())?)?,
        part(libc::EINVAL, too_large()?)?,
    ];
    #[cfg(target_arch = "x86_64")]
    parts.insert(0, no_x32());
    parts.push(vec![returns(libc::SECCOMP_RET_ALLOW)]);
    Ok(parts.concat())
}

/// `prlimit64` of the first process with new limits, whose address has 64 bits.
fn limits_of_first_process() -> Result<Rules, BackendError> {
    let rule = SeccompRule::new(vec![
        condition((0, Eq, FIRST_PROCESS))?,
        SeccompCondition::new(2, SeccompCmpArgLen::Qword, Ne, 0)?,
    ])?;
    Ok(Rules::from([(libc::SYS_prlimit64, vec![rule])]))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn condition((index, operator, value): Argument) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
}

/// The lines as the compiler wants them: any of a call's lines denies it.
fn chains(lines: Vec<(c_long, Vec<Argument>)>) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    for (call, arguments) in lines {
        let conditions = arguments.into_iter().map(condition).collect::<Result<_, _>>()?;
        rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
    }
    Ok(rules)
}

/// The compiler knows one action for a match; so there is a program for each, and where one ends
/// with this action, the next one begins.
const NEXT_PART: SeccompAction = SeccompAction::Trace(1);

/// A piece of the program, which answers with this error or goes on behind its end.
fn part(error: i32, rules: Rules) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let denied = SeccompAction::Errno(error as u32);
    let mut part: BpfProgram = SeccompFilter::new(rules, NEXT_PART, denied, arch)?.try_into()?;
    let next_part = returns(NEXT_PART.into());
    let length = part.len();
    for (index, step) in part.iter_mut().enumerate() {
        if *step == next_part {
            let beyond = (length - index - 1) as u32;
            *step = sock_filter { code: BPF_JUMP_ALWAYS, jt: 0, jf: 0, k: beyond };
        }
    }
    Ok(part)
}

const BPF_JUMP_ALWAYS: u16 = 0x05;
const BPF_RETURN: u16 = 0x06;

fn returns(action: u32) -> sock_filter {
    sock_filter { code: BPF_RETURN, jt: 0, jf: 0, k: action }
}

/// `ENOSYS` for numbers of the x32 ABI. A 32-bit program's numbers are all below.
#[cfg(target_arch = "x86_64")]
fn no_x32() -> BpfProgram {
    const LOAD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const X32_BIT: u32 = 0x4000_0000;
    vec![
        sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32_BIT },
        returns(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel is given of a call.
    struct Call {
        arch: u32,
        number: u32,
        arguments: [u64; 6],
    }

    /// Runs the program as the kernel does.
    fn run(program: &[sock_filter], call: &Call) -> u32 {
        let mut words = vec![call.number, call.arch, 0, 0];
        for argument in call.arguments {
            words.extend([argument as u32, (argument >> 32) as u32]);
        }
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let step = &program[at];
            at += 1;
            let holds = match step.code {
                0x20 => {
                    accumulator = words[step.k as usize / 4];
                    continue;
                }
                0x54 => {
                    accumulator &= step.k;
                    continue;
                }
                0x05 => {
                    at += step.k as usize;
                    continue;
                }
                0x06 => return step.k,
                0x15 => accumulator == step.k,
                0x25 => accumulator > step.k,
                0x35 => accumulator >= step.k,
                other => panic!("a step of a kind that was never needed: {other:#x}"),
            };
            at += usize::from(if holds { step.jt } else { step.jf });
        }
    }

    #[cfg(target_arch = "x86_64")]
    const ARCH: u32 = 0xc000_003e;
    #[cfg(target_arch = "aarch64")]
    const ARCH: u32 = 0xc000_00b7;
    #[cfg(target_arch = "riscv64")]
    const ARCH: u32 = 0xc000_00f3;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn errno(number: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | number as u32
    }

    fn answer(number: c_long, arguments: &[u64]) -> u32 {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        let program = program().unwrap();
        run(&program, &Call { arch: ARCH, number: number as u32, arguments: all })
    }

    #[test]
    fn whole_calls_are_denied_with_their_error() {
        for &call in MISSING {
            assert_eq!(answer(call, &[]), errno(libc::ENOSYS), "{call}");
        }
        for &call in FORBIDDEN {
            assert_eq!(answer(call, &[]), errno(libc::EPERM), "{call}");
        }
    }

    #[test]
    fn what_tools_do_all_day_is_allowed() {
        for call in [
            libc::SYS_read,
            libc::SYS_openat,
            libc::SYS_execve,
            libc::SYS_wait4,
            libc::SYS_futex,
            libc::SYS_mmap,
            libc::SYS_seccomp,
            libc::SYS_memfd_create,
            libc::SYS_pidfd_open,
            libc::SYS_getrandom,
            libc::SYS_exit_group,
        ] {
            assert_eq!(answer(call, &[]), ALLOW, "{call}");
        }
        let fork = (libc::SIGCHLD | libc::CLONE_CHILD_SETTID) as u64;
        // That of glibc's threads.
        for flags in [fork, 0x3d_0f00, u64::from(libc::SIGCHLD as u32)] {
            assert_eq!(answer(libc::SYS_clone, &[flags]), ALLOW, "{flags:#x}");
        }
        assert_eq!(answer(libc::SYS_unshare, &[libc::CLONE_FILES as u64]), ALLOW);
    }

    #[test]
    fn no_namespace_can_be_made() {
        for flag in [0x2_0000_u64, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000] {
            assert_eq!(answer(libc::SYS_clone, &[flag | 17]), errno(libc::EPERM), "{flag:#x}");
            assert_eq!(answer(libc::SYS_unshare, &[flag]), errno(libc::EPERM), "{flag:#x}");
        }
        let net = 0x4000_0000_u64;
        assert_eq!(answer(libc::SYS_clone, &[net | (1 << 40)]), errno(libc::EPERM));
        assert_eq!(answer(libc::SYS_unshare, &[net | 0x400]), errno(libc::EPERM));
        assert_eq!(answer(libc::SYS_unshare, &[0x80]), errno(libc::EPERM));
    }

    #[test]
    fn the_first_process_is_not_traced() {
        let traceme = 0;
        assert_eq!(answer(libc::SYS_ptrace, &[traceme]), ALLOW);
        for request in [16, 0x4206, 16 | (1 << 32)] {
            assert_eq!(answer(libc::SYS_ptrace, &[request, 7]), ALLOW, "{request}");
            for first in [1, 1 | (1 << 32)] {
                let answer = answer(libc::SYS_ptrace, &[request, first]);
                assert_eq!(answer, errno(libc::EPERM), "{request}");
            }
        }
    }

    #[test]
    fn memory_that_nobody_has_is_small() {
        let too_large = errno(libc::EINVAL);
        for (call, most) in [(libc::SYS_shmget, LARGEST_SEGMENT), (libc::SYS_semget, 256)] {
            assert_eq!(answer(call, &[0, most]), ALLOW);
            assert_eq!(answer(call, &[0, most + 1]), too_large);
            assert_eq!(answer(call, &[0, 1 << 32]), too_large);
        }
    }

    #[test]
    fn a_terminal_is_not_typed_into() {
        for request in [0x5412_u64, 0x541c, 0x5423] {
            // The kernel drops the upper half.
            for request in [request, request | (1 << 32)] {
                let answer = answer(libc::SYS_ioctl, &[0, request]);
                assert_eq!(answer, errno(libc::EPERM), "{request:#x}");
            }
        }
        let window_size = 0x5413;
        assert_eq!(answer(libc::SYS_ioctl, &[0, window_size]), ALLOW);
    }

    #[test]
    fn personalities_are_the_harmless_ones() {
        for allowed in [0, 0xffff_ffff, 0x4_0000, 8, 0x4_0008] {
            assert_eq!(answer(libc::SYS_personality, &[allowed]), ALLOW, "{allowed:#x}");
        }
        for denied in [0x40_0000_u64, 0x10_0000, 0x44_0000, 1] {
            assert_eq!(answer(libc::SYS_personality, &[denied]), errno(libc::EPERM), "{denied:#x}");
        }
    }

    #[test]
    fn families_of_sockets_are_few() {
        let no_family = errno(libc::EAFNOSUPPORT);
        for (domain, protocol, expected) in [
            (1, 0, ALLOW),
            (2, 6, ALLOW),
            (10, 17, ALLOW),
            (16, 0, ALLOW),
            (16, 12, no_family),
            (17, 0, no_family),
            (38, 0, no_family),
            (40, 0, no_family),
            (0, 0, no_family),
            (0x1_0000_0001, 0, ALLOW),
        ] {
            assert_eq!(answer(libc::SYS_socket, &[domain, 1, protocol]), expected, "{domain}");
        }
        assert_eq!(answer(libc::SYS_socketpair, &[1]), ALLOW);
        assert_eq!(answer(libc::SYS_socketpair, &[30]), no_family);
    }

    #[test]
    fn the_first_process_is_let_alone_and_others_are_not_meant() {
        let denied = errno(libc::EPERM);
        let calls = [
            libc::SYS_sched_setaffinity,
            libc::SYS_sched_setscheduler,
            libc::SYS_sched_setparam,
            libc::SYS_sched_setattr,
        ];
        for call in calls {
            assert_eq!(answer(call, &[1]), denied);
            assert_eq!(answer(call, &[1 | (7 << 32)]), denied);
            assert_eq!(answer(call, &[0]), ALLOW);
            assert_eq!(answer(call, &[12]), ALLOW);
        }
        for (arguments, expected) in [
            ([0, 0, 5], ALLOW),
            ([0, 9, 5], ALLOW),
            ([0, 1, 5], denied),
            ([1, 0, 5], denied),
            ([2, 0, 5], denied),
        ] {
            assert_eq!(answer(libc::SYS_setpriority, &arguments), expected, "{arguments:?}");
            let [which, who, _] = arguments;
            assert_eq!(answer(libc::SYS_ioprio_set, &[which + 1, who]), expected);
        }
        for (arguments, expected) in [
            ([0, 7, 0x7fff_0000_0000], ALLOW),
            ([1, 7, 0], ALLOW),
            ([1, 7, 0x7fff_0000_0000], denied),
            ([1, 7, 0x1234], denied),
            ([5, 7, 0x1234], ALLOW),
        ] {
            assert_eq!(answer(libc::SYS_prlimit64, &arguments), expected, "{arguments:x?}");
        }
    }

    #[test]
    fn other_abis_are_no_way_around() {
        let program = program().unwrap();
        let run = |arch, number| run(&program, &Call { arch, number, arguments: [0; 6] });
        let (i386, arm) = (0x4000_0003, 0x4000_0028);
        for arch in [i386, arm] {
            for number in [1, 3, 21, 400] {
                assert_eq!(run(arch, number), libc::SECCOMP_RET_KILL_PROCESS);
            }
        }
        #[cfg(target_arch = "x86_64")]
        for number in [0x4000_0000, 0x4000_0000 | 165, 0x4000_0000 | 520, u32::MAX] {
            assert_eq!(run(ARCH, number), errno(libc::ENOSYS), "{number:#x}");
        }
    }
}
