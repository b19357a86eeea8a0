//! The slots whose holders have nothing to do, in the order in which they became idle.
//!
//! Every call makes its holder busy and then idle again, so both take constant time and no memory:
//! the list is threaded through a table of all slots.

use std::time::Instant;

use crate::pool::SlotIx;

/// The list. It holds a slot once at most.
#[derive(Debug)]
pub(in crate::executor::dispatch) struct IdleHolders {
    /// By the slot's index; `None` for slots that are not in the list.
    links: Vec<Option<Link>>,
    first: Option<SlotIx>,
    last: Option<SlotIx>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    since: Instant,
    before: Option<SlotIx>,
    after: Option<SlotIx>,
}

impl IdleHolders {
    /// An empty list.
    pub(in crate::executor::dispatch) fn new() -> Self {
        Self { links: Vec::new(), first: None, last: None, len: 0 }
    }

    /// The holder of this slot has had nothing to do since `since`, which is no earlier than what
    /// was said of any other.
    pub(in crate::executor::dispatch) fn insert(&mut self, slot: SlotIx, since: Instant) {
        let before = self.last;
        if self.links.len() <= slot.index() {
            self.links.resize(slot.index() + 1, None);
        }
        let link = &mut self.links[slot.index()];
        if link.is_some() {
            return;
        }
        *link = Some(Link { since, before, after: None });
        match before {
            Some(before) => self.link(before).after = Some(slot),
            None => self.first = Some(slot),
        }
        self.last = Some(slot);
        self.len += 1;
    }

    /// The holder of this slot has something to do, or holds it no more. Does nothing for a slot
    /// that is not in the list.
    pub(in crate::executor::dispatch) fn remove(&mut self, slot: SlotIx) {
        let Some(Link { before, after, .. }) =
            self.links.get_mut(slot.index()).and_then(Option::take)
        else {
            return;
        };
        match before {
            Some(before) => self.link(before).after = after,
            None => self.first = after,
        }
        match after {
            Some(after) => self.link(after).before = before,
            None => self.last = before,
        }
        self.len -= 1;
    }

    /// How many there are.
    pub(in crate::executor::dispatch) fn len(&self) -> usize {
        self.len
    }

    /// Since when the holder of this slot has been idle, if it is.
    pub(in crate::executor::dispatch) fn since(&self, slot: SlotIx) -> Option<Instant> {
        self.links.get(slot.index()).copied().flatten().map(|link| link.since)
    }

    /// The one that has been idle longest.
    pub(in crate::executor::dispatch) fn first(&self) -> Option<(SlotIx, Instant)> {
        self.iter().next()
    }

    /// All of them, the one that has been idle longest first.
    pub(in crate::executor::dispatch) fn iter(&self) -> impl Iterator<Item = (SlotIx, Instant)> {
        let after = |slot: &SlotIx| self.links.get(slot.index()).copied().flatten()?.after;
        std::iter::successors(self.first, after)
            .filter_map(|slot| self.since(slot).map(|since| (slot, since)))
    }

    /// A slot that is in the list.
    fn link(&mut self, slot: SlotIx) -> &mut Link {
        // Neighbours are in the list: `insert` and `remove` change both sides.
        self.links[slot.index()].as_mut().expect("a neighbour is in the list")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SLOTS: usize = 5;

    proptest! {
        #[test]
        fn it_is_like_a_list_that_is_searched(
            steps in proptest::collection::vec((0..SLOTS, any::<bool>()), 0..100),
        ) {
            let mut holders = IdleHolders::new();
            let mut naive: Vec<(SlotIx, Instant)> = Vec::new();
            let mut now = Instant::now();
            for (index, is_idle) in steps {
                now += Duration::from_secs(1);
                let slot = SlotIx::at(index);
                if is_idle {
                    holders.insert(slot, now);
                    if !naive.iter().any(|(other, _)| *other == slot) {
                        naive.push((slot, now));
                    }
                } else {
                    holders.remove(slot);
                    naive.retain(|(other, _)| *other != slot);
                }
                prop_assert_eq!(holders.iter().collect::<Vec<_>>(), naive.clone());
                prop_assert_eq!(holders.len(), naive.len());
                prop_assert_eq!(holders.first(), naive.first().copied());
                let since = naive.iter().find(|(other, _)| *other == slot);
                prop_assert_eq!(holders.since(slot), since.map(|(_, since)| *since));
            }
        }
    }
}
