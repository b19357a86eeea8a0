//! Calls written as the makers' chat templates write them, for the round trips.

use serde_json::Value;

use super::Format;
use crate::tool::JsonObject;
use crate::tool::python_json::{self, NonAscii};

/// A call to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Written {
    pub(super) name: String,
    pub(super) arguments: JsonObject,
}

/// The message that makes these calls, with text between them where the form allows it.
pub(super) fn message(format: Format, calls: &[Written], text: &str) -> String {
    let each = |open: &str, close: &str, between: &str, write: &dyn Fn(&Written) -> String| {
        let calls: Vec<_> = calls.iter().map(write).collect();
        format!("{open}{}{close}", calls.join(between))
    };
    match format {
        Format::Auto | Format::Hermes => each(text, "", text, &|call| {
            format!("<tool_call>\n{}\n</tool_call>", object(call, "arguments"))
        }),
        Format::Qwen3Coder => each(text, "", text, &|call| {
            let arguments =
                arguments(call, |key, value| format!("<parameter={key}>\n{value}\n</parameter>\n"));
            format!("<tool_call>\n<function={}>\n{arguments}</function>\n</tool_call>", call.name)
        }),
        Format::Glm => each(text, "", text, &|call| {
            let arguments = arguments(call, |key, value| {
                format!("<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n")
            });
            format!("<tool_call>{}\n{arguments}</tool_call>", call.name)
        }),
        Format::Llama3 => each(&format!("{text}<|python_tag|>"), "<|eom_id|>", "; ", &|call| {
            object(call, "parameters")
        }),
        Format::Llama4 => {
            each(&format!("{text}<|python_start|>["), "]<|python_end|>", ", ", &python)
        }
        Format::Mistral => each(text, "</s>", "", &|call| {
            format!("[TOOL_CALLS]{}[ARGS]{}", call.name, json(&call.arguments))
        }),
        Format::DeepSeekV3 => each(
            &format!("{text}<｜tool▁calls▁begin｜>"),
            "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
            "\n",
            &|call| {
                let json = json(&call.arguments);
                format!(
                    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{json}\n```<｜tool▁call▁end｜>",
                    call.name
                )
            },
        ),
        Format::DeepSeekV31 => each(
            &format!("{text}<｜tool▁calls▁begin｜>"),
            "<｜tool▁calls▁end｜>",
            "",
            &|call| {
                let json = json(&call.arguments);
                format!("<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{json}<｜tool▁call▁end｜>", call.name)
            },
        ),
        Format::DeepSeekV32 => each(
            &format!("{text}\n\n<｜DSML｜function_calls>\n"),
            "\n</｜DSML｜function_calls>",
            "\n",
            &|call| {
                let arguments = call.arguments.iter().map(|(key, value)| {
                    let is_string = value.is_string();
                    let value = raw(value);
                    format!("<｜DSML｜parameter name=\"{key}\" string=\"{is_string}\">{value}</｜DSML｜parameter>\n")
                });
                let arguments: String = arguments.collect();
                format!("<｜DSML｜invoke name=\"{}\">\n{arguments}</｜DSML｜invoke>", call.name)
            },
        ),
        Format::KimiK2 => each(
            &format!("{text}<|tool_calls_section_begin|>"),
            "<|tool_calls_section_end|>",
            "",
            &|call| {
                let json = json(&call.arguments);
                format!(
                    "<|tool_call_begin|>functions.{}:0<|tool_call_argument_begin|>{json}<|tool_call_end|>",
                    call.name
                )
            },
        ),
        Format::MiniMaxM1 => {
            each(&format!("{text}<tool_calls>\n"), "\n</tool_calls>", "\n", &|call| {
                object(call, "arguments")
            })
        }
        Format::MiniMaxM2 => each(
            &format!("{text}<minimax:tool_call>\n"),
            "\n</minimax:tool_call>[e~[",
            "\n",
            &invoke,
        ),
        Format::Anthropic => {
            each(&format!("{text}<function_calls>\n"), "\n</function_calls>", "\n", &invoke)
        }
        Format::Harmony => each("<|channel|>analysis<|message|>Hm.<|end|>", "", "", &|call| {
            format!(
                "<|start|>assistant<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>",
                call.name,
                json(&call.arguments)
            )
        }),
        Format::Granite => {
            each(&format!("{text}<|tool_call|>["), "]", ", ", &|call| object(call, "arguments"))
        }
        Format::Gemma => each(&format!("{text}```tool_code\n"), "\n```", "\n", &python),
        Format::FencedBash => {
            let command = calls.first().and_then(|call| call.arguments.get("command"));
            format!("{text}```bash\n{}\n```", command.map(raw).unwrap_or_default())
        }
    }
}

fn object(call: &Written, key: &str) -> String {
    let name = python_json::to_string(&Value::from(call.name.as_str()), NonAscii::Keep);
    format!("{{\"name\": {name}, \"{key}\": {}}}", json(&call.arguments))
}

fn json(arguments: &JsonObject) -> String {
    python_json::to_string(&Value::Object(arguments.clone()), NonAscii::Keep)
}

/// Strings as they are, all else as JSON.
fn raw(value: &Value) -> String {
    match value {
        Value::String(string) => string.clone(),
        other => python_json::to_string(other, NonAscii::Keep),
    }
}

fn arguments(call: &Written, write: impl Fn(&str, &str) -> String) -> String {
    call.arguments.iter().map(|(key, value)| write(key, &raw(value))).collect()
}

fn invoke(call: &Written) -> String {
    let arguments =
        arguments(call, |key, value| format!("<parameter name=\"{key}\">{value}</parameter>\n"));
    format!("<invoke name=\"{}\">\n{arguments}</invoke>", call.name)
}

fn python(call: &Written) -> String {
    let arguments: Vec<_> =
        call.arguments.iter().map(|(key, value)| format!("{key}={}", literal(value))).collect();
    format!("{}({})", call.name, arguments.join(", "))
}

/// Python's `repr`, as far as JSON has it.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(literal).collect::<Vec<_>>().join(", "))
        }
        Value::Object(object) => {
            let pairs = object.iter().map(|(key, value)| {
                format!("{}: {}", literal(&Value::from(key.as_str())), literal(value))
            });
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => python_json::to_string(other, NonAscii::Escape),
    }
}

/// Whether a form with raw values can hold this value: not where it holds what would end it.
pub(super) fn can_hold(format: Format, value: &str) -> bool {
    let bare: String = value.chars().filter(|c| !c.is_whitespace()).collect();
    let forbidden: &[&str] = match format {
        Format::Qwen3Coder => &[
            "</parameter><parameter=",
            "</parameter></function>",
            "</parameter></tool_call>",
            "</function></tool_call>",
            "</tool_call><tool_call><function=",
            "<tool_call><function=",
        ],
        Format::Glm => &[
            "</arg_value><arg_key>",
            "</arg_value></tool_call>",
            // Any quoted call: where it is not whole, its closing mark is missed.
            "<arg_key>",
        ],
        Format::MiniMaxM2 => &[
            "</parameter><parametername",
            "</parameter></invoke>",
            "</parameter></minimax:tool_call>",
            "</invoke></minimax:tool_call>",
            "<minimax:tool_call><invoke",
        ],
        Format::Anthropic => &[
            "</parameter><parametername",
            "</parameter></invoke>",
            "</parameter></function_calls>",
            "</invoke></function_calls>",
            "<function_calls><invoke",
        ],
        Format::DeepSeekV32 => &["</｜DSML｜"],
        Format::FencedBash => {
            return !format!("\n{value}").contains("\n```") && value.trim() == value;
        }
        _ => &[],
    };
    forbidden.iter().all(|part| !bare.contains(part))
}

/// Whether a form's values are raw text.
pub(super) fn is_raw(format: Format) -> bool {
    matches!(
        format,
        Format::Qwen3Coder
            | Format::Glm
            | Format::MiniMaxM2
            | Format::Anthropic
            | Format::FencedBash
    )
}
