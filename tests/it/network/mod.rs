//! The network of a slot: its own, and out of it through the proxy. Servers on other addresses of
//! this machine's loopback interface stand for the internet: the proxy reaches them by what allows
//! it, and a command, which has a loopback interface of its own, in no other way.

pub(crate) mod servers;
mod tools;

use serde_json::{Value, json};
use tool_executor::backend::Backend as _;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig, NetworkMode, Policy};
use tool_executor::{BackendErrorKind, ToolCall, ToolExecutor, ToolResult};

use self::servers::Files;
use crate::caller::directory;

/// An executor over slots of this machine.
struct Machine {
    executor: ToolExecutor,
    backend: LocalBackend,
    _dir: tempfile::TempDir,
}

impl Machine {
    fn start(config: LocalConfig, policy: Policy) -> Self {
        let dir = directory();
        let backend = LocalBackend::start(config.with_data_dir(dir.path())).unwrap();
        assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
        let config = ExecutorConfig::default().with_policy(policy);
        let executor =
            ToolExecutor::builder().backend(backend.clone()).config(config).start().unwrap();
        Self { executor, backend, _dir: dir }
    }

    /// One whose commands may reach these hosts through the proxy.
    fn allowing(hosts: &[String]) -> Self {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        Self::start(LocalConfig::new(2).with_allow_hosts(hosts), Policy::default())
    }

    fn run(&self, trajectory: &str, command: &str) -> ToolResult {
        self.executor.execute(trajectory, ToolCall::bash(command))
    }
}

/// A command that connects to a port of an address, and says what comes of it.
fn connect(address: &str, port: u16) -> String {
    format!(
        "python3 -c \"import socket
try: socket.create_connection(('{address}', {port}), 5); print('connected')
except OSError as e: print(e)\""
    )
}

#[test]
fn a_command_reaches_through_the_proxy_what_is_allowed_and_is_told_why_nothing_else() {
    let server = Files::start("127.0.0.2", &[("/x", "hello")]);
    let machine = Machine::allowing(&[server.pattern()]);
    let url = server.url("/x");
    let result = machine.run("t", &format!("curl -sS {url}; curl -sS -p {url}"));
    assert_eq!(result.output, "hellohello", "{result:?}");
    let network = &result.metadata["network"];
    assert_eq!(network["requests"], 2, "{network}");
    assert!(network["bytes_received"].as_u64() > Some(80), "{network}");
    assert!(network.get("refused").is_none() && network.get("failed").is_none(), "{network}");

    // Another port of the same address; and a plain answer that says why.
    let other = Files::start("127.0.0.2", &[("/x", "secret")]);
    let result = machine.run("t", &format!("curl -sS {}", other.url("/x")));
    assert!(result.output.contains("127.0.0.2 is a loopback address"), "{result:?}");
    assert!(result.output.contains("--allow-host"), "{result:?}");
    let expected = json!(["127.0.0.2"]);
    assert_eq!(result.metadata["network"]["refused_hosts"], expected, "{result:?}");
    assert_eq!(other.requests(), Vec::<String>::new());

    // A tunnel is refused with a reason in its status line, which tools show.
    let result = machine.run("t", "curl -sSv https://169.254.169.254/ 2>&1 | grep 'HTTP/1.1 403'");
    assert!(result.output.contains("403 Refused: the address of a cloud's metadata"), "{result:?}");
    // A call that asked for nothing says nothing.
    assert!(machine.run("t", "true").metadata.get("network").is_none());
    let totals = machine.backend.capabilities().network_totals.unwrap();
    assert_eq!((totals.requests, totals.refused), (4, 2));
    assert_eq!(machine.executor.stats().network_totals, Some(totals));
}

#[test]
fn without_an_allowed_address_no_service_of_this_machine_is_reached() {
    let server = Files::start("127.0.0.2", &[("/x", "secret")]);
    let machine = Machine::allowing(&[]);
    let port = server.port;
    for host in ["127.0.0.2", "127.1.1.1", "[::ffff:127.0.0.2]", "localhost", "0x7f.2", "[::1]"] {
        let result = machine
            .run("t", &format!("curl -sS --noproxy '' --max-time 20 http://{host}:{port}/x"));
        assert!(!result.output.contains("secret"), "{host}: {result:?}");
        let network = &result.metadata["network"];
        assert!(network["refused"] == 1 || network["failed"] == 1, "{host}: {result:?}");
    }
    // A redirect is another request.
    let to = server.url("/x");
    let redirect = Files::redirecting("127.0.0.3", &to);
    let machine = Machine::allowing(&[redirect.pattern()]);
    let result = machine.run("t", &format!("curl -sSL {}", redirect.url("/")));
    assert!(result.output.contains("is a loopback address"), "{result:?}");
    assert_eq!(server.requests(), Vec::<String>::new());
}

#[test]
fn what_does_not_use_the_proxy_fails_at_once() {
    let machine = Machine::allowing(&[]);
    let began = std::time::Instant::now();
    let command = format!(
        "{}; getent hosts example.org || echo unknown; env -u http_proxy curl -sS http://8.8.8.8/",
        connect("8.8.8.8", 53)
    );
    let result = machine.run("t", &command);
    assert!(result.output.contains("Network is unreachable\nunknown"), "{result:?}");
    // The shell that stays open has the same.
    let call = ToolCall::new("terminal_stateful", json!({"command": connect("8.8.8.8", 53)}));
    let result = machine.executor.execute("t", call);
    assert!(result.output.contains("Network is unreachable"), "{result:?}");
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn nobody_shares_a_loopback_interface() {
    let server = Files::start("127.0.0.1", &[("/x", "secret")]);
    let machine = Machine::allowing(&[]);
    let of_host = connect("127.0.0.1", server.port);
    assert!(machine.run("a", &of_host).output.contains("refused"));
    // An abstract socket of the host's is in another namespace, too.
    let name = format!("tool-executor-test-{}", std::process::id());
    let address = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    let abstract_socket = format!(
        "python3 -c \"import socket
try: socket.socket(socket.AF_UNIX).connect('\\0{name}'); print('connected')
except OSError as e: print(e)\""
    );
    let result = machine.run("a", &abstract_socket);
    assert!(result.output.contains("refused"), "{result:?}");
    // Both have the same port at the same time, and each finds its own server there.
    let serve = "mkdir s; echo of-$0 > s/index.html; cd s; \
        python3 -m http.server 18081 >/dev/null 2>&1 & \
        until curl -fs http://localhost:18081/; do :; done; curl -s http://sandbox:18081/";
    let [a, b] = ["a", "b"].map(|name| {
        machine.executor.submit(name, ToolCall::bash(serve.replace("$0", name))).unwrap()
    });
    assert_eq!(a.wait().output.lines().take(2).collect::<Vec<_>>(), ["of-a", "of-a"]);
    assert_eq!(b.wait().output.lines().take(2).collect::<Vec<_>>(), ["of-b", "of-b"]);
}

#[test]
fn the_proxys_port_cannot_be_taken_and_its_socket_is_in_no_process() {
    let server = Files::start("127.0.0.2", &[("/x", "hello")]);
    let machine = Machine::allowing(&[server.pattern()]);
    let steal = "python3 -c \"import os, socket
port = int(os.environ['http_proxy'].rsplit(':')[-1])
for address in '127.0.0.1', '0.0.0.0':
    for option in 0, socket.SO_REUSEADDR, socket.SO_REUSEPORT:
        s = socket.socket()
        if option: s.setsockopt(socket.SOL_SOCKET, option, 1)
        try: s.bind((address, port)); s.listen(); print('stolen', address, option)
        except OSError as e: print(e.strerror)
\" | sort -u; readlink /proc/[0-9]*/fd/* | grep -c socket";
    let result = machine.run("t", steal);
    assert_eq!(result.output, "Address already in use\n0", "{result:?}");
    assert_eq!(machine.run("t", &format!("curl -sS {}", server.url("/x"))).output, "hello");
}

#[test]
fn none_is_none_whatever_a_call_says_and_host_is_this_machines() {
    let server = Files::start("127.0.0.1", &[("/x", "hello")]);
    let none =
        Machine::start(LocalConfig::new(1).with_network(NetworkMode::None), Policy::default());
    assert_eq!(none.backend.capabilities().network, Some(NetworkMode::None));
    let proxy = Machine::start(LocalConfig::new(1), Policy::default().with_allow_network(false));
    assert_eq!(proxy.backend.capabilities().network, Some(NetworkMode::Proxy));
    for machine in [&none, &proxy] {
        for tool in ["bash", "terminal_stateful"] {
            let command = "env | grep -ci proxy; cat /proc/net/tcp | wc -l";
            let arguments = json!({"command": command, "allow_network": true});
            let result = machine.executor.execute("t", ToolCall::new(tool, arguments));
            assert_eq!(
                (&*result.output, &result.metadata["network_isolated"]),
                ("0\n1", &json!(true))
            );
        }
    }
    let host =
        Machine::start(LocalConfig::new(1).with_network(NetworkMode::Host), Policy::default());
    let result = host.run("t", &format!("curl -s http://127.0.0.1:{}/x", server.port));
    assert_eq!((&*result.output, &result.metadata["network_isolated"]), ("hello", &json!(false)));
    assert_eq!(host.backend.capabilities().network, Some(NetworkMode::Host));
    assert_eq!(host.backend.capabilities().network_totals, None);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let list = vec!["a.b".parse().unwrap()];
    let config = LocalConfig::new(1).with_network(NetworkMode::None).with_allow_hosts(list);
    let error = LocalBackend::start(config).unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Other);
    assert!(error.to_string().contains("only the proxy knows hosts"), "{error}");
    let error = LocalBackend::start(LocalConfig::new(1).with_ca_pem("hello")).unwrap_err();
    assert!(error.to_string().contains("no certificate"), "{error}");
    let json = r#"{"slots": 1, "network": "none", "allow_hosts": ["x y"]}"#;
    let error = serde_json::from_str::<LocalConfig>(json).unwrap_err().to_string();
    assert!(error.contains("neither an address nor a name"), "{error}");
}

#[test]
fn what_one_trajectory_used_is_not_told_another() {
    let server = Files::start("127.0.0.2", &[("/x", "hello")]);
    let hosts = vec![server.pattern().parse().unwrap()];
    let config = LocalConfig::new(1).with_allow_hosts(hosts);
    let machine = Machine::start(config, Policy::default());
    let fetch = format!("curl -sS {}", server.url("/x"));
    // In a shell that stays open, behind the call.
    let arguments = json!({"command": format!("(sleep 0.3; {fetch} > got) & true")});
    machine.executor.execute("a", ToolCall::new("terminal_stateful", arguments));
    let call = json!({"command": "until test -s got; do sleep 0.05; done"});
    let result = machine.executor.execute("a", ToolCall::new("terminal_stateful", call));
    assert_eq!(result.metadata["network"]["requests"], 1, "{result:?}");
    let arguments = json!({"command": format!("(sleep 0.2; {fetch}) & true")});
    machine.executor.execute("a", ToolCall::new("terminal_stateful", arguments));
    machine.executor.release("a").unwrap();
    assert_eq!(machine.run("b", "true").metadata.get("network"), None::<&Value>);
}

#[test]
fn a_flood_of_connections_holds_up_no_other_slot() {
    let server = Files::start("127.0.0.2", &[("/x", "hello")]);
    let machine = Machine::allowing(&[server.pattern()]);
    let flood = "python3 -c \"import os, socket, time
port = int(os.environ['http_proxy'].rsplit(':')[-1])
kept = []
for n in range(200):
    s = socket.socket(); s.setblocking(False)
    try: s.connect(('127.0.0.1', port))
    except BlockingIOError: pass
    kept.append(s)
for s in kept[:64]:
    s.setblocking(True); s.send(b'GET http://')
open('ready', 'w').close()
time.sleep(60)\"";
    let hostile = machine.executor.submit("hostile", ToolCall::bash(flood)).unwrap();
    while machine.backend.capabilities().network_totals.unwrap().connections < 64 {
        std::thread::yield_now();
    }
    let fetch = format!("for n in 1 2 3 4 5; do curl -sS --max-time 5 {}; done", server.url("/x"));
    assert_eq!(machine.run("honest", &fetch).output, "hello".repeat(5));
    let connections = machine.backend.capabilities().network_totals.unwrap().connections;
    assert!((64..70).contains(&connections), "{connections}");
    hostile.cancel();
    hostile.wait();
    // Those that were held are gone with the command.
    assert_eq!(machine.run("hostile", &fetch).output, "hello".repeat(5));
}
