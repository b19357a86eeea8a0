//! The filter's lines for 32-bit programs on x86-64. Pure.
//!
//! Their table of system calls has other numbers, and a few calls that the 64-bit one lacks. Two of
//! those are others in disguise (`socketcall`, `ipc`), and denied: what they ask for is in memory,
//! where a filter cannot see it; programs of the last ten years ask directly. A line of the
//! 64-bit table whose call has no numbers here would be a hole: then 32-bit programs are killed.

use libc::c_long;
use seccompiler::SeccompCmpOp::{Eq, Ge, Gt, Le, Lt, MaskedEq, Ne};
use seccompiler::sock_filter;

use super::{Argument, Denied, SYS_OPEN_TREE_ATTR, returns};

/// The kernel's name of the architecture.
const ARCHITECTURE: u32 = 0x4000_0003;
/// From this number on both tables are the same.
const FIRST_COMMON: c_long = 424;

// Steps of a filter, and where what they look at is in `struct seccomp_data`.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// The numbers that calls of the 64-bit table have in this one; none where it lacks them.
const NUMBERS: &[(c_long, &[u32])] = &[
    (libc::SYS_chown, &[182, 212]),
    (libc::SYS_lchown, &[16, 198]),
    (libc::SYS_fchown, &[95, 207]),
    (libc::SYS_fchownat, &[298]),
    (libc::SYS_setuid, &[23, 213]),
    (libc::SYS_setgid, &[46, 214]),
    (libc::SYS_setreuid, &[70, 203]),
    (libc::SYS_setregid, &[71, 204]),
    (libc::SYS_setresuid, &[164, 208]),
    (libc::SYS_setresgid, &[170, 210]),
    (libc::SYS_setfsuid, &[138, 215]),
    (libc::SYS_setfsgid, &[139, 216]),
    (libc::SYS_setgroups, &[81, 206]),
    (libc::SYS_capset, &[185]),
    (libc::SYS_userfaultfd, &[374]),
    (libc::SYS_keyctl, &[288]),
    (libc::SYS_add_key, &[286]),
    (libc::SYS_request_key, &[287]),
    (libc::SYS_process_vm_readv, &[347]),
    (libc::SYS_process_vm_writev, &[348]),
    (libc::SYS_kcmp, &[349]),
    (libc::SYS_lookup_dcookie, &[253]),
    (libc::SYS_nfsservctl, &[169]),
    (libc::SYS_modify_ldt, &[123]),
    (libc::SYS_uselib, &[86]),
    (libc::SYS__sysctl, &[149]),
    (libc::SYS_sysfs, &[135]),
    (libc::SYS_bpf, &[357]),
    (libc::SYS_perf_event_open, &[336]),
    (libc::SYS_mount, &[21]),
    (libc::SYS_umount2, &[52]),
    (libc::SYS_pivot_root, &[217]),
    (libc::SYS_chroot, &[61]),
    (libc::SYS_setns, &[346]),
    (libc::SYS_name_to_handle_at, &[341]),
    (libc::SYS_open_by_handle_at, &[342]),
    (libc::SYS_fanotify_init, &[338]),
    (libc::SYS_swapon, &[87]),
    (libc::SYS_swapoff, &[115]),
    (libc::SYS_reboot, &[88]),
    (libc::SYS_kexec_load, &[283]),
    (libc::SYS_kexec_file_load, &[]),
    (libc::SYS_init_module, &[128]),
    (libc::SYS_finit_module, &[350]),
    (libc::SYS_delete_module, &[129]),
    (libc::SYS_acct, &[51]),
    (libc::SYS_quotactl, &[131]),
    (libc::SYS_syslog, &[103]),
    (libc::SYS_vhangup, &[111]),
    (libc::SYS_iopl, &[110]),
    (libc::SYS_ioperm, &[101]),
    (libc::SYS_clone, &[120]),
    (libc::SYS_unshare, &[310]),
    (libc::SYS_ptrace, &[26]),
    (libc::SYS_ioctl, &[54]),
    (libc::SYS_personality, &[136]),
    (libc::SYS_sched_setaffinity, &[241]),
    (libc::SYS_sched_setscheduler, &[156]),
    (libc::SYS_sched_setparam, &[154]),
    (libc::SYS_sched_setattr, &[351]),
    (libc::SYS_migrate_pages, &[294]),
    (libc::SYS_move_pages, &[317]),
    (libc::SYS_setpriority, &[97]),
    (libc::SYS_ioprio_set, &[289]),
    (libc::SYS_prctl, &[172]),
    (libc::SYS_prlimit64, &[340]),
    (libc::SYS_socket, &[359]),
    (libc::SYS_socketpair, &[360]),
    (libc::SYS_shmget, &[395]),
    (libc::SYS_semget, &[393]),
    (libc::SYS_seccomp, &[354]),
    // Of the second form the numbers of locks are different, and those of leases the same.
    (libc::SYS_fcntl, &[55, 221]),
    (libc::SYS_chmod, &[15]),
    (libc::SYS_fchmod, &[94]),
    (libc::SYS_fchmodat, &[306]),
    (libc::SYS_creat, &[8]),
    (libc::SYS_mknod, &[14]),
    (libc::SYS_mknodat, &[297]),
    (libc::SYS_open, &[5]),
    (libc::SYS_openat, &[295]),
];

/// Calls of this table alone that are missing: `socketcall`, `ipc`, those of the virtual 8086, and
/// what kernels have lost.
const MISSING: [u32; 8] = [102, 117, 113, 166, 127, 130, 134, 167];
/// Calls of this table alone that are forbidden: `umount` without flags, `stime`.
const FORBIDDEN: [u32; 2] = [22, 25];

/// The numbers of a call of the 64-bit table. `None` where they are not known.
pub(super) fn numbers(call: c_long) -> Option<&'static [u32]> {
    let known = NUMBERS.iter().find(|(known, _)| *known == call).map(|(_, numbers)| *numbers);
    known.or_else(|| COMMON.iter().find(|(common, _)| *common == call).map(|(_, one)| &one[..]))
}

/// Calls that have one number in both tables, up to the last one that a line names.
const COMMON: &[(c_long, [u32; 1])] = &common();

const fn common() -> [(c_long, [u32; 1]); (SYS_OPEN_TREE_ATTR - FIRST_COMMON + 1) as usize] {
    let mut all = [(0, [0]); (SYS_OPEN_TREE_ATTR - FIRST_COMMON + 1) as usize];
    let mut index = 0;
    while index < all.len() {
        let number = FIRST_COMMON + index as c_long;
        all[index] = (number, [number as u32]);
        index += 1;
    }
    all
}

/// The program for programs of 64 bits, with this one behind it for those of 32.
pub(super) fn before(native: Vec<sock_filter>, denied: &[Denied]) -> Vec<sock_filter> {
    let compat = program(denied).unwrap_or_else(|| vec![returns(libc::SECCOMP_RET_KILL_PROCESS)]);
    let mut program = vec![
        step(LOAD, 0, 0, ARCHITECTURE_AT),
        step(IF_EQUAL, 0, 1, ARCHITECTURE),
        step(JUMP, 0, 0, native.len() as u32),
    ];
    program.extend(native);
    program.extend(compat);
    program
}

/// `None` where a line has no numbers here.
fn program(denied: &[Denied]) -> Option<Vec<sock_filter>> {
    let mut program = vec![step(LOAD, 0, 0, NUMBER_AT)];
    for (numbers, error) in [(&MISSING[..], libc::ENOSYS), (&FORBIDDEN, libc::EPERM)] {
        for &number in numbers {
            line(&mut program, number, &[], error);
        }
    }
    for Denied { call, error, arguments } in denied {
        for &number in numbers(*call)? {
            line(&mut program, number, arguments, *error);
        }
    }
    program.push(returns(libc::SECCOMP_RET_ALLOW));
    Some(program)
}

/// Steps that answer with an error if a call has this number and all conditions hold. They begin
/// and end with the number at hand.
fn line(program: &mut Vec<sock_filter>, number: u32, arguments: &[Argument], error: i32) {
    let mut steps = Vec::new();
    for (index, operator, value) in arguments {
        steps.push(Step::Load(ARGUMENTS_AT + 8 * u32::from(*index)));
        // Arguments have 32 bits: what is larger is never met.
        let value = u32::try_from(*value).unwrap_or(u32::MAX);
        match operator {
            Eq => steps.push(Step::Unless(IF_EQUAL, value, false)),
            Ne => steps.push(Step::Unless(IF_EQUAL, value, true)),
            Gt => steps.push(Step::Unless(IF_GREATER, value, false)),
            Le => steps.push(Step::Unless(IF_GREATER, value, true)),
            Ge => steps.push(Step::Unless(IF_AT_LEAST, value, false)),
            Lt => steps.push(Step::Unless(IF_AT_LEAST, value, true)),
            MaskedEq(mask) => {
                steps.push(Step::And(*mask as u32));
                steps.push(Step::Unless(IF_EQUAL, value, false));
            }
        }
    }
    let fails = returns(libc::SECCOMP_RET_ERRNO | error as u32);
    // Where the line ends, counted from its first step: behind its answer.
    let end = steps.len() + 1;
    let mut all = Vec::with_capacity(end);
    for (at, one) in steps.into_iter().enumerate() {
        let beyond = (end - at - 1) as u8;
        all.push(match one {
            Step::Load(place) => step(LOAD, 0, 0, place),
            Step::And(mask) => step(AND, 0, 0, mask),
            Step::Unless(code, value, true) => step(code, beyond, 0, value),
            Step::Unless(code, value, false) => step(code, 0, beyond, value),
        });
    }
    all.push(fails);
    if !arguments.is_empty() {
        all.push(step(LOAD, 0, 0, NUMBER_AT));
    }
    program.push(step(IF_EQUAL, 0, all.len() as u8, number));
    program.extend(all);
}

/// A step of a line.
enum Step {
    Load(u32),
    And(u32),
    /// Leaves the line unless a comparison has this outcome: `true` where it must not hold.
    Unless(u16, u32, bool),
}

fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}
