//! Trajectories of `replay` that begin with a spec.

use super::*;

fn with_spec(id: &str, spec: Value, command: &str) -> String {
    json!({"trajectory_id": id, "spec": spec, "calls": [bash(command)]}).to_string()
}

/// The outputs and outcomes, by the trajectories' ids.
fn outcomes(setup: &Setup) -> BTreeMap<String, (String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let results = setup.results();
    let one = |line: &Value| {
        (text(&line["trajectory_id"]), (text(&line["output"]), text(&line["outcome"])))
    };
    results.iter().map(one).collect()
}

#[test]
fn a_lines_spec_holds_above_the_runs_and_what_cannot_be_given_is_the_calls_outcome() {
    let echo = "echo $A-$B";
    let setup = Setup::new(&[
        with_spec("own", json!({"env": {"A": "own"}}), echo),
        trajectory("default", &[echo]),
        with_spec("refused", json!({"env": {"PATH": "/x"}}), echo),
    ]);
    fs::write(setup.path("spec.json"), r#"{"env": {"A": "runs", "B": "runs"}}"#).unwrap();
    let spec = setup.path("spec.json");
    let run = setup.replay(&["--slots", "2", "--repeat", "2", "--spec", spec.to_str().unwrap()]);
    assert_eq!(run.code, Some(1), "{run:?}");
    let found = outcomes(&setup);
    let expected = |output: &str, outcome: &str| (output.to_owned(), outcome.to_owned());
    for suffix in ["", "#2"] {
        assert_eq!(found[&format!("own{suffix}")], expected("own-", "ok"));
        assert_eq!(found[&format!("default{suffix}")], expected("runs-runs", "ok"));
        assert_eq!(found[&format!("refused{suffix}")], expected("", "spec_unsupported"));
    }
}

#[test]
fn a_wrong_spec_is_a_malformed_line_or_a_wrong_flag() {
    let setup = Setup::new(&[
        with_spec("wrong", json!({"imgae": "x"}), "true"),
        trajectory("fine", &["echo fine"]),
    ]);
    let run = setup.replay(&[]);
    assert_eq!(run.code, Some(3), "{run:?}");
    assert!(run.stderr.contains("spec: unknown field `imgae`, expected one of"), "{run:?}");
    assert_eq!(outcomes(&setup).len(), 1);
    for (text, words) in [
        (r#"{"imgae": 1}"#, "unknown field `imgae`, expected one of"),
        (r#"{"max_wall_s": 0}"#, "must be above 0"),
        ("[]", "expected a map"),
        ("", "EOF"),
    ] {
        fs::write(setup.path("spec.json"), text).unwrap();
        let run = setup.replay(&["--spec", setup.path("spec.json").to_str().unwrap()]);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(run.stderr.contains(words) && run.stderr.contains("--spec"), "{run:?}");
    }
    let run = setup.replay(&["--spec", "/nonexistent"]);
    assert_eq!(run.code, Some(4), "{run:?}");
}
