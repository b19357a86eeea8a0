//! JSON as Python's `json` module reads and writes it.
//!
//! Models are trained on it, and trajectories are recorded in it: tool calls in a model's text are
//! read by what `json.loads` accepts, and results are written in the form that `json.dumps` gives.
//! The text formats of this module's parent call it; readers of recorded rollouts may, too.
//!
//! [`parse`] accepts all that `json.loads` accepts and nothing else, with two limits of its own:
//! nesting deeper than [`MAX_DEPTH`] is an error, and what a [`Value`] cannot hold is mapped to
//! what comes nearest:
//!
//! | Python reads | we keep |
//! |---|---|
//! | `NaN`, `Infinity`, `-Infinity`, a number beyond the doubles (`1e999`) | `null`, as `serde_json` does with a double that is not finite |
//! | an integer of more than 64 bits | the nearest double |
//! | a lone surrogate (`"\ud83d"`) | U+FFFD |
//!
//! It does not read bytes, streams, or a byte order mark.

mod read;
mod write;

use serde_json::Value;

pub use read::{MAX_DEPTH, ParseError, parse};
pub(crate) use read::{Mends, parse_prefix};
pub use write::{NonAscii, to_string};
pub(crate) use write::{float_text, write_object, write_string};

/// Whether Python takes `value` for true: not null, false, zero or empty.
pub(crate) fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(string) => !string.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn truth_is_pythons() {
        for falsy in [json!(null), json!(false), json!(0), json!(-0.0), json!(""), json!([])] {
            assert!(!is_truthy(&falsy), "{falsy}");
        }
        for truthy in [json!(true), json!(7), json!(0.5), json!("no"), json!([0]), json!({"a": 0})]
        {
            assert!(is_truthy(&truthy), "{truthy}");
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    /// Text that is often JSON, or nearly.
    fn nearly_json() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\"a\"", "\"b\":", "0", "-", "12", ".5", "e1",
            "\\", "\\n", "\\u0041", "\\ud83d", "\\ude00", "\n", " ", "é", "NaN", "Infinity",
            "null", "true",
        ]);
        prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in any_value()) {
            for non_ascii in [NonAscii::Escape, NonAscii::Keep] {
                let text = to_string(&value, non_ascii);
                prop_assert_eq!(parse(&text), Ok(value.clone()));
                prop_assert!(non_ascii == NonAscii::Keep || text.is_ascii());
            }
        }

        #[test]
        fn it_agrees_with_serde_json_but_for_pythons_liberties(text in nearly_json()) {
            match (parse(&text), serde_json::from_str::<Value>(&text)) {
                // serde_json reads `-0` as a double.
                (Ok(ours), Ok(theirs)) => prop_assert!(ours == theirs || text.contains("-0")),
                (Ok(_), Err(_)) => prop_assert!(
                    ["NaN", "Infinity", "\\ud", "e1"].iter().any(|liberty| text.contains(liberty))
                ),
                (Err(_), Ok(_)) => prop_assert!(false, "refused {text}"),
                (Err(_), Err(_)) => {}
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
