//! Whose it is what is put into a slot.
//!
//! As a rule it is the user's that commands run as, since that user makes it. Where a slot has
//! several ids it may be another's: then the engine, which is root there, gives away what that user
//! has made, and nothing else.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::CapabilitySet;

use super::{Found, at_place, found};
use crate::artifact::{ArtifactError, PutFiles};
use crate::sandbox::files::open_leaf;
use crate::sandbox::paths::View;
use crate::sandbox::reach::Reach;
use crate::sandbox::user::{IdMap, with_rights};

/// A machine's user database is read so far.
const MOST_BYTES: u64 = 1 << 20;

/// Whose everything is to be that is put.
pub(super) enum Owner {
    /// The user's that makes it.
    Maker,
    /// These ids', as this machine counts.
    Ids(u32, u32),
    /// Each entry's as the archive says, by these ids.
    OfArchive(IdMap),
}

impl Owner {
    /// Whose it is to be by the request.
    ///
    /// # Errors
    /// [`ArtifactError::Invalid`]: the slot has no such ids, or there is none of the name.
    pub(super) fn find(
        files: Reach<'_>,
        view: &View<'_>,
        request: &PutFiles,
    ) -> Result<Self, ArtifactError> {
        if request.owner.is_none() && !request.keep_owners {
            return Ok(Self::Maker);
        }
        let map = files.workspace().owner().map(|user| user.map());
        let Some(map) = map.filter(|map| !map.is_single()) else {
            let text = "the slots have one user id each here, so that all files are that user's: \
                        leave out the owner";
            return Err(ArtifactError::Invalid(text.to_owned()));
        };
        let Some(owner) = &request.owner else { return Ok(Self::OfArchive(map)) };
        let (user, group) = match owner.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (owner.as_str(), None),
        };
        let users = database(view, "/etc/passwd")?;
        let found = look_up(&users, user).ok_or_else(|| no_such("user", user, "/etc/passwd"))?;
        let group = match group {
            None => found.group.unwrap_or(found.id),
            Some(group) => {
                let groups = database(view, "/etc/group")?;
                look_up(&groups, group).ok_or_else(|| no_such("group", group, "/etc/group"))?.id
            }
        };
        let outside = |id: u32| {
            outside(map, u64::from(id)).ok_or_else(|| {
                let text = format!("the id {id} is not one of a slot's, which are 0 to 65535");
                ArtifactError::Invalid(text)
            })
        };
        Ok(Self::Ids(outside(found.id)?, outside(group)?))
    }

    /// Gives away what this thread's user has just made; `numbers` are those of the archive.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` for numbers that the slot does not have.
    pub(super) fn give(
        &self,
        file: BorrowedFd<'_>,
        numbers: Option<(u64, u64)>,
    ) -> Result<(), Errno> {
        let (user, group) = match (self, numbers) {
            (Self::Maker, _) | (Self::OfArchive(_), None) => return Ok(()),
            (Self::Ids(user, group), _) => (*user, *group),
            (Self::OfArchive(map), Some((user, group))) => {
                let id = |number| outside(*map, number).ok_or(Errno::INVAL);
                (id(user)?, id(group)?)
            }
        };
        let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        with_rights(CapabilitySet::CHOWN, || {
            rustix::fs::chownat(file, c"", user, group, AtFlags::EMPTY_PATH)
        })
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::PERM))?
    }
}

/// Sets when a file was last changed, in seconds since 1970.
pub(super) fn set_mtime(file: BorrowedFd<'_>, mtime: u64) -> Result<(), Errno> {
    rustix::fs::futimens(file, &times(mtime))
}

/// What sets it.
pub(super) fn times(mtime: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(i64::MAX), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Sets a file's permissions.
pub(super) fn set_mode(file: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o777))
}

/// An id of a sandbox as this machine counts.
fn outside(map: IdMap, inside: u64) -> Option<u32> {
    map.outside_of(u32::try_from(inside).ok()?)
}

/// An entry of a user database.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    id: u32,
    /// A user's first group, where it is known.
    group: Option<u32>,
}

/// The entry of this name or number. A number needs none.
fn look_up(database: &str, wanted: &str) -> Option<Account> {
    let number = wanted.parse::<u32>().ok();
    let known = database.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
        let matches = number.map_or(name == wanted, |number| number == id);
        let group = fields.next().and_then(|group| group.parse().ok());
        matches.then_some(Account { id, group })
    });
    known.or(number.map(|id| Account { id, group: None }))
}

/// A user database of the machine's, which its commands may have written; empty if there is none.
fn database(view: &View<'_>, path: &str) -> Result<String, ArtifactError> {
    use std::io::Read;
    let file = at_place(view, path, |place| match found(place) {
        Found::Regular(_) => Ok(open_leaf(place, OFlags::RDONLY)?),
        _ => Ok(None),
    })?;
    let mut bytes = Vec::new();
    if let Some(file) = file {
        file.take(MOST_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| super::failed(path, error))?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn no_such(kind: &str, name: &str, database: &str) -> ArtifactError {
    ArtifactError::Invalid(format!("there is no {kind} '{name}' in the machine's {database}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found_in_what_a_machine_says() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\nme:x:1000:100::/home/me:/bin/sh\n";
        let account = |id, group| Some(Account { id, group });
        assert_eq!(look_up(users, "me"), account(1000, Some(100)));
        assert_eq!(look_up(users, "1000"), account(1000, Some(100)));
        assert_eq!(look_up(users, "7"), account(7, None));
        assert_eq!(look_up(users, "nobody"), None);
        assert_eq!(look_up("staff:x:50:me,root\n", "staff"), account(50, None));
    }

    #[test]
    fn an_id_is_one_of_the_slots_or_none() {
        let map = IdMap::whole(200_000);
        assert_eq!(outside(map, 0), Some(200_000));
        assert_eq!(outside(map, 65_535), Some(265_535));
        assert_eq!(outside(map, 65_536), None);
        assert_eq!(outside(map, u64::MAX), None);
    }
}
