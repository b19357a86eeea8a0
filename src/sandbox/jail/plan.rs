//! What a jail is to be: plain data, of which `steps` are made, by which its first process makes
//! it. Pure.

mod steps;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use self::steps::Steps;
pub(super) use self::steps::{Step, encode};
use super::super::init::message::{self, step};
use super::super::spawn;
use super::super::user::IdMap;

/// A jail to be made: with namespaces of its own, or in those of a machine.
#[derive(Debug, Clone)]
pub(in crate::sandbox) struct Plan {
    /// The users of its processes. Where they are many the engine maps them, else the first process
    /// does.
    pub(in crate::sandbox) users: IdMap,
    /// Their groups: as many.
    pub(in crate::sandbox) groups: IdMap,
    /// Its host name, if it is to have one of its own.
    pub(in crate::sandbox) host_name: Option<&'static str>,
    /// What network it has.
    pub(in crate::sandbox) network: Network,
    /// Its root directory, beside `/proc` and `/dev`, in the order in which it is made.
    pub(in crate::sandbox) root: Vec<Entry>,
    /// The directory on the host to which its first process cannot get by itself: what of it is
    /// shown has to be handed over.
    pub(in crate::sandbox) barred: Option<PathBuf>,
    /// How large its `/dev/shm` may become, and its root file system. `None` leaves it to the
    /// kernel, which gives each half of the memory.
    pub(in crate::sandbox) shared_memory: Option<u64>,
    /// How many pseudo-terminals it may have: the machine has one number of them for all users.
    pub(in crate::sandbox) terminals: u32,
    /// Devices beside those of every jail, by their paths.
    pub(in crate::sandbox) devices: Vec<PathBuf>,
    /// What is at its `/proc`.
    pub(in crate::sandbox) proc: Proc,
    /// How many inotify instances and watches it may have, where that is not what its user may
    /// have. Only with a `/proc` of its own.
    pub(in crate::sandbox) inotify: Option<[u64; 2]>,
    /// The filter of system calls, as the kernel takes it.
    pub(in crate::sandbox) filter: Option<Vec<u8>>,
    /// The directory that what runs in it begins in.
    pub(in crate::sandbox) directory: PathBuf,
    /// Whom what runs in it is, where it has users to choose from, and what it may do there.
    pub(in crate::sandbox) rights: Rights,
    /// What runs in it: an absolute path, inside.
    pub(in crate::sandbox) program: PathBuf,
    /// The environment of what runs in it.
    pub(in crate::sandbox) environment: Vec<OsString>,
    /// The soft limit of open files of what runs in it, where it is not this process's own.
    pub(in crate::sandbox) open_files: Option<u64>,
}

/// What those may do who run in a jail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::sandbox) struct Rights {
    /// Whom programs are run as. `None`: as the first process, which is then the only user.
    pub(in crate::sandbox) user: Option<User>,
    /// The capabilities that root has inside, and none outside.
    pub(in crate::sandbox) capabilities: u32,
    /// Whether the directory that programs begin in belongs to the model, which may have removed
    /// it: one that is missing is made with the machine, and later done without.
    pub(in crate::sandbox) any_directory: bool,
}

/// A user inside a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct User {
    /// Its number.
    pub(in crate::sandbox) uid: u32,
    /// That of its group.
    pub(in crate::sandbox) gid: u32,
    /// Those of its other groups.
    pub(in crate::sandbox) groups: Vec<u32>,
}

/// What network a jail has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Network {
    /// A loopback interface of its own.
    Own,
    /// The same, and at this port of it a listening socket, which the engine gets.
    Proxy(u16),
    /// The host's.
    Host,
}

/// What is at the `/proc` of a jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Proc {
    /// One of its own, which shows its processes.
    Own,
    /// The host's, or the container's, with what is mounted over it.
    Shared,
}

/// An entry of a jail's root directory. What is above it is made, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) enum Entry {
    /// An empty directory that is the jail's own.
    Directory {
        /// Where it is inside.
        place: PathBuf,
    },
    /// A symbolic link.
    Link {
        /// What it says.
        target: PathBuf,
        /// Where it is inside.
        place: PathBuf,
    },
    /// A directory of the host.
    Shown {
        /// Where it is on the host.
        host: PathBuf,
        /// Where it is inside.
        place: PathBuf,
        /// What may be done with it.
        access: Access,
    },
    /// An empty file that is the jail's own.
    File {
        /// Where it is inside.
        place: PathBuf,
    },
    /// A file system of the jail's own, without devices or programs to execute and not to be
    /// written to, at a directory that another entry has made or shows.
    Mounted {
        /// Its type.
        kind: &'static str,
        /// Where it is inside.
        place: PathBuf,
        /// Its options.
        options: &'static str,
    },
    /// Cgroups of the host, to be read, at a directory that another entry shows: one over it, or
    /// each under its own name in it.
    Groups {
        /// That directory.
        place: PathBuf,
        /// Each one's place on the host and inside.
        shown: Vec<(PathBuf, PathBuf)>,
    },
    /// A file system of layers.
    Layered(Overlay),
    /// A file or directory of the host over one that another entry has made or shows.
    Over {
        /// Where it is on the host.
        host: PathBuf,
        /// Where it is inside.
        place: PathBuf,
        /// What may be done with it.
        access: Access,
        /// Whether the host may lack it.
        is_optional: bool,
    },
}

/// A file system of layers: what is changed in it goes to a directory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct Overlay {
    /// Where it is inside. At `/` it is the root, and what other entries mount is moved there,
    /// other overlays, too; an entry that mounts nothing is not to be seen.
    pub(in crate::sandbox) place: PathBuf,
    /// What is not changed, the lowest first.
    pub(in crate::sandbox) lower: Vec<Tree>,
    /// The directory with [`UPPER`] in it, which is its alone.
    pub(in crate::sandbox) writable: Tree,
    /// The name of the directory in that which the kernel works in. It is made, and never used
    /// again: what was mounted without care for a crash cannot be mounted once more with it.
    pub(in crate::sandbox) work: String,
}

/// A directory of the host that an overlay is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct Tree {
    /// Where it is on the host.
    pub(in crate::sandbox) host: PathBuf,
    /// How the jail gets it.
    pub(in crate::sandbox) hold: Hold,
}

/// How a jail gets a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Hold {
    /// Its first process finds it by its path, as the user that it runs as.
    ByPath,
    /// The engine, which is root, hands it over, with other owners if a map is given: of the ids
    /// that files have (`inside`), and those that they have in the jail as this machine knows them.
    HandedOver(Option<IdMap>),
}

/// The name of the directory with what was changed.
pub(in crate::sandbox) const UPPER: &str = "upper";
/// The most trees that all overlays of a jail have together.
pub(in crate::sandbox) const MOST_TREES: usize = message::MOST_FDS - step::MOST_CGROUPS;

/// What may be done with something of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Access {
    /// It may be read.
    ReadOnly,
    /// It may be written to.
    Writable,
    /// It is a device.
    Device,
}

// Attributes of mounts, and flags of `mount(2)`.
const READ_ONLY: u64 = 1;
const NO_SET_USER_ID: u64 = 2;
const NO_DEVICES: u64 = 4;
const NO_PROGRAMS: u64 = 8;

const PROC: &str = "/proc";
const DEV: &str = "/dev";
const PROC_FLAGS: u64 = NO_SET_USER_ID | NO_DEVICES | NO_PROGRAMS;

/// How many files a file system in memory may have, of whatever size: each takes memory that no
/// limit of bytes counts.
const MOST_INODES: u32 = 65_536;

/// Any directory that every host has, for the moment in which the new root has no other place. What
/// is beneath it is not hidden when it matters.
const FIRST_PLACE: &str = "/usr";

/// Where an overlay's trees are while it is mounted, and where that is which becomes the root.
const STAGE: &str = "/.stage";
const STAGE_OF_ROOT: &str = "/.layers";
const NEW_ROOT: &str = "/.root";

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
    ("pts/ptmx", "/dev/ptmx"),
];

impl Access {
    fn attributes(self) -> u64 {
        match self {
            Self::ReadOnly => READ_ONLY | NO_SET_USER_ID | NO_DEVICES,
            Self::Writable => NO_SET_USER_ID | NO_DEVICES,
            Self::Device => NO_SET_USER_ID,
        }
    }
}

/// Whether every jail has this device, or has something of its own in its place.
pub(in crate::sandbox) fn has_device(path: &Path) -> bool {
    let is_common = |name: &str| Path::new("/dev").join(name) == path;
    let is_link = DEVICE_LINKS.iter().any(|(_, place)| Path::new(place) == path);
    is_link || DEVICES.into_iter().any(is_common) || path.starts_with("/dev/pts")
}

impl Plan {
    /// The steps that make the jail, in namespaces that are new with it. So many `cgroups` are
    /// handed over behind the trees, for it to join.
    ///
    /// # Errors
    /// A path with a NUL in it; too many of them.
    pub(super) fn steps_of_founder(&self, cgroups: usize) -> io::Result<Vec<Step>> {
        let strings = [&self.program]
            .into_iter()
            .chain(self.root.iter().flat_map(Entry::paths))
            .chain(self.overlays().flat_map(|overlay| &overlay.lower).map(|tree| &tree.host))
            .chain(&self.devices)
            .any(|path| path.as_os_str().as_bytes().contains(&0));
        if strings {
            return Err(spawn::embedded_nul());
        }
        let trees = self.handed_over().count();
        let handed_over = trees + cgroups;
        if self.overlays().map(Overlay::trees).map(Iterator::count).sum::<usize>() > MOST_TREES {
            return Err(rustix::io::Errno::TOOBIG.into());
        }
        // They come first, and together.
        let mut steps = Steps::after(handed_over as u64);
        let own = steps.join_cgroups(trees, cgroups);
        steps.be_ended_first();
        if self.users.is_single() {
            // The kernel wants the first before an ordinary user may map a group.
            steps.write("/proc/self/setgroups", "deny", "map groups");
            for (file, map) in
                [("/proc/self/uid_map", self.users), ("/proc/self/gid_map", self.groups)]
            {
                steps.write(file, &map.to_string(), "map users and groups");
            }
        }
        steps.own_cgroups(own);
        steps.act(step::MAKE_PRIVATE, "keep mounts to itself");
        // While the host is still to be seen.
        for entry in &self.root {
            match entry {
                Entry::Shown { host, .. } | Entry::Over { host, .. } if self.is_barred(host) => {}
                Entry::Shown { host, place, access } => steps.source(host, place, *access, 0),
                Entry::Over { host, place, access, is_optional } => {
                    let flag = if *is_optional { step::OPTIONAL } else { 0 };
                    steps.source(host, place, *access, flag);
                }
                Entry::Groups { shown, .. } => {
                    // Where its user may not look at them there is nothing to be seen.
                    for (host, place) in shown {
                        steps.source(host, place, Access::ReadOnly, step::OPTIONAL);
                    }
                }
                Entry::Layered(overlay) => {
                    for tree in overlay.trees().filter(|tree| !self.is_handed_over(tree)) {
                        let is_own = *tree == overlay.writable;
                        let access = if is_own { Access::Writable } else { Access::ReadOnly };
                        steps.source(&tree.host, &overlay.place, access, 0);
                    }
                }
                Entry::Directory { .. }
                | Entry::File { .. }
                | Entry::Link { .. }
                | Entry::Mounted { .. } => {}
            }
        }
        if self.proc == Proc::Shared {
            let attributes = READ_ONLY | NO_SET_USER_ID | NO_DEVICES | NO_PROGRAMS;
            steps.sources += 1;
            steps.add(step::SOURCE, 0, attributes, &[PROC], "show the host's /proc");
        }
        for device in self.all_devices() {
            steps.source(&device, &device, Access::Device, 0);
        }
        let options = self.memory_options("0755");
        steps.add(step::ROOT, 0, 0, &[FIRST_PLACE, &options], "make a root directory");
        let (mut source, mut given) = (handed_over as u64, 0);
        for entry in &self.root {
            match entry {
                Entry::Directory { place } => steps.directory(place),
                Entry::File { place } => steps.file(place),
                Entry::Mounted { kind, place, options } => {
                    let flags = READ_ONLY | NO_SET_USER_ID | NO_DEVICES | NO_PROGRAMS;
                    steps.mount(kind, place, flags, options);
                }
                Entry::Link { target, place } => steps.link(target, place),
                Entry::Shown { host, place, .. } => {
                    steps.directory(place);
                    let next = if self.is_barred(host) { &mut given } else { &mut source };
                    steps.attach(next, place);
                }
                // The directory that it is in is shown, and has something to be covered.
                Entry::Over { host, place, .. } => {
                    let next = if self.is_barred(host) { &mut given } else { &mut source };
                    steps.attach(next, place);
                }
                Entry::Groups { place, shown } => steps.groups(place, shown, &mut source),
                Entry::Layered(overlay) => {
                    let is_given = |tree: &Tree| self.is_handed_over(tree);
                    steps.overlay(overlay, is_given, &mut source, &mut given);
                }
            }
        }
        self.proc(&mut source, &mut steps);
        self.dev(&mut source, &mut steps);
        steps.act(step::FORGET_HOST, "let go of the host's files");
        if self.overlays().any(Overlay::is_root) {
            self.change_root(&mut steps);
        }
        if let Some(name) = self.host_name {
            steps.add(step::HOST_NAME, 0, 0, &[name], "set the host name");
        }
        self.connect(&mut steps);
        self.give_up_rights(&mut steps, step::MAKE);
        if steps.sources > step::MOST_SOURCES as u64 {
            return Err(rustix::io::Errno::TOOBIG.into());
        }
        Ok(steps.list)
    }

    /// The overlays that are to be made.
    pub(super) fn overlays(&self) -> impl Iterator<Item = &Overlay> {
        self.root.iter().filter_map(|entry| match entry {
            Entry::Layered(overlay) => Some(overlay),
            _ => None,
        })
    }

    /// The trees that the engine is to hand over, in their order; how the ids of each one's files
    /// are mapped, and whether it is written to.
    pub(super) fn handed_over(&self) -> impl Iterator<Item = (&Path, Option<IdMap>, bool)> {
        self.root.iter().flat_map(|entry| match entry {
            Entry::Shown { host, access, .. } | Entry::Over { host, access, .. }
                if self.is_barred(host) =>
            {
                vec![(&**host, None, *access != Access::ReadOnly)]
            }
            Entry::Layered(overlay) => {
                let lower = overlay.lower.iter().map(|tree| (tree, false));
                let trees = lower.chain([(&overlay.writable, true)]);
                let handed_over = trees.filter(|(tree, _)| self.is_handed_over(tree));
                let map = |tree: &Tree| match tree.hold {
                    Hold::HandedOver(map) => map,
                    Hold::ByPath => None,
                };
                handed_over.map(|(tree, own)| (&*tree.host, map(tree), own)).collect()
            }
            _ => Vec::new(),
        })
    }

    /// Whether the engine hands this tree over.
    fn is_handed_over(&self, tree: &Tree) -> bool {
        tree.hold != Hold::ByPath || self.is_barred(&tree.host)
    }

    /// Whether the first process cannot get to this path on the host.
    fn is_barred(&self, host: &Path) -> bool {
        self.barred.as_ref().is_some_and(|barred| host.starts_with(barred))
    }

    /// Moves what was mounted for it into the overlay that is to be the root, in which links lead
    /// nowhere else, and makes it that.
    fn change_root(&self, steps: &mut Steps) {
        let mut moved: Vec<&Path> = Vec::new();
        if self.rights.user.is_some() {
            // What is missing in the image is made as root's, wholly.
            steps.act(step::GROUP, "make files of root's group");
        }
        // What a new jail of the machine finds by its path is not to be renamed: it is where it
        // seems to be.
        let own = [Path::new(PROC), Path::new(DEV)].map(|place| (place, step::NO_LINKS));
        let shown = self.root.iter().filter_map(|entry| match entry {
            Entry::Shown { place, .. } | Entry::Mounted { place, .. } => Some((&**place, 0)),
            Entry::Layered(overlay) if !overlay.is_root() => Some((&*overlay.place, 0)),
            Entry::Over { place, is_optional, .. } => {
                Some((&**place, if *is_optional { step::OPTIONAL } else { 0 }))
            }
            _ => None,
        });
        for (place, flag) in shown.chain(own) {
            // What is mounted in another goes with it.
            if !moved.iter().any(|above| place.starts_with(above)) {
                let what = format!("show {} in the image", place.display());
                steps.add(step::MOVE, flag, 0, &[Path::new(NEW_ROOT), place], &what);
                moved.push(place);
            }
        }
        // With that the layers' places go out of sight, too. The kernel lets go of one thing at a
        // time: the host's files, which were above the first root, are gone by now.
        steps.add(step::CHANGE_ROOT, 0, 0, &[NEW_ROOT], "make the image the root directory");
    }

    fn connect(&self, steps: &mut Steps) {
        if self.network != Network::Host {
            steps.act(step::LOOPBACK, "bring the loopback interface up");
        }
        if let Network::Proxy(port) = self.network {
            let what = "make the proxy's socket";
            steps.add::<&str>(step::LISTEN, 0, u64::from(port), &[], what);
        }
    }

    /// The steps that make the jail in a machine that another one has made by this plan: all that
    /// it lacks is a view of its own processes; and its network, where it is `beside` that machine.
    /// So many `cgroups` are handed over for it to join.
    pub(super) fn steps_of_joiner(&self, beside: bool, cgroups: usize) -> Vec<Step> {
        let (mut steps, place) = (Steps::after(cgroups as u64), Path::new(PROC));
        let own = steps.join_cgroups(0, cgroups);
        steps.own_cgroups(own);
        // The host's shows the processes of all, and is read-only: where it is shown only what a
        // machine's first jail runs is ended first for want of memory.
        if self.proc == Proc::Own {
            // Over the one of the machine's first jail, which shows that one's processes.
            steps.mount("proc", place, PROC_FLAGS, "");
            steps.be_ended_first();
            steps.attributes(place, READ_ONLY);
        }
        if beside {
            self.connect(&mut steps);
        }
        self.give_up_rights(&mut steps, step::OR_ROOT);
        steps.list
    }

    /// `flag` says what becomes of a directory that is the model's and cannot be entered.
    fn give_up_rights(&self, steps: &mut Steps, flag: u8) {
        let Rights { user, capabilities, any_directory } = &self.rights;
        if let Some(User { uid, gid, groups }) = user {
            let number = u64::from(*uid) | u64::from(*gid) << 32;
            let text = groups.iter().take(step::MOST_GROUPS).flat_map(|id| id.to_ne_bytes());
            let what = "choose the user of programs".to_owned();
            let text = text.collect();
            steps.list.push(Step { kind: step::USER, flag: 0, number, text, what });
        }
        let flag = if *any_directory { flag } else { 0 };
        let what = format!("enter {}", self.directory.display());
        steps.add(step::ENTER, flag, 0, &[&self.directory], &what);
        let what = "give up its capabilities";
        steps.add::<&str>(step::DROP_RIGHTS, 0, u64::from(*capabilities), &[], what);
        if let Some(filter) = &self.filter {
            let what = "load the filter of system calls".to_owned();
            let text = filter.clone();
            steps.list.push(Step { kind: step::FILTER, flag: 0, number: 0, text, what });
        }
    }

    fn all_devices(&self) -> impl Iterator<Item = PathBuf> {
        let common = DEVICES.map(|name| Path::new("/dev").join(name));
        common.into_iter().chain(self.devices.iter().cloned())
    }

    /// Read-only: to the kernel, root is root without any capability, and could write `/proc/sys`
    /// (whose core_pattern names a program that the host runs) and chmod what all jails share of
    /// `/proc`.
    ///
    /// The host's forbids no further user namespaces: what it has of these is read-only in the
    /// containers that mask it. The filter of system calls does it alone then.
    fn proc(&self, source: &mut u64, steps: &mut Steps) {
        let (place, no_more) = (Path::new(PROC), "/proc/sys/user/max_user_namespaces");
        steps.directory(place);
        if self.proc == Proc::Shared {
            return steps.attach(source, place);
        }
        steps.mount("proc", place, PROC_FLAGS, "");
        // In these user namespaces. Nothing in them will have the right to change it.
        steps.write(no_more, "0", "forbid further user namespaces");
        if let Some([instances, watches]) = self.inotify {
            let files = [("max_inotify_instances", instances), ("max_inotify_watches", watches)];
            for (file, most) in files {
                let file = format!("/proc/sys/user/{file}");
                steps.write(&file, &most.to_string(), "limit what is watched of files");
            }
        }
        steps.attributes(place, READ_ONLY);
    }

    fn dev(&self, source: &mut u64, steps: &mut Steps) {
        let dev = Path::new(DEV);
        steps.directory(dev);
        steps.mount("tmpfs", dev, NO_SET_USER_ID, "mode=0755");
        for place in self.all_devices() {
            steps.file(&place);
            steps.attach(source, &place);
        }
        for (target, place) in DEVICE_LINKS {
            steps.link(Path::new(target), Path::new(place));
        }
        let flags = NO_SET_USER_ID | NO_PROGRAMS;
        // Where there are several users all of them use it.
        let shared = if self.rights.user.is_some() { "1777" } else { "0755" };
        let terminals = format!("newinstance,ptmxmode=0666,mode=620,max={}", self.terminals);
        for (kind, name, flags, options) in [
            ("devpts", "pts", flags, terminals),
            ("tmpfs", "shm", NO_SET_USER_ID | NO_DEVICES, self.memory_options(shared)),
            ("mqueue", "mqueue", flags | NO_DEVICES, String::new()),
        ] {
            let place = dev.join(name);
            steps.directory(&place);
            steps.mount(kind, &place, flags, &options);
        }
        steps.attributes(dev, READ_ONLY);
    }

    /// Those of a file system in memory.
    fn memory_options(&self, mode: &str) -> String {
        let size = self.shared_memory.map(|bytes| format!(",size={bytes}"));
        format!("mode={mode},nr_inodes={MOST_INODES}{}", size.unwrap_or_default())
    }
}

impl Overlay {
    /// Whether it is the root directory.
    fn is_root(&self) -> bool {
        self.place.parent().is_none()
    }

    /// What it is made of, the writable tree last.
    fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.lower.iter().chain([&self.writable])
    }
}

impl Entry {
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let (one, other) = match self {
            Self::Layered(overlay) => (Some(&overlay.writable.host), &overlay.place),
            Self::Directory { place }
            | Self::File { place }
            | Self::Groups { place, .. }
            | Self::Mounted { place, .. } => (None, place),
            Self::Link { target, place } => (Some(target), place),
            Self::Shown { host, place, .. } | Self::Over { host, place, .. } => (Some(host), place),
        };
        one.into_iter().chain([other])
    }
}

#[cfg(test)]
mod tests;
