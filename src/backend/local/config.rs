//! How the embedded sandbox is set up.

use std::path::PathBuf;

use crate::limits::SlotLimits;
use crate::sandbox::files::DEFAULT_MAX_FILE_BYTES;

/// How a [`LocalBackend`](super::LocalBackend) is set up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LocalConfig {
    /// How many slots; 1 to 65,536. Defaults to 10.
    pub slots: usize,
    /// Where the workspaces are made, in a directory of their own. Defaults to
    /// `tool-executor-<uid>` in the system's directory for temporary files. Where this process is
    /// root, commands run as the user 65534, who must be able to pass through every directory on the
    /// way there.
    pub data_dir: Option<PathBuf>,
    /// How many characters are kept of each of a command's two output streams. Defaults to 50,000.
    pub max_output_chars: usize,
    /// How many bytes of a call's output, of `bash` or `bash_stateful`, are kept in files in its
    /// workspace, where the result does not show all of it: `.tool-output/<n>-stdout.txt` and
    /// `…-stderr.txt`, named by the metadata `output_file` and `stderr_file`. Of both streams together; the
    /// rest is left out. 0 for no such files. Defaults to 16 MiB.
    pub max_output_file_bytes: u64,
    /// Makes this process a child subreaper (`prctl(2)`), so that ended sandboxes leave no zombies
    /// where the system's first process removes none, as in many containers. Not needed where this
    /// process is itself the first. It concerns the whole process: every orphan among its
    /// descendants becomes its child, and those that are not ours are for it to wait for. Defaults
    /// to `false`.
    pub adopt_orphans: bool,
    /// The size in bytes up to which files are read and written. Defaults to 100,000.
    pub max_file_bytes: u64,
    /// Whether a slot keeps its sandbox from call to call, which saves each command some
    /// milliseconds. What a command leaves behind is found and removed all the same: of one call the
    /// next finds the files in `/workspace` and `/tmp`, and nothing else. Defaults to `true`; where
    /// it is not possible each command gets a sandbox of its own, see
    /// [`LocalBackend::keeps_sandboxes`](super::LocalBackend::keeps_sandboxes).
    pub warm_slots: bool,
    /// Whether sandboxes get a filter of system calls (seccomp), which takes away what no tool needs:
    /// nested namespaces, mounts, keys, bpf, io_uring, …; 32-bit programs do not run.
    /// Defaults to `true`; see [`LocalBackend::not_filtered_because`](super::LocalBackend::not_filtered_because).
    pub seccomp: bool,
    /// Whether commands may run without isolation where bubblewrap is missing or does not work: with all
    /// rights of this process's user, or of an unprivileged one if that is root. Then it starts all the
    /// same and logs a warning; see [`LocalBackend::not_isolated_because`]. It also allows a root that may
    /// not change users to run commands as root. Defaults to `false`: the start fails.
    ///
    /// [`LocalBackend::not_isolated_because`]: super::LocalBackend::not_isolated_because
    pub allow_unisolated: bool,
    /// What each slot may use of the machine; see [`LocalBackend::limits`](super::LocalBackend::limits).
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
            max_file_bytes: DEFAULT_MAX_FILE_BYTES,
            warm_slots: true,
            seccomp: true,
            allow_unisolated: false,
            limits: SlotLimits::default(),
        }
    }
}

impl LocalConfig {
    /// The defaults, but for the number of slots.
    pub fn with_slots(slots: usize) -> Self {
        Self { slots, ..Self::default() }
    }
}
