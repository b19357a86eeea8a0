//! What one trajectory asks for beyond its executor's configuration: [`TrajectorySpec`].
//!
//! Plain data with serde, the same for Rust, the C ABI, Python, HTTP and replay. What a value means
//! by itself is checked by [`TrajectorySpec::check`], at the door that takes it; whether it
//! can be had is the backend's to say, before anything of the trajectory runs.

mod field;
mod file;
mod limits;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{HostPattern, NetworkMode, variable_problem};
use crate::error::ConfigError;
use crate::seconds::{self, LONGEST};
use crate::tool::BackgroundProcesses;

pub use self::field::SpecField;
pub(crate) use self::file::problem as file_problem;
pub use self::file::{SpecFile, SpecFileContent};
pub use self::limits::TrajectoryLimits;

/// How many bytes the [`files`](TrajectorySpec::files) of a spec may have in all: 8 MiB.
pub const MAX_SPEC_FILES_BYTES: usize = 8 << 20;
/// How many [`files`](TrajectorySpec::files) a spec may have.
pub const MAX_SPEC_FILES: usize = 1_000;
/// The longest text of `image`, `workdir` and a file's path, in bytes: the kernel's for paths.
const MAX_TEXT: usize = 4_095;
/// The longest text of `user`, in bytes.
const MAX_USER: usize = 255;
/// How many bytes the names and values of `env` may have in all: they go with every command.
const MAX_ENV_BYTES: usize = 128 << 10;
/// The longest list of hosts.
const MAX_HOSTS: usize = 1_000;

/// What one trajectory asks for beyond its executor's configuration; handed to
/// [`ToolExecutor::begin`](crate::ToolExecutor::begin) before its first call. Whatever is left out
/// is as the executor's operator has it.
///
/// A spec can narrow what the operator allows, never widen it. What an executor cannot give is a
/// typed refusal, before anything of the trajectory runs: see [`BeginError`](crate::BeginError).
///
/// In JSON the durations are seconds, `max_wall_s` and `max_idle_s`; unknown keys are refused, with
/// the keys that there are.
///
/// ```
/// use tool_executor::TrajectorySpec;
///
/// let spec: TrajectorySpec = serde_json::from_str(
///     r#"{"env": {"CI": "1"}, "network": "none", "max_wall_s": 3600}"#,
/// )?;
/// assert_eq!(spec.env["CI"], "1");
/// assert_eq!(spec.check(), Ok(()));
///
/// let error = serde_json::from_str::<TrajectorySpec>(r#"{"imgae": "debian"}"#).unwrap_err();
/// assert!(error.to_string().contains("unknown field `imgae`, expected one of `image`"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TrajectorySpec {
    /// The image whose files its machine has. Defaults to the operator's: the host's files, as a
    /// rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The snapshot whose files its machine begins with; not beside an image. Defaults to none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
    /// Whom its commands run as: a name or number, and perhaps `:` and a group, as in an image's
    /// configuration. Defaults to the image's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The directory that its commands start in: an absolute path, made if it is missing. Defaults
    /// to the image's, or to the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Variables that its commands have beside those they always have, or in place of them. `HOME`,
    /// `USER`, `LOGNAME`, `PWD` and `SHELL` are not to be had: they say who and where a command is.
    /// Defaults to none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What its slot may use of the machine, as far as that is less than the operator allows.
    /// Defaults to the operator's limits.
    #[serde(skip_serializing_if = "TrajectoryLimits::is_empty")]
    pub limits: TrajectoryLimits,
    /// What network its commands have; no wider one than the operator's. Defaults to the
    /// operator's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// The hosts that its commands may reach through the proxy, as far as the operator allows them,
    /// too. Defaults to those that the operator allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_hosts: Option<Vec<HostPattern>>,
    /// What becomes of processes that a command leaves running. Defaults to
    /// the operator's, [`Policy::background`](crate::config::Policy::background).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<BackgroundProcesses>,
    /// How long it may hold its slot, from the moment at which it has it. When that is over what
    /// runs of it is ended, its slot is taken back, and its calls end as
    /// [`TrajectoryExpired`](crate::Outcome::TrajectoryExpired) until it is released. Defaults to
    /// no limit.
    #[serde(rename = "max_wall_s", with = "seconds::option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wall: Option<Duration>,
    /// How long it may hold its slot without a call, a release or a reader of its files; what
    /// follows is as for `max_wall`. Defaults to no limit of its own.
    #[serde(rename = "max_idle_s", with = "seconds::option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_idle: Option<Duration>,
    /// Files that its machine begins with, written in their order. Defaults to none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<SpecFile>,
}

setters! {
    TrajectorySpec {
        with_image: image = some String,
        with_snapshot: snapshot = some SnapshotId,
        with_user: user = some String,
        with_workdir: workdir = some String,
        with_env: env = BTreeMap<String, String>,
        with_limits: limits = TrajectoryLimits,
        with_network: network = some NetworkMode,
        with_allow_hosts: allow_hosts = some Vec<HostPattern>,
        with_background: background = some BackgroundProcesses,
        with_max_wall: max_wall = some Duration,
        with_max_idle: max_idle = some Duration,
        with_files: files = Vec<SpecFile>,
    }
}

/// Names a snapshot of a trajectory's files, within its executor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(String);

impl SnapshotId {
    /// The snapshot of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TrajectorySpec {
    /// What it asks of a sandbox, in the order of its fields: those that are not at their default,
    /// but for `max_wall` and `max_idle`, which the executor sees to.
    pub fn asks_for(&self) -> impl Iterator<Item = SpecField> + '_ {
        SpecField::ALL.into_iter().filter(|field| match field {
            SpecField::Image => self.image.is_some(),
            SpecField::Snapshot => self.snapshot.is_some(),
            SpecField::User => self.user.is_some(),
            SpecField::Workdir => self.workdir.is_some(),
            SpecField::Env => !self.env.is_empty(),
            SpecField::Limits => !self.limits.is_empty(),
            SpecField::Network => self.network.is_some(),
            SpecField::AllowHosts => self.allow_hosts.is_some(),
            SpecField::Background => self.background.is_some(),
            SpecField::Files => !self.files.is_empty(),
        })
    }

    /// The same where no command may use the network. What asks for nothing of a sandbox does not
    /// ask for that either.
    ///
    /// # Errors
    /// It asks for a network.
    pub(crate) fn without_network(self) -> Result<Self, ConfigError> {
        match self.network {
            Some(NetworkMode::None) => Ok(self),
            Some(network) => Err(ConfigError::new(format!(
                "network is {network}, and commands here have none; leave it out"
            ))),
            None if self.allow_hosts.is_some() => {
                let text = "allow_hosts is given, and commands here have no network; leave it out";
                Err(ConfigError::new(text))
            }
            None if self.asks_for().next().is_none() => Ok(self),
            None => Ok(self.with_network(NetworkMode::None)),
        }
    }

    /// Whether every value makes sense by itself.
    ///
    /// # Errors
    /// The first that does not, with what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.problem().map_or(Ok(()), |problem| Err(ConfigError::new(problem)))
    }

    fn problem(&self) -> Option<String> {
        let texts = [
            ("image", &self.image, MAX_TEXT),
            ("user", &self.user, MAX_USER),
            ("workdir", &self.workdir, MAX_TEXT),
        ];
        for (name, text, most) in texts {
            if let Some(problem) = text.as_deref().and_then(|text| text_problem(text, most)) {
                return Some(format!("{name} {problem}"));
            }
        }
        if let Some(snapshot) = &self.snapshot {
            if let Some(problem) = text_problem(snapshot.as_str(), MAX_USER) {
                return Some(format!("snapshot {problem}"));
            }
            if self.image.is_some() {
                let text = "image and snapshot are both given; a snapshot has the image that it \
                            was taken in, so give one of them";
                return Some(text.to_owned());
            }
        }
        if let Some(workdir) = self.workdir.as_deref().filter(|path| !is_plain(path)) {
            return Some(format!(
                "workdir is {workdir:?}; it must be an absolute path without `..`"
            ));
        }
        self.env_problem()
            .or_else(|| self.limits.problem())
            .or_else(|| self.network_problem())
            .or_else(|| self.time_problem())
            .or_else(|| file::problem(&self.files))
    }

    fn env_problem(&self) -> Option<String> {
        let problem = self.env.iter().find_map(|(name, value)| variable_problem(name, Some(value)));
        let bytes: usize = self.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        problem.map(|problem| format!("in env: {problem}")).or_else(|| {
            let text = || format!("env has {bytes} bytes; at most {MAX_ENV_BYTES}");
            (bytes > MAX_ENV_BYTES).then(text)
        })
    }

    fn network_problem(&self) -> Option<String> {
        let hosts = self.allow_hosts.as_ref()?;
        if hosts.is_empty() {
            let text = "allow_hosts is empty; leave it out for the hosts that the operator allows, \
                        or say \"network\": \"none\"";
            return Some(text.to_owned());
        }
        if hosts.len() > MAX_HOSTS {
            return Some(format!("allow_hosts has {} hosts; at most {MAX_HOSTS}", hosts.len()));
        }
        let network = self.network.filter(|network| *network != NetworkMode::Proxy)?;
        Some(format!("allow_hosts is given, and network is {network}; only the proxy knows hosts"))
    }

    fn time_problem(&self) -> Option<String> {
        let times = [("max_wall_s", self.max_wall), ("max_idle_s", self.max_idle)];
        times.into_iter().find_map(|(name, time)| {
            let time = time.filter(|time| time.is_zero() || *time > LONGEST)?;
            let most = LONGEST.as_secs();
            Some(format!(
                "{name} is {}; it must be above 0, and at most {most}",
                time.as_secs_f64()
            ))
        })
    }
}

/// What is wrong with a text that the system or an image store is to read, if something is.
fn text_problem(text: &str, most: usize) -> Option<String> {
    if text.is_empty() {
        return Some("is empty; leave it out for the default".to_owned());
    }
    if text.len() > most {
        return Some(format!("has {} bytes; at most {most}", text.len()));
    }
    text.chars()
        .any(char::is_control)
        .then(|| format!("is {text:?}; it must not have control characters"))
}

/// Whether a path of the machine is absolute and says where it leads.
fn is_plain(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|part| part != "..")
}

#[cfg(test)]
mod tests;
