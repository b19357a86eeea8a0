//! How images are pulled from registries and kept.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use crate::seconds;

/// How images are pulled from registries, and how much of the disk they may have.
///
/// They are pulled by `skopeo`, which has to be installed. What is not said here is as its own
/// settings say: credentials (`containers-auth.json(5)`), mirrors
/// (`containers-registries.conf(5)`), certificates (`containers-certs.d(5)`), signatures
/// (`containers-policy.json(5)`), proxies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ImagesConfig {
    /// Whether an image that the store does not have is pulled. Defaults to `true`.
    pub pull: bool,
    /// The processors whose image is pulled of a list for several. Another one than this machine's
    /// needs an emulator, which the kernel is told of by `binfmt_misc`. Defaults to this machine's.
    pub platform: Option<ImagePlatform>,
    /// The file with credentials. Defaults to that of `skopeo`: `$REGISTRY_AUTH_FILE`,
    /// `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.docker/config.json`.
    pub auth_file: Option<PathBuf>,
    /// A directory with certificates of authorities (`*.crt`), and of this client (`*.cert`,
    /// `*.key`), for all registries. Defaults to those of the system.
    pub cert_dir: Option<PathBuf>,
    /// Registries, as `HOST` or `HOST:PORT`, that need no https: a certificate of theirs is not
    /// checked, and without https they are spoken to by http, credentials included. Defaults to
    /// none.
    pub plain_http: Vec<String>,
    /// How often a pull is tried again that was cut off or did not reach its registry: after 1 s,
    /// then 2, 4 and so on up to 30. What has arrived is kept. At most 20. Defaults to 4.
    pub retries: u32,
    /// How long a pull may take, with all that is tried again: 1 s to a week. Defaults to an hour.
    #[serde(rename = "timeout_s", with = "seconds")]
    pub timeout: Duration,
    /// How many images are pulled at a time: 1 to 64. Defaults to 4.
    pub parallel: usize,
    /// How old the answer to a tag may be when a trajectory wants it: an older one is asked for
    /// again, and kept for as long again where the registry does not answer. A name with a digest
    /// is never asked for again. Defaults to none: what the store has under a name is used until
    /// `image pull` brings another.
    #[serde(rename = "refresh_s", with = "seconds::option")]
    pub refresh: Option<Duration>,
    /// How many bytes the files of all images of a store may have together. Beyond that the images
    /// that were not used for longest are removed when one was added; never one that a program or a
    /// snapshot uses. Defaults to none: no limit.
    pub store_bytes: Option<u64>,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            pull: true,
            platform: None,
            auth_file: None,
            cert_dir: None,
            plain_http: Vec::new(),
            retries: 4,
            timeout: Duration::from_secs(3600),
            parallel: 4,
            refresh: None,
            store_bytes: None,
        }
    }
}

setters! {
    ImagesConfig {
        with_pull: pull = bool,
        with_platform: platform = some ImagePlatform,
        with_auth_file: auth_file = some PathBuf,
        with_cert_dir: cert_dir = some PathBuf,
        with_plain_http: plain_http = Vec<String>,
        with_retries: retries = u32,
        with_timeout: timeout = Duration,
        with_parallel: parallel = usize,
        with_refresh: refresh = some Duration,
        with_store_bytes: store_bytes = some u64,
    }
}

const MOST_RETRIES: u32 = 20;
const MOST_PARALLEL: usize = 64;
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

impl ImagesConfig {
    /// Whether every value makes sense.
    ///
    /// # Errors
    /// The first that does not, with what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |text: String| Err(ConfigError::new(text));
        if self.retries > MOST_RETRIES {
            return wrong(format!("retries is {}; at most {MOST_RETRIES}", self.retries));
        }
        if !(1..=MOST_PARALLEL).contains(&self.parallel) {
            let parallel = self.parallel;
            return wrong(format!("parallel is {parallel}; it must be from 1 to {MOST_PARALLEL}"));
        }
        if !(Duration::from_secs(1)..=LONGEST).contains(&self.timeout) {
            let timeout = self.timeout;
            return wrong(format!("timeout is {timeout:?}; it must be from 1 s to a week"));
        }
        let is_registry = |host: &&String| {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
            !host.is_empty() && host.len() <= 255 && host.bytes().all(is_part)
        };
        match self.plain_http.iter().find(|host| !is_registry(host)) {
            Some(host) => wrong(format!(
                "{host:?} is no registry; it must be HOST or HOST:PORT, without http:// and a path"
            )),
            None => Ok(()),
        }
    }
}

/// Processors that an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum ImagePlatform {
    /// 64-bit x86.
    Amd64,
    /// 64-bit Arm.
    Arm64,
}

impl ImagePlatform {
    /// As registries call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

impl fmt::Display for ImagePlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ImagePlatform {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.strip_prefix("linux/").unwrap_or(text) {
            "amd64" => Ok(Self::Amd64),
            "arm64" => Ok(Self::Arm64),
            _ => Err(ConfigError::new(format!("{text:?} is none of amd64, arm64"))),
        }
    }
}

impl TryFrom<String> for ImagePlatform {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<ImagePlatform> for String {
    fn from(platform: ImagePlatform) -> Self {
        platform.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_what_is_right() {
        let default = ImagesConfig::default;
        for (config, words) in [
            (default().with_retries(21), "at most 20"),
            (default().with_parallel(0), "from 1 to 64"),
            (default().with_timeout(Duration::ZERO), "from 1 s"),
            (default().with_plain_http(vec!["http://x".into()]), "without http://"),
            (default().with_plain_http(vec![String::new()]), "HOST or HOST:PORT"),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let hosts = ["localhost:5000", "[::1]:5000", "registry.example"].map(str::to_owned);
        assert_eq!(default().with_plain_http(hosts.to_vec()).check(), Ok(()));
    }

    #[test]
    fn its_json_is_read_as_it_is_written() {
        let text = r#"{"platform": "linux/arm64", "timeout_s": 1.5, "refresh_s": 60}"#;
        let config: ImagesConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.platform, Some(ImagePlatform::Arm64));
        assert_eq!(config.refresh, Some(Duration::from_secs(60)));
        let again = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ImagesConfig>(&again).unwrap(), config);
        let error = serde_json::from_str::<ImagesConfig>(r#"{"platform": "mips"}"#).unwrap_err();
        assert!(error.to_string().contains("none of amd64, arm64"), "{error}");
    }
}
