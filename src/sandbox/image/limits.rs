//! How much an image may make the engine read, write and count.

/// What an image may have at most. An image that has more is refused as unusable, before more than
/// that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageLimits {
    /// Layers of an image, without those that have nothing in them: 127, as elsewhere.
    pub layers: usize,
    /// Entries of a layer: 2,000,000.
    pub entries: u64,
    /// Bytes that a layer's files have on disk, without holes: 128 GiB.
    pub layer_bytes: u64,
    /// Bytes of a compressed archive of images, unpacked, which takes so much of the disk for as
    /// long as the import does: 512 GiB.
    pub archive_bytes: u64,
    /// Bytes that one file seems to have, with holes: 1 TiB.
    pub file_bytes: u64,
    /// How many bytes one compressed byte may become, once a layer is larger than 1 GiB: 1,000.
    pub ratio: u64,
    /// Bytes of all names of a layer's directories, which are held in memory: 64 MiB.
    pub directory_names: usize,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            layers: 127,
            entries: 2_000_000,
            layer_bytes: 128 << 30,
            archive_bytes: 512 << 30,
            file_bytes: 1 << 40,
            ratio: 1_000,
            directory_names: 64 << 20,
        }
    }
}
