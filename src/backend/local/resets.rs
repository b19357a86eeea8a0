//! Resets of slots: what lives in a slot ends first, then it gets a new workspace, on a thread of
//! `tool-reset-N`. The old one is removed behind that, on a thread of `tool-remove-N`, however much
//! is in it.
//!
//! What waits for its removal belongs to no slot and no limit counts it; so it is bounded: beyond
//! [`Resets::most_behind`] a reset removes what it leaves before it is answered.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Inner, Slot};
use crate::backend::ResetReply;
use crate::sandbox::workspace::{Remains, WorkspaceError};
use crate::workers::Workers;

/// How many slots get a new workspace at a time.
const RESET_THREADS: usize = 4;
/// How many old workspaces are removed at a time.
const REMOVE_THREADS: usize = 2;
/// How long resets may take to end where the backend is not being closed.
const RESETS_END: Duration = Duration::from_secs(5);

/// The threads of resets.
pub(super) struct Resets {
    renewing: Workers,
    removing: Workers,
    /// How many old workspaces are still to be removed.
    behind: Arc<AtomicUsize>,
    most_behind: usize,
}

impl Resets {
    /// Starts the threads, for so many slots.
    ///
    /// # Errors
    /// The operating system's, when it refuses threads.
    pub(super) fn start(slots: usize) -> io::Result<Self> {
        Ok(Self {
            renewing: Workers::start("tool-reset", RESET_THREADS)?,
            removing: Workers::start("tool-remove", REMOVE_THREADS)?,
            behind: Arc::default(),
            most_behind: slots,
        })
    }

    /// From now on no reset begins, and no removal.
    pub(super) fn stop(&self) {
        self.renewing.stop();
        self.removing.stop();
    }

    /// Waits for what is under way, until `deadline`.
    pub(super) fn close(self, deadline: Instant) {
        self.renewing.close(deadline);
        self.removing.close(deadline);
    }

    /// Has old directories removed, however many wait for that. Does not block.
    pub(super) fn remove_later(&self, remains: Remains) {
        self.removing.spawn(move || removed(remains));
    }

    /// Has an old workspace removed. Blocks for it where too many wait for that.
    pub(super) fn remove(&self, remains: Remains) {
        if self.behind.fetch_add(1, Ordering::Relaxed) >= self.most_behind {
            self.behind.fetch_sub(1, Ordering::Relaxed);
            return removed(remains);
        }
        let behind = self.behind.clone();
        self.removing.spawn(move || {
            removed(remains);
            behind.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn removed(remains: Remains) {
    if let Err(error) = remains.remove() {
        log::warn!("an old workspace is left until the sandbox ends: {error}");
    }
}

/// The obligation to answer everybody who waits for a slot's reset. Dropped, because of a panic or
/// because the threads have ended, it drops their replies, which say so.
struct AnswerAll(Option<Arc<Mutex<Vec<ResetReply>>>>);

impl AnswerAll {
    fn give(mut self, outcome: Result<(), String>) {
        for reply in self.take() {
            reply.send(outcome.clone());
        }
    }

    /// Those that wait, once: a later one waits for another reset.
    fn take(&mut self) -> Vec<ResetReply> {
        self.0.take().map(|waiting| std::mem::take(&mut *waiting.lock())).unwrap_or_default()
    }
}

impl Drop for AnswerAll {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Empties a slot in which no command runs. Does not block.
pub(super) fn reset(inner: &Arc<Inner>, index: usize, place: &Slot, reply: ResetReply) {
    // A second request during a long reset gets the answer of that one.
    {
        let mut waiting = place.resets.lock();
        waiting.push(reply);
        if waiting.len() > 1 {
            return;
        }
    }
    let answer = AnswerAll(Some(place.resets.clone()));
    let owner = Arc::downgrade(inner);
    let on_gone = move |all_dead: bool| {
        if !all_dead {
            return answer.give(Err("its sandbox could not be ended".to_owned()));
        }
        // Without them the backend is closing, and the answer says so.
        if let Some(inner) = owner.upgrade()
            && let Some(resets) = &*inner.resets.lock()
        {
            let owner = owner.clone();
            resets.renewing.spawn(move || {
                if let Some(inner) = owner.upgrade() {
                    renew(&inner, index, answer);
                }
            });
        }
    };
    // Before it has another workspace, no process may be left that uses the old one.
    let weak = Arc::downgrade(inner);
    let terminals_gone = move |all_dead: bool| match weak.upgrade() {
        Some(inner) if all_dead => inner.supervisor.leave(index, Box::new(on_gone)),
        _ => on_gone(all_dead),
    };
    inner.terminals.leave(index, Box::new(terminals_gone));
}

/// Gives a slot a new workspace in the place of the old one, which is removed afterwards.
fn renew(inner: &Inner, index: usize, answer: AnswerAll) {
    let Some(slot) = inner.slots.get(index) else { return };
    if let Some(egress) = &inner.egress {
        egress.renew(index);
    }
    let old = slot.workspace();
    let renewed = old.renew_with(inner.image.clone()).or_else(|error| {
        // There may be no room for another until this one is empty.
        log::debug!("{error}");
        old.clear()?;
        old.renew_with(inner.image.clone())
    });
    let renewed = renewed.map_err(|error: WorkspaceError| error.to_string());
    let remains = renewed.is_ok().then(|| old.remains());
    inner.limits.emptied(old.path());
    slot.began_from.lock().take();
    slot.ended.forget();
    slot.has_network.store(inner.network != super::NetworkMode::None, Ordering::Release);
    let outcome = renewed.map(|workspace| *slot.workspace.lock() = Arc::new(workspace));
    drop(old);
    answer.give(outcome);
    // Where too many are behind, this thread is busy for a while, and later resets wait for it.
    if let (Some(remains), Some(resets)) = (remains, &*inner.resets.lock()) {
        resets.remove(remains);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(resets) = self.resets.get_mut().take() {
            resets.stop();
            resets.close(Instant::now() + RESETS_END);
        }
    }
}
