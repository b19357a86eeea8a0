//! Whose a group of groups is, and how what the dead have left is removed.

use std::fs;
use std::path::Path;

/// The name of every engine's group begins so; no other is ever touched.
pub(super) const PREFIX: &str = "tool-executor-";

/// A process, by its number and the time at which it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox::limits) struct Engine {
    pub(super) pid: u32,
    pub(super) started: u64,
}

impl Engine {
    /// This process.
    pub(in crate::sandbox::limits) fn this() -> Self {
        let pid = std::process::id();
        Self { pid, started: started(pid).unwrap_or(0) }
    }

    /// A name for its group, beside which it may have others.
    pub(super) fn unique_name(self) -> String {
        let unique = uuid::Uuid::new_v4().simple();
        format!("{PREFIX}{}-{}-{unique}", self.pid, self.started)
    }

    fn from_name(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.split('-');
        let (pid, started) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { pid, started })
    }

    fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// When the process was started, in the clock ticks of `/proc`.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Removes the groups of engines that have died.
pub(super) fn remove_dead(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let engine = name.to_str().and_then(Engine::from_name);
        if engine.is_some_and(|engine| !engine.is_alive()) {
            remove(&entry.path());
        }
    }
}

/// Removes a group and those in it, with whatever still runs there.
pub(super) fn remove(path: &Path) {
    let groups = fs::read_dir(path).into_iter().flatten().flatten();
    for group in groups.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        // Since Linux 5.14, of version 2. A sandbox dies with its engine in any case.
        let _ = super::write(&group.path().join("cgroup.kill"), "1");
        remove(&group.path());
    }
    if let Err(error) = fs::remove_dir(path) {
        log::debug!("a cgroup is left behind: {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_known_by_their_start() {
        let this = Engine::this();
        assert!(this.is_alive());
        assert!(!Engine { started: this.started + 1, ..this }.is_alive());
        assert_eq!(Engine::from_name(&this.unique_name()), Some(this));
        assert_eq!(Engine::from_name("tool-executor-me"), None);
        assert_eq!(Engine::from_name("user.slice"), None);
    }
}
