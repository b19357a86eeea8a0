//! One at a time, in order of arrival: the queue before a slot.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

/// How many may wait before one slot.
pub(crate) const MOST_WAITING: usize = 1_024;

/// What runs when its turn comes. It runs on the thread that enters, or on that of the one who
/// leaves before it; so it should do little, and must not block.
type Turn = Box<dyn FnOnce(Inside) + Send>;

/// Lets one in at a time, in order of arrival. Clones are the same fifo_lock.
#[derive(Clone, Default)]
pub(crate) struct FifoLock(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    occupied: bool,
    waiting: VecDeque<Turn>,
}

/// Being inside. Dropping it lets the next one in.
pub(crate) struct Inside(FifoLock);

/// Too many wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crowded;

impl FifoLock {
    /// Calls `turn` when those before have left: now, if the lock is free. Does not block.
    ///
    /// # Errors
    /// [`MOST_WAITING`] wait already; `turn` is dropped.
    pub(crate) fn enter(&self, turn: impl FnOnce(Inside) + Send + 'static) -> Result<(), Crowded> {
        let mut state = self.0.lock();
        if state.occupied {
            if state.waiting.len() >= MOST_WAITING {
                return Err(Crowded);
            }
            state.waiting.push_back(Box::new(turn));
            return Ok(());
        }
        state.occupied = true;
        drop(state);
        turn(Inside(self.clone()));
        Ok(())
    }

    /// Whether the lock is held.
    #[cfg(test)]
    pub(crate) fn is_occupied(&self) -> bool {
        self.0.lock().occupied
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let next = {
            let mut state = self.0.0.lock();
            let next = state.waiting.pop_front();
            state.occupied = next.is_some();
            next
        };
        if let Some(next) = next {
            next(Inside(self.0.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_one_at_a_time_in_order_of_arrival() {
        let fifo_lock = FifoLock::default();
        let (tx, rx) = crossbeam_channel::unbounded();
        for number in 0..3 {
            let tx = tx.clone();
            fifo_lock.enter(move |inside| tx.send((number, inside)).unwrap()).unwrap();
        }
        for number in 0..3 {
            let (turn, inside) = rx.try_recv().unwrap();
            assert_eq!(turn, number);
            assert!(rx.try_recv().is_err() && fifo_lock.is_occupied());
            drop(inside);
        }
        assert!(!fifo_lock.is_occupied());
    }

    #[test]
    fn a_crowd_is_turned_away() {
        let fifo_lock = FifoLock::default();
        let (tx, rx) = crossbeam_channel::unbounded();
        fifo_lock.enter(move |inside| tx.send(inside).unwrap()).unwrap();
        for _ in 0..MOST_WAITING {
            fifo_lock.enter(drop).unwrap();
        }
        assert_eq!(fifo_lock.enter(drop), Err(Crowded));
        // All of them leave at once, each from within the one before.
        drop(rx.recv().unwrap());
        assert!(!fifo_lock.is_occupied());
    }
}
