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
//! On x86-64 a 32-bit program (and every program by `int 0x80`) has other numbers. The same lines
//! hold for them, under the numbers of that table (`compat`). The x32 ABI has this architecture's
//! name and marked numbers: each of them is `ENOSYS`, as on nearly every kernel. 32-bit programs of
//! other processors are killed, with SIGSYS.
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

#[cfg(target_arch = "x86_64")]
mod compat;

use std::collections::BTreeMap;

use super::FilterKind;

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
const SYS_MEMFD_SECRET: c_long = 447;
const SYS_FCHMODAT2: c_long = 452;
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
const PR_SET_SECCOMP: u64 = 22;
const SECCOMP_MODE_FILTER: u64 = 2;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const F_SETLEASE: u64 = 1024;
const SET_USER_ID: u64 = 0o4000;
const O_CREAT: u64 = 0o100;
/// The bit of `O_TMPFILE` that no other flag has.
const TMPFILE: u64 = 0o20_000_000;

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
    // Memory that not even the kernel can look at, and that no limit counts.
    SYS_MEMFD_SECRET,
    // Its mode is in memory: a file could get the set-user-ID bit.
    libc::SYS_openat2,
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

/// A call, and conditions that all hold of its arguments where it is meant.
type Line = (c_long, Vec<Argument>);

/// What is forbidden with some arguments: all of a line's conditions must hold.
fn forbidden_arguments(kind: FilterKind) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
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
    // Its new limits.
    add(libc::SYS_prlimit64, &[(0, Eq, FIRST_PROCESS), (2, Ne, 0)]);

    // On files that slots share a lease holds up who opens them, for 45 s.
    add(libc::SYS_fcntl, &[(1, Eq, F_SETLEASE)]);

    // A program with the set-user-ID bit is run by others as its owner, outside too. What installs
    // an image's packages has to set it, on files that no one outside can get to.
    if kind != FilterKind::Host {
        return lines;
    }
    let of_owner = |index| (index, MaskedEq(SET_USER_ID), SET_USER_ID);
    add(libc::SYS_fchmod, &[of_owner(1)]);
    add(libc::SYS_fchmodat, &[of_owner(2)]);
    add(SYS_FCHMODAT2, &[of_owner(2)]);
    add(libc::SYS_mknodat, &[of_owner(2)]);
    for flag in [O_CREAT, TMPFILE] {
        add(libc::SYS_openat, &[(2, MaskedEq(flag), flag), of_owner(3)]);
        #[cfg(target_arch = "x86_64")]
        add(libc::SYS_open, &[(1, MaskedEq(flag), flag), of_owner(2)]);
    }
    #[cfg(target_arch = "x86_64")]
    for call in [libc::SYS_chmod, libc::SYS_creat, libc::SYS_mknod] {
        add(call, &[of_owner(1)]);
    }
    lines
}

/// What the kernel would not have without its `CONFIG_SECCOMP_FILTER`: programs do without. Each
/// filter takes memory of the kernel's for programs, of which there is one pool.
fn filters() -> Vec<Line> {
    vec![
        (libc::SYS_seccomp, vec![(0, Eq, SECCOMP_SET_MODE_FILTER)]),
        (libc::SYS_prctl, vec![(0, Eq, PR_SET_SECCOMP), (1, Eq, SECCOMP_MODE_FILTER)]),
    ]
}

/// The address families that there are.
fn other_families() -> Vec<Line> {
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
fn too_large() -> Vec<Line> {
    vec![
        (libc::SYS_shmget, vec![(1, Gt, LARGEST_SEGMENT)]),
        (libc::SYS_semget, vec![(1, Gt, MOST_SEMAPHORES)]),
    ]
}

/// What makes files and processes those of other users: where there is one id it has no effect.
const OF_OTHER_USERS: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
];

/// What makes devices, which an image's packages may have.
fn devices() -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for kind in [libc::S_IFCHR, libc::S_IFBLK].map(u64::from) {
        let of_kind = |index| vec![(index, MaskedEq(u64::from(libc::S_IFMT)), kind)];
        lines.push((libc::SYS_mknodat, of_kind(2)));
        #[cfg(target_arch = "x86_64")]
        lines.push((libc::SYS_mknod, of_kind(1)));
    }
    lines
}

/// What is denied: a call, where all these conditions hold of its arguments.
struct Denied {
    call: c_long,
    /// How it fails.
    error: i32,
    arguments: Vec<Argument>,
}

/// That a call has no effect, and seems to have worked.
const NO_ERROR: i32 = 0;

/// All that is denied.
fn denied(kind: FilterKind) -> Vec<Denied> {
    let whole = |calls: &[c_long]| calls.iter().map(|&call| (call, Vec::new())).collect();
    let (others, devices) = match kind {
        FilterKind::ImageWithOneId => (whole(OF_OTHER_USERS), devices()),
        FilterKind::Host | FilterKind::Image => (Vec::new(), Vec::new()),
    };
    let groups: [(i32, Vec<Line>); 8] = [
        (NO_ERROR, others),
        (NO_ERROR, devices),
        (libc::ENOSYS, whole(MISSING)),
        (libc::EPERM, whole(FORBIDDEN)),
        (libc::EPERM, forbidden_arguments(kind)),
        (libc::EAFNOSUPPORT, other_families()),
        (libc::EINVAL, too_large()),
        (libc::EINVAL, filters()),
    ];
    let of_group = |(error, lines): (i32, Vec<Line>)| {
        lines.into_iter().map(move |(call, arguments)| Denied { call, error, arguments })
    };
    groups.into_iter().flat_map(of_group).collect()
}

/// The finished program.
///
/// # Errors
/// Where the compiler refuses, which only a mistake here can bring about.
pub(super) fn program(kind: FilterKind) -> Result<BpfProgram, BackendError> {
    let denied = denied(kind);
    let mut parts = Vec::new();
    #[cfg(target_arch = "x86_64")]
    parts.push(no_x32());
    for error in [NO_ERROR, libc::ENOSYS, libc::EPERM, libc::EAFNOSUPPORT, libc::EINVAL] {
        parts.push(part(error, rules(denied.iter().filter(|denied| denied.error == error))?)?);
    }
    parts.push(vec![returns(libc::SECCOMP_RET_ALLOW)]);
    let native = parts.concat();
    #[cfg(target_arch = "x86_64")]
    return Ok(compat::before(native, &denied));
    #[cfg(not(target_arch = "x86_64"))]
    Ok(native)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Sizes and addresses count as a whole; of other arguments the kernel looks at the lower half.
fn condition(
    call: c_long,
    &(index, ref operator, value): &Argument,
) -> Result<SeccompCondition, BackendError> {
    let is_wide = matches!(operator, Gt) || (call == libc::SYS_prlimit64 && index == 2);
    let length = if is_wide { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
    SeccompCondition::new(index, length, operator.clone(), value)
}

/// The lines as the compiler wants them: any of a call's lines denies it.
fn rules<'a>(lines: impl Iterator<Item = &'a Denied>) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    for Denied { call, arguments, .. } in lines {
        let of_call = rules.entry(*call).or_default();
        if !arguments.is_empty() {
            let conditions = arguments.iter().map(|argument| condition(*call, argument));
            of_call.push(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?);
        }
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
mod tests;
