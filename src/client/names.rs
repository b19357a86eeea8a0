//! Names of hosts, looked up by threads of their own.
//!
//! The system's look-up has no deadline and cannot be stopped, and the usual answer to that – a
//! thread for every request – costs more than the request. So a look-up runs beside the requests:
//! who needs an address that is not known waits for it, with a deadline, and an address that is
//! known is used while it is looked up again. A name server that is slow, silent or gone costs
//! nothing but the news.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::thread::OwnedThread;
use crate::workers::guarded;

/// How long an address is used before it is looked up again.
const FRESH: Duration = Duration::from_secs(60);
/// How long after a look-up of a known name failed there is another.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How long the look-up of a known name may take before that is said.
const SLOW: Duration = Duration::from_secs(10);
/// How many look-ups run at a time; others wait their turn.
const AT_ONCE: usize = 16;
/// How many addresses of a name are tried.
const ADDRESSES: usize = 8;

/// Looks one name up, as `host:port`. Blocks, for as long as it likes.
type LookUp = dyn Fn(&str) -> std::io::Result<Vec<SocketAddr>> + Send + Sync;

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NameError {
    /// There is none of that name, says the system.
    NotFound(String),
    /// The look-up did not end in time. It goes on.
    Slow,
    /// The wait was given up.
    GivenUp,
}

/// The addresses of some servers' names. Its clones share them.
#[derive(Clone)]
pub(crate) struct Names {
    owner: Arc<Owner>,
}

/// What the clones share, and no thread does: its drop is the end of them all.
struct Owner {
    shared: Arc<Shared>,
}

struct Shared {
    look_up: Box<LookUp>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    hosts: HashMap<String, Host>,
    /// Those that wait for a thread. Each host is there once at most.
    queue: VecDeque<String>,
    /// How many threads look up.
    running: usize,
    /// The threads, among them some that have ended.
    threads: Vec<OwnedThread>,
    /// How often those who wait were told to give up.
    given_up: u64,
}

/// What is known of one name.
#[derive(Debug, Default)]
struct Host {
    /// Never empty, if there are some.
    known: Option<Arc<[SocketAddr]>>,
    /// Since when a look-up waits or runs.
    looked_up_since: Option<Instant>,
    /// Whether it was said that this takes long.
    is_slow_said: bool,
    /// How the last look-up ended, and when.
    last: Option<(Instant, Result<(), String>)>,
    /// How many look-ups have ended.
    ended: u64,
}

/// What is to be done for who needs an address.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    /// The known addresses will do.
    Nothing,
    /// The known addresses will do; they are to be looked up again.
    News,
    /// There is nothing to go on with before a look-up has ended.
    Address,
}

impl Host {
    fn need(&self, now: Instant) -> Need {
        if self.known.is_none() {
            return Need::Address;
        }
        let due = match &self.last {
            Some((at, Ok(()))) => *at + FRESH,
            Some((at, Err(_))) => *at + AFTER_FAILURE,
            None => now,
        };
        if now < due || self.looked_up_since.is_some() { Need::Nothing } else { Need::News }
    }

    /// Whether it is to be said now that the look-up of a known name takes long.
    fn take_slow(&mut self, now: Instant) -> bool {
        let is_slow = self.looked_up_since.is_some_and(|since| now >= since + SLOW);
        is_slow && self.known.is_some() && !std::mem::replace(&mut self.is_slow_said, true)
    }

    /// A look-up has ended. What was known stays, unless there is something better.
    fn learn(&mut self, now: Instant, found: Result<Vec<SocketAddr>, String>) {
        let found = found.and_then(|found| {
            if found.is_empty() { Err("it has no address".to_owned()) } else { Ok(found) }
        });
        (self.looked_up_since, self.is_slow_said) = (None, false);
        self.ended += 1;
        self.last = Some((now, found.map(|found| self.known = Some(found.into()))));
    }
}

impl Names {
    /// None is known yet; names are looked up as the system does it.
    pub(crate) fn new() -> Self {
        Self::with(|host| Ok(host.to_socket_addrs()?.take(ADDRESSES).collect()))
    }

    /// The same with another way to look names up.
    fn with(
        look_up: impl Fn(&str) -> std::io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        let look_up = Box::new(look_up);
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { look_up, state, changed });
        Self { owner: Arc::new(Owner { shared }) }
    }

    /// The addresses of `host`, which is `name:port`. Blocks until `deadline` at most, and not at
    /// all where some are known.
    ///
    /// # Errors
    /// None is known, and none was found in time.
    pub(crate) fn addresses(
        &self,
        host: &str,
        deadline: Instant,
    ) -> Result<Arc<[SocketAddr]>, NameError> {
        if let Ok(address) = host.parse::<SocketAddr>() {
            return Ok([address].into());
        }
        let shared = &self.owner.shared;
        let mut state = shared.state.lock();
        let now = Instant::now();
        let entry = state.hosts.entry(host.to_owned()).or_default();
        let is_slow = entry.take_slow(now);
        if entry.need(now) != Need::Nothing {
            self.look_up(&mut state, host, now);
        }
        let (ended, given_up) = (state.hosts[host].ended, state.given_up);
        loop {
            let entry = &state.hosts[host];
            if let Some(known) = entry.known.clone() {
                // Not under the lock: the log may block.
                drop(state);
                if is_slow {
                    log::warn!("the look-up of {host} takes long; its last known address is used");
                }
                return Ok(known);
            }
            // The end of a look-up that was under way before counts, too.
            if entry.ended != ended
                && let Some((_, Err(why))) = &entry.last
            {
                return Err(NameError::NotFound(why.clone()));
            }
            if state.given_up != given_up {
                return Err(NameError::GivenUp);
            }
            if Instant::now() >= deadline {
                return Err(NameError::Slow);
            }
            shared.changed.wait_until(&mut state, deadline);
        }
    }

    /// Has those who wait for an address give up. The look-ups go on.
    pub(crate) fn give_up(&self) {
        self.owner.shared.state.lock().given_up += 1;
        self.owner.shared.changed.notify_all();
    }

    /// Has a name looked up, if that is not under way.
    fn look_up(&self, state: &mut State, host: &str, now: Instant) {
        let Some(entry) = state.hosts.get_mut(host) else { return };
        if entry.looked_up_since.is_some() {
            return;
        }
        entry.looked_up_since = Some(now);
        state.queue.push_back(host.to_owned());
        if state.running >= AT_ONCE {
            return;
        }
        state.threads.retain_mut(|thread| !thread.join_until(now));
        let shared = self.owner.shared.clone();
        match OwnedThread::spawn("tool-lookup", move || shared.run()) {
            Ok(thread) => {
                state.threads.push(thread);
                state.running += 1;
            }
            // Those that run will get to it; else it has failed.
            Err(error) if state.running == 0 => {
                state.queue.clear();
                let why = format!("there is no thread to look its name up: {error}");
                for entry in
                    state.hosts.values_mut().filter(|entry| entry.looked_up_since.is_some())
                {
                    entry.learn(now, Err(why.clone()));
                }
            }
            Err(_) => {}
        }
    }
}

impl Shared {
    /// A thread's life: one look-up after the other, while there are some.
    fn run(&self) {
        loop {
            let host = {
                let mut state = self.state.lock();
                let Some(host) = state.queue.pop_front() else {
                    state.running -= 1;
                    return;
                };
                host
            };
            let found = guarded(|| (self.look_up)(&host));
            let found = match found {
                Ok(found) => found.map_err(|error| error.to_string()),
                Err(panic) => Err(format!("the look-up panicked: {panic}")),
            };
            let news = {
                let mut state = self.state.lock();
                let Some(entry) = state.hosts.get_mut(&host) else { continue };
                // A name that was never known fails the request that needs it, which is enough.
                let is_known = entry.known.is_some();
                let before = entry.last.as_ref().map(|(_, last)| last.is_ok());
                entry.learn(Instant::now(), found);
                self.changed.notify_all();
                match &entry.last {
                    Some((_, Err(why))) if is_known && before == Some(true) => {
                        Some(Err(why.clone()))
                    }
                    Some((_, Ok(()))) if is_known && before == Some(false) => Some(Ok(())),
                    _ => None,
                }
            };
            match news {
                Some(Err(why)) => log::warn!(
                    "the name of {host} cannot be looked up: {why}; its last known address is used"
                ),
                Some(Ok(())) => log::info!("the name of {host} is found again"),
                None => {}
            }
        }
    }
}

impl Drop for Owner {
    /// No look-up begins any more. One that hangs is left behind: the system gives no way to end
    /// it.
    fn drop(&mut self) {
        let threads = {
            let mut state = self.shared.state.lock();
            state.queue.clear();
            std::mem::take(&mut state.threads)
        };
        let now = Instant::now();
        for mut thread in threads {
            if !thread.join_until(now) {
                thread.detach();
            }
        }
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names(…)")
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, Sender, bounded};

    use super::*;

    const HOST: &str = "box.example:80";

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// Each look-up says that it has begun, and waits for what it is to find.
    fn by_hand() -> (Names, Receiver<String>, Sender<std::io::Result<Vec<SocketAddr>>>) {
        let (begin, begun) = bounded(AT_ONCE * 2);
        let (answer, answers) = bounded(0);
        let names = Names::with(move |host| {
            begin.send(host.to_owned()).unwrap();
            answers.recv().unwrap_or_else(|_| Err(std::io::Error::other("the test is over")))
        });
        (names, begun, answer)
    }

    /// Lets the time pass after which addresses are looked up again.
    fn age(names: &Names) {
        for entry in names.owner.shared.state.lock().hosts.values_mut() {
            if let Some((at, _)) = &mut entry.last {
                *at -= FRESH;
            }
        }
    }

    #[test]
    fn an_address_needs_no_look_up() {
        let names = Names::with(|_| panic!("expected by no test"));
        assert_eq!(*names.addresses("10.0.0.1:80", soon()).unwrap(), [address(1)]);
        assert_eq!(names.addresses("[::1]:8", soon()).unwrap()[0].port(), 8);
    }

    #[test]
    fn those_who_need_a_name_at_once_share_one_look_up() {
        let (names, begun, answer) = by_hand();
        std::thread::scope(|scope| {
            let asking: Vec<_> =
                (0..4).map(|_| scope.spawn(|| names.addresses(HOST, soon()).unwrap())).collect();
            assert_eq!(begun.recv().unwrap(), HOST);
            answer.send(Ok(vec![address(1)])).unwrap();
            for thread in asking {
                assert_eq!(*thread.join().unwrap(), [address(1)]);
            }
        });
        assert!(begun.try_recv().is_err());
    }

    #[test]
    fn a_known_address_is_used_while_a_look_up_hangs_or_fails() {
        let (names, begun, answer) = by_hand();
        let first = std::thread::scope(|scope| {
            let first = scope.spawn(|| names.addresses(HOST, soon()));
            answer.send(Ok(vec![address(1)])).unwrap();
            first.join().unwrap()
        });
        assert_eq!(*first.unwrap(), [address(1)]);
        begun.recv().unwrap();
        age(&names);
        // The look-up of this one hangs; those after it begin no other.
        for _ in 0..3 {
            assert_eq!(*names.addresses(HOST, Instant::now()).unwrap(), [address(1)]);
        }
        begun.recv().unwrap();
        answer.send(Err(std::io::Error::other("no such name"))).unwrap();
        age(&names);
        // It has failed, or is about to: what is known stays known.
        assert_eq!(*names.addresses(HOST, Instant::now()).unwrap(), [address(1)]);
    }

    #[test]
    fn a_name_that_is_not_known_is_waited_for_until_the_deadline() {
        let (names, begun, answer) = by_hand();
        assert_eq!(names.addresses(HOST, Instant::now()), Err(NameError::Slow));
        begun.recv().unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| names.addresses(HOST, soon()));
            answer.send(Err(std::io::Error::other("no such name"))).unwrap();
            // It may have come after the end of that look-up, and have begun its own.
            drop(answer);
            let error = second.join().unwrap().unwrap_err();
            assert!(matches!(error, NameError::NotFound(_)), "{error:?}");
        });
    }

    #[test]
    fn who_waits_can_be_told_to_give_up() {
        let (names, begun, _answer) = by_hand();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| names.addresses(HOST, soon()));
            begun.recv().unwrap();
            // It holds the lock from before the look-up begins until it waits.
            names.give_up();
            assert_eq!(waiting.join().unwrap(), Err(NameError::GivenUp));
        });
    }

    #[test]
    fn look_ups_that_hang_are_so_many_at_most_and_hold_up_no_end() {
        let (names, begun, answer) = by_hand();
        for number in 0..AT_ONCE * 2 {
            let slow = names.addresses(&format!("host-{number}:80"), Instant::now());
            assert_eq!(slow, Err(NameError::Slow));
        }
        for _ in 0..AT_ONCE {
            begun.recv().unwrap();
        }
        assert_eq!(names.owner.shared.state.lock().running, AT_ONCE);
        assert!(begun.try_recv().is_err());
        drop(names);
        // Those that waited for a thread never begin.
        drop(answer);
        assert_eq!(begun.iter().count(), 0);
    }

    #[test]
    fn a_panic_is_a_look_up_that_failed() {
        let names = Names::with(|_| panic!("expected by this test"));
        let error = names.addresses(HOST, soon()).unwrap_err();
        assert!(matches!(&error, NameError::NotFound(why) if why.contains("expected")));
    }

    #[test]
    fn what_is_known_grows_old_and_a_failure_is_tried_again_sooner() {
        let now = Instant::now();
        let mut host = Host::default();
        assert_eq!(host.need(now), Need::Address);
        host.learn(now, Ok(vec![]));
        assert_eq!(host.need(now), Need::Address);
        host.learn(now, Ok(vec![address(1)]));
        assert_eq!(host.need(now + FRESH - Duration::from_nanos(1)), Need::Nothing);
        assert_eq!(host.need(now + FRESH), Need::News);
        host.looked_up_since = Some(now);
        assert_eq!(host.need(now + FRESH), Need::Nothing);
        assert!(!host.take_slow(now));
        assert!(host.take_slow(now + SLOW));
        assert!(!host.take_slow(now + SLOW), "said once");
        host.learn(now, Err("gone".to_owned()));
        assert_eq!(host.known.as_deref(), Some(&[address(1)][..]));
        assert_eq!(host.need(now + AFTER_FAILURE), Need::News);
    }
}
