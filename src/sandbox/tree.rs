//! Emptying and copying a directory tree that an adversary made, and may still be changing.
//!
//! [`workspace`](super::workspace) resets, removes and saves workspaces with these two. Both work
//! relative to held directories and follow no symlink, use no recursion and a bounded number of
//! descriptors, and never open anything that could block. Neither knows what a workspace is.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom};
use rustix::io::Errno;

use super::paths::file_type;
use crate::interrupt::Interrupt;

/// Directories deeper than this are not copied: a copy holds two descriptors a level.
const MAX_COPY_DEPTH: usize = 128;

pub(super) const OPEN_DIR: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// When to stop removing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until<'a> {
    deadline: Instant,
    interrupt: Option<&'a Interrupt>,
}

impl From<Instant> for Until<'_> {
    fn from(deadline: Instant) -> Self {
        Self { deadline, interrupt: None }
    }
}

impl<'a> Until<'a> {
    /// At this time, or when `interrupt` is triggered.
    pub(crate) fn interrupted(deadline: Instant, interrupt: &'a Interrupt) -> Self {
        Self { deadline, interrupt: Some(interrupt) }
    }

    fn check(&self) -> Result<(), Errno> {
        if self.interrupt.is_some_and(Interrupt::is_interrupted) {
            return Err(Errno::CANCELED);
        }
        if Instant::now() >= self.deadline { Err(Errno::TIMEDOUT) } else { Ok(()) }
    }
}

/// Whether the error says that there was no time to go on, or an interrupt.
fn is_stop(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::TIMEDOUT | Errno::CANCELED))
}

/// The entry of a tree that could not be removed or copied, and why.
#[derive(Debug)]
pub(crate) struct TreeError {
    /// The entry's own name.
    pub entry: OsString,
    /// What the system said about it.
    pub source: io::Error,
}

impl TreeError {
    fn new(entry: &CStr, source: impl Into<io::Error>) -> Self {
        let entry = OsStr::from_bytes(entry.to_bytes()).to_owned();
        Self { entry, source: source.into() }
    }
}

/// Removes everything in `dir` except the entry `spare`; `dir` itself stays and gets mode 0700.
/// Blocks for as long as the file system needs, until `until` at most.
///
/// What is mounted in `dir` is not entered: it is somebody else's, and counts as an entry that
/// resists.
///
/// A directory is emptied of its files, its own directories are moved up into `dir` (one rename
/// each), and then it is removed. So ten thousand nested directories need two descriptors and no
/// stack, and a directory that its owner may not read or change is made accessible first.
///
/// # Errors
/// The first entry that resisted, after everything else was removed; `ETIMEDOUT` at the deadline,
/// `ECANCELED` after an interrupt.
pub(crate) fn empty<'a>(
    dir: BorrowedFd<'a>,
    spare: Option<&CStr>,
    until: impl Into<Until<'a>>,
) -> Result<(), TreeError> {
    let whole = |source: Errno| TreeError::new(c".", source);
    grant_owner(dir).map_err(whole)?;
    let until = until.into();
    let mut emptying = Emptying { top: dir, hoisted: Hoisted::new(), removed: 0, until };
    loop {
        // A pass may miss what it moved up itself, so only one that finds nothing is the last.
        let (mut seen, mut left) = (false, None);
        let before = emptying.removed;
        for entry in read_dir(dir).map_err(whole)? {
            let entry = entry.map_err(whole)?;
            let name = entry.file_name();
            if is_dot(name) || Some(name) == spare {
                continue;
            }
            seen = true;
            let gone = emptying.remove(name).map_err(|source| TreeError::new(name, source));
            if let Err(error) = gone {
                if is_stop(&error.source) {
                    return Err(error);
                }
                left.get_or_insert(error);
            }
        }
        match left {
            _ if !seen => return Ok(()),
            Some(error) if emptying.removed == before => return Err(error),
            _ => {}
        }
    }
}

/// The state of one [`empty`].
struct Emptying<'a> {
    top: BorrowedFd<'a>,
    hoisted: Hoisted,
    /// Entries removed or moved up so far.
    removed: u64,
    until: Until<'a>,
}

impl Emptying<'_> {
    /// Removes the entry `name` of the top directory, moving directories in it up.
    fn remove(&mut self, name: &CStr) -> Result<(), Errno> {
        if self.remove_simple(self.top, name)? {
            return Ok(());
        }
        let dir = open_own_dir(self.top, name)?;
        grant_owner(dir.as_fd())?;
        let mut first_error = Ok(());
        for entry in read_dir(dir.as_fd())? {
            let entry = entry?;
            let child = entry.file_name();
            if is_dot(child) {
                continue;
            }
            match self.remove_simple(dir.as_fd(), child) {
                Ok(true) => {}
                Ok(false) => first_error = first_error.and(self.hoist(dir.as_fd(), child)),
                Err(errno @ (Errno::TIMEDOUT | Errno::CANCELED)) => return Err(errno),
                Err(errno) => first_error = first_error.and(Err(errno)),
            }
        }
        first_error?;
        if self.remove_simple(self.top, name)? { Ok(()) } else { Err(Errno::NOTEMPTY) }
    }

    /// Removes a file, or a directory if it is empty. `false` if it is a directory that is not.
    fn remove_simple(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
        self.until.check()?;
        let gone = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
            done => done,
        };
        match gone {
            Ok(()) => {
                self.removed += 1;
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Moves the directory `name` of `dir` up into the top directory.
    fn hoist(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        // A directory that changes its parent must itself be writable.
        let moved = open_own_dir(dir, name)?;
        grant_owner(moved.as_fd())?;
        rustix::fs::renameat(dir, name, self.top, self.hoisted.next_name())?;
        self.removed += 1;
        Ok(())
    }
}

/// Opens the directory `name` of `dir`, unless something is mounted there: `EXDEV`.
fn open_own_dir(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(dir, name, OPEN_DIR, Mode::empty(), resolve) {
        // No such system call, or a filter of system calls that does not know it.
        Err(Errno::NOSYS | Errno::PERM) => open_on_same_mount(dir, name),
        opened => opened,
    }
}

/// [`open_own_dir`] for old kernels.
fn open_on_same_mount(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let opened = rustix::fs::openat(dir, name, OPEN_DIR, Mode::empty())?;
    if mount_of(opened.as_fd())? != mount_of(dir)? {
        return Err(Errno::XDEV);
    }
    Ok(opened)
}

/// The number of the mount that something is in. A bind mount has one of its own, but no device.
fn mount_of(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let number = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    number.ok_or(Errno::NOSYS)
}

/// Names of our own choice.
struct Hoisted {
    prefix: uuid::Uuid,
    count: u64,
}

impl Hoisted {
    fn new() -> Self {
        Self { prefix: uuid::Uuid::new_v4(), count: 0 }
    }

    fn next_name(&mut self) -> String {
        self.count += 1;
        format!(".{}-{}", self.prefix.simple(), self.count)
    }
}

/// Gives the owner all rights on the directory behind an `O_PATH` descriptor.
fn grant_owner(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(dir)?.st_mode);
    if mode.contains(Mode::RWXU) {
        return Ok(());
    }
    // fchmod refuses O_PATH descriptors, and a chmod by name could be led astray by a symlink.
    rustix::fs::chmod(format!("/proc/self/fd/{}", dir.as_raw_fd()), Mode::RWXU)
}

/// Copies what is in `from` into `to`, both directories: regular files (holes stay holes),
/// directories and symlinks, with their permissions but without set-user-id and its like. FIFOs,
/// sockets and devices are skipped. Whatever vanishes meanwhile is left out. Blocks for as long as
/// the file system needs.
///
/// # Errors
/// The first entry that could not be copied (nothing in `to` is overwritten), after everything
/// else was. Directories below 128 levels are not copied and count as such.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), TreeError> {
    let whole = |source: Errno| TreeError::new(c".", source);
    let to = rustix::io::fcntl_dupfd_cloexec(to, 0).map_err(whole)?;
    let entries = read_dir(from).map_err(whole)?;
    let mut stack = vec![Level { entries, to, mode: None }];
    let mut first_error = None;
    while let Some(level) = stack.last_mut() {
        let Some(entry) = level.entries.read() else {
            if let Err(error) = level.finish() {
                first_error.get_or_insert(whole(error));
            }
            stack.pop();
            continue;
        };
        let entry = match entry {
            Ok(entry) => entry,
            Err(errno) => {
                first_error.get_or_insert(whole(errno));
                stack.pop();
                continue;
            }
        };
        let name = entry.file_name();
        if is_dot(name) {
            continue;
        }
        match level.copy_entry(name) {
            Ok(Some(_)) if stack.len() > MAX_COPY_DEPTH => {
                first_error.get_or_insert(TreeError::new(name, Errno::NAMETOOLONG));
            }
            Ok(Some(below)) => stack.push(below),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                first_error.get_or_insert(TreeError::new(name, error));
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// A directory that is being copied.
struct Level {
    entries: Dir,
    to: OwnedFd,
    /// The mode that the copy gets when it is full.
    mode: Option<Mode>,
}

impl Level {
    /// Copies one entry; a directory is only made, and returned to be filled.
    fn copy_entry(&self, name: &CStr) -> io::Result<Option<Level>> {
        let from = self.entries.fd()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = rustix::fs::openat(from, name, flags, Mode::empty())?;
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&held)?.st_mode)
            & (Mode::RWXU | Mode::RWXG | Mode::RWXO);
        match file_type(&held)? {
            FileType::Directory => {
                let entries = read_dir(held.as_fd())?;
                rustix::fs::mkdirat(&self.to, name, Mode::RWXU)?;
                let to = rustix::fs::openat(
                    &self.to,
                    name,
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                Ok(Some(Level { entries, to, mode: Some(mode) }))
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&held, c"", Vec::new())?;
                rustix::fs::symlinkat(target.as_c_str(), &self.to, name)?;
                Ok(None)
            }
            FileType::RegularFile => {
                // What is there now may be another thing than what was held, hence the second look.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
                if file_type(&source)? != FileType::RegularFile {
                    return Ok(None);
                }
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let copy = rustix::fs::openat(&self.to, name, flags, Mode::RUSR | Mode::WUSR)?;
                copy_file(&File::from(source), &File::from(copy), mode)?;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Only now, since a directory may be one that cannot be written.
    fn finish(&self) -> Result<(), Errno> {
        self.mode.map_or(Ok(()), |mode| rustix::fs::fchmod(&self.to, mode))
    }
}

/// Copies the data of a regular file, as long as it was at the beginning: it may be growing. A
/// hole is not filled: a terabyte of nothing is a file that any model can make.
fn copy_file(from: &File, to: &File, mode: Mode) -> io::Result<()> {
    let size = from.metadata()?.len();
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(at))?.min(size);
        while at < end {
            let want = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let got = from.read_at(&mut buffer[..want], at)?;
            if got == 0 {
                // It shrank.
                break;
            }
            to.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
        if at < end {
            break;
        }
    }
    to.set_len(size)?;
    Ok(rustix::fs::fchmod(to, mode)?)
}

/// The entries of a directory behind an `O_PATH` descriptor.
pub(super) fn read_dir(dir: BorrowedFd<'_>) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Dir::new(rustix::fs::openat(dir, c".", flags, Mode::empty())?)
}

pub(super) fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests;
