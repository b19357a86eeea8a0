//! Directories that are made whole, shared by processes, and removed when none uses them.
//!
//! ```text
//! <shelf>/<name>/        an entry: complete, and never changed
//!   lock                 a process that uses it has a shared flock
//! <shelf>/.new-<name>/   being made, by the process that has an exclusive flock of its `lock`
//! <shelf>/.old-<uuid>/   was an entry, and is being removed
//! ```
//!
//! An entry appears by a rename when it is complete, with its lock in it, and disappears by one. A
//! lock dies with its process. So a kill at any moment leaves entries that are complete, and
//! directories that the next [`Shelf::sweep`] can tell from those of others.
//!
//! A lock counts only if the directory that was locked is still under its name: who waited for it
//! may have got that of a directory that was moved meanwhile.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, Gid, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::interrupt::Interrupt;
use crate::sandbox::image::ImageError;
use crate::sandbox::tree::{self, Until};

const LOCK: &str = "lock";
const NEW: &str = ".new-";
const OLD: &str = ".old-";

/// How often a process that waits for another one's lock looks again: making takes much longer.
const BEAT: Duration = Duration::from_millis(20);
/// How long a lock is waited for that others hold for moments only.
const PIN_LIMIT: Duration = Duration::from_secs(30);
/// How long an entry that is not used any more may seem to be.
const CLAIM_LIMIT: Duration = Duration::from_millis(60);
/// How long a directory may take to be removed.
const REMOVE_LIMIT: Duration = Duration::from_secs(600);

const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory of entries.
#[derive(Debug)]
pub(super) struct Shelf {
    dir: OwnedFd,
    path: PathBuf,
    /// Who may pass through it and its entries, to what they know the name of.
    group: Option<u32>,
}

/// As long as it is held, its entry is not removed.
#[derive(Debug)]
pub(super) struct Pin {
    lock: File,
}

/// An entry that is being made by us. Dropped, it is removed.
pub(super) struct Making<'a> {
    shelf: &'a Shelf,
    name: String,
    dir: OwnedFd,
    lock: File,
    is_done: bool,
}

/// What became of the wish for an entry.
pub(super) enum Wish<'a> {
    Pinned(Pin),
    Making(Making<'a>),
}

/// An entry that no other process uses, ours alone.
pub(super) struct Claim<'a> {
    shelf: &'a Shelf,
    name: String,
    _lock: File,
}

/// Whether an entry can be claimed.
pub(super) enum Claimed<'a> {
    Ours(Claim<'a>),
    InUse,
    Missing,
}

impl Shelf {
    /// The shelf `name` of a directory of ours, made where it is missing.
    ///
    /// # Errors
    /// Those of making and opening it.
    pub(super) fn open(above: &Path, name: &str) -> Result<Self, ImageError> {
        Self::open_for(above, name, None)
    }

    /// As [`open`](Self::open); if a group is given, that may pass through.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub(super) fn open_for(
        above: &Path,
        name: &str,
        group: Option<u32>,
    ) -> Result<Self, ImageError> {
        let path = above.join(name);
        let dir = open_own(&path)?;
        if let Some(group) = group {
            let_pass(&dir, group).map_err(|errno| ImageError::io("open up", &path, errno))?;
        }
        Ok(Self { dir, path, group })
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Where an entry is.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Pins an entry; `None` if there is none. Blocks only while another process looks whether it
    /// is in use.
    ///
    /// # Errors
    /// Those of the system, [`ImageError::Interrupted`].
    pub(super) fn pin(&self, name: &str, interrupt: &Interrupt) -> Result<Option<Pin>, ImageError> {
        let failed = |error: io::Error| ImageError::io("lock", &self.path_of(name), error);
        let deadline = Instant::now() + PIN_LIMIT;
        loop {
            let lock = match self.open_lock(name, OFlags::empty()) {
                Ok(lock) => lock,
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(failed(errno.into())),
            };
            match lock.try_lock_shared() {
                Ok(()) if self.is_at(name, &lock) => return Ok(Some(Pin { lock })),
                // It was removed; another one may be there.
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {}
                Err(TryLockError::WouldBlock) => return Err(failed(Errno::TIMEDOUT.into())),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            wait(interrupt)?;
        }
    }

    /// Pins an entry, or has it made by the caller. While another process or thread makes it, this
    /// blocks.
    ///
    /// # Errors
    /// Those of the system, [`ImageError::Interrupted`].
    pub(super) fn wish(&self, name: &str, interrupt: &Interrupt) -> Result<Wish<'_>, ImageError> {
        let new = format!("{NEW}{name}");
        let failed = |error: io::Error| ImageError::io("create", &self.path_of(&new), error);
        loop {
            if let Some(pin) = self.pin(name, interrupt)? {
                return Ok(Wish::Pinned(pin));
            }
            match rustix::fs::mkdirat(&self.dir, &new, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
            let lock = match self.open_lock(&new, OFlags::CREATE) {
                Ok(lock) => lock,
                // It was completed, or swept away.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(failed(errno.into())),
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    wait(interrupt)?;
                    continue;
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            if !self.is_at(&new, &lock) {
                continue;
            }
            let dir = rustix::fs::openat(&self.dir, &new, OPEN_DIR, Mode::empty());
            let dir = dir.map_err(|errno| failed(errno.into()))?;
            if let Some(group) = self.group {
                let_pass(&dir, group).map_err(|errno| failed(errno.into()))?;
            }
            let name = name.to_owned();
            let making = Making { shelf: self, name, dir, lock, is_done: false };
            // Another one may have completed it since it was looked for.
            if self.has(&making.name) {
                continue;
            }
            // What one left behind that died.
            let until = Until::interrupted(Instant::now() + REMOVE_LIMIT, interrupt);
            match tree::empty(making.dir.as_fd(), Some(c"lock"), until) {
                Ok(()) => return Ok(Wish::Making(making)),
                Err(_) if interrupt.is_interrupted() => return Err(ImageError::Interrupted),
                Err(error) => return Err(failed(error.source)),
            }
        }
    }

    /// Whether there is such an entry.
    pub(super) fn has(&self, name: &str) -> bool {
        rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// The names of all entries.
    ///
    /// # Errors
    /// Those of reading the directory.
    pub(super) fn names(&self) -> Result<Vec<String>, ImageError> {
        self.read(|name| !name.starts_with('.'))
    }

    /// Claims an entry to remove it. Blocks for a moment where it seems to be in use: a program
    /// that has used it may just start another one, which has a copy of the lock until it runs.
    ///
    /// # Errors
    /// Those of the system, [`ImageError::Interrupted`].
    pub(super) fn claim(
        &self,
        name: &str,
        interrupt: &Interrupt,
    ) -> Result<Claimed<'_>, ImageError> {
        let deadline = Instant::now() + CLAIM_LIMIT;
        loop {
            match self.try_claim(name)? {
                Claimed::InUse if Instant::now() < deadline => wait(interrupt)?,
                claimed => return Ok(claimed),
            }
        }
    }

    /// As [`claim`](Self::claim). Does not block.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn try_claim(&self, name: &str) -> Result<Claimed<'_>, ImageError> {
        let failed = |error: io::Error| ImageError::io("lock", &self.path_of(name), error);
        let lock = match self.open_lock(name, OFlags::empty()) {
            Ok(lock) => lock,
            Err(Errno::NOENT) => return Ok(Claimed::Missing),
            Err(errno) => return Err(failed(errno.into())),
        };
        match lock.try_lock() {
            Ok(()) if self.is_at(name, &lock) => {
                Ok(Claimed::Ours(Claim { shelf: self, name: name.to_owned(), _lock: lock }))
            }
            Ok(()) => Ok(Claimed::Missing),
            Err(TryLockError::WouldBlock) => Ok(Claimed::InUse),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Removes what processes have left that died, until it is interrupted. Failures are logged.
    pub(super) fn sweep(&self, interrupt: &Interrupt) {
        let left = match self.read(|name| name.starts_with(NEW) || name.starts_with(OLD)) {
            Ok(left) => left,
            Err(error) => return log::warn!("{error}"),
        };
        for name in left {
            if interrupt.is_interrupted() {
                return;
            }
            if name.starts_with(NEW) {
                let lock = match self.open_lock(&name, OFlags::CREATE) {
                    Ok(lock) => lock,
                    Err(Errno::NOENT) => continue,
                    Err(errno) => {
                        log::warn!("cannot remove {}: {errno}", self.path_of(&name).display());
                        continue;
                    }
                };
                if lock.try_lock().is_err() || !self.is_at(&name, &lock) {
                    continue;
                }
                self.remove_new(&name, interrupt);
            } else {
                self.remove_tree(&name, interrupt);
            }
        }
    }

    /// Removes a directory whose lock we have, and that is in the making.
    fn remove_new(&self, name: &str, interrupt: &Interrupt) {
        let old = format!("{OLD}{}", uuid::Uuid::new_v4().simple());
        match rustix::fs::renameat(&self.dir, name, &self.dir, &old) {
            Ok(()) => self.remove_tree(&old, interrupt),
            Err(errno) => log::warn!("cannot remove {}: {errno}", self.path_of(name).display()),
        }
    }

    /// Removes a directory that has no other name any more. Several may do so at once.
    fn remove_tree(&self, name: &str, interrupt: &Interrupt) {
        let removed = || -> io::Result<()> {
            let dir = rustix::fs::openat(&self.dir, name, OPEN_DIR, Mode::empty())?;
            let until = Until::interrupted(Instant::now() + REMOVE_LIMIT, interrupt);
            tree::empty(dir.as_fd(), None, until).map_err(|error| error.source)?;
            Ok(rustix::fs::unlinkat(&self.dir, name, AtFlags::REMOVEDIR)?)
        };
        match removed() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The next one goes on with it.
            Err(_) if interrupt.is_interrupted() => {}
            Err(error) => log::warn!("cannot remove {}: {error}", self.path_of(name).display()),
        }
    }

    fn open_lock(&self, name: &str, create: OFlags) -> Result<File, Errno> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | create;
        let path = format!("{name}/{LOCK}");
        let lock = rustix::fs::openat(&self.dir, path, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(lock.into())
    }

    /// Whether this is the lock of what is there now.
    fn is_at(&self, name: &str, lock: &File) -> bool {
        let path = format!("{name}/{LOCK}");
        let there = rustix::fs::statat(&self.dir, path, AtFlags::SYMLINK_NOFOLLOW);
        there.is_ok_and(|there| {
            rustix::fs::fstat(lock)
                .is_ok_and(|ours| (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino))
        })
    }

    fn read(&self, wanted: fn(&str) -> bool) -> Result<Vec<String>, ImageError> {
        let failed = |errno: Errno| ImageError::io("read", &self.path, errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Ok(name) = entry.file_name().to_str()
                && !tree::is_dot(entry.file_name())
                && wanted(name)
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

impl Pin {
    /// Notes that the entry is used now.
    pub(super) fn touch(&self) {
        let now = std::time::SystemTime::now();
        if let Err(error) = self.lock.set_modified(now) {
            log::debug!("the time of an image's last use was not noted: {error}");
        }
    }

    /// When that was noted last.
    pub(super) fn used(&self) -> io::Result<std::time::SystemTime> {
        self.lock.metadata()?.modified()
    }
}

impl Making<'_> {
    /// Where it is meanwhile.
    pub(super) fn path(&self) -> PathBuf {
        self.shelf.path_of(&format!("{NEW}{}", self.name))
    }

    /// The directory that is to become the entry; `lock` in it is ours.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Makes it the entry `name`, which may be another one than was wished for, and pins it. With
    /// `durable` all of it is on the disk then. If there is such an entry already, that is pinned,
    /// and this is dropped.
    ///
    /// # Errors
    /// Those of the system, [`ImageError::Interrupted`].
    pub(super) fn complete(
        mut self,
        name: &str,
        durable: bool,
        interrupt: &Interrupt,
    ) -> Result<Pin, ImageError> {
        let shelf = self.shelf;
        let failed = |error: io::Error| ImageError::io("complete", &shelf.path_of(name), error);
        if durable {
            rustix::fs::syncfs(&self.dir).map_err(|errno| failed(errno.into()))?;
        }
        let new = format!("{NEW}{}", self.name);
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&shelf.dir, &new, &shelf.dir, name, flags) {
            Ok(()) => self.is_done = true,
            Err(Errno::EXIST) => {}
            // A file system that does not know the flag: an entry is never empty, so that a rename
            // replaces none.
            Err(Errno::INVAL) => match rustix::fs::renameat(&shelf.dir, &new, &shelf.dir, name) {
                Ok(()) => self.is_done = true,
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno.into())),
            },
            Err(errno) => return Err(failed(errno.into())),
        }
        if self.is_done {
            if durable {
                rustix::fs::fsync(&shelf.dir).map_err(|errno| failed(errno.into()))?;
            }
            // Who removes may get it between the two locks.
            self.lock.lock_shared().map_err(failed)?;
            let lock = self.lock.try_clone().map_err(failed)?;
            if shelf.is_at(name, &lock) {
                return Ok(Pin { lock });
            }
        }
        let pinned = shelf.pin(name, interrupt)?;
        pinned.ok_or_else(|| failed(io::Error::other("it was removed at once")))
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.shelf.remove_new(&format!("{NEW}{}", self.name), &Interrupt::new());
        }
    }
}

impl Claim<'_> {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Removes the entry: it is gone at once, what was in it some time later.
    ///
    /// # Errors
    /// Those of taking it away.
    pub(super) fn remove(self, interrupt: &Interrupt) -> Result<(), ImageError> {
        let old = format!("{OLD}{}", uuid::Uuid::new_v4().simple());
        let Self { shelf, name, .. } = &self;
        rustix::fs::renameat(&shelf.dir, name, &shelf.dir, &old)
            .map_err(|errno| ImageError::io("remove", &shelf.path_of(name), errno))?;
        shelf.remove_tree(&old, interrupt);
        Ok(())
    }
}

/// Lets a group pass through a directory of ours.
pub(super) fn let_pass(directory: &OwnedFd, group: u32) -> Result<(), Errno> {
    rustix::fs::fchown(directory, None, Some(Gid::from_raw(group)))?;
    rustix::fs::fchmod(directory, Mode::RWXU | Mode::XGRP)
}

/// Opens a directory that must be ours alone, but for a group that may pass through it, and makes
/// it where it is missing.
pub(super) fn open_own(path: &Path) -> Result<OwnedFd, ImageError> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(ImageError::io("create", path, errno)),
    }
    let failed = |errno: Errno| ImageError::io("open", path, errno);
    let dir = rustix::fs::open(path, OPEN_DIR, Mode::empty()).map_err(failed)?;
    let about = rustix::fs::fstat(&dir).map_err(failed)?;
    let others = Mode::RGRP | Mode::WGRP | Mode::RWXO;
    let others = Mode::from_raw_mode(about.st_mode).intersects(others);
    if about.st_uid != rustix::process::geteuid().as_raw() || others {
        let why = "other users own it or may enter it; remove it or choose another data directory";
        return Err(ImageError::io("trust", path, io::Error::other(why)));
    }
    Ok(dir)
}

fn wait(interrupt: &Interrupt) -> Result<(), ImageError> {
    match interrupt.wait_timeout(BEAT) {
        true => Err(ImageError::Interrupted),
        false => Ok(()),
    }
}
