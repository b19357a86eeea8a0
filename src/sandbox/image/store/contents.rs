//! What a store has, for whoever tells others of it: by which names its images may be asked for.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ImageStore;
use crate::sandbox::image::ImageError;

/// A directory that has changed so lately may change again without looking different.
const LATELY: Duration = Duration::from_secs(2);

/// What was read of a store, so that it is read again only when that has changed.
#[derive(Debug, Default)]
pub(crate) struct ContentsReader {
    changed: Option<[(i64, i64); 2]>,
    /// What the images were imported from, by the names of their entries.
    sources: HashMap<String, String>,
}

impl ImageStore {
    /// The names, sources and digests by which images may be asked for that need no import, in no
    /// order; `None` if they are what they were when `reader` was here last.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub(crate) fn contents(
        &self,
        reader: &mut ContentsReader,
    ) -> Result<Option<Vec<String>>, ImageError> {
        let path = self.path().to_owned();
        let failed = |error: io::Error| ImageError::io("look at", &path, error);
        let changed = [
            changed(self.0.images.dir()).map_err(failed)?,
            changed(self.0.names.as_fd()).map_err(failed)?,
        ];
        if reader.changed == Some(changed) {
            return Ok(None);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let is_old = |(seconds, _): &(i64, i64)| {
            u64::try_from(*seconds).is_ok_and(|at| Duration::from_secs(at) + LATELY < now)
        };
        let entries = self.0.images.names()?;
        reader.sources.retain(|entry, _| entries.contains(entry));
        let mut contents = Vec::new();
        for entry in &entries {
            if !reader.sources.contains_key(entry)
                && let Ok(digest) = format!("sha256:{entry}").parse()
                && let Some(record) = self.record(&digest)?
            {
                reader.sources.insert(entry.clone(), record.source);
            }
        }
        for name in self.names()? {
            if reader.sources.contains_key(&name.digest.hex()) {
                contents.push(name.name);
            }
        }
        for (entry, source) in &reader.sources {
            contents.extend([source.clone(), format!("sha256:{entry}")]);
        }
        reader.changed = changed.iter().all(is_old).then_some(changed);
        Ok(Some(contents))
    }

    /// The bytes that this process could write to the store.
    ///
    /// # Errors
    /// The system does not say.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        let about = rustix::fs::fstatvfs(self.0.layers.dir())?;
        Ok(about.f_bavail.saturating_mul(about.f_frsize))
    }
}

/// When a directory has changed.
fn changed(directory: BorrowedFd<'_>) -> io::Result<(i64, i64)> {
    let about = rustix::fs::fstat(directory)?;
    Ok((about.st_mtime, i64::try_from(about.st_mtime_nsec).unwrap_or(0)))
}
