//! What every start of a command or of a warm sandbox needs to know of this machine. Found out
//! once.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::descriptors;
use super::identity::Identity;
use super::isolation::{self, Isolation};
use super::limits::Limits;
use super::provided::Provided;
use super::settings::Settings;
use super::shell::{self, Places, Shell};
use super::spool::Spool;
use super::user::CommandUser;

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

/// The environment of a command whose slot's directories are at these places, and whose trajectory
/// has these settings: what is its own wins.
pub(super) fn environment(places: &Places<'_>, host: &Host, settings: &Settings) -> Vec<OsString> {
    let common = shell::environment(places, host.shell, &host.user);
    settings.added_to(host.provided.added_to(common))
}
