//! Waiting for events, as both threads of the engine do it, and which of them come before a
//! deadline.
//!
//! A thread may be late, by any time: it was busy, or its process was stopped, or frozen with its
//! machine. What has happened by then comes before what is due by then. Otherwise a command that
//! has ended in time would be one whose time is up, and a sandbox that is gone one that does not
//! end. That an `epoll_wait` gave no event says nothing of that: a process that is stopped and
//! continued finds its wait interrupted, whatever is there.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;

/// How many events are taken at a time.
pub(super) const EVENTS_PER_TURN: usize = 128;
/// No program is watched by more descriptors than this.
const DESCRIPTORS_OF_A_PROGRAM: usize = 12;

/// Waits for events, until `next` is due or for `longest`, if there are these. Adds them to
/// `events`, which has room for [`EVENTS_PER_TURN`].
pub(super) fn wait(
    epoll: &OwnedFd,
    events: &mut Vec<epoll::Event>,
    longest: Option<Duration>,
    next: Option<Instant>,
) {
    let now = Instant::now();
    let next = next.map(|due| {
        // Up to the next whole millisecond: epoll counts in those, and waking up before the
        // deadline is of no use.
        let left = due.saturating_duration_since(now);
        Duration::from_millis(left.as_nanos().div_ceil(1_000_000) as u64)
    });
    let timeout = longest.into_iter().chain(next).min();
    let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
    match epoll::wait(epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => {
            // Not possible with valid arguments; if it happens, deadlines must still be kept.
            log::error!("cannot wait for events: {error}");
            #[expect(
                clippy::disallowed_methods,
                reason = "it must not spin where it cannot wait for events"
            )]
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Takes events that are there already, as [`wait`]. Whether these are all that were there: those
/// of descriptors that stay ready come again, after all others.
pub(super) fn take_waiting(epoll: &OwnedFd, events: &mut Vec<epoll::Event>) -> bool {
    wait(epoll, events, Some(Duration::ZERO), None);
    events.len() < EVENTS_PER_TURN
}

/// How often [`take_waiting`] must be called to have seen an event of each descriptor that had one,
/// where so many programs are watched, however many of them stay ready.
pub(super) fn most_rounds(programs: usize) -> usize {
    programs.saturating_mul(DESCRIPTORS_OF_A_PROGRAM) / EVENTS_PER_TURN + 1
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::sandbox::spawn;

    #[test]
    fn every_descriptor_that_is_ready_is_seen_though_all_of_them_stay_ready() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let programs = 60;
        let pipes: Vec<_> = (0..programs * DESCRIPTORS_OF_A_PROGRAM)
            .map(|number| {
                let (reader, writer) = spawn::pipe().unwrap();
                let data = epoll::EventData::new_u64(number as u64);
                epoll::add(&epoll, &reader, data, epoll::EventFlags::IN).unwrap();
                rustix::io::write(&writer, b"x").unwrap();
                (reader, writer)
            })
            .collect();
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let mut seen = HashSet::new();
        for _ in 0..most_rounds(programs) {
            let is_all = take_waiting(&epoll, &mut events);
            assert!(!is_all && events.len() == EVENTS_PER_TURN);
            seen.extend(events.drain(..).map(|event| event.data.u64()));
        }
        assert_eq!(seen.len(), pipes.len());
        for (reader, _) in &pipes {
            epoll::delete(&epoll, reader).unwrap();
        }
        assert!(take_waiting(&epoll, &mut events) && events.is_empty());
    }

    #[test]
    fn a_deadline_that_is_over_and_no_time_at_all_do_not_wait() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let began = Instant::now();
        wait(&epoll, &mut events, None, Some(began));
        wait(&epoll, &mut events, Some(Duration::from_secs(60)), Some(began));
        wait(&epoll, &mut events, Some(Duration::ZERO), None);
        wait(&epoll, &mut events, None, Some(began + Duration::from_millis(5)));
        assert!(began.elapsed() >= Duration::from_millis(5));
    }
}
