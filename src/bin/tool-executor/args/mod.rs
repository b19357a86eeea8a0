//! The command line and the environment: flags, variables, their defaults and their limits. Does
//! nothing with them.
//!
//! `groups` declares what several commands have, `values` reads values, `applies` says what cannot
//! apply beside something else.

mod applies;
mod groups;
mod image;
mod pulling;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::Resettable;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tool_executor::config::Secret;
use tool_executor::format::{Format, UnreadableCalls};

use crate::exit_code;

pub(crate) use self::groups::{
    CallArgs, FleetArgs, IsolationArgs, LimitArgs, ListenArgs, NetworkArgs, ProvidedArgs, RunArgs,
    SandboxTokenArgs, SlotArgs, ToolServerArgs,
};
pub(crate) use self::image::{ImageArgs, ImageCommand, ImportArgs, PullArgs, StoreArgs};
use self::values::named;
pub(crate) use self::values::{Limit, Several, variable};

/// Executes the tool calls of many concurrent LLM agents.
///
/// Flags can be given by the variables that are named beside them; a flag wins over its variable,
/// and an empty variable counts as none.
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
    ///
    /// The first Ctrl-C or SIGTERM starts no further calls and lets those that run end; the second
    /// one cancels them. During the start the first one ends the program, within a second.
    #[command(after_help = exit_code::HELP, after_long_help = replay_help())]
    Replay(ReplayArgs),

    /// Serve this machine's sandbox over HTTP, for executors elsewhere
    ///
    /// Prints one line when it listens. Without a token commands do not get the host's network
    /// (--network host): they could reach this server and with it other slots. SIGTERM and Ctrl-C
    /// end it: what runs may go on for the grace time, and at SIGTERM the trajectories that are
    /// here may finish before that (--drain-grace-s); a second signal ends it at once.
    #[command(after_help = exit_code::SERVER_HELP)]
    Sandbox(SandboxArgs),

    /// Serve an executor over HTTP: the reference's clients use it unchanged
    ///
    /// Its calls run in slots of this machine, or of sandbox servers. Prints one line when it
    /// listens. Without a token commands do not get the host's network, nor any on sandbox servers:
    /// they could reach this server and with it other trajectories. SIGTERM and Ctrl-C end it: what
    /// runs may go on for the grace time; a second signal ends it at once.
    #[command(after_help = exit_code::SERVER_HELP)]
    Serve(ServeArgs),

    /// List the sandbox servers that runs have Slurm run, and remove what is left of runs that are
    /// over
    ///
    /// A run's servers end with it, or two minutes later; what a host that has crashed left in
    /// Slurm's queue stays there. Whether a run is over can be told on its own host only: each
    /// server is listed with its run, and as `running`, `over` or `unknown`. It lists this user's.
    #[command(after_help = exit_code::REAP_HELP)]
    Reap(ReapArgs),

    /// Keep images of containers on this machine, unpacked, for commands to run in
    ///
    /// An image is unpacked once into the data directory, for all programs that use it. What a
    /// program uses is not removed.
    #[command(after_help = exit_code::IMAGE_HELP)]
    Image(ImageArgs),

    /// Run a program as root of a user namespace, with the user ids that /etc/subuid gives you
    ///
    /// `sandbox`, `serve`, `replay` and `image` do that by themselves. A program of your own that
    /// embeds the library is started by it, so that its slots have these ids; and `rm -r DIRECTORY`
    /// removes files that belong to them. Outside the program is you, and nothing more. Where it is
    /// root already, the program is just run.
    #[command(after_help = exit_code::UNSHARE_HELP)]
    Unshare(UnshareArgs),

    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },

    /// Print the manual page, or write one of each command
    Man {
        /// Write a page of each command to this directory instead
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// The flags of `reap`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReapArgs {
    /// Those of Slurm
    #[arg(long, required = true)]
    pub(crate) slurm: bool,

    /// Remove the servers of runs that are over; with --run those of the runs that it names
    #[arg(long)]
    pub(crate) remove: bool,

    /// The servers of this run only, as the list names it; may be given several times
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Vec<String>,

    /// Print one JSON object: `servers`, and the ids of those that were `removed`
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `unshare` is to run.
#[derive(Debug, Clone, Args)]
pub(crate) struct UnshareArgs {
    /// The program and its arguments
    #[arg(required = true, value_name = "PROGRAM", trailing_var_arg = true)]
    #[arg(allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// The flags of `sandbox`.
#[derive(Debug, Clone, Args)]
#[command(mut_arg("port", |port| port.default_value("8080").required(false)))]
#[command(mut_arg("sandbox_token", |token| token.visible_alias("token")))]
pub(crate) struct SandboxArgs {
    #[command(flatten)]
    pub(crate) listen: ListenArgs,

    /// End when for so long no executor was connected and no request came, in seconds; questions
    /// about its health are none [default: never]
    #[arg(long, value_name = "S", env = "TOOL_EXECUTOR_EXIT_WHEN_UNUSED")]
    #[arg(value_parser = named(values::unused_seconds), help_heading = "Running")]
    pub(crate) exit_when_unused: Option<Duration>,

    /// Seconds that trajectories which are here may take to finish after SIGTERM; their executors
    /// are told, and put no other here. Then what runs has the grace time. Both together must be
    /// less than what is left until the kill: Kubernetes and Slurm leave 30 s, Docker 10 s
    #[arg(long, value_name = "S", env = "TOOL_EXECUTOR_DRAIN_GRACE_S", default_value = "20")]
    #[arg(value_parser = named(values::grace_seconds), help_heading = "Running")]
    pub(crate) drain_grace_s: Duration,

    /// How long an executor that is not heard of keeps its slots, in seconds: one that was killed
    /// or stopped, or that cannot reach this server. Then they are emptied and go to others
    #[arg(long, value_name = "S", env = "TOOL_EXECUTOR_LEASE_S", default_value = "15")]
    #[arg(value_parser = named(values::lease_seconds), help_heading = "Running")]
    pub(crate) lease_s: Duration,

    #[command(flatten)]
    pub(crate) token: SandboxTokenArgs,

    #[command(flatten)]
    pub(crate) isolation: IsolationArgs,

    #[command(flatten)]
    pub(crate) slots: SlotArgs,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// The flags of `serve`.
#[derive(Debug, Clone, Args)]
#[command(mut_arg("port", |port| port.default_value("9001").required(false)))]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) listen: ListenArgs,

    /// The bearer token that clients must have; better given by the variable, since other users of
    /// this machine can read the command line
    #[arg(long, value_name = "TOKEN", env = "TOOL_EXECUTOR_TOKEN", hide_env_values = true)]
    #[arg(value_parser = named(values::token))]
    pub(crate) token: Option<Secret>,

    #[command(flatten)]
    pub(crate) isolation: IsolationArgs,

    #[command(flatten)]
    pub(crate) slots: SlotArgs,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    #[command(flatten)]
    pub(crate) fleet: FleetArgs,

    #[command(flatten)]
    pub(crate) tool_server: ToolServerArgs,

    #[command(flatten)]
    pub(crate) calls: CallArgs,

    /// How long a call waits for a free slot, in seconds
    #[arg(long, value_name = "S", default_value = "600", env = "TOOL_EXECUTOR_ACQUIRE_TIMEOUT_S")]
    #[arg(value_parser = named(values::wait_seconds))]
    pub(crate) acquire_timeout_s: Duration,

    /// Take back the slot of a trajectory that makes no call for so long, in seconds; 0 never does
    #[arg(long, value_name = "S", default_value = "1800", env = "TOOL_EXECUTOR_IDLE_LIMIT_S")]
    #[arg(value_parser = named(values::wait_seconds))]
    pub(crate) idle_limit_s: Duration,

    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// The flags of `replay`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReplayArgs {
    /// Trajectories as JSON Lines, plain or compressed with gzip or zstd; `-` reads standard input
    ///
    /// A line is {"trajectory_id", "setup"?, "calls": [{"name", "arguments", "recorded_output"?,
    /// "recorded_exit_code"?}]} or {"trajectory_id"?, "messages": [...]} with messages of OpenAI
    /// (chat, Responses) or Anthropic, or with "conversations" of ShareGPT; calls may be structured
    /// or stand in the text. Other keys are ignored. A line without an id is named line-N; one
    /// whose id another line has got runs as ID~2, ID~3, and so on. "spec": {...} says what the
    /// trajectory begins with, see --spec.
    ///
    /// {"put": {"from", "to", "unpack"?, "mode"?, "owner"?}} in the place of a call of "setup" or
    /// "calls" puts a file, all that is in a directory, or with "unpack": true what is in a tar
    /// (plain or gzip) from beneath the recording's directory into the trajectory's machine.
    pub(crate) file: PathBuf,

    /// The form of tool calls in a model's text
    ///
    /// `auto` reads every form that has marks of its own, and bare JSON or [f(x=1)] that is a whole
    /// message and names a tool; a file may mix them. The others read one form only: hermes,
    /// qwen3-coder, glm, llama-3, llama-4, mistral, deepseek-v3, deepseek-v3-1, deepseek-v3-2,
    /// kimi-k2, minimax-m1, minimax-m2, anthropic-xml, harmony, granite, gemma, fenced-bash.
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    #[arg(value_parser = named(values::format))]
    pub(crate) format: Format,

    /// What becomes of a call that cannot be read: answer, skip or error
    ///
    /// `answer` answers it as invalid in its turn, with the reason; `skip` leaves it out; `error`
    /// takes its whole line for malformed.
    #[arg(long, value_name = "WHAT", default_value = "answer")]
    #[arg(value_parser = named(values::unreadable_calls))]
    pub(crate) unreadable_calls: UnreadableCalls,

    /// Trajectories at a time; may be more than there are slots [default: as many as slots, those
    /// of all sandbox servers together; 16384 where Slurm starts servers, so that it starts as many
    /// as are needed]. So many slots are asked of sandbox servers
    #[arg(long, value_name = "N", value_parser = named(values::at_least_one))]
    pub(crate) concurrency: Option<usize>,

    /// Run each trajectory N times, each under its own id: `id`, `id#2`, `id#3`, ...
    #[arg(long, value_name = "N", default_value = "1")]
    #[arg(value_parser = named(values::at_least_one_u32))]
    pub(crate) repeat: u32,

    /// With --repeat, make the setup of a trajectory once: the others begin with a snapshot of its
    /// files. What it leaves running ends
    #[arg(long)]
    pub(crate) share_setup: bool,

    /// Run the first N trajectories of the input only
    #[arg(long, value_name = "N", value_parser = named(values::at_least_one_u64))]
    pub(crate) limit: Option<u64>,

    /// Begin each trajectory with the spec in FILE, a JSON object, beside what its line's "spec"
    /// says
    ///
    /// {"env": {...}, "workdir", "network", "allow_hosts", "limits": {...}, "background",
    /// "max_wall_s", "max_idle_s", "files": [...], "image", "user", "snapshot"}, each of which may
    /// be left out. Of a key that both have the line's is taken.
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: Option<PathBuf>,

    /// Compare outputs and exit codes with the recorded ones and report the agreement
    #[arg(long)]
    pub(crate) compare: bool,

    /// Write one JSON line per call to FILE, in the order of completion
    #[arg(long, value_name = "FILE", value_parser = values::results_file())]
    pub(crate) out: Option<PathBuf>,

    /// Write the summary to FILE, as one JSON object
    #[arg(long, value_name = "FILE", value_parser = values::results_file())]
    pub(crate) summary_json: Option<PathBuf>,

    /// Copy each trajectory's workspace to DIR/<trajectory id> when it ends
    ///
    /// Characters of the id that are not letters, digits, `.`, `_` or `-` are written as %XX.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_workspaces: Option<PathBuf>,

    /// No progress
    #[arg(long, short)]
    pub(crate) quiet: bool,

    #[command(flatten)]
    pub(crate) isolation: IsolationArgs,

    #[command(flatten)]
    pub(crate) slots: SlotArgs,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    #[command(flatten)]
    pub(crate) fleet: FleetArgs,

    #[command(flatten)]
    pub(crate) tool_server: ToolServerArgs,

    #[command(flatten)]
    pub(crate) calls: CallArgs,

    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// The long help's part about the files that `replay` writes.
fn replay_help() -> String {
    format!("{RESULTS_HELP}\n\n{}", exit_code::HELP)
}

const RESULTS_HELP: &str = "\
Results:
  --out FILE gets one JSON object a line and call: trajectory_id, task_id,
  repetition, setup, index, name, arguments, uniq_id, form, repairs, success,
  outcome, model_attributable, may_have_executed, output, error, metadata,
  latency_ms, timing_ms, and with --compare, compared. A trainer leaves out what is not
  model_attributable. The file never ends in half a line.
  --summary-json FILE gets the summary as one JSON object.
  docs/results.md describes each field.";

/// What was asked for, and what to warn of.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) cli: Cli,
    /// One line for each variable that has no effect.
    pub(crate) warnings: Vec<String>,
}

/// Reads this process's command line and environment.
///
/// # Errors
/// Something is wrong with them, or help was asked for: `clap`'s way to say both.
pub(crate) fn parse() -> Result<Parsed, clap::Error> {
    let given = std::env::vars_os().filter(|(_, value)| !value.is_empty());
    let names: Vec<OsString> = given.map(|(name, _)| name).collect();
    parse_from(command(), std::env::args_os(), &names)
}

/// The whole definition, with the variables of this process.
pub(crate) fn command() -> clap::Command {
    Cli::command().mut_subcommands(without_empty_variables)
}

/// An empty variable is how scripts and manifests say that there is none.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let is_empty = |name| std::env::var_os(name).is_some_and(|value| value.is_empty());
        match arg.get_env().is_some_and(is_empty) {
            true => arg.env(Resettable::Reset),
            false => arg,
        }
    });
    command.mut_subcommands(without_empty_variables)
}

fn parse_from(
    mut command: clap::Command,
    line: impl IntoIterator<Item = OsString>,
    variables: &[OsString],
) -> Result<Parsed, clap::Error> {
    let mut matches = command.try_get_matches_from_mut(line)?;
    let mut warnings = Vec::new();
    if let Some((name, given)) = matches.subcommand()
        && let Some(command) = command.find_subcommand_mut(name)
    {
        warnings = applies::check(command, given)?;
        warnings.extend(applies::not_for_sandbox(variables, command));
    }
    warnings.extend(applies::without_meaning(variables, &command));
    let cli =
        Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
    Ok(Parsed { cli, warnings })
}
