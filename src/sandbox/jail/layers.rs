//! The layers that the engine hands over to a first process: mounts that are nowhere yet, in which
//! files may have other owners than on disk.
//!
//! Only root may make them, of a file system that was mounted in its own user namespace. What is
//! handed over appears in the mount table of the jail only, and goes with that.
//!
//! The kernel takes the owners of a mount's files from a user namespace, which lives as long as a
//! descriptor of it is held. Making one takes a process; so those of late are kept.

use std::collections::VecDeque;
use std::ffi::{CString, c_int};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::spawn;
use super::super::user::{self, IdMap};
use super::SetupError;
use super::holder::Holder;

/// How many user namespaces are kept.
const MOST_KEPT: usize = 64;

const READ_ONLY: u64 = 1;
const NO_SET_USER_ID: u64 = 2;
const NO_DEVICES: u64 = 4;
const MAPPED_IDS: u64 = 0x0010_0000;

/// The kernel's `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// The user namespaces that ids were mapped by of late.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct IdMaps(Mutex<VecDeque<(IdMap, Arc<OwnedFd>)>>);

impl IdMaps {
    /// One with this map of users, and of groups. Blocks for a moment where it is new.
    fn get(&self, map: IdMap) -> io::Result<Arc<OwnedFd>> {
        let mut kept = self.0.lock();
        if let Some((_, namespace)) = kept.iter().find(|(of, _)| *of == map) {
            return Ok(namespace.clone());
        }
        let namespace = Arc::new(new_namespace(map)?);
        if kept.len() >= MOST_KEPT {
            kept.pop_front();
        }
        kept.push_back((map, namespace.clone()));
        Ok(namespace)
    }
}

/// What is to be handed over for these trees, in their order: of each how the ids of its files are
/// mapped, and whether it is written to. Blocks for a few system calls each.
///
/// # Errors
/// The first tree that cannot be had: it is missing, or something is mounted in it, or its file
/// system knows no mapped ids.
pub(super) fn detached<'a>(
    trees: impl Iterator<Item = (&'a Path, Option<IdMap>, bool)>,
    id_maps: &IdMaps,
) -> Result<Vec<OwnedFd>, SetupError> {
    let detach = |(path, map, is_writable): (&Path, _, _)| {
        of_tree(path, map, is_writable, id_maps).map_err(|error| {
            let what = match map {
                Some(_) => "show a layer with the owners of a slot",
                None => "show a layer or a directory of its slot",
            };
            SetupError::new(what, error)
        })
    };
    trees.map(detach).collect()
}

/// Whether first processes do not get to the engine's directories, and what they show of these is
/// handed over: in a user namespace whose root may do that with the mounts that it sees. Blocks for
/// a few system calls.
pub(in crate::sandbox) fn hands_over() -> bool {
    // Nothing is ever mounted beneath it.
    let here = Path::new("/proc/self/task");
    !user::is_machines_root() && of_tree(here, None, false, &IdMaps::default()).is_ok()
}

/// Whether the files of a directory can be shown with these ids as owners in the place of 0 and
/// those that follow. Blocks for a few system calls.
pub(in crate::sandbox) fn can_map_owners(directory: &Path, owners: IdMap) -> bool {
    of_tree(directory, Some(owners), false, &IdMaps::default()).is_ok()
}

fn of_tree(
    path: &Path,
    map: Option<IdMap>,
    is_writable: bool,
    id_maps: &IdMaps,
) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| spawn::embedded_nul())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_NO_AUTOMOUNT as u32;
    // SAFETY: the path is a string that outlives the call.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if tree < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has made this descriptor for us.
    let tree = unsafe { OwnedFd::from_raw_fd(tree as c_int) };
    let namespace = map.map(|map| id_maps.get(map)).transpose()?;
    let attributes = MountAttributes {
        set: NO_SET_USER_ID
            | NO_DEVICES
            | if is_writable { 0 } else { READ_ONLY }
            | if namespace.is_some() { MAPPED_IDS } else { 0 },
        clear: 0,
        propagation: libc::MS_PRIVATE,
        user_namespace: namespace.as_ref().map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: the structure is as large as is said, and outlives the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(tree) }
}

/// A user namespace with this map, in which nothing runs.
fn new_namespace(map: IdMap) -> io::Result<OwnedFd> {
    let holder = Holder::new(libc::CLONE_NEWUSER)?;
    let pid = holder.pid();
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{file}"), map.to_string())?;
    }
    Ok(std::fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
}
