//! The rules at the executor's door: which calls are refused before anything of them is queued,
//! and what becomes of the others on their way to where they run.
//!
//! The executor calls [`prepare`] once for each call, on the caller's thread. Everything here is a
//! pure function; nothing here waits, and nothing knows whether a slot is free.

use std::time::Duration;

use serde_json::Value;

use super::arguments::{self, OUTPUT_ORDER};
use super::format::give_types;
use super::schema::{kind_of, not_an_object};
use super::suggest::suggest;
use super::{
    Handler, JsonObject, Outcome, OutputOrder, Policy, RegisteredTool, ToolCall, ToolKind,
    ToolRegistry, ToolResult, UnknownArguments, python_json,
};

/// The shortest time that a call may be given.
pub const MIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest time that a call may be given.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(600);

/// A call that may be queued.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    /// The call's id, which its result carries.
    pub(crate) uniq_id: String,
    /// The tool's name, as the model called it.
    pub(crate) name: String,
    /// How long it may run.
    pub(crate) timeout: Duration,
    /// What its result's metadata say of the call itself. Most calls have nothing of the kind.
    pub(crate) notes: Option<Box<JsonObject>>,
    /// Where it runs, and with what.
    pub(crate) work: Work,
}

/// Where a call runs, and with what.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// In the sandbox of its trajectory.
    Sandbox {
        /// The sandbox's name for the tool.
        tool: &'static str,
        /// The model's arguments, with the policy in place of what they said about it.
        arguments: JsonObject,
    },
    /// On the ToolServer.
    ToolServer {
        /// The model's arguments, untouched.
        arguments: JsonObject,
    },
    /// In this process.
    InProcess {
        /// The user's closure.
        handler: Handler,
        /// The model's arguments, untouched.
        arguments: JsonObject,
    },
}

/// Lets a call in, or answers it at once.
///
/// `tool_server` says whether there is one. The call's time is its `timeout`, else its argument
/// `timeout`, both held between [`MIN_TIMEOUT`] and [`MAX_TIMEOUT`]; else `default_timeout`, as it
/// is. Where that is another time than was asked for, the call's notes say both.
///
/// # Errors
/// The answer to a call that goes no further: one that could not be read, an unknown tool, an
/// external one without a ToolServer, arguments that do not fit the tool's schema, or that a
/// built-in tool does not have, or a background process asked of it. Nothing of it ran, and the
/// answer carries the call's id.
pub(crate) fn prepare(
    registry: &ToolRegistry,
    policy: &Policy,
    tool_server: bool,
    call: ToolCall,
    default_timeout: Duration,
) -> Result<Prepared, Box<ToolResult>> {
    if let Some(answer) = answer_to_unreadable(&call) {
        return Err(Box::new(answer));
    }
    let mut call = call;
    if let Some(tool) = registry.get(&call.name) {
        give_types(&mut call, &tool.schema);
    }
    let ToolCall { name, arguments, uniq_id, timeout, .. } = call;
    match decide(registry, policy, tool_server, &name, arguments) {
        Ok((asked, work)) => {
            let limit = TimeLimit::of(timeout, asked, default_timeout);
            Ok(Prepared { uniq_id, name, timeout: limit.in_force, notes: limit.notes(), work })
        }
        Err(refusal) => {
            let mut result = ToolResult::failure(refusal.outcome, refusal.error);
            result.uniq_id = Some(uniq_id);
            result.may_have_executed = false;
            if !refusal.meant.is_empty() {
                result.metadata.insert("did_you_mean".to_owned(), refusal.meant.into());
            }
            Err(Box::new(result))
        }
    }
}

/// Why a call goes no further.
struct Refusal<'a> {
    outcome: Outcome,
    error: String,
    /// The names that may have been meant, of tools or of arguments.
    meant: Vec<&'a str>,
}

impl<'a> Refusal<'a> {
    fn new(outcome: Outcome, error: String) -> Self {
        Self { outcome, error, meant: Vec::new() }
    }

    /// Of a call of the tool `name` whose arguments are wrong.
    fn invalid(name: &str, why: &str) -> Self {
        Self::new(Outcome::InvalidCall, format!("Invalid arguments for {name}: {why}"))
    }
}

/// How long a call may run, and what was asked for.
#[derive(Debug, PartialEq)]
struct TimeLimit {
    in_force: Duration,
    /// In seconds, if anything was.
    asked: Option<f64>,
}

impl TimeLimit {
    /// The caller's, else the one that the model asked for in seconds, else the default.
    fn of(caller: Option<Duration>, model: Option<f64>, default: Duration) -> Self {
        let in_force = match (caller, model) {
            (Some(time), _) => time.clamp(MIN_TIMEOUT, MAX_TIMEOUT),
            (None, Some(seconds)) => clamped_timeout(seconds),
            (None, None) => default,
        };
        Self { in_force, asked: model.or(caller.map(|time| time.as_secs_f64())) }
    }

    /// What the result says of it: both times, where they are not the same.
    fn notes(&self) -> Option<Box<JsonObject>> {
        let in_force = self.in_force.as_secs_f64();
        let asked = self.asked.filter(|asked| *asked != in_force)?;
        let times = [("timeout_s", in_force), ("timeout_asked", asked)];
        let notes = times.map(|(name, seconds)| (name.to_owned(), Value::from(seconds)));
        Some(Box::new(JsonObject::from_iter(notes)))
    }
}

/// The answer to a call that could not be read from the model's text: why, and where in the text.
fn answer_to_unreadable(call: &ToolCall) -> Option<ToolResult> {
    let origin = call.origin.as_ref()?;
    let mut result = ToolResult::failure(Outcome::InvalidCall, origin.error()?);
    result.uniq_id = Some(call.uniq_id.clone());
    let mut facts = JsonObject::new();
    facts.insert("form".to_owned(), origin.form.as_str().into());
    if let Some(place) = origin.place {
        let numbers = [
            ("line", place.line),
            ("column", place.column),
            ("start", place.start),
            ("end", place.end),
        ];
        facts.extend(numbers.map(|(key, number)| (key.to_owned(), number.into())));
    }
    result.metadata.insert("unreadable_call".to_owned(), Value::Object(facts));
    Some(result)
}

/// [`prepare`] without the id: the time that the arguments ask for, in seconds, and the work.
fn decide<'a>(
    registry: &'a ToolRegistry,
    policy: &Policy,
    tool_server: bool,
    name: &str,
    arguments: Value,
) -> Result<(Option<f64>, Work), Refusal<'a>> {
    let Some(tool) = registry.get(name) else {
        let mut refusal = Refusal::new(Outcome::UnknownTool, format!("Unknown tool: {name}"));
        refusal.meant = suggest(name, &registry.names().collect::<Vec<_>>());
        return Err(refusal);
    };
    let Value::Object(arguments) = arguments else {
        return Err(Refusal::invalid(name, &not_an_object(&arguments)));
    };
    if let ToolKind::Sandbox { sent_as } = tool.kind {
        let (asked, arguments) = for_sandbox(tool, sent_as, policy, name, arguments)?;
        return Ok((asked, Work::Sandbox { tool: sent_as, arguments }));
    }
    let asked = arguments.get("timeout").and_then(Value::as_f64);
    let checked = tool.schema.validate_object(&arguments);
    checked.map_err(|why| Refusal::invalid(name, &why))?;
    let work = match &tool.kind {
        ToolKind::InProcess(handler) => Work::InProcess { handler: handler.clone(), arguments },
        ToolKind::ToolServer if tool_server => Work::ToolServer { arguments },
        _ => {
            let error = format!("External tool not available (ToolServer not configured): {name}");
            return Err(Refusal::new(Outcome::ExternalFailed, error));
        }
    };
    Ok((asked, work))
}

/// What the sandbox's tool `sent_as` is sent for a call of `tool`, and the time that was asked for.
/// The one place that says what the arguments of a built-in tool may be.
fn for_sandbox<'a>(
    tool: &'a RegisteredTool,
    sent_as: &str,
    policy: &Policy,
    name: &str,
    mut arguments: JsonObject,
) -> Result<(Option<f64>, JsonObject), Refusal<'a>> {
    let invalid = |why: String| Refusal::invalid(name, &why);
    let refuses = policy.unknown_arguments == UnknownArguments::Refuse;
    let in_background = arguments.get("background").is_some_and(python_json::is_truthy);
    if in_background && (name == "terminal" || (refuses && sent_as != "tmux")) {
        let error = format!("{name} background execution is not supported in sandbox");
        return Err(Refusal::new(Outcome::InvalidCall, error));
    }
    let asked = timeout_of(&arguments).map_err(invalid)?;
    // Before the checks: what is taken out need not fit any schema.
    apply_policy(sent_as, policy, &mut arguments);
    if refuses {
        let also = [NETWORK, SANDBOX, STATEFUL];
        arguments::check_names(&tool.schema, &also, &arguments).map_err(|unknown| Refusal {
            meant: unknown.meant,
            ..Refusal::invalid(name, &unknown.error)
        })?;
    }
    tool.schema.validate_object(&arguments).map_err(invalid)?;
    arguments::check(sent_as, &arguments).map_err(invalid)?;
    Ok((asked, arguments))
}

const NETWORK: &str = "allow_network";
const SANDBOX: &str = "require_sandbox";
const STATEFUL: &str = "require_stateful_sandbox";

/// Puts the policy in place of what the model said about it, for the sandbox's tool `sent_as`.
fn apply_policy(sent_as: &str, policy: &Policy, arguments: &mut JsonObject) {
    let required = (SANDBOX, policy.require_sandbox);
    let stateful_required = (STATEFUL, policy.require_stateful_sandbox);
    let (removed, added): (&[&str], _) = match sent_as {
        "bash" => (&["timeout", NETWORK, SANDBOX], required),
        "bash_stateful" => (&["timeout", NETWORK, SANDBOX, STATEFUL], stateful_required),
        "tmux" => (&[NETWORK, SANDBOX, STATEFUL], stateful_required),
        _ => return,
    };
    for key in removed {
        // Not `remove`, which would move the last argument into the gap.
        arguments.shift_remove(*key);
    }
    for (key, value) in [(NETWORK, policy.allow_network), added] {
        arguments.insert(key.to_owned(), Value::Bool(value));
    }
    let is_open = arguments.get(OUTPUT_ORDER).is_none_or(Value::is_null);
    if sent_as != "tmux" && is_open && policy.output_order != OutputOrder::default() {
        arguments.insert(OUTPUT_ORDER.to_owned(), policy.output_order.as_str().into());
    }
}

/// The time that a model gave its call in the argument `timeout`, in seconds: a number, or the text
/// of one, since many models and templates write all arguments as texts.
fn timeout_of(arguments: &JsonObject) -> Result<Option<f64>, String> {
    let wrong =
        |got: &str| Err(format!("argument 'timeout' must be a number of seconds, got {got}"));
    match arguments.get("timeout") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        Some(Value::String(text)) => match text.trim().parse::<f64>() {
            Ok(seconds) if seconds.is_finite() => Ok(Some(seconds)),
            _ => wrong("a string that is none"),
        },
        Some(other) => wrong(kind_of(other)),
    }
}

/// `seconds` between [`MIN_TIMEOUT`] and [`MAX_TIMEOUT`]; the former where it is not a number.
fn clamped_timeout(seconds: f64) -> Duration {
    let (min, max) = (MIN_TIMEOUT.as_secs_f64(), MAX_TIMEOUT.as_secs_f64());
    // `max` gives the bound for NaN, where `clamp` would give NaN.
    Duration::from_secs_f64(seconds.max(min).min(max))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tool::ToolSchema;

    const DEFAULT_TIMEOUT: Duration = Duration::from_millis(900_500);

    fn registry() -> ToolRegistry {
        let mut registry = ToolRegistry::builtin();
        let schema = |name| {
            ToolSchema::new(name, "")
                .with_required("query", "string", "")
                .with_optional("timeout", "number", "")
        };
        registry.register_external(schema("search")).unwrap();
        registry.register_fn(schema("lookup"), |_, _| Ok(String::new())).unwrap();
        registry
    }

    fn prepare_with(
        policy: Policy,
        tool_server: bool,
        name: &str,
        arguments: Value,
    ) -> Result<Prepared, Box<ToolResult>> {
        let call = ToolCall::new(name, arguments).with_uniq_id("c1");
        prepare(&registry(), &policy, tool_server, call, DEFAULT_TIMEOUT)
    }

    fn refusal(name: &str, arguments: Value) -> (Outcome, String) {
        let result = *prepare_with(Policy::default(), false, name, arguments).unwrap_err();
        assert_eq!(result.uniq_id.as_deref(), Some("c1"));
        assert!(!result.success && !result.may_have_executed);
        (result.outcome, result.error)
    }

    /// What the sandbox is sent, arguments as JSON text, which shows their order.
    fn sent(policy: Policy, name: &str, arguments: Value) -> (&'static str, String) {
        match prepare_with(policy, false, name, arguments).unwrap().work {
            Work::Sandbox { tool, arguments } => (tool, serde_json::to_string(&arguments).unwrap()),
            other => panic!("not for the sandbox: {other:?}"),
        }
    }

    #[test]
    fn a_tool_that_nobody_registered_is_unknown() {
        for name in ["nope", "", "Bash", " bash"] {
            let expected = (Outcome::UnknownTool, format!("Unknown tool: {name}"));
            assert_eq!(refusal(name, json!({})), expected);
            assert_eq!(refusal(name, json!("not even an object")), expected);
        }
    }

    #[test]
    fn what_may_have_been_meant_is_in_the_metadata_and_the_text_is_as_ever() {
        for (name, meant) in [
            ("shell", json!({"did_you_mean": ["bash", "terminal"]})),
            ("lookpu", json!({"did_you_mean": ["lookup"]})),
            ("nope", json!({})),
        ] {
            let result = *prepare_with(Policy::default(), false, name, json!({})).unwrap_err();
            assert_eq!(result.error, format!("Unknown tool: {name}"));
            assert_eq!(Value::Object(result.metadata), meant, "{name}");
        }
        // Only where no tool has the name.
        let result = *prepare_with(Policy::default(), false, "bash", json!({})).unwrap_err();
        assert!(result.metadata.is_empty());
    }

    #[test]
    fn the_sandboxs_name_of_the_stateful_terminal_is_accepted() {
        let arguments = json!({"command": "cd /tmp", "timeout": 5});
        let by_alias =
            prepare_with(Policy::default(), false, "bash_stateful", arguments.clone()).unwrap();
        let by_name =
            prepare_with(Policy::default(), false, "terminal_stateful", arguments).unwrap();
        assert_eq!((by_alias.name.as_str(), by_alias.timeout), ("bash_stateful", by_name.timeout));
        let sent = |work| match work {
            Work::Sandbox { tool, arguments } => (tool, arguments),
            other => panic!("not for the sandbox: {other:?}"),
        };
        assert_eq!(sent(by_alias.work), sent(by_name.work));
    }

    #[test]
    fn an_external_tool_needs_a_tool_server_and_an_in_process_one_does_not() {
        let error = "External tool not available (ToolServer not configured): search".to_owned();
        assert_eq!(refusal("search", json!({"query": "x"})), (Outcome::ExternalFailed, error));

        let arguments = json!({"query": "x", "timeout": 5, "allow_network": 1});
        let external = prepare_with(Policy::default(), true, "search", arguments.clone()).unwrap();
        match external.work {
            Work::ToolServer { arguments: kept } => assert_eq!(Value::Object(kept), arguments),
            other => panic!("not for the ToolServer: {other:?}"),
        }
        let own = prepare_with(Policy::default(), false, "lookup", arguments.clone()).unwrap();
        match own.work {
            Work::InProcess { arguments: kept, .. } => assert_eq!(Value::Object(kept), arguments),
            other => panic!("not for this process: {other:?}"),
        }
    }

    #[test]
    fn arguments_that_do_not_fit_the_schema_are_refused_whatever_the_tool() {
        const NO_COMMAND: &str =
            "missing required argument 'command' (string), or 'argv' (array) in its place";
        for (name, arguments, why) in [
            ("bash", json!([1]), "arguments must be a JSON object, got an array"),
            ("bash", json!(null), "arguments must be a JSON object, got null"),
            ("bash", json!({}), NO_COMMAND),
            ("terminal", json!({"command": null}), NO_COMMAND),
            ("terminal_stateful", json!({}), "missing required argument 'command' (string)"),
            (
                "bash",
                json!({"command": ["ls"]}),
                "argument 'command' must be a string, got an array",
            ),
            ("read_file", json!({}), "missing required argument 'path' (string)"),
            ("write_file", json!({"path": "a"}), "missing required argument 'content' (string)"),
            ("write_file", json!({"content": ""}), "missing required argument 'path' (string)"),
            (
                "tmux",
                json!({"keys": 1}),
                "argument 'keys' must be a string or an array, got a number",
            ),
            ("lookup", json!({"query": 1}), "argument 'query' must be a string, got a number"),
        ] {
            let error = format!("Invalid arguments for {name}: {why}");
            assert_eq!(refusal(name, arguments), (Outcome::InvalidCall, error));
        }
    }

    #[test]
    fn an_empty_command_is_the_sandboxs_business() {
        let (tool, _) = sent(Policy::default(), "bash", json!({"command": ""}));
        assert_eq!(tool, "bash");
    }

    #[test]
    fn a_background_process_is_refused_only_where_python_finds_it_true() {
        let ignoring = Policy::default().with_unknown_arguments(UnknownArguments::Ignore);
        for background in [json!(true), json!("no"), json!(1), json!([0]), json!({"a": 0})] {
            let arguments = json!({"command": "ls", "background": background});
            for name in ["terminal", "bash", "terminal_stateful"] {
                let error = format!("{name} background execution is not supported in sandbox");
                assert_eq!(refusal(name, arguments.clone()), (Outcome::InvalidCall, error));
            }
            // As it was when recordings were made that need it so.
            assert_eq!(sent(ignoring, "bash", arguments.clone()).0, "bash");
            assert!(prepare_with(ignoring, false, "terminal", arguments).is_err());
        }
        for background in [json!(false), json!(null), json!(0), json!(""), json!([])] {
            for name in ["terminal", "bash"] {
                let arguments = json!({"command": "ls", "background": background});
                let (_, sent) = sent(Policy::default(), name, arguments);
                let passed_on = format!(r#""background":{background},"#);
                assert!(sent.contains(&passed_on), "{sent}");
            }
        }
    }

    #[test]
    fn an_argument_that_a_built_in_tool_does_not_have_is_refused_unless_it_is_to_be_ignored() {
        let ignoring = Policy::default().with_unknown_arguments(UnknownArguments::Ignore);
        for (name, arguments, meant) in [
            ("terminal", json!({"command": "ls", "cwd": "a"}), vec!["workdir"]),
            ("bash", json!({"cmd": "ls", "command": "ls"}), vec!["command"]),
            ("read_file", json!({"path": "a", "limit": 1}), vec![]),
            ("write_file", json!({"path": "a", "content": "", "contents": ""}), vec!["content"]),
            ("terminal_stateful", json!({"command": "ls", "workdir": "a"}), vec![]),
            ("tmux", json!({"action": "start", "background": true}), vec![]),
        ] {
            let result =
                *prepare_with(Policy::default(), false, name, arguments.clone()).unwrap_err();
            assert_eq!(result.outcome, Outcome::InvalidCall);
            let begin = format!("Invalid arguments for {name}: there is no argument '");
            assert!(result.error.starts_with(&begin), "{}", result.error);
            let found = result.metadata.get("did_you_mean").cloned().unwrap_or(json!([]));
            assert_eq!(found, json!(meant), "{name}");
            assert!(prepare_with(ignoring, false, name, arguments).is_ok(), "{name}");
        }
        // The one that is missing is less telling than the one that stands in its place.
        let (_, error) = refusal("bash", json!({"cmd": "ls"}));
        assert!(error.contains("(did you mean 'command'?)"), "{error}");
        // The arguments of other tools are not ours.
        let arguments = json!({"query": "x", "cwd": 1, "background": true, "timeout": 5});
        assert!(prepare_with(Policy::default(), true, "search", arguments.clone()).is_ok());
        assert!(prepare_with(Policy::default(), false, "lookup", arguments).is_ok());
    }

    #[test]
    fn the_shapes_that_no_schema_says_are_checked_at_the_door() {
        for (arguments, why) in [
            (json!({"command": "a", "argv": ["a"]}), "give 'command' or 'argv', not both"),
            (json!({"argv": []}), "'argv' must begin with the name of a program"),
            (json!({"command": "a", "env": {"A": 1}}), "'env': A must be a string, got a number"),
            (
                json!({"command": "a", "stdin": 1}),
                "argument 'stdin' must be a string, got a number",
            ),
            (
                json!({"command": "a", "output_order": "x"}),
                "'output_order' must be separate or interleaved, got \"x\"",
            ),
        ] {
            let error = format!("Invalid arguments for bash: {why}");
            assert_eq!(refusal("bash", arguments), (Outcome::InvalidCall, error));
        }
        let (outcome, _) = refusal("bash_stateful", json!({"command": "a", "output_order": "x"}));
        assert_eq!(outcome, Outcome::InvalidCall);
        let (_, sent) = sent(Policy::default(), "bash", json!({"argv": ["ls", "-l"]}));
        assert!(sent.starts_with(r#"{"argv":["ls","-l"],"#), "{sent}");
    }

    #[test]
    fn the_order_of_outputs_is_the_calls_else_the_policys() {
        let policy = Policy::default().with_output_order(OutputOrder::Interleaved);
        let order = |policy, name, asked: Value| {
            let arguments = json!({"command": "ls", "output_order": asked});
            let (_, sent) = sent(policy, name, arguments);
            let sent: Value = serde_json::from_str(&sent).unwrap();
            sent.get("output_order").cloned().unwrap_or_default()
        };
        for name in ["bash", "terminal_stateful"] {
            assert_eq!(order(policy, name, json!(null)), "interleaved");
            assert_eq!(order(policy, name, json!("separate")), "separate");
            assert_eq!(order(Policy::default(), name, json!("interleaved")), "interleaved");
            assert_eq!(order(Policy::default(), name, json!(null)), Value::Null);
        }
        assert!(!sent(policy, "tmux", json!({})).1.contains("output_order"));
    }

    #[test]
    fn the_policy_replaces_what_the_model_said_about_it() {
        let strict = Policy::default()
            .with_allow_network(false)
            .with_require_sandbox(true)
            .with_require_stateful_sandbox(true)
            .with_unknown_arguments(UnknownArguments::Ignore);
        let asked = json!({
            "timeout": "1", "allow_network": "yes", "command": "ls", "path": "p", "content": "c",
            "require_sandbox": false, "require_stateful_sandbox": 0, "other": [1], "last": 1,
        });
        let everything = serde_json::to_string(&asked).unwrap();
        for (name, tool, arguments) in [
            (
                "terminal",
                "bash",
                r#"{"command":"ls","path":"p","content":"c","require_stateful_sandbox":0,"other":[1],"last":1,"allow_network":false,"require_sandbox":true}"#,
            ),
            (
                "bash",
                "bash",
                r#"{"command":"ls","path":"p","content":"c","require_stateful_sandbox":0,"other":[1],"last":1,"allow_network":false,"require_sandbox":true}"#,
            ),
            (
                "terminal_stateful",
                "bash_stateful",
                r#"{"command":"ls","path":"p","content":"c","other":[1],"last":1,"allow_network":false,"require_stateful_sandbox":true}"#,
            ),
            (
                "tmux",
                "tmux",
                r#"{"timeout":"1","command":"ls","path":"p","content":"c","other":[1],"last":1,"allow_network":false,"require_stateful_sandbox":true}"#,
            ),
            ("read_file", "read_file", &everything),
            ("write_file", "write_file", &everything),
        ] {
            assert_eq!(sent(strict, name, asked.clone()), (tool, arguments.to_owned()), "{name}");
        }
        // What it says about the policy is never an unknown argument.
        let asked = json!({"path": "p", "allow_network": true, "require_sandbox": false});
        assert!(prepare_with(Policy::default(), false, "read_file", asked).is_ok());
        let (_, by_default) = sent(Policy::default(), "bash", json!({"command": "ls"}));
        assert_eq!(by_default, r#"{"command":"ls","allow_network":true,"require_sandbox":false}"#);
    }

    #[test]
    fn the_time_is_the_callers_else_the_arguments_else_the_default() {
        let time = |explicit: Option<Duration>, asked: Value| {
            let arguments = json!({"command": "ls", "timeout": asked});
            let mut call = ToolCall::new("bash", arguments);
            call.timeout = explicit;
            let prepared =
                prepare(&registry(), &Policy::default(), false, call, DEFAULT_TIMEOUT).unwrap();
            (prepared.timeout, prepared.notes.map_or(Value::Null, |notes| Value::Object(*notes)))
        };
        let seconds = Duration::from_secs_f64;
        let changed =
            |in_force: f64, asked: f64| json!({"timeout_s": in_force, "timeout_asked": asked});
        let none = Value::Null;
        assert_eq!(time(Some(seconds(7.5)), none.clone()), (seconds(7.5), none.clone()));
        assert_eq!(time(Some(seconds(7.5)), json!(7.5)), (seconds(7.5), none.clone()));
        assert_eq!(time(Some(seconds(7.5)), json!("9")), (seconds(7.5), changed(7.5, 9.0)));
        assert_eq!(time(Some(Duration::ZERO), json!(null)), (MIN_TIMEOUT, changed(1.0, 0.0)));
        assert_eq!(time(Some(Duration::MAX), json!(900)), (MAX_TIMEOUT, changed(600.0, 900.0)));
        for (asked, expected, notes) in [
            (json!(9), seconds(9.0), none.clone()),
            (json!(2.5), seconds(2.5), none.clone()),
            (json!("60"), seconds(60.0), none.clone()),
            (json!(" 2.5\n"), seconds(2.5), none.clone()),
            (json!("1e2"), seconds(100.0), none.clone()),
            (json!("0.2"), MIN_TIMEOUT, changed(1.0, 0.2)),
            (json!(0.2), MIN_TIMEOUT, changed(1.0, 0.2)),
            (json!(-3), MIN_TIMEOUT, changed(1.0, -3.0)),
            (json!(-1e308), MIN_TIMEOUT, changed(1.0, -1e308)),
            (json!(600.1), MAX_TIMEOUT, changed(600.0, 600.1)),
            (json!("3600"), MAX_TIMEOUT, changed(600.0, 3600.0)),
            (json!(f64::MAX), MAX_TIMEOUT, changed(600.0, f64::MAX)),
            (json!(null), DEFAULT_TIMEOUT, none.clone()),
        ] {
            assert_eq!(time(None, asked.clone()), (expected, notes), "{asked}");
        }
    }

    #[test]
    fn a_time_that_is_no_number_is_refused() {
        for (asked, got) in [
            (json!(true), "a boolean"),
            (json!([9]), "an array"),
            (json!("soon"), "a string that is none"),
            (json!("60s"), "a string that is none"),
            (json!("inf"), "a string that is none"),
            (json!("NaN"), "a string that is none"),
            (json!(""), "a string that is none"),
        ] {
            for name in ["bash", "terminal_stateful", "read_file", "tmux"] {
                let arguments = json!({"command": "ls", "path": "a", "timeout": asked});
                let error = format!(
                    "Invalid arguments for {name}: argument 'timeout' must be a number of seconds, \
                     got {got}"
                );
                assert_eq!(refusal(name, arguments), (Outcome::InvalidCall, error));
            }
        }
        // Another tool's argument of that name is checked by its schema alone.
        let error =
            "Invalid arguments for lookup: argument 'timeout' must be a number, got a string";
        let arguments = json!({"query": "x", "timeout": "9"});
        assert_eq!(refusal("lookup", arguments), (Outcome::InvalidCall, error.to_owned()));
    }

    #[test]
    fn seconds_that_are_no_number_are_the_shortest_time() {
        assert_eq!(clamped_timeout(f64::NAN), MIN_TIMEOUT);
        assert_eq!(clamped_timeout(f64::NEG_INFINITY), MIN_TIMEOUT);
        assert_eq!(clamped_timeout(f64::INFINITY), MAX_TIMEOUT);
    }
}
