//! The pipe by which the reaper tells what happens to its command.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::stream::{Source, Watch};

/// No more than this is kept: some 300 bytes are usual.
const LIMIT: usize = 16 * 1024;

/// The read end, and what has come so far.
pub(super) struct Reports {
    pipe: Option<OwnedFd>,
    text: Vec<u8>,
}

impl Reports {
    /// Nothing has been read of `pipe` yet.
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Some(pipe), text: Vec::new() }
    }

    /// Has it watched.
    ///
    /// # Errors
    /// Those of `epoll_ctl` and `ioctl`.
    pub(super) fn watch(&self, watch: &Watch<'_>) -> io::Result<()> {
        if let Some(pipe) = &self.pipe {
            rustix::io::ioctl_fionbio(pipe, true)?;
            watch.add(pipe.as_fd(), Source::Reports)?;
        }
        Ok(())
    }

    /// Reads what is there, and gives all that has come so far. Does not block.
    pub(super) fn read(&mut self, watch: &Watch<'_>) -> &[u8] {
        let mut buffer = [0; 1024];
        while let Some(pipe) = &self.pipe {
            match rustix::io::read(pipe, &mut buffer) {
                Ok(count) if count > 0 && self.text.len() < LIMIT => {
                    self.text.extend_from_slice(&buffer[..count]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                _ => self.close(watch),
            }
        }
        &self.text
    }

    /// Listens no longer.
    pub(super) fn close(&mut self, watch: &Watch<'_>) {
        watch.remove_and_close(&mut self.pipe);
    }
}
