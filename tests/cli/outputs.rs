//! What `replay` writes, and what becomes of it where it cannot be written.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::*;

#[test]
fn a_result_says_which_task_it_belongs_to_and_what_a_trainer_masks() {
    let line = json!({"id": "a", "setup": [bash("true")], "calls": [bash("exit 3"), {"name": "x", "arguments": 7}]});
    let setup = Setup::new(&[line.to_string(), line.to_string()]);
    let summary = setup.path("summary.json");
    let run = setup.replay(&[
        "--repeat",
        "2",
        "--concurrency",
        "1",
        "--summary-json",
        summary.to_str().unwrap(),
    ]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let results = setup.results();
    let place = |line: &Value| {
        format!("{} {} {}", line["trajectory_id"], line["task_id"], line["repetition"])
    };
    let mut places: Vec<_> = results.iter().map(place).collect();
    places.dedup();
    assert_eq!(
        places,
        ["\"a\" \"a\" 1", "\"a#2\" \"a\" 2", "\"a~2\" \"a\" 1", "\"a~2#2\" \"a\" 2"]
    );
    assert_eq!(results.len(), 12);
    assert_eq!((&results[0]["setup"], &results[1]["setup"]), (&json!(true), &json!(false)));
    assert_eq!(results[1]["arguments"], json!({"command": "exit 3"}));
    assert_eq!(results[2]["arguments"], json!(7));
    for (result, outcome, may_have_executed) in
        [(&results[1], "non_zero_exit", true), (&results[2], "unknown_tool", false)]
    {
        assert_eq!(result["outcome"], outcome);
        assert_eq!(result["model_attributable"], true);
        assert_eq!(result["may_have_executed"], may_have_executed);
    }
    let summary: Value = serde_json::from_slice(&fs::read(summary).unwrap()).unwrap();
    assert_eq!(summary["exit_code"], 0);
    assert_eq!(
        summary["trajectories"],
        json!({"ended": 4, "setup_failed": 0, "cut_short": 0, "renamed": 1})
    );
    assert_eq!(summary["calls"]["total"], 12);
    assert_eq!(
        (&summary["outcomes"]["ok"], &summary["outcomes"]["timeout"]),
        (&json!(4), &json!(0))
    );
    assert_eq!(summary["agreement"], Value::Null);
}

#[test]
fn a_result_says_what_its_call_left_running() {
    let leaves = "sleep 99 & until grep -qx sleep /proc/$!/comm; do :; done; echo begun";
    let setup = Setup::new(&[trajectory("t", &[leaves, "echo alone"])]);
    let run = setup.replay(&[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let results = setup.results();
    let expected = json!({"count": 1, "names": ["sleep"]});
    assert_eq!(results[0]["metadata"]["ended_processes"], expected);
    let output = results[0]["output"].as_str().unwrap();
    assert!(output.starts_with("begun\n[1 background process was ended with"), "{output}");
    assert_eq!(results[1]["output"], "alone");
    assert_eq!(results[1]["metadata"].get("ended_processes"), None);
}

#[test]
fn the_summary_for_programs_tells_how_the_run_ended() {
    let lines = ["nonsense".to_owned(), trajectory("t", &["true"])];
    let setup = Setup::new(&lines);
    let path = setup.path("summary.json");
    let run = setup.replay(&["--compare", "--summary-json", path.to_str().unwrap()]);
    assert_eq!(run.code, Some(3));
    let summary: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!((&summary["exit_code"], &summary["malformed_lines"]), (&json!(3), &json!(1)));
    assert_eq!(summary["agreement"]["outputs"]["na"], 1);
    let run = setup.replay(&["--summary-json", "/dev/full"]);
    assert_eq!(run.code, Some(4));
    assert!(run.stderr.contains("the summary could not be written: /dev/full: No space left"));
    let out = setup.path("out.jsonl");
    let run = setup.replay(&["--summary-json", out.to_str().unwrap()]);
    assert_eq!(run.code, Some(4));
    assert!(run.stderr.contains("--summary-json would overwrite the results of --out"), "{run:?}");
}

#[test]
fn a_results_file_that_has_no_room_left_ends_in_a_whole_line() {
    let setup = Setup::new(&[]);
    let out = setup.path("out.jsonl");
    let mut command = program();
    command.args(["replay", "-", "--out"]).arg(&out).stdin(Stdio::piped());
    let mut child = spawn(command);
    let mut stdin = child.stdin.take().unwrap();
    // Longer than anything else that is written on the way.
    let long = "head -c 40000 /dev/zero | tr '\\0' x";
    writeln!(stdin, "{}", trajectory("first", &[long])).unwrap();
    wait_for_lines(&mut child, &out, 1);
    let room = fs::metadata(&out).unwrap().len() + 100;
    let limit = Rlimit { current: Some(room), maximum: None };
    prlimit(Some(Pid::from_child(&child)), Resource::Fsize, limit).unwrap();
    writeln!(stdin, "{}", trajectory("second", &[long])).unwrap();
    drop(stdin);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(4), "{run:?}");
    assert!(run.stderr.contains("out.jsonl: File too large"), "{run:?}");
    let ids: Vec<_> = setup.results().iter().map(|r| r["trajectory_id"].to_string()).collect();
    assert_eq!(ids, ["\"first\""]);
    assert_eq!(fs::metadata(&out).unwrap().len(), room - 100);
}

/// The end of a pipe without a reader.
fn closed_pipe() -> OwnedFd {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_of_standard_output_or_error_that_is_gone_does_no_harm() {
    let setup = Setup::new(&[trajectory("t", &["echo hi"]), "nonsense".to_owned()]);
    let tmp = setup.path("tmp");
    make_directory(&tmp);
    for (stdout_gone, stderr_gone) in [(true, false), (false, true), (true, true)] {
        let mut command = setup.command(&[]);
        command.env("TMPDIR", &tmp);
        command.stdout(if stdout_gone { closed_pipe().into() } else { Stdio::piped() });
        command.stderr(if stderr_gone { closed_pipe().into() } else { Stdio::piped() });
        let run = Run::of(command.output().unwrap());
        assert_eq!(run.code, Some(3), "{run:?}");
        assert_eq!(setup.results().len(), 1);
        assert_eq!(runs_in(&tmp), Vec::<PathBuf>::new());
    }
}

#[test]
fn what_is_only_printed_needs_no_reader_and_is_an_error_on_a_full_disk() {
    for line in [&["--help"][..], &["replay", "--help"], &["completions", "bash"], &["man"]] {
        let run = Run::of(program().args(line).stdout(closed_pipe()).output().unwrap());
        assert_eq!((run.code, &*run.stderr), (Some(0), ""), "{line:?}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let run = Run::of(program().args(line).stdout(full).output().unwrap());
        assert_eq!(run.code, Some(4), "{line:?}");
        assert!(run.stderr.contains("standard output: No space left"), "{line:?} {run:?}");
    }
    for line in [&["replay"][..], &["serve", "--host", "0.0.0.0"], &["replay", "/missing"]] {
        let run = Run::of(program().args(line).stderr(closed_pipe()).output().unwrap());
        assert!(matches!(run.code, Some(2 | 4)), "{line:?} {run:?}");
    }
}
