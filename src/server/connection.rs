//! Connections: accepted, held to their limits, and let end.
//!
//! Each has a task of its own, in which also its TLS handshake happens: a client that is slow with
//! it holds up no other. Until a request of it is admitted it is a stranger (`strangers`), of which
//! no body is read.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_io_timeout::TimeoutStream;

use super::http::{Request, Response, Serving};
use super::strangers::{Strangers, Visit};
use super::tls;

/// The largest head of a request, and what is read at once of a body. A stranger takes no more
/// memory than this.
const MAX_BUFFER: usize = 32 * 1024;
/// How much is read, and thrown away, of a body that was refused: a client that sends before it
/// reads finds the answer then.
const LINGER_BYTES: usize = 256 * 1024;
/// For how long.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Accepts connections and serves them, until it is stopped; then until the last one has ended.
pub(super) async fn accept<H, F>(
    listener: TcpListener,
    serving: Serving,
    handler: Arc<H>,
    connections: Arc<AtomicUsize>,
    mut stopped: oneshot::Receiver<()>,
) where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(serving.limits.max_connections));
    let strangers = Strangers::new(serving.limits.max_strangers);
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            let accepted = listener.accept().await;
            let visit = match accepted {
                Ok(_) => Some(strangers.enter().await),
                Err(_) => None,
            };
            (place, accepted, visit)
        };
        let (place, stream, visit) = tokio::select! {
            _ = &mut stopped => break,
            (place, accepted, visit) = next => match (accepted, visit) {
                (Ok((stream, _)), Some(visit)) => (place, stream, Arc::new(visit)),
                (Err(error), _) => {
                    // Out of file descriptors, most likely: some connection has to end first.
                    log::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                (Ok(_), None) => continue,
            },
        };
        // Refused only on a socket that is gone already.
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = find_out(&stream, serving.limits.write_timeout);
        let connection = Connection {
            serving: serving.clone(),
            handler: handler.clone(),
            connections: connections.clone(),
            visit,
        };
        let watcher = graceful.watcher();
        let counted = Counted::new(connections.clone());
        tokio::spawn(async move {
            // How a connection ends is the client's business.
            if let Err(error) = connection.run(stream, watcher).await {
                log::debug!("a connection ended: {error}");
            }
            drop((counted, place));
        });
    }
    drop(listener);
    strangers.close();
    graceful.shutdown().await;
}

/// What serves one connection.
struct Connection<H> {
    serving: Serving,
    handler: Arc<H>,
    connections: Arc<AtomicUsize>,
    visit: Arc<Visit>,
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl<H, F> Connection<H>
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    async fn run(self, stream: TcpStream, watcher: Watcher) -> Ended {
        let visit = self.visit.clone();
        let patience = self.serving.limits.stranger_timeout;
        let talk = async move {
            match self.serving.tls.clone() {
                None => self.talk(stream, watcher).await,
                Some(acceptor) => {
                    let stream = tls::accept(&acceptor, stream).await?;
                    self.talk(stream, watcher).await
                }
            }
        };
        tokio::select! {
            ended = talk => ended,
            () = visit.is_over(patience) => Err("it showed no token in time, or had to give way".into()),
        }
    }

    async fn talk<S>(self, stream: S, watcher: Watcher) -> Ended
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let Self { serving, handler, connections, visit } = self;
        let limits = serving.limits;
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits.write_timeout));
        let refused = Arc::new(AtomicBool::new(false));
        let stream = Lingering::new(Box::pin(stream), refused.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (parts, body) = request.into_parts();
            let verdict = serving.door.verdict(&parts, !body.is_end_stream());
            let admitted = verdict.admitted().is_ok();
            visit.asked(admitted);
            refused.store(!admitted, Ordering::Relaxed);
            let connections = connections.clone();
            let response = handler(Request { parts, body, limits, connections, verdict });
            let visit = visit.clone();
            async move {
                let response = response.await;
                visit.answered(Instant::now());
                Ok::<_, Infallible>(response)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.read_timeout)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        Ok(watcher.watch(connection).await?)
    }
}

/// A stream that, when it is shut down after a request was refused, reads for a little while what
/// the client still sends. Closed at once, with unread bytes, it would be reset, and the client
/// would lose the answer.
struct Lingering<S> {
    stream: S,
    refused: Arc<AtomicBool>,
    left: usize,
    time: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<S> Lingering<S> {
    fn new(stream: S, refused: Arc<AtomicBool>) -> Self {
        Self { stream, refused, left: LINGER_BYTES, time: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, refused, left, time } = self.get_mut();
        if time.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
        }
        if !refused.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let time = time.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER_TIME)));
        let mut bytes = [0; 4096];
        while *left > 0 && time.as_mut().poll(context).is_pending() {
            let most = bytes.len().min(*left);
            let mut buffer = ReadBuf::new(&mut bytes[..most]);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => *left -= buffer.filled().len(),
                // The client is done.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Has the kernel end a connection whose other end has not been heard of for about so long.
#[cfg(target_os = "linux")]
fn find_out(stream: impl std::os::fd::AsFd, patience: Duration) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    // The kernel counts in seconds. Four times without an answer is the end.
    let every = Duration::from_secs((patience / 4).as_secs().clamp(1, 30 * 60));
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, every)?;
    sockopt::set_tcp_keepintvl(&stream, every)?;
    let patience = u32::try_from((4 * every).as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(&stream, patience)
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{SocketAddr, TcpStream as Socket};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::server::auth::Token;
    use crate::server::door::Door;
    use crate::server::http::{HttpLimits, HttpServer, StatusCode, response};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn serving(max_strangers: usize, stranger_timeout: Duration) -> Serving {
        let limits = HttpLimits {
            max_body: 1 << 30,
            read_timeout: PATIENCE,
            write_timeout: PATIENCE,
            max_connections: 100,
            stranger_timeout,
            max_strangers,
        };
        let token = Some(Token::new(&"s3cret".into()).unwrap());
        let door = Door { token, on_loopback: true, names: Vec::new(), tls: false };
        Serving { limits, door: Arc::new(door), tls: None }
    }

    /// Reads the body of who is admitted, and nothing of others.
    async fn answer(request: Request) -> Response {
        if let Err(refusal) = request.verdict().admitted() {
            let status = StatusCode::from_u16(refusal.status).unwrap();
            return response(status, "text/plain", refusal.detail);
        }
        let body = request.read_body(usize::MAX).await.map_or(0, |body| body.len());
        response(StatusCode::OK, "text/plain", body.to_string())
    }

    fn server(max_strangers: usize, stranger_timeout: Duration) -> (HttpServer, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = HttpServer::start(listener, serving(max_strangers, stranger_timeout), answer);
        let server = server.unwrap();
        let addr = server.addr();
        (server, addr)
    }

    fn connect(addr: SocketAddr) -> Socket {
        let socket = Socket::connect(addr).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Sends a request with the token, and gives the status.
    fn ask(socket: &Socket, body: &str) -> String {
        let length = body.len();
        let head = format!(
            "POST / HTTP/1.1\r\nAuthorization: Bearer s3cret\r\nContent-Length: {length}\r\n\r\n"
        );
        (&*socket).write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut lines = BufReader::new(socket);
        let mut status = String::new();
        lines.read_line(&mut status).unwrap();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "{status}");
        }
        let mut told = vec![0; length.to_string().len()];
        lines.read_exact(&mut told).unwrap();
        assert_eq!(told, length.to_string().as_bytes());
        status
    }

    /// Whether the server has closed the connection when this returns.
    fn is_closed(socket: &Socket) -> bool {
        matches!((&*socket).read(&mut [0]), Ok(0))
            || matches!((&*socket).read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
    }

    #[test]
    fn of_a_strangers_body_nothing_is_kept_or_asked_for_and_it_finds_its_refusal() {
        const PIPE: usize = 1024;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (sent, answer_text) = runtime.block_on(async {
            let (client, stream) = tokio::io::duplex(PIPE);
            let visit = Arc::new(Strangers::new(1).enter().await);
            let connection = Connection {
                serving: serving(1, PATIENCE),
                handler: Arc::new(answer),
                connections: Arc::default(),
                visit,
            };
            let graceful = GracefulShutdown::new();
            let served = tokio::spawn(connection.talk(stream, graceful.watcher()));
            let (mut reader, mut writer) = tokio::io::split(client);
            let writing = tokio::spawn(async move {
                let head = "POST / HTTP/1.1\r\nAuthorization: Bearer wrong\r\n\
                            Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n";
                writer.write_all(head.as_bytes()).await.unwrap();
                let mut sent = 0;
                while let Ok(written) = writer.write(&[b'x'; 4096]).await {
                    sent += written;
                }
                sent
            });
            let mut text = String::new();
            let _ = reader.read_to_string(&mut text).await;
            served.await.unwrap().unwrap();
            (writing.await.unwrap(), text)
        });
        assert!(answer_text.starts_with("HTTP/1.1 403"), "{answer_text:?}");
        assert!(answer_text.ends_with("Invalid token"), "{answer_text:?}");
        assert!(sent <= MAX_BUFFER + LINGER_BYTES + PIPE, "{sent} bytes were taken");
    }

    #[test]
    fn a_head_that_never_ends_is_read_to_its_limit() {
        let (_server, addr) = server(1, PATIENCE);
        let mut socket = connect(addr);
        socket.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
        // Fails when the server has given up.
        while socket.write_all(&[b'x'; 1024]).is_ok() {}
    }

    #[test]
    fn a_silent_stranger_is_closed_after_a_few_seconds_and_an_admitted_client_is_not() {
        // Long enough for a client of a busy machine to be heard.
        let (server, addr) = server(8, Duration::from_secs(3));
        let known = connect(addr);
        assert!(ask(&known, "x").starts_with("HTTP/1.1 200"));
        let silent = connect(addr);
        let mut slow = connect(addr);
        slow.write_all(b"POST / HTTP/1.1\r\nAuthor").unwrap();
        let mut refused = connect(addr);
        refused.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        // Answered, left open for a moment, and then closed.
        refused.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 401"), "{text}");
        assert!(is_closed(&silent) && is_closed(&slow));
        assert!(ask(&known, "y").starts_with("HTTP/1.1 200"));
        // The client sees a close before the server has counted it.
        let deadline = Instant::now() + PATIENCE;
        while server.connections() != 1 {
            assert!(Instant::now() < deadline, "{} connections are left", server.connections());
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_flood_of_strangers_holds_up_no_client_for_long_and_takes_no_more_than_its_places() {
        const MOST: usize = 4;
        let (server, addr) = server(MOST, PATIENCE);
        let known = connect(addr);
        assert!(ask(&known, "before").starts_with("HTTP/1.1 200"));
        let flood: Vec<_> = (0..3 * MOST)
            .map(|number| {
                let mut socket = connect(addr);
                let head = "POST / HTTP/1.1\r\nContent-Length: 100000000\r\n";
                match number % 3 {
                    0 => {}
                    1 => socket.write_all(head.as_bytes()).unwrap(),
                    _ => {
                        let body = "x".repeat(8 * 1024);
                        socket.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
                    }
                }
                socket
            })
            .collect();
        for _ in 0..100 {
            assert!(ask(&known, "meanwhile").starts_with("HTTP/1.1 200"));
            // One that gives way is counted until it has ended.
            assert!(server.connections() <= 1 + 2 * MOST, "{}", server.connections());
        }
        // Behind all of them, and in all the same.
        let newcomer = connect(addr);
        assert!(ask(&newcomer, "new").starts_with("HTTP/1.1 200"));
        // The first ones gave way, long before their own time.
        assert!(is_closed(&flood[0]) && is_closed(&flood[1]));
        assert!(ask(&known, "after").starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn a_handshake_that_does_not_end_is_given_up_and_holds_up_no_other() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let mut serving = serving(8, Duration::from_secs(1));
        let now = std::time::SystemTime::now();
        serving.tls = Some(tls::acceptor(&cert, &key.into(), now).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = HttpServer::start(listener, serving, answer).unwrap();
        let silent = connect(server.addr());
        let mut slow = connect(server.addr());
        slow.write_all(&[0x16, 3, 1]).unwrap();
        // Accepted after these two, and answered before they are given up.
        let mut plain = connect(server.addr());
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        plain.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 400") && text.contains("https"), "{text}");
        assert!(is_closed(&silent) && is_closed(&slow));
    }

    #[test]
    fn strangers_do_not_hold_up_a_close() {
        let (mut server, addr) = server(8, PATIENCE);
        let silent = connect(addr);
        while server.connections() == 0 {
            std::thread::yield_now();
        }
        server.close(Instant::now() + PATIENCE);
        assert!(is_closed(&silent));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_machine_that_is_gone_is_found_out_in_the_time_for_writing() {
        use rustix::net::sockopt;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = Socket::connect(listener.local_addr().unwrap()).unwrap();
        for (patience, every) in [(30_000, 7), (1, 1), (40_000_000_000, 1800)] {
            find_out(&stream, Duration::from_millis(patience)).unwrap();
            let idle = sockopt::tcp_keepidle(&stream).unwrap();
            assert_eq!((idle.as_secs(), sockopt::socket_keepalive(&stream)), (every, Ok(true)));
            assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), idle);
            assert_eq!(u64::from(sockopt::tcp_user_timeout(&stream).unwrap()), every * 4000);
        }
    }
}
