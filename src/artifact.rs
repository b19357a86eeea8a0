//! Artifacts: the files of a slot's workspace, read, listed and archived from outside.
//!
//! What is asked and what is answered, as plain types. The engine's
//! side is `sandbox::artifacts`, the wire's is `wire::sandbox`, and users call
//! [`ToolExecutor::read_artifact`](crate::ToolExecutor::read_artifact) and its kin.
//!
//! Paths are relative to the workspace, or begin with `/workspace`; symlinks are followed as long as
//! they stay in it.

use std::error::Error;
use std::fmt;

/// The most bytes of a file, or of an archive, in one answer, and the default: 5,000,000.
pub const MAX_ARTIFACT_BYTES: u64 = 5_000_000;
/// The most entries of one listing or archive, and the default: 5,000.
pub const MAX_ARTIFACT_ENTRIES: usize = 5_000;

/// What to read of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadArtifact {
    /// The file.
    pub path: String,
    /// The first byte to read. Defaults to 0. Beyond the end there is nothing, which is no error.
    pub offset: u64,
    /// How many bytes at most; clamped to 1…[`MAX_ARTIFACT_BYTES`], which is the default.
    pub max_bytes: u64,
    /// Whether to compute the SHA-256 of the part that is read. Defaults to `false`.
    pub sha256: bool,
    /// Whether to compute the SHA-256 of the whole file too, which reads all of it. Defaults to
    /// `false`.
    pub file_sha256: bool,
}

impl ReadArtifact {
    /// The file from its beginning, without checksums.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            offset: 0,
            max_bytes: MAX_ARTIFACT_BYTES,
            sha256: false,
            file_sha256: false,
        }
    }
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The bytes that were read.
    pub content: Vec<u8>,
    /// Where in the file they begin.
    pub offset: u64,
    /// The size of the file in bytes.
    pub file_size: u64,
    /// Whether the file goes on after these bytes.
    pub truncated: bool,
    /// The file's path relative to the workspace, symlinks resolved.
    pub path: String,
    /// Its MIME type, by the ending of its name.
    pub mime: String,
    /// SHA-256 of `content`, as lower-case hex, if it was asked for.
    pub sha256: Option<String>,
    /// SHA-256 of the whole file, if it was asked for and the sandbox can tell.
    pub file_sha256: Option<String>,
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListArtifacts {
    /// The directory, or a single file. Defaults to `.`, the workspace.
    pub path: String,
    /// Whether to descend into directories. Defaults to `false`.
    pub recursive: bool,
    /// How many entries at most; clamped to 1…[`MAX_ARTIFACT_ENTRIES`], which is the default.
    pub max_entries: usize,
}

impl Default for ListArtifacts {
    fn default() -> Self {
        Self { path: ".".to_owned(), recursive: false, max_entries: MAX_ARTIFACT_ENTRIES }
    }
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct ArtifactEntry {
    /// Its path relative to the workspace; a symlink is shown as what it leads to. Bytes that are no
    /// UTF-8 are shown as U+FFFD: such a file cannot be asked for by this path, but is in archives,
    /// byte by byte.
    pub path: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last modified, in seconds since 1970.
    pub mtime: f64,
}

/// A listing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ArtifactList {
    /// The entries.
    pub entries: Vec<ArtifactEntry>,
    /// Whether there are more: than `max_entries`, or too deep down to be shown.
    pub truncated: bool,
}

/// What to archive, as a `.tar.gz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveArtifacts {
    /// The directory, or a single file. Defaults to `.`, the workspace.
    pub path: String,
    /// How large the archive may become, in bytes. Defaults to [`MAX_ARTIFACT_BYTES`]; not clamped
    /// where the archive is streamed.
    pub max_bytes: u64,
    /// How many entries it may have. Defaults to [`MAX_ARTIFACT_ENTRIES`]; what is beyond is left
    /// out, and the answer says so.
    pub max_entries: usize,
}

impl Default for ArchiveArtifacts {
    fn default() -> Self {
        Self {
            path: ".".to_owned(),
            max_bytes: MAX_ARTIFACT_BYTES,
            max_entries: MAX_ARTIFACT_ENTRIES,
        }
    }
}

/// What is known of an archive that was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArchiveSummary {
    /// Its size in bytes, compressed.
    pub bytes: u64,
    /// How many entries it has: files, and what else it keeps (directories, symlinks).
    pub entry_count: u64,
    /// Whether entries were left out because of `max_entries`, or because they are too deep down.
    pub truncated: bool,
}

/// Why there is no artifact.
#[derive(Debug)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The trajectory holds no slot: it has run nothing in a sandbox, or was released.
    NoSlot,
    /// The path leads out of the workspace.
    Outside,
    /// Nothing is at this path.
    NotFound(String),
    /// What is at this path is no regular file.
    NotAFile(String),
    /// What is at this path is neither a file nor a directory.
    UnsupportedType(String),
    /// The archive is larger than was allowed. `bytes` is its size as far as it was made.
    TooLarge {
        /// How large it is, at least.
        bytes: u64,
        /// How large it was allowed to be.
        max: u64,
    },
    /// The sandbox that held the workspace is gone, or does not answer.
    SandboxLost(String),
    /// The executor is closed.
    Closed,
    /// This backend has no artifacts.
    Unsupported,
    /// Reading or writing failed: what was tried, and the cause.
    Io(String, std::io::Error),
}

impl fmt::Display for ArtifactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlot => f.write_str("No active slot for trajectory (run a sandbox tool first)"),
            Self::Outside => f.write_str("Access denied: path outside workspace"),
            Self::NotFound(path) => write!(f, "Not found: {path}"),
            Self::NotAFile(path) => write!(f, "Not a file: {path}"),
            Self::UnsupportedType(path) => write!(f, "Unsupported path type: {path}"),
            Self::TooLarge { bytes, max } => {
                write!(f, "Archive too large: {bytes} bytes (max {max})")
            }
            Self::SandboxLost(text) => write!(f, "the sandbox was lost: {text}"),
            Self::Closed => f.write_str("the executor is closed"),
            Self::Unsupported => f.write_str("this sandbox backend has no artifacts"),
            Self::Io(doing, _) => f.write_str(doing),
        }
    }
}

impl Error for ArtifactError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(_, error) => Some(error),
            _ => None,
        }
    }
}
