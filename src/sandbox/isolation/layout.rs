//! What of the host a sandbox shares, where, and whose it is.

use std::path::{Path, PathBuf};

use super::Contents;
use crate::sandbox::etc::{self, RESOLV_CONF};
use crate::sandbox::jail::{Access, Entry};
use crate::sandbox::shell::Shell;
use crate::sandbox::user::CommandUser;

/// Entries of the root directory that are shared read-only where the host has them.
const ROOT_ENTRIES: [&str; 6] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// What of the host's file system a sandbox shares, and who runs in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct HostLayout {
    /// Entries of the root directory; the target where the entry is a symbolic link.
    pub(super) root: Vec<(PathBuf, Option<PathBuf>)>,
    /// The shell that runs commands.
    pub(in crate::sandbox) shell: Shell,
    /// The name of the user that commands run as.
    pub(in crate::sandbox) user: String,
}

impl HostLayout {
    /// Looks at the host. Blocks on a few file system calls.
    pub(in crate::sandbox) fn detect(user: Option<CommandUser>) -> Self {
        let root = ROOT_ENTRIES
            .iter()
            .map(PathBuf::from)
            .filter_map(|path| {
                let kind = path.symlink_metadata().ok()?.file_type();
                let target = kind.is_symlink().then(|| path.read_link().ok()).flatten();
                Some((path, target))
            })
            .collect();
        Self {
            root,
            shell: Shell::detect(),
            user: user_name(
                &std::fs::read_to_string("/etc/passwd").unwrap_or_default(),
                user.map_or_else(rustix::process::getuid, CommandUser::uid).as_raw(),
            ),
        }
    }
}

/// Where a slot's files are inside.
pub(super) const WORKSPACE: &str = "/workspace";

/// The root directory of a jail. Pure.
///
/// What can be written to: the workspace and `/tmp`, which are the slot's, and the directories
/// that are the jail's own and go with it, `/dev/shm` and the root directory among them.
pub(super) fn root(layout: &HostLayout, etc: Option<&Path>, contents: &Contents<'_>) -> Vec<Entry> {
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
            root.extend(over.map(|place| Entry::Over { place: place.into() }));
        }
        None => root.push(Entry::Directory { place: "/etc".into() }),
    }
    root.push(Entry::Directory { place: "/run".into() });
    let writable = |host: &Path, place| shown(host, Path::new(place), Access::Writable);
    root.push(writable(contents.workspace.temporary(), "/tmp"));
    root.push(Entry::Link { target: "/tmp".into(), place: "/var/tmp".into() });
    root.push(writable(contents.workspace.path(), WORKSPACE));
    let more = contents.shown.iter();
    root.extend(more.map(|(host, place)| shown(host, place, Access::ReadOnly)));
    root
}

/// The name of user `uid` in a file like `/etc/passwd`; `user` where it has none.
fn user_name(passwd: &str, uid: u32) -> String {
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid))
        .map_or_else(|| "user".to_owned(), |fields| fields[0].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_name_is_looked_up_by_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nme:x:1000:1000::/home/me:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000), "me");
        assert_eq!(user_name(passwd, 0), "root");
        assert_eq!(user_name(passwd, 7), "user");
    }
}
