//! The input: a thread that reads lines, makes trajectories of them, and names them. Input that is
//! packed is unpacked on the way.
//!
//! Reads one line at a time and never further ahead than its channel holds, so memory does not
//! grow with the input. A malformed line is an [`Item`] like any other, and the reading goes on;
//! only an I/O error ends it. Knows no executor.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::decompress::{self, MAGIC_LENGTH, Packing};
use super::reading::CallReading;
use super::trajectory::{self, Trajectory};

/// The longest line, in bytes. A longer one is malformed and is skipped without being held.
const MAX_LINE_BYTES: usize = 64 << 20;

/// Trajectories that are read ahead.
const READ_AHEAD: usize = 16;

/// What the input gives, in the order of its lines. Its end is the end of the channel.
#[derive(Debug)]
pub(crate) enum Item {
    /// A trajectory to run.
    Trajectory(Trajectory),
    /// A line that is none.
    Malformed {
        /// Counted from 1.
        line: u64,
        /// One phrase that says what is wrong.
        problem: String,
    },
    /// Reading failed. Nothing follows.
    Failed(io::Error),
}

/// Which trajectories to make of the lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection {
    /// The first so many, if set; malformed lines do not count.
    pub(crate) limit: Option<u64>,
    /// How many times each runs.
    pub(crate) repeat: u32,
}

/// Opens the input, `-` being standard input. Blocks where opening does (a FIFO without a writer).
///
/// # Errors
/// Those of opening the file.
pub(crate) fn open(path: &Path) -> io::Result<Box<dyn BufRead + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        let problem = "is a directory; name a file of JSON Lines in it";
        return Err(io::Error::new(io::ErrorKind::IsADirectory, problem));
    }
    Ok(Box::new(BufReader::with_capacity(1 << 16, file)))
}

/// How many trajectories a regular file holds if no line is malformed: its lines that are not
/// blank. `None` where that cannot be known before the end, or only by unpacking all of it.
pub(crate) fn count_lines(path: &Path) -> Option<u64> {
    // Asked before opening: a FIFO whose writer is gone would never open again.
    if !path.metadata().ok()?.is_file() {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let mut start = Vec::new();
    file.by_ref().take(MAGIC_LENGTH as u64).read_to_end(&mut start).ok()?;
    if decompress::packing_of(&start) != Packing::Plain {
        return None;
    }
    let mut file = io::Cursor::new(start).chain(file);
    let mut chunk = vec![0; 1 << 16];
    let (mut lines, mut blank) = (0, true);
    loop {
        let length = file.read(&mut chunk).ok()?;
        if length == 0 {
            return Some(lines + u64::from(!blank));
        }
        for &byte in &chunk[..length] {
            if byte == b'\n' {
                lines += u64::from(!blank);
                blank = true;
            } else {
                blank &= byte.is_ascii_whitespace();
            }
        }
    }
}

/// Starts reading in a thread of its own.
///
/// The thread ends at the end of the input, or soon after the receiver is dropped. It is not
/// joined: it may be waiting for a line of standard input that never comes.
///
/// # Errors
/// Those of starting a thread.
pub(crate) fn read_in_background(
    reader: Box<dyn BufRead + Send>,
    selection: Selection,
    reading: CallReading,
) -> io::Result<Receiver<Item>> {
    let (sender, receiver) = bounded(READ_AHEAD);
    #[expect(
        clippy::disallowed_methods,
        reason = "it may wait for input that never comes; the program ends without it"
    )]
    thread::Builder::new().name("replay-input".to_owned()).spawn(move || {
        // Only a receiver that is gone ends the reading early, and it needs no answer.
        let _ = match decompress::unpacked(reader) {
            Ok(reader) => read(Lines::new(reader, MAX_LINE_BYTES), selection, &reading, &sender),
            Err(error) => sender.send(Item::Failed(error)).map_err(|_| ReceiverGone),
        };
    })?;
    Ok(receiver)
}

/// The receiver is gone.
struct ReceiverGone;

fn read<R: BufRead>(
    mut lines: Lines<R>,
    selection: Selection,
    reading: &CallReading,
    sender: &Sender<Item>,
) -> Result<(), ReceiverGone> {
    let send = |item| sender.send(item).map_err(|_| ReceiverGone);
    let mut names = Names::default();
    let mut taken = 0;
    while selection.limit.is_none_or(|limit| taken < limit) {
        let (line, text) = match lines.next() {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(()),
            Err(error) => return send(Item::Failed(error)),
        };
        let recording = text.and_then(|text| match text.trim() {
            "" => Ok(None),
            text => trajectory::parse_line(text, reading).map(Some),
        });
        match recording {
            Ok(None) => {}
            Ok(Some(recording)) => {
                taken += 1;
                let task_id = recording.id.unwrap_or_else(|| format!("line-{line}"));
                let name = names.unique(task_id.clone());
                let renamed = name != task_id;
                let task_id: Arc<str> = task_id.into();
                let steps: Arc<[_]> = recording.steps.into();
                let seen = Arc::new(recording.seen);
                let spec = recording.spec.map(Arc::new);
                for repetition in 1..=selection.repeat {
                    let id = match repetition {
                        1 => name.clone(),
                        _ => names.unique(format!("{name}#{repetition}")),
                    };
                    send(Item::Trajectory(Trajectory {
                        id: id.into(),
                        task_id: Arc::clone(&task_id),
                        line,
                        renamed,
                        repetition,
                        steps: Arc::clone(&steps),
                        seen: Arc::clone(&seen),
                        spec: spec.clone(),
                    }))?;
                }
            }
            Err(problem) => send(Item::Malformed { line, problem })?,
        }
    }
    Ok(())
}

/// The names in use, each with the number that its next namesake tries first.
#[derive(Default)]
struct Names(HashMap<String, u64>);

impl Names {
    /// `name`, or `name~2`, `name~3`, … if it is taken.
    fn unique(&mut self, name: String) -> String {
        let Some(&first) = self.0.get(&name) else {
            self.0.insert(name.clone(), 2);
            return name;
        };
        let mut number = first;
        let mut other = format!("{name}~{number}");
        while self.0.contains_key(&other) {
            number += 1;
            other = format!("{name}~{number}");
        }
        self.0.insert(name, number + 1);
        self.0.insert(other.clone(), 2);
        other
    }
}

/// Lines of bounded length.
struct Lines<R> {
    reader: R,
    max_bytes: usize,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn new(reader: R, max_bytes: usize) -> Self {
        Self { reader, max_bytes, number: 0, buffer: Vec::new() }
    }

    /// The next line with its number, or what is wrong with it. `None` at the end.
    fn next(&mut self) -> io::Result<Option<(u64, Result<&str, String>)>> {
        self.buffer.clear();
        let mut bounded = self.reader.by_ref().take(self.max_bytes as u64 + 1);
        if bounded.read_until(b'\n', &mut self.buffer)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let ended = self.buffer.last() == Some(&b'\n');
        if !ended && self.buffer.len() > self.max_bytes {
            self.reader.skip_until(b'\n')?;
            let problem = format!("longer than {} bytes", self.max_bytes);
            return Ok(Some((self.number, Err(problem))));
        }
        let bytes = match self.buffer.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) if self.number == 1 => rest,
            _ => &self.buffer,
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|error| format!("not UTF-8 (byte {})", error.valid_up_to() + 1));
        Ok(Some((self.number, text)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const ALL: Selection = Selection { limit: None, repeat: 1 };

    /// What a text gives: ids, or `line: problem`.
    fn items(text: impl AsRef<[u8]>, selection: Selection) -> Vec<String> {
        let reader = Box::new(Cursor::new(text.as_ref().to_vec()));
        read_in_background(reader, selection, CallReading::default())
            .unwrap()
            .into_iter()
            .map(|item| match item {
                Item::Trajectory(trajectory) => trajectory.id.to_string(),
                Item::Malformed { line, problem } => format!("{line}: {problem}"),
                Item::Failed(error) => format!("failed: {error}"),
            })
            .collect()
    }

    #[test]
    fn malformed_lines_are_reported_with_their_numbers_and_the_others_still_come() {
        let text =
            b"{\"id\":\"a\",\"calls\":[]}\n\nnonsense\n\xff\xfe\n{\"id\":\"b\",\"calls\":[]}";
        assert_eq!(
            items(text, ALL),
            ["a", "3: not JSON: Expecting value (byte 1)", "4: not UTF-8 (byte 1)", "b"]
        );
    }

    #[test]
    fn a_byte_order_mark_and_crlf_and_blank_lines_are_tolerated() {
        let text = "\u{feff}{\"id\":\"a\",\"calls\":[]}\r\n\r\n \t\r\n{\"calls\":[]}\r\n";
        assert_eq!(items(text, ALL), ["a", "line-4"]);
    }

    #[test]
    fn every_trajectory_gets_an_id_of_its_own() {
        let line = |id: &str| format!("{{\"id\":\"{id}\",\"calls\":[]}}\n");
        let text = line("a#2") + &line("a") + &line("a") + &line("a~2");
        assert_eq!(
            items(text, Selection { limit: None, repeat: 2 }),
            ["a#2", "a#2#2", "a", "a#2~2", "a~2", "a~2#2", "a~2~2", "a~2~2#2"]
        );
    }

    #[test]
    fn the_limit_counts_trajectories_before_they_are_repeated() {
        let text =
            "{\"id\":\"a\",\"calls\":[]}\nbad\n{\"id\":\"b\",\"calls\":[]}\n{\"calls\":[]}\n";
        let ids = items(text, Selection { limit: Some(2), repeat: 2 });
        assert_eq!(ids, ["a", "a#2", "2: not JSON: Expecting value (byte 1)", "b", "b#2"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_one_is_read() {
        let text = format!("{}\nshort\n{}", "x".repeat(100_000), "y".repeat(11));
        let mut lines = Lines::new(BufReader::with_capacity(16, Cursor::new(text)), 10);
        let too_long = Err("longer than 10 bytes".to_owned());
        assert_eq!(lines.next().unwrap(), Some((1, too_long.clone())));
        assert_eq!(lines.next().unwrap(), Some((2, Ok("short\n"))));
        assert_eq!(lines.next().unwrap(), Some((3, too_long)));
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn a_line_that_unpacks_to_far_more_than_is_held_is_skipped_too() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        for _ in 0..1000 {
            encoder.write_all(&[b'x'; 100_000]).unwrap();
        }
        encoder.write_all(b"\nshort\n").unwrap();
        let bomb = encoder.finish().unwrap();
        assert!(bomb.len() < 1_000_000);
        let mut lines = Lines::new(decompress::unpacked(Box::new(Cursor::new(bomb))).unwrap(), 10);
        assert_eq!(lines.next().unwrap(), Some((1, Err("longer than 10 bytes".to_owned()))));
        assert!(lines.buffer.capacity() < 1000);
        assert_eq!(lines.next().unwrap(), Some((2, Ok("short\n"))));
    }

    #[test]
    fn an_id_that_is_taken_is_marked_and_the_id_of_the_input_is_kept() {
        let text = "{\"id\":\"a\",\"calls\":[]}\n".repeat(2) + "{\"calls\":[]}";
        let reader = Box::new(Cursor::new(text));
        let selection = Selection { limit: None, repeat: 2 };
        let read = read_in_background(reader, selection, CallReading::default()).unwrap();
        let found: Vec<_> = read
            .into_iter()
            .map(|item| match item {
                Item::Trajectory(t) => {
                    format!("{} {} {} {} {}", t.id, t.task_id, t.line, t.repetition, t.renamed)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        let expected = [
            "a a 1 1 false",
            "a#2 a 1 2 false",
            "a~2 a 2 1 true",
            "a~2#2 a 2 2 true",
            "line-3 line-3 3 1 false",
            "line-3#2 line-3 3 2 false",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_read_error_ends_the_input_and_is_told() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the disk is gone"))
            }
        }
        let reader = Box::new(BufReader::new(Fails));
        let receiver = read_in_background(reader, ALL, CallReading::default()).unwrap();
        let items: Vec<_> = receiver.into_iter().collect();
        assert!(
            matches!(&items[..], [Item::Failed(error)] if error.to_string() == "the disk is gone")
        );
    }

    #[test]
    fn lines_are_counted_without_the_blank_ones() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"a\n\r\n \nb\nc").unwrap();
        assert_eq!(count_lines(file.path()), Some(3));
        let mut packed = tempfile::NamedTempFile::new().unwrap();
        packed.write_all(b"\x1f\x8b\n\n").unwrap();
        assert_eq!(count_lines(packed.path()), None);
        assert_eq!(count_lines(Path::new("/")), None);
        assert_eq!(count_lines(Path::new("-")), None);
    }
}
