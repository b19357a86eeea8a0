//! What cannot apply beside something else. A flag that cannot is refused, with the reason; a
//! variable that cannot is warned of, since it may have been set for another command.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use tool_executor::config::NetworkMode;

/// Variables of the reference that mean nothing here: there is no Nomad.
const OF_NOMAD: [&str; 6] = [
    "TOOL_EXECUTOR_NOMAD_ADDRESS",
    "TOOL_EXECUTOR_JOB_ID",
    "TOOL_EXECUTOR_MIN_CONTAINERS",
    "TOOL_EXECUTOR_MAX_CONTAINERS",
    "TOOL_EXECUTOR_PRIVILEGED",
    "TOOL_EXECUTOR_PURGE_JOB_ON_SHUTDOWN",
];

/// Flags of this machine's slots.
const OF_THIS_MACHINE: [&str; 32] = [
    "slots",
    "data_dir",
    "image",
    "image_pull",
    "image_platform",
    "registry_auth_file",
    "registry_cert_dir",
    "registry_plain_http",
    "image_pull_retries",
    "image_pull_timeout_s",
    "image_pull_parallel",
    "image_store_size",
    "image_refresh_s",
    "user_ids",
    "max_file_size",
    "limit_memory",
    "limit_processes",
    "limit_cpu",
    "limit_open_files",
    "limit_file_size",
    "limit_workspace",
    "limit_files",
    "no_seccomp",
    "allow_host",
    "ca_bundle",
    "log_egress",
    "bind",
    "bind_rw",
    "env",
    "env_file",
    "path_prepend",
    "device",
];

/// Flags that name sandbox servers.
const NAMES_SERVERS: [&str; 5] =
    ["sandbox_url", "sandbox_file", "sandbox_name", "slurm", "slurm_submit"];

/// Flags about sandbox servers that Slurm starts.
const OF_SLURM: [&str; 2] = ["slurm_slots", "slurm_argument"];

/// Flags about sandbox servers that others have started.
const OF_STARTED_SERVERS: [&str; 2] = ["sandbox_ca", "sandbox_slots"];

/// Flags about sandbox servers.
const OF_SANDBOX_SERVERS: [&str; 5] = [
    "sandbox_token",
    "sandbox_ca",
    "sandbox_slots",
    "sandbox_start_timeout_s",
    "sandbox_unreachable_timeout_s",
];

/// Flags about the ToolServer.
const OF_TOOL_SERVER: [&str; 2] = ["tool_server_token", "tool_server_ca"];

/// Says which of what was given to `command` cannot apply.
///
/// # Errors
/// It was given as a flag.
pub(super) fn check(
    command: &mut Command,
    matches: &ArgMatches,
) -> Result<Vec<String>, clap::Error> {
    let given = Given { command, matches };
    let mut idle = Vec::new();
    let named = NAMES_SERVERS.iter().find_map(|id| given.name(id));
    if let Some(name) = named {
        let slurm = given.name("slurm").or_else(|| given.name("slurm_submit"));
        let running = NAMES_SERVERS[..3].iter().find_map(|id| given.name(id));
        match given.name("local_slots") {
            Some(here) => {
                idle.extend(given.each(&["slots"], &format!("{here} says how many there are")));
            }
            None => {
                let why = format!(
                    "{name} names sandbox servers, which have slots and limits of their own"
                );
                idle.extend(given.each(&OF_THIS_MACHINE, &why));
                if given.network().is_some_and(|mode| mode != NetworkMode::None) {
                    let why =
                        format!("{name} names sandbox servers, which say what network there is");
                    idle.extend(given.each(&["network"], &why));
                }
                if slurm.is_none() || running.is_none() {
                    let why = "there is one kind of slots only, without --local-slots";
                    idle.extend(given.each(&["spill_after_s"], why));
                }
            }
        }
        match slurm {
            Some(slurm) => {
                if running.is_none() {
                    let why = format!("{slurm} has Slurm start the sandbox servers");
                    idle.extend(given.each(&OF_STARTED_SERVERS, &why));
                }
                if given.name("slurm").is_some() {
                    let why = "--slurm uses the allocation that is there";
                    idle.extend(given.each(&["slurm_submit", "slurm_argument"], why));
                }
            }
            None => idle.extend(given.each(&OF_SLURM, "Slurm starts no sandbox server")),
        }
    } else if given.knows("sandbox_url") {
        idle.extend(given.each(&OF_SANDBOX_SERVERS, "no --sandbox-url names a sandbox server"));
        let why = "all slots are this machine's: --slots says how many";
        idle.extend(given.each(&["local_slots", "spill_after_s"], why));
    }
    if given.name("tool_server_url").is_none() {
        idle.extend(given.each(&OF_TOOL_SERVER, "no --tool-server-url names a ToolServer"));
    }
    let token = if given.knows("sandbox_url") { "token" } else { "sandbox_token" };
    if let Some(token) = given.name(token) {
        idle.extend(given.each(&["no_auth"], &format!("{token} gives a token")));
    }
    // Two flags that say the opposite of each other; which of them is meant is not for us to say.
    for (one, other) in [("no_network", "allow_network"), ("require_sandbox", "allow_unisolated")] {
        if let Some(Name { text, origin: Origin::Flag }) = given.name(other)
            && given.is_true(other)
        {
            idle.extend(given.each(&[one], &format!("{text} says the opposite")));
        }
    }
    if let Some((mode, name)) = given.network().zip(given.name("network")) {
        let of_proxy = ["allow_host", "log_egress"];
        if mode != NetworkMode::Proxy {
            idle.extend(given.each(&of_proxy, &format!("{name} {mode} has no proxy")));
        }
        let says_none = ["no_network", "allow_network"]
            .into_iter()
            .find(|id| given.says_no_network(id))
            .and_then(|id| given.name_of_value(id));
        let says_some = given.name("allow_network").filter(|_| given.is_true("allow_network"));
        match (mode, says_none, says_some) {
            (NetworkMode::None, _, Some(other)) => {
                idle.extend(given.each(&["network"], &format!("{other} says the opposite")));
            }
            (NetworkMode::Proxy | NetworkMode::Host, Some(other), _) => {
                idle.extend(given.each(&["network"], &format!("{other} says the opposite")));
            }
            _ => {}
        }
    }
    let mut warnings = Vec::new();
    for Idle { name, why } in idle {
        match name.origin {
            Origin::Variable => warnings.push(format!("{name} has no effect: {why}")),
            Origin::Flag => {
                let problem = format!("{name} has no effect: {why}");
                return Err(command.error(ErrorKind::ArgumentConflict, problem));
            }
        }
    }
    Ok(warnings)
}

/// What is said of a variable that other commands have, where its silence could mislead: who
/// forbids the network has to know that `sandbox` leaves that to its clients.
pub(super) fn not_for_sandbox(variables: &[OsString], command: &Command) -> Option<String> {
    const NETWORK: &str = "TOOL_EXECUTOR_ALLOW_NETWORK";
    let applies = command.get_name() == "sandbox" && variables.iter().any(|name| name == NETWORK);
    let why = "the executors that use this server say whether their commands have a network; give \
               --network none for none at all";
    applies.then(|| format!("{NETWORK} has no effect: {why}"))
}

/// What is said of variables that no command has, though they look as if they were ours.
pub(super) fn without_meaning(variables: &[OsString], program: &Command) -> Vec<String> {
    let known: Vec<&str> = program
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .filter_map(|arg| arg.get_env()?.to_str())
        .collect();
    let mut names: Vec<&str> = variables.iter().filter_map(|name| name.to_str()).collect();
    names.sort_unstable();
    let of_nomad = names.iter().filter(|name| OF_NOMAD.contains(name)).map(|name| {
        format!(
            "{name} has no effect: slots are this machine's, or sandbox servers' (--sandbox-url)"
        )
    });
    let unknown = names.iter().filter(|name| is_unknown(name) && !known.contains(name));
    of_nomad
        .chain(unknown.map(|name| format!("{name} has no effect: there is no such variable")))
        .collect()
}

/// Whether a name is in our name space and set neither for others nor by others.
fn is_unknown(name: &str) -> bool {
    /// Read by the Python module, the build and the tests.
    const OF_OTHERS: [&str; 3] = ["LIBRARY", "BUILT", "WRITE_HEADER"];
    let Some(rest) = name.strip_prefix("TOOL_EXECUTOR_") else { return false };
    // Kubernetes sets these for services whose names start with tool-executor.
    let of_kubernetes = ["SERVICE_HOST", "SERVICE_PORT", "PORT"].iter().any(|part| {
        let place = rest.match_indices(part).map(|(place, _)| place);
        place.into_iter().any(|place| {
            let (before, after) = (&rest[..place], &rest[place + part.len()..]);
            (before.is_empty() || before.ends_with('_'))
                && (after.is_empty() || after.starts_with('_'))
        })
    });
    !of_kubernetes && !OF_OTHERS.contains(&rest) && !OF_NOMAD.contains(&name)
}

/// What a command was given.
struct Given<'a> {
    command: &'a Command,
    matches: &'a ArgMatches,
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Flag,
    Variable,
}

/// What a value was given by: `--slots`, or `TOOL_EXECUTOR_SLOTS`.
#[derive(Debug)]
struct Name {
    text: String,
    origin: Origin,
}

/// Something that was given and cannot apply.
struct Idle {
    name: Name,
    why: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Given<'_> {
    fn knows(&self, id: &str) -> bool {
        self.command.get_arguments().any(|arg| arg.get_id() == id)
    }

    /// What gave the argument `id` a value, if something did. A boolean variable that says no gives
    /// none.
    fn name(&self, id: &str) -> Option<Name> {
        let name = self.name_of_value(id)?;
        (name.origin == Origin::Flag || !self.is_false(id)).then_some(name)
    }

    /// The network that was asked for.
    fn network(&self) -> Option<NetworkMode> {
        self.matches.try_get_one("network").ok().flatten().copied()
    }

    /// Whether this argument says that there is to be no network.
    fn says_no_network(&self, id: &str) -> bool {
        if id == "no_network" { self.is_true(id) } else { self.is_false(id) }
    }

    /// What gave the argument `id` its value, also where that is no.
    fn name_of_value(&self, id: &str) -> Option<Name> {
        let arg = self.command.get_arguments().find(|arg| arg.get_id() == id)?;
        Some(match self.matches.value_source(id)? {
            ValueSource::CommandLine => {
                let text = format!("--{}", arg.get_long().unwrap_or(id));
                Name { text, origin: Origin::Flag }
            }
            ValueSource::EnvVariable => {
                let text = arg.get_env()?.to_string_lossy().into_owned();
                Name { text, origin: Origin::Variable }
            }
            _ => return None,
        })
    }

    fn is_false(&self, id: &str) -> bool {
        self.matches.try_get_one::<bool>(id).is_ok_and(|value| value == Some(&false))
    }

    fn is_true(&self, id: &str) -> bool {
        self.matches.try_get_one::<bool>(id).is_ok_and(|value| value == Some(&true))
    }

    /// Those of the arguments that were given.
    fn each(&self, ids: &[&str], why: &str) -> Vec<Idle> {
        let names = ids.iter().filter_map(|id| self.name(id));
        names.map(|name| Idle { name, why: why.to_owned() }).collect()
    }
}
