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
use crate::sandbox::paths::{Resolved, View};
use crate::sandbox::tree::OPEN_DIR;
use crate::sandbox::workspace::Workspace;

/// How long a listing may take. What was not seen by then is left out.
const LIST_TIME: Duration = Duration::from_secs(60);

/// Lists a directory of the workspace, without itself, or a single file.
///
/// A directory's entries come sorted by name. A recursive listing has of each directory first its
/// directories and then its other entries, and descends into the directories, in this order, once
/// all are listed. Symlinks are shown as what they lead to, but not descended; those that lead
/// nowhere or out of the workspace are left out. What is more than [`MAX_DEPTH`] directories deep,
/// and what a minute is too short for, is left out and counts as truncation; a directory that may
/// not be read looks empty.
///
/// # Errors
/// [`ArtifactError::Outside`], [`NotFound`](ArtifactError::NotFound),
/// [`UnsupportedType`](ArtifactError::UnsupportedType) or [`Io`](ArtifactError::Io).
pub(crate) fn list(
    workspace: &Workspace,
    request: &ListArtifacts,
) -> Result<ArtifactList, ArtifactError> {
    let given = request.path.as_str();
    let most = request.max_entries.clamp(1, MAX_ARTIFACT_ENTRIES);
    as_owner(workspace, || {
        let start = at_place(workspace, given, |place| match found(place) {
            Found::Directory => {
                let dir = rustix::io::fcntl_dupfd_cloexec(place.dir(), 0)?;
                Ok(Start::Directory(Level::new(dir, place.path())))
            }
            Found::Regular(_) => Ok(Start::File(target(place)?)),
            Found::Other => Err(ArtifactError::UnsupportedType(given.to_owned()).into()),
            Found::Nothing => Err(ArtifactError::NotFound(given.to_owned()).into()),
        })?;
        match start {
            Start::File(entry) => Ok(ArtifactList { entries: vec![entry], truncated: false }),
            Start::Directory(level) => {
                let deadline = Instant::now() + LIST_TIME;
                let view = workspace.view();
                let recursive = request.recursive;
                let list = ArtifactList::default();
                let mut listing = Listing { view, recursive, most, deadline, list };
                listing.walk(level).map_err(|errno| failed(given, errno))?;
                Ok(listing.list)
            }
        }
    })
}

/// What is to be listed.
enum Start {
    File(ArtifactEntry),
    Directory(Level),
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
        let (view, recursive, path) = (&self.view, self.recursive, &level.path);
        let dir = level.dir.as_fd();
        let first = first_entries(dir, room, self.deadline, |name, stat| {
            let (entry, descend) = look(view, path, name, stat)?;
            Some((recursive && !entry.is_dir, (entry, recursive && descend)))
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
