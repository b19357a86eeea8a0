//! What can be seen of a pane from outside its sandbox: whether its program has read what was
//! typed, and whether its shell waits for a command.
//!
//! The kernel knows both. A terminal has a queue of input that nobody has read; a shell that waits
//! for a command has switched the terminal to reading single keys, is the terminal's foreground,
//! and sleeps. So nothing is typed and no prompt is changed to find out; and whatever the model
//! makes of its shell, it can only deceive itself.
//!
//! All is looked up beneath the sandbox's own root directory, without following any link, and held
//! for no longer than a look takes: somebody who keeps a terminal open keeps it from ending.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Programs that wait for a command when they wait at all, as the kernel knows them.
const SHELLS: [&str; 7] = ["bash", "sh", "zsh", "fish", "ksh", "mksh", "rbash"];

/// A pane, by the numbers of its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pane {
    /// Its first process, a shell.
    pub(super) shell: u32,
    /// Its terminal: the number in `/dev/pts`.
    pub(super) terminal: u32,
}

impl Pane {
    /// What tmux says to `#{pane_pid} #{pane_tty}`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (shell, terminal) = text.split_once(' ')?;
        let terminal = terminal.strip_prefix("/dev/pts/")?;
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        Some(Self { shell: number(shell)?, terminal: number(terminal)? })
    }
}

/// What one look shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    /// How many bytes of input nobody has read. Where the program reads lines, only whole lines
    /// count.
    pub(super) unread: u64,
    /// Whether the terminal gives its program whole lines, as it does unless the program edits them
    /// itself.
    pub(super) gives_lines: bool,
    /// The process that leads the foreground, if it lives.
    pub(super) leader: Option<Leader>,
}

/// A process that has the keyboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leader {
    /// Its number.
    pub(super) pid: u32,
    /// Its name, as the kernel knows it.
    pub(super) name: String,
    /// Whether it waits for something.
    pub(super) sleeps: bool,
    /// How often it was put off a processor: as long as that stays the same it has not run.
    pub(super) switches: u64,
}

impl Look {
    /// Whether the shell has read all that was typed and waits, for a command as far as one can
    /// tell.
    pub(super) fn waits_for_command(&self, pane: Pane) -> bool {
        !self.gives_lines
            && self.unread == 0
            && self.leader.as_ref().is_some_and(|leader| {
                leader.sleeps
                    && (leader.pid == pane.shell || SHELLS.contains(&leader.name.as_str()))
            })
    }
}

/// The root directory of a sandbox, to look beneath.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

impl Root {
    /// What is beneath this directory, which is a sandbox's root.
    pub(super) fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// Whether it is the root directory of this process.
    fn is_of_this_process(&self) -> io::Result<bool> {
        let (one, other) = (rustix::fs::fstat(&self.0)?, rustix::fs::stat("/")?);
        Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
    }

    /// Looks at a pane. Does not wait for anything.
    ///
    /// # Errors
    /// Where it is gone, or this process may not look.
    pub(super) fn look(&self, pane: Pane) -> io::Result<Look> {
        // A process from outside is in no sandbox's own `/proc`; where there is no sandbox, all are
        // in the machine's.
        let is_in_there = rustix::fs::readlinkat(self.0.as_fd(), "proc/self", Vec::new()).is_ok();
        if is_in_there && !self.is_of_this_process()? {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it has no /proc of its own"));
        }
        let (unread, gives_lines) = {
            let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK;
            let terminal = self.open(&format!("dev/pts/{}", pane.terminal), flags)?;
            let modes = rustix::termios::tcgetattr(&terminal)?.local_modes;
            let gives_lines = modes.contains(rustix::termios::LocalModes::ICANON);
            (rustix::io::ioctl_fionread(&terminal)?, gives_lines)
        };
        let stat = self.read(&format!("proc/{}/stat", pane.shell))?;
        let leader = foreground(&stat).and_then(|pid| {
            let status = self.read(&format!("proc/{pid}/status")).ok()?;
            leader(pid, &status)
        });
        Ok(Look { unread, gives_lines, leader })
    }

    fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(self.0.as_fd(), path, flags, Mode::empty(), resolve)?)
    }

    /// The beginning of a file of `/proc`, which makes it up when it is read.
    fn read(&self, path: &str) -> io::Result<String> {
        let file = self.open(path, OFlags::RDONLY)?;
        let mut buffer = vec![0; 8 * 1024];
        let count = rustix::io::read(&file, &mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
    }
}

/// The leader of the foreground of the terminal of a process with this `stat`.
fn foreground(stat: &str) -> Option<u32> {
    // The name is in parentheses, and may hold any.
    let (_, fields) = stat.rsplit_once(')')?;
    // State, parent, group, session, terminal, its foreground.
    fields.split_ascii_whitespace().nth(5)?.parse().ok().filter(|&pid| pid > 0)
}

/// The process with this `status`.
fn leader(pid: u32, status: &str) -> Option<Leader> {
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(str::trim)
    };
    let count = |name| field(name)?.parse::<u64>().ok();
    Some(Leader {
        pid,
        name: field("Name")?.to_owned(),
        sleeps: field("State")?.starts_with('S'),
        switches: count("voluntary_ctxt_switches")?
            .wrapping_add(count("nonvoluntary_ctxt_switches")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pane_is_two_numbers() {
        assert_eq!(Pane::parse("5 /dev/pts/0"), Some(Pane { shell: 5, terminal: 0 }));
        for wrong in [
            "",
            "5",
            "5 /dev/tty1",
            "x /dev/pts/0",
            "5 /dev/pts/../0",
            "-5 /dev/pts/0",
            "+5 /dev/pts/0",
            "5 /dev/pts/",
            "5 /dev/pts/0 1",
            "99999999999 /dev/pts/0",
            " /dev/pts/0",
        ] {
            assert_eq!(Pane::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_foreground_is_found_whatever_the_name() {
        assert_eq!(foreground("5 (bash) S 4 5 5 34816 7 4194304 279"), Some(7));
        assert_eq!(foreground("5 (a) S 1 1 1 1 1 1) S 4 5 5 34816 8 0"), Some(8));
        assert_eq!(foreground("5 (bash) S 4 5 5 0 -1 0"), None);
        assert_eq!(foreground("5 (bash"), None);
        assert_eq!(foreground(""), None);
    }

    #[test]
    fn only_a_shell_that_sleeps_over_an_empty_line_waits_for_a_command() {
        let pane = Pane { shell: 5, terminal: 0 };
        let status = "Name:\tbash\nState:\tS (sleeping)\nvoluntary_ctxt_switches:\t7\n\
                      nonvoluntary_ctxt_switches:\t3\n";
        let waiting = Look { unread: 0, gives_lines: false, leader: leader(5, status) };
        assert_eq!(waiting.leader.as_ref().map(|leader| leader.switches), Some(10));
        assert!(waiting.waits_for_command(pane));
        let with = |change: fn(&mut Look)| {
            let mut look = waiting.clone();
            change(&mut look);
            look.waits_for_command(pane)
        };
        let leader = |look: &mut Look| look.leader.clone().unwrap();
        assert!(!with(|look| look.unread = 1));
        assert!(!with(|look| look.gives_lines = true));
        assert!(!with(|look| look.leader = None));
        let with_leader = |pid, name: &str, sleeps| {
            let mut look = waiting.clone();
            look.leader = Some(Leader { pid, name: name.to_owned(), sleeps, ..leader(&mut look) });
            look.waits_for_command(pane)
        };
        assert!(!with_leader(5, "bash", false));
        assert!(!with_leader(6, "vim", true));
        assert!(with_leader(6, "zsh", true), "a shell within the shell");
        assert!(with_leader(5, "python3", true), "what has taken the shell's place");
    }

    #[test]
    fn a_process_without_such_a_terminal_cannot_be_looked_at() {
        let root = Root::new(rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap());
        assert!(root.look(Pane { shell: 1, terminal: u32::MAX }).is_err());
        assert!(root.open("proc/self/stat", OFlags::RDONLY).is_err(), "a link is not followed");
    }
}
