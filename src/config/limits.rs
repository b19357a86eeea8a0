//! What a slot may use of the machine.

use serde::{Deserialize, Serialize};

/// What one slot may use of the machine. `None`, in JSON `null`, is no limit.
///
/// They hold for commands in a sandbox; which of them hold on a machine, and by what, is told by
/// [`Capabilities::limits`](crate::backend::Capabilities::limits). The defaults are meant to be
/// met by runaways only, and to be the same on every machine, so that a trajectory ends the same
/// way wherever it runs.
///
/// A trajectory may have less: [`TrajectorySpec::limits`](crate::TrajectorySpec::limits).
///
/// A slot's commands, its `terminal_stateful` sessions and its terminal have a sandbox each. Where
/// the kernel keeps the limits, by cgroups, they have what is said of processes, memory and
/// processors together; elsewhere each of them has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SlotLimits {
    /// Processes and threads at a time; two belong to the sandbox itself. More cannot be started.
    /// Defaults to 1,024: a parallel build on a large machine has some hundreds.
    pub processes: Option<u64>,
    /// Bytes of memory of all processes together. A command that goes beyond is ended as
    /// [`OutOfMemory`](crate::Outcome::OutOfMemory). `/dev/shm` has half as much besides. Defaults
    /// to 4 GiB, which large builds and data sets need.
    pub memory_bytes: Option<u64>,
    /// Processors' worth of time, as 1.5. Needs cgroups. Defaults to none: a machine that has
    /// nothing else to do should not wait, and the kernel shares it fairly.
    pub cpu: Option<f64>,
    /// Open files of one process. Defaults to 4,096; programs start with the host's own soft limit
    /// (1,024 usually), and may raise it so far.
    pub open_files: Option<u64>,
    /// Bytes of one file, sparse ones too. A process that writes beyond gets SIGXFSZ. Defaults to
    /// 8 GiB.
    pub file_bytes: Option<u64>,
    /// Bytes that the workspace and `/tmp` take up on the disk, a small file counting 4 KiB. A
    /// command that goes beyond is ended as [`DiskFull`](crate::Outcome::DiskFull); until there is
    /// room again the slot's commands can remove files and not write to any. Defaults to 8 GiB.
    pub workspace_bytes: Option<u64>,
    /// Files, directories and links in the workspace, `/tmp` and the home directory. A command that
    /// makes more is ended as [`DiskFull`](crate::Outcome::DiskFull). Defaults to 1,048,576: a
    /// large repository with what it has installed has some hundred thousands.
    pub files: Option<u64>,
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
            files: Some(1 << 20),
        }
    }
}

setters! {
    SlotLimits {
        with_processes: processes = Option<u64>,
        with_memory_bytes: memory_bytes = Option<u64>,
        with_cpu: cpu = Option<f64>,
        with_open_files: open_files = Option<u64>,
        with_file_bytes: file_bytes = Option<u64>,
        with_workspace_bytes: workspace_bytes = Option<u64>,
        with_files: files = Option<u64>,
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
            files: None,
        }
    }

    /// What is wrong with them, if something is.
    pub(crate) fn problem(&self) -> Option<String> {
        // Less than this and no shell starts.
        let least = [
            ("processes", self.processes, 8),
            ("memory_bytes", self.memory_bytes, 16 << 20),
            ("open_files", self.open_files, 16),
            ("file_bytes", self.file_bytes, 4096),
            ("workspace_bytes", self.workspace_bytes, 64 << 10),
            ("files", self.files, 64),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_nothing_can_run_under_are_refused() {
        assert_eq!(SlotLimits::default().problem(), None);
        assert_eq!(SlotLimits::none().problem(), None);
        let few = SlotLimits::none().with_processes(Some(1));
        assert!(few.problem().unwrap().contains("processes is 1"));
        for cpu in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(SlotLimits::none().with_cpu(Some(cpu)).problem().is_some());
        }
    }

    #[test]
    fn what_is_not_given_has_its_default_and_null_is_no_limit() {
        let json = r#"{"processes": 99, "memory_bytes": null, "cpu": 1.5}"#;
        let limits: SlotLimits = serde_json::from_str(json).unwrap();
        let expected = SlotLimits::default()
            .with_processes(Some(99))
            .with_memory_bytes(None)
            .with_cpu(Some(1.5));
        assert_eq!(limits, expected);
        let again = serde_json::from_str(&serde_json::to_string(&limits).unwrap());
        assert_eq!(limits, again.unwrap());
    }
}
