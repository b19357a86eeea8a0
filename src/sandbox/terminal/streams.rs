//! The reading of a shell's output, and to which call it belongs.
//!
//! A shell has one pipe for each of its two output streams, for as long as it lives. It is read all the
//! time, so that nothing that runs in the background is ever held up by it. What came before the word
//! that a command has ended is that command's; what comes between two commands belongs to neither and
//! is kept apart. The pipe is the measure: what is in it at that moment was written before.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::watch::{Source, Watch};
use crate::sandbox::output::{Capture, Captured};
use crate::sandbox::spawn;

/// How often a pipe is read in one turn, so that a flood does not keep the others waiting.
const READS_PER_TURN: usize = 4;
/// How much is kept of what is printed between two calls, in characters of each stream.
const BACKGROUND_CHARS: usize = 10_000;
/// How much is read between two calls. A job that prints more than this is held up until the next one:
/// the thread is there for all sessions.
const BACKGROUND_LIMIT: u64 = 64 << 20;
/// No more than this is read at the end. Pipes hold 64 KiB, 1 MiB at the utmost unless the administrator
/// allows more; the bound matters where a process escaped and still writes.
const DRAIN_LIMIT: u64 = 16 << 20;

/// One output stream of a shell.
pub(super) struct Output {
    /// The read end, non-blocking; `None` after its end.
    pipe: Option<OwnedFd>,
    source: Source,
    limit_chars: usize,
    /// Of the present call.
    call: Option<Capture>,
    /// Since the latest one.
    background: Capture,
    background_bytes: u64,
    /// Not watched: it printed too much while nobody called.
    held_up: bool,
}

impl Output {
    /// A stream, and the write end for the shell, which is blocking.
    pub(super) fn new(source: Source, limit_chars: usize) -> io::Result<(Self, OwnedFd)> {
        let (pipe, writer) = spawn::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let output = Self {
            pipe: Some(pipe),
            source,
            limit_chars,
            call: None,
            background: Capture::new(BACKGROUND_CHARS),
            background_bytes: 0,
            held_up: false,
        };
        Ok((output, writer))
    }

    /// Has it watched.
    pub(super) fn watch(&self, watch: &Watch<'_>) -> io::Result<()> {
        match &self.pipe {
            Some(pipe) => watch.add(pipe.as_fd(), self.source),
            None => Ok(()),
        }
    }

    /// Reads a bounded part of what is there.
    pub(super) fn on_ready(&mut self, watch: &Watch<'_>, buffer: &mut [u8]) {
        for _ in 0..READS_PER_TURN {
            if self.read_once(watch, buffer) < buffer.len() {
                break;
            }
        }
        if self.call.is_none() && self.background_bytes > BACKGROUND_LIMIT {
            if let Some(pipe) = &self.pipe {
                watch.remove(pipe.as_fd());
            }
            self.held_up = true;
        }
    }

    /// What comes from here on belongs to a call. Gives what came since the latest one.
    pub(super) fn begin_call(&mut self, watch: &Watch<'_>, buffer: &mut [u8]) -> Captured {
        self.read_what_is_there(watch, buffer);
        let background = std::mem::replace(&mut self.background, Capture::new(BACKGROUND_CHARS));
        self.background_bytes = 0;
        self.call = Some(Capture::new(self.limit_chars));
        if std::mem::take(&mut self.held_up) {
            // It was watched before, so there is room.
            let _ = self.watch(watch);
        }
        background.finish()
    }

    /// The call has ended: gives what it printed.
    pub(super) fn end_call(&mut self, watch: &Watch<'_>, buffer: &mut [u8]) -> Captured {
        self.read_what_is_there(watch, buffer);
        self.call.take().map(Capture::finish).unwrap_or_default()
    }

    /// The shell has ended: gives what the call printed if there is one, and else what was printed
    /// since the latest one.
    pub(super) fn close(&mut self, watch: &Watch<'_>, buffer: &mut [u8]) -> Captured {
        let mut drained = 0;
        while drained < DRAIN_LIMIT {
            match self.read_once(watch, buffer) {
                0 => break,
                count => drained += count as u64,
            }
        }
        watch.remove_and_close(&mut self.pipe);
        let background = std::mem::replace(&mut self.background, Capture::new(0));
        self.call.take().unwrap_or(background).finish()
    }

    /// Reads as much as is in the pipe now, and not what is written meanwhile.
    fn read_what_is_there(&mut self, watch: &Watch<'_>, buffer: &mut [u8]) {
        let there = self.pipe.as_ref().map(rustix::io::ioctl_fionread);
        let mut left = there.and_then(Result::ok).unwrap_or(0);
        while left > 0 {
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match self.read_once(watch, &mut buffer[..size]) {
                0 => break,
                count => left = left.saturating_sub(count as u64),
            }
        }
    }

    /// Reads once: 0 if nothing is there.
    fn read_once(&mut self, watch: &Watch<'_>, buffer: &mut [u8]) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        loop {
            match rustix::io::read(pipe, &mut *buffer) {
                Ok(count) if count > 0 => {
                    match &mut self.call {
                        Some(call) => call.push(&buffer[..count]),
                        None => {
                            self.background.push(&buffer[..count]);
                            self.background_bytes += count as u64;
                        }
                    }
                    return count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return 0,
                _ => {
                    watch.remove_and_close(&mut self.pipe);
                    return 0;
                }
            }
        }
    }
}
