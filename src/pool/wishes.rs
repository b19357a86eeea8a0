//! Who in the waiting room waits for a slot of which container: an index of its positions, by what
//! is waited for, so that the first who can be served is found without a walk along all who cannot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::wait_queue::Position;

/// The index. A trajectory with a wish is known from its entry to its slot, also while it is out of
/// the waiting room because a slot is being reset for it.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// The positions of those who wait for any slot.
    anywhere: BTreeSet<Position>,
    /// The positions of those who wait for a slot of a container, by its number. None is empty.
    there: BTreeMap<usize, BTreeSet<Position>>,
    /// What each of the latter wishes for.
    by_trajectory: HashMap<Arc<str>, usize>,
}

impl Wishes {
    /// A trajectory waits at this position, for a slot of this container if it says one.
    pub(super) fn enter(&mut self, trajectory: Arc<str>, position: Position, wish: Option<usize>) {
        if let Some(container) = wish {
            self.by_trajectory.insert(trajectory, container);
        }
        self.insert(position, wish);
    }

    /// It has left the waiting room, perhaps to come back.
    pub(super) fn leave(&mut self, trajectory: &Arc<str>, position: Position) {
        let Some(container) = self.by_trajectory.get(trajectory) else {
            self.anywhere.remove(&position);
            return;
        };
        if let Some(positions) = self.there.get_mut(container) {
            positions.remove(&position);
            if positions.is_empty() {
                self.there.remove(container);
            }
        }
    }

    /// It is back where it was, with the wish that it had.
    pub(super) fn return_to(&mut self, trajectory: &Arc<str>, position: Position) {
        self.insert(position, self.by_trajectory.get(trajectory).copied());
    }

    /// It waits no more; if it still did, at this position.
    pub(super) fn forget(&mut self, trajectory: &Arc<str>, position: Option<Position>) {
        if let Some(position) = position {
            self.leave(trajectory, position);
        }
        self.by_trajectory.remove(trajectory);
    }

    /// Nothing that could be wished for is left in this container: any slot will do.
    pub(super) fn give_up(&mut self, container: usize) {
        self.by_trajectory.retain(|_, wish| *wish != container);
        self.anywhere.extend(self.there.remove(&container).unwrap_or_default());
    }

    /// Whether a trajectory wishes for a container.
    pub(super) fn has_one(&self, trajectory: &Arc<str>) -> bool {
        self.by_trajectory.contains_key(trajectory)
    }

    /// The containers that are waited for.
    pub(super) fn wished_for(&self) -> impl Iterator<Item = usize> {
        self.there.keys().copied()
    }

    /// The first who waits for a slot of this container, or for any.
    pub(super) fn first(&self, container: Option<usize>) -> Option<Position> {
        match container {
            None => self.anywhere.first().copied(),
            Some(container) => self.there.get(&container)?.first().copied(),
        }
    }

    fn insert(&mut self, position: Position, wish: Option<usize>) {
        match wish {
            None => self.anywhere.insert(position),
            Some(container) => self.there.entry(container).or_default().insert(position),
        };
    }

    /// How many positions it has.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.anywhere.len() + self.there.values().map(BTreeSet::len).sum::<usize>()
    }

    /// What a trajectory wishes for.
    #[cfg(test)]
    pub(super) fn of(&self, trajectory: &str) -> Option<usize> {
        self.by_trajectory.get(trajectory).copied()
    }
}
