//! Images of registries, by `skopeo` where it is installed: it knows the registries' protocols,
//! credentials, mirrors and proxies as its own settings say. What it brings is imported as any
//! other layout is.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::shelf::Wish;
use super::{ImageStore, ImportStep};
use crate::interrupt::Interrupt;
use crate::sandbox::image::source::{REGISTRY, shown};
use crate::sandbox::image::{Digest, Image, ImageError, ImageSource};

const PROGRAM: &str = "skopeo";
/// How long it may take: a large image over a slow line.
const PULL_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// How often it is looked at.
const BEAT: Duration = Duration::from_millis(20);
/// How much of what it says last is shown.
const LAST_WORDS: u64 = 1000;
/// What the image is called in the layout that it is copied to.
const TAG: &str = "pulled";

impl ImageStore {
    /// The image of a registry: the store's that has this name, unless it is to be pulled `again`.
    pub(super) fn pulled(
        &self,
        name: &str,
        again: bool,
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(&ImportStep),
    ) -> Result<Arc<Image>, ImageError> {
        let there = |store: &Self| match store.find(name)? {
            Some(digest) if !again => store.image(&digest, name, interrupt),
            _ => Ok(None),
        };
        if let Some(image) = there(self)? {
            return Ok(image);
        }
        // It is never completed: what is pulled is gone when it was imported. Who else wants
        // the same image waits for that.
        let wish = self.0.pulls.wish(&Digest::of(name.as_bytes()).hex(), interrupt)?;
        let Wish::Making(making) = wish else {
            let path = self.0.path.join("pulls");
            return Err(ImageError::io(
                "use",
                &path,
                io::Error::other("somebody else wrote in it"),
            ));
        };
        if let Some(image) = there(self)? {
            return Ok(image);
        }
        on_step(&ImportStep::Pulling);
        let path = making.path();
        copy(name, &path, interrupt)?;
        let (path, tag) = (path.join("layout"), Some(TAG.to_owned()));
        let layout = ImageSource::OciLayout { path, tag };
        let asked = format!("{REGISTRY}{name}");
        self.imported(&layout, &asked, &[name.to_owned()], interrupt, on_step)
    }
}

/// Has an image copied into a layout in this directory. Blocks until that is done.
fn copy(name: &str, to: &Path, interrupt: &Interrupt) -> Result<(), ImageError> {
    let from = format!("{REGISTRY}{name}");
    let failed = |why: String| ImageError::NotPulled { image: shown(&from), why };
    let words = words_file(to).map_err(|error| ImageError::io("create a file in", to, error))?;
    #[expect(
        clippy::disallowed_methods,
        reason = "no command of a model's: the operator's program, which needs this environment"
    )]
    let mut skopeo = Command::new(PROGRAM);
    // A layout with a colon in its path would have none.
    skopeo.args(["copy", "--retry-times", "3", &from, &format!("oci:layout:{TAG}")]);
    skopeo.current_dir(to).stdin(Stdio::null()).stdout(Stdio::null());
    let stderr = words.try_clone().map_err(|error| failed(error.to_string()))?;
    let mut child = skopeo.stderr(stderr).spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => failed(format!(
            "{PROGRAM} is not installed, by which images are pulled; install it, or bring the \
             image (docker save or podman save to a FILE) and name docker-archive:/FILE"
        )),
        _ => failed(format!("{PROGRAM} cannot be started: {error}")),
    })?;
    let status = wait(&mut child, interrupt, Instant::now() + PULL_LIMIT);
    match status {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(_)) => Err(failed(format!("{PROGRAM} says: {}", last_words(&words)))),
        Ok(None) if interrupt.is_interrupted() => Err(ImageError::Interrupted),
        Ok(None) => Err(failed(format!("{PROGRAM} did not end in {PULL_LIMIT:?}"))),
        Err(error) => Err(failed(format!("{PROGRAM} cannot be waited for: {error}"))),
    }
}

/// Waits for its end; `None` if it was ended, by the interrupt or at the deadline.
fn wait(
    child: &mut Child,
    interrupt: &Interrupt,
    deadline: Instant,
) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if interrupt.wait_timeout(BEAT) || Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
    }
}

/// A file for what it says, without a name: a pipe would have to be read all the time.
fn words_file(directory: &Path) -> io::Result<File> {
    let path = directory.join("words");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::unlinkat(rustix::fs::CWD, &path, AtFlags::empty())?;
    Ok(file.into())
}

/// The last line of what it said: those before are of its retries.
fn last_words(words: &File) -> String {
    let length = words.metadata().map_or(0, |about| about.len());
    let shown_bytes = length.min(LAST_WORDS);
    let mut bytes = vec![0; usize::try_from(shown_bytes).unwrap_or(0)];
    let read = words.read_exact_at(&mut bytes, length - shown_bytes);
    let text = String::from_utf8_lossy(&bytes);
    match (read, text.lines().map(str::trim).rfind(|line| !line.is_empty())) {
        (Ok(()), Some(line)) => {
            line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
        }
        _ => "nothing".to_owned(),
    }
}
