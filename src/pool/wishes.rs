//! Who in the waiting room waits for which slots, or for one with which image: an index of its
//! positions, by what is waited for, so that the first who can be served is found without a walk
//! along all who cannot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::images::ImageWish;
use super::tiers::TierSet;
use crate::backend::ImageKey;
use crate::wait_queue::Position;

/// A place in the waiting room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) position: Position,
    /// Since when: of two positions the later one has not waited for longer.
    pub(super) since: Instant,
}

/// Which slots a trajectory waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Those of a container, by its number.
    There(usize),
    /// Those of these tiers.
    Of(TierSet),
    /// Those where it can have an image.
    Image(ImageWish),
}

/// Those who wait for the same image in the same tiers are one line.
pub(super) type ImageLine = (ImageKey, TierSet);

/// Those who wait for the same, in their order.
pub(super) type Line = BTreeMap<Position, Instant>;

/// The index. A trajectory is known from its entry to its slot, also while it is out of the waiting
/// room because a slot is being reset for it, where it wishes for anything but any slot.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// Those who wait for any slot of some tiers. No line is empty.
    anywhere: BTreeMap<TierSet, Line>,
    /// Those who wait for a slot of a container, by its number. No line is empty.
    there: BTreeMap<usize, Line>,
    /// Those who wait for a slot with an image. No line is empty.
    images: BTreeMap<ImageLine, Line>,
    /// The first of each of these lines.
    first_of_images: BTreeSet<(Position, ImageLine)>,
    /// What each wishes for who is not content with any slot.
    by_trajectory: HashMap<Arc<str>, Wish>,
    /// How long it takes until a trajectory may use one more tier, for each tier where that is not
    /// at once.
    steps: Vec<Duration>,
    /// When those who wait may do so.
    spills: BTreeSet<(Instant, Position)>,
}

impl Wishes {
    /// Who has waited for so long may use one more tier, each time.
    pub(super) fn spill_after(&mut self, steps: impl IntoIterator<Item = Duration>) {
        self.steps = steps.into_iter().filter(|step| !step.is_zero()).collect();
    }

    /// A trajectory waits from now on.
    pub(super) fn enter(&mut self, trajectory: Arc<str>, turn: Turn, wish: Wish) {
        if wish != Wish::Of(TierSet::ALL) {
            self.by_trajectory.insert(trajectory, wish);
        }
        self.insert(turn, wish);
    }

    /// It has left the waiting room, perhaps to come back.
    pub(super) fn leave(&mut self, trajectory: &Arc<str>, position: Position) -> Option<Turn> {
        let since = match self.wish_of(trajectory) {
            Wish::Of(tiers) => take(&mut self.anywhere, tiers, position),
            Wish::There(container) => take(&mut self.there, container, position),
            Wish::Image(wish) => {
                let line = wish.line();
                let since = take(&mut self.images, line, position);
                if self.first_of_images.remove(&(position, line))
                    && let Some((first, _)) = self.images.get(&line).and_then(Line::first_key_value)
                {
                    self.first_of_images.insert((*first, line));
                }
                since
            }
        }?;
        for step in &self.steps {
            self.spills.remove(&(since + *step, position));
        }
        Some(Turn { position, since })
    }

    /// It is back where it was, with the wish that it had.
    pub(super) fn return_to(&mut self, trajectory: &Arc<str>, turn: Turn) {
        self.insert(turn, self.wish_of(trajectory));
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
        self.by_trajectory.retain(|_, wish| *wish != Wish::There(container));
        for (position, since) in self.there.remove(&container).unwrap_or_default() {
            self.insert(Turn { position, since }, Wish::Of(TierSet::ALL));
        }
    }

    /// Whether a trajectory wishes for a container, or for an image.
    pub(super) fn has_one(&self, trajectory: &Arc<str>) -> bool {
        matches!(self.by_trajectory.get(trajectory), Some(Wish::There(_) | Wish::Image(_)))
    }

    /// The image that a trajectory waits for.
    pub(super) fn image_of(&mut self, trajectory: &str) -> Option<&mut ImageWish> {
        match self.by_trajectory.get_mut(trajectory)? {
            Wish::Image(wish) => Some(wish),
            Wish::There(_) | Wish::Of(_) => None,
        }
    }

    /// The first of each line of those who wait for an image, in the order of their arrival.
    pub(super) fn first_of_images(&self) -> impl Iterator<Item = (Position, ImageLine)> {
        self.first_of_images.iter().copied()
    }

    /// Those who wait for an image in some tiers.
    pub(super) fn with_images(&self) -> impl Iterator<Item = (TierSet, &Line)> {
        self.images.iter().map(|((_, tiers), line)| (*tiers, line))
    }

    /// The containers that are waited for, and by whom.
    pub(super) fn there(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.there.iter().map(|(container, line)| (*container, line))
    }

    /// Those who wait for any slot of some tiers.
    pub(super) fn anywhere(&self) -> impl Iterator<Item = (TierSet, &Line)> {
        self.anywhere.iter().map(|(tiers, line)| (*tiers, line))
    }

    /// Lets time pass. Whether one who waits may use one more tier now.
    pub(super) fn has_spilled(&mut self, now: Instant) -> bool {
        let mut has_spilled = false;
        while self.spills.first().is_some_and(|(when, _)| *when <= now) {
            self.spills.pop_first();
            has_spilled = true;
        }
        has_spilled
    }

    /// When the next one may.
    pub(super) fn next_spill(&self) -> Option<Instant> {
        self.spills.first().map(|(when, _)| *when)
    }

    pub(super) fn wish_of(&self, trajectory: &str) -> Wish {
        self.by_trajectory.get(trajectory).copied().unwrap_or(Wish::Of(TierSet::ALL))
    }

    fn insert(&mut self, Turn { position, since }: Turn, wish: Wish) {
        let line = match wish {
            Wish::Of(tiers) => self.anywhere.entry(tiers).or_default(),
            Wish::There(container) => self.there.entry(container).or_default(),
            Wish::Image(wish) => {
                let line = wish.line();
                let waiting = self.images.entry(line).or_default();
                let first = waiting.first_key_value().map(|(first, _)| *first);
                if first.is_none_or(|first| position < first) {
                    first.map(|first| self.first_of_images.remove(&(first, line)));
                    self.first_of_images.insert((position, line));
                }
                waiting
            }
        };
        line.insert(position, since);
        self.spills.extend(self.steps.iter().map(|step| (since + *step, position)));
    }

    /// How many positions it has.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let lines = self.anywhere.values().chain(self.there.values()).chain(self.images.values());
        lines.map(BTreeMap::len).sum()
    }

    /// The container that a trajectory wishes for.
    #[cfg(test)]
    pub(super) fn container_of(&self, trajectory: &str) -> Option<usize> {
        match self.by_trajectory.get(trajectory)? {
            Wish::There(container) => Some(*container),
            Wish::Of(_) | Wish::Image(_) => None,
        }
    }
}

/// Takes a position out of a line, and the line away with its last one.
fn take<K: Ord + Copy>(
    lines: &mut BTreeMap<K, Line>,
    key: K,
    position: Position,
) -> Option<Instant> {
    let line = lines.get_mut(&key)?;
    let since = line.remove(&position);
    if line.is_empty() {
        lines.remove(&key);
    }
    since
}
