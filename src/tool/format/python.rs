//! Calls and literals of Python: `[f(path="a.py", lines=[1, 2]), g()]`.
//!
//! Reads what a model can mean by them: keyword arguments whose values are literals. `true`,
//! `false` and `null` are accepted beside Python's own, since chat templates write them. Nesting
//! is bounded by [`MAX_DEPTH`], so the stack is too. Variables, operators and f-strings are no
//! literals.
//!
//! Sources: the prompts and templates of Llama 3.2 and 4 (llama-models
//! `models/llama4/prompt_format.md`; vLLM `examples/tool_chat_template_llama4_pythonic.jinja`), of
//! Gemma 3 (`examples/tool_chat_template_gemma3_pythonic.jinja`), and the Python reference on
//! literals.

use serde_json::{Number, Value};

use crate::tool::JsonObject;
use crate::tool::python_json::MAX_DEPTH;

/// A call as Python writes it.
#[derive(Debug, PartialEq)]
pub(super) struct PythonCall {
    pub(super) name: String,
    pub(super) arguments: JsonObject,
    /// From the first byte of its name to behind its bracket.
    pub(super) span: (usize, usize),
    /// A string of it held a line break that was not escaped.
    pub(super) raw_control_character: bool,
}

/// Why a text is not what it should be.
#[derive(Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) message: &'static str,
    pub(super) offset: usize,
    /// How far the text was looked at.
    pub(super) reached: usize,
}

/// What is read at a place of a text.
pub(super) struct Python<'t> {
    text: &'t str,
    pub(super) at: usize,
    raw_control_character: bool,
}

type Read<T> = Result<T, Problem>;

impl<'t> Python<'t> {
    pub(super) fn new(text: &'t str, at: usize) -> Self {
        Self { text, at, raw_control_character: false }
    }

    /// The text as one literal, or nothing.
    pub(super) fn literal_of(text: &str) -> Option<Value> {
        let mut python = Python::new(text.trim(), 0);
        let value = python.value(0).ok()?;
        (python.at == python.text.len()).then_some(value)
    }

    /// `f(a=1, b="x")`
    pub(super) fn call(&mut self) -> Read<PythonCall> {
        let start = self.at;
        self.raw_control_character = false;
        let name = self.name()?.to_owned();
        self.skip_space();
        if !self.skip(b'(') {
            return Err(self.problem("expected '(' behind the tool's name"));
        }
        let mut arguments = JsonObject::new();
        loop {
            self.skip_space();
            if self.skip(b')') {
                break;
            }
            let key_at = self.at;
            let key = self.name().map(str::to_owned);
            self.skip_space();
            let (Ok(key), true) = (key, self.peek() == Some(b'=')) else {
                self.at = key_at;
                return Err(self.problem("an argument must be written as name=value"));
            };
            self.at += 1;
            self.skip_space();
            let value = self.value(0)?;
            if arguments.insert(key, value).is_some() {
                return Err(self.problem("an argument is given twice"));
            }
            self.skip_space();
            if !self.skip(b',') && self.peek() != Some(b')') {
                return Err(self.problem("expected ',' or ')' behind an argument"));
            }
        }
        let raw_control_character = self.raw_control_character;
        Ok(PythonCall { name, arguments, span: (start, self.at), raw_control_character })
    }

    /// An identifier, or several joined by dots.
    fn name(&mut self) -> Read<&'t str> {
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-')))
            .unwrap_or(rest.len());
        let name = &rest[..end];
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '.')
        {
            return Err(self.problem("expected a name"));
        }
        self.at += end;
        Ok(name)
    }

    /// A literal. `depth` counts the brackets around it.
    pub(super) fn value(&mut self, depth: usize) -> Read<Value> {
        match self.peek() {
            Some(b'[' | b'(' | b'{') if depth == MAX_DEPTH => {
                Err(self.problem("nested too deeply"))
            }
            Some(b'[') => self.list(b']', depth + 1),
            Some(b'(') => self.list(b')', depth + 1),
            Some(b'{') => self.dict(depth + 1),
            Some(b'"' | b'\'') => self.strings(),
            Some(b'-' | b'+' | b'.' | b'0'..=b'9') => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Read<Value> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let is_string = matches!(rest.as_bytes().get(end), Some(b'"' | b'\''));
        let value = match &rest[..end] {
            "True" | "true" => Value::Bool(true),
            "False" | "false" => Value::Bool(false),
            "None" | "null" => Value::Null,
            "b" | "B" | "u" | "U" | "r" | "R" if is_string => return self.strings(),
            _ => return Err(self.problem("expected a literal: a string, a number, a list, …")),
        };
        self.at += end;
        Ok(value)
    }

    /// A list, or a tuple, which is a list to a tool.
    fn list(&mut self, close: u8, depth: usize) -> Read<Value> {
        self.at += 1;
        let mut items = Vec::new();
        let mut comma = false;
        loop {
            self.skip_space();
            if self.skip(close) {
                break;
            }
            if !items.is_empty() && !comma {
                return Err(self.problem("expected ',' or a closing bracket"));
            }
            items.push(self.value(depth)?);
            self.skip_space();
            comma = self.skip(b',');
        }
        // `(1)` is 1 in brackets.
        match items.len() {
            1 if close == b')' && !comma => Ok(items.remove(0)),
            _ => Ok(Value::Array(items)),
        }
    }

    fn dict(&mut self, depth: usize) -> Read<Value> {
        self.at += 1;
        let mut object = JsonObject::new();
        loop {
            self.skip_space();
            if self.skip(b'}') {
                return Ok(Value::Object(object));
            }
            let key = match self.value(depth)? {
                Value::String(key) => key,
                _ => return Err(self.problem("a key must be a string")),
            };
            self.skip_space();
            if !self.skip(b':') {
                return Err(self.problem("expected ':' behind a key"));
            }
            self.skip_space();
            let value = self.value(depth)?;
            object.insert(key, value);
            self.skip_space();
            if !self.skip(b',') && self.peek() != Some(b'}') {
                return Err(self.problem("expected ',' or '}' behind a value"));
            }
        }
    }

    fn number(&mut self) -> Read<Value> {
        let rest = &self.text[self.at..];
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
        let signed = usize::from(rest.starts_with(['-', '+']));
        let mut end = signed + rest[signed..].find(|c| !is_part(c)).unwrap_or(rest.len() - signed);
        // `1e-5`
        if rest[..end].ends_with(['e', 'E']) && rest[end..].starts_with(['-', '+']) {
            let digits = &rest[end + 1..];
            end += 1 + digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        }
        let written = rest[..end].replace('_', "");
        let digits = written.trim_start_matches('+');
        let radix = |prefix: [&str; 2], radix| {
            let digits = prefix.iter().find_map(|prefix| digits.strip_prefix(prefix))?;
            i64::from_str_radix(digits, radix).ok()
        };
        let integer = digits.parse::<i64>().ok().or_else(|| radix(["0x", "0X"], 16));
        let integer = integer.or_else(|| radix(["0o", "0O"], 8)).or_else(|| radix(["0b", "0B"], 2));
        let value = match (integer, digits.parse::<u64>(), digits.parse::<f64>()) {
            (Some(integer), ..) => Value::from(integer),
            (None, Ok(integer), _) => Value::from(integer),
            (None, Err(_), Ok(float)) if digits.bytes().any(|b| b.is_ascii_digit()) => {
                Number::from_f64(float).map_or(Value::Null, Value::Number)
            }
            _ => return Err(self.problem("expected a number")),
        };
        self.at += end;
        Ok(value)
    }

    /// A string, or several that stand behind each other, which are one.
    fn strings(&mut self) -> Read<Value> {
        let mut whole = self.string()?;
        loop {
            let end = self.at;
            self.skip_space();
            let prefixed = matches!(self.peek(), Some(b'r' | b'R' | b'b' | b'B' | b'u' | b'U'));
            let quote = self.text.as_bytes().get(self.at + usize::from(prefixed));
            if !matches!(quote, Some(b'"' | b'\'')) {
                self.at = end;
                return Ok(Value::String(whole));
            }
            whole.push_str(&self.string()?);
        }
    }

    fn string(&mut self) -> Read<String> {
        let start = self.at;
        let raw = matches!(self.peek(), Some(b'r' | b'R'));
        if !matches!(self.peek(), Some(b'"' | b'\'')) {
            self.at += 1;
        }
        let quote = self.peek().unwrap_or(b'"');
        let rest = &self.text.as_bytes()[self.at..];
        let triple = rest.len() >= 3 && rest[1] == quote && rest[2] == quote;
        let quotes = if triple { 3 } else { 1 };
        self.at += quotes;
        let mut string = String::new();
        loop {
            let rest = &self.text[self.at..];
            let run = rest.bytes().position(|b| b == quote || b == b'\\' || b < 0x20);
            let Some(run) = run else {
                let offset = start;
                let (message, reached) = ("a string is not closed", self.text.len());
                return Err(Problem { message, offset, reached });
            };
            string.push_str(&rest[..run]);
            self.at += run;
            let byte = rest.as_bytes()[run];
            if byte == quote {
                let closes = !triple || rest[run..].bytes().take(3).eq([quote; 3]);
                if closes {
                    self.at += quotes;
                    return Ok(string);
                }
                string.push(char::from(quote));
                self.at += 1;
            } else if byte == b'\\' && raw {
                string.push('\\');
                self.at += 1;
                if self.peek() == Some(quote) {
                    string.push(char::from(quote));
                    self.at += 1;
                }
            } else if byte == b'\\' {
                self.escape(&mut string)?;
            } else {
                self.raw_control_character |= !triple && byte != b'\t';
                string.push(char::from(byte));
                self.at += 1;
            }
        }
    }

    /// Reads an escape whose backslash is the next byte.
    fn escape(&mut self, string: &mut String) -> Read<()> {
        self.at += 1;
        let Some(kind) = self.text[self.at..].chars().next() else {
            return Err(self.problem("a string is not closed"));
        };
        let simple = match kind {
            'n' => Some('\n'),
            't' => Some('\t'),
            'r' => Some('\r'),
            'a' => Some('\u{7}'),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'v' => Some('\u{b}'),
            '\\' | '\'' | '"' => Some(kind),
            _ => None,
        };
        if let Some(character) = simple {
            string.push(character);
            self.at += 1;
            return Ok(());
        }
        let (length, radix, from) = match kind {
            '\n' => {
                self.at += 1;
                return Ok(());
            }
            'x' => (2, 16, 1),
            'u' => (4, 16, 1),
            'U' => (8, 16, 1),
            '0'..='7' => {
                let octal = self.text.as_bytes()[self.at..].iter().take(3);
                (octal.take_while(|b| (b'0'..=b'7').contains(*b)).count(), 8, 0)
            }
            // Python keeps the backslash of what is no escape.
            other => {
                string.push('\\');
                string.push(other);
                self.at += other.len_utf8();
                return Ok(());
            }
        };
        let digits = self.text.get(self.at + from..self.at + from + length);
        let code = digits
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u32::from_str_radix(digits, radix).ok());
        let Some(mut code) = code else {
            return Err(self.problem("an escape in a string has too few digits"));
        };
        self.at += from + length;
        // A pair of surrogates, as JSON has them.
        if (0xd800..0xdc00).contains(&code)
            && self.text[self.at..].starts_with("\\u")
            && let Some(low) = self.text.get(self.at + 2..self.at + 6)
            && let Ok(low @ 0xdc00..0xe000) = u32::from_str_radix(low, 16)
        {
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            self.at += 6;
        }
        string.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
        Ok(())
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    pub(super) fn skip(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Space and comments.
    pub(super) fn skip_space(&mut self) {
        loop {
            let rest = &self.text[self.at..];
            self.at += rest.len() - rest.trim_start().len();
            if self.peek() != Some(b'#') {
                return;
            }
            let rest = &self.text[self.at..];
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    fn problem(&self, message: &'static str) -> Problem {
        Problem { message, offset: self.at, reached: self.at }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(text: &str) -> Result<(String, Value), &'static str> {
        let read = Python::new(text, 0).call();
        read.map(|call| (call.name, Value::Object(call.arguments))).map_err(|p| p.message)
    }

    #[test]
    fn calls_with_literals_are_read() {
        for (text, name, arguments) in [
            ("f()", "f", json!({})),
            ("a.b_c( x = 1 , )", "a.b_c", json!({"x": 1})),
            (
                "f(a='x', b=\"y'z\", c=True, d=None, e=false)",
                "f",
                json!({
                    "a": "x", "b": "y'z", "c": true, "d": null, "e": false
                }),
            ),
            (
                "f(a=[1, -2.5, 1e-3, 0x1f, 1_000], b=(1, 'x'), c={'k': [], })",
                "f",
                json!({
                    "a": [1, -2.5, 0.001, 31, 1000], "b": [1, "x"], "c": {"k": []}
                }),
            ),
            (
                r#"f(a="\n\t\\\"\x41\u00e9\U0001F600\101\q\ud83d\ude00")"#,
                "f",
                json!({
                    "a": "\n\t\\\"Aé😀A\\q😀"
                }),
            ),
            (
                "f(a='''x\n'y\"''', b=r'\\d\\'', c='a' \"b\")",
                "f",
                json!({
                    "a": "x\n'y\"", "b": "\\d\\'", "c": "ab"
                }),
            ),
            (
                "f(a=(1), b=(1,), c=18446744073709551615)",
                "f",
                json!({
                    "a": 1, "b": [1], "c": u64::MAX
                }),
            ),
            ("f(# first\n a=1)", "f", json!({"a": 1})),
            ("суммa(ключ='значение')", "суммa", json!({"ключ": "значение"})),
        ] {
            assert_eq!(call(text), Ok((name.to_owned(), arguments)), "{text}");
        }
    }

    #[test]
    fn what_is_no_call_with_literals_is_refused_with_the_reason() {
        for (text, message) in [
            ("f", "expected '(' behind the tool's name"),
            ("(1)", "expected a name"),
            ("f('ls')", "an argument must be written as name=value"),
            ("f(a)", "an argument must be written as name=value"),
            ("f(a=b)", "expected a literal: a string, a number, a list, …"),
            ("f(a=f'{x}')", "expected a literal: a string, a number, a list, …"),
            ("f(a=1 b=2)", "expected ',' or ')' behind an argument"),
            ("f(a=1, a=2)", "an argument is given twice"),
            ("f(a=[1 2])", "expected ',' or a closing bracket"),
            ("f(a={1: 2})", "a key must be a string"),
            ("f(a='x", "a string is not closed"),
            ("f(a=1", "expected ',' or ')' behind an argument"),
            (r"f(a='\x4')", "an escape in a string has too few digits"),
            ("f(a=-)", "expected a number"),
        ] {
            assert_eq!(call(text), Err(message), "{text}");
        }
    }

    #[test]
    fn a_line_break_in_a_string_is_noticed() {
        let raw = |text| Python::new(text, 0).call().unwrap().raw_control_character;
        assert!(raw("f(a='x\ny')"));
        assert!(!raw("f(a='''x\ny''')"));
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("f(a={}{})", "[".repeat(depth), "]".repeat(depth));
        assert!(call(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(call(&nested(MAX_DEPTH + 1)), Err("nested too deeply"));
        assert_eq!(call(&nested(1_000_000)), Err("nested too deeply"));
    }
}
