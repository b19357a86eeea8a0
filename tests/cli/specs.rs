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
        with_spec("narrow", json!({"limits": {"open_files": 64}}), "ulimit -n"),
        with_spec("wide", json!({"limits": {"open_files": 999_999}}), echo),
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
        assert_eq!(found[&format!("narrow{suffix}")], expected("64", "ok"));
        assert_eq!(found[&format!("wide{suffix}")], expected("", "spec_unsupported"));
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

#[test]
fn a_setup_is_made_once_for_all_repetitions() {
    let slow = bash("date +%s%N > /tmp/made; mkdir -p sub; echo setup > sub/file");
    let line = json!({"trajectory_id": "t", "setup": [slow, bash("sleep 0.2")],
        "calls": [bash("cat /tmp/made sub/file; echo own >> sub/file"), bash("wc -l < sub/file")]});
    let alone = trajectory("alone", &["echo alone"]);
    let failing =
        json!({"trajectory_id": "bad", "setup": [bash("exit 3")], "calls": [bash("echo no")]});
    let setup = Setup::new(&[line.to_string(), alone, failing.to_string()]);
    let summary = setup.path("summary.json");
    let run = setup.replay(&[
        "--slots",
        "3",
        "--repeat",
        "4",
        "--share-setup",
        "--summary-json",
        summary.to_str().unwrap(),
    ]);
    assert_eq!(run.code, Some(1), "the failed setup: {run:?}");
    let results = setup.results();
    let of =
        |id: &str| results.iter().filter(|line| line["task_id"] == id).cloned().collect::<Vec<_>>();
    let setups: Vec<_> = of("t").into_iter().filter(|line| line["setup"] == true).collect();
    assert_eq!(setups.len(), 2, "{setups:?}");
    let first: Vec<_> =
        of("t").into_iter().filter(|line| line["setup"] == false && line["index"] == 0).collect();
    assert_eq!(first.len(), 4);
    // All have the files of the one setup, and each goes its own way from there.
    assert!(first.iter().all(|line| line["output"] == first[0]["output"]), "{first:?}");
    assert!(first[0]["output"].as_str().unwrap().ends_with("setup"));
    let second = of("t").into_iter().filter(|line| line["setup"] == false && line["index"] == 1);
    assert!(second.clone().all(|line| line["output"] == "2"), "{:?}", second.collect::<Vec<_>>());
    assert_eq!(of("alone").len(), 4);
    // A setup that fails fails for each.
    assert_eq!(of("bad").iter().filter(|line| line["setup"] == true).count(), 4);
    let told: Value = serde_json::from_str(&fs::read_to_string(&summary).unwrap()).unwrap();
    let shared = &told["shared_setup"];
    assert_eq!(
        (&shared["setups"], &shared["trajectories"], &shared["calls"]),
        (&json!(1), &json!(3), &json!(6))
    );
    assert!(shared["saved_s"].as_f64().unwrap() >= 0.6, "{shared}");
    assert!(run.stdout.contains("shared setup  1 made for 3 more trajectories"), "{run:?}");
}

#[test]
fn steps_put_files_of_the_recordings_directory_into_the_machine() {
    let put = |value: Value| json!({"put": value});
    let look = "cat task/a/b /tmp/one; stat -c %a /tmp/one; bin/run; echo own >> task/a/b";
    let line = json!({"trajectory_id": "t", "setup": [
        put(json!({"from": "files", "to": "task"})),
        put(json!({"from": "files/a/b", "to": "/tmp/one", "mode": "0600"})),
        put(json!({"from": "packed.tar", "to": "bin", "unpack": true})),
    ], "calls": [
        bash(look),
        put(json!({"from": "files/a/b", "to": "late"})),
        bash("cat late task/a/b"),
    ]});
    let missing = json!({"trajectory_id": "missing",
        "calls": [put(json!({"from": "nowhere", "to": "x"})), bash("ls")]});
    let outside =
        json!({"trajectory_id": "outside", "calls": [put(json!({"from": "/etc", "to": "x"}))]});
    // More than are put at a time, and more than there are slots.
    let many = |n| {
        json!({"trajectory_id": format!("many-{n}"),
        "calls": [put(json!({"from": "files", "to": "."})), bash("cat a/b; sleep 0.1")]})
    };
    let lines = [line, missing, outside].into_iter().chain((0..20).map(many));
    let setup = Setup::new(&lines.map(|line| line.to_string()).collect::<Vec<_>>());
    fs::create_dir_all(setup.path("files/a")).unwrap();
    fs::write(setup.path("files/a/b"), "text\n").unwrap();
    let mut tar = tar::Builder::new(File::create(setup.path("packed.tar")).unwrap());
    let mut header = tar::Header::new_gnu();
    let program = b"#!/bin/sh\necho ran\n";
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "run", &program[..]).unwrap();
    tar.finish().unwrap();
    let flags = ["--slots", "2", "--concurrency", "16", "--repeat", "2"];
    for shared in [&[][..], &["--share-setup"]] {
        let run = setup.replay(&[&flags, shared].concat());
        assert_eq!(run.code, Some(3), "{run:?}");
        assert!(run.stderr.contains("beneath the recording's directory"), "{run:?}");
        let results = setup.results();
        let of = |id: &str, index: u64| {
            let found = results.iter().find(|line| {
                line["trajectory_id"] == id && line["setup"] == false && line["index"] == index
            });
            found.unwrap_or_else(|| panic!("{id} {index}: {results:?}")).clone()
        };
        for id in ["t", "t#2"] {
            assert_eq!(of(id, 0)["output"], "text\ntext\n600\nran", "{run:?}");
            assert_eq!(of(id, 2)["output"], "text\ntext\nown");
            let put = of(id, 1);
            assert_eq!((&put["name"], &put["success"]), (&json!("put"), &json!(true)), "{put}");
            assert_eq!(put["metadata"]["bytes"], 5);
            assert_eq!(put["arguments"]["to"], "late");
        }
        assert_ne!(of("t", 1)["uniq_id"], of("t#2", 1)["uniq_id"]);
        let missing = of("missing", 0);
        assert_eq!(missing["outcome"], "backend_failed", "{missing}");
        assert!(missing["error"].as_str().unwrap().contains("nowhere"), "{missing}");
        assert_eq!(of("missing", 1)["success"], true);
        for n in 0..20 {
            assert_eq!(of(&format!("many-{n}"), 1)["output"], "text");
        }
    }
}
