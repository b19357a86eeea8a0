//! What each slot may have of what all slots have together: processes, signals that wait, bytes of
//! message queues, inotify instances and watches.
//!
//! Some of these the kernel counts for a user, and all slots may be one; of processes a container
//! has a number, too. A slot whose limit is its share cannot use up the others'. [`of_processes`]
//! and [`of_each`] decide; the rest reads this machine.

use std::fmt;
use std::path::Path;

/// What the engine and a server around it need themselves, in threads.
const OWN_THREADS: u64 = 96;
/// Fewer processes than this, of which two are the sandbox's, and hardly a command works.
const LEAST_PROCESSES: u64 = 8;

/// A limit of processes of this machine or container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ceiling {
    /// How many there may be.
    pub(super) limit: u64,
    /// How many there are already.
    pub(super) used: u64,
    /// How a user raises it.
    pub(super) raised_by: &'static str,
}

/// There can be too few processes for the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooFewProcesses {
    slots: u64,
    ceiling: Ceiling,
}

impl fmt::Display for TooFewProcesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slots, ceiling: Ceiling { limit, used, raised_by } } = self;
        let total = used + OWN_THREADS + slots * LEAST_PROCESSES;
        write!(
            f,
            "{slots} slots need {} processes ({LEAST_PROCESSES} each), {OWN_THREADS} are for this \
             program, {used} are there already, the limit is {limit}: ",
            slots * LEAST_PROCESSES
        )?;
        let most = limit.saturating_sub(used + OWN_THREADS) / LEAST_PROCESSES;
        if most > 0 {
            write!(f, "give fewer slots (at most {most}) or ")?;
        }
        write!(f, "raise it to {total} ({raised_by})")
    }
}

impl std::error::Error for TooFewProcesses {}

/// How many processes each slot may have, so that all together stay below these ceilings; `wanted`
/// at most. `None` is no limit.
///
/// # Errors
/// They would be too few.
pub(super) fn of_processes(
    slots: usize,
    wanted: Option<u64>,
    ceilings: &[Ceiling],
) -> Result<Option<u64>, TooFewProcesses> {
    let slots = slots as u64;
    let mut each = wanted;
    for ceiling in ceilings {
        let room = ceiling.limit.saturating_sub(ceiling.used.saturating_add(OWN_THREADS));
        let share = of_each(room, slots);
        if share < LEAST_PROCESSES {
            return Err(TooFewProcesses { slots, ceiling: *ceiling });
        }
        each = Some(each.map_or(share, |each| each.min(share)));
    }
    Ok(each)
}

/// What each of so many slots gets of `all`.
pub(in crate::sandbox) fn of_each(all: u64, slots: u64) -> u64 {
    all / slots.max(1)
}

/// The limits of processes that hold for all slots together. Those of a user hold where all slots
/// are one, `shared`. Blocks on some file system calls.
pub(super) fn ceilings(shared: Option<Shared>) -> Vec<Ceiling> {
    let of_user = shared.and_then(|Shared { uid, limit }| {
        let used = threads_of(uid);
        Some(Ceiling { limit: limit?, used, raised_by: "ulimit -u" })
    });
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_cgroup = pids_directories(&cgroup).into_iter().find_map(|directory| {
        let number = |file: &str| {
            let path = Path::new("/sys/fs/cgroup").join(&directory).join(file);
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        let raised_by = "pids.max of its cgroup; --pids-limit of a container";
        Some(Ceiling { limit: number("pids.max")?, used: number("pids.current")?, raised_by })
    });
    of_user.into_iter().chain(of_cgroup).collect()
}

/// The user that all slots are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shared {
    /// Its number.
    pub(super) uid: u32,
    /// How many processes it may have.
    pub(super) limit: Option<u64>,
}

/// Where the files of the controller of processes may be, for a `/proc/self/cgroup`, beneath where
/// cgroups are mounted.
fn pids_directories(cgroup: &str) -> Vec<String> {
    let line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        match controllers {
            "" => Some(path.to_owned()),
            "pids" => Some(format!("pids/{path}")),
            _ => None,
        }
    };
    cgroup.lines().filter_map(line).collect()
}

/// How many threads a user has, as far as this process sees them.
fn threads_of(uid: u32) -> u64 {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_number = |name: &std::ffi::OsString| {
        name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let processes = entries.filter(|entry| is_number(&entry.file_name()));
    let statuses =
        processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    statuses.filter_map(|status| threads_if_of(&status, uid)).sum()
}

/// How many threads a process has, by its status, if its user is this one.
fn threads_if_of(status: &str, uid: u32) -> Option<u64> {
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line[name.len()..].split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    (field("Uid:")? == u64::from(uid)).then(|| field("Threads:")).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ceiling(limit: u64, used: u64) -> Ceiling {
        Ceiling { limit, used, raised_by: "ulimit -u" }
    }

    #[test]
    fn a_share_that_is_too_small_is_refused_with_what_would_be_right() {
        assert_eq!(of_processes(10, Some(1024), &[]), Ok(Some(1024)));
        assert_eq!(of_processes(10, Some(1024), &[ceiling(2048, 52)]), Ok(Some(190)));
        assert_eq!(of_processes(10, None, &[ceiling(2048, 52)]), Ok(Some(190)));
        let text = of_processes(10, Some(1024), &[ceiling(128, 8)]).unwrap_err().to_string();
        assert_eq!(
            text,
            "10 slots need 80 processes (8 each), 96 are for this program, 8 are there already, the \
             limit is 128: give fewer slots (at most 3) or raise it to 184 (ulimit -u)"
        );
        assert!(of_processes(3, None, &[ceiling(128, 8)]).is_ok());
        let text = of_processes(1, None, &[ceiling(48, 8)]).unwrap_err().to_string();
        assert!(text.ends_with("the limit is 48: raise it to 112 (ulimit -u)"), "{text}");
    }

    #[test]
    fn files_of_the_system_are_read() {
        assert_eq!(pids_directories("0::/a/b\n"), ["a/b"]);
        assert_eq!(pids_directories("5:pids:/x\n4:cpu,cpuacct:/y\n0::/\n"), ["pids/x", ""]);
        let status = "Name:\tx\nUid:\t7\t8\t8\t8\nThreads:\t12\n";
        assert_eq!((threads_if_of(status, 7), threads_if_of(status, 8)), (Some(12), None));
        let own = threads_of(rustix::process::getuid().as_raw());
        assert!(own >= 1, "this process has a thread: {own}");
    }

    proptest! {
        #[test]
        fn all_slots_together_and_this_program_stay_below(
            slots in 1usize..200,
            wanted in prop::option::of(8u64..5000),
            limit in 0u64..100_000,
            used in 0u64..2000,
        ) {
            match of_processes(slots, wanted, &[ceiling(limit, used)]) {
                Ok(each) => {
                    let each = each.unwrap();
                    prop_assert!(each * slots as u64 + used + OWN_THREADS <= limit);
                    prop_assert!(each >= LEAST_PROCESSES && wanted.is_none_or(|most| each <= most));
                }
                Err(refused) => {
                    prop_assert!(limit < used + OWN_THREADS + slots as u64 * LEAST_PROCESSES);
                    prop_assert!(!refused.to_string().is_empty());
                }
            }
        }
    }
}
