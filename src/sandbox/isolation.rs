//! How commands are isolated: found out once, at start, and never revisited because of what a command
//! printed.
//!
//! [`Isolation::probe`] runs the real bubblewrap with the flags of production. Everything else here is
//! pure: which arguments bubblewrap gets, and what it reports. `shell` knows how the command reaches
//! its shell; the supervisor starts the processes.
//!
//! What a command sees under bubblewrap: a read-only `/usr`, of `/etc` what the module `etc` has
//! copied, its workspace as `/workspace` and its slot's `/tmp` (the only host directories that it can
//! write to), a private `/dev`, a read-only `/proc` of its own processes, its own user, pid, ipc, uts
//! and cgroup namespaces, a network only where it is allowed, no capabilities and no further user
//! namespaces; and no system calls but those that `limits::seccomp` leaves it.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::etc::{self, RESOLV_CONF};
use super::host::Host;
use super::init;
use super::limits::{Filter, Limits};
use super::room;
use super::shell::{self, Shell};
use super::spawn::{self, CStringArray, Child, Reaped};
use super::user::{self, CommandUser};
use super::workspace::Workspace;

/// The number under which bubblewrap gets the pipe that it reports to (`--json-status-fd`).
pub(super) const STATUS_FD: i32 = 3;
/// The number under which bubblewrap gets the pipe that holds the command back (`--block-fd`).
pub(super) const BLOCK_FD: i32 = 4;
/// The number under which bubblewrap gets the program of a warm sandbox's first process.
pub(super) const PROGRAM_FD: i32 = 5;
/// The number under which bubblewrap gets the filter of system calls (`--seccomp`), behind the
/// command's script.
pub(super) const SECCOMP_FD: i32 = shell::SCRIPT_FD + 1;
/// How long one run of bubblewrap may take while probing.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Entries of the root directory that are shared read-only where the host has them.
const ROOT_ENTRIES: [&str; 6] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// How the commands of this process are isolated.
#[derive(Debug, Clone)]
pub(crate) enum Isolation {
    /// Each command runs in namespaces of its own.
    Bubblewrap(Bubblewrap),
    /// Commands run as ordinary processes, in their workspace and with a clean environment; nothing
    /// keeps them from anything that their user may do.
    None {
        /// Why, as one line for people.
        reason: String,
    },
}

/// A bubblewrap that was seen to work here.
#[derive(Debug, Clone)]
pub(crate) struct Bubblewrap {
    /// Absolute path of the program.
    pub(crate) program: PathBuf,
    /// Whether it can forbid further user namespaces inside (`--disable-userns`, since 0.8 and not
    /// where it is installed setuid).
    pub(crate) disable_userns: bool,
    /// Whether it can take the network away; some containers do not allow it.
    pub(crate) can_cut_network: bool,
    /// What of the host is shared.
    pub(super) layout: HostLayout,
    /// The directory that is shown as `/etc`.
    etc: Option<PathBuf>,
    /// Whether slots keep their sandboxes; else why not, as one line.
    warm: Result<(), String>,
    /// How large `/dev/shm` may become. `None` leaves it to the kernel, which gives half of the memory.
    shared_memory: Option<u64>,
    /// The filter of system calls; or why there is none, as one line.
    seccomp: Result<Arc<Filter>, String>,
}

impl Isolation {
    /// Finds out what works here for commands of `user`, or of this process if there is none, in
    /// `workspace`. Blocks: some milliseconds as a rule, at most 40 seconds.
    ///
    /// Logs a warning where commands will not be isolated.
    pub(crate) fn probe(user: Option<CommandUser>, workspace: &Workspace) -> Self {
        let probed = match user {
            Some(_) => user::on_own_thread(|| Ok(Bubblewrap::probe(user, workspace)))
                .unwrap_or_else(|error| Err(error.to_string())),
            None => Bubblewrap::probe(None, workspace),
        };
        match probed {
            Ok(bubblewrap) => Self::Bubblewrap(bubblewrap),
            Err(reason) => {
                log::warn!("commands will run without isolation: {reason}");
                Self::None { reason }
            }
        }
    }

    /// Shows commands this directory as `/etc`; without one it is empty.
    pub(crate) fn with_etc(mut self, etc: PathBuf) -> Self {
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.etc = Some(etc);
        }
        self
    }

    /// Finds out whether sandboxes can be kept, for commands of `user` in `workspace`, and has them kept
    /// then. Blocks: some milliseconds as a rule, at most 10 seconds.
    pub(crate) fn try_warm(
        mut self,
        user: Option<CommandUser>,
        workspace: &Arc<Workspace>,
    ) -> Self {
        let tried = match &self {
            Self::None { .. } => return self,
            Self::Bubblewrap(bubblewrap) => user::on_own_thread(|| {
                let host = Host::new(self.clone(), user, Arc::new(Limits::none()))?;
                Ok(room::try_out(bubblewrap, workspace, &host, PROBE_TIMEOUT))
            }),
        };
        let tried = tried.unwrap_or_else(|error| Err(error.to_string()));
        if let Err(reason) = &tried {
            log::warn!("each command gets a sandbox of its own, which is slower: {reason}");
        }
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.warm = tried;
        }
        self
    }

    /// Loads this filter of system calls into every sandbox, if that works here for commands of `user`
    /// in `workspace`. Blocks for one run of bubblewrap.
    ///
    /// Logs a warning where it does not work.
    pub(crate) fn with_filter(
        mut self,
        filter: Result<Filter, String>,
        user: Option<CommandUser>,
        workspace: &Workspace,
    ) -> Self {
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.seccomp = filter.map(Arc::new);
            let tried = match &bubblewrap.seccomp {
                Err(reason) => Err(reason.clone()),
                Ok(_) => bubblewrap.try_out_as(workspace, user),
            };
            if let Err(reason) = tried {
                log::warn!("commands run without a filter of system calls: {reason}");
                bubblewrap.seccomp = Err(reason);
            }
        }
        self
    }

    /// Whether slots keep their sandboxes.
    pub(crate) fn is_warm(&self) -> bool {
        matches!(self, Self::Bubblewrap(bubblewrap) if bubblewrap.warm.is_ok())
    }

    /// Gives sandboxes a `/dev/shm` of at most this size, if bubblewrap can do that (since 0.7).
    /// Blocks for one run of bubblewrap.
    pub(crate) fn with_shared_memory(
        mut self,
        bytes: u64,
        user: Option<CommandUser>,
        workspace: &Workspace,
    ) -> Self {
        if let Self::Bubblewrap(bubblewrap) = &mut self {
            bubblewrap.shared_memory = Some(bytes);
            if let Err(reason) = bubblewrap.try_out_as(workspace, user) {
                log::warn!("the size of /dev/shm is not limited: {reason}");
                bubblewrap.shared_memory = None;
            }
        }
        self
    }

    /// Whether commands run in a sandbox.
    pub(crate) fn is_sandboxed(&self) -> bool {
        matches!(self, Self::Bubblewrap(_))
    }

    /// Whether a command can be run without network.
    pub(crate) fn can_cut_network(&self) -> bool {
        matches!(self, Self::Bubblewrap(bubblewrap) if bubblewrap.can_cut_network)
    }
}

impl Bubblewrap {
    /// Tries the production flags from the strictest to the most lenient that is acceptable.
    fn probe(user: Option<CommandUser>, workspace: &Workspace) -> Result<Self, String> {
        let program = find_program("bwrap").ok_or(
            "bubblewrap (bwrap) is not installed; on Debian and Ubuntu: apt-get install bubblewrap",
        )?;
        let layout = HostLayout::detect(user);
        let mut first_failure = None;
        for (can_cut_network, disable_userns) in
            [(true, true), (true, false), (false, true), (false, false)]
        {
            let candidate = Self {
                program: program.clone(),
                disable_userns,
                can_cut_network,
                layout: layout.clone(),
                etc: None,
                warm: Err("not wanted".to_owned()),
                shared_memory: None,
                seccomp: Err("switched off".to_owned()),
            };
            match candidate.try_out(workspace, user) {
                Ok(()) => return Ok(candidate),
                Err(failure) => first_failure.get_or_insert(failure),
            };
        }
        let failure = first_failure.unwrap_or_default();
        let whom = user.map_or_else(String::new, |user| format!(" for user {}", user.uid()));
        Err(format!("{} does not work here{whom}: {failure}", program.display()))
    }

    /// The filter of system calls for one start of bubblewrap, which is then given its number as
    /// [`Sandbox::seccomp`].
    ///
    /// # Errors
    /// Those of opening a file. No command may start without the filter then.
    pub(super) fn open_filter(&self) -> io::Result<Option<OwnedFd>> {
        self.seccomp.as_ref().ok().map(|filter| filter.open()).transpose()
    }

    /// Why there is no filter of system calls, as one line; `None` where there is one.
    pub(crate) fn not_filtered_because(&self) -> Option<&str> {
        self.seccomp.as_ref().err().map(String::as_str)
    }

    /// As [`try_out`](Self::try_out), on a thread that may become the user.
    fn try_out_as(&self, workspace: &Workspace, user: Option<CommandUser>) -> Result<(), String> {
        if user.is_none() {
            return self.try_out(workspace, None);
        }
        user::on_own_thread(|| Ok(self.try_out(workspace, user)))
            .unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Runs `true` in a sandbox.
    fn try_out(&self, workspace: &Workspace, user: Option<CommandUser>) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let call = shell::shell_call(self.layout.shell, "true", false, None, usize::MAX);
        let filter = self.open_filter().map_err(text)?;
        let filter_fd = STATUS_FD + 1;
        let sandbox = Sandbox {
            workspace: workspace.path(),
            temporary: workspace.temporary(),
            shown: &[],
            network: !self.can_cut_network,
            handshake: Handshake::None,
            seccomp: filter.is_some().then_some(filter_fd),
            argv: &call.argv,
        };
        let arguments = CStringArray::new(bwrap_argv(self, &sandbox)).map_err(text)?;
        let environment = CStringArray::new(shell::environment(
            Path::new("/workspace"),
            Path::new("/tmp"),
            self.layout.shell,
            &self.layout.user,
            Some(&call),
        ))
        .map_err(text)?;
        let program = CString::new(self.program.as_os_str().as_bytes())
            .map_err(|_| spawn::embedded_nul().to_string())?;
        let null = open_null().map_err(text)?;
        let (errors, errors_writer) = spawn::pipe().map_err(text)?;
        let (status, status_writer) = spawn::pipe().map_err(text)?;
        let mut fds =
            vec![null.as_fd(), null.as_fd(), errors_writer.as_fd(), status_writer.as_fd()];
        fds.extend(filter.as_ref().map(AsFd::as_fd));
        let child = spawn::spawn(&program, &arguments, &environment, &fds, user).map_err(text)?;
        drop((errors_writer, status_writer));
        wait_or_kill(&child, PROBE_TIMEOUT)?;
        let report = StatusReport::parse(&read_available(status.as_fd()));
        match report.exit_code {
            Some(0) => Ok(()),
            Some(code) => Err(format!("`true` ended with exit code {code}")),
            None => Err(one_line(&String::from_utf8_lossy(&read_available(errors.as_fd())))),
        }
    }
}

/// Waits until the child has ended, and reaps it.
fn wait_or_kill(child: &Child, timeout: Duration) -> Result<(), String> {
    use rustix::event::{PollFd, PollFlags, poll};
    let deadline = Instant::now() + timeout;
    while child.reap() == Reaped::Running {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            child.kill();
            return Err(format!("no end after {} s", timeout.as_secs()));
        }
        let mut fds = [PollFd::new(child, PollFlags::IN)];
        // An interrupted wait is looked at again above.
        let _ = poll(&mut fds, left.try_into().ok().as_ref());
    }
    Ok(())
}

/// What is in the pipe just now, up to 16 KiB.
fn read_available(pipe: std::os::fd::BorrowedFd<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 16 * 1024];
    let count = rustix::io::ioctl_fionbio(pipe, true)
        .and_then(|()| rustix::io::read(pipe, &mut buffer))
        .unwrap_or(0);
    buffer.truncate(count);
    buffer
}

/// The text without line ends, cut where it is very long.
pub(super) fn one_line(text: &str) -> String {
    let line: String = text.trim().replace('\n', "; ").chars().take(500).collect();
    if line.is_empty() {
        return "no reason given".to_owned();
    }
    line
}

/// `/dev/null`, for reading and writing.
pub(super) fn open_null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// The absolute path of a program, from the host's `PATH` and the usual directories.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(std::env::split_paths(shell::PATH))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|candidate| {
            rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok()
                && candidate.is_file()
        })
}

/// What of the host's file system a sandbox shares, and who runs in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostLayout {
    /// Entries of the root directory; the target where the entry is a symbolic link.
    root: Vec<(PathBuf, Option<PathBuf>)>,
    /// The shell that runs commands.
    pub(super) shell: Shell,
    /// The name of the user that commands run as.
    pub(super) user: String,
}

impl HostLayout {
    /// Looks at the host. Blocks on a few file system calls.
    pub(super) fn detect(user: Option<CommandUser>) -> Self {
        let root = ROOT_ENTRIES
            .iter()
            .map(PathBuf::from)
            .filter_map(|path| {
                let kind = path.symlink_metadata().ok()?.file_type();
                let target = kind.is_symlink().then(|| path.read_link().ok()).flatten();
                Some((path, target))
            })
            .collect();
        Self {
            root,
            shell: Shell::detect(),
            user: user_name(
                &std::fs::read_to_string("/etc/passwd").unwrap_or_default(),
                user.map_or_else(rustix::process::getuid, CommandUser::uid).as_raw(),
            ),
        }
    }
}

/// The name of user `uid` in a file like `/etc/passwd`; `user` where it has none.
fn user_name(passwd: &str, uid: u32) -> String {
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid))
        .map_or_else(|| "user".to_owned(), |fields| fields[0].to_owned())
}

/// How bubblewrap and its starter speak with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    /// bubblewrap reports to [`STATUS_FD`].
    None,
    /// It also waits for a byte from [`BLOCK_FD`] when the sandbox is set up.
    Block,
    /// The sandbox is to be kept: its first process is [`init`]'s program, read from [`PROGRAM_FD`].
    Init,
}

/// A sandbox to be made.
pub(super) struct Sandbox<'a> {
    /// The host directory that is `/workspace` inside.
    pub(super) workspace: &'a Path,
    /// The host directory that is `/tmp` inside.
    pub(super) temporary: &'a Path,
    /// More host directories to show, read-only, each at a place that is nobody else's.
    pub(super) shown: &'a [(&'a Path, &'a Path)],
    /// Whether it has the host's network, or none.
    pub(super) network: bool,
    /// How bubblewrap and its starter speak with each other.
    pub(super) handshake: Handshake,
    /// The number under which bubblewrap gets the filter of system calls, if there is one.
    pub(super) seccomp: Option<i32>,
    /// What runs in it: the program, its `$0` and its arguments.
    pub(super) argv: &'a [OsString],
}

/// The arguments of bubblewrap, its `$0` first. The environment of the command is bubblewrap's own:
/// it is started with nothing else.
///
/// What can be written to: the workspace and `/tmp`, which are the slot's, and the directories that
/// are the sandbox's own and go with it, `/dev/shm` and the root directory among them.
pub(super) fn bwrap_argv(bubblewrap: &Bubblewrap, sandbox: &Sandbox<'_>) -> Vec<OsString> {
    let Sandbox { workspace, temporary, shown, network, handshake, seccomp, argv: inner } =
        *sandbox;
    let mut argv: Vec<OsString> = Vec::with_capacity(160);
    let mut add = |arguments: &[&OsStr]| argv.extend(arguments.iter().map(|&a| a.to_owned()));
    let plain = |flags: &'static str| flags.split(' ').map(OsStr::new).collect::<Vec<_>>();

    add(&plain("bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-uts"));
    add(&plain("--unshare-cgroup-try --die-with-parent --new-session --cap-drop ALL"));
    add(&plain("--hostname sandbox"));
    if bubblewrap.disable_userns {
        add(&plain("--disable-userns"));
    }
    if !network {
        add(&plain("--unshare-net"));
    }
    let (status, block) = (STATUS_FD.to_string(), BLOCK_FD.to_string());
    add(&["--json-status-fd".as_ref(), status.as_ref()]);
    match handshake {
        Handshake::None => {}
        Handshake::Block => add(&["--block-fd".as_ref(), block.as_ref()]),
        Handshake::Init => add(&plain("--as-pid-1")),
    }
    if let Some(seccomp) = seccomp {
        add(&["--seccomp".as_ref(), seccomp.to_string().as_ref()]);
    }

    add(&plain("--ro-bind /usr /usr"));
    for (path, target) in &bubblewrap.layout.root {
        match target {
            Some(target) => add(&["--symlink".as_ref(), target.as_ref(), path.as_ref()]),
            None => add(&["--ro-bind".as_ref(), path.as_ref(), path.as_ref()]),
        }
    }
    match &bubblewrap.etc {
        Some(etc) => {
            add(&["--ro-bind".as_ref(), etc.as_ref(), "/etc".as_ref()]);
            // `-try`: not every host has them.
            for bound in etc::BOUND {
                add(&["--ro-bind-try".as_ref(), bound.as_ref(), bound.as_ref()]);
            }
            if network {
                add(&["--ro-bind-try".as_ref(), RESOLV_CONF.as_ref(), RESOLV_CONF.as_ref()]);
            }
        }
        None => add(&plain("--dir /etc")),
    }
    // Read-only: to the kernel, root is root without any capability, and could write /proc/sys (whose
    // core_pattern names a program that the host runs) and chmod what all sandboxes share of /proc.
    add(&plain("--proc /proc --remount-ro /proc --dev /dev"));
    if let Some(bytes) = bubblewrap.shared_memory {
        add(&["--size".as_ref(), bytes.to_string().as_ref()]);
    }
    add(&plain("--tmpfs /dev/shm"));
    if handshake == Handshake::Init {
        // For `init` to see what is left in it.
        add(&plain("--mqueue /dev/mqueue"));
        let program = PROGRAM_FD.to_string();
        add(&plain("--perms 0555 --ro-bind-data"));
        add(&[program.as_ref(), init::PROGRAM_PATH.as_ref()]);
    }
    add(&plain("--remount-ro /dev"));
    add(&["--bind".as_ref(), temporary.as_ref(), "/tmp".as_ref()]);
    add(&plain("--symlink /tmp /var/tmp"));
    add(&["--bind".as_ref(), workspace.as_ref(), "/workspace".as_ref()]);
    for (from, to) in shown {
        add(&["--ro-bind".as_ref(), from.as_ref(), to.as_ref()]);
    }
    add(&plain("--chdir /workspace --"));
    argv.extend(inner.iter().cloned());
    argv
}

/// What bubblewrap has reported so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StatusReport {
    /// The first process of the sandbox's pid namespace, as numbered outside.
    pub(super) child_pid: Option<i32>,
    /// The command's exit code, 128 + n for signal n. Only ever there if the command was started.
    pub(super) exit_code: Option<i32>,
}

impl StatusReport {
    /// Reads the JSON documents that were written to the status pipe. An unfinished last one is
    /// ignored.
    pub(super) fn parse(text: &[u8]) -> Self {
        let mut report = Self::default();
        let number = |document: &Value, name| {
            let number = document.get(name)?.as_i64()?;
            i32::try_from(number).ok()
        };
        for document in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
            let Ok(document) = document else { break };
            report.child_pid = report.child_pid.or(number(&document, "child-pid"));
            // A command can reach into the sandbox's first process and make up a code; it must not be
            // able to make up one that means something else here, as -1 does.
            let exit_code = number(&document, "exit-code").map(|code| code & 0xff);
            report.exit_code = report.exit_code.or(exit_code);
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::workspace::DataDir;

    fn bubblewrap() -> Bubblewrap {
        Bubblewrap {
            program: "/usr/bin/bwrap".into(),
            disable_userns: true,
            can_cut_network: true,
            layout: HostLayout {
                root: vec![("/bin".into(), Some("usr/bin".into())), ("/lib".into(), None)],
                shell: Shell::Bash,
                user: "someone".to_owned(),
            },
            etc: Some("/run/etc".into()),
            warm: Ok(()),
            shared_memory: Some(4096),
            seccomp: Err("a test".to_owned()),
        }
    }

    fn line(argv: &[OsString]) -> String {
        let words: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    fn argv_for(command: &str, network: bool, handshake: Handshake) -> Vec<OsString> {
        let call = shell::shell_call(Shell::Bash, command, true, None, usize::MAX);
        let (workspace, temporary) = (Path::new("/w s"), Path::new("/t"));
        let seccomp = (handshake == Handshake::Block).then_some(SECCOMP_FD);
        let argv = &call.argv;
        let shown = &[];
        bwrap_argv(
            &bubblewrap(),
            &Sandbox { workspace, temporary, shown, network, handshake, seccomp, argv },
        )
    }

    #[test]
    fn the_arguments_of_bubblewrap_are_exactly_these() {
        let argv = argv_for("echo a b", true, Handshake::Block);
        assert_eq!(
            line(&argv),
            "bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-uts --unshare-cgroup-try \
             --die-with-parent --new-session --cap-drop ALL --hostname sandbox --disable-userns \
             --json-status-fd 3 --block-fd 4 --seccomp 6 --ro-bind /usr /usr --symlink usr/bin /bin \
             --ro-bind /lib /lib --ro-bind /run/etc /etc \
             --ro-bind-try /etc/alternatives /etc/alternatives \
             --ro-bind-try /etc/ssl/certs /etc/ssl/certs \
             --ro-bind-try /etc/resolv.conf /etc/resolv.conf \
             --proc /proc --remount-ro /proc --dev /dev --size 4096 --tmpfs /dev/shm \
             --remount-ro /dev \
             --bind /t /tmp --symlink /tmp /var/tmp --bind /w s /workspace --chdir /workspace \
             -- bash -c -- echo a b"
        );
        assert_eq!(argv.last().map(OsString::as_os_str), Some("echo a b".as_ref()));
        let offline = argv_for("echo a b", false, Handshake::None);
        assert!(line(&offline).contains(" --unshare-net "));
        assert!(!line(&offline).contains("--block-fd"));
        assert!(!line(&offline).contains("--seccomp"));
    }

    #[test]
    fn a_warm_sandbox_has_a_first_process_of_ours() {
        let argv = argv_for("x", true, Handshake::Init);
        let line = line(&argv);
        assert!(line.contains(" --as-pid-1 ") && !line.contains("--block-fd"), "{line}");
        let added = "--tmpfs /dev/shm --mqueue /dev/mqueue --perms 0555 \
             --ro-bind-data 5 /run/tool-init --remount-ro /dev --bind";
        assert!(line.contains(added), "{line}");
    }

    #[test]
    fn a_command_cannot_be_taken_for_an_option_of_bubblewrap() {
        let argv = argv_for("--bind / /host", true, Handshake::Block);
        let end = argv.iter().position(|word| word == "--").unwrap();
        assert_eq!(line(&argv[end..]), "-- bash -c -- --bind / /host");
    }

    #[test]
    fn the_status_is_read_document_by_document() {
        let first = br#"{ "child-pid": 12, "ipc-namespace": 4026532208 }"#;
        let both = [&first[..], b"\n{ \"exit-code\": 137 }\n"].concat();
        assert_eq!(StatusReport::parse(&both[..20]), StatusReport::default());
        assert_eq!(StatusReport::parse(first).child_pid, Some(12));
        assert_eq!(
            StatusReport::parse(&both),
            StatusReport { child_pid: Some(12), exit_code: Some(137) }
        );
        assert_eq!(StatusReport::parse(b"\xff{"), StatusReport::default());
        for (made_up, taken_for) in [("-1", 255), ("4242", 146), ("2147483647", 255)] {
            let report = StatusReport::parse(format!("{{\"exit-code\": {made_up}}}").as_bytes());
            assert_eq!(report.exit_code, Some(taken_for), "{made_up}");
        }
    }

    #[test]
    fn a_users_name_is_looked_up_by_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nme:x:1000:1000::/home/me:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000), "me");
        assert_eq!(user_name(passwd, 0), "root");
        assert_eq!(user_name(passwd, 7), "user");
    }

    #[test]
    fn a_bubblewrap_that_fails_is_reported_with_its_own_words() {
        let mut broken = bubblewrap();
        broken.program = "/bin/false".into();
        let base = tempfile::tempdir().unwrap();
        let data = DataDir::create(Some(base.path()), 1, None).unwrap();
        let workspace = &data.workspaces()[0];
        assert_eq!(broken.try_out(workspace, None), Err("no reason given".to_owned()));
        // A success that bubblewrap does not report is none.
        broken.program = "/bin/true".into();
        assert!(broken.try_out(workspace, None).is_err());
        broken.program = "/nonexistent/bwrap".into();
        let error = broken.try_out(workspace, None).unwrap_err();
        assert!(error.contains("No such file"), "{error}");
    }
}
