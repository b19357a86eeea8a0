//! What one trajectory has beside, or below, what the engine gives to all.

use std::ffi::OsString;

use super::provided;
use crate::spec::TrajectoryLimits;

/// It is set before anything runs in a workspace, and goes with the workspace.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Settings {
    /// Variables: names and values.
    pub(crate) variables: Vec<(String, OsString)>,
    /// They have no network, whatever their calls say.
    pub(crate) cuts_network: bool,
    /// Whether processes that a command leaves running are kept; `None`: as its call says.
    pub(crate) keeps_background: Option<bool>,
    /// What its slot may use, as far as that is less than the operator's limits.
    pub(crate) limits: TrajectoryLimits,
}

/// Of a trajectory that asked for nothing.
pub(super) static NOTHING: Settings = Settings {
    variables: Vec::new(),
    cuts_network: false,
    keeps_background: None,
    limits: TrajectoryLimits::OPERATORS,
};

impl Settings {
    /// An environment with its variables in it.
    pub(super) fn added_to(&self, environment: Vec<OsString>) -> Vec<OsString> {
        provided::with_variables(environment, &self.variables)
    }
}
