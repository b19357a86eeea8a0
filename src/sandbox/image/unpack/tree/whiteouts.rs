//! What a layer says of the layers below it: that something is not there any more.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, XattrFlags};

use super::super::LayerError;
use super::super::entries::Entry;
use super::parents::{Below, Looked};
use super::{Tree, failed, wrong};

/// How an overlay is told that a directory shows nothing of the layers below.
const OPAQUE_XATTR: &str = "user.overlay.opaque";

impl Tree<'_> {
    /// A directory shows nothing of what the layers below have in it.
    pub(super) fn opaque(&mut self, entry: &Entry, names: &[&[u8]]) -> Result<(), LayerError> {
        self.report.depends_on_below = true;
        match self.find(entry, names, false)? {
            // An overlay does not ask its layers' roots.
            Some(directory) if directory.path.is_empty() => {
                self.report.hides_all_below = true;
                Ok(())
            }
            Some(directory) => set_opaque(entry, directory.fd.as_fd()),
            // It comes before its directory, or there is none. Not to be listed as empty where the
            // layers below have none either.
            None => {
                let path = self.resolved(entry, names)?;
                if matches!(self.here(entry, &path)?, Looked::Hidden) {
                    return Ok(());
                }
                match self.below(entry, &path)? {
                    Below::Nothing | Below::Symlink(_) | Below::Other => Ok(()),
                    Below::Directory(_) => match self.find(entry, names, true)? {
                        Some(directory) => set_opaque(entry, directory.fd.as_fd()),
                        None => Ok(()),
                    },
                }
            }
        }
    }

    /// Something of the layers below is not there any more. What this layer has itself stays,
    /// whether it comes before or after.
    pub(super) fn whiteout(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        hidden: &[u8],
    ) -> Result<(), LayerError> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(wrong(entry, "is a whiteout of nothing"));
        }
        self.report.depends_on_below = true;
        let mut path = self.resolved(entry, parents)?;
        path.push(hidden.to_vec());
        if matches!(self.below(entry, &path)?, Below::Nothing) {
            return Ok(());
        }
        match self.here(entry, &path)? {
            // What the layer has itself stays; of a directory, what is below is hidden.
            Looked::Found(Below::Directory(_)) => {
                let names: Vec<_> = path.iter().map(Vec::as_slice).collect();
                match self.find(entry, &names, false)? {
                    Some(directory) => set_opaque(entry, directory.fd.as_fd()),
                    None => Ok(()),
                }
            }
            Looked::Found(_) | Looked::Hidden => Ok(()),
            Looked::Missing => {
                let Some(directory) = self.find(entry, parents, true)? else { return Ok(()) };
                let (kind, hidden) = (FileType::CharacterDevice, OsStr::from_bytes(hidden));
                rustix::fs::mknodat(&directory.fd, hidden, kind, Mode::empty(), 0)
                    .map_err(|errno| failed(entry, "make a whiteout for", errno))
            }
        }
    }
}

/// Whether a directory hides what layers below have in it. One that its owner may not read is not.
pub(super) fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0; 1];
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    rustix::fs::getxattr(path, OPAQUE_XATTR, &mut value) == Ok(1) && value == *b"y"
}

pub(super) fn set_opaque(entry: &Entry, directory: BorrowedFd<'_>) -> Result<(), LayerError> {
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    rustix::fs::setxattr(path, OPAQUE_XATTR, b"y", XattrFlags::empty())
        .map_err(|errno| failed(entry, "hide what is below the directory of", errno))
}
