//! Input that is compressed, known by its first bytes: gzip with any number of members, zstd with
//! any number of frames.
//!
//! Memory stays bounded whatever a file claims to hold: what is read here is read by lines of
//! bounded length, and a zstd frame that wants a window of more than 128 MiB is refused. What a
//! zstd frame holds comes when the frame ends or is longer than its window.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::setup::chain;

/// How an input is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Not at all.
    Plain,
    Gzip,
    Zstd,
    /// In a way that is not read here; the word names the program that unpacks it.
    Other(&'static str),
}

/// How files begin that are packed. Of the skippable frames with which zstd may begin the first
/// four bits are any.
const MAGIC: [(&[u8], Packing); 5] = [
    (&[0x1f, 0x8b], Packing::Gzip),
    (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd),
    (&[0x50, 0x2a, 0x4d, 0x18], Packing::Zstd),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Packing::Other("xz")),
    (b"BZh", Packing::Other("bzip2")),
];

/// The longest of them.
pub(super) const MAGIC_LENGTH: usize = 6;

/// What the first bytes of an input tell.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Packed(Packing),
    /// It depends on the next byte.
    NotYet,
}

fn told_by(start: &[u8]) -> Told {
    let mut normal = [0; MAGIC_LENGTH];
    let length = start.len().min(MAGIC_LENGTH);
    normal[..length].copy_from_slice(&start[..length]);
    if matches!(normal[0], 0x51..=0x5f) {
        normal[0] = 0x50;
    }
    for (magic, packing) in MAGIC {
        if normal[..length].starts_with(magic) {
            return Told::Packed(packing);
        }
        if magic.starts_with(&normal[..length]) {
            return Told::NotYet;
        }
    }
    Told::Packed(Packing::Plain)
}

/// How an input is packed that begins with these bytes, and is at its end if they are few.
pub(super) fn packing_of(start: &[u8]) -> Packing {
    match told_by(start) {
        Told::Packed(packing) => packing,
        Told::NotYet => Packing::Plain,
    }
}

/// The unpacked input. Blocks until its first bytes are there.
///
/// # Errors
/// Those of reading, or it is packed in another way.
pub(super) fn unpacked(mut input: Box<dyn BufRead + Send>) -> io::Result<Box<dyn BufRead + Send>> {
    let mut start = Vec::new();
    // Byte by byte, so that a line that is typed is read when it ends and not when the next one
    // begins.
    while told_by(&start) == Told::NotYet {
        let mut byte = [0];
        match input.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => start.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let packing = packing_of(&start);
    let input = Cursor::new(start).chain(input);
    let buffered =
        |reader: Box<dyn Read + Send>| Box::new(BufReader::with_capacity(1 << 16, reader));
    match packing {
        Packing::Plain => Ok(Box::new(input)),
        Packing::Gzip => Ok(buffered(Box::new(Gzip(MultiGzDecoder::new(input))))),
        Packing::Zstd => Ok(buffered(Box::new(Zstd::new(input)))),
        Packing::Other(program) => Err(invalid(format!(
            "is packed with {program}, which is not read: gzip and zstd are, and \
             {program} -dc FILE | tool-executor replay -"
        ))),
    }
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// What is wrong with packed data, in words for people. What the operating system says stays as it
/// is.
fn damaged(name: &str, is_at_end: bool, problem: &str) -> io::Error {
    match is_at_end {
        true => invalid(format!("the {name} data ends in the middle: the file is cut off")),
        false => invalid(format!("the {name} data is damaged: {problem}")),
    }
}

/// Members of gzip, one after the other.
struct Gzip<R>(MultiGzDecoder<R>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("gzip", true, ""),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                damaged("gzip", false, &error.to_string())
            }
            _ => error,
        })
    }
}

/// Frames of zstd, one after the other, those without content skipped.
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
        damaged("zstd", is_at_end, &chain(error))
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

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        compress_to_vec(text, CompressionLevel::Fastest)
    }

    fn unpack(input: &[u8]) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        let read = unpacked(Box::new(Cursor::new(input.to_vec())))
            .and_then(|mut reader| reader.read_to_end(&mut text));
        read.map(|_| text).map_err(|error| error.to_string())
    }

    /// As `zstd -19 --no-progress` of version 1.5.4 packs it, with a checksum.
    const BY_THE_PROGRAM: &[u8] =
        b"\x28\xb5\x2f\xfd\x04\x68\x95\0\0\x40hello, \x0a\x02\0\xb9\xdf\xfc\
        \x85\xb8\x62\x04\xae\x29\x31\x6a";

    #[test]
    fn members_and_frames_are_read_one_after_the_other() {
        let long = b"0123456789abcdef".repeat(50_000);
        let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        for packed in [
            [gzip(b"a\n"), gzip(b""), gzip(&long)].concat(),
            [zstd(b"a\n"), skipped.clone(), zstd(b""), zstd(&long)].concat(),
            [skipped, zstd(b"a\n"), zstd(&long)].concat(),
        ] {
            let expected = [b"a\n", &long[..]].concat();
            assert!(unpack(&packed).unwrap() == expected);
        }
        let hello = "hello, hello, hello\n".repeat(100);
        assert_eq!(unpack(BY_THE_PROGRAM).unwrap(), hello.as_bytes());
    }

    #[test]
    fn what_is_not_packed_is_read_as_it_is() {
        for plain in ["", "\u{1f}", "(", "P*M", "{\"calls\": []}\n", "BZ", "_", "\u{feff}{}"] {
            assert_eq!(unpack(plain.as_bytes()).unwrap(), plain.as_bytes());
        }
    }

    #[test]
    fn input_that_is_cut_off_anywhere_is_told_and_what_came_before_is_read() {
        let text: Vec<u8> =
            (0..5000_u32).flat_map(|n| format!("{n} {}\n", n * n % 977).into_bytes()).collect();
        for (name, packed, least) in [("gzip", gzip(&text), 3), ("zstd", zstd(&text), 5)] {
            for length in (least..packed.len()).step_by(997).chain([packed.len() - 1]) {
                let expected = format!("the {name} data ends in the middle: the file is cut off");
                assert_eq!(unpack(&packed[..length]), Err(expected), "{name} {length}");
            }
        }
    }

    #[test]
    fn damage_is_told() {
        for (name, mut packed) in [("gzip", gzip(b"hello")), ("zstd", BY_THE_PROGRAM.to_vec())] {
            let last = packed.len() - if name == "gzip" { 6 } else { 2 };
            packed[last] ^= 0xff;
            let problem = unpack(&packed).unwrap_err();
            assert!(problem.starts_with(&format!("the {name} data is damaged: ")), "{problem}");
        }
        let garbage = [gzip(b"hello"), b"something else".to_vec()].concat();
        assert!(unpack(&garbage).unwrap_err().starts_with("the gzip data is damaged: "));
    }

    #[test]
    fn another_packing_is_refused_with_advice() {
        for (start, program) in [(&b"\xfd7zXZ\0..."[..], "xz"), (b"BZh9...", "bzip2")] {
            let problem = unpack(start).unwrap_err();
            assert!(problem.contains(&format!("{program} -dc FILE |")), "{problem}");
        }
    }
}
