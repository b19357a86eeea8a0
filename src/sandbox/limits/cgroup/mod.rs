//! Limits by cgroups, where this process may make some: of version 2, or else of version 1.
//!
//! ```text
//! <ours, or of version 2 its parent>/
//!   tool-executor-<pid>-<start>-<uuid>/   one an engine
//!     slot-<n>/                           one a slot: memory.max, pids.max, cpu.max, …
//!       sandbox-<n>/                      one a sandbox, where memory is counted
//! ```
//!
//! The limits are the slot's: all that its tools run has them together. A slot keeps its group for
//! the engine's life; nothing of a trajectory's is left in it. Which limits it has is said with
//! each sandbox: those of its trajectory, where that has some of its own. Of version 1 there is
//! such a tree for each controller.
//!
//! A sandbox's first process is born in its group, or, of version 1, joins its slot's before it
//! does anything else, and its own before it starts something, which stays there ([`Entrance`]). To
//! move *another* process costs milliseconds in which everything waits: the kernel takes a lock for
//! it that all forks take, too. The host process itself is never moved: of version 2 its group must
//! allow children already (it is the root of a cgroup namespace, or it was prepared for that), or
//! the one above it must.
//!
//! Commands see their slot's group where cgroups are mounted ([`SlotGroup::shown`]), since runtimes
//! look there for how much memory and how many processors they have.
//!
//! Groups of engines that have died are removed by the next one.

mod engine;
mod hierarchy;
mod settings;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

pub(super) use self::engine::Engine;
use self::hierarchy::{Hierarchy, Version};
use self::settings::Setting;
use crate::config::SlotLimits;

/// Where cgroups are mounted in a sandbox.
pub(in crate::sandbox) const PLACE: &str = "/sys/fs/cgroup";
/// What the limits of memory, processes and processors need. The last is done without.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
const NEEDED: [&str; 2] = ["memory", "pids"];
/// The trees of version 1 that runtimes want to see, too, before they believe in any.
const ALSO_SHOWN: [&str; 2] = ["cpuacct", "cpuset"];

/// The groups of one engine. Removed on drop.
#[derive(Debug)]
pub(super) struct Cgroups {
    inner: Arc<Inner>,
    /// Whether the cpu can be limited as well.
    pub(super) cpu: bool,
}

#[derive(Debug)]
struct Inner {
    version: Version,
    trees: Vec<Tree>,
    /// What is shown of trees that have no groups of ours: this process's own group.
    also_shown: Vec<Shown>,
    slots: Mutex<HashMap<usize, Arc<SlotGroup>>>,
    next: AtomicU64,
    /// Groups whose last process had not quite gone when they were to be removed.
    remains: Mutex<Vec<PathBuf>>,
}

/// A tree in which the engine has a group.
#[derive(Debug)]
struct Tree {
    /// The engine's own group.
    path: PathBuf,
    controllers: Vec<&'static str>,
    /// Where it is in a sandbox, beneath [`PLACE`].
    place: PathBuf,
}

/// A group that commands can look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct Shown {
    /// Where it is on the host.
    pub(in crate::sandbox) host: PathBuf,
    /// Where it is in a sandbox.
    pub(in crate::sandbox) place: PathBuf,
}

/// The group of a slot: one directory in each tree.
#[derive(Debug)]
pub(in crate::sandbox) struct SlotGroup {
    version: Version,
    paths: Vec<PathBuf>,
    memory: PathBuf,
    processes: PathBuf,
    shown: Vec<Shown>,
    /// The limits that it has; none where they could not be set.
    set: Mutex<Option<SlotLimits>>,
}

/// The group of one sandbox. Given up on drop.
#[derive(Debug)]
pub(in crate::sandbox) struct Group {
    inner: Arc<Inner>,
    slot: Arc<SlotGroup>,
    /// Its own, where memory is counted.
    own: PathBuf,
}

/// How a sandbox's first process gets into its groups, so that nothing waits for it.
#[derive(Debug)]
pub(in crate::sandbox) enum Entrance {
    /// It is born in this one.
    Born(OwnedFd),
    /// It joins these, which are of version 1, by writing `0` to them. What it has joined before
    /// the last it is to see as the root of all groups.
    Joins(Vec<OwnedFd>),
}

/// How many processes the kernel has killed in a group for want of memory.
#[derive(Debug, Clone)]
pub(super) struct KillCount(PathBuf);

/// How often the kernel had to keep a sandbox and its slot within the slot's limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::sandbox) struct Refusals {
    /// How many processes of the sandbox it has killed for want of memory.
    pub(in crate::sandbox) kills: u64,
    /// How many it has refused to make in the slot.
    pub(in crate::sandbox) processes: u64,
}

impl Refusals {
    /// The limits at which something was refused.
    pub(in crate::sandbox) fn names(self) -> Vec<&'static str> {
        let of = |count, name| (count > 0).then_some(name);
        [of(self.kills, "memory"), of(self.processes, "processes")].into_iter().flatten().collect()
    }
}

impl Cgroups {
    /// Makes the engine's groups. `mountinfo` and `own` are the contents of `/proc/self/mountinfo`
    /// and `/proc/self/cgroup`, `engine` names this process.
    ///
    /// # Errors
    /// Why there are none, as one line.
    pub(super) fn start(
        mountinfo: &str,
        own: &str,
        engine: Engine,
        limits: &SlotLimits,
    ) -> Result<Self, String> {
        let mounted = hierarchy::mounted(mountinfo, own);
        let two = mounted.iter().find(|hierarchy| hierarchy.version == Version::Two);
        let of_two = match two {
            None => Err("there is no cgroup of version 2".to_owned()),
            Some(two) => Self::start_two(two, engine, limits),
        };
        of_two.or_else(|why| {
            Self::start_one(&mounted, engine, limits).map_err(|also| format!("{why}; {also}"))
        })
    }

    /// In the group of this process, or in the one above it.
    fn start_two(two: &Hierarchy, engine: Engine, limits: &SlotLimits) -> Result<Self, String> {
        let above = two.own.parent().filter(|above| above.starts_with(&two.mount));
        let mut first_failure = None;
        for parent in std::iter::once(two.own.as_path()).chain(above) {
            delegate(parent);
            let tree = Tree::make(parent, engine, &CONTROLLERS);
            let started = tree.and_then(|tree| {
                delegate(&tree.path);
                Self::with(Version::Two, vec![tree.at(PLACE.into())], Vec::new(), limits)
            });
            match started {
                Ok(groups) => return Ok(groups),
                Err(failure) => first_failure.get_or_insert(failure),
            };
        }
        Err(first_failure.unwrap_or_default())
    }

    /// In the groups of this process of version 1.
    fn start_one(
        mounted: &[Hierarchy],
        engine: Engine,
        limits: &SlotLimits,
    ) -> Result<Self, String> {
        let of = |controller: &str| mounted.iter().find(|one| one.has(controller));
        let mut trees: Vec<Tree> = Vec::new();
        for controller in CONTROLLERS {
            let is_needed = NEEDED.contains(&controller);
            let Some(one) = of(controller) else {
                if is_needed {
                    return Err(format!("there is no cgroup of version 1 for {controller}"));
                }
                continue;
            };
            // Those that are mounted together have one tree, which the first has made.
            if CONTROLLERS.iter().take_while(|name| **name != controller).any(|name| one.has(name))
            {
                continue;
            }
            let here: Vec<_> = CONTROLLERS.into_iter().filter(|name| one.has(name)).collect();
            match Tree::make(&one.own, engine, &here) {
                Ok(tree) => trees.push(tree.at(place_of(one))),
                Err(why) if is_needed => return Err(why),
                Err(why) => log::debug!("{why}"),
            }
        }
        let also_shown = ALSO_SHOWN
            .into_iter()
            .filter_map(of)
            .filter(|one| !CONTROLLERS.iter().any(|name| one.has(name)))
            .map(|one| Shown { host: one.own.clone(), place: place_of(one) })
            .collect();
        Self::with(Version::One, trees, also_shown, limits)
    }

    /// Sees whether a slot's group can be made.
    fn with(
        version: Version,
        trees: Vec<Tree>,
        also_shown: Vec<Shown>,
        limits: &SlotLimits,
    ) -> Result<Self, String> {
        let inner = Arc::new(Inner {
            version,
            trees,
            also_shown,
            slots: Mutex::default(),
            next: AtomicU64::new(0),
            remains: Mutex::default(),
        });
        // From here on a failure removes what was made.
        let mut groups = Self { inner, cpu: false };
        let probe =
            groups.slot(0, limits).map_err(|error| format!("cannot limit a cgroup: {error}"))?;
        let file = match version {
            Version::Two => "cpu.max",
            Version::One => "cpu.cfs_quota_us",
        };
        groups.cpu = probe.paths.iter().any(|path| path.join(file).exists());
        Ok(groups)
    }

    /// The group of a slot, which has these limits from now on.
    ///
    /// # Errors
    /// Those of the file system; one of the needed controllers is missing.
    pub(super) fn slot(&self, slot: usize, limits: &SlotLimits) -> io::Result<Arc<SlotGroup>> {
        let group = {
            let mut slots = self.inner.slots.lock();
            match slots.get(&slot) {
                Some(group) => group.clone(),
                None => {
                    let group = Arc::new(self.inner.make_slot(slot)?);
                    slots.insert(slot, group.clone());
                    group
                }
            }
        };
        self.inner.set(&group, limits)?;
        Ok(group)
    }

    /// A group for a sandbox of a slot, which has these limits from now on.
    ///
    /// # Errors
    /// As of [`slot`](Self::slot).
    pub(super) fn sandbox(&self, slot: usize, limits: &SlotLimits) -> io::Result<Group> {
        let slot = self.slot(slot, limits)?;
        self.inner.remains.lock().retain(|path| fs::remove_dir(path).is_err());
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let own = slot.memory.join(format!("sandbox-{number}"));
        make(&own)?;
        // All of it at once: half a command is of no use, and the first process goes along.
        if self.kills_as_a_whole()
            && let Err(error) = write(&own.join("memory.oom.group"), "1")
        {
            log::debug!("a sandbox cannot be killed as a whole for want of memory: {error}");
        }
        Ok(Group { inner: self.inner.clone(), slot, own })
    }

    /// Whether the kernel can end a sandbox as a whole for want of memory. Of version 1 it kills
    /// one process after the other.
    pub(super) fn kills_as_a_whole(&self) -> bool {
        self.inner.version == Version::Two
    }
}

impl Inner {
    fn make_slot(&self, slot: usize) -> io::Result<SlotGroup> {
        let (mut paths, mut shown) = (Vec::new(), self.also_shown.clone());
        for tree in &self.trees {
            let path = tree.path.join(format!("slot-{slot}"));
            match make(&path) {
                // Of an earlier try that failed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            if self.version == Version::Two {
                delegate(&path);
            }
            shown.push(Shown { host: path.clone(), place: tree.place.clone() });
            paths.push(path);
        }
        let with = |controller| {
            let index = self.trees.iter().position(|tree| tree.controllers.contains(&controller));
            index.and_then(|index| paths.get(index)).cloned().ok_or(io::ErrorKind::NotFound)
        };
        let (memory, processes) = (with("memory")?, with("pids")?);
        let set = Mutex::new(None);
        Ok(SlotGroup { version: self.version, paths, memory, processes, shown, set })
    }

    /// Sees to it that a slot has these limits. Other slots do not wait for it.
    fn set(&self, slot: &SlotGroup, limits: &SlotLimits) -> io::Result<()> {
        let mut set = slot.set.lock();
        if set.as_ref() == Some(limits) {
            return Ok(());
        }
        *set = None;
        for (tree, path) in self.trees.iter().zip(&slot.paths) {
            let of = |name: &&str| settings::of(self.version, name, limits);
            for Setting { file, value, is_needed } in tree.controllers.iter().flat_map(of) {
                let file = path.join(file);
                match write(&file, &value) {
                    Err(error) if is_needed => return Err(error),
                    // Not every kernel has swap, or counts it.
                    Err(error) => log::debug!("{}: {error}", file.display()),
                    Ok(()) => {}
                }
            }
        }
        *set = Some(limits.clone());
        Ok(())
    }
}

impl Tree {
    fn make(parent: &Path, engine: Engine, controllers: &[&'static str]) -> Result<Self, String> {
        engine::remove_dead(parent);
        let path = parent.join(engine.unique_name());
        make(&path).map_err(|error| format!("cannot make a cgroup: {error}"))?;
        Ok(Self { path, controllers: controllers.to_vec(), place: PathBuf::new() })
    }

    fn at(mut self, place: PathBuf) -> Self {
        self.place = place;
        self
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        engine::remove(&self.path);
    }
}

/// Where a tree of version 1 is in a sandbox: under the name that it has on the host.
fn place_of(hierarchy: &Hierarchy) -> PathBuf {
    let name = hierarchy.mount.file_name().map(PathBuf::from);
    Path::new(PLACE).join(name.unwrap_or_else(|| hierarchy.controllers.join(",").into()))
}

impl SlotGroup {
    /// What commands can look at of it, and where.
    pub(in crate::sandbox) fn shown(&self) -> &[Shown] {
        &self.shown
    }
}

impl KillCount {
    /// What it is now; 0 where the group is gone.
    pub(super) fn read(&self) -> u64 {
        number(&fs::read_to_string(&self.0).unwrap_or_default(), "oom_kill")
    }
}

impl Group {
    /// How a sandbox's first process gets into it.
    ///
    /// # Errors
    /// Those of the file system.
    pub(in crate::sandbox) fn entrance(&self) -> io::Result<Entrance> {
        match self.slot.version {
            // In what has children with limits no process may be.
            Version::Two => fs::File::open(&self.own).map(|own| Entrance::Born(own.into())),
            Version::One => {
                let paths = self.slot.paths.iter().chain([&self.own]);
                let tasks = |path: &PathBuf| {
                    let file = fs::OpenOptions::new().write(true).open(path.join("tasks"))?;
                    Ok(OwnedFd::from(file))
                };
                paths.map(tasks).collect::<io::Result<_>>().map(Entrance::Joins)
            }
        }
    }

    /// Moves a process, and what it will start, into it. Waits until all processors have seen that
    /// processes are about to be moved, which takes milliseconds.
    ///
    /// # Errors
    /// Those of the file system.
    pub(in crate::sandbox) fn enter(&self, pid: i32) -> io::Result<()> {
        let pid = pid.to_string();
        let enter = |path: &PathBuf| write(&path.join("cgroup.procs"), &pid);
        match self.slot.version {
            Version::Two => enter(&self.own),
            Version::One => self.slot.paths.iter().chain([&self.own]).try_for_each(enter),
        }
    }

    /// How many of its processes were killed for want of memory.
    pub(super) fn kill_count(&self) -> KillCount {
        KillCount(self.own.join(match self.slot.version {
            Version::Two => "memory.events",
            Version::One => "memory.oom_control",
        }))
    }

    /// What was refused it since it was made, and its slot since the engine began.
    pub(super) fn refusals(&self) -> Refusals {
        // Some kernels count in the group whose limit it is, others in that of the process.
        let of = |group: &Path| {
            number(&fs::read_to_string(group.join("pids.events")).unwrap_or_default(), "max")
        };
        let processes = of(&self.slot.processes).saturating_add(of(&self.own));
        Refusals { kills: self.kill_count().read(), processes }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if fs::remove_dir(&self.own).is_err() {
            self.inner.remains.lock().push(std::mem::take(&mut self.own));
        }
    }
}

/// Makes a group that its commands can look at, whatever this process's umask is.
fn make(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// The number after a name, in lines of both.
fn number(lines: &str, name: &str) -> u64 {
    let found = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// Lets a group's children have limits, as far as that is allowed.
fn delegate(group: &Path) {
    for controller in CONTROLLERS {
        // Refused where a controller is missing, or where processes are in the group itself.
        // Whether it was enough is seen by what a child has.
        let _ = write(&group.join("cgroup.subtree_control"), &format!("+{controller}"));
    }
}

/// Writes to a file that exists.
fn write(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests;
