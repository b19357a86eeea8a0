//! A listing of a directory, or of one file.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;

use super::{
    Found, MAX_DEPTH, as_owner, at_place, failed, first_entries, found, has_entries, shown,
};
use crate::artifact::{
    ArtifactEntry, ArtifactError, ArtifactList, ListArtifacts, MAX_ARTIFACT_ENTRIES,
};
use crate::sandbox::paths::{Resolved, View, is_kernels};
use crate::sandbox::reach::Reach;
use crate::sandbox::tree::OPEN_DIR;

/// How long a listing may take. What was not seen by then is left out.
const LIST_TIME: Duration = Duration::from_secs(60);

/// Lists a directory, without itself, or a single file.
///
/// A directory's entries come sorted by name. A recursive listing has of each directory first its
/// directories and then its other entries, and descends into the directories, in this order, once
/// all are listed. Symlinks are shown as what they lead to, but not descended; those that lead
/// nowhere are left out, and in a slot's directories those that lead out of them. The kernel's
/// directories are not descended. What is more than [`MAX_DEPTH`] directories deep,
/// and what a minute is too short for, is left out and counts as truncation; a directory that may
/// not be read looks empty.
///
/// # Errors
/// [`ArtifactError::Outside`], [`NotFound`](ArtifactError::NotFound),
/// [`UnsupportedType`](ArtifactError::UnsupportedType) or [`Io`](ArtifactError::Io).
pub(crate) fn list<'a>(
    files: impl Into<Reach<'a>>,
    request: &ListArtifacts,
) -> Result<ArtifactList, ArtifactError> {
    let files = files.into();
    let given = request.path.as_str();
    let most = request.max_entries.clamp(1, MAX_ARTIFACT_ENTRIES);
    as_owner(files, || {
        let view = files.view();
        let start = at_place(&view, given, |place| match found(place) {
            Found::Directory => {
                let dir = rustix::io::fcntl_dupfd_cloexec(place.dir(), 0)?;
                Ok(Start::Directory(Level::new(dir, place.path()), place.is_in_root()))
            }
            Found::Regular(_) => Ok(Start::File(target(place)?)),
            Found::Other => Err(ArtifactError::UnsupportedType(given.to_owned()).into()),
            Found::Nothing => Err(ArtifactError::NotFound(given.to_owned()).into()),
        })?;
        // What is below is looked at without a walk to it.
        view.lower();
        match start {
            Start::File(entry) => Ok(ArtifactList { entries: vec![entry], truncated: false }),
            Start::Directory(level, in_root) => {
                let deadline = Instant::now() + LIST_TIME;
                // A link out of the slot's directories is of interest only to who looks outside.
                let view = if in_root { view } else { files.view_of_directories() };
                let recursive = request.recursive;
                let list = ArtifactList::default();
                let mut listing = Listing { view, in_root, recursive, most, deadline, list };
                listing.walk(level).map_err(|errno| failed(given, errno))?;
                Ok(listing.list)
            }
        }
    })
}

/// What is to be listed.
enum Start {
    File(ArtifactEntry),
    /// And whether it is in none of the slot's directories.
    Directory(Level, bool),
}

/// A directory whose entries are listed, and whose directories are still to be descended.
struct Level {
    dir: OwnedFd,
    path: PathBuf,
    below: VecDeque<OsString>,
}

impl Level {
    fn new(dir: OwnedFd, path: PathBuf) -> Self {
        Self { dir, path, below: VecDeque::new() }
    }
}

/// The state of one listing.
struct Listing<'a> {
    view: View<'a>,
    in_root: bool,
    recursive: bool,
    most: usize,
    deadline: Instant,
    list: ArtifactList,
}

impl Listing<'_> {
    /// Lists the directory, and what is below it. All that waits to be descended has been listed,
    /// so it is bounded as the listing is.
    fn walk(&mut self, mut start: Level) -> Result<(), Errno> {
        self.directory(&mut start)?;
        let mut stack = vec![start];
        while let Some(level) = stack.last_mut() {
            if self.list.entries.len() > self.most || Instant::now() >= self.deadline {
                break;
            }
            let Some(name) = level.below.pop_front() else {
                stack.pop();
                continue;
            };
            // It is gone, or a symlink now.
            let Ok(dir) = rustix::fs::openat(&level.dir, &name, OPEN_DIR, Mode::empty()) else {
                continue;
            };
            let mut below = Level::new(dir, level.path.join(&name));
            if stack.len() > MAX_DEPTH {
                self.list.truncated |= has_entries(below.dir.as_fd());
            } else if self.directory(&mut below).is_ok() {
                stack.push(below);
            }
        }
        self.list.truncated |= self.list.entries.len() > self.most || !stack.is_empty();
        self.list.entries.truncate(self.most);
        Ok(())
    }

    /// Lists one directory, and notes what is to be descended. One entry more than is wanted tells
    /// that there are more.
    fn directory(&mut self, level: &mut Level) -> Result<(), Errno> {
        let room = self.most.saturating_add(1).saturating_sub(self.list.entries.len());
        let (view, in_root, recursive) = (&self.view, self.in_root, self.recursive);
        let path = &level.path;
        let dir = level.dir.as_fd();
        let first = first_entries(dir, room, self.deadline, |name, stat| {
            let (entry, is_directory) = look(view, path, name, stat)?;
            let descend = recursive && is_directory && !(in_root && is_kernels(&path.join(name)));
            Some((recursive && !entry.is_dir, (entry, descend)))
        })?;
        self.list.truncated |= first.late;
        for entry in first.entries {
            let (shown, descend) = entry.what;
            self.list.entries.push(shown);
            if descend {
                level.below.push_back(entry.name);
            }
        }
        Ok(())
    }
}

/// The entry `name` of the directory `path`, and whether it is a directory itself. `None` for a
/// symlink that leads nowhere.
fn look(view: &View<'_>, path: &Path, name: &OsStr, stat: &Stat) -> Option<(ArtifactEntry, bool)> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let place = view.resolve_in(path, name).ok()?;
            Some((target(&place).ok()?, false))
        }
        kind => Some((entry(&path.join(name), stat), kind == FileType::Directory)),
    }
}

/// The entry of a place that was resolved.
fn target(place: &Resolved) -> Result<ArtifactEntry, Errno> {
    let stat = match place.rest() {
        [] => rustix::fs::fstat(place.dir())?,
        [name] => rustix::fs::statat(place.dir(), name, AtFlags::SYMLINK_NOFOLLOW)?,
        _ => return Err(Errno::NOENT),
    };
    // It was none when it was resolved.
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    Ok(entry(&place.path(), &stat))
}

fn entry(path: &Path, stat: &Stat) -> ArtifactEntry {
    ArtifactEntry {
        path: shown(path),
        is_dir: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime: stat.st_mtime as f64 + stat.st_mtime_nsec as f64 / 1e9,
    }
}
