//! `skopeo`, which speaks with registries: it knows their protocols, credentials, mirrors,
//! certificates and proxies. It is run once for a manifest, and once for the layers that are
//! missing.

mod words;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::{Signal, set_parent_process_death_signal};

pub(in crate::sandbox::image) use self::words::wait_before_retry;
use super::PullFailure;
use crate::config::ImagesConfig;
use crate::interrupt::Interrupt;

const PROGRAM: &str = "skopeo";
/// How often it is looked at.
const BEAT: Duration = Duration::from_millis(20);
/// How often its progress is.
const PROGRESS: Duration = Duration::from_millis(500);
/// How much is read of what it says last.
const LAST_WORDS: u64 = 4096;
/// The longest manifest or configuration.
const MAX_JSON: u64 = 8 << 20;

/// Why it did not do what it was to.
pub(super) enum Failure {
    /// As one line.
    Failed {
        reason: PullFailure,
        why: String,
    },
    Interrupted,
}

impl Failure {
    pub(super) fn new(reason: PullFailure, why: impl Into<String>) -> Self {
        Self::Failed { reason, why: why.into() }
    }
}

/// What it is to bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    Manifest,
    Configuration,
}

/// It, in a directory of ours in which it works.
pub(super) struct Skopeo<'a> {
    pub(super) config: &'a ImagesConfig,
    pub(super) directory: &'a Path,
    pub(super) interrupt: &'a Interrupt,
    pub(super) deadline: Instant,
}

impl Skopeo<'_> {
    /// The manifest or configuration of an image, as its registry has it: `host` is that.
    pub(super) fn inspect(
        &self,
        image: &str,
        host: Option<&str>,
        piece: Piece,
    ) -> Result<Vec<u8>, Failure> {
        let mut arguments: Vec<OsString> = vec!["inspect".into(), "--raw".into()];
        if piece == Piece::Configuration {
            arguments.push("--config".into());
        }
        arguments.extend(self.access("", host));
        arguments.push(image.into());
        let printed = self.run(&arguments, &mut |_| {})?;
        let length = printed.metadata().map_or(0, |about| about.len());
        if length > MAX_JSON {
            let why = format!("its manifest has {length} bytes, and {MAX_JSON} are read");
            return Err(Failure::new(PullFailure::Other, why));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        printed.read_exact_at(&mut bytes, 0).map_err(|error| unwritten(&error))?;
        Ok(bytes)
    }

    /// Copies an image to what `to` names below the directory. `watch` is called some times a
    /// second.
    pub(super) fn copy(
        &self,
        image: &str,
        host: Option<&str>,
        to: &str,
        watch: &mut dyn FnMut(&Path),
    ) -> Result<(), Failure> {
        let mut arguments: Vec<OsString> =
            ["copy", "--dest-oci-accept-uncompressed-layers"].map(OsString::from).into();
        arguments.extend(self.access("src-", host));
        if let Some(platform) = self.config.platform {
            // For what is a list to the end.
            arguments.splice(0..0, ["--override-arch".into(), platform.as_str().into()]);
        }
        // That of Docker, whose variable skopeo does not know.
        if let (true, Some(daemon)) =
            (image.starts_with("docker-daemon:"), std::env::var_os("DOCKER_HOST"))
        {
            arguments.extend(["--src-daemon-host".into(), daemon]);
        }
        arguments.extend([image.into(), to.into()]);
        self.run(&arguments, watch).map(drop)
    }

    /// The flags that say how to speak with a registry.
    fn access(&self, prefix: &str, host: Option<&str>) -> Vec<OsString> {
        let ImagesConfig { auth_file, cert_dir, plain_http, .. } = self.config;
        let mut flags = Vec::new();
        for (name, path) in [("authfile", auth_file), ("cert-dir", cert_dir)] {
            if let Some(path) = path {
                flags.extend([format!("--{prefix}{name}").into(), path.clone().into()]);
            }
        }
        if host.is_some_and(|host| plain_http.iter().any(|plain| plain == host)) {
            flags.push(format!("--{prefix}tls-verify=false").into());
        }
        flags
    }

    /// Runs it: what it prints.
    fn run(&self, arguments: &[OsString], watch: &mut dyn FnMut(&Path)) -> Result<File, Failure> {
        let file = |name| file_without_name(self.directory, name);
        let (words, printed) = match (file("words"), file("printed")) {
            (Ok(words), Ok(printed)) => (words, printed),
            (Err(error), _) | (_, Err(error)) => return Err(unwritten(&error)),
        };
        let clone = |file: &File| file.try_clone().map_err(|error| unwritten(&error));
        #[expect(
            clippy::disallowed_methods,
            reason = "no command of a model's: the operator's program, which needs this environment"
        )]
        let mut command = Command::new(PROGRAM);
        // What it needs meanwhile is on the store's disk, and is removed with the rest.
        command.args(["--tmpdir", "."]).args(arguments).current_dir(self.directory);
        command.stdin(Stdio::null()).stdout(clone(&printed)?).stderr(clone(&words)?);
        // It dies with this thread, and so does not write where the next one pulls.
        // SAFETY: one system call on numbers, between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => Failure::new(
                PullFailure::NoPuller,
                format!(
                    "{PROGRAM} is not installed, by which images are pulled; install it, or bring \
                     the image (docker save or podman save to a FILE) and name docker-archive:/FILE"
                ),
            ),
            _ => Failure::new(PullFailure::Other, format!("{PROGRAM} cannot be started: {error}")),
        })?;
        match self.wait(&mut child, watch) {
            Ok(Some(status)) if status.success() => Ok(printed),
            Ok(Some(status)) => {
                let message = words::last_message(&end_of(&words));
                let how = match status.code() {
                    Some(_) => String::new(),
                    None => format!(" ({status})"),
                };
                let why = format!("{PROGRAM} says: {message}{how}");
                Err(Failure::new(words::reason(&message), why))
            }
            Ok(None) if self.interrupt.is_interrupted() => Err(Failure::Interrupted),
            Ok(None) => {
                let limit = self.config.timeout;
                Err(Failure::new(PullFailure::TimedOut, format!("it took longer than {limit:?}")))
            }
            Err(error) => {
                let why = format!("{PROGRAM} cannot be waited for: {error}");
                Err(Failure::new(PullFailure::Other, why))
            }
        }
    }

    /// Waits for its end; `None` if it was ended, by the interrupt or at the deadline.
    fn wait(
        &self,
        child: &mut Child,
        watch: &mut dyn FnMut(&Path),
    ) -> io::Result<Option<ExitStatus>> {
        let mut next_watch = Instant::now() + PROGRESS;
        loop {
            // Before the deadline is looked at: it may have ended in time.
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            let now = Instant::now();
            if now >= self.deadline || self.interrupt.wait_timeout(BEAT) {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            if now >= next_watch {
                watch(self.directory);
                next_watch = now + PROGRESS;
            }
        }
    }
}

/// A file for what it says: a pipe would have to be read all the time.
fn file_without_name(directory: &Path, name: &str) -> io::Result<File> {
    let path = directory.join(name);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::unlinkat(rustix::fs::CWD, &path, AtFlags::empty())?;
    Ok(file.into())
}

fn unwritten(error: &io::Error) -> Failure {
    let reason = match super::error::is_full(error) {
        true => PullFailure::Full,
        false => PullFailure::Other,
    };
    Failure::new(reason, format!("cannot write in the store: {error}"))
}

fn end_of(words: &File) -> String {
    let length = words.metadata().map_or(0, |about| about.len());
    let wanted = length.min(LAST_WORDS);
    let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0)];
    match words.read_exact_at(&mut bytes, length - wanted) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}
