//! A program of Slurm's that runs beside this thread, and what it says.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};

use super::commands::last_words;
use crate::error::BackendError;
use crate::interrupt::Interrupt;

/// How long one of its short programs may take.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// How much of what a program says is kept.
const KEPT: usize = 8 * 1024;
/// How much is read of what a program prints: some 100 bytes for each of the most jobs.
const MOST_PRINTED: usize = 2 * 1024 * 1024;
/// How often it is looked whether a short program has ended.
const LOOK: Duration = Duration::from_millis(5);

/// A program that was started, and what it has said.
pub(super) struct Program {
    pub(super) child: Child,
    pub(super) out: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    /// What it has said on its standard output and was not read as lines yet.
    pub(super) line: Vec<u8>,
    /// The end of what it has said on its standard error.
    pub(super) words: Vec<u8>,
    /// Whether it has ended well.
    succeeded: bool,
    /// Whether SIGKILL has ended it.
    pub(super) was_killed: bool,
}

impl Program {
    /// Starts it; it dies with this thread.
    pub(super) fn start(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: one system call on numbers, between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
        }
        let mut child = command.spawn()?;
        let out = child.stdout.take().map(OwnedFd::from);
        let err = child.stderr.take().map(OwnedFd::from);
        for pipe in [&out, &err].into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let (line, words) = (Vec::new(), Vec::new());
        Ok(Self { child, out, err, line, words, succeeded: false, was_killed: false })
    }

    /// Reads what there is.
    pub(super) fn fill(&mut self) {
        read_into(&mut self.out, &mut self.line);
        read_into(&mut self.err, &mut self.words);
        let over = self.words.len().saturating_sub(KEPT);
        self.words.drain(..over);
    }

    /// The lines that have come.
    pub(super) fn read_lines(&mut self) -> Vec<String> {
        self.fill();
        let mut lines = Vec::new();
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        // Nothing of ours is longer.
        if self.line.len() > KEPT {
            self.line.clear();
        }
        lines
    }

    /// Whether it has ended and all that it said was read.
    pub(super) fn has_ended(&mut self) -> bool {
        // What a grandchild keeps open is not waited for.
        let has_ended = match self.child.try_wait() {
            Ok(Some(status)) => {
                self.succeeded = status.success();
                self.was_killed = status.signal() == Some(Signal::KILL.as_raw());
                true
            }
            Ok(None) => false,
            Err(_) => true,
        };
        if has_ended {
            self.fill();
        }
        has_ended
    }
}

/// Reads what there is in a pipe; closes it at its end.
fn read_into(pipe: &mut Option<OwnedFd>, into: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Some(open) = pipe.as_ref().filter(|_| into.len() <= MOST_PRINTED) {
        match rustix::io::read(open, &mut buffer) {
            Ok(0) => *pipe = None,
            Ok(count) => into.extend_from_slice(&buffer[..count]),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return,
            Err(_) => *pipe = None,
        }
    }
}

/// What a short program prints. Blocks, for as long as one may take at most.
///
/// # Errors
/// It cannot be started, fails, does not answer in time, or it was interrupted.
pub(super) fn ask(
    name: &str,
    argv: &[OsString],
    interrupt: &Interrupt,
) -> Result<String, BackendError> {
    let mut command = new_command(name);
    command.args(argv);
    let cannot =
        |error| BackendError::with_source(format!("Slurm's {name} cannot be started"), error);
    let mut program = Program::start(command).map_err(cannot)?;
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        program.fill();
        if program.has_ended() {
            break;
        }
        let is_late = Instant::now() >= deadline;
        if is_late || interrupt.wait_timeout(LOOK) {
            let _ = (program.child.kill(), program.child.wait());
            return Err(match is_late {
                true => BackendError::new(format!("Slurm's {name} does not answer")),
                false => BackendError::interrupted(),
            });
        }
    }
    if !program.succeeded {
        let why = last_words(&String::from_utf8_lossy(&program.words));
        return Err(BackendError::new(format!("Slurm's {name} fails: {why}")));
    }
    Ok(String::from_utf8_lossy(&program.line).into_owned())
}

/// One of Slurm's programs.
pub(super) fn new_command(name: &str) -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "no command of a model's: a program of Slurm's, which needs this environment"
    )]
    let command = Command::new(name);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_read_as_it_comes() {
        let mut command = new_command("sh");
        command.args(["-c", "echo one; echo two; printf half; echo oops >&2; exit 3"]);
        let mut program = Program::start(command).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut lines = Vec::new();
        while !program.has_ended() {
            lines.extend(program.read_lines());
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        lines.extend(program.read_lines());
        assert_eq!(lines, ["one", "two"]);
        assert_eq!((&*program.line, &*program.words), (&b"half"[..], &b"oops\n"[..]));
    }
}
