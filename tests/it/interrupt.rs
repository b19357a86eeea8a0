//! A start that waits for something is ended by its interrupt, whatever it waits for, and leaves
//! nothing.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use tool_executor::backend::local::LocalBackend;
use tool_executor::backend::{Backend, Container, Execution, ResetReply, SlotRef};
use tool_executor::config::{
    ExecutorConfig, FleetConfig, LocalConfig, ServerConfig, ToolServerConfig,
};
use tool_executor::server::SandboxServer;
use tool_executor::{BackendError, BackendErrorKind, Interrupt, StartError, ToolExecutor};

use crate::fakes::{Echoes, until};
use crate::http::{Reply, Server, ok};

/// What an interrupted start may take to end, on a busy machine: much less than what it waits for.
const SOON: Duration = Duration::from_secs(5);

/// Starts an executor, interrupts it when it has got as far as `has_begun`, and gives its error.
fn interrupted(config: ExecutorConfig, has_begun: impl FnOnce()) -> StartError {
    let interrupt = Interrupt::new();
    let builder = ToolExecutor::builder().config(config).interrupt(interrupt.clone());
    std::thread::scope(|scope| {
        let start = scope.spawn(move || builder.start().err());
        has_begun();
        let began = Instant::now();
        interrupt.interrupt();
        let error = start.join().unwrap().expect("it does not start");
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        error
    })
}

fn with_fleet(urls: impl IntoIterator<Item = impl Into<String>>) -> ExecutorConfig {
    let mut fleet = FleetConfig::new(urls);
    fleet.start_timeout = Duration::from_secs(600);
    fleet.unreachable_timeout = Duration::from_secs(600);
    ExecutorConfig::default().with_fleet(fleet)
}

fn is_interrupted(error: &StartError) -> bool {
    matches!(error, StartError::Interrupted)
}

/// A URL where no server listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn an_executor_whose_start_was_interrupted_before_it_began_does_not_start() {
    let interrupt = Interrupt::new();
    interrupt.interrupt();
    let started = ToolExecutor::builder().backend(Echoes(1)).interrupt(interrupt).start();
    assert!(is_interrupted(&started.unwrap_err()));
}

#[test]
fn waiting_for_a_sandbox_server_that_is_not_there_is_interrupted() {
    let url = nobody();
    let (tell, told) = bounded(1);
    // One that has answered, so that the start is under way.
    let other = Server::start(move |request| {
        let _ = tell.try_send(());
        match &*request.path {
            "/health" => ok(r#"{"status": "ok", "bwrap_available": true}"#),
            _ => ok(r#"{"slots": [{"slot_id": "slot_0"}]}"#),
        }
    });
    let error = interrupted(with_fleet([&url, &other.url]), || told.recv().unwrap());
    assert!(is_interrupted(&error), "{error:?}");
}

#[test]
fn a_request_to_a_sandbox_server_that_hangs_is_interrupted() {
    for path in ["/health", "/slots"] {
        let (_hold, hang) = bounded(0);
        let (tell, told) = bounded(1);
        let server = Server::start(move |request| {
            if request.path == path {
                let _ = tell.try_send(());
                return Reply::Hang(hang.clone());
            }
            ok(r#"{"status": "ok", "bwrap_available": true}"#)
        });
        let error = interrupted(with_fleet([&server.url]), || told.recv().unwrap());
        assert!(is_interrupted(&error), "{path}: {error:?}");
    }
}

#[test]
fn a_connection_that_does_not_come_about_is_interrupted() {
    // The queue of connections is full, so that the kernel answers no further one.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(listener.as_fd(), 0).unwrap();
    let address = listener.local_addr().unwrap();
    let short = Duration::from_millis(100);
    let mut held = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, short) {
        held.push(stream);
        assert!(held.len() < 100, "the queue is never full");
    }
    let url = format!("http://{address}");
    let connecting = || {
        let is_ours = |line: &str| {
            // In the state SYN_SENT, to this port.
            line.split_ascii_whitespace().nth(3) == Some("02")
                && line
                    .split_ascii_whitespace()
                    .nth(2)
                    .is_some_and(|remote| remote.ends_with(&format!(":{:04X}", address.port())))
        };
        std::fs::read_to_string("/proc/self/net/tcp").unwrap().lines().any(is_ours)
    };
    let error = interrupted(with_fleet([&url]), || until(connecting));
    assert!(is_interrupted(&error), "{error:?}");
    let config = ExecutorConfig::default().with_tool_server(ToolServerConfig::new(&*url));
    let error = interrupted(config, || until(connecting));
    assert!(is_interrupted(&error), "{error:?}");
}

#[test]
fn a_tool_server_that_does_not_say_what_it_offers_is_interrupted() {
    let (_hold, hang) = bounded(0);
    let (tell, told) = bounded(1);
    let server = Server::start(move |_| {
        let _ = tell.try_send(());
        Reply::Hang(hang.clone())
    });
    let config = ExecutorConfig::default().with_tool_server(ToolServerConfig::new(&*server.url));
    let error = interrupted(config, || told.recv().unwrap());
    assert!(is_interrupted(&error), "{error:?}");
}

/// A server of ours, in this process.
fn server() -> (SandboxServer, String) {
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
    config.no_auth = true;
    config.lease = Duration::from_secs(3600);
    let server = SandboxServer::start(config, Echoes(1)).unwrap();
    let url = format!("http://{}", server.addr());
    (server, url)
}

#[test]
fn the_sessions_that_an_interrupted_start_has_begun_are_ended() {
    let (server, url) = server();
    let has_session = || server.unused_since().is_none();
    assert!(!has_session());
    let error = interrupted(with_fleet([url, nobody()]), || until(has_session));
    assert!(is_interrupted(&error), "{error:?}");
    // Else it would be there for the lease, which is longer than that.
    until(|| !has_session());
    drop(server);
}

#[test]
fn a_server_that_cannot_be_used_ends_the_start_at_once_and_the_others_sessions() {
    let (server, url) = server();
    let forbidden = Server::start(|_| Reply::Answer(403, r#"{"detail": "no"}"#.to_owned()));
    let began = Instant::now();
    let config = with_fleet([url.clone(), nobody(), forbidden.url.clone()]);
    let error = ToolExecutor::start(config).unwrap_err();
    let StartError::Backend(error) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains("HTTP 403"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60), "it waited for the one that is not there");
    ToolExecutor::start(with_fleet([url])).unwrap();
    drop(server);
}

#[test]
fn removing_what_a_dead_run_left_is_interrupted() {
    // Where nothing is made for long enough it is all removed before, which is another case.
    assert!((0..50).any(|_| interrupts_a_removal()));
}

/// Whether a start was interrupted while it removed the files of a dead run.
fn interrupts_a_removal() -> bool {
    let base = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(base.path(), mode).unwrap();
    let dead = base.path().join("run-dead");
    let slot = dead.join("slot_0");
    std::fs::create_dir_all(&slot).unwrap();
    std::fs::write(dead.join("lock"), "").unwrap();
    let first = slot.join("first");
    std::fs::write(&first, "").unwrap();
    let over = AtomicBool::new(false);
    let config = LocalConfig::new(1).with_data_dir(base.path());
    let interrupt = Interrupt::new();
    let (outcome, took) = std::thread::scope(|scope| {
        // However many files are removed, there are more.
        scope.spawn(|| {
            let mut number = 0_u64;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                // What is removed at the end is made again.
                let _ = std::fs::create_dir_all(&slot);
                let _ = std::fs::write(slot.join(number.to_string()), "");
            }
        });
        let start = scope.spawn(|| LocalBackend::start_interruptible(config, &interrupt).map(drop));
        until(|| !first.exists());
        let began = Instant::now();
        interrupt.interrupt();
        let outcome = start.join().unwrap();
        over.store(true, Ordering::Relaxed);
        (outcome, began.elapsed())
    });
    let left = std::fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.collect();
    assert!(left.iter().all(|name| name == "run-dead"), "{left:?}");
    assert!(took < SOON, "{took:?}");
    match outcome {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.kind(), BackendErrorKind::Interrupted, "{error}");
            // The next start goes on with it.
            !left.is_empty()
        }
    }
}

/// Waits in its start until it is interrupted.
struct WaitsToBeInterrupted {
    begun: crossbeam_channel::Sender<()>,
    closed: Arc<AtomicBool>,
    ignores: bool,
}

impl Backend for WaitsToBeInterrupted {
    fn start(&self, interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        self.begun.send(()).unwrap();
        assert!(interrupt.wait_timeout(Duration::from_secs(600)));
        match self.ignores {
            true => Ok(vec![Container::numbered("fake", 1)]),
            false => Err(BackendError::interrupted()),
        }
    }

    fn execute(&self, _addr: &str, _batch: Vec<Execution>) {}

    fn reset(&self, _slot: &SlotRef, _reply: ResetReply) {}

    fn close(&self, _deadline: Instant) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_backend_of_the_users_own_is_told_and_closed_if_it_started_all_the_same() {
    for ignores in [false, true] {
        let (begun, told) = bounded(1);
        let closed = Arc::new(AtomicBool::new(false));
        let backend = WaitsToBeInterrupted { begun, closed: closed.clone(), ignores };
        let interrupt = Interrupt::new();
        let builder = ToolExecutor::builder().backend(backend).interrupt(interrupt.clone());
        let start = std::thread::spawn(move || builder.start().err());
        told.recv().unwrap();
        interrupt.interrupt();
        assert!(is_interrupted(&start.join().unwrap().unwrap()));
        assert_eq!(closed.load(Ordering::Relaxed), ignores);
    }
}
