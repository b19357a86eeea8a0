//! What is written to the files of a slot's groups. Pure.

use super::hierarchy::Version;
use crate::config::SlotLimits;

/// Time is counted in periods of so many microseconds.
const PERIOD_US: u64 = 100_000;

/// A file of a group, and what is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: &'static str,
    pub(super) value: String,
    /// Whether there is no use of the group without it.
    pub(super) is_needed: bool,
}

/// Those that a controller has for the limits of a slot.
pub(super) fn of(version: Version, controller: &str, limits: &SlotLimits) -> Vec<Setting> {
    let most = |limit: Option<u64>, unlimited: &str| {
        limit.map_or(unlimited.to_owned(), |limit| limit.to_string())
    };
    let setting = |file, value, is_needed| Setting { file, value, is_needed };
    match (version, controller) {
        (Version::Two, "memory") => {
            let swap = limits.memory_bytes.map_or("max", |_| "0").to_owned();
            vec![
                setting("memory.max", most(limits.memory_bytes, "max"), true),
                setting("memory.swap.max", swap, false),
            ]
        }
        (Version::One, "memory") => {
            let memory = most(limits.memory_bytes, "-1");
            // Of memory and swap together, where the kernel counts that. It may never be below that
            // of memory alone: the first one raises it, the second one lowers it.
            let both = setting("memory.memsw.limit_in_bytes", memory.clone(), false);
            vec![both.clone(), setting("memory.limit_in_bytes", memory, true), both]
        }
        (_, "pids") => {
            // Below the limit of each process, at which nothing would be counted.
            let processes = limits.processes.map(|most| most.saturating_sub(1).max(1));
            vec![setting("pids.max", most(processes, "max"), true)]
        }
        (version, "cpu") => {
            // At least a hundredth of a processor, and below what the file can hold.
            let quota = |cpu: f64| (cpu.clamp(0.01, 1e6) * PERIOD_US as f64) as u64;
            let quota =
                most(limits.cpu.map(quota), if version == Version::Two { "max" } else { "-1" });
            match version {
                Version::Two => vec![setting("cpu.max", format!("{quota} {PERIOD_US}"), false)],
                Version::One => vec![
                    setting("cpu.cfs_period_us", PERIOD_US.to_string(), false),
                    setting("cpu.cfs_quota_us", quota, false),
                ],
            }
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(version: Version, controller: &str, limits: &SlotLimits) -> Vec<String> {
        let text = |setting: Setting| format!("{}={}", setting.file, setting.value);
        of(version, controller, limits).into_iter().map(text).collect()
    }

    #[test]
    fn limits_become_what_the_kernel_reads() {
        let limits = SlotLimits {
            memory_bytes: Some(1 << 30),
            processes: Some(64),
            cpu: Some(1.5),
            ..SlotLimits::none()
        };
        let all = |version, limits| {
            ["memory", "pids", "cpu", "cpuset"]
                .into_iter()
                .flat_map(|controller| texts(version, controller, limits))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            all(Version::Two, &limits),
            ["memory.max=1073741824", "memory.swap.max=0", "pids.max=63", "cpu.max=150000 100000"]
        );
        assert_eq!(
            all(Version::One, &limits),
            [
                "memory.memsw.limit_in_bytes=1073741824",
                "memory.limit_in_bytes=1073741824",
                "memory.memsw.limit_in_bytes=1073741824",
                "pids.max=63",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=150000",
            ]
        );
        // What an earlier trajectory of the slot had is taken back.
        let none = SlotLimits::none();
        assert_eq!(
            all(Version::Two, &none),
            ["memory.max=max", "memory.swap.max=max", "pids.max=max", "cpu.max=max 100000"]
        );
        assert!(all(Version::One, &none).contains(&"cpu.cfs_quota_us=-1".to_owned()));
    }
}
