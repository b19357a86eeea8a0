//! What the backend is told of how many slots are wanted, and when: whenever that has changed, but
//! not too often.

use std::time::{Duration, Instant};

use super::{Action, Dispatch};
use crate::backend::{ContainerUse, Demand};
use crate::pool::Occupancy;

/// No more often than this.
const PAUSE: Duration = Duration::from_millis(100);

/// What it was told, and when it was last looked at.
#[derive(Debug)]
pub(super) struct DemandWatch {
    told: Demand,
    looked_at: Instant,
    /// Whether something has happened since.
    is_stale: bool,
}

impl DemandWatch {
    /// It was told nothing.
    pub(super) fn new(now: Instant) -> Self {
        Self { told: Demand::default(), looked_at: now, is_stale: false }
    }

    /// Something has happened.
    pub(super) fn note(&mut self) {
        self.is_stale = true;
    }
}

impl Dispatch {
    /// Has the backend told what is wanted, if it is time and that has changed.
    pub(super) fn tell_demand(&mut self, now: Instant) {
        if self.demand_due().is_none_or(|due| due > now) {
            return;
        }
        (self.demand.looked_at, self.demand.is_stale) = (now, false);
        let demand = self.wanted(now);
        if self.demand.told != demand {
            self.demand.told = demand.clone();
            self.actions.push(Action::TellDemand(demand));
        }
    }

    /// When [`tell_demand`](Self::tell_demand) is due though nothing happens.
    pub(super) fn demand_due(&self) -> Option<Instant> {
        let wants_to_know = self.limits.may_grow && self.demand.is_stale;
        wants_to_know.then(|| self.demand.looked_at + PAUSE)
    }

    /// What is wanted now.
    pub(super) fn wanted(&self, now: Instant) -> Demand {
        let waiting = self.pool.waiting_by_tier(now).into_iter().enumerate();
        let tiers = waiting.map(|(tier, waiting)| self.wanted_of(waiting, |of| of == tier));
        let tiers = tiers.collect();
        Demand { tiers, ..self.wanted_of(self.waiting_for_slot, |_| true) }
    }

    /// What is wanted, and what there is in the tiers that `is_it` says.
    fn wanted_of(&self, waiting: usize, is_it: impl Fn(usize) -> bool) -> Demand {
        let open = self.pool.occupancy().filter(|container| container.state == "up");
        let containers = open.filter(|container| is_it(container.tier)).map(
            |Occupancy { addr, slots, held, .. }| ContainerUse { addr: addr.clone(), slots, held },
        );
        let containers: Vec<_> = containers.collect();
        let free = containers.iter().map(|container| container.slots - container.held).sum();
        Demand { waiting, free, containers, tiers: Vec::new() }
    }
}
