//! When an executor is closed no thread of it is alive, whatever it did, and none is after a start
//! that failed.

use std::time::Duration;

use crossbeam_channel::bounded;
use serde_json::json;
use tool_executor::backend::fleet::FleetBackend;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{
    ExecutorConfig, FleetConfig, LocalConfig, ServerConfig, ToolServerConfig,
};
use tool_executor::server::SandboxServer;
use tool_executor::{Interrupt, Outcome, StartError, ToolCall, ToolExecutor};

use crate::alone::is_alone;
use crate::fakes::{Echoes, bash, until};
use crate::http::{Reply, Server, ok};

/// The names of this process's threads that are the library's and still run.
fn alive() -> Vec<String> {
    let mut names = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The name is in parentheses.
        let Some((before, after)) = stat.rsplit_once(')') else { continue };
        let name = before.split_once('(').unwrap().1;
        // One that was joined is listed for a moment, on its way out of the kernel (PF_EXITING).
        let flags: u64 = after.split_ascii_whitespace().nth(6).unwrap().parse().unwrap();
        if name.starts_with("tool-") && flags & 4 == 0 {
            names.push(name.to_owned());
        }
    }
    names.sort();
    names
}

#[test]
fn nothing_of_an_embedded_sandbox_is_alive_after_the_close() {
    if !is_alone("threads::nothing_of_an_embedded_sandbox_is_alive_after_the_close") {
        return;
    }
    let base = base();
    for round in 0..8 {
        let local = LocalConfig::new(2).with_data_dir(base.path());
        let executor = ToolExecutor::start(ExecutorConfig::default().with_local(local)).unwrap();
        // Of each kind of thread there is one at work.
        let long = executor.execute("t", bash("seq 100000"));
        assert_eq!(long.outcome, Outcome::Ok);
        let stateful = ToolCall::new("terminal_stateful", json!({"command": "echo x"}));
        assert_eq!(executor.execute("t", stateful).output, "x");
        executor.release("t").unwrap();
        let running = executor.submit("u", bash("sleep 1000")).unwrap();
        assert!(alive().len() > 20, "{:?}", alive());
        if round % 2 == 0 {
            executor.close_within(Duration::ZERO);
        } else {
            running.cancel();
            executor.close();
        }
        assert_eq!(alive(), Vec::<String>::new(), "in round {round}");
        drop(executor);
    }
}

/// A base for data directories.
fn base() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(base.path(), mode).unwrap();
    base
}

#[test]
fn nothing_is_alive_after_a_start_that_failed() {
    if !is_alone("threads::nothing_is_alive_after_a_start_that_failed") {
        return;
    }
    let nothing = Vec::<String>::new();
    let base = base();
    let local = LocalConfig::new(1).with_data_dir(base.path());
    let refuses = Server::start(|_| Reply::Answer(403, r#"{"detail": "no"}"#.to_owned()));
    let stock = Server::start(|request| match &*request.path {
        "/health" => ok(r#"{"status": "ok", "bwrap_available": true}"#),
        _ => ok(r#"{"slots": [{"slot_id": "slot_0"}]}"#),
    });
    for _ in 0..8 {
        // A sandbox was started before the ToolServer turns out to be of no use.
        let backend = LocalBackend::start(local.clone()).unwrap();
        let config =
            ExecutorConfig::default().with_tool_server(ToolServerConfig::new(&*refuses.url));
        let start = ToolExecutor::builder().backend(backend).config(config).start();
        assert!(matches!(start, Err(StartError::ToolServer(_))), "{start:?}");
        assert_eq!(alive(), nothing);

        // A place where no workspaces can be made.
        let nowhere = local.clone().with_data_dir("/proc/nowhere");
        LocalBackend::start(nowhere).unwrap_err();
        assert_eq!(alive(), nothing);

        // One server is of use, and the other is not.
        let fleet = FleetConfig::new([&stock.url, &refuses.url]);
        let start = ToolExecutor::start(ExecutorConfig::default().with_fleet(fleet));
        assert!(matches!(start, Err(StartError::Backend(_))), "{start:?}");
        assert_eq!(alive(), nothing);

        let (_hold, hang) = bounded(0);
        let (tell, told) = bounded(1);
        let hangs = Server::start(move |_| {
            let _ = tell.try_send(());
            Reply::Hang(hang.clone())
        });
        let interrupt = Interrupt::new();
        let fleet = FleetConfig::new([&stock.url, &hangs.url]);
        let config = ExecutorConfig::default().with_fleet(fleet);
        let builder = ToolExecutor::builder().config(config).interrupt(interrupt.clone());
        std::thread::scope(|scope| {
            let start = scope.spawn(move || builder.start());
            told.recv().unwrap();
            interrupt.interrupt();
            let start = start.join().unwrap();
            assert!(matches!(start, Err(StartError::Interrupted)), "{start:?}");
        });
        assert_eq!(alive(), nothing);
    }
}

#[test]
fn nothing_of_a_fleet_is_alive_after_the_close() {
    if !is_alone("threads::nothing_of_a_fleet_is_alive_after_the_close") {
        return;
    }
    for round in 0..3 {
        let mut config = ServerConfig::new(([127, 0, 0, 1], 0));
        config.no_auth = true;
        let server = SandboxServer::start(config, Echoes(4)).unwrap();
        let (_hold, hang) = bounded(0);
        let stock = Server::start(move |request| match &*request.path {
            "/health" => ok(r#"{"status": "ok", "bwrap_available": true}"#),
            "/slots" => ok(r#"{"slots": [{"slot_id": "slot_0"}, {"slot_id": "slot_1"}]}"#),
            "/reset" => ok(r#"{"success": true, "output": "", "error": "", "metadata": {}}"#),
            _ => Reply::Hang(hang.clone()),
        });
        let fleet = FleetConfig::new([format!("http://{}", server.addr()), stock.url.clone()]);
        let executor =
            ToolExecutor::builder().backend(FleetBackend::new(fleet).unwrap()).start().unwrap();
        // One in each slot; those of the stock server hang.
        let calls: Vec<_> =
            (0..6).map(|n| executor.submit(&n.to_string(), bash("x")).unwrap()).collect();
        until(|| calls.iter().filter(|call| call.is_done()).count() == 4);
        let report = executor.close_within(Duration::ZERO);
        assert!(report.all_threads_ended);
        let mut left = alive();
        let of_server =
            ["tool-http-", "tool-slots-", "tool-files-", "tool-archives-", "tool-grades-"];
        left.retain(|name| !of_server.iter().any(|of_server| name.starts_with(of_server)));
        assert_eq!(left, Vec::<String>::new(), "in round {round}");
        server.close(Duration::ZERO);
        assert_eq!(alive(), Vec::<String>::new(), "in round {round}");
    }
}
