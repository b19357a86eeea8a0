//! Where a ToolServer is, and how to speak with it.

use serde::{Deserialize, Serialize};

use super::Secret;
use crate::error::ConfigError;

/// Where a ToolServer is and how to speak with it. Needs the feature `http`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ToolServerConfig {
    /// Its base URL: `http://host:port` or `https://…`, with or without a path.
    pub url: String,
    /// The bearer token, if it wants one. Defaults to none. Never logged or serialised.
    #[serde(default, skip_serializing)]
    pub token: Option<Secret>,
    /// How many calls it may have at once, 1 to 256; each takes a thread. Defaults to 16.
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    /// The certificate authorities that an `https` server's certificate must come from, as PEM.
    /// Defaults to Mozilla's.
    #[serde(default)]
    pub ca_pem: Option<String>,
}

fn concurrency() -> usize {
    16
}

setters! {
    ToolServerConfig {
        with_token: token = some Secret,
        with_concurrency: concurrency = usize,
        with_ca_pem: ca_pem = some String,
    }
}

/// More calls at once than this are a mistake: each takes a thread.
const MOST_CONCURRENCY: usize = 256;

impl ToolServerConfig {
    /// A ToolServer at this URL, without a token.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), token: None, concurrency: concurrency(), ca_pem: None }
    }

    /// Whether the values make sense. What is wrong with the URL, the token or a certificate is
    /// found out by the client itself.
    ///
    /// # Errors
    /// What is wrong, with what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MOST_CONCURRENCY).contains(&self.concurrency) {
            let concurrency = self.concurrency;
            let text =
                format!("concurrency is {concurrency}; it must be from 1 to {MOST_CONCURRENCY}");
            return Err(ConfigError::new(text));
        }
        Ok(())
    }
}
