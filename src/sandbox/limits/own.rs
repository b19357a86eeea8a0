//! Limits of one trajectory, below the operator's.
//!
//! They are with its workspace: set before anything runs there, and gone with it. The cgroup is its
//! slot's, and has the limits of the workspace whose sandbox was put there last; of another
//! workspace nothing runs by then.

use std::borrow::Cow;
use std::io;

use rustix::process::getrlimit;

use super::watch::Watched;
use super::{Limits, Plan, lower_open_files, rlimits};
use crate::config::SlotLimits;
use crate::limits::Enforcement;
use crate::sandbox::workspace::Workspace;
use crate::spec::TrajectoryLimits;

/// Why a trajectory cannot have limits of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotNarrowed {
    /// They are above the operator's, or nothing here can keep them: which, and why.
    #[error("{0}")]
    Unsupported(String),
    /// What keeps them cannot be had just now.
    #[error("cannot put the slot under its limits")]
    System(#[from] io::Error),
}

impl Limits {
    /// Sees whether a trajectory in this slot can have these limits, and has its cgroup have them.
    /// Nothing may run in the slot. Blocks on a few file system calls.
    ///
    /// # Errors
    /// See [`NotNarrowed`].
    pub(crate) fn narrow(&self, slot: usize, own: &TrajectoryLimits) -> Result<(), NotNarrowed> {
        let limits = own.within(&self.operators).map_err(NotNarrowed::Unsupported)?;
        self.start_keeping(&limits)?;
        let held = self.enforced(&limits);
        const NEEDS_CGROUPS: &str = "without cgroups, which this process cannot make here";
        let kept = [
            ("processes", own.processes.is_some(), held.processes, NEEDS_CGROUPS),
            ("memory_bytes", own.memory_bytes.is_some(), held.memory, NEEDS_CGROUPS),
            ("cpu", own.cpu.is_some(), held.cpu, NEEDS_CGROUPS),
            ("open_files", own.open_files.is_some(), held.open_files, "by rlimits here"),
            ("file_bytes", own.file_bytes.is_some(), held.file_bytes, "by rlimits here"),
        ];
        for (name, is_asked, by, how) in kept {
            if is_asked && by == Enforcement::None {
                let text = format!("the limit {name} cannot be kept {how}; leave it out");
                return Err(NotNarrowed::Unsupported(text));
            }
        }
        if let Some(groups) = self.groups() {
            groups.slot(slot, &limits)?;
        }
        Ok(())
    }

    /// The limits of a slot with these files.
    pub(super) fn of(&self, workspace: &Workspace) -> Cow<'_, SlotLimits> {
        match workspace.limits() {
            own if own.is_empty() => Cow::Borrowed(&self.operators),
            own => Cow::Owned(own.over(&self.operators)),
        }
    }

    /// The limits of processes in a slot with these files.
    pub(super) fn plan_of(&self, workspace: &Workspace) -> Cow<'_, Plan> {
        match self.of(workspace) {
            Cow::Borrowed(_) => Cow::Borrowed(&self.plan),
            Cow::Owned(own) => Cow::Owned(rlimits::plan(&own, &self.machine, getrlimit)),
        }
    }

    /// What is watched of a slot with these files.
    pub(super) fn watched(&self, workspace: &Workspace) -> Watched {
        self.watched_of(&self.of(workspace))
    }

    /// A soft limit of open files, which is not above that of sandboxes, that is not above what one
    /// with these files gets.
    pub(in crate::sandbox) fn lower_open_files_of(
        &self,
        workspace: &Workspace,
        soft: Option<u64>,
    ) -> Option<u64> {
        match workspace.limits().open_files {
            Some(_) => lower_open_files(&self.plan_of(workspace), soft),
            None => soft,
        }
    }
}
