//! Reads the entries of a tar stream: ustar, pax and GNU formats, with long names and sparse files.
//!
//! A reader of our own, since the crate `tar` holds in memory what an entry's extensions claim to
//! be, and does not read sparse files in the pax format.

use std::io::{self, Read};

use super::headers::{BLOCK, DataMap, Header, Part, Pax, check_parts, old_parts};
use super::{LayerError, shown};

/// The longest extension header: many times what Linux allows for names and attributes of a file.
const MAX_EXTENSION: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox::image) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    Device,
}

/// An entry, without its data. Nothing of it is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox::image) struct Entry {
    pub(in crate::sandbox::image) name: Vec<u8>,
    pub(in crate::sandbox::image) kind: Kind,
    pub(in crate::sandbox::image) link: Vec<u8>,
    pub(in crate::sandbox::image) mode: u32,
    pub(in crate::sandbox::image) uid: i64,
    pub(in crate::sandbox::image) gid: i64,
    pub(in crate::sandbox::image) mtime: (i64, u32),
    pub(in crate::sandbox::image) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// How long the file is, with holes.
    pub(in crate::sandbox::image) size: u64,
    /// The parts of it that its data are, in order; `None` if they are all of it.
    pub(in crate::sandbox::image) parts: Option<Vec<Part>>,
}

/// The entries of a tar stream.
pub(in crate::sandbox::image) struct Entries<R> {
    tar: R,
    /// What is left of the current entry's data, and of the padding behind it.
    data: u64,
    padding: u64,
}

/// The data of the current entry.
pub(in crate::sandbox::image) struct Data<'a, R>(&'a mut Entries<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.0.data).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let got = self.0.tar.read(&mut buffer[..most])?;
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, CUT_OFF));
        }
        self.0.data -= got as u64;
        Ok(got)
    }
}

const CUT_OFF: &str = "a layer's archive ends in the middle";

impl<R: Read> Entries<R> {
    pub(in crate::sandbox::image) fn new(tar: R) -> Self {
        Self { tar, data: 0, padding: 0 }
    }

    /// The stream, where the reading has come to.
    pub(in crate::sandbox::image) fn into_inner(self) -> R {
        self.tar
    }

    /// The data of the entry that [`next`](Self::next) gave; those of it that are not read are
    /// skipped.
    pub(in crate::sandbox::image) fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// Reads what is left of the stream.
    pub(in crate::sandbox::image) fn drain(&mut self) -> Result<(), LayerError> {
        let mut buffer = vec![0; 1 << 16];
        while self.tar.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The next entry.
    pub(in crate::sandbox::image) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut pax: Option<Pax> = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? || block.iter().all(|&byte| byte == 0) {
                return match pax.is_some() || long_name.is_some() || long_link.is_some() {
                    true => Err(LayerError::invalid(CUT_OFF)),
                    false => Ok(None),
                };
            }
            let header = Header::read(&block)?;
            match header.kind() {
                b'x' | b'X' => pax = Some(Pax::read(&self.extension(header.size()?)?)?),
                // Of the whole archive: comments, as others take it.
                b'g' => drop(self.extension(header.size()?)?),
                b'L' => long_name = Some(text(self.extension(header.size()?)?)),
                b'K' => long_link = Some(text(self.extension(header.size()?)?)),
                // The name of the archive.
                b'V' => self.begin(header.size()?),
                _ => {
                    let pax = pax.unwrap_or_default();
                    return self.entry(&header, pax, long_name, long_link).map(Some);
                }
            }
        }
    }

    /// An entry that is no extension.
    fn entry(
        &mut self,
        header: &Header<'_>,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, LayerError> {
        let is_pax_sparse = pax.is_sparse();
        let name = pax.path.or(long_name).unwrap_or_else(|| header.name());
        let link = pax.link.or(long_link).unwrap_or_else(|| header.link());
        let stored = pax.size.map_or_else(|| header.size(), Ok)?;
        let mut kind = match header.kind() {
            b'0' | b'\0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let (name, other) = (shown(&name), other.escape_ascii());
                let why = format!("{name} is of a kind that no layer may have ('{other}')");
                return Err(LayerError::invalid(why));
            }
        };
        if kind == Kind::File && header.kind() != b'S' && name.ends_with(b"/") {
            // As the oldest tars have directories.
            kind = Kind::Directory;
        }
        // What is no file has no data, whatever its size.
        self.begin(if kind == Kind::File { stored } else { 0 });
        let (size, parts) = match (kind, header.kind()) {
            (Kind::File, b'S') => {
                let (size, mut parts, mut more) = header.old_sparse()?;
                while more {
                    let mut block = [0; BLOCK];
                    self.whole_block(&mut block)?;
                    more = old_parts(&block[..505], &mut parts)?;
                }
                check_parts(&parts, size, stored)?;
                (size, Some(parts))
            }
            (Kind::File, _) if is_pax_sparse => {
                let parts = match pax.parts {
                    Some(parts) if !pax.map_in_data => parts,
                    _ => self.map_in_data()?,
                };
                let size = pax.sparse_size.unwrap_or(stored);
                check_parts(&parts, size, self.data)?;
                (size, Some(parts))
            }
            (Kind::File, _) => (stored, None),
            _ => (0, None),
        };
        Ok(Entry {
            name,
            kind,
            link,
            mode: u32::try_from(header.mode()? & 0o7777).unwrap_or(0),
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: pax.mtime.map_or_else(|| Ok((header.mtime()?, 0)), Ok::<_, LayerError>)?,
            xattrs: pax.xattrs,
            size,
            parts,
        })
    }

    /// The map that a sparse file's data begin with.
    fn map_in_data(&mut self) -> Result<Vec<Part>, LayerError> {
        let mut map = DataMap::new();
        loop {
            let mut block = [0; BLOCK];
            let got = self.data().read_exact(&mut block);
            got.map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => LayerError::invalid(CUT_OFF),
                _ => error.into(),
            })?;
            if let Some(parts) = map.take(&block)? {
                return Ok(parts);
            }
        }
    }

    /// An extension's data.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > MAX_EXTENSION {
            let what = format!("an extension header has {size} bytes");
            return Err(LayerError::TooLarge { what, most: MAX_EXTENSION });
        }
        self.begin(size);
        let mut bytes = Vec::new();
        self.data().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn begin(&mut self, data: u64) {
        self.data = data;
        self.padding = data.wrapping_neg() % BLOCK as u64;
    }

    /// Skips the rest of an entry.
    fn skip(&mut self) -> Result<(), LayerError> {
        let mut buffer = [0; 1 << 12];
        while self.data().read(&mut buffer)? > 0 {}
        let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        // Some archives end without the last padding.
        let mut got = 0;
        while got < padding {
            match self.tar.read(&mut buffer[got..padding])? {
                0 => break,
                more => got += more,
            }
        }
        Ok(())
    }

    /// Reads a block; `false` at the end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, LayerError> {
        let mut got = 0;
        while got < BLOCK {
            match self.tar.read(&mut block[got..])? {
                0 if got == 0 => return Ok(false),
                0 => return Err(LayerError::invalid(CUT_OFF)),
                more => got += more,
            }
        }
        Ok(true)
    }

    fn whole_block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), LayerError> {
        match self.block(block)? {
            true => Ok(()),
            false => Err(LayerError::invalid(CUT_OFF)),
        }
    }
}

/// A name that ends with a zero byte.
fn text(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
    name
}
