//! `tool-executor sandbox` and `tool-executor serve`: start, one line, wait for a signal, end.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select, unbounded};
use tool_executor::ToolExecutor;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig, Policy, ServerConfig};
use tool_executor::server::{ExecutorServer, SandboxServer, ServeError};

use crate::args::{LimitArgs, ListenArgs, SandboxArgs, ServeArgs};
use crate::exit_code::ExitCode;
use crate::setup::{chain, fleet, limit, tool_server};
use crate::signals::Signals;

/// Variables of the reference that mean nothing here: there is no Nomad.
const WITHOUT_MEANING: [&str; 7] = [
    "TOOL_EXECUTOR_NOMAD_ADDRESS",
    "TOOL_EXECUTOR_JOB_ID",
    "TOOL_EXECUTOR_IMAGE",
    "TOOL_EXECUTOR_MIN_CONTAINERS",
    "TOOL_EXECUTOR_MAX_CONTAINERS",
    "TOOL_EXECUTOR_PRIVILEGED",
    "TOOL_EXECUTOR_PURGE_JOB_ON_SHUTDOWN",
];

/// Runs a sandbox server until a signal ends it.
pub(crate) fn sandbox(args: &SandboxArgs) -> ExitCode {
    init_log();
    let told = match signals() {
        Ok(told) => told,
        Err(problem) => return fail(&problem),
    };
    if let Err(problem) = may_listen(&args.listen, args.token.as_deref()) {
        return usage(&problem);
    }
    let backend = match local(args.slots, args.data_dir.clone(), &args.limits) {
        Ok(backend) => backend,
        Err(problem) => return fail(&problem),
    };
    let mut config = ServerConfig::new((args.listen.host, args.port));
    config.token = args.token.clone().map(Into::into);
    config.no_auth = args.listen.no_auth;
    let server = match SandboxServer::start(config, backend) {
        Ok(server) => server,
        Err(error) => return refused(&error),
    };
    let slots = args.slots;
    listening("sandbox", server.addr(), &format!("{slots} slots"));
    let _ = told.recv();
    let abort = server.abort_handle();
    let grace = Duration::from_secs(args.listen.grace_s);
    close(&told, || server.close(grace), || abort.abort());
    ExitCode::Ok
}

/// Runs an executor server until a signal ends it.
pub(crate) fn serve(args: &ServeArgs) -> ExitCode {
    init_log();
    let told = match signals() {
        Ok(told) => told,
        Err(problem) => return fail(&problem),
    };
    if let Err(problem) = may_listen(&args.listen, args.token.as_deref()) {
        return usage(&problem);
    }
    for name in WITHOUT_MEANING {
        if std::env::var_os(name).is_some() {
            log::warn!(
                "{name} is ignored: slots are this machine's, or sandbox servers' (--sandbox-url)"
            );
        }
    }
    let is_local = args.fleet.urls.is_empty();
    let reachable = is_local && args.token.is_none() && !args.listen.no_auth;
    if reachable && args.allow_network {
        log::warn!(
            "commands get no network: without a token they could reach this server, and with it \
             other trajectories; give a token, or --no-auth if that is no matter"
        );
    }
    let policy = Policy::default()
        .with_allow_network(args.allow_network && !reachable)
        .with_require_sandbox(args.require_sandbox);
    let mut config = ExecutorConfig::default()
        .with_policy(policy)
        .with_acquire_timeout(args.acquire_timeout_s)
        .with_batch_window(Duration::from_millis(args.batch_window_ms))
        .with_max_batch_size(args.max_batch_size);
    match tool_server(&args.tool_server) {
        Ok(server) => config.tool_server = server,
        Err(problem) => return fail(&problem),
    }
    let builder = ToolExecutor::builder().config(config);
    let what;
    let builder = if is_local {
        what = format!("{} slots", args.slots);
        match local(args.slots, None, &args.limits) {
            Ok(backend) => builder.backend(backend),
            Err(problem) => return fail(&problem),
        }
    } else {
        what = format!("{} sandbox servers", args.fleet.urls.len());
        match fleet(&args.fleet) {
            Ok(backend) => builder.backend(backend),
            Err(problem) => return fail(&problem),
        }
    };
    let executor = match builder.start() {
        Ok(executor) => Arc::new(executor),
        Err(error) => return fail(&chain(&error)),
    };
    let mut config = ServerConfig::new((args.listen.host, args.port));
    config.token = args.token.clone().map(Into::into);
    config.no_auth = args.listen.no_auth;
    let server = match ExecutorServer::start(config, executor.clone()) {
        Ok(server) => server,
        Err(error) => return refused(&error),
    };
    listening("executor", server.addr(), &what);
    let _ = told.recv();
    let grace = Duration::from_secs(args.listen.grace_s);
    let end = || {
        server.close(grace);
        executor.close_within(grace);
    };
    // Without its calls, a request ends.
    let hurry = || {
        executor.close_within(Duration::ZERO);
    };
    close(&told, end, hurry);
    ExitCode::Ok
}

/// Closes a server, and has it hurry if there is another signal meanwhile.
fn close(told: &Receiver<()>, close: impl FnOnce() + Send, hurry: impl FnOnce()) {
    let (closing, closed) = bounded::<()>(0);
    thread::scope(|scope| {
        scope.spawn(move || {
            let _closing = closing;
            close();
        });
        select! {
            recv(told) -> _ => hurry(),
            recv(closed) -> _ => {}
        }
    });
}

fn local(
    slots: usize,
    data_dir: Option<std::path::PathBuf>,
    limits: &LimitArgs,
) -> Result<LocalBackend, String> {
    let mut config = LocalConfig::new(slots);
    limit(&mut config, limits);
    config.data_dir = data_dir;
    // This process has no children but the sandbox's.
    config.adopt_orphans = true;
    LocalBackend::start(config).map_err(|error| chain(&error))
}

/// The one line on standard output.
fn listening(what: &str, addr: SocketAddr, of: &str) {
    println!("tool-executor: {what} listening on http://{addr} ({of})");
    // Nobody to tell if nobody reads it.
    let _ = std::io::stdout().flush();
}

/// Tells of each signal that asks for the end.
fn signals() -> Result<Receiver<()>, String> {
    let (tell, told) = unbounded();
    let tell = move || {
        // Refused only when nobody waits any more.
        let _ = tell.send(());
    };
    Signals::install_with(tell).map(|_| told).map_err(|error| format!("no signal handler: {error}"))
}

fn may_listen(listen: &ListenArgs, token: Option<&str>) -> Result<(), String> {
    let is_loopback = match listen.host {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if is_loopback || token.is_some() || listen.no_auth {
        return Ok(());
    }
    Err(format!(
        "other machines can reach {}: give a token (--token, or better the environment), or \
         --no-auth if everybody may use it",
        listen.host
    ))
}

fn refused(error: &ServeError) -> ExitCode {
    fail(&chain(error))
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("tool-executor: {problem}");
    ExitCode::Usage
}

fn fail(problem: &str) -> ExitCode {
    eprintln!("tool-executor: {problem}");
    ExitCode::NotStarted
}

fn init_log() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
}
