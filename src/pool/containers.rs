//! Containers that come and go, and slots that are granted and taken back: what becomes of the
//! slots and of who holds or waits for one.

use std::collections::HashMap;
use std::sync::Arc;

use super::slot::{ContainerState, PoolContainer, Purpose, Slot, SlotIx, State};
use super::{Pool, tiers};
use crate::backend::{ContainerChange, LeasedSlots};

impl Pool {
    /// Takes in what became of a container. The caller first frees the slots that
    /// [`Pool::lost_by`] gives, by [`Pool::release_unknown`].
    pub(crate) fn container_changed(&mut self, container: usize, change: &ContainerChange) {
        let (state, workspaces_lost) = match change {
            ContainerChange::Unreachable => (ContainerState::Unknown, false),
            ContainerChange::Recovered => (ContainerState::Up, false),
            ContainerChange::Restarted => (ContainerState::Up, true),
            ContainerChange::Lost => (ContainerState::Down, true),
            ContainerChange::Resized(slots) => return self.resized(container, slots),
            ContainerChange::Added(slots) => return self.added(container, slots),
            ContainerChange::Images(images) => return self.images.told(container, images),
            ContainerChange::Draining => {
                if let Some(entry) = self.containers.get_mut(container) {
                    entry.is_draining = true;
                    self.wait_elsewhere(container);
                    self.wishes.give_up(container);
                }
                return;
            }
            ContainerChange::Gone => (ContainerState::Gone, true),
        };
        let Some(entry) = self.containers.get_mut(container) else { return };
        entry.state = state;
        for slot in entry.slots.clone() {
            let entry = &mut self.slots[slot.0];
            if workspaces_lost {
                // Only what a reset that is still to be answered says.
                entry.stale |= entry.unanswered || matches!(entry.state, State::Resetting { .. });
            }
            match &mut entry.state {
                State::Clean | State::Dirty(Some(_)) if workspaces_lost => {
                    self.set(slot, State::Dirty(None));
                }
                // The trajectory that waits for this reset need not wait for this container.
                State::Resetting { .. } if *change != ContainerChange::Recovered => {
                    self.reset_for_nobody(slot);
                }
                _ => {}
            }
        }
        if workspaces_lost {
            // What they wish to be near to is lost with the workspaces.
            self.wishes.give_up(container);
            self.images.stopped(container, *change == ContainerChange::Gone);
        }
        if *change == ContainerChange::Gone {
            for slot in self.containers[container].slots.clone() {
                self.leave(slot);
            }
        }
    }

    /// The number of the container at this address, if it is there.
    pub(crate) fn container_at(&self, addr: &str) -> Option<usize> {
        let number = *self.by_addr.get(addr)?;
        (self.containers[number].state != ContainerState::Gone).then_some(number)
    }

    /// The number of a container that is there from now on. It may be that of one that is gone and
    /// of which nothing is left: `is_idle` says so of what the pool does not know.
    pub(crate) fn admit(&mut self, addr: &Arc<str>, is_idle: impl Fn(usize) -> bool) -> usize {
        if let Some(number) = self.by_addr.get(addr) {
            return *number;
        }
        let is_left = |slot: &SlotIx| {
            let Slot { state, unanswered, .. } = &self.slots[slot.0];
            matches!(state, State::Absent) && !unanswered
        };
        let is_free = |(number, container): &(usize, &PoolContainer)| {
            container.state == ContainerState::Gone
                && container.slots.iter().all(is_left)
                && is_idle(*number)
        };
        let free = self.containers.iter().enumerate().find(is_free).map(|(number, _)| number);
        let number = free.unwrap_or(self.containers.len());
        match free {
            Some(number) => {
                let entry = &mut self.containers[number];
                self.by_addr.remove(&entry.addr);
                entry.addr = addr.clone();
                entry.tier = tiers::tier_at(&self.tiers, addr);
            }
            None => {
                let mut entry = PoolContainer::new(addr.clone());
                entry.tier = tiers::tier_at(&self.tiers, addr);
                entry.state = ContainerState::Gone;
                self.containers.push(entry);
            }
        }
        self.by_addr.insert(addr.clone(), number);
        number
    }

    /// The container is there, with these slots.
    fn added(&mut self, container: usize, leased: &LeasedSlots) {
        let Some(entry) = self.containers.get_mut(container) else { return };
        entry.is_draining = false;
        if entry.state == ContainerState::Gone {
            entry.state = ContainerState::Up;
            // Whoever is there now counts its grants from 1 again.
            for slot in &entry.slots {
                self.slots[slot.0].grant = 0;
            }
        }
        self.resized(container, leased);
    }

    /// Whoever waits for the reset of a slot of this container waits for any slot again.
    fn wait_elsewhere(&mut self, container: usize) {
        for slot in self.containers[container].slots.clone() {
            self.reset_for_nobody(slot);
        }
    }

    /// Other slots of the container are the executor's now.
    fn resized(&mut self, container: usize, leased: &LeasedSlots) {
        let Some(entry) = self.containers.get_mut(container) else { return };
        entry.limit = leased.limit;
        for (index, name) in leased.names.iter().enumerate() {
            match entry.slots.get(index) {
                Some(slot) if *self.slots[slot.0].name != **name => {
                    self.slots[slot.0].name = name.as_str().into();
                }
                Some(_) => {}
                None => {
                    entry.slots.push(SlotIx(self.slots.len()));
                    self.slots.push(Slot::new(container, index, name, State::Absent));
                }
            }
        }
        let mut granted = vec![None; entry.slots.len()];
        for &(index, grant) in &leased.held {
            if let Some(granted) = granted.get_mut(index) {
                *granted = Some(grant);
            }
        }
        for (slot, granted) in entry.slots.clone().into_iter().zip(granted) {
            let entry = &mut self.slots[slot.0];
            match granted {
                Some(grant) if grant > entry.grant => self.enter(slot, grant),
                // One that was given back may still be told as held for a while.
                Some(grant) if grant == entry.grant => {}
                _ => self.leave(slot),
            }
        }
    }

    /// The slot is the executor's, under a new grant; what is in it is not known.
    fn enter(&mut self, slot: SlotIx, grant: u64) {
        self.reset_for_nobody(slot);
        let entry = &mut self.slots[slot.0];
        (entry.grant, entry.failed_resets, entry.is_leaving) = (grant, 0, false);
        if let State::Resetting { .. } = entry.state {
            // It speaks of the slot under its former grant.
            entry.stale = true;
        } else {
            // What is still to be said of it is not believed any more.
            entry.unanswered = false;
            entry.stale = false;
            self.set(slot, State::Dirty(None));
        }
    }

    /// The slot is the executor's no more.
    fn leave(&mut self, slot: SlotIx) {
        self.reset_for_nobody(slot);
        let entry = &mut self.slots[slot.0];
        match entry.state {
            State::Absent => {}
            State::Resetting { .. } => entry.is_leaving = true,
            _ => self.set(slot, State::Absent),
        }
    }

    /// The trajectory that waits for the reset of this slot, if there is one, waits for any slot
    /// again.
    fn reset_for_nobody(&mut self, slot: SlotIx) {
        if let State::Resetting { purpose, .. } = &mut self.slots[slot.0].state
            && matches!(purpose, Purpose::Grant(..))
            && let Purpose::Grant(turn, trajectory) = std::mem::replace(purpose, Purpose::Nobody)
        {
            self.image_is_over(slot);
            self.wait_again(turn, trajectory);
        }
    }

    /// Takes away a free slot of a container that has more than it may have: the slot, and its
    /// grant, to be given back. To be called until it gives `None`, before [`Pool::assign`].
    pub(crate) fn take_excess(&mut self) -> Option<(SlotIx, u64)> {
        let containers = self.containers.iter().filter(|container| container.has_excess());
        let slot = containers.filter_map(|container| self.least_wanted(container)).next()?;
        self.set(slot, State::Absent);
        Some((slot, self.slots[slot.0].grant))
    }

    /// The free slot of a container that is missed least.
    fn least_wanted(&self, container: &PoolContainer) -> Option<SlotIx> {
        let value = |slot: &SlotIx| {
            let entry = &self.slots[slot.0];
            match &entry.state {
                // One whose reset failed helps nobody; but it must not come back while that reset
                // may still be at work.
                State::Broken { .. } if !entry.unanswered => Some(0),
                State::Dirty(None) => Some(1),
                State::Clean => Some(2),
                State::Dirty(Some(_)) => Some(3),
                State::Broken { .. } | State::Held(_) | State::Resetting { .. } | State::Absent => {
                    None
                }
            }
        };
        let free = container.slots.iter().filter_map(|slot| Some((value(slot)?, *slot)));
        free.min().map(|(_, slot)| slot)
    }

    /// The slots whose workspaces are lost by what became of their container, and who holds them.
    pub(crate) fn lost_by(
        &self,
        container: usize,
        change: &ContainerChange,
    ) -> Vec<(Arc<str>, SlotIx)> {
        let kept = match change {
            ContainerChange::Unreachable
            | ContainerChange::Recovered
            | ContainerChange::Draining
            | ContainerChange::Images(_) => return Vec::new(),
            ContainerChange::Restarted | ContainerChange::Lost | ContainerChange::Gone => &[][..],
            ContainerChange::Resized(slots) | ContainerChange::Added(slots) => &slots.held,
        };
        let kept: HashMap<_, _> = kept.iter().copied().collect();
        let slots = self.containers.get(container).map_or(&[][..], |entry| &entry.slots);
        slots
            .iter()
            .filter_map(|slot| {
                let Slot { index, grant, state, .. } = &self.slots[slot.0];
                let State::Held(trajectory) = state else { return None };
                (kept.get(index) != Some(grant)).then(|| (trajectory.clone(), *slot))
            })
            .collect()
    }
}
