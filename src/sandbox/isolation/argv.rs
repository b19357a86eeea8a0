//! Which arguments bubblewrap gets. Pure.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::Bubblewrap;
use crate::sandbox::etc::{self, RESOLV_CONF};
use crate::sandbox::{init, shell};

/// The number under which bubblewrap gets the pipe that it reports to (`--json-status-fd`).
pub(in crate::sandbox) const STATUS_FD: i32 = 3;
/// The number under which bubblewrap gets the pipe that holds the command back (`--block-fd`).
pub(in crate::sandbox) const BLOCK_FD: i32 = 4;
/// The number under which bubblewrap gets the program of a warm sandbox's first process.
pub(in crate::sandbox) const PROGRAM_FD: i32 = 5;
/// The number under which bubblewrap gets the filter of system calls (`--seccomp`), behind the
/// command's script.
pub(in crate::sandbox) const SECCOMP_FD: i32 = shell::SCRIPT_FD + 1;

/// How bubblewrap and its starter speak with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Handshake {
    /// bubblewrap reports to [`STATUS_FD`].
    None,
    /// It also waits for a byte from [`BLOCK_FD`] when the sandbox is set up.
    Block,
    /// The sandbox is to be kept: its first process is [`init`]'s program, read from
    /// [`PROGRAM_FD`].
    Init,
}

/// A sandbox to be made.
pub(in crate::sandbox) struct Sandbox<'a> {
    /// The host directory that is `/workspace` inside.
    pub(in crate::sandbox) workspace: &'a Path,
    /// The host directory that is `/tmp` inside.
    pub(in crate::sandbox) temporary: &'a Path,
    /// More host directories to show, read-only, each at a place that is nobody else's.
    pub(in crate::sandbox) shown: &'a [(&'a Path, &'a Path)],
    /// Whether it has the host's network, or none.
    pub(in crate::sandbox) network: bool,
    /// How bubblewrap and its starter speak with each other.
    pub(in crate::sandbox) handshake: Handshake,
    /// The number under which bubblewrap gets the filter of system calls, if there is one.
    pub(in crate::sandbox) seccomp: Option<i32>,
    /// What runs in it: the program, its `$0` and its arguments.
    pub(in crate::sandbox) argv: &'a [OsString],
}

/// The arguments of bubblewrap, its `$0` first. The environment of the command is bubblewrap's
/// own: it is started with nothing else.
///
/// What can be written to: the workspace and `/tmp`, which are the slot's, and the directories
/// that are the sandbox's own and go with it, `/dev/shm` and the root directory among them.
pub(in crate::sandbox) fn bwrap_argv(
    bubblewrap: &Bubblewrap,
    sandbox: &Sandbox<'_>,
) -> Vec<OsString> {
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
    // Read-only: to the kernel, root is root without any capability, and could write /proc/sys
    // (whose core_pattern names a program that the host runs) and chmod what all sandboxes share of
    // /proc.
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

#[cfg(test)]
mod tests {
    use super::super::tests::bubblewrap;
    use super::*;
    use crate::sandbox::shell::Shell;

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
}
