//! A queue to wait in: first come, first served, and an item may leave from anywhere in it.
//!
//! The executor's queues of calls and the pool's queue of trajectories are of this kind. Leaving
//! costs a logarithm, not a walk along the queue: tens of thousands of calls that wait for the
//! same thing may all be cancelled at once, and the batcher thread must not stand still for it.
//!
//! It knows no deadlines: its users give up for their items.

use std::collections::BTreeMap;

/// Where an item is in a [`WaitQueue`]: never given to another item of the same queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(u64);

/// The queue. Empty, it holds no memory.
#[derive(Debug)]
pub(crate) struct WaitQueue<T> {
    next: u64,
    items: BTreeMap<Position, T>,
}

impl<T> WaitQueue<T> {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        Self { next: 0, items: BTreeMap::new() }
    }

    /// Puts an item at the end.
    pub(crate) fn push(&mut self, item: T) -> Position {
        let position = Position(self.next);
        self.next += 1;
        self.items.insert(position, item);
        position
    }

    /// Puts an item that has left back to where it was, before all that came later.
    pub(crate) fn put_back(&mut self, position: Position, item: T) {
        debug_assert!(position.0 < self.next && !self.items.contains_key(&position));
        self.items.insert(position, item);
    }

    /// The item at this position, which stays.
    pub(crate) fn get(&self, position: Position) -> Option<&T> {
        self.items.get(&position)
    }

    /// The first item, which stays.
    #[cfg_attr(not(test), expect(dead_code, reason = "its tests look at it"))]
    pub(crate) fn first(&self) -> Option<(Position, &T)> {
        self.items.first_key_value().map(|(position, item)| (*position, item))
    }

    /// The last item, which stays.
    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        self.items.last_entry().map(|entry| entry.into_mut())
    }

    /// Takes the first item.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.items.pop_first().map(|(_, item)| item)
    }

    /// Takes the last item.
    pub(crate) fn pop_last(&mut self) -> Option<T> {
        self.items.pop_last().map(|(_, item)| item)
    }

    /// Takes the item at this position; `None` if it has left.
    pub(crate) fn remove(&mut self, position: Position) -> Option<T> {
        self.items.remove(&position)
    }

    /// How many items wait.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// All items, the first first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_that_leaves_is_skipped_and_the_others_keep_their_order() {
        let mut queue = WaitQueue::new();
        let positions = ["a", "b", "c", "d"].map(|name| queue.push(name));
        assert_eq!(queue.remove(positions[1]), Some("b"));
        assert_eq!(queue.remove(positions[1]), None, "only once");
        assert_eq!(queue.pop(), Some("a"));
        queue.push("e");
        assert_eq!(queue.iter().copied().collect::<Vec<_>>(), ["c", "d", "e"]);
    }

    #[test]
    fn an_item_that_is_put_back_has_its_old_position() {
        let mut queue = WaitQueue::new();
        let positions = ["a", "b", "c"].map(|name| queue.push(name));
        assert_eq!(queue.first(), Some((positions[0], &"a")));
        let (a, b) = (queue.pop().unwrap(), queue.remove(positions[1]).unwrap());
        queue.push("d");
        queue.put_back(positions[1], b);
        queue.put_back(positions[0], a);
        assert_eq!(queue.iter().copied().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert_eq!(queue.len(), 4);
    }
}
