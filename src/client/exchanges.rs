//! Requests whose answers take their time, side by side, on one thread.
//!
//! A server that answers a request only when its work is done would take a thread for each request
//! under way. Here all of them share one, which waits for their sockets. Each request has a
//! connection of its own: one that was idle may be just closing, and would lose what cannot be
//! repeated.
//!
//! What comes is looked at before what is due, also after the process was stopped for a while.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use ureq::http::Uri;

use super::exchange::{Answered, Exchange};
use super::names::NameError;
use super::{Authorization, Failure, LOOK_UP_TIMEOUT, MAX_RESPONSE, Names};
use crate::thread::OwnedThread;
use crate::workers::{Workers, guarded};

/// How many sockets are looked at a time.
const EVENTS: usize = 256;
/// The longest that the thread waits; nothing depends on it.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// An answer up to this size is taken where it comes: handing it over would take longer.
const SMALL: usize = 64 * 1024;
/// What wakes the thread besides sockets.
const WAKE: Token = Token(usize::MAX);

/// Gets a request's answer, or why there is none. Called once, on a thread of all requests: it must
/// not wait for another.
type Done = Box<dyn FnOnce(Result<Answered, Failure>) + Send>;

/// A POST of JSON on its way.
pub(crate) struct Post<'a> {
    /// Where it goes.
    pub(crate) uri: &'a Uri,
    /// The token.
    pub(crate) authorization: Option<&'a Authorization>,
    /// What it says.
    pub(crate) body: &'a [u8],
    /// How long connecting may take.
    pub(crate) connect_timeout: Duration,
    /// How long all of it may take.
    pub(crate) timeout: Duration,
}

/// The requests, and their thread.
pub(crate) struct Exchanges {
    names: Names,
    tls: Arc<ClientConfig>,
    /// One request each; bounded by who posts. Taken when closing.
    orders: Mutex<Option<Sender<Order>>>,
    waker: Arc<Waker>,
    thread: Mutex<Option<OwnedThread>>,
}

/// A request, and where it goes.
struct Request {
    exchange: Exchange,
    /// What is to be sent.
    bytes: Vec<u8>,
    /// One at least.
    addresses: Arc<[SocketAddr]>,
    tls: Option<Box<ClientConnection>>,
}

/// A request that is to begin.
struct Order {
    request: Request,
    connect_timeout: Duration,
    /// When all of it is to be over.
    until: Instant,
    done: Done,
}

impl Exchanges {
    /// Starts the thread, called `tool-requests`.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn start(names: Names, tls: Arc<ClientConfig>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        #[expect(clippy::disallowed_methods, reason = "bounded by those who post")]
        let (orders, to_begin) = unbounded();
        let reactor = Reactor::new(poll, Workers::start("tool-answers", 2)?);
        let thread = OwnedThread::spawn("tool-requests", move || reactor.run(&to_begin))?;
        let (orders, thread) = (Mutex::new(Some(orders)), Mutex::new(Some(thread)));
        Ok(Self { names, tls, orders, waker, thread })
    }

    /// Sends a request; `done` is called when it has ended, perhaps at once. Blocks only while the
    /// server's name is looked up for the first time, and for that 5 s at most.
    pub(crate) fn post(&self, post: &Post<'_>, done: Done) {
        let request = match self.prepare(post) {
            Ok(request) => request,
            Err(failure) => return done(Err(failure)),
        };
        let (connect_timeout, until) = (post.connect_timeout, Instant::now() + post.timeout);
        let order = Order { request, connect_timeout, until, done };
        let sent = match &*self.orders.lock() {
            Some(orders) => orders.send(order).map_err(|refused| refused.0),
            None => Err(order),
        };
        match sent {
            // A failure is one of the system's, which the next request finds, too.
            Ok(()) => drop(self.waker.wake()),
            Err(order) => (order.done)(Err(closed())),
        }
    }

    /// Ends all requests and the thread, by `deadline`.
    pub(crate) fn close(&self, deadline: Instant) {
        drop(self.orders.lock().take());
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.lock().take() {
            thread.join_or_leave(deadline);
        }
    }

    fn prepare(&self, post: &Post<'_>) -> Result<Request, Failure> {
        let max_body = usize::try_from(MAX_RESPONSE).unwrap_or(usize::MAX);
        let (exchange, bytes) = Exchange::post(post.uri, post.authorization, post.body, max_body)?;
        let is_https = post.uri.scheme_str() == Some("https");
        let host = post.uri.host().unwrap_or_default();
        let port = post.uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let wait = post.timeout.min(LOOK_UP_TIMEOUT);
        let addresses = self.names.addresses(&format!("{host}:{port}"), Instant::now() + wait);
        let addresses = addresses.map_err(|error| {
            Failure::NotSent(match error {
                NameError::NotFound(why) => format!("host name not found: {why}"),
                NameError::Slow | NameError::GivenUp => {
                    "its host name was not found in time".to_owned()
                }
            })
        })?;
        let tls = if is_https {
            let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(name)
                .map_err(|error| Failure::Misconfigured(error.to_string()))?;
            let connection = ClientConnection::new(self.tls.clone(), name)
                .map_err(|error| Failure::Misconfigured(error.to_string()))?;
            Some(Box::new(connection))
        } else {
            None
        };
        Ok(Request { exchange, bytes, addresses, tls })
    }
}

impl Drop for Exchanges {
    fn drop(&mut self) {
        self.close(Instant::now() + Duration::from_secs(5));
    }
}

fn closed() -> Failure {
    Failure::NotSent("the client is closed".to_owned())
}

/// A request under way.
struct Connection {
    order: Order,
    stream: TcpStream,
    /// How many of the addresses were tried.
    tried: usize,
    is_connected: bool,
    /// How much of its bytes was sent, or given to TLS.
    sent: usize,
    /// Why nothing more can be sent. There may be an answer all the same.
    unsendable: Option<io::Error>,
    /// When it is to be over; while it connects, when it is to be connected.
    due: Instant,
}

/// The thread's state.
struct Reactor {
    poll: Poll,
    connections: HashMap<usize, Connection>,
    /// The same, by when they are due.
    timers: BTreeSet<(Instant, usize)>,
    next: usize,
    buffer: Vec<u8>,
    /// Where large answers are taken, so that no other waits for that.
    workers: Workers,
}

impl Reactor {
    fn new(poll: Poll, workers: Workers) -> Self {
        let (connections, timers) = (HashMap::new(), BTreeSet::new());
        Self { poll, connections, timers, next: 0, buffer: vec![0; 64 * 1024], workers }
    }

    /// Until there is nothing more to come; what is under way ends then.
    fn run(mut self, to_begin: &Receiver<Order>) {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let now = Instant::now();
            let due = self
                .timers
                .first()
                .map_or(HEARTBEAT, |(due, _)| due.saturating_duration_since(now).min(HEARTBEAT));
            if let Err(error) = self.wait(&mut events, due) {
                log::error!("sandbox servers' answers cannot be waited for any more: {error}");
                return self.close();
            }
            let is_due = |timers: &BTreeSet<(Instant, usize)>| {
                timers.first().is_some_and(|(due, _)| *due <= Instant::now())
            };
            if is_due(&self.timers) {
                // However long this thread did not run: what has come is looked at first, each
                // socket once.
                for _ in 0..=self.connections.len() / EVENTS {
                    // An error is met again above.
                    let _ = self.wait(&mut events, Duration::ZERO);
                }
                self.expire(Instant::now());
            }
            loop {
                match to_begin.try_recv() {
                    Ok(order) => self.begin(order),
                    Err(crossbeam_channel::TryRecvError::Empty) => break,
                    Err(crossbeam_channel::TryRecvError::Disconnected) => return self.close(),
                }
            }
        }
    }

    /// Waits for sockets, for so long at most, and does what can be done with them.
    ///
    /// # Errors
    /// The system's; none that another try would mend.
    fn wait(&mut self, events: &mut Events, time: Duration) -> io::Result<()> {
        match self.poll.poll(events, Some(time)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        let ready: Vec<_> = events.iter().map(|event| event.token()).collect();
        for Token(number) in ready.into_iter().filter(|token| *token != WAKE) {
            self.go_on(number);
        }
        Ok(())
    }

    fn begin(&mut self, order: Order) {
        let number = self.next;
        self.next += 1;
        match connect(&order.request.addresses, 0) {
            Err((_, failure)) => finish(&self.workers, order.done, Err(failure)),
            Ok((stream, tried)) => {
                let due = order.until.min(Instant::now() + order.connect_timeout);
                let (is_connected, sent, unsendable) = (false, 0, None);
                let mut connection =
                    Connection { order, stream, tried, is_connected, sent, unsendable, due };
                match self.register(&mut connection, number) {
                    Ok(()) => {
                        self.timers.insert((due, number));
                        self.connections.insert(number, connection);
                    }
                    Err(error) => {
                        finish(
                            &self.workers,
                            connection.order.done,
                            Err(Failure::NotSent(error.to_string())),
                        );
                    }
                }
            }
        }
    }

    fn register(&self, connection: &mut Connection, number: usize) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut connection.stream, Token(number), interest)
    }

    /// Does what can be done without waiting.
    fn go_on(&mut self, number: usize) {
        // It may have ended with an earlier event.
        let Some(mut connection) = self.connections.remove(&number) else { return };
        self.timers.remove(&(connection.due, number));
        let step = guarded(|| connection.step(&mut self.buffer));
        let outcome = match step {
            Ok(Ok(answered)) => answered.map(Ok),
            Ok(Err(Stop::NextAddress(failure))) => {
                match connect(&connection.order.request.addresses, connection.tried) {
                    Ok((stream, tried)) => {
                        (connection.stream, connection.tried) = (stream, tried);
                        let registered = self.register(&mut connection, number);
                        registered.err().map(|error| Err(Failure::NotSent(error.to_string())))
                    }
                    // The failure of the one that was tried last says it.
                    Err(_) => Some(Err(failure)),
                }
            }
            Ok(Err(Stop::Failed(failure))) => Some(Err(failure)),
            Err(panic) => Some(Err(Failure::Broken(format!("reading it panicked: {panic}")))),
        };
        match outcome {
            Some(outcome) => finish(&self.workers, connection.order.done, outcome),
            None => {
                self.timers.insert((connection.due, number));
                self.connections.insert(number, connection);
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(due, number)) = self.timers.first()
            && due <= now
        {
            self.timers.pop_first();
            let Some(connection) = self.connections.remove(&number) else { continue };
            let failure = match connection.is_connected {
                true => Failure::Timeout,
                false => Failure::NotSent("cannot connect: no answer in time".to_owned()),
            };
            finish(&self.workers, connection.order.done, Err(failure));
        }
    }

    fn close(self) {
        for (_, connection) in self.connections {
            let failure = match connection.is_connected {
                true => Failure::Broken("the client was closed".to_owned()),
                false => closed(),
            };
            finish(&self.workers, connection.order.done, Err(failure));
        }
    }
}

/// Gives a request its end; on a worker's thread where that may take a while.
fn finish(workers: &Workers, done: Done, outcome: Result<Answered, Failure>) {
    let is_large = outcome.as_ref().is_ok_and(|answered| answered.body.len() > SMALL);
    let finish = move || {
        if let Err(panic) = guarded(|| done(outcome)) {
            log::error!("taking a sandbox server's answer panicked: {panic}");
        }
    };
    match is_large {
        true => workers.spawn(finish),
        false => finish(),
    }
}

/// Begins to connect to the first address from the one at `tried` on that can be tried; gives how
/// many are tried then.
fn connect(addresses: &[SocketAddr], tried: usize) -> Result<(TcpStream, usize), (usize, Failure)> {
    let mut failure = Failure::NotSent("it has no other address".to_owned());
    for (index, address) in addresses.iter().enumerate().skip(tried) {
        match TcpStream::connect(*address) {
            Ok(stream) => return Ok((stream, index + 1)),
            Err(error) => failure = not_connected(&error),
        }
    }
    Err((addresses.len(), failure))
}

fn not_connected(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::NoListener,
        _ => Failure::NotSent(format!("cannot connect: {error}")),
    }
}

/// Why a connection goes no further.
enum Stop {
    /// It cannot connect to this one.
    NextAddress(Failure),
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

impl Connection {
    /// Does what can be done without waiting; gives the answer when it is whole.
    fn step(&mut self, buffer: &mut [u8]) -> Result<Option<Answered>, Stop> {
        if !self.is_connected {
            if let Some(error) = self.stream.take_error().unwrap_or_else(Some) {
                return Err(Stop::NextAddress(not_connected(&error)));
            }
            match self.stream.peer_addr() {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(None),
                Err(error) => return Err(Stop::NextAddress(not_connected(&error))),
            }
            self.is_connected = true;
            self.due = self.order.until;
            // A request is few packets; the answer to one is waited for.
            let _ = self.stream.set_nodelay(true);
        }
        self.send();
        let answered = self.receive(buffer)?;
        if answered.is_none() {
            // Reading may have given TLS something to send, and leave to send the request.
            self.send();
        }
        Ok(answered)
    }

    /// Sends what can be sent now. What keeps it from sending is noted: the answer may say why.
    fn send(&mut self) {
        if self.unsendable.is_some() {
            return;
        }
        if let Err(error) = self.try_send()
            && error.kind() != ErrorKind::WouldBlock
        {
            self.unsendable = Some(error);
        }
    }

    fn try_send(&mut self) -> io::Result<()> {
        loop {
            let rest = &self.order.request.bytes[self.sent..];
            let written = match &mut self.order.request.tls {
                None if rest.is_empty() => return Ok(()),
                None => self.stream.write(rest),
                Some(tls) => {
                    // It takes as much as it has room for.
                    self.sent += tls.writer().write(rest)?;
                    if !tls.wants_write() {
                        return Ok(());
                    }
                    tls.write_tls(&mut self.stream).and_then(|written| match written {
                        0 => Err(ErrorKind::WriteZero.into()),
                        _ => Ok(0),
                    })
                }
            };
            match written {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes what has come; gives the answer when it is whole.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<Answered>, Failure> {
        loop {
            let read = match &mut self.order.request.tls {
                None => self.stream.read(buffer),
                Some(tls) => match tls.reader().read(buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        match tls.read_tls(&mut self.stream) {
                            Ok(_) => match tls.process_new_packets() {
                                // The next turn finds what is in them, or the end.
                                Ok(_) => continue,
                                Err(error) => {
                                    // What TLS has to say of it goes out, if it can.
                                    let _ = tls.write_tls(&mut self.stream);
                                    return Err(Failure::from(ureq::Error::Rustls(error)));
                                }
                            },
                            Err(error) => Err(error),
                        }
                    }
                    read => read,
                },
            };
            match read {
                Ok(0) => return self.ended().map(Some),
                Ok(length) => {
                    if let Some(answered) = self.order.request.exchange.take(&buffer[..length])? {
                        return Ok(Some(answered));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return self.ended().map(Some).map_err(|_| Failure::Broken(error.to_string()));
                }
            }
        }
    }

    /// No more comes.
    fn ended(&mut self) -> Result<Answered, Failure> {
        self.order.request.exchange.end().map_err(|failure| match self.unsendable.take() {
            Some(error) => Failure::Broken(error.to_string()),
            None => failure,
        })
    }
}

#[cfg(test)]
mod tests;
