//! The file descriptors of one running command, as the supervisor's epoll watches them, and the
//! reading of its output.
//!
//! Reads never block and are bounded in each turn. What was read goes to a `recording`, which is
//! never given more than was written of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;

use super::jail;
use super::output::Captured;
use super::recording::Recording;
use super::spawn;
use super::spool::{Keep, Listener, Output};

/// The size of the buffer that pipes are read through.
pub(super) const READ_BUFFER: usize = 64 * 1024;
/// How often one pipe is read in one turn, so that a command that floods its output does not keep
/// the others waiting.
const READS_PER_TURN: usize = 4;
/// No more than this is read from a pipe at the end. Pipes hold 64 KiB, 1 MiB at the utmost unless
/// the administrator allows more; the bound matters where a process escaped and still writes.
const DRAIN_LIMIT: usize = 16 << 20;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The command's standard output.
    Stdout,
    /// The command's standard error.
    Stderr,
    /// The pipe that the reaper reports to.
    Reports,
    /// The end of the reaper.
    Child,
    /// The end of a jail's last process.
    JailEnd,
    /// The socket to a jail's first process.
    JailSocket,
    /// A part of the output was written to its file.
    Written,
}

impl Source {
    const ALL: [Self; 7] = [
        Self::Stdout,
        Self::Stderr,
        Self::Reports,
        Self::Child,
        Self::JailEnd,
        Self::JailSocket,
        Self::Written,
    ];
}

/// The events of one command in the supervisor's epoll.
pub(super) struct Watch<'a> {
    /// The epoll.
    pub(super) epoll: &'a OwnedFd,
    /// The command's number.
    pub(super) id: u64,
}

impl Source {
    /// What it is to a jail, if it is of one.
    pub(super) fn of_jail(self) -> Option<jail::Source> {
        match self {
            Self::JailSocket => Some(jail::Source::Socket),
            Self::JailEnd => Some(jail::Source::End),
            _ => None,
        }
    }
}

impl jail::Events for Watch<'_> {
    fn add(&self, fd: BorrowedFd<'_>, source: jail::Source) -> io::Result<()> {
        let source = match source {
            jail::Source::Socket => Source::JailSocket,
            jail::Source::End => Source::JailEnd,
        };
        Watch::add(self, fd, source)
    }

    fn remove(&self, fd: BorrowedFd<'_>) {
        Watch::remove(self, fd);
    }
}

impl Watch<'_> {
    /// The command and the source that an event's data stands for.
    pub(super) fn decode(data: u64) -> Option<(u64, Source)> {
        Some((data >> 3, *Source::ALL.get((data & 7) as usize)?))
    }

    /// Has `fd` watched for something to read, or for an end.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        let data = epoll::EventData::new_u64(self.id << 3 | source as u64);
        Ok(epoll::add(self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    /// Has a watched `fd` left alone for a while. Unlike removing it, this can be undone without
    /// fail.
    pub(super) fn pause(&self, fd: BorrowedFd<'_>, source: Source) {
        // An end is reported all the same, but, edge-triggered, only once.
        self.modify(fd, source, epoll::EventFlags::ET);
    }

    /// Has a paused `fd` watched as before.
    pub(super) fn resume(&self, fd: BorrowedFd<'_>, source: Source) {
        self.modify(fd, source, epoll::EventFlags::IN);
    }

    fn modify(&self, fd: BorrowedFd<'_>, source: Source, flags: epoll::EventFlags) {
        let data = epoll::EventData::new_u64(self.id << 3 | source as u64);
        if let Err(error) = epoll::modify(self.epoll, fd, data, flags) {
            log::error!("cannot change what is watched: {error}");
        }
    }

    /// Stops watching. Must come before a file descriptor is closed: a fork of the host, made by
    /// whomever, may hold a copy, and then closing ours does not end the events.
    pub(super) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(self.epoll, fd);
    }

    /// Stops watching, and closes.
    pub(super) fn remove_and_close(&self, fd: &mut Option<OwnedFd>) {
        if let Some(fd) = fd.take() {
            self.remove(fd.as_fd());
        }
    }
}

impl Listener for Watch<'_> {
    fn listen(&self, written: BorrowedFd<'_>) -> io::Result<()> {
        self.add(written, Source::Written)
    }

    fn ignore(&self, written: BorrowedFd<'_>) {
        self.remove(written);
    }
}

/// One output stream of a command.
pub(super) struct Stream {
    /// The read end, non-blocking; `None` after its end.
    pub(super) pipe: Option<OwnedFd>,
    /// The same when the command is over, if something holds the other end still.
    left: Option<OwnedFd>,
    source: Source,
    recording: Recording,
    /// Not read, and not watched, until what was read is written.
    paused: bool,
    /// Read to its end.
    drained: bool,
    drained_bytes: usize,
}

impl Stream {
    /// A stream, and the write end for the command, which is blocking.
    pub(super) fn new(output: Output, limit_chars: usize) -> io::Result<(Self, OwnedFd)> {
        let (pipe, writer) = spawn::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok((Self { pipe: Some(pipe), ..Self::without_pipe(output, limit_chars) }, writer))
    }

    /// A stream to which nothing is ever written.
    pub(super) fn without_pipe(output: Output, limit_chars: usize) -> Self {
        Self {
            pipe: None,
            left: None,
            source: match output {
                Output::Stdout => Source::Stdout,
                Output::Stderr => Source::Stderr,
            },
            recording: Recording::new(output, limit_chars),
            paused: false,
            drained: false,
            drained_bytes: 0,
        }
    }

    /// Reads a bounded part of what is there. Once much of it is to be kept, that is handed over,
    /// and nothing more is read before [`resume`](Self::resume).
    pub(super) fn read(
        &mut self,
        watch: &Watch<'_>,
        buffer: &mut [u8],
        mut keep: Option<&mut Keep>,
    ) {
        if self.paused {
            return;
        }
        for _ in 0..READS_PER_TURN {
            if self.read_once(watch, buffer, keep.as_deref_mut()) < buffer.len() {
                break;
            }
        }
        if let Some(keep) = keep {
            self.recording.hand_over_if_full(keep, watch);
            if self.recording.is_busy() {
                self.pause(watch);
            }
        }
    }

    fn pause(&mut self, watch: &Watch<'_>) {
        if let (false, Some(pipe)) = (self.paused, &self.pipe) {
            watch.pause(pipe.as_fd(), self.source);
        }
        self.paused = true;
    }

    /// Goes on with a stream that was paused, if what was read is written.
    pub(super) fn resume(&mut self, watch: &Watch<'_>) {
        if !self.paused || self.recording.is_busy() {
            return;
        }
        self.paused = false;
        if let Some(pipe) = &self.pipe {
            watch.resume(pipe.as_fd(), self.source);
        }
    }

    /// Reads what is there, and no more: 0 if nothing is.
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
                    self.recording.push(&buffer[..count], keep);
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

    /// After the end of the command's last process: reads what is left in the pipe, as far as what
    /// was read before is written. Whether all is read and written. Does not block; to be called
    /// again after [`Source::Written`].
    pub(super) fn settle(
        &mut self,
        watch: &Watch<'_>,
        buffer: &mut [u8],
        mut keep: Option<&mut Keep>,
    ) -> bool {
        loop {
            if self.recording.is_busy() {
                self.pause(watch);
                return false;
            }
            if self.drained {
                // What may still be written is not read.
                if let Some(pipe) = self.pipe.take() {
                    watch.remove(pipe.as_fd());
                    self.left = Some(pipe);
                }
                return self.recording.settle(keep, watch);
            }
            let count = self.read_once(watch, buffer, keep.as_deref_mut());
            self.drained_bytes += count;
            self.drained = count == 0 || self.drained_bytes >= DRAIN_LIMIT;
            if let Some(keep) = keep.as_deref_mut() {
                self.recording.hand_over_if_full(keep, watch);
            }
        }
    }

    /// The pipe of a command that is over, if something may still write to it.
    pub(super) fn left(&self) -> Option<BorrowedFd<'_>> {
        self.left.as_ref().map(AsFd::as_fd)
    }

    /// Closes the pipe, whatever is in it, and tells what was captured. What is not written by now
    /// is given up.
    pub(super) fn finish(mut self, watch: &Watch<'_>) -> Captured {
        watch.remove_and_close(&mut self.pipe);
        self.recording.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_data_is_decoded_to_what_it_was_made_of() {
        for source in Source::ALL {
            assert_eq!(Watch::decode(77 << 3 | source as u64), Some((77, source)));
        }
        assert_eq!(Watch::decode(u64::MAX), None);
    }
}
