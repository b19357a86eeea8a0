//! The rules at the door, one by one.

use serde_json::json;

use super::*;
use crate::tool::ToolSchema;

const DEFAULT_TIMEOUT: Duration = Duration::from_millis(900_500);
const TIMES: CallTimes = CallTimes { default: DEFAULT_TIMEOUT, most: MAX_TIMEOUT };

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
    prepare(&registry(), &policy, tool_server, call, TIMES)
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
    let by_name = prepare_with(Policy::default(), false, "terminal_stateful", arguments).unwrap();
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
        ("bash", json!({"command": ["ls"]}), "argument 'command' must be a string, got an array"),
        ("read_file", json!({}), "missing required argument 'path' (string)"),
        ("write_file", json!({"path": "a"}), "missing required argument 'content' (string)"),
        ("write_file", json!({"content": ""}), "missing required argument 'path' (string)"),
        ("tmux", json!({"keys": 1}), "argument 'keys' must be a string or an array, got a number"),
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
        let result = *prepare_with(Policy::default(), false, name, arguments.clone()).unwrap_err();
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
        (json!({"command": "a", "stdin": 1}), "argument 'stdin' must be a string, got a number"),
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
    let mut everything = asked.clone();
    everything.as_object_mut().unwrap().shift_remove("allow_network");
    everything["allow_network"] = json!(false);
    let everything = everything.to_string();
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
    let time_of = |explicit: Option<Duration>, asked: Value, times: CallTimes| {
        let arguments = json!({"command": "ls", "timeout": asked});
        let mut call = ToolCall::new("bash", arguments);
        call.timeout = explicit;
        let prepared = prepare(&registry(), &Policy::default(), false, call, times).unwrap();
        (prepared.timeout, prepared.notes.map_or(Value::Null, |notes| Value::Object(*notes)))
    };
    let time = |explicit, asked| time_of(explicit, asked, TIMES);
    // Where the operator allows more, or less.
    let hour = Duration::from_secs(3600);
    let longer = CallTimes { most: hour, ..TIMES };
    assert_eq!(time_of(Some(hour), json!(null), longer), (hour, Value::Null));
    assert_eq!(time_of(None, json!(3000), longer), (Duration::from_secs(3000), Value::Null));
    assert_eq!(time_of(None, json!(9000), longer).0, hour);
    let shorter = CallTimes { most: Duration::from_secs(10), ..TIMES };
    assert_eq!(time_of(None, json!(600), shorter).0, Duration::from_secs(10));
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
    let error = "Invalid arguments for lookup: argument 'timeout' must be a number, got a string";
    let arguments = json!({"query": "x", "timeout": "9"});
    assert_eq!(refusal("lookup", arguments), (Outcome::InvalidCall, error.to_owned()));
}

#[test]
fn seconds_that_are_no_number_are_the_shortest_time() {
    assert_eq!(clamped_timeout(f64::NAN, MAX_TIMEOUT), MIN_TIMEOUT);
    assert_eq!(clamped_timeout(f64::NEG_INFINITY, MAX_TIMEOUT), MIN_TIMEOUT);
    assert_eq!(clamped_timeout(f64::INFINITY, MAX_TIMEOUT), MAX_TIMEOUT);
}
