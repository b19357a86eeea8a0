//! A part of one file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::{Found, as_owner, at_place, failed, found, shown};
use crate::artifact::{Artifact, ArtifactError, MAX_ARTIFACT_BYTES, ReadArtifact};
use crate::sandbox::files::{errno_of, open_leaf};
use crate::sandbox::reach::Reach;

/// How long a whole file is hashed. A model can make one of eight exabytes in no time.
const HASH_TIME: Duration = Duration::from_secs(60);

/// Reads a part of a file. Waits for nothing but the disk; a checksum of the
/// whole file that would take more than a minute is left out.
///
/// # Errors
/// [`ArtifactError::Outside`], [`NotFound`](ArtifactError::NotFound),
/// [`NotAFile`](ArtifactError::NotAFile) or [`Io`](ArtifactError::Io).
pub(crate) fn read<'a>(
    files: impl Into<Reach<'a>>,
    request: &ReadArtifact,
) -> Result<Artifact, ArtifactError> {
    read_within(files.into(), request, HASH_TIME)
}

/// [`read`] with another time limit for the checksum of the whole file.
pub(super) fn read_within(
    files: Reach<'_>,
    request: &ReadArtifact,
    hash_time: Duration,
) -> Result<Artifact, ArtifactError> {
    as_owner(files, || {
        let (file, path) = open(files, &request.path)?;
        part(&file, shown(&path), request, hash_time).map_err(|error| failed(&request.path, error))
    })
}

/// The file at `given`, and its path from the workspace.
pub(super) fn open(files: Reach<'_>, given: &str) -> Result<(File, PathBuf), ArtifactError> {
    let not_a_file = || ArtifactError::NotAFile(given.to_owned());
    at_place(&files.view(), given, |place| match found(place) {
        Found::Regular(_) => match open_leaf(place, OFlags::RDONLY)? {
            Some(file) => Ok((file, place.path())),
            None => Err(not_a_file().into()),
        },
        Found::Directory | Found::Other => Err(not_a_file().into()),
        Found::Nothing => Err(ArtifactError::NotFound(given.to_owned()).into()),
    })
}

fn part(
    file: &File,
    path: String,
    request: &ReadArtifact,
    hash_time: Duration,
) -> io::Result<Artifact> {
    let max = request.max_bytes.clamp(1, MAX_ARTIFACT_BYTES);
    let offset = request.offset;
    let size = file.metadata()?.len();
    let mut content = Vec::new();
    if offset < size {
        // One byte more tells whether the file goes on, also if it is growing.
        At { file, offset }.take(max + 1).read_to_end(&mut content)?;
    }
    let truncated = content.len() as u64 > max;
    let seen = if content.is_empty() { 0 } else { offset + content.len() as u64 };
    if truncated {
        content.pop();
    }
    let file_size = file.metadata()?.len().max(seen);
    let sha256 = request.sha256.then(|| hex(&Sha256::digest(&content)));
    let file_sha256 =
        if request.file_sha256 { whole_sha256(file, file_size, hash_time)? } else { None };
    let mime = mime(&path);
    Ok(Artifact { content, offset, file_size, truncated, path, mime, sha256, file_sha256 })
}

/// A file from some place on. Its own position is not used.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(buffer, self.offset)?;
        self.offset += got as u64;
        Ok(got)
    }
}

/// The checksum of the first `size` bytes; `None` if there is no time for it.
fn whole_sha256(file: &File, size: u64, time: Duration) -> io::Result<Option<String>> {
    let deadline = Instant::now() + time;
    let mut hasher = Sha256::new();
    let mut source = At { file, offset: 0 }.take(size);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(Some(hex(&hasher.finalize()))),
            Ok(got) => hasher.update(&buffer[..got]),
            Err(error) if errno_of(&error) == rustix::io::Errno::INTR => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// The type of a file by its name.
fn mime(path: &str) -> String {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    // What clients expect of these, whatever the table says.
    let known = match extension.map(str::to_ascii_lowercase).as_deref() {
        Some("log") => Some("text/plain"),
        Some("md") => Some("text/markdown"),
        Some("xml") => Some("application/xml"),
        Some("tgz" | "gz") => Some("application/gzip"),
        _ => mime_guess::from_path(path).first_raw(),
    };
    known.unwrap_or("application/octet-stream").to_owned()
}
