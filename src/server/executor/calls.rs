//! The calls that this server has under way, so that they can be cancelled: by name, and when
//! their client goes away.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::validate::CallRequest;
use crate::error::SubmitError;
use crate::executor::{CallHandle, Completion, Destination, ToolExecutor};
use crate::tool::{Outcome, ToolResult};

/// The calls under way, and the executor that runs them.
pub(super) struct Calls {
    executor: Arc<ToolExecutor>,
    under_way: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    next: u64,
    /// By trajectory, and then by a number of ours: clients may well use an id twice.
    calls: HashMap<Arc<str>, HashMap<u64, Named>>,
}

/// A call under its id.
type Named = (String, Arc<CallHandle>);

/// A call under way. Dropped before [`ended`](Self::ended) was told, it cancels the call: the
/// client went away, or the server ends.
pub(super) struct InFlight {
    calls: Arc<Calls>,
    trajectory_id: Arc<str>,
    number: u64,
    handle: Option<Arc<CallHandle>>,
}

impl Calls {
    /// No calls yet.
    pub(super) fn new(executor: Arc<ToolExecutor>) -> Arc<Self> {
        Arc::new(Self { executor, under_way: Mutex::default() })
    }

    /// Submits a call; `on_done` gets its result, on the executor's thread for callbacks. Does not
    /// block.
    ///
    /// # Errors
    /// The result of a call that the executor does not accept: its queue is full, or it is closed.
    pub(super) fn submit(
        self: &Arc<Self>,
        request: CallRequest,
        on_done: impl FnOnce(Completion) + Send + 'static,
    ) -> Result<InFlight, Box<ToolResult>> {
        let CallRequest { trajectory_id, call, .. } = request;
        let uniq_id = call.uniq_id.clone();
        let destination = Destination::callback(on_done);
        let submitted = self.executor.try_submit_to(&trajectory_id, call, destination);
        let handle = Arc::new(submitted.map_err(|error| Box::new(refused(error)))?);
        let trajectory_id: Arc<str> = trajectory_id.into();
        let mut under_way = self.under_way.lock();
        let number = under_way.next;
        under_way.next += 1;
        let of_trajectory = under_way.calls.entry(trajectory_id.clone()).or_default();
        of_trajectory.insert(number, (uniq_id, handle.clone()));
        drop(under_way);
        Ok(InFlight { calls: self.clone(), trajectory_id, number, handle: Some(handle) })
    }

    /// Cancels the calls of a trajectory with this id, or everything of the trajectory. Does not
    /// block. Says how many calls of this server that concerns.
    pub(super) fn cancel(&self, trajectory_id: &str, uniq_id: Option<&str>) -> usize {
        let under_way = self.under_way.lock();
        let of_trajectory = under_way.calls.get(trajectory_id).into_iter().flatten();
        let meant: Vec<Arc<CallHandle>> = of_trajectory
            .filter(|(_, (id, _))| uniq_id.is_none_or(|uniq_id| uniq_id == id))
            .map(|(_, (_, handle))| handle.clone())
            .collect();
        drop(under_way);
        if uniq_id.is_none() {
            // Also what others submitted to the same executor.
            self.executor.cancel_trajectory(trajectory_id);
        } else {
            meant.iter().for_each(|handle| handle.cancel());
        }
        meant.len()
    }
}

impl InFlight {
    /// The call has ended by itself.
    pub(super) fn ended(mut self) {
        self.handle = None;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut under_way = self.calls.under_way.lock();
        if let Some(of_trajectory) = under_way.calls.get_mut(&self.trajectory_id) {
            of_trajectory.remove(&self.number);
            if of_trajectory.is_empty() {
                under_way.calls.remove(&self.trajectory_id);
            }
        }
        drop(under_way);
        if let Some(handle) = self.handle.take() {
            handle.cancel();
        }
    }
}

/// The result of a call that was not accepted.
fn refused(error: SubmitError) -> ToolResult {
    let why = match &error {
        // What is full there are the places for callbacks: nothing that a client could fetch.
        SubmitError::CompletionQueueFull(_) => "too many calls are under way".to_owned(),
        error => error.to_string(),
    };
    let mut result = ToolResult::failure(Outcome::NeverRan, why);
    result.uniq_id = Some(error.into_call().uniq_id);
    result
}

/// The result of a call whose own got lost, which the executor does not let happen.
pub(super) fn lost() -> ToolResult {
    ToolResult::failure(Outcome::BackendFailed, "the executor ended before this call did")
}
