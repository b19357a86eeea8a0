//! The directories of the embedded sandbox: where they are, who may use them, how they end.
//!
//! ```text
//! /tmp/tool-executor-1000/       the base: one a user, mode 0700 (root's: 0711)
//!   run-<uuid>/                  a data directory: one an engine
//!     lock                       held by flock for as long as the engine lives
//!     slot_0/ … slot_<n-1>/      the workspaces, each bound at /workspace in its sandbox
//!     tmp_0/ … tmp_<n-1>/        beside each the /tmp of its sandbox
//!     home_0/ … home_<n-1>/      and the home directory of its user
//!     slot_0-1/, tmp_0-1/, …     the same after the slot's first reset, and so on
//!     etc/                       what all sandboxes see as /etc
//! ```
//!
//! The engine makes one [`DataDir`] when it starts, takes its [`Workspace`]s, and closes it at its
//! end. What engines left behind that died without doing so is removed by the next one.
//!
//! **Who owns a run directory**: whoever holds the flock of its `lock` may do with it what they
//! like. An engine that is just starting has made the directory and does not hold the lock yet, so
//! another one may take it for a left-over: then that one has the lock (or has removed the
//! directory), the starting one sees it and tries again under a new name. A directory without a
//! `lock` is removed only if it is empty, which the kernel checks. A lock dies with its process,
//! so a left-over can never look alive.
//!
//! **A reset is a new workspace** ([`Workspace::renew`]): nothing is cleaned in place, so no access
//! list, attribute, flag, mode or lock of the old one reaches the next trajectory, and it takes no
//! longer where more was written. The old directories are removed behind it
//! ([`Workspace::remains`]).
//!
//! Nothing here knows what runs in a slot: its processes must be gone before its workspace is
//! removed. If they are not, the removal stays safe, and ends, but may not succeed.

use std::ffi::CStr;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::identity::Identity;
use super::paths::{MOUNT_POINT, Mount, Root, TEMPORARY, View};
use super::shell::Places;
use super::tree::{self, TreeError, Until};
use super::user::{self, CommandUser, WeakRoot};
use crate::interrupt::Interrupt;

/// The name of every run directory begins so; nothing else in a base is ever touched.
const RUN_PREFIX: &str = "run-";

const LOCK: &CStr = c"lock";

/// The mode of what is above a workspace whose user is not ours: it may go through, and not look
/// around.
const PASSABLE: Mode = Mode::RWXU.union(Mode::XGRP).union(Mode::XOTH);

const OPEN_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// How often a starting engine lets a sweeping one have its new directory.
const START_TRIES: usize = 16;

/// How long one workspace may take to be emptied. Generous: only something that keeps making files
/// gets there.
const EMPTY_LIMIT: Duration = Duration::from_secs(300);

/// What callers are told of a workspace that somebody outside has removed or replaced.
pub(crate) const GONE: &str = "the workspace was removed or replaced from outside";

/// What can go wrong with the directories of the sandbox.
#[derive(Debug)]
pub(crate) enum WorkspaceError {
    /// The base in the system's temporary directory exists, and somebody else made it or could
    /// have changed what is in it.
    UntrustedBase {
        /// The base.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The user that commands run as cannot get to the workspaces.
    Barred {
        /// The first directory that it may not pass through.
        path: PathBuf,
        /// The user.
        user: CommandUser,
    },
    /// This process is root, and may not do what it takes to give the workspaces to the user that
    /// commands run as, and to empty them.
    WeakRoot(WeakRoot),
    /// The start was interrupted.
    Interrupted,
    /// The system refused.
    Io {
        /// What was tried: "create", "empty", ….
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl WorkspaceError {
    fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.to_owned(), source: source.into() }
    }

    fn tree(doing: &'static str, path: &Path, error: TreeError) -> Self {
        Self::io(doing, &path.join(error.entry), error.source)
    }
}

impl fmt::Display for WorkspaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UntrustedBase { path, why } => {
                let path = path.display();
                write!(f, "cannot trust {path} ({why}); remove it or choose another directory")
            }
            Self::Barred { path, user } => {
                let (uid, path) = (user.uid(), path.display());
                write!(
                    f,
                    "commands run as user {uid}, who may not pass through {path}; allow it \
                     (chmod o+x) or choose another data directory"
                )
            }
            Self::WeakRoot(weak) => weak.fmt(f),
            Self::Interrupted => f.write_str("the start was interrupted"),
            Self::Io { doing, path, source } => {
                write!(f, "cannot {doing} {}: {source}", path.display())
            }
        }
    }
}

impl std::error::Error for WorkspaceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::UntrustedBase { .. }
            | Self::Barred { .. }
            | Self::WeakRoot(_)
            | Self::Interrupted => None,
        }
    }
}

/// The directory of one engine, with a workspace for each slot. Removed, with everything in it, by
/// [`close`](Self::close) or on drop.
#[derive(Debug)]
pub(crate) struct DataDir {
    run: RunDir,
    base: OwnedFd,
    workspaces: Vec<Arc<Workspace>>,
    identity: Arc<Identity>,
    removed: bool,
}

/// A run directory whose lock we hold.
#[derive(Debug)]
struct RunDir {
    name: String,
    path: PathBuf,
    dir: OwnedFd,
    /// Never read: it holds the flock until it is closed.
    _lock: File,
}

impl DataDir {
    /// Makes a data directory with `slots` empty workspaces, after removing what dead engines left
    /// in the same base. Blocks for file system work only.
    ///
    /// `base` is made if it does not exist, and may be shared by any number of engines and users.
    /// Defaults to `tool-executor-<uid>` in the system's temporary directory, which must then be
    /// ours alone: a directory, no symlink, of our own, with mode 0700.
    ///
    /// With a `user` the workspaces belong to that one, and what is above them has mode 0711; only
    /// a given base that exists is left as it is.
    ///
    /// The removal may take minutes, where a dead engine has left a million files; `interrupt` ends
    /// it, and nothing of the new directory is left then.
    ///
    /// # Errors
    /// [`WorkspaceError::UntrustedBase`] for the default base, [`WorkspaceError::Barred`] for a
    /// place that `user` cannot get to, [`WorkspaceError::WeakRoot`] where this process cannot do
    /// for `user` what it has to, [`WorkspaceError::Interrupted`], [`WorkspaceError::Io`].
    pub(crate) fn create_unless(
        interrupt: &Interrupt,
        base: Option<&Path>,
        slots: usize,
        user: Option<CommandUser>,
    ) -> Result<Self, WorkspaceError> {
        let (path, base) = match base {
            Some(path) => open_given_base(path, user)?,
            None => {
                let uid = rustix::process::geteuid().as_raw();
                let base = std::env::temp_dir().join(format!("tool-executor-{uid}"));
                open_private_base(base, user)?
            }
        };
        sweep(&path, &base, interrupt);
        if interrupt.is_interrupted() {
            return Err(WorkspaceError::Interrupted);
        }
        let run = RunDir::create(&path, &base)?;
        // From here on a failure removes what was made.
        let identity = Arc::new(Identity::detect(user));
        let workspaces = Vec::with_capacity(slots);
        let mut data = Self { run, base, workspaces, identity, removed: false };
        if user.is_some() {
            let opened = rustix::fs::openat(&data.run.dir, c".", OPEN_DIR, Mode::empty());
            opened
                .and_then(|dir| rustix::fs::fchmod(dir, PASSABLE))
                .map_err(|errno| WorkspaceError::io("open up", &data.run.path, errno))?;
        }
        if let Some(user) = user {
            user::trial_of_files(user, data.run.dir.as_fd()).map_err(|weak| {
                // With all capabilities it is the place: a file system without owners, or a full
                // one.
                match weak.lacks_capabilities() && !weak.is_shortage() {
                    true => WorkspaceError::WeakRoot(weak),
                    false => WorkspaceError::io("use, as root must,", &data.run.path, weak.source),
                }
            })?;
        }
        for slot in 0..slots {
            if interrupt.is_interrupted() {
                return Err(WorkspaceError::Interrupted);
            }
            let identity = data.identity.clone();
            let workspace = Workspace::create(&data.run.path, slot, 0, user, identity)?;
            data.workspaces.push(Arc::new(workspace));
        }
        if let (Some(user), Some(workspace)) = (user, data.workspaces.first()) {
            let path = workspace.path();
            match user.obstacle(path) {
                Ok(None) => {}
                Ok(Some(path)) => return Err(WorkspaceError::Barred { path, user }),
                Err(error) => return Err(WorkspaceError::io("look at", path, error)),
            }
        }
        Ok(data)
    }

    /// As [`create_unless`](Self::create_unless), without an interrupt.
    #[cfg(test)]
    pub(crate) fn create(
        base: Option<&Path>,
        slots: usize,
        user: Option<CommandUser>,
    ) -> Result<Self, WorkspaceError> {
        Self::create_unless(&Interrupt::new(), base, slots, user)
    }

    /// Makes a directory of this name beside the workspaces.
    ///
    /// # Errors
    /// As `mkdir(2)`.
    pub(crate) fn make_dir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.run.path.join(name);
        std::fs::create_dir(&path)?;
        Ok(path)
    }

    /// As [`make_dir`](Self::make_dir), one that commands' user may pass through and not look
    /// around in.
    ///
    /// # Errors
    /// As `mkdir(2)`.
    pub(crate) fn make_passable_dir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.make_dir(name)?;
        // Whatever the umask says.
        rustix::fs::chmod(&path, PASSABLE)?;
        Ok(path)
    }

    /// The host path of this data directory.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.run.path
    }

    /// Who commands in the workspaces are.
    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The workspaces, by slot number, until they are taken.
    pub(crate) fn workspaces(&self) -> &[Arc<Workspace>] {
        &self.workspaces
    }

    /// Takes the workspaces out, for their slots to have and to renew.
    pub(crate) fn take_workspaces(&mut self) -> Vec<Arc<Workspace>> {
        std::mem::take(&mut self.workspaces)
    }

    /// Removes the directory and everything in it. Blocks for as long as the file system needs,
    /// until `deadline` at most. Whoever still holds a [`Workspace`] finds it gone.
    ///
    /// # Errors
    /// The first entry that resisted, the rest is removed; or there was no time. Then the next
    /// engine goes on with it.
    pub(crate) fn close(mut self, deadline: Instant) -> Result<(), WorkspaceError> {
        self.removed = true;
        self.run.remove(&self.base, deadline)
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Err(error) = self.run.remove(&self.base, Instant::now() + EMPTY_LIMIT) {
            log::warn!("{error}");
        }
    }
}

impl RunDir {
    /// Makes a run directory and takes its lock.
    fn create(base_path: &Path, base: &OwnedFd) -> Result<Self, WorkspaceError> {
        for _ in 0..START_TRIES {
            let name = format!("{RUN_PREFIX}{}", uuid::Uuid::new_v4().simple());
            let path = base_path.join(&name);
            let failed = |errno| WorkspaceError::io("create", &path, errno);
            rustix::fs::mkdirat(base, &name, Mode::RWXU).map_err(failed)?;
            match Self::lock(base_path, base, &name, OFlags::CREATE) {
                // Our lock counts if no sweeper removed the directory before we had it.
                Ok(Some(run)) if exists(base, &name) => return Ok(run),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(WorkspaceError::io("create a directory in", base_path, Errno::AGAIN))
    }

    /// Takes the lock of a run directory of ours. `None` if somebody else has it, or the directory
    /// is not ours.
    fn lock(
        base_path: &Path,
        base: &OwnedFd,
        name: &str,
        create: OFlags,
    ) -> Result<Option<Self>, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(base, name, flags, Mode::empty())?;
        if rustix::fs::fstat(&dir)?.st_uid != rustix::process::geteuid().as_raw() {
            return Ok(None);
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | create;
        let lock = File::from(rustix::fs::openat(&dir, LOCK, flags, Mode::RUSR | Mode::WUSR)?);
        match lock.try_lock() {
            Ok(()) => {
                let path = base_path.join(name);
                Ok(Some(Self { name: name.to_owned(), path, dir, _lock: lock }))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
            }
        }
    }

    /// Removes the directory, its lock last, so that an interrupted removal is taken up by the next
    /// sweep.
    fn remove<'a>(
        &'a self,
        base: &OwnedFd,
        until: impl Into<Until<'a>>,
    ) -> Result<(), WorkspaceError> {
        tree::empty(self.dir.as_fd(), Some(LOCK), until)
            .map_err(|error| WorkspaceError::tree("remove", &self.path, error))?;
        let removed = rustix::fs::unlinkat(&self.dir, LOCK, AtFlags::empty())
            .and_then(|()| rustix::fs::unlinkat(base, &self.name, AtFlags::REMOVEDIR));
        match removed {
            // A sweeper may remove the empty directory before we do.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(WorkspaceError::io("remove", &self.path, errno)),
        }
    }
}

/// Removes the run directories of dead engines, until it is interrupted.
/// A failure is logged: it must not keep us from starting.
fn sweep(base_path: &Path, base: &OwnedFd, interrupt: &Interrupt) {
    let entries = match Dir::read_from(base) {
        Ok(entries) => entries,
        Err(errno) => return log::warn!("cannot read {}: {errno}", base_path.display()),
    };
    for entry in entries.flatten() {
        if interrupt.is_interrupted() {
            return;
        }
        let Some(name) = entry.file_name().to_str().ok().filter(|n| n.starts_with(RUN_PREFIX))
        else {
            continue;
        };
        let swept = match RunDir::lock(base_path, base, name, OFlags::empty()) {
            Ok(Some(dead)) => {
                let until = Until::interrupted(Instant::now() + EMPTY_LIMIT, interrupt);
                dead.remove(base, until).map(|()| true)
            }
            Ok(None) => Ok(false),
            // It is about to be locked by a starting engine, or that engine died: then it is empty.
            Err(Errno::NOENT) => Ok(rustix::fs::unlinkat(base, name, AtFlags::REMOVEDIR).is_ok()),
            // A directory of another user, or no directory.
            Err(Errno::ACCESS | Errno::PERM | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(errno) => Err(WorkspaceError::io("look at", &base_path.join(name), errno)),
        };
        match swept {
            Ok(true) => {
                log::info!("removed {}, left by a dead engine", base_path.join(name).display())
            }
            Ok(false) => {}
            // The next one goes on with it.
            Err(_) if interrupt.is_interrupted() => return,
            Err(error) => log::warn!("left by a dead engine: {error}"),
        }
    }
}

fn exists(dir: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Opens a base that the user chose. It is trusted: its path is no secret that another user could
/// have waited for.
fn open_given_base(
    path: &Path,
    user: Option<CommandUser>,
) -> Result<(PathBuf, OwnedFd), WorkspaceError> {
    make_missing(path, if user.is_some() { PASSABLE } else { Mode::RWXU })
        .map_err(|error| WorkspaceError::io("create", path, error))?;
    let failed = |error| WorkspaceError::io("open", path, error);
    let path = path.canonicalize().map_err(failed)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(|errno| WorkspaceError::io("open", &path, errno))?;
    Ok((path, dir))
}

/// Makes what is missing of this directory and of those above it, with such a mode whatever the
/// umask says: a base that bars the way to itself could not be used.
fn make_missing(path: &Path, mode: Mode) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.is_dir();
    let missing: Vec<_> = path.ancestors().take_while(is_missing).collect();
    for path in missing.into_iter().rev() {
        match rustix::fs::mkdir(path, mode) {
            Ok(()) => rustix::fs::chmod(path, mode)?,
            // Another engine was faster.
            Err(Errno::EXIST) if path.is_dir() => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Opens a base at a path that every user of the machine can guess, and could have made before us.
fn open_private_base(
    path: PathBuf,
    user: Option<CommandUser>,
) -> Result<(PathBuf, OwnedFd), WorkspaceError> {
    match rustix::fs::mkdir(&path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(WorkspaceError::io("create", &path, errno)),
    }
    let others = Mode::RWXG | Mode::RWXO;
    // Root's may have been passable for an engine with a `user` before; what is in it protects
    // itself.
    let root = rustix::process::geteuid().is_root();
    let forbidden = if root { others - PASSABLE } else { others };
    let flags = OPEN_DIR | OFlags::NOFOLLOW;
    let why = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(dir) => {
            let stat = rustix::fs::fstat(&dir)
                .map_err(|errno| WorkspaceError::io("look at", &path, errno))?;
            if stat.st_uid != rustix::process::geteuid().as_raw() {
                "it belongs to another user"
            } else if Mode::from_raw_mode(stat.st_mode).intersects(forbidden) {
                "other users may enter it"
            } else {
                if user.is_some() {
                    rustix::fs::fchmod(&dir, PASSABLE)
                        .map_err(|errno| WorkspaceError::io("open up", &path, errno))?;
                }
                return Ok((path, dir));
            }
        }
        Err(Errno::NOTDIR | Errno::LOOP) => "it is not a directory",
        Err(Errno::ACCESS) => "it belongs to another user",
        Err(errno) => return Err(WorkspaceError::io("open", &path, errno)),
    };
    Err(WorkspaceError::UntrustedBase { path, why })
}

/// The files of one slot: its workspace, its sandbox's `/tmp`, and the home directory of its user.
/// What is in them was made by a model.
#[derive(Debug)]
pub(crate) struct Workspace {
    slot: usize,
    /// How many its slot had before.
    life: u64,
    workspace: Directory,
    temporary: Directory,
    home: Directory,
    identity: Arc<Identity>,
    owner: Option<CommandUser>,
    /// How many calls have had their output kept in a file.
    outputs: AtomicU64,
}

/// A directory that was made at `path`, held.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    root: Root,
}

impl Workspace {
    /// Makes an empty workspace in a run directory, with what belongs to it, for `owner`, or for
    /// ourselves.
    fn create(
        run: &Path,
        slot: usize,
        life: u64,
        owner: Option<CommandUser>,
        identity: Arc<Identity>,
    ) -> Result<Self, WorkspaceError> {
        let place = |kind: &str| match life {
            0 => run.join(format!("{kind}_{slot}")),
            life => run.join(format!("{kind}_{slot}-{life}")),
        };
        let make = || {
            let workspace = make_private_dir(place("slot"), owner)?;
            let temporary = make_private_dir(place("tmp"), owner)?;
            let home = make_private_dir(place("home"), owner)?;
            Ok((workspace, temporary, home))
        };
        let (workspace, temporary, home) = make().inspect_err(|_| {
            // Nothing is in those that were made.
            for kind in ["slot", "tmp", "home"] {
                let _ = std::fs::remove_dir(place(kind));
            }
        })?;
        let outputs = AtomicU64::new(0);
        Ok(Self { slot, life, workspace, temporary, home, identity, owner, outputs })
    }

    /// A new, empty workspace for its slot. Blocks for the making of three directories.
    ///
    /// # Errors
    /// As of making it: the disk may be full of what is in this one ([`clear`](Self::clear)).
    pub(crate) fn renew(&self) -> Result<Self, WorkspaceError> {
        let run = self.path().parent().unwrap_or(Path::new("/"));
        Self::create(run, self.slot, self.life + 1, self.owner, self.identity.clone())
    }

    /// What is to be removed of it once its slot has another. Holds no descriptors.
    pub(crate) fn remains(&self) -> Remains {
        Remains { directories: self.directories().map(Path::to_owned) }
    }

    /// The same files, as if they were another slot's too.
    #[cfg(test)]
    pub(crate) fn in_slot(&self, slot: usize) -> Self {
        let open = |one: &Directory| Directory {
            path: one.path.clone(),
            root: Root::open(&one.path).unwrap(),
        };
        Self {
            slot,
            life: self.life,
            workspace: open(&self.workspace),
            temporary: open(&self.temporary),
            home: open(&self.home),
            identity: self.identity.clone(),
            owner: self.owner,
            outputs: AtomicU64::new(0),
        }
    }

    /// The host path of a path as commands may write it: from the workspace, or from their home.
    #[cfg(test)]
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        let given = Path::new(path);
        let from_home = given.strip_prefix("~").or_else(|_| given.strip_prefix(self.inside().home));
        match from_home {
            Ok(path) => self.home().join(path),
            // Unless it is absolute.
            Err(_) => self.path().join(path),
        }
    }

    /// The number of its slot.
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    /// Its host path, to be bound at `/workspace`. Not for the model's eyes.
    pub(crate) fn path(&self) -> &Path {
        &self.workspace.path
    }

    /// The host path of its `/tmp`.
    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary.path
    }

    /// The host path of its user's home directory.
    pub(crate) fn home(&self) -> &Path {
        &self.home.path
    }

    /// The host paths of its directories, the workspace first.
    pub(crate) fn directories(&self) -> [&Path; 3] {
        [self.path(), self.temporary(), self.home()]
    }

    /// Where its directories are on the host.
    pub(super) fn on_host(&self) -> Places<'_> {
        let [workspace, temporary, home] = self.directories();
        Places { workspace, temporary, home }
    }

    /// Where its directories are inside a sandbox.
    pub(super) fn inside(&self) -> Places<'_> {
        let home = self.identity.home();
        Places { workspace: Path::new(MOUNT_POINT), temporary: Path::new(TEMPORARY), home }
    }

    /// Who its commands are.
    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Whose it is, if not ours.
    pub(crate) fn owner(&self) -> Option<CommandUser> {
        self.owner
    }

    /// The workspace itself.
    fn root(&self) -> &Root {
        &self.workspace.root
    }

    /// Its user's home directory, held.
    pub(super) fn home_root(&self) -> &Root {
        &self.home.root
    }

    /// What the model's paths mean.
    pub(crate) fn view(&self) -> View<'_> {
        let Places { workspace, temporary, home } = self.inside();
        View::new([
            Mount { place: workspace, alias: None, root: &self.workspace.root },
            Mount { place: temporary, alias: None, root: &self.temporary.root },
            Mount { place: home, alias: Some(self.home()), root: &self.home.root },
        ])
    }

    /// Whether its directory is still where it was made: somebody outside may have removed or
    /// replaced it. Two system calls.
    pub(crate) fn is_there(&self) -> bool {
        is_at(self.path(), self.root()).unwrap_or(false)
    }

    /// The number of the next call whose output is kept in a file; they begin with 1.
    pub(super) fn next_output(&self) -> u64 {
        self.outputs.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Removes everything in its directories. Blocks for as long as the file system needs,
    /// five minutes at most for each.
    ///
    /// # Errors
    /// [`WorkspaceError::Io`] for the first entry that resisted; everything else is removed.
    pub(crate) fn clear(&self) -> Result<(), WorkspaceError> {
        let [workspace, temporary, home] = [&self.workspace, &self.temporary, &self.home]
            .map(|directory| empty(&directory.path, &directory.root));
        workspace.and(temporary).and(home)
    }

    /// Copies its files, directories and symlinks into `dest`, which is made if it does not exist.
    /// Nothing there is overwritten. FIFOs, sockets and devices are skipped, and set-user-id bits
    /// dropped. Blocks for as long as the file system needs. A command may run meanwhile: what it
    /// changes is copied as it was at some moment, or not at all.
    ///
    /// # Errors
    /// The first entry that could not be copied; everything else is. Directories nested deeper than
    /// 128 levels count as such.
    pub(crate) fn save_to(&self, dest: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dest)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let to = rustix::fs::open(dest, flags, Mode::empty())?;
        tree::copy(self.root().dir(), to.as_fd()).map_err(|error| {
            let kind = error.source.kind();
            io::Error::new(kind, WorkspaceError::tree("save", self.path(), error))
        })
    }
}

/// Makes the directory `path`, which must not exist, for `owner`, or for ourselves.
fn make_private_dir(
    path: PathBuf,
    owner: Option<CommandUser>,
) -> Result<Directory, WorkspaceError> {
    rustix::fs::mkdir(&path, Mode::RWXU)
        .map_err(|errno| WorkspaceError::io("create", &path, errno))?;
    let root = Root::open(&path).map_err(|error| WorkspaceError::io("open", &path, error))?;
    if let Some(user) = owner {
        let (uid, gid) = (Some(user.uid()), Some(user.gid()));
        rustix::fs::chownat(root.dir(), c"", uid, gid, AtFlags::EMPTY_PATH)
            .map_err(|errno| WorkspaceError::io("give away", &path, errno))?;
    }
    Ok(Directory { path, root })
}

/// What is left of a workspace whose slot has another.
#[derive(Debug)]
pub(crate) struct Remains {
    directories: [PathBuf; 3],
}

impl Remains {
    /// Removes it. Blocks for as long as the file system needs, five minutes at most for each of
    /// its directories.
    ///
    /// # Errors
    /// The first entry that resisted; everything else is removed, and the engine's end, or the next
    /// engine, tries once more.
    pub(crate) fn remove(self) -> Result<(), WorkspaceError> {
        let [workspace, temporary, home] = self.directories.map(|path| remove(&path));
        workspace.and(temporary).and(home)
    }
}

/// Removes a directory of ours; one that is gone is no failure.
fn remove(path: &Path) -> Result<(), WorkspaceError> {
    let root = match Root::open(path) {
        Ok(root) => root,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(WorkspaceError::io("open", path, error)),
    };
    empty(path, &root)?;
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(WorkspaceError::io("remove", path, errno)),
    }
}

/// Empties the directory `root`, which was made at `path`.
fn empty(path: &Path, root: &Root) -> Result<(), WorkspaceError> {
    tree::empty(root.dir(), None, Instant::now() + EMPTY_LIMIT)
        .map_err(|error| WorkspaceError::tree("empty", path, error))
}

/// Whether `path` is the directory `root`.
fn is_at(path: &Path, root: &Root) -> Result<bool, Errno> {
    let ours = rustix::fs::fstat(root.dir())?;
    Ok(std::fs::symlink_metadata(path)
        .is_ok_and(|there| (there.dev(), there.ino()) == (ours.st_dev, ours.st_ino)))
}

#[cfg(test)]
mod tests;
