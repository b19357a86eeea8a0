//! What became of the processes that commands leave running, as a result tells of it. Pure.
//!
//! Their names are chosen by the command: here they become short printable text, so that they
//! neither break the line that the model reads nor change how a terminal shows it.

use serde_json::{Value, json};

use super::init::message::{MOST_COUNTED, MOST_NAMES, NAME_LENGTH};

/// What a result tells of processes in the background.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BackgroundReport {
    /// Those that the command left, and that were ended with it. `None` where there were none, and
    /// where nothing looked: without a sandbox, and in the shell of a session.
    pub(super) ended: Option<Processes>,
    /// Those that the command left, and that go on running.
    pub(super) kept: Option<Processes>,
    /// Why those that earlier commands had left run no more, if they were ended since the latest
    /// result.
    pub(super) earlier_ended: Option<&'static str>,
}

impl BackgroundReport {
    /// The metadata, each with its key.
    pub(super) fn metadata(&self) -> impl Iterator<Item = (&'static str, Value)> {
        let json = |processes: &Option<Processes>| processes.as_ref().map(Processes::to_json);
        [
            ("ended_processes", json(&self.ended)),
            ("kept_processes", json(&self.kept)),
            ("earlier_processes_ended", self.earlier_ended.map(Value::from)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
    }

    /// The lines for the model.
    pub(super) fn notes(&self) -> Vec<String> {
        let earlier = self
            .earlier_ended
            .map(|why| format!("[the background processes of earlier calls were ended: {why}]"));
        let kept = self.kept.as_ref().map(|kept| {
            let verb = if kept.count == 1 { "goes" } else { "go" };
            format!("[{} {verb} on running: {}]", kept.what(), kept.names())
        });
        let ended = self.ended.as_ref().map(Processes::note_of_end);
        [earlier, kept, ended].into_iter().flatten().collect()
    }
}

/// The processes that a command left running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Processes {
    /// How many, at most [`MOST_COUNTED`].
    count: usize,
    /// Their names, each once, at most [`MOST_NAMES`].
    names: Vec<String>,
}

impl Processes {
    /// So many processes with these names, each of which has a NUL at its end.
    pub(super) fn new(count: u32, names: &[u8]) -> Self {
        let names = names.split_inclusive(|byte| *byte == 0).take(MOST_NAMES).map(printable);
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(MOST_COUNTED);
        Self { count, names: names.collect() }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"count": self.count, "names": self.names})
    }

    /// How many of what.
    fn what(&self) -> String {
        match self.count {
            1 => "1 background process".to_owned(),
            MOST_COUNTED.. => format!("{MOST_COUNTED} or more background processes"),
            count => format!("{count} background processes"),
        }
    }

    /// Their names, as one text.
    fn names(&self) -> String {
        // There may be more where the list is full.
        let is_cut = self.names.len() == MOST_NAMES && self.count > MOST_NAMES;
        format!("{}{}", self.names.join(", "), if is_cut { ", …" } else { "" })
    }

    fn note_of_end(&self) -> String {
        let (what, names) = (self.what(), self.names());
        let verb = if self.count == 1 { "was" } else { "were" };
        format!(
            "[{what} {verb} ended with this call: {names}; use terminal_stateful to keep a process \
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

    fn of(count: u32, names: &[&str]) -> Processes {
        let names: String = names.iter().map(|name| format!("{name}\0")).collect();
        Processes::new(count, names.as_bytes())
    }

    #[test]
    fn the_line_has_the_count_and_each_name() {
        let note = |count, names| of(count, names).note_of_end();
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
        let cut = Processes::new(1, b"\xff\xfe\xc3\0").names;
        assert_eq!(cut, ["\u{fffd}\u{fffd}\u{fffd}"]);
    }

    proptest! {
        #[test]
        fn whatever_the_names_are_the_line_is_one_short_line(
            count in any::<u32>(),
            names in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let ended = Processes::new(count, &names);
            prop_assert!(ended.names.len() <= MOST_NAMES);
            let note = ended.note_of_end();
            prop_assert!(note.chars().count() < 400 && !note.chars().any(is_invisible), "{}", note);
        }
    }
}
