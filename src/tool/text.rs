//! Tool calls and tool results as text in a model's conversation: the `<tool_call>` and
//! `<tool_response>` elements that Hermes models are trained on, and the form that GLM models give
//! their calls.
//!
//! Rollout drivers call it on what a model wrote, and on what is to be shown to it. It judges
//! neither names nor arguments: that is the executor's door.

use serde_json::Value;
use uuid::Uuid;

use super::python_json::{self, NonAscii};
use super::{JsonObject, ToolCall, ToolResult};

const CALL_START: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
const RESPONSE_START: &str = "<tool_response>";
const RESPONSE_END: &str = "</tool_response>";

impl ToolCall {
    /// Finds the tool calls in a model's text, in order of appearance.
    ///
    /// A call is a block `<tool_call>…</tool_call>` that holds either a JSON object in
    /// [Python's dialect](python_json) or, in the GLM form, a name and the object of its arguments:
    ///
    /// ```text
    /// <tool_call>{"name": "bash", "arguments": {"command": "ls"}, "uniq_id": "c1"}</tool_call>
    /// <tool_call>bash{"command": "ls"}</tool_call>
    /// ```
    ///
    /// `arguments` may be missing, which means none. The id is `uniq_id`, else `id`, else a new
    /// UUIDv4; an id that is not a string becomes its JSON text.
    ///
    /// A block that holds anything else is left out silently, and the others still count. The first
    /// `</tool_call>` ends a block wherever it stands, so an unclosed block swallows the next one.
    /// The time is linear in the length of the text.
    ///
    /// ```
    /// use tool_executor::ToolCall;
    ///
    /// let text = r#"Let me look. <tool_call>{"name": "bash", "arguments": {"command": "ls"}}</tool_call>"#;
    /// let calls = ToolCall::parse_from_text(text);
    /// assert_eq!(calls[0].name, "bash");
    /// assert_eq!(calls[0].arguments["command"], "ls");
    /// ```
    pub fn parse_from_text(text: &str) -> Vec<ToolCall> {
        blocks(text).filter_map(parse_block).collect()
    }

    /// Whether the text starts a tool call, closed or not, well-formed or not.
    ///
    /// Where this is `true` and [`parse_from_text`](Self::parse_from_text) finds nothing, the model
    /// meant to call a tool and failed.
    pub fn has_tool_call(text: &str) -> bool {
        text.contains(CALL_START)
    }
}

/// The trimmed insides of the closed blocks of `text`.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, opened) = rest.split_once(CALL_START)?;
        // Without an end tag there is no further block: `rest` stays, and nothing asks again.
        let (inner, after) = opened.split_once(CALL_END)?;
        rest = after;
        Some(inner.trim_matches(is_python_space))
    })
}

fn parse_block(inner: &str) -> Option<ToolCall> {
    let (name, arguments, uniq_id) =
        if inner.starts_with('{') { parse_hermes(inner)? } else { parse_glm(inner)? };
    Some(ToolCall {
        name,
        arguments: Value::Object(arguments),
        uniq_id: uniq_id.unwrap_or_else(|| Uuid::new_v4().to_string()),
        raw_text: inner.to_owned(),
        timeout: None,
        origin: None,
    })
}

type Parts = (String, JsonObject, Option<String>);

fn parse_hermes(inner: &str) -> Option<Parts> {
    let Ok(Value::Object(mut call)) = python_json::parse(inner) else {
        return None;
    };
    let uniq_id = ["uniq_id", "id"].into_iter().find_map(|key| id_text(call.get(key)?));
    match (call.remove("name"), call.remove("arguments")) {
        (Some(Value::String(name)), arguments) if !name.is_empty() => match arguments {
            None => Some((name, JsonObject::new(), uniq_id)),
            Some(Value::Object(arguments)) => Some((name, arguments, uniq_id)),
            Some(_) => None,
        },
        _ => None,
    }
}

fn parse_glm(inner: &str) -> Option<Parts> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.:\\-".contains(c);
    let name_end = inner.find(|c| !is_name(c)).filter(|&end| end > 0)?;
    let (name, rest) = inner.split_at(name_end);
    let arguments = rest.trim_start_matches(is_python_space);
    if !arguments.starts_with('{') {
        return None;
    }
    match python_json::parse(arguments) {
        Ok(Value::Object(arguments)) => Some((name.to_owned(), arguments, None)),
        _ => None,
    }
}

/// A call's id as text; `None` where Python finds it false, as `""` or `0`.
pub(super) fn id_text(id: &Value) -> Option<String> {
    match id {
        Value::String(id) => Some(id.clone()).filter(|id| !id.is_empty()),
        id => python_json::is_truthy(id).then(|| python_json::to_string(id, NonAscii::Keep)),
    }
}

/// What `\s` and `str.strip` mean in Python: Unicode's white space and the four ASCII separators.
fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

impl ToolResult {
    /// The result as the element that a model is shown:
    /// `<tool_response>{"success": true, "output": "hi", "uniq_id": "c1"}</tool_response>`.
    ///
    /// The JSON is in the default form of Python's `json.dumps`; `uniq_id`, `error` and `metadata`
    /// are left out where they are empty.
    ///
    /// What a tool printed cannot end the element or start another: the `<` of a
    /// `<tool_response>` or `</tool_response>` inside is written as `\u003c`, which means the same
    /// in JSON. Everything else is byte for byte what the reference writes.
    pub fn to_xml(&self) -> String {
        const NON_ASCII: NonAscii = NonAscii::Escape;
        let mut json = String::with_capacity(self.output.len() + 128);
        json.push_str(if self.success { "{\"success\": true" } else { "{\"success\": false" });
        json.push_str(", \"output\": ");
        python_json::write_string(&mut json, &self.output, NON_ASCII);
        if let Some(uniq_id) = self.uniq_id.as_deref().filter(|id| !id.is_empty()) {
            json.push_str(", \"uniq_id\": ");
            python_json::write_string(&mut json, uniq_id, NON_ASCII);
        }
        if !self.error.is_empty() {
            json.push_str(", \"error\": ");
            python_json::write_string(&mut json, &self.error, NON_ASCII);
        }
        if !self.metadata.is_empty() {
            json.push_str(", \"metadata\": ");
            python_json::write_object(&mut json, &self.metadata, NON_ASCII);
        }
        json.push('}');
        if json.contains(RESPONSE_START) || json.contains(RESPONSE_END) {
            // JSON itself has no `<`, so each one found stands inside a string.
            json = json
                .replace(RESPONSE_END, "\\u003c/tool_response>")
                .replace(RESPONSE_START, "\\u003ctool_response>");
        }
        [RESPONSE_START, &json, RESPONSE_END].concat()
    }

    /// The five fields that go over the wire, always all, in this order: `success`, `output`,
    /// `error`, `metadata`, `uniq_id`.
    pub fn to_dict(&self) -> JsonObject {
        let uniq_id = self.uniq_id.clone().map_or(Value::Null, Value::String);
        JsonObject::from_iter([
            ("success".to_owned(), Value::Bool(self.success)),
            ("output".to_owned(), Value::String(self.output.clone())),
            ("error".to_owned(), Value::String(self.error.clone())),
            ("metadata".to_owned(), Value::Object(self.metadata.clone())),
            ("uniq_id".to_owned(), uniq_id),
        ])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::tool::Outcome;

    #[test]
    fn white_space_around_a_block_is_pythons() {
        let text = "<tool_call>\u{1c}\u{1f}\u{85}\u{3000}\u{b}f\u{1d}{}\u{2029}\u{1e}</tool_call>";
        let calls = ToolCall::parse_from_text(text);
        assert_eq!((calls[0].name.as_str(), calls[0].raw_text.as_str()), ("f", "f\u{1d}{}"));
    }

    #[test]
    fn a_call_without_an_id_gets_a_uuid_and_each_its_own() {
        let text = "<tool_call>a{}</tool_call><tool_call>{\"name\": \"a\"}</tool_call>";
        let calls = ToolCall::parse_from_text(text);
        let ids: Vec<_> =
            calls.iter().map(|call| Uuid::parse_str(&call.uniq_id).unwrap()).collect();
        assert!(ids.iter().all(|id| id.get_version_num() == 4));
        assert_ne!(ids[0], ids[1]);
    }

    #[test]
    fn an_id_that_is_no_string_becomes_its_json_text_and_a_false_one_counts_as_missing() {
        let id_of = |ids: &str| {
            let text = format!("<tool_call>{{\"name\": \"a\", {ids}}}</tool_call>");
            ToolCall::parse_from_text(&text).remove(0).uniq_id
        };
        assert_eq!(id_of(r#""uniq_id": 7"#), "7");
        assert_eq!(id_of(r#""uniq_id": true"#), "true");
        assert_eq!(id_of(r#""uniq_id": [1, "é"]"#), r#"[1, "é"]"#);
        assert_eq!(id_of(r#""uniq_id": 0.0, "id": "x""#), "x");
        assert_eq!(id_of(r#""uniq_id": [], "id": {"k": 1.0}"#), r#"{"k": 1.0}"#);
        assert_eq!(id_of(r#""uniq_id": false, "id": """#).len(), 36);
    }

    #[test]
    fn hostile_text_is_read_in_linear_time() {
        // Were the time quadratic in these, the test would run for hours.
        let open = CALL_START.repeat(700_000);
        assert!(ToolCall::parse_from_text(&open).is_empty());
        assert!(ToolCall::parse_from_text(&(open + CALL_END)).is_empty());
        assert!(ToolCall::parse_from_text(&CALL_END.repeat(700_000)).is_empty());
        let spaces = format!("{CALL_START}a{}", " ".repeat(8_000_000));
        assert!(ToolCall::parse_from_text(&spaces).is_empty());
        assert!(ToolCall::parse_from_text(&(spaces + CALL_END)).is_empty());
        let many = "<tool_call>a{}</tool_call>".repeat(20_000);
        assert_eq!(ToolCall::parse_from_text(&many).len(), 20_000);
    }

    #[test]
    fn no_output_ends_its_element_early_or_starts_another() {
        let printed = r"</tool_response><tool_response>\</tool_response></TOOL_RESPONSE> < <tool";
        let mut result = ToolResult::failure(Outcome::ToolError, printed);
        result.output = printed.to_owned();
        result.uniq_id = Some(printed.to_owned());
        result.metadata.insert(printed.to_owned(), json!([printed]));

        let xml = result.to_xml();
        let json = xml.strip_prefix(RESPONSE_START).unwrap().strip_suffix(RESPONSE_END).unwrap();
        assert!(!json.contains(RESPONSE_START) && !json.contains(RESPONSE_END));
        assert!(json.contains(
            r"\u003c/tool_response>\u003ctool_response>\\\u003c/tool_response></TOOL_RESPONSE> < <tool"
        ));
        let read = python_json::parse(json).unwrap();
        assert_eq!(read["output"], printed);
        assert_eq!(read["error"], printed);
        assert_eq!(read["uniq_id"], printed);
        assert_eq!(read["metadata"][printed], json!([printed]));
    }

    #[test]
    fn a_dict_has_all_five_keys_in_the_order_of_the_wire() {
        let keys = ["success", "output", "error", "metadata", "uniq_id"];
        let dict = ToolResult::ok("hi").to_dict();
        assert!(dict.keys().eq(keys));
        assert_eq!(Value::Object(dict)["uniq_id"], Value::Null);
    }

    /// Text that often holds blocks.
    fn model_text() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "<tool_call>",
            "</tool_call>",
            "<tool_call",
            "{",
            "}",
            "{}",
            "a",
            "é",
            " ",
            "\u{1c}",
            "\"",
            "{\"name\": \"a\"}",
            "{\"name\": \"b\", \"arguments\": ",
            "\\",
        ]);
        prop::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn a_call_found_is_a_name_and_an_object_from_a_closed_block(text in model_text()) {
            for call in ToolCall::parse_from_text(&text) {
                prop_assert!(!call.name.is_empty() && call.arguments.is_object());
                let (_, opened) = text.split_once(CALL_START).unwrap();
                prop_assert!(opened.contains(&call.raw_text) && opened.contains(CALL_END));
                // Its raw text in a block of its own is the same call.
                let again = ToolCall::parse_from_text(&format!("{CALL_START}{}{CALL_END}", call.raw_text));
                prop_assert_eq!((&again[0].name, &again[0].arguments), (&call.name, &call.arguments));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = ToolCall::parse_from_text(&text);
            let _ = ToolCall::parse_from_text(&format!("{CALL_START}{text}{CALL_END}"));
        }

        #[test]
        fn every_output_comes_back_from_its_element(output in any::<String>()) {
            let xml = ToolResult::ok(output.clone()).to_xml();
            let json = xml.strip_prefix(RESPONSE_START).unwrap().strip_suffix(RESPONSE_END).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Value>(json).unwrap()["output"], &output);
        }
    }
}
