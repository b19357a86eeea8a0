//! Trajectories that begin with an image: how [`images`](super::images) chooses their slots.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::images::choice::{Candidate, Choice, NeedsReset, Source, best_to_pull, choose};
use super::images::{ImageCounts, ImageWish};
use super::slot::{PoolContainer, SlotIx, State};
use super::{Assignment, Kind, Pool};
use crate::backend::ImageKey;
use crate::wait_queue::Position;

/// What a trajectory wants of its slot.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish<'a> {
    /// The address of the container that it needs a slot of, because something of it is there.
    pub(crate) near: Option<&'a str>,
    /// The image that it begins with.
    pub(crate) image: Option<ImageKey>,
}

impl Pool {
    /// Puts a trajectory at the end of the waiting room, which holds no slot and does not wait yet.
    ///
    /// With an address it waits for a slot of the container there, and does not have back what it
    /// left in a slot. Where that container is gone, or takes no trajectory any more, any slot will
    /// do: whoever uses it finds out what is missing. With an image it gets a slot that is chosen
    /// for it, and holds up no one while it waits for that.
    pub(crate) fn wait_in(&mut self, trajectory: Arc<str>, wish: Wish<'_>, now: Instant) {
        debug_assert!(!self.positions.contains_key(&trajectory));
        let position = self.waiting.push(trajectory.clone());
        let near = wish.near.and_then(|addr| self.container_at(addr));
        let near = near.filter(|container| self.containers[*container].may_be_wished_for());
        let kind = match (near, wish.image) {
            (Some(container), _) => Some(Kind::There(container)),
            (None, Some(image)) => {
                self.images.touch(image, now);
                Some(Kind::Image(ImageWish { image, since: now, tries: 0, held_since: None }))
            }
            (None, None) => None,
        };
        self.wishes.enter(trajectory.clone(), position, kind);
        self.positions.insert(trajectory, position);
    }

    /// Serves one who waits for a slot with an image, if there is one who can be served before the
    /// one at this position.
    pub(super) fn assign_image(
        &mut self,
        before: Option<Position>,
        now: Instant,
    ) -> Option<Assignment> {
        self.held_until = None;
        let turn = self.next_turn(before, now)?;
        let trajectory = self.waiting.get(turn.position)?.clone();
        let wish = *self.wishes.image_of(&trajectory)?;
        let Some((container, source)) = turn.place else {
            self.waiting.remove(turn.position)?;
            self.positions.remove(&trajectory);
            self.wishes.forget(&trajectory, Some(turn.position));
            self.images.let_go(&wish, now);
            self.images.counts.refusals += 1;
            return Some(Assignment::Refused(trajectory, self.images.why(wish.image)));
        };
        if let Some(wish) = self.wishes.image_of(&trajectory) {
            wish.held_since = None;
        }
        let (slot, _) = free_slot(&self.containers[container])?;
        let assignment = self.give(turn.position, slot, now);
        self.slots[slot.0].image =
            Some(self.images.begins(container, wish, turn.position, source, now));
        assignment
    }

    /// Whose turn it is of those who wait for a slot with an image.
    fn next_turn(&mut self, before: Option<Position>, now: Instant) -> Option<ImageTurn> {
        let has_free = self.has_free();
        let (mut passed, mut last, mut turn) = (Vec::new(), Vec::new(), None);
        for (position, image) in self.wishes.first_of_images() {
            if before.is_some_and(|before| before < position) {
                break;
            }
            let Some(trajectory) = self.waiting.get(position) else { continue };
            let Some(Kind::Image(wish)) = self.wishes.of(trajectory) else { continue };
            if !has_free && self.images.failures(image, now).is_empty() {
                continue;
            }
            let near: Vec<_> = self.candidates(image, self.images.near(image), now).collect();
            let facts = self.images.facts(image, now);
            let place = match choose(&wish, self.idle_since, facts, &near, now) {
                Choice::Refuse => None,
                _ if !has_free => continue,
                Choice::Take(container, source) => Some((container, source)),
                Choice::Pull => match self.best_to_pull(image, now) {
                    Some(container) => Some((container, Source::Pull)),
                    None => continue,
                },
                Choice::PullLast => {
                    last.push((position, image));
                    passed.push(trajectory.clone());
                    continue;
                }
                Choice::HoldUntil(until) => {
                    self.held_until = Some(self.held_until.map_or(until, |other| other.min(until)));
                    passed.push(trajectory.clone());
                    continue;
                }
            };
            turn = Some(ImageTurn { position, place });
            break;
        }
        for trajectory in passed {
            if let Some(wish) = self.wishes.image_of(&trajectory)
                && wish.held_since.is_none()
            {
                wish.held_since = Some(now);
                self.images.counts.waits += 1;
            }
        }
        turn.or_else(|| {
            let pulls = |&(position, image): &(Position, ImageKey)| {
                let place = Some((self.best_to_pull(image, now)?, Source::Pull));
                Some(ImageTurn { position, place })
            };
            last.iter().find_map(pulls)
        })
    }

    /// Whether there is a free slot, be it one that cannot be given out now.
    pub(super) fn has_free(&self) -> bool {
        self.counts.clean + self.counts.dirty > 0
    }

    /// The open ones of these containers, as the choice for an image sees them.
    fn candidates(
        &self,
        image: ImageKey,
        containers: impl Iterator<Item = usize>,
        now: Instant,
    ) -> impl Iterator<Item = Candidate> {
        let failed = self.images.failures(image, now);
        containers.filter_map(move |container| {
            let entry = self.containers.get(container)?;
            if !entry.is_open() || entry.total == 0 {
                return None;
            }
            let free = free_slot(entry).map(|(_, needs_reset)| needs_reset);
            Some(self.images.candidate(image, failed, container, free, entry.load, now))
        })
    }

    fn best_to_pull(&self, image: ImageKey, now: Instant) -> Option<usize> {
        let near: HashSet<_> = self.images.near(image).collect();
        let others = (0..self.containers.len()).filter(|container| !near.contains(container));
        best_to_pull(self.candidates(image, others, now))
    }

    /// When someone has been held back for long enough: then [`Pool::assign`] has something to do.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// A trajectory has begun in this slot as it asks.
    pub(crate) fn has_begun(&mut self, slot: SlotIx, now: Instant) {
        let entry = &mut self.slots[slot.0];
        let (container, begin) = (entry.container, entry.image.take());
        if let Some(begin) = begin {
            // First that it is there: between the two it would be nowhere.
            self.images.succeeded(container, &begin, now);
            self.images.over(container, &begin);
        }
    }

    /// The trajectory that holds this slot cannot begin there, because its image cannot be had. If
    /// that is to be tried in another container the slot is taken from it, by way of a reset that
    /// the caller has to start now, and it waits again where it was.
    pub(crate) fn cannot_begin(&mut self, slot: SlotIx, why: &str, now: Instant) -> bool {
        let entry = &mut self.slots[slot.0];
        let (container, begin) = (entry.container, entry.image.take());
        let Some(begin) = begin else { return false };
        self.images.over(container, &begin);
        let may_be_tried = self.images.failed(container, &begin, why, now);
        let State::Held(trajectory) = &self.slots[slot.0].state else { return false };
        if !may_be_tried || !self.has_another(begin.wish.image, now) {
            return false;
        }
        let trajectory = trajectory.clone();
        self.take_back(slot, now);
        let wish = ImageWish { tries: begin.wish.tries + 1, held_since: None, ..begin.wish };
        self.waiting.put_back(begin.position, trajectory.clone());
        self.wishes.enter(trajectory.clone(), begin.position, Some(Kind::Image(wish)));
        self.positions.insert(trajectory, begin.position);
        self.images.counts.retries += 1;
        true
    }

    /// Whether there is a container in which an image has not just failed, and that has room.
    fn has_another(&self, image: ImageKey, now: Instant) -> bool {
        let mut open = self.candidates(image, 0..self.containers.len(), now);
        open.any(|one| !one.has_failed && (one.has || !one.is_full))
    }

    /// What is counted of images.
    pub(crate) fn image_counts(&self) -> ImageCounts {
        self.images.counts
    }

    /// Whatever begins in this slot with an image does so no more.
    pub(super) fn image_is_over(&mut self, slot: SlotIx) {
        let entry = &mut self.slots[slot.0];
        let (container, begin) = (entry.container, entry.image.take());
        if let Some(begin) = begin {
            self.images.over(container, &begin);
        }
    }
}

/// Who is served, and where; nowhere where its image cannot be had.
struct ImageTurn {
    position: Position,
    place: Option<(usize, Source)>,
}

/// A free slot of a container, and whether it is to be reset first.
fn free_slot(container: &PoolContainer) -> Option<(SlotIx, NeedsReset)> {
    let clean = container.clean.last().map(|slot| (*slot, false));
    clean.or_else(|| container.dirty.front().map(|slot| (*slot, true)))
}
