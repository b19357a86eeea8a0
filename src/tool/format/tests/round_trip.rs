//! Call to text to call, in every form.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::write::{Written, can_hold, is_raw, message};
use super::{CallParser, Format, formats, most_steps, read};
use crate::tool::JsonObject;

/// What values are made of: marks of every kind, quotes, line breaks, other scripts.
const PIECES: [&str; 40] = [
    "ls",
    " ",
    "\n",
    "\n\n",
    "\t",
    "\"",
    "'",
    "\\",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    "=",
    ";",
    "é",
    "日本",
    "😀",
    "\u{2028}",
    "<",
    ">",
    "&lt;",
    "`",
    "```",
    "<tool_call>",
    "</tool_call>",
    "<function=f>",
    "</function>",
    "<parameter=k>",
    "</parameter>",
    "<arg_key>",
    "</arg_value>",
    "</invoke>",
    "<think>",
    "</think>",
    "[TOOL_CALLS]",
    "<|call|>",
    "</｜DSML｜parameter>",
];

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(select(PIECES.to_vec()), 0..12).prop_map(|pieces| pieces.concat())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => text().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => (-1e6..1e6).prop_map(|float: f64| Value::from(float)),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// A call that `format` can hold.
fn call(format: Format) -> BoxedStrategy<Written> {
    let names = match format {
        Format::FencedBash => Just("bash".to_owned()).boxed(),
        _ => "[a-z_][a-z0-9_]{0,8}|ключ|名前".boxed(),
    };
    let keys = match format {
        Format::FencedBash => Just("command".to_owned()).boxed(),
        _ => "[a-z_][a-z0-9_]{0,6}".boxed(),
    };
    let values = if is_raw(format) {
        text()
            .prop_filter("what would end it", move |text| can_hold(format, text))
            .prop_map(Value::from)
            .boxed()
    } else {
        value()
            .prop_filter("what would end it", move |value| {
                format != Format::DeepSeekV32 || can_hold(format, value.as_str().unwrap_or(""))
            })
            .boxed()
    };
    let count = if format == Format::FencedBash { 1..2 } else { 0..4 };
    (names, prop::collection::vec((keys, values), count))
        .prop_map(|(name, pairs)| Written { name, arguments: pairs.into_iter().collect() })
        .boxed()
}

fn calls() -> impl Strategy<Value = (Format, Vec<Written>)> {
    select(formats().collect::<Vec<_>>()).prop_flat_map(|format| {
        let most = if format == Format::FencedBash { 2 } else { 5 };
        (Just(format), prop::collection::vec(call(format), 1..most))
    })
}

fn found(format: Format, text: &str) -> Vec<(String, Value)> {
    let (calls, steps) = read(format, text);
    assert!(steps <= most_steps(text), "{steps} steps for {} bytes", text.len());
    calls
        .into_iter()
        .map(|call| {
            let origin = call.origin.unwrap();
            assert_eq!(origin.unreadable, None, "{text}");
            assert_eq!(origin.repairs, [], "{text}");
            (call.name, call.arguments)
        })
        .collect()
}

fn expected(calls: &[Written]) -> Vec<(String, Value)> {
    calls.iter().map(|call| (call.name.clone(), call.arguments.clone().into())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_written_is_read_again((format, calls) in calls()) {
        for text in ["", "Text between.\n"] {
            let message = message(format, &calls, text);
            prop_assert_eq!(found(format, &message), expected(&calls), "{}: {}", format, message);
        }
    }

    #[test]
    fn auto_reads_what_the_format_reads((format, calls) in calls()) {
        prop_assume!(!matches!(format, Format::Gemma | Format::FencedBash));
        let message = message(format, &calls, "Text.\n");
        prop_assert_eq!(found(Format::Auto, &message), expected(&calls), "{}: {}", format, message);
    }
}

fn write_file(content: &str) -> Written {
    let arguments = json!({"path": "a", "content": content});
    Written { name: "write_file".to_owned(), arguments: arguments.as_object().unwrap().clone() }
}

#[test]
fn a_megabyte_of_content_is_read() {
    let line = "a line with \"quotes\", <tags> and </tool_call>, 日本語\n";
    let content = line.repeat(1_000_000 / line.len() + 1);
    for format in formats().filter(|format| *format != Format::FencedBash) {
        let calls = [write_file(&content)];
        assert_eq!(found(format, &message(format, &calls, "")), expected(&calls), "{format}");
    }
    let bash = Written {
        name: "bash".to_owned(),
        arguments: JsonObject::from_iter([("command".to_owned(), Value::from(content.trim()))]),
    };
    let calls = [bash];
    let text = message(Format::FencedBash, &calls, "");
    assert_eq!(found(Format::FencedBash, &text), expected(&calls));
}

#[test]
fn two_hundred_calls_of_a_message_are_read_in_their_order() {
    let calls: Vec<_> = (0..200).map(|n| write_file(&n.to_string())).collect();
    for format in formats().filter(|format| *format != Format::FencedBash) {
        let text = message(format, &calls, "And then:\n");
        let parsed = CallParser::new(format).parse(&text).unwrap();
        let contents: Vec<_> =
            parsed.calls.iter().map(|call| call.arguments["content"].to_string()).collect();
        assert_eq!(contents.len(), 200, "{format}");
        let in_order = contents.iter().enumerate().all(|(n, text)| *text == format!("\"{n}\""));
        assert!(in_order, "{format}: {contents:?}");
    }
}

#[test]
fn a_file_of_several_forms_is_read_by_auto() {
    let mut text = String::new();
    let mut calls = Vec::new();
    let marked = |format: &Format| !matches!(format, Format::FencedBash | Format::Gemma);
    for (n, format) in formats().filter(marked).enumerate() {
        let call = write_file(&n.to_string());
        text.push_str(&message(format, std::slice::from_ref(&call), "Then:\n"));
        calls.push(call);
    }
    assert_eq!(found(Format::Auto, &text), expected(&calls));
}
