//! Images that trajectories wait for while they are pulled.
//!
//! Pulls have threads of their own, `tool-pull-N`, as many as images are pulled at a time: a
//! trajectory whose image is here does not wait behind one whose image is not. Each image is pulled
//! once for all who want it in this process; between processes the store sees to that.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::LocalBackend;
use crate::error::BeginFailure;
use crate::sandbox::image::Image;
use crate::tool::ToolResult;
use crate::workers::Workers;

/// How long a failure answers all who want the image: a registry is not asked for each trajectory
/// of a thousand what it has just refused.
const FAILURE_KEPT: Duration = Duration::from_secs(10);
/// How many failures are kept.
const MOST_FAILURES: usize = 1024;

/// What is called with what became of an image. Must not block.
pub(super) type Waiter = Box<dyn FnOnce(Result<Arc<Image>, BeginFailure>) + Send>;

/// The pulls of a backend.
pub(super) struct Pulls {
    threads: usize,
    /// Started for the first pull. Taken when closing.
    workers: Mutex<Threads>,
    waiting: Mutex<Waiting>,
}

enum Threads {
    NotYet,
    Started(Workers),
    Closed,
}

impl Pulls {
    /// So many at a time.
    pub(super) fn new(threads: usize) -> Self {
        let workers = Mutex::new(Threads::NotYet);
        Self { threads, workers, waiting: Mutex::default() }
    }

    /// From now on none begins; who waits is told that the sandbox is closed.
    pub(super) fn close(&self, deadline: Instant) {
        let workers = std::mem::replace(&mut *self.workers.lock(), Threads::Closed);
        let waiting = std::mem::take(&mut self.waiting.lock().names);
        for waiter in waiting.into_values().flatten() {
            waiter(Err(closed()));
        }
        if let Threads::Started(workers) = workers {
            workers.stop();
            workers.close(deadline);
        }
    }

    /// Has a thread do `work`.
    fn spawn(&self, work: impl FnOnce() + Send + 'static) -> Result<(), BeginFailure> {
        let mut workers = self.workers.lock();
        if let Threads::NotYet = &*workers {
            let started = Workers::start("tool-pull", self.threads).map_err(|error| {
                BeginFailure::failed(format!("no threads to pull images: {error}"))
            })?;
            *workers = Threads::Started(started);
        }
        match &*workers {
            Threads::Started(workers) => workers.spawn(work),
            Threads::NotYet | Threads::Closed => return Err(closed()),
        }
        Ok(())
    }
}

impl LocalBackend {
    /// Pulls an image on a thread for that, or waits for one that is being pulled, and calls
    /// `waiter` then, or at once. Does not block.
    pub(super) fn pull(&self, name: &str, waiter: Waiter) {
        let pulls = &self.0.images.pulls;
        let joined = pulls.waiting.lock().join(name, waiter, Instant::now());
        match joined {
            Joined::Waits => return,
            Joined::Failed(waiter, failure) => return waiter(Err(failure)),
            Joined::First => {}
        }
        let (weak, wanted) = (Arc::downgrade(&self.0), name.to_owned());
        let spawned = pulls.spawn(move || {
            // Without it the waiters are gone, too.
            let Some(inner) = weak.upgrade() else { return };
            let backend = Self(inner);
            let brought = backend.find_image(&wanted);
            backend.0.images.pulls.finish(&wanted, &brought);
        });
        if let Err(failure) = spawned {
            pulls.finish(name, &Err(failure));
        }
    }
}

impl Pulls {
    fn finish(&self, name: &str, brought: &Result<Arc<Image>, BeginFailure>) {
        let failure = brought.as_ref().err();
        let waiters = self.waiting.lock().leave(name, failure, Instant::now());
        for waiter in waiters {
            waiter(brought.clone());
        }
    }
}

fn closed() -> BeginFailure {
    BeginFailure::failed("the sandbox is closed")
}

/// Who waits for which image. Pure: it does no I/O and has no clock.
struct Waiting<W = Waiter> {
    names: HashMap<String, Vec<W>>,
    failures: HashMap<String, (Instant, BeginFailure)>,
}

/// What is to be done for one who wants an image.
enum Joined<W> {
    /// It is to be pulled.
    First,
    /// It is being pulled.
    Waits,
    /// That has failed just now.
    Failed(W, BeginFailure),
}

impl<W> Default for Waiting<W> {
    fn default() -> Self {
        Self { names: HashMap::new(), failures: HashMap::new() }
    }
}

impl<W> Waiting<W> {
    fn join(&mut self, name: &str, waiter: W, now: Instant) -> Joined<W> {
        if let Some(waiters) = self.names.get_mut(name) {
            waiters.push(waiter);
            return Joined::Waits;
        }
        self.failures.retain(|_, (until, _)| now < *until);
        if let Some((_, failure)) = self.failures.get(name) {
            return Joined::Failed(waiter, failure.clone());
        }
        self.names.insert(name.to_owned(), vec![waiter]);
        Joined::First
    }

    /// Those who wait no longer, since it was pulled or has failed.
    fn leave(&mut self, name: &str, failure: Option<&BeginFailure>, now: Instant) -> Vec<W> {
        if let Some(failure) = failure
            && self.failures.len() < MOST_FAILURES
        {
            self.failures.insert(name.to_owned(), (now + FAILURE_KEPT, failure.clone()));
        }
        self.names.remove(name).unwrap_or_default()
    }
}

/// How long a slot's trajectory waited for its image, until a result has told it.
#[derive(Clone, Default)]
pub(super) struct ImageWait(Arc<AtomicU64>);

impl ImageWait {
    /// It waited so long; zero is not told.
    pub(super) fn note(&self, waited: Duration) {
        let milliseconds = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        self.0.store(milliseconds, Ordering::Release);
    }

    /// Puts it into a result, the first one after the wait.
    pub(super) fn tell(&self, result: &mut ToolResult) {
        let milliseconds = self.0.swap(0, Ordering::AcqRel);
        if milliseconds > 0 {
            result.metadata.insert("image_ms".to_owned(), milliseconds.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_pulled_once_for_all_who_want_it_and_a_failure_answers_for_a_while() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        assert!(matches!(waiting.join("a", 1, now), Joined::First));
        assert!(matches!(waiting.join("a", 2, now), Joined::Waits));
        assert!(matches!(waiting.join("b", 3, now), Joined::First));
        assert_eq!(waiting.leave("a", None, now), [1, 2]);
        // It may have been removed again.
        assert!(matches!(waiting.join("a", 4, now), Joined::First));
        let failure = BeginFailure::image_unavailable("no");
        assert_eq!(waiting.leave("a", Some(&failure), now), [4]);
        let later = now + FAILURE_KEPT - Duration::from_millis(1);
        match waiting.join("a", 5, later) {
            Joined::Failed(5, told) => assert_eq!(told, failure),
            _ => panic!("it is pulled again at once"),
        }
        assert!(matches!(waiting.join("a", 6, now + FAILURE_KEPT), Joined::First));
    }

    #[test]
    fn a_wait_is_told_once() {
        let (wait, mut result) = (ImageWait::default(), ToolResult::ok(""));
        wait.tell(&mut result);
        assert!(result.metadata.is_empty());
        wait.note(Duration::from_millis(1500));
        wait.tell(&mut result);
        assert_eq!(result.metadata["image_ms"], 1500);
        let mut next = ToolResult::ok("");
        wait.tell(&mut next);
        assert!(next.metadata.is_empty());
    }
}
