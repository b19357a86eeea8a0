//! Which container a trajectory's image is had in.
//!
//! [`choose`] decides for one image and whoever waits for it first:
//! 1. A container that has the image and a free slot.
//! 2. Else one that is about to have it, with a free slot: what begins there waits for one pull.
//! 3. Where all of these are busy the trajectory is *held back* while a slot elsewhere is free, for
//!    [`HOLD_MOST`] or as long as a pull of the image has taken, whichever is shorter. An image
//!    that no container has yet may not even exist: while [`FIRST_PULLS`] containers find that out,
//!    no other does, for [`PROVEN_AFTER`] at most.
//! 4. Else it is pulled where the fewest pulls are under way, not where the disk is full.
//!
//! A slot that becomes free where another's image is goes to that one first, though others have
//! waited for longer: none is overtaken so for longer than [`OVERTAKEN_MOST`].
//!
//! So nothing waits for longer than that while a slot is free that it may use, and no container is
//! waited for whose slots are with trajectories that last.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::ImageWish;

/// How long a trajectory is held back for a busy container that has its image, at most.
pub(super) const HOLD_MOST: Duration = Duration::from_secs(2);
/// How long those behind it are given slots where their images are before a trajectory that has
/// waited for longer, at most: as long as a pull may well take.
pub(super) const OVERTAKEN_MOST: Duration = Duration::from_secs(30);
/// How many containers pull an image at a time that none has had yet.
const FIRST_PULLS: usize = 2;
/// A pull that has lasted for so long shows that there is such an image: what there is not is told
/// sooner.
pub(super) const PROVEN_AFTER: Duration = Duration::from_secs(5);
/// In how many containers an image is tried that cannot be had.
pub(in crate::pool) const TRIES: usize = 2;

/// How an image is had where a trajectory was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) enum Source {
    /// It is there.
    Hit,
    /// It is about to be there.
    Join,
    /// It is pulled for it.
    Pull,
}

/// A container, as it matters to the choice for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct Candidate {
    pub(in crate::pool) container: usize,
    /// The number of its tier: earlier ones are preferred.
    pub(in crate::pool) tier: usize,
    /// Whether it has a free slot, and whether that is to be reset first.
    pub(in crate::pool) free: Option<NeedsReset>,
    /// Slots that are held or being reset for a trajectory.
    pub(in crate::pool) load: usize,
    pub(in crate::pool) has: bool,
    /// Pulls that are under way there, of any image.
    pub(in crate::pool) pulls: usize,
    pub(in crate::pool) is_full: bool,
    pub(in crate::pool) free_bytes: Option<u64>,
    /// It could not have the image a moment ago.
    pub(in crate::pool) has_failed: bool,
    pub(in crate::pool) is_suspect: bool,
}

/// Whether a free slot is to be reset before it can be used.
pub(in crate::pool) type NeedsReset = bool;

/// What is known of an image beside where it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::pool) struct Facts {
    /// How long its last pull took.
    pub(super) pull_time: Option<Duration>,
    /// Since when it is being pulled while none has it.
    pub(super) pulled_since: Option<Instant>,
    /// How many containers could not have it a moment ago.
    pub(super) failures: usize,
}

/// See [`choose`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) enum Choice {
    /// This container has it, or is about to.
    Take(usize, Source),
    /// The best one to pull it, in its turn.
    Pull,
    /// The same, unless another finds its image where a slot is free.
    PullLast,
    /// None before this time, unless something changes.
    HoldUntil(Instant),
    /// None at all: it cannot be had.
    Refuse,
}

/// Where the first who waits for an image is to have it. `near` are the open containers that have
/// it or are about to; slots have been free without a break since `idle_since`.
pub(in crate::pool) fn choose(
    wish: &ImageWish,
    idle_since: Option<Instant>,
    facts: Facts,
    near: &[Candidate],
    now: Instant,
) -> Choice {
    let free = near.iter().filter_map(|one| Some(((!one.has, one.free?, one.load), one)));
    if let Some((_, best)) = free.min_by_key(|(order, one)| (*order, one.container)) {
        let source = if best.has { Source::Hit } else { Source::Join };
        return Choice::Take(best.container, source);
    }
    if near.is_empty() {
        return if facts.failures >= TRIES { Choice::Refuse } else { Choice::Pull };
    }
    let has_one = near.iter().any(|one| one.has);
    // Who waits behind another of its image is held back with it.
    let idle = wish.held_since.unwrap_or(now).min(idle_since.unwrap_or(now));
    let held = wish.since.max(idle) + facts.pull_time.unwrap_or(HOLD_MOST).min(HOLD_MOST);
    let until = match facts.pulled_since {
        Some(pulled) if !has_one && near.len() + facts.failures >= FIRST_PULLS => {
            held.max(pulled + PROVEN_AFTER)
        }
        _ => held,
    };
    match now {
        _ if now < until => Choice::HoldUntil(until),
        _ if now < wish.held_since.unwrap_or(now) + OVERTAKEN_MOST => Choice::PullLast,
        _ => Choice::Pull,
    }
}

/// The container that is to pull an image, of all open ones that are not near it: only where there
/// is no other, one that could not have it a moment ago, or whose disk is full; and none of these
/// in the place of one that is busy.
pub(in crate::pool) fn best_to_pull(others: impl IntoIterator<Item = Candidate>) -> Option<usize> {
    let mut best_class = None;
    let mut best = None;
    for one in others {
        let class = (one.has_failed, one.is_full);
        if best_class.is_some_and(|best| class > best) {
            continue;
        }
        if best_class != Some(class) {
            (best_class, best) = (Some(class), None);
        }
        let Some(needs_reset) = one.free else { continue };
        // Of full ones the one with the most room: it may do.
        let room = one.free_bytes.filter(|_| one.is_full).map(Reverse);
        let load = (one.pulls, needs_reset, one.load, one.container);
        let order = (one.tier, one.is_suspect, room, load);
        if best.is_none_or(|best| order < best) {
            best = Some(order);
        }
    }
    best.map(|(.., (.., container))| container)
}
