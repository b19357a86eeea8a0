//! Images of registries, by `skopeo`: the manifest first, and then the layers that are missing.
//!
//! 1. `skopeo inspect --raw` brings the manifest, and of a list the one that is meant. Where the
//!    store has that under this name, this was all.
//! 2. A layer that the store has is put into the layout as an empty file of the right length, which
//!    `skopeo copy` takes for the layer and does not fetch; it is pinned meanwhile. The name is
//!    that of the manifest by its digest, so that all is of one image whatever becomes of the tag.
//! 3. The layout gets the manifest and the configuration as the registry has them (`skopeo` writes
//!    those of Docker's format anew, with other digests) and is imported as any other is: every
//!    byte that is unpacked is checked against them.
//!
//! What is pulled is in the directory of an entry that is never completed: it is gone when it was
//! imported, and after a kill with the next sweep.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::import::{chained, link};
use super::shelf::{Making, Pin, Wish};
use super::{ImageStore, ImportStep, record, seconds};
use crate::interrupt::Interrupt;
use crate::sandbox::image::archive::{AtRegistry, read_manifest};
use crate::sandbox::image::reference::Reference;
use crate::sandbox::image::skopeo::{Failure, Piece, Skopeo, wait_before_retry};
use crate::sandbox::image::source::{DAEMON, ENGINES, REGISTRY, shown};
use crate::sandbox::image::{Digest, Image, ImageError, ImageSource, PullFailure};

/// What the image is called in the layout that it is copied to.
const TAG: &str = "pulled";
const LAYOUT: &str = "layout";
const BLOBS: &str = "layout/blobs/sha256";
const ARCHIVE: &str = "archive.tar";
/// How many lists may be in each other.
const MAX_LISTS: usize = 4;
/// The longest configuration of an image whose pieces are compared.
const MAX_JSON: u64 = 8 << 20;

type Steps<'a> = &'a mut dyn FnMut(&ImportStep);

impl ImageStore {
    /// Whether the answer to a name is older than it may be. One by a digest never is.
    pub(super) fn may_be_asked_again(&self, name: &str) -> bool {
        let Some(refresh) = self.1.refresh else { return false };
        let has_digest = Reference::parse(name).is_ok_and(|name| name.digest.is_some());
        let Ok(Some(record)) = self.name_record(name) else { return false };
        match record.asked {
            Some(asked) if !has_digest => is_stale(asked, seconds(SystemTime::now()), refresh),
            // It was imported, and is nothing of a registry's.
            _ => false,
        }
    }

    /// The image of a registry: the store's that has this name, unless that is to be asked for
    /// `again`.
    pub(super) fn pulled(
        &self,
        name: &str,
        again: bool,
        interrupt: &Interrupt,
        on_step: Steps<'_>,
    ) -> Result<Arc<Image>, ImageError> {
        let there = |fresh_only: bool| match self.find(name)? {
            Some(digest) if !(fresh_only && self.may_be_asked_again(name)) => {
                self.image(&digest, name, interrupt)
            }
            _ => Ok(None),
        };
        if !again && let Some(image) = there(true)? {
            return Ok(image);
        }
        if !self.1.pull && !again {
            let why = ", and images are not to be pulled here";
            return there(false)?.ok_or_else(|| self.not_stored(name, why));
        }
        let reference = Reference::parse(name).map_err(|why| {
            self.not_stored(name, &format!(", and none that a registry can have: {why}"))
        })?;
        let asked = format!("{REGISTRY}{name}");
        let making = self.begin_pull(name, interrupt)?;
        // Another one may have pulled it meanwhile.
        if !again && let Some(image) = there(true)? {
            return Ok(image);
        }
        let pull = Pull { store: self, asked: &asked, interrupt };
        match pull.registry(name, &reference, &making, on_step) {
            Err(error @ ImageError::NotPulled { .. }) if !again => match there(false)? {
                // It is asked for again after as long as it was kept.
                Some(image) => {
                    log::warn!("{error}; the image that the store has is used on");
                    if let (Some(digest), Ok(Some(known))) =
                        (image.digest(), self.name_record(name))
                    {
                        let now = Some(seconds(SystemTime::now()));
                        self.write_name(name, *digest, known.manifest, now)?;
                    }
                    Ok(image)
                }
                None => Err(error),
            },
            pulled => pulled,
        }
    }

    /// The image of an engine on this machine, `docker-daemon:name` or `containers-storage:name`:
    /// the store's that has this name, unless it is to be copied `again`.
    pub(super) fn copied(
        &self,
        asked: &str,
        again: bool,
        interrupt: &Interrupt,
        on_step: Steps<'_>,
    ) -> Result<Arc<Image>, ImageError> {
        let there = || match self.find(asked)? {
            Some(digest) if !again => self.image(&digest, asked, interrupt),
            _ => Ok(None),
        };
        if let Some(image) = there()? {
            return Ok(image);
        }
        if !self.1.pull && !again {
            return Err(self.not_stored(asked, ", and images are not to be pulled here"));
        }
        let making = self.begin_pull(asked, interrupt)?;
        if let Some(image) = there()? {
            return Ok(image);
        }
        Pull { store: self, asked, interrupt }.engine(&making, on_step)
    }

    /// A directory to pull into. Who else wants the same image waits here until it is dropped.
    fn begin_pull(&self, name: &str, interrupt: &Interrupt) -> Result<Making<'_>, ImageError> {
        let key = format!("{name} {}", self.platform());
        match self.0.pulls.wish(&Digest::of(key.as_bytes()).hex(), interrupt)? {
            Wish::Making(making) => Ok(making),
            // It is never completed.
            Wish::Pinned(_) => {
                let other = io::Error::other("another program wrote in it");
                Err(ImageError::io("use", &self.0.path.join("pulls"), other))
            }
        }
    }
}

/// Whether an answer is too old. One that a clock gave that was set back since is, too: then it is
/// asked for once more than needed.
fn is_stale(asked: u64, now: u64, refresh: Duration) -> bool {
    asked > now || Duration::from_secs(now - asked) >= refresh
}

/// The manifest of the image that is meant.
struct Resolved {
    digest: Digest,
    bytes: Vec<u8>,
    /// That of its configuration.
    config: Digest,
    /// The digests and sizes of its layers, packed.
    layers: Vec<(Digest, u64)>,
}

/// A pull that is under way.
struct Pull<'a> {
    store: &'a ImageStore,
    /// How the image was asked for.
    asked: &'a str,
    interrupt: &'a Interrupt,
}

impl Pull<'_> {
    fn registry(
        &self,
        name: &str,
        reference: &Reference<'_>,
        making: &Making<'_>,
        on_step: Steps<'_>,
    ) -> Result<Arc<Image>, ImageError> {
        let (store, began, directory) = (self.store, Instant::now(), making.path());
        let skopeo = self.skopeo(&directory, began);
        on_step(&ImportStep::Pulling);
        let resolved = self.resolve(reference, &skopeo, on_step)?;
        let Resolved { digest: manifest, layers, .. } = &resolved;
        let manifest = *manifest;
        let now = Some(seconds(SystemTime::now()));
        if let Some(known) = store.name_record(name)?
            && known.manifest == Some(manifest)
            && let Some(image) = store.image(&known.digest, name, self.interrupt)?
        {
            store.write_name(name, known.digest, Some(manifest), now)?;
            return Ok(image);
        }
        let blobs = directory.join(BLOBS);
        fs::create_dir_all(&blobs).map_err(|error| self.unwritten(&blobs, error))?;
        let pins = self.place_what_is_there(layers, &blobs)?;
        let missing = |(n, _): &(usize, &(Digest, u64))| pins.get(*n).is_none_or(Option::is_none);
        let packed_bytes = layers.iter().enumerate().filter(missing).map(|(_, (_, size))| *size);
        let packed_bytes: u64 = packed_bytes.fold(0, u64::saturating_add);
        let there = pins.iter().flatten().count();
        // Unpacked they are no smaller as a rule, and the disk may have no more than the cap.
        store.keep_within_cap(packed_bytes, self.interrupt);
        on_step(&ImportStep::Fetching { layers: layers.len(), there, packed_bytes });
        let from = format!("{REGISTRY}{}", reference.at(&manifest));
        let to = format!("oci:{LAYOUT}:{TAG}");
        self.retried(packed_bytes, on_step, |on_step| {
            let mut watch = |directory: &Path| {
                on_step(&ImportStep::Fetched { bytes: arrived(directory), of: packed_bytes });
            };
            skopeo.copy(&from, reference.host, &to, &mut watch)
        })?;
        self.complete_layout(&skopeo, reference, &blobs, &resolved, on_step)?;
        on_step(&ImportStep::Arrived { bytes: arrived(&directory), time: began.elapsed() });
        let (path, tag) = (directory.join(LAYOUT), Some(TAG.to_owned()));
        let layout = ImageSource::OciLayout { path, tag };
        let image = store.imported(&layout, self.asked, &[], self.interrupt, on_step)?;
        drop(pins);
        if let Some(digest) = image.digest() {
            store.write_name(name, *digest, Some(manifest), now)?;
        }
        Ok(image)
    }

    fn engine(&self, making: &Making<'_>, on_step: Steps<'_>) -> Result<Arc<Image>, ImageError> {
        let (began, directory) = (Instant::now(), making.path());
        let skopeo = self.skopeo(&directory, began);
        on_step(&ImportStep::Pulling);
        // Docker's own format keeps the digest by which Docker knows the image.
        let (path, to) = match self.asked.starts_with(DAEMON) {
            true => (directory.join(ARCHIVE), format!("docker-archive:{ARCHIVE}")),
            false => (directory.join(LAYOUT), format!("oci:{LAYOUT}:{TAG}")),
        };
        self.retried(0, on_step, |on_step| {
            let mut watch = |directory: &Path| {
                on_step(&ImportStep::Fetched { bytes: arrived(directory), of: 0 });
            };
            skopeo.copy(self.asked, None, &to, &mut watch)
        })?;
        on_step(&ImportStep::Arrived { bytes: arrived(&directory), time: began.elapsed() });
        let source = match self.asked.starts_with(DAEMON) {
            true => ImageSource::Archive { path, tag: None },
            false => ImageSource::OciLayout { path, tag: Some(TAG.to_owned()) },
        };
        let plain = ENGINES.iter().find_map(|prefix| self.asked.strip_prefix(prefix));
        let names: Vec<_> =
            [Some(self.asked), plain].into_iter().flatten().map(str::to_owned).collect();
        self.store.imported(&source, self.asked, &names, self.interrupt, on_step)
    }

    fn skopeo<'b>(&'b self, directory: &'b Path, began: Instant) -> Skopeo<'b> {
        let config = &*self.store.1;
        let deadline = began + config.timeout;
        Skopeo { config, directory, interrupt: self.interrupt, deadline }
    }

    /// Asks for the manifest, and of a list for the one that is meant.
    fn resolve(
        &self,
        reference: &Reference<'_>,
        skopeo: &Skopeo<'_>,
        on_step: Steps<'_>,
    ) -> Result<Resolved, ImageError> {
        let platform = self.store.platform();
        let (mut name, mut expected) = (reference.plain(), reference.digest);
        for _ in 0..MAX_LISTS {
            let from = format!("{REGISTRY}{name}");
            let bytes = self
                .retried(0, on_step, |_| skopeo.inspect(&from, reference.host, Piece::Manifest))?;
            let digest = self.checked("manifest", &bytes, expected)?;
            match read_manifest(&bytes, self.asked, &platform)? {
                AtRegistry::Image { config, layers } => {
                    return Ok(Resolved { digest, bytes, config, layers });
                }
                AtRegistry::List(meant) => {
                    (name, expected) = (reference.at(&meant), Some(meant));
                }
            }
        }
        let why = "its lists of manifests have no end".to_owned();
        Err(ImageError::Invalid { image: self.asked.to_owned(), why })
    }

    /// The digest of a piece, which is this one if one is expected.
    fn checked(
        &self,
        what: &str,
        bytes: &[u8],
        expected: Option<Digest>,
    ) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        match expected {
            Some(expected) if expected != digest => Err(self.failed(Failure::new(
                PullFailure::WrongDigest,
                format!("the registry sends another {what} than {expected}: {digest}"),
            ))),
            _ => Ok(digest),
        }
    }

    /// Puts the layers that the store has into the layout, as files that are as long and have
    /// nothing in them: their pins, as long as which they stay.
    fn place_what_is_there(
        &self,
        layers: &[(Digest, u64)],
        blobs: &Path,
    ) -> Result<Vec<Option<Pin>>, ImageError> {
        let inner = &self.store.0;
        let (mut pins, mut chain) = (Vec::new(), None);
        for (packed, size) in layers {
            let known = record::read::<record::PackedRecord>(&inner.packed, &packed.hex());
            // What is above one that is not known is named by what that is.
            let Ok(known) = known else { break };
            let here = link(chain, known.diff_id);
            chain = Some(here);
            let mut pin = inner.layers.pin(&chained(&here), self.interrupt)?;
            if pin.is_none() {
                pin = inner.layers.pin(&known.diff_id.hex(), self.interrupt)?;
            }
            if pin.is_some() {
                let path = blobs.join(packed.hex());
                let placed = fs::File::create(&path).and_then(|file| file.set_len(*size));
                placed.map_err(|error| self.unwritten(&path, error))?;
            }
            pins.push(pin);
        }
        Ok(pins)
    }

    /// Puts in what the registry has beside the layers, as it has it.
    fn complete_layout(
        &self,
        skopeo: &Skopeo<'_>,
        reference: &Reference<'_>,
        blobs: &Path,
        Resolved { digest: manifest, bytes, config, .. }: &Resolved,
        on_step: Steps<'_>,
    ) -> Result<(), ImageError> {
        let write = |path: PathBuf, bytes: &[u8]| {
            fs::write(&path, bytes).map_err(|error| self.unwritten(&path, error))
        };
        write(blobs.join(manifest.hex()), bytes)?;
        let path = blobs.join(config.hex());
        if !is_blob(&path, config) {
            let from = format!("{REGISTRY}{}", reference.at(manifest));
            let bytes = self.retried(0, on_step, |_| {
                skopeo.inspect(&from, reference.host, Piece::Configuration)
            })?;
            self.checked("configuration", &bytes, Some(*config))?;
            write(path, &bytes)?;
        }
        let described = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest,
            "size": bytes.len(),
            "annotations": {"org.opencontainers.image.ref.name": TAG},
        });
        let index = json!({"schemaVersion": 2, "manifests": [described]}).to_string();
        write(skopeo.directory.join(LAYOUT).join("index.json"), index.as_bytes())
    }

    /// Does something of a pull, again and again if need be. `needed` is how many bytes it needs.
    fn retried<T>(
        &self,
        needed: u64,
        on_step: Steps<'_>,
        mut work: impl FnMut(Steps<'_>) -> Result<T, Failure>,
    ) -> Result<T, ImageError> {
        let free = self.store.free();
        let mut failed = 0;
        loop {
            let (reason, why) = match work(on_step) {
                Ok(done) => return Ok(done),
                Err(Failure::Interrupted) => return Err(ImageError::Interrupted),
                Err(Failure::Failed { reason, why }) => (reason, why),
            };
            if reason == PullFailure::Full {
                let (image, path) = (self.asked.to_owned(), self.store.0.path.clone());
                return Err(ImageError::Full { image, path, needed: needed.max(1), free });
            }
            failed += 1;
            let Some(after) = wait_before_retry(reason, failed, self.store.1.retries) else {
                return Err(self.failed(Failure::Failed { reason, why }));
            };
            on_step(&ImportStep::Retrying { why, after });
            if self.interrupt.wait_timeout(after) {
                return Err(ImageError::Interrupted);
            }
        }
    }

    fn failed(&self, failure: Failure) -> ImageError {
        match failure {
            Failure::Interrupted => ImageError::Interrupted,
            Failure::Failed { reason, why } => {
                let why = format!("{why}{}", reason.advice());
                ImageError::NotPulled { image: shown(self.asked), reason, why }
            }
        }
    }

    fn unwritten(&self, path: &Path, error: io::Error) -> ImageError {
        let error = ImageError::io("write", path, error);
        self.store.full(self.asked, error, (1, self.store.free()))
    }
}

/// Whether a file is the one with a digest.
fn is_blob(path: &Path, digest: &Digest) -> bool {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_JSON).read_to_end(&mut bytes));
    read.is_ok() && Digest::of(&bytes) == *digest
}

/// How many bytes have been written below the directory of a pull. What was put there without
/// content has none.
fn arrived(directory: &Path) -> u64 {
    let of = |path: PathBuf| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let files = entries.filter_map(|entry| entry.metadata().ok()).filter(|it| it.is_file());
        files.map(|file| file.len().min(file.blocks().saturating_mul(512))).sum::<u64>()
    };
    of(directory.to_owned()) + of(directory.join(LAYOUT)) + of(directory.join(BLOBS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_for_as_long_as_was_said() {
        let refresh = Duration::from_secs(60);
        for (asked, now, expected) in
            [(100, 100, false), (100, 159, false), (100, 160, true), (200, 100, true)]
        {
            assert_eq!(is_stale(asked, now, refresh), expected, "{asked} {now}");
        }
    }
}
