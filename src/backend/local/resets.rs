//! Emptying a slot: what lives in it ends first, then its files are removed, on a thread of
//! `tool-reset-N`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Inner, Slot};
use crate::backend::ResetReply;

/// How long resets may take to end where the backend is not being closed.
const RESETS_END: Duration = Duration::from_secs(5);

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
    let workspace = place.workspace.clone();
    let owner = Arc::downgrade(inner);
    let on_gone = move |all_dead: bool| {
        if !all_dead {
            return answer.give(Err("its sandbox could not be ended".to_owned()));
        }
        // Without them the backend is closing, and the answer says so.
        if let Some(inner) = owner.upgrade()
            && let Some(resets) = &*inner.resets.lock()
        {
            let limits = inner.limits.clone();
            resets.spawn(move || {
                let reset = workspace.reset().map_err(|error| error.to_string());
                limits.emptied(workspace.path());
                answer.give(reset);
            });
        }
    };
    // Before its files are emptied, no process may be left that makes new ones.
    let weak = Arc::downgrade(inner);
    let terminals_gone = move |all_dead: bool| match weak.upgrade() {
        Some(inner) if all_dead => inner.supervisor.leave(index, Box::new(on_gone)),
        _ => on_gone(all_dead),
    };
    inner.terminals.leave(index, Box::new(terminals_gone));
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(resets) = self.resets.get_mut().take() {
            resets.stop();
            resets.close(Instant::now() + RESETS_END);
        }
    }
}
