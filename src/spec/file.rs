//! Files that a trajectory's machine begins with.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

use super::{MAX_SPEC_FILES, MAX_SPEC_FILES_BYTES, MAX_TEXT, is_plain, text_problem};

/// A small file that a trajectory's machine begins with. Directories on its way are made.
///
/// In JSON its content is `content`, a text, or `base64`; its mode is octal digits in a text, as
/// `"0755"`.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpecFile {
    /// Where it is: an absolute path of the machine, or one that is relative to its commands'
    /// directory.
    pub path: String,
    /// What is in it.
    pub content: SpecFileContent,
    /// Its permissions; no bits beyond `0o777`. Defaults to `0o644`.
    pub mode: u32,
}

/// What is in a [`SpecFile`].
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecFileContent {
    /// A text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

const DEFAULT_MODE: u32 = 0o644;

impl SpecFile {
    /// A file with a text in it.
    pub fn text(path: impl Into<String>, text: impl Into<String>) -> Self {
        let content = SpecFileContent::Text(text.into());
        Self { path: path.into(), content, mode: DEFAULT_MODE }
    }

    /// A file with bytes in it.
    pub fn bytes(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        let content = SpecFileContent::Bytes(bytes.into());
        Self { path: path.into(), content, mode: DEFAULT_MODE }
    }

    /// Sets [`mode`](Self::mode).
    #[must_use]
    pub fn with_mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }
}

impl SpecFileContent {
    /// It, as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl fmt::Debug for SpecFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpecFile")
            .field("path", &self.path)
            .field("content", &self.content)
            .field("mode", &format_args!("{:#o}", self.mode))
            .finish()
    }
}

impl fmt::Debug for SpecFileContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.as_bytes().len())
    }
}

/// What is wrong with the files of a spec, if something is.
pub(crate) fn problem(files: &[SpecFile]) -> Option<String> {
    if files.len() > MAX_SPEC_FILES {
        return Some(format!("there are {} files; at most {MAX_SPEC_FILES}", files.len()));
    }
    let bytes: usize = files.iter().map(|file| file.content.as_bytes().len()).sum();
    if bytes > MAX_SPEC_FILES_BYTES {
        let most = MAX_SPEC_FILES_BYTES;
        return Some(format!("the files have {bytes} bytes in all; at most {most}"));
    }
    files.iter().find_map(|file| {
        let (path, mode) = (&file.path, file.mode);
        if let Some(problem) = text_problem(path, MAX_TEXT) {
            return Some(format!("the path of a file {problem}"));
        }
        if !is_plain(&format!("/{path}")) || path.ends_with('/') {
            return Some(format!("the file {path:?} has no path of a file, without `..`"));
        }
        let text = || format!("the file {path:?} has the mode {mode:#o}; at most 0o777");
        (mode > 0o777).then(text)
    })
}

/// As it is in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
}

impl Serialize for SpecFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (content, base64) = match &self.content {
            SpecFileContent::Text(text) => (Some(text.clone()), None),
            SpecFileContent::Bytes(bytes) => (None, Some(STANDARD.encode(bytes))),
        };
        let mode = (self.mode != DEFAULT_MODE).then(|| format!("{:04o}", self.mode));
        Written { path: self.path.clone(), content, base64, mode }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SpecFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { path, content, base64, mode } = Written::deserialize(deserializer)?;
        let wrong = |why: String| D::Error::custom(format!("the file {path:?} {why}"));
        let content = match (content, base64) {
            (Some(text), None) => SpecFileContent::Text(text),
            (None, Some(text)) => match STANDARD.decode(text) {
                Ok(bytes) => SpecFileContent::Bytes(bytes),
                Err(error) => return Err(wrong(format!("has wrong base64: {error}"))),
            },
            _ => return Err(wrong("must have one of `content` and `base64`".to_owned())),
        };
        let mode = match mode.as_deref() {
            None => DEFAULT_MODE,
            Some(digits) => match u32::from_str_radix(digits, 8) {
                Ok(mode) if !digits.starts_with('+') => mode,
                _ => {
                    let why = format!("has the mode {digits:?}; it must be octal, as \"0755\"");
                    return Err(wrong(why));
                }
            },
        };
        Ok(Self { path, content, mode })
    }
}
