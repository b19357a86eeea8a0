//! Completion queues: one thread drives thousands of trajectories.

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::executor::{Executor, te_executor};
use super::handle::{Opaque, free, hold, into_handle};
use super::result::{into_result, te_result, write_json};
use super::status::te_status::{TE_CLOSED, TE_INVALID_ARGUMENT, TE_TIMEOUT};
use super::status::{Fault, guard, te_status};
use super::text::{Out, seconds, te_buffer};
use crate::executor::{Completion, CompletionQueue};

/// Collects the results of the calls that were submitted to it. Made by te_queue_new(), freed by
/// te_queue_free(). Any number of threads may use it at the same time; each completion goes to one
/// of them.
pub struct te_queue {
    _opaque: (),
}

impl Opaque for te_queue {
    type Value = Queue;
    const KIND: u64 = 0x7465_2d71_7565_7565;
    const NAME: &'static str = "te_queue";
}

/// A queue and whose it is.
pub(super) struct Queue {
    pub(super) queue: CompletionQueue,
    pub(super) executor: Arc<Executor>,
}

/// The most places of one queue.
const MOST_PLACES: usize = 1 << 24;
/// How long a look lasts at what is on its way while the executor has closed.
const LOOK: Duration = Duration::from_millis(5);

impl Queue {
    /// The next completion, or why there is none.
    fn next(&self, until: Instant) -> Result<Completion, Fault> {
        loop {
            if let Some(completion) = self.queue.next_unless(&self.executor.stopped, until) {
                return Ok(completion);
            }
            // In this order: what is outstanding after the end is on its way from thread to thread.
            let closed = self.executor.is_closed();
            if closed && self.queue.outstanding() == 0 {
                let text = "the executor is closed, and all completions were fetched";
                return Err(Fault::new(TE_CLOSED, text));
            }
            let now = Instant::now();
            if now >= until {
                return Err(Fault::new(TE_TIMEOUT, "no completion came in time"));
            }
            if closed && let Some(completion) = self.queue.next_deadline(until.min(now + LOOK)) {
                return Ok(completion);
            }
        }
    }
}

/// Makes a completion queue. `capacity`, from 1 to 16,777,216, bounds the calls that were
/// submitted to it and not fetched from it.
///
/// On success `*queue` is the caller's, to be freed by te_queue_free(); after an error it is NULL.
/// It may outlive the executor's handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_queue_new(
    executor: *const te_executor,
    capacity: usize,
    queue: *mut *mut te_queue,
) -> te_status {
    guard(|| {
        let out = Out::new(queue, "queue", ptr::null_mut())?;
        let executor = hold(executor)?;
        if !(1..=MOST_PLACES).contains(&capacity) {
            let text = format!("capacity is {capacity}; it must be from 1 to {MOST_PLACES}");
            return Err(Fault::new(TE_INVALID_ARGUMENT, text));
        }
        #[cfg(target_os = "linux")]
        let made = executor.executor.pollable_completion_queue(capacity).map_err(|error| {
            Fault::new(te_status::TE_IO, format!("no file descriptor: {error}"))
        })?;
        #[cfg(not(target_os = "linux"))]
        let made = executor.executor.completion_queue(capacity);
        out.put(into_handle::<te_queue>(Queue { queue: made, executor: (*executor).clone() }));
        Ok(())
    })
}

/// The next completion; blocks for `timeout_s` seconds at most, not at all with 0, for a year with
/// infinity. TE_TIMEOUT: none came in time. TE_CLOSED: the executor is closed and all were
/// fetched; a wait that is under way ends so, too.
///
/// On success `*result` is the caller's, to be freed by te_result_free(); otherwise it is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_queue_next(
    queue: *const te_queue,
    timeout_s: f64,
    result: *mut *mut te_result,
) -> te_status {
    guard(|| {
        let out = Out::new(result, "result", ptr::null_mut())?;
        let queue = hold(queue)?;
        let until = Instant::now() + seconds(timeout_s, "timeout_s")?;
        let Completion { tag, trajectory_id, result } = queue.next(until)?;
        out.put(into_result(tag, trajectory_id, result));
        Ok(())
    })
}

/// Up to `max` completions, at least 1: blocks as te_queue_next() for the first, and takes what
/// else is there.
///
/// `results` has room for `max`. On success the first `*count` of them are the caller's, each to
/// be freed by te_result_free(); otherwise `*count` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_queue_next_many(
    queue: *const te_queue,
    max: usize,
    timeout_s: f64,
    results: *mut *mut te_result,
    count: *mut usize,
) -> te_status {
    guard(|| {
        let count = Out::new(count, "count", 0)?;
        let first = Out::new(results, "results", ptr::null_mut())?;
        if max == 0 || max > isize::MAX as usize / size_of::<*mut te_result>() {
            let text = format!("max is {max}; it must be at least 1, and results as long");
            return Err(Fault::new(TE_INVALID_ARGUMENT, text));
        }
        let queue = hold(queue)?;
        let until = Instant::now() + seconds(timeout_s, "timeout_s")?;
        let give =
            |Completion { tag, trajectory_id, result }| into_result(tag, trajectory_id, result);
        first.put(give(queue.next(until)?));
        let mut got = 1;
        count.put(got);
        while got < max
            && let Some(completion) = queue.queue.try_next()
        {
            // SAFETY: the caller's promise: there is room for `max` pointers, and `got` is less.
            unsafe { results.add(got).write(give(completion)) };
            got += 1;
            count.put(got);
        }
        Ok(())
    })
}

/// Up to `max` completions, at least 1, as te_queue_next_many() takes them: a JSON array of what
/// te_result_json() gives. For hosts to which one text costs less than many fields.
///
/// On success `*results` is the caller's, to be freed by te_buffer_free(); otherwise it is empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_queue_next_json(
    queue: *const te_queue,
    max: usize,
    timeout_s: f64,
    results: *mut te_buffer,
) -> te_status {
    guard(|| {
        let out = Out::buffer(results, "results")?;
        if max == 0 {
            return Err(Fault::new(TE_INVALID_ARGUMENT, "max is 0; it must be at least 1"));
        }
        let queue = hold(queue)?;
        let until = Instant::now() + seconds(timeout_s, "timeout_s")?;
        let mut json = Vec::new();
        let mut next = Some(queue.next(until)?);
        let mut got = 0;
        while let Some(Completion { tag, trajectory_id, result }) = next {
            json.push(if got == 0 { b'[' } else { b',' });
            write_json(tag, &trajectory_id, &result, &mut json);
            got += 1;
            next = if got < max { queue.queue.try_next() } else { None };
        }
        json.push(b']');
        out.put(te_buffer::of(json));
        Ok(())
    })
}

/// A file descriptor for poll(), select() or epoll, in a loop that waits for other things too:
/// readable (POLLIN) exactly as long as completions wait to be fetched, level-triggered. So: when
/// it is readable, fetch with te_queue_next_many(..., 0, ...); what is not fetched keeps it
/// readable. With epoll's edge trigger, fetch until TE_TIMEOUT. No completion is missed; where
/// several threads fetch, one may find that another was faster.
///
/// It is an eventfd and the library's own: not to be read from, written to or closed. Valid until
/// the queue is freed. It does not become readable because the executor is closed; te_queue_next()
/// says so. TE_UNSUPPORTED on systems other than Linux.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_queue_fd(queue: *const te_queue, fd: *mut c_int) -> te_status {
    guard(|| {
        let out = Out::new(fd, "fd", -1)?;
        let queue = hold(queue)?;
        #[cfg(target_os = "linux")]
        if let Some(fd) = queue.queue.poll_fd() {
            out.put(std::os::fd::AsRawFd::as_raw_fd(&fd));
            return Ok(());
        }
        let _ = (&out, &queue);
        let text = "completion queues have a file descriptor on Linux only";
        Err(Fault::new(te_status::TE_UNSUPPORTED, text))
    })
}

/// How many calls were submitted to the queue and not fetched from it. At 0 nothing will come.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_queue_outstanding(
    queue: *const te_queue,
    outstanding: *mut usize,
) -> te_status {
    guard(|| {
        let out = Out::new(outstanding, "outstanding", 0)?;
        out.put(hold(queue)?.queue.outstanding());
        Ok(())
    })
}

/// Frees a queue. NULL does nothing. Calls that were submitted to it go on, and how they end is
/// not told. A thread that waits in te_queue_next() goes on waiting, unharmed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn te_queue_free(queue: *mut te_queue) {
    free(queue, |_| ());
}
