//! A directory of the host as a tar stream, read as it is made.
//!
//! It has regular files, directories and symlinks (as symlinks), sorted by name, each directory
//! before what is in it, with modes and modification times. Devices, sockets and FIFOs are left
//! out and counted. What is in memory is a piece of a file, and the names of the directories that
//! are open.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// The size of a record of a tar stream.
const BLOCK: u64 = 512;

/// The stream.
pub(super) struct HostTree {
    root: PathBuf,
    /// Directories in each other, each with the names in it that are still to come, the last first.
    open: Vec<(PathBuf, Vec<OsString>)>,
    /// What is to be given next: headers, and what fills a file's last record.
    ready: io::Cursor<Vec<u8>>,
    /// The file that is being given, how much of it is left, and what fills its last record.
    file: Option<(File, u64, usize)>,
    /// Its name, for errors.
    path: PathBuf,
    ended: bool,
    skipped: u64,
}

impl HostTree {
    /// What is in this directory.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let names = names_in(root)?;
        Ok(Self {
            root: root.to_owned(),
            open: vec![(PathBuf::new(), names)],
            ready: io::Cursor::default(),
            file: None,
            path: PathBuf::new(),
            ended: false,
            skipped: 0,
        })
    }

    /// How many entries were left out so far.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Prepares the next entry, or the end.
    fn advance(&mut self) -> io::Result<()> {
        let Some((directory, names)) = self.open.last_mut() else {
            self.ready = io::Cursor::new(vec![0; 2 * BLOCK as usize]);
            self.ended = true;
            return Ok(());
        };
        let Some(name) = names.pop() else {
            self.open.pop();
            return Ok(());
        };
        self.path = directory.join(name);
        let there = self.root.join(&self.path);
        let data = fs::symlink_metadata(&there)?;
        let kind = data.file_type();
        if kind.is_dir() {
            self.ready = entry(EntryType::Directory, &data, 0, &self.path.join(""), None)?;
            let names = names_in(&there)?;
            self.open.push((self.path.clone(), names));
        } else if kind.is_symlink() {
            let target = fs::read_link(&there)?;
            self.ready = entry(EntryType::Symlink, &data, 0, &self.path, Some(&target))?;
        } else if kind.is_file() {
            let file = File::open(&there)?;
            // That of what was opened.
            let data = file.metadata()?;
            if !data.is_file() {
                let text = format!("{} has become something else", there.display());
                return Err(io::Error::other(text));
            }
            self.ready = entry(EntryType::Regular, &data, data.len(), &self.path, None)?;
            let fill = data.len().next_multiple_of(BLOCK) - data.len();
            self.file = Some((file, data.len(), fill as usize));
        } else {
            self.skipped += 1;
        }
        Ok(())
    }
}

impl Read for HostTree {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let read = self.ready.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            let named = |path: &Path, error: io::Error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            };
            if let Some((file, left, fill)) = &mut self.file {
                if *left == 0 {
                    self.ready = io::Cursor::new(vec![0; *fill]);
                    self.file = None;
                    continue;
                }
                let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                let read =
                    file.read(&mut buffer[..most]).map_err(|error| named(&self.path, error))?;
                if read == 0 {
                    let text = "it became shorter while it was read".to_owned();
                    return Err(named(&self.path, io::Error::other(text)));
                }
                *left -= read as u64;
                return Ok(read);
            }
            if self.ended {
                return Ok(0);
            }
            self.advance().map_err(|error| named(&self.root.join(&self.path), error))?;
        }
    }
}

/// The names in a directory, the last first.
fn names_in(directory: &Path) -> io::Result<Vec<OsString>> {
    let names: io::Result<Vec<_>> =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect();
    let mut names = names?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

/// The records that come before an entry's content.
fn entry(
    kind: EntryType,
    data: &Metadata,
    size: u64,
    path: &Path,
    target: Option<&Path>,
) -> io::Result<io::Cursor<Vec<u8>>> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(data.mode() & 0o777);
    header.set_uid(u64::from(data.uid()));
    header.set_gid(u64::from(data.gid()));
    header.set_mtime(u64::try_from(data.mtime()).unwrap_or(0));
    header.set_size(size);
    let mut records = Builder::new(Vec::new());
    match target {
        Some(target) => records.append_link(&mut header, path, target)?,
        None => records.append_data(&mut header, path, io::empty())?,
    }
    // Without the end of an archive, which `into_inner` would write.
    let records = std::mem::take(records.get_mut());
    Ok(io::Cursor::new(records))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_is_read_as_an_archive_whatever_is_in_it() {
        let tree = tempfile::tempdir().unwrap();
        let at = |name: &str| tree.path().join(name);
        let long = "l".repeat(200);
        fs::create_dir_all(at("b/empty")).unwrap();
        fs::write(at("b/f"), vec![7; 1024]).unwrap();
        fs::write(at("b/g"), vec![8; 1025]).unwrap();
        fs::write(at("a"), "").unwrap();
        fs::write(at(&long), "long").unwrap();
        symlink("../nowhere", at("b/link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let mut stream = HostTree::open(tree.path()).unwrap();
        let mut bytes = Vec::new();
        // In pieces of no round size.
        let mut piece = [0; 77];
        loop {
            match stream.read(&mut piece).unwrap() {
                0 => break,
                read => bytes.extend_from_slice(&piece[..read]),
            }
        }
        assert_eq!((stream.skipped(), bytes.len() % 512), (1, 0));
        let to = tempfile::tempdir().unwrap();
        let mut archive = tar::Archive::new(&*bytes);
        archive.unpack(to.path()).unwrap();
        let there = |name: &str| fs::read(to.path().join(name)).unwrap();
        assert_eq!((there("b/f"), there("b/g").len()), (vec![7; 1024], 1025));
        assert_eq!((there("a"), there(&long)), (Vec::new(), b"long".to_vec()));
        assert!(to.path().join("b/empty").is_dir());
        assert_eq!(fs::read_link(to.path().join("b/link")).unwrap(), Path::new("../nowhere"));
        assert!(HostTree::open(&at("a")).is_err());
    }
}
