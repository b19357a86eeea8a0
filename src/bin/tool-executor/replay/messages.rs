//! Trajectories kept as a chat: the `messages` form.
//!
//! Assistant messages hold the calls, as Hermes `<tool_call>` text in `content` or as OpenAI
//! `tool_calls`; what follows them until the next assistant message holds the answers, as `tool`
//! messages or as Hermes `<tool_response>` text of any role. An answer belongs to the call whose
//! id it names, else to the next call of that turn that has none. Pure, like its caller
//! [`super::trajectory`].

use serde_json::{Map, Value};
use tool_executor::ToolCall;

use super::step::{Recorded, Step, kind};

/// All calls of a chat, in order.
///
/// # Errors One phrase that says what is wrong. A `<tool_call>` block that does not parse is no
/// error: it was no call when it was recorded either.
pub(super) fn parse(messages: Value) -> Result<Vec<Step>, String> {
    let Value::Array(messages) = messages else {
        return Err(format!("\"messages\" is {}, not an array", kind(&messages)));
    };
    let mut steps = Vec::new();
    let mut turn = Turn::default();
    for (number, message) in messages.into_iter().enumerate() {
        let Value::Object(message) = message else {
            return Err(format!(
                "messages[{number}]: expected an object, found {}",
                kind(&message)
            ));
        };
        let Some(role) = message.get("role").and_then(Value::as_str) else {
            return Err(format!("messages[{number}]: \"role\" is missing"));
        };
        if role == "assistant" {
            turn.finish(&mut steps);
            turn.calls = calls_of(&message).map_err(|e| format!("messages[{number}]: {e}"))?;
        } else if !turn.calls.is_empty() {
            turn.answers.extend(answers_of(&message, role == "tool"));
        }
    }
    turn.finish(&mut steps);
    Ok(steps)
}

/// An assistant message's calls and the answers they got.
#[derive(Default)]
struct Turn {
    calls: Vec<ToolCall>,
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
            steps.push(Step { call, index: steps.len(), setup: false, recorded });
        }
    }
}

/// A message with `tool_calls` has no others: Hermes text beside them is the same calls once more.
fn calls_of(message: &Map<String, Value>) -> Result<Vec<ToolCall>, String> {
    let list = match message.get("tool_calls") {
        None | Some(Value::Null) => &Vec::new(),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(format!("\"tool_calls\" is {}, not an array", kind(other))),
    };
    if list.is_empty() {
        return Ok(ToolCall::parse_from_text(&text_of(message)));
    }
    let calls = list.iter().enumerate().map(|(index, call)| {
        ToolCall::from_openai(call).map_err(|error| format!("tool_calls[{index}]: {error}"))
    });
    calls.collect()
}

/// A `tool` message is one answer, unless it holds `<tool_response>` elements; a message of
/// another role holds as many answers as elements.
fn answers_of(message: &Map<String, Value>, is_tool: bool) -> Vec<Answer> {
    let text = text_of(message);
    let mut answers: Vec<Answer> = tool_responses(&text).map(answer_of).collect();
    if is_tool {
        if answers.is_empty() {
            answers.push(answer_of(&text));
        }
        if let ([answer], Some(id)) =
            (&mut answers[..], message.get("tool_call_id").and_then(Value::as_str))
        {
            answer.call_id = Some(id.to_owned());
        }
    }
    answers
}

/// `content` as text: a string, or the texts of an array of parts.
fn text_of(message: &Map<String, Value>) -> String {
    match message.get("content") {
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

    use super::*;

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
    fn answers_that_cannot_be_told_apart_are_given_to_no_call() {
        let chat = json!([
            {"role": "assistant", "content": format!("<tool_call>broken</tool_call>{}", hermes("b"))},
            {"role": "tool", "content": "your first call is not JSON"},
            {"role": "tool", "content": "B"},
        ]);
        assert_eq!(steps(chat), [step("b", None, None)]);
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
        assert!(parse(no_call).unwrap_err().starts_with("messages[0]: tool_calls[0]: "));
    }
}
