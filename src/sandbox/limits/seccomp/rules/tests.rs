//! The program, run as the kernel runs it.

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
    let program = program(FilterKind::Host).unwrap();
    run(&program, &Call { arch: ARCH, number: number as u32, arguments: all })
}

#[test]
fn whole_calls_are_denied_with_their_error() {
    for &call in MISSING {
        assert_eq!(answer(call, &[]), errno(libc::ENOSYS), "{call}");
    }
    assert_eq!(answer(SYS_MEMFD_SECRET, &[]), errno(libc::ENOSYS));
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
fn no_filter_is_loaded_and_the_strict_mode_is_there() {
    let denied = errno(libc::EINVAL);
    for (call, arguments, expected) in [
        (libc::SYS_seccomp, [0, 0], ALLOW),
        (libc::SYS_seccomp, [1, 0], denied),
        (libc::SYS_seccomp, [1 | (1 << 32), 0], denied),
        (libc::SYS_seccomp, [2, 0], ALLOW),
        (libc::SYS_prctl, [22, 1], ALLOW),
        (libc::SYS_prctl, [22, 2], denied),
        (libc::SYS_prctl, [38, 1], ALLOW),
        (libc::SYS_prctl, [15, 2], ALLOW),
    ] {
        assert_eq!(answer(call, &arguments), expected, "{call} {arguments:?}");
    }
}

#[test]
fn no_lease_is_taken_and_other_locks_are() {
    for (command, expected) in [(1024, errno(libc::EPERM)), (1025, ALLOW), (6, ALLOW), (37, ALLOW)]
    {
        assert_eq!(answer(libc::SYS_fcntl, &[3, command]), expected, "{command}");
    }
}

#[test]
fn no_file_gets_the_set_user_id_bit() {
    let denied = errno(libc::EPERM);
    for (call, before) in
        [(libc::SYS_fchmod, 1), (libc::SYS_fchmodat, 2), (SYS_FCHMODAT2, 2), (libc::SYS_mknodat, 2)]
    {
        for (mode, expected) in
            [(0o755, ALLOW), (0o2775, ALLOW), (0o4755, denied), (0o4000, denied)]
        {
            let mut arguments = [0x7fff_0000_0000; 4];
            arguments[before] = mode;
            assert_eq!(answer(call, &arguments), expected, "{call} {mode:o}");
        }
    }
    // What a call that makes nothing has there counts as nothing.
    for (flags, mode, expected) in [
        (libc::O_CREAT | libc::O_WRONLY, 0o4755, denied),
        (libc::O_TMPFILE | libc::O_RDWR, 0o4700, denied),
        (libc::O_CREAT | libc::O_WRONLY, 0o644, ALLOW),
        (libc::O_RDONLY, 0o4755, ALLOW),
        (libc::O_DIRECTORY, 0o4755, ALLOW),
    ] {
        let arguments = [0, 0, flags as u64, mode];
        assert_eq!(answer(libc::SYS_openat, &arguments), expected, "{flags:o} {mode:o}");
    }
    assert_eq!(answer(libc::SYS_openat2, &[]), errno(libc::ENOSYS));
}

const KINDS: [FilterKind; 3] = [FilterKind::Host, FilterKind::Image, FilterKind::ImageWithOneId];

#[test]
fn an_images_root_can_install_programs_and_with_one_id_seems_to_give_them_away() {
    let answer = |kind, number: c_long, arguments: [u64; 6]| {
        run(&program(kind).unwrap(), &Call { arch: ARCH, number: number as u32, arguments })
    };
    let of_owner = [0, 0, 0o4755, 0, 0, 0];
    let device = [0, 0, u64::from(libc::S_IFBLK) | 0o600, 0, 0, 0];
    let fifo = [0, 0, u64::from(libc::S_IFIFO) | 0o600, 0, 0, 0];
    for (kind, gives_away, makes_device, sets_bit) in [
        (FilterKind::Host, ALLOW, ALLOW, errno(libc::EPERM)),
        (FilterKind::Image, ALLOW, ALLOW, ALLOW),
        (FilterKind::ImageWithOneId, errno(0), errno(0), ALLOW),
    ] {
        assert_eq!(answer(kind, libc::SYS_fchmodat, of_owner), sets_bit, "{kind:?}");
        for &call in OF_OTHER_USERS {
            assert_eq!(answer(kind, call, [0; 6]), gives_away, "{kind:?} {call}");
        }
        assert_eq!(answer(kind, libc::SYS_mknodat, device), makes_device, "{kind:?}");
        assert_eq!(answer(kind, libc::SYS_mknodat, fifo), ALLOW, "{kind:?}");
        // What no one may do no one may.
        assert_eq!(answer(kind, libc::SYS_mount, [0; 6]), errno(libc::EPERM), "{kind:?}");
        assert_eq!(answer(kind, libc::SYS_clone3, [0; 6]), errno(libc::ENOSYS), "{kind:?}");
    }
}

#[test]
fn other_abis_are_no_way_around() {
    let program = program(FilterKind::Host).unwrap();
    let run = |arch, number| run(&program, &Call { arch, number, arguments: [0; 6] });
    let arm = 0x4000_0028;
    let mut others = vec![arm];
    if !cfg!(target_arch = "x86_64") {
        others.push(0x4000_0003);
    }
    for arch in others {
        for number in [1, 3, 21, 400] {
            assert_eq!(run(arch, number), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }
    #[cfg(target_arch = "x86_64")]
    for number in [0x4000_0000, 0x4000_0000 | 165, 0x4000_0000 | 520, u32::MAX] {
        assert_eq!(run(ARCH, number), errno(libc::ENOSYS), "{number:#x}");
    }
}

/// What a 32-bit program is answered.
#[cfg(target_arch = "x86_64")]
fn answer_of_i386(number: u32, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    run(&program(FilterKind::Host).unwrap(), &Call { arch: 0x4000_0003, number, arguments: all })
}

#[cfg(target_arch = "x86_64")]
#[test]
fn whatever_is_denied_is_denied_to_32_bit_programs_with_the_same_error() {
    for kind in KINDS {
        let program = program(kind).unwrap();
        let run = |arch, number, arguments| run(&program, &Call { arch, number, arguments });
        for Denied { call, error, arguments } in denied(kind) {
            let numbers = compat::numbers(call).unwrap_or_else(|| panic!("{call} has no numbers"));
            // Arguments for which all conditions hold.
            let mut given = [0_u64; 6];
            for (index, operator, value) in &arguments {
                given[usize::from(*index)] = match operator {
                    Eq | MaskedEq(_) => *value,
                    Gt => value + 1,
                    // No value that any line names.
                    _ => 0x7777,
                };
            }
            for &number in numbers {
                let answer = run(0x4000_0003, number, given);
                assert_eq!(answer, errno(error), "{kind:?} {call} {number} {given:?}");
            }
            let native = run(ARCH, call as u32, given);
            assert_eq!(native, errno(error), "{kind:?} {call} {given:?}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_program_has_the_usual_calls_and_none_that_hides_its_arguments() {
    // exit, fork, read, write, open, execve, brk, mmap2, clone, futex, openat, exit_group, socket
    for (number, arguments) in [
        (1, &[][..]),
        (2, &[]),
        (3, &[]),
        (4, &[]),
        (5, &[0, 0o101, 0o644]),
        (11, &[]),
        (45, &[]),
        (192, &[]),
        (120, &[17]),
        (240, &[]),
        (295, &[]),
        (252, &[]),
        (359, &[1, 1, 0]),
        (55, &[0, 6]),
        (221, &[0, 36]),
        (15, &[0, 0o755]),
    ] {
        assert_eq!(answer_of_i386(number, arguments), ALLOW, "{number}");
    }
    // socketcall and ipc, whose arguments are in memory or depend on the first one.
    for number in [102, 117, 113, 166, 127, 134] {
        assert_eq!(answer_of_i386(number, &[1]), errno(libc::ENOSYS), "{number}");
    }
    // The umount without flags, and the time of the machine.
    for number in [22, 25] {
        assert_eq!(answer_of_i386(number, &[]), errno(libc::EPERM), "{number}");
    }
}

#[test]
fn the_program_is_no_longer_than_the_kernel_takes() {
    assert!(program(FilterKind::Host).unwrap().len() < 4096);
}
