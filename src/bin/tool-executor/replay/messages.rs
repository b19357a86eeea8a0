//! Trajectories kept as a chat: the `messages` and `conversations` forms.
//!
//! What a model wrote holds the calls: OpenAI chat messages (`tool_calls`, `function_call`), the
//! items of OpenAI's Responses, Anthropic's content blocks, ShareGPT's turns, or text in any of the
//! forms of [`tool_executor::format`]. What follows until the model writes again holds the answers.
//! An answer belongs to the call whose id it names, else to the next call of that turn that has
//! none. Pure, like its caller [`super::trajectory`].

use serde_json::{Map, Value};
use tool_executor::ToolCall;
use tool_executor::format::is_model_message;

use super::reading::{CallReading, Seen};
use super::step::{Recorded, Step, kind};

/// All calls of a chat, in order. `name` is the chat's key; `seen` is told of its messages.
///
/// # Errors
/// One phrase that says what is wrong. A call that cannot be read is no error, unless the policy
/// says so: it is a step like the others, which the executor answers.
pub(super) fn parse(
    messages: Value,
    name: &str,
    reading: &CallReading,
    seen: &mut Seen,
) -> Result<Vec<Step>, String> {
    let Value::Array(messages) = messages else {
        return Err(format!("\"{name}\" is {}, not an array", kind(&messages)));
    };
    let mut steps = Vec::new();
    let mut turn = Turn::default();
    for (number, message) in messages.iter().enumerate() {
        let problem = |problem: String| format!("{name}[{number}]: {problem}");
        let Value::Object(fields) = message else {
            return Err(problem(format!("expected an object, found {}", kind(message))));
        };
        if !["role", "from", "type"]
            .iter()
            .any(|key| fields.get(*key).is_some_and(Value::is_string))
        {
            return Err(problem("\"role\" is missing".to_owned()));
        }
        if !is_model_message(message) {
            if !turn.calls.is_empty() {
                turn.answers.extend(answers_of(fields));
            }
            continue;
        }
        let calls = reading.calls(message, &text_of(fields), seen);
        let calls = calls.map_err(|error| problem(error.to_string()))?;
        // Calls of OpenAI's Responses are items of their own, and their answers come behind them
        // all.
        let goes_on = is_call_item(fields) && turn.of_items && turn.answers.is_empty();
        if !goes_on {
            turn.finish(&mut steps);
        }
        turn.of_items = is_call_item(fields);
        turn.calls.extend(calls);
    }
    turn.finish(&mut steps);
    Ok(steps)
}

fn is_call_item(message: &Map<String, Value>) -> bool {
    string(message, "type").as_deref() == Some("function_call")
}

/// A model's calls and the answers they got.
#[derive(Default)]
struct Turn {
    calls: Vec<ToolCall>,
    /// Its calls are items of OpenAI's Responses.
    of_items: bool,
    answers: Vec<Answer>,
}

struct Answer {
    call_id: Option<String>,
    recorded: Recorded,
}

impl Turn {
    fn finish(&mut self, steps: &mut Vec<Step>) {
        let calls = std::mem::take(&mut self.calls);
        let answers = std::mem::take(&mut self.answers);
        let mut recorded: Vec<Option<Recorded>> = calls.iter().map(|_| None).collect();
        // With more answers than calls it is not known which answer is to no call of ours (the
        // harness may have answered a block that did not parse), so order says nothing.
        let order_is_reliable = answers.len() <= calls.len();
        let mut unnamed = Vec::new();
        for answer in answers {
            // Some models give all calls of a turn the same id; their answers come in order.
            let named = answer.call_id.and_then(|id| {
                let mut free = calls.iter().zip(&recorded);
                free.position(|(call, recorded)| call.uniq_id == id && recorded.is_none())
            });
            match named {
                Some(place) => recorded[place] = Some(answer.recorded),
                None => unnamed.push(answer.recorded),
            }
        }
        if order_is_reliable {
            let free = recorded.iter_mut().filter(|slot| slot.is_none());
            for (slot, answer) in free.zip(unnamed) {
                *slot = Some(answer);
            }
        }
        for (call, recorded) in calls.into_iter().zip(recorded) {
            let recorded = recorded.unwrap_or_default();
            steps.push(Step { call, put: None, index: steps.len(), setup: false, recorded });
        }
    }
}

/// The answers in a message that no model wrote.
fn answers_of(message: &Map<String, Value>) -> Vec<Answer> {
    let role = string(message, "role").or_else(|| string(message, "from")).unwrap_or_default();
    if string(message, "type").as_deref() == Some("function_call_output") {
        let call_id = string(message, "call_id");
        return vec![Answer { call_id, ..answer_of(&text_in(message.get("output"))) }];
    }
    let results: Vec<_> = content(message)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .filter(|block| string(block, "type").as_deref() == Some("tool_result"))
        .map(|block| {
            let call_id = string(block, "tool_use_id");
            Answer { call_id, ..answer_of(&text_in(block.get("content"))) }
        })
        .collect();
    if !results.is_empty() {
        return results;
    }
    let text = text_of(message);
    let mut answers: Vec<Answer> = tool_responses(&text).map(answer_of).collect();
    if matches!(role.as_str(), "tool" | "function" | "observation" | "ipython") {
        if answers.is_empty() {
            answers.push(answer_of(&text));
        }
        if let ([answer], Some(id)) = (&mut answers[..], string(message, "tool_call_id")) {
            answer.call_id = Some(id);
        }
    }
    answers
}

/// A message's `content`, or a turn's `value`.
fn content(message: &Map<String, Value>) -> Option<&Value> {
    message.get("content").or_else(|| message.get("value"))
}

/// The content of a message as text.
fn text_of(message: &Map<String, Value>) -> String {
    text_in(content(message))
}

/// A string, or the texts of an array of parts.
fn text_in(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect()
        }
        _ => String::new(),
    }
}

fn tool_responses(text: &str) -> impl Iterator<Item = &str> {
    text.split("<tool_response>")
        .skip(1)
        .filter_map(|rest| rest.split_once("</tool_response>").map(|(inner, _)| inner))
}

/// The result objects that harnesses write, else the plain text itself.
fn answer_of(text: &str) -> Answer {
    const KEYS: [&str; 11] = [
        "success",
        "output",
        "content",
        "error",
        "metadata",
        "uniq_id",
        "exit_code",
        "returncode",
        "name",
        "tool_call_id",
        "id",
    ];
    let plain = || Answer {
        call_id: None,
        recorded: Recorded { output: Some(text.trim().to_owned()), ..Recorded::default() },
    };
    let Ok(Value::Object(object)) = serde_json::from_str::<Value>(text) else { return plain() };
    // A file that a tool read may well be JSON: only what looks like a result in full is one.
    if !object.keys().all(|key| KEYS.contains(&key.as_str())) {
        return plain();
    }
    let output = match object.get("output").or_else(|| object.get("content")) {
        Some(Value::String(output)) => output.clone(),
        Some(Value::Object(inner)) if object.contains_key("name") => {
            // `{"name": …, "content": {…result…}}`
            return Answer {
                call_id: string(&object, "tool_call_id"),
                ..answer_of(&Value::Object(inner.clone()).to_string())
            };
        }
        _ => return plain(),
    };
    let exit_code = ["exit_code", "returncode"].iter().find_map(|key| {
        let inside = object.get("metadata").and_then(|metadata| metadata.get(key));
        object.get(*key).or(inside).and_then(Value::as_i64)
    });
    let call_id = ["uniq_id", "tool_call_id", "id"].iter().find_map(|key| string(&object, key));
    Answer { call_id, recorded: Recorded { output: Some(output), exit_code, truncated: false } }
}

fn string(object: &Map<String, Value>, key: &str) -> Option<String> {
    object.get(key).and_then(Value::as_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tool_executor::format::{Format, UnreadableCalls};

    use super::*;

    fn parse(messages: Value) -> Result<Vec<Step>, String> {
        super::parse(messages, "messages", &CallReading::default(), &mut Seen::default())
    }

    /// Command and recorded output of each step.
    fn steps(messages: Value) -> Vec<(String, Option<String>, Option<i64>)> {
        parse(messages)
            .unwrap()
            .into_iter()
            .map(|step| {
                let command = step.call.arguments["command"].as_str().unwrap_or("?").to_owned();
                (command, step.recorded.output, step.recorded.exit_code)
            })
            .collect()
    }

    fn hermes(command: &str) -> String {
        let call = json!({"name": "bash", "arguments": {"command": command}});
        format!("<tool_call>\n{call}\n</tool_call>")
    }

    fn openai(id: &str, command: &str) -> Value {
        let arguments = json!({"command": command}).to_string();
        json!({"id": id, "type": "function", "function": {"name": "bash", "arguments": arguments}})
    }

    fn step(
        command: &str,
        output: Option<&str>,
        exit: Option<i64>,
    ) -> (String, Option<String>, Option<i64>) {
        (command.to_owned(), output.map(str::to_owned), exit)
    }

    #[test]
    fn hermes_calls_are_answered_in_order() {
        let chat = json!([
            {"role": "system", "content": "You may call <tool_call>…</tool_call>"},
            {"role": "user", "content": "<tool_response>no call was made</tool_response>"},
            {"role": "assistant", "content": format!("Look.{}{}", hermes("a"), hermes("b"))},
            {"role": "user", "content": "<tool_response>{\"success\": false, \"output\": \"A\", \
             \"error\": \"Exit code: 3\", \"metadata\": {\"exit_code\": 3}}</tool_response>\
             <tool_response>\n{\"name\": \"bash\", \"content\": \"B\"}\n</tool_response>"},
            {"role": "assistant", "content": hermes("c")},
            {"role": "tool", "content": "plain C\n"},
            {"role": "assistant", "content": "Done."},
        ]);
        assert_eq!(
            steps(chat),
            [
                step("a", Some("A"), Some(3)),
                step("b", Some("B"), None),
                step("c", Some("plain C"), None)
            ]
        );
    }

    #[test]
    fn openai_calls_are_answered_by_id_whatever_the_order() {
        let chat = json!([
            {"role": "assistant", "content": null, "tool_calls": [openai("1", "a"), openai("2", "b")]},
            {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "B"}]},
            {"role": "tool", "tool_call_id": "1", "content": "{\"output\": \"A\", \"exit_code\": 0}"},
        ]);
        assert_eq!(steps(chat), [step("a", Some("A"), Some(0)), step("b", Some("B"), None)]);
    }

    #[test]
    fn answers_to_calls_that_share_an_id_come_in_order() {
        let chat = json!([
            {"role": "assistant", "tool_calls": [openai("1", "a"), openai("1", "b")]},
            {"role": "tool", "tool_call_id": "1", "content": "A"},
            {"role": "tool", "tool_call_id": "1", "content": "B"},
        ]);
        assert_eq!(steps(chat), [step("a", Some("A"), None), step("b", Some("B"), None)]);
    }

    #[test]
    fn calls_that_are_in_the_text_and_in_the_list_are_made_once() {
        let chat = json!([
            {"role": "assistant", "content": hermes("a"), "tool_calls": [openai("1", "a")]},
            {"role": "tool", "tool_call_id": "1", "content": "A"},
            {"role": "assistant", "content": hermes("b"), "tool_calls": []},
        ]);
        assert_eq!(steps(chat), [step("a", Some("A"), None), step("b", None, None)]);
    }

    #[test]
    fn an_unanswered_call_has_nothing_recorded() {
        let chat = json!([{"role": "assistant", "content": hermes("a")}]);
        assert_eq!(steps(chat), [step("a", None, None)]);
    }

    #[test]
    fn a_call_that_cannot_be_read_has_its_answer_and_leaves_the_others_theirs() {
        let chat = json!([
            {"role": "assistant", "content": format!("<tool_call>broken</tool_call>{}", hermes("b"))},
            {"role": "tool", "content": "your first call is not JSON"},
            {"role": "tool", "content": "B"},
        ]);
        assert_eq!(
            steps(chat),
            [step("?", Some("your first call is not JSON"), None), step("b", Some("B"), None)]
        );
    }

    #[test]
    fn answers_that_cannot_be_told_apart_are_given_to_no_call() {
        let chat = json!([
            {"role": "assistant", "content": hermes("b")},
            {"role": "tool", "content": "A"},
            {"role": "tool", "content": "B"},
        ]);
        assert_eq!(steps(chat), [step("b", None, None)]);
    }

    #[test]
    fn messages_of_other_forms_are_read_with_their_answers() {
        let call = json!({"name": "bash", "arguments": "{\"command\": \"a\"}"});
        for chat in [
            json!([
                {"role": "assistant", "content": null, "function_call": call},
                {"role": "function", "name": "bash", "content": "A"},
                {"role": "assistant", "content": hermes("b")},
                {"role": "user", "content": "<tool_response>B</tool_response>"},
            ]),
            json!([
                {"type": "message", "role": "user", "content": "hi"},
                {"type": "function_call", "call_id": "1", "name": "bash",
                 "arguments": "{\"command\": \"a\"}"},
                {"type": "function_call", "call_id": "2", "name": "bash",
                 "arguments": "{\"command\": \"b\"}"},
                {"type": "function_call_output", "call_id": "2", "output": "B"},
                {"type": "function_call_output", "call_id": "1", "output": "A"},
            ]),
            json!([
                {"role": "assistant", "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "1", "name": "bash", "input": {"command": "a"}},
                    {"type": "tool_use", "id": "2", "name": "bash", "input": {"command": "b"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "2", "content": "B"},
                    {"type": "tool_result", "tool_use_id": "1",
                     "content": [{"type": "text", "text": "A"}]},
                ]},
            ]),
            json!([
                {"from": "human", "value": "hi"},
                {"from": "function_call",
                 "value": "{\"name\": \"bash\", \"arguments\": {\"command\": \"a\"}}"},
                {"from": "observation", "value": "A"},
                {"from": "gpt", "value": hermes("b")},
                {"from": "tool", "value": "<tool_response>B</tool_response>"},
            ]),
        ] {
            let expected = [step("a", Some("A"), None), step("b", Some("B"), None)];
            assert_eq!(steps(chat.clone()), expected, "{chat}");
        }
    }

    #[test]
    fn a_chat_without_a_call_says_what_its_messages_look_like() {
        let chat = json!([
            {"role": "assistant", "content": "```bash\nls\n```"},
            {"role": "assistant", "content": "<think>hm"},
            {"role": "assistant", "content": "Done."},
        ]);
        let mut seen = Seen::default();
        let steps = super::parse(chat, "messages", &CallReading::default(), &mut seen).unwrap();
        assert_eq!(steps, []);
        assert_eq!((seen.model_messages, seen.unclosed_thinking), (3, 1));
        assert_eq!(seen.looks_like, [(Format::FencedBash, 1)].into());
    }

    #[test]
    fn json_that_a_tool_printed_is_its_output() {
        let chat = json!([
            {"role": "assistant", "content": hermes("cat package.json")},
            {"role": "tool", "content": "{\"name\": \"x\", \"version\": \"1\"}"},
        ]);
        let printed = "{\"name\": \"x\", \"version\": \"1\"}";
        assert_eq!(steps(chat), [step("cat package.json", Some(printed), None)]);
    }

    #[test]
    fn what_is_wrong_with_a_chat_is_said() {
        for (chat, problem) in [
            (json!(["hi"]), "messages[0]: expected an object, found a string"),
            (json!([{"content": "hi"}]), "messages[0]: \"role\" is missing"),
            (
                json!([{"role": "assistant", "tool_calls": {}}]),
                "messages[0]: \"tool_calls\" is an object, not an array",
            ),
        ] {
            assert_eq!(parse(chat).unwrap_err(), problem);
        }
        let no_call = json!([{"role": "assistant", "tool_calls": [{}]}]);
        assert!(parse(no_call.clone()).unwrap()[0].call.is_unreadable());
        let refusing = CallReading { unreadable: UnreadableCalls::Error, ..CallReading::default() };
        let error = super::parse(no_call, "messages", &refusing, &mut Seen::default());
        let expected = "messages[0]: The tool call could not be read: it has no \"name\"";
        assert_eq!(error.unwrap_err(), expected);
    }
}
