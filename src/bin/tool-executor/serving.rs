//! `tool-executor sandbox` and `tool-executor serve`: start, one line, wait for a signal, end.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};
use tool_executor::backend::Backend as _;
use tool_executor::config::{HostPattern, NetworkMode, Secret, ServerConfig};
use tool_executor::server::{ExecutorServer, SandboxServer};
use tool_executor::stats::IsolationLevel;
use tool_executor::{Interrupt, ToolExecutor};

use crate::args::{ListenArgs, NetworkArgs, RunArgs, SandboxArgs, ServeArgs};
use crate::console::{fail, init_log, print};
use crate::exit_code::ExitCode;
use crate::setup::{chain, check_isolation, local, local_beside, servers, text_of, tool_server};
use crate::signals::Signals;
use crate::starting::start;

/// How often it is looked whether a server that is about to end is still used.
const LOOK: Duration = Duration::from_millis(50);

/// Runs a sandbox server until a signal ends it.
pub(crate) fn sandbox(args: SandboxArgs, warnings: &[String]) -> ExitCode {
    let token = args.token.sandbox_token.clone();
    let signals = match begin(&args.run, &args.listen, &args.network, token.is_some(), warnings) {
        Ok(signals) => signals,
        Err(code) => return code,
    };
    let grace = args.run.grace_s;
    let (unused_limit, drain_grace) = (args.exit_when_unused, args.drain_grace_s);
    let slots = args.slots.count();
    let started = start(signals.arrivals(), move |interrupt| {
        let mut config = server_config(&args.listen, token)?;
        config.lease = args.lease_s;
        let backend = local(&args.slots, &args.limits, &args.network, &args.isolation, interrupt)?;
        let level = backend.capabilities().isolation_level;
        let server = SandboxServer::start(config, backend).map_err(|error| chain(&error))?;
        Ok((server, level))
    });
    let (server, level) = match started {
        Ok(started) => started,
        Err(code) => return code,
    };
    listening("sandbox", server.url(), &format!("{slots} slots{}", isolation(level)));
    wait_for_end(signals.arrivals(), &server, unused_limit);
    let grace = match signals.is_terminated() && !drain(signals.arrivals(), &server, drain_grace) {
        // The second signal.
        true => Duration::ZERO,
        false => grace,
    };
    let abort = server.abort_handle();
    close(signals.arrivals(), || server.close(grace), || abort.abort());
    ExitCode::Ok
}

/// Comes back at a signal, or when the server has been unused for as long as it may be.
fn wait_for_end(signals: &Receiver<()>, server: &SandboxServer, limit: Option<Duration>) {
    let Some(limit) = limit else {
        let _ = signals.recv();
        return;
    };
    loop {
        match next_look(server.unused_since(), limit, Instant::now()) {
            Look::At(next) => match signals.recv_deadline(next) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            },
            Look::Over => {
                // A warning, to be seen without asking for more: it is why the server is gone.
                log::warn!("unused for {} s: the server ends", limit.as_secs_f64());
                return;
            }
        }
    }
}

/// Has the trajectories that are there finish, for so long at most, and no other come. Whether that
/// was waited for: `false` if there was another signal.
fn drain(signals: &Receiver<()>, server: &SandboxServer, grace: Duration) -> bool {
    server.drain();
    if server.is_drained() || grace.is_zero() {
        return true;
    }
    log::warn!(
        "asked to end: the trajectories that are here may finish for {} s",
        grace.as_secs_f64()
    );
    let end = Instant::now() + grace;
    while !server.is_drained() {
        let now = Instant::now();
        if now >= end {
            log::warn!("some trajectories have not finished in time; the server ends");
            return true;
        }
        match signals.recv_deadline(end.min(now + LOOK)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

/// When to look next whether a server is unused.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    At(Instant),
    /// It has been for long enough.
    Over,
}

/// Whether a server that has been unused since then – `None`: it is used – is so for long enough,
/// or when it can be at the earliest.
fn next_look(unused_since: Option<Instant>, limit: Duration, now: Instant) -> Look {
    let end = unused_since.unwrap_or(now) + limit;
    if end <= now { Look::Over } else { Look::At(end) }
}

/// Runs an executor server until a signal ends it.
pub(crate) fn serve(args: ServeArgs, warnings: &[String]) -> ExitCode {
    let signals =
        match begin(&args.run, &args.listen, &args.network, args.token.is_some(), warnings) {
            Ok(signals) => signals,
            Err(code) => return code,
        };
    let grace = args.run.grace_s;
    let what = match args.fleet.is_given() {
        false => format!("{} slots", args.slots.count()),
        true => args.fleet.what(),
    };
    let (server, executor) =
        match start(signals.arrivals(), move |interrupt| start_serving(&args, interrupt)) {
            Ok(started) => started,
            Err(code) => return code,
        };
    let level = executor.capabilities().isolation_level;
    listening("executor", server.url(), &format!("{what}{}", isolation(level)));
    let _ = signals.arrivals().recv();
    let end = || {
        server.close(grace);
        executor.close_within(grace);
    };
    // Without its calls, a request ends.
    let hurry = || {
        executor.close_within(Duration::ZERO);
    };
    close(signals.arrivals(), end, hurry);
    ExitCode::Ok
}

/// Starts the executor and what serves it.
fn start_serving(
    args: &ServeArgs,
    interrupt: &Interrupt,
) -> Result<(ExecutorServer, Arc<ToolExecutor>), String> {
    let server = server_config(&args.listen, args.token.clone())?;
    let ServeArgs { slots, limits, network, isolation, fleet, .. } = args;
    let local = local_beside(fleet, slots, limits, network, isolation, interrupt)?;
    // Also in front of sandbox servers: they may be on this machine, and have its network.
    let alone = local.as_ref().filter(|_| !fleet.is_given());
    let network = alone.and_then(|backend| backend.capabilities().network);
    let is_reached = !matches!(network, Some(NetworkMode::None | NetworkMode::Proxy));
    let is_open = args.token.is_none() && !args.listen.no_auth && is_reached;
    let wants_network = args.calls.allow_network(&args.network);
    if is_open && wants_network {
        log::warn!(
            "commands get no network: without a token they could reach this server, and with it \
             other trajectories; give a token, or --no-auth if that is no matter"
        );
    }
    let mut config = args
        .calls
        .config(&args.network)
        .with_acquire_timeout(args.acquire_timeout_s)
        .with_idle_limit(args.idle_limit_s);
    let allow_network = wants_network && !is_open;
    config.policy.allow_network = allow_network;
    config.policy.require_sandbox = args.isolation.require_sandbox;
    config.tool_server = tool_server(&args.tool_server)?;
    let builder = ToolExecutor::builder().config(config).interrupt(interrupt.clone());
    let builder = match local {
        Some(backend) if !fleet.is_given() => builder.backend(backend),
        local => builder.shared_backend(servers(local, fleet, isolation)?),
    };
    let executor = Arc::new(builder.start().map_err(|error| chain(&error))?);
    check_isolation(&executor, allow_network, &args.fleet)?;
    let server = ExecutorServer::start(server, executor.clone());
    Ok((server.map_err(|error| chain(&error))?, executor))
}

/// How a server serves.
///
/// # Errors
/// The certificate or its key cannot be read.
fn server_config(listen: &ListenArgs, token: Option<Secret>) -> Result<ServerConfig, String> {
    let mut config = ServerConfig::new((listen.host, listen.port));
    config.token = token;
    config.no_auth = listen.no_auth;
    config.tls_cert_pem = listen.tls_cert.as_deref().map(text_of).transpose()?;
    config.tls_key_pem = listen.tls_key.as_deref().map(text_of).transpose()?.map(Secret::from);
    config.advertise.clone_from(&listen.advertise);
    config.check().map_err(|error| error.to_string())?;
    Ok(config)
}

/// What both servers do first: the log, the warnings, the signals, and whether they may listen
/// there.
///
/// # Errors
/// They may not start; why, was said.
fn begin(
    run: &RunArgs,
    listen: &ListenArgs,
    network: &NetworkArgs,
    has_token: bool,
    warnings: &[String],
) -> Result<Signals, ExitCode> {
    init_log(run.log.as_deref(), network.log_egress, io::stderr());
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    may_listen(listen, has_token)
        .and_then(|()| may_allow(listen, has_token, &network.allow_host))
        .map_err(|problem| fail(ExitCode::Usage, &problem))?;
    Signals::install()
        .map_err(|error| fail(ExitCode::NotStarted, &format!("no signal handler: {error}")))
}

/// Closes a server, and has it hurry if there is another signal meanwhile.
fn close(signals: &Receiver<()>, close: impl FnOnce() + Send, hurry: impl FnOnce()) {
    let (closing, closed) = bounded::<()>(0);
    thread::scope(|scope| {
        let body = move || {
            let _closing = closing;
            close();
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "the library's owned threads are not public; this one is named and joined"
        )]
        let thread = thread::Builder::new().name("tool-close".to_owned());
        if let Err(error) = thread.spawn_scoped(scope, body) {
            // What was to be closed is closed by its drop, which came with the refusal.
            log::error!("closed without grace: could not start a thread: {error}");
            return;
        }
        select! {
            recv(signals) -> _ => hurry(),
            recv(closed) -> _ => {}
        }
    });
}

/// How far commands are isolated, behind something else, where it is known.
fn isolation(level: Option<IsolationLevel>) -> String {
    level.map(|level| format!(", isolation {level}")).unwrap_or_default()
}

/// The one line on standard output. Without it the server is of use all the same.
fn listening(what: &str, url: &str, of: &str) {
    let line = format!("tool-executor: {what} listening on {url} ({of})");
    if let Err(error) = print(&format!("{line}\n")) {
        log::warn!("{line}; standard output: {error}");
    }
}

fn may_listen(listen: &ListenArgs, has_token: bool) -> Result<(), String> {
    let is_loopback = match listen.host {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if is_loopback || has_token || listen.no_auth {
        return Ok(());
    }
    Err(format!(
        "other machines can reach {}: give a token (--token, or better the environment), or \
         --no-auth if they all may use it",
        listen.host
    ))
}

/// Whether commands may reach these hosts through the proxy: not a server that lets everyone in.
fn may_allow(listen: &ListenArgs, has_token: bool, hosts: &[HostPattern]) -> Result<(), String> {
    if has_token || listen.no_auth {
        return Ok(());
    }
    match hosts.iter().find(|pattern| pattern.names(listen.host, listen.port)) {
        Some(pattern) => Err(format!(
            "--allow-host {pattern} lets commands reach this server, which has no token, and with \
             it other trajectories: give a token, or --no-auth if that is no matter"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_ends_when_it_was_unused_for_so_long_and_is_looked_at_no_sooner_than_that() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let limit = Duration::from_secs(30);
        for (unused_since, now, expected) in [
            (Some(0), 0, Look::At(at(30))),
            (Some(0), 29, Look::At(at(30))),
            (Some(0), 30, Look::Over),
            (Some(0), 31, Look::Over),
            // It is used: at the earliest so long from now.
            (None, 30, Look::At(at(60))),
            // It was used meanwhile.
            (Some(20), 30, Look::At(at(50))),
        ] {
            assert_eq!(next_look(unused_since.map(at), limit, at(now)), expected);
        }
    }
}
