//! A whole file, of any size, as it is.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::archive::check;
use super::read::open;
use super::{failed, pump};
use crate::artifact::ArtifactError;
use crate::sandbox::reach::Reach;

/// How long a copy may take.
const COPY_TIME: Duration = Duration::from_secs(3600);
/// How much is in memory at once.
const PIECE: usize = 128 * 1024;

/// Writes a file to `into`, and gives its size. Blocks for as long as the disk and `into` need, an
/// hour at most, as far as `into` lets it.
///
/// # Errors
/// As of [`read`](super::read()), and those of `into`, which has some part of the file then.
pub(crate) fn copy<'a>(
    files: impl Into<Reach<'a>>,
    path: &str,
    into: &mut (dyn Write + Send),
) -> Result<u64, ArtifactError> {
    let files = files.into();
    pump::writing(files, into, |into| {
        let (mut file, _) = open(files, path)?;
        let deadline = Instant::now() + COPY_TIME;
        let mut piece = vec![0; PIECE];
        let mut bytes = 0;
        loop {
            check(deadline).map_err(|error| failed(path, error))?;
            let read = match file.read(&mut piece) {
                Ok(0) => return Ok(bytes),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(path, error)),
            };
            into.write_all(&piece[..read])
                .map_err(|error| ArtifactError::Io(format!("writing a copy of {path}"), error))?;
            bytes += read as u64;
        }
    })
}
