//! The rules at the executor's door: which calls are refused before anything of them is queued,
//! and what becomes of the others on their way to where they run.
//!
//! The executor calls [`prepare`] once for each call, on the caller's thread. Everything here is a
//! pure function; nothing here waits, and nothing knows whether a slot is free.

use std::time::Duration;

use serde_json::Value;

use super::format::give_types;
use super::schema::not_an_object;
use super::suggest::suggest;
use super::{
    Handler, JsonObject, Outcome, Policy, ToolCall, ToolKind, ToolRegistry, ToolResult, python_json,
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
/// `tool_server` says whether there is one. The call's time is its `timeout`, else a number in its
/// argument `timeout`, both held between [`MIN_TIMEOUT`] and [`MAX_TIMEOUT`]; else
/// `default_timeout`, as it is.
///
/// # Errors
/// The answer to a call that goes no further: one that could not be read, an unknown tool, an
/// external one without a ToolServer, arguments that do not fit the tool's schema, or a background
/// process asked of `terminal`. Nothing of it ran, and the answer carries the call's id.
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
            let timeout = timeout.or(asked).map(|time| time.clamp(MIN_TIMEOUT, MAX_TIMEOUT));
            Ok(Prepared { uniq_id, name, timeout: timeout.unwrap_or(default_timeout), work })
        }
        Err((outcome, error)) => {
            let mut result = ToolResult::failure(outcome, error);
            result.uniq_id = Some(uniq_id);
            result.may_have_executed = false;
            if outcome == Outcome::UnknownTool {
                let meant = suggest(&name, &registry.names().collect::<Vec<_>>());
                if !meant.is_empty() {
                    result.metadata.insert("did_you_mean".to_owned(), meant.into());
                }
            }
            Err(Box::new(result))
        }
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

/// [`prepare`] without the id: the time that the arguments ask for, and the work.
fn decide(
    registry: &ToolRegistry,
    policy: &Policy,
    tool_server: bool,
    name: &str,
    arguments: Value,
) -> Result<(Option<Duration>, Work), (Outcome, String)> {
    let invalid =
        |why: String| (Outcome::InvalidCall, format!("Invalid arguments for {name}: {why}"));

    let Some(tool) = registry.get(name) else {
        return Err((Outcome::UnknownTool, format!("Unknown tool: {name}")));
    };
    let Value::Object(mut arguments) = arguments else {
        return Err(invalid(not_an_object(&arguments)));
    };
    let asked = timeout_of(&arguments);
    if let ToolKind::Sandbox { sent_as } = tool.kind {
        if name == "terminal" && arguments.get("background").is_some_and(python_json::is_truthy) {
            let error = "terminal background execution is not supported in sandbox";
            return Err((Outcome::InvalidCall, error.to_owned()));
        }
        // Before the check: what is taken out need not fit any schema.
        apply_policy(sent_as, policy, &mut arguments);
    }
    tool.schema.validate_object(&arguments).map_err(invalid)?;
    let work = match &tool.kind {
        ToolKind::Sandbox { sent_as } => Work::Sandbox { tool: sent_as, arguments },
        ToolKind::InProcess(handler) => Work::InProcess { handler: handler.clone(), arguments },
        ToolKind::ToolServer if tool_server => Work::ToolServer { arguments },
        ToolKind::ToolServer => {
            let error = format!("External tool not available (ToolServer not configured): {name}");
            return Err((Outcome::ExternalFailed, error));
        }
    };
    Ok((asked, work))
}

/// Puts the policy in place of what the model said about it, for the sandbox's tool `sent_as`.
fn apply_policy(sent_as: &str, policy: &Policy, arguments: &mut JsonObject) {
    const NETWORK: &str = "allow_network";
    const SANDBOX: &str = "require_sandbox";
    const STATEFUL: &str = "require_stateful_sandbox";
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
}

/// The time that a model gave its call in the argument `timeout`. A boolean or a string is no
/// time.
fn timeout_of(arguments: &JsonObject) -> Option<Duration> {
    let seconds = arguments.get("timeout")?.as_f64()?;
    Some(clamped_timeout(seconds))
}

/// `seconds` between [`MIN_TIMEOUT`] and [`MAX_TIMEOUT`]; the former where it is not a number.
pub(crate) fn clamped_timeout(seconds: f64) -> Duration {
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
        for (name, arguments, why) in [
            ("bash", json!([1]), "arguments must be a JSON object, got an array"),
            ("bash", json!(null), "arguments must be a JSON object, got null"),
            ("bash", json!({}), "missing required argument 'command' (string)"),
            ("terminal", json!({"command": null}), "missing required argument 'command' (string)"),
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
    fn a_background_process_is_refused_of_terminal_alone_and_only_where_python_finds_it_true() {
        let error = "terminal background execution is not supported in sandbox".to_owned();
        for background in [json!(true), json!("no"), json!(1), json!([0]), json!({"a": 0})] {
            let arguments = json!({"command": "ls", "background": background});
            assert_eq!(
                refusal("terminal", arguments.clone()),
                (Outcome::InvalidCall, error.clone())
            );
            assert_eq!(sent(Policy::default(), "bash", arguments).0, "bash");
        }
        for background in [json!(false), json!(null), json!(0), json!(""), json!([])] {
            let (_, sent) = sent(
                Policy::default(),
                "terminal",
                json!({"command": "ls", "background": background}),
            );
            let passed_on = format!(r#""background":{background},"#);
            assert!(sent.contains(&passed_on), "{sent}");
        }
    }

    #[test]
    fn the_policy_replaces_what_the_model_said_about_it() {
        let strict =
            Policy { allow_network: false, require_sandbox: true, require_stateful_sandbox: true };
        let asked = json!({
            "timeout": "x", "allow_network": "yes", "command": "ls", "path": "p", "content": "c",
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
                r#"{"timeout":"x","command":"ls","path":"p","content":"c","other":[1],"last":1,"allow_network":false,"require_stateful_sandbox":true}"#,
            ),
            ("read_file", "read_file", &everything),
            ("write_file", "write_file", &everything),
        ] {
            assert_eq!(sent(strict, name, asked.clone()), (tool, arguments.to_owned()), "{name}");
        }
        let (_, by_default) = sent(Policy::default(), "bash", json!({"command": "ls"}));
        assert_eq!(by_default, r#"{"command":"ls","allow_network":true,"require_sandbox":false}"#);
    }

    #[test]
    fn the_time_is_the_callers_else_the_arguments_else_the_default() {
        let time = |explicit: Option<Duration>, asked: Value| {
            let arguments = json!({"command": "ls", "timeout": asked});
            let mut call = ToolCall::new("bash", arguments);
            call.timeout = explicit;
            prepare(&registry(), &Policy::default(), false, call, DEFAULT_TIMEOUT).unwrap().timeout
        };
        let seconds = Duration::from_secs_f64;
        assert_eq!(time(Some(seconds(7.5)), json!(9)), seconds(7.5));
        assert_eq!(time(Some(Duration::ZERO), json!(9)), MIN_TIMEOUT);
        assert_eq!(time(Some(Duration::MAX), json!(9)), MAX_TIMEOUT);
        for (asked, expected) in [
            (json!(9), seconds(9.0)),
            (json!(2.5), seconds(2.5)),
            (json!(0.2), MIN_TIMEOUT),
            (json!(-3), MIN_TIMEOUT),
            (json!(-1e308), MIN_TIMEOUT),
            (json!(600.1), MAX_TIMEOUT),
            (json!(u64::MAX), MAX_TIMEOUT),
            (json!(f64::MAX), MAX_TIMEOUT),
            (json!(true), DEFAULT_TIMEOUT),
            (json!("9"), DEFAULT_TIMEOUT),
            (json!(null), DEFAULT_TIMEOUT),
            (json!([9]), DEFAULT_TIMEOUT),
        ] {
            assert_eq!(time(None, asked.clone()), expected, "{asked}");
        }
    }

    #[test]
    fn seconds_that_are_no_number_are_the_shortest_time() {
        assert_eq!(clamped_timeout(f64::NAN), MIN_TIMEOUT);
        assert_eq!(clamped_timeout(f64::NEG_INFINITY), MIN_TIMEOUT);
        assert_eq!(clamped_timeout(f64::INFINITY), MAX_TIMEOUT);
    }
}
