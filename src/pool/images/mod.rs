//! Where a trajectory with an image is to have its slot: which container has which image, which is
//! about to have it, where there is room, and what has failed. Pure, with the clock passed in.
//!
//! [`choice`] decides; here is what it is to know.
//!
//! # What fails
//! What cannot be had in one container is tried in a second one, and in no third: for
//! [`FAILED_FOR`] whoever asks for it is told what was said. A container in which a pull failed
//! that another could do comes last for [`SUSPECT_FOR`].
//!
//! # What is known
//! What containers tell ([`Images::told`]) and what the pool has seen itself: a trajectory that has
//! begun with an image shows that it is there. Containers that tell nothing do as well.

pub(super) mod choice;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use self::choice::{Candidate, Facts, Source};
use super::tiers::TierSet;
use super::wishes::{ImageLine, Turn};
use crate::backend::{ContainerImages, ImageKey};

/// How long what failed in them is told to whoever asks for it.
const FAILED_FOR: Duration = Duration::from_secs(30);
/// How long a container comes last that could not pull what another could.
const SUSPECT_FOR: Duration = Duration::from_secs(300);
/// Of how many images it is known what they take and how they failed.
const MOST_RECORDS: usize = 4_096;
/// Of how many images a container that tells nothing is known to have them.
const MOST_LEARNED: usize = 16_384;

/// How often trajectories with images were put where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ImageCounts {
    /// Into a container that had their image.
    pub hits: u64,
    /// Into one in which another trajectory's pull of it was under way.
    pub joins: u64,
    /// Into one that had to pull it, or to unpack it.
    pub pulls: u64,
    /// Trajectories that were held back for a busy container that had their image, or overtaken by
    /// others that found theirs where a slot was free; those that waited behind one with the same
    /// image are not counted.
    pub waits: u64,
    /// For how many seconds they waited from then on, altogether.
    pub waited_s: f64,
    /// Begins that failed since a container could not have the image, and were tried in another.
    pub retries: u64,
    /// Begins that were refused since two containers could not have the image.
    pub refusals: u64,
}

/// What a container has of images, as it is told of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PlaceImages {
    /// The names by which it has images.
    pub(crate) images: usize,
    /// The images that are being pulled there.
    pub(crate) pulls: usize,
    /// The bytes that are free for images there.
    pub(crate) free_bytes: Option<u64>,
    /// Whether its disk is too full for an image that it lacks.
    pub(crate) is_full: bool,
}

/// A trajectory that waits for a slot in which it can have an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImageWish {
    pub(super) image: ImageKey,
    /// The tiers where it may be.
    pub(super) may: TierSet,
    /// Since when.
    pub(super) since: Instant,
    /// How many containers could not have it for this trajectory.
    pub(super) tries: usize,
    /// When it was held back or overtaken first, as the first of its image.
    pub(super) held_since: Option<Instant>,
}

impl ImageWish {
    /// Who waits for the same.
    pub(super) fn line(&self) -> ImageLine {
        (self.image, self.may)
    }
}

/// A trajectory's begin with an image, in the slot that it was given.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageBegin {
    pub(super) wish: ImageWish,
    /// Where it waited.
    pub(super) turn: Turn,
    source: Source,
    began: Instant,
}

/// What is known of a container.
#[derive(Debug, Default)]
struct Place {
    told: ContainerImages,
    /// Images that were seen to be there since it told something.
    learned: HashSet<ImageKey>,
    /// How many slots begin there with an image that it did not have.
    begins: HashMap<ImageKey, usize>,
    suspect_until: Option<Instant>,
}

impl Place {
    fn has(&self, image: ImageKey) -> bool {
        self.learned.contains(&image) || self.told.has.binary_search(&image).is_ok()
    }

    fn is_near(&self, image: ImageKey) -> bool {
        self.has(image) || self.begins.contains_key(&image) || self.told.pulling.contains(&image)
    }

    fn pulls(&self) -> usize {
        let told = self.told.pulling.iter().filter(|image| !self.begins.contains_key(*image));
        self.begins.len() + told.count()
    }
}

/// What is known of an image.
#[derive(Debug)]
struct Record {
    /// The containers that have it, or are about to.
    near: BTreeSet<usize>,
    facts: Facts,
    /// The containers that could not have it, since the last one could.
    failed: Vec<usize>,
    failed_at: Instant,
    /// What the last of them said.
    why: String,
    touched: Instant,
}

/// What is known of images and containers.
#[derive(Debug, Default)]
pub(super) struct Images {
    places: Vec<Place>,
    records: HashMap<ImageKey, Record>,
    pub(super) counts: ImageCounts,
}

impl Images {
    /// A trajectory waits for an image, or begins with it.
    pub(super) fn touch(&mut self, image: ImageKey, now: Instant) {
        if let Some(record) = self.records.get_mut(&image) {
            record.touched = now;
            return;
        }
        if self.records.len() >= MOST_RECORDS
            && let Some(oldest) = self.oldest_record()
        {
            self.records.remove(&oldest);
        }
        let near = self.places.iter().enumerate().filter(|(_, place)| place.is_near(image));
        let record = Record {
            near: near.map(|(container, _)| container).collect(),
            facts: Facts::default(),
            failed: Vec::new(),
            failed_at: now,
            why: String::new(),
            touched: now,
        };
        self.records.insert(image, record);
    }

    fn oldest_record(&self) -> Option<ImageKey> {
        let oldest = self.records.iter().min_by_key(|(image, record)| (record.touched, **image));
        oldest.map(|(image, _)| *image)
    }

    /// The containers that have an image or are about to.
    pub(super) fn near(&self, image: ImageKey) -> impl Iterator<Item = usize> + '_ {
        self.records.get(&image).into_iter().flat_map(|record| record.near.iter().copied())
    }

    /// Whether a container is one of them.
    #[cfg(test)]
    pub(super) fn is_near(&self, image: ImageKey, container: usize) -> bool {
        self.records.get(&image).is_some_and(|record| record.near.contains(&container))
    }

    /// The containers that could not have an image a moment ago.
    pub(super) fn failures(&self, image: ImageKey, now: Instant) -> &[usize] {
        self.records.get(&image).map_or(&[], |record| record.failures(now))
    }

    /// What the choice is to know of an image that so many containers could not have.
    pub(super) fn facts(&self, image: ImageKey, failures: usize) -> Facts {
        let Some(record) = self.records.get(&image) else { return Facts::default() };
        Facts { failures, ..record.facts }
    }

    /// What was said where an image could not be had last.
    pub(super) fn why(&self, image: ImageKey) -> String {
        self.records.get(&image).map(|record| record.why.clone()).unwrap_or_default()
    }

    /// What the choice for an image is to know of a container; what it is to know of its slots is
    /// the pool's.
    pub(super) fn candidate(
        &self,
        image: ImageKey,
        failed: &[usize],
        container: usize,
        now: Instant,
    ) -> Candidate {
        let unknown = Candidate {
            container,
            tier: 0,
            free: None,
            load: 0,
            has: false,
            pulls: 0,
            is_full: false,
            free_bytes: None,
            has_failed: failed.contains(&container),
            is_suspect: false,
        };
        let Some(place) = self.places.get(container) else { return unknown };
        Candidate {
            has: place.has(image),
            pulls: place.pulls(),
            is_full: place.told.is_full,
            free_bytes: place.told.free_bytes,
            is_suspect: place.suspect_until.is_some_and(|until| now < until),
            ..unknown
        }
    }

    /// A container says what it has.
    pub(super) fn told(&mut self, container: usize, told: &ContainerImages) {
        let place = self.place(container);
        place.told = told.clone();
        place.learned.clear();
        let place = &self.places[container];
        for (image, record) in &mut self.records {
            record.set_near(container, place.is_near(*image));
            if place.has(*image) {
                // It can be had after all, and none is to blame: it may just have been brought.
                record.failed.clear();
                record.facts.pulled_since = None;
            }
        }
    }

    /// What a container has.
    pub(super) fn of_place(&self, container: usize) -> PlaceImages {
        let Some(place) = self.places.get(container) else { return PlaceImages::default() };
        PlaceImages {
            images: place.told.has.len() + place.learned.len(),
            pulls: place.pulls(),
            free_bytes: place.told.free_bytes,
            is_full: place.told.is_full,
        }
    }

    /// Nothing that was under way in a container is, or nothing of it is there any more.
    pub(super) fn stopped(&mut self, container: usize, is_gone: bool) {
        let place = self.place(container);
        place.told.pulling.clear();
        if is_gone {
            let begins = std::mem::take(&mut place.begins);
            *place = Place { begins, ..Place::default() };
        }
        let place = &self.places[container];
        for (image, record) in &mut self.records {
            record.set_near(container, place.is_near(*image));
        }
    }

    /// A trajectory begins in a container with the image that it has waited for.
    pub(super) fn begins(
        &mut self,
        container: usize,
        wish: ImageWish,
        turn: Turn,
        source: Source,
        now: Instant,
    ) -> ImageBegin {
        let count = match source {
            Source::Hit => &mut self.counts.hits,
            Source::Join => &mut self.counts.joins,
            Source::Pull => &mut self.counts.pulls,
        };
        *count += 1;
        self.let_go(&wish, now);
        let image = wish.image;
        self.touch(image, now);
        if source != Source::Hit {
            *self.place(container).begins.entry(image).or_default() += 1;
            if let Some(record) = self.records.get_mut(&image) {
                record.near.insert(container);
                let has_one = record.near.iter().any(|near| self.places[*near].has(image));
                if !has_one {
                    record.facts.pulled_since.get_or_insert(now);
                }
            }
        }
        let wish = ImageWish { held_since: None, ..wish };
        ImageBegin { wish, turn, source, began: now }
    }

    /// A trajectory that was held back is no more.
    pub(super) fn let_go(&mut self, wish: &ImageWish, now: Instant) {
        if let Some(since) = wish.held_since {
            self.counts.waited_s += now.saturating_duration_since(since).as_secs_f64();
        }
    }

    /// A begin is over, however it went: it has ended, or its slot is lost.
    pub(super) fn over(&mut self, container: usize, begin: &ImageBegin) {
        if begin.source == Source::Hit {
            return;
        }
        let image = begin.wish.image;
        let place = self.place(container);
        if let Some(begins) = place.begins.get_mut(&image) {
            *begins -= 1;
            if *begins == 0 {
                place.begins.remove(&image);
            }
        }
        let is_near = self.places[container].is_near(image);
        if let Some(record) = self.records.get_mut(&image) {
            record.set_near(container, is_near);
        }
    }

    /// A begin has succeeded: the container has the image. What could not have it is suspect.
    pub(super) fn succeeded(&mut self, container: usize, begin: &ImageBegin, now: Instant) {
        let image = begin.wish.image;
        let place = self.place(container);
        if !place.has(image) {
            if place.learned.len() >= MOST_LEARNED {
                place.learned.clear();
            }
            place.learned.insert(image);
        }
        if begin.source == Source::Pull {
            place.suspect_until = None;
        }
        self.touch(image, now);
        let Some(record) = self.records.get_mut(&image) else { return };
        record.near.insert(container);
        record.facts.pulled_since = None;
        if begin.source == Source::Pull {
            record.facts.pull_time = Some(now.saturating_duration_since(begin.began));
        }
        let failed = std::mem::take(&mut record.failed);
        if now < record.failed_at + SUSPECT_FOR {
            for container in failed {
                self.place(container).suspect_until = Some(now + SUSPECT_FOR);
            }
        }
    }

    /// A begin has failed because the container cannot have the image.
    pub(super) fn failed(&mut self, container: usize, begin: &ImageBegin, why: &str, now: Instant) {
        let image = begin.wish.image;
        // It may have had it, and have lost it.
        self.place(container).learned.remove(&image);
        self.touch(image, now);
        let is_near = self.places[container].is_near(image);
        let Some(record) = self.records.get_mut(&image) else { return };
        if record.failures(now).is_empty() {
            record.failed.clear();
        }
        if !record.failed.contains(&container) {
            record.failed.push(container);
        }
        (record.failed_at, record.why) = (now, why.to_owned());
        record.set_near(container, is_near);
    }
}

impl Record {
    /// The containers that could not have it a moment ago.
    fn failures(&self, now: Instant) -> &[usize] {
        let is_over = now >= self.failed_at + FAILED_FOR;
        if is_over { &[] } else { &self.failed }
    }

    fn set_near(&mut self, container: usize, is_near: bool) {
        if is_near {
            self.near.insert(container);
        } else if self.near.remove(&container) && self.near.is_empty() {
            self.facts.pulled_since = None;
        }
    }
}

impl Images {
    fn place(&mut self, container: usize) -> &mut Place {
        if container >= self.places.len() {
            self.places.resize_with(container + 1, Place::default);
        }
        &mut self.places[container]
    }
}

#[cfg(test)]
mod tests;
