//! From a path that a model wrote to a file in its slot's directories.
//!
//! The file tools and the artifacts resolve every path here. A path means what it means to a
//! command in the sandbox: a [`View`] says where a slot's directories are there, `x` is
//! `/workspace/x`, and `/tmp/x` is the slot's. Everything else, and every `..` or symlink that
//! leads there, is [`PathError::Outside`].
//!
//! The model can race us: a command of its own may swap directories for symlinks while we look. So
//! no path of more than one component is ever given to the kernel. [`View::resolve`] walks: each
//! component is opened with `O_PATH | O_NOFOLLOW` in the directory held before it, symlinks are
//! read from the held descriptor and followed by hand, and `..` never asks the kernel for a parent
//! (a directory that was moved meanwhile has another one) but walks again from the slot's directory
//! that it is in. Every descriptor is therefore beneath one of these by construction, whatever
//! moves. What is above them (`/`, `/home`) is but a path, of which no descriptor is held.
//!
//! Why not `openat2(RESOLVE_BENEATH)`: it refuses the absolute symlinks to `/workspace/...` that
//! are right inside the sandbox, it cannot say which directories of a path are missing, and it
//! cannot name the file that it found. The walk does all three, and needs no second mechanism.
//!
//! Nothing is created, changed or opened for reading here, so nothing can block.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

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

/// Why a path leads to no place in a slot's directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathError {
    /// It leads out of them, or into a circle of symlinks, or holds a NUL.
    Outside,
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

/// What paths mean to the commands of a slot.
#[derive(Debug)]
pub(crate) struct View<'a> {
    mounts: [Mount<'a>; MOUNTS],
}

/// How many directories a slot has.
const MOUNTS: usize = 3;

/// The mount that relative paths begin in.
const WORKSPACE: usize = 0;

/// How far a walk has come.
enum At {
    /// A directory above the mounts, which holds nothing but the way to them.
    Above(PathBuf),
    /// In a mount.
    In(Resolved),
}

/// A place in a slot's directories. It need not exist, and nothing says that it still is what it
/// was.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Which mount it is in.
    mount: usize,
    /// Where that is in the sandbox.
    mounted_at: PathBuf,
    /// The last directory on the way that exists.
    dir: OwnedFd,
    /// The path of `dir` from the mount, without symlinks.
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

    /// Holds the directory at `path` beneath another root directory, in which links lead nowhere
    /// else.
    ///
    /// # Errors
    /// As `openat2(2)`.
    pub(crate) fn beneath(root: BorrowedFd<'_>, path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(Self { dir: rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)? })
    }

    /// The directory itself, as an `O_PATH` descriptor.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl<'a> View<'a> {
    /// A view of these directories, none in another, the workspace first.
    pub(crate) fn new(mounts: [Mount<'a>; MOUNTS]) -> Self {
        Self { mounts }
    }

    /// Finds the place that `given` names, following symlinks as long as they stay in the slot's
    /// directories. Does not block, and holds a few descriptors at most, however deep the path.
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
        self.walk(self.origin(given.starts_with('/'))?, todo)
    }

    /// The place that the entry `name` of the directory `dir` names, as [`resolve`](Self::resolve).
    /// `dir` is a [path](Resolved::path) of any length and any bytes.
    ///
    /// # Errors
    /// See [`PathError`].
    pub(super) fn resolve_in(&self, dir: &Path, name: &OsStr) -> Result<Resolved, PathError> {
        let names = dir.iter().chain([name]).filter(|name| *name != "/");
        self.walk(self.origin(dir.is_absolute())?, names.map(OsStr::to_owned).collect())
    }

    /// Follows the components `todo`.
    fn walk(&self, mut at: At, mut todo: VecDeque<OsString>) -> Result<Resolved, PathError> {
        let mut links = 0;

        for _ in 0..MAX_STEPS {
            let Some(name) = todo.pop_front() else {
                return match at {
                    At::In(place) => Ok(place),
                    At::Above(_) => Err(PathError::Outside),
                };
            };
            let place = match &mut at {
                At::In(place) => place,
                At::Above(path) => {
                    // Above the root directory there is itself.
                    if name == ".." {
                        path.pop();
                    } else {
                        at = self.enter(path.join(name))?;
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
                    *place = self.start(place.mount)?;
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
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = match rustix::fs::openat(&place.dir, &name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => {
                    place.rest.push(name);
                    continue;
                }
                Err(errno) => return Err(PathError::Os(errno)),
            };
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
                        at = self.origin(true)?;
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

    /// Where a path begins.
    fn origin(&self, absolute: bool) -> Result<At, PathError> {
        match absolute {
            true => Ok(At::Above(PathBuf::from("/"))),
            false => Ok(At::In(self.start(WORKSPACE)?)),
        }
    }

    /// What is at a path from the root directory.
    fn enter(&self, path: PathBuf) -> Result<At, PathError> {
        if let Some(mount) = self.mounts.iter().position(|mount| mount.place == path) {
            return Ok(At::In(self.start(mount)?));
        }
        match self.mounts.iter().any(|mount| mount.place.starts_with(&path)) {
            true => Ok(At::Above(path)),
            false => Err(PathError::Outside),
        }
    }

    /// A mount itself.
    fn start(&self, mount: usize) -> Result<Resolved, PathError> {
        let Mount { place, root, .. } = self.mounts[mount];
        let dir = rustix::io::fcntl_dupfd_cloexec(&root.dir, 0).map_err(PathError::Os)?;
        let (mounted_at, dir_path) = (place.to_owned(), PathBuf::new());
        Ok(Resolved { mount, mounted_at, dir, dir_path, rest: Vec::new(), found: None })
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

    /// The place without symlinks: from the workspace, and empty if it is the workspace itself;
    /// elsewhere as a command in the sandbox sees it.
    pub(super) fn path(&self) -> PathBuf {
        let mut path = match self.mount {
            WORKSPACE => PathBuf::new(),
            _ => self.mounted_at.clone(),
        };
        path.extend(&self.dir_path);
        path.extend(&self.rest);
        path
    }

    /// The place as a command in the sandbox sees it, without symlinks: `/workspace/a/b`. Never a
    /// path of the host. Bytes that are no UTF-8 are replaced.
    pub(crate) fn sandbox_path(&self) -> String {
        let mut path = self.mounted_at.clone();
        path.extend(&self.dir_path);
        path.extend(&self.rest);
        path.to_string_lossy().into_owned()
    }
}

/// The type of an open file.
pub(crate) fn file_type(fd: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
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
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Fixture {
        outer: tempfile::TempDir,
        roots: [Root; 3],
    }

    /// A workspace `ws`, and its `tmp` and `home`, beside a directory `secret` that nothing in them
    /// may reach.
    fn fixture() -> Fixture {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir_all(outer.path().join("ws/a/b")).unwrap();
        fs::write(outer.path().join("ws/a/f"), "inside").unwrap();
        fs::create_dir(outer.path().join("secret")).unwrap();
        fs::write(outer.path().join("secret/f"), "secret").unwrap();
        for name in ["tmp", "home"] {
            fs::create_dir(outer.path().join(name)).unwrap();
            fs::write(outer.path().join(name).join("f"), name).unwrap();
        }
        let roots = ["ws", "tmp", "home"].map(|name| Root::open(&outer.path().join(name)).unwrap());
        Fixture { outer, roots }
    }

    impl Fixture {
        fn link(&self, target: impl AsRef<Path>, name: &str) {
            symlink(target, self.outer.path().join("ws").join(name)).unwrap();
        }

        /// Where `given` leads, and whether something is there.
        fn path(&self, given: &str) -> Result<(String, bool), PathError> {
            let [workspace, temporary, home] = &self.roots;
            let alias = self.outer.path().join("home");
            let mount = |place, root| Mount { place: Path::new(place), alias: None, root };
            let home = Mount { alias: Some(&alias), ..mount("/home/me", home) };
            let view =
                View::new([mount(MOUNT_POINT, workspace), mount(TEMPORARY, temporary), home]);
            let place = view.resolve(given)?;
            let there = place.rest().is_empty() || place.rest().len() == 1 && place.found.is_some();
            Ok((place.sandbox_path(), there))
        }
    }

    #[test]
    fn a_path_means_what_it_means_in_the_sandbox() {
        let fixture = fixture();
        for given in [
            "a/f",
            "/workspace/a/f",
            "//workspace//a/./f",
            "./a/f",
            "a/b/../f",
            "a/f/",
            "nope/../a/f",
            "a/f/x/../../f",
        ] {
            assert_eq!(fixture.path(given), Ok(("/workspace/a/f".into(), true)), "{given}");
        }
        for given in ["", ".", "/workspace", "/workspace/", "a/..", "a/b/../.."] {
            assert_eq!(fixture.path(given), Ok(("/workspace".into(), true)), "{given}");
        }
        assert_eq!(fixture.path("x/y"), Ok(("/workspace/x/y".into(), false)));
        assert_eq!(fixture.path("a/f/x"), Ok(("/workspace/a/f/x".into(), false)));
    }

    #[test]
    fn a_slots_other_directories_are_where_the_sandbox_has_them() {
        let fixture = fixture();
        fixture.link("/tmp", "link");
        fixture.link("/", "slash");
        symlink("/workspace/a", fixture.outer.path().join("tmp/back")).unwrap();
        for (given, leads, there) in [
            ("/tmp/f", "/tmp/f", true),
            ("/tmp/new/f", "/tmp/new/f", false),
            ("../tmp/f", "/tmp/f", true),
            ("a/../../tmp/./f", "/tmp/f", true),
            ("/../../tmp/f", "/tmp/f", true),
            ("link/f", "/tmp/f", true),
            ("link/back/f", "/workspace/a/f", true),
            ("link/back/../../tmp/f", "/tmp/f", true),
            ("slash/workspace/a/f", "/workspace/a/f", true),
            ("/home/me", "/home/me", true),
            ("/home/me/f", "/home/me/f", true),
            ("/home/../tmp/../home/me/f", "/home/me/f", true),
        ] {
            assert_eq!(fixture.path(given), Ok((leads.into(), there)), "{given}");
        }
        // As commands find it that are not in a sandbox.
        let host = fixture.outer.path().join("home/f");
        let found = fixture.path(host.to_str().unwrap());
        assert_eq!(found, Ok(("/home/me/f".into(), true)));
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        let fixture = fixture();
        for given in [
            "..",
            "../secret/f",
            "a/../../secret/f",
            "/",
            "/etc/passwd",
            "/workspace/../secret/f",
            "/workspaces/a",
            "/home",
            "/home/you/f",
            "/home/me/../you",
            "/tmp/..",
            "/workspace\0",
            "a\0b",
            "nope/../../secret/f",
            "/..",
            "a/f/../../../x",
        ] {
            assert_eq!(fixture.path(given), Err(PathError::Outside), "{given}");
        }
    }

    #[test]
    fn symlinks_are_followed_inside_and_refused_outside() {
        let fixture = fixture();
        fixture.link("a/f", "relative");
        fixture.link("/workspace/a/f", "absolute");
        fixture.link("../b/../f", "a/b/up");
        fixture.link("/workspace/a", "dir");
        fixture.link("new/file", "dangling");
        for given in ["relative", "absolute", "a/b/up", "dir/f", "dir/b/../f", "dir/../relative"] {
            assert_eq!(fixture.path(given), Ok(("/workspace/a/f".into(), true)), "{given}");
        }
        assert_eq!(fixture.path("dangling"), Ok(("/workspace/new/file".into(), false)));

        fixture.link("/etc/passwd", "etc");
        fixture.link("../secret", "up");
        fixture.link("../../secret/f", "a/up");
        fixture.link("loop", "loop");
        fixture.link("/", "slash");
        fixture.link("../home/you", "home");
        for given in ["etc", "up/f", "a/up", "loop", "loop/x", "slash", "slash/etc", "home/f"] {
            assert_eq!(fixture.path(given), Err(PathError::Outside), "{given}");
        }
    }

    #[test]
    fn forty_symlinks_are_followed_and_not_one_more() {
        let fixture = fixture();
        fixture.link("a/f", "l1");
        for n in 2..=41 {
            fixture.link(format!("l{}", n - 1), &format!("l{n}"));
        }
        assert_eq!(fixture.path("l40"), Ok(("/workspace/a/f".into(), true)));
        assert_eq!(fixture.path("l41"), Err(PathError::Outside));
    }

    #[test]
    fn paths_that_are_too_long_end() {
        let fixture = fixture();
        let too_long = "a".repeat(256);
        assert_eq!(fixture.path(&too_long), Err(PathError::Os(Errno::NAMETOOLONG)));
        assert_eq!(fixture.path(&"a/".repeat(3_000)), Err(PathError::Os(Errno::NAMETOOLONG)));
        // Each of forty links doubles the work that the next one makes.
        for n in 0..40 {
            fixture.link(format!("x{}/../", n + 1).repeat(400) + "a", &format!("x{n}"));
        }
        fixture.link("a", "x40");
        assert_eq!(fixture.path("x0"), Err(PathError::Outside));
    }

    #[test]
    fn a_root_that_is_a_symlink_is_refused() {
        let fixture = fixture();
        fixture.link("a", "dir");
        assert!(Root::open(&fixture.outer.path().join("ws/dir")).is_err());
    }
}
