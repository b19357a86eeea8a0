//! From flags to the library's parts, for all commands that need them.

use std::error::Error;
use std::fmt::Write as _;

use tool_executor::backend::fleet::FleetBackend;
use tool_executor::config::{FleetConfig, LocalConfig, ToolServerConfig};

use crate::args::{FleetArgs, Limit, LimitArgs, ToolServerArgs};

/// The fleet that the flags name.
///
/// # Errors
/// What is wrong with them, as one line.
pub(crate) fn fleet(args: &FleetArgs) -> Result<FleetBackend, String> {
    let mut config = FleetConfig::new(&args.urls);
    config.token = args.fleet_token.clone().map(Into::into);
    FleetBackend::new(config).map_err(|error| chain(&error))
}

/// Puts the limits of the flags in place of the defaults.
pub(crate) fn limit(config: &mut LocalConfig, args: &LimitArgs) {
    let limits = &mut config.limits;
    for (given, limit) in [
        (args.limit_memory, &mut limits.memory_bytes),
        (args.limit_processes, &mut limits.processes),
        (args.limit_open_files, &mut limits.open_files),
        (args.limit_file_size, &mut limits.file_bytes),
        (args.limit_workspace, &mut limits.workspace_bytes),
    ] {
        if let Some(Limit(given)) = given {
            *limit = given;
        }
    }
    limits.cpu = args.limit_cpu.or(limits.cpu);
    config.seccomp = !args.no_seccomp;
}

/// The ToolServer that the flags name, if they do.
///
/// # Errors
/// The certificates cannot be read.
pub(crate) fn tool_server(args: &ToolServerArgs) -> Result<Option<ToolServerConfig>, String> {
    let Some(url) = &args.tool_server_url else { return Ok(None) };
    let mut config = ToolServerConfig::new(url);
    config.token = args.tool_server_token.clone().map(Into::into);
    if let Some(path) = &args.tool_server_ca {
        let pem = std::fs::read_to_string(path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        config.ca_pem = Some(pem);
    }
    Ok(Some(config))
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
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
    }
}
