//! What callers want of a trajectory besides calls – that it be released, cancelled, or read – on
//! its way to the batcher. So many such orders may be on their way, and more wait for room: the
//! batcher never waits, so that is a matter of moments.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::gate::Gate;

/// How many orders may be on their way.
const AT_ONCE: usize = 4096;
/// How long an order waits for room. It goes on its way then all the same: it is not lost, and so
/// slow a flow of them is no flood.
const WAIT: Duration = Duration::from_secs(5);

/// Counts the orders on their way.
#[derive(Debug)]
pub(crate) struct Orders(Arc<Gate>);

/// An order's place among them; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct OrderPlace(Option<Arc<Gate>>);

impl Orders {
    /// None is on its way.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Gate::new(AT_ONCE)))
    }

    /// A place for one more. May block for a moment.
    pub(crate) fn enter(&self) -> OrderPlace {
        match self.0.enter(Some(Instant::now() + WAIT)) {
            Ok(()) => OrderPlace(Some(self.0.clone())),
            Err(_) => OrderPlace(None),
        }
    }

    /// How many are on their way.
    #[cfg(test)]
    pub(crate) fn on_their_way(&self) -> usize {
        self.0.inside()
    }
}

impl OrderPlace {
    /// Of an order that takes no place.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(None)
    }
}

impl Drop for OrderPlace {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            gate.leave(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::executor::ToolExecutor;
    use crate::tool::{ToolCall, ToolRegistry, ToolSchema};

    #[test]
    fn an_order_has_its_place_until_the_batcher_has_it() {
        let executor = ToolExecutor::builder().start().unwrap();
        for _ in 0..3 * AT_ONCE {
            executor.submit_release("t");
            executor.cancel_trajectory("t");
        }
        // Answered when the batcher has seen all of them.
        executor.stats();
        assert_eq!(executor.orders.on_their_way(), 0);
    }

    #[test]
    fn releases_and_cancels_of_a_trajectory_whose_call_runs_do_not_pile_up() {
        let (go_on, wait) = bounded::<()>(0);
        let mut registry = ToolRegistry::builtin();
        let waits = move |_: &_, _: &_| {
            let _ = wait.recv();
            Ok(String::new())
        };
        registry.register_fn(ToolSchema::new("wait", "Waits."), waits).unwrap();
        let executor = ToolExecutor::builder().registry(registry).start().unwrap();
        let running = executor.submit("t", ToolCall::new("wait", serde_json::json!({}))).unwrap();
        for _ in 0..2 * AT_ONCE {
            executor.submit_release("t");
        }
        let queued = executor.submit("t", ToolCall::new("wait", serde_json::json!({}))).unwrap();
        for _ in 0..2 * AT_ONCE {
            queued.cancel();
        }
        executor.stats();
        assert_eq!(executor.orders.on_their_way(), 0);
        assert!(queued.is_done());
        drop(go_on);
        assert!(running.wait().success);
        assert_eq!(executor.release("t"), Ok(()));
    }

    #[test]
    fn an_order_that_finds_no_room_waits_for_it() {
        let orders = Orders::new();
        let places: Vec<_> = (0..AT_ONCE).map(|_| orders.enter()).collect();
        std::thread::scope(|scope| {
            let (entered, seen) = bounded(1);
            let orders = &orders;
            scope.spawn(move || entered.send(orders.enter()).unwrap());
            assert!(seen.recv_timeout(Duration::from_millis(5)).is_err());
            drop(places);
            assert!(seen.recv_timeout(Duration::from_secs(30)).unwrap().0.is_some());
        });
        assert_eq!(orders.on_their_way(), 0);
    }
}
