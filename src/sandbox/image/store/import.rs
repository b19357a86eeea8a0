//! How an image gets into the store: found where it is, unpacked layer by layer, written down.

use std::cell::Cell;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::record::{self, FileState, ImageLayer, ImageRecord, LayerRecord, SourceRecord};
use super::shelf::{Making, Pin, Wish};
use super::{ImageStore, seconds};
use crate::interrupt::Interrupt;
use crate::sandbox::image::archive::{Blob, Files, Found, find};
use crate::sandbox::image::digest::Digesting;
use crate::sandbox::image::error::is_full;
use crate::sandbox::image::unpack::{LayerError, Place, Unpacked, unpack, unpacked};
use crate::sandbox::image::{Digest, Image, ImageError, ImageSource};

/// What an import is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImportStep {
    /// The registry is asked what it has, or an engine of this machine for all of it.
    Pulling,
    /// Layers are being fetched: those that the store does not have.
    Fetching {
        /// How many layers the image has.
        layers: usize,
        /// How many of them are in the store.
        there: usize,
        /// The bytes of the others, packed.
        packed_bytes: u64,
    },
    /// So much of them has arrived. Said about twice a second.
    Fetched {
        /// How many bytes.
        bytes: u64,
        /// Of how many; 0 where that is not known.
        of: u64,
    },
    /// The pull was cut off or did not reach its registry, and is tried again.
    Retrying {
        /// What was said.
        why: String,
        /// When.
        after: Duration,
    },
    /// All layers have arrived.
    Arrived {
        /// How many bytes were fetched.
        bytes: u64,
        /// In which time.
        time: Duration,
    },
    /// It reads the archive: a compressed one is unpacked for that.
    Reading,
    /// It begins with a layer, or waits for another program that is unpacking it.
    Layer {
        /// Which one it is, beginning with 1.
        number: usize,
        /// How many there are.
        of: usize,
        /// The digest of its unpacked tar.
        diff_id: Digest,
        /// How many bytes it has, packed as it is.
        packed_bytes: u64,
    },
    /// The store has the layer.
    Unpacked {
        /// Which one it is.
        number: usize,
        /// The bytes of its files.
        bytes: u64,
        /// Whether it was there before.
        was_there: bool,
    },
}

impl ImageStore {
    /// The image of a layout or an archive, imported if it is not there yet; `asked` is how it was
    /// asked for.
    pub(super) fn imported(
        &self,
        source: &ImageSource,
        asked: &str,
        names: &[String],
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(&ImportStep),
    ) -> Result<Arc<Image>, ImageError> {
        let free = self.free();
        let imported = self.import_from(source, asked, names, interrupt, on_step);
        // Where a layer did not fit, that is said already, with what it needs.
        imported.map_err(|error| self.full(asked, error, (1, free)))
    }

    fn import_from(
        &self,
        source: &ImageSource,
        asked: &str,
        names: &[String],
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(&ImportStep),
    ) -> Result<Arc<Image>, ImageError> {
        // Taken before it is read: if it changes meanwhile, it is read again.
        let state = match source {
            ImageSource::Archive { path, .. } => FileState::of(path).ok(),
            _ => None,
        };
        let memo = Digest::of(asked.as_bytes()).hex();
        if let Some(state) = &state
            && let Ok(known) = record::read::<SourceRecord>(&self.0.sources, &memo)
            && known.file == *state
            && let Some(image) = self.image(&known.digest, asked, interrupt)?
        {
            names.iter().try_for_each(|name| self.call(name, known.digest))?;
            return Ok(image);
        }
        let (files, path, tag) = match source {
            ImageSource::OciLayout { path, tag } => {
                let about = path.metadata();
                about.map_err(|error| ImageError::at_source(asked, path, error))?;
                (Files::Directory(path.clone()), path, tag)
            }
            ImageSource::Archive { path, tag } => {
                on_step(&ImportStep::Reading);
                let (scratch, limits) = (self.0.layers.dir(), &self.0.limits);
                let (free, needed) = (self.free(), Cell::new(0));
                let files = Files::open_archive(asked, path, scratch, limits, interrupt, &needed);
                let full = |error| self.full(asked, error, (needed.get(), free));
                (files.map_err(full)?, path, tag)
            }
            ImageSource::Directory(_)
            | ImageSource::Stored(_)
            | ImageSource::Engine(_)
            | ImageSource::Registry(_) => {
                let why = "it is not imported".to_owned();
                return Err(ImageError::BadSource { image: asked.to_owned(), why });
            }
        };
        let found = find(&files, asked, tag.as_deref(), &self.platform())?;
        let digest = found.digest;
        let all_names: Vec<_> = found.names.iter().chain(names).cloned().collect();
        let image = match self.image(&digest, asked, interrupt)? {
            Some(image) => image,
            None => self.add(found, asked, path, interrupt, on_step)?,
        };
        for name in &all_names {
            self.call(name, digest)?;
        }
        // It is in use, and so is not among those that go.
        self.keep_within_cap(0, interrupt);
        if let Some(file) = state {
            let known = SourceRecord { file, digest };
            // It is read again the next time, at worst.
            if let Err(error) = record::replace(self.0.sources.as_fd(), &memo, &known) {
                log::warn!("what {asked} has was not noted: {error}");
            }
        }
        Ok(image)
    }

    /// Unpacks what the store does not have of an image, and adds the image.
    fn add(
        &self,
        found: Found,
        asked: &str,
        path: &Path,
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(&ImportStep),
    ) -> Result<Arc<Image>, ImageError> {
        let of = found.layers.len();
        // Before anything is unpacked; the empty ones are known only then.
        let most = self.0.limits.layers;
        let too_many = |layers: usize| ImageError::TooLarge {
            image: asked.to_owned(),
            what: format!("it has {layers} layers"),
            most: most as u64,
        };
        if of > most.saturating_mul(4) {
            return Err(too_many(of));
        }
        let mut layers: Vec<ImageLayer> = Vec::new();
        let mut below: Vec<PathBuf> = Vec::new();
        // Until the image has them.
        let mut pins = Vec::new();
        let mut chain: Option<Digest> = None;
        for (n, blob) in found.layers.into_iter().enumerate() {
            let (number, diff_id) = (n + 1, blob.diff_id);
            let packed_bytes = blob.source.left();
            on_step(&ImportStep::Layer { number, of, diff_id, packed_bytes });
            let link = link(chain, diff_id);
            chain = Some(link);
            let layer = NewLayer { asked, path, blob, chain: link, below: &below };
            let (layer, pin, was_there) = self.layer_of(layer, interrupt)?;
            let bytes = layer.layer.bytes;
            on_step(&ImportStep::Unpacked { number, bytes, was_there });
            below.push(self.0.layers.path_of(&layer.entry).join(record::TREE));
            layers.push(layer);
            pins.push(pin);
        }
        let filled = layers.iter().filter(|layer| !layer.layer.is_empty).count();
        if filled > most {
            return Err(too_many(filled));
        }
        let record = ImageRecord {
            digest: found.digest,
            manifest: found.manifest,
            config: found.config,
            source: asked.to_owned(),
            imported: seconds(SystemTime::now()),
            layers,
        };
        let name = found.digest.hex();
        // One that cannot be understood, or whose layers are gone.
        self.remove_broken(&found.digest, interrupt)?;
        match self.0.images.wish(&name, interrupt)? {
            Wish::Pinned(_) => {}
            Wish::Making(making) => {
                record::write_new(making.dir(), record::IMAGE, &record).map_err(|error| {
                    ImageError::io("write", &self.0.images.path_of(&name), error)
                })?;
                drop(making.complete(&name, self.0.durable, interrupt)?);
            }
        }
        drop(pins);
        let image = self.image(&found.digest, asked, interrupt)?;
        image.ok_or_else(|| {
            let why = io::Error::other("it was removed at once");
            ImageError::io("use", &self.0.images.path_of(&name), why)
        })
    }

    /// Removes an image that is there and cannot be used.
    fn remove_broken(&self, digest: &Digest, interrupt: &Interrupt) -> Result<(), ImageError> {
        let is_whole = |record: &ImageRecord| {
            record
                .layers
                .iter()
                .all(|layer| self.0.layers.path_of(&layer.entry).join(record::TREE).is_dir())
        };
        if self.0.images.has(&digest.hex())
            && !self.record(digest)?.as_ref().is_some_and(is_whole)
            && let super::Claimed::Ours(claim) = self.0.images.claim(&digest.hex(), interrupt)?
        {
            claim.remove(interrupt)?;
        }
        Ok(())
    }

    /// A layer, pinned: the store's, or unpacked now; and whether it was there.
    fn layer_of(
        &self,
        layer: NewLayer<'_>,
        interrupt: &Interrupt,
    ) -> Result<(ImageLayer, Pin, bool), ImageError> {
        let shelf = &self.0.layers;
        let (plain, chain) = (layer.blob.diff_id.hex(), chained(&layer.chain));
        let there = |entry: &str, pin| -> Result<_, ImageError> {
            let path = shelf.path_of(entry);
            let read = record::read(shelf.dir(), &format!("{entry}/{}", record::LAYER));
            let layer = read.map_err(|error| ImageError::io("read", &path, error))?;
            Ok((ImageLayer { entry: entry.to_owned(), layer }, pin, true))
        };
        loop {
            if let Some(pin) = shelf.pin(&chain, interrupt)? {
                return there(&chain, pin);
            }
            let making = match shelf.wish(&plain, interrupt)? {
                Wish::Pinned(pin) => return there(&plain, pin),
                Wish::Making(making) => making,
            };
            if shelf.has(&chain) {
                continue;
            }
            return self.unpack(layer, making, &plain, &chain, interrupt);
        }
    }

    /// Unpacks a layer.
    fn unpack(
        &self,
        layer: NewLayer<'_>,
        making: Making<'_>,
        plain: &str,
        chained: &str,
        interrupt: &Interrupt,
    ) -> Result<(ImageLayer, Pin, bool), ImageError> {
        let NewLayer { asked, path, blob, below, .. } = layer;
        let (diff_id, packed) = (blob.diff_id, blob.digest);
        let in_store = self.0.layers.path_of(plain);
        let (free, needed) = (self.free(), Rc::new(Cell::new(0)));
        let full = |error| self.full(asked, error, (needed.get(), free));
        let failed = |errno: Errno| full(ImageError::io("create", &in_store, errno));
        rustix::fs::mkdirat(making.dir(), record::TREE, Mode::RWXU).map_err(failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(making.dir(), record::TREE, flags, Mode::empty());
        let root = root.map_err(failed)?;
        let (ids, limits) = (self.0.ids, &self.0.limits);
        let place = Place { root: root.as_fd(), below, ids, limits, interrupt };
        let done = unpack_blob(blob, &place, &needed).map_err(|error| match error {
            LayerError::Write { doing, path, source } => {
                let at = self.0.layers.path_of(plain).join(record::TREE).join(path);
                full(ImageError::io(doing, &at, source))
            }
            LayerError::Invalid(why) => {
                LayerError::Invalid(format!("in the layer {diff_id}: {why}")).of_image(asked, path)
            }
            error => error.of_image(asked, path),
        })?;
        let layer = LayerRecord::new(diff_id, &done);
        record::write_new(making.dir(), record::LAYER, &layer)
            .map_err(|error| full(ImageError::io("write", &in_store, error)))?;
        let entry = if done.depends_on_below { chained } else { plain }.to_owned();
        let pin = making.complete(&entry, self.0.durable, interrupt)?;
        // Its packed bytes were read, and had this digest.
        if let Some(packed) = packed {
            let known = record::PackedRecord { diff_id, entry: entry.clone() };
            let noted = record::replace(self.0.packed.as_fd(), &packed.hex(), &known);
            if let Err(error) = noted {
                log::warn!("what {asked} has was not noted, and may be fetched again: {error}");
            }
        }
        Ok((ImageLayer { entry, layer }, pin, false))
    }

    /// How many bytes there is room for.
    pub(super) fn free(&self) -> u64 {
        let room = rustix::fs::fstatvfs(self.0.layers.dir());
        room.map_or(0, |room| room.f_bavail.saturating_mul(room.f_frsize))
    }

    /// The same error, or where the disk is full that: how many bytes are needed at least, and how
    /// many were free.
    pub(super) fn full(
        &self,
        asked: &str,
        error: ImageError,
        (needed, free): (u64, u64),
    ) -> ImageError {
        match error {
            ImageError::Io { source, .. } if is_full(&source) => {
                let (image, path) = (asked.to_owned(), self.0.path.clone());
                ImageError::Full { image, path, needed: needed.max(1), free }
            }
            error => error,
        }
    }
}

/// The digest of a layer and all below it.
pub(super) fn link(below: Option<Digest>, diff_id: Digest) -> Digest {
    match below {
        None => diff_id,
        Some(chain) => Digest::of(format!("{chain} {diff_id}").as_bytes()),
    }
}

/// The entry of a layer that depends on those below it.
pub(super) fn chained(chain: &Digest) -> String {
    format!("chain-{}", chain.hex())
}

/// A layer that an image needs.
struct NewLayer<'a> {
    asked: &'a str,
    path: &'a Path,
    blob: Blob,
    /// The digest of it and all below it.
    chain: Digest,
    below: &'a [PathBuf],
}

/// Unpacks a layer and checks that it was what it should be. `needed` becomes the bytes of its tar:
/// as many as were read so far, or all if it is not compressed.
fn unpack_blob(
    blob: Blob,
    place: &Place<'_>,
    needed: &Rc<Cell<u64>>,
) -> Result<Unpacked, LayerError> {
    let expected = blob.source.left();
    needed.set(expected);
    let mut packed = Digesting::new(blob.source);
    let (done, is) = {
        let stream = unpacked(packed.by_ref(), place.limits, place.interrupt)?;
        let counted = Counting { stream, needed: needed.clone(), read: 0 };
        let mut tar = Digesting::new(counted);
        let done = unpack(tar.by_ref(), place)?;
        (done, tar.finish())
    };
    // What is behind the end of the compressed stream.
    io::copy(&mut packed, &mut io::sink())?;
    if packed.count() != expected {
        let has = packed.count();
        let why = format!("it has {has} bytes, and its source says {expected}: it is cut off");
        return Err(LayerError::Invalid(why));
    }
    let packed = packed.finish();
    if let Some(digest) = blob.digest.filter(|digest| *digest != packed) {
        return Err(LayerError::Invalid(format!(
            "its packed digest is not {digest}, but {packed}"
        )));
    }
    if is != blob.diff_id {
        return Err(LayerError::Invalid(format!("its unpacked digest is {is}")));
    }
    Ok(done)
}

/// Notes how many bytes there are at least.
struct Counting<R> {
    stream: R,
    needed: Rc<Cell<u64>>,
    read: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.stream.read(buffer)?;
        self.read += got as u64;
        self.needed.set(self.read.max(self.needed.get()));
        Ok(got)
    }
}
