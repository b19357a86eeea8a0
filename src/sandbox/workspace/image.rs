//! What a slot's machine is made of that has the files of an image, and who its commands are.
//!
//! Found out when a trajectory begins, from the image's layers: they need not be mounted for that.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::image_user::{ImageUser, is_direct};
use super::merged::{FileId, Merged};
use crate::sandbox::identity::Identity;
use crate::sandbox::image::{Image, Layer};
use crate::sandbox::jail::{Hold, MOST_TREES, Overlay, Rights, Tree, User};
use crate::sandbox::shell::{self, Shell, ShellPath};
use crate::sandbox::toolbox::{self, LazyToolbox, Toolbox};
use crate::sandbox::user::{CommandUser, IdMap, WHOLE};

/// Where images have the programs that commands are run by.
const BASH: [&str; 3] = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"];
const SH: [&str; 2] = ["/bin/sh", "/usr/bin/sh"];
const TMUX: [&str; 3] = ["/usr/bin/tmux", "/usr/local/bin/tmux", "/bin/tmux"];
/// Where apt reads its settings.
const APT: &str = "/etc/apt/apt.conf.d";

/// The longest `/etc/passwd` and `/etc/group` that are read.
const MOST_TEXT: u64 = 1 << 20;

/// What root may do inside, in its own namespaces only: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL,
/// SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT and SETFCAP. What container
/// engines give by default, without MKNOD and AUDIT_WRITE.
const OF_ROOT: u32 = {
    let capabilities = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 31];
    let (mut sum, mut index) = (0, 0);
    while index < capabilities.len() {
        sum |= 1u32 << capabilities[index];
        index += 1;
    }
    sum
};

/// What a trajectory asks of a machine with an image's files.
#[derive(Debug)]
pub(crate) struct MachineSpec {
    /// The image.
    pub(crate) image: Arc<Image>,
    /// What was changed above the image, the lowest first.
    pub(crate) frozen: Vec<Arc<Layer>>,
    /// Whom commands run as, if not as the image's user.
    pub(crate) user: Option<String>,
    /// Where commands begin, if not in the image's directory.
    pub(crate) workdir: Option<String>,
    /// Variables that commands have beside the image's and the operator's.
    pub(crate) env: BTreeMap<String, String>,
}

/// A program of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct Program {
    /// What is to be executed, inside.
    pub(in crate::sandbox) path: PathBuf,
    /// Its name, if it is the host's, brought along.
    brought_along: Option<&'static str>,
}

impl Program {
    /// Whether it is the host's.
    pub(in crate::sandbox) fn is_brought_along(&self) -> bool {
        self.brought_along.is_some()
    }

    /// The arguments with which it is to be executed so that it has these, its `$0` first.
    pub(in crate::sandbox) fn arguments(&self, own: Vec<OsString>) -> Vec<OsString> {
        match self.brought_along {
            Some(name) => Toolbox::arguments(name, &own),
            None => own,
        }
    }
}

/// The shell of an image and what decides whether it runs: where what is equal has run, it runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ShellId {
    layers: Vec<PathBuf>,
    path: PathBuf,
    file: FileId,
    user: (u32, u32),
}

/// Why a slot cannot have a machine with an image's files, as one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoMachine {
    /// It cannot be made on this machine, of any image or of this one.
    #[error("{0}")]
    Unsupported(String),
    /// The image cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// The system failed.
    #[error("{0}")]
    Failed(String),
}

/// The files of a machine from an image, and who its commands are.
#[derive(Debug, Clone)]
pub(crate) struct ImageFiles {
    image: Arc<Image>,
    frozen: Vec<Arc<Layer>>,
    user: ImageUser,
    identity: Arc<Identity>,
    shell: ShellPath,
    shell_id: ShellId,
    bash: Option<Program>,
    tmux: Option<Program>,
    toolbox: Option<Arc<Toolbox>>,
    has_apt: bool,
    working_dir: PathBuf,
    /// The image's variables.
    of_image: Vec<OsString>,
    /// The trajectory's.
    of_spec: Vec<OsString>,
    /// The mode of its root directory.
    mode: u32,
    /// Whose ids its machines have, in every slot, where layers can be had by their paths only.
    shared: Option<CommandUser>,
    /// Whether its files are this process's own, in a user namespace where no mount can show them
    /// as another user's: then its commands have that one id.
    is_own: bool,
}

// What keeps a layer there is dropped with it, and otherwise never used.
impl std::panic::RefUnwindSafe for ImageFiles {}

impl ImageFiles {
    /// Looks at an image, for slots whose ids are `owner`'s, or this process's own; or for machines
    /// that all have the ids of one user, `shared`, where layers can be had by their paths only. If
    /// it has no bash or no tmux it gets the host's, by `toolbox`. Blocks for some file system
    /// calls, and the first time for the making of that.
    ///
    /// # Errors
    /// It cannot be used here, or not so.
    pub(crate) fn find(
        spec: MachineSpec,
        owner: Option<CommandUser>,
        shared: Option<CommandUser>,
        toolbox: &LazyToolbox,
    ) -> Result<Self, NoMachine> {
        Self::look(spec, owner, shared, || toolbox.get())
    }

    fn look(
        spec: MachineSpec,
        owner: Option<CommandUser>,
        shared: Option<CommandUser>,
        toolbox: impl FnOnce() -> Option<Arc<Toolbox>>,
    ) -> Result<Self, NoMachine> {
        let MachineSpec { image, frozen, user, workdir, env } = spec;
        let unusable = |why: String| NoMachine::Unusable(format!("{}: {why}", image.name()));
        let layers = || image.layers().iter().chain(&frozen).map(|layer| layer.path());
        let count = layers().count();
        if count >= MOST_TREES {
            let most = MOST_TREES - 1;
            return Err(unusable(format!("it has {count} layers, and a machine has {most}")));
        }
        let ours = rustix::process::geteuid().as_raw();
        let is_own = shared.is_some_and(|user| !user.is_of_machine())
            && image.layers().iter().all(|layer| layer.owner() == ours);
        let (owner, shared) = if is_own { (None, None) } else { (owner, shared) };
        let (root, have) = match (shared, owner) {
            (Some(user), _) => (Some(user.map().outside), "the ids from"),
            (None, None) => (Some(ours), "the one id"),
            (None, Some(_)) => (None, ""),
        };
        if let Some(root) = root
            && let Some(layer) = image.layers().iter().find(|layer| layer.owner() != root)
        {
            return Err(NoMachine::Unsupported(format!(
                "{}: its files belong to user {}, and commands have {have} {root} here: give \
                 that user the directory, or make it an archive (podman import, podman save)",
                image.name(),
                layer.owner()
            )));
        }
        let failed = |error| NoMachine::Failed(format!("cannot open the image's layers: {error}"));
        let merged = Merged::open(layers()).map_err(failed)?;
        let text = |path| merged.text(path, MOST_TEXT).unwrap_or_default();
        let config = image.config();
        let wanted = user.as_deref().unwrap_or(&config.user);
        let mut user = ImageUser::find(wanted, &text("/etc/passwd"), &text("/etc/group"), WHOLE)
            .map_err(|why| match user.is_some() {
                true => NoMachine::Unsupported(format!("user: {}: {why}", image.name())),
                false => unusable(why),
            })?;
        let of_image: Vec<_> = config.env.iter().filter(|entry| is_variable(entry)).collect();
        let home = of_image.iter().rev().find_map(|entry| entry.strip_prefix("HOME="));
        if let Some(home) = home.map(Path::new).filter(|home| is_direct(home)) {
            user.home = home.to_owned();
        }
        let program = |places: &[&str]| {
            places.iter().find_map(|place| Some((PathBuf::from(place), merged.program(place)?)))
        };
        let shell =
            |kind: Shell| move |(path, file): (PathBuf, FileId)| (ShellPath { kind, path }, file);
        let bash = program(&BASH).map(shell(Shell::Bash));
        let sh = || program(&SH).map(shell(Shell::Sh));
        let (shell, file) = bash.or_else(sh).ok_or_else(|| {
            unusable("it has neither bash nor /bin/sh, by one of which commands are run".into())
        })?;
        let own = |path: &PathBuf| Program { path: path.clone(), brought_along: None };
        let own_bash = Some(&shell).filter(|shell| shell.kind == Shell::Bash);
        let own_tmux = program(&TMUX).map(|(path, _)| path);
        let own_bash = own_bash.map(|shell| own(&shell.path));
        let lacks_one = own_bash.is_none() || own_tmux.is_none();
        let toolbox = if lacks_one { toolbox() } else { None };
        let brought = |name| {
            let path = toolbox.as_ref()?.program(name)?;
            Some(Program { path, brought_along: Some(name) })
        };
        let bash = own_bash.or_else(|| brought(toolbox::BASH));
        let tmux = own_tmux.as_ref().map(own).or_else(|| brought(toolbox::TMUX));
        let working_dir = match workdir.as_deref().unwrap_or(&config.working_dir) {
            "" => PathBuf::from("/"),
            directory if is_direct(Path::new(directory)) => PathBuf::from(directory),
            directory => {
                let why = format!("the working directory {directory:?} is no plain absolute path");
                return Err(match workdir {
                    Some(_) => NoMachine::Unsupported(why),
                    None => unusable(why),
                });
            }
        };
        let mode = root_mode(layers().next_back());
        let User { uid, gid, .. } = user.ids;
        let map = shared.or(owner).map(CommandUser::map).filter(|map| !map.is_single());
        if let Some(map) = map
            && let Some(id) = [uid, gid].into_iter().find(|id| map.outside_of(*id).is_none())
        {
            return Err(NoMachine::Unsupported(format!(
                "{}: its commands would have the id {id}, which no slot has here",
                image.name()
            )));
        }
        let identity = Identity::of_image(uid, gid, &user.name, &user.home);
        let shell_id = ShellId {
            layers: layers().map(Path::to_owned).collect(),
            path: shell.path.clone(),
            file,
            user: (uid, gid),
        };
        Ok(Self {
            bash,
            tmux,
            toolbox,
            has_apt: merged.is_directory(APT),
            of_image: of_image.into_iter().map(OsString::from).collect(),
            of_spec: env
                .into_iter()
                .map(|(name, value)| format!("{name}={value}").into())
                .collect(),
            identity: Arc::new(identity),
            image,
            frozen,
            user,
            shell,
            shell_id,
            working_dir,
            mode,
            shared,
            is_own,
        })
    }

    /// The same above one layer more, if there is one; its root directory has this mode.
    pub(super) fn with_layer(&self, layer: Option<Arc<Layer>>, mode: u32) -> Self {
        let mut above = self.clone();
        above.frozen.extend(layer);
        above.mode = mode;
        above
    }

    /// The image alone, without what was changed above it.
    pub(super) fn pristine(&self) -> Self {
        let mode = root_mode(self.image.layers().last().map(|layer| layer.path()));
        Self { frozen: Vec::new(), mode, ..self.clone() }
    }

    /// The same for commands of another user, in slots whose ids are `owner`'s.
    ///
    /// # Errors
    /// There is no such user.
    pub(super) fn with_user(
        &self,
        user: &str,
        owner: Option<CommandUser>,
    ) -> Result<Self, NoMachine> {
        let (image, frozen) = (self.image.clone(), self.frozen.clone());
        let user = Some(user.to_owned());
        let env = BTreeMap::new();
        let spec = MachineSpec { image, frozen, user, workdir: None, env };
        Self::look(spec, owner, self.shared, || self.toolbox.clone())
    }

    /// The image.
    pub(crate) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Its layers, and those above them, the lowest first.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        self.image.layers().iter().chain(&self.frozen)
    }

    /// Who commands are.
    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The shell that runs commands.
    pub(in crate::sandbox) fn shell(&self) -> &ShellPath {
        &self.shell
    }

    /// What decides whether it runs, in what was looked at.
    pub(crate) fn shell_id(&self) -> &ShellId {
        &self.shell_id
    }

    /// Which shell that is.
    pub(super) fn shell_kind(&self) -> Shell {
        self.shell.kind
    }

    /// The bash of kept shells: its own, or the host's.
    pub(in crate::sandbox) fn bash(&self) -> Option<&Program> {
        self.bash.as_ref()
    }

    /// The same of tmux.
    pub(in crate::sandbox) fn tmux(&self) -> Option<&Program> {
        self.tmux.as_ref()
    }

    /// What is brought along for it, if something is.
    pub(in crate::sandbox) fn toolbox(&self) -> Option<&Toolbox> {
        self.toolbox.as_deref()
    }

    /// Whether apt would read a file of settings.
    pub(in crate::sandbox) fn has_apt(&self) -> bool {
        self.has_apt
    }

    /// Where commands begin.
    pub(in crate::sandbox) fn working_dir(&self) -> &Path {
        &self.working_dir
    }

    /// The mode of its root directory.
    pub(super) fn mode(&self) -> u32 {
        self.mode
    }

    /// What commands find in their environment beside what the operator sets, and what they find in
    /// its place.
    pub(in crate::sandbox) fn environment(&self) -> Vec<OsString> {
        let places = shell::Places {
            workspace: &self.working_dir,
            temporary: Path::new("/tmp"),
            home: &self.user.home,
        };
        let ours = shell::environment(&places, &self.shell.path, &self.user.name);
        // Of these none is the image's to say.
        let fixed = ["HOME", "PWD", "USER", "LOGNAME", "SHELL"];
        let is_fixed = |entry: &OsString| fixed.iter().any(|name| is_named(entry, name));
        let theirs = self.of_image.iter().filter(|entry| !is_fixed(entry)).cloned();
        // An image's programs know where its temporary files are.
        let ours = ours.into_iter().filter(|entry| !is_named(entry, "TMPDIR"));
        shell::replaced(ours.collect(), theirs)
    }

    /// The trajectory's own variables, in the place of others of their names.
    pub(in crate::sandbox) fn with_spec(&self, environment: Vec<OsString>) -> Vec<OsString> {
        shell::replaced(environment, self.of_spec.iter().cloned())
    }

    /// Whose ids its machine has in a slot whose ids are these.
    pub(super) fn ids_of(&self, of_slot: Option<CommandUser>) -> Option<CommandUser> {
        self.shared.or(of_slot.filter(|_| !self.is_own))
    }

    /// Whether its commands have one id, in a slot whose ids are these.
    pub(in crate::sandbox) fn is_of_one_id(&self, of_slot: Option<CommandUser>) -> bool {
        Self::has_one_id(self.ids_of(of_slot))
    }

    /// What users and groups there are inside, for slots whose ids are `owner`'s or this process's.
    pub(in crate::sandbox) fn ids(&self, owner: Option<CommandUser>) -> [IdMap; 2] {
        let User { uid, gid, .. } = self.user.ids;
        match owner {
            Some(user) if !user.map().is_single() => [user.map(); 2],
            Some(user) => {
                let outside = user.map().outside;
                [IdMap::single(uid, outside), IdMap::single(gid, outside)]
            }
            None => {
                let (own, group) = (rustix::process::geteuid(), rustix::process::getegid());
                [IdMap::single(uid, own.as_raw()), IdMap::single(gid, group.as_raw())]
            }
        }
    }

    /// Whether commands have one id, which stands for all of the image.
    pub(crate) fn has_one_id(owner: Option<CommandUser>) -> bool {
        owner.is_none_or(|user| user.map().is_single())
    }

    /// Whether root's commands have one id: then they are told that giving files and processes to
    /// others has worked.
    pub(in crate::sandbox) fn is_only_root(&self, owner: Option<CommandUser>) -> bool {
        Self::has_one_id(owner) && self.user.ids.uid == 0
    }

    /// What those may do who run in it.
    pub(in crate::sandbox) fn rights(&self, owner: Option<CommandUser>) -> Rights {
        let one_id = Self::has_one_id(owner);
        let is_root = self.user.ids.uid == 0;
        Rights {
            user: Some(self.user.ids.clone()).filter(|_| !one_id),
            // The first process ends and starts programs of all users.
            capabilities: if is_root || !one_id { OF_ROOT } else { 0 },
            any_directory: true,
        }
    }

    /// The root directory: the layers, and above them the directory at `writable` on the host.
    pub(in crate::sandbox) fn overlay(
        &self,
        writable: &Path,
        work: String,
        owner: Option<CommandUser>,
    ) -> Overlay {
        let tree = |layer: &Arc<Layer>| self.tree(layer, layer.path().into(), owner);
        let lower = self.layers().map(tree).collect();
        Overlay { place: "/".into(), lower, writable: self.own_tree(writable, owner), work }
    }

    /// A directory in a layer, as machines of slots get it whose ids are `owner`'s.
    pub(super) fn tree(&self, layer: &Layer, host: PathBuf, owner: Option<CommandUser>) -> Tree {
        let hold = match owner.filter(|_| self.shared.is_none()) {
            None => Hold::ByPath,
            Some(user) => {
                let map = IdMap { inside: layer.owner(), ..user.map() };
                Hold::HandedOver(Some(map).filter(|map| map.inside != map.outside))
            }
        };
        Tree { host, hold }
    }

    /// The same of the slot's own directory, in which is what is changed above layers.
    pub(super) fn own_tree(&self, host: &Path, owner: Option<CommandUser>) -> Tree {
        let is_handed_over = owner.is_some() && self.shared.is_none();
        let hold = if is_handed_over { Hold::HandedOver(None) } else { Hold::ByPath };
        Tree { host: host.to_owned(), hold }
    }

    /// The user of a slot that commands run as.
    pub(super) fn owner(&self, of_slot: Option<CommandUser>) -> Option<CommandUser> {
        let User { uid, gid, .. } = self.user.ids;
        self.ids_of(of_slot).map(|user| user.as_inside(uid, gid))
    }

    /// Whom the first processes of its jails run as, in a slot whose ids are these.
    pub(super) fn founder(&self, of_slot: Option<CommandUser>) -> Option<CommandUser> {
        match self.shared {
            // All of them may pass to all slots' directories and to the layers.
            Some(user) => Some(user.as_inside(0, 0)),
            None => self.ids_of(of_slot).map(CommandUser::as_root_inside),
        }
    }
}

/// The mode of a root directory: as the topmost layer has it, but for what commands need.
fn root_mode(topmost: Option<&Path>) -> u32 {
    let topmost = topmost.and_then(|path| path.metadata().ok());
    topmost.map_or(0o755, |about| about.mode() & 0o1777 | 0o555)
}

/// Whether an entry of an image's environment is one.
fn is_variable(entry: &str) -> bool {
    entry.split_once('=').is_some_and(|(name, _)| !name.is_empty()) && !entry.contains('\0')
}

fn is_named(entry: &OsStr, name: &str) -> bool {
    entry.as_bytes().strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
}
