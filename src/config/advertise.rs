//! The address that a server tells others.

use std::net::IpAddr;
use std::str::FromStr;

/// A host, and a port where it is another one than the server listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Advertise {
    /// A name, or an address; IPv6 without brackets.
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

impl FromStr for Advertise {
    type Err = String;

    /// Reads `host`, `host:port`, `[ipv6]` or `[ipv6]:port`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no address to advertise; it must be HOST or HOST:PORT, as \
                 boxes.example, 10.0.0.7:8080 or [::1]:8080"
            )
        };
        let as_is = |host: &str, port| Self { host: host.to_owned(), port };
        if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(as_is(&ip.to_string(), None));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse::<u16>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let is_bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Some(host) = is_bracketed {
            let ip: IpAddr = host.parse().map_err(|_| wrong())?;
            return Ok(as_is(&ip.to_string(), port));
        }
        let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_name = !host.is_empty() && host.len() <= 253 && host.bytes().all(is_fine);
        if is_name && port != Some(0) { Ok(as_is(host, port)) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_advertise_is_a_host_and_perhaps_a_port() {
        for (text, host, port) in [
            ("boxes.example", "boxes.example", None),
            ("box_7-a:8080", "box_7-a", Some(8080)),
            ("10.0.0.7", "10.0.0.7", None),
            ("10.0.0.7:1", "10.0.0.7", Some(1)),
            ("::1", "::1", None),
            ("[::1]", "::1", None),
            ("[fe80::7]:9", "fe80::7", Some(9)),
        ] {
            let read = Advertise { host: host.to_owned(), port };
            assert_eq!(text.parse(), Ok(read), "{text}");
        }
        for wrong in
            ["", ":80", "a:", "a:0", "a:70000", "http://a", "a b", "a/b", "[a]:1", "x@y", "a:b:1"]
        {
            assert!(wrong.parse::<Advertise>().is_err(), "{wrong}");
        }
    }
}
