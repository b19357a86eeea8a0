//! Servers that stand for the internet.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A server of files: each path has a text, or bytes.
pub(crate) struct Files {
    scheme: &'static str,
    pub(crate) address: String,
    pub(crate) port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Files {
    pub(crate) fn start(address: &str, files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()));
        Self::of(address, files.collect())
    }

    /// Of these paths, whatever query follows them.
    pub(crate) fn of(address: &str, files: HashMap<String, Vec<u8>>) -> Self {
        Self::with(address, None, files)
    }

    /// The same, over TLS if there is a certificate; with the server's URL where a text says `URL`.
    pub(crate) fn with(
        address: &str,
        tls: Option<Arc<ServerConfig>>,
        files: HashMap<String, Vec<u8>>,
    ) -> Self {
        Self::answering(address, tls, move |url, path| {
            let path = path.split('?').next().unwrap_or_default();
            match files.get(path) {
                Some(bytes) => {
                    let text = std::str::from_utf8(bytes).map(|text| text.replace("URL", url));
                    let kind = if path.ends_with('/') { "text/html" } else { "text/plain" };
                    let status = format!("200 OK\r\nContent-Type: {kind}");
                    (status, text.map_or_else(|_| bytes.clone(), Into::into))
                }
                None => ("404 Not Found".to_owned(), b"not found\n".to_vec()),
            }
        })
    }

    /// Of one that sends everyone elsewhere.
    pub(crate) fn redirecting(address: &str, to: &str) -> Self {
        let to = to.to_owned();
        Self::answering(address, None, move |_, _| {
            (format!("302 Found\r\nLocation: {to}"), Vec::new())
        })
    }

    /// `answer` gets the server's URL and the path, and gives a status line, perhaps with headers
    /// after it, and a body.
    fn answering(
        address: &str,
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&str, &str) -> (String, Vec<u8>) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{address}:{port}");
        let answer = Arc::new(move |path: &str| answer(&url, path));
        let log = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                let (log, answer, tls) = (log.clone(), answer.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    Some(tls) => {
                        let connection = ServerConnection::new(tls).unwrap();
                        serve(StreamOwned::new(connection, stream), &log, &*answer);
                    }
                    None => serve(stream, &log, &*answer),
                });
            }
        });
        Self { scheme, address: address.to_owned(), port, requests }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}:{}{path}", self.scheme, self.address, self.port)
    }

    /// What allows it.
    pub(crate) fn pattern(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    /// The request lines so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// A certificate for an address, and what a server needs of it.
pub(super) fn certificate(address: &str) -> (String, Arc<ServerConfig>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new([address.to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (certificate.pem(), Arc::new(config))
}

fn serve(
    stream: impl Read + Write,
    log: &Mutex<Vec<String>>,
    answer: &dyn Fn(&str) -> (String, Vec<u8>),
) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            if stream.read_line(&mut header).unwrap_or(0) == 0 {
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
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        log.lock().unwrap().push(line.trim_end().to_owned());
        let path = line.split(' ').nth(1).unwrap_or_default();
        let (status, body) = answer(path);
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        let body: &[u8] = if line.starts_with("HEAD") { &[] } else { &body };
        let stream = stream.get_mut();
        let written = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        if written.and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
}
