//! The directory of one engine, in a base that it may share with others: made, locked, removed.
//!
//! **Who owns a run directory**: whoever holds the flock of its `lock` may do with it what they
//! like. An engine that is just starting has made the directory and does not hold the lock yet, so
//! another one may take it for a left-over: then that one has the lock (or has removed the
//! directory), the starting one sees it and tries again under a new name. A directory without a
//! `lock` is removed only if it is empty, which the kernel checks. A lock dies with its process,
//! so a left-over can never look alive.

use std::ffi::CStr;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{EMPTY_LIMIT, OPEN_DIR, PASSABLE, Workspace, WorkspaceError};
use crate::interrupt::Interrupt;
use crate::sandbox::identity::Identity;
use crate::sandbox::jail;
use crate::sandbox::tree::{self, Until};
use crate::sandbox::user::{self, SlotUsers};

/// The name of every run directory begins so; nothing else in a base is ever touched.
const RUN_PREFIX: &str = "run-";

const LOCK: &CStr = c"lock";

/// How often a starting engine lets a sweeping one have its new directory.
const START_TRIES: usize = 16;

/// The directory of one engine, with a workspace for each slot. Removed, with everything in it, by
/// [`close`](Self::close) or on drop.
#[derive(Debug)]
pub(crate) struct DataDir {
    run: RunDir,
    base: OwnedFd,
    workspaces: Vec<Arc<Workspace>>,
    identity: Arc<Identity>,
    /// Whose the workspaces are: their ids are theirs for as long as there are files of them.
    users: SlotUsers,
    /// Whether they do not get there by paths, so that what their jails show is handed over.
    hands_over: bool,
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
    /// The workspaces belong to these `users`. Where they are not this process's own, what is above
    /// the slots has mode 0711; only a given base that exists is left as it is.
    ///
    /// The removal may take minutes, where a dead engine has left a million files; `interrupt` ends
    /// it, and nothing of the new directory is left then.
    ///
    /// # Errors
    /// [`WorkspaceError::UntrustedBase`] for the default base, [`WorkspaceError::Barred`] for a
    /// place that a user cannot get to, [`WorkspaceError::WeakRoot`] where this process cannot do
    /// for a user what it has to, [`WorkspaceError::Interrupted`], [`WorkspaceError::Io`].
    pub(crate) fn create_unless(
        interrupt: &Interrupt,
        base: Option<&Path>,
        slots: usize,
        users: SlotUsers,
    ) -> Result<Self, WorkspaceError> {
        let user = users.of_slot(0);
        let hands_over = user.is_some() && jail::hands_over();
        let (path, base) = open_base(base, user.is_some() && !hands_over)?;
        sweep(&path, &base, interrupt);
        if interrupt.is_interrupted() {
            return Err(WorkspaceError::Interrupted);
        }
        let run = RunDir::create(&path, &base)?;
        // From here on a failure removes what was made.
        let identity = Arc::new(Identity::detect(user));
        let workspaces = Vec::with_capacity(slots);
        let mut data = Self {
            run,
            base,
            workspaces,
            identity,
            users: users.clone(),
            hands_over,
            removed: false,
        };
        if user.is_some() && !hands_over {
            let opened = rustix::fs::openat(&data.run.dir, c".", OPEN_DIR, Mode::empty());
            opened
                .and_then(|dir| rustix::fs::fchmod(dir, PASSABLE))
                .map_err(|errno| WorkspaceError::io("open up", &data.run.path, errno))?;
        }
        if let Some(user) = user {
            user::trial_of_files(user, data.run.dir.as_fd()).map_err(|weak| {
                // With all capabilities it is the place: a file system without owners, or a full
                // one. In a user namespace there is another way.
                match weak.is_harmless() || weak.lacks_capabilities() && !weak.is_shortage() {
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
            let owner = users.of_slot(slot).map(|user| user.with_barred(hands_over));
            let workspace = Workspace::create(&data.run.path, slot, owner, identity)?;
            data.workspaces.push(Arc::new(workspace));
        }
        if let (Some(user), Some(workspace)) =
            (user.filter(|_| !hands_over), data.workspaces.first())
        {
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
        users: impl Into<SlotUsers>,
    ) -> Result<Self, WorkspaceError> {
        Self::create_unless(&Interrupt::new(), base, slots, users.into())
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

    /// Removes such a directory, with everything in it. Blocks for as long as the file system
    /// needs.
    ///
    /// # Errors
    /// The first entry that resisted; everything else is removed.
    pub(crate) fn remove_dir(&self, name: &str) -> Result<(), WorkspaceError> {
        super::remove(&self.run.path.join(name))
    }

    /// The host path of the directory in which it and those of other engines are.
    pub(crate) fn base_path(&self) -> &Path {
        self.run.path.parent().unwrap_or(&self.run.path)
    }

    /// The host path of this data directory.
    pub(crate) fn path(&self) -> &Path {
        &self.run.path
    }

    /// Whether it is on an overlay file system.
    pub(crate) fn is_on_overlay(&self) -> bool {
        const OVERLAY: u64 = 0x794c_7630;
        rustix::fs::fstatfs(&self.run.dir).is_ok_and(|fs| fs.f_type as u64 == OVERLAY)
    }

    /// Whether what jails show of it is handed over to them: then no other user gets there.
    pub(crate) fn hands_over(&self) -> bool {
        self.hands_over
    }

    /// Whose the workspaces are.
    pub(crate) fn users(&self) -> &SlotUsers {
        &self.users
    }

    /// Who commands in the workspaces are.
    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Lets all users pass through the directories of the slots: machines that have the ids of one
    /// user in all slots find their files by paths.
    ///
    /// # Errors
    /// [`WorkspaceError::Io`].
    pub(crate) fn open_up_slots(&self) -> Result<(), WorkspaceError> {
        self.workspaces.iter().try_for_each(|workspace| workspace.open_up())
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
            Err(error) => {
                let path = base_path.join(name);
                log::warn!("left by a dead engine: {error}{}", remedy(&error, &path))
            }
        }
    }
}

/// What helps where an engine of the same user, whose slots had other ids, has left something.
fn remedy(error: &WorkspaceError, path: &Path) -> String {
    let is_barred = match error {
        WorkspaceError::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
        _ => false,
    };
    match is_barred && !rustix::process::geteuid().is_root() {
        true => format!(
            "; files of the user ids that /etc/subuid gives you are removed by: tool-executor \
             unshare rm -r {}",
            path.display()
        ),
        false => String::new(),
    }
}

fn exists(dir: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// The base that was given, or the default one: the same, whether it is in a namespace or not.
pub(crate) fn base_path(base: Option<&Path>) -> PathBuf {
    match base {
        Some(path) => path.to_owned(),
        None => {
            let uid = user::number_outside();
            std::env::temp_dir().join(format!("tool-executor-{uid}"))
        }
    }
}

/// Opens the base that was given, or the default one, and makes it where it is missing. Where it is
/// `passable` other users may go through it.
///
/// # Errors
/// [`WorkspaceError::UntrustedBase`] for the default base, [`WorkspaceError::Io`].
pub(crate) fn open_base(
    base: Option<&Path>,
    passable: bool,
) -> Result<(PathBuf, OwnedFd), WorkspaceError> {
    match base {
        Some(path) => open_given_base(path, passable),
        None => open_private_base(base_path(None), passable),
    }
}

/// Opens a base that the user chose. It is trusted: its path is no secret that another user could
/// have waited for.
fn open_given_base(path: &Path, passable: bool) -> Result<(PathBuf, OwnedFd), WorkspaceError> {
    make_missing(path, if passable { PASSABLE } else { Mode::RWXU })
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
pub(super) fn open_private_base(
    path: PathBuf,
    passable: bool,
) -> Result<(PathBuf, OwnedFd), WorkspaceError> {
    match rustix::fs::mkdir(&path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(WorkspaceError::io("create", &path, errno)),
    }
    let others = Mode::RWXG | Mode::RWXO;
    // It may have been passable for an engine whose slots had other users; what is in it protects
    // itself.
    let forbidden = others - PASSABLE;
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
                if passable {
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
