//! From flags to the library's parts, for all commands that need them.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use tool_executor::backend::fleet::FleetBackend;
use tool_executor::backend::local::LocalBackend;
use tool_executor::backend::slurm::SlurmBackend;
use tool_executor::backend::{self, Backend};
use tool_executor::config::{
    FleetConfig, LocalConfig, NetworkMode, SlurmConfig, SlurmJobs, ToolServerConfig,
};
use tool_executor::{Interrupt, IsolationError, ToolExecutor};

use crate::args::{
    FleetArgs, IsolationArgs, Limit, LimitArgs, NetworkArgs, ProvidedArgs, Several, SlotArgs,
    ToolServerArgs, variable,
};

/// This machine's slots as the flags want them, started; none where sandbox servers have all.
///
/// # Errors
/// What kept them from starting, as one line.
pub(crate) fn local_beside(
    args: &FleetArgs,
    slots: &SlotArgs,
    limits: &LimitArgs,
    network: &NetworkArgs,
    isolation: &IsolationArgs,
    interrupt: &Interrupt,
) -> Result<Option<LocalBackend>, String> {
    let local = |slots: &SlotArgs| local(slots, limits, network, isolation, interrupt).map(Some);
    match args.local_slots {
        _ if !args.is_given() => local(slots),
        Some(count) => local(&slots.with_count(count)),
        None => Ok(None),
    }
}

/// This machine's slots as the flags want them, started.
///
/// # Errors
/// What kept them from starting, as one line.
pub(crate) fn local(
    slots: &SlotArgs,
    limits: &LimitArgs,
    network: &NetworkArgs,
    isolation: &IsolationArgs,
    interrupt: &Interrupt,
) -> Result<LocalBackend, String> {
    let mut config = local_config(slots, limits, isolation);
    config.network = network.network.unwrap_or_default();
    if config.network == NetworkMode::Proxy {
        // Variables that have no effect were told.
        config.allow_hosts.clone_from(&network.allow_host);
        config.log_egress = network.log_egress;
    }
    config.ca_pem = network.ca_bundle.as_deref().map(text_of).transpose()?;
    provide(&mut config, &slots.provided)?;
    LocalBackend::start_interruptible(config, interrupt).map_err(|error| chain(&error))
}

fn local_config(slots: &SlotArgs, limits: &LimitArgs, isolation: &IsolationArgs) -> LocalConfig {
    let mut config = LocalConfig::new(slots.count());
    config.allow_unisolated = isolation.allow_unisolated();
    config.data_dir.clone_from(&slots.data_dir);
    config.image.clone_from(&slots.image);
    config.images = slots.images.config();
    config.user_ids = slots.user_ids.unwrap_or_default();
    config.max_file_bytes = slots.max_file_size.unwrap_or(config.max_file_bytes);
    // This process has no children but the sandbox's.
    config.adopt_orphans = true;
    limit(&mut config, limits);
    config
}

/// Puts in what commands are to have of this machine.
///
/// # Errors
/// The file of variables cannot be read, or has a line that is none.
fn provide(config: &mut LocalConfig, args: &ProvidedArgs) -> Result<(), String> {
    if let Some(file) = &args.env_file {
        let text = text_of(file)?;
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim_start()));
        for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            // The line may hold a secret, and is not repeated.
            let wrong = |right| format!("{}: line {number} must be {right}", file.display());
            config.env.extend([variable(line).map_err(wrong)?]);
        }
    }
    config.env.extend(args.env.iter().flat_map(|Several(variables)| variables.clone()));
    config.path_prepend.clone_from(&args.path_prepend);
    config.devices.clone_from(&args.device);
    config.binds.clone_from(&args.bind);
    let writable = args.bind_rw.iter().cloned();
    config.binds.extend(writable.map(|mut bind| {
        bind.writable = true;
        bind
    }));
    Ok(())
}

/// Puts the limits of the flags in place of the defaults.
fn limit(config: &mut LocalConfig, args: &LimitArgs) {
    let limits = &mut config.limits;
    for (given, limit) in [
        (args.limit_memory, &mut limits.memory_bytes),
        (args.limit_processes, &mut limits.processes),
        (args.limit_open_files, &mut limits.open_files),
        (args.limit_file_size, &mut limits.file_bytes),
        (args.limit_workspace, &mut limits.workspace_bytes),
        (args.limit_files, &mut limits.files),
    ] {
        if let Some(Limit(given)) = given {
            *limit = given;
        }
    }
    if let Some(Limit(given)) = args.limit_cpu {
        limits.cpu = given;
    }
    config.seccomp = !args.no_seccomp;
}

/// The fleet that the flags name.
///
/// # Errors
/// What is wrong with them, as one line.
fn fleet(args: &FleetArgs, isolation: &IsolationArgs) -> Result<FleetBackend, String> {
    let mut config = FleetConfig::new(&args.sandbox_url);
    config.servers_file.clone_from(&args.sandbox_file);
    config.servers_name.clone_from(&args.sandbox_name);
    config.allow_unisolated = isolation.allow_unisolated();
    config.token.clone_from(&args.token.sandbox_token);
    config.slots = args.sandbox_slots;
    config.start_timeout = args.sandbox_start_timeout_s;
    config.unreachable_timeout = args.sandbox_unreachable_timeout_s;
    config.ca_pem = args.sandbox_ca.as_deref().map(text_of).transpose()?;
    FleetBackend::new(config).map_err(|error| chain(&error))
}

/// The sandbox servers that the flags name, and before them the slots of this machine, if there are
/// to be some.
///
/// # Errors
/// What is wrong with them, as one line.
pub(crate) fn servers(
    local: Option<LocalBackend>,
    args: &FleetArgs,
    isolation: &IsolationArgs,
) -> Result<Arc<dyn Backend>, String> {
    let mut all: Vec<(&str, Arc<dyn Backend>)> = Vec::new();
    all.extend(local.map(|local| ("local", Arc::new(local) as _)));
    if args.has_running() {
        all.push(("fleet", Arc::new(fleet(args, isolation)?)));
    }
    if args.is_slurm() {
        all.push(("slurm", Arc::new(slurm(args, isolation)?)));
    }
    if let [(_, one)] = &all[..] {
        return Ok(one.clone());
    }
    let mut several = backend::Several::new();
    for (name, backend) in all {
        let after = args.spill_after_s.unwrap_or_default();
        several = several.with_shared(name, after, backend).map_err(|error| error.to_string())?;
    }
    Ok(Arc::new(several))
}

/// The sandbox servers that Slurm is to start.
///
/// # Errors
/// What is wrong with the flags, as one line.
fn slurm(args: &FleetArgs, isolation: &IsolationArgs) -> Result<SlurmBackend, String> {
    let mut config = SlurmConfig::default();
    config.program = std::env::current_exe().map_err(|error| chain(&error))?;
    if let Some(text) = &args.slurm_submit {
        let (mut jobs, nodes) =
            SlurmJobs::parse(text).map_err(|error| format!("--slurm-submit: {}", chain(&error)))?;
        jobs.arguments.clone_from(&args.slurm_argument);
        config.jobs = Some(jobs);
        if let Some((least, most)) = nodes {
            (config.min_servers, config.max_servers) = (least, Some(most));
        }
    }
    config.slots_per_server = args.slurm_slots;
    config.allow_unisolated = isolation.allow_unisolated();
    config.token.clone_from(&args.token.sandbox_token);
    config.start_timeout = args.sandbox_start_timeout_s;
    config.unreachable_timeout = args.sandbox_unreachable_timeout_s;
    SlurmBackend::new(config).map_err(|error| chain(&error))
}

/// Checks that commands can be kept from the network, if they are to be.
///
/// # Errors
/// They cannot, since they are not isolated: each of them would be refused.
pub(crate) fn check_isolation(
    executor: &ToolExecutor,
    allow_network: bool,
    args: &FleetArgs,
) -> Result<(), String> {
    let isolation = executor.capabilities().isolation;
    let Some(why) = isolation.not_isolated_because() else { return Ok(()) };
    if !allow_network {
        return Err(format!(
            "commands cannot be kept from the network, since they are not isolated: {why}; isolate \
             them, or let them have the network"
        ));
    }
    // Of this machine's slots it is told when they start.
    if args.is_given() {
        log::warn!("commands run without isolation, as was allowed: {why}");
    }
    Ok(())
}

/// The ToolServer that the flags name, if they do.
///
/// # Errors
/// The text_of cannot be read.
pub(crate) fn tool_server(args: &ToolServerArgs) -> Result<Option<ToolServerConfig>, String> {
    let Some(url) = &args.tool_server_url else { return Ok(None) };
    let mut config = ToolServerConfig::new(url);
    config.token.clone_from(&args.tool_server_token);
    config.ca_pem = args.tool_server_ca.as_deref().map(text_of).transpose()?;
    Ok(Some(config))
}

/// The text of a file.
///
/// # Errors
/// It cannot be read; which, and why.
pub(crate) fn text_of(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = told(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {}", told(error));
        cause = error.source();
    }
    text
}

/// An error without its causes, with the program's flags where it speaks of settings.
fn told(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<IsolationError>() {
        Some(error) => error.line("--allow-unisolated"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes() {
        let cause = std::io::Error::other("no space");
        let error = tool_executor::BackendError::with_source("cannot make the slots", cause);
        let error = tool_executor::StartError::Backend(error);
        let text = "the sandbox backend did not start: cannot make the slots: no space";
        assert_eq!(chain(&error), text);

        let cause = IsolationError::new("there is no sandbox", "allow it");
        let error = chain(&tool_executor::BackendError::not_isolated(cause));
        assert!(error.contains("there is no sandbox; allow it; or "), "{error}");
        assert!(error.ends_with("--allow-unisolated"), "{error}");
    }
}
