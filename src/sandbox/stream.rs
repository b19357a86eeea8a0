//! The file descriptors of one running command, as the supervisor's epoll watches them, and the reading
//! of its output.
//!
//! Reads never block and are bounded in each turn. What is kept of the output is decided in `output`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;

use super::output::{Capture, Captured};
use super::spawn;

/// The size of the buffer that pipes are read through.
pub(super) const READ_BUFFER: usize = 64 * 1024;
/// How often one pipe is read in one turn, so that a command that floods its output does not keep the
/// others waiting.
const READS_PER_TURN: usize = 4;
/// No more than this is read from a pipe at the end. Pipes hold 64 KiB, 1 MiB at the utmost unless the
/// administrator allows more; the bound matters where a process escaped and still writes.
const DRAIN_LIMIT: usize = 16 << 20;
/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The command's standard output.
    Stdout,
    /// The command's standard error.
    Stderr,
    /// The pipe that bubblewrap or the reaper reports to.
    Reports,
    /// The end of bubblewrap or of the reaper.
    Child,
    /// The end of the sandbox's last process.
    Init,
    /// The socket to a warm sandbox's first process.
    Link,
}

impl Source {
    const ALL: [Self; 6] =
        [Self::Stdout, Self::Stderr, Self::Reports, Self::Child, Self::Init, Self::Link];
}

/// The events of one command in the supervisor's epoll.
pub(super) struct Watch<'a> {
    /// The epoll.
    pub(super) epoll: &'a OwnedFd,
    /// The command's number.
    pub(super) id: u64,
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

    /// Stops watching. Must come before a file descriptor is closed: a fork of the host, made by whomever, may hold a
    /// copy, and then closing ours does not end the events.
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

/// One output stream of a command.
pub(super) struct Stream {
    /// The read end, non-blocking; `None` after its end.
    pub(super) pipe: Option<OwnedFd>,
    capture: Capture,
}

impl Stream {
    /// A stream, and the write end for the command, which is blocking.
    pub(super) fn new(limit_chars: usize) -> io::Result<(Self, OwnedFd)> {
        let (pipe, writer) = spawn::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let stream = Self { pipe: Some(pipe), capture: Capture::new(limit_chars) };
        Ok((stream, writer))
    }

    /// Reads a bounded part of what is there.
    pub(super) fn read(&mut self, watch: &Watch<'_>, buffer: &mut [u8]) {
        for _ in 0..READS_PER_TURN {
            if self.read_once(watch, buffer) < buffer.len() {
                break;
            }
        }
    }

    /// Reads what is there, and no more: 0 if nothing is.
    fn read_once(&mut self, watch: &Watch<'_>, buffer: &mut [u8]) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        loop {
            match rustix::io::read(pipe, &mut *buffer) {
                Ok(count) if count > 0 => {
                    self.capture.push(&buffer[..count]);
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

    /// Reads what is left in the pipe and closes it.
    pub(super) fn drain(mut self, watch: &Watch<'_>, buffer: &mut [u8]) -> Captured {
        let mut drained = 0;
        while drained < DRAIN_LIMIT {
            match self.read_once(watch, buffer) {
                0 => break,
                count => drained += count,
            }
        }
        watch.remove_and_close(&mut self.pipe);
        self.capture.finish()
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
