//! Bounded capture of one output stream of a command.
//!
//! The supervisor pushes whatever it reads from a pipe into a [`Capture`] and asks for the text
//! when the command is over. However much a command prints, a capture holds its beginning and its
//! end only, in at most about `6 * limit` bytes.
//!
//! What a capture leaves out is kept elsewhere, if it is (see [`spool`](super::spool)): as long as
//! a capture holds the whole stream ([`Capture::whole`]) nothing is lost.
//!
//! The text is what [`String::from_utf8_lossy`] makes of the whole stream. NULs, escape sequences
//! and carriage returns are kept. Merging two streams and stripping white space are not done here
//! (see [`shell`](super::shell)).

use std::collections::VecDeque;

use super::spool::Kept;

/// Stands in a [`Captured::text`] where the middle of a long output was left out.
pub(crate) const TRUNCATION_MARK: &str = "\n... (output truncated)\n";

/// No code point of a lossily decoded text stands for more bytes than this: four for a valid one,
/// three for a U+FFFD.
const MAX_BYTES_PER_CHAR: usize = 4;

/// The longest run of bytes that can precede a decoding boundary, see [`first_boundary`].
const ALIGNMENT_SLACK: usize = 3;

/// Collects one output stream in bounded memory. Allocates nothing until something is pushed.
#[derive(Debug)]
pub(crate) struct Capture {
    limit: usize,
    /// The first bytes. Full when it holds `limit * MAX_BYTES_PER_CHAR`: a stream that is longer
    /// than that has more than `limit` code points, so whatever follows is needed for the tail
    /// only.
    head: Vec<u8>,
    /// The last bytes of what did not fit into `head`.
    tail: VecDeque<u8>,
    total: u64,
}

/// One output stream, decoded and cut to size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Captured {
    /// The whole stream, or its first and last code points around [`TRUNCATION_MARK`].
    pub text: String,
    /// The length of the stream, in raw bytes.
    pub bytes: u64,
    /// How many of them `text` does not show. 0 if and only if the text is complete.
    pub omitted_bytes: u64,
    /// The file with the whole stream, where `text` is not complete and such files are wanted.
    pub kept: Option<Kept>,
}

impl Capture {
    /// An empty capture whose text will have at most `limit_chars` code points (and the mark).
    pub(crate) fn new(limit_chars: usize) -> Self {
        Self { limit: limit_chars, head: Vec::new(), tail: VecDeque::new(), total: 0 }
    }

    /// Takes the next bytes of the stream, cut wherever the pipe happened to cut them. Does not
    /// block.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = (self.limit * MAX_BYTES_PER_CHAR).saturating_sub(self.head.len());
        let (for_head, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(for_head);

        let capacity = self.tail_capacity();
        let rest = &rest[rest.len().saturating_sub(capacity)..];
        let surplus = (self.tail.len() + rest.len()).saturating_sub(capacity);
        self.tail.drain(..surplus);
        self.tail.extend(rest);
    }

    /// The stream up to now, if none of it was left out yet.
    pub(crate) fn whole(&self) -> Option<&[u8]> {
        (self.head.len() as u64 == self.total).then_some(&self.head)
    }

    /// Whether `more` bytes are too many to hold the whole stream any longer; then the text will
    /// leave something out, whatever they are.
    pub(crate) fn would_overflow(&self, more: usize) -> bool {
        self.total + more as u64 > (self.limit * MAX_BYTES_PER_CHAR) as u64
    }

    /// Whether the text leaves something out.
    pub(crate) fn is_cut(&self) -> bool {
        let too_long = |whole| chars(whole).nth(self.limit).is_some();
        self.whole().is_none_or(|whole| whole.len() > self.limit && too_long(whole))
    }

    /// Decodes what was captured.
    pub(crate) fn finish(mut self) -> Captured {
        let held = (self.head.len() + self.tail.len()) as u64;
        if held == self.total {
            self.head.extend(&self.tail);
            return self.finish_whole();
        }

        let tail = self.tail.make_contiguous();
        let tail = &tail[first_boundary(tail)..];
        let head_len = prefix_len(&self.head, self.limit / 2);
        let tail_start = suffix_start(tail, self.limit - self.limit / 2);
        cut(&self.head[..head_len], &tail[tail_start..], self.total)
    }

    /// [`finish`](Self::finish) where `head` holds the whole stream.
    fn finish_whole(self) -> Captured {
        let whole = &self.head[..];
        let shown_head = self.limit / 2;
        let shown_tail = self.limit - shown_head;
        if chars(whole).nth(self.limit).is_none() {
            let text = String::from_utf8_lossy(whole).into_owned();
            return Captured { text, bytes: self.total, ..Captured::default() };
        }
        let head_len = prefix_len(whole, shown_head);
        let tail_start = suffix_start(whole, shown_tail);
        cut(&whole[..head_len], &whole[tail_start..], self.total)
    }

    /// Enough bytes for the last half of the code points, whatever they are and wherever the ring
    /// begins.
    fn tail_capacity(&self) -> usize {
        (self.limit - self.limit / 2) * MAX_BYTES_PER_CHAR + ALIGNMENT_SLACK
    }
}

/// The text of a stream of `total` bytes of which only `head` and `tail` are shown.
fn cut(head: &[u8], tail: &[u8], total: u64) -> Captured {
    let text = [
        String::from_utf8_lossy(head).as_ref(),
        TRUNCATION_MARK,
        String::from_utf8_lossy(tail).as_ref(),
    ]
    .concat();
    let shown = (head.len() + tail.len()) as u64;
    Captured { text, bytes: total, omitted_bytes: total - shown, kept: None }
}

/// The code points of the lossily decoded `bytes`, each as the number of bytes it stands for.
fn chars(bytes: &[u8]) -> impl Iterator<Item = usize> {
    bytes.utf8_chunks().flat_map(|chunk| {
        let replaced = Some(chunk.invalid().len()).filter(|&len| len > 0);
        chunk.valid().chars().map(char::len_utf8).chain(replaced)
    })
}

/// The number of bytes of the first `count` code points.
fn prefix_len(bytes: &[u8], count: usize) -> usize {
    chars(bytes).take(count).sum()
}

/// Where the last `count` code points begin; 0 if there are fewer.
fn suffix_start(bytes: &[u8], count: usize) -> usize {
    let before = chars(bytes).count().saturating_sub(count);
    prefix_len(bytes, before)
}

/// The first position in the end of a stream from which on it decodes as it does as a part of the
/// whole stream.
///
/// A byte that is no continuation byte always begins a code point (or a U+FFFD of its own). A
/// continuation byte with three of its kind before it does too, since no code point has more than
/// three. So one of the first four positions is a boundary.
fn first_boundary(bytes: &[u8]) -> usize {
    let continuation = |byte: &u8| (0x80..0xc0).contains(byte);
    bytes.iter().take(ALIGNMENT_SLACK).take_while(|byte| continuation(byte)).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What [`Capture`] promises, with the whole stream in memory.
    fn naive(stream: &[u8], limit: usize) -> Captured {
        let text = String::from_utf8_lossy(stream).into_owned();
        let bytes = stream.len() as u64;
        let points: Vec<char> = text.chars().collect();
        if points.len() <= limit {
            return Captured { text, bytes, ..Captured::default() };
        }
        let head: String = points[..limit / 2].iter().collect();
        let tail: String = points[points.len() - (limit - limit / 2)..].iter().collect();
        // The bytes left out are found by looking for the one cut that gives these two texts.
        let lossy = |range: &[u8]| String::from_utf8_lossy(range).into_owned();
        let decodes = |at: usize| lossy(&stream[..at]) + &lossy(&stream[at..]) == text;
        let from = (0..=stream.len()).find(|&n| decodes(n) && lossy(&stream[..n]) == head);
        let to = (0..=stream.len()).rev().find(|&n| decodes(n) && lossy(&stream[n..]) == tail);
        let omitted_bytes = (to.expect("a tail") - from.expect("a head")) as u64;
        Captured { text: head + TRUNCATION_MARK + &tail, bytes, omitted_bytes, kept: None }
    }

    fn capture(stream: &[u8], limit: usize, chunk: usize) -> Captured {
        let mut capture = Capture::new(limit);
        stream.chunks(chunk.max(1)).for_each(|bytes| capture.push(bytes));
        capture.finish()
    }

    /// Fragments that meet every branch of a UTF-8 decoder: all lengths, cut off at every byte,
    /// overlong, surrogate, out of range, and lone continuation bytes.
    fn fragment() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(b"a".to_vec()),
            Just("é".into()),
            Just("€".into()),
            Just("😀".into()),
            Just(b"\xe2\x82".to_vec()),
            Just(b"\xf0\x9f\x98".to_vec()),
            Just(b"\xf0\x9f".to_vec()),
            Just(b"\xc3".to_vec()),
            Just(b"\x80".to_vec()),
            Just(b"\x80\x80\x80\x80\x80".to_vec()),
            Just(b"\xed\xa0\x80".to_vec()),
            Just(b"\xf4\x90\x80\x80".to_vec()),
            Just(b"\xc0\xaf".to_vec()),
            Just(b"\xff".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4),
        ]
    }

    proptest! {
        #[test]
        fn a_capture_in_any_chunks_equals_the_naive_model(
            fragments in proptest::collection::vec(fragment(), 0..80),
            limit in 0_usize..24,
            chunks in proptest::collection::vec(0_usize..40, 1..20),
        ) {
            let stream = fragments.concat();
            let mut capture = Capture::new(limit);
            let mut rest = &stream[..];
            for size in chunks.iter().cycle() {
                let (chunk, after) = rest.split_at((size + 1).min(rest.len()));
                capture.push(chunk);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(capture.finish(), naive(&stream, limit));
        }
    }

    #[test]
    fn a_text_of_exactly_the_limit_is_complete_and_one_more_is_cut() {
        let exact = "é".repeat(10);
        let captured = capture(exact.as_bytes(), 10, 3);
        assert_eq!((captured.text, captured.omitted_bytes), (exact, 0));

        let captured = capture("é".repeat(11).as_bytes(), 10, 3);
        assert_eq!(captured.text, format!("ééééé{TRUNCATION_MARK}ééééé"));
        assert_eq!((captured.bytes, captured.omitted_bytes), (22, 2));
    }

    #[test]
    fn nul_escapes_and_carriage_returns_are_kept() {
        let captured = capture(b"a\0\x1b[31mb\r\n", 50_000, 2);
        assert_eq!(captured.text, "a\0\x1b[31mb\r\n");
    }

    #[test]
    fn an_empty_capture_allocates_nothing() {
        let capture = Capture::new(50_000);
        assert_eq!((capture.head.capacity(), capture.tail.capacity()), (0, 0));
        assert_eq!(capture.finish(), Captured::default());
    }

    #[test]
    fn memory_stays_bounded_and_counts_exact_over_200_mb() {
        let chunk = [b'y'; 65_536];
        let mut capture = Capture::new(50_000);
        for _ in 0..3_200 {
            capture.push(&chunk);
        }
        assert!(capture.head.capacity() <= 2 * 200_000);
        assert!(capture.tail.capacity() <= 4 * 100_000);
        let captured = capture.finish();
        assert_eq!(captured.bytes, 3_200 * 65_536);
        assert_eq!(captured.omitted_bytes, 3_200 * 65_536 - 50_000);
        assert_eq!(captured.text.chars().count(), 50_000 + TRUNCATION_MARK.len());
    }
}
