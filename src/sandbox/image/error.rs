//! Why an image cannot be had, or cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;

/// The two ways in which an image fails a trajectory, and what is neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageErrorKind {
    /// It cannot be had: it is not there, cannot be read, or the disk is full. With the image
    /// brought, or room made, the same request works.
    Unavailable,
    /// It is there, and is none, or none for this machine: damaged, hostile, too large, for other
    /// processors.
    Unusable,
    /// It was asked to be removed and is in use.
    InUse,
    /// The work was [interrupted](crate::Interrupt).
    Interrupted,
}

/// Why an image could not be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PullFailure {
    /// There is no `skopeo`.
    NoPuller,
    /// The registry has no such image.
    NotFound,
    /// The registry wants other credentials, or any.
    Unauthorized,
    /// The registry was asked too often, also after waiting as it said.
    RateLimited,
    /// What the registry sends is not what it said it would be.
    WrongDigest,
    /// The certificate of the registry is not trusted, or it speaks no https.
    Certificate,
    /// The registry cannot be reached.
    Unreachable,
    /// It was cut off, or the registry is not well; again and again.
    Cut,
    /// It took too long.
    TimedOut,
    /// The disk of the store is full.
    Full,
    /// Something else, which its words say.
    Other,
}

impl PullFailure {
    /// What there is to do, beginning with a semicolon; empty where the words say it.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Unauthorized => {
                "; log in (skopeo login REGISTRY) or name a file with credentials \
                 (--registry-auth-file)"
            }
            Self::RateLimited => {
                "; wait, log in (skopeo login REGISTRY), or have a mirror (registries.conf)"
            }
            Self::Certificate => {
                "; name a directory with its authority (--registry-cert-dir), or a registry that \
                 needs no https (--registry-plain-http HOST)"
            }
            _ => "",
        }
    }
}

/// Why an image cannot be had or used. The text is one line for people; bytes of an image are
/// escaped in it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// What was given names no image.
    #[error("{image}: {why}")]
    BadSource {
        /// What was given.
        image: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// There is nothing at the path.
    #[error("{image}: there is no {}", path.display())]
    NotFound {
        /// How it was asked for.
        image: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// The store has no image of this name, and it was not to be pulled, or cannot be.
    #[error(
        "the store has no image \"{image}\"{why}; have it pulled (tool-executor image pull {image}), \
         where skopeo is installed, or bring it (skopeo copy docker://{image} oci:DIR, or docker \
         save or podman save to a FILE) and name oci:/DIR or docker-archive:/FILE, or import that \
         first: tool-executor image import"
    )]
    NotStored {
        /// How it was asked for.
        image: String,
        /// Why it is not pulled, beginning with a comma; empty where that was not asked for.
        why: String,
    },
    /// It could not be pulled from its registry.
    #[error("{image} cannot be pulled: {why}")]
    NotPulled {
        /// How it was asked for.
        image: String,
        /// What kind of failure it is.
        reason: PullFailure,
        /// What was said.
        why: String,
    },
    /// It is damaged, or says what cannot be right.
    #[error("{image} is no usable image: {why}")]
    Invalid {
        /// How it was asked for.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// It has more of something than [`ImageLimits`](super::ImageLimits) allow.
    #[error("{image} is too large: {what}, and {most} are allowed")]
    TooLarge {
        /// How it was asked for.
        image: String,
        /// What there is too much of.
        what: String,
        /// How many may be.
        most: u64,
    },
    /// It is for other machines.
    #[error("{image} is for {has}; this machine needs {needs}")]
    Platform {
        /// How it was asked for.
        image: String,
        /// What it is for: `linux/arm64`.
        has: String,
        /// What this machine is.
        needs: String,
    },
    /// The disk of the store is full, or its quota used up. Nothing is left of what was begun.
    #[error(
        "no room for {image} in {}: at least {needed} bytes more are needed, {free} are free; \
         make room (tool-executor image prune --unused-for 0) or choose another data directory", path.display()
    )]
    Full {
        /// How it was asked for.
        image: String,
        /// The store.
        path: PathBuf,
        /// How many bytes the layer that did not fit has at least, with what of it was written.
        needed: u64,
        /// How many bytes this process could write when it began.
        free: u64,
    },
    /// A process uses it.
    #[error("{image} is in use")]
    InUse {
        /// How it was asked for.
        image: String,
    },
    /// The work was interrupted.
    #[error("the import was interrupted")]
    Interrupted,
    /// The system refused something.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried: "create", "read", ….
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ImageError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ImageErrorKind {
        match self {
            Self::BadSource { .. }
            | Self::NotFound { .. }
            | Self::NotStored { .. }
            | Self::NotPulled { .. }
            | Self::Full { .. }
            | Self::Io { .. } => ImageErrorKind::Unavailable,
            Self::Invalid { .. } | Self::TooLarge { .. } | Self::Platform { .. } => {
                ImageErrorKind::Unusable
            }
            Self::InUse { .. } => ImageErrorKind::InUse,
            Self::Interrupted => ImageErrorKind::Interrupted,
        }
    }

    pub(super) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.to_owned(), source: source.into() }
    }

    /// What became of looking at a path that `image` names.
    pub(super) fn at_source(image: &str, path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Self::NotFound { image: image.to_owned(), path: path.to_owned() }
            }
            _ => Self::io("read", path, error),
        }
    }
}

/// Whether the system says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOSPC | Errno::DQUOT))
}
