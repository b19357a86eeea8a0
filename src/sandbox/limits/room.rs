//! How much room a slot has left for what is put into it from outside.
//!
//! No command is there that could be ended when it has used too much: so what is put is counted as
//! it comes. What the slot has used already is counted once, when more is put than could matter;
//! that takes as long as a look of the watch.

use std::path::PathBuf;
use std::sync::Arc;

use super::Limits;
use super::disk::{self, Usage};
use crate::sandbox::workspace::Workspace;

/// So much may be put without a look at what there is. The next command's look sees it.
const UNCOUNTED: Usage = Usage { bytes: 1 << 20, files: 64 };

/// The room of one slot, while something is put there.
#[derive(Debug)]
pub(in crate::sandbox) struct Room {
    most: Option<Usage>,
    file_bytes: Option<u64>,
    is_full: bool,
    directories: Vec<PathBuf>,
    taken: Usage,
    /// What was left when it was counted, and what had been taken then.
    counted: Option<(Usage, Usage)>,
}

impl Limits {
    /// The room of the workspace's slot.
    pub(in crate::sandbox) fn room(&self, workspace: &Workspace) -> Room {
        Room {
            most: self.watched(workspace).workspace,
            file_bytes: self.of(workspace).file_bytes,
            is_full: self.is_full(workspace),
            directories: workspace.directories().iter().map(|&path| path.to_owned()).collect(),
            taken: Usage::default(),
            counted: None,
        }
    }

    /// Something was put into the workspace: it is counted soon.
    pub(in crate::sandbox) fn was_filled(&self, workspace: &Arc<Workspace>) {
        self.watcher.was_filled(workspace, self.watched(workspace));
    }
}

impl Room {
    /// Room without end.
    #[cfg(test)]
    pub(in crate::sandbox) fn endless() -> Self {
        Self {
            most: None,
            file_bytes: None,
            is_full: false,
            directories: Vec::new(),
            taken: Usage::default(),
            counted: None,
        }
    }

    /// Takes room for so many bytes and files more.
    ///
    /// # Errors
    /// Which limit is reached, in words.
    pub(in crate::sandbox) fn take(&mut self, bytes: u64, files: u64) -> Result<(), String> {
        let Some(most) = self.most else { return Ok(()) };
        if self.is_full {
            return Err("the slot is above its limit".to_owned());
        }
        self.taken.bytes = self.taken.bytes.saturating_add(bytes);
        self.taken.files = self.taken.files.saturating_add(files);
        if self.counted.is_none() {
            if !self.taken.exceeds(UNCOUNTED) {
                return Ok(());
            }
            // What was taken now is not written yet.
            let before = self.taken.minus(Usage { bytes, files });
            self.counted = Some((most.minus(self.used()), before));
        }
        let Some((left, before)) = self.counted else { return Ok(()) };
        let since = self.taken.minus(before);
        if since.bytes > left.bytes {
            return Err(format!("a slot may have {} bytes", most.bytes));
        }
        if since.files > left.files {
            return Err(format!("a slot may have {} files", most.files));
        }
        Ok(())
    }

    /// Whether a file may have so many bytes.
    ///
    /// # Errors
    /// It may not, in words.
    pub(in crate::sandbox) fn may_have(&self, bytes: u64) -> Result<(), String> {
        match self.file_bytes {
            Some(most) if bytes > most => Err(format!("a file may have {most} bytes")),
            _ => Ok(()),
        }
    }

    /// What the slot has used, as far as can be seen.
    fn used(&self) -> Usage {
        disk::size_with_rights(&self.directories).usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_and_what_is_put_count_together() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("old"), vec![1; 3 << 20]).unwrap();
        let room = |bytes, files| Room {
            most: Some(Usage { bytes, files }),
            directories: vec![dir.path().to_owned()],
            ..Room::endless()
        };
        let mut few_bytes = room(6 << 20, 1000);
        assert_eq!(few_bytes.take(2 << 20, 1), Ok(()));
        assert!(few_bytes.counted.is_some());
        assert_eq!(few_bytes.take(1 << 19, 1), Ok(()));
        let why = few_bytes.take(1 << 20, 1).unwrap_err();
        assert!(why.contains("6291456 bytes"), "{why}");
        let mut few_files = room(1 << 30, 100);
        (0..64).for_each(|_| few_files.take(0, 1).unwrap());
        assert!(few_files.counted.is_none());
        let taken = (0..100).take_while(|_| few_files.take(0, 1).is_ok()).count();
        // None of those was made: the old one alone counts.
        assert_eq!(taken, 99);
        assert!(Room { is_full: true, ..room(1, 1) }.take(0, 0).is_err());
        assert_eq!(Room::endless().take(u64::MAX, u64::MAX), Ok(()));
    }
}
