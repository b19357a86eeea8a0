//! Texts that are no calls, or nearly: no panic, no call out of nothing, no more than linear work.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;

use super::super::marks::marks_of;
use super::{CallParser, Format, formats, most_steps, read};
use crate::tool::ToolCall;

const VECTORS: [&str; 17] = [
    include_str!("../../../../tests/vectors/formats/hermes.json"),
    include_str!("../../../../tests/vectors/formats/qwen3-coder.json"),
    include_str!("../../../../tests/vectors/formats/glm.json"),
    include_str!("../../../../tests/vectors/formats/llama-3.json"),
    include_str!("../../../../tests/vectors/formats/llama-4.json"),
    include_str!("../../../../tests/vectors/formats/mistral.json"),
    include_str!("../../../../tests/vectors/formats/deepseek-v3.json"),
    include_str!("../../../../tests/vectors/formats/deepseek-v3-1.json"),
    include_str!("../../../../tests/vectors/formats/deepseek-v3-2.json"),
    include_str!("../../../../tests/vectors/formats/kimi-k2.json"),
    include_str!("../../../../tests/vectors/formats/minimax-m1.json"),
    include_str!("../../../../tests/vectors/formats/minimax-m2.json"),
    include_str!("../../../../tests/vectors/formats/anthropic-xml.json"),
    include_str!("../../../../tests/vectors/formats/harmony.json"),
    include_str!("../../../../tests/vectors/formats/granite.json"),
    include_str!("../../../../tests/vectors/formats/gemma.json"),
    include_str!("../../../../tests/vectors/formats/fenced-bash.json"),
];

/// The texts of all vectors.
fn texts() -> Vec<String> {
    let vectors = VECTORS.iter().flat_map(|file| {
        let vectors: Vec<Value> = serde_json::from_str(file).unwrap();
        vectors.into_iter().map(|vector| vector["text"].as_str().unwrap().to_owned())
    });
    vectors.collect()
}

/// Every mark of every format, once.
fn marks() -> Vec<&'static str> {
    let mut marks: Vec<_> =
        Format::ALL.into_iter().flat_map(marks_of).map(|(mark, _)| mark).collect();
    marks.sort_unstable();
    marks.dedup();
    marks
}

/// A change to a text.
#[derive(Debug, Clone)]
enum Mutation {
    Delete(Index, Index),
    Repeat(Index, Index),
    Swap(Index, Index),
    Insert(Index, String),
    Truncate(Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let mut pieces: Vec<String> = marks().into_iter().map(str::to_owned).collect();
    let more =
        ["{", "}", "\"", "'", "\\", "\n", "[", "]", ",", ":", "(", ")", "=", "```", "é", "\0"];
    pieces.extend(more.map(str::to_owned));
    pieces
        .extend(["</tool_call>", "</function>", "</parameter>", "</arg_value>"].map(str::to_owned));
    let index = any::<Index>;
    prop_oneof![
        (index(), index()).prop_map(|(from, to)| Mutation::Delete(from, to)),
        (index(), index()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
        (index(), index()).prop_map(|(from, to)| Mutation::Swap(from, to)),
        (index(), select(pieces)).prop_map(|(at, piece)| Mutation::Insert(at, piece)),
        index().prop_map(Mutation::Truncate),
    ]
}

fn mutated(text: &str, mutations: &[Mutation]) -> String {
    let mut text: Vec<char> = text.chars().collect();
    for mutation in mutations {
        let length = text.len() + 1;
        let range = |a: &Index, b: &Index| {
            let (a, b) = (a.index(length), b.index(length));
            a.min(b)..a.max(b)
        };
        match mutation {
            Mutation::Delete(a, b) => {
                text.drain(range(a, b));
            }
            Mutation::Repeat(a, b) => {
                let range = range(a, b);
                let (part, at) = (text[range.clone()].to_vec(), range.end);
                text.splice(at..at, part);
            }
            Mutation::Swap(a, b) if length > 1 => {
                let last = length - 1;
                text.swap(a.index(last), b.index(last));
            }
            Mutation::Swap(..) => {}
            Mutation::Insert(at, piece) => {
                let at = at.index(length);
                text.splice(at..at, piece.chars());
            }
            Mutation::Truncate(at) => text.truncate(at.index(length)),
        }
    }
    text.into_iter().collect()
}

/// That each call is a part of the text, in its order, and says nothing that is not in it.
fn check(text: &str, format: Format) -> Result<(), TestCaseError> {
    let (calls, steps) = read(format, text);
    prop_assert!(steps <= most_steps(text), "{} steps for {} bytes", steps, text.len());
    let mut end = 0;
    for call in &calls {
        let place = call.origin.as_ref().unwrap().place.unwrap();
        prop_assert!(end <= place.start && place.start <= place.end, "{:?} in {}", place, text);
        prop_assert!(place.end <= text.len());
        end = place.end;
        let span = &text[place.start..place.end];
        prop_assert_eq!(span.trim(), &call.raw_text);
        if !call.is_unreadable() {
            is_in(call, span)?;
        }
    }
    Ok(())
}

/// That the name and every word of the arguments stand in the text.
fn is_in(call: &ToolCall, span: &str) -> Result<(), TestCaseError> {
    // With escapes the words of a value are written otherwise.
    if span.contains('\\') {
        return Ok(());
    }
    prop_assert!(span.contains(&call.name) || call.name == "bash", "{} in {}", call.name, span);
    let joined = without_seams(span);
    let mut rest = vec![&call.arguments];
    while let Some(value) = rest.pop() {
        match value {
            Value::String(string) => {
                for word in string.split(|c: char| !c.is_alphanumeric()) {
                    let stands = span.contains(word) || joined.contains(word);
                    prop_assert!(stands, "{:?} in {}", word, span);
                }
            }
            Value::Array(items) => rest.extend(items),
            Value::Object(object) => rest.extend(object.values()),
            _ => {}
        }
    }
    Ok(())
}

/// The text without what stands between string literals that follow each other: in Python they are
/// one string.
fn without_seams(text: &str) -> String {
    let quotes = |text: &str| text.len() - text.trim_start_matches(['"', '\'']).len();
    let (mut joined, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(['"', '\'']) {
        joined.push_str(&rest[..at]);
        rest = &rest[at..];
        let run = quotes(rest);
        let next = rest[run..].trim_start();
        let next = next.strip_prefix(['r', 'R', 'b', 'B', 'u', 'U']).unwrap_or(next);
        match quotes(next) {
            0 if run == 1 => {
                joined.push_str(&rest[..1]);
                rest = &rest[1..];
            }
            0 => rest = &rest[run..],
            more => rest = &next[more..],
        }
    }
    joined + rest
}

#[test]
fn string_literals_that_follow_each_other_are_one_string() {
    for text in [
        r#"[bash(command="ls""ls")]"#,
        r#"[bash(command="ls" 'ls')]"#,
        r#"[bash(command="ls" r"ls")]"#,
        r#"[bash(command="""ls""" "ls")]"#,
    ] {
        check(text, Format::Auto).unwrap();
        let (calls, _) = read(Format::Auto, text);
        assert_eq!(calls[0].arguments, serde_json::json!({"command": "lsls"}), "{text}");
    }
}

fn any_format() -> impl Strategy<Value = Format> {
    select(Format::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn no_text_makes_it_panic(text in any::<String>(), format in any_format()) {
        check(&text, format)?;
    }

    #[test]
    fn bytes_that_are_text_by_chance_neither(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        format in any_format(),
    ) {
        check(&String::from_utf8_lossy(&bytes), format)?;
    }

    #[test]
    fn marks_in_any_order_neither(
        pieces in prop::collection::vec(mutation(), 0..20),
        format in any_format(),
    ) {
        let pieces = pieces.iter().filter_map(|mutation| match mutation {
            Mutation::Insert(_, piece) => Some(piece.as_str()),
            Mutation::Truncate(_) => Some("{\"name\": \"bash\", \"arguments\": {}}"),
            Mutation::Swap(..) => Some("bash"),
            _ => None,
        });
        check(&pieces.collect::<String>(), format)?;
    }

    #[test]
    fn a_mutated_vector_gives_no_call_that_is_not_in_it(
        text in select(texts()),
        mutations in prop::collection::vec(mutation(), 1..5),
        format in any_format(),
    ) {
        let text = mutated(&text, &mutations);
        check(&text, format)?;
        check(&text, Format::Auto)?;
    }
}

fn assert_linear(text: &str, format: Format, what: &str) {
    let parser = CallParser::new(format);
    let reading = super::Reading::new(&parser, text);
    reading.items();
    let (steps, bytes) = (reading.scan.steps(), text.len());
    assert!(steps <= most_steps(text), "{format}, {what}: {steps} steps for {bytes} bytes");
}

#[test]
fn ten_megabytes_of_every_opening_mark_take_linear_work() {
    for mark in marks() {
        let text = mark.repeat(10_000_000 / mark.len());
        assert_linear(&text, Format::Auto, mark);
        let text = &text[..mark.len() * 10_000];
        let own = formats().filter(|format| marks_of(*format).iter().any(|(own, _)| *own == mark));
        for format in own.take(1) {
            assert_linear(text, format, mark);
        }
    }
}

#[test]
fn half_calls_by_the_thousand_take_linear_work() {
    for (format, part) in [
        (Format::Hermes, "<tool_call>{\""),
        (Format::Hermes, "<tool_call>{\"a\":\"\\\""),
        (Format::Hermes, "<tool_call>[\"\n\",\""),
        (Format::Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}}"),
        (Format::Qwen3Coder, "<tool_call><function=f><parameter=a>"),
        (Format::Qwen3Coder, "<tool_call><function=f><parameter=a>x</parameter>"),
        (Format::Qwen3Coder, "<function=f>"),
        (Format::Qwen3Coder, "<function="),
        (Format::Qwen3Coder, "<tool_call><function=f><parameter=a></parameter>  "),
        (Format::Glm, "<tool_call>f<arg_key>"),
        (Format::Glm, "<tool_call>f<arg_key>k</arg_key><arg_value>"),
        (Format::Glm, "<tool_call>f<arg_key>k</arg_key><arg_value></arg_value> "),
        (Format::Llama3, "<|python_tag|>{\"name\": \"f\"};"),
        (Format::Llama4, "<|python_start|>[f(a='"),
        (Format::Llama4, "<|python_start|>[f(a=[1, '''"),
        (Format::Mistral, "[TOOL_CALLS]f[ARGS]"),
        (Format::Mistral, "[TOOL_CALLS]f{},"),
        (Format::DeepSeekV31, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"),
        (Format::DeepSeekV32, "<｜DSML｜function_calls><｜DSML｜invoke name=\"f\">"),
        (Format::KimiK2, "<|tool_call_begin|>f:0<|tool_call_argument_begin|>\""),
        (Format::MiniMaxM2, "<minimax:tool_call><invoke name=\"f\"><parameter name=\"k\">"),
        (Format::Anthropic, "<function_calls><invoke name=\"f\"><parameter name=\"k\">v"),
        (Format::Harmony, "<|channel|>commentary to=f<|message|>{\""),
        (Format::Harmony, "<|channel|>a to="),
        (Format::Granite, "<|tool_call|>[{\"name\": \"f\"},"),
        (Format::Gemma, "```tool_code\nf(a='"),
        (Format::FencedBash, "```bash\nls"),
        (Format::Auto, "<think></think>"),
    ] {
        let text = part.repeat(300_000 / part.len());
        assert_linear(&text, format, part);
        assert_linear(&text, Format::Auto, part);
    }
}

#[test]
fn deep_nesting_is_answered_and_needs_no_stack() {
    let nested = |open: &str| open.repeat(100_000);
    // A stack that real nesting would overflow.
    let thread = std::thread::Builder::new().stack_size(512 << 10);
    let deep = thread.spawn(move || {
        for text in [
            format!("<tool_call>{}", nested("[")),
            format!("<tool_call>{{\"name\": \"f\", \"arguments\": {}", nested("{\"a\":")),
            format!("<|python_start|>[f(a={}", nested("[")),
            format!("<|python_start|>[f(a={}", nested("(")),
            format!("<|python_start|>[f(a={}", nested("{'a':")),
            format!("[TOOL_CALLS]f[ARGS]{}", nested("{\"a\":[")),
            format!("<tool_call><function=f><parameter=a>{}", nested("<tool_call><function=f>")),
            nested("<think>"),
            nested("<tool_call>"),
            nested("{\"name\": \"bash\", \"arguments\": "),
            nested("["),
        ] {
            for format in [Format::Auto, Format::Hermes, Format::Llama3, Format::Llama4] {
                let (calls, steps) = read(format, &text);
                assert!(calls.iter().all(ToolCall::is_unreadable), "{format}");
                assert!(steps <= most_steps(&text), "{format}: {steps}");
            }
        }
    });
    deep.unwrap().join().unwrap();
}

#[test]
fn a_text_that_is_too_broken_ends_with_one_answer_for_the_rest() {
    let text = "<tool_call>{x}</tool_call>".repeat(5_000);
    let (calls, _) = read(Format::Auto, &text);
    assert_eq!(calls.len(), 1_001);
    let last = calls.last().unwrap().origin.as_ref().unwrap();
    assert!(last.unreadable.as_ref().unwrap().starts_with("so much before it cannot be read"));
    assert_eq!(last.place.unwrap().end, text.len());
}
