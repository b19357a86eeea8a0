//! Named threads that are owned and joined: every long-lived thread of the library is one of
//! these.

use std::io;
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

/// A named thread with an owner. Joined by [`OwnedThread::join_until`], or on drop.
///
/// Its owner must have told the thread's loop to end before dropping it.
#[derive(Debug)]
pub(crate) struct OwnedThread {
    name: String,
    /// Disconnects when the thread's body has returned or panicked.
    ended: Receiver<()>,
    handle: Option<JoinHandle<()>>,
}

/// How long a drop waits for a thread that was told to end.
const DROP_LIMIT: Duration = Duration::from_secs(10);

impl OwnedThread {
    /// Starts `body` on a new thread called `name` (Linux shows the first 15 bytes).
    ///
    /// # Errors
    /// The operating system's, when it refuses another thread.
    pub(crate) fn spawn(
        name: impl Into<String>,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let name = name.into();
        let (alive, ended): (Sender<()>, _) = bounded(0);
        #[expect(clippy::disallowed_methods, reason = "the place for it")]
        let handle = thread::Builder::new().name(name.clone()).spawn(move || {
            let _alive = alive;
            body();
        })?;
        Ok(Self { name, ended, handle: Some(handle) })
    }

    /// The thread's id, until it was joined.
    pub(crate) fn id(&self) -> Option<ThreadId> {
        self.handle.as_ref().map(|handle| handle.thread().id())
    }

    /// Waits for the thread's end, until `deadline` at most; `false` if it still runs then (it is
    /// left alone and may be joined later). Called on the thread itself it returns `false` at once:
    /// a thread cannot wait for its own end.
    pub(crate) fn join_until(&mut self, deadline: Instant) -> bool {
        let Some(handle) = &self.handle else { return true };
        if handle.thread().id() == thread::current().id() {
            return false;
        }
        // Nothing is ever sent: the only way out besides the deadline is the disconnection.
        let timed_out = matches!(
            self.ended.recv_deadline(deadline),
            Err(crossbeam_channel::RecvTimeoutError::Timeout)
        );
        if timed_out {
            return false;
        }
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            log::error!("thread {} ended with a panic", self.name);
        }
        true
    }
}

impl OwnedThread {
    /// Waits for the thread's end until `deadline`; one that still runs then is left behind, and
    /// that is reported.
    #[cfg(any(feature = "http", target_os = "linux"))]
    pub(crate) fn join_or_leave(mut self, deadline: Instant) {
        if !self.join_until(deadline) {
            log::error!("thread {} did not end in time; left behind", self.name);
            self.detach();
        }
    }

    /// Leaves it behind.
    pub(crate) fn detach(mut self) {
        drop(self.handle.take());
    }
}

impl Drop for OwnedThread {
    fn drop(&mut self) {
        if !self.join_until(Instant::now() + DROP_LIMIT)
            && self.id() != Some(thread::current().id())
        {
            log::error!("thread {} did not end within {DROP_LIMIT:?}; left behind", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_ended_is_joined_and_one_that_runs_is_not() {
        let (release, wait) = bounded::<()>(0);
        let mut thread = OwnedThread::spawn("test", move || {
            let _ = wait.recv();
        })
        .unwrap();
        assert!(!thread.join_until(Instant::now() + Duration::from_millis(5)));
        drop(release);
        assert!(thread.join_until(Instant::now() + Duration::from_secs(10)));
        assert!(thread.id().is_none());
    }

    #[test]
    fn a_thread_that_is_left_behind_holds_up_nobody() {
        let (_release, wait) = bounded::<()>(0);
        let body = move || {
            let _ = wait.recv();
        };
        let began = Instant::now();
        OwnedThread::spawn("test", body).unwrap().join_or_leave(began);
        assert!(began.elapsed() < DROP_LIMIT / 2);
    }

    #[test]
    fn a_panic_is_joined_like_any_other_end() {
        let mut thread = OwnedThread::spawn("test", || panic!("expected by this test")).unwrap();
        assert!(thread.join_until(Instant::now() + Duration::from_secs(10)));
    }
}
