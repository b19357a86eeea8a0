//! The processes that a command left running and that were ended with it, as a result tells of
//! them. Pure.
//!
//! Their names are chosen by the command: here they become short printable text, so that they
//! neither break the line that the model reads nor change how a terminal shows it.

use serde_json::{Value, json};

use super::init::message::{MOST_COUNTED, MOST_NAMES, NAME_LENGTH};

/// The processes that a command left running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedProcesses {
    /// How many, at most [`MOST_COUNTED`].
    count: usize,
    /// Their names, each once, at most [`MOST_NAMES`].
    names: Vec<String>,
}

impl EndedProcesses {
    /// So many processes with these names, each of which has a NUL at its end.
    pub(super) fn new(count: u32, names: &[u8]) -> Self {
        let names = names.split_inclusive(|byte| *byte == 0).take(MOST_NAMES).map(printable);
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(MOST_COUNTED);
        Self { count, names: names.collect() }
    }

    /// The metadata `ended_processes`.
    pub(super) fn to_json(&self) -> Value {
        json!({"count": self.count, "names": self.names})
    }

    /// The line for the model.
    pub(super) fn note(&self) -> String {
        let Self { count, names } = self;
        let what = match *count {
            1 => "1 background process was".to_owned(),
            MOST_COUNTED.. => format!("{MOST_COUNTED} or more background processes were"),
            _ => format!("{count} background processes were"),
        };
        // There may be more where the list is full.
        let more = if names.len() == MOST_NAMES && *count > MOST_NAMES { ", …" } else { "" };
        let names = names.join(", ");
        format!(
            "[{what} ended with this call: {names}{more}; use terminal_stateful to keep a process \
             running between calls]"
        )
    }
}

/// A name as text without what is not to be seen, or moves what is.
fn printable(name: &[u8]) -> String {
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    let name = String::from_utf8_lossy(&name[..name.len().min(NAME_LENGTH)]);
    let shown = |c: char| if is_invisible(c) { '?' } else { c };
    match name.trim().is_empty() {
        true => "?".to_owned(),
        false => name.chars().map(shown).collect(),
    }
}

/// Control characters, line separators, and what changes the direction or joins of text.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HINT: &str = "; use terminal_stateful to keep a process running between calls]";

    fn of(count: u32, names: &[&str]) -> EndedProcesses {
        let names: String = names.iter().map(|name| format!("{name}\0")).collect();
        EndedProcesses::new(count, names.as_bytes())
    }

    #[test]
    fn the_line_has_the_count_and_each_name() {
        let note = |count, names| of(count, names).note();
        assert_eq!(
            note(1, &["sleep"]),
            format!("[1 background process was ended with this call: sleep{HINT}")
        );
        assert_eq!(
            note(3, &["sleep", "python3"]),
            format!("[3 background processes were ended with this call: sleep, python3{HINT}")
        );
        let ten = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        assert!(note(10, &ten).contains(": a, b, c, d, e, f, g, h, i, j; use"));
        assert!(note(11, &ten).contains(", i, j, …; use"));
        assert!(note(u32::MAX, &["x"]).starts_with("[1000 or more background processes were"));
    }

    #[test]
    fn the_metadata_have_the_count_and_the_names() {
        let json = of(3, &["sleep", "python3"]).to_json();
        assert_eq!(json, json!({"count": 3, "names": ["sleep", "python3"]}));
    }

    #[test]
    fn a_name_cannot_break_the_line_or_turn_it_round() {
        let names = of(4, &["a\nb\x1b[2J", "\u{202e}evil", "", " \t"]).names;
        assert_eq!(names, ["a?b?[2J", "?evil", "?", "?"]);
        let cut = EndedProcesses::new(1, b"\xff\xfe\xc3\0").names;
        assert_eq!(cut, ["\u{fffd}\u{fffd}\u{fffd}"]);
    }

    proptest! {
        #[test]
        fn whatever_the_names_are_the_line_is_one_short_line(
            count in any::<u32>(),
            names in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let ended = EndedProcesses::new(count, &names);
            prop_assert!(ended.names.len() <= MOST_NAMES);
            let note = ended.note();
            prop_assert!(note.chars().count() < 400 && !note.chars().any(is_invisible), "{}", note);
        }
    }
}
