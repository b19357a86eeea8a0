//! Whether a sandbox server is used: how many sessions and requests there are now, and when the
//! last one ended.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

/// What uses a server now, and did last.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Usage>);

#[derive(Debug)]
struct Usage {
    uses: usize,
    /// When the last use ended, or the server began.
    ended: Instant,
}

/// A use of the server, for as long as it lives.
#[derive(Debug)]
pub(super) struct InUse(Arc<Activity>);

impl Activity {
    pub(super) fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Usage { uses: 0, ended: now })))
    }

    /// A use begins.
    pub(super) fn begin(self: &Arc<Self>) -> InUse {
        self.0.lock().uses += 1;
        InUse(self.clone())
    }

    /// Since when there is no use; `None` while there is one.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        let usage = self.0.lock();
        (usage.uses == 0).then_some(usage.ended)
    }

    fn end(&self, now: Instant) {
        let mut usage = self.0.lock();
        usage.uses -= 1;
        usage.ended = now;
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.end(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_unused_from_the_end_of_its_last_use() {
        let began = Instant::now();
        let activity = Activity::new(began);
        assert_eq!(activity.unused_since(), Some(began));
        let (session, request) = (activity.begin(), activity.begin());
        drop(request);
        assert_eq!(activity.unused_since(), None);
        drop(session);
        assert!(activity.unused_since().is_some_and(|ended| ended > began));
    }
}
