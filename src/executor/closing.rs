//! The end of an executor.

use std::time::{Duration, Instant};

use super::batcher::{Ended, WorkerPools};
use super::event::Event;
use super::stats::Stats;
use super::{CLOSE_MARGIN, Threads, ToolExecutor};
use crate::seconds::LONGEST;
use crate::workers::guarded;

/// How a close went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReport {
    /// How many calls were cancelled because they had not ended when the time was up.
    pub cancelled: usize,
    /// Whether every thread of the executor has ended. `false` when user code – an in-process tool,
    /// a callback, a backend – still blocks one; it ends when that code returns.
    pub all_threads_ended: bool,
}

impl ToolExecutor {
    /// Stops taking calls, waits for those that were accepted, for the configured `close_timeout`
    /// at most, cancels what is left then, releases every slot, and ends every thread. Blocks; a
    /// second call waits for the first, which ends the sooner if the second has less time, and
    /// gives the same report.
    ///
    /// An in-process tool or a callback that closes the executor waits for itself, until the time
    /// is up.
    pub fn close(&self) -> CloseReport {
        self.close_within(self.close_timeout)
    }

    /// Like [`close`](Self::close), with a time limit of its own for the accepted calls. What is
    /// cancelled gets 5 s to end, and the cleaning-up 15 s.
    pub fn close_within(&self, timeout: Duration) -> CloseReport {
        self.gate.close();
        let deadline = Instant::now() + timeout.min(LONGEST);
        // Before the lock, so that a close in a hurry shortens one that is under way. Refused only
        // when the batcher has ended.
        let _ = self.events.send(Event::Close { deadline });
        let mut slot = self.threads.lock();
        let Some(Threads { mut batcher, ended, mut callback }) = slot.take() else {
            let closed = self.closed.lock();
            return closed
                .as_ref()
                .map(|(report, _)| *report)
                .unwrap_or(CloseReport { cancelled: 0, all_threads_ended: false });
        };
        let left = ended.recv_deadline(deadline + CLOSE_MARGIN).ok();
        let mut report = CloseReport { cancelled: 0, all_threads_ended: false };
        let mut stats = Stats::default();
        if let Some(left) = &left {
            // What still waits for an I/O thread is of no use to anybody any more.
            left.pools.io.stop();
            report.cancelled = left.cancelled;
            stats = left.stats.clone();
        }
        // Already now: who asks for statistics during the clean-up finds the batcher gone.
        *self.closed.lock() = Some((report, stats.clone()));
        let until = Instant::now() + CLOSE_MARGIN;
        if let Err(panic) = guarded(|| self.backend.close(until)) {
            log::error!("the sandbox backend panicked in close: {panic}");
        }
        let mut all_threads_ended = batcher.join_until(until);
        if let Some(Ended { pools: WorkerPools { io, handlers, tool_server }, .. }) = left {
            if let Some((server, threads)) = tool_server {
                server.interrupt();
                all_threads_ended &= threads.close(until);
            }
            all_threads_ended &= io.close(until);
            all_threads_ended &= handlers.close(until);
        }
        self.callbacks.write().take();
        all_threads_ended &= callback.join_until(until);
        report.all_threads_ended = all_threads_ended;
        *self.closed.lock() = Some((report, stats));
        report
    }
}

impl Drop for ToolExecutor {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::gate::Refused;
    use crossbeam_channel::bounded;
    use std::thread;

    #[test]
    fn closing_is_not_held_up_by_a_call_that_is_refused_at_the_door_meanwhile() {
        let executor = ToolExecutor::builder().start().unwrap();
        executor.gate.enter(None).unwrap();
        let hour = Duration::from_secs(3600);
        let (done, closed) = bounded(1);
        thread::scope(|scope| {
            scope.spawn(|| done.send(executor.close_within(hour)));
            while executor.gate.enter(None) != Err(Refused::Closed) {
                executor.gate.leave(1);
            }
            // Answered when the batcher has seen the `Close`, if that was faster than we: then
            // nothing but what comes now ends its wait.
            executor.stats();
            executor.leave_at_the_door();
            let report = closed.recv_timeout(Duration::from_secs(30)).unwrap();
            assert!(report.all_threads_ended);
        });
    }
}
