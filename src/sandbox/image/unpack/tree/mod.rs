//! Writes a layer's entries into its directory.
//!
//! Names are taken apart here. An absolute one begins at the layer's root; one with `..` is
//! refused. A link on the way of a name is followed inside the image, as a container engine that
//! unpacks all layers into one directory does, but by hand: what the kernel gets is one name, or a
//! path beneath the layer's root that has no link in it.
//!
//! **What depends on the layers below.** A layer may hold `a/b` without `a`: the directory is then
//! made as the layers below have it, since an overlay would show this one's mode and owner. And a
//! whiteout where nothing is below is left out, since it would be listed. Both make the directory
//! one for these layers below only ([`Unpacked::depends_on_below`]).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

mod attributes;
mod parents;
mod whiteouts;

use self::attributes::{Attributes, times};
use self::parents::{BENEATH, Directory, HOLD_DIR};
use self::whiteouts::set_opaque;
use super::entries::{Entry, Kind};
use super::{LayerError, Place, Unpacked, shown};
use crate::sandbox::tree::{self, Until};

/// What a name begins with that says what the layers below lose.
const WHITEOUT: &[u8] = b".wh.";
/// What such names begin with that are not of files: of an old union file system, but for one.
const SPECIAL: &[u8] = b".wh..wh.";
/// The one: a directory shows nothing of the layers below.
const OPAQUE: &[u8] = b".wh..wh..opq";

const MAX_PATH: usize = 4095;

const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// How long a directory that is replaced may take to be removed.
const REMOVE_LIMIT: Duration = Duration::from_secs(600);

/// The layer's directory while it is filled.
pub(super) struct Tree<'a> {
    place: &'a Place<'a>,
    /// The directory that the last entry was in, if no link was on the way to it.
    last: Option<Directory>,
    /// What directories get when the layer is complete: while it is not, they are ours to change.
    directories: BTreeMap<Vec<u8>, Attributes>,
    names: usize,
    buffer: Vec<u8>,
    pub(super) report: Unpacked,
}

impl<'a> Tree<'a> {
    pub(super) fn new(place: &'a Place<'a>) -> Self {
        let (buffer, report) = (vec![0; 1 << 17], Unpacked::default());
        Self { place, last: None, directories: BTreeMap::new(), names: 0, buffer, report }
    }

    /// Adds an entry, with its data.
    pub(super) fn add(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), LayerError> {
        let (parents, name) = split(entry)?;
        let is_opaque = name == Some(OPAQUE);
        let mut names = parents.iter().copied().chain(name);
        if names.any(|name| name.starts_with(SPECIAL)) && !is_opaque {
            return Ok(());
        }
        if parents.iter().any(|name| name.starts_with(WHITEOUT)) {
            return Err(wrong(entry, "is in something that has the name of a whiteout"));
        }
        if let Some(name) = name
            && let Some(hidden) = name.strip_prefix(WHITEOUT)
        {
            return match entry.kind {
                Kind::File | Kind::HardLink if is_opaque => self.opaque(entry, &parents),
                Kind::File | Kind::HardLink => self.whiteout(entry, &parents, hidden),
                _ => Err(wrong(entry, "has the name of a whiteout, and is no file")),
            };
        }
        match entry.kind {
            Kind::File => self.file(entry, data),
            Kind::Directory => self.directory(entry),
            Kind::Symlink => self.symlink(entry),
            Kind::HardLink => self.hard_link(entry),
            Kind::Fifo => self.fifo(entry),
            // No machine could use it, and on disk it would be one of the host's.
            Kind::Device => {
                self.report.leave_out(|| format!("the device {}", shown(&entry.name)));
                Ok(())
            }
        }
    }

    fn file(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), LayerError> {
        let (parents, name) = split(entry)?;
        let Some(name) = name else {
            return Err(wrong(entry, "is the root of the layer, and no directory"));
        };
        if entry.size > self.place.limits.file_bytes {
            let what = format!("{} has {} bytes", shown(&entry.name), entry.size);
            return Err(LayerError::TooLarge { what, most: self.place.limits.file_bytes });
        }
        let parent = self.parent(entry, &parents)?;
        self.make_room(entry, &parent, name, false)?;
        let failed = |errno| failed(entry, "write", errno);
        let os_name = OsStr::from_bytes(name);
        let opened = rustix::fs::openat(&parent.fd, os_name, NEW_FILE, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(opened.map_err(failed)?);
        match &entry.parts {
            None => loop {
                let got = data.read(&mut self.buffer)?;
                if got == 0 {
                    break;
                }
                let written = file.write_all(&self.buffer[..got]);
                written.map_err(|error| failed_io(entry, "write", error))?;
                self.report.bytes += got as u64;
            },
            Some(parts) => {
                for &(at, length) in parts {
                    self.part(entry, &file, at, length, data)?;
                }
                file.set_len(entry.size).map_err(|error| failed_io(entry, "write", error))?;
            }
        }
        let attributes = Attributes::of(entry, &mut self.report);
        self.give(entry, attributes, file.as_fd())?;
        self.keep(&parents, parent);
        Ok(())
    }

    /// A part of a sparse file.
    fn part(
        &mut self,
        entry: &Entry,
        file: &File,
        mut at: u64,
        length: u64,
        data: &mut impl Read,
    ) -> Result<(), LayerError> {
        let end = at + length;
        while at < end {
            let most = self.buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let got = data.read(&mut self.buffer[..most])?;
            if got == 0 {
                return Err(wrong(entry, "ends before its last part"));
            }
            let written = file.write_all_at(&self.buffer[..got], at);
            written.map_err(|error| failed_io(entry, "write", error))?;
            at += got as u64;
            self.report.bytes += got as u64;
        }
        Ok(())
    }

    pub(super) fn directory(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let (parents, name) = split(entry)?;
        let attributes = Attributes::of(entry, &mut self.report);
        let Some(name) = name else {
            let root = open_dir(entry, self.place.root)?;
            return self.have_directory(entry, &root, Vec::new(), attributes);
        };
        let parent = self.parent(entry, &parents)?;
        let hides = self.make_room(entry, &parent, name, true)?;
        let os_name = OsStr::from_bytes(name);
        match rustix::fs::mkdirat(&parent.fd, os_name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(entry, "create", errno)),
        }
        let made = rustix::fs::openat(&parent.fd, os_name, HOLD_DIR, Mode::empty())
            .map_err(|errno| failed(entry, "open", errno))?;
        let made = open_dir(entry, made.as_fd())?;
        if hides {
            set_opaque(entry, made.as_fd())?;
        }
        self.have_directory(entry, &made, join(&parent.path, name), attributes)?;
        self.keep(&parents, parent);
        Ok(())
    }

    /// Gives a directory what can be given now, and notes the rest.
    fn have_directory(
        &mut self,
        entry: &Entry,
        directory: &OwnedFd,
        path: Vec<u8>,
        attributes: Attributes,
    ) -> Result<(), LayerError> {
        self.set_xattrs(entry, directory.as_fd())?;
        self.note_directory(path, attributes)
    }

    fn note_directory(&mut self, path: Vec<u8>, is: Attributes) -> Result<(), LayerError> {
        let length = path.len();
        if self.directories.insert(path, is).is_none() {
            self.names += length + size_of::<(Vec<u8>, Attributes)>();
        }
        let most = self.place.limits.directory_names;
        if self.names > most {
            let what = format!("the names of a layer's directories have more than {most} bytes");
            return Err(LayerError::TooLarge { what, most: most as u64 });
        }
        Ok(())
    }

    pub(super) fn symlink(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if entry.link.is_empty() || entry.link.len() > MAX_PATH || entry.link.contains(&0) {
            return Err(wrong(entry, "is a link whose target no link can have"));
        }
        let (parent, name) = self.place_for(entry)?;
        rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &parent.fd, name)
            .map_err(|errno| failed(entry, "create", errno))?;
        self.give_held(entry, &parent, name)
    }

    pub(super) fn fifo(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let (parent, name) = self.place_for(entry)?;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(&parent.fd, name, FileType::Fifo, mode, 0)
            .map_err(|errno| failed(entry, "create", errno))?;
        self.give_held(entry, &parent, name)
    }

    pub(super) fn hard_link(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let (parents, name) = split(entry)?;
        let (to_parents, to) = split_name(&entry.link)
            .ok_or_else(|| wrong(entry, "is a link to a name that leads out of the image"))?;
        let (Some(name), Some(to)) = (name, to) else {
            return Err(wrong(entry, "is a link from or to the root of the layer"));
        };
        let missing = || {
            let to = shown(&entry.link);
            wrong(entry, &format!("is a link to {to}, which the layer does not have before it"))
        };
        let target = self.find(entry, &to_parents, false)?.ok_or_else(missing)?;
        let to = OsStr::from_bytes(to);
        let about = match rustix::fs::statat(&target.fd, to, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => about,
            Err(Errno::NOENT) => return Err(missing()),
            Err(errno) => return Err(failed(entry, "look at the target of", errno)),
        };
        match FileType::from_raw_mode(about.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            // A whiteout is nothing.
            FileType::CharacterDevice => return Err(missing()),
            _ => return Err(wrong(entry, "is a link to a directory")),
        }
        let parent = self.parent(entry, &parents)?;
        if parent.path == target.path && name == to.as_bytes() {
            return Ok(());
        }
        self.make_room(entry, &parent, name, false)?;
        rustix::fs::linkat(&target.fd, to, &parent.fd, OsStr::from_bytes(name), AtFlags::empty())
            .map_err(|errno| match errno {
                // It was in what has just made room.
                Errno::NOENT => missing(),
                errno => failed(entry, "create", errno),
            })
    }

    /// The directory of an entry, in which there is nothing of its name any more.
    fn place_for<'e>(&mut self, entry: &'e Entry) -> Result<(Directory, &'e OsStr), LayerError> {
        let (parents, name) = split(entry)?;
        let Some(name) = name else {
            return Err(wrong(entry, "is the root of the layer, and no directory"));
        };
        let parent = self.parent(entry, &parents)?;
        self.make_room(entry, &parent, name, false)?;
        Ok((parent, OsStr::from_bytes(name)))
    }

    /// Removes what an entry replaces: whatever has its name, but a directory where the entry is
    /// one, too. Whether that has hidden what the layers below have: a whiteout does, and a file.
    fn make_room(
        &mut self,
        entry: &Entry,
        parent: &Directory,
        name: &[u8],
        for_directory: bool,
    ) -> Result<bool, LayerError> {
        let os_name = OsStr::from_bytes(name);
        let about = match rustix::fs::statat(&parent.fd, os_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => about,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(failed(entry, "look at", errno)),
        };
        if FileType::from_raw_mode(about.st_mode) != FileType::Directory {
            rustix::fs::unlinkat(&parent.fd, os_name, AtFlags::empty())
                .map_err(|errno| failed(entry, "replace", errno))?;
            return Ok(true);
        }
        if for_directory {
            return Ok(false);
        }
        let held = rustix::fs::openat(&parent.fd, os_name, HOLD_DIR, Mode::empty())
            .map_err(|errno| failed(entry, "open", errno))?;
        let until = Until::interrupted(Instant::now() + REMOVE_LIMIT, self.place.interrupt);
        tree::empty(held.as_fd(), None, until).map_err(|error| match error.source.kind() {
            _ if self.place.interrupt.is_interrupted() => LayerError::Interrupted,
            _ => failed_io(entry, "replace", error.source),
        })?;
        rustix::fs::unlinkat(&parent.fd, os_name, AtFlags::REMOVEDIR)
            .map_err(|errno| failed(entry, "replace", errno))?;
        let path = join(&parent.path, name);
        let below = [&path[..], b"/"].concat()..[&path[..], b"0"].concat();
        let gone: Vec<_> = self.directories.range(below).map(|(path, _)| path.clone()).collect();
        for path in gone.iter().chain([&path]) {
            self.directories.remove(path);
        }
        Ok(false)
    }

    /// Gives the directories what they are to have. The deepest first: one may bar the way.
    pub(super) fn finish(mut self) -> Result<Unpacked, LayerError> {
        if !self.directories.contains_key(&b""[..]) {
            self.directories.insert(Vec::new(), Attributes::IMPLICIT);
        }
        for (path, is) in self.directories.iter().rev() {
            let failed = |errno: Errno| LayerError::Write {
                doing: "set what belongs to",
                path: PathBuf::from(OsStr::from_bytes(path)),
                source: errno.into(),
            };
            let name = if path.is_empty() { &b"."[..] } else { path };
            let name = Path::new(OsStr::from_bytes(name));
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat2(self.place.root, name, flags, Mode::empty(), BENEATH);
            let directory = opened.map_err(failed)?;
            if let Some((uid, gid)) = self.owners(*is) {
                rustix::fs::fchown(&directory, Some(uid), Some(gid)).map_err(failed)?;
            }
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(is.mode)).map_err(failed)?;
            rustix::fs::futimens(&directory, &times(is.mtime)).map_err(failed)?;
        }
        let entries = tree::read_dir(self.place.root).and_then(|entries| {
            entries.map(|entry| Ok(tree::is_dot(entry?.file_name()))).collect::<Result<Vec<_>, _>>()
        });
        let entries = entries.map_err(|errno| LayerError::Write {
            doing: "look at",
            path: ".".into(),
            source: errno.into(),
        })?;
        self.report.is_empty = entries.into_iter().all(|is_dot| is_dot);
        Ok(self.report)
    }
}

/// Opens a directory that is held, to change it.
fn open_dir(entry: &Entry, held: BorrowedFd<'_>) -> Result<OwnedFd, LayerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(held, c".", flags, Mode::empty())
        .map_err(|errno| failed(entry, "open", errno))
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory {
        [] => name.to_vec(),
        directory => [directory, b"/", name].concat(),
    }
}

/// The directories of a name, and its last part, which that of the root has none of.
type Names<'n> = (Vec<&'n [u8]>, Option<&'n [u8]>);

/// The directories of an entry's name, and the last part, which the root has none of.
fn split(entry: &Entry) -> Result<Names<'_>, LayerError> {
    split_name(&entry.name).ok_or_else(|| wrong(entry, "has a name that leads out of the image"))
}

fn split_name(name: &[u8]) -> Option<Names<'_>> {
    let mut parts: Vec<_> = name.split(|&byte| byte == b'/').filter(|p| !is_nothing(p)).collect();
    if parts.iter().any(|part| *part == b"..") {
        return None;
    }
    let last = parts.pop();
    Some((parts, last))
}

fn is_nothing(part: &[u8]) -> bool {
    matches!(part, b"" | b".")
}

fn wrong(entry: &Entry, what: &str) -> LayerError {
    LayerError::invalid(format!("{} {what}", shown(&entry.name)))
}

fn failed(entry: &Entry, doing: &'static str, errno: Errno) -> LayerError {
    match errno {
        Errno::NAMETOOLONG => wrong(entry, "has a name that is too long"),
        Errno::INVAL | Errno::ILSEQ => wrong(entry, "has a name that the file system refuses"),
        Errno::MLINK => wrong(entry, "is one link more than the file system allows"),
        errno => failed_io(entry, doing, errno.into()),
    }
}

fn failed_io(entry: &Entry, doing: &'static str, source: io::Error) -> LayerError {
    let path = PathBuf::from(entry.name.escape_ascii().to_string());
    LayerError::Write { doing, path, source }
}
