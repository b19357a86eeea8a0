//! One layer: from its tar stream, which is hostile, to a directory that an overlay can have.
//!
//! `stream` unpacks gzip and zstd and ends bombs, `entries` reads the tar, `headers` what is in
//! its headers, `tree` writes the files.
//!
//! Memory is bounded, whatever a layer says: a buffer, one entry's headers, and what its
//! directories are to have in the end ([`ImageLimits::directory_names`]).

mod entries;
mod headers;
mod stream;
#[cfg(test)]
mod tests;
mod tree;

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

pub(super) use self::entries::{Entries, Kind};
pub(super) use self::stream::{Packing, Source, unpacked};
use self::tree::Tree;
use super::{ImageError, ImageLimits, StoredIds};
use crate::interrupt::Interrupt;

/// Why a layer was not unpacked.
#[derive(Debug)]
pub(super) enum LayerError {
    /// It says what cannot be right, or what is not done.
    Invalid(String),
    /// It has too much of something.
    TooLarge {
        what: String,
        most: u64,
    },
    /// It could not be read.
    Read(io::Error),
    /// This could not be done with this file of the layer: the disk is full, ….
    Write {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    Interrupted,
}

impl LayerError {
    pub(super) fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into())
    }

    /// What that is for an image that was asked for so, and is read from `source`.
    pub(super) fn of_image(self, image: &str, source: &Path) -> ImageError {
        let image = image.to_owned();
        match self {
            Self::Invalid(why) => ImageError::Invalid { image, why },
            Self::TooLarge { what, most } => ImageError::TooLarge { image, what, most },
            Self::Read(error) => ImageError::io("read", source, error),
            Self::Write { doing, path, source } => ImageError::Io { doing, path, source },
            Self::Interrupted => ImageError::Interrupted,
        }
    }
}

impl From<io::Error> for LayerError {
    /// Of reading the layer.
    fn from(error: io::Error) -> Self {
        match error.downcast::<LayerError>() {
            // What a reader below has found out.
            Ok(error) => error,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Self::Invalid(error.to_string())
            }
            Err(error) => Self::Read(error),
        }
    }
}

impl std::fmt::Display for LayerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid(why) => f.write_str(why),
            Self::TooLarge { what, most } => write!(f, "{what}, and {most} are allowed"),
            Self::Read(error) => error.fmt(f),
            Self::Write { doing, path, source } => {
                write!(f, "cannot {doing} {}: {source}", path.display())
            }
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

/// So that a reader below can hand one up as an `io::Error`.
impl std::error::Error for LayerError {}

/// Where a layer is unpacked, and how.
pub(super) struct Place<'a> {
    /// An empty directory of ours.
    pub(super) root: BorrowedFd<'a>,
    /// The directories of the layers below it, the lowest first.
    pub(super) below: &'a [PathBuf],
    pub(super) ids: StoredIds,
    pub(super) limits: &'a ImageLimits,
    pub(super) interrupt: &'a Interrupt,
}

/// What became of a layer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Its entries.
    pub(super) entries: u64,
    /// The bytes of its files.
    pub(super) bytes: u64,
    /// Whether it has other files above other layers: it hides what is below, or leaves out
    /// directories that are.
    pub(super) depends_on_below: bool,
    /// Whether there is nothing in it.
    pub(super) is_empty: bool,
    /// Whether nothing of the layers below is there any more, which its directory cannot say.
    pub(super) hides_all_below: bool,
    /// What is in the layer and not in its directory, as lines for people; the first few.
    pub(super) left_out: Vec<String>,
    /// How many more there would be.
    pub(super) left_out_more: u64,
}

impl Unpacked {
    fn leave_out(&mut self, what: impl FnOnce() -> String) {
        const SHOWN: usize = 8;
        match self.left_out.len() < SHOWN {
            true => self.left_out.push(what()),
            false => self.left_out_more += 1,
        }
    }
}

/// Unpacks the tar stream of a layer, and reads it to its end. Blocks for as long as that takes;
/// nothing is synced.
///
/// # Errors
/// [`LayerError`]; what was written is then left for the caller to remove.
pub(super) fn unpack(tar: impl Read, place: &Place<'_>) -> Result<Unpacked, LayerError> {
    let mut entries = Entries::new(tar);
    let mut tree = Tree::new(place);
    while let Some(entry) = entries.next()? {
        if place.interrupt.is_interrupted() {
            return Err(LayerError::Interrupted);
        }
        if tree.report.entries >= place.limits.entries {
            let what = format!("a layer has more than {} entries", place.limits.entries);
            return Err(LayerError::TooLarge { what, most: place.limits.entries });
        }
        tree.report.entries += 1;
        let mut data = entries.data();
        tree.add(&entry, &mut data)?;
    }
    entries.drain()?;
    tree.finish()
}

/// A name of an archive, for a message.
pub(super) fn shown(name: &[u8]) -> String {
    const MOST: usize = 200;
    let cut = &name[..name.len().min(MOST)];
    let dots = if name.len() > MOST { "…" } else { "" };
    format!("\"{}{dots}\"", cut.escape_ascii())
}
