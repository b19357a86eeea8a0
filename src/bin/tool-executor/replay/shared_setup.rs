//! Setups that are made once for all repetitions of a recording (`--share-setup`). Pure: it knows
//! what waits for which setup, and what that saved.
//!
//! The first repetition that comes makes the setup; the others wait for the snapshot of its files,
//! and begin with that. Where no snapshot can be made each makes its own setup.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tool_executor::SnapshotId;

use super::trajectory::Trajectory;

/// All of a run.
#[derive(Debug)]
pub(super) struct SharedSetups {
    repeat: u32,
    /// By the line of the input that the recording is from.
    setups: HashMap<u64, Setup>,
    /// What waits no longer, with the snapshot that it begins with, if there is one.
    ready: VecDeque<(Trajectory, Option<SnapshotId>)>,
    saved: Saved,
}

/// What sharing has saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    /// How many setups were made for others, too.
    pub(crate) setups: u64,
    /// How many trajectories began with one of these.
    pub(crate) trajectories: u64,
    /// How many calls were not made again.
    pub(crate) calls: u64,
    /// How long those had taken when they were made.
    pub(crate) time: Duration,
}

/// The setup of one recording.
#[derive(Debug)]
enum Setup {
    /// A trajectory makes it; these wait for it.
    Making { took: Duration, waiting: Vec<Trajectory> },
    /// It is made: so many trajectories have not ended that begin with it.
    Made { snapshot: SnapshotId, took: Duration, left: u32 },
    /// It cannot be shared.
    Alone,
}

/// What a trajectory has to do.
#[derive(Debug)]
pub(super) enum Begin {
    /// To make its setup by itself.
    Alone(Trajectory),
    /// To begin with this snapshot.
    From(Trajectory, SnapshotId),
    /// To wait.
    Wait,
}

impl SharedSetups {
    /// Of a run that repeats each recording so often.
    pub(super) fn new(repeat: u32) -> Self {
        let (setups, ready) = (HashMap::new(), VecDeque::new());
        Self { repeat, setups, ready, saved: Saved::default() }
    }

    /// A trajectory that waited and may begin now.
    pub(super) fn next_ready(&mut self) -> Option<(Trajectory, Option<SnapshotId>)> {
        self.ready.pop_front()
    }

    /// What a trajectory that comes from the input has to do.
    pub(super) fn enter(&mut self, trajectory: Trajectory) -> Begin {
        if self.repeat < 2 || !trajectory.steps.iter().any(|step| step.setup) {
            return Begin::Alone(trajectory);
        }
        match self.setups.get_mut(&trajectory.line) {
            None => {
                let making = Setup::Making { took: Duration::ZERO, waiting: Vec::new() };
                self.setups.insert(trajectory.line, making);
                Begin::Alone(trajectory)
            }
            Some(Setup::Making { waiting, .. }) => {
                waiting.push(trajectory);
                Begin::Wait
            }
            Some(Setup::Made { snapshot, took, .. }) => {
                let (snapshot, took) = (snapshot.clone(), *took);
                self.count(&trajectory, took);
                Begin::From(trajectory, snapshot)
            }
            Some(Setup::Alone) => Begin::Alone(trajectory),
        }
    }

    /// Whether others may wait for what this trajectory makes.
    pub(super) fn is_made_by(&self, trajectory: &Trajectory) -> bool {
        matches!(self.setups.get(&trajectory.line), Some(Setup::Making { .. }))
    }

    /// A call of a setup took so long.
    pub(super) fn took(&mut self, line: u64, time: Duration) {
        if let Some(Setup::Making { took, .. }) = self.setups.get_mut(&line) {
            *took += time;
        }
    }

    /// A setup is made, and this is the snapshot of its files.
    pub(super) fn made(&mut self, line: u64, snapshot: SnapshotId) {
        let Some(Setup::Making { took, waiting }) = self.setups.remove(&line) else { return };
        let made = Setup::Made { snapshot: snapshot.clone(), took, left: self.repeat - 1 };
        self.setups.insert(line, made);
        self.saved.setups += 1;
        for trajectory in waiting {
            self.count(&trajectory, took);
            self.ready.push_back((trajectory, Some(snapshot.clone())));
        }
    }

    /// A setup cannot be shared: it failed, or no snapshot of it can be made.
    pub(super) fn cannot_be_shared(&mut self, line: u64) {
        let Some(Setup::Making { waiting, .. }) = self.setups.insert(line, Setup::Alone) else {
            return;
        };
        self.ready.extend(waiting.into_iter().map(|trajectory| (trajectory, None)));
    }

    /// A trajectory that began with a snapshot has ended. Gives the snapshot if it was the last.
    pub(super) fn ended(&mut self, line: u64) -> Option<SnapshotId> {
        let Some(Setup::Made { snapshot, left, .. }) = self.setups.get_mut(&line) else {
            return None;
        };
        *left = left.saturating_sub(1);
        let last = (*left == 0).then(|| snapshot.clone());
        if last.is_some() {
            self.setups.remove(&line);
        }
        last
    }

    /// What was saved so far.
    pub(super) fn saved(&self) -> Saved {
        self.saved
    }

    fn count(&mut self, trajectory: &Trajectory, took: Duration) {
        self.saved.trajectories += 1;
        self.saved.calls += trajectory.steps.iter().filter(|step| step.setup).count() as u64;
        self.saved.time += took;
    }
}

#[cfg(test)]
mod tests {
    use tool_executor::ToolCall;

    use super::*;
    use crate::replay::step::{Recorded, Step};

    fn trajectory(line: u64, repetition: u32, setup: usize) -> Trajectory {
        let step = |index| Step {
            call: ToolCall::bash("true"),
            put: None,
            index,
            setup: index < setup,
            recorded: Recorded::default(),
        };
        let steps = (0..setup + 1).map(step).collect();
        let id = format!("{line}#{repetition}");
        Trajectory { steps, line, repetition, ..Trajectory::for_test(&id) }
    }

    fn snapshot() -> SnapshotId {
        SnapshotId::new("s")
    }

    #[test]
    fn the_first_makes_the_setup_and_the_others_begin_with_it() {
        let mut shared = SharedSetups::new(3);
        assert!(matches!(shared.enter(trajectory(1, 1, 2)), Begin::Alone(_)));
        assert!(shared.is_made_by(&trajectory(1, 1, 2)));
        assert!(matches!(shared.enter(trajectory(1, 2, 2)), Begin::Wait));
        assert!(shared.next_ready().is_none());
        shared.took(1, Duration::from_secs(2));
        shared.took(1, Duration::from_secs(3));
        shared.made(1, snapshot());
        let (next, from) = shared.next_ready().unwrap();
        assert_eq!((next.repetition, from), (2, Some(snapshot())));
        // One that comes later.
        assert!(matches!(shared.enter(trajectory(1, 3, 2)), Begin::From(_, _)));
        let saved = Saved { setups: 1, trajectories: 2, calls: 4, time: Duration::from_secs(10) };
        assert_eq!(shared.saved(), saved);
        // The snapshot goes with the last of them.
        assert_eq!(shared.ended(1), None);
        assert_eq!(shared.ended(1), Some(snapshot()));
        assert_eq!(shared.ended(1), None);
    }

    #[test]
    fn what_cannot_be_shared_is_made_by_each() {
        let mut shared = SharedSetups::new(2);
        assert!(matches!(shared.enter(trajectory(1, 1, 1)), Begin::Alone(_)));
        assert!(matches!(shared.enter(trajectory(1, 2, 1)), Begin::Wait));
        shared.cannot_be_shared(1);
        assert_eq!(shared.next_ready().unwrap().1, None);
        assert!(matches!(shared.enter(trajectory(1, 3, 1)), Begin::Alone(_)));
        assert_eq!(shared.saved(), Saved::default());
        // Nor what has no setup, or is run once.
        assert!(matches!(shared.enter(trajectory(2, 1, 0)), Begin::Alone(_)));
        assert!(matches!(shared.enter(trajectory(2, 2, 0)), Begin::Alone(_)));
        let mut once = SharedSetups::new(1);
        assert!(matches!(once.enter(trajectory(1, 1, 1)), Begin::Alone(_)));
        assert!(!once.is_made_by(&trajectory(1, 1, 1)));
    }
}
