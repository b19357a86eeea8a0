//! What a tool is called, what it takes, and how that is told to a model.
//!
//! The registry holds one [`ToolSchema`] for each tool; the executor checks every call against it
//! before the call is queued. This is not a JSON Schema validator: of a parameter only its plain
//! `type` is checked, everything else in it is for the model to read.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{JsonObject, python_json};
use crate::error::ConfigError;

/// A tool's name, description and parameters.
///
/// In JSON `{"name": …, "description": …, "parameters": {NAME: JSON SCHEMA}, "required": [NAME]}`;
/// only the name has to be given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ToolSchema {
    /// The name by which the model calls it.
    pub name: String,
    /// What it does, for the model.
    #[serde(default)]
    pub description: String,
    /// The parameters by name, each a JSON Schema such as
    /// `{"type": "string", "description": "…"}`, in the order in which the model is told them.
    #[serde(default)]
    pub parameters: JsonObject,
    /// The names of the parameters that every call must give.
    #[serde(default)]
    pub required: Vec<String>,
    /// Whether a ToolServer runs it. Set by the registry according to how the tool was registered,
    /// and not in JSON.
    #[serde(skip)]
    pub external: bool,
}

impl ToolSchema {
    /// A schema without parameters; the `with_…` functions add them.
    pub fn new(name: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            description: description.into(),
            parameters: JsonObject::new(),
            required: Vec::new(),
            external: false,
        }
    }

    /// Adds a parameter that a call must give. `kind` is a JSON Schema type such as `"string"`.
    #[must_use]
    pub fn with_required(mut self, name: &str, kind: &str, description: &str) -> Self {
        self.required.push(name.to_owned());
        self.with_parameter(name, json!({"type": kind, "description": description}))
    }

    /// Adds a parameter that a call may leave out. `kind` is a JSON Schema type such as `"string"`.
    #[must_use]
    pub fn with_optional(self, name: &str, kind: &str, description: &str) -> Self {
        self.with_parameter(name, json!({"type": kind, "description": description}))
    }

    /// Adds a parameter that a call may leave out, as a JSON Schema of its own.
    #[must_use]
    pub fn with_parameter(mut self, name: &str, schema: Value) -> Self {
        self.parameters.insert(name.to_owned(), schema);
        self
    }

    /// The schema as one element of the `tools` of OpenAI's chat API:
    /// `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub fn to_dict(&self) -> JsonObject {
        let function = json!({
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters_schema(),
        });
        JsonObject::from_iter([
            ("type".to_owned(), json!("function")),
            ("function".to_owned(), function),
        ])
    }

    /// The schema as prose for a prompt: name and description, then a line for each parameter.
    ///
    /// ```text
    /// **bash**: Runs a command.
    /// Parameters:
    ///   - command (string) (required): The command.
    /// ```
    ///
    /// A parameter's type is `string` unless given; a list of types looks as Python prints it,
    /// `['string', 'null']`.
    pub fn to_prompt_description(&self) -> String {
        let mut text = format!("**{}**: {}\nParameters:", self.name, self.description);
        if self.parameters.is_empty() {
            text.push_str("\n  (no parameters)");
        }
        for (name, schema) in &self.parameters {
            let kind = schema.get("type").map_or_else(|| "string".to_owned(), python_str);
            let need = if self.required.contains(name) { "required" } else { "optional" };
            let description = schema.get("description").map_or_else(String::new, python_str);
            text.push_str(&format!("\n  - {name} ({kind}) ({need}): {description}"));
        }
        text
    }

    /// Whether the schema makes sense, which one that was read may not: `required` names what is in
    /// `parameters`, and each of these is a JSON Schema.
    ///
    /// # Errors
    /// What is wrong, with the tool's name.
    pub fn check(&self) -> Result<(), ConfigError> {
        let name = &self.name;
        let is_unknown = |required: &&String| !self.parameters.contains_key(*required);
        if let Some(unknown) = self.required.iter().find(is_unknown) {
            return Err(ConfigError::new(format!(
                "the tool {name:?}: \"required\" names {unknown:?}, which is not in \"parameters\""
            )));
        }
        match self.parameters.iter().find(|(_, schema)| !schema.is_object()) {
            Some((parameter, _)) => Err(ConfigError::new(format!(
                "the tool {name:?}: the parameter {parameter:?} is no JSON Schema, which is an object"
            ))),
            None => Ok(()),
        }
    }

    /// Whether a call with these arguments may go ahead.
    ///
    /// They must be an object that holds each required parameter; and a parameter whose schema has
    /// a plain `type`, or a list of them, must be of that type. An integer may be written `4.0`; an
    /// optional parameter may be `null`, which models write for "not given"; a parameter that the
    /// schema does not name may be anything. (Of the built-in tools an executor refuses those, see
    /// [`UnknownArguments`](crate::config::UnknownArguments).)
    ///
    /// # Errors
    /// One line for the model, that says what is wrong and what would be right:
    /// `missing required argument 'command' (string)`.
    pub fn validate(&self, arguments: &Value) -> Result<(), String> {
        match arguments {
            Value::Object(arguments) => self.validate_object(arguments),
            other => Err(not_an_object(other)),
        }
    }

    /// [`validate`](Self::validate) for arguments that are an object.
    pub(crate) fn validate_object(&self, arguments: &JsonObject) -> Result<(), String> {
        for name in &self.required {
            let types = Types::of(self.parameters.get(name));
            let given = arguments.get(name).is_some_and(|value| {
                !value.is_null() || types.as_ref().is_some_and(|types| types.accept(value))
            });
            if !given {
                let kind = types.map_or_else(String::new, |types| format!(" ({})", types.names()));
                return Err(format!("missing required argument '{name}'{kind}"));
            }
        }
        for (name, value) in arguments {
            if let Some(types) = Types::of(self.parameters.get(name))
                && !value.is_null()
                && !types.accept(value)
            {
                let (right, wrong) = (types.with_articles(), kind_of(value));
                return Err(format!("argument '{name}' must be {right}, got {wrong}"));
            }
        }
        Ok(())
    }

    /// The names of the parameters with their types: `command (string, required), free`.
    pub(super) fn argument_list(&self) -> String {
        let argument = |(name, schema): (&String, &Value)| {
            let types = Types::of(Some(schema)).map(|types| types.names());
            let need = self.required.contains(name).then(|| "required".to_owned());
            match types.into_iter().chain(need).collect::<Vec<_>>() {
                known if known.is_empty() => name.clone(),
                known => format!("{name} ({})", known.join(", ")),
            }
        };
        match self.parameters.iter().map(argument).collect::<Vec<_>>() {
            all if all.is_empty() => "none".to_owned(),
            all => all.join(", "),
        }
    }

    /// The parameters as one JSON Schema of an object.
    pub(super) fn parameters_schema(&self) -> Value {
        json!({"type": "object", "properties": self.parameters, "required": self.required})
    }
}

/// Why `arguments`, which are not an object, cannot be used.
pub(crate) fn not_an_object(arguments: &Value) -> String {
    let mut error = format!("arguments must be a JSON object, got {}", kind_of(arguments));
    // A string is most often JSON text that could not be read; the model can mend that if told.
    if let Value::String(text) = arguments
        && let Err(why) = python_json::parse(text)
    {
        error.push_str(&format!(" that is not JSON: {why}"));
    }
    error
}

/// The plain types that a parameter may have.
struct Types<'a>(Vec<&'a str>);

impl<'a> Types<'a> {
    /// `None` where the schema does not say, or says something beyond JSON Schema's seven types.
    fn of(schema: Option<&'a Value>) -> Option<Self> {
        let names: Vec<_> = match schema?.get("type")? {
            Value::String(name) => vec![name.as_str()],
            Value::Array(names) => names.iter().map(Value::as_str).collect::<Option<_>>()?,
            _ => return None,
        };
        let known = !names.is_empty() && names.iter().all(|name| article_of(name).is_some());
        known.then_some(Self(names))
    }

    fn accept(&self, value: &Value) -> bool {
        self.0.iter().any(|&name| match name {
            "string" => value.is_string(),
            "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            _ => value.is_null(),
        })
    }

    /// `string or null`
    fn names(&self) -> String {
        self.0.join(" or ")
    }

    /// `a string or null`
    fn with_articles(&self) -> String {
        let with_article = |name: &&str| format!("{}{name}", article_of(name).unwrap_or_default());
        self.0.iter().map(with_article).collect::<Vec<_>>().join(" or ")
    }
}

fn article_of(type_name: &str) -> Option<&'static str> {
    match type_name {
        "string" | "number" | "boolean" => Some("a "),
        "integer" | "array" | "object" => Some("an "),
        "null" => Some(""),
        _ => None,
    }
}

pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// `value` as Python's `str` prints it, as far as a schema's `type` and `description` need it:
/// strings and lists of strings; anything else as JSON.
fn python_str(value: &Value) -> String {
    match value {
        Value::String(string) => string.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let items: Vec<_> =
                items.iter().filter_map(Value::as_str).map(|item| format!("'{item}'")).collect();
            format!("[{}]", items.join(", "))
        }
        other => python_json::to_string(other, python_json::NonAscii::Keep),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> ToolSchema {
        ToolSchema::new("t", "d")
            .with_required("command", "string", "What to run.")
            .with_parameter("nullable", json!({"type": ["string", "null"]}))
            .with_optional("count", "integer", "")
            .with_optional("ratio", "number", "")
            .with_optional("flag", "boolean", "")
            .with_optional("list", "array", "")
            .with_optional("map", "object", "")
            .with_parameter("keys", json!({"type": ["string", "array"]}))
            .with_parameter("free", json!({"description": "no type"}))
            .with_parameter("odd", json!({"type": "float"}))
            .with_parameter("true", json!(true))
    }

    fn check(extra: Value) -> Result<(), String> {
        let mut arguments = json!({"command": "ls"});
        arguments.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        schema().validate(&arguments)
    }

    #[test]
    fn arguments_that_are_no_object_are_refused_by_what_they_are() {
        for (arguments, kind) in [
            (json!(null), "null"),
            (json!(true), "a boolean"),
            (json!(1), "a number"),
            (json!([1]), "an array"),
            (json!("{}"), "a string"),
            (json!("{\"a\" 1}"), "a string that is not JSON: Expecting ':' delimiter (at byte 5)"),
        ] {
            let error = format!("arguments must be a JSON object, got {kind}");
            assert_eq!(schema().validate(&arguments), Err(error));
        }
    }

    #[test]
    fn a_required_argument_that_is_missing_or_null_is_named_with_its_type() {
        let error = Err("missing required argument 'command' (string)".to_owned());
        assert_eq!(schema().validate(&json!({})), error);
        assert_eq!(schema().validate(&json!({"command": null})), error);
        assert_eq!(schema().validate(&json!({"command": ""})), Ok(()));

        let mut of_unknown_type = schema();
        of_unknown_type.required = vec!["zz".to_owned()];
        let error = Err("missing required argument 'zz'".to_owned());
        assert_eq!(of_unknown_type.validate(&json!({})), error);
    }

    #[test]
    fn a_required_argument_may_be_null_where_its_type_says_so() {
        let mut schema = schema();
        schema.required = vec!["nullable".to_owned()];
        assert_eq!(schema.validate(&json!({"nullable": null})), Ok(()));
        let error = Err("missing required argument 'nullable' (string or null)".to_owned());
        assert_eq!(schema.validate(&json!({})), error);
    }

    #[test]
    fn a_value_of_the_right_type_passes() {
        for extra in [
            json!({"count": 4, "ratio": 4, "flag": false, "list": [], "map": {}}),
            json!({"count": 4.0, "ratio": 0.5, "keys": "a"}),
            json!({"count": u64::MAX, "keys": ["a"], "nullable": null}),
            json!({"count": null, "flag": null}),
            json!({"unknown": [1], "free": 1, "odd": "x", "true": {}}),
        ] {
            assert_eq!(check(extra), Ok(()));
        }
    }

    #[test]
    fn a_value_of_another_type_is_refused_with_both_types() {
        for (extra, error) in [
            (json!({"command": 5}), "'command' must be a string, got a number"),
            (json!({"count": 4.5}), "'count' must be an integer, got a number"),
            (json!({"count": "4"}), "'count' must be an integer, got a string"),
            (json!({"ratio": true}), "'ratio' must be a number, got a boolean"),
            (json!({"flag": 0}), "'flag' must be a boolean, got a number"),
            (json!({"list": {}}), "'list' must be an array, got an object"),
            (json!({"map": []}), "'map' must be an object, got an array"),
            (json!({"keys": 1}), "'keys' must be a string or an array, got a number"),
            (json!({"nullable": 1}), "'nullable' must be a string or null, got a number"),
        ] {
            assert_eq!(check(extra), Err(format!("argument {error}")));
        }
    }
}
