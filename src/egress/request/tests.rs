use proptest::prelude::*;

use super::*;

fn parsed(head: &str) -> Result<Request, BadRequest> {
    let (request, length) = parse(head.as_bytes(), 0)?.expect("a whole head");
    assert_eq!(length, head.len());
    Ok(request)
}

fn sent_on(head: &str) -> (String, Framing) {
    match parsed(head).unwrap().kind {
        Kind::Plain(head, framing) => (String::from_utf8(head).unwrap(), framing),
        Kind::Tunnel => panic!("a tunnel"),
    }
}

#[test]
fn a_tunnel_is_asked_for_by_host_and_port() {
    for (target, host, port) in [
        ("Packages.Example:443", Host::Name("packages.example".to_owned()), 443),
        ("packages.example.:1", Host::Name("packages.example".to_owned()), 1),
        ("1.2.3.4:80", Host::Address("1.2.3.4".parse().unwrap()), 80),
        ("[2606::1]:80", Host::Address("2606::1".parse().unwrap()), 80),
        ("[::ffff:10.0.0.1]:80", Host::Address("10.0.0.1".parse().unwrap()), 80),
        // What the system's look-up takes for an address is a name here, and checked after it.
        ("0x7f.1:80", Host::Name("0x7f.1".to_owned()), 80),
    ] {
        let request = parsed(&format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n")).unwrap();
        assert_eq!((request.host, request.port, request.kind), (host, port, Kind::Tunnel));
    }
}

#[test]
fn a_plain_request_is_sent_on_as_to_its_server() {
    let (head, framing) = sent_on(
        "POST http://A.b:8080/x?y HTTP/1.1\r\nHost: evil\r\nProxy-Connection: keep-alive\r\n\
         Connection: keep-alive, X-Hop, content-length, host\r\nX-Hop: 1\r\nX-Keep: é\r\n\
         Proxy-Authorization: secret\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\n",
    );
    assert_eq!(
        head,
        "POST /x?y HTTP/1.1\r\nHost: a.b:8080\r\nX-Keep: é\r\nContent-Length: 3\r\n\
         Connection: close\r\n\r\n"
    );
    assert_eq!(framing, Framing::Length(3));
    for (line, expected) in [
        ("GET http://a HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\n"),
        ("GET HTTP://a?x HTTP/1.1", "GET /?x HTTP/1.1\r\nHost: a\r\n"),
        ("OPTIONS http://a:81 HTTP/1.1", "OPTIONS * HTTP/1.1\r\nHost: a:81\r\n"),
        ("GET http://[::2]:80/ HTTP/1.1", "GET / HTTP/1.1\r\nHost: [::2]\r\n"),
    ] {
        let (head, framing) = sent_on(&format!("{line}\r\n\r\n"));
        assert_eq!(head, format!("{expected}Connection: close\r\n\r\n"));
        assert_eq!(framing, Framing::Length(0));
    }
    let chunked = "POST http://a/ HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n";
    assert_eq!(sent_on(chunked).1, Framing::Chunked);
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    for (head, why) in [
        ("Content-Length: 1\r\nContent-Length: 1", "more than one Content-Length"),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", "both a Content-Length"),
        ("Content-Length: +1", "no number"),
        ("Content-Length: 1, 1", "no number"),
        ("Content-Length: 99999999999999999999", "no number"),
        ("Content-Length:", "no number"),
        ("Transfer-Encoding: chunked, gzip", "no Transfer-Encoding but chunked"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "no Transfer-Encoding but"),
        ("Transfer-Encoding : chunked", "no token"),
        ("X: a\r\n folded", "folded"),
        ("X: a\rb", "stands alone"),
        ("X: a\nHost: b", "stands alone"),
        ("X: a\0", "NUL"),
        ("X: a\x01", "control character"),
        (": a", "no token"),
        ("X", "no colon"),
    ] {
        let error = parsed(&format!("GET http://a/ HTTP/1.1\r\n{head}\r\n\r\n")).unwrap_err();
        assert!(error.status == 400 && error.why.contains(why), "{head:?}: {error:?}");
    }
    for (line, status, why) in [
        ("GET /x HTTP/1.1", 400, "this is the sandbox's proxy"),
        ("GET https://a/ HTTP/1.1", 501, "CONNECT for all others"),
        ("GET ftp://a/ HTTP/1.1", 501, "CONNECT for all others"),
        ("GET http://u:p@a/ HTTP/1.1", 400, "a user"),
        ("GET http://a/#f HTTP/1.1", 400, "fragment"),
        ("GET http:///x HTTP/1.1", 400, "neither an address nor a name"),
        ("GET http://a:0/ HTTP/1.1", 400, "no port"),
        ("GET http://a:65536/ HTTP/1.1", 400, "no port"),
        ("GET http://a:+1/ HTTP/1.1", 400, "no port"),
        ("GET http://a:1:2/ HTTP/1.1", 400, "no port"),
        ("GET http://a\u{e4}/ HTTP/1.1", 400, "neither"),
        ("GET http://[fe80::1%25lo]/ HTTP/1.1", 400, "no IPv6 address"),
        ("GET http://[1.2.3.4]/ HTTP/1.1", 400, "no IPv6 address"),
        ("GET http://[::1]x/ HTTP/1.1", 400, "no port"),
        ("CONNECT a HTTP/1.1", 400, "no port"),
        ("CONNECT http://a:80/ HTTP/1.1", 400, "no port"),
        ("GET  http://a/ HTTP/1.1", 400, "request line"),
        ("GET http://a/ HTTP/1.1 ", 400, "request line"),
        ("GET\thttp://a/ HTTP/1.1", 400, "request line"),
        ("GET http://a/ HTTP/2.0", 505, "HTTP/1.1"),
        ("\x16\x03\x01", 400, "no HTTP request"),
    ] {
        let error = parsed(&format!("{line}\r\n\r\n")).unwrap_err();
        assert!(error.status == status && error.why.contains(why), "{line:?}: {error:?}");
    }
    let body = "CONNECT a:1 HTTP/1.1\r\nContent-Length: 1\r\n\r\n";
    assert!(parsed(body).unwrap_err().why.contains("no body"));
    let old = "GET http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(parsed(old).is_err());
}

#[test]
fn a_head_is_bounded() {
    let long = format!("GET http://a/{} HTTP/1.1\r\n", "x".repeat(LONGEST_HEAD));
    assert_eq!(parse(long.as_bytes(), 0).unwrap_err().status, 431);
    let many = format!("GET http://a/ HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MOST_HEADERS + 1));
    assert_eq!(parse(many.as_bytes(), 0).unwrap_err().status, 431);
    assert_eq!(parse(b"GET http://a/ HTTP/1.1\r\n", 0), Ok(None));
    assert_eq!(parse(b"", 0), Ok(None));
}

proptest! {
    #[test]
    fn nothing_makes_it_panic_and_how_it_arrives_makes_no_difference(
        head in prop_oneof![
            "[ -~\r\n]{0,200}",
            "(GET|POST|CONNECT) (http://)?[a-z0-9:./@\\[\\]]{1,30} HTTP/1.[01]\r\n([A-Za-z-]{1,17}: ?[ -~]{0,20}\r\n){0,4}\r\n",
        ],
        cut in 0usize..200,
    ) {
        let whole = parse(head.as_bytes(), 0);
        let cut = cut.min(head.len());
        // In two pieces, as a connection brings them.
        if let Ok(None) = parse(&head.as_bytes()[..cut], 0) {
            prop_assert_eq!(parse(head.as_bytes(), cut), whole.clone());
        }
        if let Ok(Some((Request { kind: Kind::Plain(out, _), .. }, _))) = whole {
            // One head, one Host, one end.
            let text = String::from_utf8_lossy(&out).to_ascii_lowercase();
            prop_assert_eq!(text.matches("\r\n\r\n").count(), 1);
            prop_assert!(text.ends_with("\r\n\r\n"));
            prop_assert_eq!(text.matches("\r\nhost:").count(), 1);
            prop_assert_eq!(text.matches("\r\nconnection:").count(), 1);
            prop_assert!(text.replace("\r\n", "").find(['\r', '\n']).is_none());
        }
    }
}
