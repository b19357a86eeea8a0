//! The recording of a terminal: an asciicast (version 2), made on this side of the sandbox's wall,
//! so that nothing inside can change what was recorded.
//!
//! To whoever reads it, it is a file that grows at its end: a line about the terminal, then a line
//! for each *event*, `[seconds, "o", "text"]`. Only its last part is in memory ([`LIMIT`]): of a
//! terminal that prints more than is read, the oldest events are dropped, and the reader is told.
//!
//! Text is cut between characters, wherever tmux cut it; bytes that are not UTF-8 become U+FFFD.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::arguments::Size;
use crate::tool::python_json::{NonAscii, write_string};

/// How many bytes of events are kept.
pub(super) const LIMIT: usize = 1024 * 1024;
/// An event has no more text than this, and so a line no more than six times that.
const EVENT_BYTES: usize = 4096;
/// What is printed within this time is one event.
const EVENT_TIME: Duration = Duration::from_millis(5);

/// A recording, and how far it was read.
#[derive(Debug)]
pub(super) struct Recording {
    started: Instant,
    header: String,
    /// Whole lines.
    events: VecDeque<u8>,
    /// Where in the recording `events` begins. The header is the part before the first event.
    start: u64,
    /// How far it was read.
    offset: u64,
    /// The event that is not over yet: its time and its text.
    open: Option<(Instant, String)>,
    /// The beginning of a character, at most 3 bytes.
    split: Vec<u8>,
}

/// A part of a recording.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Whole lines.
    pub(super) text: String,
    /// Where the next part begins.
    pub(super) offset: u64,
    /// How many bytes were dropped unread, just before this part.
    pub(super) dropped: u64,
}

impl Recording {
    /// One that begins now.
    pub(super) fn new(size: Size, shell: &str, term: &str, now: Instant) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let header = json!({
            "version": 2,
            "width": size.width,
            "height": size.height,
            "timestamp": since_epoch.as_secs(),
            "env": {"SHELL": shell, "TERM": term},
        });
        let header = format!("{header}\n");
        Self {
            started: now,
            start: header.len() as u64,
            header,
            events: VecDeque::new(),
            offset: 0,
            open: None,
            split: Vec::new(),
        }
    }

    /// Records that the terminal has printed this.
    pub(super) fn push(&mut self, bytes: &[u8], now: Instant) {
        let over = |(since, text): &(Instant, String)| {
            text.len() >= EVENT_BYTES || now.saturating_duration_since(*since) > EVENT_TIME
        };
        if self.open.as_ref().is_some_and(over) {
            self.close_event();
        }
        self.split.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.split);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (text, broken) = match std::str::from_utf8(rest) {
                Ok(text) => (text, Some(0)),
                Err(error) => {
                    let text = rest[..error.valid_up_to()].utf8_chunks().next();
                    (text.map_or("", |chunk| chunk.valid()), error.error_len())
                }
            };
            self.push_text(text, now);
            rest = &rest[text.len()..];
            match broken {
                Some(0) => {}
                Some(broken) => {
                    self.push_text("\u{fffd}", now);
                    rest = &rest[broken..];
                }
                // The rest of it is still to come.
                None => {
                    self.split.extend_from_slice(rest);
                    break;
                }
            }
        }
    }

    fn push_text(&mut self, mut text: &str, now: Instant) {
        while !text.is_empty() {
            let (_, open) = self.open.get_or_insert_with(|| (now, String::new()));
            let room = EVENT_BYTES.saturating_sub(open.len());
            let fits = |&cut: &usize| text.is_char_boundary(cut);
            let cut = (0..=room.min(text.len())).rev().find(fits).unwrap_or(0);
            open.push_str(&text[..cut]);
            text = &text[cut..];
            if !text.is_empty() {
                self.close_event();
            }
        }
    }

    /// Makes a line of the event that is open.
    fn close_event(&mut self) {
        let Some((time, text)) = self.open.take() else { return };
        let seconds = time.saturating_duration_since(self.started).as_secs_f64();
        let mut line = String::with_capacity(text.len() + 32);
        // Writing to a string does not fail.
        let _ = write!(line, "[{seconds:.6}, \"o\", ");
        write_string(&mut line, &text, NonAscii::Keep);
        line.push_str("]\n");
        // First, so that the queue never becomes larger than the limit.
        while self.events.len() + line.len() > LIMIT {
            let end = self.events.iter().position(|&byte| byte == b'\n');
            let first = end.map_or(self.events.len(), |end| end + 1);
            self.events.drain(..first);
            self.start += first as u64;
        }
        let needed = self.events.len() + line.len();
        if self.events.capacity() < needed {
            let capacity = (2 * needed).min(LIMIT);
            self.events.reserve_exact(capacity - self.events.len());
        }
        self.events.extend(line.as_bytes());
    }

    /// Reads on from the beginning the next time.
    pub(super) fn rewind(&mut self) {
        self.offset = 0;
    }

    /// Reads on: whole lines of at most `max_bytes`, or one line, where that is longer.
    pub(super) fn read(&mut self, max_bytes: usize) -> Part {
        self.close_event();
        let mut text = String::new();
        let header = self.header.len() as u64;
        if self.offset < header {
            text.push_str(&self.header);
            self.offset = header;
        }
        let dropped = self.start.saturating_sub(self.offset);
        let room = max_bytes.saturating_sub(text.len());
        // Dropped events would be missed in the middle of a part.
        if text.is_empty() || dropped == 0 {
            let from = (self.offset.max(self.start) - self.start) as usize;
            let length = self.lines_within(from, room, text.is_empty());
            let lines: Vec<u8> = self.events.range(from..from + length).copied().collect();
            text.push_str(&String::from_utf8_lossy(&lines));
            self.offset = self.start + (from + length) as u64;
            return Part { text, offset: self.offset, dropped };
        }
        Part { text, offset: self.offset, dropped: 0 }
    }

    /// The length of the whole lines from `from` on that fit into `room` bytes; with `at_least_one`
    /// that of the first one if it does not fit.
    fn lines_within(&self, from: usize, room: usize, at_least_one: bool) -> usize {
        let left = self.events.len() - from;
        let fitting = self.events.range(from..from + left.min(room));
        let last_end = fitting.rev().position(|&byte| byte == b'\n');
        match last_end {
            Some(after) => left.min(room) - after,
            None if at_least_one => {
                let end = self.events.range(from..).position(|&byte| byte == b'\n');
                end.map_or(0, |end| end + 1)
            }
            None => 0,
        }
    }

    /// How many bytes it holds in memory.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.events.capacity()
    }
}

/// What the events of a part of a recording say, put together.
#[cfg(test)]
pub(super) fn replay(part: &str) -> String {
    let mut text = String::new();
    for line in part.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        if let Some(event) = line.as_array() {
            assert!(event.len() == 3 && event[0].is_f64() && event[1] == "o", "{line}");
            text.push_str(event[2].as_str().expect("text"));
        } else {
            assert_eq!(line["version"], 2);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn recording() -> (Recording, Instant) {
        let now = Instant::now();
        (Recording::new(Size { width: 80, height: 24 }, "/bin/bash", "tmux", now), now)
    }

    #[test]
    fn a_recording_is_a_header_and_events() {
        let (mut recording, now) = recording();
        recording.push(b"a\x1b[1m\"\r\n", now + Duration::from_millis(1500));
        recording.push(b"b", now + Duration::from_millis(1502));
        recording.push("é\u{fffd}\0".as_bytes(), now + Duration::from_millis(2000));
        let part = recording.read(50_000);
        let (header, events) = part.text.split_once('\n').unwrap();
        let header: serde_json::Value = serde_json::from_str(header).unwrap();
        assert_eq!(
            (&header["version"], &header["width"], &header["height"]),
            (&2.into(), &80.into(), &24.into())
        );
        assert!(header["timestamp"].as_u64() > Some(1_700_000_000));
        assert_eq!(header["env"], json!({"SHELL": "/bin/bash", "TERM": "tmux"}));
        assert_eq!(
            events,
            "[1.500000, \"o\", \"a\\u001b[1m\\\"\\r\\nb\"]\n[2.000000, \"o\", \"é\u{fffd}\\u0000\"]\n"
        );
        assert_eq!((part.offset, part.dropped), (part.text.len() as u64, 0));
        assert_eq!(
            recording.read(50_000),
            Part { text: String::new(), offset: part.offset, dropped: 0 }
        );
        recording.rewind();
        assert_eq!(recording.read(50_000), part);
    }

    #[test]
    fn a_line_that_is_too_long_is_given_all_the_same() {
        let (mut recording, now) = recording();
        recording.push(&[b'x'; 10_000], now);
        let mut lines = Vec::new();
        loop {
            let part = recording.read(1);
            if part.text.is_empty() {
                break;
            }
            assert_eq!(part.text.matches('\n').count(), 1);
            lines.push(part.text);
        }
        assert_eq!(lines.len(), 4, "the header, and three events");
        assert_eq!(replay(&lines.concat()), "x".repeat(10_000));
    }

    #[test]
    fn of_a_flood_the_end_is_kept_and_what_is_missing_is_told() {
        let (mut recording, now) = recording();
        let first = recording.read(50_000);
        for number in 0..100_000 {
            recording.push(format!("line {number} \x1b\x1b\x1b\r\n").as_bytes(), now);
            assert!(recording.kept() <= LIMIT);
        }
        let mut text = String::new();
        let mut dropped = 0;
        let mut offset = first.offset;
        loop {
            let part = recording.read(200_000);
            assert_eq!(part.offset, offset + part.dropped + part.text.len() as u64);
            offset = part.offset;
            if part.text.is_empty() {
                break;
            }
            dropped += part.dropped;
            text.push_str(&part.text);
        }
        assert!(dropped > 0 && text.len() <= LIMIT && text.len() > LIMIT / 2);
        assert!(replay(&text).ends_with("line 99999 \x1b\x1b\x1b\r\n"));
        // From the beginning: the header first, and what is missing is told with what follows it.
        recording.rewind();
        let header = recording.read(200_000);
        assert_eq!((header.text, header.dropped), (first.text, 0));
        assert_eq!(recording.read(200_000).dropped, dropped);
    }

    proptest! {
        #[test]
        fn events_put_together_are_what_was_printed(
            pieces in proptest::collection::vec(
                (prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..40),
                    "[é中😀\u{301}a\\n]{0,20}".prop_map(String::into_bytes),
                    Just("é中".repeat(3000).into_bytes()),
                ], 0u64..20, proptest::option::of(1usize..9000)),
                0..30,
            ),
            cut in 1usize..7,
        ) {
            let (mut recording, mut now) = recording();
            let (mut printed, mut streamed) = (Vec::new(), String::new());
            for (piece, milliseconds, read) in pieces {
                now += Duration::from_millis(milliseconds);
                for piece in piece.chunks(if piece.len() > 1000 { 2701 } else { cut }) {
                    recording.push(piece, now);
                    printed.extend_from_slice(piece);
                }
                if let Some(max_bytes) = read {
                    let part = recording.read(max_bytes);
                    prop_assert!(part.text.len() <= max_bytes || part.text.matches('\n').count() == 1);
                    prop_assert!(part.text.is_empty() || part.text.ends_with('\n'));
                    streamed.push_str(&part.text);
                    prop_assert_eq!(part.offset, streamed.len() as u64);
                }
            }
            // What is not whole at the end is not recorded yet.
            recording.push(b".", now);
            printed.push(b'.');
            loop {
                let part = recording.read(5000);
                if part.text.is_empty() {
                    break;
                }
                streamed.push_str(&part.text);
            }
            prop_assert_eq!(replay(&streamed), String::from_utf8_lossy(&printed));
            recording.rewind();
            let again = recording.read(usize::MAX).text;
            prop_assert_eq!(again, streamed);
        }
    }
}
