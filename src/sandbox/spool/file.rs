//! One file with a command's output, in a home directory whose owner may be an adversary.
//!
//! It is made new, in a directory `.tool-output` that is reached from the held home without
//! following a symlink. If the model put something else there, there is no file, and it is told
//! why.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::Output;
use crate::sandbox::tree::OPEN_DIR;
use crate::sandbox::workspace::Workspace;

/// The directory of these files, in the home directory of each slot: outside of the workspace,
/// where they would be part of what the model makes.
pub(crate) const DIRECTORY: &str = ".tool-output";

/// How often a name is tried that the model could have guessed.
const GUESSABLE_NAMES: usize = 8;
/// How often the directory is made again, if it vanishes.
const DIRECTORY_TRIES: usize = 8;

/// A file that was made, open for writing at its end.
pub(super) struct OutputFile {
    file: File,
    dir: OwnedFd,
    name: String,
}

impl OutputFile {
    /// Makes the file for one output of a call. `number` is the call's, if it has one yet.
    ///
    /// # Errors
    /// Why there is none, as one line.
    pub(super) fn create(
        workspace: &Workspace,
        number: &Mutex<Option<u64>>,
        output: Output,
    ) -> Result<Self, String> {
        let failed = |errno: Errno| {
            let error = io::Error::from(errno).to_string();
            let text = error.split(" (os error").next().unwrap_or_default();
            format!("{DIRECTORY}: {text}")
        };
        let dir = open_directory(workspace).map_err(failed)?;
        // The calls of a workspace are counted, so that a recorded run has the same names again.
        let mut tries = 0;
        loop {
            tries += 1;
            let name = if tries <= GUESSABLE_NAMES {
                format!("{}-{}.txt", call_number(workspace, number, tries > 1), output.name())
            } else {
                format!("{}-{}.txt", uuid::Uuid::new_v4().simple(), output.name())
            };
            match create_new(&dir, &name) {
                Ok(fd) => return Ok(Self { file: File::from(fd), dir, name }),
                Err(Errno::EXIST) if tries <= GUESSABLE_NAMES => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Its path, of which commands see the home directory at `home`.
    pub(super) fn path(&self, home: &Path) -> String {
        home.join(DIRECTORY).join(&self.name).to_string_lossy().into_owned()
    }

    /// Writes at its end. How much was written, also before an error.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<u64, (u64, String)> {
        let mut written = 0;
        while written < bytes.len() {
            match self.file.write(&bytes[written..]) {
                Ok(0) => return Err((written as u64, "the disk takes no more".to_owned())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let text = error.to_string();
                    let text = text.split(" (os error").next().unwrap_or_default().to_owned();
                    return Err((written as u64, text));
                }
            }
        }
        Ok(written as u64)
    }

    /// Whether its path leads to it.
    pub(super) fn is_at_its_place(&self, workspace: &Workspace) -> bool {
        let there =
            rustix::fs::openat(workspace.home_root().dir(), DIRECTORY, OPEN_DIR, Mode::empty())
                .and_then(|dir| rustix::fs::statat(&dir, &*self.name, AtFlags::SYMLINK_NOFOLLOW));
        match (there, rustix::fs::fstat(&self.file)) {
            (Ok(there), Ok(ours)) => (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino),
            _ => false,
        }
    }

    /// Takes it back, empty as it is.
    pub(super) fn remove(self) {
        let _ = rustix::fs::unlinkat(self.dir.as_fd(), &*self.name, AtFlags::empty());
    }
}

/// The directory, made if it is missing, as an `O_PATH` descriptor.
fn open_directory(workspace: &Workspace) -> Result<OwnedFd, Errno> {
    let root = workspace.home_root().dir();
    let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    let mut tries = 0;
    loop {
        tries += 1;
        match rustix::fs::mkdirat(root, DIRECTORY, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        match rustix::fs::openat(root, DIRECTORY, OPEN_DIR, Mode::empty()) {
            Err(Errno::NOENT) if tries < DIRECTORY_TRIES => {}
            opened => return opened,
        }
    }
}

/// Makes a file that did not exist.
fn create_new(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::EXCL
        | OFlags::APPEND
        | OFlags::NOFOLLOW
        | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    rustix::fs::openat(dir, name, flags, mode)
}

/// The number of a call; the workspace's next one if it has none, or if it `must_change`.
fn call_number(workspace: &Workspace, number: &Mutex<Option<u64>>, must_change: bool) -> u64 {
    let mut number = number.lock();
    match *number {
        Some(number) if !must_change => number,
        _ => *number.insert(workspace.next_output()),
    }
}
