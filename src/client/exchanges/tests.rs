//! Requests over real sockets: how each of them ends.

use std::net::TcpListener;

use crossbeam_channel::bounded;

use super::*;
use crate::client::tests::{OK, Plain, plain, read_head, server, tls};
use crate::client::tls_config;

const PATIENCE: Duration = Duration::from_secs(60);

fn exchanges(ca_pem: Option<&str>) -> Exchanges {
    Exchanges::start(Names::new(), tls_config(ca_pem).unwrap()).unwrap()
}

/// Posts `{}` and gives where its end is told.
fn post(
    exchanges: &Exchanges,
    url: &str,
    timeout: Duration,
) -> Receiver<Result<Answered, Failure>> {
    let (tell, told) = bounded(1);
    let uri = url.parse().unwrap();
    let connect_timeout = timeout;
    let post = Post { uri: &uri, authorization: None, body: b"{}", connect_timeout, timeout };
    exchanges.post(&post, Box::new(move |outcome| tell.send(outcome).unwrap()));
    told
}

fn answer_of(exchanges: &Exchanges, url: &str) -> Result<Answered, Failure> {
    post(exchanges, url, PATIENCE).recv_timeout(PATIENCE * 2).unwrap()
}

#[test]
fn a_thousand_requests_that_wait_take_one_thread_and_end_in_any_order() {
    let (arrive, arrived) = unbounded();
    let port = server(move |mut stream| {
        read_head(&mut stream)?;
        arrive.send(stream).unwrap();
        Ok(())
    });
    let exchanges = exchanges(None);
    let url = format!("http://127.0.0.1:{port}/execute");
    let told: Vec<_> = (0..1000).map(|_| post(&exchanges, &url, PATIENCE)).collect();
    let mut streams: Vec<_> = (0..1000).map(|_| arrived.recv_timeout(PATIENCE).unwrap()).collect();
    // The last first, and each but every tenth.
    while let Some(mut stream) = streams.pop() {
        if streams.len() % 10 == 0 {
            drop(stream);
        } else {
            stream.write_all(OK.as_bytes()).unwrap();
        }
    }
    let ends: Vec<_> = told.iter().map(|told| told.recv_timeout(PATIENCE).unwrap()).collect();
    let whole = Answered { status: 200, body: b"{}".to_vec() };
    assert_eq!(ends.iter().filter(|end| end.as_ref().is_ok_and(|it| *it == whole)).count(), 900);
    let broken = |end: &&Result<_, Failure>| matches!(end, Err(Failure::Broken(_)));
    assert_eq!(ends.iter().filter(broken).count(), 100);
}

#[test]
fn each_way_not_to_get_an_answer_is_told() {
    let exchanges = exchanges(None);
    // Held, and closed: none listens there, or has its place.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let refused = answer_of(&exchanges, &format!("http://127.0.0.1:{port}/"));
    assert!(matches!(refused, Err(Failure::NoListener)), "{refused:?}");
    let silent = server(|stream| {
        let mut stream = stream;
        stream.read_to_end(&mut Vec::new()).map(drop)
    });
    let url = format!("http://127.0.0.1:{silent}/");
    let slow = post(&exchanges, &url, Duration::from_millis(200));
    let slow = slow.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(slow, Err(Failure::Timeout)), "{slow:?}");
    let nonsense = plain("nonsense\r\n\r\n", None);
    let nonsense = answer_of(&exchanges, &format!("http://127.0.0.1:{nonsense}/"));
    assert!(matches!(nonsense, Err(Failure::Broken(_))), "{nonsense:?}");
    let unknown = answer_of(&exchanges, "http://no-such-host.invalid/");
    assert!(matches!(unknown, Err(Failure::NotSent(_))), "{unknown:?}");
}

#[test]
fn an_answer_that_comes_before_the_request_is_read_is_taken() {
    let port = server(|mut stream| {
        let text = "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}";
        stream.write_all(text.as_bytes())?;
        // Reads all the same: what is thrown away unread would take the answer along.
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    });
    let exchanges = exchanges(None);
    let (tell, told) = bounded(1);
    let uri = format!("http://127.0.0.1:{port}/").parse().unwrap();
    let body = vec![b' '; 8 * 1024 * 1024];
    let (connect_timeout, timeout) = (PATIENCE, PATIENCE);
    let post = Post { uri: &uri, authorization: None, body: &body, connect_timeout, timeout };
    exchanges.post(&post, Box::new(move |outcome| tell.send(outcome).unwrap()));
    let answered = told.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(answered.status, 413);
}

#[test]
fn tls_is_spoken_with_those_whose_authority_is_trusted() {
    let trusted = tls("localhost", 4000, Plain::Close);
    let url = format!("https://localhost:{}/", trusted.port);
    let with = exchanges(Some(&trusted.pem));
    for _ in 0..20 {
        assert_eq!(answer_of(&with, &url).unwrap().body, b"{}");
    }
    let without = answer_of(&exchanges(None), &url);
    assert!(matches!(without, Err(Failure::Misconfigured(_))), "{without:?}");
    let another = tls("localhost", 2001, Plain::Close);
    let expired = exchanges(Some(&another.pem));
    let expired = answer_of(&expired, &format!("https://localhost:{}/", another.port));
    assert!(
        matches!(&expired, Err(Failure::Misconfigured(why)) if why.contains("expired")),
        "{expired:?}"
    );
    let no_tls = plain(OK, Some("HTTP/1.1 400 Bad Request\r\n\r\n"));
    let no_tls = answer_of(&with, &format!("https://localhost:{no_tls}/"));
    assert!(matches!(no_tls, Err(Failure::NoTls(_))), "{no_tls:?}");
}

#[test]
fn closing_ends_what_is_under_way() {
    let (arrive, arrived) = bounded(1);
    let port = server(move |mut stream| {
        read_head(&mut stream)?;
        arrive.send(()).unwrap();
        stream.read_to_end(&mut Vec::new()).map(drop)
    });
    let exchanges = exchanges(None);
    let url = format!("http://127.0.0.1:{port}/");
    let told = post(&exchanges, &url, PATIENCE);
    arrived.recv_timeout(PATIENCE).unwrap();
    exchanges.close(Instant::now() + PATIENCE);
    assert!(matches!(told.recv_timeout(PATIENCE).unwrap(), Err(Failure::Broken(_))));
    let late = post(&exchanges, &url, PATIENCE).recv_timeout(PATIENCE).unwrap();
    assert!(matches!(late, Err(Failure::NotSent(_))), "{late:?}");
}
