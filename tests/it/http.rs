//! A small HTTP server for tests, which answers as it is told – also wrongly, or not at all.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};

/// A request, as the server saw it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: String,
    /// Counts the connections: which one it came on.
    pub(crate) connection: usize,
}

/// What the server does with a request.
pub(crate) enum Reply {
    /// Answers with this status and body.
    Answer(u16, String),
    /// Writes these bytes and closes.
    Raw(Vec<u8>),
    /// Says nothing until the test drops the other end, then closes.
    Hang(Receiver<()>),
    /// Writes these pieces as they come, and closes when the test drops the other end.
    Stream(Receiver<Vec<u8>>),
    /// Writes these bytes and then so many more that say nothing, and closes.
    Flood(Vec<u8>, usize),
    /// Answers and closes the connection without having announced it.
    AnswerAndClose(u16, String),
}

/// Answers 200 with this body.
pub(crate) fn ok(body: impl Into<String>) -> Reply {
    Reply::Answer(200, body.into())
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server on a free port. Its threads end with the test's process.
pub(crate) struct Server {
    pub(crate) url: String,
    /// Every request, in order of arrival.
    pub(crate) requests: Receiver<Request>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, requests) = unbounded();
        let handler: Arc<Handler> = Arc::new(handler);
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let (handler, seen) = (handler.clone(), seen.clone());
                thread::spawn(move || {
                    // An error means that the client has gone, which may be what the test is about.
                    let _ = serve(stream, connection, &*handler, &seen);
                });
            }
        });
        Self { url, requests }
    }
}

fn serve(
    stream: TcpStream,
    connection: usize,
    handler: &Handler,
    seen: &Sender<Request>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (mut length, mut authorization) = (0, None);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap(),
                "authorization" => authorization = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8(body).unwrap();
        let request = Request { method, path, authorization, body, connection };
        let reply = handler(&request);
        let _ = seen.send(request);
        match reply {
            Reply::Answer(status, body) => answer(&mut stream, status, &body)?,
            Reply::AnswerAndClose(status, body) => return answer(&mut stream, status, &body),
            Reply::Raw(bytes) => return stream.write_all(&bytes),
            Reply::Hang(until) => {
                let _ = until.recv();
                return Ok(());
            }
            Reply::Stream(pieces) => return pieces.iter().try_for_each(|p| stream.write_all(&p)),
            Reply::Flood(bytes, more) => {
                stream.write_all(&bytes)?;
                return std::io::copy(&mut std::io::repeat(b'x').take(more as u64), &mut stream)
                    .map(drop);
            }
        }
    }
}

fn answer(stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())
}
