//! The user that commands run as where the host runs as root.
//!
//! To the kernel, root without any capability is still the *owner* of what belongs to root, inside
//! a user namespace too: it may `chmod` the host's `/dev/null`, which every sandbox shares. So
//! wherever the engine runs as root, what a model controls acts as an unprivileged user: commands,
//! the first process of a jail and the reaper, and the file tools. The backend asks once, by
//! [`CommandUser::find`]; where that gives nothing, no credentials are ever touched. What root will
//! have to do for that user is tried before anything depends on it ([`trial`]).
//!
//! The kernel counts much by user: the pages of pipes, descriptors in flight, inotify instances,
//! queued signals. So each slot has a user of its own ([`SlotUsers`]) where there are ids for it
//! ([`ids`]) that no other engine has ([`leases`]). Inside a sandbox all of them are `nobody`.
//!
//! Credentials belong to threads. A thread of the engine [enters](CommandUser::enter) the user for
//! as long as it does one thing and is then root again; the reaper
//! [becomes](CommandUser::become_in_child) it for ever. The thread's saved user remains root
//! meanwhile, so that no process of the user may trace it; nor may one signal it while it works
//! with files. The start of a jail is different for some microseconds, because exec keeps the
//! real user, but what it starts sees no host process.
//!
//! # Side effects
//! - The kernel marks a process whose credentials change as not dumpable. That is undone, unless
//!   the host was not dumpable when the engine started; core dumps fail in between.
//! - The limit of processes (`RLIMIT_NPROC`), from which root is exempt, counts for commands.
//!
//! Not here: which files belong to the user (`workspace`).

mod ids;
mod leases;
pub(crate) mod namespace;
mod slots;
mod trial;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use ids::{IdMap, IdSpan, WHOLE, of_images_from};
pub(crate) use namespace::{number_outside, numbers_outside};
pub(crate) use slots::{NoIds, SlotUsers};
pub(crate) use trial::WeakRoot;
pub(super) use trial::is_machines_root;
pub(super) use trial::of_files as trial_of_files;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::process::{
    DumpableBehavior, Gid, Uid, dumpable_behavior, getegid, geteuid, getgid, getgroups, getuid,
    set_dumpable_behavior,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// `nobody` and `nogroup`: every system has them, nothing should belong to them, and tools find a
/// name for them in `/etc/passwd`. The kernel uses the number for "no user" itself.
const NOBODY: u32 = 65_534;

/// An unprivileged user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommandUser {
    uid: Uid,
    gid: Gid,
    /// What its ids, and those of others of its slot, are inside a sandbox. The same for groups.
    map: IdMap,
    /// Whether this process is the machine's root, not that of a user namespace.
    is_of_machine: bool,
    /// Whether it cannot get to the directories of its slot by their paths.
    is_barred: bool,
    /// What the process is to be again after a change of credentials.
    dumpable: bool,
}

/// What a thread enters the user for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To work with files.
    Files,
    /// To start a program, which then has no other user left.
    Exec,
}

impl CommandUser {
    /// The user that commands are to run as. `None` unless this process is root, and for the root
    /// of a user namespace that may not change users there: outside, it is an ordinary user itself.
    /// Blocks for the life of a thread and of a process that do nothing else.
    ///
    /// # Errors
    /// [`WeakRoot`]: this process is the machine's root and may not do what it takes to act for another
    /// user. Commands would be root, too.
    pub(crate) fn find() -> Result<Option<Self>, WeakRoot> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let user = Self {
            uid: Uid::from_raw(NOBODY),
            gid: Gid::from_raw(NOBODY),
            map: IdMap::single(NOBODY, NOBODY),
            is_of_machine: is_machines_root(),
            is_barred: false,
            dumpable: dumpable_behavior() == Ok(DumpableBehavior::Dumpable),
        };
        match trial::change_and_kill(user) {
            Ok(()) => Ok(Some(user)),
            Err(weak) if weak.is_harmless() => {
                log::info!("commands run as the root of this user namespace: {weak}");
                Ok(None)
            }
            Err(weak) => Err(weak),
        }
    }

    /// As [`find`](Self::find), where that cannot fail.
    #[cfg(test)]
    pub(crate) fn detect() -> Option<Self> {
        Self::find().expect("the tests' root has all capabilities")
    }

    /// The same as one of these ids: as `nobody` of a whole range, or as the only one.
    fn with_ids(self, ids: IdSpan) -> Self {
        let map = match ids.count {
            ..WHOLE => IdMap::single(NOBODY, ids.first),
            WHOLE.. => IdMap::whole(ids.first),
        };
        self.as_nobody_of(map)
    }

    /// The same as `nobody` of the ids that machines from images share, and how these are inside;
    /// `None` where there are too few for that. Blocks on two file system calls.
    pub(crate) fn of_images(self) -> Option<Self> {
        Some(self.as_nobody_of(ids_of_images()?))
    }

    fn as_nobody_of(self, map: IdMap) -> Self {
        let id = map.outside + (NOBODY - map.inside);
        Self { uid: Uid::from_raw(id), gid: Gid::from_raw(id), map, ..self }
    }

    /// The same as another user of its slot, by the numbers inside; where the slot has one id, as
    /// that.
    pub(super) fn as_inside(self, uid: u32, gid: u32) -> Self {
        let outside = |id: u32| match self.map.is_single() {
            true => self.map.outside,
            // An id that there is not is nobody's.
            false => self.map.outside_of(id).unwrap_or(self.map.outside + NOBODY),
        };
        Self { uid: Uid::from_raw(outside(uid)), gid: Gid::from_raw(outside(gid)), ..self }
    }

    /// The same as root of its slot, in the group that may pass to the slot's directories; where
    /// the slot has one id, as that.
    pub(super) fn as_root_inside(self) -> Self {
        Self { uid: self.as_inside(0, 0).uid, ..self }
    }

    /// The same where it cannot get to the directories of its slot by their paths.
    pub(crate) fn with_barred(self, is_barred: bool) -> Self {
        Self { is_barred, ..self }
    }

    /// Whether what its jails show of these is to be handed over to them.
    pub(super) fn is_barred(self) -> bool {
        self.is_barred
    }

    /// Whether it is root inside, in a slot that has other ids, too.
    pub(super) fn is_root_of_many(self) -> bool {
        !self.map.is_single() && self.map.inside == 0 && self.uid.as_raw() == self.map.outside
    }

    /// What the first id of its slot is on this machine: root's, where the slot has that.
    pub(crate) fn first_id(self) -> u32 {
        self.map.outside
    }

    /// Its number on this machine.
    pub(crate) fn uid(self) -> Uid {
        self.uid
    }

    /// The number of its group on this machine.
    pub(crate) fn gid(self) -> Gid {
        self.gid
    }

    /// Its number, and that of its group, inside a sandbox.
    pub(super) fn inside(self) -> u32 {
        NOBODY
    }

    /// What ids are inside its sandboxes, and on this machine: users and groups alike.
    pub(super) fn map(self) -> IdMap {
        self.map
    }

    /// Whether this process is the machine's root: elsewhere the kernel shows no file of a layer as
    /// another user's than on disk.
    pub(crate) fn is_of_machine(self) -> bool {
        self.is_of_machine
    }

    /// Gives the user namespace of a process, which this user has made, the ids of its map. Only
    /// for threads of the engine. Does not block.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn map_ids(self, process: Pid) -> io::Result<()> {
        // The user owns the namespace, which gives it every right there; root may have few. Root's
        // right to use any id is taken along.
        let _entered = self.enter(Purpose::Files)?;
        let mut sets = capabilities(None)?;
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::DAC_OVERRIDE;
        sets.effective = sets.permitted & needed;
        set_capabilities(None, sets)?;
        let pid = process.as_raw_nonzero();
        for file in ["uid_map", "gid_map"] {
            // The kernel takes a map that comes in one piece.
            std::fs::write(format!("/proc/{pid}/{file}"), self.map.to_string())?;
        }
        Ok(())
    }

    /// Makes this thread act as the user until the result is dropped. Only for threads of the
    /// engine: a thread loses its parent-death signal. Does not block.
    ///
    /// # Errors
    /// Those of `setgroups`, `setresgid` and `setresuid`; then nothing is changed.
    pub(super) fn enter(self, purpose: Purpose) -> io::Result<Entered> {
        let (groups, gids, uid) = (getgroups()?, (getgid(), getegid()), getuid());
        // In a user namespace a user's groups have no number there, so that they could not be had
        // again. What is done meanwhile has them, as it has where commands are this user.
        let is_nameless = |group: &Gid| group.as_raw() == NOBODY && !self.is_of_machine;
        let groups = Some(groups).filter(|groups| !groups.iter().any(is_nameless));
        if groups.is_some() {
            set_thread_groups(&[])?;
        }
        // From here on a failure undoes what was done.
        let entered = Entered { groups, gids, uid, dumpable: self.dumpable };
        set_thread_res_gid(self.gid, self.gid, self.gid)?;
        let real = match purpose {
            Purpose::Files => Uid::ROOT,
            Purpose::Exec => self.uid,
        };
        set_thread_res_uid(real, self.uid, Uid::ROOT)?;
        Ok(entered)
    }

    /// Makes this process the user for ever, beyond the reach of other processes of it, and keeps
    /// set-user-id programs from changing that. For a forked child: makes nothing but system calls.
    ///
    /// # Errors
    /// Those of the system calls. The process must end then.
    pub(super) fn become_in_child(self) -> Result<(), Errno> {
        set_thread_groups(&[])?;
        set_thread_res_gid(self.gid, self.gid, self.gid)?;
        set_thread_res_uid(self.uid, self.uid, self.uid)?;
        // Its memory is a copy of the host's.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        set_no_new_privs(true)
    }

    /// The first directory on the way to the directory `path` that the user may not pass through,
    /// if there is one. Blocks on a few file system calls.
    ///
    /// # Errors
    /// Where `path` cannot be looked at for another reason.
    pub(super) fn obstacle(self, path: &Path) -> io::Result<Option<PathBuf>> {
        on_own_thread(|| {
            let _entered = self.enter(Purpose::Files)?;
            let mut way: Vec<_> = path.ancestors().collect();
            way.reverse();
            for directory in way {
                match rustix::fs::stat(directory.join(".")) {
                    Ok(_) => {}
                    Err(Errno::ACCESS) => return Ok(Some(directory.to_owned())),
                    Err(errno) => return Err(errno.into()),
                }
            }
            Ok(None)
        })
    }
}

/// The ids that machines from images share where layers cannot be shown with other owners; `None`
/// where there are too few. Blocks on two file system calls.
pub(super) fn ids_of_images() -> Option<IdMap> {
    ids::of_images(&own_ids())
}

/// The ids that are both users and groups in this process's user namespace.
fn own_ids() -> Vec<IdSpan> {
    let [users, groups] = ["/proc/self/uid_map", "/proc/self/gid_map"].map(text_of);
    ids::in_both(&ids::mapped(&users), &ids::mapped(&groups))
}

/// What is in a file of the system; nothing where it cannot be read.
fn text_of(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A thread that acts as a [`CommandUser`]. Dropping it, on that thread, gives it its own
/// credentials back.
#[must_use]
#[derive(Debug)]
pub(super) struct Entered {
    /// Those that were given up.
    groups: Option<Vec<Gid>>,
    /// Real and effective.
    gids: (Gid, Gid),
    /// The real one; the effective one is root.
    uid: Uid,
    dumpable: bool,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let (real, effective) = self.gids;
        let restored = set_thread_res_uid(self.uid, Uid::ROOT, Uid::ROOT)
            .and_then(|()| set_thread_res_gid(real, effective, effective))
            .and_then(|()| self.groups.as_deref().map_or(Ok(()), set_thread_groups));
        if let Err(errno) = restored {
            // The safe direction: what the thread cannot do any more fails.
            log::error!("a thread of the engine remains an unprivileged user: {errno}");
        }
        if self.dumpable {
            // Nothing is lost but core dumps.
            let _ = set_dumpable_behavior(DumpableBehavior::Dumpable);
        }
    }
}

/// Does `work` with these of the rights that root has beside what this thread may: it has entered
/// a user. Elsewhere it has no others.
///
/// # Errors
/// Those of `capset`; nothing was done where they cannot be had.
pub(super) fn with_rights<T>(rights: CapabilitySet, work: impl FnOnce() -> T) -> io::Result<T> {
    let _raised = Raised::new(rights)?;
    Ok(work())
}

/// Rights of root that a thread has which has entered a user, until this is dropped on it.
#[derive(Debug)]
pub(super) struct Raised(CapabilitySets);

impl Raised {
    /// Gives this thread these of the rights that root has.
    ///
    /// # Errors
    /// Those of `capset`.
    pub(super) fn new(rights: CapabilitySet) -> io::Result<Self> {
        let own = capabilities(None)?;
        let mut raised = own;
        raised.effective |= own.permitted & rights;
        set_capabilities(None, raised)?;
        Ok(Self(own))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Err(errno) = set_capabilities(None, self.0) {
            // To give up what one has is never refused.
            log::error!("a thread of the engine keeps rights of root: {errno}");
        }
    }
}

/// Does something on a thread of its own, and something else on this one meanwhile.
pub(super) fn on_own_thread_beside<T: Send>(
    work: impl FnOnce() -> io::Result<T> + Send,
    beside: impl FnOnce(),
) -> io::Result<T> {
    std::thread::scope(|scope| {
        #[expect(clippy::disallowed_methods, reason = "it lives in this scope")]
        let worker =
            std::thread::Builder::new().name("tool-user".to_owned()).spawn_scoped(scope, work)?;
        beside();
        worker.join().unwrap_or_else(|_| Err(io::Error::other("a thread has panicked")))
    })
}

/// Does something on a thread of its own: a thread of the host must not be touched.
pub(super) fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_own_thread_beside(work, || {})
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn credentials() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let of_interest = |line: &&str| {
            ["Uid", "Gid", "Groups", "CapEff"].iter().any(|name| line.starts_with(name))
        };
        status.lines().filter(of_interest).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn only_root_has_a_command_user() {
        if !geteuid().is_root() {
            assert_eq!(CommandUser::detect(), None);
        }
    }

    #[test]
    fn a_slots_user_is_nobody_of_its_ids() {
        let Some(user) = CommandUser::detect() else { return };
        let of = |first, count| {
            let user = user.with_ids(IdSpan::new(first, count));
            (user.uid().as_raw(), user.gid().as_raw(), user.map().to_string())
        };
        assert_eq!(
            of(2_000_000_000, WHOLE),
            (2_000_065_534, 2_000_065_534, "0 2000000000 65536".into())
        );
        assert_eq!(of(30_000, 1), (30_000, 30_000, "65534 30000 1".into()));
    }

    #[test]
    fn a_thread_acts_as_the_user_and_is_itself_again() {
        let Some(user) = CommandUser::detect() else { return };
        on_own_thread(|| {
            let before = credentials();
            for (purpose, uids) in
                [(Purpose::Files, "0\t65534\t0\t65534"), (Purpose::Exec, "65534\t65534\t0\t65534")]
            {
                let entered = user.enter(purpose)?;
                let within = credentials();
                assert!(within.contains(&format!("Uid:\t{uids}\n")), "{within}");
                assert!(within.contains("CapEff:\t0000000000000000"), "{within}");
                assert!(
                    within.contains("Groups:\t \n") || within.contains("Groups:\t\n"),
                    "{within}"
                );
                drop(entered);
                assert_eq!(credentials(), before);
                assert_eq!(dumpable_behavior() == Ok(DumpableBehavior::Dumpable), user.dumpable);
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_directory_that_bars_the_way_is_found() {
        let Some(user) = CommandUser::detect() else { return };
        let outer = tempfile::tempdir().unwrap();
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        let (barred, below) = (outer.path().join("a"), outer.path().join("a/b"));
        std::fs::create_dir_all(&below).unwrap();
        std::fs::set_permissions(outer.path(), mode(0o711)).unwrap();
        std::fs::set_permissions(&below, mode(0o711)).unwrap();
        std::fs::set_permissions(&barred, mode(0o700)).unwrap();
        assert_eq!(user.obstacle(&below).unwrap(), Some(barred.clone()));
        std::fs::set_permissions(&barred, mode(0o711)).unwrap();
        assert_eq!(user.obstacle(&below).unwrap(), None);
        assert!(user.obstacle(&below.join("missing")).is_err());
        assert_eq!(std::fs::metadata(&below).unwrap().uid(), 0, "nothing was changed");
    }
}
