//! Values as Python shows them.

use serde_json::Value;

use super::Raised;
use crate::tool::python_json::float_text;

pub(super) fn no_attribute(value: &Value, attribute: &str) -> Raised {
    Raised(format!("'{}' object has no attribute '{attribute}'", type_name(value)))
}

/// The type that Python reads a value as.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

/// A value as Python's `str` shows it.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

/// A value as Python's `repr` shows it; of characters that cannot be printed it escapes only the
/// usual ones.
fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => float_text(float),
            _ => number.to_string(),
        },
        Value::String(text) => {
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            let mut shown = String::from(quote);
            for character in text.chars() {
                match character {
                    '\n' => shown.push_str("\\n"),
                    '\r' => shown.push_str("\\r"),
                    '\t' => shown.push_str("\\t"),
                    _ if character == quote || character == '\\' => shown.extend(['\\', character]),
                    _ => shown.push(character),
                }
            }
            shown.push(quote);
            shown
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(repr).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(object) => {
            let key = |key: &String| repr(&Value::String(key.clone()));
            let items: Vec<String> = object
                .iter()
                .map(|(name, value)| format!("{}: {}", key(name), repr(value)))
                .collect();
            format!("{{{}}}", items.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_shown_as_python_shows_them() {
        for (value, text) in [
            (json!(null), "None"),
            (json!(true), "True"),
            (json!(1), "1"),
            (json!(1.0), "1.0"),
            (json!("a'b"), "a'b"),
            (json!(["a'b", "c\n", {"k": null}]), r#"["a'b", 'c\n', {'k': None}]"#),
        ] {
            assert_eq!(shown(&value), text);
        }
    }
}
