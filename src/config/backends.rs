//! Several backends under one executor.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{FleetConfig, LocalConfig, SlurmConfig, named_part};
use crate::error::ConfigError;
use crate::seconds::{self, LONGEST};

/// The most backends under one executor.
pub(crate) const MOST_BACKENDS: usize = crate::pool::MOST_TIERS;
/// The longest name of one, in bytes.
const LONGEST_NAME: usize = 32;

/// One of several backends under an executor, see
/// [`ExecutorConfig::backends`](super::ExecutorConfig::backends): `local`, `fleet` or `slurm`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct BackendConfig {
    /// What its containers are called by: the address of each is `NAME/ADDRESS`. Letters, digits,
    /// `-`, `_` and `.`, at most 32 of them; no two have the same. Defaults to `local`, `fleet` or
    /// `slurm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How long a trajectory that waits for a slot waits for the backends before this one: those
    /// among them that can give what it begins with, and have a server or may start one. Defaults
    /// to 0: it is put here as soon as they have no free slot.
    #[serde(rename = "spill_after_s", with = "seconds")]
    pub spill_after: Duration,
    /// The embedded sandbox.
    #[serde(deserialize_with = "local", skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalConfig>,
    /// Sandbox servers.
    #[serde(deserialize_with = "fleet", skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetConfig>,
    /// Sandbox servers that Slurm starts.
    #[serde(deserialize_with = "slurm", skip_serializing_if = "Option::is_none")]
    pub slurm: Option<SlurmConfig>,
}

named_part!(local, "local");
named_part!(fleet, "fleet");
named_part!(slurm, "slurm");

setters! {
    BackendConfig {
        with_name: name = some String,
        with_spill_after: spill_after = Duration,
        with_local: local = some LocalConfig,
        with_fleet: fleet = some FleetConfig,
        with_slurm: slurm = some SlurmConfig,
    }
}

impl BackendConfig {
    /// Its name: the one that it was given, or that of its kind.
    pub fn name(&self) -> &str {
        let kind = || match (&self.local, &self.fleet) {
            (Some(_), _) => "local",
            (None, Some(_)) => "fleet",
            (None, None) => "slurm",
        };
        self.name.as_deref().unwrap_or_else(kind)
    }

    /// Whether it is one backend, which makes sense.
    ///
    /// # Errors
    /// What is wrong, with what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |text: String| Err(ConfigError::new(text));
        let kinds = [self.local.is_some(), self.fleet.is_some(), self.slurm.is_some()];
        if kinds.into_iter().filter(|given| *given).count() != 1 {
            return wrong("give one of \"local\", \"fleet\" and \"slurm\"".to_owned());
        }
        check_backend_name(self.name())?;
        if self.spill_after > LONGEST {
            return wrong(format!("spill_after is {:?}; at most a year", self.spill_after));
        }
        let parts = [
            ("local", self.local.as_ref().map(LocalConfig::check)),
            ("fleet", self.fleet.as_ref().map(FleetConfig::check)),
            ("slurm", self.slurm.as_ref().map(SlurmConfig::check)),
        ];
        for (name, checked) in parts {
            if let Some(Err(error)) = checked {
                return wrong(format!("in {name:?}: {error}"));
            }
        }
        Ok(())
    }
}

/// Whether these backends may be under one executor.
///
/// # Errors
/// What is wrong, with what would be right.
pub(super) fn check_all(backends: &[BackendConfig]) -> Result<(), ConfigError> {
    let wrong = |text: String| Err(ConfigError::new(text));
    if backends.len() > MOST_BACKENDS {
        let count = backends.len();
        return wrong(format!("there are {count} backends; at most {MOST_BACKENDS}"));
    }
    for (number, backend) in backends.iter().enumerate() {
        if let Err(error) = backend.check() {
            return wrong(format!("in \"backends\"[{number}]: {error}"));
        }
        let name = backend.name();
        if backends[..number].iter().any(|other| other.name() == name) {
            return wrong(format!(
                "two \"backends\" are called {name:?}: give one of them another \"name\""
            ));
        }
    }
    Ok(())
}

/// Whether a backend may be called so.
///
/// # Errors
/// What would be right.
pub(crate) fn check_backend_name(name: &str) -> Result<(), ConfigError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_plain) {
        return Err(ConfigError::new(format!(
            "the name of a backend is {name:?}; it must be 1 to {LONGEST_NAME} letters, digits, \
             '-', '_' or '.'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExecutorConfig;

    #[test]
    fn backends_are_read_in_their_order_and_named() {
        let text = r#"{"backends": [
            {"local": {"slots": 2}},
            {"name": "far", "fleet": {"urls": ["http://n1:1"]}, "spill_after_s": 1.5}
        ]}"#;
        let config: ExecutorConfig = serde_json::from_str(text).unwrap();
        config.check().unwrap();
        let names: Vec<_> = config.backends.iter().map(BackendConfig::name).collect();
        assert_eq!(names, ["local", "far"]);
        assert_eq!(config.backends[1].spill_after, Duration::from_millis(1500));
        let again = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ExecutorConfig>(&again).unwrap(), config);
    }

    #[test]
    fn backends_that_make_no_sense_are_refused() {
        for (text, why) in [
            (r#"[{}]"#, r#"in "backends"[0]: give one of "local", "fleet" and "slurm""#),
            (r#"[{"local": {}, "slurm": {}}]"#, "give one of"),
            (
                r#"[{"local": {}}, {"local": {}}]"#,
                r#"are called "local": give one of them another"#,
            ),
            (r#"[{"name": "a/b", "local": {}}]"#, "letters, digits"),
            (r#"[{"name": "", "local": {}}]"#, "letters, digits"),
            (r#"[{"local": {"slots": 0}}]"#, r#"in "backends"[0]: in "local": "#),
            (r#"[{"spill_after_s": 99999999999, "local": {}}]"#, "31536000"),
        ] {
            let read =
                serde_json::from_str::<ExecutorConfig>(&format!(r#"{{"backends": {text}}}"#));
            let error = match read {
                Ok(config) => config.check().unwrap_err().to_string(),
                Err(error) => error.to_string(),
            };
            assert!(error.contains(why), "{text}: {error}");
        }
        let unknown = r#"{"backends": [{"local": {"slot": 1}}]}"#;
        let error = serde_json::from_str::<ExecutorConfig>(unknown).unwrap_err().to_string();
        assert!(error.contains(r#"in "local": unknown field `slot`"#), "{error}");
        let both = r#"{"local": {}, "backends": [{"slurm": {}}]}"#;
        let error = serde_json::from_str::<ExecutorConfig>(both).unwrap().check().unwrap_err();
        assert!(error.to_string().contains("or a list of them, \"backends\""), "{error}");
    }
}
