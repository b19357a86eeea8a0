//! Trajectories that begin with a spec: the door.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::bounded;

#[cfg(feature = "server")]
use super::completion::Completion;
use super::event::Event;
use super::gate::Refused;
#[cfg(feature = "server")]
use super::promise::CallHandle;
use super::promise::{CallState, Pending, Promise, ReplyTo};
use super::{MAX_TRAJECTORY_ID, ToolExecutor};
use crate::backend::{Capabilities, ExecutionId, Tier, gives};
use crate::error::{BeginError, BeginFailure, ConfigError};
use crate::pool::TierSet;
use crate::spec::{SpecField, TrajectorySpec};
use crate::tool::{Outcome, ToolResult};
use crate::workers::guarded;

impl ToolExecutor {
    /// Begins a trajectory with what it asks for beyond the executor's configuration, and blocks
    /// until it has a slot that is so. [`submit_begin`](Self::submit_begin) does not.
    ///
    /// It is to come before the trajectory's first call; calls that come before it is done wait
    /// behind it. A trajectory that makes a call without it has the executor's configuration. It
    /// lasts until the trajectory's [release](Self::release), which empties the slot in any case:
    /// also [`release_keeping_files`](Self::release_keeping_files).
    ///
    /// The waits have limits: [`queue_timeout`](crate::config::ExecutorConfig::queue_timeout),
    /// [`acquire_timeout`](crate::config::ExecutorConfig::acquire_timeout),
    /// [`begin_timeout`](crate::config::ExecutorConfig::begin_timeout).
    ///
    /// ```
    /// # use tool_executor::{BeginError, Outcome, ToolExecutor, TrajectorySpec};
    /// # let executor = ToolExecutor::builder().start()?;
    /// let spec = TrajectorySpec::default().with_max_wall(std::time::Duration::from_secs(3600));
    /// match executor.begin("agent-1", spec) {
    ///     Ok(()) => println!("its calls may come"),
    ///     Err(BeginError::Failed(failure)) => {
    ///         println!("{}: {failure}", failure.outcome()); // and so its calls end
    ///         executor.release("agent-1")?;
    ///     }
    ///     Err(error) => println!("nothing has changed: {error}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`BeginError`].
    pub fn begin(&self, trajectory_id: &str, spec: TrajectorySpec) -> Result<(), BeginError> {
        self.admit_begin(trajectory_id, spec).map(Pending::wait).and_then(begun)
    }

    /// Like [`begin`](Self::begin), but does not wait for the slot – only for room in the queue, as
    /// [`submit`](Self::submit). Where it fails later, the trajectory's calls end as
    /// [`BeginFailure::outcome`] says.
    ///
    /// # Errors
    /// All of [`BeginError`] but [`Failed`](BeginError::Failed).
    pub fn submit_begin(
        &self,
        trajectory_id: &str,
        spec: TrajectorySpec,
    ) -> Result<(), BeginError> {
        self.admit_begin(trajectory_id, spec).map(drop)
    }

    /// Like [`begin`](Self::begin), but waits for nothing: `on_done` is called with how it went, on
    /// the executor's thread for callbacks. Blocks for a moment.
    ///
    /// # Errors
    /// As [`submit_begin`](Self::submit_begin); also when the executor's queue is full now.
    #[cfg(feature = "server")]
    pub(crate) fn begin_then(
        &self,
        trajectory_id: &str,
        spec: TrajectorySpec,
        on_done: impl FnOnce(Result<(), BeginError>) + Send + 'static,
    ) -> Result<CallHandle, BeginError> {
        let Some(thread) = self.callbacks.read().clone() else { return Err(BeginError::Closed) };
        let Some(place) = self.callback_places.take() else { return Err(BeginError::QueueFull) };
        let callback = Box::new(move |done: Completion| on_done(begun(done.result)));
        let reply_to = ReplyTo::Callback { thread, place, callback };
        self.admit_begin_to(trajectory_id, spec, None, reply_to).map(CallHandle::new)
    }

    /// Like [`begin`](Self::begin), without the wait for the slot: what is given says how it went,
    /// by [`begun`].
    pub(super) fn admit_begin(
        &self,
        trajectory_id: &str,
        spec: TrajectorySpec,
    ) -> Result<Pending, BeginError> {
        let admitted = self.admit_begin_to(trajectory_id, spec, self.room_by(), ReplyTo::Pending);
        admitted.map(Pending::new)
    }

    /// The tiers that can give what a spec asks for, as far as is known; all of them where none is
    /// known to: they are asked one after the other then.
    fn tiers_for(&self, spec: &TrajectorySpec) -> TierSet {
        if !self.has_tiers || spec.asks_for().next().is_none() {
            return TierSet::ALL;
        }
        let tiers = guarded(|| self.backend.tiers()).unwrap_or_default();
        let can_give = |tier: &Tier| {
            let Capabilities { spec: fields, may_grow, .. } = &tier.capabilities;
            // Of one that has no server yet it is not known.
            (*may_grow && fields.is_empty()) || gives(spec, fields).is_ok()
        };
        let can = tiers.iter().enumerate().filter(|(_, tier)| can_give(tier));
        let can = TierSet::of(can.map(|(number, _)| number));
        if can.is_empty() { TierSet::ALL } else { can }
    }

    /// The door of begins.
    fn admit_begin_to(
        &self,
        trajectory_id: &str,
        spec: TrajectorySpec,
        room_by: Option<Instant>,
        reply_to: ReplyTo,
    ) -> Result<Arc<CallState>, BeginError> {
        spec.check()?;
        // What a begin makes is to be in the machine that the calls will have.
        let spec = match self.policy.allow_network {
            true => spec,
            false => {
                let cut = spec.clone().without_network()?;
                let can_cut = self.capabilities().spec.contains(&SpecField::Network);
                if can_cut { cut } else { spec }
            }
        };
        if let Some(problem) = id_problem(trajectory_id) {
            return Err(ConfigError::new(problem).into());
        }
        self.gate.enter(room_by).map_err(|refused| match refused {
            Refused::Full => BeginError::QueueFull,
            Refused::Closed => BeginError::Closed,
        })?;
        let at = Instant::now();
        let id = ExecutionId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (trajectory_id, notify) = (trajectory_id.into(), self.notify.clone());
        let promise = Promise::new(id, trajectory_id, String::new(), reply_to, notify);
        let call_state = promise.call_state().clone();
        let (accepted, answer) = bounded(1);
        let near = spec.snapshot.as_ref().and_then(|id| self.snapshot_places.container(id));
        let may = self.tiers_for(&spec);
        let begin = Event::Begin { promise, spec: Arc::new(spec), near, may, at, accepted };
        if self.events.send(begin).is_err() {
            // The batcher has died.
            self.gate.leave(1);
            return Err(BeginError::Closed);
        }
        // The batcher never waits, so this is a matter of moments; where it ends it drops the
        // event.
        answer.recv().unwrap_or(Err(BeginError::Closed))?;
        Ok(call_state)
    }
}

/// What a begin has come to.
///
/// # Errors
/// The trajectory has not begun.
pub(super) fn begun(result: ToolResult) -> Result<(), BeginError> {
    match result.outcome {
        Outcome::Ok => Ok(()),
        outcome => Err(BeginError::Failed(BeginFailure::of(outcome, result.error))),
    }
}

/// What is wrong with the id of a trajectory, if something is.
pub(super) fn id_problem(trajectory_id: &str) -> Option<String> {
    match trajectory_id.len() {
        0 => Some("the trajectory id is empty".to_owned()),
        1..=MAX_TRAJECTORY_ID => None,
        bytes => Some(format!("the trajectory id has {bytes} bytes; at most {MAX_TRAJECTORY_ID}")),
    }
}
