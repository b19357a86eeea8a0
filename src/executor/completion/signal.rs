//! The file descriptor of a completion queue: readable as long as completions wait.
//!
//! An eventfd follows a count of what waits. The count is changed without a lock; only who takes
//! it past zero – from nothing to something, or back – brings the eventfd up to date, and under a
//! lock looks at the count *as it is then*. So the thread that does that last has seen every
//! change before it: once no thread is under way here, the eventfd is right. Nothing is ever read
//! from it to learn how many.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

/// Follows what waits in one queue.
#[derive(Debug)]
pub(super) struct Signal {
    /// Below zero for a moment, where one was fetched before it was counted.
    waiting: AtomicI64,
    /// Whether the eventfd is readable.
    raised: Mutex<bool>,
    fd: OwnedFd,
}

impl Signal {
    /// Nothing waits.
    pub(super) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { waiting: AtomicI64::new(0), raised: Mutex::new(false), fd })
    }

    /// What is to be polled.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// One was put in. To be called after it can be fetched.
    pub(super) fn put(&self) {
        if self.waiting.fetch_add(1, Ordering::AcqRel) == 0 {
            self.follow();
        }
    }

    /// One was fetched.
    pub(super) fn take(&self) {
        if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.follow();
        }
    }

    fn follow(&self) {
        let mut raised = self.raised.lock();
        let something = self.waiting.load(Ordering::Acquire) > 0;
        if something == *raised {
            return;
        }
        *raised = something;
        // Neither can fail: the counter is 0 before the write and 1 before the read.
        if something {
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        } else {
            let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::super::{Completion, CompletionQueue, Place};
    use super::*;
    use crate::tool::ToolResult;

    /// Whether the queue's descriptor is readable, or the other becomes so first, within so many
    /// seconds.
    fn readable(queue: &CompletionQueue, other: Option<&OwnedFd>, seconds: i64) -> [bool; 2] {
        let fd = queue.poll_fd().unwrap();
        let within = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let mut fds = vec![PollFd::new(&fd, PollFlags::IN)];
        fds.extend(other.map(|other| PollFd::new(other, PollFlags::IN)));
        poll(&mut fds, Some(&within)).unwrap();
        [0, 1].map(|index| fds.get(index).is_some_and(|fd| !fd.revents().is_empty()))
    }

    fn put(queue: &CompletionQueue, place: Place, tag: u64) {
        let completion = Completion { tag, trajectory_id: "t".into(), result: ToolResult::ok("") };
        queue.sender().send(place, completion);
    }

    proptest! {
        #[test]
        fn one_thread_always_finds_it_readable_exactly_when_something_waits(
            steps in prop::collection::vec(any::<bool>(), 0..60)
        ) {
            let queue = CompletionQueue::pollable(100).unwrap();
            let mut waiting = 0;
            for (tag, is_put) in steps.into_iter().enumerate() {
                if is_put {
                    put(&queue, queue.take_place().unwrap(), tag as u64);
                    waiting += 1;
                } else if queue.try_next().is_some() {
                    waiting -= 1;
                } else {
                    prop_assert_eq!(waiting, 0);
                }
                prop_assert_eq!(readable(&queue, None, 0)[0], waiting > 0);
            }
        }

        #[test]
        fn threads_that_wait_by_poll_alone_get_everything_and_leave_it_unreadable(
            producers in 1..4_u64,
            consumers in 1..4_usize,
            each in 1..200_u64,
        ) {
            let queue = CompletionQueue::pollable(1000).unwrap();
            let fetched = Arc::new(Mutex::new(Vec::new()));
            let all = (producers * each) as usize;
            let done = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
            std::thread::scope(|scope| {
                for producer in 0..producers {
                    let queue = queue.clone();
                    scope.spawn(move || {
                        for number in 0..each {
                            put(&queue, queue.take_place().unwrap(), producer * each + number);
                        }
                    });
                }
                for _ in 0..consumers {
                    let (queue, fetched, done) = (queue.clone(), fetched.clone(), done.clone());
                    scope.spawn(move || {
                        loop {
                            match readable(&queue, Some(&*done), 60) {
                                [_, true] => break,
                                [true, _] => {}
                                _ => panic!("a completion was not announced"),
                            }
                            let Some(completion) = queue.try_next() else { continue };
                            let mut fetched = fetched.lock();
                            fetched.push(completion.tag);
                            if fetched.len() == all {
                                rustix::io::write(&*done, &1u64.to_ne_bytes()).unwrap();
                            }
                        }
                    });
                }
            });
            let mut tags = fetched.lock().clone();
            tags.sort_unstable();
            prop_assert!(tags.into_iter().eq(0..producers * each));
            prop_assert!(!readable(&queue, None, 0)[0]);
            prop_assert_eq!(queue.outstanding(), 0);
        }
    }
}
