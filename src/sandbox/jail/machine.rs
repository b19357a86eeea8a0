//! The machine of a slot: the namespaces that all jails of a trajectory share, whichever tool they
//! are of.
//!
//! A slot's first jail *founds* it: its first process is born into new namespaces, sets them up,
//! and hands their descriptors over when it is ready. Every further one *joins*: it is born into
//! the same namespaces of users, network, System V objects and host name, with a copy of the same
//! mounts, and into a namespace of processes of its own. So all tools have one `localhost`, one set
//! of files, one `/dev/shm`; and each jail can still be ended alone, exactly and at once, by the
//! end of its first process: in a namespace of processes that several share, the processes of one
//! could not be told from those of another, and what forks faster than it is found would escape.
//!
//! A machine lives as long as its descriptors are held here or a jail lives in it, whichever is
//! longer. It has nothing to be ended.

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::init::Handles;
use super::super::init::message::handle;
use super::plan::Network;
use crate::egress::Attachment;

/// Its namespaces, held. They are joined in this order: with the first come the rights to join the
/// others, and with the last one the files of the host go out of sight.
const JOINED: [(i32, c_int); 5] = [
    (handle::USER, libc::CLONE_NEWUSER),
    (handle::NETWORK, libc::CLONE_NEWNET),
    (handle::IPC, libc::CLONE_NEWIPC),
    (handle::HOST_NAME, libc::CLONE_NEWUTS),
    (handle::MOUNTS, libc::CLONE_NEWNS),
];

/// The most namespaces that a machine has.
pub(super) const MOST_NAMESPACES: usize = JOINED.len();

/// A slot's machine.
#[derive(Debug)]
pub(in crate::sandbox) struct Machine {
    namespaces: Vec<(c_int, OwnedFd)>,
    network: Network,
    /// The root directory that its programs see.
    root: OwnedFd,
    /// What serves its proxy, if it has one, until it is dropped.
    _way_out: Option<Attachment>,
    is_broken: AtomicBool,
}

impl Machine {
    /// What the first jail of a machine `beside` another is to hand over: of its network.
    pub(super) fn wanted_beside(network: Network) -> i32 {
        Self::wanted(network) & (handle::NETWORK | handle::PROXY)
    }

    /// What a founder is to hand over, so that others can join it. One that is in the host's
    /// network has none of its own.
    pub(super) fn wanted(network: Network) -> i32 {
        let own = |which: &i32| !(network == Network::Host && *which == handle::NETWORK);
        let namespaces: i32 = JOINED.map(|(which, _)| which).iter().copied().filter(own).sum();
        let proxy = if matches!(network, Network::Proxy(_)) { handle::PROXY } else { 0 };
        namespaces | proxy
    }

    /// The machine that a founder has handed over, whose root directory is `root`; `None` where
    /// something is missing. `attach` has the listening socket of its proxy served.
    pub(super) fn new(
        handles: &mut Handles,
        root: OwnedFd,
        network: Network,
        attach: impl FnOnce(OwnedFd) -> Option<Attachment>,
    ) -> Option<Self> {
        let wanted = Self::wanted(network);
        let namespaces = JOINED
            .into_iter()
            .filter(|(which, _)| wanted & which != 0)
            .map(|(which, kind)| Some((kind, handles.take(which)?)))
            .collect::<Option<_>>()?;
        let way_out = match wanted & handle::PROXY {
            0 => None,
            _ => attach(handles.take(handle::PROXY)?),
        };
        let is_broken = AtomicBool::new(false);
        Some(Self { namespaces, network, root, _way_out: way_out, is_broken })
    }

    /// As [`new`](Self::new), of a jail that was born beside another machine: it has a network of
    /// its own, and all else is that one's.
    ///
    pub(super) fn beside(
        other: &Self,
        handles: &mut Handles,
        root: OwnedFd,
        network: Network,
        attach: impl FnOnce(OwnedFd) -> Option<Attachment>,
    ) -> Option<Self> {
        for (which, kind) in JOINED.into_iter().filter(|(which, _)| *which != handle::NETWORK) {
            let (_, shared) = other.namespaces.iter().find(|(of, _)| *of == kind)?;
            handles.put(which, shared.try_clone().ok()?);
        }
        Self::new(handles, root, network, attach)
    }

    /// What network it has.
    pub(super) fn network(&self) -> Network {
        self.network
    }

    /// Its namespaces, in the order in which they are joined: each one's descriptor and kind.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = (c_int, c_int)> {
        self.namespaces.iter().map(|(kind, fd)| (fd.as_raw_fd(), *kind))
    }

    /// The root directory that its programs see, as an `O_PATH` descriptor: only to look beneath.
    pub(in crate::sandbox) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Nothing can be run in it any more: a command has removed what that takes, its shell say.
    pub(super) fn is_found_broken(&self) {
        if !self.is_broken.swap(true, Ordering::AcqRel) {
            log::info!(
                "nothing can be run in a slot's sandbox any more: the slot gets another one"
            );
        }
    }

    /// Whether its slot needs another one.
    pub(in crate::sandbox) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_in_the_hosts_network_has_all_other_namespaces() {
        let all = Machine::wanted(Network::Own);
        assert_eq!(Machine::wanted(Network::Host), all & !handle::NETWORK);
        assert_eq!(Machine::wanted(Network::Proxy(1)), all | handle::PROXY);
        assert_eq!(all.count_ones() as usize, MOST_NAMESPACES);
        assert_eq!(all & handle::ROOT, 0);
        let root = std::fs::File::open("/").unwrap().into();
        assert!(Machine::new(&mut Handles::default(), root, Network::Own, |_| None).is_none());
    }
}
