//! What is said between a session and its bash. Pure, but for the session's directory.
//!
//! bash runs interactively – only so does it survive an interrupt and an error as a terminal's
//! shell does – but without a terminal: its standard input is a pipe, by which it is given lines.
//! Each call is two lines and a file:
//!
//! 1. source the file `command`, its standard input at its end, and then the file `end`, which
//!    writes the call's word and the exit code to `status`, a FIFO;
//! 2. source `end` again, unless the first line got there. It does not where bash abandons the
//!    line: at an interrupt, and at errors such as `${x?}` or a division by zero. It costs ten
//!    system calls, so bash is not given it where the first one has got there soon.
//!
//! After an interrupt bash is asked for one more word before the session is taken to be usable
//! again.
//!
//! A sourced file is what makes bash behave as a user expects of a script in this shell: messages
//! about jobs are not printed, and the command's text, whatever is in it, cannot be taken for
//! anything else. The prompts are empty, since they would be printed where errors are.
//!
//! The *word* is random and new for each call, so that nothing that an earlier call has left
//! behind can speak for a later one, unless it still runs and takes the lines of that one out of
//! the pipe. What a command does to its own shell – it may redefine `builtin`, write to `status`,
//! read the pipe – can at worst fake ends of its own session's calls, or keep them from being
//! seen: then the time limit ends the session.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::super::user::CommandUser;
use crate::tool::OutputOrder;

/// How long a call's word is.
const WORD_LENGTH: usize = 32;

/// What is kept of an unfinished line of `status`: more than bash says.
const LONGEST_STATUS: usize = 256;

/// The longest action of a trap that is kept from call to call.
const LONGEST_TRAP: usize = 16 * 1024;

/// The exit code of a shell that was interrupted.
pub(super) const INTERRUPTED: i32 = 128 + 2;

/// The exit code of a shell that was killed.
pub(super) const KILLED: i32 = 128 + 9;

/// The exit code of a syntax error (and of much else).
pub(super) const SYNTAX_ERROR: i32 = 2;

/// How bash is started: its `$0` first.
pub(super) const ARGV: [&str; 8] =
    ["bash", "--noprofile", "--norc", "--noediting", "+m", "+o", "history", "-i"];

/// The directory of one session: written by us, and read-only for its commands. Removed on drop.
pub(super) struct Directory {
    path: PathBuf,
    command: File,
    /// The reading end of the FIFO, non-blocking.
    pub(super) status: OwnedFd,
}

impl Directory {
    /// Makes it. `shown` is where commands find it; they are of `user`, or of this process. No
    /// other user gets at what is in it. Blocks on some file system calls.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn create(
        path: PathBuf,
        shown: &Path,
        user: Option<CommandUser>,
    ) -> io::Result<Self> {
        let make = || std::fs::DirBuilder::new().mode(0o700).create(&path);
        match make() {
            // That of an earlier session of the name, which could not be removed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_dir_all(&path)?;
                make()?;
            }
            made => made?,
        }
        Self::fill(path.clone(), shown, user).inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&path);
        })
    }

    fn fill(path: PathBuf, shown: &Path, user: Option<CommandUser>) -> io::Result<Self> {
        let status = path.join("status");
        rustix::fs::mknodat(CWD, &status, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // For writing, too: a FIFO without writers would be at its end.
        let reader = rustix::fs::open(&status, flags, Mode::empty())?;
        // Write-only, so that nobody else takes what is in it.
        rustix::fs::fchmod(&reader, Mode::WUSR | Mode::WGRP | Mode::WOTH)?;
        let new_file = |name: &str| {
            let file =
                File::options().write(true).create_new(true).mode(0o600).open(path.join(name))?;
            // Whatever the umask says.
            file.set_permissions(PermissionsExt::from_mode(0o644))?;
            io::Result::Ok(file)
        };
        new_file("end")?.write_all_at(end_file(shown).as_bytes(), 0)?;
        new_file("code")?.write_all_at(CODE_FILE.as_bytes(), 0)?;
        let command = new_file("command")?;
        if let Some(user) = user {
            std::os::unix::fs::chown(&path, None, Some(user.gid().as_raw()))?;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o710))?;
        }
        Ok(Self { path, command, status: reader })
    }

    /// Puts the next command there. Blocks on some file system calls.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn put_command(&self, text: &[u8]) -> io::Result<()> {
        self.command.write_all_at(text, 0)?;
        self.command.set_len(text.len() as u64)
    }

    /// Reads what is in the FIFO: 0 if nothing is.
    pub(super) fn read_status(&self, buffer: &mut [u8]) -> usize {
        rustix::io::read(self.status.as_fd(), buffer).unwrap_or(0)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            log::warn!("cannot remove a session's directory: {error}");
        }
    }
}

/// A word for one call.
pub(super) fn new_word() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Makes `$?` what it is told.
const CODE_FILE: &str = "\\builtin return \"$1\"\n";

/// The file `end`: its arguments are the call's word and its exit code. Every word of it is
/// quoted, so that no alias takes its place.
fn end_file(shown: &Path) -> String {
    let status = quoted(&shown.join("status"));
    // A child that is interrupted before it has become another program believes to be the shell,
    // and goes on with the shell's lines: it must not, and is the last to know.
    //
    // What activates an environment sets a prompt, and would have it printed among the errors.
    // Tracing is taken up again by the next command.
    format!(
        "case $BASHPID in ($$) ;; (*) \\builtin kill -9 $BASHPID;; esac\n\
         \\builtin printf '%s %s %s\\n' \"$1\" \"$2\" \"$-\" >{status}\n\
         PS0= PS1= PS2=$1\n\
         \\builtin unset PROMPT_COMMAND\n\
         case $- in (*[xv]*) \\builtin set +xv;; esac\n"
    )
}

/// The first line that bash is given. It then says the word.
pub(super) fn first_line(shown: &Path, word: &str, open_files: Option<u64>) -> String {
    let limit = open_files.map_or_else(String::new, |limit| format!("ulimit -S -n {limit}; "));
    let end = quoted(&shown.join("end"));
    format!(
        "set +H; unset HISTFILE MAILCHECK; BASH_ARGV0=bash; PS0= PS1= PS2=; {limit}. {end} {word} 0\n"
    )
}

/// The line that has bash run the file `command` after an earlier command has ended with `last`.
/// Short enough to be written to a pipe in one piece, with the [second one](second_line).
pub(super) fn first_line_of_call(
    shown: &Path,
    word: &str,
    last: i32,
    order: OutputOrder,
) -> String {
    let file = |name| quoted(&shown.join(name));
    let (command, end) = (file("command"), end_call(shown, word));
    // As the left part of `&&` its failure is no reason for anything.
    let code = match last {
        0 => String::new(),
        code => format!("\\builtin . {} {code} && :; ", file("code")),
    };
    // PS2 tells the second line how far the first one got: to its end, to the command's, begun, or
    // not at all. bash may take an interrupt that is over for another one, and drop a line that it
    // has just read.
    let streams = match order {
        OutputOrder::Separate => "</dev/null",
        OutputOrder::Interleaved => "</dev/null 2>&1",
    };
    format!("PS2=x; {code}\\builtin . {command} {streams}; {{ PS2=x:$?; {end}; }} {SILENT}\n")
}

/// The line that has bash tell the end of a call whose first line it has abandoned.
pub(super) fn second_line(shown: &Path, word: &str) -> String {
    let end = end_call(shown, word);
    format!(
        "{{ case $PS2 in ({word}) ;; (x) PS2=x:$?;; (x:*) ;; (*) PS2=x:{INTERRUPTED};; esac; \
         case $PS2 in ({word}) ;; (*) {end};; esac; }} {SILENT}\n"
    )
}

/// Where what the engine's own words print goes: a trap on DEBUG sees them, too.
const SILENT: &str = ">/dev/null 2>&1";

/// Words that have bash tell the end of a call, whose exit code is in PS2.
///
/// bash gives a sourced file no trap on DEBUG that was there before, and restores it after the
/// file, whatever that has done: so one of a command would never go away, and not be there for the
/// next one. Instead it is told and taken away here, and the next command begins with it.
fn end_call(shown: &Path, word: &str) -> String {
    let file = |name| quoted(&shown.join(name));
    format!(
        "\\builtin trap -p DEBUG >{}; \\builtin trap - DEBUG; \\builtin . {} {word} \"${{PS2#x:}}\"",
        file("status"),
        file("end")
    )
}

/// Lines that have bash tell the end of a call that was interrupted, unless it has: an interrupt
/// may make it drop those of the call.
pub(super) fn interrupt_lines(shown: &Path, word: &str) -> String {
    let end = end_call(shown, word);
    let line =
        format!("{{ case $PS2 in ({word}) ;; (*) PS2=x:{INTERRUPTED}; {end};; esac; }} {SILENT}\n");
    line.repeat(2)
}

/// Lines that have bash say a word, even if it drops some of them.
pub(super) fn ping_lines(shown: &Path, word: &str) -> String {
    let end = quoted(&shown.join("end"));
    format!("{{ \\builtin . {end} {word} 0; }} {SILENT}\n").repeat(3)
}

/// The content of the file `command`, after a command with this end.
pub(super) fn command_file(command: &str, last: &Status) -> Vec<u8> {
    let Status { code, flags, debug_trap, .. } = last;
    let traced: String = flags.chars().filter(|flag| matches!(flag, 'x' | 'v')).collect();
    // On the command's own first line, so that line numbers in messages are right.
    let mut prefix = match traced.as_str() {
        "" => String::new(),
        flags => format!("\\builtin set -{flags}; "),
    };
    if let Some(action) = debug_trap {
        // As the left part of `&&` the code is no reason for anything.
        let code = match code {
            0 => String::new(),
            code => format!(" (\\builtin exit {code}) && :;"),
        };
        prefix.push_str(&format!("{{ \\builtin trap -- {action} DEBUG;{code} }} 2>/dev/null; "));
    }
    [prefix.as_bytes(), command.as_bytes(), b"\n"].concat()
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
    if path.chars().all(plain) {
        return path.into_owned();
    }
    format!("'{}'", path.replace('\'', "'\\''"))
}

/// Whether a path can be put into a line.
pub(super) fn is_speakable(path: &Path) -> bool {
    let bytes = OsStr::as_bytes(path.as_os_str());
    std::str::from_utf8(bytes).is_ok() && bytes.len() < 300 && !bytes.contains(&b'\n')
}

/// The end of a call, as bash has told it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// The call's word.
    pub(super) word: String,
    /// Its exit code.
    pub(super) code: i32,
    /// The shell's flags, `$-`.
    pub(super) flags: String,
    /// The action of its trap on DEBUG, as one word of a shell.
    pub(super) debug_trap: Option<String>,
}

/// Reads `status`. Whatever a command has written there of its own is skipped, also where that has
/// left a line unfinished: what ends a line was written in one piece.
#[derive(Debug, Default)]
pub(super) struct StatusReader {
    /// The end of an unfinished line.
    line: Vec<u8>,
    /// What came before it since the last end of a call, or the end of that: a trap, perhaps.
    before: Vec<u8>,
}

impl StatusReader {
    /// Takes what was read, and gives what is at the ends of the lines that are whole, if the word
    /// there is one that is waited for.
    pub(super) fn push(&mut self, bytes: &[u8], is_word: impl Fn(&str) -> bool) -> Vec<Status> {
        let mut found = Vec::new();
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, whole) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            let text = &text[text.len().saturating_sub(LONGEST_STATUS)..];
            let surplus = (self.line.len() + text.len()).saturating_sub(LONGEST_STATUS);
            self.line.drain(..surplus);
            self.line.extend_from_slice(text);
            match parse_status(&self.line).filter(|status| whole && is_word(&status.word)) {
                Some(status) => {
                    // Without what came of this line before.
                    let lines = self.before.iter().rposition(|&byte| byte == b'\n');
                    let debug_trap = debug_trap(&self.before[..lines.map_or(0, |at| at + 1)]);
                    found.push(Status { debug_trap, ..status });
                    self.before = Vec::new();
                }
                None => self.remember(part),
            }
            if whole {
                self.line.clear();
            }
        }
        found
    }
}

impl StatusReader {
    fn remember(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(LONGEST_TRAP)..];
        self.before.extend_from_slice(bytes);
        // Not each time: a line may be one byte.
        if self.before.len() > 2 * LONGEST_TRAP {
            self.before.drain(..self.before.len() - LONGEST_TRAP);
        }
    }
}

/// The action that `trap -p DEBUG` has printed at the end of this, as one word of a shell. What is
/// anything else is nothing that bash prints.
fn debug_trap(bytes: &[u8]) -> Option<String> {
    const BEGIN: &[u8] = b"trap -- ";
    let text = bytes.strip_suffix(b" DEBUG\n")?;
    // The first: an action may look like the end of another one.
    let is_start =
        |&at: &usize| (at == 0 || text[at - 1] == b'\n') && text[at..].starts_with(BEGIN);
    let mut starts = (0..text.len()).filter(is_start);
    starts.find_map(|at| {
        let action = &text[at + BEGIN.len()..];
        is_quoted(action).then(|| std::str::from_utf8(action).ok().map(str::to_owned))?
    })
}

/// Whether this is one word of a shell, of parts in single quotes and single quotes that are
/// escaped.
fn is_quoted(mut word: &[u8]) -> bool {
    let mut parts = 0;
    while !word.is_empty() {
        let rest = match word.strip_prefix(b"\\'") {
            Some(rest) => Some(rest),
            None => word.strip_prefix(b"'").and_then(|rest| {
                let end = rest.iter().position(|&byte| byte == b'\'')?;
                Some(&rest[end + 1..])
            }),
        };
        let Some(rest) = rest else { return false };
        (word, parts) = (rest, parts + 1);
    }
    parts > 0
}

fn parse_status(line: &[u8]) -> Option<Status> {
    let mut fields = line.rsplitn(3, |&byte| byte == b' ');
    let (flags, code, word) = (fields.next()?, fields.next()?, fields.next()?);
    let word = &word[word.len().saturating_sub(WORD_LENGTH)..];
    let text = |bytes| std::str::from_utf8(bytes).ok();
    let code = text(code)?.parse::<u8>().ok()?;
    Some(Status {
        word: text(word)?.to_owned(),
        code: i32::from(code),
        flags: text(flags)?.to_owned(),
        debug_trap: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "/run/terminal/default";

    fn status(word: &str, code: i32, flags: &str) -> Status {
        Status { word: word.to_owned(), code, flags: flags.to_owned(), debug_trap: None }
    }

    #[test]
    fn status_lines_are_found_however_they_are_cut() {
        let text = b"abc 3 hB\ngarbage\nw 256 h\nw -1 h\n\xff 1 h\ndef 0 himBHs\n";
        let expected = [status("abc", 3, "hB"), status("def", 0, "himBHs")];
        for size in 1..text.len() {
            let mut reader = StatusReader::default();
            let found: Vec<_> =
                text.chunks(size).flat_map(|part| reader.push(part, |_| true)).collect();
            assert_eq!(found, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_trap_that_stands_before_the_end_of_a_call_is_told_with_it() {
        let word = new_word();
        for (action, printed) in [
            (Some("'x'"), "trap -- 'x' DEBUG\n"),
            (Some("''"), "trap -- '' DEBUG\n"),
            (Some("'it'\\''s'"), "trap -- 'it'\\''s' DEBUG\n"),
            (Some("\\''a'"), "junk\ntrap -- \\''a' DEBUG\n"),
            (
                Some("'a\n1 2 3\ntrap -- '\\''x'\\'' DEBUG\n'"),
                "trap -- 'a\n1 2 3\ntrap -- '\\''x'\\'' DEBUG\n' DEBUG\n",
            ),
            (None, ""),
            (None, "trap -- x DEBUG\n"),
            (None, "trap -- 'x'; kill -9 $$; : 'y' DEBUG\n"),
            (None, "trap -- 'x' DEBUG\n\n"),
            (None, "trap -- 'x' USR1\n"),
            (None, "trap --  DEBUG\n"),
        ] {
            let text = format!("{printed}{word} 3 himBHs\n");
            for size in [1, 7, 4096] {
                let mut reader = StatusReader::default();
                let pieces = text.as_bytes().chunks(size);
                let found: Vec<_> =
                    pieces.flat_map(|part| reader.push(part, |found| found == word)).collect();
                assert_eq!(found.len(), 1, "{text}");
                assert_eq!(found[0].debug_trap.as_deref(), action, "{text} in pieces of {size}");
                // It is that of one call.
                let next = reader.push(text.as_bytes(), |found| found == word);
                assert_eq!(next[0].debug_trap.as_deref(), action);
                let next = reader.push(format!("{word} 0 h\n").as_bytes(), |_| true);
                assert_eq!(next[0].debug_trap, None);
            }
        }
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut reader = StatusReader::default();
        for _ in 0..1000 {
            assert_eq!(reader.push(&[b'x'; 4096], |_| true), []);
        }
        assert!(reader.line.capacity() <= 2 * LONGEST_STATUS);
        assert!(reader.before.capacity() <= 4 * LONGEST_TRAP);
        assert_eq!(reader.push(b" 1 h\nok 1 h\n", |_| true)[1..], [status("ok", 1, "h")]);
    }

    #[test]
    fn an_unfinished_line_hides_nothing() {
        let word = new_word();
        let expected = [status(&word, 7, "himBHs")];
        let long = [b'x'; 3 * LONGEST_STATUS];
        for before in [&b"x"[..], b"x 0 h", b"x 0 h ", b" ", b"\xff\0", b"\r 1 ", &long] {
            let text = [before, format!("{word} 7 himBHs\n").as_bytes()].concat();
            for size in [1, 2, 100, LONGEST_STATUS, 4096] {
                let mut reader = StatusReader::default();
                let pieces = text.chunks(size);
                let found: Vec<_> =
                    pieces.flat_map(|part| reader.push(part, |found| found == word)).collect();
                assert_eq!(found, expected, "{before:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn the_lines_of_a_call_are_short_and_nothing_of_the_command_is_in_them() {
        let (shown, word) = (Path::new(SHOWN), new_word());
        let order = OutputOrder::Interleaved;
        let lines = first_line_of_call(shown, &word, 255, order) + &second_line(shown, &word);
        assert!(lines.len() < 1024, "{} bytes", lines.len());
        assert_eq!(lines.matches('\n').count(), 2);
        let file = |code, flags, trap: Option<&str>| {
            let last = Status { debug_trap: trap.map(str::to_owned), ..status("w", code, flags) };
            String::from_utf8(command_file("echo a", &last)).unwrap()
        };
        assert_eq!(file(3, "himxBHs", None), "\\builtin set -x; echo a\n");
        assert_eq!(file(3, "himBHs", None), "echo a\n");
        let trap = "{ \\builtin trap -- 'x' DEBUG; } 2>/dev/null; echo a\n";
        assert_eq!(file(0, "himBHs", Some("'x'")), trap);
        let trap =
            "{ \\builtin trap -- 'x' DEBUG; (\\builtin exit 3) && :; } 2>/dev/null; echo a\n";
        assert_eq!(file(3, "himBHs", Some("'x'")), trap);
    }

    #[test]
    fn a_path_is_one_word() {
        assert_eq!(quoted(Path::new("/run/terminal/end")), "/run/terminal/end");
        assert_eq!(quoted(Path::new("/a b/it's $x")), "'/a b/it'\\''s $x'");
        assert!(!is_speakable(Path::new("/a\nb")));
        assert!(!is_speakable(Path::new(OsStr::from_bytes(b"/\xff"))));
    }

    #[test]
    fn a_sessions_directory_is_removed_with_it() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("0");
        let directory = Directory::create(path.clone(), Path::new(SHOWN), None).unwrap();
        directory.put_command(b"a long command").unwrap();
        directory.put_command(b"short").unwrap();
        assert_eq!(std::fs::read(path.join("command")).unwrap(), b"short");
        std::fs::OpenOptions::new().write(true).open(path.join("status")).unwrap();
        assert_eq!(directory.read_status(&mut [0; 10]), 0);
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_left_of_an_earlier_session_of_a_name_is_in_no_ones_way() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("0");
        let stale = Directory::create(path.clone(), Path::new(SHOWN), None).unwrap();
        stale.put_command(b"old").unwrap();
        std::mem::forget(stale);
        let directory = Directory::create(path.clone(), Path::new(SHOWN), None).unwrap();
        assert_eq!(std::fs::read(path.join("command")).unwrap(), b"");
        drop(directory);
        assert!(!path.exists());
    }
}
