//! A registry for tests on the loopback interface: it speaks the distribution API, and misbehaves
//! as it is told.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine as _;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A request, as the registry saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    /// The first byte that is wanted.
    pub(crate) from: Option<u64>,
}

impl Request {
    pub(crate) fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }

    pub(crate) fn is_manifest(&self) -> bool {
        self.method == "GET" && self.path.contains("/manifests/")
    }
}

/// What it does in place of an answer.
pub(crate) enum Act {
    /// Answers with this status, these headers and this body.
    Answer(u16, String, String),
    /// Answers as it should, and cuts the connection after so many bytes of the body.
    CutAfter(usize),
    /// Answers with other bytes, which are as many.
    Spoil,
    /// Sends half of the body, and the rest when the test drops the other end.
    Hold(crossbeam_channel::Receiver<()>),
    /// The same, and tells that it has begun.
    Begin(crossbeam_channel::Sender<()>, crossbeam_channel::Receiver<()>),
}

type Rule = dyn Fn(&Request) -> Option<Act> + Send + Sync;

#[derive(Default)]
struct State {
    /// By `repository/manifests/reference`: the kind and the bytes.
    manifests: HashMap<String, (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    rule: Option<Arc<Rule>>,
    /// `user:password` that a token is given for; none is needed without.
    login: Option<String>,
    seen: Vec<Request>,
}

/// A registry on a free port. Its threads end with the test's process.
#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) host: String,
    state: Arc<Mutex<State>>,
}

/// How a layer is packed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Whose media types an image has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Oci,
    Docker,
}

const TOKEN: &str = "a-token-of-the-registry";

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// The tar of a layer with these files.
pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Bytes that no packing makes shorter.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl Registry {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let registry = Self { host, state: Arc::default() };
        let served = registry.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), served) = (stream, served.clone()) else { return };
                // An error means that the client has gone, which may be what the test is about.
                thread::spawn(move || drop(served.serve(stream)));
            }
        });
        registry
    }

    /// From now on it asks this what to do in place of an answer.
    pub(crate) fn rule(&self, rule: impl Fn(&Request) -> Option<Act> + Send + Sync + 'static) {
        self.state.lock().unwrap().rule = Some(Arc::new(rule));
    }

    /// From now on it answers as it should.
    pub(crate) fn behave(&self) {
        self.state.lock().unwrap().rule = None;
    }

    /// From now on it wants a token, which it gives for this `user:password`.
    pub(crate) fn want(&self, login: &str) {
        self.state.lock().unwrap().login = Some(login.to_owned());
    }

    /// What it was asked since this was called last.
    pub(crate) fn seen(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> String {
        let digest = format!("sha256:{}", sha256(bytes));
        self.state.lock().unwrap().blobs.insert(digest.clone(), bytes.to_vec());
        digest
    }

    /// Has a manifest under a name, and by its digest, which is given back.
    pub(crate) fn manifest(&self, repository: &str, tag: &str, kind: &str, body: &Value) -> String {
        let bytes = body.to_string().into_bytes();
        let digest = format!("sha256:{}", sha256(&bytes));
        let mut state = self.state.lock().unwrap();
        for reference in [tag, &digest] {
            let path = format!("{repository}/manifests/{reference}");
            state.manifests.insert(path, (kind.to_owned(), bytes.clone()));
        }
        digest
    }

    /// Has an image with these layers: the digest of its manifest, and of its configuration.
    pub(crate) fn image(
        &self,
        repository: &str,
        tag: &str,
        layers: &[(Vec<u8>, Packing)],
        kind: Kind,
    ) -> (String, String) {
        self.image_for(repository, tag, layers, kind, architecture())
    }

    /// The same for other processors.
    pub(crate) fn image_for(
        &self,
        repository: &str,
        tag: &str,
        layers: &[(Vec<u8>, Packing)],
        kind: Kind,
        architecture: &str,
    ) -> (String, String) {
        let diff_ids: Vec<_> =
            layers.iter().map(|(tar, _)| format!("sha256:{}", sha256(tar))).collect();
        // With a key that a program which writes it anew leaves out.
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"User": "7"},
            "container": "an old key", "history": vec![json!({"created_by": "x"}); layers.len()],
            "created": "2020-01-01T00:00:00Z",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config_bytes = config.to_string().into_bytes();
        let of_kind = |oci: &str, docker: &str| match kind {
            Kind::Oci => format!("application/vnd.oci.image.{oci}"),
            Kind::Docker => format!("application/vnd.docker.{docker}"),
        };
        let described: Vec<_> = layers
            .iter()
            .map(|(tar, packing)| {
                let (bytes, oci, docker) = match packing {
                    Packing::Plain => (tar.clone(), "", ""),
                    Packing::Gzip => (gzip(tar), "+gzip", ".gzip"),
                    Packing::Zstd => (zstd(tar), "+zstd", ".zstd"),
                };
                let media = of_kind(
                    &format!("layer.v1.tar{oci}"),
                    &format!("image.rootfs.diff.tar{docker}"),
                );
                let size = bytes.len();
                json!({"mediaType": media, "digest": self.blob(&bytes), "size": size})
            })
            .collect();
        let config = self.blob(&config_bytes);
        let media = of_kind("manifest.v1+json", "distribution.manifest.v2+json");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media,
            "config": {
                "mediaType": of_kind("config.v1+json", "container.image.v1+json"),
                "digest": config, "size": config_bytes.len(),
            },
            "layers": described,
        });
        (self.manifest(repository, tag, &media, &manifest), config)
    }

    /// Has a list of manifests, which are there by their digests, for these processors.
    pub(crate) fn list(&self, repository: &str, tag: &str, of: &[(&str, &str)]) -> String {
        let state = self.state.lock().unwrap();
        let manifests: Vec<_> = of
            .iter()
            .map(|(digest, architecture)| {
                let path = format!("{repository}/manifests/{digest}");
                let (kind, bytes) = &state.manifests[&path];
                json!({"mediaType": kind, "digest": digest, "size": bytes.len(),
                    "platform": {"os": "linux", "architecture": architecture}})
            })
            .collect();
        drop(state);
        let kind = "application/vnd.oci.image.index.v1+json";
        let body = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
        self.manifest(repository, tag, kind, &body)
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        // The first byte of a TLS handshake: answered as other servers without https do.
        if reader.fill_buf()?.first() == Some(&0x16) {
            let mut stream = stream;
            return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        }
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
        let mut request = Request { method, path, authorization: None, from: None };
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => request.authorization = Some(value.trim().to_owned()),
                "range" => {
                    let first = value.trim().trim_start_matches("bytes=").split('-').next();
                    request.from = first.and_then(|first| first.parse().ok());
                }
                _ => {}
            }
        }
        let (act, answer) = {
            let mut state = self.state.lock().unwrap();
            state.seen.push(request.clone());
            let rule = state.rule.clone();
            let answer = self.answer(&state, &request);
            drop(state);
            (rule.and_then(|rule| rule(&request)), answer)
        };
        self.write(stream, &request, act, answer)
    }

    /// The status, the headers and the body.
    fn answer(&self, state: &State, request: &Request) -> (u16, String, Vec<u8>) {
        let error = |status: u16, code: &str, headers: &str| {
            let body = json!({"errors": [{"code": code, "message": code.to_lowercase()}]});
            let kind = "Content-Type: application/json\r\n";
            (status, format!("{kind}{headers}"), body.to_string().into_bytes())
        };
        if request.path.starts_with("/token") {
            let encoded = state.login.as_ref().map(|login| {
                format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login))
            });
            return match encoded == request.authorization {
                true => (200, String::new(), json!({"token": TOKEN}).to_string().into_bytes()),
                false => error(401, "UNAUTHORIZED", ""),
            };
        }
        let has_token = request.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"));
        if state.login.is_some() && !has_token {
            let host = &self.host;
            let header = format!(
                "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"tests\"\r\n"
            );
            return error(401, "UNAUTHORIZED", &header);
        }
        let Some(path) = request.path.strip_prefix("/v2/") else {
            return error(404, "NOT_FOUND", "");
        };
        if path.is_empty() {
            return (200, String::new(), b"{}".to_vec());
        }
        if let Some((kind, bytes)) = state.manifests.get(path) {
            let digest = sha256(bytes);
            let headers =
                format!("Content-Type: {kind}\r\nDocker-Content-Digest: sha256:{digest}\r\n");
            return (200, headers, bytes.clone());
        }
        let blob = path.split_once("/blobs/").and_then(|(_, digest)| state.blobs.get(digest));
        match (blob, request.from) {
            (Some(bytes), None) => {
                (200, "Content-Type: application/octet-stream\r\n".to_owned(), bytes.clone())
            }
            (Some(bytes), Some(from)) if from < bytes.len() as u64 => {
                let (last, length) = (bytes.len() - 1, bytes.len());
                let range = format!("Content-Range: bytes {from}-{last}/{length}\r\n");
                (206, range, bytes[usize::try_from(from).unwrap()..].to_vec())
            }
            (Some(_), Some(_)) => error(416, "RANGE_INVALID", ""),
            (None, _) if path.contains("/blobs/") => error(404, "BLOB_UNKNOWN", ""),
            (None, _) => error(404, "MANIFEST_UNKNOWN", ""),
        }
    }

    fn write(
        &self,
        mut stream: TcpStream,
        request: &Request,
        act: Option<Act>,
        (status, headers, body): (u16, String, Vec<u8>),
    ) -> std::io::Result<()> {
        let (status, headers, mut body) = match &act {
            Some(Act::Answer(status, headers, body)) => {
                (*status, headers.clone(), body.clone().into_bytes())
            }
            _ => (status, headers, body),
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        if request.method == "HEAD" {
            return Ok(());
        }
        match act {
            Some(Act::CutAfter(most)) => body.truncate(most),
            Some(Act::Spoil) => body.iter_mut().for_each(|byte| *byte ^= 1),
            Some(Act::Hold(until)) => {
                stream.write_all(&body.drain(..length / 2).collect::<Vec<_>>())?;
                let _ = until.recv();
            }
            Some(Act::Begin(begun, until)) => {
                stream.write_all(&body.drain(..length / 2).collect::<Vec<_>>())?;
                let _ = begun.send(());
                let _ = until.recv();
            }
            _ => {}
        }
        stream.write_all(&body)
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}
