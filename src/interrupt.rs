//! The order to give up what is still starting.
//!
//! A start may have to wait: for a sandbox server that is not there yet, for a ToolServer that
//! does not answer, for a sandbox on a machine that is out of memory, for the files that a killed
//! program has left behind. Each of these waits looks at an [`Interrupt`], which another thread
//! may trigger at any time.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use parking_lot::Mutex;

/// Ends a start that is under way. Clones are handles of the same interrupt; once triggered it
/// stays so.
///
/// Give one to [`Builder::interrupt`](crate::Builder::interrupt), keep a clone, and call
/// [`interrupt`](Self::interrupt) from any thread: the start returns
/// [`StartError::Interrupted`](crate::StartError::Interrupted), normally within a few
/// milliseconds. It has no effect on an executor that has started; close that instead.
///
/// ```
/// use tool_executor::Interrupt;
///
/// let interrupt = Interrupt::new();
/// let handle = interrupt.clone();
/// let thread = std::thread::spawn(move || handle.interrupt());
/// assert!(interrupt.wait_timeout(std::time::Duration::from_secs(60)));
/// # thread.join().unwrap();
/// ```
#[derive(Clone)]
pub struct Interrupt(Arc<State>);

struct State {
    /// Dropped by the interrupt, which wakes every waiter at once.
    armed: Mutex<Option<Sender<Infallible>>>,
    /// Nothing is ever sent: it disconnects.
    fired: Receiver<Infallible>,
}

impl Interrupt {
    /// An interrupt that was not triggered yet.
    pub fn new() -> Self {
        let (armed, fired) = bounded(0);
        Self(Arc::new(State { armed: Mutex::new(Some(armed)), fired }))
    }

    /// Triggers it. Does not block; doing so again does nothing. It takes a lock, so it must not be
    /// called by a signal handler itself, only by a thread that was told of the signal.
    pub fn interrupt(&self) {
        drop(self.0.armed.lock().take());
    }

    /// Whether it was triggered. Does not block.
    pub fn is_interrupted(&self) -> bool {
        self.0.fired.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Blocks until it is triggered, for `timeout` at most; whether it was triggered.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.0.fired.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected)
    }

    /// Blocks until it is triggered, or `deadline`; whether it was triggered.
    pub fn wait_deadline(&self, deadline: Instant) -> bool {
        self.0.fired.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected)
    }

    /// Disconnects when it is triggered: for a `select!` with other channels.
    #[cfg(any(feature = "http", target_os = "linux"))]
    pub(crate) fn fired(&self) -> &Receiver<Infallible> {
        &self.0.fired
    }
}

impl Default for Interrupt {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt").field("interrupted", &self.is_interrupted()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_waiter_of_every_clone_is_woken_and_it_stays_triggered() {
        let interrupt = Interrupt::new();
        assert!(!interrupt.is_interrupted());
        assert!(!interrupt.wait_timeout(Duration::ZERO));
        let (ready, are_ready) = bounded(0);
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let (interrupt, ready) = (interrupt.clone(), ready.clone());
                std::thread::spawn(move || {
                    ready.send(()).unwrap();
                    interrupt.wait_timeout(Duration::from_secs(60))
                })
            })
            .collect();
        (0..4).for_each(|_| are_ready.recv().unwrap());
        interrupt.clone().interrupt();
        interrupt.interrupt();
        assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()));
        assert!(interrupt.is_interrupted());
        assert!(interrupt.wait_deadline(Instant::now()));
        assert!(format!("{interrupt:?}").contains("true"));
    }
}
