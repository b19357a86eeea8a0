//! Where the groups of this process are: one tree of version 2, or one of version 1 for each
//! controller, or for some that are mounted together. Pure.

use std::path::{Path, PathBuf};

/// The version of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// All controllers in one tree.
    Two,
    /// A tree for each.
    One,
}

/// A tree that is mounted here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// Its controllers, of version 1.
    pub(super) controllers: Vec<String>,
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// The group of this process.
    pub(super) own: PathBuf,
}

/// The trees that are mounted, by `/proc/self/mountinfo` and `/proc/self/cgroup`. One in which this
/// process is in no group that can be seen is left out.
pub(super) fn mounted(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    mountinfo.lines().filter_map(|line| of_mount(line, own)).collect()
}

impl Hierarchy {
    /// Whether it has this controller, if it is of version 1.
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// A line has a number, the parent's, the device, the root within the file system, the place, the
/// options, further fields up to a `-`, the type, the source and the file system's options.
fn of_mount(line: &str, own: &str) -> Option<Hierarchy> {
    let (of_mount, of_system) = line.split_once(" - ")?;
    let mut fields = of_mount.split(' ');
    let (root, place) = (unescaped(fields.nth(3)?), unescaped(fields.next()?));
    let mut fields = of_system.split(' ');
    let (kind, options) = (fields.next()?, fields.nth(1)?);
    let (version, controllers) = match kind {
        "cgroup2" => (Version::Two, Vec::new()),
        "cgroup" => {
            let names = options.split(',').filter(|name| !matches!(*name, "rw" | "ro"));
            (Version::One, names.map(str::to_owned).collect())
        }
        _ => return None,
    };
    let group = own.lines().find_map(|line| {
        let (names, group) = line.split_once(':')?.1.split_once(':')?;
        let is_this = match version {
            Version::Two => names.is_empty(),
            Version::One => names.split(',').any(|name| controllers.iter().any(|one| one == name)),
        };
        is_this.then_some(group)
    })?;
    // A container sees its own group as the root, and may be told of it by its path outside.
    let below =
        Path::new(group).strip_prefix(&root).or_else(|_| Path::new(group).strip_prefix("/"));
    let own = below.ok().filter(|below| !below.starts_with(".."))?;
    let mount = PathBuf::from(place);
    Some(Hierarchy { version, controllers, own: mount.join(own), mount })
}

/// Spaces, tabs, newlines and backslashes are octal there.
fn unescaped(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.into_iter().fold(text.to_owned(), |text, (escape, meant)| text.replace(escape, meant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(mountinfo: &str, own: &str) -> Vec<(Version, Vec<String>, PathBuf)> {
        let found = mounted(mountinfo, own).into_iter();
        found.map(|one| (one.version, one.controllers, one.own)).collect()
    }

    #[test]
    fn the_trees_are_found_and_this_processs_place_in_them() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "9:name=systemd:/s\n4:memory:/a/b\n2:cpu,cpuacct:/\n0::/\n";
        let of = |version, names: &[&str], path: &str| {
            (version, names.iter().map(|name| (*name).to_owned()).collect(), PathBuf::from(path))
        };
        assert_eq!(
            found(mounts, own),
            [
                of(Version::One, &["cpu", "cpuacct"], "/sys/fs/cgroup/cpu,cpuacct/"),
                of(Version::One, &["memory"], "/sys/fs/cgroup/memory/a/b"),
                of(Version::One, &["name=systemd"], "/sys/fs/cgroup/systemd/s"),
                of(Version::Two, &[], "/sys/fs/cgroup/unified/"),
            ]
        );
        assert_eq!(found(mounts, "5:pids:/x\n"), []);
    }

    #[test]
    fn a_container_is_in_what_it_sees_of_the_tree() {
        let mount =
            |root: &str| format!("30 29 0:26 {root} /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
        let own =
            |root: &str, own: &str| mounted(&mount(root), own).pop().map(|hierarchy| hierarchy.own);
        assert_eq!(own("/docker/x", "0::/docker/x\n"), Some("/sys/fs/cgroup".into()));
        assert_eq!(own("/docker/x", "0::/docker/x/init\n"), Some("/sys/fs/cgroup/init".into()));
        assert_eq!(own("/", "0::/user.slice/a b\n"), Some("/sys/fs/cgroup/user.slice/a b".into()));
        assert_eq!(own("/", "0::/../elsewhere\n"), None);
        assert_eq!(unescaped("/a\\040b"), "/a b");
    }
}
