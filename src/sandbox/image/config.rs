//! What an image says of the processes in it, as OCI's and Docker's configurations have it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::ImagePlatform;

/// What an image says of the processes in it. Nothing here is checked: names of users and
/// directories are what the image's author wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct ImageConfig {
    /// Variables, as `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Whom processes run as: `user`, `uid`, `user:group`, `uid:gid`; empty is root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Where processes begin; empty is `/`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
}

/// The configuration of an image, as it is written. What is not needed is not read.
#[derive(Debug, Deserialize)]
pub(super) struct Configuration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
    pub(super) config: Option<ProcessConfig>,
    pub(super) rootfs: RootFs,
}

/// The part about processes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ProcessConfig {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
}

/// The part about layers.
#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    #[serde(default)]
    pub(super) diff_ids: Vec<String>,
}

impl From<ProcessConfig> for ImageConfig {
    fn from(config: ProcessConfig) -> Self {
        let ProcessConfig { env, user, working_dir } = config;
        let (env, user) = (env.unwrap_or_default(), user.unwrap_or_default());
        Self { env, user, working_dir: working_dir.unwrap_or_default() }
    }
}

impl Configuration {
    pub(super) fn platform(&self) -> Platform {
        let (os, architecture) = (self.os.clone(), self.architecture.clone());
        Platform { os, architecture, variant: self.variant.clone() }
    }
}

/// What an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    pub(super) variant: Option<String>,
}

impl Platform {
    /// This machine.
    pub(super) fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// The one of these processors.
    pub(super) fn of(platform: ImagePlatform) -> Self {
        Self { architecture: platform.as_str().to_owned(), ..Self::host() }
    }

    /// Whether this machine runs what is for such ones. Variants are not asked: every 64-bit Arm
    /// is a v8. What does not say what it is for is tried.
    pub(super) fn runs(&self, image: &Self) -> bool {
        let is = |its: &str, own: &str| its.is_empty() || its == own;
        is(&image.os, &self.os) && is(&image.architecture, &self.architecture)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { os, architecture, variant } = self;
        write!(f, "{}/{}", os.escape_debug(), architecture.escape_debug())?;
        variant.iter().try_for_each(|variant| write!(f, "/{}", variant.escape_debug()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read_with_what_they_leave_out() {
        let read = |text: &str| serde_json::from_str::<Configuration>(text).unwrap();
        let whole = read(
            r#"{"architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"], "User": "me",
                "WorkingDir": "/w", "Cmd": null}, "rootfs": {"type": "layers", "diff_ids": []}}"#,
        );
        let config = ImageConfig::from(whole.config.unwrap());
        let (env, user) = (vec!["A=b".to_owned()], "me".to_owned());
        assert_eq!(config, ImageConfig { env, user, working_dir: "/w".to_owned() });
        for text in [r#"{"rootfs": {}}"#, r#"{"config": null, "rootfs": {"diff_ids": []}}"#] {
            assert!(read(text).config.is_none());
        }
        let nothing = read(r#"{"config": {"Env": null, "User": null}, "rootfs": {}}"#);
        assert_eq!(ImageConfig::from(nothing.config.unwrap()), ImageConfig::default());
    }
}
