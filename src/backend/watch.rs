//! What a backend tells the executor about its containers.

use std::fmt;
use std::sync::Arc;

use super::ContainerImages;

/// What became of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContainerChange {
    /// It does not answer, and it is not known whether it still runs what it was given. Its
    /// trajectories keep their slots; no other trajectory is put there.
    Unreachable,
    /// It answers again, and its workspaces are what they were.
    Recovered,
    /// It answers, and began anew: the workspaces that trajectories held there are lost. Its slots
    /// are reset before anybody gets them.
    Restarted,
    /// It is given up until it answers again: the workspaces that trajectories held there are lost.
    Lost,
    /// Other slots of it are the executor's now, or it has more or fewer. Trajectories keep the
    /// slots that stay under the same grant; of the others the workspaces are lost.
    Resized(LeasedSlots),
    /// It is there, with these slots, each of which is reset before a trajectory gets it: a new
    /// container, one that was gone, or one that was draining and is to be used on. Of one that the
    /// executor knows it says what [`Resized`](Self::Resized) says, too.
    Added(LeasedSlots),
    /// No trajectory is newly put there; those that are there finish. Each of its slots is given
    /// back ([`Backend::give_back`](super::Backend::give_back)) as soon as it is free.
    Draining,
    /// It has these images now, and so much room: where trajectories that begin with one are put
    /// depends on it. One that tells nothing is known by what has begun there.
    Images(ContainerImages),
    /// It is there no more, and is forgotten: the workspaces that trajectories still held there are
    /// lost.
    Gone,
}

/// The slots of a container that the executor may use: all of them, or some where it shares the
/// container with others. It is told whole each time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeasedSlots {
    /// The names of all slots of the container. Distinct.
    pub names: Vec<String>,
    /// The slots that the executor has: the index of each in `names`, and the number of its grant,
    /// which is larger than that of any earlier grant of the slot. The first is larger than 0.
    pub held: Vec<(usize, u64)>,
    /// How many it may have. What is more it gives back
    /// ([`Backend::give_back`](super::Backend::give_back)): free slots at once, others when their
    /// trajectories are released.
    pub limit: usize,
}

impl LeasedSlots {
    /// These slots of a container whose slots have these names.
    pub fn new(names: Vec<String>, held: Vec<(usize, u64)>, limit: usize) -> Self {
        Self { names, held, limit }
    }

    /// All slots of a container, which have these names, under one grant.
    pub fn all(names: impl IntoIterator<Item = impl Into<String>>, grant: u64) -> Self {
        let names: Vec<_> = names.into_iter().map(Into::into).collect();
        let held = (0..names.len()).map(|index| (index, grant)).collect();
        Self { names, held, limit: usize::MAX }
    }
}

/// Gets the address of a container, and what became of it.
type Tell = dyn Fn(&str, ContainerChange) + Send + Sync;

/// Tells the executor what became of a container. Clones tell the same executor.
#[derive(Clone)]
pub struct Watcher(Arc<Tell>);

impl Watcher {
    /// A watcher that hands what it is told to a closure, which must not block.
    pub fn from_fn(tell: impl Fn(&str, ContainerChange) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Says what became of the container at `addr`: one that
    /// [`Backend::start`](super::Backend::start) returned, or that was
    /// [added](ContainerChange::Added) since. Of any other one nothing but that it is added is taken
    /// in. Does not block.
    ///
    /// To be called *before* the replies of calls that were lost with it are answered, so that the
    /// executor is up to date when their callers go on.
    pub fn notify(&self, addr: &str, change: ContainerChange) {
        (self.0)(addr, change);
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}
