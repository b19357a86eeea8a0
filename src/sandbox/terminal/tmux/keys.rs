//! What the model wants typed, as commands for tmux. Pure.
//!
//! A string that is the name of a key, spelled as in tmux's manual, is that key: `Enter`, `C-c`,
//! `M-x`, `^c`, `Up`, `F1`, `BSpace`, `C-Space`. Any other string is typed as it is. The spelling
//! is exact, unlike tmux's own: `end` and `up` are words, `End` and `Up` are keys.
//!
//! Text reaches tmux as numbers (`send-keys -H`), so that none can be taken for a command, a flag
//! or a key; so do the keys that are one or two bytes in any program. What other keys are depends
//! on what the program has asked the terminal for, which tmux knows: they go by their names.
//!
//! [`Typing`] cuts all of it into [`Chunk`]s small enough for the kernel's line of 4,096 bytes,
//! and cuts before a key that *interrupts*, so that such a key can be let through on its own.

use std::collections::VecDeque;
use std::fmt::Write as _;

use serde_json::Value;

/// How many bytes are typed with one command.
pub(super) const CHUNK_BYTES: usize = 1024;
/// How many named keys are typed with one command; one is no more than [`NAMED_BYTES`].
const CHUNK_NAMED: usize = 32;
/// No named key sends more bytes.
const NAMED_BYTES: usize = 8;
/// The bytes that a terminal turns into a signal: C-c, C-z and C-\.
const INTERRUPTS: [u8; 3] = [0x03, 0x1a, 0x1c];

/// Keys without a byte of their own: how tmux names them. No name needs quoting.
const NAMED: [&str; 43] = [
    "BTab", "DC", "Delete", "Down", "End", "F1", "F10", "F11", "F12", "F2", "F3", "F4", "F5", "F6",
    "F7", "F8", "F9", "Home", "IC", "Insert", "KP*", "KP+", "KP-", "KP.", "KP/", "KP0", "KP1",
    "KP2", "KP3", "KP4", "KP5", "KP6", "KP7", "KP8", "KP9", "KPEnter", "Left", "NPage", "PPage",
    "PageDown", "PageUp", "Right", "Up",
];

/// Keys with a byte of their own.
const BYTES: [(&str, u8); 5] =
    [("BSpace", 0x7f), ("Enter", b'\r'), ("Escape", 0x1b), ("Space", b' '), ("Tab", b'\t')];

/// Keys to be typed, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Keys(VecDeque<Stroke>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stroke {
    /// Bytes, exactly these. Never empty.
    Bytes(Vec<u8>),
    /// A key by its name, modifiers in front.
    Named(String),
}

impl Keys {
    /// The keys that an argument stands for; `None` if it is neither a string nor a list of
    /// strings.
    pub(super) fn parse(keys: &Value) -> Option<Self> {
        let mut parsed = Self::default();
        match keys {
            Value::String(key) => parsed.add(key),
            Value::Array(keys) => {
                for key in keys {
                    parsed.add(key.as_str()?);
                }
            }
            _ => return None,
        }
        Some(parsed)
    }

    /// C-c.
    pub(super) fn interrupt() -> Self {
        Self([Stroke::Bytes(vec![INTERRUPTS[0]])].into())
    }

    fn add(&mut self, key: &str) {
        match stroke(key) {
            Some(Stroke::Bytes(bytes)) => self.add_bytes(&bytes),
            Some(named) => self.0.push_back(named),
            None => self.add_bytes(key.as_bytes()),
        }
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        match self.0.back_mut() {
            _ if bytes.is_empty() => {}
            Some(Stroke::Bytes(before)) => before.extend_from_slice(bytes),
            _ => self.0.push_back(Stroke::Bytes(bytes.to_vec())),
        }
    }
}

/// The key of this name, if it is one.
fn stroke(name: &str) -> Option<Stroke> {
    if let [b'^', letter] = name.as_bytes() {
        // The letters only: `^2` or `^"` is more likely to be text.
        let letter = letter.is_ascii_alphabetic() || b"@[\\]_".contains(letter);
        return letter.then(|| Stroke::Bytes(control(name.as_bytes()[1]).into_iter().collect()));
    }
    let (mut base, mut ctrl, mut meta, mut shift) = (name, false, false, false);
    loop {
        let (modifier, rest) = match base.as_bytes() {
            [b'C', b'-', _, ..] => (&mut ctrl, &base[2..]),
            [b'M', b'-', _, ..] => (&mut meta, &base[2..]),
            [b'S', b'-', _, ..] => (&mut shift, &base[2..]),
            _ => break,
        };
        (*modifier, base) = (true, rest);
    }
    let byte = BYTES.iter().find(|(name, _)| *name == base).map(|&(_, byte)| byte);
    if base == "Tab" && shift && !ctrl {
        return Some(named("BTab", false, meta, false));
    }
    if let Some(byte) = byte.filter(|_| !shift) {
        return match (ctrl, byte) {
            (false, byte) => Some(bytes(meta, &[byte])),
            (true, b' ') => Some(bytes(meta, &[0])),
            // A terminal has no such key.
            (true, _) => None,
        };
    }
    if NAMED.binary_search(&base).is_ok() {
        return Some(named(base, ctrl, meta, shift));
    }
    let mut chars = base.chars();
    let single = chars.next().filter(|_| chars.next().is_none())?;
    if shift || !(ctrl || meta) || single.is_control() {
        return None;
    }
    match ctrl {
        true => Some(bytes(meta, &[control(u8::try_from(single).ok()?)?])),
        false => Some(bytes(meta, base.as_bytes())),
    }
}

/// What a key is with Meta held: the same, after an escape.
fn bytes(meta: bool, bytes: &[u8]) -> Stroke {
    let escape: &[u8] = if meta { &[0x1b] } else { &[] };
    Stroke::Bytes([escape, bytes].concat())
}

fn named(base: &str, ctrl: bool, meta: bool, shift: bool) -> Stroke {
    let modifiers = [(ctrl, "C-"), (meta, "M-"), (shift, "S-")];
    let mut name: String =
        modifiers.iter().filter(|(held, _)| *held).map(|(_, name)| *name).collect();
    name.push_str(base);
    Stroke::Named(name)
}

/// What a character is with Control held, if a terminal has that.
fn control(character: u8) -> Option<u8> {
    match character {
        b'@'..=b'_' | b'a'..=b'z' => Some(character & 0x1f),
        b'?' => Some(0x7f),
        b'/' => Some(0x1f),
        b' ' => Some(0),
        _ => None,
    }
}

/// One command's worth of typing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The command, without its line end.
    pub(super) command: String,
    /// How many bytes the pane gets, at most.
    pub(super) bytes: usize,
    /// Whether it is nothing but keys that the terminal turns into signals.
    pub(super) interrupts: bool,
}

/// Keys on their way to a pane.
#[derive(Debug)]
pub(super) struct Typing {
    strokes: VecDeque<Stroke>,
    /// How much of the first stroke's bytes is typed.
    typed: usize,
}

impl Typing {
    pub(super) fn new(keys: Keys) -> Self {
        Self { strokes: keys.0, typed: 0 }
    }

    /// How many bytes are still to be typed, a named key counted as one.
    pub(super) fn left(&self) -> usize {
        let sizes = self.strokes.iter().map(|stroke| match stroke {
            Stroke::Bytes(bytes) => bytes.len(),
            Stroke::Named(_) => 1,
        });
        sizes.sum::<usize>() - self.typed
    }

    /// Whether the next chunk is one that may always be typed.
    pub(super) fn next_interrupts(&self) -> bool {
        matches!(self.strokes.front(), Some(Stroke::Bytes(bytes)) if INTERRUPTS.contains(&bytes[self.typed]))
    }

    /// Leaves out what comes before the next key that interrupts. `false`, and nothing is left out,
    /// if there is no such key.
    pub(super) fn skip_to_interrupt(&mut self) -> bool {
        let place = self.strokes.iter().enumerate().find_map(|(index, stroke)| {
            let Stroke::Bytes(bytes) = stroke else { return None };
            let start = if index == 0 { self.typed } else { 0 };
            let at = bytes[start..].iter().position(|byte| INTERRUPTS.contains(byte))?;
            Some((index, start + at))
        });
        let Some((index, typed)) = place else { return false };
        self.strokes.drain(..index);
        self.typed = typed;
        true
    }

    /// The next part, for the pane `pane`; `None` when all is typed.
    pub(super) fn next_chunk(&mut self, pane: u32) -> Option<Chunk> {
        let interrupts = self.next_interrupts();
        match self.strokes.front()? {
            Stroke::Bytes(stroke) => {
                let rest = &stroke[self.typed..];
                let kind = |byte: &u8| INTERRUPTS.contains(byte) == interrupts;
                let longest = rest.len().min(CHUNK_BYTES);
                let run = rest[..longest].iter().position(|byte| !kind(byte)).unwrap_or(longest);
                let run = whole_characters(rest, run);
                let mut command = format!("send-keys -t %{pane} -H");
                for byte in &rest[..run] {
                    // Writing to a string does not fail.
                    let _ = write!(command, " {byte:02x}");
                }
                self.typed += run;
                if self.typed == stroke.len() {
                    self.strokes.pop_front();
                    self.typed = 0;
                }
                Some(Chunk { command, bytes: run, interrupts })
            }
            Stroke::Named(_) => {
                let mut command = format!("send-keys -t %{pane} --");
                let mut count = 0;
                while count < CHUNK_NAMED
                    && let Some(Stroke::Named(name)) = self.strokes.front()
                {
                    command.push(' ');
                    command.push_str(name);
                    self.strokes.pop_front();
                    count += 1;
                }
                Some(Chunk { command, bytes: count * NAMED_BYTES, interrupts: false })
            }
        }
    }
}

/// The greatest length up to `length`, which is not 0, that ends between two characters of `text`.
fn whole_characters(text: &[u8], length: usize) -> usize {
    let continues = |at: usize| text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let whole = (length.saturating_sub(3)..=length).rev().find(|&at| at > 0 && !continues(at));
    whole.unwrap_or(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn one(key: &str) -> Option<Stroke> {
        stroke(key)
    }

    fn as_bytes(expected: &[u8]) -> Option<Stroke> {
        Some(Stroke::Bytes(expected.to_vec()))
    }

    fn chunks(keys: &Value) -> Vec<Chunk> {
        let mut typing = Typing::new(Keys::parse(keys).unwrap());
        let mut chunks = Vec::new();
        while let Some(chunk) = typing.next_chunk(0) {
            chunks.push(chunk);
        }
        assert_eq!(typing.left(), 0);
        chunks
    }

    /// The bytes of a command that types by numbers.
    fn typed(command: &str) -> Vec<u8> {
        let numbers = command.strip_prefix("send-keys -t %0 -H ").unwrap();
        numbers.split(' ').map(|number| u8::from_str_radix(number, 16).unwrap()).collect()
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(NAMED.is_sorted());
    }

    #[test]
    fn names_of_keys_are_keys() {
        for (name, expected) in [
            ("Enter", &b"\r"[..]),
            ("Escape", b"\x1b"),
            ("Space", b" "),
            ("Tab", b"\t"),
            ("BSpace", b"\x7f"),
            ("C-c", b"\x03"),
            ("C-C", b"\x03"),
            ("^c", b"\x03"),
            ("^C", b"\x03"),
            ("^[", b"\x1b"),
            ("C-[", b"\x1b"),
            ("C-\\", b"\x1c"),
            ("C-Space", b"\0"),
            ("C-@", b"\0"),
            ("C-_", b"\x1f"),
            ("C-/", b"\x1f"),
            ("C-?", b"\x7f"),
            ("M-x", b"\x1bx"),
            ("M-;", b"\x1b;"),
            ("M-é", "\x1bé".as_bytes()),
            ("M-Enter", b"\x1b\r"),
            ("C-M-x", b"\x1b\x18"),
            ("M-C-x", b"\x1b\x18"),
            ("M-C-Space", b"\x1b\0"),
        ] {
            assert_eq!(one(name), as_bytes(expected), "{name}");
        }
        for (name, expected) in [
            ("Up", "Up"),
            ("C-Up", "C-Up"),
            ("S-M-C-Left", "C-M-S-Left"),
            ("F1", "F1"),
            ("F12", "F12"),
            ("PageDown", "PageDown"),
            ("KPEnter", "KPEnter"),
            ("BTab", "BTab"),
            ("S-Tab", "BTab"),
        ] {
            assert_eq!(one(name), Some(Stroke::Named(expected.to_owned())), "{name}");
        }
    }

    #[test]
    fn anything_else_is_text() {
        for text in [
            "",
            "a",
            "enter",
            "ENTER",
            "end",
            "up",
            "Any",
            "None",
            "F13",
            "F0",
            "C-",
            "M-",
            "C-Foo",
            "C-é",
            "C-1",
            "C-Enter",
            "S-a",
            "^",
            "^2",
            "^cc",
            "0x41",
            "-l",
            "--",
            ";",
            "ls;",
            "MouseDown1Pane",
            "Enter ",
            " Enter",
            "ls Enter",
            "C-c C-c",
            "é",
            "User0",
            "M-\n",
            "C--",
            "KP",
        ] {
            assert_eq!(one(text), None, "{text}");
        }
    }

    #[test]
    fn exactly_what_was_asked_for_is_typed() {
        let asked = json!(["ls", "Enter", "echo 'a;b' ;", "Up", "F1", "x\n", "", "C-c"]);
        let commands: Vec<_> = chunks(&asked).into_iter().map(|chunk| chunk.command).collect();
        assert_eq!(typed(&commands[0]), b"ls\recho 'a;b' ;");
        assert_eq!(commands[1], "send-keys -t %0 -- Up F1");
        assert_eq!(typed(&commands[2]), b"x\n");
        assert_eq!(typed(&commands[3]), b"\x03");
        assert_eq!(commands.len(), 4);
        assert_eq!(chunks(&json!("")), []);
        assert_eq!(chunks(&json!([])), []);
        for no_keys in [json!(null), json!(1), json!({}), json!(["a", 1]), json!([["a"]])] {
            assert_eq!(Keys::parse(&no_keys), None, "{no_keys}");
        }
    }

    #[test]
    fn a_key_that_interrupts_can_overtake_what_is_before_it() {
        let text = "x".repeat(3000);
        let mut typing =
            Typing::new(Keys::parse(&json!([text, "Up", "yes\u{3}\u{1c}no"])).unwrap());
        assert_eq!(typing.left(), 3000 + 1 + 7);
        typing.next_chunk(0);
        assert!(!typing.next_interrupts());
        assert!(typing.skip_to_interrupt() && typing.next_interrupts());
        let chunk = typing.next_chunk(0).unwrap();
        assert_eq!((typed(&chunk.command), chunk.interrupts), (b"\x03\x1c".to_vec(), true));
        assert!(!typing.skip_to_interrupt());
        assert_eq!(typed(&typing.next_chunk(0).unwrap().command), b"no");
        assert_eq!(typing.next_chunk(0), None);
        assert!(!typing.next_interrupts());
    }

    proptest! {
        #[test]
        fn text_is_cut_into_chunks_of_whole_characters_and_nothing_is_lost(
            text in "([a-z\u{3}\u{1a}\u{e9}\u{4e2d}\u{1f600}\u{301}\\\\'\"; #{}$~-]|[ -~]){0,4000}",
        ) {
            let text = format!("{text}.");
            let mut together = Vec::new();
            for chunk in chunks(&json!(text)) {
                let bytes = typed(&chunk.command);
                prop_assert!(bytes.len() <= CHUNK_BYTES && bytes.len() == chunk.bytes);
                prop_assert!(std::str::from_utf8(&bytes).is_ok());
                let interrupting = bytes.iter().filter(|byte| INTERRUPTS.contains(byte)).count();
                prop_assert_eq!(interrupting, if chunk.interrupts { bytes.len() } else { 0 });
                together.extend(bytes);
            }
            prop_assert_eq!(String::from_utf8(together), Ok(text));
        }

        #[test]
        fn no_list_of_strings_makes_a_command_of_its_own(
            keys in proptest::collection::vec("[ -~\n\r\u{0}-\u{1f}\u{e9}]{0,6}|([CMS]-){0,4}([!-~]|[A-Z][a-z]{1,8}|F[0-9]{1,2})", 0..30),
        ) {
            for chunk in chunks(&json!(keys)) {
                let safe = |byte: u8| byte.is_ascii_alphanumeric() || b" -%*+./".contains(&byte);
                prop_assert!(chunk.command.bytes().all(safe), "{}", chunk.command);
                prop_assert!(chunk.command.starts_with("send-keys -t %0 -"));
                prop_assert!(chunk.bytes > 0 && chunk.bytes <= CHUNK_BYTES);
            }
        }
    }
}
