//! What leaves the store: images that were named, or that are not used; layers that none has.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, SystemTime};

use rustix::fs::AtFlags;
use serde::Serialize;

use super::shelf::{Claim, Claimed, open_own};
use super::{ImageStore, files_of, record};
use crate::interrupt::Interrupt;
use crate::sandbox::image::source::shown;
use crate::sandbox::image::{Digest, ImageError};

/// How many layers are claimed at a time, with a descriptor each.
const CLAIMS: usize = 64;

/// What a removal has removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pruned {
    /// The digests of the images.
    pub images: Vec<Digest>,
    /// How many layers.
    pub layers: usize,
    /// The bytes of their files.
    pub bytes: u64,
    /// How many images are in use, and stay.
    pub in_use: usize,
}

impl Pruned {
    /// This and what another removal has removed; of images in use those that the later one saw.
    pub fn add(&mut self, later: Self) {
        self.images.extend(later.images);
        self.layers += later.layers;
        self.bytes += later.bytes;
        self.in_use = self.in_use.max(later.in_use);
    }
}

impl ImageStore {
    /// Removes an image with all its names, and the layers that no other image has.
    ///
    /// # Errors
    /// [`ImageError::InUse`], those of [`show`](Self::show).
    pub fn remove(&self, name: &str, interrupt: &Interrupt) -> Result<Pruned, ImageError> {
        let not_stored = || self.not_stored(name, "");
        let digest = self.find(name)?.ok_or_else(not_stored)?;
        match self.0.images.claim(&digest.hex(), interrupt)? {
            Claimed::Missing => return Err(not_stored()),
            Claimed::InUse => return Err(ImageError::InUse { image: shown(name) }),
            Claimed::Ours(claim) => claim.remove(interrupt)?,
        }
        self.forget_names(&digest)?;
        let removed = Pruned { images: vec![digest], ..Pruned::default() };
        self.remove_unneeded(removed, interrupt)
    }

    /// Removes the layers that no image has, and with `unused_for` also the images that no process
    /// uses, and that were not used for so long.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::Interrupted`].
    pub fn prune(
        &self,
        unused_for: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<Pruned, ImageError> {
        let mut removed = Pruned::default();
        let images = if unused_for.is_some() { self.0.images.names()? } else { Vec::new() };
        for name in images {
            // The clock may have been set back since: then it is younger than anything.
            let is_old = |used: io::Result<SystemTime>| {
                let age = used.ok().and_then(|used| SystemTime::now().duration_since(used).ok());
                age.unwrap_or_default() >= unused_for.unwrap_or_default()
            };
            let Ok(digest) = format!("sha256:{name}").parse() else { continue };
            let used = self.0.images.pin(&name, interrupt)?.map(|pin| pin.used());
            let Some(true) = used.map(is_old) else { continue };
            match self.0.images.claim(&name, interrupt)? {
                Claimed::Missing => {}
                Claimed::InUse => removed.in_use += 1,
                Claimed::Ours(claim) => {
                    self.remove_claimed(claim, digest, &mut removed, interrupt)?;
                }
            }
        }
        self.forget_sources();
        self.remove_unneeded(removed, interrupt)
    }

    /// Removes the layers that no image has, and that nobody is about to give to one.
    pub(super) fn remove_unneeded(
        &self,
        mut removed: Pruned,
        interrupt: &Interrupt,
    ) -> Result<Pruned, ImageError> {
        let needed = self.needed_layers(interrupt)?;
        let all = self.0.layers.names()?;
        let left: Vec<_> = all.into_iter().filter(|name| !needed.contains(name)).collect();
        for names in left.chunks(CLAIMS) {
            let mut claims = Vec::new();
            for name in names {
                if let Claimed::Ours(claim) = self.0.layers.claim(name, interrupt)? {
                    claims.push(claim);
                }
            }
            // An import that had pinned one of them may have completed its image meanwhile.
            let needed = self.needed_layers(interrupt)?;
            for claim in claims.into_iter().filter(|claim| !needed.contains(claim.name())) {
                let path = self.0.layers.path_of(claim.name());
                let bytes = open_own(&path)
                    .ok()
                    .and_then(|dir| record::read::<record::LayerRecord>(dir, record::LAYER).ok())
                    .map_or(0, |record| record.bytes);
                claim.remove(interrupt)?;
                removed.layers += 1;
                removed.bytes += bytes;
            }
        }
        self.forget_packed();
        Ok(removed)
    }

    /// The names of the layers that images have.
    fn needed_layers(&self, interrupt: &Interrupt) -> Result<HashSet<String>, ImageError> {
        let mut needed = HashSet::new();
        for name in self.0.images.names()? {
            if interrupt.is_interrupted() {
                return Err(ImageError::Interrupted);
            }
            let Ok(digest) = format!("sha256:{name}").parse() else { continue };
            if let Some(record) = self.record(&digest)? {
                needed.extend(record.layers.into_iter().map(|layer| layer.entry));
            }
        }
        Ok(needed)
    }

    /// Removes an image that is claimed, and its names.
    pub(super) fn remove_claimed(
        &self,
        claim: Claim<'_>,
        digest: Digest,
        removed: &mut Pruned,
        interrupt: &Interrupt,
    ) -> Result<(), ImageError> {
        claim.remove(interrupt)?;
        self.forget_names(&digest)?;
        removed.images.push(digest);
        Ok(())
    }

    fn forget_names(&self, digest: &Digest) -> Result<(), ImageError> {
        for record in self.names()?.iter().filter(|record| record.digest == *digest) {
            let file = record::NameRecord::file(&record.name, record.platform.as_deref());
            // Of no harm if it stays: a name of what is not there is none.
            let _ = rustix::fs::unlinkat(&self.0.names, file, AtFlags::empty());
        }
        Ok(())
    }

    /// Forgets what blobs of registries were whose layers are gone.
    fn forget_packed(&self) {
        for file in files_of(&self.0.packed).unwrap_or_default() {
            let record = record::read::<record::PackedRecord>(&self.0.packed, &file);
            if record.is_ok_and(|record| !self.0.layers.has(&record.entry)) {
                let _ = rustix::fs::unlinkat(&self.0.packed, file, AtFlags::empty());
            }
        }
    }

    /// Forgets the archives of images that are gone.
    fn forget_sources(&self) {
        for file in files_of(&self.0.sources).unwrap_or_default() {
            let record = record::read::<record::SourceRecord>(&self.0.sources, &file);
            if record.is_ok_and(|record| !self.0.images.has(&record.digest.hex())) {
                let _ = rustix::fs::unlinkat(&self.0.sources, file, AtFlags::empty());
            }
        }
    }
}
