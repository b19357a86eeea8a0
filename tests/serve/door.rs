//! Who may use a server: pages in a browser, commands in its own sandboxes, clients over TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::{Program, call, errors_of, line_with};
use crate::caller;
use crate::program::program;

impl Program {
    /// A server without a token.
    fn open(arguments: &[&str], env: &[(&str, &str)]) -> Self {
        let mut program = Self::start(arguments, ("TOOL_EXECUTOR_TOKEN", ""), env);
        program.headers.clear();
        program
    }
}

#[test]
fn pages_in_a_browser_cannot_drive_a_server_without_a_token() {
    let execute = json!({"slot_id": "slot_0", "tool": "bash", "args": {"command": "true"}});
    for (mut program, body) in [
        (Program::open(&["serve", "--slots", "1"], &[]), call("t", "true")),
        (Program::open(&["sandbox", "--slots", "1"], &[]), execute),
    ] {
        let page = |name, value: &str| vec![(name, value.to_owned())];
        for (headers, status) in [
            (page("Content-Type", "text/plain"), 415),
            (page("Content-Type", "application/x-www-form-urlencoded"), 415),
            (page("Origin", "https://evil.example"), 403),
            (page("Origin", "null"), 403),
            (page("Sec-Fetch-Site", "cross-site"), 403),
            (page("Sec-Fetch-Site", "same-site"), 403),
            (page("Host", "evil.example"), 403),
            (page("Content-Type", "application/json; charset=utf-8"), 200),
            (page("Sec-Fetch-Site", "same-origin"), 200),
        ] {
            program.headers = headers;
            let answer = program.ask("POST", "/execute", &body);
            assert_eq!(answer.status, status, "{:?} {}", program.headers, answer.text());
            assert!(
                status == 200
                    || answer.text().contains("use a token")
                    || answer.text().contains("Use a token"),
                "{}",
                answer.text()
            );
        }
    }
}

#[test]
fn a_command_cannot_drive_the_server_before_its_sandbox_server() {
    let sandbox = Program::sandbox(&["--slots", "2", "--network", "host"]);
    let url = sandbox.url();
    let env = [("TOOL_EXECUTOR_SANDBOX_TOKEN", "s3cret-of-sandbox")];
    let mut open = Program::open(&["serve", "--sandbox-url", &url], &env);
    let result = reach(&open);
    assert_eq!(result["metadata"]["network_isolated"], true, "{result}");
    assert!(!result["output"].as_str().unwrap().contains("reached"), "{result}");
    open.terminate();
    open.ends();
    // It is the network that keeps it away: with the wish for that it is reached.
    let open = Program::open(&["serve", "--no-auth", "--sandbox-url", &url], &env);
    let result = reach(&open);
    assert!(result["output"].as_str().unwrap().contains("reached"), "{result}");
}

/// A call that tries to reach the program's own port, directly and by the proxy.
fn reach(program: &Program) -> Value {
    let port = program.addr.port();
    let command = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port} && echo reached; \
         curl -s --noproxy '' http://127.0.0.1:{port}/health | grep -o '\"status\"' && echo reached"
    );
    program.bash("attacker", &command)
}

#[test]
fn without_a_token_commands_have_the_proxy_and_never_the_hosts_network() {
    for (flags, is_isolated) in [
        (&["serve", "--slots", "1"][..], false),
        (&["serve", "--slots", "1", "--no-network"], true),
        (&["serve", "--slots", "1", "--network", "host"], true),
        (&["serve", "--slots", "1", "--no-auth"], false),
    ] {
        let program = Program::open(flags, &[]);
        let result = reach(&program);
        assert_eq!(result["metadata"]["network_isolated"], is_isolated, "{flags:?} {result}");
        assert!(!result["output"].as_str().unwrap().contains("reached"), "{flags:?} {result}");
    }
    // With a list that names the server itself there would be a way.
    let mut command = program();
    command.args(["serve", "--port", "9", "--allow-host", "127.0.0.0/8"]);
    let refused = command.output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && text.contains("lets commands reach this server"),
        "{text}"
    );
}

#[test]
fn what_network_there_is_and_what_it_was_used_for_is_told() {
    let sandbox = Program::sandbox(&["--slots", "1"]);
    let health = sandbox.ask("GET", "/health", &Value::Null).json();
    assert_eq!(health["network"], "proxy", "{health}");
    let program = Program::serve(&["--slots", "1"], &[]);
    let result = program.bash("t", "curl -s http://10.0.0.1/; curl -s https://169.254.169.254/");
    assert_eq!(result["metadata"]["network"]["refused"], 2, "{result}");
    let answer = program.ask("GET", "/metrics", &Value::Null);
    let metrics = answer.text();
    for line in [
        "tool_executor_network_requests_total{end=\"refused\"} 2",
        "tool_executor_network_requests_total{end=\"passed\"} 0",
        "tool_executor_network_bytes_total{way=\"sent\"} 0",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line}: {metrics}");
    }
}

/// A certificate for `localhost` and its key, as files in `directory`.
fn certificate(directory: &Path, name: &str, year: i32) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let [cert_file, key_file] =
        ["cert", "key"].map(|kind| directory.join(format!("{name}-{kind}.pem")));
    fs::write(&cert_file, params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    (cert_file, key_file)
}

#[test]
fn over_tls_a_sandbox_server_is_used_by_who_trusts_it_and_everyone_else_is_told_why_not() {
    let directory = caller::directory();
    let (cert, key) = certificate(directory.path(), "own", 2100);
    let (another, _) = certificate(directory.path(), "another", 2100);
    let (cert_arg, key_arg) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let sandbox = Program::sandbox(&[
        "--slots",
        "1",
        "--advertise",
        "localhost",
        "--tls-cert",
        cert_arg,
        "--tls-key",
        key_arg,
    ]);
    let url = format!("https://localhost:{}", sandbox.addr.port());
    assert!(
        sandbox.line.contains(&format!("listening on {url} (1 slots, isolation ")),
        "{}",
        sandbox.line
    );
    let input = directory.path().join("in.jsonl");
    let calls = json!([{"name": "bash", "arguments": {"command": "echo over tls"}}]);
    fs::write(&input, json!({"id": "t", "calls": calls}).to_string()).unwrap();
    let out = directory.path().join("out.jsonl");
    let replay = |url: &str, ca: Option<&Path>| -> Output {
        let mut command = program();
        command.arg("replay").arg(&input).arg("--out").arg(&out);
        command.args(["--sandbox-url", url]).args(ca.map(|_| "--sandbox-ca")).args(ca);
        command.env("TOOL_EXECUTOR_SANDBOX_TOKEN", "s3cret-of-sandbox").output().unwrap()
    };
    let done = replay(&url, Some(&cert));
    assert!(done.status.success(), "{done:?}");
    let line: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(line["output"], "over tls");

    let by_address = format!("https://127.0.0.1:{}", sandbox.addr.port());
    let in_clear = url.replace("https", "http");
    let missing = directory.path().join("missing.pem");
    for (url, ca, text) in [
        (&url, None, "from an authority that is not trusted"),
        (&url, Some(&another), "not"),
        (&by_address, Some(&cert), "is for another host name"),
        (&in_clear, Some(&cert), "it speaks https, not http"),
        (&url, Some(&missing), "missing.pem: No such file"),
        (&url, Some(&key), "no CA certificate"),
    ] {
        let failed = replay(url, ca.map(PathBuf::as_path));
        let errors = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(failed.status.code(), Some(5), "{url} {ca:?} {errors}");
        assert!(errors.contains(text), "{url} {ca:?} {errors}");
    }
    // Plain HTTP is told so.
    let answer = sandbox.ask("GET", "/health", &Value::Null);
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("https"), "{}", answer.text());
}

#[test]
fn a_certificate_that_cannot_serve_ends_the_start_with_the_reason() {
    let directory = caller::directory();
    let (cert, key) = certificate(directory.path(), "own", 2100);
    let (old_cert, old_key) = certificate(directory.path(), "old", 2021);
    let missing = directory.path().join("missing.pem");
    for command in ["serve", "sandbox"] {
        for (cert, key, text) in [
            (&cert, &old_key, "is not that of the first certificate"),
            (&old_cert, &old_key, "has expired: it was valid until 2021-01-01"),
            (&missing, &key, "missing.pem: No such file"),
            (&key, &key, "no certificate in tls_cert_pem"),
            (&cert, &cert, "no private key in tls_key_pem"),
        ] {
            let mut program = program();
            program.args([command, "--port", "0", "--slots", "1"]).env("TMPDIR", directory.path());
            let output =
                program.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(5), "{errors}");
            assert!(errors.contains(text), "{errors}");
        }
        let output = program().args([command, "--tls-cert", "x"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("--tls-key"));
    }
}

#[test]
fn a_server_on_every_address_calls_itself_by_the_hosts_name_or_what_it_is_told() {
    let everywhere = ["--slots", "1", "--host", "0.0.0.0"];
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for (arguments, host) in [
        (&[][..], &*own),
        (&["--advertise", "boxes.example"], "boxes.example"),
        (&["--advertise", "boxes.example:81"], "boxes.example:81"),
    ] {
        let sandbox = Program::sandbox(&[&everywhere[..], arguments].concat());
        let url = match host.contains(':') {
            true => format!("http://{host}"),
            false => format!("http://{host}:{}", sandbox.addr.port()),
        };
        // With the port that was given, the test cannot know where it listens.
        if !host.contains(':') {
            let health = sandbox.ask("GET", "/health", &Value::Null).json();
            assert_eq!(health["url"], url);
        }
        assert!(sandbox.line.contains(&format!("listening on {url} ")), "{}", sandbox.line);
    }
    let output = program().args(["sandbox", "--advertise", "http://x"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("HOST or HOST:PORT"), "{errors}");
}

#[test]
fn a_sandbox_server_that_may_be_unused_for_a_while_ends_after_it_and_not_while_it_is_used() {
    let start = || {
        let mut command = program();
        command.stderr(Stdio::piped());
        let arguments = ["sandbox", "--slots", "1", "--exit-when-unused", "3"];
        Program::start_as(command, &arguments, ("TOOL_EXECUTOR_SANDBOX_TOKEN", "s3cret"), &[])
    };
    let mut used = start();
    let lines = errors_of(&mut used.child);
    // An executor that makes no call uses the server too.
    let env = [("TOOL_EXECUTOR_SANDBOX_TOKEN", "s3cret")];
    let mut executor = Program::serve(&["--sandbox-url", &used.url()], &env);
    // Questions about the health are no use; and its end comes later than the other's would have.
    let mut unused = start();
    let mut ended = unused.send("GET", "/health", &Value::Null);
    assert_eq!(ended.receive().status, 200);
    unused.ends();
    assert_eq!(executor.bash("t", "echo on")["output"], "on");
    executor.terminate();
    executor.ends();
    // A command that outlasts the time keeps it, too.
    let call =
        json!({"slot_id": "slot_0", "tool": "bash", "args": {"command": "sleep 4; echo on"}});
    // The slot that the executor had is emptied first, behind.
    let mut result = used.post("/execute", &call);
    let give_up = Instant::now() + Duration::from_secs(60);
    while result["detail"] == "the slot is being emptied after an executor used it" {
        assert!(Instant::now() < give_up, "{result}");
        result = used.post("/execute", &call);
    }
    assert_eq!(result["output"], "on", "{result}");
    let line = line_with(&lines, "unused for 3 s: the server ends");
    assert!(line.contains("WARN"), "{line}");
    used.ends();
}
