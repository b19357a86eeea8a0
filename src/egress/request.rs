//! The head of a request to the proxy, and what is sent on of it. Pure.
//!
//! Two kinds of request pass: `CONNECT host:port`, and any other method with an absolute `http://`
//! URL. Of the second kind the server sees what a client would have sent to it directly: the path,
//! a `Host` that says what the URL said, no header that is for the proxy alone, and
//! `Connection: close`, since a connection carries one request.
//!
//! Reading is strict – CRLF alone ends a line, nothing is guessed –, so that no server can take
//! what passes for something else than was checked here.

use std::net::IpAddr;

use super::address;
use super::rules::Host;

/// The longest head.
pub(super) const LONGEST_HEAD: usize = 32 * 1024;
/// The most header lines.
const MOST_HEADERS: usize = 200;

/// A request to pass on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// Its method.
    pub(super) method: String,
    /// Whom it is for.
    pub(super) host: Host,
    /// The port.
    pub(super) port: u16,
    /// What is to be done.
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// `CONNECT`: bytes pass both ways.
    Tunnel,
    /// This head is sent on, and after it a body of this length.
    Plain(Vec<u8>, Framing),
}

/// How a request's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// As the chunks say.
    Chunked,
}

/// What keeps a request from being understood: the status of the answer, and why, as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadRequest {
    /// The status.
    pub(super) status: u16,
    /// Why.
    pub(super) why: String,
}

fn bad<T>(why: &str) -> Result<T, BadRequest> {
    Err(BadRequest { status: 400, why: why.to_owned() })
}

impl Request {
    /// Whom it is for, as it was asked.
    pub(super) fn asked(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// The request at the beginning of `bytes`, and how long its head is; `None` while that is not
/// whole. The first `seen` bytes were there before.
///
/// # Errors
/// It is none that is passed on.
pub(super) fn parse(bytes: &[u8], seen: usize) -> Result<Option<(Request, usize)>, BadRequest> {
    if bytes.first().is_some_and(|first| !is_token(*first)) {
        return bad("this is no HTTP request: the sandbox's proxy speaks HTTP/1.1");
    }
    let from = seen.saturating_sub(3);
    let end = bytes[from..].windows(4).position(|four| four == b"\r\n\r\n").map(|at| from + at);
    match end {
        Some(end) if end + 4 <= LONGEST_HEAD => {
            parse_head(&bytes[..end]).map(|request| Some((request, end + 4)))
        }
        None if bytes.len() < LONGEST_HEAD => Ok(None),
        _ => {
            let why = format!("the request's head is longer than {LONGEST_HEAD} bytes");
            Err(BadRequest { status: 431, why })
        }
    }
}

/// A head without the empty line that ends it.
fn parse_head(head: &[u8]) -> Result<Request, BadRequest> {
    if head.contains(&0) {
        return bad("there is a NUL in the request's head");
    }
    let mut lines = Lines(Some(head));
    let Some(first) = lines.next().transpose()? else { return bad("there is no request line") };
    let mut words = first.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return bad("the request line is not METHOD TARGET VERSION");
    };
    let Some(method) = token(method) else { return bad("the method is no token") };
    if target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return bad("there is a control character in the request's target");
    }
    let is_old = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => {
            let why = "the sandbox's proxy speaks HTTP/1.1".to_owned();
            return Err(BadRequest { status: 505, why });
        }
    };
    let mut headers = Vec::new();
    for line in lines {
        headers.push(header(line?)?);
        if headers.len() > MOST_HEADERS {
            let why = format!("there are more than {MOST_HEADERS} headers");
            return Err(BadRequest { status: 431, why });
        }
    }
    let framing = framing(&headers, is_old)?;
    if method == "CONNECT" {
        if framing != Framing::Length(0) {
            return bad("a CONNECT has no body");
        }
        let (host, port) = authority(target, None)?;
        return Ok(Request { method: method.to_owned(), host, port, kind: Kind::Tunnel });
    }
    let (authority_part, path) = absolute(target)?;
    let (host, port) = authority(authority_part, Some(80))?;
    let mut out = Vec::with_capacity(head.len() + 64);
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    match path {
        [] if method == "OPTIONS" => out.push(b'*'),
        [b'/', ..] => out.extend_from_slice(path),
        _ => {
            out.push(b'/');
            out.extend_from_slice(path);
        }
    }
    out.push(b' ');
    out.extend_from_slice(version);
    let shown = if port == 80 { host.to_string() } else { format!("{host}:{port}") };
    out.extend_from_slice(format!("\r\nHost: {shown}\r\n").as_bytes());
    let named = named_by_connection(&headers);
    for (name, value) in &headers {
        if name.eq_ignore_ascii_case("host") || is_hop_by_hop(name) || named.contains(name) {
            continue;
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"Connection: close\r\n\r\n");
    Ok(Request { method: method.to_owned(), host, port, kind: Kind::Plain(out, framing) })
}

/// The lines of a head. A CR or LF alone is an error.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], BadRequest>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0?;
        let end = rest.windows(2).position(|two| two == b"\r\n");
        let line = &rest[..end.unwrap_or(rest.len())];
        self.0 = end.map(|end| &rest[end + 2..]);
        if line.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            self.0 = None;
            return Some(bad("a CR or LF stands alone in the request's head"));
        }
        Some(Ok(line))
    }
}

/// A header's name and value.
fn header(line: &[u8]) -> Result<(&str, &[u8]), BadRequest> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return bad("a header is folded over lines");
    }
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return bad("a header has no colon");
    };
    let Some(name) = token(&line[..colon]) else { return bad("a header's name is no token") };
    let value = line[colon + 1..].trim_ascii();
    if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return bad("there is a control character in a header");
    }
    Ok((name, value))
}

/// How the body ends. What could be read in two ways is refused.
fn framing(headers: &[(&str, &[u8])], is_old: bool) -> Result<Framing, BadRequest> {
    let all = |wanted: &str| -> Vec<&[u8]> {
        let found = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| *value).collect()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    match (&*lengths, &*codings) {
        ([], []) => Ok(Framing::Length(0)),
        ([length], []) => {
            let is_number = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok());
            match number.filter(|_| is_number) {
                Some(length) => Ok(Framing::Length(length)),
                None => bad("the Content-Length is no number"),
            }
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && !is_old => {
            Ok(Framing::Chunked)
        }
        ([_, _, ..], _) => bad("there is more than one Content-Length"),
        ([_], [_, ..]) => bad("there are both a Content-Length and a Transfer-Encoding"),
        ([], _) => bad("the sandbox's proxy knows no Transfer-Encoding but chunked, in HTTP/1.1"),
    }
}

/// The authority of an absolute URL, and what follows it.
fn absolute(target: &[u8]) -> Result<(&[u8], &[u8]), BadRequest> {
    let scheme_end = target.windows(3).position(|three| three == b"://");
    let Some(at) = scheme_end.filter(|_| target[0].is_ascii_alphabetic()) else {
        return bad(
            "this is the sandbox's proxy: it takes CONNECT, and other methods with an absolute \
             http:// URL",
        );
    };
    if !target[..at].eq_ignore_ascii_case(b"http") {
        let why = "the sandbox's proxy takes http:// URLs, and CONNECT for all others".to_owned();
        return Err(BadRequest { status: 501, why });
    }
    let rest = &target[at + 3..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
    if path.contains(&b'#') {
        return bad("there is a fragment in the request's URL");
    }
    Ok((authority, path))
}

/// The host and the port of an authority.
fn authority(text: &[u8], default_port: Option<u16>) -> Result<(Host, u16), BadRequest> {
    let Ok(text) = std::str::from_utf8(text) else { return bad("the host's name is not ASCII") };
    if text.contains('@') {
        return bad("there is a user in the request's URL; send an Authorization header");
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((six, rest)) = rest.split_once(']') else {
                return bad("the address's bracket is not closed");
            };
            let Ok(IpAddr::V6(six)) = six.parse() else {
                return bad("what is in brackets is no IPv6 address");
            };
            let port = match rest.strip_prefix(':') {
                None if !rest.is_empty() => return bad("what follows the address is no port"),
                port => port,
            };
            (Host::Address(address::canonical(IpAddr::V6(six))), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            (named(host)?, port)
        }
    };
    let is_number = |port: &&str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = match (port, default_port) {
        (None | Some(""), Some(default)) => Some(default),
        (port, _) => port.filter(is_number).and_then(|port| port.parse().ok()),
    };
    match port.filter(|port| *port > 0) {
        Some(port) => Ok((host, port)),
        None => bad("the request names no port from 1 to 65535"),
    }
}

fn named(host: &str) -> Result<Host, BadRequest> {
    if let Ok(four) = host.parse() {
        return Ok(Host::Address(IpAddr::V4(four)));
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(is_letter) {
        return bad("the request's host is neither an address nor a name");
    }
    Ok(Host::Name(name))
}

/// The headers that `Connection` declares to be for the proxy alone. Not those by which the body's
/// end is known.
fn named_by_connection<'a>(headers: &[(&'a str, &'a [u8])]) -> Vec<&'a str> {
    let is_connection = |name: &str| {
        name.eq_ignore_ascii_case("connection") || name.eq_ignore_ascii_case("proxy-connection")
    };
    let said: Vec<&[u8]> = headers
        .iter()
        .filter(|(name, _)| is_connection(name))
        .flat_map(|(_, value)| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .collect();
    let essential = ["content-length", "transfer-encoding", "host", "expect"];
    headers
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| said.iter().any(|one| one.eq_ignore_ascii_case(name.as_bytes())))
        .filter(|name| !essential.iter().any(|one| name.eq_ignore_ascii_case(one)))
        .collect()
}

/// Whether a header is for the next hop alone. `Transfer-Encoding` is, too, but the body passes as
/// it is.
pub(super) fn is_hop_by_hop(name: &str) -> bool {
    const NAMES: [&str; 8] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "upgrade",
        "http2-settings",
    ];
    NAMES.iter().any(|one| name.eq_ignore_ascii_case(one))
}

fn token(bytes: &[u8]) -> Option<&str> {
    let is_one = !bytes.is_empty() && bytes.iter().all(|byte| is_token(*byte));
    std::str::from_utf8(bytes).ok().filter(|_| is_one)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
