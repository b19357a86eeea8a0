//! Which sandbox servers there are, and how to speak with them.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Secret;
use crate::error::ConfigError;
use crate::seconds;

/// Which sandbox servers a `FleetBackend` uses, and how. Needs the feature `http`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FleetConfig {
    /// Their base URLs: `http://host:port` or `https://…`. All different. At least one, unless the
    /// servers are listed elsewhere ([`servers_file`](Self::servers_file),
    /// [`servers_name`](Self::servers_name)).
    #[serde(default)]
    pub urls: Vec<String>,
    /// A file with their base URLs, one in each line; empty lines, and what follows a `#`, are left
    /// out. It is read again twice a second: servers that are new in it are used as soon as they
    /// answer, those that are gone from it are drained, which means that trajectories finish there
    /// and no other is put there. At most 1 MiB and 10,000 servers. Defaults to none.
    #[serde(default)]
    pub servers_file: Option<PathBuf>,
    /// A name and a port, `name:port`: every address of the name is a server, spoken to by `http`.
    /// It is looked up again every 5 s, with the same effect as a file that changes. Defaults to
    /// none.
    #[serde(default)]
    pub servers_name: Option<String>,
    /// The bearer token, the same for all. Defaults to none. Never logged or serialised.
    #[serde(default, skip_serializing)]
    pub token: Option<Secret>,
    /// How many slots are asked for: as many of each server, as far as they have them. Others may
    /// use the servers, too, and get their share; so there may be fewer, and more later. At least
    /// 1. Defaults to all there are.
    #[serde(default)]
    pub slots: Option<usize>,
    /// How long a server may be out of reach, since it was last heard of, before its calls end as
    /// `sandbox_lost`. One that says nothing is noticed after 3 s at the earliest. Defaults to 30
    /// s. A server that does not hear of the executor for its lease
    /// ([`ServerConfig::lease`](super::ServerConfig::lease), 15 s) gives the slots to others before
    /// that: what was in them is lost then.
    #[serde(rename = "unreachable_timeout_s", with = "seconds", default = "unreachable_timeout")]
    pub unreachable_timeout: Duration,
    /// How long the start waits for servers that do not answer yet, and for a slot where other
    /// executors have them all. Defaults to 60 s.
    #[serde(rename = "start_timeout_s", with = "seconds", default = "start_timeout")]
    pub start_timeout: Duration,
    /// How long a server is left alone that answers and in whose slots nothing can be run: at
    /// first; twice as long each time that it is found so again, and 60 times as long at most. Its
    /// trajectories finish there. Defaults to 30 s.
    #[serde(rename = "bad_server_pause_s", with = "seconds", default = "bad_server_pause")]
    pub bad_server_pause: Duration,
    /// Whether servers may be used that say that they run commands without isolation. Defaults to
    /// `false`: the start fails, and a server that says so only when it has begun anew is not used
    /// again. One that does not say is used, with a logged warning;
    /// [`Policy::require_sandbox`](super::Policy::require_sandbox) has each call ask for isolation.
    #[serde(default)]
    pub allow_unisolated: bool,
    /// The certificate authorities that `https` servers' certificates must come from, as PEM.
    /// Defaults to Mozilla's.
    #[serde(default)]
    pub ca_pem: Option<String>,
}

fn unreachable_timeout() -> Duration {
    Duration::from_secs(30)
}

fn start_timeout() -> Duration {
    Duration::from_secs(60)
}

fn bad_server_pause() -> Duration {
    Duration::from_secs(30)
}

setters! {
    FleetConfig {
        with_servers_file: servers_file = some PathBuf,
        with_servers_name: servers_name = some String,
        with_token: token = some Secret,
        with_slots: slots = Option<usize>,
        with_unreachable_timeout: unreachable_timeout = Duration,
        with_start_timeout: start_timeout = Duration,
        with_bad_server_pause: bad_server_pause = Duration,
        with_allow_unisolated: allow_unisolated = bool,
        with_ca_pem: ca_pem = some String,
    }
}

impl FleetConfig {
    /// The servers at these URLs, with every other setting at its default.
    pub fn new(urls: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            urls: urls.into_iter().map(Into::into).collect(),
            servers_file: None,
            servers_name: None,
            token: None,
            slots: None,
            unreachable_timeout: unreachable_timeout(),
            start_timeout: start_timeout(),
            bad_server_pause: bad_server_pause(),
            allow_unisolated: false,
            ca_pem: None,
        }
    }

    /// Whether there are servers, each of them once. What is wrong with a URL, the token or a
    /// certificate is found out by the fleet itself.
    ///
    /// # Errors
    /// What is wrong, with what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        let sources =
            [!self.urls.is_empty(), self.servers_file.is_some(), self.servers_name.is_some()];
        match sources.into_iter().filter(|given| *given).count() {
            0 => {
                let text = "a fleet needs the URL of at least one sandbox server, in urls, or \
                            servers_file or servers_name";
                return Err(ConfigError::new(text));
            }
            1 => {}
            _ => {
                let text = "a fleet takes one of urls, servers_file and servers_name";
                return Err(ConfigError::new(text));
            }
        }
        if let Some(name) = &self.servers_name {
            let port = name.rsplit_once(':').filter(|(name, _)| !name.is_empty());
            if port.and_then(|(_, port)| port.parse::<u16>().ok()).is_none() {
                let text =
                    format!("servers_name is {name:?}; it must be a name and a port, name:port");
                return Err(ConfigError::new(text));
            }
        }
        if self.slots == Some(0) {
            return Err(ConfigError::new("slots is 0; it must be at least 1"));
        }
        let mut urls: Vec<&str> = self.urls.iter().map(|url| url.trim_end_matches('/')).collect();
        urls.sort_unstable();
        match urls.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                let url = pair[0];
                Err(ConfigError::new(format!("the sandbox server {url} is there twice")))
            }
            None => Ok(()),
        }
    }
}
