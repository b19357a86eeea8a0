//! The reading of a shell's output, and to which call it belongs.
//!
//! A shell has one pipe for each of its two output streams, for as long as it lives. What came before the
//! word that a command has ended is that command's; what comes between two commands belongs to neither and
//! is kept apart. The pipe is the measure: what is in it at that moment was written before.
//!
//! # Complete outputs
//! What of a call's output its result does not show is in a file, as of any command
//! ([`spool`](crate::sandbox::spool)): a pipe is read all the time, but for while its last piece is on its way
//! to the disk. The call is answered when all of it is written, or [`SETTLE_LIMIT`] after its end; what the
//! shell prints meanwhile is read, and belongs to no call. What is printed between two calls has no file:
//! nobody has asked for it, and it may have no end. Its beginning and its end are kept, and its length.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;

use super::watch::{Source, Watch};
use crate::sandbox::output::{Capture, Captured};
use crate::sandbox::recording::Recording;
use crate::sandbox::spawn;
use crate::sandbox::spool::{self, Keep, Listener, SETTLE_LIMIT, log_given_up};

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

/// The shell's standard output.
pub(super) const STDOUT: Source = Source::File(0);
/// Its standard error.
pub(super) const STDERR: Source = Source::File(1);
/// A part of a call's output was written to its file.
pub(super) const WRITTEN: Source = Source::File(2);

impl Listener for Watch<'_> {
    fn listen(&self, written: BorrowedFd<'_>) -> io::Result<()> {
        self.add(written, WRITTEN)
    }

    fn ignore(&self, written: BorrowedFd<'_>) {
        self.remove(written);
    }
}

/// Both output streams of a shell.
pub(super) struct Streams {
    stdout: Stream,
    stderr: Stream,
    /// Where the whole output of the present call is kept.
    keep: Option<Keep>,
    /// When what is not written is given up, once the call has ended.
    give_up: Option<Instant>,
    /// It is.
    given_up: bool,
}

impl Streams {
    /// The streams, watched, and the write ends for the shell, which are blocking.
    ///
    /// # Errors
    /// Whatever the system refuses.
    pub(super) fn new(limit_chars: usize, watch: &Watch<'_>) -> io::Result<(Self, [OwnedFd; 2])> {
        let (stdout, stdout_writer) = Stream::new(spool::Output::Stdout, limit_chars)?;
        let (stderr, stderr_writer) = Stream::new(spool::Output::Stderr, limit_chars)?;
        for stream in [&stdout, &stderr] {
            if let Some(pipe) = &stream.pipe {
                watch.add(pipe.as_fd(), stream.source)?;
            }
        }
        let streams = Self { stdout, stderr, keep: None, give_up: None, given_up: false };
        Ok((streams, [stdout_writer, stderr_writer]))
    }

    fn both(&mut self) -> [&mut Stream; 2] {
        [&mut self.stdout, &mut self.stderr]
    }

    /// Deals with an event of the streams and of their files. Reads a bounded part of what is there.
    pub(super) fn on_event(&mut self, source: Source, watch: &Watch<'_>, buffer: &mut [u8]) {
        match source {
            STDOUT => self.stdout.on_ready(watch, buffer, self.keep.as_mut()),
            STDERR => self.stderr.on_ready(watch, buffer, self.keep.as_mut()),
            _ => {
                if let Some(keep) = &self.keep {
                    keep.heard();
                }
                self.stdout.resume(watch);
                self.stderr.resume(watch);
            }
        }
    }

    /// What comes from here on belongs to a call, and is kept by `keep`. Gives what came since the latest
    /// one.
    pub(super) fn begin_call(
        &mut self,
        keep: Option<Keep>,
        watch: &Watch<'_>,
        buffer: &mut [u8],
    ) -> [Captured; 2] {
        self.keep = keep;
        self.both().map(|stream| stream.begin_call(watch, buffer))
    }

    /// What comes from here on belongs to no call. The call's is to [`settle`](Self::settle) now.
    pub(super) fn end_call(&mut self, watch: &Watch<'_>, buffer: &mut [u8], now: Instant) {
        self.stdout.end_call(watch, buffer, self.keep.as_mut());
        self.stderr.end_call(watch, buffer, self.keep.as_mut());
        self.give_up.get_or_insert(now + SETTLE_LIMIT);
    }

    /// Whether what belongs to the ended call is written, or was given up. Does not block; to be called
    /// again after each event, and at [`deadline`](Self::deadline).
    pub(super) fn settle(&mut self, watch: &Watch<'_>, now: Instant) -> bool {
        let settled = [
            self.stdout.settle(watch, self.keep.as_mut()),
            self.stderr.settle(watch, self.keep.as_mut()),
        ];
        settled == [true; 2] || self.gives_up(now)
    }

    fn gives_up(&mut self, now: Instant) -> bool {
        if !self.given_up && self.give_up.is_some_and(|due| due <= now) {
            self.given_up = true;
            log_given_up();
        }
        self.given_up
    }

    /// When [`settle`](Self::settle) waits no longer.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.give_up
    }

    /// What the call printed that has [settled](Self::settle).
    pub(super) fn finish_call(&mut self, watch: &Watch<'_>) -> [Captured; 2] {
        let finished =
            self.both().map(|stream| stream.call.take().map(|call| call.recording.finish()));
        if let Some(keep) = self.keep.take() {
            keep.unwatch(watch);
        }
        (self.give_up, self.given_up) = (None, false);
        finished.map(Option::unwrap_or_default)
    }

    /// The shell has ended: reads what is left, as far as what was read before is written. Whether it was
    /// read and written, or given up. Does not block; to be called again as [`settle`](Self::settle).
    pub(super) fn drain(&mut self, watch: &Watch<'_>, buffer: &mut [u8], now: Instant) -> bool {
        self.give_up.get_or_insert(now + SETTLE_LIMIT);
        let drained = [
            self.stdout.drain(watch, buffer, self.keep.as_mut()),
            self.stderr.drain(watch, buffer, self.keep.as_mut()),
        ];
        if drained == [true; 2] { self.settle(watch, now) } else { self.gives_up(now) }
    }

    /// The shell has ended, and its pipes are [drained](Self::drain). Gives what the call printed if there
    /// is one, and else what was printed since the latest one.
    pub(super) fn close(mut self, watch: &Watch<'_>) -> [Captured; 2] {
        let called = self.stdout.call.is_some();
        let printed = self.finish_call(watch);
        let background = self.both().map(|stream| {
            watch.remove_and_close(&mut stream.pipe);
            std::mem::replace(&mut stream.background, Capture::new(0)).finish()
        });
        if called { printed } else { background }
    }
}

/// One output stream of a shell.
struct Stream {
    output: spool::Output,
    source: Source,
    limit_chars: usize,
    /// The read end, non-blocking; `None` after its end.
    pipe: Option<OwnedFd>,
    /// The present call's.
    call: Option<Part>,
    /// What belongs to no call, since the latest one.
    background: Capture,
    background_bytes: u64,
    /// Not read, and not watched: until what was read is written, or until the next call.
    paused: bool,
    /// Read at the end.
    drained: u64,
}

/// A call's part of a stream.
struct Part {
    recording: Recording,
    /// Nothing that is read belongs to it any more.
    ended: bool,
}

impl Part {
    fn must_wait(&mut self) -> bool {
        !self.ended && self.recording.is_busy()
    }
}

impl Stream {
    fn new(output: spool::Output, limit_chars: usize) -> io::Result<(Self, OwnedFd)> {
        let (pipe, writer) = spawn::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let stream = Self {
            output,
            source: match output {
                spool::Output::Stdout => STDOUT,
                spool::Output::Stderr => STDERR,
            },
            limit_chars,
            pipe: Some(pipe),
            call: None,
            background: Capture::new(BACKGROUND_CHARS),
            background_bytes: 0,
            paused: false,
            drained: 0,
        };
        Ok((stream, writer))
    }

    fn on_ready(&mut self, watch: &Watch<'_>, buffer: &mut [u8], mut keep: Option<&mut Keep>) {
        if self.paused {
            return;
        }
        for _ in 0..READS_PER_TURN {
            if self.read_once(watch, buffer, keep.as_deref_mut()) < buffer.len() {
                break;
            }
        }
        self.hand_over_if_full(watch, keep);
        if self.must_wait() {
            self.pause(watch);
        }
    }

    fn pause(&mut self, watch: &Watch<'_>) {
        if let (false, Some(pipe)) = (self.paused, &self.pipe) {
            watch.pause(pipe.as_fd(), self.source);
        }
        self.paused = true;
    }

    fn hand_over_if_full(&mut self, watch: &Watch<'_>, keep: Option<&mut Keep>) {
        if let (Some(Part { recording, ended: false }), Some(keep)) = (&mut self.call, keep)
            && !recording.is_busy()
        {
            recording.hand_over_if_full(keep, watch);
        }
    }

    /// Whether nothing may be read just now.
    fn must_wait(&mut self) -> bool {
        match &mut self.call {
            Some(call) if !call.ended => call.must_wait(),
            _ => self.background_bytes > BACKGROUND_LIMIT,
        }
    }

    /// Goes on with a stream that was paused, if nothing is in the way any more.
    fn resume(&mut self, watch: &Watch<'_>) {
        if !self.paused || self.must_wait() {
            return;
        }
        self.paused = false;
        if let Some(pipe) = &self.pipe {
            watch.resume(pipe.as_fd(), self.source);
        }
    }

    fn begin_call(&mut self, watch: &Watch<'_>, buffer: &mut [u8]) -> Captured {
        self.read_what_is_there(watch, buffer, None);
        let background = std::mem::replace(&mut self.background, Capture::new(BACKGROUND_CHARS));
        self.background_bytes = 0;
        let recording = Recording::new(self.output, self.limit_chars);
        self.call = Some(Part { recording, ended: false });
        self.resume(watch);
        background.finish()
    }

    fn end_call(&mut self, watch: &Watch<'_>, buffer: &mut [u8], keep: Option<&mut Keep>) {
        // No more than a pipe holds, also where the file is behind.
        self.read_what_is_there(watch, buffer, keep);
        if let Some(call) = &mut self.call {
            call.ended = true;
        }
        self.resume(watch);
    }

    /// Whether all of the ended call is written.
    fn settle(&mut self, watch: &Watch<'_>, keep: Option<&mut Keep>) -> bool {
        self.call.as_mut().is_none_or(|call| call.recording.settle(keep, watch))
    }

    /// Reads what is left, as far as what was read before is written.
    fn drain(&mut self, watch: &Watch<'_>, buffer: &mut [u8], mut keep: Option<&mut Keep>) -> bool {
        while self.pipe.is_some() {
            if self.call.as_mut().is_some_and(Part::must_wait) {
                self.pause(watch);
                return false;
            }
            let count = self.read_once(watch, buffer, keep.as_deref_mut());
            self.hand_over_if_full(watch, keep.as_deref_mut());
            self.drained += count as u64;
            if count == 0 || self.drained >= DRAIN_LIMIT {
                // Nobody reads what somebody may still write.
                watch.remove_and_close(&mut self.pipe);
            }
        }
        if let Some(call) = &mut self.call {
            call.ended = true;
        }
        true
    }

    /// Reads as much as is in the pipe now, and not what is written meanwhile.
    fn read_what_is_there(
        &mut self,
        watch: &Watch<'_>,
        buffer: &mut [u8],
        mut keep: Option<&mut Keep>,
    ) {
        let there = self.pipe.as_ref().map(rustix::io::ioctl_fionread);
        let mut left = there.and_then(Result::ok).unwrap_or(0);
        while left > 0 {
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match self.read_once(watch, &mut buffer[..size], keep.as_deref_mut()) {
                0 => break,
                count => left = left.saturating_sub(count as u64),
            }
        }
    }

    /// Reads once: 0 if nothing is there.
    fn read_once(
        &mut self,
        watch: &Watch<'_>,
        buffer: &mut [u8],
        keep: Option<&mut Keep>,
    ) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        loop {
            match rustix::io::read(pipe, &mut *buffer) {
                Ok(count) if count > 0 => {
                    match &mut self.call {
                        Some(Part { recording, ended: false }) => {
                            recording.push(&buffer[..count], keep);
                        }
                        _ => {
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
