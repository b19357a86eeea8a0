//! Sandbox servers that Slurm starts, and how many.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Secret;
use crate::error::ConfigError;
use crate::seconds;

/// The most servers that may be asked for.
pub(crate) const MOST_SERVERS: usize = 10_000;

/// Which sandbox servers a `SlurmBackend` has Slurm start. Needs the feature `http`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SlurmConfig {
    /// The program `tool-executor` on the nodes. Defaults to `tool-executor`, as found there.
    pub program: PathBuf,
    /// Jobs of their own for the servers, one each. Defaults to none: then the servers run on the
    /// nodes of the allocation that this process is in, one on each.
    pub jobs: Option<SlurmJobs>,
    /// How many servers there are at least. Ignored inside an allocation. Defaults to 1.
    pub min_servers: usize,
    /// How many servers there are at most: inside an allocation no more than nodes. Defaults to 8,
    /// inside an allocation to all nodes.
    pub max_servers: Option<usize>,
    /// How many slots each server has. Defaults to what the server chooses: two for each processor
    /// of its node, 10 at least.
    pub slots_per_server: Option<usize>,
    /// More arguments of `tool-executor sandbox`, such as `--limit-memory 2G`. Defaults to none.
    pub server_arguments: Vec<String>,
    /// Whether servers may run commands without isolation, where a node gives none. Defaults to
    /// `false`: they end at once there, and say why.
    pub allow_unisolated: bool,
    /// How long a server may take from its start on a node until it listens, and how long the start
    /// of the executor waits for the first one. Defaults to 60 s.
    #[serde(rename = "start_timeout_s", with = "seconds")]
    pub start_timeout: Duration,
    /// How long capacity has to be unused before servers are let go. Ignored inside an allocation.
    /// Defaults to 300 s.
    #[serde(rename = "idle_timeout_s", with = "seconds")]
    pub idle_timeout: Duration,
    /// A server whose job ends sooner than this is drained, and another one started. Defaults to
    /// 180 s.
    #[serde(rename = "drain_before_s", with = "seconds")]
    pub drain_before: Duration,
    /// As of [`FleetConfig::unreachable_timeout`](super::FleetConfig::unreachable_timeout).
    /// Defaults to 30 s.
    #[serde(rename = "unreachable_timeout_s", with = "seconds")]
    pub unreachable_timeout: Duration,
    /// The bearer token of the servers, which they get by their environment. Defaults to a new one.
    /// Never logged or serialised.
    #[serde(skip_serializing)]
    pub token: Option<Secret>,
}

/// What Slurm is told of the jobs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SlurmJobs {
    /// `--partition`. Defaults to Slurm's own.
    pub partition: Option<String>,
    /// `--account`. Defaults to Slurm's own.
    pub account: Option<String>,
    /// `--time`, as Slurm takes it. Defaults to Slurm's own.
    pub time: Option<String>,
    /// More arguments of `srun`, such as `--cpus-per-task=16` or `--exclusive`. Defaults to none.
    pub arguments: Vec<String>,
}

impl Default for SlurmConfig {
    fn default() -> Self {
        Self {
            program: "tool-executor".into(),
            jobs: None,
            min_servers: 1,
            max_servers: None,
            slots_per_server: None,
            server_arguments: Vec::new(),
            allow_unisolated: false,
            start_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(300),
            drain_before: Duration::from_secs(180),
            unreachable_timeout: Duration::from_secs(30),
            token: None,
        }
    }
}

setters! {
    SlurmConfig {
        with_program: program = PathBuf,
        with_jobs: jobs = some SlurmJobs,
        with_min_servers: min_servers = usize,
        with_max_servers: max_servers = Option<usize>,
        with_slots_per_server: slots_per_server = Option<usize>,
        with_server_arguments: server_arguments = Vec<String>,
        with_allow_unisolated: allow_unisolated = bool,
        with_start_timeout: start_timeout = Duration,
        with_idle_timeout: idle_timeout = Duration,
        with_drain_before: drain_before = Duration,
        with_unreachable_timeout: unreachable_timeout = Duration,
        with_token: token = some Secret,
    }
}

setters! {
    SlurmJobs {
        with_partition: partition = some String,
        with_account: account = some String,
        with_time: time = some String,
        with_arguments: arguments = Vec<String>,
    }
}

impl SlurmConfig {
    /// Whether the numbers make sense. What is wrong with a partition or an account Slurm finds
    /// out.
    ///
    /// # Errors
    /// What is wrong, with what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |text: String| Err(ConfigError::new(text));
        let most = self.max_servers.unwrap_or(self.min_servers.max(1));
        if most == 0 || most > MOST_SERVERS {
            return wrong(format!("max_servers is {most}; it must be from 1 to {MOST_SERVERS}"));
        }
        if self.jobs.is_some() && self.min_servers > most {
            let least = self.min_servers;
            return wrong(format!(
                "min_servers is {least}, more than max_servers, which is {most}"
            ));
        }
        if self.slots_per_server == Some(0) {
            return wrong("slots_per_server is 0; it must be at least 1".to_owned());
        }
        let jobs = self.jobs.iter().flat_map(|jobs| {
            [("partition", &jobs.partition), ("account", &jobs.account), ("time", &jobs.time)]
        });
        for (name, value) in jobs {
            if let Some(value) = value
                && (value.is_empty() || value.contains(|c: char| c.is_whitespace() || c == '\0'))
            {
                return wrong(format!("{name} is {value:?}; it must be one word"));
            }
        }
        Ok(())
    }
}

impl SlurmJobs {
    /// Jobs as a list of `key=value` with commas says it: `partition`, `account`, `time`, and
    /// `nodes`, which is the most servers, or `min-max`. Gives these two, too.
    ///
    /// # Errors
    /// What is wrong, with the keys that there are.
    pub fn parse(text: &str) -> Result<(Self, Option<(usize, usize)>), ConfigError> {
        let mut jobs = Self::default();
        let mut nodes = None;
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let wrong = |why: &str| Err(ConfigError::new(format!("in {part:?}: {why}")));
            let Some((key, value)) = part.trim().split_once('=') else {
                return wrong("it must be key=value");
            };
            let value = value.trim();
            if value.is_empty() {
                return wrong("there is no value");
            }
            match key.trim() {
                "partition" => jobs.partition = Some(value.to_owned()),
                "account" => jobs.account = Some(value.to_owned()),
                "time" => jobs.time = Some(value.to_owned()),
                "nodes" => {
                    let (least, most) = value.split_once('-').unwrap_or(("1", value));
                    match (least.parse::<usize>(), most.parse::<usize>()) {
                        (Ok(least), Ok(most)) if most > 0 && least <= most => {
                            nodes = Some((least, most));
                        }
                        _ => return wrong("it must be a number of nodes, or two: 1-8"),
                    }
                }
                _ => return wrong("the keys are partition, account, time, nodes"),
            }
        }
        Ok((jobs, nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_read_from_keys_and_values() {
        let (jobs, nodes) =
            SlurmJobs::parse("partition=gpu, account=a1,time=2:00:00,nodes=2-8").unwrap();
        assert_eq!(
            jobs,
            SlurmJobs::default().with_partition("gpu").with_account("a1").with_time("2:00:00")
        );
        assert_eq!(nodes, Some((2, 8)));
        assert_eq!(SlurmJobs::parse("nodes=4").unwrap().1, Some((1, 4)));
        assert_eq!(SlurmJobs::parse("").unwrap(), (SlurmJobs::default(), None));
        for (text, why) in [
            ("partition", "key=value"),
            ("time=", "no value"),
            ("nodes=8-2", "1-8"),
            ("nodes=0", "1-8"),
            ("node=1", "the keys are"),
        ] {
            let error = SlurmJobs::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        let jobs = SlurmJobs::default();
        SlurmConfig::default().check().unwrap();
        for (config, why) in [
            (SlurmConfig::default().with_max_servers(Some(0)), "from 1 to"),
            (SlurmConfig::default().with_max_servers(Some(MOST_SERVERS + 1)), "from 1 to"),
            (SlurmConfig::default().with_slots_per_server(Some(0)), "at least 1"),
            (
                SlurmConfig::default()
                    .with_jobs(jobs.clone())
                    .with_min_servers(3)
                    .with_max_servers(Some(2)),
                "more than max_servers",
            ),
            (SlurmConfig::default().with_jobs(jobs.with_partition("a b")), "one word"),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
