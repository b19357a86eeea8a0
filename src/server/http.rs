//! Serving HTTP: connections, their limits, and their end. Knows nothing of what is served.
//!
//! One runtime a server, on threads called `tool-http-N`. A handler is an `async` function from
//! [`Request`] to [`Response`]; it must not block, so whatever does is handed to threads
//! elsewhere. Its future is dropped when the client goes away: what is to happen then, happens in
//! a `Drop`.
//!
//! # Bounds
//! Connections, the size of a request's body, the time that a request may take to arrive, and the
//! time that the client may leave a response unread. A connection that is idle for
//! [`HttpLimits::read_timeout`] is closed. A client whose machine is gone without a word is found
//! out by the kernel, in about the time that it may leave a response unread: also one that waits
//! for an answer.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_io_timeout::TimeoutStream;

use crate::config::ServerConfig;
use crate::seconds::LONGEST;

pub(crate) use hyper::{Method, StatusCode};

/// What a handler gives.
pub(crate) type Response = hyper::Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What a server puts up with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HttpLimits {
    /// The largest body of a request, in bytes.
    pub(crate) max_body: usize,
    /// How long a request may take to arrive: its head, and then its body.
    pub(crate) read_timeout: Duration,
    /// How long a client may leave unread what it is sent.
    pub(crate) write_timeout: Duration,
    /// How many connections at once; further ones wait to be accepted.
    pub(crate) max_connections: usize,
}

impl From<&ServerConfig> for HttpLimits {
    fn from(config: &ServerConfig) -> Self {
        Self {
            max_body: config.max_body,
            read_timeout: config.read_timeout,
            write_timeout: config.write_timeout,
            max_connections: config.max_connections,
        }
    }
}

/// The deadline of a grace, which may be endless.
pub(crate) fn deadline(grace: Duration) -> Instant {
    Instant::now() + grace.min(LONGEST)
}

/// A request whose body has not been read yet.
pub(crate) struct Request {
    parts: hyper::http::request::Parts,
    body: Incoming,
    limits: HttpLimits,
    connections: Arc<AtomicUsize>,
}

/// Why a request's body could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// It has more than this many bytes.
    TooLarge(usize),
    /// It took too long.
    TooSlow,
    /// The client went away in the middle.
    Broken,
}

impl Request {
    /// The method.
    pub(crate) fn method(&self) -> &Method {
        &self.parts.method
    }

    /// The path, as it was sent.
    pub(crate) fn path(&self) -> &str {
        self.parts.uri.path()
    }

    /// The query, without its question mark.
    pub(crate) fn query(&self) -> Option<&str> {
        self.parts.uri.query()
    }

    /// The `Authorization` header.
    pub(crate) fn authorization(&self) -> Option<&[u8]> {
        self.parts.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes)
    }

    /// The `Content-Type` header, if it is text.
    pub(crate) fn content_type(&self) -> Option<&str> {
        self.parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok())
    }

    /// How many connections the server has now.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Reads the body, of at most `max` bytes and never more than the server's limit.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub(crate) async fn read_body(self, max: usize) -> Result<Bytes, BodyError> {
        let max = max.min(self.limits.max_body);
        // Said beforehand, it need not be read to be refused.
        let announced = self.parts.headers.get(CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|bytes| bytes > max) {
            return Err(BodyError::TooLarge(max));
        }
        let body = Limited::new(self.body, max).collect();
        match tokio::time::timeout(self.limits.read_timeout, body).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge(max)),
            Ok(Err(_)) => Err(BodyError::Broken),
            Err(_) => Err(BodyError::TooSlow),
        }
    }
}

/// A response with a whole body.
pub(crate) fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response {
    let mut response = hyper::Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A response whose body comes piece by piece, and ends when the sender is dropped. Each piece is
/// sent at once.
pub(crate) fn streaming(
    status: StatusCode,
    content_type: &'static str,
    pieces: mpsc::Receiver<Bytes>,
) -> Response {
    let mut response = hyper::Response::new(Pieces(pieces).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The same pieces, for a thread that must not be held up by its client: they end when one of them
/// is not taken for so long. To be called on the runtime.
pub(crate) fn taken_within(
    patience: Duration,
    mut pieces: mpsc::Receiver<Bytes>,
) -> mpsc::Receiver<Bytes> {
    let (sender, taken) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(piece) = pieces.recv().await {
            let sent = tokio::time::timeout(patience, sender.send(piece)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    });
    taken
}

struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// How many connections may wait to be accepted; the kernel may allow fewer.
#[cfg(target_os = "linux")]
const BACKLOG: i32 = 4_096;

/// A running server. Dropped, it ends at once.
pub(crate) struct HttpServer {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
    /// Ends the accepting; answered when the last connection has ended.
    stop: Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>,
}

impl HttpServer {
    /// Serves what comes to `listener` with `handler`. Does not block.
    ///
    /// # Errors
    /// The operating system's, when it refuses threads or the listener.
    pub(crate) fn start<H, F>(
        listener: TcpListener,
        limits: HttpLimits,
        handler: H,
    ) -> io::Result<Self>
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        // The standard library lets 128 wait to be accepted. When a thousand agents connect at
        // once, the others would try again a second later. Listening again changes just that.
        #[cfg(target_os = "linux")]
        rustix::net::listen(&listener, BACKLOG)?;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let number = AtomicUsize::new(0);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.clamp(1, 4))
            .thread_name_fn(move || format!("tool-http-{}", number.fetch_add(1, Ordering::Relaxed)))
            .enable_all()
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let connections = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let (tell_ended, ended) = oneshot::channel();
        let handler = Arc::new(handler);
        let accept = accept(listener, limits, handler, connections.clone(), stopped);
        runtime.spawn(async move {
            accept.await;
            let _ = tell_ended.send(());
        });
        Ok(Self { addr, connections, runtime: Some(runtime), stop: Some((stop, ended)) })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections there are now.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Stops accepting, lets the requests under way end until `deadline`, and ends the rest.
    /// Blocks. Not to be called on one of the server's own threads.
    pub(crate) fn close(&mut self, deadline: Instant) {
        if let (Some(runtime), Some((stop, ended))) = (&self.runtime, self.stop.take()) {
            let _ = stop.send(());
            // An error is a timeout: the rest is ended below.
            let _ =
                runtime.block_on(async { tokio::time::timeout_at(deadline.into(), ended).await });
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
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

async fn accept<H, F>(
    listener: tokio::net::TcpListener,
    limits: HttpLimits,
    handler: Arc<H>,
    connections: Arc<AtomicUsize>,
    mut stopped: oneshot::Receiver<()>,
) where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            _ = &mut stopped => break,
            (place, accepted) = next => match accepted {
                Ok((stream, _)) => (place, stream),
                Err(error) => {
                    // Out of file descriptors, most likely: some connection has to end first.
                    log::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        // Refused only on a socket that is gone already.
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = find_out(&stream, limits.write_timeout);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits.write_timeout));
        let (handler, count) = (handler.clone(), connections.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (parts, body) = request.into_parts();
            let response = handler(Request { parts, body, limits, connections: count.clone() });
            async move { Ok::<_, Infallible>(response.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.read_timeout)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = graceful.watch(connection);
        let counted = Counted::new(connections.clone());
        tokio::spawn(async move {
            // How a connection ends is the client's business.
            if let Err(error) = connection.await {
                log::debug!("a connection ended: {error}");
            }
            drop((counted, place));
        });
    }
    drop(listener);
    graceful.shutdown().await;
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_gone_is_found_out_in_the_time_for_writing() {
        use rustix::net::sockopt;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for (patience, every) in [(30_000, 7), (1, 1), (40_000_000_000, 1800)] {
            find_out(&stream, Duration::from_millis(patience)).unwrap();
            let idle = sockopt::tcp_keepidle(&stream).unwrap();
            assert_eq!((idle.as_secs(), sockopt::socket_keepalive(&stream)), (every, Ok(true)));
            assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), idle);
            assert_eq!(u64::from(sockopt::tcp_user_timeout(&stream).unwrap()), every * 4000);
        }
    }
}
