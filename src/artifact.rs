//! Artifacts: the files of a slot, read, listed, archived and put from outside.
//!
//! What is asked and what is answered, as plain types. The engine's
//! side is `sandbox::artifacts`, the wire's is `wire::sandbox`, and users call
//! [`ToolExecutor::read_artifact`](crate::ToolExecutor::read_artifact) and its kin.
//!
//! Paths mean what they mean to commands: they are relative to the workspace, or absolute, and
//! symlinks are followed. What is in `/proc`, `/dev` and `/sys` is refused. Where commands are in
//! no sandbox, only `/workspace`, `/tmp` and the home directory are reached.

mod put;

pub use put::{PutFiles, PutKind, PutSummary};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most bytes of a file, or of an archive, in one answer, and the default: 5,000,000.
pub const MAX_ARTIFACT_BYTES: u64 = 5_000_000;
/// The most entries of one listing or archive, and the default: 5,000.
pub const MAX_ARTIFACT_ENTRIES: usize = 5_000;

/// What to read of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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

setters! {
    ReadArtifact {
        with_offset: offset = u64,
        with_max_bytes: max_bytes = u64,
        with_sha256: sha256 = bool,
        with_file_sha256: file_sha256 = bool,
    }
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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

impl Artifact {
    /// The part of a file that begins at `offset` and is followed by nothing, without checksums.
    /// Its MIME type is `application/octet-stream`.
    pub fn new(path: impl Into<String>, offset: u64, content: Vec<u8>) -> Self {
        Self {
            file_size: offset + content.len() as u64,
            content,
            offset,
            truncated: false,
            path: path.into(),
            mime: "application/octet-stream".to_owned(),
            sha256: None,
            file_sha256: None,
        }
    }
}

setters! {
    Artifact {
        with_file_size: file_size = u64,
        with_truncated: truncated = bool,
        with_mime: mime = String,
        with_sha256: sha256 = some String,
        with_file_sha256: file_sha256 = some String,
    }
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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

impl ListArtifacts {
    /// What is at this path, and not below it.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }
}

setters! {
    ListArtifacts {
        with_recursive: recursive = bool,
        with_max_entries: max_entries = usize,
    }
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ArtifactEntry {
    /// Its path relative to the workspace; a symlink is shown as what it leads to. Bytes that are
    /// no UTF-8 are shown as U+FFFD: such a file cannot be asked for by this path, but is in
    /// archives, byte by byte.
    pub path: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last modified, in seconds since 1970.
    pub mtime: f64,
}

impl ArtifactEntry {
    /// A file of this size.
    pub fn file(path: impl Into<String>, size: u64, mtime: f64) -> Self {
        Self { path: path.into(), is_dir: false, size, mtime }
    }

    /// A directory.
    pub fn directory(path: impl Into<String>, size: u64, mtime: f64) -> Self {
        Self { path: path.into(), is_dir: true, size, mtime }
    }
}

/// A listing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ArtifactList {
    /// The entries.
    pub entries: Vec<ArtifactEntry>,
    /// Whether there are more: than `max_entries`, or too deep down to be shown.
    pub truncated: bool,
}

impl ArtifactList {
    /// A listing of these entries; `truncated` if there are more.
    pub fn new(entries: Vec<ArtifactEntry>, truncated: bool) -> Self {
        Self { entries, truncated }
    }
}

/// The form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ArchiveFormat {
    /// A tar stream, compressed by gzip.
    #[default]
    #[serde(rename = "tar.gz")]
    TarGz,
    /// A tar stream: as fast as the disk, and as large as the files.
    #[serde(rename = "tar")]
    Tar,
}

/// What to archive, and as what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ArchiveArtifacts {
    /// The directory, or a single file. Defaults to `.`, the workspace.
    pub path: String,
    /// How large the archive may become, in bytes. Defaults to [`MAX_ARTIFACT_BYTES`]; not clamped
    /// where the archive is streamed.
    pub max_bytes: u64,
    /// How many entries it may have. Defaults to [`MAX_ARTIFACT_ENTRIES`]; what is beyond is left
    /// out, and the answer says so.
    pub max_entries: usize,
    /// The form of the archive. Defaults to [`ArchiveFormat::TarGz`], which is the only one that
    /// sandbox servers with the reference's routes have.
    pub format: ArchiveFormat,
}

impl Default for ArchiveArtifacts {
    fn default() -> Self {
        Self {
            path: ".".to_owned(),
            max_bytes: MAX_ARTIFACT_BYTES,
            max_entries: MAX_ARTIFACT_ENTRIES,
            format: ArchiveFormat::default(),
        }
    }
}

impl ArchiveArtifacts {
    /// What is at this path, and below it.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }
}

setters! {
    ArchiveArtifacts {
        with_max_bytes: max_bytes = u64,
        with_max_entries: max_entries = usize,
        with_format: format = ArchiveFormat,
    }
}

/// What is known of an archive that was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ArchiveSummary {
    /// Its size in bytes, as it was written.
    pub bytes: u64,
    /// How many entries it has: files, and what else it keeps (directories, symlinks).
    pub entry_count: u64,
    /// Whether entries were left out because of `max_entries`, or because they are too deep down.
    pub truncated: bool,
}

impl ArchiveSummary {
    /// An archive of this size with so many entries; `truncated` if some were left out.
    pub fn new(bytes: u64, entry_count: u64, truncated: bool) -> Self {
        Self { bytes, entry_count, truncated }
    }
}

/// Why there is no artifact.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The trajectory holds no slot: it has run nothing in a sandbox, or was released.
    #[error("No active slot for trajectory (run a sandbox tool first)")]
    NoSlot,
    /// The path leads out of the slot's directories, and there is no sandbox around them.
    #[error("Access denied: path outside workspace")]
    Outside,
    /// What is at this path is not to be read or written from outside; why, in words.
    #[error("{0}")]
    Refused(String),
    /// Nothing is at this path.
    #[error("Not found: {0}")]
    NotFound(String),
    /// What is at this path is no regular file.
    #[error("Not a file: {0}")]
    NotAFile(String),
    /// What is at this path is neither a file nor a directory.
    #[error("Unsupported path type: {0}")]
    UnsupportedType(String),
    /// The archive is larger than was allowed. `bytes` is its size as far as it was made.
    #[error("Archive too large: {bytes} bytes (max {max})")]
    TooLarge {
        /// How large it is, at least.
        bytes: u64,
        /// How large it was allowed to be.
        max: u64,
    },
    /// What was asked for makes no sense, or not in this slot: why, and what would be right.
    #[error("{0}")]
    Invalid(String),
    /// The tar stream that was to be unpacked is none, or has what cannot be unpacked.
    #[error("the tar stream is of no use: {0}")]
    BadArchive(String),
    /// There is no room for it in the slot.
    #[error("no room for '{path}' in the slot: {why}")]
    DiskFull {
        /// What could not be written whole. Nothing of it is left.
        path: String,
        /// Which limit is reached.
        why: String,
    },
    /// A tree was put into a directory that was there before, and not all of it: what was put so
    /// far stays.
    #[error("{source}; {put} entries before that are in place")]
    Partial {
        /// How many entries of the tree are in place.
        put: u64,
        /// What went wrong with the next one.
        source: Box<ArtifactError>,
    },
    /// The sandbox that held the workspace is gone, or does not answer.
    #[error("the sandbox was lost: {0}")]
    SandboxLost(String),
    /// The executor is closed.
    #[error("the executor is closed")]
    Closed,
    /// This backend has no artifacts, or takes no files: a sandbox server with the reference's
    /// routes has `write_file` only.
    #[error("this sandbox backend has no artifacts, or takes no files")]
    Unsupported,
    /// Reading or writing failed: what was tried, and the cause.
    #[error("{0}")]
    Io(String, #[source] std::io::Error),
}
