//! Trajectories that begin with an image: how [`images`](super::images) chooses their slots.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::images::choice::{Candidate, Choice, NeedsReset, Source, TRIES, best_to_pull, choose};
use super::images::{ImageCounts, ImageWish};
use super::slot::{PoolContainer, SlotIx, State};
use super::tiers::{self, TierSet, TierView};
use super::wishes::{Turn, Wish};
use super::{Assignment, Pool};
use crate::backend::ImageKey;
use crate::wait_queue::Position;

/// What a trajectory wants of its slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The address of the container that it needs a slot of, because something of it is there.
    pub(crate) near: Option<&'a str>,
    /// The tiers that it may be in, where it is to be near to nothing.
    pub(crate) may: TierSet,
    /// The image that it begins with.
    pub(crate) image: Option<ImageKey>,
}

impl Default for Wanted<'_> {
    /// Any slot.
    fn default() -> Self {
        Self { near: None, may: TierSet::ALL, image: None }
    }
}

impl Pool {
    /// Puts a trajectory at the end of the waiting room, which holds no slot and does not wait yet.
    ///
    /// With an address it waits for a slot of the container there, and does not have back what it
    /// left in a slot. Where that container is gone, or takes no trajectory any more, any slot will
    /// do: whoever uses it finds out what is missing. Without one it needs a slot of the tiers that
    /// it may use; with an image one that is chosen for it, and it holds up no one while it waits
    /// for that.
    pub(crate) fn wait_in(&mut self, trajectory: Arc<str>, wanted: Wanted<'_>, now: Instant) {
        debug_assert!(!self.positions.contains_key(&trajectory));
        let position = self.waiting.push(trajectory.clone());
        let Wanted { near, may, image } = wanted;
        let there = near.and_then(|addr| self.container_at(addr));
        let there = there.filter(|container| self.containers[*container].may_be_wished_for());
        let wish = match (near, there, image) {
            (_, Some(container), _) => Wish::There(container),
            (Some(_), None, _) => Wish::Of(TierSet::ALL),
            (None, None, Some(image)) => {
                self.images.touch(image, now);
                Wish::Image(ImageWish { image, may, since: now, tries: 0, held_since: None })
            }
            (None, None, None) => Wish::Of(may),
        };
        self.wishes.enter(trajectory.clone(), Turn { position, since: now }, wish);
        self.positions.insert(trajectory, position);
    }

    /// Serves one who waits for a slot with an image, if there is one who can be served before the
    /// one at this position.
    pub(super) fn assign_image(
        &mut self,
        before: Option<Position>,
        views: &[TierView],
        now: Instant,
    ) -> Option<Assignment> {
        self.held_until = None;
        let turn = self.next_turn(before, views, now)?;
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
        let turn = Turn { position: turn.position, since: wish.since };
        self.slots[slot.0].image = Some(self.images.begins(container, wish, turn, source, now));
        assignment
    }

    /// Whose turn it is of those who wait for a slot with an image.
    fn next_turn(
        &mut self,
        before: Option<Position>,
        views: &[TierView],
        now: Instant,
    ) -> Option<ImageTurn> {
        let has_free = self.has_free();
        let (mut passed, mut last, mut turn) = (Vec::new(), Vec::new(), None);
        for (position, (image, _)) in self.wishes.first_of_images() {
            if before.is_some_and(|before| before < position) {
                break;
            }
            let Some(trajectory) = self.waiting.get(position) else { continue };
            let Wish::Image(wish) = self.wishes.wish_of(trajectory) else { continue };
            if !has_free && self.images.failures(image, now).is_empty() {
                continue;
            }
            match self.choose_place(&wish, false, views, now) {
                Placed::Nowhere => {}
                Placed::There(container, source) => {
                    turn = Some(ImageTurn { position, place: Some((container, source)) });
                    break;
                }
                Placed::Refused => {
                    turn = Some(ImageTurn { position, place: None });
                    break;
                }
                Placed::Last => {
                    last.push((position, wish));
                    passed.push(trajectory.clone());
                }
                Placed::Held(until) => {
                    self.held_until = Some(self.held_until.map_or(until, |other| other.min(until)));
                    passed.push(trajectory.clone());
                }
            }
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
            last.into_iter().find_map(|(position, wish)| {
                match self.choose_place(&wish, true, views, now) {
                    Placed::There(container, source) => {
                        Some(ImageTurn { position, place: Some((container, source)) })
                    }
                    _ => None,
                }
            })
        })
    }

    /// Where a trajectory is to have its image: in the first of the tiers that it may use now that
    /// has a slot for it. With `is_last` no other finds its image where a slot is free.
    fn choose_place(
        &self,
        wish: &ImageWish,
        is_last: bool,
        views: &[TierView],
        now: Instant,
    ) -> Placed {
        let open = match views {
            [] => TierSet::of([0]),
            views => tiers::open_to(wish.may, now.saturating_duration_since(wish.since), views),
        };
        let failed = self.images.failures(wish.image, now);
        let tier_of = |container: usize| self.containers.get(container).map(|entry| entry.tier);
        let best = LazyCell::new(|| self.best_to_pull(wish.image, open, now));
        let mut so_far = TierSet::NONE;
        let (mut rest, mut are_refused) = (Placed::Nowhere, true);
        for tier in (0..views.len().max(1)).filter(|tier| wish.may.has(*tier)) {
            if !open.has(tier) {
                are_refused = false;
                continue;
            }
            so_far = so_far.with(tier);
            let near = self.images.near(wish.image);
            let near = near.filter(|near| tier_of(*near).is_some_and(|tier| so_far.has(tier)));
            let near: Vec<_> = self.candidates(wish.image, near, now).collect();
            let failures = failed.iter().filter(|one| tier_of(**one) == Some(tier)).count();
            let facts = self.images.facts(wish.image, failures);
            let choice = choose(wish, self.idle_since, facts, &near, now);
            are_refused &= choice == Choice::Refuse;
            match choice {
                Choice::Take(container, source) => return Placed::There(container, source),
                Choice::Pull | Choice::PullLast if is_last || choice == Choice::Pull => {
                    if let Some(best) = best.filter(|best| tier_of(*best) == Some(tier)) {
                        return Placed::There(best, Source::Pull);
                    }
                }
                Choice::HoldUntil(until) if self.has_free() => rest = Placed::Held(until),
                Choice::PullLast if self.has_free() => rest = Placed::Last,
                // A later one may have it, or have room.
                _ => {}
            }
        }
        if are_refused { Placed::Refused } else { rest }
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
            let one = self.images.candidate(image, failed, container, now);
            Some(Candidate { free, load: entry.load, tier: entry.tier, ..one })
        })
    }

    /// The container of these tiers that is to pull an image.
    fn best_to_pull(&self, image: ImageKey, open: TierSet, now: Instant) -> Option<usize> {
        if !self.has_free() {
            return None;
        }
        let near: HashSet<_> = self.images.near(image).collect();
        let is_other = |container: &usize| {
            open.has(self.containers[*container].tier) && !near.contains(container)
        };
        let others = (0..self.containers.len()).filter(is_other);
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
        self.images.failed(container, &begin, why, now);
        let State::Held(trajectory) = &self.slots[slot.0].state else { return false };
        if begin.wish.tries + 1 >= TRIES || !self.has_another(begin.wish.image, container, now) {
            return false;
        }
        let trajectory = trajectory.clone();
        self.take_back(slot, now);
        let wish = ImageWish { tries: begin.wish.tries + 1, held_since: None, ..begin.wish };
        let position = begin.turn.position;
        self.waiting.put_back(position, trajectory.clone());
        self.wishes.enter(trajectory.clone(), begin.turn, Wish::Image(wish));
        self.positions.insert(trajectory, position);
        self.images.counts.retries += 1;
        true
    }

    /// Whether there is another container, of the same tier, in which the image has not just
    /// failed, and that has it, or has room while there was but one failure.
    fn has_another(&self, image: ImageKey, container: usize, now: Instant) -> bool {
        let tier = self.containers[container].tier;
        let is_one = |container: &usize| self.containers[*container].tier == tier;
        let all: Vec<_> = (0..self.containers.len()).filter(is_one).collect();
        let failed = self.images.failures(image, now);
        let is_new = all.iter().filter(|container| failed.contains(container)).count() < TRIES;
        let mut open = self.candidates(image, all.into_iter(), now);
        open.any(|one| !one.has_failed && (one.has || is_new && !one.is_full))
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

/// Where a trajectory is to have its image.
enum Placed {
    There(usize, Source),
    /// Where it is pulled, unless another finds its image where a slot is free.
    Last,
    Held(Instant),
    Nowhere,
    Refused,
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
