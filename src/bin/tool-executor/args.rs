//! The command line: flags, their defaults and their limits. Does nothing with them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::exit_code;

/// Executes the tool calls of many concurrent LLM agents.
#[derive(Debug, Parser)]
#[command(name = "tool-executor", version, about, after_help = exit_code::HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run recorded trajectories through the executor and the embedded sandbox
    ///
    /// Every trajectory gets a workspace of its own; its calls run in order, many trajectories at a
    /// time. Progress and warnings go to standard error, the summary to standard output.
    #[command(after_help = exit_code::HELP)]
    Replay(ReplayArgs),

    /// Serve this machine's sandbox over HTTP, for executors elsewhere
    ///
    /// Prints one line when it listens. Without a token commands get no network, since they could
    /// reach this server and with it other slots. SIGTERM and Ctrl-C end it: what runs may go on for
    /// the grace time; a second signal ends it at once.
    Sandbox(SandboxArgs),

    /// Serve an executor over HTTP: the reference's clients use it unchanged
    ///
    /// Its calls run in slots of this machine, or of sandbox servers. Prints one line when it listens.
    /// Without a token commands of this machine's slots get no network, since they could reach this
    /// server and with it other trajectories.
    Serve(ServeArgs),
}

/// Where a server listens, and who may use it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ListenArgs {
    /// The address to listen on; one that other machines can reach needs a token or --no-auth
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,

    /// Everybody who can reach the port may use it, sandboxed commands with a network among them
    #[arg(long)]
    pub(crate) no_auth: bool,

    /// Seconds that what runs may take to end after SIGTERM or Ctrl-C
    #[arg(long, value_name = "S", default_value = "10", value_parser = clap::value_parser!(u64).range(..=3600))]
    pub(crate) grace_s: u64,
}

/// The flags of `sandbox`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SandboxArgs {
    /// The port; 0 takes a free one, which is printed
    #[arg(long, value_name = "N", default_value = "8080")]
    pub(crate) port: u16,

    #[command(flatten)]
    pub(crate) listen: ListenArgs,

    /// The bearer token that clients must have; better given by the environment
    #[arg(long, value_name = "TOKEN", env = "TOOL_EXECUTOR_SANDBOX_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,

    /// Sandbox slots: calls that run at the same time
    #[arg(long, value_name = "N", default_value = "10", value_parser = at_least_one)]
    pub(crate) slots: usize,

    /// Where the workspaces are made [default: tool-executor-<uid> in the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// What a slot of this machine may use.
#[derive(Debug, Clone, Args)]
pub(crate) struct LimitArgs {
    /// Memory of a slot's processes together, as 512M or 4G; `none` is no limit [default: 4G]
    #[arg(long, value_name = "SIZE", value_parser = limited_size)]
    pub(crate) limit_memory: Option<Limit>,

    /// Processes and threads of a slot; `none` is no limit [default: 1024]
    #[arg(long, value_name = "N", value_parser = limited_size)]
    pub(crate) limit_processes: Option<Limit>,

    /// Processors' worth of time of a slot, as 1.5; needs cgroups [default: no limit]
    #[arg(long, value_name = "N")]
    pub(crate) limit_cpu: Option<f64>,

    /// Open files of a process; `none` is no limit [default: 4096]
    #[arg(long, value_name = "N", value_parser = limited_size)]
    pub(crate) limit_open_files: Option<Limit>,

    /// The size of one file; `none` is no limit [default: 8G]
    #[arg(long, value_name = "SIZE", value_parser = limited_size)]
    pub(crate) limit_file_size: Option<Limit>,

    /// What a slot's workspace and /tmp take up on the disk; `none` is no limit [default: 8G]
    #[arg(long, value_name = "SIZE", value_parser = limited_size)]
    pub(crate) limit_workspace: Option<Limit>,

    /// Let commands make any system call: no seccomp filter
    #[arg(long)]
    pub(crate) no_seccomp: bool,
}

/// A limit, or that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<u64>);

/// The flags of `serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// The port; 0 takes a free one, which is printed
    #[arg(long, value_name = "N", default_value = "9001")]
    pub(crate) port: u16,

    #[command(flatten)]
    pub(crate) listen: ListenArgs,

    /// The bearer token that clients must have; better given by the environment
    #[arg(long, value_name = "TOKEN", env = "TOOL_EXECUTOR_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,

    /// Sandbox slots of this machine
    #[arg(long, value_name = "N", default_value = "10", env = "TOOL_EXECUTOR_SLOTS")]
    #[arg(value_parser = at_least_one)]
    pub(crate) slots: usize,

    #[command(flatten)]
    pub(crate) fleet: FleetArgs,

    #[command(flatten)]
    pub(crate) tool_server: ToolServerArgs,

    /// How long a call waits for a free slot, in seconds
    #[arg(long, value_name = "S", default_value = "600", env = "TOOL_EXECUTOR_ACQUIRE_TIMEOUT_S")]
    #[arg(value_parser = seconds)]
    pub(crate) acquire_timeout_s: Duration,

    /// Take back the slot of a trajectory that makes no call for so long, in seconds; 0 never does
    #[arg(long, value_name = "S", default_value = "1800", env = "TOOL_EXECUTOR_IDLE_LIMIT_S")]
    #[arg(value_parser = seconds)]
    pub(crate) idle_limit_s: Duration,

    /// How long a call waits for others to share its batch, at most; 0 sends each at once
    #[arg(long, value_name = "MS", default_value = "20", env = "TOOL_EXECUTOR_BATCH_WINDOW_MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub(crate) batch_window_ms: u64,

    /// Calls in one batch, at most
    #[arg(long, value_name = "N", default_value = "200", env = "TOOL_EXECUTOR_MAX_BATCH_SIZE")]
    #[arg(value_parser = at_least_one)]
    pub(crate) max_batch_size: usize,

    /// Whether commands may use the network: 1, true, yes, y or on; anything else is no
    #[arg(long, value_name = "BOOL", default_value = "true", env = "TOOL_EXECUTOR_ALLOW_NETWORK")]
    #[arg(value_parser = boolean, action = clap::ArgAction::Set)]
    pub(crate) allow_network: bool,

    /// Refuse to run commands where they cannot be isolated (no bubblewrap)
    #[arg(long)]
    pub(crate) require_sandbox: bool,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// Sandbox servers in place of this machine's sandbox.
#[derive(Debug, Clone, Args)]
pub(crate) struct FleetArgs {
    /// Run calls on the sandbox server at this URL; give it once for each server
    #[arg(long = "sandbox-url", value_name = "URL")]
    pub(crate) urls: Vec<String>,

    /// The sandbox servers' bearer token; better given by the environment
    #[arg(long = "sandbox-token", value_name = "TOKEN", env = "TOOL_EXECUTOR_SANDBOX_TOKEN")]
    #[arg(id = "fleet_token", hide_env_values = true)]
    pub(crate) fleet_token: Option<String>,
}

/// The ToolServer.
#[derive(Debug, Clone, Args)]
pub(crate) struct ToolServerArgs {
    /// Send external tools to the ToolServer at this URL; it is asked what it offers at the start
    #[arg(long, value_name = "URL", env = "TOOL_EXECUTOR_TOOL_SERVER_URL")]
    pub(crate) tool_server_url: Option<String>,

    /// The ToolServer's bearer token; better given by the environment, where other users of this
    /// machine cannot see it
    #[arg(long, value_name = "TOKEN", env = "TOOL_EXECUTOR_TOOL_SERVER_TOKEN")]
    #[arg(hide_env_values = true)]
    pub(crate) tool_server_token: Option<String>,

    /// The certificate authorities of an https ToolServer, as a PEM file [default: Mozilla's]
    #[arg(long, value_name = "FILE")]
    pub(crate) tool_server_ca: Option<PathBuf>,
}

/// The flags of `replay`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReplayArgs {
    /// Trajectories as JSON Lines; `-` reads standard input
    ///
    /// A line is {"trajectory_id", "setup"?, "calls": [{"name", "arguments", "recorded_output"?,
    /// "recorded_exit_code"?}]} or {"trajectory_id"?, "messages": [...]}, whose assistant messages
    /// hold Hermes <tool_call> text or OpenAI tool_calls. Other keys are ignored.
    pub(crate) file: PathBuf,

    /// Sandbox slots of this machine: calls that run at the same time [default: 2 per core, at least 4]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    slots: Option<usize>,

    /// Trajectories at a time; may be more than there are slots [default: as many as slots, those of
    /// all sandbox servers together]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) concurrency: Option<usize>,

    /// Run each trajectory N times, each under its own id: `id`, `id#2`, `id#3`, …
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,

    /// Run the first N trajectories of the input only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,

    /// How long a call waits for others to share its batch, at most; 0 sends each at once
    #[arg(long, value_name = "MS", default_value = "20", value_parser = clap::value_parser!(u64).range(..=60_000))]
    batch_window_ms: u64,

    /// Calls in one batch, at most
    #[arg(long, value_name = "N", default_value = "200", value_parser = at_least_one)]
    pub(crate) max_batch_size: usize,

    /// Time limit of a call that brings no `timeout` argument, in seconds: 1 to 600
    /// [default: the sandbox's, 30]
    #[arg(long, value_name = "S", value_parser = call_timeout)]
    pub(crate) timeout_s: Option<Duration>,

    /// Commands get no network
    #[arg(long)]
    pub(crate) no_network: bool,

    #[command(flatten)]
    pub(crate) tool_server: ToolServerArgs,

    #[command(flatten)]
    pub(crate) fleet: FleetArgs,

    /// Refuse to run commands where they cannot be isolated (no bubblewrap)
    #[arg(long)]
    pub(crate) require_sandbox: bool,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    /// Copy each trajectory's workspace to DIR/<trajectory id> when it ends
    ///
    /// Characters of the id that are not letters, digits, `.`, `_` or `-` are written as %XX.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_workspaces: Option<PathBuf>,

    /// Compare outputs and exit codes with the recorded ones and report the agreement
    #[arg(long)]
    pub(crate) compare: bool,

    /// Write one JSON line per call to FILE, in the order of completion
    #[arg(long, value_name = "FILE", value_parser = results_file)]
    pub(crate) out: Option<PathBuf>,

    /// No progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl ReplayArgs {
    /// How many slots the sandbox gets.
    pub(crate) fn slots(&self) -> usize {
        self.slots.unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
            default_slots(cores)
        })
    }

    /// How long a call waits for others to share its batch.
    pub(crate) fn batch_window(&self) -> Duration {
        Duration::from_millis(self.batch_window_ms)
    }
}

fn default_slots(cores: usize) -> usize {
    cores.saturating_mul(2).max(4)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("not a whole number of at least 1".to_owned()),
    }
}

/// A whole number with K, M, G or T for powers of 1024, or `none`.
fn limited_size(text: &str) -> Result<Limit, String> {
    let wrong = || "not a size as 65536, 512M or 4G, or none".to_owned();
    let text = text.trim();
    if text.eq_ignore_ascii_case("none") {
        return Ok(Limit(None));
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).map(|size| Limit(Some(size))).ok_or_else(wrong)
}

/// A number of seconds up to a year.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<f64>() {
        Ok(seconds) if (0.0..=31_536_000.0).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err("not a number of seconds from 0 to 31536000".to_owned()),
    }
}

/// A boolean of the environment, as the reference reads it.
fn boolean(text: &str) -> Result<bool, String> {
    let text = text.trim().to_ascii_lowercase();
    Ok(["1", "true", "yes", "y", "on"].contains(&text.as_str()))
}

/// `-` means standard output elsewhere; the summary is there.
fn results_file(text: &str) -> Result<PathBuf, String> {
    if text == "-" {
        return Err(
            "standard output has the summary; name a file, or ./- if you mean it".to_owned()
        );
    }
    Ok(PathBuf::from(text))
}

/// The executor would clamp a time outside its limits; a person who asks for it is told instead.
fn call_timeout(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (1.0..=600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds from 1 to 600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn replay(flags: &[&str]) -> Result<ReplayArgs, String> {
        let line = ["tool-executor", "replay", "in.jsonl"].iter().chain(flags);
        match Cli::try_parse_from(line) {
            Ok(Cli { command: Command::Replay(args) }) => Ok(args),
            Ok(other) => panic!("not a replay: {other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let args = replay(&[]).unwrap();
        assert!(args.slots() >= 4);
        assert_eq!(args.concurrency, None);
        assert_eq!(args.repeat, 1);
        assert_eq!(args.batch_window(), Duration::from_millis(20));
        assert_eq!(args.max_batch_size, 200);
        assert_eq!(args.timeout_s, None);
        assert_eq!(default_slots(1), 4);
        assert_eq!(default_slots(16), 32);
    }

    #[test]
    fn concurrency_may_exceed_the_slots() {
        let args = replay(&["--slots", "3", "--concurrency", "500"]).unwrap();
        assert_eq!((args.slots(), args.concurrency), (3, Some(500)));
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, size) in [
            ("0", 0),
            ("65536", 65_536),
            ("512M", 512 << 20),
            ("4g", 4 << 30),
            ("1KiB", 1024),
            ("2T", 2 << 40),
        ] {
            assert_eq!(limited_size(text), Ok(Limit(Some(size))), "{text}");
        }
        assert_eq!(limited_size("none"), Ok(Limit(None)));
        for wrong in ["", "M", "1.5G", "-1", "5 apples", "99999999T", "1MM", "é"] {
            assert!(limited_size(wrong).is_err(), "{wrong}");
        }
        let args = replay(&["--limit-memory", "1G", "--limit-workspace", "none"]).unwrap();
        assert_eq!(args.limits.limit_memory, Some(Limit(Some(1 << 30))));
        assert_eq!(args.limits.limit_workspace, Some(Limit(None)));
    }

    #[test]
    fn values_outside_their_limits_are_refused_with_the_flags_name() {
        for (flag, value) in [
            ("--slots", "0"),
            ("--slots", "many"),
            ("--concurrency", "0"),
            ("--repeat", "0"),
            ("--limit", "0"),
            ("--max-batch-size", "0"),
            ("--batch-window-ms", "60001"),
            ("--timeout-s", "0.5"),
            ("--timeout-s", "601"),
            ("--timeout-s", "NaN"),
        ] {
            let error = replay(&[flag, value]).expect_err(flag);
            assert!(error.contains(flag) && error.contains(value), "{flag} {value}: {error}");
        }
    }
}
