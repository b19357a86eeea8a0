//! Limits of processes (`setrlimit(2)`), set from outside on a sandbox's first process before any
//! command runs in it; whatever is started there inherits them and cannot raise them.
//!
//! [`plan`] decides, [`set`] does it.
//!
//! - *Processes* (`RLIMIT_NPROC`): since Linux 5.14 counted in each user namespace by itself,
//!   which every sandbox has. Before, it counted all processes of a user on the machine: one
//!   slot's would be taken from the others', so that it is left alone. Nor does it bind the
//!   machine's root.
//! - *Open files* and *the size of a file*: in each process.
//! - *Memory* has no limit here. `RLIMIT_AS` and `RLIMIT_DATA` count what is reserved, not what is
//!   used: programs with AddressSanitizer (15 TiB of shadow), language runtimes and threads with
//!   large stacks would fail, while a hundred small processes would pass. The watch counts what is
//!   used.
//! - *Signals that wait, and message queues*: each slot's share, where all slots are one user.
//! - *Core files* are left to the command, which may raise the limit from 0. Where the host hands
//!   them to a program of its own the limit is 1, by which the kernel calls that program for none;
//!   with 0 it does.
//! - Always: no priority above the host's own.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};

use super::share::of_each;
use crate::config::SlotLimits;
use crate::sandbox::user::{CommandUser, Purpose};

/// The release since which the kernel counts processes by user namespace.
const COUNTS_BY_NAMESPACE: (u32, u32) = (5, 14);

/// What to set: each is soft and hard.
pub(super) type Plan = Vec<(Resource, Rlimit)>;

/// What `plan` needs to know of this machine.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    /// Whether `RLIMIT_NPROC` counts the processes of one sandbox, and binds them.
    pub(super) counts_processes: bool,
    /// The soft limit of open files that this process had before it raised its own.
    pub(super) open_files: Option<u64>,
    /// Whether core dumps are handed to a program of the host's.
    pub(super) pipes_cores: bool,
    /// How many slots share what the kernel counts for their user.
    pub(super) sharers: u64,
}

impl Machine {
    /// One of which nothing is known, for slots without limits.
    pub(super) const UNKNOWN: Self =
        Self { counts_processes: false, open_files: None, pipes_cores: true, sharers: 1 };
}

/// The limits to set, none above this process's `own`: it might not be allowed to raise them.
pub(super) fn plan(
    limits: &SlotLimits,
    machine: &Machine,
    own: impl Fn(Resource) -> Rlimit,
) -> Plan {
    let mut plan = Plan::new();
    let mut add = |resource, soft: Option<u64>, hard: Option<u64>| {
        let own = own(resource);
        let maximum = lesser(hard, own.maximum);
        let current = lesser(lesser(soft, own.current), maximum);
        plan.push((resource, Rlimit { current, maximum }));
    };
    if machine.counts_processes && limits.processes.is_some() {
        add(Resource::Nproc, limits.processes, limits.processes);
    }
    if limits.open_files.is_some() || machine.open_files.is_some() {
        add(Resource::Nofile, lesser(limits.open_files, machine.open_files), limits.open_files);
    }
    if limits.file_bytes.is_some() {
        add(Resource::Fsize, limits.file_bytes, limits.file_bytes);
    }
    if machine.sharers > 1 {
        for resource in [Resource::Sigpending, Resource::Msgqueue] {
            let share = own(resource).maximum.map(|all| of_each(all, machine.sharers));
            add(resource, share, share);
        }
    }
    for resource in [Resource::Rtprio, Resource::Nice] {
        add(resource, Some(0), Some(0));
    }
    // The host's own soft limit, which is 0 as a rule, says nothing here.
    let maximum = lesser(machine.pipes_cores.then_some(1), own(Resource::Core).maximum);
    let soft = if machine.pipes_cores { 1 } else { 0 };
    plan.push((Resource::Core, Rlimit { current: lesser(Some(soft), maximum), maximum }));
    plan
}

/// The smaller one; `None` is no limit.
pub(super) fn lesser(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

/// Whether a kernel with this `core_pattern` hands core dumps to a program, or to a socket, of the
/// host's. One that could not be read may do so.
pub(super) fn pipes_cores(core_pattern: Option<&str>) -> bool {
    core_pattern.is_none_or(|pattern| pattern.starts_with(['|', '@']))
}

/// Whether a kernel of this release counts processes by user namespace.
pub(super) fn counts_by_namespace(release: &str) -> bool {
    kernel_version(release) >= COUNTS_BY_NAMESPACE
}

/// The first two numbers of a kernel's release; 0 where there is none.
pub(in crate::sandbox) fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Sets limits of other processes.
#[derive(Debug, Default)]
pub(super) struct Setter {
    /// Root that may not set the limits of others' processes has to be their user for it.
    as_user: AtomicBool,
}

impl Setter {
    /// Sets the limits of the process `pid`, which runs as `user` if there is one. Does not block.
    ///
    /// # Errors
    /// The first that the kernel refuses; the others are set.
    pub(super) fn set(
        &self,
        pid: Pid,
        plan: &[(Resource, Rlimit)],
        user: Option<CommandUser>,
    ) -> io::Result<()> {
        if !self.as_user.load(Ordering::Relaxed) {
            match set(pid, plan) {
                Err(Errno::PERM) if user.is_some() => self.as_user.store(true, Ordering::Relaxed),
                done => return Ok(done?),
            }
        }
        let _entered = user.map(|user| user.enter(Purpose::Exec)).transpose()?;
        Ok(set(pid, plan)?)
    }
}

fn set(pid: Pid, plan: &[(Resource, Rlimit)]) -> Result<(), Errno> {
    let mut result = Ok(());
    for (resource, limit) in plan {
        let set = rustix::process::prlimit(Some(pid), *resource, *limit).map(drop);
        result = result.and(set);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNLIMITED: Rlimit = Rlimit { current: None, maximum: None };

    fn both(limit: u64) -> Rlimit {
        Rlimit { current: Some(limit), maximum: Some(limit) }
    }

    fn find(plan: &Plan, resource: Resource) -> Option<Rlimit> {
        plan.iter().find(|(of, _)| *of == resource).map(|(_, limit)| *limit)
    }

    #[test]
    fn limits_are_soft_and_hard_and_never_above_the_own() {
        let limits = SlotLimits {
            processes: Some(100),
            open_files: Some(4096),
            file_bytes: Some(1 << 30),
            ..SlotLimits::none()
        };
        let machine = Machine {
            counts_processes: true,
            open_files: Some(1024),
            pipes_cores: true,
            sharers: 4,
        };
        let plan = plan(&limits, &machine, |resource| match resource {
            Resource::Nproc => both(50),
            Resource::Sigpending => both(1000),
            Resource::Nofile => Rlimit { current: Some(65_536), maximum: None },
            _ => UNLIMITED,
        });
        assert_eq!(find(&plan, Resource::Nproc), Some(both(50)));
        let files = Rlimit { current: Some(1024), maximum: Some(4096) };
        assert_eq!(find(&plan, Resource::Nofile), Some(files));
        assert_eq!(find(&plan, Resource::Fsize), Some(both(1 << 30)));
        assert_eq!(find(&plan, Resource::Core), Some(both(1)));
        assert_eq!(find(&plan, Resource::Sigpending), Some(both(250)));
    }

    #[test]
    fn without_limits_only_what_nobody_needs_is_taken() {
        let machine =
            Machine { counts_processes: false, open_files: None, pipes_cores: false, sharers: 1 };
        let some = SlotLimits { processes: Some(5), ..SlotLimits::none() };
        for limits in [SlotLimits::none(), some] {
            let plan = plan(&limits, &machine, |_| UNLIMITED);
            let resources: Vec<_> = plan.iter().map(|(resource, _)| *resource).collect();
            assert_eq!(resources, [Resource::Rtprio, Resource::Nice, Resource::Core]);
        }
    }

    #[test]
    fn core_files_are_had_where_they_are_files_and_no_program_of_the_host_is_called() {
        let core = |pipes_cores, own| {
            let machine =
                Machine { counts_processes: false, open_files: None, pipes_cores, sharers: 1 };
            find(&plan(&SlotLimits::none(), &machine, |_| own), Resource::Core).unwrap()
        };
        let soft_zero = |maximum| Rlimit { current: Some(0), maximum };
        for own in [UNLIMITED, soft_zero(None)] {
            assert_eq!((core(false, own), core(true, own)), (soft_zero(None), both(1)));
        }
        assert_eq!((core(false, both(7)), core(true, both(7))), (soft_zero(Some(7)), both(1)));
        // Which may not be raised.
        assert_eq!((core(false, both(0)), core(true, both(0))), (both(0), both(0)));
        let patterns =
            [(Some("core"), false), (Some("/var/core.%p"), false), (Some("|/usr/bin/x %p"), true)];
        for (pattern, pipes) in patterns.into_iter().chain([(Some("@/run/x"), true), (None, true)])
        {
            assert_eq!(pipes_cores(pattern), pipes, "{pattern:?}");
        }
    }

    #[test]
    fn kernels_are_told_apart_by_their_release() {
        for (release, counts) in [
            ("6.18.44-fc-v782", true),
            ("5.14.0-503.el9", true),
            ("5.4.0-150-generic", false),
            ("5.13.19", false),
            ("4.18.0-553.el8", false),
            ("6", true),
            ("", false),
        ] {
            assert_eq!(counts_by_namespace(release), counts, "{release}");
        }
    }
}
