//! The store: images that were unpacked once, for all programs that use a data directory.
//!
//! ```text
//! <data directory>/images-<uid>/     of one user, mode 0700
//!   kept/, moved-<id>…/ or one/      by whose the files are (`StoredIds`); a store each
//!     layers/<digest>/               a layer (`shelf` says how entries come and go)
//!       tree/                          its files
//!       layer.json                     what is known of it
//!     images/<digest>/image.json     an image: its configuration, and which layers
//!     pulls/                         what is being pulled; nothing is kept here
//!     names/<digest of the name>     which image has a name
//!     sources/<digest of the source> which image an archive had
//!     packed/<digest as packed>      which layer a blob of a registry was
//! ```
//!
//! **What names a layer** is the digest of its unpacked tar, which its image's configuration has:
//! it is the same however a layer was packed, and where it comes from an archive without other
//! digests. A layer whose directory depends on those below it – it hides something, or leaves out
//! directories – is named by the digests of all of them, as `chain-<digest>`.
//!
//! **What protects what.** An image in use is pinned; a layer is not removed while an image has it;
//! an import pins the layers that it needs until its image is there. So a machine needs one
//! descriptor for its image, not one a layer, and who removes layers looks once more at which are
//! needed when it has claimed them.
//!
//! **When an image was used** last is the time of its lock: noted when a use begins, and when the
//! last one of a process ends. Of one that was killed the beginning is known.

mod cap;
mod contents;
mod import;
mod list;
mod many;
mod names;
mod pull;
mod record;
mod remove;
mod shelf;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::Dir;

pub(crate) use self::contents::ContentsReader;
pub use self::import::ImportStep;
pub use self::list::{StoredImage, StoredLayer};
use self::record::{IMAGE, ImageRecord, TREE};
pub use self::remove::Pruned;
use self::shelf::{Claimed, Pin, Shelf, let_pass, open_own};
use super::config::Platform;
use super::{Digest, Image, ImageError, ImageLimits, ImageSource, Layer, StoredIds};
use crate::config::ImagesConfig;
use crate::interrupt::Interrupt;
use crate::sandbox::jail::{can_map_owners, hands_over};
use crate::sandbox::tree;
use crate::sandbox::user;
use crate::sandbox::workspace::{WorkspaceError, base_path, open_base};

/// The user of an image whom nothing should belong to.
const NOBODY: u32 = 65_534;

/// Images on disk, unpacked. Any number of programs may use one at a time.
///
/// ```no_run
/// use tool_executor::Interrupt;
/// use tool_executor::image::{ImageSource, ImageStore, StoredIds};
///
/// let interrupt = Interrupt::new();
/// let data = std::path::Path::new("/var/lib/executor");
/// let store = ImageStore::open(Some(data), StoredIds::for_data_dir(Some(data)), &interrupt)?;
/// let source = ImageSource::parse("docker-archive:/images/task.tar.zst")?;
/// let image = store.import(&source, &[], &interrupt, &mut |_| {})?;
/// println!("{} has {} bytes", image.digest, image.bytes);
/// # Ok::<(), tool_executor::image::ImageError>(())
/// ```
#[derive(Clone)]
pub struct ImageStore(Arc<Inner>, Arc<ImagesConfig>);

struct Inner {
    path: PathBuf,
    layers: Shelf,
    images: Shelf,
    pulls: Shelf,
    names: OwnedFd,
    sources: OwnedFd,
    packed: OwnedFd,
    ids: StoredIds,
    limits: ImageLimits,
    /// Whether what is imported is on the disk when it is said to be.
    durable: bool,
    /// The images that this process uses.
    open: Mutex<HashMap<Digest, Open>>,
}

/// An image that this process uses, and what keeps it there.
struct Open {
    image: Weak<Image>,
    pin: Weak<UsePin>,
}

/// The pin of an image that is used.
struct UsePin(Pin);

impl Drop for UsePin {
    fn drop(&mut self) {
        // It was used until now.
        self.0.touch();
    }
}

impl StoredIds {
    /// What this process can have in a data directory, or in the default one: where it is root and
    /// may give files away the image's ids, and these moved where they cannot be shown as other
    /// ones; else one. Blocks for a moment.
    pub fn for_data_dir(data_dir: Option<&Path>) -> Self {
        use rustix::thread::{CapabilitySet, capabilities};
        let is_root = rustix::process::geteuid().is_root();
        let may =
            || capabilities(None).is_ok_and(|has| has.effective.contains(CapabilitySet::CHOWN));
        if !is_root || !may() {
            return Self::One;
        }
        // In a user namespace most ids may be none.
        let Some(map) = user::ids_of_images() else { return Self::One };
        let opened = open_base(data_dir, !hands_over());
        let can_map = opened.is_ok_and(|(base, _)| can_map_owners(&base, map));
        if can_map { Self::Kept } else { Self::Moved(map.outside) }
    }

    /// What it is called in paths and for `--ids`.
    fn name(self) -> String {
        match self {
            Self::Kept => "kept".to_owned(),
            Self::Moved(first) => format!("moved-{first}"),
            Self::One => "one".to_owned(),
        }
    }

    /// The name of the store's directory. That of a user namespace is another one where the ids
    /// are others outside: what is there is out of reach then.
    pub(super) fn directory(self) -> String {
        let outside = |first| user::numbers_outside(first).filter(|outside| *outside != [first; 2]);
        match self {
            Self::Moved(first) => match outside(first) {
                Some([users, groups]) => format!("{}-{users}-{groups}", self.name()),
                None => self.name(),
            },
            Self::Kept | Self::One => self.name(),
        }
    }

    /// The id on disk that the image's root has.
    pub(in crate::sandbox) fn root(self) -> u32 {
        match self {
            Self::Kept => 0,
            Self::Moved(first) => first,
            Self::One => rustix::process::geteuid().as_raw(),
        }
    }

    /// What this id of an image is on disk; `None` where a file stays ours.
    pub(in crate::sandbox) fn on_disk(self, id: u32) -> Option<u32> {
        match self {
            Self::Kept => Some(id),
            Self::Moved(first) => {
                let map = user::of_images_from(first);
                // What no machine has is nobody's.
                map.outside_of(id).or_else(|| map.outside_of(NOBODY))
            }
            Self::One => None,
        }
    }

    /// The id in a layer that is this one on disk.
    pub(in crate::sandbox) fn of_disk(self, id: u32) -> u32 {
        match self {
            Self::Moved(first) => id.saturating_sub(first),
            Self::Kept | Self::One => id,
        }
    }

    /// The group that may pass to layers, where machines find them by their paths.
    fn passing_group(self) -> Option<u32> {
        match self {
            Self::Moved(first) => Some(first),
            Self::Kept | Self::One => None,
        }
    }
}

/// Where the store of a base is.
fn path_in(base: &Path, ids: StoredIds) -> PathBuf {
    base.join(format!("images-{}", user::number_outside())).join(ids.directory())
}

/// How many bytes there are for a store in a data directory, or in the default one; `None` where
/// the system does not say. Makes nothing.
pub(crate) fn store_room(data_dir: Option<&Path>) -> Option<u64> {
    let about = rustix::fs::statvfs(base_path(data_dir)).ok()?;
    Some(about.f_bavail.saturating_mul(about.f_frsize))
}

impl ImageStore {
    /// Opens the store of a data directory, or of the default one; it is made where it is missing.
    /// Removes what processes left behind that died. Blocks for file system work only.
    ///
    /// # Errors
    /// [`ImageError::Io`], also for a directory that other users may change.
    pub fn open(
        data_dir: Option<&Path>,
        ids: StoredIds,
        interrupt: &Interrupt,
    ) -> Result<Self, ImageError> {
        Self::open_with(data_dir, ids, ImageLimits::default(), interrupt)
    }

    /// Whether there is one in a data directory, or in the default one. Makes nothing.
    pub(crate) fn is_there(data_dir: Option<&Path>, ids: StoredIds) -> bool {
        path_in(&base_path(data_dir), ids).is_dir()
    }

    /// As [`open`](Self::open), with other limits of what an image may have.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with(
        data_dir: Option<&Path>,
        ids: StoredIds,
        limits: ImageLimits,
        interrupt: &Interrupt,
    ) -> Result<Self, ImageError> {
        // Where the engine's commands have other users, they go through it.
        let hands_over = hands_over();
        let is_passable = rustix::process::geteuid().is_root() && !hands_over;
        let (base, _) =
            open_base(data_dir, is_passable).map_err(|error| of_base(data_dir, error))?;
        let path = path_in(&base, ids);
        let of_user = path.parent().unwrap_or(&base).to_owned();
        let group = ids.passing_group().filter(|_| !hands_over);
        for directory in [&of_user, &path] {
            let opened = open_own(directory)?;
            if let Some(group) = group {
                let made = let_pass(&opened, group);
                made.map_err(|errno| ImageError::io("open up", directory, errno))?;
            }
        }
        let layers = Shelf::open_for(&path, "layers", group)?;
        let images = Shelf::open(&path, "images")?;
        let (names, sources) = (open_own(&path.join("names"))?, open_own(&path.join("sources"))?);
        let pulls = Shelf::open(&path, "pulls")?;
        [&layers, &images, &pulls].into_iter().for_each(|shelf| shelf.sweep(interrupt));
        let packed = open_own(&path.join("packed"))?;
        for records in [&names, &sources, &packed] {
            record::sweep(records.as_fd());
        }
        let (durable, open) = (cfg!(not(test)), Mutex::new(HashMap::new()));
        let inner = Inner {
            path,
            layers,
            images,
            pulls,
            names,
            sources,
            packed,
            ids,
            limits,
            durable,
            open,
        };
        Ok(Self(Arc::new(inner), Arc::default()))
    }

    /// The same store, which pulls as this says, and has no more than it says.
    #[must_use]
    pub fn with_config(self, config: ImagesConfig) -> Self {
        Self(self.0, Arc::new(config))
    }

    /// What images are to be for.
    fn platform(&self) -> Platform {
        self.1.platform.map_or_else(Platform::host, Platform::of)
    }

    /// The platform that names are kept apart for: none for this machine's.
    fn foreign_platform(&self) -> Option<String> {
        let platform = self.platform();
        (platform != Platform::host()).then(|| platform.to_string())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whose the files in it are.
    pub fn ids(&self) -> StoredIds {
        self.0.ids
    }

    /// An image to use: imported if the store does not have it yet, once for all who want it. One
    /// of a registry is pulled if the store has none of its name, or has it for longer than answers
    /// are to be kept. A directory is used in place. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`ImageError`].
    pub(crate) fn get(
        &self,
        source: &ImageSource,
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(&ImportStep),
    ) -> Result<Arc<Image>, ImageError> {
        match source {
            ImageSource::Directory(path) => Ok(Arc::new(Image::directory(path)?)),
            ImageSource::Stored(name) => {
                // Before a name that could be one of a registry, and may be the digest of one here.
                match self.find(name)? {
                    Some(digest) if !self.may_be_asked_again(name) => {
                        let image = self.image(&digest, name, interrupt)?;
                        image.ok_or_else(|| self.not_stored(name, ""))
                    }
                    _ => self.pulled(name, false, interrupt, on_step),
                }
            }
            ImageSource::Registry(name) => self.pulled(name, false, interrupt, on_step),
            ImageSource::Engine(name) => self.copied(name, false, interrupt, on_step),
            ImageSource::OciLayout { .. } | ImageSource::Archive { .. } => {
                self.imported(source, &source.to_string(), &[], interrupt, on_step)
            }
        }
    }

    /// Imports an image, if the store does not have it yet, and gives it more names. One of a
    /// registry is pulled, whichever is known by its name here: it may have another one by now.
    /// `on_step` is told what is being done. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`ImageError`]; [`ImageError::BadSource`] for a directory, which needs no import, and for
    /// what is in the store already.
    pub fn import(
        &self,
        source: &ImageSource,
        names: &[String],
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(&ImportStep),
    ) -> Result<StoredImage, ImageError> {
        let image = match source {
            ImageSource::Directory(_) => {
                let why = "a directory is used in place, it needs no import".to_owned();
                return Err(ImageError::BadSource { image: source.to_string(), why });
            }
            ImageSource::Stored(name) => match self.find(name)? {
                // To give it more names is all that can be done.
                Some(digest) if !names.is_empty() => {
                    names.iter().try_for_each(|name| self.call(name, digest))?;
                    return self.show(name, interrupt);
                }
                Some(_) => return self.show(name, interrupt),
                None => return Err(self.not_stored(name, "")),
            },
            ImageSource::Engine(name) => {
                let image = self.copied(name, true, interrupt, on_step)?;
                if let Some(digest) = image.digest() {
                    names.iter().try_for_each(|name| self.call(name, *digest))?;
                }
                image
            }
            ImageSource::Registry(name) => {
                let image = self.pulled(name, true, interrupt, on_step)?;
                if let Some(digest) = image.digest() {
                    names.iter().try_for_each(|name| self.call(name, *digest))?;
                }
                image
            }
            _ => self.imported(source, &source.to_string(), names, interrupt, on_step)?,
        };
        // While it is pinned: another program may be removing what is not used.
        let digest = image.digest().copied();
        let mut stored =
            self.show(&digest.map(|digest| digest.to_string()).unwrap_or_default(), interrupt)?;
        drop(image);
        stored.in_use =
            matches!(self.0.images.claim(&stored.digest.hex(), interrupt)?, Claimed::InUse);
        Ok(stored)
    }

    /// Whether the image is here, without bringing anything: a look at
    /// two files. A directory is always there; what an archive or a layout has is known once it was
    /// imported from the same file. It may be removed at any time after that.
    pub fn has(&self, source: &ImageSource) -> bool {
        let there = |digest: Digest| self.0.images.has(&digest.hex());
        match source {
            ImageSource::Directory(path) => path.is_dir(),
            ImageSource::Registry(name) | ImageSource::Engine(name) | ImageSource::Stored(name) => {
                self.find(name).is_ok_and(|found| found.is_some())
            }
            ImageSource::OciLayout { .. } | ImageSource::Archive { .. } => {
                let memo = Digest::of(source.to_string().as_bytes()).hex();
                let known = record::read::<record::SourceRecord>(&self.0.sources, &memo);
                known.is_ok_and(|known| there(known.digest))
            }
        }
    }

    /// Whether [`get`](Self::get) would ask a registry, or an engine, and so may block for long.
    pub(crate) fn must_pull(&self, source: &ImageSource) -> bool {
        match source {
            ImageSource::Registry(name) | ImageSource::Stored(name) => {
                self.1.pull && (!self.has(source) || self.may_be_asked_again(name))
            }
            ImageSource::Engine(_) => self.1.pull && !self.has(source),
            _ => false,
        }
    }

    /// The image with a digest, pinned; `None` if the store does not have it, or not whole.
    fn image(
        &self,
        digest: &Digest,
        name: &str,
        interrupt: &Interrupt,
    ) -> Result<Option<Arc<Image>>, ImageError> {
        if let Some(open) = self.0.open.lock().get(digest)
            && let (Some(image), Some(pin)) = (open.image.upgrade(), open.pin.upgrade())
        {
            pin.0.touch();
            return Ok(Some(image));
        }
        let Some(pin) = self.0.images.pin(&digest.hex(), interrupt)? else { return Ok(None) };
        let Some(record) = self.record(digest)? else { return Ok(None) };
        pin.touch();
        let pin = Arc::new(UsePin(pin));
        let (mut layers, mut seen) = (Vec::new(), HashSet::new());
        for layer in record.layers.iter().rev() {
            let path = self.0.layers.path_of(&layer.entry).join(TREE);
            if !path.is_dir() {
                // Something else has removed it: it is unpacked again.
                log::warn!("{} is missing: was it cleaned away?", path.display());
                return Ok(None);
            }
            // A layer that is there twice is hidden by itself, and an overlay refuses it.
            if !layer.layer.is_empty && seen.insert(layer.entry.clone()) {
                layers.push(self.layer(path, &pin));
            }
            if layer.layer.hides_all_below {
                break;
            }
        }
        layers.reverse();
        if layers.is_empty()
            && let Some(top) = record.layers.last()
        {
            layers.push(self.layer(self.0.layers.path_of(&top.entry).join(TREE), &pin));
        }
        let config = record.config;
        let image = Image { name: name.to_owned(), digest: Some(*digest), config, layers };
        let image = Arc::new(image);
        let mut open = self.0.open.lock();
        open.retain(|_, open| open.image.strong_count() > 0);
        let opened = Open { image: Arc::downgrade(&image), pin: Arc::downgrade(&pin) };
        open.insert(*digest, opened);
        Ok(Some(image))
    }

    fn layer(&self, path: PathBuf, pin: &Arc<UsePin>) -> Arc<Layer> {
        Arc::new(Layer::new(path, self.0.ids.root(), Some(Box::new(pin.clone()))))
    }

    /// What is written of an image. One that cannot be understood counts as none.
    fn record(&self, digest: &Digest) -> Result<Option<ImageRecord>, ImageError> {
        let path = self.0.images.path_of(&digest.hex());
        let file = format!("{}/{IMAGE}", digest.hex());
        match record::read(self.0.images.dir(), &file) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                log::warn!("{}/{IMAGE} cannot be read: {error}", path.display());
                Ok(None)
            }
            Err(error) => Err(ImageError::io("read", &path, error)),
        }
    }
}

impl fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { path, ids, .. } = &*self.0;
        f.debug_struct("ImageStore").field("path", path).field("ids", ids).finish_non_exhaustive()
    }
}

/// The files of a directory whose names do not begin with a dot.
fn files_of(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && !tree::is_dot(entry.file_name())
            && !name.starts_with('.')
        {
            files.push(name.to_owned());
        }
    }
    Ok(files)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Why the data directory cannot be opened.
fn of_base(data_dir: Option<&Path>, error: WorkspaceError) -> ImageError {
    match error {
        WorkspaceError::Io { doing, path, source } => ImageError::Io { doing, path, source },
        other => {
            let path = data_dir.unwrap_or(Path::new("the default data directory"));
            ImageError::io("use", path, io::Error::other(other))
        }
    }
}
