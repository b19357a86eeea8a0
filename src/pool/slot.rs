//! What the pool knows of a slot and of a container: their states, and how many are in which.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::images::{ImageBegin, PlaceImages};
use super::wishes::Turn;

/// The index of a slot in its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SlotIx(pub(super) usize);

impl SlotIx {
    /// The number of the slot in its pool, from 0.
    pub(crate) fn index(self) -> usize {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn at(index: usize) -> Self {
        Self(index)
    }
}

/// How many slots are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SlotCounts {
    /// All slots that the executor may use now.
    pub total: usize,
    /// Free and empty.
    pub clean: usize,
    /// Free, with the files of the trajectory that was released from it: reset before any other
    /// trajectory gets it.
    pub dirty: usize,
    /// Held by a trajectory.
    pub held: usize,
    /// Being reset.
    pub resetting: usize,
    /// Kept back because the last reset failed; it is tried again, less and less often.
    pub broken: usize,
    /// Slots of the containers that the executor may not use now, since others have them. They are
    /// not in `total`.
    pub elsewhere: usize,
}

/// How many containers answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ContainerCounts {
    /// They answer.
    pub up: usize,
    /// They do not answer, and what became of what they were given is not known.
    pub unknown: usize,
    /// They are given up until they answer again.
    pub down: usize,
    /// They answer, and no trajectory is newly put there.
    pub draining: usize,
}

#[derive(Debug)]
pub(super) enum State {
    Clean,
    /// Free, with files in it: those of the named trajectory, if that one may have them back.
    Dirty(Option<Arc<str>>),
    Held(Arc<str>),
    Resetting {
        purpose: Purpose,
        deadline: Instant,
    },
    /// Not to be touched before `retry_at`.
    Broken {
        retry_at: Instant,
    },
    /// Not the executor's: another one has it, or the container has it no more.
    Absent,
}

#[derive(Debug)]
pub(super) enum Purpose {
    /// For the trajectory whose turn it was, in the waiting room, when the reset began.
    Grant(Turn, Arc<str>),
    Release(Arc<str>),
    /// For no trajectory any more: it gave up waiting.
    Nobody,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) container: usize,
    pub(super) index: usize,
    pub(super) name: Arc<str>,
    pub(super) generation: u64,
    pub(super) state: State,
    pub(super) failed_resets: u32,
    /// A reset that was given up is still to be answered, so it may still be at work in there.
    pub(super) unanswered: bool,
    /// The container went down or began anew after the last reset was started: what that says
    /// of the slot is no longer true.
    pub(super) stale: bool,
    /// The grant under which the executor has it, or had it last; 0 where slots are not granted.
    pub(super) grant: u64,
    /// The grant is over, and a reset of the slot is still to be answered: it is absent then.
    pub(super) is_leaving: bool,
    /// What its holder, or who it is reset for, begins with.
    pub(super) image: Option<ImageBegin>,
}

impl Slot {
    /// The slot at `index` of a container, not granted.
    pub(super) fn new(container: usize, index: usize, name: &str, state: State) -> Self {
        Self {
            container,
            index,
            name: name.into(),
            generation: 0,
            state,
            failed_resets: 0,
            unanswered: false,
            stale: false,
            grant: 0,
            is_leaving: false,
            image: None,
        }
    }
}

#[derive(Debug)]
pub(super) struct PoolContainer {
    pub(super) addr: Arc<str>,
    /// The number of its tier.
    pub(super) tier: usize,
    /// Its slots by their indices, absent ones too.
    pub(super) slots: Vec<SlotIx>,
    pub(super) clean: Vec<SlotIx>,
    /// In order of release: the one that was left longest ago is taken first.
    pub(super) dirty: VecDeque<SlotIx>,
    /// Slots that are held or being reset for a trajectory.
    pub(super) load: usize,
    /// Slots that are held.
    pub(super) held: usize,
    /// The slots that are not absent.
    pub(super) total: usize,
    /// How many of them there may be: what is more is given back.
    pub(super) limit: usize,
    pub(super) state: ContainerState,
    /// No trajectory is newly put there, and every slot that is free is given back.
    pub(super) is_draining: bool,
}

impl PoolContainer {
    /// One without slots that answers.
    pub(super) fn new(addr: Arc<str>) -> Self {
        Self {
            addr,
            tier: 0,
            slots: Vec::new(),
            clean: Vec::new(),
            dirty: VecDeque::new(),
            load: 0,
            held: 0,
            total: 0,
            limit: usize::MAX,
            state: ContainerState::Up,
            is_draining: false,
        }
    }

    /// Whether a trajectory may be put there.
    pub(super) fn is_open(&self) -> bool {
        self.state == ContainerState::Up && !self.is_draining
    }

    /// Whether waiting for a slot of it makes sense, and what trajectories have left there is kept.
    pub(super) fn may_be_wished_for(&self) -> bool {
        matches!(self.state, ContainerState::Up | ContainerState::Unknown) && !self.is_draining
    }

    /// Whether it has more slots than it may have, and can be given some back.
    pub(super) fn has_excess(&self) -> bool {
        let limit = if self.is_draining { 0 } else { self.limit };
        self.state == ContainerState::Up && self.total > limit
    }

    /// How many of its slots others have.
    pub(super) fn elsewhere(&self) -> usize {
        let is_there = self.state != ContainerState::Gone && !self.is_draining;
        if is_there { self.slots.len() - self.total } else { 0 }
    }
}

/// A container as it is told of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Occupancy<'a> {
    /// Where it is.
    pub(crate) addr: &'a Arc<str>,
    /// The number of its tier.
    pub(crate) tier: usize,
    /// One word.
    pub(crate) state: &'static str,
    /// The slots of it that the executor may use.
    pub(crate) slots: usize,
    /// Those of them that are held.
    pub(crate) held: usize,
    /// What it has of images.
    pub(crate) images: PlaceImages,
}

/// Whether a container answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerState {
    Up,
    Unknown,
    Down,
    /// It is there no more. Its number may be another's one day.
    Gone,
}
