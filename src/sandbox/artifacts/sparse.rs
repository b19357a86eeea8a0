//! What of a file is data, and how an archive says so: the sparse entries of GNU tar.
//!
//! A file of 8 GiB may be all holes, and cost nothing. Its holes are neither read, compressed nor
//! unpacked.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::archive::check;

/// A file in more pieces than this has the rest of it as one piece, holes and all.
const MOST_PIECES: usize = 1000;
/// So many pieces are in a header, and in each block behind it.
const IN_HEADER: usize = 4;
const IN_BLOCK: usize = 21;
const BLOCK: usize = 512;

/// A piece of a file that is data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    offset: u64,
    length: u64,
}

/// The pieces of a file of this size, in order. One of the whole file where the file system has no
/// holes.
///
/// # Errors
/// The deadline has passed, or the file cannot be looked at.
pub(super) fn pieces(file: &File, size: u64, deadline: Instant) -> io::Result<Vec<Piece>> {
    let whole = || vec![Piece { offset: 0, length: size }];
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        check(deadline)?;
        let offset = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) {
            Ok(offset) => offset,
            // The rest is a hole.
            Err(Errno::NXIO) => break,
            Err(_) => return Ok(whole()),
        };
        if pieces.len() + 1 == MOST_PIECES {
            pieces.push(Piece { offset, length: size.saturating_sub(offset) });
            break;
        }
        let Ok(end) = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(offset)) else {
            return Ok(whole());
        };
        // It may grow or shrink meanwhile.
        let (offset, end) = (offset.max(at).min(size), end.min(size));
        if end <= offset {
            break;
        }
        pieces.push(Piece { offset, length: end - offset });
        at = end;
    }
    Ok(pieces)
}

/// The bytes of these pieces together.
pub(super) fn length(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.length).sum()
}

/// Makes a header that of a file of this size which has these pieces, and nothing else. What is
/// given comes before its content: whole blocks.
pub(super) fn describe(header: &mut Header, pieces: &[Piece], size: u64) -> Vec<u8> {
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(length(pieces));
    // Says how long the file is, where it ends with a hole.
    let end = Piece { offset: size, length: 0 };
    let all: Vec<Piece> = pieces.iter().copied().chain([end]).collect();
    let (first, rest) = all.split_at(all.len().min(IN_HEADER));
    if let Some(gnu) = header.as_gnu_mut() {
        for (place, piece) in gnu.sparse.iter_mut().zip(first) {
            (place.offset, place.numbytes) = (number(piece.offset), number(piece.length));
        }
        gnu.realsize = number(size);
        gnu.isextended = [u8::from(!rest.is_empty())];
    }
    let mut blocks = Vec::new();
    let mut chunks = rest.chunks(IN_BLOCK).peekable();
    while let Some(chunk) = chunks.next() {
        let begin = blocks.len();
        for piece in chunk {
            blocks.extend(number(piece.offset));
            blocks.extend(number(piece.length));
        }
        blocks.resize(begin + IN_BLOCK * 24, 0);
        blocks.push(u8::from(chunks.peek().is_some()));
        blocks.resize(begin + BLOCK, 0);
    }
    blocks
}

/// A number as headers have it: octal digits, or from 8 GiB on its bytes.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value < 1 << 33 {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
    field
}

/// Reads the pieces of a file, exactly as long as they are said to be: zeros where it has shrunk.
pub(super) struct Pieces<'a> {
    file: &'a File,
    pieces: std::vec::IntoIter<Piece>,
    /// What is left of the piece at hand.
    rest: Piece,
    deadline: Instant,
}

impl<'a> Pieces<'a> {
    /// Until the deadline.
    pub(super) fn new(file: &'a File, pieces: Vec<Piece>, deadline: Instant) -> Self {
        let rest = Piece { offset: 0, length: 0 };
        Self { file, pieces: pieces.into_iter(), rest, deadline }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        check(self.deadline)?;
        while self.rest.length == 0 {
            let Some(next) = self.pieces.next() else { return Ok(0) };
            self.rest = next;
        }
        let wanted = usize::try_from(self.rest.length).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..wanted];
        let mut read = self.file.read_at(buffer, self.rest.offset)?;
        if read == 0 {
            buffer.fill(0);
            read = wanted;
        }
        self.rest.offset += read as u64;
        self.rest.length -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_up_to_what_fits() {
        assert_eq!(&number(0), b"00000000000\0");
        assert_eq!(&number((1 << 33) - 1), b"77777777777\0");
        assert_eq!(number(1 << 33), [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }
}
