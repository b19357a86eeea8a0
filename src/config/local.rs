//! How the embedded sandbox is set up.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::bind::is_plain;
use super::named_part;
use super::{Bind, HostPattern, ImagesConfig, NetworkMode, SlotLimits, UserIds, variable_problem};
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
    /// root, commands run as other users ([`user_ids`](Self::user_ids)), who must be able to pass
    /// through every directory on the way there; not so where it is root of a user namespace with
    /// a mount namespace of its own, as after [`enter`](crate::user_range::enter).
    pub data_dir: Option<PathBuf>,
    /// The image whose files sandboxes have in place of the host's, unless a trajectory asks for
    /// another: `dir:/path`, a directory with an image's files; `oci:/path[:tag]`, an OCI layout;
    /// `docker-archive:/path[:name]`, what `docker save` or `podman save` wrote; or a name, as
    /// `python:3.12`: the image that was imported under it, or else that of a registry. Commands
    /// run in it as a container engine would run them: with its user, its variables and its working
    /// directory. Defaults to none: the host's files.
    pub image: Option<String>,
    /// How images are pulled from registries, and how much of the disk they may have.
    #[serde(deserialize_with = "images")]
    pub images: ImagesConfig,
    /// Which user ids of this machine the slots have, where this process is root, or root of a user
    /// namespace. Inside a sandbox commands on the host's files are always the user 65,534.
    /// Defaults to [`UserIds::Auto`].
    pub user_ids: UserIds,
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
    /// Whether a slot keeps the sandbox of its commands from call to call, which saves each command
    /// half a millisecond. Without it each command gets one of its own. The machine in which they
    /// are, with its files and its network, is the trajectory's in both cases, and processes that a
    /// command leaves behind are ended with it. Defaults to `true`.
    pub warm_slots: bool,
    /// Whether sandboxes get a filter of system calls (seccomp), which takes away what no tool
    /// needs: nested namespaces, mounts, keys, bpf, io_uring, further filters, set-user-ID bits, …
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
    /// Directories and files of the host that sandboxes show beside what they always have: at most
    /// 32. Defaults to none.
    pub binds: Vec<Bind>,
    /// Variables that commands have beside those they always have, or in place of them: name and
    /// value. `None`, in JSON `null`, is the value that this process has when the sandbox starts;
    /// the start fails where it has none. `HOME`, `USER`, `LOGNAME`, `PWD`, `SHELL` and `PATH` are
    /// not to be had: they say what is so. Defaults to none.
    pub env: BTreeMap<String, Option<String>>,
    /// Directories that come first in the `PATH` of commands: absolute paths as sandboxes have
    /// them. Defaults to none.
    pub path_prepend: Vec<PathBuf>,
    /// Devices of the host that sandboxes have, as `/dev/kvm`: at most 32. The user that commands
    /// run as needs its own permission to open them. Defaults to none.
    pub devices: Vec<PathBuf>,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            slots: 10,
            data_dir: None,
            image: None,
            images: ImagesConfig::default(),
            user_ids: UserIds::Auto,
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
            binds: Vec::new(),
            env: BTreeMap::new(),
            path_prepend: Vec::new(),
            devices: Vec::new(),
        }
    }
}

setters! {
    LocalConfig {
        with_slots: slots = usize,
        with_data_dir: data_dir = some PathBuf,
        with_image: image = some String,
        with_images: images = ImagesConfig,
        with_user_ids: user_ids = UserIds,
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
        with_binds: binds = Vec<Bind>,
        with_env: env = BTreeMap<String, Option<String>>,
        with_path_prepend: path_prepend = Vec<PathBuf>,
        with_devices: devices = Vec<PathBuf>,
    }
}

named_part!(images, "images");

/// More slots than this in one process are a mistake.
const MOST_SLOTS: usize = 65_536;
/// A sandbox is made by one message of bounded length, and each mount costs time.
const MOST_MOUNTS: usize = 32;

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
        if let Some(problem) = self.limits.problem() {
            return Err(ConfigError::new(problem));
        }
        self.images.check()?;
        self.binds.iter().try_for_each(Bind::check)?;
        self.check_mounts().map_or(Ok(()), |problem| Err(ConfigError::new(problem)))?;
        self.check_variables().map_or(Ok(()), |problem| Err(ConfigError::new(problem)))
    }

    /// What is wrong with the binds, devices and directories of programs, if something is.
    fn check_mounts(&self) -> Option<String> {
        for (name, count) in [("binds", self.binds.len()), ("devices", self.devices.len())] {
            if count > MOST_MOUNTS {
                return Some(format!("there are {count} {name}; at most {MOST_MOUNTS}"));
            }
        }
        let is_no_device = |path: &&PathBuf| !is_plain(path) || !path.starts_with("/dev");
        if let Some(path) = self.devices.iter().find(is_no_device) {
            let path = path.display();
            return Some(format!("{path} is no device; it must be a path as /dev/kvm"));
        }
        let is_wrong = |path: &&PathBuf| {
            !is_plain(path) || path.to_str().is_none_or(|path| path.contains([':', '\0']))
        };
        self.path_prepend.iter().find(is_wrong).map(|path| {
            let path = path.display();
            format!("{path} cannot be in the PATH; it must be an absolute path without `:` or `..`")
        })
    }

    /// What is wrong with the variables, if something is.
    fn check_variables(&self) -> Option<String> {
        self.env.iter().find_map(|(name, value)| {
            if name == "PATH" {
                let text = "the variable PATH cannot be set; give the directories that are to \
                            come first in it as path_prepend (--path-prepend)";
                return Some(text.to_owned());
            }
            variable_problem(name, value.as_deref())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_cannot_be_given_is_refused_with_what_is_right() {
        let env = |name: &str, value: &str| {
            let env = [(name.to_owned(), Some(value.to_owned()))].into();
            LocalConfig::default().with_env(env)
        };
        let path = |path: &str| LocalConfig::default().with_path_prepend(vec![path.into()]);
        let device = |path: &str| LocalConfig::default().with_devices(vec![path.into()]);
        let bind = |bind| LocalConfig::default().with_binds(vec![bind]);
        for (config, words) in [
            (env("A-B", ""), "\"A-B\" is no name of a variable"),
            (env("1A", ""), "no name"),
            (env("", ""), "no name"),
            (env("HOME", "/x"), "HOME cannot be set"),
            (env("PATH", "/x"), "path_prepend"),
            (env("A", "a\0b"), "NUL"),
            (path("bin"), "bin cannot be in the PATH"),
            (path("/a:/b"), "cannot be in the PATH"),
            (device("kvm"), "kvm is no device"),
            (device("/dev/../etc/shadow"), "is no device"),
            (bind(Bind::read_only("")), "empty source"),
            (bind(Bind::read_only("/a").with_place("b")), "the bind /a:b has the place b"),
            (
                LocalConfig::default().with_binds(vec![Bind::read_only("/a"); 33]),
                "there are 33 binds; at most 32",
            ),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let fine = LocalConfig::default()
            .with_env([("_A1".to_owned(), None)].into())
            .with_path_prepend(vec!["/extra/bin".into()])
            .with_devices(vec!["/dev/dri/card0".into()])
            .with_binds(vec![Bind::writable("relative")]);
        assert_eq!(fine.check(), Ok(()));
    }
}
