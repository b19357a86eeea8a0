//! What of the host a sandbox shares, where, and whose it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Contents, proxy};
use crate::sandbox::etc::{self, EtcCopy, RESOLV_CONF};
use crate::sandbox::identity::Identity;
use crate::sandbox::image::Layer;
use crate::sandbox::jail::{Access, Entry, Hold, Overlay, Tree};
use crate::sandbox::limits::{CGROUPS, ShownGroup};
use crate::sandbox::provided::{Provided, Shown};
use crate::sandbox::shell::{Places, Shell};
use crate::sandbox::spool;
use crate::sandbox::toolbox;
use crate::sandbox::user::{CommandUser, IdMap};
use crate::sandbox::workspace::{Grading, ImageFiles, SESSIONS, Workspace};

/// Entries of the root directory that are shared read-only where the host has them.
const ROOT_ENTRIES: [&str; 6] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// Directories that are shared read-only where the host has them: what is installed beside `/usr`,
/// and what of `/var` packaged tools read. Not all of `/var/lib`: services keep secrets there.
const READABLE: [&str; 16] = [
    "/opt",
    "/var/lib/alternatives",
    "/var/lib/apt",
    "/var/lib/aspell",
    "/var/lib/dictionaries-common",
    "/var/lib/dpkg",
    "/var/lib/emacsen-common",
    "/var/lib/gems",
    "/var/lib/ghc",
    "/var/lib/pacman",
    "/var/lib/python",
    "/var/lib/rpm",
    "/var/lib/sgml-base",
    "/var/lib/texmf",
    "/var/lib/xml-core",
    "/var/cache/fontconfig",
];

/// Directories that programs expect, and that are the jail's own.
const OWN_DIRECTORIES: [&str; 9] = [
    "/run/lock",
    "/var/cache",
    "/var/lib",
    "/var/log",
    "/var/mail",
    "/var/spool",
    "/mnt",
    "/media",
    "/srv",
];

/// The home and temporary directory of a grader, in which nothing of those is that it judges.
pub(in crate::sandbox) const GRADER: &str = "/run/grader";

/// Links that programs expect.
const OWN_LINKS: [(&str, &str); 2] = [("/run", "/var/run"), ("/run/lock", "/var/lock")];

/// What of `/sys` is about the machine and no program's business, as container engines have it.
const MASKED: [&str; 2] = ["/sys/firmware", "/sys/devices/virtual/powercap"];
/// What else is there where `/sys` is the host's, with what the host has mounted in it.
const MASKED_OF_HOST: [&str; 4] =
    ["/sys/fs/bpf", "/sys/fs/cgroup", "/sys/kernel/debug", "/sys/kernel/tracing"];

/// Where a sandbox has its `/sys` from. None can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Sys {
    /// One of its own, which shows its own network; or the host's, where that is its network.
    Own,
    /// The host's.
    Host,
    /// It has none.
    None,
}

/// What of the host's file system a sandbox shares, and who runs in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct HostLayout {
    /// Entries of the root directory; the target where the entry is a symbolic link.
    pub(super) root: Vec<(PathBuf, Option<PathBuf>)>,
    /// Further directories.
    readable: Vec<PathBuf>,
    /// Where `/sys` is from.
    pub(super) sys: Sys,
    /// Directories of `/sys` that are not shown, and those that are not shown of the host's.
    masked: [Vec<PathBuf>; 2],
    /// The shell that runs commands.
    pub(in crate::sandbox) shell: Shell,
    /// Who commands are.
    pub(in crate::sandbox) identity: Arc<Identity>,
}

impl HostLayout {
    /// Looks at the host. What holds the workspaces, as this one, is not shared. Blocks on a few
    /// file system calls.
    pub(in crate::sandbox) fn detect(workspace: &Workspace) -> Self {
        let root = ROOT_ENTRIES
            .iter()
            .map(PathBuf::from)
            .filter_map(|path| {
                let kind = path.symlink_metadata().ok()?.file_type();
                let target = kind.is_symlink().then(|| path.read_link().ok()).flatten();
                Some((path, target))
            })
            .collect();
        let files = workspace.path().canonicalize().unwrap_or_else(|_| workspace.path().into());
        let is_shared = |path: &PathBuf| {
            let Ok(there) = path.canonicalize() else { return false };
            there.is_dir() && !files.starts_with(there)
        };
        let existing = |paths: &[&str], is_wanted: &dyn Fn(&PathBuf) -> bool| {
            paths.iter().map(PathBuf::from).filter(is_wanted).collect()
        };
        let is_dir = |path: &PathBuf| path.is_dir();
        Self {
            root,
            readable: existing(&READABLE, &is_shared),
            sys: if Path::new("/sys/devices").is_dir() { Sys::Own } else { Sys::None },
            masked: [existing(&MASKED, &is_dir), existing(&MASKED_OF_HOST, &is_dir)],
            shell: Shell::detect(),
            identity: workspace.identity().clone(),
        }
    }

    /// With its `/sys` from there.
    pub(super) fn with_sys(self, sys: Sys) -> Self {
        Self { sys, ..self }
    }

    /// What binds have to know of it, in sandboxes whose slot's directories are there.
    pub(super) fn shown<T>(&self, own: Places<'_>, look: impl FnOnce(&Shown<'_>) -> T) -> T {
        let own_path = |path: &Path| (path.to_owned(), path.to_owned());
        let system = ["/usr", "/etc"].into_iter().chain(etc::BOUND).map(Path::new);
        let readable = self.readable.iter().map(PathBuf::as_path);
        let mut directories: Vec<_> = system.chain(readable).map(own_path).collect();
        let mut links = Vec::new();
        for (place, target) in &self.root {
            match target {
                Some(target) => links.push((place.clone(), target.clone())),
                None => directories.push(own_path(place)),
            }
        }
        links.extend(OWN_LINKS.map(|(target, place)| (place.into(), target.into())));
        look(&Shown { directories, links: &links, own })
    }

    /// The entries of `/sys`, for a sandbox with the host's network or without, that is to see
    /// these cgroups.
    fn sys(&self, network: bool, cgroups: &[ShownGroup]) -> Vec<Entry> {
        let place = PathBuf::from("/sys");
        let [always, of_host] = &self.masked;
        let (mut entries, masked) = match self.sys {
            Sys::None => return Vec::new(),
            // To mount one takes rights over the network that it shows.
            Sys::Own if !network => {
                let made = Entry::Directory { place: place.clone() };
                (vec![made, Entry::Mounted { kind: "sysfs", place, options: "" }], [always, &NONE])
            }
            Sys::Own | Sys::Host => {
                let (host, access) = (place.clone(), Access::ReadOnly);
                (vec![Entry::Shown { host, place, access }], [always, of_host])
            }
        };
        let empty = |place: &PathBuf| Entry::Mounted {
            kind: "tmpfs",
            place: place.clone(),
            options: "mode=0555,size=4096",
        };
        entries.extend(masked.into_iter().flatten().map(empty));
        if !cgroups.is_empty() {
            let shown = cgroups.iter().map(|group| (group.host.clone(), group.place.clone()));
            entries.push(Entry::Groups { place: CGROUPS.into(), shown: shown.collect() });
        }
        entries
    }
}

/// No directories.
const NONE: Vec<PathBuf> = Vec::new();

/// Files of the copy of `/etc` that machines with an image's files show, too, where it has them.
pub(super) const ETC_OF_IMAGES: [&str; 5] =
    ["hosts", "hostname", proxy::CA_BUNDLE, proxy::APT_FILE, proxy::APT_USER];
/// Those of them that only apt reads, and where it does.
const OF_APT: [(&str, &str); 2] =
    [(proxy::APT_FILE, proxy::APT_FILE), (proxy::APT_USER, proxy::APT_USER_PLACE)];

/// What a jail shows in the files of an image: it mounts the image, and in it what the machine
/// makes. Of what the image has at such a place nothing is followed out of it.
pub(super) fn root_of_image(
    layout: &HostLayout,
    provided: &Provided,
    etc: Option<(&EtcCopy, &[&str])>,
    contents: &Contents<'_>,
    image: &ImageFiles,
) -> Vec<Entry> {
    let workspace = contents.workspace;
    let mut root: Vec<_> = workspace.root_overlay().map(Entry::Layered).into_iter().collect();
    root.extend(workspace.judged_entries());
    root.extend(layout.sys(contents.network, &contents.cgroups));
    let file = |host: PathBuf, place: PathBuf, is_optional| {
        let over =
            Entry::Over { host, place: place.clone(), access: Access::ReadOnly, is_optional };
        [Entry::File { place }, over]
    };
    let one_id = image.is_of_one_id(workspace.user_of_slot());
    for name in etc.iter().flat_map(|(_, names)| names.iter()) {
        if *name == proxy::APT_USER && !one_id {
            continue;
        }
        let of_apt = OF_APT.iter().find(|(of_apt, _)| of_apt == name);
        let place = of_apt.map_or(*name, |(_, place)| place);
        if let Some((etc, _)) = etc
            && (of_apt.is_none() || image.has_apt())
        {
            root.extend(file(etc.path().join(name), Path::new("/etc").join(place), false));
        }
    }
    if contents.network {
        root.extend(file(RESOLV_CONF.into(), RESOLV_CONF.into(), true));
    }
    let shown = |host: PathBuf, place: PathBuf, access| Entry::Shown { host, place, access };
    root.push(shown(workspace.sessions().into(), SESSIONS.into(), Access::ReadOnly));
    if let Some(toolbox) = image.toolbox() {
        root.push(shown(toolbox.path().into(), toolbox::PLACE.into(), Access::ReadOnly));
    }
    let outputs = workspace.inside().home.join(spool::DIRECTORY);
    root.push(shown(workspace.outputs_directory(), outputs, Access::Writable));
    root.extend(of_grader(workspace));
    root.extend(provided.entries_of_image());
    root
}

/// The root directory of a jail. Pure.
///
/// What can be written to: the workspace, `/tmp` and the home directory, which are the slot's, and
/// the directories that are the machine's own and go with it, `/dev/shm` and the root directory
/// among them.
pub(super) fn root(
    layout: &HostLayout,
    provided: &Provided,
    etc: Option<&EtcCopy>,
    contents: &Contents<'_>,
    layers_by_path: bool,
) -> Vec<Entry> {
    let shown = |host: &Path, place: &Path, access| Entry::Shown {
        host: host.to_owned(),
        place: place.to_owned(),
        access,
    };
    let read_only = |path: &Path| shown(path, path, Access::ReadOnly);
    let mut root = vec![read_only(Path::new("/usr"))];
    root.extend(layout.root.iter().map(|(path, target)| match target {
        Some(target) => Entry::Link { target: target.clone(), place: path.clone() },
        None => read_only(path),
    }));
    match etc {
        Some(etc) => {
            root.push(shown(etc.path(), Path::new("/etc"), Access::ReadOnly));
            // Not every host has them.
            let names = Some(RESOLV_CONF).filter(|_| contents.network);
            let over = etc::BOUND.into_iter().chain(names);
            root.extend(over.map(|place| Entry::Over {
                host: place.into(),
                place: place.into(),
                access: Access::ReadOnly,
                is_optional: true,
            }));
        }
        None => root.push(Entry::Directory { place: "/etc".into() }),
    }
    if let Some(local_etc) = etc.and_then(EtcCopy::local) {
        root.push(Entry::Over {
            host: local_etc.to_owned(),
            place: etc::LOCAL.into(),
            access: Access::ReadOnly,
            is_optional: false,
        });
    }
    root.extend(layout.sys(contents.network, &contents.cgroups));
    root.extend(OWN_DIRECTORIES.map(|place| Entry::Directory { place: place.into() }));
    root.extend(
        OWN_LINKS.map(|(target, place)| Entry::Link { target: target.into(), place: place.into() }),
    );
    root.extend(layout.readable.iter().map(|path| read_only(path)));
    let (hosts, inside) = (contents.workspace.on_host(), contents.workspace.inside());
    let [of_workspace, of_temporary, of_home] = contents.workspace.layers();
    let (owner, work) = (contents.workspace.owner(), contents.workspace.next_work());
    // Then they are this user's already.
    let owner = owner.filter(|_| !layers_by_path);
    let writable = |host: &Path, place: &Path, layers: &[Arc<Layer>]| match layers.is_empty() {
        true => shown(host, place, Access::Writable),
        false => Entry::Layered(overlay(host, place, layers, owner, work.clone())),
    };
    root.push(writable(hosts.temporary, inside.temporary, of_temporary));
    root.push(Entry::Link { target: inside.temporary.to_owned(), place: "/var/tmp".into() });
    root.push(writable(hosts.home, inside.home, of_home));
    root.push(writable(hosts.workspace, inside.workspace, of_workspace));
    root.extend(of_grader(contents.workspace));
    let sessions = contents.workspace.sessions();
    root.push(shown(sessions, Path::new(SESSIONS), Access::ReadOnly));
    root.extend(provided.entries());
    root
}

/// The overlay of a slot's directory above these layers, the lowest first.
fn overlay(
    writable: &Path,
    place: &Path,
    layers: &[Arc<Layer>],
    owner: Option<CommandUser>,
    work: String,
) -> Overlay {
    let hold = |layer: &Layer| match owner.map(CommandUser::map) {
        None => Hold::ByPath,
        Some(map) if map.outside == layer.owner() => Hold::HandedOver(None),
        // It is another slot's.
        Some(map) => Hold::HandedOver(Some(IdMap { inside: layer.owner(), ..map })),
    };
    let own = if owner.is_some() { Hold::HandedOver(None) } else { Hold::ByPath };
    let tree = |host: &Path, hold| Tree { host: host.to_owned(), hold };
    Overlay {
        place: place.to_owned(),
        lower: layers.iter().map(|layer| tree(layer.path(), hold(layer))).collect(),
        writable: tree(writable, own),
        work,
    }
}

/// What a grader finds beside the files that it judges, if the workspace is one's.
fn of_grader(workspace: &Workspace) -> Vec<Entry> {
    let Some(Grading { files, home, files_at, .. }) = workspace.grading() else {
        return Vec::new();
    };
    let shown = |host: &Path, place: &Path, access| Entry::Shown {
        host: host.to_owned(),
        place: place.to_owned(),
        access,
    };
    vec![shown(home, Path::new(GRADER), Access::Writable), shown(files, files_at, Access::ReadOnly)]
}
