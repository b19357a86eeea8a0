//! Limits of one trajectory's slot, below the operator's.

use serde::{Deserialize, Serialize};

use crate::config::SlotLimits;

/// What one trajectory's slot may use of the machine: fields as those of [`SlotLimits`], of which
/// each that is given has to be no more than the operator's. What is `None` is the operator's; or,
/// where it begins from a snapshot, that of the trajectory which the snapshot is of.
///
/// What is in an image or in a snapshot does not count as bytes or files of the slot, only what was
/// written since. A limit that nothing here can keep – `cpu` without cgroups, say – is refused,
/// too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TrajectoryLimits {
    /// Processes and threads at a time: [`SlotLimits::processes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Bytes of memory of all processes together: [`SlotLimits::memory_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processors' worth of time, as 1.5: [`SlotLimits::cpu`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Open files of one process: [`SlotLimits::open_files`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Bytes of one file: [`SlotLimits::file_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Bytes of all files that it writes: [`SlotLimits::workspace_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_bytes: Option<u64>,
    /// Files, directories and links: [`SlotLimits::files`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
}

setters! {
    TrajectoryLimits {
        with_processes: processes = some u64,
        with_memory_bytes: memory_bytes = some u64,
        with_cpu: cpu = some f64,
        with_open_files: open_files = some u64,
        with_file_bytes: file_bytes = some u64,
        with_workspace_bytes: workspace_bytes = some u64,
        with_files: files = some u64,
    }
}

/// Before the operator's figure, where more is asked for.
const OPERATORS_IS: &str = "a trajectory can have less than the operator gives, which is";

impl TrajectoryLimits {
    /// The operator's.
    pub(crate) const OPERATORS: Self = Self {
        processes: None,
        memory_bytes: None,
        cpu: None,
        open_files: None,
        file_bytes: None,
        workspace_bytes: None,
        files: None,
    };

    /// Whether all of them are the operator's.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with them by themselves, if something is.
    pub(super) fn problem(&self) -> Option<String> {
        self.over(&SlotLimits::none()).problem()
    }

    /// These, and where they say nothing those of another trajectory.
    pub(crate) fn or(&self, other: &Self) -> Self {
        Self {
            processes: self.processes.or(other.processes),
            memory_bytes: self.memory_bytes.or(other.memory_bytes),
            cpu: self.cpu.or(other.cpu),
            open_files: self.open_files.or(other.open_files),
            file_bytes: self.file_bytes.or(other.file_bytes),
            workspace_bytes: self.workspace_bytes.or(other.workspace_bytes),
            files: self.files.or(other.files),
        }
    }

    /// The limits that hold where the operator's are these.
    ///
    /// # Errors
    /// One of them is above the operator's; the text says which, and what would be right.
    pub(crate) fn within(&self, operators: &SlotLimits) -> Result<SlotLimits, String> {
        let whole = [
            ("processes", self.processes, operators.processes),
            ("memory_bytes", self.memory_bytes, operators.memory_bytes),
            ("open_files", self.open_files, operators.open_files),
            ("file_bytes", self.file_bytes, operators.file_bytes),
            ("workspace_bytes", self.workspace_bytes, operators.workspace_bytes),
            ("files", self.files, operators.files),
        ];
        for (name, own, most) in whole {
            if let (Some(own), Some(most)) = (own, most)
                && own > most
            {
                return Err(format!("the limit {name} is {own}; {OPERATORS_IS} {most}"));
            }
        }
        if let (Some(own), Some(most)) = (self.cpu, operators.cpu)
            && own > most
        {
            return Err(format!("the limit cpu is {own}; {OPERATORS_IS} {most}"));
        }
        Ok(self.over(operators))
    }

    /// The operator's limits, with those that are given in their place.
    pub(crate) fn over(&self, operators: &SlotLimits) -> SlotLimits {
        operators
            .clone()
            .with_processes(self.processes.or(operators.processes))
            .with_memory_bytes(self.memory_bytes.or(operators.memory_bytes))
            .with_cpu(self.cpu.or(operators.cpu))
            .with_open_files(self.open_files.or(operators.open_files))
            .with_file_bytes(self.file_bytes.or(operators.file_bytes))
            .with_workspace_bytes(self.workspace_bytes.or(operators.workspace_bytes))
            .with_files(self.files.or(operators.files))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trajectory_has_less_than_the_operator_allows_and_never_more() {
        let operators = SlotLimits::default();
        let less = TrajectoryLimits::default().with_processes(100_u64).with_cpu(0.5);
        let held = less.within(&operators).unwrap();
        let expected = operators.clone().with_processes(Some(100)).with_cpu(Some(0.5));
        assert_eq!(held, expected);
        assert_eq!(TrajectoryLimits::default().within(&operators), Ok(operators.clone()));

        let more = TrajectoryLimits::default().with_memory_bytes(5_u64 << 30);
        let error = more.within(&operators).unwrap_err();
        let expected = "the limit memory_bytes is 5368709120; a trajectory can have less than the \
                        operator gives, which is 4294967296";
        assert_eq!(error, expected);
        let more = TrajectoryLimits::default().with_cpu(2.0);
        assert!(more.within(&operators.clone().with_cpu(Some(1.5))).is_err());
        let first = less.clone().with_files(99_u64);
        let both = TrajectoryLimits::default().with_processes(50_u64).or(&first);
        assert_eq!(both, first.with_processes(50_u64));
        // Where the operator has none, any is less.
        assert_eq!(more.within(&operators).unwrap().cpu, Some(2.0));
    }
}
