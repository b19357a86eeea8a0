//! What of the host a sandbox shares, where, and whose it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Contents;
use crate::sandbox::etc::{self, RESOLV_CONF};
use crate::sandbox::identity::Identity;
use crate::sandbox::jail::{Access, Entry};
use crate::sandbox::provided::{Provided, Shown};
use crate::sandbox::shell::{Places, Shell};

/// Entries of the root directory that are shared read-only where the host has them.
const ROOT_ENTRIES: [&str; 6] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// What of the host's file system a sandbox shares, and who runs in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct HostLayout {
    /// Entries of the root directory; the target where the entry is a symbolic link.
    pub(super) root: Vec<(PathBuf, Option<PathBuf>)>,
    /// The shell that runs commands.
    pub(in crate::sandbox) shell: Shell,
    /// Who commands are.
    pub(in crate::sandbox) identity: Arc<Identity>,
}

impl HostLayout {
    /// Looks at the host. Blocks on a few file system calls.
    pub(in crate::sandbox) fn detect(identity: Arc<Identity>) -> Self {
        let root = ROOT_ENTRIES
            .iter()
            .map(PathBuf::from)
            .filter_map(|path| {
                let kind = path.symlink_metadata().ok()?.file_type();
                let target = kind.is_symlink().then(|| path.read_link().ok()).flatten();
                Some((path, target))
            })
            .collect();
        Self { root, shell: Shell::detect(), identity }
    }

    /// What binds have to know of it, in sandboxes whose slot's directories are there.
    pub(super) fn shown<T>(&self, own: Places<'_>, look: impl FnOnce(&Shown<'_>) -> T) -> T {
        let own_path = |path: &Path| (path.to_owned(), path.to_owned());
        let mut directories: Vec<_> = ["/usr", "/etc"]
            .into_iter()
            .chain(etc::BOUND)
            .map(|path| own_path(Path::new(path)))
            .collect();
        let mut links = Vec::new();
        for (place, target) in &self.root {
            match target {
                Some(target) => links.push((place.clone(), target.clone())),
                None => directories.push(own_path(place)),
            }
        }
        look(&Shown { directories, links: &links, own })
    }
}

/// The root directory of a jail. Pure.
///
/// What can be written to: the workspace, `/tmp` and the home directory, which are the slot's, and
/// the directories that are the jail's own and go with it, `/dev/shm` and the root directory among
/// them.
pub(super) fn root(
    layout: &HostLayout,
    provided: &Provided,
    etc: Option<&Path>,
    contents: &Contents<'_>,
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
            root.push(shown(etc, Path::new("/etc"), Access::ReadOnly));
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
    root.push(Entry::Directory { place: "/run".into() });
    let (hosts, inside) = (contents.workspace.on_host(), contents.workspace.inside());
    let writable = |host: &Path, place: &Path| shown(host, place, Access::Writable);
    root.push(writable(hosts.temporary, inside.temporary));
    root.push(Entry::Link { target: inside.temporary.to_owned(), place: "/var/tmp".into() });
    root.push(writable(hosts.home, inside.home));
    root.push(writable(hosts.workspace, inside.workspace));
    let more = contents.shown.iter();
    root.extend(more.map(|(host, place)| shown(host, place, Access::ReadOnly)));
    root.extend(provided.entries());
    root
}
