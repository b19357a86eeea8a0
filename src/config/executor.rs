//! How an executor is set up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    BackendConfig, FleetConfig, LocalConfig, SlurmConfig, ToolServerConfig, backends, named_part,
};
use crate::error::ConfigError;
use crate::seconds::{self, LONGEST};
use crate::tool::{LONGEST_TIMEOUT, MAX_TIMEOUT, MIN_TIMEOUT, Policy, ToolRegistry, ToolSchema};

/// How a [`ToolExecutor`](crate::ToolExecutor) is set up. Every setting has a default.
///
/// Its sandbox is `local`, `fleet` or `slurm`, several of them in order of preference, `backends`,
/// or one that a [`Builder`](crate::Builder) is given; with none of them there are in-process tools
/// and the ToolServer's only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ExecutorConfig {
    /// The embedded sandbox: slots of this machine, in this process. Defaults to none.
    #[serde(deserialize_with = "local", skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalConfig>,
    /// Sandbox servers. Defaults to none; not both this and another.
    #[serde(deserialize_with = "fleet", skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetConfig>,
    /// Sandbox servers that Slurm starts. Defaults to none; not both this and another. Linux only.
    #[serde(deserialize_with = "slurm", skip_serializing_if = "Option::is_none")]
    pub slurm: Option<SlurmConfig>,
    /// Several of them, the preferred one first: each other one gets the trajectories for which
    /// those before it have no free slot, or what they cannot give. Where a trajectory is it stays,
    /// with its snapshots and forks. At most 16. Defaults to none; not both this and one of the
    /// three.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<BackendConfig>,
    /// The ToolServer that runs external tools. What it offers is asked for at the start and added
    /// to the registry, except for names that are taken. Defaults to none: external tools are then
    /// answered [`ExternalFailed`](crate::Outcome::ExternalFailed).
    #[serde(deserialize_with = "tool_server", skip_serializing_if = "Option::is_none")]
    pub tool_server: Option<ToolServerConfig>,
    /// Which tools there are, beside those in this process. Not heeded where a
    /// [`Builder`](crate::Builder) is given a registry.
    #[serde(deserialize_with = "tools")]
    pub tools: ToolsConfig,
    /// What sandboxed commands may do; a model cannot change it.
    #[serde(deserialize_with = "policy")]
    pub policy: Policy,
    /// When a lane sends its batch. Defaults to [`BatchPolicy::Adaptive`].
    pub batch_policy: BatchPolicy,
    /// How long a call waits at most for company in its batch. Defaults to 20 ms.
    #[serde(rename = "batch_window_s", with = "seconds")]
    pub batch_window: Duration,
    /// How many calls a batch holds at most. Defaults to 200; at least 1.
    pub max_batch_size: usize,
    /// How many accepted calls may be waiting to run, wherever they wait. Defaults to 65,536; at
    /// least 1. When so many wait, `try_submit` gives the call back and `submit` blocks.
    pub queue_capacity: usize,
    /// How long a call may wait behind others, and a blocking submit for room in the queue.
    /// Defaults to 3,600 s.
    #[serde(rename = "queue_timeout_s", with = "seconds")]
    pub queue_timeout: Duration,
    /// How long a trajectory's call may wait for a slot. One that gets none ends as
    /// [`NeverRan`](crate::Outcome::NeverRan), and with it, at once, the calls of its trajectory
    /// that wait behind it and need a slot, too; releases and other calls take their turn. Defaults
    /// to 600 s.
    #[serde(rename = "acquire_timeout_s", with = "seconds")]
    pub acquire_timeout: Duration,
    /// The longest time limit that a call may name, from 1 s to a day; one that names a longer one
    /// gets this. Defaults to 600 s.
    #[serde(rename = "max_timeout_s", with = "seconds")]
    pub max_timeout: Duration,
    /// The time limit of a call that names none, from 1 s to `max_timeout`. Defaults to the
    /// backend's own, 30 s in the embedded sandbox.
    #[serde(rename = "default_timeout_s", with = "seconds::option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_timeout: Option<Duration>,
    /// How long after a call's own time limit its backend may take to answer. After that, the call
    /// ends as [`SandboxLost`](crate::Outcome::SandboxLost) and its slot is reset before another
    /// trajectory gets it. Defaults to 60 s.
    #[serde(rename = "answer_grace_s", with = "seconds")]
    pub answer_grace: Duration,
    /// How long a slot's reset may take before it counts as failed. Defaults to 60 s.
    #[serde(rename = "reset_timeout_s", with = "seconds")]
    pub reset_timeout: Duration,
    /// How long it may take to make a slot what a trajectory's spec asks for, as to unpack an
    /// image. Defaults to 600 s.
    #[serde(rename = "begin_timeout_s", with = "seconds")]
    pub begin_timeout: Duration,
    /// How long [`close`](crate::ToolExecutor::close) and dropping wait for accepted calls before
    /// they are cancelled. Defaults to 30 s.
    #[serde(rename = "close_timeout_s", with = "seconds")]
    pub close_timeout: Duration,
    /// What becomes of a trajectory whose workspace was lost: with its sandbox, or because of the
    /// `idle_limit`. Defaults to [`LostWorkspace::Refuse`].
    pub on_lost_workspace: LostWorkspace,
    /// How long a trajectory may hold a slot without a call, a release or a reader of artifacts.
    /// After that its slot is taken back and reset, a warning names it, and it has lost its
    /// workspace: what that means for its next call `on_lost_workspace` says. Defaults to none, as
    /// zero is: for ever.
    ///
    /// For callers that may forget to release, or die: a server. A model that thinks for long makes
    /// no call meanwhile, so be generous.
    #[serde(rename = "idle_limit_s", with = "seconds::option")]
    pub idle_limit: Option<Duration>,
    /// How many threads hand batches to the backend. Defaults to 8; 1 to 256.
    pub io_threads: usize,
    /// How many in-process tools may run at once, each on a thread of its own. Defaults to 16;
    /// 1 to 256.
    pub handler_threads: usize,
}

named_part!(local, "local");
named_part!(fleet, "fleet");
named_part!(slurm, "slurm");
named_part!(tool_server, "tool_server");
named_part!(policy, "policy");
named_part!(tools, "tools");

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self {
            local: None,
            fleet: None,
            slurm: None,
            backends: Vec::new(),
            tool_server: None,
            tools: ToolsConfig::default(),
            policy: Policy::default(),
            batch_policy: BatchPolicy::default(),
            batch_window: Duration::from_millis(20),
            max_batch_size: 200,
            queue_capacity: 65_536,
            queue_timeout: Duration::from_secs(3600),
            acquire_timeout: Duration::from_secs(600),
            max_timeout: MAX_TIMEOUT,
            default_timeout: None,
            answer_grace: Duration::from_secs(60),
            reset_timeout: Duration::from_secs(60),
            begin_timeout: Duration::from_secs(600),
            close_timeout: Duration::from_secs(30),
            on_lost_workspace: LostWorkspace::default(),
            idle_limit: None,
            io_threads: 8,
            handler_threads: 16,
        }
    }
}

setters! {
    ExecutorConfig {
        with_local: local = some LocalConfig,
        with_fleet: fleet = some FleetConfig,
        with_slurm: slurm = some SlurmConfig,
        with_backends: backends = Vec<BackendConfig>,
        with_tool_server: tool_server = some ToolServerConfig,
        with_tools: tools = ToolsConfig,
        with_policy: policy = Policy,
        with_batch_policy: batch_policy = BatchPolicy,
        with_batch_window: batch_window = Duration,
        with_max_batch_size: max_batch_size = usize,
        with_queue_capacity: queue_capacity = usize,
        with_queue_timeout: queue_timeout = Duration,
        with_acquire_timeout: acquire_timeout = Duration,
        with_max_timeout: max_timeout = Duration,
        with_default_timeout: default_timeout = some Duration,
        with_answer_grace: answer_grace = Duration,
        with_reset_timeout: reset_timeout = Duration,
        with_begin_timeout: begin_timeout = Duration,
        with_close_timeout: close_timeout = Duration,
        with_on_lost_workspace: on_lost_workspace = LostWorkspace,
        with_idle_limit: idle_limit = some Duration,
        with_io_threads: io_threads = usize,
        with_handler_threads: handler_threads = usize,
    }
}

/// More threads than this are a mistake: jobs do not wait for commands.
pub(crate) const MOST_THREADS: usize = 256;

impl ExecutorConfig {
    /// Whether every value makes sense, those of the parts among them.
    ///
    /// # Errors
    /// The first that does not, with what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |text: String| Err(ConfigError::new(text));
        let sandboxes = [
            self.local.is_some(),
            self.fleet.is_some(),
            self.slurm.is_some(),
            !self.backends.is_empty(),
        ];
        if sandboxes.into_iter().filter(|given| *given).count() > 1 {
            let text =
                "give one of \"local\", \"fleet\" and \"slurm\", or a list of them, \"backends\"";
            return wrong(text.to_owned());
        }
        backends::check_all(&self.backends)?;
        let at_least_one =
            [("max_batch_size", self.max_batch_size), ("queue_capacity", self.queue_capacity)];
        for (name, value) in at_least_one {
            if value == 0 {
                return wrong(format!("{name} is 0; it must be at least 1"));
            }
        }
        let threads = [("io_threads", self.io_threads), ("handler_threads", self.handler_threads)];
        for (name, value) in threads {
            if !(1..=MOST_THREADS).contains(&value) {
                return wrong(format!("{name} is {value}; it must be from 1 to {MOST_THREADS}"));
            }
        }
        let durations = [
            ("batch_window", self.batch_window),
            ("queue_timeout", self.queue_timeout),
            ("acquire_timeout", self.acquire_timeout),
            ("answer_grace", self.answer_grace),
            ("reset_timeout", self.reset_timeout),
            ("begin_timeout", self.begin_timeout),
            ("close_timeout", self.close_timeout),
            ("idle_limit", self.idle_limit.unwrap_or_default()),
        ];
        for (name, value) in durations {
            if value > LONGEST {
                return wrong(format!("{name} is {value:?}; at most a year"));
            }
        }
        let most = self.max_timeout;
        if !(MIN_TIMEOUT..=LONGEST_TIMEOUT).contains(&most) {
            return wrong(format!("max_timeout is {most:?}; it must be from 1 s to a day"));
        }
        let possible = MIN_TIMEOUT..=most;
        if let Some(time) = self.default_timeout.filter(|time| !possible.contains(time)) {
            let most = most.as_secs_f64();
            return wrong(format!("default_timeout is {time:?}; it must be from 1 to {most} s"));
        }
        let parts = [
            ("local", self.local.as_ref().map(LocalConfig::check)),
            ("fleet", self.fleet.as_ref().map(FleetConfig::check)),
            ("slurm", self.slurm.as_ref().map(SlurmConfig::check)),
            ("tool_server", self.tool_server.as_ref().map(ToolServerConfig::check)),
        ];
        for (name, checked) in parts {
            if let Some(Err(error)) = checked {
                return wrong(format!("in {name:?}: {error}"));
            }
        }
        if let Err(error) = self.tools.registry() {
            return wrong(format!("in \"tools\": {error}"));
        }
        Ok(())
    }
}

/// Which tools there are, beside those that run in the user's own process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ToolsConfig {
    /// Whether there are the [built-in tools](ToolRegistry::builtin) of the sandbox. Defaults to
    /// `true`.
    pub builtin: bool,
    /// Tools that the ToolServer runs and does not say itself. Defaults to none.
    pub external: Vec<ToolSchema>,
}

impl Default for ToolsConfig {
    fn default() -> Self {
        Self { builtin: true, external: Vec::new() }
    }
}

setters! {
    ToolsConfig {
        with_builtin: builtin = bool,
        with_external: external = Vec<ToolSchema>,
    }
}

impl ToolsConfig {
    /// A registry of these tools.
    ///
    /// # Errors
    /// The first external tool whose schema makes no sense, or whose name is taken or cannot be
    /// one.
    pub fn registry(&self) -> Result<ToolRegistry, ConfigError> {
        let mut registry =
            if self.builtin { ToolRegistry::builtin() } else { ToolRegistry::empty() };
        for schema in &self.external {
            schema.check()?;
            registry
                .register_external(schema.clone())
                .map_err(|error| ConfigError::new(error.to_string()))?;
        }
        Ok(registry)
    }
}

/// When a lane sends what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BatchPolicy {
    /// At once while fewer than two batches of the lane are unacknowledged; else when the batch is
    /// full or its oldest call has waited for the window.
    #[default]
    Adaptive,
    /// Only when the batch is full or its oldest call has waited for the window. With a window of 0
    /// every call goes at once.
    Window,
}

/// What becomes of a trajectory whose workspace was lost: with its sandbox, or because its slot
/// was taken back after the [`idle_limit`](ExecutorConfig::idle_limit). A call that ran in a
/// sandbox that was lost ends as [`SandboxLost`](crate::Outcome::SandboxLost) either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LostWorkspace {
    /// Its sandbox calls are answered [`SandboxLost`](crate::Outcome::SandboxLost) until it is
    /// released: none of them runs in an empty workspace without its knowing.
    #[default]
    Refuse,
    /// Its next sandbox call runs in an empty workspace.
    StartEmpty,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_may_be_given_or_nothing_and_is_written_as_it_is_read() {
        let default: ExecutorConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(default, ExecutorConfig::default());
        default.check().unwrap();
        let all = json!({
            "fleet": {"urls": ["http://localhost:1"], "servers_file": null, "servers_name": null,
                "slots": 7, "unreachable_timeout_s": 3.0,
                "start_timeout_s": 0.5, "bad_server_pause_s": 9.0, "allow_unisolated": true,
                "ca_pem": "c"},
            "tool_server": {"url": "http://localhost:2", "concurrency": 3, "ca_pem": null},
            "tools": {"builtin": false, "external": [{"name": "search", "description": "d",
                "parameters": {"q": {"type": "string"}}, "required": ["q"]}]},
            "policy": {"allow_network": false, "require_sandbox": true,
                "require_stateful_sandbox": true, "unknown_arguments": "ignore",
                "output_order": "interleaved", "background": "keep"},
            "batch_policy": "window", "batch_window_s": 0.25, "max_batch_size": 3,
            "queue_capacity": 4, "queue_timeout_s": 5.0, "acquire_timeout_s": 6.0,
            "max_timeout_s": 3600.0, "default_timeout_s": 2.5, "answer_grace_s": 7.0, "reset_timeout_s": 8.0,
            "begin_timeout_s": 8.5, "close_timeout_s": 9.0,
            "on_lost_workspace": "start_empty", "idle_limit_s": 1.5, "io_threads": 2, "handler_threads": 3,
        });
        let config: ExecutorConfig = serde_json::from_value(all.clone()).unwrap();
        config.check().unwrap();
        assert!(config.tools.registry().unwrap().names().eq(["search"]));
        assert_eq!(config.batch_window, Duration::from_millis(250));
        assert_eq!(config.idle_limit, Some(Duration::from_millis(1500)));
        assert_eq!(serde_json::to_value(&config).unwrap(), all);
    }

    #[test]
    fn a_part_that_is_null_is_not_there() {
        let config: ExecutorConfig =
            serde_json::from_str(r#"{"local": null, "fleet": null, "tool_server": null}"#).unwrap();
        assert_eq!(config, ExecutorConfig::default());
    }

    #[test]
    fn a_token_is_neither_shown_nor_written() {
        let config = ExecutorConfig::default()
            .with_fleet(FleetConfig::new(["http://a:1"]).with_token("hidden"))
            .with_tool_server(ToolServerConfig::new("http://b:1").with_token("hidden"));
        let shown = format!("{config:?}{}", serde_json::to_string(&config).unwrap());
        assert!(!shown.contains("hidden"), "{shown}");
        assert_eq!(config.fleet.unwrap().token.unwrap().expose(), "hidden");
    }

    #[test]
    fn what_makes_no_sense_is_told_with_its_name() {
        let config = ExecutorConfig::default;
        for (config, words) in [
            (config().with_io_threads(0), "io_threads is 0; it must be from 1 to 256"),
            (config().with_max_batch_size(0), "max_batch_size is 0; it must be at least 1"),
            (config().with_reset_timeout(Duration::MAX), "reset_timeout is"),
            (config().with_idle_limit(Duration::MAX), "idle_limit is"),
            (config().with_default_timeout(Duration::ZERO), "default_timeout is 0ns; it must be"),
            (config().with_local(LocalConfig::new(0)), "in \"local\": slots is 0"),
            (config().with_fleet(FleetConfig::new([""; 0])), "in \"fleet\": a fleet needs the URL"),
            (config().with_fleet(FleetConfig::new(["a", "a/"])), "a is there twice"),
            (
                config().with_tool_server(ToolServerConfig::new("").with_concurrency(300)),
                "in \"tool_server\": concurrency is 300",
            ),
            (
                config().with_local(LocalConfig::new(1)).with_fleet(FleetConfig::new(["a"])),
                "give one of",
            ),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
