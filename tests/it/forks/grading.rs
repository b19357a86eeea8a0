//! Graders: what they see, what is left of them, and what an agent can do to one.

use super::*;

#[test]
fn a_grader_sees_the_files_and_nothing_of_it_is_left() {
    let (dir, executor) = start(1);
    run(&executor, "t", "echo 42 > answer; echo x > /tmp/x; echo export E=1 > ~/.bashrc");
    executor.execute("t", ToolCall::new("terminal_stateful", json!({"command": "sleep 1000 &"})));
    let spec = GradeSpec::new(
        "cat /workspace/answer tests/expected; pwd; echo $HOME $TMPDIR $A; echo err >&2; \
         touch /workspace/made /tmp/made; rm /workspace/answer; ls -A ~ /dev/shm; \
         echo '{\"score\": 1}' >&$TOOL_EXECUTOR_VERDICT_FD; ps -eo comm= | grep -c sleep; exit 3",
    )
    .with_files(vec![SpecFile::text("tests/expected", "expected\n")])
    .with_env([("A".to_owned(), "a b".to_owned())].into());
    let graded = grade(&executor, "t", &spec);
    assert_eq!(
        graded.stdout,
        "42\nexpected\n/grade\n/run/grader /run/grader a b\n/dev/shm:\n\n/run/grader:\n0\n"
    );
    assert_eq!((&*graded.stderr, graded.exit_code()), ("err\n", Some(3)));
    assert_eq!(graded.result.outcome, Outcome::NonZeroExit);
    assert_eq!(graded.result.metadata["network_isolated"], true);
    assert_eq!(graded.verdict_json(), Some(json!({"score": 1})));
    assert_eq!(graded.ended_processes, ["the shell of terminal_stateful"]);
    // The trajectory goes on, and is told.
    let next = executor.execute("t", bash("cat answer; ls -A . /tmp; ls /grade /run/grader"));
    assert!(next.output.contains("the shell of terminal_stateful ended"), "{next:?}");
    assert!(next.output.starts_with("42\n.:\nanswer\n\n/tmp:\nx\n"), "{next:?}");
    assert_eq!(next.output.matches("No such file").count(), 2, "{next:?}");
    settled(dir.path(), 0, 4);
    // As often as one likes, also above a snapshot.
    for _ in 0..3 {
        snapshot(&executor, "t");
        let graded = grade(&executor, "t", &GradeSpec::new("cat /workspace/answer"));
        assert_eq!((&*graded.stdout, graded.verdict), ("42\n", None));
    }
    assert_eq!(run(&executor, "t", "cat answer"), "42");
}

#[test]
fn a_graders_files_cannot_be_written_to_and_its_verdict_is_bounded() {
    let (_dir, executor) = start(1);
    run(&executor, "t", "true");
    let spec = GradeSpec::new(
        "echo x > f; echo x >> /grade/f; chmod 777 /grade/f; mv /grade/f /grade/g; touch /grade/h; \
         head -c 1000000 /dev/zero | tr '\\0' v >&6",
    )
    .with_files(vec![SpecFile::text("f", "")]);
    let graded = grade(&executor, "t", &spec);
    let refused = |line: &&str| line.contains("Read-only") || line.contains("Permission denied");
    assert_eq!(graded.stderr.lines().filter(refused).count(), 5, "{}", graded.stderr);
    assert_eq!(graded.verdict.unwrap().len(), tool_executor::grade::MAX_VERDICT);
}

#[test]
fn a_grader_that_takes_too_long_is_ended_and_the_trajectory_goes_on() {
    let (_dir, executor) = start(1);
    run(&executor, "t", "echo kept > f");
    let spec = GradeSpec::new("echo early >&6; sleep 1000").with_timeout(Duration::ZERO);
    let graded = grade(&executor, "t", &spec);
    assert_eq!(graded.result.outcome, Outcome::Timeout);
    assert_eq!(graded.verdict.as_deref(), Some("early\n"));
    assert_eq!(run(&executor, "t", "cat f"), "kept");
    let user = GradeSpec::new("true").with_user("root".to_owned());
    let refused = executor.grade("t", &user).unwrap_err();
    assert!(matches!(refused, SnapshotError::Unsupported(_)), "{refused}");
}
