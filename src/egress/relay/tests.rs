//! The relay over sockets of this machine, which stand for machines, and servers, which stand for
//! the internet.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::AtomicUsize;

use super::*;

const LONG: Duration = Duration::from_secs(20);

struct Proxy {
    egress: Egress,
    attachment: Option<Attachment>,
    port: u16,
}

fn bounds() -> Bounds {
    Bounds::usual(1)
}

/// A proxy that allows this, and knows the names that `resolve` knows.
fn proxy_with(
    bounds: Bounds,
    allowed: &[String],
    resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
) -> Proxy {
    let allowed: Vec<_> = allowed.iter().map(|text| text.parse().unwrap()).collect();
    let egress = Egress::with(Rules::new(&allowed), bounds, Arc::new(resolve), false).unwrap();
    let (attachment, port) = machine(&egress);
    Proxy { egress, attachment: Some(attachment), port }
}

/// All names are this machine's.
fn to_here(_: &str) -> io::Result<Vec<IpAddr>> {
    Ok(vec![Ipv4Addr::LOCALHOST.into()])
}

fn proxy(allowed: &[String]) -> Proxy {
    proxy_with(bounds(), allowed, to_here)
}

fn machine(egress: &Egress) -> (Attachment, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (egress.attach(0, listener.into()), port)
}

fn client(port: u16) -> TcpStream {
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    client
}

impl Proxy {
    /// Sends this and gives all that is answered.
    fn ask(&self, request: &str) -> String {
        let mut client = client(self.port);
        client.write_all(request.as_bytes()).unwrap();
        read_all(&mut client)
    }

    fn usage(&self) -> Usage {
        self.egress.take_usage(0)
    }
}

fn read_all(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // A reset ends it, too.
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// A server that answers each connection with what `answer` makes of it.
fn server(answer: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    #[expect(clippy::disallowed_methods, reason = "ends with the test's process")]
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            stream.set_read_timeout(Some(LONG)).unwrap();
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

/// A server that says what head it got, and keeps the connection.
fn echo_head() -> u16 {
    server(|mut stream| {
        let head = read_head(&mut stream);
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
        stream.write_all(text.as_bytes()).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        read_all(&mut stream);
    })
}

/// A server that sends back what it gets, until the end.
fn echo() -> u16 {
    server(|mut stream| {
        let mut copy = stream.try_clone().unwrap();
        let _ = io::copy(&mut stream, &mut copy);
        let _ = copy.shutdown(Shutdown::Write);
    })
}

fn here(port: u16) -> Vec<String> {
    vec!["*".to_owned(), format!("127.0.0.1:{port}")]
}

#[test]
fn a_tunnel_carries_bytes_both_ways_and_half_an_end() {
    let port = echo();
    let proxy = proxy(&here(port));
    let mut client = client(proxy.port);
    // What comes with the head belongs to the tunnel.
    write!(client, "CONNECT some.host:{port} HTTP/1.1\r\nHost: x\r\n\r\nearly ").unwrap();
    assert_eq!(read_head(&mut client), "HTTP/1.1 200 Connection established\r\n\r\n");
    let much: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let sent = much.clone();
    let mut writer = client.try_clone().unwrap();
    let writing = std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        writing.join().unwrap();
        back
    });
    assert!(writing.starts_with(b"early ") && writing[6..] == much);
    let usage = proxy.usage();
    assert_eq!((usage.requests, usage.bytes_sent, usage.bytes_received), (1, 3_000_006, 3_000_006));
}

#[test]
fn a_plain_request_gets_its_answer_and_a_second_one_on_its_connection_goes_nowhere() {
    let served = Arc::new(AtomicUsize::new(0));
    let counter = served.clone();
    let port = server(move |mut stream| {
        // A server that heeds no `Connection: close`, and would serve a second request.
        loop {
            let mut byte = [0];
            match stream.peek(&mut byte) {
                Ok(1) => {}
                _ => return,
            }
            let head = read_head(&mut stream);
            counter.fetch_add(1, Ordering::SeqCst);
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
            stream.write_all(text.as_bytes()).unwrap();
        }
    });
    let proxy = proxy(&here(port));
    let mut client = client(proxy.port);
    let first = format!("GET http://a.b:{port}/x HTTP/1.1\r\nHost: other\r\n\r\n");
    let second = "GET http://169.254.169.254/latest HTTP/1.1\r\n\r\n";
    client.write_all(format!("{first}{second}GET /raw HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    let head = read_head(&mut client);
    assert!(head.contains("\r\nConnection: close\r\n") && head.contains("200 OK"), "{head}");
    let seen = read_head(&mut client);
    assert_eq!(seen, format!("GET /x HTTP/1.1\r\nHost: a.b:{port}\r\nConnection: close\r\n\r\n"));
    client.write_all(second.as_bytes()).unwrap();
    drop(client);
    drop(proxy);
    assert_eq!(served.load(Ordering::SeqCst), 1);
}

#[test]
fn a_body_is_sent_on_whole_and_interim_answers_come_first() {
    let port = server(|mut stream| {
        let head = read_head(&mut stream);
        assert!(head.contains("Expect: 100-continue"), "{head}");
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let mut body = [0; 20];
        stream.read_exact(&mut body).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        stream.write_all(&body).unwrap();
    });
    let proxy = proxy(&here(port));
    let mut client = client(proxy.port);
    write!(
        client,
        "POST http://a:{port}/ HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .unwrap();
    assert_eq!(read_head(&mut client), "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"a\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n").unwrap();
    let answer = read_all(&mut client);
    assert!(answer.ends_with("\r\n\r\na\r\n0123456789\r\n0\r\n\r\n"), "{answer}");
}

#[test]
fn what_is_not_public_is_refused_and_told_why() {
    let port = echo_head();
    let proxy = proxy(&[]);
    for (host, why) in [
        (format!("127.0.0.1:{port}"), "a loopback address"),
        (format!("[::ffff:127.0.0.1]:{port}"), "a loopback address"),
        (format!("name.of.mine:{port}"), "a loopback address"),
        ("10.0.0.1:80".to_owned(), "a private address"),
        ("169.254.169.254:80".to_owned(), "metadata service"),
        ("[fe80::1]:80".to_owned(), "a link-local address"),
        ("0.0.0.0:80".to_owned(), "the unspecified address"),
    ] {
        let answers = [
            proxy.ask(&format!("CONNECT {host} HTTP/1.1\r\n\r\n")),
            proxy.ask(&format!("GET http://{host}/ HTTP/1.1\r\n\r\n")),
        ];
        for answer in answers {
            assert!(answer.starts_with("HTTP/1.1 403 Refused: "), "{host}: {answer}");
            assert!(answer.contains(why) && answer.contains("--allow-host"), "{host}: {answer}");
        }
    }
    let usage = proxy.usage();
    assert_eq!((usage.requests, usage.refused, usage.refused_hosts.len()), (14, 14, 6));
    assert_eq!((usage.bytes_sent, usage.bytes_received), (0, 0));
    assert_eq!(proxy.egress.totals().refused, 14);
}

#[test]
fn a_name_that_is_not_allowed_is_not_even_looked_up() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let resolve = move |name: &str| {
        log.lock().push(name.to_owned());
        to_here(name)
    };
    let port = echo_head();
    let allowed = ["good.org".to_owned(), format!("127.0.0.1:{port}")];
    let proxy = proxy_with(bounds(), &allowed, resolve);
    let answer = proxy.ask(&format!("GET http://secret.evil.org:{port}/ HTTP/1.1\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 403 Host not allowed\r\n"), "{answer}");
    let answer = proxy.ask(&format!("GET http://GOOD.org.:{port}/ HTTP/1.1\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(*asked.lock(), ["good.org"]);
}

#[test]
fn a_name_that_changes_its_address_is_checked_at_each_request() {
    let port = echo_head();
    let other = echo_head();
    let times = AtomicUsize::new(0);
    // First the address that is allowed, then one that is not, then both.
    let resolve = move |_: &str| {
        Ok(match times.fetch_add(1, Ordering::SeqCst) {
            0 => vec!["127.0.0.1".parse().unwrap()],
            1 => vec!["127.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap()],
            _ => vec!["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()],
        })
    };
    let proxy = proxy_with(bounds(), &here(port), resolve);
    let request = format!("GET http://rebinds:{port}/ HTTP/1.1\r\n\r\n");
    assert!(proxy.ask(&request).starts_with("HTTP/1.1 200"));
    assert!(proxy.ask(&request).starts_with("HTTP/1.1 403"));
    assert!(proxy.ask(&request).starts_with("HTTP/1.1 200"), "by the address that may be");
    let answer = proxy.ask(&format!("GET http://rebinds:{other}/ HTTP/1.1\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 403"), "the port is another: {answer}");
}

#[test]
fn what_goes_wrong_is_told_by_status_and_text() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let silent = server(|mut stream| {
        read_all(&mut stream);
    });
    let curt = server(drop);
    let ssh = server(|mut stream| stream.write_all(b"SSH-2.0-x\r\n").unwrap());
    let bounds =
        Bounds { head: Duration::from_millis(200), idle: Duration::from_millis(300), ..bounds() };
    let resolve = |name: &str| match name {
        "unknown" => Err(io::Error::other("no such name")),
        "panics" => panic!("expected by this test"),
        name => to_here(name),
    };
    let proxy = proxy_with(bounds, &["*".to_owned(), "127.0.0.1".to_owned()], resolve);
    for (request, status, text) in [
        ("GET http://unknown/ HTTP/1.1\r\n\r\n".to_owned(), "502 Host not found", "no such name"),
        ("GET http://panics/ HTTP/1.1\r\n\r\n".to_owned(), "502", "expected by this test"),
        (format!("CONNECT a:{closed} HTTP/1.1\r\n\r\n"), "502 Bad Gateway", "refused"),
        (format!("GET http://a:{silent}/ HTTP/1.1\r\n\r\n"), "504", "does not answer"),
        (format!("GET http://a:{curt}/ HTTP/1.1\r\n\r\n"), "502", "server has"),
        (format!("GET http://a:{ssh}/ HTTP/1.1\r\n\r\n"), "502", "not HTTP/1"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "400", "sandbox's proxy"),
        ("GET http://a/ HTTP/1.1\r\nX: y".to_owned(), "408", "head is late"),
    ] {
        let answer = proxy.ask(&request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert!(answer.contains(text), "{request}: {answer}");
    }
    assert_eq!(proxy.usage().failed, 6);
    // One that says nothing is just closed.
    assert_eq!(read_all(&mut client(proxy.port)), "");
}

#[test]
fn a_machine_at_its_limit_leaves_the_others_theirs() {
    let port = echo_head();
    let bounds = Bounds { of_machine: 6, guaranteed: 2, in_all: 6, ..bounds() };
    let hostile = proxy_with(bounds, &here(port), to_here);
    // Most of them wait in the socket's queue, and never get further.
    let flood: Vec<_> = (0..100).map(|_| client(hostile.port)).collect();
    let (_attachment, honest) = machine(&hostile.egress);
    for _ in 0..20 {
        let mut client = client(honest);
        write!(client, "GET http://a:{port}/ HTTP/1.1\r\n\r\n").unwrap();
        assert!(read_all(&mut client).starts_with("HTTP/1.1 200"));
        assert!(hostile.egress.totals().connections <= 8);
    }
    // Those that waited get their turn when the first are gone.
    drop(flood);
    let answer = hostile.ask(&format!("GET http://a:{port}/ HTTP/1.1\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn look_ups_that_hang_hold_up_their_own_machine_only() {
    let (go_on, wait) = crossbeam_channel::bounded::<()>(0);
    let resolve = move |name: &str| {
        if name.starts_with("slow") {
            let _ = wait.recv();
        }
        to_here(name)
    };
    let port = echo_head();
    let bounds = Bounds { look_ups: 3, look_up: Duration::from_millis(300), ..bounds() };
    let hostile = proxy_with(bounds, &here(port), resolve);
    let mut slow: Vec<_> = (0..10).map(|_| client(hostile.port)).collect();
    for (number, client) in slow.iter_mut().enumerate() {
        write!(client, "CONNECT slow{number}:{port} HTTP/1.1\r\n\r\n").unwrap();
    }
    let (_attachment, honest) = machine(&hostile.egress);
    let mut client = client(honest);
    write!(client, "GET http://quick:{port}/ HTTP/1.1\r\n\r\n").unwrap();
    assert!(read_all(&mut client).starts_with("HTTP/1.1 200"));
    for client in &mut slow {
        assert!(read_all(client).starts_with("HTTP/1.1 504"));
    }
    drop(go_on);
}

#[test]
fn detaching_ends_a_machines_connections_and_closing_all_of_them() {
    let port = echo();
    let mut proxy = proxy(&here(port));
    let connect = |at: u16| {
        let mut client = client(at);
        write!(client, "CONNECT a:{port} HTTP/1.1\r\n\r\n").unwrap();
        read_head(&mut client);
        client
    };
    let mut first = connect(proxy.port);
    let (_attachment, other) = machine(&proxy.egress);
    let mut second = connect(other);
    drop(proxy.attachment.take());
    assert_eq!(read_all(&mut first), "");
    assert!(TcpStream::connect(("127.0.0.1", proxy.port)).is_err(), "nothing listens any more");
    second.write_all(b"x").unwrap();
    let mut byte = [0];
    second.read_exact(&mut byte).unwrap();
    proxy.egress.close();
    assert_eq!(read_all(&mut second), "");
    proxy.egress.close();
}
