//! What the configuration demands of every sandbox call.

use serde::{Deserialize, Serialize};

/// What the configuration demands of every sandbox call, whatever the model asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Policy {
    /// Whether commands may use the network. Defaults to `true`.
    pub allow_network: bool,
    /// Whether commands must run isolated, or not at all. Defaults to `false`.
    pub require_sandbox: bool,
    /// The same for the shells and terminals that stay open between calls. Defaults to `false`.
    pub require_stateful_sandbox: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { allow_network: true, require_sandbox: false, require_stateful_sandbox: false }
    }
}

setters! {
    Policy {
        with_allow_network: allow_network = bool,
        with_require_sandbox: require_sandbox = bool,
        with_require_stateful_sandbox: require_stateful_sandbox = bool,
    }
}
