//! What models write, read: vectors after the makers' templates and documents, one file a family.
//!
//! A vector names its source. It is read by its family's format and by `Auto`, unless it says
//! otherwise; in the tests of the library (`src/tool/format/tests`) are the properties.

use serde_json::{Value, json};
use tool_executor::format::{CallForm, CallParser, Format};
use tool_executor::{ToolRegistry, ToolSchema};

const FILES: [(&str, &str); 17] = [
    ("hermes", include_str!("vectors/formats/hermes.json")),
    ("qwen3-coder", include_str!("vectors/formats/qwen3-coder.json")),
    ("glm", include_str!("vectors/formats/glm.json")),
    ("llama-3", include_str!("vectors/formats/llama-3.json")),
    ("llama-4", include_str!("vectors/formats/llama-4.json")),
    ("mistral", include_str!("vectors/formats/mistral.json")),
    ("deepseek-v3", include_str!("vectors/formats/deepseek-v3.json")),
    ("deepseek-v3-1", include_str!("vectors/formats/deepseek-v3-1.json")),
    ("deepseek-v3-2", include_str!("vectors/formats/deepseek-v3-2.json")),
    ("kimi-k2", include_str!("vectors/formats/kimi-k2.json")),
    ("minimax-m1", include_str!("vectors/formats/minimax-m1.json")),
    ("minimax-m2", include_str!("vectors/formats/minimax-m2.json")),
    ("anthropic-xml", include_str!("vectors/formats/anthropic-xml.json")),
    ("harmony", include_str!("vectors/formats/harmony.json")),
    ("granite", include_str!("vectors/formats/granite.json")),
    ("gemma", include_str!("vectors/formats/gemma.json")),
    ("fenced-bash", include_str!("vectors/formats/fenced-bash.json")),
];

/// The built-in tools, and those that the vectors use besides.
fn registry() -> ToolRegistry {
    let mut registry = ToolRegistry::builtin();
    let tune = ToolSchema::new("tune", "")
        .with_optional("count", "integer", "")
        .with_optional("ratio", "number", "")
        .with_optional("flag", "boolean", "")
        .with_optional("list", "array", "")
        .with_optional("map", "object", "")
        .with_optional("note", "string", "");
    registry.register_external(tune).unwrap();
    registry
}

#[test]
fn every_vector_is_read_by_its_format_and_by_auto() {
    let registry = registry();
    let (mut read, mut wrong) = (0, Vec::new());
    for (family, text) in FILES {
        let family: Format = family.parse().unwrap();
        let Value::Array(vectors) = serde_json::from_str(text).unwrap() else {
            panic!("{family}: a vector file is a list");
        };
        for vector in vectors {
            for (format, key) in [(family, "explicit"), (Format::Auto, "auto")] {
                if vector.get(key) != Some(&json!(false)) {
                    read += 1;
                    if let Err(problem) = check(&registry, &vector, family, format) {
                        let (what, text) = (&vector["what"], &vector["text"]);
                        wrong
                            .push(format!("{family}, read as {format}: {what}\n{text}\n{problem}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(read > 300, "{read}");
}

fn check(
    registry: &ToolRegistry,
    vector: &Value,
    family: Format,
    format: Format,
) -> Result<(), String> {
    let text = vector["text"].as_str().unwrap();
    let parsed = CallParser::new(format).registry(registry).parse(text).unwrap();
    let found: Vec<Value> = parsed
        .calls
        .iter()
        .map(|call| {
            let origin = call.origin.as_ref().unwrap();
            let place = origin.place.unwrap();
            assert!(text[place.start..place.end].contains(&call.raw_text));
            assert!(origin.untyped.is_empty() || registry.get(&call.name).is_none());
            assert!(format != family || origin.form == CallForm::Text(family));
            let mut found = json!({"name": call.name});
            match &origin.unreadable {
                Some(reason) => found["unreadable"] = json!(reason),
                None => found["arguments"] = call.arguments.clone(),
            }
            // A call without an id of its own has a new one.
            if uuid::Uuid::parse_str(&call.uniq_id).is_err() {
                found["id"] = json!(call.uniq_id);
            }
            if !origin.repairs.is_empty() {
                found["repairs"] = json!(origin.repairs);
            }
            found
        })
        .collect();
    let expected = vector["calls"].as_array().unwrap();
    let same = found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, expected)| {
            let mut found = found.clone();
            if let (Some(reason), Some(part)) =
                (found.get("unreadable"), expected.get("unreadable"))
            {
                let (reason, part) = (reason.as_str().unwrap(), part.as_str().unwrap());
                if reason.contains(part) && !reason.contains('\n') {
                    found["unreadable"] = json!(part);
                }
            }
            found == *expected
        });
    let unclosed = vector.get("unclosed_thinking") == Some(&json!(true));
    if same && parsed.unclosed_thinking == unclosed {
        return Ok(());
    }
    let thinking = parsed.unclosed_thinking;
    Err(format!(
        "expected {}\nfound    {}\nunclosed thinking: {thinking}",
        json!(expected),
        json!(found)
    ))
}
