//! The thread that runs completion callbacks, so that a user's code never holds up a result.

use std::io;

use crossbeam_channel::{Sender, unbounded};

use super::completion::{Completion, Place};
use crate::thread::OwnedThread;
use crate::workers::guarded;

/// A user's code that wants to be called with a result.
pub(crate) type Callback = Box<dyn FnOnce(Completion) + Send>;

/// A callback and what it is to be called with.
pub(crate) struct CallbackJob {
    pub(crate) completion: Completion,
    pub(crate) callback: Callback,
    pub(crate) place: Place,
}

impl CallbackJob {
    /// Runs the callback; a panic in it ends there.
    pub(crate) fn run(self) {
        let Self { completion, callback, place: _place } = self;
        let trajectory_id = completion.trajectory_id.clone();
        if let Err(panic) = guarded(move || callback(completion)) {
            log::error!("a completion callback of trajectory {trajectory_id} panicked: {panic}");
        }
    }
}

/// Starts the thread. It ends when every clone of the sender is dropped and all callbacks have
/// run.
///
/// The channel needs no bound of its own: every job in it holds a [`Place`].
pub(crate) fn start() -> io::Result<(Sender<CallbackJob>, OwnedThread)> {
    #[expect(clippy::disallowed_methods, reason = "every job holds a place of its own")]
    let (sender, jobs) = unbounded::<CallbackJob>();
    let thread = OwnedThread::spawn("tool-callback", move || {
        for job in jobs {
            job.run();
        }
    })?;
    Ok((sender, thread))
}
