//! An archive of a workspace, or of any directory, written as it is made: a `.tar.gz` or a tar
//! stream.
//!
//! It has regular files, directories and symlinks, under their paths from the workspace, or from
//! the root directory (without what is in `/proc`, `/dev` and `/sys`), with modes (without
//! set-user-id and its kin) and modification times. They belong to root, by number, and to nobody
//! by name: who the sandbox ran as concerns nobody. FIFOs, sockets and devices are left out, and so
//! is what the sandbox's user may not read. Hard links become files of their own. Holes in files
//! stay holes (`sparse`).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::{Compression, GzBuilder};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use tar::{EntryType, Header};

use super::sparse::{self, Pieces};
use super::{Found, MAX_DEPTH, at_place, first_entries, found, has_entries, pump};
use crate::artifact::{ArchiveArtifacts, ArchiveFormat, ArchiveSummary, ArtifactError};
use crate::sandbox::files::open_regular;
use crate::sandbox::paths::is_kernels;
use crate::sandbox::reach::Reach;
use crate::sandbox::tree::OPEN_DIR;

/// How long an archive may take that may have so many bytes: five minutes, and more for one that is
/// large, up to six hours.
fn time_for(max_bytes: u64) -> Duration {
    const LEAST: u64 = 300;
    const MOST: u64 = 6 * 3600;
    /// What is made in a second, at least.
    const BYTES: u64 = 4 << 20;
    Duration::from_secs((max_bytes / BYTES).clamp(LEAST, MOST))
}

/// How many bytes of files an archive of at most so many bytes may have: what is compressed better
/// than that is made to keep its reader busy.
fn most_uncompressed(max_bytes: u64) -> u64 {
    /// A small archive, too, may have as much.
    const LEAST: u64 = 1 << 30;
    const RATIO: u64 = 32;
    max_bytes.saturating_mul(RATIO).max(LEAST)
}

/// Bytes of a symlink's target that a header has room for.
const LINK_NAME_BYTES: usize = 100;

/// Writes an archive of a directory (with itself, unless it is the workspace) or of a single file
/// to `into`. Blocks for as long as the disk and `into` need, five minutes at most – more
/// for one that may be large –, as far as `into` lets it.
///
/// Sorted by name, each directory before what is in it. What is more than [`MAX_DEPTH`]
/// directories deep is left out and counts as truncation. A path that is no file or directory
/// gives an empty archive.
///
/// # Errors
/// [`ArtifactError::Outside`], [`NotFound`](ArtifactError::NotFound),
/// [`TooLarge`](ArtifactError::TooLarge) or [`Io`](ArtifactError::Io), also those of `into`.
pub(crate) fn archive<'a>(
    files: impl Into<Reach<'a>>,
    request: &ArchiveArtifacts,
    into: &mut (dyn Write + Send),
) -> Result<ArchiveSummary, ArtifactError> {
    archive_within(files.into(), request, into, time_for(request.max_bytes))
}

/// [`archive`] with another time limit.
pub(super) fn archive_within(
    files: Reach<'_>,
    request: &ArchiveArtifacts,
    into: &mut (dyn Write + Send),
    time: Duration,
) -> Result<ArchiveSummary, ArtifactError> {
    pump::writing(files, into, move |into| {
        let given = request.path.as_str();
        let start = at_place(&files.view(), given, |place| {
            let dir = || rustix::io::fcntl_dupfd_cloexec(place.dir(), 0);
            let path = in_archive(place.path());
            match found(place) {
                Found::Directory => Ok(Start::Directory(dir()?, path, place.is_in_root())),
                Found::Regular(name) => Ok(Start::File(dir()?, name.to_owned(), path)),
                Found::Other => Ok(Start::Other),
                Found::Nothing => Err(ArtifactError::NotFound(given.to_owned()).into()),
            }
        })?;
        let deadline = Instant::now() + time;
        let max = request.max_bytes;
        let mut limited = Limited { into, bytes: 0, max, too_large: None, broken: false };
        let (mut uncompressed, most) = (0, most_uncompressed(max));
        let counted = (&mut uncompressed, most);
        let limits = (request.max_entries, deadline);
        let written = match request.format {
            ArchiveFormat::Tar => write(start, limits, counted, &mut limited)
                .and_then(|(into, done)| into.flush().map(|()| done)),
            ArchiveFormat::TarGz => {
                let gzip = GzBuilder::new().mtime(0).write(&mut limited, Compression::default());
                write(start, limits, counted, gzip)
                    .and_then(|(gzip, done)| gzip.finish()?.flush().map(|()| done))
            }
        };
        match (written, limited.too_large) {
            (Err(_), None) if uncompressed > most => {
                Err(ArtifactError::TooLarge { bytes: uncompressed, max: most })
            }
            (Ok((count, truncated)), _) => {
                Ok(ArchiveSummary { bytes: limited.bytes, entry_count: count as u64, truncated })
            }
            (Err(_), Some(bytes)) => Err(ArtifactError::TooLarge { bytes, max }),
            (Err(error), None) => {
                Err(ArtifactError::Io("cannot write the archive".to_owned(), error))
            }
        }
    })
}

/// The name of a place: nothing in an archive begins with `/`.
fn in_archive(path: PathBuf) -> PathBuf {
    path.strip_prefix("/").map_or_else(|_| path.clone(), Path::to_owned)
}

/// Writes the archive: how many entries it has, and whether there are more. `uncompressed` is how
/// many bytes of files it had, and how many it may have.
fn write<W: Write>(
    start: Start,
    (most, deadline): (usize, Instant),
    uncompressed: (&mut u64, u64),
    into: W,
) -> io::Result<(W, (usize, bool))> {
    let (bytes, most_uncompressed) = uncompressed;
    let mut archiving = Archiving {
        tar: tar::Builder::new(into),
        most,
        deadline,
        count: 0,
        truncated: false,
        uncompressed: 0,
        most_uncompressed,
    };
    let written = archiving.start(start);
    *bytes = archiving.uncompressed;
    written?;
    let Archiving { tar, count, truncated, .. } = archiving;
    Ok((tar.into_inner()?, (count, truncated)))
}

/// What is to be archived.
enum Start {
    /// Its path, and whether it is in none of the slot's directories.
    Directory(OwnedFd, PathBuf, bool),
    /// A file in a directory, and its path.
    File(OwnedFd, OsString, PathBuf),
    Other,
}

/// A directory that is in the archive, and its entries that are not yet.
struct Level {
    dir: OwnedFd,
    path: PathBuf,
    pending: VecDeque<(OsString, FileType)>,
}

/// The state of one archive.
struct Archiving<W: Write> {
    tar: tar::Builder<W>,
    most: usize,
    deadline: Instant,
    count: usize,
    truncated: bool,
    /// Bytes of files so far, and how many there may be.
    uncompressed: u64,
    most_uncompressed: u64,
}

impl<W: Write> Archiving<W> {
    fn start(&mut self, start: Start) -> io::Result<()> {
        match start {
            Start::Other => Ok(()),
            Start::File(dir, name, path) => self.file(dir.as_fd(), &name, &path),
            Start::Directory(dir, path, in_root) => {
                if !path.as_os_str().is_empty() && !self.add_directory(&dir, &path)? {
                    return Ok(());
                }
                self.tree(dir, path, in_root)
            }
        }
    }

    /// What is below a directory.
    fn tree(&mut self, dir: OwnedFd, path: PathBuf, in_root: bool) -> io::Result<()> {
        let pending = self.entries(dir.as_fd())?;
        let mut stack = vec![Level { dir, path, pending }];
        while let Some(level) = stack.last_mut() {
            let Some((name, kind)) = level.pending.pop_front() else {
                stack.pop();
                continue;
            };
            check(self.deadline)?;
            let (dir, path) = (level.dir.as_fd(), level.path.join(&name));
            match kind {
                FileType::Directory => {
                    // It is gone, or a symlink now.
                    let Ok(dir) = rustix::fs::openat(dir, &name, OPEN_DIR, Mode::empty()) else {
                        continue;
                    };
                    if !self.add_directory(&dir, &path)? {
                        break;
                    }
                    if in_root && is_kernels(&path) {
                        continue;
                    }
                    if stack.len() > MAX_DEPTH {
                        self.truncated |= has_entries(dir.as_fd());
                        continue;
                    }
                    // One that may not be read looks empty.
                    let Ok(pending) = self.entries(dir.as_fd()) else {
                        check(self.deadline)?;
                        continue;
                    };
                    self.truncated |= trim(&mut stack, self.room().saturating_sub(pending.len()));
                    stack.push(Level { dir, path, pending });
                }
                FileType::Symlink => self.symlink(dir, &name, &path)?,
                _ => self.file(dir, &name, &path)?,
            }
            if self.truncated && self.count >= self.most {
                break;
            }
        }
        Ok(())
    }

    /// How many entries are to be looked for. One more than may be added tells that there are more.
    fn room(&self) -> usize {
        self.most.saturating_add(1).saturating_sub(self.count)
    }

    fn entries(&mut self, dir: BorrowedFd<'_>) -> io::Result<VecDeque<(OsString, FileType)>> {
        let first = first_entries(dir, self.room(), self.deadline, |_, stat| {
            let kind = FileType::from_raw_mode(stat.st_mode);
            let kept = [FileType::RegularFile, FileType::Directory, FileType::Symlink];
            kept.contains(&kind).then_some((false, kind))
        })?;
        if first.late {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Then there are too many; even if some that are kept turn out to be unreadable.
        self.truncated |= first.more;
        Ok(first.entries.into_iter().map(|entry| (entry.name, entry.what)).collect())
    }

    /// Whether another entry may be added. It exists, so otherwise there are more than may be.
    fn admit(&mut self) -> bool {
        let admitted = self.count < self.most;
        if admitted {
            self.count += 1;
        } else {
            self.truncated = true;
        }
        admitted
    }

    /// Adds a directory without its content, unless there are too many entries.
    fn add_directory(&mut self, dir: &OwnedFd, path: &Path) -> io::Result<bool> {
        let stat = rustix::fs::fstat(dir)?;
        if !self.admit() {
            return Ok(false);
        }
        let mut header = header(EntryType::Directory, &stat);
        // The empty component is a slash at the end, as directories have it.
        self.tar.append_data(&mut header, path.join(""), io::empty())?;
        Ok(true)
    }

    /// Adds a symlink as it is, wherever it leads, if it still is one.
    fn symlink(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: &Path) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(held) = rustix::fs::openat(dir, name, flags, Mode::empty()) else { return Ok(()) };
        let stat = rustix::fs::fstat(&held)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok(());
        }
        let target = rustix::fs::readlinkat(&held, c"", Vec::new())?;
        if !self.admit() {
            return Ok(());
        }
        let mut header = header(EntryType::Symlink, &stat);
        if target.as_bytes().len() <= LINK_NAME_BYTES {
            // `append_link` would tidy it up.
            header.set_link_name_literal(target.as_bytes())?;
            self.tar.append_data(&mut header, path, io::empty())
        } else {
            self.tar.append_link(&mut header, path, Path::new(OsStr::from_bytes(target.as_bytes())))
        }
    }

    /// Adds a regular file, if it still is one and may be read.
    fn file(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: &Path) -> io::Result<()> {
        let Ok(Some(file)) = open_regular(dir, name, OFlags::RDONLY) else { return Ok(()) };
        let stat = rustix::fs::fstat(&file)?;
        if !self.admit() {
            return Ok(());
        }
        let mut header = header(EntryType::Regular, &stat);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let pieces = sparse::pieces(&file, size, self.deadline)?;
        let length = sparse::length(&pieces);
        self.uncompressed = self.uncompressed.saturating_add(length);
        if self.uncompressed > self.most_uncompressed {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let before = if length < size {
            sparse::describe(&mut header, &pieces, size)
        } else {
            header.set_size(size);
            Vec::new()
        };
        // Exactly as long as its header says, also if it grows or shrinks meanwhile.
        let data = Pieces::new(&file, pieces, self.deadline);
        self.tar.append_data(&mut header, path, before.as_slice().chain(data))
    }
}

/// Leaves `most` pending entries: those that come first, which are those of the last levels. So
/// what is held is bounded by the entries of the archive, however deep it is. Whether any was left
/// out.
fn trim(stack: &mut [Level], most: usize) -> bool {
    let mut over =
        stack.iter().map(|level| level.pending.len()).sum::<usize>().saturating_sub(most);
    let trimmed = over > 0;
    for level in stack {
        let left = level.pending.len().saturating_sub(over);
        over -= level.pending.len() - left;
        level.pending.truncate(left);
    }
    trimmed
}

fn header(kind: EntryType, stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    // Not more: nobody is to unpack a set-user-id program of a model's.
    header.set_mode(stat.st_mode & 0o777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}

pub(super) fn check(deadline: Instant) -> io::Result<()> {
    if Instant::now() < deadline { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

/// Counts what is written, and stops at a limit.
struct Limited<'a> {
    into: &'a mut (dyn Write + Send),
    bytes: u64,
    max: u64,
    /// What the size would be at least, once it is too large.
    too_large: Option<u64>,
    /// Writing has failed. The encoder tries once more when it is dropped, which must not append to
    /// what is incomplete, nor panic a second time.
    broken: bool,
}

impl Write for Limited<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.broken = true;
        let bytes = self.bytes + buffer.len() as u64;
        if bytes > self.max {
            self.too_large = Some(bytes);
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.into.write(buffer);
        self.broken = !matches!(&written, Ok(1..))
            && !matches!(&written, Err(error) if error.kind() == io::ErrorKind::Interrupted);
        self.bytes += *written.as_ref().unwrap_or(&0) as u64;
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.broken { Err(io::ErrorKind::BrokenPipe.into()) } else { self.into.flush() }
    }
}
