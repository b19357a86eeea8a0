//! The thread `tool-egress`: accepts what machines connect, and carries it on.
//!
//! One turn reads a bounded part of each connection that has something, so that none of them holds
//! up the others; what has happened is dealt with before what is due.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::super::account::{Account, Counted};
use super::super::names::{LookUps, Resolver};
use super::super::request::Kind;
use super::super::rules::{Host, Refusal, Rules};
use super::super::turns::{Bounds, Turns};
use super::connection::{Answer, Connection, Late, Next, Record};
use super::socket::{self, Socket};
use super::{LogLines, Order, Shared};

/// How much is read of a connection in a turn.
const READ: usize = 64 * 1024;
/// How many events a turn takes.
const EVENTS: usize = 256;
/// How many connections of a machine a turn accepts.
const ACCEPTS: usize = 8;
/// How long nothing is accepted of a machine where the system has nothing left for it.
const PAUSE: Duration = Duration::from_millis(100);

/// The event data of the wake-up.
const WAKE: u64 = u64::MAX;

/// What an event is about; the other bits are a number.
const CLIENT: u64 = 0;
const SERVER: u64 = 1;
const LISTENER: u64 = 2;

fn data(number: u64, what: u64) -> u64 {
    number << 2 | what
}

/// A machine that is attached.
struct Machine {
    slot: usize,
    listener: Socket,
    account: Arc<Account>,
    connections: usize,
}

/// The thread's own state.
pub(super) struct EventLoop {
    epoll: OwnedFd,
    shared: Arc<Shared>,
    rules: Rules,
    bounds: Bounds,
    resolver: Arc<Resolver>,
    log: LogLines,
    lines_left_out: u64,
    machines: HashMap<u64, Machine>,
    connections: HashMap<u64, Connection>,
    /// One entry for each connection, and for each machine that pauses.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Machines of which nothing is accepted, since there are too many connections.
    held: BTreeSet<u64>,
    turns: Turns,
    look_ups: LookUps,
    buffer: Vec<u8>,
}

impl EventLoop {
    pub(super) fn new(
        shared: Arc<Shared>,
        rules: Rules,
        bounds: Bounds,
        resolver: Arc<Resolver>,
        log: LogLines,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self {
            epoll,
            shared,
            rules,
            bounds,
            resolver,
            log,
            lines_left_out: 0,
            machines: HashMap::new(),
            connections: HashMap::new(),
            deadlines: BTreeSet::new(),
            held: BTreeSet::new(),
            turns: Turns::default(),
            look_ups: LookUps::default(),
            buffer: vec![0; READ],
        })
    }

    /// Until the proxy is closed.
    pub(super) fn run(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            if self.take_orders() {
                return;
            }
            let wait = self.deadlines.first().map(|(due, _)| {
                due.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
            });
            self.take_events(&mut events, wait);
            let now = Instant::now();
            if self.deadlines.first().is_some_and(|(due, _)| *due <= now) {
                // What has happened by now, first. A turn takes so many; all have one event each.
                for _ in 0..=self.connections.len() * 2 / EVENTS {
                    self.take_events(&mut events, Some(Duration::ZERO));
                }
                self.keep_deadlines(now);
            }
        }
    }

    fn take_events(&mut self, events: &mut Vec<epoll::Event>, wait: Option<Duration>) {
        events.clear();
        let wait = wait.and_then(|wait| wait.try_into().ok());
        // An interrupted wait is taken up again.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), wait.as_ref());
        for event in events.drain(..) {
            let (word, flags) = (event.data.u64(), event.flags);
            match (word, word >> 2) {
                (WAKE, _) => {
                    let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
                }
                (_, machine) if word & 3 == LISTENER => self.accept(machine),
                (_, connection) => self.on_event(connection, word & 3, flags),
            }
        }
    }

    /// Whether the proxy is closing.
    fn take_orders(&mut self) -> bool {
        let orders = {
            let mut queue = self.shared.queue.lock();
            if queue.closing {
                return true;
            }
            std::mem::take(&mut queue.orders)
        };
        for order in orders {
            match order {
                Order::Attach { machine, slot, listener, account } => {
                    let _ = rustix::io::ioctl_fionbio(&listener, true);
                    let listener = Socket::new(listener, data(machine, LISTENER));
                    let attached = Machine { slot, listener, account, connections: 0 };
                    self.machines.insert(machine, attached);
                    self.watch_listener(machine);
                }
                Order::Detach { machine } => self.detach(machine),
                Order::Found { machine, connection, found } => {
                    self.turns.ended(machine);
                    self.found(connection, found);
                    self.look_up();
                }
            }
        }
        false
    }

    fn detach(&mut self, machine: u64) {
        let of_it = self.connections.iter().filter(|(_, connection)| connection.machine == machine);
        let numbers: Vec<u64> = of_it.map(|(number, _)| *number).collect();
        self.machines.remove(&machine);
        self.held.remove(&machine);
        for number in numbers {
            self.close(number);
        }
        self.deadlines.retain(|(_, number)| *number != machine);
        self.accept_again();
    }

    /// Whether a machine may have another connection now.
    fn may_accept(&self, machine: &Machine) -> bool {
        self.bounds.may_accept(machine.connections, self.connections.len())
    }

    /// Has a machine's listening socket watched, if it may have another connection.
    fn watch_listener(&mut self, number: u64) {
        let Some(machine) = self.machines.get(&number) else { return };
        let may = self.may_accept(machine);
        match may {
            true => self.held.remove(&number),
            false => self.held.insert(number),
        };
        let wanted = if may { EventFlags::IN } else { EventFlags::empty() };
        if let Some(machine) = self.machines.get_mut(&number)
            && let Err(error) = machine.listener.watch(&self.epoll, wanted)
        {
            log::error!("a sandbox has no network: its proxy cannot be watched: {error}");
        }
    }

    /// A connection is gone: others may have its place.
    fn accept_again(&mut self) {
        let held: Vec<u64> = self.held.iter().copied().collect();
        for machine in held {
            self.watch_listener(machine);
        }
    }

    fn accept(&mut self, number: u64) {
        for _ in 0..ACCEPTS {
            let Some(machine) = self.machines.get(&number) else { return };
            if !self.may_accept(machine) {
                break;
            }
            match socket::accept(&machine.listener) {
                Ok(Some(fd)) => self.begin(number, fd),
                Ok(None) => break,
                Err(error) => return self.pause(number, &error),
            }
        }
        self.watch_listener(number);
    }

    /// Nothing of a machine is accepted for a moment.
    fn pause(&mut self, number: u64, error: &io::Error) {
        log::warn!("the proxy of sandboxes cannot accept a connection: {error}");
        if let Some(machine) = self.machines.get_mut(&number) {
            let _ = machine.listener.watch(&self.epoll, EventFlags::empty());
            self.deadlines.insert((Instant::now() + PAUSE, number));
        }
    }

    fn begin(&mut self, machine: u64, fd: OwnedFd) {
        let number = self.shared.number();
        let client = Socket::new(fd, data(number, CLIENT));
        let due = Instant::now() + self.bounds.head;
        self.connections.insert(number, Connection::new(machine, client, due));
        self.deadlines.insert((due, number));
        if let Some(machine) = self.machines.get_mut(&machine) {
            machine.connections += 1;
        }
        self.shared.totals.lock().connections = self.connections.len();
        self.watch(number);
    }

    fn on_event(&mut self, number: u64, what: u64, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let Some(machine) = self.machines.get(&connection.machine) else { return };
        let totals = &self.shared.totals;
        let mut count = |counted: Counted| {
            machine.account.count(&counted);
            totals.lock().count(&counted);
        };
        let buffer = &mut self.buffer;
        let was_leaving = connection.is_leaving();
        let next = match what {
            CLIENT => connection.on_client(flags, buffer, &mut count),
            _ => connection.on_server(flags, buffer, &mut count),
        };
        let now = Instant::now();
        if connection.is_leaving() {
            // The goodbye has one deadline, whatever the client sends meanwhile.
            if !was_leaving {
                connection.due = now + self.bounds.goodbye;
            }
        } else if connection.record.is_some() && connection.request().is_none() {
            connection.due = now + self.bounds.idle;
        }
        match next {
            Next::Wait => self.watch(number),
            Next::Begin => self.begin_request(number),
            Next::Failed(error) => self.connect(number, Some(&error)),
            Next::Answer(answer) => self.fail(number, &answer),
            Next::Over => self.close(number),
        }
    }

    /// Has a connection's sockets watched for what it waits for, and its deadline kept.
    fn watch(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if connection.due < connection.looked_at {
            self.deadlines.remove(&(connection.looked_at, number));
            connection.looked_at = connection.due;
            self.deadlines.insert((connection.due, number));
        }
        if connection.watch(&self.epoll).is_err() {
            self.close(number);
        }
    }

    fn count(&self, machine: u64, counted: &Counted) {
        if let Some(machine) = self.machines.get(&machine) {
            machine.account.count(counted);
        }
        self.shared.totals.lock().count(counted);
    }

    /// A request is whole: its server is looked up or connected to.
    fn begin_request(&mut self, number: u64) {
        let now = Instant::now();
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let Some(request) = connection.request().cloned() else { return };
        let machine = connection.machine;
        let method = if request.kind == Kind::Tunnel { "CONNECT" } else { &*request.method };
        let what = format!("{method} {}", request.asked());
        let (slot, account) = self
            .machines
            .get(&machine)
            .map_or((0, None), |machine| (machine.slot, Some(machine.account.clone())));
        connection.record =
            Some(Record { slot, what, began: now, sent: 0, received: 0, end: None });
        connection.due = now + self.bounds.look_up;
        match &request.host {
            Host::Address(ip) => {
                connection.found(vec![SocketAddr::new(*ip, request.port)]);
                self.count(machine, &Counted::Request);
                self.connect(number, None);
            }
            Host::Name(name) => {
                self.count(machine, &Counted::Request);
                let own = account.as_ref().and_then(|account| account.rules());
                match self.rules.check_name_with(own, name, request.port) {
                    Ok(()) => {
                        self.turns.wait(machine, number, name.clone());
                        self.watch(number);
                        self.look_up();
                    }
                    Err(refusal) => self.refuse(number, &refusal),
                }
            }
        }
    }

    /// Starts the look-ups whose turn it is.
    fn look_up(&mut self) {
        while let Some((machine, connection, name)) = self.turns.next(&self.bounds) {
            let shared = self.shared.clone();
            let tell = move |found| shared.send(Order::Found { machine, connection, found });
            if let Err(error) = self.look_ups.start(&self.resolver, name, tell) {
                self.turns.ended(machine);
                self.found(connection, Err(format!("no thread for it: {error}")));
            }
        }
    }

    /// A name was looked up.
    fn found(&mut self, number: u64, found: Result<Vec<IpAddr>, String>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        // Its time may be up already.
        let Some(request) = connection.request() else { return };
        let port = request.port;
        match found {
            Ok(found) => {
                connection.found(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
                self.connect(number, None);
            }
            Err(error) => {
                let text = format!("{} cannot be looked up: {error}", request.asked());
                self.fail(number, &Answer::new(502, "Host not found", &text));
            }
        }
    }

    /// Connects to the next of a request's addresses that it may connect to. `error` is why the
    /// last could not be connected.
    fn connect(&mut self, number: u64, error: Option<&io::Error>) {
        let (mut failed, mut refused) = (error.map(ToString::to_string), None);
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let Some(request) = connection.request() else { return };
        let (host, asked) = (request.host.clone(), request.asked());
        let account = self.machines.get(&connection.machine).map(|machine| machine.account.clone());
        while let Some(address) = connection.take_address() {
            let address =
                SocketAddr::new(super::super::address::canonical(address.ip()), address.port());
            let own = account.as_ref().and_then(|account| account.rules());
            let checked = self.rules.check_address_with(own, &host, address, socket::is_own);
            if let Err(refusal) = checked {
                refused = Some(refusal);
                continue;
            }
            match socket::connect(address) {
                Ok(fd) => {
                    connection.connecting(fd, data(number, SERVER));
                    connection.due = Instant::now() + self.bounds.connect;
                    return self.watch(number);
                }
                Err(error) => failed = Some(error.to_string()),
            }
        }
        match (failed, refused) {
            (None, Some(refusal)) => self.refuse(number, &refusal),
            (failed, _) => {
                let is_late = error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
                let (status, reason) =
                    if is_late { (504, "Gateway Timeout") } else { (502, "Bad Gateway") };
                let why = failed.unwrap_or_else(|| "it has no address".to_owned());
                let text = format!("no connection to {asked}: {why}");
                self.fail(number, &Answer::new(status, reason, &text));
            }
        }
    }

    fn refuse(&mut self, number: u64, refusal: &Refusal) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let Some(request) = connection.request() else { return };
        let (asked, machine) = (request.asked(), connection.machine);
        let counted = Counted::Refused(request.host.to_string());
        self.count(machine, &counted);
        self.answer(number, &Answer::new(403, &refusal.reason(), &refusal.text(&asked)));
    }

    /// Answers a request that failed, and counts it. What is no request is not counted.
    fn fail(&mut self, number: u64, answer: &Answer) {
        if let Some(connection) = self.connections.get(&number)
            && connection.record.is_some()
        {
            self.count(connection.machine, &Counted::Failed);
        }
        self.answer(number, answer);
    }

    fn answer(&mut self, number: u64, answer: &Answer) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.answer(answer);
        connection.due = Instant::now() + self.bounds.goodbye;
        self.watch(number);
    }

    fn keep_deadlines(&mut self, now: Instant) {
        while let Some(&(due, number)) = self.deadlines.first()
            && due <= now
        {
            self.deadlines.pop_first();
            let Some(connection) = self.connections.get_mut(&number) else {
                // A machine that has paused.
                self.watch_listener(number);
                continue;
            };
            // It has moved since.
            connection.looked_at = connection.due.max(now + Duration::from_millis(1));
            self.deadlines.insert((connection.looked_at, number));
            if connection.due > now {
                continue;
            }
            match connection.is_late() {
                Late::Close => self.close(number),
                Late::Connect => {
                    let error = io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
                    self.connect(number, Some(&error));
                }
                Late::Answer(answer) => {
                    self.turns.forget(number);
                    self.fail(number, &answer);
                }
            }
        }
    }

    /// Ends a connection.
    fn close(&mut self, number: u64) {
        let Some(connection) = self.connections.remove(&number) else { return };
        self.deadlines.remove(&(connection.looked_at, number));
        self.turns.forget(number);
        self.shared.totals.lock().connections = self.connections.len();
        let machine = connection.machine;
        if let Some(record) = connection.record {
            self.log(&record);
        }
        if let Some(machine) = self.machines.get_mut(&machine) {
            machine.connections -= 1;
        }
        self.accept_again();
    }

    /// Hands a line to the log's thread. One that has no room is left out, and counted.
    fn log(&mut self, record: &Record) {
        let Some(lines) = &self.log else { return };
        let Record { slot, what, began, sent, received, end } = record;
        let end = end.as_deref().unwrap_or("ok");
        let took = began.elapsed().as_secs_f64();
        let left_out = match self.lines_left_out {
            0 => String::new(),
            lines => format!(" ({lines} lines before this one were left out)"),
        };
        let line = format!(
            "slot {slot}: {what}: {end}, {sent} bytes sent, {received} received, {took:.3} s{left_out}"
        );
        match lines.try_send(line) {
            Ok(()) => self.lines_left_out = 0,
            Err(_) => self.lines_left_out += 1,
        }
    }
}
