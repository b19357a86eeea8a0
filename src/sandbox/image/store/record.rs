//! What the store writes down of images and layers, as JSON beside them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::unpack::Unpacked;
use super::super::{Digest, ImageConfig};

/// The file of a layer's record, beside its tree.
pub(super) const LAYER: &str = "layer.json";
/// The file of an image's record.
pub(super) const IMAGE: &str = "image.json";
/// The directory with a layer's files.
pub(super) const TREE: &str = "tree";

/// The longest record: of an image with all variables that a configuration may have.
const MAX_RECORD: u64 = 16 << 20;

/// A layer that is unpacked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) diff_id: Digest,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    #[serde(default)]
    pub(super) is_empty: bool,
    #[serde(default)]
    pub(super) hides_all_below: bool,
    #[serde(default)]
    pub(super) left_out: Vec<String>,
    #[serde(default)]
    pub(super) left_out_more: u64,
}

impl LayerRecord {
    pub(super) fn new(diff_id: Digest, unpacked: &Unpacked) -> Self {
        Self {
            diff_id,
            entries: unpacked.entries,
            bytes: unpacked.bytes,
            is_empty: unpacked.is_empty,
            hides_all_below: unpacked.hides_all_below,
            left_out: unpacked.left_out.clone(),
            left_out_more: unpacked.left_out_more,
        }
    }
}

/// An image whose layers are all unpacked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) digest: Digest,
    pub(super) manifest: Option<Digest>,
    pub(super) config: ImageConfig,
    /// What it was imported from, for people.
    pub(super) source: String,
    /// When, in seconds since 1970.
    pub(super) imported: u64,
    /// All of its layers, the lowest first.
    pub(super) layers: Vec<ImageLayer>,
}

/// A layer of an image, and where it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ImageLayer {
    /// The name of its entry.
    pub(super) entry: String,
    #[serde(flatten)]
    pub(super) layer: LayerRecord,
}

/// A name of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NameRecord {
    pub(super) name: String,
    pub(super) digest: Digest,
    /// For which processors, where these are not this machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<String>,
    /// Of an image of a registry, that of its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) manifest: Option<Digest>,
    /// When the registry said so, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) asked: Option<u64>,
}

impl NameRecord {
    /// The file of the record of a name.
    pub(super) fn file(name: &str, platform: Option<&str>) -> String {
        match platform {
            None => Digest::of(name.as_bytes()).hex(),
            // No name has a space.
            Some(platform) => Digest::of(format!("{name} {platform}").as_bytes()).hex(),
        }
    }
}

/// What a layer was, by the digest of its packed bytes: it need not be fetched again to be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PackedRecord {
    pub(super) diff_id: Digest,
    /// The name of its entry.
    pub(super) entry: String,
}

/// Which image an archive had when it was read last: it need not be read again as long as it is the
/// same file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SourceRecord {
    pub(super) file: FileState,
    pub(super) digest: Digest,
}

/// What changes when a file does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileState {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let about = std::fs::metadata(path)?;
        Ok(Self {
            device: about.dev(),
            inode: about.ino(),
            size: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        })
    }
}

/// Reads a record in a directory.
///
/// # Errors
/// Those of the system; of the kind `InvalidData` if it cannot be understood.
pub(super) fn read<T: DeserializeOwned>(dir: impl AsFd, name: &str) -> io::Result<T> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    let mut text = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Writes a record into a directory that no other program looks into yet.
///
/// # Errors
/// Those of the system.
pub(super) fn write_new<T: Serialize>(
    dir: BorrowedFd<'_>,
    name: &str,
    record: &T,
) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(&text)
}

/// Writes a record that others may be reading: they see the old one or this one. After a crash of
/// the machine one of them is there.
///
/// # Errors
/// Those of the system.
pub(super) fn replace<T: Serialize>(dir: BorrowedFd<'_>, name: &str, record: &T) -> io::Result<()> {
    let new = format!(".new-{}", uuid::Uuid::new_v4().simple());
    let written = write_new(dir, &new, record).and_then(|()| {
        let file = rustix::fs::openat(dir, &new, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::fdatasync(file)?;
        Ok(rustix::fs::renameat(dir, &new, dir, name)?)
    });
    if written.is_err() {
        let _ = rustix::fs::unlinkat(dir, &new, rustix::fs::AtFlags::empty());
    }
    written
}

/// Removes the files that a process that died had not given their names yet.
pub(super) fn sweep(dir: BorrowedFd<'_>) {
    const OLD: i64 = 3600;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    for entry in rustix::fs::Dir::read_from(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_old = || {
            let about = rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            about.is_ok_and(|about| now.saturating_sub(about.st_mtime) > OLD)
        };
        if name.to_bytes().starts_with(b".new-") && is_old() {
            let _ = rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty());
        }
    }
}
