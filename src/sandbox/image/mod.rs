//! Images on disk: where they come from, how they are unpacked, and the store that keeps them.
//!
//! An [`Image`] is a list of directories that do not change any more, its [`Layer`]s, and what its
//! [`ImageConfig`] says of the processes in it. A machine is an overlay over the layers.
//!
//! - `source` is what a user may name as an image, `archive` reads manifests and finds layers in
//!   OCI layouts and in the archives of `docker save` and `podman save`.
//! - `reference` reads the names of images in registries, `skopeo` runs the program that pulls.
//! - `unpack` makes the directory of one layer from its tar stream.
//! - `store` keeps what was unpacked: content-addressed, shared by programs, whole after a kill.
//!
//! All that an archive says is hostile: names, links, sizes, digests, JSON. Nothing in one gets out
//! of its layer's directory, and what it makes the engine write, hold in memory or count has a
//! limit ([`ImageLimits`]).
//!
//! **What layers are on disk**: directories as `overlayfs` has them with `userxattr`. A whiteout is
//! a character device 0/0, which an ordinary user may make, too; an opaque directory has the
//! attribute `user.overlay.opaque`.

mod archive;
mod config;
mod digest;
mod error;
mod limits;
mod reference;
mod skopeo;
mod source;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod unpack;

use std::any::Any;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use config::ImageConfig;
pub use digest::Digest;
pub use error::{ImageError, ImageErrorKind, PullFailure};
pub use limits::ImageLimits;
pub use source::ImageSource;
pub(crate) use store::ContentsReader;
pub(crate) use store::store_room;
pub use store::{ImageStore, ImportStep, Pruned, StoredImage, StoredLayer};

/// Whose the files of a store's layers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredIds {
    /// The image's: its root's are those of this machine's root. For a root whose machines attach
    /// layers by idmapped mounts.
    Kept,
    /// The image's, and this number more: for a root whose machines cannot show layers with other
    /// owners, in a container for one. All of them have the ids from this number on, then.
    Moved(u32),
    /// All belong to the user that this process is: for machines that have one id.
    One,
}

/// A directory on the host that does not change any more.
pub(crate) struct Layer {
    path: PathBuf,
    owner: u32,
    /// Dropped with it: what keeps the directory there, or removes it behind.
    _keeper: Option<Box<dyn Any + Send + Sync>>,
}

impl Layer {
    /// The directory at `path`, in which the image's id 0 is `owner` on disk, 1 the next one, and
    /// so on. `keeper` is dropped with the layer: a pin, or what removes the directory.
    pub(crate) fn new(
        path: PathBuf,
        owner: u32,
        keeper: Option<Box<dyn Any + Send + Sync>>,
    ) -> Self {
        Self { path, owner, _keeper: keeper }
    }

    /// Where it is: absolute, without symlinks. Two layers with the same path are the same files.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The id on disk that stands for the image's 0; the same for groups.
    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, owner, .. } = self;
        f.debug_struct("Layer").field("path", path).field("owner", owner).finish_non_exhaustive()
    }
}

/// An image that can be used: for as long as it is held, nothing of it is removed.
#[derive(Debug)]
pub(crate) struct Image {
    /// How it was asked for.
    name: String,
    /// `None` for a directory.
    digest: Option<Digest>,
    config: ImageConfig,
    layers: Vec<Arc<Layer>>,
}

impl Image {
    /// A directory in place, as an image of one layer. Who owns the directory is the image's root.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::BadSource`] where it is no directory or all of this
    /// machine, [`ImageError::Io`].
    pub(crate) fn directory(path: &Path) -> Result<Self, ImageError> {
        let name = ImageSource::Directory(path.to_owned()).to_string();
        let found = path.canonicalize().and_then(|path| Ok((path.metadata()?, path)));
        let (about, path) = found.map_err(|error| ImageError::at_source(&name, path, error))?;
        if !about.is_dir() {
            return Err(ImageError::BadSource { image: name, why: "it is no directory".into() });
        }
        if path == Path::new("/") {
            let why = "the host's own root directory is no image; leave the image out to run on \
                       the host's files";
            return Err(ImageError::BadSource { image: name, why: why.into() });
        }
        let layer = Arc::new(Layer::new(path, about.uid(), None));
        Ok(Self { name, digest: None, config: ImageConfig::default(), layers: vec![layer] })
    }

    /// How it was asked for.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The digest of its configuration, by which an image is known; `None` for a directory.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What it says of the processes in it.
    pub(crate) fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Its layers, the lowest first; no directory twice, and at least one.
    pub(crate) fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }
}
