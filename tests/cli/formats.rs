//! What models write, in every form, as `replay` takes it: which calls it finds, what it says of
//! those that it cannot read, and of messages in which it finds none.

use super::*;

/// A line of this chat.
fn chat(id: &str, key: &str, messages: Value) -> String {
    json!({"trajectory_id": id, key: messages}).to_string()
}

/// A line with one message of a model's.
fn text(id: &str, text: &str) -> String {
    chat(id, "messages", json!([{"role": "assistant", "content": text}]))
}

/// Trajectory, outcome, output and form of each result, sorted.
fn results(setup: &Setup) -> Vec<[String; 4]> {
    let field = |line: &Value, key: &str| line[key].as_str().unwrap_or("null").to_owned();
    let keys = ["trajectory_id", "outcome", "output", "form"];
    let mut results: Vec<_> =
        setup.results().iter().map(|line| keys.map(|key| field(line, key))).collect();
    results.sort();
    results
}

fn summary(setup: &Setup) -> Value {
    serde_json::from_slice(&fs::read(setup.path("summary.json")).unwrap()).unwrap()
}

#[test]
fn a_file_of_all_forms_runs_and_the_summary_counts_each() {
    let call =
        |name: &str| json!({"name": "bash", "arguments": {"command": format!("echo {name}")}});
    let openai = |name: &str| {
        json!({"id": name, "type": "function", "function":
            {"name": "bash", "arguments": format!("{{\"command\": \"echo {name}\"}}")}})
    };
    let forms = [
        ("hermes", text("hermes", &format!("<tool_call>{}</tool_call>", call("hermes")))),
        (
            "qwen3-coder",
            text(
                "qwen3-coder",
                "<tool_call>\n<function=bash>\n<parameter=command>\necho qwen3-coder\n\
                 </parameter>\n<parameter=timeout>\n5\n</parameter>\n</function>\n</tool_call>",
            ),
        ),
        (
            "glm",
            text(
                "glm",
                "<tool_call>bash\n<arg_key>command</arg_key>\n<arg_value>echo glm</arg_value>\n\
                 </tool_call>",
            ),
        ),
        ("llama-3", text("llama-3", &format!("<|python_tag|>{}", call("llama-3")))),
        ("llama-4", text("llama-4", "[bash(command=\"echo llama-4\")]")),
        ("mistral", text("mistral", "[TOOL_CALLS]bash[ARGS]{\"command\": \"echo mistral\"}")),
        (
            "kimi-k2",
            text(
                "kimi-k2",
                "<|tool_calls_section_begin|><|tool_call_begin|>functions.bash:0\
                 <|tool_call_argument_begin|>{\"command\": \"echo kimi-k2\"}<|tool_call_end|>\
                 <|tool_calls_section_end|>",
            ),
        ),
        (
            "deepseek-v3-1",
            text(
                "deepseek-v3-1",
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>bash<｜tool▁sep｜>\
                 {\"command\": \"echo deepseek-v3-1\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            ),
        ),
        (
            "harmony",
            text(
                "harmony",
                "<|channel|>commentary to=functions.bash <|constrain|>json<|message|>\
                 {\"command\": \"echo harmony\"}<|call|>",
            ),
        ),
        (
            "openai",
            chat(
                "openai",
                "messages",
                json!([{"role": "assistant", "tool_calls": [openai("openai")]}]),
            ),
        ),
        (
            "openai-function-call",
            chat(
                "openai-function-call",
                "messages",
                json!([{"role": "assistant", "content": null, "function_call":
                    {"name": "bash", "arguments": "{\"command\": \"echo openai-function-call\"}"}}]),
            ),
        ),
        (
            "openai-responses",
            chat(
                "openai-responses",
                "messages",
                json!([
                    {"type": "message", "role": "user", "content": "hi"},
                    {"type": "function_call", "call_id": "c", "name": "bash",
                     "arguments": "{\"command\": \"echo openai-responses\"}"},
                    {"type": "function_call_output", "call_id": "c", "output": "openai-responses"},
                ]),
            ),
        ),
        (
            "anthropic",
            chat(
                "anthropic",
                "messages",
                json!([{"role": "assistant", "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "a", "name": "bash",
                     "input": {"command": "echo anthropic"}},
                ]}]),
            ),
        ),
        (
            "sharegpt",
            chat(
                "sharegpt",
                "conversations",
                json!([
                    {"from": "human", "value": "hi"},
                    {"from": "function_call", "value": call("sharegpt").to_string()},
                    {"from": "observation", "value": "sharegpt"},
                ]),
            ),
        ),
    ];
    let lines: Vec<_> = forms.iter().map(|(_, line)| line.clone()).collect();
    let setup = Setup::new(&lines);
    let summary_file = setup.path("summary.json");
    let run = setup.replay(&["--slots", "2", "--summary-json", summary_file.to_str().unwrap()]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let mut expected: Vec<_> =
        forms.iter().map(|(name, _)| [name, "ok", name, name].map(str::to_owned)).collect();
    expected.sort();
    assert_eq!(results(&setup), expected);
    let counts: BTreeMap<&str, u64> = forms.iter().map(|(name, _)| (*name, 1)).collect();
    assert_eq!(summary(&setup)["forms"], json!(counts));
    assert!(run.stdout.contains("read from     anthropic 1 · deepseek-v3-1 1 · "), "{run:?}");
}

#[test]
fn no_half_of_a_turn_is_dropped_and_what_cannot_be_read_is_answered_in_its_turn() {
    // The first has a raw line break in a string, which leaves one reading only.
    let mended = "<tool_call>\n{\"name\": \"write_file\", \"arguments\": {\"path\": \"run.sh\", \
         \"content\": \"echo a\necho b\n\"}}\n</tool_call>\n\
         <tool_call>\n{\"name\": \"bash\", \"arguments\": {\"command\": \"bash run.sh\"}}\n</tool_call>";
    let broken = "<tool_call>{\"name\": \"bash\", \"arguments\": {\"command\": \"echo a\"</tool_call>\
         <tool_call>{\"name\": \"bash\", \"arguments\": {\"command\": \"echo b\"}}</tool_call>";
    let setup = Setup::new(&[text("mended", mended), text("broken", broken)]);
    let summary_file = setup.path("summary.json");
    let flags = ["--slots", "2", "--summary-json", summary_file.to_str().unwrap()];
    let run = setup.replay(&flags);
    assert_eq!(run.code, Some(0), "{run:?}");
    let lines = setup.results();
    let of = |id: &str| -> Vec<&Value> {
        lines.iter().filter(|line| line["trajectory_id"] == id).collect()
    };
    let mended = of("mended");
    assert_eq!(mended[0]["repairs"], json!(["raw_control_character"]));
    assert_eq!(mended[0]["metadata"]["call_repairs"], json!(["raw_control_character"]));
    assert_eq!((&mended[1]["output"], &mended[1]["repairs"]), (&json!("a\nb"), &json!([])));
    let broken = of("broken");
    assert_eq!(
        (&broken[0]["outcome"], &broken[0]["name"]),
        (&json!("invalid_call"), &json!("bash"))
    );
    assert_eq!(broken[0]["model_attributable"], true);
    let error = broken[0]["error"].as_str().unwrap();
    assert!(error.starts_with("The tool call at line 1, column 1 could not be read: "), "{error}");
    assert_eq!((&broken[1]["index"], &broken[1]["output"]), (&json!(1), &json!("b")));
    let told = "read from     hermes 4; 1 repaired; 1 not readable, answered as invalid\n";
    assert!(run.stdout.contains(told), "{run:?}");
    let calls = &summary(&setup)["calls"];
    assert_eq!(
        (&calls["repaired"], &calls["unreadable"], &calls["skipped"]),
        (&json!(1), &json!(1), &json!(0))
    );

    let run = setup.replay(&[&flags[..], &["--unreadable-calls", "skip"]].concat());
    assert_eq!((run.code, setup.results().len()), (Some(0), 3), "{run:?}");
    assert!(run.stdout.contains("hermes 3; 1 repaired; 1 not readable, skipped\n"), "{run:?}");
    assert_eq!(summary(&setup)["calls"]["skipped"], 1);

    let run = setup.replay(&[&flags[..], &["--unreadable-calls", "error"]].concat());
    assert_eq!((run.code, setup.results().len()), (Some(3), 2), "{run:?}");
    let problem =
        "error: line 2: messages[0]: The tool call at line 1, column 1 could not be read: ";
    assert!(run.stderr.contains(problem), "{run:?}");
}

#[test]
fn messages_without_a_call_are_counted_with_the_format_that_would_read_them() {
    let fenced = text("a", "I look.\n```bash\necho hi\n```\n");
    let setup = Setup::new(&[fenced.clone(), fenced.clone(), text("b", "Done.")]);
    let run = setup.replay(&[]);
    assert_eq!((run.code, setup.results().len()), (Some(3), 0), "{run:?}");
    let problem = "in.jsonl: no call is in its 3 messages of a model: 2 look like fenced-bash, \
                   which --format fenced-bash reads\n";
    assert!(run.stderr.contains(problem), "{run:?}");
    let run = setup.replay(&["--format", "fenced-bash"]);
    assert_eq!((run.code, setup.results().len()), (Some(0), 2), "{run:?}");

    // A format that was asked for by mistake, and a form that has calls besides.
    let qwen = text(
        "q",
        "<tool_call><function=bash><parameter=command>echo q</parameter></function></tool_call>",
    );
    let setup = Setup::new(&[qwen]);
    let run = setup.replay(&["--format", "mistral"]);
    assert_eq!(run.code, Some(3));
    assert!(
        run.stderr.contains("1 message of a model: 1 looks like qwen3-coder, which"),
        "{run:?}"
    );

    let call =
        "<tool_call>{\"name\": \"bash\", \"arguments\": {\"command\": \"true\"}}</tool_call>";
    let setup = Setup::new(&[text("c", call), fenced]);
    let run = setup.replay(&[]);
    assert_eq!((run.code, setup.results().len()), (Some(0), 1), "{run:?}");
    let warning = "warning: 1 trajectory has no call in 1 message of a model: 1 looks like \
                   fenced-bash, which --format fenced-bash reads\n";
    assert!(run.stderr.contains(warning), "{run:?}");
}

#[test]
fn a_format_that_there_is_not_is_refused_with_those_that_there_are() {
    let run = Setup::new(&[]).replay(&["--format", "yaml"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("it must be one of auto, hermes, qwen3-coder, "), "{run:?}");
    let run = Setup::new(&[]).replay(&["--unreadable-calls", "ignore"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("it must be one of answer, skip, error"), "{run:?}");
}
