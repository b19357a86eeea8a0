//! Paths, tokens, limits, configurations.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use tool_executor::ToolResult;
use tool_executor::config::ServerConfig;
use tool_executor::server::{SandboxServer, ServeError};

use super::{Waits, config};
use crate::fakes::{Echoes, PATIENCE};
use crate::http_client::Client;

#[test]
fn paths_and_methods_that_there_are_not() {
    let server = SandboxServer::start(config(), Echoes(1)).unwrap();
    let mut client = Client::connect(server.addr());
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/health/", 404),
        ("POST", "/v3/nope", 404),
        ("GET", "/execute", 405),
        ("HEAD", "/execute", 405),
        ("PUT", "/execute", 405),
        ("DELETE", "/slots", 405),
        ("POST", "/health", 405),
        ("OPTIONS", "/batch", 405),
        ("GET", "/artifacts/read", 405),
    ] {
        client.send(method, path, &[], b"");
        let answer = if method == "HEAD" { client.head() } else { client.receive() };
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
        let text = if status == 404 { "404: Not Found" } else { "405: Method Not Allowed" };
        assert!(method == "HEAD" || answer.text() == text, "{method} {path}");
        assert_eq!(answer.headers.contains_key("allow"), status == 405);
    }
    // The head of what GET gives, and nothing after it: the connection goes on.
    for path in ["/health", "/slots"] {
        client.send("HEAD", path, &[], b"");
        let head = client.head();
        let get = client.ask("GET", path, &[], b"");
        assert_eq!((head.status, get.status), (200, 200));
        assert_eq!(head.headers["content-length"], get.body.len().to_string());
    }
}

#[test]
fn with_a_token_everything_but_the_health_needs_it() {
    let mut config = config();
    config.token = Some("secret".into());
    assert!(!format!("{config:?}").contains("secret"));
    let server = SandboxServer::start(config, Echoes(1)).unwrap();
    let mut client = Client::connect(server.addr());
    let routes = [
        ("GET", "/health", 200),
        ("GET", "/slots", 200),
        ("POST", "/execute", 400),
        ("POST", "/batch", 400),
        ("POST", "/reset", 400),
        ("POST", "/artifacts/read", 400),
        ("POST", "/artifacts/list", 400),
        ("POST", "/artifacts/archive", 400),
        ("POST", "/v3/nope", 404),
        ("GET", "/nope", 404),
        ("POST", "/health", 405),
    ];
    let credentials = [
        (None, Some((401, "Missing Authorization header"))),
        (Some("Basic secret"), Some((401, "Invalid Authorization header"))),
        (Some("Bearer nope"), Some((403, "Invalid token"))),
        (Some("Bearer secret"), None),
    ];
    for (method, path, status) in routes {
        for (authorization, refusal) in credentials {
            let headers: Vec<_> =
                authorization.into_iter().map(|value| ("Authorization", value)).collect();
            let answer = client.ask(method, path, &headers, b"");
            match refusal.filter(|_| (method, path) != ("GET", "/health")) {
                Some((status, text)) => {
                    assert_eq!(answer.status, status, "{method} {path} {authorization:?}");
                    assert_eq!(answer.json(), json!({"success": false, "error": text}));
                }
                None => assert_eq!(answer.status, status, "{method} {path} {authorization:?}"),
            }
        }
    }
}

#[test]
fn whether_commands_have_the_network() {
    for (token, no_auth, network) in
        [(None, false, Some(false)), (None, true, None), (Some("t"), false, None)]
    {
        let (tell, told) = unbounded();
        let mut config = config();
        (config.token, config.no_auth) = (token.map(Into::into), no_auth);
        let server = SandboxServer::start(config, Waits(1, tell)).unwrap();
        let mut client = Client::connect(server.addr());
        let body = br#"{"slot_id": "slot_0", "tool": "bash"}"#;
        client.send("POST", "/execute", &[("Authorization", "Bearer t")], body);
        let execution = told.recv_timeout(PATIENCE).unwrap();
        let allowed = execution.arguments.get("allow_network").and_then(Value::as_bool);
        assert_eq!(allowed, network, "{token:?} {no_auth}");
        execution.reply.send(ToolResult::ok(""));
        client.receive();
    }
}

#[test]
fn configurations_that_make_no_sense() {
    type Change<'a> = &'a dyn Fn(&mut ServerConfig);
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let started = |change: Change<'_>| {
        let mut config = config();
        change(&mut config);
        SandboxServer::start(config, Echoes(1))
    };
    let wrong: [(Change<'_>, &str); 5] = [
        (&|config| config.addr = everywhere, "needs a token, or no_auth"),
        (&|config| config.token = Some("".into()), "token"),
        (&|config| config.token = Some("a b".into()), "token"),
        (&|config| config.max_body = 7, "max_body is 7"),
        (&|config| config.read_timeout = Duration::ZERO, "read_timeout is 0ns"),
    ];
    for (change, text) in wrong {
        match started(change) {
            Err(ServeError::Config(told)) => {
                assert!(told.to_string().contains(text), "{told}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    assert!(started(&|config| (config.addr, config.no_auth) = (everywhere, true)).is_ok());
    let token = Some("t".into());
    assert!(started(&|config| (config.addr, config.token) = (everywhere, token.clone())).is_ok());
    let listens = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listens.local_addr().unwrap();
    assert!(matches!(started(&|config| config.addr = addr), Err(ServeError::Listen(..))));
    assert!(matches!(SandboxServer::start(config(), Echoes(0)), Err(ServeError::Backend(_))));
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let mut config = config();
    config.max_body = 1024;
    let server = SandboxServer::start(config, Echoes(1)).unwrap();
    let body = vec![b' '; 1025];
    for path in ["/execute", "/batch", "/reset"] {
        let answer = Client::connect(server.addr()).ask("POST", path, &[], &body);
        let text = r#"{"success": false, "error": "Request Entity Too Large"}"#;
        assert_eq!((answer.status, answer.text()), (413, text), "{path}");
    }
    for path in ["/artifacts/read", "/artifacts/list", "/artifacts/archive"] {
        let answer = Client::connect(server.addr()).ask("POST", path, &[], &body);
        let text = "Maximum request body size 1024 exceeded.";
        assert_eq!((answer.status, answer.text()), (413, text), "{path}");
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    }
    let answer = Client::connect(server.addr()).ask("POST", "/execute", &[], &body[..1024]);
    assert_eq!(answer.status, 400);
}

#[test]
fn a_large_body_is_read() {
    let server = SandboxServer::start(config(), Echoes(1)).unwrap();
    let command = "x".repeat(3_000_000);
    let request =
        json!({"slot_id": "slot_0", "tool": "bash", "args": {"command": command.as_str()}});
    let answer = Client::connect(server.addr()).ask(
        "POST",
        "/batch",
        &[],
        json!([request]).to_string().as_bytes(),
    );
    assert_eq!(answer.json()[0]["output"], command);
}

#[test]
fn whoever_writes_slowly_is_cut_off() {
    let mut config = config();
    config.read_timeout = Duration::from_millis(100);
    let server = SandboxServer::start(config, Echoes(1)).unwrap();
    // In the middle of the head, and in the middle of the body.
    for (text, status) in [
        ("POST /execute HTTP/1.1\r\nHost:", None),
        (
            "POST /execute HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{",
            Some("408"),
        ),
    ] {
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.split(' ').nth(1).filter(|_| status.is_some()), status, "{answer}");
    }
}

#[test]
fn many_clients_share_the_slots() {
    let server = Arc::new(SandboxServer::start(config(), Echoes(4)).unwrap());
    let clients: Vec<_> = (0..16)
        .map(|client: usize| {
            let addr = server.addr();
            std::thread::spawn(move || {
                let mut connection = Client::connect(addr);
                for number in 0..50 {
                    let command = format!("{client}.{number}");
                    let slot = format!("slot_{}", (client + number) % 4);
                    let call =
                        json!({"slot_id": slot, "tool": "bash", "args": {"command": command}});
                    connection.post("/execute", &call);
                    assert_eq!(connection.receive().json()["output"], command);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}
