//! What belongs to a file beside its data: owner, mode, time, extended attributes.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::super::entries::{Entry, Kind};
use super::super::{LayerError, Unpacked, shown};
use super::parents::Directory;
use super::{Tree, failed};

/// What belongs to ids that no machine has belongs to `nobody`.
const MAX_ID: u32 = 65_535;
const NOBODY: u32 = 65_534;

/// What an entry is to have in the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
}

impl Attributes {
    /// Those of a directory that no layer has.
    pub(super) const IMPLICIT: Self = Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) };
}
impl Attributes {
    pub(super) fn of(entry: &Entry, report: &mut Unpacked) -> Self {
        let mut id = |id: i64| match u32::try_from(id) {
            Ok(id) if id <= MAX_ID => id,
            _ => {
                let name = &entry.name;
                report.leave_out(|| format!("the id {id} of {}, which is 65534 now", shown(name)));
                NOBODY
            }
        };
        let (uid, gid) = (id(entry.uid), id(entry.gid));
        Self { mode: entry.mode, uid, gid, mtime: entry.mtime }
    }
}

impl Tree<'_> {
    /// Whose a file is on disk; `None` where it stays ours.
    pub(super) fn owners(&self, is: Attributes) -> Option<(Uid, Gid)> {
        let ids = self.place.ids;
        let (uid, gid) = (ids.on_disk(is.uid)?, ids.on_disk(is.gid)?);
        Some((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    /// Owner, mode, attributes and time of an open file, in this order: each would take away
    /// something of what comes after it.
    pub(super) fn give(
        &mut self,
        entry: &Entry,
        is: Attributes,
        file: BorrowedFd<'_>,
    ) -> Result<(), LayerError> {
        let failed = |errno| failed(entry, "set what belongs to", errno);
        if let Some((uid, gid)) = self.owners(is) {
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(failed)?;
        }
        self.set_xattrs(entry, file)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(is.mode)).map_err(failed)?;
        rustix::fs::futimens(file, &times(is.mtime)).map_err(failed)
    }

    /// The extended attributes that a layer may have: the user's, but those of overlays, and
    /// capabilities where they can be set.
    pub(super) fn set_xattrs(
        &mut self,
        entry: &Entry,
        file: BorrowedFd<'_>,
    ) -> Result<(), LayerError> {
        for (name, value) in &entry.xattrs {
            let is_capability = name == b"security.capability";
            let is_users = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
            let set = match std::str::from_utf8(name) {
                Ok(text) if is_capability || is_users => {
                    rustix::fs::fsetxattr(file, text, value, XattrFlags::empty())
                }
                _ => Err(Errno::OPNOTSUPP),
            };
            match set {
                Ok(()) => {}
                Err(errno @ (Errno::NOSPC | Errno::DQUOT)) if !is_capability => {
                    // A disk that is full, or more attributes than the file system has room for.
                    let (full, larger) = (value.len() < 2048, value.len());
                    match full {
                        true => return Err(failed(entry, "set attributes of", errno)),
                        false => self.report.leave_out(|| {
                            format!("an attribute of {larger} bytes of {}", shown(&entry.name))
                        }),
                    }
                }
                Err(_) => self.report.leave_out(|| {
                    format!("the attribute {} of {}", shown(name), shown(&entry.name))
                }),
            }
        }
        Ok(())
    }

    /// Owner and time of what cannot be opened.
    pub(super) fn give_held(
        &mut self,
        entry: &Entry,
        parent: &Directory,
        name: &OsStr,
    ) -> Result<(), LayerError> {
        let failed = |errno| failed(entry, "set what belongs to", errno);
        let is = Attributes::of(entry, &mut self.report);
        if let Some((uid, gid)) = self.owners(is) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&parent.fd, name, Some(uid), Some(gid), flags).map_err(failed)?;
        }
        if entry.kind == Kind::Fifo {
            let mode = Mode::from_raw_mode(is.mode);
            rustix::fs::chmodat(&parent.fd, name, mode, AtFlags::empty()).map_err(failed)?;
        }
        rustix::fs::utimensat(&parent.fd, name, &times(is.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed)
    }
}

pub(super) fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}
