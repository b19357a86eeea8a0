//! How much a slot's directories take up, counted without leaving them. For the watch.
//!
//! What is in them is an attacker's: symbolic links are not followed, mounts not entered, and a
//! tree that is too large, too deep, or closed to us is counted as far as it goes and told to be
//! incomplete.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::thread::CapabilitySet;

use crate::config::SlotLimits;
use crate::sandbox::user::with_rights;

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

/// What files take up, and how many they are; or how much there may be of both.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Bytes of the file system.
    pub(super) bytes: u64,
    /// Files, directories and links.
    pub(super) files: u64,
}

impl Usage {
    /// How much there may be of both, where one of them is limited.
    pub(super) fn most(limits: &SlotLimits) -> Option<Self> {
        let is_limited = limits.workspace_bytes.is_some() || limits.files.is_some();
        is_limited.then(|| Self {
            bytes: limits.workspace_bytes.unwrap_or(u64::MAX),
            files: limits.files.unwrap_or(u64::MAX),
        })
    }

    /// Whether there is more of something than there may be.
    pub(super) fn exceeds(self, limit: Self) -> bool {
        self.bytes > limit.bytes || self.files > limit.files
    }

    /// Whether there is more of something that there may not be more of than it has, than there was
    /// before.
    pub(super) fn exceeds_more(self, limit: Self, before: Self) -> bool {
        (self.bytes > limit.bytes && self.bytes > before.bytes)
            || (self.files > limit.files && self.files > before.files)
    }

    /// What is left when this is taken away; nothing where it is more.
    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            files: self.files.saturating_sub(other.files),
        }
    }

    /// The larger of each.
    fn max(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), files: self.files.max(other.files) }
    }

    /// With so many bytes more.
    pub(super) fn with_bytes(self, more: u64) -> Self {
        Self { bytes: self.bytes.saturating_add(more), ..self }
    }
}

/// What a look found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// What was counted.
    pub(super) usage: Usage,
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

/// How many bytes these directories of slots take up on the disk; nothing where not all could be
/// counted. Blocks for the file system, up to 5 s.
pub(crate) fn bytes_on_disk(directories: &[PathBuf]) -> Option<u64> {
    let size = size_with_rights(directories);
    (!size.incomplete).then_some(size.usage.bytes)
}

/// As [`size`], on a thread that may be a user from whom a command can hide directories of its own.
pub(super) fn size_with_rights(directories: &[PathBuf]) -> Size {
    let count = || size(directories.iter().map(PathBuf::as_path));
    with_rights(CapabilitySet::DAC_READ_SEARCH, count).unwrap_or_else(|_| count())
}

impl Size {
    /// What is taken to be used, besides so many bytes without a name. Who makes a tree that cannot
    /// be counted is taken to have used what the file system has lost.
    pub(super) fn used(self, nameless: u64, lost: Usage) -> Usage {
        let counted = self.usage.with_bytes(nameless);
        if self.incomplete { counted.max(lost) } else { counted }
    }
}

/// What the file system of this path has left. Some have no number of files.
pub(super) fn free(path: &Path) -> Option<Usage> {
    let system = rustix::fs::statvfs(path).ok()?;
    let bytes = system.f_bfree.saturating_mul(system.f_frsize);
    Some(Usage { bytes, files: system.f_ffree })
}

/// What the file systems in memory take up that this sandbox has of its own: its root and
/// `/dev/shm`. Nothing where that may not be looked at.
pub(super) fn bytes_in_memory(init: i32) -> u64 {
    let used = |place: &str| {
        let system = rustix::fs::statfs(format!("/proc/{init}/root{place}")).ok()?;
        let blocks = (system.f_blocks as u64).saturating_sub(system.f_bfree as u64);
        let is_in_memory = system.f_type as i64 == TMPFS;
        is_in_memory.then(|| blocks.saturating_mul(system.f_bsize as u64))
    };
    ["/", "/dev/shm"].into_iter().filter_map(used).sum()
}

/// The kernel's number of this kind of file system.
const TMPFS: i64 = 0x0102_1994;

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
            self.size.usage.bytes += blocks.saturating_mul(512).max(LEAST);
            self.size.usage.files += 1;
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
        assert!((1 << 20..2 << 20).contains(&size.usage.bytes), "{size:?}");
        assert_eq!(size.usage.files, 5, "two directories, two files, a link");
    }

    #[test]
    fn what_cannot_be_counted_is_estimated() {
        let usage = |bytes, files| Usage { bytes, files };
        let size = |incomplete| Size { usage: usage(10, 3), incomplete };
        assert_eq!(size(false).used(5, usage(100, 9)), usage(15, 3));
        assert_eq!(size(true).used(5, usage(100, 9)), usage(100, 9));
        assert_eq!(size(true).used(200, usage(100, 1)), usage(210, 3));
    }

    #[test]
    fn empty_files_and_deep_trees_are_something() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..256 {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        let found = size([dir.path()]).usage;
        assert!(found.bytes >= 256 * LEAST && found.files == 256, "{found:?}");
        let deep = dir.path().join("d/".repeat(DEEPEST + 5));
        fs::create_dir_all(deep).unwrap();
        assert!(size([dir.path()]).incomplete);
        assert!(size([Path::new("/nonexistent")]).incomplete);
        assert!(free(dir.path()).is_some());
    }
}
