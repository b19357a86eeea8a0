//! How commands are isolated: found out once, at start, and never revisited because of what a
//! command printed.
//!
//! [`Isolation::find`] makes real jails, as production has them, and runs `true` in them ([`probe`]).
//! Why that does not work is a [`Failure`], and what to do about it in [`remedy`]. What of the host
//! a jail shows is in [`layout`]; `jail` makes it. `shell` knows how a command reaches its shell.
//!
//! What a command sees in a jail: a read-only `/usr`, of `/etc` what the module `etc` has copied,
//! its workspace as `/workspace`, its slot's `/tmp` and home directory (the only host directories
//! that it can write to), a private `/dev`, a read-only `/proc` of its own processes, its own user,
//! pid, ipc, uts, cgroup and network namespaces (the host's network where that is wished), no
//! capabilities and no further user namespaces; and no system calls but those that
//! `limits::seccomp` leaves it.

mod failure;
mod layout;
mod probe;
pub(crate) mod proxy;
mod remedy;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

pub(crate) use failure::{Failure, is_shortage};
use layout::Sys;
pub(super) use layout::{GRADER, HostLayout};
pub(crate) use probe::Budget;
pub(crate) use remedy::{Facts, advice};

use super::etc::EtcCopy;
use super::identity::HOST_NAME;
use super::init;
use super::jail::{IdMaps, Network, Origin, Plan, Proc, Rights};
use super::limits::{self, FilterKind, Filters, ShownGroup};
use super::provided::{Provided, ProvidedError};
use super::user::IdMap;
use super::workspace::{DataDir, Workspace};
use crate::config::{LocalConfig, NetworkMode};
use crate::egress::Egress;

/// How commands of this process are isolated.
#[expect(clippy::large_enum_variant, reason = "an engine has a handful of them")]
#[derive(Debug, Clone)]
pub(crate) enum Isolation {
    /// Commands run in jails.
    Jailed(Jails),
    /// Commands run as ordinary processes, in their workspace and with a clean environment; nothing
    /// keeps them from anything that their user may do.
    None {
        /// Why, as one line for people.
        reason: String,
        /// What the operator gives to commands.
        provided: Arc<Provided>,
    },
}

/// Jails that were seen to work here.
#[derive(Debug, Clone)]
pub(crate) struct Jails {
    /// The program of their first process.
    program: Arc<OwnedFd>,
    /// Whose `/proc` they show: some containers have mounts over theirs, and then there may be no
    /// other.
    proc: Proc,
    /// Whether they have a host name of their own; some containers do not allow that.
    has_host_name: bool,
    /// Whether they can be without network; some containers do not allow that.
    pub(crate) can_cut_network: bool,
    /// What of the host is shared.
    pub(super) layout: HostLayout,
    /// What the operator gives to commands.
    provided: Arc<Provided>,
    /// What is shown as `/etc`.
    etc: Option<EtcCopy>,
    /// Whether a slot keeps its jail for the next command.
    warm: bool,
    /// How large `/dev/shm` may become, and the root file system. `None` leaves it to the kernel,
    /// which gives each half of the memory.
    shared_memory: Option<u64>,
    /// How many pseudo-terminals a sandbox may have.
    terminals: u32,
    /// How many inotify instances and watches a sandbox may have, where that is not what its user
    /// may have.
    inotify: Option<[u64; 2]>,
    /// The filter of system calls; or why there is none, as one line.
    seccomp: Result<Arc<Filters>, String>,
    /// What those get whose commands may use the network.
    network: NetworkMode,
    /// What serves their proxies.
    egress: Option<Arc<Egress>>,
    /// More variables of all that runs in them.
    variables: Vec<OsString>,
    /// What maps the ids of layers.
    id_maps: Arc<IdMaps>,
    /// Which layers they can have; or why none, as one line.
    layers: Result<Layers, String>,
    /// Files of the copy of `/etc` that are shown in images, too.
    etc_of_images: Vec<&'static str>,
}

/// Which layers sandboxes can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layers {
    /// Any: their files are shown with the owners that a sandbox has.
    Any,
    /// Those whose owners are ids of the sandbox already, found by their paths or handed over.
    Own,
}

/// Why it is just these.
pub(crate) const NO_OTHER_OWNERS: &str = "this process may not show files with other owners: it is \
     root of a container or a user namespace, without rights over the file system of the data \
     directory";

/// Why commands cannot have what the operator wants them to have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotProvided {
    /// Something of it cannot be had.
    #[error(transparent)]
    Setting(#[from] ProvidedError),
    /// Its places in `/etc` cannot be made.
    #[error("cannot make the places of binds in /etc")]
    Place(#[from] io::Error),
    /// No sandbox can be made with it.
    #[error("sandboxes cannot be made with these binds and devices: {0}")]
    Jail(Failure),
}

impl From<Failure> for NotProvided {
    fn from(failure: Failure) -> Self {
        Self::Jail(failure)
    }
}

/// What a jail of a slot shows and runs.
pub(super) struct Contents<'a> {
    /// The slot's files.
    pub(super) workspace: &'a Workspace,
    /// Whether what runs in it may use the network.
    pub(super) network: bool,
    /// What runs in it.
    pub(super) program: &'a Path,
    /// The environment of what runs in it.
    pub(super) environment: Vec<OsString>,
    /// The soft limit of open files of what runs in it, where it is not this process's own.
    pub(super) open_files: Option<u64>,
    /// What it may look at of cgroups.
    pub(super) cgroups: Vec<ShownGroup>,
}

impl Isolation {
    /// Finds out what works here for commands in `workspace`, of its user. Blocks: some
    /// milliseconds as a rule, as long as `budget` allows at most.
    ///
    /// # Errors
    /// There is no sandbox to be had, or it could not be found out; see
    /// [`Failure::is_inconclusive`].
    pub(crate) fn find(workspace: &Arc<Workspace>, budget: &Budget) -> Result<Self, Failure> {
        Jails::find(workspace, budget).map(Self::Jailed)
    }

    /// As [`find`](Self::find), with all the time that it may take; without a sandbox if there is
    /// none.
    #[cfg(test)]
    pub(crate) fn probe(workspace: &Arc<Workspace>) -> Self {
        Self::find(workspace, &Budget::default()).unwrap_or_else(|failure| {
            assert!(!failure.is_inconclusive(), "{failure}");
            Self::none(failure.to_string())
        })
    }

    /// No isolation, as no operator gives commands anything.
    #[cfg(test)]
    pub(crate) fn none(reason: impl Into<String>) -> Self {
        Self::None { reason: reason.into(), provided: Arc::default() }
    }

    fn jails(&mut self) -> Option<&mut Jails> {
        match self {
            Self::Jailed(jails) => Some(jails),
            Self::None { .. } => None,
        }
    }

    /// Shows commands this copy as `/etc`; without one it is empty.
    pub(crate) fn with_etc(mut self, etc: EtcCopy) -> Self {
        if let Some(jails) = self.jails() {
            let is_there = |name: &&str| etc.path().join(name).is_file();
            jails.etc_of_images = layout::ETC_OF_IMAGES.into_iter().filter(is_there).collect();
            jails.etc = Some(etc);
        }
        self
    }

    /// Gives commands of `user`, or of this process, what the operator wants them to have, if
    /// sandboxes with all of that can be made. Blocks for the making of one, where they have to
    /// show something.
    ///
    /// # Errors
    /// Something cannot be given; or no sandbox can be made with it, or that could not be found
    /// out.
    pub(crate) fn with_provided(
        mut self,
        config: &LocalConfig,
        data_dir: &DataDir,
        budget: &Budget,
    ) -> Result<Self, NotProvided> {
        let Some(jails) = self.jails() else { return Ok(self) };
        let workspace = &data_dir.workspaces()[0];
        let provided = jails.layout.shown(workspace.inside(), |shown| {
            Provided::find(config, shown, workspace.owner(), data_dir.base_path())
        })?;
        if let Some(etc) = &jails.etc {
            etc.make_places(provided.places_beneath(Path::new("/etc")))?;
        }
        jails.provided = Arc::new(provided);
        if jails.provided.shows_something() {
            jails.try_out(workspace, budget)?;
        }
        Ok(self)
    }

    /// What the operator gives to commands.
    pub(super) fn provided(&self) -> &Arc<Provided> {
        match self {
            Self::Jailed(jails) => &jails.provided,
            Self::None { provided, .. } => provided,
        }
    }

    /// Whether a slot keeps its jail for the next command; without that each command gets one of
    /// its own.
    pub(crate) fn with_warm_slots(mut self, warm: bool) -> Self {
        if let Some(jails) = self.jails() {
            jails.warm = warm;
        }
        self
    }

    /// Gives sandboxes whose commands may use the network this one. `egress` serves those that have
    /// a proxy.
    pub(crate) fn with_network(mut self, mode: NetworkMode, egress: Option<Arc<Egress>>) -> Self {
        if let Some(jails) = self.jails() {
            (jails.network, jails.egress) = (mode, egress);
        }
        self
    }

    /// Sets more variables in the environment of all that runs in sandboxes.
    pub(crate) fn with_variables(mut self, variables: Vec<OsString>) -> Self {
        if let Some(jails) = self.jails() {
            jails.variables.extend(variables);
        }
        self
    }

    /// Gives sandboxes a `/dev/shm` and a root file system of at most this size.
    pub(crate) fn with_shared_memory(mut self, bytes: u64) -> Self {
        if let Some(jails) = self.jails() {
            jails.shared_memory = Some(bytes);
        }
        self
    }

    /// Shares the machine's pseudo-terminals among so many slots. Blocks on two file system calls.
    pub(crate) fn with_terminals_for(mut self, slots: usize) -> Self {
        let number = |file: &str| {
            let text =
                std::fs::read_to_string(Path::new("/proc/sys/kernel/pty").join(file)).ok()?;
            text.trim().parse().ok()
        };
        if let (Some(jails), Some(all), Some(reserve)) =
            (self.jails(), number("max"), number("reserve"))
        {
            jails.terminals = terminals_of_each(slots, all, reserve);
        }
        self
    }

    /// Shares what its user may have of inotify among so many slots, which are all that user. A
    /// quarter is left for what else it runs. Blocks on two file system calls.
    pub(crate) fn with_inotify_for(mut self, slots: usize) -> Self {
        let share = |file: &str| {
            let text =
                std::fs::read_to_string(Path::new("/proc/sys/fs/inotify").join(file)).ok()?;
            let all: u64 = text.trim().parse().ok()?;
            Some(limits::of_each(all / 4 * 3, slots as u64))
        };
        if let (Some(jails), Some(instances), Some(watches)) =
            (self.jails(), share("max_user_instances"), share("max_user_watches"))
        {
            jails.inotify = Some([instances, watches]);
        }
        self
    }

    /// Loads this filter of system calls into every sandbox, if that works here for commands in
    /// `workspace`, of its user. Blocks for the making of one.
    ///
    /// Logs a warning where it does not work.
    ///
    /// # Errors
    /// It could not be found out.
    pub(crate) fn with_filter(
        mut self,
        filter: Result<Filters, String>,
        workspace: &Arc<Workspace>,
        budget: &Budget,
    ) -> Result<Self, Failure> {
        if let Some(jails) = self.jails() {
            jails.seccomp = filter.map(Arc::new);
            let tried = match &jails.seccomp {
                Err(reason) => Err(reason.clone()),
                Ok(_) => conclusive(jails.try_out(workspace, budget))?,
            };
            if let Err(reason) = tried {
                log::warn!("commands run without a filter of system calls: {reason}");
                jails.seccomp = Err(reason);
            }
        }
        Ok(self)
    }

    /// Finds out whether sandboxes can have file systems of layers in this directory. Blocks for
    /// the making of one.
    ///
    /// # Errors
    /// It could not be found out.
    pub(crate) fn with_layers(
        mut self,
        data_dir: &DataDir,
        budget: &Budget,
    ) -> Result<Self, Failure> {
        if let Some(jails) = self.jails() {
            jails.layers = match conclusive(jails.try_layers(data_dir, false, budget))? {
                Ok(()) => Ok(Layers::Any),
                Err(why) => match conclusive(jails.try_layers(data_dir, true, budget))? {
                    Ok(()) => {
                        log::debug!("{NO_OTHER_OWNERS}: {why}");
                        Ok(Layers::Own)
                    }
                    Err(_) if data_dir.is_on_overlay() => Err(format!(
                        "the data directory {} is on an overlay, as a container's own files are, \
                         above which the kernel makes no other: give it a volume (--data-dir)",
                        data_dir.base_path().display()
                    )),
                    Err(_) => Err(why),
                },
            };
            if let Err(reason) = &jails.layers {
                log::info!("slots cannot have the files of images: {reason}");
            }
        }
        Ok(self)
    }

    /// Has the name that sandboxes have from the machine, where they can have none of their own, be
    /// that of the loopback interface, too. Blocks on a few file system calls.
    ///
    /// # Errors
    /// The copy of `/etc` cannot be written.
    pub(crate) fn with_name_of_machine(self) -> io::Result<Self> {
        if let Self::Jailed(Jails { has_host_name: false, etc: Some(etc), .. }) = &self {
            let uname = rustix::system::uname();
            etc.add_host(&uname.nodename().to_string_lossy())?;
        }
        Ok(self)
    }

    /// Whether slots keep their sandboxes.
    pub(crate) fn is_warm(&self) -> bool {
        matches!(self, Self::Jailed(jails) if jails.warm)
    }

    /// Whether commands run in a sandbox.
    pub(crate) fn is_sandboxed(&self) -> bool {
        matches!(self, Self::Jailed(_))
    }

    /// Whether a command can be run without network.
    pub(crate) fn can_cut_network(&self) -> bool {
        matches!(self, Self::Jailed(jails) if jails.can_cut_network)
    }
}

/// What jails can do without where a machine does not allow it, the strictest first: whether they
/// can be without network, whose `/proc` they show, whether they have a host name of their own.
const LAXER: [(bool, Proc, bool); 8] = [
    (true, Proc::Own, true),
    (true, Proc::Own, false),
    (true, Proc::Shared, true),
    (true, Proc::Shared, false),
    (false, Proc::Own, true),
    (false, Proc::Own, false),
    (false, Proc::Shared, true),
    (false, Proc::Shared, false),
];

/// The most pseudo-terminals of a sandbox: more than a build or a test opens.
const MOST_TERMINALS: u32 = 256;
/// The fewest: enough for a terminal with some windows.
const FEWEST_TERMINALS: u32 = 16;

/// How many pseudo-terminals each of so many slots may have, so that none has them all. Of `all`
/// that the machine has, `reserve` are for those outside.
fn terminals_of_each(slots: usize, all: u32, reserve: u32) -> u32 {
    let slots = u32::try_from(slots).unwrap_or(u32::MAX).max(1);
    (all.saturating_sub(reserve) / slots).clamp(FEWEST_TERMINALS, MOST_TERMINALS)
}

/// Whether something works, and why not, as one line; unless that could not be found out.
fn conclusive(tried: Result<(), Failure>) -> Result<Result<(), String>, Failure> {
    match tried {
        Err(failure) if failure.is_inconclusive() => Err(failure),
        tried => Ok(tried.map_err(|failure| failure.to_string())),
    }
}

impl Jails {
    /// Tries jails from the strictest to the most lenient that is acceptable. What is not
    /// conclusive ends it: a laxer sandbox is only for machines that refuse the stricter one.
    fn find(workspace: &Arc<Workspace>, budget: &Budget) -> Result<Self, Failure> {
        let program = init::program().map_err(|error| match Failure::of_error(&error) {
            _ if error.kind() == io::ErrorKind::Unsupported => Failure::Missing,
            Failure::Broken(text) | Failure::Refused(text) => Failure::Refused(format!(
                "no program may be executed from memory (sysctl vm.memfd_noexec): {text}"
            )),
            failure => failure,
        })?;
        let strict = Self {
            program: Arc::new(program),
            proc: Proc::Own,
            has_host_name: true,
            can_cut_network: true,
            layout: HostLayout::detect(workspace),
            provided: Arc::default(),
            etc: None,
            warm: true,
            shared_memory: None,
            terminals: MOST_TERMINALS,
            inotify: None,
            seccomp: Err("switched off".to_owned()),
            network: NetworkMode::Host,
            egress: None,
            variables: Vec::new(),
            id_maps: Arc::default(),
            layers: Err("it was not tried".to_owned()),
            etc_of_images: Vec::new(),
        };
        let mut refusal = None;
        for (place, (can_cut_network, proc, has_host_name)) in LAXER.into_iter().enumerate() {
            // Where not even the laxest can be made, nothing between the two can.
            if place == 1 {
                let layout = strict.layout.clone().with_sys(Sys::None);
                let [.., (can_cut_network, proc, has_host_name)] = LAXER;
                let laxest =
                    Self { layout, can_cut_network, proc, has_host_name, ..strict.clone() };
                match laxest.try_out(workspace, budget) {
                    Ok(()) => {}
                    Err(failure) if failure.is_inconclusive() => return Err(failure),
                    Err(_) => break,
                }
            }
            // `/sys` is the least to do without; why it cannot be had is not what is told.
            let which = [strict.layout.sys, Sys::Host, Sys::None];
            let from = if can_cut_network { 0 } else { 1 };
            for sys in which.into_iter().skip(from) {
                let layout = strict.layout.clone().with_sys(sys);
                let jails = Self { layout, can_cut_network, proc, has_host_name, ..strict.clone() };
                match jails.try_out(workspace, budget) {
                    Ok(()) => return Ok(jails),
                    Err(failure) if failure.is_inconclusive() => return Err(failure),
                    // The strictest one says best what is in the way.
                    Err(failure) if place == 0 => refusal = Some(failure),
                    Err(_) => {}
                }
            }
        }
        Err(refusal.unwrap_or(Failure::Missing))
    }

    /// Why slots can see more of the machine than they might, a line each.
    pub(crate) fn weaknesses(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.proc == Proc::Shared {
            found.push(
                "something is mounted over /proc, so that commands see the processes around them: \
                 unmask it (podman --security-opt unmask=ALL, Docker --security-opt \
                 systempaths=unconfined, Kubernetes procMount: Unmasked)"
                    .to_owned(),
            );
        }
        found
    }

    /// Whether commands see the processes around their sandboxes.
    pub(crate) fn shares_proc(&self) -> bool {
        self.proc == Proc::Shared
    }

    /// The plan of a jail for a slot, whose commands are of the user of its files.
    pub(super) fn plan(&self, contents: Contents<'_>) -> Plan {
        let network = self.network(contents.network);
        let mut contents = Contents { network: network == Network::Host, ..contents };
        let mut variables = self.variables.clone();
        if let Network::Proxy(port) = network {
            variables.extend(proxy::variables(port));
        }
        // What the operator sets wins.
        variables.retain(|variable| !is_set(variable, &contents.environment));
        contents.environment.extend(variables);
        let of_process = || {
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            [uid.as_raw(), gid.as_raw()].map(|id| IdMap::single(id, id))
        };
        let owner = contents.workspace.user_of_slot();
        let image = contents.workspace.image();
        let [users, groups] = match (image, contents.workspace.owner()) {
            (Some(image), _) => image.ids(owner),
            (None, Some(user)) => [user.map(); 2],
            (None, None) => of_process(),
        };
        let kind = match image {
            None => FilterKind::Host,
            Some(image) if image.is_only_root(owner) => FilterKind::ImageWithOneId,
            Some(_) => FilterKind::Image,
        };
        let (etc, provided) = (self.etc.as_ref(), &self.provided);
        let root = match image {
            Some(image) => layout::root_of_image(
                &self.layout,
                provided,
                etc.map(|etc| (etc, &*self.etc_of_images)),
                &contents,
                image,
            ),
            None => {
                let by_path = matches!(self.layers, Ok(Layers::Own));
                layout::root(&self.layout, provided, etc, &contents, by_path)
            }
        };
        Plan {
            users,
            groups,
            host_name: self.has_host_name.then_some(HOST_NAME),
            network,
            root,
            barred: contents.workspace.barred().map(Path::to_owned),
            // As in `with_shared_memory`, where its trajectory has less memory than others.
            shared_memory: match contents.workspace.limits().memory_bytes {
                Some(own) => Some(own / 2),
                None => self.shared_memory,
            },
            terminals: self.terminals,
            inotify: self.inotify,
            proc: self.proc,
            devices: self.provided.devices().to_vec(),
            filter: self.seccomp.as_ref().ok().map(|all| all.of(kind).program().to_vec()),
            directory: contents
                .workspace
                .begins_in()
                .unwrap_or(contents.workspace.inside().workspace)
                .to_owned(),
            rights: match image {
                Some(image) => image.rights(owner),
                // A trajectory's own may be in what goes with a machine: the next one makes it.
                None => Rights {
                    any_directory: contents.workspace.begins_in().is_some(),
                    ..Rights::default()
                },
            },
            program: contents.program.to_owned(),
            environment: contents.environment,
            open_files: contents.open_files,
        }
    }

    /// The network of a jail whose commands may use one, or may not.
    fn network(&self, is_allowed: bool) -> Network {
        match self.network {
            NetworkMode::Host if is_allowed => Network::Host,
            NetworkMode::Proxy if is_allowed => Network::Proxy(proxy::PORT),
            _ => Network::Own,
        }
    }

    /// What the jails of a slot with these files are born with.
    pub(super) fn origin<'a>(&'a self, null: &'a OwnedFd, workspace: &Workspace) -> Origin<'a> {
        use std::os::fd::AsFd;
        Origin {
            program: self.program.as_fd(),
            null: null.as_fd(),
            user: workspace.founder(),
            egress: self.egress.as_ref(),
            id_maps: &self.id_maps,
        }
    }

    /// Which file systems of layers they can have; or why none, as one line.
    pub(crate) fn layers(&self) -> Result<Layers, &str> {
        self.layers.as_ref().copied().map_err(String::as_str)
    }

    /// Why there is no filter of system calls, as one line; `None` where there is one.
    pub(crate) fn not_filtered_because(&self) -> Option<&str> {
        self.seccomp.as_ref().err().map(String::as_str)
    }
}

/// Whether the name of a variable is among those of an environment.
fn is_set(variable: &OsStr, environment: &[OsString]) -> bool {
    let name =
        |entry: &OsStr| entry.as_bytes().split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    environment.iter().any(|entry| name(entry) == name(variable))
}

/// `/dev/null`, for reading and writing.
pub(super) fn open_null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_slot_can_have_all_pseudo_terminals() {
        for (slots, each) in [(1, 256), (12, 256), (32, 96), (192, 16), (5000, 16)] {
            assert_eq!(terminals_of_each(slots, 4096, 1024), each, "{slots}");
        }
        assert_eq!(terminals_of_each(0, 4096, 5000), 16);
    }
}
