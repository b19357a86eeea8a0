//! Who in the waiting room waits for a slot of which container, or for one with which image: an
//! index of its positions, by what is waited for, so that the first who can be served is found
//! without a walk along all who cannot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::images::ImageWish;
use crate::backend::ImageKey;
use crate::wait_queue::Position;

/// The index. A trajectory with a wish is known from its entry to its slot, also while it is out of
/// the waiting room because a slot is being reset for it.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// The positions of those who wait for any slot.
    anywhere: BTreeSet<Position>,
    /// The positions of those who wait for a slot of a container, by its number. None is empty.
    there: BTreeMap<usize, BTreeSet<Position>>,
    /// The positions of those who wait for a slot with an image. None is empty.
    images: HashMap<ImageKey, BTreeSet<Position>>,
    /// The first of each of these.
    first_of_images: BTreeSet<(Position, ImageKey)>,
    /// What each of the latter two kinds wishes for.
    by_trajectory: HashMap<Arc<str>, Kind>,
}

/// What a trajectory waits for that any slot will not do for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A slot of this container.
    There(usize),
    /// One with an image.
    Image(ImageWish),
}

impl Wishes {
    /// A trajectory waits at this position, for something if it says what.
    pub(super) fn enter(&mut self, trajectory: Arc<str>, position: Position, wish: Option<Kind>) {
        if let Some(kind) = wish {
            self.by_trajectory.insert(trajectory, kind);
        }
        self.insert(position, wish);
    }

    /// It has left the waiting room, perhaps to come back.
    pub(super) fn leave(&mut self, trajectory: &Arc<str>, position: Position) {
        match self.by_trajectory.get(trajectory).copied() {
            None => {
                self.anywhere.remove(&position);
            }
            Some(Kind::There(container)) => {
                if let Some(positions) = self.there.get_mut(&container) {
                    positions.remove(&position);
                    if positions.is_empty() {
                        self.there.remove(&container);
                    }
                }
            }
            Some(Kind::Image(ImageWish { image, .. })) => {
                let Some(positions) = self.images.get_mut(&image) else { return };
                positions.remove(&position);
                if self.first_of_images.remove(&(position, image))
                    && let Some(first) = positions.first()
                {
                    self.first_of_images.insert((*first, image));
                }
                if positions.is_empty() {
                    self.images.remove(&image);
                }
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
        self.by_trajectory.retain(|_, wish| *wish != Kind::There(container));
        self.anywhere.extend(self.there.remove(&container).unwrap_or_default());
    }

    /// What a trajectory wishes for.
    pub(super) fn of(&self, trajectory: &str) -> Option<Kind> {
        self.by_trajectory.get(trajectory).copied()
    }

    /// The image that a trajectory waits for.
    pub(super) fn image_of(&mut self, trajectory: &str) -> Option<&mut ImageWish> {
        match self.by_trajectory.get_mut(trajectory)? {
            Kind::Image(wish) => Some(wish),
            Kind::There(_) => None,
        }
    }

    /// The containers that are waited for.
    pub(super) fn wished_for(&self) -> impl Iterator<Item = usize> {
        self.there.keys().copied()
    }

    /// The first who waits for each image, in the order of their arrival.
    pub(super) fn first_of_images(&self) -> impl Iterator<Item = (Position, ImageKey)> {
        self.first_of_images.iter().copied()
    }

    /// The first who waits for a slot of this container, or for any.
    pub(super) fn first(&self, container: Option<usize>) -> Option<Position> {
        match container {
            None => self.anywhere.first().copied(),
            Some(container) => self.there.get(&container)?.first().copied(),
        }
    }

    fn insert(&mut self, position: Position, wish: Option<Kind>) {
        match wish {
            None => {
                self.anywhere.insert(position);
            }
            Some(Kind::There(container)) => {
                self.there.entry(container).or_default().insert(position);
            }
            Some(Kind::Image(ImageWish { image, .. })) => {
                let positions = self.images.entry(image).or_default();
                let first = positions.first().copied();
                positions.insert(position);
                if first.is_none_or(|first| position < first) {
                    if let Some(first) = first {
                        self.first_of_images.remove(&(first, image));
                    }
                    self.first_of_images.insert((position, image));
                }
            }
        }
    }

    /// How many positions it has.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let there = self.there.values().chain(self.images.values());
        self.anywhere.len() + there.map(BTreeSet::len).sum::<usize>()
    }

    /// The container that a trajectory wishes for.
    #[cfg(test)]
    pub(super) fn container_of(&self, trajectory: &str) -> Option<usize> {
        match self.of(trajectory)? {
            Kind::There(container) => Some(container),
            Kind::Image(_) => None,
        }
    }
}
