//! Looks for files in the layers of an image as an overlay of them shows them, without one.
//!
//! What is in the layers is hostile: links lead to places in the same layers only, every entry is
//! opened by its name in a held directory, and the number of steps is bounded. Nothing is opened
//! but directories and regular files, so that nothing can block.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// How many entries are looked at on the way to one: each link may lead to a path of many.
const MOST_STEPS: usize = 256;

const OPEN_DIR: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The layers of an image, held.
pub(super) struct Merged {
    /// The directory that `/` is in each of them, the topmost first.
    roots: Vec<Dir>,
}

/// What a directory is in one layer.
struct Dir {
    /// The layer's number: 0 is the topmost.
    layer: usize,
    fd: OwnedFd,
}

/// An entry.
struct Found {
    /// The directory of the layer that it is in.
    dir: OwnedFd,
    name: OsString,
    mode: u32,
    id: FileId,
}

/// Which file it is, and whether it was changed since: what has this id has the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    size: i64,
    changed: (i64, u64),
}

/// What a name leads to.
enum Entry {
    Nothing,
    /// A directory: what it is in each layer that shows through, the topmost first.
    Directory(Vec<Dir>),
    Link(OsString),
    Other(Found),
}

impl Merged {
    /// That of the layers at these paths, the lowest first. Blocks on a file system call each.
    ///
    /// # Errors
    /// The first that cannot be opened.
    pub(super) fn open<'a>(layers: impl DoubleEndedIterator<Item = &'a Path>) -> io::Result<Self> {
        let open = |(layer, path)| {
            let fd = rustix::fs::open(path, OPEN_DIR, Mode::empty())?;
            Ok(Dir { layer, fd })
        };
        Ok(Self { roots: layers.rev().enumerate().map(open).collect::<io::Result<_>>()? })
    }

    /// The text of the regular file at an absolute path, if there is one of at most `most` bytes.
    pub(super) fn text(&self, path: &str, most: u64) -> Option<String> {
        let found = self.regular(path)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            File::from(rustix::fs::openat(&found.dir, &found.name, flags, Mode::empty()).ok()?);
        let about = file.metadata().ok()?;
        if !about.is_file() || about.len() > most {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The regular file that can be executed at an absolute path, if there is one.
    pub(super) fn program(&self, path: &str) -> Option<FileId> {
        self.regular(path).filter(|found| found.mode & 0o111 != 0).map(|found| found.id)
    }

    /// Whether a directory is at an absolute path.
    pub(super) fn is_directory(&self, path: &str) -> bool {
        matches!(self.find(path), Ok((_, Entry::Directory(_))))
    }

    /// In which layers the directory at an absolute path is, of those that show through, the
    /// topmost first (whose number is 0); and its path in each of them. `None` where something else
    /// is there, and no layer where nothing is.
    pub(super) fn directory(&self, path: &str) -> Option<(PathBuf, Vec<usize>)> {
        match self.find(path) {
            Ok((at, Entry::Directory(dirs))) => {
                Some((at, dirs.into_iter().map(|dir| dir.layer).collect()))
            }
            Ok((_, Entry::Nothing)) => Some((PathBuf::new(), Vec::new())),
            _ => None,
        }
    }

    fn regular(&self, path: &str) -> Option<Found> {
        match self.find(path) {
            Ok((_, Entry::Other(found))) if FileType::from_raw_mode(found.mode).is_file() => {
                Some(found)
            }
            _ => None,
        }
    }

    /// With the path of a directory beneath the root, on which there is no link.
    fn find(&self, path: &str) -> Result<(PathBuf, Entry), Errno> {
        let names = |path: &OsStr| -> Vec<OsString> {
            let parts = path.as_bytes().split(|byte| *byte == b'/');
            let parts = parts.filter(|part| !part.is_empty() && *part != b".");
            parts.map(|part| OsStr::from_bytes(part).to_owned()).collect()
        };
        let mut todo: VecDeque<_> = names(path.as_ref()).into();
        // Each directory on the way, below the root.
        let mut way: Vec<(OsString, Vec<Dir>)> = Vec::new();
        for _ in 0..MOST_STEPS {
            let Some(name) = todo.pop_front() else {
                let path = way.iter().map(|(name, _)| name).collect();
                let dirs = way.pop().map(|(_, dirs)| dirs).unwrap_or_default();
                return Ok((path, Entry::Directory(dirs)));
            };
            if name == ".." {
                way.pop();
                continue;
            }
            match entry(way.last().map_or(&self.roots, |(_, dirs)| dirs), &name)? {
                Entry::Directory(dirs) => way.push((name, dirs)),
                Entry::Link(target) => {
                    if target.as_bytes().starts_with(b"/") {
                        way.clear();
                    }
                    names(&target).into_iter().rev().for_each(|name| todo.push_front(name));
                }
                other if todo.is_empty() => return Ok((PathBuf::new(), other)),
                _ => return Ok((PathBuf::new(), Entry::Nothing)),
            }
        }
        Err(Errno::LOOP)
    }
}

/// What a name is in a directory, of which these are what it is in layers.
fn entry(dirs: &[Dir], name: &OsStr) -> Result<Entry, Errno> {
    let mut found = Vec::new();
    for Dir { layer, fd: dir } in dirs {
        let about = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => about,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let kind = FileType::from_raw_mode(about.st_mode);
        if kind == FileType::Directory {
            let opened = rustix::fs::openat(dir, name, OPEN_DIR, Mode::empty())?;
            let hides = is_opaque(&opened);
            found.push(Dir { layer: *layer, fd: opened });
            if hides {
                break;
            }
            continue;
        }
        // It hides what is below, and a directory above hides it.
        if !found.is_empty() || (kind == FileType::CharacterDevice && about.st_rdev == 0) {
            break;
        }
        if kind == FileType::Symlink {
            let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
            return Ok(Entry::Link(OsString::from_vec(target.into_bytes())));
        }
        let dir = dir.try_clone().map_err(|_| Errno::MFILE)?;
        let id = FileId {
            device: about.st_dev,
            inode: about.st_ino,
            size: about.st_size,
            changed: (about.st_ctime, about.st_ctime_nsec),
        };
        return Ok(Entry::Other(Found { dir, name: name.to_owned(), mode: about.st_mode, id }));
    }
    Ok(if found.is_empty() { Entry::Nothing } else { Entry::Directory(found) })
}

/// Whether a directory hides those of its name in the layers below.
fn is_opaque(dir: &OwnedFd) -> bool {
    // Of what is only held no attributes are given.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::openat(dir.as_fd(), c".", flags, Mode::empty()) else {
        return false;
    };
    let mut value = [0u8; 4];
    let read = rustix::fs::fgetxattr(&dir, c"user.overlay.opaque", &mut value);
    matches!(read, Ok(length) if value[..length] == *b"y")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn files_are_found_as_an_overlay_shows_them() {
        let base = tempfile::tempdir().unwrap();
        let at = |path: &str| base.path().join(path);
        let file = |path: &str, text: &str| {
            std::fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            std::fs::write(at(path), text).unwrap();
        };
        file("0/etc/passwd", "low");
        file("1/etc/passwd", "high");
        file("0/etc/group", "low");
        file("0/usr/bin/sh", "#!");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(at("0/usr/bin/sh"), mode).unwrap();
        symlink("usr/bin", at("1/bin")).unwrap();
        symlink("/../../../bin/sh", at("1/etc/shell")).unwrap();
        symlink("/etc/loop", at("1/etc/loop")).unwrap();
        symlink("/proc/self/root/etc/passwd", at("1/etc/out")).unwrap();
        file("0/gone/file", "low");
        file("1/gone/other", "high");
        let opaque = File::open(at("1/gone")).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(&opaque, c"user.overlay.opaque", b"y", flags).unwrap();
        file("0/hidden", "low");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("1/hidden"),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .unwrap();
        file("0/over/file", "low");
        file("1/over", "a file");
        let layers = [at("0"), at("1")];
        let merged = Merged::open(layers.iter().map(|path| &**path)).unwrap();
        let text = |path| merged.text(path, 100);
        assert_eq!(text("/etc/passwd").as_deref(), Some("high"));
        assert_eq!(text("/etc/group").as_deref(), Some("low"));
        assert_eq!(text("/gone/other").as_deref(), Some("high"));
        let none = ["/gone/file", "/hidden", "/over/file", "/etc/loop", "/etc/out", "/etc", "/x"];
        for path in none {
            assert_eq!(text(path), None, "{path}");
        }
        assert_eq!(merged.text("/etc/group", 2), None);
        for path in ["/usr/bin/sh", "/bin/sh", "/etc/shell", "/bin/../bin/./sh"] {
            assert!(merged.program(path).is_some(), "{path}");
        }
        for path in ["/etc/passwd", "/etc/loop"] {
            assert_eq!(merged.program(path), None, "{path}");
        }
        let before = merged.program("/bin/sh");
        file("0/usr/bin/sh", "#!/other");
        assert_ne!(merged.program("/bin/sh"), before);
        assert!(merged.is_directory("/bin") && !merged.is_directory("/over"));
        let directory = |path: &str| merged.directory(path);
        assert_eq!(directory("/etc"), Some(("etc".into(), vec![0, 1])));
        assert_eq!(directory("/bin/.."), Some(("usr".into(), vec![1])));
        assert_eq!(directory("/gone"), Some(("gone".into(), vec![0])), "it is opaque");
        assert_eq!(directory("/nowhere/x"), Some((PathBuf::new(), vec![])));
        assert_eq!(directory("/etc/passwd"), None);
    }
}
