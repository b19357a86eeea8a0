//! How much a slot's directories take up, counted without leaving them. For the watch.
//!
//! What is in them is an attacker's: symbolic links are not followed, mounts not entered, and a
//! tree that is too large, too deep, or closed to us is counted as far as it goes and told to be
//! incomplete.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

/// No more entries than this are looked at.
const MOST_ENTRIES: u64 = 4_000_000;
/// Directories are entered so far down. Each on the way is held open.
const DEEPEST: usize = 128;
/// How long one look may take.
const LONGEST: Duration = Duration::from_secs(5);
/// What an entry takes at least: its inode and its name.
const LEAST: u64 = 4096;

const OPEN_DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// What a look found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Bytes of the file system.
    pub(super) bytes: u64,
    /// Whether not everything could be looked at.
    pub(super) incomplete: bool,
}

/// Counts what is in these directories. Blocks for the file system, up to 5 s.
pub(super) fn size<'a>(directories: impl IntoIterator<Item = &'a Path>) -> Size {
    let mut count = Count {
        size: Size::default(),
        entries: 0,
        linked: HashSet::new(),
        deadline: Instant::now() + LONGEST,
    };
    for path in directories {
        match rustix::fs::open(path, OPEN_DIR, Mode::empty()) {
            Ok(directory) => count.tree(directory),
            Err(_) => count.size.incomplete = true,
        }
    }
    count.size
}

/// Bytes that the file system of this path has left.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let system = rustix::fs::statvfs(path).ok()?;
    Some(system.f_bfree.saturating_mul(system.f_frsize))
}

struct Count {
    size: Size,
    entries: u64,
    /// Files with several names, which count once.
    linked: HashSet<(u64, u64)>,
    deadline: Instant,
}

impl Count {
    fn tree(&mut self, root: OwnedFd) {
        let Ok(device) = rustix::fs::fstat(&root).map(|stat| stat.st_dev) else {
            self.size.incomplete = true;
            return;
        };
        let mut open = Vec::new();
        self.enter(root, &mut open);
        while let Some((directory, entries)) = open.last_mut() {
            let Some(entry) = entries.next() else {
                open.pop();
                continue;
            };
            let Ok(entry) = entry else {
                self.size.incomplete = true;
                open.pop();
                continue;
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.entries += 1;
            let out_of_time = self.entries.is_multiple_of(1024) && Instant::now() >= self.deadline;
            if self.entries >= MOST_ENTRIES || out_of_time {
                self.size.incomplete = true;
                return;
            }
            let Ok(stat) = rustix::fs::statat(&*directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if stat.st_dev != device {
                continue;
            }
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let is_linked = stat.st_nlink > 1 && !is_directory;
            if is_linked && !self.linked.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
            self.size.bytes += blocks.saturating_mul(512).max(LEAST);
            if !is_directory {
                continue;
            }
            let name = name.to_owned();
            match rustix::fs::openat(directory.as_fd(), name, OPEN_DIR, Mode::empty()) {
                Ok(child) if open.len() < DEEPEST => self.enter(child, &mut open),
                _ => self.size.incomplete = true,
            }
        }
    }

    fn enter(&mut self, directory: OwnedFd, open: &mut Vec<(OwnedFd, Dir)>) {
        match Dir::read_from(&directory) {
            Ok(entries) => open.push((directory, entries)),
            Err(_) => self.size.incomplete = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn blocks_are_counted_once_and_links_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("big"), vec![1; 4 << 20]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/one"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(at("a/b/one"), at("two")).unwrap();
        std::os::unix::fs::symlink(outside.path(), at("link")).unwrap();
        let sparse = fs::File::create(at("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let size = size([dir.path()]);
        assert!(!size.incomplete);
        assert!((1 << 20..2 << 20).contains(&size.bytes), "{size:?}");
    }

    #[test]
    fn empty_files_and_deep_trees_are_something() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..256 {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        assert!(size([dir.path()]).bytes >= 256 * LEAST);
        let deep = dir.path().join("d/".repeat(DEEPEST + 5));
        fs::create_dir_all(deep).unwrap();
        assert!(size([dir.path()]).incomplete);
        assert!(size([Path::new("/nonexistent")]).incomplete);
        assert!(free_bytes(dir.path()).is_some());
    }
}
