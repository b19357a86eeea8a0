//! Images where they come from: the manifests and configurations of OCI layouts and of saved
//! archives, and where in them the layers are. Nothing is unpacked here.

mod files;
mod manifest;

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

pub(super) use self::files::Files;
use self::manifest::{Choice, Descriptor, Index, Manifest, Saved};
use super::config::{Configuration, Platform};
use super::digest::Digesting;
use super::source::shown;
use super::unpack::Source;
use super::{Digest, ImageConfig, ImageError};

/// The longest manifest or configuration.
const MAX_JSON: u64 = 8 << 20;
/// How many lists of manifests may be in each other.
const MAX_LISTS: usize = 4;

/// An image as it was found, unpacked or not.
pub(super) struct Found {
    /// That of its configuration.
    pub(super) digest: Digest,
    /// That of its manifest, where it has one.
    pub(super) manifest: Option<Digest>,
    pub(super) config: ImageConfig,
    /// The names that its source has for it.
    pub(super) names: Vec<String>,
    /// Its layers, the lowest first.
    pub(super) layers: Vec<Blob>,
}

/// A layer, packed.
pub(super) struct Blob {
    pub(super) source: Source,
    /// That of the packed bytes, where the source says it.
    pub(super) digest: Option<Digest>,
    /// That of the unpacked ones.
    pub(super) diff_id: Digest,
}

/// Finds an image in files that may hold several: the one called `tag`, or the only one for this
/// machine. `image` is how it was asked for.
///
/// # Errors
/// [`ImageError::Invalid`], [`ImageError::Platform`], [`ImageError::BadSource`] where the tag names
/// none or several could be meant, [`ImageError::Io`].
pub(super) fn find(
    files: &Files,
    image: &str,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Found, ImageError> {
    let finding = Finding { files, image, platform };
    // What Docker saves has both, and in this one every image has its names.
    match files.open(SAVED).map_err(|error| finding.unread(error))? {
        Some(list) => finding.saved(list, tag),
        None => finding.layout(tag),
    }
}

const SAVED: &str = "manifest.json";
const INDEX: &str = "index.json";

struct Finding<'a> {
    files: &'a Files,
    image: &'a str,
    /// What it is to be for.
    platform: &'a Platform,
}

impl Finding<'_> {
    fn invalid(&self, why: impl Into<String>) -> ImageError {
        ImageError::Invalid { image: self.image.to_owned(), why: why.into() }
    }

    fn bad_source(&self, why: impl Into<String>) -> ImageError {
        ImageError::BadSource { image: self.image.to_owned(), why: why.into() }
    }

    fn unread(&self, error: std::io::Error) -> ImageError {
        ImageError::io("read", Path::new(self.image), error)
    }

    /// Reads a small file, whose digest is one if it is given.
    fn json<T: DeserializeOwned>(
        &self,
        what: &str,
        source: Source,
        digest: Option<Digest>,
    ) -> Result<(T, Digest), ImageError> {
        if source.left() > MAX_JSON {
            let what = format!("its {what} has {} bytes", source.left());
            return Err(ImageError::TooLarge {
                image: self.image.to_owned(),
                what,
                most: MAX_JSON,
            });
        }
        let mut bytes = Vec::new();
        let mut reader = Digesting::new(source);
        std::io::Read::read_to_end(&mut reader, &mut bytes).map_err(|error| self.unread(error))?;
        let is = reader.finish();
        if let Some(digest) = digest.filter(|digest| *digest != is) {
            return Err(self.invalid(format!("its {what} is not {digest}, but {is}")));
        }
        let read = serde_json::from_slice(&bytes);
        let said = |error: serde_json::Error| shown(&error.to_string());
        let value = read
            .map_err(|error| self.invalid(format!("its {what} cannot be read: {}", said(error))))?;
        Ok((value, is))
    }

    /// What a descriptor describes.
    fn blob(&self, what: &str, described: &Descriptor) -> Result<(Source, Digest), ImageError> {
        let digest: Digest = described
            .digest
            .parse()
            .map_err(|error| self.invalid(format!("the digest of its {what}: {error}")))?;
        let path = format!("blobs/sha256/{}", digest.hex());
        let opened = self.files.open(&path).map_err(|error| self.unread(error))?;
        let source = opened
            .ok_or_else(|| self.invalid(format!("its {what} {digest} is not there ({path})")))?;
        if source.left() != described.size {
            let (is, says) = (source.left(), described.size);
            let why = format!("its {what} {digest} has {is} bytes, and the manifest says {says}");
            return Err(self.invalid(why));
        }
        Ok((source, digest))
    }

    /// An OCI layout.
    fn layout(&self, tag: Option<&str>) -> Result<Found, ImageError> {
        let opened = self.files.open(INDEX).map_err(|error| self.unread(error))?;
        let index = opened.ok_or_else(|| {
            self.invalid(
                "it has neither index.json nor manifest.json: it is no OCI layout and no \
                          archive that docker save or podman save wrote",
            )
        })?;
        let (mut index, _): (Index, _) = self.json(INDEX, index, None)?;
        if let Some(tag) = tag {
            index.manifests.retain(|described| described.is_called(tag));
            if index.manifests.is_empty() {
                return Err(self.bad_source(format!("it has no image {:?}", shown(tag))));
            }
        }
        let mut names = Vec::new();
        for _ in 0..MAX_LISTS {
            let described = match manifest::choose(&index.manifests, self.platform) {
                Choice::One(described) => described,
                Choice::Several(tags) => {
                    let why = format!("it has several images; add one of {}", tags.join(", "));
                    return Err(self.bad_source(why));
                }
                Choice::None(others) => {
                    return Err(ImageError::Platform {
                        image: self.image.to_owned(),
                        has: others.join(", "),
                        needs: self.platform.to_string(),
                    });
                }
                Choice::Empty => return Err(self.invalid("it has no image in it")),
            };
            names.extend(described.name());
            let (source, digest) = self.blob("manifest", described)?;
            let (read, _): (ManifestOrIndex, _) = self.json("manifest", source, Some(digest))?;
            match (read.manifest.config.is_some(), read.manifests) {
                (true, _) => return self.image(&read.manifest, digest, names),
                (false, Some(manifests)) => index = Index { manifests },
                (false, None) => return Err(self.invalid("its manifest is of no image")),
            }
        }
        Err(self.invalid("its lists of manifests have no end"))
    }

    /// An image of a manifest.
    fn image(
        &self,
        manifest: &Manifest,
        digest: Digest,
        names: Vec<String>,
    ) -> Result<Found, ImageError> {
        let described = manifest.config.as_ref().ok_or_else(|| self.invalid("it has no config"))?;
        let (source, config) = self.blob("configuration", described)?;
        let (configuration, _): (Configuration, _) =
            self.json("configuration", source, Some(config))?;
        let diff_ids = self.check(&configuration, manifest.layers.len())?;
        let mut layers = Vec::new();
        for (described, diff_id) in manifest.layers.iter().zip(diff_ids) {
            if let Some(why) = described.no_layer() {
                return Err(self.invalid(why));
            }
            let (source, digest) = self.blob("layer", described)?;
            layers.push(Blob { source, digest: Some(digest), diff_id });
        }
        let config_of = configuration.config.unwrap_or_default().into();
        Ok(Found { digest: config, manifest: Some(digest), config: config_of, names, layers })
    }

    /// Whether a configuration is one for this machine and for so many layers: their digests.
    fn check(&self, read: &Configuration, layers: usize) -> Result<Vec<Digest>, ImageError> {
        let is = read.platform();
        if !self.platform.runs(&is) {
            let (has, needs) = (is.to_string(), self.platform.to_string());
            return Err(ImageError::Platform { image: self.image.to_owned(), has, needs });
        }
        let diff_ids = &read.rootfs.diff_ids;
        if diff_ids.len() != layers {
            let said = diff_ids.len();
            let why = format!("its configuration has {said} layers, and its manifest {layers}");
            return Err(self.invalid(why));
        }
        if diff_ids.is_empty() {
            return Err(self.invalid("it has no layers, so there is nothing in it"));
        }
        let parse = |text: &String| {
            text.parse().map_err(|error| self.invalid(format!("the digest of a layer: {error}")))
        };
        diff_ids.iter().map(parse).collect()
    }

    /// What `docker save` and `podman save` write.
    fn saved(&self, list: Source, tag: Option<&str>) -> Result<Found, ImageError> {
        let (images, _): (Vec<Saved>, _) = self.json(SAVED, list, None)?;
        let saved = match tag {
            Some(tag) => images.iter().find(|saved| saved.is_called(tag)),
            None if images.len() > 1 => {
                let tags: Vec<_> = images.iter().map(Saved::shown).collect();
                let why = format!("it has several images; add one of {}", tags.join(", "));
                return Err(self.bad_source(why));
            }
            None => images.first(),
        };
        let saved = match (saved, tag) {
            (Some(saved), _) => saved,
            (None, Some(tag)) => {
                return Err(self.bad_source(format!("it has no image {:?}", shown(tag))));
            }
            (None, None) => return Err(self.invalid("it has no image in it")),
        };
        let open = |path: &str| {
            let opened = self.files.open(path).map_err(|error| self.unread(error))?;
            let missing = || self.invalid(format!("{:?} is not in it", shown(path)));
            opened.ok_or_else(missing)
        };
        let source = open(&saved.config)?;
        let (configuration, digest): (Configuration, _) =
            self.json("configuration", source, manifest::digest_in(&saved.config))?;
        let diff_ids = self.check(&configuration, saved.layers.len())?;
        let mut layers = Vec::new();
        for (path, diff_id) in saved.layers.iter().zip(diff_ids) {
            // A file may be called by the digest of what is in it, packed or not; then what counts
            // is the digest of the unpacked bytes.
            layers.push(Blob { source: open(path)?, digest: None, diff_id });
        }
        let config = configuration.config.unwrap_or_default().into();
        let names = saved.repo_tags.clone().unwrap_or_default();
        Ok(Found { digest, manifest: None, config, names, layers })
    }
}

/// What a registry has under a name.
pub(super) enum AtRegistry {
    /// A list: the digest of the manifest that is meant.
    List(Digest),
    /// A manifest.
    Image {
        config: Digest,
        /// The digests and sizes of the layers, packed, the lowest first.
        layers: Vec<(Digest, u64)>,
    },
}

/// Reads what a registry has under a name, before any layer is fetched. `image` is how it was asked
/// for.
///
/// # Errors
/// As of [`find`].
pub(super) fn read_manifest(
    bytes: &[u8],
    image: &str,
    platform: &Platform,
) -> Result<AtRegistry, ImageError> {
    let invalid = |why: String| ImageError::Invalid { image: image.to_owned(), why };
    let digest = |what: &str, described: &Descriptor| {
        let parsed = described.digest.parse();
        parsed.map_err(|error| invalid(format!("the digest of its {what}: {error}")))
    };
    let read: ManifestOrIndex = serde_json::from_slice(bytes).map_err(|error| {
        invalid(format!("its manifest cannot be read: {}", shown(&error.to_string())))
    })?;
    if let Some(config) = &read.manifest.config {
        let layers = read.manifest.layers.iter().map(|described| match described.no_layer() {
            Some(why) => Err(invalid(why)),
            None => Ok((digest("layer", described)?, described.size)),
        });
        let layers = layers.collect::<Result<_, _>>()?;
        return Ok(AtRegistry::Image { config: digest("configuration", config)?, layers });
    }
    let Some(manifests) = &read.manifests else {
        let why = "its manifest is none that has a configuration: of the first version, which no \
                   registry has any more, or of no image";
        return Err(invalid(why.to_owned()));
    };
    match manifest::choose(manifests, platform) {
        Choice::One(described) => Ok(AtRegistry::List(digest("manifest", described)?)),
        Choice::None(others) => Err(ImageError::Platform {
            image: image.to_owned(),
            has: others.join(", "),
            needs: platform.to_string(),
        }),
        Choice::Several(_) | Choice::Empty => {
            Err(invalid("its list of manifests has no single image for this machine".to_owned()))
        }
    }
}

/// What is behind the digest of a manifest: one, or a list.
#[derive(Deserialize)]
struct ManifestOrIndex {
    #[serde(flatten)]
    manifest: Manifest,
    manifests: Option<Vec<Descriptor>>,
}
