//! The types of arguments whose form has only text.
//!
//! A parameter's schema decides: its `type`, or those in `anyOf` and `oneOf`, or those of its
//! `enum`. Where a string is right the text is kept as it is, but for a list or an object where
//! one of these is right too, and `null` where that is. Python's spellings (`True`, `None`,
//! `['a']`) count, since Qwen3-Coder's template writes them. What does not fit its type stays
//! text, and the check against the schema says so to the model.

use serde_json::Value;

use super::python::Python;
use crate::tool::python_json;
use crate::tool::{ToolCall, ToolSchema};

/// Gives a call's untyped arguments the types of its tool's schema.
pub(crate) fn give_types(call: &mut ToolCall, schema: &ToolSchema) {
    let Some(origin) = &mut call.origin else { return };
    let untyped = std::mem::take(&mut origin.untyped);
    let Value::Object(arguments) = &mut call.arguments else { return };
    for name in untyped {
        if let (Some(Value::String(text)), Some(parameter)) =
            (arguments.get_mut(&name), schema.parameters.get(&name))
            && let Some(value) = typed(text, parameter)
        {
            arguments.insert(name, value);
        }
    }
}

/// The types that a parameter may have.
#[derive(Debug, Default, Clone, Copy)]
struct Types {
    string: bool,
    integer: bool,
    number: bool,
    boolean: bool,
    array: bool,
    object: bool,
    null: bool,
}

impl Types {
    fn of(parameter: &Value) -> Self {
        let mut types = Self::default();
        types.add(parameter, 0);
        types
    }

    fn add(&mut self, parameter: &Value, depth: usize) {
        const DEEPEST: usize = 8;
        match parameter.get("type") {
            Some(Value::String(name)) => self.add_name(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).for_each(|name| self.add_name(name));
            }
            _ => {
                let values = parameter.get("enum").and_then(Value::as_array);
                values.into_iter().flatten().for_each(|value| self.add_value(value));
            }
        }
        for key in ["anyOf", "oneOf"] {
            if let (Some(Value::Array(options)), true) = (parameter.get(key), depth < DEEPEST) {
                options.iter().for_each(|option| self.add(option, depth + 1));
            }
        }
    }

    fn add_name(&mut self, name: &str) {
        match name {
            "string" => self.string = true,
            "integer" => self.integer = true,
            "number" => self.number = true,
            "boolean" => self.boolean = true,
            "array" => self.array = true,
            "object" => self.object = true,
            "null" => self.null = true,
            _ => {}
        }
    }

    fn add_value(&mut self, value: &Value) {
        self.add_name(match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        });
    }

    fn is_empty(self) -> bool {
        let Self { string, integer, number, boolean, array, object, null } = self;
        !(string || integer || number || boolean || array || object || null)
    }
}

/// The value that `text` means to a parameter; `None` where it is that text itself.
fn typed(text: &str, parameter: &Value) -> Option<Value> {
    let types = Types::of(parameter);
    let bare = text.trim();
    if types.is_empty() {
        return None;
    }
    // An optional parameter may be null whatever its type, but a string may be the word.
    if matches!(bare, "null" | "None") && (types.null || !types.string) {
        return Some(Value::Null);
    }
    let container = match bare.as_bytes().first() {
        Some(b'[') => types.array,
        Some(b'{') => types.object,
        _ => false,
    };
    if container {
        let json = python_json::parse(bare).ok();
        let value = json.or_else(|| Python::literal_of(bare));
        return value.filter(|value| value.is_array() || value.is_object());
    }
    if types.string {
        return None;
    }
    match bare {
        "true" | "True" if types.boolean => return Some(Value::Bool(true)),
        "false" | "False" if types.boolean => return Some(Value::Bool(false)),
        _ => {}
    }
    if types.number || types.integer {
        return python_json::parse(bare).ok().filter(Value::is_number);
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value_of(text: &str, parameter: Value) -> Value {
        typed(text, &parameter).unwrap_or_else(|| Value::from(text))
    }

    #[test]
    fn a_text_takes_the_type_of_its_parameter() {
        for (text, parameter, value) in [
            ("3", json!({"type": "integer"}), json!(3)),
            (" 3\n", json!({"type": "number"}), json!(3)),
            ("-0.5", json!({"type": "number"}), json!(-0.5)),
            ("true", json!({"type": "boolean"}), json!(true)),
            ("False", json!({"type": "boolean"}), json!(false)),
            ("[1, \"a\"]", json!({"type": "array"}), json!([1, "a"])),
            ("['a', True]", json!({"type": "array"}), json!(["a", true])),
            ("{\"a\": null}", json!({"type": "object"}), json!({"a": null})),
            ("{'a': None}", json!({"type": "object"}), json!({"a": null})),
            ("null", json!({"type": "integer"}), json!(null)),
            ("None", json!({"type": ["string", "null"]}), json!(null)),
            ("[\"C-c\"]", json!({"type": ["string", "array"]}), json!(["C-c"])),
            ("5", json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}), json!(5)),
            ("2", json!({"enum": [1, 2]}), json!(2)),
        ] {
            assert_eq!(value_of(text, parameter.clone()), value, "{text} {parameter}");
        }
    }

    #[test]
    fn a_string_stays_a_string() {
        for parameter in [
            json!({"type": "string"}),
            json!({"type": ["string", "array"]}),
            json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
            json!({"enum": ["1", "true"]}),
            json!({}),
            json!({"type": "float"}),
            json!(true),
        ] {
            for text in ["1", "true", " a ", "null", "{\"a\": 1}", "", "[not json"] {
                assert_eq!(value_of(text, parameter.clone()), json!(text), "{text} {parameter}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_its_type_stays_text() {
        for (text, parameter) in [
            ("three", json!({"type": "integer"})),
            ("yes", json!({"type": "boolean"})),
            ("1, 2", json!({"type": "array"})),
            ("[1, 2", json!({"type": "array"})),
            ("[1]", json!({"type": "object"})),
            ("", json!({"type": "integer"})),
            ("true", json!({"type": "integer"})),
        ] {
            assert_eq!(value_of(text, parameter.clone()), json!(text), "{text} {parameter}");
        }
    }
}
