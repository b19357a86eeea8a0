//! Calls without a mark: a JSON object or a list of them, `[f(k="v")]`.
//!
//! They count only as the whole message (behind its thinking), and, where the form was not asked
//! for by name, only if they name a registered tool: anything may be JSON. JSON that breaks off
//! counts as a call that cannot be read if it names a registered tool at its beginning.

use super::Format;
use super::json::{self, Wrapping};
use super::llama::read_python;
use super::reading::{Block, Item, Reading};

/// The calls that the text from `from` on is, or none.
pub(super) fn read(reading: &Reading<'_>, from: usize) -> Vec<Item> {
    let asked = reading.options.format;
    let at = reading.scan.skip_space(from);
    let json = |format| {
        let wrapping = Wrapping { format, start: at, closes: &[], semicolons: true };
        json::read(reading, &wrapping, at)
    };
    let python = |format| read_python(reading, format, at, at, &[]);
    let list_of_objects = reading.scan.byte(reading.scan.skip_space(at + 1)) == Some(b'{');
    let block = match (asked, reading.scan.byte(at)) {
        (Format::Auto | Format::Llama3 | Format::Gemma, Some(b'{')) => json(or_llama_3(asked)),
        (Format::Auto | Format::Llama3 | Format::Gemma, Some(b'[')) if list_of_objects => {
            json(or_llama_3(asked))
        }
        (Format::Auto, Some(b'[')) => python(Format::Llama4),
        (Format::Llama4 | Format::Gemma, Some(b'[')) => python(asked),
        _ => return Vec::new(),
    };
    match is_meant(reading, &block) {
        true => block.items,
        false => Vec::new(),
    }
}

fn or_llama_3(asked: Format) -> Format {
    if asked == Format::Auto { Format::Llama3 } else { asked }
}

/// Whether what was read is the message, and is a call.
fn is_meant(reading: &Reading<'_>, block: &Block) -> bool {
    let names = || {
        block.items.iter().filter_map(|item| match item {
            Item::Call(call) => Some(call.name.as_str()),
            Item::Broken(broken) => broken.name.as_deref(),
        })
    };
    let whole = reading.scan.is_over(block.end);
    let broken = block.items.iter().any(|item| matches!(item, Item::Broken(_)));
    let known = names().any(|name| reading.options.is_tool(name));
    match reading.options.format {
        Format::Auto => whole && known,
        // Asked for by name: the executor answers what names no tool.
        _ => whole && (known || !broken || names().next().is_some()),
    }
}
