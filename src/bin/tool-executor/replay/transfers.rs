//! Steps that put files, beside the loop of the run: each has a thread, `replay-put`, which ends
//! with it. The loop takes their results when it comes by.
//!
//! So many are under way at a time; the others wait here. One whose trajectory has no slot yet may
//! wait for it: a place is kept for those that have one, since slots become free only as their
//! holders go on.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use tool_executor::{Outcome, ToolExecutor, ToolResult};

use super::put::Put;

/// How many are under way at a time.
const MOST: usize = 8;

/// All of a run.
pub(super) struct Transfers {
    executor: Arc<ToolExecutor>,
    /// Where the recording is.
    directory: PathBuf,
    waiting: VecDeque<Order>,
    under_way: usize,
    /// How many of those may still wait for a slot.
    without_slot: usize,
    done: (Sender<Done>, Receiver<Done>),
}

/// One that is to be made.
struct Order {
    tag: u64,
    trajectory_id: Arc<str>,
    put: Put,
    /// The id of its result.
    uniq_id: String,
}

/// One that was made, or failed.
struct Done {
    tag: u64,
    had_slot: bool,
    result: ToolResult,
}

impl Transfers {
    /// None so far.
    pub(super) fn new(executor: Arc<ToolExecutor>, directory: PathBuf) -> Self {
        Self {
            executor,
            directory,
            waiting: VecDeque::new(),
            under_way: 0,
            without_slot: 0,
            // Each that is under way sends one result: there is room for all.
            done: bounded(MOST),
        }
    }

    /// Whether some wait or are under way.
    pub(super) fn are_some(&self) -> bool {
        self.under_way > 0 || !self.waiting.is_empty()
    }

    /// Makes one; its result comes under `tag`. Does not block.
    pub(super) fn submit(&mut self, tag: u64, trajectory_id: Arc<str>, put: Put, uniq_id: String) {
        self.waiting.push_back(Order { tag, trajectory_id, put, uniq_id });
        self.begin_waiting();
    }

    /// One that has ended: its tag, and its result. Does not block.
    pub(super) fn next(&mut self) -> Option<(u64, ToolResult)> {
        let Done { tag, had_slot, result } = self.done.1.try_recv().ok()?;
        self.under_way -= 1;
        self.without_slot -= usize::from(!had_slot);
        self.begin_waiting();
        Some((tag, result))
    }

    /// Forgets those that wait: the run ends.
    pub(super) fn give_up(&mut self) {
        self.waiting.clear();
    }

    fn begin_waiting(&mut self) {
        while let Some((place, has_slot)) = self.next_place() {
            let Some(order) = self.waiting.remove(place) else { return };
            self.begin(order, has_slot);
        }
    }

    /// Which of those that wait may begin now, and whether it has a slot.
    fn next_place(&self) -> Option<(usize, bool)> {
        if self.under_way >= MOST {
            return None;
        }
        let may_wait = self.without_slot < MOST - 1;
        let has_slot = |order: &Order| self.executor.slot_of(&order.trajectory_id).is_some();
        let places = self.waiting.iter().map(has_slot).enumerate();
        places.into_iter().find(|(_, has_slot)| *has_slot || may_wait)
    }

    fn begin(&mut self, order: Order, had_slot: bool) {
        let Order { tag, trajectory_id, put, uniq_id } = order;
        let (executor, directory) = (self.executor.clone(), self.directory.clone());
        let done = self.done.0.clone();
        let work = move || {
            let mut result = put.run(&executor, &trajectory_id, &directory);
            result.uniq_id = Some(uniq_id);
            // Before the run hears of it: it may want to close the executor.
            drop(executor);
            // A run that has ended asks no more.
            let _ = done.send(Done { tag, had_slot, result });
        };
        self.under_way += 1;
        self.without_slot += usize::from(!had_slot);
        if let Err(error) = start(work) {
            let text = format!("could not start a thread: {error}");
            let result = ToolResult::failure(Outcome::NeverRan, text);
            let _ = self.done.0.send(Done { tag, had_slot, result });
        }
    }
}

fn start(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends with its step, at the latest when the executor closes"
    )]
    let started = thread::Builder::new().name("replay-put".to_owned()).spawn(work)?;
    drop(started);
    Ok(())
}
