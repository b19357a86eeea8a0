//! What a slot may use of the machine, for those who say it and those who ask: pure data.
//!
//! What keeps the limits is the sandbox engine's (`sandbox::limits`).

use serde::{Deserialize, Serialize};

/// What one slot may use of the machine. `None` is no limit.
///
/// They hold for commands in a sandbox; which of them hold on a machine, and by what, tells
/// [`LocalBackend::limits`](crate::backend::local::LocalBackend::limits). The defaults are meant to be
/// met by runaways only, and to be the same on every machine, so that a trajectory ends the same way
/// wherever it runs.
///
/// A slot's commands, its `terminal_stateful` session and its terminal have a sandbox each; what is said
/// of processes and memory holds for each of the three.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SlotLimits {
    /// Processes and threads at a time; two belong to the sandbox itself. More cannot be started.
    /// Defaults to 1,024: a parallel build on a large machine has some hundreds.
    pub processes: Option<u64>,
    /// Bytes of memory of all processes together. A command that goes beyond is ended as
    /// [`OutOfMemory`](crate::Outcome::OutOfMemory). `/dev/shm` has half as much besides. Defaults to
    /// 4 GiB, which large builds and data sets need.
    pub memory_bytes: Option<u64>,
    /// Processors' worth of time, as 1.5. Needs cgroups. Defaults to none: a machine that has nothing
    /// else to do should not wait, and the kernel shares it fairly.
    pub cpu: Option<f64>,
    /// Open files of one process. Defaults to 4,096; programs start with the host's own soft limit
    /// (1,024 usually), and may raise it so far.
    pub open_files: Option<u64>,
    /// Bytes of one file, sparse ones too. A process that writes beyond gets SIGXFSZ. Defaults to
    /// 8 GiB.
    pub file_bytes: Option<u64>,
    /// Bytes that the workspace and `/tmp` take up on the disk, a small file counting 4 KiB. A command
    /// that goes beyond is ended as [`DiskFull`](crate::Outcome::DiskFull); until there is room again
    /// the slot's commands can remove files and not write to any. Defaults to 8 GiB.
    pub workspace_bytes: Option<u64>,
}

impl Default for SlotLimits {
    fn default() -> Self {
        Self {
            processes: Some(1024),
            memory_bytes: Some(4 << 30),
            cpu: None,
            open_files: Some(4096),
            file_bytes: Some(8 << 30),
            workspace_bytes: Some(8 << 30),
        }
    }
}

impl SlotLimits {
    /// No limits at all.
    pub fn none() -> Self {
        Self {
            processes: None,
            memory_bytes: None,
            cpu: None,
            open_files: None,
            file_bytes: None,
            workspace_bytes: None,
        }
    }

    /// What is wrong with them, if something is.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn problem(&self) -> Option<String> {
        // Less than this and no shell starts.
        let least = [
            ("processes", self.processes, 8),
            ("memory_bytes", self.memory_bytes, 16 << 20),
            ("open_files", self.open_files, 16),
            ("file_bytes", self.file_bytes, 4096),
            ("workspace_bytes", self.workspace_bytes, 64 << 10),
        ];
        for (name, limit, least) in least {
            if let Some(limit) = limit.filter(|limit| *limit < least) {
                return Some(format!("the limit {name} is {limit}; it must be at least {least}"));
            }
        }
        match self.cpu {
            Some(cpu) if !(0.01..=1e6).contains(&cpu) => {
                Some(format!("the limit cpu is {cpu}; it must be from 0.01 to 1000000"))
            }
            _ => None,
        }
    }
}

/// What a limit holds by. Serialised as its lower-case name.
// From the strongest to the weakest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HeldBy {
    /// The kernel, for the slot as a whole.
    Cgroup,
    /// The kernel, by what processes inherit.
    Rlimit,
    /// Threads of this process, which look some times a second.
    Watch,
    /// Nothing: there is no limit, or nothing here can keep it. Read also for what a later version says.
    #[serde(other)]
    None,
}

/// Which limits hold for the commands of a backend's slots, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LimitsHeld {
    /// [`SlotLimits::processes`].
    pub processes: HeldBy,
    /// [`SlotLimits::memory_bytes`].
    pub memory: HeldBy,
    /// [`SlotLimits::cpu`].
    pub cpu: HeldBy,
    /// [`SlotLimits::open_files`].
    pub open_files: HeldBy,
    /// [`SlotLimits::file_bytes`].
    pub file_bytes: HeldBy,
    /// [`SlotLimits::workspace_bytes`].
    pub workspace: HeldBy,
    /// Whether there is a filter of system calls.
    pub seccomp: bool,
}

impl Default for LimitsHeld {
    fn default() -> Self {
        Self::NOTHING
    }
}

impl LimitsHeld {
    /// What holds on two machines: of each limit the weaker.
    pub(crate) fn weaker(self, other: Self) -> Self {
        let weaker = |a: HeldBy, b: HeldBy| if (a as u8) < b as u8 { b } else { a };
        Self {
            processes: weaker(self.processes, other.processes),
            memory: weaker(self.memory, other.memory),
            cpu: weaker(self.cpu, other.cpu),
            open_files: weaker(self.open_files, other.open_files),
            file_bytes: weaker(self.file_bytes, other.file_bytes),
            workspace: weaker(self.workspace, other.workspace),
            seccomp: self.seccomp && other.seccomp,
        }
    }

    /// No limit holds.
    pub(crate) const NOTHING: Self = Self {
        processes: HeldBy::None,
        memory: HeldBy::None,
        cpu: HeldBy::None,
        open_files: HeldBy::None,
        file_bytes: HeldBy::None,
        workspace: HeldBy::None,
        seccomp: false,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_nothing_can_run_under_are_refused() {
        assert_eq!(SlotLimits::default().problem(), None);
        assert_eq!(SlotLimits::none().problem(), None);
        let few = SlotLimits { processes: Some(1), ..SlotLimits::none() };
        assert!(few.problem().unwrap().contains("processes is 1"));
        for cpu in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(SlotLimits { cpu: Some(cpu), ..SlotLimits::none() }.problem().is_some());
        }
    }

    #[test]
    fn what_holds_is_told_by_name() {
        let held = LimitsHeld { memory: HeldBy::Watch, ..LimitsHeld::NOTHING };
        let text = r#"{"processes":"none","memory":"watch","cpu":"none","open_files":"none","file_bytes":"none","workspace":"none","seccomp":false}"#;
        assert_eq!(serde_json::to_string(&held).unwrap(), text);
        assert_eq!(serde_json::from_str::<LimitsHeld>(text).unwrap(), held);
        let later = r#"{"memory":"watch","processes":"magic","new":1}"#;
        assert_eq!(serde_json::from_str::<LimitsHeld>(later).unwrap(), held);
    }

    #[test]
    fn of_two_machines_the_weaker_counts_for_each_limit() {
        let all = LimitsHeld {
            processes: HeldBy::Cgroup,
            memory: HeldBy::Cgroup,
            cpu: HeldBy::Cgroup,
            open_files: HeldBy::Rlimit,
            file_bytes: HeldBy::Rlimit,
            workspace: HeldBy::Watch,
            seccomp: true,
        };
        let some = LimitsHeld { memory: HeldBy::Watch, cpu: HeldBy::None, ..all };
        assert_eq!(all.weaker(all), all);
        assert_eq!((all.weaker(some), some.weaker(all)), (some, some));
        let unfiltered = LimitsHeld { seccomp: false, ..all };
        assert!(!all.weaker(unfiltered).seccomp && !unfiltered.weaker(all).seccomp);
        assert_eq!(some.weaker(LimitsHeld::NOTHING), LimitsHeld::NOTHING);
    }
}
