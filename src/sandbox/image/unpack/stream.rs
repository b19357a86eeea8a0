//! The stream of a layer: read from a place in a file, unpacked, and ended where it explodes.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::LayerError;
use crate::interrupt::Interrupt;
use crate::sandbox::image::ImageLimits;

/// A part of a file, read from its beginning whatever others do with the descriptor.
#[derive(Debug, Clone)]
pub(in crate::sandbox::image) struct Source {
    file: Rc<File>,
    at: u64,
    end: u64,
}

impl Source {
    pub(in crate::sandbox::image) fn new(file: Rc<File>, at: u64, length: u64) -> Self {
        Self { file, at, end: at.saturating_add(length) }
    }

    /// The file.
    pub(in crate::sandbox::image) fn file(&self) -> Rc<File> {
        self.file.clone()
    }

    /// Where in the file the reading has come to.
    pub(in crate::sandbox::image) fn position(&self) -> u64 {
        self.at
    }

    /// Passes over so many bytes, or to the end.
    pub(in crate::sandbox::image) fn skip(&mut self, bytes: u64) {
        self.at += bytes.min(self.left());
    }

    /// How many bytes are left.
    pub(in crate::sandbox::image) fn left(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left()).unwrap_or(usize::MAX));
        loop {
            match self.file.read_at(&mut buffer[..most], self.at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(got) => {
                    self.at += got as u64;
                    return Ok(got);
                }
            }
        }
    }
}

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox::image) enum Packing {
    Plain,
    Gzip,
    Zstd,
    /// In a way that is not read here.
    Other(&'static str),
}

impl Packing {
    /// How many bytes [`of`](Self::of) wants.
    pub(in crate::sandbox::image) const START: usize = 6;

    /// That of a file that begins so. What a manifest says of it is not asked, as others do not.
    pub(in crate::sandbox::image) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            _ => Self::Plain,
        }
    }
}

/// The unpacked stream of what `packed` has. It ends with [`LayerError`]s in its errors where it is
/// too large or the work was interrupted.
///
/// # Errors
/// Those of reading its first bytes; it is packed in a way that is not read here.
pub(in crate::sandbox::image) fn unpacked<'a>(
    packed: impl Read + 'a,
    limits: &ImageLimits,
    interrupt: &'a Interrupt,
) -> Result<impl Read + 'a, LayerError> {
    let read = Rc::new(Cell::new(0));
    let counted = Counted { source: packed, read: read.clone() };
    let mut source = BufReader::with_capacity(1 << 17, counted);
    let mut start = Vec::new();
    source.by_ref().take(Packing::START as u64).read_to_end(&mut start)?;
    let packing = Packing::of(&start);
    let source = BufReader::with_capacity(1 << 16, Cursor::new(start).chain(source));
    let stream: Box<dyn Read + 'a> = match packing {
        Packing::Plain => Box::new(source),
        Packing::Gzip => Box::new(Gzip(MultiGzDecoder::new(source))),
        Packing::Zstd => Box::new(Zstd::new(source)),
        Packing::Other(program) => {
            let why = format!("it is packed with {program}, and only gzip and zstd are read");
            return Err(LayerError::Invalid(why));
        }
    };
    let (most, ratio) = (limits.layer_bytes, limits.ratio);
    Ok(Guarded { stream, packed: read, unpacked: 0, most, ratio, interrupt })
}

/// Counts what is read.
struct Counted<R> {
    source: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.source.read(buffer)?;
        self.read.set(self.read.get() + got as u64);
        Ok(got)
    }
}

/// Ends a stream that is too large, or much larger than what it is unpacked from.
struct Guarded<'a> {
    stream: Box<dyn Read + 'a>,
    packed: Rc<Cell<u64>>,
    unpacked: u64,
    most: u64,
    ratio: u64,
    interrupt: &'a Interrupt,
}

/// No ratio is too much for less than this.
pub(super) const HARMLESS: u64 = 1 << 30;

impl Read for Guarded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.interrupt.is_interrupted() {
            return Err(io::Error::other(LayerError::Interrupted));
        }
        let got = self.stream.read(buffer)?;
        self.unpacked += got as u64;
        let too_large = |what: &str, most| {
            Err(io::Error::other(LayerError::TooLarge { what: what.to_owned(), most }))
        };
        if self.unpacked > self.most {
            return too_large("a layer has more bytes than a layer may have", self.most);
        }
        let most = self.packed.get().saturating_mul(self.ratio).max(HARMLESS);
        if self.unpacked > most {
            let what = format!(
                "{} compressed bytes of a layer become more than {most} bytes, each more than {}",
                self.packed.get(),
                self.ratio
            );
            return too_large(&what, self.ratio);
        }
        Ok(got)
    }
}

fn damaged(name: &str, is_at_end: bool, problem: &str) -> io::Error {
    let what = match is_at_end {
        true => format!("its {name} data end in the middle"),
        false => format!("its {name} data are damaged: {problem}"),
    };
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Members of gzip, one after the other.
struct Gzip<R>(MultiGzDecoder<R>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("gzip", true, ""),
            io::ErrorKind::InvalidInput => damaged("gzip", false, &error.to_string()),
            _ => error,
        })
    }
}

/// Frames of zstd, one after the other, those without content skipped. A frame that wants a window
/// of more than 128 MiB is refused by the decoder.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Reads a frame's header, or skips a frame without content.
    fn begin(&mut self) -> io::Result<()> {
        match self.decoder.init(&mut self.source) {
            Ok(()) => self.in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let mut content = self.source.by_ref().take(length.into());
                if io::copy(&mut content, &mut io::sink())? < length.into() {
                    return Err(damaged("zstd", true, ""));
                }
            }
            Err(error) => return Err(self.problem(&error)),
        }
        Ok(())
    }

    /// Ends a frame that was decoded whole.
    fn end(&mut self) -> io::Result<()> {
        self.in_frame = false;
        let promised = self.decoder.get_checksum_from_data();
        match promised.is_none() || promised == self.decoder.get_calculated_checksum() {
            true => Ok(()),
            false => Err(damaged("zstd", false, "its checksum is another one")),
        }
    }

    fn problem(&mut self, error: &FrameDecoderError) -> io::Error {
        let is_at_end = self.source.fill_buf().is_ok_and(<[u8]>::is_empty);
        damaged("zstd", is_at_end, &error.to_string())
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                if self.source.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.begin()?;
            } else if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            } else if self.decoder.is_finished() {
                self.end()?;
            } else {
                // Not more than a piece at once: a frame may hold any number of bytes.
                let blocks = BlockDecodingStrategy::UptoBlocks(1);
                if let Err(error) = self.decoder.decode_blocks(&mut self.source, blocks) {
                    return Err(self.problem(&error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(packed: &[u8], limits: &ImageLimits) -> Result<Vec<u8>, String> {
        let (mut bytes, interrupt) = (Vec::new(), Interrupt::new());
        let read = unpacked(packed, limits, &interrupt)
            .and_then(|mut stream| Ok(stream.read_to_end(&mut bytes)?));
        read.map(|_| bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn all_packings_are_known_by_their_first_bytes() {
        let text = b"0123456789abcdef".repeat(40_000);
        let limits = ImageLimits::default();
        let twice = [&text[..], &text].concat();
        for (packed, expected) in [
            (text.clone(), &text),
            (gzip(&text), &text),
            ([gzip(&text), gzip(&text)].concat(), &twice),
            (compress_to_vec(&text[..], CompressionLevel::Fastest), &text),
            (Vec::new(), &Vec::new()),
        ] {
            assert!(read(&packed, &limits).unwrap() == *expected);
        }
        assert!(read(b"BZh91AY", &limits).unwrap_err().contains("bzip2"));
    }

    #[test]
    fn damage_and_cuts_are_said() {
        let limits = ImageLimits::default();
        let text: Vec<u8> = (0..20_000_u32).flat_map(|n| (n * n).to_le_bytes()).collect();
        for packed in [gzip(&text), compress_to_vec(&text[..], CompressionLevel::Fastest)] {
            let said = read(&packed[..packed.len() - 9], &limits).unwrap_err();
            assert!(said.contains("end in the middle"), "{said}");
        }
        let garbage = [gzip(&text), b"no more of it".to_vec()].concat();
        assert!(read(&garbage, &limits).unwrap_err().contains("damaged"));
    }

    #[test]
    fn a_stream_that_is_too_large_ends() {
        let mut limits = ImageLimits { layer_bytes: 99_999, ..ImageLimits::default() };
        let packed = gzip(&[0; 100_000]);
        assert!(read(&packed, &limits).unwrap_err().contains("99999 are allowed"));
        limits.layer_bytes = 100_000;
        assert_eq!(read(&packed, &limits).unwrap().len(), 100_000);
    }

    #[test]
    fn a_bomb_ends_when_it_is_seen_to_be_one() {
        // A thousand times as much, a thousand times.
        let bomb = gzip(&vec![0; 1 << 20]).repeat(1_030);
        let limits = ImageLimits { ratio: 50, ..ImageLimits::default() };
        let interrupt = Interrupt::new();
        let mut stream = unpacked(&bomb[..], &limits, &interrupt).unwrap();
        let error = LayerError::from(io::copy(&mut stream, &mut io::sink()).unwrap_err());
        assert!(matches!(error, LayerError::TooLarge { most: 50, .. }), "{error}");
    }
}
