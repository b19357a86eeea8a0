//! The fields of a spec that a sandbox has to see to.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A field of a [`TrajectorySpec`](super::TrajectorySpec) that a sandbox has to see to; written as
/// the field's name in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SpecField {
    /// `image`.
    Image,
    /// `snapshot`.
    Snapshot,
    /// `user`.
    User,
    /// `workdir`.
    Workdir,
    /// `env`.
    Env,
    /// `limits`.
    Limits,
    /// `network`.
    Network,
    /// `allow_hosts`.
    AllowHosts,
    /// `background`.
    Background,
    /// `files`.
    Files,
}

impl SpecField {
    /// Every one, in the order of the spec.
    pub const ALL: [Self; 10] = [
        Self::Image,
        Self::Snapshot,
        Self::User,
        Self::Workdir,
        Self::Env,
        Self::Limits,
        Self::Network,
        Self::AllowHosts,
        Self::Background,
        Self::Files,
    ];

    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Snapshot => "snapshot",
            Self::User => "user",
            Self::Workdir => "workdir",
            Self::Env => "env",
            Self::Limits => "limits",
            Self::Network => "network",
            Self::AllowHosts => "allow_hosts",
            Self::Background => "background",
            Self::Files => "files",
        }
    }
}

impl fmt::Display for SpecField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_written_as_it_is_named() {
        for field in SpecField::ALL {
            assert_eq!(serde_json::to_value(field).unwrap(), field.as_str());
            let read: SpecField = serde_json::from_value(field.as_str().into()).unwrap();
            assert_eq!(read, field);
        }
    }
}
