//! What still runs of a run when its main process has ended: how many processes, and their names.
//!
//! Names are what the processes call themselves: any bytes, which the engine makes presentable.
//! Work and memory are bounded: at most [`MOST_COUNTED`] processes are looked at.

use crate::background::Background;
use crate::message::{MOST_COUNTED, MOST_NAMES, NAME_LENGTH};
use crate::processes;

/// The processes that still run.
pub(crate) struct Rest {
    /// How many; [`MOST_COUNTED`] stands for that many or more.
    pub(crate) count: usize,
    /// Whether one of them runs or is about to, or waits for a disk.
    pub(crate) is_busy: bool,
    /// Their names, each once and with a NUL at its end, so far as they fit.
    names: [u8; MOST_NAMES * (NAME_LENGTH + 1)],
    length: usize,
    kinds: usize,
}

impl Rest {
    /// Looks at all processes of the jail but this one and those that earlier runs have left.
    pub(crate) fn of(proc: i32, background: &Background) -> Self {
        let names = [0; MOST_NAMES * (NAME_LENGTH + 1)];
        let mut rest = Self { count: 0, is_busy: false, names, length: 0, kinds: 0 };
        processes::each(proc, |process| {
            if !background.has(process.session) {
                rest.count += 1;
                rest.is_busy |= matches!(process.state, b'R' | b'D');
                rest.note(process.name);
            }
            rest.count < MOST_COUNTED
        });
        rest
    }

    /// The names, as they are in a message.
    pub(crate) fn names(&self) -> &[u8] {
        &self.names[..self.length]
    }

    fn note(&mut self, name: &[u8]) {
        if self.kinds < MOST_NAMES && !self.has(name) {
            self.names[self.length..self.length + name.len()].copy_from_slice(name);
            self.length += name.len() + 1;
            self.kinds += 1;
        }
    }

    fn has(&self, name: &[u8]) -> bool {
        self.names().split(|byte| *byte == 0).take(self.kinds).any(|known| {
            known.len() == name.len() && known.iter().zip(name).all(|(one, other)| one == other)
        })
    }
}
