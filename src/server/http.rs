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
//! [`HttpLimits::read_timeout`] is closed; before its first request was admitted it has less, and so
//! has everything else that it can take (`strangers`). A client whose machine is gone without a
//! word is found out by the kernel, in about the time that it may leave a response unread: also one
//! that waits for an answer.

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
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

use super::connection;
use super::door::{Door, Verdict};
use super::strangers::{descriptor_limit, most_strangers};
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
    /// How long a connection may be silent before a request of it was admitted.
    pub(crate) stranger_timeout: Duration,
    /// How many connections of which no request was admitted yet.
    pub(crate) max_strangers: usize,
}

/// How long a connection may be silent before a request of it was admitted. Longer than clients of
/// ours keep an idle connection.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(5);

impl From<&ServerConfig> for HttpLimits {
    fn from(config: &ServerConfig) -> Self {
        Self {
            max_body: config.max_body,
            read_timeout: config.read_timeout,
            write_timeout: config.write_timeout,
            max_connections: config.max_connections,
            stranger_timeout: config.read_timeout.min(STRANGER_TIMEOUT),
            max_strangers: most_strangers(config.max_connections, descriptor_limit()),
        }
    }
}

/// How a server serves.
#[derive(Clone)]
pub(crate) struct Serving {
    /// What it puts up with.
    pub(crate) limits: HttpLimits,
    /// Who is let in.
    pub(crate) door: Arc<Door>,
    /// What does its handshakes, if it speaks TLS.
    pub(crate) tls: Option<TlsAcceptor>,
}

/// The deadline of a grace, which may be endless.
pub(crate) fn deadline(grace: Duration) -> Instant {
    Instant::now() + grace.min(LONGEST)
}

/// A request whose body has not been read yet.
pub(crate) struct Request {
    pub(super) parts: hyper::http::request::Parts,
    pub(super) body: Incoming,
    pub(super) limits: HttpLimits,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) verdict: Verdict,
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

    /// Whether it is let in. To be heeded before the body is read.
    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
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
        serving: Serving,
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
        let accept = connection::accept(listener, serving, handler, connections.clone(), stopped);
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
