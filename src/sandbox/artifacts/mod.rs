//! Artifacts: a slot's files read, listed, archived and put for those outside of the sandbox.
//!
//! The functions here work on what a model has made and may still be changing. As everywhere in
//! the engine, every place is reached from a held directory, one component at a time (see
//! [`paths`](super::paths)), so nothing outside the slot's machine is ever seen; only regular files are
//! opened for reading, and never in a way that could block. What one request costs is bounded: in
//! memory by its own limits, in time by a deadline, in descriptors by [`MAX_DEPTH`].
//!
//! They act as the user that commands run as, on a thread of their own where that is another one
//! than ours: whoever asks is a thread of the host, whose credentials are not to be touched.
//!
//! `read` is a part of one file, `copy` all of it, `list` a listing, `archive` a `.tar.gz`; `put`
//! brings a file in, `unpack` what a tar stream has, and `owner` says whose it is then; `pump`
//! keeps the caller's reader and writer on the caller's thread. Here is what they share: the way to
//! the place that was asked for, and the smallest names of a directory.

mod archive;
mod copy;
mod list;
mod owner;
mod pump;
mod put;
mod read;
mod sparse;
mod unpack;

use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

pub(crate) use archive::archive;
pub(crate) use copy::copy;
pub(crate) use list::list;
pub(crate) use put::put;
pub(crate) use read::read;

use super::files::{RACE_TRIES, kernels, raced};
use super::paths::{PathError, Resolved, View};
use super::reach::Reach;
use super::tree::{is_dot, read_dir};
use super::user::{Purpose, on_own_thread};
use super::workspace::GONE;
use crate::artifact::ArtifactError;

/// Directories nested deeper than this below the one asked for are not descended: a walk holds a
/// descriptor a level.
const MAX_DEPTH: usize = 100;

/// Does `work` as the workspace's owner, on a thread of its own; on this one if there is no owner.
/// Refused where the workspace is gone.
fn as_owner<T: Send>(
    files: Reach<'_>,
    work: impl FnOnce() -> Result<T, ArtifactError> + Send,
) -> Result<T, ArtifactError> {
    let workspace = files.workspace();
    if !workspace.is_there() {
        return Err(ArtifactError::SandboxLost(GONE.to_owned()));
    }
    let Some(owner) = workspace.owner() else {
        return work();
    };
    let done = on_own_thread(|| {
        let _entered = owner.enter(Purpose::Files)?;
        Ok(work())
    });
    done.unwrap_or_else(|error| {
        Err(ArtifactError::Io("cannot act as the user of the sandbox".to_owned(), error))
    })
}

/// Resolves `given` and does `work` there, again if the place changed meanwhile, which `work` says
/// by an error that [`raced`].
fn at_place<T>(
    view: &View<'_>,
    given: &str,
    mut work: impl FnMut(&Resolved) -> Result<T, Failure>,
) -> Result<T, ArtifactError> {
    let mut last = Errno::AGAIN;
    for _ in 0..RACE_TRIES {
        let place = view.resolve(given).map_err(|error| no_place(error, given))?;
        match work(&place) {
            Ok(done) => return Ok(done),
            Err(Failure::Os(errno)) if raced(errno) => last = errno,
            Err(Failure::Os(errno)) => return Err(failed(given, errno)),
            Err(Failure::Known(error)) => return Err(error),
        }
    }
    Err(failed(given, last))
}

/// Why a path leads nowhere.
fn no_place(error: PathError, given: &str) -> ArtifactError {
    match error {
        PathError::Outside => ArtifactError::Outside,
        PathError::Kernel(directory) => ArtifactError::Refused(kernels(directory)),
        PathError::NoMachine(why) => ArtifactError::SandboxLost(why),
        PathError::Os(errno) => failed(given, errno),
    }
}

/// Why there is nothing at a place.
enum Failure {
    /// What the system said; the place may have changed.
    Os(Errno),
    Known(ArtifactError),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Os(errno)
    }
}

impl From<ArtifactError> for Failure {
    fn from(error: ArtifactError) -> Self {
        Self::Known(error)
    }
}

/// The error of a path, in words without a path of the host.
fn failed(given: &str, error: impl Into<io::Error>) -> ArtifactError {
    ArtifactError::Io(format!("cannot access '{given}'"), error.into())
}

/// What a place was found to be.
enum Found<'a> {
    Directory,
    Regular(&'a OsStr),
    /// A FIFO, a socket or a device.
    Other,
    Nothing,
}

fn found(place: &Resolved) -> Found<'_> {
    match (place.rest(), place.found()) {
        ([], _) => Found::Directory,
        ([name], Some(FileType::RegularFile)) => Found::Regular(name),
        ([_], Some(_)) => Found::Other,
        _ => Found::Nothing,
    }
}

/// How a [path](Resolved::path) is shown: the workspace itself is `.`.
fn shown(path: &Path) -> String {
    if path.as_os_str().is_empty() { ".".to_owned() } else { path.to_string_lossy().into_owned() }
}

/// An entry of a directory, ordered by what is to come first and then by name.
struct Entry<T> {
    late: bool,
    name: OsString,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.late, &self.name).cmp(&(other.late, &other.name))
    }
}

/// The entries of a directory that come first.
struct First<T> {
    /// In their order.
    entries: Vec<Entry<T>>,
    /// Whether the deadline came before the last entry was seen.
    late: bool,
    /// Whether there are others.
    more: bool,
}

/// The first `most` entries of the directory behind an `O_PATH` descriptor. `look` gives what is
/// to be known of an entry, and whether it comes after all those for which it says `false`; `None`
/// leaves it out, before it counts. However large the directory is, no more than `most` are held.
fn first_entries<T>(
    dir: BorrowedFd<'_>,
    most: usize,
    deadline: Instant,
    mut look: impl FnMut(&OsStr, &Stat) -> Option<(bool, T)>,
) -> Result<First<T>, Errno> {
    let mut heap: BinaryHeap<Entry<T>> = BinaryHeap::new();
    let (mut late, mut more) = (false, false);
    for entry in read_dir(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if is_dot(entry.file_name()) {
            continue;
        }
        if Instant::now() >= deadline {
            late = true;
            break;
        }
        let full = heap.len() >= most;
        // No entry of this name can be among the first, whatever it is.
        if full && heap.peek().is_none_or(|last| (last.late, last.name.as_os_str()) < (false, name))
        {
            more = true;
            continue;
        }
        // Gone, or not for us to see.
        let Ok(stat) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let Some((late, what)) = look(name, &stat) else { continue };
        heap.push(Entry { late, name: OsString::from_vec(name.as_bytes().to_vec()), what });
        if full {
            heap.pop();
            more = true;
        }
    }
    Ok(First { entries: heap.into_sorted_vec(), late, more })
}

/// Whether a directory that is not descended has anything in it.
fn has_entries(dir: BorrowedFd<'_>) -> bool {
    read_dir(dir).is_ok_and(|mut dir| dir.any(|entry| entry.is_ok_and(|e| !is_dot(e.file_name()))))
}

#[cfg(test)]
mod tests;
