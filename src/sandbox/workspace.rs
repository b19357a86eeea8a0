//! The directories of the embedded sandbox: where they are, who may use them, how they end.
//!
//! ```text
//! /tmp/tool-executor-1000/       the base: one a user, mode 0700 (root's: 0711)
//!   run-<uuid>/                  a data directory: one an engine
//!     lock                       held by flock for as long as the engine lives
//!     slot_0/ … slot_<n-1>/      what belongs to a slot; only its user may pass through:
//!       workspace/                 bound at /workspace in its sandbox
//!       tmp/                       its sandbox's /tmp
//!       home/                      the home directory of its user
//!       sessions/                  what the engine and the slot's shells say to each other
//!       workspace-1/, tmp-1/, …    the same after the slot's first reset, and so on
//!     etc/                       what all sandboxes see as /etc
//! ```
//!
//! Directories above a slot's own can be passed through by every user of the machine where slots
//! have other users than the engine. A slot's own cannot: what a command allows to all users – a
//! directory of mode 0777, a set-user-id program – is out of their reach.
//!
//! The engine makes one [`DataDir`] when it starts, takes its [`Workspace`]s, and closes it at its
//! end. What engines left behind that died without doing so is removed by the next one.
//!
//! **A reset is a new workspace** ([`Workspace::renew_with`]): nothing is cleaned in place, so no
//! access list, attribute, flag, mode or lock of the old one reaches the next trajectory, and it
//! takes no longer where more was written. The old directories are removed behind it
//! ([`Workspace::remains`]).
//!
//! **Layers** (`layered`). The directories of a slot that goes on above a snapshot, or begins from
//! one, are file systems of layers: what is on the host is only what was changed since, and the
//! whole is seen through a sandbox that mounts them.
//!
//! **A machine with the files of an image** ([`ImageFiles`]) has all it changes in `workspace/`, as
//! what is above the image's layers (`upper`); of `home/` it shows the complete outputs alone.
//!
//! Nothing here knows what runs in a slot: its processes must be gone before its workspace is
//! removed. If they are not, the removal stays safe, and ends, but may not succeed.

mod data_dir;
mod image;
mod image_user;
mod layered;
mod merged;

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use data_dir::{DataDir, base_path, open_base};
pub(crate) use image::{ImageFiles, MachineSpec, NoMachine, ShellId};
pub(crate) use layered::{Base, Grading, NoGrading, ToGrade};

use self::layered::{Beneath, Seen};
use super::identity::Identity;
use super::jail::{Overlay, UPPER};
use super::paths::{FindRoot, MOUNT_POINT, Mount, Root, TEMPORARY, View};
use super::settings::{self, Settings};
use super::shell::{Places, Shell};
use super::spool::DIRECTORY as OUTPUTS;
use super::tree::{self, TreeError};
use super::user::{CommandUser, WeakRoot};
use crate::spec::TrajectoryLimits;

/// The mode of what is above the slots where their users are not ours: these may go through, and
/// not look around.
const PASSABLE: Mode = Mode::RWXU.union(Mode::XGRP).union(Mode::XOTH);
/// The same of a slot's own directory, whose group is that of its user.
const PASSABLE_BY_GROUP: Mode = Mode::RWXU.union(Mode::XGRP);

const OPEN_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// How long one workspace may take to be emptied. Generous: only something that keeps making files
/// gets there.
const EMPTY_LIMIT: Duration = Duration::from_secs(300);

/// The directory of a slot's sessions, in that of the slot.
const SESSIONS_NAME: &str = "sessions";
/// Where that is inside a sandbox.
pub(super) const SESSIONS: &str = "/run/terminal";

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

/// The files of one slot: its workspace, its sandbox's `/tmp`, and the home directory of its user.
/// What is in them was made by a model.
#[derive(Debug)]
pub(crate) struct Workspace {
    slot: usize,
    /// How many its slot has had, for names that were never used.
    lives: Arc<AtomicU64>,
    workspace: Directory,
    temporary: Directory,
    home: Directory,
    /// What is beneath the three; nothing where it has an image's files.
    beneath: [Beneath; 3],
    /// The three as commands see them, where something is beneath them.
    seen: OnceLock<Box<Seen>>,
    /// What else a grader finds, if it is one's.
    grading: Option<Arc<Grading>>,
    /// The same in all its slot's lives: nothing of a model's is in it.
    sessions: PathBuf,
    identity: Arc<Identity>,
    owner: Option<CommandUser>,
    /// What its slot has where it has no image's files: who its commands are, and as whom.
    of_slot: (Arc<Identity>, Option<CommandUser>),
    /// The image whose files its machine has. Then its first directory has what was changed of
    /// them, and its home directory just the complete outputs.
    image: Option<Arc<ImageFiles>>,
    /// How many machines were founded in it.
    founded: AtomicU64,
    /// How many calls have had their output kept in a file.
    outputs: AtomicU64,
    /// What its trajectory's commands have beside what all have.
    settings: OnceLock<Settings>,
    /// Where they begin, if their trajectory has said so.
    directory: OnceLock<PathBuf>,
}

/// A directory that was made at `path`, held.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    root: Root,
}

impl Workspace {
    /// Makes the directory of a slot in a run directory, with an empty workspace and what belongs
    /// to it, for `owner`, or for ourselves.
    fn create(
        run: &Path,
        slot: usize,
        owner: Option<CommandUser>,
        identity: Arc<Identity>,
    ) -> Result<Self, WorkspaceError> {
        let path = run.join(format!("slot_{slot}"));
        rustix::fs::mkdir(&path, Mode::RWXU)
            .map_err(|errno| WorkspaceError::io("create", &path, errno))?;
        if let Some(user) = owner {
            rustix::fs::chown(&path, None, Some(user.gid()))
                .and_then(|()| rustix::fs::chmod(&path, PASSABLE_BY_GROUP))
                .map_err(|errno| WorkspaceError::io("open up", &path, errno))?;
        }
        let sessions = path.join(SESSIONS_NAME);
        make_passable_dir(&sessions)
            .map_err(|error| WorkspaceError::io("create", &sessions, error))?;
        Self::create_in(&path, slot, Arc::default(), (identity, owner), &Base::default())
    }

    /// Makes a workspace in the directory of its slot, in which all is as in `base`.
    fn create_in(
        directory: &Path,
        slot: usize,
        lives: Arc<AtomicU64>,
        of_slot: (Arc<Identity>, Option<CommandUser>),
        base: &Base,
    ) -> Result<Self, WorkspaceError> {
        let (image, beneath) = (base.image.clone(), base.trees.clone());
        let (identity, owner) = match &image {
            Some(image) => (image.identity().clone(), image.owner(of_slot.1)),
            None => (of_slot.0.clone(), base.owner.or(of_slot.1)),
        };
        // What is changed of an image is changed by the first process.
        let root = image.as_ref().map_or(owner, |image| image.founder(of_slot.1));
        let life = lives.fetch_add(1, Ordering::Relaxed);
        let place = |kind: &str| match life {
            0 => directory.join(kind),
            life => directory.join(format!("{kind}-{life}")),
        };
        let make = || {
            let [of_workspace, of_temporary, of_home] = &beneath;
            let workspace = of_workspace.make(place("workspace"), root)?;
            let temporary = of_temporary.make(place("tmp"), owner)?;
            let home = of_home.make(place("home"), owner)?;
            if let Some(image) = &image {
                let of_root = image.ids_of(of_slot.1).map(|user| user.as_inside(0, 0));
                make_shown_dir(place("workspace").join(UPPER), image.mode(), of_root)?;
                make_shown_dir(place("home").join(OUTPUTS), 0o755, owner)?;
            }
            Ok((workspace, temporary, home))
        };
        let (workspace, temporary, home) = make().inspect_err(|_| {
            // Nothing but empty directories is in those that were made.
            for kind in ["workspace", "tmp", "home"] {
                for inner in [UPPER, OUTPUTS] {
                    let _ = std::fs::remove_dir(place(kind).join(inner));
                }
                let _ = std::fs::remove_dir(place(kind));
            }
        })?;
        let (outputs, sessions) = (AtomicU64::new(0), directory.join(SESSIONS_NAME));
        let (founded, seen) = (AtomicU64::new(0), OnceLock::new());
        Ok(Self {
            slot,
            lives,
            workspace,
            temporary,
            home,
            beneath,
            seen,
            grading: None,
            sessions,
            identity,
            owner,
            of_slot,
            image,
            founded,
            outputs,
            settings: OnceLock::new(),
            directory: OnceLock::new(),
        })
    }

    /// A new, empty workspace for its slot, with the files of an image, or without one. Blocks for
    /// the making of a few directories.
    ///
    /// # Errors
    /// As of making it: the disk may be full of what is in this one ([`clear`](Self::clear)).
    pub(crate) fn renew_with(
        &self,
        image: Option<Arc<ImageFiles>>,
    ) -> Result<Self, WorkspaceError> {
        self.renew_from(&Base { image, ..Base::default() })
    }

    /// A new workspace for its slot, in which all is as in `base`. Blocks for the making of a few
    /// directories.
    ///
    /// # Errors
    /// As of [`renew_with`](Self::renew_with).
    pub(crate) fn renew_from(&self, base: &Base) -> Result<Self, WorkspaceError> {
        let lives = self.lives.clone();
        Self::create_in(self.directory(), self.slot, lives, self.of_slot.clone(), base)
    }

    /// The directory of its slot.
    fn directory(&self) -> &Path {
        self.sessions.parent().unwrap_or(Path::new("/"))
    }

    /// What its trajectory's commands have beside what all have.
    pub(super) fn settings(&self) -> &Settings {
        self.settings.get().unwrap_or(&settings::NOTHING)
    }

    /// Whether its trajectory's commands have no network, whatever their calls say.
    pub(crate) fn cuts_network(&self) -> bool {
        self.settings().cuts_network
    }

    /// What its slot may use, as far as its trajectory has less than the operator's limits.
    pub(crate) fn limits(&self) -> &TrajectoryLimits {
        &self.settings().limits
    }

    /// Whether processes that a command of its trajectory leaves running are kept, where the
    /// trajectory says so.
    pub(crate) fn keeps_background(&self) -> Option<bool> {
        self.settings().keeps_background
    }

    /// Where its trajectory's commands begin, if the trajectory says so.
    pub(crate) fn begins_in(&self) -> Option<&Path> {
        self.directory.get().map(PathBuf::as_path)
    }

    /// Has its trajectory's commands begin in this directory, which is there. Once.
    pub(crate) fn begin_in(&self, directory: PathBuf) {
        let is_first = self.directory.set(directory).is_ok();
        debug_assert!(is_first, "where commands begin is said once");
    }

    /// Has it have the settings of another workspace of its trajectory.
    pub(crate) fn set_as(&self, other: &Self) {
        if let Some(settings) = other.settings.get() {
            self.set(settings.clone());
        }
    }

    /// Has commands begin where they do in another workspace of its trajectory.
    pub(crate) fn begin_as(&self, other: &Self) {
        if let Some(directory) = other.directory.get() {
            self.begin_in(directory.clone());
        }
    }

    /// Sets them, once: before anything runs in it.
    pub(crate) fn set(&self, settings: Settings) {
        let is_first = self.settings.set(settings).is_ok();
        debug_assert!(is_first, "the settings of a workspace are set once");
    }

    /// What is to be removed of it once its slot has another. Holds no descriptors.
    pub(crate) fn remains(&self) -> Remains {
        Remains { directories: self.directories().map(Path::to_owned).to_vec() }
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
            lives: self.lives.clone(),
            workspace: open(&self.workspace),
            temporary: open(&self.temporary),
            home: open(&self.home),
            beneath: self.beneath.clone(),
            seen: OnceLock::new(),
            grading: None,
            sessions: self.sessions.clone(),
            identity: self.identity.clone(),
            owner: self.owner,
            of_slot: self.of_slot.clone(),
            image: self.image.clone(),
            founded: AtomicU64::new(0),
            outputs: AtomicU64::new(0),
            settings: self.settings.clone(),
            directory: self.directory.clone(),
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

    /// The host path of the directory in which its slot's sessions make their own. Commands may
    /// only pass through.
    pub(super) fn sessions(&self) -> &Path {
        &self.sessions
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
        let workspace = self.image.as_ref().map(|image| image.working_dir());
        let workspace = workspace.unwrap_or(Path::new(MOUNT_POINT));
        Places { workspace, temporary: Path::new(TEMPORARY), home }
    }

    /// The image whose files its machine has, and who its commands are there.
    pub(crate) fn image(&self) -> Option<&Arc<ImageFiles>> {
        self.image.as_ref()
    }

    /// Which shell its commands are for, where that is an image's.
    pub(crate) fn shell_kind(&self) -> Option<Shell> {
        self.image.as_ref().map(|image| image.shell_kind())
    }

    /// Whether its machine has layers, so that no second machine may have them at the same time.
    pub(super) fn is_layered(&self) -> bool {
        self.image.is_some() || self.has_layers()
    }

    /// The name of the directory that the kernel works in for the overlays of the next machine.
    pub(super) fn next_work(&self) -> String {
        format!("work-{}", self.founded.fetch_add(1, Ordering::Relaxed))
    }

    /// The root directory of its machine, where that is an image's. Each time it is another one
    /// above the same files.
    pub(super) fn root_overlay(&self) -> Option<Overlay> {
        let user = self.user_of_slot();
        self.image.as_ref().map(|image| image.overlay(self.path(), self.next_work(), user))
    }

    /// Whom the first processes of its jails run as, if not as us.
    pub(super) fn founder(&self) -> Option<CommandUser> {
        match &self.image {
            Some(image) => image.founder(self.of_slot.1),
            None => self.owner,
        }
    }

    /// The user whose ids its machine has, whoever its commands are: that of its slot, or of all
    /// machines from images; `None` if that is us.
    pub(crate) fn user_of_slot(&self) -> Option<CommandUser> {
        match &self.image {
            Some(image) => image.ids_of(self.of_slot.1),
            None => self.of_slot.1,
        }
    }

    /// Lets all users pass through the directory of its slot, to what they may use in it.
    ///
    /// # Errors
    /// As `chmod(2)`.
    pub(super) fn open_up(&self) -> Result<(), WorkspaceError> {
        rustix::fs::chmod(self.directory(), PASSABLE)
            .map_err(|errno| WorkspaceError::io("open up", self.directory(), errno))
    }

    /// The directory on the host that the first processes of its jails do not get to, if there is
    /// one: what it shows of that is handed over.
    pub(super) fn barred(&self) -> Option<&Path> {
        self.founder().filter(|user| user.is_barred())?;
        self.directory().ancestors().nth(2)
    }

    /// The host path of the complete outputs of its calls, in its home directory.
    pub(super) fn outputs_directory(&self) -> PathBuf {
        self.home().join(OUTPUTS)
    }

    /// Who its commands are.
    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Whose it is, if not ours.
    pub(crate) fn owner(&self) -> Option<CommandUser> {
        self.owner
    }

    /// The three directories as commands see them, held.
    fn roots(&self) -> [&Root; 3] {
        match self.seen.get() {
            Some(seen) => seen.latest(),
            None => [&self.workspace.root, &self.temporary.root, &self.home.root],
        }
    }

    /// Its user's home directory, held.
    pub(super) fn home_root(&self) -> &Root {
        self.roots()[2]
    }

    /// What the model's paths mean, where `find_root` gives what is around its directories.
    pub(super) fn view<'a>(&'a self, find_root: FindRoot<'a>) -> View<'a> {
        let Places { workspace, temporary, home } = self.inside();
        if self.image.is_some() || self.needs_machine() {
            // All that commands see is in their machine's root.
            return View::new(Vec::new(), self.begins_in().unwrap_or(workspace), find_root);
        }
        let roots = self.roots();
        let mounts = vec![
            Mount { place: workspace, alias: None, root: roots[0] },
            Mount { place: temporary, alias: None, root: roots[1] },
            Mount { place: home, alias: Some(self.home()), root: roots[2] },
        ];
        View::new(mounts, self.begins_in().unwrap_or(workspace), find_root)
    }

    /// Whether its directory is still where it was made: somebody outside may have removed or
    /// replaced it. Two system calls.
    pub(crate) fn is_there(&self) -> bool {
        is_at(self.path(), &self.workspace.root).unwrap_or(false)
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

    /// Copies its files, directories and symlinks, or what its machine has changed of an image's,
    /// into `dest`, which is made if it does not exist. Nothing there is overwritten. FIFOs,
    /// sockets and devices are skipped, and set-user-id bits dropped. Blocks for as long as the
    /// file system needs. A command may run meanwhile: what it changes is copied as it was at some
    /// moment, or not at all.
    ///
    /// # Errors
    /// The first entry that could not be copied; everything else is. Directories nested deeper than
    /// 128 levels count as such.
    pub(crate) fn save_to(&self, dest: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dest)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let to = rustix::fs::open(dest, flags, Mode::empty())?;
        let from = match self.image {
            Some(_) => {
                let all = self.workspace.root.dir();
                rustix::fs::openat(all, UPPER, OPEN_DIR, Mode::empty())?
            }
            None if self.needs_machine() => {
                let text = "no machine shows the layers of this workspace";
                return Err(io::Error::other(text));
            }
            None => self.roots()[0].dir().try_clone_to_owned()?,
        };
        tree::copy(from.as_fd(), to.as_fd()).map_err(|error| {
            let kind = error.source.kind();
            io::Error::new(kind, WorkspaceError::tree("save", self.path(), error))
        })
    }
}

/// Makes a directory of ours that commands' user may pass through, and not look around in.
fn make_passable_dir(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)?;
    // Whatever the umask says.
    Ok(rustix::fs::chmod(path, PASSABLE)?)
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

/// Makes a directory in one of ours that commands see: with this mode, for `owner` or for
/// ourselves.
fn make_shown_dir(
    path: PathBuf,
    mode: u32,
    owner: Option<CommandUser>,
) -> Result<(), WorkspaceError> {
    let failed = |errno| WorkspaceError::io("create", &path, errno);
    rustix::fs::mkdir(&path, Mode::RWXU).map_err(failed)?;
    if let Some(user) = owner {
        let ids = (Some(user.uid()), Some(user.gid()));
        rustix::fs::chown(&path, ids.0, ids.1).map_err(failed)?;
    }
    rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).map_err(failed)
}

/// What is left of a workspace whose slot has another.
#[derive(Debug)]
pub(crate) struct Remains {
    directories: Vec<PathBuf>,
}

impl Remains {
    /// These directories of ours, and what is in them.
    pub(crate) fn of(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }

    /// Removes it. Blocks for as long as the file system needs, five minutes at most for each of
    /// its directories.
    ///
    /// # Errors
    /// The first entry that resisted; everything else is removed, and the engine's end, or the next
    /// engine, tries once more.
    pub(crate) fn remove(self) -> Result<(), WorkspaceError> {
        let removed: Vec<_> = self.directories.iter().map(|path| remove(path)).collect();
        removed.into_iter().collect()
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
