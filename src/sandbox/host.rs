//! What every start of a command or of a warm sandbox needs to know of this machine. Found out
//! once.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::descriptors;
use super::identity::Identity;
use super::isolation::{self, Isolation};
use super::limits::Limits;
use super::provided::Provided;
use super::shell::{self, Places, Shell};
use super::spool::Spool;
use super::user::CommandUser;
use super::workspace::Workspace;

/// What every start needs.
pub(super) struct Host {
    /// How commands are isolated.
    pub(super) isolation: Isolation,
    /// `/dev/null`.
    pub(super) null: OwnedFd,
    /// The soft limit of open files that commands get, where this process has raised its own.
    pub(super) open_files: Option<u64>,
    /// The shell that runs commands.
    pub(super) shell: Shell,
    /// The name of the user that commands run as.
    pub(super) user: String,
    /// What the operator gives to commands.
    pub(super) provided: Arc<Provided>,
    /// Whether slots keep their sandboxes.
    pub(super) warm: bool,
    /// The limits of slots.
    pub(super) limits: Arc<Limits>,
    /// What writes complete outputs to files, for whoever keeps them.
    pub(super) spool: Option<Spool>,
}

impl Host {
    /// What starts need where commands are isolated so, those in a sandbox under these limits.
    /// Without a sandbox they have the name of `user`, or that of this process's user.
    ///
    /// # Errors
    /// Where there is no `/dev/null` to be had.
    pub(super) fn new(
        isolation: Isolation,
        user: Option<CommandUser>,
        limits: Arc<Limits>,
    ) -> io::Result<Self> {
        let (shell, identity) = match &isolation {
            Isolation::Jailed(jails) => (jails.layout.shell, jails.layout.identity.clone()),
            Isolation::None { .. } => (Shell::detect(), Arc::new(Identity::detect(user))),
        };
        Ok(Self {
            warm: isolation.is_warm(),
            spool: None,
            provided: isolation.provided().clone(),
            isolation,
            null: isolation::open_null()?,
            // Never above the hard limit that sandboxes get.
            open_files: limits.lower_open_files(descriptors::raise_limit(0)),
            shell,
            user: identity.name().to_owned(),
            limits,
        })
    }

    /// With threads that write complete outputs to files.
    pub(super) fn with_spool(self, spool: Spool) -> Self {
        Self { spool: Some(spool), ..self }
    }
}

impl Host {
    /// The soft limit of open files that commands with these files get.
    pub(super) fn open_files_of(&self, workspace: &Workspace) -> Option<u64> {
        // A program may not have a soft limit above its hard one.
        self.limits.lower_open_files_of(workspace, self.open_files)
    }

    /// The shell of commands with these files, and where it is.
    pub(super) fn shell_of<'a>(&self, workspace: &'a Workspace) -> (Shell, &'a Path) {
        match workspace.image() {
            Some(image) => (image.shell().kind, &image.shell().path),
            None => (self.shell, Path::new(self.shell.path())),
        }
    }

    /// The environment of a command with these files, whose slot's directories are at these places.
    pub(super) fn environment(&self, workspace: &Workspace, places: &Places<'_>) -> Vec<OsString> {
        let common = match workspace.image() {
            Some(image) => image.with_spec(self.provided.added_to(image.environment())),
            None => {
                let shell = Path::new(self.shell.path());
                self.provided.added_to(shell::environment(places, shell, &self.user))
            }
        };
        workspace.settings().added_to(common)
    }
}
