//! The jails of all slots, and what runs in them. Owned by the supervisor's thread.

use std::collections::HashMap;

use super::jail::{Jail, Phase};
use super::machines::MachineReply;

/// Jails and commands are numbered apart: this bit is set in the numbers of jails.
const JAIL: u64 = 1 << 60;

/// Called when a slot's jails are gone, or retired; with `false` where what is left may still run.
pub(super) type OnGone = Box<dyn FnOnce(bool) + Send>;

/// A jail with its circumstances.
pub(super) struct Tenancy {
    /// The jail.
    pub(super) jail: Jail,
    /// Whether it has the host's network.
    pub(super) network: bool,
    /// The slot that it belongs to.
    pub(super) slot: usize,
    /// The command that waits for it or runs in it.
    pub(super) occupant: Option<u64>,
    /// Whether earlier commands have left something running in it.
    pub(super) has_background: bool,
    /// Why it is being ended, if that is to be told to those who have.
    pub(super) ends_because: Option<&'static str>,
    /// Who waits for the machine that it founds.
    pub(super) machine_wanted: Vec<MachineReply>,
    /// Who waits for its end.
    pub(super) on_gone: Vec<OnGone>,
}

impl Tenancy {
    /// Whether a command with this network policy may enter, now or when it is open. `is_full` says
    /// whether the slot has used up its bytes: then nothing may be written in its jail.
    pub(super) fn takes(&self, network: bool, is_full: bool) -> bool {
        self.jail.phase() < Phase::Ending
            && self.network == network
            && self.jail.machine().is_none_or(|machine| !machine.is_broken())
            // What runs in it stays; the disk is watched all the same.
            && (self.has_background || self.jail.was_full().is_none_or(|was_full| was_full == is_full))
    }

    /// Why what earlier commands have left running in it runs no more, once: as it was noted, or
    /// else this. `None` where there is nothing to be told of.
    pub(super) fn take_background(&mut self, why: &'static str) -> Option<&'static str> {
        let was_there = std::mem::take(&mut self.has_background);
        was_there.then(|| self.ends_because.unwrap_or(why))
    }
}

/// All of them. A slot has one that commands may enter, and perhaps others that are ending.
#[derive(Default)]
pub(super) struct SlotJails {
    by_number: HashMap<u64, Tenancy>,
    of_slot: HashMap<usize, u64>,
    made: u64,
    /// Why what was left running in a slot was ended, until its next command has told.
    lost: HashMap<usize, &'static str>,
}

impl SlotJails {
    /// Whether a number is that of a sandbox.
    pub(super) fn is_jail(number: u64) -> bool {
        number & JAIL != 0
    }

    /// A number that no sandbox has had.
    pub(super) fn next_number(&mut self) -> u64 {
        self.made += 1;
        JAIL | self.made
    }

    /// Makes a sandbox its slot's present one.
    pub(super) fn insert(&mut self, number: u64, slot: usize, network: bool, jail: Jail) {
        let (machine_wanted, on_gone) = (Vec::new(), Vec::new());
        let tenancy = Tenancy {
            jail,
            network,
            slot,
            occupant: None,
            has_background: false,
            ends_because: None,
            machine_wanted,
            on_gone,
        };
        self.by_number.insert(number, tenancy);
        self.of_slot.insert(slot, number);
    }

    /// The present sandbox of a slot.
    pub(super) fn of_slot(&mut self, slot: usize) -> Option<(u64, &mut Tenancy)> {
        let number = *self.of_slot.get(&slot)?;
        Some((number, self.by_number.get_mut(&number)?))
    }

    /// All sandboxes of a slot, the ending ones too.
    pub(super) fn all_of_slot(&self, slot: usize) -> Vec<u64> {
        let here = self.by_number.iter().filter(|(_, tenancy)| tenancy.slot == slot);
        here.map(|(number, _)| *number).collect()
    }

    /// The sandbox with this number.
    pub(super) fn get(&mut self, number: u64) -> Option<&mut Tenancy> {
        self.by_number.get_mut(&number)
    }

    /// Forgets it.
    pub(super) fn remove(&mut self, number: u64) -> Option<Tenancy> {
        let tenancy = self.by_number.remove(&number)?;
        if self.of_slot.get(&tenancy.slot) == Some(&number) {
            self.of_slot.remove(&tenancy.slot);
        }
        Some(tenancy)
    }

    /// What was left running in a slot was ended.
    pub(super) fn background_lost(&mut self, slot: usize, why: &'static str) {
        self.lost.insert(slot, why);
    }

    /// Why what was left running in a slot was ended, once; also when the slot is left.
    pub(super) fn take_background_lost(&mut self, slot: usize) -> Option<&'static str> {
        self.lost.remove(&slot)
    }

    /// The numbers of all sandboxes.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.by_number.keys().copied().collect()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }
}
