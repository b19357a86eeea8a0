//! What the arguments of the built-in tools mean: the rules that no schema can say.
//!
//! Pure. The door checks every call by them, whatever the sandbox; a sandbox reads them by the same
//! functions, since it may also be asked by clients that have no door.

use std::borrow::Cow;

use serde_json::Value;

use super::schema::kind_of;
use super::suggest::suggest_argument;
use super::{BackgroundProcesses, JsonObject, OutputOrder, ToolSchema};

const ARGV: &str = "argv";
const COMMAND: &str = "command";
const WORKDIR: &str = "workdir";
const STDIN: &str = "stdin";
const ENV: &str = "env";
const APPEND: &str = "append";
const SESSION: &str = "session";
/// The argument for what [`OutputOrder`] says.
pub(crate) const OUTPUT_ORDER: &str = "output_order";
/// The argument for what [`BackgroundProcesses`] says. It is the policy's to set: models have
/// another, which means something else.
pub(crate) const BACKGROUND: &str = "background_processes";

/// The arguments of built-in tools that the reference's sandbox server ignores.
#[cfg(feature = "http")]
const NOT_OF_THE_REFERENCE: [&str; 8] =
    [ARGV, WORKDIR, STDIN, ENV, APPEND, OUTPUT_ORDER, SESSION, BACKGROUND];

/// The session of a call that names none.
pub(crate) const DEFAULT_SESSION: &str = "default";
/// The longest name of a session.
const LONGEST_SESSION: usize = 32;

/// Variables that bash itself sets and lets no one change.
const READ_ONLY: [&str; 6] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"];

/// What a call of `bash` is to run, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct BashArguments<'a> {
    pub(crate) run: Run<'a>,
    /// Where it works; `None` for the workspace.
    pub(crate) workdir: Option<&'a str>,
    /// What it reads from its standard input; `None` for nothing.
    pub(crate) stdin: Option<&'a str>,
    /// Variables of its environment besides the usual ones: names that a shell can have, and
    /// values.
    pub(crate) env: Vec<(&'a str, &'a str)>,
    pub(crate) output_order: OutputOrder,
    pub(crate) background: BackgroundProcesses,
}

impl Default for Run<'_> {
    fn default() -> Self {
        Self::Command("")
    }
}

/// What a call of `bash` is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Run<'a> {
    /// A script for the shell. Empty where the call has none.
    Command(&'a str),
    /// A program, looked for in `PATH`, and its arguments. Not empty.
    Program(Vec<&'a str>),
}

impl<'a> BashArguments<'a> {
    /// Reads a call's arguments. An argument that is `null` is not there.
    ///
    /// # Errors
    /// One line that says what is wrong and what would be right.
    pub(crate) fn parse(arguments: &'a JsonObject) -> Result<Self, String> {
        let run = match (text(arguments, COMMAND)?, given(arguments, ARGV)) {
            (Some(_), Some(_)) => return Err("give 'command' or 'argv', not both".to_owned()),
            // The door refuses a call without both; for the reference it is an empty command.
            (None, None) if arguments.contains_key(COMMAND) => {
                return Err("'command' must be a string without NULs".to_owned());
            }
            (command, None) => Run::Command(command.unwrap_or_default()),
            (None, Some(words)) => Run::Program(program(words)?),
        };
        let workdir = text(arguments, WORKDIR)?;
        if workdir == Some("") {
            return Err("'workdir' is empty; leave it out for /workspace".to_owned());
        }
        Ok(Self {
            run,
            workdir,
            stdin: string(arguments, STDIN)?,
            env: variables(arguments)?,
            output_order: output_order(arguments)?,
            background: background(arguments)?,
        })
    }
}

/// Checks what a schema cannot say of a call of the sandbox's tool `sent_as`.
///
/// # Errors
/// One line that says what is wrong and what would be right.
pub(super) fn check(sent_as: &str, arguments: &JsonObject) -> Result<(), String> {
    match sent_as {
        "bash" => {
            if given(arguments, COMMAND).is_none() && given(arguments, ARGV).is_none() {
                return Err("missing required argument 'command' (string), or 'argv' (array) in \
                            its place"
                    .to_owned());
            }
            BashArguments::parse(arguments).map(|_| ())
        }
        "bash_stateful" => output_order(arguments).and(session(arguments)).map(|_| ()),
        _ => Ok(()),
    }
}

/// How the streams of a call of `bash` or `bash_stateful` are shown.
///
/// # Errors
/// As of [`BashArguments::parse`].
pub(crate) fn output_order(arguments: &JsonObject) -> Result<OutputOrder, String> {
    let Some(name) = string(arguments, OUTPUT_ORDER)? else { return Ok(OutputOrder::default()) };
    name.parse().map_err(|_| {
        let names: Vec<_> = OutputOrder::ALL.iter().map(|order| order.as_str()).collect();
        format!("'{OUTPUT_ORDER}' must be {}, got {name:?}", names.join(" or "))
    })
}

/// What becomes of what a call of `bash` leaves running.
fn background(arguments: &JsonObject) -> Result<BackgroundProcesses, String> {
    let Some(name) = string(arguments, BACKGROUND)? else {
        return Ok(BackgroundProcesses::default());
    };
    name.parse().map_err(|_| {
        let names: Vec<_> = BackgroundProcesses::ALL.iter().map(|value| value.as_str()).collect();
        format!("'{BACKGROUND}' must be {}, got {name:?}", names.join(" or "))
    })
}

/// The name of the session that a call of `bash_stateful` is for: one that a file can have.
///
/// # Errors
/// As of [`BashArguments::parse`].
pub(crate) fn session(arguments: &JsonObject) -> Result<&str, String> {
    let Some(name) = string(arguments, SESSION)? else { return Ok(DEFAULT_SESSION) };
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    match name.bytes().all(is_part) && !name.is_empty() && name.len() <= LONGEST_SESSION {
        true => Ok(name),
        false => Err(format!(
            "'{SESSION}' must be a name of 1 to {LONGEST_SESSION} letters, digits, '_' and '-'"
        )),
    }
}

/// Whether a call of `write_file` adds to its file.
///
/// # Errors
/// As of [`BashArguments::parse`].
pub(crate) fn appends(arguments: &JsonObject) -> Result<bool, String> {
    match given(arguments, APPEND) {
        None => Ok(false),
        Some(Value::Bool(appends)) => Ok(*appends),
        Some(other) => Err(format!("'{APPEND}' must be a boolean, got {}", kind_of(other))),
    }
}

/// The argument of a call that the reference's sandbox server would ignore, if there is one.
#[cfg(feature = "http")]
pub(crate) fn not_of_the_reference(arguments: &JsonObject) -> Option<&'static str> {
    let has_effect = |name: &str, value: &Value| match name {
        APPEND => *value != Value::Bool(false),
        OUTPUT_ORDER => *value != OutputOrder::default().as_str(),
        SESSION => *value != DEFAULT_SESSION,
        BACKGROUND => *value != BackgroundProcesses::default().as_str(),
        _ => true,
    };
    let is_given =
        |name: &&str| given(arguments, name).is_some_and(|value| has_effect(name, value));
    NOT_OF_THE_REFERENCE.into_iter().find(is_given)
}

/// Checks that every argument is one that the schema names, or that all tools have: `timeout`, and
/// those of `also`. One that is `null` is not there, and `background` may be there if it says no.
///
/// # Errors
/// One line for the model that names the argument, what may have been meant, and those that there
/// are; and what may have been meant.
pub(super) fn check_names<'a>(
    schema: &'a ToolSchema,
    also: &[&str],
    arguments: &JsonObject,
) -> Result<(), Unknown<'a>> {
    let is_known = |name: &str, value: &Value| {
        schema.parameters.contains_key(name)
            || name == "timeout"
            || also.contains(&name)
            || value.is_null()
            || (name == "background" && !super::python_json::is_truthy(value))
    };
    let Some((name, _)) = arguments.iter().find(|(name, value)| !is_known(name, value)) else {
        return Ok(());
    };
    let names: Vec<&str> = schema.parameters.keys().map(String::as_str).collect();
    Err(Unknown { meant: suggest_argument(name, &names), error: unknown(schema, name, &names) })
}

/// A call has an argument that its tool does not have.
#[derive(Debug)]
pub(super) struct Unknown<'a> {
    /// One line for the model.
    pub(super) error: String,
    /// The arguments that may have been meant, the likeliest first.
    pub(super) meant: Vec<&'a str>,
}

fn unknown(schema: &ToolSchema, name: &str, names: &[&str]) -> String {
    /// What is repeated of a name, which a model may make as long as it likes.
    const SHOWN: usize = 64;
    let shown: Cow<'_, str> = match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]).into(),
        None => name.into(),
    };
    let meant = match suggest_argument(name, names).first() {
        Some(meant) => format!(" (did you mean '{meant}'?)"),
        None => String::new(),
    };
    format!("there is no argument '{shown}'{meant}; the arguments are {}", schema.argument_list())
}

/// The argument `name`, unless it is `null`.
fn given<'a>(arguments: &'a JsonObject, name: &str) -> Option<&'a Value> {
    arguments.get(name).filter(|value| !value.is_null())
}

fn string<'a>(arguments: &'a JsonObject, name: &str) -> Result<Option<&'a str>, String> {
    match given(arguments, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("'{name}' must be a string, got {}", kind_of(other))),
    }
}

/// A string that can be a part of a command line.
fn text<'a>(arguments: &'a JsonObject, name: &str) -> Result<Option<&'a str>, String> {
    match given(arguments, name) {
        None => Ok(None),
        Some(Value::String(text)) if !text.contains('\0') => Ok(Some(text)),
        Some(_) => Err(format!("'{name}' must be a string without NULs")),
    }
}

fn program(words: &Value) -> Result<Vec<&str>, String> {
    let wrong = || {
        format!("'{ARGV}' must be a list of strings without NULs: the program and its arguments")
    };
    let words = words.as_array().ok_or_else(wrong)?;
    let words: Option<Vec<&str>> =
        words.iter().map(|word| word.as_str().filter(|word| !word.contains('\0'))).collect();
    let words = words.ok_or_else(wrong)?;
    match words.first() {
        Some(name) if !name.is_empty() => Ok(words),
        _ => Err(format!("'{ARGV}' must begin with the name of a program")),
    }
}

fn variables(arguments: &JsonObject) -> Result<Vec<(&str, &str)>, String> {
    let variables = match given(arguments, ENV) {
        None => return Ok(Vec::new()),
        Some(Value::Object(variables)) => variables,
        Some(other) => {
            return Err(format!("'{ENV}' must be an object of strings, got {}", kind_of(other)));
        }
    };
    variables
        .iter()
        .map(|(name, value)| {
            if !is_variable(name) {
                return Err(format!("'{ENV}' has {name:?}, which cannot be a variable's name"));
            }
            if READ_ONLY.contains(&&**name) {
                return Err(format!("'{ENV}' has {name}, which only bash itself can set"));
            }
            match value {
                Value::String(value) if !value.contains('\0') => Ok((&**name, &**value)),
                Value::String(_) => Err(format!("'{ENV}' has {name} with a NUL in it")),
                other => Err(format!("'{ENV}': {name} must be a string, got {}", kind_of(other))),
            }
        })
        .collect()
}

fn is_variable(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(is_part) && !name.is_empty() && !name.as_bytes()[0].is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> JsonObject {
        match value {
            Value::Object(object) => object,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn everything_that_a_command_may_be_given_is_read() {
        let arguments = object(json!({
            "argv": ["git", "", "-C x"], "workdir": "sub", "stdin": "a\0b", "command": null,
            "env": {"A": "1", "_b2": ""}, "output_order": "interleaved",
        }));
        let expected = BashArguments {
            run: Run::Program(vec!["git", "", "-C x"]),
            workdir: Some("sub"),
            stdin: Some("a\0b"),
            env: vec![("A", "1"), ("_b2", "")],
            output_order: OutputOrder::Interleaved,
            background: BackgroundProcesses::End,
        };
        assert_eq!(BashArguments::parse(&arguments), Ok(expected));
        assert_eq!(check("bash", &arguments), Ok(()));

        let none = object(json!({"workdir": null, "env": {}}));
        let nothing = BashArguments::parse(&none).unwrap();
        assert_eq!((nothing.run, nothing.env.len()), (Run::Command(""), 0));
    }

    #[test]
    fn a_bad_shape_is_refused_with_what_would_be_right() {
        for (arguments, error) in [
            (
                json!({}),
                "missing required argument 'command' (string), or 'argv' (array) in its place",
            ),
            (json!({"command": "a", "argv": ["a"]}), "give 'command' or 'argv', not both"),
            (json!({"command": 1}), "'command' must be a string without NULs"),
            (json!({"command": "a\0"}), "'command' must be a string without NULs"),
            (json!({"argv": []}), "'argv' must begin with the name of a program"),
            (json!({"argv": ["", "a"]}), "'argv' must begin with the name of a program"),
            (
                json!({"argv": ["a", 1]}),
                "'argv' must be a list of strings without NULs: the program and its arguments",
            ),
            (
                json!({"argv": ["a", "\0"]}),
                "'argv' must be a list of strings without NULs: the program and its arguments",
            ),
            (
                json!({"command": "a", "workdir": ""}),
                "'workdir' is empty; leave it out for /workspace",
            ),
            (json!({"command": "a", "workdir": "\0"}), "'workdir' must be a string without NULs"),
            (json!({"command": "a", "stdin": ["x"]}), "'stdin' must be a string, got an array"),
            (
                json!({"command": "a", "env": []}),
                "'env' must be an object of strings, got an array",
            ),
            (json!({"command": "a", "env": {"A": 1}}), "'env': A must be a string, got a number"),
            (json!({"command": "a", "env": {"A": "\0"}}), "'env' has A with a NUL in it"),
            (
                json!({"command": "a", "env": {"a b": ""}}),
                "'env' has \"a b\", which cannot be a variable's name",
            ),
            (
                json!({"command": "a", "env": {"2": ""}}),
                "'env' has \"2\", which cannot be a variable's name",
            ),
            (
                json!({"command": "a", "env": {"": ""}}),
                "'env' has \"\", which cannot be a variable's name",
            ),
            (
                json!({"command": "a", "env": {"UID": "0"}}),
                "'env' has UID, which only bash itself can set",
            ),
            (
                json!({"command": "a", "output_order": "mixed"}),
                "'output_order' must be separate or interleaved, got \"mixed\"",
            ),
        ] {
            assert_eq!(check("bash", &object(arguments)), Err(error.to_owned()));
        }
    }

    #[test]
    fn a_session_has_a_name_that_a_file_can_have() {
        let long = "x".repeat(LONGEST_SESSION);
        for name in ["a", "build-2", "_", &long] {
            assert_eq!(session(&object(json!({"session": name}))), Ok(name));
        }
        assert_eq!(session(&object(json!({"session": null}))), Ok(DEFAULT_SESSION));
        let names = "'session' must be a name of 1 to 32 letters, digits, '_' and '-'";
        let longer = "x".repeat(LONGEST_SESSION + 1);
        for name in ["", "a b", "..", "a/b", "ä", "a\0", "a\n", "$x", &longer] {
            let arguments = object(json!({"command": "ls", "session": name}));
            assert_eq!(check("bash_stateful", &arguments), Err(names.to_owned()), "{name:?}");
        }
        let number = check("bash_stateful", &object(json!({"session": 1})));
        assert_eq!(number, Err("'session' must be a string, got a number".to_owned()));
    }

    #[cfg(feature = "http")]
    #[test]
    fn only_arguments_that_would_have_an_effect_are_not_of_the_reference() {
        for (arguments, found) in [
            (json!({"command": "a", "allow_network": true, "background": true}), None),
            (json!({"path": "a", "append": false, "workdir": null}), None),
            (json!({"command": "a", "output_order": "separate"}), None),
            (json!({"path": "a", "append": true}), Some("append")),
            (json!({"command": "a", "session": "default"}), None),
            (json!({"command": "a", "session": "b"}), Some("session")),
            (json!({"command": "a", "env": {}}), Some("env")),
            (json!({"command": "a", "output_order": "interleaved"}), Some("output_order")),
        ] {
            assert_eq!(not_of_the_reference(&object(arguments)), found);
        }
    }

    #[test]
    fn an_argument_that_there_is_not_is_told_with_those_that_there_are() {
        let schema = ToolSchema::new("t", "")
            .with_required("command", "string", "")
            .with_optional("workdir", "string", "")
            .with_parameter("free", json!({"description": "no type"}));
        let all = "; the arguments are command (string, required), workdir (string), free";
        let long = "x".repeat(1_000_000);
        let cut = format!("there is no argument '{}…'{all}", "x".repeat(64));
        for (name, error, meant) in [
            (
                "cwd",
                format!("there is no argument 'cwd' (did you mean 'workdir'?){all}"),
                "workdir",
            ),
            (
                "workdri",
                format!("there is no argument 'workdri' (did you mean 'workdir'?){all}"),
                "workdir",
            ),
            ("nope", format!("there is no argument 'nope'{all}"), ""),
            (&*long, cut, ""),
        ] {
            let arguments = object(json!({"command": "ls", name: 1}));
            let unknown = check_names(&schema, &[], &arguments).unwrap_err();
            assert_eq!(unknown.error, error);
            assert_eq!(unknown.meant.first().copied().unwrap_or_default(), meant);
        }
        let fine = json!({"timeout": "x", "policy": 1, "other": null, "background": 0});
        assert!(check_names(&schema, &["policy"], &object(fine)).is_ok());
        let background = object(json!({"background": true}));
        assert!(check_names(&schema, &[], &background).is_err());
        let bare = ToolSchema::new("t", "");
        let none = check_names(&bare, &[], &background).unwrap_err();
        assert_eq!(none.error, "there is no argument 'background'; the arguments are none");
    }
}
