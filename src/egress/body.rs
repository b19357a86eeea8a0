//! Where a request's body ends: what follows it is never sent on. Pure.

use super::request::Framing;

/// The longest line of a chunk's size, with what its extensions say.
const LONGEST_LINE: usize = 256;
/// The longest trailer.
const LONGEST_TRAILER: usize = 8 * 1024;

/// How far a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Body(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes are to come.
    Length(u64),
    /// A chunk's size: its digits so far, how many, and how long the line is.
    Size {
        size: u64,
        digits: usize,
        line: usize,
    },
    /// The extensions after a size.
    Extension {
        size: u64,
        line: usize,
    },
    /// The LF after a size.
    SizeEnd {
        size: u64,
    },
    /// So many bytes of a chunk are to come.
    Data(u64),
    /// The CR after a chunk.
    DataCr,
    /// The LF after a chunk.
    DataLf,
    /// A line of the trailer: how long it is, and the whole trailer.
    Trailer {
        line: usize,
        all: usize,
    },
    /// The LF of such a line.
    TrailerEnd {
        is_last: bool,
        all: usize,
    },
    Done,
}

/// The chunks are not as they must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { size: 0, digits: 0, line: 0 },
        })
    }

    /// Whether it is over.
    pub(super) fn is_done(self) -> bool {
        self.0 == State::Done
    }

    /// Takes in what has come, and says how many bytes of it are the body's.
    ///
    /// # Errors
    /// They are no body.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.0 {
                State::Done => break,
                State::Length(left) | State::Data(left) => {
                    let piece =
                        (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= piece as u64;
                    at += piece;
                    match self.0 {
                        State::Length(0) => self.0 = State::Done,
                        State::Data(0) => self.0 = State::DataCr,
                        _ => {}
                    }
                }
                _ => {
                    self.0 = self.0.after(bytes[at])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }
}

impl State {
    /// What one byte of what is around the chunks makes of it.
    fn after(self, byte: u8) -> Result<Self, Malformed> {
        Ok(match (self, byte) {
            (
                Self::Size { line: LONGEST_LINE, .. } | Self::Extension { line: LONGEST_LINE, .. },
                _,
            )
            | (Self::Trailer { all: LONGEST_TRAILER, .. }, _) => return Err(Malformed),
            (Self::Size { size, digits, .. }, b'\r') if digits > 0 => Self::SizeEnd { size },
            (Self::Size { size, digits, line }, b';' | b' ' | b'\t') if digits > 0 => {
                Self::Extension { size, line: line + 1 }
            }
            (Self::Size { size, digits, line }, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                // So that it cannot overflow.
                if digits == 15 {
                    return Err(Malformed);
                }
                Self::Size {
                    size: size << 4 | u64::from(digit),
                    digits: digits + 1,
                    line: line + 1,
                }
            }
            (Self::Extension { size, .. }, b'\r') => Self::SizeEnd { size },
            (Self::Extension { size, line }, b' '..=b'~' | b'\t' | 0x80..) => {
                Self::Extension { size, line: line + 1 }
            }
            (Self::SizeEnd { size: 0 }, b'\n') => Self::Trailer { line: 0, all: 0 },
            (Self::SizeEnd { size }, b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size { size: 0, digits: 0, line: 0 },
            (Self::Trailer { line, all }, b'\r') => Self::TrailerEnd { is_last: line == 0, all },
            (Self::Trailer { line, all }, b' '..=b'~' | b'\t' | 0x80..) => {
                Self::Trailer { line: line + 1, all: all + 1 }
            }
            (Self::TrailerEnd { is_last: true, .. }, b'\n') => Self::Done,
            (Self::TrailerEnd { is_last: false, all }, b'\n') => Self::Trailer { line: 0, all },
            _ => return Err(Malformed),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunked(bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        let mut body = Body::new(Framing::Chunked);
        body.take(bytes).map(|taken| (taken, body.is_done()))
    }

    #[test]
    fn a_body_ends_where_it_says() {
        let mut body = Body::new(Framing::Length(5));
        assert_eq!((body.take(b"abc"), body.is_done()), (Ok(3), false));
        assert_eq!((body.take(b"deGET /"), body.is_done()), (Ok(2), true));
        assert_eq!(body.take(b"GET /"), Ok(0));
        assert!(Body::new(Framing::Length(0)).is_done());
        for (bytes, length) in [
            ("0\r\n\r\nGET", 5),
            ("5\r\nhello\r\n0\r\n\r\nGET", 15),
            ("1;a=b\r\nx\r\n00\r\nX: y\r\nZ:\r\n\r\nGET", 26),
        ] {
            assert_eq!(chunked(bytes.as_bytes()), Ok((length, true)), "{bytes}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(300));
        let trailer = format!("0\r\n{}", "x: y\r\n".repeat(3000));
        for bytes in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "0x1\r\n",
            "+1\r\n",
            "1\nx",
            "1\rx",
            "1\r\nxy",
            "1\r\nx\n",
            "1000000000000000\r\n",
            "0\r\n\rx",
            "0\r\nX\n",
            &long,
            &trailer,
        ] {
            assert_eq!(chunked(bytes.as_bytes()), Err(Malformed), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn chunks_are_found_however_they_arrive(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..6),
            cuts in proptest::collection::vec(1usize..40, 1..20),
        ) {
            let mut all = Vec::new();
            for chunk in &chunks {
                all.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                all.extend_from_slice(chunk);
                all.extend_from_slice(b"\r\n");
            }
            all.extend_from_slice(b"0\r\n\r\n");
            let length = all.len();
            all.extend_from_slice(b"GET http://next/ HTTP/1.1\r\n\r\n");
            let (mut body, mut taken, mut rest) = (Body::new(Framing::Chunked), 0, &*all);
            for cut in cuts.iter().cycle() {
                let piece = &rest[..(*cut).min(rest.len())];
                let used = body.take(piece).unwrap();
                taken += used;
                rest = &rest[used..];
                if body.is_done() {
                    break;
                }
                prop_assert!(used == piece.len() && !rest.is_empty());
            }
            prop_assert_eq!(taken, length);
        }
    }
}
