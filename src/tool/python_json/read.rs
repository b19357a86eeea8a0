//! The reader: a recursive descent over the bytes of a text, with a bound on its depth.

use serde_json::Value;
use thiserror::Error;

use crate::tool::JsonObject;

/// The deepest nesting of arrays and objects that [`parse`] reads.
///
/// A little less than the 127 levels of `serde_json`, so that what was read here can be sent
/// inside an envelope and still be read there.
pub const MAX_DEPTH: usize = 120;

/// Reads one JSON text in Python's dialect; white space may surround it.
///
/// Of a key that is there twice the last value counts, at the first one's place. The time is
/// linear in the length of the text, and the stack is bounded whatever the text is.
///
/// # Errors
/// The first thing that `json.loads` would complain about, or nesting deeper than [`MAX_DEPTH`].
pub fn parse(text: &str) -> Result<Value, ParseError> {
    let mut parser = Parser { text, at: 0, mends: None };
    parser.skip_white_space();
    let value = parser.value(0)?;
    parser.skip_white_space();
    match parser.peek() {
        None => Ok(value),
        Some(_) => Err(parser.error("Extra data")),
    }
}

/// The small damage that [`parse_prefix`] mends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mends {
    /// A string held a control character, such as a line break, that was not escaped.
    pub(crate) raw_control_character: bool,
    /// A comma stood before a closing bracket.
    pub(crate) trailing_comma: bool,
}

/// Reads the JSON value that begins at `at`, in the dialect of [`parse`] and with damage that
/// leaves only one reading mended. Gives the value, the place behind it, and what was mended.
///
/// What follows the value is not looked at. The time is linear in the length of what is read.
///
/// # Errors
/// As [`parse`]; the offset counts from the start of `text`.
pub(crate) fn parse_prefix(text: &str, at: usize) -> Result<(Value, usize, Mends), ParseError> {
    let mut parser = Parser { text, at, mends: Some(Mends::default()) };
    let value = parser.value(0)?;
    Ok((value, parser.at, parser.mends.unwrap_or_default()))
}

/// Why a text is not JSON; the words are those of Python's `JSONDecodeError`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{message} (at byte {offset})")]
pub struct ParseError {
    message: &'static str,
    offset: usize,
}

impl ParseError {
    /// What is wrong, without the place.
    pub fn message(&self) -> &'static str {
        self.message
    }

    /// Where it is wrong, in bytes from the start of the text.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Bytes read so far; always a character boundary.
    at: usize,
    /// What was mended; `None` where nothing may be.
    mends: Option<Mends>,
}

impl Parser<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, ParseError> {
        match self.peek() {
            Some(b'"') => self.string().map(Value::String),
            Some(b'{' | b'[') if depth == MAX_DEPTH => Err(self.error("Nested too deeply")),
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.array(depth + 1),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.literal(),
        }
    }

    fn literal(&mut self) -> Result<Value, ParseError> {
        let literals = [
            ("null", Value::Null),
            ("true", Value::Bool(true)),
            ("false", Value::Bool(false)),
            ("NaN", Value::Null),
            ("Infinity", Value::Null),
        ];
        for (name, value) in literals {
            if self.skip_text(name) {
                return Ok(value);
            }
        }
        Err(self.error("Expecting value"))
    }

    fn object(&mut self, depth: usize) -> Result<Value, ParseError> {
        let mut object = JsonObject::new();
        self.at += 1;
        self.skip_white_space();
        if self.skip(b'}') {
            return Ok(Value::Object(object));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.error("Expecting property name enclosed in double quotes"));
            }
            let key = self.string()?;
            self.skip_white_space();
            if !self.skip(b':') {
                return Err(self.error("Expecting ':' delimiter"));
            }
            self.skip_white_space();
            let value = self.value(depth)?;
            object.insert(key, value);
            self.skip_white_space();
            if self.skip(b'}') {
                return Ok(Value::Object(object));
            }
            if !self.skip(b',') {
                return Err(self.error("Expecting ',' delimiter"));
            }
            self.skip_white_space();
            if self.mends_trailing_comma(b'}') {
                return Ok(Value::Object(object));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, ParseError> {
        let mut array = Vec::new();
        self.at += 1;
        self.skip_white_space();
        if self.skip(b']') {
            return Ok(Value::Array(array));
        }
        loop {
            array.push(self.value(depth)?);
            self.skip_white_space();
            if self.skip(b']') {
                return Ok(Value::Array(array));
            }
            if !self.skip(b',') {
                return Err(self.error("Expecting ',' delimiter"));
            }
            self.skip_white_space();
            if self.mends_trailing_comma(b']') {
                return Ok(Value::Array(array));
            }
        }
    }

    /// Whether `close` follows a comma, and that may be mended. Skips it then.
    fn mends_trailing_comma(&mut self, close: u8) -> bool {
        let Some(mends) = &mut self.mends else { return false };
        if self.text.as_bytes().get(self.at) != Some(&close) {
            return false;
        }
        mends.trailing_comma = true;
        self.at += 1;
        true
    }

    fn number(&mut self) -> Result<Value, ParseError> {
        let start = self.at;
        if self.skip(b'-') && self.skip_text("Infinity") {
            return Ok(Value::Null);
        }
        if !self.skip(b'0') && self.skip_digits() == 0 {
            self.at = start;
            return Err(self.error("Expecting value"));
        }
        let integer_end = self.at;
        // A fraction or exponent without digits is not part of the number (and then "Extra data").
        if self.skip(b'.') && self.skip_digits() == 0 {
            self.at = integer_end;
        }
        let mantissa_end = self.at;
        if self.skip(b'e') || self.skip(b'E') {
            let _sign = self.skip(b'+') || self.skip(b'-');
            if self.skip_digits() == 0 {
                self.at = mantissa_end;
            }
        }
        let digits = &self.text[start..self.at];
        if self.at == integer_end {
            if let Ok(integer) = digits.parse::<i64>() {
                return Ok(integer.into());
            }
            if let Ok(integer) = digits.parse::<u64>() {
                return Ok(integer.into());
            }
        }
        // The grammar above is within what `f64` parses; what is not finite becomes `null`.
        Ok(digits.parse::<f64>().map_or(Value::Null, Value::from))
    }

    /// Reads a string whose opening quote is the next byte.
    fn string(&mut self) -> Result<String, ParseError> {
        let start = self.at;
        let mut string = String::new();
        self.at += 1;
        loop {
            let rest = &self.text[self.at..];
            let run = rest.bytes().position(|b| b < 0x20 || b == b'"' || b == b'\\');
            let Some(run) = run else {
                return Err(ParseError {
                    message: "Unterminated string starting at",
                    offset: start,
                });
            };
            string.push_str(&rest[..run]);
            self.at += run;
            match rest.as_bytes()[run] {
                b'"' => {
                    self.at += 1;
                    return Ok(string);
                }
                b'\\' => string.push(self.escape(start)?),
                control => match &mut self.mends {
                    Some(mends) => {
                        mends.raw_control_character = true;
                        string.push(char::from(control));
                        self.at += 1;
                    }
                    None => return Err(self.error("Invalid control character at")),
                },
            }
        }
    }

    /// Reads an escape whose backslash is the next byte.
    fn escape(&mut self, string_start: usize) -> Result<char, ParseError> {
        let offset = self.at;
        self.at += 1;
        let Some(kind) = self.peek() else {
            let message = "Unterminated string starting at";
            return Err(ParseError { message, offset: string_start });
        };
        let character = match kind {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.at += 1;
                return self.unicode_escape();
            }
            _ => {
                return Err(ParseError { message: "Invalid \\escape", offset });
            }
        };
        self.at += 1;
        Ok(character)
    }

    /// Reads the digits after `\u`, and the second half of a surrogate pair if there is one.
    fn unicode_escape(&mut self) -> Result<char, ParseError> {
        let first = self.four_hex_digits()?;
        if (0xd800..0xdc00).contains(&first) {
            let after_first = self.at;
            if self.skip_text("\\u") {
                let second = self.four_hex_digits()?;
                if (0xdc00..0xe000).contains(&second) {
                    let scalar = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                    return Ok(char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                // Not a second half: a character of its own, to be read again.
                self.at = after_first;
            }
        }
        // `None` for a lone surrogate.
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn four_hex_digits(&mut self) -> Result<u32, ParseError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let number = digits.and_then(|digits| {
            digits
                .iter()
                .try_fold(0, |number, &digit| Some(number << 4 | char::from(digit).to_digit(16)?))
        });
        let Some(number) = number else {
            // Python points at the `u`.
            return Err(ParseError { message: "Invalid \\uXXXX escape", offset: self.at - 1 });
        };
        self.at += 4;
        Ok(number)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn skip_text(&mut self, text: &str) -> bool {
        let found = self.text.as_bytes()[self.at..].starts_with(text.as_bytes());
        if found {
            self.at += text.len();
        }
        found
    }

    fn skip_digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    /// JSON's white space, which is less than Unicode's.
    fn skip_white_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn error(&self, message: &'static str) -> ParseError {
        ParseError { message, offset: self.at }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_python_accepts_is_read() {
        for (text, value) in [
            (" \t\r\n[1, -2 ,3.5]\n", json!([1, -2, 3.5])),
            ("[NaN, Infinity, -Infinity, 1e999, -1e999]", json!([null, null, null, null, null])),
            ("-0", json!(0)),
            ("-0.0", json!(-0.0)),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("18446744073709551616", json!(18446744073709551616.0)),
            ("123456789012345678901234567890", json!(1.2345678901234568e29)),
            ("1E2", json!(100.0)),
            (r#""\ud83d\ude00""#, json!("😀")),
            (r#""\ud83d""#, json!("\u{fffd}")),
            (r#""\ude00\ud83dx""#, json!("\u{fffd}\u{fffd}x")),
            (r#""\ud83d\ud83d\ude00""#, json!("\u{fffd}😀")),
            (r#""\ud83d\u0041""#, json!("\u{fffd}A")),
            (r#""\"\\\/\b\f\n\r\t\u00E9é""#, json!("\"\\/\u{8}\u{c}\n\r\téé")),
            ("\"\u{7f}\u{2028}\"", json!("\u{7f}\u{2028}")),
            ("{}", json!({})),
        ] {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
        let huge = "9".repeat(400);
        assert_eq!(parse(&huge), Ok(Value::Null));
    }

    #[test]
    fn of_a_key_written_twice_the_last_value_counts_at_the_first_place() {
        let value = parse(r#"{"a": 1, "b": 2, "a": 3}"#).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), r#"{"a":3,"b":2}"#);
    }

    #[test]
    fn what_python_refuses_is_refused_in_its_words() {
        for (text, message, offset) in [
            ("", "Expecting value", 0),
            ("nul", "Expecting value", 0),
            ("-", "Expecting value", 0),
            ("-NaN", "Expecting value", 0),
            (".5", "Expecting value", 0),
            ("+1", "Expecting value", 0),
            ("\u{feff}1", "Expecting value", 0),
            ("\u{a0}1", "Expecting value", 0),
            ("01", "Extra data", 1),
            ("1.", "Extra data", 1),
            ("1e", "Extra data", 1),
            ("1.5e+", "Extra data", 3),
            ("{} x", "Extra data", 3),
            ("[1,]", "Expecting value", 3),
            ("[1 2]", "Expecting ',' delimiter", 3),
            ("[1", "Expecting ',' delimiter", 2),
            ("{'a': 1}", "Expecting property name enclosed in double quotes", 1),
            (r#"{"a": 1,}"#, "Expecting property name enclosed in double quotes", 8),
            (r#"{"a" 1}"#, "Expecting ':' delimiter", 5),
            ("\"a\nb\"", "Invalid control character at", 2),
            (r#"["ab"#, "Unterminated string starting at", 1),
            (r#"["ab\"#, "Unterminated string starting at", 1),
            (r#""\x41""#, "Invalid \\escape", 1),
            (r#""\u00g0""#, "Invalid \\uXXXX escape", 2),
            (r#""\u+123""#, "Invalid \\uXXXX escape", 2),
            (r#""\u12"#, "Invalid \\uXXXX escape", 2),
            (r#""\u1é""#, "Invalid \\uXXXX escape", 2),
        ] {
            assert_eq!(parse(text), Err(ParseError { message, offset }), "{text}");
        }
    }

    #[test]
    fn a_prefix_is_read_with_small_damage_mended_and_nothing_more() {
        let read = |text| parse_prefix(text, 1);
        let mended =
            |raw_control_character, trailing_comma| Mends { raw_control_character, trailing_comma };
        assert_eq!(read("x{\"a\": 1} tail"), Ok((json!({"a": 1}), 9, mended(false, false))));
        assert_eq!(read("x[1, 2, ]]"), Ok((json!([1, 2]), 9, mended(false, true))));
        assert_eq!(read("x{\"a\": 1,\n}"), Ok((json!({"a": 1}), 11, mended(false, true))));
        assert_eq!(read("x\"a\nb\t\""), Ok((json!("a\nb\t"), 7, mended(true, false))));
        for (text, message, offset) in [
            ("x[,]", "Expecting value", 2),
            ("x[1,,]", "Expecting value", 4),
            ("x{,}", "Expecting property name enclosed in double quotes", 2),
            ("x{\"a\": ,}", "Expecting value", 7),
            ("x\"a\nb", "Unterminated string starting at", 1),
            ("x{\"a\": 1", "Expecting ',' delimiter", 8),
        ] {
            assert_eq!(read(text), Err(ParseError { message, offset }), "{text}");
        }
    }

    #[test]
    fn nesting_is_bounded_and_what_is_read_can_be_sent_in_an_envelope() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        let deepest = parse(&nested(MAX_DEPTH)).unwrap();
        let envelope = serde_json::to_string(&json!([{"tool": {"arguments": deepest}}])).unwrap();
        assert!(serde_json::from_str::<Value>(&envelope).is_ok());

        assert_eq!(parse(&nested(MAX_DEPTH + 1)).unwrap_err().message(), "Nested too deeply");
        assert!(parse(&"[".repeat(1_000_000)).is_err());
        assert!(parse(&r#"{"a":"#.repeat(1_000_000)).is_err());
    }
}
