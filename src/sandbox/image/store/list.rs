//! What is in the store, for people and programs.

use std::path::PathBuf;

use serde::Serialize;

use super::record::{NameRecord, TREE};
use super::shelf::Claimed;
use super::{ImageStore, seconds};
use crate::interrupt::Interrupt;
use crate::sandbox::image::{Digest, ImageConfig, ImageError};

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StoredImage {
    /// The digest of its configuration, by which it is known.
    pub digest: Digest,
    /// The digest of the manifest that it was imported with, if it had one.
    pub manifest: Option<Digest>,
    /// Its names, in order.
    pub names: Vec<String>,
    /// What it was imported from.
    pub source: String,
    /// When it was imported, in seconds since 1970.
    pub imported_unix: u64,
    /// When it was used last, in seconds since 1970.
    pub used_unix: u64,
    /// Whether a process uses it.
    pub in_use: bool,
    /// The bytes of its files; other images may have some of its layers, too.
    pub bytes: u64,
    /// What it says of the processes in it.
    pub config: ImageConfig,
    /// Its layers, the lowest first.
    pub layers: Vec<StoredLayer>,
}

/// A layer of an image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StoredLayer {
    /// The digest of its unpacked tar.
    pub diff_id: Digest,
    /// Its directory.
    pub path: PathBuf,
    /// The entries that it has.
    pub entries: u64,
    /// The bytes of its files.
    pub bytes: u64,
    /// What of it is not in the directory, as lines for people: devices, attributes that the store
    /// cannot have. The first few.
    pub left_out: Vec<String>,
    /// How much more was left out.
    pub left_out_more: u64,
}

impl ImageStore {
    /// All images, in the order of their first names.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::Interrupted`].
    pub fn list(&self, interrupt: &Interrupt) -> Result<Vec<StoredImage>, ImageError> {
        let names = self.names()?;
        let mut images = Vec::new();
        for name in self.0.images.names()? {
            let Ok(digest) = format!("sha256:{name}").parse() else { continue };
            if let Some(image) = self.stored(&digest, &names, interrupt)? {
                images.push(image);
            }
        }
        images.sort_by(|one, other| {
            let key = |image: &StoredImage| (image.names.is_empty(), image.names.first().cloned());
            key(one).cmp(&key(other)).then(one.digest.cmp(&other.digest))
        });
        Ok(images)
    }

    /// One image, by its name, its digest or the beginning of that.
    ///
    /// # Errors
    /// [`ImageError::NotStored`], [`ImageError::BadSource`] where several digests begin so,
    /// [`ImageError::Io`], [`ImageError::Interrupted`].
    pub fn show(&self, name: &str, interrupt: &Interrupt) -> Result<StoredImage, ImageError> {
        let not_stored = || self.not_stored(name, "");
        let digest = self.find(name)?.ok_or_else(not_stored)?;
        self.stored(&digest, &self.names()?, interrupt)?.ok_or_else(not_stored)
    }

    /// What the store has of an image.
    fn stored(
        &self,
        digest: &Digest,
        names: &[NameRecord],
        interrupt: &Interrupt,
    ) -> Result<Option<StoredImage>, ImageError> {
        let in_use = matches!(self.0.images.try_claim(&digest.hex())?, Claimed::InUse);
        let Some(pin) = self.0.images.pin(&digest.hex(), interrupt)? else { return Ok(None) };
        let Some(record) = self.record(digest)? else { return Ok(None) };
        let layers = record.layers.iter().map(|layer| StoredLayer {
            diff_id: layer.layer.diff_id,
            path: self.0.layers.path_of(&layer.entry).join(TREE),
            entries: layer.layer.entries,
            bytes: layer.layer.bytes,
            left_out: layer.layer.left_out.clone(),
            left_out_more: layer.layer.left_out_more,
        });
        let layers: Vec<_> = layers.collect();
        let mut names: Vec<_> =
            names.iter().filter(|name| name.digest == *digest).map(|n| n.name.clone()).collect();
        names.sort_unstable();
        Ok(Some(StoredImage {
            digest: *digest,
            manifest: record.manifest,
            names,
            source: record.source,
            imported_unix: record.imported,
            used_unix: pin.used().map_or(0, seconds),
            in_use,
            bytes: layers.iter().map(|layer| layer.bytes).sum(),
            config: record.config,
            layers,
        }))
    }
}
