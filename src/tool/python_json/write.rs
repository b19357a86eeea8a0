//! The writer, which appends to a string so that a caller can build its own object around it.

use std::fmt::{self, Write as _};

use serde_json::Value;

use crate::tool::JsonObject;

/// What becomes of characters outside ASCII when JSON is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonAscii {
    /// Escaped as `\uXXXX`, in surrogate pairs beyond U+FFFF; U+007F, too. The default of
    /// `json.dumps`.
    Escape,
    /// Kept, U+007F too: `json.dumps(…, ensure_ascii=False)`.
    Keep,
}

/// Writes `value` as `json.dumps` does: on one line, with `", "` and `": "` between its parts.
///
/// Doubles are written as Python's `repr`: `1.0`, `1e+16`, `1e-07`. Of two shortest forms that are
/// equally near, as `995206841505466.2` and `….3`, Python may take the other; both are the same
/// double.
pub fn to_string(value: &Value, non_ascii: NonAscii) -> String {
    let mut out = String::new();
    write_value(&mut out, value, non_ascii);
    out
}

/// Appends what [`to_string`] gives.
fn write_value(out: &mut String, value: &Value, non_ascii: NonAscii) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => write_float(out, float),
            _ => push_fmt(out, format_args!("{number}")),
        },
        Value::String(string) => write_string(out, string, non_ascii),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_value(out, item, non_ascii);
            }
            out.push(']');
        }
        Value::Object(object) => write_object(out, object, non_ascii),
    }
}

/// Appends an object as [`to_string`] writes it.
pub(crate) fn write_object(out: &mut String, object: &JsonObject, non_ascii: NonAscii) {
    out.push('{');
    for (index, (key, value)) in object.iter().enumerate() {
        out.push_str(if index == 0 { "" } else { ", " });
        write_string(out, key, non_ascii);
        out.push_str(": ");
        write_value(out, value, non_ascii);
    }
    out.push('}');
}

/// Appends a string as [`to_string`] writes it, with its quotes.
pub(crate) fn write_string(out: &mut String, string: &str, non_ascii: NonAscii) {
    out.reserve(string.len() + 2);
    out.push('"');
    let mut written = 0;
    for (at, character) in string.char_indices() {
        let plain = match character {
            '"' | '\\' | '\0'..='\u{1f}' => false,
            ' '..='~' => true,
            _ => non_ascii == NonAscii::Keep,
        };
        if plain {
            continue;
        }
        out.push_str(&string[written..at]);
        written = at + character.len_utf8();
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    push_fmt(out, format_args!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push_str(&string[written..]);
    out.push('"');
}

fn write_float(out: &mut String, float: f64) {
    // Rust's debug form has Python's digits and changes to exponents at the same magnitudes; only
    // the exponent itself looks different.
    let text = format!("{float:?}");
    match text.split_once('e') {
        None => out.push_str(&text),
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            push_fmt(out, format_args!("{mantissa}e{sign}{digits:0>2}"));
        }
    }
}

fn push_fmt(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dumps(value: Value) -> String {
        to_string(&value, NonAscii::Escape)
    }

    #[test]
    fn doubles_are_written_as_pythons_repr() {
        for (float, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (9999999999999998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1e-7, "1e-07"),
            (-1.5e300, "-1.5e+300"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            assert_eq!(dumps(json!(float)), text);
        }
        assert_eq!(
            dumps(json!([u64::MAX, i64::MIN])),
            format!("[{}, {}]", u64::MAX, i64::MIN)
        );
    }

    #[test]
    fn strings_are_escaped_as_python_escapes_them() {
        let string = Value::from("é\n\"q\"\\ <x>/\u{2028}\0\u{1b}\u{7f}\u{8}😀");
        assert_eq!(
            to_string(&string, NonAscii::Escape),
            r#""\u00e9\n\"q\"\\ <x>/\u2028\u0000\u001b\u007f\b\ud83d\ude00""#
        );
        assert_eq!(
            to_string(&string, NonAscii::Keep),
            "\"é\\n\\\"q\\\"\\\\ <x>/\u{2028}\\u0000\\u001b\u{7f}\\b😀\""
        );
    }
}
