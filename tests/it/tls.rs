//! A ToolServer behind TLS, with a certificate authority of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tool_executor::config::{ExecutorConfig, ToolServerConfig};
use tool_executor::{Outcome, StartError, ToolCall, ToolExecutor};

const TOOLS: &str = r#"{"tools":[{"type":"function","function":{"name":"search","description":"",
    "parameters":{"type":"object","properties":{},"required":[]}}}]}"#;
const RESULT: &str = r#"{"success":true,"output":"found","error":"","metadata":{}}"#;

/// A server for `localhost`, and its certificate as PEM. Its threads end with the test's process.
pub(crate) fn server() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let config = Arc::new(config);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            // Ends with an error where the client does not trust us.
            thread::spawn(move || drop(serve(StreamOwned::new(connection, stream))));
        }
    });
    (url, made.cert.pem())
}

fn serve(stream: StreamOwned<ServerConnection, std::net::TcpStream>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let before = head.len();
            if stream.read_line(&mut head)? == 0 {
                return Ok(());
            }
            let line = head[before..].trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        stream.read_exact(&mut vec![0; length])?;
        let body = if head.starts_with("GET /tools") { TOOLS } else { RESULT };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.get_mut().write_all(answer.as_bytes())?;
    }
}

#[test]
fn a_tool_server_with_a_trusted_certificate_is_used_and_another_is_not() {
    let (url, pem) = server();
    let config = ToolServerConfig::new(&url).with_ca_pem(pem);
    let executor = ToolExecutor::builder()
        .config(ExecutorConfig::default().with_tool_server(config))
        .start()
        .unwrap();
    let result = executor.execute("t", ToolCall::new("search", serde_json::json!({})));
    assert_eq!((result.outcome, &*result.output), (Outcome::Ok, "found"), "{}", result.error);
    let start = |config| {
        ToolExecutor::builder()
            .config(ExecutorConfig::default().with_tool_server(config))
            .start()
            .unwrap_err()
    };
    // Mozilla's authorities do not know it, and neither does another one.
    let (_, another) = server();
    for config in [ToolServerConfig::new(&url), ToolServerConfig::new(&url).with_ca_pem(another)] {
        let StartError::ToolServer(error) = start(config) else { panic!("trusted") };
        assert!(error.to_string().contains("does not say what it offers"), "{error}");
    }
    let StartError::ToolServer(error) = start(ToolServerConfig::new(&url).with_ca_pem("no PEM"))
    else {
        panic!("trusted")
    };
    assert!(error.to_string().contains("no CA certificate"), "{error}");
}

#[test]
fn a_tool_server_that_wants_https_says_so_at_the_start() {
    let (url, _) = server();
    let config = ToolServerConfig::new(url.replace("https:", "http:"));
    let started =
        ToolExecutor::builder().config(ExecutorConfig::default().with_tool_server(config)).start();
    let Err(StartError::ToolServer(error)) = started else { panic!("it started") };
    let text = format!("it speaks https, not http: its URL begins with {url}");
    assert!(error.to_string().ends_with(&text), "{error}");
}
