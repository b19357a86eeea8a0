//! The one pass over a text: from mark to mark, each family's reader in its turn.
//!
//! A reader is given the place of its opening mark and gives a [`Block`]: the calls in it, those
//! that cannot be read, and where the pass goes on. It never fails. What bounds the work is here:
//! a reader looks at each byte behind its mark at most a few times, and where broken calls make
//! readers look at the same bytes again and again, [`STEPS_PER_BYTE`] or [`MAX_BROKEN`] ends the
//! pass, with the rest of the text as one call that cannot be read.

use std::cell::Cell;

use serde_json::Value;

use super::marks::{Mark, marks_of};
use super::scan::Scanner;
use super::{
    CallParser, Format, Repair, deepseek, fenced, gemma, granite, harmony, hermes, invoke, kimi,
    llama, minimax, mistral, qwen, think, unmarked,
};

/// How often each byte may be looked at before a text counts as too broken to go on.
const STEPS_PER_BYTE: usize = 64;

/// How many calls of one text may be unreadable before the rest of it is not looked at.
const MAX_BROKEN: usize = 1_000;

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

    /// All calls of the text, in their order.
    pub(super) fn items(&self) -> Vec<Item> {
        let mut items = Vec::new();
        let (mut at, mut broken) = (0, 0);
        // What the model shows: the text behind its thinking, and whether any stands before it.
        let (mut shown_from, mut thought, mut shown_before) = (0, false, false);
        while let Some((start, mark, after)) = self.next_mark(at) {
            if broken >= MAX_BROKEN || self.scan.steps() > self.most_steps() {
                items.push(self.too_broken(start));
                break;
            }
            match mark {
                Mark::ThinkStart(kind) => {
                    shown_before |= !self.scan.is_blank(shown_from, start);
                    thought = true;
                    at = match self.scan.find(think::CLOSE[kind], after) {
                        Some(close) => close + think::CLOSE[kind].len(),
                        None => {
                            self.unclosed_thinking.set(true);
                            self.text().len()
                        }
                    };
                    shown_from = at;
                    continue;
                }
                // The prompt opened the thinking: all so far belongs to it.
                Mark::ThinkEnd if !thought => {
                    thought = true;
                    items.clear();
                    broken = 0;
                    at = after;
                    shown_from = at;
                    continue;
                }
                Mark::ThinkEnd => {
                    at = after;
                    continue;
                }
                _ => {}
            }
            let block = self.block(mark, start, after);
            at = block.end.max(after);
            for mut item in block.items {
                self.refuse_other_format(&mut item);
                broken += usize::from(matches!(item, Item::Broken(_)));
                if self.options.format == Format::FencedBash {
                    fenced::push(&mut items, item);
                } else {
                    items.push(item);
                }
            }
        }
        if items.is_empty() && !shown_before && !self.unclosed_thinking.get() {
            return unmarked::read(self, shown_from);
        }
        items
    }

    fn block(&self, mark: Mark, start: usize, after: usize) -> Block {
        match mark {
            Mark::ToolCall => hermes::read(self, start, after),
            Mark::Function => qwen::read_function(self, start, start),
            Mark::ToolCalls => minimax::read_m1(self, start, after),
            Mark::Invokes(tags) => invoke::read_block(self, tags, start, after),
            Mark::Invoke(tags) => invoke::read_bare(self, tags, start),
            Mark::DeepSeekSection => deepseek::read_section(self, start, after),
            Mark::DeepSeekCall => deepseek::read(self, start, after),
            Mark::KimiSection => kimi::read_section(self, start, after),
            Mark::KimiCall => kimi::read(self, start, after),
            Mark::PythonTag => llama::read_python_tag(self, start, after),
            Mark::PythonStart => llama::read_python_start(self, start, after),
            Mark::GraniteCalls => granite::read(self, start, after),
            Mark::MistralCalls => mistral::read(self, start, after),
            Mark::HarmonyHeader => harmony::read(self, start, after),
            Mark::BashFence => fenced::read(self, start, after),
            Mark::GemmaFence => gemma::read(self, start, after),
            Mark::ThinkStart(_) | Mark::ThinkEnd => Block::empty(after),
        }
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

    fn refuse_other_format(&self, item: &mut Item) {
        let asked = self.options.format;
        let Item::Call(call) = item else { return };
        if asked == Format::Auto || asked == call.format {
            return;
        }
        let found = call.format;
        *item = Item::Broken(Broken {
            format: asked,
            name: Some(std::mem::take(&mut call.name)),
            reason: format!("it is in the form {found}, and the form to be read is {asked}"),
            span: call.span,
        });
    }

    fn most_steps(&self) -> usize {
        STEPS_PER_BYTE * self.text().len() + 4_096
    }

    fn too_broken(&self, start: usize) -> Item {
        let reason = "so much before it cannot be read that the rest of the text was not looked at";
        let span = (start, self.scan.end.max(start));
        Item::Broken(Broken {
            format: self.options.format,
            name: None,
            reason: reason.to_owned(),
            span,
        })
    }
}
