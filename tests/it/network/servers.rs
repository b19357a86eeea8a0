//! Servers that stand for the internet.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A server of files: each path has a text, or bytes.
pub(super) struct Files {
    pub(super) address: String,
    pub(super) port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Files {
    pub(super) fn start(address: &str, files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()));
        Self::of(address, files.collect())
    }

    /// Of these paths, whatever query follows them.
    pub(super) fn of(address: &str, files: HashMap<String, Vec<u8>>) -> Self {
        Self::answering(address, move |path| {
            let path = path.split('?').next().unwrap_or_default();
            match files.get(path) {
                Some(bytes) => ("200 OK".to_owned(), bytes.clone()),
                None => ("404 Not Found".to_owned(), b"not found\n".to_vec()),
            }
        })
    }

    /// Of one that sends everyone elsewhere.
    pub(super) fn redirecting(address: &str, to: &str) -> Self {
        let to = to.to_owned();
        Self::answering(address, move |_| (format!("302 Found\r\nLocation: {to}"), Vec::new()))
    }

    /// `answer` gives a status line, perhaps with headers after it, and a body.
    pub(super) fn answering(
        address: &str,
        answer: impl Fn(&str) -> (String, Vec<u8>) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, answer) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Self { address: address.to_owned(), port, requests }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.address, self.port)
    }

    /// What allows it.
    pub(super) fn pattern(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    /// The request lines so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<String>>, answer: &dyn Fn(&str) -> (String, Vec<u8>)) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if header == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        log.lock().unwrap().push(line.trim_end().to_owned());
        let path = line.split(' ').nth(1).unwrap_or_default();
        let (status, body) = answer(path);
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        let body: &[u8] = if line.starts_with("HEAD") { &[] } else { &body };
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).is_err() {
            return;
        }
    }
}
