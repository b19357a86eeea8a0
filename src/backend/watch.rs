//! What a backend tells the executor about its containers.

use std::fmt;
use std::sync::Arc;

/// What became of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

/// Tells the executor what became of a container. Clones tell the same executor.
#[derive(Clone)]
pub struct Watcher(Arc<dyn Fn(usize, ContainerChange) + Send + Sync>);

impl Watcher {
    /// A watcher that hands what it is told to a closure, which must not block.
    pub fn from_fn(tell: impl Fn(usize, ContainerChange) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Says what became of the container at index `container` of what
    /// [`Backend::start`](super::Backend::start) returned. Does not block.
    ///
    /// To be called *before* the replies of calls that were lost with it are answered, so that the
    /// executor is up to date when their callers go on.
    pub fn notify(&self, container: usize, change: ContainerChange) {
        (self.0)(container, change);
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}
