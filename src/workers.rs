//! The pools of threads that do what blocks. In an executor `tool-io-N` hands batches to the
//! backend and `tool-fn-N` runs in-process tools; in a sandbox server `tool-slots-N` talks to the
//! backend, `tool-files-N` reads workspaces and `tool-archives-N` makes archives, `tool-grades-N`
//! has files graded; in an embedded sandbox `tool-reset-N` renews slots, `tool-remove-N` removes
//! what they had, and `tool-spool-N` writes output to files.
//!
//! Each is a rayon pool of its own, so that a user's slow closure never delays a sandbox call.
//! Jobs are only ever `spawn_fifo`ed, and no job that hands calls over waits for a command's end.
//! Rayon aborts the process on a panic in a job unless told otherwise, and neither joins its
//! threads nor waits for them; so they are started and joined here.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::thread::OwnedThread;

/// A named rayon pool that can be waited for. Dropping it is [`close`](Self::close), with the time
/// that each thread has when it is dropped.
pub(crate) struct Workers {
    name: &'static str,
    /// Above the threads: its drop tells them to end.
    pool: rayon::ThreadPool,
    stopped: Arc<AtomicBool>,
    threads: Vec<OwnedThread>,
}

impl Workers {
    /// Starts `threads` threads called `name-0`, `name-1`, ….
    ///
    /// # Errors
    /// The operating system's, when it refuses the threads. None is left then.
    pub(crate) fn start(name: &'static str, threads: usize) -> io::Result<Self> {
        let started = Arc::new(Mutex::new(Vec::with_capacity(threads)));
        let (to_join, refused) = (started.clone(), Arc::new(Mutex::new(None)));
        let refusal = refused.clone();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .panic_handler(move |panic| {
                log::error!("a job on the {name} threads panicked: {}", panic_text(&*panic));
            })
            .spawn_handler(move |thread| {
                let called = format!("{name}-{}", thread.index());
                match OwnedThread::spawn(called, || thread.run()) {
                    Ok(thread) => to_join.lock().push(thread),
                    Err(error) => {
                        let kind = error.kind();
                        *refusal.lock() = Some(error);
                        return Err(kind.into());
                    }
                }
                Ok(())
            })
            .build();
        // Rayon has told those that were started before one was refused to end.
        let threads = std::mem::take(&mut *started.lock());
        match (pool, refused.lock().take()) {
            (Ok(pool), _) => Ok(Self { name, pool, stopped: Arc::default(), threads }),
            (Err(_), Some(refused)) => Err(refused),
            (Err(error), None) => Err(io::Error::other(error)),
        }
    }

    /// Queues a job; does not block. Jobs start in the order in which they were queued.
    pub(crate) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let stopped = self.stopped.clone();
        self.pool.spawn_fifo(move || {
            if !stopped.load(Ordering::Acquire) {
                job();
            }
        });
    }

    /// From now on no job starts: those that are queued are dropped when their turn comes. Does not
    /// wait for those that run.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Tells the threads to end once the queued jobs have run, and waits for it until `deadline`;
    /// `false` if some still run then. They are left behind. Called by one of its own jobs it
    /// returns `false` at once: a thread cannot wait for its own end.
    pub(crate) fn close(self, deadline: Instant) -> bool {
        let Self { name, pool, threads, .. } = self;
        let waits_for_itself = pool.current_thread_index().is_some();
        drop(pool);
        if waits_for_itself {
            threads.into_iter().for_each(OwnedThread::detach);
            return false;
        }
        let mut busy = 0;
        for mut thread in threads {
            if !thread.join_until(deadline) {
                busy += 1;
                thread.detach();
            }
        }
        if busy > 0 {
            log::error!("{busy} {name} threads are still busy at the deadline; left behind");
        }
        busy == 0
    }
}

/// Runs code that is not ours; a panic in it becomes an error with its text.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic_text(&*panic).to_owned();
        // What was thrown is not ours either, and may panic when it is dropped.
        if let Err(another) = catch_unwind(AssertUnwindSafe(move || drop(panic))) {
            std::mem::forget(another);
        }
        text
    })
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn a_panicking_job_ends_alone_and_closing_waits_for_what_was_queued() {
        let workers = Workers::start("test-io", 2).unwrap();
        let (tx, rx) = crossbeam_channel::unbounded();
        workers.spawn(|| panic!("expected by this test"));
        for number in 0..10 {
            let tx = tx.clone();
            workers.spawn(move || tx.send(number).unwrap());
        }
        drop(tx);
        assert!(workers.close(Instant::now() + Duration::from_secs(10)));
        assert_eq!(rx.iter().count(), 10);
    }

    #[test]
    fn a_panic_that_panics_again_when_it_is_dropped_is_caught_all_the_same() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("expected by this test");
            }
        }
        let caught = guarded(|| std::panic::panic_any(Bomb));
        assert_eq!(caught, Err("no text".to_owned()));
    }

    #[test]
    fn after_a_stop_no_queued_job_starts() {
        let workers = Workers::start("test-stop", 1).unwrap();
        let (go_on, wait) = bounded::<()>(0);
        let (tx, rx) = bounded::<()>(1);
        workers.spawn(move || {
            let _ = wait.recv();
        });
        workers.spawn(move || tx.send(()).unwrap());
        workers.stop();
        drop(go_on);
        assert!(workers.close(Instant::now() + Duration::from_secs(10)));
        assert!(rx.recv().is_err(), "dropped without having run");
    }

    #[test]
    fn a_job_that_closes_its_own_pool_does_not_wait_for_itself() {
        let workers = Workers::start("test-self", 1).unwrap();
        let (give, take) = bounded::<Workers>(1);
        let (tx, rx) = bounded(1);
        workers.spawn(move || {
            let far = Instant::now() + Duration::from_secs(3600);
            tx.send(take.recv().unwrap().close(far)).unwrap();
        });
        give.send(workers).unwrap();
        assert_eq!(rx.recv_timeout(Duration::from_secs(30)), Ok(false));
    }

    #[test]
    fn closing_does_not_wait_for_a_stuck_job_beyond_its_deadline() {
        let workers = Workers::start("test-stuck", 1).unwrap();
        let (release, wait) = bounded::<()>(0);
        workers.spawn(move || {
            let _ = wait.recv();
        });
        assert!(!workers.close(Instant::now() + Duration::from_millis(5)));
        drop(release);
    }
}
