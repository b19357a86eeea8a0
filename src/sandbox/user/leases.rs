//! Which ids are taken by the engines of this machine: a file of locks, one byte an id.
//!
//! An engine locks the bytes of the ids that its slots have, for as long as it holds the file open.
//! The kernel lets go of the locks when the last copy of that descriptor is closed, however the
//! process dies. Engines that do not see each other's file – in containers with a `/run` of their
//! own, whose ids are the same to the kernel – begin at places that are chosen at random: should
//! two meet all the same, the kernel counts together what these slots use, and nothing else of them
//! is shared.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::ids::IdSpan;

/// Where the file is, unless it cannot be made there.
const DIRECTORY: &str = "/run/tool-executor";
const FILE: &str = "user-ids.lock";

/// The file, held open.
#[derive(Debug)]
pub(super) struct Leases(OwnedFd);

impl Leases {
    /// Opens the file: in `/run`, or else in the system's directory for temporary files. Blocks on
    /// a few file system calls.
    ///
    /// # Errors
    /// It cannot be had in either: why not in the second.
    pub(super) fn open() -> io::Result<Self> {
        Self::open_in(Path::new(DIRECTORY)).or_else(|error| {
            let other = Self::second_place();
            log::debug!("user ids are locked in {}: {DIRECTORY}: {error}", other.display());
            Self::open_in(&other)
        })
    }

    fn second_place() -> PathBuf {
        std::env::temp_dir().join(format!("tool-executor-{}", super::number_outside()))
    }

    /// Opens it in this directory, which is made where it is missing. Another user may have made
    /// it, or may write to it: then it is of no use.
    fn open_in(directory: &Path) -> io::Result<Self> {
        match rustix::fs::mkdir(directory, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let no_link = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | no_link;
        let dir = rustix::fs::open(directory, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&dir)?;
        let others_write = Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH);
        if stat.st_uid != rustix::process::geteuid().as_raw() || others_write {
            return Err(io::Error::other("another user may write there"));
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK | no_link;
        Ok(Self(rustix::fs::openat(&dir, FILE, flags, Mode::RUSR | Mode::WUSR)?))
    }

    /// Takes these ids, if no other engine has one of them. Does not wait.
    ///
    /// # Errors
    /// The file system knows no such locks, or has no room for one more.
    pub(super) fn take(&self, ids: IdSpan) -> io::Result<bool> {
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: libc::off_t::from(ids.first),
            l_len: libc::off_t::from(ids.count),
            l_pid: 0,
        };
        // SAFETY: the kernel reads the structure during the call; the descriptor is open.
        match unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
            0.. => Ok(true),
            _ => match io::Error::last_os_error() {
                error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                    Ok(false)
                }
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_engines_until_it_ends() {
        let outer = tempfile::tempdir().unwrap();
        let open = || Leases::open_in(&outer.path().join("ids")).unwrap();
        let (one, other) = (open(), open());
        let span = IdSpan::new;
        assert!(one.take(span(2_000_000_000, 65_536)).unwrap());
        for (ids, free) in [
            (span(2_000_000_000, 1), false),
            (span(2_000_065_535, 2), false),
            (span(1_999_999_999, 1), true),
            (span(2_000_065_536, 65_536), true),
            (span(u32::MAX - 1, 1), true),
        ] {
            assert_eq!(other.take(ids).unwrap(), free, "{ids:?}");
        }
        drop(one);
        assert!(other.take(span(2_000_000_000, 65_536)).unwrap());
    }

    #[test]
    fn a_place_that_others_may_have_a_hand_in_is_of_no_use() {
        let outer = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/hostname", outer.path().join(FILE)).unwrap();
        assert!(Leases::open_in(outer.path()).is_err());
        let shared = outer.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&shared, mode).unwrap();
        assert!(Leases::open_in(&shared).unwrap_err().to_string().contains("another user"));
        std::os::unix::fs::symlink("ids", outer.path().join("link")).unwrap();
        std::fs::create_dir(outer.path().join("ids")).unwrap();
        assert!(Leases::open_in(&outer.path().join("link")).is_err());
    }
}
