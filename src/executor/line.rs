//! A line to wait in: first come, first served, and whoever gives up leaves from anywhere in it.
//!
//! Leaving costs a logarithm, not a walk along the line: tens of thousands of calls that wait for
//! the same thing may all be cancelled at once, and the batcher thread must not stand still for it.

use std::collections::BTreeMap;

/// Where somebody stands in a [`Line`]. Never given twice by the same line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinePlace(u64);

/// The line. Empty, it holds no memory.
#[derive(Debug)]
pub(crate) struct Line<T> {
    next: u64,
    items: BTreeMap<LinePlace, T>,
}

impl<T> Line<T> {
    /// A line with nobody in it.
    pub(crate) fn new() -> Self {
        Self { next: 0, items: BTreeMap::new() }
    }

    /// Joins at the end.
    pub(crate) fn push(&mut self, item: T) -> LinePlace {
        let place = LinePlace(self.next);
        self.next += 1;
        self.items.insert(place, item);
        place
    }

    /// Takes the first.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.items.pop_first().map(|(_, item)| item)
    }

    /// Takes whoever stands at this place; `None` if nobody does any more.
    pub(crate) fn remove(&mut self, place: LinePlace) -> Option<T> {
        self.items.remove(&place)
    }

    /// All of them, the first first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_leaves_the_line_is_skipped_and_the_others_keep_their_order() {
        let mut line = Line::new();
        let places = ["a", "b", "c", "d"].map(|name| line.push(name));
        assert_eq!(line.remove(places[1]), Some("b"));
        assert_eq!(line.remove(places[1]), None, "only once");
        assert_eq!(line.pop(), Some("a"));
        line.push("e");
        assert_eq!(line.iter().copied().collect::<Vec<_>>(), ["c", "d", "e"]);
    }
}
