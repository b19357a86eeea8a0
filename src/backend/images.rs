//! What a container has of images, as it is told.

use std::sync::Arc;

use serde::Serialize;

pub use crate::image_key::ImageKey;

/// Which images a container has, and whether there is room for more; told whole each time
/// ([`ContainerChange::Images`](super::ContainerChange::Images)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContainerImages {
    /// Those that it has, in order.
    pub has: Arc<[ImageKey]>,
    /// Those that it is about to have: they are being pulled or unpacked.
    pub pulling: Vec<ImageKey>,
    /// The bytes that are free for images, where it says so.
    pub free_bytes: Option<u64>,
    /// Whether its disk is too full for an image that it lacks.
    pub is_full: bool,
}

impl ContainerImages {
    /// These images, and room.
    pub fn new(has: impl IntoIterator<Item = ImageKey>) -> Self {
        let mut has: Vec<_> = has.into_iter().collect();
        has.sort_unstable();
        has.dedup();
        Self { has: has.into(), ..Self::default() }
    }

    /// The same, while these are being pulled.
    pub fn with_pulling(mut self, pulling: impl IntoIterator<Item = ImageKey>) -> Self {
        self.pulling = pulling.into_iter().collect();
        self
    }

    /// The same, on a disk with so many bytes free, which is too full for more images or not.
    pub fn with_room(mut self, free_bytes: Option<u64>, is_full: bool) -> Self {
        (self.free_bytes, self.is_full) = (free_bytes, is_full);
        self
    }
}

/// The images that a [`Backend`](super::Backend) has on this machine, by their names: what a
/// sandbox server tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HeldImages {
    /// Grows whenever something of the others has changed that is worth telling.
    pub version: u64,
    /// What they may be asked for by: names, sources and digests; [`MOST_IMAGE_NAMES`] at most.
    pub names: Vec<String>,
    /// How many more there are.
    pub more: usize,
    /// What is being pulled or unpacked.
    pub pulling: Vec<String>,
    /// The bytes that are free for images.
    pub free_bytes: Option<u64>,
    /// Below so many free bytes no image is to be put here that is lacking.
    pub reserve_bytes: u64,
}

/// The most names that [`HeldImages`] has.
pub const MOST_IMAGE_NAMES: usize = 16_384;

impl HeldImages {
    /// Whether the disk is too full for an image that is lacking.
    pub fn is_full(&self) -> bool {
        self.free_bytes.is_some_and(|free| free < self.reserve_bytes)
    }
}
