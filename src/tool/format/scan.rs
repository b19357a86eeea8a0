//! A text under a cursor that never goes far back: finding marks, skipping space, counting steps.
//!
//! Every loop over the bytes of a text is here or reports its length to [`Scanner::walked`], so
//! that [`Scanner::steps`] bounds the work. A search whose answer is known is not repeated: each
//! needle remembers the last place that was searched from and what was found, so that any number
//! of searches with growing starts cost one pass over the text.

use std::cell::{Cell, RefCell};

use super::Place;

/// Tokens with which models end a message. Servers that do not strip them leave them in the text.
const END_TOKENS: [&str; 17] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|observation|>",
    "<|user|>",
    "</s>",
    "<eos>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "<end_of_sentence>",
    "[e~[",
    "<|end_of_role|>",
];

/// A text and what is known of it.
pub(super) struct Scanner<'t> {
    pub(super) text: &'t str,
    /// Where the text ends without white space and end tokens.
    pub(super) end: usize,
    steps: Cell<usize>,
    /// For each needle: searched from here, found there.
    searches: RefCell<Vec<(&'static str, usize, Option<usize>)>>,
    /// The last place whose line was counted: byte, line, start of that line.
    line: Cell<(usize, usize, usize)>,
}

impl<'t> Scanner<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let mut end = text.trim_end().len();
        while let Some(rest) = END_TOKENS.iter().find_map(|token| text[..end].strip_suffix(token)) {
            end = rest.trim_end().len();
        }
        let (steps, searches) = (Cell::new(text.len() - end), RefCell::default());
        Self { text, end, steps, searches, line: Cell::new((0, 1, 0)) }
    }

    /// How many bytes were looked at.
    pub(super) fn steps(&self) -> usize {
        self.steps.get()
    }

    /// Counts bytes that a caller has looked at itself.
    pub(super) fn walked(&self, bytes: usize) {
        self.steps.set(self.steps.get() + bytes);
    }

    /// The text from `at` on, up to its end without end tokens. Inside a character it begins with
    /// the next one.
    pub(super) fn rest(&self, at: usize) -> &'t str {
        let mut at = at.min(self.end);
        while !self.text.is_char_boundary(at) {
            at += 1;
        }
        &self.text[at..self.end]
    }

    /// Whether `needle` stands at `at`.
    pub(super) fn is_at(&self, at: usize, needle: &str) -> bool {
        self.walked(1);
        self.text.as_bytes().get(at..).is_some_and(|rest| rest.starts_with(needle.as_bytes()))
    }

    /// The byte at `at`.
    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes()[..self.end].get(at).copied()
    }

    /// The first place at or after `at` without white space.
    pub(super) fn skip_space(&self, at: usize) -> usize {
        let rest = self.rest(at);
        let skipped = rest.len() - rest.trim_start().len();
        self.walked(skipped + 1);
        at.max(self.end - rest.len() + skipped)
    }

    /// Whether nothing but white space follows `at`.
    pub(super) fn is_over(&self, at: usize) -> bool {
        self.skip_space(at) >= self.end
    }

    /// Whether a model ended a message at `at`.
    pub(super) fn is_end_token(&self, at: usize) -> bool {
        END_TOKENS.iter().any(|token| self.is_at(at, token))
    }

    /// Whether there is nothing but white space between two places.
    pub(super) fn is_blank(&self, from: usize, to: usize) -> bool {
        let between = self.text.get(from..to).unwrap_or_default();
        let blank = between.trim_start().is_empty();
        self.walked(if blank { between.len() } else { 1 });
        blank
    }

    /// Where `needle` stands first at or after `from`.
    pub(super) fn find(&self, needle: &'static str, from: usize) -> Option<usize> {
        let mut searches = self.searches.borrow_mut();
        let known = searches.iter_mut().find(|(known, ..)| *known == needle);
        if let Some((_, searched, found)) = &known
            && *searched <= from
            && found.is_none_or(|found| from <= found)
        {
            self.walked(1);
            return *found;
        }
        let found = self.text.get(from..).and_then(|rest| rest.find(needle)).map(|at| from + at);
        self.walked(found.unwrap_or(self.text.len()).saturating_sub(from) + needle.len());
        match known {
            Some(known) => *known = (needle, from, found),
            None => searches.push((needle, from, found)),
        }
        found
    }

    /// The place of `start..end`. Cheap where places are asked for in their order.
    pub(super) fn place(&self, start: usize, end: usize) -> Place {
        let (mut at, mut line, mut line_start) = self.line.get();
        if start < at {
            (at, line, line_start) = (0, 1, 0);
        }
        let between = &self.text.as_bytes()[at..start];
        self.walked(between.len());
        for (index, byte) in between.iter().enumerate() {
            if *byte == b'\n' {
                line += 1;
                line_start = at + index + 1;
            }
        }
        self.line.set((start, line, line_start));
        let column = &self.text[line_start..start];
        self.walked(column.len().min(MAX_COLUMN));
        // A line of megabytes is no line whose columns are of use; it is not counted each time.
        let column = match column.len() <= MAX_COLUMN {
            true => column.chars().count() + 1,
            false => column.len() + 1,
        };
        Place { start, end, line, column }
    }
}

/// The longest beginning of a line, in bytes, whose characters are counted. Beyond it a column is
/// counted in bytes.
const MAX_COLUMN: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_tokens_and_space_after_a_text_do_not_belong_to_it() {
        for text in ["f", "f\n", "f<|im_end|>", "f </s> <|eot_id|>\n\n", "f<｜end▁of▁sentence｜>"]
        {
            assert_eq!(Scanner::new(text).end, 1, "{text}");
        }
        assert_eq!(Scanner::new("<|im_end|>").end, 0);
    }

    #[test]
    fn searches_with_growing_starts_cost_one_pass() {
        let text = "a".repeat(10_000) + "</x>";
        let scanner = Scanner::new(&text);
        for from in 0..10_000 {
            assert_eq!(scanner.find("</x>", from), Some(10_000));
            assert_eq!(scanner.find("</y>", from), None);
        }
        assert!(scanner.steps() < 45_000, "{}", scanner.steps());
        // Behind what was found the search goes on; before its start it begins anew.
        assert_eq!(scanner.find("</x>", 10_001), None);
        assert_eq!(scanner.find("</x>", 5), Some(10_000));
    }

    #[test]
    fn lines_and_columns_are_counted_from_one_and_columns_in_characters() {
        let scanner = Scanner::new("é<a>\n\nüü<b>");
        let place = |at| {
            let Place { line, column, .. } = scanner.place(at, at);
            (line, column)
        };
        assert_eq!(place(0), (1, 1));
        assert_eq!(place(2), (1, 2));
        assert_eq!(place(7), (3, 1));
        assert_eq!(place(11), (3, 3));
        assert_eq!(place(2), (1, 2));
    }
}
