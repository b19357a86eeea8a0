//! The machines of all slots, and who waits for one. Owned by the supervisor's thread.
//!
//! A machine has the host's network or none, for all its life, so a slot that was asked for both
//! has two. They are kept until the slot is left, also while nothing runs in them: what is in their
//! `/dev/shm` and root file systems is the trajectory's.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::jail::Machine;
use super::workspace::Workspace;

/// A wish to have a slot's machine, for a jail that its caller makes there.
pub(super) struct MachineRequest {
    /// The slot's files.
    pub(super) workspace: Arc<Workspace>,
    /// Whether the machine is to have the host's network.
    pub(super) network: bool,
    /// Gets it.
    pub(super) reply: MachineReply,
}

/// The obligation to give somebody a machine. Dropped, it says that there is none.
pub(super) struct MachineReply(Option<TakeMachine>);

/// Gets a machine, or why there is none, as one line.
pub(super) type TakeMachine = Box<dyn FnOnce(Result<Arc<Machine>, String>) + Send>;

impl MachineReply {
    /// One that tells `take`.
    pub(super) fn new(take: TakeMachine) -> Self {
        Self(Some(take))
    }

    /// Hands it over.
    pub(super) fn give(mut self, machine: Result<Arc<Machine>, String>) {
        self.call(machine);
    }

    fn call(&mut self, machine: Result<Arc<Machine>, String>) {
        if let Some(take) = self.0.take()
            && catch_unwind(AssertUnwindSafe(|| take(machine))).is_err()
        {
            log::error!("the receiver of a slot's sandbox has panicked");
        }
    }
}

impl Drop for MachineReply {
    fn drop(&mut self) {
        self.call(Err("the sandbox is closed".to_owned()));
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Machines(HashMap<(usize, bool), Arc<Machine>>);

impl Machines {
    /// A slot's machine with the host's network, or without it, unless nothing can be run in it.
    pub(super) fn get(&self, slot: usize, network: bool) -> Option<Arc<Machine>> {
        self.0.get(&(slot, network)).filter(|machine| !machine.is_broken()).cloned()
    }

    /// Notes a slot's machine.
    pub(super) fn insert(&mut self, slot: usize, network: bool, machine: Arc<Machine>) {
        self.0.insert((slot, network), machine);
    }

    /// The slot is left.
    pub(super) fn forget(&mut self, slot: usize) {
        for network in [false, true] {
            self.0.remove(&(slot, network));
        }
    }
}
