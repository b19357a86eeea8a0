//! The fields of an object, checked one by one in pydantic's lax mode.

use serde_json::{Value, json};

use super::Problems;
use crate::tool::JsonObject;

/// The fields of an object that is being read, and what was found to be wrong.
pub(super) struct Fields<'a, 'p> {
    whole: &'a Value,
    object: &'a JsonObject,
    place: Vec<Value>,
    /// What was found to be wrong up to now.
    pub(super) problems: &'p mut Problems,
}

impl<'a, 'p> Fields<'a, 'p> {
    /// The fields of `whole`, at `place` of the request; a problem if it is no object.
    pub(super) fn of(
        whole: &'a Value,
        place: Vec<Value>,
        problems: &'p mut Problems,
    ) -> Option<Self> {
        match whole {
            Value::Object(object) => Some(Self { whole, object, place, problems }),
            _ => {
                problems.push(not_a_model().at(&place, whole));
                None
            }
        }
    }

    /// A field that has to be there. `None` is a problem, which is noted.
    pub(super) fn required<T>(
        &mut self,
        name: &str,
        check: impl FnOnce(&'a Value) -> Result<T, Flaw>,
    ) -> Option<T> {
        let (flaw, input) = match self.object.get(name) {
            Some(value) => match check(value) {
                Ok(read) => return Some(read),
                Err(flaw) => (flaw, value),
            },
            None => (missing(), self.whole),
        };
        self.place.push(json!(name));
        self.problems.push(flaw.at(&self.place, input));
        self.place.pop();
        None
    }

    /// A field that may be left out.
    pub(super) fn or<T>(
        &mut self,
        name: &str,
        default: T,
        check: impl FnOnce(&'a Value) -> Result<T, Flaw>,
    ) -> T {
        if !self.object.contains_key(name) {
            return default;
        }
        self.required(name, check).unwrap_or(default)
    }
}

/// What is wrong with one value.
pub(super) struct Flaw {
    pub(super) kind: &'static str,
    message: String,
    context: Option<Value>,
}

impl Flaw {
    /// A flaw of this kind, in words.
    pub(super) fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), context: None }
    }

    /// The entry for a 422.
    pub(super) fn at(self, place: &[Value], input: &Value) -> Value {
        let mut entry =
            json!({"type": self.kind, "loc": place, "msg": self.message, "input": input});
        if let (Some(context), Value::Object(entry)) = (self.context, &mut entry) {
            entry.insert("ctx".to_owned(), context);
        }
        entry
    }
}

/// What is said of a field that is not there.
pub(super) fn missing() -> Flaw {
    Flaw::new("missing", "Field required")
}

/// What is said of a body, or a part of it, that is no object.
pub(super) fn not_a_model() -> Flaw {
    Flaw::new(
        "model_attributes_type",
        "Input should be a valid dictionary or object to extract fields from",
    )
}

/// A text; nothing else is.
pub(super) fn string(value: &Value) -> Result<String, Flaw> {
    let flaw = || Flaw::new("string_type", "Input should be a valid string");
    value.as_str().map(str::to_owned).ok_or_else(flaw)
}

/// A list of texts.
pub(super) fn strings(value: &Value) -> Result<Vec<String>, Flaw> {
    let list = value.as_array();
    let list = list.ok_or_else(|| Flaw::new("list_type", "Input should be a valid list"))?;
    list.iter().map(string).collect()
}

/// Whether it is an object.
pub(super) fn dictionary(value: &Value) -> Result<(), Flaw> {
    let flaw = || Flaw::new("dict_type", "Input should be a valid dictionary");
    value.is_object().then_some(()).ok_or_else(flaw)
}

/// A number.
pub(super) fn float(value: &Value) -> Result<f64, Flaw> {
    match value {
        Value::Bool(truth) => Ok(f64::from(u8::from(*truth))),
        // Every number of ours is a double at the latest.
        Value::Number(number) => Ok(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => text.trim().parse().map_err(|_| {
            Flaw::new(
                "float_parsing",
                "Input should be a valid number, unable to parse string as a number",
            )
        }),
        _ => Err(Flaw::new("float_type", "Input should be a valid number")),
    }
}

/// An integer, held between the bounds of an `i64`: all that are asked for here are clamped
/// anyway.
pub(super) fn integer(value: &Value) -> Result<i64, Flaw> {
    match value {
        Value::Bool(truth) => Ok(i64::from(*truth)),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Ok(integer),
            (None, Some(float)) if float.fract() == 0.0 => Ok(float as i64),
            _ => Err(Flaw::new(
                "int_from_float",
                "Input should be a valid integer, got a number with a fractional part",
            )),
        },
        Value::String(text) => integer_text(text.trim()).ok_or_else(|| {
            Flaw::new(
                "int_parsing",
                "Input should be a valid integer, unable to parse string as an integer",
            )
        }),
        _ => Err(Flaw::new("int_type", "Input should be a valid integer")),
    }
}

/// `4`, `-4`, `4.00`.
fn integer_text(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = whole.strip_prefix(['-', '+']).unwrap_or(whole);
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits || fraction.is_empty() || !fraction.bytes().all(|byte| byte == b'0') {
        return None;
    }
    let beyond = if whole.starts_with('-') { i64::MIN } else { i64::MAX };
    Some(whole.parse().unwrap_or(beyond))
}

/// A truth.
pub(super) fn boolean(value: &Value) -> Result<bool, Flaw> {
    let unclear =
        || Flaw::new("bool_parsing", "Input should be a valid boolean, unable to interpret input");
    match value {
        Value::Bool(truth) => Ok(*truth),
        Value::Number(number) => match (number.as_f64(), number.is_f64()) {
            (Some(0.0), _) => Ok(false),
            (Some(1.0), _) => Ok(true),
            (_, true) => Err(Flaw::new("bool_type", "Input should be a valid boolean")),
            (_, false) => Err(unclear()),
        },
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "0" | "off" | "f" | "false" | "n" | "no" => Ok(false),
            "1" | "on" | "t" | "true" | "y" | "yes" => Ok(true),
            _ => Err(unclear()),
        },
        _ => Err(Flaw::new("bool_type", "Input should be a valid boolean")),
    }
}

/// Which of these two words it is.
pub(super) fn literal(words: [&'static str; 2]) -> impl FnOnce(&Value) -> Result<usize, Flaw> {
    move |value| {
        let found = value.as_str().and_then(|text| words.iter().position(|word| *word == text));
        found.ok_or_else(|| {
            let expected = format!("'{}' or '{}'", words[0], words[1]);
            let mut flaw = Flaw::new("literal_error", format!("Input should be {expected}"));
            flaw.context = Some(json!({"expected": expected}));
            flaw
        })
    }
}

/// The same, or null.
pub(super) fn nullable<'a, T>(
    check: impl FnOnce(&'a Value) -> Result<T, Flaw>,
) -> impl FnOnce(&'a Value) -> Result<Option<T>, Flaw> {
    |value| if value.is_null() { Ok(None) } else { check(value).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lax_booleans_and_integers() {
        for truthy in [json!(true), json!(1), json!(1.0), json!("YES"), json!("t"), json!("on")] {
            assert!(boolean(&truthy).is_ok_and(|truth| truth), "{truthy}");
        }
        for (value, kind) in [
            (json!("maybe"), "bool_parsing"),
            (json!(2), "bool_parsing"),
            (json!(1.5), "bool_type"),
            (json!(null), "bool_type"),
        ] {
            assert_eq!(boolean(&value).unwrap_err().kind, kind, "{value}");
        }
        for (value, read) in [
            (json!("4"), 4),
            (json!(" -4.00 "), -4),
            (json!(4.0), 4),
            (json!(true), 1),
            (json!(u64::MAX), i64::MAX),
            (json!("-99999999999999999999"), i64::MIN),
        ] {
            assert_eq!(integer(&value).ok(), Some(read), "{value}");
        }
        for (value, kind) in [
            (json!("x"), "int_parsing"),
            (json!(""), "int_parsing"),
            (json!("4."), "int_parsing"),
            (json!("-"), "int_parsing"),
            (json!(1.5), "int_from_float"),
            (json!([]), "int_type"),
        ] {
            assert_eq!(integer(&value).unwrap_err().kind, kind, "{value}");
        }
    }
}
