//! One connection of a client: how far it is, and what comes next. Its events are handed to it by
//! the event loop, which looks names up and opens connections for it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::EventFlags;

use super::super::account::Counted;
use super::super::body::Body;
use super::super::request::{self, Kind, Request};
use super::super::response;
use super::socket::Socket;

/// How much of what is read of a client's after the end of its request is thrown away, before the
/// connection is closed all the same.
const MOST_IGNORED: usize = 256 * 1024;

/// A connection.
pub(super) struct Connection {
    pub(super) machine: u64,
    client: Socket,
    upstream: Option<Socket>,
    stage: Stage,
    /// What waits to be written to the server.
    up: Pending,
    /// What waits to be written to the client.
    down: Pending,
    /// When the time of the present stage is up.
    pub(super) due: Instant,
    /// When it is looked at whether that is so.
    pub(super) looked_at: Instant,
    /// What there is to say of it at its end.
    pub(super) record: Option<Record>,
}

/// What the log says of a request.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) slot: usize,
    pub(super) what: String,
    pub(super) began: Instant,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) end: Option<String>,
}

/// How far a connection is.
enum Stage {
    /// The request's head comes in.
    Head(Vec<u8>),
    /// The name is looked up. With what came after the head.
    LookingUp(Request, Vec<u8>),
    /// A connection to one of the addresses is being made; the others come after it.
    Connecting { request: Request, rest: Vec<u8>, others: Vec<SocketAddr> },
    /// Bytes pass both ways.
    Tunnel,
    /// A request's body passes, and its response, of which the head is collected first.
    Exchange { body: Body, head: Option<Vec<u8>> },
    /// What waits for the client is the last that it gets.
    Answering,
    /// The client has got everything. It is read for so many bytes more, so that what it was sent
    /// is not lost by a reset.
    Draining(usize),
}

/// What waits to be written, and whether more will come.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    at: usize,
    /// Nothing more will be read for it.
    is_ended: bool,
    /// And the other side was told so.
    is_shut: bool,
}

/// What a connection needs of the event loop.
pub(super) enum Next {
    /// Nothing: it waits for events.
    Wait,
    /// Its request is whole: it is to be looked up or connected.
    Begin,
    /// The connection to its server failed: another address, or an answer.
    Failed(io::Error),
    /// It is to be answered in its server's place.
    Answer(Answer),
    /// It is over.
    Over,
}

/// The time of a stage was up.
pub(super) enum Late {
    /// Nothing of it is of use any more.
    Close,
    /// The client is told so.
    Answer(Answer),
    /// The next address is tried.
    Connect,
}

/// An answer in a server's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// A few words for the status line.
    pub(super) reason: String,
    /// What a person needs to know.
    pub(super) text: String,
}

impl Answer {
    pub(super) fn new(status: u16, reason: &str, text: &str) -> Self {
        Self { status, reason: reason.to_owned(), text: text.to_owned() }
    }

    /// The server's doing.
    fn bad_gateway(text: &str) -> Self {
        Self::new(502, "Bad Gateway", text)
    }
}

impl Connection {
    pub(super) fn new(machine: u64, client: Socket, due: Instant) -> Self {
        Self {
            machine,
            client,
            upstream: None,
            stage: Stage::Head(Vec::new()),
            up: Pending::default(),
            down: Pending::default(),
            due,
            looked_at: due,
            record: None,
        }
    }

    /// The request, while it has no connection.
    pub(super) fn request(&self) -> Option<&Request> {
        match &self.stage {
            Stage::LookingUp(request, _) | Stage::Connecting { request, .. } => Some(request),
            _ => None,
        }
    }

    /// The addresses that are still to be tried.
    pub(super) fn take_address(&mut self) -> Option<SocketAddr> {
        match &mut self.stage {
            Stage::Connecting { others, .. } if !others.is_empty() => Some(others.remove(0)),
            _ => None,
        }
    }

    /// Its server's addresses are known.
    pub(super) fn found(&mut self, addresses: Vec<SocketAddr>) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Answering) {
            Stage::LookingUp(request, rest) => {
                Stage::Connecting { request, rest, others: addresses }
            }
            stage => stage,
        };
    }

    /// A connection to its server is being made.
    pub(super) fn connecting(&mut self, fd: OwnedFd, data: u64) {
        self.upstream = Some(Socket::new(fd, data));
    }

    /// What it wants to hear of.
    pub(super) fn watch(&mut self, epoll: &OwnedFd) -> io::Result<()> {
        let (mut client, mut server) = (EventFlags::empty(), EventFlags::empty());
        let passes = match &self.stage {
            Stage::Head(_) | Stage::Draining(_) => {
                client |= EventFlags::IN;
                false
            }
            Stage::Connecting { .. } => {
                server |= EventFlags::OUT;
                false
            }
            Stage::LookingUp(..) | Stage::Answering => false,
            Stage::Tunnel | Stage::Exchange { .. } => true,
        };
        if passes && self.up.takes() && !self.is_body_over() {
            client |= EventFlags::IN;
        }
        if passes && self.down.takes() {
            server |= EventFlags::IN;
        }
        if !self.down.is_empty() {
            client |= EventFlags::OUT;
        }
        if !self.up.is_empty() {
            server |= EventFlags::OUT;
        }
        self.client.watch(epoll, client)?;
        self.upstream.as_mut().map_or(Ok(()), |upstream| upstream.watch(epoll, server))
    }

    fn is_body_over(&self) -> bool {
        matches!(&self.stage, Stage::Exchange { body, .. } if body.is_done())
    }

    /// The client has sent something, takes something, or is gone. `count` hears of what passes.
    pub(super) fn on_client(
        &mut self,
        flags: EventFlags,
        buffer: &mut [u8],
        count: &mut impl FnMut(Counted),
    ) -> Next {
        if is_writable(flags) && !self.down.is_empty() {
            match self.down.write_to(&self.client) {
                Ok(()) => {}
                Err(_) => return Next::Over,
            }
        }
        if !is_readable(flags) {
            return self.settle();
        }
        let takes_more = self.up.takes() && !self.is_body_over();
        match &mut self.stage {
            Stage::Head(head) => {
                let seen = head.len();
                match self.client.read(buffer) {
                    Ok(None) => return Next::Wait,
                    Ok(Some(0)) | Err(_) => return Next::Over,
                    Ok(Some(read)) => head.extend_from_slice(&buffer[..read]),
                }
                match request::parse(head, seen) {
                    Ok(None) => Next::Wait,
                    Ok(Some((request, length))) => {
                        let rest = head.split_off(length);
                        self.stage = Stage::LookingUp(request, rest);
                        Next::Begin
                    }
                    Err(error) => {
                        let reason =
                            if error.status == 501 { "Not Implemented" } else { "Bad Request" };
                        Next::Answer(Answer::new(error.status, reason, &error.why))
                    }
                }
            }
            Stage::Draining(left) => match self.client.read(buffer) {
                Ok(None) => Next::Wait,
                Ok(Some(read)) if (1..*left).contains(&read) => {
                    *left -= read;
                    Next::Wait
                }
                _ => Next::Over,
            },
            Stage::Tunnel | Stage::Exchange { .. } if takes_more => {
                match self.client.read(buffer) {
                    Ok(None) => Next::Wait,
                    // The rest of a request's body will not come.
                    Ok(Some(0)) if !matches!(self.stage, Stage::Tunnel) => Next::Over,
                    Ok(Some(0)) => {
                        self.up.is_ended = true;
                        self.settle()
                    }
                    Ok(Some(read)) => self.send_up(&buffer[..read], count),
                    Err(_) => Next::Over,
                }
            }
            _ => self.settle(),
        }
    }

    /// Bytes of the client for its server.
    fn send_up(&mut self, bytes: &[u8], count: &mut impl FnMut(Counted)) -> Next {
        let mut bytes = bytes;
        if let Stage::Exchange { body, head } = &mut self.stage {
            match body.take(bytes) {
                // What follows is no part of this request, and there is no other on a connection.
                Ok(length) => bytes = &bytes[..length],
                Err(_) if head.is_some() => {
                    let text = "the request's chunks are malformed";
                    return Next::Answer(Answer::new(400, "Bad Request", text));
                }
                Err(_) => return Next::Over,
            }
        }
        let Some(upstream) = &self.upstream else { return Next::Over };
        // Before it is passed on: who gets an answer finds it counted.
        count(Counted::Sent(bytes.len()));
        if let Some(record) = &mut self.record {
            record.sent += bytes.len() as u64;
        }
        match self.up.pass(upstream, bytes) {
            Ok(()) => self.settle(),
            // Its answer may be there all the same.
            Err(_) if matches!(self.stage, Stage::Exchange { .. }) => {
                self.up = Pending { is_ended: true, is_shut: true, ..Pending::default() };
                Next::Wait
            }
            Err(_) => Next::Over,
        }
    }

    /// The server has sent something, takes something, is connected, or is gone.
    pub(super) fn on_server(
        &mut self,
        flags: EventFlags,
        buffer: &mut [u8],
        count: &mut impl FnMut(Counted),
    ) -> Next {
        let Some(upstream) = &self.upstream else { return Next::Wait };
        if matches!(self.stage, Stage::Connecting { .. }) {
            return match upstream.connected() {
                Ok(()) => self.connected(count),
                Err(error) => Next::Failed(error),
            };
        }
        if is_writable(flags) && !self.up.is_empty() && self.up.write_to(upstream).is_err() {
            if !matches!(self.stage, Stage::Exchange { .. }) {
                return Next::Over;
            }
            self.up = Pending { is_ended: true, is_shut: true, ..Pending::default() };
        }
        if !is_readable(flags) || !self.down.takes() {
            return self.settle();
        }
        let read = match (upstream.read(buffer), &self.stage) {
            (Ok(None), _) => return Next::Wait,
            (Ok(Some(read)), _) => read,
            (Err(_), Stage::Exchange { head: Some(_), .. }) => {
                let text = "the server has reset the connection";
                return Next::Answer(Answer::bad_gateway(text));
            }
            (Err(_), _) => return Next::Over,
        };
        count(Counted::Received(read));
        if let Some(record) = &mut self.record {
            record.received += read as u64;
        }
        if let Stage::Exchange { head: Some(head), .. } = &mut self.stage {
            if read == 0 {
                let text = "the server has closed the connection without an answer";
                return Next::Answer(Answer::bad_gateway(text));
            }
            let mut seen = head.len();
            head.extend_from_slice(&buffer[..read]);
            loop {
                match response::parse(head, seen) {
                    Ok(None) => return self.settle(),
                    Ok(Some(found)) => {
                        let rest = head.split_off(found.length);
                        self.down.bytes.extend_from_slice(&found.bytes);
                        if !found.is_interim {
                            self.down.bytes.extend_from_slice(&rest);
                            if let Stage::Exchange { head, .. } = &mut self.stage {
                                *head = None;
                            }
                            break;
                        }
                        (*head, seen) = (rest, 0);
                    }
                    Err(text) => return Next::Answer(Answer::bad_gateway(text)),
                }
            }
            return self.flush_down();
        }
        if read == 0 {
            self.down.is_ended = true;
            return self.settle();
        }
        match self.down.pass(&self.client, &buffer[..read]) {
            Ok(()) => self.settle(),
            Err(_) => Next::Over,
        }
    }

    fn flush_down(&mut self) -> Next {
        match self.down.write_to(&self.client) {
            Ok(()) => self.settle(),
            Err(_) => Next::Over,
        }
    }

    /// The connection to the server is there: what the client has sent so far goes to it.
    fn connected(&mut self, count: &mut impl FnMut(Counted)) -> Next {
        let stage = std::mem::replace(&mut self.stage, Stage::Tunnel);
        let Stage::Connecting { request, rest, .. } = stage else {
            self.stage = stage;
            return Next::Wait;
        };
        match request.kind {
            Kind::Tunnel => {
                // Not counted: it is the proxy's own.
                self.down.bytes.extend_from_slice(response::ESTABLISHED);
                if self.down.write_to(&self.client).is_err() {
                    return Next::Over;
                }
            }
            Kind::Plain(head, framing) => {
                self.stage = Stage::Exchange { body: Body::new(framing), head: Some(Vec::new()) };
                self.up.bytes = head;
                let Some(upstream) = &self.upstream else { return Next::Over };
                let _ = self.up.write_to(upstream);
            }
        }
        if rest.is_empty() { self.settle() } else { self.send_up(&rest, count) }
    }

    /// Answers in the server's place, and ends the connection.
    pub(super) fn answer(&mut self, Answer { status, reason, text }: &Answer) {
        if let Some(record) = &mut self.record {
            record.end.get_or_insert_with(|| format!("{status} {text}"));
        }
        self.upstream = None;
        self.up = Pending::default();
        self.down.bytes.extend_from_slice(&response::own(*status, reason, text));
        self.stage = Stage::Answering;
        // What it does not take now it takes when it says so; one that is gone says so, too.
        if self.down.write_to(&self.client).is_ok() {
            let _ = self.settle();
        }
    }

    /// What follows from what was read and written.
    fn settle(&mut self) -> Next {
        if self.up.is_ready_to_end()
            && let Some(upstream) = &self.upstream
        {
            // A server that gets its request whole needs no end of it, and some take it for the
            // end of the client.
            if matches!(self.stage, Stage::Tunnel) {
                upstream.end_writing();
            }
            self.up.is_shut = true;
        }
        match self.stage {
            Stage::Tunnel => {
                if self.down.is_ready_to_end() {
                    self.client.end_writing();
                    self.down.is_shut = true;
                }
                if self.up.is_shut && self.down.is_shut { Next::Over } else { Next::Wait }
            }
            Stage::Exchange { .. } if self.down.is_ready_to_end() => self.drain(),
            Stage::Answering if self.down.is_empty() => self.drain(),
            _ => Next::Wait,
        }
    }

    fn drain(&mut self) -> Next {
        self.client.end_writing();
        self.upstream = None;
        self.stage = Stage::Draining(MOST_IGNORED);
        Next::Wait
    }

    /// Whether it is at its end, but for the client's.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Answering | Stage::Draining(_))
    }

    /// What is to be made of it that nothing has happened for so long.
    pub(super) fn is_late(&self) -> Late {
        let late = |text| Late::Answer(Answer::new(504, "Gateway Timeout", text));
        match &self.stage {
            Stage::Head(head) if !head.is_empty() => {
                let text = "the request's head is late";
                Late::Answer(Answer::new(408, "Request Timeout", text))
            }
            Stage::LookingUp(..) => late("the look-up of the host's name takes too long"),
            Stage::Connecting { .. } => Late::Connect,
            Stage::Exchange { head: Some(_), .. } => late("the server does not answer"),
            _ => Late::Close,
        }
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.length() == 0
    }

    fn length(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Whether more may be read for it.
    fn takes(&self) -> bool {
        self.is_empty() && !self.is_ended
    }

    fn is_ready_to_end(&self) -> bool {
        self.is_ended && self.is_empty() && !self.is_shut
    }

    /// Writes what waits, as much as the socket takes.
    fn write_to(&mut self, socket: &Socket) -> io::Result<()> {
        let written = socket.write(&self.bytes[self.at..])?;
        self.at += written;
        if self.is_empty() {
            // Its memory goes, too: most connections only wait.
            (self.bytes, self.at) = (Vec::new(), 0);
        }
        Ok(())
    }

    /// Writes these bytes after what waits, and keeps what the socket does not take.
    fn pass(&mut self, socket: &Socket, bytes: &[u8]) -> io::Result<()> {
        let written = if self.is_empty() { socket.write(bytes)? } else { 0 };
        self.bytes.extend_from_slice(&bytes[written..]);
        Ok(())
    }
}

fn is_readable(flags: EventFlags) -> bool {
    flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
}

fn is_writable(flags: EventFlags) -> bool {
    flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR)
}
