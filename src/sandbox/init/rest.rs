//! What still runs when a run's main process has ended: how many processes, and their names.
//!
//! They are read from the jail's own `/proc`, which was opened before the first command and is
//! looked into by that descriptor only: nothing that a command does moves it. Reading `stat` never
//! waits for the process, as reading its command line may. Names are what the processes call
//! themselves: any bytes, which the engine makes presentable.
//!
//! Work and memory are bounded: at most [`MOST_COUNTED`] processes are looked at.

use crate::arch;
use crate::message::{MOST_COUNTED, MOST_NAMES, NAME_LENGTH};
use crate::system::*;

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
    /// Looks at all processes of the jail but this one. Zombies do not run. Where the jail has no
    /// `/proc` of its own it finds none.
    pub(crate) fn of(proc: i32) -> Self {
        let names = [0; MOST_NAMES * (NAME_LENGTH + 1)];
        let mut rest = Self { count: 0, is_busy: false, names, length: 0, kinds: 0 };
        call!(arch::LSEEK, proc, 0, 0);
        let mut entries = [0u8; 4096];
        loop {
            let length = call!(arch::GETDENTS64, proc, entries.as_mut_ptr(), entries.len());
            if length <= 0 {
                return rest;
            }
            for name in Entries(&entries[..length as usize]) {
                let is_process = name.first().is_some_and(u8::is_ascii_digit);
                let is_this = name.len() == 1 && name[0] == b'1';
                if is_process && !is_this {
                    rest.add(proc, name);
                    if rest.count == MOST_COUNTED {
                        return rest;
                    }
                }
            }
        }
    }

    /// The names, as they are in a message.
    pub(crate) fn names(&self) -> &[u8] {
        &self.names[..self.length]
    }

    fn add(&mut self, proc: i32, pid: &[u8]) {
        let mut path = [0u8; 32];
        let file = b"/stat";
        if pid.len() + file.len() >= path.len() {
            return;
        }
        path[..pid.len()].copy_from_slice(pid);
        path[pid.len()..pid.len() + file.len()].copy_from_slice(file);
        let stat = call!(arch::OPENAT, proc, path.as_ptr(), O_CLOEXEC);
        if stat < 0 {
            return;
        }
        let mut text = [0u8; 128];
        let length = call!(arch::READ, stat, text.as_mut_ptr(), text.len());
        call!(arch::CLOSE, stat);
        // It has the number, the name in parentheses, and a letter for the state. The name may have
        // parentheses of its own; what follows it has none.
        let text = if length > 0 { &text[..length as usize] } else { return };
        let start = text.iter().position(|byte| *byte == b'(');
        let end = text.iter().rposition(|byte| *byte == b')');
        let (Some(start), Some(end)) = (start, end) else { return };
        let state = text.get(end + 2);
        if start >= end || matches!(state, None | Some(b'Z' | b'X')) {
            return;
        }
        self.count += 1;
        self.is_busy |= matches!(state, Some(b'R' | b'D'));
        let name = &text[start + 1..end];
        let name = if name.len() > NAME_LENGTH { &name[..NAME_LENGTH] } else { name };
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

/// The names in what `getdents64` has written. Each entry: inode, offset, length (2 bytes at 16),
/// type, name with a NUL.
struct Entries<'a>(&'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = [*self.0.get(16)?, *self.0.get(17)?];
        let (entry, after) = self.0.split_at_checked(u16::from_ne_bytes(length).into())?;
        self.0 = after;
        entry.get(19..)?.split(|byte| *byte == 0).next()
    }
}
