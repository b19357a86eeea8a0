//! The files of a layout or an archive, by their names: in a directory, or in a tar file.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::interrupt::Interrupt;
use crate::sandbox::image::unpack::{Entries, Kind, LayerError, Packing, Source, unpacked};
use crate::sandbox::image::{ImageError, ImageLimits};

/// How many entries an archive of images may have: each layer is one, or a few.
const MAX_ENTRIES: usize = 20_000;
/// Longer names are not those of what is looked for.
const MAX_NAME: usize = 255;
/// How many links may lead to a file: old versions of Docker save the same layer twice as one.
const MAX_LINKS: usize = 4;

/// The files of a source.
pub(in crate::sandbox::image) enum Files {
    Directory(PathBuf),
    Archive { file: Rc<File>, entries: HashMap<Vec<u8>, Place> },
}

/// What an archive has under a name.
pub(in crate::sandbox::image) enum Place {
    File { at: u64, length: u64 },
    Link(Vec<u8>),
}

impl Files {
    /// Those of a tar file. One that is compressed is unpacked in `scratch` first, into a file that
    /// has no name; `needed` becomes how many bytes that has at least.
    ///
    /// # Errors
    /// As of [`ImageStore::get`](crate::sandbox::image::ImageStore::get).
    pub(in crate::sandbox::image) fn open_archive(
        image: &str,
        path: &Path,
        scratch: impl AsFd,
        limits: &ImageLimits,
        interrupt: &Interrupt,
        needed: &Cell<u64>,
    ) -> Result<Self, ImageError> {
        let opened = open_file(path).map_err(|error| ImageError::at_source(image, path, error))?;
        let (file, length) = opened;
        let mut start = Vec::new();
        let source = Source::new(Rc::new(file), 0, length);
        let read = source.clone().take(Packing::START as u64).read_to_end(&mut start);
        read.map_err(|error| ImageError::io("read", path, error))?;
        let said = |error: LayerError| error.of_image(image, path);
        let source = match Packing::of(&start) {
            Packing::Plain => source,
            _ => {
                let most = limits.archive_bytes;
                let limits = ImageLimits { layer_bytes: most, ..limits.clone() };
                let mut stream = unpacked(source, &limits, interrupt).map_err(said)?;
                let mut file = scratch_file(scratch.as_fd())
                    .map_err(|error| ImageError::io("create a file beside", path, error))?;
                let length = copy(&mut stream, &mut file, needed).map_err(said)?;
                drop(stream);
                Source::new(Rc::new(file), 0, length)
            }
        };
        let entries = index(&source, interrupt).map_err(said)?;
        Ok(Self::Archive { file: source.file(), entries })
    }

    /// A file of it; `None` if there is none of this name.
    ///
    /// # Errors
    /// Those of opening and looking at it.
    pub(super) fn open(&self, name: &str) -> io::Result<Option<Source>> {
        match self {
            Self::Directory(directory) => match open_file(&directory.join(name)) {
                Ok((file, length)) => Ok(Some(Source::new(Rc::new(file), 0, length))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Self::Archive { file, entries } => {
                let mut name = normal(name.as_bytes());
                for _ in 0..MAX_LINKS {
                    match entries.get(&name) {
                        None => return Ok(None),
                        Some(Place::File { at, length }) => {
                            return Ok(Some(Source::new(file.clone(), *at, *length)));
                        }
                        Some(Place::Link(to)) => name.clone_from(to),
                    }
                }
                Ok(None)
            }
        }
    }
}

/// Opens a regular file, and nothing that could block: its length, too.
fn open_file(path: &Path) -> io::Result<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let about = file.metadata()?;
    match about.is_file() {
        true => Ok((file, about.len())),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// A file without a name in a directory of ours.
fn scratch_file(directory: impl AsFd) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::openat(&directory, c".", flags | OFlags::TMPFILE, mode) {
        // A file system that knows no such files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let name = uuid::Uuid::new_v4().simple().to_string();
            let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let file = rustix::fs::openat(&directory, &name, flags, mode)?;
            rustix::fs::unlinkat(&directory, &name, AtFlags::empty())?;
            Ok(file.into())
        }
        opened => Ok(opened?.into()),
    }
}

fn copy(from: &mut impl Read, to: &mut File, length: &Cell<u64>) -> Result<u64, LayerError> {
    let mut buffer = vec![0; 1 << 17];
    loop {
        let got = from.read(&mut buffer)?;
        if got == 0 {
            return Ok(length.get());
        }
        length.set(length.get() + got as u64);
        io::Write::write_all(to, &buffer[..got]).map_err(|source| LayerError::Write {
            doing: "unpack",
            path: "the archive".into(),
            source,
        })?;
    }
}

/// Where in a tar file its files are.
fn index(source: &Source, interrupt: &Interrupt) -> Result<HashMap<Vec<u8>, Place>, LayerError> {
    let (mut entries, mut rest) = (HashMap::new(), source.clone());
    for _ in 0..MAX_ENTRIES {
        if interrupt.is_interrupted() {
            return Err(LayerError::Interrupted);
        }
        // A reader for each entry, so that its data are passed over and not read.
        let mut reader = Entries::new(rest);
        let Some(entry) = reader.next()? else { return Ok(entries) };
        rest = reader.into_inner();
        let name = normal(&entry.name);
        let place = match entry.kind {
            Kind::File if entry.parts.is_none() => {
                let (at, length) = (rest.position(), entry.size);
                let padding = length.wrapping_neg() % 512;
                if length > rest.left() {
                    return Err(LayerError::invalid("its archive ends in the middle"));
                }
                rest.skip(length + padding);
                Place::File { at, length }
            }
            Kind::File => return Err(LayerError::invalid("a file of its archive is sparse")),
            Kind::Symlink => {
                let directory = name.rsplitn(2, |&byte| byte == b'/').nth(1).unwrap_or(b"");
                Place::Link(normal(&[directory, b"/", &entry.link].concat()))
            }
            Kind::HardLink => Place::Link(normal(&entry.link)),
            Kind::Directory | Kind::Fifo | Kind::Device => continue,
        };
        let is_long = matches!(&place, Place::Link(to) if to.len() > MAX_NAME);
        if name.len() <= MAX_NAME && !is_long {
            // As where files are unpacked: the last one stays.
            entries.insert(name, place);
        }
    }
    let what = format!("its archive has more than {MAX_ENTRIES} entries");
    Err(LayerError::TooLarge { what, most: MAX_ENTRIES as u64 })
}

/// A name without `.`, `..` and what is superfluous. It is a key, and opens nothing.
fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}
