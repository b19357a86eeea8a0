//! Files put into a slot: a file, or what a tar stream has ([`unpack`](super::unpack)).
//!
//! Nothing half is left. A file is written under a name of ours and renamed when it is whole; a
//! directory that is new, too. What goes into a directory that exists is whole, entry by entry.
//! Where that ends early, the error says how many are in place.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::owner::{Owner, set_mode, set_mtime};
use super::unpack::unpack;
use super::{Failure, at_place, failed, no_place, pump};
use crate::artifact::{ArtifactError, PutFiles, PutKind, PutSummary};
use crate::sandbox::files::{RACE_TRIES, raced};
use crate::sandbox::limits::{Limits, Room};
use crate::sandbox::paths::{Resolved, View};
use crate::sandbox::reach::Reach;
use crate::sandbox::tree::{self, OPEN_DIR};

/// How long a put may take.
const PUT_TIME: Duration = Duration::from_secs(3600);
/// How long the removal of what is left of one that failed may take.
const UNDO_TIME: Duration = Duration::from_secs(60);
/// How much is written at a time. Where all of it is zeros, it becomes a hole.
const PIECE: usize = 64 * 1024;
/// The mode of a new file that has none of its own, and of directories on the way.
const FILE_MODE: u32 = 0o644;
pub(super) const DIRECTORY_MODE: u32 = 0o755;

/// Puts what `from` has into the slot. Blocks for as long as `from` and the disk need, an hour at
/// most as far as `from` lets it.
///
/// # Errors
/// See [`ArtifactError`].
pub(crate) fn put<'a>(
    files: impl Into<Reach<'a>>,
    limits: &Limits,
    request: &PutFiles,
    from: &mut (dyn Read + Send),
) -> Result<PutSummary, ArtifactError> {
    if let Some(problem) = request.problem() {
        return Err(ArtifactError::Invalid(problem));
    }
    let files = files.into();
    let mut room = limits.room(files.workspace());
    let done = pump::reading(files, from, |source| {
        let view = files.view();
        let owner = Owner::find(files, &view, request)?;
        let mut put = Putting { view, owner, room: &mut room, deadline: Instant::now() + PUT_TIME };
        match request.kind {
            PutKind::File => put.file(request, source),
            PutKind::Tar => put.tree(request, source),
        }
    });
    limits.was_filled(files.workspace());
    done
}

/// The state of one put.
pub(super) struct Putting<'a> {
    pub(super) view: View<'a>,
    pub(super) owner: Owner,
    room: &'a mut Room,
    deadline: Instant,
}

/// A directory that was held or made for something new in it.
struct Parent {
    dir: OwnedFd,
    name: OsString,
    /// Its path, as commands see it.
    path: PathBuf,
    made: Made,
}

/// Directories that were made on the way, each in the one before; removed again unless they are
/// kept.
struct Made(Vec<(OwnedFd, OsString)>);

impl Drop for Made {
    fn drop(&mut self) {
        for (dir, name) in self.0.drain(..).rev() {
            // One that is not empty is of use to others by now.
            let _ = rustix::fs::unlinkat(&dir, &name, AtFlags::REMOVEDIR);
        }
    }
}

impl Putting<'_> {
    fn file(
        &mut self,
        request: &PutFiles,
        source: &mut dyn Read,
    ) -> Result<PutSummary, ArtifactError> {
        let given = request.path.as_str();
        if let Some(size) = request.size {
            self.room.may_have(size).map_err(|why| disk_full(given, why))?;
        }
        let parent = self.parent(given, false)?;
        let mode = request.mode.unwrap_or_else(|| mode_of(&parent).unwrap_or(FILE_MODE));
        let new = NewFile::create(parent.dir.as_fd(), given)?;
        let bytes = self.fill(&new.file, given, source, request.size)?;
        if let Some(size) = request.size
            && size != bytes
        {
            let text = format!("'{given}' was said to have {size} bytes, and {bytes} came");
            return Err(ArtifactError::Invalid(text));
        }
        new.finish(&self.owner, None, mode, None)
            .and_then(|()| new.rename(&parent.name))
            .map_err(|errno| failed(given, errno))?;
        drop(new);
        let path = parent.path.to_string_lossy().into_owned();
        parent.keep(&self.owner).map_err(|errno| failed(given, errno))?;
        Ok(PutSummary { path, bytes, entry_count: 1, skipped: 0 })
    }

    fn tree(
        &mut self,
        request: &PutFiles,
        source: &mut dyn Read,
    ) -> Result<PutSummary, ArtifactError> {
        let given = request.path.as_str();
        let existing = at_place(&self.view, given, |place| match (place.rest(), place.found()) {
            ([], _) => Ok(Some(place.absolute())),
            ([_], Some(_)) => Err(not_a_directory(given).into()),
            _ => Ok(None),
        })?;
        if let Some(path) = existing {
            let mut summary = PutSummary::default();
            let unpacked = unpack(self, &path, false, source, &mut summary);
            summary.path = path.to_string_lossy().into_owned();
            return match unpacked {
                Ok(()) => Ok(summary),
                Err(error) if summary.entry_count == 0 => Err(error),
                Err(source) => Err(ArtifactError::Partial {
                    put: summary.entry_count,
                    source: Box::new(source),
                }),
            };
        }
        let parent = self.parent(given, true)?;
        let staged = Staged::create(&parent, given)?;
        let path = parent.path.with_file_name(&staged.name);
        let mut summary = PutSummary::default();
        self.take(given, 0, 1)?;
        unpack(self, &path, true, source, &mut summary)?;
        staged.rename(&parent.name).map_err(|errno| failed(given, errno))?;
        summary.path = parent.path.to_string_lossy().into_owned();
        parent.keep(&self.owner).map_err(|errno| failed(given, errno))?;
        Ok(summary)
    }

    /// The directory that something is to be put into, with its name there. Missing directories on
    /// the way are made.
    fn parent(&mut self, given: &str, is_directory: bool) -> Result<Parent, ArtifactError> {
        let mut last = Errno::AGAIN;
        for _ in 0..RACE_TRIES {
            let place = self.view.resolve(given).map_err(|error| no_place(error, given))?;
            match (place.rest(), place.found()) {
                ([], _) => {
                    let text = format!("'{given}' is a directory: name the file in it");
                    return Err(ArtifactError::Invalid(text));
                }
                ([_], Some(FileType::RegularFile)) if !is_directory => {}
                ([_], Some(_)) => return Err(ArtifactError::NotAFile(given.to_owned())),
                ([_, ..], Some(_)) => return Err(not_a_directory(given)),
                _ => {}
            }
            match self.make_way(&place) {
                Ok(parent) => return Ok(parent),
                Err(Failure::Os(errno)) if raced(errno) => last = errno,
                Err(Failure::Os(errno)) => return Err(failed(given, errno)),
                Err(Failure::Known(error)) => return Err(error),
            }
        }
        Err(failed(given, last))
    }

    fn make_way(&mut self, place: &Resolved) -> Result<Parent, Failure> {
        let (name, dirs) = place.rest().split_last().ok_or(Errno::ISDIR)?;
        let mut made = Made(Vec::new());
        let mut dir = rustix::io::fcntl_dupfd_cloexec(place.dir(), 0)?;
        for name in dirs {
            let next = self.directory(&dir, name, &place.absolute().to_string_lossy())?;
            made.0.push((std::mem::replace(&mut dir, next), name.clone()));
        }
        Ok(Parent { dir, name: name.clone(), path: place.absolute(), made })
    }

    /// Makes a directory, unless it is there.
    pub(super) fn directory(
        &mut self,
        dir: &OwnedFd,
        name: &OsString,
        path: &str,
    ) -> Result<OwnedFd, Failure> {
        match make_directory(dir.as_fd(), name) {
            Ok(made) => {
                self.take(path, 0, 1)?;
                Ok(made)
            }
            Err(Errno::EXIST) => Ok(rustix::fs::openat(dir, name, OPEN_DIR, Mode::empty())?),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes room for what is to be at `path`.
    pub(super) fn take(&mut self, path: &str, bytes: u64, files: u64) -> Result<(), ArtifactError> {
        self.room.take(bytes, files).map_err(|why| disk_full(path, why))
    }

    /// Fills a new file; gives its size. Pieces that are zeros become holes.
    pub(super) fn fill(
        &mut self,
        file: &File,
        path: &str,
        source: &mut dyn Read,
        size: Option<u64>,
    ) -> Result<u64, ArtifactError> {
        self.take(path, size.unwrap_or(0), 1)?;
        let mut taken = size.unwrap_or(0);
        let mut buffer = vec![0; PIECE];
        let (mut at, mut end) = (0u64, 0u64);
        loop {
            if Instant::now() >= self.deadline {
                return Err(failed(path, Errno::TIMEDOUT));
            }
            let read = read_full(source, &mut buffer)
                .map_err(|error| ArtifactError::Io(format!("reading '{path}'"), error))?;
            let piece = &buffer[..read];
            at += read as u64;
            self.room.may_have(at).map_err(|why| disk_full(path, why))?;
            if piece.iter().any(|byte| *byte != 0) {
                if at > taken {
                    self.take(path, at - taken, 0)?;
                    taken = at;
                }
                let offset = at - read as u64;
                file.write_all_at(piece, offset).map_err(|error| not_written(path, error))?;
                end = at;
            }
            if read < PIECE {
                break;
            }
        }
        if end < at {
            // It ends with a hole.
            file.set_len(at).map_err(|error| not_written(path, error))?;
        }
        Ok(at)
    }
}

impl Parent {
    /// The directories that were made on the way stay, and are `owner`'s.
    fn keep(mut self, owner: &Owner) -> Result<(), Errno> {
        for (dir, name) in std::mem::take(&mut self.made.0) {
            let made = rustix::fs::openat(&dir, &name, OPEN_DIR, Mode::empty())?;
            owner.give(made.as_fd(), None)?;
        }
        Ok(())
    }
}

/// A file under a name of ours, which is removed again unless it gets its own.
pub(super) struct NewFile<'a> {
    dir: BorrowedFd<'a>,
    name: OsString,
    pub(super) file: File,
    is_kept: std::cell::Cell<bool>,
}

impl<'a> NewFile<'a> {
    pub(super) fn create(dir: BorrowedFd<'a>, path: &str) -> Result<Self, ArtifactError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create =
            |name: &OsString| rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR);
        let (name, file) = under_own_name(create).map_err(|errno| not_written(path, errno))?;
        Ok(Self { dir, name, file: File::from(file), is_kept: std::cell::Cell::new(false) })
    }

    /// Gives it its attributes. The owner may be one of the archive's, by its numbers.
    pub(super) fn finish(
        &self,
        owner: &Owner,
        numbers: Option<(u64, u64)>,
        mode: u32,
        mtime: Option<u64>,
    ) -> Result<(), Errno> {
        set_mode(self.file.as_fd(), mode)?;
        if let Some(mtime) = mtime {
            set_mtime(self.file.as_fd(), mtime)?;
        }
        // Last, since its maker may not change what is another's.
        owner.give(self.file.as_fd(), numbers)
    }

    /// Gives it its name, in the place of what has it.
    pub(super) fn rename(&self, name: &OsString) -> Result<(), Errno> {
        rustix::fs::renameat(self.dir, &self.name, self.dir, name)?;
        self.is_kept.set(true);
        Ok(())
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.is_kept.get() {
            let _ = rustix::fs::unlinkat(self.dir, &self.name, AtFlags::empty());
        }
    }
}

/// Makes a directory, which has its mode whatever the umask of the host is.
fn make_directory(dir: BorrowedFd<'_>, name: &OsString) -> Result<OwnedFd, Errno> {
    let mode = Mode::from_raw_mode(DIRECTORY_MODE);
    rustix::fs::mkdirat(dir, name, mode)?;
    // Of one that is only held by its path no mode can be set.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    rustix::fs::fchmod(&made, mode)?;
    Ok(made)
}

/// A directory under a name of ours, which is removed again with all that is in it unless it gets
/// its own.
struct Staged<'a> {
    parent: BorrowedFd<'a>,
    name: OsString,
    is_kept: bool,
}

impl<'a> Staged<'a> {
    fn create(parent: &'a Parent, path: &str) -> Result<Self, ArtifactError> {
        let dir = parent.dir.as_fd();
        let make = |name: &OsString| make_directory(dir, name).map(drop);
        let (name, ()) = under_own_name(make).map_err(|errno| not_written(path, errno))?;
        Ok(Self { parent: dir, name, is_kept: false })
    }

    fn rename(mut self, name: &OsString) -> Result<(), Errno> {
        let (dir, flags) = (self.parent, RenameFlags::NOREPLACE);
        rustix::fs::renameat_with(dir, &self.name, dir, name, flags)?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let opened = rustix::fs::openat(self.parent, &self.name, OPEN_DIR, Mode::empty());
        if let Ok(dir) = opened
            && let Err(error) = tree::empty(dir.as_fd(), None, Instant::now() + UNDO_TIME)
        {
            log::debug!("what is left of a put that failed: {}", error.source);
        }
        let _ = rustix::fs::unlinkat(self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

/// Does something with a name that nothing has.
fn under_own_name<T>(
    mut act: impl FnMut(&OsString) -> Result<T, Errno>,
) -> Result<(OsString, T), Errno> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut last = Errno::EXIST;
    for _ in 0..RACE_TRIES {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = OsString::from(format!(".put-{}-{number}", std::process::id()));
        match act(&name) {
            Ok(done) => return Ok((name, done)),
            Err(Errno::EXIST) => last = Errno::EXIST,
            Err(errno) => return Err(errno),
        }
    }
    Err(last)
}

/// The mode of the file that is to be replaced.
fn mode_of(parent: &Parent) -> Option<u32> {
    let stat = rustix::fs::statat(&parent.dir, &parent.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    is_file.then_some(stat.st_mode & 0o777)
}

/// Reads until the buffer is full or there is nothing more.
fn read_full(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match source.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The error of writing to a path: a full file system is one of its own.
pub(super) fn not_written(path: &str, error: impl Into<io::Error>) -> ArtifactError {
    let error = error.into();
    match Errno::from_io_error(&error) {
        Some(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
            disk_full(path, io::Error::from(errno).to_string())
        }
        _ => failed(path, error),
    }
}

pub(super) fn disk_full(path: &str, why: String) -> ArtifactError {
    ArtifactError::DiskFull { path: path.to_owned(), why }
}

pub(super) fn not_a_directory(path: &str) -> ArtifactError {
    ArtifactError::Invalid(format!("'{path}' is not a directory, or something on the way is none"))
}
