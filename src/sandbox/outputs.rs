//! What a command prints: its two streams, and the files that keep the whole of them.
//!
//! Shared by commands of both kinds (`running`, `entered`). When the last process has ended, the
//! outputs *settle*: what is in the pipes is drained – one that somebody still holds open delays
//! nothing – and what of it goes to a file (`spool`) is written.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use super::host::Host;
use super::output::Captured;
use super::spawn::sealed_memory_file;
use super::spool::{Keep, Output, SETTLE_LIMIT, log_given_up};
use super::stream::{Source, Stream, Watch};
use super::supervisor::CommandSpec;
use super::workspace::GONE;
use crate::tool::OutputOrder;

/// The outputs of one command.
pub(super) struct Outputs {
    stdout: Stream,
    stderr: Stream,
    /// Where the whole output is kept.
    keep: Option<Keep>,
    settling: Settling,
}

/// What a command is to read from its standard input; `None` for nothing.
///
/// # Errors
/// Whatever the system refuses.
pub(super) fn stdin_of(spec: &CommandSpec) -> io::Result<Option<OwnedFd>> {
    let text = Some(spec.stdin.as_bytes()).filter(|text| !text.is_empty());
    text.map(|text| sealed_memory_file(c"tool-stdin", text)).transpose()
}

/// How far the output is, once the processes have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settling {
    /// They have not.
    NotYet,
    /// Some of it is still to be written.
    Since,
    /// All is read and written, or was given up.
    Done,
}

impl Outputs {
    /// The outputs of a command, watched, and the write ends for it. Does not block.
    ///
    /// # Errors
    /// A NUL in the command; a workspace that is gone; whatever the system refuses.
    pub(super) fn new(
        spec: &CommandSpec,
        host: &Host,
        watch: &Watch<'_>,
    ) -> io::Result<(Self, [OwnedFd; 2])> {
        if spec.command.contains('\0') {
            return Err(super::spawn::embedded_nul());
        }
        if !spec.workspace.is_there() {
            return Err(io::Error::new(io::ErrorKind::NotFound, GONE));
        }
        let limit = spec.output_limit_chars;
        let (stdout, stdout_writer) = Stream::new(Output::Stdout, limit)?;
        let (stderr, stderr_writer) = match spec.output_order {
            OutputOrder::Separate => Stream::new(Output::Stderr, limit)?,
            OutputOrder::Interleaved => {
                (Stream::without_pipe(Output::Stderr, limit), stdout_writer.try_clone()?)
            }
        };
        let spool = host.spool.clone().filter(|_| spec.output_file_bytes > 0);
        let (bytes, sandboxed) = (spec.output_file_bytes, host.isolation.is_sandboxed());
        let keep = spool.map(|spool| Keep::new(spool, spec.workspace.clone(), bytes, sandboxed));
        let writers = [stdout_writer, stderr_writer];
        if let Some(user) = spec.workspace.owner() {
            // Of a pipe, `/dev/stderr` can be opened by its owner only.
            for pipe in &writers {
                rustix::fs::fchown(pipe, Some(user.uid()), Some(user.gid()))?;
            }
        }
        for (stream, source) in [(&stdout, Source::Stdout), (&stderr, Source::Stderr)] {
            if let Some(pipe) = &stream.pipe {
                watch.add(pipe.as_fd(), source)?;
            }
        }
        Ok((Self { stdout, stderr, keep, settling: Settling::NotYet }, writers))
    }

    /// Deals with an event of the streams and of their files; of others it knows nothing.
    pub(super) fn on_event(&mut self, source: Source, watch: &Watch<'_>, buffer: &mut [u8]) {
        match source {
            Source::Stdout => self.stdout.read(watch, buffer, self.keep.as_mut()),
            Source::Stderr => self.stderr.read(watch, buffer, self.keep.as_mut()),
            Source::Written => {
                if let Some(keep) = &self.keep {
                    keep.heard();
                }
                self.stdout.resume(watch);
                self.stderr.resume(watch);
            }
            Source::Reports | Source::Child | Source::JailEnd | Source::JailSocket => {}
        }
    }

    /// The processes have ended: what they printed is read and written, as far as that is possible
    /// now. Gives a deadline if that takes longer. Does not block; to be called again after each
    /// event.
    pub(super) fn settle(
        &mut self,
        watch: &Watch<'_>,
        buffer: &mut [u8],
        now: Instant,
    ) -> Option<Instant> {
        if self.settling == Settling::Done {
            return None;
        }
        let stdout = self.stdout.settle(watch, buffer, self.keep.as_mut());
        let stderr = self.stderr.settle(watch, buffer, self.keep.as_mut());
        if stdout && stderr {
            self.settling = Settling::Done;
            return None;
        }
        let first = self.settling == Settling::NotYet;
        self.settling = Settling::Since;
        first.then(|| now + SETTLE_LIMIT)
    }

    /// The deadline of settling is over, if it was that: what is not written is given up.
    pub(super) fn gives_up(&mut self) -> bool {
        if self.settling != Settling::Since {
            return false;
        }
        log_given_up();
        self.settling = Settling::Done;
        true
    }

    /// Whether all is read and written, or was given up.
    pub(super) fn are_settled(&self) -> bool {
        self.settling == Settling::Done
    }

    /// The pipes of a command that is over to which something may still write.
    pub(super) fn left(&self) -> Vec<BorrowedFd<'_>> {
        [&self.stdout, &self.stderr].into_iter().filter_map(Stream::left).collect()
    }

    /// What was captured of standard output and standard error. Does not block.
    pub(super) fn finish(self, watch: &Watch<'_>) -> [Captured; 2] {
        if let Some(keep) = &self.keep {
            keep.unwatch(watch);
        }
        [self.stdout.finish(watch), self.stderr.finish(watch)]
    }
}
