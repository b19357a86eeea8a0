//! The thread that carries the bytes, seen from outside.

mod connection;
mod event_loop;
mod socket;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use self::event_loop::EventLoop;
use super::NetworkTotals;
use super::account::{Account, Usage};
use super::names::{self, Resolver};
use super::rules::Rules;
use super::turns::Bounds;
use crate::config::HostPattern;
use crate::thread::OwnedThread;

/// How long the end of the thread is awaited: it waits for nothing but its events.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// The most lines that wait for the log; more are left out, and counted.
const LOG_LINES: usize = 1024;

/// What a proxy is started with.
pub(crate) struct Setup<'a> {
    /// Whom machines may reach; none: every host with a public address.
    pub(crate) allowed: &'a [HostPattern],
    /// How many slots there are.
    pub(crate) slots: usize,
    /// Whether each request is logged, at level `info`.
    pub(crate) log: bool,
}

/// The proxy of an engine. Dropped, it ends all connections, and its threads.
pub(crate) struct Egress {
    shared: Arc<Shared>,
    /// Of each slot, since it was renewed.
    accounts: Mutex<HashMap<usize, Arc<Account>>>,
    thread: Mutex<Option<OwnedThread>>,
    log: Mutex<Option<OwnedThread>>,
}

/// What the handles and the threads share.
struct Shared {
    queue: Mutex<Queue>,
    wake: OwnedFd,
    next: AtomicU64,
    totals: Mutex<NetworkTotals>,
}

#[derive(Default)]
struct Queue {
    orders: VecDeque<Order>,
    closing: bool,
}

enum Order {
    Attach { machine: u64, slot: usize, listener: OwnedFd, account: Arc<Account> },
    Detach { machine: u64 },
    Found { machine: u64, connection: u64, found: Result<Vec<IpAddr>, String> },
}

/// A machine's way out. Dropped, its connections end, and there is no way out any more.
pub(crate) struct Attachment {
    shared: Arc<Shared>,
    machine: u64,
}

/// Where the lines of the log go, if there is one. Its thread, `tool-egress-log`, may block: the
/// log may be the user's code.
type LogLines = Option<crossbeam_channel::Sender<String>>;

impl Egress {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread or no descriptors.
    pub(crate) fn start(setup: &Setup<'_>) -> io::Result<Self> {
        let rules = Rules::new(setup.allowed);
        Self::with(rules, Bounds::usual(setup.slots), names::of_system(), setup.log)
    }

    fn with(rules: Rules, bounds: Bounds, resolver: Arc<Resolver>, log: bool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            next: AtomicU64::new(1),
            totals: Mutex::default(),
        });
        let (lines, log) = match log {
            true => {
                let (lines, written) = crossbeam_channel::bounded::<String>(LOG_LINES);
                let body = move || {
                    let target = "tool_executor::egress";
                    written.iter().for_each(|line| log::info!(target: target, "{line}"));
                };
                (Some(lines), Some(OwnedThread::spawn("tool-egress-log", body)?))
            }
            false => (None, None),
        };
        let mut event_loop = EventLoop::new(shared.clone(), rules, bounds, resolver, lines)?;
        let closes = CloseOnDrop(shared.clone());
        let thread = OwnedThread::spawn("tool-egress", move || {
            event_loop.run();
            drop(event_loop);
            drop(closes);
        })?;
        let (accounts, thread) = (Mutex::default(), Mutex::new(Some(thread)));
        Ok(Self { shared, accounts, thread, log: Mutex::new(log) })
    }

    /// Serves what connects to the listening socket of a slot's machine. Does not block.
    pub(crate) fn attach(&self, slot: usize, listener: OwnedFd) -> Attachment {
        let machine = self.shared.number();
        let account = self.accounts.lock().entry(slot).or_default().clone();
        self.shared.send(Order::Attach { machine, slot, listener, account });
        Attachment { shared: self.shared.clone(), machine }
    }

    /// What a slot's machines have used since this was last asked, or the slot was renewed.
    pub(crate) fn take_usage(&self, slot: usize) -> Usage {
        self.accounts.lock().get(&slot).map(|account| account.take()).unwrap_or_default()
    }

    /// What a slot has used so far is not told any more: it gets another user.
    pub(crate) fn renew(&self, slot: usize) {
        self.accounts.lock().remove(&slot);
    }

    /// From now on the slot's machines may reach nothing but what one of these patterns names, of
    /// what the operator allows; until it is renewed. To be called before it has a machine.
    pub(crate) fn narrow(&self, slot: usize, allowed: &[HostPattern]) {
        let account = Account::narrowed(Rules::new(allowed));
        self.accounts.lock().insert(slot, Arc::new(account));
    }

    /// What was used by all machines so far.
    pub(crate) fn totals(&self) -> NetworkTotals {
        *self.shared.totals.lock()
    }

    /// Ends all connections and the threads, but for a look-up that hangs. Blocks for a moment.
    pub(crate) fn close(&self) {
        self.shared.queue.lock().closing = true;
        self.shared.wake();
        let threads = [self.thread.lock().take(), self.log.lock().take()];
        for mut thread in threads.into_iter().flatten() {
            if !thread.join_until(Instant::now() + CLOSE_LIMIT) {
                log::error!("a thread of the proxy did not end in time; left behind");
                thread.detach();
            }
        }
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Egress")
    }
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.shared.send(Order::Detach { machine: self.machine });
    }
}

impl Shared {
    /// A number that nothing else has.
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Drops the order when the thread is ending or gone.
    fn send(&self, order: Order) {
        let mut queue = self.queue.lock();
        if queue.closing {
            return;
        }
        queue.orders.push_back(order);
        drop(queue);
        self.wake();
    }

    fn wake(&self) {
        // Fails only where the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Takes no more orders once the thread is gone, however it went: listening sockets among them
/// would stay open.
struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.closing = true;
        queue.orders.clear();
    }
}

#[cfg(test)]
mod tests;
