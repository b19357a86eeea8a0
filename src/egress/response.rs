//! The head of a server's response, as it is passed on, and the proxy's own answers. Pure.
//!
//! A client must know that its connection ends with the response, since it carries no second
//! request: `Connection: close` takes the place of what the server said.

use super::request::is_hop_by_hop;

/// The longest head.
pub(super) const LONGEST_HEAD: usize = 128 * 1024;

/// A response's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// As it is passed on.
    pub(super) bytes: Vec<u8>,
    /// How long it was.
    pub(super) length: usize,
    /// Whether another follows it.
    pub(super) is_interim: bool,
}

/// The head at the beginning of `bytes`; `None` while it is not whole. The first `seen` bytes were
/// there before.
///
/// A server may end a line with LF alone: it can deceive nothing but its own client.
///
/// # Errors
/// It is no response; why, as one line.
pub(super) fn parse(bytes: &[u8], seen: usize) -> Result<Option<Head>, &'static str> {
    let start = &b"HTTP/1."[..bytes.len().min(7)];
    if !bytes.starts_with(start) {
        return Err("the server's answer is not HTTP/1");
    }
    let from = seen.saturating_sub(3);
    let end = (from..bytes.len()).find_map(|at| {
        let rest = &bytes[at..];
        let length = if rest.starts_with(b"\n\r\n") { Some(3) } else { None };
        length.or(if rest.starts_with(b"\n\n") { Some(2) } else { None }).map(|length| at + length)
    });
    let Some(length) = end.filter(|length| *length <= LONGEST_HEAD) else {
        return match end.is_none() && bytes.len() < LONGEST_HEAD {
            true => Ok(None),
            false => Err("the head of the server's answer is too long"),
        };
    };
    let mut lines = bytes[..length]
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    let status = match first.get(8..12) {
        Some([b' ', digits @ ..]) if digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return Err("the server's answer has no status"),
    };
    if status == b"101" {
        return Err("the server changes the protocol, which nothing asked for");
    }
    let is_interim = status[0] == b'1';
    let mut out = Vec::with_capacity(length + 32);
    out.extend_from_slice(first);
    out.extend_from_slice(b"\r\n");
    // A header that is folded goes with its first line.
    let mut is_kept = false;
    for line in lines.filter(|line| !line.is_empty()) {
        if !matches!(line[0], b' ' | b'\t') {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            is_kept = std::str::from_utf8(name).is_ok_and(|name| !is_hop_by_hop(name.trim()));
        }
        if is_kept {
            out.extend_from_slice(line);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(if is_interim { b"\r\n" } else { b"Connection: close\r\n\r\n" });
    Ok(Some(Head { bytes: out, length, is_interim }))
}

/// What a client is told when its tunnel is there.
pub(super) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// The proxy's own answer: a status, a few words for its line, and a text.
pub(super) fn own(status: u16, reason: &str, text: &str) -> Vec<u8> {
    let body = format!("{text}\n");
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nVia: 1.1 tool-executor\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_response_says_that_its_connection_ends() {
        let head = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\
                    X: y\r\n folded\r\nContent-Length: 2\r\n\r\n";
        let parsed = parse(format!("{head}ok").as_bytes(), 0).unwrap().unwrap();
        let expected = "HTTP/1.1 200 OK\r\nX: y\r\n folded\r\nContent-Length: 2\r\n\
                        Connection: close\r\n\r\n";
        assert_eq!(String::from_utf8(parsed.bytes).unwrap(), expected);
        assert_eq!((parsed.length, parsed.is_interim), (head.len(), false));
        // Of a sloppy server.
        let parsed = parse(b"HTTP/1.0 404\nA: b\n\nbody", 0).unwrap().unwrap();
        assert_eq!(parsed.bytes, b"HTTP/1.0 404\r\nA: b\r\nConnection: close\r\n\r\n");
        let parsed = parse(b"HTTP/1.1 100 Continue\r\n\r\n", 0).unwrap().unwrap();
        assert_eq!(
            (parsed.bytes, parsed.is_interim),
            (b"HTTP/1.1 100 Continue\r\n\r\n".into(), true)
        );
        assert_eq!(parse(b"HTT", 0), Ok(None));
    }

    #[test]
    fn what_is_no_response_is_told() {
        for bytes in ["SSH-2.0", "HTTP/2 200\r\n\r\n", "HTTP/1.1 x\r\n\r\n", "HTTP/1.1\r\n\r\n"] {
            assert!(parse(bytes.as_bytes(), 0).is_err(), "{bytes}");
        }
        assert!(parse(b"HTTP/1.1 101 Switching\r\n\r\n", 0).is_err());
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(LONGEST_HEAD));
        assert!(parse(long.as_bytes(), 0).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in "(HTTP/1.1 200 OK\r?\n)?[ -~\r\n]{0,100}", seen in 0usize..50) {
            let _ = parse(bytes.as_bytes(), 0);
            let _ = parse(bytes.as_bytes(), seen.min(bytes.len()));
        }
    }
}
