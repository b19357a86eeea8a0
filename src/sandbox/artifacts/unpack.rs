//! A tar stream unpacked into a directory of a slot.
//!
//! The stream is the caller's, the directory the model's. Each entry's directory is found as a
//! command of the slot would find it, so symlinks are followed inside the machine and lead nowhere
//! else; names with `..` are refused. Regular files, directories, symlinks, hard links and FIFOs
//! are made; devices are left out and counted.
//!
//! A directory gets its attributes when what is in it is there: a tar stream has it first. So what
//! is remembered is bounded by the depth of the tree, but for directories that their owner may not
//! write to.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use super::owner::{set_mode, set_mtime, times};
use super::put::{NewFile, Putting, not_a_directory, not_written};
use super::{Failure, failed, no_place};
use crate::artifact::{ArtifactError, PutSummary};
use crate::sandbox::files::{RACE_TRIES, raced};

/// How many bytes after an archive's end are read, so that what writes them is not cut off.
const AFTER_THE_END: u64 = 1 << 20;
/// How much of a compressed stream is read at a time.
const BUFFER: usize = 64 * 1024;
/// The bits of a directory that its owner needs to put something into it.
const OWNERS: u32 = 0o300;

/// Unpacks `source` into the directory `base`, a path as commands see it, and counts what it has
/// made. `is_new` says that the directory is ours, so that it gets the attributes that the archive
/// has for it.
pub(super) fn unpack(
    putting: &mut Putting<'_>,
    base: &Path,
    is_new: bool,
    source: &mut dyn Read,
    summary: &mut PutSummary,
) -> Result<(), ArtifactError> {
    let mut source = BufReader::with_capacity(BUFFER, source);
    let is_gzip = io::BufRead::fill_buf(&mut source)
        .map_err(|error| ArtifactError::Io("reading the tar stream".to_owned(), error))?
        .starts_with(&[0x1f, 0x8b]);
    let mut plain: Box<dyn Read + '_> = match is_gzip {
        true => Box::new(MultiGzDecoder::new(source)),
        false => Box::new(source),
    };
    let mut unpacking = Unpacking {
        putting,
        base,
        is_new,
        summary,
        held: None,
        open: Vec::new(),
        late: Vec::new(),
    };
    let mut archive = tar::Archive::new(&mut plain);
    for entry in archive.entries().map_err(broken)? {
        unpacking.entry(&mut entry.map_err(broken)?)?;
    }
    // The checksum of a compressed stream is at its end.
    io::copy(&mut plain.take(AFTER_THE_END), &mut io::sink()).map_err(broken)?;
    unpacking.finish()
}

/// What an archive says of an entry.
#[derive(Debug, Clone, Copy)]
struct Attributes {
    mode: u32,
    mtime: u64,
    numbers: (u64, u64),
}

/// A directory that has not got its attributes yet.
struct Unfinished {
    path: PathBuf,
    attributes: Attributes,
}

struct Unpacking<'a, 'b> {
    putting: &'a mut Putting<'b>,
    base: &'a Path,
    is_new: bool,
    summary: &'a mut PutSummary,
    /// The directory of the latest entry.
    held: Option<(PathBuf, OwnedFd)>,
    /// Directories in each other, of which the last is the one that is being filled.
    open: Vec<Unfinished>,
    /// Directories to which nothing could be added afterwards.
    late: Vec<Unfinished>,
}

impl Unpacking<'_, '_> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), ArtifactError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = relative(&entry.path_bytes())?;
        let attributes = attributes(entry).map_err(broken)?;
        self.leave(&path)?;
        let shown = path.to_string_lossy().into_owned();
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The directory itself.
            if self.is_new && kind == EntryType::Directory {
                self.open.push(Unfinished { path, attributes });
            }
            return Ok(());
        };
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                refuse_new_sparse(entry, &shown)?;
                let dir = self.directory_of(parent, &shown)?;
                let file = NewFile::create(dir.as_fd(), &shown)?;
                let size = entry.size();
                let bytes = self.putting.fill(&file.file, &shown, entry, None)?;
                if bytes != size {
                    let text = format!("'{shown}' is cut off after {bytes} of {size} bytes");
                    return Err(ArtifactError::BadArchive(text));
                }
                file.finish(
                    &self.putting.owner,
                    Some(attributes.numbers),
                    attributes.mode,
                    Some(attributes.mtime),
                )
                .and_then(|()| file.rename(&name.to_owned()))
                .map_err(|errno| wrong_place(&shown, errno))?;
                drop(file);
                self.summary.bytes += bytes;
                self.hold(parent, dir);
            }
            EntryType::Directory => {
                self.directory(&path, &shown)?;
                self.open.push(Unfinished { path, attributes });
            }
            EntryType::Symlink => {
                let target = link_name(entry, &shown)?;
                let dir = self.directory_of(parent, &shown)?;
                let make = || rustix::fs::symlinkat(OsStr::from_bytes(&target), &dir, name);
                self.put_over(&dir, name, &shown, make)?;
                let at = times(attributes.mtime);
                // Some file systems keep none for links.
                let _ = rustix::fs::utimensat(&dir, name, &at, AtFlags::SYMLINK_NOFOLLOW);
                self.give_link(&dir, name, attributes).map_err(|errno| failed(&shown, errno))?;
                self.hold(parent, dir);
            }
            EntryType::Link => {
                let target = relative(&link_name(entry, &shown)?)?;
                let (Some(of), Some(target_name)) = (target.parent(), target.file_name()) else {
                    return Err(ArtifactError::BadArchive(format!("'{shown}' links to nothing")));
                };
                let from = self.directory_of(of, &shown)?;
                let dir = self.directory_of(parent, &shown)?;
                let make = || rustix::fs::linkat(&from, target_name, &dir, name, AtFlags::empty());
                self.put_over(&dir, name, &shown, make)?;
                self.hold(parent, dir);
            }
            EntryType::Fifo => {
                let dir = self.directory_of(parent, &shown)?;
                let mode = Mode::from_raw_mode(attributes.mode);
                let make = || rustix::fs::mknodat(&dir, name, FileType::Fifo, mode, 0);
                self.put_over(&dir, name, &shown, make)?;
                self.give_link(&dir, name, attributes).map_err(|errno| failed(&shown, errno))?;
                self.hold(parent, dir);
            }
            EntryType::Char | EntryType::Block => {
                self.summary.skipped += 1;
                return Ok(());
            }
            other => {
                let byte = char::from(other.as_byte());
                let text = format!("'{shown}' is of the unknown type {byte:?}");
                return Err(ArtifactError::BadArchive(text));
            }
        }
        self.summary.entry_count += 1;
        Ok(())
    }

    /// Makes something that is no file and no directory, in the place of what is there.
    fn put_over(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        shown: &str,
        mut make: impl FnMut() -> Result<(), Errno>,
    ) -> Result<(), ArtifactError> {
        self.putting.take(shown, 0, 1)?;
        for _ in 0..RACE_TRIES {
            match make() {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {
                    rustix::fs::unlinkat(dir, name, AtFlags::empty())
                        .or_else(|errno| if errno == Errno::NOENT { Ok(()) } else { Err(errno) })
                        .map_err(|errno| wrong_place(shown, errno))?;
                }
                Err(errno) => return Err(not_written(shown, errno)),
            }
        }
        Err(failed(shown, Errno::EXIST))
    }

    fn give_link(&self, dir: &OwnedFd, name: &OsStr, attributes: Attributes) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        self.putting.owner.give(link.as_fd(), Some(attributes.numbers))
    }

    /// The directory `path` of the archive, held; made if it is missing.
    fn directory(&mut self, path: &Path, shown: &str) -> Result<OwnedFd, ArtifactError> {
        let mut last = Errno::AGAIN;
        for _ in 0..RACE_TRIES {
            let place = self.putting.view.resolve_below(self.base, path);
            let place = place.map_err(|error| no_place(error, shown))?;
            if place.found().is_some() {
                return Err(not_a_directory(shown));
            }
            let made = (|| {
                let mut dir = rustix::io::fcntl_dupfd_cloexec(place.dir(), 0)?;
                for name in place.rest() {
                    dir = self.putting.directory(&dir, name, shown)?;
                }
                Ok(dir)
            })();
            match made {
                Ok(dir) => return Ok(dir),
                Err(Failure::Os(errno)) if raced(errno) => last = errno,
                Err(Failure::Os(errno)) => return Err(not_written(shown, errno)),
                Err(Failure::Known(error)) => return Err(error),
            }
        }
        Err(failed(shown, last))
    }

    /// The directory that an entry is in. As a rule it is that of the one before.
    fn directory_of(&mut self, parent: &Path, shown: &str) -> Result<OwnedFd, ArtifactError> {
        match self.held.take() {
            Some((path, dir)) if path == parent => Ok(dir),
            _ => self.directory(parent, shown),
        }
    }

    fn hold(&mut self, parent: &Path, dir: OwnedFd) {
        self.held = Some((parent.to_owned(), dir));
    }

    /// Finishes the directories that the entry `next` is not in.
    fn leave(&mut self, next: &Path) -> Result<(), ArtifactError> {
        while let Some(last) = self.open.last()
            && !next.starts_with(&last.path)
        {
            let Some(done) = self.open.pop() else { break };
            if done.attributes.mode & OWNERS == OWNERS {
                self.finish_directory(&done)?;
            } else {
                self.late.push(done);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), ArtifactError> {
        let mut left = std::mem::take(&mut self.open);
        // The innermost first: what is in one that is closed cannot be reached.
        left.sort_by_key(|unfinished| std::cmp::Reverse(unfinished.path.components().count()));
        let mut late = std::mem::take(&mut self.late);
        late.sort_by_key(|unfinished| std::cmp::Reverse(unfinished.path.components().count()));
        left.iter().chain(&late).try_for_each(|unfinished| self.finish_directory(unfinished))
    }

    fn finish_directory(&mut self, unfinished: &Unfinished) -> Result<(), ArtifactError> {
        let Unfinished { path, attributes } = unfinished;
        let shown = path.to_string_lossy();
        let place = self.putting.view.resolve_below(self.base, path);
        let place = place.map_err(|error| no_place(error, &shown))?;
        let owner = &self.putting.owner;
        let finished = rustix::fs::openat(
            place.dir(),
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .and_then(|dir| {
            set_mtime(dir.as_fd(), attributes.mtime)?;
            set_mode(dir.as_fd(), attributes.mode)?;
            owner.give(dir.as_fd(), Some(attributes.numbers))
        });
        match finished {
            Ok(()) => Ok(()),
            // It was there before, and is another's.
            Err(Errno::PERM | Errno::ACCESS | Errno::ROFS) if !self.is_new => Ok(()),
            Err(errno) => Err(failed(&shown, errno)),
        }
    }
}

fn attributes<R: Read>(entry: &Entry<'_, R>) -> io::Result<Attributes> {
    let header = entry.header();
    Ok(Attributes {
        mode: header.mode()? & 0o777,
        mtime: header.mtime().unwrap_or(0),
        numbers: (header.uid()?, header.gid()?),
    })
}

/// The target of a link.
fn link_name<R: Read>(entry: &Entry<'_, R>, shown: &str) -> Result<Vec<u8>, ArtifactError> {
    match entry.link_name_bytes() {
        Some(name) if !name.is_empty() && !name.contains(&0) => Ok(name.into_owned()),
        _ => Err(ArtifactError::BadArchive(format!("'{shown}' is a link to nothing"))),
    }
}

/// The path of an entry from the directory that all of it goes into.
fn relative(path: &[u8]) -> Result<PathBuf, ArtifactError> {
    let bad = |why: &str| {
        let shown = String::from_utf8_lossy(path).into_owned();
        ArtifactError::BadArchive(format!("the name {shown:?} {why}"))
    };
    let mut relative = PathBuf::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(bad("leads out of the directory")),
            name if name.contains(&0) => return Err(bad("has a NUL")),
            name => relative.push(OsString::from_vec(name.to_vec())),
        }
    }
    Ok(relative)
}

/// A sparse file of a kind that is not read: its content would be taken for something else.
fn refuse_new_sparse<R: Read>(entry: &mut Entry<'_, R>, shown: &str) -> Result<(), ArtifactError> {
    let Some(mut extensions) = entry.pax_extensions().map_err(broken)? else { return Ok(()) };
    let is_sparse = extensions.any(|extension| {
        extension.is_ok_and(|extension| extension.key_bytes().starts_with(b"GNU.sparse."))
    });
    match is_sparse {
        true => Err(ArtifactError::BadArchive(format!(
            "'{shown}' is a sparse file in the format of POSIX: make the archive with \
             --format=gnu, or without --sparse"
        ))),
        false => Ok(()),
    }
}

/// The error of putting something into the place of a directory.
fn wrong_place(shown: &str, errno: Errno) -> ArtifactError {
    match errno {
        Errno::ISDIR | Errno::PERM | Errno::NOTEMPTY => ArtifactError::Invalid(format!(
            "'{shown}' is a directory in the sandbox, and none in the archive"
        )),
        errno => not_written(shown, errno),
    }
}

/// An archive that cannot be read; or a source that cannot.
fn broken(error: io::Error) -> ArtifactError {
    match error.kind() {
        io::ErrorKind::Other
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::UnexpectedEof => ArtifactError::BadArchive(error.to_string()),
        _ => ArtifactError::Io("reading the tar stream".to_owned(), error),
    }
}
