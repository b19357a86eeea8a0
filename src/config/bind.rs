//! A directory or file of the host that sandboxes get.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// A directory or file of the host that every sandbox shows, as
/// [`LocalConfig::binds`](super::LocalConfig::binds) lists them.
///
/// All slots see the same files: what one trajectory writes to a writable one, the others read. It
/// counts towards no limit, and no reset empties it. The user that commands run as needs its own
/// permission to read and write there.
///
/// ```
/// use tool_executor::config::Bind;
///
/// let toolchain: Bind = "/srv/llvm-20:/opt/llvm".parse()?;
/// assert_eq!(toolchain, Bind::read_only("/srv/llvm-20").with_place("/opt/llvm"));
/// # Ok::<(), tool_executor::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Bind {
    /// Where it is on the host. It must exist when the sandbox starts.
    pub source: PathBuf,
    /// Where sandboxes have it, as an absolute path. Defaults to where it is on the host.
    ///
    /// No place can be the workspace, `/tmp`, the home directory, `/proc`, `/sys` or `/dev`, above
    /// one of them or beneath it, and none can cover a directory of the system as `/usr` or `/etc`.
    /// A place beneath `/usr`, or beneath another one, has to be there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<PathBuf>,
    /// Whether commands may write to it. Defaults to `false`.
    #[serde(default)]
    pub writable: bool,
}

impl Bind {
    /// A directory or file that can be read, at its own path.
    pub fn read_only(source: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), place: None, writable: false }
    }

    /// A directory or file that can be written to as well, at its own path.
    pub fn writable(source: impl Into<PathBuf>) -> Self {
        Self { writable: true, ..Self::read_only(source) }
    }

    /// At another path.
    #[must_use]
    pub fn with_place(self, place: impl Into<PathBuf>) -> Self {
        Self { place: Some(place.into()), ..self }
    }

    /// Where sandboxes have it.
    pub(crate) fn place(&self) -> &Path {
        self.place.as_deref().unwrap_or(&self.source)
    }

    /// Whether its paths make sense, wherever they lead.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.source.as_os_str().is_empty() {
            return Err(ConfigError::new("a bind has an empty source; it must be a path"));
        }
        // A relative source is one of this process's directory, which is no place inside.
        let place = self.place.as_deref();
        if let Some(place) = place.filter(|place| !is_plain(place)) {
            return Err(ConfigError::new(format!(
                "the bind {self} has the place {}; it must be an absolute path without `..`",
                place.display()
            )));
        }
        Ok(())
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source.display())?;
        self.place.as_ref().map_or(Ok(()), |place| write!(f, ":{}", place.display()))
    }
}

impl FromStr for Bind {
    type Err = ConfigError;

    /// Reads `SOURCE` or `SOURCE:PLACE`, for reading.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = || {
            ConfigError::new(format!(
                "{text:?} is no bind; it must be SOURCE or SOURCE:PLACE, as /opt/tools or \
                 /srv/data:/data"
            ))
        };
        let bind = match text.split(':').collect::<Vec<_>>()[..] {
            [source] if !source.is_empty() => Self::read_only(source),
            [source, place] if !source.is_empty() && !place.is_empty() => {
                Self::read_only(source).with_place(place)
            }
            _ => return Err(wrong()),
        };
        bind.check().map_err(|_| wrong())?;
        Ok(bind)
    }
}

/// Whether a path is absolute and says where it leads.
pub(super) fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_is_a_source_and_perhaps_a_place() {
        for (text, expected) in [
            ("/a", Bind::read_only("/a")),
            ("tools", Bind::read_only("tools")),
            ("/a:/b/c", Bind::read_only("/a").with_place("/b/c")),
        ] {
            let bind: Bind = text.parse().unwrap();
            assert_eq!((&bind, &*bind.to_string()), (&expected, text));
        }
        for wrong in ["", ":", "/a:", ":/b", "/a:b", "/a:/b:ro", "/a:/../b", "/a:/b/.."] {
            let error = wrong.parse::<Bind>().unwrap_err().to_string();
            assert!(error.contains("SOURCE:PLACE"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_bind_in_json_is_an_object() {
        let json = r#"{"source": "/a", "place": "/b", "writable": true}"#;
        let bind: Bind = serde_json::from_str(json).unwrap();
        assert_eq!(bind, Bind::writable("/a").with_place("/b"));
        assert!(serde_json::from_str::<Bind>(r#"{"source": "/a", "mode": "rw"}"#).is_err());
    }
}
