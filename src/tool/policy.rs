//! What the configuration demands of every sandbox call.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What the configuration demands of every sandbox call, whatever the model asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Policy {
    /// Whether commands may use a network: which one is the sandbox's to say, here
    /// [`LocalConfig::network`](crate::config::LocalConfig::network). Defaults to `true`.
    pub allow_network: bool,
    /// Whether commands must run isolated, or not at all. Defaults to `false`.
    pub require_sandbox: bool,
    /// The same for the shells and terminals that stay open between calls. Defaults to `false`.
    pub require_stateful_sandbox: bool,
    /// What becomes of a call of a built-in tool that has an argument which the tool does not have.
    /// Defaults to [`UnknownArguments::Refuse`].
    pub unknown_arguments: UnknownArguments,
    /// How a command's two output streams are shown, where its call has no argument `output_order`.
    /// Defaults to [`OutputOrder::Separate`].
    pub output_order: OutputOrder,
    /// What becomes of the processes that a command of `terminal` leaves running. Defaults to
    /// [`BackgroundProcesses::End`].
    pub background: BackgroundProcesses,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allow_network: true,
            require_sandbox: false,
            require_stateful_sandbox: false,
            unknown_arguments: UnknownArguments::default(),
            output_order: OutputOrder::default(),
            background: BackgroundProcesses::default(),
        }
    }
}

setters! {
    Policy {
        with_allow_network: allow_network = bool,
        with_require_sandbox: require_sandbox = bool,
        with_require_stateful_sandbox: require_stateful_sandbox = bool,
        with_unknown_arguments: unknown_arguments = UnknownArguments,
        with_output_order: output_order = OutputOrder,
        with_background: background = BackgroundProcesses,
    }
}

/// What becomes of a call of a built-in tool that has an argument which the tool does not have.
///
/// The arguments of other tools are not looked at by name: those of an external tool go to its
/// ToolServer, those of an in-process tool to its closure, as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UnknownArguments {
    /// It is answered [`InvalidCall`](crate::Outcome::InvalidCall), with the names of the arguments
    /// that there are, and does not run: it would not do what was asked for.
    #[default]
    Refuse,
    /// It runs as if the argument were not there: for recordings that were made so.
    Ignore,
}

/// How a command's two output streams are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutputOrder {
    /// Standard output, and after it, under the line `[stderr]`, standard error.
    #[default]
    Separate,
    /// Both in the order in which they were written, as on a terminal: the command has one pipe for
    /// both.
    Interleaved,
}

/// What becomes of the processes that a command of `terminal` leaves running. In both cases its
/// result names them.
///
/// The shells and terminals that stay open between calls keep what they started whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BackgroundProcesses {
    /// They are ended with the command: by SIGTERM, and by SIGKILL after a moment.
    #[default]
    End,
    /// They go on running until the trajectory is released: later commands reach and see them. What
    /// they print after the command's end is not kept. They share the limits of the slot, and are
    /// ended when they exceed one; the next result says so. At most 16 commands of a trajectory may
    /// have left something whose output is still open; what a further one leaves is ended.
    ///
    /// Only in sandboxes of this program with a `/proc` of their own; elsewhere they are ended.
    /// What is a command's own when its time is up is told by its session (`setsid(2)`): where it
    /// forks faster than that can be done for 0.2 s, those that earlier ones left are ended with
    /// it.
    Keep,
}

/// No setting has this value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{given:?} is none of {possible}")]
pub struct UnknownSetting {
    given: String,
    possible: String,
}

/// Gives a setting the names of its values.
macro_rules! named_values {
    ($type:ident: $($value:ident = $name:literal),+) => {
        impl $type {
            /// Every value, the default first.
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// Its name, as in JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$value => $name),+ }
            }
        }

        impl FromStr for $type {
            type Err = UnknownSetting;

            fn from_str(name: &str) -> Result<Self, UnknownSetting> {
                let found = Self::ALL.iter().copied().find(|value| value.as_str() == name);
                found.ok_or_else(|| UnknownSetting {
                    given: name.to_owned(),
                    possible: Self::ALL.iter().map(|value| value.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

named_values!(UnknownArguments: Refuse = "refuse", Ignore = "ignore");
named_values!(OutputOrder: Separate = "separate", Interleaved = "interleaved");
named_values!(BackgroundProcesses: End = "end", Keep = "keep");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_read_by_the_name_that_it_is_written_with() {
        for &value in UnknownArguments::ALL {
            assert_eq!(value.as_str().parse(), Ok(value));
            assert_eq!(serde_json::to_value(value).unwrap(), value.as_str());
        }
        for &value in OutputOrder::ALL {
            assert_eq!(value.as_str().parse(), Ok(value));
            assert_eq!(serde_json::to_value(value).unwrap(), value.as_str());
        }
        let error = "mixed".parse::<OutputOrder>().unwrap_err().to_string();
        assert_eq!(error, "\"mixed\" is none of separate, interleaved");
    }
}
