//! Calls whose arguments are elements with raw text: `<parameter=k>v</parameter>`.
//!
//! Nothing is escaped in such a form, so a value may hold its own closing tag. A value ends at the
//! first closing tag behind which another argument begins, or its call or its block ends, or the
//! text; what a value quotes of a whole block, from its opening to its closing mark, is skipped. A
//! value that holds the very sequence that would end it cannot be told from one that ends there:
//! that is the form's, and its first reading counts.
//!
//! A value that is not closed before its block ends makes the call unreadable, since it would run
//! with the wrong text.

use serde_json::Value;

use super::Repair;
use super::marks::Tags;
use super::reading::{Found, Reading};
use crate::tool::JsonObject;
use crate::tool::python_json;

/// A call that cannot be read.
pub(super) struct Unread {
    pub(super) name: Option<String>,
    pub(super) reason: String,
    /// Where its end is to be looked for.
    pub(super) from: usize,
}

/// What the opening tag of a call or an argument says.
struct Opening {
    name: String,
    /// The attribute `string`, if there is one.
    string: Option<bool>,
    /// The place behind the tag.
    after: usize,
}

impl Tags {
    /// Reads the call whose opening tag begins at `at`. Its span begins there.
    pub(super) fn read_call(&self, reading: &Reading<'_>, at: usize) -> Result<Found, Unread> {
        let scan = &reading.scan;
        let opening = self.opening(reading, at, self.call.0)?;
        let name = opening.name;
        let fail =
            |from: usize, reason: String| Err(Unread { name: Some(name.clone()), reason, from });
        let mut arguments = JsonObject::new();
        let mut untyped = Vec::new();
        let mut at = opening.after;
        let missing = loop {
            at = scan.skip_space(at);
            if scan.is_at(at, self.call.1) {
                at += self.call.1.len();
                break false;
            }
            // A block, or a text, that ends behind an argument ends the call too.
            if scan.is_at(at, self.block.1) || (!arguments.is_empty() && scan.is_over(at)) {
                break true;
            }
            if !scan.is_at(at, self.argument.0) {
                let reason = match scan.is_over(at) {
                    true => format!("the text ends before {}", self.call.1),
                    false => format!("expected an argument or {} {}", self.call.1, reading.at(at)),
                };
                return fail(at, reason);
            }
            let argument = match self.opening(reading, at, self.argument.0) {
                Ok(argument) => argument,
                Err(unread) => return fail(unread.from, unread.reason),
            };
            let key = argument.name;
            let value = match self.value(reading, argument.after) {
                Ok((end, after)) => {
                    at = after;
                    self.without_line_breaks(&reading.text()[argument.after..end])
                }
                Err(from) => {
                    let close = self.argument.1;
                    let place = reading.at(argument.after);
                    let reason = format!("the argument {key:?} has no {close} ({place})");
                    return fail(from, reason);
                }
            };
            if arguments.contains_key(&key) {
                return fail(at, format!("the argument {key:?} is given twice"));
            }
            let value = match argument.string {
                Some(false) => python_json::parse(value.trim()).ok(),
                _ => None,
            }
            .unwrap_or_else(|| {
                if argument.string != Some(true) {
                    untyped.push(key.clone());
                }
                Value::String(value.to_owned())
            });
            arguments.insert(key, value);
        };
        let mut call = Found {
            format: self.format,
            name,
            arguments: Value::Object(arguments),
            untyped,
            id: None,
            repairs: Vec::new(),
            span: (0, at),
        };
        if missing {
            call.repairs.push(Repair::MissingEndMark);
        }
        Ok(call)
    }

    /// The name in the opening tag of the call at `at`, and the place behind the tag.
    pub(super) fn name_at(&self, reading: &Reading<'_>, at: usize) -> Option<(String, usize)> {
        let opening = self.opening(reading, at, self.call.0).ok()?;
        Some((opening.name, opening.after))
    }

    /// Reads an opening tag that begins with `prefix` at `at`.
    fn opening(
        &self,
        reading: &Reading<'_>,
        at: usize,
        prefix: &'static str,
    ) -> Result<Opening, Unread> {
        let scan = &reading.scan;
        let from = at + prefix.len();
        let fail = |reason: String| Err(Unread { name: None, reason, from });
        // A tag is on one line, and short.
        let rest = scan.rest(from);
        let line = rest.bytes().take(MAX_TAG).position(|b| matches!(b, b'>' | b'\n'));
        scan.walked(line.unwrap_or(MAX_TAG.min(rest.len())) + 1);
        let end = line.filter(|end| rest.as_bytes()[*end] == b'>');
        let Some(end) = end else {
            return fail(format!("the tag {prefix}…> {} is not closed", reading.at(at)));
        };
        let (inside, after) = (&rest[..end], from + end + 1);
        let (name, string) = match self.attributes {
            false => (inside.trim().trim_matches(['"', '\'']).to_owned(), None),
            true => {
                let string = attribute(inside, "string").map(|value| value == "true");
                (attribute(inside, "name").unwrap_or_default(), string)
            }
        };
        if name.is_empty() {
            return fail(format!("the tag {prefix}…> {} gives no name", reading.at(at)));
        }
        Ok(Opening { name, string, after })
    }

    /// Where the value that begins at `from` ends, and the place behind its closing tag.
    ///
    /// # Errors
    /// It is not closed; the end of its call is to be looked for at the place given.
    fn value(&self, reading: &Reading<'_>, from: usize) -> Result<(usize, usize), usize> {
        let scan = &reading.scan;
        value_end(reading, from, |at, is_outermost| {
            if scan.is_at(at, self.argument.1) {
                let after = at + self.argument.1.len();
                let ends = is_outermost && self.ends_a_value(reading, after);
                if ends { Tag::EndOfValue(after) } else { Tag::Other }
            } else if scan.is_at(at, self.call.1) || scan.is_at(at, self.block.1) {
                if is_outermost && self.ends_a_block(reading, at) {
                    Tag::EndOfBlock
                } else if scan.is_at(at, self.block.1) {
                    Tag::EndOfQuoted
                } else {
                    Tag::Other
                }
            } else if self.opens_a_block(reading, at) {
                Tag::BeginOfQuoted
            } else {
                Tag::Other
            }
        })
    }

    /// Whether what stands at `at` can follow a value's closing tag.
    fn ends_a_value(&self, reading: &Reading<'_>, at: usize) -> bool {
        let scan = &reading.scan;
        let at = scan.skip_space(at);
        at >= scan.end
            || scan.is_at(at, self.argument.0)
            || scan.is_at(at, self.call.1)
            || scan.is_at(at, self.block.1)
    }

    /// Whether a whole block ends here: its call and itself, or itself before the text or another.
    fn ends_a_block(&self, reading: &Reading<'_>, at: usize) -> bool {
        let scan = &reading.scan;
        if scan.is_at(at, self.call.1) {
            let next = scan.skip_space(at + self.call.1.len());
            return scan.is_at(next, self.block.1) || next >= scan.end;
        }
        let next = scan.skip_space(at + self.block.1.len());
        next >= scan.end || self.opens_a_block(reading, next)
    }

    fn opens_a_block(&self, reading: &Reading<'_>, at: usize) -> bool {
        let scan = &reading.scan;
        scan.is_at(at, self.block.0)
            && scan.is_at(scan.skip_space(at + self.block.0.len()), self.call.0)
    }

    fn without_line_breaks<'v>(&self, value: &'v str) -> &'v str {
        if !self.line_breaks {
            return value;
        }
        let value =
            value.strip_prefix("\r\n").or_else(|| value.strip_prefix('\n')).unwrap_or(value);
        value.strip_suffix("\r\n").or_else(|| value.strip_suffix('\n')).unwrap_or(value)
    }
}

/// What a tag in a value is.
pub(super) enum Tag {
    /// It closes the value; behind it goes on what comes then.
    EndOfValue(usize),
    /// It closes the block that the value is in: the value is not closed.
    EndOfBlock,
    /// It closes a whole block that the value quotes.
    EndOfQuoted,
    /// It opens such a block.
    BeginOfQuoted,
    /// It is text.
    Other,
}

/// Where the value that begins at `from` ends, and the place behind its closing tag. `tag` says
/// what stands at a `<`, and is told whether that is in no quoted block.
///
/// # Errors
/// It is not closed; the end of its call is to be looked for at the place given.
pub(super) fn value_end(
    reading: &Reading<'_>,
    from: usize,
    tag: impl Fn(usize, bool) -> Tag,
) -> Result<(usize, usize), usize> {
    let scan = &reading.scan;
    let (mut at, mut depth) = (from, 0_usize);
    loop {
        let Some(next) = scan.rest(at).find('<') else {
            scan.walked(scan.end.saturating_sub(at));
            return Err(from);
        };
        scan.walked(next + 1);
        at += next;
        match tag(at, depth == 0) {
            Tag::EndOfValue(after) => return Ok((at, after)),
            Tag::EndOfBlock => return Err(at),
            Tag::EndOfQuoted => depth = depth.saturating_sub(1),
            Tag::BeginOfQuoted => depth += 1,
            Tag::Other => {}
        }
        at += 1;
    }
}

/// The longest inside of a tag, in bytes.
const MAX_TAG: usize = 1_024;

/// The value of an attribute in the inside of a tag.
fn attribute(inside: &str, wanted: &str) -> Option<String> {
    let mut rest = inside.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''));
        let (value, next) = match quote {
            Some(quote) => after[1..].split_once(quote)?,
            None => after.split_at(after.find(char::is_whitespace).unwrap_or(after.len())),
        };
        if key.trim() == wanted {
            return Some(value.to_owned());
        }
        rest = next.trim_start();
    }
    None
}
