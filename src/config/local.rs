//! How the embedded sandbox is set up.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{HostPattern, NetworkMode, SlotLimits};
use crate::error::ConfigError;

/// How the embedded sandbox, `LocalBackend`, is set up. Needs Linux.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LocalConfig {
    /// How many slots; 1 to 65,536. Defaults to 10.
    pub slots: usize,
    /// Where the workspaces are made, in a directory of their own. Defaults to
    /// `tool-executor-<uid>` in the system's directory for temporary files. Where this process is
    /// root, commands run as the user 65534, who must be able to pass through every directory on
    /// the way there.
    pub data_dir: Option<PathBuf>,
    /// How many characters are kept of each of a command's two output streams. Defaults to 50,000.
    pub max_output_chars: usize,
    /// How many bytes of a call's output, of `bash` or `terminal_stateful`, are kept in files in
    /// its home directory, where the result does not show all of it:
    /// `~/.tool-output/<n>-stdout.txt` and `…-stderr.txt`, named by the metadata `output_file` and
    /// `stderr_file`. Of both streams together; the rest is left out. 0 for no such files. Defaults
    /// to 16 MiB.
    pub max_output_file_bytes: u64,
    /// Makes this process a child subreaper (`prctl(2)`), so that ended commands leave no zombies
    /// where the system's first process removes none, as in many containers. Only commands without
    /// a sandbox can leave one. Not needed where this process is itself the first. It concerns the
    /// whole process: every orphan among its descendants becomes its child, and those that are not
    /// ours are for it to wait for. Defaults to `false`.
    pub adopt_orphans: bool,
    /// The size in bytes up to which files are read and written. Defaults to 100,000.
    pub max_file_bytes: u64,
    /// Whether a slot keeps its sandbox from call to call, which saves each command some
    /// milliseconds. What a command leaves behind is found and removed all the same: of one call
    /// the next finds the files in `/workspace` and `/tmp`, and nothing else. Without it each
    /// command gets a sandbox of its own. Defaults to `true`.
    pub warm_slots: bool,
    /// Whether sandboxes get a filter of system calls (seccomp), which takes away what no tool
    /// needs: nested namespaces, mounts, keys, bpf, io_uring, …; 32-bit programs do not run.
    /// Defaults to `true`;
    /// [`Capabilities::not_filtered_because`](crate::backend::Capabilities::not_filtered_because)
    /// says whether it holds.
    pub seccomp: bool,
    /// Whether commands may run without isolation where no sandbox can be made:
    /// with all rights of this process's user, or of an unprivileged one if that is root. Then it
    /// starts all the same and logs a warning;
    /// [`Capabilities::isolation`](crate::backend::Capabilities::isolation) says why. It also
    /// allows a root that may not change users to run commands as root. Defaults to `false`: the
    /// start fails.
    pub allow_unisolated: bool,
    /// What network commands have whose calls may use one
    /// ([`Policy::allow_network`](super::Policy::allow_network)). Defaults to
    /// [`NetworkMode::Proxy`], which needs sandboxes with a network of their own: where none can be
    /// made the start fails.
    pub network: NetworkMode,
    /// The hosts that commands may reach through the proxy. Defaults to none, which means every
    /// host with a public address.
    pub allow_hosts: Vec<HostPattern>,
    /// Whether each request through the proxy is logged, at level `info` under the target
    /// `tool_executor::egress`. Defaults to `false`.
    pub log_egress: bool,
    /// Certificate authorities, as PEM, that tools in a sandbox trust besides those of this
    /// machine. They find them by `SSL_CERT_FILE` and its kin. Defaults to none.
    pub ca_pem: Option<String>,
    /// What each slot may use of the machine; which limits hold is said by
    /// [`Capabilities::limits`](crate::backend::Capabilities::limits).
    pub limits: SlotLimits,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            slots: 10,
            data_dir: None,
            max_output_chars: 50_000,
            max_output_file_bytes: 16 << 20,
            adopt_orphans: false,
            max_file_bytes: 100_000,
            warm_slots: true,
            seccomp: true,
            allow_unisolated: false,
            network: NetworkMode::default(),
            allow_hosts: Vec::new(),
            log_egress: false,
            ca_pem: None,
            limits: SlotLimits::default(),
        }
    }
}

setters! {
    LocalConfig {
        with_slots: slots = usize,
        with_data_dir: data_dir = some PathBuf,
        with_max_output_chars: max_output_chars = usize,
        with_max_output_file_bytes: max_output_file_bytes = u64,
        with_adopt_orphans: adopt_orphans = bool,
        with_max_file_bytes: max_file_bytes = u64,
        with_warm_slots: warm_slots = bool,
        with_seccomp: seccomp = bool,
        with_allow_unisolated: allow_unisolated = bool,
        with_network: network = NetworkMode,
        with_allow_hosts: allow_hosts = Vec<HostPattern>,
        with_log_egress: log_egress = bool,
        with_ca_pem: ca_pem = some String,
        with_limits: limits = SlotLimits,
    }
}

/// More slots than this in one process are a mistake.
const MOST_SLOTS: usize = 65_536;

impl LocalConfig {
    /// So many slots, and every other setting at its default.
    pub fn new(slots: usize) -> Self {
        Self { slots, ..Self::default() }
    }

    /// Whether every value makes sense.
    ///
    /// # Errors
    /// The first that does not, with what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MOST_SLOTS).contains(&self.slots) {
            let slots = self.slots;
            let text = format!("slots is {slots}; it must be from 1 to {MOST_SLOTS}");
            return Err(ConfigError::new(text));
        }
        if !self.allow_hosts.is_empty() && self.network != NetworkMode::Proxy {
            let text = format!(
                "allow_hosts is given, and network is {}; only the proxy knows hosts",
                self.network
            );
            return Err(ConfigError::new(text));
        }
        if self.ca_pem.as_ref().is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
            return Err(ConfigError::new("ca_pem holds no certificate; it must be PEM"));
        }
        self.limits.problem().map_or(Ok(()), |problem| Err(ConfigError::new(problem)))
    }
}
