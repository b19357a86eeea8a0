//! Which limits of a slot hold on a machine, and by what: the words for it.
//!
//! What a slot may use is [`SlotLimits`](crate::config::SlotLimits); what keeps the limits is the
//! sandbox engine's (`sandbox::limits`).

use serde::{Deserialize, Serialize};

/// What a limit holds by. Serialised as its lower-case name.
// From the strongest to the weakest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Enforcement {
    /// The kernel, for the slot as a whole.
    Cgroup,
    /// The kernel, by what processes inherit.
    Rlimit,
    /// Threads of this process, which look some times a second.
    Watch,
    /// Nothing: there is no limit, or nothing here can keep it. Read also for what a later version
    /// says.
    #[serde(other)]
    None,
}

/// Which limits hold for the commands of a backend's slots, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EnforcedLimits {
    /// [`SlotLimits::processes`](crate::config::SlotLimits::processes).
    pub processes: Enforcement,
    /// [`SlotLimits::memory_bytes`](crate::config::SlotLimits::memory_bytes).
    pub memory: Enforcement,
    /// [`SlotLimits::cpu`](crate::config::SlotLimits::cpu).
    pub cpu: Enforcement,
    /// [`SlotLimits::open_files`](crate::config::SlotLimits::open_files).
    pub open_files: Enforcement,
    /// [`SlotLimits::file_bytes`](crate::config::SlotLimits::file_bytes).
    pub file_bytes: Enforcement,
    /// [`SlotLimits::workspace_bytes`](crate::config::SlotLimits::workspace_bytes).
    pub workspace: Enforcement,
    /// [`SlotLimits::files`](crate::config::SlotLimits::files).
    pub files: Enforcement,
    /// Whether there is a filter of system calls.
    pub seccomp: bool,
    /// Whether a limit of memory, processes or processors that was asked for holds without cgroups,
    /// by what processes inherit and by watching, or not at all: a command that means to can go
    /// beyond it for a moment, or by ways that are not counted.
    pub advisory: bool,
}

impl Default for EnforcedLimits {
    fn default() -> Self {
        Self::NOTHING
    }
}

impl EnforcedLimits {
    /// What holds on two machines: of each limit the weaker.
    pub(crate) fn weaker(self, other: Self) -> Self {
        let weaker = |a: Enforcement, b: Enforcement| if (a as u8) < b as u8 { b } else { a };
        Self {
            processes: weaker(self.processes, other.processes),
            memory: weaker(self.memory, other.memory),
            cpu: weaker(self.cpu, other.cpu),
            open_files: weaker(self.open_files, other.open_files),
            file_bytes: weaker(self.file_bytes, other.file_bytes),
            workspace: weaker(self.workspace, other.workspace),
            files: weaker(self.files, other.files),
            seccomp: self.seccomp && other.seccomp,
            advisory: self.advisory || other.advisory,
        }
    }

    /// No limit holds.
    pub(crate) const NOTHING: Self = Self {
        processes: Enforcement::None,
        memory: Enforcement::None,
        cpu: Enforcement::None,
        open_files: Enforcement::None,
        file_bytes: Enforcement::None,
        workspace: Enforcement::None,
        files: Enforcement::None,
        seccomp: false,
        advisory: false,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_is_told_by_name() {
        let held = EnforcedLimits { memory: Enforcement::Watch, ..EnforcedLimits::NOTHING };
        let text = r#"{"processes":"none","memory":"watch","cpu":"none","open_files":"none","file_bytes":"none","workspace":"none","files":"none","seccomp":false,"advisory":false}"#;
        assert_eq!(serde_json::to_string(&held).unwrap(), text);
        assert_eq!(serde_json::from_str::<EnforcedLimits>(text).unwrap(), held);
        let later = r#"{"memory":"watch","processes":"magic","new":1}"#;
        assert_eq!(serde_json::from_str::<EnforcedLimits>(later).unwrap(), held);
    }

    #[test]
    fn of_two_machines_the_weaker_counts_for_each_limit() {
        let all = EnforcedLimits {
            processes: Enforcement::Cgroup,
            memory: Enforcement::Cgroup,
            cpu: Enforcement::Cgroup,
            open_files: Enforcement::Rlimit,
            file_bytes: Enforcement::Rlimit,
            workspace: Enforcement::Watch,
            files: Enforcement::Watch,
            seccomp: true,
            advisory: false,
        };
        let some = EnforcedLimits { memory: Enforcement::Watch, cpu: Enforcement::None, ..all };
        assert_eq!(all.weaker(all), all);
        assert_eq!((all.weaker(some), some.weaker(all)), (some, some));
        let unfiltered = EnforcedLimits { seccomp: false, ..all };
        assert!(!all.weaker(unfiltered).seccomp && !unfiltered.weaker(all).seccomp);
        assert_eq!(some.weaker(EnforcedLimits::NOTHING), EnforcedLimits::NOTHING);
        let advisory = EnforcedLimits { advisory: true, ..all };
        assert!(all.weaker(advisory).advisory && advisory.weaker(all).advisory);
    }
}
