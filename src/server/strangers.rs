//! Connections that have not been admitted to anything yet: how many there are, for how long, and
//! which of them gives way to a new one.
//!
//! Every program that can reach the port can be a stranger, so strangers get little: some places, a
//! few seconds to send the head of a request, and no more memory than that head. A connection
//! whose request is admitted (`door`) is none any more, and leaves its place.
//!
//! # When all places are taken
//! the connection that has been a stranger for longest is closed for a new one, but not before it
//! had [`GRACE`]: a client's first request takes a moment when a thousand of them connect at once.
//! Until then the new one waits. So a flood of silent connections delays clients by about that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How long a stranger keeps its place, even if another connection wants one.
const GRACE: Duration = Duration::from_secs(1);

/// The most strangers at once: with the largest head that is read, 64 MiB.
const MOST: usize = 2_048;

/// How many strangers a server may have: at most half of its connections, and of the descriptors
/// that the process may open.
pub(crate) fn most_strangers(max_connections: usize, descriptors: Option<u64>) -> usize {
    let descriptors =
        descriptors.and_then(|number| usize::try_from(number).ok()).unwrap_or(usize::MAX);
    (max_connections.min(descriptors) / 2).clamp(1, MOST)
}

/// How many descriptors this process may have open, if there is a limit that is known.
pub(crate) fn descriptor_limit() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    #[cfg(not(target_os = "linux"))]
    None
}

/// Who holds the places: a pure data structure.
#[derive(Debug)]
struct Places<T> {
    most: usize,
    next: u64,
    /// In the order of their entry.
    held: BTreeMap<u64, (Instant, T)>,
}

/// What came of the wish to enter.
#[derive(Debug, PartialEq)]
enum Entry<T> {
    /// In, under this number, and in place of that one.
    Entered(u64, Option<T>),
    /// Not before then, unless one leaves.
    Full(Instant),
}

impl<T> Places<T> {
    fn new(most: usize) -> Self {
        Self { most, next: 0, held: BTreeMap::new() }
    }

    fn enter(&mut self, now: Instant, who: impl FnOnce() -> T) -> Entry<T> {
        let mut evicted = None;
        if self.held.len() >= self.most
            && let Some(oldest) = self.held.first_entry()
        {
            let until = oldest.get().0 + GRACE;
            if now < until {
                return Entry::Full(until);
            }
            evicted = Some(oldest.remove().1);
        }
        let number = self.next;
        self.next += 1;
        self.held.insert(number, (now, who()));
        Entry::Entered(number, evicted)
    }

    fn leave(&mut self, number: u64) {
        self.held.remove(&number);
    }
}

/// The strangers of a server.
#[derive(Debug)]
pub(crate) struct Strangers {
    places: Mutex<Places<Arc<Standing>>>,
    /// Told when a place is free.
    left: Notify,
}

impl Strangers {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { places: Mutex::new(Places::new(most)), left: Notify::new() })
    }

    /// Waits for a place for a new connection, at the expense of an old one if it must be. Only one
    /// may wait at a time.
    pub(crate) async fn enter(self: &Arc<Self>) -> Visit {
        loop {
            let now = Instant::now();
            let standing = || Standing::new(now);
            let mut entered = None;
            let entry = self.places.lock().enter(now, || entered.insert(standing()).clone());
            match (entry, entered) {
                (Entry::Entered(number, evicted), Some(standing)) => {
                    if let Some(evicted) = evicted {
                        log::debug!("a connection without a token gives way to a new one");
                        evicted.close(true);
                    }
                    return Visit { strangers: self.clone(), number, standing };
                }
                (Entry::Full(until), _) => {
                    let _ = tokio::time::timeout_at(until.into(), self.left.notified()).await;
                }
                // Who entered has a standing.
                (Entry::Entered(number, _), None) => self.places.lock().leave(number),
            }
        }
    }

    /// Closes all but those that are being answered.
    pub(crate) fn close(&self) {
        for (_, standing) in self.places.lock().held.values() {
            standing.close(false);
        }
    }

    fn leave(&self, number: u64) {
        self.places.lock().leave(number);
        self.left.notify_one();
    }
}

/// What a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A stranger, which has said nothing since then.
    Silent(Instant),
    /// A stranger that is being answered.
    Answering,
    /// Admitted.
    Known,
    /// To be closed.
    Closed,
}

/// What a connection is to its server.
#[derive(Debug)]
pub(crate) struct Standing {
    state: Mutex<State>,
    changed: Notify,
}

impl Standing {
    fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::Silent(now)), changed: Notify::new() })
    }

    /// Changes the state; whether that made a difference.
    fn set(&self, change: impl FnOnce(State) -> State) -> bool {
        let mut state = self.state.lock();
        let new = change(*state);
        let is_new = new != *state;
        if is_new {
            *state = new;
            self.changed.notify_one();
        }
        is_new
    }

    fn close(&self, also_answering: bool) {
        self.set(|state| match state {
            State::Silent(_) => State::Closed,
            State::Answering if also_answering => State::Closed,
            state => state,
        });
    }
}

/// A connection's place among the strangers, and what it is; dropped, the place is free.
#[derive(Debug)]
pub(crate) struct Visit {
    strangers: Arc<Strangers>,
    number: u64,
    standing: Arc<Standing>,
}

impl Visit {
    /// A request's head is there; whether it was admitted.
    pub(crate) fn asked(&self, admitted: bool) {
        let is_new = self.standing.set(|state| match state {
            State::Closed | State::Known => state,
            _ if admitted => State::Known,
            _ => State::Answering,
        });
        if is_new && admitted {
            self.strangers.leave(self.number);
        }
    }

    /// A request's answer is ready.
    pub(crate) fn answered(&self, now: Instant) {
        self.standing
            .set(|state| if state == State::Answering { State::Silent(now) } else { state });
    }

    /// Comes back when the connection is to be closed: it was silent for longer than `patience`
    /// while it was a stranger, or has to give way.
    pub(crate) async fn is_over(&self, patience: Duration) {
        let Standing { state, changed } = &*self.standing;
        loop {
            let now = *state.lock();
            match now {
                State::Closed => return,
                State::Silent(since) => {
                    let until = (since + patience).into();
                    let silent = tokio::time::timeout_at(until, changed.notified()).await.is_err();
                    if silent && *state.lock() == now {
                        return;
                    }
                }
                State::Answering | State::Known => changed.notified().await,
            }
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.strangers.leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes and goes: never too many, only the oldest gives way, only after its
        /// grace, and no new one waits for longer than that.
        #[test]
        fn places_are_held_by_the_latest(
            most in 1usize..5,
            steps in proptest::collection::vec((0u64..700, proptest::option::of(0u64..20)), 0..60),
        ) {
            let mut now = Instant::now();
            let mut places = Places::new(most);
            // In the order of their entry.
            let mut inside: Vec<(u64, Instant)> = Vec::new();
            for (pause, leaves) in steps {
                now += Duration::from_millis(pause);
                if let Some(number) = leaves {
                    places.leave(number);
                    inside.retain(|(own, _)| *own != number);
                    continue;
                }
                let oldest = inside.first().copied();
                match places.enter(now, || now) {
                    Entry::Entered(number, evicted) => {
                        prop_assert_eq!(evicted.is_some(), inside.len() == most);
                        if evicted.is_some() {
                            let (_, since) = inside.remove(0);
                            prop_assert_eq!(evicted, Some(since));
                            prop_assert!(now >= since + GRACE);
                        }
                        inside.push((number, now));
                    }
                    Entry::Full(until) => {
                        prop_assert_eq!(inside.len(), most);
                        prop_assert_eq!(Some(until), oldest.map(|(_, since)| since + GRACE));
                        prop_assert!(now < until);
                    }
                }
                prop_assert_eq!(places.held.len(), inside.len());
            }
        }
    }

    #[test]
    fn strangers_are_at_most_half_of_what_there_is() {
        for (connections, descriptors, most) in [
            (16_384, Some(1_024), 512),
            (100, Some(1_024), 50),
            (16_384, Some(1 << 20), MOST),
            (16_384, None, MOST),
            (1, Some(3), 1),
        ] {
            assert_eq!(most_strangers(connections, descriptors), most);
        }
    }

    #[test]
    fn the_oldest_gives_way_after_its_grace_and_who_left_is_not_in_the_way() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let mut places = Places::new(2);
        assert_eq!(places.enter(at(0), || 'a'), Entry::Entered(0, None));
        assert_eq!(places.enter(at(400), || 'b'), Entry::Entered(1, None));
        assert_eq!(places.enter(at(999), || 'c'), Entry::Full(at(1_000)));
        assert_eq!(places.enter(at(1_000), || 'c'), Entry::Entered(2, Some('a')));
        assert_eq!(places.enter(at(1_001), || 'd'), Entry::Full(at(1_400)));
        places.leave(1);
        places.leave(0);
        assert_eq!(places.enter(at(1_001), || 'd'), Entry::Entered(3, None));
        assert_eq!(places.held.len(), 2);
    }
}
