//! The one pass over a text: from mark to mark, each family's reader in its turn.
//!
//! What bounds the work is here: a reader looks at each byte behind its mark at most a few times,
//! and where broken calls make readers look at the same bytes again and again, [`STEPS_PER_BYTE`]
//! or [`MAX_BROKEN`] ends the pass, with the rest of the text as one call that cannot be read.

use super::marks::Mark;
use super::reading::{Block, Broken, Item, Reading};
use super::{
    Format, deepseek, fenced, gemma, granite, harmony, hermes, invoke, kimi, llama, minimax,
    mistral, qwen, think, unmarked,
};

/// How often each byte may be looked at before a text counts as too broken to go on.
const STEPS_PER_BYTE: usize = 64;

/// How many calls of one text may be unreadable before the rest of it is not looked at.
const MAX_BROKEN: usize = 1_000;

impl Reading<'_> {
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
