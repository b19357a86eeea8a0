//! A text that is being read, and what readers find in it.
//!
//! A family's reader is given the place of its opening mark and gives a [`Block`]: the calls in it,
//! those that cannot be read, and where the pass goes on. It never fails. The pass itself is
//! `pass`.

use std::cell::Cell;

use serde_json::Value;

use super::marks::{Mark, marks_of};
use super::scan::Scanner;
use super::{CallParser, Format, Repair};

/// A call as its form gives it.
pub(super) struct Found {
    pub(super) format: Format,
    pub(super) name: String,
    pub(super) arguments: Value,
    /// The arguments that are strings because their form has only text.
    pub(super) untyped: Vec<String>,
    pub(super) id: Option<String>,
    pub(super) repairs: Vec<Repair>,
    /// From its first mark to behind its last.
    pub(super) span: (usize, usize),
}

/// What is a call by its marks and cannot be read.
pub(super) struct Broken {
    pub(super) format: Format,
    pub(super) name: Option<String>,
    pub(super) reason: String,
    pub(super) span: (usize, usize),
}

pub(super) enum Item {
    Call(Found),
    Broken(Broken),
}

/// What a reader found behind one opening mark.
pub(super) struct Block {
    pub(super) items: Vec<Item>,
    /// Where the pass goes on.
    pub(super) end: usize,
}

impl Block {
    /// No call: a mark that only wraps others, or that is no call's.
    pub(super) fn empty(end: usize) -> Self {
        Self { items: Vec::new(), end }
    }

    pub(super) fn of(call: Found) -> Self {
        let end = call.span.1;
        Self { items: vec![Item::Call(call)], end }
    }
}

/// What closes a call, or does not.
pub(super) enum Closing {
    /// The mark that closes it ends here.
    Closed(usize),
    /// The text is over here, or the next mark begins.
    Missing(usize),
    /// Something else stands here.
    Text(usize),
}

/// A text that is being read.
pub(super) struct Reading<'t> {
    pub(super) scan: Scanner<'t>,
    pub(super) options: &'t CallParser<'t>,
    marks: Vec<(&'static str, Mark)>,
    pub(super) unclosed_thinking: Cell<bool>,
}

impl<'t> Reading<'t> {
    pub(super) fn new(options: &'t CallParser<'t>, text: &'t str) -> Self {
        let marks = marks_of(options.format);
        let (scan, unclosed_thinking) = (Scanner::new(text), Cell::new(false));
        Self { scan, options, marks, unclosed_thinking }
    }

    pub(super) fn text(&self) -> &'t str {
        self.scan.text
    }

    /// The next mark at or after `from`: where it begins, what it is, where it ends.
    pub(super) fn next_mark(&self, from: usize) -> Option<(usize, Mark, usize)> {
        let bytes = self.text().as_bytes();
        let mut at = from;
        loop {
            let rest = bytes.get(at..)?;
            let skipped = rest.iter().position(|b| matches!(b, b'<' | b'[' | b'`' | 0xe2));
            self.scan.walked(skipped.unwrap_or(rest.len()) + 1);
            at += skipped?;
            if let Some((mark, after)) = self.mark_at(at) {
                return Some((at, mark, after));
            }
            at += 1;
        }
    }

    /// The mark that begins at `at`, and where it ends.
    pub(super) fn mark_at(&self, at: usize) -> Option<(Mark, usize)> {
        let bytes = self.text().as_bytes();
        let rest = bytes.get(at..)?;
        let (text, mark) = self.marks.iter().find(|(mark, _)| rest.starts_with(mark.as_bytes()))?;
        let after = at + text.len();
        let next = bytes.get(after);
        // `<tool_call>` in backticks is spoken of, not used.
        let mentioned = at > 0 && bytes[at - 1] == b'`' && next == Some(&b'`');
        // So is a closing tag in quotes, most likely in a call that could not be read.
        let quoted =
            matches!(mark, Mark::ThinkEnd) && matches!(next, Some(b'"' | b'\'' | b'\\' | b'`'));
        (!mentioned && !quoted).then_some((*mark, after))
    }

    /// What stands at `at`, where one of `closes` should.
    pub(super) fn closing(&self, at: usize, closes: &[&'static str]) -> Closing {
        let at = self.scan.skip_space(at);
        if let Some(close) = closes.iter().find(|close| self.scan.is_at(at, close)) {
            return Closing::Closed(at + close.len());
        }
        let is_end = at >= self.scan.end || self.mark_at(at).is_some();
        match is_end || self.scan.is_end_token(at) {
            true => Closing::Missing(at.min(self.scan.end)),
            false => Closing::Text(at),
        }
    }

    /// A call that cannot be read. It ends with the first of `closes` at or after `from`, and
    /// before the next mark.
    pub(super) fn broken(
        &self,
        (format, start): (Format, usize),
        name: Option<String>,
        reason: impl Into<String>,
        from: usize,
        closes: &[&'static str],
    ) -> Broken {
        let next = self.next_mark(from).map_or(self.scan.end.max(from), |(at, ..)| at);
        let close = closes.iter().filter_map(|close| {
            self.scan.find(close, from).map(|at| at + close.len()).filter(|end| *end <= next)
        });
        let end = close.min().unwrap_or(next);
        Broken { format, name, reason: reason.into(), span: (start, end) }
    }

    /// [`broken`](Self::broken) as a block of its own, behind `items` that were read before it.
    pub(super) fn broken_block(&self, mut items: Vec<Item>, broken: Broken) -> Block {
        let end = broken.span.1;
        items.push(Item::Broken(broken));
        Block { items, end }
    }

    /// `at line 3, column 7`
    pub(super) fn at(&self, offset: usize) -> String {
        let mut offset = offset.min(self.text().len());
        while !self.text().is_char_boundary(offset) {
            offset -= 1;
        }
        let place = self.scan.place(offset, offset);
        format!("at line {}, column {}", place.line, place.column)
    }

    /// The text between two places without the white space around it.
    pub(super) fn trimmed(&self, from: usize, to: usize) -> &'t str {
        self.scan.walked(to.saturating_sub(from).min(64));
        self.text().get(from..to).unwrap_or_default().trim()
    }
}
