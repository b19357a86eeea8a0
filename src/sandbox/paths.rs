//! From a path that a model wrote to a file in its slot's machine.
//!
//! The file tools and the artifacts resolve every path here. A path means what it means to a
//! command in the sandbox: a [`View`] says where a slot's directories are there, `x` is
//! `/workspace/x`, `/tmp/x` is the slot's, and what is in none of them is looked for in the root
//! directory of the slot's machine, where there is one. What the kernel makes up (`/proc`, `/dev`,
//! `/sys`) is [`PathError::Kernel`]. Without a machine all else, and every `..` or symlink that
//! leads there, is [`PathError::Outside`].
//!
//! The model can race us: a command of its own may swap directories for symlinks while we look. So
//! no path of more than one component is ever given to the kernel. [`View::resolve`] walks: each
//! component is opened with `O_PATH | O_NOFOLLOW` in the directory held before it, symlinks are
//! read from the held descriptor and followed by hand, and `..` never asks the kernel for a parent
//! (a directory that was moved meanwhile has another one) but walks again from the held directory
//! that it is in. Every descriptor is therefore beneath one of these by construction, whatever
//! moves: a slot's directory, or the root that its commands see. What is above a slot's directories
//! (`/`, `/home`) is but a path until it is known not to lead there.
//!
//! Why not `openat2(RESOLVE_BENEATH)`, or with `RESOLVE_IN_ROOT`: it cannot say which directories
//! of a path are missing, it cannot name the file that it found, and one walk cannot go through
//! several held directories. The walk does all three, and needs no second mechanism.
//!
//! Nothing is created, changed or opened for reading here, so nothing can block; but for the
//! machine, which may have to be made first.

use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::user::Raised;

/// Where a command in the sandbox sees its workspace.
pub(crate) const MOUNT_POINT: &str = "/workspace";

/// Where a command in the sandbox sees its temporary files.
pub(crate) const TEMPORARY: &str = "/tmp";

/// Symlinks followed for one path, as many as the kernel does.
const MAX_LINKS: usize = 40;

/// Bytes of one path or symlink, as in the kernel.
const MAX_PATH_BYTES: usize = 4095;

/// Components looked at for one path. Symlinks and `..` can make a walk arbitrarily long; this
/// ends it after some 20 ms.
const MAX_STEPS: usize = 16_384;

/// Directories of a machine that have no files: what is in them is made up by the kernel, or is a
/// device. To read it from outside would not be what a command reads, and may block.
const KERNELS: [&str; 3] = ["proc", "dev", "sys"];

/// What root may do with the files of a machine whose ids are its own.
const RIGHTS_OF_ROOT: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::FOWNER);

/// Why a path leads to no place in a slot's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathError {
    /// It leads out of the slot's directories, where there is no machine; or into a circle of
    /// symlinks, or holds a NUL.
    Outside,
    /// It leads into this directory, whose files are the kernel's.
    Kernel(&'static str),
    /// It leads out of the slot's directories, and its machine cannot be had: why, as one line.
    NoMachine(String),
    /// The system refused to look.
    Os(Errno),
}

/// A directory that paths are resolved beneath, held open so that it cannot be swapped.
#[derive(Debug)]
pub(crate) struct Root {
    dir: OwnedFd,
}

/// A slot's directory as paths name it.
#[derive(Debug)]
pub(crate) struct Mount<'a> {
    /// Where it is in the sandbox: an absolute path without symlinks.
    pub(crate) place: &'a Path,
    /// Another absolute path by which it may be named as a whole: where commands that are not in a
    /// sandbox find it.
    pub(crate) alias: Option<&'a Path>,
    /// The directory.
    pub(crate) root: &'a Root,
}

/// Gives the root directory of the slot's machine, or `None` where commands are in no sandbox. May
/// block, since the machine may have to be made; asked once for a view, and only where a path
/// leads out of the slot's directories.
///
/// # Errors
/// Why there is none, as one line.
pub(crate) type FindRoot<'a> = &'a (dyn Fn() -> Result<Option<Root>, String> + Sync);

/// What paths mean to the commands of a slot.
pub(crate) struct View<'a> {
    mounts: Vec<Mount<'a>>,
    /// Where relative paths begin: an absolute path in the sandbox.
    directory: &'a Path,
    find_root: FindRoot<'a>,
    /// The root of the machine, once it was asked for.
    root: OnceCell<Result<Option<Root>, String>>,
    /// Whether this thread acts for root in the machine.
    is_roots: bool,
    /// What it may for that, and the mount that it may it in.
    raised: RefCell<Option<(Raised, u64)>>,
}

/// How far a walk has come.
enum At {
    /// A directory above the mounts, or what would be one.
    Above(PathBuf),
    /// In a held directory.
    In(Resolved),
}

/// The held directory that a place is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// The mount of this number.
    Mount(usize),
    /// The machine's root.
    Root,
}

/// A place in a slot's machine. It need not exist, and nothing says that it still is what it was.
#[derive(Debug)]
pub(crate) struct Resolved {
    held: Held,
    /// Where relative paths begin.
    directory: PathBuf,
    /// Where the held directory is in the sandbox.
    mounted_at: PathBuf,
    /// The last directory on the way that exists.
    dir: OwnedFd,
    /// The path of `dir` from the held directory, without symlinks.
    dir_path: PathBuf,
    /// What is left of the path below `dir`. Empty if the place is the directory itself.
    rest: Vec<OsString>,
    /// The type of the first of `rest`, never a directory or a symlink. `None` if it does not
    /// exist.
    found: Option<FileType>,
}

impl Root {
    /// Holds the directory `path`, which must not be a symlink.
    ///
    /// # Errors
    /// As `open(2)`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { dir: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// The directory behind an `O_PATH` descriptor.
    pub(crate) fn held(dir: OwnedFd) -> Self {
        Self { dir }
    }

    /// The directory itself, as an `O_PATH` descriptor.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl<'a> View<'a> {
    /// A view of these directories, none in another, and of what `find_root` gives around them.
    /// Relative paths begin in `directory`.
    pub(crate) fn new(
        mounts: Vec<Mount<'a>>,
        directory: &'a Path,
        find_root: FindRoot<'a>,
    ) -> Self {
        let (root, raised) = (OnceCell::new(), RefCell::new(None));
        Self { mounts, directory, find_root, root, is_roots: false, raised }
    }

    /// For a thread that acts for root in the machine, who is stopped by no one's permissions
    /// there. It has that right for as long as its walks stay in the file system that is at the
    /// machine's root, which is the slot's own: with the first step into another one, which may be
    /// the operator's, it is given up for good.
    pub(super) fn of_root(self) -> Self {
        Self { is_roots: true, ..self }
    }

    /// Gives that right up.
    pub(super) fn lower(&self) {
        drop(self.raised.take());
    }

    /// Gives it up unless `found` is where it is meant for.
    fn lower_elsewhere(&self, found: &OwnedFd) {
        let is_elsewhere = |(_, mount): &(Raised, u64)| mount_of(found) != Ok(*mount);
        if self.raised.borrow().as_ref().is_some_and(is_elsewhere) {
            self.lower();
        }
    }

    fn raise(&self, root: &Root) {
        // Without the number of its mount, or the right, it does with what its user may.
        if let Ok(mount) = mount_of(&root.dir)
            && let Ok(raised) = Raised::new(RIGHTS_OF_ROOT)
        {
            self.raised.replace(Some((raised, mount)));
        }
    }

    /// Finds the place that `given` names, following symlinks as commands do. Holds a few
    /// descriptors at most, however deep the path.
    ///
    /// Components below one that is missing (or is no directory) are taken literally:
    /// `missing/../x` is `x`.
    ///
    /// # Errors
    /// See [`PathError`].
    pub(crate) fn resolve(&self, given: &str) -> Result<Resolved, PathError> {
        if given.contains('\0') {
            return Err(PathError::Outside);
        }
        let mut todo = VecDeque::new();
        for (mount, Mount { alias, .. }) in self.mounts.iter().enumerate() {
            let below = alias.and_then(|alias| Path::new(given).strip_prefix(alias).ok());
            if let Some(below) = below {
                prepend(&mut todo, below.as_os_str().as_bytes())?;
                return self.walk(At::In(self.start(mount)?), todo);
            }
        }
        prepend(&mut todo, given.as_bytes())?;
        let at = self.origin(given.starts_with('/'), &mut todo)?;
        self.walk(at, todo)
    }

    /// The place that the entry `name` of the directory `dir` names, as [`resolve`](Self::resolve).
    /// `dir` is a [path](Resolved::path) of any length and any bytes.
    ///
    /// # Errors
    /// See [`PathError`].
    pub(super) fn resolve_in(&self, dir: &Path, name: &OsStr) -> Result<Resolved, PathError> {
        self.resolve_below(dir, Path::new(name))
    }

    /// The place of a relative path from the directory `dir`, as
    /// [`resolve_in`](Self::resolve_in).
    ///
    /// # Errors
    /// See [`PathError`].
    pub(super) fn resolve_below(&self, dir: &Path, path: &Path) -> Result<Resolved, PathError> {
        let names = dir.iter().chain(path).filter(|name| *name != "/");
        let mut todo = names.map(OsStr::to_owned).collect();
        let at = self.origin(dir.is_absolute(), &mut todo)?;
        self.walk(at, todo)
    }

    /// Follows the components `todo`.
    fn walk(&self, mut at: At, mut todo: VecDeque<OsString>) -> Result<Resolved, PathError> {
        let mut links = 0;

        for _ in 0..MAX_STEPS {
            let Some(name) = todo.pop_front() else {
                at = match at {
                    At::In(place) => return Ok(place),
                    At::Above(path) => self.leave(&path, &mut todo)?,
                };
                continue;
            };
            let place = match &mut at {
                At::In(place) => place,
                At::Above(path) => {
                    // Above the root directory there is itself.
                    if name == ".." {
                        path.pop();
                    } else {
                        at = self.enter(path.join(name), &mut todo)?;
                    }
                    continue;
                }
            };
            if name == ".." {
                if place.rest.pop().is_some() {
                    if place.rest.is_empty() {
                        place.found = None;
                    }
                } else if place.dir_path.pop() {
                    place.dir_path.iter().rev().for_each(|dir| todo.push_front(dir.to_owned()));
                    at = match place.held {
                        Held::Mount(mount) => At::In(self.start(mount)?),
                        // There may be a mount on the way now.
                        Held::Root => At::Above(PathBuf::from("/")),
                    };
                } else {
                    place.mounted_at.pop();
                    at = At::Above(std::mem::take(&mut place.mounted_at));
                }
                continue;
            }
            if !place.rest.is_empty() {
                place.rest.push(name);
                continue;
            }
            if place.held == Held::Root
                && place.dir_path.as_os_str().is_empty()
                && let Some(kernels) = KERNELS.into_iter().find(|kernels| name == *kernels)
            {
                return Err(PathError::Kernel(kernels));
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = match rustix::fs::openat(&place.dir, &name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => {
                    place.rest.push(name);
                    continue;
                }
                Err(errno) => return Err(PathError::Os(errno)),
            };
            self.lower_elsewhere(&next);
            match file_type(&next).map_err(PathError::Os)? {
                FileType::Directory => {
                    place.dir = next;
                    place.dir_path.push(name);
                }
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(PathError::Outside);
                    }
                    let target =
                        rustix::fs::readlinkat(&next, c"", Vec::new()).map_err(PathError::Os)?;
                    prepend(&mut todo, target.as_bytes())?;
                    if target.as_bytes().starts_with(b"/") {
                        at = At::Above(PathBuf::from("/"));
                    } else if place.held == Held::Root {
                        // There may be a mount on the way now.
                        place.dir_path.iter().rev().for_each(|dir| todo.push_front(dir.to_owned()));
                        at = At::Above(PathBuf::from("/"));
                    }
                }
                other => {
                    place.rest.push(name);
                    place.found = Some(other);
                }
            }
        }
        Err(PathError::Outside)
    }

    /// Where a path begins. A relative one is given what leads there.
    fn origin(&self, absolute: bool, todo: &mut VecDeque<OsString>) -> Result<At, PathError> {
        if !absolute {
            // As a rule it is a mount: no walk is needed.
            if let Some(mount) = self.mounts.iter().position(|m| m.place == self.directory) {
                return Ok(At::In(self.start(mount)?));
            }
            prepend(todo, self.directory.as_os_str().as_bytes())?;
        }
        Ok(At::Above(PathBuf::from("/")))
    }

    /// What is at a path from the root directory: a mount, what is above one, or what is beside
    /// them all.
    fn enter(&self, path: PathBuf, todo: &mut VecDeque<OsString>) -> Result<At, PathError> {
        if let Some(mount) = self.mounts.iter().position(|mount| mount.place == path) {
            return Ok(At::In(self.start(mount)?));
        }
        match self.mounts.iter().any(|mount| mount.place.starts_with(&path)) {
            true => Ok(At::Above(path)),
            false => self.leave(&path, todo),
        }
    }

    /// To the machine's root, from which `path` is to be walked.
    fn leave(&self, path: &Path, todo: &mut VecDeque<OsString>) -> Result<At, PathError> {
        let find = || {
            let root = (self.find_root)();
            if let (true, Ok(Some(root))) = (self.is_roots, &root) {
                self.raise(root);
            }
            root
        };
        let root = match self.root.get_or_init(find) {
            Ok(Some(root)) => root,
            Ok(None) => return Err(PathError::Outside),
            Err(why) => return Err(PathError::NoMachine(why.clone())),
        };
        path.iter()
            .rev()
            .filter(|name| *name != "/")
            .for_each(|name| todo.push_front(name.to_owned()));
        self.held(Held::Root, Path::new("/"), root).map(At::In)
    }

    /// A mount itself.
    fn start(&self, mount: usize) -> Result<Resolved, PathError> {
        let Mount { place, root, .. } = self.mounts[mount];
        self.held(Held::Mount(mount), place, root)
    }

    fn held(&self, held: Held, place: &Path, root: &Root) -> Result<Resolved, PathError> {
        let dir = rustix::io::fcntl_dupfd_cloexec(&root.dir, 0).map_err(PathError::Os)?;
        Ok(Resolved {
            held,
            directory: self.directory.to_owned(),
            mounted_at: place.to_owned(),
            dir,
            dir_path: PathBuf::new(),
            rest: Vec::new(),
            found: None,
        })
    }
}

impl Resolved {
    /// The last directory on the way that exists, as an `O_PATH` descriptor.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// What is left of the path below [`dir`](Self::dir): nothing if the place is that directory,
    /// one name if it is in it, several if directories on the way are missing.
    pub(crate) fn rest(&self) -> &[OsString] {
        &self.rest
    }

    /// What the first name of [`rest`](Self::rest) was when it was looked at: never a directory or
    /// a symlink; `None` if there was nothing.
    pub(crate) fn found(&self) -> Option<FileType> {
        self.found
    }

    /// The place without symlinks: from where relative paths begin (the workspace), and empty if it
    /// is that directory itself; elsewhere as a command in the sandbox sees it.
    pub(super) fn path(&self) -> PathBuf {
        let path = self.absolute();
        path.strip_prefix(&self.directory).map(Path::to_owned).unwrap_or(path)
    }

    /// The place as a command in the sandbox sees it, without symlinks: `/workspace/a/b`. Never a
    /// path of the host.
    pub(super) fn absolute(&self) -> PathBuf {
        let mut path = self.mounted_at.clone();
        path.extend(&self.dir_path);
        path.extend(&self.rest);
        path
    }

    /// [`absolute`](Self::absolute) as text. Bytes that are no UTF-8 are replaced.
    pub(crate) fn sandbox_path(&self) -> String {
        self.absolute().to_string_lossy().into_owned()
    }

    /// Whether it is in none of the slot's directories, but elsewhere in its machine.
    pub(super) fn is_in_root(&self) -> bool {
        self.held == Held::Root
    }
}

/// The number of the mount that an open file is in.
fn mount_of(fd: &OwnedFd) -> Result<u64, Errno> {
    let about = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    match about.stx_mask & StatxFlags::MNT_ID.bits() {
        0 => Err(Errno::NOTSUP),
        _ => Ok(about.stx_mnt_id),
    }
}

/// The type of an open file.
pub(crate) fn file_type(fd: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

/// Whether what is at this path from a sandbox's root is the kernel's: no file of it is read.
pub(super) fn is_kernels(path: &Path) -> bool {
    let path = path.strip_prefix("/").unwrap_or(path);
    KERNELS.into_iter().any(|name| path.starts_with(name))
}

/// Puts the components of `path` in front of `todo`.
fn prepend(todo: &mut VecDeque<OsString>, path: &[u8]) -> Result<(), PathError> {
    if path.len() > MAX_PATH_BYTES {
        return Err(PathError::Os(Errno::NAMETOOLONG));
    }
    let components = path.split(|&byte| byte == b'/').filter(|c| !matches!(*c, b"" | b"."));
    components.rev().for_each(|c| todo.push_front(OsString::from_vec(c.to_vec())));
    Ok(())
}

#[cfg(test)]
mod tests;
