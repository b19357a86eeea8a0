//! A file of whole lines: what is written to it never ends in half a line, whatever happens to the
//! disk.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// How much is gathered before it is written.
const GATHERED: usize = 1 << 16;

/// What lines are written to.
pub(super) trait Target: Write {
    /// Takes away what is beyond the first `length` bytes, where that can be done.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl Target for File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        // What went into a pipe is gone.
        match self.metadata()?.is_file() {
            true => {
                self.set_len(length)?;
                io::Seek::seek(self, io::SeekFrom::Start(length)).map(drop)
            }
            false => Ok(()),
        }
    }
}

/// A file of whole lines. Lines stay in memory until [`flush`](Self::flush), or until there are
/// many.
pub(super) struct LineFile<T = File> {
    target: T,
    /// Whole lines that are not written yet.
    lines: Vec<u8>,
    /// Bytes of the whole lines that were written.
    written: u64,
    /// Whether a part of a line may follow them.
    is_torn: bool,
}

impl LineFile {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// Those of creating a file.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        File::create(path).map(Self::over)
    }
}

impl<T: Target> LineFile<T> {
    fn over(target: T) -> Self {
        Self { target, lines: Vec::with_capacity(GATHERED), written: 0, is_torn: false }
    }

    /// Adds a line: the value as JSON.
    ///
    /// # Errors
    /// Those of writing: the disk is full, the reader is gone, ….
    pub(super) fn add(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        let before = self.lines.len();
        if let Err(error) = serde_json::to_writer(&mut self.lines, value) {
            self.lines.truncate(before);
            return Err(error.into());
        }
        self.lines.push(b'\n');
        if self.lines.len() >= GATHERED { self.flush() } else { Ok(()) }
    }

    /// Hands all lines to the operating system. After an error those that it did not take whole are
    /// still here, and may be flushed again.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.is_torn {
            self.target.cut(self.written)?;
            self.is_torn = false;
        }
        let mut taken = 0;
        let mut result = Ok(());
        while result.is_ok() && taken < self.lines.len() {
            match self.target.write(&self.lines[taken..]) {
                Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => taken += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => result = Err(error),
            }
        }
        let whole = self.lines[..taken].iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |last| last + 1);
        self.written += whole as u64;
        self.lines.drain(..whole);
        if whole < taken {
            // Stays so if the cut fails, and is then tried again before anything follows.
            self.is_torn = true;
            self.target.cut(self.written)?;
            self.is_torn = false;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A disk with little room, which takes a few bytes at a time.
    #[derive(Default)]
    struct SmallDisk {
        content: Vec<u8>,
        room: usize,
        at_once: usize,
    }

    impl Write for SmallDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let length = bytes.len().min(self.room - self.content.len()).min(self.at_once);
            if length == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.content.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Target for SmallDisk {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            self.content.truncate(length as usize);
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn a_full_disk_holds_the_first_lines_whole_and_the_others_once_there_is_room(
            lines in proptest::collection::vec("[a-z]{0,40}", 0..30),
            flush_each in any::<bool>(),
            room in 0..800_usize,
            at_once in 1..50_usize,
        ) {
            let all: String = lines.iter().map(|line| format!("\"{line}\"\n")).collect();
            let mut file = LineFile::over(SmallDisk { room, at_once, ..SmallDisk::default() });
            for line in &lines {
                file.add(line).unwrap();
                if flush_each {
                    let _ = file.flush();
                }
            }
            let flushed = file.flush();
            prop_assert_eq!(flushed.is_ok(), all.len() <= room);
            let content = String::from_utf8(file.target.content.clone()).unwrap();
            prop_assert!(content.is_empty() || content.ends_with('\n'));
            prop_assert!(all.starts_with(&content));
            let next = all[content.len()..].find('\n').map_or(0, |end| end + 1);
            prop_assert!(flushed.is_ok() || content.len() + next > room);
            file.target.room = all.len();
            file.flush().unwrap();
            prop_assert_eq!(String::from_utf8(file.target.content.clone()).unwrap(), all);
        }
    }

    #[test]
    fn a_file_is_cut_to_its_last_whole_line_and_goes_on_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lines");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"1\n2\nhalf").unwrap();
        file.cut(4).unwrap();
        file.write_all(b"3\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n3\n");
        File::create("/dev/null").unwrap().cut(4).unwrap();
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut file = LineFile::create(Path::new("/dev/full")).unwrap();
        let error = file.add(&1).and_then(|()| file.flush()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
