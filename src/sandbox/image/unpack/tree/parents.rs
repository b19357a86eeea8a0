//! Directories of a layer: found by their names, and made as the layers below have them.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::LayerError;
use super::super::entries::Entry;
use super::attributes::Attributes;
use super::whiteouts::{is_opaque, set_opaque};
use super::{MAX_PATH, Tree, failed, is_nothing, join, wrong};
use crate::sandbox::image::StoredIds;

/// Links followed for one name, as many as the kernel does.
const MAX_LINKS: usize = 40;

const HOLD: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
pub(super) const HOLD_DIR: OFlags = HOLD.union(OFlags::DIRECTORY);
pub(super) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// A directory of the layer, and its path from the layer's root.
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    pub(super) path: Vec<u8>,
}

/// What the layers below have at a path.
pub(super) enum Below {
    Nothing,
    Directory(Attributes),
    Symlink(Vec<u8>),
    Other,
}

impl Tree<'_> {
    /// Keeps the directory of an entry for the next one. What the entry did in it changes nothing
    /// on the way to it.
    pub(super) fn keep(&mut self, names: &[&[u8]], directory: Directory) {
        self.last = Some(directory).filter(|directory| directory.path == names.join(&b'/'));
    }

    /// The directory that an entry goes into, made where it is missing.
    pub(super) fn parent(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
    ) -> Result<Directory, LayerError> {
        let made = self.find(entry, parents, true)?;
        made.ok_or_else(|| wrong(entry, "is in no directory"))
    }

    /// The directory of these names in the layer. One that is missing is made, if `make` says so.
    pub(super) fn find(
        &mut self,
        entry: &Entry,
        names: &[&[u8]],
        make: bool,
    ) -> Result<Option<Directory>, LayerError> {
        let joined = names.join(&b'/');
        // Not for longer: the next entry may change what the name means.
        if let Some(last) = self.last.take()
            && last.path == joined
        {
            return Ok(Some(last));
        }
        let root = || {
            rustix::io::fcntl_dupfd_cloexec(self.place.root, 0)
                .map_err(|errno| failed(entry, "open", errno))
        };
        if joined.is_empty() {
            return Ok(Some(Directory { fd: root()?, path: joined }));
        }
        let path = Path::new(OsStr::from_bytes(&joined));
        let no_mode = Mode::empty();
        match rustix::fs::openat2(self.place.root, path, HOLD_DIR, no_mode, BENEATH) {
            Ok(fd) => return Ok(Some(Directory { fd, path: joined })),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(errno) => return Err(failed(entry, "open the directory of", errno)),
        }
        let mut directory = Directory { fd: root()?, path: Vec::new() };
        for name in self.resolved(entry, names)? {
            let path = join(&directory.path, &name);
            let os_name = OsStr::from_bytes(&name);
            let opened = rustix::fs::openat(&directory.fd, os_name, HOLD_DIR, Mode::empty());
            let fd = match opened {
                Ok(fd) => fd,
                // A whiteout: what is made there hides what is below.
                Err(Errno::NOENT | Errno::NOTDIR) if make => {
                    self.implicit(entry, &directory, &path, os_name)?
                }
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(errno) => return Err(failed(entry, "open the directory of", errno)),
            };
            directory = Directory { fd, path };
        }
        Ok(Some(directory))
    }

    /// Makes a directory that the layer does not name, as the layers below have it.
    fn implicit(
        &mut self,
        entry: &Entry,
        parent: &Directory,
        path: &[u8],
        name: &OsStr,
    ) -> Result<OwnedFd, LayerError> {
        self.report.depends_on_below = true;
        let names: Vec<_> = path.split(|&byte| byte == b'/').map(<[u8]>::to_vec).collect();
        let below = match self.here(entry, &names)? {
            Looked::Hidden => Below::Nothing,
            _ => self.below(entry, &names)?,
        };
        let hides = self.make_room(entry, parent, name.as_bytes(), true)?;
        let failed = |errno| failed(entry, "create the directory of", errno);
        rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU).map_err(failed)?;
        let fd = rustix::fs::openat(&parent.fd, name, HOLD_DIR, Mode::empty()).map_err(failed)?;
        if hides {
            set_opaque(entry, fd.as_fd())?;
        }
        let attributes = match below {
            Below::Directory(attributes) => attributes,
            _ => Attributes::IMPLICIT,
        };
        self.note_directory(path.to_vec(), attributes)?;
        Ok(fd)
    }

    /// The names of a directory of the image without links: followed in this layer, and in those
    /// below where this one has nothing.
    pub(super) fn resolved(
        &mut self,
        entry: &Entry,
        names: &[&[u8]],
    ) -> Result<Vec<Vec<u8>>, LayerError> {
        let mut todo: VecDeque<Vec<u8>> = names.iter().map(|name| name.to_vec()).collect();
        let (mut done, mut links): (Vec<Vec<u8>>, usize) = (Vec::new(), 0);
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                done.pop();
                continue;
            }
            done.push(name);
            if done.iter().map(|name| name.len() + 1).sum::<usize>() > MAX_PATH {
                return Err(wrong(entry, "has a path that is too long"));
            }
            let target = match self.here(entry, &done)? {
                Looked::Found(Below::Symlink(target)) => target,
                Looked::Found(Below::Other) => {
                    return Err(wrong(entry, "is in something that is no directory"));
                }
                Looked::Found(_) | Looked::Hidden => continue,
                Looked::Missing => match self.below(entry, &done)? {
                    Below::Symlink(target) => {
                        self.report.depends_on_below = true;
                        target
                    }
                    _ => continue,
                },
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(wrong(entry, "is in a directory whose links have no end"));
            }
            match target.starts_with(b"/") {
                true => done.clear(),
                false => _ = done.pop(),
            }
            let parts = target.split(|&byte| byte == b'/').filter(|part| !is_nothing(part));
            parts.rev().for_each(|part| todo.push_front(part.to_vec()));
        }
        Ok(done)
    }

    /// What this layer has there.
    pub(super) fn here(&self, entry: &Entry, path: &[Vec<u8>]) -> Result<Looked, LayerError> {
        look(self.place.root, path, self.place.ids)
            .map_err(|errno| failed(entry, "look at the directory of", errno))
    }

    /// What the layers below have there, whatever directories of this one hide.
    pub(super) fn below(&self, entry: &Entry, path: &[Vec<u8>]) -> Result<Below, LayerError> {
        if self.report.hides_all_below {
            return Ok(Below::Nothing);
        }
        for layer in self.place.below.iter().rev() {
            let root = rustix::fs::open(layer, HOLD_DIR, Mode::empty());
            match root.and_then(|root| look(root.as_fd(), path, self.place.ids)) {
                Ok(Looked::Missing) => {}
                Ok(Looked::Hidden) => return Ok(Below::Nothing),
                Ok(Looked::Found(found)) => return Ok(found),
                Err(errno) => return Err(failed(entry, "look below", errno)),
            }
        }
        Ok(Below::Nothing)
    }
}

/// What a layer has at a path.
pub(super) enum Looked {
    Found(Below),
    /// It hides what the layers below it have.
    Hidden,
    Missing,
}

/// Looks at a path in a layer, following nothing.
fn look(root: BorrowedFd<'_>, path: &[Vec<u8>], ids: StoredIds) -> Result<Looked, Errno> {
    let mut at = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    // A directory that hides what is below hides it from all directories in it.
    let mut hides = false;
    for (n, name) in path.iter().enumerate() {
        hides = hides || is_opaque(at.as_fd());
        let next = match rustix::fs::openat(&at, OsStr::from_bytes(name), HOLD, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) if hides => return Ok(Looked::Hidden),
            Err(Errno::NOENT) => return Ok(Looked::Missing),
            Err(errno) => return Err(errno),
        };
        let about = rustix::fs::fstat(&next)?;
        let is_last = n + 1 == path.len();
        let found = match FileType::from_raw_mode(about.st_mode) {
            FileType::CharacterDevice => return Ok(Looked::Hidden),
            FileType::Directory if !is_last => {
                at = next;
                continue;
            }
            _ if !is_last => return Ok(Looked::Hidden),
            FileType::Directory => Below::Directory(Attributes {
                mode: about.st_mode & 0o7777,
                uid: ids.of_disk(about.st_uid),
                gid: ids.of_disk(about.st_gid),
                mtime: (about.st_mtime, u32::try_from(about.st_mtime_nsec).unwrap_or(0)),
            }),
            FileType::Symlink => {
                Below::Symlink(rustix::fs::readlinkat(&next, c"", Vec::new())?.into_bytes())
            }
            _ => Below::Other,
        };
        return Ok(Looked::Found(found));
    }
    Ok(Looked::Found(Below::Directory(Attributes::IMPLICIT)))
}
