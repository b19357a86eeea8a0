//! What becomes of requests to servers that are not there, or are not what the URL says: over real
//! sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;

static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
/// Longer than anything takes here but what is never answered.
const TIME: Duration = Duration::from_secs(2);

/// A server that does this with each connection, for as long as the test's process lives; its
/// port.
pub(super) fn server(
    serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            // An error is a client that left.
            thread::spawn(move || drop(serve(stream)));
        }
    });
    port
}

/// Reads a request's head; whether it is one.
pub(super) fn read_head(stream: &mut impl Read) -> std::io::Result<bool> {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    lines.read_until(b'\n', &mut line)?;
    if !line.ends_with(b"HTTP/1.1\r\n") {
        return Ok(false);
    }
    while line != b"\r\n" {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            break;
        }
    }
    Ok(true)
}

/// Answers every request so, and what is none with `otherwise`; `None` is silence.
pub(super) fn plain(answer: &'static str, otherwise: Option<&'static str>) -> u16 {
    server(move |mut stream| {
        let is_request = read_head(&mut stream)?;
        match (is_request, otherwise) {
            (true, _) => stream.write_all(answer.as_bytes()),
            (false, Some(text)) => stream.write_all(text.as_bytes()),
            (false, None) => stream.read_to_end(&mut Vec::new()).map(drop),
        }
    })
}

pub(super) struct Tls {
    pub(super) port: u16,
    /// Its certificate, which it has signed itself.
    pub(super) pem: String,
}

/// What a TLS server does with what is not TLS.
#[derive(Clone, Copy)]
pub(super) enum Plain {
    /// As rustls does.
    Alert,
    Close,
    Says(&'static str),
}

/// A TLS server with a certificate for this name, valid until this year.
pub(super) fn tls(name: &str, until: i32, plain: Plain) -> Tls {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    // Else all of them are of one authority's name.
    let authority = format!("{name} {until} {}", AUTHORITIES.fetch_add(1, Ordering::Relaxed));
    params.distinguished_name.push(DnType::CommonName, authority);
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
    let config = Arc::new(config);
    let port = server(move |mut stream| {
        let mut first = [0];
        if stream.peek(&mut first)? == 1 && first[0] != 0x16 {
            match plain {
                Plain::Alert => {}
                Plain::Close => return Ok(()),
                Plain::Says(text) => {
                    read_head(&mut stream)?;
                    return stream.write_all(text.as_bytes());
                }
            }
        }
        let connection = ServerConnection::new(config.clone()).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        read_head(&mut stream)?;
        stream.write_all(OK.as_bytes())?;
        stream.conn.send_close_notify();
        stream.flush()
    });
    Tls { port, pem: certificate.pem() }
}

fn agent_trusting(pem: Option<&str>) -> Agent {
    let names = Names::new();
    let (idle_connections, read_timeout) = (0, None);
    agent(AgentConfig { idle_connections, read_timeout, ca_pem: pem, names: &names }).unwrap()
}

fn ask(agent: &Agent, url: &str) -> Result<serde_json::Value, Failure> {
    let request = agent.get(url).config().timeout_global(Some(TIME)).build();
    read_json(request.call()?)
}

/// Asks; if that fails and it may be the scheme, asks by the other one.
fn failure(agent: &Agent, url: &str) -> (Failure, Option<String>) {
    let failure = ask(agent, url).unwrap_err();
    let other = failure
        .may_be_the_scheme()
        .then(|| other_scheme(agent, &url.parse().unwrap(), TIME))
        .flatten();
    (failure, other)
}

#[test]
fn what_did_not_reach_a_server_has_not_executed_and_may_be_waited_for() {
    let agent = agent_trusting(None);
    // No name has an empty part.
    let (unknown, _) = failure(&agent, "http://a..b:1/");
    assert!(matches!(unknown, Failure::NotSent(_)), "{unknown:?}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let (refused, _) = failure(&agent, &url);
    assert!(matches!(refused, Failure::NoListener), "{refused:?}");
    assert_eq!(refused.text(), "connection refused");
    let (tls, _) = failure(&agent, &url.replace("http:", "https:"));
    assert!(matches!(tls, Failure::NoListener), "{tls:?}");
    for failure in [unknown, refused, tls] {
        assert!(!failure.may_have_executed() && !failure.is_permanent());
    }
}

#[test]
fn certificates_that_are_not_right_are_told_at_once_with_what_is_wrong() {
    let (right, expired) =
        (tls("localhost", 2100, Plain::Alert), tls("localhost", 2001, Plain::Alert));
    let other_name = tls("other.example", 2100, Plain::Alert);
    let url = |tls: &Tls| format!("https://localhost:{}/", tls.port);
    assert!(ask(&agent_trusting(Some(&right.pem)), &url(&right)).is_ok());
    for (server, trusted, why) in [
        (&right, Some(&*other_name.pem), "comes from an authority that is not trusted"),
        (&right, None, "comes from an authority that is not trusted"),
        (&expired, Some(&*expired.pem), "has expired"),
        (&other_name, Some(&*other_name.pem), "is for another host name"),
    ] {
        let (failure, other) = failure(&agent_trusting(trusted), &url(server));
        assert!(matches!(failure, Failure::Misconfigured(_)), "{failure:?}");
        assert!(failure.text().contains(why), "{failure:?}");
        assert!(failure.is_permanent() && !failure.may_have_executed());
        assert_eq!(other, None);
    }
}

#[test]
fn https_to_a_plain_port_and_http_to_a_tls_port_are_told_with_the_right_scheme() {
    let no_request = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    let wants_tls = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nThe plain HTTP request was \
                     sent to HTTPS port";
    let go = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    let closes = "";
    for (spoken, port, speaks) in [
        ("https", plain(OK, Some(no_request)), "http"),
        ("https", plain(OK, Some(closes)), "http"),
        ("https", plain(OK, None), "http"),
        (
            "https",
            plain("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Some(closes)),
            "http",
        ),
        ("http", tls("localhost", 2100, Plain::Alert).port, "https"),
        ("http", tls("localhost", 2100, Plain::Close).port, "https"),
        ("http", tls("localhost", 2100, Plain::Says(wants_tls)).port, "https"),
        ("http", tls("localhost", 2100, Plain::Says(go)).port, "https"),
    ] {
        let url = format!("{spoken}://localhost:{port}/health");
        let (failure, other) = failure(&agent_trusting(None), &url);
        let expected = format!(
            "it speaks {speaks}, not {spoken}: its URL begins with {speaks}://localhost:{port}"
        );
        assert_eq!(other, Some(expected), "{failure:?}");
    }
}

#[test]
fn a_server_that_speaks_the_right_scheme_and_fails_is_not_taken_for_another() {
    let wants_tls = "HTTP/1.1 400 Bad Request\r\n\r\nspeak https, please";
    let broken = tls("localhost", 2100, Plain::Says(wants_tls));
    // Not trusted, but that is not the scheme; nor is a server that says nothing at all.
    let uri = |port, scheme: &str| format!("{scheme}://localhost:{port}/").parse().unwrap();
    let agent = agent_trusting(None);
    assert_eq!(other_scheme(&agent, &uri(broken.port, "https"), TIME), None);
    let silent = server(|mut stream| stream.read_to_end(&mut Vec::new()).map(drop));
    let short = Duration::from_millis(200);
    assert_eq!(other_scheme(&agent, &uri(silent, "https"), short), None);
    assert_eq!(other_scheme(&agent, &uri(silent, "http"), short), None);
    let garbage = plain("no HTTP\r\n\r\n", Some("no TLS\r\n\r\n"));
    let (failure, other) = failure(&agent, &format!("http://localhost:{garbage}/"));
    assert!(matches!(failure, Failure::Broken(_)) && !failure.is_permanent(), "{failure:?}");
    assert_eq!(other, None);
    let (failure, other) = self::failure(&agent, &format!("https://localhost:{garbage}/"));
    assert!(matches!(failure, Failure::NoTls(_)) && failure.is_permanent(), "{failure:?}");
    assert_eq!(
        (failure.text().as_str(), other),
        ("it does not speak TLS, which https needs", None)
    );
}

#[test]
fn refusals_of_the_client_are_final_and_those_of_the_moment_are_not() {
    for (status, is_permanent) in [
        ("401 Unauthorized", true),
        ("403 Forbidden", true),
        ("404 Not Found", true),
        ("400 Bad Request", false),
        ("409 Conflict", false),
        ("500 Internal Server Error", false),
        ("503 Service Unavailable", false),
    ] {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
        let port = plain(Box::leak(answer.into_boxed_str()), None);
        let failure = ask(&agent_trusting(None), &format!("http://localhost:{port}/")).unwrap_err();
        assert!(matches!(failure, Failure::Refused(..)), "{failure:?}");
        assert_eq!(failure.is_permanent(), is_permanent, "{status}");
    }
}

#[test]
fn a_server_that_hangs_is_waited_for() {
    let port = server(|mut stream| stream.read_to_end(&mut Vec::new()).map(drop));
    let request = agent_trusting(None).get(format!("http://localhost:{port}/"));
    let request = request.config().timeout_global(Some(Duration::from_millis(100))).build();
    let failure = Failure::from(request.call().unwrap_err());
    assert!(matches!(failure, Failure::Timeout) && !failure.is_permanent());
}
