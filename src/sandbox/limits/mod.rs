//! What a slot may use of the machine, and which system calls it may make.
//!
//! - `seccomp` is the filter of system calls.
//! - `rlimits` are the limits of processes, which every system has: processes, open files, the
//!   size of a file.
//! - `share` is what each slot may have of what all have together.
//! - `cgroup` limits memory, processes and cpu where this process may make cgroups.
//! - `watch` are two threads that keep memory (without cgroups) and the workspace within their
//!   limits; `sample` and `disk` count for them.
//!
//! [`Limits`] is made once, when the engine starts, and found out there what holds. Each sandbox
//! is [confined](Limits::confine) by its first process, before anything of a command runs in it:
//! whether that is a sandbox for one command or one that is kept.
//!
//! A trajectory may have less than the operator gives (`own`): that is with its workspace, and so
//! ends with it. What it has is looked up for each sandbox.

mod cgroup;
mod disk;
mod own;
mod retired;
mod rlimits;
mod room;
mod sample;
mod seccomp;
mod share;
mod watch;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use self::cgroup::{Cgroups, Engine};
pub(in crate::sandbox) use self::cgroup::{
    Entrance, Group, PLACE as CGROUPS, Refusals, Shown as ShownGroup,
};
use self::disk::Usage;
pub(crate) use self::disk::bytes_on_disk;
pub(crate) use self::own::NotNarrowed;
pub(super) use self::retired::Leftover;
use self::retired::Retired;
pub(super) use self::rlimits::kernel_version;
use self::rlimits::{Machine, Plan, Setter};
pub(super) use self::room::Room;
pub(crate) use self::seccomp::{Filter, FilterKind, Filters};
pub(crate) use self::share::TooFewProcesses;
pub(super) use self::share::of_each;
pub(crate) use self::watch::Alarm;
use self::watch::{Role, Ticket, Watched, Watcher};
use super::user::CommandUser;
use super::workspace::Workspace;
use crate::config::SlotLimits;
use crate::limits::{EnforcedLimits, Enforcement};
use crate::tool::Outcome;
use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, getrlimit};

/// A limit for which a command is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exceeded {
    /// That of memory.
    Memory,
    /// That of the workspace.
    Workspace,
    /// That of files.
    Files,
}

impl Exceeded {
    /// The limit's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Workspace => "workspace",
            Self::Files => "files",
        }
    }

    /// Why processes were ended that earlier calls had left running.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::Memory => "they ran out of memory",
            Self::Workspace => "the workspace was full",
            Self::Files => "there were more files than there may be",
        }
    }

    /// How a call ends for which its command was killed.
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::Memory => Outcome::OutOfMemory,
            Self::Workspace | Self::Files => Outcome::DiskFull,
        }
    }

    /// What the command, or a session, did.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Memory => "ran out of memory",
            Self::Workspace => "filled the workspace",
            Self::Files => "made more files than it may have",
        }
    }
}

/// The limits of an engine's slots, and what keeps them.
pub(crate) struct Limits {
    /// Those of slots whose trajectories have none of their own.
    operators: SlotLimits,
    machine: Machine,
    /// Whether the memory of processes can be watched.
    can_watch_memory: bool,
    /// The limits of processes where the operator's hold.
    plan: Plan,
    setter: Setter,
    /// Made for the first slot that needs one: they are not to be had everywhere.
    cgroups: OnceLock<Option<Cgroups>>,
    watcher: Watcher,
    /// The limits of processes were refused.
    refused: AtomicBool,
    retired: Retired,
}

impl Limits {
    /// No limits.
    pub(crate) fn none() -> Self {
        Self {
            operators: SlotLimits::none(),
            machine: Machine::UNKNOWN,
            can_watch_memory: false,
            plan: Plan::new(),
            setter: Setter::default(),
            cgroups: OnceLock::new(),
            watcher: Watcher::default(),
            refused: AtomicBool::new(false),
            retired: Retired::new(1),
        }
    }

    /// Finds out what keeps these limits of so many slots for sandboxes of `user`, or of this
    /// process if there is none, and starts the watch if it is needed. Blocks on a few file system
    /// calls.
    ///
    /// `open_files` is the soft limit of open files that this process had before it raised it.
    /// Where `is_shared` the kernel counts together what all slots have: then each has its share of
    /// what it counts for a user.
    ///
    /// # Errors
    /// The system gives no thread; [`TooFewProcesses`], as the source of an
    /// [`io::ErrorKind::QuotaExceeded`].
    pub(crate) fn detect(
        slots: usize,
        limits: &SlotLimits,
        user: Option<CommandUser>,
        is_shared: bool,
        open_files: Option<u64>,
    ) -> io::Result<Self> {
        let of_root = user.is_none() && rustix::process::getuid().is_root();
        let shared = (is_shared && !of_root).then(|| share::Shared {
            // In a user namespace what counts is the user who has made that.
            uid: user
                .filter(|user| user.is_of_machine())
                .map_or_else(rustix::process::getuid, CommandUser::uid)
                .as_raw(),
            limit: getrlimit(Resource::Nproc).current,
        });
        let processes = share::of_processes(slots, limits.processes, &share::ceilings(shared))
            .map_err(|few| io::Error::new(io::ErrorKind::QuotaExceeded, few))?;
        if processes != limits.processes {
            let most = processes.unwrap_or_default();
            log::info!("each slot may have {most} processes, so that all of them fit");
        }
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy();
        let counts_processes = rlimits::counts_by_namespace(&release) && !of_root;
        let core_pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").ok();
        let pipes_cores = rlimits::pipes_cores(core_pattern.as_deref());
        let sharers = if shared.is_some() { slots as u64 } else { 1 };
        let machine = Machine { counts_processes, open_files, pipes_cores, sharers };
        let operators = SlotLimits { processes, ..limits.clone() };
        let limits = Self {
            plan: rlimits::plan(&operators, &machine, getrlimit),
            operators,
            machine,
            can_watch_memory: sample::is_possible(),
            setter: Setter::default(),
            cgroups: OnceLock::new(),
            watcher: Watcher::default(),
            refused: AtomicBool::new(false),
            retired: Retired::new(slots),
        };
        limits.start_keeping(&limits.operators)?;
        Ok(limits)
    }

    /// Starts what keeps such limits: cgroups where they are to be had, the watch where it is
    /// needed.
    fn start_keeping(&self, limits: &SlotLimits) -> io::Result<()> {
        if wants_cgroups(limits) {
            self.cgroups.get_or_init(|| cgroups(&self.operators));
        }
        let watched = self.watched_of(limits);
        let is_needed = [
            (Role::Memory, watched.memory.is_some()),
            (Role::Kills, watched.kills),
            (Role::Disk, watched.workspace.is_some()),
        ];
        let roles = is_needed.into_iter().filter_map(|(role, is_needed)| is_needed.then_some(role));
        roles.into_iter().try_for_each(|role| self.watcher.start(role))
    }

    /// The cgroups, where some were wanted and are to be had.
    fn groups(&self) -> Option<&Cgroups> {
        self.cgroups.get()?.as_ref()
    }

    /// What of these limits is watched.
    fn watched_of(&self, limits: &SlotLimits) -> Watched {
        let groups = self.groups();
        Watched {
            memory: limits.memory_bytes.filter(|_| groups.is_none() && self.can_watch_memory),
            kills: limits.memory_bytes.is_some()
                && groups.is_some_and(|groups| !groups.kills_as_a_whole()),
            workspace: Usage::most(limits),
        }
    }

    /// What keeps these limits.
    fn enforced(&self, limits: &SlotLimits) -> EnforcedLimits {
        let (groups, watched) = (self.groups(), self.watched_of(limits));
        let by = |limit: bool, what| if limit { what } else { Enforcement::None };
        let mut held = EnforcedLimits {
            processes: match limits.processes {
                Some(_) if groups.is_some() => Enforcement::Cgroup,
                limit => by(limit.is_some() && self.machine.counts_processes, Enforcement::Rlimit),
            },
            memory: match limits.memory_bytes {
                Some(_) if groups.is_some() => Enforcement::Cgroup,
                _ => by(watched.memory.is_some(), Enforcement::Watch),
            },
            cpu: by(
                limits.cpu.is_some() && groups.is_some_and(|groups| groups.cpu),
                Enforcement::Cgroup,
            ),
            open_files: by(limits.open_files.is_some(), Enforcement::Rlimit),
            file_bytes: by(limits.file_bytes.is_some(), Enforcement::Rlimit),
            workspace: by(limits.workspace_bytes.is_some(), Enforcement::Watch),
            files: by(limits.files.is_some(), Enforcement::Watch),
            seccomp: false,
            advisory: wants_cgroups(limits)
                && !groups.is_some_and(|groups| groups.cpu || limits.cpu.is_none()),
        };
        if self.refused.load(Ordering::Relaxed) {
            for by in [&mut held.processes, &mut held.open_files, &mut held.file_bytes] {
                if *by == Enforcement::Rlimit {
                    *by = Enforcement::None;
                }
            }
        }
        held
    }

    /// The jails that were killed and have not ended in time: as many as there are slots at most.
    pub(crate) fn retired(&self) -> &Retired {
        &self.retired
    }

    /// Which of the operator's limits hold, and by what; the filter of system calls is not known
    /// here.
    pub(crate) fn held(&self) -> EnforcedLimits {
        self.enforced(&self.operators)
    }

    /// The cgroup of a sandbox with these files, which its first process is to be in before it does
    /// anything; `None` without cgroups. Does not block on anything but a few calls.
    ///
    /// # Errors
    /// There is none: nothing may run in the sandbox.
    pub(in crate::sandbox) fn place(&self, workspace: &Workspace) -> io::Result<Option<Group>> {
        let group = |groups: &Cgroups| groups.sandbox(workspace.slot(), &self.of(workspace));
        self.groups().map(group).transpose()
    }

    /// What commands with these files can look at of cgroups, and where; nothing without.
    pub(in crate::sandbox) fn shown(&self, workspace: &Workspace) -> Vec<ShownGroup> {
        let group = self.groups().map(|groups| groups.slot(workspace.slot(), &self.of(workspace)));
        match group {
            None => Vec::new(),
            Some(Ok(group)) => group.shown().to_vec(),
            // What cannot be made is said when a sandbox is to be put into it.
            Some(Err(_)) => Vec::new(),
        }
    }

    /// Puts a sandbox, whose [place](Self::place) is this group, under the other limits, by
    /// its first process `init`, which must not have started a command yet. Does not block on
    /// anything but a few calls.
    pub(in crate::sandbox) fn confine(
        &self,
        init: Pid,
        workspace: &Arc<Workspace>,
        group: Option<Group>,
    ) -> Confined {
        self.put_under(init, workspace, group, self.is_full(workspace))
    }

    /// As [`confine`](Self::confine), for a sandbox that is not replaced when its slot has room
    /// again: it may always write, and is ended for it while the slot is full.
    pub(in crate::sandbox) fn confine_session(
        &self,
        init: Pid,
        workspace: &Arc<Workspace>,
        group: Option<Group>,
    ) -> Confined {
        self.put_under(init, workspace, group, false)
    }

    fn put_under(
        &self,
        init: Pid,
        workspace: &Arc<Workspace>,
        group: Option<Group>,
        full: bool,
    ) -> Confined {
        let pid = init.as_raw_nonzero().get();
        let owner = workspace.founder();
        let set = self.setter.set(init, &self.plan_of(workspace), owner);
        let set = set.and_then(|()| match full {
            true => self.setter.set(init, &[(Resource::Fsize, NO_WRITING)], owner),
            false => Ok(()),
        });
        if let Err(error) = set
            && !self.refused.swap(true, Ordering::Relaxed)
        {
            log::warn!("the limits of processes cannot be set for sandboxes: {error}");
        }
        let kills = group.as_ref().map(Group::kill_count);
        let ticket = self.watcher.add(pid, workspace.clone(), self.watched(workspace), kills);
        let before = group.as_ref().map(Group::refusals).unwrap_or_default();
        Confined { group, ticket, full, before: Mutex::new(before) }
    }

    /// Whether a slot was above its limit of bytes when they were last counted.
    pub(crate) fn is_full(&self, workspace: &Workspace) -> bool {
        self.watcher.is_full(workspace.path())
    }

    /// Ends the watch, for when no command runs any more. Blocks for a look at most.
    pub(crate) fn close(&self) {
        self.watcher.close();
    }

    /// A soft limit of open files that is not above what sandboxes get.
    pub(crate) fn lower_open_files(&self, soft: Option<u64>) -> Option<u64> {
        lower_open_files(&self.plan, soft)
    }

    /// To be called when a workspace was emptied: a slot that was full is not any more.
    pub(crate) fn emptied(&self, workspace: &Path) {
        self.watcher.emptied(workspace);
    }
}

/// Whether cgroups keep such limits better than anything else.
fn wants_cgroups(limits: &SlotLimits) -> bool {
    limits.memory_bytes.is_some() || limits.cpu.is_some() || limits.processes.is_some()
}

fn lower_open_files(plan: &Plan, soft: Option<u64>) -> Option<u64> {
    let files = plan.iter().find(|(resource, _)| *resource == Resource::Nofile);
    soft.map(|soft| files.and_then(|(_, limit)| limit.current).map_or(soft, |l| l.min(soft)))
}

/// Files can be removed, and made, but nothing written to them.
const NO_WRITING: Rlimit = Rlimit { current: Some(0), maximum: Some(0) };

fn cgroups(limits: &SlotLimits) -> Option<Cgroups> {
    let text = |file| std::fs::read_to_string(file).unwrap_or_default();
    let (mounts, own) = (text("/proc/self/mountinfo"), text("/proc/self/cgroup"));
    Cgroups::start(&mounts, &own, Engine::this(), limits)
        .inspect_err(|why| log::debug!("limits hold without cgroups: {why}"))
        .ok()
}

/// A sandbox under limits. Dropped when its last process is gone.
pub(crate) struct Confined {
    group: Option<Group>,
    ticket: Ticket,
    full: bool,
    /// What the kernel had refused its slot when the latest command began.
    before: Mutex<Refusals>,
}

impl Confined {
    /// A command runs in it from now on; `alarm` is called when that must be killed. An empty
    /// sandbox is not looked at.
    pub(crate) fn occupied(&self, alarm: Alarm) {
        if let Some(group) = &self.group {
            *self.before.lock() = group.refusals();
        }
        self.ticket.occupied(alarm);
    }

    /// No command runs in it any more.
    pub(crate) fn vacated(&self) {
        self.ticket.vacated();
    }

    /// Whether its slot was full when it was confined: nothing can be written in it, as long as it
    /// lives.
    pub(crate) fn was_full(&self) -> bool {
        self.full
    }

    /// What the kernel has refused its slot since the latest command began. Without cgroups it is
    /// not known.
    pub(in crate::sandbox) fn refusals(&self) -> Refusals {
        let Some(group) = &self.group else { return Refusals::default() };
        let (now, before) = (group.refusals(), *self.before.lock());
        Refusals {
            kills: now.kills.saturating_sub(before.kills),
            processes: now.processes.saturating_sub(before.processes),
        }
    }

    /// Whether the kernel has ended it for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.refusals().kills > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_does_not_hold() {
        let limits = Limits::detect(1, &SlotLimits::none(), None, false, None).unwrap();
        assert_eq!(limits.held(), EnforcedLimits::NOTHING);
        let limits = Limits::detect(1, &SlotLimits::default(), None, false, None).unwrap();
        assert_eq!(limits.held().open_files, Enforcement::Rlimit);
        limits.refused.store(true, Ordering::Relaxed);
        assert_eq!(limits.held().open_files, Enforcement::None);
    }
}
