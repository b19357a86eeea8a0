//! A TCP proxy that does to requests and connections what a test says.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

/// What is done to a request, or to the connection that it comes on.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// Cuts the connection when so many bytes of the request have been passed on.
    CutRequest(usize),
    /// Cuts the connection when so many bytes of the response have.
    CutResponse(usize),
    /// Passes the request on and says nothing to the client any more.
    NoResponse,
    /// Passes the request on when the other end is dropped, whatever the client does meanwhile.
    Held(Receiver<()>),
    /// Sends the request twice: first on a connection of the proxy's own, whose answer it waits for
    /// and keeps.
    TwiceBefore,
    /// The same, but afterwards, when the other end is dropped.
    TwiceAfter(Receiver<()>),
}

struct Plan {
    /// What the request begins with.
    begins: &'static str,
    trouble: Trouble,
}

#[derive(Default)]
struct Shared {
    plan: Mutex<Option<Plan>>,
    /// How many connections were cut, and requests disturbed.
    done: AtomicUsize,
    /// Whether connections are closed as soon as they come.
    refuses: AtomicBool,
    refused: AtomicUsize,
    /// Every connection that there was.
    connections: Mutex<Vec<TcpStream>>,
}

/// In front of one server. Its threads end with their connections.
pub(crate) struct Proxy {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

impl Proxy {
    pub(crate) fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if its.refuses.load(Ordering::SeqCst) {
                    its.refused.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let Ok(to_server) = TcpStream::connect(server) else { continue };
                let _ = (client.set_nodelay(true), to_server.set_nodelay(true));
                its.connections.lock().push(client.try_clone().unwrap());
                pass_on(client, to_server, server, its.clone());
            }
        });
        Self { url, shared }
    }

    /// Does this to the next request that begins so.
    pub(crate) fn next(&self, begins: &'static str, trouble: Trouble) {
        *self.shared.plan.lock() = Some(Plan { begins, trouble });
    }

    /// Cuts every connection now.
    pub(crate) fn cut_all(&self) {
        for connection in self.shared.connections.lock().drain(..) {
            // An error: it is closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Cuts every connection, and closes new ones as soon as they come – until it is told
    /// otherwise.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::SeqCst);
        self.cut_all();
    }

    /// How many connections were closed as soon as they came.
    pub(crate) fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// How many of the troubles have come to pass.
    pub(crate) fn done(&self) -> usize {
        self.shared.done.load(Ordering::SeqCst)
    }
}

/// How many bytes of the response may still be passed on; `usize::MAX` is all of them.
type Allowed = Arc<AtomicUsize>;
/// How many bytes may be passed on when none is cut.
const ALL: usize = usize::MAX;
/// The response is read, and not passed on.
const SWALLOWED: usize = usize::MAX - 1;

fn pass_on(client: TcpStream, to_server: TcpStream, server: SocketAddr, shared: Arc<Shared>) {
    let allowed: Allowed = Arc::new(AtomicUsize::new(ALL));
    let (mut from, mut to) = (client.try_clone().unwrap(), to_server.try_clone().unwrap());
    let (its_allowed, its) = (allowed.clone(), shared.clone());
    thread::spawn(move || {
        // An error: one of them is closed, which may be what the test is about.
        let _ = requests(&mut from, &mut to, server, &its_allowed, &its);
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
    let (mut from, mut to) = (to_server, client);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            if read == 0 {
                break;
            }
            let most = allowed.load(Ordering::SeqCst);
            if most == SWALLOWED {
                continue;
            }
            let passed = read.min(most);
            if to.write_all(&buffer[..passed]).is_err() {
                break;
            }
            if most != ALL {
                allowed.store(most - passed, Ordering::SeqCst);
                if most == passed {
                    shared.done.fetch_add(1, Ordering::SeqCst);
                    break;
                }
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}

/// Passes requests on until the connection ends or is cut.
fn requests(
    from: &mut TcpStream,
    to: &mut TcpStream,
    server: SocketAddr,
    allowed: &Allowed,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut left = ALL;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        let mut request = buffer[..read].to_vec();
        let trouble = {
            let mut plan = shared.plan.lock();
            let meant =
                plan.as_ref().is_some_and(|plan| request.starts_with(plan.begins.as_bytes()));
            if meant { plan.take() } else { None }.map(|plan| plan.trouble)
        };
        match trouble {
            None => {}
            Some(Trouble::CutRequest(bytes)) => left = bytes,
            Some(Trouble::CutResponse(bytes)) => allowed.store(bytes, Ordering::SeqCst),
            Some(Trouble::NoResponse) => {
                allowed.store(SWALLOWED, Ordering::SeqCst);
                shared.done.fetch_add(1, Ordering::SeqCst);
            }
            Some(Trouble::Held(until)) => {
                read_whole(from, &mut request)?;
                shared.done.fetch_add(1, Ordering::SeqCst);
                // An error is the release.
                let _ = until.recv();
            }
            Some(Trouble::TwiceBefore) => {
                read_whole(from, &mut request)?;
                send_alone(server, &request)?;
                shared.done.fetch_add(1, Ordering::SeqCst);
            }
            Some(Trouble::TwiceAfter(until)) => {
                read_whole(from, &mut request)?;
                let copy = request.clone();
                thread::spawn(move || {
                    let _ = until.recv();
                    let _ = send_alone(server, &copy);
                });
                shared.done.fetch_add(1, Ordering::SeqCst);
            }
        }
        let passed = request.len().min(left);
        to.write_all(&request[..passed])?;
        if left != ALL {
            left -= passed;
            if left == 0 {
                shared.done.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
        }
    }
}

/// Reads on until the request is there to its end.
fn read_whole(from: &mut TcpStream, request: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let text = String::from_utf8_lossy(request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
            if body.len() >= length {
                return Ok(());
            }
        }
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..read]);
    }
}

/// Sends a request on a connection of its own, and waits until its answer begins.
fn send_alone(server: SocketAddr, request: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(request)?;
    stream.read(&mut [0; 1024]).map(drop)
}
