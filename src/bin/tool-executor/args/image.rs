//! The flags of `image` and its commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use tool_executor::image::StoredIds;

use super::pulling::{self, PullingArgs};
use super::values::{self, named};
use crate::exit_code;

/// `image` and what it is to do.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

/// What is done with images.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ImageCommand {
    /// Unpack images into the data directory
    ///
    /// What is there already is not unpacked again. Says of each image by which digest and which
    /// names it is known.
    #[command(after_help = exit_code::IMAGE_HELP)]
    Import(ImportArgs),

    /// Pull images from registries and unpack them into the data directory
    ///
    /// This is done by skopeo, which has to be installed: what is not said here is as its settings
    /// have it (containers-registries.conf(5), containers-auth.json(5)). The registry is asked also
    /// for a name that is there; layers that are there are not fetched again. Several images are
    /// pulled at a time.
    #[command(after_help = exit_code::IMAGE_HELP)]
    Pull(PullArgs),

    /// List the images
    #[command(after_help = exit_code::IMAGE_HELP)]
    List {
        #[command(flatten)]
        store: StoreArgs,
    },

    /// Show an image: its configuration, its layers, where they are
    #[command(after_help = exit_code::IMAGE_HELP)]
    Show(ShowArgs),

    /// Remove images, with all their names, and the layers that no other image has
    #[command(after_help = exit_code::IMAGE_HELP)]
    Remove(RemoveArgs),

    /// Remove what no image needs, and images that are not used
    #[command(after_help = exit_code::IMAGE_HELP)]
    Prune(PruneArgs),
}

impl ImageCommand {
    /// Which store it is about.
    pub(crate) fn store(&self) -> &StoreArgs {
        match self {
            Self::List { store } => store,
            Self::Import(ImportArgs { store, .. })
            | Self::Pull(PullArgs { store, .. })
            | Self::Show(ShowArgs { store, .. })
            | Self::Remove(RemoveArgs { store, .. })
            | Self::Prune(PruneArgs { store, .. }) => store,
        }
    }
}

/// The flags of `image import`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImportArgs {
    /// Where an image comes from: oci:DIR[:TAG] (an OCI layout), docker-archive:FILE[:NAME] (what
    /// docker save or podman save wrote, or a tar of an OCI layout; plain, gzip or zstd), the path
    /// of one of these, docker://NAME,
    /// docker-daemon:NAME or containers-storage:NAME
    #[arg(required = true, value_name = "SOURCE")]
    pub(crate) sources: Vec<String>,

    /// A further name for the image; only with one SOURCE, which may then also be the name or
    /// digest of an image that is there
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// No progress
    #[arg(long, short)]
    pub(crate) quiet: bool,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// The flags of `image pull`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PullArgs {
    /// Names of images, as python:3.12, localhost:5000/task, NAME@sha256:..., docker-daemon:NAME or
    /// containers-storage:NAME
    #[arg(required_unless_present = "image_list", value_name = "NAME")]
    pub(crate) names: Vec<String>,

    /// A file with names of images, one in each line, or with the input of replay: then the images
    /// that its trajectories ask for. - is standard input. Empty lines, and those that begin with
    /// #, are left out
    #[arg(long, value_name = "FILE")]
    pub(crate) image_list: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) pulling: PullingArgs,

    /// No progress
    #[arg(long, short)]
    pub(crate) quiet: bool,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// The flags of `image show`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShowArgs {
    /// A name, a digest, or at least 8 digits of its beginning
    pub(crate) image: String,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// The flags of `image remove`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RemoveArgs {
    /// Names, digests, or at least 8 digits of their beginning
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// The flags of `image prune`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PruneArgs {
    /// Also remove the images that no program uses and that were not used for so long, in seconds;
    /// 0 removes all that no program uses [default: no image is removed]
    #[arg(long, value_name = "S", value_parser = named(values::unused_image_seconds))]
    pub(crate) unused_for: Option<Duration>,

    /// Also remove images that no program uses, those first that were not used for longest, until
    /// the files of the others have at most so many bytes, as 50G
    #[arg(long, value_name = "SIZE", value_parser = named(pulling::store_size))]
    pub(crate) to_size: Option<u64>,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Which store, and how to speak of it.
#[derive(Debug, Clone, Args)]
pub(crate) struct StoreArgs {
    /// The data directory that has the images [default: tool-executor-<uid> in the temporary
    /// directory]
    #[arg(long, value_name = "DIR", env = "TOOL_EXECUTOR_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Whose the unpacked files are: kept (the image's ids; for programs that run as root),
    /// moved-N (N more than these; for root in a container), or one (all are this user's)
    /// [default: what programs of this user need here]
    #[arg(long, value_name = "WHOSE", value_parser = ids_of)]
    pub(crate) ids: Option<StoredIds>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whose unpacked files are.
fn ids_of(text: &str) -> Result<StoredIds, String> {
    let moved = || text.strip_prefix("moved-")?.parse().ok();
    match text {
        "kept" => Ok(StoredIds::Kept),
        "one" => Ok(StoredIds::One),
        _ => moved()
            .map(StoredIds::Moved)
            .ok_or_else(|| "it must be kept, one, or moved-N, with a number".to_owned()),
    }
}
