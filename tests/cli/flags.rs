//! Flags and variables as users meet them: what is refused, what is warned of, what is generated.

use super::*;

/// What the program says with these variables.
fn run(line: &[&str], variables: &[(&str, &str)]) -> Run {
    Run::of(program().args(line).envs(variables.iter().copied()).output().unwrap())
}

#[test]
fn a_wrong_variable_is_named_with_what_would_be_right() {
    for (variable, value, right) in [
        (
            "TOOL_EXECUTOR_ALLOW_NETWORK",
            "maybe",
            "1, true, yes, y or on, or 0, false, no, n or off",
        ),
        ("TOOL_EXECUTOR_SLOTS", "many", "a whole number of at least 1"),
        ("TOOL_EXECUTOR_LIMIT_MEMORY", "lots", "512M or 4G, or none"),
        ("TOOL_EXECUTOR_GRACE_S", "-1", "a number of seconds from 0 to 3600"),
        ("TOOL_EXECUTOR_NO_SECCOMP", "perhaps", "1, true, yes, y or on, or 0,"),
    ] {
        for line in [&["replay", "x.jsonl"][..], &["serve", "--port", "0"]] {
            let run = run(line, &[(variable, value)]);
            assert_eq!(run.code, Some(2), "{run:?}");
            let said = format!("invalid value '{value}' for the variable {variable}: it must be ");
            assert!(run.stderr.contains(&said) && run.stderr.contains(right), "{run:?}");
        }
    }
    let secret = [("TOOL_EXECUTOR_TOKEN", "s3cret with spaces")];
    let run = run(&["serve", "--port", "0"], &secret);
    assert_eq!(run.code, Some(2));
    assert!(
        run.stderr.contains("TOOL_EXECUTOR_TOKEN") && !run.stderr.contains("s3cret"),
        "{run:?}"
    );
}

#[test]
fn an_empty_variable_counts_as_none_and_a_flag_wins_over_its_variable() {
    let setup = Setup::new(&[trajectory("t", &["true"])]);
    for (flags, variables) in [
        (&[][..], &[("TOOL_EXECUTOR_SLOTS", ""), ("TOOL_EXECUTOR_ALLOW_NETWORK", "")][..]),
        (&["--slots", "2"], &[("TOOL_EXECUTOR_SLOTS", "many")]),
    ] {
        let run = Run::of(setup.command(flags).envs(variables.iter().copied()).output().unwrap());
        assert_eq!(run.code, Some(0), "{run:?}");
    }
}

#[test]
fn what_cannot_apply_is_refused_as_a_flag_and_warned_of_as_a_variable() {
    let fleet =
        ["replay", "-", "--sandbox-url", "http://127.0.0.1:1", "--sandbox-start-timeout-s", "0"];
    let line = [&fleet[..], &["--limit-memory", "1G"]].concat();
    let refused = run(&line, &[]);
    assert_eq!(refused.code, Some(2));
    let why = "--limit-memory has no effect: --sandbox-url names sandbox servers, which have slots";
    assert!(refused.stderr.contains(why), "{refused:?}");

    let warned = run(
        &fleet,
        &[
            ("TOOL_EXECUTOR_SLOTS", "3"),
            ("TOOL_EXECUTOR_NO_SECCOMP", "off"),
            ("TOOL_EXECUTOR_JOB_ID", "x"),
            ("TOOL_EXECUTOR_SLOT", "3"),
        ],
    );
    assert_eq!(warned.code, Some(5), "{warned:?}");
    let lines: Vec<_> = warned.stderr.lines().filter(|line| line.contains("no effect")).collect();
    assert_eq!(lines.len(), 3, "{warned:?}");
    assert!(lines[0].contains("TOOL_EXECUTOR_SLOTS has no effect: --sandbox-url names"));
    assert!(lines[1].contains("TOOL_EXECUTOR_JOB_ID has no effect: "));
    assert!(lines[2].contains("TOOL_EXECUTOR_SLOT has no effect: there is no such variable"));

    // The reason has the name of what gave it.
    let url = [("TOOL_EXECUTOR_SANDBOX_URL", "http://127.0.0.1:1")];
    let refused = run(&["replay", "-", "--slots", "2"], &url);
    assert_eq!(refused.code, Some(2));
    let why = "--slots has no effect: TOOL_EXECUTOR_SANDBOX_URL names sandbox servers";
    assert!(refused.stderr.contains(why), "{refused:?}");
}

#[test]
fn workspaces_are_made_where_it_is_said() {
    let setup = Setup::new(&[trajectory("t", &["true"])]);
    for name in ["tmp", "data"] {
        make_directory(&setup.path(name));
    }
    let mut command = setup.command(&["--slots", "1"]);
    command.env("TMPDIR", setup.path("tmp")).env("TOOL_EXECUTOR_DATA_DIR", setup.path("data/own"));
    let run = Run::of(command.output().unwrap());
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(setup.path("data/own").is_dir());
    assert_eq!(fs::read_dir(setup.path("tmp")).unwrap().count(), 0);
}

#[test]
fn completions_are_scripts_of_their_shell() {
    let setup = Setup::new(&[]);
    for shell in ["bash", "zsh", "fish"] {
        let completions = run(&["completions", shell], &[]);
        assert_eq!(completions.code, Some(0));
        for word in [
            "replay",
            "sandbox",
            "serve",
            "reap",
            "image",
            "prune",
            "unshare",
            "man",
            "summary-json",
        ] {
            assert!(completions.stdout.contains(word), "{shell} {word}");
        }
        if shell == "bash" {
            let script = setup.path("completions");
            fs::write(&script, completions.stdout).unwrap();
            let checked = Command::new("bash").arg("-n").arg(script).output().unwrap();
            assert!(checked.status.success(), "{checked:?}");
        }
    }
    assert_eq!(run(&["completions", "command.com"], &[]).code, Some(2));
}

#[test]
fn the_manual_has_every_command_and_no_value_of_a_variable() {
    let variables = [("TOOL_EXECUTOR_TOKEN", "s3cret"), ("TOOL_EXECUTOR_LISTEN_HOST", "127.9.9.9")];
    let page = run(&["man"], &variables);
    assert_eq!(page.code, Some(0));
    assert!(page.stdout.contains(".TH tool-executor 1"), "{}", page.stdout);
    for command in ["replay", "sandbox", "serve", "reap", "image", "unshare", "completions", "man"]
    {
        assert!(page.stdout.contains(&format!("tool\\-executor\\-{command}(1)")), "{command}");
    }
    let setup = Setup::new(&[]);
    let directory = setup.path("man1");
    assert_eq!(run(&["man", "--dir", directory.to_str().unwrap()], &variables).code, Some(0));
    let mut names: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "tool-executor-completions.1",
            "tool-executor-image-import.1",
            "tool-executor-image-list.1",
            "tool-executor-image-prune.1",
            "tool-executor-image-pull.1",
            "tool-executor-image-remove.1",
            "tool-executor-image-show.1",
            "tool-executor-image.1",
            "tool-executor-man.1",
            "tool-executor-reap.1",
            "tool-executor-replay.1",
            "tool-executor-sandbox.1",
            "tool-executor-serve.1",
            "tool-executor-unshare.1",
            "tool-executor.1",
        ]
    );
    let page = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    assert!(page("tool-executor-replay.1").contains("\\-\\-summary\\-json"));
    let serve = page("tool-executor-serve.1");
    assert!(serve.contains("TOOL_EXECUTOR_TOKEN"), "{serve}");
    assert!(!serve.contains("s3cret") && !serve.contains("127.9.9.9"));
}

#[test]
fn flags_say_what_becomes_of_unknown_arguments_and_of_the_order_of_outputs() {
    let call = |arguments: Value| json!({"name": "terminal", "arguments": arguments});
    let line = json!({"trajectory_id": "t", "calls": [
        call(json!({"command": "echo o1; echo e >&2; echo o2", "colour": "red"})),
        {"name": "write_file", "arguments": {"path": "f", "content": "x".repeat(200_000)}},
    ]});
    let setup = Setup::new(&[line.to_string()]);
    for (flags, outcomes, output) in [
        (&[][..], ["invalid_call", "tool_error"], ""),
        (&["--unknown-arguments", "ignore"], ["ok", "tool_error"], "o1\no2\n\n[stderr]\ne"),
        (
            &[
                "--unknown-arguments",
                "ignore",
                "--output-order",
                "interleaved",
                "--max-file-size",
                "1M",
            ],
            ["ok", "ok"],
            "o1\ne\no2",
        ),
    ] {
        let run = setup.replay(flags);
        assert_eq!(run.code, Some(0), "{run:?}");
        let results = setup.results();
        let found = [0, 1].map(|index: usize| results[index]["outcome"].as_str().unwrap());
        assert_eq!((found, &results[0]["output"]), (outcomes, &json!(output)), "{flags:?}");
    }
}

#[test]
fn variables_for_commands_come_from_flags_a_file_and_a_variable_with_lines() {
    let command = "echo \"$A|$B|$C|$D\"";
    let setup = Setup::new(&[trajectory("t", &[command])]);
    let file = setup.path("commands.env");
    fs::write(&file, "# those of all\n\nA=of the file\nB=of the file\n").unwrap();
    let file = file.to_str().unwrap();
    let variables = [("TOOL_EXECUTOR_ENV", "B=of a line, with a comma\nC"), ("C", "passed on")];
    let flags = ["--slots", "1", "--env-file", file];
    let run = Run::of(setup.command(&flags).envs(variables).output().unwrap());
    assert_eq!(run.code, Some(0), "{run:?}");
    let output = &setup.results()[0]["output"];
    assert_eq!(output, "of the file|of a line, with a comma|passed on|");

    for (flags, said) in [
        (&["--env", "NO_SUCH_VARIABLE"][..], "NO_SUCH_VARIABLE is to be passed on, and is not set"),
        (&["--env", "HOME=/x"], "the variable HOME cannot be set"),
        (&["--bind", "/no/such:/x"], "cannot give commands /no/such"),
        (&["--env-file", "/no/such"], "/no/such: No such file"),
    ] {
        let run = Run::of(setup.command(flags).output().unwrap());
        assert!(run.code != Some(0) && run.stderr.contains(said), "{run:?}");
    }
    fs::write(setup.path("commands.env"), "A=b\nnot a variable=s3cret\n").unwrap();
    let run = Run::of(setup.command(&["--env-file", file]).output().unwrap());
    assert!(run.stderr.contains("commands.env: line 2 must be NAME"), "{run:?}");
    assert!(!run.stderr.contains("s3cret"), "{run:?}");
}
