//! A TCP proxy that cuts connections where a test says.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

/// Where to cut the connection, counted from the beginning of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    /// When so many bytes of the request have been passed on.
    Request(usize),
    /// When so many bytes of the response have.
    Response(usize),
}

struct Plan {
    /// What a request that is to be cut begins with.
    begins: &'static str,
    cut: Cut,
}

/// In front of one server. Its threads end with their connections.
pub(crate) struct Proxy {
    pub(crate) url: String,
    plan: Arc<Mutex<Option<Plan>>>,
    cuts: Arc<AtomicUsize>,
    /// Every connection that there was.
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    pub(crate) fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let plan = Arc::new(Mutex::new(None));
        let cuts = Arc::new(AtomicUsize::new(0));
        let (its_plan, its_cuts) = (plan.clone(), cuts.clone());
        let connections = Arc::new(Mutex::new(Vec::new()));
        let its_connections = connections.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = TcpStream::connect(server) else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                its_connections.lock().push(client.try_clone().unwrap());
                pass_on(client, server, its_plan.clone(), its_cuts.clone());
            }
        });
        Self { url, plan, cuts, connections }
    }

    /// Cuts the next request that begins so.
    pub(crate) fn cut_next(&self, begins: &'static str, cut: Cut) {
        *self.plan.lock() = Some(Plan { begins, cut });
    }

    /// Cuts every connection now.
    pub(crate) fn cut_all(&self) {
        for connection in self.connections.lock().drain(..) {
            // An error: it is closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// How many connections were cut.
    pub(crate) fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

/// How many bytes of the response may still be passed on; `usize::MAX` is all of them.
type Allowed = Arc<AtomicUsize>;

fn pass_on(
    client: TcpStream,
    server: TcpStream,
    plan: Arc<Mutex<Option<Plan>>>,
    cuts: Arc<AtomicUsize>,
) {
    let allowed: Allowed = Arc::new(AtomicUsize::new(usize::MAX));
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let its_allowed = allowed.clone();
    let its_cuts = cuts.clone();
    thread::spawn(move || {
        let mut left = usize::MAX;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            if read == 0 {
                break;
            }
            let mut plan = plan.lock();
            if plan.as_ref().is_some_and(|plan| buffer[..read].starts_with(plan.begins.as_bytes()))
                && let Some(Plan { cut, .. }) = plan.take()
            {
                match cut {
                    Cut::Request(bytes) => left = bytes,
                    Cut::Response(bytes) => its_allowed.store(bytes, Ordering::SeqCst),
                }
            }
            drop(plan);
            let passed = read.min(left);
            if to.write_all(&buffer[..passed]).is_err() {
                break;
            }
            if left != usize::MAX {
                left -= passed;
                if left == 0 {
                    its_cuts.fetch_add(1, Ordering::SeqCst);
                    break;
                }
            }
        }
        // An error: it is closed already.
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
    let (mut from, mut to) = (server, client);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            if read == 0 {
                break;
            }
            let most = allowed.load(Ordering::SeqCst);
            let passed = read.min(most);
            if to.write_all(&buffer[..passed]).is_err() {
                break;
            }
            if most != usize::MAX {
                allowed.store(most - passed, Ordering::SeqCst);
                if most == passed {
                    cuts.fetch_add(1, Ordering::SeqCst);
                    break;
                }
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}
