//! Who is let in: from a request's head to a verdict. Pure functions, without I/O.
//!
//! A server with a token asks for nothing else. One without is open to every program that can
//! connect, but not to pages in a browser: a page can send requests to the loopback address of the
//! machine it is looked at on, directly (a form, a script of another site) or under a name of its
//! own that it has pointed there (DNS rebinding). What tells these requests from a program's cannot
//! be set by a page: `Host`, `Origin` and `Sec-Fetch-Site` are the browser's, and a body that is
//! declared JSON, or bytes as they are, is not sent across sites without asking first, which this
//! server never allows.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{
    AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};
use hyper::http::request::Parts;

use super::auth::{self, Refusal, Token};

/// What the server is, as far as it matters at its door.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    /// The token that clients must show.
    pub(crate) token: Option<Token>,
    /// Whether it listens on the loopback address only.
    pub(crate) on_loopback: bool,
    /// The names that it goes by besides those of the loopback: what it advertises, and the host's
    /// own where other machines can reach it.
    pub(crate) names: Vec<String>,
    /// Whether it speaks TLS.
    pub(crate) tls: bool,
}

/// Whether a request is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is.
    Admitted,
    /// Only where no token is needed: it has none, or a wrong one.
    NeedsToken(Refusal),
    /// Nowhere: it comes from a browser, or looks as if it did, and there is no token.
    Refused(Refusal),
}

impl Verdict {
    /// Whether it is let in where a token is needed.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn admitted(self) -> Result<(), Refusal> {
        match self {
            Self::Admitted => Ok(()),
            Self::NeedsToken(refusal) | Self::Refused(refusal) => Err(refusal),
        }
    }

    /// Whether it is let in where no token is needed.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn admitted_without_token(self) -> Result<(), Refusal> {
        match self {
            Self::Admitted | Self::NeedsToken(_) => Ok(()),
            Self::Refused(refusal) => Err(refusal),
        }
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

const FOREIGN_HOST: Refusal = Refusal {
    status: 403,
    detail: "This server has no token, so it answers under names of its own only: the Host must be \
             a loopback name (localhost, 127.0.0.1, [::1]), the name that it advertises, or, where \
             other machines can reach it, an IP address or the host's name. Advertise the name, or \
             use a token",
};
const FOREIGN_ORIGIN: Refusal = Refusal {
    status: 403,
    detail: "This server has no token, so it refuses requests of other sites' pages (Origin). Use \
             a token",
};
const FOREIGN_SITE: Refusal = Refusal {
    status: 403,
    detail: "This server has no token, so it refuses requests of other sites' pages \
             (Sec-Fetch-Site). Use a token",
};
const NO_JSON: Refusal = Refusal {
    status: 415,
    detail: "This server has no token, so it reads a body only if it is declared JSON: send \
             Content-Type: application/json (application/octet-stream with files), or use a token",
};

impl Door {
    /// Whether a request with this head is let in; `has_body` says whether more follows.
    pub(crate) fn verdict(&self, head: &Parts, has_body: bool) -> Verdict {
        if self.token.is_some() {
            let authorization = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
            return match auth::check(self.token.as_ref(), authorization) {
                Ok(()) => Verdict::Admitted,
                Err(refusal) => Verdict::NeedsToken(refusal),
            };
        }
        match self.browser(head, has_body) {
            None => Verdict::Admitted,
            Some(refusal) => Verdict::Refused(refusal),
        }
    }

    /// Why the request may be a browser's on behalf of another site's page.
    fn browser(&self, head: &Parts, has_body: bool) -> Option<Refusal> {
        let headers = &head.headers;
        // Without any there is no browser: they all name the host.
        let named = head.uri.authority().map(|authority| authority.as_str().as_bytes());
        let mut hosts = named.into_iter().chain(values(headers, &HOST));
        if !hosts.all(|host| self.is_own(host)) {
            return Some(FOREIGN_HOST);
        }
        let is_same = |site: &[u8]| site == b"same-origin" || site == b"none";
        if !values(headers, &SEC_FETCH_SITE).all(is_same) {
            return Some(FOREIGN_SITE);
        }
        let host = named.or_else(|| values(headers, &HOST).next());
        if !values(headers, &ORIGIN).all(|origin| self.is_same_origin(origin, host)) {
            return Some(FOREIGN_ORIGIN);
        }
        let mut types = values(headers, &CONTENT_TYPE);
        let declared = types.next().is_some_and(is_asked_for) && types.next().is_none();
        (has_body && !declared).then_some(NO_JSON)
    }

    /// Whether `host`, which may end in a port, is a name that no other site's page can go by.
    fn is_own(&self, host: &[u8]) -> bool {
        let Some(name) = std::str::from_utf8(host).ok().and_then(name_of) else { return false };
        // An address is no name, so no name server can have pointed it here.
        if let Ok(ip) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
            let is_advertised = self.names.iter().any(|own| own.parse() == Ok(ip));
            return ip.to_canonical().is_loopback() || is_advertised || !self.on_loopback;
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        name.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    fn is_same_origin(&self, origin: &[u8], host: Option<&[u8]>) -> bool {
        let scheme: &[u8] = if self.tls { b"https://" } else { b"http://" };
        let (Some(rest), Some(host)) = (origin.strip_prefix(scheme), host) else { return false };
        rest.eq_ignore_ascii_case(host)
    }
}

/// The names that a server goes by besides those of the loopback: the one that it advertises, and
/// the host's, whole and up to its first dot, unless it listens on the loopback address only.
pub(crate) fn own_names(addr: SocketAddr, advertised: Option<&str>, host: &str) -> Vec<String> {
    let mut names: Vec<String> = advertised.into_iter().map(str::to_owned).collect();
    if !addr.ip().is_loopback() {
        names.push(host.to_owned());
        names.extend(host.split_once('.').map(|(first, _)| first.to_owned()));
    }
    names.retain(|name| !name.is_empty());
    names
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).into_iter().map(HeaderValue::as_bytes)
}

/// The host of `host` or `host:port`; an IPv6 address keeps its brackets.
fn name_of(host: &str) -> Option<&str> {
    let host = host.trim();
    let end = match host.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, rest) = host.split_at(end);
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)).then_some(name)
}

/// Whether a media type, whatever its parameters, is JSON, or bytes as they are: both are sent
/// across sites only after asking.
fn is_asked_for(media_type: &[u8]) -> bool {
    let essence = media_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    [&b"application/json"[..], b"application/octet-stream"]
        .iter()
        .any(|known| essence.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = hyper::Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn door(on_loopback: bool, token: Option<&str>) -> Door {
        let token = token.map(|token| Token::new(&token.into()).unwrap());
        let addr: IpAddr = if on_loopback { [127, 0, 0, 1] } else { [0, 0, 0, 0] }.into();
        let names = own_names((addr, 80).into(), Some("boxes.example"), "node7.cluster.example");
        Door { token, on_loopback, names, tls: false }
    }

    /// The status without a token on the loopback address, on all addresses, and with a token that
    /// the request does not show; 200 is in.
    type Statuses = (u16, u16, u16);
    /// Who asks, by which method, and with which headers.
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Statuses);

    const JSON: (&str, &str) = ("Content-Type", "application/json");
    const EVIL: (&str, &str) = ("Origin", "https://evil.example");

    #[test]
    fn programs_are_let_in_and_pages_are_not() {
        let local = ("Host", "127.0.0.1:9001");
        #[rustfmt::skip]
        let table: &[Row<'_>] = &[
            // What programs send.
            ("reference client", "POST", &[("Host", "localhost:9001"), JSON, ("Accept", "*/*")], (200, 200, 401)),
            ("native client", "POST", &[local, JSON], (200, 200, 401)),
            ("native client, IPv6", "POST", &[("Host", "[::1]:9001"), JSON], (200, 200, 401)),
            ("curl -H content-type", "POST", &[local, ("Content-Type", "Application/JSON; charset=utf-8")], (200, 200, 401)),
            ("curl -d", "POST", &[local, ("Content-Type", "application/x-www-form-urlencoded")], (415, 415, 401)),
            ("no content type", "POST", &[local], (415, 415, 401)),
            ("two content types", "POST", &[local, JSON, ("Content-Type", "text/plain")], (415, 415, 401)),
            ("HTTP/1.0 without a host", "POST", &[JSON], (200, 200, 401)),
            ("another loopback address", "POST", &[("Host", "127.8.8.8"), JSON], (200, 200, 401)),
            ("a mapped address", "POST", &[("Host", "[::ffff:127.0.0.1]:1"), JSON], (200, 200, 401)),
            ("by address, from elsewhere", "POST", &[("Host", "10.1.2.3:9001"), JSON], (403, 200, 401)),
            ("by the host's name", "POST", &[("Host", "NODE7.cluster.example.:9001"), JSON], (403, 200, 401)),
            ("by the host's short name", "POST", &[("Host", "node7"), JSON], (403, 200, 401)),
            ("by the advertised name", "POST", &[("Host", "boxes.example:80"), JSON], (200, 200, 401)),
            ("a health check", "GET", &[local], (200, 200, 401)),
            ("an address typed into a browser", "GET", &[local, ("Sec-Fetch-Site", "none")], (200, 200, 401)),
            ("a page of the server's own", "POST", &[local, JSON, ("Origin", "http://127.0.0.1:9001"), ("Sec-Fetch-Site", "same-origin")], (200, 200, 401)),
            // What pages of other sites send.
            ("fetch, no-cors", "POST", &[local, EVIL, ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")], (403, 403, 401)),
            ("fetch, plain text", "POST", &[local, EVIL, ("Content-Type", "text/plain")], (403, 403, 401)),
            ("fetch, JSON, after a preflight", "POST", &[local, EVIL, JSON], (403, 403, 401)),
            ("a form", "POST", &[local, ("Origin", "null"), ("Content-Type", "application/x-www-form-urlencoded")], (403, 403, 401)),
            ("a form of an old browser", "POST", &[local, ("Content-Type", "text/plain; application/json")], (415, 415, 401)),
            ("an image", "GET", &[local, ("Sec-Fetch-Site", "cross-site")], (403, 403, 401)),
            ("another port's page", "POST", &[local, JSON, ("Sec-Fetch-Site", "same-site"), ("Origin", "http://127.0.0.1:3000")], (403, 403, 401)),
            ("another port's page, old browser", "POST", &[local, JSON, ("Origin", "http://127.0.0.1:3000")], (403, 403, 401)),
            ("the same name by https", "POST", &[local, JSON, ("Origin", "https://127.0.0.1:9001")], (403, 403, 401)),
            ("a preflight", "OPTIONS", &[local, EVIL, ("Access-Control-Request-Method", "POST")], (403, 403, 401)),
            ("rebinding", "POST", &[("Host", "evil.example"), ("Origin", "http://evil.example"), ("Sec-Fetch-Site", "same-origin"), JSON], (403, 403, 401)),
            ("rebinding, read only", "GET", &[("Host", "evil.example:9001")], (403, 403, 401)),
            ("rebinding, a name like ours", "GET", &[("Host", "localhost.evil.example")], (403, 403, 401)),
            ("rebinding, a name like an address", "GET", &[("Host", "127.0.0.1.evil.example")], (403, 403, 401)),
            ("all addresses", "GET", &[("Host", "0.0.0.0:9001")], (403, 200, 401)),
            ("two hosts", "GET", &[local, ("Host", "evil.example")], (403, 403, 401)),
            ("no host at all", "GET", &[("Host", "")], (403, 403, 401)),
            ("a broken host", "GET", &[("Host", "[::1")], (403, 403, 401)),
        ];
        for (who, method, headers, (loopback, everywhere, token)) in table {
            let head = head(method, "/execute", headers);
            let status = |door: Door| match door.verdict(&head, *method == "POST").admitted() {
                Ok(()) => 200,
                Err(refusal) => refusal.status,
            };
            assert_eq!(status(door(true, None)), *loopback, "{who}, loopback");
            assert_eq!(status(door(false, None)), *everywhere, "{who}, everywhere");
            assert_eq!(status(door(true, Some("s3cret"))), *token, "{who}, token");
        }
    }

    #[test]
    fn a_target_that_names_another_host_is_refused_too() {
        let local = [("Host", "127.0.0.1")];
        for (target, right) in [("http://127.0.0.1/slots", true), ("http://evil.example/", false)] {
            let verdict = door(true, None).verdict(&head("GET", target, &local), false);
            assert_eq!(verdict.admitted().is_ok(), right, "{target}");
        }
    }

    #[test]
    fn with_the_right_token_nothing_else_is_asked() {
        let door = door(true, Some("s3cret"));
        let shown = ("Authorization", "Bearer s3cret");
        for headers in [
            &[shown, ("Host", "evil.example"), EVIL][..],
            &[shown, ("Content-Type", "text/plain"), ("Sec-Fetch-Site", "cross-site")],
            &[shown],
        ] {
            assert_eq!(door.verdict(&head("POST", "/", headers), true), Verdict::Admitted);
        }
        // What is open to all is open to a page as well: it cannot read the answer.
        let page = door.verdict(&head("GET", "/health", &[EVIL]), false);
        assert!(page.admitted().is_err() && page.admitted_without_token().is_ok());
    }

    #[test]
    fn same_origin_needs_the_servers_own_scheme() {
        let door = Door { tls: true, ..door(true, None) };
        let host = ("Host", "localhost:1");
        for (origin, right) in [("https://LOCALHOST:1", true), ("http://localhost:1", false)] {
            let head = head("GET", "/", &[host, ("Origin", origin)]);
            assert_eq!(door.verdict(&head, false).admitted().is_ok(), right, "{origin}");
        }
    }
}
