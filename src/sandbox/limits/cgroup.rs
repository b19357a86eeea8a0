//! Limits by cgroups (version 2), where this process may make some.
//!
//! ```text
//! <ours or its parent>/
//!   tool-executor-<pid>-<start>-<uuid>/   one an engine
//!     sandbox-<n>/                        one a sandbox: memory.max, pids.max, cpu.max, …
//! ```
//!
//! A sandbox's first process is moved into its group before any command runs; what it starts stays
//! there. The host process itself is never moved: its group must allow children already (it is the
//! root of a cgroup namespace, or somebody prepared it), or the one above it must.
//!
//! Groups of engines that have died are removed by the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::config::SlotLimits;

/// Where version 2 is mounted.
pub(super) const MOUNT: &str = "/sys/fs/cgroup";
/// The name of every engine's group begins so; no other is ever touched.
const PREFIX: &str = "tool-executor-";
/// `cpu.max` counts in periods of so many microseconds.
const PERIOD_US: u64 = 100_000;
/// What a group needs for the limits of memory and processes.
const NEEDED: [&str; 2] = ["memory.max", "pids.max"];

/// The groups of one engine. Removed on drop.
#[derive(Debug)]
pub(super) struct Cgroups {
    inner: Arc<Inner>,
    /// Whether the cpu can be limited as well.
    pub(super) cpu: bool,
}

#[derive(Debug)]
struct Inner {
    /// The engine's own group.
    path: PathBuf,
    settings: Vec<(&'static str, String)>,
    next: AtomicU64,
    /// Groups whose last process had not quite gone when they were to be removed.
    remains: Mutex<Vec<PathBuf>>,
}

/// The group of one sandbox. Removed on drop.
#[derive(Debug)]
pub(super) struct Group {
    inner: Arc<Inner>,
    path: PathBuf,
}

impl Cgroups {
    /// Makes the engine's group. `mount` is the root of the hierarchy, `own` the content of
    /// `/proc/self/cgroup`, `engine` names this process.
    ///
    /// # Errors
    /// Why there are none, as one line.
    pub(super) fn start(
        mount: &Path,
        own: &str,
        engine: Engine,
        limits: &SlotLimits,
    ) -> Result<Self, String> {
        let own = own_group(own).ok_or("there is no cgroup of version 2")?;
        let own = mount.join(own);
        let above = own.parent().filter(|above| above.starts_with(mount));
        let mut first_failure = None;
        for candidate in std::iter::once(own.as_path()).chain(above) {
            match Self::start_in(candidate, engine, limits) {
                Ok(groups) => return Ok(groups),
                Err(failure) => first_failure.get_or_insert(failure),
            };
        }
        Err(first_failure.unwrap_or_default())
    }

    fn start_in(parent: &Path, engine: Engine, limits: &SlotLimits) -> Result<Self, String> {
        let failed = |what: &str, error: io::Error| format!("cannot {what}: {error}");
        remove_dead_engines(parent);
        delegate(parent);
        let unique = uuid::Uuid::new_v4().simple();
        let path = parent.join(format!("{PREFIX}{}-{}-{unique}", engine.pid, engine.started));
        fs::create_dir(&path).map_err(|error| failed("make a cgroup", error))?;
        let inner = Arc::new(Inner {
            path,
            settings: settings(limits),
            next: AtomicU64::new(0),
            remains: Mutex::default(),
        });
        delegate(&inner.path);
        // From here on a failure removes what was made.
        let mut groups = Self { inner, cpu: false };
        let probe = groups.make().map_err(|error| failed("limit a cgroup", error))?;
        groups.cpu = probe.path.join("cpu.max").exists();
        Ok(groups)
    }

    /// Makes a group with the limits of a slot.
    ///
    /// # Errors
    /// Those of the file system; one of the needed controllers is missing.
    pub(super) fn make(&self) -> io::Result<Group> {
        self.inner.remains.lock().retain(|path| fs::remove_dir(path).is_err());
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let path = self.inner.path.join(format!("sandbox-{number}"));
        fs::create_dir(&path)?;
        let group = Group { inner: self.inner.clone(), path };
        for (name, value) in &self.inner.settings {
            let file = group.path.join(name);
            match write(&file, value) {
                Err(error) if NEEDED.contains(name) => return Err(error),
                // Not every kernel has swap, or can kill a group as a whole.
                Err(error) => log::debug!("{}: {error}", file.display()),
                Ok(()) => {}
            }
        }
        Ok(group)
    }
}

impl Group {
    /// Moves a process, and what it will start, into the group.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn enter(&self, pid: i32) -> io::Result<()> {
        write(&self.path.join("cgroup.procs"), &pid.to_string())
    }

    /// Whether the kernel has killed processes of the group for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        kills(&events) > 0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if fs::remove_dir(&self.path).is_err() {
            self.inner.remains.lock().push(std::mem::take(&mut self.path));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        remove_engine(&self.path);
    }
}

/// A process, by its number and the time at which it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Engine {
    pub(super) pid: u32,
    pub(super) started: u64,
}

impl Engine {
    /// This process.
    pub(super) fn this() -> Self {
        let pid = std::process::id();
        Self { pid, started: started(pid).unwrap_or(0) }
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

/// The path of the group of version 2, relative to the mount, in `/proc/self/cgroup`.
fn own_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// The files of a group and what is written to them.
fn settings(limits: &SlotLimits) -> Vec<(&'static str, String)> {
    let text = |limit: Option<u64>| limit.map_or("max".to_owned(), |limit| limit.to_string());
    let mut settings = vec![
        ("memory.max", text(limits.memory_bytes)),
        ("pids.max", text(limits.processes)),
        // All of it at once: half a command is of no use, and the first process goes with it.
        ("memory.oom.group", "1".to_owned()),
    ];
    if limits.memory_bytes.is_some() {
        settings.push(("memory.swap.max", "0".to_owned()));
    }
    if let Some(cpu) = limits.cpu {
        // At least a hundredth of a processor, and below what the file can hold.
        let quota = (cpu.clamp(0.01, 1e6) * PERIOD_US as f64) as u64;
        settings.push(("cpu.max", format!("{quota} {PERIOD_US}")));
    }
    settings
}

/// How many processes were killed, by `memory.events`.
fn kills(events: &str) -> u64 {
    let line = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// Lets a group's children have limits, as far as that is allowed.
fn delegate(group: &Path) {
    for controller in ["memory", "pids", "cpu"] {
        // Refused where a controller is missing, or where processes are in the group itself.
        // Whether it was enough is seen by what a child has.
        let _ = write(&group.join("cgroup.subtree_control"), &format!("+{controller}"));
    }
}

fn remove_dead_engines(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let engine = name.to_str().and_then(Engine::from_name);
        if engine.is_some_and(|engine| !engine.is_alive()) {
            remove_engine(&entry.path());
        }
    }
}

/// Removes an engine's group and those in it, with whatever still runs there.
fn remove_engine(path: &Path) {
    let groups = fs::read_dir(path).into_iter().flatten().flatten();
    for group in groups.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        // Since Linux 5.14. A sandbox dies with its engine in any case.
        let _ = write(&group.path().join("cgroup.kill"), "1");
        let _ = fs::remove_dir(group.path());
    }
    if let Err(error) = fs::remove_dir(path) {
        log::debug!("a cgroup is left behind: {}: {error}", path.display());
    }
}

/// Writes to a file that exists.
fn write(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> SlotLimits {
        SlotLimits {
            memory_bytes: Some(1 << 30),
            processes: Some(64),
            cpu: Some(1.5),
            ..SlotLimits::none()
        }
    }

    #[test]
    fn the_own_group_is_that_of_version_2() {
        assert_eq!(own_group("5:memory:/x\n0::/user.slice/a b\n"), Some("user.slice/a b"));
        assert_eq!(own_group("0::/"), Some(""));
        assert_eq!(own_group("1:name=systemd:/\n"), None);
    }

    #[test]
    fn limits_become_what_the_kernel_reads() {
        let wanted = [
            ("memory.max", "1073741824"),
            ("pids.max", "64"),
            ("memory.oom.group", "1"),
            ("memory.swap.max", "0"),
            ("cpu.max", "150000 100000"),
        ];
        assert_eq!(settings(&limits()), wanted.map(|(name, value)| (name, value.to_owned())));
        let none = settings(&SlotLimits::none());
        assert!(none.contains(&("memory.max", "max".to_owned())), "{none:?}");
        assert!(none.iter().all(|(name, _)| *name != "cpu.max"));
    }

    #[test]
    fn kills_for_want_of_memory_are_read() {
        assert_eq!(kills("low 0\noom 3\noom_kill 2\noom_group_kill 1\n"), 2);
        assert_eq!(kills("oom 3\noom_kill 0\n"), 0);
        assert_eq!(kills(""), 0);
    }

    #[test]
    fn engines_are_known_by_their_start() {
        let this = Engine::this();
        assert!(this.is_alive());
        assert!(!Engine { started: this.started + 1, ..this }.is_alive());
        let name = format!("{PREFIX}{}-{}-0123", this.pid, this.started);
        assert_eq!(Engine::from_name(&name), Some(this));
        assert_eq!(Engine::from_name("tool-executor-me"), None);
        assert_eq!(Engine::from_name("user.slice"), None);
    }

    /// A directory in place of the kernel's: nothing appears in a new one by itself.
    #[test]
    fn in_a_group_without_controllers_there_are_none_and_nothing_is_left() {
        let mount = tempfile::tempdir().unwrap();
        let own = mount.path().join("a/b");
        fs::create_dir_all(&own).unwrap();
        let dead = own.join("tool-executor-4194304-7-0123");
        fs::create_dir_all(dead.join("sandbox-0")).unwrap();
        let alive = Engine::this();
        let neighbour = own.join(format!("{PREFIX}{}-{}-0123", alive.pid, alive.started));
        fs::create_dir(&neighbour).unwrap();
        let engine = Engine { pid: alive.pid, started: alive.started + 1 };
        let failure = Cgroups::start(mount.path(), "0::/a/b\n", engine, &limits()).unwrap_err();
        assert!(failure.starts_with("cannot limit a cgroup"), "{failure}");
        let left: Vec<_> = fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [neighbour], "of the dead and of the failed nothing is left");
        let failure = Cgroups::start(mount.path(), "1:cpu:/\n", engine, &limits()).unwrap_err();
        assert_eq!(failure, "there is no cgroup of version 2");
    }

    #[test]
    fn a_group_is_given_its_limits_and_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let inner = Arc::new(Inner {
            path: dir.path().join("engine"),
            settings: settings(&limits()),
            next: AtomicU64::new(0),
            remains: Mutex::default(),
        });
        let path = inner.path.join("sandbox-0");
        fs::create_dir_all(&path).unwrap();
        for (name, _) in &inner.settings {
            fs::write(path.join(name), "").unwrap();
        }
        fs::write(path.join("cgroup.procs"), "").unwrap();
        for (name, value) in &inner.settings {
            write(&path.join(name), value).unwrap();
            assert_eq!(&fs::read_to_string(path.join(name)).unwrap(), value);
        }
        let group = Group { inner: inner.clone(), path: path.clone() };
        group.enter(4711).unwrap();
        assert_eq!(fs::read_to_string(path.join("cgroup.procs")).unwrap(), "4711");
        assert!(!group.ran_out_of_memory());
        fs::write(path.join("memory.events"), "oom_kill 1\n").unwrap();
        assert!(group.ran_out_of_memory());
        drop(group);
        assert_eq!(*inner.remains.lock(), [path], "it is not empty, and tried again later");
    }

    /// Only where there are such groups.
    #[test]
    fn the_kernels_own_groups_work_where_they_are_delegated() {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let groups = match Cgroups::start(Path::new(MOUNT), &own, Engine::this(), &limits()) {
            Ok(groups) => groups,
            Err(why) => {
                // The harness shows it with --nocapture.
                return log::warn!("could not run: {why}");
            }
        };
        let group = groups.make().unwrap();
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        group.enter(child.id() as i32).unwrap();
        let inside = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        assert!(inside.contains("/sandbox-"), "{inside}");
        let path = groups.inner.path.clone();
        child.kill().unwrap();
        child.wait().unwrap();
        drop((group, groups));
        assert!(!path.exists());
    }
}
