//! The executor's door: how many accepted calls may be waiting to run, and whether it is open.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Why the gate let a call not in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

/// Counts the calls that were accepted and do not run yet, wherever they wait. A call enters
/// before it is queued and leaves when it is handed to its backend, or ends without.
#[derive(Debug)]
pub(crate) struct Gate {
    capacity: usize,
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Debug)]
struct State {
    inside: usize,
    waiting: usize,
    closed: bool,
}

impl Gate {
    /// An open gate for `capacity` calls.
    pub(crate) fn new(capacity: usize) -> Self {
        let state = State { inside: 0, waiting: 0, closed: false };
        Self { capacity, state: Mutex::new(state), room: Condvar::new() }
    }

    /// Lets a call in; waits for room until `deadline`, or not at all without one.
    pub(crate) fn enter(&self, deadline: Option<Instant>) -> Result<(), Refused> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return Err(Refused::Closed);
            }
            if state.inside < self.capacity {
                state.inside += 1;
                return Ok(());
            }
            let Some(deadline) = deadline else { return Err(Refused::Full) };
            state.waiting += 1;
            let timed_out = self.room.wait_until(&mut state, deadline).timed_out();
            state.waiting -= 1;
            if timed_out && state.inside >= self.capacity && !state.closed {
                return Err(Refused::Full);
            }
        }
    }

    /// `count` calls have left. Tells whether the gate is closed: then the closing may be waiting
    /// for it to be empty.
    pub(crate) fn leave(&self, count: usize) -> bool {
        let mut state = self.state.lock();
        debug_assert!(state.inside >= count);
        state.inside = state.inside.saturating_sub(count);
        for _ in 0..state.waiting.min(count) {
            self.room.notify_one();
        }
        state.closed
    }

    /// Lets no call in any more, and sends away those who wait. `false` if it was closed before.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.state.lock();
        let was_open = !state.closed;
        state.closed = true;
        self.room.notify_all();
        was_open
    }

    /// How many calls are inside.
    pub(crate) fn inside(&self) -> usize {
        self.state.lock().inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_full_gate_refuses_at_once_or_at_the_deadline() {
        let gate = Gate::new(1);
        gate.enter(None).unwrap();
        assert_eq!(gate.enter(None), Err(Refused::Full));
        let soon = Instant::now() + Duration::from_millis(2);
        assert_eq!(gate.enter(Some(soon)), Err(Refused::Full));
        gate.leave(1);
        gate.enter(None).unwrap();
    }

    #[test]
    fn whoever_waits_is_let_in_when_somebody_leaves_and_sent_away_when_it_closes() {
        let gate = Arc::new(Gate::new(1));
        gate.enter(None).unwrap();
        let far = Instant::now() + Duration::from_secs(60);
        for leave in [true, false] {
            let waiter = thread::spawn({
                let gate = gate.clone();
                move || gate.enter(Some(far))
            });
            while gate.state.lock().waiting == 0 {
                thread::yield_now();
            }
            if leave {
                gate.leave(1);
                assert_eq!(waiter.join().unwrap(), Ok(()));
            } else {
                gate.close();
                assert_eq!(waiter.join().unwrap(), Err(Refused::Closed));
            }
        }
    }
}
