//! Whose connection is accepted, and whose name is looked up next. Pure.
//!
//! What one machine may have leaves the others theirs: each has a few connections that no other
//! can take, and the look-ups of one machine never occupy all threads.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// How much there may be of everything, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Connections of one machine.
    pub(super) of_machine: usize,
    /// Connections that a machine may have however many there are in all.
    pub(super) guaranteed: usize,
    /// Connections in all, beyond those that are guaranteed.
    pub(super) in_all: usize,
    /// Look-ups at a time.
    pub(super) look_ups: usize,
    /// Look-ups of one machine at a time.
    pub(super) look_ups_of_machine: usize,
    /// How long a request's head may take.
    pub(super) head: Duration,
    /// How long a name's look-up may take, the wait for its turn included.
    pub(super) look_up: Duration,
    /// How long the connection to one address may take.
    pub(super) connect: Duration,
    /// How long nothing may pass.
    pub(super) idle: Duration,
    /// How long an answer of the proxy's own, and the end of a connection, may take.
    pub(super) goodbye: Duration,
}

const OF_MACHINE: usize = 64;
const GUARANTEED: usize = 4;
const MOST_IN_ALL: usize = 1024;

impl Bounds {
    /// Those of an engine with so many slots.
    pub(super) fn usual(slots: usize) -> Self {
        Self {
            of_machine: OF_MACHINE,
            guaranteed: GUARANTEED,
            in_all: in_all(slots),
            look_ups: 64,
            look_ups_of_machine: 2,
            head: Duration::from_secs(10),
            look_up: Duration::from_secs(15),
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            goodbye: Duration::from_secs(5),
        }
    }

    /// Whether a machine with so many connections may have another one, where there are so many in
    /// all.
    pub(super) fn may_accept(&self, of_machine: usize, in_all: usize) -> bool {
        of_machine < self.of_machine && (of_machine < self.guaranteed || in_all < self.in_all)
    }
}

fn in_all(slots: usize) -> usize {
    slots.saturating_mul(OF_MACHINE).min(MOST_IN_ALL)
}

/// How many descriptors the proxy of so many slots may hold, beside the listening sockets: two a
/// connection, two a look-up, its epoll, its event and a spare one.
pub(crate) fn descriptors(slots: usize) -> u64 {
    let connections = in_all(slots) + slots.saturating_mul(GUARANTEED);
    let look_ups = Bounds::usual(slots).look_ups;
    2 * (connections + look_ups) as u64 + 3
}

/// The look-ups that wait and run.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The machine, the connection and the name.
    waiting: VecDeque<(u64, u64, String)>,
    running: usize,
    of_machine: HashMap<u64, usize>,
}

impl Turns {
    /// A machine's connection waits for this name.
    pub(super) fn wait(&mut self, machine: u64, connection: u64, name: String) {
        self.waiting.push_back((machine, connection, name));
    }

    /// The next machine, connection and name whose turn it is, which runs from now on.
    pub(super) fn next(&mut self, bounds: &Bounds) -> Option<(u64, u64, String)> {
        if self.running >= bounds.look_ups {
            return None;
        }
        let running = |machine: &u64| self.of_machine.get(machine).copied().unwrap_or(0);
        let at = self
            .waiting
            .iter()
            .position(|(machine, ..)| running(machine) < bounds.look_ups_of_machine)?;
        let next = self.waiting.remove(at)?;
        self.running += 1;
        *self.of_machine.entry(next.0).or_default() += 1;
        Some(next)
    }

    /// One of a machine's has ended.
    pub(super) fn ended(&mut self, machine: u64) {
        self.running = self.running.saturating_sub(1);
        if let Some(running) = self.of_machine.get_mut(&machine) {
            *running = running.saturating_sub(1);
            if *running == 0 {
                self.of_machine.remove(&machine);
            }
        }
    }

    /// A connection waits no longer.
    pub(super) fn forget(&mut self, connection: u64) {
        self.waiting.retain(|(_, waiting, _)| *waiting != connection);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds() -> Bounds {
        Bounds {
            of_machine: 5,
            guaranteed: 2,
            in_all: 8,
            look_ups: 3,
            look_ups_of_machine: 2,
            ..Bounds::usual(1)
        }
    }

    #[test]
    fn a_machine_has_its_own_connections_whatever_the_others_have() {
        let bounds = bounds();
        for (of_machine, in_all, expected) in
            [(0, 0, true), (4, 7, true), (5, 5, false), (2, 8, false), (1, 8, true), (1, 99, true)]
        {
            assert_eq!(bounds.may_accept(of_machine, in_all), expected);
        }
        assert!(descriptors(1) > 2 * 64 && descriptors(1000) < 12_000);
    }

    proptest! {
        #[test]
        fn look_ups_are_bounded_and_none_is_forgotten(
            steps in proptest::collection::vec((0u64..4, any::<bool>()), 1..80),
        ) {
            let (bounds, mut turns, mut running) = (bounds(), Turns::default(), Vec::new());
            let (mut asked, mut begun) = (0, 0);
            for (machine, is_asked) in steps {
                if is_asked {
                    turns.wait(machine, asked, String::new());
                    asked += 1;
                } else if !running.is_empty() {
                    turns.ended(running.remove(0));
                }
                while let Some((machine, ..)) = turns.next(&bounds) {
                    begun += 1;
                    running.push(machine);
                }
                prop_assert!(running.len() <= bounds.look_ups);
                for one in 0..4 {
                    let own = running.iter().filter(|machine| **machine == one).count();
                    prop_assert!(own <= bounds.look_ups_of_machine);
                    let waits = turns.waiting.iter().any(|(machine, ..)| *machine == one);
                    // It waits only for itself, or for a thread.
                    prop_assert!(!waits || own == bounds.look_ups_of_machine
                        || running.len() == bounds.look_ups);
                }
            }
            while !running.is_empty() {
                turns.ended(running.remove(0));
                while let Some((machine, ..)) = turns.next(&bounds) {
                    begun += 1;
                    running.push(machine);
                }
            }
            prop_assert_eq!(begun, asked);
        }
    }
}
