//! The flags that several commands have, each declared once: name, help, default, variable.
//!
//! The variable of a flag is `TOOL_EXECUTOR_` and the flag's name. The address to listen on is
//! `TOOL_EXECUTOR_LISTEN_HOST` and `_LISTEN_PORT`: Kubernetes sets `TOOL_EXECUTOR_PORT` in every
//! container beside a service called `tool-executor`, to something that is no port.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use tool_executor::config::{
    BackgroundProcesses, Bind, ExecutorConfig, HostPattern, NetworkMode, OutputOrder, Policy,
    Secret, UnknownArguments, UserIds,
};

use super::pulling::ImagesArgs;
use super::values::{self, Limit, Lines, Several, Variable, named};

/// The slots of this machine.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Slots of this machine")]
pub(crate) struct SlotArgs {
    /// Sandbox slots: trajectories that have a workspace at the same time [default: 2 per
    /// processor, at least 10]
    #[arg(long, value_name = "N", env = "TOOL_EXECUTOR_SLOTS")]
    #[arg(value_parser = named(values::at_least_one))]
    slots: Option<usize>,

    /// Where the workspaces are made [default: tool-executor-<uid> in the temporary directory]
    #[arg(long, value_name = "DIR", env = "TOOL_EXECUTOR_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// The image whose files sandboxes have in place of this machine's, unless a trajectory asks
    /// for another: a name as python:3.12, of one that was imported or of a registry's;
    /// dir:/DIRECTORY, oci:/DIRECTORY[:TAG] or docker-archive:/FILE[:NAME] [default: none]
    #[arg(long, value_name = "IMAGE", env = "TOOL_EXECUTOR_IMAGE")]
    pub(crate) image: Option<String>,

    /// User ids for the slots, where it runs as root or /etc/subuid gives this user some: auto
    /// (each slot has its own), shared (all are one user), or for root FIRST:COUNT, as
    /// 2000000000:655360 [default: auto]
    #[arg(long, value_name = "IDS", env = "TOOL_EXECUTOR_USER_IDS")]
    #[arg(value_parser = named(values::user_ids))]
    pub(crate) user_ids: Option<UserIds>,

    /// The largest file that read_file reads and write_file writes, as 1M [default: 100000 bytes]
    #[arg(long, value_name = "SIZE", env = "TOOL_EXECUTOR_MAX_FILE_SIZE")]
    #[arg(value_parser = named(values::tool_file_size))]
    pub(crate) max_file_size: Option<u64>,

    #[command(flatten)]
    pub(crate) provided: ProvidedArgs,

    #[command(flatten)]
    pub(crate) images: ImagesArgs,
}

impl SlotArgs {
    /// The same for so many slots.
    pub(crate) fn with_count(&self, slots: usize) -> Self {
        Self { slots: Some(slots), ..self.clone() }
    }

    /// How many slots this machine has.
    pub(crate) fn count(&self) -> usize {
        self.slots.unwrap_or_else(|| {
            let processors = std::thread::available_parallelism().map_or(1, |number| number.get());
            default_slots(processors)
        })
    }
}

/// The reference's default, and more where there are processors for more.
pub(super) fn default_slots(processors: usize) -> usize {
    processors.saturating_mul(2).max(10)
}

/// Whether commands have to be isolated, on this machine or on sandbox servers.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Isolation")]
pub(crate) struct IsolationArgs {
    /// Run commands even where they cannot be isolated: no sandbox can be made, here or on a
    /// sandbox server
    #[arg(long, env = "TOOL_EXECUTOR_ALLOW_UNISOLATED")]
    #[arg(value_parser = named(values::boolean))]
    allow_unisolated: bool,

    /// Refuse to run commands where they cannot be isolated
    #[arg(long, hide = true)]
    pub(crate) require_sandbox: bool,
}

impl IsolationArgs {
    /// Whether commands may run without isolation.
    pub(crate) fn allow_unisolated(&self) -> bool {
        self.allow_unisolated && !self.require_sandbox
    }
}

/// What network commands have, and whom they reach by it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkArgs {
    /// The network that commands have: none; proxy, by which they reach public hosts and nothing
    /// else; or host, this machine's own with all that listens on its loopback interface. With
    /// sandbox servers only, and no --local-slots, it can be none: the servers say what the others
    /// have [default: proxy]
    #[arg(long, value_name = "MODE", env = "TOOL_EXECUTOR_NETWORK")]
    #[arg(value_parser = named(values::network))]
    pub(crate) network: Option<NetworkMode>,

    /// Let commands reach these hosts only, and by an address private ones: NAME, *.NAME, * (all
    /// public ones), ADDRESS or ADDRESS/BITS, and perhaps :PORT. Give it once for each, or a list
    /// with commas [default: all public ones]
    #[arg(long, value_name = "PATTERN", env = "TOOL_EXECUTOR_ALLOW_HOST", value_delimiter = ',')]
    #[arg(value_parser = named(values::host_pattern))]
    pub(crate) allow_host: Vec<HostPattern>,

    /// Certificate authorities that tools in a sandbox trust besides this machine's, as a PEM file
    #[arg(long, value_name = "FILE", env = "TOOL_EXECUTOR_CA_BUNDLE")]
    pub(crate) ca_bundle: Option<PathBuf>,

    /// Log each request of commands through the proxy
    #[arg(long, env = "TOOL_EXECUTOR_LOG_EGRESS", value_parser = named(values::boolean))]
    pub(crate) log_egress: bool,
}

impl NetworkArgs {
    /// Whether commands may have a network.
    pub(crate) fn allows(&self) -> bool {
        self.network != Some(NetworkMode::None)
    }
}

/// What commands in slots of this machine have of it, beside what they always have.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "What commands have of this machine")]
pub(crate) struct ProvidedArgs {
    /// Show commands a directory or file of this machine, read-only, at its own path or at DST;
    /// may be given several times, or as a list with commas. All slots share it
    #[arg(long, value_name = "SRC[:DST]", env = "TOOL_EXECUTOR_BIND", value_delimiter = ',')]
    #[arg(value_parser = named(values::bind))]
    pub(crate) bind: Vec<Bind>,

    /// As --bind, and let commands write there, as far as the user that they run as may. It counts
    /// towards no limit, and is not emptied between trajectories
    #[arg(long, value_name = "SRC[:DST]", env = "TOOL_EXECUTOR_BIND_RW", value_delimiter = ',')]
    #[arg(value_parser = named(values::bind))]
    pub(crate) bind_rw: Vec<Bind>,

    /// Give commands a variable; without a value the one that this program has. May be given
    /// several times; TOOL_EXECUTOR_ENV has one a line
    #[arg(long, value_name = "NAME[=VALUE]", env = "TOOL_EXECUTOR_ENV", hide_env_values = true)]
    #[arg(value_parser = Lines(values::variable), action = ArgAction::Append)]
    pub(crate) env: Vec<Several<Variable>>,

    /// Give commands the variables of a file, one a line as NAME=VALUE or NAME; empty lines and
    /// those that begin with # are none. --env wins over it
    #[arg(long, value_name = "FILE", env = "TOOL_EXECUTOR_ENV_FILE")]
    pub(crate) env_file: Option<PathBuf>,

    /// Put a directory before those in the PATH of commands, as they see it; may be given several
    /// times, or as a list with colons
    #[arg(long, value_name = "DIR", env = "TOOL_EXECUTOR_PATH_PREPEND", value_delimiter = ':')]
    pub(crate) path_prepend: Vec<PathBuf>,

    /// Let commands use a device of this machine, as /dev/kvm, as far as the user that they run as
    /// may; may be given several times, or as a list with commas
    #[arg(long, value_name = "DEVICE", env = "TOOL_EXECUTOR_DEVICE", value_delimiter = ',')]
    pub(crate) device: Vec<PathBuf>,
}

/// What a slot of this machine may use.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits of each slot of this machine")]
pub(crate) struct LimitArgs {
    /// Memory of a slot's processes together, as 512M or 4G; `none` is no limit [default: 4G]
    #[arg(long, value_name = "SIZE", env = "TOOL_EXECUTOR_LIMIT_MEMORY")]
    #[arg(value_parser = named(values::memory))]
    pub(crate) limit_memory: Option<Limit<u64>>,

    /// Processes and threads of a slot; `none` is no limit [default: 1024]
    #[arg(long, value_name = "N", env = "TOOL_EXECUTOR_LIMIT_PROCESSES")]
    #[arg(value_parser = named(values::processes))]
    pub(crate) limit_processes: Option<Limit<u64>>,

    /// Processors' worth of time of a slot, as 1.5; needs cgroups [default: none]
    #[arg(long, value_name = "N", env = "TOOL_EXECUTOR_LIMIT_CPU")]
    #[arg(value_parser = named(values::processors))]
    pub(crate) limit_cpu: Option<Limit<f64>>,

    /// Open files of a process; `none` is no limit [default: 4096]
    #[arg(long, value_name = "N", env = "TOOL_EXECUTOR_LIMIT_OPEN_FILES")]
    #[arg(value_parser = named(values::open_files))]
    pub(crate) limit_open_files: Option<Limit<u64>>,

    /// The size of one file; `none` is no limit [default: 8G]
    #[arg(long, value_name = "SIZE", env = "TOOL_EXECUTOR_LIMIT_FILE_SIZE")]
    #[arg(value_parser = named(values::file_size))]
    pub(crate) limit_file_size: Option<Limit<u64>>,

    /// What a slot's workspace and /tmp take up on the disk; `none` is no limit [default: 8G]
    #[arg(long, value_name = "SIZE", env = "TOOL_EXECUTOR_LIMIT_WORKSPACE")]
    #[arg(value_parser = named(values::workspace_size))]
    pub(crate) limit_workspace: Option<Limit<u64>>,

    /// Files, directories and links of a slot; `none` is no limit [default: 1048576]
    #[arg(long, value_name = "N", env = "TOOL_EXECUTOR_LIMIT_FILES")]
    #[arg(value_parser = named(values::files))]
    pub(crate) limit_files: Option<Limit<u64>>,

    /// Let commands make any system call: no seccomp filter
    #[arg(long, env = "TOOL_EXECUTOR_NO_SECCOMP", value_parser = named(values::boolean))]
    pub(crate) no_seccomp: bool,
}

/// The secret that sandbox servers and their clients share.
#[derive(Debug, Clone, Args)]
pub(crate) struct SandboxTokenArgs {
    /// The bearer token of sandbox servers; better given by the variable, since other users of this
    /// machine can read the command line
    #[arg(long, value_name = "TOKEN", env = "TOOL_EXECUTOR_SANDBOX_TOKEN", hide_env_values = true)]
    #[arg(value_parser = named(values::token))]
    pub(crate) sandbox_token: Option<Secret>,
}

/// Sandbox servers in place of this machine's slots, or beside them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sandbox servers in place of this machine, or beside it")]
pub(crate) struct FleetArgs {
    /// Use so many slots of this machine, too, and prefer them: sandbox servers get the
    /// trajectories for which they have no free slot, or which they cannot give what they begin
    /// with; running servers before Slurm's. Flags about this machine's slots apply then
    #[arg(long, value_name = "N", env = "TOOL_EXECUTOR_LOCAL_SLOTS")]
    #[arg(value_parser = named(values::at_least_one))]
    pub(crate) local_slots: Option<usize>,

    /// How long a trajectory waits for a preferred slot before it gets one of the others, in
    /// seconds: where --local-slots is given, or Slurm's servers beside running ones [default: 0]
    #[arg(long, value_name = "S", env = "TOOL_EXECUTOR_SPILL_AFTER_S")]
    #[arg(value_parser = named(values::wait_seconds))]
    pub(crate) spill_after_s: Option<Duration>,

    /// Run calls on the sandbox server at this URL; give it once for each server, or a list with
    /// commas
    #[arg(long, value_name = "URL", env = "TOOL_EXECUTOR_SANDBOX_URL", value_delimiter = ',')]
    #[arg(value_parser = named(values::url))]
    pub(crate) sandbox_url: Vec<String>,

    /// Run calls on the sandbox servers whose URLs are the lines of this file, which is read again
    /// when it changes: new servers are used as soon as they answer; where one is gone from it the
    /// trajectories that are there finish
    #[arg(long, value_name = "FILE", env = "TOOL_EXECUTOR_SANDBOX_FILE")]
    pub(crate) sandbox_file: Option<PathBuf>,

    /// Run calls on the sandbox servers at all addresses of this name, which is looked up again
    /// every 5 s, with the same effect; by http
    #[arg(long, value_name = "NAME:PORT", env = "TOOL_EXECUTOR_SANDBOX_NAME")]
    pub(crate) sandbox_name: Option<String>,

    /// Run calls on the nodes of the Slurm allocation that this is in: a sandbox server on each,
    /// which Slurm starts and ends
    #[arg(long, env = "TOOL_EXECUTOR_SLURM", value_parser = named(values::boolean))]
    pub(crate) slurm: bool,

    /// Run calls on sandbox servers in Slurm jobs of their own, as many as trajectories need:
    /// `partition=…,account=…,time=…,nodes=MIN-MAX`, each of them optional
    #[arg(long, value_name = "JOBS", env = "TOOL_EXECUTOR_SLURM_SUBMIT")]
    pub(crate) slurm_submit: Option<String>,

    /// How many slots each of Slurm's sandbox servers has [default: two for each processor, 10 at
    /// least]
    #[arg(long, value_name = "N", env = "TOOL_EXECUTOR_SLURM_SLOTS")]
    #[arg(value_parser = named(values::at_least_one))]
    pub(crate) slurm_slots: Option<usize>,

    /// One more argument of the `srun` of each job; give it once for each
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub(crate) slurm_argument: Vec<String>,

    #[command(flatten)]
    pub(crate) token: SandboxTokenArgs,

    /// The certificate authorities of https sandbox servers, as a PEM file [default: Mozilla's]
    #[arg(long, value_name = "FILE", env = "TOOL_EXECUTOR_SANDBOX_CA")]
    pub(crate) sandbox_ca: Option<PathBuf>,

    /// Ask the sandbox servers for so many slots, as many of each; other executors may use them,
    /// too, and get their share [default: all there are; with replay, as many as --concurrency]
    #[arg(long, value_name = "N", env = "TOOL_EXECUTOR_SANDBOX_SLOTS")]
    #[arg(value_parser = named(values::at_least_one))]
    pub(crate) sandbox_slots: Option<usize>,

    /// How long the start waits for sandbox servers that do not answer yet, or whose slots are all
    /// with other executors, in seconds
    #[arg(long, value_name = "S", env = "TOOL_EXECUTOR_SANDBOX_START_TIMEOUT_S")]
    #[arg(default_value = "60", value_parser = named(values::wait_seconds))]
    pub(crate) sandbox_start_timeout_s: Duration,

    /// How long a sandbox server may be out of reach before its calls end as sandbox_lost, in
    /// seconds
    #[arg(long, value_name = "S", env = "TOOL_EXECUTOR_SANDBOX_UNREACHABLE_TIMEOUT_S")]
    #[arg(default_value = "30", value_parser = named(values::wait_seconds))]
    pub(crate) sandbox_unreachable_timeout_s: Duration,
}

impl FleetArgs {
    /// Whether there are sandbox servers.
    pub(crate) fn is_given(&self) -> bool {
        self.has_running() || self.is_slurm()
    }

    /// Whether there are sandbox servers that others have started.
    pub(crate) fn has_running(&self) -> bool {
        !self.sandbox_url.is_empty() || self.sandbox_file.is_some() || self.sandbox_name.is_some()
    }

    /// Whether Slurm starts them.
    pub(crate) fn is_slurm(&self) -> bool {
        self.slurm || self.slurm_submit.is_some()
    }

    /// The servers, in a few words.
    pub(crate) fn what(&self) -> String {
        let running = match (&self.sandbox_file, &self.sandbox_name) {
            (Some(file), _) => format!("the sandbox servers of {}", file.display()),
            (None, Some(name)) => format!("the sandbox servers at {name}"),
            (None, None) => format!("{} sandbox servers", self.sandbox_url.len()),
        };
        let all = [
            self.local_slots.map(|slots| format!("{slots} slots")),
            self.has_running().then_some(running),
            self.is_slurm().then(|| "sandbox servers of Slurm's".to_owned()),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }
}

/// The ToolServer.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "ToolServer")]
pub(crate) struct ToolServerArgs {
    /// Send external tools to the ToolServer at this URL; it is asked at the start what it offers
    #[arg(long, value_name = "URL", env = "TOOL_EXECUTOR_TOOL_SERVER_URL")]
    #[arg(value_parser = named(values::url))]
    pub(crate) tool_server_url: Option<String>,

    /// The ToolServer's bearer token; better given by the variable, since other users of this
    /// machine can read the command line
    #[arg(long, value_name = "TOKEN", env = "TOOL_EXECUTOR_TOOL_SERVER_TOKEN")]
    #[arg(hide_env_values = true, value_parser = named(values::token))]
    pub(crate) tool_server_token: Option<Secret>,

    /// The certificate authorities of an https ToolServer, as a PEM file [default: Mozilla's]
    #[arg(long, value_name = "FILE", env = "TOOL_EXECUTOR_TOOL_SERVER_CA")]
    pub(crate) tool_server_ca: Option<PathBuf>,
}

/// How an executor runs calls.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Calls")]
pub(crate) struct CallArgs {
    /// The longest time limit that a call may name, in seconds, up to a day; one that names a
    /// longer one gets this
    #[arg(long, value_name = "S", default_value = "600", env = "TOOL_EXECUTOR_MAX_TIMEOUT_S")]
    #[arg(value_parser = named(values::call_seconds))]
    max_timeout_s: Duration,

    /// Time limit of a call that brings none, in seconds: 1 to --max-timeout-s [default: the
    /// sandbox's, 30]
    #[arg(long, value_name = "S", env = "TOOL_EXECUTOR_TIMEOUT_S")]
    #[arg(value_parser = named(values::call_seconds))]
    timeout_s: Option<Duration>,

    /// How long a call waits for others to share its batch, at most; 0 sends each at once
    #[arg(long, value_name = "MS", default_value = "20", env = "TOOL_EXECUTOR_BATCH_WINDOW_MS")]
    #[arg(value_parser = named(values::milliseconds))]
    batch_window_ms: Duration,

    /// Calls in one batch, at most
    #[arg(long, value_name = "N", default_value = "200", env = "TOOL_EXECUTOR_MAX_BATCH_SIZE")]
    #[arg(value_parser = named(values::at_least_one))]
    max_batch_size: usize,

    /// What becomes of a call that has an argument which its built-in tool does not have: refuse
    /// answers it as invalid, ignore runs it without
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    #[arg(env = "TOOL_EXECUTOR_UNKNOWN_ARGUMENTS", value_parser = named(values::unknown_arguments))]
    unknown_arguments: UnknownArguments,

    /// How a command's standard error is shown, unless its call says: separate puts it after the
    /// standard output, interleaved has both in the order of writing
    #[arg(long, value_name = "ORDER", default_value = "separate")]
    #[arg(env = "TOOL_EXECUTOR_OUTPUT_ORDER", value_parser = named(values::output_order))]
    output_order: OutputOrder,

    /// What becomes of processes that a command leaves running: end ends them with it, keep lets
    /// them run until the trajectory is released
    #[arg(long, value_name = "WHAT", default_value = "end")]
    #[arg(env = "TOOL_EXECUTOR_BACKGROUND", value_parser = named(values::background))]
    background: BackgroundProcesses,

    /// Whether commands may use the network; false is the same as --network none
    #[arg(long, value_name = "BOOL", default_value = "true", env = "TOOL_EXECUTOR_ALLOW_NETWORK")]
    #[arg(value_parser = named(values::boolean), action = ArgAction::Set)]
    allow_network: bool,

    /// Commands get no network: the same as --network none
    #[arg(long)]
    no_network: bool,
}

impl CallArgs {
    /// The executor's settings that these flags are about, the others at their defaults.
    pub(crate) fn config(&self, network: &NetworkArgs) -> ExecutorConfig {
        let policy = Policy::default()
            .with_allow_network(self.allow_network(network))
            .with_unknown_arguments(self.unknown_arguments)
            .with_output_order(self.output_order)
            .with_background(self.background);
        let mut config = ExecutorConfig::default()
            .with_policy(policy)
            .with_batch_window(self.batch_window_ms)
            .with_max_batch_size(self.max_batch_size);
        config.max_timeout = self.max_timeout_s;
        config.default_timeout = self.timeout_s;
        config
    }

    /// Whether commands may use the network.
    pub(crate) fn allow_network(&self, network: &NetworkArgs) -> bool {
        self.allow_network && !self.no_network && network.allows()
    }
}

/// Where a server listens, and who may use it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Listening")]
pub(crate) struct ListenArgs {
    /// The address to listen on; one that other machines can reach needs a token or --no-auth
    #[arg(long, value_name = "ADDRESS", env = "TOOL_EXECUTOR_LISTEN_HOST")]
    #[arg(default_value = "127.0.0.1", value_parser = named(values::address))]
    pub(crate) host: IpAddr,

    /// The port to listen on; 0 takes a free one, which is printed
    #[arg(long, value_name = "N", env = "TOOL_EXECUTOR_LISTEN_PORT")]
    #[arg(value_parser = named(values::port))]
    pub(crate) port: u16,

    /// Do without a token: every program that can reach the port may use it, and so may commands
    /// that have a network
    #[arg(long, env = "TOOL_EXECUTOR_NO_AUTH", value_parser = named(values::boolean))]
    pub(crate) no_auth: bool,

    /// Speak https with this certificate, a PEM file; those that lead from it to its authority come
    /// after it. Needs --tls-key
    #[arg(long, value_name = "FILE", env = "TOOL_EXECUTOR_TLS_CERT", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The certificate's private key, a PEM file without a password
    #[arg(long, value_name = "FILE", env = "TOOL_EXECUTOR_TLS_KEY", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// How others reach this server, as HOST or HOST:PORT: what it prints, and without a token a
    /// name that it answers under [default: the address to listen on, or the host's name if that is
    /// every address]
    #[arg(long, value_name = "ADDR", env = "TOOL_EXECUTOR_ADVERTISE")]
    #[arg(value_parser = named(values::advertised))]
    pub(crate) advertise: Option<String>,
}

/// How the program runs and ends.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct RunArgs {
    /// Seconds that what runs may take to end after the first SIGINT (Ctrl-C), SIGTERM or SIGHUP; a
    /// second one ends it at once
    #[arg(long, value_name = "S", default_value = "5", env = "TOOL_EXECUTOR_GRACE_S")]
    #[arg(value_parser = named(values::grace_seconds))]
    pub(crate) grace_s: Duration,

    /// What is logged to standard error: off, error, warn, info, debug or trace, or a list as
    /// warn,tool_executor::backend=debug [default: that of RUST_LOG, else warn]
    #[arg(long, value_name = "LEVEL", env = "TOOL_EXECUTOR_LOG")]
    #[arg(value_parser = named(values::log_filter))]
    pub(crate) log: Option<String>,
}
