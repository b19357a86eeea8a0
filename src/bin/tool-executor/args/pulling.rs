//! The flags about registries, and about how much of the disk images have.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use tool_executor::config::{ImagePlatform, ImagesConfig};

use super::values::{self, named};

/// How images are pulled and kept.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct ImagesArgs {
    /// Whether an image that is not here is pulled from its registry by skopeo, which has to be
    /// installed; false uses those that were imported or pulled before
    #[arg(long, value_name = "BOOL", default_value = "true", env = "TOOL_EXECUTOR_IMAGE_PULL")]
    #[arg(value_parser = named(values::boolean), action = ArgAction::Set)]
    image_pull: bool,

    #[command(flatten)]
    pulling: PullingArgs,
}

/// What of this is also said where images are pulled by a command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct PullingArgs {
    /// The processors whose image is pulled of a list for several: amd64 or arm64; others than
    /// this machine's need an emulator (binfmt_misc) [default: this machine's]
    #[arg(long, value_name = "NAME", env = "TOOL_EXECUTOR_IMAGE_PLATFORM")]
    #[arg(value_parser = named(platform))]
    image_platform: Option<ImagePlatform>,

    /// The file with credentials for registries, as skopeo login and docker login write one
    /// [default: that of skopeo: $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json,
    /// ~/.docker/config.json]
    #[arg(long, value_name = "FILE", env = "TOOL_EXECUTOR_REGISTRY_AUTH_FILE")]
    registry_auth_file: Option<PathBuf>,

    /// A directory with the certificates of authorities that registries are trusted by (*.crt), and
    /// with this client's (*.cert, *.key) [default: those of the system]
    #[arg(long, value_name = "DIR", env = "TOOL_EXECUTOR_REGISTRY_CERT_DIR")]
    registry_cert_dir: Option<PathBuf>,

    /// A registry, HOST or HOST:PORT, that needs no https; its certificate is not checked either.
    /// Give it once for each, or a list with commas [default: none]
    #[arg(long, value_name = "HOST", env = "TOOL_EXECUTOR_REGISTRY_PLAIN_HTTP")]
    #[arg(value_delimiter = ',', value_parser = named(registry))]
    registry_plain_http: Vec<String>,

    /// How often a pull is tried again that was cut off or did not reach its registry
    #[arg(long, value_name = "N", default_value = "4", env = "TOOL_EXECUTOR_IMAGE_PULL_RETRIES")]
    #[arg(value_parser = named(retries))]
    image_pull_retries: u32,

    /// How long the pull of an image may take, in seconds
    #[arg(long, value_name = "S", default_value = "3600")]
    #[arg(env = "TOOL_EXECUTOR_IMAGE_PULL_TIMEOUT_S", value_parser = named(timeout))]
    image_pull_timeout_s: Duration,

    /// How many images are pulled at a time
    #[arg(long, value_name = "N", default_value = "4", env = "TOOL_EXECUTOR_IMAGE_PULL_PARALLEL")]
    #[arg(value_parser = named(parallel))]
    image_pull_parallel: usize,

    /// How many bytes the files of all images may have, as 50G: beyond that those that were not
    /// used for longest are removed when one is added; never one that is in use [default: no limit]
    #[arg(long, value_name = "SIZE", env = "TOOL_EXECUTOR_IMAGE_STORE_SIZE")]
    #[arg(value_parser = named(store_size))]
    image_store_size: Option<u64>,

    /// How old the answer of a registry to a tag may be when a trajectory wants it, in seconds: an
    /// older one is asked for again [default: what is here is used until image pull brings another]
    #[arg(long, value_name = "S", env = "TOOL_EXECUTOR_IMAGE_REFRESH_S")]
    #[arg(value_parser = named(values::wait_seconds))]
    image_refresh_s: Option<Duration>,
}

impl ImagesArgs {
    pub(crate) fn config(&self) -> ImagesConfig {
        self.pulling.config().with_pull(self.image_pull)
    }
}

impl PullingArgs {
    pub(crate) fn config(&self) -> ImagesConfig {
        let mut config = ImagesConfig::default();
        config.platform = self.image_platform;
        config.auth_file.clone_from(&self.registry_auth_file);
        config.cert_dir.clone_from(&self.registry_cert_dir);
        config.plain_http.clone_from(&self.registry_plain_http);
        config.retries = self.image_pull_retries;
        config.timeout = self.image_pull_timeout_s;
        config.parallel = self.image_pull_parallel;
        config.store_bytes = self.image_store_size;
        config.refresh = self.image_refresh_s;
        config
    }
}

fn platform(text: &str) -> Result<ImagePlatform, String> {
    text.parse().map_err(|_| "amd64 or arm64".to_owned())
}

fn registry(text: &str) -> Result<String, String> {
    let config = ImagesConfig::default().with_plain_http(vec![text.to_owned()]);
    let right = "HOST or HOST:PORT, as localhost:5000, without http:// and a path";
    config.check().map(|()| text.to_owned()).map_err(|_| right.to_owned())
}

fn retries(text: &str) -> Result<u32, String> {
    let read = text.parse().ok();
    let fits = |n: &u32| ImagesConfig::default().with_retries(*n).check().is_ok();
    read.filter(fits).ok_or_else(|| "a number from 0 to 20".to_owned())
}

fn parallel(text: &str) -> Result<usize, String> {
    let read = text.parse().ok();
    let fits = |n: &usize| ImagesConfig::default().with_parallel(*n).check().is_ok();
    read.filter(fits).ok_or_else(|| "a number from 1 to 64".to_owned())
}

fn timeout(text: &str) -> Result<Duration, String> {
    let fits = |time: &Duration| ImagesConfig::default().with_timeout(*time).check().is_ok();
    let read = values::wait_seconds(text).ok();
    read.filter(fits).ok_or_else(|| "seconds, from 1 to 604800 (a week)".to_owned())
}

/// How many bytes images may have.
pub(super) fn store_size(text: &str) -> Result<u64, String> {
    values::tool_file_size(text).map_err(|_| "a number of bytes, as 500M or 50G".to_owned())
}
