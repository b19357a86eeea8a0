//! The processes of the jail, as its own `/proc` shows them.
//!
//! That was opened before the first command and is looked into by its descriptor only: nothing that
//! a command does moves it. Reading `stat` never waits for the process, as reading its command line
//! may.

use crate::arch;
use crate::message::NAME_LENGTH;
use crate::system::*;

/// A process that has not ended.
pub(crate) struct Process<'a> {
    pub(crate) pid: i32,
    /// What it calls itself: any bytes, at most [`NAME_LENGTH`].
    pub(crate) name: &'a [u8],
    /// What it does, as a letter.
    pub(crate) state: u8,
    /// The session that it is in: the number of the process that made it.
    pub(crate) session: i32,
}

/// Looks at all processes of the jail but this one and zombies, until `look` says that it has seen
/// enough by `false`. Where the jail has no `/proc` of its own there are none.
pub(crate) fn each(proc: i32, mut look: impl FnMut(&Process<'_>) -> bool) {
    call!(arch::LSEEK, proc, 0, 0);
    let mut entries = [0u8; 4096];
    loop {
        let length = call!(arch::GETDENTS64, proc, entries.as_mut_ptr(), entries.len());
        if length <= 0 {
            return;
        }
        for name in Entries(&entries[..length as usize]) {
            let is_process = name.first().is_some_and(u8::is_ascii_digit);
            let is_this = name.len() == 1 && name[0] == b'1';
            if is_process && !is_this && !look_at(proc, name, &mut look) {
                return;
            }
        }
    }
}

/// Whether `look` wants to see another.
fn look_at(proc: i32, pid: &[u8], look: &mut impl FnMut(&Process<'_>) -> bool) -> bool {
    let mut path = [0u8; 32];
    let file = b"/stat";
    if pid.len() + file.len() >= path.len() {
        return true;
    }
    path[..pid.len()].copy_from_slice(pid);
    path[pid.len()..pid.len() + file.len()].copy_from_slice(file);
    let stat = call!(arch::OPENAT, proc, path.as_ptr(), O_CLOEXEC);
    if stat < 0 {
        return true;
    }
    let mut text = [0u8; 128];
    let length = call!(arch::READ, stat, text.as_mut_ptr(), text.len());
    call!(arch::CLOSE, stat);
    let text = if length > 0 { &text[..length as usize] } else { return true };
    match parse(text) {
        Some(process) if !matches!(process.state, b'Z' | b'X') => look(&process),
        _ => true,
    }
}

/// It has the number, the name in parentheses, a letter for the state, the numbers of the parent,
/// the process group and the session. The name may have parentheses of its own; what follows it
/// has none.
fn parse(text: &[u8]) -> Option<Process<'_>> {
    let start = text.iter().position(|byte| *byte == b'(')?;
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let name = text.get(start + 1..end)?;
    let name = if name.len() > NAME_LENGTH { &name[..NAME_LENGTH] } else { name };
    let mut fields = text.get(end + 2..)?.split(|byte| *byte == b' ');
    let state = *fields.next()?.first()?;
    let session = number(fields.nth(2)?)?;
    Some(Process { pid: number(text[..start].split(|byte| *byte == b' ').next()?)?, name, state, session })
}

fn number(digits: &[u8]) -> Option<i32> {
    let mut sum = 0i32;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        sum = sum.checked_mul(10)?.checked_add(i32::from(digit & 15))?;
    }
    Some(sum)
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
